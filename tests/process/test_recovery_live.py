"""A cluster whose worker stood still serves again as before: what tests/sim/test_recovery.py holds, live and in short."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.clock import MS, SECOND, now_ns
from clockwork.errors import ClockworkError
from clockwork.profiles import ModelProfile, save_profiles
from tests.process.cluster import eventually, running_cluster

MODEL = ModelProfile("small", {1: 2 * MS, 8: 4 * MS}, 1 << 20, MS, input_bytes=48_000, output_bytes=4)
STOOD_STILL_S = 1.0  # less than what makes the controller give a worker up
RECOVERED_NS = 2 * SECOND


class Asking:
    """Requests in a closed loop, from a thread of its own; when each good answer came."""

    def __init__(self, client: Client) -> None:
        self.good_ns: list[int] = []
        self._client = client
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def count(self, from_ns: int, until_ns: int) -> int:
        return sum(from_ns <= at < until_ns for at in self.good_ns)

    def close(self) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        inputs = np.zeros((1, MODEL.input_bytes), np.uint8)
        while not self._ends.is_set():
            try:
                self._client.infer(MODEL.name, inputs, slo=0.5)
            except ClockworkError:
                continue
            self.good_ns.append(now_ns())


@pytest.mark.parametrize("policy", ["edf", pytest.param("adaptive", marks=pytest.mark.slow)])
def test_a_worker_that_stood_still_for_a_second_is_used_again_as_before(tmp_path: Path, policy: str) -> None:
    save_profiles(tmp_path / "models.json", [MODEL])
    with (
        running_cluster(tmp_path / "cluster", 0, ("--policy", policy)) as cluster,
        cluster.client() as client,
    ):
        worker = cluster.start_worker(
            "--device", "emulated", "--page-size", "16MiB", "--devices", "2", arena="64MiB"
        )
        assert cluster.run("models", "add", "--profiles", str(tmp_path / "models.json"))[0] == 0
        asking = Asking(client)
        try:
            eventually(lambda: len(asking.good_ns) > 20, "it is served")
            os.kill(worker.pid, signal.SIGSTOP)
            stopped = threading.Event()
            stopped.wait(STOOD_STILL_S)
            os.kill(worker.pid, signal.SIGCONT)
            end_ns = now_ns()
            eventually(
                lambda: asking.count(end_ns, end_ns + RECOVERED_NS) > 20, "it is served again, in two seconds"
            )
        finally:
            os.kill(worker.pid, signal.SIGCONT)
            asking.close()
