"""Processes that come, die and come back, under load."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.errors import ClockworkError, ConnectionLost, Refused, Unavailable
from clockwork.formats.profiles import ModelProfile
from clockwork.models import zoo
from clockwork.system.clock import MS
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Program, Reference, running_cluster, same

X = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)


@contextmanager
def askers(client: Client) -> Iterator[Callable[[], int]]:
    """Registers four models and asks each from a thread without a pause.

    Yields a count of right answers; at the end raises any failure.
    """
    base = zoo.build("mlp")
    expected = []
    for index in range(4):
        model = zoo.fine_tune(base, index)
        client.register(f"model-{index}", model)
        expected.append(Reference(model)(X))
    stop = threading.Event()
    right = [0] * 4

    def ask(index: int) -> None:
        while not stop.is_set():
            assert same(client.infer(f"model-{index}", X), expected[index])
            right[index] += 1

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(ask, index) for index in range(4)]
        try:
            yield lambda: sum(right)
        finally:
            stop.set()
        for task in tasks:
            task.result()


def served(client: Client) -> dict[str, int]:
    return {
        worker["name"]: sum(device["plan"]["served"] for device in worker["devices"])
        for worker in client.status()["workers"]
    }


def test_workers_share_die_and_are_replaced_without_one_failed_request(tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=2) as cluster, cluster.client() as client:
        with askers(client) as answered:
            eventually(lambda: min(served(client).values()) > 20, "both workers work")
            cluster.kill(cluster.workers[0])
            eventually(lambda: list(served(client)) == ["worker-1"], "the dead worker is struck off")
            before = answered()
            eventually(lambda: answered() > before + 20, "the other serves on")
            cluster.start_worker(name="worker-2")
            # A model that is resident elsewhere stays there; a new model goes where there is room.
            eventually(lambda: "worker-2" in client.model("model-0").raw["workers"], "it is known")
            client.register("new", zoo.build("mlp", seed=9))
            client.infer("new", X)
            eventually(lambda: served(client)["worker-2"] > 0, "the new worker works")
        counts = client.status()["counts"]
        assert counts["failed"] == counts["missed"] == counts["refused"] == 0


@pytest.mark.slow
def test_without_any_worker_requests_are_answered_and_a_new_worker_serves(tmp_path: Path) -> None:
    model = zoo.build("mlp", seed=2)
    expected = Reference(model)(X)
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        client.register("lone", model)
        assert same(client.infer("lone", X), expected)
        cluster.kill(cluster.workers[0])
        eventually(lambda: not client.status()["workers"], "the dead worker is struck off")
        with pytest.raises((Refused, Unavailable)) as caught:
            client.infer("lone", X, slo=PATIENCE_S)
        if isinstance(caught.value, Refused):
            assert caught.value.reason == "no_worker"
        cluster.start_worker(store="another")  # the new worker has to fetch the package
        eventually(lambda: client.model("lone").raw["workers"].get("worker-1") == "ready", "it is ready")
        assert same(client.infer("lone", X), expected)


def test_a_worker_that_is_stopped_in_order_loses_nothing(tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=2) as cluster, cluster.client() as client:
        with askers(client) as answered:
            eventually(lambda: min(served(client).values()) > 20, "both workers work")
            assert cluster.workers[0].stop() == 0
            before = answered()
            eventually(lambda: answered() > before + 20, "the other serves on")
        counts = client.status()["counts"]
        assert counts["failed"] == counts["missed"] == counts["refused"] == 0


BUSY = ModelProfile("busy", {1: 30 * MS}, 16 << 20, 20 * MS, input_bytes=100)


def drained(worker: Program) -> int:
    """End it by SIGTERM; return how many actions it still had then."""
    assert worker.stop() == 0
    assert "unfinished" not in worker.text
    found = re.search(r"stopping: (\d+) actions to finish", worker.text)
    assert found is not None
    return int(found[1])


def test_workers_drain_under_load_and_not_one_request_fails(tmp_path: Path) -> None:
    """Each worker has actions that run and others behind them when the signal comes, and alone has all models
    loaded. The other worker then loads them. No request is refused."""
    devices = ("--device", "emulated", "--devices", "2")
    with running_cluster(tmp_path, workers=0) as cluster, cluster.client() as client:
        cluster.start_worker(*devices, arena="1GiB", name="first")
        names = [f"busy-{index}" for index in range(6)]
        for name in names:
            client.register(name, dataclasses.replace(BUSY, name=name))
        stop = threading.Event()
        answers = [0] * 24

        def ask(index: int) -> None:
            while not stop.is_set():
                client.infer(
                    names[index % len(names)], np.zeros((1, BUSY.input_bytes), np.uint8), slo=PATIENCE_S
                )
                answers[index] += 1

        left = 0
        with concurrent.futures.ThreadPoolExecutor(len(answers)) as pool:
            tasks = [pool.submit(ask, index) for index in range(len(answers))]
            try:
                for name in ("second", "third", "fourth"):
                    leaving = cluster.workers[-1]
                    cluster.start_worker(*devices, arena="1GiB", name=name)
                    eventually(lambda: cluster.run("probe", "--worker", name)[0] == 0, f"{name} is ready")  # noqa: B023
                    left += drained(leaving)
                    eventually(lambda: list(served(client)) == [name], "it is gone")  # noqa: B023
                    before = sum(answers)
                    eventually(lambda: sum(answers) > before + 24, "the other serves on")  # noqa: B023
            finally:
                stop.set()
            for task in tasks:
                task.result()
        counts = client.status()["counts"]
        assert counts["failed"] == counts["missed"] == counts["refused"] == 0
        assert left > 0


def test_what_only_the_worker_that_drains_could_serve_is_refused_and_does_not_fail(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        client.register("lone", zoo.build("mlp", seed=2))
        stopped, outcomes, reasons = threading.Event(), collections.Counter[str](), set[str]()

        def ask() -> None:
            while outcomes["refused"] < 50:
                try:
                    client.infer("lone", X)
                    outcomes["answered"] += 1
                    if outcomes["answered"] == 50:
                        stopped.set()
                except Refused as error:
                    outcomes["refused"] += 1
                    reasons.add(error.reason)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            tasks = [pool.submit(ask) for _ in range(4)]
            assert stopped.wait(PATIENCE_S)
            drained(cluster.workers[0])
            for task in tasks:
                task.result()
        assert reasons == {"no_worker"}
        counts = client.status()["counts"]
        assert counts["failed"] == counts["missed"] == 0
        assert counts["refused"] == outcomes["refused"]


def test_a_controller_killed_and_restarted_is_found_again_by_all(tmp_path: Path) -> None:
    model = zoo.build("residual_cnn", seed=4)
    image = np.random.default_rng(4).standard_normal((1, 3, 64, 64)).astype(np.float32)
    expected = Reference(model)(image)
    with running_cluster(tmp_path, workers=2) as cluster, cluster.client() as client:
        client.register("kept", model, slo=PATIENCE_S)
        client.register("other", zoo.build("mlp"))
        client.unregister("other")
        marks = [len(worker.lines) for worker in cluster.workers]
        futures = [client.submit("kept", image) for _ in range(50)]
        cluster.controller.send(signal.SIGSTOP)
        last = client.submit("kept", image)
        cluster.kill(cluster.controller)
        with pytest.raises(ConnectionLost):
            last.result(PATIENCE_S)
        for future in futures:
            with contextlib.suppress(ConnectionLost):
                assert same(future.result(PATIENCE_S), expected)  # the request may have been answered before
        cluster.start_controller()
        for worker, mark in zip(cluster.workers, marks):
            worker.wait_for("serves controller", after=mark)
        assert [info.name for info in client.models()] == ["kept"]
        eventually(lambda: client.model("kept").state == "ready", "the model is ready again")
        assert client.model("kept").slo == PATIENCE_S
        assert same(client.infer("kept", image), expected)
        assert {worker["name"] for worker in client.status()["workers"]} == {"worker-0", "worker-1"}


@pytest.mark.slow
def test_a_client_waits_for_a_controller_that_comes_a_little_later(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        client.register("late", zoo.build("mlp"))
        cluster.controller.stop()
        with pytest.raises(ClockworkError):
            client.infer("late", X, timeout=0.2)
        cluster.start_controller()

        def answered() -> bool:
            try:
                return np.asarray(client.infer("late", X)).shape == (1, 10)
            except (Refused, Unavailable, ConnectionLost):  # until the worker has joined
                return False

        eventually(answered, "the same client is answered")
