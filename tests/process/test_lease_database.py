"""The lease in PostgreSQL, the changes that it guards, and a standby's copy of the catalogue."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clockwork.config.takeover import RETURN_GRACE_NS
from clockwork.controller.catalog import postgres
from clockwork.controller.catalog.database import ABOUT, CHANGES, TABLES
from clockwork.controller.catalog.postgres import Fence, LeaseOver, PostgresDatabase, read_postgres
from clockwork.controller.catalog.records import Change
from clockwork.controller.catalog.store import Catalog
from clockwork.controller.lease import keeper as lease_keeper
from clockwork.controller.lease import table
from clockwork.controller.lease.copy import CatalogCopy
from clockwork.controller.lease.keeper import LeaseKeeper, LeaseLost, LeaseWon
from clockwork.controller.lease.table import LeaseAnswer, LockWaiter, PostgresLease
from clockwork.controller.standing import NO_TAKEOVERS, Takeover, Why, takeovers_of
from clockwork.system.clock import now_ns
from clockwork.takeover.lease import ClaimLease, GiveLease, Lease, ReadLease, RenewLease
from clockwork.takeover.obedience import Leader
from tests.catalogues import apply
from tests.patience import PATIENCE_S, eventually
from tests.postgres import PostgresServer, running_postgres
from tests.process.cluster import Program
from tests.process.test_catalog_databases import ROUTE, record

EXPIRED = "UPDATE lease SET expires_ns = 0"
AWAITED = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND NOT granted"


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
    return lease.execute(ClaimLease(epoch, name, (f"tcp://{name}:1",), lock, 0))


def claim_of(lease: PostgresLease) -> Leader:
    """The present leader."""
    return lease.execute(ReadLease(0)).reply.lease.leader


def renewed(lease: PostgresLease, leader: Leader) -> bool:
    return lease.execute(RenewLease(leader, False, 0)).reply.is_done


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
    assert not two.alice.execute(GiveLease(alice, "carol", (), 0)).reply.is_done
    assert not claim(two.alice, "alice", 1).reply.is_done, "of an epoch that is over"
    found = two.alice.execute(ReadLease(0)).reply.lease
    assert found == second.reply.lease


def test_the_lock_of_a_holder_is_free_once_its_connection_has_ended(
    server: PostgresServer, url: str, two: Contenders
) -> None:
    lock = claim(two.alice, "alice", 0).reply.lease.lock
    assert lock > 0
    assert not claim(two.bob, "bob", 1, lock).reply.is_done
    waiters = [LockWaiter(url), LockWaiter(url)]  # of two standbys
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(waiter.wait, lock) for waiter in waiters]
        eventually(lambda: server.sql(url, AWAITED) == [(2,)], "both wait")
        assert renewed(two.alice, claim_of(two.bob))
        two.alice.close()
        for wait in waits:
            wait.result(PATIENCE_S)
    for waiter in waiters:
        waiter.close()
    taken = claim(two.bob, "bob", 1, lock)
    assert taken.reply.is_done
    assert taken.reply.lease.lock not in (0, lock)


def test_a_wait_for_a_lock_can_be_given_up(server: PostgresServer, url: str, two: Contenders) -> None:
    lock = claim(two.alice, "alice", 0).reply.lease.lock
    waiter = LockWaiter(url)
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(waiter.wait, lock)
        eventually(lambda: server.sql(url, AWAITED) == [(1,)], "it waits")
        waiter.abandon()
        with pytest.raises(OSError, match="Input/output error"):
            wait.result(PATIENCE_S)
    eventually(lambda: server.sql(url, AWAITED) == [(0,)], "the database has noticed")
    waiter.close()


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
    assert two.bob.execute(ReadLease(0)).workers == ["w-0", "w-1"]
    assert renewed(two.bob, taken.reply.lease.leader)


def test_a_holder_sees_who_waits_for_its_lock_and_what_each_has_read(url: str, two: Contenders) -> None:
    claimed = claim(two.alice, "alice", 0).reply.lease
    waiters = [LockWaiter(url, "tcp://bob:1", lambda: 7), LockWaiter(url)]

    def seen() -> list[tuple[str, int]]:
        found = two.alice.execute(RenewLease(claimed.leader, False, 0)).standbys
        return [(sign.address, sign.read) for sign in found]

    assert seen() == []
    with ThreadPoolExecutor(len(waiters)) as pool:
        waits = [pool.submit(waiter.wait, claimed.lock) for waiter in waiters]
        eventually(lambda: seen() == [("", -1), ("tcp://bob:1", 7)], "both are seen")
        two.alice.close()
        for wait in waits:
            wait.result(PATIENCE_S)
    for waiter in waiters:
        waiter.close()


@pytest.mark.parametrize("how", list(Why))
def test_the_takeovers_of_a_cluster_are_kept_with_their_reasons(
    server: PostgresServer, url: str, two: Contenders, how: Why
) -> None:
    leader = claim(two.alice, "alice", 0).reply.lease.leader
    claim_of(two.bob)
    assert renewed(two.alice, leader)
    lease = two.bob.execute(ReadLease(0)).reply.lease  # it has seen the holder live
    if how is Why.KILLED:
        two.alice.close()
        took = eventually(
            lambda: next(iter([a for a in [claim(two.bob, "bob", 1, lease.lock)] if a.reply.is_done]), None),
            "its lock is free",
        )
    else:
        if how is Why.STOPPED:
            server.sql(url, EXPIRED)
        else:
            two.alice.release(leader, how)
        took = claim(two.bob, "bob", 1)
    assert took.reply.is_done
    assert took.takeovers is not None
    (found,) = takeovers_of(took.takeovers).recent
    assert (found.why, found.before, found.after) == (how, "tcp://alice:1", "tcp://bob:1")
    two.bob.release(took.reply.lease.leader)
    started = claim(two.alice, "alice", 2)
    assert started.takeovers == took.takeovers, "it took over from nobody whom it had seen live"
    again = two.alice.execute(RenewLease(started.reply.lease.leader, False, 0))
    assert again.takeovers == took.takeovers, "who did not get the answer to its claim reads them later"
    assert read_postgres(url).about("takeovers") == took.takeovers, "with the right checksum"


def test_a_takeover_within_a_data_directory_is_kept_with_those_of_the_cluster(url: str) -> None:
    takeover = Takeover(5, Why.HANDED_OVER, "a", "b")
    lease = PostgresLease(url, takeover)
    assert takeovers_of(claim(lease, "b", 0).takeovers or "") == NO_TAKEOVERS.after(takeover)
    lease.close()


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


def test_a_commit_whose_reply_is_lost_is_told_from_the_next_active_s(
    server: PostgresServer, url: str, two: Contenders, tmp_path: Path
) -> None:
    """Which makes a change of the same number, before this one has a connection again."""
    alice = claim(two.alice, "alice", 0).reply.lease.leader
    catalog = Catalog(tmp_path / "a", None, url, Fence(alice.epoch, "alice"), read_postgres(url))
    catalog.open()
    try:
        apply(catalog, Change(save=[record("a")]))
        (commit,) = next(catalog.change(Change(save=[record("lost")])))
        assert not isinstance(commit, int)
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'clockwork'"
        server.sql(url, end)
        server.sql(url, EXPIRED)
        two.bob.close()
        assert claim(two.bob, "bob", 1).reply.is_done
        other = Catalog(tmp_path / "b", None, url, Fence(2, "bob"), read_postgres(url))
        other.open()
        assert apply(other, Change(save=[record("b")])) == catalog.number
        other.close()
        with pytest.raises(OSError, match="Input/output error"):
            commit.sync()
        for _ in range(2):
            with pytest.raises(OSError, match="another controller"):
                apply(catalog, Change(save=[record("c")]))
    finally:
        catalog.close()
    assert server.sql(url, "SELECT name FROM versions ORDER BY name") == [("a",), ("b",)]


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
        two.bob.execute(ReadLease(0))
    alone.close()
    assert two.bob.execute(ReadLease(0)).reply.is_done


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


@contextlib.contextmanager
def catalog_and_copy(url: str, directory: Path) -> Iterator[tuple[Catalog, CatalogCopy]]:
    """A catalogue without a lease, and a standby's copy of it."""
    with contextlib.closing(CatalogCopy(url)) as copied:
        copied.open()
        with contextlib.closing(Catalog(directory, None, url)) as catalog:
            catalog.open()
            yield catalog, copied


def test_a_copy_reads_what_changes_have_written_and_no_more(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    with catalog_and_copy(url, tmp_path) as (catalog, copied):
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


def test_a_copy_reads_everything_where_changes_were_forgotten_or_undone(
    server: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CATALOG_CHANGES_KEPT", 3)
    with catalog_and_copy(url, tmp_path) as (catalog, copied):
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
        database._undo(before)
        copied.follow()
        assert_same(copied, url)
        assert copied.reloads == 3
        assert "undone" not in [row[0] for row in copied.rows().good["versions"]]


def test_a_copy_is_what_the_database_has_after_any_changes(
    server: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    monkeypatch.setattr(postgres, "CATALOG_CHANGES_KEPT", 6)
    with catalog_and_copy(url, tmp_path) as (catalog, copied):
        database = catalog._database
        assert isinstance(database, PostgresDatabase)
        for _ in range(100):
            names = draw.choices("abcd", k=3)
            saved = [record(name, draw.randint(1, 3)) for name in names[:2]]
            change = Change(
                save=saved if draw.random() < 0.7 else (),
                remove=[record(names[2], draw.randint(1, 3))],
                route=ROUTE if draw.random() < 0.2 else None,
                unroute="m" if draw.random() < 0.2 else "",
                packages=[str(draw.randrange(3)) * 64] if draw.random() < 0.3 else (),
            )
            apply(catalog, change)
            if draw.random() < 0.1:
                database._undo(list(database._before))
                catalog._number = database._number
            if draw.random() < 0.4:
                copied.follow()
                assert_same(copied, url)
        assert 2 < copied.reloads < 40, "most changes are followed, and some cannot be"


# ----- the keeper --------------------------------------------------------------------------------


def won(keeper: LeaseKeeper) -> LeaseWon:
    """Wait until a keeper has the lease."""
    (news,) = eventually(keeper.news, "a lease is won")
    assert isinstance(news, LeaseWon)
    return news


class Keepers:
    """Keepers of one catalogue, which are closed when the test ends."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open: list[LeaseKeeper] = []

    def start(self, name: str) -> LeaseKeeper:
        keeper = LeaseKeeper(self._url, (name,))
        keeper.start()
        self._open.append(keeper)
        return keeper

    def close(self, keeper: LeaseKeeper) -> None:
        self._open.remove(keeper)
        keeper.close()

    def close_all(self) -> None:
        for keeper in list(self._open):
            self.close(keeper)


@pytest.fixture
def keepers(url: str) -> Iterator[Keepers]:
    made = Keepers(url)
    yield made
    made.close_all()


def test_a_standby_knows_what_the_active_has_changed_when_that_one_ends(
    server: PostgresServer, url: str, keepers: Keepers, tmp_path: Path
) -> None:
    first = keepers.start("first")
    held = won(first)
    assert (held.leader.epoch, held.leader.addresses, held.rows.number) == (1, ("first",), 0)
    second = keepers.start("second")
    eventually(lambda: second.leader == held.leader, "the second knows the first")
    catalog = Catalog(tmp_path, None, url, Fence(1, held.leader.holder), held.rows)
    catalog.open()
    apply(catalog, Change(save=[record("m")]))
    catalog.close()
    first.name_workers(["w"])
    stored = "SELECT workers FROM lease"
    eventually(lambda: server.sql(url, stored) == [('["w"]',)], "the workers are named")
    keepers.close(first)
    next_one = won(second)
    assert next_one.leader.epoch == 2
    assert next_one.workers == ["w"]
    assert next_one.rows.number == 1
    assert [row[0] for row in next_one.rows.good["versions"]] == ["m"]


def test_the_lease_of_a_loop_that_stands_still_is_not_renewed(
    keepers: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keepers.start("first")
    won(first)
    monkeypatch.setattr(lease_keeper, "HOLDER_HUNG_NS", 1)
    first.beat()  # from here on it stands still
    second = keepers.start("second")
    leader = won(second).leader
    monkeypatch.undo()
    first.beat()
    (news,) = eventually(first.news, "the first learns of the second")
    assert news == LeaseLost(leader)


def test_a_database_that_comes_back_leaves_the_lease_to_its_holder_for_a_while() -> None:
    """Its locks are gone, and the lease has expired."""
    with running_postgres() as server:
        url = server.new_database()
        keepers, alice = Keepers(url), PostgresLease(url)
        try:
            first = keepers.start("first")
            epoch = won(first).leader.epoch
            keepers.close(first)
            leader = claim(alice, "alice", epoch).reply.lease.leader
            standby = keepers.start("standby")
            while server.sql(url, AWAITED) != [(1,)]:
                assert renewed(alice, leader)
            server.stop(signal.SIGQUIT)
            eventually(lambda: standby.why_away, "the database is missed")
            begun_ns = now_ns()
            server.start()
            assert won(standby).leader.epoch == leader.epoch + 1, "its holder does not come back"
            assert now_ns() - begun_ns >= RETURN_GRACE_NS
        finally:
            alice.close()
            keepers.close_all()


def test_a_worker_is_believed_only_where_the_database_cannot_be_asked(tmp_path: Path) -> None:
    with running_postgres() as server:
        keepers = Keepers(server.new_database())
        try:
            keeper = keepers.start("first")
            leader = won(keeper).leader
            liar = Leader(7, "liar", (), leader.cluster)
            keeper.hear(liar)
            expires = "SELECT expires_ns FROM lease"
            before = server.sql(keepers._url, expires)
            eventually(lambda: server.sql(keepers._url, expires) != before, "it renews the lease")
            assert keeper.news() == []
            server.stop(signal.SIGQUIT)
            eventually(lambda: keeper.why_away, "the database is missed")
            keeper.hear(Leader(7, "other", (), "another cluster"))
            keeper.hear(liar)
            assert eventually(keeper.news, "it gives way") == [LeaseLost(liar)]
        finally:
            keepers.close_all()


# ----- contending processes ----------------------------------------------------------------------


class Writers:
    """Processes that contend for a catalogue, each of which is started again when it ends."""

    def __init__(self, url: str, root: Path, count: int) -> None:
        self._url, self._root = url, root
        self.programs = [self._start(number) for number in range(count)]
        self.ended: list[Program] = []

    def _start(self, number: int) -> Program:
        code = "import sys, pathlib; from tests.process.contending_writer import main; main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])"
        return Program([self._url, str(self._root / str(number)), f"writer-{number}"], code=code)

    def revive(self) -> None:
        """Start those again that have ended."""
        for number, program in enumerate(self.programs):
            if program.process.poll() is not None:
                program.wait()
                self.ended.append(program)
                self.programs[number] = self._start(number)

    def said(self, word: str) -> list[str]:
        """The rest of each line of all processes that begins with a word."""
        lines = [line for program in (*self.ended, *self.programs) for line in list(program.lines)]
        return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]

    def await_change(self) -> None:
        """Return once a change has been acknowledged since the call."""
        before = len(self.said("yes"))
        eventually(lambda: self.revive() or len(self.said("yes")) > before, "a change is acknowledged")  # type: ignore[func-returns-value]

    def destroy(self) -> None:
        for program in self.programs:
            program.destroy()


def epoch_of(program: Program) -> int:
    """The epoch in which it is, or was, active; 0: none."""
    return max((int(line.split()[1]) for line in program.lines if line.startswith("active ")), default=0)


@pytest.mark.parametrize(
    ("count", "seed"), [(16, 1), pytest.param(300, 2, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_changes_of_contending_controllers_are_made_once_and_by_the_active(
    server: PostgresServer, url: str, tmp_path: Path, count: int, seed: int
) -> None:
    """Processes are killed, stopped and woken up, and connections end, in the middle of changes."""
    draw = random.Random(seed)
    writers = Writers(url, tmp_path, 3)
    try:
        for _ in range(count):
            writers.await_change()
            program = draw.choice(writers.programs)
            match draw.choice(("kill", "stop", "end")):
                case "kill":
                    program.send(signal.SIGKILL)
                case "stop":
                    epochs = len(writers.said("active"))
                    program = max(writers.programs, key=epoch_of)
                    program.send(signal.SIGSTOP)
                    eventually(
                        lambda: writers.revive() or len(writers.said("active")) > epochs,  # type: ignore[func-returns-value]  # noqa: B023
                        "another takes over from the stopped",
                    )
                    writers.await_change()
                    program.send(signal.SIGCONT)
                case "end":
                    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'clockwork'"
                    server.sql(url, f"{end} AND random() < 0.5")
        writers.await_change()
    except BaseException:
        for program in writers.programs:
            print(f"--- {program.pid}: {program.process.poll()}\n{program.so_far[-1500:]}")
        raise
    finally:
        writers.destroy()
    found = {name for (name,) in server.sql(url, "SELECT name FROM versions")}
    yes, no = set(writers.said("yes")), set(writers.said("no"))
    assert yes <= found, f"acknowledged, and lost: {sorted(yes - found)[:5]}"
    assert not no & found, f"refused, and made: {sorted(no & found)[:5]}"
    epochs_made = [int(by) for (by,) in server.sql(url, "SELECT made_by FROM changes ORDER BY number")]
    assert epochs_made == sorted(epochs_made), "a former active has changed the catalogue"
    assert len(set(epochs_made)) > 3
    for program in (*writers.ended, *writers.programs):
        assert "Traceback" not in program.so_far, program.so_far
