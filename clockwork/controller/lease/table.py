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
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from clockwork.config.controller import (
    LEASE_LOCK_TIMEOUT,
    NOTES_MAX,
    STANDBY_HEARD_NS,
    STANDBY_SIGN_BYTES_MAX,
)
from clockwork.controller.catalog.database import ABOUT
from clockwork.controller.catalog.postgres import UNDONE, connect, share, shown, told
from clockwork.controller.standing import Takeover, Why, takeovers_of, text_of
from clockwork.system.clock import SECOND
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
SELECT a.application_name, coalesce(host(a.client_addr), ''),
    (coalesce(extract(epoch FROM clock_timestamp() - a.query_start), 0) * 1000000000)::bigint
FROM pg_stat_activity a
    LEFT JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory' AND NOT l.granted
WHERE a.datname = current_database() AND CASE
    WHEN l.pid IS NULL THEN a.application_name LIKE 'clockwork %%'
        AND a.query_start > clock_timestamp() - make_interval(secs => %s)
    ELSE l.mode = 'ShareLock' AND l.classid::bigint = %s AND l.objid::bigint = %s END
ORDER BY a.application_name LIMIT %s
"""
"""The standbys that wait for a lock, or are between two waits. query_start is hidden from users without a
right to it."""
_ABOUT = "SELECT value FROM about WHERE subject = %s"
_TELL = """
INSERT INTO about SELECT %s, %s, %s WHERE EXISTS (SELECT FROM lease WHERE epoch = %s AND holder = %s)
ON CONFLICT (subject) DO UPDATE SET value = excluded.value, checksum = excluded.checksum
"""
_TAKEOVERS = "takeovers"  # Subject of the row of `about` with the takeovers, as text_of() words them
_WORD = "word"  # ... with the last word of an active that ended in order: its epoch, and why
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


class LockSign(NamedTuple):
    """A standby, as its connection tells that waits for the lock of the active.

    address: its own for clients; "": not known. machine: its network address, as the database knows it;
    "": not known. read: number of the newest change that it had read when it last began to wait, at heard_ns
    (Unix time); -1: not known.
    """

    address: str
    machine: str
    read: int
    heard_ns: int


class LeaseAnswer(NamedTuple):
    """The answer of the database to an operation on the lease."""

    reply: LeaseReply
    stand: CatalogStand
    workers: Sequence[str]  # names of the workers that the holder has, or the last one had
    standbys: Sequence[LockSign] = ()  # those of the holder, at a renewal
    takeovers: str | None = None  # as text_of() words them, at a renewal and after a claim; None: not read


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


def sign_of(address: str, read: int) -> str:
    """The name of a standby's connection, by which the active knows it. PostgreSQL would cut it off after
    STANDBY_SIGN_BYTES_MAX as well."""
    return f"clockwork {read} {address.removeprefix('tcp://')}"[:STANDBY_SIGN_BYTES_MAX]


def read_sign(sign: str) -> tuple[str, int]:
    """The address for clients and the number of a change in a connection's name; "" and -1: it has none."""
    _, _, rest = sign.partition(" ")
    number, _, address = rest.partition(" ")
    try:
        read = int(number)
    except ValueError:
        return "", -1
    return (address if "://" in address or not address else f"tcp://{address}"), max(-1, read)


class LockWaiter:
    """Waits for a lock of a holder, for one thread; abandon() is for any.

    address: of this controller, for clients. read: asked for the newest change of the catalogue that this
    controller knows.
    """

    def __init__(self, url: str, address: str = "", read: Callable[[], int] = lambda: -1) -> None:
        self._address, self._read = address, read
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
                # The connection may outlive this wait, and is no standby's any more.
                connection.execute(
                    "SELECT pg_advisory_unlock_shared(%s), set_config('application_name', 'clockwork', false)",
                    (lock,),
                )
        except BaseException:
            self.close()
            raise

    def _has_waited(self, connection: psycopg.Connection, lock: int) -> bool:
        """Wait for a while. Returns whether nobody has the lock, which is then shared with other standbys."""
        from psycopg.errors import LockNotAvailable

        sign = sign_of(self._address, self._read())
        connection.execute("SELECT set_config('application_name', %s, false)", (sign,))
        try:
            connection.execute("SELECT pg_advisory_lock_shared(%s)", (lock,))
        except LockNotAvailable:
            return False
        return True


class PostgresLease:
    """The row, for one thread; abandon() is for any.

    takeover: by which this controller has become the next of its data directory, before it has the lease.
    """

    def __init__(self, url: str, takeover: Takeover | None = None) -> None:
        self._url = url
        self._takeover = takeover
        self._watched = (0, 0)  # epoch and expiry of the last one's lease, as they were read first
        self._renewed = 0  # the epoch in which its holder was seen to renew it; 0: none
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

    def release(self, leader: Leader, why: Why = Why.ENDED) -> None:
        """Let another controller claim the lease at once, if this leader has it. Raises OSError."""
        with told(shown(self._url)):
            self._tell(self._own.live(), leader, _WORD, f"{leader.epoch} {why.value}")
            self._own.live().execute(_RELEASE, (leader.epoch, leader.holder))

    # ----- inside ------------------------------------------------------------------------------

    def _carry_out(self, connection: psycopg.Connection, operation: LeaseOperation) -> LeaseAnswer:
        claimed_by = operation.lock if isinstance(operation, ClaimLease) else 0
        lease, is_free, found = _read(connection, claimed_by, operation.since)
        self._watch(lease)
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
        if is_done and isinstance(operation, ClaimLease):
            takeovers = self._count(connection, lease, after.leader, is_by_lock=operation.lock != 0)
            return found._replace(takeovers=takeovers)
        if isinstance(operation, RenewLease):
            standbys = _standbys(connection, found.reply.lease.lock)
            return found._replace(standbys=standbys, takeovers=_about(connection, _TAKEOVERS))
        return found

    def _watch(self, lease: Lease) -> None:
        """Note whether a holder renews its lease: the claim that follows is a takeover, and no start."""
        seen = (lease.leader.epoch, lease.expires_ns)
        if seen[0] != self._watched[0]:
            self._watched = seen
        elif lease.leader.holder and seen != self._watched:
            self._renewed = seen[0]

    def _count(self, connection: psycopg.Connection, last: Lease, leader: Leader, *, is_by_lock: bool) -> str:
        """Keep the takeover by which this leader has the lease, if it is one. Returns all that are kept."""
        text = _about(connection, _TAKEOVERS)
        takeover, self._takeover = self._takeover, None
        if self._renewed and self._renewed == last.leader.epoch:
            word = _about(connection, _WORD)
            why = why_ended(last, word, is_by_lock=is_by_lock)
            takeover = Takeover(time.time_ns(), why, _first(last.leader), _first(leader))
        if takeover is not None:
            text = text_of(takeovers_of(text).after(takeover))
            connection.execute("SELECT set_config('synchronous_commit', 'off', false)")  # workers wait
            self._tell(connection, leader, _TAKEOVERS, text)
        return text

    def _tell(self, connection: psycopg.Connection, leader: Leader, subject: str, value: str) -> None:
        """Write a row of `about`, if this leader has the lease."""
        row = (subject, value)
        connection.execute(_TELL, (*row, ABOUT.checksum(row), leader.epoch, leader.holder))


def why_ended(lease: Lease, word: str, *, is_by_lock: bool) -> Why:
    """The reason why a lease could be claimed. word: the last one of an active. is_by_lock: whether the lock
    of its holder was free."""
    if not lease.leader.holder:
        return Why.HANDED_OVER if word == f"{lease.leader.epoch} {Why.HANDED_OVER.value}" else Why.ENDED
    return Why.KILLED if is_by_lock else Why.STOPPED


def _first(leader: Leader) -> str:
    """A leader's address for clients."""
    return leader.addresses[0] if leader.addresses else ""


def _about(connection: psycopg.Connection, subject: str) -> str:
    (value,) = connection.execute(_ABOUT, (subject,)).fetchone() or ("",)
    return str(value)


def _standbys(connection: psycopg.Connection, lock: int) -> list[LockSign]:
    values = (STANDBY_HEARD_NS / SECOND, lock >> 32, lock & 0xFFFFFFFF, NOTES_MAX)
    now_ns = time.time_ns()
    return [
        LockSign(address, machine, read, now_ns - max(0, silent_ns))
        for sign, machine, silent_ns in connection.execute(_STANDBYS, values)
        for address, read in (read_sign(sign),)
    ]


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
