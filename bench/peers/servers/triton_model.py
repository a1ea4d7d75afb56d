"""Triton's Python backend: one ONNX session for each model. The model repository has it as model.py."""

from __future__ import annotations

import json
import os
from typing import Any

import triton_python_backend_utils as pb_utils
from session import session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        place = os.path.join(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        optimised = "is_optimised" in config.get("parameters", {})
        self._session = session(os.path.join(place, "model.onnx"), optimised)
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        answers = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            [found] = self._session.run(None, {self._input: given})
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(self._output, found)]))
        return answers
