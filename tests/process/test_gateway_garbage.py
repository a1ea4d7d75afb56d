"""Garbage of requests in a gateway: none that needs a full run of Python's collector.

A full collection visits every object while the loop stands still, and waiting calls are objects by the
hundred thousand.
"""

from __future__ import annotations

import contextlib
import gc
import socket
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
from tests.process.fake_controller import FakeController
from tests.process.gateways import Http, method_of, running_gateway, tensor

TIMES = 100
HEADERS = 100
CALLS = 50


@pytest.fixture
def gateway(controller: FakeController) -> Iterator[Gateway]:
    with running_gateway(controller.endpoint) as gateway:
        yield gateway


def cycles_of(ask: Callable[[], object]) -> Counter[str]:
    """Return Clockwork's objects, and frames, that only the collector frees, by type."""
    for _ in range(3):
        ask()  # imports and caches of the first call are no garbage
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(TIMES):
            ask()
        gc.collect()
        kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
        return Counter({
            kind: count for kind, count in kinds.items() if kind.startswith(("clockwork.", "zmq."))
        })  # fmt: skip
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("data", [[1.0, 2.0], [1.0]], ids=["answered", "refused"])
def test_requests_over_http_leave_no_cycles(gateway: Gateway, data: list[float]) -> None:
    with contextlib.closing(Http(gateway.ports["http"])) as http:
        assert not cycles_of(lambda: http.infer({"inputs": [tensor(data=data)]}))


@pytest.mark.parametrize("size", [8, 4], ids=["answered", "refused"])
def test_calls_over_grpc_leave_no_cycles(gateway: Gateway, size: int) -> None:
    request: Any = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(size)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        call = method_of(channel, "ModelInfer")
        found = cycles_of(lambda: call.future(request).exception())
        # gRPC leaves a call of its own in a cycle now and then, and with it the room of an answer that was
        # sent.
        assert max(found.values(), default=0) < TIMES // 10, found


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
