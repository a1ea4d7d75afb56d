"""The lease's row in PostgreSQL: the transactions of clockwork.takeover.lease, on a connection of their own.

row_after() decides from the row as it was read, and the row is then replaced only if it still is what was
read. So no transaction waits for this process, which may be stopped at any moment: one that held the row
would keep every standby from claiming it.

The lock of the holder is an advisory lock of its session. Its number is drawn anew for each connection.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from clockwork.config.controller import LEASE_LOCK_TIMEOUT
from clockwork.controller.catalog.postgres import UNDONE, connect, share, shown, told
from clockwork.takeover.lease import (
    CatalogChange,
    ClaimLease,
    Lease,
    LeaseOperation,
    LeaseReply,
    ReadLease,
    RenewLease,
    row_after,
)
from clockwork.takeover.obedience import Leader

if TYPE_CHECKING:
    import psycopg

_READ = f"""
SELECT epoch, holder, addresses, expires_ns, lock, workers,
    (SELECT value FROM about WHERE subject = 'id'),
    (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint,
    (SELECT coalesce(max(number), 0) FROM changes),
    coalesce((SELECT value FROM about WHERE subject = '{UNDONE}'), ''),
    CASE WHEN %s::bigint = 0 THEN false ELSE pg_try_advisory_xact_lock_shared(%s::bigint) END
FROM lease
"""
_STANDBYS = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND NOT granted
    AND classid::bigint = %s AND objid::bigint = %s
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_REPLACE = """
UPDATE lease SET epoch = %s, holder = %s, addresses = %s, expires_ns = %s, lock = %s
WHERE epoch = %s AND holder = %s AND expires_ns = %s AND lock = %s
"""
_RELEASE = "UPDATE lease SET holder = '', expires_ns = 0, lock = 0 WHERE epoch = %s AND holder = %s"
_NAME = "UPDATE lease SET workers = %s WHERE epoch = %s AND holder = %s"


class CatalogStand(NamedTuple):
    """How far the catalogue has come: the number of its newest change, and a word that differs once changes
    were undone."""

    number: int
    undone: str


class LeaseAnswer(NamedTuple):
    """The answer of the database to an operation on the lease."""

    reply: LeaseReply
    stand: CatalogStand
    workers: Sequence[str]  # names of the workers that the holder has, or the last one had
    standbys: int = 0  # those that wait for the lock of the holder, at a renewal


class OwnConnection:
    """A connection of one thread, which others can end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._guard = threading.Lock()  # held to use the connection's descriptor, and to replace it
        self._connection: psycopg.Connection | None = None

    def live(self) -> psycopg.Connection:
        """The connection, which is made where there is none. Raises psycopg's errors, OSError."""
        if self._connection is None:
            connection = connect(self.url)
            if not share(connection):
                connection.close()
                raise OSError(
                    errno.EBUSY,
                    f"the catalogue in {shown(self.url)} is in use by another program: by `clockwork restore`, or by "
                    "a controller of an earlier release",
                )
            with self._guard:
                self._connection = connection
        return self._connection

    def abandon(self) -> None:
        """Have a call that is under way end with an error, unless it makes a connection. Any thread."""
        with self._guard:
            if self._connection is None or self._connection.closed:
                return
            with (
                contextlib.suppress(OSError),
                socket.socket(fileno=os.dup(self._connection.fileno())) as copy,
            ):
                copy.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        with self._guard:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class LockWaiter:
    """Waits for a lock of a holder, for one thread; abandon() is for any."""

    def __init__(self, url: str) -> None:
        self._own = OwnConnection(url)
        self.abandon = self._own.abandon
        self.close = self._own.close

    def wait(self, lock: int) -> None:
        """Return once nobody has a lock. Raises OSError: the connection is gone, or was abandoned."""
        try:
            with told(shown(self._own.url)):
                connection = self._own.live()
                # The server does not notice the end of a connection that waits for a lock.
                connection.execute("SELECT set_config('lock_timeout', %s, false)", (LEASE_LOCK_TIMEOUT,))
                while not self._has_waited(connection, lock):
                    continue
                connection.execute("SELECT pg_advisory_unlock_shared(%s)", (lock,))
        except BaseException:
            self.close()
            raise

    def _has_waited(self, connection: psycopg.Connection, lock: int) -> bool:
        """Wait for a while. Returns whether nobody has the lock, which is then shared with other standbys."""
        from psycopg.errors import LockNotAvailable

        try:
            connection.execute("SELECT pg_advisory_lock_shared(%s)", (lock,))
        except LockNotAvailable:
            return False
        return True


class PostgresLease:
    """The row, for one thread; abandon() is for any."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._own = OwnConnection(url)
        self.abandon = self._own.abandon
        self.close = self._own.close

    def execute(self, operation: LeaseOperation) -> LeaseAnswer:
        """Carry out an operation.

        Connects where there is no connection. Raises OSError: the connection is gone then, and with it the
        lock; the operation may have been carried out.
        """
        try:
            with told(shown(self._url)):
                return self._carry_out(self._own.live(), operation)
        except BaseException:
            self.close()
            raise

    def name_workers(self, leader: Leader, names: Sequence[str]) -> None:
        """Keep the names of the workers for the controller that follows. Raises OSError."""
        with told(shown(self._url)):
            self._own.live().execute(_NAME, (json.dumps(list(names)), leader.epoch, leader.holder))

    def release(self, leader: Leader) -> None:
        """Let another controller claim the lease at once, if this leader has it. Raises OSError."""
        with told(shown(self._url)):
            self._own.live().execute(_RELEASE, (leader.epoch, leader.holder))

    # ----- inside ------------------------------------------------------------------------------

    def _carry_out(self, connection: psycopg.Connection, operation: LeaseOperation) -> LeaseAnswer:
        claimed_by = operation.lock if isinstance(operation, ClaimLease) else 0
        lease, is_free, found = _read(connection, claimed_by, operation.since)
        new_lock = 1 + secrets.randbits(62)
        after = row_after(lease, operation, found.reply.now_ns, is_free=is_free, new_lock=new_lock)
        if isinstance(operation, ReadLease) or after is None:
            return found._replace(reply=found.reply._replace(is_done=after is not None))
        is_locked = after.lock == new_lock
        if is_locked:
            connection.execute("SELECT pg_advisory_lock(%s)", (new_lock,))
        # A renewal that a crash of the database takes back harms nobody; another epoch would be given twice.
        safety = "off" if isinstance(operation, RenewLease) else "on"
        connection.execute("SELECT set_config('synchronous_commit', %s, false)", (safety,))
        is_done = connection.execute(_REPLACE, (*_columns(after), *_identity(lease))).rowcount == 1
        if is_locked and not is_done:
            connection.execute("SELECT pg_advisory_unlock(%s)", (new_lock,))
        _, _, found = _read(connection, 0, operation.since)
        found = found._replace(reply=found.reply._replace(is_done=is_done))
        if isinstance(operation, RenewLease):
            lock = found.reply.lease.lock
            (count,) = connection.execute(_STANDBYS, (lock >> 32, lock & 0xFFFFFFFF)).fetchone() or (0,)
            found = found._replace(standbys=count)
        return found


def _columns(lease: Lease) -> tuple[Any, ...]:
    leader = lease.leader
    return leader.epoch, leader.holder, json.dumps(leader.addresses), lease.expires_ns, lease.lock


def _identity(lease: Lease) -> tuple[Any, ...]:
    return lease.leader.epoch, lease.leader.holder, lease.expires_ns, lease.lock


def _read(connection: psycopg.Connection, claimed_by: int, since: int) -> tuple[Lease, bool, LeaseAnswer]:
    """The row; whether a lock is free; and the answer as long as nothing is changed."""
    row = connection.execute(_READ, (claimed_by, claimed_by)).fetchone()
    if row is None:
        raise OSError(errno.EIO, "the catalogue has no row for the lease: somebody has removed it")
    epoch, holder, addresses, expires_ns, lock, workers, cluster, now_ns, number, undone, is_free = row
    leader = Leader(epoch, holder, tuple(map(str, json.loads(addresses))), cluster)
    lease = Lease(leader, expires_ns, lock)
    changes = (CatalogChange(number, epoch, "", "", 0),) if number > since else ()
    reply = LeaseReply(True, lease, now_ns, changes)
    return lease, is_free, LeaseAnswer(reply, CatalogStand(number, undone), json.loads(workers))
