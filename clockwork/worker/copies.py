"""Copies between a worker and its clients' memory, on threads of their own.

Whoever owns the memory decides how long a copy takes: pages may be swapped out, and a write waits for a lock of the file.
So the work is done piece by piece, in turns of the owners, by at most one thread for each owner: a copy that stands still
holds that owner's other copies and nobody else's, as long as there is another thread.
"""

from __future__ import annotations

import collections
import mmap
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from clockwork.config.worker import (
    COPIES_CLOSE_S,
    COPIES_MAX,
    COPY_THREADS,
    OWNER_COPIES_MAX,
    OWNER_SNAPSHOT_BYTES_MAX,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_IDLE_NS,
)
from clockwork.errors import InvalidInput
from clockwork.wire.shared import Ranges, aligned
from clockwork.wire.tensors import Array


class Copy:
    """Work on one owner's memory."""

    __slots__ = ("error", "is_dropped", "owner", "subject", "work")

    def __init__(self, owner: int, work: Iterator[None], subject: Any) -> None:
        self.owner = owner
        self.work = work  # each step is a piece
        self.subject = subject  # the caller's
        self.error: InvalidInput | None = None
        self.is_dropped = False  # nobody waits for it: it is not gone on with

    def step(self) -> bool:
        """Do a piece; whether there is more to do."""
        try:
            if not self.is_dropped:
                next(self.work)
                return True
        except StopIteration:
            return False
        except InvalidInput as error:
            self.error = error
            return False
        self.work.close()  # type: ignore[attr-defined]  # a generator: it closes its files
        return False


class Copies:
    """The threads, and the copies that wait for them or have ended. For one thread, except where said."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """wake: called on any thread when a copy has ended."""
        self._wake = wake
        self._lock = threading.Lock()
        self._waiting: dict[int, collections.deque[Copy]] = {}  # by owner, the one under way first
        self._count = 0
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # owners, each at most once
        self._ended: collections.deque[Copy] = collections.deque()
        self._threads: list[threading.Thread] = []

    def submit(self, owner: int, work: Iterator[None], subject: Any) -> Copy:
        """Have a copy done. owner: whose memory it is about, a process. Raises InvalidInput past the bounds."""
        copy = Copy(owner, work, subject)
        with self._lock:
            mine = self._waiting.get(owner)
            count = len(mine) if mine is not None else 0
            if count >= OWNER_COPIES_MAX:
                raise _too_many(f"{count} copies of process {owner}'s memory wait", OWNER_COPIES_MAX)
            if self._count >= COPIES_MAX:
                raise _too_many(f"{self._count} copies of clients' memory wait", COPIES_MAX)
            self._count += 1
            if mine is not None:
                mine.append(copy)
                return copy
            self._waiting[owner] = collections.deque((copy,))
        if not self._threads:
            self._start()
        self._turns.put(owner)
        return copy

    def ended(self) -> Iterator[Copy]:
        """The copies that have ended since the last call, those that were dropped, too."""
        while self._ended:
            yield self._ended.popleft()

    def close(self) -> None:
        """End the threads. One that does not come back ends with the process."""
        for _ in self._threads:
            self._turns.put(None)
        for thread in self._threads:
            thread.join(COPIES_CLOSE_S)

    def _start(self) -> None:
        for number in range(COPY_THREADS):
            self._threads.append(threading.Thread(target=self._work, name=f"copies-{number}", daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while (owner := self._turns.get()) is not None:
            while self._go_on(owner):
                if not self._turns.empty():
                    self._turns.put(owner)
                    break

    def _go_on(self, owner: int) -> bool:
        """Do a piece of an owner's first copy. Whether the owner has more to do."""
        mine = self._waiting[owner]
        if mine[0].step():
            return True
        with self._lock:
            self._ended.append(mine.popleft())
            self._count -= 1
            has_more = bool(mine)
            if not has_more:
                del self._waiting[owner]
        self._wake()
        return has_more


class Snapshots:
    """Private memory for copies of clients' tensors, bounded for each owner and in all.

    It is one mapping, of which the lowest free place is taken, so that its pages are used again; after a while without
    use they go back to the system. What is taken is free again when nobody holds it any more. take() may be called by
    any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: mmap.mmap | None = None  # made at the first use
        self._bytes: Array = np.empty(0, np.uint8)
        self._ranges = Ranges(0, SNAPSHOT_BYTES_MAX)
        self._used: dict[int, int] = {}  # bytes, by owner
        # Of what is held no more: owner, offset, size. A reference may end anywhere, also while the lock is held.
        self._returned: collections.deque[tuple[int, int, int]] = collections.deque()
        self._used_ns = 0  # of the last tidy() that found something taken
        self._was_used = False  # since the last tidy()
        self._has_pages = False

    @property
    def used_bytes(self) -> int:
        """Bytes that are held."""
        with self._lock:
            self._take_back()
            return sum(self._used.values())

    def take(self, owner: int, size: int) -> Array:
        """So many bytes, aligned, with anything in them. Raises InvalidInput where a bound is reached."""
        whole = aligned(size)
        with self._lock:
            self._take_back()
            used = self._used.get(owner, 0)
            if used + whole > OWNER_SNAPSHOT_BYTES_MAX:
                raise _no_room(size, f"of process {owner}'s tensors {used}", OWNER_SNAPSHOT_BYTES_MAX)
            if self._memory is None:
                try:
                    self._memory = mmap.mmap(-1, SNAPSHOT_BYTES_MAX, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                except OSError as error:
                    raise InvalidInput(
                        f"this worker has no memory for copies of clients' tensors: {error.strerror}"
                    ) from None
                self._bytes = np.frombuffer(self._memory, np.uint8)
            offset = self._ranges.take(whole)
            if offset is None:
                raise _no_room(size, f"of clients' tensors {sum(self._used.values())}", SNAPSHOT_BYTES_MAX)
            self._used[owner] = used + whole
            self._was_used = True
        found = self._bytes[offset : offset + size]
        weakref.finalize(found, self._returned.append, (owner, offset, whole)).atexit = False
        return found

    def tidy(self, now: int) -> None:
        """Give the memory's pages back, if nobody has held any of them for a while."""
        with self._lock:
            self._take_back()
            if self._used or self._was_used:
                self._used_ns, self._was_used, self._has_pages = now, False, True
            elif self._has_pages and now - self._used_ns >= SNAPSHOT_IDLE_NS:
                assert self._memory is not None
                self._memory.madvise(mmap.MADV_DONTNEED)
                self._has_pages = False

    def _take_back(self) -> None:
        while self._returned:
            owner, offset, whole = self._returned.popleft()
            self._ranges.give_back(offset, whole)
            self._used[owner] -= whole
            if not self._used[owner]:
                del self._used[owner]


def _too_many(what: str, most: int) -> InvalidInput:
    return InvalidInput(
        f"{what} for this worker already, at most {most} may", expected=f"at most {most}", got=what
    )


def _no_room(size: int, what: str, most: int) -> InvalidInput:
    return InvalidInput(
        f"no room for a copy of {size} bytes: this worker holds {what} bytes, at most {most} at once",
        expected=f"at most {most} bytes", got=f"{size} more",
    )  # fmt: skip
