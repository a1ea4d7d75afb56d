"""The bound of a price at every moment, compared with schedules of small instances and runs of policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.grid import bounds, cells, measure, moments, policies
from bench.grid.arrivals import TimedArrivals
from clockwork.sim._bounds import best_batches, best_by_moment
from tests.unit.test_grid_bounds import drawn, most_worth
from tests.unit.test_grid_whole import Instance, arrays, instances, most_of_all_schedules

SLOTS = 17
SLOT = 3.5
"""Slots that end within executions, and cover every instance."""


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 3).flatmap(instances),
    st.integers(1, 2),
    st.booleans(),
    st.lists(st.sampled_from([0.0, 0.05, 0.2, 1.0]), min_size=SLOTS, max_size=SLOTS),
)
def test_no_schedule_serves_more_than_the_bound_at_any_prices(
    instance: Instance, devices: int, any_order: bool, prices: list[float]
) -> None:
    arrived, starts, exec_ns, room_ns = arrays(instance)
    values, used = np.zeros(len(room_ns)), np.zeros(SLOTS)
    up_to = np.concatenate(([0.0], np.cumsum(prices)))
    room, worth = room_ns[:, None].astype(np.float64), np.ones(len(room_ns))
    latest = room - (exec_ns[:, 1:2] if any_order else exec_ns)
    slack = np.where(exec_ns <= room, latest, -np.inf).astype(np.float64) / SLOT
    best_by_moment(arrived / SLOT, starts, exec_ns / SLOT, slack, worth, up_to, values, used)
    best = most_of_all_schedules(instance, devices, in_order=devices > 1 and not any_order)
    assert best <= values.sum() + devices * sum(prices) + 1e-6
    served = values.sum() + float(np.array(prices) @ used)
    assert served == pytest.approx(round(served), abs=1e-6), (
        "the value is requests less the price of their slots"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "devices=1,models=2,slo=2x/4x,gain=2,exec=4ms",
        "devices=1,models=1,slo=1.5x/2x/4x,gain=20,exec=4ms",
        "devices=2,models=1,slo=1.2x/1.4x,gain=1,exec=9ms,priorities=2",
    ],
)
def test_no_schedule_of_several_slos_is_worth_more_than_base_and_riders(spec: str) -> None:
    cell = cells.parse(spec)
    sharp = 0
    for seed in range(10):
        offered = drawn(cell, seed, 6, 6.0)
        dual = moments.MomentDual(cell, offered, 0.0, 0.006)
        own = np.isin(offered.group, moments.base_of(cell))
        worth = np.where(own, 1.0, dual.rider_worth)
        assert dual.riders == int((~own).sum())
        best, found = most_worth(cell, offered, worth.tolist()), dual.least(0.0)
        assert found >= best - 1e-6, seed
        sharp += dual.riders > 0 and found < worth.sum() - 1e-6
    assert sharp, "the bound excluded nothing in any instance with riders"


def test_with_one_price_the_batches_are_those_of_the_dual() -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 5000, 400))
    exec_ns = np.array([[0.0, 40.0, 45.0, 50.0, 55.0]])
    served, starts = np.zeros(400, np.uint8), np.array([0, 400])
    spans = np.floor(120 - exec_ns).astype(np.int64)
    value, exec_total = best_batches(times, np.ones(400), starts, exec_ns, spans, 0.02, served)
    values, used = np.zeros(1), np.zeros(600)
    up_to = np.linspace(0.0, 120.0, 601)
    best_by_moment(times / 10.0, starts, exec_ns / 10.0, 12 - exec_ns / 10.0, np.ones(1), up_to, values, used)
    assert values[0] == pytest.approx(value)
    assert 10 * used.sum() == pytest.approx(exec_total)


def test_segments_end_at_the_longest_gaps() -> None:
    times = np.cumsum(np.where(np.arange(1000) % 150 == 0, 100.0, 1.0))
    first = moments.segments(times, 200)
    assert first[0] == 0
    assert all(place % 150 == 0 for place in first)
    assert np.diff([*first, 1000]).max() <= 400


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


@pytest.mark.parametrize(
    "spec",
    [
        "devices=4,models=3,slo=2x,gain=20,exec=4ms,arrivals=cv4",
        "devices=2,models=4,slo=2x/5x,gain=20,exec=10ms",
        "devices=3,models=4,slo=2x/4x,gain=2,exec=10ms,priorities=2,speeds=1/0.5",
        "devices=2,models=12,slo=5x,gain=8,exec=10ms,fits=0.3,arrivals=cv4",
    ],
)
def test_no_policy_serves_more_than_devices_can_at_every_moment(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "STEPS", 40)
    cell, requests = cells.parse(spec), 1500
    drawn = cell.draw(2, bounds.needed_arrivals(cell, requests, 0.5))
    rate = 0.8 * bounds.fluid_rate(cell)
    end_s = 0.5 + cell.window_s(rate, requests)
    offered = drawn.at(rate, end_s)
    dual = moments.MomentDual(cell, offered, 0.5, end_s)
    most = dual.least(0.0)
    own = np.isin(np.arange(len(cell.classes)), moments.base_of(cell))
    worth = np.where(own, 1.0, dual.rider_worth)
    assert most < float(worth @ counted(cell, offered, 0.5)), "the bound excludes nothing"
    for policy in policies.POLICIES:
        setting = policies.settings(policy, policies.memories(policy, cell)[0], cell)[0]
        report = measure.run(cell, setting, offered, seed=2, warmup_s=0.5, until_s=end_s)
        good = report.classes.offered - report.classes.bad
        assert np.array_equal(report.classes.offered, counted(cell, offered, 0.5))
        assert float(worth @ good) <= most + 1e-6, policy


def counted(cell: cells.Cell, offered: TimedArrivals, begin_s: float) -> npt.NDArray[np.int64]:
    """The number of requests of each class that arrive from begin_s on."""
    within = offered.t_ns >= int(begin_s * 1e9)
    return np.bincount(offered.group[within], minlength=len(cell.classes))


def test_requests_that_may_be_bad_are_those_worth_most() -> None:
    """Among 3,000 requests 30 may be bad, and 20 in the third of them that is the base."""
    cell = cells.parse("devices=1,models=1,slo=2x/5x/15x,gain=20")
    times = np.arange(3000) * 1_000_000
    offered = TimedArrivals(times, np.zeros(3000, np.int32), (np.arange(3000) % 3).astype(np.uint8))
    dual = moments.MomentDual(cell, offered, 0.0, 3.0)
    assert moments.base_of(cell) == (0,)
    assert dual.rider_worth == pytest.approx(2 / 21, rel=1e-3)
    assert dual.needed == pytest.approx(980 + dual.rider_worth * 1990)


@pytest.mark.parametrize(
    "change",
    [
        {"worth": np.ones(2)},  # an array for more groups
        {"slack": np.ones((1, 4))},  # an array of more batch sizes
        {"starts": np.array([0, 5])},  # starts that imply more requests
        {"up_to": np.zeros(3)},  # prices of fewer slots
        {"arrived": np.arange(4)},  # an array of another type
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    given_arrays: dict[str, Any] = {
        "arrived": np.arange(4.0), "starts": np.array([0, 4]), "exec": np.ones((1, 3)),
        "slack": np.ones((1, 3)), "worth": np.ones(1), "up_to": np.zeros(11), "values": np.zeros(1), "used": np.zeros(10),
    }  # fmt: skip
    best_by_moment(**given_arrays)
    with pytest.raises(ValueError, match="array"):
        best_by_moment(**(given_arrays | change))
