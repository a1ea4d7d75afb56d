"""What goes on beside executions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from clockwork.errors import ClockworkError


class Fails(ClockworkError):
    """A side cannot do what it is measured at; the text says which, and why."""


@contextlib.contextmanager
def registrations(register: Callable[[], None], whose: str) -> Iterator[None]:
    """Have something be registered, and dropped, again and again, on a thread. Raises Fails at the end if it failed."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            while not stop.is_set():
                register()
        except Exception as error:  # told below, to whom asked for it
            failures.append(error)

    thread = threading.Thread(target=run, name="registrations")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise Fails(f"{whose}: registrations fail beside executions: {failures[0]}")
