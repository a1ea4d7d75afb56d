"""`clockwork up` that divides the cores of its machine: a model that one thread executes too slowly gets a
worker of two threads by itself, while the others are served.

The machine is made up: three cores that execute, of which two have to share one here.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from clockwork import Client
from clockwork.cli.root import cli
from clockwork.errors import InvalidModel, Unavailable
from clockwork.formats.prepared import prepared_directory
from clockwork.models import zoo
from clockwork.system.clock import MS
from clockwork.wire.packages import MODEL_FILE
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually
from tests.process.cluster import Reference, same
from tests.process.test_differing_workers import PAGE_BYTES, measured
from tests.process.test_up_restarts import Load
from tests.process.up import running

MADE_UP = """
from clockwork.cli import serve
from clockwork.launch.cores import DividedCores
def flags(division):
    wide = ("--executors", "1", "--threads", str(division.threads), "--devices", str(division.wide))
    return ("--executors", str(division.narrow)), *([{wide}] if division.wide else ())
serve.divided_cores = lambda workers: DividedCores(3, 1, flags)
from clockwork.cli.root import main
main()
"""
"""`clockwork` on a machine of three cores. {wide}: the flags of the worker of several threads."""

ROWS = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A model that a worker of one thread takes too long for, as its store says, and one of two threads does
    not. Its SLO is PATIENCE_S."""
    package = tmp_path / "package"
    package.mkdir()
    onnx.save(zoo.build("mlp"), package / MODEL_FILE)
    data = tmp_path / "data"
    measured(data, package, "bound", 16, 1, threads=2)
    narrow = measured(data, package, "bound", 16, 1)
    narrow.profile = [dataclasses.replace(point, exec_ns=10 * PATIENCE_NS) for point in narrow.profile]
    narrow.by_threads = [[2, MS]]
    narrow.write(prepared_directory(data, narrow.digest, narrow.fingerprint, {}))
    return package


def options() -> tuple[str, ...]:
    return ("--no-gateway", "--page-size", str(PAGE_BYTES))


def threads(client: Client) -> dict[str, list[int]]:
    """Return the threads of the executors of each worker."""
    workers = client.status()["workers"]
    return {
        worker["name"]: [device["threads"] for device in worker["devices"]]
        for worker in workers
        if worker["state"] == "serving"
    }


def divided(client: Client) -> bool:
    return threads(client) == {"worker-1": [1], "worker-2": [2]}


@pytest.mark.slow
def test_a_model_that_needs_two_threads_gets_them_while_others_are_served(
    tmp_path: Path, package: Path
) -> None:
    expected = Reference(zoo.build("mlp"))(ROWS)
    with running(tmp_path / "data", *options(), code=MADE_UP.replace("{wide}", "wide")) as up:
        with Client(up.endpoint, timeout=PATIENCE_S) as client, Load(up.endpoint) as load:
            assert list(threads(client)) == ["worker-0"]
            client.register("tight", str(package / MODEL_FILE), slo=PATIENCE_S)
            assert same(client.infer("tight", ROWS), expected)
            eventually(lambda: divided(client), "the worker that was alone has been replaced")
            up.wait_for("Executors are divided anew for tight@1: 1 of one core and 1 of 2 cores")
            up.wait_for("Executors are divided: 1 of one core and 1 of 2 cores")
            assert ", 2 threads" in CliRunner().invoke(cli, ["status", "--endpoint", up.endpoint]).output
            assert same(client.infer("tight", ROWS), expected)
            assert client.status()["threads_wanted"] == 2
            load.good_after(load.answers[-1][1])
        assert {error for _, _, error in load.answers} == {""}, "every request was answered meanwhile"
        assert up.end() == 0
    # At the next start the model is found, and gets its threads again.
    with running(tmp_path / "data", *options(), code=MADE_UP.replace("{wide}", "wide")) as up:
        with Client(up.endpoint, timeout=PATIENCE_S) as client:
            eventually(lambda: divided(client), "the cores are divided again")
            assert same(client.infer("tight", ROWS), expected)
        assert up.end() == 0


@pytest.mark.slow
def test_the_workers_stay_where_no_worker_of_several_threads_starts(tmp_path: Path, package: Path) -> None:
    code = MADE_UP.replace("{wide}", '("--processors", "1000")')
    with running(tmp_path / "data", *options(), code=code) as up:
        with (
            Client(up.endpoint, timeout=PATIENCE_S) as client,
            Load(up.endpoint) as load,
            concurrent.futures.ThreadPoolExecutor(1) as pool,
        ):
            waits = pool.submit(client.register, "tight", str(package / MODEL_FILE), slo=PATIENCE_S)
            up.wait_for("The executors stay as they were: not every worker of the new division has joined")
            assert list(threads(client)) == ["worker-0"]
            assert client.status()["threads_awaited"] == [["tight@1", 2]]
            status = CliRunner().invoke(cli, ["status", "--endpoint", up.endpoint]).output
            assert "waits      tight@1 for a worker whose executions have 2 threads" in status
            load.good_after(load.answers[-1][1])
            client.unregister("tight")
            with pytest.raises(Unavailable, match="unregistered before it was ready"):
                waits.result()
        assert {error for _, _, error in load.answers} == {""}
        assert up.end() == 0


@pytest.mark.slow
def test_nothing_is_divided_where_the_operator_says_so(tmp_path: Path, package: Path) -> None:
    code = MADE_UP.replace("{wide}", "wide")
    with running(tmp_path / "data", *options(), "--wide", "0", code=code) as up:
        with Client(up.endpoint, timeout=PATIENCE_S) as client:
            with pytest.raises(InvalidModel, match=r"serve it by workers with --threads 2$"):
                client.register("tight", str(package / MODEL_FILE), slo=PATIENCE_S)
            assert list(threads(client)) == ["worker-0"]
        assert up.end() == 0
