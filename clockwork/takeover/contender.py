"""A controller's side of the takeover: standby or active, by the lease.

A standby reads the lease and the catalogue's changes every LOOK_NS, so that a takeover has nothing to read
that grows. It claims the lease when the database says that it has expired, and at once when the database
tells it that the holder's lock is free, which is how it learns of a SIGKILL.

An active renews the lease every RENEW_NS. It does not stop when it cannot: the database is no single point,
and peers refuse its orders once another is active. It stops when it learns of a higher epoch, from the
database or from any peer. Changes need no peer's help: the transaction of a change compares the epoch, so an
active that was taken over cannot make another.

A hand-over goes in three steps. The active offers, and the standby reads the catalogue up to the number in
the offer. The active gives it the lease and stops. The standby confirms in the database that the lease is its
own, and begins. Inference goes on at the active until the lease has changed.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias

from clockwork.config.takeover import (
    BEAT_NS,
    CHANGE_LIMIT_NS,
    CHANGES_AT_ONCE_MAX,
    DATABASE_LIMIT_NS,
    DATABASE_RETRY_NS,
    HAND_OVER_LIMIT_NS,
    LEASE_NS,
    LOOK_NS,
    RENEW_NS,
    RETURN_GRACE_NS,
)
from clockwork.takeover.lease import (
    CatalogChange,
    ClaimLease,
    CommitChange,
    GiveLease,
    Lease,
    LeaseOperation,
    LeaseReply,
    ReadLease,
    RenewLease,
)
from clockwork.takeover.messages import (
    ActiveIs,
    Beat,
    Fate,
    HandedOver,
    HandOverOffer,
    HandOverReady,
    Heard,
    Message,
    TellPeer,
    TimeCame,
)
from clockwork.takeover.obedience import NO_LEADER, Leader, Obedience

_FOREVER_NS = 1 << 62


class LeaseRole(enum.Enum):
    """The two parts that a controller can have."""

    STANDBY = "standby"
    ACTIVE = "active"


# ----- events ------------------------------------------------------------------------------------


class DatabaseReplied(NamedTuple):
    """The reply to a QueryLease."""

    serial: int
    reply: LeaseReply


class DatabaseLost(NamedTuple):
    """The connection to the database broke. The queries under way have no reply."""


class LockFreed(NamedTuple):
    """The lock that this standby waits for is free."""

    lock: int


class HandOverAsked(NamedTuple):
    """An operator has this controller hand over to the standby at an address."""

    target: str


class ChangeAsked(NamedTuple):
    """A caller asks for a change of the catalogue."""

    key: str
    name: str
    value: int


ContenderEvent: TypeAlias = (
    Heard | TimeCame | DatabaseReplied | DatabaseLost | LockFreed | HandOverAsked | ChangeAsked
)

# ----- commands ----------------------------------------------------------------------------------


class QueryLease(NamedTuple):
    """Have the database carry out a transaction, on a connection that is made where there is none."""

    serial: int
    operation: LeaseOperation


class EndConnection(NamedTuple):
    """End the connection to the database. Replies that come later are of no use."""


class AwaitLock(NamedTuple):
    """Have the database say when this lock is free; takes the place of the lock that was awaited before."""

    lock: int


class AnnounceLeader(NamedTuple):
    """Tell every connected peer, and the other controllers."""

    message: ActiveIs


class Activate(NamedTuple):
    """Begin to serve. The catalogue has been applied up to ``number``."""

    leader: Leader
    number: int


class StepDown(NamedTuple):
    """Stop serving. Requests without an answer are answered with NotActive."""

    leader: Leader


class ApplyChanges(NamedTuple):
    """The catalogue's next changes, in order."""

    changes: tuple[CatalogChange, ...]


class ChangeEnded(NamedTuple):
    """Answer a ChangeAsked."""

    key: str
    fate: Fate


class HandOverEnded(NamedTuple):
    """Answer a HandOverAsked. reason: "" if it was done."""

    target: str
    reason: str


ContenderCommand: TypeAlias = (
    QueryLease
    | EndConnection
    | AwaitLock
    | TellPeer
    | AnnounceLeader
    | Activate
    | StepDown
    | ApplyChanges
    | ChangeEnded
    | HandOverEnded
)


class _Commit(NamedTuple):
    key: str
    limit_ns: int


class Contender:
    """The state of a controller in the protocol. Times are of this process's clock.

    holder: a name that no other start of any controller has.
    """

    def __init__(self, holder: str, addresses: tuple[str, ...], now_ns: int) -> None:
        self.holder = holder
        self.addresses = addresses
        self.role = LeaseRole.STANDBY
        self.own = NO_LEADER  # this controller as a leader, of the last epoch that it had
        self.number = 0  # the catalogue's changes that have been applied
        self.is_connected = False  # the database has replied since the connection was last lost
        self._known = Obedience()
        self._lease = Lease(NO_LEADER, 0, 0)
        self._commands: list[ContenderCommand] = []

        self._serial = 0
        self._pending = 0  # serial of the query about the lease under way; 0: none
        self._pending_limit_ns = 0
        self._query_ns = now_ns  # time of the next query about the lease
        self._commits: dict[int, _Commit] = {}

        # Fields of a standby:
        self._is_settled = False  # the holder has had its time to renew since the database came back
        self._settling = (0, 0)  # epoch and expiry of the lease when it came back
        self._settles_ns = 0
        self._seen = (0, 0)  # epoch and expiry of the lease as they were last seen to change
        self._seen_ns = 0
        self._awaited = 0  # the lock that is awaited; 0: none
        self._freed = 0  # the lock that was last said to be free
        self._offer: tuple[str, HandOverOffer] | None = None
        self._beat_ns = now_ns

        # Fields of an active:
        self._has_lock = False
        self._target = ""  # address of the standby to which it hands over; "": none
        self._ready: HandOverReady | None = None
        self._hand_over_limit_ns = 0

    @property
    def leader(self) -> Leader:
        """The leader of the highest epoch that this controller knows."""
        return self._known.leader

    def due_ns(self) -> int:
        """Return the time at which TimeCame is due."""
        due_ns = self._pending_limit_ns if self._pending else self._query_ns
        for commit in self._commits.values():
            due_ns = min(due_ns, commit.limit_ns)
            break  # limits ascend
        if self.role is LeaseRole.STANDBY:
            return min(due_ns, self._beat_ns)
        return min(due_ns, self._hand_over_limit_ns if self._target else _FOREVER_NS)

    def step(self, event: ContenderEvent, now_ns: int) -> list[ContenderCommand]:
        """Process an event. Returns what is to be done, in order."""
        if isinstance(event, Heard):
            self._hear(event.source, event.message, now_ns)
        elif isinstance(event, DatabaseReplied):
            self._take_reply(event.serial, event.reply, now_ns)
        elif isinstance(event, DatabaseLost):
            self._lose_database(now_ns)
        elif isinstance(event, LockFreed):
            self._freed = event.lock
            if not self._pending:
                self._claim_if_freed(now_ns)
        elif isinstance(event, HandOverAsked):
            self._offer_lease(event.target, now_ns)
        elif isinstance(event, ChangeAsked):
            self._change(event, now_ns)
        self._keep_times(now_ns)
        commands, self._commands = self._commands, []
        return commands

    # ----- peers ---------------------------------------------------------------------------------

    def _hear(self, source: str, message: Message, now_ns: int) -> None:
        if isinstance(message, HandOverReady):
            is_ours = source == self._target and message.epoch == self.own.epoch
            if self.role is LeaseRole.ACTIVE and is_ours:
                self._ready = message
                self._query_ns = now_ns
            return
        known, leader = self.leader, message.leader
        # A peer may come from another cluster. Before the database has replied, all do.
        is_ours = leader.cluster == self._lease.leader.cluster
        if is_ours and self._learn(leader, now_ns):
            if leader.holder == self.holder:
                self._query_ns = now_ns  # a hand-over, or a claim whose reply was lost
        elif isinstance(message, Beat) and known.epoch and (leader.epoch < known.epoch or not is_ours):
            self._commands.append(TellPeer(source, ActiveIs(known)))
        if isinstance(message, HandOverOffer) and is_ours and leader.epoch >= self.leader.epoch:
            self._offer = (source, message)
            self._query_ns = now_ns

    def _learn(self, leader: Leader, now_ns: int) -> bool:
        """Take note of a leader. An active that learns of a higher epoch than its own steps down."""
        if not self._known.see(leader):
            return False
        if self.role is LeaseRole.ACTIVE:
            self._step_down(now_ns)
        return True

    # ----- the database --------------------------------------------------------------------------

    def _query(self, operation: LeaseOperation, now_ns: int) -> None:
        self._serial += 1
        self._pending = self._serial
        self._pending_limit_ns = now_ns + DATABASE_LIMIT_NS
        self._commands.append(QueryLease(self._serial, operation))

    def _ask_lease(self, now_ns: int) -> None:
        """Send the query about the lease that is due."""
        if self.role is LeaseRole.STANDBY:
            self._query(ReadLease(self.number), now_ns)
            self._query_ns = now_ns + LOOK_NS
        elif self._ready is not None:
            ready, self._ready = self._ready, None
            self._query(GiveLease(self.own, ready.holder, ready.addresses, self.number), now_ns)
        else:
            self._query(RenewLease(self.own, not self._has_lock, self.number), now_ns)
            self._query_ns = now_ns + RENEW_NS

    def _lose_database(self, now_ns: int) -> None:
        """Give up the connection: what it was asked may have been done or not, and its lock ends."""
        self.is_connected = self._is_settled = self._has_lock = False
        self._pending = self._awaited = self._freed = 0
        self._query_ns = now_ns + DATABASE_RETRY_NS
        commits, self._commits = self._commits, {}
        for commit in commits.values():
            self._commands.append(ChangeEnded(commit.key, Fate.UNKNOWN))

    def _take_reply(self, serial: int, reply: LeaseReply, now_ns: int) -> None:
        commit = self._commits.pop(serial, None)
        if commit is None and serial != self._pending:
            return  # of a connection that was given up
        self._apply(reply.changes)
        if commit is not None:
            self._commands.append(ChangeEnded(commit.key, Fate.DONE if reply.is_done else Fate.NOT_DONE))
            self._learn(reply.lease.leader, now_ns)
            return
        self._pending = 0
        if not self.is_connected:
            self.is_connected = True
            self._await_holder(reply.lease, now_ns)
        self._lease = reply.lease
        if self.role is LeaseRole.ACTIVE and reply.lease.leader == self.own:
            self._has_lock = reply.lease.lock != 0
        elif self.role is LeaseRole.ACTIVE:
            target = self._target if reply.is_done else ""
            self._learn(reply.lease.leader, now_ns)
            if target:
                self._commands.append(TellPeer(target, HandedOver(reply.lease.leader)))
        else:
            self._consider(reply, now_ns)

    def _apply(self, changes: tuple[CatalogChange, ...]) -> None:
        """Apply the changes that are new. Replies may overtake each other."""
        new = tuple(change for change in changes if change.number > self.number)
        if new:
            self.number = new[-1].number
            self._commands.append(ApplyChanges(new))

    # ----- as a standby --------------------------------------------------------------------------

    def _await_holder(self, lease: Lease, now_ns: int) -> None:
        """Leave the holder its time to renew: its lease may have expired while the database was away."""
        self._is_settled = False
        self._settling = (lease.leader.epoch, lease.expires_ns)
        self._settles_ns = now_ns + RETURN_GRACE_NS if lease.leader.holder else now_ns
        self._awaited = self._freed = 0

    def _consider(self, reply: LeaseReply, now_ns: int) -> None:
        """Decide by the lease as the database has it."""
        lease = reply.lease
        leader = lease.leader
        self._known.see(leader)
        if leader.holder == self.holder and leader.epoch == self.leader.epoch > self.own.epoch:
            self._begin(leader, now_ns)
            return
        renewed = (leader.epoch, lease.expires_ns) != self._settling
        self._is_settled = self._is_settled or renewed or now_ns >= self._settles_ns
        if self._offer is not None:
            self._accept_offer(now_ns)
        if not self._is_settled:
            return
        remaining_ns = lease.expires_ns - reply.now_ns
        if remaining_ns <= 0 or self._is_forgotten(lease, remaining_ns, now_ns):
            self._claim(0, now_ns)
            return
        self._query_ns = min(self._query_ns, now_ns + remaining_ns)
        if lease.lock and lease.lock != self._awaited:
            self._awaited = lease.lock
            self._commands.append(AwaitLock(lease.lock))
        self._claim_if_freed(now_ns)

    def _is_forgotten(self, lease: Lease, remaining_ns: int, now_ns: int) -> bool:
        """Whether nobody renews a lease that lasts too long, because the database's clock was set back."""
        seen = (lease.leader.epoch, lease.expires_ns)
        if seen != self._seen:
            self._seen, self._seen_ns = seen, now_ns
        return remaining_ns > LEASE_NS and now_ns - self._seen_ns >= LEASE_NS

    def _claim_if_freed(self, now_ns: int) -> None:
        if self.role is LeaseRole.STANDBY and self._freed and self._freed == self._lease.lock:
            self._claim(self._freed, now_ns)
            self._freed = 0

    def _claim(self, lock: int, now_ns: int) -> None:
        claim = ClaimLease(self._lease.leader.epoch, self.holder, self.addresses, lock, self.number)
        self._query(claim, now_ns)

    def _accept_offer(self, now_ns: int) -> None:
        """Answer an offer, once the catalogue has been read far enough."""
        assert self._offer is not None
        source, offer = self._offer
        if offer.leader == self.leader and self.number < offer.number:
            self._query_ns = now_ns  # this reply was older than the offer
            return
        self._offer = None
        if offer.leader == self.leader:
            ready = HandOverReady(offer.leader.epoch, self.holder, self.addresses)
            self._commands.append(TellPeer(source, ready))

    def _begin(self, leader: Leader, now_ns: int) -> None:
        self.role = LeaseRole.ACTIVE
        self.own = leader
        self._has_lock = self._lease.lock != 0
        self._awaited = self._freed = 0
        self._offer = self._ready = None
        self._target = ""
        self._query_ns = now_ns + RENEW_NS if self._has_lock else now_ns
        self._commands.append(Activate(leader, self.number))
        self._commands.append(AnnounceLeader(ActiveIs(leader)))

    # ----- as the active -------------------------------------------------------------------------

    def _step_down(self, now_ns: int) -> None:
        self.role = LeaseRole.STANDBY
        self._has_lock = False
        self._await_holder(self._lease, now_ns)
        self._query_ns = self._beat_ns = now_ns
        self._commands.append(StepDown(self.leader))
        self._commands.append(AnnounceLeader(ActiveIs(self.leader)))
        if self._target:
            is_done = self._target in self.leader.addresses
            self._end_hand_over("" if is_done else f"{self.leader.holder} took over meanwhile")

    def _offer_lease(self, target: str, now_ns: int) -> None:
        if self.role is not LeaseRole.ACTIVE:
            self._commands.append(HandOverEnded(target, f"{self.leader.holder} is active"))
        elif self._target:
            self._commands.append(HandOverEnded(target, f"a hand-over to {self._target} is under way"))
        else:
            self._target = target
            self._ready = None
            self._hand_over_limit_ns = now_ns + HAND_OVER_LIMIT_NS
            self._commands.append(TellPeer(target, HandOverOffer(self.own, self.number)))

    def _end_hand_over(self, reason: str) -> None:
        self._commands.append(HandOverEnded(self._target, reason))
        self._target, self._ready = "", None

    def _change(self, asked: ChangeAsked, now_ns: int) -> None:
        fate = None
        if self.role is not LeaseRole.ACTIVE:
            fate = Fate.NOT_DONE
        elif not self.is_connected:
            fate = Fate.NO_DATABASE
        elif len(self._commits) >= CHANGES_AT_ONCE_MAX:
            fate = Fate.TOO_MANY
        if fate is not None:
            self._commands.append(ChangeEnded(asked.key, fate))
            return
        self._serial += 1
        self._commits[self._serial] = _Commit(asked.key, now_ns + CHANGE_LIMIT_NS)
        commit = CommitChange(self.own, asked.key, asked.name, asked.value, self.number)
        self._commands.append(QueryLease(self._serial, commit))

    # ----- time ----------------------------------------------------------------------------------

    def _keep_times(self, now_ns: int) -> None:
        """Do whatever is due."""
        oldest = next(iter(self._commits.values()), None)
        is_commit_late = oldest is not None and now_ns >= oldest.limit_ns
        if is_commit_late or (self._pending and now_ns >= self._pending_limit_ns):
            self._commands.append(EndConnection())
            self._lose_database(now_ns)
        if self._target and now_ns >= self._hand_over_limit_ns:
            self._end_hand_over("the standby did not take the lease in time")
        if not self._pending and now_ns >= self._query_ns:
            self._ask_lease(now_ns)
        if self.role is LeaseRole.STANDBY and now_ns >= self._beat_ns:
            self._beat_ns = now_ns + BEAT_NS
            for address in self.leader.addresses[:1]:
                if address in self.addresses:
                    break  # of an earlier start of this controller
                self._commands.append(TellPeer(address, Beat(self.leader)))
