"""A policy in Python schedules a live cluster; its exception ends the controller, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.system.clock import MS
from clockwork.workloads import load_generator
from tests.patience import PATIENCE_S
from tests.process.cluster import Cluster, running_cluster

SMALL = ModelProfile("small", {1: 2 * MS, 4: 4 * MS}, 40 << 20, 3 * MS, input_bytes=100, output_bytes=7)
EMULATED = ("--device", "emulated", "--page-size", "16MiB")
FIFO = "examples.fifo_policy:Fifo"


def test_it_serves_and_its_decisions_are_had_again(tmp_path: Path) -> None:
    recording = tmp_path / "it.rec"
    told = ("--policy", FIFO, "--option", "batch_cap=2", "--record", str(recording))
    with running_cluster(tmp_path / "cluster", workers=0, controller_options=told) as cluster:
        cluster.start_worker(*EMULATED, arena="128MiB")
        with cluster.client() as client:
            client.register("small", SMALL)
            settings = load_generator.LoadSettings(
                models=("small",), rate=200.0, duration_s=1.0, slo_s=PATIENCE_S, seed=3
            )
            report = load_generator.run(client, settings)
            assert client.status()["policy"] == FIFO
        assert report.answered > 0.9 * report.offered > 100
        assert cluster.controller.stop() == 0
        again = cluster.program(["replay", str(recording), "--trust"])
        assert again.wait() == 0, again.text
        assert f"orders of policy {FIFO}" in again.text
        assert "The decisions are identical." in again.text


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("FailsInChoose", "choose"),  # a hook called while C++ serves on its own
        ("FailsInAdmit", "admit"),  # a hook called while Python handles a client's message
    ],
)
def test_a_hook_that_fails_ends_the_controller(tmp_path: Path, name: str, hook: str) -> None:
    cluster = Cluster(tmp_path / "cluster", ("--policy", f"tests.unit.policies:{name}"))
    try:
        with cluster.client() as client:
            cluster.start_worker(*EMULATED, arena="128MiB")
            client.register("small", SMALL)
            client.submit("small", np.zeros((1, 100), np.uint8), slo=PATIENCE_S)
            assert cluster.controller.wait() == 1
        said = f"PolicyFailed: policy tests.unit.policies:{name}: {hook}() failed"
        assert said in cluster.controller.text
        assert "the controller failed at this" not in cluster.controller.text
    finally:
        cluster.destroy()
