"""A live controller's decisions are reproduced, event by event, from its recording, and can be traced."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from clockwork.errors import Refused
from clockwork.formats.profiles import ModelProfile, copies
from clockwork.scheduler.recording import decode, encode_header, encode_step
from clockwork.system.clock import MS
from clockwork.workloads import load_generator
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import ANYWHERE, running_cluster
from tests.sim.test_trace import check_format

SMALL = ModelProfile("small", {1: 2 * MS, 4: 4 * MS}, 40 << 20, 3 * MS, input_bytes=100, output_bytes=7)


@pytest.mark.parametrize("policy", [pytest.param("edf", marks=pytest.mark.slow), "adaptive"])
def test_a_live_controllers_decisions_are_had_again(tmp_path: Path, policy: str) -> None:
    recording = tmp_path / "it.rec"
    with running_cluster(
        tmp_path / "cluster", workers=0, controller_options=("--policy", policy, "--record", str(recording))
    ) as cluster:
        emulated = ("--device", "emulated", "--page-size", "16MiB", "--devices", "2")
        worker = cluster.start_worker(*emulated, "--emulate", "exec_noise=0.05", arena="128MiB")
        with cluster.client() as client:
            names = [one.name for one in copies([SMALL], 6)]
            for name in names:
                client.register(name, SMALL)
            settings = load_generator.LoadSettings(
                models=tuple(names), rate=300.0, duration_s=1.5, slo_s=PATIENCE_S, seed=3
            )
            report = load_generator.run(client, settings)
            assert report.answered > 100
            with pytest.raises(Refused) as refused:
                client.infer(names[0], np.zeros((1, SMALL.input_bytes), np.uint8), slo=1e-6)
            cluster.kill(worker)
            eventually(lambda: not client.status()["workers"], "the worker is missed")
            load_generator.run(
                client,
                load_generator.LoadSettings(models=tuple(names), rate=50.0, duration_s=0.2, slo_s=0.05),
            )
        assert cluster.controller.stop() == 0
        again = cluster.program(["replay", str(recording)])
        assert again.wait() == 0, again.text
        assert "The decisions are identical." in again.text
        counts = re.search(r"(\d+) steps, (\d+) events, (\d+) orders of policy (\w+)", again.text)
        assert counts is not None, again.text
        assert counts[4] == policy
        assert int(counts[2]) > report.offered
        assert int(counts[3]) > report.offered
        output = tmp_path / "run.json"
        traced = cluster.program(["trace", str(recording), "-o", str(output)])
        assert traced.wait() == 0, traced.text
        body = json.loads(output.read_text())
        check_format(body)
        requests = [one for one in body["traceEvents"] if one.get("cat") == "request" and one["ph"] == "X"]
        assert len(requests) > report.offered
        answered = [one for one in requests if one["args"]["outcome"] == "answered"]
        assert len(answered) == report.answered
        assert f"with {len(requests)} requests" in traced.text
        same = cluster.program(["trace", "--compare", str(recording), str(recording)])
        assert same.wait() == 0, same.text
        assert "All decisions are the same." in same.text
        assert f"Both answered {report.answered} requests, only A 0, only B 0." in same.text
        other = tmp_path / "other.rec"
        saved = cluster.program(["replay", str(recording), "--policy", "fifo", "--save", str(other)])
        assert saved.wait() == 0, saved.text
        parted = cluster.program(["trace", "--compare", str(recording), str(other)])
        assert parted.wait() == 0, parted.text
        assert "not asked the same" not in parted.text, parted.text
        assert "They part after" in parted.text, parted.text
        assert " small-3@1 " in parted.text
        why = cluster.program(["explain", str(refused.value.request), "--recording", str(recording)])
        assert why.wait() == 0, why.text
        assert f"Request {refused.value.request} for small-0@1" in why.text
        assert "It was refused at its arrival (infeasible)" in why.text
        picture = tmp_path / "why.svg"
        slowest = cluster.program(
            ["explain", "--slowest", "--recording", str(recording), "--svg", str(picture)]
        )
        assert slowest.wait() == 0, slowest.text
        assert "It was answered after" in slowest.text
        assert "2 of 2 devices could have served it" in slowest.text
        assert "its own batch" in picture.read_text()
    check_the_two_encoders_agree(recording)


def check_the_two_encoders_agree(recording: Path) -> None:
    """The controller writes steps natively: the same bytes as scheduler.recording writes."""
    with recording.open("rb") as file:
        header, steps = decode(file)
        again = encode_header(header) + b"".join(encode_step(*step) for step in steps)
    written = recording.read_bytes()
    assert len(written) == len(again)
    assert written == again


def test_a_controller_that_cannot_start_spoils_no_recording_of_another(tmp_path: Path) -> None:
    recording = tmp_path / "it.rec"
    with running_cluster(
        tmp_path / "cluster", workers=0, controller_options=("--record", str(recording))
    ) as cluster:
        before = recording.read_bytes()
        assert before
        ports = [
            "--listen",
            cluster.endpoint,
            "--worker-listen",
            cluster.worker_endpoint,
            "--events",
            ANYWHERE,
        ]
        # the directory is in use, or the ports are
        for data in (cluster.data / "controller", tmp_path / "other"):
            flags = ["--data", str(data), "--record", str(recording), "--policy", "edf"]
            second = cluster.program(["controller", *ports, *flags])
            assert second.wait() == 1, second.text
            assert recording.read_bytes()[: len(before)] == before
