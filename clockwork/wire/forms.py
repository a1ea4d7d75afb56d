"""What a field of a message may hold. messages.py declares a form with each field, and _codec reads by it.

A form bounds whatever it lets in: a number on both sides, a text in bytes, a list in elements, and what is free in its
depth and its number of values. So what a header can cost is known from its kind, before anything is built of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)


class Integer(NamedTuple):
    """From ``least`` to ``most``, both included. They fit int64."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"an integer from {self.least} to {self.most}"


class Real(NamedTuple):
    """A number from ``least`` to ``most``; one that is an integer stays one. Not NaN."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


class Text(NamedTuple):
    """``bytes_max``: of its UTF-8. ``is_cut``: a sentence for people; encode() cuts it to what decode() takes."""

    bytes_max: int
    is_cut: bool = False

    def __str__(self) -> str:
        return f"a text of at most {self.bytes_max} bytes"


class Flag(NamedTuple):
    def __str__(self) -> str:
        return "true or false"


class ListOf(NamedTuple):
    """Any number of elements up to ``count_max``."""

    element: Form
    count_max: int

    def __str__(self) -> str:
        return f"a list of at most {self.count_max}"


class Row(NamedTuple):
    """A list of exactly these."""

    fields: Mapping[str, Form]

    def __str__(self) -> str:
        return f"a list [{', '.join(self.fields)}]"


class Record(NamedTuple):
    """A map of these keys. Those of ``optional`` may be absent."""

    fields: Mapping[str, Form]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"a map of {', '.join(self.fields)}"


class Either(NamedTuple):
    """An integer, or a text."""

    integer: Integer
    text: Text

    def __str__(self) -> str:
        return f"{self.integer} or {self.text}"


class Anything(NamedTuple):
    """Whatever msgpack has, extensions excepted, in at most so many levels of containers and so many values in all."""

    depth_max: int
    count_max: int

    def __str__(self) -> str:
        return f"at most {self.count_max} values, {self.depth_max} levels deep"


class Facts(NamedTuple):
    """A map with texts for keys. Of the rest, see Anything; the map is its first level."""

    depth_max: int
    count_max: int

    def __str__(self) -> str:
        return f"a map of at most {self.count_max} values, {self.depth_max} levels deep"


Form: TypeAlias = Integer | Real | Text | Flag | ListOf | Row | Record | Either | Anything | Facts
