"""Sources of models that gateways cannot read."""

from __future__ import annotations

from collections import deque

import pytest

from clockwork.config.controller import REPORTED_SOURCES_MAX
from clockwork.controller.effects import ClearTrouble, Effect, NoteTrouble
from clockwork.controller.troubles import TroubleKind
from clockwork.controller.views.source_reports import SourceReports
from clockwork.errors import InvalidInput

A, B = b"a", b"b"


def failing(effects: deque[Effect]) -> list[tuple[str, str]]:
    """Return the troubles that are left of all that were noted and cleared."""
    found: dict[str, str] = {}
    for effect in effects:
        assert isinstance(effect, NoteTrouble | ClearTrouble)
        assert effect.kind == TroubleKind.MODEL_SOURCE_FAILED
        if isinstance(effect, NoteTrouble):
            found[effect.subject] = effect.text
        else:
            del found[effect.subject]
    return list(found.items())


def test_a_source_fails_until_nobody_reports_it() -> None:
    effects: deque[Effect] = deque()
    reports = SourceReports(effects)
    reports.note(A, "s3://models", "503")
    reports.note(B, "s3://models", "504")
    reports.note(B, "https://other", "404")
    assert failing(effects) == [("s3://models", "504"), ("https://other", "404")]
    reports.note(A, "s3://models", "")
    reports.note(A, "https://other", "")  # a gateway that never reported it
    assert failing(effects) == [("s3://models", "504"), ("https://other", "404")]
    reports.client_gone(B)
    assert failing(effects) == []


def test_reports_are_bounded() -> None:
    effects: deque[Effect] = deque()
    reports = SourceReports(effects)
    for number in range(REPORTED_SOURCES_MAX):
        reports.note(A, f"s3://{number}", "away")
    with pytest.raises(InvalidInput, match=f"{REPORTED_SOURCES_MAX} model sources are reported"):
        reports.note(A, "s3://more", "away")
    reports.note(A, "s3://0", "still away")
    reports.note(A, "s3://0", "")
    reports.note(A, "s3://more", "away")
    assert len(failing(effects)) == REPORTED_SOURCES_MAX
