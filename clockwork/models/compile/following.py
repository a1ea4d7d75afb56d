"""Follow a graph from its inputs to its outputs: derive properties of every tensor, and insert masks."""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clockwork.models.compile.sizes import (
    Dim,
    NotProven,
    Size,
    TensorFacts,
    computed_each,
    constant_of,
    inferred,
)
from clockwork.models.compile.variant import SIZE_PREFIX
from clockwork.models.onnx_import import real_inputs
from clockwork.models.split import operator
from clockwork.wire.tensors import numpy_dtype

OPSET_LEAST = 11
"""Oldest opset that is accepted. From this opset on, shape operands of operators are ordinary inputs."""

ROWS = "clockwork.rows"  # Symbol of the batch dimension in graphs whose rows each have a true size

ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
"""Element-wise operators: each element of the result depends on the inputs' elements at the same position."""


@dataclasses.dataclass(frozen=True, slots=True)
class Padding:
    """The result of a proof for a model in a set of shapes."""

    symbols: tuple[str, ...]  # padded symbols, in the order of the size inputs
    # dimensions of each output; the axis of a symbol is cut back to the true size
    output_dims: list[tuple[Dim, ...]]
    # by symbol: the largest size for which the model's tables suffice; absent: no limit is known
    limits: dict[str, int]


Rule: TypeAlias = Callable[[Any, Sequence[TensorFacts]], list[TensorFacts]]
"""A function that derives the properties of an operator's outputs from those of its inputs. The first
argument is the Following."""


Known = TypeVar("Known")  # The type of a tensor's known properties


class OperatorReader(ABC, Generic[Known]):
    """Reads attributes and constant inputs of the current operator."""

    _node: onnx.NodeProto

    def attribute(self, name: str, default: Any = None) -> Any:
        for attribute in self._node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def numbers(self, inputs: Sequence[Known], at: int, name: str) -> list[int] | None:
        """Return integers that are an attribute in some opsets and an input in others; None if absent."""
        given = self.attribute(name)
        if given is not None:
            return [int(number) for number in given] if isinstance(given, Sequence) else [int(given)]
        if len(self._node.input) <= at or not self._node.input[at]:
            return None
        return self.integers(inputs[at])

    @abstractmethod
    def integers(self, value: Known) -> list[int]:
        """The elements of an input that has to be known before the model runs."""


def named_after(rules: type, operators: Sequence[str]) -> dict[str, Any]:
    """Return the rule of each operator, a method that is named after it: mat_mul() of MatMul."""
    return {name: getattr(rules, re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in operators}


class Following(OperatorReader[TensorFacts]):
    """The state of following a graph. Subclasses have the rules of the operators."""

    rules: ClassVar[Mapping[str, Rule]] = {}
    # Operators whose inputs may hold sizes of open dimensions
    of_shapes: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        model: onnx.ModelProto,
        shapes: Sequence[Sequence[int]],
        symbols: Sequence[str],
        by_row: bool = False,
    ) -> None:
        """by_row: axis 0 of each input is a batch of any size, and each row has its own true size. Otherwise
        every batch has these shapes, and all its rows have the same true size."""
        self._by_row = by_row
        self._graph = model.graph
        self._symbols = tuple(symbols)
        self._opset = next((opset.version for opset in model.opset_import if not opset.domain), 0)
        if self._opset < OPSET_LEAST:
            raise NotProven(f"the model is of opset {self._opset}; at least {OPSET_LEAST} is followed")
        self._sizes: dict[str, int] = {}  # compiled sizes by symbol
        self._limits: dict[str, int] = {}
        self._places: dict[str, tuple[str, int]] = {}  # by symbol: an input with that dimension, and the axis
        self._values: dict[str, TensorFacts] = {"": TensorFacts(())}
        for value, shape in zip(real_inputs(model), shapes, strict=True):
            dims: list[Dim] = []
            for axis, (dim, size) in enumerate(zip(value.type.tensor_type.shape.dim, shape, strict=True)):
                if by_row and axis == 0:
                    dims.append(ROWS)
                elif dim.dim_param in self._symbols:
                    if self._sizes.setdefault(dim.dim_param, size) != size:
                        raise NotProven(f"{dim.dim_param} has two sizes")
                    dims.append(dim.dim_param)
                    self._places.setdefault(dim.dim_param, (value.name, axis))
                else:
                    dims.append(size)
            self._values[value.name] = TensorFacts(tuple(dims))
        for initializer in self._graph.initializer:
            self._values[initializer.name] = constant_of(initializer)
        self._types, self._concrete = inferred(model, shapes)
        self._nodes: list[onnx.NodeProto] = []  # nodes of the resulting graph
        self._added: list[TensorProto] = []
        self._masks: dict[tuple[str, int, int, int], str] = {}

    def run(self) -> Padding:
        for node in self._graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise NotProven(f"operator {operator(node)} has a body, which is not followed")
            self._node = onnx.NodeProto.FromString(node.SerializeToString())
            self._after: list[onnx.NodeProto] = []
            try:
                found = self._follow()
            except (
                LookupError,
                TypeError,
                ValueError,
            ) as error:  # an invalid node, which no runtime would accept
                raise self._refuse(f"cannot be followed: {error}") from None
            self._nodes += [self._node, *self._after]
            self._values.update((name, value) for name, value in zip(node.output, found) if name)
        dims = []
        for output in self._graph.output:
            if output.name not in self._values:
                raise NotProven(f"output {output.name!r} is not followed")
            value = self._values[output.name]
            if value.tells_size:
                raise NotProven(f"output {output.name!r} is computed from the size of the inputs")
            if self._by_row and ROWS not in value.dims[:1]:
                raise NotProven(f"output {output.name!r} has no row for each row of the inputs")
            dims.append(value.dims)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(self._added)
        for number in range(len(self._symbols)):
            shape = [ROWS] if self._by_row else []
            self._graph.input.append(
                helper.make_tensor_value_info(f"{SIZE_PREFIX}{number}", TensorProto.INT64, shape)
            )
        return Padding(self._symbols, dims, self._limits)

    # ----- a node ---------------------------------------------------------------------------------

    def _follow(self) -> list[TensorFacts]:
        node = self._node
        inputs = [self._values.get(name) for name in node.input]
        if node.domain in ("", "ai.onnx"):
            handler = self.rules.get(node.op_type)
            values = [value for value in inputs if value is not None]
            told = node.op_type not in self.of_shapes and any(value.tells_size for value in values)
            if handler is not None and len(values) == len(inputs) and not told:
                return handler(self, values)
        for value in inputs:
            if value is None or value.is_open or value.tells_size:
                raise NotProven(f"operator {operator(node)} is not known to keep positions apart")
        return [self._closed(name) for name in node.output]

    def _closed(self, name: str) -> TensorFacts:
        """Return the properties of a tensor without open axes, computed from tensors without open axes."""
        shape = self._concrete.get(name)
        if shape is None and name:
            raise NotProven(f"the output shape of operator {operator(self._node)} is not known")
        return TensorFacts(shape or ())

    def _refuse(self, why: str) -> NotProven:
        return NotProven(f"operator {operator(self._node)} {why}")

    def integers(self, value: TensorFacts) -> list[int]:
        if value.known is None or value.tells_size:
            raise self._refuse("depends on numbers that are only known when the model runs")
        return [size.constant for size in value.known]

    def axis(self, value: TensorFacts, default: int) -> int:
        given = int(self.attribute("axis", default))
        return given + len(value.dims) if given < 0 else given

    # ----- masks ----------------------------------------------------------------------------------

    def mask(self, at: int, axes: Sequence[int], neutral: float) -> None:
        """Replace the padding of the node's input number ``at`` along these open axes by ``neutral``."""
        name = self._node.input[at]
        value = self._values[name]
        for axis in axes:
            symbol = value.dims[axis]
            assert isinstance(symbol, str)
            if symbol == ROWS:
                raise self._refuse("mixes rows")
            if self._by_row and value.dims.count(ROWS) != 1:
                raise self._refuse("mixes positions of a tensor without rows")
            masked = f"{name}.within.{len(self._nodes)}.{at}.{axis}"
            inputs = [self._mask(symbol, value, axis), name, self._scalar(name, neutral)]
            self._nodes.append(helper.make_node("Where", inputs, [masked]))
            self._types[masked] = self._types[self._node.input[at]]
            name = masked
        self._node.input[at] = name

    def _mask(self, symbol: str, value: TensorFacts, axis: int) -> str:
        """Return the name of a boolean mask, true within the true size, that broadcasts to the tensor."""
        number, behind = self._symbols.index(symbol), len(value.dims) - 1 - axis
        key = symbol, behind, len(value.dims), value.dims.index(ROWS) if self._by_row else -1
        if key in self._masks:
            return self._masks[key]
        name = self._masks[key] = f"clockwork.mask.{len(self._masks)}"
        if self._by_row:
            self._mask_rows(name, number, value, axis)
            return name
        places = np.arange(self._sizes[symbol], dtype=np.int64).reshape(-1, *[1] * behind)
        self._added.append(numpy_helper.from_array(places, f"{name}.places"))
        self._nodes.append(helper.make_node("Less", [f"{name}.places", f"{SIZE_PREFIX}{number}"], [name]))
        return name

    def _mask_rows(self, name: str, number: int, value: TensorFacts, axis: int) -> None:
        """Make the mask of a tensor in which each row has a true size."""
        rows, rank = value.dims.index(ROWS), len(value.dims)
        source, source_axis = self._places[self._symbols[number]]
        dims, size, places, sizes = (f"{name}.{part}" for part in ("dims", "size", "places", "sizes"))
        zero, step, at = (self._number(np.array(number, np.int64)) for number in (0, 1, source_axis))
        self._nodes += [
            helper.make_node("Shape", [source], [dims]),
            helper.make_node("Gather", [dims, at], [size]),
            helper.make_node("Range", [zero, size, step], [places]),
        ]
        self._unsqueeze(places, f"{name}.along", [at for at in range(rank) if at != axis])
        self._unsqueeze(f"{SIZE_PREFIX}{number}", sizes, [at for at in range(rank) if at != rows])
        self._nodes.append(helper.make_node("Less", [f"{name}.along", sizes], [name]))

    def _unsqueeze(self, source: str, target: str, axes: Sequence[int]) -> None:
        self._nodes.append(self._with_axes("Unsqueeze", source, target, axes))

    def _with_axes(
        self, op: str, source: str, target: str, axes: Sequence[int], **attributes: Any
    ) -> onnx.NodeProto:
        """Make a node whose axes are an input or an attribute, as the opset requires."""
        if self._opset >= 13:
            return helper.make_node(
                op, [source, self._number(np.array(axes, np.int64))], [target], **attributes
            )
        return helper.make_node(op, [source], [target], axes=list(axes), **attributes)

    def _scalar(self, like: str, number: float) -> str:
        """Add a scalar of the type of tensor ``like``. An infinity becomes the bound of an integer type."""
        code = self._types.get(like)
        if code is None:
            raise self._refuse("takes a tensor whose type is not known")
        kind = numpy_dtype(code)
        if kind.kind == "b" or kind.kind not in "fiuV" or (kind.kind == "V" and math.isinf(number)):
            raise self._refuse(f"mixes positions of numbers of type {kind}")
        if math.isinf(number) and kind.kind in "iu":
            number = np.iinfo(kind).min if number < 0 else np.iinfo(kind).max
        return self._number(np.array(number).astype(kind))

    def mean(self, dims: Sequence[Dim], axes: Sequence[int], symbol: str, others: int, keepdims: int) -> None:
        """Make the node, a mean over these axes of a tensor of ``dims``, divide by the true number of
        elements: the true size times ``others``."""
        name = self._node.output[0]
        code = self.type_of(name)
        if numpy_dtype(code).kind in "biu":
            raise self._refuse("is a mean of integers")
        total, size, count = (f"{name}.{part}" for part in ("sum", "size", "count"))
        source = f"{SIZE_PREFIX}{self._symbols.index(symbol)}"
        self._node = self._with_axes("ReduceSum", self._node.input[0], total, axes, keepdims=keepdims)
        factor = self._number(np.array(others).astype(numpy_dtype(code)))
        self._after = [
            helper.make_node("Cast", [source], [size], to=code),
            helper.make_node("Mul", [size, factor], [count]),
        ]
        if self._by_row:
            kept = [dim for axis, dim in enumerate(dims) if keepdims or axis not in axes]
            behind = [at for at in range(len(kept)) if kept[at] != ROWS]
            self._after.append(self._with_axes("Unsqueeze", count, f"{count}s", behind))
            count = f"{count}s"
        self._after.append(helper.make_node("Div", [total, count], [name]))

    def _number(self, array: Any) -> str:
        name = f"clockwork.neutral.{len(self._added)}"
        self._added.append(numpy_helper.from_array(array, name))
        return name

    def type_of(self, name: str) -> int:
        code = self._types.get(name)
        if code is None:
            raise self._refuse("takes a tensor whose type is not known")
        return code

    # ----- element-wise operators ---------------------------------------------------------------------

    def each(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        """An element-wise operator: each element depends on the inputs' elements at the same position."""
        if any(value.tells_size for value in inputs):
            known = self._arithmetic(inputs)
            if known is None:
                raise self._refuse("computes with the size of the inputs")
            return [TensorFacts(self._broadcast(inputs), known=known)]
        dims = self._broadcast(inputs)
        known = self._arithmetic(inputs) if all(value.known is not None for value in inputs) else None
        return [TensorFacts(dims, known=known), *(TensorFacts(dims) for _ in self._node.output[1:])]

    def _broadcast(self, inputs: Sequence[TensorFacts]) -> tuple[Dim, ...]:
        rank = max((len(value.dims) for value in inputs), default=0)
        dims: list[Dim] = [1] * rank
        for value in inputs:
            for axis, dim in enumerate(value.dims, rank - len(value.dims)):
                if dims[axis] == 1:
                    dims[axis] = dim
                elif dim not in (1, dims[axis]):
                    raise self._refuse(f"joins an axis of {dims[axis]} with one of {dim}")
        return tuple(dims)

    def _arithmetic(self, inputs: Sequence[TensorFacts]) -> tuple[Size, ...] | None:
        """Return the elements of a shape computation; None unless all are known."""
        return computed_each(self._node.op_type, [value.known for value in inputs])

    def moved(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        """An operator that moves the elements of its first input unchanged."""
        return [inputs[0], *(TensorFacts(inputs[0].dims) for _ in self._node.output[1:])]

    def cast(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        if inputs[0].known is not None and self.attribute("to") == TensorProto.BOOL:
            if inputs[0].tells_size:
                raise self._refuse("computes with the size of the inputs")
            return [TensorFacts(inputs[0].dims)]
        return [inputs[0]]
