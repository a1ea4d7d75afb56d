"""Follows a controller: its newest steps become a history, and what was left out of it is known.

A follower neither waits nor asks: it is handed what a look at the controller brought, or why it brought nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from clockwork.config.dashboard import DASHBOARD_REQUESTS_MAX
from clockwork.observe.history import History
from clockwork.observe.live import Cluster, introduce
from clockwork.scheduler.recording import Held, Step

LOADING, LIVE, EMPTY, AWAY = "loading", "live", "empty", "disconnected"
"""States of a follower: it has seen nothing yet; it follows; there is no device; the controller does not answer."""


class Look(NamedTuple):
    """What a look at a controller brought."""

    run: int  # of which start of the controller
    steps: Sequence[Step]
    is_gap: bool = False  # steps before these were left out
    share: float = 1.0  # of what there was since the last look
    is_behind: bool = False  # there is more already
    behind_ns: int = 0  # how long before the look the last of the steps was, about
    unread: int = 0  # bytes of steps that there were and that later looks bring
    cluster: Cluster | None = None  # as its controller describes it, now and then
    held: Sequence[Held] = ()  # what devices held before the first step, or were told to load within these


class Source(Protocol):
    """Where steps come from."""

    def look(self, has_rested: bool = False) -> Look:
        """The steps since the last look, or the newest of them. Raises ClockworkError.

        has_rested: nobody wanted a look for some time before this one.
        """
        ...


class Follower:
    """The history of a controller, and how well it is known."""

    def __init__(self) -> None:
        self.history = _new_history()
        self.state = LOADING
        self.note = ""  # why it is away
        self.since_s = 0.0  # unix time since when the state holds
        self.restarted_s = 0.0  # unix time at which another start of the controller was noticed; 0: none was
        self.gaps: deque[tuple[int, int]] = deque()  # times of which the steps were left out
        self.share = 1.0  # of the steps, over the last looks
        self.behind_ns = 0  # of the last look
        self.number = 0  # of changes
        self._run: int | None = None
        self._shares: deque[float] = deque(maxlen=10)

    def take(self, look: Look, at_s: float) -> None:
        """Take in a look. at_s: unix time."""
        if self._run is not None and look.run != self._run:
            self.history = _new_history()
            self.gaps.clear()
            self._shares.clear()
            self.restarted_s = at_s
        self._run = look.run
        history = self.history
        before_ns = history.now_ns
        if look.is_gap:
            history.skip()
        if look.cluster is not None and (before_ns or look.steps):
            first_ns = look.steps[0].events[0].now_ns if look.steps else before_ns
            introduce(history, look.cluster, max(before_ns, first_ns), is_now=not look.unread)
        for number, step in enumerate(look.steps):
            history.apply(step)
            if number == 0 and look.is_gap and before_ns:
                self.gaps.append((before_ns, history.now_ns))
        for one in look.held:
            history.hold(*one)
        while self.gaps and self.gaps[0][1] < history.now_ns - history.keep_ns:
            self.gaps.popleft()
        self.behind_ns = look.behind_ns
        self._shares.append(look.share)
        self.share = sum(self._shares) / len(self._shares)
        if look.is_behind and self.state == LOADING:  # what was before now is read first
            self._become(LOADING, "", at_s)
        else:
            self._become(
                LIVE if any(not one.lost_ns for one in history.devices.values()) else EMPTY, "", at_s
            )

    def fail(self, why: str, at_s: float) -> None:
        """Note that a look brought nothing. The last picture stays."""
        self._become(AWAY, why, at_s)

    def _become(self, state: str, note: str, at_s: float) -> None:
        if state != self.state:
            self.since_s = at_s
        self.state, self.note = state, note
        self.number += 1


def _new_history() -> History:
    return History(requests_max=DASHBOARD_REQUESTS_MAX, actions_max=DASHBOARD_REQUESTS_MAX)
