"""INFERs whose inputs lie in clients' memory: the code before the road, with a road that only records its
calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from clockwork.config.worker import ROOM_WAIT_BYTE_NS, ROOM_WAIT_NS
from clockwork.device.base import Completion, TensorView
from clockwork.errors import InvalidInput
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.system.copies import Copies, Copy, Work
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.messages import FROM_WORKER, TO_WORKER, Infer, Result, Status
from clockwork.wire.shared import PLACE, SHARED, Reference
from clockwork.wire.tensors import UINT8
from clockwork.worker.clock import WorkerClock
from clockwork.worker.given import Given
from clockwork.worker.lending import NO_PHASE, Answer, FatalOutcome, Lending

MODEL = 1


class NotingRoad:
    """Takes every INFER and ends none."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.received_ns: list[int] = []

    def receive_copied(self, header: bytes, tensors: Sequence[object], now: int) -> None:
        action = codec.decode(header, TO_WORKER)
        assert isinstance(action, Infer)
        assert len(tensors) == sum(map(len, action.parts))
        self.started.append(action.action_id)
        self.received_ns.append(now)

    def holds(self, action_id: int) -> bool:
        return action_id in self.started


class Ended:
    """An INFER that has ended; see worker/_road.pyi."""

    def __init__(self, completion: Completion, received_ns: int) -> None:
        self.completion = completion
        self.inputs: list[list[TensorView]] = [[TensorView(UINT8, (1, 8), b"")] for _ in completion.parts]
        self.received_ns = received_ns
        self.model_id = MODEL
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def outcomes(answers: list[Answer]) -> list[tuple[int, Status]]:
    results = [codec.decode(header, FROM_WORKER) for header, _ in answers]
    return [(result.action_id, Status(result.status)) for result in results if isinstance(result, Result)]


OTHER = FatalOutcome(99, Status.OVERRUN, "it took too long")


class HandCopies(Copies):
    """Copies that end when a test says so."""

    def __init__(self) -> None:
        super().__init__(lambda: None, "process")
        self.under_way: list[Copy] = []

    def submit(self, owner: int, work: Work, subject: Any) -> Copy:
        self.under_way.append(Copy(owner, work, subject))
        return self.under_way[-1]

    def drop(self, copy: Copy) -> None:
        copy.is_dropped = True

    def end(self, error: Exception | None = None) -> None:
        """End the copy that was requested first."""
        copy = self.under_way.pop(0)
        copy.error = error
        self._ended.append(copy)


class Stage:
    def __init__(self) -> None:
        self.road, self.copies = NotingRoad(), HandCopies()
        self.given = {MODEL: Given([], False, False)}
        self.lending = Lending(
            self.road, self.given, WorkerClock(), Complaints(logging.getLogger(), ("failed",)), self.copies
        )
        self.now = now_ns()

    def begin(self, action_id: int, parts: int = 1, room_bytes: int = 0) -> list[Answer]:
        """An INFER, each part of which has an input in its client's memory."""
        reference = Reference(1, 2, 3, bytes(16), 64, 4, bytes(16), room_bytes).pack()
        tensors = [[[UINT8 | SHARED, [1, 8], part]] for part in range(parts)]
        action = Infer(action_id, 0, MODEL, 1, self.now, self.now + SECOND, MS, tensors)
        return self.lending.begin(action, [codec.encode(action), *([reference] * parts)], self.now)

    def executed(self, action_id: int, parts: int = 1) -> list[Answer]:
        output = TensorView(UINT8, (1, 8), b"12345678")
        done = Completion(action_id, Status.OK, "", *([NO_PHASE] * 3), [[output] for _ in range(parts)])
        ended = Ended(done, self.road.received_ns[self.road.started.index(action_id)])
        self.road.started[self.road.started.index(action_id)] = 0
        answers = self.lending.ended(ended, self.now)
        assert ended.is_closed
        return answers


def test_an_action_begins_when_its_inputs_have_been_copied_which_its_result_says() -> None:
    stage = Stage()
    assert stage.begin(1, parts=2) == []
    assert stage.begin(1, parts=2) == [], "it was sent twice"
    assert stage.lending.holds(1)
    assert stage.lending.count == 1
    stage.copies.end()
    assert stage.lending.take_copies(stage.now) == []
    assert stage.road.started == []
    stage.copies.end()
    assert stage.lending.take_copies(stage.now + 5 * MS) == []
    assert stage.road.started == [1]
    [(header, _)] = stage.executed(1, parts=2)
    assert codec.decode(header, FROM_WORKER).received_ns == stage.now + 5 * MS
    assert stage.lending.count == 0


def test_an_action_whose_inputs_cannot_be_copied_is_its_clients_error_or_a_complaint() -> None:
    stage = Stage()
    for action_id, error, status in (
        (1, InvalidInput("no such memory"), Status.INVALID_INPUT),
        (2, AssertionError("a defect"), Status.DEVICE_ERROR),
    ):
        stage.begin(action_id, parts=2)
        stage.copies.end(error)
        assert outcomes(stage.lending.take_copies(stage.now)) == [(action_id, status)]
        stage.copies.end()
        assert stage.lending.take_copies(stage.now) == []
    assert stage.road.started == []
    assert stage.lending.count == 0


def test_an_action_whose_inputs_are_being_copied_is_revoked_cancelled_or_too_late() -> None:
    stage = Stage()
    for action_id in (1, 2, 3):
        stage.begin(action_id)
    copies = list(stage.copies.under_way)
    assert outcomes(stage.lending.revoke(1, stage.now)) == [(1, Status.ACTION_CANCELLED)]
    assert stage.lending.due_ns == stage.now + SECOND
    assert stage.lending.run_due(stage.now + SECOND - 1) == []
    late = stage.lending.run_due(stage.now + SECOND)
    assert outcomes(late) == [(2, Status.TOO_LATE), (3, Status.TOO_LATE)]
    stage.begin(4)
    assert outcomes(stage.lending.cancel(OTHER)) == [(4, Status.ACTION_CANCELLED)]
    assert all(copy.is_dropped for copy in copies)
    for _ in range(4):
        stage.copies.end()
    assert stage.lending.take_copies(stage.now) == []
    assert stage.road.started == []
    assert stage.lending.count == 0


def test_outputs_go_to_the_clients_room_or_with_the_answer_where_that_takes_too_long() -> None:
    stage = Stage()

    def execute(action_id: int) -> None:
        stage.begin(action_id, parts=2, room_bytes=100)
        for _ in range(2):
            stage.copies.end()
        stage.lending.take_copies(stage.now)
        assert stage.executed(action_id, parts=2) == []
        assert stage.lending.holds(action_id)

    def sent(answers: list[Answer]) -> list[bool]:
        [(header, frames)] = answers
        result = codec.decode(header, FROM_WORKER)
        assert result.status == Status.OK
        is_sent = [not dtype & SHARED for [[dtype, _, _]] in result.parts]
        places = PLACE.pack(64, 8)
        assert [bytes(frame) for frame in frames] == [b"12345678" if one else places for one in is_sent]
        return is_sent

    execute(1)
    stage.copies.end()
    assert stage.lending.take_copies(stage.now) == []
    stage.copies.end(InvalidInput("it is gone"))
    assert sent(stage.lending.take_copies(stage.now)) == [False, True]
    execute(2)
    stage.copies.end()
    assert stage.lending.take_copies(stage.now) == []
    # computed by the outputs: a room has any size
    due_ns = stage.now + ROOM_WAIT_NS + 2 * 8 * ROOM_WAIT_BYTE_NS
    assert stage.lending.due_ns <= due_ns
    assert stage.lending.run_due(due_ns - 1) == []
    assert sent(stage.lending.run_due(due_ns)) == [False, True]
    stage.copies.end()
    assert stage.lending.take_copies(stage.now) == [], "it has been answered"
    execute(3)
    assert sent(stage.lending.cancel(OTHER)) == [True, True]
    assert stage.lending.count == 0
