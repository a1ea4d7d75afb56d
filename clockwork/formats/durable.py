"""Files that survive a crash whole: written under another name, synced, renamed, and the directory synced.

A Journal changes several files together or not at all: a change that was reported as failed must not reappear
in part after a restart. Every system call goes through ``os``, so that a test can make it fail.

A sync takes milliseconds, in which the file system can sync other files as well. So this work is also offered
in steps (Steps), whose syncs a caller can do together for several works.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from clockwork.system.files import fsync_directory

TEMPORARY = ".tmp"
KEPT = ".old"
"""Suffixes of a file that is being written, and of the previous version of a changed file; both names begin
with a dot."""


T = TypeVar("T")

Steps: TypeAlias = Generator[Sequence[int], None, T]
"""Work on files that stops before each sync: it yields descriptors, and continues when they are synced. Where
that fails, the OSError is thrown in. It yields ALONE to continue when no other work is under way."""

ALONE: Sequence[int] = ()


class NotUndone(OSError):
    """A change failed and could not be undone. A restart may find the new state or the state before."""


def run_alone(steps: Steps[T]) -> T:
    """Do the work, with its syncs, and return its result. Raises the work's exceptions."""
    try:
        descriptors = next(steps)
        while True:
            try:
                for descriptor in descriptors:
                    os.fsync(descriptor)
            except OSError as error:
                descriptors = steps.throw(error)
            else:
                descriptors = next(steps)
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


class Journal:
    """Atomic changes of files in folders of a directory. For a single thread of a single process.

    A single file is changed by its rename. For several files, their old versions are linked into ``undo``
    first; the change is committed when that folder is renamed to ``done``, and until then recover() undoes
    it. Neither undoing nor removing needs room on the disk, so that a full disk can be emptied.
    """

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        self._root = root
        self._folders = tuple(folders)
        self._undo = root / "undo"
        self._done = root / "done"
        self._owed: dict[Path, Path | None] = {}  # files that a failed change could not restore yet

    def recover(self) -> int:
        """Undo a change that a crash cut short, and remove leftovers. Returns the number of files restored.

        Raises OSError where a change has to be undone and cannot be.
        """
        before: dict[Path, Path | None] = {}
        for entry in sorted(self._undo.iterdir()) if self._undo.is_dir() else ():
            age, folder, name = [*entry.name.split("%", 2), "", ""][:3]
            if folder in self._folders and age in ("old", "new"):
                before[self._root / folder / name] = entry if age == "old" else None
        count = len(before)
        self._put_all_back(before)
        for folder in self._folders:
            for path in (self._root / folder).glob(".*"):
                if path.suffix in (TEMPORARY, KEPT):
                    _remove(path)
        self._make_room(needed=False)
        return count

    def change(self, changes: Mapping[Path, bytes | None]) -> None:
        """Write or remove (None) these files. Raises OSError: all files are as before; NotUndone: perhaps
        not."""
        run_alone(self.change_in_steps(changes))

    def change_in_steps(self, changes: Mapping[Path, bytes | None]) -> Steps[None]:
        """Do the work of change(). Changes of one file each, of different files, may be under way at once."""
        several = len(changes) > 1
        if several or self._owed:
            yield ALONE
        aside: dict[Path, Path] = {}
        kept: dict[Path, Path | None] = {}
        if self._owed:
            self._put_all_back(self._owed)
        try:
            self._make_room(needed=several)
            for path, data in changes.items():
                if data is not None:
                    aside[path] = yield from _write_aside(path, data)
            for path in changes:
                kept[path] = self._keep(path, several)
            if several:
                yield from sync_directory(self._undo)
        except OSError:
            _remove_all((*aside.values(), *kept.values()))
            raise
        try:
            for path in changes:
                if path in aside:
                    os.replace(aside[path], path)
                elif kept[path] is not None:
                    os.unlink(path)
            for folder in dict.fromkeys(path.parent for path in changes):
                yield from sync_directory(folder)
            if several:
                os.rename(self._undo, self._done)
                yield from sync_directory(self._root)
        except OSError as error:
            self._roll_back(kept, error)
            _remove_all(aside.values())
            raise
        if several:
            with contextlib.suppress(OSError):  # the next change tries again
                self._make_room(needed=True)
        else:
            _remove_all(kept.values())

    def _make_room(self, needed: bool) -> None:
        """Empty ``undo``, make it if it is needed, and remove ``done``.

        Removals from ``undo`` are synced: an entry must not come back after a later change.
        """
        if self._done.is_dir():
            _empty(self._done)
            if self._undo.is_dir():
                os.rmdir(self._done)
            else:
                os.rename(self._done, self._undo)  # a new folder would need room on the disk
        if self._undo.is_dir():
            _empty(self._undo)
            return
        try:
            os.mkdir(self._undo)
        except OSError:
            if needed:
                raise

    def _keep(self, path: Path, several: bool) -> Path | None:
        """Link the current file to a second name. None: there is no file."""
        if several:
            kept = self._undo / f"old%{path.parent.name}%{path.name}"
        else:
            kept = path.with_name(f".{path.name}{KEPT}")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(kept)
        try:
            os.link(path, kept)
        except FileNotFoundError:
            if several:
                marker = self._undo / f"new%{path.parent.name}%{path.name}"
                os.close(os.open(marker, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            return None
        return kept

    def _roll_back(self, kept: dict[Path, Path | None], error: OSError) -> None:
        """Restore the files of a failed change. Raises NotUndone where that fails; the next change begins
        with it."""
        try:
            self._put_all_back(kept)
        except OSError as second:
            self._owed = kept
            text = f"{error.strerror}, and undoing it: {second.strerror}"
            raise NotUndone(error.errno, text, error.filename) from error

    def _put_all_back(self, before: dict[Path, Path | None]) -> None:
        """Restore files, or remove those that did not exist before.

        Each restored file is taken out of ``before``, so that a later call continues where this call raised.
        """
        if self._done.is_dir() and not self._undo.is_dir():
            os.rename(self._done, self._undo)  # the change was committed for a moment
        folders = dict.fromkeys(path.parent for path in before)
        for path, kept in list(before.items()):
            if kept is not None:
                os.replace(kept, path)
            with contextlib.suppress(FileNotFoundError):
                # os.replace() of two names of the same file leaves both.
                os.unlink(path if kept is None else kept)
            del before[path]
        for folder in folders:
            fsync_directory(folder)


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


def _empty(folder: Path) -> None:
    entries = list(folder.iterdir())
    for entry in entries:
        os.unlink(entry)
    if entries:
        fsync_directory(folder)


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


def _remove_all(paths: Iterable[Path | None]) -> None:
    for path in paths:
        if path is not None:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a leftover file; where that fails, the next start sweeps it."""
    with contextlib.suppress(OSError):
        os.unlink(path)
