"""The logs of processes: lines that no peer can forge.

A message quotes names, faults and folders that others chose. Escaping each of them where it is logged would
fail at the first place that is forgotten. So the formatter escapes whole messages, and a line that does not
begin with a time belongs to the traceback above it. As JSON (CLOCKWORK_LOG_FORMAT), a record is an object in
a line, with its traceback in it, and JSON's own escapes serve the same purpose.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from clockwork.config import logs_json
from clockwork.config.wire import COMPLAINT_CHARS_MAX, COMPLAINT_FRAMES, LOG_CHARS_MAX
from clockwork.errors import ConfigError
from clockwork.wire.telling import visible

CONTINUED = "  | "  # Begins the lines of a traceback

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """A record as one line, with a bounded traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = record.message
        record.message = visible(_cut(message))
        try:
            return super().formatMessage(record)
        finally:
            record.message = message  # other handlers format the record as well

    def formatException(self, ei: ExceptionInfo) -> str:
        return "\n".join(CONTINUED + visible(line) for line in _traceback(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """A record as a JSON object in a line of ASCII: time (UTC), level, process, message, and the exception if
    there is one. Message and exception are bounded."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        found = record.exc_info
        exception = _traceback(found) if found else ""
        return json_line(
            self._process, record.getMessage(), record.levelname.lower(), record.created, exception
        )


def json_line(
    process: str, message: str, level: str = "info", time_s: float | None = None, exception: str = ""
) -> str:
    """A line of a JSON log. time_s: since the epoch; None: now."""
    moment = datetime.datetime.fromtimestamp(time.time() if time_s is None else time_s, datetime.UTC)
    fields = {
        "time": moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z",
        "level": level,
        "process": process,
        "message": _whole(_cut(message)),
    }
    if exception:
        fields["exception"] = _whole(exception)
    return dumps(fields)


def dumps(fields: Mapping[str, Any]) -> str:
    """An object as JSON in a line of ASCII without control characters."""
    return json.dumps(fields).replace("\x7f", "\\u007f")


def _cut(message: str) -> str:
    return message if len(message) <= LOG_CHARS_MAX else f"{message[:LOG_CHARS_MAX]}..."


def _whole(text: str) -> str:
    """The text, with a mark in place of half surrogate pairs, which readers of JSON refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _traceback(ei: ExceptionInfo) -> str:
    """The bounded end of a traceback."""
    lines = traceback.format_exception(*ei, limit=-COMPLAINT_FRAMES)
    return "".join(lines)[-COMPLAINT_CHARS_MAX:].rstrip()


def start_log(process: str) -> None:
    """Have this process log to stderr. process: its kind. Raises ConfigError for an unknown format."""
    guard_stderr(process)
    handler = logging.StreamHandler(sys.stderr)
    text = LineFormatter(f"%(asctime)s {process} %(levelname).1s %(message)s")
    handler.setFormatter(JsonFormatter(process) if logs_json() else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def guard_stderr(process: str = "clockwork") -> None:
    """Format the stderr of a process without a log of its own in the same way: the records of libraries, and
    the traceback of an uncaught error."""
    formatter = LineFormatter("%(message)s")
    try:
        as_json = logs_json()
    except ConfigError:  # the command reports this error
        as_json = False
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(JsonFormatter(process) if as_json else formatter)

    def show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        info = kind, error, where
        said = f"{kind.__name__}: {error}"
        print(
            json_line(process, said, "critical", exception=_traceback(info))
            if as_json
            else formatter.formatException(info),
            file=sys.stderr,
        )

    sys.excepthook = show
