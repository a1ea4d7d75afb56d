"""The division of a machine's cores against every other division, simulated.

    python -m bench.cores [--quick] [--json] [--cores 16,64] [--loads 0.3,0.6,0.9,1.2]
        [--seconds 6] [--seeds 3]

Each case is a few models on a machine of so many cores: their times with one thread, the part of them that
more threads do not shorten (Amdahl), their SLOs, what batches gain, and their shares of the requests, which
arrive as a Poisson process. A load is a part of what the cores could execute if each model had as few threads
as its SLO permits. The real scheduler serves the same requests with every division of the cores into
executors of one core and executors of 2, 4 or 8; divisions count that serve as many of the models as any.

``chosen/best`` is the goodput of the division that scheduler/cores.py chooses by expectation, by the best of
all; ``planned/best`` that of `clockwork plan threads --rate` and `clockwork up`, which simulate the likeliest
ones, here with requests of other seeds. A choice is within 2 % of an exhaustive search where this is at least
0.98.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from bench import report
from clockwork.formats.profiles import ModelProfile
from clockwork.scheduler.cores import choose, ranked
from clockwork.sim import Cluster
from clockwork.sim.division import CoreQuestion, planned
from clockwork.workloads import Workload, poisson

MS, SECOND = 1_000_000, 1_000_000_000
SEED = 1
NOISE = 0.02  # relative sigma of execution times, as of a CPU
WIDTHS = (1, 2, 4, 8)
BATCHES = (1, 2, 4, 8, 16)
PLANNED_SEED = 1_001  # of the requests by which the plan simulates


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model of a case."""

    alone_ms: float  # a row with one thread
    serial: float  # part of an execution that more threads do not shorten
    slo_ms: float
    gain: float  # throughput of endless batches by that of single rows
    share: float  # of the requests

    def ms(self, threads: int) -> float:
        return self.alone_ms * (self.serial + (1 - self.serial) / threads)

    def core_ms(self) -> float:
        """The time of cores of a row with the fewest threads that meet the SLO."""
        return min(threads * self.ms(threads) for threads in WIDTHS if self.ms(threads) <= self.slo_ms)

    def profile(self, name: str, threads: int) -> ModelProfile:
        fixed = 1 - 1 / self.gain
        times = {batch: round(self.ms(threads) * MS * (fixed + (1 - fixed) * batch)) for batch in BATCHES}
        return ModelProfile(name, times, 16 << 20, MS, input_bytes=1_000, slo_ns=round(self.slo_ms * MS))


CASES = {
    "one needs threads": (Kind(40, 0.05, 30, 1, 0.1), Kind(10, 0.1, 200, 1, 0.9)),
    "two need threads": (
        Kind(80, 0.03, 30, 1, 0.05), Kind(25, 0.05, 40, 1, 0.3), Kind(5, 0.1, 100, 2, 0.65),
    ),
    "nearly too slow": (Kind(29.5, 0.05, 30, 1, 1.0),),
    "hard to divide": (Kind(29, 0.3, 30, 1, 0.5), Kind(10, 0.3, 100, 1, 0.5)),
    "long SLOs": (Kind(20, 0.05, 500, 1.5, 0.5), Kind(10, 0.05, 100, 1.3, 0.5)),
    "batches": (Kind(40, 0.05, 60, 2, 0.5), Kind(5, 0.1, 50, 1.5, 0.5)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    cores: tuple[int, ...] = (16, 64)
    loads: tuple[float, ...] = (0.3, 0.6, 0.9, 1.2)
    seconds: float = 6.0
    seeds: int = 3
    cases: tuple[str, ...] = tuple(CASES)


def question_of(kinds: Sequence[Kind], cores: int, load: float, seconds: float) -> CoreQuestion:
    """The question that a case asks at a load."""
    rate = 1_000 * load * cores / sum(kind.share * kind.core_ms() for kind in kinds)
    rates = [rate * kind.share for kind in kinds]

    def workload(seed: int) -> Workload:
        return poisson(rates, round((1 + seconds) * SECOND), seed=seed)

    return CoreQuestion(
        {
            threads: [kind.profile(f"m{place}", threads) for place, kind in enumerate(kinds)]
            for threads in WIDTHS
        },
        cores,
        Cluster(page_count=4_096, exec_noise=NOISE),
        workload,
    )


def measure(given: Plan) -> list[dict[str, Any]]:
    """A row for each number of cores, case and load."""
    rows = []
    seeds = range(SEED, SEED + given.seeds)
    for cores, case, load in itertools.product(given.cores, given.cases, given.loads):
        question = question_of(CASES[case], cores, load, given.seconds)
        loads = question.loads(SEED)
        chosen = choose(loads, cores)
        plan = planned(question, [PLANNED_SEED]).division
        goodput = {division: question.goodput(division, seeds) for division, _ in ranked(loads, cores)}
        best = max(goodput, key=lambda division: goodput[division])
        rows.append(
            {
                "cores": cores, "case": case, "load": load, "offered/s": round(sum(model.rate for model in loads), 1),
                "divisions": len(goodput), "chosen": str(chosen), "goodput/s": round(goodput[chosen], 1),
                "best": str(best), "best/s": round(goodput[best], 1),
                "chosen/best": round(goodput[chosen] / goodput[best], 4),
                "planned/best": round(goodput[plan] / goodput[best], 4),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    plan = Plan()
    parser = report.command_line(__doc__)
    parser.add_argument("--cores", type=lambda text: tuple(map(int, text.split(","))), default=plan.cores)
    parser.add_argument("--loads", type=lambda text: tuple(map(float, text.split(","))), default=plan.loads)
    parser.add_argument("--seconds", type=float, default=plan.seconds)
    parser.add_argument("--seeds", type=int, default=plan.seeds)
    asked = parser.parse_args()
    settings = {name: getattr(asked, name) for name in ("cores", "loads", "seconds", "seeds")}
    if asked.quick:
        settings |= {
            "cores": (16,), "loads": (0.6,), "seconds": 2.0, "seeds": 1,
            "cases": ("one needs threads", "long SLOs"),
        }  # fmt: skip
    rows = measure(Plan(**settings))
    facts = {
        "seeds": settings["seeds"],
        "seconds": settings["seconds"],
        "least chosen/best": min(row["chosen/best"] for row in rows),
        "least planned/best": min(row["planned/best"] for row in rows),
    }
    report.show("divisions of cores", SEED, rows, facts, asked.json)


if __name__ == "__main__":
    main()
