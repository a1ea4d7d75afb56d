"""A model's package for its registration: the names of its files, and the examples of inputs among them.

Packages are made with onnx (models.packaging) or without (client.plain_package).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from clockwork.config.models import EXAMPLES_MAX
from clockwork.errors import InvalidModel
from clockwork.wire.tensors import STRING, Array, as_array, numpy_dtype

MODEL_FILE = "model.onnx"
PROFILE_FILE = "profile.json"
PROGRAM_JSON = "program.json"
FIRST_FILES = (MODEL_FILE, PROFILE_FILE, PROGRAM_JSON)  # Names of a package's first file, which tell its kind

EXAMPLES_FILE = "examples.npz"
LIST_FILE = "package.json"

RESERVED_FILES = (MODEL_FILE, EXAMPLES_FILE, LIST_FILE)  # Names that external data may not have

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that Git LFS left in place of a large file."""

PackageFiles: TypeAlias = list[tuple[str, Path | bytes]]
"""(path in the package, source file or content) of each file, the first file first."""

Examples: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
"""Real inputs: a dict of arrays by input name, or several such dicts."""


class DeclaredInput(NamedTuple):
    """An input as a model's file declares it."""

    name: str
    dtype: int  # ONNX's code of the data type
    rank: int | None  # number of dimensions; None: not declared


def source_of(model: Any) -> tuple[Path, bytes | None]:
    """A model's path, or its name in error messages with its bytes. Raises InvalidModel.

    model: a path, an ONNX file's bytes, or an onnx.ModelProto.
    """
    if isinstance(model, str) and "://" in model:
        raise InvalidModel(
            f"{model} is a URL: `clockwork models add` takes it; register() takes files on this machine"
        )
    if isinstance(model, (str, os.PathLike)):
        return Path(model), None
    data = model if isinstance(model, bytes) else getattr(model, "SerializeToString", lambda: None)()
    if not isinstance(data, bytes):
        raise InvalidModel(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")
    return Path(MODEL_FILE), data


def external_path(directory: Path, location: str) -> Path:
    """The file that a location names, which must lie within the model's folder. Raises InvalidModel."""
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts or "\\" in location or "\0" in location:
        raise InvalidModel(f"external data {location!r} lies outside the model's folder")
    path = directory / pure
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidModel(f"external data {location!r} is a link that leaves the model's folder")
    return path


def check_external_name(location: str) -> None:
    """Raises InvalidModel where a location is the name of another file of the package."""
    if str(PurePosixPath(location)) in RESERVED_FILES:
        raise InvalidModel(f"external data may not be called {location!r}")


# ----- examples ------------------------------------------------------------------------------


def check_examples(examples: Any) -> None:
    """Raise InvalidModel for a path, and for a list of no examples."""
    if isinstance(examples, (str, bytes, os.PathLike)):
        path = os.fsdecode(examples)
        raise InvalidModel(
            f"examples are arrays, not the path {path!r}: read the file first, as with dict(numpy.load({path!r}))"
        )
    if isinstance(examples, Sequence) and not examples:
        raise InvalidModel("examples is empty: give at least one, or leave it out, and inputs are made up")


def name_examples(examples: Any, names: Sequence[str]) -> Any:
    """Examples by input name; for a model with a single input they may be an array. Raises InvalidModel.

    names: of the model's inputs.
    """
    if examples is None or isinstance(examples, Mapping):
        return examples
    rows = examples if isinstance(examples, Sequence) else [examples]
    if all(isinstance(row, Mapping) for row in rows):
        return examples
    if len(names) != 1:
        raise InvalidModel(f"examples of a model with the inputs {list(names)} are dicts by input name")
    return {names[0]: as_array(examples)}


def pack_examples(
    declared: Sequence[DeclaredInput], examples: Examples, defaults: Mapping[str, Array] = {}
) -> bytes:
    """The bytes of examples.npz ("<index>/<input name>" -> array), or b"". Equal examples give equal bytes.

    declared: the model's inputs, all of which each example has, except that it may leave out an optional
    input. defaults: of optional inputs. Raises InvalidModel.
    """
    if examples is None:
        return b""
    rows = [examples] if isinstance(examples, Mapping) else list(examples)
    inputs = {spec.name: spec for spec in declared}
    arrays: dict[str, Any] = {}
    for index, row in enumerate(rows[:EXAMPLES_MAX]):
        if isinstance(row, Mapping):
            row = {**{name: default for name, default in defaults.items() if name not in row}, **row}
        if not isinstance(row, Mapping) or set(row) != set(inputs):
            got = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise InvalidModel(f"an example is a dict with the keys {sorted(inputs)}, not {got}")
        for name, value in row.items():
            array = np.asarray(value)
            wanted = inputs[name]
            if array.dtype.kind in "OUS":
                array = _packed_strings(array)
            elif wanted.dtype != STRING:
                expected = numpy_dtype(wanted.dtype)
                if array.dtype != expected:
                    raise InvalidModel(f"example {name!r} is {array.dtype}; the model takes {expected}")
            if wanted.rank is not None and wanted.rank != array.ndim:
                raise InvalidModel(
                    f"example {name!r} has rank {array.ndim}; the model takes rank {wanted.rank}"
                )
            arrays[f"{index}/{name}"] = array
    if not arrays:
        return b""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _packed_strings(array: Array) -> Array:
    """Strings as an array that needs no pickle: of text, or, where a string is no text (an image), of bytes
    of the same length, padded with zero bytes."""
    try:
        texts = [
            text.decode() if isinstance(text, bytes) else str(text) for text in array.reshape(-1).tolist()
        ]
        return np.array(texts, np.str_).reshape(array.shape)
    except UnicodeDecodeError:
        return padded_strings(array)


def padded_strings(array: Array) -> Array:
    """Strings padded with zero bytes to the same length; decoders of images do not read the padding."""
    texts = [text if isinstance(text, bytes) else text.encode() for text in array.reshape(-1).tolist()]
    size = max(map(len, texts), default=0) or 1
    return np.array([np.void(text.ljust(size, b"\0")) for text in texts], f"V{size}").reshape(array.shape)
