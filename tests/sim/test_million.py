"""The benchmark of requests outside of their SLO in a small form: it resumes, lists and explains them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.million import __main__ as program
from bench.million import cases, counting, live, recordings, run, shards, tables
from bench.million.machine import Span, Spans
from bench.million.shards import Shard
from bench.paper.common import MS, SECOND
from clockwork.errors import ConfigError

SMALL = run.Plan(requests=1_500, shard=1_000, load=0.5, seed=3, capacity_requests=500, places=1)
EXPLAINED = 5
CONSOLE = Console(file=io.StringIO())


def measured(out: Path, plan: run.Plan = SMALL) -> list[dict[str, Any]]:
    rows, facts = run.measure(plan, {"poisson": 0}, ("adaptive",), out, 1, CONSOLE)
    assert facts["load"] == plan.load
    return rows


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "capacity", lambda *_: 3000.0)
    done: list[int] = []
    perform = shards.perform

    def counted(shard: Shard) -> dict[str, Any]:
        if shard.number == 1 and len(done) == 1:
            done.append(-1)
            raise KeyboardInterrupt
        done.append(shard.number)
        return perform(shard)

    monkeypatch.setattr(shards, "perform", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path)
    [row] = measured(tmp_path)
    assert done == [0, -1, 1]
    assert row["requests"] >= SMALL.requests
    assert row["outside"] == 0
    assert row["rate/s"] == 1500.0
    assert measured(tmp_path)[0]["p99_ms"] == row["p99_ms"]
    assert done == [0, -1, 1]
    assert any("`adaptive`" in line for line in tables.simulated({"rows": [row], "facts": {"workloads": {}}}))
    with pytest.raises(ConfigError, match="give another --out"):
        measured(tmp_path, dataclasses.replace(SMALL, seed=4))


@pytest.mark.slow
def test_each_request_outside_of_its_slo_is_listed_and_explained() -> None:
    found = shards.perform(Shard("bursty", "edf", 0, 12_000.0, 2_000, 1, EXPLAINED))
    counts = found["counts"]
    rows = found["outside"]
    assert (
        len(rows) == sum(counts[name] for name in ("refused", "missed", "late", "failed", "unanswered")) > 20
    )
    assert counts["offered"] == counts["good"] + len(rows)
    for row in rows[:EXPLAINED]:
        assert row["model"] in row["said"][0]
    assert "said" not in rows[EXPLAINED]
    line = next(iter(tables._listed([{"shard": 0, **rows[0]}], 1)))
    assert rows[0]["model"] in line


def test_every_minute_of_the_trace_has_the_same_rate() -> None:
    [*_] = chunks = list(cases.offered("trace", 100.0, 1, 1438)(180 * SECOND))
    t_ns = np.concatenate([chunk.t_ns for chunk in chunks])
    each = np.bincount(t_ns // (60 * SECOND), minlength=3)
    assert np.all(abs(each - 6_000) < 5 * 6_000**0.5)


@pytest.mark.parametrize("workload", cases.WORKLOADS)
def test_capacity_is_a_rate_that_is_carried(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cases,
        "run",
        lambda policy, arrivals, ns, *_: SimpleNamespace(bad_fraction=0.0 if ns > SECOND / 4 else 1.0),
    )
    found = cases.capacity(workload, "edf", 1, 0, 1000)
    assert 4000 / cases.CAPACITY_STEP <= found <= 4000


def test_bounds_of_rare_events() -> None:
    assert counting.upper(0) == pytest.approx(2.9957, abs=1e-3)
    assert counting.upper(3) == pytest.approx(7.7537, abs=1e-3)
    assert counting.upper(200) == pytest.approx(225.0, rel=0.01)


def test_percentiles_of_histograms_in_parts() -> None:
    buckets = counting.merged([[(10, 90), (20, 8)], [(20, 1), (500, 1)]])
    assert buckets == [(10, 90), (20, 9), (500, 1)]
    assert counting.percentile(buckets, 50) == 10
    assert counting.percentile(buckets, 99) == 20
    assert counting.percentile(buckets, 99.9) == 500
    assert counting.percentile([], 50) is None


def test_a_published_file_has_the_first_requests_and_fewer_explanations() -> None:
    kept = run.brief([{"request": number, "said": ["it was late"]} for number in range(run.LISTED_MAX + 1)])
    assert len(kept) == run.LISTED_MAX
    assert sum("said" in row for row in kept) == run.EXPLAINED_MAX


def test_a_workload_may_have_a_number_of_requests_of_its_own() -> None:
    assert program.workloads_of("trace,bursty:1e7") == {"trace": 0, "bursty": 10_000_000}
    with pytest.raises(ConfigError, match="no workload 'even'"):
        program.workloads_of("even:3")


def test_stalls_count_where_they_overlap() -> None:
    spans = Spans([Span(30, 40, 10, "core 0"), Span(10, 20, 10, "core 0"), Span(12, 18, 4, "core 1")])
    assert spans.overlap_ns(0, 9) == 0
    assert spans.overlap_ns(15, 35) == 10
    assert spans.overlap_ns(12, 18) == 6
    assert spans.overlap_ns(39, 100) == 1
    assert Spans([]).overlap_ns(0, 9) == 0


@pytest.mark.parametrize(
    ("stood_still_ms", "waited_ms", "lag_ms", "verdict"),
    [(4, 0, 0, live.SCHEDULER), (5, 0, 0, live.MACHINE), (2, 3, 0, live.CONTENTION), (0, 4, 5, live.CLIENT)],
)
def test_a_late_answer_is_blamed_on_what_took_as_long_as_it_lacked(
    stood_still_ms: int, waited_ms: int, lag_ms: int, verdict: str
) -> None:
    due_ns = 10 * SECOND
    client: Any = SimpleNamespace(
        due_ns=[due_ns], sent_ns=[due_ns + lag_ms * MS], ended_ns=[due_ns + cases.SLO_NS + 5 * MS], model=[0]
    )

    def spans(ms: int) -> Spans:
        return Spans([Span(due_ns, due_ns + ms * MS, ms * MS, "there")] if ms else [])

    watch: Any = SimpleNamespace(machine=spans(stood_still_ms), waits=spans(waited_ms), shared=spans(0))
    row = live.fate(0, client, ["m"], 0, "late", {}, watch)
    assert row["lacked_ms"] == 5
    assert row["verdict"] == verdict


def test_a_refused_request_lacks_what_its_slo_was_too_short() -> None:
    assert live.lacking_ns("refused", 0, cases.SLO_NS + 3 * MS, 1 * MS) == 4 * MS
    assert live.lacking_ns("deadline_missed", 0, 0, 0) == live.UNKNOWN_NS
    assert live.lacking_ns("late", cases.SLO_NS + 7, 0, 0) == 7


def test_a_recording_without_wanted_requests_is_not_read(tmp_path: Path) -> None:
    assert recordings.explained(tmp_path / "nothing", [], lambda number: number) == {}
