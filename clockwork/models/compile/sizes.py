"""Sizes that a request decides: dimensions of tensors, and numbers computed from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from clockwork.config.models import DEGREE_MAX, KNOWN_MAX, TERMS_MAX
from clockwork.models.onnx_import import real_inputs

Dim: TypeAlias = "int | str"  # A dimension: a number, or the symbol of an open dimension


class NotProven(Exception):
    """A proof about a graph fails: padding could reach answers, or rows could mix. The text says why."""


Product: TypeAlias = "tuple[str, ...]"  # A product of open dimensions: their symbols, sorted


MADE = "?"
"""Prefix of symbols for unknown sizes that may be 0. Symbols without a prefix stand for sizes of at least 1.
"""

ANY = "#"
"""Prefix of symbols for unknown numbers that may be negative."""


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """A size as a polynomial in open dimensions: a constant, plus multiples of products of dimensions."""

    constant: int
    terms: tuple[tuple[Product, int], ...] = ()

    def plus(self, other: Size, sign: int = 1) -> Size:
        sums = dict(self.terms)
        for product, count in other.terms:
            sums[product] = sums.get(product, 0) + sign * count
        return _size(self.constant + sign * other.constant, sums)

    def times(self, other: Size) -> Size:
        sums: dict[Product, int] = {}
        for left, count in self._all():
            for right, factor in other._all():
                if len(left) + len(right) > DEGREE_MAX:
                    raise ValueError("a size is too large to be followed")
                product = tuple(sorted(left + right))
                sums[product] = sums.get(product, 0) + count * factor
        return _size(sums.pop((), 0), sums)

    def over(self, other: Size) -> Size | None:
        """Return the quotient by a single term if it is exact for all sizes, otherwise None."""
        if self == other and self.is_positive:
            return Size(1)
        if len(other._all()) != 1:
            return None
        ((divisor, count),) = other._all()
        sums: dict[Product, int] = {}
        for product, factor in self._all():
            left = list(product)
            for symbol in divisor:
                if symbol not in left:
                    return None
                left.remove(symbol)
            if factor % count:
                return None
            sums[tuple(left)] = factor // count
        return _size(sums.pop((), 0), sums)

    def _all(self) -> list[tuple[Product, int]]:
        return [*([((), self.constant)] if self.constant else []), *self.terms]

    @property
    def is_positive(self) -> bool:
        """Whether the size is proven to be above 0 for all open dimensions."""
        return self.equals(Size(0)) is False and self.constant + sum(count for _, count in self.terms) > 0

    @property
    def is_natural(self) -> bool:
        """Whether the size is proven to be at least 0 for all open dimensions."""
        return self.plus(Size(1)).is_positive

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(symbol for product, _ in self.terms for symbol in product)

    def equals(self, other: Size) -> bool | None:
        """Whether two sizes are equal or differ for all open dimensions. None: neither is proven."""
        apart = self.plus(other, -1)
        if not apart.terms:
            return apart.constant == 0
        if any(symbol.startswith(ANY) for symbol in apart.symbols):
            return None
        counts = [count for _, count in apart.terms]
        nearest = apart.constant + sum(
            count for product, count in apart.terms if not any(symbol.startswith(MADE) for symbol in product)
        )
        if (min(counts) > 0 and nearest > 0) or (max(counts) < 0 and nearest < 0):
            return False
        return None

    @property
    def dim(self) -> Dim | None:
        """The size as a dimension: a number or a symbol; None if it is another expression."""
        if not self.terms:
            return self.constant
        if self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1:
            product = self.terms[0][0]
            return product[0] if len(product) == 1 else None
        return None


def _size(constant: int, sums: Mapping[Product, int]) -> Size:
    if len(sums) > TERMS_MAX or max(map(abs, (constant, *sums.values()))) >> 63:
        raise ValueError("a size is too large to be followed")
    return Size(constant, tuple((product, sums[product]) for product in sorted(sums) if sums[product]))


def size_of(dim: Dim) -> Size:
    return Size(dim) if isinstance(dim, int) else Size(0, (((dim,), 1),))


@dataclasses.dataclass(frozen=True, slots=True)
class TensorFacts:
    """The known properties of a tensor."""

    dims: tuple[Dim, ...]
    zero: frozenset[int] = frozenset()  # open axes along which the padding is 0
    known: tuple[Size, ...] | None = None  # the elements of a tensor of rank 0 or 1, where they are sizes

    @property
    def is_open(self) -> bool:
        return any(isinstance(dim, str) for dim in self.dims)

    @property
    def tells_size(self) -> bool:
        return self.known is not None and any(size.terms for size in self.known)


def computed(op: str, row: Sequence[Size]) -> Size | None:
    """Compute an element of an operator's result from elements that are sizes; None if it is unknown."""
    match op, row:
        case "Add", [left, right]:
            return left.plus(right)
        case "Sub", [left, right]:
            return left.plus(right, -1)
        case "Mul", [left, right]:
            return left.times(right)
        case "Div", [left, right]:
            return left.over(right)
        case "Neg", [left]:
            return left.times(Size(-1))
        case (("Max" | "Min" as which), [left, right]):
            for more, less in ((left, right), (right, left)):
                if more.plus(less, -1).is_natural:
                    return more if which == "Max" else less
            return None
        case "Mod", [left, right] if not left.terms and not right.terms and right.constant:
            return Size(left.constant % right.constant)
        case "Equal", [left, right]:
            same = left.equals(right)
            return None if same is None else Size(int(same))
        case "Where", [condition, left, right] if not condition.terms:
            return left if condition.constant else right
        case _:
            return None


def computed_each(op: str, operands: Sequence[tuple[Size, ...] | None]) -> tuple[Size, ...] | None:
    """Compute the elements of an operator's result from lists of sizes; None unless all are known."""
    if any(operand is None for operand in operands):
        return None
    given = [operand for operand in operands if operand]
    found = []
    for index in range(max(map(len, given), default=0)):
        size = computed(op, [operand[index if len(operand) > 1 else 0] for operand in given])
        if size is None:
            return None
        found.append(size)
    return tuple(found) or None


def segments(dims: Sequence[Dim]) -> list[Dim]:
    """Return the open dimensions in order, and between them the products of fixed dimensions.

    A reshape that keeps this list keeps every open axis.
    """
    found: list[Dim] = [1]
    for dim in dims:
        if isinstance(dim, int):
            found[-1] = int(found[-1]) * dim
        else:
            found += [dim, 1]
    return found


def constant_of(tensor: TensorProto) -> TensorFacts:
    dims = tuple(tensor.dims)
    if len(dims) > 1 or math.prod(dims) > KNOWN_MAX or tensor.data_location == TensorProto.EXTERNAL:
        return TensorFacts(dims)
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind not in "iu":
        return TensorFacts(dims)
    return TensorFacts(dims, known=tuple(Size(int(number)) for number in array.reshape(-1)))


def inferred(
    model: onnx.ModelProto, shapes: Sequence[Sequence[int]]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Infer the types of the graph's tensors, and their shapes where known, for inputs of these shapes."""
    graph = model.graph
    small = onnx.ModelProto()
    small.ir_version = max(model.ir_version, 4)
    small.opset_import.extend(model.opset_import)
    small.functions.extend(model.functions)
    copy = small.graph
    copy.name = "shapes"
    copy.node.extend(graph.node)
    copy.output.extend(helper.make_empty_tensor_value_info(declared.name) for declared in graph.output)
    given = dict(zip((tensor.name for tensor in real_inputs(model)), shapes, strict=True))
    for value in real_inputs(model):
        code = value.type.tensor_type.elem_type
        copy.input.append(helper.make_tensor_value_info(value.name, code, given[value.name]))
    for initializer in graph.initializer:  # large weights are left out: they may exceed protobuf's 2 GB
        if math.prod(initializer.dims) <= KNOWN_MAX and initializer.data_location != TensorProto.EXTERNAL:
            copy.initializer.append(initializer)
        else:
            copy.input.append(
                helper.make_tensor_value_info(initializer.name, initializer.data_type, list(initializer.dims))
            )
    try:
        made = shape_inference.infer_shapes(small, data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise NotProven(f"shapes cannot be inferred: {' '.join(str(error).split())[:200]}") from None
    types = {initializer.name: initializer.data_type for initializer in graph.initializer}
    found: dict[str, tuple[int, ...]] = {
        initializer.name: tuple(initializer.dims) for initializer in graph.initializer
    }
    for value in (*made.input, *made.value_info, *made.output):
        kind = value.type.tensor_type
        if kind.elem_type:
            types[value.name] = kind.elem_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return types, found
