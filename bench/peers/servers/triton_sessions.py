"""Triton's Python backend with a cache of its own: as many ONNX sessions as fit; the least recently used
gives way. A request names its model by number; number -1 asks for the count of loads.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import manifest
import numpy as np
import triton_python_backend_utils as pb_utils
from session import session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._models = list(manifest.read().values())
        self._budget = int(os.environ["PEER_BUDGET_BYTES"])
        self._sessions: OrderedDict[int, Any] = OrderedDict()
        self._used = 0
        self._loads = 0

    def _session(self, index: int) -> Any:
        if index in self._sessions:
            self._sessions.move_to_end(index)
            return self._sessions[index]
        size = self._models[index].weights_bytes
        while self._sessions and self._used + size > self._budget:
            evicted, _ = self._sessions.popitem(last=False)
            self._used -= self._models[evicted].weights_bytes
        self._sessions[index] = session(self._models[index].path, self._models[index].is_optimised)
        self._used += size
        self._loads += 1
        return self._sessions[index]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        index = int(pb_utils.get_input_tensor_by_name(request, "model").as_numpy().ravel()[0])
        if index < 0:
            found = np.array([[self._loads]], np.float32)
        else:
            entry = self._models[index]
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().reshape(entry.shape)
            found = self._session(index).run(None, {entry.input: x})[0].reshape(1, -1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", found)])
