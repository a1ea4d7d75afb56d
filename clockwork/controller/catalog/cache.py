"""The copies that a controller has of packages in an object store, on its disk and within a bound."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path

from clockwork.formats.package import DamagedPackage, PackageStore, listed_files


class PackageCache:
    """Copies of packages below a directory, at most ``bytes_max`` of them and of those that are coming.

    Thread-safe. Removes the least recently used copies that nobody holds.
    """

    def __init__(self, root: Path, bytes_max: int) -> None:
        """Raise OSError."""
        self.store = PackageStore(root)
        self._bytes_max = bytes_max
        self._lock = threading.Lock()  # guards the fields below, and is held while copies are removed
        self._bytes: OrderedDict[str, int] = OrderedDict()  # by digest, the least recently used first
        self._holders: Counter[str] = Counter()
        self._promised = 0  # bytes that are coming
        self.store.sweep()
        found = []
        for entry in filter(Path.is_dir, (root / "packages").iterdir()):
            try:
                size = sum(file.bytes for file in listed_files(entry))
                found.append((entry.stat().st_mtime_ns, entry.name, size))
            except (OSError, DamagedPackage):
                self.store.remove(entry.name)
        self._bytes.update((name, size) for _, name, size in sorted(found))
        with self._lock:
            self._make_room(0)

    @property
    def held_bytes(self) -> int:
        """The bytes of all copies, and of those that are coming."""
        with self._lock:
            return self._promised + sum(self._bytes.values())

    def directory(self, digest: str) -> Path:
        return self.store.directory(digest)

    def has(self, digest: str) -> bool:
        with self._lock:
            return digest in self._bytes

    @contextlib.contextmanager
    def holding(self, digest: str) -> Iterator[Path]:
        """Yield a copy's directory; the copy, if there is one, stays until the context ends."""
        with self._lock:
            self._holders[digest] += 1
            if digest in self._bytes:
                self._bytes.move_to_end(digest)
        try:
            yield self.directory(digest)
        finally:
            with self._lock:
                self._holders[digest] -= 1
                if not self._holders[digest]:
                    del self._holders[digest]

    def promise(self, size: int) -> None:
        """Make room for a copy, until add() or forgo(). Raises OSError."""
        if size > self._bytes_max:
            raise OSError(
                errno.ENOSPC,
                f"a package of {size} bytes is larger than the {self._bytes_max} of --package-cache",
            )
        with self._lock:
            if not self._make_room(size):
                raise OSError(
                    errno.ENOSPC,
                    f"packages on their way leave no room for {size} bytes in the {self._bytes_max} of "
                    "--package-cache; try again later",
                )
            self._promised += size

    def forgo(self, size: int) -> None:
        """Take a promise back."""
        with self._lock:
            self._promised -= size

    def add(self, digest: str, size: int) -> None:
        """Count a copy that is in its place, for which room was promised."""
        with self._lock:
            self._promised -= size
            self._bytes[digest] = size
            self._bytes.move_to_end(digest)

    def drop(self, digest: str) -> None:
        """Remove a copy, if there is one. Raises OSError."""
        with self._lock:
            self._bytes.pop(digest, None)
            self.store.remove(digest)

    def _make_room(self, size: int) -> bool:
        free = self._bytes_max - self._promised - sum(self._bytes.values()) - size
        for digest in list(self._bytes) if free < 0 else ():
            if digest not in self._holders:
                self.store.remove(digest)
                free += self._bytes.pop(digest)
                if free >= 0:
                    break
        return free >= 0
