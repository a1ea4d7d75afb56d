"""Random worlds, each made from a seed: a few devices, too many models, and all failures that the simulator
knows."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

from clockwork.formats.profiles import ModelProfile
from clockwork.sim.world import Closed, Cluster, Open, Report, simulate
from clockwork.workloads import Arrivals

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
PAGE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class RandomWorld:
    """A world made from a seed. calm: without failures, losses and noise."""

    seed: int
    calm: bool
    models: Sequence[ModelProfile]
    cluster: Cluster
    arrivals: Arrivals
    closed: Sequence[Closed]
    until_ns: int

    DRAIN_NS: ClassVar[int] = 600 * SECOND  # time for which answers are awaited

    def run(
        self, policy: str, memory: str = "", trace_max: int = 0, options: Mapping[str, float] | None = None
    ) -> Report:
        """Simulate the world with every check. Raises AssertionError with the seed and the time."""
        return simulate(
            self.models,
            self.cluster,
            [Open([self.arrivals]), *self.closed],
            policy=policy,
            memory=memory,
            options=options,
            seed=self.seed,
            until_ns=self.until_ns,
            drain_ns=self.DRAIN_NS,
            check=True,
            trace_max=trace_max,
        )


def random_world(seed: int, calm: bool = False) -> RandomWorld:
    """Return a world of a few devices, often too small for its models, and mixed requests for up to a
    second."""
    rng = random.Random(seed * 2 + calm)
    architectures = [_execution(rng) for _ in range(rng.randint(1, 6))]
    models = []
    for number in range(rng.randint(1, 11)):
        architecture = rng.randrange(len(architectures))
        models.append(
            ModelProfile(
                name=f"m{number}",
                exec_ns=architectures[architecture],
                weights_bytes=rng.randint(1, 6) * PAGE_BYTES,
                load_ns=int(rng.uniform(0.5, 15) * MS),
                input_bytes=rng.choice([0, 1000, 600_000]),
                program=f"p{architecture}",
                slo_ns=rng.choice([20, 50, 100, 250]) * MS,
            )
        )
    per_worker = rng.randint(1, 3)
    cluster = Cluster(
        devices=rng.randint(1, 6),
        devices_per_worker=per_worker,
        page_bytes=PAGE_BYTES,
        page_count=rng.randint(6, 20),
        run_ahead=rng.randint(1, 3),
        link_there_ns=rng.randint(20, 2000) * US,
        link_back_ns=rng.randint(20, 2000) * US,
    )
    executors = random.Random(f"executors of {seed}").choice([1, 1, 2, 3])
    cluster = dataclasses.replace(cluster, executors=executors)
    if executors > 1 and not calm:
        draw = random.Random(f"neighbours of {seed}")
        slowdown, told = draw.choice([1.0, 1.3, 2.0, 6.0]), draw.choice([0.0, 1.0, 1.0, 3.0])
        cluster = dataclasses.replace(cluster, slowdown=slowdown, slowdown_told=told)
    if not calm:
        cluster = _disturbed(cluster, rng)
    until_ns = rng.randint(200, 1000) * MS
    return RandomWorld(
        seed, calm, models, cluster, _arrivals(rng, models, until_ns, calm), _clients(rng, models), until_ns
    )


def _execution(rng: random.Random) -> dict[int, int]:
    first = rng.uniform(0.2, 8) * MS
    row = first * rng.choice([0.05, 0.2, 0.6, 1.0])
    largest = rng.choice([1, 1, 4, 16])
    points = sorted({1, 2, largest} & set(range(1, largest + 1)))
    return {batch: int(first + row * (batch - 1)) for batch in points}


def _disturbed(cluster: Cluster, rng: random.Random) -> Cluster:
    return dataclasses.replace(
        cluster,
        speeds=rng.choice([(), (), (1.0, 0.5, 2.0)]),
        exec_noise=rng.choice([0, 0.02, 0.1]),
        load_noise=rng.choice([0, 0.05]),
        outlier=rng.choice([0, 0.01]),
        outlier_factor=rng.choice([2, 10]),
        link_jitter_ns=rng.choice([0, 100, 1000]) * US,
        link_loss=rng.choice([0, 0, 0.002]),
        clock_offset_ns=rng.choice([0, SECOND]),
        clock_drift_ppm=rng.choice([0, 50]),
        crashes_per_hour=rng.choice([0, 0, 3600]),
        down_ns=rng.randint(1, 200) * MS,
        timeout_ns=rng.randint(20, 200) * MS,
        load_failures=rng.choice([0, 0, 0.1]),
        infer_failures=rng.choice([0, 0, 0.05]),
        copy_bandwidth=rng.choice([0, 0, 5_000_000_000]),
        input_bandwidth=rng.choice([0, 0, 1_250_000_000]),
        cancels=rng.choice([0, 0.05]),
    )


def _arrivals(rng: random.Random, models: Sequence[ModelProfile], until_ns: int, calm: bool) -> Arrivals:
    rate = rng.choice([100, 400, 1500])
    rows: list[tuple[int, int, int, int]] = []
    at = 0.0
    while True:
        at += rng.expovariate(rate) * SECOND
        if at >= until_ns:
            break
        model = min(int(rng.expovariate(0.5)), len(models) - 1)
        slo_ns = rng.choice([0, 5, 20, 50, 100, 250]) * MS
        rows.append((int(at), model, slo_ns, 0 if calm else rng.choice([0, 1, 4, 9])))
    t_ns, model_indexes, slos, priorities = zip(*rows) if rows else ((), (), (), ())
    return Arrivals.of(t_ns, model_indexes, slos, priorities)


def _clients(rng: random.Random, models: Sequence[ModelProfile]) -> list[Closed]:
    return [
        Closed(
            model=rng.randrange(len(models)),
            concurrency=rng.randint(1, 4),
            think_ns=rng.choice([0, 5]) * MS,
            slo_ns=rng.choice([0, 100]) * MS,
            priority=rng.choice([0, 9]),
        )
        for _ in range(rng.choice([0, 0, 1, 2]))
    ]


def varied(world: RandomWorld) -> RandomWorld:
    """Return the world with workers whose measurements differ from each other, and change when a worker
    rejoins."""
    cluster = dataclasses.replace(world.cluster, batch_maxes=(0, 1, 3), extra_pages=(0, 2))
    return dataclasses.replace(world, cluster=cluster)


def stored(world: RandomWorld) -> RandomWorld:
    """Return the world with workers whose disks hold a part of the models, often too small a part for the
    copies that there should be of each."""
    rng = random.Random(f"stores of {world.seed}")
    largest = max(model.weights_bytes for model in world.models)
    every = sum(model.weights_bytes for model in world.models)
    cluster = dataclasses.replace(
        world.cluster,
        store_bytes=max(int(rng.uniform(0.2, 0.9) * every), int(rng.uniform(0.8, 2.0) * largest)),
        store_bandwidth=rng.choice([0, 10**8, 10**9]),
        stored_copies=rng.choice([1, 2, 2, 3]),
    )
    return dataclasses.replace(world, cluster=cluster)
