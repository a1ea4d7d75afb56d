"""Answers held against each other. Needs no ONNX: a worker holds a program's answers against its package's, too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clockwork.wire.tensors import Array

RELATIVE = 1e-4
"""Largest difference of two equal float32 answers, relative to the tensor's largest magnitude."""

HALF_RELATIVE = 5e-2
"""Largest relative difference of equal answers where a model multiplies 16-bit numbers."""

QUANTISED_RELATIVE = 2e-2
"""Largest relative difference of equal answers where a model rounds to 8 bits inside: a different rounding is no error."""


def difference(actual: Sequence[Array], expected: Sequence[Array], relative: float = RELATIVE) -> str:
    """The difference between two lists of outputs, as a sentence; "" if they are equal. NaN equals NaN."""
    if len(actual) != len(expected):
        return f"{len(actual)} outputs instead of {len(expected)}"
    for index, (one, other) in enumerate(zip(actual, expected)):
        text = _difference(one, other, relative)
        if text:
            return f"output {index} {text}"
    return ""


def _difference(one: Array, other: Array, relative: float) -> str:
    if one.shape != other.shape:
        return f"has shape {one.shape} instead of {other.shape}"
    if one.dtype != other.dtype:
        return f"is {one.dtype} instead of {other.dtype}"
    if one.dtype.kind in "OSU" or one.dtype == bool:
        return "" if bool(np.array_equal(one, other)) else "has other values"
    if is_integer_array(one):
        steps = 1 if relative > RELATIVE and one.dtype.itemsize == 1 else 0
        apart = np.abs(one.astype(np.int64) - other.astype(np.int64)).max(initial=0)
        return "" if apart <= steps else f"is apart by {apart}"
    name = one.dtype.name
    least = {"float16": 1e-2, "bfloat16": 4e-2}.get(name, 0.25 if "float8" in name or "float4" in name else 0)
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    left, right = one.astype(wide), other.astype(wide)
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
    """Whether it holds integers, of any width."""
    return "int" in array.dtype.name


def tile(inputs: Sequence[Array], rows: int, rowless: Sequence[bool] = ()) -> list[Array]:
    """A batch of ``rows`` copies of one-row inputs. rowless: see PreparedModel.rowless()."""
    return [
        array if rows == 1 or any(rowless[index : index + 1]) else np.concatenate([array] * rows, axis=0)
        for index, array in enumerate(inputs)
    ]
