"""Objects below a URL of an object store, read and written by processes of their own (reader.py)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from clockwork.config import sources as bounds
from clockwork.errors import ConfigError, InvalidModel
from clockwork.sources.location import Location, location_of, require_library
from clockwork.sources.reading import ReaderProcess, SourceChanged, SourceFailed, SourceMissing

WRITABLE = ("s3", "gs", "az")
"""Schemes of object stores that are written to."""


def store_location(text: str) -> Location | None:
    """Return the location of an object store that is to be written to. None: the text is a path.

    Raises ConfigError for URLs of other kinds or with credentials, and if the store's library is missing.
    """
    location = location_of(text)
    if location is None:
        return None
    known = ", ".join(f"{scheme}://bucket/prefix" for scheme in WRITABLE)
    if location.scheme not in WRITABLE:
        raise ConfigError(f"{location.scheme}:// cannot be written to; packages are kept in a path, {known}")
    _, _, rest = location.url.partition("://")
    parts = rest.rstrip("/").split("/")
    if set("@?#*[]") & set(rest):
        raise ConfigError(
            f"{location.scheme}:// with any of @?#*[] is no place for packages; credentials come from the "
            f"environment, and the URL is {known}"
        )
    if any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{text!r} is no place for packages, which are kept in {known}")
    require_library(location)
    return Location(f"{location.scheme}://{'/'.join(parts)}", location.scheme)


class ObjectStore:
    """The objects below a location. Paths are relative to it. Thread-safe.

    Every call waits until there is room for one of its kind (see config), and raises SourceFailed, with the
    URL and the cause. close() ends all calls.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.failure = ""  # why the store did not answer the latest call; "": it did
        self._writes = threading.Semaphore(bounds.OBJECT_WRITES)
        self._reads = threading.Semaphore(bounds.OBJECT_READS)
        self._calls = threading.Semaphore(bounds.OBJECT_CALLS)
        self._lock = threading.Lock()  # guards the fields below
        self._processes: list[ReaderProcess] = []
        self._idle: list[ReaderProcess] = []
        self._is_closed = False

    def url(self, path: str) -> str:
        return self.location.file(path)

    def names(self, path: str) -> list[str]:
        """Return the names directly below a path."""
        with self._lend(self._calls) as process:
            return process.names(self.url(path))

    def sizes(self, path: str) -> dict[str, int]:
        """Return the size in bytes of each object below a path, by its path there; {}: there is none."""
        with self._lend(self._calls) as process:
            try:
                return {file.path: file.bytes for file in process.files(url=self.url(path))}
            except SourceMissing:
                return {}

    def copy(self, path: str, to: Path, bytes_max: int) -> str:
        """Copy an object to a file, and return its SHA-256. Raises SourceMissing, and InvalidModel if it is
        larger."""
        with self._lend(self._reads) as process:
            return process.copy(self.url(path), to, bytes_max)

    def keep(self, path: str, folder: Path, files: Sequence[tuple[str, int, str]]) -> None:
        """Write files of a folder, (path, bytes, sha256) of each, as objects below a path, in this order;
        each is compared with its hash and with what was stored."""
        with self._lend(self._writes) as process:
            try:
                process.keep(self.url(path), folder, files)
            except SourceMissing as error:  # there is no such bucket
                raise SourceFailed(str(error)) from None

    def remove(self, path: str, first: str = "") -> None:
        """Remove the object of a path, or all objects below it, ``first`` before the others."""
        with self._lend(self._calls) as process:
            process.remove(self.url(path), first)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, busy = self._idle, [process for process in self._processes if process not in self._idle]
        for process in busy:
            process.close()
        for process in idle:
            process.stop()

    @contextlib.contextmanager
    def _lend(self, room: threading.Semaphore) -> Iterator[ReaderProcess]:
        with room:
            with self._lock:
                if self._idle:
                    process = self._idle.pop()
                else:
                    process = ReaderProcess(self.location)
                    self._processes.append(process)
                if self._is_closed:
                    process.close()
            try:
                yield process
                self.failure = ""
            except (SourceMissing, SourceChanged, InvalidModel):  # the store has answered
                self.failure = ""
                raise
            except SourceFailed as error:
                self.failure = str(error)
                raise
            finally:
                with self._lock:
                    self._idle.append(process)
