"""Rounds: capacity by plain ONNX Runtime, then every server in its turn on the same arrivals."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.cluster import cpu_s
from bench.peers import client
from bench.peers.environments import Environment
from bench.peers.processes import Kept
from bench.peers.roads import Grpc, Http, Verdict
from bench.peers.systems import Site, System, Transport
from bench.reference import Plain, relative_error
from clockwork.launch.local import held_ports
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from clockwork.workloads import poisson, zipf

SEED = 8
MODEL = "residual_cnn"
IMAGE = (1, 3, 64, 64)
OUTPUTS = 100
TOLERANCE = 1e-4
ZIPF = 1.0
READY_S = 90.0
"""Time that a server may take to be ready: thirty models of Triton's Python backend are thirty processes."""

ANSWER_S = 60.0
"""Time that the first, checked request of each model may take."""

WARM_UP = 30
"""Requests before the first cell of a server, one after the other."""

BLOCKS = 5
BLOCK_S = 0.5
"""Length of a block of plain ONNX Runtime's executions; the median of the blocks' means counts."""

WINDOW_S = 0.1
BUSY = 0.2
"""Part of a core above idle from which a server counts as working; low, as it may share a core."""

QUIET_WINDOWS = 4
IDLE_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The measurements of each server."""

    systems: Sequence[System]
    loads: Mapping[str, Sequence[float]]  # rates to offer, by system
    transports: Mapping[str, Sequence[Transport]]
    models: int
    room: int  # number of models that fit into memory; 0: all
    seconds: float
    rounds: int
    slo_ns: int
    give_up_s: float
    executors: int = 1  # of each server; loads are parts of what so many would execute, undisturbed


@dataclasses.dataclass(slots=True)
class Cell:
    """A server, transport and load in a round."""

    system: str
    transport: Transport
    models: int
    load: float
    capacity: float  # requests/s of plain ONNX Runtime, before the round, times the executors
    seconds: float
    offered: client.Offered
    gone_busy_s: float  # time from the last client's leaving until the server was idle
    gone_cpu_s: float
    server_cpu_s: float  # processor time while requests were offered
    client_cpu_s: float
    other_cores: float  # number of cores that other processes used meanwhile
    rss_bytes: int


class PeerFailed(Exception):
    """A server did not start, or answered wrongly."""


Say = Callable[[str], None]


class Reference:
    """Plain ONNX Runtime in this process: measures capacity, and gives the expected answers."""

    def __init__(self, directory: Path, models: int) -> None:
        base = zoo.build(MODEL, seed=SEED)
        self.image = np.random.default_rng(SEED).standard_normal(IMAGE).astype(np.float32)
        self.weights_bytes = zoo.weights_bytes(base)
        self.paths: dict[str, Path] = {}
        self.expected: dict[str, Any] = {}
        self._feeds = {"image": self.image}
        self._plain = Plain(base)
        for index in range(models):
            name = f"m{index}"
            tuned = zoo.fine_tune(base, seed=SEED + index)
            self.paths[name] = directory / f"{name}.onnx"
            self.paths[name].write_bytes(tuned.SerializeToString())
            self.expected[name] = Plain(tuned).run(self._feeds)[0].ravel()

    def capacity(self, seconds: float) -> float:
        """Executions per second, robust to other load in fewer than half of the blocks."""
        count = max(10, int(seconds / self._plain.block(self._feeds, 10)))
        return 1.0 / float(np.median([self._plain.block(self._feeds, count) for _ in range(BLOCKS)]))


def measure(
    plan: Plan, environments: Mapping[str, Environment], done: Callable[[Cell], None], say: Say
) -> tuple[list[float], dict[str, str]]:
    """Run the plan, and pass each cell to done(). Returns capacities (before each round and after the last),
    and the servers that failed, with their reasons.

    A server that fails in one round is left out of those that follow.
    """
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="clockwork-peers-") as scratch:
        reference = Reference(Path(scratch), plan.models)
        capacities = []
        for turn in range(plan.rounds):
            capacities.append(reference.capacity(BLOCK_S))
            for system in plan.systems:
                if system.name in failed:
                    continue
                say(f"round {turn + 1} of {plan.rounds}: {system.title} starts")
                try:
                    with serving(plan, system, reference, environments.get(system.environment)) as server:
                        for transport in plan.transports[system.name]:
                            for load in plan.loads[system.name]:
                                say(
                                    f"round {turn + 1} of {plan.rounds}: {system.title}, {transport}, {load:g}"
                                )
                                done(server.cell(transport, load, capacities[-1] * plan.executors, turn))
                except PeerFailed as error:
                    failed[system.name] = str(error)
                    say(f"{system.title} failed: {error}")
        capacities.append(reference.capacity(BLOCK_S))
    return capacities, failed


class Server:
    """A server that has started and answered each model right."""

    def __init__(self, plan: Plan, system: System, site: Site, kept: Kept, reference: Reference) -> None:
        self._plan = plan
        self._system = system
        self._site = site
        self._kept = kept
        self._spoken = {
            transport: system.speak(transport, site, reference.image)
            for transport in plan.transports[system.name]
        }

    def check(self, reference: Reference) -> None:
        """Send a request for every model over every transport, and compare the answers; then warm up."""
        for transport, spoken in self._spoken.items():
            client.run(self._check(spoken, self._site.ports[transport], reference))

    async def _check(self, spoken: Http | Grpc, port: int, reference: Reference) -> None:
        road = spoken.open(port)
        try:
            for index, name in enumerate(self._site.names):
                # The SLO of the requests is too short for some models' first executions.
                limit_ns = now_ns() + round(ANSWER_S * SECOND)
                reply = await client.ask(road, index, ANSWER_S)
                while reply.verdict is Verdict.REFUSED and now_ns() < limit_ns:
                    await asyncio.sleep(0.05)
                    reply = await client.ask(road, index, ANSWER_S)
                if reply.verdict is not Verdict.ANSWERED:
                    raise PeerFailed(f"no answer of {name}: {reply.said}")
                try:
                    error = relative_error(spoken.scores(reply), reference.expected[name])
                except (KeyError, ValueError) as unread:
                    raise PeerFailed(
                        f"the answer of {name} is no tensor of {OUTPUTS} floats: {unread}"
                    ) from None
                if not error < TOLERANCE:
                    raise PeerFailed(f"the answer of {name} is off by {error:.1e}")
            for _ in range(WARM_UP):
                await client.ask(road, 0, ANSWER_S)
        finally:
            await road.close()

    def cell(self, transport: Transport, load: float, capacity: float, turn: int) -> Cell:
        plan, spoken, port = self._plan, self._spoken[transport], self._site.ports[transport]
        rates = [load * capacity * share for share in zipf(plan.models, ZIPF)]
        arrivals = poisson(rates, round(plan.seconds * SECOND), seed=SEED + turn).collect()
        idle_cores = self._kept.cores(WINDOW_S * 3)
        machine_s, server_s, mine_s, begin_ns = busy_s(), self._kept.cpu_s(), cpu_s(os.getpid()), now_ns()
        offered = client.run(
            client.offer(
                lambda: spoken.open(port), arrivals.t_ns, arrivals.model.tolist(), plan.slo_ns, plan.give_up_s
            )
        )
        left_ns, left_cpu_s = now_ns(), self._kept.cpu_s()
        server_used_s, mine_used_s = left_cpu_s - server_s, cpu_s(os.getpid()) - mine_s
        others_s = busy_s() - machine_s - server_used_s - mine_used_s
        gone_busy_s = busy_until_idle(self._kept, left_ns, idle_cores)
        if self._kept.status is not None:
            raise PeerFailed(f"it ended with status {self._kept.status}:\n{self._kept.log()}")
        return Cell(
            self._system.name, transport, plan.models, load, capacity, plan.seconds, offered, gone_busy_s,
            max(0.0, self._kept.cpu_s() - left_cpu_s - idle_cores * (now_ns() - left_ns) / SECOND),
            server_used_s, mine_used_s, max(0.0, others_s / ((left_ns - begin_ns) / SECOND)), self._kept.rss_bytes(),
        )  # fmt: skip


@contextlib.contextmanager
def serving(
    plan: Plan, system: System, reference: Reference, environment: Environment | None
) -> Iterator[Server]:
    """A server started with the models; at the end all of its processes are ended, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="peer-") as scratch:
        with held_ports(2) as found:  # the ports are free again here, because a server may not share its port
            ports = dict(zip(("http", "grpc"), found))
        site = Site(
            Path(scratch), reference.paths, reference.weights_bytes, plan.room, IMAGE, OUTPUTS, plan.slo_ns, ports,
            plan.executors,
        )  # fmt: skip
        launch = system.launch(site, environment)
        log = Path(scratch) / "log"
        with Kept(launch.command, log, dict(launch.environment), launch.directory) as kept:
            wait_until_ready(system, site, kept)
            server = Server(plan, system, site, kept, reference)
            try:
                server.check(reference)
            except PeerFailed as error:
                raise PeerFailed(f"{error}\n{kept.log()}") from None
            yield server


def wait_until_ready(system: System, site: Site, kept: Kept) -> None:
    """Wait until each model is ready. Raises PeerFailed where the server ends, or takes too long."""
    wait_for_paths(system.ready_paths(site), site.ports["http"], kept, READY_S)


def wait_for_paths(paths: Sequence[str], port: int, kept: Kept, limit_s: float) -> None:
    """Wait until each path answers 200. Raises PeerFailed where the server ends, or takes too long."""
    limit_ns = now_ns() + round(limit_s * SECOND)
    pause = threading.Event()
    for path in paths:
        while not answers(port, path):
            if kept.status is not None:
                raise PeerFailed(f"it ended with status {kept.status}:\n{kept.log()}")
            if now_ns() > limit_ns:
                raise PeerFailed(f"it was not ready within {limit_s:g} s:\n{kept.log()}")
            pause.wait(0.05)


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def busy_until_idle(kept: Kept, left_ns: int, idle_cores: float) -> float:
    """Seconds from a time until the server's processes were as idle as before."""
    last_busy_s, quiet = 0.0, 0
    while quiet < QUIET_WINDOWS and (now_ns() - left_ns) / SECOND < IDLE_LIMIT_S:
        if kept.cores(WINDOW_S) > idle_cores + BUSY:
            last_busy_s, quiet = (now_ns() - left_ns) / SECOND, 0
        else:
            quiet += 1
    return last_busy_s


def busy_s() -> float:
    """Processor time that all processes of this machine have used."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


# ----- report -----------------------------------------------------------------------------------------


def rows(cells: Sequence[Cell], slo_ns: int) -> list[dict[str, Any]]:
    """A row for each server, transport, number of models and load.

    Counts are of all rounds, percentiles of all answers.
    """
    groups: dict[tuple[str, str, int, float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.system, cell.transport, cell.models, cell.load), []).append(cell)
    return [_row(key, group, slo_ns) for key, group in groups.items()]


def _row(key: tuple[str, str, int, float], group: Sequence[Cell], slo_ns: int) -> dict[str, Any]:
    verdicts = np.concatenate([cell.offered.verdicts for cell in group])
    elapsed = np.concatenate([cell.offered.elapsed_ns for cell in group])
    answered, refused = verdicts == Verdict.ANSWERED, verdicts == Verdict.REFUSED
    seconds = sum(cell.seconds for cell in group)
    capacity = sum(cell.capacity * cell.seconds for cell in group) / seconds
    good = [
        int(((cell.offered.verdicts == Verdict.ANSWERED) & (cell.offered.elapsed_ns <= slo_ns)).sum())
        for cell in group
    ]
    said: Counter[str] = sum((cell.offered.said for cell in group), Counter())
    offered = len(verdicts)
    return {
        "system": key[0],
        "transport": key[1],
        "models": key[2],
        "load": key[3],
        "rounds": len(group),
        "offered": offered,
        "within_slo": sum(good),
        "late": int(answered.sum()) - sum(good),
        "refused": int(refused.sum()),
        "failed": int((verdicts == Verdict.FAILED).sum()),
        "gave_up": int((verdicts == Verdict.GONE).sum()),
        "offered/s": offered / seconds,
        "goodput/s": sum(good) / seconds,
        "of_offered": sum(good) / max(1, offered),
        "of_capacity": sum(good) / seconds / capacity,
        "of_capacity_by_round": [
            count / cell.seconds / cell.capacity for count, cell in zip(good, group, strict=True)
        ],
        "p50_ms": report.percentile_ms(elapsed[answered], 50),
        "p99_ms": report.percentile_ms(elapsed[answered], 99),
        "refused_p99_ms": report.percentile_ms(elapsed[refused], 99),
        "gone_busy_s": float(np.median([cell.gone_busy_s for cell in group])),
        "gone_cpu_s": float(np.median([cell.gone_cpu_s for cell in group])),
        "server_cores": sum(cell.server_cpu_s for cell in group) / seconds,
        "client_cores": sum(cell.client_cpu_s for cell in group) / seconds,
        "other_cores": max(cell.other_cores for cell in group),
        "lag_p99_ms": report.percentile_ms(np.concatenate([cell.offered.lag_ns for cell in group]), 99),
        "rss_mib": max(cell.rss_bytes for cell in group) / 2**20,
        "said": dict(said.most_common(3)),
    }
