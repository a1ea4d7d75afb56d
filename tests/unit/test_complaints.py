"""Complaints: every complaint is counted, and a flood of them does not flood the log."""

from __future__ import annotations

import logging

import pytest

from clockwork.config.wire import COMPLAINT_CHARS_MAX, COMPLAINT_INTERVAL_NS, COMPLAINT_LINES
from clockwork.wire.complaints import Complaints
from clockwork.wire.logs import LineFormatter

LOG = logging.getLogger("clockwork.test")


@pytest.fixture
def complaints() -> Complaints:
    return Complaints(LOG, ("malformed", "failed"))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_a_flood_is_counted_and_says_what_it_left_out(
    complaints: Complaints, caplog: pytest.LogCaptureFixture
) -> None:
    now = 10 * COMPLAINT_INTERVAL_NS
    for number in range(100_000):
        complaints.note("malformed", now + number, f"number {number}")
    assert lines(caplog) == [f"number {number}" for number in range(COMPLAINT_LINES)]
    assert complaints.counts() == {"malformed": 100_000, "failed": 0}
    complaints.note("malformed", now + COMPLAINT_INTERVAL_NS, "later")
    left_out = 100_000 - COMPLAINT_LINES
    assert lines(caplog) == [f"later ({left_out} complaints of this kind were left out before)"]


def test_one_kind_does_not_hide_another(complaints: Complaints, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        complaints.note("malformed", 0, "noise")
    lines(caplog)
    complaints.note("failed", 0, "signal")
    assert lines(caplog) == ["signal"]


def test_what_was_left_out_last_is_said_though_nothing_follows(
    complaints: Complaints, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(COMPLAINT_LINES + 7):
        complaints.note("malformed", 0, "noise")
    lines(caplog)
    complaints.settle(COMPLAINT_INTERVAL_NS - 1)
    assert lines(caplog) == []
    complaints.settle(COMPLAINT_INTERVAL_NS)
    assert lines(caplog) == ["7 complaints were left out (malformed)"]
    complaints.settle(10 * COMPLAINT_INTERVAL_NS)
    assert lines(caplog) == []


def test_a_defect_is_written_down_with_where_it_happened(
    complaints: Complaints, caplog: pytest.LogCaptureFixture
) -> None:
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        raise KeyError("x" * 1_000_000)

    try:
        deep(500)
    except KeyError as error:
        complaints.note("failed", 0, "it broke", error)
    (record,) = caplog.records
    record.exc_text = None  # the record as another handler formatted it
    line = LineFormatter("%(message)s").format(record)
    assert line.startswith("it broke\n  | ")
    assert "KeyError" in line or "xxx" in line
    assert len(line) < 2 * COMPLAINT_CHARS_MAX + 100
