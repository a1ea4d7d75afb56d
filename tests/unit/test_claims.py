"""Sentences in documents that draw conclusions from a measured table, computed anew from the table's file.

A table follows its file (test_published.py); the text beside the table does not. When results are measured
anew, a sentence here fails if it no longer holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.grid import tables
from bench.grid.statistics import geometric_mean

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text("utf-8"))
    return found


def rows(name: str, **of: Any) -> Rows:
    return [row for row in results(name)["rows"] if all(row.get(key) == value for key, value in of.items())]


def text(name: str) -> str:
    """Return a document as one line, so that a sentence is found wherever it is wrapped."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_fig5_and_fig6_say_where_adaptive_is_not_ahead() -> None:
    best: dict[int, str] = {}
    goodput = {(row["slo_ms"], row["policy"]): row["goodput/s"] for row in rows("fig5")}
    for slo, _ in goodput:
        best[slo] = max(("paper", "fifo", "adaptive"), key=lambda policy: goodput[slo, policy])
    (behind,) = [slo for slo, policy in best.items() if policy != "adaptive"]
    paper, ours = goodput[behind, "paper"], goodput[behind, "adaptive"]
    assert best[behind] == "paper"
    told = f"highest goodput in Fig. 5 but at {behind} ms, where `paper` is {100 * (paper / ours - 1):.0f} % ahead ({paper:.0f}/s to {ours:.0f})"
    assert told in text("bench/paper/README.md")
    of = {row["policy"]: row["goodput/s"] for row in rows("fig6")}
    assert of["paper"] > of["adaptive"] > of["fifo"]
    assert f"not in Fig. 6 ({of['adaptive']:.0f}/s; `paper` {of['paper']:.0f})" in text(
        "bench/paper/README.md"
    )


def test_no_policy_has_a_lower_floor_than_adaptive_in_fig7_and_fig8() -> None:
    facts7, facts8 = results("fig7")["facts"], results("fig8")["facts"]
    for other in ("paper", "fifo"):
        for sweep in ("ladder", "fine"):
            ours = facts7[f"floor in ms, {sweep}, adaptive"]
            assert all(
                ours[case] <= floor for case, floor in facts7[f"floor in ms, {sweep}, {other}"].items()
            )
        ours = facts8["floor in ms, adaptive"]
        assert all(ours[case] <= floor for case, floor in facts8[f"floor in ms, {other}"].items())


def test_what_batch_clients_cost_sensitive_ones_in_fig8() -> None:
    (ours,), (paper,) = (rows("fig8", policy=policy, batch="12x16") for policy in ("adaptive", "paper"))
    place = next(index for index, slo in enumerate(ours["slo_ms"]) if slo > 20)
    assert (
        f"busy for {ours['device_busy_%']:.1f} % of the time with batches of 17 ms, so a sensitive request finds a free one "
        f"later: at {ours['slo_ms'][place]:.0f} ms {100 * ours['satisfied'][place]:.0f} % are in time "
        f"(`paper`: {100 * paper['satisfied'][place]:.0f})"
    ) in text("bench/paper/README.md")


def test_edf_says_what_of_its_promise_was_not_kept() -> None:
    missed = [row["missed_%"] for row in rows("overload", policy="edf") if row["load"] > 1]
    told = f"at loads beyond capacity {min(missed):.2f} to {max(missed):.2f} % of the requests were admitted and missed"
    assert told in text("docs/client.md")
    assert all(row["missed_%"] == 0 for row in rows("overload", policy="edf") if row["load"] < 1)


def test_how_soon_adaptive_refuses_where_batches_save_little() -> None:
    late = [row["refused_p99_ms"] for row in rows("overload", policy="adaptive") if row["refused_%"]]
    assert f"99 % within {min(late):.1f} to {max(late):.1f} ms in [this run]" in text("docs/policies.md")


def test_how_soon_a_device_is_idle_without_clients() -> None:
    facts = results("overload")["facts"]
    idle = max(value for name, value in facts.items() if "idle after a client was killed" in name)
    assert f"{idle:.0f} ms after a client is killed the device is idle" in text("docs/measured.md")


def test_goodput_beside_the_best_other_policy_in_the_grid() -> None:
    resident = rows("grid", memory="")
    ratios = [row["ratio"][row["best_other"]][0] for row in resident]
    to_edf = [row["ratio"]["edf"][0] for row in resident]
    ahead = [ratio for ratio in ratios if ratio > 1]
    assert (
        f"in {len(ahead)} of {len(ratios)} cells, by up to {100 * max(ratios) - 100:.0f} %, "
        f"{100 * geometric_mean(ratios) - 100:.0f} % in the geometric mean, and {100 - 100 * min(ratios):.1f} % below it in the last"
    ) in text("docs/policies.md")
    assert f"it is {geometric_mean(to_edf):.2f} times `edf`'s" in text("docs/policies.md")
    assert 12 <= max(to_edf) < 13
    assert "up to twelve times the goodput of `edf`" in text("docs/policies.md")
    closed = f"{100 * tables.gap_closed(tables.published(resident)):.0f} % of the gap"
    assert f"{closed} between the best other and the upper bound is closed" in text("docs/policies.md")
    assert f"closes {closed} between the best other policy and the bound" in text("bench/grid/README.md")
    pressed = [row["ratio"][row["best_other"]][0] for row in rows("grid", memory="adaptive")]
    counts = (len(pressed), sum(r > 1.01 for r in pressed), sum(0.99 < r < 1.01 for r in pressed))
    assert counts == (6, 1, 4)
    assert "of six cells it is ahead in one, level in four" in text("docs/policies.md")
    assert f"{100 - 100 * min(pressed):.0f} % behind `fifo` in the last" in text("docs/policies.md")


def span(found: Rows) -> str:
    low, high = (
        f"{value:.2f}"
        for value in (min(r["of_capacity"] for r in found), max(r["of_capacity"] for r in found))
    )
    return low if low == high else f"{low} to {high}"


@pytest.mark.parametrize("models", [1, 30])
def test_what_servers_keep_beyond_capacity(models: int) -> None:
    beyond = [row for row in rows("peers", models=models) if row["load"] > 1]
    ours = [row for row in beyond if row["title"] == "Clockwork"]
    told = text("docs/choosing.md")
    if models == 30:
        assert f"30 models in room for 10: {span(ours)})" in told
        return
    assert f"one model: {span(ours)} of it" in told
    bounded = [row for row in beyond if row["title"] == "Triton, queue policy"]
    below = [row for row in rows("peers", models=1, load=0.6) if row["title"] == "Triton, queue policy"]
    ours_below = [row for row in rows("peers", models=1, load=0.6) if row["title"] == "Clockwork"]
    assert f"beyond capacity with {span(bounded)} of it (Clockwork: {span(ours)})" in told
    assert f"at 0.6, with {span(below)} ({span(ours_below)})" in told
    for title in ("Triton", "MLServer", "LitServe", "BentoML", "Ray Serve", "Ray Serve, HAProxy"):
        unbounded = [row["of_capacity"] for row in beyond if row["title"] == title]
        assert unbounded, title
        assert max(unbounded) < 0.1, "a queue without a bound falls below a tenth of capacity"


def test_which_disturbances_missed_their_goals() -> None:
    over = {row["meanwhile"]: row["p99_ratio"] - row["goal"] for row in rows("disturbance") if row["goal"]}
    assert [name for name, by in over.items() if by > 0] == ["loading", "registering"]
    assert over["loading"] < 0.015
    assert "Registering missed its goal, loading by a hundredth" in text("docs/measured.md")


def test_what_shared_memory_saves() -> None:
    def part(tensor: str, model: str) -> float:
        sent, shared = (
            rows("shared-memory", tensor=tensor, model=model, way=way)[0] for way in ("sent", "shared")
        )
        return float(shared["p50_ms"] / sent["p50_ms"])

    told = text("docs/shared-memory.md")
    assert "10 MB take two fifths of the time, and four fifths where they are given back" in told
    assert (part("10 MB", "max"), part("10 MB", "same")) == pytest.approx((0.4, 0.8), abs=0.03)
    assert "600 KB take two thirds; given back, they take half as long again as sent ones" in told
    assert (part("600 KB", "max"), part("600 KB", "same")) == pytest.approx((0.67, 1.5), abs=0.1)
