"""The bound of a price at every moment, compared with schedules of small instances and runs of policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.grid import bounds, cells, measure, moments, policies
from clockwork.sim._bounds import best_batches, best_by_moment
from tests.unit.test_grid_whole import Instance, arrays, instances, most_of_all_schedules

SLOTS = 17
SLOT = 3.5
"""Slots that end within executions, and cover every instance."""


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 3).flatmap(instances),
    st.integers(1, 2),
    st.lists(st.sampled_from([0.0, 0.05, 0.2, 1.0]), min_size=SLOTS, max_size=SLOTS),
)
def test_no_schedule_serves_more_than_the_bound_at_any_prices(
    instance: Instance, devices: int, prices: list[float]
) -> None:
    arrived, starts, exec_ns, room_ns = arrays(instance)
    values, used = np.zeros(len(room_ns)), np.zeros(SLOTS)
    up_to = np.concatenate(([0.0], np.cumsum(prices)))
    best_by_moment(arrived / SLOT, starts, exec_ns / SLOT, room_ns / SLOT, up_to, values, used)
    best = most_of_all_schedules(instance, devices, in_order=devices > 1)
    assert best <= values.sum() + devices * sum(prices) + 1e-6
    served = values.sum() + float(np.array(prices) @ used)
    assert served == pytest.approx(round(served), abs=1e-6), (
        "the value is requests less the price of their slots"
    )


def test_with_one_price_the_batches_are_those_of_the_dual() -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 5000, 400))
    exec_ns = np.array([[0.0, 40.0, 45.0, 50.0, 55.0]])
    served, starts = np.zeros(400, np.uint8), np.array([0, 400])
    spans = np.floor(120 - exec_ns).astype(np.int64)
    value, exec_total = best_batches(times, np.ones(400), starts, exec_ns, spans, 0.02, served)
    values, used = np.zeros(1), np.zeros(600)
    best_by_moment(times / 10.0, starts, exec_ns / 10.0, np.array([12.0]), np.arange(601) * 0.2, values, used)
    assert values[0] == pytest.approx(value)
    assert 10 * used.sum() == pytest.approx(exec_total)


def test_segments_end_at_the_longest_gaps() -> None:
    times = np.cumsum(np.where(np.arange(1000) % 150 == 0, 100.0, 1.0))
    first = moments.segments(times)
    assert first[0] == 0
    assert all(place % 150 == 0 for place in first)
    assert np.diff([*first, 1000]).max() <= 2 * moments.SEGMENT_REQUESTS


def test_the_bound_is_sharper_than_the_dual_in_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of which each gets 20 requests in a row now and then: a device cannot save its time for
    them."""
    monkeypatch.setattr(moments, "STEPS", 100)
    cell = cells.specified("bursts", "devices=1,models=2,slo=10x,gain=1,arrivals=bursts")
    drawn = cell.draw(1, bounds.needed_arrivals(cell, 1000, 0.0))
    dual = bounds.rate_bound(cell, drawn, 1000, 0.0, clairvoyant=True)
    found = moments.rate_bound(cell, drawn, 1000, 0.0, dual)
    assert found < 0.9 * dual
    end_s = cell.window_s(found, 1000)
    offered = drawn.at(found, end_s)
    least = moments.MomentDual(cell, offered, 0.0, end_s).least(0.0)
    report = measure.run(cell, policies.Setting("adaptive"), offered, seed=1, warmup_s=0.0, until_s=end_s)
    assert int(report.models.good.sum()) <= least < len(offered)
    several = cells.CELLS["d8-m20-tight-low"]
    assert moments.rate_bound(several, drawn, 1000, 0.0, 123.0) == 123.0


@pytest.mark.parametrize(
    "change",
    [
        {"room": np.ones(2)},  # an array for more groups
        {"starts": np.array([0, 5])},  # starts that imply more requests
        {"up_to": np.zeros(3)},  # prices of fewer slots
        {"arrived": np.arange(4)},  # an array of another type
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    given_arrays: dict[str, Any] = {
        "arrived": np.arange(4.0), "starts": np.array([0, 4]), "exec": np.ones((1, 3)), "room": np.ones(1),
        "up_to": np.zeros(11), "values": np.zeros(1), "used": np.zeros(10),
    }  # fmt: skip
    best_by_moment(**given_arrays)
    with pytest.raises(ValueError, match="array"):
        best_by_moment(**(given_arrays | change))
