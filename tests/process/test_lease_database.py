"""The lease in PostgreSQL, the changes that it guards, and a standby's copy of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.catalog import postgres
from clockwork.controller.catalog.database import ABOUT, CHANGES, TABLES
from clockwork.controller.catalog.postgres import Fence, LeaseOver, PostgresDatabase, read_postgres
from clockwork.controller.catalog.records import Change
from clockwork.controller.catalog.store import Catalog
from clockwork.controller.lease import table
from clockwork.controller.lease.copy import CatalogCopy
from clockwork.controller.lease.table import LeaseAnswer, PostgresLease
from clockwork.takeover.lease import ClaimLease, GiveLease, Lease, ReadLease, RenewLease
from clockwork.takeover.obedience import Leader
from tests.catalogues import apply
from tests.postgres import PostgresServer, running_postgres
from tests.process.test_catalog_databases import ROUTE, record

EXPIRED = "UPDATE lease SET expires_ns = 0"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> str:
    """A catalogue without models."""
    url = server.new_database()
    copied = CatalogCopy(url)
    copied.open()
    copied.close()
    return url


class Contenders:
    """Two controllers' connections to the lease."""

    def __init__(self, url: str) -> None:
        self.alice, self.bob = PostgresLease(url), PostgresLease(url)

    def close(self) -> None:
        self.alice.close()
        self.bob.close()


@pytest.fixture
def two(url: str) -> Iterator[Contenders]:
    contenders = Contenders(url)
    yield contenders
    contenders.close()


def claim(lease: PostgresLease, name: str, epoch: int, lock: int = 0) -> LeaseAnswer:
    return lease.execute(ClaimLease(epoch, name, (f"tcp://{name}:1",), lock, 0), 0)


def renewed(lease: PostgresLease, leader: Leader) -> bool:
    return lease.execute(RenewLease(leader, False, 0), 0).reply.is_done


def test_a_claim_waits_until_the_lease_has_expired(server: PostgresServer, url: str, two: Contenders) -> None:
    first = claim(two.alice, "alice", 0)
    assert first.reply.is_done
    alice = first.reply.lease.leader
    assert (alice.epoch, alice.holder, alice.addresses) == (1, "alice", ("tcp://alice:1",))
    assert alice.cluster == server.sql(url, "SELECT value FROM about WHERE subject = 'id'")[0][0]
    assert not claim(two.bob, "bob", 1).reply.is_done
    assert renewed(two.alice, alice)
    server.sql(url, EXPIRED)
    assert renewed(two.alice, alice), "nobody else has it"
    server.sql(url, EXPIRED)
    second = claim(two.bob, "bob", 1)
    assert (second.reply.is_done, second.reply.lease.leader.epoch) == (True, 2)
    assert not renewed(two.alice, alice)
    assert not two.alice.execute(GiveLease(alice, "carol", (), 0), 0).reply.is_done
    assert not claim(two.alice, "alice", 1).reply.is_done, "of an epoch that is over"
    found = two.alice.execute(ReadLease(0), 0).reply.lease
    assert found == second.reply.lease


def test_the_lock_of_a_holder_is_free_once_its_connection_has_ended(two: Contenders) -> None:
    lock = claim(two.alice, "alice", 0).reply.lease.lock
    assert lock > 0
    assert not two.bob.execute(ReadLease(0), lock).is_free
    assert not claim(two.bob, "bob", 1, lock).reply.is_done
    two.alice.close()
    answer = two.bob.execute(ReadLease(0), lock)
    while not answer.is_free:  # PostgreSQL reads the end of the connection at any moment
        answer = two.bob.execute(ReadLease(0), lock)
    taken = claim(two.bob, "bob", 1, lock)
    assert taken.reply.is_done
    assert taken.reply.lease.lock not in (0, lock)
    assert not two.alice.execute(ReadLease(0), taken.reply.lease.lock).is_free


def test_a_row_that_has_changed_since_it_was_read_is_not_replaced(
    server: PostgresServer, url: str, two: Contenders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller may be stopped between reading the lease and claiming it."""
    claim(two.alice, "alice", 0)
    server.sql(url, EXPIRED)
    real = table.row_after

    def stopped(*arguments: Any, **more: Any) -> Lease | None:
        monkeypatch.setattr(table, "row_after", real)
        assert claim(two.alice, "alice", 1).reply.is_done
        return real(*arguments, **more)

    monkeypatch.setattr(table, "row_after", stopped)
    late = claim(two.bob, "bob", 1)
    assert not late.reply.is_done
    assert late.reply.lease.leader.holder == "alice"
    assert late.reply.lease.leader.epoch == 2


def test_a_given_up_lease_is_claimed_at_once_and_workers_are_named(two: Contenders) -> None:
    alice = claim(two.alice, "alice", 0).reply.lease.leader
    two.alice.name_workers(alice, ["w-0", "w-1"])
    two.alice.release(alice)
    taken = claim(two.bob, "bob", 1)
    assert taken.reply.is_done
    assert taken.workers == ["w-0", "w-1"]
    two.alice.name_workers(alice, ["w-2"])
    two.alice.release(alice)
    assert two.bob.execute(ReadLease(0), 0).workers == ["w-0", "w-1"]
    assert renewed(two.bob, taken.reply.lease.leader)


def test_an_operation_on_a_lost_connection_fails_and_the_next_one_connects(
    server: PostgresServer, two: Contenders
) -> None:
    alice = claim(two.alice, "alice", 0).reply.lease.leader
    two.alice.abandon()
    with pytest.raises(OSError, match="Input/output error"):
        renewed(two.alice, alice)
    assert renewed(two.alice, alice)


# ----- the fence ---------------------------------------------------------------------------------


def test_a_controller_that_was_taken_over_makes_no_change(
    server: PostgresServer, url: str, two: Contenders, tmp_path: Path
) -> None:
    alice = claim(two.alice, "alice", 0).reply.lease.leader
    rows = read_postgres(url)
    catalog = Catalog(tmp_path, None, url, Fence(alice.epoch, alice.holder), rows)
    catalog.open()
    try:
        assert apply(catalog, Change(save=[record("a")])) == 1
        begun = catalog.change(Change(save=[record("b")]))
        (commit,) = next(begun)  # the transaction is open when the lease changes hands
        server.sql(url, EXPIRED)
        assert claim(two.bob, "bob", 1).reply.is_done, "an open transaction does not delay it"
        assert not isinstance(commit, int)
        with pytest.raises(LeaseOver, match="another controller is active"):
            commit.sync()
        for _ in range(2):
            with pytest.raises(LeaseOver):
                apply(catalog, Change(save=[record("c")]))
        with pytest.raises(LeaseOver):
            list(catalog.remove("0" * 64))
    finally:
        catalog.close()
    assert server.sql(url, "SELECT name FROM versions") == [("a",)]
    assert server.sql(url, "SELECT number FROM changes") == [(1,)]


def test_a_holder_of_the_lease_and_a_program_that_takes_the_catalogue_exclude_each_other(
    server: PostgresServer, url: str, two: Contenders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "POSTGRES_LOCK_S", 1)
    claim(two.alice, "alice", 0)
    with pytest.raises(Exception, match="in use by another controller"):
        PostgresDatabase(url)
    two.alice.close()
    alone = PostgresDatabase(url)
    with pytest.raises(OSError, match="in use by another program"):
        two.bob.execute(ReadLease(0), 0)
    alone.close()
    assert two.bob.execute(ReadLease(0), 0).reply.is_done


# ----- a standby's copy --------------------------------------------------------------------------


def assert_same(copied: CatalogCopy, url: str) -> None:
    """The copy is what the database has, apart from older changes and what no change writes."""
    copy, real = copied.rows(), read_postgres(url)
    for one in TABLES:
        if one not in (CHANGES, ABOUT):
            assert sorted(copy.good[one.name]) == sorted(real.good[one.name]), one.name
    assert copy.number == real.number
    assert len(copy.good[CHANGES.name]) == bool(real.number)
    assert sorted(copy.bad, key=str) == sorted(real.bad, key=str)


def test_a_copy_reads_what_changes_have_written_and_no_more(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    copied = CatalogCopy(url)
    copied.open()
    catalog = Catalog(tmp_path, None, url)
    catalog.open()
    try:
        for change in (
            Change(save=[record("a"), record("a", 2), record("m")]),
            Change(save=[record("m", aside="it overran")], route=ROUTE),
            Change(remove=[record("a")], packages=["0" * 64]),
            Change(unroute="m"),
            Change(remove=[record("a", 2)]),
        ):
            apply(catalog, change)
            copied.follow()
            assert_same(copied, url)
        for number in range(5):  # several at once
            apply(catalog, Change(save=[record("n", number + 1)]))
        copied.follow()
        assert_same(copied, url)
        assert copied.reloads == 1
        server.sql(url, "UPDATE versions SET aside = 'rotten' WHERE name = 'm'")
        apply(catalog, Change(save=[record("m", 2)], remove=[record("m")]))
        server.sql(url, "UPDATE versions SET aside = 'rotten' WHERE name = 'm'")
        copied.follow()
        assert_same(copied, url)
        assert len(copied.rows().bad) == 1
    finally:
        catalog.close()
        copied.close()


def test_a_copy_reads_everything_where_changes_were_forgotten_or_undone(
    server: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CATALOG_CHANGES_KEPT", 3)
    copied = CatalogCopy(url)
    copied.open()
    catalog = Catalog(tmp_path, None, url)
    catalog.open()
    try:
        for number in range(4):
            apply(catalog, Change(save=[record("m", number + 1)]))
        copied.follow()
        assert_same(copied, url)
        assert copied.reloads == 2
        database = catalog._database
        assert isinstance(database, PostgresDatabase)
        steps = catalog.change(Change(save=[record("undone")]))
        (commit,) = next(steps)
        assert not isinstance(commit, int)
        commit.sync()
        before = list(database._before)
        copied.follow()
        assert_same(copied, url)
        database._undo(5, before)
        copied.follow()
        assert_same(copied, url)
        assert copied.reloads == 3
        assert "undone" not in [row[0] for row in copied.rows().good["versions"]]
    finally:
        catalog.close()
        copied.close()
