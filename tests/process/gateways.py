"""A gateway for tests, on a thread of its own, and an HTTP client that sends exactly the given bytes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the gateway's libraries are not installed ([gateway])")
pytest.importorskip("grpc", reason="the gateway's libraries are not installed ([gateway])")

import grpc

from clockwork.gateway.process import Gateway, loop_factory
from clockwork.gateway.settings import OFF, GatewaySettings
from clockwork.protocol import inference_pb2 as pb
from tests.patience import PATIENCE_S

HEADER_LENGTH = "Inference-Header-Content-Length"
TOKEN = "correct-horse"
SERVICE = "/inference.GRPCInferenceService/"


class Signals:
    """Sends a gateway on a thread what SIGTERM is to a process: the first has it leave, the second hurry."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Event] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    def send(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.asked.pop(0).set)


@contextlib.contextmanager
def running_gateway(endpoint: str, signals: Signals | None = None, **settings: Any) -> Iterator[Gateway]:
    """A gateway before the controller at that endpoint; its ``ports`` say where. It is stopped at the end,
    or by ``signals``.

    Fails if the gateway does not end well.
    """
    settings = {"http_port": 0, "grpc_port": 0, "metrics_port": OFF, "drain_s": 5.0} | settings
    gateway = Gateway(GatewaySettings(endpoint=endpoint, **settings))
    started = threading.Event()
    failures: list[BaseException] = []
    handles: list[Any] = []

    async def serve() -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()
        handles.extend((asyncio.get_running_loop(), stop, hurry))
        if signals is not None:
            signals.loop, signals.asked = asyncio.get_running_loop(), [stop, hurry]
        await gateway.serve(stop, started.set, hurry)

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(serve())
        except BaseException as failure:
            failures.append(failure)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    assert started.wait(PATIENCE_S)
    try:
        if failures:
            raise failures[0]
        yield gateway
    finally:
        if not failures and thread.is_alive():
            loop, *events = handles
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile, and its loop with it
                for event in events:
                    loop.call_soon_threadsafe(event.set)
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the gateway did not end"
    assert not failures, failures


class Reply:
    """An HTTP response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.data = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def outputs(self) -> dict[str, Any]:
        """Return the outputs of an inference: raw bytes or JSON's elements, by output."""
        length = int(self.headers.get(HEADER_LENGTH.lower(), len(self.data)))
        found: dict[str, Any] = {}
        for one in json.loads(self.data[:length])["outputs"]:
            size = one.get("parameters", {}).get("binary_data_size")
            if size is None:
                found[one["name"]] = one["data"]
            else:
                found[one["name"]] = self.data[length : length + size]
                length += size
        assert length == len(self.data)
        return found


class Http:
    """A single kept-alive connection. Not for several threads."""

    def __init__(self, port: int, **more: Any) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S, **more)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """body: bytes as they are, None for none, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request(method, path, data, {"User-Agent": "tests"} | (headers or {}))
        return Reply(self.connection.getresponse())

    def infer(self, body: Any, raw: bytes | None = None, model: str = "m", **headers: str) -> Reply:
        """POST an inference; raw: the bytes behind the JSON."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if raw is not None:
            more = {HEADER_LENGTH: str(len(data)), "Content-Type": "application/octet-stream"} | more
            data += raw
        return self.ask("POST", f"/v2/models/{model}/infer", data, more)

    def close(self) -> None:
        self.connection.close()


class Https(Http):
    def __init__(self, port: int, cert: Path) -> None:
        context = ssl.create_default_context(cafile=str(cert))
        self.connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=context)


def new_pair(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost, and its key, in a folder."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def method_of(channel: grpc.Channel, method: str) -> Any:
    """Return a unary call of the protocol, with our own messages."""
    return channel.unary_unary(
        SERVICE + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(pb, f"{method}Response").FromString,
    )


def tensor(
    datatype: str = "FP32", shape: Any = (1, 2), data: Any = None, size: Any = None, name: str = "x"
) -> dict[str, Any]:
    """An input with its elements, or with the number of its raw bytes."""
    one: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    return one | ({"data": data} if size is None else {"parameters": {"binary_data_size": size}})


BODY = {"inputs": [tensor(data=[1.0, 2.0])]}
"""An inference, as JSON."""


def infer_on(channel: grpc.Channel, token: str = "") -> str:
    """Return the status of an inference."""
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(8)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        # Between two sweeps of its connections a gateway may refuse a new one; the client then retries.
        method_of(channel, "ModelInfer")(message, metadata=metadata, timeout=PATIENCE_S, wait_for_ready=True)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"
