"""What a request must be before it may disturb anybody: every tensor named, typed, shaped and sized right.

Most requests never come here: csrc/controller/models.cpp takes what is plainly right, and leaves the rest to this
module, which says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from clockwork.config import FAILURE_CHARS_MAX
from clockwork.controller.models import ServedModel
from clockwork.errors import InvalidInput
from clockwork.formats.prepared import UNKNOWN_RANK, PreparedModel, TensorSpec
from clockwork.scheduler.types import ShapeKey
from clockwork.wire.telling import tell
from clockwork.wire.tensors import STRING, check_strings, check_tensor, dtype_name


class Checked(NamedTuple):
    """A request that its model can take. ``tensors``: (dtype, shape, frame's index) in the model's input order."""

    rows: int
    shape: ShapeKey
    bytes: int
    tensors: list[tuple[int, list[int], int]]


def check_request(model: ServedModel, refs: Sequence[Any], frames: Sequence[Any]) -> Checked:
    """Raises InvalidInput, naming the tensor, what was expected and what came."""
    prepared = model.prepared
    assert prepared is not None
    inputs = prepared.inputs
    if len(refs) != len(frames):
        raise InvalidInput(
            f"{len(refs)} tensors are described, {len(frames)} frames came",
            expected=f"{len(refs)} frames",
            got=str(len(frames)),
        )
    ordered: list[tuple[int, list[int], int] | None] = [None] * len(inputs)
    seen_frames = 0
    total = 0
    for ref in refs:
        match ref:
            case [str(name), int(dtype), list(shape), int(frame)] if 0 <= frame < len(frames):
                pass
            case _:
                raise InvalidInput(
                    "a tensor is described by [name, dtype, shape, frame of this message]",
                    got=tell(ref, 200),
                )
        index = model.input_index.get(name)
        if index is None:
            if name or len(inputs) != 1:
                names = ", ".join(repr(spec.name) for spec in inputs)
                raise InvalidInput(
                    f"{model.record.name} has no input {tell(name, 200)}; its inputs are {names}",
                    name[:FAILURE_CHARS_MAX],
                    names,
                    name[:FAILURE_CHARS_MAX],
                )
            index = 0
        spec = inputs[index]
        if ordered[index] is not None:
            raise InvalidInput(f"input {spec.name!r} came twice", spec.name, "once", "twice")
        if seen_frames >> frame & 1:
            raise InvalidInput(f"input {spec.name!r} names a frame that another input has", spec.name)
        seen_frames |= 1 << frame
        _check_declared(spec, dtype, shape)
        data = frames[frame]
        size = len(data)
        try:
            check_tensor(dtype, shape, size)
            if dtype == STRING:
                check_strings(math.prod(shape), data)
        except InvalidInput as error:
            raise InvalidInput(
                f"input {spec.name!r}: {error}", spec.name, error.expected, error.got
            ) from None
        total += size
        ordered[index] = (dtype, shape, frame)
    tensors: list[tuple[int, list[int], int]] = []
    for spec, tensor in zip(inputs, ordered):
        if tensor is None:
            raise InvalidInput(f"input {spec.name!r} is missing", spec.name, _declared(spec), "nothing")
        tensors.append(tensor)
    if len(tensors) > 1:
        _check_symbols(inputs, tensors)
    rows, shape_key = _rows_and_shape(prepared, tensors)
    return Checked(rows, shape_key, total, tensors)


def _check_declared(spec: TensorSpec, dtype: int, shape: list[int]) -> None:
    if dtype != spec.dtype:
        expected, got = dtype_name(spec.dtype), dtype_name(dtype)
        raise InvalidInput(f"input {spec.name!r} is {expected}, got {got}", spec.name, expected, got)
    matches = len(shape) == len(spec.shape) or spec.shape == UNKNOWN_RANK
    if matches:
        for dimension, declared in zip(shape, spec.shape):
            if (
                type(dimension) is not int
                or dimension < 0
                or (type(declared) is int and dimension != declared)
            ):
                matches = False
                break
    if not matches:
        expected, got = _declared(spec), tell(shape, 200)
        raise InvalidInput(f"input {spec.name!r} has shape {expected}, got {got}", spec.name, expected, got)


def _declared(spec: TensorSpec) -> str:
    return "[" + ", ".join(str(dimension or "?") for dimension in spec.shape) + "]"


def _check_symbols(inputs: Sequence[TensorSpec], tensors: Sequence[tuple[int, list[int], int]]) -> None:
    """One symbol means one size, in all inputs of a request."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec, (_, shape, _) in zip(inputs, tensors):
        if spec.shape == UNKNOWN_RANK:
            continue
        for declared, dimension in zip(spec.shape, shape):
            if type(declared) is str and declared:
                size, first = sizes.setdefault(declared, (dimension, spec.name))
                if size != dimension:
                    raise InvalidInput(
                        f"input {spec.name!r} has {declared} = {dimension}, but {first!r} has {declared} = {size}",
                        spec.name,
                        f"{declared} = {size}",
                        f"{declared} = {dimension}",
                    )


def _rows_and_shape(
    prepared: PreparedModel, tensors: Sequence[tuple[int, list[int], int]]
) -> tuple[int, ShapeKey]:
    if not prepared.batches:
        return 1, tuple(tuple(shape) for _, shape, _ in tensors)
    for spec, (_, shape, _) in zip(prepared.inputs, tensors):
        if not shape:
            raise InvalidInput(
                f"input {spec.name!r} has no axis of rows", spec.name, "at least 1 axis", "a scalar"
            )
    rows = tensors[0][1][0]
    for spec, (_, shape, _) in zip(prepared.inputs, tensors):
        if shape[0] != rows or rows == 0:
            expected = f"{rows} rows" if rows else "at least 1 row"
            raise InvalidInput(
                f"input {spec.name!r} has {shape[0]} rows, expected {expected}",
                spec.name,
                expected,
                f"{shape[0]} rows",
            )
    return rows, tuple(tuple(shape[1:]) for _, shape, _ in tensors)
