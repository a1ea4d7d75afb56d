"""Time from the end of the active controller to the first answer of the standby, and requests meanwhile.

    python -m bench.takeover [--quick] [--json] [--rounds 20] [--models 8] [--rate 100]
        [--how kill,stop,hand-over] [--catalog directory] [--away 60]

`clockwork up --controllers 2` on a directory of its own, with two workers and a gateway that nobody asks. A
client with both addresses asks at an even rate, open loop, with an SLO of 2 s, for models that are resident.
In each round the active is killed (SIGKILL), or stopped (SIGSTOP) and then killed by the standby, or told to
hand over, and is started again as the standby; the next round begins once it waits. ``first`` is the time
from the signal, or the order, to the first answer to a request that was asked after it; ``gap`` the longest
time without an answer about then. Every answer is compared with ONNX Runtime's.

--catalog postgres: two controllers as on two machines, each with a data directory of its own, with the
catalogue in a PostgreSQL server that is started here. A stopped active is woken up (SIGCONT) after the first
answer, and has to end by itself. --how away: the server is killed, and started again after --away seconds;
``first`` is then the time from its start to the first change of the catalogue that is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from bench import report
from bench.reference import Plain
from clockwork.client.blocking import Client
from clockwork.config.controller import EXIT_TAKEN_OVER
from clockwork.errors import ClockworkError
from clockwork.launch.local import held_ports
from clockwork.models import zoo
from clockwork.system.clock import MS, SECOND, now_ns
from tests.postgres import PostgresServer, running_postgres
from tests.process.cluster import Program

SEED = 7
SLO_S = 2.0
READY_S = 60.0
SETTLE_S = 0.5
LOOK_S = 0.05
ROUNDS_MAX = 6  # of a cluster: `up` gives a process up that ends too often
STANDS_BY = "standby: serves once"
LEASE_STANDS_BY = f"{STANDS_BY} no other controller has the lease"
GAP_S = 0.25  # Time before an order, and after the first answer to a later request, in which gaps count
HAND_OVER = "hand-over"
HOW = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
AWAY = "away"


@dataclasses.dataclass(frozen=True)
class Plan:
    rounds: int = 20
    models: int = 8
    rate: float = 100.0
    workers: int = 2
    how: tuple[str, ...] = tuple(HOW)
    catalog: str = "directory"
    away_s: float = 60.0


class Struck(Protocol):
    """A cluster whose active controller is killed or stopped again and again."""

    def ready(self) -> str:
        """Return the endpoints of clients once the cluster is ready."""
        ...

    def strike(self, number: int) -> int:
        """Send the active a signal. Returns the time of it in ns."""
        ...

    def recover(self) -> None:
        """Return once there is a standby again."""

    def end(self) -> None: ...


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

    def strike(self, number: int) -> int:
        self._mark, self._struck = self.count, self.active()
        pid = self.pid_of(self._struck)
        at_ns = now_ns()
        os.kill(pid, number)
        return at_ns

    def recover(self) -> None:
        self.wait_for(f"^controller-{self._struck} .*{STANDS_BY}", self._mark)

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(READY_S)


class Machines:
    """Two controllers with data directories of their own, and a catalogue in PostgreSQL."""

    def __init__(self, folder: Path, server: PostgresServer, workers: int) -> None:
        self._folder, self._server, self._url = folder, server, server.new_database()
        with held_ports(4) as ports:
            ends = [f"tcp://127.0.0.1:{port}" for port in ports]
        self._ports = [(ends[0], ends[1]), (ends[2], ends[3])]
        self._active = self._changes = 0
        self._controllers = [self._start(0)]
        self._controllers[0].wait_for(": active$")
        self._controllers.append(self._start(1))
        self._workers = [
            Program([
                "worker", "--connect", f"{ends[1]},{ends[3]}", "--arena", "64MiB", "--executors", "1",
                "--store", str(folder / f"worker-{number}"), "--name", f"worker-{number}",
            ])
            for number in range(workers)
        ]  # fmt: skip

    def ready(self) -> str:
        for worker in self._workers:
            worker.wait_for("serves controller")
        self._controllers[1].wait_for(LEASE_STANDS_BY)
        return ",".join(clients for clients, _ in self._ports)

    def strike(self, number: int) -> int:
        at_ns = now_ns()
        self._controllers[self._active].send(number)
        return at_ns

    def recover(self) -> None:
        struck = self._active
        self._active = 1 - struck
        self._controllers[self._active].wait_for(": active$")
        self._controllers[struck].send(signal.SIGCONT)  # nothing to a process that is gone
        status = self._controllers[struck].wait()
        if status not in (0, -signal.SIGKILL, EXIT_TAKEN_OVER):
            raise ClockworkError(f"a former active ended with status {status}")
        self._controllers[struck] = self._start(struck)
        self._controllers[struck].wait_for(LEASE_STANDS_BY)

    def leave_alone(self, away_s: float, client: Client) -> float:
        """Have the database away for a while. Returns the seconds from its start to the first change."""
        self._server.stop(signal.SIGQUIT)
        pause = threading.Event()
        pause.wait(away_s)
        self._changes += 1
        model = zoo.build("mlp", seed=1000 + self._changes).SerializeToString()
        at_ns = now_ns()
        self._server.start()
        while now_ns() < at_ns + round(READY_S * SECOND):
            with contextlib.suppress(ClockworkError):
                client.register("after", model)
                return (now_ns() - at_ns) / SECOND
            pause.wait(0.01)
        raise ClockworkError("no change is made although the database is back")

    def end(self) -> None:
        for program in (*self._workers, *self._controllers):
            program.stop()
            program.destroy()

    def _start(self, number: int) -> Program:
        clients, workers = self._ports[number]
        return Program([
            "controller", "--standby", "--listen", clients, "--worker-listen", workers, "--events",
            "tcp://127.0.0.1:0", "--data", str(self._folder / f"machine-{number}"), "--catalog", self._url,
            "--packages", str(self._folder / "packages"),
        ])  # fmt: skip


@contextlib.contextmanager
def cluster_of(plan: Plan) -> Iterator[Callable[[], Struck]]:
    """Yield a maker of clusters on new directories, all of which are gone when the block ends."""
    with contextlib.ExitStack() as stack:
        made: list[Struck] = []
        server = stack.enter_context(running_postgres()) if plan.catalog == "postgres" else None

        def make() -> Struck:
            while made:
                made.pop().end()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clockwork-bench-")))
            made.append(
                Watched(folder, plan.workers) if server is None else Machines(folder, server, plan.workers)
            )
            return made[0]

        try:
            yield make
        finally:  # before its directory goes
            for cluster in made:
                cluster.end()


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

    def gap_ms(self, begin_ns: int, end_ns: int) -> float:
        """The longest time between two good answers that ended within a time."""
        ends = sorted(end for _, end, text in self.ended if not text and begin_ns <= end <= end_ns)
        return max((after - before for before, after in itertools.pairwise(ends)), default=0) / MS


def loads_of(client: Client) -> int:
    return sum(worker["sent"].get("load", 0) for worker in client.status()["workers"])


def await_standby(client: Client, pause: threading.Event) -> None:
    """Return once the active knows of a standby: it gives way to no other."""
    deadline_ns = now_ns() + round(READY_S * SECOND)
    while not client.status()["standing"]["standbys"]:
        if now_ns() > deadline_ns:
            raise ClockworkError(f"the active knows of no standby within {READY_S:g} s")
        pause.wait(LOOK_S)


def kill_again(
    plan: Plan, up: Struck, how: str, rounds: int, load_ended: list[tuple[int, int, str]]
) -> tuple[list[float], list[float], int, int]:
    """Returns the times to the first answers and the gaps in ms, the LOADs and the requests of a cluster.

    load_ended: takes the requests' ends."""
    models = {f"m{index}": zoo.build("mlp", seed=index) for index in range(plan.models)}
    plains = {name: Plain(model) for name, model in models.items()}
    firsts: list[float] = []
    gaps: list[float] = []
    loads = 0
    with Client(up.ready(), name="takeover", timeout=READY_S) as client:
        for name, model in models.items():
            client.register(name, model.SerializeToString())
            client.infer(name, np.zeros((1, 64), np.float32))
        load = Load(client, plains, plan.rate)
        pause = threading.Event()
        for _ in range(rounds):
            pause.wait(SETTLE_S)
            if isinstance(up, Machines) and how == AWAY:
                at_ns = now_ns()
                firsts.append(up.leave_alone(plan.away_s, client) * SECOND / MS)
                gaps.append(load.gap_ms(at_ns, now_ns()))
                continue
            await_standby(client, pause)
            if how == HAND_OVER:
                at_ns = up.strike(0)  # which no process notices
                client.hand_over()
            else:
                at_ns = up.strike(HOW[how])
            first_ns = load.first_after(at_ns)
            up.recover()
            firsts.append((first_ns - at_ns) / MS)
            gaps.append(load.gap_ms(at_ns - round(GAP_S * SECOND), first_ns + round(GAP_S * SECOND)))
            loads += loads_of(client)
        load.stop()
    load_ended += load.ended
    return firsts, gaps, loads, load.asked


def measure(plan: Plan) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, facts = [], {}
    for how in plan.how:
        row, facts[how] = measure_one(plan, how)
        rows.append(row)
    return rows, facts


def measure_one(plan: Plan, how: str) -> tuple[dict[str, Any], dict[str, Any]]:
    ended: list[tuple[int, int, str]] = []
    firsts: list[float] = []
    gaps: list[float] = []
    loads = asked = 0
    with cluster_of(plan) as make:
        while len(firsts) < plan.rounds:
            rounds = min(ROUNDS_MAX, plan.rounds - len(firsts))
            found = kill_again(plan, make(), how, rounds, ended)
            firsts += found[0]
            gaps += found[1]
            loads += found[2]
            asked += found[3]
    failed: dict[str, int] = {}
    for _, _, text in ended:
        if text:
            failed[text] = failed.get(text, 0) + 1
    took = sorted((end - begun) / MS for begun, end, text in ended if not text)
    row = {
        "catalog": plan.catalog,
        "how": how,
        "rounds": plan.rounds,
        "first p50, ms": round(statistics.median(firsts), 1),
        "first worst, ms": round(max(firsts), 1),
        "gap p50, ms": round(statistics.median(gaps), 1) if gaps else "-",
        "gap worst, ms": round(max(gaps), 1) if gaps else "-",
        "requests": asked,
        "answered": len(took),
        "failed": sum(failed.values()),
        "unanswered": asked - len(ended),
        "longest, ms": round(took[-1], 1) if took else 0.0,
        "loads": loads,
    }
    return row, {
        "failures": failed or "none",
        "firsts, ms": [round(first, 1) for first in firsts],
        "gaps, ms": [round(gap, 1) for gap in gaps],
    }


def main() -> None:
    parser = report.command_line(__doc__)
    plan = Plan()
    parser.add_argument("--rounds", type=int, default=plan.rounds)
    parser.add_argument("--models", type=int, default=plan.models)
    parser.add_argument("--rate", type=float, default=plan.rate)
    parser.add_argument("--how", type=lambda text: tuple(text.split(",")), default=plan.how)
    parser.add_argument("--catalog", choices=("directory", "postgres"), default=plan.catalog)
    parser.add_argument("--away", type=float, default=plan.away_s)
    asked = parser.parse_args()
    if AWAY in asked.how and asked.catalog != "postgres":
        parser.error("--how away needs --catalog postgres")
    given = Plan(
        asked.rounds, asked.models, asked.rate, how=asked.how, catalog=asked.catalog, away_s=asked.away
    )
    if asked.quick:
        given = Plan(
            rounds=2, models=2, rate=50.0, workers=1, how=asked.how, catalog=asked.catalog, away_s=2.0
        )
    rows, facts = measure(given)
    report.show("takeover by a standby", SEED, rows, facts, asked.json)


if __name__ == "__main__":
    main()
