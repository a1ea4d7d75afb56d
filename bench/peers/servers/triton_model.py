"""Triton's Python backend: one ONNX session for each model. The model repository has it as model.py."""

from __future__ import annotations

import os
from typing import Any

import triton_python_backend_utils as pb_utils
from session import session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        place = os.path.join(args["model_repository"], args["model_version"])
        self._session = session(os.path.join(place, "model.onnx"))

    def execute(self, requests: list[Any]) -> list[Any]:
        answers = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            [scores] = self._session.run(None, {"image": image})
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("scores", scores)]))
        return answers
