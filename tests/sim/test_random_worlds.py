"""Seeded random worlds, under every policy: every invariant holds. `make sim SEEDS=n` runs more seeds."""

from __future__ import annotations

import dataclasses
import random

import pytest

from clockwork.scheduler import POLICIES
from clockwork.sim.check import failures
from clockwork.sim.random_world import random_world

SEEDS = 100
BLOCKS = 4


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("policy", POLICIES)
def test_every_rule_holds_in_any_world(policy: str, block: int) -> None:
    size = SEEDS // BLOCKS
    assert list(failures([policy], range(block * size, (block + 1) * size))) == []


@pytest.mark.parametrize(("policy", "seed"), [("adaptive", 4029)])
def test_a_rule_that_one_world_in_thousands_broke_holds_there(policy: str, seed: int) -> None:
    """4029: a suspect request was sent together with requests that had been chosen for another's batch."""
    assert list(failures([policy], [seed])) == []


def test_the_worlds_are_as_bad_as_they_should_be() -> None:
    """The worlds must have enough events: a check of empty worlds would prove nothing."""
    reports = [random_world(seed).run("edf") for seed in range(60)]
    for what in ("good", "refused", "missed", "failed", "cancelled", "cold"):
        assert sum(int(getattr(report, what).sum()) for report in reports) > 50, what
    for what in ("unloads", "revokes", "too_late", "failed_actions", "crashes"):
        assert sum(getattr(report, what) for report in reports) > 20, what


@pytest.mark.parametrize("slowdowns", [[1.0], [1.3, 2.0]])
def test_what_edf_admits_in_a_calm_world_is_answered_in_time(slowdowns: list[float]) -> None:
    """Nearly all promises are kept: all but one in ten thousand while memory suffices, and all but a few
    where models evict each other without end; also where executors slow each other as their workers say."""
    admitted, broken = [0, 0], [0, 0]
    for seed in range(150):
        world, draw = random_world(seed, calm=True), random.Random(f"neighbours of {seed}")
        slowdown = draw.choice(slowdowns)
        report = dataclasses.replace(
            world, cluster=dataclasses.replace(world.cluster, slowdown=slowdown)
        ).run("edf")
        pressed = report.unloads > 0
        admitted[pressed] += int(report.offered.sum() - report.refused.sum())
        broken[pressed] += int(report.missed.sum() + report.late.sum() + report.failed.sum())
    assert min(admitted) > 5000
    assert broken[False] <= 1e-4 * admitted[False]
    assert broken[True] <= 0.01 * admitted[True]
