"""Prove about a graph that no row of a batch can influence the answer for another row.

The proof follows axis 0 of the inputs through every operator. Every tensor is of one of four kinds:

- a tensor that is the same in every batch (a weight, or a size other than the batch size);
- a tensor with an axis that has a part for each row, computed from that row alone;
- a list of sizes, which may depend on the number of rows;
- a tensor in which rows may mix.

A model batches if every output has a row for each row of the inputs. An operator without a rule counts as
mixing rows, so that a proof is never a guess. Other axes may be of any size; an unknown size is a new symbol.

Rounding is not part of the proof: a kernel may add the same numbers in another order for another number of
rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from clockwork.device.operators import DOMAIN
from clockwork.formats.interface import is_named
from clockwork.models.compile.following import ELEMENTWISE, ROWS, named_after
from clockwork.models.compile.functions import inlined
from clockwork.models.compile.row_facts import INVALID, ONE, ElementRange, Fact, Met, RowAxis, Rule
from clockwork.models.compile.row_shapes import ShapeRules
from clockwork.models.compile.sizes import MADE, NotProven, Size, size_of
from clockwork.models.onnx_import import optional_inputs, real_inputs


def prove_rows(model: onnx.ModelProto, masked: bool = False) -> None:
    """Raise NotProven unless every output has a row for each row of the inputs, computed from that row alone.

    The text names the operator that may mix rows. Weights in other files are not read. masked: the padding
    that tokenizers add for the longest text of a batch is masked (models.lengths.mask_texts).
    """
    model = inlined(model)
    facts: dict[str, Fact] = {}
    optional = optional_inputs(model)
    for value in real_inputs(model):
        if value.name in optional:  # an optional input has a single value for the whole batch
            facts[value.name] = Fact(tuple(Size(dim) for dim in optional[value.name].shape))
            continue
        dims = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not axis:
                dims.append(size_of(ROWS))
            elif dim.HasField("dim_value"):
                dims.append(Size(dim.dim_value))
            else:
                named = is_named(dim.dim_param)
                symbol = f"dim {dim.dim_param}" if named else f"axis {axis} of {value.name}"
                # A request may be empty along any axis but that of the rows
                dims.append(size_of(MADE + symbol))

        if not dims:
            raise NotProven(f"input {value.name!r} has no rows")
        facts[value.name] = Fact(tuple(dims), RowAxis(0))
    opsets = sorted({opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")})
    if len(opsets) > 1:
        raise NotProven("the model has two opsets")
    try:
        outputs = RowRules(opsets[0] if opsets else 1, masked).follow(model.graph, facts)
    except RecursionError:
        raise NotProven("the model's bodies are too deep to be followed") from None
    except INVALID as error:
        raise NotProven(f"the model cannot be followed: {error}") from None
    for declared, fact in zip(model.graph.output, outputs, strict=True):
        if fact.met:
            raise NotProven(fact.met)
        if fact.place != RowAxis(0):
            raise NotProven(f"output {declared.name!r} has no row for each row of the inputs")


class RowRules(ShapeRules):
    """The rules of all operators."""

    def __init__(self, opset: int, masked: bool = False) -> None:
        super().__init__(opset)
        self._masked = masked

    # ----- along axes -----------------------------------------------------------------------------

    def softmax(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs)
        source = inputs[0]
        rank = len(self.dims(source))
        # only ONNX Runtime's quantised operator has the attribute
        opset = int(self.attribute("opset", self._opset))
        axis = self.axis(rank, -1 if opset >= 13 else 1)
        mixed = [axis] if opset >= 13 else list(range(axis, rank))
        if source.place is not None and source.place.axis in mixed:
            raise Met("mixes rows")
        return [dataclasses.replace(source, known=None)]

    def along(self, inputs: Sequence[Fact]) -> list[Fact]:
        """An operator that mixes elements along ``axis`` (by default the last axis) and keeps the shape."""
        self.others_are_same(inputs)
        source = inputs[0]
        self._not_along(source, self.axis(len(self.dims(source)), -1), "mixes rows")
        return [dataclasses.replace(source, known=None)]

    def cum_sum(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        (axis,) = self.numbers(inputs, 1, "axis") or [0]
        self._not_along(source, axis % len(self.dims(source)), "mixes rows")
        return [dataclasses.replace(source, known=None)]

    def transformed(self, inputs: Sequence[Fact]) -> list[Fact]:
        """DFT, which mixes elements along an axis. The last axis holds complex numbers."""
        self.others_are_same(inputs)
        source = inputs[0]
        rank = len(self.dims(source))
        given = self.numbers(inputs, 2, "axis")
        axis = (given[0] if given else 1 if self._opset < 20 else -2) % rank
        self._not_along(source, axis, "mixes rows")
        self._not_along(source, rank - 1, "mixes rows")
        return [self._resized(self._resized(source, axis, None), rank - 1, None)]

    def windowed(self, inputs: Sequence[Fact]) -> list[Fact]:
        """STFT: axis 0 is the batch of signals; the result is [batch, windows, frequencies, 2]."""
        self.others_are_same(inputs)
        source = inputs[0]
        if source.place is not None and source.place.axis != 0:
            raise Met("mixes rows")
        return [Fact((self.dims(source)[0], *self.fresh_dims(2), Size(2)), source.place, source.even)]

    def normalised(self, inputs: Sequence[Fact]) -> list[Fact]:
        """Normalisation over the last axes, from ``axis`` on."""
        self.others_are_same(inputs)
        source = inputs[0]
        rank = len(self.dims(source))
        axis = self.axis(rank, -1)
        if source.place is not None and source.place.axis >= axis:
            raise Met("mixes rows")
        inner = (*self.dims(source)[:axis], *[ONE] * (rank - axis))
        return [source, *[Fact(inner, source.place, source.even)] * (len(self._node.output) - 1)]

    def reduce(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        if source.known is not None:
            return [self._total(source, self.numbers(inputs, 1, "axes"))]
        if source.dims is None and source.is_same:
            return [Fact(None)]
        rank = len(self.dims(source))
        given = self.numbers(inputs, 1, "axes")
        if not given and self.flag("noop_with_empty_axes", 0):
            return [source]
        axes = {axis % rank for axis in given} if given else set(range(rank))
        if source.place is not None and source.place.axis in axes:
            raise Met("mixes rows")
        if not self.flag("keepdims", 1):
            return [self._without(source, axes)]
        dims = tuple(ONE if axis in axes else dim for axis, dim in enumerate(self.dims(source)))
        return [Fact(dims, source.place, source.even)]

    def _total(self, source: Fact, axes: Sequence[int] | None) -> Fact:
        """The result of a reduction (ReduceProd, ReduceSum ...) of sizes."""
        if not axes and self.flag("noop_with_empty_axes", 0):
            return source
        found: Size | None = None
        kept = self._node.op_type in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
        if not kept and source.counts:
            raise Met("computes with the number of rows")
        for size in (source.known or ()) if kept else ():
            if found is None:
                found = size
            elif self._node.op_type == "ReduceProd":
                found = found.times(size)
            elif self._node.op_type == "ReduceSum":
                found = found.plus(size)
            elif source.counts:
                raise Met("computes with the number of rows")
            else:
                found = None
                break
        dims = (ONE,) if self.flag("keepdims", 1) and source.dims else ()
        return Fact(dims, known=None if found is None else (found,))

    def arg_max(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        axis = self.axis(len(self.dims(source)), 0)
        self._not_along(source, axis, "mixes rows")
        kept = self.flag("keepdims", 1)
        found = self._resized(source, axis, ONE) if kept else self._without(source, {axis})
        return [dataclasses.replace(found, span=ElementRange(Size(0), self.dims(source)[axis]))]

    def top_k(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs)
        source = inputs[0]
        axis = self.axis(len(self.dims(source)), -1)
        self._not_along(source, axis, "mixes rows")
        given = self.attribute("k")
        wanted = (Size(int(given)),) if given is not None else inputs[1].known
        return [self._resized(source, axis, wanted[0] if wanted else None)] * 2

    # ----- products -------------------------------------------------------------------------------

    def mat_mul(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs, 2)
        left, right = inputs[:2]
        if left.is_same and right.is_same and (left.dims is None or right.dims is None):
            return [Fact(None)]
        a, b = self.dims(left), self.dims(right)
        self._not_along(left, len(a) - 1, "mixes rows")
        self._not_along(right, max(0, len(b) - 2), "mixes rows")
        outer = self.broadcast([self._outer(left), self._outer(right)])
        rank = max(len(a), len(b), 2)
        place, found = outer.place, [outer.place is not None]
        for fact, dims, axis, to in ((left, a, len(a) - 2, rank - 2), (right, b, len(b) - 1, rank - 1)):
            if fact.place is not None and len(dims) > 1 and fact.place.axis == axis:
                place = fact.place.on(to)
                found.append(True)
        if sum(found) > 1 or (left.place and right.place and outer.place is None):
            raise Met("joins rows with others")
        ends = (a[-2] if len(a) > 1 else ONE, b[-1] if len(b) > 1 else ONE)
        whole = Fact((*self.dims(outer), *ends), place)
        vectors = {rank - 2} if len(a) < 2 else set()
        return [self._without(whole, vectors | ({rank - 1} if len(b) < 2 else set()))]

    def _outer(self, fact: Fact) -> Fact:
        """Return the fact about the leading axes of a stack of matrices: all but the last two."""
        dims = self.dims(fact)[:-2]
        place = fact.place if fact.place is not None and fact.place.axis < len(dims) else None
        return Fact(dims, place, fact.even)

    def gemm(self, inputs: Sequence[Fact]) -> list[Fact]:
        def turned(fact: Fact, name: str) -> Fact:
            if not self.flag(name, 0):
                return fact
            dims = self.dims(fact)
            return Fact(dims[::-1], fact.place and fact.place.on(1 - fact.place.axis), fact.even)

        left, right = turned(inputs[0], "transA"), turned(inputs[1], "transB")
        (product,) = self.mat_mul([left, right])
        if len(inputs) > 2 and inputs[2].dims:
            product = self.broadcast([product, inputs[2]])
        return [product]

    def fused_mat_mul(self, inputs: Sequence[Fact]) -> list[Fact]:
        """ONNX Runtime's FusedMatMul, which may swap the last two axes of either operand."""
        if self.flag("transBatchA", 0) or self.flag("transBatchB", 0):
            raise Met("swaps axes of batches")
        operands = []
        for fact, name in zip(inputs, ("transA", "transB"), strict=True):
            rank = len(self.dims(fact))
            if self.flag(name, 0) and rank > 1:
                order = [*range(rank - 2), rank - 1, rank - 2]
                place = fact.place and fact.place.on(order.index(fact.place.axis))
                fact = Fact(tuple(self.dims(fact)[axis] for axis in order), place)
            operands.append(fact)
        return self.mat_mul(operands)

    def einsum(self, inputs: Sequence[Fact]) -> list[Fact]:
        equation = self.attribute("equation").decode().replace(" ", "")
        if "." in equation:
            raise Met("has an ellipsis, which is not followed")
        terms, _, result = equation.partition("->")
        terms = terms.split(",")
        if "->" not in equation:
            every = "".join(terms)
            result = "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
        sizes: dict[str, Size] = {}
        letters: set[str] = set()
        parts: set[tuple[Size, Size]] = set()
        for term, fact in zip(terms, inputs, strict=True):
            for letter, dim in zip(term, self.dims(fact), strict=True):
                sizes[letter] = self._joined([sizes.get(letter, ONE), dim])
            if fact.place is not None:
                letters.add(term[fact.place.axis])
                parts.add((fact.place.outer, fact.place.inner))
        if not letters:
            return [Fact(tuple(sizes[letter] for letter in result))]
        (letter, *others), ((outer, inner), *more) = letters, parts
        for term, fact in zip(terms, inputs, strict=True):
            if term.count(letter) > 1 or (fact.place is None and letter in term):
                raise Met("joins rows with others")
        if others or more or result.count(letter) != 1:
            raise Met("mixes rows")
        sizes[letter] = outer.times(inner).times(size_of(ROWS))
        return [Fact(tuple(sizes[axis] for axis in result), RowAxis(result.index(letter), outer, inner))]

    # ----- images, by channel ------------------------------------------------------------------------

    def spatial(self, inputs: Sequence[Fact]) -> list[Fact]:
        """Convolutions, pools and others that mix all axes but the first. The indices that a
        pool returns as its second output count from the first row, and so mix rows."""
        self.others_are_same(inputs)
        source = inputs[0]
        if source.place is not None and source.place.axis != 0:
            raise Met("mixes rows")
        if self.flag("channels_last", 0):
            raise Met("has its channels last, which is not followed")
        shape = self.dims(source)
        name = self._node.op_type
        weight = inputs[1] if "Conv" in name else None
        channels = shape[1]
        if weight is not None and weight.dims is not None:
            channels = weight.dims[0]
            if name == "ConvTranspose":
                channels = weight.dims[1].times(Size(int(self.attribute("group", 1))))
        sizes = [self._slid(axis, dim, weight) for axis, dim in enumerate(shape[2:])]
        return [Fact((shape[0], channels, *sizes), source.place, source.even)]

    def _slid(self, axis: int, dim: Size, weight: Fact | None) -> Size:
        """Return the size of a spatial axis after a convolution or a pool; a new symbol if it is unknown."""
        name = self._node.op_type
        if "Global" in name:
            return ONE
        kernel = self.attribute("kernel_shape")
        if kernel is None and weight is not None and weight.dims is not None:
            sizes = weight.dims[2:]
            kernel = None if any(size.terms for size in sizes) else [size.constant for size in sizes]
        if kernel is None or name == "ConvTranspose" or self.flag("ceil_mode", 0):
            return self.fresh()
        count = len(kernel)
        step = self.attribute("strides", [1] * count)[axis]
        seen = self.attribute("dilations", [1] * count)[axis] * (kernel[axis] - 1)
        pads = self.attribute("pads", [0] * 2 * count)
        added = pads[axis] + pads[axis + count]
        padding = self.attribute("auto_pad", b"NOTSET")
        if padding == b"VALID":
            added = 0
        if padding in (b"SAME_UPPER", b"SAME_LOWER"):
            return dim if step == 1 else Size(-(-dim.constant // step)) if not dim.terms else self.fresh()
        if step == 1:
            return dim.plus(Size(added - seen))
        return Size((dim.constant + added - seen - 1) // step + 1) if not dim.terms else self.fresh()

    def quantised_conv(self, inputs: Sequence[Fact]) -> list[Fact]:
        return self.spatial([inputs[0], inputs[3], *inputs[1:3], *inputs[4:]])

    def quantised_mat_mul(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same([inputs[1], inputs[2], *inputs[4:]], 0)
        return self.mat_mul([inputs[0], inputs[3]])

    def by_channel(self, inputs: Sequence[Fact]) -> list[Fact]:
        """Batch normalisation, with parameters for each channel, axis 1."""
        self.others_are_same(inputs)
        trains = self.flag("training_mode", 0) if self._opset >= 14 else len(self._node.output) > 1
        if trains:
            raise Met("normalises over rows")
        self._not_along(inputs[0], 1, "has parameters for each row")
        return [dataclasses.replace(inputs[0], known=None), *[Fact(None)] * (len(self._node.output) - 1)]

    def dropout(self, inputs: Sequence[Fact]) -> list[Fact]:
        """Dropout, which is the identity unless its input for training mode may be true."""
        self.others_are_same(inputs)
        trains = len(self._node.input) > 2 and self._node.input[2]
        if trains and (self._array(2) is None or self._array(2)):
            raise Met("draws random numbers")
        mask = dataclasses.replace(inputs[0], known=None, span=None)
        return [inputs[0], mask][: len(self._node.output)]

    def non_zero(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs, 0)
        return [Fact((Size(len(self.dims(inputs[0]))), self.fresh()))]

    def paired(self, inputs: Sequence[Fact]) -> list[Fact]:
        """GridSample: axis 0 of both inputs is the batch."""
        source, grid = inputs
        if source.place != RowAxis(0) or grid.place != RowAxis(0):
            raise Met("mixes rows")
        return [Fact((*self.dims(source)[:2], *self.dims(grid)[1:-1]), RowAxis(0))]

    def within_first(self, inputs: Sequence[Fact]) -> list[Fact]:
        """An operator that mixes elements along all axes but the first and keeps the shape."""
        self.others_are_same(inputs)
        if inputs[0].place is not None and inputs[0].place.axis != 0:
            raise Met("mixes rows")
        return [dataclasses.replace(inputs[0], known=None)]

    def mean_variance(self, inputs: Sequence[Fact]) -> list[Fact]:
        axes = self.attribute("axes", [0, 2, 3])
        rank = len(self.dims(inputs[0]))
        if inputs[0].place is not None and inputs[0].place.axis in [axis % rank for axis in axes]:
            raise Met("mixes rows")
        return [inputs[0]]

    def quantise(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs)
        source = inputs[0]
        per_tensor = all(
            fact.dims is not None and all(dim == ONE for dim in fact.dims) for fact in inputs[1:]
        )
        if not per_tensor:
            self._not_along(source, self.axis(len(self.dims(source)), 1), "has a scale for each row")
        return [dataclasses.replace(source, known=None)]

    def resize(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs[:3])
        if any(fact.place is not None for fact in inputs[3:]):
            raise Met("has parameters that depend on the rows")
        source = inputs[0]
        dims = self.dims(source)
        at = {"Upsample": 1}.get(self._node.op_type, 2 if self._opset >= 11 else 1)
        scales = self.attribute("scales")
        if scales is None and (given := self._array(at)) is not None and given.size:
            scales = given.tolist()
        sizes = inputs[3].known if len(inputs) > 3 and self._node.input[3] else None
        axes = [axis % len(dims) for axis in self.attribute("axes", range(len(dims)))]
        crops = self.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
        fits = self.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch"
        if (crops or fits) and source.place is not None and source.place.axis in axes:
            raise Met("is not known to leave the number of rows")
        if scales is not None:
            factors = dict(zip(axes, scales, strict=True))
            kept = [axis for axis in range(len(dims)) if factors.get(axis, 1) == 1]
        elif sizes is not None:
            asked = dict(zip(axes, sizes, strict=True))
            kept = [axis for axis in range(len(dims)) if axis not in asked or asked[axis] == dims[axis]]
        else:
            kept = []
        if source.place is not None and source.place.axis not in kept:
            raise Met("is not known to leave the number of rows")
        found = []
        for axis, dim in enumerate(dims):
            if fits:
                found.append(self.fresh())
            elif axis in kept:
                found.append(dim)
            elif scales is None and sizes is not None:
                found.append(asked[axis])
            elif scales is not None and not dim.terms:  # as ONNX Runtime computes the size, in float32
                found.append(Size(math.floor(np.float32(dim.constant) * np.float32(factors[axis]))))
            else:
                found.append(self.fresh())
        return [Fact(tuple(found), source.place, source.even)]

    def depth_to_space(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        if source.place is not None and source.place.axis != 0:
            raise Met("mixes rows")
        block = Size(int(self.attribute("blocksize", 1)))
        rows, channels, *space = self.dims(source)
        if self._node.op_type == "DepthToSpace":
            fewer, sizes = channels.over(block.times(block)), [dim.times(block) for dim in space]
            dims = (rows, fewer or self.fresh(), *sizes)
        else:
            smaller = [dim.over(block) or self.fresh() for dim in space]
            dims = (rows, channels.times(block).times(block), *smaller)
        return [Fact(dims, source.place, source.even)]

    # ----- sequences ---------------------------------------------------------------------------------

    def recurrent(self, inputs: Sequence[Fact]) -> list[Fact]:
        """LSTM, GRU and RNN: X, W, R, B, sequence_lens, initial_h, initial_c, P."""
        by_row = int(self.flag("layout", 0))
        source = inputs[0]
        steps, rows, _ = self.dims(source)
        if by_row:
            steps, rows = rows, steps
        where = {0: 0 if by_row else 1, 4: 0, 5: 0 if by_row else 1, 6: 0 if by_row else 1}
        for at, fact in enumerate(inputs):
            given = bool(self._node.input[at])
            if at not in where or (given and source.place is None):
                self.others_are_same([fact], 0)
            elif given and source.place is not None:
                if fact.place is None:
                    raise Met("has a state that is not the rows'")
                if fact.place != source.place.on(where[at]) and not (
                    fact.even and fact.place.axis == where[at]
                ):
                    raise Met("mixes rows")
        directions = Size(2 if self.attribute("direction", b"forward") == b"bidirectional" else 1)
        hidden = Size(int(self.attribute("hidden_size", 0)))
        if hidden == Size(0):
            hidden = self.fresh()

        def made(axis: int, *dims: Size) -> Fact:
            return Fact(dims, source.place and source.place.on(axis))

        if by_row:
            last = made(0, rows, directions, hidden)
            return [made(0, rows, steps, directions, hidden), last, last]
        last = made(1, directions, rows, hidden)
        return [made(2, steps, directions, rows, hidden), last, last]

    def reverse_sequence(self, inputs: Sequence[Fact]) -> list[Fact]:
        source, lengths = inputs
        batch, time = int(self.attribute("batch_axis", 1)), int(self.attribute("time_axis", 0))
        self._not_along(source, time, "mixes rows")
        if lengths.place is not None and (source.place is None or source.place != lengths.place.on(batch)):
            raise Met("joins rows with others")
        if source.place is not None and source.place.axis == batch and lengths.place is None:
            raise Met("has lengths that are not the rows'")
        return [dataclasses.replace(source, known=None)]

    def attention(self, inputs: Sequence[Fact]) -> list[Fact]:
        """ONNX's Attention, and ONNX Runtime's operators of that kind: axis 0 is the batch of every input
        that has rows, and only masks and weights may have none."""
        name = self._node.op_type if not self._node.domain else f"{self._node.domain}.{self._node.op_type}"
        mask, shared = _ATTENTION[name]
        for at, fact in enumerate(inputs):
            if not self._node.input[at]:
                continue
            if fact.place is None and at != mask and at not in shared:
                raise Met("has an input that is not the rows'")
            if fact.place is not None and (fact.place != RowAxis(0) or at in shared):
                raise Met("mixes rows")
        if name == "Attention" and len(inputs) > mask:
            place, rank = inputs[mask].place, len(self.dims(inputs[mask]))
            if place is not None and rank != 4:
                raise Met("has a mask whose rows are not on axis 0 of four")
            if place is None and rank == 4 and self.dims(inputs[mask])[0] != ONE:
                raise Met("joins rows with an axis that has other elements")
        elif name != "Attention" and len(inputs) > mask and self._node.input[mask]:
            given = inputs[mask]
            if given.place is None or self.dims(given)[0] != size_of(ROWS):
                raise Met("has a mask that is not the rows'")
        dims = self.dims(inputs[0])
        return [Fact((*dims[:-1], self.fresh()), RowAxis(0))]

    def skip_normalised(self, inputs: Sequence[Fact]) -> list[Fact]:
        """ONNX Runtime's sum of two tensors, normalised over the last axis. The last output is the sum."""
        self.others_are_same(inputs, 2)
        found = self.broadcast(inputs[:2])
        self._not_along(found, len(self.dims(found)) - 1, "mixes rows")
        none = Fact(None, met=f"operator {self._name()} has an output that is not followed")
        return [found, none, none, found][: len(self._node.output)]

    def embedded(self, inputs: Sequence[Fact]) -> list[Fact]:
        """ONNX Runtime's EmbedLayerNormalization of ids and segments, each [rows, tokens]."""
        self.others_are_same(inputs[2:7], 0)
        given = [inputs[at] for at in (0, 1, 7, 8) if at < len(inputs) and self._node.input[at]]
        if any(fact.place is not None and fact.place != RowAxis(0) for fact in given):
            raise Met("mixes rows")
        tokens = self.broadcast(given)
        rows, steps = self.dims(tokens)
        found = Fact((rows, steps, self.dims(inputs[2])[1]), tokens.place)
        return [found, Fact((rows,), tokens.place), found][: len(self._node.output)]

    def quantised_pair(self, inputs: Sequence[Fact]) -> list[Fact]:
        """ONNX Runtime's sum or product of quantised tensors, each followed by its scale and zero point."""
        self.others_are_same([*inputs[1:3], *inputs[4:]], 0)
        return [self.broadcast([inputs[0], inputs[3]])]

    def quantised_gemm(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same([*inputs[1:3], *inputs[4:]], 0)
        return self.gemm([inputs[0], inputs[3]])

    def of_table(self, inputs: Sequence[Fact]) -> list[Fact]:
        """Operators of ai.onnx.ml on each row of a table [rows, features]: trees, linear models, scalers."""
        source = inputs[0]
        self.others_are_same(inputs)
        dims = self.dims(source)
        if source.place is None:
            return [Fact(None)] * len(self._node.output)
        if source.place != RowAxis(0) or len(dims) != 2:
            raise Met("takes something else than a row for each row")
        name = self._node.op_type
        if name in ("TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"):
            return [Fact(dims[:1], RowAxis(0)), Fact((dims[0], self._scores()), RowAxis(0))]
        if name in _SAME_WIDTH:
            width = dims[1]
        elif name in _TARGETS:
            width = Size(int(self.attribute(_TARGETS[name], 1)))
        else:
            width = self.fresh()
        return [Fact((dims[0], width), RowAxis(0))]

    def _scores(self) -> Size:
        """Return the number of scores that ONNX Runtime's classifier gives each row of a table."""
        labels = max(
            len(self.attribute(name, ()))
            for name in ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
        )
        count = labels if self._node.op_type == "TreeEnsembleClassifier" else 0
        if self._node.op_type == "LinearClassifier":
            rows = len(self.attribute("intercepts", ()))
            # A binary classifier may have a single row of coefficients
            count = labels if rows == labels or (rows, labels) == (1, 2) else 0
        return Size(count) if count else self.fresh()

    def picked_features(self, inputs: Sequence[Fact]) -> list[Fact]:
        """ArrayFeatureExtractor: selects along the last axis. Rows may also be the indices."""
        source, indices = inputs
        if source.is_same and indices.place is not None and self.dims(source)[:-1] in ((), (ONE,)):
            return [self._reshaped(indices, [ONE, None])]
        self.others_are_same(inputs)
        if len(self.dims(source)) == 1:
            self._not_along(source, 0, "picks rows")
            return [Fact((ONE, self.fresh()))]
        self._not_along(source, len(self.dims(source)) - 1, "picks rows")
        picked = ONE
        for dim in self.dims(indices):
            picked = picked.times(dim)
        return [self._resized(source, len(self.dims(source)) - 1, picked)]

    def joined_features(self, inputs: Sequence[Fact]) -> list[Fact]:
        """FeatureVectorizer: concatenates tables [rows, n] along the columns."""
        if any(fact.place != RowAxis(0) or len(self.dims(fact)) != 2 for fact in inputs):
            raise Met("takes something else than a row for each row")
        return [Fact((self.dims(inputs[0])[0], self.fresh()), RowAxis(0))]

    def image(self, inputs: Sequence[Fact]) -> list[Fact]:
        """DecodeJpeg: decodes each file to an image [height, width, channels]."""
        source = inputs[0]
        height, width, channels = (
            Size(int(self.attribute(name, 0))) for name in ("height", "width", "channels")
        )
        return [Fact((*self.dims(source), height, width, channels), source.place)]

    def tokens(self, inputs: Sequence[Fact]) -> list[Fact]:
        """Tokenizers: map texts to ids, mask and types, each [rows, tokens]."""
        source = inputs[0]
        length = Size(int(self.attribute("length", 0)))
        if length == Size(0):
            if not self._masked:
                raise Met("pads texts to the longest of a batch")
            length = self.fresh()
        return [Fact((*self.dims(source), length), source.place)] * len(self._node.output)

    def last_axis_added(self, inputs: Sequence[Fact]) -> list[Fact]:
        """OneHotEncoder: appends an axis of categories."""
        source = inputs[0]
        count = len(self.attribute("cats_int64s", ())) or len(self.attribute("cats_strings", ()))
        return [Fact((*self.dims(source), Size(count)), source.place, source.even)]


_REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_SPATIAL = (
    "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool",
    "MaxPool",
)  # fmt: skip
_ATTENTION: Mapping[str, tuple[int, frozenset[int]]] = {
    "Attention": (3, frozenset()),
    "com.microsoft.Attention": (3, frozenset((1, 2))),
    "com.microsoft.MultiHeadAttention": (4, frozenset((3,))),
}
"""By attention operator: the number of the input that is the mask, and those of inputs that are weights."""

_SAME_WIDTH = frozenset(("Imputer", "Normalizer", "Scaler"))
"""Operators on tables that keep the number of columns."""

_TARGETS: Mapping[str, str] = {"LinearRegressor": "targets", "TreeEnsembleRegressor": "n_targets"}
"""By operator on tables: the attribute that gives the number of columns of the result."""


def _of(rule: Rule, *names: str, domain: str = "") -> dict[tuple[str, str], Rule]:
    return {(domain, name): rule for name in names}


_ML, _ORT = "ai.onnx.ml", "com.microsoft"

RowRules.rules = {
    **{("", name): rule for name, rule in named_after(RowRules, (
        "Attention", "Cast", "CastLike", "Compress", "Concat", "Constant", "ConstantOfShape", "CumSum",
        "Dropout", "Einsum", "Expand", "Flatten", "Gather", "GatherND", "Gemm", "Identity", "Loop",
        "NonZero", "OneHot", "Pad", "Range", "Reshape", "ReverseSequence", "Scan", "ScatterND", "Shape",
        "Size", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
    )).items()},
    **_of(RowRules.each, *ELEMENTWISE, "BitCast", "RegexFullMatch", "StringConcat"),
    **_of(RowRules.paired, "GridSample"),
    **_of(RowRules.in_last_two, "Trilu"),
    **_of(RowRules.softmax, "Hardmax", "LogSoftmax", "Softmax"),
    **_of(RowRules.reduce, *_REDUCE),
    **_of(RowRules.arg_max, "ArgMax", "ArgMin"),
    **_of(RowRules.along, "LpNormalization"),
    **_of(RowRules.normalised, "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    **_of(RowRules.quantise, "DequantizeLinear", "QuantizeLinear"),
    **_of(RowRules.spatial, *_SPATIAL),
    **_of(RowRules.within_first, "GroupNormalization", "InstanceNormalization", "LRN"),
    **_of(RowRules.depth_to_space, "DepthToSpace", "SpaceToDepth"),
    **_of(RowRules.gather_elements, "GatherElements", "Scatter", "ScatterElements"),
    **_of(RowRules.mat_mul, "MatMul", "MatMulInteger"),
    **_of(RowRules.recurrent, "GRU", "LSTM", "RNN"),
    **_of(RowRules.resize, "Resize", "Upsample"),
    ("", "BatchNormalization"): RowRules.by_channel,
    ("", "DFT"): RowRules.transformed,
    ("", "If"): RowRules.branch,
    ("", "MeanVarianceNormalization"): RowRules.mean_variance,
    ("", "QLinearConv"): RowRules.quantised_conv,
    ("", "QLinearMatMul"): RowRules.quantised_mat_mul,
    ("", "STFT"): RowRules.windowed,
    **_of(RowRules.each, "BiasGelu", "FastGelu", "Gelu", "QuickGelu", domain=_ORT),
    **_of(RowRules.spatial, "FusedConv", "QLinearAveragePool", "QLinearGlobalAveragePool", domain=_ORT),
    **_of(RowRules.softmax, "QLinearSoftmax", domain=_ORT),
    **_of(RowRules.fused_mat_mul, "FusedMatMul", domain=_ORT),
    **_of(RowRules.gemm, "FusedGemm", domain=_ORT),
    **_of(RowRules.skip_normalised, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_ORT),
    **_of(RowRules.normalised, "LayerNormalization", "SimplifiedLayerNormalization", domain=_ORT),
    **_of(RowRules.embedded, "EmbedLayerNormalization", domain=_ORT),
    **_of(RowRules.quantised_pair, "QLinearAdd", "QLinearMul", domain=_ORT),
    **_of(RowRules.quantised_gemm, "QGemm", domain=_ORT),
    **_of(RowRules.quantise, "DequantizeLinear", "QLinearLeakyRelu", "QLinearSigmoid", "QuantizeLinear", domain=_ORT),
    **_of(RowRules.attention, "Attention", "MultiHeadAttention", domain=_ORT),
    **_of(RowRules.each, "Binarizer", "CategoryMapper", "LabelEncoder", domain=_ML),
    **_of(
        RowRules.of_table, "Imputer", "LinearClassifier", "LinearRegressor", "Normalizer", "SVMClassifier", "SVMRegressor",
        "Scaler", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", domain=_ML,
    ),
    (DOMAIN, "DecodeJpeg"): RowRules.image,
    **_of(RowRules.tokens, "BytePairs", "WordPiece", domain=DOMAIN),
    (_ML, "ArrayFeatureExtractor"): RowRules.picked_features,
    (_ML, "FeatureVectorizer"): RowRules.joined_features,
    (_ML, "OneHotEncoder"): RowRules.last_axis_added,
}  # fmt: skip

RowRules.of_sizes = frozenset(
    (
        RowRules.branch, RowRules.cast, RowRules.concat, RowRules.constant_of_shape, RowRules.each, RowRules.expand, RowRules.gather, RowRules.identity,
        RowRules.loop, RowRules.range, RowRules.reduce, RowRules.reshape, RowRules.resize, RowRules.shape, RowRules.size, RowRules.slice, RowRules.split,
        RowRules.squeeze, RowRules.tile, RowRules.transpose, RowRules.unsqueeze,
    )
)  # fmt: skip

RowRules.moving = frozenset(
    (
        RowRules.expand, RowRules.flatten, RowRules.identity, RowRules.reshape, RowRules.squeeze, RowRules.transpose, RowRules.unsqueeze,
    )
)  # fmt: skip
RowRules.of_numbers = RowRules.moving | {RowRules.cast, RowRules.each, RowRules.gather, RowRules.shape}
