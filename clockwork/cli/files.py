"""Reads a model's inputs from files, and writes its outputs to files and as text, for the command line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.errors import ConfigError, InvalidInput
from clockwork.wire.description import ModelInfo, TensorInfo
from clockwork.wire.telling import tell
from clockwork.wire.tensors import STRING, Array, code_of, numpy_dtype

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
OUTPUTS = (".npy", ".npz", ".json")
UNNAMED = "arr_0"  # The name that numpy.savez() gives to an unnamed array
BEST = 5  # Number of labels shown for each row


EXAMPLES = Path(__file__).parents[1] / "models" / "data" / "digits"
"""Pictures of digits, 0.png to 9.png, for the demo model."""


def example(name: str) -> Path:
    """Return the file of an example that comes with the package. Raises InvalidInput."""
    known = sorted(path.stem for path in EXAMPLES.glob("*.png"))
    if name not in known:
        raise InvalidInput(
            f"there is no example {tell(name)}; there are {', '.join(known)}", expected=" ".join(known)
        )
    return EXAMPLES / f"{name}.png"


def read_inputs(
    arguments: Sequence[str], info: ModelInfo, note: Callable[[str], None] = lambda line: None
) -> dict[str, Array]:
    """Read the inputs of a model from ``file`` or ``name=file`` arguments. Raises InvalidInput.

    note: called with a sentence for each image whose layout and scaling are guessed.
    """
    specs = {spec.name: spec for spec in info.inputs}
    inputs: dict[str, Array] = {}

    def give(name: str, array: Array, argument: str) -> None:
        if name in inputs:
            raise InvalidInput(f"input {name!r} is given twice, the second time by {argument}", name)
        inputs[name] = array

    for argument in arguments:
        name, equals, file = argument.partition("=")
        if equals and name in specs:
            give(name, _read_array(Path(file), specs[name], info, note), argument)
            continue
        path = Path(argument)
        if equals and not path.exists():
            raise InvalidInput(f"model {info.name!r} has no input {name!r}; it has {', '.join(specs)}", name)
        required = [spec for spec in info.inputs if not spec.optional]
        if len(required) == 1:
            (only,) = required
            if not _is_mapping(path) or (path.suffix == ".npz" and list(_read_many(path)) == [UNNAMED]):
                give(only.name, _read_array(path, only, info, note), argument)
                continue
        elif not _is_mapping(path):
            raise InvalidInput(
                f"model {info.name!r} has the inputs {', '.join(specs)}: say {next(iter(specs))}={argument}"
            )
        for key, value in _read_many(path).items():
            if key not in specs:
                raise InvalidInput(
                    f"model {info.name!r} has no input {key!r}; it has {', '.join(specs)}", key
                )
            give(key, _typed(value, specs[key]), argument)
    return inputs


def read_examples(path: Path) -> Any:
    """Read example inputs for registration: a dict by input name (.npz, .json), or an array (.npy)."""
    if path.suffix in (".npz", ".json"):
        return _read_many(path)
    return _load_numpy(path)


def check_output_name(path: Path) -> None:
    """Raise ConfigError unless the file's suffix names a format of outputs."""
    if path.suffix not in OUTPUTS:
        raise ConfigError(f"output {path}: the name must end in {', '.join(OUTPUTS)}")


def pack_outputs(path: Path, outputs: Mapping[str, Array]) -> bytes:
    """Return the content of a file with the outputs, in the format of the path's suffix."""
    if path.suffix == ".json":
        return json.dumps({name: _listed(array) for name, array in outputs.items()}).encode()
    plain = {
        name: array.astype(np.str_) if array.dtype == object else array for name, array in outputs.items()
    }
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, allow_pickle=False, **plain)
    elif len(plain) != 1:
        raise InvalidInput(
            f"{path}: a .npy file holds one array, the model has the outputs {', '.join(outputs)}"
        )
    else:
        np.save(buffer, next(iter(plain.values())), allow_pickle=False)
    return buffer.getvalue()


def describe_outputs(outputs: Mapping[str, Array], info: ModelInfo) -> list[str]:
    """Return an answer for people, in lines: labels with their scores if the model has labels, else the
    arrays."""
    from clockwork.models import images

    lines = []
    if images.has_labels(info.metadata) and len(outputs) == 1:
        (scores,) = outputs.values()
        for row in scores.reshape(-1, scores.shape[-1]) if scores.ndim else ():
            ranked = images.labelled(row, info.metadata)
            top = ranked[0][1]
            lines.append(f"{info.name}: {ranked[0][0]}")
            lines += [
                f"    {label:<16} {score:8.4f}  {'#' * round(30 * max(0.0, score) / top) if top > 0 else ''}"
                for label, score in ranked[:BEST]
            ]
    else:
        for name, array in outputs.items():
            kind = "string" if array.dtype == object else str(array.dtype)
            lines.append(f"{name}  {kind} {list(array.shape)}")
            shown = np.array2string(array, threshold=200, edgeitems=4, max_line_width=100)
            lines += shown.split("\n")
    return lines


def _is_mapping(path: Path) -> bool:
    return path.suffix == ".npz" or (path.suffix == ".json" and isinstance(_load_json(path), dict))


def _read_many(path: Path) -> dict[str, Any]:
    """Read values by name from .npz or .json."""
    content = _load_numpy(path) if path.suffix == ".npz" else _load_json(path)
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds no values by input name")
    return content


def _read_array(path: Path, spec: TensorInfo, info: ModelInfo, note: Callable[[str], None]) -> Array:
    suffix = path.suffix.lower()
    if code_of(spec.dtype) == STRING and suffix in (*IMAGES, ".txt"):
        return _as_strings(path, spec)
    if suffix in IMAGES:
        from clockwork.formats.prepared import TensorSpec
        from clockwork.models import images

        if not path.is_file():
            raise InvalidInput(f"{path} does not exist", spec.name)
        taken = TensorSpec(spec.name, code_of(spec.dtype), spec.shape)
        if guessed := images.guess(path, info.metadata, taken):
            note(guessed)
        return images.image_to_input(path, info.metadata, taken)
    if suffix in (".npy", ".npz"):
        content = _load_numpy(path)
    elif suffix == ".json":
        content = _load_json(path)
    else:
        raise InvalidInput(f"{path}: an input is a .npy, .npz, .json, .txt or image file", spec.name)
    if isinstance(content, dict):
        if len(content) != 1:
            raise InvalidInput(f"{path} holds {len(content)} arrays, input {spec.name!r} is one", spec.name)
        (content,) = content.values()
    return _typed(content, spec)


def _as_strings(path: Path, spec: TensorInfo) -> Array:
    """Read a file as a string for a model with string inputs: an image unchanged, a text without its final
    line end."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", spec.name) from None
    if path.suffix.lower() == ".txt":
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    array = np.empty(1, object)
    array[0] = data
    return array.reshape([1] * len(spec.shape))


def _typed(value: Any, spec: TensorInfo) -> Array:
    """Return arrays unchanged, and JSON's numbers in the model's type."""
    if isinstance(value, np.ndarray):
        return value
    code = code_of(spec.dtype)
    try:
        if code == STRING:
            return np.array(value, dtype=object)
        return np.array(value).astype(numpy_dtype(code))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"input {spec.name!r}: not a {spec.dtype} array: {error}", spec.name) from None


def _load_numpy(path: Path) -> Any:
    """Read an array, or a dict of arrays. Raises InvalidInput."""
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path} is not a numpy file: {error}") from None


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from None


def _listed(array: Array) -> Any:
    """Return an array as nested lists of JSON values."""
    if array.dtype.kind in "fiub":
        return array.tolist()
    if array.dtype == object:
        return array.tolist()
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], -1).tolist()
    return array.astype(np.float64).tolist()
