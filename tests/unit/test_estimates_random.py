"""Estimates under random histories: a single outlier, of any size and at any place, moves nothing; a real
shift is followed within twenty actions. For executions and for loads. A failing seed is in the test's name.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from clockwork.scheduler._core import Curve, LoadEstimates

MS = 1_000_000
SEEDS = range(60)
ACTIONS_MAX = 20
NOISE = 0.02
"""Half the width of the range over which every sample varies."""

RAISED, LOWERED = 0.01, 0.03
"""A change of an execution's estimate is published when it is larger than this."""

Thing = tuple[Callable[[int], object], Callable[[], int]]
"""A function that takes a measurement, and a function that returns the estimate."""


def execution(rng: random.Random, base_ns: int) -> Thing:
    """The time of a batch whose neighbours are known from the profile alone."""
    made = Curve()
    batch = rng.choice((1, 2, 4, 8))
    made.seed(batch, base_ns)
    if batch > 1 and rng.random() < 0.5:
        made.seed(1, max(1, base_ns // 100))
    return lambda ns: made.measure(batch, ns), lambda: made.exec_ns(batch)


def load(rng: random.Random, base_ns: int) -> Thing:
    """The time of a load, among other models of the same kind of device."""
    made = LoadEstimates()
    for other in range(rng.randrange(4)):
        made.measure(100 + other, 3 * MS, 2, noisy(rng, 3 * MS))
    pages = rng.randint(1, 40)
    return (
        lambda ns: made.measure(1, base_ns, pages, ns),
        lambda: made.load_ns(1, base_ns, pages),
    )


THINGS = {"execution": execution, "load": load}


def noisy(rng: random.Random, base_ns: int) -> int:
    return round(base_ns * rng.uniform(1 - NOISE, 1 + NOISE))


def duration(rng: random.Random) -> int:
    """Durations from 10 us to 1 s, with all orders of magnitude alike."""
    return round(10_000 * 10 ** rng.uniform(0, 5))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("thing", THINGS)
def test_one_outlier_of_any_size_moves_nothing(thing: str, seed: int) -> None:
    rng = random.Random(seed)
    base_ns = duration(rng)
    measure, estimate = THINGS[thing](rng, base_ns)
    samples = [noisy(rng, base_ns) for _ in range(rng.randint(2, 40))]
    for ns in samples:
        measure(ns)
    low, high = base_ns * (1 - NOISE - RAISED), base_ns * (1 + NOISE + LOWERED)
    assert low <= estimate() <= high
    measure(max(1, round(base_ns * 10 ** rng.uniform(-4, 4))))
    for _ in range(ACTIONS_MAX):  # while it is remembered, and when it is forgotten
        assert low <= estimate() <= high
        measure(noisy(rng, base_ns))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("thing", THINGS)
def test_a_real_shift_is_followed_within_twenty_actions(thing: str, seed: int) -> None:
    rng = random.Random(seed)
    base_ns = duration(rng)
    measure, estimate = THINGS[thing](rng, base_ns)
    for _ in range(rng.randint(2, 40)):
        measure(noisy(rng, base_ns))
    shifted_ns = round(base_ns * 10 ** rng.choice((rng.uniform(-1, -0.05), rng.uniform(0.05, 1))))
    for _ in range(ACTIONS_MAX):
        measure(noisy(rng, shifted_ns))
    assert shifted_ns * (1 - NOISE - RAISED) <= estimate() <= shifted_ns * (1 + NOISE + LOWERED) + 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slower_machine_is_noticed_for_models_that_were_never_loaded_on_it(seed: int) -> None:
    """Loads that all take a factor longer than their profiles change the prediction of the next model's; a
    single one does not."""
    rng = random.Random(seed)
    made = LoadEstimates()
    factor = rng.uniform(1.2, 4.0)
    profiles = [duration(rng) for _ in range(ACTIONS_MAX)]
    made.measure(0, profiles[0], 4, profiles[0])
    made.measure(1, profiles[1], 4, profiles[1])
    made.measure(2, profiles[2], 4, round(profiles[2] * 1000))
    assert made.load_ns(99, 7 * MS, 4) == pytest.approx(7 * MS, rel=0.01), "one slow load is an outlier"
    for model, profile_ns in enumerate(profiles):
        made.measure(10 + model, profile_ns, 4, round(profile_ns * factor))
    assert made.load_ns(99, 7 * MS, 4) == pytest.approx(7 * MS * factor, rel=0.01)
