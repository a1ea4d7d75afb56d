"""The ONNX session of every peer's server, in the peer's environment, with one thread."""

from __future__ import annotations

import onnxruntime


def session(path: str, is_optimised: bool = False) -> onnxruntime.InferenceSession:
    """is_optimised: the file is as ONNX Runtime has optimised it, so that nothing is left to do."""
    options = onnxruntime.SessionOptions()
    if is_optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
