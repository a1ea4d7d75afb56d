"""Detects damaged bytes on disk: seals for small JSON files, checksums for large files.

A sealed file is a JSON object whose last member is the CRC-32 of the text before it, so that programs without
seals can read it. The threat is bit rot, not people, and zlib's CRC-32 is the fastest checksum of the
standard library (python -m bench.rot measures it beside the others).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config.formats import (
    CHECK_PIECE_BYTES,
    DAMAGED_KEPT_MAX,
    PLAIN_PIECE_BYTES,
    SEALED_BYTES_MAX,
)
from clockwork.formats.durable import remove_tree
from clockwork.system.files import fsync_directory
from clockwork.system.records import fields_of

_SEAL = re.compile(rb', "seal": "([0-9a-f]{8})"\}\Z')
ASIDE = ".damaged-"  # Prefix of the name of a damaged file or directory that is kept for inspection


def seal(body: Mapping[str, Any]) -> bytes:
    """Return a non-empty JSON object as sealed text. A dataclass in it becomes an object of its fields."""
    return _sealed(text_of(body)[:-1].encode())


def text_of(value: Any) -> str:
    """Return a value as JSON. A dataclass in it becomes an object of its fields."""
    return json.dumps(value, default=fields_of)


def seal_texts(texts: Mapping[str, str]) -> bytes:
    """Return seal() of an object from the text of each value. Its names are identifiers."""
    return _sealed(("{" + ", ".join(f'"{name}": {text}' for name, text in texts.items())).encode())


def _sealed(text: bytes) -> bytes:
    """Seal an object that lacks its end."""
    return text + b', "seal": "%08x"}' % zlib.crc32(text)


def unseal(data: bytes) -> tuple[dict[str, Any], bool]:
    """Return the object without its seal, and whether it was sealed. Earlier versions wrote files without
    seals.

    Raises ValueError if the seal does not match, or the text is not a JSON object.
    """
    found = _SEAL.search(data)
    if found is not None and zlib.crc32(data[: found.start()]) != int(found[1], 16):
        raise ValueError(f"its checksum is {zlib.crc32(data[: found.start()]):08x}, not {found[1].decode()}")
    try:
        body = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if type(body) is not dict:
        raise ValueError(f"it is a JSON {type(body).__name__}, not an object")
    body.pop("seal", None)
    return body, found is not None


def read_plain(path: Path | str, bytes_max: int = SEALED_BYTES_MAX) -> bytes:
    """Return the bytes of a file. Raises OSError, also for a symbolic link, and ValueError for more than
    ``bytes_max`` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # The kernel maps as much memory as a read asks for: so the first asks for the size of the file.
        pieces = [os.read(descriptor, min(os.fstat(descriptor).st_size, bytes_max) + 1)]
        left = bytes_max + 1 - len(pieces[0])
        while left > 0 and pieces[-1]:
            pieces.append(os.read(descriptor, min(PLAIN_PIECE_BYTES, left)))
            left -= len(pieces[-1])
    finally:
        os.close(descriptor)
    if left <= 0:
        raise ValueError(f"it has more than {bytes_max} bytes")
    return pieces[0] if len(pieces) <= 2 else b"".join(pieces)


class Stopped(Exception):
    """The event ``stop`` of a Pace was set."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """How a file is read: at once, or beside work that must not notice."""

    busy_share: float = 1.0  # part of the time for reading and for the caller's work; the rest is slept
    stop: threading.Event | None = None  # when set, reading ends with Stopped
    keeps_cached: bool = True  # False: the bytes leave the OS's cache, where others' files have more use


AT_ONCE = Pace()


def pieces_of(path: Path, pace: Pace = AT_ONCE) -> Iterator[memoryview]:
    """The bytes of a file, piece by piece; each piece is valid until the next. Raises OSError."""
    buffer = memoryview(bytearray(CHECK_PIECE_BYTES))
    done = 0
    with open(path, "rb", buffering=0) as file:
        while True:
            started = time.monotonic()
            size = file.readinto(buffer)
            if not size:
                return
            if not pace.keeps_cached:
                os.posix_fadvise(file.fileno(), done, size, os.POSIX_FADV_DONTNEED)
            done += size
            yield buffer[:size]
            pause_s = (time.monotonic() - started) * (1 / pace.busy_share - 1)
            if pace.stop is not None:
                if pace.stop.wait(pause_s):
                    raise Stopped
            elif pause_s > 0:
                time.sleep(pause_s)


def checksum_of(path: Path, pace: Pace = AT_ONCE) -> int:
    """The CRC-32 of a file. Raises OSError."""
    value = 0
    for piece in pieces_of(path, pace):
        value = zlib.crc32(piece, value)
    return value


class FileSums(NamedTuple):
    """The size of a file in bytes, its CRC-32, and its SHA-256 as hex digits."""

    bytes: int
    crc32: int
    sha256: str


def sums_of_bytes(content: bytes | memoryview) -> FileSums:
    """Return the sums of a file with this content."""
    return FileSums(memoryview(content).nbytes, zlib.crc32(content), hashlib.sha256(content).hexdigest())


def sums_of(directory: Path, but: Iterable[str] = ()) -> dict[str, FileSums]:
    """Return the sums of every file in a directory, by name, each read once. but: names to leave out."""
    left_out = set(but)
    names = sorted(path.name for path in directory.iterdir() if path.is_file() and path.name not in left_out)
    found = {}
    for name in names:
        size, value, digest = 0, 0, hashlib.sha256()
        for piece in pieces_of(directory / name):
            size += len(piece)
            value = zlib.crc32(piece, value)
            digest.update(piece)
        found[name] = FileSums(size, value, digest.hexdigest())
    return found


def find_damage(directory: Path, checksums: Mapping[str, int], pace: Pace = AT_ONCE) -> str:
    """Return the damage of the first file without its expected checksum, as a sentence; "" if there
    is none."""
    for name, expected in checksums.items():
        try:
            found = checksum_of(directory / name, pace)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != expected:
            return f"{name} is damaged: its checksum is {found:08x}, not {expected:08x}"
    return ""


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file or directory to a dotted name beside its place; keep only the newest
    DAMAGED_KEPT_MAX of these.

    Returns the new path, or None if there was no file. Raises OSError.
    """
    aside = path.with_name(f"{ASIDE}{time.time_ns():020d}-{path.name[:100]}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    kept = sorted(entry for entry in path.parent.iterdir() if entry.name.startswith(ASIDE))
    for old in kept[:-DAMAGED_KEPT_MAX]:
        if old.is_dir() and not old.is_symlink():
            remove_tree(old)
        else:
            os.unlink(old)
    fsync_directory(path.parent)
    return aside
