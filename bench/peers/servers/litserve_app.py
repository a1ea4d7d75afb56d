"""LitServe with one worker: python litserve_app.py PORT MODEL.onnx. Tensors travel as base64 within JSON."""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np
from session import session


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._session = session(sys.argv[2])

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["image"]), np.float32).reshape(1, 3, 64, 64)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"image": x})[0]

    def encode_response(self, output: np.ndarray) -> dict[str, str]:
        return {"scores": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
