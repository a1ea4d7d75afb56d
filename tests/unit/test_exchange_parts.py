"""The parts of the exchange: the headers that each may include, and a bound on the fields of its loop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "csrc" / "controller"

ORDER = [
    # values and tables that know no other part
    ["by_text", "clock", "connections", "counts", "course", "flaws", "now"],
    ["models", "python_time", "descriptor_wait", "loop_times"],
    ["lookups", "sent_actions", "served_models", "sockets"],
    ["checks", "port", "recorded_scheduler", "shadows", "shape_numbers"],
    ["clients", "intake", "routes", "turn_results", "workers"],
    # the parts through which requests and actions go
    ["held_requests"],
    ["orders", "outcome_counts", "shadow_copies"],
    ["answers", "request_intake", "result_intake"],
    ["order_router"],
    # the parts that drive the others
    ["exchange_parts"],
    ["exchange"],
]
"""The room's headers; each includes those of earlier lines alone."""

PLACE = {name: place for place, names in enumerate(ORDER) for name in names}
HEADERS = sorted(path.stem for path in ROOM.glob("*.h"))
FIELDS_MAX = 15


def included(path: Path) -> list[str]:
    return re.findall(r'^#include "controller/(\w+)\.h"', path.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_header_has_its_place() -> None:
    assert sorted(PLACE) == HEADERS


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_includes_none_above_it(name: str) -> None:
    assert [other for other in included(ROOM / f"{name}.h") if PLACE[other] >= PLACE[name]] == []


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.cpp")), ids=lambda path: path.stem)
def test_a_source_has_a_header_and_includes_none_above_it(path: Path) -> None:
    assert [other for other in included(path) if PLACE[other] > PLACE[path.stem]] == []


@pytest.mark.parametrize("path", sorted(ROOM.iterdir()), ids=lambda path: path.name)
def test_no_part_sees_into_another(path: Path) -> None:
    code = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    assert re.search(r"\bfriend\b", code) is None


def test_the_loop_keeps_little() -> None:
    declared = (ROOM / "exchange.h").read_text(encoding="utf-8").partition("class Exchange {")[2]
    fields = re.findall(r"^    [\w:<>]+ (\w+_)(?: = [^;]+)?;", declared, re.MULTILINE)
    assert "parts_" in fields
    assert len(fields) <= FIELDS_MAX
