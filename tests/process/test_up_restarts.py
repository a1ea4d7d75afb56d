"""`clockwork up` with real kills: a process that dies is restarted, and the others go on."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from clockwork import Client
from clockwork.client import blocking
from clockwork.config.launch import LAST_LINES
from clockwork.errors import ClockworkError, ConnectionLost, Forbidden
from clockwork.launch.local import AnyChild, ChildSlot, ProcessCluster, UpSettings, held_ports
from clockwork.models import zoo
from clockwork.system.clock import now_ns
from clockwork.wire.keys import CONTROLLER_KEY_FILE, KEY_FILES, LEGACY_KEY_FILE, revoke_key, write_keys
from clockwork.wire.roles import Role
from clockwork.wire.transport import Transport, new_key_pair
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Program, has_ipv6
from tests.process.up import running, starting

IMAGE = np.zeros((1, 1, 8, 8), np.float32)

HURRIED = """
from clockwork.launch import restarts
restarts.RESTARTS_MAX = {most}
restarts.RESTART_PAUSE_NS = {pause_ns}
restarts.RESTART_PAUSE_MAX_NS = {pause_ns}
from clockwork.cli.root import main
main()
"""
"""`clockwork` with other bounds of restarts."""


class Load:
    """Requests one after the other, on a thread: when each began and ended, and how it failed."""

    def __init__(self, endpoint: str) -> None:
        self._client = Client(endpoint, timeout=PATIENCE_S)
        self.answers: list[tuple[int, int, str]] = []  # (began, ended, "" or the error)
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            begun_ns = now_ns()
            try:
                self._client.infer("digits", IMAGE)
                error = ""
            except ClockworkError as failure:
                error = type(failure).__name__
            self.answers.append((begun_ns, now_ns(), error))

    def good_after(self, since_ns: int) -> int:
        """Return the time of the first good answer to a request that began after that."""

        def look() -> int:
            return next((end for begun, end, error in self.answers if begun > since_ns and not error), 0)

        found: int = eventually(look, "a good answer")
        return found

    def __enter__(self) -> Load:
        self.good_after(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        self._client.close()


def test_every_process_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    with running(tmp_path, "--workers", "2") as up:
        http = up.wait_for(r"^  http +(http://\S+)")[1]
        both = ["worker-0", "worker-1"]
        with Client(up.endpoint, timeout=PATIENCE_S) as client, Load(up.endpoint) as load:
            # One of two workers.
            pids = {name: up.child(name) for name in ("controller", "gateway", *both)}
            mark = len(up.lines)
            killed_ns = up.kill_child("worker-0")
            up.wait_for(r"^worker-0 was killed by signal 9; it is started again\.$", mark)
            print(
                f"worker killed: next good answer after {(load.good_after(killed_ns) - killed_ns) / 1e6:.0f} ms"
            )
            eventually(lambda: up.child("worker-0") not in (0, pids["worker-0"]), "another takes its place")
            eventually(lambda: up.workers(client) == both, "both are there again")
            print(f"worker killed: both are there again after {(now_ns() - killed_ns) / 1e6:.0f} ms")
            for name in ("controller", "gateway", "worker-1"):
                assert up.child(name) == pids[name], f"{name} went on"

            # The gateway, at the same ports.
            killed_ns = up.kill_child("gateway")

            def answers() -> bool:
                try:
                    with urllib.request.urlopen(f"{http}/v2/health/live", timeout=PATIENCE_S) as reply:
                        return bool(reply.status == 200)
                except OSError:
                    return False

            up.wait_for(r"^The gateway was killed by signal 9; it is started again\.$", mark)
            eventually(answers, "the gateway answers again")
            print(f"gateway killed: next good answer after {(now_ns() - killed_ns) / 1e6:.0f} ms")

            # The controller, with requests under way: its models are there again.
            killed_ns = up.kill_child("controller")
            up.wait_for(r"^The controller was killed by signal 9; it is started again\.$", mark)
            print(
                f"controller killed: next good answer after {(load.good_after(killed_ns) - killed_ns) / 1e6:.0f} ms"
            )
            eventually(lambda: up.workers(client) == both, "the workers have come back")
            with urllib.request.urlopen(f"{http}/v2/models/digits", timeout=PATIENCE_S) as reply:
                assert reply.status == 200
            errors = {error for _, _, error in load.answers if error}
            assert errors <= {ConnectionLost.__name__, "Unavailable", "Refused"}, errors

            # Both workers are killed.
            for name in both:
                killed_ns = up.kill_child(name)
            print(
                f"both workers killed: next good answer after {(load.good_after(killed_ns) - killed_ns) / 1e6:.0f} ms"
            )
            eventually(lambda: up.workers(client) == both, "both are there again")
        assert up.end() == 0
        own = [line for line in up.lines if not re.match(r"\S+ \| ", line)]  # children may end with a message
        assert own[-1] == "Stopping ..."


@pytest.fixture
def port() -> Iterator[int]:
    with held_ports(1) as [one]:
        yield one


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"])
def test_a_held_port_is_given_to_nobody_but_who_asks_for_it(port: int, address: str) -> None:
    """Whichever address it is that a process requests any free port of: a cluster may listen on all."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET6 and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with contextlib.ExitStack() as stack:
        given = set()
        for index in range(500):
            one = stack.enter_context(socket.socket(family))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, index % 2)
            one.bind((address, 0))
            given.add(one.getsockname()[1])
        assert port not in given
        with pytest.raises(OSError, match="in use"):
            stack.enter_context(socket.socket(family)).bind((address, port))
    host = f"[{address}]" if family == socket.AF_INET6 else address
    for _ in range(2):  # the port can be bound again after a restart
        transport = Transport()
        assert transport.router(f"tcp://{host}:{port}").endpoint == f"tcp://{host}:{port}"
        transport.close()


def test_ready_is_when_the_demo_model_answers_and_then_needs_no_demo_model(tmp_path: Path, port: int) -> None:
    def status(path: str, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            return connection.getresponse().status
        except OSError:  # no process listens at the port
            return 0
        finally:
            connection.close()

    def is_ready() -> bool:
        return status("/v2/health/ready") == 200

    def epoch_of(client: Client) -> int:
        try:
            return client.status()["epoch"]
        except ConnectionLost:
            return 0

    image = {"name": "image", "datatype": "FP32", "shape": list(IMAGE.shape), "data": IMAGE.ravel().tolist()}
    with starting(tmp_path / "data", "--http-port", str(port)) as up:
        eventually(is_ready, "the cluster is ready")
        assert status("/v2/models/digits/infer", json.dumps({"inputs": [image]}).encode()) == 200, "at once"
        up.ready()
        with Client(up.endpoint, timeout=PATIENCE_S) as client:
            client.unregister("digits")
            before = client.status()["epoch"]
            up.kill_child("controller")  # a new controller may be there before the test looks
            eventually(lambda: epoch_of(client) not in (0, before), "there is a new controller")
        eventually(is_ready, "a new controller awaits no model that was removed")
        assert up.end() == 0


def test_a_start_leaves_a_model_of_the_demo_s_name_alone(tmp_path: Path) -> None:
    for start in range(2):
        with starting(tmp_path / "data", "--no-gateway") as up:
            up.ready()
            with Client(up.endpoint, timeout=PATIENCE_S) as client:
                if start == 0:
                    client.register("digits", zoo.fine_tune(zoo.digits(), seed=1))
                    client.unregister("digits@1")
                assert [model.reference for model in client.models()] == ["digits@2"]
            assert up.end() == 0


def test_a_worker_that_ends_again_and_again_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    code = HURRIED.format(most=2, pause_ns=50_000_000)
    with running(tmp_path, "--workers", "2", "--no-gateway", code=code) as up, Client(up.endpoint) as client:
        before = 0
        for _ in range(3):
            pid = eventually(lambda: (found := up.child("worker-0")) != before and found, "it is there")  # noqa: B023
            mark, before = len(up.lines), pid
            os.kill(pid, signal.SIGKILL)
            up.wait_for(r"^worker-0 was killed by signal 9", mark)
        up.wait_for(r"^It is given up; 1 of 2 workers are left\.$")
        eventually(lambda: up.workers(client) == ["worker-1"], "the other one goes on")
        assert client.infer("digits", IMAGE, timeout=PATIENCE_S).shape == (1, 10)
        # The last worker is needed.
        before = 0
        for _ in range(3):
            pid = eventually(lambda: (found := up.child("worker-1")) != before and found, "it is there")  # noqa: B023
            mark, before = len(up.lines), pid
            os.kill(pid, signal.SIGKILL)
            up.wait_for(r"^worker-1 was killed by signal 9", mark)
        assert up.wait(PATIENCE_S) == 1
        assert up.end() == 1
        ends = [line for line in up.lines if re.match(r"worker-0 was killed|It is given up", line)]
        assert ["given up" in line for line in ends[:4]] == [False, False, False, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_pause_before_a_restart_ends_everything(tmp_path: Path, number: int) -> None:
    code = HURRIED.format(most=5, pause_ns=10**12)
    with running(tmp_path, "--no-gateway", "--no-demo", code=code) as up:
        first = up.child("worker-0")
        up.kill_child("worker-0")
        second = eventually(lambda: (found := up.child("worker-0")) != first and found, "it is started again")
        os.kill(second, signal.SIGKILL)
        up.wait_for(r"it is started again in 1000 s\.$")
        assert not up.child("worker-0")
        assert up.end(number) == 0


def test_what_fails_at_its_start_ends_up_with_its_message(tmp_path: Path) -> None:
    for options, words in (
        (["--option", "nonsense=1"], "nonsense"),
        (["--arena", "512TiB"], "\nworker-0 ended with status 1"),
    ):
        with starting(tmp_path / "data", "--no-gateway", *options) as up:
            assert up.wait() == 1
            assert words in up.text
            assert "started again" not in up.text
            assert up.end() == 1


@pytest.mark.slow
def test_without_any_port_of_the_gateway_it_is_ready_all_the_same(tmp_path: Path) -> None:
    off = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "off")]
    with running(tmp_path / "data", *off, "--allowed-host", "proxy.example") as up:
        assert not up.child("gateway")
        assert up.end() == 0
    repository = tmp_path / "models"
    repository.mkdir()
    with running(tmp_path / "data", *off, "--model-repository", str(repository)) as up:
        assert up.child("gateway"), "it keeps the repository"
        assert up.end() == 0
    gateway = Program(["gateway", *off])
    assert gateway.wait() == 1
    assert re.fullmatch(r"clockwork: all three ports are off, .*", gateway.text)


def test_the_gateways_addresses_are_known_whatever_else_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho gateway listens: http on http://host:80\nseq {LAST_LINES}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    cluster = ProcessCluster(
        UpSettings(), ("tcp://host:1", "tcp://host:2", "tcp://host:3"), lambda line: None
    )
    cluster._gateway = cluster._spawn("gateway", [])
    eventually(lambda: str(LAST_LINES) in cluster._seats[0].child.lines.copy(), "it has printed all")
    cluster._seats[0].child.end()
    assert cluster.gateway_urls() == [("http", "http://host:80")]


def test_of_its_processes_logs_it_shows_what_may_be_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [
        "2026-11-28 12:07:04,189 controller W worker w cannot prepare D@1: it is damaged",
        "2026-11-28 12:07:04,849 worker E the worker cannot start: I is no device",
        "Segmentation fault",
    ]
    routine = [f"2026-11-28 12:07:04,189 {who} I all is well" for who in ("controller", "worker", "gateway")]
    routine.append("The dashboard is at http://127.0.0.1:8787/ (Ctrl-C ends it)")  # printed once all is ready
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in [*routine, *shown, *routine]))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    said: list[str] = []
    cluster = ProcessCluster(UpSettings(), ("tcp://host:1", "tcp://host:2", "tcp://host:3"), said.append)
    child = cluster._spawn("worker-0", []).child
    eventually(lambda: len(child.lines) == len(shown) + 2 * len(routine), "it has printed all")
    child.end()
    assert said == [f"worker-0 | {line}" for line in shown]


def test_a_controller_is_asked_once_it_listens_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = UpSettings(workers=0, demo=False, gateway=False)
    cluster = ProcessCluster(settings, ("tcp://host:1", "tcp://host:2", "tcp://host:3"), lambda line: None)
    child = SimpleNamespace(serves="")
    cluster._seats.append(ChildSlot("controller", [], cast(AnyChild, child), 0))
    asked = []

    class Asking:
        def __init__(self, *_: object, **options: object) -> None:
            asked.append(child.serves)

        def __enter__(self) -> Asking:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def status(self) -> dict[str, Any]:
            return {"workers": [], "models": {}}

        def models(self) -> list[Any]:
            return []

    monkeypatch.setattr(blocking, "Client", Asking)
    timer = threading.Timer(0.1, lambda: setattr(child, "serves", "it listens"))
    timer.start()
    cluster.wait_until_ready()
    timer.join()
    assert asked == ["it listens"]


def legacy_keys(directory: Path) -> Path:
    """The files that `clockwork keys new` wrote when there were no roles."""
    directory.mkdir()
    ours, theirs = new_key_pair(), new_key_pair()
    body = {"public": ours[0], "secret": ours[1], "allowed": [theirs[0]]}
    (directory / CONTROLLER_KEY_FILE).write_text(json.dumps(body))
    body = {"public": theirs[0], "secret": theirs[1], "controller": ours[0]}
    (directory / LEGACY_KEY_FILE).write_text(json.dumps(body))
    return directory


@pytest.mark.parametrize("is_legacy", [False, True], ids=["roles", "before roles"])
def test_up_hands_each_process_its_key(tmp_path: Path, is_legacy: bool) -> None:
    keys = tmp_path / "keys"
    if is_legacy:
        legacy_keys(keys)
    else:
        write_keys(keys, new_key_pair(), {role: new_key_pair() for role in Role})
    with running(tmp_path / "data", "--keys", str(keys)) as up:
        # The line that it prints names a key that may infer, and no more than that.
        key = Path(up.wait_for(r"infer .*--key (\S+)")[1])
        assert key.name == (LEGACY_KEY_FILE if is_legacy else KEY_FILES[Role.CLIENT])
        http = up.wait_for(r"^  http +(http://\S+)")[1]
        with Client(up.endpoint, keys=key, timeout=PATIENCE_S) as client:
            assert client.infer("digits", IMAGE).shape == (1, 10)
            if not is_legacy:
                with pytest.raises(Forbidden):
                    client.unload("digits")
            # Through the gateway, which stays on this machine, as without keys.
            for action in ("unload", "load"):
                request = urllib.request.Request(f"{http}/v2/repository/models/digits/{action}", b"{}")
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                    assert reply.status == 200
            up.kill_child("controller")
            up.wait_for(r"^The controller was killed by signal 9; it is started again\.$")
            eventually(lambda: up.workers(client) == ["worker-0"], "its worker has come back")
        assert up.end() == 0
        assert ("may do everything" in up.text) == is_legacy


def test_up_whose_own_key_is_refused_says_so_and_ends(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, new_key_pair(), {role: new_key_pair() for role in Role})
    revoke_key(keys, Role.OPERATOR)
    with starting(tmp_path / "data", "--no-gateway", "--keys", str(keys)) as up:
        assert up.wait() == 1
        assert "does not accept this client's keys" in up.text
        assert up.end() == 1


@pytest.mark.slow
def test_with_json_every_line_of_every_process_is_an_object(tmp_path: Path) -> None:
    """A program that reads logs only sees a start, a crash and an end."""
    with starting(tmp_path / "data", "--log-format", "json", "--verbose", "--no-demo", "--gateway") as up:
        up.wait_for("Ready after")
        up.kill_child("worker-0")
        up.wait_for("it is started again")
        assert up.end() == 0
    found = [json.loads(line) for line in up.lines]
    assert {"up", "controller", "gateway", "worker-0"} <= {one["process"] for one in found}
    assert all({"time", "level", "process", "message"} <= set(one) for one in found)
