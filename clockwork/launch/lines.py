"""Lines of child processes: their display as text or JSON, and lines by which a child reports that it
serves."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from clockwork.config import logs_json
from clockwork.wire.logs import dumps, json_line

_ROUTINE = re.compile(r"^(\S+ \S+ (controller|worker|gateway) [DI] |The dashboard is at )")

_SERVES = re.compile(
    r"\blistens for clients on |\bserves controller \S+ as worker \d+| listens:|^The dashboard is at "
)
"""Lines by which a controller, a worker, a gateway and a dashboard report that they serve."""

_STANDS_BY = re.compile(r"\bstandby: serves once ")
"""The line by which a controller reports that it waits for another's end."""

SETTLED = re.compile(r"\bmodel repository: the start is over: (.*)$")
"""The line by which a gateway reports the state of its repositories' models after the start."""

_LOGS = ("controller", "worker", "gateway")


class Line(NamedTuple):
    """A line of a child's output."""

    shown: str  # the line for display, with the child's name
    # whether only --verbose shows the line; other lines may report trouble
    is_routine: bool
    serves: str  # the message, if it reports that the child serves; else ""
    settled: str  # the result of the repositories' start, if the line is SETTLED; else ""
    stands_by: bool  # whether the child reports that it is a standby


def read_line(name: str, line: str) -> Line:
    """Parse a line of a child. With JSON output, a line that is not a log record becomes one."""
    if not logs_json():
        return Line(f"{name} | {line}", _ROUTINE.match(line) is not None, *_tells(line))
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(message := found.get("message"), str):
        is_routine = _ROUTINE.match(line) is not None
        return Line(json_line(name, line, "info" if is_routine else "warning"), is_routine, *_tells(line))
    is_routine = found.get("level") in ("debug", "info") and found.get("process") in _LOGS
    shown = dumps(found | {"process": name})
    return Line(shown, is_routine, *_tells(message))


def _tells(message: str) -> tuple[str, str, bool]:
    """Return Line.serves, Line.settled and Line.stands_by of a message."""
    settled = SETTLED.search(message)
    return (
        message if _SERVES.search(message) else "",
        settled[1] if settled is not None else "",
        _STANDS_BY.search(message) is not None,
    )


def said(text: str) -> str:
    """Return a text of this process for printing: with JSON output, as an object."""
    return json_line("up", text.strip()) if logs_json() and text[:1] != "{" else text
