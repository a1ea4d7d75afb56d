"""The logs of processes: lines that nobody else can forge.

A message quotes names, faults and folders that others chose. The obvious remedy, to escape each where it is logged, fails
with the first place that is forgotten. So the formatter escapes whole messages, and a line that does not begin with a time
belongs to the traceback above it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType

from clockwork.config import COMPLAINT_CHARS_MAX, COMPLAINT_FRAMES, LOG_CHARS_MAX
from clockwork.wire.telling import visible

CONTINUED = "  | "
"""Begins the lines of a traceback."""

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """A record as one line, with a bounded traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = record.message
        cut = message if len(message) <= LOG_CHARS_MAX else f"{message[:LOG_CHARS_MAX]}..."
        record.message = visible(cut)
        try:
            return super().formatMessage(record)
        finally:
            record.message = message  # which other handlers format, too

    def formatException(self, ei: ExceptionInfo) -> str:
        kind, error, where = ei
        lines = traceback.format_exception(kind, error, where, limit=-COMPLAINT_FRAMES)
        text = "".join(lines)[-COMPLAINT_CHARS_MAX:].rstrip()
        return "\n".join(CONTINUED + visible(line) for line in text.split("\n"))


def start_log(process: str) -> None:
    """Have this process log to stderr. process: its kind."""
    guard_stderr()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(f"%(asctime)s {process} %(levelname).1s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def guard_stderr() -> None:
    """Have whatever a process without a log of its own says on stderr be such lines, too: what libraries log, and the
    traceback of an error that nothing catches."""
    formatter = LineFormatter("%(message)s")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(formatter)

    def show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        print(formatter.formatException((kind, error, where)), file=sys.stderr)

    sys.excepthook = show
