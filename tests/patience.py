"""Waiting without a clock: every test waits for an event, and this module has the only hang guard.

The guard is minutes, because a machine that does other things as well is slower than any expectation. No test
measures with it.
"""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable, Iterator
from typing import Any

from clockwork.system.clock import SECOND, now_ns

PATIENCE_S = 180.0
PATIENCE_NS = round(PATIENCE_S * SECOND)


def eventually(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """Return the condition's value once it is true."""
    pause = threading.Event()
    deadline_ns = now_ns() + int(within_s * SECOND)
    while not (value := condition()):
        assert now_ns() < deadline_ns, f"{what}: not within {within_s:g} s"
        pause.wait(0.02)
    return value


def readable(*sources: Any, within_s: float = PATIENCE_S) -> list[Any]:
    """Return those of these sockets, files or descriptors that can be read; none after the time.

    select() takes no descriptor above 1,023, and earlier tests of the process may have left many open.
    """
    with selectors.DefaultSelector() as selector:
        for source in sources:
            selector.register(source, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(within_s)]


def windows_ns(first_ns: int) -> Iterator[int]:
    """Yield longer and longer times, for a test that needs something done before a window opens or closes.

    The test retries with the next time where the machine was too slow for this one. The last time is within
    PATIENCE_NS; after it the test fails.
    """
    window_ns = first_ns
    while window_ns < PATIENCE_NS:
        yield window_ns
        window_ns *= 4
    raise AssertionError(f"it was not done within {window_ns // 4 / SECOND:g} s")
