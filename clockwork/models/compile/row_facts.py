"""Facts about tensors, from which rows.py proves that rows stay apart, and the walk through a graph."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from clockwork.config.models import BODY_TURNS_MAX, FOLDED_MAX, FOLLOWED_MAX, FOLLOWED_RANK_MAX, KNOWN_MAX
from clockwork.models.compile.following import ROWS, OperatorReader
from clockwork.models.compile.sizes import ANY, MADE, NotProven, Size, size_of
from clockwork.models.split import captured_by, in_order, operator

FOLDED = frozenset(
    (
        "Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mod", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Transpose",
        "Unsqueeze",
    )
)  # fmt: skip
"""Operators that are evaluated on small constants. The result is no larger than the inputs together."""

MOVING_SIZES = frozenset(("Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"))
"""Operators by which exporters select sizes from the result of Shape, and that keep its type, int64."""

COUNTING = (np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.bool_))
"""Types of constants whose elements are tracked as sizes: types in which sizes do not wrap around."""

INVALID = (
    LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, NotImplementedError,
)  # fmt: skip
"""Exceptions that the rules raise for an invalid node."""

Dims: TypeAlias = "tuple[Size, ...]"

ONE = Size(1)


@dataclasses.dataclass(frozen=True, slots=True)
class RowAxis:
    """The position of the rows in a tensor: along ``axis``, whose size is ``outer`` x rows x ``inner``.

    If the axis were reshaped to these three factors, element [o, r, i] would belong to row r.
    """

    axis: int
    outer: Size = ONE
    inner: Size = ONE

    @property
    def size(self) -> Size:
        """The size of the axis."""
        return self.outer.times(self.inner).times(size_of(ROWS))

    def on(self, axis: int) -> RowAxis:
        return dataclasses.replace(self, axis=axis)


@dataclasses.dataclass(frozen=True, slots=True)
class ElementRange:
    """A bound of an integer tensor's elements: those of row r lie in [stride * r, stride * r + below)."""

    stride: Size
    below: Size


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """The known properties of a tensor.

    dims: the dimensions; None: the rank is not known. place: the position of the rows; None: the tensor is
    the same in every batch. even: the tensor is constant along the axis of the place, so that the axis may be
    divided into rows in any way. met: the reason why rows may mix in the tensor; "": rows stay apart, and
    only the size of the place's axis depends on the batch. known: the elements of a tensor of rank 0 or 1,
    where they are sizes. span: a bound of the elements, where it is known.
    """

    dims: Dims | None
    place: RowAxis | None = None
    even: bool = False
    met: str = ""
    known: tuple[Size, ...] | None = None
    span: ElementRange | None = None

    @property
    def numbers_rows(self) -> bool:
        """Whether the elements' bound differs between rows, as in an index of rows."""
        return self.span is not None and self.span.stride != Size(0)

    @property
    def counts(self) -> bool:
        """Whether an element of the tensor depends on the number of rows."""
        return self.known is not None and any(ROWS in size.symbols for size in self.known)

    @property
    def is_same(self) -> bool:
        """Whether the tensor is the same in every batch."""
        return not (self.met or self.place is not None or self.counts)


class Met(Exception):
    """An operator may mix rows. The text is the predicate of a sentence that begins "operator X"."""


Rule: TypeAlias = "Callable[[Any, Sequence[Fact]], list[Fact]]"
"""A function that derives facts about an operator's outputs from facts about its inputs. The first argument
is the Walk. Raises Met."""


class Walk(OperatorReader[Fact]):
    """Follows the operators of graphs, of one opset. Subclasses have the rules."""

    rules: ClassVar[Mapping[tuple[str, str], Rule]] = {}
    of_sizes: ClassVar[frozenset[Rule]] = frozenset()
    """Rules that accept inputs whose elements depend on the number of rows (Fact.counts)."""
    of_numbers: ClassVar[frozenset[Rule]] = frozenset()
    """Rules that accept indices of rows as inputs (Fact.numbers_rows)."""
    moving: ClassVar[frozenset[Rule]] = frozenset()
    """Rules of operators whose results are elements of the first input, so that its span holds for them."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._fresh = itertools.count()
        self._changing: dict[tuple[str, ...], set[tuple[int, int]]] = {}
        """By a loop's names: axes of its state, (tensor, axis), whose sizes change between iterations."""
        self._node = NodeProto()
        self._followed = 0  # number of operators, counted again in each iteration of a loop body
        self._computed = 0  # number of operators evaluated on constants
        self._facts: dict[str, Fact] = {}
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}  # small constants, in their own type
        self._int64: set[str] = set()  # tensors that Shape or Size made, and pieces of them

    def follow(
        self, graph: GraphProto, facts: dict[str, Fact], inside: Mapping[str, Fact] | None = None
    ) -> list[Fact]:
        """Return facts about the graph's outputs.

        facts: about tensors of the enclosing graph; restored at the end, because a copy for each body would
        take quadratic time. inside: about the graph's inputs, whose names may shadow names of the enclosing
        graph.
        """
        inside = inside or {}
        hidden = {name: facts[name] for name in inside if name in facts}
        facts.update(inside)
        made: list[str] = []
        try:
            return self._follow(graph, facts, made)
        finally:
            for name in (*made, *inside):
                facts.pop(name, None)
            facts.update(hidden)

    def _follow(self, graph: GraphProto, facts: dict[str, Fact], made: list[str]) -> list[Fact]:
        """Do the work of follow(): add facts to ``facts``, and the names of the added facts to ``made``."""
        for value in graph.input:
            self._arrays.pop(value.name, None)
            self._int64.discard(value.name)
        named = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
        names = [tensor.name for tensor in named]
        names += [name for node in graph.node for name in node.output if name]
        for name in names:
            if name and name in facts:
                raise NotProven(f"a body gives the name {name!r} to another tensor")
        made += names
        for tensor in graph.initializer:
            facts[tensor.name] = self._constant(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self._arrays.pop(sparse.values.name, None)
            facts[sparse.values.name] = Fact(tuple(Size(dim) for dim in sparse.dims))
        producers = {name: node for node in graph.node for name in node.output if name}
        for node in in_order([output.name for output in graph.output], producers):
            found = self._outputs(node, facts)
            for at, name in enumerate(node.output):
                if name:
                    facts[name] = found[at] if at < len(found) else self._unknown(node, facts)
        missing = Fact(None, met="an output is computed by nothing")
        return [facts.get(output.name, missing) for output in graph.output]

    def _outputs(self, node: NodeProto, facts: dict[str, Fact]) -> list[Fact]:
        self._followed += 1
        if self._followed > FOLLOWED_MAX:
            raise NotProven(f"more than {FOLLOWED_MAX} operators would have to be followed")
        self._node, self._facts = node, facts
        arrays = [self._arrays.get(name) for name in node.input if name]
        is_int64 = node.op_type in ("Shape", "Size") or (
            node.op_type in MOVING_SIZES and any(name in self._int64 for name in node.input[:1])
        )
        for name in node.output:  # other bodies may use the same names
            self._arrays.pop(name, None)
            self._int64.discard(name)
        empty = Fact(())
        unknown = Fact(None, met=f"operator {self._name()} reads a tensor that no operator computes")
        inputs = [facts.get(name, unknown) if name else empty for name in node.input]
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = self.rules.get((domain, node.op_type))
        try:
            if rule is None or (rule not in self.of_sizes and any(fact.counts for fact in inputs)):
                return self._without_rule(inputs)
            for fact in inputs:
                if fact.met:
                    raise Met(fact.met)
            if (folded := self._folded(node, arrays)) is not None:
                return folded
            if rule not in self.of_numbers and any(fact.numbers_rows for fact in inputs):
                raise Met("depends on which row it is")
            found = rule(self, inputs)
            for name, fact in zip(node.output, found):
                if fact.dims is not None and len(fact.dims) > FOLLOWED_RANK_MAX:
                    raise Met(f"makes a tensor of more than {FOLLOWED_RANK_MAX} dimensions")
                if is_int64:
                    self._int64.add(name)
                if is_int64 and fact.known is not None and not any(size.terms for size in fact.known):
                    numbers = np.array([size.constant for size in fact.known], np.int64)
                    self._arrays[name] = numbers if fact.dims else numbers.reshape(())
            if rule in self.moving:
                found = [dataclasses.replace(fact, span=inputs[0].span) for fact in found]
            return found
        except Met as error:
            text = str(error)
        except INVALID as error:
            text = f"cannot be followed: {error}"
        met = next((fact.met for fact in inputs if fact.met), f"operator {self._name()} {text}")
        return [Fact(None, met=met) for _ in node.output]

    def _folded(self, node: NodeProto, arrays: Sequence[np.ndarray[Any, Any] | None]) -> list[Fact] | None:
        """Evaluate a node on small constants. Return facts about the results; None if not evaluated."""
        if node.op_type not in FOLDED or not arrays or self._computed >= FOLDED_MAX:
            return None
        given: dict[str, np.ndarray[Any, Any]] = {}
        for name, array in zip((name for name in node.input if name), arrays, strict=True):
            if array is None or (node.op_type == "Cast" and not _is_cast_exactly(array)):
                return None
            given[name] = array
        self._computed += 1
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(node, {"": self._opset}).run(None, given)
        except (*INVALID, RuntimeError):  # the operator does not exist in this opset, or rejects these inputs
            return None
        return [
            self._constant(name, numpy_helper.from_array(np.asarray(array), name))
            for name, array in zip(node.output, results, strict=True)
        ]

    def _without_rule(self, inputs: Sequence[Fact]) -> list[Fact]:
        captured = [name for attribute in self._node.attribute for name in captured_by(attribute)]
        inside = [self._facts[name] for name in captured if name in self._facts]
        for fact in (*inputs, *inside):
            if fact.met:
                raise Met(fact.met)
            if fact.counts:
                raise Met("computes with the number of rows")
            if fact.place is not None:  # true also for tensors that number the rows
                raise Met("is not known to keep rows apart")
        return [Fact(None) for _ in self._node.output]

    def _unknown(self, node: NodeProto, facts: Mapping[str, Fact]) -> Fact:
        """Return the fact about an output that the operator's rule leaves out."""
        inputs = [facts[name] for name in node.input if name in facts]
        if all(fact.is_same for fact in inputs):
            return Fact(None)
        return Fact(None, met=f"operator {operator(node)} has an output that is not followed")

    def _name(self) -> str:
        return f"{operator(self._node)} {self._node.name!r}" if self._node.name else operator(self._node)

    # ----- nodes ----------------------------------------------------------------------------------

    def flag(self, name: str, default: int) -> bool:
        """Return a boolean attribute. Raises Met unless it is 0 or 1: runtimes differ about others."""
        given = self.attribute(name, default)
        if given not in (0, 1):
            raise Met(f"has a {name} of {given}")
        return bool(given)

    def integers(self, value: Fact) -> list[int]:
        return [self._whole(size) for size in self.sizes(value)]

    def sizes(self, fact: Fact) -> tuple[Size, ...]:
        if fact.known is None:
            raise Met("depends on numbers that are only known when the model runs")
        return fact.known

    def _whole(self, size: Size) -> int:
        if size.terms:
            raise Met("is told which axis by a size")
        return size.constant

    def axis(self, rank: int, default: int, name: str = "axis") -> int:
        given = int(self.attribute(name, default))
        return given + rank if given < 0 else given

    def dims(self, fact: Fact) -> Dims:
        if fact.dims is None:
            raise Met("takes a tensor whose rank is not known")
        return fact.dims

    def fresh(self) -> Size:
        """Return an unknown size, as a new symbol."""
        return size_of(f"{MADE}{next(self._fresh)}")

    def any_number(self) -> Size:
        """Return an unknown number, which may be negative, as a new symbol."""
        return size_of(f"{ANY}{next(self._fresh)}")

    def fresh_dims(self, count: int) -> Dims:
        if count > FOLLOWED_RANK_MAX:
            raise Met(f"makes a tensor of more than {FOLLOWED_RANK_MAX} dimensions")
        return tuple(self.fresh() for _ in range(count))

    def _constant(self, name: str, tensor: TensorProto) -> Fact:
        dims = tuple(Size(dim) for dim in tensor.dims)
        if math.prod(tensor.dims) > KNOWN_MAX or tensor.data_location == TensorProto.EXTERNAL:
            return Fact(dims)
        array = self._arrays[name] = numpy_helper.to_array(tensor)
        if array.dtype not in COUNTING:
            return Fact(dims)
        known = tuple(Size(int(number)) for number in array.reshape(-1)) if len(dims) < 2 else None
        is_index = array.size and array.min() >= 0
        return Fact(
            dims, known=known, span=ElementRange(Size(0), Size(int(array.max()) + 1)) if is_index else None
        )

    def _array(self, at: int) -> np.ndarray[Any, Any] | None:
        """Return input number ``at`` if it is a small constant, otherwise None."""
        if len(self._node.input) <= at:
            return None
        return self._arrays.get(self._node.input[at])

    def others_are_same(self, inputs: Sequence[Fact], first: int = 1) -> None:
        """Raise Met if an input from number ``first`` on (weight, scale) depends on the batch."""
        if any(not fact.is_same for fact in inputs[first:]):
            raise Met("has parameters that depend on the rows")

    # ----- joining tensors --------------------------------------------------------------------------

    def broadcast(self, inputs: Sequence[Fact]) -> Fact:
        """Return the fact about an element-wise result with broadcasting.

        If an operand has rows, every other operand has the same rows, or no axis or an axis of size 1 at that
        position. Otherwise Met is raised.
        """
        if all(fact.is_same for fact in inputs) and any(fact.dims is None for fact in inputs):
            return Fact(None)
        rank = max((len(self.dims(fact)) for fact in inputs), default=0)
        aligned = [(fact, (ONE,) * (rank - len(self.dims(fact))) + self.dims(fact)) for fact in inputs]
        place = self._common(
            [
                fact.place.on(fact.place.axis + rank - len(self.dims(fact))) if fact.place else None
                for fact in inputs
            ],
            inputs,
        )
        dims = []
        for axis in range(rank):
            sizes = [dims[axis] for _, dims in aligned]
            if place is not None and axis == place.axis:
                for fact, size in zip(inputs, sizes, strict=True):
                    if fact.place is None and size != ONE:
                        raise Met("joins rows with an axis that has other elements")
                sizes = [size for fact, size in zip(inputs, sizes, strict=True) if fact.place is not None]
            dims.append(self._joined(sizes))
        even = place is not None and all(fact.even for fact in inputs if fact.place is not None)
        return Fact(tuple(dims), place, even)

    def _joined(self, sizes: Sequence[Size]) -> Size:
        """Return the size of an axis to which axes of these sizes are broadcast."""
        left = {size for size in sizes if size != ONE}
        if len(left) <= 1:
            return next(iter(left), ONE)
        return next((size for size in sizes if not size.terms and size.constant > 1), None) or self.fresh()

    def _common(self, places: Sequence[RowAxis | None], facts: Sequence[Fact]) -> RowAxis | None:
        """Return the common place of the tensors with rows, if any. Raises Met if places differ."""
        given = [(place, fact.even) for place, fact in zip(places, facts, strict=True) if place is not None]
        chosen = next((place for place, even in given if not even), given[0][0] if given else None)
        for place, even in given:
            if chosen is None or place == chosen:
                continue
            if not even or place.axis != chosen.axis or place.size != chosen.size:
                raise Met("joins rows with others")
        return chosen

    # ----- axes --------------------------------------------------------------------------------------

    def _not_along(self, source: Fact, axis: int, text: str) -> None:
        if source.place is not None and source.place.axis == axis:
            raise Met(text)

    def _without(self, source: Fact, dropped: set[int], known: tuple[Size, ...] | None = None) -> Fact:
        kept = [axis for axis in range(len(self.dims(source))) if axis not in dropped]
        place = source.place and source.place.on(kept.index(source.place.axis))
        return Fact(tuple(self.dims(source)[axis] for axis in kept), place, source.even, known=known)

    # ----- bodies ------------------------------------------------------------------------------------

    def branch(self, inputs: Sequence[Fact]) -> list[Fact]:
        node, facts = self._node, self._facts
        (condition,) = inputs
        bodies = [self.attribute(name) for name in ("then_branch", "else_branch")]
        chosen: int | None = None
        given = self._array(0)
        if given is not None and given.size == 1:
            chosen = int(not given.reshape(-1)[0])
        elif condition.known is not None and not condition.known[0].terms:
            chosen = int(not condition.known[0].constant)
        if chosen is not None:
            return self.follow(bodies[chosen], facts)
        if condition.counts:
            raise Met("decides by the number of rows")
        if condition.place is not None:
            raise Met("decides by the values of the rows")
        then, otherwise = (self.follow(body, facts) for body in bodies)
        self._node, self._facts = node, facts
        return [self._either(a, b) for a, b in zip(then, otherwise, strict=True)]

    def _either(self, a: Fact, b: Fact) -> Fact:
        """Return a fact that holds for either of two tensors, where all rows take the same branch."""
        for fact in (a, b):
            if fact.met:
                return fact
        if a == b:
            return a
        if a.counts or b.counts:
            return Fact(None, met=f"operator {self._name()} computes with the number of rows")
        if a.numbers_rows or b.numbers_rows:
            return Fact(None, met=f"operator {self._name()} depends on which row it is")
        if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
            if a.place is None and b.place is None:
                return Fact(None)
            return Fact(None, met=f"operator {self._name()} gives tensors of different ranks")
        even = (
            a.place is not None
            and b.place is not None
            and a.place.axis == b.place.axis
            and a.place.size == b.place.size
            and (a.even or b.even)
        )
        if a.place != b.place and not even:
            return Fact(None, met=f"operator {self._name()} gives tensors whose rows are in different places")
        dims = [p if p == q else self.fresh() for p, q in zip(a.dims, b.dims, strict=True)]
        return Fact(tuple(dims), b.place if a.even else a.place, a.even and b.even)

    def loop(self, inputs: Sequence[Fact]) -> list[Fact]:
        node, facts = self._node, self._facts
        for fact in inputs[:2]:
            if not fact.is_same:
                raise Met("runs as often as the rows say")
        body = self.attribute("body")
        names = [value.name for value in body.input]
        step = [Fact(()), Fact(())]
        state, found = self._state(body, names, step, list(inputs[2:]), 1, facts)
        self._node, self._facts = node, facts
        if not found[0].is_same:
            raise Met("runs as often as the rows say")
        return [*state, *(self._stacked(fact, 0, self.fresh()) for fact in found[1 + len(state) :])]

    def scan(self, inputs: Sequence[Fact]) -> list[Fact]:
        node, facts = self._node, self._facts
        count = int(self.attribute("num_scan_inputs"))
        body = self.attribute("body")
        scanned = inputs[len(inputs) - count :]
        given = self.attribute("scan_input_axes", [0] * count)
        each, steps = [], self.fresh()
        for fact, axis in zip(scanned, given, strict=True):
            axis %= len(self.dims(fact))
            self._not_along(fact, axis, "goes through the rows")
            steps = self.dims(fact)[axis]
            each.append(self._without(fact, {axis}))
        names = [value.name for value in body.input]
        initial = list(inputs[: len(inputs) - count])
        state, found = self._state(body, names, each, initial, 0, facts, behind=True)
        self._node, self._facts = node, facts
        outputs = found[len(state) :]
        axes = self.attribute("scan_output_axes", [0] * len(outputs))
        stacked = [self._stacked(fact, axis, steps) for fact, axis in zip(outputs, axes, strict=True)]
        return [*state, *stacked]

    def _state(
        self,
        body: GraphProto,
        names: Sequence[str],
        each: Sequence[Fact],
        state: list[Fact],
        skipped: int,
        facts: dict[str, Fact],
        behind: bool = False,
    ) -> tuple[list[Fact], list[Fact]]:
        """Return facts about a loop body's state and outputs that hold for any number of iterations.

        each: facts about the body's other inputs, which precede the state, or follow it if ``behind``.
        skipped: number of outputs before the state.
        """
        state = [dataclasses.replace(fact, known=None) if not fact.counts else fact for fact in state]
        widened: set[Size] = set()  # symbols of sizes that change between iterations
        changing = self._changing.setdefault((*self._node.output, *names), set())
        for at, axis in sorted(changing):  # a nested loop, followed again, converges in one iteration
            fact = state[at]
            if (
                fact.dims is not None
                and axis < len(fact.dims)
                and (not fact.place or fact.place.axis != axis)
            ):
                size = self.fresh()
                widened.add(size)
                dims = (*fact.dims[:axis], size, *fact.dims[axis + 1 :])
                state[at] = dataclasses.replace(fact, dims=dims)
        for _ in range(BODY_TURNS_MAX):
            inputs = [*state, *each] if behind else [*each, *state]
            found = self.follow(body, facts, dict(zip(names, inputs, strict=True)))
            after = found[skipped : skipped + len(state)]
            joined = [
                self._either(a, b if b.counts else dataclasses.replace(b, known=None))
                for a, b in zip(state, after, strict=True)
            ]
            if all(self._alike(a, b, widened) for a, b in zip(state, joined, strict=True)):
                return joined, found
            for at, (a, b) in enumerate(zip(state, joined, strict=True)):
                for axis, (p, q) in enumerate(zip(a.dims or (), b.dims or (), strict=False)):
                    if p != q:
                        widened.add(q)
                        changing.add((at, axis))
            state = joined
        raise Met(f"has a state that changes for more than {BODY_TURNS_MAX} turns")

    def _alike(self, a: Fact, b: Fact, widened: set[Size]) -> bool:
        """Whether two facts about a loop's state agree, apart from sizes that are widened already."""
        if a.met or b.met:
            return bool(a.met and b.met)
        if a.dims is None or b.dims is None:
            return a == b
        sizes = all(p == q or p in widened for p, q in zip(a.dims, b.dims, strict=True))
        return sizes and (a.place, a.even, a.known, a.span) == (b.place, b.even, b.known, b.span)

    def _stacked(self, fact: Fact, axis: int, steps: Size) -> Fact:
        if fact.met or fact.dims is None:
            return fact
        if fact.counts:
            return Fact(None, met=f"operator {self._name()} computes with the number of rows")
        if fact.numbers_rows:
            return Fact(None, met=f"operator {self._name()} depends on which row it is")
        rank = len(fact.dims) + 1
        axis %= rank
        place = fact.place and fact.place.on(fact.place.axis + (fact.place.axis >= axis))
        return Fact((*fact.dims[:axis], steps, *fact.dims[axis:]), place, fact.even)


def _is_cast_exactly(array: np.ndarray[Any, Any]) -> bool:
    """Whether all numbers are finite and below 2**31 in magnitude, for which all runtimes cast alike."""
    if array.dtype.kind not in "iufb":
        return False
    return bool(np.all(np.isfinite(array)) and np.all(np.abs(array.astype(np.float64)) < 2.0**31))
