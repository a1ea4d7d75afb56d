"""Writes what C++ and Cython need of the schema: clockwork/wire/messages.py, clockwork/scheduler/types.py and
the bounds of clockwork/config that both languages have.

    python -m tools.schema

Any Python that runs Clockwork will do: nothing has to be installed or built. tests/unit/test_schema.py checks
that the files are current.
"""

from __future__ import annotations

from collections.abc import Callable

from tools.schema import declared, scheduling, wire

FILES: dict[str, Callable[[], str]] = {
    "csrc/wire/kinds.h": wire.kinds_h,
    "csrc/wire/bounds.h": wire.bounds_h,
    "csrc/wire/messages.h": wire.messages_h,
    "csrc/wire/messages.cpp": wire.messages_cpp,
    "clockwork/wire/_messages.pxd": wire.messages_pxd,
    "csrc/scheduler/commands.h": scheduling.commands_h,
    "csrc/recording/records.h": scheduling.recording_h,
    "clockwork/scheduler/_commands.pxd": scheduling.commands_pxd,
    "clockwork/scheduler/_commands.pxi": scheduling.commands_pxi,
    "tests/native/_command_fields.pxi": scheduling.command_fields_pxi,
}
"""The files that are generated, and their makers."""


def main() -> None:
    for name, make in FILES.items():
        text = make()
        path = declared.ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
