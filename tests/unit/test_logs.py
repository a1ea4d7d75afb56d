"""Lines of logs, whatever is quoted in them."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from clockwork.config import COMPLAINT_CHARS_MAX, LOG_CHARS_MAX
from clockwork.wire.logs import CONTINUED, LineFormatter, guard_stderr

FORGED = "x\n2026-01-01 00:00:00,000 controller I forged\r\x1b[31m\x9b\u2028\u202e\ud800"
SHOWN = r"x\n2026-01-01 00:00:00,000 controller I forged\r\x1b[31m\x9b\u2028\u202e\ud800"


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    logger = logging.Logger("test")
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(LineFormatter("%(levelname).1s %(message)s"))
    logger.addHandler(handler)
    return logger, written


def test_a_record_is_one_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logger.warning("device %s of %s", FORGED, "w")
    logger.error(FORGED)  # also where a text is the message itself
    assert written.getvalue() == f"W device {SHOWN} of w\nE {SHOWN}\n"


def test_a_traceback_is_lines_that_begin_no_record(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        logger.error("failed", exc_info=error)
    first, *rest = written.getvalue().splitlines()
    assert first == "E failed"
    assert all(line.startswith(CONTINUED) for line in rest)
    assert any("ValueError: x" in line for line in rest)
    assert written.getvalue().replace("\n", "").isprintable()


def test_lines_and_tracebacks_are_bounded(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logger.error("%s", "x" * 1_000_000)
    assert len(written.getvalue()) < LOG_CHARS_MAX + 10

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        raise KeyError("x" * 1_000_000)

    try:
        deep(300)
    except KeyError:
        logger.error("failed", exc_info=sys.exc_info())
    assert len(written.getvalue()) < LOG_CHARS_MAX + 3 * COMPLAINT_CHARS_MAX


def test_an_error_that_nothing_catches_is_such_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    formatter = logging.lastResort.formatter if logging.lastResort is not None else None
    guard_stderr()
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(formatter)
    written = capsys.readouterr().err
    assert "ValueError: x" in written
    assert all(line.startswith(CONTINUED) for line in written.splitlines())
    assert written.replace("\n", "").isprintable()


def test_another_handler_sees_the_message_as_it_was(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, _ = log
    record = logger.makeRecord("test", logging.INFO, "", 0, FORGED, (), None)
    logger.handle(record)
    assert record.getMessage() == record.message == FORGED
