"""The bounds of whole devices, compared with every schedule of small instances and with runs of policies."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.grid import bounds, cells, extras, measure, policies, run, whole
from clockwork.sim._bounds import most_served, most_served_by_one

Int64s = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Instance:
    """Requests as (arrival, model), in order of arrival; execution times by model and batch size."""

    requests: tuple[tuple[int, int], ...]
    exec_ns: tuple[tuple[int, ...], ...]
    room_ns: tuple[int, ...]


@st.composite
def instances(draw: st.DrawFn, models: int) -> Instance:
    curves, rooms = [], []
    for _ in range(models):
        first = draw(st.integers(1, 9))
        steps = draw(st.lists(st.integers(0, 6), min_size=3, max_size=3))
        curves.append((0, *itertools.accumulate(steps, initial=first)))
        rooms.append(draw(st.integers(1, 20)))
    times = st.tuples(st.integers(0, 30), st.integers(0, models - 1))
    return Instance(tuple(sorted(draw(st.lists(times, min_size=1, max_size=6)))), tuple(curves), tuple(rooms))


def most_of_all_schedules(instance: Instance, devices: int, in_order: bool) -> int:
    """Return the most requests that any schedule serves: every set of requests is tried as the next batch.

    in_order: batches take the requests of a model in order of arrival, with gaps wherever they like.
    """
    requests = instance.requests

    @cache
    def most(free: tuple[int, ...], now: int, left: tuple[int, ...]) -> int:
        best = 0
        for size in range(1, len(left) + 1):
            for batch in itertools.combinations(left, size):
                model = requests[batch[0]][1]
                if any(requests[place][1] != model for place in batch) or size >= len(
                    instance.exec_ns[model]
                ):
                    continue
                start = max(free[0], now, requests[batch[-1]][0])
                end = start + instance.exec_ns[model][size]
                if end > requests[batch[0]][0] + instance.room_ns[model]:
                    continue
                others = tuple(
                    place
                    for place in left
                    if place not in batch
                    and not (in_order and requests[place][1] == model and place < batch[-1])
                )
                best = max(best, size + most(tuple(sorted((*free[1:], end))), start, others))
        return best

    return most((0,) * devices, 0, tuple(range(len(requests))))


def arrays(instance: Instance) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    models = len(instance.exec_ns)
    times = [[time for time, model in instance.requests if model == of] for of in range(models)]
    starts = np.cumsum([0, *map(len, times)], dtype=np.int64)
    return (
        np.array(list(itertools.chain(*times)), np.int64),
        starts,
        np.array(instance.exec_ns, np.int64),
        np.array(instance.room_ns, np.int64),
    )


@settings(deadline=None, max_examples=150)
@given(instances(models=1))
def test_one_model_on_one_device_is_served_as_well_as_by_the_best_of_all_schedules(
    instance: Instance,
) -> None:
    arrived, _, exec_ns, room_ns = arrays(instance)
    best = most_of_all_schedules(instance, 1, in_order=False)
    assert most_served_by_one(arrived, exec_ns[0], int(room_ns[0])) == best


@settings(deadline=None, max_examples=150)
@given(instances(models=3))
def test_the_search_finds_the_best_of_all_schedules_of_one_device(instance: Instance) -> None:
    best = most_of_all_schedules(instance, 1, in_order=False)
    assert most_served(*arrays(instance), 1, 10_000) == (best, 0)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 3).flatmap(instances), st.integers(2, 3))
def test_the_search_finds_the_best_of_all_schedules_of_several_devices(
    instance: Instance, devices: int
) -> None:
    best = most_of_all_schedules(instance, devices, in_order=True)
    assert most_served(*arrays(instance), devices, 10_000) == (best, 0)


@settings(deadline=None, max_examples=100)
@given(instances(models=2), st.integers(1, 2), st.integers(1, 4))
def test_a_search_that_is_cut_finds_no_less(instance: Instance, devices: int, width: int) -> None:
    exact, _ = most_served(*arrays(instance), devices, 10_000)
    found, cut = most_served(*arrays(instance), devices, width)
    assert exact <= found <= len(instance.requests)
    assert cut or found == exact


def test_the_search_and_the_program_agree_on_a_cell() -> None:
    cell = cells.CELLS["d1-m1-tight-low"]
    offered = cell.draw(2, 4000).at(150.0, 20.0)
    one, count = whole.served_at_most(cell, offered, 1.0, 20.0)
    counted = (offered.t_ns >= 1_000_000_000) & (offered.t_ns < 20_000_000_000)
    times = bounds.curve(cells.profiles(cell)[0]).astype(np.int64)
    found, cut = most_served(
        np.ascontiguousarray(offered.t_ns[counted]),
        np.array([0, count]),
        times[None, :],
        np.array([cell.slo_max_ns - bounds.NETWORK_NS]),
        1,
        10_000,
    )
    assert (found, cut) == (one, 0)
    assert one < count == counted.sum()


def test_models_that_cannot_batch_are_searched_as_one() -> None:
    """Eight devices and 20 models with room for single executions: the number is that of one model's
    requests.
    """
    cell = cells.CELLS["d8-m20-tight-low"]
    offered = cell.draw(2, 4000).at(1500.0, 2.0)
    most, count = whole.served_at_most(cell, offered, 0.0, 2.0)
    as_one = dataclasses.replace(offered, model=np.zeros_like(offered.model))
    assert whole.served_at_most(cell, as_one, 0.0, 2.0) == (most, count)
    assert 0.9 * count < most < count


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        (name, policy)
        for name in ("d1-m1-tight-low", "d1-m6-tight-high", "d8-m20-tight-low", "d1-m6-mixed-high")
        for policy in ("edf", "adaptive")
    ],
)
def test_no_policy_serves_more_than_whole_devices_can(name: str, policy: str) -> None:
    cell = cells.CELLS[name]
    requests, begin_s = 2000, 0.5
    drawn = cell.draw(3, bounds.needed_arrivals(cell, requests, begin_s))
    highest = bounds.rate_bound(cell, drawn, requests, begin_s, clairvoyant=True)
    rate = whole.rate_bound(cell, drawn, requests, begin_s, highest)
    assert rate < 0.7 * highest
    for part in (0.9, 1.5):
        end_s = begin_s + cell.window_s(part * rate, requests)
        offered = drawn.at(part * rate, end_s)
        report = measure.run(cell, policies.Setting(policy), offered, seed=3, warmup_s=begin_s, until_s=end_s)
        if len(cell.classes) == 1:
            most, count = whole.served_at_most(cell, offered, begin_s, end_s)
            assert count == int(report.models.offered.sum())
            assert int(report.models.good.sum()) <= most
        good = report.classes.offered - report.classes.bad
        for group in range(len(cell.classes)):
            most, count = whole.served_at_most(cell, offered, begin_s, end_s, group)
            assert count == int(report.classes.offered[group])
            assert int(good[group]) <= most


def test_a_class_alone_bounds_a_cell_of_several_slos() -> None:
    cell = cells.CELLS["d8-m20-mixed-high"]
    drawn = cell.draw(1, bounds.needed_arrivals(cell, 4000, 1.0))
    every = bounds.rate_bound(cell, drawn, 4000, 1.0, clairvoyant=True, any_order=True)
    assert bounds.class_bound(cell, drawn, 4000, 1.0, every) < 0.5 * every
    one_class = cells.CELLS["d8-m20-tight-low"]
    assert bounds.class_bound(one_class, drawn, 4000, 1.0, 123.0) == 123.0


def test_the_bounds_of_a_book_are_the_tighter_the_more_they_know() -> None:
    cell = cells.CELLS["d1-m6-mixed-high"]
    found = run.perform(run.Task("bound", cell, dataclasses.replace(run.QUICK, requests=1000), seed=1))
    assert found["whole"] <= found["class"] <= found["clairvoyant"] <= found["fluid"]
    assert found["whole"] < 0.5 * found["clairvoyant"]
    assert extras.rough_bound(cell, 1) > 0


def refused_arrays() -> Sequence[tuple[str, dict[str, object]]]:
    return [
        ("fit", {"room_ns": np.ones(2, np.int64)}),
        ("fit", {"starts": np.array([0, 5])}),
        ("array", {"exec_ns": np.ones((1, 3))}),
        ("at least one", {"devices": 0}),
        ("at least one", {"width": 0}),
    ]


@pytest.mark.parametrize(("message", "change"), refused_arrays())
def test_arrays_that_do_not_fit_are_refused(message: str, change: dict[str, object]) -> None:
    given_arrays: dict[str, object] = {
        "arrived_ns": np.arange(4), "starts": np.array([0, 4]), "exec_ns": np.ones((1, 3), np.int64),
        "room_ns": np.ones(1, np.int64), "devices": 1, "width": 10,
    }  # fmt: skip
    most_served(**given_arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        most_served(**(given_arrays | change))  # type: ignore[arg-type]
