"""Inputs for trial runs of a model, and the comparison of answers.

Real examples are preferred. Without examples, inputs are generated from a fixed seed, and open dimensions are
guessed until the model runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from onnx import TensorProto

from clockwork.config.models import GUESS_SECONDS
from clockwork.device._operators import strings_work
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import UNKNOWN_RANK, TensorSpec
from clockwork.models import samples
from clockwork.models.answers import is_integer_array
from clockwork.models.runtime import RunError
from clockwork.wire.optional import default_of, value_entry
from clockwork.wire.tensors import DTYPES, Array, encode_array, numpy_dtype, string_size

Run: TypeAlias = Callable[[Sequence[Array]], list[Array]]

SEED = 20_201_104  # the first day of OSDI '20

_SIZES = (
    (224, 128), (64, 64), (48, 48), (32, 32), (256, 256), (512, 512), (576, 576), (640, 384), (16, 16),
    (80, 80), (8, 8), (4, 4), (3, 3), (2, 2), (1, 1),
)  # fmt: skip
"""Guesses for open dimensions, as pairs: height and width of an image, and any other dimension."""

ID_BOUNDS = (16, 2, 1)
"""Upper bounds (exclusive) of drawn integers: for token ids and class numbers, for flags, for zeros alone."""


def guesses(specs: Sequence[TensorSpec], contents: Mapping[str, str] = {}) -> Iterator[list[Array]]:
    """Yield inputs to try, most plausible first. An open axis 0 gets a single row.

    contents: kinds of strings by input name, see samples.contents_of().
    """
    open_dims = any(isinstance(dim, str) for spec in specs for dim in spec.shape)
    integers = any(_is_integer(spec.dtype) for spec in specs)
    # The state of a recurrent model has its batch on axis 1.
    recurrent = any(len(spec.shape) == 3 and isinstance(spec.shape[1], str) for spec in specs)
    for middle in (None, 1) if recurrent else (None,):
        for image, other in _SIZES if open_dims else _SIZES[:1]:
            sizes: dict[str, int] = {}
            shapes = [_shape(spec.shape, sizes, image, other, middle) for spec in specs]
            for bound in ID_BOUNDS if integers else ID_BOUNDS[:1]:
                yield draw(specs, shapes, bound, contents)


def draw(
    specs: Sequence[TensorSpec], shapes: Sequence[Sequence[int]], id_bound: int, contents: Mapping[str, str]
) -> list[Array]:
    """Return random inputs of these shapes, the same each time.

    id_bound: of integers, exclusive. contents: as in guesses()."""
    rng = np.random.default_rng(SEED)
    return [
        seeded(spec.dtype, shape, rng, id_bound, contents.get(spec.name, samples.TEXT))
        for spec, shape in zip(specs, shapes)
    ]


def first_that_runs(
    specs: Sequence[TensorSpec], run: Run, contents: Mapping[str, str] = {}
) -> tuple[list[Array] | None, list[Array], str]:
    """Return the first guess that the model accepts, its outputs, and ""; or None, [] and an error."""
    error = ""
    give_up = time.monotonic() + GUESS_SECONDS
    for inputs in guesses(specs, contents):
        try:
            return inputs, run(inputs), ""
        except RunError as failure:
            error = str(failure)
        if time.monotonic() > give_up:
            break
    return None, [], error


def resized(specs: Sequence[TensorSpec], inputs: Sequence[Array]) -> list[Array] | None:
    """Return the inputs with every open dimension larger by 1; None if the model has no open dimension."""
    grown, is_open = [], False
    for spec, given in zip(specs, inputs):
        array = np.asarray(given)
        for axis, dim in enumerate(spec.shape) if spec.shape != UNKNOWN_RANK else ():
            if isinstance(dim, str) and array.shape[axis] > 0:
                array = np.concatenate([array, array.take([0], axis)], axis)
                is_open = True
        grown.append(array)
    return grown if is_open else None


def seen_outputs(
    specs: Sequence[TensorSpec], answers: Sequence[Sequence[Sequence[int]]], rows: bool
) -> list[TensorSpec]:
    """Return the declared outputs, in which dimensions are fixed only if all answers agree on them.

    answers: the shapes of each answer's outputs. rows: whether the first dimension counts rows.
    """
    seen = []
    for index, spec in enumerate(specs):
        shapes = [answer[index] for answer in answers]
        if any(len(shape) != len(spec.shape) for shape in shapes):
            seen.append(TensorSpec(spec.name, spec.dtype, UNKNOWN_RANK))
            continue
        dims = tuple(
            ""
            if isinstance(dim, int) and ((rows and axis == 0) or any(shape[axis] != dim for shape in shapes))
            else dim
            for axis, dim in enumerate(spec.shape)
        )
        seen.append(TensorSpec(spec.name, spec.dtype, dims))
    return seen


def _shape(
    dims: Sequence[int | str], sizes: dict[str, int], image: int, other: int, middle: int | None
) -> tuple[int, ...]:
    if dims == UNKNOWN_RANK:
        return (1, other)
    shape = []
    channels_last = len(dims) == 4 and dims[3] in (1, 3, 4)
    for axis, dim in enumerate(dims):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        is_image = len(dims) == 4 and axis in ((1, 2) if channels_last else (2, 3))
        size = 1 if axis == 0 else image if is_image else other
        if middle is not None and len(dims) == 3 and axis == 1:
            size = middle
        shape.append(sizes.setdefault(dim, size) if is_named(dim) else size)
    return tuple(shape)


def seeded(
    dtype: int,
    shape: Sequence[int],
    rng: np.random.Generator,
    id_bound: int = 16,
    content: str = samples.TEXT,
) -> Array:
    """Return random values that most models accept: normal floats, small integers, words or images."""
    if dtype == TensorProto.STRING:
        return samples.sample(content, shape, int(rng.integers(0, 9)))
    kind = numpy_dtype(dtype)
    if dtype == TensorProto.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if _is_integer(dtype):
        bound = min(id_bound, 1 << (DTYPES[dtype].bits - 1))
        return rng.integers(0, bound, shape).astype(kind)
    return np.asarray(rng.standard_normal(shape)).astype(kind)


def _is_integer(dtype: int) -> bool:
    return dtype != TensorProto.STRING and "int" in numpy_dtype(dtype).name


def different_rows(inputs: Sequence[Array], count: int) -> list[list[Array]]:
    """Return ``count`` variations of inputs with a single row, which differ in value and in magnitude.

    Different magnitudes expose a model that scales over all rows (dynamic quantisation), because its answers
    in a batch differ. Integers are drawn from those of the inputs, so that ids stay valid.
    """
    rng = np.random.default_rng(SEED)
    rows = [[np.asarray(array) for array in inputs]]
    for index in range(1, count):
        scale = (4.0, 0.125)[index % 2] * (1 + index // 2)
        row: list[Array] = []
        for array in inputs:
            if array.size == 0:
                row.append(array)
            elif array.dtype.kind in "OSU":
                is_image = any(isinstance(value, bytes) for value in array.flat)
                row.append(
                    samples.sample(samples.JPEG if is_image else samples.TEXT, array.shape, 10 * index)
                )
            elif array.dtype == bool or is_integer_array(array):
                row.append(rng.permutation(array.reshape(-1)).reshape(array.shape))
            else:
                mixed = rng.permutation(array.reshape(-1)).reshape(array.shape)
                row.append((mixed.astype(np.complex128 if array.dtype.kind == "c" else np.float64) * scale)
                           .astype(array.dtype))  # fmt: skip
        rows.append(row)
    return rows


def timed_shape(
    inputs: Sequence[Array], batches: bool, rowless: Sequence[bool] = ()
) -> tuple[tuple[int, ...], ...]:
    """Return the key under which execution times of these inputs are kept.

    The key is the shapes, without rows if the model batches. The size of a string follows the shape of
    strings, and an optional input (rowless: see PreparedModel.rowless()) is represented by its value.
    """
    found: list[tuple[int, ...]] = []
    for index, array in enumerate(inputs):
        if any(rowless[index : index + 1]):
            found.append(value_entry(default_of(np.asarray(array)).data))
            continue
        dims = tuple(array.shape[1:] if batches else array.shape)
        if array.dtype.kind in "OSU":
            work = strings_work(array.size, encode_array(array)[2])
            dims = (*dims, string_size(array.size, work))
        found.append(dims)
    return tuple(found)
