"""Rules for operators that compute sizes, change the shapes of tensors, or select parts of tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from clockwork.config.models import KNOWN_MAX
from clockwork.models.compile.following import ROWS
from clockwork.models.compile.row_facts import ONE, Dims, ElementRange, Fact, Met, RowAxis, Walk
from clockwork.models.compile.sizes import Size, computed_each, size_of
from clockwork.models.split import constant_tensor

WRAPS_BEYOND = 2**31 - 1

END = 10**9
"""Smallest `end` of a slice that stands for the end of the axis, as exporters write it. No axis is as long.
"""

_EXACT = (TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE)
"""Types to which sizes are cast without loss."""


class ShapeRules(Walk):
    """Rules for element-wise operators, and for operators that only move elements."""

    # ----- element-wise ---------------------------------------------------------------------------

    def each(self, inputs: Sequence[Fact]) -> list[Fact]:
        known = self._arithmetic(inputs)
        if known is None and any(fact.counts for fact in inputs):
            raise Met("computes with the number of rows")
        span = self._span(inputs)
        if span is None and any(fact.numbers_rows for fact in inputs):
            raise Met("depends on which row it is")
        return [dataclasses.replace(self.broadcast(inputs), known=known, span=span)] * len(self._node.output)

    def _span(self, inputs: Sequence[Fact]) -> ElementRange | None:
        """Return the bound of a sum's elements, or of those of a product with a size; None if unknown."""
        if len(inputs) != 2 or self._node.op_type not in ("Add", "Mul"):
            return None
        left, right = (fact.span for fact in inputs)
        if self._node.op_type == "Add":
            if left is None or right is None:
                return None
            return ElementRange(left.stride.plus(right.stride), left.below.plus(right.below).plus(ONE, -1))
        span, factor = (left, inputs[1].known) if left is not None else (right, inputs[0].known)
        if span is None or factor is None or len(factor) != 1 or not factor[0].is_natural:
            return None
        return ElementRange(span.stride.times(factor[0]), span.below.plus(ONE, -1).times(factor[0]).plus(ONE))

    def _arithmetic(self, inputs: Sequence[Fact]) -> tuple[Size, ...] | None:
        """Return the elements of arithmetic on sizes, by which exporters compute shapes.

        None unless all elements are known and none can wrap around in 32 bits.
        """
        sizes = computed_each(self._node.op_type, [fact.known for fact in inputs])
        if sizes is not None and self.flag("fmod", 0):
            return None
        counts = [count for size in sizes or () for count in (size.constant, *dict(size.terms).values())]
        return sizes if all(abs(count) <= WRAPS_BEYOND for count in counts) else None

    def identity(self, inputs: Sequence[Fact]) -> list[Fact]:
        return [inputs[0]]

    def cast(self, inputs: Sequence[Fact]) -> list[Fact]:
        fact, to = inputs[0], self.attribute("to")
        if to not in (TensorProto.INT32, TensorProto.INT64):
            if fact.numbers_rows:
                raise Met("depends on which row it is")
            fact = dataclasses.replace(fact, span=None)
        if to not in _EXACT and fact.known is not None:
            if fact.counts:
                raise Met("computes with the number of rows")
            return [dataclasses.replace(fact, known=None)]
        return [fact]

    def cast_like(self, inputs: Sequence[Fact]) -> list[Fact]:
        """CastLike: a cast to the type of the second input, whose elements do not matter."""
        return [dataclasses.replace(inputs[0], known=None, span=None)]

    def in_last_two(self, inputs: Sequence[Fact]) -> list[Fact]:
        """Operators on matrices in the last two axes, whose elements depend on position or on each other."""
        fact = inputs[0]
        self.others_are_same(inputs)
        if fact.place is not None and fact.place.axis >= len(self.dims(fact)) - 2:
            raise Met("depends on which row it is")
        return [dataclasses.replace(fact, known=None)]

    # ----- sizes ----------------------------------------------------------------------------------

    def shape(self, inputs: Sequence[Fact]) -> list[Fact]:
        dims = self.dims(inputs[0])[slice(self.attribute("start", 0), self.attribute("end"))]
        return [Fact((Size(len(dims)),), known=dims)]

    def size(self, inputs: Sequence[Fact]) -> list[Fact]:
        product = ONE
        for dim in self.dims(inputs[0]):
            product = product.times(dim)
        return [Fact((), known=(product,))]

    def constant(self, inputs: Sequence[Fact]) -> list[Fact]:
        tensor = constant_tensor(self._node)
        return [Fact(None) if tensor is None else self._constant(self._node.output[0], tensor)]

    def constant_of_shape(self, inputs: Sequence[Fact]) -> list[Fact]:
        wanted = inputs[0]
        if wanted.known is None:
            if not wanted.is_same:
                raise Met("makes a shape of the values of the rows")
            rank = self.dims(wanted)
            count = rank[0].constant if rank and not rank[0].terms else None
            return [Fact(None if count is None else self.fresh_dims(count))]
        given = self.attribute("value")
        number = numpy_helper.to_array(given).reshape(()) if given is not None else np.zeros((), np.float32)
        dims = wanted.known
        if not any(dim.terms for dim in dims) and math.prod(dim.constant for dim in dims) <= KNOWN_MAX:
            array = np.full([dim.constant for dim in dims], number)
            return [self._constant(self._node.output[0], numpy_helper.from_array(array))]
        return [self._even(Fact(dims))]

    def _even(self, fact: Fact) -> Fact:
        """Return the fact about a tensor of equal rows, where an axis is a multiple of their number."""
        axes = [axis for axis, dim in enumerate(fact.dims or ()) if ROWS in dim.symbols]
        if not axes:
            return fact
        inner = self.dims(fact)[axes[0]].over(size_of(ROWS))
        if len(axes) > 1 or inner is None or ROWS in inner.symbols:
            raise Met("makes an axis of the number of rows and something else")
        return dataclasses.replace(fact, place=RowAxis(axes[0], ONE, inner), even=True)

    def range(self, inputs: Sequence[Fact]) -> list[Fact]:
        start, limit, step = (fact.known for fact in inputs)
        if any(fact.counts for fact in inputs):
            if (start, limit, step) != ((Size(0),), (size_of(ROWS),), (ONE,)):
                raise Met("counts the rows")
            return [Fact((size_of(ROWS),), RowAxis(0), span=ElementRange(ONE, ONE))]
        self.others_are_same(inputs, 0)
        if start is not None and limit is not None and step == (ONE,):
            dim = limit[0].plus(start[0], -1)
            known = None
            if not dim.terms and 0 < dim.constant <= KNOWN_MAX:
                known = tuple(start[0].plus(Size(at)) for at in range(dim.constant))
            return [
                Fact((dim,), known=known, span=ElementRange(Size(0), dim) if start == (Size(0),) else None)
            ]
        if start and limit and step and not any(sizes[0].terms for sizes in (start, limit, step)):
            return [Fact((Size(len(range(start[0].constant, limit[0].constant, step[0].constant))),))]
        return [Fact((self.fresh(),))]

    def expand(self, inputs: Sequence[Fact]) -> list[Fact]:
        source, wanted = inputs
        if wanted.known is None:
            if not wanted.is_same:
                raise Met("makes a shape of the values of the rows")
            count = self.dims(wanted)[0]
            given = self.fresh_dims(self._whole(count))
            # The shape is the same in every batch, so that its size along the axis of the rows is 1.
            if source.place is not None:
                behind = len(self.dims(source)) - source.place.axis
                if behind <= len(given):
                    given = (*given[: len(given) - behind], ONE, *given[len(given) - behind + 1 :])
            return [self.broadcast([source, Fact(given)])]
        target = self._even(Fact(wanted.known))
        found = self.broadcast([source, target])
        known = source.known if source.known is not None and found.dims == source.dims else None
        if source.known is not None and len(source.known) == 1 and found.dims and len(found.dims) == 1:
            (dim,) = found.dims
            if not dim.terms and dim.constant <= KNOWN_MAX:
                known = source.known * dim.constant
        if source.counts and known is None:
            raise Met("computes with the number of rows")
        return [dataclasses.replace(found, known=known)]

    def tile(self, inputs: Sequence[Fact]) -> list[Fact]:
        source, times = inputs
        dims = list(self.dims(source))
        if times.known is None:
            if source.place is not None or not times.is_same:
                raise Met("repeats as often as is only known when it runs")
            return [Fact(tuple(self.fresh() for _ in dims))]
        for axis, size in enumerate(times.known):
            if source.place is not None and axis == source.place.axis and size != ONE:
                raise Met("repeats rows")
            dims[axis] = dims[axis].times(size)
        if source.place is not None:
            if any(ROWS in size.symbols for size in times.known):
                raise Met("makes an axis of the number of rows and something else")
            return [dataclasses.replace(source, dims=tuple(dims), known=None)]
        return [dataclasses.replace(self._even(Fact(tuple(dims))), even=False)]

    # ----- shapes ---------------------------------------------------------------------------------

    def reshape(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        target = self._target(inputs)
        if target is None:
            if not source.is_same or not inputs[1].is_same:
                raise Met("makes a shape that is only known when it runs")
            count = inputs[1].dims
            rank = count[0].constant if count and not count[0].terms else None
            return [Fact(None if rank is None else self.fresh_dims(rank))]
        return [self._reshaped(source, target)]

    def _target(self, inputs: Sequence[Fact]) -> list[Size | None] | None:
        """Return the dimensions that a reshape requests. None: the dimension that is left to compute."""
        given = self.attribute("shape")
        wanted = tuple(Size(int(dim)) for dim in given) if given is not None else inputs[1].known
        if wanted is None:
            return None
        copies = not self.flag("allowzero", 0)
        target: list[Size | None] = []
        for axis, size in enumerate(wanted):
            if size == Size(0) and copies:
                size = self.dims(inputs[0])[axis]
            target.append(None if size == Size(-1) else size)
        return target

    def _reshaped(self, source: Fact, target: Sequence[Size | None]) -> Fact:
        if source.dims is None:
            if not source.is_same or any(size is not None and ROWS in size.symbols for size in target):
                raise Met("takes a tensor whose rank is not known")
            return Fact(tuple(size if size is not None else self.fresh() for size in target))
        dims = self._filled(source, target)
        known = source.known if len(dims) <= 1 else None
        if source.counts and known is None:
            raise Met("computes with the number of rows")
        if source.place is None:
            return Fact(dims, known=known)
        before = source.place.outer
        for dim in source.dims[: source.place.axis]:
            before = before.times(dim)
        for axis, dim in enumerate(dims):
            if ROWS in dim.symbols:
                inner = dim.over(before.times(size_of(ROWS)))
                if inner is None or ROWS in inner.symbols:
                    break
                even = source.even and dim == source.dims[source.place.axis]
                return Fact(dims, RowAxis(axis, before, inner), even)
            rest = before.over(dim)
            if rest is None:
                break
            before = rest
        raise Met("makes an axis of the rows and something else")

    def _filled(self, source: Fact, target: Sequence[Size | None]) -> Dims:
        dims = list(target)
        if None in dims:
            total = ONE
            for dim in self.dims(source):
                total = total.times(dim)
            for size in target:
                if size is not None and total is not None:
                    total = total.over(size) if size != Size(0) else None  # type: ignore[assignment]
            if total is None:
                if source.place is not None:
                    raise Met("makes an axis whose size is not known")
                total = self.fresh()
            dims[dims.index(None)] = total
        found = tuple(dim for dim in dims if dim is not None)
        if source.place is None and any(ROWS in dim.symbols for dim in found):
            raise Met("makes an axis of the number of rows and something else")
        return found

    def flatten(self, inputs: Sequence[Fact]) -> list[Fact]:
        dims = self.dims(inputs[0])
        axis = self.axis(len(dims), 1)
        product = ONE
        for dim in dims[:axis]:
            product = product.times(dim)
        return [self._reshaped(inputs[0], [product, None])]

    def unsqueeze(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        axes = self.numbers(inputs, 1, "axes")
        if source.dims is None or axes is None:
            raise Met("takes a tensor whose rank is not known")
        rank = len(source.dims) + len(axes)
        added = {axis % rank for axis in axes}
        kept = [axis for axis in range(rank) if axis not in added]
        dims = [ONE] * rank
        for axis, dim in zip(kept, source.dims, strict=True):
            dims[axis] = dim
        if source.counts and rank > 1:
            raise Met("computes with the number of rows")
        place = source.place and source.place.on(kept[source.place.axis])
        return [Fact(tuple(dims), place, source.even, known=source.known if rank <= 1 else None)]

    def squeeze(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        axes = self.numbers(inputs, 1, "axes")
        if source.dims is None:
            raise Met("takes a tensor whose rank is not known")
        rank = len(source.dims)
        if axes is None:
            if any(dim.terms for dim in source.dims):
                raise Met("drops whichever axis is 1")
            axes = [axis for axis, dim in enumerate(source.dims) if dim == ONE]
        dropped = {axis % max(1, rank) for axis in axes}
        if source.place is not None and source.place.axis in dropped:
            raise Met("drops the axis of the rows")
        return [self._without(source, dropped, source.known)]

    def transpose(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        order = list(self.attribute("perm", range(len(self.dims(source)))[::-1]))
        place = source.place and source.place.on(order.index(source.place.axis))
        dims = tuple(self.dims(source)[axis] for axis in order)
        return [Fact(dims, place, source.even, known=source.known)]

    # ----- pieces ---------------------------------------------------------------------------------

    def concat(self, inputs: Sequence[Fact]) -> list[Fact]:
        if any(fact.known is not None for fact in inputs) and all(
            fact.is_same or fact.known is not None for fact in inputs
        ):
            parts = [self._elements(fact) for fact in inputs]
            if None not in parts:
                known = tuple(size for part in parts for size in part or ())
                if len(known) > KNOWN_MAX:
                    raise Met(f"makes a list of more than {KNOWN_MAX} sizes")
                return [Fact((Size(len(known)),), known=known)]
        if any(fact.counts for fact in inputs):
            raise Met("computes with the number of rows")
        if all(fact.is_same for fact in inputs) and any(fact.dims is None for fact in inputs):
            return [Fact(None)]
        rank = len(self.dims(inputs[0]))
        axis = self.axis(rank, 1)
        place = self._common([fact.place for fact in inputs], inputs)
        if place is not None:
            if place.axis == axis:
                raise Met("appends to the rows")
            if any(fact.place is None for fact in inputs):
                raise Met("joins rows with a tensor without rows")
        total = Size(0)
        for fact in inputs:
            total = total.plus(self.dims(fact)[axis])
        lead = next((fact for fact in inputs if fact.place == place), inputs[0])
        dims = (*self.dims(lead)[:axis], total, *self.dims(lead)[axis + 1 :])
        return [Fact(dims, place, place is not None and all(fact.even for fact in inputs))]

    def _elements(self, fact: Fact) -> tuple[Size, ...] | None:
        """Return the elements of a list of sizes. Each unknown element becomes a new symbol."""
        dims = self.dims(fact)
        if len(dims) != 1:
            return None
        if fact.known is not None:
            return fact.known
        if dims[0].terms or dims[0].constant > KNOWN_MAX:
            return None
        return tuple(self.any_number() for _ in range(dims[0].constant))

    def split(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        self.others_are_same(inputs)
        if source.dims is None:
            raise Met("takes a tensor whose rank is not known")
        axis = self.axis(len(source.dims), 0)
        self._not_along(source, axis, "takes the rows apart")
        count = len(self._node.output)
        given = self.attribute("split")
        sizes: Sequence[Size] | None = None
        if given is not None:
            sizes = [Size(int(size)) for size in given]
        elif len(inputs) > 1 and self._node.input[1]:
            sizes = inputs[1].known
        elif (part := source.dims[axis].over(Size(count))) is not None:
            sizes = [part] * count
        if source.known is not None and (sizes is None or any(size.terms for size in sizes)):
            raise Met("depends on numbers that are only known when the model runs")
        found, begin = [], 0
        for at in range(count):
            size = sizes[at] if sizes is not None else self.fresh()
            dims = (*source.dims[:axis], size, *source.dims[axis + 1 :])
            known = source.known[begin : begin + size.constant] if source.known is not None else None
            begin += size.constant
            found.append(Fact(dims, source.place, source.even, known=known))
        return found

    def slice(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        if source.dims is None:
            if all(fact.is_same for fact in inputs):
                return [Fact(None)]
            raise Met("takes a tensor whose rank is not known")
        rank = len(source.dims)
        if self.attribute("starts") is not None:
            starts: Sequence[Size] | None = [Size(int(start)) for start in self.attribute("starts")]
            ends: Sequence[Size] | None = [Size(int(end)) for end in self.attribute("ends")]
            axes = self.attribute("axes", range(len(starts or ())))
            steps = [1] * rank
        else:
            starts, ends = inputs[1].known, inputs[2].known
            given = self.numbers(inputs, 3, "axes")
            count = next((len(bounds) for bounds in (starts, ends, given) if bounds is not None), rank)
            axes = given if given is not None else range(count)
            steps = self.numbers(inputs, 4, "steps") or [1] * count
            for fact in inputs[1:]:
                if fact.place is not None or fact.met:
                    raise Met("takes a piece that depends on the values of the rows")
        axes = [axis % max(1, rank) for axis in axes]
        dims = list(source.dims)
        known = source.known
        for at, axis in enumerate(axes):
            start = starts[at] if starts is not None else None
            end = ends[at] if ends is not None else None
            if source.known is not None:
                if start is None or end is None or start.terms or end.terms:
                    raise Met("computes with the number of rows")
                known = source.known[start.constant : end.constant : steps[at]]
                dims[axis] = Size(len(known))
                continue
            dims[axis] = self._sliced(source, axis, start, end, steps[at])
        return [Fact(tuple(dims), source.place, source.even, known=known)]

    def _sliced(self, source: Fact, axis: int, start: Size | None, end: Size | None, step: int) -> Size:
        dim = self.dims(source)[axis]
        whole = (
            start == Size(0) and step == 1 and end is not None
            and (end == dim or (not end.terms and end.constant >= END))
        )  # fmt: skip
        if whole:
            return dim
        self._not_along(source, axis, "takes a piece of the rows")
        if any(size is not None and ROWS in size.symbols for size in (start, end)):
            raise Met("computes with the number of rows")
        if start is None or end is None:
            return self.fresh()
        if not (dim.terms or start.terms or end.terms):
            return Size(len(range(dim.constant)[start.constant : end.constant : step]))
        to_end = end == dim or (not end.terms and end.constant >= END)
        if step != 1 or not dim.terms or not to_end:
            return self.fresh()
        if not start.terms and start.constant < 0:  # the last elements; fewer if the axis is shorter
            last = Size(-min(-start.constant, END))
            return Size(-last.constant) if last == Size(-1) or dim.plus(last).is_natural else self.fresh()
        length = dim.plus(start, -1)
        return length if start.is_natural and length.is_positive else self.fresh()

    def pad(self, inputs: Sequence[Fact]) -> list[Fact]:
        source = inputs[0]
        self.others_are_same(inputs)
        dims = self.dims(source)
        given = self.attribute("pads")
        known = tuple(Size(int(pad)) for pad in given) if given is not None else inputs[1].known
        axes = list(range(len(dims)))
        if len(inputs) > 3 and self._node.input[3]:
            axes = [axis % len(dims) for axis in self.numbers(inputs, 3, "axes") or ()]
        if known is None:
            if source.place is not None:
                raise Met("adds as much as is only known when it runs")
            return [Fact(tuple(self.fresh() for _ in dims))]
        found = list(dims)
        for at, axis in enumerate(axes):
            added = known[at].plus(known[at + len(axes)])
            if known[at] != Size(0) or added != Size(0):
                self._not_along(source, axis, "adds to the rows")
            found[axis] = dims[axis].plus(added)
        return [Fact(tuple(found), source.place, source.even)]

    def gather(self, inputs: Sequence[Fact]) -> list[Fact]:
        source, indices = inputs
        if source.known is not None and indices.known is not None and not any(s.terms for s in indices.known):
            return [Fact(indices.dims, known=tuple(source.known[s.constant] for s in indices.known))]
        if source.counts or indices.counts:
            raise Met("computes with the number of rows")
        if source.is_same and indices.is_same and (source.dims is None or indices.dims is None):
            return [Fact(None)]
        dims, picks = self.dims(source), self.dims(indices)
        axis = self.axis(len(dims), 0)
        found = (*dims[:axis], *picks, *dims[axis + 1 :])
        if source.numbers_rows or (
            indices.numbers_rows and not self._picks_of_own_row(source, indices, axis)
        ):
            raise Met("depends on which row it is")
        if indices.numbers_rows and indices.place is not None:
            return [Fact(found, indices.place.on(axis + indices.place.axis))]
        if source.place is None:
            place = indices.place and indices.place.on(axis + indices.place.axis)
            return [Fact(found, place, indices.even)]
        self._not_along(source, axis, "picks rows")
        if indices.place is not None:
            raise Met("picks by the rows of one batch from those of another")
        moved = source.place.axis + (len(picks) - 1 if source.place.axis > axis else 0)
        return [Fact(found, source.place.on(moved), source.even)]

    def _picks_of_own_row(self, source: Fact, indices: Fact, axis: int) -> bool:
        """Whether each row's indices select from that row's part of the axis of rows: row number x row length
        + position."""
        place, span = source.place, indices.span
        if place is None or span is None or place.axis != axis or place.outer != ONE:
            return False
        left = place.inner.plus(span.below, -1)
        return span.stride == place.inner and left.is_natural

    def gather_elements(self, inputs: Sequence[Fact]) -> list[Fact]:
        """GatherElements and ScatterElements, whose indices select along one axis."""
        dims = self.dims(inputs[0])
        axis = self.axis(len(dims), 0)
        place = self._common([fact.place for fact in inputs], inputs)
        shaped = inputs[1] if self._node.op_type == "GatherElements" else inputs[0]
        if place is not None and place.axis == axis:
            raise Met("picks rows")
        if place is not None and any(fact.place is None for fact in inputs):
            raise Met("joins rows with a tensor without rows")
        return [Fact(shaped.dims, place)]

    def gather_nd(self, inputs: Sequence[Fact]) -> list[Fact]:
        source, indices = inputs
        batch = int(self.attribute("batch_dims", 0))
        dims, picks = self.dims(source), self.dims(indices)
        depth = picks[-1]
        if depth.terms:
            raise Met("picks by a number of axes that is only known when it runs")
        place = self._common([fact.place for fact in inputs], inputs) if batch else None
        if source.place is not None:
            if place is None or place.axis >= batch or indices.place is None:
                raise Met("picks rows")
        elif indices.place is not None and (
            indices.place.axis < batch or indices.place.axis == len(picks) - 1
        ):
            raise Met("picks by the rows of one batch from those of another")
        return [Fact((*picks[:-1], *dims[batch + depth.constant :]), place or indices.place)]

    def scatter_nd(self, inputs: Sequence[Fact]) -> list[Fact]:
        """ScatterND: indices address the first axes. Rows must lie behind these, also in the updates."""
        source, indices, updates = inputs
        dims, picks = self.dims(source), self.dims(indices)
        if source.is_same and indices.is_same and updates.is_same:
            return [Fact(dims)]
        depth = self._whole(picks[-1])
        if not indices.is_same or source.place is None or source.place.axis < depth:
            raise Met("writes to places of rows")
        if updates.place != source.place.on(source.place.axis - depth + len(picks) - 1):
            raise Met("joins rows with others")
        return [Fact(dims, source.place)]

    def one_hot(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs)
        source = inputs[0]
        rank = len(self.dims(source)) + 1
        axis = self.axis(rank, -1)
        depth = inputs[1].known[0] if inputs[1].known else self.fresh()
        dims = (*self.dims(source)[:axis], depth, *self.dims(source)[axis:])
        place = source.place and source.place.on(source.place.axis + (source.place.axis >= axis))
        return [Fact(dims, place, source.even)]

    def compress(self, inputs: Sequence[Fact]) -> list[Fact]:
        self.others_are_same(inputs)
        source = inputs[0]
        if self.attribute("axis") is None:
            if source.place is not None:
                raise Met("picks elements of all rows")
            return [Fact((self.fresh(),))]
        axis = self.axis(len(self.dims(source)), 0)
        self._not_along(source, axis, "picks rows")
        return [self._resized(source, axis)]

    def _resized(self, source: Fact, axis: int, size: Size | None = None) -> Fact:
        dims = list(self.dims(source))
        dims[axis] = size if size is not None else self.fresh()
        return Fact(tuple(dims), source.place, source.even)
