"""A worker's private memory for copies of clients' tensors, bounded for each owner and in all."""

from __future__ import annotations

import collections
import mmap
import threading
import weakref

import numpy as np

from clockwork.config.worker import OWNER_SNAPSHOT_BYTES_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOT_IDLE_NS
from clockwork.errors import InvalidInput
from clockwork.wire.shared import Ranges, aligned
from clockwork.wire.tensors import Array


class Snapshots:
    """Memory for copies, as one mapping.

    take() uses the lowest free place, so that pages are used again. Pages that have been unused for a while
    go back to the system. A place is free again when no reference to its array is left. Any thread may call
    take().
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: mmap.mmap | None = None  # created by the first take()
        self._bytes: Array = np.empty(0, np.uint8)
        self._ranges = Ranges(0, SNAPSHOT_BYTES_MAX)
        self._used: dict[int, int] = {}  # bytes in use, by owner
        # Places that are free again: owner, offset, size. A reference may end in any thread, or
        # while the lock is held.
        self._returned: collections.deque[tuple[int, int, int]] = collections.deque()
        self._used_ns = 0  # time of the last tidy() that found memory in use
        self._was_used = False  # whether memory was taken since the last tidy()
        self._has_pages = False

    @property
    def used_bytes(self) -> int:
        """The number of bytes that are held."""
        with self._lock:
            self._take_back()
            return sum(self._used.values())

    def take(self, owner: int, size: int) -> Array:
        """Return an aligned, uninitialised array of `size` bytes. Raises InvalidInput where a bound is
        reached."""
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
        """Give the pages back to the system if none has been held for a while."""
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


def _no_room(size: int, what: str, most: int) -> InvalidInput:
    return InvalidInput(
        f"no room for a copy of {size} bytes: this worker holds {what} bytes, at most {most} at once",
        expected=f"at most {most} bytes", got=f"{size} more",
    )  # fmt: skip
