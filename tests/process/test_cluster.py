"""`clockwork up` as real processes: it becomes ready, answers, and leaves nothing behind however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from clockwork import Client
from clockwork.models import zoo
from tests.patience import PATIENCE_S, eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits" / "7.png"


class Up:
    """A cluster in the foreground of a process of its own."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clockwork", "up", "--port", "0", "--data", str(data), "--arena", "32MiB",
             *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first line that matches."""

        def find() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: find() or self._over, PATIENCE_S)
            found = find()
        assert found is not None, self.lines
        return found

    def children(self) -> list[int]:
        """Return every process that works on this cluster's data, except `up` itself."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                command = (entry / "cmdline").read_bytes().decode()
                if str(self.data) in command and int(entry.name) != self.process.pid:
                    found.append(int(entry.name))
        return found

    def end(self, number: int = signal.SIGINT) -> int:
        """Return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def running(data: Path, *arguments: str) -> Iterator[Up]:
    up = Up(data, *arguments)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)
        up._reader.join(PATIENCE_S)
        assert not up.children()


def clockwork(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "clockwork", *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_newcomers_first_minute(tmp_path: Path) -> None:
    """Start, ask, stop; start again and find the model there."""
    with running(tmp_path) as up:
        endpoint = up.wait_for(r"clients +(tcp://127\.0\.0\.1:\d+)")[1]
        up.wait_for("Ctrl-C ends it")
        assert clockwork("infer", "--endpoint", endpoint, "digits", str(EXAMPLE)).startswith("digits: 7")
        assert "worker-0" in clockwork("status", "--endpoint", endpoint)
        assert len(up.children()) >= 2
        assert up.end(signal.SIGINT) == 0, up.lines
    with running(tmp_path, "--workers", "2") as up:
        endpoint = up.wait_for(r"clients +(tcp://127\.0\.0\.1:\d+)")[1]
        up.wait_for("Ctrl-C ends it")
        assert not any("Registering" in line for line in up.lines)
        assert clockwork("infer", "--endpoint", endpoint, "digits", str(EXAMPLE)).startswith("digits: 7")
        assert "worker-1" in clockwork("status", "--endpoint", endpoint)
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
    with running(tmp_path / "data", "--no-demo", *arguments) as up:
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
    with running(tmp_path / "data", *arguments) as up:
        up.wait_for(r"models +2 models of the repository served, 1 failed: broken@1$")
        up.wait_for(r"found +other@1, from earlier starts$")
        assert up.end(signal.SIGTERM) == 0


def test_it_can_be_stopped_before_it_is_ready(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        up.wait_for("Starting")
        assert up.end(signal.SIGTERM) in (0, -signal.SIGTERM)


def test_children_that_hang_are_ended(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo") as up:
        up.wait_for("Ctrl-C ends it")
        for pid in up.children():
            os.kill(pid, signal.SIGSTOP)
        assert up.end(signal.SIGINT) == 0, up.lines


def test_children_end_when_up_is_killed_outright(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo") as up:
        up.wait_for("Ctrl-C ends it")
        assert up.children()
        assert up.end(signal.SIGKILL) == -signal.SIGKILL
        eventually(lambda: not up.children(), "its children end")


def test_a_data_directory_that_is_in_use_is_said(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo") as first:
        first.wait_for("Ctrl-C ends it")
        second = subprocess.run(
            [sys.executable, "-m", "clockwork", "up", "--port", "0", "--data", str(tmp_path), "--no-demo"],
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert second.returncode == 1
        assert "controller ended with status 1" in second.stdout
        assert "in use by another controller" in second.stdout
