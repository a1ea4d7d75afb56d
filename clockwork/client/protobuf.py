"""Reads protobuf messages field by field, and writes them with some fields replaced, without a library.

Values of fields are views of the message's bytes, so that tensors are skipped over and not copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

Field: TypeAlias = tuple[int, int | memoryview]
"""A field's number and value: an int, or a view of a text, a message or a value of fixed size."""

Replace: TypeAlias = Callable[[int, memoryview], Iterable[bytes] | None]
"""A function from a field's number and value to the fields that replace it; None: the field stays."""


class DamagedMessage(ValueError):
    """The bytes are no protobuf message."""


class Message:
    """Read the fields of a message. Raises DamagedMessage where the bytes are no message."""

    def __init__(self, content: memoryview) -> None:
        self._fields: list[tuple[int, int | memoryview, memoryview]] = []
        at = 0
        for number, value, end in _fields(content):
            self._fields.append((number, value, content[at:end]))
            at = end

    def all(self, number: int) -> list[memoryview]:
        """Return the messages or texts of a repeated field, in order."""
        return [
            value for found, value, _ in self._fields if found == number and isinstance(value, memoryview)
        ]

    def last(self, number: int) -> memoryview | None:
        """Return the message or text of a singular field; None: the field is missing."""
        found = self.all(number)
        return found[-1] if found else None

    def changed(self, replace: Replace) -> bytes:
        """Return the message's bytes with some fields replaced."""
        parts: list[bytes | memoryview] = []
        for number, value, whole in self._fields:
            others = replace(number, value) if isinstance(value, memoryview) else None
            parts.extend([whole] if others is None else others)
        return b"".join(parts)

    def with_all(self, number: int, messages: Sequence[bytes]) -> bytes:
        """Return the message's bytes with these values as the only values of a field."""
        kept = [(found, whole) for found, _, whole in self._fields if found != number]
        before = [whole for _, whole in itertools.takewhile(lambda pair: pair[0] < number, kept)]
        after = [whole for _, whole in kept[len(before) :]]
        return b"".join([*before, *(field(number, message) for message in messages), *after])


def field(number: int, value: int | bytes) -> bytes:
    """Return the bytes of a field: a natural number, a text or a message."""
    if isinstance(value, int):
        return _encode(number << 3) + _encode(value)
    return _encode(number << 3 | 2) + _encode(len(value)) + value


def fields(message: memoryview) -> Iterator[Field]:
    """Return the fields of a message, in order. Raises DamagedMessage."""
    return ((number, value) for number, value, _ in _fields(message))


def number_of(message: memoryview, number: int) -> int:
    """Return the last integer of a field; 0: there is none. Raises DamagedMessage."""
    return (integers(message, number) or [0])[-1]


def integers(message: memoryview, number: int) -> list[int]:
    """Return the integers of a field, packed or not, as signed numbers of 64 bits. Raises DamagedMessage."""
    found: list[int] = []
    for key, value in fields(message):
        if key != number:
            continue
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            element, at = _varint(value, at)
            found.append(element)
    return [(element & (1 << 64) - 1) - ((element >> 63 & 1) << 64) for element in found]


def texts(message: memoryview, number: int) -> list[str]:
    """Return the texts of a field, in order. Raises DamagedMessage."""
    return [_text(value) for key, value in fields(message) if key == number and isinstance(value, memoryview)]


def text_of(message: memoryview, number: int) -> str:
    """Return the last text of a field; "": there is none. Raises DamagedMessage."""
    found = None
    for key, value in fields(message):
        if key == number and isinstance(value, memoryview):
            found = value
    return "" if found is None else _text(found)


def _text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise DamagedMessage from None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, int]]:
    """Yield the number, the value and the end of each field."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value, at
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise DamagedMessage
        if size > end - at:
            raise DamagedMessage
        yield key >> 3, message[at : at + size], at + size
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the varint at ``at``, and the index after it."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DamagedMessage


def _encode(number: int) -> bytes:
    """Return a natural number as a varint."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
