"""The models a controller knows: packages by content, and a database of versions and routes.

    <data>/format           the format's version
    <data>/lock             held while a controller uses the directory
    <data>/packages/...     see formats.package, unless they are kept elsewhere: see catalog.packages
    <data>/catalog.db, catalog.db-wal, catalog.db-shm    the catalogue: see catalog.database
    <data>/catalog.backup   its backup: see catalog.backup
    <data>/catalog.reserve  room on the disk for removals while it is full

A change is written after its packages are durable, so that every listed version can be served. Apart from
open(), records() and routes(), which run before the loop, everything here does file I/O and is called on the
controller's storage thread.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clockwork.config.formats import FORMAT_BYTES_MAX
from clockwork.controller.catalog.backup import BackupKeeper, Report, back_up
from clockwork.controller.catalog.database import (
    ABOUT,
    CHANGES,
    ROUTES,
    UNUSED,
    VERSIONS,
    Database,
    Row,
    Rows,
    Table,
    Write,
)
from clockwork.controller.catalog.former import is_former, read_former, remove_former
from clockwork.controller.catalog.packages import DirectoryPackages, Packages
from clockwork.controller.catalog.postgres import Fence, PostgresDatabase
from clockwork.controller.catalog.records import UNREADABLE, Change, Complaint, ModelRecord
from clockwork.controller.catalog.recovery import open_catalog
from clockwork.controller.catalog.routes import NameRoute
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.checksums import read_plain
from clockwork.formats.durable import ALONE, Steps, write_durably
from clockwork.formats.interface import Interface, read_interface
from clockwork.formats.package import PackageFile
from clockwork.system.holder import sign
from clockwork.system.locks import lock_file
from clockwork.wire.telling import printable, tell

log = logging.getLogger("clockwork.controller")

FORMAT = "2"
LOCK_FILE = "lock"
_FORMER_FORMAT = "1"  # of releases whose catalogue was files

_TAKEN_OVER = "taken over"  # subject of the row that says that an earlier release's files are in the database

T = TypeVar("T", ModelRecord, NameRoute)


class Catalog:
    """The data directory of one controller. packages: by default in the data directory. url: of a database in
    PostgreSQL; "": the catalogue is in the data directory, too. fence, rows: see PostgresDatabase."""

    def __init__(
        self,
        root: Path,
        packages: Packages | None = None,
        url: str = "",
        fence: Fence | None = None,
        rows: Rows | None = None,
    ) -> None:
        self.root = root
        self._url = url
        self._fence = fence
        self._rows = rows
        self.store = packages or DirectoryPackages(root)
        self._lock = -1
        self._database: Database | None = None
        self._keeper: BackupKeeper | None = None
        self._number = 0  # of the newest change that was begun
        self._removed: deque[str] = deque()  # removed packages, of which the next change takes the rows away
        self._unused: list[str] = []
        self._records: list[ModelRecord] = []
        self._routes: list[NameRoute] = []
        self._complaints: list[Complaint] = []
        self._route_complaints: list[Complaint] = []

    def open(self, lock: int = -1) -> None:
        """Create or take over the directory. lock: the descriptor of the lock, where the caller has it.

        Raises ConfigError: not writable, other format, in use."""
        self._lock = lock
        marker = self.root / "format"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if lock < 0:
                self._lock = lock_file(self.root / LOCK_FILE)
            sign(self._lock)
            found = read_plain(marker, FORMAT_BYTES_MAX).strip() if marker.exists() else None
            if found not in (None, FORMAT.encode(), _FORMER_FORMAT.encode()):
                raise ConfigError(
                    f"data directory {self.root} has format {tell(found)}, this version reads format {FORMAT}"
                )
            complaints: list[Complaint] = []
            if self._url:
                self._database = PostgresDatabase(self._url, self._fence, self._rows)
                self._rows = None
            else:
                self._database, complaints = open_catalog(self.root)
            if found != FORMAT.encode():
                write_durably(marker, FORMAT.encode())
            self._take_rows(self._database.rows, complaints)
            self._follow_former(self._database.rows)
            self.store.open()
        except ConfigError:
            self.close()
            raise
        except ValueError as error:
            self.close()
            raise ConfigError(f"data directory {self.root}: its file 'format' is damaged: {error}") from None
        except BlockingIOError:
            self.close()
            raise ConfigError(f"data directory {self.root} is in use by another controller") from None
        except OSError as error:
            self.close()
            where = f": {error.filename}" if error.filename else ""
            raise ConfigError(f"data directory {self.root} cannot be used: {error.strerror}{where}") from None

    def touch(self) -> None:
        """Show a standby that this process goes on. Takes no I/O but of the directory entry in memory."""
        os.utime(self._lock)

    def keep_backup(self, report: Report) -> None:
        """Keep a backup of the catalogue from now on. Without it change() has none to wait for."""
        assert self._database is not None
        if self._database.has_own_backup:
            report(sys.maxsize, "", "")
        else:
            self._keeper = BackupKeeper(self.root, self._number, report)

    def stop_backup(self) -> None:
        """Report nothing more. close() still brings the backup up to date."""
        if self._keeper is not None:
            self._keeper.stop()

    def write_back(self) -> None:
        """Do ahead, beside requests, what close() would have to do at length. Raises OSError."""
        assert self._database is not None
        self._database.write_back()

    def release(self) -> None:
        """Leave the directory to a standby. Its backup is brought up to date by the standby."""
        self.stop_backup()
        self._keeper = None
        self.close()

    def close(self) -> None:
        self.store.close()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def records(self) -> tuple[list[ModelRecord], list[Complaint]]:
        """Every usable record as of open(), oldest version first, and complaints about the others.

        A record without its package is usable: workers may have the model prepared, and the package.
        """
        return self._records, self._complaints

    def routes(self) -> tuple[list[NameRoute], list[Complaint]]:
        """Every usable route of a name as of open(), by name, and complaints about the others."""
        return self._routes, self._route_complaints

    def unused(self) -> list[str]:
        """Packages that no version needs, and that are to be removed, as of open()."""
        return self._unused

    def change(self, change: Change) -> Steps[int]:
        """Make a change durably. Raises OSError: then nothing has changed (or, NotUndone, nobody knows).

        Returns its number; packages that are not needed any more may go once the backup has that number.
        """
        assert self._database is not None
        self._number += 1
        number, removed = self._number, list(self._removed)
        commit = self._database.begin(self._writes(change, removed))
        yield (commit,)
        for digest in removed:
            if digest in self._removed:  # changes that share a transaction have the same ones
                self._removed.remove(digest)
        if self._keeper is not None:
            self._keeper.note(number, bool(change.packages))
        return number

    @property
    def number(self) -> int:
        """The number of the newest change that was begun. May be read on any thread."""
        return self._number

    @property
    def is_empty(self) -> bool:
        """Whether nobody has ever changed the catalogue."""
        return self._number == 0

    def restore(self, rows: Rows) -> None:
        """Write the rows of a snapshot into an empty catalogue, all or none. Raises OSError."""
        assert self._database is not None
        now_ns = time.time_ns()
        tables = (VERSIONS, ROUTES, CHANGES)
        writes = [Write(table, row) for table in tables for row in rows.good[table.name]]
        self._number = rows.number + 1
        writes.append(Write(CHANGES, (self._number, now_ns, "clockwork restore", "", "[]")))
        self._database.begin(writes).sync()
        if not self._database.has_own_backup:
            back_up(self.root)

    def remove(self, digest: str) -> Steps[None]:
        """Remove a package. Raises OSError; the next start then removes the remains."""
        yield ALONE
        assert self._database is not None
        self._database.confirm()  # another active may need it again
        self.store.remove(digest)
        self._removed.append(digest)

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

    # ----- inside ------------------------------------------------------------------------------

    def _writes(self, change: Change, removed: Sequence[str]) -> list[Write]:
        now_ns = time.time_ns()
        writes = [Write(UNUSED, (digest,), True) for digest in removed]
        writes += [Write(UNUSED, (digest,)) for digest in change.packages]
        for record in change.save:
            writes.append(Write(VERSIONS, record.to_row(change.by, now_ns)))
            writes.append(Write(UNUSED, (record.digest,), True))
        writes += [Write(VERSIONS, (record.name, record.version), True) for record in change.remove]
        if change.route is not None:
            writes.append(Write(ROUTES, change.route.to_row(change.by, now_ns)))
        if change.unroute:
            writes.append(Write(ROUTES, (change.unroute,), True))
        what = change.described()
        name = what[0][1:].partition("@")[0] if what else ""
        writes.append(Write(CHANGES, (self._number, now_ns, change.by, name, json.dumps(what))))
        return writes

    def _take_rows(self, rows: Rows, complaints: Sequence[Complaint]) -> None:
        self._number = rows.number
        self._complaints = [found for found in complaints if found.version or not found.name]
        self._route_complaints = [found for found in complaints if found.name and not found.version]
        self._name_bad(rows)
        self._records = _read(VERSIONS, rows, ModelRecord.from_row, self._complaints)
        self._routes = _read(ROUTES, rows, NameRoute.from_row, self._route_complaints)
        used = {record.digest for record in self._records}
        self._unused = [digest for (digest,) in rows.good[UNUSED.name] if digest not in used]

    def _name_bad(self, rows: Rows) -> None:
        """Name the rows that differ from their checksums; of SQLite's, none is left at this point."""
        for table, row in rows.bad:
            version = row[1] if table is VERSIONS and type(row[1]) is int else 0
            name = printable(str(row[0]), 200) if table in (VERSIONS, ROUTES) else ""
            text = (
                f"a row of {table.name} in the catalogue differs from its checksum, and is not used: {name}"
            )
            complaint = Complaint(name, version, text, False)
            (self._complaints if version or not name else self._route_complaints).append(complaint)

    def _follow_former(self, rows: Rows) -> None:
        """Take over the files of an earlier release at the first start, and remove them at the second."""
        if not is_former(self.root):
            return
        if rows.about(_TAKEN_OVER):
            remove_former(self.root)
            log.info("the models of an earlier release were taken over at the last start; its files are gone")
            return
        if rows.number:
            log.warning("%s has models of an earlier release beside its own: they are not used", self.root)
            return
        assert self._database is not None
        former = read_former(self.root)
        for complaint in former.complaints:
            (self._complaints if complaint.version else self._route_complaints).append(complaint)
        self._number += 1
        change = Change(save=former.records, by="an earlier release")
        now_ns = time.time_ns()
        writes = self._writes(change, ())
        writes += [Write(ROUTES, route.to_row(change.by, now_ns)) for route in former.routes]
        writes.append(Write(ABOUT, (_TAKEN_OVER, str(now_ns))))
        commit = self._database.begin(writes)
        commit.sync()
        self._records = sorted(former.records, key=lambda record: (record.name, record.version))
        self._routes = sorted(former.routes, key=lambda route: route.name)
        log.info("%d models of an earlier release were taken over", len(self._records))


def _read(table: Table, rows: Rows, parse: Callable[[Row], T], complaints: list[Complaint]) -> list[T]:
    """The values of a table's rows. A row that no release wrote is named, and left as it is."""
    found = []
    for row in rows.good[table.name]:
        try:
            found.append(parse(row))
        except UNREADABLE as error:
            version = row[1] if table is VERSIONS and type(row[1]) is int else 0
            name = printable(str(row[0]), 200)
            label = f"{name}@{version}" if version else f"the route of {name}"
            text = f"{label} cannot be read from the catalogue ({printable(str(error), 200)}) and is not used"
            complaints.append(Complaint(name, version, text, False))
    return found
