"""Rounds: capacity by plain ONNX Runtime, then every server in its turn on the same arrivals.

Each cell is a file as soon as it is measured, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import socket
import tempfile
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.cluster import cpu_s
from bench.many.models import ARCHITECTURES, SEED, Model, input_of
from bench.many.sender import Loader, Outcomes, Sender
from bench.many.systems import Clockwork, Site, System
from bench.peers import client
from bench.peers.environments import Environment
from bench.peers.measure import (
    ANSWER_S,
    TOLERANCE,
    WINDOW_S,
    PeerFailed,
    busy_s,
    busy_until_idle,
    wait_for_paths,
)
from bench.peers.processes import Kept
from bench.peers.roads import Http, Road, Verdict
from bench.peers.systems import Transport
from bench.reference import Plain, relative_error
from clockwork.formats.checksums import pieces_of
from clockwork.launch.local import held_ports
from clockwork.system.clock import SECOND, now_ns
from clockwork.workloads import Arrivals, gamma, poisson, zipf

ZIPF = 0.9
CV = 4.0
"""Coefficient of variation of each model's gaps in bursts."""

READY_S = 180.0
BLOCKS = 5
WARM_LOAD = 0.6
GIVE_UP_S = 3.0
PATTERNS = ("zipf", "bursts")
GOAL_BEYOND_MS = 20.0
"""Latency that a cold request may have beyond its load and its execution."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The measurements of each server."""

    systems: Sequence[System]
    models: Sequence[Model]
    shares: Sequence[float]  # memory for weights, as parts of all models' bytes
    patterns: Sequence[str]
    loads: Sequence[float]  # rates to offer, as parts of capacity
    seconds: float
    warm_s: float
    rounds: int
    checked: int  # models whose answers are compared at each start

    @property
    def total_bytes(self) -> int:
        return sum(model.weights_bytes for model in self.models)

    def key(self) -> str:
        """Cells of plans with the same key may stand in one table."""
        said = json.dumps([[model.name for model in self.models], self.seconds, self.warm_s, ZIPF, CV])
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    def budget_bytes(self, share: float) -> int:
        """A part of all models' bytes, but room for two of the largest at least."""
        return max(
            round(share * self.total_bytes), 2 * max(model.weights_bytes for model in self.models) + (1 << 20)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """A cell's place in the table, and its round."""

    turn: int
    system: str
    share: float
    pattern: str
    load: float

    def path(self, directory: Path) -> Path:
        return directory / f"{self.turn}-{self.system}-{self.share:g}-{self.pattern}-{self.load:g}.json"


Say = Callable[[str], None]


class Reference:
    """Plain ONNX Runtime in this process: the capacity of a core that has every model in memory."""

    def __init__(self, models: Sequence[Model], say: Say) -> None:
        first = {model.architecture: model for model in reversed(models)}
        self._plain = {family: Plain(model.build()) for family, model in first.items()}
        self._feeds = {family: {model.input: input_of(model)} for family, model in first.items()}
        self.exec_s: dict[int, float] = {}
        self._shares = dict.fromkeys(first, 0.0)
        for share, model in zip(popularity(models), models, strict=True):
            self._shares[model.architecture] += share

    def capacity(self, block_s: float) -> float:
        """Executions per second of the mix. The median of a few blocks counts for each architecture."""
        for family, plain in self._plain.items():
            feeds = self._feeds[family]
            count = max(5, int(block_s / plain.block(feeds, 5)))
            self.exec_s[family] = float(np.median([plain.block(feeds, count) for _ in range(BLOCKS)]))
        return 1.0 / sum(share * self.exec_s[family] for family, share in self._shares.items())


def popularity(models: Sequence[Model]) -> list[float]:
    """Each model's part of the requests."""
    shares = list(zipf(len(models), ZIPF))
    random.Random(SEED).shuffle(shares)
    return shares


def arrivals_of(plan: Plan, pattern: str, rate: float, seconds: float, seed: int) -> Arrivals:
    """The same for every server."""
    rates = [rate * share for share in popularity(plan.models)]
    duration_ns = round(seconds * SECOND)
    if pattern == "bursts":
        return gamma(rates, CV, duration_ns, seed=seed).collect()
    return poisson(rates, duration_ns, seed=seed).collect()


class Residents:
    """The models that a cache with the least recently used policy would hold, given the requests so far.

    A request is cold where such a cache would not have its model: a fact about the requests, the same for
    every server.
    """

    def __init__(self, models: Sequence[Model], budget_bytes: int) -> None:
        self._sizes = [model.weights_bytes for model in models]
        self._budget = budget_bytes
        self._used = 0
        self._held: OrderedDict[int, None] = OrderedDict()

    def cold(self, asked: Sequence[int]) -> np.ndarray:
        """Whether each of these further requests is cold."""
        found = np.zeros(len(asked), bool)
        for place, index in enumerate(asked):
            if index in self._held:
                self._held.move_to_end(index)
                continue
            found[place] = True
            self._held[index] = None
            self._used += self._sizes[index]
            while self._used > self._budget and len(self._held) > 1:
                gone, _ = self._held.popitem(last=False)
                self._used -= self._sizes[gone]
        return found


def measure(
    plan: Plan, environments: Mapping[str, Environment], kept: Path, done: Callable[[Key], None], say: Say
) -> tuple[Path, dict[str, str]]:
    """Measure the cells that are missing. Returns their directory, and the servers that failed with reasons.

    kept: the directory of what stays from run to run: the cells, and data that servers need at each start.
    """
    directory = kept / f"cells-{plan.key()}"
    directory.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    reference = Reference(plan.models, say)
    prepared: set[str] = set()
    for turn in range(plan.rounds):
        capacity = capacity_of(reference, directory, turn)
        order = [*plan.systems[turn % len(plan.systems) :], *plan.systems[: turn % len(plan.systems)]]
        for system in order:
            for share in plan.shares:
                keys = [
                    Key(turn, system.name, share, pattern, load)
                    for pattern in plan.patterns
                    for load in plan.loads
                ]
                missing = [key for key in keys if not key.path(directory).exists()]
                for key in keys:
                    if key not in missing:
                        done(key)
                if not missing or system.name in failed:
                    continue
                where = f"round {turn + 1} of {plan.rounds}: {system.title}, memory {share:g}"
                say(f"{where}: starts")
                try:
                    if system.name not in prepared:
                        system.prepare(site_of(plan, share, kept, kept, {}), say)
                        prepared.add(system.name)
                    with serving(plan, system, share, environments.get(system.environment), kept) as server:
                        server.warm_up(capacity)
                        for key in missing:
                            say(f"{where}: {key.pattern}, load {key.load:g}")
                            cell = server.cell(key, capacity, reference)
                            partial = key.path(directory).with_suffix(".partial")
                            partial.write_text(json.dumps(cell))
                            partial.rename(key.path(directory))
                            done(key)
                except PeerFailed as error:
                    failed[system.name] = str(error)
                    say(f"{where}: failed: {error}")
    return directory, failed


def capacity_of(reference: Reference, directory: Path, turn: int) -> float:
    """The capacity of a round, measured at its beginning; a run that goes on keeps it."""
    path = directory / f"{turn}-capacity.json"
    capacity = reference.capacity(0.1)
    if not path.exists():
        path.write_text(json.dumps(capacity))
    return float(json.loads(path.read_text()))


class Server:
    """A server that has started and answered a sample of its models right."""

    def __init__(self, plan: Plan, system: System, site: Site, kept: Kept, sender: Sender) -> None:
        self._plan = plan
        self._system = system
        self._site = site
        self._kept = kept
        self._sender = sender
        self._residents = Residents(plan.models, site.budget_bytes)
        self._slo_ns = np.array([model.slo_ns for model in plan.models], np.int64)
        self._load_ns = load_times(system, site)

    def _offer(self, arrivals: Arrivals) -> tuple[Outcomes, np.ndarray]:
        cold = self._residents.cold(arrivals.model.tolist())
        return self._sender.run(arrivals, self._slo_ns[arrivals.model], GIVE_UP_S), cold

    def warm_up(self, capacity: float) -> None:
        """Offer requests that do not count, so that the memory is full of what is asked for."""
        self._offer(arrivals_of(self._plan, "zipf", WARM_LOAD * capacity, self._plan.warm_s, SEED - 1))

    def cell(self, key: Key, capacity: float, reference: Reference) -> dict[str, Any]:
        """The outcomes of a load, and what the processes used meanwhile."""
        arrivals = arrivals_of(
            self._plan, key.pattern, key.load * capacity, self._plan.seconds, SEED + key.turn
        )
        idle_cores = self._kept.cores(WINDOW_S * 3)
        loads = self._loads()
        machine_s, server_s, mine_s, begin_ns = busy_s(), self._kept.cpu_s(), cpu_s(os.getpid()), now_ns()
        found, cold = self._offer(arrivals)
        left_ns = now_ns()
        wall_s = (left_ns - begin_ns) / SECOND
        server_used_s, mine_used_s = self._kept.cpu_s() - server_s, cpu_s(os.getpid()) - mine_s
        others_s = busy_s() - machine_s - server_used_s - mine_used_s
        busy_until_idle(self._kept, left_ns, idle_cores)
        if self._kept.status is not None:
            raise PeerFailed(f"it ended with status {self._kept.status}:\n{self._kept.log()}")
        models = arrivals.model.tolist()
        needed_ns = self._load_ns[models] + np.array(
            [round(reference.exec_s[self._plan.models[index].architecture] * SECOND) for index in models],
            np.int64,
        )
        statuses, counts = np.unique(found.statuses, return_counts=True)
        return {
            **dataclasses.asdict(key),
            "capacity": capacity,
            "seconds": self._plan.seconds,
            "loads": self._loads() - loads,
            "server_cores": server_used_s / wall_s,
            "client_cores": mine_used_s / wall_s,
            "other_cores": max(0.0, others_s / wall_s),
            "load_average": os.getloadavg()[0],
            "rss_bytes": self._kept.rss_bytes(),
            "statuses": {str(status): int(count) for status, count in zip(statuses, counts)},
            "model": models,
            "verdict": found.verdicts.tolist(),
            "in_time": (
                (found.verdicts == Verdict.ANSWERED) & (found.elapsed_ns <= self._slo_ns[models])
            ).tolist(),
            "cold": cold.tolist(),
            "elapsed_us": (found.elapsed_ns // 1000).tolist(),
            "beyond_us": ((found.elapsed_ns - needed_ns) // 1000).tolist(),
            "lag_p99_ms": report.percentile_ms(found.lag_ns, 99),
        }

    def _loads(self) -> int:
        own = self._system.loads(self._site)
        return self._sender.loads if own is None else own


def load_times(system: System, site: Site) -> np.ndarray:
    """Nanoseconds of each model's load: Clockwork's own estimates, or plain ONNX Runtime's."""
    if isinstance(system, Clockwork):
        with system.client(site) as asked:
            known = {info.name: info.load_ns for info in asked.models()}
        return np.array([known[model.name] for model in site.models], np.int64)
    by_family: dict[int, int] = {}
    for model in site.models:
        if model.architecture not in by_family:
            body = model.build()
            begin_ns = now_ns()
            Plain(body)
            by_family[model.architecture] = now_ns() - begin_ns
    return np.array([by_family[model.architecture] for model in site.models], np.int64)


def site_of(
    plan: Plan, share: float, directory: Path, kept: Path, ports: Mapping[Transport, int], control: int = 0
) -> Site:
    return Site(directory, kept, plan.models, plan.budget_bytes(share), ports, control)


def prepare(plan: Plan, kept: Path, say: Say) -> None:
    """Make what starts of the servers need: models are registered, or optimised for the peers."""
    for system in plan.systems:
        say(f"{system.title} is prepared")
        system.prepare(site_of(plan, plan.shares[0], kept, kept, {}), say)


@contextlib.contextmanager
def serving(
    plan: Plan, system: System, share: float, environment: Environment | None, kept: Path
) -> Iterator[Server]:
    """A server with memory for a part of the models; at the end all of its processes are ended."""
    with tempfile.TemporaryDirectory(prefix="many-") as scratch:
        with held_ports(2) as [http, grpc]:
            pass  # the ports are free again here, because a server may not share its port
        ports: dict[Transport, int] = {"http": http, "grpc": grpc}
        site = site_of(plan, share, Path(scratch), kept, ports, three_ports())
        for path in system.files(site):
            for _ in pieces_of(path):
                pass
        launch = system.launch(site, environment)
        log = Path(scratch) / "log"
        with Kept(launch.command, log, dict(launch.environment), launch.directory) as running:
            wait_for_paths([system.ready_path(site)], ports["http"], running, READY_S)
            requests, loader = system.requests(site), system.loader(site)
            try:
                client.run(check(plan, requests, loader, ports["http"]))
            except PeerFailed as error:
                raise PeerFailed(f"{error}\n{running.log()}") from None
            with Sender(ports["http"], requests, loader) as sender:
                yield Server(plan, system, site, running, sender)


def three_ports() -> int:
    """The first of three free ports in a row."""
    for first in range(20_000, 60_000, 3):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + 3):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise OSError("no three ports in a row are free")


async def check(plan: Plan, requests: Http, loader: Loader | None, port: int) -> None:
    """Compare the answers of a sample of the models, of every architecture, with plain ONNX Runtime's."""
    road = requests.open(port)
    order = list(range(len(plan.models)))
    random.Random(SEED).shuffle(order)
    try:
        for index in _sample(plan, order):
            model = plan.models[index]
            if loader is not None:
                await asyncio.to_thread(_post, port, loader.loads[index])
            await _check(road, requests, index, model)
            if loader is not None:
                await asyncio.to_thread(_post, port, loader.unloads[index])
    finally:
        await road.close()


def _sample(plan: Plan, order: Sequence[int]) -> list[int]:
    """As many models as are to be checked, of the architectures in turn."""
    by_family: dict[int, list[int]] = {}
    for index in order:
        by_family.setdefault(plan.models[index].architecture, []).append(index)
    each = -(-plan.checked // len(by_family))
    return [index for family in sorted(by_family) for index in by_family[family][:each]][: plan.checked]


async def _check(road: Road, requests: Http, index: int, model: Model) -> None:
    # The SLO of the requests is too short for some models' first executions.
    limit_ns = now_ns() + round(ANSWER_S * SECOND)
    reply = await client.ask(road, index, ANSWER_S)
    while reply.verdict is Verdict.REFUSED and now_ns() < limit_ns:
        await asyncio.sleep(0.05)
        reply = await client.ask(road, index, ANSWER_S)
    if reply.verdict is not Verdict.ANSWERED:
        raise PeerFailed(f"no answer of {model.name}: {reply.said}")
    expected = Plain(model.build()).run({model.input: input_of(model)})[0].ravel()
    found = requests.scores(reply)
    if len(found) != len(expected) or not (error := relative_error(found, expected)) < TOLERANCE:
        raise PeerFailed(
            f"the answer of {model.name} ({ARCHITECTURES[model.architecture].name}) is wrong: {error:.1e}"
        )


def _post(port: int, path: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", b"{}")
    with urllib.request.urlopen(request, timeout=ANSWER_S):
        pass


# ----- report -----------------------------------------------------------------------------------------


def rows(directory: Path, plan: Plan) -> list[dict[str, Any]]:
    """A row for each server, memory, pattern and load: counts of all rounds, percentiles of all answers."""
    found = []
    for system in plan.systems:
        for share in plan.shares:
            for pattern in plan.patterns:
                for load in plan.loads:
                    paths = [
                        Key(turn, system.name, share, pattern, load).path(directory)
                        for turn in range(plan.rounds)
                    ]
                    cells = [json.loads(path.read_text()) for path in paths if path.exists()]
                    if cells:
                        found.append(_row(system, cells))
    return found


def _row(system: System, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(cell[name]) for cell in cells])

    verdicts, elapsed_ns = joined("verdict"), joined("elapsed_us") * 1000
    in_time, cold = joined("in_time").astype(bool), joined("cold").astype(bool)
    answered = verdicts == Verdict.ANSWERED
    offered = len(verdicts)
    seconds = sum(cell["seconds"] for cell in cells)
    capacity = sum(cell["capacity"] * cell["seconds"] for cell in cells) / seconds
    statuses: dict[str, int] = {}
    for cell in cells:
        for status, count in cell["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    first = cells[0]
    return {
        "system": system.name,
        "title": system.title,
        **{name: first[name] for name in ("share", "pattern", "load")},
        "rounds": len(cells),
        "offered": offered,
        "within_slo": int(in_time.sum()),
        "late": int((answered & ~in_time).sum()),
        "refused": int((verdicts == Verdict.REFUSED).sum()),
        "failed": int((verdicts == Verdict.FAILED).sum()),
        "gave_up": int((verdicts == Verdict.GONE).sum()),
        "offered/s": offered / seconds,
        "goodput/s": float(in_time.sum()) / seconds,
        "of_offered": float(in_time.mean()) if offered else 0.0,
        "of_offered_by_round": [float(np.mean(cell["in_time"])) for cell in cells],
        "of_capacity": float(in_time.sum()) / seconds / capacity,
        "p50_ms": report.percentile_ms(elapsed_ns[answered], 50),
        "p99_ms": report.percentile_ms(elapsed_ns[answered], 99),
        "cold": int(cold.sum()),
        "cold_within_slo": int((cold & in_time).sum()),
        "cold_p99_ms": report.percentile_ms(elapsed_ns[answered & cold], 99),
        "cold_beyond_p99_ms": report.percentile_ms(joined("beyond_us")[answered & cold] * 1000, 99),
        "loads": sum(cell["loads"] for cell in cells),
        "loads/request": sum(cell["loads"] for cell in cells) / max(1, offered),
        **{name: sum(cell[name] for cell in cells) / len(cells) for name in ("server_cores", "client_cores")},
        "other_cores": max(cell["other_cores"] for cell in cells),
        "load_average": max(cell["load_average"] for cell in cells),
        "lag_p99_ms": max(cell["lag_p99_ms"] or 0.0 for cell in cells),
        "rss_mib": max(cell["rss_bytes"] for cell in cells) / 2**20,
        "statuses": statuses,
    }
