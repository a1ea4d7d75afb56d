"""Decoding of headers in plain Python: the counterpart of _codec, with the same bounds and sentences.

For machines on which nothing is compiled. As in _codec, no value of a header is built before it is known to
be within its bounds: each value is read by the form of its place, so that depth, length and number are those
of the declaration, whatever the bytes are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from clockwork.config.wire import UNKNOWN_DEPTH_MAX, UNKNOWN_FIELDS_MAX, UNKNOWN_VALUES_MAX
from clockwork.wire.forms import (
    INT64_MAX,
    Anything,
    Either,
    Facts,
    Flag,
    Form,
    Integer,
    ListOf,
    Real,
    Record,
    Row,
    Text,
)
from clockwork.wire.telling import tell

_TOLD_BYTES = 400  # the bytes of an unfit text that are read for an error

# Kinds of the next value. Behind a head is the size of a container or text; of other kinds, the value.
_NIL, _FLAG, _INTEGER, _NATURAL, _REAL, _TEXT, _BYTES, _ARRAY, _MAP = range(9)

_NUMBERS: Final = {
    0xCA: (_REAL, struct.Struct(">f")),
    0xCB: (_REAL, struct.Struct(">d")),
    0xCC: (_INTEGER, struct.Struct(">B")),
    0xCD: (_INTEGER, struct.Struct(">H")),
    0xCE: (_INTEGER, struct.Struct(">I")),
    0xCF: (_INTEGER, struct.Struct(">Q")),
    0xD0: (_INTEGER, struct.Struct(">b")),
    0xD1: (_INTEGER, struct.Struct(">h")),
    0xD2: (_INTEGER, struct.Struct(">i")),
    0xD3: (_INTEGER, struct.Struct(">q")),
}
_SIZED: Final = {
    0xC4: (_BYTES, struct.Struct(">B")),
    0xC5: (_BYTES, struct.Struct(">H")),
    0xC6: (_BYTES, struct.Struct(">I")),
    0xD9: (_TEXT, struct.Struct(">B")),
    0xDA: (_TEXT, struct.Struct(">H")),
    0xDB: (_TEXT, struct.Struct(">I")),
    0xDC: (_ARRAY, struct.Struct(">H")),
    0xDD: (_ARRAY, struct.Struct(">I")),
    0xDE: (_MAP, struct.Struct(">H")),
    0xDF: (_MAP, struct.Struct(">I")),
}
"""By first byte: the kind of the value, and the format of the number or size behind that byte."""


class Odd(ValueError):
    """A header that differs from its declaration. The sentence names the field, its bounds and the value."""


class OddKind(Odd):
    """A header of a kind of message that is unknown in its direction."""


class Layout:
    """The layout of a message kind's header. fields: the form of each, in order. bytes_max: of the header."""

    __slots__ = ("bytes_max", "defaults", "forms", "further_max", "kind", "names")

    def __init__(
        self,
        kind: type,
        fields: Mapping[str, Form],
        bytes_max: int,
        defaults: Sequence[Any] = (),
        further_max: int = 0,
    ) -> None:
        """defaults: of the last fields, which an earlier release leaves out. further_max: fields of a later
        release behind them that are skipped."""
        self.defaults = tuple(defaults)
        self.further_max = further_max
        self.kind = kind
        self.names = tuple(f"{kind.__name__}.{name}" for name in fields)
        self.forms = tuple(fields.values())
        self.bytes_max = bytes_max


class _Cut(Exception):
    """The bytes end before the value does, or are no msgpack."""


class _Reader:
    """Parses msgpack; never reads beyond the end, and allocates nothing by an unchecked length."""

    __slots__ = ("at", "data", "end")

    def __init__(self, header: Any) -> None:
        self.data = bytes(memoryview(header))
        self.at = 0
        self.end = len(self.data)

    def head(self) -> tuple[int, Any]:
        """The kind of the next value, and the value, or a size that the bytes suffice for. Raises _Cut."""
        at = self.at
        if at >= self.end:
            raise _Cut
        first = self.data[at]
        self.at = at + 1
        if first < 0x80:
            return _INTEGER, first
        if first >= 0xE0:
            return _INTEGER, first - 0x100
        if first < 0x90:
            return self._sized(_MAP, first & 0x0F)
        if first < 0xA0:
            return self._sized(_ARRAY, first & 0x0F)
        if first < 0xC0:
            return self._sized(_TEXT, first & 0x1F)
        if first == 0xC0:
            return _NIL, None
        if first in (0xC2, 0xC3):
            return _FLAG, first == 0xC3
        if first in _NUMBERS:
            kind, stored = _NUMBERS[first]
            value = self._stored(stored)
            return (_NATURAL if kind == _INTEGER and value > INT64_MAX else kind), value
        if first in _SIZED:
            kind, stored = _SIZED[first]
            return self._sized(kind, self._stored(stored))
        raise _Cut

    def _stored(self, stored: struct.Struct) -> Any:
        if self.end - self.at < stored.size:
            raise _Cut
        (value,) = stored.unpack_from(self.data, self.at)
        self.at += stored.size
        return value

    def _sized(self, kind: int, size: int) -> tuple[int, int]:
        if size * (2 if kind == _MAP else 1) > self.end - self.at:  # an element takes at least a byte
            raise _Cut
        return kind, size

    def take(self, size: int) -> bytes:
        """The content of a text or of bytes whose head was read."""
        found = self.data[self.at : self.at + size]
        self.at += size
        return found


class _Where:
    """The place of a value: a name or a number, within another."""

    __slots__ = ("outer", "step")

    def __init__(self, outer: _Where | None, step: str | int) -> None:
        self.outer = outer
        self.step = step

    def __str__(self) -> str:
        """The path of the place, for example parts[3][0].shape."""
        steps: list[str] = []
        where: _Where | None = self
        while where is not None:
            steps.append(f"[{where.step}]" if isinstance(where.step, int) else f".{where.step}")
            where = where.outer
        return "".join(reversed(steps))[1:]


def read(header: Any, layouts: Mapping[int, Layout]) -> Any:
    """The message in a header (bytes-like), of one of the kinds that ``layouts`` has by tag. Raises Odd."""
    reader = _Reader(header)
    try:
        kind, count = reader.head()
        if kind != _ARRAY or count == 0:
            raise _Cut
        kind, tag = reader.head()
        if kind != _INTEGER:
            raise _Cut
    except _Cut:
        raise Odd("a header is an array that begins with a message tag") from None
    layout = layouts.get(tag)
    if layout is None:
        raise OddKind(f"message tag {tag} is unknown in this direction")
    name = layout.kind.__name__
    if reader.end > layout.bytes_max:
        raise Odd(f"a {name} of {reader.end} bytes is larger than {layout.bytes_max}")
    count, known = count - 1, len(layout.forms)
    if not known - len(layout.defaults) <= count <= known + layout.further_max:
        raise Odd(f"{name} has {known} fields, got {count}")
    fields = [
        _read(reader, form, _Where(None, place))
        for form, place in zip(layout.forms[:count], layout.names[:count])
    ]
    if count < known:
        fields += layout.defaults[count - known :]
    for _ in range(known, count):
        _skip(reader, name)
    if reader.at != reader.end:
        raise Odd(f"{name} ends before its header does")
    return tuple.__new__(layout.kind, fields)


def _head(reader: _Reader, where: _Where) -> tuple[int, Any]:
    try:
        return reader.head()
    except _Cut:
        raise Odd(f"{where} is no msgpack, or cut off") from None


def _read(reader: _Reader, form: Any, where: _Where) -> Any:
    kind, value = _head(reader, where)
    if type(form) is Either:
        form = form.text if kind == _TEXT else form.integer
    found = _READERS[type(form)](reader, form, where, kind, value)
    if found is _NOT_THIS:
        _refuse(reader, form, where, kind, value)
    return found


_NOT_THIS: Final = object()  # Returned by a form's reader for a value of another form


def _integer(reader: _Reader, form: Integer, where: _Where, kind: int, value: Any) -> Any:
    return value if kind == _INTEGER and form.least <= value <= form.most else _NOT_THIS


def _real(reader: _Reader, form: Real, where: _Where, kind: int, value: Any) -> Any:
    return value if kind in (_REAL, _INTEGER) and form.least <= value <= form.most else _NOT_THIS


def _flag(reader: _Reader, form: Flag, where: _Where, kind: int, value: Any) -> Any:
    return value if kind == _FLAG else _NOT_THIS


def _bounded_text(reader: _Reader, form: Text, where: _Where, kind: int, value: Any) -> Any:
    return _text(reader, value, where) if kind == _TEXT and value <= form.bytes_max else _NOT_THIS


def _list(reader: _Reader, form: ListOf, where: _Where, kind: int, value: Any) -> Any:
    if kind != _ARRAY or value > form.count_max:
        return _NOT_THIS
    return [_read(reader, form.element, _Where(where, place)) for place in range(value)]


def _row(reader: _Reader, form: Row, where: _Where, kind: int, value: Any) -> Any:
    if kind != _ARRAY or value != len(form.fields):
        return _NOT_THIS
    return [_read(reader, field, _Where(where, name)) for name, field in form.fields.items()]


def _record(reader: _Reader, form: Record, where: _Where, kind: int, value: Any) -> Any:
    if kind != _MAP or value > len(form.fields) + UNKNOWN_FIELDS_MAX * form.is_open:
        return _NOT_THIS
    found: dict[str, Any] = {}
    for _ in range(value):
        kind, size = _head(reader, where)
        key = _text(reader, size, where) if kind == _TEXT and size <= _TOLD_BYTES else None
        field = form.fields.get(key) if key is not None else None
        if field is None and key is not None and form.is_open:
            _skip(reader, str(where))
            continue
        if field is None or key in found:
            told = tell(key) if key is not None else _tell(reader, kind, size)
            raise Odd(f"{where} is {form}, each once, got the key {told}")
        assert key is not None
        found[key] = _read(reader, field, _Where(where, key))
    for name in form.fields:
        if name not in found and name not in form.optional:
            raise Odd(f"{where} is {form}, got none of the key {name}")
    return found


_UNKNOWN: Final = Anything(UNKNOWN_DEPTH_MAX, UNKNOWN_VALUES_MAX)


def _skip(reader: _Reader, text: str) -> None:
    """Skip a value of a later release, within its bounds."""
    where = _Where(None, f"{text}: an unknown value")
    _anything(reader, _UNKNOWN, where, *_head(reader, where))


def _anything(reader: _Reader, form: Anything | Facts, where: _Where, kind: int, value: Any) -> Any:
    if type(form) is Facts and kind != _MAP:
        return _NOT_THIS
    return _Free(reader, form, where).read(kind, value, form.depth_max)


class _Free:
    """Reads a free value, which is bounded only in its depth and its number of values."""

    __slots__ = ("form", "left", "reader", "where")

    def __init__(self, reader: _Reader, form: Anything | Facts, where: _Where) -> None:
        self.reader = reader
        self.form = form
        self.where = where
        self.left = form.count_max  # number of values still allowed

    def read(self, kind: int, value: Any, depth: int) -> Any:
        """Read the value behind a head. depth: further levels of containers."""
        if self.left == 0:
            raise Odd(f"{self.where} is {self.form}, got more")
        self.left -= 1
        if kind == _TEXT:
            return _text(self.reader, value, self.where)
        if kind == _BYTES:
            return self.reader.take(value)
        if kind not in (_ARRAY, _MAP):
            return value
        if depth == 0:
            raise Odd(f"{self.where} is {self.form}, got it nested deeper")
        if kind == _ARRAY:
            return [self.read(*_head(self.reader, self.where), depth - 1) for _ in range(value)]
        pairs: dict[str, Any] = {}
        for _ in range(value):
            key = self._key()
            pairs[key] = self.read(*_head(self.reader, self.where), depth - 1)
        return pairs

    def _key(self) -> str:
        try:
            kind, size = self.reader.head()
        except _Cut:
            kind, size = _NIL, 0
        if kind != _TEXT:
            raise Odd(f"{self.where} is {self.form}, got a key that is no text")
        return _text(self.reader, size, self.where)


_READERS: dict[type, Callable[..., Any]] = {
    Integer: _integer, Real: _real, Text: _bounded_text, Flag: _flag, ListOf: _list, Row: _row, Record: _record,
    Anything: _anything, Facts: _anything,
}  # fmt: skip


def _refuse(reader: _Reader, form: Form, where: _Where, kind: int, value: Any) -> NoReturn:
    raise Odd(f"{where} is {form}, got {_tell(reader, kind, value)}")


def _text(reader: _Reader, size: int, where: _Where) -> str:
    try:
        return reader.take(size).decode("utf-8")
    except UnicodeDecodeError:
        raise Odd(f"{where} is a text that is not UTF-8") from None


def _tell(reader: _Reader, kind: int, value: Any) -> str:
    """An unexpected value for an error's sentence; of a text the beginning."""
    if kind in (_TEXT, _BYTES):
        found = reader.take(min(value, _TOLD_BYTES))
        told = tell(found.decode(errors="replace") if kind == _TEXT else found)
        return told if value <= _TOLD_BYTES else f"{told} ({value} bytes)"
    if kind == _ARRAY:
        return f"a list of {value}"
    if kind == _MAP:
        return f"a map of {value}"
    return tell(value)
