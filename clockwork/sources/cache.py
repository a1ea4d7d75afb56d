"""A cache on the local disk of files that were fetched from a source."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from clockwork.config.sources import ABANDONED_S
from clockwork.errors import InvalidModel
from clockwork.formats.package import hash_file, put_in_place
from clockwork.sources.location import Location
from clockwork.sources.reading import ReaderProcess, RemoteFile, SourceFailed, fetch_all

LIST = "fetched.json"  # The last file of a copy: [path, sha256] of every other file
FILES = "files"  # The folder of a copy with the source's files


@dataclasses.dataclass(slots=True)
class _Copy:
    folder: Path
    bytes: int
    used_ns: int


class Cache:
    """A directory of copies. Several processes may share it; each of them keeps it within ``bytes_max``.

    A copy's name is a hash of its location, and of the path, size and mark of each file. Thread-safe.
    """

    def __init__(self, root: Path, bytes_max: int) -> None:
        """Raise OSError if the directory cannot be created."""
        self._root = root
        self._bytes_max = bytes_max
        self._lock = threading.Lock()  # guards the field below, and is held while room is made
        self._promised = 0  # bytes that are being fetched
        root.mkdir(parents=True, exist_ok=True)
        for abandoned in root.glob(".incoming-*"):
            newest = max((path.lstat().st_mtime for path in (abandoned, *abandoned.rglob("*"))), default=0.0)
            if time.time() - newest > ABANDONED_S:
                shutil.rmtree(abandoned, ignore_errors=True)

    @contextlib.contextmanager
    def copy(
        self,
        location: Location,
        files: Sequence[RemoteFile],
        reader: Callable[[], contextlib.AbstractContextManager[ReaderProcess]],
        progress: Callable[[int, int], None],
    ) -> Iterator[Path]:
        """Yield the folder with these files of a location, fetched if needed. The files stay until the
        context ends.

        reader: lends a reader of the location. progress: called with the bytes fetched, and all bytes. Raises
        the errors of Reader.fetch(), and SourceFailed if copies in use leave no room.
        """
        names = "\n".join(f"{file.path}\0{file.bytes}\0{file.mark}" for file in files)
        folder = self._root / hashlib.sha256(f"{location}\n{names}".encode()).hexdigest()[:40]
        held = _hold(folder)
        if held is None:
            try:
                shutil.rmtree(folder, ignore_errors=True)  # a folder that exists here is damaged
                with self._room([file.bytes for file in files]) as bytes_max:
                    put_in_place(
                        folder,
                        LIST,
                        lambda into: self._fetch(into, location, files, reader, progress, bytes_max),
                    )
                held = _hold(folder)
            except OSError as error:
                raise SourceFailed(f"{self._root} cannot be written: {error.strerror}") from None
            if held is None:
                raise SourceFailed(f"{folder} was removed or damaged as soon as it was there")
        with held:
            now = time.time_ns()
            os.utime(held.fileno(), ns=(now, now))
            yield folder / FILES

    def _fetch(
        self,
        into: Path,
        location: Location,
        files: Sequence[RemoteFile],
        reader: Callable[[], contextlib.AbstractContextManager[ReaderProcess]],
        progress: Callable[[int, int], None],
        bytes_max: int,
    ) -> None:
        progress(0, sum(max(0, file.bytes) for file in files))
        with reader() as lent:
            rows = fetch_all(lent, location, files, into / FILES, bytes_max, progress)
        (into / LIST).write_text(json.dumps(rows), encoding="utf-8")

    @contextlib.contextmanager
    def _room(self, sizes: Sequence[int]) -> Iterator[int]:
        """Remove the least recently used copies until files of these sizes (-1: unknown) fit.

        Yields the bytes that the files may take: the rest of the cache if a size is unknown.
        """
        needed = sum(max(0, size) for size in sizes)
        if needed > self._bytes_max:
            raise InvalidModel(
                f"{needed} bytes are to be fetched; the cache holds {self._bytes_max} (--repository-cache-size)"
            )
        with self._lock:
            copies = sorted(self._copies(), key=lambda copy: copy.used_ns)
            free = self._bytes_max - self._promised - sum(copy.bytes for copy in copies)
            for copy in copies:
                if free >= needed:
                    break
                if _remove_unless_held(copy.folder):
                    free += copy.bytes
            if free < needed:
                raise SourceFailed(
                    f"{needed} bytes are to be fetched, and copies in use leave {max(0, free)} of the cache's "
                    f"{self._bytes_max} (--repository-cache-size)"
                )
            taken = free if -1 in sizes else needed
            self._promised += taken
        try:
            yield taken
        finally:
            with self._lock:
                self._promised -= taken

    def _copies(self) -> Iterator[_Copy]:
        for folder in self._root.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a file of another process, or not complete yet
                used_ns = (folder / LIST).stat().st_mtime_ns
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                yield _Copy(folder, size, used_ns)


def _hold(folder: Path) -> IO[bytes] | None:
    """Open a copy's list, which keeps other processes from removing the copy while it is open. None: missing
    or damaged."""
    try:
        file = open(folder / LIST, "rb")  # noqa: SIM115
    except OSError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    try:
        rows = json.loads(file.read())
        if all(hash_file(folder / FILES / path)[1] == sha256 for path, sha256 in rows):
            return file
    except (OSError, ValueError, TypeError):
        pass
    file.close()
    return None


def _remove_unless_held(folder: Path) -> bool:
    try:
        with open(folder / LIST, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
