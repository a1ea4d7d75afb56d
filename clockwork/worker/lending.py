"""INFERs whose inputs lie in a client's memory, or whose outputs may be written there; see worker/memory.py.

All other actions pass through the native road (csrc/worker/road.h) alone. The road hands over an INFER that
refers to a client's memory, takes it back once its inputs have been copied, and hands over its end.
Everything here belongs to the loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from clockwork.config.worker import ROOM_WAIT_BYTE_NS, ROOM_WAIT_NS
from clockwork.device.base import Completion, TensorView
from clockwork.errors import InvalidInput
from clockwork.system.clock import now_ns
from clockwork.system.copies import Copies, Copy
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.messages import NEVER_NS, Infer, Phase, Result, Status, TensorRef
from clockwork.wire.shared import PLACE, SHARED
from clockwork.wire.transport import Frame
from clockwork.worker.clock import WorkerClock
from clockwork.worker.given import Given
from clockwork.worker.memory import OutputRegion, views
from clockwork.worker.snapshots import Snapshots

log = logging.getLogger("clockwork.worker")

Answer: TypeAlias = tuple[bytes, Sequence[Frame]]  # The header and frames of a Result

OutputRegions: TypeAlias = Sequence[OutputRegion | None]

CANCELLED_TEXT = "the worker ends because of another action"

NO_PHASE: Phase = [0, 0, 0]


class EndedInfer(Protocol):
    """An INFER that has ended on its device; see Ended in worker/_road.pyi."""

    completion: Completion
    inputs: list[list[TensorView]]
    received_ns: int
    model_id: int

    def close(self) -> None: ...


class LendingRoad(Protocol):
    """The methods of the native road to which INFERs with copied inputs return."""

    def receive_copied(self, header: bytes, tensors: Sequence[object], now: int) -> None: ...

    def holds(self, action_id: int) -> bool: ...


class FatalOutcome(NamedTuple):
    """The outcome of the action because of which all others are cancelled."""

    action_id: int
    status: Status
    text: str


class _Copying:
    """An INFER whose inputs or outputs are being copied from or to a client's memory."""

    __slots__ = ("copies", "due_ns")

    def __init__(self, due_ns: int) -> None:
        self.due_ns = due_ns  # the time at which it is answered although copies are under way
        self.copies: list[Copy] = []  # copies that have not ended


class _Arriving(_Copying):
    """An INFER whose inputs are being copied. It is due when its window closes."""

    __slots__ = ("action_id", "header", "parts", "rooms")

    def __init__(
        self, action_id: int, header: bytes, parts: list[list[TensorView]], rooms: OutputRegions, due_ns: int
    ) -> None:
        super().__init__(due_ns)
        self.action_id = action_id
        self.header = header
        self.parts = parts
        self.rooms = rooms


class _Leaving(_Copying):
    """An INFER that has ended on its device and whose outputs are being copied."""

    __slots__ = ("completion", "places", "received_ns")

    def __init__(self, completion: Completion, received_ns: int, due_ns: int) -> None:
        super().__init__(due_ns)
        self.completion = completion
        self.received_ns = received_ns
        # The offsets of each part's outputs in its client's memory, once they have been written.
        self.places: list[Sequence[int]] = [()] * len(completion.parts)


class Lending:
    """INFERs whose tensors are copied between clients' memory and the road. given: declared outputs by model
    id."""

    def __init__(
        self,
        road: LendingRoad,
        given: dict[int, Given],
        clock: WorkerClock,
        complaints: Complaints,
        copies: Copies,
    ) -> None:
        self._road = road
        self._given = given
        self._clock = clock
        self._complaints = complaints
        self._copies = copies
        self._snapshots = Snapshots()
        self._arriving: dict[int, _Arriving] = {}
        self._leaving: dict[int, _Leaving] = {}
        self._rooms: dict[int, OutputRegions] = {}  # INFERs in the road by id; tidy() drops refused ones
        self._is_cancelled = False

    @property
    def count(self) -> int:
        """The number of unanswered INFERs outside the road."""
        return len(self._arriving) + len(self._leaving)

    def holds(self, action_id: int) -> bool:
        """Whether this action is an unanswered INFER outside the road."""
        return action_id in self._arriving or action_id in self._leaving

    @property
    def due_ns(self) -> int:
        """The earliest time in ns at which run_due() has an answer to send."""
        due_ns = NEVER_NS
        for copying in (self._arriving, self._leaving):
            for held in copying.values():
                due_ns = min(due_ns, held.due_ns)
        return due_ns

    @property
    def copied_bytes(self) -> int:
        """The bytes held by copies of inputs from clients' memory."""
        return self._snapshots.used_bytes

    def reset(self) -> None:
        """Drop every action: the controller has given them up as well."""
        for arriving in self._arriving.values():
            self._drop(arriving)
        for leaving in self._leaving.values():
            self._drop(leaving)
        self._arriving.clear()
        self._leaving.clear()
        self._rooms.clear()

    def cancel(self, outcome: FatalOutcome) -> list[Answer]:
        """End the action of `outcome` with it, all others as cancelled. Later actions are cancelled, too."""
        self._is_cancelled = True
        received_ns = self._clock.to_worker(now_ns())
        answers = [
            refusal(outcome.action_id, outcome.status, outcome.text, received_ns)
            if action_id == outcome.action_id
            else refusal(action_id, Status.ACTION_CANCELLED, CANCELLED_TEXT, received_ns)
            for action_id in self._arriving
        ]
        answers += [self._result(leaving) for leaving in self._leaving.values()]
        self.reset()
        return answers

    # ----- events ------------------------------------------------------------------------------

    def begin(self, action: Infer, frames: list[Frame], now: int) -> list[Answer]:
        """Start copying the inputs that lie in clients' memory. frames: all frames of the INFER's message."""
        if self.holds(action.action_id) or self._road.holds(action.action_id):
            log_twice(action.action_id)
            return []
        received_ns = self._clock.to_worker(now)
        if self._is_cancelled:
            return [refusal(action.action_id, Status.ACTION_CANCELLED, CANCELLED_TEXT, received_ns)]
        arriving: _Arriving | None = None
        try:
            parts, shared = views(action.parts, frames)
            rooms = [inputs.room if inputs is not None else None for inputs in shared]
            due_ns = self._clock.to_machine(action.latest_ns)
            arriving = _Arriving(action.action_id, frames[0], parts, rooms if any(rooms) else (), due_ns)
            for inputs in shared:
                if inputs is not None:
                    work = inputs.read(self._snapshots)
                    arriving.copies.append(self._copies.submit(inputs.process, work, (arriving, 0, ())))
        except InvalidInput as error:
            if arriving is not None:
                self._drop(arriving)
            return [refusal(action.action_id, Status.INVALID_INPUT, str(error), received_ns)]
        self._arriving[action.action_id] = arriving
        return []

    def take_copies(self, now: int) -> list[Answer]:
        """Continue the INFERs whose copies have ended. Returns the answers that are complete."""
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
                del self._arriving[copying.action_id]
                if copying.rooms:
                    self._rooms[copying.action_id] = copying.rooms
                tensors = [view.data for row in copying.parts for view in row]
                self._road.receive_copied(copying.header, tensors, now)
        return answers

    def revoke(self, action_id: int, now: int) -> list[Answer]:
        """Revoke an action whose inputs are being copied; any other action is ignored."""
        arriving = self._arriving.get(action_id)
        if arriving is None:
            return []
        return [self._refuse(arriving, Status.ACTION_CANCELLED, "the action was revoked", now)]

    def ended(self, infer: EndedInfer, now: int) -> list[Answer]:
        """Answer an INFER that has ended on its device, as a failure if its outputs contradict the model.

        Outputs that fit into their client's memory are written there before the answer is sent."""
        completion = infer.completion
        given = self._given.get(infer.model_id)
        if given is not None and completion.parts:
            why = given.contradicted_by(completion.parts, infer.inputs)
            if why:
                completion = completion._replace(status=Status.EXECUTION_FAILED, text=why, parts=[])
        leaving = _Leaving(completion, infer.received_ns, now + ROOM_WAIT_NS)
        for part, (room, outputs) in enumerate(
            zip(self._rooms.pop(completion.action_id, ()), completion.parts)
        ):
            if room is None or not any(places := room.places(outputs)):
                continue
            # Writes have a queue of their own: a write may wait for a lock that the client holds, a read does
            # not.
            try:
                copy = self._copies.submit(
                    ~room.process, room.write(outputs, places), (leaving, part, places)
                )
            except InvalidInput:  # too much is being copied: the outputs are sent
                continue
            leaving.copies.append(copy)
            written = sum(memoryview(data).nbytes for (_, _, data), place in zip(outputs, places) if place)
            leaving.due_ns += ROOM_WAIT_BYTE_NS * written
        infer.close()
        if not leaving.copies:
            return [self._result(leaving)]
        self._leaving[completion.action_id] = leaving
        return []

    def run_due(self, now: int) -> list[Answer]:
        """Answer the INFERs whose copies have not ended by their due time."""
        answers: list[Answer] = []
        for arriving in [copying for copying in self._arriving.values() if copying.due_ns <= now]:
            text = "its window closed while its inputs were copied from a client's memory"
            answers.append(self._refuse(arriving, Status.TOO_LATE, text, now))
        for leaving in [copying for copying in self._leaving.values() if copying.due_ns <= now]:
            del self._leaving[leaving.completion.action_id]
            self._drop(leaving)
            answers.append(self._result(leaving))
        return answers

    def tidy(self, now: int) -> None:
        """Give memory that has been unused for a while back to the system."""
        self._snapshots.tidy(now)
        for action_id in [held for held in self._rooms if not self._road.holds(held)]:
            del self._rooms[action_id]

    # ----- inside ------------------------------------------------------------------------------

    def _drop(self, copying: _Copying) -> None:
        """Stop waiting for an action's copies."""
        for copy in copying.copies:
            self._copies.drop(copy)
        copying.copies.clear()  # breaks the cycle of references between copies and action

    def _refuse(self, arriving: _Arriving, status: Status, text: str, now: int) -> Answer:
        """Build the refusal of an action whose inputs are being copied."""
        del self._arriving[arriving.action_id]
        self._drop(arriving)
        return refusal(arriving.action_id, status, text, self._clock.to_worker(now))

    def _result(self, leaving: _Leaving) -> Answer:
        """Build the result of an action that has ended on its device.

        An output that has been written to its client's memory is given by its place, any other by its bytes.
        """
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
            leaving.received_ns,
            phase(completion.copy_in),
            phase(completion.execute),
            phase(completion.copy_out),
            parts,
        )
        return codec.encode(result), frames


def log_twice(action_id: int) -> None:
    """Log that an action came a second time."""
    log.warning("action %d was sent twice; the second is dropped", action_id)


def refusal(action_id: int, status: Status, text: str, received_ns: int) -> Answer:
    """Build the result of an action that did not reach its device."""
    return codec.encode(Result(action_id, status, text, received_ns, NO_PHASE, NO_PHASE, NO_PHASE, [])), ()
