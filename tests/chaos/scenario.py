"""The faults of a seed, with their times and durations: derived from the seed alone."""

from __future__ import annotations

import dataclasses
import enum
import random
from collections.abc import Sequence


class Kind(enum.StrEnum):
    """The kinds of faults. docs/chaos.md describes each, and the guarantees of the cluster under it."""

    KILL_WORKER = "kill-worker"
    KILL_WORKERS = "kill-workers"
    KILL_CONTROLLER = "kill-controller"
    KILL_GATEWAY = "kill-gateway"
    END_WORKER = "end-worker"
    END_CONTROLLER = "end-controller"
    END_GATEWAY = "end-gateway"
    PAUSE_WORKER = "pause-worker"
    STOP_WORKER = "stop-worker"
    PAUSE_CONTROLLER = "pause-controller"
    STOP_CONTROLLER = "stop-controller"
    PAUSE_GATEWAY = "pause-gateway"
    CUT_WORKER_LINK = "cut-worker-link"
    HOLD_WORKER_LINK = "hold-worker-link"
    SLOW_WORKER_LINK = "slow-worker-link"
    CUT_CLIENT_LINK = "cut-client-link"
    HOLD_CLIENT_LINK = "hold-client-link"
    SLOW_CLIENT_LINK = "slow-client-link"
    FULL_CONTROLLER_DISK = "full-controller-disk"
    FULL_WORKER_DISK = "full-worker-disk"
    READ_ONLY_CONTROLLER_DISK = "read-only-controller-disk"
    READ_ONLY_WORKER_DISK = "read-only-worker-disk"
    FLIP_WORKER_STORE = "flip-worker-store"
    FLIP_CATALOG = "flip-catalog"
    LYING_WORKER = "lying-worker"
    JUMP_WALL_CLOCK = "jump-wall-clock"
    JUMP_WORKER_CLOCK = "jump-worker-clock"


DURATIONS_MS: dict[Kind, tuple[int, int]] = {
    # Durations shorter than any timeout: no process may notice.
    Kind.PAUSE_WORKER: (100, 1200),
    Kind.PAUSE_CONTROLLER: (100, 1200),
    Kind.PAUSE_GATEWAY: (100, 1200),
    # Durations longer than the timeout of heartbeats: 2 s for a worker, 3 s for a connection of libzmq.
    Kind.STOP_WORKER: (2600, 3500),
    Kind.HOLD_WORKER_LINK: (2600, 4500),
    Kind.STOP_CONTROLLER: (4000, 5000),
    Kind.HOLD_CLIENT_LINK: (4000, 5000),
    Kind.SLOW_WORKER_LINK: (800, 2000),
    Kind.SLOW_CLIENT_LINK: (800, 2000),
    Kind.FULL_CONTROLLER_DISK: (1200, 2000),
    Kind.FULL_WORKER_DISK: (1200, 2000),
    Kind.READ_ONLY_CONTROLLER_DISK: (1200, 2000),
    Kind.READ_ONLY_WORKER_DISK: (1200, 2000),
    Kind.LYING_WORKER: (1500, 2500),
    Kind.JUMP_WALL_CLOCK: (500, 1500),
    Kind.JUMP_WORKER_CLOCK: (500, 1500),
}

SECOND_FAULT_SHARE = 0.3
DISKS = frozenset(
    (
        Kind.FULL_CONTROLLER_DISK,
        Kind.FULL_WORKER_DISK,
        Kind.READ_ONLY_CONTROLLER_DISK,
        Kind.READ_ONLY_WORKER_DISK,
    )
)
CLOCKS = frozenset((Kind.JUMP_WALL_CLOCK, Kind.JUMP_WORKER_CLOCK))


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    after_ms: int  # ms of load since the cluster was last whole
    target: int  # index of the worker
    duration_ms: int  # 0: the fault has no duration
    draw: int  # seed of a random.Random for the fault's other choices


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    faults: tuple[Fault, ...]

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(fault.kind for fault in self.faults)


def scenario(
    seed: int, workers: int, only: Kind | None = None, kinds: Sequence[Kind] = tuple(Kind)
) -> Scenario:
    """Make the schedule of a seed. Consecutive seeds go through all kinds as their first fault; a third of
    them has a second fault, of any kind.

    only: restrict the faults to this kind, for a closer look. kinds: the kinds to choose from.
    """
    rng = random.Random(f"chaos {seed}")
    chosen = [only or kinds[seed % len(kinds)]]
    if rng.random() < SECOND_FAULT_SHARE:
        chosen.append(only or rng.choice(kinds))
    return Scenario(
        seed,
        tuple(
            Fault(
                kind,
                rng.randint(300, 900),
                rng.randrange(workers),
                rng.randint(*DURATIONS_MS.get(kind, (0, 0))),
                rng.getrandbits(32),
            )
            for kind in chosen
        ),
    )
