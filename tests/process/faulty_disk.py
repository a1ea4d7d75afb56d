"""Disks that fail, and crashes, for one thread of this process: its calls of ``os`` and SQLite's pass through
here.

A Disk counts the calls, fails those that a test chooses, and keeps the state that a crash would leave before
each: a crash of the process (the files as they are), or of the machine (the synced files only).
"""

from __future__ import annotations

import builtins
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process import sqlite_calls

CALLS = ("open", "write", "pwrite", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "close")
"""Functions of ``os``. Closing is counted and never fails: the descriptor would be gone all the same."""


class Disk:
    """Installed for calls by the thread of that name, on files below root."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, thread: str = "storage") -> None:
        self._thread = thread
        self.calls: list[str] = []
        self._fails: Callable[[int], int] = lambda index: 0
        self._before: Callable[[str, tuple[Any, ...]], None] | None = None
        self._after: Callable[[str, tuple[Any, ...]], None] | None = None
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        monkeypatch.setattr(builtins, "open", self._wrap("read", builtins.open))
        sqlite_calls.watch(self._sqlite)

    def fail(self, index: int, errno: int, for_ever: bool = False) -> None:
        """Fail the call of this number, counted from now on, or all from there on."""
        self.calls.clear()
        self._fails = lambda now: errno if now == index or (for_ever and now > index) else 0

    def heal(self) -> None:
        self._fails = lambda index: 0

    def watch(
        self,
        before: Callable[[str, tuple[Any, ...]], None] | None,
        after: Callable[[str, tuple[Any, ...]], None] | None = None,
    ) -> None:
        """Have these called on the thread around each call; none to stop."""
        self._before, self._after = before, after

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name != self._thread or getattr(self, "_inside", False):
                return function(*args, **kwargs)
            index = len(self.calls)
            self.calls.append(name)
            errno = self._fails(index)
            if errno and name != "close":
                raise OSError(errno, os.strerror(errno), str(args[0]))
            self._run(self._before, name, args)
            result = function(*args, **kwargs)
            self._run(self._after, name, args)
            return result

        return call

    def close(self) -> None:
        sqlite_calls.watch(None)

    def _sqlite(self, name: str, path: str, act: Callable[[], int]) -> int:
        """A call of SQLite's, which gets SQLite's code of an error."""
        if threading.current_thread().name != self._thread or getattr(self, "_inside", False):
            return act()
        index = len(self.calls)
        self.calls.append(name)
        errno = self._fails(index)
        if errno:
            return sqlite_calls.code_of(name, errno)
        self._run(self._before, name, (path,))
        code = act()
        self._run(self._after, name, (path,))
        return code

    def _run(self, watcher: Callable[[str, tuple[Any, ...]], None] | None, name: str, args: Any) -> None:
        if watcher is not None:
            self._inside = True
            try:
                watcher(name, args)
            finally:
                self._inside = False


class Synced:
    """The part of a tree that survives a crash of the machine: files as last synced, names as in the last
    sync of their directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._pins: list[int] = []  # descriptors that keep an inode's number from being reused
        self._root = root.stat().st_ino
        for folder, _, files in os.walk(root):
            self._sync_folder(folder)
            for name in files:
                self._sync_file(os.path.join(folder, name))

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        if name in ("unlink", "replace", "rename") and "dir_fd" not in args:
            for path in args[:2]:
                if isinstance(path, str | os.PathLike) and os.path.isfile(path):
                    self._pins.append(os.open(path, os.O_RDONLY))

    def after(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "fsync":
            path = args[0] if type(args[0]) is str else os.readlink(f"/proc/self/fd/{args[0]}")
            (self._sync_folder if os.path.isdir(path) else self._sync_file)(path)

    def materialise(self, target: Path) -> Path:
        """Record the files that would be left."""
        self._write(self._root, target)
        return target

    def close(self) -> None:
        for descriptor in self._pins:
            os.close(descriptor)

    def _sync_file(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            self._content[status.st_ino] = os.pread(descriptor, status.st_size, 0)
        finally:
            os.close(descriptor)

    def _sync_folder(self, path: str) -> None:
        with os.scandir(path) as entries:
            names = {entry.name: entry.inode() for entry in entries}
            self._names[os.stat(path).st_ino] = names
        for name, number in names.items():
            if os.path.isdir(os.path.join(path, name)):
                self._names.setdefault(number, {})

    def _write(self, folder: int, target: Path) -> None:
        target.mkdir(parents=True)
        for name, number in self._names[folder].items():
            if number in self._names:
                self._write(number, target / name)
            else:
                (target / name).write_bytes(self._content.get(number, b""))


def copies(root: Path, into: Path) -> Iterator[Path]:
    """Copies of a tree, made on request."""
    number = 0
    while True:
        number += 1
        yield Path(shutil.copytree(root, into / str(number)))
