"""Models that take all memory, never end, crash their workers or hang: the effect on other models' requests.

The tests run real processes.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from clockwork import Client, config
from clockwork.config.system import OOM_SCORE
from clockwork.config.worker import EXECUTION_LIMIT_NS
from clockwork.errors import ClockworkError, DeadlineMissed, ExecutionFailed, Unavailable
from clockwork.formats.profiles import ModelProfile
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from tests.device import wild
from tests.device.rig import case
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, Program, Reference, running_cluster, same

X = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
MS = 1_000_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for the tests that end no worker; each has models of its own."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def troubles(client: Client) -> set[tuple[str, str]]:
    """Return the kinds and subjects of the open troubles."""
    return {(one["kind"], one["subject"]) for one in client.status()["troubles"]["open"]}


def number(value: int) -> np.ndarray:
    return np.array([value], np.int64)


def register(client: Client, name: str, one: Any, slo: float | None = None) -> None:
    """With an example that is quick."""
    client.register(name, one.model, examples=[{"n": number(3)}], slo=slo, batching="off")


def quadratic() -> Any:
    """A single NonMaxSuppression node, whose time grows with the square of n while its memory does not."""
    return case(
        [
            wild.constant("zero", TensorProto.INT64, [0], []),
            wild.constant("step", TensorProto.INT64, [1], []),
            helper.make_node("Squeeze", ["n"], ["stop"]),
            helper.make_node("Range", ["zero", "stop", "step"], ["index"]),
            helper.make_node("Cast", ["index"], ["at"], to=TensorProto.FLOAT),
            wild.constant("axes", TensorProto.INT64, [0, 2]),
            wild.constant("last", TensorProto.INT64, [0, 1]),
            helper.make_node("Unsqueeze", ["at", "axes"], ["left"]),  # [1, n, 1]: boxes beside each other
            wild.constant("half", TensorProto.FLOAT, [0.5]),
            helper.make_node("Add", ["left", "half"], ["right"]),
            helper.make_node("Concat", ["left", "left", "right", "right"], ["boxes"], axis=2),
            helper.make_node("Unsqueeze", ["at", "last"], ["scores"]),
            wild.constant("iou", TensorProto.FLOAT, [0.9]),
            helper.make_node("NonMaxSuppression", ["boxes", "scores", "n", "iou"], ["kept"]),
            helper.make_node("Shape", ["kept"], ["y"]),
        ],
        {"n": (TensorProto.INT64, [1])}, {"y": (TensorProto.INT64, [2])}, batches=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ConstantOfShape", pytest.param("Loop", marks=pytest.mark.slow)])
def test_a_request_for_a_terabyte_fails_alone(name: str, cluster: Cluster) -> None:
    mlp = zoo.build("mlp")
    with cluster.client() as client:
        scores = [
            int(Path(f"/proc/{one.pid}/oom_score_adj").read_text())
            for one in (cluster.workers[0], cluster.controller)
        ]
        assert scores[0] >= OOM_SCORE >= scores[1], "where memory runs out the worker goes first"
        client.register("mlp", mlp)
        register(client, name, wild.MEMORY[name])
        for n in (10**12, 2**50):
            with pytest.raises(ExecutionFailed):
                client.infer(name, {"n": number(n)})
        client.infer(name, {"n": number(2)})
        assert same(client.infer("mlp", X), Reference(mlp)(X))
        assert len(client.status()["workers"]) == 1
        assert {kind for kind, _ in troubles(client)} <= {"model_overrun"}, (
            "a Loop may take its time before it has taken its memory"
        )


def test_an_endless_loop_is_ended_and_the_next_request_is_answered(cluster: Cluster) -> None:
    mlp = zoo.build("mlp")
    with cluster.client() as client:
        client.register("mlp", mlp)
        register(client, "spin", wild.spin())
        client.infer("mlp", X)
        began = now_ns()
        endless = client.submit("spin", {"n": number(2**62)})
        behind = client.submit("mlp", X, slo=PATIENCE_S)
        with pytest.raises(ExecutionFailed, match="longer than it may"):
            endless.result(PATIENCE_S)
        assert same(behind.result(PATIENCE_S), Reference(mlp)(X))
        took_s = (now_ns() - began) / SECOND
        print(f"the next request was answered {took_s:.3f} s after the endless one was sent")
        assert took_s > EXECUTION_LIMIT_NS / SECOND
        assert ("model_overrun", "spin@1") in troubles(client)
        assert client.model("spin").raw["faults"] == {"overrun": 1}
        client.infer("spin", {"n": number(5)})


@pytest.mark.slow
def test_with_an_slo_it_is_answered_at_its_deadline_and_ended_all_the_same(cluster: Cluster) -> None:
    with cluster.client() as client:
        register(client, "late", wild.spin())
        with pytest.raises(DeadlineMissed):
            client.infer("late", {"n": number(2**62)}, slo=0.2)
        eventually(lambda: client.model("late").raw["faults"] == {"overrun": 1}, "it is ended")
        client.infer("late", {"n": number(5)}, slo=PATIENCE_S)


@pytest.mark.slow
def test_other_devices_serve_while_one_is_stuck(tmp_path: Path) -> None:
    mlp = zoo.build("mlp")
    with running_cluster(tmp_path, workers=2) as cluster, cluster.client() as client:
        client.register("mlp", mlp)
        register(client, "spin", wild.spin())
        client.infer("spin", {"n": number(5)})
        endless = client.submit("spin", {"n": number(2**62)})
        late = []
        while not endless.done():
            began = now_ns()
            client.infer("mlp", X)
            late.append((now_ns() - began) / SECOND)
        assert len(late) > 2
        with pytest.raises(ExecutionFailed):
            endless.result(PATIENCE_S)
        print(f"the slowest of {len(late)} beside it took {max(late):.3f} s")


@pytest.mark.slow
def test_a_node_that_does_not_come_back_costs_its_worker_and_nobody_else(tmp_path: Path) -> None:
    mlp = zoo.build("mlp")
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        client.register("mlp", mlp)
        register(client, "hang", quadratic())
        client.infer("mlp", X)
        worker = cluster.workers[0]
        pid, mark = worker.pid, len(worker.lines)
        began = now_ns()
        stuck = client.submit("hang", {"n": number(600_000)})
        with pytest.raises(ExecutionFailed, match="begins anew"):
            stuck.result(PATIENCE_S)
        told_s = (now_ns() - began) / SECOND

        def answered() -> bool:
            try:
                return same(client.infer("mlp", X, slo=PATIENCE_S), Reference(mlp)(X))
            except ClockworkError:
                return False

        eventually(answered, "the worker is back and serves")
        took_s = (now_ns() - began) / SECOND
        print(
            f"told after {told_s:.3f} s, the next request answered {took_s:.3f} s after the stuck one was sent"
        )
        limit_s = (EXECUTION_LIMIT_NS + config.EXECUTION_GRACE_NS) / SECOND
        assert took_s > limit_s
        assert worker.pid == pid, "the same process, begun anew"
        assert any("begins anew" in line for line in worker.lines[mark:])
        assert client.model("hang").raw["faults"] == {"overrun": 1}


@pytest.mark.slow
def test_a_worker_with_something_endless_serves_the_next_controller_and_leaves_when_told(
    tmp_path: Path,
) -> None:
    mlp = zoo.build("mlp")
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        client.register("mlp", mlp)
        register(client, "spin", wild.spin())
        endless = client.submit("spin", {"n": number(2**62)})
        eventually(lambda: executing(client), "it executes")
        cluster.kill(cluster.controller)
        with pytest.raises(ClockworkError):
            endless.result(PATIENCE_S)
        cluster.start_controller()
        eventually(lambda: client.model("mlp").state == "ready", "the worker is back")
        assert same(client.infer("mlp", X), Reference(mlp)(X))
        client.submit("spin", {"n": number(2**62)})
        eventually(lambda: executing(client), "it executes")
        assert cluster.workers[0].stop() == 0


@pytest.mark.slow
def test_a_registration_that_does_not_end_holds_up_no_other(tmp_path: Path) -> None:
    mlp = zoo.build("mlp")
    limit_s = 45.0
    with running_cluster(tmp_path, environment={"CLOCKWORK_PREPARATION_RUN": str(limit_s)}) as cluster:
        failures: list[ClockworkError] = []
        began = now_ns()

        def register_endless(name: str, one: Any, n: int) -> None:
            with cluster.client() as client:
                try:
                    client.register(
                        name, one.model, examples=[{"n": number(n)}], batching="off", timeout=PATIENCE_S
                    )
                except ClockworkError as error:
                    failures.append(error)

        threads = [
            threading.Thread(target=register_endless, args=("endless", wild.spin(), 2**62)),
            threading.Thread(target=register_endless, args=("hang", quadratic(), 3_000_000)),
        ]
        for thread in threads:
            thread.start()
        with cluster.client() as client:
            eventually(lambda: len(client.models()) == 2, "both have come")
            client.register("mlp", mlp, timeout=PATIENCE_S)
            ready_s = (now_ns() - began) / SECOND
            assert same(client.infer("mlp", X), Reference(mlp)(X))
            assert not failures, "the others were passed while they went on"
        for thread in threads:
            thread.join()
        ended_s = (now_ns() - began) / SECOND
        assert len(failures) == 2
        assert all(f"longer than {limit_s:g} s" in str(one) for one in failures), failures
        print(f"the third was ready after {ready_s:.1f} s, the others had failed after {ended_s:.1f} s")


def crash_lane(pid: int) -> None:
    """Have the thread that executes run into a segmentation fault."""
    found = [
        int(task.name)
        for task in Path(f"/proc/{pid}/task").iterdir()
        if (task / "comm").read_text().strip() == "cw-execute"
    ]
    assert len(found) == 1
    tgkill = 234
    assert ctypes.CDLL(None).syscall(tgkill, pid, found[0], int(signal.SIGSEGV)) == 0


def named(cluster: Cluster, name: str) -> Program:
    """Return the worker of that name."""
    return next(one for one in cluster.workers if name in one.process.args)  # type: ignore[operator]


def wait_missed(client: Client, name: str) -> None:
    eventually(lambda: name not in [one["name"] for one in client.status()["workers"]], f"{name} is missed")


def executing(client: Client) -> str:
    """Return the worker that has an execution under way; "" if none has."""
    for one in client.status()["workers"]:
        if any(device["plan"].get("in_flight") for device in one["devices"]):
            return str(one["name"])
    return ""


def test_a_request_that_crashes_two_workers_takes_no_third_and_its_model_is_set_aside(tmp_path: Path) -> None:
    mlp = zoo.build("mlp")
    with running_cluster(tmp_path, workers=3) as cluster, cluster.client() as client:
        client.register("mlp", mlp)
        register(client, "spin", wild.spin())
        killer = client.submit("spin", {"n": number(2**62)})
        dead = []
        for _ in range(2):
            name = eventually(lambda: executing(client), "it executes")
            worker = named(cluster, name)
            threading.Event().wait(0.2)  # time for the execution to begin
            crash_lane(worker.pid)
            assert worker.wait() == -signal.SIGSEGV
            cluster.kill(worker)
            dead.append(name)
            wait_missed(client, name)
        with pytest.raises(ExecutionFailed, match="workers ended while they executed"):
            killer.result(PATIENCE_S)
        assert len(set(dead)) == 2
        with pytest.raises(Unavailable, match="set aside"):
            client.infer("spin", {"n": number(5)})
        kinds = {one["kind"]: one for one in client.status()["troubles"]["open"]}
        assert kinds["model_set_aside"]["subject"] == "spin@1"
        assert kinds["worker_killed"]["count"] == 2
        assert same(client.infer("mlp", X), Reference(mlp)(X))
        assert cluster.run("models", "load", "spin")[0] == 0
        client.infer("spin", {"n": number(5)})
        assert "model_set_aside" not in {one["kind"] for one in client.status()["troubles"]["open"]}


def test_two_workers_killed_from_outside_lose_nothing_not_even_what_both_executed(tmp_path: Path) -> None:
    slow = ModelProfile("slow", {1: 900 * MS}, 16 << 20, 20 * MS, input_bytes=100)
    fast = ModelProfile("fast", {1: 2 * MS}, 16 << 20, 20 * MS, input_bytes=100)
    row = np.zeros((1, 100), np.uint8)
    with running_cluster(tmp_path, workers=0) as cluster, cluster.client() as client:
        for index in range(3):
            cluster.start_worker("--device", "emulated", arena="1GiB", name=f"e{index}")
        client.register("slow", slow)
        client.register("fast", fast)
        # A registration ends with the first worker that is ready.
        eventually(
            lambda: [worker["models"]["ready"] for worker in client.status()["workers"]] == [2] * 3,
            "every worker has both",
        )
        unlucky = client.submit("slow", row, slo=PATIENCE_S)
        others = []
        for _ in range(2):
            name = eventually(lambda: executing(client), "it executes")
            others += [client.submit("fast", row, slo=PATIENCE_S) for _ in range(20)]
            worker = named(cluster, name)
            cluster.kill(worker)
            wait_missed(client, name)
        unlucky.result(PATIENCE_S)
        for one in others:
            one.result(PATIENCE_S)
        assert client.model("slow").state == "ready"
        assert client.status()["counts"]["failed"] == 0


@pytest.mark.slow
def test_an_emulated_device_that_overruns_is_treated_alike(tmp_path: Path) -> None:
    model = ModelProfile("m", {1: 5 * MS}, 16 << 20, 5 * MS, input_bytes=100)
    row = np.zeros((1, 100), np.uint8)
    with running_cluster(tmp_path, workers=0) as cluster, cluster.client() as client:
        cluster.start_worker(
            "--device",
            "emulated",
            "--emulate",
            "outlier=1",
            "--emulate",
            "outlier_factor=100000",
            arena="1GiB",
        )
        client.register("m", model)
        with pytest.raises(ExecutionFailed, match="longer than it may"):
            client.infer("m", row, slo=PATIENCE_S)
        worker = cluster.workers[0]
        cluster.kill(worker)
        cluster.start_worker(
            "--device", "emulated", "--emulate", "outlier=1", "--emulate", "outlier_factor=100000",
            "--emulate", "unending", arena="1GiB", name="unending",
        )  # fmt: skip
        eventually(
            lambda: client.model("m").state == "ready" and len(client.status()["workers"]) == 1, "it is back"
        )
        mark = len(cluster.workers[1].lines)
        with pytest.raises(ExecutionFailed, match="begins anew"):
            client.infer("m", row, slo=PATIENCE_S)
        again = cluster.workers[1]
        again.wait_for("serves controller", after=mark)
        assert again.process.poll() is None
