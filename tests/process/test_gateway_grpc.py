"""The gateway's gRPC server before a controller of a few lines, asked with messages made by hand."""

from __future__ import annotations

import gzip
import json
import queue
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest

from bench import http2
from clockwork.config.gateway import ELEMENTS_AT_ONCE, GRPC_FIELDS_MAX, GRPC_PARSED_BYTES_MAX
from clockwork.gateway import connections
from clockwork.gateway.process import Gateway
from clockwork.gateway.settings import StatusCodes
from clockwork.protocol import inference_pb2 as pb
from clockwork.system.clock import MS, SECOND
from clockwork.wire.messages import Cancel, InferRequest, Query, Status
from clockwork.wire.roles import GRPC, GRPC_COMMON
from tests.patience import PATIENCE_S
from tests.process.fake_controller import FakeController, echo, failing, silent
from tests.process.gateways import SERVICE, method_of, running_gateway

RAW = np.array([[1.5, -2.0]], np.float32).tobytes()

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def gateway(controller: FakeController) -> Iterator[Gateway]:
    with running_gateway(controller.endpoint, http_port=-1, request_bytes_max=1 << 20) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        yield channel


@pytest.fixture
def call(channel: grpc.Channel, controller: FakeController) -> Iterator[Call]:
    """call(method, request, **more) answers; call.with_call, call.future likewise."""
    controller.handle = echo

    def unary(method: str, request: Any, **more: Any) -> Any:
        more.setdefault("timeout", None)
        return method_of(channel, method)(request, **more)

    yield unary
    controller.handle = echo


def inference(raw: list[bytes] | None = None, parameters: dict[str, Any] | None = None, **more: Any) -> Any:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[RAW] if raw is None else raw, **more)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    for key, (choice, value) in (parameters or {}).items():
        setattr(request.parameters[key], choice, value)
    return request


def streamed(channel: grpc.Channel) -> Any:
    return channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )


def last_request(controller: FakeController) -> InferRequest:
    found: InferRequest = controller.of(InferRequest)[-1]
    return found


def test_raw_tensors_pass_as_they_are(call: Call, controller: FakeController) -> None:
    answer = call("ModelInfer", inference(id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "seven")
    assert [(one.name, one.datatype, list(one.shape)) for one in answer.outputs] == [("y", "FP32", [1, 2])]
    assert list(answer.raw_output_contents) == [RAW]
    request = last_request(controller)
    assert (request.model, request.slo_ns, request.tensors) == ("m", 0, [["x", 1, [1, 2], 0]])
    call("ModelInfer", inference(model_version="3"))
    assert last_request(controller).model == "m@3"


CONTENTS: list[tuple[str, str, list[Any], bytes]] = [
    ("BOOL", "bool_contents", [True, False], b"\1\0"),
    ("UINT8", "uint_contents", [1, 255], b"\1\xff"),
    ("UINT16", "uint_contents", [1, 65535], b"\1\0\xff\xff"),
    ("UINT32", "uint_contents", [1, 2**32 - 1], b"\1\0\0\0\xff\xff\xff\xff"),
    ("UINT64", "uint64_contents", [1, 2**64 - 1], b"\1" + bytes(7) + b"\xff" * 8),
    ("INT8", "int_contents", [1, -1], b"\1\xff"),
    ("INT16", "int_contents", [1, -1], b"\1\0\xff\xff"),
    ("INT32", "int_contents", [1, -1], b"\1\0\0\0\xff\xff\xff\xff"),
    ("INT64", "int64_contents", [1, -1], b"\1" + bytes(7) + b"\xff" * 8),
    ("FP32", "fp32_contents", [1.5, -2.0], RAW),
    ("FP64", "fp64_contents", [1.5, -2.0], np.array([1.5, -2.0]).tobytes()),
    ("BYTES", "bytes_contents", [b"ab", b""], b"\2\0\0\0ab\0\0\0\0"),
]


@pytest.mark.parametrize(("datatype", "field", "elements", "raw"), CONTENTS, ids=[row[0] for row in CONTENTS])
def test_elements_in_the_message_become_raw_bytes(
    call: Call, datatype: str, field: str, elements: list[Any], raw: bytes
) -> None:
    request = pb.ModelInferRequest(model_name="m")
    one = request.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(one.contents, field).extend(elements)
    assert list(call("ModelInfer", request).raw_output_contents) == [raw]


def test_only_the_outputs_asked_for_come_and_in_that_order(call: Call) -> None:
    request = inference([RAW, RAW])
    request.inputs.add(name="z", datatype="FP32", shape=[2, 1])
    request.outputs.add(name="y1")
    request.outputs.add(name="y")
    answer = call("ModelInfer", request)
    assert [one.name for one in answer.outputs] == ["y1", "y"]


def test_an_output_that_is_asked_for_again_and_again_comes_once(call: Call) -> None:
    request = inference()
    for _ in range(1_000):
        request.outputs.add(name="y")
    answer = call("ModelInfer", request)
    assert [one.name for one in answer.outputs] == ["y"]
    assert list(answer.raw_output_contents) == [RAW]


def test_the_smaller_of_timeout_and_the_calls_deadline_counts(call: Call, controller: FakeController) -> None:
    call(
        "ModelInfer",
        inference(parameters={"timeout": ("int64_param", 1500), "priority": ("uint64_param", 2)}),
    )
    assert (last_request(controller).slo_ns, last_request(controller).priority) == (1500 * 1000, 2)
    call("ModelInfer", inference(), timeout=10)
    assert 9 * SECOND <= last_request(controller).slo_ns <= 10 * SECOND
    call("ModelInfer", inference(parameters={"timeout": ("int64_param", 5_000_000)}), timeout=60)
    assert last_request(controller).slo_ns == 5 * SECOND
    call("ModelInfer", inference(parameters={"timeout": ("int64_param", 5_000_000)}), timeout=3)
    assert last_request(controller).slo_ns <= 3 * SECOND


OUTCOMES = [
    (Status.MODEL_NOT_FOUND, {}, "NOT_FOUND", {"clockwork-reason": "model_not_found"}),
    (Status.INVALID_INPUT, {"tensor": "x"}, "INVALID_ARGUMENT", {"clockwork-reason": "invalid_input"}),
    (Status.DEADLINE_MISSED, {}, "DEADLINE_EXCEEDED", {"clockwork-reason": "deadline_missed"}),
    (Status.UNAVAILABLE, {}, "UNAVAILABLE", {"clockwork-reason": "unavailable", "retry-after": "1"}),
    (Status.EXECUTION_FAILED, {}, "INTERNAL", {"clockwork-reason": "execution_failed"}),
    (
        Status.REFUSED,
        {"reason": "deadline", "retry_after_ns": 1_200_000_000, "feasible_slo_ns": 30 * MS},
        "RESOURCE_EXHAUSTED",
        {
            "clockwork-reason": "deadline",
            "clockwork-retry-after-us": "1200000",
            "clockwork-feasible-timeout-us": "30000",
            "retry-after": "2",
            "grpc-retry-pushback-ms": "1200",
        },
    ),
    (
        Status.REFUSED,
        {"reason": "infeasible", "feasible_slo_ns": 30 * MS},
        "FAILED_PRECONDITION",
        {"clockwork-reason": "infeasible", "clockwork-feasible-timeout-us": "30000"},
    ),
]


@pytest.mark.parametrize(("status", "details", "code", "metadata"), OUTCOMES)
def test_a_failure_has_its_status_and_its_facts(
    call: Call,
    controller: FakeController,
    status: Status,
    details: dict[str, Any],
    code: str,
    metadata: dict[str, str],
) -> None:
    controller.handle = failing(status, "what went wrong: ä\n", details)
    with pytest.raises(grpc.RpcError) as caught:
        call("ModelInfer", inference())
    assert caught.value.code() is getattr(grpc.StatusCode, code)
    assert caught.value.details() == "what went wrong: ä\n"
    assert dict(caught.value.trailing_metadata()) == metadata


def test_a_client_that_retries_waits_for_as_long_as_the_refusal_says(
    gateway: Gateway, controller: FakeController
) -> None:
    refused = failing(Status.REFUSED, "not now", {"reason": "deadline", "retry_after_ns": 20 * MS})

    def refuse_once(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        controller.handle = echo
        refused(controller, identity, message, frames)

    policy = {
        "maxAttempts": 2, "initialBackoff": "600s", "maxBackoff": "600s", "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }  # fmt: skip
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    with grpc.insecure_channel(
        f"127.0.0.1:{gateway.ports['grpc']}", [("grpc.service_config", config)]
    ) as channel:
        controller.handle = refuse_once
        answer = method_of(channel, "ModelInfer")(inference(), timeout=PATIENCE_S)
    assert list(answer.raw_output_contents) == [RAW]


def test_refusals_may_have_the_statuses_of_triton(controller: FakeController) -> None:
    controller.handle = failing(Status.REFUSED, "not now", {"reason": "deadline"})
    with (
        running_gateway(controller.endpoint, http_port=-1, status_codes=StatusCodes.TRITON) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method_of(channel, "ModelInfer")(inference())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        (answer,) = streamed(channel)(iter([inference()]))
        assert answer.error_message == "not now"
    controller.handle = echo


def wrong_requests() -> Iterator[tuple[str, Any, str]]:
    yield (
        "no datatype",
        pb.ModelInferRequest(model_name="m", inputs=[{"name": "x", "shape": [1]}]),
        "datatype",
    )
    yield "raw for another count of inputs", inference([RAW, RAW]), "2 tensors for 1 inputs"
    yield "too few bytes", inference([RAW[:4]]), "expecting 4 additional bytes"
    both = inference()
    both.inputs[0].contents.fp32_contents.append(1.0)
    yield "raw and elements", both, "'x'"
    few = pb.ModelInferRequest(model_name="m")
    few.inputs.add(name="x", datatype="FP32", shape=[2]).contents.fp32_contents.append(1.0)
    yield "too few elements", few, "2 elements, got 1"
    wide = pb.ModelInferRequest(model_name="m")
    wide.inputs.add(name="x", datatype="UINT8", shape=[1]).contents.uint_contents.append(256)
    yield "an element that does not fit", wide, "UINT8"
    negative = inference()
    negative.inputs[0].shape[0] = -1
    yield "a negative dimension", negative, "-1"
    yield "a timeout that is text", inference(parameters={"timeout": ("string_param", "soon")}), "timeout"
    yield "a negative timeout", inference(parameters={"timeout": ("int64_param", -1)}), "timeout"
    yield "a priority that is text", inference(parameters={"priority": ("string_param", "1")}), "priority"
    unknown = inference()
    unknown.outputs.add(name="nope")
    yield "an output that there is not", unknown, "'nope'"
    half = pb.ModelInferRequest(model_name="m")
    half.inputs.add(name="x", datatype="FP16", shape=[1])
    yield "FP16 as elements", half, "raw_input_contents"


@pytest.mark.parametrize(
    ("request_", "words"), [row[1:] for row in wrong_requests()], ids=[row[0] for row in wrong_requests()]
)
def test_what_is_wrong_with_a_request_is_said(call: Call, request_: Any, words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call("ModelInfer", request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_what_is_not_here_is_unimplemented(call: Call, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match="sequences are not supported") as caught:
        call("ModelInfer", inference(parameters={"sequence_id": ("int64_param", 7)}))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(SERVICE + "TraceSetting")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("how", ["cancelled", "past its deadline"])
def test_a_call_that_its_client_gives_up_is_cancelled(
    channel: grpc.Channel, controller: FakeController, how: str
) -> None:
    controller.handle = silent
    before, cancelled = len(controller.of(InferRequest)), len(controller.of(Cancel))
    future = method_of(channel, "ModelInfer").future(
        inference(), timeout=0.5 if how != "cancelled" else PATIENCE_S
    )
    request = controller.wait_for(InferRequest, before + 1)[-1]
    if how == "cancelled":
        future.cancel()
    assert controller.wait_for(Cancel, cancelled + 1)[-1].request_id == request.request_id
    controller.handle = echo


def test_a_connection_on_which_nothing_is_said_is_closed(controller: FakeController) -> None:
    with (
        running_gateway(controller.endpoint, http_port=-1, headers_s=0.5) as gateway,
        socket.create_connection(("127.0.0.1", gateway.ports["grpc"]), timeout=PATIENCE_S) as sock,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        infer = method_of(channel, "ModelInfer")
        assert infer(inference(id="before"), timeout=PATIENCE_S).id == "before"
        received = b"".join(iter(lambda: sock.recv(1000), b""))
        assert received, "the server's own settings come first"
        assert infer(inference(id="after"), timeout=PATIENCE_S).id == "after"


def test_a_request_that_is_too_large_is_refused(call: Call) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call("ModelInfer", inference([bytes(2 << 20)]))
    # A refusal by gRPC itself, which does not say when to try again.
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not caught.value.trailing_metadata()


MANY = b"\x2a\0\x22\0" * GRPC_FIELDS_MAX
"""Empty tensors and parameters, each of which would take a hundred times its bytes; for other methods,
unknown fields."""


@pytest.mark.parametrize("method", [*sorted(GRPC), *sorted(GRPC_COMMON)])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_no_message_has_fields_without_number(channel: grpc.Channel, method: str, compression: Any) -> None:
    path = method if method in GRPC_COMMON else SERVICE + method
    if method == "ModelStreamInfer":
        [answer] = channel.stream_stream(path, response_deserializer=pb.ModelStreamInferResponse.FromString)(
            iter([MANY]), compression=compression
        )
        assert f"more than {GRPC_FIELDS_MAX} fields" in answer.error_message
        return
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(path)(iter([MANY]), compression=compression))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert f"more than {GRPC_FIELDS_MAX} fields" in caught.value.details()


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [("BOOL", "bool_contents", True), ("FP32", "fp32_contents", 0.5), ("INT64", "int64_contents", -1)],
)
def test_elements_in_the_message_may_be_a_few_megabytes(
    controller: FakeController, datatype: str, field: str, value: Any
) -> None:
    """All that arrive are converted, large ones beside the loop; beyond the bound, clients are told to send
    raw data."""
    request = pb.ModelInferRequest(model_name="m")
    one = request.inputs.add(name="x", datatype=datatype, shape=[3 * ELEMENTS_AT_ONCE + 1])
    elements = getattr(one.contents, field)
    elements.extend([value] * one.shape[0])
    with (
        running_gateway(controller.endpoint) as gateway,
        grpc.insecure_channel(
            f"127.0.0.1:{gateway.ports['grpc']}", [("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        infer = method_of(channel, "ModelInfer")
        [raw] = infer(request).raw_output_contents
        dtype = {"BOOL": np.bool_, "FP32": np.float32, "INT64": np.int64}[datatype]
        assert np.array_equal(np.frombuffer(raw, dtype), np.full(one.shape[0], value, dtype))
        while request.ByteSize() <= GRPC_PARSED_BYTES_MAX:
            elements.extend([value] * one.shape[0])
        with pytest.raises(grpc.RpcError) as caught:
            infer(request)
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert "besides raw_input_contents" in caught.value.details()


def test_what_elements_become_is_counted(controller: FakeController) -> None:
    """A hundred thousand booleans are as many bytes in the message, and as many in the message to the
    controller."""
    request = pb.ModelInferRequest(model_name="m")
    one = request.inputs.add(name="x", datatype="BOOL", shape=[100_000])
    one.contents.bool_contents.extend([True] * 100_000)
    with (
        running_gateway(controller.endpoint, requests_bytes_max=250_000) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        infer = method_of(channel, "ModelInfer")
        raw = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(200_000)])
        raw.inputs.add(name="x", datatype="BOOL", shape=[200_000])
        assert list(infer(raw).raw_output_contents) == [bytes(200_000)], "raw tensors are there once"
        for _ in range(2):  # the second finds all of the first one's bytes released
            with pytest.raises(grpc.RpcError) as caught:
                infer(request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "250000 bytes of requests" in caught.value.details()


def test_messages_that_do_not_become_whole_have_a_bound(
    monkeypatch: pytest.MonkeyPatch, controller: FakeController
) -> None:
    """The caller that has held most of them for longest is cut first; others who send as much are served."""
    monkeypatch.setattr(connections, "GRPC_RECEIVING_BYTES_MAX", 8 << 20)
    with running_gateway(controller.endpoint, http_port=-1, body_s=600.0) as gateway, ExitStack() as stack:
        port = gateway.ports["grpc"]
        poll = select.poll()
        for part in (7 << 20, 3 << 20):  # either message alone may wait
            sending = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
            http2.begin_message(sending, http2.call(), 16 << 20, part)
            poll.register(sending, select.POLLRDHUP)
        assert len(poll.poll(PATIENCE_S * 1000)) == 1
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        infer = method_of(channel, "ModelInfer")
        large = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(3 << 20)])
        large.inputs.add(name="x", datatype="UINT8", shape=[3 << 20])
        for _ in range(8):  # more than may wait, if messages did not count as taken
            assert list(infer(large).raw_output_contents) == list(large.raw_input_contents)
        asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        streaming = streamed(channel)(iter(asked.get, None))
        for _ in range(8):  # in sequence: how far gRPC reads ahead depends on the machine's speed
            asked.put(large)
            assert len(next(streaming).infer_response.raw_output_contents[0]) == 3 << 20
        asked.put(None)
        assert list(streaming) == []


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_inflated(call: Call, channel: grpc.Channel, compression: Any) -> None:
    for elements in (2, 100_000):
        raw = bytes(4 * elements)
        request = inference([raw])
        request.inputs[0].shape[:] = [elements]
        answer = call("ModelInfer", request, compression=compression)
        assert list(answer.raw_output_contents) == [raw]
        answers = streamed(channel)(iter([request] * 2), compression=compression)
        assert [list(one.infer_response.raw_output_contents) for one in answers] == [[raw]] * 2
    with pytest.raises(grpc.RpcError) as caught:
        call("ModelInfer", inference([bytes(2 << 20)]), compression=compression)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert "are inflated" in caught.value.details()


def test_what_seems_compressed_and_is_not_is_refused(channel: grpc.Channel) -> None:
    for data in (
        b"\x1f\x8b",
        b"\x1f\x8bx" * 50,
        gzip.compress(b"x" * 99)[:-9],
        gzip.compress(b"\xff" * 99),
        b"\x78\x9c",
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(SERVICE + "ModelInfer")(data)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_does_not_become_a_thousand_times_as_large(controller: FakeController) -> None:
    """Otherwise many at once, of 60 KB each, take gigabytes before their bytes are counted."""
    with (
        running_gateway(controller.endpoint, http_port=-1) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        method_of(channel, "ModelInfer")(inference([bytes(60 << 20)]), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


def test_the_number_of_calls_is_bounded(controller: FakeController) -> None:
    controller.handle = silent
    with (
        running_gateway(controller.endpoint, http_port=-1, requests_max=2, drain_s=0.1) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        before = len(controller.of(InferRequest))
        infer = method_of(channel, "ModelInfer")
        waiting = [infer.future(inference()) for _ in range(2)]
        controller.wait_for(InferRequest, before + 2)
        with pytest.raises(grpc.RpcError) as caught:
            infer(inference())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("clockwork-reason", "overloaded") in caught.value.trailing_metadata()
        for one in waiting:
            one.cancel()
    controller.handle = echo


def test_the_end_waits_for_what_is_under_way_and_takes_nothing_new(controller: FakeController) -> None:
    held: list[tuple[bytes, Any, list[Any]]] = []

    def hold(_: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is InferRequest:  # not a Cancel from the gateway of the test before
            held.append((identity, message, frames))

    controller.handle = hold
    with ExitStack() as client:
        with running_gateway(controller.endpoint, http_port=-1, drain_s=PATIENCE_S) as gateway:
            channel = client.enter_context(grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}"))
            before = len(controller.of(InferRequest))
            future = method_of(channel, "ModelInfer").future(inference())
            controller.wait_for(InferRequest, before + 1)
            answer = threading.Timer(0.3, lambda: controller.do(lambda: echo(controller, *held[0])))
            answer.start()
        assert list(future.result(timeout=PATIENCE_S).raw_output_contents) == [RAW]
        answer.join()
        with pytest.raises(grpc.RpcError) as caught:
            method_of(channel, "ModelInfer")(inference(), timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    controller.handle = echo


def test_a_stream_answers_in_order_and_goes_on_after_an_error(
    channel: grpc.Channel, controller: FakeController
) -> None:
    held: list[Any] = []
    release = threading.Event()

    def reversing(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        """Answers three requests in the reverse order."""
        if type(message) is not InferRequest:
            echo(controller, identity, message, frames)
            return
        held.append((identity, message, frames))
        if len(held) == 3:
            for one in reversed(held):
                echo(controller, *one)
            release.set()

    controller.handle = reversing
    stream = streamed(channel)
    requests = [inference(id="a"), inference(id="b"), inference([RAW[:4]], id="wrong"), inference(id="c")]
    answers = list(stream(iter(requests), timeout=PATIENCE_S))
    assert release.wait(PATIENCE_S)
    assert [one.infer_response.id for one in answers] == ["a", "b", "wrong", "c"]
    assert [bool(one.error_message) for one in answers] == [False, False, True, False]
    controller.handle = echo


@pytest.mark.parametrize(
    ("status", "details", "code"),
    [
        (Status.REFUSED, {"reason": "deadline"}, "RESOURCE_EXHAUSTED"),
        (Status.REFUSED, {"reason": "no_worker"}, "UNAVAILABLE"),
        (Status.MODEL_NOT_FOUND, {}, "NOT_FOUND"),
        (Status.OK, {}, "INVALID_ARGUMENT"),  # the gateway finds the error
    ],
)
def test_a_stream_ends_with_the_status_of_its_first_error_where_that_is_asked_for(
    channel: grpc.Channel, controller: FakeController, status: Status, details: dict[str, Any], code: str
) -> None:
    """As Triton does for streams with ``triton_grpc_error``: answers to earlier requests come before it."""
    held: list[Any] = []

    def reversing(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        """Fails the last of three requests before it answers the others."""
        if type(message) is not InferRequest:
            echo(controller, identity, message, frames)
            return
        held.append((identity, message, frames))
        if len(held) == (2 if status is Status.OK else 3):
            if status is not Status.OK:
                failing(status, "not now", details)(controller, *held.pop())
            for one in reversed(held):
                echo(controller, *one)

    controller.handle = reversing
    wrong = inference([RAW[:4]] if status is Status.OK else None, id="wrong")
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()  # the client leaves its side of the stream open
    for request in (inference(id="a"), inference(id="b"), wrong):
        asked.put(request)
    answers = streamed(channel)(
        iter(asked.get, None), metadata=[("triton_grpc_error", "true")], timeout=PATIENCE_S
    )
    assert [next(answers).infer_response.id for _ in range(2)] == ["a", "b"]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    asked.put(None)
    assert caught.value.code() is getattr(grpc.StatusCode, code)
    assert "not now" in caught.value.details() or status is Status.OK
    assert ("retry-after" in dict(caught.value.trailing_metadata())) is (
        code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    )
    controller.handle = echo


def test_bytes_that_are_no_message_are_refused_and_end_no_stream(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    garbage, good = b"\xff" * 20, inference(id="good").SerializeToString()
    unary = channel.unary_unary(SERVICE + "ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        unary(garbage, timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
    )
    answers = list(stream(iter([garbage, good]), timeout=PATIENCE_S))
    assert [(one.infer_response.id, bool(one.error_message)) for one in answers] == [
        ("", True),
        ("good", False),
    ]
    assert not caplog.records


def test_a_stream_that_its_client_gives_up_cancels_its_requests(
    channel: grpc.Channel, controller: FakeController
) -> None:
    controller.handle = silent
    before, cancelled = len(controller.of(InferRequest)), len(controller.of(Cancel))
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer", request_serializer=lambda message: message.SerializeToString()
    )
    answers = stream(iter([inference(), inference()]))
    requests = controller.wait_for(InferRequest, before + 2)[before:]
    answers.cancel()
    cancels = controller.wait_for(Cancel, cancelled + 2)[cancelled:]
    assert {one.request_id for one in cancels} == {one.request_id for one in requests}
    controller.handle = echo


def test_queries_are_the_controllers_to_answer(call: Call, controller: FakeController) -> None:
    assert call("ServerLive", pb.ServerLiveRequest()).live
    assert call("ServerMetadata", pb.ServerMetadataRequest()).name == "clockwork"
    controller.handle = failing(Status.MODEL_NOT_FOUND, "no model 'm' is registered")
    assert not call("ServerReady", pb.ServerReadyRequest()).ready
    assert not call("ModelReady", pb.ModelReadyRequest(name="m", version="2")).ready, "as Triton says it"
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        with pytest.raises(grpc.RpcError) as caught:
            call(method, getattr(pb, f"{method}Request")(name="m", version="2"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert controller.of(Query)[-1].argument == "m@2"
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        with pytest.raises(grpc.RpcError) as caught:
            call(method, getattr(pb, f"{method}Request")(model_name="m"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
