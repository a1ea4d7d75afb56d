"""Lines of logs stay lines, whatever text they quote."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from clockwork.config import logs_json
from clockwork.config.wire import COMPLAINT_CHARS_MAX, LOG_CHARS_MAX
from clockwork.errors import ConfigError
from clockwork.launch.lines import read_line, said
from clockwork.wire.logs import CONTINUED, JsonFormatter, LineFormatter, guard_stderr, json_line

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
    logger.error(FORGED)  # the same if a text is the whole message
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


# ----- as JSON ---------------------------------------------------------------------------------

EVERY = "".join(map(chr, range(0x250))) + "\u2028\u202e\ud800\U0001f980"


@pytest.fixture
def json_log(log: tuple[logging.Logger, io.StringIO]) -> tuple[logging.Logger, io.StringIO]:
    logger, _ = log
    logger.handlers[0].setFormatter(JsonFormatter("gateway"))
    return log


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOCKWORK_LOG_FORMAT", "json")


def test_a_record_is_an_object_in_one_line_whatever_it_quotes(
    json_log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, written = json_log
    logger.warning("device %s", EVERY)
    logger.error(FORGED)
    first, second = written.getvalue().split("\n")[:-1]
    assert all(line.isascii() and line.isprintable() for line in (first, second))
    found = json.loads(first)
    assert list(found) == ["time", "level", "process", "message"]
    assert (found["level"], found["process"]) == ("warning", "gateway")
    assert found["message"] == "device " + EVERY.replace("\ud800", "\ufffd")
    assert json.loads(second)["message"].startswith("x\n2026-01-01")


def test_the_time_is_universal_and_has_milliseconds() -> None:
    found = json.loads(json_line("up", "x", time_s=1_700_000_000.0625))
    assert found["time"] == "2023-11-14T22:13:20.062Z"


def test_a_traceback_is_in_its_object_and_both_are_bounded(
    json_log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, written = json_log
    try:
        raise KeyError("\x7f" * 1_000_000)
    except KeyError:
        logger.exception("y" * 1_000_000)
    [line] = written.getvalue().splitlines()
    found = json.loads(line)
    assert len(found["message"]) <= LOG_CHARS_MAX + 3
    assert 0 < len(found["exception"]) <= COMPLAINT_CHARS_MAX
    assert line.isprintable()


def test_an_error_that_nothing_catches_is_an_object(
    as_json: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    formatter = logging.lastResort.formatter if logging.lastResort is not None else None
    guard_stderr("worker")
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(formatter)
    found = json.loads(capsys.readouterr().err)
    assert (found["level"], found["process"], "Traceback" in found["exception"]) == (
        "critical",
        "worker",
        True,
    )


def test_a_format_that_there_is_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOCKWORK_LOG_FORMAT", "xml")
    with pytest.raises(ConfigError, match="none of text, json"):
        logs_json()


def test_a_childs_objects_are_passed_on_under_its_name(as_json: None) -> None:
    serves = "gateway 1 of x listens: http on y"
    found = read_line("gateway", json_line("gateway", serves))
    assert (found.is_routine, found.serves) == (True, serves)
    found = read_line("worker-2", json_line("worker", "late", "warning", exception="Traceback"))
    assert (found.is_routine, found.serves) == (False, "")
    shown = json.loads(found.shown)
    assert (shown["process"], shown["level"], shown["exception"]) == ("worker-2", "warning", "Traceback")


@pytest.mark.parametrize(
    "line",
    ["terminate called", "", "[1]", "{}", '{"message": 1}', "[" * 100_000, '{"a": ' * 100_000, "1" * 5_000],
)
def test_what_a_child_says_that_is_no_record_becomes_one(as_json: None, line: str) -> None:
    found = read_line("worker-0", line)
    shown = json.loads(found.shown)
    assert (shown["process"], shown["level"], found.is_routine) == ("worker-0", "warning", False)
    assert shown["message"] == (line if len(line) <= LOG_CHARS_MAX else f"{line[:LOG_CHARS_MAX]}...")
    assert said(found.shown) == found.shown


def test_what_up_says_itself_is_an_object_as_well(as_json: None) -> None:
    found = json.loads(said("\nReady after 1 s.\n\n  clients  x\n"))
    assert (found["process"], found["message"]) == ("up", "Ready after 1 s.\n\n  clients  x")


def test_lines_of_text_are_passed_on_as_they_are() -> None:
    line = "2026-01-01 00:00:00,000 controller I controller 1 listens for clients on x"
    assert read_line("controller", line) == (f"controller | {line}", True, line, "", False)
    shown = "worker-0 | terminate called"
    assert read_line("worker-0", "terminate called") == (shown, False, "", "", False)
    waits = "2026-01-01 00:00:00,000 controller I standby: serves once no other controller uses /srv"
    assert read_line("controller-1", waits) == (f"controller-1 | {waits}", True, "", "", True)
    assert said("Stopping ...") == "Stopping ..."
