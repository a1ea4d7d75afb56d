"""Where a controller keeps packages: in a directory, or in an object store (objects.py).

Called on the threads of controller.storage, as it does file I/O.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from clockwork.errors import ConfigError
from clockwork.formats.checksums import AT_ONCE, Pace, set_aside
from clockwork.formats.package import (
    DamagedPackage,
    PackageFile,
    PackageStore,
    PackageWriter,
    check_package,
)
from clockwork.system.locks import lock_file


class Packages(Protocol):
    """Packages by content. All methods raise OSError. place: a directory or a URL, for people."""

    @property
    def place(self) -> str: ...

    def open(self) -> None:
        """Take over the place. Raises ConfigError, OSError."""

    def close(self) -> None: ...

    def writer(self, files: Sequence[PackageFile]) -> PackageWriter:
        """Begin to write a package, which is durable when the writer's commit has ended."""
        ...

    def is_whole(self, digest: str) -> bool:
        """Whether a package is stored whole and durably. A damaged package counts as missing from then on."""
        ...

    def inspect(self, digest: str, pace: Pace = AT_ONCE) -> None:
        """Check a stored package. Raises DamagedPackage: it is damaged or missing, and counts as missing."""

    def held(self, digest: str) -> contextlib.AbstractContextManager[Path]:
        """The local directory of a package. Its files stay until the context ends. Raises DamagedPackage."""
        ...

    def remove(self, digest: str) -> None:
        """Remove a package, if it is there."""

    def listed(self) -> Sequence[str]:
        """The packages of a place that only this controller writes to, in which crashes may have left some
        that nobody needs. A place that is shared has none."""
        ...


class DirectoryPackages(PackageStore):
    """Packages in a directory of the controller's machine.

    is_own: the directory is no part of the data directory, so it is locked. (Workers may share the data
    directory. Controllers that share the catalogue share the directory: one at a time has the lease.)
    """

    def __init__(self, root: Path, *, is_own: bool = False) -> None:
        self._place = root
        self._is_own = is_own
        self._lock = -1

    @property
    def place(self) -> str:
        return str(self._place)

    def open(self) -> None:
        """Create or take over the directory. Raises OSError, and ConfigError where it is in use."""
        if self._is_own:
            self._place.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = lock_file(self._place / "lock")
            except BlockingIOError:
                raise ConfigError(f"the packages in {self._place} are in use by another controller") from None
        super().__init__(self._place)
        self.sweep()

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def is_whole(self, digest: str) -> bool:
        if not self.settle(digest):
            return False
        try:
            self.inspect(digest)
        except DamagedPackage:
            return False
        return True

    def inspect(self, digest: str, pace: Pace = AT_ONCE) -> None:
        """Compare a package with its checksums. Raises DamagedPackage: the package, if there was one, is set
        aside."""
        directory = self.directory(digest)
        try:
            check_package(directory, pace)
        except DamagedPackage:
            set_aside(directory)
            raise

    @contextlib.contextmanager
    def held(self, digest: str) -> Iterator[Path]:
        yield self.directory(digest)

    def listed(self) -> Sequence[str]:
        return ()
