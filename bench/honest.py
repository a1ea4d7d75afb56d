"""Honest clients, which check every answer and record the slowest."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable

import numpy as np

ANSWER_S_MAX = 30.0
"""Time after which an answer counts as missing."""

Infer = Callable[[np.ndarray], np.ndarray]


class Honest:
    """A client of the demo model, with a single request at a time. is_right: whether an answer belongs to the input."""

    def __init__(self, name: str, infer: Infer, is_right: Callable[[np.ndarray, np.ndarray], bool]) -> None:
        self.name = name
        self.longest_s = 0.0
        self.answers = 0
        self.wrong: list[str] = []
        self._infer, self._is_right = infer, is_right

    def work(self, stop: threading.Event, seed: int, pause_s: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        while not stop.wait(pause_s):
            x = rng.random((1, 1, 8, 8), np.float32)
            begun = time.monotonic()
            try:
                answer = self._infer(x)
            except Exception as error:
                self.wrong.append(f"{self.name}: {type(error).__name__}: {error}")
                continue
            finally:
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
            self.answers += 1
            if not self._is_right(x, answer):
                self.wrong.append(f"{self.name}: an answer is another request's, or nobody's")


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
