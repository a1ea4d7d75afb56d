"""The bound of whole copies in memory, compared with schedules of small instances and runs of policies."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.grid import bounds, cells, measure, policies, stints
from clockwork.sim._bounds import best_batches, best_stints

WINDOW_NS = 40


@dataclasses.dataclass(frozen=True)
class Instance:
    """Requests as (arrival, model), in order of arrival, and devices with memory for a part of the models."""

    requests: tuple[tuple[int, int], ...]
    exec_ns: tuple[tuple[int, ...], ...]
    room_ns: tuple[int, ...]
    load_ns: tuple[int, ...]
    pages: tuple[int, ...]
    devices: int
    page_count: int
    held: bool


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    models = draw(st.integers(1, 3))
    curves = []
    for _ in range(models):
        steps = draw(st.lists(st.integers(0, 4), min_size=1, max_size=1))
        curves.append((0, *itertools.accumulate(steps, initial=draw(st.integers(1, 6)))))
    each = st.lists(st.integers(1, 15), min_size=models, max_size=models)
    times = st.tuples(st.integers(0, WINDOW_NS - 1), st.integers(0, models - 1))
    pages = draw(st.lists(st.integers(1, 3), min_size=models, max_size=models))
    return Instance(
        tuple(sorted(draw(st.lists(times, min_size=1, max_size=5)))),
        tuple(curves),
        tuple(draw(each)),
        tuple(draw(each)),
        tuple(pages),
        draw(st.integers(1, 2)),
        draw(st.integers(max(pages), max(pages) + 2)),
        draw(st.booleans()),
    )


Copy = tuple[int, int, int]  # a model, when it is loaded, and when its last batch ends
Device = tuple[int, int, tuple[Copy, ...]]  # when the device is free, when its link is, and its copies


def most_of_schedules(instance: Instance) -> int:
    """Return the most requests that schedules serve.

    Loads are in the order of the batches that need them.
    """

    def filled(copies: tuple[Copy, ...]) -> int:
        return sum(instance.pages[model] for model, _, _ in copies)

    def with_copy(device: Device, model: int) -> list[Device]:
        """The device with the model in its memory, after each choice of copies to evict for it."""
        free, link, copies = device
        if any(copy[0] == model for copy in copies):
            return [device]
        found = []
        for size in range(len(copies) + 1):
            for kept in itertools.combinations(copies, size):
                if filled(kept) + instance.pages[model] > instance.page_count:
                    continue
                begin = max([link, *(until for copy in copies if copy not in kept for until in copy[1:])])
                end = begin + instance.load_ns[model]
                found.append((free, end, tuple(sorted((*kept, (model, end, end))))))
        return found

    @cache
    def most(devices: tuple[Device, ...], now: int, left: tuple[int, ...]) -> int:
        best = 0
        for first, second in itertools.combinations_with_replacement(left, 2):
            model = instance.requests[first][1]
            if instance.requests[second][1] != model:
                continue
            batch = sorted({first, second})
            for place, device in enumerate(devices):
                for free, link, copies in with_copy(device, model):
                    [loaded] = [copy[1] for copy in copies if copy[0] == model]
                    start = max(now, free, loaded, instance.requests[second][0])
                    end = start + instance.exec_ns[model][len(batch)]
                    if end > instance.requests[first][0] + instance.room_ns[model]:
                        continue
                    used = tuple((name, at, end if name == model else until) for name, at, until in copies)
                    others = tuple(
                        other
                        for other in left
                        if other not in batch
                        and not (instance.requests[other][1] == model and other < second)
                    )
                    after = (*devices[:place], (end, link, used), *devices[place + 1 :])
                    best = max(best, len(batch) + most(tuple(sorted(after)), start, others))
        return best

    every = range(len(instance.pages))
    contents: list[tuple[Copy, ...]] = [
        copies
        for size in (every if instance.held else range(1))
        for models in itertools.combinations(every, size + instance.held)
        if filled(copies := tuple((model, 0, 0) for model in models)) <= instance.page_count
    ]
    return max(
        (
            most(tuple(sorted((0, 0, copies) for copies in each)), 0, tuple(range(len(instance.requests))))
            for each in itertools.combinations_with_replacement(contents, instance.devices)
        ),
        default=0,
    )


def bound_at(instance: Instance, prices: tuple[float, float, float]) -> float:
    models = len(instance.pages)
    times = [[time for time, model in instance.requests if model == of] for of in range(models)]
    value, used = best_stints(
        np.array(list(itertools.chain(*times)), np.float64),
        np.cumsum([0, *map(len, times)], dtype=np.int64),
        np.array(instance.exec_ns, np.float64),
        np.array(instance.room_ns, np.float64),
        np.array(instance.load_ns, np.float64),
        np.array(instance.pages, np.float64),
        instance.held,
        *prices,
    )
    served = value + sum(price * amount for price, amount in zip(prices, used))
    assert served == pytest.approx(round(served), abs=1e-6), (
        "the value is requests less the price of the uses"
    )
    assert 0 <= round(served) <= len(instance.requests)
    assert min(used) >= -1e-9
    each = instance.devices * (WINDOW_NS + max(instance.room_ns))
    return value + sum(price * each for price in prices[:2]) + prices[2] * each * instance.page_count


PRICES = st.floats(0.0, 0.3)


@settings(deadline=None, max_examples=200)
@given(instances(), st.tuples(PRICES, PRICES, PRICES))
def test_no_schedule_serves_more_than_the_bound_at_any_price(
    instance: Instance, prices: tuple[float, float, float]
) -> None:
    best = most_of_schedules(instance)
    for scale in (1.0, 0.1, 0.01):
        device, link, page = (scale * price for price in prices)
        assert best <= bound_at(instance, (device, link, page)) + 1e-6
        assert best <= bound_at(instance, (0.0, link, page)) + 1e-6
        assert best <= bound_at(instance, (0.0, 0.0, page)) + 1e-6


def brute_stints(
    instance: Instance, prices: tuple[float, float, float], times: list[int], model: int = 0
) -> float:
    """Return the best value of one model's batches and stints: every choice is tried."""
    device, link, page = prices
    exec_ns, room = instance.exec_ns[model], instance.room_ns[model]
    load, pages = instance.load_ns[model], instance.pages[model]

    def after(place: int, begun: float | None, held_since: bool, last: tuple[int, int] | None) -> float:
        """The best from request `place` on; begun: the latest start of an open stint's first batch."""
        closed = 0.0
        if last is not None:
            until, size = last
            if held_since:
                closed = -page * pages * (until + exec_ns[size])
            else:
                assert begun is not None
                closed = -link * load - page * pages * (load + exec_ns[size] + max(0.0, until - begun))
        best = closed
        for first in range(place, len(times)):
            for size in range(1, min(len(exec_ns) - 1, len(times) - first) + 1):
                end = first + size
                if times[end - 1] + exec_ns[size] > times[first] + room:
                    continue
                gain = size - device * exec_ns[size]
                newest = (times[end - 1], size)
                fresh = closed + gain + after(end, times[first] + room - exec_ns[1], False, newest)
                best = max(best, fresh)
                if last is not None:
                    best = max(best, gain + after(end, begun, held_since, newest))
                elif instance.held and place == 0:
                    best = max(best, gain + after(end, None, True, newest))
        return best

    return after(0, None, False, None)


@settings(deadline=None, max_examples=200)
@given(instances(), st.tuples(PRICES, PRICES, st.floats(0.0, 0.05)))
def test_the_program_finds_the_best_stints(instance: Instance, prices: tuple[float, float, float]) -> None:
    times = [time for time, model in instance.requests if model == 0]
    found, _ = best_stints(
        np.array(times, np.float64),
        np.array([0, len(times)]),
        np.array(instance.exec_ns[:1], np.float64),
        np.array(instance.room_ns[:1], np.float64),
        np.array(instance.load_ns[:1], np.float64),
        np.array(instance.pages[:1], np.float64),
        instance.held,
        *prices,
    )
    assert found == pytest.approx(brute_stints(instance, prices, times), abs=1e-6)


def test_with_free_links_and_memory_the_batches_are_those_of_the_dual() -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 5000, 400))
    exec_ns = np.array([[0.0, 40.0, 45.0, 50.0, 55.0]])
    served = np.zeros(400, np.uint8)
    starts = np.array([0, 400])
    spans = np.floor(120 - exec_ns).astype(np.int64)
    value, used = best_batches(times, np.ones(400), starts, exec_ns, spans, 0.02, served)
    found, (device_ns, _, _) = best_stints(
        times.astype(np.float64),
        starts,
        exec_ns,
        *(np.array([x]) for x in (120.0, 7.0, 3.0)),
        True,
        0.02,
        0.0,
        0.0,
    )
    assert (found, device_ns) == (pytest.approx(value), pytest.approx(used))


def test_the_bound_is_sharper_than_the_dual_where_memory_is_short() -> None:
    cell = cells.specified("short", "devices=1,models=40,slo=5x,gain=1,fits=0.1")
    drawn = cell.draw(1, bounds.needed_arrivals(cell, 2000, 1.0))
    dual = bounds.rate_bound(cell, drawn, 2000, 1.0, clairvoyant=True)
    assert stints.rate_bound(cell, drawn, 2000, 1.0, dual) < 0.85 * dual
    resident = dataclasses.replace(cell, fits="1")
    assert stints.rate_bound(resident, drawn, 2000, 1.0, dual) == dual


@pytest.mark.parametrize("policy", ["edf", "adaptive"])
@pytest.mark.parametrize(
    "spec",
    [
        "devices=1,models=40,slo=5x,gain=1,fits=0.1",
        "devices=2,models=20,slo=8x,gain=20,zipf=0.9,fits=0.3",
        "devices=2,models=30,slo=20x,gain=20,arrivals=bursts,fits=0.2",
    ],
)
def test_no_policy_serves_more_than_the_bound(spec: str, policy: str) -> None:
    cell = cells.specified("short", spec)
    begin_s = 0.0 if cell.cold else 0.5
    drawn = cell.draw(3, bounds.needed_arrivals(cell, 1500, begin_s))
    rate = 0.7 * bounds.fluid_rate(cell)
    end_s = begin_s + cell.window_s(rate, 1500)
    offered = drawn.at(rate, end_s)
    memory = "" if policy == "edf" else "adaptive"
    report = measure.run(
        cell, policies.Setting(policy, (), memory), offered, seed=3, warmup_s=begin_s, until_s=end_s
    )
    dual = stints.StintDual(cell, offered, begin_s, end_s)
    assert dual.count == int(report.models.offered.sum())
    for shares in stints.STARTS:
        most = stints.least(dual.value, np.array(shares) * dual.count / dual.budgets, -1.0, 1.0)
        assert int(report.models.good.sum()) <= most + 1e-6


@pytest.mark.parametrize(
    "change",
    [
        {"pages": np.ones(2)},  # an array for more models
        {"starts": np.array([0, 5])},  # starts that imply more requests
        {"arrived_ns": np.arange(4)},  # an array of another type
        {"exec_ns": np.ones((1, 1))},  # no batch size
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {
        "arrived_ns": np.arange(4.0), "starts": np.array([0, 4]), "exec_ns": np.ones((1, 3)), "room_ns": np.ones(1),
        "load_ns": np.ones(1), "pages": np.ones(1), "held": True, "device": 0.0, "link": 0.0, "page": 0.0,
    }  # fmt: skip
    best_stints(**arrays)
    with pytest.raises(ValueError, match="array"):
        best_stints(**(arrays | change))
