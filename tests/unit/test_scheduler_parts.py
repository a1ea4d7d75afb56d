"""The parts of the scheduler's native room: the headers that each may include, and constructs that none may
have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "csrc" / "scheduler"

ORDER = [
    # values, and what is learnt of them
    ["archive"],
    ["ids"],
    ["commands"],
    ["types", "chain", "bits", "pool", "pages"],
    ["histogram"],
    ["decay"],
    ["lateness"],
    ["link", "inputs", "predictions", "margin"],
    ["neighbours", "page_times"],
    ["estimates", "demand", "shares"],
    ["link_shares"],
    ["busy", "lead", "weights", "scheduler"],
    # records
    ["records"],
    ["machines", "queue"],
    # interfaces of decisions to the parts below
    ["memory", "hooks"],
    ["policy"],
    # the parts that carry decisions out
    ["state"],
    ["flights", "keepers", "learning"],
    ["arenas", "executions"],
    ["models", "idle", "reservations", "spread"],
    ["requests"],
    ["recovery"],
    ["parts"],
    # the policies and their parts
    ["worth"],
    ["plan", "queues"],
    ["planned_inputs"],
    ["admission", "rules"],
    ["in_order", "placement", "deferred", "fifo", "paper", "scripted", "spare"],
    ["queue_memory", "shortfalls"],
    ["adaptive", "edf"],
    ["memory_adaptive", "memory_paper", "queued"],
    # the parts that drive the others
    ["dispatcher"],
]
"""The room's headers; each includes those of earlier lines alone."""

PLACE = {name: place for place, names in enumerate(ORDER) for name in names}
SOURCES_OF = {
    "stores": "arenas", "archive": "dispatcher", "workers": "dispatcher", "view": "dispatcher", "policies": "dispatcher",
    # these sources work on all records, so they name them
    "records": "machines", "demand": "machines", "shares": "machines",
    "page_times": "estimates",
    "link_shares": "state",
}  # fmt: skip
"""For a source without a header of its own, or with wider work, the header whose place it has."""

HEADERS = sorted(path.stem for path in ROOM.glob("*.h"))
SOURCES = sorted(path.stem for path in ROOM.glob("*.cpp"))


def included(path: Path) -> list[str]:
    return re.findall(r'^#include "scheduler/(\w+)\.h"', path.read_text(encoding="utf-8"), re.MULTILINE)


def code(path: Path) -> str:
    return re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))


def test_every_header_has_its_place() -> None:
    assert sorted(PLACE) == HEADERS


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_includes_none_above_it(name: str) -> None:
    assert [other for other in included(ROOM / f"{name}.h") if PLACE[other] >= PLACE[name]] == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_includes_none_above_its_header(name: str) -> None:
    place = PLACE[SOURCES_OF.get(name, name)]
    assert [other for other in included(ROOM / f"{name}.cpp") if PLACE[other] > place] == []


@pytest.mark.parametrize("path", sorted(ROOM.iterdir()), ids=lambda path: path.name)
def test_no_part_sees_into_another(path: Path) -> None:
    assert re.search(r"\bfriend\b", code(path)) is None
    assert re.search(r"\(void\)\s*\w+\s*[,;]", code(path)) is None, "a parameter that is not used has no name"


def test_only_what_decides_is_inherited_from() -> None:
    """The only base classes are interfaces."""
    bases = {
        base
        for path in ROOM.glob("*.h")
        for bases in re.findall(r"\b(?:class|struct) \w+(?: final)? : ([^{;]+)\{", code(path))
        for base in re.findall(r"(?:public|private|protected) (\w+)", bases)
    }
    assert bases == {"Dropper", "HookView", "Memory", "Policy", "QueueMemory", "Rules", "Scheduler"}
