"""Forms: the values that a field of a message may hold, declared in messages.py, by which _codec decodes.

A form bounds every value: a number on both sides, a text in bytes, a list in elements, and a free value in
its depth and its number of values. So the cost of reading a header is bounded by its kind, before any value
is built.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeAlias

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)


class Integer(NamedTuple):
    """An integer from ``least`` to ``most``, both included. They fit int64."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"an integer from {self.least} to {self.most}"


class Real(NamedTuple):
    """A number from ``least`` to ``most``, not NaN; an integer stays an integer."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


class Text(NamedTuple):
    """A text of at most ``bytes_max`` bytes of UTF-8. ``is_cut``: encode() cuts a longer text to that."""

    bytes_max: int
    is_cut: bool = False

    def __str__(self) -> str:
        return f"a text of at most {self.bytes_max} bytes"


class Flag(NamedTuple):
    """A boolean."""

    def __str__(self) -> str:
        return "true or false"


class ListOf(NamedTuple):
    """A list of at most ``count_max`` elements.

    ``pool``: of a list within another, the vector of the C++ record that holds the elements of all such
    lists. ``names``: of the elements, in order, where each has a meaning of its own; a list may be shorter or
    longer, as its writer's version has it.
    """

    element: Form
    count_max: int
    pool: str = ""
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"a list of at most {self.count_max}"


class Row(NamedTuple):
    """A list of exactly these fields, in order. ``struct``: its C++ record, which rows may share."""

    fields: Mapping[str, Form]
    struct: str = ""

    def __str__(self) -> str:
        return f"a list [{', '.join(self.fields)}]"


class Record(NamedTuple):
    """A map with these keys. The keys in ``optional`` may be absent. ``is_open``: keys of a later release are
    skipped; those that ask for something are not, lest it be done differently than was asked."""

    fields: Mapping[str, Form]
    optional: tuple[str, ...] = ()
    is_open: bool = False

    def __str__(self) -> str:
        return f"a map of {', '.join(self.fields)}"


class Either(NamedTuple):
    """An integer, or a text."""

    integer: Integer
    text: Text

    def __str__(self) -> str:
        return f"{self.integer} or {self.text}"


class Anything(NamedTuple):
    """Any msgpack value but extensions: at most ``depth_max`` levels and ``count_max`` values in all."""

    depth_max: int
    count_max: int

    def __str__(self) -> str:
        return f"at most {self.count_max} values, {self.depth_max} levels deep"


class Facts(NamedTuple):
    """A map from texts to any values, bounded as in Anything; the map is the first level."""

    depth_max: int
    count_max: int

    def __str__(self) -> str:
        return f"a map of at most {self.count_max} values, {self.depth_max} levels deep"


Form: TypeAlias = Integer | Real | Text | Flag | ListOf | Row | Record | Either | Anything | Facts


def forms_of(kind: type) -> dict[str, Form]:
    """The form of each field of a message, in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found: dict[str, Form] = {}
    for name in typing.cast(Any, kind)._fields:
        assert typing.get_origin(hints[name]) is Annotated, (
            f"{kind.__name__}.{name} is declared without a form"
        )
        found[name] = hints[name].__metadata__[0]
    return found
