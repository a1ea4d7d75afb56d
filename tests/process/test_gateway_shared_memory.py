"""Shared memory through the gateway's servers, before a controller of a few lines that answers with its
inputs."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from clockwork.gateway import callers, security
from clockwork.gateway.callers import Endpoint
from clockwork.gateway.process import Gateway
from clockwork.gateway.settings import GatewaySettings
from clockwork.protocol import inference_pb2 as pb
from tests.patience import PATIENCE_S
from tests.process.fake_controller import FakeController
from tests.process.gateways import Http, method_of, running_gateway

VALUES = np.array([[1.5, -2.0]], np.float32)
SIZE = VALUES.nbytes
STATUS = "/v2/systemsharedmemory/status"
SOMEBODY = 12345
"""A user id other than root's."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with (
        FakeController() as controller,
        running_gateway(controller.endpoint, request_bytes_max=1 << 20) as gateway,
    ):
        yield gateway


@pytest.fixture
def http(gateway: Gateway) -> Iterator[Http]:
    http = Http(gateway.ports["http"])
    yield http
    assert http.ask("POST", "/v2/systemsharedmemory/unregister").json == {}
    http.close()


@pytest.fixture
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        yield channel


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """The input, and behind it room for an output."""
    memory = SharedMemory(f"clockwork-test-{secrets.token_hex(8)}", create=True, size=2 * SIZE)
    memory.buf[:SIZE] = VALUES.tobytes()
    yield memory
    memory.close()
    with contextlib.suppress(FileNotFoundError):
        memory.unlink()


def register(http: Http, memory: SharedMemory, name: str = "r", **more: Any) -> Any:
    body = {"key": memory.name, "offset": 0, "byte_size": 2 * SIZE} | more
    return http.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)


def lying_in(region: str, offset: int = 0, size: int = SIZE) -> dict[str, Any]:
    return {"parameters": {
        "shared_memory_region": region, "shared_memory_offset": offset, "shared_memory_byte_size": size
    }}  # fmt: skip


def body_of(region: str = "r", size: int = SIZE, out_size: int = SIZE) -> dict[str, Any]:
    return {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]} | lying_in(region, 0, size)],
        "outputs": [{"name": "y"} | lying_in(region, SIZE, out_size)],
    }


def test_http_reads_inputs_and_writes_outputs_in_shared_memory(http: Http, memory: SharedMemory) -> None:
    assert "system_shared_memory" in http.ask("GET", "/v2").json["extensions"]
    assert register(http, memory).json == {}
    described = [{"name": "r", "key": memory.name, "offset": 0, "byte_size": 2 * SIZE}]
    assert (
        http.ask("GET", STATUS).json
        == http.ask("GET", "/v2/systemsharedmemory/region/r/status").json
        == described
    )
    reply = http.infer(body_of())
    assert reply.status == 200, reply.data
    assert reply.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 2]}]
    assert bytes(memory.buf) == VALUES.tobytes() * 2
    assert http.ask("POST", "/v2/systemsharedmemory/region/r/unregister").json == {}
    assert http.ask("GET", STATUS).json == []
    reply = http.infer(body_of())
    assert (reply.status, "Unable to find shared memory region" in reply.json["error"]) == (400, True)


def test_one_tensor_in_memory_and_another_in_the_request(http: Http, memory: SharedMemory) -> None:
    register(http, memory)
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 2]} | lying_in("r"),
        {"name": "b", "datatype": "UINT8", "shape": [1, 3], "parameters": {"binary_data_size": 3}},
        {"name": "c", "datatype": "UINT8", "shape": [1, 1], "data": [7]},
    ]
    reply = http.infer({"inputs": inputs, "parameters": {"binary_data_output": True}}, b"abc")
    assert reply.outputs == {"y": VALUES.tobytes(), "y1": b"abc", "y2": b"\7"}
    both = [inputs[0] | {"data": [1, 2]}]
    assert "in the request as well" in http.infer({"inputs": both}).json["error"]


@pytest.mark.parametrize(("body", "words"), [
    (body_of(size=4), "takes 8 bytes, got 4"),
    (body_of(size=SIZE * 3), "Invalid offset + byte size"),
    (body_of(out_size=4), "should be at least 8 bytes to hold the results"),
    (body_of(region="other"), "Unable to find shared memory region: 'other'"),
], ids=["input too small", "beyond the region", "output too small", "unknown"])  # fmt: skip
def test_what_does_not_fit_is_said(http: Http, memory: SharedMemory, body: Any, words: str) -> None:
    register(http, memory)
    reply = http.infer(body)
    assert (reply.status, reply.json["reason"]) == (400, "invalid_input")
    assert words in reply.json["error"]
    assert http.infer(body_of()).status == 200


def test_memory_that_is_gone_or_short_ends_no_gateway(http: Http, memory: SharedMemory) -> None:
    register(http, memory)
    os.truncate(f"/dev/shm/{memory.name}", 0)
    assert "has become shorter" in http.infer(body_of()).json["error"]
    memory.unlink()
    assert "there is no" in http.infer(body_of()).json["error"]
    assert "there is no" in register(http, memory, "again").json["error"]


def test_a_copy_that_stands_still_holds_nobody_else(
    http: Http, gateway: Gateway, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has a write wait while its file's owner fills the file with pages, which may be
    gigabytes."""
    register(http, memory)
    begun, gate, real = threading.Event(), threading.Event(), os.pwrite

    def held(descriptor: int, data: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(memory.name):
            begun.set()
            assert gate.wait(PATIENCE_S)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", held)
    answers = []
    other = Http(gateway.ports["http"])
    asking = threading.Thread(target=lambda: answers.append(other.infer(body_of())))
    asking.start()
    try:
        assert begun.wait(PATIENCE_S)
        sent = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]}
        assert http.infer(sent).status == 200
        assert not answers
    finally:
        gate.set()
        asking.join()
        other.close()
    assert answers[0].status == 200
    assert bytes(memory.buf) == VALUES.tobytes() * 2


def test_a_key_never_leaves_the_folder_of_shared_memory(http: Http, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    for key in (str(tmp_path / "secret"), f"..{tmp_path}/secret", "/../etc/passwd", ".."):
        reply = http.ask(
            "POST", "/v2/systemsharedmemory/region/r/register", {"key": key, "offset": 0, "byte_size": 1}
        )
        assert (reply.status, "shm_open" in reply.json["error"]) == (400, True), reply.data


def test_one_request_reads_no_more_than_a_request_may(http: Http, memory: SharedMemory) -> None:
    """A few bytes of JSON could otherwise have the gateway read the same memory over and over."""
    large = SharedMemory(create=True, size=1 << 19)
    try:
        register(http, large, byte_size=1 << 19)
        inputs = [
            {"name": f"x{number}", "datatype": "UINT8", "shape": [1 << 19]} | lying_in("r", 0, 1 << 19)
            for number in range(3)
        ]
        assert (
            http.infer(
                {"inputs": inputs[:1]} | {"outputs": [{"name": "y"} | lying_in("r", 0, 1 << 19)]}
            ).status
            == 200
        )
        assert http.infer({"inputs": inputs}).status == 413
    finally:
        large.close()
        large.unlink()


def test_cuda_memory_has_no_regions(http: Http) -> None:
    """Clients and load tools unregister all regions before they use system memory."""
    assert http.ask("GET", "/v2/cudasharedmemory/status").json == []
    assert http.ask("POST", "/v2/cudasharedmemory/unregister").json == {}
    assert http.ask("POST", "/v2/cudasharedmemory/region/r/unregister").json == {}
    assert http.ask("GET", "/v2/cudasharedmemory/region/r/status").status == 404
    reply = http.ask(
        "POST", "/v2/cudasharedmemory/region/r/register", {"raw_handle": {"b64": ""}, "byte_size": 1}
    )
    assert (reply.status, reply.json["reason"]) == (501, "unsupported")


# ----- gRPC ----------------------------------------------------------------------------------------


def request_of(region: str = "r") -> Any:
    request = pb.ModelInferRequest(model_name="m")
    one = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    other = request.outputs.add(name="y")
    for tensor, offset in ((one, 0), (other, SIZE)):
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = SIZE
        tensor.parameters["shared_memory_offset"].int64_param = offset
    return request


def test_grpc_reads_inputs_and_writes_outputs_in_shared_memory(
    http: Http, channel: grpc.Channel, memory: SharedMemory
) -> None:
    def call(method: str, request: Any) -> Any:
        return method_of(channel, method)(request, timeout=PATIENCE_S)

    call(
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name="r", key=f"/{memory.name}", byte_size=2 * SIZE),
    )
    found = call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()).regions
    assert (found["r"].key, found["r"].offset, found["r"].byte_size) == (f"/{memory.name}", 0, 2 * SIZE)
    assert http.ask("GET", STATUS).json[0]["name"] == "r", "a region is its user's, however the user asks"
    request = request_of()
    request.inputs.add(name="b", datatype="UINT8", shape=[1, 3])
    request.raw_input_contents.append(b"abc")
    del request.outputs[:]
    answer = call("ModelInfer", request)
    assert list(answer.raw_output_contents) == [VALUES.tobytes(), b"abc"]
    answer = call("ModelInfer", request_of())
    assert list(answer.raw_output_contents) == [b""], "clients count the contents by outputs"
    assert bytes(memory.buf) == VALUES.tobytes() * 2
    call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="r"))
    for method, wrong, code in (
        ("ModelInfer", request_of(), grpc.StatusCode.INVALID_ARGUMENT),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="r"), grpc.StatusCode.NOT_FOUND),
        ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="r"), grpc.StatusCode.NOT_FOUND),
        (
            "CudaSharedMemoryRegister",
            pb.CudaSharedMemoryRegisterRequest(name="r"),
            grpc.StatusCode.UNIMPLEMENTED,
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(method, wrong)
        assert caught.value.code() == code
    assert not call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()).regions
    call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())


def test_inputs_in_the_request_are_counted_without_those_in_memory(channel: grpc.Channel) -> None:
    request = request_of()
    request.raw_input_contents.append(VALUES.tobytes())
    with pytest.raises(grpc.RpcError, match="1 tensors for 0 inputs"):
        method_of(channel, "ModelInfer")(request, timeout=PATIENCE_S)


# ----- whose memory --------------------------------------------------------------------------------


@contextlib.contextmanager
def as_user(user: int) -> Iterator[None]:
    """Sockets made meanwhile are that user's."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's socket")
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def test_nobody_names_anothers_memory_nor_anothers_region(
    gateway: Gateway, http: Http, memory: SharedMemory
) -> None:
    register(http, memory)
    with as_user(SOMEBODY):
        other = Http(gateway.ports["http"])
        other.connection.connect()
    with contextlib.closing(other):
        assert other.ask("GET", STATUS).json == []
        assert other.ask("GET", "/v2/systemsharedmemory/region/r/status").status == 404
        assert "Unable to find" in other.infer(body_of()).json["error"]
        reply = register(other, memory)
        assert (reply.status, f"no shared memory of user {SOMEBODY}" in reply.json["error"]) == (400, True)
        other.ask("POST", "/v2/systemsharedmemory/unregister")
        assert [region["name"] for region in http.ask("GET", STATUS).json] == ["r"]
        theirs = Path(f"/dev/shm/{memory.name}-theirs")
        theirs.write_bytes(bytes(2 * SIZE))
        try:
            os.chown(theirs, SOMEBODY, -1)
            body = {"key": theirs.name, "byte_size": 2 * SIZE}
            assert other.ask("POST", "/v2/systemsharedmemory/region/r/register", body).json == {}
            assert other.infer(body_of()).status == 200
            assert theirs.read_bytes() == bytes(2 * SIZE)
            assert http.ask("POST", "/v2/systemsharedmemory/region/s/register", body).status == 400
            assert "Unable to find" in http.infer(body_of("s")).json["error"]
        finally:
            theirs.unlink()
        other.ask("POST", "/v2/systemsharedmemory/unregister")
    assert http.infer(body_of()).status == 200
    assert bytes(memory.buf) == VALUES.tobytes() * 2


def test_a_grpc_callers_user_is_known(gateway: Gateway, memory: SharedMemory) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        with as_user(SOMEBODY):
            grpc.channel_ready_future(channel).result(PATIENCE_S)
        request = pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.name, byte_size=SIZE)
        with pytest.raises(grpc.RpcError, match=f"no shared memory of user {SOMEBODY}"):
            method_of(channel, "SystemSharedMemoryRegister")(request, timeout=PATIENCE_S)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_gateway_on_every_address_knows_who_is_on_its_machine(host: str, memory: SharedMemory) -> None:
    """Including an IPv4 connection to an IPv6 socket; gRPC does not say to which address a call came."""
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6")
    with (
        FakeController() as controller,
        running_gateway(controller.endpoint, host=host, insecure=True, shared_memory=True) as gateway,
        contextlib.closing(Http(gateway.ports["http"])) as http,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        assert register(http, memory).status == 200
        found = method_of(channel, "SystemSharedMemoryStatus")(
            pb.SystemSharedMemoryStatusRequest(), timeout=PATIENCE_S
        )
        assert list(found.regions) == ["r"]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_user_of_a_connection_is_told_while_it_is_open(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        listening = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"{host} is not there")
    with listening, socket.create_connection(listening.getsockname()[:2]) as client:
        accepted, _ = listening.accept()
        with accepted:
            ends = Endpoint(*client.getsockname()[:2]), Endpoint(*client.getpeername()[:2])
            assert callers.user_of(*ends) == os.getuid()
            client.close()  # the kernel would report user 0 for a closed connection
            assert callers.user_of(*ends) is None


def test_a_request_that_came_through_a_proxy_has_no_memory(http: Http, memory: SharedMemory) -> None:
    register(http, memory)
    reply = http.infer(body_of(), X_Forwarded_For="203.0.113.7")
    assert (reply.status, reply.json["reason"]) == (403, "forbidden")
    assert http.ask("GET", STATUS, headers={"Origin": "http://example.com"}).status == 403
    assert http.ask("GET", STATUS).status == 200


def test_it_is_on_where_the_gateway_is_on_loopback_unless_told_otherwise() -> None:
    for host, flag, on in (
        ("127.0.0.1", None, True), ("::1", None, True), ("localhost", None, True), ("0.0.0.0", None, False),
        ("10.0.0.1", None, False), ("0.0.0.0", True, True), ("127.0.0.1", False, False),
    ):  # fmt: skip
        assert security.shares_memory(GatewaySettings(host=host, shared_memory=flag)) is on


def test_where_it_is_off_it_is_not_offered() -> None:
    with (
        FakeController() as controller,
        running_gateway(controller.endpoint, grpc_port=-1, shared_memory=False) as gateway,
    ):
        http = Http(gateway.ports["http"])
        assert "system_shared_memory" not in http.ask("GET", "/v2").json["extensions"]
        for reply in (http.ask("GET", STATUS), http.infer(body_of())):
            assert (reply.status, reply.json["reason"]) == (501, "unsupported")
            assert "--shared-memory" in reply.json["error"]
        http.close()


def test_what_a_dead_caller_left_is_swept_up(monkeypatch: pytest.MonkeyPatch, memory: SharedMemory) -> None:
    from clockwork.gateway import process
    from clockwork.gateway.regions import Regions

    swept, sweep = threading.Event(), Regions.sweep

    def sweeping(regions: Regions) -> None:
        sweep(regions)
        swept.set()

    monkeypatch.setattr(process.bounds, "REGIONS_SWEEP_S", 0.02)
    monkeypatch.setattr(Regions, "sweep", sweeping)
    with FakeController() as controller, running_gateway(controller.endpoint, grpc_port=-1) as gateway:
        http = Http(gateway.ports["http"])
        register(http, memory)
        memory.unlink()
        for _ in range(2):  # the first may have begun before
            swept.clear()
            assert swept.wait(PATIENCE_S)
        assert http.ask("GET", STATUS).json == []
        http.close()
