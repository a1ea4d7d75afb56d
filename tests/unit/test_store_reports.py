"""Troubles of stores with a bound: which are told, and when they are over."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from clockwork.config.controller import STORES_TROUBLE_NS
from clockwork.controller.effects import ClearTrouble, NoteTrouble
from clockwork.controller.troubles import TroubleKind
from clockwork.controller.views.store_reports import StoreReports


class Reports:
    def __init__(self) -> None:
        self.effects: deque[Any] = deque()
        self.reports = StoreReports(self.effects)
        self.now_ns = 0

    def look(self, after_ns: int = 0, **status: int) -> list[Any]:
        self.now_ns += after_ns
        self.reports.look(
            {"lost": 0, "cramped": 0, "room": 5, "used": 90, "bytes": 100} | status, self.now_ns
        )
        found = list(self.effects)
        self.effects.clear()
        return found


@pytest.mark.parametrize(
    ("what", "kind"), [("lost", TroubleKind.MODELS_LOST), ("cramped", TroubleKind.STORES_FULL)]
)
def test_what_lasts_is_told_once_and_its_end_as_well(what: str, kind: TroubleKind) -> None:
    reports = Reports()
    assert reports.look(**{what: 3}) == []
    assert reports.look(STORES_TROUBLE_NS - 1, **{what: 1}) == []
    [noted] = reports.look(1, **{what: 2})
    assert isinstance(noted, NoteTrouble)
    assert (noted.kind, noted.subject) == (kind, "stores")
    assert "2 models" in noted.text
    assert reports.look(STORES_TROUBLE_NS, **{what: 4}) == []
    assert reports.look(1) == [ClearTrouble(kind, "stores")]
    assert reports.look(STORES_TROUBLE_NS) == []


def test_what_passes_is_not_told() -> None:
    reports = Reports()
    for _ in range(4):
        assert reports.look(STORES_TROUBLE_NS // 2, lost=1) == []
        assert reports.look(STORES_TROUBLE_NS // 2) == []


def test_full_stores_are_told_with_their_bytes() -> None:
    reports = Reports()
    reports.look(cramped=1)
    [noted] = reports.look(STORES_TROUBLE_NS, cramped=1)
    assert noted.text == (
        "1 model should have another copy, and no store has room for it: the emptiest has 5 bytes left, all together "
        "use 90 of 100; raise --store-bytes, start further workers, or lower --stored-copies"
    )
