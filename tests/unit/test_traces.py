"""Traces of functions: the public format, its replay, and a synthetic one with the real one's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.errors import ConfigError
from clockwork.system.clock import SECOND
from clockwork.workloads import MINUTE_NS, Trace, load_trace, replay, synthetic_trace

PUBLIC = "HashOwner,HashApp,HashFunction,Trigger,1,2,3"
SAMPLE = "HashFunction,HashApp,HashOwner,minute_1,minute_2,minute_3"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def trace_of(*rows: Sequence[int]) -> Trace:
    return Trace(np.array(rows, np.int32), tuple(f"f{index}" for index in range(len(rows))))


def counts_of(workload: replay, models: int, minutes: int) -> np.ndarray:
    """Requests of each model in each minute."""
    found = np.zeros((models, minutes), np.int64)
    for chunk in workload:
        np.add.at(found, (chunk.model, chunk.t_ns // MINUTE_NS), 1)
    return found


def test_both_orders_of_columns_are_read(tmp_path: Path) -> None:
    public = load_trace(write(tmp_path / "a.csv", PUBLIC, "o,a,f,http,1,2,3", "o,a,g,timer,0,0,9"))
    sample = load_trace(write(tmp_path / "b.csv", SAMPLE, "f,a,o,1,2,3", "g,a,o,0,0,9"))
    assert public.counts.tolist() == sample.counts.tolist() == [[1, 2, 3], [0, 0, 9]]
    assert public.names == ("o/a/f/http", "o/a/g/timer")
    assert sample.names == ("o/a/f", "o/a/g")
    assert public.totals().tolist() == [6, 9]
    assert public.minutes().tolist() == [1, 2, 12]


def test_several_days_are_put_together_by_function(tmp_path: Path) -> None:
    first = write(tmp_path / "1.csv", SAMPLE, "f,a,o,1,2,3", "g,a,o,4,5,6", "g,a,o,7,7,7")
    second = write(
        tmp_path / "2.csv", PUBLIC.replace("Trigger,", ""), "o,a,h,8,8,8", "o,a,f,9,9,9", "o,a,g,1,1,1"
    )
    trace = load_trace(first, second)
    assert trace.names == ("o/a/f", "o/a/g", "o/a/g#2", "o/a/h")
    assert trace.counts.tolist() == [
        [1, 2, 3, 9, 9, 9], [4, 5, 6, 1, 1, 1], [7, 7, 7, 0, 0, 0], [0, 0, 0, 8, 8, 8],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([""], "no column HashFunction"),
        ([PUBLIC], "no function"),
        (["HashOwner,HashApp,1,2", "o,a,1,2"], "no column HashFunction"),
        (["HashFunction,Memory,1", "f,2,3"], "'Memory' is none of"),
        (["HashFunction,HashFunction,1", "f,2,3"], "each once"),
        (["HashFunction,2,3", "f,2,3"], "'2' where minute 1 should be"),
        (["HashFunction,1,2,4", "f,2,3,4"], "'4' where minute 3 should be"),
        (["HashFunction,1,2,total", "f,2,3,4"], "'total' where minute 3 should be"),
        (["HashFunction", "f"], "0 minutes"),
        ([PUBLIC, "o,a,f,http,1,2"], "line 2 has 6 columns where the header has 7"),
        ([PUBLIC, "o,a,f,http,1,2,3", "o,a,f,http,1,2,3,4"], "line 3 has 8 columns"),
        ([PUBLIC, "o,a,f,http,1,x,3"], "line 2, minute 2: 'x' is not a count"),
        ([PUBLIC, "o,a,f,http,1,,3"], "minute 2: '' is not a count"),
        ([PUBLIC, "o,a,f,http,1,2.5,3"], "'2.5' is not a count"),
        ([PUBLIC, "o,a,f,http,1,2,-3"], "minute 3: '-3' is not a count"),
        ([PUBLIC, "o,a,f,http,99999999999,2,3"], "minute 1: '99999999999' is not a count"),
        ([PUBLIC, "o,a,f,http,1,2," + "9" * 40], "minute 3"),
        ([PUBLIC, "o,a,f,http,1,2,³"], "minute 3: '³' is not a count"),
        ([PUBLIC, "o,a,f,http,1_0,2,3"], "minute 1: '1_0' is not a count"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(tmp_path: Path, lines: list[str], said: str) -> None:
    path = write(tmp_path / "trace.csv", *lines)
    with pytest.raises(ConfigError) as raised:
        load_trace(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name, said in (
        ("empty.csv", "is empty"),
        ("binary.csv", "not a CSV"),
        ("absent.csv", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_trace(tmp_path / name)
    with pytest.raises(ConfigError, match="at least one file"):
        load_trace()


def test_replay_gives_the_hottest_functions_to_the_first_models() -> None:
    trace = trace_of([1, 1], [100, 100], [10, 10], [1000, 1000], [0, 0], [5, 5])
    found = counts_of(replay(trace, 3, 2 * MINUTE_NS, scale=10.0), 3, 2).sum(axis=1)
    assert found == pytest.approx(np.array([22_000, 300, 20]), rel=0.3)
    assert found[0] == pytest.approx(22_000, rel=0.03)
    few = replay(trace, 12, 2 * MINUTE_NS, scale=10.0).collect().model
    assert set(few.tolist()) == {0, 2, 4, 6, 8}  # more models than functions: some get no requests


def test_shuffled_replay_is_another_order_by_seed_of_the_same_load() -> None:
    trace = synthetic_trace(500, seed=1)
    original = replay(trace, 100, 5 * MINUTE_NS, rate=500.0)
    shuffled = [
        replay(trace, 100, 5 * MINUTE_NS, rate=500.0, mapping="shuffled", seed=seed) for seed in (0, 0, 1)
    ]
    loads = [counts_of(one, 100, 5).sum(axis=1) for one in (original, *shuffled)]
    for load in loads:
        assert load.sum() == pytest.approx(150_000, rel=0.02)
    assert loads[0][:10].sum() > 0.6 * loads[0].sum()
    assert loads[1][:10].sum() < 0.6 * loads[1].sum()
    assert np.array_equal(loads[1], loads[2])
    assert not np.array_equal(loads[1], loads[3])


def test_replay_follows_the_minutes_from_where_it_begins_and_around_the_end() -> None:
    trace = trace_of([100, 0, 300])
    minutes = counts_of(replay(trace, 1, 5 * MINUTE_NS, scale=10.0, begin_minute=1), 1, 5)[0]
    assert minutes == pytest.approx(np.array([0, 3000, 1000, 0, 3000]), rel=0.1)
    assert minutes[0] == minutes[3] == 0
    quick = replay(trace, 1, 3 * SECOND, rate=4000.0, minute_ns=SECOND).collect()
    assert np.bincount(quick.t_ns // SECOND, minlength=3) == pytest.approx(np.array([3000, 0, 9000]), rel=0.1)
    half = replay(trace, 1, MINUTE_NS // 2, rate=100.0)
    assert half.scale == pytest.approx(60.0)
    assert len(half.collect()) == pytest.approx(3000, rel=0.1)


def test_a_gap_is_carried_over_the_edges_of_minutes() -> None:
    """A call a minute at random is Poisson: exponential gaps, and not one call in every minute."""
    times = replay(trace_of([1]), 1, 3000 * MINUTE_NS, scale=1.0).collect().t_ns
    gaps = np.diff(times) / MINUTE_NS
    assert gaps.mean() == pytest.approx(1.0, rel=0.06)
    assert gaps.std() == pytest.approx(1.0, rel=0.1)
    per_minute = np.bincount(times // MINUTE_NS, minlength=3000)
    assert np.mean(per_minute == 0) == pytest.approx(np.exp(-1), abs=0.04)


def test_each_function_has_its_own_luck() -> None:
    """The same rows beside other, colder rows: the same requests."""
    rows = [[500, 600], [50, 0]]
    alone = replay(trace_of(*rows), 2, 2 * MINUTE_NS, scale=3.0).collect()
    among = replay(trace_of(*rows, [9, 9], [8, 0]), 4, 2 * MINUTE_NS, scale=3.0).collect()
    for model in (0, 1):
        assert np.array_equal(alone.t_ns[alone.model == model], among.t_ns[among.model == model])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": 0}, "0 models"),
        ({"scale": 1.0, "rate": 1.0}, "one above 0"),
        ({"scale": 0.0}, "one above 0"),
        ({"scale": -1.0}, "one above 0"),
        ({"begin_minute": 2}, "begin_minute 2 is not between 0 and 1"),
        ({"minute_ns": 0}, "minute_ns 0"),
        ({"mapping": "sorted"}, "'sorted'"),
        ({"duration_ns": MINUTE_NS}, "no call"),
        ({"duration_ns": 0}, "duration 0 ns"),
    ],
)
def test_replays_that_make_no_sense(change: dict[str, Any], said: str) -> None:
    settings = {"models": 1, "duration_ns": 2 * MINUTE_NS, "scale": 1.0, **change}
    with pytest.raises(ConfigError) as raised:
        replay(trace_of([0, 3]), **settings)
    assert said in str(raised.value)


# ----- the made-up trace ---------------------------------------------------------------------

# Published statistics of the real trace: see clockwork/sim/workloads/synthetic.py for the sources.
TOP_HUNDREDTH = 0.464
MEDIAN_CALLS = 83.5
CALLS_PER_FUNCTION = 11_639
MINUTES_CV = 0.524
MINUTE_OR_MORE = 0.275  # part of the functions that are called once a minute or more
MINUTE_OR_MORE_CALLS = 0.99  # part of the calls that these functions make
PERIODIC = 0.2
QUARTILES_OF_CV = (2.8, 7.7, 21.9)  # over the minutes of a function


def is_periodic(row: np.ndarray) -> bool:
    """Nine in ten of the times between minutes with calls are equal."""
    gaps = np.diff(np.flatnonzero(row))
    return len(gaps) >= 3 and np.unique(gaps, return_counts=True)[1].max() > 0.9 * len(gaps)


def test_the_busiest_part_is_found_within_what_is_replayed_and_over_the_end_of_the_trace() -> None:
    counts = np.array([[9, 1, 1, 5, 6, 1, 1, 8]], np.int32)
    trace = Trace(counts, ("f",))
    assert trace.busiest(1) == 0
    assert trace.busiest(2) == 3
    assert trace.busiest(2, begin=5, minutes=5) == 7, "minutes 5 to 9 are 5, 6, 7, 0 and 1"
    assert trace.busiest(1, begin=4, minutes=3) == 4
    assert trace.busiest(20, begin=6, minutes=4) == 6, "a part that is longer than the whole is the whole"
    assert trace.scale(32.0) == pytest.approx(32 * 60 * 8 / 32)
    assert trace.scale(1.0, begin=7, minutes=2) == pytest.approx(60 * 2 / 17)


def test_of_a_minute_that_is_not_all_in_the_busiest_part_as_much_counts_as_is() -> None:
    trace = Trace(np.array([[0, 5, 5, 0, 8, 0]], np.int32), ("f",))
    assert trace.busiest(2) == 1
    assert trace.busiest(1.5) == 4, "8 and half of 0 against 5 and half of 5"
    assert trace.busiest(0.5) == 4
    with pytest.raises(ConfigError, match="longer than 0"):
        trace.busiest(0)


@pytest.mark.parametrize("functions", [1000, 4500])
@pytest.mark.slow
def test_the_made_up_trace_has_the_statistics_of_the_real_one(functions: int) -> None:
    traces = [synthetic_trace(functions, seed=seed) for seed in range(5 if functions == 1000 else 1)]
    for trace in traces:
        trace.check()
        assert trace.counts.shape == (functions, 1440)
        calls = trace.totals()
        assert calls.min() >= 1
        assert np.all(np.diff(calls) <= 0)
        assert calls[: functions // 100].sum() / calls.sum() == pytest.approx(TOP_HUNDREDTH, abs=0.02)
        assert np.median(calls) == pytest.approx(MEDIAN_CALLS, rel=0.03)
        assert calls.sum() / functions == pytest.approx(CALLS_PER_FUNCTION, rel=0.06)
        often = calls >= 1440
        assert often.mean() == pytest.approx(MINUTE_OR_MORE, abs=0.01)
        assert calls[often].sum() / calls.sum() == pytest.approx(MINUTE_OR_MORE_CALLS, abs=0.01)
        assert np.mean([is_periodic(row) for row in trace.counts]) == pytest.approx(PERIODIC, abs=0.05)
        counts = trace.counts.astype(np.float64)
        quartiles = np.percentile(counts.std(axis=1) / counts.mean(axis=1), (25, 50, 75))
        assert quartiles == pytest.approx(np.array(QUARTILES_OF_CV), rel=0.4)
        hours = trace.minutes().reshape(24, 60).sum(axis=1)
        assert hours.max() / hours.mean() < 3
        assert trace.minutes().min() > 0.4 * trace.minutes().mean()  # a base load that is always there
        of_hour = trace.minutes().reshape(24, 60).mean(axis=0)
        assert of_hour.argmax() == 0  # timers are due at the full hour
    spread = [trace.minutes().std() / trace.minutes().mean() for trace in traces]
    assert np.mean(spread) == pytest.approx(MINUTES_CV, abs=0.1)


def test_the_made_up_trace_is_the_same_again_and_differs_by_seed_and_day() -> None:
    first, again, other = (synthetic_trace(300, days=2, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.counts, again.counts)
    assert not np.array_equal(first.counts, other.counts)
    assert not np.array_equal(first.counts[:, :1440], first.counts[:, 1440:])
    assert np.array_equal(first.counts[:, :1440], synthetic_trace(300, seed=1).counts)
    for functions, days in ((0, 1), (1, 0), (1, 61)):
        with pytest.raises(ConfigError, match=rf"{functions} functions|{days} days"):
            synthetic_trace(functions, days)
