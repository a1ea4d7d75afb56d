"""Lists, describes and fetches files of a source by a process of its own (reader.py)."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from clockwork.config import sources as bounds
from clockwork.errors import ClockworkError, InvalidModel, Unavailable
from clockwork.sources.location import Location

COMMAND = (sys.executable, "-m", "clockwork.sources.reader")


class SourceFailed(Unavailable):
    """A source is unreachable, too slow, or refuses access. A later retry may succeed."""


class SourceChanged(SourceFailed):
    """A file has changed since it was listed, or was incomplete. It must be listed and fetched again."""


class SourceMissing(SourceFailed):
    """A source has no such file or folder."""


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a source at the time of its listing."""

    path: str  # path below the listed location; "" for a location that is a file
    bytes: int  # size of the file; -1: unknown
    mark: str  # a text that changes whenever the file does
    checksum: str  # checksum from the source's record, with its kind; "": none


class ReaderProcess:
    """A reader process, started by the first call, and again after a failure.

    Any thread may make a call; it waits for the calls of others. close() ends the pending call.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # standard error of the process
        self._closed = False
        self._lock = threading.Lock()  # guards the fields above
        self._turn = threading.RLock()  # held by the thread that makes a call or ends the process
        self._rest = b""

    def files(self, limit_s: float = bounds.LIST_LIMIT_S, url: str = "") -> list[RemoteFile]:
        """Return all files below the location, or below a URL in it. Raises SourceFailed, SourceMissing, and
        InvalidModel if there are too many."""
        found = []
        with self._answers(
            {"do": "list", "url": url or self.location.url}, "listed", limit_s + bounds.STALL_S, limit_s
        ) as answers:
            for answer in answers:
                found += [RemoteFile(*row) for row in answer.get("files", ())]
        return [file for file in found if _is_below(file.path)]

    def describe(self, url: str) -> RemoteFile | None:
        """Return a file as its source describes it. None: a folder. Raises SourceFailed and SourceMissing."""
        with self._answers({"do": "describe", "url": url}, "read", bounds.STALL_S, bounds.STALL_S) as answers:
            *_, answer = answers
        return None if answer["end"] is None else RemoteFile(*answer["end"])

    def read(self, files: Sequence[RemoteFile], bytes_max: int) -> dict[str, bytes | None]:
        """Return the content of small files below the location, by path; None for larger files. Raises the
        errors of files()."""
        found: dict[str, bytes | None] = {}
        for begin in range(0, len(files), bounds.READ_FILES_MAX):
            some = files[begin : begin + bounds.READ_FILES_MAX]
            rows = [[self.location.file(file.path), dataclasses.astuple(file)] for file in some]
            command = {"do": "read", "url": self.location.url, "files": rows, "bytes_max": bytes_max}
            with self._answers(command, "read", bounds.LIST_LIMIT_S, bounds.STALL_S) as answers:
                for answer in answers:
                    if "read" in answer:
                        path, data = answer["read"]
                        found[path] = None if data is None else base64.b64decode(data)
        return found

    def fetch(
        self,
        url: str,
        file: RemoteFile,
        to: Path,
        bytes_max: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> str:
        """Copy a file to a path, and return its SHA-256.

        Raises SourceFailed, SourceChanged, SourceMissing, OSError, and InvalidModel for a file larger than
        ``bytes_max``. At most that many bytes are written.
        """
        if file.bytes > bytes_max:
            raise InvalidModel(
                f"{self._name(url)} has {file.bytes} bytes; there is room for {bytes_max} more"
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        row = list(dataclasses.astuple(file))
        command = {"do": "fetch", "url": url, "row": row, "to": os.fspath(to), "bytes_max": bytes_max}
        pieces = 1 + (bytes_max if file.bytes < 0 else file.bytes) // bounds.PIECE_BYTES
        with self._answers(command, "fetched", bounds.STALL_S * (pieces + 1), bounds.STALL_S) as answers:
            for answer in answers:
                if "done" in answer:
                    progress(answer["done"])
        return str(answer["end"])

    # ----- an object store that keeps packages; see objects.py -------------------------------------

    def names(self, url: str) -> list[str]:
        """Return the names directly below a URL. Raises SourceFailed, and InvalidModel if there are too
        many."""
        found: list[str] = []
        limit_s = bounds.NAMES_LIMIT_S
        with self._answers({"do": "names", "url": url}, "listed", limit_s, limit_s) as answers:
            for answer in answers:
                found += answer.get("names", ())
        return found

    def copy(self, url: str, to: Path, bytes_max: int) -> str:
        """Copy an object to a path, and return its SHA-256. Raises the errors of fetch()."""
        command = {"do": "copy", "url": url, "to": os.fspath(to), "bytes_max": bytes_max}
        return str(self._whole(command, "fetched", bytes_max))

    def keep(self, url: str, folder: Path, files: Sequence[tuple[str, int, str]]) -> None:
        """Write files of a folder, (path, bytes, sha256) of each, as objects below a URL, in this order; each
        is compared with its hash and with what was stored. Raises SourceFailed."""
        command = {"do": "keep", "url": url, "from": os.fspath(folder), "files": files}
        # each byte is written, and may be read again
        self._whole(
            command, "written", 2 * sum(size for _, size, _ in files) + len(files) * bounds.PIECE_BYTES
        )

    def remove(self, url: str, first: str) -> None:
        """Remove the object of a URL, or all objects below it, ``first`` before the others. Raises
        SourceFailed."""
        command = {"do": "remove", "url": url, "first": first}
        with self._answers(command, "removed", bounds.NAMES_LIMIT_S, bounds.STALL_S) as answers:
            for _ in answers:
                pass

    def _whole(self, command: dict[str, Any], what: str, size: int) -> Any:
        """Return the end of a command that moves so many bytes."""
        limit_s = bounds.STALL_S * (size // bounds.PIECE_BYTES + 2)
        with self._answers(command, what, limit_s, bounds.STALL_S) as answers:
            *_, answer = answers
        return answer["end"]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
        # The thread with a pending call, which ends by the kill, reaps the process.

    def stop(self) -> None:
        """End the process after the pending call. The next call starts another."""
        with self._turn:
            with self._lock:
                child, self._child = self._child, None
                errors, self._errors = self._errors, None
            if child is not None:
                child.kill()
                child.wait()
                for pipe in (child.stdin, child.stdout, errors):
                    assert pipe is not None
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._rest = b""

    # ----- one call ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _answers(
        self, command: dict[str, Any], what: str, limit_s: float, silence_s: float
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield the answers to a command, including the last. After a failed call the process ends, so that
        the next call begins with new connections and credentials."""
        whole = False
        with self._turn:
            try:
                yield self._ask(command, what, limit_s, silence_s)
                whole = True
            finally:
                if not whole:
                    self.stop()

    def _ask(
        self, command: dict[str, Any], what: str, limit_s: float, silence_s: float
    ) -> Iterator[dict[str, Any]]:
        child = self._started()
        assert child.stdin is not None
        name = self._name(command["url"])
        try:
            child.stdin.write(json.dumps(command).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._died(name, what) from None
        began = time.monotonic()
        while True:
            left_s = began + limit_s - time.monotonic()
            line = self._line(child, max(0.0, min(silence_s, left_s)))
            if line is None:
                seconds = round(time.monotonic() - began)
                raise SourceFailed(f"{name} cannot be {what}: no answer in time, after {seconds} s")
            if not line:
                raise self._died(name, what)
            answer = json.loads(line)
            if "error" in answer:
                raise self._failure(answer, name, what)
            yield answer
            if "end" in answer:
                return

    def _failure(self, answer: dict[str, Any], name: str, what: str) -> ClockworkError:
        text = self.location.hide(answer["error"])[: bounds.REASON_CHARS_MAX]
        match answer["kind"]:
            case "changed":
                return SourceChanged(f"{name}: {text}")
            case "missing":
                return SourceMissing(
                    f"{name} is not there" + ("" if text.rstrip("/") == name else f": {text}")
                )
            case "refused":
                return InvalidModel(f"{name} cannot be {what}: {text}")
        return SourceFailed(f"{name} cannot be {what}: {text}")

    def _name(self, url: str) -> str:
        return str(Location(url, self.location.scheme))

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise SourceFailed("the reader was closed")
            if self._child is not None:
                return self._child
            # Standard error is read only if the process ends unexpectedly.
            self._errors = os.fdopen(os.memfd_create("errors"), "w+b")
            self._child = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
            return self._child

    def _died(self, name: str, what: str) -> SourceFailed:
        with self._lock:
            closed, errors = self._closed, self._errors
        if closed or errors is None:
            return SourceFailed("the reader was closed")
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        last = self.location.hide(lines[-1] if lines else "without a word")[: bounds.REASON_CHARS_MAX]
        return SourceFailed(f"{name} cannot be {what}: its reader ended: {last}")

    def _line(self, child: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
        """Return the next line; b"" if the process has ended, None at a timeout."""
        assert child.stdout is not None
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(child.stdout.fileno(), 1 << 16)
                if not piece or len(self._rest) > bounds.ANSWER_BYTES_MAX:
                    return b""
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def fetch_all(
    reader: ReaderProcess,
    location: Location,
    files: Sequence[RemoteFile],
    into: Path,
    bytes_max: int,
    progress: Callable[[int, int], None],
) -> list[tuple[str, str]]:
    """Copy files below a location into a folder; return the path and SHA-256 of each. Raises the errors of
    Reader.fetch().

    bytes_max: bound of all files together. progress: called with the bytes fetched, and the sum of all known
    sizes.
    """
    rows, done, total = [], 0, sum(max(0, file.bytes) for file in files)

    def tell(come: int) -> None:
        progress(done + come, total)

    for file in files:
        path = into / file.path
        sha256 = reader.fetch(location.file(file.path), file, path, bytes_max - done, tell)
        done += path.stat().st_size
        rows.append((file.path, sha256))
    return rows


def _is_below(path: str) -> bool:
    """Return whether an untrusted path names a file below its folder."""
    pure = PurePosixPath(path)
    return (
        bool(path)
        and str(pure) == path
        and not pure.is_absolute()
        and ".." not in pure.parts
        and "\0" not in path
    )
