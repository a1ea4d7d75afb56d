"""The upper bounds of the grid, compared with exhaustive search on small instances."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from bench.grid import bounds, cells, whole
from bench.grid.arrivals import TimedArrivals
from clockwork.sim._bounds import best_batches

MS = 1_000_000
EASY = "devices=1,models=2,slo=2x,gain=2,exec=4ms"


def partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """Yield every way to put the items into batches."""
    if not items:
        yield []
        return
    head, *rest = items
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [one for one in rest if one not in others]
            for more in partitions(left):
                yield [[head, *others], *more]


def fits(batches: list[tuple[int, int, float]], free: list[float]) -> bool:
    """Whether (earliest start, latest end, time) can run on devices that are free at `free`, in some
    order."""
    if not batches:
        return True
    for index, (ready, due, takes) in enumerate(batches):
        rest = batches[:index] + batches[index + 1 :]
        for device in range(len(free)):
            if device and free[device] == free[device - 1]:
                continue
            end = max(free[device], ready) + takes
            if end <= due and fits(rest, sorted([*free[:device], *free[device + 1 :], end])):
                return True
    return False


def most_worth(cell: cells.Cell, offered: TimedArrivals, worth: Sequence[float]) -> float:
    """Return the most that requests are worth that a schedule can serve in time, all models resident: tried
    exhaustively."""
    served, slos = cells.profiles(cell), cell.slos_ns()
    curves = [bounds.curve(one) for one in served]
    every = [
        chosen
        for count in range(len(offered) + 1)
        for chosen in itertools.combinations(range(len(offered)), count)
    ]
    totals = {chosen: sum(worth[index] for index in chosen) for chosen in every}
    for chosen in sorted(every, key=totals.__getitem__, reverse=True):
        for batches in partitions(chosen):
            if any(len({int(offered.model[i]) for i in batch}) > 1 for batch in batches):
                continue
            jobs = [
                (
                    max(int(offered.t_ns[i]) for i in batch),
                    min(int(offered.t_ns[i]) + slos[offered.model[i]][offered.group[i]] for i in batch)
                    - bounds.NETWORK_NS,
                    float(curves[offered.model[batch[0]]][len(batch)]),
                )
                for batch in batches
            ]
            if fits(jobs, [0.0] * cell.devices):
                return totals[chosen]
    raise AssertionError("a schedule serves nothing at least")


def drawn(cell: cells.Cell, seed: int, count: int, within_ms: float) -> TimedArrivals:
    rng = random.Random(seed)
    times = sorted(rng.randrange(int(within_ms * MS)) for _ in range(count))
    return TimedArrivals(
        np.array(times, np.int64),
        np.array([rng.randrange(cell.models) for _ in times], np.int32),
        np.array([rng.randrange(len(cell.classes)) for _ in times], np.uint8),
    )


def dual(cell: cells.Cell, offered: TimedArrivals, *, clairvoyant: bool, any_order: bool) -> float:
    relaxed = bounds.Relaxation(cell, offered, 0.0, 0.006, clairvoyant=clairvoyant, any_order=any_order)
    return bounds.minimum(relaxed.value, relaxed.prices_max, -1.0, 1e-3)


@pytest.mark.parametrize(
    "spec",
    [
        EASY,
        "devices=1,models=1,slo=2x,gain=20,exec=4ms",
        "devices=1,models=1,slo=2x/4x,gain=2,exec=4ms",
        "devices=2,models=1,slo=2x,gain=1,exec=9ms",
        "devices=2,models=2,slo=1.5x/3x,gain=4,exec=9ms",
    ],
)
def test_no_schedule_serves_more_than_the_bounds(spec: str) -> None:
    cell = cells.parse(spec)
    sharp = 0
    for seed in range(12):
        offered = drawn(cell, seed, 6, 6.0)
        best = most_worth(cell, offered, [1.0] * len(offered))
        for clairvoyant in (False, True):
            bound = dual(cell, offered, clairvoyant=clairvoyant, any_order=cell.devices > 1)
            assert bound >= best - 1e-6, (seed, clairvoyant)
        sharp += bound < len(offered) - 1e-6
    if cell.models > 1 and len(cell.classes) == 1:
        assert sharp, "the bound excluded nothing in any instance, so it was not tested"


def test_the_best_batches_are_the_best() -> None:
    """The dynamic program, compared with every choice of consecutive batches."""
    rng = random.Random(3)
    for _ in range(60):
        count = rng.randrange(1, 9)
        times = sorted(rng.randrange(100) for _ in range(count))
        worth = [rng.random() for _ in times]
        costs = list(itertools.accumulate([0.0, *(rng.random() for _ in range(4))]))
        spans = sorted((rng.randrange(-5, 60) for _ in range(4)), reverse=True)
        price = rng.random()

        def best(
            index: int,
            times: list[int] = times,
            worth: list[float] = worth,
            costs: list[float] = costs,
            spans: list[int] = spans,
            price: float = price,
        ) -> float:
            if index == len(times):
                return 0.0
            options = [best(index + 1)]
            for size in range(1, min(4, len(times) - index) + 1):
                if times[index + size - 1] - times[index] <= spans[size - 1]:
                    gain = sum(worth[index : index + size]) - price * costs[size]
                    options.append(gain + best(index + size))
            return max(options)

        served = np.zeros(count, np.uint8)
        found, used = best_batches(
            np.array(times, np.int64),
            np.array(worth),
            np.array([0, count], np.int64),
            np.array([costs]),
            np.array([[0, *spans]], np.int64),
            price,
            served,
        )
        assert found == pytest.approx(best(0))
        assert found == pytest.approx(sum(one for one, took in zip(worth, served) if took) - price * used)


@pytest.mark.parametrize(
    "change",
    [
        {"worth": np.ones(4, np.float32)},  # an array of another type
        {"arrived_ns": np.arange(8)[::2]},  # an array that is not contiguous
        {"exec_ns": np.ones(6)},  # an array of another rank
        {"worth": np.ones(3)},  # an array of another length
        {"starts": np.array([0, 5])},  # starts that imply more requests
        {"span_ns": np.ones((2, 3), np.int64)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {
        "arrived_ns": np.arange(4), "worth": np.ones(4), "starts": np.array([0, 4]), "exec_ns": np.ones((1, 3)),
        "span_ns": np.ones((1, 3), np.int64), "price": 0.0, "served": np.zeros(4, np.uint8),
    }  # fmt: skip
    best_batches(**arrays)
    with pytest.raises(ValueError, match="array"):
        best_batches(**(arrays | change))


def test_memory_that_holds_one_model_bounds_what_two_can_do() -> None:
    """Two models in turn, room for one, and a load longer than the time between: half is out of reach."""
    cell = cells.specified("swap", "devices=1,models=2,slo=3x,gain=1,exec=4ms,fits=0.5")
    cell_pages = 7
    times = np.arange(0, 2000, 20, dtype=np.int64) * MS  # SLO of 12 ms: it does not bridge the gaps
    models = (np.arange(len(times)) % 2).astype(np.int32)
    offered = TimedArrivals(times, models, np.zeros(len(times), np.uint8))
    relaxed = bounds.Relaxation(cell, offered, 0.0, 2.0, clairvoyant=True)
    assert relaxed.hold is not None
    assert relaxed.enough(0.99 * len(times)), "with 28 pages both stay"
    relaxed.budgets[2] = cell_pages * 2e9
    assert relaxed.enough(0.99 * len(times)), "a load every 20 ms takes 8.3 of them"
    relaxed.budgets[1] = 8_320_000 * 10
    assert not relaxed.enough(0.9 * len(times))
    # One model all the time, ten loads of the other, and the requests that the first model's SLO leaves
    # uncovered.
    found = bounds.minimum(relaxed.value, relaxed.prices_max, -1.0, 1e-3)
    assert 60 <= found <= 90


def test_what_the_slo_leaves_no_room_for_is_bounded_by_nothing_served() -> None:
    cell = cells.parse("devices=1,models=1,slo=1x,gain=1")
    assert bounds.fluid_rate(cell) == 0.0
    offered = drawn(cell, 1, 20, 6.0)
    assert dual(cell, offered, clairvoyant=True, any_order=False) == pytest.approx(0.0, abs=0.1)


def test_the_rate_of_the_bound_is_near_what_one_device_can_do() -> None:
    """Exec 4 ms, no batch fits: 250 a second, plus the 1 % that may be lost."""
    cell = cells.parse("devices=1,models=1,slo=1.4x,gain=1")
    found = whole.every_bound(cell, 1, 4000, 1.0)
    assert bounds.fluid_rate(cell) == pytest.approx(252.5, rel=0.01)
    assert found["fluid"] == pytest.approx(252.5, rel=0.03)
    assert found["clairvoyant"] <= found["fluid"]


def test_a_window_of_few_bursts_may_leave_room_for_half_as_much_again() -> None:
    cell = cells.parse(
        "devices=8,models=120,slo=1.5x/2x/25x,gain=8,exec=20ms,arrivals=bursts,zipf=0.9,fits=0.4,priorities=2"
    )
    arrivals = cell.draw(7, bounds.needed_arrivals(cell, 4000, 0.0))
    assert bounds.rate_bound(cell, arrivals, 4000, 0.0, clairvoyant=True) > 1.5 * bounds.fluid_rate(cell)
