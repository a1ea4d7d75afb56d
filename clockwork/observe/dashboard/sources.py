"""Where the dashboard's steps come from: a recording, at the pace at which it happened, or a controller's recorder."""

from __future__ import annotations

from collections.abc import Callable

from clockwork.observe.dashboard.follower import Look
from clockwork.scheduler.recording import Readable, Step, decode


class Recorded:
    """A recording, from ``from_ns`` after its first event on, as if it happened now."""

    def __init__(self, file: Readable, clock: Callable[[], int], from_ns: int = 0) -> None:
        """clock: nanoseconds of a clock that does not jump. Raises ConfigError unless the file is a recording."""
        steps = decode(file)[1]
        self._steps = steps
        self._clock = clock
        self._from_ns = from_ns
        self._next: Step | None = next(steps, None)
        self._zero_ns = 0  # of the recording, when the clock is 0
        self._has_begun = False

    def look(self) -> Look:
        now_ns = self._clock()
        if not self._has_begun:
            self._has_begun = True
            begun_ns = self._next.events[0].now_ns if self._next is not None else 0
            self._zero_ns = begun_ns + self._from_ns - now_ns
        until_ns = self._zero_ns + now_ns
        found = []
        while self._next is not None and self._next.events[0].now_ns <= until_ns:
            found.append(self._next)
            self._next = next(self._steps, None)
        return Look(0, found)
