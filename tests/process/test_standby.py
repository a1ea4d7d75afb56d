"""A standby controller on the data directory of another: it takes over when that one ends."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.config.controller import STANDBY_HEARD_NS
from clockwork.controller.peers.directory import Presence
from clockwork.controller.peers.returning import WORKERS_FILE
from clockwork.controller.standing import ControllerRole
from clockwork.errors import ConnectionLost
from clockwork.launch.local import held_ports
from clockwork.models import zoo
from clockwork.wire import messages
from clockwork.wire.messages import Status
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, Program, Reference, running_cluster, same, total_sent
from tests.process.peers import RawClient, running_controller
from tests.process.up import Up, running

NAMES = ("first", "second", "third")
IMAGE = np.zeros((1, 1, 8, 8), np.float32)


class Pair(Cluster):
    """A cluster with a standby. `clients` and `workers` are the addresses of both controllers."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        ports = self._held.enter_context(held_ports(2))
        self.other = [f"tcp://127.0.0.1:{port}" for port in ports]
        self.clients = f"{self.endpoint},{self.other[0]}"
        self.dialled = f"{self.worker_endpoint},{self.other[1]}"
        self.standby = self.start_standby(*self.other)

    def start_standby(self, clients: str, workers: str) -> Program:
        standby = self.program([
            "controller", "--standby", "--listen", clients, "--worker-listen", workers,
            "--events", "tcp://127.0.0.1:0", "--data", str(self.data / "controller"),
        ])  # fmt: skip
        standby.wait_for("standby: serves once no other controller uses")
        return standby


def await_standby(client: Client, address: str) -> None:
    """Return once the active has seen a standby that has read every change."""
    eventually(
        lambda: (
            [(row["address"], row["behind"]) for row in client.status()["standing"]["standbys"]]
            == [(address, 0)]
        ),
        "the standby is seen",
    )


def check_probe(pair: Pair) -> None:
    """A standby says that it is one and who is active, and is never ready."""
    data = ("--data", str(pair.data / "controller"))
    for words, status, text in (
        ((), 0, f"standby at {pair.other[0]}; {pair.endpoint} is active, for "),
        (("--ready",), 1, "a standby takes no requests"),
    ):
        probe = pair.program(["probe", *data, *words, "--endpoint", pair.other[0]])
        assert probe.wait() == status, probe.text
        assert text in probe.text
    probe = pair.program(["probe", *data, "--ready", "--endpoint", pair.endpoint])
    assert probe.wait() == 0, probe.text
    shown = pair.program(["status", "--endpoint", pair.endpoint])
    assert shown.wait() == 0
    assert f"standby at {pair.other[0]} (up to date" in shown.text


def test_a_standby_takes_over_what_is_there(tmp_path: Path) -> None:
    references = {name: Reference(zoo.build("mlp", seed=seed)) for seed, name in enumerate(NAMES)}
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    pair = Pair(tmp_path)
    try:
        for number in range(2):
            pair.start_worker(endpoint=pair.dialled, name=f"worker-{number}")
        with Client(pair.clients, timeout=PATIENCE_S) as client:
            for seed, name in enumerate(NAMES):
                client.register(name, zoo.build("mlp", seed=seed))
            answers = [client.submit(name, x) for name in NAMES]
            assert all(
                same(answer.result(PATIENCE_S), references[name](x)) for name, answer in zip(NAMES, answers)
            )
            kept = tmp_path / "controller" / WORKERS_FILE
            eventually(lambda: kept.exists() and json.loads(kept.read_text()), "the workers' names are kept")
            assert json.loads(kept.read_text()) == ["worker-0", "worker-1"]
            await_standby(client, pair.other[0])
            check_probe(pair)
            begun = [client.submit(name, x, slo=PATIENCE_S) for name in NAMES * 5]
            pair.kill(pair.controller)
            pair.controller = pair.standby
            begun += [client.submit(name, x, slo=PATIENCE_S) for name in NAMES * 5]
            for name, answer in zip(NAMES * 10, begun, strict=True):
                assert same(answer.result(PATIENCE_S), references[name](x))
            status = client.status()
            assert {worker["name"] for worker in status["workers"]} == {"worker-0", "worker-1"}
            assert total_sent(status, "load") == 0
            standing = status["standing"]
            assert (standing["active"], standing["standbys"]) == (pair.other[0], [])
            assert standing["takeovers"] == {"killed": 1, "stopped": 0, "ended": 0, "handed_over": 0}
            assert standing["last"]["before"] == pair.endpoint
            assert standing["last"]["why"] == "killed"
            assert client.metrics()["standing"]["takeovers"]["killed"] == 1
            client.register("fourth", zoo.build("mlp", seed=9))  # it can be changed as before
            client.unregister("first")
        pair.standby.wait_for("active$")
        third = pair.start_standby(pair.endpoint, pair.worker_endpoint)
        with Client(pair.clients, timeout=PATIENCE_S) as client:
            await_standby(client, pair.endpoint)
            assert third.stop() == 0, "a standby ends while it waits"
            assert "Traceback" not in third.text
            eventually(lambda: not client.status()["standing"]["standbys"], "its end is seen")
        pair.check_end()
    finally:
        pair.destroy()


def test_a_standby_of_an_active_that_goes_on_serves_nobody(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    try:
        pair.start_worker(endpoint=pair.dialled)
        with pytest.raises(ConnectionLost), Client(pair.other[0], timeout=PATIENCE_S) as client:
            client.status()
        assert not re.search("active$", pair.standby.so_far, re.MULTILINE)
        assert pair.standby.stop() == 0
        pair.check_end()
    finally:
        pair.destroy()


def test_a_standby_ends_an_active_that_was_stopped(tmp_path: Path) -> None:
    """It would keep the directory for ever, and might wake up in the middle of a change."""
    reference = Reference(zoo.build("mlp", seed=0))
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    pair = Pair(tmp_path)
    try:
        pair.start_worker(endpoint=pair.dialled)
        with Client(pair.clients, timeout=PATIENCE_S) as client:
            client.register("m", zoo.build("mlp", seed=0))
            assert same(client.infer("m", x), reference(x))
            os.kill(pair.controller.pid, signal.SIGSTOP)
            assert same(client.infer("m", x), reference(x))
            pair.standby.wait_for(f"process {pair.controller.pid}, .* does nothing .state T.: it is ended")
            assert pair.controller.wait() == -signal.SIGKILL
            status = client.status()
            assert total_sent(status, "load") == 0
            assert status["standing"]["last"]["why"] == "stopped"
        pair.kill(pair.controller)
        pair.controller = pair.standby
        pair.check_end()
    finally:
        pair.destroy()


@pytest.mark.parametrize("how", ["handed_over", "ended"])
def test_an_active_gives_way_to_its_standby_without_a_failed_request(tmp_path: Path, how: str) -> None:
    """By an operator's order, and by SIGTERM: forth, and back to a controller that was started anew."""
    references = {name: Reference(zoo.build("mlp", seed=seed)) for seed, name in enumerate(NAMES)}
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    pair = Pair(tmp_path)
    own = (pair.endpoint, pair.worker_endpoint)
    try:
        for number in range(2):
            pair.start_worker(endpoint=pair.dialled, name=f"worker-{number}")
        with Client(pair.clients, timeout=PATIENCE_S) as client:
            for seed, name in enumerate(NAMES):
                client.register(name, zoo.build("mlp", seed=seed))
                assert same(client.infer(name, x), references[name](x))
            for address in (pair.other[0], pair.endpoint):
                await_standby(client, address)
                answers = [client.submit(name, x, slo=PATIENCE_S) for name in NAMES * 10]
                if how == "handed_over":
                    ordered = pair.program(["controller", "hand-over", "--endpoint", pair.clients])
                    assert ordered.wait() == 0, ordered.text
                    assert f"gives way to {address}" in ordered.text
                else:
                    pair.controller.send(signal.SIGTERM)
                answers += [client.submit(name, x, slo=PATIENCE_S) for name in NAMES * 10]
                for name, answer in zip(NAMES * 20, answers, strict=True):
                    assert same(answer.result(PATIENCE_S), references[name](x))
                assert pair.controller.wait() == 0, pair.controller.text
                pair.controller = pair.standby
                status = client.status()
                standing = status["standing"]
                assert (standing["active"], standing["last"]["why"]) == (address, how)
                assert total_sent(status, "load") == 0
                client.load(NAMES[0])  # it can be changed, and has what was changed before
                if address != own[0]:
                    pair.standby = pair.start_standby(*own)
            assert client.status()["standing"]["takeovers"][how] == 2
        assert not list((tmp_path / "controller").glob("*.damaged-*"))
        pair.check_end()
    finally:
        pair.destroy()


def test_a_hand_over_is_refused_where_nobody_could_follow(tmp_path: Path) -> None:
    with running_controller(tmp_path) as controller, RawClient(controller) as client:

        def refusal(number: int) -> str:
            client.send(messages.HandOver(number))
            failure, _ = client.receive(messages.Failure)
            assert (failure.request_id, failure.status) == (number, Status.UNAVAILABLE)
            return str(failure.text)

        assert "no standby is there to take over" in refusal(1)
        standby = Presence(tmp_path, "tcp://127.0.0.1:1", ControllerRole.STANDBY)
        with RawClient(controller) as other:
            other.send(messages.Register(1, "m", [["model.onnx", 1, "0" * 64]], {}))
            other.receive(messages.UploadNeed)
            assert "1 change of models must end before the controller gives way" in refusal(2)
            assert standby._note is not None
            standby._body["heard_ns"] -= STANDBY_HEARD_NS
            standby.has_ended()  # writes the note
        eventually(lambda: "no standby" in refusal(3), "the upload has ended with its client")
        standby.close()


def active_of(up: Up) -> int:
    """The number of the controller that has become active last."""
    found = [
        match[1]
        for line in up.so_far.splitlines()
        if (match := re.match(r"controller-(\d) .*: active$", line))
    ]
    return int(found[-1]) if found else -1


def test_up_with_two_controllers_serves_on_when_one_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, "--controllers", "2", "--verbose") as up:
        first, second = endpoints = up.endpoint.split(",")
        assert first != second
        http = up.wait_for(r"^  http +(http://\S+)")[1]
        with Client(up.endpoint, timeout=PATIENCE_S) as client:
            assert client.infer("digits", IMAGE).shape == (1, 10)
            for _ in range(2):
                mark, active = len(up.lines), active_of(up)
                (pid,) = (pid for pid, words in up.commands().items() if endpoints[active] in words[3:7])
                os.kill(pid, signal.SIGKILL)
                assert client.infer("digits", IMAGE).shape == (1, 10)
                up.wait_for(rf"^controller-{active} was killed by signal 9; it is started again\.$", mark)
                up.wait_for(rf"^controller-{active} .* standby: serves once", mark)
                assert active_of(up) == 1 - active
            with urllib.request.urlopen(f"{http}/v2/models/digits", timeout=PATIENCE_S) as reply:
                assert reply.status == 200, "the gateway has followed"


def test_up_refuses_what_several_controllers_cannot_have(tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=0) as cluster:
        for words, text in (
            (["--controllers", "2", "--port", "65531"], "leaves too few ports for 2 controllers"),
            (["--controllers", "2", "--ray"], "is for one machine"),
            (["--controllers", "0"], "is not in the range"),
        ):
            program = cluster.program(["up", *words])
            assert program.wait() == 2
            assert text in program.text
