"""When an execution or a load has taken too long: pure, and by the time in which somebody was looking.

What the controller predicts of an action bounds it. A process that was stopped, or a machine that stood still, did
not watch either, so that time is not held against what it runs.
"""

from __future__ import annotations

import enum

from clockwork.config import (
    EXECUTION_LIMIT_FACTOR,
    EXECUTION_LIMIT_NS,
    LOAD_LIMIT_FACTOR,
    WATCH_GAP_MAX_NS,
)


class Verdict(enum.Enum):
    FINE = 0
    END = 1  # it is to be ended, if its device can
    STUCK = 2  # it was to be ended, and goes on


def execution_limit_ns(expected_ns: int) -> int:
    """How long an execution may take of which so much was expected."""
    return max(EXECUTION_LIMIT_NS, EXECUTION_LIMIT_FACTOR * expected_ns)


def load_limit_ns(expected_ns: int, least_ns: int) -> int:
    """Likewise a LOAD or a FETCH. least_ns: config.load_limit_ns()."""
    return max(least_ns, LOAD_LIMIT_FACTOR * expected_ns)


class RunWatch:
    """Of one lane. grace_ns: how long an action may take to end once it is told to; 0: it cannot be told."""

    __slots__ = ("_action_id", "_grace_ns", "_ran_ns", "_seen_ns")

    def __init__(self, grace_ns: int = 0) -> None:
        self._grace_ns = grace_ns
        self._action_id = 0
        self._ran_ns = 0
        self._seen_ns = 0

    @property
    def is_busy(self) -> bool:
        """Whether something was under way when the lane was looked at last."""
        return self._action_id != 0

    def look(self, now: int, action_id: int, limit_ns: int) -> Verdict:
        """action_id: what is under way now; 0: nothing."""
        gap_ns, self._seen_ns = min(now - self._seen_ns, WATCH_GAP_MAX_NS), now
        if action_id != self._action_id:
            self._action_id, self._ran_ns = action_id, 0
            return Verdict.FINE
        if action_id == 0:
            return Verdict.FINE
        self._ran_ns += gap_ns
        if self._ran_ns <= limit_ns:
            return Verdict.FINE
        return Verdict.END if self._ran_ns <= limit_ns + self._grace_ns else Verdict.STUCK
