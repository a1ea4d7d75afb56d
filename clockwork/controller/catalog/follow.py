"""A standby's look at the catalogue of the active, on the same machine: how far it has been read."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from clockwork.config.controller import CATALOG_BUSY_S
from clockwork.controller.catalog.database import FILE, LOG, location


class CatalogFollower:
    """Follows SQLite's file in a data directory. It is opened for each look and only read, so that no
    connection of a standby outlasts a look."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: tuple[tuple[int, int], ...] = ()  # time of change and length of the files as last read
        self.number = -1
        """The number of the newest change that was read; -1: none was."""

    def look(self) -> int:
        """Read the changes since the last look. Returns the number of the newest; -1: the file cannot be read
        now."""
        seen = tuple(_state(self._root / name) for name in (FILE, LOG))
        if seen != self._seen:
            try:
                self.number = self._read()
            except (sqlite3.Error, ValueError):
                self.number = -1
                return -1
            self._seen = seen
        return self.number

    def _read(self) -> int:
        name = f"{location(self._root / FILE)}?mode=ro"
        with contextlib.closing(sqlite3.connect(name, CATALOG_BUSY_S, uri=True)) as connection:
            (number,) = connection.execute("SELECT max(number) FROM changes").fetchone()
        return int(number or 0)


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
