"""Converts tensors between the Open Inference Protocol and Clockwork's frames.

Both have the same raw bytes (little-endian, row by row, strings with their 4-byte lengths), so binary tensors
pass unchanged. Numbers in JSON are converted to such bytes; a value that does not fit its datatype is an
error.
"""

from __future__ import annotations

import array
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from clockwork.config import RANK_MAX, STRINGS_MAX
from clockwork.config.gateway import ELEMENTS_AT_ONCE, LISTED_AT_ONCE_BYTES
from clockwork.errors import InvalidInput
from clockwork.protocol.datatypes import DATATYPES, NAME_OF, STANDARD
from clockwork.wire import tensors
from clockwork.wire.telling import tell
from clockwork.wire.transport import Frame

_ARRAY_CODES = {
    tensors.UINT8: "B", tensors.UINT16: "H", tensors.UINT32: "I", tensors.UINT64: "Q", tensors.INT8: "b",
    tensors.INT16: "h", tensors.INT32: "i", tensors.INT64: "q", tensors.FLOAT: "f", tensors.DOUBLE: "d",
}  # fmt: skip
"""By datatype: the type code of Python's array and memoryview.cast(); array refuses values that do not fit.
"""

_LISTED = (tensors.BOOL, tensors.FLOAT16, tensors.STRING)  # Datatypes without a form in JSON


def code_of(datatype: Any, name: str) -> int:
    """Return ONNX's code of an input's datatype. name: the input's, for the error. Raises InvalidInput."""
    code = DATATYPES.get(datatype) if type(datatype) is str else None
    if code is None:
        raise InvalidInput(
            f"input {name!r} has datatype {tell(datatype)}, which is none of {', '.join(STANDARD)}",
            name, "a datatype of the protocol", tell(datatype),
        )  # fmt: skip
    return code


def name_of_dtype(name: str) -> str:
    """Return the protocol's datatype for a dtype of a model's description, such as "float32"."""
    return NAME_OF[tensors.code_of(name)]


def checked_shape(shape: Any, name: str) -> list[int]:
    """Return ``shape`` unchanged. Raises InvalidInput unless it is a list of natural numbers."""
    if type(shape) is not list or len(shape) > RANK_MAX:
        raise InvalidInput(
            f"input {name!r} needs a shape, a list of at most {RANK_MAX} integers",
            name, f"at most {RANK_MAX} integers", tell(shape),
        )  # fmt: skip
    for dimension in shape:
        if type(dimension) is not int or not 0 <= dimension < 1 << 62:
            raise InvalidInput(
                f"input {name!r} has dimension {tell(dimension)}, which is no natural number",
                name, "natural numbers", tell(dimension),
            )  # fmt: skip
    return shape


def check_size(code: int, shape: Sequence[int], size: int, name: str) -> None:
    """Raise InvalidInput unless a tensor of this datatype and shape can have ``size`` raw bytes."""
    try:
        expected = tensors.tensor_bytes(code, shape)
    except InvalidInput as error:
        raise InvalidInput(f"input {name!r}: {error}", name, error.expected, error.got) from None
    if size == expected or (code == tensors.STRING and size > expected):
        return
    more = f"expecting {expected - size} additional bytes" if size < expected else "too many"
    raise InvalidInput(
        f"input {name!r} of datatype {NAME_OF[code]} and shape {list(shape)} takes {expected} bytes, "
        f"got {size} ({more})",
        name, f"{expected} bytes", f"{size} bytes",
    )  # fmt: skip


def frame_of_json(code: int, shape: Sequence[int], data: Any, name: str) -> Frame:
    """Return the raw bytes of a tensor's ``data`` in JSON, nested or flat; made in pieces.

    Raises InvalidInput.
    """
    if type(data) is not list:
        raise InvalidInput(
            f"input {name!r} has no list of data, and says no binary_data_size", name, "data", tell(data)
        )
    flat = _flatten(data, name)
    count = math.prod(shape)
    if len(flat) != count:
        raise InvalidInput(
            f"input {name!r} of shape {list(shape)} has {count} elements, got {len(flat)}",
            name, f"{count} elements", f"{len(flat)} elements",
        )  # fmt: skip
    return _ENCODERS.get(code, _encode_numbers)(code, flat, name)


class Listed:
    """The elements of an output as a flat list of JSON, written in pieces."""

    __slots__ = ("_code", "_view", "nbytes")

    def __init__(self, code: int, frame: Any, name: str) -> None:
        """Wrap a frame. Raises InvalidInput where JSON has no form for the datatype."""
        if code not in _ARRAY_CODES and code not in _LISTED:
            raise InvalidInput(
                f"output {name!r} of datatype {NAME_OF.get(code, code)} has no form in JSON; ask for binary data",
                name, "binary data",
            )  # fmt: skip
        self._code = code
        self._view = memoryview(frame).cast("B")
        self.nbytes = self._view.nbytes

    def piece(self, begin: int) -> tuple[bytes, int]:
        """Return the JSON of some elements from the byte ``begin`` on, and the index of the first byte after
        them."""
        if self._code == tensors.STRING:
            values, end = self._strings(begin)
        else:
            end = min(begin + LISTED_AT_ONCE_BYTES, self.nbytes)
            values = _numbers(self._code, self._view[begin:end])
        text = json.dumps(values, separators=(",", ":"))[1:-1].encode()
        return (b"," + text if begin else text), end

    def _strings(self, begin: int) -> tuple[list[Any], int]:
        elements, end = [], begin
        while end < min(begin + LISTED_AT_ONCE_BYTES, self.nbytes):
            first = end + 4
            end = first + int.from_bytes(self._view[end:first], "little")
            elements.append(bytes(self._view[first:end]).decode("utf-8", "replace"))
        return elements, end


def _numbers(code: int, view: memoryview) -> list[Any]:
    typecode = _ARRAY_CODES.get(code)
    if typecode is not None:
        return cast(list[Any], view.cast(cast(Any, typecode)).tolist())
    if code == tensors.BOOL:
        return [byte != 0 for byte in view]
    found: list[Any] = np.frombuffer(view, np.float16).astype(np.float32).tolist()
    return found


def _flatten(data: list[Any], name: str) -> list[Any]:
    for _ in range(RANK_MAX):
        if not data or type(data[0]) is not list:
            return data
        if not all(type(part) is list for part in data):
            raise InvalidInput(f"input {name!r} has data that is nested unevenly", name, "lists", "a mixture")
        flat: list[Any] = []
        for part in data:
            flat += part
        data = flat
    raise InvalidInput(f"input {name!r} has data nested deeper than {RANK_MAX}", name)


def _encode_numbers(code: int, flat: list[Any], name: str) -> Frame:
    typecode = _ARRAY_CODES.get(code)
    if typecode is None:
        datatype = NAME_OF[code]
        raise InvalidInput(
            f"input {name!r} of datatype {datatype} has no form in JSON; send binary data",
            name,
            "binary data",
        )
    found = array.array(typecode)
    for begin in range(0, len(flat), ELEMENTS_AT_ONCE):
        piece = flat[begin : begin + ELEMENTS_AT_ONCE]
        if bool in set(map(type, piece)):  # in Python, a bool is an integer
            raise _misfit(code, next(value for value in piece if type(value) is bool), name)
        try:
            found.fromlist(piece)
        except (TypeError, OverflowError, ValueError):
            raise _misfit(code, _first_misfit(typecode, piece), name) from None
    return memoryview(found).cast("B")


def _first_misfit(typecode: str, flat: list[Any]) -> Any:
    good, bad = 0, len(flat)  # the first ``good`` elements fit, the first ``bad`` do not
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            array.array(typecode, flat[good:middle])
            good = middle
        except (TypeError, OverflowError, ValueError):
            bad = middle
    return flat[good]


def _misfit(code: int, wrong: Any, name: str, expected: str = "") -> InvalidInput:
    got = tell(wrong)
    return InvalidInput(
        f"input {name!r} of datatype {NAME_OF[code]} cannot hold {got}", name, expected or NAME_OF[code], got
    )


def _encode_half(code: int, flat: list[Any], name: str) -> bytes:
    wide = np.frombuffer(_encode_numbers(tensors.FLOAT, flat, name), np.float32)
    with np.errstate(over="ignore"):
        return wide.astype(np.float16).tobytes()


def _encode_bools(code: int, flat: list[Any], name: str) -> bytes:
    for value in flat:
        if type(value) is not bool:
            raise _misfit(code, value, name, "true or false")
    return bytes(flat)


def _encode_strings(code: int, flat: list[Any], name: str) -> bytes:
    if len(flat) > STRINGS_MAX:
        error = tensors.too_many_strings(len(flat))
        raise InvalidInput(f"input {name!r}: {error}", name, error.expected, error.got)
    for value in flat:
        if type(value) is not str:
            raise _misfit(code, value, name, "strings")
    return tensors.join_strings([value.encode("utf-8", "surrogatepass") for value in flat])


_ENCODERS: dict[int, Callable[[int, list[Any], str], Frame]] = {
    tensors.BOOL: _encode_bools,
    tensors.FLOAT16: _encode_half,
    tensors.STRING: _encode_strings,
}
