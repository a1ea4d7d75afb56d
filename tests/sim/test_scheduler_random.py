"""Seeded random worlds: all invariants hold, and every promise is kept or its failure explained."""

from __future__ import annotations

import random

import pytest

from clockwork.scheduler._core import POLICIES
from clockwork.scheduler.types import DeviceClock
from clockwork.wire.messages import Status
from tests.sim.harness import MS, SECOND, SHAPE, US, SimulatedDevice, World, spec

BIG = ((3, 16, 16),)
HUGE = ((3, 512, 512),)


def random_world(seed: int, calm: bool, policy: str = "edf") -> World:
    """A few workers, more models than memory, mixed requests. calm: nothing fails, joins or leaves."""
    rng = random.Random(seed * 2 + calm)
    world = World(seed, noise=0.0 if calm else 0.05, outlier=0.0 if calm else 0.01, policy=policy)
    jitter = 0 if calm else 300 * US
    for worker_id in range(1, rng.randint(2, 4)):
        devices = [("cpu", rng.randint(6, 14), 1.0) for _ in range(rng.randint(1, 2))]
        world.join(worker_id, devices, rng.randint(20, 2000) * US, rng.randint(20, 2000) * US, jitter)
    models = []
    for model_id in range(1, rng.randint(2, 12)):
        runs = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 3)))
        models.append(
            spec(model_id, rng.uniform(0.2, 8), rng.choice([1, 1, 4, 16]), rng.uniform(0.05, 0.2), runs, rng.uniform(0.5, 15))
        )  # fmt: skip
    world.ready(*models)
    if not calm:
        world.load_failures, world.infer_failures = rng.choice([0, 0.1]), rng.choice([0, 0.05])
    until = world.now + rng.randint(200, 600) * MS

    def arrive() -> None:
        model = models[min(int(rng.expovariate(0.5)), len(models) - 1)]
        slo = rng.choice([5, 20, 50, 100, 100, 250])
        shape = SHAPE
        if not calm:
            slo = rng.choice([slo, slo, slo, slo, 0])
            shape = rng.choice([SHAPE] * 12 + [BIG, HUGE])
        rows = rng.choice([1, 1, 1, 2, 20]) if model.batches else 1
        request = world.request(model.model_id, slo, 4 if calm else rng.choice([1, 4, 4, 9]), rows, shape)
        if not calm and rng.random() < 0.05:
            world.at(world.now + rng.randrange(40 * MS), world.cancel, request)
        if not calm and rng.random() < 0.01:
            world.poison[request] = None

    world.poisson(rng.choice([100, 400, 1000]), until, arrive)
    if not calm:
        disturb(world, rng, models, until)
    return world


def disturb(world: World, rng: random.Random, models: list, until: int) -> None:
    """Workers leave, drain and come back; models are removed."""
    fresh = [100]

    def leave() -> None:
        alive = [w for w, worker in world.workers.items() if not worker.dead]
        if alive:
            world.leave(rng.choice(alive))

    def drain() -> None:
        alive = [w for w, worker in world.workers.items() if not worker.dead]
        if alive:
            chosen = rng.choice(alive)
            world.drain(chosen)
            world.at(world.now + 50 * MS, lambda: world.workers[chosen].dead or world.leave(chosen))

    def join() -> None:
        fresh[0] += 1
        world.join(fresh[0], [("cpu", rng.randint(6, 14), 1.0)])
        world.ready(*models, workers=[fresh[0]])

    def remove() -> None:
        if len(models) > 1:
            world.remove(models.pop(rng.randrange(len(models))).model_id)

    for _ in range(rng.randint(0, 5)):
        world.at(rng.randrange(world.now, until), rng.choice([leave, drain, join, join, remove]))
    world.at(until, join)  # so that remaining requests can be served


def register(world: World, seed: int, until: int) -> None:
    """Workers prepare models on their devices: they need the devices' time, a few milliseconds at once, and
    some pages; now and then the model is forgotten meanwhile."""
    rng = random.Random(seed)

    def begin() -> None:
        alive = [worker for worker in world.workers.values() if not worker.dead]
        if alive:
            device = rng.choice(rng.choice(alive).devices)
            runs = tuple(rng.randint(1, 3) for _ in range(rng.randint(0, 2)))
            go_on(device, rng.randint(500, 600), runs, rng.randint(1, 12))

    def go_on(device: SimulatedDevice, model_id: int, runs: tuple[int, ...], count: int) -> None:
        is_over = count == 0 or rng.random() < 0.03
        device.want(
            model_id, 0 if is_over else rng.choice([1, 2, 2, 2, 5, 10, 40]) * MS, () if is_over else runs
        )
        if not is_over:
            world.at(
                world.now + rng.choice([1, 5, 20, 60, 300]) * MS, go_on, device, model_id, runs, count - 1
            )

    for _ in range(12):
        world.at(rng.randrange(world.now, until), begin)


@pytest.mark.parametrize("policy", POLICIES)
def test_any_world_balances_while_models_are_registered(policy: str) -> None:
    reserves = 0
    for seed in range(2000, 2030):
        world = random_world(seed, calm=seed % 3 == 0, policy=policy)
        register(world, seed, 400 * MS)
        try:
            world.settle()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        reserves += world.counts["reserve"]
    assert reserves > 200


@pytest.mark.parametrize("block", range(10))
def test_any_world_balances(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        world = random_world(seed, calm=False)
        try:
            world.settle()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        for request_id, answer in world.answers.items():
            assert world.sent.get(request_id, 0) <= 4, (
                f"seed {seed}: request {request_id} was sent without end"
            )
            if request_id in world.poison:
                assert world.status(request_id) != Status.OK, f"seed {seed}: {answer}"


@pytest.mark.parametrize("block", range(10))
def test_what_was_admitted_in_a_calm_world_is_answered_in_time(block: int) -> None:
    """Every promise is kept while memory suffices; a few are broken where models evict each other without
    end."""
    admitted = missed = 0
    for seed in range(block * 20, block * 20 + 20):
        world = random_world(seed, calm=True)
        try:
            world.settle()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        tally = world.tally()
        assert set(tally) <= {"ok", "refused", "deadline_missed"}, f"seed {seed}: {tally}"
        if not world.counts["unload"]:
            assert "deadline_missed" not in tally, f"seed {seed}: {tally}"
        admitted += sum(tally.values()) - tally.get("refused", 0)
        missed += tally.get("deadline_missed", 0)
    assert admitted > 1000
    assert missed <= admitted * 0.01, f"{missed} of {admitted} promises were broken"


@pytest.mark.parametrize("policy", POLICIES)
def test_any_world_balances_where_devices_are_lost_and_slowed(policy: str) -> None:
    lost = 0
    for seed in range(1000, 1030):
        world = random_world(seed, calm=False, policy=policy)
        rng = random.Random(seed)
        world.join(50, [("cpu", rng.randint(6, 14), 1.0) for _ in range(4)])
        world.ready(*world.specs.values(), workers=[50])

        def disturb_one(world: World = world, rng: random.Random = rng) -> None:
            worker_id = rng.choice(list(world.workers))
            worker = world.workers[worker_id]
            index = rng.randrange(len(worker.devices))
            if worker.dead or worker.devices[index].gone:
                return
            if rng.random() < 0.5:
                worker.lose(index)
            else:
                world.step(DeviceClock(world.now, worker_id, index, rng.choice([900, 1400, 1980])))

        for _ in range(12):
            world.at(rng.randrange(400 * MS), disturb_one)
        try:
            world.settle()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        lost += sum(device.gone for worker in world.workers.values() for device in worker.devices)
    assert lost > 30


def test_the_same_seed_is_the_same_trace() -> None:
    traces = []
    for _ in range(2):
        world = random_world(7, calm=False)
        world.settle()
        traces.append(world.trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 100


def test_removed_models_are_gone_in_the_end() -> None:
    world = World(3)
    world.join()
    world.ready(spec(1), spec(2))
    for _ in range(20):
        world.request(1)
        world.request(2, 0)
    world.run(world.now + 12 * MS)
    world.remove(1)
    world.remove(2)
    assert world.status(world.request(1)) == Status.REFUSED
    world.settle()
    assert sorted(world.gone) == [1, 2]
    tally = world.tally()
    assert tally["ok"] + tally["refused"] == 41, tally
    assert tally["ok"] >= 30, tally
    assert world.now < 1 * SECOND
