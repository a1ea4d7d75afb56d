"""SQLite's system calls, one after another, as seen and failed by a test.

SQLite's default VFS is asked for each file, whose methods are then those of here: each of them stands for one
system call, and does it by calling SQLite's own method.
"""

from __future__ import annotations

import ctypes
import errno
import sqlite3
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from typing import Any

_library = ctypes.CDLL("libsqlite3.so.0")

_IO_METHODS = (
    "close", "read", "write", "truncate", "sync", "file_size", "lock", "unlock", "check_reserved_lock", "file_control",
    "sector_size", "device_characteristics", "shm_map", "shm_lock", "shm_barrier", "shm_unmap", "fetch", "unfetch",
)  # fmt: skip


class _Methods(ctypes.Structure):
    _fields_ = [("version", c_int), *((name, c_void_p) for name in _IO_METHODS)]


class _File(ctypes.Structure):
    _fields_ = [("methods", POINTER(_Methods))]


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("path_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
    ]


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(_File), c_int, POINTER(c_int))
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_WRITE = CFUNCTYPE(c_int, POINTER(_File), c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, POINTER(_File), c_int64)
_SYNC = CFUNCTYPE(c_int, POINTER(_File), c_int)
_SHM_MAP = CFUNCTYPE(c_int, POINTER(_File), c_int, c_int, c_int, POINTER(c_void_p))

Watch = Callable[[str, str, Callable[[], int]], int]
"""Is called with the name of a call, its path, and what does it, and returns SQLite's code of its end."""

CODES = {
    "open": sqlite3.SQLITE_CANTOPEN,
    "unlink": sqlite3.SQLITE_IOERR_DELETE,
    "pwrite": sqlite3.SQLITE_IOERR_WRITE,
    "ftruncate": sqlite3.SQLITE_IOERR_TRUNCATE,
    "fsync": sqlite3.SQLITE_IOERR_FSYNC,
    "mmap": sqlite3.SQLITE_IOERR_SHMMAP,
}
"""SQLite's codes of the calls that fail here, but for ENOSPC of a write."""

_kept: list[Any] = []  # what SQLite may still call when a test has ended
_watch: Watch | None = None


def code_of(call: str, number: int) -> int:
    """SQLite's code of a call that fails with an errno."""
    return sqlite3.SQLITE_FULL if (call, number) == ("pwrite", errno.ENOSPC) else CODES[call]


def watch(watcher: Watch | None) -> None:
    """Have every call of files that are opened from now on go through a function; None: through none."""
    global _watch
    if not _kept:
        _install()
    _watch = watcher


def _call(call: str, path: str, act: Callable[[], int]) -> int:
    return act() if _watch is None else _watch(call, path, act)


def _install() -> None:
    _library.sqlite3_vfs_find.restype = POINTER(_Vfs)
    vfs = _library.sqlite3_vfs_find(None).contents
    real_open, real_delete = _OPEN(vfs.open), _DELETE(vfs.delete)
    paths: dict[int, str] = {}  # of open files, by their address
    replaced: dict[int, _Methods] = {}  # by the address of SQLite's own methods

    def opened(own: int, name: int, file: Any, flags: int, out: Any) -> int:
        path = ctypes.string_at(name).decode() if name else ""
        code = _call("open", path, lambda: real_open(own, name, file, flags, out))
        if code == sqlite3.SQLITE_OK and file.contents.methods:
            address = ctypes.addressof(file.contents.methods.contents)
            if address not in replaced:
                replaced[address] = _wrapped(file.contents.methods.contents, paths)
            file.contents.methods = ctypes.pointer(replaced[address])
            paths[ctypes.addressof(file.contents)] = path
        return code

    def deleted(own: int, name: bytes, is_synced: int) -> int:
        return _call("unlink", name.decode(), lambda: real_delete(own, name, is_synced))

    callbacks = _OPEN(opened), _DELETE(deleted)
    _kept.append((callbacks, replaced, paths, vfs))
    vfs.open = ctypes.cast(callbacks[0], c_void_p)
    vfs.delete = ctypes.cast(callbacks[1], c_void_p)


def _wrapped(methods: _Methods, paths: dict[int, str]) -> _Methods:
    made = _Methods.from_buffer_copy(methods)
    for name, kind, call in (
        ("write", _WRITE, "pwrite"),
        ("truncate", _TRUNCATE, "ftruncate"),
        ("sync", _SYNC, "fsync"),
        ("shm_map", _SHM_MAP, "mmap"),
    ):
        address = getattr(methods, name)
        if address:
            callback = kind(_calling(kind(address), call, paths))
            _kept.append(callback)
            setattr(made, name, ctypes.cast(callback, c_void_p))
    return made


def _calling(real: Callable[..., int], call: str, paths: dict[int, str]) -> Callable[..., int]:
    def method(file: Any, *rest: Any) -> int:
        path = paths.get(ctypes.addressof(file.contents), "")
        return _call(call, path, lambda: real(file, *rest))

    return method
