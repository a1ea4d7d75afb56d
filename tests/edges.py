"""The edge cases of every field of every message, made from the declarations: values just inside a form, and
just outside.

Tests send them to all readers of messages. Headers are encoded here and not by the code under test, so that
invalid bytes can be made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from clockwork.config.wire import UNKNOWN_FIELDS_MAX
from clockwork.wire.codec import bytes_max_of, forms_of, tolerance
from clockwork.wire.forms import (
    INT64_MIN,
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
from clockwork.wire.messages import TAG_OF

COUNT_SPELLED_MAX = 300_000
"""Limit above which lists are not filled to their bound: the size limit of their header is lower."""


class Raw(bytes):
    """Bytes that are inserted into a header as they are."""


class Edge(NamedTuple):
    """A header. is_good: whether decode() must accept it."""

    kind: type
    label: str
    header: bytes
    is_good: bool


DEEP = Raw(b"\x91" * 10_000 + b"\x00")
STRANGE: list[tuple[str, Any]] = [
    ("nothing", None), ("a flag", True), ("a fraction", 1.5), ("not a number", float("nan")), ("a text", "x"),
    ("bytes", b"x"), ("a list", []), ("a map", {}), ("depth", DEEP), ("an extension", Raw(b"\xd4\x05\x00")),
    ("no msgpack", Raw(b"\xc1")), ("a list that is not there", Raw(b"\xdd\xff\xff\xff\xff")),
    ("a text that is not there", Raw(b"\xdb\xff\xff\xff\xff")), ("most of all", (1 << 64) - 1), ("least of all", INT64_MIN),
]  # fmt: skip
"""Values to put in the place of every value; fits() says which of them a form takes."""


def spell(value: Any) -> bytes:
    """Encode a value as msgpack; Raw bytes stay as they are."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(spell, value))
    if isinstance(value, dict):
        pairs = b"".join(spell(part) for pair in value.items() for part in pair)
        return b"\xdf" + struct.pack(">I", len(value)) + pairs
    return bytes(msgpack.packb(value))


def header_of(kind: type, fields: list[Any]) -> bytes:
    return spell([TAG_OF[kind], *fields])


def plain(form: Form) -> Any:
    """Return a small value that the form takes."""
    match form:
        case Integer(least, most):
            return min(max(least, 1), most)
        case Real(least, _):
            return least
        case Text():
            return "x"
        case Flag():
            return False
        case ListOf(element, _):
            return [plain(element)]
        case Row(fields):
            return [plain(one) for one in fields.values()]
        case Record(fields, _):
            return {name: plain(one) for name, one in fields.items()}
        case Either(integer, _):
            return plain(integer)
        case Anything() | Facts():
            return {"x": 1}


def fits(form: Form, value: Any) -> bool:
    """Whether a form takes a value of STRANGE: an independent, simple implementation in Python."""
    if isinstance(value, Raw):
        return False
    match form:
        case Integer(least, most):
            return type(value) is int and least <= value <= most
        case Real(least, most):
            return type(value) in (int, float) and least <= value <= most
        case Text(bytes_max, _):
            return type(value) is str and len(value.encode()) <= bytes_max
        case Flag():
            return type(value) is bool
        case ListOf():
            return value == []
        case Row(fields):
            return value == [] and not fields
        case Record(fields, optional):
            return value == {} and set(fields) == set(optional)
        case Either(integer, text):
            return fits(integer, value) or fits(text, value)
        case Facts():
            return value == {}
        case Anything():
            return True


def values(form: Form) -> Iterator[tuple[str, Any, bool]]:
    """Yield (label, value, whether the form takes it): the edge cases of a form and of its parts."""
    for label, value in STRANGE:
        yield label, value, fits(form, value)
    match form:
        case Integer(least, most):
            yield "least", least, True
            yield "most", most, True
            if least > INT64_MIN:
                yield "less than least", least - 1, False
            yield "more than most", most + 1, False
        case Real(least, most):
            yield "most", float(most), True
            yield "more than most", float(most) * 1.001 + 1, False
            yield "infinity", float("inf"), most == float("inf")
        case Text(bytes_max, _):
            yield "the longest", "x" * bytes_max, True
            yield "too long", "x" * (bytes_max + 1), False
            yield "no UTF-8", Raw(b"\xa2\xc3\x28"), False
            yield "a surrogate", Raw(b"\xa3\xed\xa0\x80"), False
        case ListOf(element, count_max):
            if count_max <= COUNT_SPELLED_MAX:
                yield "the longest", [plain(element)] * count_max, True
                yield "too long", [plain(element)] * (count_max + 1), False
            for label, value, is_good in values(element):
                yield f"[0] {label}", [value], is_good
        case Row(fields):
            row = plain(form)
            yield "one more", [*row, 0], False
            yield "one less", row[:-1], False
            for place, (name, one) in enumerate(fields.items()):
                for label, value, is_good in values(one):
                    yield f".{name} {label}", [*row[:place], value, *row[place + 1 :]], is_good
        case Record(fields, optional, is_open):
            record = plain(form)
            more = UNKNOWN_FIELDS_MAX + 1 if is_open else 1
            yield "keys more", record | {f"surprise {number}": 1 for number in range(more)}, False
            yield "a key that is a number", Raw(spell({1: 1})), False
            yield (
                "a key twice",
                Raw(b"\x82" + (spell(next(iter(fields))) + spell(next(iter(record.values())))) * 2),
                False,
            )
            for name, one in fields.items():
                without = {key: value for key, value in record.items() if key != name}
                yield f"no {name}", without, name in optional
                for label, value, is_good in values(one):
                    yield f".{name} {label}", record | {name: value}, is_good
        case Either(integer, text):
            for part in (integer, text):
                yield from ((label, value, good or fits(form, value)) for label, value, good in values(part))
        case Anything(depth_max, count_max) | Facts(depth_max, count_max):
            outer = 0 if isinstance(form, Anything) else 1
            for levels, is_good in ((depth_max, True), (depth_max + 1, False)):
                nested: Any = 1
                for _ in range(levels - outer):
                    nested = [nested]
                yield f"{levels} levels", nested if not outer else {"x": nested}, is_good
            if count_max <= COUNT_SPELLED_MAX:
                for count, is_good in ((count_max, True), (count_max + 1, False)):
                    held = {str(number): 1 for number in range(count - 1)} if outer else [1] * (count - 1)
                    yield f"{count} values", held, is_good


def edges(kind: type) -> Iterator[Edge]:
    """Yield headers of a kind, each different in a single place from a valid header."""
    forms = forms_of(kind)
    fields = [plain(form) for form in forms.values()]
    yield Edge(kind, "plain", header_of(kind, fields), True)
    defaults, further_max = tolerance(kind)
    yield Edge(kind, "fields more", header_of(kind, [*fields, *[0] * (further_max + 1)]), False)
    yield Edge(kind, "something behind", header_of(kind, fields) + b"\x00", False)
    if fields:
        required = len(fields) - len(defaults)
        yield Edge(kind, "a field less", header_of(kind, fields[: required - 1]), False)
        yield Edge(kind, "cut off", header_of(kind, fields)[:-1], False)
    yield Edge(kind, "nothing but padding", header_of(kind, fields) + bytes(bytes_max_of(kind)), False)
    for place, (name, form) in enumerate(forms.items()):
        for label, value, is_good in values(form):
            header = header_of(kind, [*fields[:place], value, *fields[place + 1 :]])
            yield Edge(kind, f".{name} {label}", header, is_good and len(header) <= bytes_max_of(kind))
