"""Any messages of a peer cost that peer alone: all others are served."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.ports.clients import ClientPort
from clockwork.controller.ports.workers import WorkerPort
from clockwork.wire import codec, messages
from clockwork.wire.messages import Status
from tests.process.peers import ROW, FakeWorker, RawClient, Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def nest(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def spell(tag: int, *fields: Any) -> bytes:
    """A header of these fields, whether any reader would accept it or not."""
    return b"".join((bytes([0x90 | (1 + len(fields))]), codec._pack(tag), *map(_spell, fields)))


def _spell(value: Any) -> bytes:
    if isinstance(value, bytes):  # the value is encoded already
        return value
    return codec._pack(value)


DEEP = b"\x91" * 1000 + b"\x00"
"""A list in a list in a list ...: 1 KB, whose repr() raises RecursionError."""

FROM_CLIENTS = {
    "request": spell(2, 7, "m", 0, 0, b"\x91" + DEEP),
    "tensor": spell(2, 7, "m", 0, 0, b"\x91\x94\xa1x\x01" + DEEP + b"\x00"),
    "files": spell(4, 7, "n", b"\x91" + DEEP, {}),
    "options": spell(4, 7, "n", [["model.onnx", 1, "0" * 64]], b"\x81\xa8batching" + DEEP),
    "slo": spell(4, 7, "n", [["model.onnx", 1, "0" * 64]], b"\x81\xa6slo_ns" + DEEP),
    "route": spell(9, 7, "m", b"\x91" + DEEP, []),
    "shadow": spell(9, 7, "m", [], b"\x91" + DEEP),
}


@pytest.mark.parametrize("header", FROM_CLIENTS.values(), ids=FROM_CLIENTS)
def test_a_clients_nested_header_costs_it_an_error(served: Served, header: bytes) -> None:
    with RawClient(served.controller) as stranger:
        assert stranger.dealer.send(header, [ROW] if header[1] == 2 else [])
        failure, _ = stranger.receive(messages.Failure)
        assert (failure.request_id, failure.status) == (7, Status.INVALID_INPUT), failure
        assert len(failure.text) < 1_000
        served.check()


RESULT = (1, 0, "", 5, [0, 0, 0], [0, 0, 0], [0, 0, 0])
FROM_WORKERS = {
    "devices": spell(64, 1, "v", "w", 99, b"\x91" + DEEP),
    "kind": spell(64, 1, "v", "w", 99, b"\x91\x81\xa4kind" + DEEP),
    "stats": spell(65, 1, 1, b"\x81\xa1s" + DEEP),
    "phase": spell(67, *RESULT[:4], b"\x93" + DEEP + b"\x00\x00", [0, 0, 0], [0, 0, 0], []),
    "part": spell(67, *RESULT, b"\x91" + DEEP),
    "summary": spell(69, 1, 0, "", b"\x81\xa4runs" + DEEP),
}


@pytest.mark.parametrize("header", FROM_WORKERS.values(), ids=FROM_WORKERS)
def test_a_workers_nested_header_costs_it_its_place(served: Served, header: bytes) -> None:
    with FakeWorker(served.controller, epoch=77) as stranger:
        assert stranger.dealer.send(header)
        served.check()
        while served.status()["complaints"]["worker malformed"] < 1:
            pass
        served.check()
    assert [one["name"] for one in served.status()["workers"]] == ["fake1"]


@pytest.mark.parametrize(
    "error", [RecursionError(), KeyError("x"), AssertionError(), OverflowError("int too big")]
)
def test_a_handler_that_raises_costs_its_client_an_error_and_nobody_else(
    served: Served, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setitem(ClientPort._handlers, messages.Promote, fail)
    with RawClient(served.controller) as stranger:
        for request_id in range(1_000):
            stranger.send(messages.Promote(request_id, "m", 0))
        for request_id in range(1_000):
            failure, _ = stranger.receive(messages.Failure)
            assert (failure.request_id, failure.status) == (request_id, Status.INTERNAL)
            assert type(error).__name__ in failure.text
        served.check()
    assert served.status()["complaints"]["client failed"] == 1_000
    logged = [record for record in caplog.records if "failed at a Promote" in record.getMessage()]
    assert 1 <= len(logged) < 100, "one line for each message is a flood"
    where = "".join(traceback.format_exception(*logged[0].exc_info)) if logged[0].exc_info else ""
    assert "in fail" in where, "a defect is written down with where it happened"


def test_a_handler_that_raises_costs_its_worker_its_place(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RecursionError

    monkeypatch.setitem(WorkerPort._handlers, messages.ClockChanged, fail)
    with FakeWorker(served.controller, epoch=77) as stranger:
        stranger.send(messages.ClockChanged(0, 1))
        while served.status()["complaints"]["worker failed"] < 1:
            pass
        assert len(served.status()["workers"]) == 1
        served.check()


def test_malformed_messages_are_counted_and_few_of_them_logged(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with RawClient(served.controller) as stranger:
        for _ in range(2_000):
            assert stranger.dealer.send(b"\xc1")
        for _ in range(2_000):
            stranger.receive(messages.Failure)
    with RawClient(served.controller, hello=False) as stranger:
        assert stranger.dealer.send(b"\xc1")
        stranger.receive(messages.Failure)
    status = served.status()
    assert status["complaints"]["client malformed"] == 2_001
    (trouble,) = [one for one in status["troubles"]["open"] if one["kind"] == "message_rejected"]
    assert (trouble["subject"], trouble["count"]) == ("client malformed", 2_001)
    logged = [record for record in caplog.records if "malformed message from" in record.getMessage()]
    assert 1 <= len(logged) < 100
    served.client.send(messages.Query(1, "metrics", ""))
    assert served.client.receive(messages.Reply)[0].body["complaints"]["client malformed"] == 2_001


def test_messages_that_keep_python_busy_hold_up_nobody_else(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's 200 messages of 5 ms each are a second of Python.

    Planning and all other requests run between them.
    """
    handled, block = 0, bytes(1 << 18)

    def work(*_: Any) -> None:
        nonlocal handled
        handled += 1
        begun = time.thread_time()
        while time.thread_time() - begun < 0.005:
            hashlib.sha256(
                block
            ).digest()  # a computation without the interpreter's lock, which this thread's peers need as well

    monkeypatch.setitem(ClientPort._handlers, messages.Promote, work)
    with RawClient(served.controller) as stranger:
        for request_id in range(200):
            stranger.send(messages.Promote(request_id, "m", 0))
        served.check()  # a load and an execution: some turns of the loop
        assert handled < 100, "what was taken together was handled together"
        stranger.send(messages.Query(7, "status", ""))
        stranger.receive(messages.Reply)
        assert handled == 200


def test_what_is_larger_than_its_kind_may_be_is_refused_unread(served: Served) -> None:
    with RawClient(served.controller) as stranger:
        for _ in range(20):  # 80 MB of lists of one element: 26 s of the loop's time, once
            lists = b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x91\x00" * 2_000_000
            assert stranger.dealer.send(spell(2, 7, "m", 0, 0, lists), [ROW])
        served.check()
        for _ in range(20):
            failure, _ = stranger.receive(messages.Failure)
            assert (failure.request_id, "is larger than 131072" in failure.text) == (7, True)
