"""The transactions on the lease, as a database has to carry them out."""

from __future__ import annotations

from clockwork.config.takeover import LEASE_NS
from clockwork.takeover.lease import (
    ClaimLease,
    CommitChange,
    GiveLease,
    LeaseTable,
    ReadLease,
    RenewLease,
)
from clockwork.takeover.obedience import Leader

MS = 1_000_000
ALICE = Leader(1, "alice/1", ("alice",), "ours")
BOB = Leader(2, "bob/1", ("bob",), "ours")
ALICES, BOBS = 1, 2  # their connections


def claimed() -> LeaseTable:
    """A table whose lease alice took at 0."""
    table = LeaseTable("ours")
    reply = table.execute(ClaimLease(0, "alice/1", ("alice",), 0, 0), ALICES, 0)
    assert reply.is_done
    assert reply.lease.leader == ALICE
    return table


def bobs_claim(lock: int = 0, epoch: int = 1) -> ClaimLease:
    return ClaimLease(epoch, "bob/1", ("bob",), lock, 0)


def test_a_lease_holds_until_it_expires_by_the_databases_clock() -> None:
    table = claimed()
    assert not table.execute(bobs_claim(), BOBS, LEASE_NS - 1).is_done
    reply = table.execute(bobs_claim(), BOBS, LEASE_NS)
    assert reply.is_done
    assert reply.lease.leader == BOB
    assert reply.lease.expires_ns == 2 * LEASE_NS


def test_a_clock_that_is_set_back_does_not_make_a_lease_hold_longer() -> None:
    table = claimed()
    reply = table.execute(bobs_claim(), BOBS, -1)
    assert reply.is_done
    assert reply.lease.expires_ns == LEASE_NS - 1


def test_a_renewal_makes_it_hold_longer_even_after_it_has_expired() -> None:
    table = claimed()
    assert table.execute(RenewLease(ALICE, False, 0), ALICES, 5 * LEASE_NS).is_done
    assert not table.execute(bobs_claim(), BOBS, 6 * LEASE_NS - 1).is_done


def test_a_former_holder_renews_nothing() -> None:
    table = claimed()
    taken = table.execute(bobs_claim(), BOBS, LEASE_NS).lease
    reply = table.execute(RenewLease(ALICE, True, 0), ALICES, LEASE_NS + MS)
    assert not reply.is_done
    assert reply.lease == table.lease == taken


def test_of_two_claims_of_one_epoch_the_second_is_refused() -> None:
    table = claimed()
    assert table.execute(bobs_claim(), BOBS, LEASE_NS).is_done
    late = ClaimLease(1, "carol/1", ("carol",), 0, 0)
    assert not table.execute(late, 3, 3 * LEASE_NS).is_done


def test_the_end_of_the_holders_connection_frees_its_lock_and_with_it_the_lease() -> None:
    table = claimed()
    lock = table.lease.lock
    assert not table.execute(bobs_claim(lock), BOBS, MS).is_done
    assert table.release(ALICES) == [lock]
    assert table.execute(bobs_claim(lock), BOBS, MS).is_done


def test_a_new_lock_of_the_holder_makes_the_old_one_worthless() -> None:
    table = claimed()
    old = table.lease.lock
    table.release(ALICES)
    table.execute(RenewLease(ALICE, True, 0), 3, MS)
    assert table.lease.lock != old
    assert not table.execute(bobs_claim(old), BOBS, MS).is_done


def test_a_lease_that_was_given_has_the_next_epoch_and_no_lock() -> None:
    table = claimed()
    reply = table.execute(GiveLease(ALICE, "bob/1", ("bob",), 0), ALICES, MS)
    assert reply.is_done
    assert reply.lease.leader == BOB
    assert reply.lease.lock == 0
    assert not table.execute(GiveLease(ALICE, "carol/1", ("carol",), 0), ALICES, MS).is_done
    assert not table.execute(ClaimLease(2, "carol/1", ("carol",), 0, 0), 3, MS).is_done


def test_a_change_is_committed_by_the_holder_alone() -> None:
    table = claimed()
    reply = table.execute(CommitChange(ALICE, "first", "model", 1, 0), ALICES, MS)
    assert reply.is_done
    assert [(change.number, change.epoch, change.key) for change in reply.changes] == [(1, 1, "first")]
    table.execute(bobs_claim(), BOBS, LEASE_NS)
    late = table.execute(CommitChange(ALICE, "second", "model", 2, 1), ALICES, LEASE_NS)
    assert not late.is_done
    assert late.changes == ()
    assert table.values == {"model": 1}


def test_every_reply_has_the_changes_that_the_asker_lacks() -> None:
    table = claimed()
    for value in (1, 2, 3):
        table.execute(CommitChange(ALICE, f"change {value}", "model", value, 0), ALICES, MS)
    reply = table.execute(ReadLease(1), BOBS, MS)
    assert [change.value for change in reply.changes] == [2, 3]
    taken = table.execute(bobs_claim()._replace(since=2), BOBS, LEASE_NS)
    assert [change.value for change in taken.changes] == [3]
