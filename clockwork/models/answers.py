"""Compare models' answers. The module needs no onnx: workers check programs with it, too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clockwork.wire.tensors import Array

RELATIVE = 1e-4
"""Largest difference at which float32 answers count as equal, relative to the tensor's largest magnitude."""

HALF_RELATIVE = 5e-2
"""Largest relative difference at which answers count as equal if the model multiplies 16-bit numbers."""

QUANTISED_RELATIVE = 2e-2
"""Largest relative difference at which answers count as equal if the model is quantised to 8 bits."""


def difference(actual: Sequence[Array], expected: Sequence[Array], relative: float = RELATIVE) -> str:
    """Describe the difference of two lists of outputs in a sentence; "" if equal. NaN equals NaN."""
    if len(actual) != len(expected):
        return f"{len(actual)} outputs instead of {len(expected)}"
    for index, (actual_output, expected_output) in enumerate(zip(actual, expected)):
        text = _difference(actual_output, expected_output, relative)
        if text:
            return f"output {index} {text}"
    return ""


def _difference(actual: Array, expected: Array, relative: float) -> str:
    if actual.shape != expected.shape:
        return f"has shape {actual.shape} instead of {expected.shape}"
    if actual.dtype != expected.dtype:
        return f"is {actual.dtype} instead of {expected.dtype}"
    if actual.dtype.kind in "OSU" or actual.dtype == bool:
        return "" if bool(np.array_equal(actual, expected)) else "has other values"
    if is_integer_array(actual):
        steps = 1 if relative > RELATIVE and actual.dtype.itemsize == 1 else 0
        apart = np.abs(actual.astype(np.int64) - expected.astype(np.int64)).max(initial=0)
        return "" if apart <= steps else f"is apart by {apart}"
    name = actual.dtype.name
    least = {"float16": 1e-2, "bfloat16": 4e-2}.get(name, 0.25 if "float8" in name or "float4" in name else 0)
    wide = np.complex128 if actual.dtype.kind == "c" else np.float64
    left, right = actual.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(left) & np.isfinite(right)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
    if not np.all(same | finite):
        return "is not finite in other places"
    if not finite.any():
        return ""
    scale = float(np.abs(right[finite]).max())
    apart = float(np.abs(left[finite] - right[finite]).max())
    bound = max(relative, least)
    if apart <= bound * scale:
        return ""
    return (
        f"is apart by {apart / scale if scale else float('inf'):.1e} of its largest value (bound {bound:.0e})"
    )


def is_integer_array(array: Array) -> bool:
    """Whether an array holds integers, of any width."""
    return "int" in array.dtype.name


def tile(inputs: Sequence[Array], rows: int, rowless: Sequence[bool] = ()) -> list[Array]:
    """Return a batch of ``rows`` copies of inputs with a single row. rowless: see PreparedModel.rowless()."""
    return [
        array if rows == 1 or any(rowless[index : index + 1]) else np.concatenate([array] * rows, axis=0)
        for index, array in enumerate(inputs)
    ]
