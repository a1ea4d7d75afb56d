"""The worker's queue of actions, pure: what to hand to the device now, and what to refuse as too late.

Three lanes, *load* (LOAD, UNLOAD), *execute* (INFER, PROFILE) and *fetch* (FETCH, DROP: of the
machine's host store, by the queue of its first device), each ordered by the start of its window and then
by arrival. A lane gives the device at most ``run_ahead`` actions, each when its
window is about to open; the device itself waits for ``earliest_ns`` and looks at ``latest_ns`` once
more. There is no policy here: nothing is retried, evicted or moved beyond its window.

The queue itself is native (csrc/actions/queue.h), and the simulator's devices have the very same.
"""

from __future__ import annotations

from clockwork.actions._queue import START_LEAD_NS, ActionQueue
from clockwork.actions.events import (
    Action,
    Due,
    Ended,
    QueueCommand,
    QueueEvent,
    Received,
    Reject,
    Revoked,
    RevokeStarted,
    Start,
)

__all__ = [
    "START_LEAD_NS",
    "Action",
    "ActionQueue",
    "Due",
    "Ended",
    "QueueCommand",
    "QueueEvent",
    "Received",
    "Reject",
    "RevokeStarted",
    "Revoked",
    "Start",
]
