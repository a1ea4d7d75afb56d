"""The gateway under any bytes, by hypothesis: each request gets an answer, a deserved refusal, or the end of
the connection; never an internal error, and the next honest request is served.

The controller behind it echoes requests, so that everything that the gateway lets through comes back. The
gateway answers 500 for its own mistakes; 501 is the protocol's status for an unsupported operation.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import string
import urllib.parse
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clockwork.gateway.http import TIMEOUT
from clockwork.gateway.process import Gateway
from clockwork.protocol import inference_pb2 as pb
from clockwork.wire.messages import Failure, InferRequest, Query, Reply, Status
from clockwork.wire.roles import GRPC, GRPC_COMMON, HTTP
from tests.fuzz import mutate
from tests.patience import PATIENCE_S, readable
from tests.process.fake_controller import FakeController, echo
from tests.process.gateways import HEADER_LENGTH, running_gateway

FEW = 100
FEWER = 40  # number of examples where each waits for the gateway
MANY = 1_500

# The same examples every time: a failing run can be repeated, and none fails by chance.
CHOSEN = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(CHOSEN, max_examples=MANY)


def counts(few: int) -> pytest.MarkDecorator:
    """Decorators for a test with some examples, and with many."""
    many = pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(900)])
    return pytest.mark.parametrize("how", [settings(CHOSEN, max_examples=few), many], ids=["few", "many"])


GOOD: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]}
SILENCE_S = 0.1
"""Silence of the gateway after which the end of the stream is sent: by then it has the whole request, or
never will."""

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def answer(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    """Echoes inferences; knows no model otherwise."""
    if type(message) is InferRequest:
        echo(controller, identity, message, frames)
    elif (
        type(message) is Query and message.what == "status"
    ):  # ready: otherwise 503 would be the right answer to anything
        controller.send(identity, Reply(message.request_id, {"why_not_ready": ""}))
    elif hasattr(message, "request_id"):
        controller.send(identity, Failure(message.request_id, Status.MODEL_NOT_FOUND, "no such model", {}))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with (
        FakeController(handle=answer) as controller,
        running_gateway(controller.endpoint, request_bytes_max=1 << 20) as gateway,
    ):
        yield gateway


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        yield channel


# ----- HTTP ---------------------------------------------------------------------------------------


def written(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


class Stranger:
    """A connection to a port: bytes are sent, and the answer is read to its end."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)

    def says(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the gateway has read enough
            self.socket.sendall(data)

    def hears(self) -> bytes:
        """Return all bytes that come until the connection ends, which it has to.

        If the gateway is silent, the end of the stream is sent: it may wait for the rest of a request.
        """
        found = b""
        with contextlib.suppress(ConnectionError):
            if self._is_silent():
                self.socket.shutdown(socket.SHUT_WR)
            while piece := self.socket.recv(1 << 16):
                found += piece
                if self._is_silent():
                    self.socket.shutdown(socket.SHUT_WR)
        return found

    def _is_silent(self) -> bool:
        return not readable(self.socket, within_s=SILENCE_S)


def exchanged(port: int, data: bytes) -> bytes:
    stranger = Stranger(port)
    with contextlib.closing(stranger.socket):
        stranger.says(data)
        return stranger.hears()


def asked(port: int, data: bytes) -> tuple[int, bytes]:
    """Return the single answer to a whole request: its status and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as asking:
        asking.sendall(data)
        response = http.client.HTTPResponse(asking)
        response.begin()
        return response.status, response.read()


def check_http(gateway: Gateway, data: bytes) -> list[int]:
    """Return the statuses of the answers, none of which may be an internal error; then check that an honest
    request is answered."""
    said = exchanged(gateway.ports["http"], data)
    statuses = [int(one) for one in STATUS.findall(said)]
    assert all(one < 500 or one == 501 for one in statuses), said[:2000]
    check_honest(gateway)
    return statuses


def check_honest(gateway: Gateway) -> None:
    status, body = asked(gateway.ports["http"], inference(json.dumps(GOOD).encode()))
    assert (status, b"[1.5,-2.0]" in body) == (200, True), body[:2000]


def inference(body: bytes, *more: tuple[str, str]) -> bytes:
    return written("POST", "/v2/models/m/infer", [*headers_of(body), *more], body)


def headers_of(body: bytes) -> list[tuple[str, str]]:
    return [("Host", "localhost"), ("Content-Length", str(len(body)))]


NUMBERS = st.one_of(
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.sampled_from(
        ["", " ", "-0", "+1", "1e3", "0x10", "1.5", "nan", "9" * 400, "1, 2", "\N{SUPERSCRIPT TWO}"]
    ),
)
VISIBLE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=40)
HEADERS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([HEADER_LENGTH, TIMEOUT, "Content-Length"]), NUMBERS),
        st.tuples(st.just("Content-Encoding"), st.sampled_from(["gzip", "deflate", "br", "GZIP", "gzip, gzip"])),
        st.tuples(st.just("Transfer-Encoding"), st.sampled_from(["chunked", "gzip", "chunked, chunked"])),
        st.tuples(
            st.sampled_from(["Expect", "Connection", "Upgrade", "traceparent", "tracestate", "Authorization", "Accept"]),
            st.one_of(VISIBLE, st.sampled_from(["100-continue", "close", "h2c", "websocket"])),
        ),
        st.tuples(st.text(string.ascii_letters + string.digits + "-_ \t:\x7f", max_size=20), VISIBLE),
    ),
    max_size=6,
)  # fmt: skip
SEGMENTS = st.one_of(
    st.sampled_from(
        ["v2", "models", "m", "infer", "versions", "1", "ready", "stats", "config", "", "..", "%", "%00"]
    ),
    VISIBLE.map(urllib.parse.quote),
)
PATHS = st.one_of(
    st.sampled_from(sorted(HTTP)).flatmap(
        lambda template: st.one_of(SEGMENTS, st.just("m")).map(
            lambda one: re.sub(r"\{\w+\}", lambda _: one, template)
        )
    ),
    st.lists(SEGMENTS, max_size=8).map(lambda words: "/" + "/".join(words)),
)
METHODS = st.sampled_from(
    ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PRI", "get", "A" * 99]
)
ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=8), st.sampled_from(["inputs", "id"])), inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


def json_of(value: Any) -> bytes:
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw the body of an inference: any bytes, any JSON, or a valid one with changes."""
    match draw(st.sampled_from(["bytes", "json", "within", "bytes within"])):
        case "bytes":
            return draw(st.binary(max_size=300))
        case "json":
            return json_of(draw(ANY_JSON))
        case "within":
            rng = draw(st.randoms(use_true_random=False))
            value = draw(st.sampled_from([GOOD, mutate.HTTP]))
            for _ in range(draw(st.integers(1, 3))):
                value = mutate.odd_within(value, rng)
            return json_of(value)
        case _:
            return mutate.odd_bytes(json_of(GOOD), draw(st.randoms(use_true_random=False)))


@counts(FEW)
def test_any_body_of_an_inference_is_answered_or_refused(gateway: Gateway, how: settings) -> None:
    seen: set[int] = set()

    @how
    @given(body=bodies(), prefix=st.none() | st.integers(0, 400), rest=st.binary(max_size=20))
    @example(body=json_of(GOOD), prefix=None, rest=b"")
    @example(body=b"{", prefix=None, rest=b"")
    def check(body: bytes, prefix: int | None, rest: bytes) -> None:
        whole = body if prefix is None else body + rest
        more = [] if prefix is None else [(HEADER_LENGTH, str(min(prefix, len(body))))]
        status, said = asked(gateway.ports["http"], inference(whole, *more))
        assert status < 500 or status == 501, said[:2000]
        seen.add(status)
        check_honest(gateway)

    check()
    assert {200, 400} <= seen, "what was tried reaches both"


@counts(FEWER)
def test_any_request_of_http_is_answered_or_its_connection_ended(gateway: Gateway, how: settings) -> None:
    """Draw methods, paths and headers of every kind, including lengths that differ from the body's."""
    seen: set[int] = set()

    @how
    @given(method=METHODS, path=PATHS, headers=HEADERS, body=bodies(), says=st.booleans())
    @example(method="GET", path="/v2/models/m/nothing", headers=[], body=b"", says=True)
    @example(method="DELETE", path="/v2/models/m/infer", headers=[], body=b"", says=True)
    @example(method="GET", path="/v2", headers=[("Content-Length", "-0")], body=b"", says=False)
    def check(method: str, path: str, headers: list[tuple[str, str]], body: bytes, says: bool) -> None:
        more = headers_of(body) if says else [("Host", "localhost")]
        seen.update(check_http(gateway, written(method, path, more + headers, body)))

    check()
    assert {400, 404, 405} <= seen


@counts(FEWER)
def test_any_bytes_on_the_http_port_end_their_connection_alone(gateway: Gateway, how: settings) -> None:
    request = inference(json_of(GOOD))

    @how
    @given(rng=st.randoms(use_true_random=False), raw=st.binary(max_size=200), is_raw=st.booleans())
    def check(rng: Any, raw: bytes, is_raw: bool) -> None:
        check_http(gateway, raw if is_raw else mutate.odd_bytes(request, rng))

    check()


# ----- gRPC ---------------------------------------------------------------------------------------

SERVICE = "/inference.GRPCInferenceService/"
OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
"""Statuses with which a call ends where the gateway, or gRPC under it, met something unknown."""


def good_infer() -> Any:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(8)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    return request


def called(channel: grpc.Channel, method: str, message: bytes, metadata: Any = ()) -> grpc.StatusCode:
    """Return how a call ends whose message is these bytes."""
    path = method if "/" in method else SERVICE + method
    if path.endswith(("/ModelStreamInfer", "/ServerReflectionInfo")):
        answers = channel.stream_stream(path)(iter([message]), metadata=metadata, timeout=PATIENCE_S)
        with contextlib.suppress(grpc.RpcError):
            list(answers)
        return answers.code()
    if path.endswith("/Watch"):  # a watch has an answer, and no end of its own
        watch = channel.unary_stream(path)(message, metadata=metadata, timeout=PATIENCE_S)
        try:
            next(watch)
        except grpc.RpcError:
            return watch.code()
        watch.cancel()
        return grpc.StatusCode.OK
    try:
        channel.unary_unary(path)(message, metadata=metadata, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return grpc.StatusCode.OK


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    rng = draw(st.randoms(use_true_random=False))
    match draw(st.sampled_from(["bytes", "within", "odd"])):
        case "bytes":
            return draw(st.binary(max_size=200))
        case "within":
            return mutate.odd_bytes(good_infer().SerializeToString(), rng)
    request = good_infer()
    one = request.inputs[0]
    one.datatype = draw(st.sampled_from(["FP32", "BYTES", "BOOL", "FP16", "INT64", "", "\N{SNOWMAN}"]))
    del one.shape[:]
    one.shape.extend(draw(st.lists(st.integers(-2, 3) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=5)))
    for name in draw(st.lists(st.sampled_from(["x", "", "y", "n" * 2000]), max_size=3)):
        request.outputs.add(name=name)
    for key in draw(
        st.lists(st.sampled_from(["timeout", "priority", "shared_memory_region", "x"]), max_size=3)
    ):
        field = draw(st.sampled_from(["int64_param", "bool_param", "string_param", "double_param"]))
        value = {"int64_param": draw(st.integers(-(1 << 63), (1 << 63) - 1)), "bool_param": True,
                 "string_param": draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=9)), "double_param": draw(st.floats())}[field]  # fmt: skip
        setattr(draw(st.sampled_from([request, one])).parameters[key], field, value)
    if draw(st.booleans()):
        del request.raw_input_contents[:]
        one.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=4)))
        one.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=5), max_size=3)))
        one.contents.uint_contents.extend(draw(st.lists(st.integers(0, (1 << 32) - 1), max_size=3)))
    else:
        request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=20), max_size=2)))
    return request.SerializeToString()


METADATA = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["authorization", "traceparent", "x-any"]), st.text(string.printable[:94], max_size=60)),
        st.tuples(st.sampled_from(["traceparent-bin", "x-bin"]), st.binary(max_size=60)),
    ),
    max_size=4,
)  # fmt: skip


@counts(FEW)
def test_any_message_of_grpc_ends_its_call_alone(
    gateway: Gateway, channel: grpc.Channel, how: settings
) -> None:
    seen: set[grpc.StatusCode] = set()

    @how
    @given(
        method=st.sampled_from([*["ModelInfer"] * 12, *sorted(GRPC), *sorted(GRPC_COMMON)]),
        message=messages(),
        metadata=METADATA,
    )
    @example(method="ModelInfer", message=good_infer().SerializeToString(), metadata=[])
    @example(method="ModelInfer", message=good_infer().SerializeToString() * 2, metadata=[])
    def check(method: str, message: bytes, metadata: Any) -> None:
        code = called(channel, method, message, metadata)
        seen.add(code)
        assert code not in OURS, code
        assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, "the call was left without an end"
        assert called(channel, "ModelInfer", good_infer().SerializeToString()) is grpc.StatusCode.OK

    check()
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= seen


@counts(FEWER)
def test_any_bytes_on_the_grpc_port_end_their_connection_alone(
    gateway: Gateway, channel: grpc.Channel, how: settings
) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings_frame = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"

    @how
    @given(
        raw=st.binary(max_size=200), begins=st.sampled_from([b"", preface, preface + settings_frame]),
        rng=st.randoms(use_true_random=False), breaks=st.booleans(),
    )  # fmt: skip
    def check(raw: bytes, begins: bytes, rng: Any, breaks: bool) -> None:
        data = begins + raw
        exchanged(gateway.ports["grpc"], mutate.odd_bytes(data, rng) if breaks and data else data)
        assert called(channel, "ModelInfer", good_infer().SerializeToString()) is grpc.StatusCode.OK

    check()
