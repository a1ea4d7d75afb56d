"""The catalogue in PostgreSQL, where several controllers share it: database.py's schema, through psycopg.

One controller at a time has the catalogue: a lock of its session (an advisory lock), which ends with the
connection. A controller that has lost its connection connects again for the next change, and makes it only
if nobody has changed anything meanwhile. Whether a commit holds whose reply was lost is then read from the
number of the newest change.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clockwork.config.controller import CATALOG_CHANGES_KEPT, POSTGRES_LOCK_S, POSTGRES_TIMEOUT_S
from clockwork.controller.catalog.database import (
    CHANGES,
    Before,
    Commit,
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

_LOCK = 0x636C6F636B  # "clock", the number of the advisory lock of the active controller


def check_url(url: str) -> None:
    """Raise ConfigError unless this is a URL of PostgreSQL without a secret, and psycopg is there."""
    if not url.startswith(SCHEMES):
        raise ConfigError(f"a catalogue is {SCHEMES[0]}USER@HOST/DATABASE, or in --data; not {_shown(url)}")
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
        raise ConfigError(f"{_shown(url)}: {error}") from None
    if has_secret:
        raise ConfigError(
            f"{_shown(url)} has a password, which every user of the machine can read in arguments: put it into a file "
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
                raise ConfigError(f"there is no catalogue in {_shown(url)}")
            about = "SELECT value FROM about WHERE subject = 'schema'"
            check_schema(schema_number(connection.execute(about).fetchone()), _shown(url))
            return read_rows(connection, POSTGRES)
    except psycopg.Error as error:
        raise ConfigError(f"the catalogue in {_shown(url)} cannot be read: {_text(error)}") from None


def _shown(url: str) -> str:
    """A URL without its password."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"
    return "a URL that cannot be read"


class PostgresDatabase:
    """A catalogue in PostgreSQL, of which this controller has the lock."""

    has_own_backup = True

    def __init__(self, url: str) -> None:
        """Raise ConfigError where it cannot be opened, or another controller has it."""
        check_url(url)
        import psycopg

        self._error = psycopg.Error
        self._url = url
        self._connection: psycopg.Connection | None = None
        self._open: Commit | None = None
        self._number = 0  # of the newest change that is known to hold
        self._begun: list[int] = []  # numbers of the changes of the open transaction
        self._before: list[Before] = []  # rows before the open transaction
        self._unknown: tuple[int, list[Before]] | None = None
        """A commit that was refused and may hold: its newest number, and the rows before it."""
        try:
            self._connect()
            self._migrate()
            assert self._connection is not None
            self.rows: Rows = read_rows(self._connection, POSTGRES)
        except psycopg.Error as error:
            self.close()
            raise ConfigError(f"the catalogue in {self.place} cannot be used: {_text(error)}") from None
        except OSError as error:
            self.close()
            raise ConfigError(f"the catalogue in {self.place} cannot be used: {error.strerror}") from None
        except BaseException:
            self.close()
            raise
        self._number = self.rows.number

    @property
    def place(self) -> str:
        return _shown(self._url)

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
        number = max(self._begun)
        try:
            with self._told():
                self._execute("COMMIT")
        except OSError as error:
            commit.error = self._refused(error, number)
        if commit.error is None:
            self._number = number

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

    def _refused(self, error: OSError, number: int) -> OSError | None:
        """The error of a commit; None: it holds, although its reply was lost."""
        self._roll_back()
        self._unknown = number, self._before
        try:
            self._ensure(is_asked=True)
        except OSError as second:
            return NotUndone(error.errno, f"{error.strerror}, and asking again: {second.strerror}")
        return None if self._number == number else error

    def _ensure(self, *, is_asked: bool = False) -> None:
        """Have a connection that has the lock, to a catalogue that is as it was left. Raises OSError.

        is_asked: a commit whose end is not known is accepted where it holds, instead of being undone.
        """
        with self._told():
            if self._connection is None or self._connection.closed or self._connection.broken:
                self._connect()
            elif self._unknown is None:
                return
            found = self._newest()
        unknown, self._unknown = self._unknown, None
        if unknown is None or found != unknown[0]:
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
                self._undo(*unknown)
        except OSError:
            self._roll_back()
            self._unknown = unknown
            raise

    def _undo(self, number: int, rows: Sequence[Before]) -> None:
        """Put back what a commit has changed that was refused."""
        self._execute("BEGIN")
        undo(self._live(), POSTGRES, rows)
        self._execute("COMMIT")
        self._number = self._newest()

    def _write(self, changes: Sequence[Write]) -> None:
        for write in changes:
            self._before.append(before(self._live(), POSTGRES, write))
            table, row, is_removal = write
            if is_removal:
                self._execute(POSTGRES.remove[table.name], row)
                continue
            put(self._live(), POSTGRES, table, row)
            if table is CHANGES:
                self._begun.append(row[0])
                self._execute(POSTGRES.forget_changes, (row[0] - CATALOG_CHANGES_KEPT,))

    def _connect(self) -> None:
        """Raise psycopg's errors; OSError: another controller has the catalogue."""
        import psycopg

        self.close()
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=POSTGRES_TIMEOUT_S,
            application_name="clockwork",
            tcp_user_timeout=POSTGRES_TIMEOUT_S * 1000,
        )
        self._connection = connection
        timeout = f"{POSTGRES_TIMEOUT_S}s"
        self._execute("SELECT set_config('statement_timeout', %s, false)", (timeout,))
        self._execute("SELECT set_config('idle_in_transaction_session_timeout', %s, false)", (timeout,))
        self._execute("SET synchronous_commit = on")
        # PostgreSQL may take a moment to notice that the process is gone that had the lock.
        self._execute("SELECT set_config('lock_timeout', %s, false)", (f"{POSTGRES_LOCK_S}s",))
        try:
            self._execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        except psycopg.errors.LockNotAvailable:
            self.close()
            raise OSError(errno.EBUSY, "it is in use by another controller") from None

    def _migrate(self) -> None:
        self._execute("BEGIN")
        try:
            (there,) = self._execute("SELECT to_regclass('about') IS NOT NULL").fetchone() or (False,)
            about = "SELECT value FROM about WHERE subject = 'schema'"
            found = schema_number(self._execute(about).fetchone()) if there else 0
            migrate(self._live(), POSTGRES, found, self.place)
            self._execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _newest(self) -> int:
        (number,) = self._execute("SELECT max(number) FROM changes").fetchone() or (None,)
        return int(number or 0)

    def _roll_back(self) -> None:
        with contextlib.suppress(self._error, OSError):
            self._execute("ROLLBACK")

    def _live(self) -> psycopg.Connection:
        if self._connection is None:
            raise OSError(errno.ENOTCONN, f"there is no connection to {self.place}")
        return self._connection

    def _execute(self, statement: Any, values: Sequence[Any] = ()) -> psycopg.Cursor:
        return self._live().execute(statement, values or None)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn errors of psycopg into OSErrors, as all failures of storage are."""
        try:
            yield
        except self._error as error:
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} ({self.place}: {_text(error)})") from error
        except UnicodeError as error:
            raise OSError(errno.EINVAL, f"a text that PostgreSQL cannot hold: {error}") from error


def _text(error: Exception) -> str:
    """An error of psycopg's in one line."""
    return " ".join(str(error).split()) or type(error).__name__
