"""Workers whose devices share an arena: those that cannot are told why; emulated executors serve a model that
is loaded once."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.system.clock import MS
from clockwork.wire import messages
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import running_cluster
from tests.process.peers import Peer, serving

OWN = {"kind": "cpu", "name": "x", "fingerprint": "f", "page_bytes": 4096, "page_count": 8, "run_ahead": 2}


def hello(*devices: dict[str, object]) -> messages.WorkerHello:
    return messages.WorkerHello(messages.PROTOCOL_VERSION, "test", "w", 7, list(devices))


def test_a_worker_is_told_why_its_devices_cannot_share_an_arena(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        before = len(served.status()["workers"])
        with Peer(served.controller.worker_endpoint, messages.TO_WORKER) as worker:
            worker.send(hello(OWN, OWN | {"arena": 0, "page_count": 9}))
            refused, _ = worker.receive(messages.Mismatch)
            assert refused.text == (
                "device 1 executes from the arena of device 0, but its page_count is 9, not 8"
            )
            assert len(served.status()["workers"]) == before
            worker.send(hello(OWN, OWN | {"arena": 0}))
            worker.receive(messages.WorkerWelcome)
            assert len(served.status()["workers"]) == before + 1


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_emulated_executors_run_at_once_a_model_that_is_loaded_once(tmp_path: Path, policy: str) -> None:
    profile = ModelProfile("slow", {1: 300 * MS}, 1 << 20, MS, input_bytes=100, output_bytes=7)
    with running_cluster(tmp_path, workers=0, controller_options=("--policy", policy)) as cluster:
        cluster.start_worker(
            "--device", "emulated", "--emulate", "executors=4", arena="64MiB", name="w", store="w"
        )
        with cluster.client() as client:
            client.register("slow", profile)
            inputs = np.ones((1, 100), np.uint8)
            client.infer("slow", inputs, slo=PATIENCE_S)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(client.infer, "slow", inputs, slo=PATIENCE_S) for _ in range(4)]
                for answer in asked:
                    answer.result(PATIENCE_S)
            (worker,) = client.status()["workers"]
            rows: list[dict[str, Any]] = worker["devices"]
            assert [row["arena"] for row in rows] == [-1, 0, 0, 0]
            assert [row["plan"]["arena"] for row in rows] == [0] * 4
            assert [row["plan"]["resident"] for row in rows] == [1, 0, 0, 0]
            assert sum(row["plan"]["served"] for row in rows) == 5
            assert sum(row["plan"]["served"] > 0 for row in rows) > 1
            (place,) = client.model("slow").devices
            assert (place["worker"], place["device"]) == ("w", 0)


def test_the_devices_of_an_arena_are_offline_together(tmp_path: Path) -> None:
    with serving(tmp_path) as served, Peer(served.controller.worker_endpoint, messages.TO_WORKER) as worker:
        worker.send(hello(OWN, OWN | {"arena": 0}, OWN, OWN | {"arena": 0}))
        worker.receive(messages.WorkerWelcome)
        worker.send(messages.DeviceFault(3, "broken"))

        def offline() -> list[str]:
            (found,) = [row for row in served.status()["workers"] if row["name"] == "w"]
            return [device["offline"] for device in found["devices"]]

        eventually(lambda: any(offline()), "a device is offline")
        assert offline() == ["broken", "broken", "", "broken"]
