"""Plain ONNX Runtime on one thread: the expected answers, and the time of one execution."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from clockwork.system.clock import now_ns


class Plain:
    """An ONNX Runtime session with a careful user's settings and as many threads as a worker."""

    def __init__(self, model: onnx.ModelProto, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.times_ns: list[int] = []

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        """All outputs of the model."""
        found: list[Any] = self._session.run(None, feeds)
        return found

    def block(self, feeds: dict[str, Any], count: int) -> float:
        """Time some executions; returns their mean in seconds. The single times are added to times_ns."""
        self.run(feeds)
        begin = len(self.times_ns)
        for _ in range(count):
            begin_ns = now_ns()
            self.run(feeds)
            self.times_ns.append(now_ns() - begin_ns)
        return float(np.mean(self.times_ns[begin:])) / 1e9


def relative_error(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value expected."""
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(np.asarray(found) - expected).max()) / scale
