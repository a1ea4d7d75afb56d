"""Seeded load: goodput near capacity, promises kept, no model starved."""

from __future__ import annotations

import bisect
import itertools

import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.sim import Cluster, Open, simulate
from clockwork.wire.messages import Status
from clockwork.workloads import poisson, zipf
from tests.sim.harness import MS, SECOND, World, spec

PAGE = 64 << 10


def overload(
    load: float, seconds: float, seed: int = 1, noise: float = 0.05, outlier: float = 0.002
) -> World:
    """One device, one unbatched CNN of 5 ms, SLO 100 ms, Poisson at ``load`` times capacity, resident."""
    world = World(seed, noise=noise, outlier=outlier, check=False)
    world.join(jitter=30_000)
    world.ready(spec(1))
    world.request(1)
    world.run(SECOND)
    world.poisson(200 * load, SECOND + int(seconds * SECOND), lambda: world.request(1))
    world.settle()
    return world


@pytest.mark.parametrize("load", [1.2, 1.5, 3.0])
def test_overload_is_answered_at_capacity_and_promises_are_kept(load: float) -> None:
    world = overload(load, 20)
    tally = world.tally()
    admitted = len(world.requests) - tally["refused"]
    assert tally["ok"] >= 0.95 * 200 * 20, tally
    assert admitted - tally["ok"] <= 0.005 * admitted, tally
    for request_id in world.requests:
        if world.status(request_id) == Status.REFUSED:
            assert world.latency_ns(request_id) == 0, "a refusal comes at arrival"


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_below_capacity_next_to_nothing_is_refused(load: float) -> None:
    world = overload(load, 20)
    tally = world.tally()
    assert tally.get("refused", 0) <= 0.001 * len(world.requests), tally
    assert tally["ok"] >= 0.995 * len(world.requests), tally


def test_pieces_of_an_arena_turn_nobody_away() -> None:
    """Layouts of single pages beside layouts of long runs: the runs on which a load counted are often split
    by then."""
    single = [(1,) * (24 + 3 * kind) for kind in range(8)]
    long = [(9 + kind % 7, 7 + kind % 5, 6, 3, 2, 1) for kind in range(8, 20)]
    models = [
        ModelProfile(
            f"m{index}", {1: 1_200_000}, 0, 1_500_000, program="p", page_bytes=PAGE, page_count=sum(runs), runs=runs
        )
        for index, runs in enumerate((single + long) * 50)
    ]  # fmt: skip
    rates = [700 * share for share in zipf(len(models), 0.9)]
    arrivals = poisson(rates, 5 * SECOND, seed=3, slo_ns=100 * MS)
    cluster = Cluster(
        page_bytes=PAGE, page_count=2200, exec_noise=0.02, load_noise=0.1, link_jitter_ns=100_000
    )
    report = simulate(models, cluster, [Open(arrivals)], "edf", seed=3)
    assert report.loads > 1500
    assert report.bad_fraction < 0.005


def test_fifty_milliseconds_after_the_clients_left_the_device_is_idle() -> None:
    world = World(1, check=False)
    world.join()
    world.ready(spec(1))
    requests: list[int] = []
    world.poisson(400, SECOND, lambda: requests.append(world.request(1)))
    world.run(SECOND)
    for request_id in requests:
        if request_id not in world.answers:
            world.cancel(request_id)
    world.run(world.now + 50 * MS)
    [row] = world.scheduler.snapshot()["devices"]
    assert row["planned_requests"] == row["in_flight"] == 0
    assert world.workers[1].devices[0].runs is None


def test_batches_grow_with_the_load_and_multiply_the_goodput() -> None:
    """10 ms for one, 0.5 ms for each further row, up to 16: one by one 100/s, batched over 850/s."""
    world = World(2, noise=0.05, check=False)
    world.join()
    world.ready(spec(1, 10, batch_max=16, row_ms=0.5))
    world.request(1)
    world.run(SECOND)
    world.poisson(800, 6 * SECOND, lambda: world.request(1))
    world.settle()
    tally = world.tally()
    assert tally["ok"] >= 0.97 * len(world.requests), tally
    sizes = world.workers[1].devices[0].batches
    assert sum(sizes) / len(sizes) > 8


def test_a_lone_request_does_not_wait_for_company() -> None:
    world = World(2, check=False)
    world.join()
    world.ready(spec(1, 10, batch_max=16, row_ms=0.5))
    world.request(1)
    world.run(SECOND)
    one = world.request(1)
    world.settle()
    assert world.latency_ns(one) == 10 * MS + 200_000


def test_mixed_slos_of_one_model_are_each_met() -> None:
    world = World(3, noise=0.05, check=False)
    world.join()
    world.ready(spec(1))
    world.request(1)
    world.run(SECOND)
    slos = itertools.cycle([20, 100, 500])
    world.poisson(140, 11 * SECOND, lambda: world.request(1, next(slos)))
    world.settle()
    tally = world.tally()
    assert tally["ok"] >= 0.93 * len(world.requests), tally
    assert tally.get("deadline_missed", 0) <= 0.005 * len(world.requests), tally


def test_background_takes_what_is_left_and_a_share_of_a_busy_device() -> None:
    world = World(4, noise=0.02, check=False)
    world.join()
    world.ready(spec(1), spec(2))
    world.request(1)
    world.request(2)
    world.run(SECOND)
    background = [world.request(2, 0) for _ in range(300)]
    urgent: list[int] = []
    world.poisson(300, 6 * SECOND, lambda: urgent.append(world.request(1)))
    world.run(6 * SECOND)
    done = sum(one in world.answers for one in background)
    assert 0.05 * 200 * 5 <= done <= 0.15 * 200 * 5, "a tenth of a device that is never idle"
    admitted = [one for one in urgent if one in world.answers and world.status(one) != Status.REFUSED]
    assert sum(world.ok(one) for one in admitted) >= 0.995 * len(admitted)
    world.settle()
    assert all(world.ok(one) for one in background)


def test_two_devices_share_one_model_s_load() -> None:
    world = World(5, noise=0.05, check=False)
    world.join(1, [("cpu", 8, 1.0), ("cpu", 8, 1.0)])
    world.ready(spec(1))
    world.request(1)
    world.run(SECOND)
    world.poisson(380, 6 * SECOND, lambda: world.request(1))
    world.settle()
    assert world.tally()["ok"] >= 0.95 * len(world.requests)
    busy = [device.busy_ns for device in world.workers[1].devices]
    assert min(busy) > 0.8 * max(busy)


def test_forty_models_on_room_for_eight() -> None:
    world = World(6, noise=0.05, check=False)
    world.join(1, [("cpu", 80, 1.0)])
    world.ready(*(spec(m, 5, runs=(4, 3, 3), load_ms=8) for m in range(1, 41)))
    world.poisson(40, 10 * SECOND, lambda: world.request(world.random.randint(1, 40), 250))
    world.settle()
    tally = world.tally()
    assert tally["ok"] >= 0.99 * len(world.requests), tally
    assert world.counts["load"] - world.counts["unload"] <= 8


def test_a_hot_model_does_not_keep_a_cold_one_out() -> None:
    world = World(7, noise=0.05, check=False)
    world.join(1, [("cpu", 4, 1.0)])
    world.ready(spec(1, 5, runs=(4,)), spec(2, 5, runs=(4,)))
    world.request(1)
    world.run(SECOND)
    world.poisson(150, 4 * SECOND, lambda: world.request(1))
    cold: list[int] = []
    world.poisson(2, 4 * SECOND, lambda: cold.append(world.request(2)))
    world.settle()
    assert sum(world.ok(one) for one in cold) >= 0.8 * len(cold)


def test_three_thousand_models_by_zipf_on_room_for_a_twentieth() -> None:
    """20 architectures and their fine-tunes; 0.6 of capacity, 99 % within 100 ms."""
    world = World(8, noise=0.05, check=False)
    world.join(1, [("cpu", 338, 1.0)])  # pages of 1 MB; the models have 0.5 to 4
    count = 3000
    specs = [spec(m, 1 + m % 20 * 0.2, runs=(1 + m % 4,), load_ms=0.3 + m % 4 * 0.2, program=f"p{m % 20}") for m in range(1, count + 1)]  # fmt: skip
    world.ready(*specs)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    order = world.random.sample(range(1, count + 1), count)
    mean_ms = sum(specs[order[r] - 1].profile[0].exec_ns / (r + 1) for r in range(count)) / weights[-1] / MS

    def arrive() -> None:
        world.request(order[bisect.bisect_left(weights, world.random.random() * weights[-1])])

    world.poisson(0.6 * 1000 / mean_ms, 10 * SECOND, arrive)
    world.settle()
    assert sum(world.ok(one) for one in world.requests) >= 0.99 * len(world.requests), world.tally()
