"""The table of `clockwork top`, from two readings of a controller's numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from clockwork.config import METRIC_BOUNDS_NS, SHARE_WHOLE
from clockwork.observe.overview import Rates, compare, is_same_run, percentile
from clockwork.observe.reading import PeriodicReader
from clockwork.observe.rows import (
    BAR,
    DEVICES,
    MODELS,
    about_device,
    about_model,
    bar,
    sorted_rows,
    summary,
)

SECOND = 1_000_000_000
EMPTY = [0] * (len(METRIC_BOUNDS_NS) + 1)


def model(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "version": 1, "state": "ready", "pending": 0, "inferences": 0, "executions": 0,
        "outcomes": {"success": 0, "refused": {}, "deadline_missed": 0, "cancelled": 0, "failed": 0, "invalid_input": 0},
        "times": {part: {"count": 0, "sum_ns": 0, "buckets": EMPTY} for part in ("total", "queue", "execute")},
        "resident": [], "pages": 2, "weights_bytes": 1 << 20, "share": SHARE_WHOLE,
    } | more  # fmt: skip


def device(index: int, **more: Any) -> dict[str, Any]:
    return {
        "index": index, "kind": "cpu", "lost": "", "pages": 10, "free_pages": 6, "page_bytes": 1 << 20, "resident": 1,
        "evicted_early": 0, "busy_ns": 0, "idle_with_work_ns": 0, "load_busy_ns": 0, "executions": 0, "loads": 0,
    } | more  # fmt: skip


def reading(seconds: float, *models: dict[str, Any], devices: Any = (), **more: Any) -> dict[str, Any]:
    return {
        "now_ns": round(seconds * SECOND), "started_ns": 0, "policy": "adaptive", "ready": True, "requests_open": 0,
        "clients": 1, "devices_wanted": 0.5, "lag": {"buckets": EMPTY}, "model_count": len(models),
        "troubles": {"device_lost": {"open": 0, "since_ns": 0, "noted": 0}},
        "workers": [{"name": "w", "state": "serving", "devices": list(devices)}], "models": list(models),
    } | more  # fmt: skip


def busy_pair() -> tuple[dict[str, Any], dict[str, Any]]:
    """Two readings, four seconds apart: eight requests of `a` in time, four refused, two missed, and a failed
    request of `b`."""
    before = reading(10, model("a"), model("b"), devices=[device(0), device(1)])
    after = copy.deepcopy(before)
    after["now_ns"] = 14 * SECOND
    a, b = after["models"]
    a["outcomes"] |= {"success": 8, "refused": {"deadline": 3, "memory": 1}, "deadline_missed": 2}
    a |= {"inferences": 8, "executions": 2, "pending": 5, "resident": [["w", 0]]}
    place = METRIC_BOUNDS_NS.index(5_000_000)
    # all durations between 2.5 and 5 ms
    a["times"]["total"]["buckets"] = [0] * place + [8] * (len(EMPTY) - place)
    b["outcomes"] |= {"failed": 1}
    first = after["workers"][0]["devices"][0]
    first |= {
        "busy_ns": 2 * SECOND,
        "idle_with_work_ns": SECOND,
        "load_busy_ns": SECOND // 2,
        "executions": 2,
        "loads": 1,
    }
    return before, after


def test_rates_are_counts_by_the_time_between_two_readings() -> None:
    overview = compare(*busy_pair())
    assert (overview.seconds, overview.rates) == (4.0, Rates(2.0, 1.0, 0.5, 0.25))
    assert overview.reasons == {"deadline": 0.75, "memory": 0.25}
    a, b = overview.models
    assert (a.model, a.rates.ended, a.batch, a.waiting, a.share) == ("a@1", 3.5, 4.0, 5, 1.0)
    assert (b.rates, b.batch, b.p50_ns) == (Rates(0, 0, 0, 0.25), 0.0, None)
    assert a.p50_ns == 3_750_000  # the middle of the bucket
    assert a.p99_ns == pytest.approx(4_975_000)
    busy, idle = overview.devices
    assert (busy.executing, busy.idle_with_work, busy.loading, busy.idle) == (0.5, 0.25, 0.125, 0.25)
    assert (busy.executions, busy.loads, idle.idle) == (0.5, 0.25, 1.0)


def test_a_newcomer_counts_from_zero_and_so_does_who_came_again() -> None:
    before, after = busy_pair()
    after["models"].append(model("c", inferences=4, executions=4))
    # counts of an `a` that was removed meanwhile
    before["models"][0] |= {"inferences": 1000, "executions": 1000}
    before["workers"][0]["devices"][0]["busy_ns"] = 100 * SECOND  # a counter of a worker that was restarted
    overview = compare(before, after)
    assert overview.models[2].batch == 1.0
    assert overview.models[0].rates.answered == 2.0
    assert overview.devices[0].executing == 0.5
    assert min(min(row.rates) for row in overview.models) >= 0


def test_a_device_cannot_be_busy_for_longer_than_the_time() -> None:
    """Results count executions when they end, so an execution counted in a second may have begun in the
    second before."""
    before, after = busy_pair()
    after["workers"][0]["devices"][0] |= {"busy_ns": 5 * SECOND, "idle_with_work_ns": SECOND}
    row = compare(before, after).devices[0]
    assert (row.executing, row.idle_with_work, row.idle) == (1.0, 0.0, 0.0)


def test_a_lost_device_says_why() -> None:
    before, after = busy_pair()
    after["workers"][0]["devices"][1]["lost"] = "CUDA_ERROR_ECC_UNCORRECTABLE"
    overview = compare(before, after)
    assert overview.devices[1].state == "lost"
    assert "lost: CUDA_ERROR_ECC_UNCORRECTABLE" in about_device(overview.devices[1], overview).plain


@pytest.mark.parametrize(("buckets", "part", "found"), [
    ([], 0.5, None),
    (EMPTY, 0.5, None),
    ([4, *([4] * (len(EMPTY) - 1))], 0.5, METRIC_BOUNDS_NS[0] // 2),
    ([0] * (len(EMPTY) - 1) + [3], 0.99, METRIC_BOUNDS_NS[-1]),  # durations beyond the last bound
])  # fmt: skip
def test_percentiles_of_histograms(buckets: list[int], part: float, found: int | None) -> None:
    assert percentile(buckets, part) == found


def test_a_reader_says_what_there_is_to_compare() -> None:
    before, after = busy_pair()
    anew = reading(15, started_ns=14 * SECOND)
    readings = iter([before, after, anew, reading(16, started_ns=14 * SECOND)])
    reader = PeriodicReader(lambda: next(readings), interval_s=2.0)
    assert reader.next() == (None, "the first rates come in 2 s")
    found, note = reader.next()
    assert (found is not None and found.rates.answered, note) == (2.0, "")
    assert not is_same_run(after, anew)
    assert reader.next() == (None, "the controller was started anew")
    assert reader.next()[0] is not None


def test_where_models_are_many_they_are_read_less_often() -> None:
    readings = iter([reading(1), reading(2) | {"model_count": 6400}])
    reader = PeriodicReader(lambda: next(readings), interval_s=2.0)
    reader.next()
    assert reader.interval_s == 2.0
    reader.next()
    assert reader.interval_s == pytest.approx(10.0)  # 100 pages, a millisecond each, are 1 % of the interval


def test_rows_are_sorted_by_any_column_either_way() -> None:
    overview = compare(*busy_pair())
    for columns, rows in ((MODELS, overview.models), (DEVICES, overview.devices)):
        for column in columns:
            ahead = sorted_rows(rows, column, is_reversed=False)
            assert set(ahead) == set(rows) if columns is DEVICES else len(ahead) == len(rows)
            values = [column.value(row) for row in ahead]
            assert values == sorted(values, reverse=column.largest_first), column.title
            back = [column.value(row) for row in sorted_rows(rows, column, is_reversed=True)]
            assert back == sorted(values, reverse=not column.largest_first), column.title


def test_bars_have_one_length_and_every_state_its_sign() -> None:
    overview = compare(*busy_pair())
    assert bar(overview.devices[0]).plain == "█" * (BAR // 2) + "░" * (BAR // 4) + "·" * (BAR // 4)
    assert bar(overview.devices[1]).plain == "·" * BAR


def test_what_is_said_of_the_whole_and_of_one() -> None:
    overview = compare(*busy_pair())
    said = summary(overview).plain
    assert (
        "requests/s 3.8:  ✓ 2.0 answered  - 1.0 refused  ✗ 0.5 missed  ! 0.2 failed   refused for: deadline 0.8, memory 0.2"
        in said
    )
    assert "not ready" not in said
    assert "not ready   kinds of trouble: 1" in summary(overview._replace(ready=False, troubles=1)).plain
    assert "resident on w/0" in about_model(overview.models[0]).plain
    assert "resident on no device" in about_model(overview.models[1]).plain
    assert "1 model here:\n  a@1: asked 3.5/s" in about_device(overview.devices[0], overview).plain
