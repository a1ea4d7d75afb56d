"""Workers that end during an execution, in seeded worlds: killed from outside, or by a request."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clockwork.config.controller import OVERRUNS_MAX
from clockwork.formats.profiles import ModelProfile
from clockwork.scheduler.types import AnswerOk, Fault
from clockwork.sim.world import Cluster, Open, simulate
from clockwork.wire.messages import Infer, Status
from clockwork.workloads import Arrivals
from tests.sim.harness import MS, PAGE_BYTES, SECOND, SimulatedDevice, World, spec

POLICIES = ("edf", "fifo", "paper", "adaptive")
SEEDS = range(12)


class Killing(World):
    """A world in which some requests end the worker that executes them, in the middle of the execution or at
    its end."""

    def __init__(self, seed: int, policy: str, says_so: bool) -> None:
        super().__init__(seed, policy=policy)
        self.killers: set[int] = set()
        self.killed: list[int] = []
        self.says_so = says_so

    def _is_killer(self, action: Any) -> bool:
        return isinstance(action, Infer) and any(part[0][1][0] in self.killers for part in action.parts)

    def began(self, device: SimulatedDevice, action: Any) -> None:
        if self._is_killer(action) and not self.says_so:
            self.at(self.now + self.profiled_ns(action) // 2, self.kill, device.worker.worker_id)

    def outcome(self, device: SimulatedDevice, action: Any) -> tuple[Status, str]:
        if self._is_killer(action):
            self.drain(device.worker.worker_id)  # the worker says Goodbye before its last results
            self.at(self.now + device.worker.back + MS, self.kill, device.worker.worker_id)
            return Status.CRASHED, "signal 11"
        return super().outcome(device, action)

    def kill(self, worker_id: int) -> None:
        if not self.workers[worker_id].dead:
            self.killed.append(worker_id)
            self.leave(worker_id)


def world_of(seed: int, policy: str, says_so: bool = False, workers: int = 5) -> Killing:
    world = Killing(seed, policy, says_so)
    for number in range(1, workers + 1):
        world.join(number)
    world.ready(*(spec(model, exec_ms=5, batch_max=4) for model in (1, 2)))
    return world


def ask_steadily(world: Killing, rate: float, until_ms: int, slo_ms: float) -> None:
    world.poisson(rate, until_ms * MS, lambda: world.request(world.random.choice((1, 2)), slo_ms))


@pytest.mark.parametrize("policy", POLICIES)
def test_two_workers_killed_from_outside_lose_nothing(policy: str) -> None:
    for seed in SEEDS:
        world = world_of(seed, policy)
        ask_steadily(world, 100, 2000, 5000)
        times = random.Random(seed)
        for worker in (1, 2):
            world.at(times.randrange(200, 1500) * MS, world.kill, worker)
        world.settle()
        assert len(world.killed) == 2
        assert world.tally() == {"ok": len(world.requests)}, f"seed {seed}"
        assert world.faults == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("says_so", [True, False], ids=["with a word", "without a word"])
def test_a_request_that_ends_workers_takes_few_with_it_and_no_other_models_request(
    says_so: bool, policy: str
) -> None:
    for seed in SEEDS:
        world = world_of(seed, policy, says_so)
        ask_steadily(world, 60, 2000, 5000)
        killer = 0

        def release(world: Killing = world) -> None:
            nonlocal killer
            # The crashing request is known before it is sent.
            world.killers.add(world.next_request + 1)
            killer = world.request(1, 4000)

        world.at(300 * MS, release)
        world.settle()
        assert len(world.killed) <= (2 if says_so else 3), f"seed {seed}"
        assert not isinstance(world.answers[killer], AnswerOk)
        others = [one for one in world.requests.values() if one.model_id == 2]
        assert all(world.ok(one.id) for one in others), f"seed {seed}"
        assert [one.model_id for one in world.faults if one.set_aside] == [1]
        kind = Fault.CRASHED if says_so else Fault.WORKER_LOST
        assert {one.fault for one in world.faults} == {kind}
        assert world.gone == [1]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_world_again_comes_to_the_same(policy: str) -> None:
    traces = []
    for _ in range(2):
        world = world_of(3, policy)
        ask_steadily(world, 100, 500, 5000)
        world.at(100 * MS, lambda world=world: world.killers.add(world.next_request + 1))
        world.settle()
        traces.append(world.trace)
    assert traces[0] == traces[1]


def test_a_simulated_execution_that_takes_too_long_is_ended_too() -> None:
    slow = ModelProfile("slow", {1: 5 * MS}, PAGE_BYTES, 1000, slo_ns=60 * SECOND)
    arrivals = Arrivals.of([place * 10 * SECOND for place in range(OVERRUNS_MAX + 3)], 0)
    report = simulate(
        [slow], Cluster(outlier=1.0, outlier_factor=1e6), [Open([arrivals])], resident=False, check=True
    )
    assert report.good.tolist() == [0]
    assert report.failed.tolist() == [OVERRUNS_MAX], "then the model is set aside"


def test_a_simulated_load_that_does_not_end_costs_its_worker_which_begins_anew() -> None:
    model = ModelProfile("stuck", {1: 5 * MS}, PAGE_BYTES, 5 * MS, slo_ns=8 * SECOND)
    arrivals = Arrivals.of([place * 60 * SECOND for place in range(3)], 0)
    report = simulate(
        [model], Cluster(outlier=1.0, outlier_factor=1e6), [Open([arrivals])],
        drain_ns=60 * SECOND, resident=False, check=True,
    )  # fmt: skip
    assert report.good.tolist() == [0]
    assert report.crashes == 3, "it came back each time"
