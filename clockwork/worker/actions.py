"""The worker's queue of actions, pure: what to hand to the device now, and what to refuse as too late.

Two lanes, *load* (LOAD, UNLOAD) and *execute* (INFER, PROFILE), each ordered by the start of its
window and then by arrival. A lane gives the device at most ``run_ahead`` actions, each when its
window is about to open; the device itself waits for ``earliest_ns`` and looks at ``latest_ns`` once
more. There is no policy here: nothing is retried, evicted or moved beyond its window. Times are of
the worker's clock.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple, TypeAlias

from clockwork.config import ACTIONS_QUEUED_MAX
from clockwork.messages import NEVER_NS, Infer, Load, Profile, Status, Unload

START_LEAD_NS = 200_000
"""An action is handed to the device this long before its window opens: the device waits more exactly."""

Action: TypeAlias = Load | Unload | Infer | Profile


class Received(NamedTuple):
    """The controller sent an action."""

    now_ns: int
    action: Action


class Ended(NamedTuple):
    """The device completed an action that it had been given."""

    now_ns: int
    action_id: int


class Revoked(NamedTuple):
    """The controller wants an action dropped if it has not started."""

    now_ns: int
    action_id: int


class Due(NamedTuple):
    """The time of next_wake_ns has come (or any other time)."""

    now_ns: int


class Start(NamedTuple):
    """Give this action to the device."""

    action: Action


class Reject(NamedTuple):
    """Answer this action; the device never saw it."""

    action: Action
    status: Status
    text: str


class RevokeStarted(NamedTuple):
    """The action is with the device: ask the device to drop it."""

    action_id: int


QueueEvent: TypeAlias = Received | Ended | Revoked | Due
QueueCommand: TypeAlias = Start | Reject | RevokeStarted


class _Lane:
    __slots__ = ("floor_ns", "heap", "newest_ns", "started")

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Action]] = []
        self.started: dict[int, None] = {}  # with the device
        self.newest_ns = 0  # the latest place that was given in this lane
        self.floor_ns = 0  # nothing queued from now on goes before this: an UNLOAD is there

    def place(self, action: Action) -> int:
        """Where in the lane an action goes. An UNLOAD passes nothing before it, and nothing passes it."""
        earliest = max(action.earliest_ns, self.floor_ns)
        if type(action) is Unload and self.heap:
            earliest = max(earliest, self.newest_ns)
        if type(action) is Unload:
            self.floor_ns = earliest
        if not self.heap:
            self.newest_ns = earliest
        self.newest_ns = max(self.newest_ns, earliest)
        return earliest


class ActionQueue:
    """One device's two lanes."""

    def __init__(self, run_ahead: int) -> None:
        if run_ahead < 1:
            raise ValueError(f"run_ahead of {run_ahead}")
        self._run_ahead = run_ahead
        self._load, self._execute = _Lane(), _Lane()
        self._lane_of: dict[int, _Lane] = {}
        self._sequence = 0
        self.next_wake_ns = NEVER_NS

    def step(self, event: QueueEvent) -> list[QueueCommand]:
        """What to do now, in order. Afterwards next_wake_ns says when a Due is wanted at the latest."""
        now = event.now_ns
        commands: list[QueueCommand] = []
        if isinstance(event, Received):
            self._received(event.action, commands)
        elif isinstance(event, Ended):
            lane = self._lane_of.get(event.action_id)
            if lane is not None and event.action_id in lane.started:
                del lane.started[event.action_id], self._lane_of[event.action_id]
        elif isinstance(event, Revoked):
            self._revoked(event.action_id, commands)
        self.next_wake_ns = NEVER_NS
        for lane in (self._load, self._execute):
            self._advance(lane, now, commands)
        return commands

    def reset(self) -> list[Action]:
        """Forget everything, as a new controller epoch begins; returns what was queued."""
        queued = [
            action
            for lane in (self._load, self._execute)
            for _, _, action in sorted(lane.heap, key=lambda e: e[:2])
        ]
        self._load, self._execute = _Lane(), _Lane()
        self._lane_of.clear()
        self.next_wake_ns = NEVER_NS
        return queued

    @property
    def queued_count(self) -> int:
        return len(self._load.heap) + len(self._execute.heap)

    @property
    def started_count(self) -> int:
        return len(self._load.started) + len(self._execute.started)

    def _received(self, action: Action, commands: list[QueueCommand]) -> None:
        if action.action_id in self._lane_of:
            commands.append(Reject(action, Status.DEVICE_ERROR, f"action {action.action_id} was sent twice"))
            return
        if self.queued_count >= ACTIONS_QUEUED_MAX:
            commands.append(
                Reject(action, Status.DEVICE_ERROR, f"{ACTIONS_QUEUED_MAX} actions are queued already")
            )
            return
        lane = self._load if isinstance(action, Load | Unload) else self._execute
        self._lane_of[action.action_id] = lane
        self._sequence += 1
        heappush(lane.heap, (lane.place(action), self._sequence, action))

    def _revoked(self, action_id: int, commands: list[QueueCommand]) -> None:
        lane = self._lane_of.get(action_id)
        if lane is None:
            return
        if action_id in lane.started:
            commands.append(RevokeStarted(action_id))
            return
        for index, (_, _, action) in enumerate(lane.heap):
            if action.action_id == action_id:
                lane.heap[index] = lane.heap[-1]
                lane.heap.pop()
                heapify(lane.heap)
                del self._lane_of[action_id]
                commands.append(Reject(action, Status.ACTION_CANCELLED, "the action was revoked"))
                return

    def _advance(self, lane: _Lane, now: int, commands: list[QueueCommand]) -> None:
        heap = lane.heap
        while heap:
            earliest, _, action = heap[0]
            if action.latest_ns < now:
                heappop(heap)
                del self._lane_of[action.action_id]
                late = (now - action.latest_ns) / 1e6
                commands.append(Reject(action, Status.TOO_LATE, f"its window closed {late:.3f} ms ago"))
            elif len(lane.started) >= self._run_ahead:
                break  # the end of one of them wakes this lane
            elif earliest - START_LEAD_NS > now:
                self.next_wake_ns = min(self.next_wake_ns, earliest - START_LEAD_NS)
                break
            else:
                heappop(heap)
                lane.started[action.action_id] = None
                commands.append(Start(action))
        if heap:  # late ones further back are answered in time too
            late_ns = min(action.latest_ns for _, _, action in heap)
            if late_ns < now:
                self._reject_late(lane, now, commands)
                late_ns = min((action.latest_ns for _, _, action in heap), default=NEVER_NS)
            if late_ns < NEVER_NS:
                self.next_wake_ns = min(self.next_wake_ns, late_ns + 1)

    def _reject_late(self, lane: _Lane, now: int, commands: list[QueueCommand]) -> None:
        late = sorted((entry for entry in lane.heap if entry[2].latest_ns < now), key=lambda entry: entry[:2])
        lane.heap[:] = [entry for entry in lane.heap if entry[2].latest_ns >= now]
        heapify(lane.heap)
        for _, _, action in late:
            del self._lane_of[action.action_id]
            over = (now - action.latest_ns) / 1e6
            commands.append(Reject(action, Status.TOO_LATE, f"its window closed {over:.3f} ms ago"))

    def check_invariants(self) -> None:
        names: dict[int, None] = {}
        for lane in (self._load, self._execute):
            assert len(lane.started) <= self._run_ahead, "a lane holds more than run_ahead"
            for action_id in [*lane.started, *(entry[2].action_id for entry in lane.heap)]:
                assert action_id not in names, "an action is held twice"
                assert self._lane_of.get(action_id) is lane
                names[action_id] = None
        assert len(names) == len(self._lane_of)
