"""Optional inputs: inputs with a default, which a request may leave out.

The package of a model says which inputs are optional: the metadata of its ONNX file hold their defaults, and
the file declares the inputs like any other. So every reader of a package finds the defaults, and the program
always takes a value. The controller adds the default to a request that leaves an input out.

An optional input has a fixed shape, no axis of rows, and one value for a whole batch. So its value, and not
its shape, is part of the shape by which requests are queued, batched and timed: only requests of equal values
share an execution.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from clockwork.config.models import OPTIONAL_BYTES_MAX, OPTIONAL_INPUTS_MAX, OPTIONAL_RANK_MAX
from clockwork.errors import InvalidModel
from clockwork.wire.messages import VALUE_MARK
from clockwork.wire.telling import tell
from clockwork.wire.tensors import DTYPES, STRING, Array, check_tensor, decode_tensor, encode_array

OPTIONAL_KEY = "clockwork.optional_inputs"
"""Metadata of a model: a JSON object of ``[shape, bytes in base64]`` for each optional input, by name."""


class Default(NamedTuple):
    """The value of an input that a request leaves out, as its frame on the wire."""

    shape: tuple[int, ...]
    data: bytes


def default_of(array: Array) -> Default:
    """An array as the default of an input."""
    _, shape, frame = encode_array(array)
    return Default(tuple(shape), bytes(frame))


def array_of(default: Default, dtype: int) -> Array:
    """Inverse of default_of(). dtype: ONNX's code."""
    return decode_tensor(dtype, default.shape, default.data)


def why_not_optional(dtype: int, shape: Sequence[int | str]) -> str:
    """The reason why an input of this type and declared shape cannot be optional; "" if it can."""
    if dtype == STRING or dtype not in DTYPES:
        return "its type has no elements of a fixed size"
    if len(shape) > OPTIONAL_RANK_MAX or not all(isinstance(dim, int) for dim in shape):
        return f"it has no fixed shape of at most {OPTIONAL_RANK_MAX} dimensions"
    count = 1
    for dim in shape:
        count *= int(dim)
    if not 0 < count * DTYPES[dtype].bits <= 8 * OPTIONAL_BYTES_MAX:
        return f"it does not take between 1 and {OPTIONAL_BYTES_MAX} bytes"
    return ""


def defaults_text(defaults: Mapping[str, Default]) -> str:
    """The metadata's value. Equal defaults give equal text."""
    body = {
        name: [list(default.shape), base64.b64encode(default.data).decode()]
        for name, default in sorted(defaults.items())
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def defaults_from(text: str) -> dict[str, Default]:
    """Inverse of defaults_text(). Raises ValueError."""
    try:
        return {
            str(name): Default(tuple(shape), base64.b64decode(data, validate=True))
            for name, (shape, data) in json.loads(text).items()
        }
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_defaults(
    metadata: Mapping[str, str], inputs: Sequence[tuple[str, int, Sequence[int | str]]]
) -> dict[str, Default]:
    """The defaults that a model's metadata hold, by input. inputs: (name, dtype, shape) of each.

    Raises InvalidModel."""
    text = metadata.get(OPTIONAL_KEY)
    if text is None:
        return {}
    declared = {name: (dtype, shape) for name, dtype, shape in inputs}
    try:
        found = defaults_from(text)
    except ValueError:
        raise InvalidModel(f"its metadata {OPTIONAL_KEY!r} cannot be read") from None
    if len(found) > OPTIONAL_INPUTS_MAX:
        raise InvalidModel(f"it has {len(found)} optional inputs; at most {OPTIONAL_INPUTS_MAX} are served")
    for name, default in found.items():
        if name not in declared:
            raise InvalidModel(f"its metadata have a default of {tell(name)}, which is no input")
        dtype, shape = declared[name]
        if why := why_not_optional(dtype, shape):
            raise InvalidModel(f"input {tell(name)} cannot be optional: {why}")
        if default.shape != tuple(shape) or any(type(dim) is not int for dim in default.shape):
            raise InvalidModel(f"the default of input {tell(name)} is not of its shape {list(shape)}")
        try:
            check_tensor(dtype, default.shape, len(default.data))
        except ValueError as error:
            raise InvalidModel(f"the default of input {tell(name)} does not fit it: {error}") from None
    return found


# ----- values in shapes ----------------------------------------------------------------------------


def value_entry(data: bytes) -> tuple[int, ...]:
    """The entry of a shape that encodes a value of an optional input."""
    padded = data + bytes(-len(data) % 4)
    return VALUE_MARK, *np.frombuffer(padded, "<u4").tolist()


def is_value(entry: Sequence[int]) -> bool:
    """Whether an entry of a shape holds the value of an optional input instead of dimensions."""
    return len(entry) > 1 and entry[0] == VALUE_MARK


def value_of(entry: Sequence[int], size: int) -> bytes:
    """Inverse of value_entry(). size: of the value in bytes. Raises ValueError."""
    data = np.asarray(entry[1:], "<u4").tobytes()
    if not is_value(entry) or len(data) != size + -size % 4:
        raise ValueError(f"{list(entry)} is no value of {size} bytes")
    return data[:size]
