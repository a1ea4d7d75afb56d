"""Stored models are compared with their checksums before they are first loaded after a start.

In the order of demand by a thread of the worker, for whoever waits for it; all others in idle time by the preparation
process, at its low priority and a bounded share of a core. What is damaged is for worker.registration to replace.
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
    """A directory has been looked at. damage: what is wrong with it, as a sentence; "" nothing."""

    directory: Path
    damage: str


class Checks:
    """What of the store has been checked in the life of this process. Every method belongs to the loop's thread.

    wake: has the loop call poll() soon, from any thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        # Neither checked nor under way, in the order of announcement.
        self._waiting: dict[Path, Checksums] = {}
        self._under_way: set[Path] = set()  # by the thread
        self._orders: queue.SimpleQueue[tuple[Path, Checksums] | None] = queue.SimpleQueue()
        self._outcomes: deque[Checked] = deque()
        self._whole: set[Path] = set()
        self._thread = threading.Thread(target=self._run, name="checks", daemon=True)
        self._thread.start()

    def add(self, directory: Path, checksums: Checksums) -> None:
        """A model is prepared there; it was found, and not made by this process."""
        if not checksums:
            self._whole.add(directory)
        elif directory not in self._whole and directory not in self._under_way:
            self._waiting[directory] = checksums

    def made(self, directory: Path) -> None:
        """It has just been written, and its checksums taken from what was written."""
        self._waiting.pop(directory, None)
        self._whole.add(directory)

    def drop(self, directory: Path) -> None:
        """Nobody knows it any more, or it is to be made anew."""
        self._waiting.pop(directory, None)
        self._whole.discard(directory)

    def is_waiting(self, directory: Path) -> bool:
        """Whether nothing is known of it yet, and the thread has not taken it up."""
        return directory in self._waiting

    def is_whole(self, directory: Path) -> bool:
        return directory in self._whole

    def hurry(self, directory: Path) -> None:
        """Somebody waits for it: check it before all others."""
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
        """What the thread is through with since the last call."""
        ended = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        for one in ended:
            self._under_way.discard(one.directory)
        return ended

    def note(self, one: Checked) -> bool:
        """Keep an outcome, of whichever road. False: it is damaged."""
        self._waiting.pop(one.directory, None)
        if one.damage:
            self._whole.discard(one.directory)
            return False
        self._whole.add(one.directory)
        return True

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            directory, checksums = order
            self._outcomes.append(Checked(directory, find_damage(directory, checksums)))
            self._wake()
