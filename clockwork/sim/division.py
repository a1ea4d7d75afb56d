"""Divisions of a machine's cores, simulated: the scheduler serves the same requests with each.

choose() of scheduler/cores.py takes tens of microseconds to judge a division, and a simulation a tenth of a
second or more. So planned() simulates those divisions alone that are expected to be nearly as good as the
best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from clockwork.config import POLICY
from clockwork.config.workloads import (
    DIVISION_COUNTED_NS,
    DIVISION_NOISE,
    DIVISION_REQUESTS,
    DIVISION_WARM_UP_NS,
    DIVISIONS_NEAR,
    DIVISIONS_SIMULATED_MAX,
)
from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile
from clockwork.scheduler.cores import CoreLoad, Division, can_meet, fewest_wide, ranked
from clockwork.sim.world import Cluster, Open, WorkerShape, simulate
from clockwork.system.clock import SECOND
from clockwork.workloads import Workload, poisson


@dataclasses.dataclass(frozen=True, slots=True)
class CoreQuestion:
    """Models on the cores of a machine, and their requests."""

    # By threads of an execution, the same models in one order; None: executors of so many do not serve it
    profiles: Mapping[int, Sequence[ModelProfile | None]]
    cores: int
    cluster: Cluster  # memory, noise and links; its devices are replaced
    workload: Callable[[int], Workload]  # the requests, by seed
    slo_ns: int = 0  # of every request; 0: each model's own
    warmup_ns: int = SECOND
    policy: str = POLICY
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError for profiles that do not fit together."""
        if 1 not in self.profiles:
            raise ConfigError("the times of executions with one thread are missing")
        names = [model.name for model in self.models]
        for threads, found in self.profiles.items():
            if [name if model is None else model.name for name, model in zip(names, found)] != names or (
                len(found) != len(names)
            ):
                raise ConfigError(f"the models with 1 and with {threads} threads are not the same")
            if threads > self.cores:
                raise ConfigError(f"an execution of {threads} threads has at most {self.cores} cores")

    @property
    def models(self) -> list[ModelProfile]:
        """The models, with their times with one thread."""
        return [model for model in self.profiles[1] if model is not None]

    def slo_of(self, model: ModelProfile) -> int:
        return self.slo_ns or model.slo_ns

    def serves(self, threads: int, name: str) -> bool:
        """Whether executions of so many threads can meet the SLO of the model of this name."""
        return any(model is not None and model.name == name for model in self._served(threads))

    def loads(self, seed: int) -> list[CoreLoad]:
        """Return the models' loads, with the rates at which this seed's requests arrive."""
        models = self.models
        workload = self.workload(seed)
        counts = np.zeros(len(models), np.int64)
        for chunk in workload:
            counts += np.bincount(chunk.model, minlength=len(models))
        return [
            CoreLoad(
                model.name,
                {
                    threads: dict(other.exec_ns)
                    for threads, others in self.profiles.items()
                    if (other := others[place]) is not None
                },
                self.slo_of(model),
                int(counts[place]) * SECOND / workload.duration_ns,
            )
            for place, model in enumerate(models)
        ]

    def goodput(self, division: Division, seeds: Sequence[int]) -> float:
        """Return the good answers per second of a division, over these seeds, by simulation."""
        models = self.models
        if self.slo_ns:
            models = [dataclasses.replace(model, slo_ns=self.slo_ns) for model in models]
        shapes = []
        if division.narrow:
            shapes.append(WorkerShape(division.narrow, division.narrow, self._served(1)))
        if division.wide:
            shapes.append(WorkerShape(division.wide, 1, self._served(division.threads)))
        cluster = dataclasses.replace(self.cluster, workers=tuple(shapes))
        good = span_ns = 0
        for seed in seeds:
            workload = self.workload(seed)
            report = simulate(
                models, cluster, [Open(workload)], self.policy, options=self.options, seed=seed,
                warmup_ns=self.warmup_ns, until_ns=workload.duration_ns, resident=True,
            )  # fmt: skip
            good += int(report.good.sum())
            span_ns += report.span_ns
        return good * SECOND / span_ns

    def _served(self, threads: int) -> tuple[ModelProfile | None, ...]:
        """Return the profiles of a worker of so many threads; None: it does not meet the model's SLO."""
        return tuple(
            model if model is not None and can_meet(model.exec_ns, self.slo_of(model)) else None
            for model in self.profiles[threads]
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedDivision:
    """A division with the simulations that support it."""

    division: Division
    goodput: float  # good answers per second, simulated
    expected: Mapping[Division, float]  # the goodput to expect of every division that serves the most models
    simulated: Mapping[Division, float]  # the goodput of those that were simulated
    narrow_only: float | None  # the goodput of executors of one core alone; None: they do not serve as many


def planned(
    question: CoreQuestion,
    seeds: Sequence[int],
    tell: Callable[[str], None] = lambda line: None,
    most_wide: int | None = None,
) -> PlannedDivision:
    """Return the division of a machine's cores with the highest simulated goodput; of those that are as high,
    that with the fewest cores in wide executors.

    tell: called with a line for each simulation. most_wide: as of ranked().
    """
    question.check()
    found = ranked(question.loads(seeds[0]), question.cores, most_wide)
    best = max(expected for _, expected in found)
    near = [row for row in found if row[1] * DIVISIONS_NEAR >= best]
    near = sorted(sorted(near, key=lambda row: -row[1])[:DIVISIONS_SIMULATED_MAX], key=found.index)
    if found[0] not in near:
        near.insert(0, found[0])  # the fewest wide executors, with which the others are compared
    rows = []
    for division, expected in near:
        goodput = question.goodput(division, seeds)
        tell(f"{division}: {goodput:.5g} requests/s in time, {expected:.5g} expected")
        rows.append((division, goodput))
    chosen = fewest_wide(rows)
    simulated = dict(rows)
    alone = simulated.get(Division(question.cores))
    return PlannedDivision(chosen, simulated[chosen], dict(found), simulated, alone)


def planned_for(loads: Sequence[CoreLoad], cores: int, most_wide: int) -> Division:
    """Return the division for loads as a launcher knows them.

    Models' sizes are unknown, and all are taken to be in every arena. Arrivals are Poisson's.
    """
    rates = [load.rate for load in loads]
    if not sum(rates):
        return fewest_wide(ranked(loads, cores, most_wide))
    widths = sorted({threads for load in loads for threads in load.exec_ns if threads <= max(most_wide, 1)})
    counted_ns = min(DIVISION_COUNTED_NS, round(DIVISION_REQUESTS / sum(rates) * SECOND))
    question = CoreQuestion(
        {
            threads: [
                ModelProfile(str(place), dict(load.exec_ns[threads]), 1, 1, slo_ns=load.slo_ns or SECOND)
                if threads in load.exec_ns
                else None
                for place, load in enumerate(loads)
            ]
            for threads in widths
        },
        cores,
        Cluster(page_count=len(loads), exec_noise=DIVISION_NOISE),
        lambda seed: poisson(rates, DIVISION_WARM_UP_NS + counted_ns, seed=seed),
        warmup_ns=DIVISION_WARM_UP_NS,
    )
    return planned(question, [1], most_wide=most_wide).division


__all__ = ["CoreQuestion", "PlannedDivision", "planned", "planned_for"]
