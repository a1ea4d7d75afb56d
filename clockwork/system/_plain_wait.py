"""Waiting for descriptors without an extension: replaces _wait, with a resolution of a millisecond."""

from __future__ import annotations

import select
from collections.abc import Sequence


class DescriptorPoller:
    """A fixed, small set of descriptors to wait on. One thread may wait at a time."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = list(fds)
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            for fd in self._fds:
                self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_ns: int) -> bool:
        """Block until a descriptor is readable or the time is over (negative: forever). Returns whether a
        descriptor is readable.

        The time is rounded up to a millisecond if the system has poll().
        """
        if self._poll is not None:
            return bool(self._poll.poll(-(-timeout_ns // 1_000_000) if timeout_ns >= 0 else None))
        readable, _, _ = select.select(self._fds, [], [], timeout_ns / 1e9 if timeout_ns >= 0 else None)
        return bool(readable)
