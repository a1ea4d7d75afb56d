"""A scheduler restored from its written state continues as the original would, wherever the state was
taken."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import msgpack
import pytest

from clockwork.errors import ConfigError
from clockwork.observe.recorded import opened
from clockwork.scheduler import POLICIES, make_scheduler
from clockwork.scheduler._core import Core
from clockwork.sim.random_world import random_world as simulated_world
from clockwork.sim.world import Cluster, Open, simulate
from tests.sim.harness import MS
from tests.sim.test_host_store import POLICIES as TIERED
from tests.sim.test_host_store import models as tiered_models
from tests.sim.test_host_store import zipf
from tests.sim.test_scheduler_random import random_world, register

BYTES_MAX = 16 << 20
DATA = Path(__file__).parents[1] / "data" / "states"


def restored(policy: str, state: bytes, memory: str = "") -> Core:
    fresh = make_scheduler(policy, memory)
    fresh.restore(state)
    return fresh


class Twins:
    """A scheduler, and a copy that is restored from its state now and then; both get the same events, and
    must give the same commands."""

    def __init__(self, policy: str, rng: random.Random, part: float, memory: str = "") -> None:
        self.policy, self.memory, self.rng, self.part = policy, memory, rng, part
        self.core = make_scheduler(policy, memory)
        self.twin: Core | None = None
        self.restored = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def step(self, event: Any) -> Any:
        return self.step_many([event])

    def step_many(self, events: Any) -> Any:
        orders = self.core.step_many(events)
        if self.twin is not None:
            assert self.twin.step_many(events) == orders, "the restored scheduler decides otherwise"
        if self.rng.random() < self.part:
            self.assert_alike()
            state = self.core.save(BYTES_MAX)
            assert state is not None
            self.twin = restored(self.policy, state, self.memory)
            assert self.twin.save(BYTES_MAX) == state, "what was restored is written otherwise"
            self.restored += 1
        return orders

    def assert_alike(self) -> None:
        if self.twin is not None:
            assert self.twin.save(BYTES_MAX) == self.core.save(BYTES_MAX), "the states have parted"
            assert self.twin.snapshot() == self.core.snapshot()


def check_world(seed: int, policy: str, part: float) -> int:
    """Run a world with every kind of event; return how often the scheduler was restored."""
    world = random_world(seed, calm=False, policy=policy)
    twins = Twins(policy, random.Random(seed), part)
    for event, _ in world.trace:
        twins.step(event)
    world.scheduler, world.check_always = twins, False  # type: ignore[assignment]
    rng = random.Random(seed)
    if seed % 2:
        register(world, seed, 400 * MS)
    world.at(rng.randrange(200 * MS), lambda: world.join(60, [("cpu", 9, 1.0), ("gpu", 12, 0.5)]))
    world.at(rng.randrange(200 * MS, 400 * MS), lambda: world.workers[60].lose(rng.randrange(2)))
    world.settle()
    twins.assert_alike()
    return twins.restored


def check_recording(path: Path, policy: str, memory: str, part: float, seed: int) -> int:
    twins = Twins(policy, random.Random(seed), part, memory)
    with opened(path) as (_, steps):
        for step in steps:
            twins.step_many(step.events)
    twins.assert_alike()
    return twins.restored


@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_scheduler_decides_the_same(policy: str) -> None:
    count = sum(check_world(seed, policy, 0.02) for seed in range(3))
    assert count > 5


@pytest.mark.parametrize("policy", TIERED)
def test_a_restored_scheduler_of_host_stores_decides_the_same(policy: str, tmp_path: Path) -> None:
    profiles = tiered_models(12)
    cluster = Cluster(
        devices=3, devices_per_worker=2, page_count=8, host_bytes=10 << 24, disk_bandwidth=2_000_000_000
    )
    for memory in ("", "paper", "adaptive"):
        path = tmp_path / f"{policy}-{memory}.rec"
        simulate(
            profiles, cluster, [zipf(900, 0.4, len(profiles))], policy=policy, memory=memory, recording=path
        )
        assert check_recording(path, policy, memory, 0.02, 1) > 5


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(12, marks=pytest.mark.slow),
        pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_scheduler_decides_the_same_in_many_worlds(
    policy: str, count: int, tmp_path: Path
) -> None:
    restored_count = 0
    for seed in range(3, 3 + count):
        restored_count += check_world(seed, policy, 0.02 if seed % 4 else 0.3)
    for seed in range(count // 3):
        world = simulated_world(seed)
        path = tmp_path / f"{seed}.rec"
        simulate(
            world.models, world.cluster, [Open([world.arrivals]), *world.closed], policy=policy, seed=seed,
            until_ns=world.until_ns, drain_ns=world.DRAIN_NS, recording=path,
        )  # fmt: skip
        restored_count += check_recording(path, policy, "", 0.02 if seed % 4 else 0.3, seed)
    assert restored_count > 20 * count


@pytest.mark.parametrize("policy", POLICIES)
def test_states_that_were_written_before_are_read(policy: str) -> None:
    """If this fails, the written state has changed: raise STATE_FORMAT in csrc/scheduler/archive.h, then run
    python -m tests.data.make_states."""
    state = (DATA / f"{policy}.state").read_bytes()
    assert restored(policy, state).save(BYTES_MAX) == state


def test_a_state_of_more_bytes_than_it_may_have_is_none() -> None:
    scheduler = random_world(5, calm=False).scheduler
    state = scheduler.save(BYTES_MAX)
    assert state is not None
    assert scheduler.save(len(state)) == state
    assert scheduler.save(len(state) - 1) is None
    assert scheduler.save(1000) is None


def test_a_state_of_another_policy_is_refused() -> None:
    state = make_scheduler("edf").save(BYTES_MAX)
    assert state is not None
    with pytest.raises(ConfigError, match="it is of policy 'edf'"):
        make_scheduler("fifo").restore(state)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_damaged_state_is_refused_or_is_one(policy: str) -> None:
    """Whichever bytes are damaged: a restored scheduler passes every check, and takes further events."""
    world = random_world(6, calm=False, policy=policy)
    world.settle()
    events = [event for event, _ in world.trace]
    before = make_scheduler(policy)
    before.step_many(events[:200])
    state = before.save(BYTES_MAX)
    assert state is not None
    refusals = []
    for seed in range(150):
        rng = random.Random(seed)
        damaged = bytearray(state)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(damaged))
            if rng.random() < 0.5:
                damaged[place] = rng.randrange(256)
            else:
                del damaged[place : place + rng.randint(1, 3)]
        try:
            after = restored(policy, bytes(damaged))
        except ConfigError as error:
            refusals.append(str(error))
            continue
        try:
            after.step_many(events[200:250])
        except (ValueError, RuntimeError, IndexError):  # as for a recording of impossible events
            continue
    assert len(refusals) > 50
    assert all(text.startswith("the state of the scheduler cannot be restored: ") for text in refusals)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_takes_no_more_memory_than_goes_with_its_length(policy: str) -> None:
    """Any number that gives a size may be wrong, however few bytes follow."""
    state = make_scheduler(policy).save(BYTES_MAX)
    assert state is not None
    fields = list(msgpack.unpackb(state))
    [place] = [place for place, field in enumerate(fields) if isinstance(field, bytes)]
    core, length = fields[place], 2000
    count = bytes([0x80 | length & 0x7F, length >> 7])
    before = peak_bytes()
    for at in range(len(core)):
        fields[place] = core[:at] + count + core[at + 1 :].ljust(length, b"\0")
        with pytest.raises(ConfigError, match="the state of the scheduler cannot be restored: "):
            restored(policy, msgpack.packb(fields))
        assert peak_bytes() - before < 32 << 20, f"byte {at} of {len(core)}"
