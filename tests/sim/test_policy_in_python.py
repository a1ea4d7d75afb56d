"""A policy in Python decides in the simulator as the same policy in C++ does."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from click.testing import CliRunner

from clockwork.cli.root import cli
from clockwork.errors import ConfigError, PolicyFailed
from clockwork.formats.profiles import linear
from clockwork.sim import Cluster
from clockwork.sim.check import failures, policy_name
from clockwork.sim.planning import Scenario
from clockwork.sim.random_world import random_world, varied
from clockwork.sim.shrink import Shrunk, as_test
from clockwork.system.clock import MS

SEEDS = 200
SEEDS_EACH = 50  # number of seeds with every memory manager and option
BLOCKS = 4
PROFILE = linear("one", 5 * MS, 0, batch_max=1, slo_ns=100 * MS)
FIFO = "examples.fifo_policy:Fifo"

OPTIONS: list[dict[str, float]] = [
    {"queue_delay_ms": 5, "batch_cap": 3},
    {"queue_delay_ms": 2, "schedule_ahead_ms": 5},
    {"drop": 0, "batch_cap": 2},
]


@pytest.mark.parametrize("block", range(BLOCKS))
def test_fifo_in_python_gives_the_native_ones_orders(block: int) -> None:
    """The digest covers every event and every order."""
    size = SEEDS // BLOCKS
    for seed in range(block * size, (block + 1) * size):
        world = random_world(seed)
        assert world.run(FIFO).digest == world.run("fifo").digest, seed


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["adaptive", "paper"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_options_and_in_other_worlds_too(options: dict[str, float], memory: str) -> None:
    for seed in range(SEEDS_EACH):
        disturbed = random_world(seed)
        for world in (disturbed, random_world(seed, calm=True), varied(disturbed)):
            there, native = (world.run(one, memory, options=options) for one in (FIFO, "fifo"))
            assert there.digest == native.digest, (seed, world.calm)


def test_every_rule_holds_for_it() -> None:
    assert failures([policy_name(FIFO)], range(10)) == []
    with pytest.raises(argparse.ArgumentTypeError, match="there is no module 'nowhere'"):
        policy_name("nowhere:Fifo")


def test_a_world_that_fails_under_it_is_written_as_a_test() -> None:
    text = as_test(Shrunk(FIFO, random_world(1), "a rule", 1, 1))
    compile(text, "test", "exec")
    assert "def test_examples_fifo_policy_Fifo_seed_1" in text


def test_a_hook_that_fails_is_raised_from_the_simulation() -> None:
    with pytest.raises(PolicyFailed, match=r"choose\(\) failed: LookupError: the blue one") as found:
        random_world(1).run("tests.unit.policies:FailsInChoose")
    assert isinstance(found.value.__cause__, LookupError)


def test_a_plan_takes_it_and_its_options() -> None:
    """The answer equals that of the native policy with the same option."""
    answers = []
    for policy in (FIFO, "fifo"):
        told = ["plan", "rate", "--profiles", "paper", "--model", "resnet50_v2", "--slo", "0.05", "--seeds", "1",
                "--requests", "1000", "--policy", policy, "--option", "batch_cap=2", "--json"]  # fmt: skip
        answers.append(json.loads(CliRunner().invoke(cli, told, catch_exceptions=False).stdout))
    assert answers[0] == answers[1]
    with pytest.raises(ConfigError, match="has no option 'speed'"):
        Scenario([PROFILE], lambda *_: [], Cluster(), 1.0, policy=FIFO, options={"speed": 1}).check()


def test_another_process_takes_it_by_its_name() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        digest = pool.submit(random_world(1).run, FIFO).result().digest
    assert digest == random_world(1).run("fifo").digest
