"""The checks of requests and results, and their error texts, written again in Python, for tests of the
exchange.

csrc/controller/checks.cpp makes the same decisions, and clockwork/controller/ports/flaws.py has the same
texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clockwork.config import FAILURE_CHARS_MAX
from clockwork.device._operators import strings_work
from clockwork.errors import InvalidInput
from clockwork.formats.prepared import UNKNOWN_RANK, TensorSpec, contradiction
from clockwork.scheduler.types import ShapeKey
from clockwork.wire.forms import INT64_MAX
from clockwork.wire.messages import NEVER_NS, Result, Status
from clockwork.wire.shared import PLACE, SHARED, unpack
from clockwork.wire.telling import tell
from clockwork.wire.tensors import (
    DTYPES,
    STRING,
    check_strings,
    check_tensor,
    dtype_name,
    length_class,
    string_size,
    tensor_bytes,
)


class Model(NamedTuple):
    """The interface against which requests and results are checked."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batches: bool
    verified: bool = True
    name: str = "m"
    lengths: Mapping[str, int] = {}


class Checked(NamedTuple):
    """Check a request that fits its model.

    ``tensors``: (dtype, shape, frame's index) in the model's input order.
    """

    rows: int
    shape: ShapeKey
    bytes: int
    copied_bytes: int
    tensors: list[tuple[int, list[int], int]]


def check_request(model: Model, refs: Sequence[Any], frames: Sequence[Any], machine: int) -> Checked:
    """Raises InvalidInput, naming the tensor, the expectation and the received value. machine: the machine
    whose memory workers can map."""
    inputs = model.inputs
    places = {spec.name: place for place, spec in enumerate(inputs)}
    if len(refs) != len(frames):
        raise InvalidInput(
            f"{len(refs)} tensors are described, {len(frames)} frames came",
            expected=f"{len(refs)} frames",
            got=str(len(frames)),
        )
    ordered: list[tuple[int, list[int], int] | None] = [None] * len(inputs)
    seen_frames = 0
    total = copied = 0
    for ref in refs:
        match ref:
            case [str(name), int(dtype), list(shape), int(frame)] if 0 <= frame < len(frames):
                pass
            case _:
                raise InvalidInput(
                    "a tensor is described by [name, dtype, shape, frame of this message]",
                    got=tell(ref, 200),
                )
        index = places.get(name)
        if index is None:
            if name or len(inputs) != 1:
                names = ", ".join(repr(spec.name) for spec in inputs)
                if not name and len(inputs) > 1:
                    raise InvalidInput(
                        f"{model.name} has {len(inputs)} inputs, {names}: a request names each of them",
                        "",
                        names,
                        "an array without a name",
                    )
                raise InvalidInput(
                    f"{model.name} has no input {tell(name, 200)}; its inputs are {names}",
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
        if dtype & SHARED and spec.dtype in DTYPES:
            copied += _check_reference(spec, shape, data, machine)
            total += size
            ordered[index] = (dtype, shape, frame)
            continue
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
    rows, shape_key = _rows_and_shape(model, tensors, frames)
    return Checked(rows, shape_key, total, copied, tensors)


def _check_declared(spec: TensorSpec, dtype: int, shape: list[int]) -> None:
    if dtype & ~SHARED != spec.dtype:
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


def _check_reference(spec: TensorSpec, shape: list[int], data: bytes, machine: int) -> int:
    """Return the bytes to which the reference points."""
    wrong = InvalidInput(
        f"input {spec.name!r} has a reference to shared memory that cannot be one", spec.name
    )
    if len(data) != 80 or spec.dtype == STRING:
        raise wrong
    try:
        size = tensor_bytes(spec.dtype, shape)
    except InvalidInput as error:
        raise InvalidInput(f"input {spec.name!r}: {error}", spec.name, error.expected, error.got) from None
    reference = unpack(data)
    if machine == 0 or reference.machine != machine:
        raise InvalidInput(
            f"input {spec.name!r} is in shared memory, and not every worker runs on this client's machine as the same "
            "user; send its bytes",
            spec.name, "bytes", "a reference to memory",
        )  # fmt: skip
    if not 0 <= reference.offset <= INT64_MAX - size or reference.room_bytes < 0:
        raise wrong
    return size


def _declared(spec: TensorSpec) -> str:
    return "[" + ", ".join(str(dimension or "?") for dimension in spec.shape) + "]"


def _check_symbols(inputs: Sequence[TensorSpec], tensors: Sequence[tuple[int, list[int], int]]) -> None:
    """Check that a symbol has the same size in all inputs of a request."""
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
    model: Model, tensors: Sequence[tuple[int, list[int], int]], frames: Sequence[Any]
) -> tuple[int, ShapeKey]:
    def key(index: int, shape: list[int]) -> tuple[int, ...]:
        if model.inputs[index].dtype != STRING:
            declared = model.inputs[index].shape
            if declared == UNKNOWN_RANK:
                return tuple(shape)
            return tuple(
                length_class(size, model.lengths[str(dim)]) if dim in model.lengths else size
                for dim, size in zip(declared[len(declared) - len(shape) :], shape)
            )
        _, dims, frame = tensors[index]
        count = math.prod(dims)
        return (*shape, string_size(count, strings_work(count, frames[frame])))

    if not model.batches:
        return 1, tuple(key(index, shape) for index, (_, shape, _) in enumerate(tensors))
    for spec, (_, shape, _) in zip(model.inputs, tensors):
        if not shape:
            raise InvalidInput(
                f"input {spec.name!r} has no axis of rows", spec.name, "at least 1 axis", "a scalar"
            )
    rows = tensors[0][1][0]
    for spec, (_, shape, _) in zip(model.inputs, tensors):
        if shape[0] != rows or rows == 0:
            expected = f"{rows} rows" if rows else "at least 1 row"
            raise InvalidInput(
                f"input {spec.name!r} has {shape[0]} rows, expected {expected}",
                spec.name,
                expected,
                f"{shape[0]} rows",
            )
    return rows, tuple(key(index, shape[1:]) for index, (_, shape, _) in enumerate(tensors))


def check_result(
    model: Model | None, part_rows: Sequence[int], message: Result, frames: Sequence[Any], has_room: bool
) -> None:
    """Raises InvalidInput for a result that is malformed, or does not fit the model, and says why.

    part_rows: rows of the batch, by parts. model: None for an action other than INFER. has_room: outputs may
    be in memory.
    """
    if message.status not in set(Status):
        raise InvalidInput(f"{message.status} is no status")
    phases = (message.copy_in, message.execute, message.copy_out)
    if sum(phase[2] for phase in phases if phase[1]) >= NEVER_NS:
        raise InvalidInput(f"a result of phases that take {NEVER_NS} ns or more together")
    count = sum(map(len, message.parts))
    if len(frames) > count:
        raise InvalidInput(f"{len(frames)} frames came with a result that names {count}")
    if message.status != Status.OK:
        return
    if len(message.parts) != len(part_rows):
        raise InvalidInput(f"a result of {len(message.parts)} parts for a batch of {len(part_rows)}")
    outputs = [] if model is None else model.outputs
    for part in message.parts:
        if len(part) != len(outputs):
            raise InvalidInput(f"a part of {len(part)} tensors of a model with {len(outputs)} outputs")
        for _, _, frame in part:
            if frame >= len(frames):
                raise InvalidInput(f"an output in frame {frame} of a message with {len(frames)}")
    for part, rows in zip(message.parts, part_rows):
        for spec, (dtype, shape, frame) in zip(outputs, part):
            assert model is not None
            no_place = InvalidInput(
                f"output {tell(spec.name)} is not in its client's memory where it says to be"
            )
            if dtype & SHARED and (not has_room or spec.dtype == STRING or spec.dtype not in DTYPES):
                raise no_place
            plain = dtype & ~SHARED if dtype & ~SHARED == spec.dtype else dtype
            why = contradiction(spec, model.verified, rows if model.batches else 0, plain, shape)
            if why:
                raise InvalidInput(f"output {tell(spec.name)} {why}")
            if not dtype & SHARED:
                _check_bytes(spec, shape, frames[frame])
                continue
            try:
                size = tensor_bytes(spec.dtype, shape)
            except InvalidInput as error:
                raise InvalidInput(f"output {tell(spec.name)}: {error}") from None
            place = PLACE.unpack(frames[frame]) if len(frames[frame]) == PLACE.size else (-1, -1)
            if not 0 <= place[0] <= INT64_MAX - size or place[1] != size:
                raise no_place


def _check_bytes(spec: TensorSpec, shape: list[int], data: Any) -> None:
    try:
        if spec.dtype in DTYPES:
            check_tensor(spec.dtype, shape, len(data))
        if spec.dtype == STRING:
            check_strings(math.prod(shape), data)
    except InvalidInput as error:
        raise InvalidInput(f"output {tell(spec.name)}: {error}") from None
