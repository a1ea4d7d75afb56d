"""Tests whether a policy recovers after a disturbance: no learnt state may outlive its cause.

``python -m clockwork.sim.recovery --seeds 300`` makes a world of each seed: some models, devices and workers,
open or closed traffic, pings over links that also carry inputs, and a disturbance of a tenth of a second to
five seconds. Good answers from RECOVERED_NS after its end on are compared with those of the same world
without disturbance, in the same time. A policy has recovered if it reaches GOODPUT_KEPT of them. Only this
test catches a policy that learns a wrong estimate during a disturbance, and then avoids the actions that
would correct the estimate.

Some worlds have less goodput at times without any disturbance: overloaded clients that retry fluctuate by a
third from second to second, closed loops slow down by themselves, and models that were lost with their
workers are loaded again where they are needed, not wherever they fit. So a world that has not recovered is
simulated again undisturbed: begun with empty devices, and VARIED times with other noise (closed loops, which
may have none: in the time of so many counts). Where the least of these counts is kept, the disturbance is not
the cause. Such worlds are counted as "by itself", apart from the recovered ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from clockwork.formats.profiles import ModelProfile, linear
from clockwork.scheduler import POLICIES
from clockwork.sim.check import policy_name
from clockwork.sim.world import Closed, Cluster, Disturbance, Open, SimulatedWorkload, simulate
from clockwork.workloads import Arrivals

MS, SECOND = 1_000_000, 1_000_000_000

RECOVERED_NS = 2 * SECOND  # Time after the end of a disturbance by which a policy must have recovered

GOODPUT_KEPT = 0.95
"""Part of the undisturbed world's good answers that must be kept, less a standard deviation of that count."""

VARIED = 20  # Further runs, or times, of an undisturbed world, which show how much it varies
HELD = ("adaptive", "edf")  # Policies that must recover. All others are measured for comparison.
SLICE_NS = 100 * MS
NOISE_STEP = 1_000_000  # between the seeds of one world's runs; above the number of worlds
PAGE_BYTES = 16 << 20
# bound per second of open traffic and of the devices' capacity, which limits the cost of a seed
REQUESTS_RATE_MAX = 3000.0

KINDS = ("execution", "load", "inputs", "link", "stop", "controller", "clock", "burst", "estimates")
"""Kinds of disturbances: those of Cluster.disturbances, a burst of requests beyond capacity, and wrong
profiles."""

DRIFT = "drift"
"""A kind that runs only on request: executions slower by 1.15 to 2, below the threshold of any rule for
outliers."""


@dataclasses.dataclass(frozen=True)
class DisturbedWorld:
    """A world with its disturbance, made from a seed."""

    seed: int
    kind: str
    models: Sequence[ModelProfile]
    cluster: Cluster
    disturbed: Cluster
    usual: Sequence[SimulatedWorkload]
    burst: Sequence[SimulatedWorkload]
    end_ns: int  # end of the disturbance
    sentence: str

    WARM_UP_NS: ClassVar[int] = 2 * SECOND
    COUNTED_NS: ClassVar[int] = 3 * SECOND

    @property
    def is_closed(self) -> bool:
        return all(isinstance(workload, Closed) for workload in self.usual)

    def good(self, policy: str, disturbed: bool) -> int:
        """Return the good answers in the counted time."""
        return int(self._series(policy, disturbed).sum())

    def _series(
        self,
        policy: str,
        disturbed: bool,
        more_ns: int = 0,
        resident: bool = True,
        noise: int = 0,
    ) -> npt.NDArray[np.int64]:
        """Return the good answers in each slice of the counted time, and of more_ns after it.

        resident: begin with as many copies of the models on the devices as fit, else with none. noise: number
        of the run, for the noise of executions, loads and links alone.
        """
        begin_ns = self.end_ns + RECOVERED_NS
        report = simulate(
            self.models,
            self.disturbed if disturbed else self.cluster,
            [*self.usual, *(self.burst if disturbed else ())],
            policy=policy,
            seed=self.seed + noise * NOISE_STEP,
            until_ns=begin_ns + self.COUNTED_NS + more_ns,
            resident=resident,
            series_ns=SLICE_NS,
        )
        first = -(-begin_ns // SLICE_NS)
        return report.series["good"][first : first + (self.COUNTED_NS + more_ns) // SLICE_NS]

    def least_undisturbed(self, policy: str) -> int:
        """Return the least good answers of the undisturbed world, begun empty or at other times or noise."""
        counts = [int(self._series(policy, False, resident=False).sum())]
        if self.is_closed:
            series = self._series(policy, False, more_ns=VARIED * self.COUNTED_NS)
            length = self.COUNTED_NS // SLICE_NS
            counts.append(int(np.convolve(series, np.ones(length, np.int64), "valid").min()))
        else:  # open arrivals end
            counts += [
                int(self._series(policy, False, noise=number).sum()) for number in range(1, VARIED + 1)
            ]
        return min(counts)


@dataclasses.dataclass(frozen=True)
class PolicyGoodput:
    """The goodput of a policy in a scenario."""

    seed: int
    kind: str
    policy: str
    good: int
    usual: int
    sentence: str
    least: int = 0  # least good answers of the undisturbed world, if it has not recovered

    @property
    def kept(self) -> float:
        return self.good / self.usual if self.usual else 1.0

    @property
    def has_recovered(self) -> bool:
        return self._reaches(self.usual)

    @property
    def is_by_itself(self) -> bool:
        """Whether it has not recovered, and serves as much as the undisturbed world at its least."""
        return not self.has_recovered and self._reaches(self.least)

    def _reaches(self, count: int) -> bool:
        return self.good >= GOODPUT_KEPT * count - math.sqrt(count)

    def __str__(self) -> str:
        least = "" if self.has_recovered else f", at least {self.least} undisturbed"
        return (
            f"{self.policy}, seed {self.seed}: {self.good} good answers where {self.usual} are usual{least};"
            f" {self.sentence}"
        )


def scenario(seed: int, kind: str = "") -> DisturbedWorld:
    """Return the scenario of a seed. kind: its disturbance; "": chosen by the seed in turn."""
    rng = random.Random(seed)
    kind = kind or KINDS[seed % len(KINDS)]
    devices = rng.choice([1, 2, 4, 8])
    needs_loads = kind == "load" or rng.random() < 0.2
    models = _models(rng, rng.choice([4, 8]) if needs_loads else rng.choice([1, 2, 4, 8]), devices)
    cluster = Cluster(
        devices=devices,
        devices_per_worker=rng.choice([1, 2, devices]),
        page_bytes=PAGE_BYTES,
        page_count=max(1, len(models) // 2) if needs_loads else len(models),
        link_there_ns=rng.choice([50_000, 200_000]),
        link_back_ns=rng.choice([50_000, 200_000]),
        link_jitter_ns=rng.choice([0, 100_000]),
        io_bandwidth=rng.choice([0, 2_000_000_000, 4_000_000_000]),
        input_bandwidth=rng.choice([0, 1_250_000_000, 3_000_000_000]),
        clock_offset_ns=SECOND if kind == "clock" else 0,
        down_ns=100 * MS,
        exec_noise=rng.choice([0, 0.02]),
        ping_ns=250 * MS,
    )
    capacity = min(devices * _row_rate(models[0]), REQUESTS_RATE_MAX)
    ways = [bandwidth for bandwidth in (cluster.io_bandwidth, cluster.input_bandwidth) if bandwidth]
    if ways and models[0].input_bytes:
        capacity = min(capacity, 0.7 * min(ways) / models[0].input_bytes)
    length_ns = int(math.exp(rng.uniform(math.log(0.1), math.log(5))) * SECOND)
    begin_ns = DisturbedWorld.WARM_UP_NS
    factor = 10 ** rng.uniform(1, 3)
    end_ns = begin_ns + length_ns
    until_ns = end_ns + RECOVERED_NS + DisturbedWorld.COUNTED_NS
    usual, traffic = _traffic(rng, models, capacity, until_ns)
    burst: list[SimulatedWorkload] = []
    disturbed = cluster
    if kind == "burst":
        factor = rng.uniform(2, 10)
        burst = [Open([_poisson(rng, len(models), factor * capacity, begin_ns, end_ns)])]
    elif kind == "estimates":
        factor = rng.choice([0.1, 10.0])
        disturbed = dataclasses.replace(cluster, profiled=factor, load_profiled=factor)
        end_ns = 0
    else:
        if kind == "clock":
            factor = rng.choice([1, 100, 10_000]) * MS
        elif kind == DRIFT:
            factor = rng.uniform(1.15, 2)
        worker = rng.choice([-1, -1, 0])
        disturbance = Disturbance("execution" if kind == DRIFT else kind, begin_ns, end_ns, factor, worker)
        disturbed = dataclasses.replace(cluster, disturbances=[disturbance])
    sentence = (
        f"{kind} by {factor:.3g} for {length_ns / SECOND:.2f} s; {len(models)} models, {devices} devices, "
        f"{traffic}, SLO {models[0].slo_ns // MS} ms, inputs {models[0].input_bytes} B"
    )
    return DisturbedWorld(seed, kind, models, cluster, disturbed, usual, burst, end_ns, sentence)


def _models(rng: random.Random, count: int, devices: int) -> list[ModelProfile]:
    row_ns = rng.uniform(0.1, 2) * MS
    base_ns = row_ns * rng.choice([0.2, 2, 10])
    batch_max = rng.choice([1, 8, 16, 32])
    rate = devices * batch_max / (row_ns * batch_max + base_ns) * SECOND
    slower = max(1.0, rate / REQUESTS_RATE_MAX)
    row_ns, base_ns = row_ns * slower, base_ns * slower
    slo_ns = max(rng.choice([25, 50, 100, 250, 2000]) * MS, int(4 * (row_ns + base_ns)))
    input_bytes = rng.choice([0, 48_000, 602_112])
    return [
        linear(
            f"m{number}", int(row_ns), int(base_ns), batch_max, weights_bytes=PAGE_BYTES, load_ns=2 * MS,
            input_bytes=input_bytes, slo_ns=slo_ns, program="p",
        )
        for number in range(count)
    ]  # fmt: skip


def _row_rate(model: ModelProfile) -> float:
    """Return the requests per second of a device, in batches that take a quarter of the SLO."""
    sizes = [b for b in range(1, model.largest_batch() + 1) if model.execution_ns(b) <= model.slo_ns // 4]
    rows = max(sizes, default=1)
    return rows * SECOND / model.execution_ns(rows)


def _traffic(
    rng: random.Random, models: Sequence[ModelProfile], capacity: float, until_ns: int
) -> tuple[list[SimulatedWorkload], str]:
    if rng.random() < 0.6:
        load = rng.choice([0.3, 0.6, 0.8, 1.2])
        rate = max(load * capacity, 50.0)
        return [
            Open([_poisson(rng, len(models), rate, 0, until_ns)])
        ], f"{rate:.0f}/s ({load:.1f} of capacity)"
    in_flight = rng.choice([1, 4, 64, 512, 4096])
    asked = models[: min(in_flight, len(models))]
    # refused clients retry, which must not dominate the simulation
    round_trip_ns = max(MS, in_flight * 50_000)
    clients: list[SimulatedWorkload] = [
        Closed(number, concurrency=in_flight // len(asked), round_trip_ns=round_trip_ns)
        for number in range(len(asked))
    ]
    return clients, f"{in_flight} in flight"


def _poisson(rng: random.Random, models: int, rate: float, from_ns: int, until_ns: int) -> Arrivals:
    draws = np.random.default_rng(rng.getrandbits(32))
    count = int(draws.poisson(rate * (until_ns - from_ns) / SECOND))
    times = np.sort(draws.integers(from_ns, until_ns, count))
    return Arrivals.of(times, draws.integers(0, models, count), np.zeros(count), np.zeros(count))


def outcomes(policies: Sequence[str], seeds: Sequence[int], kind: str = "") -> Iterator[PolicyGoodput]:
    """Yield the outcome of each policy with each seed. kind: as in scenario()."""
    for seed in seeds:
        world = scenario(seed, kind)
        for policy in policies:
            good, usual = world.good(policy, disturbed=True), world.good(policy, disturbed=False)
            outcome = PolicyGoodput(seed, world.kind, policy, good, usual, world.sentence)
            if not outcome.has_recovered:
                outcome = dataclasses.replace(outcome, least=world.least_undisturbed(policy))
            yield outcome


def main() -> int:
    """Run the command. Returns 1 if a policy that must recover (HELD) is stuck in a world, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m clockwork.sim.recovery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds (default 100)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--policy", type=policy_name, action="append", help="only these (default: all native ones)"
    )
    parser.add_argument(
        "--kind", choices=(*KINDS, DRIFT), help="only seeds whose turn is this disturbance; drift: every seed"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    policies = arguments.policy or list(POLICIES)
    seeds: Sequence[int] = range(arguments.first, arguments.first + arguments.seeds)
    kind = arguments.kind if arguments.kind == DRIFT else ""
    if arguments.kind in KINDS:
        seeds = [seed for seed in seeds if KINDS[seed % len(KINDS)] == arguments.kind]
    found: list[PolicyGoodput] = []
    for outcome in outcomes(policies, seeds, kind):
        found.append(outcome)
        if not outcome.has_recovered and not arguments.json:
            print(outcome, flush=True)
    rows = [_row(found, policy, kind) for policy in policies for kind in (*KINDS, DRIFT)]
    rows = [row for row in rows if row["seeds"]]
    if arguments.json:
        print(json.dumps({"rows": rows, "outcomes": [dataclasses.asdict(outcome) for outcome in found]}))
    else:
        for row in rows:
            print(
                f"{row['policy']:9} {row['kind']:10} {row['recovered']:4} of {row['seeds']:4} recovered, "
                f"{row['by_itself']} by itself, least kept {row['least_kept']:.3f}"
            )
    return 1 if any(is_stuck(outcome) for outcome in found) else 0


def is_stuck(outcome: PolicyGoodput) -> bool:
    """Whether a policy that must recover keeps less than the undisturbed world has at its least."""
    return outcome.policy in HELD and not (outcome.has_recovered or outcome.is_by_itself)


def _row(found: Sequence[PolicyGoodput], policy: str, kind: str) -> dict[str, Any]:
    chosen = [outcome for outcome in found if (outcome.policy, outcome.kind) == (policy, kind)]
    return {
        "policy": policy,
        "kind": kind,
        "seeds": len(chosen),
        "recovered": sum(outcome.has_recovered for outcome in chosen),
        "by_itself": sum(outcome.is_by_itself for outcome in chosen),
        "least_kept": min((outcome.kept for outcome in chosen), default=1.0),
    }


if __name__ == "__main__":
    sys.exit(main())
