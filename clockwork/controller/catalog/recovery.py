"""Opening SQLite's catalogue, also where it is damaged: its good rows are put together with its backup's.

A file is damaged where SQLite says so, where a row differs from its checksum, where the end of the log
cannot be read, and where the backup knows of later changes. Then a new file is written from the good rows of
both: of a row that both have the later, and no row that a later change has removed. The damaged files are
kept beside it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from clockwork.controller.catalog.database import (
    ABOUT,
    CHANGES,
    FILE,
    LOG,
    ROUTES,
    SQLITE,
    TABLES,
    UNUSED,
    VERSIONS,
    Row,
    Rows,
    SqliteDatabase,
    Table,
    as_os_error,
    code_of,
    connect,
    find_flaw,
    read_rows,
    sync_file,
    write_file,
)
from clockwork.controller.catalog.records import Complaint
from clockwork.errors import ConfigError
from clockwork.formats.checksums import set_aside
from clockwork.system.files import fsync_directory
from clockwork.wire.telling import printable

log = logging.getLogger("clockwork.controller")

BACKUP = "catalog.backup"
REBUILT = "catalog.rebuilt"
_SHARED = "catalog.db-shm"

_NOT_DAMAGE = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH,
}  # fmt: skip
"""Errors that say nothing about the file's content."""


def open_catalog(root: Path) -> tuple[SqliteDatabase, list[Complaint]]:
    """Open the catalogue of a data directory, and say what was damaged. Raises OSError, ConfigError."""
    _put_in_place(root)
    database: SqliteDatabase | None = None
    why = ""
    try:
        if not (root / FILE).exists() and (root / BACKUP).exists():
            why = f"{FILE} is missing"
        else:
            database = SqliteDatabase(root)
            why = _flaw_of(database, root)
    except ConfigError:
        raise
    except sqlite3.Error as error:
        if code_of(error) & 0xFF in _NOT_DAMAGE:
            raise as_os_error(error) from error
        why = str(error)
    except ValueError as error:
        why = str(error)
    if not why and database is not None:
        return database, []
    if database is not None:
        database.close()
    complaints = _rebuild(root, printable(why, 300))
    try:
        return SqliteDatabase(root), complaints
    except sqlite3.Error as error:
        raise as_os_error(error) from error


def _flaw_of(database: SqliteDatabase, root: Path) -> str:
    if database.flaw:
        return database.flaw
    if database.rows.bad:
        return f"{len(database.rows.bad)} of its rows differ from their checksums"
    known = newest_of(root / BACKUP)
    if known > database.rows.number:
        return f"its newest change is number {database.rows.number}, its backup knows of number {known}"
    return ""


def newest_of(backup: Path) -> int:
    """The number of the newest change that a backup has; 0: it has none, or cannot be read."""
    with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
        with contextlib.closing(connect(backup, is_only_read=True)) as connection:
            (number,) = connection.execute("SELECT max(number) FROM changes").fetchone()
        return int(number or 0)
    return 0


def flaw_of_backup(backup: Path) -> str:
    """The flaw of a backup, as a sentence; "": it has none."""
    try:
        with contextlib.closing(connect(backup, is_only_read=True)) as connection:
            flaw = find_flaw(connection)
            bad = read_rows(connection, SQLITE).bad
    except sqlite3.Error as error:
        return str(error)
    return flaw or (f"{len(bad)} of its rows differ from their checksums" if bad else "")


def _rebuild(root: Path, why: str) -> list[Complaint]:
    """Write the catalogue anew from what can be read. Raises OSError."""
    found, kept = _salvage(root / FILE, is_only_read=False), _salvage(root / BACKUP, is_only_read=True)
    is_backed = (root / BACKUP).exists() and not flaw_of_backup(root / BACKUP)
    merged = _merge(kept, found)
    new = root / f".{REBUILT}"
    try:
        for path in (new, Path(f"{new}-wal"), Path(f"{new}-shm"), Path(f"{new}-journal")):
            path.unlink(missing_ok=True)
        write_file(new, ((table, row) for table in TABLES for row in merged[table.name].values()))
    except sqlite3.Error as error:
        raise as_os_error(error) from error
    os.rename(new, root / REBUILT)
    fsync_directory(root)
    aside = _put_in_place(root)
    text = f"the catalogue was damaged ({why}) and has been put together from its good rows and its backup"
    if not is_backed:
        text = f"the catalogue is damaged ({why}), and so is its backup: what neither has is lost"
    complaints = [
        Complaint("", 0, f"{text}; the damaged file is kept as {aside}" if aside else text, is_backed)
    ]
    complaints += [
        Complaint(name, version, f"{_say(name, version)} is lost: {text}", False)
        for name, version in _lost(kept, found, merged)
    ]
    return complaints


def _put_in_place(root: Path) -> str:
    """Put a catalogue that was written anew in the place of the damaged one, whose log must be gone before.

    Returns the new name of the damaged file, which is kept. Raises OSError."""
    if not (root / REBUILT).exists():
        return ""
    set_aside(root / LOG)
    aside = set_aside(root / FILE)
    (root / _SHARED).unlink(missing_ok=True)
    sync_file(root / REBUILT)
    os.rename(root / REBUILT, root / FILE)
    fsync_directory(root)
    return aside.name if aside is not None else ""


def _salvage(path: Path, is_only_read: bool) -> Rows:
    """The rows of a file, as many as can be read."""
    good: dict[str, list[Row]] = {table.name: [] for table in TABLES}
    bad: list[tuple[Table, Row]] = []
    if not path.exists():
        return Rows(good, bad)
    try:
        connection = connect(path, is_only_read=is_only_read)
    except sqlite3.Error:
        return Rows(good, bad)
    with contextlib.closing(connection):
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        for table in TABLES:
            rows: dict[Row, Row] = {}
            for order in ("", " DESC"):  # from both ends: a page that cannot be read may be in between
                with contextlib.suppress(sqlite3.Error):
                    for *columns, checksum in connection.execute(SQLITE.all[table.name] + order):
                        row = tuple(columns)
                        if table.checksum(row) == checksum:
                            rows[table.key(row)] = row
                        elif not order:
                            bad.append((table, row))
            good[table.name] = list(rows.values())
    return Rows(good, bad)


def _merge(kept: Rows, found: Rows) -> dict[str, dict[Row, Row]]:
    """The rows of the backup and of the damaged file by their keys, as of the newest change in either."""
    merged: dict[str, dict[Row, Row]] = {}
    for table in TABLES:
        rows = merged[table.name] = {table.key(row): row for row in kept.good[table.name]}
        for row in found.good[table.name]:
            other = rows.get(table.key(row))
            if other is None or table not in (VERSIONS, ROUTES) or row[-1] >= other[-1]:
                rows[table.key(row)] = row
    last: dict[str, bool] = {}  # by what was changed, whether it was written
    for _, row in sorted(merged[CHANGES.name].items()):
        for what in json.loads(row[-1]):
            last[what[1:]] = what[:1] == "+"
    for table in (VERSIONS, ROUTES):
        for key in list(merged[table.name]):
            if last.get("@".join(map(str, key))) is False:
                del merged[table.name][key]
    used = {row[2] for row in merged[VERSIONS.name].values()}
    for key in list(merged[UNUSED.name]):
        if key[0] in used:
            del merged[UNUSED.name][key]
    merged[ABOUT.name].pop(("schema",), None)
    return merged


def _lost(kept: Rows, found: Rows, merged: dict[str, dict[Row, Row]]) -> Iterable[tuple[str, int]]:
    """Versions (name, version) and routes (name, 0) that must have been there, and are in no good row."""
    known: dict[tuple[str, int], None] = {}
    for table, row in (*kept.bad, *found.bad):
        if table is VERSIONS and type(row[1]) is int:
            known[printable(str(row[0]), 200), row[1]] = None
        elif table is ROUTES:
            known[printable(str(row[0]), 200), 0] = None
    last: dict[str, bool] = {}
    for _, row in sorted(merged[CHANGES.name].items()):
        for what in json.loads(row[-1]):
            last[what[1:]] = what[:1] == "+"
    for what, is_written in last.items():
        name, _, version = what.partition("@")
        if is_written:
            known[name, int(version or 0)] = None
        else:
            known.pop((name, int(version or 0)), None)
    there = {
        key if len(key) == 2 else (*key, 0) for table in (VERSIONS, ROUTES) for key in merged[table.name]
    }
    return [entry for entry in known if entry not in there]


def _say(name: str, version: int) -> str:
    return f"{name}@{version}" if version else f"the route of {name}"
