"""Garbage of requests in a gateway: none that needs a full run of Python's collector.

A full collection visits every object while the loop stands still, and waiting calls are objects by the
hundred thousand.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import zmq

from bench import http2
from clockwork.gateway.process import Gateway
from clockwork.protocol import inference_pb2 as pb
from clockwork.wire.messages import InferRequest
from tests.patience import PATIENCE_S, eventually
from tests.process.fake_controller import FakeController
from tests.process.gateways import SERVICE, Http, method_of, running_gateway, tensor

TIMES = 200
KINDS = (
    "clockwork.gateway.", "grpc._cython.cygrpc.RPCState", "grpc._cython.cygrpc._ServicerContext", "inference_pb2.",
    "zmq.",
)  # fmt: skip
"""Beginnings of the names of types of which requests have objects. gRPC has a cycle of its own in each call,
the search for its handler."""

OF_PROCESS = ("clockwork.gateway.connections._Descriptor",)
"""There is one of these for each descriptor of the process, and not for a request."""

HEADERS = 100
CALLS = 50


@pytest.fixture
def gateway(controller: FakeController) -> Iterator[Gateway]:
    with running_gateway(controller.endpoint) as gateway:
        yield gateway


def assert_nothing_kept_by(ask: Callable[[], object]) -> None:
    """Assert that requests free their objects without the collector.

    Objects are counted, and not the collector's finds: a collection wakes generators that were left in the
    middle, and what they refer to is no garbage then.
    """
    for _ in range(3):
        ask()  # imports and caches of the first call
    gc.collect()
    gc.disable()
    try:
        before = objects()
        for _ in range(TIMES):
            ask()
        kept: Counter[str] = Counter()

        def is_little() -> bool:  # the last call's objects live until its task has ended
            nonlocal kept
            kept = objects() - before
            return max(kept.values(), default=0) < TIMES // 2

        eventually(is_little, "the objects of calls that ended are freed")
    except AssertionError:
        raise AssertionError(f"{TIMES} calls keep {kept}") from None
    finally:
        gc.enable()


def objects() -> Counter[str]:
    """Return how many objects of KINDS there are, by type."""
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return Counter(
        {kind: count for kind, count in kinds.items() if kind.startswith(KINDS) and kind not in OF_PROCESS}
    )


@pytest.mark.parametrize("data", [[1.0, 2.0], [1.0]], ids=["answered", "refused"])
def test_requests_over_http_leave_no_cycles(gateway: Gateway, data: list[float]) -> None:
    with contextlib.closing(Http(gateway.ports["http"])) as http:
        assert_nothing_kept_by(lambda: http.infer({"inputs": [tensor(data=data)]}))


def request_of(size: int) -> Any:
    request: Any = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(size)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    return request


@pytest.mark.parametrize("size", [8, 4], ids=["answered", "refused"])
def test_calls_over_grpc_leave_no_cycles(gateway: Gateway, size: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        call = method_of(channel, "ModelInfer")
        assert_nothing_kept_by(lambda: call.future(request_of(size)).exception())


def stream_of(channel: grpc.Channel) -> Any:
    return channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )


@pytest.mark.parametrize("ends", ["false", "true"], ids=["told", "ended"])
@pytest.mark.parametrize("size", [8, 4], ids=["answered", "refused"])
def test_streams_over_grpc_leave_no_cycles(gateway: Gateway, size: int, ends: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        stream = stream_of(channel)

        def ask() -> None:
            with contextlib.suppress(grpc.RpcError):
                list(stream(iter([request_of(size)] * 2), metadata=[("triton_grpc_error", ends)]))

        assert_nothing_kept_by(ask)


def test_calls_over_grpc_that_are_cancelled_leave_no_cycles(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, controller: FakeController
) -> None:
    come = threading.Semaphore(0)
    monkeypatch.setattr(controller, "handle", lambda *_: come.release())
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        call, stream = method_of(channel, "ModelInfer"), stream_of(channel)

        def ask() -> None:
            starts: list[Callable[[], Any]] = [
                lambda: call.future(request_of(8)),
                lambda: stream(iter([request_of(8)])),
            ]
            for start in starts:
                one = start()  # one after the other: each has come before it is cancelled
                assert come.acquire(timeout=PATIENCE_S)
                one.cancel()

        assert_nothing_kept_by(ask)


def test_an_answer_is_freed_once_it_was_sent(gateway: Gateway, controller: FakeController) -> None:
    """A client remembers a call until its deadline, but not its answer."""
    with contextlib.closing(Http(gateway.ports["http"])) as http:
        gc.collect()
        before = frames()
        for _ in range(TIMES):
            http.infer({"inputs": [tensor(data=[1.0, 2.0])]})
        controller.wait_for(InferRequest, TIMES)
        assert http.ask("GET", "/v2").status == 200  # the answer shows that the last call has ended
        assert frames() - before <= 2, "the fake controller's own of the last request"


def frames() -> int:
    return sum(type(one) is zmq.Frame for one in gc.get_objects())


def test_calls_that_wait_keep_no_headers(gateway: Gateway) -> None:
    more = b"".join(http2.field(f"a{number}", "") for number in range(HEADERS))
    begun = b"".join(
        http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * number + 1, http2.call() + more)
        for number in range(CALLS)
    )
    with (
        socket.create_connection(("127.0.0.1", gateway.ports["grpc"])) as connection,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        connection.sendall(http2.hello() + begun)
        live = method_of(channel, "ServerLive")
        while waiting() < CALLS:
            live(pb.ServerLiveRequest())
        gc.collect()
        kept = Counter(type(one).__name__ for one in gc.get_objects())["_Metadatum"]
        assert kept < HEADERS, "one call's at most"


def waiting() -> int:
    return sum(type(one).__name__ == "_Call" for one in gc.get_objects())
