"""Workers that an earlier controller had: a new one lets clients in once they are back.

The names of the connected workers lie in a file of the data directory. A controller that finds some there is
started in the place of another, and the requests of clients that ask again would come before the workers do:
they would be answered as unavailable, or load models that a worker on its way has loaded. So clients wait for
their welcome until every named worker has joined and has said which models it has, and RETURN_NS at most.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from clockwork.config import WORKERS_MAX
from clockwork.config.controller import RETURN_NAMES_BYTES_MAX, RETURN_NS, RETURN_SETTLE_NS
from clockwork.wire.messages import NEVER_NS

log = logging.getLogger("clockwork.controller")

WORKERS_FILE = "workers"


class Returning:
    """Which workers are awaited. preparing: the number of models of a worker of which it has not said yet
    whether it has them."""

    def __init__(self, names: Iterable[str], preparing: Callable[[int], int], now_ns: int) -> None:
        self._absent = set(names)
        self._back: list[int] = []
        self._preparing = preparing
        self._limit_ns = now_ns + RETURN_NS
        self.is_over = not self._absent
        """Whether clients are let in."""
        self.due_ns = NEVER_NS if self.is_over else self._limit_ns
        """The time of the next look()."""
        self._is_complete = False

    def joined(self, name: str, worker: int) -> None:
        """Note that a worker has joined."""
        if name in self._absent:
            self._absent.discard(name)
            self._back.append(worker)

    def look(self, now_ns: int) -> bool:
        """Return whether the wait has ended just now."""
        if self.is_over:
            return False
        was_complete = self._is_complete
        self._is_complete = not self._absent and not any(map(self._preparing, self._back))
        if self._is_complete and not was_complete:
            # Where the last model is resident follows the last of these answers.
            self.due_ns = min(now_ns + RETURN_SETTLE_NS, self._limit_ns)
        self.is_over = now_ns >= (self.due_ns if self._is_complete else self._limit_ns)
        if self.is_over and self._absent:
            log.warning("workers of an earlier controller are not back: %s", ", ".join(sorted(self._absent)))
        if self.is_over:
            self.due_ns = NEVER_NS
        return self.is_over


def read_names(data: Path) -> list[str]:
    """The names of the workers that the last controller had; none where the file is not there, or damaged."""
    try:
        with open(data / WORKERS_FILE, "rb") as file:
            found = json.loads(file.read(RETURN_NAMES_BYTES_MAX))
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError("it is no list of names")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read, and clients do not wait for workers: %s", data / WORKERS_FILE, error)
        return []
    return found[:WORKERS_MAX]


def write_names(data: Path, names: list[str]) -> None:
    """Replace the names. They need not survive the machine's end. Raises OSError."""
    new = data / f"{WORKERS_FILE}.new"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(names, file)
    os.replace(new, data / WORKERS_FILE)
