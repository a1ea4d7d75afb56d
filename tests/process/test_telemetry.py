"""A controller that writes every request and action to disk, without waiting for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest

from clockwork.controller._exchange import Ring
from clockwork.controller.recording.telemetry import TelemetryProcess
from clockwork.formats.profiles import ModelProfile, copies
from clockwork.scheduler.recording import Header, encode_step
from clockwork.scheduler.types import Tick
from clockwork.system.clock import MS
from clockwork.workloads import load_generator
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import ANYWHERE, Cluster, running_cluster

pq = pytest.importorskip("pyarrow.parquet", reason="the extra [telemetry] is not installed")

SMALL = ModelProfile("small", {1: 2 * MS, 4: 4 * MS}, 40 << 20, 3 * MS, input_bytes=100, output_bytes=7)


def serve(cluster: Cluster, seconds: float = 1.0) -> load_generator.LoadReport:
    """Put some load on an emulated device."""
    cluster.start_worker("--device", "emulated", "--page-size", "16MiB", arena="128MiB")
    with cluster.client() as client:
        names = [model.name for model in copies([SMALL], 6)]
        for name in names:
            client.register(name, SMALL)
        settings = load_generator.LoadSettings(
            models=tuple(names), rate=200.0, duration_s=seconds, slo_s=0.05, seed=3
        )
        return load_generator.run(client, settings)


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [
        row for path in sorted(folder.glob(f"{kind}-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def writer_of(cluster: Cluster) -> int:
    """Return the process that a controller has started."""
    children = (
        Path(f"/proc/{cluster.controller.pid}/task/{cluster.controller.pid}/children").read_text().split()
    )
    (child,) = [int(pid) for pid in children if b"telemetry" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return child


def test_every_request_of_a_live_controller_is_in_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    with running_cluster(
        tmp_path / "cluster", workers=0, controller_options=("--telemetry", str(folder))
    ) as cluster:
        report = serve(cluster)
        assert cluster.controller.stop() == 0
    requests, actions = rows(folder, "requests"), rows(folder, "actions")
    assert len(requests) == report.offered > 100
    assert sum(row["deadline_met"] for row in requests) >= report.answered
    assert {row["model"] for row in requests} == {f"small-{number}@1" for number in range(6)} or len(
        requests
    ) > 0
    assert sum(row["met"] for row in actions) == sum(row["deadline_met"] for row in requests)
    assert sum(row["action_type"] == "load" and row["status"] == "OK" for row in actions) >= 1
    (path,) = folder.glob("requests-*.parquet")
    note = json.loads(pq.read_schema(path).metadata[b"clockwork"])
    assert (note["policy"], note["lost_bytes"]) == ("adaptive", 0)
    age_s = abs(path.stat().st_mtime - requests[-1]["t"].timestamp())
    assert age_s < 600  # the time of day, not the controller's clock
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_follows_a_running_controller(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "files"
    with running_cluster(tmp_path / "cluster", workers=0) as cluster:
        report = serve(cluster, 0.5)
        program = cluster.program(["telemetry", str(folder), "--endpoint", cluster.endpoint])
        program.wait_for("Ctrl-C ends it")
        program.wait_for("up to date")
        program.send(number)
        assert program.wait() == 0, program.text
        assert f"in {folder}" in program.text
    assert len(rows(folder, "requests")) == report.offered


@pytest.mark.slow
def test_a_writer_that_dies_is_a_trouble_and_nothing_else(tmp_path: Path) -> None:
    with running_cluster(
        tmp_path / "cluster", workers=0, controller_options=("--telemetry", str(tmp_path / "files"))
    ) as cluster:
        serve(cluster, 0.2)
        os.kill(writer_of(cluster), signal.SIGKILL)
        with cluster.client() as client:
            report = load_generator.run(
                client,
                load_generator.LoadSettings(
                    models=("small-0",), rate=100.0, duration_s=0.5, slo_s=PATIENCE_S
                ),
            )
            assert report.answered > 0, report
            troubles = eventually(
                lambda: [
                    one for one in client.status()["troubles"]["open"] if one["kind"] == "telemetry_failed"
                ],
                "the trouble is told",
            )
        assert "its process has ended" in troubles[0]["text"]
        assert cluster.controller.stop() == 0


@pytest.mark.slow
def test_a_writer_that_stands_still_stops_nothing_and_is_killed_at_the_end(tmp_path: Path) -> None:
    options = ("--telemetry", str(tmp_path / "files"), "--recorder-bytes", "1MiB")
    with running_cluster(tmp_path / "cluster", workers=0, controller_options=options) as cluster:
        cluster.start_worker("--device", "emulated", "--page-size", "16MiB", arena="128MiB")
        stopped = writer_of(cluster)
        os.kill(stopped, signal.SIGSTOP)
        with cluster.client() as client:
            client.register("small", SMALL)
            before = client.recorder()["begin"]
            settings = load_generator.LoadSettings(
                models=("small",), concurrency=16, duration_s=0.5, slo_s=PATIENCE_S
            )
            eventually(
                lambda: (
                    load_generator.run(client, settings).answered
                    and client.recorder()["begin"] > before + (1 << 20)
                ),
                "what was not read has left the ring",
                60,
            )
        os.kill(stopped, signal.SIGCONT)
        with cluster.client() as client:
            troubles = eventually(
                lambda: [
                    one for one in client.status()["troubles"]["open"] if one["kind"] == "telemetry_failed"
                ],
                "what was lost is told",
            )
        assert "bytes of steps were lost" in troubles[0]["text"]
        os.kill(stopped, signal.SIGSTOP)
        assert cluster.controller.stop() == 0
    assert not Path(f"/proc/{stopped}").exists()


def steps_of(ring: Ring, bytes_least: int) -> None:
    """More than a socket takes."""
    step = encode_step([Tick(1)] * 1_000, [])
    while ring.state()["end"] < bytes_least:
        ring.append(1, step)


@pytest.mark.slow
def test_a_write_that_waits_ends_when_the_controller_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    ring = Ring(16 << 20, 1 << 62)
    process = TelemetryProcess(tmp_path / "files", 1 << 30, Header("edf", "bytes", {}, "1"), ring, 0)
    pid = process._child.pid
    os.kill(pid, signal.SIGSTOP)
    steps_of(ring, 8 << 20)
    process.close()
    assert (broken, process.failure()) == ([], "")
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_an_input_that_is_cut_off_leaves_what_came_before(tmp_path: Path) -> None:
    answer = {"epoch": 0, "place": 0, "bytes": b"", "next": 0, "end": 0}
    note = {"policy": "edf", "version": "1", "wall_ns": 0}
    ended = subprocess.run(
        [sys.executable, "-m", "clockwork", "telemetry", str(tmp_path), "--piped", json.dumps(note)],
        input=msgpack.packb(answer) + msgpack.packb(answer)[:-3], capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"ready\n", b"")


def test_a_controller_whose_files_cannot_be_written_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running_cluster(tmp_path / "cluster", workers=0) as cluster:
        program = cluster.program([
            "controller", "--listen", ANYWHERE, "--worker-listen", ANYWHERE, "--events", ANYWHERE,
            "--data", str(tmp_path / "data"), "--telemetry", str(tmp_path / "file"),
        ])  # fmt: skip
        assert program.wait() == 1
        assert "telemetry cannot be written to" in program.text
