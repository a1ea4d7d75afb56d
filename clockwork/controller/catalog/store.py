"""The models a controller knows, on disk: packages by content, and one small record for each version.

    <data>/format           the format's version
    <data>/lock             held while a controller uses the directory
    <data>/packages/...     see formats.package, unless they are kept elsewhere: see catalog.packages
    <data>/models/<name>@<version>.json
    <data>/routes/<name>.json   how the name's traffic is split, where somebody has said so
    <data>/undo, <data>/done    of changes of several of these at once, see models.durable

A record arrives by rename after its package is durable, so that every listed version can be served. Apart
from open(), records() and routes(), which run before the loop, everything here does file I/O and is
called on the controller's storage thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clockwork.config.formats import FORMAT_BYTES_MAX
from clockwork.controller.catalog.packages import DirectoryPackages, Packages
from clockwork.controller.catalog.records import Change, Complaint, ModelRecord
from clockwork.controller.catalog.routes import NameRoute
from clockwork.errors import ConfigError, InvalidInput, InvalidModel
from clockwork.formats.checksums import mend, read_plain, set_aside, unseal
from clockwork.formats.durable import ALONE, Journal, Steps, write_durably
from clockwork.formats.interface import Interface, read_interface
from clockwork.formats.package import PackageFile
from clockwork.system.locks import lock_file
from clockwork.wire.telling import printable, tell

FORMAT = "1"

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidModel, InvalidInput)
"""Exceptions of reading a file that neither this release nor an earlier one wrote."""


T = TypeVar("T", ModelRecord, NameRoute)


class Catalog:
    """The data directory of one controller. packages: by default in the data directory."""

    def __init__(self, root: Path, packages: Packages | None = None) -> None:
        self.root = root
        self.store = packages or DirectoryPackages(root)
        self._lock = -1
        self._journal = Journal(root, ("models", "routes"))

    def open(self) -> None:
        """Create or take over the directory. Raises ConfigError: not writable, other format, in use."""
        marker = self.root / "format"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = lock_file(self.root / "lock")
            found = read_plain(marker, FORMAT_BYTES_MAX).strip() if marker.exists() else None
            if found is None:
                write_durably(marker, FORMAT.encode())
            elif found != FORMAT.encode():
                raise ConfigError(
                    f"data directory {self.root} has format {tell(found)}, this version reads format {FORMAT}"
                )
            (self.root / "models").mkdir(exist_ok=True)
            (self.root / "routes").mkdir(exist_ok=True)
            self._journal.recover()
            self.store.open()
        except ValueError as error:
            self.close()
            raise ConfigError(f"data directory {self.root}: its file 'format' is damaged: {error}") from None
        except BlockingIOError:
            self.close()
            raise ConfigError(f"data directory {self.root} is in use by another controller") from None
        except OSError as error:
            self.close()
            raise ConfigError(
                f"data directory {self.root} cannot be used: {error.strerror}: {error.filename}"
            ) from None
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        self.store.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def records(self) -> tuple[list[ModelRecord], list[Complaint]]:
        """Every usable record, oldest version first, and complaints about the others. Raises OSError.

        A record without its package is usable: workers may have the model prepared, and the package.
        """
        records, complaints = self._read_all("models", ModelRecord.from_body)
        records.sort(key=lambda record: (record.name, record.version))
        return records, complaints

    def routes(self) -> tuple[list[NameRoute], list[Complaint]]:
        """Every usable route of a name, by name, and complaints about the others. Raises OSError."""
        return self._read_all("routes", NameRoute.from_body)

    def _read_all(self, folder: str, parse: Callable[[dict[str, Any]], T]) -> tuple[list[T], list[Complaint]]:
        found: list[T] = []
        complaints: list[Complaint] = []
        for entry in sorted(os.scandir(self.root / folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)

            data = b""
            try:
                data = read_plain(path)
                found.append(_parse(data, path, parse))
                continue
            except UNREADABLE as error:
                why = error.strerror if isinstance(error, OSError) else printable(str(error), 200)
            name, _, version = path.name.removesuffix(".json").partition("@")
            number = int(version) if version.isascii() and version.isdigit() and len(version) < 12 else 0
            whole = mend(data)
            try:
                if whole is not None:
                    found.append(_parse(whole, path, parse))
                    self._journal.change({path: whole})
                    text = (
                        f"{folder}/{path.name} was damaged ({why}) and has been mended: one bit had flipped"
                    )
                    complaints.append(Complaint(printable(name, 200), number, text, True))
                    continue
            except UNREADABLE as error:
                why = f"{why}; {printable(str(error), 200)}"
            try:
                aside = set_aside(path)
                where = f"it is kept as {printable(aside.name, 200)}" if aside is not None else "it is gone"
            except OSError as error:
                where = f"it cannot be set aside: {error.strerror}"
            text = f"{folder}/{printable(path.name, 200)} is damaged ({why}) and is not used; {where}"
            complaints.append(Complaint(printable(name, 200), number, text, False))
        return found, complaints

    def change(self, change: Change) -> Steps[str]:
        """Make a change durably. Raises OSError: then nothing has changed (or, NotUndone, nobody knows).

        Returns a sentence about packages that could not be removed, or "".
        """
        if change.packages:
            yield ALONE
        files: dict[Path, bytes | None] = {self._path(record): record.to_json() for record in change.save}
        files |= dict.fromkeys(map(self._path, change.remove))
        if change.route is not None:
            files[self._route_path(change.route.name)] = change.route.to_json()
        if change.unroute:
            files[self._route_path(change.unroute)] = None
        yield from self._journal.change_in_steps(files)
        left = []
        for digest in change.packages:
            try:
                self.store.remove(digest)
            except OSError as error:
                left.append(f"package {digest} cannot be removed: {error.strerror}")
        return "; ".join(left)

    def remove(self, digest: str) -> Steps[None]:
        """Remove a package. Raises OSError; the next start then removes the remains."""
        yield ALONE
        self.store.remove(digest)

    def declared(
        self, digest: str, files: Sequence[PackageFile], options: dict[str, Any]
    ) -> Interface | None:
        """The interface that a whole package declares of its model; None: it cannot be read, and no worker
        prepares it.

        options: of its registration. Raises OSError, DamagedPackage.
        """
        with self.store.held(digest) as directory:
            try:
                return read_interface(directory, files, options)
            except InvalidModel:
                return None

    def read_chunk(self, digest: str, file: PackageFile, offset: int, length: int) -> bytes:
        """Bytes of a stored file. Raises OSError, DamagedPackage."""
        with self.store.held(digest) as directory:
            descriptor = os.open(directory / file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)

    def _route_path(self, name: str) -> Path:
        return self.root / "routes" / f"{name}.json"

    def _path(self, record: ModelRecord) -> Path:
        return self.root / "models" / record.file_name


def _parse(data: bytes, path: Path, parse: Callable[[dict[str, Any]], T]) -> T:
    entry = parse(unseal(data)[0])
    if entry.file_name != path.name:
        raise ValueError(f"it is the entry of {entry.file_name}")
    return entry
