"""The lease, and the transactions on it: what a database has to do for the takeover protocol.

The lease is one row. Every transaction compares the row's epoch before it changes anything. The database's
clock alone decides whether a lease has expired, so that clocks of controllers need not agree. row_after()
decides for every database; LeaseTable keeps the row in memory, and is the reference for their replies.

A lock of the database ends with the connection of its owner. Each is used once: a controller takes a new
number with each connection and writes it into the row. Two controllers could otherwise share a lock that the
database's side of a dead connection still holds, and a standby would be told of a death long after it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from clockwork.config.takeover import LEASE_NS
from clockwork.takeover.obedience import NO_LEADER, Leader


class Lease(NamedTuple):
    """The row. expires_ns: by the database's clock. lock: the holder's lock; 0: none yet."""

    leader: Leader
    expires_ns: int
    lock: int


class CatalogChange(NamedTuple):
    """A change of the catalogue; its number is one more than that of the change before."""

    number: int
    epoch: int
    key: str  # which caller's change
    name: str
    value: int


class ReadLease(NamedTuple):
    """Read the lease, and the changes after number ``since``. Every reply has both."""

    since: int


class RenewLease(NamedTuple):
    """Let the lease hold for LEASE_NS from now, if this holder has it. relock: take a new lock as well."""

    leader: Leader
    relock: bool
    since: int


class ClaimLease(NamedTuple):
    """Take the lease with the next epoch, if its epoch is this and it has expired or its lock is free."""

    epoch: int
    holder: str
    addresses: tuple[str, ...]
    lock: int  # the lock that was seen to be free; 0: by expiry
    since: int


class GiveLease(NamedTuple):
    """Give the lease to another controller, with the next epoch, if this holder has it."""

    leader: Leader
    holder: str  # the other controller
    addresses: tuple[str, ...]
    since: int


class CommitChange(NamedTuple):
    """Change the catalogue, if this holder has the lease."""

    leader: Leader
    key: str
    name: str
    value: int
    since: int


LeaseOperation: TypeAlias = ReadLease | RenewLease | ClaimLease | GiveLease | CommitChange


class LeaseReply(NamedTuple):
    """The reply to every operation, as of the end of its transaction."""

    is_done: bool
    lease: Lease
    now_ns: int  # the database's clock
    changes: tuple[CatalogChange, ...]  # those after ``since``


def row_after(
    lease: Lease, operation: LeaseOperation, now_ns: int, *, is_free: bool, new_lock: int
) -> Lease | None:
    """The row after an operation, for the transaction that has read it; None: the operation is not done.

    A CommitChange that is done leaves the row as it is; the change is made in the same transaction. is_free:
    whether nobody holds the row's lock. new_lock: a number that no lock had before; where the row has it
    afterwards, it is locked in the same transaction. now_ns: the database's clock.
    """
    if isinstance(operation, ReadLease):
        return lease
    expires_ns = now_ns + LEASE_NS
    if isinstance(operation, ClaimLease):
        if operation.epoch != lease.leader.epoch:
            return None
        # No renewal makes it last longer than LEASE_NS: the database's clock was set back since the last one.
        is_over = now_ns >= lease.expires_ns or lease.expires_ns - now_ns > LEASE_NS
        is_by_lock = is_free and operation.lock != 0 and operation.lock == lease.lock
        if not is_over and not is_by_lock:
            return None
        return Lease(_next(lease.leader, operation), expires_ns, new_lock)
    if operation.leader.epoch != lease.leader.epoch or operation.leader.holder != lease.leader.holder:
        return None
    if isinstance(operation, RenewLease):
        return Lease(lease.leader, expires_ns, new_lock if operation.relock else lease.lock)
    if isinstance(operation, GiveLease):
        return Lease(_next(lease.leader, operation), expires_ns, 0)
    return lease


def _next(leader: Leader, operation: ClaimLease | GiveLease) -> Leader:
    """The leader of the epoch after this leader's."""
    return Leader(leader.epoch + 1, operation.holder, operation.addresses, leader.cluster)


class LeaseTable:
    """The lease, the locks and the catalogue's changes in memory, with the transactions on them.

    cluster: the identity of the catalogue, made with it.
    """

    def __init__(self, cluster: str) -> None:
        self.lease = Lease(NO_LEADER._replace(cluster=cluster), 0, 0)
        self.changes: list[CatalogChange] = []
        self.values: dict[str, int] = {}  # the catalogue itself
        self.locks: dict[int, int] = {}  # number of each lock that is held, and its connection
        self._locks_made = 0

    def execute(self, operation: LeaseOperation, connection: int, now_ns: int) -> LeaseReply:
        """Carry out one transaction of a connection. now_ns: the database's clock."""
        is_done = self._carry_out(operation, connection, now_ns)
        return LeaseReply(is_done, self.lease, now_ns, tuple(self.changes[operation.since :]))

    def release(self, connection: int) -> list[int]:
        """End a connection. Returns the locks that are free now."""
        free = [lock for lock, owner in self.locks.items() if owner == connection]
        for lock in free:
            del self.locks[lock]
        return free

    def _carry_out(self, operation: LeaseOperation, connection: int, now_ns: int) -> bool:
        lease = self.lease
        is_free, new_lock = lease.lock not in self.locks, self._locks_made + 1
        after = row_after(lease, operation, now_ns, is_free=is_free, new_lock=new_lock)
        if after is None:
            return False
        if after.lock == new_lock:
            self._locks_made = new_lock
            self.locks[new_lock] = connection
        if isinstance(operation, CommitChange):
            number = len(self.changes) + 1
            change = CatalogChange(number, lease.leader.epoch, operation.key, operation.name, operation.value)
            self.changes.append(change)
            self.values[operation.name] = operation.value
        self.lease = after
        return True
