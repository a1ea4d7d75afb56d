"""Small random networks: chains, diamonds and several outputs of the operators that real models have.

A seed decides the network: its operators, shapes, types of numbers, open dimensions and version of operators.
"N" is a batch, whose rows no operator mixes; "S" is a length, along which operators may mix positions.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clockwork.wire.tensors import Array

Dim = int | str
Dims = tuple[Dim, ...]

ROWS_MAX = 5
LENGTH = 7
"""The size of "S" for which a network is compiled."""
ELEMENTS_MAX = 1500
"""Bound on the elements of a row of a value."""
VOCABULARY = 11
OPSETS = (13, 17, 21)
IR_VERSION = 10

FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}
UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Erf", "Softplus", "LeakyRelu", "HardSigmoid", "Elu", "Sin", "Cos",
         "Selu", "Softsign", "Atan", "Identity")  # fmt: skip
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
              "ReduceSumSquare")  # fmt: skip
OFTEN = {"op_binary": 4, "op_reduce": 4, "op_convolution": 5, "op_linear": 3, "op_attention": 2, "op_normalise": 3,
         "op_pool": 2, "op_resize": 2}  # fmt: skip
"""Operators that are drawn more often than others."""


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    name: str
    dims: Dims
    dtype: int

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def elements(self) -> int:
        """Return the elements of a row of the largest length."""
        return math.prod(LENGTH if dim == "S" else int(dim) for dim in self.dims if dim != "N")


@dataclasses.dataclass(frozen=True, slots=True)
class Network:
    model: onnx.ModelProto
    inputs: tuple[Value, ...]

    def arrays(self, seed: int, rows: int, length: int) -> list[Array]:
        """Make inputs of so many rows, of this length."""
        rng = np.random.default_rng(seed)
        made: list[Array] = []
        for value in self.inputs:
            shape = concrete(value.dims, rows, length)
            if value.is_float:
                made.append(rng.standard_normal(shape).astype(FLOATS[value.dtype]))
            elif value.dtype == TensorProto.BOOL:
                made.append(rng.random(shape) < 0.7)
            else:
                made.append(rng.integers(0, VOCABULARY, shape))
        return made

    @property
    def has_rows(self) -> bool:
        return self._has("N")

    @property
    def has_length(self) -> bool:
        return self._has("S")

    def _has(self, symbol: str) -> bool:
        return any(symbol in value.dims for value in self.inputs)


def concrete(dims: Dims, rows: int, length: int) -> tuple[int, ...]:
    return tuple(rows if dim == "N" else length if dim == "S" else int(dim) for dim in dims)


class _Refused(Exception):
    """An operator does not fit the value that was drawn for it."""


class _Builder:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._opset = self._random.choice(OPSETS)
        self._float = self._random.choices(list(FLOATS), (0.86, 0.08, 0.06))[0]
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[Value] = []
        self._values: list[Value] = []
        self._used: dict[str, None] = {}

    def build(self) -> Network:
        self._make_inputs()
        wanted = self._random.choice((2, 4, 6, 9, 13))
        # in order of name, so that the seed decides
        operators = [name for name in dir(self) if name.startswith("op_")]
        often = [OFTEN.get(name, 1) for name in operators]
        for _ in range(20 * wanted):
            if len(self._nodes) >= wanted:
                break
            nodes, weights = len(self._nodes), len(self._weights)
            try:
                made = getattr(self, *self._random.choices(operators, often))()
            except _Refused:
                del self._nodes[nodes:], self._weights[weights:]
                continue
            for value in made:
                if value.elements > ELEMENTS_MAX or not value.elements:
                    del self._nodes[nodes:], self._weights[weights:]
                    break
            else:
                for node in self._nodes[nodes:]:
                    self._used.update(dict.fromkeys(node.input))
                self._values += made
        return self._network()

    def _make_inputs(self) -> None:
        kind = self._random.choice(("vector", "image", "signal", "sequence", "sequence", "tokens", "fixed"))
        draw = self._random.randint
        dims: Dims
        match kind:
            case "vector":
                dims = ("N", draw(1, 40))
            case "image":
                dims = ("N", draw(1, 8), draw(3, 12), draw(3, 12))
            case "signal":
                dims = ("N", draw(1, 8), draw(4, 30))
            case "sequence":
                dims = ("N", "S", draw(1, 24)) if self._random.random() < 0.7 else ("N", draw(1, 8), "S")
            case "tokens":
                ids = self._input(("N", "S"), TensorProto.INT64)
                table = self._weight((VOCABULARY, draw(1, 24)))
                self._values.append(self._node("Gather", [table, ids], ("N", "S", table.dims[1]), axis=0))
                dims = ("N", "S")
            case _:
                dims = tuple(draw(1, 7) for _ in range(draw(1, 4)))
        if kind != "tokens" or self._random.random() < 0.3:
            self._input(dims, self._float)
        if self._random.random() < 0.25:
            other = tuple(1 if isinstance(dim, int) and self._random.random() < 0.5 else dim for dim in dims)
            self._input(other, self._random.choice((self._float, TensorProto.BOOL)))

    def _network(self) -> Network:
        made = {name for node in self._nodes for name in node.output}
        ends = [value for value in self._values if value.name in made and value.name not in self._used]
        inner = [value for value in self._values if value.name in made and value.name in self._used]
        outputs = ends[:4]
        if inner and (not outputs or self._random.random() < 0.3):
            outputs.append(self._random.choice(inner))
        graph = helper.make_graph(
            self._nodes,
            "random",
            [helper.make_tensor_value_info(one.name, one.dtype, one.dims) for one in self._inputs],
            [helper.make_tensor_value_info(one.name, one.dtype, one.dims) for one in outputs],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])
        model.ir_version = IR_VERSION
        return Network(model, tuple(self._inputs))

    # ----- parts ------------------------------------------------------------------------------------

    def _input(self, dims: Dims, dtype: int) -> Value:
        value = Value(f"in{len(self._inputs)}", dims, dtype)
        self._inputs.append(value)
        self._values.append(value)
        return value

    def _constant(self, array: Any) -> Value:
        name = f"w{len(self._weights)}"
        array = np.asarray(array)
        self._weights.append(numpy_helper.from_array(array, name))
        return Value(name, array.shape, self._weights[-1].data_type)

    def _ints(self, numbers: Sequence[int]) -> Value:
        return self._constant(np.array(numbers, np.int64))

    def _weight(self, shape: Sequence[int], scale: float = 1.0, about: float = 0.0) -> Value:
        """Make a weight; sometimes it is computed from another weight."""
        if len(shape) > 1 and self._random.random() < 0.15:
            array = self._numbers.standard_normal(tuple(reversed(shape))) * scale + about
            source = self._constant(array.astype(FLOATS[self._float]))
            return self._node("Transpose", [source], tuple(shape))
        array = self._numbers.standard_normal(tuple(shape)) * scale + about
        return self._constant(array.astype(FLOATS[self._float]))

    def _scalar(self, number: float, like: Value) -> Value:
        shape = (1,) * self._random.choice((0, 0, 1))
        return self._constant(np.full(shape, number, helper.tensor_dtype_to_np_dtype(like.dtype)))

    def _node(
        self, op: str, inputs: Sequence[Value | None], dims: Sequence[Dim], dtype: int = 0, **attributes: Any
    ) -> Value:
        (value,) = self._many(op, inputs, [(tuple(dims), dtype)], **attributes)
        return value

    def _many(
        self, op: str, inputs: Sequence[Value | None], made: Sequence[tuple[Dims, int]], **attributes: Any
    ) -> list[Value]:
        """Add a node with these outputs. dtype 0: the dtype of its first input."""
        first = next(value for value in inputs if value is not None)
        values = [
            Value(f"v{len(self._nodes)}_{number}", dims, dtype or first.dtype)
            for number, (dims, dtype) in enumerate(made)
        ]
        names = ["" if value is None else value.name for value in inputs]
        self._nodes.append(helper.make_node(op, names, [one.name for one in values], **attributes))
        return values

    def _with_axes(
        self, op: str, value: Value, axes: Sequence[int], dims: Dims, since: int, **more: Any
    ) -> Value:
        """Add an operator that takes axes as an input since a version, and as an attribute before."""
        axes = [
            axis - len(value.dims) if self._random.random() < 0.3 and op != "Unsqueeze" else axis
            for axis in axes
        ]
        if self._opset >= since:
            return self._node(op, [value, self._ints(axes)], dims, **more)
        return self._node(op, [value], dims, axes=axes, **more)

    def _draw(
        self, fits: Callable[[Value], bool] = lambda value: value.is_float, least_rank: int = 0
    ) -> Value:
        """Draw a value, mostly a late value or one that no operator has read."""
        found = [value for value in self._values if fits(value) and len(value.dims) >= least_rank]
        if not found:
            raise _Refused
        unread = [value for value in found if value.name not in self._used]
        if unread and self._random.random() < 0.6:
            return self._random.choice(unread)
        return self._random.choice(found[-4:] if self._random.random() < 0.6 else found)

    def _free(self, value: Value, length: float = 0.0) -> list[int]:
        """Draw axes that may be mixed. length: probability that "S" is among them."""
        return [
            axis
            for axis, dim in enumerate(value.dims)
            if isinstance(dim, int) or (dim == "S" and self._random.random() < length)
        ]

    def _axis(self, value: Value, length: float = 0.0) -> int:
        free = self._free(value, length)
        if not free:
            raise _Refused
        return self._random.choice(free)

    def _signed(self, value: Value, axis: int) -> int:
        return axis - len(value.dims) if self._random.random() < 0.4 else axis

    def _beside(self, dims: Dims) -> tuple[int, ...]:
        """Draw the shape of a weight that broadcasts to these dimensions."""
        shape = [dim if isinstance(dim, int) and self._random.random() < 0.7 else 1 for dim in dims]
        while shape and self._random.random() < 0.3:
            shape.pop(0)
        return tuple(shape)

    def _broadcast(self, one: Dims, other: Dims) -> Dims:
        rank = max(len(one), len(other))
        found: list[Dim] = []
        for a, b in zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(other)) + other):
            if a != b and 1 not in (a, b):
                raise _Refused
            found.append(b if a == 1 else a)
        if "N" in found[1:] or found.count("S") > 1:
            raise _Refused
        return tuple(found)

    def _partner(self, value: Value) -> tuple[Value, Dims]:
        """Draw the other operand of a binary operator; return it with the shape of the result."""
        kind = self._random.random()
        if kind < 0.2:
            return self._scalar(round(self._random.uniform(-2, 2), 2), value), value.dims
        if kind < 0.55:
            weight = self._weight(self._beside(value.dims))
            return weight, self._broadcast(value.dims, weight.dims)
        for _ in range(6):
            other = self._draw(lambda one: one.dtype == value.dtype)
            try:
                return other, self._broadcast(value.dims, other.dims)
            except _Refused:
                continue
        raise _Refused

    # ----- operators on each element ---------------------------------------------------------------------

    def op_unary(self) -> list[Value]:
        value = self._draw()
        return [self._node(self._random.choice(UNARY), [value], value.dims)]

    def op_chain(self) -> list[Value]:
        value = self._draw()
        for _ in range(self._random.randint(2, 4)):
            value = self._node(self._random.choice(UNARY), [value], value.dims)
        return [value]

    def op_binary(self) -> list[Value]:
        value = self._draw()
        other, dims = self._partner(value)
        operands = [value, other] if self._random.random() < 0.6 else [other, value]
        return [
            self._node(self._random.choice(("Add", "Sub", "Mul", "Max", "Min")), operands, dims, value.dtype)
        ]

    def op_divide(self) -> list[Value]:
        value = self._draw()
        other, dims = self._partner(value)
        positive = self._node("Abs", [other], other.dims)
        above = self._node("Add", [positive, self._scalar(0.7, value)], positive.dims)
        return [self._node("Div", [value, above], dims)]

    def op_power(self) -> list[Value]:
        value = self._draw()
        if self._random.random() < 0.5:
            return [
                self._node("Pow", [value, self._scalar(self._random.choice((2.0, 3.0)), value)], value.dims)
            ]
        positive = self._node("Abs", [value], value.dims)
        if self._random.random() < 0.5:
            return [self._node("Sqrt", [positive], value.dims)]
        above = self._node("Add", [positive, self._scalar(0.3, value)], value.dims)
        return [
            self._node("Pow", [above, self._scalar(self._random.choice((0.5, -0.5, 1.7)), value)], value.dims)
        ]

    def op_exponential(self) -> list[Value]:
        value = self._draw()
        bounds = [self._scalar(-3.0, value), self._scalar(2.0, value)]
        bounds = [Value(one.name, (), one.dtype) for one in bounds]
        for weight in self._weights[-2:]:
            del weight.dims[:]
        clipped = self._node("Clip", [value, *bounds], value.dims)
        return [self._node("Exp", [clipped], value.dims)]

    def op_prelu(self) -> list[Value]:
        value = self._draw(least_rank=2)
        shape = [dim if isinstance(dim, int) else 1 for dim in value.dims[1:]]
        shape[1:] = [1] * (len(shape) - 1)
        slope = self._weight(shape)
        return [self._node("PRelu", [value, slope], value.dims)]

    def op_choose(self) -> list[Value]:
        value = self._draw()
        if self._random.random() < 0.4:
            condition = self._draw(lambda one: one.dtype == TensorProto.BOOL)
        else:
            threshold = self._scalar(self._random.uniform(0.2, 0.5), value)
            operator = self._random.choice(("Greater", "Less", "GreaterOrEqual"))
            condition = self._node(operator, [value, threshold], value.dims, TensorProto.BOOL)
        other, dims = self._partner(value)
        dims = self._broadcast(condition.dims, dims)
        operands = [value, other] if self._random.random() < 0.5 else [other, value]
        return [self._node("Where", [condition, *operands], dims, value.dtype)]

    def op_compare(self) -> list[Value]:
        value = self._draw(lambda one: one.dtype == TensorProto.INT64)
        other = self._scalar(self._random.randint(0, VOCABULARY), value)
        operator = self._random.choice(("Equal", "Less", "Greater"))
        return [self._node(operator, [value, other], value.dims, TensorProto.BOOL)]

    def op_integers(self) -> list[Value]:
        value = self._draw(lambda one: one.dtype == TensorProto.INT64)
        other = self._scalar(self._random.randint(1, 5), value)
        return [
            self._node(self._random.choice(("Add", "Mul", "Mod", "Sub", "Div")), [value, other], value.dims)
        ]

    def op_cast(self) -> list[Value]:
        value = self._draw(lambda one: not one.is_float)
        return [self._node("Cast", [value], value.dims, self._float, to=self._float)]

    def op_sum_of_many(self) -> list[Value]:
        value = self._draw()
        others = [self._node(self._random.choice(UNARY), [value], value.dims) for _ in range(2)]
        return [self._node(self._random.choice(("Sum", "Mean", "Max", "Min")), [value, *others], value.dims)]

    # ----- shapes -----------------------------------------------------------------------------------------

    def op_transpose(self) -> list[Value]:
        value = self._draw(lambda one: True, 2)
        first = 1 if value.dims[0] == "N" else 0
        order = [*range(first), *self._random.sample(range(first, len(value.dims)), len(value.dims) - first)]
        return [self._node("Transpose", [value], [value.dims[axis] for axis in order], perm=order)]

    def op_reshape(self) -> list[Value]:
        value = self._draw(lambda one: True, 1)
        dims = list(value.dims)
        at = self._axis(value)
        size = int(dims[at])
        if self._random.random() < 0.5 and at + 1 < len(dims) and isinstance(dims[at + 1], int):
            dims[at : at + 2] = [size * int(dims[at + 1])]
        else:
            parts = [part for part in range(1, size + 1) if size % part == 0]
            part = self._random.choice(parts)
            dims[at : at + 1] = [part, size // part]
        if len(dims) > 5:
            raise _Refused
        wanted = []
        rest = self._random.random() < 0.5  # whether a dimension of -1 may still be given
        for axis, dim in enumerate(dims):
            if axis < len(value.dims) and value.dims[axis] == dim and isinstance(dim, str):
                wanted.append(0)
            elif isinstance(dim, str):
                wanted.append(-1)
            else:
                wanted.append(int(dim))
        if -1 not in wanted and rest:
            at = self._random.choice([axis for axis, dim in enumerate(dims) if isinstance(dim, int)])
            wanted[at] = -1
        return [self._node("Reshape", [value, self._ints(wanted)], dims)]

    def op_flatten(self) -> list[Value]:
        value = self._draw(least_rank=2)
        if "S" in value.dims:
            raise _Refused
        size = math.prod(int(dim) for dim in value.dims[1:])
        return [self._node("Flatten", [value], (value.dims[0], size), axis=1)]

    def op_unsqueeze(self) -> list[Value]:
        value = self._draw(lambda one: True)
        if len(value.dims) > 4:
            raise _Refused
        at = self._random.randint(1 if "N" in value.dims else 0, len(value.dims))
        return [self._with_axes("Unsqueeze", value, [at], (*value.dims[:at], 1, *value.dims[at:]), 13)]

    def op_squeeze(self) -> list[Value]:
        value = self._draw(lambda one: 1 in one.dims, 1)
        at = self._random.choice([axis for axis, dim in enumerate(value.dims) if dim == 1])
        return [self._with_axes("Squeeze", value, [at], (*value.dims[:at], *value.dims[at + 1 :]), 13)]

    def op_slice(self) -> list[Value]:
        value = self._draw(lambda one: True, 1)
        dims = list(value.dims)
        axis = self._axis(value, 0.3)
        if dims[axis] == "S":  # the first position, or the last
            start, end, step = self._random.choice(((0, 1, 1), (0, 1, 1), (-1, 2**31 - 1, 1)))
            dims[axis] = 1
        else:
            size = int(dims[axis])
            start, end = self._random.randint(-size - 1, size), self._random.randint(-size - 2, size + 3)
            step = self._random.choice((1, 1, 2, 3, -1, -2))
            dims[axis] = len(range(size)[start:end:step])
        at = self._signed(value, axis)
        return [self._node("Slice", [value, *(self._ints([one]) for one in (start, end, at, step))], dims)]

    def op_concat(self) -> list[Value]:
        value = self._draw()
        axis = self._axis(value)
        others = [
            one for one in self._values
            if one.dtype == value.dtype and len(one.dims) == len(value.dims) and isinstance(one.dims[axis], int)
            and one.dims[:axis] + one.dims[axis + 1 :] == value.dims[:axis] + value.dims[axis + 1 :]
        ]  # fmt: skip
        parts = [value, self._node(self._random.choice(UNARY[:-1]), [value], value.dims)]
        if self._random.random() < 0.5:
            parts.append(self._random.choice(others))
        self._random.shuffle(parts)
        total = sum(int(one.dims[axis]) for one in parts)
        dims = (*value.dims[:axis], total, *value.dims[axis + 1 :])
        return [self._node("Concat", parts, dims, axis=self._signed(value, axis))]

    def op_split(self) -> list[Value]:
        value = self._draw(lambda one: True, 1)
        axis = self._axis(value)
        size = int(value.dims[axis])
        if size < 2:
            raise _Refused
        first = self._random.randint(1, size - 1)
        made = [((*value.dims[:axis], part, *value.dims[axis + 1 :]), 0) for part in (first, size - first)]
        return self._many(
            "Split", [value, self._ints([first, size - first])], made, axis=self._signed(value, axis)
        )

    def op_expand(self) -> list[Value]:
        value = self._draw(lambda one: True, 1)
        wanted = [
            self._random.randint(2, 4) if dim == 1 else dim if isinstance(dim, int) else 1
            for dim in value.dims
        ]
        dims = self._broadcast(value.dims, tuple(wanted))
        return [self._node("Expand", [value, self._ints(wanted)], dims)]

    def op_tile(self) -> list[Value]:
        value = self._draw(lambda one: one.dtype != TensorProto.BOOL, 1)
        times = [self._random.choice((1, 1, 2, 3)) if isinstance(dim, int) else 1 for dim in value.dims]
        dims = [dim if isinstance(dim, str) else dim * time for dim, time in zip(value.dims, times)]
        return [self._node("Tile", [value, self._ints(times)], dims)]

    def op_pad(self) -> list[Value]:
        value = self._draw(least_rank=1)
        mode = self._random.choice(("constant", "reflect", "edge"))
        before, after, dims = [], [], []
        for dim in value.dims:
            most = 0 if isinstance(dim, str) or self._random.random() < 0.4 else 2
            most = min(most, int(dim) - 1) if mode == "reflect" and isinstance(dim, int) else most
            least = -1 if mode == "constant" and most and isinstance(dim, int) and dim > 3 else 0
            before.append(self._random.randint(least, most))
            after.append(self._random.randint(least, most))
            dims.append(dim if isinstance(dim, str) else dim + before[-1] + after[-1])
        inputs: list[Value | None] = [value, self._ints([*before, *after])]
        if mode == "constant" and self._random.random() < 0.5:
            inputs.append(self._constant(np.array(0.5, FLOATS[value.dtype])))
        return [self._node("Pad", inputs, dims, mode=mode)]

    def op_gather(self) -> list[Value]:
        value = self._draw(least_rank=1)
        axis = self._axis(value)
        size = int(value.dims[axis])
        shape = self._random.choice(((), (1,), (3,), (2, 2)))
        indices = self._constant(self._numbers.integers(-size, size, shape))
        dims = (*value.dims[:axis], *shape, *value.dims[axis + 1 :])
        return [self._node("Gather", [value, indices], dims, axis=self._signed(value, axis))]

    def op_rearrange(self) -> list[Value]:
        value = self._image()
        rows, channels, height, width = value.dims
        channels, height, width = int(channels), int(height), int(width)
        if channels % 4 == 0:
            dims = (rows, channels // 4, height * 2, width * 2)
            mode = self._random.choice(("DCR", "CRD"))
            return [self._node("DepthToSpace", [value], dims, blocksize=2, mode=mode)]
        if height % 2 == 0 and width % 2 == 0:
            dims = (rows, channels * 4, height // 2, width // 2)
            return [self._node("SpaceToDepth", [value], dims, blocksize=2)]
        raise _Refused

    def op_resize(self) -> list[Value]:
        value = self._image()
        rows, channels, *sides = value.dims
        mode = self._random.choice(("nearest", "linear", "cubic"))
        transformation = self._random.choice(
            ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        )
        more = (
            {"nearest_mode": self._random.choice(("floor", "round_prefer_floor"))}
            if mode == "nearest"
            else {}
        )
        factor = self._random.choice((2.0, 2.0, 0.5, 1.5))
        wanted = [max(1, math.floor(int(side) * factor)) for side in sides]
        scales = self._constant(np.array([1, 1, factor, factor], np.float32))
        if self._random.random() < 0.5 and rows != "N":
            given: list[Value | None] = [value, None, None, self._ints([int(rows), int(channels), *wanted])]
        else:
            given = [value, None, scales]
        return [self._node("Resize", given, (rows, channels, *wanted), mode=mode,
                           coordinate_transformation_mode=transformation, **more)]  # fmt: skip

    # ----- sums ------------------------------------------------------------------------------------------

    def op_reduce(self) -> list[Value]:
        value = self._draw(least_rank=1)
        free = self._free(value, 0.4)
        if not free:
            raise _Refused
        axes = sorted(self._random.sample(free, self._random.randint(1, len(free))))
        keeps = self._random.random() < 0.5
        dims = tuple(
            1 if axis in axes else dim for axis, dim in enumerate(value.dims) if keeps or axis not in axes
        )
        op = self._random.choice(REDUCTIONS)
        return [self._with_axes(op, value, axes, dims, 13 if op == "ReduceSum" else 18, keepdims=int(keeps))]

    def op_arg(self) -> list[Value]:
        value = self._draw(least_rank=1)
        axis = self._axis(value)
        keeps = self._random.random() < 0.5
        dims = (*value.dims[:axis], *([1] if keeps else []), *value.dims[axis + 1 :])
        return [self._node(self._random.choice(("ArgMax", "ArgMin")), [value], dims, TensorProto.INT64,
                           axis=self._signed(value, axis), keepdims=int(keeps))]  # fmt: skip

    def op_cumulate(self) -> list[Value]:
        value = self._draw(least_rank=1)
        axis = self._axis(value)
        at = self._constant(np.array(self._signed(value, axis), np.int64))
        exclusive, reverse = self._random.randint(0, 1), self._random.randint(0, 1)
        return [self._node("CumSum", [value, at], value.dims, exclusive=exclusive, reverse=reverse)]

    def op_top(self) -> list[Value]:
        value = self._draw(least_rank=1)
        axis = self._axis(value)
        if value.elements > 200:
            raise _Refused
        count = self._random.randint(1, min(4, int(value.dims[axis])))
        dims = (*value.dims[:axis], count, *value.dims[axis + 1 :])
        return self._many("TopK", [value, self._ints([count])], [(dims, 0), (dims, TensorProto.INT64)],
                          axis=self._signed(value, axis), largest=self._random.randint(0, 1))  # fmt: skip

    def op_softmax(self) -> list[Value]:
        value = self._draw(least_rank=1)
        axis = self._axis(value, 0.8)
        op = self._random.choice(("Softmax", "Softmax", "LogSoftmax"))
        return [self._node(op, [value], value.dims, axis=self._signed(value, axis))]

    def op_normalise(self) -> list[Value]:
        value = self._draw(least_rank=2)
        last, second = value.dims[-1], value.dims[1]
        choices = []
        if self._opset >= 17 and isinstance(last, int) and last > 1:
            choices.append("LayerNormalization")
        if isinstance(second, int):
            choices.append("BatchNormalization")
            if len(value.dims) > 2 and "S" not in value.dims and math.prod(map(int, value.dims[2:])) > 2:
                choices.append("InstanceNormalization")
                if self._opset >= 21 and second % 2 == 0:
                    choices.append("GroupNormalization")
            if len(value.dims) == 4:
                choices.append("LRN")
        if not choices:
            raise _Refused
        op = self._random.choice(choices)
        match op:
            case "LayerNormalization":
                at = len(value.dims) - 1
                while at > 1 and isinstance(value.dims[at - 1], int) and self._random.random() < 0.3:
                    at -= 1
                shape = [int(dim) for dim in value.dims[at:]]
                bias = [self._weight(shape)] if self._random.random() < 0.7 else []
                return [self._node(op, [value, self._weight(shape, 0.3, 1), *bias], value.dims,
                                   axis=self._signed(value, at), epsilon=1e-3)]  # fmt: skip
            case "BatchNormalization":
                size = [int(second)]
                spread = np.abs(self._numbers.standard_normal(size)) + 0.5
                given = [self._weight(size, 0.3, 1), self._weight(size), self._weight(size),
                         self._constant(spread.astype(FLOATS[self._float]))]  # fmt: skip
                return [self._node(op, [value, *given], value.dims)]
            case "LRN":
                return [self._node(op, [value], value.dims, size=self._random.choice((1, 3, 5)), bias=1.2)]
            case _:
                size = [int(second)]
                more = {"num_groups": 2} if op == "GroupNormalization" else {}
                given = [self._weight(size, 0.3, 1), self._weight(size)]
                return [self._node(op, [value, *given], value.dims, epsilon=1e-3, **more)]

    # ----- products ----------------------------------------------------------------------------------------

    def op_linear(self) -> list[Value]:
        value = self._draw(least_rank=2)
        inner = value.dims[-1]
        if not isinstance(inner, int):
            raise _Refused
        outer = self._random.choice((1, 3, 8, 16, 17, 32))
        product = self._node(
            "MatMul", [value, self._weight((inner, outer), inner**-0.5)], (*value.dims[:-1], outer)
        )
        if self._random.random() < 0.6:
            product = self._node("Add", [product, self._weight((outer,))], product.dims)
        if self._random.random() < 0.4:
            product = self._node(self._random.choice(UNARY), [product], product.dims)
        return [product]

    def op_gemm(self) -> list[Value]:
        value = self._draw(lambda one: one.is_float and len(one.dims) == 2 and isinstance(one.dims[1], int))
        inner, outer = int(value.dims[1]), self._random.choice((1, 5, 16, 24))
        turned = self._random.randint(0, 1)
        weight = self._weight((outer, inner) if turned else (inner, outer), inner**-0.5)
        given: list[Value | None] = [value, weight]
        if self._random.random() < 0.7:
            given.append(self._weight(self._random.choice(((outer,), (1, outer), (1,), ()))))
        return [self._node("Gemm", given, (value.dims[0], outer), transB=turned,
                           alpha=self._random.choice((1.0, 0.5)), beta=self._random.choice((1.0, 2.0)))]  # fmt: skip

    def op_product(self) -> list[Value]:
        """Multiply x by its own transpose, or two values."""
        value = self._draw(least_rank=2)
        rank = len(value.dims)
        if rank == 2 and value.dims[0] == "N":
            raise _Refused
        *outer, rows, inner = value.dims
        order = [*range(rank - 2), rank - 1, rank - 2]
        other = self._node(self._random.choice(UNARY), [value], value.dims)
        turned = self._node("Transpose", [other], (*outer, inner, rows), perm=order)
        if self._random.random() < 0.5:
            product = self._node("MatMul", [value, turned], (*outer, rows, rows))
        else:
            product = self._node("MatMul", [turned, value], (*outer, inner, inner))
        scaled = self._node("Mul", [product, self._scalar(0.2, value)], product.dims)
        return [scaled]

    def op_attention(self) -> list[Value]:
        value = self._draw(
            lambda one: (
                one.is_float and len(one.dims) == 3 and one.dims[0] == "N" and isinstance(one.dims[2], int)
            )
        )
        rows, length, width = value.dims
        heads, size = self._random.choice((1, 2, 3)), self._random.choice((2, 4, 8))
        scale = int(width) ** -0.5
        sides = []
        for turned in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
            one = self._node("MatMul", [value, self._weight((int(width), heads * size), scale)],
                             (rows, length, heads * size))  # fmt: skip
            wanted = self._ints([0, 0, heads, size])
            one = self._node("Reshape", [one, wanted], (rows, length, heads, size))
            dims = (rows, length, heads, size)
            sides.append(self._node("Transpose", [one], [dims[axis] for axis in turned], perm=turned))
        query, key, content = sides
        scores = self._node("MatMul", [query, key], (rows, heads, length, length))
        scores = self._node("Div", [scores, self._scalar(size**0.5, value)], scores.dims)
        weights = self._node("Softmax", [scores], scores.dims, axis=-1)
        answer = self._node("MatMul", [weights, content], (rows, heads, length, size))
        answer = self._node("Transpose", [answer], (rows, length, heads, size), perm=(0, 2, 1, 3))
        return [
            self._node("Reshape", [answer, self._ints([0, 0, heads * size])], (rows, length, heads * size))
        ]

    # ----- windows -----------------------------------------------------------------------------------------

    def _image(self) -> Value:
        return self._draw(lambda one: one.is_float and len(one.dims) == 4 and "S" not in one.dims)

    def _windows(
        self, value: Value, pads_most: Callable[[int], int], ceil: bool = False
    ) -> tuple[Mapping[str, Any], list[Dim]]:
        """Draw attributes of a window along the axes behind the second; return them with the sizes of the
        results."""
        attributes: dict[str, list[int]] = {"kernel_shape": [], "strides": [], "dilations": []}
        before, after, sizes = [], [], []
        for dim in value.dims[2:]:
            kernel = self._random.choice((1, 2, 3, 3, 5))
            stride, dilation = self._random.choice((1, 1, 2, 3)), self._random.choice((1, 1, 1, 2))
            if dim == "S":
                kernel, stride = self._random.choice((1, 3)), 1
                reach = dilation * (kernel - 1)
                pads = [reach // 2] * 2
                sizes.append(dim)
            else:
                reach = dilation * (kernel - 1)
                pads = [self._random.randint(0, pads_most(kernel)) for _ in range(2)]
                room = int(dim) + sum(pads) - reach - 1
                if room < 0:
                    raise _Refused
                if ceil and room % stride:
                    raise _Refused  # versions disagree about windows that begin behind the end
                sizes.append(room // stride + 1)
            attributes["kernel_shape"].append(kernel)
            attributes["strides"].append(stride)
            attributes["dilations"].append(dilation)
            before.append(pads[0])
            after.append(pads[1])
        attributes["pads"] = [*before, *after]
        return attributes, sizes

    def op_convolution(self) -> list[Value]:
        value = self._draw(
            lambda one: (
                one.is_float
                and len(one.dims) in (3, 4)
                and isinstance(one.dims[1], int)
                and "S" not in one.dims[:2]
            )
        )
        channels = int(value.dims[1])
        groups = self._random.choice([1, 1, *(part for part in (2, 3, channels) if channels % part == 0)])
        outer = (
            groups * self._random.choice((1, 2, 3, 8))
            if groups < 4
            else groups * self._random.choice((1, 1, 2))
        )
        attributes, sizes = self._windows(value, lambda kernel: kernel)
        shape = (outer, channels // groups, *attributes["kernel_shape"])
        given = [value, self._weight(shape, math.prod(shape[1:]) ** -0.5)]
        if self._random.random() < 0.6:
            given.append(self._weight((outer,)))
        made = self._node("Conv", given, (value.dims[0], outer, *sizes), group=groups, **attributes)
        if self._random.random() < 0.4:
            made = self._node(self._random.choice(("Relu", "Sigmoid", "Tanh")), [made], made.dims)
        return [made]

    def op_transposed_convolution(self) -> list[Value]:
        value = self._draw(lambda one: one.is_float and len(one.dims) in (3, 4) and "S" not in one.dims)
        channels = int(value.dims[1])
        groups = self._random.choice([1, 1, *(part for part in (2, 3) if channels % part == 0)])
        outer = groups * self._random.choice((1, 2, 3))
        kernel, stride = self._random.choice((2, 3)), self._random.choice((1, 2))
        pad, extra = self._random.randint(0, 1), self._random.randint(0, stride - 1)
        sizes = [(int(dim) - 1) * stride - 2 * pad + kernel + extra for dim in value.dims[2:]]
        sides = len(sizes)
        if min(sizes) < 1:
            raise _Refused
        weight = self._weight((channels, outer // groups, *[kernel] * sides), (channels * kernel) ** -0.5)
        return [self._node("ConvTranspose", [value, weight], (value.dims[0], outer, *sizes), group=groups,
                           kernel_shape=[kernel] * sides, strides=[stride] * sides, pads=[pad] * 2 * sides,
                           output_padding=[extra] * sides)]  # fmt: skip

    def op_pool(self) -> list[Value]:
        value = self._draw(lambda one: one.is_float and len(one.dims) in (3, 4) and "S" not in one.dims)
        attributes, sizes = self._windows(value, lambda kernel: kernel // 2)
        if self._random.random() < 0.5:
            return [self._node("MaxPool", [value], (*value.dims[:2], *sizes), **attributes)]
        if max(attributes["dilations"]) > 1:
            raise _Refused
        given = {name: one for name, one in attributes.items() if name != "dilations"}
        return [self._node("AveragePool", [value], (*value.dims[:2], *sizes),
                           count_include_pad=self._random.randint(0, 1), **given)]  # fmt: skip

    def op_pool_all(self) -> list[Value]:
        value = self._draw(lambda one: one.is_float and len(one.dims) in (3, 4) and "S" not in one.dims)
        op = self._random.choice(("GlobalAveragePool", "GlobalMaxPool"))
        return [self._node(op, [value], (*value.dims[:2], *[1] * (len(value.dims) - 2)))]


def random_network(seed: int) -> Network:
    """Make the network of a seed."""
    return _Builder(seed).build()


def cut(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the part of a model that computes one value, as its only output."""
    wanted, nodes = {name}, []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for field, kept in (
        (made.graph.node, nodes[::-1]),
        (made.graph.initializer, [one for one in model.graph.initializer if one.name in wanted]),
    ):
        del field[:]
        field.extend(kept)
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {one.name: one for one in (*inferred.graph.value_info, *model.graph.output)}
    del made.graph.output[:]
    made.graph.output.append(known[name])
    return made
