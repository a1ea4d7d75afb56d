"""A standby's copy of the catalogue, which follows the changes of the active controller.

A takeover then reads nothing that grows. The changes name what they have written; where a change cannot be
followed (older ones were forgotten, or were undone), everything is read again.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from clockwork.controller.catalog.database import (
    CHANGES,
    ROUTES,
    TABLES,
    UNUSED,
    VERSIONS,
    Row,
    Rows,
    Table,
    read_rows,
)
from clockwork.controller.catalog.postgres import (
    POSTGRES,
    UNDONE,
    connect,
    migrate_schema,
    shown,
    told,
)
from clockwork.controller.lease.table import CatalogStand

if TYPE_CHECKING:
    import psycopg

_TABLES = {table.name: table for table in TABLES}
_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_STAND = f"""
SELECT (SELECT coalesce(max(number), 0) FROM changes),
    coalesce((SELECT value FROM about WHERE subject = '{UNDONE}'), '')
"""


class CatalogCopy:
    """The catalogue as of its newest change that was read. For one thread; abandon() ends its connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection | None = None
        self._good: dict[str, dict[Row, Row]] = {}  # rows by table and key; of the changes, the newest alone
        self._bad: dict[tuple[str, Row], Row] = {}  # rows that differ from their checksums
        self.stand = CatalogStand(-1, "")
        self.reloads = 0  # times that everything was read

    def open(self) -> None:
        """Bring the schema up to date, and read everything. Raises OSError, ConfigError."""
        with told(shown(self._url)):
            migrate_schema(self._live(), shown(self._url))
        self.follow()

    def follow(self) -> None:
        """Read what has changed. Raises OSError: the next call connects again."""
        try:
            with told(shown(self._url)):
                connection = self._live()
                stand = CatalogStand(*connection.execute(_STAND).fetchone() or (0, ""))
                if stand != self.stand:
                    with connection.transaction():
                        connection.execute(_SNAPSHOT)
                        self._read(connection)
        except BaseException:
            self.close()
            raise

    def rows(self) -> Rows:
        """The catalogue. The caller owns the lists."""
        good = {name: [row for _, row in sorted(self._good[name].items())] for name in _TABLES}
        return Rows(good, [(_TABLES[name], row) for (name, _), row in self._bad.items()])

    def close(self) -> None:
        """End the connection; what was read stays."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ----- inside ------------------------------------------------------------------------------

    def _live(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = connect(self._url)
        return self._connection

    def _read(self, connection: psycopg.Connection) -> None:
        """Read the changes since the last one, or everything, as of one moment."""
        stand = CatalogStand(*connection.execute(_STAND).fetchone() or (0, ""))
        since = self.stand.number
        touched: list[str] | None = None
        if since >= 0 and stand.undone == self.stand.undone and stand.number >= since:
            touched = self._touched(connection, since, stand.number)
        if touched is None:
            self._read_all(connection)
        else:
            for text in touched:
                name, _, version = text.partition("@")
                if version:
                    self._read_row(connection, VERSIONS, (name, int(version)))
                else:
                    self._read_row(connection, ROUTES, (name,))
            self._read_row(connection, CHANGES, (stand.number,))
            self._read_unused(connection)
        newest = self._good[CHANGES.name].get((stand.number,))
        self._good[CHANGES.name] = {} if newest is None else {(stand.number,): newest}
        self.stand = stand

    def _touched(self, connection: psycopg.Connection, since: int, newest: int) -> list[str] | None:
        """The versions and names of the changes after one; None: they do not say, and all is to be read."""
        statement = "SELECT number, what FROM changes WHERE number > %s ORDER BY number"
        found = connection.execute(statement, (since,)).fetchall()
        oldest = connection.execute("SELECT min(number) FROM changes").fetchone()
        if oldest is None or oldest[0] is None or oldest[0] > since + 1:
            return None  # changes after `since` were forgotten
        touched: dict[str, None] = {}
        for _, text in found:
            with contextlib.suppress(ValueError):
                if what := json.loads(text):
                    touched |= dict.fromkeys(str(item)[1:] for item in what)
                    continue
            return None  # of a program that does not list what it has written
        return list(touched)

    def _read_all(self, connection: psycopg.Connection) -> None:
        self.reloads += 1
        rows = read_rows(connection, POSTGRES)
        self._good = {
            name: {_TABLES[name].key(row): row for row in found} for name, found in rows.good.items()
        }
        self._bad = {(table.name, table.key(row)): row for table, row in rows.bad}

    def _read_row(self, connection: psycopg.Connection, table: Table, key: Row) -> None:
        self._good[table.name].pop(key, None)
        self._bad.pop((table.name, key), None)
        found = connection.execute(POSTGRES.get[table.name], key).fetchone()
        if found is not None:
            *columns, checksum = found
            row = tuple(columns)
            if table.checksum(row) == checksum:
                self._good[table.name][key] = row
            else:
                self._bad[table.name, key] = row

    def _read_unused(self, connection: psycopg.Connection) -> None:
        """Read the packages without a version, of which there are few: they go when their files do."""
        keys = [tuple(row[:1]) for row in connection.execute("SELECT digest FROM unused")]
        for key in [
            *self._good[UNUSED.name],
            *(key for name, key in self._bad if name == UNUSED.name),
            *keys,
        ]:
            self._read_row(connection, UNUSED, key)
