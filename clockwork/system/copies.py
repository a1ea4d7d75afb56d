"""Copies from and to memory that somebody else owns, on threads of their own.

Whoever owns the memory decides how long a copy takes: pages may be swapped out, and a write waits for a lock of the file.
So the work is done piece by piece, in turns of the owners, by at most one thread for each owner: a copy that stands still
holds that owner's other copies and nobody else's, as long as there is another thread.
"""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

from clockwork.config.system import COPIES_CLOSE_S, COPIES_MAX, COPY_THREADS, OWNER_COPIES_MAX
from clockwork.errors import InvalidInput

Work: TypeAlias = Generator[None, None, None]
"""A copy: each step is a piece of it."""


class Copy:
    """Work on one owner's memory."""

    __slots__ = ("error", "is_dropped", "owner", "subject", "work")

    def __init__(self, owner: int, work: Work, subject: Any) -> None:
        self.owner = owner
        self.work = work
        self.subject = subject  # the caller's
        self.error: Exception | None = None
        self.is_dropped = False  # by Copies.drop()

    def step(self) -> bool:
        """Do a piece; whether there is more to do."""
        try:
            if not self.is_dropped:
                next(self.work)
                return True
        except StopIteration:
            return False
        except Exception as error:  # whatever it is, it is the asker's, and this thread goes on for others
            self.error = error
            return False
        self.work.close()  # it closes its files
        return False


class Copies:
    """The threads, and the copies that wait for them or have ended. For one thread, except where said."""

    def __init__(self, wake: Callable[[], None], whose: str) -> None:
        """wake: called on any thread when a copy has ended. whose: of what sort owners are, for people."""
        self._wake = wake
        self._whose = whose
        self._lock = threading.Lock()
        self._waiting: dict[int, collections.deque[Copy]] = {}  # by owner, the copy under way first
        self._count = 0
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # owners, each at most once
        self._ended: collections.deque[Copy] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def submit(self, owner: int, work: Work, subject: Any) -> Copy:
        """Have a copy done, of an owner's memory. Raises InvalidInput past the bounds, and where there is no thread for it."""
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
        """Go no further with a copy, which then holds nothing once it is not under way. No error if it has ended."""
        copy.is_dropped = True
        with self._lock:
            mine = self._waiting.get(copy.owner)
            if mine is None or copy not in mine or mine[0] is copy:
                return
            mine.remove(copy)
            self._count -= 1
        copy.work.close()  # it has not begun

    def ended(self) -> Iterator[Copy]:
        """The copies that have ended since the last call, those that were dropped, too."""
        while self._ended:
            yield self._ended.popleft()

    def close(self) -> None:
        """End the threads. One that does not come back ends with the process, and wakes nobody before."""
        self._is_closed = True
        for _ in self._threads:
            self._turns.put(None)
        for thread in self._threads:
            thread.join(COPIES_CLOSE_S)

    def _start(self) -> None:
        """Start the threads, or as many as the system gives. Raises InvalidInput where that is none."""
        for number in range(COPY_THREADS):
            thread = threading.Thread(target=self._work, name=f"copies-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no memory, or a limit of the user's processes
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
        if not self._is_closed:
            self._wake()
        return has_more


def _too_many(what: str, most: int) -> InvalidInput:
    return InvalidInput(f"{what} already, at most {most} may", expected=f"at most {most}", got=what)
