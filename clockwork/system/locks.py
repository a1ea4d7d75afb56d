"""Locks between processes: a file that is one process's alone.

Clients do not import this, as Windows has no fcntl.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_file(path: Path, mode: int = 0o644) -> int:
    """Return the descriptor of a file that no other process has locked, created if need be. The lock is given
    back when the caller closes it. Raises BlockingIOError where it is locked, and OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
