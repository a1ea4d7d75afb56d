"""`clockwork up` as real processes: it becomes ready, answers, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from clockwork import Client
from clockwork.models import zoo
from tests.patience import PATIENCE_S, eventually
from tests.process.up import running, starting

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits" / "7.png"


def clockwork(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "clockwork", *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_newcomers_first_minute(tmp_path: Path) -> None:
    """Start, ask, stop; start again and find the model there."""
    with running(tmp_path) as up:
        assert clockwork("infer", "--endpoint", up.endpoint, "digits", str(EXAMPLE)).startswith("digits: 7")
        assert "worker-0" in clockwork("status", "--endpoint", up.endpoint)
        assert len(up.commands()) >= 2
        assert up.end(signal.SIGINT) == 0, up.lines
    with running(tmp_path, "--workers", "2") as up:
        assert not any("Registering" in line for line in up.lines)
        assert clockwork("infer", "--endpoint", up.endpoint, "digits", str(EXAMPLE)).startswith("digits: 7")
        assert "worker-1" in clockwork("status", "--endpoint", up.endpoint)
        assert up.end(signal.SIGTERM) == 0, up.lines


def test_ready_is_said_when_every_model_of_the_repository_is_served_or_has_failed(tmp_path: Path) -> None:
    def place(name: str, content: bytes) -> None:
        folder = tmp_path / "models" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(content)

    for seed in range(2):
        place(f"good{seed}", zoo.build("null", seed=seed).SerializeToString())
    place("broken", b"no model")
    ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    arguments = (*ports, "--model-repository", str(tmp_path / "models"))
    with starting(tmp_path / "data", "--no-demo", *arguments) as up:
        endpoint = up.wait_for(r"clients +(tcp://127\.0\.0\.1:\d+)")[1]
        with Client(endpoint) as client:
            served = {info.name: info.state for info in client.models()}
            assert served == {"good0": "ready", "good1": "ready"}
            up.wait_for(r"models +2 models of the repository served, 1 failed: broken@1$")
            client.register("other", zoo.build("null", seed=5))
        up.wait_for("Ctrl-C ends it")
        assert not any("earlier starts" in line for line in up.lines)
        assert up.end(signal.SIGTERM) == 0
    # The data directory's other content is listed.
    with starting(tmp_path / "data", *arguments) as up:
        up.wait_for(r"models +2 models of the repository served, 1 failed: broken@1$")
        up.wait_for(r"found +other@1, from earlier starts$")
        assert up.end(signal.SIGTERM) == 0


def test_it_can_be_stopped_before_it_is_ready(tmp_path: Path) -> None:
    with starting(tmp_path) as up:
        up.wait_for("Starting")
        assert up.end(signal.SIGTERM) in (0, -signal.SIGTERM)


def test_children_that_hang_are_ended(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo") as up:
        for pid in up.commands():
            os.kill(pid, signal.SIGSTOP)
        assert up.end(signal.SIGINT) == 0, up.lines


def test_children_end_when_up_is_killed_outright(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo") as up:
        assert up.commands()
        up.kill()
        eventually(lambda: not up.commands(), "its children end")


def test_a_data_directory_that_is_in_use_is_said(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo"):
        second = subprocess.run(
            [sys.executable, "-m", "clockwork", "up", "--port", "0", "--data", str(tmp_path), "--no-demo"],
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert second.returncode == 1
        assert "controller ended with status 1" in second.stdout
        assert "in use by another controller" in second.stdout
