"""Sources of models that gateways cannot read."""

from __future__ import annotations

import pytest

from clockwork.config.controller import REPORTED_SOURCES_MAX
from clockwork.controller.troubles import TroubleKind, Troubles
from clockwork.controller.views.source_reports import SourceReports
from clockwork.errors import InvalidInput
from clockwork.system.clock import SECOND

A, B = b"a", b"b"


def failing(troubles: Troubles) -> list[tuple[str, str]]:
    found = troubles.describe(100 * SECOND)["open"]
    assert {one["kind"] for one in found} <= {TroubleKind.MODEL_SOURCE_FAILED}
    return [(one["subject"], one["text"]) for one in found]


def test_a_source_fails_until_nobody_reports_it() -> None:
    troubles = Troubles()
    reports = SourceReports(troubles)
    reports.note(A, "s3://models", "503", SECOND)
    reports.note(B, "s3://models", "504", 2 * SECOND)
    reports.note(B, "https://other", "404", 3 * SECOND)
    assert failing(troubles) == [("s3://models", "504"), ("https://other", "404")]
    reports.note(A, "s3://models", "", 4 * SECOND)
    reports.note(A, "https://other", "", 4 * SECOND)  # which it never reported
    assert failing(troubles) == [("s3://models", "504"), ("https://other", "404")]
    reports.client_gone(B)
    assert failing(troubles) == []


def test_reports_are_bounded() -> None:
    troubles = Troubles()
    reports = SourceReports(troubles)
    for number in range(REPORTED_SOURCES_MAX):
        reports.note(A, f"s3://{number}", "away", SECOND)
    with pytest.raises(InvalidInput, match=f"{REPORTED_SOURCES_MAX} model sources are reported"):
        reports.note(A, "s3://more", "away", SECOND)
    reports.note(A, "s3://0", "still away", SECOND)
    reports.note(A, "s3://0", "", SECOND)
    reports.note(A, "s3://more", "away", SECOND)
    assert len(failing(troubles)) == REPORTED_SOURCES_MAX
