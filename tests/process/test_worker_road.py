"""The native road of a worker between a socket and a device, with a test in the place of the worker's
loop."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from clockwork.device.base import Device
from clockwork.device.cpu import CpuArena, CpuDevice
from clockwork.device.emulated import EmulatedGroup
from clockwork.device.emulation import EmulatedSettings
from clockwork.device.machine import ArenaPlace
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.formats.prepared import PreparedModel
from clockwork.formats.profile_package import encode_profile, prepare_profile
from clockwork.formats.profiles import ModelProfile
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_WORKER,
    NEVER_NS,
    TO_WORKER,
    Forget,
    HostDrop,
    HostFetch,
    Infer,
    Load,
    Ping,
    Pong,
    Reserve,
    Result,
    Revoke,
    Status,
    Unload,
    WorkerWelcome,
)
from clockwork.wire.packages import LIST_FILE, PROFILE_FILE
from clockwork.wire.shared import FIRST_OFFSET, KEY_BYTES, MAGIC, PLACE, SHARED, Reference
from clockwork.wire.tensors import tensor_bytes
from clockwork.wire.transport import Dealer, Poller, Transport
from clockwork.worker import _road
from clockwork.worker.clock import WorkerClock
from clockwork.worker.given import Given
from clockwork.worker.road import open_road
from tests.device.rig import PAGE_BYTES as RIG_PAGE_BYTES
from tests.device.rig import CpuRig, affine, expected_affine
from tests.patience import PATIENCE_S, eventually, readable
from tests.process.python_router import PythonRouter

MODEL = 1
PAGE_BYTES = 1 << 20
UINT8, FLOAT = 2, 1


class Stage:
    """A controller's socket, a road, and one device that it drives, or all devices of an arena.

    device: with its model; None: an emulated one. exec_ms, load_ms: durations of its actions. The model is
    ready and its stored bytes are intact unless a test says otherwise.
    """

    def __init__(
        self,
        place: Path,
        exec_ms: int = 1,
        load_ms: int = 1,
        device: CpuDevice | None = None,
        arena: CpuArena | None = None,
    ) -> None:
        device = arena.devices[0] if arena is not None else device
        self.transport = Transport()
        self.router = PythonRouter(self.transport)
        self.dealer: Dealer = self.transport.dealer(self.router.endpoint)
        self.device: Device = device if device is not None else self._emulated(place, exec_ms, load_ms)
        self.devices: list[Device] = [self.device] if arena is None else list(arena.devices)
        self.road = open_road(self.dealer, self.devices, WorkerClock().settings)
        self.notices: list[tuple[int, int, int, int, Any]] = []
        self.identity = b""
        self.action_id = 0
        self._poller = Poller([self.router], [self.road.fileno()])

    def _emulated(self, place: Path, exec_ms: int, load_ms: int) -> Device:
        group = EmulatedGroup(1, 8 * PAGE_BYTES, PAGE_BYTES, settings=EmulatedSettings())
        profile = ModelProfile(
            name="m", exec_ns={1: exec_ms * MS}, weights_bytes=PAGE_BYTES, load_ns=load_ms * MS, input_bytes=8, output_bytes=8
        )  # fmt: skip
        content = encode_profile(profile)
        files = [PackageFile(PROFILE_FILE, len(content), hashlib.sha256(content).hexdigest())]
        package = place / digest_of(files)
        package.mkdir()
        (package / PROFILE_FILE).write_bytes(content)
        (package / LIST_FILE).write_text(json.dumps(rows_of(files)))
        prepare_profile(package, place / "prepared", "d", group.info.fingerprint, group.info.page_bytes, {})
        group.open(MODEL, str(place / "prepared"))
        self.given = Given.of(PreparedModel.read(place / "prepared").summary())
        return group.devices[0]

    def start(self, whole: bool = True) -> None:
        self.road.model_ready(MODEL, *self.given.declared())
        if whole:
            self.road.model_whole(MODEL)
        self.road.start()
        self.until(
            lambda: any(kind == _road.NEWS and self.note(event, fd) for kind, event, fd, *_ in self.notices)
        )
        self.road.send(codec.encode(Pong(0, 0, 0)))
        self.identity = self.until(self.router.receive)[0]
        self.road.serve(True)

    def note(self, event: int, fd: int) -> bool:
        return self.dealer.note(event, fd) is not None

    def until(self, found: Callable[[], Any]) -> Any:
        """Wait for a condition; notices of the road are collected meanwhile."""
        deadline_ns = now_ns() + round(PATIENCE_S * SECOND)
        while True:
            self.notices += self.road.take()
            if result := found():
                return result
            assert now_ns() < deadline_ns, self.notices
            self._poller.wait(100 * MS)

    def notice(self, kind: int) -> tuple[int, int, int, int, Any]:
        """Take the first notice of a kind."""
        one = self.until(lambda: next((one for one in self.notices if one[0] == kind), None))
        self.notices.remove(one)
        return one

    def send(self, message: Any, frames: tuple[bytes, ...] = ()) -> None:
        assert self.router.send(self.identity, codec.encode(message), frames)

    def load(self, load_id: int = 1, page: int = 0) -> int:
        self.action_id += 1
        self.send(Load(self.action_id, 0, MODEL, load_id, [page], -NEVER_NS, NEVER_NS, MS))
        return self.action_id

    def infer(self, earliest_ns: int = -NEVER_NS, latest_ns: int = NEVER_NS) -> int:
        self.action_id += 1
        parts = [[[UINT8, [1, 8], 0]]]
        self.send(Infer(self.action_id, 0, MODEL, 1, earliest_ns, latest_ns, MS, parts), (bytes(8),))
        return self.action_id

    def result(self) -> tuple[int, Status, str]:
        _, _, frames = self.until(self.router.receive)
        result = codec.decode(frames[0], FROM_WORKER)
        assert isinstance(result, Result), result
        if result.parts:
            [[[dtype, shape, _]]] = result.parts
            [output] = frames[1:]
            assert len(bytes(output)) == tensor_bytes(dtype, shape)
        return result.action_id, Status(result.status), result.text

    def result_of(self, action_id: int) -> Status:
        """The status of the next result, which is that of an action."""
        number, status, _ = self.result()
        assert number == action_id
        return status

    def close(self) -> None:
        self.road.stop()
        for device in self.devices:
            device.close()
        self.transport.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def one(**options: Any) -> Stage:
        made.append(Stage(tmp_path, **options))
        return made[-1]

    yield one
    for stage in made:
        stage.close()


def test_actions_pass_from_the_socket_to_the_device_and_back(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.start()
    assert stage.load() == 1
    assert stage.result() == (1, Status.OK, "")
    for _ in range(3):
        action_id = stage.infer()
        assert stage.result() == (action_id, Status.OK, "")
    assert stage.road.count == 0
    assert stage.road.counts(0) == (0, 0)


def test_loads_that_wait_for_a_check_start_in_order(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.start(whole=False)
    first = stage.load()
    stage.action_id += 1
    stage.send(Unload(stage.action_id, 0, MODEL, 1, -NEVER_NS, NEVER_NS, MS))
    second = stage.load(load_id=2)
    _, model_id, *_ = stage.notice(_road.CHECK)
    assert model_id == MODEL
    stage.until(lambda: stage.road.count == 3)
    stage.road.model_whole(MODEL)
    assert [stage.result()[:2] for _ in range(3)] == [
        (number, Status.OK) for number in range(first, second + 1)
    ]


def test_loads_that_wait_for_a_check_end_where_the_model_is_damaged_or_they_are_revoked(
    make: Callable[..., Stage],
) -> None:
    stage = make()
    stage.start(whole=False)
    first, second = stage.load(), stage.load(load_id=2, page=1)
    stage.notice(_road.CHECK)
    stage.send(Revoke(second))
    assert stage.result() == (second, Status.ACTION_CANCELLED, "revoked")
    stage.road.model_gone(MODEL, "the model is prepared again: rot")
    assert stage.result() == (first, Status.DEVICE_ERROR, "the model is prepared again: rot")
    third = stage.load()
    assert stage.result() == (third, Status.UNKNOWN_MODEL, "the model is prepared again: rot")
    stage.road.model_gone(MODEL)
    fourth = stage.load()
    assert stage.result() == (fourth, Status.UNKNOWN_MODEL, "model id 1 is not known to this worker")


def test_what_is_cancelled_is_answered_once_and_nothing_follows_it(make: Callable[..., Stage]) -> None:
    stage = make(exec_ms=1)
    stage.start()
    stage.load()
    stage.result()
    waiting = [stage.infer(now_ns() + 3600 * SECOND), stage.infer(now_ns() + 3600 * SECOND)]
    stage.until(lambda: stage.road.count == 2)
    stage.road.cancel(waiting[1], Status.OVERRUN, "it took too long")
    text = "the worker ends because of another action"
    assert stage.result() == (waiting[0], Status.ACTION_CANCELLED, text)
    assert stage.result() == (waiting[1], Status.OVERRUN, "it took too long")
    later = stage.infer()
    assert stage.result() == (later, Status.ACTION_CANCELLED, text)
    assert stage.road.count == 0


def test_what_ends_of_an_earlier_session_is_no_answer(make: Callable[..., Stage]) -> None:
    stage = make(exec_ms=3_600_000)
    stage.start()
    stage.load()
    stage.result()
    action_id = stage.infer()
    stage.until(lambda: stage.road.count == 1)
    stage.road.reset()
    assert stage.road.count == 0
    stage.device.end_run(action_id)
    stage.action_id += 1
    stage.send(Unload(stage.action_id, 0, MODEL, 1, -NEVER_NS, NEVER_NS, MS))
    assert stage.result() == (stage.action_id, Status.OK, "")


def test_a_window_that_has_closed_is_answered_and_a_revoked_action_too(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.start()
    stage.load()
    stage.result()
    late = stage.infer(latest_ns=now_ns() - SECOND)
    number, status, _ = stage.result()
    assert (number, status) == (late, Status.TOO_LATE)
    revoked = stage.infer(earliest_ns=now_ns() + 3600 * SECOND)
    stage.send(Revoke(revoked))
    assert stage.result() == (revoked, Status.ACTION_CANCELLED, "the action was revoked")
    stage.send(Revoke(12345))  # of an action that is not there: nothing to do
    assert stage.result_of(stage.load(load_id=2, page=1)) == Status.DEVICE_ERROR


def test_what_the_road_does_not_carry_is_handed_over_in_order(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.start()
    for model_id in range(2, 7):
        stage.send(Forget(model_id))
    stage.send(WorkerWelcome(1, "1", 7, 3))
    stage.send(Ping(5))
    assert [codec.decode(stage.notice(_road.MESSAGE)[4][0], TO_WORKER) for _ in range(7)] == [
        *(Forget(model_id) for model_id in range(2, 7)),
        WorkerWelcome(1, "1", 7, 3),
        Ping(5),
    ]
    action_id = stage.load()
    _, _, _, came_ns, frames = stage.notice(_road.MESSAGE)
    stage.road.serve(True)
    assert stage.road.deliver(frames, came_ns)
    assert stage.result()[:2] == (action_id, Status.OK)
    stage.send(Ping(6))
    _, _, reply = stage.until(stage.router.receive)
    pong = codec.decode(reply[0], FROM_WORKER)
    assert isinstance(pong, Pong)
    assert pong.sent_ns == 6
    assert came_ns <= pong.received_ns <= pong.returned_ns <= now_ns()


def test_actions_behind_a_forget_name_no_model_although_the_loop_has_not_come_to_it(
    make: Callable[..., Stage],
) -> None:
    stage = make()
    stage.start()
    stage.send(Forget(MODEL))
    action_id = stage.infer()
    assert stage.result() == (action_id, Status.UNKNOWN_MODEL, "model id 1 is not known to this worker")
    assert codec.decode(stage.notice(_road.MESSAGE)[4][0], TO_WORKER) == Forget(MODEL)


def test_a_device_refuses_what_it_cannot_do_and_goes_on(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.start()
    stage.action_id += 1
    stage.send(Reserve(stage.action_id, 0, 77, 0, [], -NEVER_NS, NEVER_NS, MS))
    number, status, text = stage.result()
    assert (number, status) == (stage.action_id, Status.DEVICE_ERROR)
    assert text == "this device makes models ready beside its executions"
    action_id = stage.infer()
    assert stage.result()[:2] == (action_id, Status.NOT_RESIDENT)


class Executors:
    """A stage with the executors of one arena, which serve y = x @ w + b."""

    def __init__(self, make: Callable[..., Stage], place: Path, count: int) -> None:
        self.model, rig = affine(), CpuRig(place)
        arena = CpuArena(32 * RIG_PAGE_BYTES, RIG_PAGE_BYTES, place=ArenaPlace(count))
        rig.fingerprint = arena.info.fingerprint
        self.stage = make(arena=arena)
        arena.open(MODEL, prepared := rig.build(self.model))
        self.stage.given = Given.of(PreparedModel.read(prepared).summary())
        self.stage.start()

    def act(self, kind: type, device: int, *fields: Any, frames: tuple[bytes, ...] = ()) -> int:
        self.stage.action_id += 1
        self.stage.send(kind(self.stage.action_id, device, MODEL, 1, *fields), frames)
        return self.stage.action_id

    def infer(self, device: int, x: np.ndarray, earliest_ns: int = -NEVER_NS) -> int:
        parts = [[[FLOAT, list(x.shape), 0]]]
        return self.act(Infer, device, earliest_ns, NEVER_NS, MS, parts, frames=(x.tobytes(),))

    def answers(self, count: int) -> dict[int, tuple[Status, str, np.ndarray | None]]:
        """The next results, by their actions."""
        found: dict[int, tuple[Status, str, np.ndarray | None]] = {}
        while len(found) < count:
            _, _, frames = self.stage.until(self.stage.router.receive)
            result = codec.decode(frames[0], FROM_WORKER)
            assert isinstance(result, Result), result
            y = np.frombuffer(bytes(frames[1]), np.float32) if len(frames) > 1 else None
            found[result.action_id] = Status(result.status), result.text, y
        return found


def test_executors_are_devices_that_execute_from_the_owners_arena(
    make: Callable[..., Stage], tmp_path: Path
) -> None:
    count = 3
    executors = Executors(make, tmp_path, count)
    window = (-NEVER_NS, NEVER_NS, MS)
    elsewhere = executors.act(Load, 1, [0], *window)
    status, text, _ = executors.answers(1)[elsewhere]
    assert status == Status.DEVICE_ERROR
    assert text == "this device executes from another device's arena: a LOAD or UNLOAD names that device"
    load = executors.act(Load, 0, [0], *window)
    assert executors.answers(1)[load][:2] == (Status.OK, "")
    random = np.random.default_rng(1)
    for _ in range(50):
        asked = {}
        for device in range(count):
            x = random.random((1, 4), np.float32)
            asked[executors.infer(device, x)] = expected_affine(executors.model, x)[0]
        for action_id, (status, text, y) in executors.answers(count).items():
            assert (status, text) == (Status.OK, "")
            np.testing.assert_allclose(y, asked[action_id], rtol=1e-5, atol=1e-5)
    x = np.zeros((1, 4), np.float32)
    waiting = executors.infer(2, x, now_ns() + 3600 * SECOND)

    def held() -> list[int]:
        return [sum(executors.stage.road.counts(place)) for place in range(count)]

    eventually(lambda: held() == [0, 0, 1], "its executor holds the action")
    executors.stage.send(Revoke(waiting))
    assert executors.answers(1)[waiting][0] == Status.ACTION_CANCELLED
    beyond = executors.infer(count, x)
    assert executors.answers(1)[beyond][:2] == (Status.DEVICE_ERROR, f"device {count} of {count}")


class Shared:
    """INFERs of y = x @ w + b whose input lies in this process's memory, on a CPU device."""

    def __init__(self, make: Callable[..., Stage], place: Path, width: int = 4) -> None:
        self.width = width
        self.model = affine(width=width)
        rig = CpuRig(place)
        self.stage = make(device=rig.make())
        self.stage.device.open(MODEL, prepared := rig.build(self.model))
        self.stage.given = Given.of(PreparedModel.read(prepared).summary())
        self.memory, self.key = self.create()
        self.random = np.random.default_rng(3)

    def create(self, size: int = 1 << 20) -> tuple[int, bytes]:
        memory, key = os.memfd_create("client"), os.urandom(KEY_BYTES)
        os.ftruncate(memory, size)
        os.pwrite(memory, MAGIC + key, 0)
        return memory, key

    def start(self) -> None:
        self.stage.start()
        self.stage.load()
        assert self.stage.result()[1] == Status.OK

    def reference(self, **changes: Any) -> Reference:
        reference = Reference(1, os.getpid(), self.memory, self.key, FIRST_OFFSET, self.memory, self.key, 0)
        return reference._replace(**changes)

    def infer(self, frame: bytes, latest_ns: int = NEVER_NS) -> int:
        self.stage.action_id += 1
        parts = [[[FLOAT | SHARED, [1, self.width], 0]]]
        action = Infer(self.stage.action_id, 0, MODEL, 1, -NEVER_NS, latest_ns, MS, parts)
        self.stage.send(action, (frame,))
        return self.stage.action_id

    def answer(self) -> tuple[Result, list[bytes]]:
        _, _, [header, *frames] = self.stage.until(self.stage.router.receive)
        result = codec.decode(header, FROM_WORKER)
        assert isinstance(result, Result)
        return result, [bytes(frame) for frame in frames]

    def round(self, room_bytes: int) -> None:
        """An INFER with another input, the answer of which is as it must be."""
        x = self.random.random((1, self.width), np.float32)
        os.pwrite(self.memory, x.tobytes(), FIRST_OFFSET)
        room, key = self.create() if room_bytes else (self.memory, self.key)
        action_id = self.infer(self.reference(room=room, room_key=key, room_bytes=room_bytes).pack())
        result, [frame] = self.answer()
        assert (result.action_id, result.status, result.text) == (action_id, Status.OK, "")
        [[[dtype, shape, _]]] = result.parts
        assert shape == [1, self.width]
        if room_bytes >= x.nbytes:
            assert dtype == FLOAT | SHARED
            at, size = PLACE.unpack(frame)
            assert (at, size) == (FIRST_OFFSET, x.nbytes)
            frame = os.pread(room, size, at)
        else:
            assert dtype == FLOAT
        if room_bytes:
            os.close(room)
        y = np.frombuffer(frame, np.float32)
        np.testing.assert_allclose(y, expected_affine(self.model, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [4, 100])
def test_inputs_and_outputs_pass_through_a_clients_memory(
    make: Callable[..., Stage], tmp_path: Path, width: int
) -> None:
    shared = Shared(make, tmp_path, width)
    shared.start()
    for room_bytes in (0, 4 * width - 1, 4 * width, 0, 65536):
        shared.round(room_bytes)
    assert shared.stage.road.count == 0
    assert shared.stage.road.copied_bytes() == 0
    assert [notice for notice in shared.stage.notices if notice[0] != _road.NEWS] == []
    os.close(shared.memory)


def test_a_reference_that_is_wrong_costs_its_own_infer_alone(
    make: Callable[..., Stage], tmp_path: Path
) -> None:
    shared = Shared(make, tmp_path)
    shared.start()
    good = shared.reference()
    wrong = [
        (good._replace(key=bytes(KEY_BYTES)), "it has not the key of the request"),
        (good._replace(process=(1 << 22) + 1), "No such file or directory"),
        (good._replace(process=-1), "No such file or directory"),
        (good._replace(descriptor=10_000), "No such file or directory"),
        (good._replace(descriptor=-(1 << 63)), "No such file or directory"),
        (good._replace(offset=(1 << 20) - 15), "16 bytes at 1048561 of a client's memory of 1048576 bytes"),
        (good._replace(offset=-1), "16 bytes at -1 of a client's memory"),
        (good._replace(offset=(1 << 63) - 1), "16 bytes at 9223372036854775807 of a client's memory"),
        (good._replace(offset=-(1 << 63)), "of a client's memory of 1048576 bytes"),
    ]
    for reference, words in wrong:
        action_id = shared.infer(reference.pack())
        result, frames = shared.answer()
        assert (result.action_id, result.status, frames) == (action_id, Status.INVALID_INPUT, [])
        assert words in result.text
        shared.round(0)
    for frame in (b"", bytes(79), bytes(81)):
        shared.infer(frame)
        result, _ = shared.answer()
        assert result.status == Status.INVALID_INPUT
        assert result.text == f"a reference to memory has 80 bytes, not {len(frame)}"
    for change in (
        {"room": 10_000}, {"room_key": bytes(KEY_BYTES)}, {"room_bytes": -5}, {"room": -1}
    ):  # fmt: skip
        shared.infer(shared.reference(**{"room_bytes": 64, **change}).pack())
        result, [frame] = shared.answer()
        assert result.status == Status.OK, "an output that cannot be written is sent"
        assert (result.parts[0][0][0], len(frame)) == (FLOAT, 16)
    assert shared.stage.road.count == 0
    assert shared.stage.road.copied_bytes() == 0
    os.close(shared.memory)


def test_memory_that_goes_while_it_is_used_costs_its_own_infers_alone(
    make: Callable[..., Stage], tmp_path: Path
) -> None:
    """Memory is closed, and cut and made longer again, by another thread while INFERs refer to it."""
    shared = Shared(make, tmp_path)
    shared.start()
    good, is_over = shared.reference(), threading.Event()
    going, key = shared.create(4096)

    def disturb() -> None:
        while not is_over.is_set():
            os.ftruncate(going, 0)
            os.ftruncate(going, 4096)
            os.pwrite(going, MAGIC + key, 0)
            copy = os.dup(going)
            os.close(copy)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        found = []
        for _ in range(150):
            reference = good._replace(
                descriptor=going, key=key, room=going, room_key=key, room_bytes=64
            )  # an input and an output that come and go
            action_id = shared.infer(reference.pack())
            result, frames = shared.answer()
            assert result.action_id == action_id
            found.append(result.status)
            if result.status == Status.OK:
                assert len(frames) == 1
            else:
                assert result.status == Status.INVALID_INPUT
                assert "memory" in result.text
            shared.round(64)
    finally:
        is_over.set()
        disturbing.join()
    os.close(going)
    shared.infer(good._replace(descriptor=going, key=key).pack())
    assert shared.answer()[0].status == Status.INVALID_INPUT
    assert shared.stage.road.count == 0
    assert shared.stage.road.copied_bytes() == 0
    os.close(shared.memory)


def test_infers_with_shared_inputs_are_dropped_with_their_session(
    make: Callable[..., Stage], tmp_path: Path
) -> None:
    shared = Shared(make, tmp_path)
    shared.start()
    for _ in range(20):
        for _ in range(10):
            shared.infer(shared.reference(room_bytes=64).pack())
        shared.stage.road.reset()
    for _ in range(2):  # the second when no other is held, so that no other answer follows it
        last = shared.infer(shared.reference().pack())
        while shared.answer()[0].action_id != last:
            pass
        shared.stage.until(lambda: shared.stage.road.count == 0)
    shared.stage.until(lambda: shared.stage.road.copied_bytes() == 0)
    shared.round(64)
    assert shared.stage.road.count == 0
    os.close(shared.memory)


def test_no_interpreted_function_is_entered_for_an_infer(make: Callable[..., Stage], tmp_path: Path) -> None:
    """A profile function is set before any serving thread begins: the road's, and the lanes' of a CPU
    device."""
    entered: list[str] = []
    me = threading.get_ident()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and threading.get_ident() != me:
            entered.append(frame.f_code.co_qualname)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        shared = Shared(make, tmp_path)
        stage = shared.stage
        shared.start()
        assert entered, "the lanes have begun under the profile function"
        entered.clear()
        for _ in range(200):
            stage.action_id += 1
            action = Infer(stage.action_id, 0, MODEL, 1, -NEVER_NS, NEVER_NS, MS, [[[FLOAT, [1, 4], 0]]])
            stage.send(action, (bytes(16),))
            assert stage.result() == (stage.action_id, Status.OK, "")
        for number in range(200):  # inputs in a client's memory, and each second output
            shared.round(64 * (number % 2))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert entered == []
    assert [notice for notice in stage.notices if notice[0] != _road.NEWS] == [], (
        "nothing was handed to Python"
    )
    assert not readable(stage.road.fileno(), within_s=0)
    os.close(shared.memory)


# ----- a store with a bound, whose FETCHes and DROPs come as notices -----------------------------


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.road.keep_store()
    stage.start()
    yield stage
    stage.close()


def test_a_fetch_of_any_model_comes_as_a_notice_and_is_answered(keeping: Stage) -> None:
    begun_ns = now_ns()
    keeping.send(HostFetch(5, 0, 77, 9, 0, NEVER_NS, 3 * SECOND))
    _, action_id, model_id, by_ns, _ = keeping.notice(_road.STORE_FETCH)
    assert (action_id, model_id) == (5, 77)
    assert by_ns - begun_ns >= 10 * 3 * SECOND  # LOAD_LIMIT_FACTOR times its prediction
    assert keeping.road.holds(5)
    keeping.road.store_ended(5, Status.OK)
    _, _, frames = keeping.until(keeping.router.receive)
    result = codec.decode(frames[0], FROM_WORKER)
    assert isinstance(result, Result)
    assert (result.action_id, result.status, result.text) == (5, Status.OK, "")
    begin_ns, end_ns, duration_ns = result.execute
    assert begun_ns <= begin_ns <= end_ns <= now_ns()
    assert duration_ns == end_ns - begin_ns
    keeping.send(HostDrop(6, 0, 77, 9, 0, NEVER_NS, 0))
    assert keeping.notice(_road.STORE_DROP)[1:3] == (6, 77)
    keeping.road.store_ended(6, Status.IN_USE, "e" * 10_000 + "\u00e9")
    number, status, text = keeping.result()
    assert (number, status) == (6, Status.IN_USE)
    assert 0 < len(text) < 1000
    assert keeping.road.count == 0


def test_a_fetch_whose_window_is_closed_or_that_is_revoked_is_never_begun(keeping: Stage) -> None:
    keeping.send(HostFetch(5, 0, 77, 9, 0, now_ns() - SECOND, 0))
    assert keeping.result_of(5) == Status.TOO_LATE
    keeping.send(HostFetch(6, 0, 77, 9, now_ns() + 100 * SECOND, NEVER_NS, 0))
    keeping.send(Revoke(6))
    assert keeping.result_of(6) == Status.ACTION_CANCELLED
    assert not [one for one in keeping.notices if one[0] == _road.STORE_FETCH]


def test_no_more_fetches_run_at_once_than_a_lane_takes(keeping: Stage) -> None:
    run_ahead = keeping.device.info.run_ahead
    for action_id in range(run_ahead + 1):
        keeping.send(HostFetch(action_id + 1, 0, 77, 9, 0, NEVER_NS, 0))
    for action_id in range(run_ahead):
        assert keeping.notice(_road.STORE_FETCH)[1] == action_id + 1
    keeping.send(Ping(1))
    keeping.until(lambda: keeping.road.counts(0) == (1, run_ahead))
    assert not [one for one in keeping.notices if one[0] == _road.STORE_FETCH]
    keeping.road.store_ended(1, Status.DEVICE_ERROR, "it was cut")
    assert keeping.notice(_road.STORE_FETCH)[1] == run_ahead + 1


def test_a_fetch_is_forgotten_with_its_session(keeping: Stage) -> None:
    keeping.send(HostFetch(5, 0, 77, 9, 0, NEVER_NS, 0))
    keeping.notice(_road.STORE_FETCH)
    keeping.road.reset()
    assert keeping.road.count == 0
    keeping.road.store_ended(5, Status.OK)  # nobody hears of it
    keeping.road.store_ended(6, Status.OK)
    keeping.send(HostFetch(6, 0, 77, 9, 0, NEVER_NS, 0))
    keeping.notice(_road.STORE_FETCH)
    keeping.road.store_ended(6, Status.OK)
    assert keeping.result_of(6) == Status.OK


def test_a_fetch_under_way_is_answered_when_the_worker_gives_up(keeping: Stage) -> None:
    keeping.send(HostFetch(5, 0, 77, 9, 0, NEVER_NS, 0))
    keeping.notice(_road.STORE_FETCH)
    keeping.road.cancel()
    assert keeping.result_of(5) == Status.ACTION_CANCELLED
    keeping.road.store_ended(5, Status.OK)
    assert keeping.road.count == 0


def test_a_worker_without_such_a_store_gives_a_fetch_to_its_device(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.send(HostFetch(5, 0, 77, 9, 0, NEVER_NS, 0))
    assert stage.result_of(5) == Status.UNKNOWN_MODEL
    stage.send(HostFetch(6, 0, MODEL, 9, 0, NEVER_NS, 0))
    assert stage.result_of(6) == Status.DEVICE_ERROR
    stage.close()
