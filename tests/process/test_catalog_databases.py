"""The catalogue's promises, held against SQLite and against PostgreSQL."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.catalog import database, postgres
from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.postgres import PostgresDatabase, check_url
from clockwork.controller.catalog.records import Change, ModelRecord
from clockwork.controller.catalog.routes import NameRoute, Shadow, TrafficSplit, whole
from clockwork.controller.catalog.store import Catalog
from clockwork.errors import ConfigError
from clockwork.formats.durable import NotUndone, run_alone
from clockwork.formats.package import PackageFile, digest_of
from clockwork.wire import messages
from tests import catalogues
from tests.catalogues import apply, sealed
from tests.postgres import PostgresServer, running_postgres
from tests.process.cluster import ROOT
from tests.process.peers import FakeWorker, RawClient, running_controller

FILES = [PackageFile("model.onnx", 4, hashlib.sha256(b"data").hexdigest())]
ROUTE = NameRoute("m", TrafficSplit(((1, 9000), (2, 1000)), Shadow(3, 500, 0.25)), [whole(1)])


def record(name: str, version: int = 1, **changes: Any) -> ModelRecord:
    made = ModelRecord(name, version, digest_of(FILES), FILES, check_options({"slo_ns": 50_000_000}))
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


class Place:
    """A data directory, and a database in PostgreSQL if there is a server."""

    def __init__(self, root: Path, server: PostgresServer | None) -> None:
        self.root = root
        self.server = server
        self.url = server.new_database() if server is not None else ""

    def open(self) -> Any:
        return catalogues.open_catalog(self.root, url=self.url)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        if self.server is None:
            return catalogues.sql(self.root, statement)
        return self.server.sql(self.url, statement)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    server = request.getfixturevalue("server") if request.param == "postgresql" else None
    return Place(tmp_path / "data", server)


def test_what_was_written_is_read(place: Place) -> None:
    changed = record("m", offered=False, aside="it overran: \u20ac '%s' ?", is_read=True)
    with place.open() as catalog:
        assert apply(catalog, Change(save=[record("m"), record("m", 2), record("n")], by="somebody")) == 1
        assert apply(catalog, Change(save=[changed], route=ROUTE, by="key a, client b")) == 2
        apply(catalog, Change(remove=[record("n")], packages=["0" * 64]))
    with place.open() as catalog:
        assert catalog.records() == ([changed, record("m", 2)], [])
        assert catalog.routes() == ([ROUTE], [])
        assert catalog.unused() == ["0" * 64]
        apply(catalog, Change(unroute="m"))
    assert place.sql("SELECT number, made_by, name, what FROM changes ORDER BY number") == [
        (1, "somebody", "m", '["+m@1", "+m@2", "+n@1"]'),
        (2, "key a, client b", "m", '["+m@1", "+m"]'),
        (3, "controller", "n", '["-n@1"]'),
        (4, "controller", "m", '["-m"]'),
    ]
    assert place.sql("SELECT count(*) FROM routes") == [(0,)]
    assert place.sql("SELECT changed_by FROM versions ORDER BY version") == [
        ("key a, client b",),
        ("somebody",),
    ]


def test_changes_share_a_transaction_and_one_that_fails_takes_nothing_with_it_later(place: Place) -> None:
    with place.open() as catalog:
        together = [catalog.change(Change(save=[record(name)])) for name in "ab"]
        (first,), (second,) = map(next, together)
        assert first is second
        bad = record("c")
        bad.version = "one"  # type: ignore[assignment]
        if place.url:
            with pytest.raises(OSError, match="invalid input syntax"):
                run_alone(catalog.change(Change(save=[bad])))
            with pytest.raises(OSError, match="invalid input syntax"):
                first.sync()
        else:
            first.sync()
        assert apply(catalog, Change(save=[record("d")])) > 2
    with place.open() as catalog:
        assert [one.name for one in catalog.records()[0]] == (["d"] if place.url else ["a", "b", "d"])


def test_a_later_schema_is_refused(place: Place) -> None:
    with place.open() as catalog:
        apply(catalog, Change(save=[record("m")]))
    place.sql("UPDATE about SET value = '1000', checksum = 0 WHERE subject = 'schema'")
    with pytest.raises(ConfigError, match=r"has schema 1000|1 of its rows"), place.open():
        pass


def test_migrations_are_made_in_order_and_all_or_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_migrations(*more: str) -> None:
        monkeypatch.setattr(database, "MIGRATIONS", (*present, *((one,) for one in more)))

    present = database.MIGRATIONS
    with place.open() as catalog:
        apply(catalog, Change(save=[record("m")]))
    with_migrations("CREATE TABLE second (number INTEGER)", "INSERT INTO second VALUES (3)")
    for _ in range(2):
        with place.open() as catalog:
            assert catalog.records() == ([record("m")], [])
    assert place.sql("SELECT number FROM second") == [(3,)]
    schema = str(len(present) + 2)
    assert place.sql("SELECT value FROM about WHERE subject = 'schema'") == [(schema,)]
    with_migrations("", "", "DROP TABLE second", "no statement")
    with pytest.raises(ConfigError), place.open():
        pass
    assert place.sql("SELECT number FROM second") == [(3,)]


def test_a_damaged_row_is_named(place: Place) -> None:
    with place.open() as catalog:
        apply(catalog, Change(save=[record("m"), record("n")]))
    place.sql("UPDATE versions SET digest = 'rotten' WHERE name = 'm'")
    with place.open() as catalog:
        records, complaints = catalog.records()
    assert records == [record("n")]
    assert ("m", 1, False) in [(one.name, one.version, one.mended) for one in complaints]


def test_the_files_of_an_earlier_release_are_taken_over(place: Place) -> None:
    (place.root / "models").mkdir(parents=True)
    (place.root / "format").write_text("1")
    (place.root / "models" / "m@1.json").write_bytes(sealed(record("m")))
    with place.open() as catalog:
        assert catalog.records() == ([record("m")], [])
    assert (place.root / "models" / "m@1.json").exists()
    with place.open() as catalog:
        assert catalog.records() == ([record("m")], [])
    assert not (place.root / "models").exists()


def test_a_controller_serves_from_it_and_is_found_as_it_was(place: Place) -> None:
    for start in range(2):
        with (
            running_controller(place.root, catalog=place.url) as controller,
            FakeWorker(controller) as worker,
            RawClient(controller) as client,
        ):
            if not start:
                with worker.preparing():
                    assert client.register("m", b"content").body["version"] == 1
                client.send(messages.Offer(9, "m", False))
                assert client.receive(messages.Reply)[0].body == {"unloaded": "m"}
            client.send(messages.Query(2, "models", ""))
            (row,) = client.receive(messages.Reply)[0].body["models"]
            assert (row["name"], row["version"], row["state"]) == ("m", 1, "unloaded")
    by_clients = place.sql("SELECT what, made_by FROM changes WHERE made_by LIKE 'client %' ORDER BY number")
    assert [what for what, _ in by_clients] == ['["+m@1"]', '["+m@1"]']


@pytest.mark.parametrize(
    ("count", "seed"), [(20, 3), pytest.param(1000, 4, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_killed_processes_lose_nothing_and_leave_nothing_in_part(place: Place, count: int, seed: int) -> None:
    command = [sys.executable, "-m", "tests.process.killed_catalog", place.root, str(count), str(seed)]
    done = subprocess.run(
        [*command, *([place.url] if place.url else [])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(done.stderr)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, f"{count} processes were killed")


# ----- PostgreSQL alone --------------------------------------------------------------------------


def test_a_second_controller_is_refused(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "POSTGRES_LOCK_S", 1)
    url = server.new_database()
    with (
        catalogues.open_catalog(tmp_path / "a", url=url),
        pytest.raises(ConfigError, match="in use by another controller"),
    ):
        Catalog(tmp_path / "b", url=url).open()
    with catalogues.open_catalog(tmp_path / "b", url=url):
        pass


def backends(server: PostgresServer, url: str) -> int:
    """End the connections of controllers; return how many there were."""
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'clockwork'"
    return len(server.sql(url, end))


def test_a_lost_connection_costs_at_most_the_change_that_it_cuts(
    server: PostgresServer, tmp_path: Path
) -> None:
    url = server.new_database()
    with catalogues.open_catalog(tmp_path, url=url) as catalog:
        apply(catalog, Change(save=[record("a")]))
        assert backends(server, url) == 1
        apply(catalog, Change(save=[record("b")]))  # over a new connection
        steps = catalog.change(Change(save=[record("c")]))
        (commit,) = next(steps)
        assert not isinstance(commit, int)
        assert backends(server, url) == 1
        with pytest.raises(OSError, match="Input/output error"):
            commit.sync()
        apply(catalog, Change(save=[record("d")]))
    with catalogues.open_catalog(tmp_path, url=url) as catalog:
        assert [one.name for one in catalog.records()[0]] == ["a", "b", "d"]


class Cut:
    """A connection whose reply to a commit is lost, and the connection with it."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, statement: Any, values: Any = None) -> Any:
        done = self._real.execute(statement, values)
        if statement == "COMMIT":
            self._real.close()
            import psycopg

            raise psycopg.OperationalError("the connection is lost")
        return done


def test_a_commit_whose_reply_is_lost_is_asked_for(server: PostgresServer, tmp_path: Path) -> None:
    url = server.new_database()
    with catalogues.open_catalog(tmp_path, url=url) as catalog:
        held = catalog._database
        assert isinstance(held, PostgresDatabase)
        held._connection = Cut(held._connection)  # type: ignore[assignment]
        assert apply(catalog, Change(save=[record("a")])) == 1
        assert apply(catalog, Change(save=[record("b")])) == 2
    with catalogues.open_catalog(tmp_path, url=url) as catalog:
        assert [one.name for one in catalog.records()[0]] == ["a", "b"]


def test_a_commit_that_was_refused_and_holds_is_undone(tmp_path: Path) -> None:
    with running_postgres() as server:
        url = server.new_database()
        with catalogues.open_catalog(tmp_path, url=url) as catalog:
            apply(catalog, Change(save=[record("a"), record("b")]))
            held = catalog._database
            assert isinstance(held, PostgresDatabase)
            cut = Cut(held._connection)
            held._connection = cut  # type: ignore[assignment]
            change = Change(save=[record("a", aside="new"), record("c")], remove=[record("b")])
            (commit,) = next(catalog.change(change))
            assert not isinstance(commit, int)
            held._connect = lambda: (_ for _ in ()).throw(OSError(111, "refused"))  # type: ignore[assignment,method-assign]
            with pytest.raises(NotUndone, match="refused"):
                commit.sync()
            with pytest.raises(OSError, match="refused"):
                apply(catalog, Change(save=[record("d")]))
            del held._connect
            apply(catalog, Change(save=[record("d")]))
        with catalogues.open_catalog(tmp_path, url=url) as catalog:
            assert catalog.records()[0] == [record("a"), record("b"), record("d")]


def test_a_server_that_is_away_refuses_changes_and_comes_back(tmp_path: Path) -> None:
    with running_postgres() as server:
        url = server.new_database()
        with catalogues.open_catalog(tmp_path, url=url) as catalog:
            apply(catalog, Change(save=[record("a")]))
            server.stop(signal.SIGQUIT)
            with pytest.raises(OSError, match="Input/output error"):
                apply(catalog, Change(save=[record("b")]))
            server.start()
            apply(catalog, Change(save=[record("c")]))
            assert [name for (name,) in server.sql(url, "SELECT name FROM versions ORDER BY 1")] == ["a", "c"]
        server.stop()
        with pytest.raises(ConfigError, match="cannot be used"):
            Catalog(tmp_path, url=url).open()


def test_a_catalogue_that_another_has_changed_is_left_alone(server: PostgresServer, tmp_path: Path) -> None:
    url = server.new_database()
    with catalogues.open_catalog(tmp_path / "a", url=url) as catalog:
        apply(catalog, Change(save=[record("a")]))
        backends(server, url)
        with catalogues.open_catalog(tmp_path / "b", url=url) as other:
            apply(other, Change(save=[record("b")]))
        with pytest.raises(OSError, match="another controller has changed the catalogue"):
            apply(catalog, Change(save=[record("c")]))
    assert server.sql(url, "SELECT name FROM versions ORDER BY name") == [("a",), ("b",)]


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed ([postgres])")
    check_url("postgresql://me@host/db?sslmode=verify-full&sslrootcert=/etc/ca.pem&passfile=/run/secret")
    for url in ("postgresql://me:hush@host/db", "postgresql://me@host/db?password=hush"):
        with pytest.raises(ConfigError, match="PGPASSFILE") as refused:
            check_url(url)
        assert "hush" not in str(refused.value)
    with pytest.raises(ConfigError, match="postgresql://USER@HOST"):
        check_url("mysql://me@host/db")
    assert os.environ.get("PGPASSWORD") is None
