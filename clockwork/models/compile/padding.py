"""Make a compiled model accept shorter inputs by padding, where a proof shows that padding cannot change
answers.

A model that was compiled for 128 tokens can run 100 tokens if no value at the other 28 positions reaches the
answers. The proof follows the graph from its inputs. An axis is open if a request decides its size; behind
the true size, the tensor holds padding with arbitrary values. Element-wise operators keep padding and data
apart. An operator that mixes positions (a sum, a softmax, a matrix product along the axis) reads an operand
in which a mask has replaced the padding by the operator's neutral element: 0 for a sum, minus infinity for a
maximum. The true size is an additional input, a scalar. An operator without a rule ends the proof, and the
model then runs only in its compiled shapes.

On a CPU, sizes are not compiled, but requests of different lengths may share a batch. Each row is then padded
to the longest row, and has its own true size. The rules are the same, with a further symbol, ROWS, for the
batch dimension: no operator may mix rows, and a mask depends on the axis of the rows.

Invariant: within the true sizes (of each row), every tensor equals the tensor of the model without padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from clockwork.config.models import KNOWN_MAX
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import TensorSpec
from clockwork.models.compile.following import ELEMENTWISE, ROWS, Following, Padding, named_after
from clockwork.models.compile.sizes import Dim, Size, TensorFacts, constant_of, segments, size_of
from clockwork.models.split import constant_tensor
from clockwork.wire.tensors import Array

END = 2**31 - 1  # Smallest `end` of a slice that stands for the end of the axis, as exporters write it


def open_symbols(inputs: Sequence[TensorSpec], batches: bool) -> tuple[str, ...]:
    """Return the symbols of dimensions that may be open: named dimensions of the inputs, except the batch."""
    found = dict.fromkeys(
        dim for spec in inputs for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str) and is_named(dim) and not (batches and not axis)
    )  # fmt: skip
    return tuple(found)


def make_padded(model: onnx.ModelProto, shapes: Sequence[Sequence[int]], symbols: Sequence[str]) -> Padding:
    """Make the model answer correctly for inputs that are shorter than these shapes in the open dimensions.

    The model is changed in place: each symbol gets a size input, and operators get masks. The declared shapes
    of the inputs contain the symbols. Raises NotProven.
    """
    return _Proof(model, shapes, symbols).run()


def make_padded_by_row(
    model: onnx.ModelProto, shapes: Sequence[Sequence[int]], symbols: Sequence[str]
) -> Padding:
    """Make the model answer correctly for batches whose rows have different true sizes in the open
    dimensions.

    The model is changed in place: each symbol gets an input with the true size of each row, and operators get
    masks. shapes: of inputs with which the model runs. The declared shapes of the inputs contain the symbols;
    axis 0 is the batch. Raises NotProven.
    """
    return _Proof(model, shapes, symbols, by_row=True).run()


class _Proof(Following):
    """The rules of operators: each keeps padding from the answers, or raises NotProven."""

    # ----- shapes -----------------------------------------------------------------------------------

    def shape(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        dims = inputs[0].dims[slice(self.attribute("start", 0), self.attribute("end"))]
        return [TensorFacts((len(dims),), known=tuple(size_of(dim) for dim in dims))]

    def constant(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        tensor = constant_tensor(self._node)
        return [self._closed(self._node.output[0]) if tensor is None else constant_of(tensor)]

    def constant_of_shape(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        dims = self._wanted(inputs[0])
        value = self.attribute("value")
        number = numpy_helper.to_array(value).reshape(()) if value is not None else np.zeros((), np.float32)
        known = None
        if len(dims) == 1 and isinstance(dims[0], int) and dims[0] <= KNOWN_MAX and number.dtype.kind in "iu":
            known = (Size(int(number)),) * dims[0]
        return [TensorFacts(dims, known=known)]

    def _wanted(self, value: TensorFacts) -> tuple[Dim, ...]:
        """Return the elements of a shape tensor as dimensions. Raises NotProven where they are unknown."""
        if value.known is None:
            raise self._refuse("makes a shape that is only known when it runs")
        dims = []
        for size in value.known:
            if size.dim is None:
                raise self._refuse("makes an axis of an open one and something else")
            dims.append(size.dim)
        return tuple(dims)

    def range(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        known = [value.known for value in inputs]
        if any(sizes is None for sizes in known):
            raise self._refuse("makes a shape that is only known when it runs")
        start, limit, step = (sizes[0] for sizes in known if sizes is not None)
        if not any(sizes.terms for sizes in (start, limit, step)):
            return [self._closed(self._node.output[0])]
        dim = limit.plus(start, -1).dim
        if start.terms or step != Size(1) or not isinstance(dim, str):
            raise self._refuse("counts from or to something else than an open size")
        return [TensorFacts((dim,))]

    def expand(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        wanted = TensorFacts(self._wanted(inputs[1]))
        known = inputs[0].known
        dims = self._broadcast([inputs[0], wanted])
        if known is not None and (inputs[0].tells_size or dims == inputs[0].dims):
            if dims != inputs[0].dims:
                raise self._refuse("computes with the size of the inputs")
            return [TensorFacts(dims, known=known)]
        return [TensorFacts(dims)]

    def reshape(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        wanted = inputs[1].known
        if wanted is None:
            raise self._refuse("makes a shape that is only known when it runs")
        if source.known is not None:
            if all(size.dim == -1 or isinstance(size.dim, int) for size in wanted) and len(wanted) <= 1:
                count = len(source.known)
                return [TensorFacts((count,) if wanted else (), known=source.known)]
            if source.tells_size:
                raise self._refuse("computes with the size of the inputs")
        copies = not self.attribute("allowzero", 0)
        target: list[Size | None] = []
        for axis, size in enumerate(wanted):
            if size == Size(0) and copies:
                if axis >= len(source.dims):
                    raise self._refuse("keeps an axis that is not there")
                size = size_of(source.dims[axis])
            target.append(None if size == Size(-1) else size)
        return [self._regrouped(source, target)]

    def flatten(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        axis = self.axis(source, 1)
        product = Size(1)
        for dim in source.dims[:axis]:
            product = product.times(size_of(dim))
        return [self._regrouped(source, [product, None])]

    def _regrouped(self, source: TensorFacts, target: Sequence[Size | None]) -> TensorFacts:
        """Return the result of a reshape that keeps every open axis. target: None is the remaining size."""
        sizes, symbols = 1, [dim for dim in source.dims if isinstance(dim, str)]
        for dim in source.dims:
            sizes *= dim if isinstance(dim, int) else 1
        left, rest = list(symbols), sizes
        for size in target:
            if size is None:
                continue
            wanted = size.dim
            if isinstance(wanted, str) and wanted in left:
                left.remove(wanted)
            elif isinstance(wanted, int) and wanted > 0 and not rest % wanted:
                rest //= wanted
            else:
                raise self._refuse("makes an axis of an open one and something else")
        dims: list[Dim] = []
        for size in target:
            if size is not None:
                dims.append(size.dim or 0)
            elif not left:
                dims.append(rest)
                rest = 1
            elif len(left) == 1 and rest == 1:
                dims.append(left.pop())
            else:
                raise self._refuse("makes an axis of an open one and something else")
        if left or rest != 1 or segments(dims) != segments(source.dims):
            raise self._refuse("makes an axis of an open one and something else")
        open_from = [axis for axis, dim in enumerate(source.dims) if isinstance(dim, str)]
        open_to = [axis for axis, dim in enumerate(dims) if isinstance(dim, str)]
        return TensorFacts(
            tuple(dims), frozenset(to for at, to in zip(open_from, open_to, strict=True) if at in source.zero)
        )

    def unsqueeze(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        axes = self.numbers(inputs, 1, "axes") or []
        rank = len(source.dims) + len(axes)
        axes = [axis % rank for axis in axes]
        if source.known is not None and rank <= 1:
            return [TensorFacts((len(source.known),), known=source.known)]
        if source.tells_size:
            raise self._refuse("computes with the size of the inputs")
        kept = [axis for axis in range(rank) if axis not in axes]
        dims: list[Dim] = [1] * rank
        for axis, dim in zip(kept, source.dims, strict=True):
            dims[axis] = dim
        return [TensorFacts(tuple(dims), frozenset(kept[axis] for axis in source.zero))]

    def squeeze(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        axes = self.numbers(inputs, 1, "axes")
        if axes is None:
            if source.is_open:
                raise self._refuse("drops whichever axis is 1")
            return [self._closed(self._node.output[0])]
        axes = [axis % max(1, len(source.dims)) for axis in axes]
        if any(source.dims[axis] != 1 for axis in axes):
            raise self._refuse("drops an open axis")
        kept = [axis for axis in range(len(source.dims)) if axis not in axes]
        dims = tuple(source.dims[axis] for axis in kept)
        zero = frozenset(kept.index(axis) for axis in source.zero)
        return [TensorFacts(dims, zero, source.known)]

    def transpose(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        order = list(self.attribute("perm", range(len(source.dims))[::-1]))
        dims = tuple(source.dims[axis] for axis in order)
        return [TensorFacts(dims, frozenset(order.index(axis) for axis in source.zero), source.known)]

    def concat(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        axis = self.axis(inputs[0], 0)
        if all(value.known is not None and len(value.dims) == 1 for value in inputs):
            known = tuple(size for value in inputs for size in value.known or ())
            return [TensorFacts((len(known),), known=known if len(known) <= KNOWN_MAX else None)]
        if any(value.tells_size for value in inputs):
            raise self._refuse("computes with the size of the inputs")
        total = 0
        others = {value.dims[:axis] + value.dims[axis + 1 :] for value in inputs}
        for value in inputs:
            dim = value.dims[axis]
            if isinstance(dim, str):
                raise self._refuse("appends to an open axis")
            total += dim
        if len(others) != 1:
            raise self._refuse("joins tensors of different shapes")
        (rest,) = others
        return [TensorFacts((*rest[:axis], total, *rest[axis:]))]

    def split(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        axis = self.axis(source, 0)
        if isinstance(source.dims[axis], str):
            raise self._refuse("takes an open axis apart")
        if source.known is not None or any(value.tells_size for value in inputs[1:]):
            raise self._refuse("computes with the size of the inputs")
        found = []
        for name in self._node.output:
            shape = self._concrete.get(name)
            if shape is None:
                raise self._refuse("makes a shape that is only known when it runs")
            found.append(TensorFacts((*source.dims[:axis], shape[axis], *source.dims[axis + 1 :])))
        return found

    def slice(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        starts, ends = inputs[1].known, inputs[2].known
        if starts is None or ends is None:
            raise self._refuse("makes a shape that is only known when it runs")
        axes = self.numbers(inputs, 3, "axes")
        steps = self.numbers(inputs, 4, "steps") or [1] * len(starts)
        axes = list(range(len(starts))) if axes is None else [axis % len(source.dims) for axis in axes]
        if source.known is not None:
            if starts[0].terms or ends[0].terms:
                raise self._refuse("computes with the size of the inputs")
            known = source.known[starts[0].constant : ends[0].constant : steps[0]]
            return [TensorFacts((len(known),), known=known)]
        dims = list(source.dims)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            dims[axis] = self._sliced(dims[axis], start, end, step)
        zero = frozenset(axis for axis in source.zero if isinstance(dims[axis], str))
        return [TensorFacts(tuple(dims), zero)]

    def _sliced(self, dim: Dim, start: Size, end: Size, step: int) -> Dim:
        if isinstance(dim, int) and not start.terms and not end.terms:
            return len(range(dim)[start.constant : end.constant : step])
        if isinstance(dim, int):  # a slice of a constant table, to the length of the input
            taken, begin = end.plus(start, -1).dim, start.constant
            if (
                isinstance(taken, str)
                and step == 1
                and not start.terms
                and taken != ROWS
                and 0 <= begin <= dim - self._sizes[taken]
            ):
                self._limits[taken] = min(dim - begin, self._limits.get(taken, dim))
                return taken
        elif start == Size(0) and step == 1:
            if end == size_of(dim) or (not end.terms and end.constant >= END):
                return dim
            # A true size is at least 1, so that the first position is never padding.
            if end == Size(1) and dim != ROWS:
                return 1
        raise self._refuse("takes a piece out of an open axis")

    def gather(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source, indices = inputs
        axis = self.axis(source, 0)
        if source.known is not None and indices.known is not None and not indices.tells_size:
            found = [source.known[size.constant] for size in indices.known]
            return [TensorFacts(indices.dims, known=tuple(found))]
        if source.tells_size or indices.tells_size:
            raise self._refuse("computes with the size of the inputs")
        if isinstance(source.dims[axis], str) and (
            source.dims[axis] == ROWS
            or indices.known is None
            or any(size != Size(0) for size in indices.known)
        ):
            raise self._refuse("picks positions of an open axis")
        return [TensorFacts((*source.dims[:axis], *indices.dims, *source.dims[axis + 1 :]))]

    def one_hot(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        (depth,) = self.integers(inputs[1])
        rank = len(inputs[0].dims) + 1
        axis = int(self.attribute("axis", -1)) % rank
        return [TensorFacts((*inputs[0].dims[:axis], depth, *inputs[0].dims[axis:]))]

    def tile(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        dims = list(inputs[0].dims)
        if inputs[0].tells_size:
            raise self._refuse("computes with the size of the inputs")
        for axis, times in enumerate(self.integers(inputs[1])):
            dim = dims[axis]
            if isinstance(dim, int):
                dims[axis] = dim * times
            elif times != 1:
                raise self._refuse("repeats an open axis")
        return [TensorFacts(tuple(dims))]

    # ----- operators that mix positions ------------------------------------------------------------------

    def softmax(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        axis = self.axis(source, -1 if self._opset >= 13 else 1)
        if self._opset < 13 and axis != len(source.dims) - 1 and source.is_open:
            raise self._refuse(f"of opset {self._opset} is over several axes")
        if not isinstance(source.dims[axis], str):
            return [TensorFacts(source.dims)]
        if self._node.op_type == "Hardmax":
            raise self._refuse("mixes positions")
        self.mask(0, [axis], -math.inf)
        return [
            TensorFacts(source.dims, frozenset([axis]) if self._node.op_type == "Softmax" else frozenset())
        ]

    def reduce(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        rank = len(source.dims)
        keeps = self.attribute("keepdims", 1)
        if source.tells_size:
            return self._product(source)
        given = self.numbers(inputs, 1, "axes")
        if not given and self.attribute("noop_with_empty_axes", 0):
            return [source]
        axes = sorted({axis % rank for axis in given}) if given else list(range(rank))
        mixed = [axis for axis in axes if isinstance(source.dims[axis], str)]
        if mixed:
            neutral = _NEUTRAL.get(self._node.op_type)
            if neutral is None:
                raise self._refuse("mixes positions")
            missing = [axis for axis in mixed if axis not in source.zero or neutral]
            self.mask(0, missing, neutral)
            if self._node.op_type == "ReduceMean":
                self._mean(source, axes, self.attribute("keepdims", 1))
        dims = [
            1 if axis in axes else dim for axis, dim in enumerate(source.dims) if keeps or axis not in axes
        ]
        return [TensorFacts(tuple(dims))]

    def _mean(self, source: TensorFacts, axes: Sequence[int], keepdims: int) -> None:
        symbols = [dim for axis in axes if isinstance(dim := source.dims[axis], str)]
        if ROWS in symbols:
            raise self._refuse("mixes rows")
        if len(symbols) > 1:
            raise self._refuse("is a mean over two open axes")
        others = math.prod(dim for axis in axes if isinstance(dim := source.dims[axis], int))
        self.mean(source.dims, axes, symbols[0], others, keepdims)

    def _product(self, source: TensorFacts) -> list[TensorFacts]:
        """The result of ReduceProd or ReduceSum on a shape."""
        found: Size | None = None
        for size in source.known or ():
            if found is None:
                found = size
            elif self._node.op_type == "ReduceProd":
                found = found.times(size)
            elif self._node.op_type == "ReduceSum":
                found = found.plus(size)
            else:
                found = None
            if found is None:
                raise self._refuse("computes with the size of the inputs")
        assert found is not None
        keeps = self.attribute("keepdims", 1)
        return [TensorFacts((1,) if keeps else (), known=(found,))]

    def arg_max(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        axis = self.axis(source, 0)
        if isinstance(source.dims[axis], str):
            if self.attribute("select_last_index", 0):
                raise self._refuse("may choose the last of equal positions")
            self.mask(0, [axis], -math.inf if self._node.op_type == "ArgMax" else math.inf)
        keeps = self.attribute("keepdims", 1)
        dims = [1 if at == axis else dim for at, dim in enumerate(source.dims) if keeps or at != axis]
        return [TensorFacts(tuple(dims))]

    def cum_sum(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        (axis,) = self.integers(inputs[1])
        axis %= len(source.dims)
        if source.dims[axis] == ROWS:
            raise self._refuse("mixes rows")
        if isinstance(source.dims[axis], str) and self.attribute("reverse", 0):
            self.mask(0, [axis], 0)
        return [TensorFacts(source.dims)]

    def mat_mul(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        left, right = inputs
        if len(left.dims) < 2 or len(right.dims) < 2:
            if left.is_open or right.is_open:
                raise self._refuse("multiplies by a vector")
            return [self._closed(self._node.output[0])]
        if left.dims[-1] != right.dims[-2]:
            raise self._refuse(f"joins an axis of {left.dims[-1]} with one of {right.dims[-2]}")
        if isinstance(left.dims[-1], str):
            for at, value, axis in ((0, left, len(left.dims) - 1), (1, right, len(right.dims) - 2)):
                if axis not in value.zero:
                    self.mask(at, [axis], 0)
        outer = self._broadcast([TensorFacts(left.dims[:-2]), TensorFacts(right.dims[:-2])])
        return [TensorFacts((*outer, left.dims[-2], right.dims[-1]))]

    def gemm(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        left = inputs[0].dims[::-1] if self.attribute("transA", 0) else inputs[0].dims
        right = inputs[1].dims[::-1] if self.attribute("transB", 0) else inputs[1].dims
        if left[1] != right[0] or isinstance(left[1], str):
            raise self._refuse("mixes positions")
        dims = (left[0], right[1])
        if len(inputs) > 2 and self._broadcast([TensorFacts(dims), inputs[2]]) != dims:
            raise self._refuse("adds a tensor of another shape")
        return [TensorFacts(dims)]

    def normalised(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        """Normalisation over the last axes, from ``axis`` on."""
        source = inputs[0]
        axis = self.axis(source, -1)
        if any(isinstance(dim, str) for dim in source.dims[axis:]):
            raise self._refuse("mixes positions")
        if any(value.is_open for value in inputs[1:]):
            raise self._refuse("has open weights")
        inner = (*source.dims[:axis], *[1] * (len(source.dims) - axis))
        return [TensorFacts(source.dims), *(TensorFacts(inner) for _ in self._node.output[1:])]

    def by_channel(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        """Batch normalisation, with parameters for each channel, axis 1."""
        if any(value.is_open for value in inputs[1:]) or isinstance(inputs[0].dims[1], str):
            raise self._refuse("mixes positions")
        if self.attribute("training_mode", 0):
            raise self._refuse("normalises over positions")
        return [TensorFacts(inputs[0].dims)]

    def quantise(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        if any(value.is_open for value in inputs[1:]):
            raise self._refuse("has open scales")
        if any(value.dims and math.prod(int(dim) for dim in value.dims) != 1 for value in inputs[1:]):
            axis = self.axis(inputs[0], 1)
            if self.attribute("block_size", 0) or isinstance(inputs[0].dims[axis], str):
                raise self._refuse("has a scale for each position")
        return [TensorFacts(inputs[0].dims)]

    def conv(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        """A convolution. Padding becomes 0, like the zeros that it reads beyond an unpadded input's end."""
        source, weight = inputs[:2]
        if any(value.is_open for value in inputs[1:]) or any(
            isinstance(dim, str) and not (dim == ROWS and axis == 0)
            for axis, dim in enumerate(source.dims[:2])
        ):
            raise self._refuse("mixes positions")
        shape = self._concrete.get(self._node.output[0])
        spatial = len(source.dims) - 2
        mixed = [axis for axis in range(spatial) if isinstance(source.dims[2 + axis], str)]
        strides = self.attribute("strides", [1] * spatial)
        dilations = self.attribute("dilations", [1] * spatial)
        pads = self.attribute("pads", [0] * 2 * spatial)
        same = self.attribute("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
        if shape is None or self.attribute("auto_pad", b"NOTSET") == b"VALID":
            raise self._refuse("makes another size of an open axis")
        dims: list[Dim] = [source.dims[0], *shape[1:]]
        for axis in mixed:
            seen = dilations[axis] * (int(weight.dims[2 + axis]) - 1)
            if strides[axis] != 1 or not (same or pads[axis] + pads[spatial + axis] == seen):
                raise self._refuse("makes another size of an open axis")
            dims[2 + axis] = source.dims[2 + axis]
        self.mask(0, [2 + axis for axis in mixed if int(weight.dims[2 + axis]) > 1], 0)
        return [TensorFacts(tuple(dims))]

    def global_pool(self, inputs: Sequence[TensorFacts]) -> list[TensorFacts]:
        source = inputs[0]
        mixed = [axis for axis, dim in enumerate(source.dims) if isinstance(dim, str) and dim != ROWS]
        if any(axis < 2 for axis in mixed) or len(mixed) > 1:
            raise self._refuse("mixes positions")
        is_mean = self._node.op_type == "GlobalAveragePool"
        if mixed:
            self.mask(0, mixed, 0 if is_mean else -math.inf)
            if is_mean:
                self._mean(source, range(2, len(source.dims)), 1)
        return [TensorFacts((*source.dims[:2], *[1] * (len(source.dims) - 2)))]


_NEUTRAL: Mapping[str, float] = {
    "ReduceSum": 0, "ReduceMean": 0, "ReduceL1": 0, "ReduceL2": 0, "ReduceSumSquare": 0, "ReduceProd": 1,
    "ReduceMax": -math.inf, "ReduceMin": math.inf, "ReduceLogSumExp": -math.inf,
}  # fmt: skip

_Proof.rules = {
    **dict.fromkeys((*ELEMENTWISE, "Trilu"), _Proof.each),
    **dict.fromkeys(("Identity", "Dropout"), _Proof.moved),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _Proof.softmax),
    **dict.fromkeys([*_NEUTRAL, "ReduceLogSum"], _Proof.reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _Proof.arg_max),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "LpNormalization"), _Proof.normalised),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _Proof.quantise),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _Proof.global_pool),
    "BatchNormalization": _Proof.by_channel,
    **named_after(_Proof, (
        "Cast", "Concat", "Constant", "ConstantOfShape", "Conv", "CumSum", "Expand", "Flatten", "Gather",
        "Gemm", "MatMul", "OneHot", "Range", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze",
    )),
}  # fmt: skip

_Proof.of_shapes = frozenset(ELEMENTWISE) | {
    "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Range", "ReduceProd", "ReduceSum",
    "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that compute shapes or take a shape as an operand."""


def padded_inputs(
    inputs: Sequence[Array], shapes: Sequence[Sequence[int]], filling: Sequence[Array]
) -> list[Array]:
    """Return the inputs padded to these shapes, with values of ``filling``, which has these shapes."""
    found = []
    for array, shape, behind in zip(inputs, shapes, filling, strict=True):
        whole = np.array(behind).reshape(shape)
        whole[tuple(slice(size) for size in array.shape)] = array
        found.append(whole)
    return found
