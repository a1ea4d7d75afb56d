"""Headers to bytes and back. The frames behind a header are never touched here.

Decoding trusts nothing: sizes are bounded before msgpack allocates, the tag must belong to the
direction, and every field must have its declared type.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import msgpack

from clockwork.config import HEADER_BYTES_MAX
from clockwork.errors import ClockworkError
from clockwork.messages import TAG_OF


class WireError(ClockworkError):
    """A header that is not one of ours; the sentence says what is wrong with it."""


_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(message: tuple[Any, ...]) -> bytes:
    """The header frame of a message."""
    return typing.cast(bytes, _pack((TAG_OF[type(message)], *message)))


def decode(header: Any, table: Mapping[int, type]) -> Any:
    """The message in a header frame (bytes-like), of one of the kinds in ``table``. Raises WireError."""
    if len(header) > HEADER_BYTES_MAX:
        raise WireError(f"a header of {len(header)} bytes is larger than {HEADER_BYTES_MAX}")
    try:
        # msgpack bounds every length by the size of its input, and nesting by itself.
        fields = msgpack.unpackb(header, raw=False, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"a header that is not msgpack: {type(error).__name__}: {error}") from None
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise WireError("a header is an array that begins with a message tag")
    kind = table.get(fields[0])
    if kind is None:
        raise WireError(f"message tag {fields[0]} is unknown in this direction")
    types = _FIELD_TYPES[kind]
    if len(fields) - 1 != len(types):
        raise WireError(f"{kind.__name__} has {len(types)} fields, got {len(fields) - 1}")
    del fields[0]
    for value, expected in zip(fields, types):
        if type(value) is not expected and expected is not object:
            names = typing.cast(Any, kind)._fields
            name = names[[t is not object and type(v) is not t for v, t in zip(fields, types)].index(True)]
            raise WireError(f"{kind.__name__}.{name} must be {expected.__name__}, got {type(value).__name__}")
    return typing.cast(Any, kind)._make(fields)


def request_id_of(header: Any, table: Mapping[int, type]) -> int:
    """The request id in a header that decode() refuses, so that whoever waits for it hears of it; 0 if there is none."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(bytes(memoryview(header)[:_BEGINNING_BYTES]))
    try:
        unpacker.read_array_header()
        kind, request_id = table.get(unpacker.unpack()), unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException):
        return 0
    if kind is None or typing.cast(Any, kind)._fields[:1] != ("request_id",):
        return 0
    return request_id if type(request_id) is int and 0 <= request_id < 1 << 63 else 0


_BEGINNING_BYTES = 32  # an array's head, a tag and a number take less


def _field_types(kind: type) -> tuple[type, ...]:
    hints = typing.get_type_hints(kind)
    types = (hints[name] for name in typing.cast(Any, kind)._fields)
    return tuple(object if hint is Any else typing.get_origin(hint) or hint for hint in types)


_FIELD_TYPES = {kind: _field_types(kind) for kind in TAG_OF}
