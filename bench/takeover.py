"""Time from the end of the active controller to the first answer of the standby, and requests meanwhile.

    python -m bench.takeover [--quick] [--json] [--rounds 20] [--models 8] [--rate 100]
        [--how kill,stop]

`clockwork up --controllers 2` on a directory of its own, with two workers and a gateway that nobody asks. A
client with both addresses asks at an even rate, open loop, with an SLO of 2 s, for models that are resident.
In each round the active is killed (SIGKILL), or stopped (SIGSTOP) and then killed by the standby, and is
started again as the standby; the next round begins once it waits. ``first`` is the time from the signal to
the first answer to a request that was asked after it. Every
answer is compared with ONNX Runtime's.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench import report
from bench.reference import Plain
from clockwork.client.blocking import Client
from clockwork.errors import ClockworkError
from clockwork.models import zoo
from clockwork.system.clock import MS, SECOND, now_ns

SEED = 7
SLO_S = 2.0
READY_S = 60.0
SETTLE_S = 0.5
ROUNDS_MAX = 6  # of a cluster: `up` gives a process up that ends too often
STANDS_BY = "standby: serves once"
HOW = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclasses.dataclass(frozen=True)
class Plan:
    rounds: int = 20
    models: int = 8
    rate: float = 100.0
    workers: int = 2
    how: tuple[str, ...] = tuple(HOW)


class Watched:
    """`clockwork up`, and the lines that it has printed."""

    def __init__(self, data: Path, workers: int) -> None:
        arguments = [
            "up",
            "--controllers",
            "2",
            "--workers",
            str(workers),
            "--port",
            "0",
            "--data",
            str(data),
            "--verbose",
        ]
        arguments += [
            "--arena",
            "64MiB",
            "--executors",
            "1",
            "--http-port",
            "0",
            "--grpc-port",
            "off",
            "--metrics-port",
            "off",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clockwork", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self._lines: list[str] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.rstrip())
                    self._changed.notify_all()

    @property
    def count(self) -> int:
        return len(self._lines)

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Return the match in the first line from index `after` on."""

        def found() -> re.Match[str] | None:
            return next((match for line in self._lines[after:] if (match := re.search(pattern, line))), None)

        with self._changed:
            match = self._changed.wait_for(found, READY_S)
        if match is None:
            raise ClockworkError(f"no line has {pattern!r}; the last are:\n" + "\n".join(self._lines[-20:]))
        return match

    def active(self) -> int:
        """The number of the controller that serves."""
        numbers = [
            match[1] for line in self._lines if (match := re.match(r"controller-(\d) .*: active$", line))
        ]
        return int(numbers[-1])

    def pid_of(self, controller: int) -> int:
        """The process of a controller, by the first of its endpoints."""
        listens = self._listens[controller]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                except OSError:  # the process has ended
                    continue
                if "--listen" in words and words[words.index("--listen") + 1] == listens:
                    return int(entry.name)
        raise ClockworkError(f"no process listens at {listens}")

    def ready(self) -> str:
        """Return the endpoints of clients once the cluster is ready."""
        endpoints = self.wait_for(r"^  clients +(tcp://\S+)")[1]
        self.wait_for("Ctrl-C ends it")
        self._listens = endpoints.split(",")
        return endpoints

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(READY_S)


class Load:
    """Requests at an even rate, each with the time at which it was asked and its end."""

    def __init__(self, client: Client, plains: dict[str, Plain], rate: float) -> None:
        self.client = client
        self._plains = plains
        self._pause_s = 1 / rate
        self._stop = threading.Event()
        self.ended: list[
            tuple[int, int, str]
        ] = []  # asked, ended, and "" or the error, in order of their ends
        self.asked = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        rng = np.random.default_rng(SEED)
        names = list(self._plains)
        due_ns = now_ns()
        while not self._stop.is_set():
            name, x = names[self.asked % len(names)], rng.standard_normal((1, 64)).astype(np.float32)
            asked_ns = now_ns()
            future = self.client.submit(name, x, slo=SLO_S)
            future.add_done_callback(lambda done, at=asked_ns, name=name, x=x: self._ended(done, at, name, x))
            self.asked += 1
            due_ns += round(self._pause_s * SECOND)
            self._stop.wait(max(0.0, (due_ns - now_ns()) / SECOND))

    def _ended(self, done: Any, asked_ns: int, name: str, x: Any) -> None:
        end_ns, error = now_ns(), done.exception()
        text = type(error).__name__ if error is not None else ""
        if error is None and not np.allclose(
            done.result(), self._plains[name].run({"x": x})[0], rtol=1e-4, atol=1e-4
        ):
            text = "wrong"
        self.ended.append((asked_ns, end_ns, text))

    def stop(self) -> None:
        """Ask no more, and return once every request has ended."""
        self._stop.set()
        self._thread.join()
        limit_ns = now_ns() + round(READY_S * SECOND)
        pause = threading.Event()
        while len(self.ended) < self.asked and now_ns() < limit_ns:
            pause.wait(0.01)

    def first_after(self, at_ns: int) -> int:
        """Wait for the first good answer to a request that was asked after a time. Returns the time of it."""
        limit_ns, pause = now_ns() + round(READY_S * SECOND), threading.Event()
        while now_ns() < limit_ns:
            ends = [end for asked, end, text in self.ended if asked >= at_ns and not text]
            if ends:
                return min(ends)
            pause.wait(0.002)
        raise ClockworkError("nothing is answered")


def loads_of(client: Client) -> int:
    return sum(worker["sent"].get("load", 0) for worker in client.status()["workers"])


def kill_again(
    plan: Plan, number: int, rounds: int, load_ended: list[tuple[int, int, str]]
) -> tuple[list[float], int, int]:
    """Returns the times to the first answers in ms, the LOADs and the requests of a cluster of its own.

    load_ended: takes the requests' ends."""
    models = {f"m{index}": zoo.build("mlp", seed=index) for index in range(plan.models)}
    plains = {name: Plain(model) for name, model in models.items()}
    firsts: list[float] = []
    loads = 0
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as folder:
        up = Watched(Path(folder), plan.workers)
        try:
            with Client(up.ready(), name="takeover", timeout=READY_S) as client:
                for name, model in models.items():
                    client.register(name, model.SerializeToString())
                    client.infer(name, np.zeros((1, 64), np.float32))
                load = Load(client, plains, plan.rate)
                pause = threading.Event()
                for _ in range(rounds):
                    pause.wait(SETTLE_S)
                    mark, active = up.count, up.active()
                    pid = up.pid_of(active)
                    at_ns = now_ns()
                    os.kill(pid, number)
                    firsts.append((load.first_after(at_ns) - at_ns) / MS)
                    up.wait_for(f"^controller-{active} .*{STANDS_BY}", mark)
                    loads += loads_of(client)
                load.stop()
        finally:
            up.end()
    load_ended += load.ended
    return firsts, loads, load.asked


def measure(plan: Plan) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, facts = [], {}
    for how in plan.how:
        row, facts[how] = measure_one(plan, how)
        rows.append(row)
    return rows, facts


def measure_one(plan: Plan, how: str) -> tuple[dict[str, Any], dict[str, Any]]:
    ended: list[tuple[int, int, str]] = []
    firsts: list[float] = []
    loads = asked = 0
    while len(firsts) < plan.rounds:
        found = kill_again(plan, HOW[how], min(ROUNDS_MAX, plan.rounds - len(firsts)), ended)
        firsts += found[0]
        loads += found[1]
        asked += found[2]
    failed: dict[str, int] = {}
    for _, _, text in ended:
        if text:
            failed[text] = failed.get(text, 0) + 1
    took = sorted((end - begun) / MS for begun, end, text in ended if not text)
    row = {
        "how": how,
        "rounds": plan.rounds,
        "first p50, ms": round(statistics.median(firsts), 1),
        "first worst, ms": round(max(firsts), 1),
        "requests": asked,
        "answered": len(took),
        "failed": sum(failed.values()),
        "unanswered": asked - len(ended),
        "longest, ms": round(took[-1], 1) if took else 0.0,
        "loads": loads,
    }
    return row, {"failures": failed or "none", "firsts, ms": [round(first, 1) for first in firsts]}


def main() -> None:
    parser = report.command_line(__doc__)
    plan = Plan()
    parser.add_argument("--rounds", type=int, default=plan.rounds)
    parser.add_argument("--models", type=int, default=plan.models)
    parser.add_argument("--rate", type=float, default=plan.rate)
    parser.add_argument("--how", type=lambda text: tuple(text.split(",")), default=plan.how)
    asked = parser.parse_args()
    given = Plan(asked.rounds, asked.models, asked.rate, how=asked.how)
    if asked.quick:
        given = Plan(rounds=2, models=2, rate=50.0, workers=1, how=asked.how)
    rows, facts = measure(given)
    report.show("takeover by a standby", SEED, rows, facts, asked.json)


if __name__ == "__main__":
    main()
