"""The native road of a worker between a socket and a device, with a test in the place of the worker's
loop."""

from __future__ import annotations

import hashlib
import json
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from clockwork.device.base import Device
from clockwork.device.cpu import CpuDevice
from clockwork.device.emulated import EmulatedGroup
from clockwork.device.emulation import EmulatedSettings
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
from clockwork.wire.tensors import tensor_bytes
from clockwork.wire.transport import Dealer, Poller, Transport
from clockwork.worker import _road
from clockwork.worker.clock import WorkerClock
from clockwork.worker.given import Given
from clockwork.worker.road import open_road
from tests.device.rig import CpuRig, affine
from tests.patience import PATIENCE_S

MODEL = 1
PAGE_BYTES = 1 << 20
UINT8, FLOAT = 2, 1


class Stage:
    """A controller's socket, a road, and one device that it drives.

    device: with its model; None: an emulated one. exec_ms, load_ms: durations of its actions. The model is
    ready and its stored bytes are intact unless a test says otherwise.
    """

    def __init__(
        self, place: Path, exec_ms: int = 1, load_ms: int = 1, device: CpuDevice | None = None
    ) -> None:
        self.transport = Transport()
        self.router = self.transport.router("tcp://127.0.0.1:0")
        self.dealer: Dealer = self.transport.dealer(self.router.endpoint)
        self.device: Device = device if device is not None else self._emulated(place, exec_ms, load_ms)
        self.road = open_road(self.dealer, [self.device], WorkerClock().settings)
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

    def close(self) -> None:
        self.road.stop()
        self.device.close()
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
    stage.send(Revoke(12345))
    assert stage.notice(_road.REVOKE)[1] == 12345


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
    assert text == "this device makes models ready beside what it executes"
    action_id = stage.infer()
    assert stage.result()[:2] == (action_id, Status.NOT_RESIDENT)


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
        rig = CpuRig(tmp_path)
        stage = make(device=rig.make())
        stage.device.open(MODEL, prepared := rig.build(affine()))
        stage.given = Given.of(PreparedModel.read(prepared).summary())
        stage.start()
        stage.load()
        assert stage.result()[1] == Status.OK
        assert entered, "the lanes have begun under the profile function"
        entered.clear()
        for _ in range(200):
            stage.action_id += 1
            action = Infer(stage.action_id, 0, MODEL, 1, -NEVER_NS, NEVER_NS, MS, [[[FLOAT, [1, 4], 0]]])
            stage.send(action, (bytes(16),))
            assert stage.result() == (stage.action_id, Status.OK, "")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert entered == []
    assert [one for one in stage.notices if one[0] != _road.NEWS] == [], "nothing was handed to Python"
    assert not select.select([stage.road.fileno()], [], [], 0)[0]
