"""Writes the states of schedulers that tests/sim/test_state.py restores: python -m tests.data.make_states

To be run only after STATE_FORMAT (csrc/scheduler/archive.h) was raised.
"""

from __future__ import annotations

from pathlib import Path

from clockwork.scheduler import POLICIES, make_scheduler
from tests.sim.test_scheduler_random import random_world

STATES = Path(__file__).resolve().parent / "states"
EVENTS = 200


def state_of(policy: str) -> bytes:
    """Return a state from the middle of a simulated world with many faults."""
    world = random_world(6, calm=False, policy=policy)
    world.settle()
    scheduler = make_scheduler(policy)
    scheduler.step_many([event for event, _ in world.trace[:EVENTS]])
    state = scheduler.save(1 << 24)
    assert state is not None
    return state


if __name__ == "__main__":
    STATES.mkdir(exist_ok=True)
    for name in POLICIES:
        (STATES / f"{name}.state").write_bytes(state_of(name))
