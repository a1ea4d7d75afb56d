"""Lines of child processes: which are passed on, as text or as JSON, and which say that a child serves."""

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
"""The lines by which a controller, a worker, a gateway and a dashboard say that they serve."""

SETTLED = re.compile(r"\bmodel repository: the start is over: (.*)$")
"""The line by which a gateway says what has become of every model that its repositories had at its start."""

_LOGS = ("controller", "worker", "gateway")


class Line(NamedTuple):
    """A line of a child."""

    shown: str  # as it is passed on, with the child's name
    is_routine: bool  # only --verbose shows it; anything else may be trouble. Where a dashboard is, the greeting says.
    serves: str  # the message, if it says that the child serves; else ""
    settled: str  # the message about a gateway's repositories, if it is SETTLED; else ""


def read_line(name: str, line: str) -> Line:
    """A line of the child of that name. With JSON, what is no object of a log becomes one."""
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


def _tells(message: str) -> tuple[str, str]:
    """What a message says for Line.serves and Line.settled."""
    settled = SETTLED.search(message)
    return message if _SERVES.search(message) else "", settled[1] if settled is not None else ""


def said(text: str) -> str:
    """A text of this process, or a line that is shown, as it is printed: with JSON, an object."""
    return json_line("up", text.strip()) if logs_json() and text[:1] != "{" else text
