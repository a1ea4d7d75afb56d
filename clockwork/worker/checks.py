"""Checks of stored models: each is compared with its checksums before its first load after a start.

A thread of the worker checks models that are about to be loaded, in the order of demand; the preparation process checks
the others in idle time, at its low priority and with a bounded share of a core. worker.models replaces damaged models.
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
    """A directory has been checked. damage: a sentence; "" if there is none."""

    directory: Path
    damage: str


class Checks:
    """The directories that this process has checked, and those still to check. Every method belongs to the loop's thread.

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
        """Enter a prepared model's directory that this process found, and has not made itself."""
        if not checksums:
            self._whole.add(directory)
        elif directory not in self._whole and directory not in self._under_way:
            self._waiting[directory] = checksums

    def made(self, directory: Path) -> None:
        """Enter a directory that has just been written, with checksums taken from the bytes written."""
        self._waiting.pop(directory, None)
        self._whole.add(directory)

    def drop(self, directory: Path) -> None:
        """Forget a directory: its models are gone, or it is to be made anew."""
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
        """Directories to be checked in idle time; they still count as waiting, for demand may be faster."""
        return {directory: self._waiting[directory] for directory, _ in zip(self._waiting, range(count))}

    @property
    def count(self) -> int:
        """Directories that have not been checked."""
        return len(self._waiting) + len(self._under_way)

    def poll(self) -> list[Checked]:
        """The directories that the thread has checked since the last call."""
        ended = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        for checked in ended:
            self._under_way.discard(checked.directory)
        return ended

    def note(self, checked: Checked) -> bool:
        """Keep an outcome, of the thread or of the preparation process. False: the directory is damaged."""
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
