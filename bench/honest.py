"""Honest clients, which check every answer and record how long they waited for it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ANSWER_S_MAX = 30.0
"""Time after which an answer counts as missing."""

SAID_BYTES = 500
"""Bytes of an HTTP error's body that the report of a wrong answer has."""

Infer = Callable[[np.ndarray], np.ndarray]


class Honest:
    """A client that sends requests for one model, one at a time; by default for the demo's model.

    is_right: whether an answer belongs to its input. shape: that of the inputs, which are float32.
    """

    def __init__(
        self,
        name: str,
        infer: Infer,
        is_right: Callable[[np.ndarray, np.ndarray], bool],
        shape: tuple[int, ...] = (1, 1, 8, 8),
    ) -> None:
        self.name = name
        self.took_s: list[float] = []  # seconds of each request since begin_anew()
        self.answers = 0
        self.wrong: list[str] = []
        self._infer, self._is_right, self._shape = infer, is_right, shape

    @property
    def longest_s(self) -> float:
        """The longest wait since begin_anew()."""
        return max(self.took_s, default=0.0)

    def begin_anew(self) -> list[float]:
        """The seconds that each answer took since the last call; the list begins anew."""
        took_s, self.took_s = self.took_s, []
        return took_s

    def work(self, stop: threading.Event, seed: int, pause_s: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        while not stop.wait(pause_s):
            x = rng.random(self._shape, np.float32)
            begun = time.monotonic()
            try:
                answer = self._infer(x)
            except Exception as error:
                said = error.read()[:SAID_BYTES].decode() if isinstance(error, urllib.error.HTTPError) else ""
                self.wrong.append(f"{self.name}: {type(error).__name__}: {error} {said}".rstrip())
                continue
            finally:
                self.took_s.append(time.monotonic() - begun)
            self.answers += 1
            if not self._is_right(x, answer):
                self.wrong.append(f"{self.name}: an answer belongs to another request, or to none")


def over_http(port: int, token: str = "") -> Infer:
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def infer(x: np.ndarray) -> np.ndarray:
        row = {"name": "image", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v2/models/digits/infer", json.dumps({"inputs": [row]}).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as response:
            [output] = json.load(response)["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    return infer


@contextlib.contextmanager
def over_grpc(port: int, token: str = "") -> Iterator[Infer]:
    """Calls on one channel, with a connection of its own."""
    import grpc

    from clockwork.protocol import inference_pb2 as pb

    metadata = [("authorization", f"Bearer {token}")] if token else None
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=pb.ModelInferResponse.FromString,
        )

        def infer(x: np.ndarray) -> np.ndarray:
            request: Any = pb.ModelInferRequest(model_name="digits", raw_input_contents=[x.tobytes()])
            request.inputs.add(name="image", datatype="FP32", shape=x.shape)
            answer = call(request, timeout=ANSWER_S_MAX, metadata=metadata)
            return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)

        yield infer
