"""The history of a controller that is read repeatedly, with the gaps of that history.

A follower does no I/O and never waits: its caller hands it each look at the controller, or the error of a
look that failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from clockwork.config.dashboard import DASHBOARD_REQUESTS_MAX
from clockwork.observe.history import History
from clockwork.observe.live import ClusterDescription, introduce
from clockwork.scheduler.recording import ResidentModel, Step
from clockwork.wire.description import describe_standing

LOADING, LIVE, EMPTY, AWAY = "loading", "live", "empty", "disconnected"
"""States of a follower: no look yet; following; no device in the cluster; no answer from the controller."""


class FollowedSteps(NamedTuple):
    """The steps that a look at a controller returned."""

    run: int  # number of the controller's start
    steps: Sequence[Step]
    is_gap: bool = False  # steps before these were left out
    share: float = 1.0  # part of the steps since the last look that was read
    is_behind: bool = False  # whether more steps could be read at once
    behind_ns: int = 0  # about how much older than the look its last step is
    unread: int = 0  # bytes of steps that are left for later looks
    # the controller's description of the cluster, in some looks only
    cluster: ClusterDescription | None = None
    # models on devices before the first step, or loads ordered within these steps
    held: Sequence[ResidentModel] = ()


class StepSource(Protocol):
    """A source of steps: a recording or a live controller."""

    def look(self, has_rested: bool = False) -> FollowedSteps:
        """Return the steps since the last look, or the newest of them. Raises ClockworkError.

        has_rested: whether no page wanted a look for some time before this call.
        """
        ...


class Follower:
    """The history of a controller, with the follower's state and its gaps."""

    def __init__(self) -> None:
        self.history = _new_history()
        self.state = LOADING
        self.note = ""  # reason of the state AWAY
        self.since_s = 0.0  # unix time at which the state began
        self.restarted_s = 0.0  # unix time at which a restart of the controller was noticed; 0: none
        self.gaps: deque[tuple[int, int]] = deque()  # times whose steps were left out
        self.share = 1.0  # part of the steps that was read, as a mean of the last looks
        self.behind_ns = 0  # value of the last look
        self.standing = ""  # a sentence about the controllers, where there are several
        self.number = 0  # number of changes so far
        self._run: int | None = None
        self._shares: deque[float] = deque(maxlen=10)

    def take(self, look: FollowedSteps, at_s: float) -> None:
        """Add the steps of a look to the history. at_s: unix time."""
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
        if look.cluster is not None:
            self.standing = describe_standing(look.cluster.status.get("standing"))
        if look.cluster is not None and (before_ns or look.steps):
            first_ns = look.steps[0].events[0].now_ns if look.steps else before_ns
            introduce(history, look.cluster, max(before_ns, first_ns), is_now=not look.unread)
        for number, step in enumerate(look.steps):
            history.apply(step)
            if number == 0 and look.is_gap and before_ns:
                self.gaps.append((before_ns, history.now_ns))
        for held in look.held:
            history.hold(*held)
        while self.gaps and self.gaps[0][1] < history.now_ns - history.keep_ns:
            self.gaps.popleft()
        self.behind_ns = look.behind_ns
        self._shares.append(look.share)
        self.share = sum(self._shares) / len(self._shares)
        if look.is_behind and self.state == LOADING:  # while the steps from before the first look are read
            self._become(LOADING, "", at_s)
        else:
            self._become(
                LIVE if any(not device.lost_ns for device in history.devices.values()) else EMPTY, "", at_s
            )

    def fail(self, why: str, at_s: float) -> None:
        """Note that a look failed. The history stays as it was."""
        self._become(AWAY, why, at_s)

    def _become(self, state: str, note: str, at_s: float) -> None:
        if state != self.state:
            self.since_s = at_s
        self.state, self.note = state, note
        self.number += 1


def _new_history() -> History:
    return History(requests_max=DASHBOARD_REQUESTS_MAX, actions_max=DASHBOARD_REQUESTS_MAX)
