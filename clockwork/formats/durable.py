"""Files that survive a crash whole: written under another name, synced, renamed, and the directory synced.

Every system call goes through ``os``, so that a test can make it fail.

A sync takes milliseconds, in which the file system can sync other files as well. So this work is also offered
in steps (Steps), whose syncs a caller can do together for several works.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from clockwork.system.files import fsync_directory

TEMPORARY = ".tmp"
"""Suffix of a file that is being written; its name begins with a dot."""


T = TypeVar("T")


class Syncable(Protocol):
    """Something that several works share, and that becomes durable by other means: a transaction."""

    def sync(self) -> None:
        """Make it durable, unless that was done. Raises OSError. For the thread of the works."""


Steps: TypeAlias = Generator[Sequence[int | Syncable], None, T]
"""Work on files that stops before each sync: it yields descriptors and Syncables, and continues when they are
synced. Where that fails, the OSError is thrown in. It yields ALONE to continue when no other work is under
way."""

ALONE: Sequence[int] = ()


class NotUndone(OSError):
    """A change failed and could not be undone. A restart may find the new state or the state before."""


def sync(unsynced: int | Syncable) -> None:
    """Sync a descriptor or a Syncable. Raises OSError."""
    if isinstance(unsynced, int):
        os.fsync(unsynced)
    else:
        unsynced.sync()


def run_alone(steps: Steps[T]) -> T:
    """Do the work, with its syncs, and return its result. Raises the work's exceptions."""
    try:
        unsynced = next(steps)
        while True:
            try:
                for item in unsynced:
                    sync(item)
            except OSError as error:
                unsynced = steps.throw(error)
            else:
                unsynced = next(steps)
    except StopIteration as end:
        result: T = end.value
        return result


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole file so that after a crash its content is either the old or the new one. Raises OSError.

    If syncing the directory fails, the new content is in place already.
    """
    temporary = run_alone(_write_aside(path, data))
    try:
        os.replace(temporary, path)
    except OSError:
        _remove(temporary)
        raise
    fsync_directory(path.parent)


def sync_directory(path: Path) -> Steps[None]:
    """fsync_directory() as a step. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield (descriptor,)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory. It is renamed first, so that it is never seen in part. Does nothing if it is
    missing. Raises OSError.

    After a crash the remains have the dotted name ``.dropped-*``. Their owner has to sweep them.
    """
    dropped = path.with_name(f".dropped-{path.name}")
    if dropped.is_dir():
        shutil.rmtree(dropped)
    try:
        os.rename(path, dropped)
    except FileNotFoundError:
        return
    fsync_directory(path.parent)
    shutil.rmtree(dropped)


def _write_aside(path: Path, data: bytes) -> Steps[Path]:
    """Write and sync content under a temporary name beside its final place; return that path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            yield (descriptor,)
        finally:
            os.close(descriptor)
    except OSError:
        _remove(temporary)
        raise
    return temporary


def _remove(path: Path) -> None:
    """Remove a leftover file; where that fails, the next start sweeps it."""
    with contextlib.suppress(OSError):
        os.unlink(path)
