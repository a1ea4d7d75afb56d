"""Large answers, before a controller that answers any request with as many bytes as a test sets."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from bench.attacks.messages import grpc_call
from clockwork.config.gateway import (
    GRPC_ANSWER_BYTES_MAX,
    JOINED_BYTES_MAX,
    JSON_ANSWER_BYTES_MAX,
    LISTED_AT_ONCE_BYTES,
)
from clockwork.gateway import answers
from clockwork.gateway import grpc as served
from clockwork.gateway.process import Gateway
from clockwork.protocol import inference_pb2 as pb
from clockwork.wire.inflow import Inflow
from clockwork.wire.messages import Answer, InferRequest, Query, Reply
from tests.patience import PATIENCE_NS, PATIENCE_S
from tests.process.fake_controller import FakeController
from tests.process.gateways import SERVICE, Http, method_of, running_gateway, tensor

MIB = 1 << 20
TINY = tensor(shape=(1,), data=[0.5])


def floats(count: int) -> bytes:
    return np.arange(count, dtype=np.float32).tobytes()


class Sized:
    """Return a handler that answers with ``outputs``, by name."""

    def __init__(self) -> None:
        self.outputs: dict[str, bytes] = {}

    def __call__(self, controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is InferRequest:
            outputs = {"y": floats(2)} if message.model == "small" else self.outputs
            rows = [[name, 1, [len(raw) // 4], index] for index, (name, raw) in enumerate(outputs.items())]
            answer = Answer(message.request_id, 1, rows, [0, 0, 0, 0])
            controller.send(identity, answer, list(outputs.values()))


@pytest.fixture
def sized() -> Sized:
    return Sized()


@pytest.fixture
def controller(sized: Sized) -> Iterator[FakeController]:
    with FakeController(handle=sized) as controller:
        yield controller


@pytest.fixture
def gateway(controller: FakeController) -> Iterator[Gateway]:
    with running_gateway(controller.endpoint) as gateway:
        yield gateway


@pytest.fixture
def http(gateway: Gateway) -> Iterator[Http]:
    with contextlib.closing(Http(gateway.ports["http"])) as http:
        yield http


# ----- JSON -----------------------------------------------------------------------------------


def test_long_lists_come_in_pieces_that_are_json_together(http: Http, sized: Sized) -> None:
    count = 5 * LISTED_AT_ONCE_BYTES + 3
    sized.outputs = {"a": floats(3), "b": floats(count), "c": floats(count), "d": floats(0)}
    reply = http.infer({"id": 'say "7"', "inputs": [TINY]})
    assert (reply.status, reply.headers["transfer-encoding"]) == (200, "chunked")
    assert reply.headers["content-type"].startswith("application/json")
    assert (reply.json["id"], reply.json["model_name"]) == ('say "7"', "m")
    assert {
        name: np.array(data, np.float32).tobytes() for name, data in reply.outputs.items()
    } == sized.outputs


def test_many_short_lists_are_as_long_as_one(http: Http, sized: Sized) -> None:
    sized.outputs = {f"y{number}": floats(1_000) for number in range(100)}
    reply = http.infer({"inputs": [TINY]})
    assert reply.headers["transfer-encoding"] == "chunked"
    assert {
        name: np.array(data, np.float32).tobytes() for name, data in reply.outputs.items()
    } == sized.outputs


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_index_of_many_models_is_counted_as_any_answer(
    monkeypatch: pytest.MonkeyPatch, controller: FakeController, protocol: str
) -> None:
    rows = [{"name": f"{number:0200}", "version": 1, "state": "ready"} for number in range(2_000)]

    def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is Query:
            controller.send(identity, Reply(message.request_id, {"models": rows}))

    controller.handle = handle
    with (
        running_gateway(controller.endpoint) as gateway,
        contextlib.closing(Http(gateway.ports["http"])) as http,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        if protocol == "grpc":
            call = method_of(channel, "RepositoryIndex")
            index = call(pb.RepositoryIndexRequest())
            assert [row.name for row in index.models] == [row["name"] for row in rows]
            monkeypatch.setattr(answers.bounds, "ANSWERS_BYTES_MAX", index.ByteSize())
            assert call.future(pb.RepositoryIndexRequest()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return
        found = http.ask("POST", "/v2/repository/index")
        assert [row["name"] for row in found.json] == [row["name"] for row in rows]
        assert int(found.headers["content-length"]) == len(found.data) > JOINED_BYTES_MAX
        names = http.ask("GET", "/v2/models")
        head = http.ask("HEAD", "/v2/models")
        assert len(names.data) > JOINED_BYTES_MAX
        assert (head.status, head.data, head.headers["content-length"]) == (200, b"", str(len(names.data)))
        assert http.ask("GET", "/v2/health/live").json == {"live": True}, "on the same connection"
        monkeypatch.setattr(answers.bounds, "ANSWERS_BYTES_MAX", len(found.data) - 1)
        refused = http.ask("POST", "/v2/repository/index")
        assert (refused.status, refused.json["reason"]) == (429, "overloaded")


def test_long_lists_and_binary_data_come_in_one_answer(http: Http, sized: Sized) -> None:
    sized.outputs = {"a": floats(5 * LISTED_AT_ONCE_BYTES), "b": floats(MIB), "c": floats(2)}
    wanted = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": True}}, {"name": "c"}]
    reply = http.infer({"inputs": [TINY], "outputs": wanted})
    found = reply.outputs
    assert found.pop("b") == sized.outputs["b"]
    assert {name: np.array(data, np.float32).tobytes() for name, data in found.items()} == {
        "a": sized.outputs["a"],
        "c": sized.outputs["c"],
    }


def test_more_numbers_than_json_may_have_are_to_be_asked_for_as_binary_data(http: Http, sized: Sized) -> None:
    half = JSON_ANSWER_BYTES_MAX // 2 + 4
    sized.outputs = {"a": bytes(half), "b": bytes(half)}
    reply = http.infer({"inputs": [TINY]})
    assert (reply.status, reply.json["reason"]) == (413, "too_large")
    assert f"{2 * half} bytes" in reply.json["error"]
    assert str(JSON_ANSWER_BYTES_MAX) in reply.json["error"]
    assert http.infer({"inputs": [TINY], "parameters": {"binary_data_output": True}}).outputs == sized.outputs


# ----- answers that are not read --------------------------------------------------------------


def deaf(port: int, data: bytes) -> socket.socket:
    """A connection that has sent a request, and reads a few kilobytes of the answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE_S)
    connection.connect(("127.0.0.1", port))
    connection.sendall(data)
    return connection


def http_request() -> bytes:
    body = json.dumps({"inputs": [TINY], "parameters": {"binary_data_output": True}}).encode()
    return (
        f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def grpc_request(model: str = "m") -> Any:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    return request


def grpc_bytes() -> bytes:
    return grpc_call(gzip.compress(grpc_request().SerializeToString()), "")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_answer_that_is_not_read_ends_its_connection(
    controller: FakeController, sized: Sized, protocol: str
) -> None:
    sized.outputs = {"y": bytes(8 * MIB)}
    request = http_request() if protocol == "http" else grpc_bytes()
    with (
        running_gateway(controller.endpoint, body_s=2.0) as gateway,
        deaf(gateway.ports[protocol], request) as connection,
    ):
        controller.wait_for(InferRequest)
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP | select.POLLHUP)
        assert poll.poll(PATIENCE_S * 1000), "nothing is read here, so that the end alone is seen"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_answer_that_is_not_read_does_not_count_against_the_controller(
    monkeypatch: pytest.MonkeyPatch, controller: FakeController, sized: Sized, protocol: str
) -> None:
    """Otherwise the connection to the controller would end for its growth, and other requests would fail with
    it."""
    kept, is_kept = 0, threading.Event()
    look = Inflow.look

    def watched(self: Inflow, now: int, bytes_max: int, kept_bytes: int = 0) -> bool:
        nonlocal kept
        if kept_bytes >= 8 * MIB:
            kept = kept_bytes
            is_kept.set()
        return look(self, now, bytes_max, kept_bytes)

    monkeypatch.setattr(Inflow, "look", watched)
    sized.outputs = {"y": bytes(8 * MIB)}
    request = http_request() if protocol == "http" else grpc_bytes()
    with (
        running_gateway(controller.endpoint, body_s=600.0) as gateway,
        deaf(gateway.ports[protocol], request),
    ):
        assert is_kept.wait(PATIENCE_S)
        assert kept == (8 if protocol == "http" else 8 * served.COPIES) * MIB


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process can open no file while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd")))
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            os.close(one)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_answer_that_is_not_read_ends_its_connection_although_no_descriptor_was_left(
    controller: FakeController, sized: Sized, protocol: str
) -> None:
    sized.outputs = {"y": bytes(8 * MIB)}
    request = http_request() if protocol == "http" else grpc_bytes()
    with running_gateway(controller.endpoint, body_s=0.2) as gateway:
        with contextlib.closing(Http(gateway.ports["http"])) as known:
            known.infer({"inputs": [TINY]})  # so that libraries have opened their files
            controller.wait_for(InferRequest)
        with deaf(gateway.ports[protocol], request) as connection:
            controller.wait_for(InferRequest)
            poll = select.poll()
            poll.register(connection, select.POLLRDHUP | select.POLLHUP)
            with no_descriptor_left():
                poll.poll(4_000)  # some sweeps after the answer is due
            assert poll.poll(PATIENCE_S * 1000)


def test_a_newcomer_may_take_longer_for_its_answer_than_for_its_request(
    controller: FakeController, sized: Sized
) -> None:
    sized.outputs = {"y": bytes(8 * MIB)}
    with (
        running_gateway(controller.endpoint, grpc_port=-1, headers_s=1.0) as gateway,
        deaf(gateway.ports["http"], http_request()) as slow,
    ):
        poll = select.poll()
        poll.register(slow, select.POLLRDHUP)
        assert not poll.poll(4_000), "as long as a stranger has, and several sweeps longer"
        received = 0
        while received < 8 * MIB:
            received += len(piece := slow.recv(65536))
            assert piece, "the answer was cut off"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_that_are_not_read_shut_out_nobody(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    controller: FakeController,
    sized: Sized,
    protocol: str,
) -> None:
    """Small answers come at once.

    Large answers may be refused; then a connection that does not read is closed, so that they come after a
    few tries.
    """
    monkeypatch.setattr(answers.bounds, "ANSWERS_BYTES_MAX", 32 * MIB)
    monkeypatch.setattr(answers.bounds, "ANSWER_STALL_NS", 0)
    sized.outputs = {"y": bytes(8 * MIB)}
    request = http_request() if protocol == "http" else grpc_bytes()
    with (
        running_gateway(controller.endpoint, body_s=600.0) as gateway,
        grpc.insecure_channel(
            f"127.0.0.1:{gateway.ports['grpc']}", [("grpc.max_receive_message_length", -1)]
        ) as channel,
        contextlib.ExitStack() as stack,
    ):
        infer = method_of(channel, "ModelInfer")
        poll = select.poll()
        for number in range(1, 9):
            poll.register(stack.enter_context(deaf(gateway.ports[protocol], request)), select.POLLRDHUP)
            controller.wait_for(InferRequest)
            assert infer(grpc_request("small")).raw_output_contents == [floats(2)], number
        while (call := infer.future(grpc_request())).code() is not grpc.StatusCode.OK:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "bytes of answers wait to be read" in call.details()
        assert list(call.result().raw_output_contents) == [sized.outputs["y"]]
        assert poll.poll(PATIENCE_S * 1000), "eight answers were four times the room"
    assert not caplog.records, "clients that go would fill the log"


def test_the_answers_of_a_stream_are_counted_and_released(
    monkeypatch: pytest.MonkeyPatch, controller: FakeController, sized: Sized
) -> None:
    """Twenty answers of which two fit at a time: answers that are read make room for the next."""
    monkeypatch.setattr(answers.bounds, "ANSWERS_BYTES_MAX", 40 * MIB)
    # The reader reads, and is only as slow as the machine.
    monkeypatch.setattr(answers.bounds, "ANSWER_STALL_NS", PATIENCE_NS)
    sized.outputs = {"y": bytes(8 * MIB)}
    with (
        running_gateway(controller.endpoint) as gateway,
        grpc.insecure_channel(
            f"127.0.0.1:{gateway.ports['grpc']}", [("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        call = channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        for _ in range(3):
            read = [
                answer.error_message or len(answer.infer_response.raw_output_contents[0])
                for answer in call(iter([grpc_request()] * 20))
            ]
            assert len(read) == 20
            assert 8 * MIB in read
            assert all(one == 8 * MIB or "wait to be read" in str(one) for one in read)
        assert len(method_of(channel, "ModelInfer")(grpc_request()).raw_output_contents[0]) == 8 * MIB


def test_an_answer_that_is_too_large_for_grpc_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, controller: FakeController, sized: Sized
) -> None:
    assert GRPC_ANSWER_BYTES_MAX > 64 * MIB
    monkeypatch.setattr(served.bounds, "GRPC_ANSWER_BYTES_MAX", MIB)
    sized.outputs = {"y": bytes(MIB + 4)}
    with (
        running_gateway(controller.endpoint) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        method_of(channel, "ModelInfer")(grpc_request())
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert f"{MIB + 4} bytes, at most {MIB}" in caught.value.details()


def test_readers_that_go_in_the_middle_of_an_answer_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, controller: FakeController, sized: Sized
) -> None:
    sized.outputs = {"y": bytes(8 * MIB)}
    with (
        running_gateway(controller.endpoint, body_s=600.0) as gateway,
        contextlib.closing(Http(gateway.ports["http"])) as http,
    ):
        for count, protocol in enumerate(["http", "grpc"] * 4, 1):
            request = http_request() if protocol == "http" else grpc_bytes()
            with deaf(gateway.ports[protocol], request) as connection:
                controller.wait_for(InferRequest, count)
                assert connection.recv(1)
        monkeypatch.setattr(answers.bounds, "ANSWERS_BYTES_MAX", 9 * MIB)
        body = {"inputs": [TINY], "parameters": {"binary_data_output": True}}
        while (reply := http.infer(body)).status == 429:
            assert "wait to be read" in reply.json["error"]
        assert reply.outputs == sized.outputs
