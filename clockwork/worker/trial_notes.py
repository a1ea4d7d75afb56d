"""Which model a worker was trying when it ended.

A kernel that does not end takes its worker with it, which begins anew, and must not do so for ever. So a note lies in the
store while a model is being tried: a file with an exclusive lock, which ends with the process. Who finds one that nobody
has locked knows what became of the trial. Several workers may share a store.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

FOLDER = "trying"


class TrialNotes:
    """The note of one worker, which tries one model at a time. begin() and end() belong to the thread that tries."""

    def __init__(self, store: Path) -> None:
        self._folder = store / FOLDER
        self._lock = threading.Lock()  # of what follows
        self._is_over = False
        self._path: Path | None = None
        self._descriptor = -1

    def begin(self, name: str) -> bool:
        """Note that the model of this prepared directory is being tried. False: a worker ended in the middle of trying it;
        that note is gone, and the next begin() is a first one. Raises OSError."""
        with self._lock:
            if self._is_over:
                return True
            self._folder.mkdir(exist_ok=True)
            path = self._folder / name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._path, self._descriptor = path, descriptor
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another worker tries the same, and has a note of it
                self._path = None
                self._drop()
                return True
            if os.fstat(descriptor).st_size:
                self._drop()
                return False
            os.write(descriptor, b"1")  # a note that is empty says nothing: it is being made, or taken away
            return True

    def end(self) -> None:
        """Whatever came of it, the worker has not ended."""
        with self._lock:
            self._drop()

    def close(self) -> None:
        """The worker ends, for no reason that lies in the trial. Any thread; begin() does nothing from then on."""
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
