"""Emits csrc/scheduler/commands.h and csrc/recording/records.h, and what Cython has of commands."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from tools.schema.declared import types
from tools.schema.text import LINE, block, comment, cpp, cython, cython_type, first_paragraph, upper

TYPE_OF: dict[str, str] = {
    name: kind
    for kind, names in {
        "WorkerId": "worker",
        "ActionId": "action_id",
        "ModelId": "model_id",
        "LoadId": "load_id",
        "RequestId": "request_id id",
        "Status": "status",
        "Reason": "reason",
        "Fault": "fault",
        "bool": "set_aside batches is_stored",
        "std::int32_t": "device arena",
        "std::int64_t": "version",
        "std::uint8_t": "priority",
        "std::uint32_t": "rows part mhz batch batch_max page_count run_ahead slowdown_thousandths",
        "std::uint64_t": "bytes copied_bytes host_bytes page_bytes store_bytes",
        "std::string_view": "name program kind text shape",
        "std::span<const std::uint32_t>": "runs run_starts",
        "std::span<const DeviceShape>": "devices",
        "std::span<const Point>": "profile",
    }.items()
    for name in names.split()
}
"""The C++ types of fields of commands and events, but for times."""

ENUM_INITIALS = {"status": "OK", "reason": "NONE", "fault": "WORKER_LOST"}
IN_COMMANDS = {"run_starts": "runs", "requests": "ids"}
"""Lists of a command are a part of these of Commands."""

LEFT_OUT = {"arena": -1, "slowdown_thousandths": 1000}
"""Last fields of records in lists: each is left out if it and those behind it have these values."""

COMMAND_FIELDS = {"at_ns": "earliest_ns"}
"""Fields of Command that have another name than in Python."""


def type_of(name: str) -> str:
    return "Ns" if name.endswith("_ns") else TYPE_OF[name]


def field(name: str) -> str:
    kind = type_of(name)
    if name in ENUM_INITIALS:
        return f"{kind} {name} = {kind}::{ENUM_INITIALS[name]};"
    if name in LEFT_OUT:
        return f"{kind} {name} = {LEFT_OUT[name]};"
    return f"{kind} {name}{' = false' if kind == 'bool' else '' if kind.startswith('std::s') else ' = 0'};"


def pack(name: str, source: str) -> list[str]:
    """Statements that write a field; `source` has it."""
    kind = type_of(name)
    if name in types.MOMENTS:
        return [f"packer.integer({source} - time_ns);"]
    if name == "shape":
        return [f"packer.raw({source});"]
    if kind == "std::string_view":
        return [f"packer.text({source}.size());", f"packer.raw({source});"]
    if kind == "bool":
        return [f"packer.flag({source});"]
    if name in ENUM_INITIALS:
        return [f"packer.natural(static_cast<std::uint64_t>({source}));"]
    is_natural = kind in ("ActionId", "LoadId", "RequestId") or kind.startswith("std::uint")
    return [f"packer.{'natural' if is_natural else 'integer'}({source});"]


# ----- commands ------------------------------------------------------------------------------------


def own_fields() -> list[str]:
    """The fields of Command that follow from the commands' own; small ones first, beside the kind."""
    names = dict.fromkeys(COMMAND_FIELDS.get(name, name) for kind in types.COMMANDS for name in kind._fields)
    own = [name for name in names if name not in ("shape", "text") and name not in IN_COMMANDS]
    sizes = {
        "Status": 1,
        "Reason": 1,
        "Fault": 1,
        "bool": 1,
        "WorkerId": 4,
        "std::int32_t": 4,
        "std::uint32_t": 4,
    }
    return sorted(own, key=lambda name: sizes.get(type_of(name), 8))


def commands_h() -> str:
    body = comment(
        "One order. Its kind decides which fields count; the records of scheduler/types.py have the same names."
    )
    fields = [
        "CommandKind kind = CommandKind::WAKE;",
        *(field(name) for name in own_fields()),
        "std::uint32_t first = 0;  // into Commands::ids (INFER) or Commands::runs (LOAD, RESERVE)",
        "std::uint32_t count = 0;",
        "std::uint32_t shape = 0;  // the number of SEND_PROFILE's",
        "AnswerText text = AnswerText::NONE;   // the sentence of ANSWER_FAILED, and what fills it in:",
        "Ns a = 0;",
        "Ns b = 0;",
        "Ns c = 0;",
        "std::int32_t said = -1;   // index into Commands::texts, or -1",
    ]
    body += [*block("struct Command", fields, ";"), ""]
    includes = [
        "#include <cstdint>",
        "",
        *(f'#include "{name}.h"' for name in ("scheduler/ids", "wire/kinds")),
    ]
    return cpp("The scheduler's commands.", includes, "clockwork", body)


PXD = """
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool

from clockwork.wire._messages cimport CFault, CommandKind, CReason, CStatus, CText


cdef extern from "scheduler/commands.h" namespace "clockwork" nogil:
    cdef cppclass CCommand "clockwork::Command":
        CommandKind kind
        $fields
        uint32_t first
        uint32_t count
        uint32_t shape
        CText text
        int64_t a
        int64_t b
        int64_t c
        int32_t said
"""


def commands_pxd() -> str:
    fields = [f"{cython_type(type_of(name))} {name}" for name in own_fields()]
    return cython("The commands of csrc/scheduler/commands.h.", PXD, fields=fields)


PXI = """

from clockwork.scheduler.types import (
    $names
)

$globals


cdef object command_record(Core self, CCommand *command):
    cdef CCommands *out = &self._core.out
    $cases
    return record
"""
VALUES = {
    "status": "STATUSES[<uint8_t>command.status]",
    "reason": "REASONS[<uint8_t>command.reason]",
    "fault": "FAULTS[<uint8_t>command.fault]",
    "set_aside": "bool(command.set_aside)",
    "text": "self._text(command)",
    "shape": "self._shapes.thing(command.shape)",
    "run_starts": "starts_of(out.runs.data() + command.first, command.count)",
    "requests": "ids_of(out.ids.data() + command.first, command.count)",
}
"""Python's values of a command's fields that are no plain numbers."""


def commands_pxi() -> str:
    names = [kind.__name__ for kind in types.COMMANDS]
    cases = []
    for kind in types.COMMANDS:
        cases.append(f"{'el' if cases else ''}if command.kind == CommandKind.{upper(kind)}:")
        cases.append(f"    record = clockwork_new_record(_{kind.__name__}, {len(kind._fields)})")
        for place, name in enumerate(kind._fields):
            value = VALUES.get(name, f"command.{COMMAND_FIELDS.get(name, name)}")
            cases.append(f"    put(record, {place}, {value})")
    return cython(
        "Python's records of commands; included by _core.pyx.",
        PXI,
        names=textwrap.wrap(", ".join(names), LINE - 4),
        globals=[f"cdef object _{name} = {name}" for name in names],
        cases=cases,
    )


TESTED = """

cdef bint set_command_field(CCommand *command, str name, object value) except -1:
    $cases
    else:
        return False
    return True
"""


def command_fields_pxi() -> str:
    cases: list[str] = []
    for name in dict.fromkeys(name for kind in types.COMMANDS for name in kind._fields):
        if name not in IN_COMMANDS and name not in ("shape", "text"):
            cast = f"<C{type_of(name)}><uint8_t>" if name in ENUM_INITIALS else ""
            cases.append(f'{"el" if cases else ""}if name == "{name}":')
            cases.append(f"    command.{COMMAND_FIELDS.get(name, name)} = {cast}value")
    return cython("Sets fields of commands by name; included by _tested.pyx.", TESTED, cases=cases)


# ----- recordings ----------------------------------------------------------------------------------

POINT = [field.name for field in dataclasses.fields(types.ProfilePoint)]
ROWS = {"devices": ("DeviceShape", types.DEVICE_SHAPE, "kind"), "profile": ("Point", POINT, "shape")}
"""Fields of events that are lists of records: the name of the record, its fields, that of variable size."""


def event_fields(kind: Any) -> Iterator[str]:
    """The fields of an event as they are written: those of a record in it stand in its place."""
    for name in kind._fields:
        record = {"request": types.Request, "spec": types.ModelSpec}.get(name)
        yield from (field.name for field in dataclasses.fields(record)) if record else [name]


def pack_rows(source: str, names: Sequence[str]) -> list[str]:
    last = [name for name in names if name in LEFT_OUT]
    told = {
        name: " || ".join(f"each.{other} != {LEFT_OUT[other]}" for other in last[place:])
        for place, name in enumerate(last)
    }
    counts = [str(len(names) - len(last)), *(f"({each} ? 1u : 0u)" for each in told.values())]
    lines = [f"packer.array({' + '.join(counts)});"]
    for name in names:
        packed = pack(name, f"each.{name}")
        lines += [f"if ({told[name]})", *(f"    {line}" for line in packed)] if name in told else packed
    return [f"packer.array({source}.size());", *block(f"for (const auto& each : {source})", lines)]


def event(kind: Any, number: int) -> list[str]:
    """The record of an event, with its writer."""
    names = list(event_fields(kind))
    lines = [f"packer.array({1 + len(names)});", f"packer.natural({number});"]
    room = [f"std::size_t room = {5 + 9 + 9 * len(names)};"]
    for name in names:
        if name in ROWS:
            _, fields, variable = ROWS[name]
            lines += pack_rows(name, fields)
            room += [f"for (const auto& each : {name})", f"    room += 5 + 9 * 5 + each.{variable}.size();"]
        elif name in ("runs", "run_starts"):
            lines += [
                f"packer.array({name}.size());",
                f"for (std::uint32_t each : {name})",
                "    packer.natural(each);",
            ]
            room.append(f"room += 9 * {name}.size();")
        else:
            lines += pack(name, name)
            room += [f"room += {name}.size();"] * (type_of(name) == "std::string_view")
    written = [*room, "Packer packer = writer.begin(room);", *lines, "writer.end(packer);"]
    body = [*map(field, names), "", *block("void write(Writer& writer, Ns time_ns) const", written)]
    about = "" if (kind.__doc__ or "").startswith(f"{kind.__name__}(") else first_paragraph(kind)
    return [*comment(about), *block(f"struct {kind.__name__}", body, ";"), ""]


def pack_command(kind: Any, number: int) -> list[str]:
    lines = [f"packer.array({1 + len(kind._fields)});", f"packer.natural({number});"]
    for name in kind._fields:
        if name in IN_COMMANDS:
            lines.append("packer.array(command.count);")
            lines.append(
                "for (std::uint32_t place = command.first; place < command.first + command.count; ++place)"
            )
            lines.append(f"    packer.natural(all.{IN_COMMANDS[name]}[place]);")
        elif name in ("text", "shape"):
            lines += pack(name, name)
        else:
            lines += pack(name, f"command.{COMMAND_FIELDS.get(name, name)}")
    return [*lines, "break;"]


ABOUT = (
    "Events and commands as recordings have them. Moments are written as the difference to `time_ns`, the step's time. A"
    " `shape` is written elsewhere, and copied."
)
ABOUT_COMMAND = "Writes a command as a recording has it. text: of an ANSWER_FAILED; shape: of a SEND_PROFILE, as it is written."
WRITE_COMMAND = (
    "inline void write(Writer& writer, const Command& command, const Commands& all, Ns time_ns, std::string_view text,"
    " std::string_view shape)"
)


def recording_h() -> str:
    body: list[str] = []
    for name, fields, _ in ROWS.values():
        body += [*block(f"struct {name}", map(field, fields), ";"), ""]
    for number, kind in enumerate(types.EVENTS):
        body += event(kind, number) if kind is not types.Tick else []
    cases = []
    for number, kind in enumerate(types.COMMANDS):
        head = f"case CommandKind::{upper(kind)}:"
        cases += block(head, pack_command(kind, number)) if kind is not types.Wake else [f"{head} break;"]
    begin = "Packer packer = writer.begin(144 + text.size() + shape.size() + 9 * std::size_t{command.count});"
    write = [begin, *block("switch (command.kind)", cases), "writer.end(packer);"]
    body += [*comment(ABOUT_COMMAND), *block(WRITE_COMMAND, write), ""]
    includes = [*(f"#include <{name}>" for name in ("cstddef", "cstdint", "span", "string_view")), ""]
    includes += ['#include "msgpack.h"', '#include "scheduler/types.h"']
    return cpp(ABOUT, includes, "clockwork::recorded", body)
