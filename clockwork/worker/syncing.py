"""Syncs the files of prepared models to the disk, beside the preparation of the next models.

A sync takes milliseconds, as long as the preparation of a fine-tune. Without it, a disk that cannot write the
files would be noticed only when they are read again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from clockwork.config.worker import SYNCS_AT_ONCE

T = TypeVar("T", bound=Hashable)


class Synced(NamedTuple, Generic[T]):
    """The end of a sync. failure: a sentence; "" if the files are on the disk."""

    item: T
    failure: str


class SyncPool(Generic[T]):
    """Threads that sync directories' files. Every method belongs to the loop's thread.

    wake: has the loop call poll() soon, from any thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._threads = ThreadPoolExecutor(SYNCS_AT_ONCE, "sync")
        self._ended: deque[tuple[T, Future[str]]] = deque()

    def put(self, item: T, directories: Sequence[Path]) -> None:
        """Sync the files in these directories; poll() returns the end with the item."""

        def end(future: Future[str]) -> None:
            self._ended.append((item, future))
            self._wake()

        self._threads.submit(_sync, directories).add_done_callback(end)

    def poll(self) -> list[Synced[T]]:
        """Return the syncs that ended since the last call."""
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        return [Synced(item, future.result()) for item, future in ended]

    def close(self) -> None:
        """Finish the syncs under way, and drop the others."""
        self._threads.shutdown(cancel_futures=True)


def _sync(directories: Sequence[Path]) -> str:
    try:
        for directory in directories:
            for entry in os.scandir(directory):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
    except OSError as error:
        return f"the prepared model cannot be stored: {error}"
    return ""
