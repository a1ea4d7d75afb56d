"""`clockwork up --ray`, on a Ray cluster of this machine alone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.launch.ray import RaySettings, _lack
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Program, session_members

HEAD = """
import os, signal
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
cluster.wait_for_nodes()
reading, writing = os.pipe()
os.set_blocking(writing, False)
signal.set_wakeup_fd(writing)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
print("head at", cluster.address, flush=True)
while os.read(reading, 1)[0] == signal.SIGUSR1:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("one machine less", flush=True)
cluster.shutdown()
"""
"""A Ray cluster of three nodes on this machine, until it is told to end; SIGUSR1 removes a node."""

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from clockwork.cli.root import main
main()
"""

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra [ray])")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    # Ray's sockets lie below this directory, and their paths may not be long.
    short = tempfile.mkdtemp(prefix="ray-")
    yield {
        "RAY_TMPDIR": short,
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def head(environment: dict[str, str]) -> Iterator[Program]:
    """A Ray cluster."""
    program = Program([], environment, code=HEAD)
    try:
        program.wait_for("head at")
        yield program
        assert program.stop() == 0
    finally:
        program.destroy()


def processes(what: str, data: Path) -> list[int]:
    """Return the ids of controller or worker processes on this data."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:  # the process ended meanwhile
                continue
            if what in words and str(data) in words:
                found.append(int(entry.name))
    return found


@needs_ray
@pytest.mark.slow
def test_a_cluster_on_ray_serves_replaces_what_is_lost_and_leaves_nothing(
    head: Program, environment: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    address = head.wait_for(r"head at (\S+)")[1]
    up = Program(
        ["up", "--ray", "--ray-address", address, "--workers", "2", "--port", "0", "--data", str(data),
         "--arena", "32MiB"], environment,
    )  # fmt: skip
    try:
        endpoint = up.wait_for(r"clients +(tcp://\S+)")[1]
        key = up.wait_for(r"--key (\S+)")[1]
        gateway = up.wait_for(r"http +(http://\S+)")[1]
        up.wait_for("Ctrl-C ends it")
        with urllib.request.urlopen(f"{gateway}/v2/health/ready", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        with Client(endpoint, keys=Path(key), timeout=PATIENCE_S) as client:
            ask = lambda: client.infer("digits", np.zeros((1, 1, 8, 8), np.float32))  # noqa: E731
            assert ask().shape == (1, 10)
            workers = processes("worker", data)
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            up.wait_for(r"worker-\d was killed by signal 9; it is started again")
            eventually(lambda: len(processes("worker", data)) == 2, "another takes its place")
            mark = len(up.lines)
            for count in range(2):  # one of the machines has a worker
                head.send(signal.SIGUSR1)
                eventually(lambda: head.lines.count("one machine less") == count + 1, "a machine goes")  # noqa: B023
            up.wait_for(re.compile(r"worker-\d was lost with its machine; it is started again"), mark)
            eventually(
                lambda: {one["name"] for one in client.status()["workers"]} == {"worker-0", "worker-1"},
                "both are there",
            )
            eventually(lambda: client.model("digits").state == "ready", "the model is ready again")
            assert ask().shape == (1, 10)
        assert up.stop() == 0, up.text
        assert processes("worker", data) == processes("controller", data) == []
        assert not Path(key).exists()
        assert not session_members(up.pid)
        assert "Traceback" not in up.text
    finally:
        up.destroy()


def test_what_a_ray_cluster_has_too_little_of_is_said_in_numbers() -> None:
    """Ray itself waits without a message."""
    assert _lack({"CPU": 3.0}, 2, RaySettings(cpus=1)) == ""
    said = _lack({"CPU": 2.0, "memory": 1e9}, 2, RaySettings(cpus=1))
    assert said == "3 CPUs are needed (1 for the controller, 1 for each of 2 workers) and 2 are there"
    assert _lack({"CPU": 64.0}, 2, RaySettings(gpus=4)) == "8 GPUs are needed and 0 are there"


def test_without_ray_the_command_says_what_to_install(tmp_path: Path) -> None:
    up = Program(["up", "--ray", "--data", str(tmp_path)], code=WITHOUT_RAY)
    assert up.wait() == 1
    assert up.text == "clockwork: Ray is not installed: pip install 'clockwork-serving[ray]'"


@needs_ray
def test_rays_client_is_no_machine_of_the_cluster(tmp_path: Path) -> None:
    up = Program(["up", "--ray-address", "ray://127.0.0.1:10001", "--data", str(tmp_path)])
    assert up.wait() == 1
    assert "has to run on a machine of the Ray cluster" in up.lines[-1]
