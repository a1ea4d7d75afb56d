"""The gateway's HTTP server before a controller of a few lines: requests, answers, and errors."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from clockwork.config import TENSORS_MAX
from clockwork.config.gateway import JSON_AT_ONCE_BYTES, JSON_CONTAINERS_MAX
from clockwork.gateway.process import Gateway
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.messages import Answer, Cancel, InferRequest, Query, Status
from clockwork.wire.messages import Reply as Answered
from clockwork.wire.tensors import DTYPES
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually
from tests.process.fake_controller import FakeController, echo, failing, silent
from tests.process.gateways import HEADER_LENGTH, Http, Reply, Signals, running_gateway, tensor

X = np.array([[1.5, -2.0]], np.float32)
RAW = X.tobytes()
PLAIN = {"inputs": [tensor(data=[1.5, -2.0])]}
BINARY = {"inputs": [tensor(size=8)]}

Handler = Callable[[FakeController, bytes, Any, list[Any]], None]


@pytest.fixture(scope="module")
def gateway(controller: FakeController) -> Iterator[Gateway]:
    with running_gateway(controller.endpoint, request_bytes_max=1 << 20) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def hasty(controller: FakeController) -> Iterator[Gateway]:
    """A gateway that gives each client a second for its headers, and another for its body."""
    with running_gateway(controller.endpoint, grpc_port=-1, body_s=1.0, headers_s=1.0) as gateway:
        yield gateway


@pytest.fixture
def http(gateway: Gateway, controller: FakeController) -> Iterator[Http]:
    controller.handle = echo
    http = Http(gateway.ports["http"])
    yield http
    http.close()
    controller.handle = echo


def last_request(controller: FakeController) -> InferRequest:
    found: InferRequest = controller.of(InferRequest)[-1]
    return found


# ----- the road of an inference ----------------------------------------------------------------


def test_json_goes_in_and_comes_out(http: Http, controller: FakeController) -> None:
    reply = http.infer({"id": "seven", **PLAIN})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {
        "model_name": "m", "model_version": "1", "id": "seven",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}],
    }  # fmt: skip
    request = last_request(controller)
    assert (request.model, request.slo_ns, request.priority) == ("m", 0, 0)
    assert request.tensors == [["x", 1, [1, 2], 0]]
    assert "id" not in http.infer(PLAIN).json


def test_binary_goes_in_and_comes_out_as_each_output_asks(http: Http) -> None:
    two = {"inputs": [tensor(size=8), tensor("INT64", (1,), size=8, name="z")]}
    raw = RAW + (7).to_bytes(8, "little")
    reply = http.infer(
        {**two, "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "y1"}]}, raw
    )
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.outputs == {"y": RAW, "y1": [7]}
    assert http.infer({**two, "parameters": {"binary_data_output": True}}, raw).outputs == {
        "y": RAW,
        "y1": raw[8:],
    }
    assert http.infer(two, raw).outputs == {"y": [1.5, -2.0], "y1": [7]}
    wanted = {"outputs": [{"name": "y1"}, {"name": "y", "parameters": {"binary_data": True}}]}
    assert list(http.infer(two | wanted, raw).outputs) == ["y1", "y"]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT32", [[[one, 2, 3] for one in range(150)] for _ in range(150)]),
        ("FP32", [one / 4 for one in range(100_000)]),
        ("BYTES", [f"{one}, [{one}]" for one in range(20_000)]),
    ],
)
def test_long_json_is_what_short_json_is(http: Http, datatype: str, data: list[Any]) -> None:
    flat = np.array(data).ravel().tolist()
    assert len(json.dumps(data)) > 2 * JSON_AT_ONCE_BYTES
    reply = http.infer({"inputs": [tensor(datatype, np.shape(data), data)]})
    assert (reply.status, reply.outputs) == (200, {"y": flat})
    wrong = http.infer({"inputs": [tensor(datatype, np.shape(flat), [*flat[:-1], None])]})
    assert (wrong.status, wrong.json["tensor"], wrong.json["got"]) == (400, "x", "None")


def test_long_json_is_bounded_by_what_it_becomes(controller: FakeController) -> None:
    with (
        running_gateway(controller.endpoint, requests_bytes_max=3 << 20) as gateway,
        contextlib.closing(Http(gateway.ports["http"])) as http,
    ):
        lists = http.infer(b'{"inputs":[' + b"[]," * JSON_CONTAINERS_MAX + b"[]]}")
        assert (lists.status, lists.json["reason"]) == (413, "too_large")
        assert str(JSON_CONTAINERS_MAX) in lists.json["error"]
        # two bytes for each element are eight; the second request finds the first one's released
        for _ in range(2):
            wide = http.infer({"inputs": [tensor("INT64", (500_000,), [0] * 500_000)]})
            assert (wide.status, wide.json["reason"]) == (429, "overloaded")
        assert http.infer({"inputs": [tensor("INT8", (500_000,), [0] * 500_000)]}).status == 200
        many = [tensor(data=[1.5, 2]) | {"name": f"x{number}"} for number in range(TENSORS_MAX + 1)]
        for fields in ({"inputs": many}, {"inputs": [], "outputs": many}):
            rows = http.infer(fields)
            assert (rows.status, rows.json["got"]) == (400, str(TENSORS_MAX + 1))
        index = http.ask("POST", "/v2/repository/index", b" " * JSON_AT_ONCE_BYTES + b"{}")
        assert (index.status, index.json["reason"]) == (413, "too_large")


@pytest.mark.parametrize("code", [code for code, kind in DTYPES.items() if kind.bits >= 8])
def test_every_datatype_passes_as_it_is(http: Http, code: int) -> None:
    from clockwork.protocol.datatypes import NAME_OF

    kind = DTYPES[code]
    raw = b"\3\0\0\0abc\0\0\0\0" if kind.name == "string" else bytes(range(kind.bits // 4))
    body = {
        "inputs": [tensor(NAME_OF[code], (2,), size=len(raw))],
        "parameters": {"binary_data_output": True},
    }
    reply = http.infer(body, raw)
    assert reply.outputs == {"y": raw}
    header = json.loads(reply.data[: int(reply.headers[HEADER_LENGTH.lower()])])
    assert header["outputs"][0]["datatype"] == NAME_OF[code]


def test_raw_bytes_alone_are_a_models_one_input(http: Http, controller: FakeController) -> None:
    described = {
        "name": "m",
        "version": 1,
        "state": "ready",
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 2]}],
    }

    def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is Query:
            controller.send(identity, Answered(message.request_id, described))
        else:
            echo(controller, identity, message, frames)

    controller.handle = handle
    more = {HEADER_LENGTH: "0", "X-Clockwork-Timeout-Us": "2000"}
    reply = http.ask("POST", "/v2/models/m/infer", RAW + RAW, more)
    assert reply.outputs == {"y": RAW + RAW}
    assert last_request(controller).tensors == [["x", 1, [2, 2], 0]]
    assert last_request(controller).slo_ns == 2_000_000
    reply = http.ask("POST", "/v2/models/m/infer", RAW + b"!", more)
    assert (reply.status, "takes 8 bytes, got 9" in reply.json["error"]) == (400, True)
    for inputs in (
        [{"name": "x", "dtype": "float32", "shape": ["N", "M"]}],
        [{"name": "x", "dtype": "string", "shape": [2]}],
        [],
    ):
        described["inputs"] = inputs
        described["outputs"] = [{"name": "y", "dtype": "float32", "shape": [1]}]
        assert http.ask("POST", "/v2/models/m/infer", RAW, more).status == 400


def test_a_large_answer_comes_in_pieces_and_whole(http: Http) -> None:
    raw = np.arange(100_000, dtype=np.float64).tobytes()
    body = {"inputs": [tensor("FP64", (100_000,), size=len(raw))], "parameters": {"binary_data_output": True}}
    for _ in range(2):  # the connection stays open after an error
        assert http.infer(body, raw).outputs == {"y": raw}


def test_versions_and_names_are_part_of_the_path(http: Http, controller: FakeController) -> None:
    assert http.ask("POST", "/v2/models/m/versions/3/infer", PLAIN).status == 200
    assert last_request(controller).model == "m@3"
    assert http.ask("POST", "/v2/models/a%20b/infer", PLAIN).status == 200
    assert last_request(controller).model == "a b"
    assert http.ask("POST", "/v2/models/m/versions/x/infer", PLAIN).status == 404


def test_a_deadline_comes_as_a_parameter_or_in_a_header_and_the_smaller_counts(
    http: Http, controller: FakeController
) -> None:
    def slo_ns(header: str | None = None, **parameters: int) -> int:
        more = {} if header is None else {"X_Clockwork_Timeout_Us": header}
        assert http.infer(PLAIN | {"parameters": parameters}, **more).status == 200
        return last_request(controller).slo_ns

    assert slo_ns() == 0
    assert slo_ns(timeout=1500) == 1_500_000
    assert slo_ns("2000") == 2_000_000
    assert slo_ns("2000", timeout=1500) == 1_500_000
    assert slo_ns("1000", timeout=1500) == 1_000_000
    assert slo_ns("0", timeout=1500) == 1_500_000
    http.infer(PLAIN | {"parameters": {"priority": 2, "unknown": 4}})
    assert last_request(controller).priority == 2


# ----- errors ----------------------------------------------------------------------------------

OUTCOMES: list[tuple[Status, dict[str, Any], int, str]] = [
    (Status.MODEL_NOT_FOUND, {}, 404, "model_not_found"),
    (Status.INVALID_INPUT, {"tensor": "x", "expected": "float32", "got": "int8"}, 400, "invalid_input"),
    (Status.DEADLINE_MISSED, {}, 504, "deadline_missed"),
    (Status.UNAVAILABLE, {}, 503, "unavailable"),
    (Status.EXECUTION_FAILED, {}, 500, "execution_failed"),
    (Status.INTERNAL, {}, 500, "internal"),
]


@pytest.mark.parametrize(("status", "details", "http_status", "reason"), OUTCOMES)
def test_a_failure_has_its_status_and_a_reason(
    http: Http,
    controller: FakeController,
    status: Status,
    details: dict[str, Any],
    http_status: int,
    reason: str,
) -> None:
    controller.handle = failing(status, "what went wrong", details)
    reply = http.infer(PLAIN)
    assert reply.status == http_status
    assert reply.json == {"error": "what went wrong", "reason": reason, **details}
    assert ("retry-after" in reply.headers) == (http_status == 503)


def test_a_refusal_says_when_to_try_again_and_what_would_have_been_enough(
    http: Http, controller: FakeController
) -> None:
    details = {"reason": "deadline", "retry_after_ns": 1_200_000_000, "feasible_slo_ns": 30_000_500}
    controller.handle = failing(Status.REFUSED, "no", details)
    reply = http.infer(PLAIN)
    assert (reply.status, reply.headers["retry-after"]) == (429, "2")
    assert reply.json == {
        "error": "no", "reason": "deadline", "retry_after_us": 1_200_000, "feasible_timeout_us": 30_001,
    }  # fmt: skip
    controller.handle = failing(Status.REFUSED, "no", {"reason": "overloaded"})
    assert http.infer(PLAIN).headers["retry-after"] == "1"


def test_what_no_device_could_meet_is_nothing_to_try_again(http: Http, controller: FakeController) -> None:
    controller.handle = failing(
        Status.REFUSED, "never", {"reason": "infeasible", "feasible_slo_ns": 30_000_500}
    )
    reply = http.infer(PLAIN)
    assert (reply.status, "retry-after" in reply.headers) == (422, False)
    assert reply.json == {"error": "never", "reason": "infeasible", "feasible_timeout_us": 30_001}


WRONG: list[tuple[str, Any, bytes | None, str]] = [
    ("no JSON", b"{inputs", None, "no JSON"),
    ("nothing", b"", None, "the request has no body"),
    ("nested without end", b'{"a":' + b"[" * 200_000, None, "no JSON"),
    ("no object", b"[]", None, "object"),
    ("no inputs", {}, None, "inputs"),
    ("inputs that are no list", {"inputs": {"x": 1}}, None, "inputs"),
    ("an input without a name", {"inputs": [{"shape": [1]}]}, None, "inputs"),
    ("no datatype", {"inputs": [{"name": "x", "shape": [1], "data": [1]}]}, None, "datatype"),
    ("no shape", {"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]}, None, "shape"),
    ("no data", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}, None, "'x'"),
    ("too few elements", {"inputs": [tensor(data=[1])]}, None, "2 elements, got 1"),
    ("an element that does not fit", {"inputs": [tensor("INT8", data=[1, 300])]}, None, "300"),
    ("a timeout that is text", PLAIN | {"parameters": {"timeout": "soon"}}, None, "timeout"),
    ("a timeout that is negative", PLAIN | {"parameters": {"timeout": -1}}, None, "timeout"),
    ("a timeout that is a fraction", PLAIN | {"parameters": {"timeout": 1.5}}, None, "timeout"),
    ("a timeout beyond a year", PLAIN | {"parameters": {"timeout": 10**15}}, None, "timeout"),
    ("a priority that is text", PLAIN | {"parameters": {"priority": "high"}}, None, "priority"),
    ("a priority out of range", PLAIN | {"parameters": {"priority": 256}}, None, "priority"),
    ("parameters that are no object", PLAIN | {"parameters": 1}, None, "parameters"),
    ("an id that is a number", PLAIN | {"id": 5}, None, "id"),
    ("outputs that are no list", PLAIN | {"outputs": 5}, None, "outputs"),
    (
        "a flag that is a number",
        PLAIN | {"parameters": {"binary_data_output": 1}},
        None,
        "binary_data_output",
    ),
    ("an output that there is not", PLAIN | {"outputs": [{"name": "nope"}]}, None, "'nope'"),
    ("too few raw bytes", BINARY, RAW[:4], "4 bytes are left"),
    ("a wrong size", {"inputs": [tensor(size=4)]}, RAW[:4], "expecting 4 additional bytes"),
    ("raw bytes left over", BINARY, RAW + b"!", "1 bytes follow"),
    ("a size that is no number", {"inputs": [tensor(size="8")]}, RAW, "binary_data_size"),
    ("a negative size", {"inputs": [tensor(size=-8)]}, RAW, "binary_data_size"),
    (
        "a name that is no text",
        {"inputs": [tensor(data=[1, 2]) | {"name": "\ud800"}]},
        None,
        "no Unicode text",
    ),
    ("BF16 in JSON", {"inputs": [tensor("BF16", data=[1, 2])]}, None, "binary data"),
]


@pytest.mark.parametrize(("body", "raw", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_with_a_request_is_said(
    http: Http, controller: FakeController, body: Any, raw: bytes | None, words: str
) -> None:
    reply = http.infer(body, raw)
    assert reply.status == 400, reply.data
    assert words in reply.json["error"]
    assert http.infer(PLAIN).status == 200  # the same connection serves further requests


@pytest.mark.parametrize("length", ["-1", "x", "00", "99999", "1" * 30, ""])
def test_a_header_length_that_cannot_be(http: Http, length: str) -> None:
    reply = http.infer(PLAIN, Inference_Header_Content_Length=length)
    assert (reply.status, HEADER_LENGTH in reply.json["error"]) == (400, True)


@pytest.mark.parametrize("timeout", ["soon", "-1", "1.5", "1" * 25, str(10**15)])
def test_a_timeout_header_that_cannot_be(http: Http, timeout: str) -> None:
    reply = http.infer(PLAIN, X_Clockwork_Timeout_Us=timeout)
    assert (reply.status, "X-Clockwork-Timeout-Us" in reply.json["error"]) == (400, True)


@pytest.mark.parametrize("count", [-1, "3", 1.5, True, 1 << 40])
def test_a_count_of_classes_that_cannot_be(http: Http, count: Any) -> None:
    reply = http.infer(PLAIN | {"outputs": [{"name": "y", "parameters": {"classification": count}}]})
    assert (reply.status, "classification of output 'y'" in reply.json["error"]) == (400, True)


@pytest.mark.parametrize(
    "parameters", [{"sequence_id": 7}, {"sequence_id": "a"}, {"sequence_start": True}, {"sequence_end": True}]
)
def test_a_request_of_a_sequence_is_refused(http: Http, parameters: dict[str, Any]) -> None:
    reply = http.infer(PLAIN | {"parameters": parameters})
    assert (reply.status, reply.json["reason"]) == (501, "unsupported")
    assert next(iter(parameters)) in reply.json["error"]
    assert "sequences are not supported" in reply.json["error"]


def test_a_request_that_says_that_it_is_of_no_sequence_is_answered(http: Http) -> None:
    none = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    assert http.infer(PLAIN | {"parameters": none}).status == 200


def test_no_mutation_of_a_binary_request_does_more_than_be_refused(http: Http) -> None:
    seed = 11
    print("seed", seed)
    random_ = random.Random(seed)
    header = json.dumps(BINARY | {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b"-1",
        b"1e99",
        b"null",
        b"true",
        b"\\ud800",
        b"\xff",
        b"9" * 30,
        b"",
    ]
    statuses = set()
    for _ in range(400):
        data = bytearray(header)
        for _ in range(random_.randint(1, 3)):
            begin = random_.randrange(len(data))
            data[begin : begin + random_.randint(0, 4)] = random_.choice(pieces)
        raw = RAW[: random_.choice([0, 4, 8, 8, 8])]
        length = max(0, len(data) + random_.choice([0, 0, 0, -1, 1, 8]))
        reply = http.infer(bytes(data), raw, Inference_Header_Content_Length=str(length))
        statuses.add(reply.status)
        assert reply.status in (200, 400, 501), (bytes(data), reply.data)
    assert {200, 400} <= statuses


def test_paths_and_methods(http: Http) -> None:
    for path in ("/", "/v3", "/v2/models/m/nope", "/v2/models/m/versions", "/v2//health/live"):
        assert http.ask("GET", path).status == 404
    reply = http.ask("GET", "/v2/models/m/infer")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert http.ask("POST", "/v2").status == 405
    assert http.ask("DELETE", "/v2/models/m").status == 405
    assert http.ask("HEAD", "/v2/health/live").status == 200
    assert http.ask("GET", "/v2/health/live?x=1").json == {"live": True}
    assert http.ask("GET", "/v2").json["name"] == "clockwork"
    assert "/v2/models/{model}/infer" in http.ask("GET", "/openapi.json").json["paths"]


def test_an_answer_that_nobody_can_read_is_an_error_and_not_a_crash(
    http: Http, controller: FakeController
) -> None:
    def damaged(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        controller.send(identity, Answer(message.request_id, 1, [["y", 1, [1], 5]], [0, 0, 0, 0]), frames)

    controller.handle = damaged
    reply = http.infer(PLAIN)
    assert (reply.status, reply.json["reason"]) == (500, "internal")


def test_a_controller_that_is_not_there_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clockwork.config.client.CLIENT_CONNECT_NS", SECOND // 2)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with running_gateway(f"tcp://127.0.0.1:{held.getsockname()[1]}", grpc_port=-1) as gateway:
            http = Http(gateway.ports["http"])
            assert http.ask("GET", "/v2/health/live").status == 200
            reply = http.infer(PLAIN)
            assert (reply.status, reply.json["reason"]) == (503, "controller_unreachable")
            http.close()


# ----- clients that go, are slow, or ask for too much --------------------------------------------


def raw_socket(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.ports["http"]), timeout=PATIENCE_S)


def test_a_client_that_goes_cancels_its_request(gateway: Gateway, controller: FakeController) -> None:
    controller.handle = silent
    before, cancelled = len(controller.of(InferRequest)), len(controller.of(Cancel))
    body = json.dumps(PLAIN).encode()
    with raw_socket(gateway) as sock:
        sock.sendall(
            f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        request = controller.wait_for(InferRequest, before + 1)[-1]
    assert controller.wait_for(Cancel, cancelled + 1)[-1].request_id == request.request_id
    controller.handle = echo


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def test_a_client_that_is_slow_with_its_headers_is_shut_out_however_it_drips(hasty: Gateway) -> None:
    with raw_socket(hasty) as sock:
        pause = threading.Event()
        ended = False
        for byte in b"POST /v2/models/m/infer HTTP/1.1\r\nX: " + b"y" * 400:
            try:
                sock.sendall(bytes([byte]))
                pause.wait(0.05)
            except OSError:
                ended = True
                break
        assert ended


def test_a_client_that_is_slow_with_its_body_is_answered_and_shut_out(hasty: Gateway) -> None:
    with raw_socket(hasty) as sock:
        sock.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        data = read_all(sock)
    assert data.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in data


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_read_within_the_bounds_or_refused(
    gateway: Gateway, controller: FakeController, caplog: pytest.LogCaptureFixture, encoding: str
) -> None:
    def ask(body: bytes) -> Reply:
        http = Http(gateway.ports["http"])
        reply = http.ask("POST", "/v2/models/m/infer", body, {"Content-Encoding": encoding})
        http.close()
        return reply

    controller.handle = echo
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding)
    if packed is not None:
        assert ask(packed(json.dumps(PLAIN).encode())).status == 200
        assert ask(packed(bytes(64 << 20))).status == 413  # 64 KB that decompress to 64 MiB
    reply = ask(b"garbage" * 100)
    assert reply.status == (501 if packed is None else 400)
    assert encoding in reply.json["error"]
    assert "Traceback" not in caplog.text


def test_a_request_that_is_too_large_is_refused_before_it_comes(gateway: Gateway, http: Http) -> None:
    with raw_socket(gateway) as sock:
        sock.sendall(
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n{"
        )
        assert read_all(sock).startswith(b"HTTP/1.1 413")
    with raw_socket(gateway) as sock:  # a body of unknown length is refused as soon as it is too long
        sock.sendall(
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        data = b""
        try:
            for _ in range(40):
                sock.sendall(chunk)
            data = read_all(sock)
        except OSError:
            data = data or b"HTTP/1.1 413"  # an answer that was reset before it was read
    assert data.startswith(b"HTTP/1.1 413")
    assert http.ask("GET", "/v2/health/live").status == 200


def test_a_chunked_request_is_as_good_as_any(gateway: Gateway, controller: FakeController) -> None:
    body = json.dumps(PLAIN).encode()
    with raw_socket(gateway) as sock:
        sock.sendall(
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for piece in (body[:10], body[10:]):
            sock.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_a_client_that_asks_before_it_sends_its_body_is_told_to(
    gateway: Gateway, controller: FakeController
) -> None:
    body = json.dumps(PLAIN).encode()
    with raw_socket(gateway) as sock:
        sock.sendall(
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
        )
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_what_is_too_much_for_one_message_is_refused_and_not_lost(controller: FakeController) -> None:
    one = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    with running_gateway(controller.endpoint, grpc_port=-1) as gateway:
        http = Http(gateway.ports["http"])
        reply = http.infer({"inputs": [one] * 1_025})
        assert (reply.status, reply.json["expected"]) == (400, "at most 1024 inputs")
        reply = http.infer({"inputs": [one | {"name": "x" * (128 << 10)}]})
        assert (reply.status, reply.json["expected"]) == (400, f"at most {128 << 10} bytes")
        http.close()


def test_a_client_that_does_not_take_its_answer_is_shut_out(controller: FakeController) -> None:
    size = 24 << 20  # more than the kernel keeps for a socket
    body = json.dumps(PLAIN | {"parameters": {"binary_data_output": True}}).encode()
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"

    def answer_much(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is InferRequest:
            controller.handle = echo
            tensors = [["y", 2, [size], 0]]
            controller.send(identity, Answer(message.request_id, 1, tensors, [0, 0, 0, 0]), [bytes(size)])

    controller.handle = answer_much
    with (
        running_gateway(controller.endpoint, grpc_port=-1, body_s=1.0, requests_max=1) as gateway,
        raw_socket(gateway) as sock,
    ):
        before = len(controller.of(InferRequest))
        sock.sendall(head.encode() + body)
        controller.wait_for(InferRequest, before + 1)
        http = Http(gateway.ports["http"])
        pause = threading.Event()
        deadline_ns = now_ns() + PATIENCE_NS
        while (status := http.infer(PLAIN).status) != 200:
            assert status == 429
            assert now_ns() < deadline_ns
            pause.wait(0.05)
        http.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  \r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * 20_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_and_closed(gateway: Gateway, request_bytes: bytes) -> None:
    with raw_socket(gateway) as sock:
        sock.sendall(request_bytes)
        data = read_all(sock)
    assert data.startswith(b"HTTP/1.0 400") or data.startswith(b"HTTP/1.1 400")
    assert b'"error"' in data


def test_the_number_of_requests_and_their_bytes_are_bounded(controller: FakeController) -> None:
    controller.handle = silent
    with running_gateway(
        controller.endpoint, grpc_port=-1, requests_max=3, requests_bytes_max=2_000, drain_s=0.2
    ) as gateway:
        before = len(controller.of(InferRequest))
        waiting = [raw_socket(gateway) for _ in range(2)]
        body = json.dumps(PLAIN).encode()
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for one in waiting:
            one.sendall(head + body)
        controller.wait_for(InferRequest, before + 2)
        http = Http(gateway.ports["http"])
        reply = http.infer({"inputs": [tensor(shape=(500,), size=2000)]}, bytes(2000))
        assert (reply.status, reply.json["reason"], "bytes" in reply.json["error"]) == (
            429,
            "overloaded",
            True,
        )
        waiting.append(raw_socket(gateway))
        waiting[-1].sendall(head + body)
        controller.wait_for(InferRequest, before + 3)
        reply = http.infer(PLAIN)
        assert (reply.status, reply.json["reason"], reply.headers["retry-after"]) == (429, "overloaded", "1")
        waiting.pop().close()
        controller.wait_for(Cancel, 1)
        controller.handle = echo
        pause = threading.Event()
        while http.infer(PLAIN).status != 200:
            pause.wait(0.01)
        http.close()
        for one in waiting:
            one.close()


def test_connections_are_bounded_and_the_one_idle_longest_makes_room(controller: FakeController) -> None:
    with running_gateway(controller.endpoint, grpc_port=-1, connections_max=3, idle_s=30.0) as gateway:
        idle = [Http(gateway.ports["http"]) for _ in range(3)]
        for one in idle:
            assert one.infer(PLAIN).status == 200
        fourth = Http(gateway.ports["http"])
        assert fourth.infer(PLAIN).status == 200
        assert idle[0].connection.sock.recv(1) == b""
        assert idle[1].infer(PLAIN).status == 200
        for one in (*idle, fourth):
            one.close()


def test_a_connection_without_requests_is_closed(controller: FakeController) -> None:
    with (
        running_gateway(controller.endpoint, grpc_port=-1, idle_s=0.3) as gateway,
        raw_socket(gateway) as sock,
    ):
        assert read_all(sock) == b""


def test_the_end_waits_for_what_is_under_way_and_takes_nothing_new(controller: FakeController) -> None:
    held: list[tuple[bytes, Any, list[Any]]] = []
    controller.handle = lambda _, identity, message, frames: held.append((identity, message, frames))
    replies: list[int] = []
    with running_gateway(controller.endpoint, grpc_port=-1, drain_s=PATIENCE_S) as gateway:
        http = Http(gateway.ports["http"])
        before = len(controller.of(InferRequest))
        thread = threading.Thread(target=lambda: replies.append(http.infer(PLAIN).status))
        thread.start()
        controller.wait_for(InferRequest, before + 1)
        answer = threading.Timer(0.3, lambda: controller.do(lambda: echo(controller, *held[0])))
        answer.start()
    thread.join()
    answer.join()
    assert replies == [200]
    with pytest.raises(OSError, match="refused"):
        raw_socket(gateway)
    controller.handle = echo


def test_a_request_of_which_a_part_has_come_at_the_end_is_answered_too(controller: FakeController) -> None:
    """Headers, and half of a body: what is missing comes after the signal."""
    body = json.dumps(PLAIN).encode()
    head = (
        f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    whole = head + body
    with contextlib.ExitStack() as stack:
        with running_gateway(controller.endpoint, grpc_port=-1, drain_s=PATIENCE_S) as gateway:
            idle, *begun = (stack.enter_context(raw_socket(gateway)) for _ in range(3))
            sent = (len(head) // 2, len(head) + len(body) // 2)
            for sock, count in zip(begun, sent):
                sock.sendall(whole[:count])
            assert Http(gateway.ports["http"]).infer(PLAIN).status == 200, "the parts have come before this"

            def go_on() -> None:
                assert read_all(idle) == b"", "the end of idle connections says that the gateway is ending"
                for sock, count in zip(begun, sent):
                    sock.sendall(whole[count:])

            rest = threading.Thread(target=go_on)
            rest.start()
        rest.join()
        for sock in begun:
            answer = read_all(sock)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b"connection: close" in answer.lower()


def test_with_notice_the_gateway_serves_and_says_that_it_leaves(controller: FakeController) -> None:
    signals = Signals()
    with running_gateway(controller.endpoint, signals, grpc_port=-1, notice_s=PATIENCE_S) as gateway:
        port = gateway.ports["http"]
        http = Http(port)
        assert http.infer(PLAIN).status == 200
        signals.send()
        eventually(lambda: Http(port).ask("GET", "/v2/health/ready").status == 503, "not ready")
        reply = http.infer(PLAIN)
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert http.connection.sock is None, "the client opens another connection for its next request"
        assert Http(port).infer(PLAIN).status == 200
        signals.send()
        eventually(lambda: refuses(port), "refuses connections")


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def test_queries_are_the_controllers_to_answer(http: Http, controller: FakeController) -> None:
    controller.handle = failing(Status.MODEL_NOT_FOUND, "no model 'm' is registered")
    for path in (
        "/v2/models/m",
        "/v2/models/m/config",
        "/v2/models/m/ready",
        "/v2/models/m/stats",
        "/v2/models/m/versions/2",
    ):
        assert http.ask("GET", path).status == 404
    assert controller.of(Query)[-1].argument == "m@2"
    for action in ("load", "unload"):
        assert http.ask("POST", f"/v2/repository/models/m/{action}").status == 404
    assert http.ask("POST", "/v2/repository/index", b"{").status == 400
    assert http.ask("POST", "/v2/repository/index", {"ready": 1}).status == 400
    assert http.ask("GET", "/v2/health/ready").status == 503
