"""The live forms of the experiments: a real controller, a real worker on the CPU, real sockets, and a model
in the place of ResNet50 on a V100.

The live model is an MLP of a millisecond or two whose throughput, like ResNet50's there, grows several times
with batches.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import heapq
import queue
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.cluster import Cluster
from bench.paper.common import Form, Setting, Tick
from clockwork.client import Client, calls
from clockwork.errors import ClockworkError
from clockwork.models import zoo
from clockwork.scheduler import POLICIES
from clockwork.system.clock import SECOND, now_ns
from clockwork.workloads import poisson
from clockwork.workloads.load_generator import Outcome, outcome_of, run_live

WIDTH = 1536
INPUTS = 64
THINK_S = 0.005
"""Pause of a closed-loop client after a refusal: without it, only refusals would be measured."""

NO_SLO_S = 3600.0
TIMEOUT_S = 60.0
LOST_MAX = 1000
"""Failures other than refusals after which a closed loop ends."""


@dataclasses.dataclass(frozen=True)
class Size:
    copies: int
    clients: int  # number of clients of each copy
    slos_ms: tuple[float, ...]
    seconds: float  # seconds of each measurement
    executions: dict[str, int]  # for Fig. 2: executions of each model
    arena: str


SIZES: dict[Form, Size] = {
    "tiny": Size(2, 4, (20,), 0.4, {"digits": 50}, "128M"),
    "quick": Size(6, 16, (10, 25, 100, 250), 1.5, {"digits": 4000, "residual_cnn": 500}, "256M"),
    "full": Size(
        15, 16, (5, 10, 25, 50, 100, 250, 500), 20.0,
        {"digits": 200_000, "residual_cnn": 20_000, "resnet50": 10_000}, "768M",
    ),
}  # fmt: skip


def policies(setting: Setting) -> list[str]:
    """The chosen policies that a controller can run."""
    return [policy for policy in setting.chosen() if policy in POLICIES]


@contextlib.contextmanager
def served(setting: Setting, policy: str, copies: int) -> Iterator[tuple[Cluster, list[str]]]:
    """A cluster of a worker with this many models, warmed up."""
    size = SIZES[setting.form]
    with Cluster(1, ("--arena", size.arena), controller_arguments=("--policy", policy)) as cluster:
        with cluster.client() as client:
            names = [f"mlp-{index:02d}" for index in range(copies)]
            for index, name in enumerate(names):
                client.register(name, zoo.build("mlp", seed=setting.seed + index, width=WIDTH, inputs=INPUTS))
            for name in names:
                client.infer(name, np.zeros((1, INPUTS), np.float32), slo=NO_SLO_S)
        yield cluster, names


# ----- Fig. 2 --------------------------------------------------------------------------------


def execution_times(setting: Setting, tick: Tick) -> dict[str, dict[str, Any]]:
    """Execution times on the device and latencies at the client, by model, with one request at a time."""
    found: dict[str, dict[str, Any]] = {}
    wanted = SIZES[setting.form].executions
    with Cluster(1, ("--arena", SIZES[setting.form].arena)) as cluster, cluster.client() as client:
        for place, (name, count) in enumerate(wanted.items()):
            client.register(name, zoo.build(name, seed=setting.seed))
            spec = client.model(name).inputs[0]
            shape = [1, *(int(size) for size in spec.shape[1:])]
            x = np.random.default_rng(setting.seed).standard_normal(shape).astype(np.float32)
            durations: list[int] = []
            latencies: list[int] = []
            for index in range(-max(5, count // 20), count):
                begin_ns = now_ns()
                exec_ns = timed_call(client, name, x)
                if index >= 0:
                    latencies.append(now_ns() - begin_ns)
                    durations.append(exec_ns)
                    if index % 64 == 0:
                        tick((place + index / count) / len(wanted))
            client.unregister(name)
            found[name] = {"executions": spread(durations), "client": spread(latencies)}
    return found


TIMED = calls.Call(calls.INFER_ARRAY.encode, calls.INFER_FRAMES.decode)


def timed_call(client: Client, name: str, x: Any) -> int:
    """The device's time for a request in ns, from the answer: Client.infer() does not return it."""
    answer, _ = client._channel.call(TIMED, int(TIMEOUT_S * SECOND), name, x, NO_SLO_S, 0)
    return int(answer.times[2])


MARKS = (50.0, 90.0, 99.0, 99.9, 99.99)


def spread(values_ns: Sequence[int]) -> dict[str, Any]:
    """The CDF, and percentiles in ms that have enough values, with their distances above the median in %."""
    values = np.sort(np.asarray(values_ns, np.float64)) / 1e6
    marks = [mark for mark in MARKS if len(values) * (100 - mark) >= 100 or mark == MARKS[0]]
    median = float(np.percentile(values, 50))
    points = {f"p{mark:g}_ms": round(float(np.percentile(values, mark)), 4) for mark in marks}
    above = {
        f"p{mark:g}": round(100 * (float(np.percentile(values, mark)) / median - 1), 3) for mark in marks[1:]
    }
    stretched: list[float] = sorted({0.0, *MARKS, *(100 - 10 ** (-place / 8) for place in range(-16, 17))})
    tail: list[list[float]] = [
        [mark, float(np.percentile(values, mark))] for mark in stretched if len(values) * (100 - mark) >= 50
    ]
    return {
        "count": len(values),
        **points,
        "max_ms": round(float(values[-1]), 4),
        "above_median_%": above,
        "tail": tail,
    }


# ----- closed loops --------------------------------------------------------------------------


@dataclasses.dataclass
class Counted:
    """The outcomes of a group of clients."""

    seconds: float = 0.0
    outcomes: list[int] = dataclasses.field(default_factory=lambda: [0] * len(Outcome))
    latencies_ns: list[int] = dataclasses.field(default_factory=list)  # latencies of answers

    def to_json(self) -> dict[str, Any]:
        times: dict[str, float] = {}
        if self.latencies_ns:
            latencies = np.array(self.latencies_ns, np.float64) / 1e6
            times = {
                f"p{mark:g}_ms": round(float(np.percentile(latencies, mark)), 3) for mark in (50, 99, 99.9)
            }
            times["max_ms"] = round(float(latencies.max()), 3)
        return {
            "goodput/s": round(self.outcomes[Outcome.GOOD] / self.seconds, 1),
            "late": self.outcomes[Outcome.LATE],
            "refused": self.outcomes[Outcome.REFUSED],
            "missed": self.outcomes[Outcome.MISSED],
            "failed": self.outcomes[Outcome.FAILED] + self.outcomes[Outcome.TIMEOUT],
            **times,
        }


def closed_loop(
    client: Client, names: Sequence[str], clients: int, slo_s: float, seconds: float, seed: int
) -> Counted:
    """Clients of each model, each with one request under way; after a refusal a client waits for THINK_S."""
    x = np.random.default_rng(seed).standard_normal((1, INPUTS)).astype(np.float32)
    counted = Counted()
    ended: queue.SimpleQueue[tuple[int, int, BaseException | None]] = queue.SimpleQueue()
    begin_ns = now_ns()
    until_ns = begin_ns + int(seconds * SECOND)
    due = [(begin_ns, caller) for caller in range(len(names) * clients)]
    heapq.heapify(due)
    under_way = 0
    while due or under_way:
        now = now_ns()
        while due and due[0][0] <= now:
            _, caller = heapq.heappop(due)
            if now >= until_ns:
                continue
            sent_ns = now_ns()
            future = client.submit(names[caller % len(names)], x, slo=slo_s, timeout=TIMEOUT_S)
            future.add_done_callback(
                lambda done, caller=caller, sent_ns=sent_ns: ended.put(  # type: ignore[misc]
                    (caller, now_ns() - sent_ns, done.exception())
                )
            )
            under_way += 1
        if not due and not under_way:
            break
        try:
            wait_s = max(0.0, (due[0][0] - now_ns()) / SECOND) if due else TIMEOUT_S
            caller, latency_ns, error = ended.get(timeout=wait_s)
        except queue.Empty:
            continue
        under_way -= 1
        outcome = outcome_of(latency_ns, int(slo_s * SECOND), error)
        if now_ns() <= until_ns:
            counted.outcomes[outcome] += 1
            if error is None:
                counted.latencies_ns.append(latency_ns)
        if counted.outcomes[Outcome.FAILED] > LOST_MAX:
            raise ClockworkError(f"too many requests failed, the last with {error}")
        think_ns = 0 if error is None else int(THINK_S * SECOND)
        heapq.heappush(due, (now_ns() + think_ns, caller))
    counted.seconds = (until_ns - begin_ns) / SECOND
    return counted


# ----- Figs. 5 and 8 -------------------------------------------------------------------------


def slo_sweep(setting: Setting) -> list[dict[str, Any]]:
    """A row for each policy and SLO: copies of a model with closed-loop clients on one CPU worker."""
    size = SIZES[setting.form]
    rows = []
    for policy in policies(setting):
        with served(setting, policy, size.copies) as (cluster, names), cluster.client() as client:
            for slo_ms in size.slos_ms:
                counted = closed_loop(client, names, size.clients, slo_ms / 1e3, size.seconds, setting.seed)
                rows.append({"policy": policy, "slo_ms": slo_ms, **counted.to_json()})
    return rows


SENSITIVE_RATE = 60.0
BATCH_CALLERS = 8


def isolation(setting: Setting) -> list[dict[str, Any]]:
    """A row for each policy and SLO, with and without batch clients: the results of the sensitive clients."""
    size = SIZES[setting.form]
    half = max(1, size.copies // 2)
    rows = []
    for policy in policies(setting):
        with (
            served(setting, policy, 2 * half) as (cluster, names),
            cluster.client() as client,
            cluster.client() as other,
            concurrent.futures.ThreadPoolExecutor(1) as pool,
        ):
            for slo_ms in size.slos_ms:
                for callers in (0, BATCH_CALLERS):
                    arrivals = poisson(
                        [SENSITIVE_RATE / half] * half, int(size.seconds * SECOND),
                        seed=setting.seed, slo_ns=int(slo_ms * 1e6),
                    )  # fmt: skip
                    batch = (
                        pool.submit(
                            closed_loop, other, names[half:], callers, NO_SLO_S, size.seconds, setting.seed
                        )
                        if callers
                        else None
                    )
                    got = run_live(client, arrivals, names[:half], seed=setting.seed)
                    rows.append(
                        {
                            "policy": policy,
                            "slo_ms": slo_ms,
                            "batch_clients": callers * half,
                            "satisfied": round(got.report.within_slo / max(1, got.report.offered), 4),
                            "p99_ms": round(got.report.latency_ms.get("p99", 0.0), 3),
                            "lag_p99_ms": round(got.report.lag_ms.get("p99", 0.0), 3),
                            "batch/s": batch.result().to_json()["goodput/s"] if batch is not None else 0.0,
                        }
                    )
    return rows
