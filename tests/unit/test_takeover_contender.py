"""Stories of a controller that contends for the lease: these events, exactly these commands."""

from __future__ import annotations

from clockwork.config.takeover import (
    CHANGES_AT_ONCE_MAX,
    DATABASE_LIMIT_NS,
    DATABASE_RETRY_NS,
    HAND_OVER_LIMIT_NS,
    LEASE_NS,
    LOOK_NS,
    RENEW_NS,
    RETURN_GRACE_NS,
)
from clockwork.takeover.contender import (
    Activate,
    AnnounceLeader,
    ApplyChanges,
    AwaitLock,
    ChangeAsked,
    ChangeEnded,
    Contender,
    ContenderCommand,
    DatabaseLost,
    DatabaseReplied,
    EndConnection,
    HandOverAsked,
    HandOverEnded,
    LeaseRole,
    LockFreed,
    QueryLease,
    StepDown,
)
from clockwork.takeover.lease import (
    CatalogChange,
    ClaimLease,
    CommitChange,
    GiveLease,
    Lease,
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
    Superseded,
    TellPeer,
    TimeCame,
)
from clockwork.takeover.obedience import NO_LEADER, Leader

MS = 1_000_000
ALICE = Leader(1, "alice/1", ("alice",))
BOB = Leader(2, "bob/1", ("bob",))
DATABASE_NS = 7_000_000_000_000  # the database's clock at our 0
CHANGE = CatalogChange(1, 1, "key", "model", 5)


def reply(leader: Leader, now_ns: int, *, left_ns: int = LEASE_NS, lock: int = 1, is_done: bool = True,
          changes: tuple[CatalogChange, ...] = ()) -> LeaseReply:  # fmt: skip
    return LeaseReply(
        is_done, Lease(leader, DATABASE_NS + now_ns + left_ns, lock), DATABASE_NS + now_ns, changes
    )


def query_of(commands: list[ContenderCommand]) -> QueryLease:
    [query] = [command for command in commands if isinstance(command, QueryLease)]
    return query


def standby(now_ns: int = 0) -> Contender:
    """Bob, who has seen alice renew her lease."""
    bob = Contender("bob/1", ("bob",), now_ns)
    first = query_of(bob.step(TimeCame(), now_ns))
    bob.step(DatabaseReplied(first.serial, reply(ALICE, now_ns, left_ns=LEASE_NS // 2)), now_ns)
    second = query_of(bob.step(TimeCame(), now_ns + LOOK_NS))
    commands = bob.step(DatabaseReplied(second.serial, reply(ALICE, now_ns + LOOK_NS)), now_ns + LOOK_NS)
    assert commands == [AwaitLock(1)]
    return bob


def active() -> Contender:
    """Alice, who has just taken the first lease."""
    alice = Contender("alice/1", ("alice",), 0)
    read = query_of(alice.step(TimeCame(), 0))
    claim = query_of(alice.step(DatabaseReplied(read.serial, reply(NO_LEADER, 0, left_ns=0, lock=0)), 0))
    assert claim.operation == ClaimLease(0, "alice/1", ("alice",), 0, 0)
    commands = alice.step(DatabaseReplied(claim.serial, reply(ALICE, 0)), 0)
    assert commands == [Activate(ALICE, 0), AnnounceLeader(ActiveIs(ALICE))]
    assert alice.due_ns() == RENEW_NS
    return alice


def test_a_standby_follows_the_catalogue_while_it_looks_at_the_lease() -> None:
    bob = standby()
    read = query_of(bob.step(TimeCame(), 2 * LOOK_NS))
    assert read.operation == ReadLease(0)
    commands = bob.step(
        DatabaseReplied(read.serial, reply(ALICE, 2 * LOOK_NS, changes=(CHANGE,))), 2 * LOOK_NS
    )
    assert commands == [ApplyChanges((CHANGE,))]
    assert query_of(bob.step(TimeCame(), 3 * LOOK_NS)).operation == ReadLease(1)


def test_a_standby_looks_again_at_the_moment_at_which_the_lease_expires() -> None:
    bob = standby()
    read = query_of(bob.step(TimeCame(), 2 * LOOK_NS))
    bob.step(DatabaseReplied(read.serial, reply(ALICE, 2 * LOOK_NS, left_ns=30 * MS)), 2 * LOOK_NS)
    assert bob.due_ns() == 2 * LOOK_NS + 30 * MS


def test_a_standby_claims_a_lease_that_has_expired_by_the_databases_clock() -> None:
    bob = standby()
    now_ns = 2 * LOOK_NS
    read = query_of(bob.step(TimeCame(), now_ns))
    claim = query_of(bob.step(DatabaseReplied(read.serial, reply(ALICE, now_ns, left_ns=0)), now_ns))
    assert claim.operation == ClaimLease(1, "bob/1", ("bob",), 0, 0)
    commands = bob.step(DatabaseReplied(claim.serial, reply(BOB, now_ns, changes=(CHANGE,), lock=2)), now_ns)
    assert commands == [ApplyChanges((CHANGE,)), Activate(BOB, 1), AnnounceLeader(ActiveIs(BOB))]


def test_a_standby_claims_a_lease_that_nobody_renews_after_the_databases_clock_was_set_back() -> None:
    bob = standby()
    hour_ns = 3_600_000 * MS
    began_ns = 2 * LOOK_NS
    for now_ns in range(began_ns, began_ns + LEASE_NS, LOOK_NS):
        read = query_of(bob.step(TimeCame(), now_ns))
        old = LeaseReply(True, Lease(ALICE, DATABASE_NS, 1), DATABASE_NS - hour_ns + now_ns, ())
        assert bob.step(DatabaseReplied(read.serial, old), now_ns) == []
    now_ns = began_ns + LEASE_NS
    read = query_of(bob.step(TimeCame(), now_ns))
    claim = query_of(bob.step(DatabaseReplied(read.serial, old), now_ns))
    assert isinstance(claim.operation, ClaimLease)


def test_a_standby_claims_at_once_when_the_holders_lock_is_free() -> None:
    bob = standby()
    claim = query_of(bob.step(LockFreed(1), LOOK_NS + MS))
    assert claim.operation == ClaimLease(1, "bob/1", ("bob",), 1, 0)


def test_a_standby_does_not_claim_by_a_lock_that_the_holder_has_replaced() -> None:
    bob = standby()
    assert bob.step(LockFreed(7), LOOK_NS + MS) == []


def test_a_lock_that_is_freed_during_a_query_is_claimed_by_after_it() -> None:
    bob = standby()
    read = query_of(bob.step(TimeCame(), 2 * LOOK_NS))
    assert bob.step(LockFreed(1), 2 * LOOK_NS) == []
    claim = query_of(bob.step(DatabaseReplied(read.serial, reply(ALICE, 2 * LOOK_NS)), 2 * LOOK_NS))
    assert claim.operation == ClaimLease(1, "bob/1", ("bob",), 1, 0)


def test_a_standby_whose_claim_comes_second_stays_one() -> None:
    bob = standby()
    claim = query_of(bob.step(LockFreed(1), LOOK_NS))
    carol = Leader(2, "carol/1", ("carol",))
    commands = bob.step(DatabaseReplied(claim.serial, reply(carol, LOOK_NS, lock=2, is_done=False)), LOOK_NS)
    assert commands == [AwaitLock(2)]
    assert bob.role is LeaseRole.STANDBY
    assert bob.leader == carol


def test_a_database_that_comes_back_leaves_the_holder_its_time_to_renew() -> None:
    bob = standby()
    bob.step(DatabaseLost(), 2 * LOOK_NS)
    now_ns = 60_000 * MS
    read = query_of(bob.step(TimeCame(), now_ns))
    commands = bob.step(DatabaseReplied(read.serial, reply(ALICE, now_ns, left_ns=-50_000 * MS)), now_ns)
    assert commands == []  # the lease has expired, and so would any have
    now_ns += RETURN_GRACE_NS
    read = query_of(bob.step(TimeCame(), now_ns))
    claim = query_of(bob.step(DatabaseReplied(read.serial, reply(ALICE, now_ns, left_ns=-1)), now_ns))
    assert isinstance(claim.operation, ClaimLease)


def test_an_active_renews_and_goes_on_without_the_database() -> None:
    alice = active()
    renewal = query_of(alice.step(TimeCame(), RENEW_NS))
    assert renewal.operation == RenewLease(ALICE, False, 0)
    now_ns = RENEW_NS + DATABASE_LIMIT_NS
    assert alice.step(TimeCame(), now_ns) == [EndConnection()]
    assert alice.role is LeaseRole.ACTIVE
    assert not alice.is_connected
    # A new connection needs a new lock.
    now_ns += DATABASE_RETRY_NS
    assert query_of(alice.step(TimeCame(), now_ns)).operation == RenewLease(ALICE, True, 0)


def test_an_active_refuses_changes_without_the_database_and_says_so() -> None:
    alice = active()
    alice.step(DatabaseLost(), MS)
    assert alice.step(ChangeAsked("key", "model", 5), MS) == [ChangeEnded("key", Fate.NO_DATABASE)]


def test_a_change_is_acknowledged_once_its_transaction_has_checked_the_epoch() -> None:
    alice = active()
    commit = query_of(alice.step(ChangeAsked("key", "model", 5), MS))
    assert commit.operation == CommitChange(ALICE, "key", "model", 5, 0)
    commands = alice.step(DatabaseReplied(commit.serial, reply(ALICE, MS, changes=(CHANGE,))), MS)
    assert commands == [ApplyChanges((CHANGE,)), ChangeEnded("key", Fate.DONE)]


def test_a_change_that_comes_after_a_takeover_is_not_done_and_ends_the_active() -> None:
    alice = active()
    commit = query_of(alice.step(ChangeAsked("key", "model", 5), MS))
    commands = alice.step(DatabaseReplied(commit.serial, reply(BOB, MS, is_done=False)), MS)
    assert commands[:3] == [ChangeEnded("key", Fate.NOT_DONE), StepDown(BOB), AnnounceLeader(ActiveIs(BOB))]
    assert alice.role is LeaseRole.STANDBY


def test_a_change_without_a_reply_is_of_unknown_outcome_and_applied_if_it_was_made() -> None:
    alice = active()
    alice.step(ChangeAsked("key", "model", 5), MS)
    assert ChangeEnded("key", Fate.UNKNOWN) in alice.step(DatabaseLost(), 2 * MS)
    now_ns = 2 * MS + DATABASE_RETRY_NS
    renewal = query_of(alice.step(TimeCame(), now_ns))
    commands = alice.step(DatabaseReplied(renewal.serial, reply(ALICE, now_ns, changes=(CHANGE,))), now_ns)
    assert commands == [ApplyChanges((CHANGE,))]


def test_changes_at_once_have_a_bound() -> None:
    alice = active()
    for number in range(CHANGES_AT_ONCE_MAX):
        alice.step(ChangeAsked(str(number), "model", number), MS)
    assert alice.step(ChangeAsked("last", "model", 0), MS) == [ChangeEnded("last", Fate.TOO_MANY)]


def test_an_active_stops_when_any_peer_knows_a_higher_epoch() -> None:
    for message in (Superseded(BOB), Beat(BOB), ActiveIs(BOB)):
        alice = active()
        commands = alice.step(Heard("worker", message), MS)
        assert commands[:2] == [StepDown(BOB), AnnounceLeader(ActiveIs(BOB))]
        assert alice.role is LeaseRole.STANDBY


def test_an_active_that_was_taken_over_while_it_stood_still_learns_it_from_the_database() -> None:
    alice = active()
    renewal = query_of(alice.step(TimeCame(), 10 * LEASE_NS))
    late = reply(BOB, 10 * LEASE_NS, is_done=False)
    assert StepDown(BOB) in alice.step(DatabaseReplied(renewal.serial, late), 10 * LEASE_NS)


def test_a_peer_that_knows_less_is_told_the_leader() -> None:
    assert active().step(Heard("worker", Beat(NO_LEADER)), MS) == [TellPeer("worker", ActiveIs(ALICE))]


def test_a_peer_of_another_cluster_ends_no_active() -> None:
    alice = active()
    stranger = Leader(9, "dave/1", ("dave",), "another")
    assert alice.step(Heard("worker", Beat(stranger)), MS) == [TellPeer("worker", ActiveIs(ALICE))]
    assert alice.step(Heard("worker", Superseded(stranger)), MS) == []
    assert alice.role is LeaseRole.ACTIVE


def test_a_reply_of_a_connection_that_was_given_up_is_ignored() -> None:
    bob = standby()
    read = query_of(bob.step(TimeCame(), 2 * LOOK_NS))
    bob.step(DatabaseLost(), 2 * LOOK_NS)
    assert bob.step(DatabaseReplied(read.serial, reply(ALICE, 2 * LOOK_NS, left_ns=-1)), 2 * LOOK_NS) == []


def test_a_controller_that_was_started_anew_does_not_take_the_lease_for_its_own() -> None:
    alice = Contender("alice/2", ("alice",), 0)
    read = query_of(alice.step(TimeCame(), 0))
    assert alice.step(DatabaseReplied(read.serial, reply(ALICE, 0)), 0) == []
    assert alice.role is LeaseRole.STANDBY


def test_a_hand_over_gives_the_lease_to_a_standby_that_has_read_the_catalogue() -> None:
    alice, bob = active(), standby()
    now_ns = LOOK_NS + MS
    commit = query_of(alice.step(ChangeAsked("key", "model", 5), now_ns))
    alice.step(DatabaseReplied(commit.serial, reply(ALICE, now_ns, changes=(CHANGE,))), now_ns)

    [offer] = alice.step(HandOverAsked("bob"), now_ns)
    assert offer == TellPeer("bob", HandOverOffer(ALICE, 1))
    read = query_of(bob.step(Heard("alice", HandOverOffer(ALICE, 1)), now_ns))
    commands = bob.step(DatabaseReplied(read.serial, reply(ALICE, now_ns, changes=(CHANGE,))), now_ns)
    ready = HandOverReady(1, "bob/1", ("bob",))
    assert commands == [ApplyChanges((CHANGE,)), TellPeer("alice", ready)]

    give = query_of(alice.step(Heard("bob", ready), now_ns))
    assert give.operation == GiveLease(ALICE, "bob/1", ("bob",), 1)
    assert alice.role is LeaseRole.ACTIVE
    commands = alice.step(DatabaseReplied(give.serial, reply(BOB, now_ns, lock=0)), now_ns)
    assert commands[:4] == [
        StepDown(BOB), AnnounceLeader(ActiveIs(BOB)), HandOverEnded("bob", ""), TellPeer("bob", HandedOver(BOB)),
    ]  # fmt: skip

    confirm = query_of(bob.step(Heard("alice", HandedOver(BOB)), now_ns))
    commands = bob.step(DatabaseReplied(confirm.serial, reply(BOB, now_ns, lock=0)), now_ns)
    assert commands[:2] == [Activate(BOB, 1), AnnounceLeader(ActiveIs(BOB))]
    # It has no lock yet, so that it renews at once.
    assert query_of(commands).operation == RenewLease(BOB, True, 1)


def test_a_standby_that_has_not_read_far_enough_reads_again_before_it_accepts() -> None:
    bob = standby()
    read = query_of(bob.step(TimeCame(), 2 * LOOK_NS))
    assert bob.step(Heard("alice", HandOverOffer(ALICE, 1)), 2 * LOOK_NS) == []
    commands = bob.step(DatabaseReplied(read.serial, reply(ALICE, 2 * LOOK_NS)), 2 * LOOK_NS)
    again = query_of(commands)
    assert again.operation == ReadLease(0)
    commands = bob.step(
        DatabaseReplied(again.serial, reply(ALICE, 2 * LOOK_NS, changes=(CHANGE,))), 2 * LOOK_NS
    )
    assert TellPeer("alice", HandOverReady(1, "bob/1", ("bob",))) in commands


def test_a_hand_over_to_nobody_ends_and_the_active_stays() -> None:
    alice = active()
    alice.step(HandOverAsked("bob"), MS)
    [busy] = alice.step(HandOverAsked("carol"), MS)
    assert busy == HandOverEnded("carol", "a hand-over to bob is under way")
    commands = alice.step(TimeCame(), MS + HAND_OVER_LIMIT_NS)
    assert HandOverEnded("bob", "the standby did not take the lease in time") in commands
    assert alice.role is LeaseRole.ACTIVE


def test_a_standby_hands_nothing_over() -> None:
    commands = standby().step(HandOverAsked("carol"), LOOK_NS)
    assert commands == [HandOverEnded("carol", "alice/1 is active")]


def test_a_claim_whose_reply_was_lost_is_found_in_the_database() -> None:
    bob = standby()
    bob.step(LockFreed(1), LOOK_NS)
    bob.step(DatabaseLost(), LOOK_NS)
    now_ns = LOOK_NS + DATABASE_RETRY_NS
    read = query_of(bob.step(TimeCame(), now_ns))
    commands = bob.step(DatabaseReplied(read.serial, reply(BOB, now_ns, lock=2)), now_ns)
    assert commands[:2] == [Activate(BOB, 0), AnnounceLeader(ActiveIs(BOB))]
