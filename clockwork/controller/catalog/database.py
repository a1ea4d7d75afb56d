"""The catalogue's database: its one schema, its statements, and SQLite's side of it.

    versions   a version of a model: what it is, its SLO, whether it is offered or set aside, who changed it
    routes     the split of a name's traffic, where somebody has said so
    unused     packages that no version needs any more, until their files are gone
    changes    who changed what; also the number of the newest change
    about      the number of the schema, and whose data this is
    lease      which controller is active; in PostgreSQL alone, see controller.lease

Every row but the lease's has a checksum of its other columns. Tables are created and changed by MIGRATIONS
alone, in order; a database with a higher number than theirs was written by a later release, and is refused
before anything is changed. Apart from opening, everything here belongs to the storage thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from clockwork.config.controller import (
    CATALOG_BUSY_S,
    CATALOG_CHANGES_KEPT,
    CATALOG_LOG_BYTES,
    CATALOG_RESERVE_BYTES,
)
from clockwork.errors import ConfigError
from clockwork.formats.durable import NotUndone
from clockwork.system.files import fsync_directory

Row: TypeAlias = tuple[Any, ...]
"""The columns of a row, without its checksum: texts and integers."""


class Table(NamedTuple):
    """A table. The first ``key_count`` columns are its key; a checksum follows the columns."""

    name: str
    key_count: int
    columns: tuple[str, ...]

    def key(self, row: Row) -> Row:
        return row[: self.key_count]

    def checksum(self, row: Row) -> int:
        return zlib.crc32("\x1f".join((self.name, *map(str, row))).encode("utf-8", "surrogatepass"))


VERSIONS = Table(
    "versions",
    2,
    (
        "name", "version", "digest", "slo_ns", "offered", "aside", "files", "options", "declares", "changed_by",
        "changed_ns",
    ),
)  # fmt: skip
ROUTES = Table("routes", 1, ("name", "split", "earlier", "changed_by", "changed_ns"))
UNUSED = Table("unused", 1, ("digest",))
CHANGES = Table("changes", 1, ("number", "at_ns", "made_by", "name", "what"))
ABOUT = Table("about", 1, ("subject", "value"))
TABLES = (VERSIONS, ROUTES, UNUSED, CHANGES, ABOUT)

MIGRATIONS: Sequence[Sequence[str]] = (
    (
        (
            "CREATE TABLE versions (name TEXT NOT NULL, version BIGINT NOT NULL, digest TEXT NOT NULL, "
            "slo_ns BIGINT NOT NULL, offered BIGINT NOT NULL, aside TEXT NOT NULL, files TEXT NOT NULL, "
            "options TEXT NOT NULL, declares TEXT NOT NULL, changed_by TEXT NOT NULL, changed_ns BIGINT NOT NULL, "
            "checksum BIGINT NOT NULL, PRIMARY KEY (name, version))"
        ),
        (
            "CREATE TABLE routes (name TEXT NOT NULL PRIMARY KEY, split TEXT NOT NULL, earlier TEXT NOT NULL, "
            "changed_by TEXT NOT NULL, changed_ns BIGINT NOT NULL, checksum BIGINT NOT NULL)"
        ),
        "CREATE TABLE unused (digest TEXT NOT NULL PRIMARY KEY, checksum BIGINT NOT NULL)",
        (
            "CREATE TABLE changes (number INTEGER NOT NULL PRIMARY KEY, at_ns BIGINT NOT NULL, made_by TEXT NOT NULL, "
            "name TEXT NOT NULL, what TEXT NOT NULL, checksum BIGINT NOT NULL)"
        ),
        "CREATE TABLE about (subject TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, checksum BIGINT NOT NULL)",
    ),
    (
        (
            "CREATE TABLE lease (number BIGINT NOT NULL PRIMARY KEY, epoch BIGINT NOT NULL, holder TEXT NOT NULL, "
            "addresses TEXT NOT NULL, expires_ns BIGINT NOT NULL, lock BIGINT NOT NULL, workers TEXT NOT NULL)"
        ),
        "INSERT INTO lease VALUES (1, 0, '', '[]', 0, 0, '[]')",
    ),
)
"""Statements that lead from one schema to the next, in every dialect. A released migration never changes."""


class Statements:
    """The statements on every table in a dialect. mark: the placeholder of a value."""

    def __init__(self, mark: str) -> None:
        self.put: dict[str, str] = {}
        self.remove: dict[str, str] = {}
        self.get: dict[str, str] = {}
        self.all: dict[str, str] = {}
        for table in TABLES:
            columns, key = (*table.columns, "checksum"), table.columns[: table.key_count]
            rest = ", ".join(f"{column} = excluded.{column}" for column in columns[table.key_count :])
            marks = ", ".join([mark] * len(columns))
            where = " AND ".join(f"{column} = {mark}" for column in key)
            self.put[table.name] = (
                f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({marks}) "
                f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {rest}"
            )
            self.remove[table.name] = f"DELETE FROM {table.name} WHERE {where}"
            self.get[table.name] = f"SELECT {', '.join(columns)} FROM {table.name} WHERE {where}"
            self.all[table.name] = f"SELECT {', '.join(columns)} FROM {table.name} ORDER BY {', '.join(key)}"
        self.forget_changes = f"DELETE FROM changes WHERE number <= {mark}"


class Write(NamedTuple):
    """A row to be written, or the key of one to be removed."""

    table: Table
    row: Row
    is_removal: bool = False


class Rows(NamedTuple):
    """The rows of a database whose checksums are right, by table, and the others as they were read."""

    good: Mapping[str, list[Row]]
    bad: Sequence[tuple[Table, Row]]

    @property
    def number(self) -> int:
        """The number of the newest change; 0: there was none."""
        return max((row[0] for row in self.good[CHANGES.name]), default=0)

    def about(self, subject: str) -> str:
        return next((value for key, value in self.good[ABOUT.name] if key == subject), "")


class Source(Protocol):
    """A runner of statements: a connection of sqlite3's, or a cursor of psycopg's."""

    def execute(self, statement: str, values: Any = ..., /) -> Any: ...


def read_rows(source: Source, statements: Statements) -> Rows:
    """Read every row and compare it with its checksum. Raises the source's errors."""
    good: dict[str, list[Row]] = {}
    bad: list[tuple[Table, Row]] = []
    for table in TABLES:
        rows = good[table.name] = []
        for *columns, checksum in source.execute(statements.all[table.name]):
            row = tuple(columns)
            if table.checksum(row) == checksum:
                rows.append(row)
            else:
                bad.append((table, row))
    return Rows(good, bad)


def put(source: Source, statements: Statements, table: Table, row: Row) -> None:
    """Write a row with its checksum. Raises the source's errors."""
    source.execute(statements.put[table.name], (*row, table.checksum(row)))


class Before(NamedTuple):
    """A row before a change; None: it was not there."""

    table: Table
    key: Row
    row: Row | None


def before(source: Source, statements: Statements, write: Write) -> Before:
    """The row that a write is about to change. Raises the source's errors."""
    table, row, is_removal = write
    key = row if is_removal else table.key(row)
    found = source.execute(statements.get[table.name], key).fetchone()
    return Before(table, key, None if found is None else tuple(found[:-1]))


def undo(source: Source, statements: Statements, rows: Sequence[Before]) -> None:
    """Put rows back, within the caller's transaction. Raises the source's errors."""
    for table, key, row in reversed(rows):
        if row is None:
            source.execute(statements.remove[table.name], key)
        else:
            put(source, statements, table, row)


def check_schema(found: int, place: str) -> None:
    """Raise ConfigError where a later release has written a catalogue of schema ``found``."""
    if found > len(MIGRATIONS):
        raise ConfigError(
            f"the catalogue in {place} has schema {found}, this version reads schemas up to {len(MIGRATIONS)}: "
            "a later release has written it"
        )


def migrate(source: Source, statements: Statements, found: int, place: str) -> None:
    """Bring the schema from number ``found`` to the present one, within the caller's transaction.

    Raises ConfigError where a later release has written it, and the source's errors.
    """
    check_schema(found, place)
    for migration in MIGRATIONS[found:]:
        for statement in migration:
            source.execute(statement)
    if found < len(MIGRATIONS):
        put(source, statements, ABOUT, ("schema", str(len(MIGRATIONS))))
    if not found:
        put(source, statements, ABOUT, ("id", secrets.token_hex(16)))


class Commit:
    """The end of a transaction, which several changes may share; see formats.durable.Syncable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changes: list[Sequence[Write]] = []
        self.error: OSError | None = None
        self.is_over = False

    def sync(self) -> None:
        """Make the changes durable, unless that was done. Raises OSError: none of them holds; NotUndone: that
        is not known."""
        if not self.is_over:
            self._database.end(self)
        if self.error is not None:
            raise self.error


class Database(Protocol):
    """A database of the catalogue that has been opened and read."""

    rows: Rows  # as of the opening

    @property
    def place(self) -> str:
        """Where it is, for people."""
        ...

    @property
    def has_own_backup(self) -> bool:
        """Whether backups are the database's own task, or that of its administrator."""
        ...

    def begin(self, changes: Sequence[Write]) -> Commit:
        """Make a change within the open transaction. Raises OSError: nothing has changed."""
        ...

    def end(self, commit: Commit) -> None:
        """See Commit.sync()."""

    def confirm(self) -> None:
        """Make sure that the catalogue is still this controller's. Raises OSError."""

    def write_back(self) -> None:
        """Do ahead what close() would have to do at length. Raises OSError."""

    def close(self) -> None: ...


# ----- SQLite --------------------------------------------------------------------------------------

SQLITE = Statements("?")
FILE = "catalog.db"
LOG = "catalog.db-wal"
RESERVE = "catalog.reserve"
_FRAME, _LOG_HEAD, _FRAME_HEAD = 4096, 32, 24
"""Bytes of a page and of the heads of SQLite's log and its frames (its file format, section 4.1)."""

_WHOLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
"""Errors of a commit whose last frame is not in the log, so that no start can find the change."""

_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}


def code_of(error: sqlite3.Error) -> int:
    """SQLite's extended code of an error; 0: it has none."""
    return getattr(error, "sqlite_errorcode", None) or 0


def as_os_error(error: sqlite3.Error) -> OSError:
    number = _ERRNO.get(code_of(error) & 0xFF, errno.EIO)
    return OSError(number, f"{os.strerror(number)} ({getattr(error, 'sqlite_errorname', 'SQLite')}: {error})")


def connect(path: Path, *, is_only_read: bool = False) -> sqlite3.Connection:
    """A connection without transactions of its own. is_only_read: the file is one that nobody writes to.

    Raises sqlite3.Error.
    """
    name = location(path) + ("?mode=ro&immutable=1" if is_only_read else "")
    connection = sqlite3.connect(
        name, CATALOG_BUSY_S, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        if not is_only_read:
            connection.execute(f"PRAGMA page_size = {_FRAME}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def location(path: Path) -> str:
    """The URI of a file, for SQLite."""
    return "file:" + str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def schema_of(connection: sqlite3.Connection) -> int:
    """The number of the schema; 0: an empty database. Raises sqlite3.Error."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if ABOUT.name not in tables:
        return 0
    return schema_number(connection.execute("SELECT value FROM about WHERE subject = 'schema'").fetchone())


def schema_number(row: Row | None) -> int:
    """The number of the schema in the row of ``about``. Raises ValueError: it is damaged."""
    return int(row[0]) if row is not None else 0


def find_flaw(connection: sqlite3.Connection) -> str:
    """SQLite's complaint about the file, as a sentence; "": none. Raises sqlite3.Error."""
    found = [text for (text,) in connection.execute("PRAGMA integrity_check(1)")]
    return "" if found == ["ok"] else str(found[0])


def _log_pages(path: Path) -> list[bool]:
    """The whole frames of a log, and whether each ends a transaction."""
    found: list[bool] = []
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(_LOG_HEAD)
        while len(frame := file.read(_FRAME_HEAD + _FRAME)) == _FRAME_HEAD + _FRAME:
            found.append(struct.unpack_from(">I", frame, 4)[0] != 0)
    return found


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is rolled back where its block raises. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


class SqliteDatabase:
    """SQLite's file in a data directory. The log is emptied whenever it is written back, so that each frame
    of it is of the transactions since then."""

    has_own_backup = False

    def __init__(self, root: Path) -> None:
        """Open or create the file. Raises sqlite3.Error, OSError, ConfigError, ValueError; only the errors'
        kind tells damage."""
        self._root = root
        self._open: Commit | None = None
        self._before: list[Before] = []  # rows before the open transaction
        self._owed: list[Before] | None = None  # the same of a refused commit that may be in the log
        self._is_torn = (
            False  # whether frames of a failed transaction are in the log: a start must not see rot
        )
        self._lacks_reserve = True
        frames = _log_pages(root / LOG)
        self._connection = self._connect()
        try:
            self.flaw = find_flaw(self._connection)
            taken = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
            if not self.flaw and any(frames[max(0, taken) :]):
                self.flaw = "the end of its log cannot be read"
            if not self.flaw:
                self._migrate()
                self.rows = read_rows(self._connection, SQLITE)
                self._empty_log()
        except BaseException:
            self._connection.close()
            raise
        self._keep_reserve()

    @property
    def place(self) -> str:
        return str(self._root)

    def write_back(self) -> None:
        if self._open is None:
            try:
                self._empty_log()
            except sqlite3.Error as error:
                raise as_os_error(error) from error

    def close(self) -> None:
        """Write the log back, as far as that can be done, and close the file."""
        self._connection.close()

    def begin(self, changes: Sequence[Write]) -> Commit:
        if self._open is None:
            self._start()
            self._open, self._before = Commit(self), []
        commit = self._open
        commit.changes.append(changes)
        try:
            self._write(changes)
        except sqlite3.Error as error:  # SQLite may have rolled all back
            self._roll_back()
            commit.error, commit.is_over, self._open = as_os_error(error), True, None
            raise commit.error from error
        return commit

    def end(self, commit: Commit) -> None:
        assert commit is self._open, "the commit of another transaction"
        self._open, commit.is_over = None, True
        error = self._try_to_commit()
        if error is not None and code_of(error) & 0xFF == sqlite3.SQLITE_FULL and _frees(commit.changes):
            error = self._commit_in_reserve(commit)
        if error is None:
            self._tidy()
            return
        commit.error = as_os_error(error)
        self._is_torn = True
        if code_of(error) not in _WHOLE:
            self._owed = self._before
            try:
                self._settle()
            except OSError as second:
                text = f"{commit.error.strerror}, and undoing it: {second.strerror}"
                commit.error = NotUndone(commit.error.errno, text)
                return
        self._tidy()

    def confirm(self) -> None:
        """The lock of the data directory says so."""

    # ----- inside ------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """Opening needs some pages of the disk, and so perhaps the reserve."""
        path = self._root / FILE
        try:
            connection = connect(path)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return connection
        except sqlite3.Error:
            if not self._drop_reserve():
                raise
        return connect(path)

    def _migrate(self) -> None:
        found = schema_of(self._connection)
        try:
            with transaction(self._connection):
                migrate(self._connection, SQLITE, found, self.place)
        except sqlite3.Error as error:
            if code_of(error) == sqlite3.SQLITE_ERROR:  # the statements are at fault, not the file
                raise ConfigError(
                    f"the catalogue in {self.place} cannot be brought from schema {found} to schema "
                    f"{len(MIGRATIONS)}: {error}"
                ) from error
            raise

    def _start(self) -> None:
        """Begin a transaction, over a new connection if the present one cannot. Raises OSError."""
        try:
            if self._owed is not None:
                self._settle()
            self._connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError):
            try:
                self._connect_anew()
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise as_os_error(error) from error

    def _connect_anew(self) -> None:
        """Connect again: a lock that could not be given back is held until then.

        A refused commit that is found in the log is undone. Raises sqlite3.Error."""
        self._connection.close()
        self._connection = self._connect()
        if self._owed is not None:
            with transaction(self._connection):
                undo(self._connection, SQLITE, self._owed)
            self._owed = None

    def _write(self, changes: Iterable[Write]) -> None:
        for write in changes:
            self._before.append(before(self._connection, SQLITE, write))
            table, row, is_removal = write
            if is_removal:
                self._connection.execute(SQLITE.remove[table.name], row)
            else:
                put(self._connection, SQLITE, table, row)
                if table is CHANGES:
                    self._connection.execute(SQLITE.forget_changes, (row[0] - CATALOG_CHANGES_KEPT,))

    def _try_to_commit(self) -> sqlite3.Error | None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            return error
        return None

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the next BEGIN fails then, and says why
                self._connection.execute("ROLLBACK")

    def _commit_in_reserve(self, commit: Commit) -> sqlite3.Error | None:
        """Make changes that free room on a full disk, for which some room is kept."""
        with contextlib.suppress(sqlite3.Error):  # the reserve has room for a longer log, too
            self._empty_log()
        self._drop_reserve()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for changes in commit.changes:
                self._write(changes)
        except sqlite3.Error as error:
            self._roll_back()
            return error
        return self._try_to_commit()

    def _settle(self) -> None:
        """Overwrite a commit whose end is not known with one that changes nothing. Raises OSError."""
        try:
            with transaction(self._connection):
                put(self._connection, SQLITE, ABOUT, ("settled", secrets.token_hex(8)))
        except sqlite3.Error as error:
            raise as_os_error(error) from error
        self._owed = None

    def _tidy(self) -> None:
        """Write the log back once it is long, and keep the reserve. Neither is part of a change."""
        with contextlib.suppress(OSError, sqlite3.Error):  # the next change tries again
            is_long = os.stat(self._root / LOG).st_size > CATALOG_LOG_BYTES
            if self._is_torn or self._lacks_reserve or is_long:
                self._empty_log()
                self._is_torn = False
        if self._lacks_reserve:
            self._keep_reserve()

    def _empty_log(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _keep_reserve(self) -> None:
        """Hold some room of the disk, as much of it as there is."""
        size = CATALOG_RESERVE_BYTES
        with contextlib.suppress(OSError), open(self._root / RESERVE, "ab") as file:
            while size >= _FRAME and os.fstat(file.fileno()).st_blocks * 512 < size:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError:
                    size //= 2
            self._lacks_reserve = size < CATALOG_RESERVE_BYTES

    def _drop_reserve(self) -> bool:
        """Give the reserved room back. Whether there was some."""
        self._lacks_reserve = True
        try:
            os.unlink(self._root / RESERVE)
        except OSError:
            return False
        return True


def _frees(changes: Iterable[Sequence[Write]]) -> bool:
    return any(write.is_removal and write.table is VERSIONS for change in changes for write in change)


def write_file(path: Path, rows: Iterable[tuple[Table, Row]]) -> None:
    """Write a new SQLite file with these rows, whole and synced, at a path where there is none.

    Raises sqlite3.Error, OSError.
    """
    connection = connect(path)
    try:
        with transaction(connection):
            migrate(connection, SQLITE, 0, str(path))
            for table, row in rows:
                if (table, row[:1]) != (ABOUT, ("schema",)):
                    put(connection, SQLITE, table, row)
        connection.execute("PRAGMA journal_mode = DELETE")
    finally:
        connection.close()
    sync_file(path)


def sync_file(path: Path) -> None:
    """Sync a file that is no open database's, and its directory: closing it ends this process's locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_directory(path.parent)
