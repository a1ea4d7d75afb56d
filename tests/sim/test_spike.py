"""Goodput in every window of 50 ms of a spike, and after it (bench/spike.py), in simulated clusters."""

from __future__ import annotations

import numpy as np
import pytest

from bench.spike import (
    AFTER_KEPT,
    FIRST,
    LIVE_DEVICES,
    LIVE_MODELS,
    LIVE_SLO_NS,
    LOAD,
    SHAPES,
    SPIKE_KEPT,
    WINDOW_NS,
    Times,
    arrivals,
    cell_of,
    costs,
    emulated_profiles,
    simulated,
    used,
)
from clockwork.formats.profiles import linear
from clockwork.sim.world import Cluster, Open, simulate
from clockwork.system.clock import MS, SECOND


# While a spike lasted, the first two gave up too little of their backlog for full batches, because the need
# was that of the admitted requests alone. In the others all models counted as modest for half a second and
# gave nothing up, because their demand was counted over two seconds.
@pytest.mark.parametrize("shape", ["one-low-25", "one-high-100", "many-zipf-100", "zoo-250"])
def test_a_spike_is_served_at_capacity_from_its_second_window_on(shape: str) -> None:
    for seed in range(2):
        found = simulated(cell_of(shape), "adaptive", seed)
        assert found.spike[FIRST:].min() >= SPIKE_KEPT, (seed, found.spike.round(3))


# Plans were filled with batches of single requests, which had no time to let any of them grow.
@pytest.mark.parametrize("shape", ["one-low-25", "one-high-250", "few-high-250", "many-low-25"])
def test_edf_serves_a_spike_at_capacity_as_well(shape: str) -> None:
    for seed in range(2):
        found = simulated(cell_of(shape), "edf", seed)
        assert found.spike[FIRST:].min() >= SPIKE_KEPT, (seed, found.spike.round(3))


# Each batch was chosen so that it could just begin in time. A message that was later than the last six pings
# came too late with it, and so did the next, for which the idle device waited: 45 of 586 batches, a twelfth
# of the capacity.
@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_a_spike_over_links_that_vary_is_served_as_over_others(policy: str) -> None:
    models, times = emulated_profiles(), Times()
    rate = LIVE_DEVICES * SECOND / float(costs(models, LIVE_SLO_NS, LIVE_DEVICES).row_ns.mean())
    offered = arrivals(
        LOAD * rate, [1 / LIVE_MODELS] * LIVE_MODELS, [[LIVE_SLO_NS]] * LIVE_MODELS, times, 27, spike=True
    )
    even, uneven = (
        simulate(
            models,
            Cluster(
                devices=LIVE_DEVICES,
                devices_per_worker=LIVE_DEVICES,
                link_jitter_ns=jitter_ns,
                ping_ns=250 * MS,
            ),
            [Open([offered])],
            policy=policy,
            resident=True,
            seed=27,
        )
        for jitter_ns in (10_000, 5 * MS)
    )
    assert uneven.too_late == 0
    assert uneven.classes.good.sum() > 0.97 * even.classes.good.sum()


# Requests after a spike were refused because their model's queue was still at its bound, or because the mean
# arrivals of the last seconds were still above all devices, or because a device was still divided.
@pytest.mark.parametrize(
    ("policy", "shape"),
    [
        ("adaptive", "one-none-25"),
        ("adaptive", "few-high-100"),
        ("adaptive", "few-high-250"),
        ("adaptive", "many-mid-250"),
        ("edf", "many-zipf-100"),
        ("edf", "zoo-100"),
        ("edf", "zoo-250"),
    ],
)
def test_nothing_is_refused_after_a_spike(policy: str, shape: str) -> None:
    runs = [simulated(cell_of(shape), policy, seed) for seed in range(4)]
    good, offered = (sum(getattr(run, name)[FIRST:].sum() for run in runs) for name in ("good", "offered"))
    assert good >= AFTER_KEPT * offered, f"{offered - good} of {offered}"
    assert all((run.quiet_good == run.quiet_offered).all() for run in runs)


def test_every_shape_is_a_cell_with_a_capacity() -> None:
    for shape in SHAPES:
        cell = cell_of(shape)
        assert cell.resident, shape


def test_capacity_is_of_models_that_take_turns() -> None:
    models = [linear(f"m{index}", MS, 9 * MS, 16) for index in range(3)]
    alone = costs(models[:1], 50 * MS, devices=1)  # a request waits for one batch, and is in the next
    assert (alone.batch_ns[0], alone.row_ns[0]) == (25 * MS, 25 * MS / 16)
    turns = costs(models, 50 * MS, devices=1)  # four batches in 50 ms
    assert (turns.batch_ns[0], turns.row_ns[0]) == (12 * MS, 12 * MS / 3)


def test_an_execution_counts_evenly_over_its_time() -> None:
    begin_ns, end_ns = np.array([WINDOW_NS // 2]), np.array([3 * WINDOW_NS // 2])
    found = used(np.array([float(WINDOW_NS)]), begin_ns, end_ns, 0, 3 * WINDOW_NS, devices=2)
    assert found.tolist() == [0.25, 0.25, 0.0]
