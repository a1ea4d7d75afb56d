"""Troubles, and since when they exist."""

from __future__ import annotations

import pytest

from clockwork.config import TROUBLE_CHARS_MAX
from clockwork.config.controller import TROUBLE_KEPT_NS, TROUBLES_PER_KIND_MAX
from clockwork.controller.troubles import PASSING, TroubleKind, Troubles
from clockwork.system.clock import SECOND

ASIDE, REPAIRED = TroubleKind.MODEL_SET_ASIDE, TroubleKind.FILE_REPAIRED


def test_what_goes_wrong_again_keeps_its_beginning_and_takes_the_newer_text() -> None:
    troubles = Troubles()
    troubles.note(REPAIRED, "m@1", "page 3", 10 * SECOND)
    troubles.note(ASIDE, "n@1", "two workers", 12 * SECOND)
    troubles.note(REPAIRED, "m@1", "page 7", 15 * SECOND)
    body = troubles.describe(20 * SECOND)
    assert body["open"] == [
        {"kind": "file_repaired", "subject": "m@1", "text": "page 7", "count": 2,
         "since_ns": 10 * SECOND, "last_ns": 5 * SECOND},
        {"kind": "model_set_aside", "subject": "n@1", "text": "two workers", "count": 1,
         "since_ns": 8 * SECOND, "last_ns": 8 * SECOND},
    ]  # fmt: skip
    assert body["left_out"] == {}
    assert body["noted"]["file_repaired"] == 2
    assert troubles.summary(20 * SECOND)["file_repaired"] == {"open": 1, "since_ns": 10 * SECOND, "noted": 2}


def test_what_is_mended_is_gone_and_begins_anew() -> None:
    troubles = Troubles()
    troubles.note(ASIDE, "m@1", "", 0)
    assert not troubles.clear(ASIDE, "m@2")
    assert not troubles.clear(REPAIRED, "m@1")
    assert troubles.clear(ASIDE, "m@1")
    assert not troubles.clear(ASIDE, "m@1")
    troubles.note(ASIDE, "m@1", "", 5 * SECOND)
    assert troubles.summary(6 * SECOND)["model_set_aside"] == {"open": 1, "since_ns": SECOND, "noted": 2}


@pytest.mark.parametrize("kind", TroubleKind)
def test_each_kind_is_bounded_and_hides_no_other(kind: TroubleKind) -> None:
    troubles = Troubles()
    for number in range(TROUBLES_PER_KIND_MAX + 10):
        troubles.note(kind, f"m{number}@1", "x" * 10_000, number)
    for other in TroubleKind:
        troubles.note(other, "last", "", SECOND)
    body = troubles.describe(SECOND)
    assert len(body["open"]) == TROUBLES_PER_KIND_MAX + len(TroubleKind) - 1
    assert body["left_out"] == {str(kind): 11}  # "last" of this kind found no room either
    assert all(len(one["text"]) <= TROUBLE_CHARS_MAX for one in body["open"])


@pytest.mark.parametrize("kind", TroubleKind)
def test_events_are_forgotten_after_a_day_and_states_are_not(kind: TroubleKind) -> None:
    troubles = Troubles()
    troubles.note(kind, "a", "", 0)
    troubles.note(kind, "b", "", 1)
    later = troubles.describe(TROUBLE_KEPT_NS)
    assert [one["subject"] for one in later["open"]] == (["b"] if kind in PASSING else ["a", "b"])
    assert later["noted"][str(kind)] == 2


@pytest.mark.parametrize("is_asked", [False, True])
def test_what_happens_again_after_a_day_begins_anew_whether_somebody_asked_meanwhile_or_not(
    is_asked: bool,
) -> None:
    troubles = Troubles()
    troubles.note(REPAIRED, "m@1", "page 3", 0)
    if is_asked:
        assert troubles.describe(TROUBLE_KEPT_NS)["open"] == []
        assert troubles.summary(TROUBLE_KEPT_NS)["file_repaired"]["open"] == 0
    troubles.note(REPAIRED, "m@1", "page 7", TROUBLE_KEPT_NS)
    (found,) = troubles.describe(TROUBLE_KEPT_NS)["open"]
    assert (found["count"], found["since_ns"]) == (1, 0)


def test_what_is_over_makes_room() -> None:
    troubles = Troubles()
    for number in range(TROUBLES_PER_KIND_MAX):
        troubles.note(REPAIRED, f"m{number}@1", "", 0)
    troubles.note(REPAIRED, "new", "", TROUBLE_KEPT_NS)
    body = troubles.describe(TROUBLE_KEPT_NS)
    assert [one["subject"] for one in body["open"]] == ["new"]
    assert body["left_out"] == {}


def test_a_long_subject_is_cleared_by_its_own_name() -> None:
    troubles = Troubles()
    troubles.note(ASIDE, "m" * 1000, "", 0)
    assert troubles.clear(ASIDE, "m" * 1000)
