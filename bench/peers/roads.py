"""Transports from the client to a server: requests are made once and sent often, answers are classified."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import aiohttp
import grpc
import numpy as np

from clockwork.gateway.tensors import name_of_dtype
from clockwork.protocol import inference_pb2 as pb

INPUT, OUTPUT = "image", "scores"
HEADER_LENGTH = "Inference-Header-Content-Length"
INFER = "/inference.GRPCInferenceService/ModelInfer"

REFUSALS = (408, 422, 429, 503, 504)
"""HTTP statuses of refusals: deadline, or overload."""

GRPC_REFUSALS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
)
MESSAGE_BYTES = 64 << 20


class Verdict(enum.IntEnum):
    """The outcome of a request, regardless of its time."""

    ANSWERED = 0
    REFUSED = 1
    FAILED = 2
    GONE = 3  # the client gave up


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    verdict: Verdict
    body: bytes = b""
    header_bytes: int = 0
    said: str = ""


class Road(Protocol):
    """A connection to a server, in a running event loop. Cancelling a call cancels the request."""

    async def call(self, model_index: int) -> Reply: ...
    async def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Http:
    """Requests over HTTP/1.1: for each model a path, headers and a body; a connection for each request."""

    paths: Sequence[str]
    headers: Sequence[dict[str, str]]
    bodies: Sequence[bytes]
    read: Callable[[Reply], Any]

    def open(self, port: int) -> Road:
        return _HttpRoad(self, port)

    def scores(self, reply: Reply) -> Any:
        return self.read(reply)


class _HttpRoad:
    def __init__(self, requests: Http, port: int) -> None:
        self._urls = [f"http://127.0.0.1:{port}{path}" for path in requests.paths]
        self._requests = requests
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(),
            # Triton would compress the answers for a client that accepts compression.
            headers={"Accept-Encoding": "identity"},
        )

    async def call(self, model_index: int) -> Reply:
        requests = self._requests
        try:
            async with self._session.post(
                self._urls[model_index],
                data=requests.bodies[model_index],
                headers=requests.headers[model_index],
            ) as response:
                body = await response.read()
                if response.status == 200:
                    length = int(response.headers.get(HEADER_LENGTH, 0))
                    return Reply(Verdict.ANSWERED, body, length)
                refused = response.status in REFUSALS
                said = f"{response.status} {body[:200].decode(errors='replace')}"
                return Reply(Verdict.REFUSED if refused else Verdict.FAILED, said=said)
        except aiohttp.ClientError as error:
            return Reply(Verdict.FAILED, said=repr(error))

    async def close(self) -> None:
        await self._session.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Grpc:
    """Unary calls on a channel: for each model the bytes of its request, and metadata."""

    method: str
    requests: Sequence[bytes]
    read: Callable[[Reply], Any]
    metadata: Sequence[tuple[str, str]] = ()

    def open(self, port: int) -> Road:
        return _GrpcRoad(self, port)

    def scores(self, reply: Reply) -> Any:
        return self.read(reply)


class _GrpcRoad:
    def __init__(self, requests: Grpc, port: int) -> None:
        self._requests = requests
        limits = [
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=limits)
        self._call = self._channel.unary_unary(requests.method)

    async def call(self, model_index: int) -> Reply:
        try:
            body = await self._call(self._requests.requests[model_index], metadata=self._requests.metadata)
        except grpc.aio.AioRpcError as error:
            refused = error.code() in GRPC_REFUSALS
            said = f"{error.code().name} {(error.details() or '')[:200]}"
            return Reply(Verdict.REFUSED if refused else Verdict.FAILED, said=said)
        return Reply(Verdict.ANSWERED, body)

    async def close(self) -> None:
        await self._channel.close()


# ----- the Open Inference Protocol, which Clockwork, Triton and MLServer speak ------------------------


def oip_http(names: Sequence[str], image: np.ndarray, slo_us: int) -> Http:
    """A request as `tritonclient` sends it. A server may heed the timeout, which is a parameter."""
    body, headers = oip_http_request({INPUT: image}, [OUTPUT], slo_us)
    return Http(
        [f"/v2/models/{name}/infer" for name in names], [headers] * len(names), [body] * len(names),
        lambda reply: floats(reply.body[reply.header_bytes :]),
    )  # fmt: skip


def oip_http_request(
    inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout_us: int
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request; its tensors and those of the answer are binary."""
    described = {
        "inputs": [
            {
                "name": name,
                "datatype": name_of_dtype(array.dtype.name),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in inputs.items()
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        "parameters": {"timeout": timeout_us},
    }
    header = json.dumps(described).encode()
    body = header + b"".join(array.tobytes() for array in inputs.values())
    return body, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def oip_grpc(names: Sequence[str], image: np.ndarray, slo_us: int) -> Grpc:
    requests = []
    for name in names:
        request: Any = pb.ModelInferRequest(model_name=name, raw_input_contents=[image.tobytes()])
        request.inputs.add(name=INPUT, datatype="FP32", shape=image.shape)
        request.parameters["timeout"].int64_param = slo_us
        requests.append(request.SerializeToString())
    return Grpc(INFER, requests, _oip_scores)


def _oip_scores(reply: Reply) -> Any:
    answer: Any = pb.ModelInferResponse.FromString(reply.body)
    return floats(answer.raw_output_contents[0]) if answer.raw_output_contents else np.array(
        answer.outputs[0].contents.fp32_contents, np.float32
    )  # fmt: skip


def base64_json(paths: Sequence[str], image: np.ndarray) -> Http:
    """A tensor as base64 within JSON: the cheapest encoding for servers of JSON."""
    body = json.dumps({INPUT: base64.b64encode(image.tobytes()).decode()}).encode()
    return Http(
        paths, [{"Content-Type": "application/json"}] * len(paths), [body] * len(paths),
        lambda reply: floats(base64.b64decode(json.loads(reply.body)[OUTPUT])),
    )  # fmt: skip


def floats(data: bytes) -> Any:
    return np.frombuffer(data, np.float32)
