"""The catalogue in PostgreSQL, where several controllers share it: database.py's schema, through psycopg.

A controller changes the catalogue while it has the lease (controller.lease): every transaction compares the
lease's epoch with its own, in the statement that ends it, so that a controller that was taken over cannot
make another change. Programs without a lease, such as `clockwork restore`, take the whole catalogue: by a
lock of the session (an advisory lock), which ends with the connection, and which controllers share.

A connection that is lost is made again for the next change, which is made only if nobody has changed
anything meanwhile. Whether a commit holds whose reply was lost is then read from the number of the newest
change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from clockwork.config.controller import CATALOG_CHANGES_KEPT, POSTGRES_LOCK_S, POSTGRES_TIMEOUT_S
from clockwork.controller.catalog.database import (
    ABOUT,
    CHANGES,
    Before,
    Commit,
    Row,
    Rows,
    Statements,
    Write,
    before,
    check_schema,
    migrate,
    put,
    read_rows,
    schema_number,
    undo,
)
from clockwork.errors import ConfigError
from clockwork.formats.durable import NotUndone

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql://", "postgres://")

POSTGRES = Statements("%s")

_LOCK = 0x636C6F636B
""""clock", the number of the advisory lock on the whole catalogue: shared by controllers that contend for the
lease, exclusive for programs without one, and for controllers of earlier releases."""

_MIGRATING = _LOCK + 1  # Number of the lock that is held while the schema is changed

UNDONE = "undone"
"""Subject of the row of `about` that differs after changes were undone: who follows has to read all again."""

_IS_OURS = """DO $$ BEGIN
    PERFORM 1 FROM lease WHERE epoch = {epoch} AND holder = {holder} FOR SHARE;
    IF NOT FOUND THEN RAISE EXCEPTION 'another controller is active' USING ERRCODE = 'CW001'; END IF;
END $$"""
"""Fails where the lease is another's. The lock on its row is held to the end of the transaction, which is in
the same message to the server: a controller that is stopped meanwhile keeps no standby waiting."""


class Fence(NamedTuple):
    """The lease that must hold where the catalogue is changed."""

    epoch: int
    holder: str


def check_url(url: str) -> None:
    """Raise ConfigError unless this is a URL of PostgreSQL without a secret, and psycopg is there."""
    if not url.startswith(SCHEMES):
        raise ConfigError(f"a catalogue is {SCHEMES[0]}USER@HOST/DATABASE, or in --data; not {shown(url)}")
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise ConfigError(
            f"a catalogue in PostgreSQL needs psycopg ({error}): pip install 'clockwork-serving[postgres]'"
        ) from None
    try:
        has_secret = "password" in conninfo_to_dict(url)
    except ProgrammingError as error:
        raise ConfigError(f"{shown(url)}: {error}") from None
    if has_secret:
        raise ConfigError(
            f"{shown(url)} has a password, which every user of the machine can read in arguments: put it into a file "
            "(PGPASSFILE, or ?passfile=FILE) or into PGPASSWORD"
        )


def read_postgres(url: str) -> Rows:
    """Read a catalogue that a controller may be using, as of one moment. Raises ConfigError."""
    check_url(url)
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=POSTGRES_TIMEOUT_S) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            (is_there,) = connection.execute("SELECT to_regclass('about') IS NOT NULL").fetchone() or (False,)
            if not is_there:
                raise ConfigError(f"there is no catalogue in {shown(url)}")
            about = "SELECT value FROM about WHERE subject = 'schema'"
            check_schema(schema_number(connection.execute(about).fetchone()), shown(url))
            return read_rows(connection, POSTGRES)
    except psycopg.Error as error:
        raise ConfigError(f"the catalogue in {shown(url)} cannot be read: {_text(error)}") from None


def cluster_of(url: str) -> str:
    """The identity of a catalogue, which is made where there is none. Raises ConfigError."""
    check_url(url)
    try:
        with told(shown(url)), contextlib.closing(connect(url)) as connection:
            migrate_schema(connection, shown(url))
            (cluster,) = connection.execute("SELECT value FROM about WHERE subject = 'id'").fetchone() or (
                "",
            )
            return str(cluster)
    except OSError as error:
        raise ConfigError(f"the catalogue in {shown(url)} cannot be used: {error.strerror}") from None


def shown(url: str) -> str:
    """A URL without its password."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"
    return "a URL that cannot be read"


def connect(url: str) -> psycopg.Connection:
    """A connection without transactions of its own. Raises psycopg's errors."""
    import psycopg

    connection = psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=POSTGRES_TIMEOUT_S,
        application_name="clockwork",
        tcp_user_timeout=POSTGRES_TIMEOUT_S * 1000,
    )
    try:
        for name, value in (
            ("statement_timeout", f"{POSTGRES_TIMEOUT_S}s"),
            ("idle_in_transaction_session_timeout", f"{POSTGRES_TIMEOUT_S}s"),
            ("synchronous_commit", "on"),
            # PostgreSQL may take a moment to notice that the process is gone that had a lock.
            ("lock_timeout", f"{POSTGRES_LOCK_S}s"),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    except BaseException:
        connection.close()
        raise
    return connection


def share(connection: psycopg.Connection) -> bool:
    """Share the lock on the whole catalogue, until the connection ends. Returns whether nobody has it alone.
    Raises psycopg's errors."""
    found = connection.execute("SELECT pg_try_advisory_lock_shared(%s)", (_LOCK,)).fetchone()
    return found == (True,)


@contextlib.contextmanager
def told(place: str) -> Iterator[None]:
    """Turn errors of psycopg into OSErrors, as all failures of storage are."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate == "CW001":
            raise LeaseOver(place) from None
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} ({place}: {_text(error)})") from error
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"a text that PostgreSQL cannot hold: {error}") from error


class LeaseOver(OSError):
    """Another controller has the lease. Nothing was changed."""

    def __init__(self, place: str) -> None:
        super().__init__(errno.ESTALE, f"another controller is active in {place}, and makes the changes")


def migrate_schema(connection: psycopg.Connection, place: str) -> None:
    """Bring the schema to the present one; several controllers may do so at the same time. Raises psycopg's
    errors, ConfigError."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
        (there,) = connection.execute("SELECT to_regclass('about') IS NOT NULL").fetchone() or (False,)
        about = "SELECT value FROM about WHERE subject = 'schema'"
        found = schema_number(connection.execute(about).fetchone()) if there else 0
        migrate(connection, POSTGRES, found, place)


def newest_change(source: psycopg.Connection) -> int:
    """The number of the newest change; 0: there was none. Raises psycopg's errors."""
    (number,) = source.execute("SELECT max(number) FROM changes").fetchone() or (None,)
    return int(number or 0)


class PostgresDatabase:
    """A catalogue in PostgreSQL, which this controller changes while it has the lease.

    fence: the lease; None: none, and the catalogue is locked as a whole. rows: the catalogue as the holder of
    the lease has followed it; it is not read then, and a connection is made for the first change.
    """

    has_own_backup = True

    def __init__(self, url: str, fence: Fence | None = None, rows: Rows | None = None) -> None:
        """Raise ConfigError where it cannot be opened, or another program has it."""
        check_url(url)
        import psycopg

        self._error = psycopg.Error
        self._url = url
        self._fence = fence
        self._connection: psycopg.Connection | None = None
        self._open: Commit | None = None
        self._number = 0  # of the newest change that is known to hold
        self._begun: list[Row] = []  # rows of `changes` that the open transaction writes
        self._before: list[Before] = []  # rows before the open transaction
        self._unknown: tuple[Row, list[Before]] | None = None
        """A commit that was refused and may hold: its newest change, and the rows before it."""
        try:
            if rows is None:
                self._connect()
                migrate_schema(self._live(), self.place)
                rows = read_rows(self._live(), POSTGRES)
        except psycopg.Error as error:
            self.close()
            raise ConfigError(f"the catalogue in {self.place} cannot be used: {_text(error)}") from None
        except OSError as error:
            self.close()
            raise ConfigError(f"the catalogue in {self.place} cannot be used: {error.strerror}") from None
        except BaseException:
            self.close()
            raise
        self.rows = rows
        self._number = rows.number

    @property
    def place(self) -> str:
        return shown(self._url)

    def write_back(self) -> None:
        pass  # the server's task

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def begin(self, changes: Sequence[Write]) -> Commit:
        if self._open is None:
            self._start()
            self._open, self._begun, self._before = Commit(self), [], []
        commit = self._open
        commit.changes.append(changes)
        try:
            with self._told():
                self._write(changes)
        except OSError as error:
            self._roll_back()
            commit.error, commit.is_over, self._open = error, True, None
            raise
        return commit

    def end(self, commit: Commit) -> None:
        assert commit is self._open, "the commit of another transaction"
        self._open, commit.is_over = None, True
        newest = max(self._begun)
        try:
            with self._told():
                self._commit()
        except LeaseOver as error:
            self._roll_back()
            commit.error = error
        except OSError as error:
            commit.error = self._refused(error, newest)
        if commit.error is None:
            self._number = newest[0]

    def confirm(self) -> None:
        self._ensure()
        if self._fence is not None:
            with self._told():
                self._live().execute(self._is_ours(), prepare=False)

    # ----- inside ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin a transaction, over a new connection if the last one is lost. Raises OSError."""
        self._ensure()
        try:
            with self._told():
                self._execute("BEGIN")
        except OSError:
            self.close()
            self._ensure()
            with self._told():
                self._execute("BEGIN")

    def _refused(self, error: OSError, newest: Row) -> OSError | None:
        """The error of a commit; None: it holds, although its reply was lost."""
        self._roll_back()
        self._unknown = newest, self._before
        try:
            self._ensure(is_asked=True)
        except OSError as second:
            return NotUndone(error.errno, f"{error.strerror}, and asking again: {second.strerror}")
        return None if self._number == newest[0] else error

    def _ensure(self, *, is_asked: bool = False) -> None:
        """Have a connection to a catalogue that is as it was left. Raises OSError.

        is_asked: a commit whose end is not known is accepted where it holds, instead of being undone.
        """
        with self._told():
            if self._connection is None or self._connection.closed or self._connection.broken:
                self._connect()
            elif self._unknown is None:
                return
            found = newest_change(self._live())
            is_ours = self._unknown is not None and self._holds(self._unknown[0], found)
        unknown, self._unknown = self._unknown, None
        if unknown is None or not is_ours:
            if found != self._number:
                self._unknown = unknown
                raise OSError(
                    errno.ESTALE,
                    f"another controller has changed the catalogue in {self.place}: restart this one",
                )
            return
        if is_asked:
            self._number = found
            return
        try:
            with self._told():
                self._undo(unknown[1])
        except OSError:
            self._roll_back()
            self._unknown = unknown
            raise

    def _holds(self, change: Row, newest: int) -> bool:
        """Whether a change is the newest. Another controller may have made one of the same number since."""
        if newest != change[0]:
            return False
        found = self._execute(POSTGRES.get[CHANGES.name], (newest,)).fetchone()
        return found is not None and found[: len(change)] == change

    def _undo(self, rows: Sequence[Before]) -> None:
        """Put back what a commit has changed that was refused."""
        self._execute("BEGIN")
        undo(self._live(), POSTGRES, rows)
        put(self._live(), POSTGRES, ABOUT, (UNDONE, secrets.token_hex(8)))
        self._commit()
        self._number = newest_change(self._live())

    def _write(self, changes: Sequence[Write]) -> None:
        for write in changes:
            self._before.append(before(self._live(), POSTGRES, write))
            table, row, is_removal = write
            if is_removal:
                self._execute(POSTGRES.remove[table.name], row)
                continue
            put(self._live(), POSTGRES, table, row)
            if table is CHANGES:
                self._begun.append(row)
                self._execute(POSTGRES.forget_changes, (row[0] - CATALOG_CHANGES_KEPT,))

    def _commit(self) -> None:
        """End the transaction; with a lease, only where it is still this controller's."""
        if self._fence is None:
            self._execute("COMMIT")
        else:
            self._live().execute(self._is_ours() + b"; COMMIT", prepare=False)

    def _is_ours(self) -> bytes:
        from psycopg import sql

        assert self._fence is not None
        epoch, holder = self._fence
        statement = sql.SQL(_IS_OURS).format(epoch=sql.Literal(epoch), holder=sql.Literal(holder))
        return statement.as_bytes(self._live())

    def _connect(self) -> None:
        """Raise psycopg's errors; OSError: another program has the catalogue."""
        import psycopg

        self.close()
        self._connection = connect(self._url)
        if self._fence is not None:
            return
        try:
            self._execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        except psycopg.errors.LockNotAvailable:
            self.close()
            raise OSError(errno.EBUSY, "it is in use by another controller") from None

    def _roll_back(self) -> None:
        with contextlib.suppress(self._error, OSError):
            self._execute("ROLLBACK")

    def _live(self) -> psycopg.Connection:
        if self._connection is None:
            raise OSError(errno.ENOTCONN, f"there is no connection to {self.place}")
        return self._connection

    def _execute(self, statement: Any, values: Sequence[Any] = ()) -> psycopg.Cursor:
        return self._live().execute(statement, values or None)

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return told(self.place)


def _text(error: Exception) -> str:
    """An error of psycopg's in one line."""
    return " ".join(str(error).split()) or type(error).__name__
