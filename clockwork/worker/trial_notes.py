"""Notes that name the model that a worker was trying when the worker ended.

A kernel that does not end forces its worker to restart, which must not repeat for ever. Therefore a note lies
in the store while a model is being tried: a file with an exclusive lock, which the process's end releases. A
worker that finds an unlocked note knows that the trial ended another worker. Several workers may share a
store.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

FOLDER = "trying"


class TrialNotes:
    """The note of a worker, which tries one model at a time. The trying thread calls begin() and end()."""

    def __init__(self, store: Path) -> None:
        self._folder = store / FOLDER
        self._lock = threading.Lock()  # guards the attributes below
        self._is_over = False
        self._path: Path | None = None
        self._descriptor = -1

    def begin(self, name: str) -> bool:
        """Write a note that the model of this prepared directory is being tried. Raises OSError.

        Returns False if a worker ended during a trial of the model. That worker's note is deleted, so that
        the next begin() succeeds."""
        with self._lock:
            if self._is_over:
                return True
            self._folder.mkdir(exist_ok=True)
            path = self._folder / name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._path, self._descriptor = path, descriptor
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another worker is trying the same model, and holds its note
                self._path = None
                self._drop()
                return True
            if os.fstat(descriptor).st_size:
                self._drop()
                return False
            os.write(descriptor, b"1")  # an empty note is being created or deleted
            return True

    def end(self) -> None:
        """Delete the note: the trial, successful or not, is over and the worker still runs."""
        with self._lock:
            self._drop()

    def close(self) -> None:
        """Delete the note as the worker ends for another reason. Any thread; later calls of begin() do
        nothing."""
        with self._lock:
            self._is_over = True
            self._drop()

    def _drop(self) -> None:
        path, descriptor = self._path, self._descriptor
        self._path, self._descriptor = None, -1
        if path is not None:
            os.truncate(descriptor, 0)
            path.unlink(missing_ok=True)
        if descriptor >= 0:
            os.close(descriptor)
