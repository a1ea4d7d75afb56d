"""Controllers of several machines on one catalogue in PostgreSQL: one is active, and the next takes over.

Each controller has a data directory of its own; the packages lie in a directory that all of them see.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.config.controller import EXIT_TAKEN_OVER
from clockwork.errors import ClockworkError
from clockwork.launch.local import held_ports
from clockwork.models import zoo
from tests.patience import PATIENCE_S, eventually
from tests.postgres import PostgresServer, running_postgres
from tests.process.cluster import Cluster, Program, Reference, ending_well, same, total_sent
from tests.process.test_lease_database import AWAITED

NAMES = ("first", "second", "third")
ACTIVE = r"epoch (\d+) in \S+ begins .*: active$"
EXPIRES = "SELECT expires_ns FROM lease"
SIGNS = "SELECT query_start FROM pg_stat_activity WHERE application_name LIKE 'clockwork %'"
STANDS_BY = "standby: serves once no other controller has the lease"


class Machines(Cluster):
    """A cluster whose controllers are on machines of their own. `clients` has the addresses of all."""

    def __init__(self, data: Path, server: PostgresServer, count: int = 2) -> None:
        self.url = server.new_database()
        self._ports: list[tuple[str, str]] = []
        with held_ports(2 * count) as ports:
            ends = [f"tcp://127.0.0.1:{port}" for port in ports]
        self._ports = list(zip(ends[::2], ends[1::2], strict=True))
        self.clients = ",".join(clients for clients, _ in self._ports)
        self.dialled = ",".join(workers for _, workers in self._ports)
        self.controllers: list[Program] = []
        super().__init__(data)
        self.controllers += [self.start_standby(number) for number in range(1, count)]

    def start_controller(self) -> None:
        self.controller = self._start(0)
        self.controllers.append(self.controller)
        self.controller.wait_for(ACTIVE)

    def start_standby(self, number: int) -> Program:
        standby = self._start(number)
        standby.wait_for(STANDS_BY)
        return standby

    def _start(self, number: int) -> Program:
        clients, workers = self._ports[number]
        return self.program([
            "controller", "--standby", "--listen", clients, "--worker-listen", workers, "--events", "tcp://127.0.0.1:0",
            "--data", str(self.data / f"machine-{number}"), "--catalog", self.url,
            "--packages", str(self.data / "packages"),
        ])  # fmt: skip

    def settle(self, number: int) -> None:
        """Take note that this controller is active."""
        self.controller = self.controllers[number]
        self.controller.wait_for(ACTIVE)

    def check_end(self) -> None:
        for program in self.controllers:
            if program is not self.controller and program not in self._killed:
                assert program.stop() in (0, EXIT_TAKEN_OVER), program.text
        super().check_end()

    def register(self, client: Client) -> dict[str, Reference]:
        """Register the models, and have each answer once."""
        for seed, name in enumerate(NAMES):
            client.register(name, zoo.build("mlp", seed=seed))
            client.infer(name, X)
        return {name: Reference(zoo.build("mlp", seed=seed)) for seed, name in enumerate(NAMES)}


X = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)


def troubles(client: Client) -> list[dict[str, Any]]:
    return [trouble for trouble in client.status()["troubles"]["open"] if "postgresql" in trouble["subject"]]


def has_standby(client: Client) -> bool:
    """Order a hand-over. Returns whether it begins."""
    try:
        (found,) = client.hand_over()
    except ClockworkError:
        return False
    return "of this catalogue" in found


class Asking:
    """A thread that asks for one model after the other, and checks each answer, until the block ends."""

    def __init__(self, client: Client, references: dict[str, Reference]) -> None:
        self._client = client
        self._references = references
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int) -> None:
        """Return once so many more requests have been answered."""
        target = self.answered + count
        eventually(lambda: self.answered >= target or self.failures, f"{count} more answers")
        assert self.failures == []

    def _run(self) -> None:
        names = list(self._references)
        while not self._stop.is_set():
            name = names[self.answered % len(names)]
            x = np.full((1, 64), self.answered % 7, np.float32)
            try:
                answers = [self._client.submit(name, x, slo=PATIENCE_S) for _ in range(4)]
                for answer in answers:
                    assert same(answer.result(PATIENCE_S), self._references[name](x))
            except (ClockworkError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            self.answered += len(answers)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@contextlib.contextmanager
def machines(data: Path, server: PostgresServer, count: int = 2) -> Iterator[Machines]:
    """A cluster with two workers, which must end well."""
    with ending_well(Machines(data, server, count)) as cluster:
        for number in range(2):
            cluster.start_worker(endpoint=cluster.dialled, name=f"worker-{number}", store=f"worker-{number}")
        yield cluster


def test_a_standby_on_another_machine_takes_over_what_is_there(
    server: PostgresServer, tmp_path: Path
) -> None:
    with machines(tmp_path, server) as cluster, Client(cluster.clients, timeout=PATIENCE_S) as client:
        references = cluster.register(client)
        client.unregister("third")
        cluster.kill(cluster.controller)
        for name in NAMES[:2]:
            assert same(client.infer(name, X, slo=PATIENCE_S), references[name](X))
        cluster.settle(1)
        status = client.status()
        assert {worker["name"] for worker in status["workers"]} == {"worker-0", "worker-1"}
        assert total_sent(status, "load") == 0
        assert [model.name for model in client.models()] == ["first", "second"]
        client.register("third", zoo.build("mlp", seed=2))  # it can be changed as before
        assert same(client.infer("third", X), references["third"](X))


def test_a_standby_says_which_controller_of_another_machine_is_active(
    server: PostgresServer, tmp_path: Path
) -> None:
    with machines(tmp_path, server) as cluster:
        (active, _), (standby, _) = cluster._ports

        def probe(number: int, *words: str) -> Program:
            at = ("--endpoint", cluster._ports[number][0], "--data", str(tmp_path / f"machine-{number}"))
            asked = cluster.program(["probe", *at, *words])
            asked.wait()
            return asked

        def told() -> bool:
            asked = probe(1)
            assert asked.process.returncode == 0, asked.text
            return f"standby at {standby}; " in asked.text and f" at {active}, " in asked.text

        eventually(told, "the standby knows the active")
        asked = probe(1, "--ready")
        assert (asked.process.returncode, "a standby takes no requests" in asked.text) == (1, True)
        assert " answers; " in probe(0).text
        cluster.kill(cluster.controller)
        cluster.settle(1)
        assert " answers; " in probe(1).text


def test_the_active_tells_of_standbys_on_other_machines(server: PostgresServer, tmp_path: Path) -> None:
    """In its status, with what each has read, and an alert once there is none."""
    with machines(tmp_path, server) as cluster, Client(cluster.clients, timeout=PATIENCE_S) as client:
        cluster.register(client)
        (active, _), (standby, _) = cluster._ports

        def standing() -> dict[str, Any]:
            found: dict[str, Any] = client.status()["standing"]
            return found

        def standbys() -> list[tuple[str, int]]:
            return [(row["address"], row["behind"]) for row in standing()["standbys"]]

        def is_missed() -> bool:
            return any(row["kind"] == "no_standby" for row in client.status()["troubles"]["open"])

        eventually(lambda: standbys() == [(standby, 0)], "the standby is seen, and has read all")
        assert (standing()["active"], standing()["last"], is_missed()) == (active, None, False)
        for _ in range(2):  # waits of a second each, in which it sees the active live
            before = server.sql(cluster.url, SIGNS)
            eventually(lambda: server.sql(cluster.url, SIGNS) not in (before, []), "it waits anew")  # noqa: B023
        cluster.kill(cluster.controller)
        cluster.settle(1)
        eventually(lambda: standing()["last"], "the takeover is told")
        last, counts = standing()["last"], standing()["takeovers"]
        assert (last["why"], last["before"], last["after"]) == ("killed", active, standby)
        assert sum(counts.values()) == counts["killed"] == 1
        eventually(lambda: not standbys(), "it lists nobody")
        eventually(is_missed, "an alert says that there is none")
        cluster.controllers.append(cluster.start_standby(0))
        eventually(lambda: standbys() == [(active, 0)], "the new one is seen")
        eventually(lambda: not is_missed(), "the alert is over")


def test_an_active_is_killed_under_load_and_nobody_notices(server: PostgresServer, tmp_path: Path) -> None:
    with machines(tmp_path, server, 3) as cluster, Client(cluster.clients, timeout=PATIENCE_S) as client:
        references = cluster.register(client)
        with Asking(client, references) as asking:
            asking.more(20)
            cluster.kill(cluster.controller)
            asking.more(40)
            first = eventually(
                lambda: next((n for n in (1, 2) if "begins after" in cluster.controllers[n].so_far), 0),
                "a standby takes over",
            )
            cluster.settle(first)
            assert total_sent(client.status(), "load") == 0
            cluster.kill(cluster.controller)
            asking.more(40)
            cluster.settle(3 - first)
        assert total_sent(client.status(), "load") == 0
        assert server.sql(cluster.url, "SELECT epoch FROM lease") == [(3,)]


def test_an_active_that_ends_in_order_leaves_its_requests_to_a_standby(
    server: PostgresServer, tmp_path: Path
) -> None:
    with machines(tmp_path, server, 3) as cluster, Client(cluster.clients, timeout=PATIENCE_S) as client:
        references = cluster.register(client)
        with Asking(client, references) as asking:
            asking.more(20)
            eventually(lambda: has_standby(client), "it knows of a standby, and gives way")
            asking.more(40)
            assert cluster.controller.wait() == 0
            first = next(n for n in (1, 2) if "begins after" in cluster.controllers[n].so_far)
            cluster.settle(first)
            asking.more(20)
            eventually(
                lambda: server.sql(cluster.url, AWAITED) == [(1,)], "the other waits for the new active"
            )
            for _ in range(2):  # the new active counts those who wait at each renewal
                before = server.sql(cluster.url, EXPIRES)
                eventually(lambda: server.sql(cluster.url, EXPIRES) != before, "it renews its lease")  # noqa: B023
            cluster.controller.send(signal.SIGTERM)
            asking.more(40)
            assert cluster.controller.wait() == 0
            cluster.settle(3 - first)
        assert total_sent(client.status(), "load") == 0
        assert server.sql(cluster.url, "SELECT epoch FROM lease") == [(3,)]


def test_an_active_that_was_stopped_does_nothing_when_it_wakes_up(
    server: PostgresServer, tmp_path: Path
) -> None:
    with machines(tmp_path, server) as cluster, Client(cluster.clients, timeout=PATIENCE_S) as client:
        references = cluster.register(client)
        third = references.pop("third")
        assert same(client.infer("third", X), third(X))
        old = cluster.controller
        with Asking(client, references) as asking:
            asking.more(20)
            old.send(signal.SIGSTOP)
            cluster.settle(1)
            for name in references:  # the first of them is asked again
                assert same(client.infer(name, X, slo=PATIENCE_S), references[name](X))
            client.unregister("third")
            old.send(signal.SIGCONT)
            assert old.wait() == EXIT_TAKEN_OVER
            assert "is active: this one serves no more" in old.text
        assert [model.name for model in client.models()] == ["first", "second"]
        assert server.sql(cluster.url, "SELECT epoch FROM lease") == [(2,)]


def test_the_active_serves_without_the_database_and_refuses_changes(tmp_path: Path) -> None:
    with (
        running_postgres() as server,
        machines(tmp_path, server) as cluster,
        Client(cluster.clients, timeout=PATIENCE_S) as client,
    ):
        references = cluster.register(client)
        with Asking(client, references) as asking:
            asking.more(20)
            server.stop(signal.SIGQUIT)
            cluster.controller.wait_for("the database of the catalogue does not answer")
            with pytest.raises(ClockworkError, match=r"could not be written .*postgresql:///test1"):
                client.unregister("first")
            asking.more(60)
            eventually(lambda: troubles(client), "status says so")
            assert troubles(client)[0]["kind"] == "storage_failed"
            assert not any("begins after" in line for line in cluster.controllers[1].lines)
            server.start()

            def is_changed() -> bool:
                with contextlib.suppress(ClockworkError):
                    client.register("fourth", zoo.build("mlp", seed=3))
                    return True
                return False

            eventually(is_changed, "changes are made again")
            eventually(lambda: not troubles(client), "status says no more")
            asking.more(20)
        if (
            "begins after" in cluster.controllers[1].so_far
        ):  # the machine was too slow for the holder to renew
            cluster.settle(1)
        names = [model.name for model in client.models()]
        assert names == ["first", "fourth", "second", "third"], "what was refused did not happen"


def test_a_controller_that_is_no_standby_does_not_wait(server: PostgresServer, tmp_path: Path) -> None:
    with machines(tmp_path, server, 1) as cluster:
        for data, why in (("machine-9", "in use by another controller"), ("machine-0", "data directory")):
            other = cluster.program([
                "controller", "--listen", "tcp://127.0.0.1:0", "--worker-listen", "tcp://127.0.0.1:0",
                "--events", "tcp://127.0.0.1:0", "--data", str(tmp_path / data), "--catalog", cluster.url,
            ])  # fmt: skip
            assert other.wait() != 0
            assert why in other.text
