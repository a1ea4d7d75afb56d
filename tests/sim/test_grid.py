"""The policy benchmark in a small form: it finds goodputs, resumes after an interruption, and obeys the
bounds."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench import published
from bench.grid import __main__ as program
from bench.grid import bounds, cells, extras, markdown, measure, policies, run, tables

TINY = dataclasses.replace(run.QUICK, requests=2000, screen_requests=1000, tolerance=1.05)
TWO = [
    cells.specified("many", "devices=2,models=6,slo=4x,gain=5,zipf=0.9"),
    cells.specified("pressed", "devices=2,models=20,slo=10x,gain=5,zipf=0.9,fits=0.5"),
]
EDF = policies.Setting("edf")


def without_times(value: Any) -> Any:
    """Return a book without the parts that differ from run to run."""
    if isinstance(value, dict):
        return {
            key: without_times(one)
            for key, one in value.items()
            if key not in ("cpu_s", "took_s", "conditions")
        }
    if isinstance(value, list):
        return [without_times(one) for one in value]
    return value


def test_two_cells_quickly_and_again_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.run(TINY, TWO, ("edf",), tmp_path / "whole.json", processes=1)
    left = 4

    def dies(task: run.Task) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return perform(task)

    perform = run.perform
    monkeypatch.setattr(run, "perform", dies)
    with pytest.raises(KeyboardInterrupt):
        run.run(TINY, TWO, ("edf",), tmp_path / "parts.json", processes=1)
    monkeypatch.setattr(run, "perform", perform)
    parts = json.loads((tmp_path / "parts.json").read_text())
    assert len(parts["cells"]) < len(TWO) or without_times(parts) != without_times(whole)
    assert parts["took_s"] > 0
    parts["took_s"] += 1000.0
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    continued = run.run(TINY, TWO, ("edf",), tmp_path / "parts.json", processes=1)
    assert without_times(continued) == without_times(whole)
    assert continued["took_s"] > parts["took_s"], "what was spent before the interruption counts"
    for name, found in whole["cells"].items():
        for seed, entry in found["settings"][EDF.key]["seeds"].items():
            assert 0 < entry["goodput"] <= found["bounds"][seed]["clairvoyant"], name
            assert all(
                point["bad"] <= measure.BAD_MAX
                for point in entry["points"]
                if point["rate"] <= entry["goodput"]
            )
            assert set(entry["overload"]) == {"1.2", "1.5"}
    with pytest.raises(ValueError, match="another --out"):
        run.run(run.QUICK, TWO, ("edf",), tmp_path / "parts.json", processes=1)
    run.forget(parts, ("edf",))
    assert not any(found["settings"] for found in parts["cells"].values())
    console = Console(record=True, width=200)
    tables.show(whole, console)
    shown = console.export_text()
    assert all(cell.name in shown for cell in TWO)


@pytest.mark.parametrize(
    "name", ["d1-m6-tight-high", "d8-m6-tight-low", "d8-m20-mixed-high", "d8-m200-pressed-low-cv4"]
)
def test_no_run_serves_more_than_the_bound_allows(name: str) -> None:
    cell = cells.CELLS[name]
    requests, begin_s = 3000, 0.5
    rough = extras.rough_bound(cell, 3)
    drawn = cell.draw(3, run.arrivals_for(cell, requests, begin_s, 1.5 * rough))
    for part in (0.5, 1.3):
        end_s = begin_s + cell.window_s(part * rough, requests)
        offered = drawn.at(part * rough, end_s)
        report = measure.run(cell, EDF, offered, seed=3, warmup_s=begin_s, until_s=end_s)
        for clairvoyant in (False, True):
            relaxed = bounds.Relaxation(
                cell,
                offered,
                begin_s,
                end_s,
                clairvoyant=clairvoyant,
                any_order=not bounds.in_order(cell),
            )
            assert relaxed.count == int(report.models.offered.sum())
            most = bounds.minimum(relaxed.value, relaxed.prices_max, -1.0, 1e-3 * relaxed.count)
            assert int(report.models.good.sum()) <= most + 1e-6


def test_a_hot_model_sends_more_and_the_others_the_same() -> None:
    cell = cells.specified("hot", "devices=2,models=3,slo=5x,gain=5")
    rows = extras.isolation(cell, ("edf",), 2000, 5)
    assert rows[0]["others bad_%, quiet"] < 1.0
    drawn = cell.draw(5, 2000)
    quiet = drawn.at(100.0, 10.0)
    loud = extras.with_hot_model(quiet, 2, 10)
    assert (loud.model == 2).sum() == 10 * (quiet.model == 2).sum()
    assert (loud.model != 2).sum() == (quiet.model != 2).sum()


def test_the_table_tells_lost_from_won() -> None:
    """Clockwork's policy is 10 % above the best rival in one cell and 5 % below in the next, on every
    seed."""

    def entry(goodput: float) -> dict[str, Any]:
        point = {"rate": goodput, "drift": 0.0, "good_rate": 0.9 * goodput}
        overload = {"1.2": point | {"refusal_p99_ms": goodput / 10}, "1.5": point}
        return {"goodput": goodput, "points": [point], "overload": overload, "commit": "abc1234"}

    def setting(goodput: float) -> dict[str, Any]:
        return {"seeds": {str(seed): entry(goodput * (1 + 0.1 * seed)) for seed in (1, 2, 3)}}

    def cell(ours: float) -> dict[str, Any]:
        bound = {"fluid": 300.0, "clairvoyant": 200.0}
        return {
            "rough_bound": 200.0,
            "bounds": {str(seed): bound for seed in (1, 2, 3)},
            "settings": {
                "adaptive||": setting(ours),
                "edf||": setting(80.0),
                "fifo||queue_delay_ms=0,batch_cap=4": setting(100.0),
                "fifo||queue_delay_ms=1,batch_cap=4": setting(60.0),
            },
        }

    book = {"plan": {}, "cells": {"won": cell(110.0), "lost": cell(95.0)}}
    lost, won = tables.rows(book)
    assert (won.best_other, won.lost, lost.lost) == ("fifo", False, True)
    assert won.ratio["fifo"] == pytest.approx((1.1, 1.1, 1.1))
    assert won.ratio["edf"][0] == pytest.approx(110 / 80)
    assert won.bound == 200.0
    assert won.overload["adaptive"] == pytest.approx({"1.2": 0.9, "1.5": 0.9})
    assert won.refusal_ms["adaptive"]["1.2"] == pytest.approx(13.2), "the mean of 12.1, 13.2 and 14.3"
    assert math.isnan(won.refusal_ms["adaptive"]["1.5"]), "a book from before refusals were timed"
    assert tables.gap_closed([won]) == pytest.approx(math.log(1.1) / math.log(200 / 120))
    kept = json.loads(json.dumps(markdown.kept(book), allow_nan=False))
    assert kept["commit"] == "abc1234"
    lines = markdown.table(kept["rows"], resident=True)
    assert lines[3] == "| won | 200 | 132 | 0.66 | fifo | 1.100 [1.100, 1.100] | - | 1.38 | 1.10 | 1.10 |"
    closed = 100 * math.log(1.1 * 0.95) / (2 * math.log(200 / 120))
    assert lines[-1] == (
        "Geometric means: 1.02 of the best other, 1.28 of `edf`;"
        f" {closed:.0f} % of the gap between the best other and the bound is closed. Lost: lost."
    )
    again = tables.published(kept["rows"])
    assert [(row.ratio, row.bound, row.lost) for row in again] == [
        (row.ratio, row.bound, row.lost) for row in (lost, won)
    ]
    assert len(markdown.table(kept["rows"], resident=False)) == 2, "all models are resident in both"
    assert markdown.extent(dataclasses.asdict(TINY)).startswith(
        f"{TINY.seeds} seeds from {TINY.first_seed}, at least {TINY.requests:,} requests"
    )


def test_dispatch_under_the_papers_memory_rules_is_compared_among_those_that_have_them() -> None:
    """edf is compared by its own rules: with the best of all, adaptive included, and with no rival beside the
    paper's."""

    def setting(goodput: float) -> dict[str, Any]:
        return {"seeds": {"1": {"goodput": goodput, "points": [], "overload": {}, "commit": "abc1234"}}}

    settings = {"edf||": setting(90.0)} | {
        f"{policy}|{memory}|": setting(goodput)
        for memory in ("adaptive", "paper")
        for policy, goodput in (("adaptive", 100.0), ("fifo", 80.0))
    }
    found = {"rough_bound": 200.0, "bounds": {}, "settings": settings}
    book = {"cells": {"pressed": found}}
    beside_ours, beside_the_papers = tables.rows(book)
    assert (beside_ours.memory, beside_ours.best_other) == ("adaptive", "edf")
    assert (beside_the_papers.memory, beside_the_papers.best_other) == ("paper", "fifo")
    rows = markdown.kept(book | {"plan": {}})["rows"]  # a single seed gives an interval without an end
    assert [
        line for line in markdown.table(rows, resident=False) if "Geometric" in line or "geometric" in line
    ] == [
        "With the memory rules of `adaptive`: geometric means: 1.11 of the best other, 1.11 of `edf`. Lost: pressed.",
        "With the memory rules of `paper`: geometric means: 1.25 of the best other, 1.11 of `edf`. Lost: pressed.",
    ]


def test_bounds_are_computed_anew_for_published_goodputs(tmp_path: Path) -> None:
    whole = run.run(TINY, TWO[:1], ("edf",), tmp_path / "whole.json", processes=1)
    kept = json.loads(json.dumps(markdown.kept(whole) | {"took_s": 1}, allow_nan=False))
    bounds_only = run.run(TINY, TWO[:1], ("edf",), tmp_path / "bounds.json", processes=1, with_goodputs=False)
    (name,) = bounds_only["cells"]
    assert not bounds_only["cells"][name]["settings"]
    assert bounds_only["cells"][name]["bounds"] == whole["cells"][name]["bounds"]
    for found in bounds_only["cells"][name]["bounds"].values():
        found["whole"] = 10.0
    anew = markdown.with_bounds(kept, bounds_only, "python -m bench.grid run --bounds-only")
    assert [row["bound"] for row in anew["rows"]] == [10.0]
    assert [row | {"bound": 0} for row in anew["rows"]] == [row | {"bound": 0} for row in kept["rows"]]
    assert markdown.bounds_line(kept) == []
    assert "`python -m bench.grid run --bounds-only`" in markdown.bounds_line(anew)[1]
    seeds = list(bounds_only["cells"][name]["bounds"])
    bounds_only["cells"][name]["bounds"] = {seed: {"moments": 11.0} for seed in seeds}
    assert markdown.with_bounds(anew, bounds_only, "", sharpen=True)["rows"] == anew["rows"]
    bounds_only["cells"][name]["bounds"] = {seed: {"moments": 9.0} for seed in seeds}
    sharpened = markdown.with_bounds(anew, bounds_only, "run --moments-only", sharpen=True)
    assert [row["bound"] for row in sharpened["rows"]] == [9.0]
    assert "`run --moments-only`" in markdown.bounds_line(sharpened)[3]
    untouched = markdown.with_bounds(sharpened, bounds_only | {"cells": {}}, "", sharpen=True)
    assert untouched["rows"] == sharpened["rows"]
    assert len(seeds) > 1
    unfinished = json.loads(json.dumps(bounds_only))
    unfinished["cells"][name]["bounds"] = {seeds[0]: {"moments": 1.0}}
    assert markdown.with_bounds(sharpened, unfinished, "", sharpen=True)["rows"] == sharpened["rows"]
    with pytest.raises(ValueError, match="no bounds"):
        markdown.with_bounds(sharpened, unfinished, "")
    assert len(markdown.bounds_line(markdown.with_bounds(sharpened, bounds_only, ""))) == 2
    with pytest.raises(ValueError, match="seeds=7"):
        markdown.with_bounds(kept, bounds_only | {"plan": bounds_only["plan"] | {"seeds": 7}}, "")
    with pytest.raises(ValueError, match="no bounds"):
        markdown.with_bounds(kept, bounds_only | {"cells": {}}, "")


def test_the_bound_of_moments_is_computed_alone(tmp_path: Path) -> None:
    path = tmp_path / "moments.json"
    book = run.run(TINY, TWO[:1], ("edf",), path, processes=1, with_goodputs=False, moments_only=True)
    (found,) = book["cells"].values()
    assert not found["settings"]
    for seed, bound in found["bounds"].items():
        known = run.perform(run.Task("bound", TWO[0], TINY, seed=int(seed), warmup_s=found["warmup_s"]))
        assert list(bound) == ["moments"]
        assert bound["moments"] == pytest.approx(known["moments"], rel=0.02)
        assert bound["moments"] < known["clairvoyant"]


def test_the_published_gap_is_printed_and_no_goodput_exceeds_its_bound() -> None:
    found = tables.published(published.load("grid")["rows"])
    assert all(max(row.goodput.values()) <= row.bound for row in found)
    closed = tables.gap_closed([row for row in found if row.memory == ""])
    shown = CliRunner().invoke(program.main, ["gap"], catch_exceptions=False).output
    assert f"all models resident: part of the gap to the bound closed: {closed:.2f}" in shown
    assert all(row.cell in shown for row in found)


def test_cells_are_left_out() -> None:
    every = list(cells.CELLS)
    assert [one.name for one in program.chosen_cells((), ())] == every
    assert [one.name for one in program.chosen_cells((), tuple(every[3:]))] == every[:3]
    assert [one.name for one in program.chosen_cells(tuple(every[:2]), (every[0],))] == every[1:2]


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    book = run.run(
        dataclasses.replace(TINY, seeds=1),
        TWO[:1],
        ("edf",),
        tmp_path / "one.json",
        processes=1,
        with_bounds=False,
    )
    kept = json.loads(json.dumps(markdown.kept(book), allow_nan=False))
    tables.plot(tables.published(kept["rows"]), markdown.title(kept), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_policy_in_python_is_measured_beside_the_others(tmp_path: Path) -> None:
    """A policy in Python runs in processes of its own, and has the rates of the native policy with the same
    options."""
    name = "examples.fifo_policy:Fifo"
    plan = dataclasses.replace(run.QUICK, requests=1000, screen_requests=500, seeds=1, tolerance=1.1)
    cell = cells.specified("one", "devices=1,models=2,slo=4x,gain=5,zipf=0.9")
    book = run.run(plan, [cell], (name,), tmp_path / "book.json", processes=2, with_bounds=False)
    [row] = tables.rows(book)
    assert row.goodput[name] > 0
    native = dataclasses.replace(
        run.Task("measure", cell, plan, policies.Setting("fifo"), seed=1),
        warmup_s=book["cells"]["one"]["warmup_s"],
        bound=book["cells"]["one"]["rough_bound"],
    )
    assert row.goodput[name] == run.perform(native)["goodput"]
    shown = io.StringIO()
    tables.show(book, Console(file=shown, width=300))
    assert name in shown.getvalue()


@pytest.mark.parametrize(
    ("spec", "rate", "most"),
    [
        ("devices=16,models=400,slo=2x,gain=2,exec=20ms,arrivals=poisson,zipf=0.9,fits=0.2", 640, 0.01),
        ("devices=2,models=120,slo=8x,gain=20,exec=10ms,zipf=0,fits=0.2,speeds=1/0.5", 130, 0.012),
    ],
)
def test_adaptive_loads_models_where_their_requests_will_be_in_time(
    spec: str, rate: float, most: float
) -> None:
    """Requests were late behind others on the only device that had their model, while others were about to be
    free; and models were loaded onto the slower of two devices, whose queue was too long for them already. Of
    the requests 3 % and 1.5 % were bad."""
    cell = cells.parse(spec)
    setting = policies.Setting("adaptive", memory="adaptive")
    bad = [
        measure.point(
            cell, setting, cell.draw(seed, 20_000), rate, seed=seed, warmup_s=4.0, requests=5000
        ).bad
        for seed in (1, 2, 3)
    ]
    assert sum(bad) / len(bad) < most
