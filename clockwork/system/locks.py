"""Locks between processes: a file that is one process's alone.

Clients do not import this, as Windows has no fcntl.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import threading
from collections.abc import Callable
from pathlib import Path


def await_lock(
    path: Path,
    is_stopped: Callable[[], bool],
    wake_fd: int,
    look: Callable[[], None],
    look_s: float,
    mode: int = 0o644,
) -> int:
    """Wait until no other process has a file locked, and return its descriptor, as lock_file() does; -1 if
    is_stopped() says so. wake_fd: a descriptor that becomes readable when is_stopped() is to be asked. look:
    is called every look_s meanwhile.

    The lock of a process that dies is free at once. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    locked, told = os.pipe2(os.O_CLOEXEC)

    def wait() -> None:
        with contextlib.suppress(OSError):  # the descriptor was closed meanwhile
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            os.write(told, b"1")

    threading.Thread(target=wait, name="lock", daemon=True).start()
    with selectors.DefaultSelector() as selector:
        selector.register(locked, selectors.EVENT_READ)
        selector.register(wake_fd, selectors.EVENT_READ)
        while not is_stopped():
            ready = selector.select(look_s)
            if any(key.fd == locked for key, _ in ready):
                os.close(locked)
                os.close(told)
                return descriptor
            if not ready:
                look()
            with contextlib.suppress(BlockingIOError):
                os.read(wake_fd, 4096)
    return -1  # the process is about to end, and the thread with it


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
