"""Runs seeded random worlds with all kinds of failures, and checks each after every step.

``python -m clockwork.sim.check --seeds 10000`` runs many. A line repeats a seed that fails. The first few
failures are shrunk to the smallest world that still fails, and printed as tests (shrink.py). csrc/sim has the
checks: the invariants of the scheduler and the queues after every step; exactly one answer for each request,
by its deadline; no success that is late, or with another request's output; no action outside its window; no
page given twice; no model evicted in use; no request displaced except by a higher priority; and at rest, that
the scheduler's picture of every device and every store is true, and no model has too few copies where there
is room for another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from clockwork.config.workloads import SHRUNK_MAX
from clockwork.errors import ConfigError
from clockwork.scheduler import POLICIES, known_options
from clockwork.sim.random_world import RandomWorld, random_world, stored, varied
from clockwork.sim.shrink import IMPORTS, as_test, failure_of, shrink


def failing(policies: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, RandomWorld, str]]:
    """Run each seed's four worlds under each policy. Yields policy, world and message for each failure."""
    for seed in seeds:
        disturbed = random_world(seed)
        worlds = {
            "disturbed": disturbed,
            "calm": random_world(seed, calm=True),
            "varied": varied(disturbed),
            "stored": stored(disturbed if seed % 2 else varied(disturbed)),
        }
        for policy in policies:
            for name, world in worlds.items():
                if sentence := failure_of(world, policy):
                    yield policy, world, f"{policy}, seed {seed}, {name}: {sentence}"


def failures(policies: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return a message for each world that failed."""
    return [sentence for _, _, sentence in failing(policies, seeds)]


def policy_name(text: str) -> str:
    """Return a policy's name, checked for argparse."""
    try:
        known_options(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main() -> int:
    """Run the command. Returns 1 if any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m clockwork.sim.check", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--policy", type=policy_name, help="only this, perhaps MODULE:CLASS (default: all native ones)"
    )
    arguments = parser.parse_args()
    policies = [arguments.policy] if arguments.policy else list(POLICIES)
    found = 0
    for policy, world, sentence in failing(
        policies, range(arguments.first, arguments.first + arguments.seeds)
    ):
        print(sentence, flush=True)
        found += 1
        if found <= SHRUNK_MAX:
            print(
                f"\n# As a test, in tests/sim:\n\n{IMPORTS}\n\n{as_test(shrink(world, policy))}", flush=True
            )
    print(f"{arguments.seeds} seeds, policies {', '.join(policies)}: {found} failures")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
