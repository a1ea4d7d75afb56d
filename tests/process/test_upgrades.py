"""A cluster is upgraded under load from the last release to this one, process by process, and goes back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.launch.local import held_ports
from clockwork.models import zoo
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import ROOT, Program, Reference, same

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

LAST = ROOT / "tests" / "data" / "last_release"
"""The commit of the last release: an ancestor of this one."""

ANYWHERE = "tcp://127.0.0.1:0"
X = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the last release, built."""
    commit = LAST.read_text().split()[0]
    git = shutil.which("git")
    if (
        git is None
        or subprocess.run(
            [git, "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT, capture_output=True, check=False
        ).returncode
    ):
        pytest.skip(f"this checkout has no history with the last release, {commit}")
    folder = tmp_path_factory.mktemp("last")
    archive = subprocess.run([git, "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], input=archive, cwd=folder, check=True)
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    built = subprocess.run(
        build, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, check=False
    )
    assert built.returncode == 0, built.stderr.decode(errors="replace")[-2_000:]
    return folder


class Live:
    """A cluster of one controller, one worker and one gateway, each of which can be replaced."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._programs: list[Program] = []
        self._held = contextlib.ExitStack()
        ports = self._held.enter_context(held_ports(4))
        self._places = [(f"tcp://127.0.0.1:{ports[at]}", f"tcp://127.0.0.1:{ports[at + 1]}") for at in (0, 2)]
        self.clients = ",".join(place[0] for place in self._places)
        self._workers = ",".join(place[1] for place in self._places)
        self._count = 0
        self.controller: Program | None = None
        self.worker: Program | None = None
        self.gateway: Program | None = None
        self.http = ""

    def program(self, root: Path, *arguments: str) -> Program:
        program = Program(arguments, root=root)
        self._programs.append(program)
        return program

    def replace(self, root: Path, client: Client, balanced: Callable[[], None] = lambda: None) -> None:
        """Replace every process by one of a checkout, in docs/upgrading.md's order. balanced: returns once
        nobody asks the former gateway."""
        self._count += 1
        former = self.controller, self.worker, self.gateway
        clients, workers = self._places[self._count % 2]
        self.controller = self.program(
            root, "controller", "--standby", "--listen", clients, "--worker-listen", workers, "--events", ANYWHERE,
            "--data", str(self._data / "controller"),
        )  # fmt: skip
        if former[0] is not None:
            eventually(
                lambda: (
                    [(row["address"], row["behind"]) for row in client.status()["standing"]["standbys"]]
                    == [(clients, 0)]
                ),
                "the standby is there",
            )
            client.hand_over()
            assert former[0].wait() == 0, former[0].text
        self.controller.wait_for("listens for clients on")
        name = f"worker-{self._count}"
        self.worker = self.program(
            root, "worker", "--connect", self._workers, "--arena", "64MiB", "--page-size", "256KiB", "--executors", "1",
            "--store", str(self._data / name), "--name", name,
        )  # fmt: skip
        eventually(lambda: is_ready(client, name), f"{name} is ready")
        if former[1] is not None:
            assert former[1].stop() == 0, former[1].text
        self.gateway = self.program(
            root, "gateway", "--connect", self.clients, "--http-port", "0", "--grpc-port", "off", "--metrics-port", "off"
        )  # fmt: skip
        self.http = self.gateway.wait_for(r"listens: http on (http://\S+)")[1].rstrip(",;")
        if former[2] is not None:
            balanced()
            assert former[2].stop() == 0, former[2].text

    def end(self) -> None:
        for program in (self.gateway, self.worker, self.controller):
            assert program is not None
            assert program.stop() == 0, program.text
        for program in self._programs:
            assert "Traceback" not in program.text, program.text

    def destroy(self) -> None:
        for program in self._programs:
            program.destroy()
        self._held.close()


def is_ready(client: Client, name: str) -> bool:
    found = [worker for worker in client.status()["workers"] if worker["name"] == name]
    return bool(found) and not found[0]["models"]["preparing"] and not found[0]["models"]["failed"]


class Asker:
    """Asks over and over on a thread, until the first error or the end."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._stop = threading.Event()
        self.count = 0
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._ask()
            except Exception as error:
                self.error = error
                return
            self.count += 1

    def check(self) -> None:
        """Assert that requests are answered now."""
        before = self.count
        eventually(lambda: self.count > before + 5 or self.error is not None, "requests are answered")
        if self.error is not None:
            raise AssertionError(f"a request failed after {self.count}") from self.error

    def end(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise AssertionError(f"a request failed after {self.count}") from self.error


@contextlib.contextmanager
def asking(live: Live, client: Client) -> Iterator[list[Asker]]:
    """Requests by the client's library and by HTTP; none may fail."""
    reference = Reference(zoo.build("mlp", seed=1))
    expected = reference(X)

    def by_library() -> None:
        assert same(client.infer("m", X, slo=PATIENCE_S), expected)

    def by_http() -> None:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": X.ravel().tolist()}]}
        request = urllib.request.Request(
            f"{live.http}/v2/models/m/infer", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            output = json.loads(reply.read())["outputs"][0]
        assert same(np.array(output["data"], np.float32).reshape(output["shape"]), expected)

    askers = [Asker(by_library), Asker(by_http)]
    try:
        yield askers
    finally:
        for asker in askers:
            asker.end()


def test_a_live_cluster_goes_to_this_release_and_back(tmp_path: Path, last: Path) -> None:
    live = Live(tmp_path)
    try:
        with Client(live.clients, timeout=PATIENCE_S) as client:
            live.replace(last, client)
            client.register("m", zoo.build("mlp", seed=1))
            with asking(live, client) as askers:
                for root, name in ((ROOT, "by this release"), (last, "by the last one")):
                    live.replace(root, client, askers[1].check)
                    for asker in askers:
                        asker.check()
                    client.register(name.replace(" ", "-"), zoo.build("mlp", seed=2))
            expected = Reference(zoo.build("mlp", seed=2))(X)
            for name in ("by-this-release", "by-the-last-one"):
                assert same(client.infer(name, X), expected), "the last release reads what this one wrote"
            assert client.status()["standing"]["takeovers"]["handed_over"] == 2
        live.end()
    finally:
        live.destroy()
