"""The check of stored packages after a start: beside requests, which must not notice it."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from clockwork.controller.storage.repairs import Repairs
from clockwork.formats.checksums import Pace
from tests.patience import eventually


def test_packages_are_checked_slowly_and_leave_the_cache_to_others() -> None:
    asked: list[tuple[str, Pace]] = []
    catalog: Any = SimpleNamespace(inspect=lambda digest, pace: asked.append((digest, pace)), store=None)
    table: Any = SimpleNamespace(digests=lambda: ["a", "b"], uses=lambda digest: True)
    repairs = Repairs(deque(), catalog, table)

    def done() -> bool:
        repairs.drain(None)
        return repairs.left_count == 0

    try:
        repairs.start()
        eventually(done, "both packages are checked")
    finally:
        repairs.close()
    assert [digest for digest, _ in asked] == ["a", "b"]
    for _, pace in asked:
        assert pace.busy_share <= 0.05
        assert not pace.keeps_cached
        assert pace.stop is not None
        assert pace.stop.is_set(), "a check that is under way would hold up the controller's end"
