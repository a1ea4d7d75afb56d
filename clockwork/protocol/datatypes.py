"""Datatypes of the Open Inference Protocol, and ONNX's codes of them."""

from __future__ import annotations

from clockwork.wire import tensors
from clockwork.wire.tensors import DTYPES

STANDARD = {
    "BOOL": tensors.BOOL, "UINT8": tensors.UINT8, "UINT16": tensors.UINT16, "UINT32": tensors.UINT32,
    "UINT64": tensors.UINT64, "INT8": tensors.INT8, "INT16": tensors.INT16, "INT32": tensors.INT32,
    "INT64": tensors.INT64, "FP16": tensors.FLOAT16, "BF16": tensors.BFLOAT16, "FP32": tensors.FLOAT,
    "FP64": tensors.DOUBLE, "BYTES": tensors.STRING,
}  # fmt: skip
"""ONNX's code of each datatype of the protocol."""

DATATYPES = STANDARD | {
    kind.name.upper(): code for code, kind in DTYPES.items() if code not in STANDARD.values()
}
"""STANDARD, and the datatypes that only ONNX has, under ONNX's names.

Tensors of datatypes that only ONNX has travel as raw bytes only.
"""

NAME_OF = {code: name for name, code in DATATYPES.items()}
