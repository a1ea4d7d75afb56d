"""Replacements of tinygrad's implementations of operators that deviate from ONNX.

Only the child process of clockwork.models.compile.lower imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinygrad import Tensor, dtypes

Implementation = Callable[..., Any]


def _lp_normalization(original: Implementation) -> Implementation:
    """Return 0 where the norm is 0; tinygrad divides 0 by 0 there."""

    def run(x: Tensor, axis: int = -1, p: int = 2) -> Tensor:
        norm = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
        return x / (norm == 0).where(norm.ones_like(), norm)

    return run


def _mod(original: Implementation) -> Implementation:
    """Give a floating-point remainder the divisor's sign, also for infinite operands; tinygrad does not."""

    def run(x: Tensor, y: Tensor, fmod: int = 0) -> Tensor:
        if fmod or not dtypes.is_float(x.dtype):
            return original(x, y, fmod=fmod)
        rest = y.isinf().where(x + x * 0, x - (x / y).trunc() * y)
        return ((rest != 0) & ((rest < 0) != (y < 0))).where(rest + y, rest)

    return run


def _conv_integer(original: Implementation) -> Implementation:
    """Apply the zero points to the filters; tinygrad applies them to the columns of each filter."""

    def run(x: Tensor, w: Tensor, *zero_points: Tensor | None, **options: Any) -> Tensor:
        points = [Tensor(0) if point is None else point for point in zero_points]
        if len(points) > 1:
            points[1] = points[1].reshape(-1, *[1] * (w.ndim - 1))
        return original(x, w, *points, **options)

    return run


def _rows(original: Implementation, *places: int) -> Implementation:
    """Apply parameters at these positions to the rows of a matrix; tinygrad applies them to the columns."""

    def run(*arguments: Any, **options: Any) -> Any:
        shaped = list(arguments)
        for place in places:
            if place < len(shaped) and isinstance(shaped[place], Tensor) and shaped[place].ndim == 1:
                shaped[place] = shaped[place].reshape(-1, 1)
        return original(*shaped, **options)

    return run


REPLACED: Mapping[str, Callable[[Implementation], Implementation]] = {
    "LpNormalization": _lp_normalization,
    "Mod": _mod,
    "ConvInteger": _conv_integer,
    "MatMulInteger": lambda original: _rows(original, 2),
    "QLinearMatMul": lambda original: _rows(original, 1, 2),
}
"""By operator: a function that makes the replacement from tinygrad's implementation."""
