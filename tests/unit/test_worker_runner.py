"""A worker's actions from their arrival to their results, on a device that only notes what it is told."""

from __future__ import annotations

import logging
from typing import Any, cast

from clockwork.config import PREPARATION_RUN_NS
from clockwork.config.worker import ROOM_WAIT_BYTE_NS, ROOM_WAIT_NS, WATCH_INTERVAL_NS
from clockwork.device.base import Completion, Device, TensorView
from clockwork.errors import InvalidInput
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.system.copies import Copies, Copy, Work
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.messages import FROM_WORKER, DeviceInfo, Infer, Load, Reserve, Result, Status
from clockwork.wire.shared import PLACE, SHARED, Reference
from clockwork.wire.tensors import UINT8
from clockwork.worker.clock import WorkerClock
from clockwork.worker.given import Given
from clockwork.worker.models import WorkerModels
from clockwork.worker.runner import NO_PHASE, ActionRunner, Answer

MODEL = 1


class NotingDevice:
    """Takes every action and completes none."""

    info = DeviceInfo("emulated", "noting", "noting", 1 << 20, 16, 4)

    def __init__(self) -> None:
        self.started: list[int] = []
        self.revoked: list[int] = []
        self.runs = 0

    def start_load(self, action: Load) -> None:
        self.started.append(action.action_id)

    def start_infer(self, action: Infer, parts: Any) -> None:
        self.started.append(action.action_id)

    def revoke(self, action_id: int) -> None:
        self.revoked.append(action_id)

    def start_reserve(self, action: Reserve) -> None:
        self.started.append(action.action_id)
        self.runs = action.action_id

    def running(self) -> int:
        return self.runs

    def end_run(self, action_id: int) -> None:
        """It cannot be ended."""

    def moving(self) -> tuple[int, int]:
        return 0, 0


class ReadyModels:
    """A model that is ready, whose stored bytes are known to be whole when the test says so."""

    def __init__(self) -> None:
        self.ready: dict[int, Any] = {MODEL: None}
        self.whole = True

    def demand_check(self, model_id: int) -> bool:
        return self.whole

    def absence(self, model_id: int) -> str:
        return "damaged"


class Stage:
    def __init__(self) -> None:
        self.device, self.models = NotingDevice(), ReadyModels()
        self.runner = ActionRunner(
            [cast(Device, self.device)],
            cast(WorkerModels, self.models),
            WorkerClock(),
            Complaints(logging.getLogger(), ("failed",)),
            Copies(lambda: None, "process"),
        )
        self.now = now_ns()

    def load(self, action_id: int) -> list[tuple[int, Status]]:
        action = Load(action_id, 0, MODEL, action_id, [0], self.now - MS, self.now + SECOND, MS)
        return outcomes(self.runner.receive(action, [], self.now))

    def infer(self, action_id: int, earliest_ns: int, latest_ns: int) -> list[tuple[int, Status]]:
        action = Infer(action_id, 0, MODEL, 1, earliest_ns, latest_ns, MS, [[]])
        return outcomes(self.runner.receive(action, [], self.now))


def outcomes(answers: list[Answer]) -> list[tuple[int, Status]]:
    results = [codec.decode(header, FROM_WORKER) for header, _ in answers]
    return [(result.action_id, Status(result.status)) for result in results if isinstance(result, Result)]


def test_loads_that_wait_for_a_check_start_in_order_or_end_where_the_model_is_damaged() -> None:
    stage = Stage()
    stage.models.whole = False
    assert stage.load(1) == stage.load(2) == []
    assert stage.device.started == []
    stage.models.whole = True
    assert stage.load(3) == []  # behind the others
    assert outcomes(stage.runner.start_checked()) == []
    assert stage.device.started == [1, 2, 3]
    stage.models.whole = False
    stage.load(4)
    assert outcomes(stage.runner.revoke(4, stage.now)) == [(4, Status.ACTION_CANCELLED)]
    assert outcomes(stage.runner.revoke(3, stage.now)) == []
    assert stage.device.revoked == [3]


def test_an_action_that_is_cancelled_while_it_waits_for_its_window_neither_starts_nor_is_refused_again() -> (
    None
):
    stage = Stage()
    assert stage.infer(1, stage.now + 100 * MS, stage.now + 200 * MS) == []
    assert outcomes(stage.runner.cancel({})) == [(1, Status.ACTION_CANCELLED)]
    assert stage.runner.count == 0
    for later_ns in (100 * MS, SECOND):
        assert stage.runner.run_due(stage.now + later_ns) == []
    assert stage.device.started == []
    assert stage.infer(2, stage.now, stage.now + SECOND) == [(2, Status.ACTION_CANCELLED)]


def test_a_completion_of_an_earlier_session_is_no_answer() -> None:
    stage = Stage()
    stage.load(1)
    stage.runner.reset()
    done = Completion(1, Status.OK, "", NO_PHASE, NO_PHASE, NO_PHASE, [])
    queue = stage.runner.queues[0]
    assert stage.runner.complete(queue, done, stage.now) == []
    stage.load(2)
    answers = stage.runner.complete(queue, done._replace(action_id=2), stage.now)
    assert outcomes(answers) == [(2, Status.OK)]
    assert stage.runner.find_stuck(stage.now + 2 * WATCH_INTERVAL_NS) is None


def test_a_reservation_may_take_as_long_as_an_execution_of_a_preparation() -> None:
    stage = Stage()
    window = stage.now - MS, stage.now + SECOND
    assert outcomes(stage.runner.receive(Reserve(1, 0, 77, 0, [], *window, MS), [], stage.now)) == []
    stuck, now = None, now_ns()
    begun_ns = now
    while stuck is None:
        now += 2 * WATCH_INTERVAL_NS
        stuck = stage.runner.find_stuck(now)
    assert (stuck.action_id, stuck.operation) == (1, "reservation")
    assert PREPARATION_RUN_NS < now - begun_ns < PREPARATION_RUN_NS + 3 * SECOND


# ----- copies from and to clients' memory ----------------------------------------------------------


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
        """The copy that was asked for first ends."""
        copy = self.under_way.pop(0)
        copy.error = error
        self._ended.append(copy)


class CopyingStage(Stage):
    def __init__(self) -> None:
        super().__init__()
        self.copies = HandCopies()
        self.models.ready[MODEL] = Given([], False, False)
        self.runner = ActionRunner(
            [cast(Device, self.device)],
            cast(WorkerModels, self.models),
            WorkerClock(),
            Complaints(logging.getLogger(), ("failed",)),
            self.copies,
        )

    def begin(self, action_id: int, parts: int = 1, room_bytes: int = 0) -> list[Answer]:
        """An INFER, each part of which has an input in its client's memory."""
        reference = Reference(1, 2, 3, bytes(16), 64, 4, bytes(16), room_bytes).pack()
        tensors = [[[UINT8 | SHARED, [1, 8], part]] for part in range(parts)]
        action = Infer(action_id, 0, MODEL, 1, self.now, self.now + SECOND, MS, tensors)
        return self.runner.begin(action, [b"", *([reference] * parts)], self.now)

    def executed(self, action_id: int, parts: int = 1) -> list[Answer]:
        output = TensorView(UINT8, (1, 8), b"12345678")
        done = Completion(action_id, Status.OK, "", *([NO_PHASE] * 3), [[output] for _ in range(parts)])
        return self.runner.complete(self.runner.queues[0], done, self.now)


def test_an_action_begins_when_its_inputs_have_been_copied_which_its_result_says() -> None:
    stage = CopyingStage()
    assert stage.begin(1, parts=2) == []
    assert stage.begin(1, parts=2) == [], "it was sent twice"
    assert stage.runner.holds(1)
    assert stage.runner.count == 1
    stage.copies.end()
    assert stage.runner.take_copies(stage.now) == []
    assert stage.device.started == []
    stage.copies.end()
    assert stage.runner.take_copies(stage.now + 5 * MS) == []
    assert stage.device.started == [1]
    [(header, _)] = stage.executed(1, parts=2)
    assert codec.decode(header, FROM_WORKER).received_ns == stage.now + 5 * MS
    assert stage.runner.count == 0


def test_an_action_whose_inputs_cannot_be_copied_is_its_clients_error_or_a_complaint() -> None:
    stage = CopyingStage()
    for action_id, error, status in (
        (1, InvalidInput("no such memory"), Status.INVALID_INPUT),
        (2, AssertionError("a defect"), Status.DEVICE_ERROR),
    ):
        stage.begin(action_id, parts=2)
        stage.copies.end(error)
        assert outcomes(stage.runner.take_copies(stage.now)) == [(action_id, status)]
        stage.copies.end()
        assert stage.runner.take_copies(stage.now) == []
    assert stage.device.started == []
    assert stage.runner.count == 0


def test_an_action_whose_inputs_are_being_copied_is_revoked_cancelled_or_too_late() -> None:
    stage = CopyingStage()
    for action_id in (1, 2, 3):
        stage.begin(action_id)
    copies = list(stage.copies.under_way)
    assert outcomes(stage.runner.revoke(1, stage.now)) == [(1, Status.ACTION_CANCELLED)]
    assert stage.runner.due_ns == stage.now + SECOND
    assert stage.runner.run_due(stage.now + SECOND - 1) == []
    late = stage.runner.run_due(stage.now + SECOND)
    assert outcomes(late) == [(2, Status.TOO_LATE), (3, Status.TOO_LATE)]
    stage.begin(4)
    assert outcomes(stage.runner.cancel({})) == [(4, Status.ACTION_CANCELLED)]
    assert all(copy.is_dropped for copy in copies)
    for _ in range(4):
        stage.copies.end()
    assert stage.runner.take_copies(stage.now) == []
    assert stage.device.started == []
    assert stage.runner.count == 0


def test_outputs_go_to_the_clients_room_or_with_the_answer_where_that_takes_too_long() -> None:
    stage = CopyingStage()

    def execute(action_id: int) -> None:
        stage.begin(action_id, parts=2, room_bytes=100)
        for _ in range(2):
            stage.copies.end()
        stage.runner.take_copies(stage.now)
        assert stage.executed(action_id, parts=2) == []
        assert stage.runner.holds(action_id)

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
    assert stage.runner.take_copies(stage.now) == []
    stage.copies.end(InvalidInput("it is gone"))
    assert sent(stage.runner.take_copies(stage.now)) == [False, True]
    execute(2)
    stage.copies.end()
    assert stage.runner.take_copies(stage.now) == []
    due_ns = stage.now + ROOM_WAIT_NS + 2 * 8 * ROOM_WAIT_BYTE_NS  # by the outputs: a room has any size
    assert stage.runner.due_ns <= due_ns
    assert stage.runner.run_due(due_ns - 1) == []
    assert sent(stage.runner.run_due(due_ns)) == [False, True]
    stage.copies.end()
    assert stage.runner.take_copies(stage.now) == [], "it has been answered"
    execute(3)
    assert sent(stage.runner.cancel({})) == [True, True]
    assert stage.runner.count == 0
