"""Runs seeded clusters in which controllers fail, and checks the takeover protocol in each.

``python -m clockwork.sim.takeover --seeds 10000`` runs many, and prints for each kind of disturbance how long
it takes until the first answer through the new active, and how long the slowest request waits. A line repeats
a seed that fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from clockwork.sim.takeover.judge import Broken
from clockwork.sim.takeover.plan import MS, TAKEN_OVER, Kind, make_plan
from clockwork.sim.takeover.world import PARTS, Parts, TakeoverWorld


class TakeoverRun(NamedTuple):
    """The outcome of a seed. failure: "" if every promise was kept."""

    seed: int
    kind: Kind
    failure: str
    first_answer_ns: int  # 0: no single takeover
    slowest_ns: int

    def __str__(self) -> str:
        return f"{make_plan(self.seed, self.kind)}: {self.failure or 'every promise was kept'}"


def run_seed(seed: int, kind: Kind, parts: Parts = PARTS) -> TakeoverRun:
    """Run the world of a seed."""
    world = TakeoverWorld(make_plan(seed, kind), parts)
    try:
        judge = world.run()
    except Broken as broken:
        return TakeoverRun(seed, kind, f"{broken} ({world.now_ns / MS:.3f} ms)", 0, 0)
    if kind not in TAKEN_OVER:
        return TakeoverRun(seed, kind, "", 0, 0)
    return TakeoverRun(seed, kind, "", judge.first_answer_ns(world.epoch_before), judge.slowest_ns())


def runs(
    seeds: Iterable[int], kinds: Sequence[Kind] = tuple(Kind), parts: Parts = PARTS
) -> Iterator[TakeoverRun]:
    """Run each seed's world of each kind."""
    for seed in seeds:
        for kind in kinds:
            yield run_seed(seed, kind, parts)


def percentile(values: Sequence[int], share: float) -> int:
    """Return the value below which a share of sorted values lies."""
    return values[min(int(len(values) * share), len(values) - 1)]


def summary(done: Sequence[TakeoverRun]) -> Iterator[str]:
    """A line for each kind."""
    for kind in Kind:
        of_kind = [run for run in done if run.kind is kind]
        failed = sum(bool(run.failure) for run in of_kind)
        line = f"{kind.value:18} {len(of_kind):6} worlds, {failed} failures"
        for name, times in (
            ("first answer", sorted(run.first_answer_ns for run in of_kind if run.first_answer_ns)),
            ("slowest request", sorted(run.slowest_ns for run in of_kind if run.first_answer_ns)),
        ):
            if times:
                p50, p99 = (percentile(times, share) / MS for share in (0.5, 0.99))
                line += f", {name} p50 {p50:.1f} p99 {p99:.1f} max {times[-1] / MS:.1f} ms"
        if of_kind:
            yield line


def main() -> int:
    """Run the command. Returns 1 if any seed failed."""
    parser = argparse.ArgumentParser(
        prog="python -m clockwork.sim.takeover", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=300, help="how many seeds (default 300)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--kind", choices=[kind.value for kind in Kind], help="only this kind of disturbance (default: all)"
    )
    arguments = parser.parse_args()
    kinds = [Kind(arguments.kind)] if arguments.kind else list(Kind)
    done = []
    for run in runs(range(arguments.first, arguments.first + arguments.seeds), kinds):
        done.append(run)
        if run.failure:
            print(run, flush=True)
    print("\n".join(summary(done)))
    return 1 if any(run.failure for run in done) else 0


if __name__ == "__main__":
    sys.exit(main())
