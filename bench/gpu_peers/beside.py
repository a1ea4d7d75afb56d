"""Registrations beside executions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from clockwork.errors import ClockworkError


class Fails(ClockworkError):
    """A side cannot do the measured work; the text names the side and the reason."""


class Registrations(contextlib.AbstractContextManager["Registrations"]):
    """Registers and drops something repeatedly on a thread. Raises Fails at the end if a registration failed.

    register: None registers nothing. stop: makes a registration that is under way end soon.
    """

    def __init__(
        self, register: Callable[[], None] | None, whose: str, stop: Callable[[], None] = lambda: None
    ) -> None:
        self.took_s: list[float] = []
        self._whose, self._stop = whose, stop
        self._is_over = threading.Event()
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        if register is not None:
            self._thread = threading.Thread(target=self._run, args=(register,), name="registrations")
            self._thread.start()

    @property
    def has_one(self) -> bool:
        """Whether a registration ran from beginning to end, or none will."""
        return self._thread is None or bool(self.took_s) or self._failure is not None

    def _run(self, register: Callable[[], None]) -> None:
        try:
            while not self._is_over.is_set():
                begun_s = time.monotonic()
                register()
                if not self._is_over.is_set():
                    self.took_s.append(time.monotonic() - begun_s)
        except Exception as error:  # raised at the end, in the caller's thread
            self._failure = error

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thread is None:
            return
        self._is_over.set()
        self._stop()
        self._thread.join()
        if self._failure is not None and kind is None:
            raise Fails(f"{self._whose}: registrations fail beside executions: {self._failure}")
