"""The lease, and the transactions on it: what a database has to do for the takeover protocol.

The lease is one row. Every transaction compares the row's epoch before it changes anything. The database's
clock alone decides whether a lease has expired, so that clocks of controllers need not agree. LeaseTable is
the reference: a database's own statements have to give the same replies.

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
        if isinstance(operation, ReadLease):
            return True
        if isinstance(operation, ClaimLease):
            return self._claim(operation, connection, now_ns)
        lease = self.lease
        if operation.leader.epoch != lease.leader.epoch or operation.leader.holder != lease.leader.holder:
            return False
        if isinstance(operation, RenewLease):
            lock = self._lock(connection) if operation.relock else lease.lock
            self.lease = Lease(lease.leader, now_ns + LEASE_NS, lock)
        elif isinstance(operation, GiveLease):
            leader = _next(lease.leader, operation.holder, operation.addresses)
            self.lease = Lease(leader, now_ns + LEASE_NS, 0)
        else:
            number = len(self.changes) + 1
            change = CatalogChange(number, lease.leader.epoch, operation.key, operation.name, operation.value)
            self.changes.append(change)
            self.values[operation.name] = operation.value
        return True

    def _claim(self, claim: ClaimLease, connection: int, now_ns: int) -> bool:
        lease = self.lease
        if claim.epoch != lease.leader.epoch:
            return False
        is_free = claim.lock != 0 and claim.lock == lease.lock and claim.lock not in self.locks
        if now_ns < lease.expires_ns and not is_free:
            return False
        leader = _next(lease.leader, claim.holder, claim.addresses)
        self.lease = Lease(leader, now_ns + LEASE_NS, self._lock(connection))
        return True

    def _lock(self, connection: int) -> int:
        self._locks_made += 1
        self.locks[self._locks_made] = connection
        return self._locks_made


def _next(leader: Leader, holder: str, addresses: tuple[str, ...]) -> Leader:
    """The leader of the epoch after this leader's."""
    return Leader(leader.epoch + 1, holder, addresses, leader.cluster)
