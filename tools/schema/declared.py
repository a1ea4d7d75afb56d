"""The declarations of the schema: clockwork/wire/messages.py, clockwork/scheduler/types.py and config."""

from __future__ import annotations

import enum
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clockwork import config  # noqa: E402
from clockwork.config import controller, formats, models, wire, worker  # noqa: E402
from clockwork.wire import messages, shared  # noqa: E402
from clockwork.wire.forms import Flag, Form, Integer, ListOf, Record, Row, Text, forms_of  # noqa: E402
from clockwork.wire.messages import NATIVE  # noqa: E402
from tools.schema.text import upper  # noqa: E402

BOUNDS: dict[str, dict[ModuleType, str]] = {
    "std::int64_t": {
        config: """HEARTBEAT_NS HELLO_NS MESSAGE_BYTES_MAX METRIC_BOUNDS_NS PRIORITY_DEFAULT RESERVE_NS_MAX
            SHARE_WHOLE STRINGS_MAX""",
        controller: """CLOCK_WINDOW DRIFT_PPM EVIDENCE_CRASHED EVIDENCE_LOST EVIDENCE_MAX FAULT_WINDOW_NS
            OVERRUNS_MAX SEAT_IDLE_NS TURN_PYTHON_NS UNREAD_NS""",
        models: "JPEG_PIXELS_MAX SIDE_MAX",
        wire: "DIMENSIONS_MAX LENGTH_CLASS_MIN STRING_SIZE_MIN",
        worker: "EXECUTION_LIMIT_FACTOR EXECUTION_LIMIT_NS LOAD_LIMIT_FACTOR LOAD_LIMIT_NS",
        messages: "NEVER_NS VALUE_MARK",
        shared: "FIRST_OFFSET KEY_BYTES PLACE_BYTES REFERENCE_BYTES SHARED SHARED_ALIGNMENT",
    },
    "std::uint64_t": {
        config: "CLIENTS_MAX FRAMES_MAX QUEUED_BYTES_MAX QUEUED_REQUESTS_MAX RECEIVED_BYTES_MAX",
        controller: """CLIENT_UNREAD_BYTES_MAX DRAIN_BATCH_EVENTS HELLO_BYTES_ALL_MAX HELLO_BYTES_MAX
            RECEIVED_BYTES_ALL_MAX TURN_HEADER_BYTES UNGREETED_MAX UNREAD_BYTES_ALL_MAX""",
        wire: "FRAME_EXTRA_BYTES HEARTBEAT_BYTES_PER_S",
    },
    "int": {config: "RANK_MAX", formats: "PADDED_MAX"},
}
"""Bounds and constants of both languages, by their C++ type and the module that declares them."""


def load_scheduler_types() -> ModuleType:
    """clockwork.scheduler.types, without its package, which needs the extensions."""
    path = ROOT / "clockwork/scheduler/types.py"
    spec = importlib.util.spec_from_file_location("clockwork_scheduler_types", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


types: Any = load_scheduler_types()


def members(kind: type[enum.IntEnum]) -> dict[str, int]:
    return {member.name: int(member) for member in kind}


ENUMS: dict[str, dict[str, int]] = {
    kind.__name__: members(kind)
    for kind in (messages.ActionKind, messages.LaneKind, messages.Status, types.Fault)
}
ENUMS["Reason"] = {"NONE": 0} | {reason.name: place for place, reason in enumerate(messages.Reason, 1)}
ENUMS["AnswerText"] = {name: place for place, name in enumerate(types.SENTENCES)}
ENUMS["CommandKind"] = {upper(kind): place for place, kind in enumerate(types.COMMANDS)}

# ----- messages ------------------------------------------------------------------------------------

_RECEIVED = {*messages.FROM_CLIENT.values(), *messages.FROM_WORKER.values(), *messages.TO_WORKER.values()}
_SENT = {*messages.TO_CLIENT.values(), *messages.FROM_WORKER.values(), *messages.TO_WORKER.values()}


class Struct(NamedTuple):
    """The C++ record of one message, or of those of all actions.

    ``pools``: its vectors of the elements of nested lists, and the form of an element.
    """

    name: str
    about: str
    messages: tuple[type, ...]
    fields: dict[str, Form]
    pools: dict[str, Form]

    @property
    def is_action(self) -> bool:
        return self.name == "ActionMessage"

    @property
    def is_read(self) -> bool:
        """Whether a controller or a worker receives it."""
        return not _RECEIVED.isdisjoint(self.messages)

    @property
    def is_written(self) -> bool:
        return not _SENT.isdisjoint(self.messages)


def parts_of(form: Form) -> list[Form]:
    if isinstance(form, ListOf):
        return [form.element]
    return list(form.fields.values()) if isinstance(form, Row | Record) else []


def walk(form: Form, is_nested: bool = False) -> Iterator[tuple[Form, bool]]:
    """A form and all that it is made of, and whether that lies in a list."""
    yield form, is_nested
    for part in parts_of(form):
        yield from walk(part, is_nested or isinstance(form, ListOf))


def struct_of(name: str, about: str, kinds: tuple[type, ...]) -> Struct:
    """The record with the fields that any of these messages has."""
    fields: dict[str, Form] = {}
    pools: dict[str, Form] = {}
    for kind in kinds:
        for field, form in forms_of(kind).items():
            known = fields.setdefault(field, form)
            assert c_type(known) == c_type(form), f"{kind.__name__}.{field} is of another type elsewhere"
    for form in fields.values():
        for part, is_nested in walk(form):
            if isinstance(part, ListOf) and is_nested:
                assert part.pool, f"a list within a list has no pool: {part}"
                pools.setdefault(part.pool, part.element)
    return Struct(name, about, kinds, fields, pools)


def fields_of_messages() -> Iterator[tuple[type, str, Form]]:
    for kind in NATIVE:
        for name, form in forms_of(kind).items():
            yield kind, name, form


def rows() -> dict[str, dict[str, Form]]:
    """The records whose rows are in fields of messages, each with its fields.

    A row may have only some of the fields of its record."""
    found: dict[str, dict[str, Form]] = {}
    for kind, name, field in fields_of_messages():
        for form, _ in walk(field):
            if isinstance(form, Row):
                assert form.struct, f"a row in {kind.__name__}.{name} has no struct"
                fields = found.setdefault(form.struct, {})
                fields |= {key: part for key, part in form.fields.items() if key not in fields}
    return found


def details() -> dict[str, Record]:
    """The records of maps, all of whose values are optional."""
    return {c_type(form): form for _, _, form in fields_of_messages() if isinstance(form, Record)}


def c_type(form: Form, is_nested: bool = False) -> str:
    match form:
        case Integer():
            return "std::int64_t"
        case Flag():
            return "bool"
        case Text():
            return "std::string_view"
        case ListOf():
            return "ListRange" if is_nested else f"std::vector<{c_type(form.element, True)}>"
        case Row():
            return form.struct
        case Record():
            return next(
                f"{kind.__name__}{name.capitalize()}"
                for kind, name, field in fields_of_messages()
                if field == form
            )
    raise NotImplementedError(f"no C++ of {form}")
