"""What a worker asks of the controller for a device's time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clockwork.config import RESERVE_NS_MAX
from clockwork.worker.opening import ModelReserve


class Thread:
    """An opening thread that notes what is asked."""

    is_interrupted = False

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, list[int]]] = []

    def has_lost(self, device: Any) -> bool:
        return False

    def ask(self, device: Any, model_id: int, expected_ns: int, runs: list[int]) -> None:
        self.asked.append((model_id, expected_ns, runs))


class Device:
    @contextlib.contextmanager
    def reserved(self, model_id: int, ask: Callable[[], None]) -> Iterator[list[int]]:
        ask()
        yield [7]


@pytest.mark.parametrize("expected_ns", [5, RESERVE_NS_MAX, RESERVE_NS_MAX + 1, 1 << 62])
def test_it_asks_for_no_longer_than_may_be_said(expected_ns: int) -> None:
    thread: Any = Thread()
    device: Any = Device()
    with ModelReserve(thread, device, None)(expected_ns, [2]) as starts:
        assert starts == [7]
    assert thread.asked == [(0, min(expected_ns, RESERVE_NS_MAX), [2])]
