"""A cluster whose worker has several executors of one arena: a model is loaded once, and all execute it."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path

import numpy as np
import pytest

from clockwork.errors import ExecutionFailed, Refused, Unavailable
from clockwork.models import zoo
from tests.device import wild
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import running_cluster
from tests.process.test_cluster_wild import number, register

X = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)


def test_a_model_is_loaded_once_and_runs_on_all_executors_at_once(tmp_path: Path) -> None:
    mlp = zoo.build("mlp")
    with running_cluster(tmp_path, workers=0) as cluster, cluster.client() as client:
        cluster.start_worker("--executors", "3", name="w")
        client.register("mlp", mlp)
        register(client, "spin", wild.spin())
        expected = client.infer("mlp", X)
        (shown,) = client.status()["workers"]
        assert [device["arena"] for device in shown["devices"]] == [-1, 0, 0]
        loads = shown["sent"]["load"]
        # Two executions that end only when they are ended leave one executor, for which 20 requests take
        # turns.
        endless = [client.submit("spin", {"n": number(2**62)}, slo=PATIENCE_S) for _ in range(2)]

        def busy() -> int:
            (worker,) = client.status()["workers"]
            return sum(bool(device["plan"]["in_flight"]) for device in worker["devices"])

        eventually(lambda: busy() == 2, "two executors are busy")
        for _ in range(20):
            np.testing.assert_allclose(client.infer("mlp", X, slo=PATIENCE_S), expected, rtol=1e-5)
        for future in endless:
            with pytest.raises(ExecutionFailed, match="longer than it may"):
                future.result(PATIENCE_S)
        (shown,) = client.status()["workers"]
        assert shown["sent"]["load"] == loads + 1, "spin is the only model that was loaded since"
        status, text = cluster.run("status")
        assert status == 0, text
        assert text.count("cpu: ") >= 3


def test_requests_are_spread_over_the_executors(tmp_path: Path) -> None:
    mlp = zoo.build("mlp")
    with running_cluster(tmp_path, workers=0) as cluster, cluster.client() as client:
        cluster.start_worker("--executors", "2", name="w")
        client.register("mlp", mlp)
        expected = client.infer("mlp", X)
        futures = [client.submit("mlp", X, slo=PATIENCE_S) for _ in range(300)]
        for future in futures:
            np.testing.assert_allclose(future.result(PATIENCE_S), expected, rtol=1e-4, atol=1e-6)
        plans = [device["plan"] for device in client.status()["workers"][0]["devices"]]
        assert all(plan["recent_executing_ns"] > 0 for plan in plans), plans


def test_a_worker_that_is_killed_under_load_comes_back_and_each_request_is_answered_once(
    tmp_path: Path,
) -> None:
    stop, back = threading.Event(), threading.Event()
    with running_cluster(tmp_path, workers=0) as cluster, cluster.client() as client:
        worker = cluster.start_worker("--executors", "2", name="w")
        client.register("mlp", zoo.build("mlp"))
        expected = client.infer("mlp", X)

        def ask() -> tuple[int, int]:
            """Ask until the end. Returns the number of right answers, and of failures."""
            right = failed = 0
            while not stop.is_set():
                try:
                    np.testing.assert_allclose(
                        client.infer("mlp", X, slo=PATIENCE_S), expected, rtol=1e-4, atol=1e-6
                    )
                    right += 1
                except (Refused, Unavailable):
                    failed += 1
                    back.wait(PATIENCE_S)
            return right, failed

        def both_execute() -> bool:
            (found,) = client.status()["workers"]
            return all(device["plan"]["served"] > 20 for device in found["devices"])

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask) for _ in range(6)]
            try:
                eventually(both_execute, "both executors execute")
                cluster.kill(worker)
                eventually(lambda: not client.status()["workers"], "the dead worker is struck off")
                cluster.start_worker("--executors", "2", name="w")
                eventually(
                    lambda: client.model("mlp").raw["workers"].get("w") == "ready",
                    "the worker has the model again",
                )
                back.set()
                eventually(both_execute, "both executors of the new process execute")
            finally:
                stop.set()
                back.set()
            right, failed = map(sum, zip(*(one.result(PATIENCE_S) for one in asked)))
        counts = client.status()["counts"]
        assert counts.pop("answered") == right + 1
        del counts["refusals"]  # of the refused, by reason
        assert sum(counts.values()) == failed
