"""Snapshots: catalogue and packages in one file, made beside a serving controller, and restored elsewhere.

A snapshot is a tar archive:

    snapshot.json               the format, and what the archive has
    catalog.db                  the catalogue, as an SQLite file without a log
    packages/<digest>/<path>    the files of every package that the catalogue names

The catalogue comes first: a package that is removed while the archive is written is one that the catalogue
does not name any more, and the snapshot is then begun again. Each file is compared with its SHA-256 when it
is read, and again when it is restored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from clockwork.config import VERSION
from clockwork.config.controller import SNAPSHOT_HEAD_BYTES_MAX, SNAPSHOT_PIECE_BYTES, SNAPSHOT_TRIES
from clockwork.controller.catalog.backup import copy_database
from clockwork.controller.catalog.database import (
    FILE,
    SQLITE,
    TABLES,
    VERSIONS,
    Rows,
    connect,
    migrate,
    read_rows,
    schema_of,
    transaction,
    write_file,
)
from clockwork.controller.catalog.objects import ObjectPackages
from clockwork.controller.catalog.packages import DirectoryPackages, Packages
from clockwork.controller.catalog.postgres import cluster_of, read_postgres
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.catalog.recovery import flaw_of_backup
from clockwork.controller.catalog.store import Catalog
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.package import DamagedPackage, PackageFile
from clockwork.sources.objects import store_location
from clockwork.system.files import fsync_directory
from clockwork.wire.telling import printable

FORMAT = 1
_HEAD, _CATALOG, _PACKAGES = "snapshot.json", "catalog.db", "packages"


@dataclasses.dataclass(frozen=True, slots=True)
class CatalogPlace:
    """Where a controller keeps its catalogue and packages: its flags --data, --catalog and --packages."""

    data: Path
    catalog: str
    packages: str
    cache_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class SavedCatalog:
    """The content of a snapshot, in numbers."""

    versions: int
    packages: int
    bytes: int  # of the packages
    change: int  # number of the newest change


class _Gone(Exception):
    """A package cannot be read: removed since the catalogue was read, or damaged."""


def make_snapshot(place: CatalogPlace, target: Path) -> SavedCatalog:
    """Write a snapshot. Raises ConfigError: there is nothing to read, or it is damaged; OSError."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        for number in range(SNAPSHOT_TRIES):
            with tempfile.TemporaryDirectory(dir=target.absolute().parent) as folder:
                catalog = Path(folder) / _CATALOG
                rows = _copy_catalog(place, catalog)
                try:
                    made = _write(place, rows, catalog, partial)
                except _Gone as error:
                    if number + 1 == SNAPSHOT_TRIES or _still_names(place, str(error)):
                        raise ConfigError(f"{error.__cause__ or error}: there is no whole snapshot") from None
                    continue
            os.replace(partial, target)
            fsync_directory(target.absolute().parent)
            return made
    finally:
        partial.unlink(missing_ok=True)
    raise AssertionError("each try ends")


def restore_snapshot(source: Path, place: CatalogPlace) -> SavedCatalog:
    """Restore a snapshot into a place without models.

    Raises ConfigError: the snapshot is damaged or of a later release, or the place is not empty; OSError. The
    catalogue is written last, at once, so that a restoration that was cut short can be begun again.
    """
    try:
        with tarfile.open(source, "r:") as archive, tempfile.TemporaryDirectory() as folder:
            rows = _read_catalog(archive, Path(folder) / _CATALOG)
            cluster = cluster_of(place.catalog) if place.catalog else ""
            packages = packages_at(place.data, place.packages, place.cache_bytes, cluster)
            catalog = Catalog(place.data, packages, place.catalog)
            catalog.open()
            try:
                if not catalog.is_empty:
                    raise ConfigError(
                        f"there are models in {place.catalog and 'the catalogue or '}{place.data}: a snapshot is "
                        "restored where there are none"
                    )
                named = _packages_of(rows)
                size = _restore_packages(archive, packages, named)
                catalog.restore(rows)
            finally:
                catalog.close()
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{source} is no snapshot, or is cut short: {error}") from None
    return SavedCatalog(len(rows.good[VERSIONS.name]), len(named), size, rows.number)


def packages_at(data: Path, packages: str, cache_bytes: int, cluster: str = "") -> Packages:
    """The place of packages that --packages means, unopened. Raises ConfigError.

    cluster: the identity of a catalogue that controllers share, which owns the place; "": the caller does.
    """
    if not packages:
        return DirectoryPackages(data)
    location = store_location(packages)
    if location is not None:
        return ObjectPackages(location, data, cache_bytes, cluster)
    return DirectoryPackages(Path(packages), is_own=not cluster)


# ----- making ------------------------------------------------------------------------------------


def _copy_catalog(place: CatalogPlace, target: Path) -> Rows:
    """Copy the catalogue into a file of its own. Raises ConfigError, OSError."""
    if place.catalog:
        rows = read_postgres(place.catalog)
        if not rows.bad:
            write_file(target, ((table, row) for table in TABLES for row in rows.good[table.name]))
    else:
        if not (place.data / FILE).is_file():
            raise ConfigError(f"there is no catalogue in {place.data}")
        copy_database(place.data, target)
        if flaw := flaw_of_backup(target):
            raise ConfigError(f"the catalogue in {place.data} is damaged ({flaw}): restart its controller")
        with contextlib.closing(connect(target, is_only_read=True)) as connection:
            rows = read_rows(connection, SQLITE)
    if rows.bad:
        raise ConfigError(f"{len(rows.bad)} rows of the catalogue differ from their checksums")
    return rows


def _packages_of(rows: Rows) -> dict[str, list[PackageFile]]:
    """The files of each package that a catalogue names, by digest."""
    found = {}
    for row in rows.good[VERSIONS.name]:
        record = ModelRecord.from_row(row)
        found[record.digest] = record.files
    return found


def _still_names(place: CatalogPlace, digest: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return digest in _packages_of(_copy_catalog(place, Path(folder) / _CATALOG))


def _write(place: CatalogPlace, rows: Rows, catalog: Path, target: Path) -> SavedCatalog:
    """Write the archive. Raises _Gone with the digest of a package."""
    packages = _packages_of(rows)
    size = sum(file.bytes for files in packages.values() for file in files)
    made = SavedCatalog(len(rows.good[VERSIONS.name]), len(packages), size, rows.number)
    head = {"format": FORMAT, "made_ns": time.time_ns(), "version": VERSION, **dataclasses.asdict(made)}
    with (
        _held(place) as held,
        open(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
    ):
        with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, _HEAD, io.BytesIO(data := json.dumps(head).encode()), len(data))
            with open(catalog, "rb") as copied:
                _add(archive, _CATALOG, copied, catalog.stat().st_size)
            for digest, files in packages.items():
                try:
                    with held(digest) as directory:
                        for wanted in files:
                            _add_checked(archive, directory, digest, wanted)
                except (OSError, DamagedPackage) as error:
                    if isinstance(error, OSError) and error.filename is None:
                        raise
                    raise _Gone(digest) from error
        file.flush()
        os.fsync(file.fileno())
    return made


@contextlib.contextmanager
def _held(place: CatalogPlace) -> Iterator[Callable[[str], contextlib.AbstractContextManager[Path]]]:
    """A function that gives the directory of a package, of a place that a controller is using."""
    location = store_location(place.packages) if place.packages else None
    if location is None:
        root = Path(place.packages) if place.packages else place.data
        yield lambda digest: contextlib.nullcontext(root / "packages" / digest)
        return
    with tempfile.TemporaryDirectory(dir=place.data) as folder:
        packages = ObjectPackages(location, Path(folder), place.cache_bytes)
        packages.open()
        try:
            yield packages.held
        finally:
            packages.close()


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    archive.addfile(entry, content)


class _Hashing(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        return data


def _add_checked(archive: tarfile.TarFile, directory: Path, digest: str, file: PackageFile) -> None:
    """Add a file of a package. Raises OSError, DamagedPackage."""
    path = directory / file.path
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as content:
        if os.fstat(content.fileno()).st_size != file.bytes:
            raise DamagedPackage(f"{file.path} of package {digest} has not {file.bytes} bytes")
        hashing = _Hashing(content)
        _add(archive, f"{_PACKAGES}/{digest}/{file.path}", hashing, file.bytes)  # type: ignore[arg-type]
    if hashing.hash.hexdigest() != file.sha256:
        raise DamagedPackage(f"{file.path} of package {digest} is damaged")


# ----- restoring ---------------------------------------------------------------------------------


def _read_catalog(archive: tarfile.TarFile, target: Path) -> Rows:
    """Read the beginning of an archive, and the rows of its catalogue. Raises ConfigError, TarError."""
    head = archive.next()
    content = archive.extractfile(head) if head is not None and head.name == _HEAD and head.isreg() else None
    if head is None or content is None or head.size > SNAPSHOT_HEAD_BYTES_MAX:
        raise tarfile.TarError(f"it does not begin with {_HEAD}")
    try:
        found = json.loads(content.read()).get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise tarfile.TarError(f"{_HEAD} is damaged: {error}") from None
    if found != FORMAT:
        raise ConfigError(f"the snapshot has format {printable(str(found), 20)}, this version reads {FORMAT}")
    entry = archive.next()
    content = archive.extractfile(entry) if entry is not None and entry.name == _CATALOG else None
    if content is None:
        raise tarfile.TarError(f"{_HEAD} is not followed by {_CATALOG}")
    with open(target, "wb") as file:
        while piece := content.read(SNAPSHOT_PIECE_BYTES):
            file.write(piece)
    try:
        if flaw := flaw_of_backup(target):
            raise ConfigError(f"the catalogue in the snapshot is damaged: {flaw}")
        with contextlib.closing(connect(target)) as connection:
            with transaction(connection):
                migrate(connection, SQLITE, schema_of(connection), "the snapshot")
            return read_rows(connection, SQLITE)
    except (sqlite3.Error, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the catalogue in the snapshot is damaged: {error}") from None


def _restore_packages(
    archive: tarfile.TarFile, store: Packages, packages: Mapping[str, Sequence[PackageFile]]
) -> int:
    """Write the packages of an archive, each checked. Returns their bytes. Raises ConfigError, OSError."""
    size = 0
    for digest, files in packages.items():
        writer = None if store.is_whole(digest) else store.writer(files)
        try:
            for index, file in enumerate(files):
                entry = archive.next()
                name = f"{_PACKAGES}/{digest}/{file.path}"
                content = archive.extractfile(entry) if entry is not None and entry.isreg() else None
                if entry is None or content is None or entry.name != name or entry.size != file.bytes:
                    raise ConfigError(f"{name} is missing in the snapshot")
                while writer is not None and (piece := content.read(SNAPSHOT_PIECE_BYTES)):
                    writer.write(index, content.tell() - len(piece), piece)
                size += file.bytes
            if writer is not None:
                writer.commit()
        except InvalidModel as error:
            raise ConfigError(f"package {digest} of the snapshot is damaged: {error}") from None
        except BaseException:
            if writer is not None:
                writer.abort()
            raise
    return size
