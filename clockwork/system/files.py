"""Files: that they outlast a power cut, and on which mount they are."""

from __future__ import annotations

import os
import re
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Have the directory's entries on disk: files made, renamed or removed in it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mount_of(descriptor: int) -> int:
    """The number of the mount that an open file is on. Only the kernel is asked, not the file's file system, which may take
    any time to answer; open it with O_PATH for the same reason."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as file:
        found = re.search(rb"^mnt_id:\s*(\d+)", file.read(4096), re.MULTILINE)
    assert found is not None, "the kernel says the mount of every file"
    return int(found[1])
