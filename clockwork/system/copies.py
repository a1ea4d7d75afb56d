"""Copies from and to memory of other processes, on threads of their own.

The owner of the memory decides how long a copy takes: its pages may be swapped out, and a write waits for a
lock of the file. So copies are done in pieces, in turns of the owners, by at most one thread per owner. A
copy that blocks delays only its owner's other copies, as long as another thread is free.
"""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

from clockwork.config.system import COPIES_CLOSE_S, COPIES_MAX, COPY_THREADS, OWNER_COPIES_MAX
from clockwork.errors import InvalidInput

Work: TypeAlias = Generator[None, None, None]  # A copy, as a generator whose steps are its pieces


class Copy:
    """A copy from or to an owner's memory."""

    __slots__ = ("error", "is_dropped", "owner", "subject", "work")

    def __init__(self, owner: int, work: Work, subject: Any) -> None:
        self.owner = owner
        self.work = work
        self.subject = subject  # any value of the caller
        self.error: Exception | None = None
        self.is_dropped = False  # set by Copies.drop()

    def step(self) -> bool:
        """Copy a piece. Returns whether there is more."""
        try:
            if not self.is_dropped:
                next(self.work)
                return True
        except StopIteration:
            return False
        except Exception as error:  # the error belongs to the caller; this thread continues with other copies
            self.error = error
            return False
        self.work.close()  # closes the files of the copy
        return False


class Copies:
    """Threads that copy, with the copies that wait or have ended. Its methods are for a single thread."""

    def __init__(self, wake: Callable[[], None], whose: str) -> None:
        """wake: called on any thread when a copy has ended. whose: the kind of owners, for error messages."""
        self._wake = wake
        self._whose = whose
        self._lock = threading.Lock()
        self._waiting: dict[int, collections.deque[Copy]] = {}  # copies by owner, the pending copy first
        self._count = 0
        # owners with work, each at most once
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ended: collections.deque[Copy] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def submit(self, owner: int, work: Work, subject: Any) -> Copy:
        """Start a copy for an owner. Raises InvalidInput beyond the bounds, or if no thread can be
        started."""
        if not self._threads:
            self._start()
        copy = Copy(owner, work, subject)
        with self._lock:
            mine = self._waiting.get(owner)
            count = len(mine) if mine is not None else 0
            if count >= OWNER_COPIES_MAX:
                raise _too_many(f"{count} copies of {self._whose} {owner}'s memory wait", OWNER_COPIES_MAX)
            if self._count >= COPIES_MAX:
                raise _too_many(f"{self._count} copies of clients' memory wait", COPIES_MAX)
            self._count += 1
            if mine is not None:
                mine.append(copy)
                return copy
            self._waiting[owner] = collections.deque((copy,))
        self._turns.put(owner)
        return copy

    def drop(self, copy: Copy) -> None:
        """Cancel a copy. A copy that has begun ends at its next step. Does nothing if it has ended."""
        copy.is_dropped = True
        with self._lock:
            mine = self._waiting.get(copy.owner)
            if mine is None or copy not in mine or mine[0] is copy:
                return
            mine.remove(copy)
            self._count -= 1
        copy.work.close()  # the copy has not begun

    def ended(self) -> Iterator[Copy]:
        """Yield the copies that ended since the last call, cancelled copies included."""
        while self._ended:
            yield self._ended.popleft()

    def close(self) -> None:
        """End the threads. A thread that blocks ends with the process, and calls `wake` no more."""
        self._is_closed = True
        for _ in self._threads:
            self._turns.put(None)
        for thread in self._threads:
            thread.join(COPIES_CLOSE_S)

    def _start(self) -> None:
        """Start the threads, as many as the system allows. Raises InvalidInput if it allows none."""
        for number in range(COPY_THREADS):
            thread = threading.Thread(target=self._work, name=f"copies-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no memory for a thread, or a limit of the user's processes
                if not self._threads:
                    raise InvalidInput(f"there is no thread for copies of clients' memory: {error}") from None
                break
            self._threads.append(thread)

    def _work(self) -> None:
        while (owner := self._turns.get()) is not None:
            while self._go_on(owner) and not self._is_closed:
                if not self._turns.empty():
                    self._turns.put(owner)
                    break

    def _go_on(self, owner: int) -> bool:
        """Copy a piece of an owner's first copy. Returns whether the owner has more."""
        mine = self._waiting[owner]
        if mine[0].step():
            return True
        with self._lock:
            self._ended.append(mine.popleft())
            self._count -= 1
            has_more = bool(mine)
            if not has_more:
                del self._waiting[owner]
        if not self._is_closed:
            self._wake()
        return has_more


def _too_many(what: str, most: int) -> InvalidInput:
    return InvalidInput(f"{what} already, at most {most} may", expected=f"at most {most}", got=what)
