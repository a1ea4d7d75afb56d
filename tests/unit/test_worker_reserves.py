"""A worker's requests to the controller for a device's time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clockwork.config import RESERVE_NS_MAX, RESERVE_RUNS_MAX
from clockwork.errors import InvalidModel
from clockwork.wire import codec
from clockwork.wire.messages import FROM_CLIENT, FROM_WORKER, TimeNeeded
from clockwork.worker.opening import ModelReserve


class Thread:
    """An opening thread that records its requests."""

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


def test_a_model_of_more_runs_than_may_be_asked_for_is_refused_by_its_worker() -> None:
    thread: Any = Thread()
    device: Any = Device()
    runs = [(1 << 24) - 1] * RESERVE_RUNS_MAX
    with ModelReserve(thread, device, None)(5, runs):
        assert codec.decode(codec.encode(TimeNeeded(0, 1, 5, runs)), FROM_WORKER).runs == runs
    with (
        pytest.raises(InvalidModel, match="it has 16385 runs of pages"),
        ModelReserve(thread, device, None)(5, [*runs, 1]),
    ):
        pass
    with pytest.raises(codec.WireError, match="a list of at most 16384"):
        codec.decode(codec.encode(TimeNeeded(0, 1, 5, [1] * (RESERVE_RUNS_MAX + 1))), FROM_WORKER)


def test_no_peer_sends_the_controller_a_header_of_many_megabytes() -> None:
    """Reading such a message stops the loop: 8 MB of TimeNeeded took most of a second."""
    sizes = {codec.bytes_max_of(kind) for table in (FROM_CLIENT, FROM_WORKER) for kind in table.values()}
    assert max(sizes) == 2 << 20
