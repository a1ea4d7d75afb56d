"""Durability of directory entries, the room of a directory, and the mount of a file."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from clockwork.config.system import ROOM_BYTES


def fsync_directory(path: Path) -> None:
    """Sync a directory's entries to disk: files created, renamed or removed in it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(directory: Path) -> None:
    """Raise OSError unless a file can be written in a directory now, by writing one that has no name.

    For a library that failed to write there, and does not say why: the disk is full, a quota is used up, or
    the directory is read-only. The library's files must still be there, because they take the room.
    """
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        left = ROOM_BYTES
        while left:
            left -= file.write(bytes(left))
        os.fsync(file.fileno())


def mount_of(descriptor: int) -> int:
    """Return the number of the mount of an open file.

    Only the kernel is asked, because the file's file system may block. Open the file with O_PATH for the same
    reason.
    """
    with open(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as file:
        found = re.search(rb"^mnt_id:\s*(\d+)", file.read(4096), re.MULTILINE)
    assert found is not None, "the kernel says the mount of every file"
    return int(found[1])
