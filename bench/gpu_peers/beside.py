"""What goes on beside executions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from clockwork.errors import ClockworkError


class Fails(ClockworkError):
    """A side cannot do what it is measured at; the text says which, and why."""


class Registrations(contextlib.AbstractContextManager["Registrations"]):
    """Has something be registered, and dropped, again and again, on a thread. Raises Fails at the end if it failed.

    register: None registers nothing. stop: has a registration that is under way end soon.
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
        """Whether there was one from beginning to end, or will be none."""
        return self._thread is None or bool(self.took_s) or self._failure is not None

    def _run(self, register: Callable[[], None]) -> None:
        try:
            while not self._is_over.is_set():
                begun_s = time.monotonic()
                register()
                if not self._is_over.is_set():
                    self.took_s.append(time.monotonic() - begun_s)
        except Exception as error:  # told at the end, to whom asked for it
            self._failure = error

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thread is None:
            return
        self._is_over.set()
        self._stop()
        self._thread.join()
        if self._failure is not None and kind is None:
            raise Fails(f"{self._whose}: registrations fail beside executions: {self._failure}")
