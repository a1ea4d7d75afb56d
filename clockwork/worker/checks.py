"""Checks of stored models: their files are compared with checksums before the first load after a start.

A thread of the worker checks models that are about to be loaded, in the order of demand; the preparation
process checks the others in idle time, at its low priority and with a bounded share of a core. worker.models
replaces damaged models.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from clockwork.formats.checksums import find_damage

Checksums = Mapping[str, int]


class Checked(NamedTuple):
    """The outcome of checking a directory. damage: a sentence; "" if the files are whole."""

    directory: Path
    damage: str


class Checks:
    """The directories that this process has checked, and those still to check. The loop's thread calls it.

    wake: has the loop call poll() soon, from any thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        # Directories that are neither checked nor under way, in the order of announcement.
        self._waiting: dict[Path, Checksums] = {}
        self._under_way: set[Path] = set()  # directories that the thread has or is about to take up
        self._orders: queue.SimpleQueue[tuple[Path, Checksums] | None] = queue.SimpleQueue()
        self._outcomes: deque[Checked] = deque()
        self._whole: set[Path] = set()
        self._thread = threading.Thread(target=self._run, name="checks", daemon=True)
        self._thread.start()

    def add(self, directory: Path, checksums: Checksums) -> None:
        """Add a prepared model's directory that this process found and did not write, so that it is to be
        checked."""
        if not checksums:
            self._whole.add(directory)
        elif directory not in self._whole and directory not in self._under_way:
            self._waiting[directory] = checksums

    def made(self, directory: Path) -> None:
        """Add a directory that has just been written: its checksums come from the written bytes, so it is
        whole."""
        self._waiting.pop(directory, None)
        self._whole.add(directory)

    def drop(self, directory: Path) -> None:
        """Forget a directory whose models are gone, or which is to be written again."""
        self._waiting.pop(directory, None)
        self._whole.discard(directory)

    def is_waiting(self, directory: Path) -> bool:
        """Whether a directory is neither checked nor taken up by the thread."""
        return directory in self._waiting

    def is_whole(self, directory: Path) -> bool:
        """Whether a directory has been checked (or made by this process) and is undamaged."""
        return directory in self._whole

    def hurry(self, directory: Path) -> None:
        """Have the thread check a directory, because a load waits for it."""
        checksums = self._waiting.pop(directory, None)
        if checksums is not None:
            self._under_way.add(directory)
            self._orders.put((directory, checksums))

    def some(self, count: int) -> dict[Path, Checksums]:
        """Return directories to check in idle time. They still wait: a load may have the thread check them
        first."""
        return {directory: self._waiting[directory] for directory, _ in zip(self._waiting, range(count))}

    @property
    def count(self) -> int:
        """Return the number of directories that have not been checked."""
        return len(self._waiting) + len(self._under_way)

    def poll(self) -> list[Checked]:
        """Return the outcomes of the thread's checks since the last call."""
        ended = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        for checked in ended:
            self._under_way.discard(checked.directory)
        return ended

    def note(self, checked: Checked) -> bool:
        """Record the outcome of a check. Returns False if the directory is damaged."""
        self._waiting.pop(checked.directory, None)
        if checked.damage:
            self._whole.discard(checked.directory)
            return False
        self._whole.add(checked.directory)
        return True

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            directory, checksums = order
            self._outcomes.append(Checked(directory, find_damage(directory, checksums)))
            self._wake()
