"""The check of stored packages after a start: beside requests, which must not notice it."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

from clockwork.controller.catalog.objects import StoreFailed
from clockwork.controller.storage.repairs import Repairs
from clockwork.formats.checksums import Pace
from tests.patience import PATIENCE_S, eventually


def test_a_package_that_becomes_suspect_while_it_is_checked_is_checked_again() -> None:
    asked: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def inspect(digest: str, pace: Pace) -> None:
        asked.append(digest)
        begun.set()
        assert go_on.wait(PATIENCE_S)

    catalog: Any = SimpleNamespace(store=SimpleNamespace(inspect=inspect))
    table: Any = SimpleNamespace(digests=lambda: ["a", "b"], uses=lambda digest: True)
    repairs = Repairs(deque(), catalog, table)

    def done() -> bool:
        repairs.drain(None)
        return repairs.left_count == 0

    try:
        repairs.start()
        assert begun.wait(PATIENCE_S)
        repairs.inspect("a")
        repairs.inspect("a")
        go_on.set()
        eventually(done, "both packages are checked")
    finally:
        go_on.set()
        repairs.close()
    assert asked == ["a", "a", "b"]


def test_while_a_store_is_away_suspects_wait_once_each() -> None:
    asked: list[str] = []
    away = threading.Event()
    away.set()

    def inspect(digest: str, pace: Pace) -> None:
        asked.append(digest)
        if away.is_set():
            raise StoreFailed("no route to host")

    catalog: Any = SimpleNamespace(store=SimpleNamespace(inspect=inspect))
    table: Any = SimpleNamespace(digests=lambda: ["a", "b", "c"], uses=lambda digest: True)
    repairs = Repairs(deque(), catalog, table)

    def done(left: int) -> bool:
        repairs.drain(None)
        return repairs.left_count == left and not repairs._inspecting

    try:
        repairs.start()
        eventually(lambda: done(3) and asked, "the first package cannot be checked")
        for _ in range(100):
            repairs.inspect("c")
        assert done(4)
        assert asked == ["a"], "a store that is away is asked for every package"
        away.clear()
        repairs.retry()
        eventually(lambda: done(0), "all packages are checked")
    finally:
        repairs.close()
    assert asked == ["a", "a", "c", "b", "c"]


def test_packages_are_checked_slowly_and_leave_the_cache_to_others() -> None:
    asked: list[tuple[str, Pace]] = []
    store = SimpleNamespace(inspect=lambda digest, pace: asked.append((digest, pace)))
    catalog: Any = SimpleNamespace(store=store)
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
