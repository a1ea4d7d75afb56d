"""Clusters of emulated devices: the paper's models, over the real protocol, without a GPU."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.errors import (
    ClockworkError,
    ConnectionLost,
    DeadlineMissed,
    InvalidModel,
    Refused,
    Unavailable,
)
from clockwork.formats.profiles import ModelProfile, copies, paper_varieties, save_profiles
from clockwork.models import zoo
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.workloads import load_generator
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, Program, running_cluster, total_results, total_sent

EMULATED = ("--device", "emulated", "--page-size", "16MiB")
SMALL = ModelProfile("small", {1: 2 * MS, 4: 4 * MS}, 1 << 20, MS, input_bytes=100, output_bytes=7)


def start(cluster: Cluster, devices: int = 1, *settings: str, name: str = "emulated") -> Any:
    more = [word for setting in settings for word in ("--emulate", setting)]
    return cluster.start_worker(*EMULATED, "--devices", str(devices), *more, arena="22016MiB", name=name)


def ready(client: Client) -> int:
    return client.status()["models"].get("ready", 0)


@pytest.mark.slow
def test_twenty_devices_serve_fifty_models_and_come_back_after_a_kill(tmp_path: Path) -> None:
    models = paper_varieties(50)
    save_profiles(tmp_path / "models.json", models)
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        worker = start(cluster, 20)
        status, text = cluster.run("models", "add", "--profiles", str(tmp_path / "models.json"))
        assert (status, "50 models are ready" in text) == (0, True), text

        model = models[0]
        outputs = client.infer(model.name, np.ones((2, model.input_bytes), np.uint8))
        assert (outputs.dtype, outputs.shape, outputs.any()) == (np.uint8, (2, model.output_bytes), False)

        settings = load_generator.LoadSettings(
            models=tuple(one.name for one in models), rate=80.0, duration_s=2.0, slo_s=PATIENCE_S, seed=3
        )
        report = load_generator.run(client, settings)
        assert report.errors == {}
        assert report.offered == report.answered + report.refused + report.missed + report.timeouts > 100
        assert report.answered > 0.9 * report.offered
        before = client.status()
        busy = [device["plan"]["served"] for device in before["workers"][0]["devices"]]
        assert len(busy) == 20
        assert sum(busy) >= report.answered
        assert total_sent(before, "load") >= 40
        assert total_results(before, "ok") > 0
        assert before["workers"][0]["stats"]["late_p50_ns"] > 0

        cluster.kill(worker)
        eventually(lambda: not client.status()["workers"], "the worker is missed")
        with pytest.raises((Refused, Unavailable)):
            client.infer(model.name, np.zeros((1, model.input_bytes), np.uint8))
        start(cluster, 20, name="second")
        eventually(lambda: ready(client) == 50, "every model is ready again")
        assert eventually(lambda: answers(client, model), "it serves again") == (1, model.output_bytes)


def answers(client: Client, model: ModelProfile) -> tuple[int, ...] | None:
    """Return the shape of its output; None while no worker can give it."""
    try:
        found: np.ndarray = client.infer(model.name, np.zeros((1, model.input_bytes), np.uint8))
    except (ConnectionLost, Refused, Unavailable):
        return None
    return found.shape


def test_copies_share_a_package_and_have_weights_of_their_own(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        start(cluster)
        for one in copies([SMALL], 3):
            client.register(one.name, ModelProfile(**{**fields(one), "name": "small"}), slo=PATIENCE_S)
        infos = [client.model(f"small-{number}") for number in range(3)]
        assert len({info.digest for info in infos}) == 1
        assert infos[0].slo == PATIENCE_S
        x = np.zeros((1, 100), np.uint8)
        for info in infos:
            client.infer(info.name, x)
        assert total_sent(client.status(), "load") == 3
        # Other times under a known name are its next version.
        changed = ModelProfile(**{**fields(SMALL), "exec_ns": {1: MS}})
        info = client.register("small-0", changed, force=True)  # its requests have one row
        assert (info.version, info.batches, info.profile[0].exec_ns) == (2, False, MS)
        client.infer("small-0", x)
        client.unregister("small-0")


def fields(profile: ModelProfile) -> dict[str, Any]:
    return {name: getattr(profile, name) for name in profile.__dataclass_fields__}


def test_a_profile_and_a_model_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        worker = start(cluster)
        with pytest.raises(InvalidModel, match="an emulated device serves profiles"):
            client.register("digits", zoo.build("mlp"))
        with pytest.raises(InvalidModel, match="takes no examples"):
            client.register("small", SMALL, examples=np.zeros((1, 100), np.uint8))
        with pytest.raises(InvalidModel, match="pages"):
            client.register("huge", ModelProfile("huge", {1: MS}, 30 << 30, MS))
        assert worker.stop() == 0
        cluster.start_worker()
        with pytest.raises(InvalidModel, match="a cpu device needs the model itself"):
            client.register("small", SMALL)


def test_devices_that_fail_now_and_then_are_survived(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        start(cluster, 2, "failures=0.2", "seed=5", "exec_noise=0.05")
        client.register("small", SMALL)
        outcomes = []
        for _ in range(60):
            try:
                client.infer("small", np.zeros((1, 100), np.uint8))
                outcomes.append("ok")
            except ClockworkError as error:
                outcomes.append(type(error).__name__)
        assert outcomes.count("ok") > 30, outcomes
        status = client.status()
        assert total_results(status, "execution_failed") + total_results(status, "device_error") > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--emulate", "speed=2"), "no setting 'speed'"),
        (("--device", "cpu", "--emulate", "spin"), "a setting of emulated devices"),
        (("--device", "cpu", "--devices", "1000"), "at most 12 cpu devices"),
    ],
)
def test_settings_that_make_no_worker(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    program = Program(["worker", "--device", "emulated", "--store", str(tmp_path), *arguments])
    assert program.wait() == 1
    assert sentence in program.text


def test_up_with_profiles(tmp_path: Path) -> None:
    save_profiles(tmp_path / "models.json", [SMALL])
    with running_cluster(tmp_path / "cluster", workers=0) as cluster:
        up = cluster.program(
            ["up", "--port", "0", "--data", str(tmp_path / "up"), "--device", "emulated", "--devices", "3",
             "--profiles", str(tmp_path / "models.json"), "--copies", "4"]
        )  # fmt: skip
        endpoint = up.wait_for(r"clients  (\S+)")[1]
        with Client(endpoint) as client:
            assert sorted(one.name for one in client.models()) == [f"small-{number}" for number in range(4)]
            assert client.infer("small-3", np.zeros((1, 100), np.uint8)).shape == (1, 7)
            (worker,) = client.status()["workers"]
            assert [device["kind"] for device in worker["devices"]] == ["emulated"] * 3
        assert up.stop() == 0
    assert json.loads((tmp_path / "models.json").read_text())["profiles"][0]["name"] == "small"


def test_models_on_disk_are_fetched_through_a_small_host_store(tmp_path: Path) -> None:
    with (
        running_cluster(tmp_path / "cluster", workers=0) as cluster,
        cluster.client() as client,
    ):
        more = ("--host-bytes", "64MiB", "--emulate", "disk_bandwidth=4e9")
        cluster.start_worker(*EMULATED, "--devices", "2", *more, arena="64MiB", name="small-store")
        for one in copies([SMALL], 8):
            client.register(one.name, ModelProfile(**{**fields(one), "name": "small"}), slo=PATIENCE_S)
        x = np.zeros((1, 100), np.uint8)
        for _ in range(2):
            for number in range(8):
                client.infer(f"small-{number}", x)
        status = client.status()
        plan = status["workers"][0]["devices"][0]["plan"]
        assert (plan["host_bytes"], plan["host_used"], plan["hosted"]) == (64 << 20, 64 << 20, 4)
        assert total_sent(status, "fetch") >= 8
        assert total_sent(status, "drop") == total_sent(status, "fetch") - 4
        code, text = cluster.run("status")
        assert (code, "host store" in text) == (0, True), text


def test_a_policy_that_cannot_plan_fetches_refuses_the_worker(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0, controller_options=("--policy", "edf")) as cluster:
        worker = cluster.program([
            "worker", "--connect", cluster.worker_endpoint, "--device", "emulated", "--host-bytes", "1GiB",
            "--store", str(tmp_path / "store"),
        ])  # fmt: skip
        assert worker.wait() == 1
        assert "policy edf cannot plan for a host store" in worker.text


def test_after_two_stalls_in_a_row_an_idle_device_serves_what_the_profile_allows(tmp_path: Path) -> None:
    """Every two seconds executions of 2 ms take half a second, for a second.

    In that second no request with a shorter SLO was served.
    """
    stalls = ("slow_factor=250", f"slow_ns={SECOND}", f"slow_every_ns={2 * SECOND}")
    x = np.zeros((1, 100), np.uint8)
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        start(cluster, 1, *stalls)
        client.register("small", SMALL, slo=PATIENCE_S)
        client.infer("small", x)
        answered = False
        while not answered:
            slow = 0
            while slow < 2:
                began = now_ns()
                client.infer("small", x)
                slow = slow + 1 if now_ns() - began > 400 * MS else 0
            with contextlib.suppress(DeadlineMissed):  # this process was held up until the next stall
                client.infer("small", x, slo=0.3)  # the request was refused at once
                answered = True
        assert answered
