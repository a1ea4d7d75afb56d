"""Releases of one protocol version differ by additions alone, and read each other."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import msgpack
import pytest

import clockwork.wire._codec as native
from clockwork.config.wire import UNKNOWN_DEPTH_MAX, UNKNOWN_FIELDS_MAX, UNKNOWN_VALUES_MAX
from clockwork.wire import _plain_codec as plain
from clockwork.wire import codec, messages
from clockwork.wire.forms import Flag, Form, Integer, ListOf, Record, Row, Text, forms_of
from clockwork.wire.messages import EXACT, NATIVE, NO_LEASE, PROTOCOL_OLDEST, PROTOCOL_VERSION, TAG_OF

READERS = [native, plain]
DECLARED = Path(__file__).resolve().parents[1] / "data" / f"protocol_{PROTOCOL_VERSION}.json"
"""The messages of the first release of this protocol version: the tag, and the fields by name, of each."""


class Thing(NamedTuple):
    """A message of version N: ``note`` came after N-1."""

    number: int
    options: dict[str, Any]
    note: str = "none"


FIELDS: dict[str, Form] = {
    "number": Integer(0, 9),
    "options": Record({"a": Integer(0, 9), "b": Flag()}, optional=("b",), is_open=True),
    "note": Text(9),
}


def read(reader: ModuleType, values: list[Any], *, further_max: int = UNKNOWN_FIELDS_MAX) -> Any:
    layout = reader.Layout(Thing, FIELDS, 1 << 20, ("none",), further_max)
    return reader.read(msgpack.packb([1, *values]), {1: layout})


@pytest.mark.parametrize("reader", READERS)
def test_both_versions_are_read(reader: ModuleType) -> None:
    """N reads N-1, whose field is missing, and N-1 (here N) reads N (here N+1), which has more."""
    assert read(reader, [1, {"a": 2}]) == Thing(1, {"a": 2}, "none")
    assert read(reader, [1, {"a": 2, "b": True}, "text"]) == Thing(1, {"a": 2, "b": True}, "text")
    later = [1, {"a": 2, "c": {"x": [1, None]}, "b": False}, "text", [1, {"y": b"z"}], None]
    assert read(reader, later) == Thing(1, {"a": 2, "b": False}, "text")


@pytest.mark.parametrize("reader", READERS)
def test_what_is_skipped_has_bounds(reader: ModuleType) -> None:
    deep: Any = 1
    for _ in range(UNKNOWN_DEPTH_MAX + 1):
        deep = [deep]
    many = dict.fromkeys(map(str, range(UNKNOWN_FIELDS_MAX + 2)), 1)
    for values, text in (
        ([1], "Thing has 3 fields, got 1"),
        (
            [1, {"a": 1}, "", *range(UNKNOWN_FIELDS_MAX + 1)],
            f"Thing has 3 fields, got {4 + UNKNOWN_FIELDS_MAX}",
        ),
        ([1, {"a": 1}, "", deep], "Thing: an unknown value is at most"),
        ([1, {"a": 1}, "", [0] * UNKNOWN_VALUES_MAX], "Thing: an unknown value is at most"),
        ([1, {"a": 1, "c": deep}], "Thing.options: an unknown value is at most"),
        ([1, {"a": 1} | many], "Thing.options is a map of a, b"),
        ([1, {"b": True, "c": 1}], "got none of the key a"),
        ([1, {"a": 10}], "Thing.options.a is "),
    ):
        with pytest.raises(reader.Odd, match=text.replace(".", r"\.")):
            read(reader, values)
    assert read(reader, [1, {"a": 1}, "", *range(UNKNOWN_FIELDS_MAX)]).number == 1
    with pytest.raises(reader.Odd, match="Thing has 3 fields, got 4"):
        read(reader, [1, {"a": 1}, "", 1], further_max=0)


def test_a_welcome_of_the_release_before_and_of_the_next_is_read() -> None:
    for kind, values in ((messages.ClientWelcome, [1, "0.1", 7]), (messages.WorkerWelcome, [1, "0.1", 7, 3])):
        tag = TAG_OF[kind]
        table = messages.TO_CLIENT if kind is messages.ClientWelcome else messages.TO_WORKER
        assert codec.decode(msgpack.packb([tag, *values]), table) == kind(*values)
        later = msgpack.packb([tag, *values, NO_LEASE, {"new": 1}])
        assert codec.decode(later, table) == kind(*values)


def test_a_kind_of_a_later_release_is_told_apart_and_can_be_answered() -> None:
    header = msgpack.packb([31, 77, "x"])
    with pytest.raises(codec.UnknownKind, match="message tag 31 is unknown"):
        codec.decode(header, messages.FROM_CLIENT)
    assert codec.addressee(header, messages.FROM_CLIENT) == (None, 77)
    for other in ([31], [31, "x"], [31, -1], ["x", 1]):
        assert codec.addressee(msgpack.packb(other), messages.FROM_CLIENT) == (None, 0)


def test_messages_that_native_code_reads_have_exactly_their_fields() -> None:
    assert set(NATIVE) > EXACT
    cancel = msgpack.packb([TAG_OF[messages.Cancel], 1, 2])
    with pytest.raises(codec.WireError, match="Cancel has 1 fields, got 2"):
        codec.decode(cancel, messages.FROM_CLIENT)


def test_this_release_only_adds_to_the_first_of_its_protocol_version() -> None:
    """A change that fails here is a new protocol version, which speaks the one before, too."""
    assert PROTOCOL_OLDEST in (PROTOCOL_VERSION, PROTOCOL_VERSION - 1)
    declared = json.loads(DECLARED.read_text())
    known = {kind.__name__: kind for kind in TAG_OF}
    for name, first in declared.items():
        kind = known[name]
        fields = forms_of(kind)
        assert TAG_OF[kind] == first["tag"], name
        described = [described_as(form) for form in fields.values()]
        assert list(fields)[: len(first["fields"])] == list(first["fields"]), (
            f"{name}: fields are added at the end"
        )
        for place, (field, form) in enumerate(first["fields"].items()):
            assert extends(described[place], form), f"{name}.{field} means something else"
        added = list(fields)[len(first["fields"]) :]
        assert not added or kind not in EXACT, f"{name} is read by native code"
        assert set(added) <= set(cast(Any, kind)._field_defaults), f"{name}: an added field has a default"


def described_as(form: Form) -> Any:
    """A form as the file has it: kinds and names, without bounds, which may grow."""
    if isinstance(form, ListOf):
        return [described_as(form.element)]
    if isinstance(form, Row):
        return {"row": {name: described_as(field) for name, field in form.fields.items()}}
    if isinstance(form, Record):
        return {
            "record": {name: described_as(field) for name, field in form.fields.items()},
            "optional": sorted(form.optional),
            "open": form.is_open,
        }
    return type(form).__name__


def extends(now: Any, first: Any) -> bool:
    """Whether a form is the first release's, or adds optional keys to its maps."""
    if isinstance(first, list):
        return isinstance(now, list) and extends(now[0], first[0])
    if isinstance(first, dict) and "record" in first:
        added = set(now["record"]) - set(first["record"])
        return (
            (not added or first["open"])
            and added <= set(now["optional"])
            and all(extends(now["record"].get(name), form) for name, form in first["record"].items())
        )
    if isinstance(first, dict):
        return (
            isinstance(now, dict)
            and list(now["row"]) == list(first["row"])
            and all(extends(now["row"][name], form) for name, form in first["row"].items())
        )
    return bool(now == first)


def test_a_removed_or_changed_field_would_be_found() -> None:
    record = described_as(FIELDS["options"])
    assert extends(record, record)
    assert extends(
        described_as(Record({"a": Integer(0, 1), "b": Flag(), "c": Flag()}, optional=("b", "c"))), record
    )
    assert not extends(
        described_as(Record({"a": Integer(0, 1), "b": Flag(), "c": Flag()}, optional=("b",))), record
    )
    assert not extends(described_as(Record({"a": Flag(), "b": Flag()}, optional=("b",))), record)
    assert not extends(described_as(Record({"b": Flag()}, optional=("b",))), record)
    row = described_as(Row({"a": Flag(), "b": Flag()}))
    assert extends(row, row)
    assert not extends(described_as(Row({"b": Flag(), "a": Flag()})), row)
    assert not extends("Integer", [row])
