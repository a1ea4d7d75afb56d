"""The actions of a worker's devices, from their arrival to their results.

Each device has a queue of actions (clockwork.actions), which decides when an action starts or that it is too late. The
runner carries out what the queues say, keeps what is not answered yet, and returns results for the loop to send. It
belongs to the loop's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple, TypeAlias

from clockwork import config
from clockwork.actions import (
    Action,
    ActionQueue,
    Due,
    Ended,
    QueueCommand,
    Received,
    Reject,
    Revoked,
    RevokeStarted,
    Start,
)
from clockwork.config import EXECUTION_GRACE_NS
from clockwork.config import worker as bounds
from clockwork.config.worker import (
    CHECK_LIMIT_NS,
    END_PAUSE_S,
    ROOM_WAIT_BYTE_NS,
    ROOM_WAIT_NS,
    STALE_WAKES_MAX,
    WATCH_INTERVAL_NS,
)
from clockwork.device.base import Completion, Device, TensorView
from clockwork.errors import ClockworkError, InvalidInput
from clockwork.system.clock import now_ns
from clockwork.system.copies import Copies, Copy
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.messages import (
    NEVER_NS,
    DeviceInfo,
    HostDrop,
    HostFetch,
    Infer,
    Load,
    Phase,
    Profile,
    Reserve,
    Result,
    Status,
    TensorRef,
    Unload,
)
from clockwork.wire.shared import PLACE, SHARED
from clockwork.wire.transport import Frame
from clockwork.worker.clock import WorkerClock
from clockwork.worker.memory import Room, views
from clockwork.worker.models import WorkerModels
from clockwork.worker.overruns import RunWatch, Verdict, execution_limit_ns, load_limit_ns
from clockwork.worker.snapshots import Snapshots

log = logging.getLogger("clockwork.worker")

Answer: TypeAlias = tuple[bytes, Sequence[Frame]]
"""The header and frames of a Result."""

Parts: TypeAlias = list[list[TensorView]]

Rooms: TypeAlias = Sequence[Room | None]

Outcome: TypeAlias = tuple[Status, str]

CANCELLED: Outcome = (Status.ACTION_CANCELLED, "the worker ends because of another action")

NO_PHASE: Phase = [0, 0, 0]

ORDERED_BY_MODEL = (Load, Unload, HostFetch, HostDrop)
"""Actions that wait behind an earlier action on the same model where that waits for a check of stored bytes."""


class DeviceQueue:
    """A device and the queue of actions before it."""

    __slots__ = (
        "card", "checks", "clock_mhz", "device", "executes", "fetches", "index", "loads", "offline", "queue", "wake_ns",
    )  # fmt: skip

    def __init__(self, index: int, device: Device) -> None:
        self.index = index  # the number by which the controller knows the device
        self.card = index  # the number by which the observer of clocks knows it
        self.clock_mhz = 0  # as last reported to the controller
        self.device = device
        self.queue = ActionQueue(device.info.run_ahead)
        self.executes, self.loads, self.fetches = RunWatch(EXECUTION_GRACE_NS), RunWatch(), RunWatch()
        self.checks = RunWatch()  # of LOADs that wait for a check of stored bytes
        self.wake_ns = NEVER_NS  # the valid entry of this queue in the runner's heap
        self.offline = ""  # the fault that broke the device, as a sentence; "" while it works

    @property
    def is_watched(self) -> bool:
        """Whether an action was under way at the last look."""
        return self.executes.is_busy or self.loads.is_busy or self.fetches.is_busy or self.checks.is_busy


RESERVATION = "reservation"


class Stuck(NamedTuple):
    """An action that has taken longer than it may and cannot be ended."""

    action_id: int
    operation: str  # for people: "execution", RESERVATION, "load", ...
    device: str


class _Held(NamedTuple):
    """An action that has not been answered."""

    queue: DeviceQueue
    received_ns: int  # worker clock
    expected_ns: int
    parts: Parts  # INFER: its inputs
    rooms: Rooms  # where the outputs of each part may be written; empty: nowhere
    model_id: int
    reserves: bool  # a RESERVE, in which somebody else has the device


class _Copying:
    """An INFER for which something is copied from or to clients' memory."""

    __slots__ = ("copies", "due_ns")

    def __init__(self, due_ns: int) -> None:
        self.due_ns = due_ns  # when it is answered although copies are under way
        self.copies: list[Copy] = []  # that have not ended


class _Arriving(_Copying):
    """Its inputs are copied; due when its window closes."""

    __slots__ = ("action", "parts", "rooms")

    def __init__(self, action: Infer, parts: Parts, rooms: Rooms, due_ns: int) -> None:
        super().__init__(due_ns)
        self.action = action
        self.parts = parts
        self.rooms = rooms


class _Leaving(_Copying):
    """It has ended on its device, and its outputs are copied."""

    __slots__ = ("completion", "held", "places")

    def __init__(self, completion: Completion, held: _Held, due_ns: int) -> None:
        super().__init__(due_ns)
        self.completion = completion
        self.held = held
        # In the room of each part, as soon as they have been written there.
        self.places: list[Sequence[int]] = [()] * len(completion.parts)


class ActionRunner:
    """Queues, starts, watches and answers the actions of all devices."""

    def __init__(
        self,
        devices: Sequence[Device],
        models: WorkerModels,
        clock: WorkerClock,
        complaints: Complaints,
        copies: Copies,
    ) -> None:
        self.queues = [DeviceQueue(index, device) for index, device in enumerate(devices)]
        self.queue_of = {queue.device: queue for queue in self.queues}  # those of broken devices, too
        self._models = models
        self._clock = clock
        self._complaints = complaints
        self._copies = copies
        self._snapshots = Snapshots()
        self._held: dict[int, _Held] = {}
        self._arriving: dict[int, _Arriving] = {}
        self._leaving: dict[int, _Leaving] = {}
        # Actions that wait for a check of stored bytes: their queue counts them as started, the device has not seen them.
        self._unchecked: dict[int, tuple[DeviceQueue, Action]] = {}
        self._wakes: list[tuple[int, int]] = []  # (when, index); stale where it is not the queue's wake_ns
        self._watch_ns = NEVER_NS  # when actions under way are looked at next
        self._load_limit_ns = bounds.load_limit_ns()
        self._reserve_limit_ns = config.preparation_run_ns()
        self._cancelled = False

    @property
    def count(self) -> int:
        """Actions that have not been answered."""
        return len(self._held) + len(self._arriving) + len(self._leaving)

    def holds(self, action_id: int) -> bool:
        """Whether this action has been received and not answered."""
        return action_id in self._held or action_id in self._arriving or action_id in self._leaving

    @property
    def due_ns(self) -> int:
        """When run_due() or find_stuck() has something to do."""
        wakes = self._wakes
        due_ns = min(self._watch_ns, wakes[0][0]) if wakes else self._watch_ns
        for copying in (self._arriving, self._leaving):
            for one in copying.values():
                due_ns = min(due_ns, one.due_ns)
        return due_ns

    @property
    def copied_bytes(self) -> int:
        """Bytes of inputs from clients' memory that are held."""
        return self._snapshots.used_bytes

    def renumber(self) -> list[DeviceInfo]:
        """The devices that still work, with new indices: only between sessions, while nothing is held."""
        self.queues = [queue for queue in self.queues if not queue.offline]
        for index, queue in enumerate(self.queues):
            queue.index, queue.wake_ns, queue.clock_mhz = index, NEVER_NS, 0
        self._wakes.clear()
        return [queue.device.info for queue in self.queues]

    def reset(self) -> None:
        """Drop every action: the controller has given them up as well."""
        for arriving in self._arriving.values():
            self._drop(arriving)
        for leaving in self._leaving.values():
            self._drop(leaving)
        self._arriving.clear()
        self._leaving.clear()
        self._held.clear()
        self._unchecked.clear()
        for queue in self.queues:
            queue.queue.reset()

    def cancel(self, outcomes: Mapping[int, Outcome]) -> list[Answer]:
        """End every action for good, with its outcome or as CANCELLED; actions that come later are CANCELLED, too."""
        self._cancelled = True
        self._watch_ns = NEVER_NS
        answers = [
            refusal(action_id, *outcomes.get(action_id, CANCELLED), held.received_ns)
            for action_id, held in self._held.items()
        ]
        received_ns = self._clock.to_worker(now_ns())
        answers += [
            refusal(action_id, *outcomes.get(action_id, CANCELLED), received_ns)
            for action_id in self._arriving
        ]
        answers += [self._result(leaving) for leaving in self._leaving.values()]
        self.reset()
        return answers

    # ----- events ------------------------------------------------------------------------------

    def begin(self, action: Infer, frames: list[Frame], now: int) -> list[Answer]:
        """Queue an INFER of the controller, once those of its inputs that lie in clients' memory have been copied.

        frames: of its message. Raises InvalidInput."""
        parts, shared = views(action.parts, frames)
        action = action._replace(parts=[])
        if not any(shared):
            return self.receive(action, parts, now)
        if self.holds(action.action_id):
            _log_twice(action.action_id)
            return []
        rooms = [inputs.room if inputs is not None else None for inputs in shared]
        arriving = _Arriving(action, parts, rooms if any(rooms) else (), self._clock.window(action).latest_ns)
        try:
            for inputs in shared:
                if inputs is not None:
                    work = inputs.read(self._snapshots)
                    arriving.copies.append(self._copies.submit(inputs.process, work, (arriving, 0, ())))
        except InvalidInput:
            self._drop(arriving)
            raise
        self._arriving[action.action_id] = arriving
        return []

    def take_copies(self, now: int) -> list[Answer]:
        """Go on with the actions whose copies have ended."""
        answers: list[Answer] = []
        for copy in self._copies.ended():
            if copy.is_dropped:
                continue
            copying, part, places = copy.subject
            copying.copies.remove(copy)
            if copy.error is not None and not isinstance(copy.error, InvalidInput):
                self._complaints.note(
                    "failed", now, "failed to copy from or to a client's memory", copy.error
                )
            if type(copying) is _Leaving:
                if copy.error is None:
                    copying.places[part] = places
                if not copying.copies:
                    del self._leaving[copying.completion.action_id]
                    answers.append(self._result(copying))
            elif copy.error is not None:
                is_theirs = isinstance(copy.error, InvalidInput)
                status = Status.INVALID_INPUT if is_theirs else Status.DEVICE_ERROR
                text = str(copy.error) if is_theirs else "the worker failed to copy an input"
                answers.append(self._refuse(copying, status, text, now))
            elif not copying.copies:
                del self._arriving[copying.action.action_id]
                answers += self.receive(copying.action, copying.parts, now, copying.rooms)
        return answers

    def tidy(self, now: int) -> None:
        """Give back memory that has not been used for a while."""
        self._snapshots.tidy(now)

    def receive(self, action: Action, parts: Parts, now: int, rooms: Rooms = ()) -> list[Answer]:
        """Queue an action of the controller. parts: the inputs of an INFER; rooms: for the outputs of its parts."""
        received_ns = self._clock.to_worker(now)
        action_id = action.action_id
        if action.device >= len(self.queues):
            text = f"device {action.device} of {len(self.queues)}"
            return [refusal(action_id, Status.DEVICE_ERROR, text, received_ns)]
        if action.model_id not in self._models.ready and type(action) is not Reserve:
            text = self._models.absence(action.model_id)
            return [refusal(action_id, Status.UNKNOWN_MODEL, text, received_ns)]
        if self._cancelled:
            return [refusal(action_id, *CANCELLED, received_ns)]
        if action_id in self._held:
            _log_twice(action_id)
            return []
        queue = self.queues[action.device]
        self._held[action_id] = _Held(
            queue, received_ns, action.expected_ns, parts, rooms, action.model_id, type(action) is Reserve
        )
        answers: list[Answer] = []
        self._obey(queue, queue.queue.step(Received(now, self._clock.window(action))), answers)
        return answers

    def revoke(self, action_id: int, now: int) -> list[Answer]:
        """Drop an action that has not started, if it is held."""
        answers: list[Answer] = []
        if (held := self._held.get(action_id)) is not None:
            self._obey(held.queue, held.queue.queue.step(Revoked(now, action_id)), answers)
        elif (arriving := self._arriving.get(action_id)) is not None:
            answers.append(self._refuse(arriving, Status.ACTION_CANCELLED, "the action was revoked", now))
        return answers

    def complete(self, queue: DeviceQueue, completion: Completion, now: int) -> list[Answer]:
        """Answer an action that has ended on its device, and go on with what waited for it."""
        held = self._held.pop(completion.action_id, None)
        if held is None:
            return []  # of an earlier session
        leaving = self._leave(completion, held, now)
        answers = [] if leaving.copies else [self._result(leaving)]
        self._obey(queue, queue.queue.step(Ended(now, completion.action_id)), answers)
        return answers

    def run_due(self, now: int) -> list[Answer]:
        """Start or refuse the actions whose time has come."""
        answers: list[Answer] = []
        wakes = self._wakes
        while wakes and wakes[0][0] <= now:
            wake_ns, index = heappop(wakes)
            queue = self.queues[index]
            if queue.wake_ns == wake_ns:
                queue.wake_ns = NEVER_NS
                if queue.queue.next_wake_ns <= now:
                    self._obey(queue, queue.queue.step(Due(now)), answers)
                else:
                    self._schedule(queue)
        for arriving in [one for one in self._arriving.values() if one.due_ns <= now]:
            text = "its window closed while its inputs were copied from a client's memory"
            answers.append(self._refuse(arriving, Status.TOO_LATE, text, now))
        for leaving in [one for one in self._leaving.values() if one.due_ns <= now]:
            del self._leaving[leaving.completion.action_id]
            self._drop(leaving)
            answers.append(self._result(leaving))
        return answers

    def start_checked(self) -> list[Answer]:
        """Start the actions that waited for a check, or end them where the model turned out to be damaged."""
        answers: list[Answer] = []
        for action_id, (queue, action) in list(self._unchecked.items()):
            if action.model_id not in self._models.ready:
                del self._unchecked[action_id]
                text = self._models.absence(action.model_id)
                self._end(queue, action_id, Status.DEVICE_ERROR, text, answers)
            elif self._models.demand_check(action.model_id):
                del self._unchecked[action_id]
                self._start(queue, action, answers)
        return answers

    # ----- commands of the queues --------------------------------------------------------------

    def _schedule(self, queue: DeviceQueue) -> None:
        """Enter the queue's next wake-up into the heap, if it is sooner than the entry there."""
        wake_ns = queue.queue.next_wake_ns
        if wake_ns < queue.wake_ns:
            queue.wake_ns = wake_ns
            heappush(self._wakes, (wake_ns, queue.index))
            if len(self._wakes) > len(self.queues) + STALE_WAKES_MAX:
                self._wakes[:] = [
                    (wake, index) for wake, index in self._wakes if self.queues[index].wake_ns == wake
                ]
                heapify(self._wakes)

    def _obey(self, queue: DeviceQueue, commands: Iterable[QueueCommand], answers: list[Answer]) -> None:
        self._schedule(queue)
        for command in commands:
            if type(command) is Start:
                if not self._hold_for_check(queue, command.action):
                    self._start(queue, command.action, answers)
                if self._watch_ns == NEVER_NS:
                    self._watch_ns = now_ns() + WATCH_INTERVAL_NS
            elif type(command) is Reject:
                action_id = command.action.action_id
                held = self._held.pop(action_id)
                answers.append(refusal(action_id, command.status, command.text, held.received_ns))
            elif type(command) is RevokeStarted:
                if command.action_id in self._unchecked:
                    del self._unchecked[command.action_id]
                    self._end(queue, command.action_id, Status.ACTION_CANCELLED, "revoked", answers)
                else:
                    queue.device.revoke(command.action_id)

    def _hold_for_check(self, queue: DeviceQueue, action: Action) -> bool:
        """Keep an action from the device if it, or an earlier one that it must follow, waits for a check."""
        if type(action) not in ORDERED_BY_MODEL:
            return False
        is_behind = any(
            earlier.model_id == action.model_id and where is queue
            for where, earlier in self._unchecked.values()
        )
        reads_store = type(action) in (Load, HostFetch)
        if not is_behind and not (reads_store and not self._models.demand_check(action.model_id)):
            return False
        self._unchecked[action.action_id] = (queue, action)
        return True

    def _start(self, queue: DeviceQueue, action: Action, answers: list[Answer]) -> None:
        device = queue.device
        try:
            if type(action) is Infer:
                device.start_infer(action, self._held[action.action_id].parts)
            elif type(action) is Load:
                device.start_load(action)
            elif type(action) is Unload:
                device.start_unload(action)
            elif type(action) is Profile:
                device.start_profile(action)
            elif type(action) is Reserve:
                device.start_reserve(action)
            elif type(action) is HostFetch:
                device.start_fetch(action)
            elif type(action) is HostDrop:
                device.start_drop(action)
        except Exception as error:  # whatever it is, this action has ended, and the lane is free for the next
            if not isinstance(error, (ValueError, TypeError, OverflowError, MemoryError, ClockworkError)):
                self._complaints.note("failed", now_ns(), f"failed to start a {type(action).__name__}", error)
            status = Status.INVALID_INPUT if isinstance(error, InvalidInput) else Status.DEVICE_ERROR
            text = str(error) or "there is not enough memory for the action"
            self._end(queue, action.action_id, status, text, answers)

    def _end(
        self, queue: DeviceQueue, action_id: int, status: Status, text: str, answers: list[Answer]
    ) -> None:
        """End an action that its queue counts as started and the device does not know."""
        held = self._held.pop(action_id)
        answers.append(refusal(action_id, status, text, held.received_ns))
        self._obey(queue, queue.queue.step(Ended(now_ns(), action_id)), answers)

    def _drop(self, copying: _Copying) -> None:
        """Wait for an action's copies no longer."""
        for copy in copying.copies:
            self._copies.drop(copy)
        copying.copies.clear()  # each refers to the action: such a circle would wait for the collector

    def _refuse(self, arriving: _Arriving, status: Status, text: str, now: int) -> Answer:
        """End an action whose inputs are being copied."""
        action_id = arriving.action.action_id
        del self._arriving[action_id]
        self._drop(arriving)
        return refusal(action_id, status, text, self._clock.to_worker(now))

    def _leave(self, completion: Completion, held: _Held, now: int) -> _Leaving:
        """An action that has ended on its device, as a failure if its outputs contradict the model. What of them fits into
        its clients' rooms is being written there."""
        given = self._models.ready.get(held.model_id)
        if given is not None and completion.parts:
            why = given.contradicted_by(completion.parts, held.parts)
            if why:
                completion = completion._replace(status=Status.EXECUTION_FAILED, text=why, parts=[])
        leaving = _Leaving(completion, held, now + ROOM_WAIT_NS)
        for part, (room, outputs) in enumerate(zip(held.rooms, completion.parts)):
            if room is None or not any(places := room.places(outputs)):
                continue
            # Not in turn with the client's inputs: a write waits for a lock that the owner may hold, and a read does not.
            try:
                copy = self._copies.submit(
                    ~room.process, room.write(outputs, places), (leaving, part, places)
                )
            except InvalidInput:  # too much is being copied: the outputs are sent
                continue
            leaving.copies.append(copy)
            written = sum(memoryview(data).nbytes for (_, _, data), place in zip(outputs, places) if place)
            leaving.due_ns += ROOM_WAIT_BYTE_NS * written
        if leaving.copies:
            self._leaving[completion.action_id] = leaving
        return leaving

    def _result(self, leaving: _Leaving) -> Answer:
        """The result of an action that has ended on its device: outputs that have been written to their client's memory by
        their places, all others by their bytes."""
        completion = leaving.completion
        frames: list[Frame] = []
        parts: list[list[TensorRef]] = []
        for places, part in zip(leaving.places, completion.parts):
            refs: list[TensorRef] = []
            for index, (dtype, shape, data) in enumerate(part):
                if places and places[index]:
                    refs.append([dtype | SHARED, shape, len(frames)])
                    frames.append(PLACE.pack(places[index], memoryview(data).nbytes))
                else:
                    refs.append([dtype, shape, len(frames)])
                    frames.append(data)
            parts.append(refs)
        phase = self._clock.phase
        result = Result(
            completion.action_id,
            completion.status,
            completion.text,
            leaving.held.received_ns,
            phase(completion.copy_in),
            phase(completion.execute),
            phase(completion.copy_out),
            parts,
        )
        return codec.encode(result), frames

    # ----- actions that run too long -----------------------------------------------------------

    def find_stuck(self, now: int) -> Stuck | None:
        """End executions that take longer than they may; an action that does not come back, if there is any."""
        if now < self._watch_ns:
            return None
        busy = False
        for queue in self.queues:
            if not queue.queue.started_count and not queue.is_watched:
                continue
            busy = True
            device = queue.device
            running, (loading, fetching) = device.running(), device.moving()
            waiting = next((number for number, (where, _) in self._unchecked.items() if where is queue), 0)
            least_ns = self._load_limit_ns
            execution, run_limit_ns = "execution", execution_limit_ns(self._expected_ns(running))
            if running in self._held and self._held[running].reserves:
                execution, run_limit_ns = RESERVATION, self._reserve_limit_ns
            for operation, watch, action_id, limit_ns in (
                (execution, queue.executes, running, run_limit_ns),
                ("load", queue.loads, loading, load_limit_ns(self._expected_ns(loading), least_ns)),
                ("fetch", queue.fetches, fetching, load_limit_ns(self._expected_ns(fetching), least_ns)),
                ("check before a load", queue.checks, waiting, CHECK_LIMIT_NS),
            ):
                verdict = watch.look(now, action_id, limit_ns)
                if verdict is Verdict.END:
                    device.end_run(action_id)
                elif verdict is Verdict.STUCK:
                    return Stuck(action_id, operation, device.info.name)
        self._watch_ns = now + WATCH_INTERVAL_NS if busy else NEVER_NS
        return None

    def _expected_ns(self, action_id: int) -> int:
        held = self._held.get(action_id)
        return held.expected_ns if held is not None else 0

    def end_runs(self) -> bool:
        """End running executions, and wait for loads. False: some of them do not end."""
        give_up_ns = now_ns() + EXECUTION_GRACE_NS
        while True:
            busy = False
            for device in self.queue_of:
                action_id = device.running()
                if action_id:
                    device.end_run(action_id)
                busy |= action_id != 0 or any(device.moving())
            if not busy:
                return True
            if now_ns() >= give_up_ns:
                return False
            time.sleep(END_PAUSE_S)


def _log_twice(action_id: int) -> None:
    log.warning("action %d was sent twice; the second is dropped", action_id)


def refusal(action_id: int, status: Status, text: str, received_ns: int) -> Answer:
    """The result of an action that did not reach its device."""
    return codec.encode(Result(action_id, status, text, received_ns, NO_PHASE, NO_PHASE, NO_PHASE, [])), ()
