"""Notes of processes that share a directory: each has a file there, which it alone writes, and keeps locked.

The lock tells whether the process lives, whichever way it ended. A note is written anew in its place, because
the lock belongs to the file. So a reader may meet a note that is half written: it is left out of that look.
Clients do not import this, as Windows has no fcntl.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config.controller import NOTE_BYTES_MAX, NOTES_MAX

_NEW = ".new"


class Found(NamedTuple):
    """A note that was read. is_alive: whether the process that wrote it lives."""

    path: Path
    body: dict[str, Any]
    is_alive: bool


class Note:
    """The note of this process."""

    def __init__(self, folder: Path, body: Mapping[str, Any]) -> None:
        """Make the folder, if need be, and the note. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / secrets.token_hex(8)
        new = self.path.with_suffix(_NEW)
        self._descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self.write(body)
            os.rename(new, self.path)  # no reader meets it before it is locked
        except BaseException:
            os.close(self._descriptor)
            new.unlink(missing_ok=True)
            raise

    def write(self, body: Mapping[str, Any]) -> None:
        """Write the note anew. Raises OSError."""
        data = json.dumps(body).encode()
        assert len(data) <= NOTE_BYTES_MAX, len(data)
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def close(self, *, is_kept: bool = False) -> None:
        """Give the lock back, and remove the note unless it is kept for others. Idempotent."""
        if self._descriptor < 0:
            return
        if not is_kept:
            with contextlib.suppress(OSError):  # a directory that was removed, or cannot be written
                self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def read_notes(folder: Path) -> list[Found]:
    """The notes in a folder, by name: NOTES_MAX at most. Raises OSError."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.endswith(_NEW))[:NOTES_MAX]
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError), open(folder / name, "rb") as file:
            try:
                body = json.loads(file.read(NOTE_BYTES_MAX))
            except (ValueError, RecursionError):
                continue
            if isinstance(body, dict):
                found.append(Found(folder / name, body, _is_locked(file.fileno())))
    return found


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False  # closing the file gives the lock back
