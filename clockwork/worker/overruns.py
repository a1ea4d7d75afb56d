"""Decides when an execution or a load has taken too long. Pure; counts only time in which the worker was running.

The controller's prediction for an action bounds it. While the process or the machine was stopped, nothing watched, so
that time does not count against the action.
"""

from __future__ import annotations

import enum

from clockwork.config.worker import (
    EXECUTION_LIMIT_FACTOR,
    EXECUTION_LIMIT_NS,
    LOAD_LIMIT_FACTOR,
    WATCH_GAP_MAX_NS,
)


class Verdict(enum.Enum):
    FINE = 0
    END = 1  # the action is to be ended, if its device can
    STUCK = 2  # the action goes on although it was to be ended


def execution_limit_ns(expected_ns: int) -> int:
    """The time limit of an execution that was expected to take ``expected_ns``."""
    return max(EXECUTION_LIMIT_NS, EXECUTION_LIMIT_FACTOR * expected_ns)


def load_limit_ns(expected_ns: int, least_ns: int) -> int:
    """The time limit of a LOAD or FETCH that was expected to take ``expected_ns``. least_ns: config.load_limit_ns()."""
    return max(least_ns, LOAD_LIMIT_FACTOR * expected_ns)


class RunWatch:
    """Watches a lane. grace_ns: time that an action may take to end once it is told to; 0: it cannot be told."""

    __slots__ = ("_action_id", "_grace_ns", "_ran_ns", "_seen_ns")

    def __init__(self, grace_ns: int = 0) -> None:
        self._grace_ns = grace_ns
        self._action_id = 0
        self._ran_ns = 0
        self._seen_ns = 0

    @property
    def is_busy(self) -> bool:
        """Whether an action was under way at the last look()."""
        return self._action_id != 0

    def look(self, now: int, action_id: int, limit_ns: int) -> Verdict:
        """Judge the action under way now. action_id 0: the lane is idle."""
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
