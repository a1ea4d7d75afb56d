"""`clockwork up --ray`, on a Ray cluster of this machine alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from tests.process.cluster import Program, eventually, session_members

HEAD = """
import sys, ray
ray.init(num_cpus=8, include_dashboard=False, logging_level="warning", _temp_dir=sys.argv[1])
print("head at", ray.get_runtime_context().gcs_address, flush=True)
import signal
signal.sigwait([signal.SIGTERM])
ray.shutdown()
"""
"""A Ray cluster with room for eight processes, until it is told to end."""

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from clockwork.cli import main
main()
"""

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra [ray])")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }


@pytest.fixture
def head(environment: dict[str, str]) -> Iterator[str]:
    """The address of a Ray cluster."""
    # Ray's sockets lie below it, whose paths may not be long.
    program = Program([f"/tmp/clockwork-ray-{os.getpid()}"], environment, code=HEAD)
    try:
        yield program.wait_for(r"head at (\S+)")[1]
        assert program.stop() == 0
    finally:
        program.destroy()


def processes(what: str, data: Path) -> list[int]:
    """Of a controller or a worker that works on this data."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:  # it ended meanwhile
                continue
            if what in words and str(data) in words:
                found.append(int(entry.name))
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@needs_ray
@pytest.mark.slow
def test_a_cluster_on_ray_serves_replaces_what_is_lost_and_leaves_nothing(
    head: str, environment: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    up = Program(
        ["up", "--ray", "--ray-address", head, "--workers", "2", "--port", "0", "--data", str(data),
         "--arena", "32MiB"], environment,
    )  # fmt: skip
    try:
        endpoint = up.wait_for(r"clients +(tcp://\S+)")[1]
        key = up.wait_for(r"--key (\S+)")[1]
        up.wait_for("Ctrl-C ends it")
        with Client(endpoint, keys=Path(key), timeout=60) as client:
            ask = lambda: client.infer("digits", np.zeros((1, 1, 8, 8), np.float32))  # noqa: E731
            assert ask().shape == (1, 10)
            workers = processes("worker", data)
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            up.wait_for(r"The worker-\d was killed by signal 9; it is placed anew")
            eventually(lambda: len(processes("worker", data)) == 2, "another takes its place")
            mark = len(up.lines)
            os.kill(parent(workers[1]), signal.SIGKILL)  # the actor: its child ends with it
            up.wait_for(r"The worker-\d was lost with its machine; it is placed anew", mark)
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


def test_without_ray_the_command_says_what_to_install(tmp_path: Path) -> None:
    up = Program(["up", "--ray", "--data", str(tmp_path)], code=WITHOUT_RAY)
    assert up.wait() == 1
    assert up.text == "clockwork: Ray is not installed: pip install 'clockwork-serving[ray]'"


@needs_ray
def test_rays_client_is_no_machine_of_the_cluster(tmp_path: Path) -> None:
    up = Program(["up", "--ray-address", "ray://127.0.0.1:10001", "--data", str(tmp_path)])
    assert up.wait() == 1
    assert "has to run on a machine of the Ray cluster" in up.lines[-1]
