"""Recovery of a live cluster within two seconds after the end of a disturbance.

    python -m bench.recovery [--quick] [--json] [--kinds link-10,stop,...] [--policies edf,adaptive]
        [--rounds 3]

clockwork.sim.recovery measures the same in hundreds of simulated worlds; here everything is real but the
devices. Each kind of disturbance and each policy has a controller and a worker of two emulated devices, which
serve four models. Requests come evenly at LOAD of the devices' rate in full batches, open loop, from a
process of its own. In each round nothing happens for three seconds; then for one second

    link-10, link-100         the worker's link takes 10 or 100 times as long, in both directions
    stop, controller          the worker, or the controller, is stopped (SIGSTOP)
    burst                     requests come at ten times the devices' rate
    slow-1.5, slow-10         executions take 1.5 or 10 times as long

or, with the native client and worker of bench.pump (20 devices),

    loop-1 ... loop-4096      a closed loop of so many requests under way leaves, and comes back
    flood-1, flood-64         a closed loop of 4096 comes beside one of 1 or 64, which stays

Good answers a second are counted in the first two seconds after the end of the disturbance and in the two
seconds after those. "kept" is their ratio to those of the three seconds before the first disturbance. Where a
loop stays, only its own answers count. The goal is GOODPUT_KEPT in the second two. The table has the median
of the rounds, and the worst. A machine with other work loses answers without a disturbance: "quiet" is the
ratio for the quiet times of later rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import published, pump, report
from bench.cluster import Cluster
from bench.links import Link
from clockwork.client.blocking import Client
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.launch.profiles import register_profiles
from clockwork.sim.recovery import GOODPUT_KEPT
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.workloads import Arrivals, load_generator

SEED = 11
POLICIES = ("edf", "adaptive")
DEVICES = 2
MODELS = 4
ROW_NS, BASE_NS, BATCH_MAX = 9 * MS, 3 * MS, 8
CAPACITY = DEVICES * BATCH_MAX * SECOND / (BATCH_MAX * ROW_NS + BASE_NS)
"""Rate of the devices in full batches, in requests a second."""

LOAD = 0.8
BURST = 10.0
SLO_NS = 200 * MS
LINK_MS = (0.1, 0.2)
"""Delay of the worker's link each way, on top of this machine's own."""

LOOP_DEVICES, LOOP_MODELS = 20, 4
LOOP_ROW_NS, LOOP_BASE_NS, LOOP_BATCH_MAX = 500_000, 10 * MS, 32
"""Execution time, so long that the devices limit the deepest loop, and not other load on the machine."""

LOOP_SLO_NS = 2 * SECOND
FLOOD = 4096
SAMPLE_S = 0.02

KINDS = ("link-10", "link-100", "stop", "controller", "burst", "slow-1.5", "slow-10",
         "loop-1", "loop-64", "loop-1024", "loop-4096", "flood-1", "flood-64")  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """The times of a round, in nanoseconds."""

    warm_up: int = 2 * SECOND  # time before the first round
    quiet: int = 3 * SECOND
    disturbed: int = SECOND
    first: int = 2 * SECOND
    second: int = 2 * SECOND

    @property
    def round(self) -> int:
        return self.quiet + self.disturbed + self.first + self.second


QUICK = Times(SECOND // 2, 3 * SECOND // 2, SECOND // 2, 2 * SECOND, SECOND)


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """Good answers a second before the first disturbance, and parts of that."""

    steady: float
    quiet: float  # rate before this round's disturbance
    first: float
    second: float


Count = Callable[[int, int], float]
"""Counts the good answers between two times."""


def rounds_of(count: Count, disturbances: Sequence[tuple[int, int]], times: Times) -> list[Round]:
    """The rounds of a run. disturbances: the beginning and the end of each."""

    def rate(from_ns: int, took_ns: int) -> float:
        return count(from_ns, from_ns + took_ns) * SECOND / took_ns

    steady = rate(disturbances[0][0] - times.quiet, times.quiet)
    part = 1 / max(steady, 1.0)
    return [
        Round(
            steady,
            rate(begin_ns - times.quiet, times.quiet) * part,
            rate(end_ns, times.first) * part,
            rate(end_ns + times.first, times.second) * part,
        )
        for begin_ns, end_ns in disturbances
    ]


def wait_until(at_ns: int) -> None:
    threading.Event().wait(max(0, at_ns - now_ns()) / SECOND)


# ----- open loop, emulated devices ---------------------------------------------------------------


def profiles() -> list[ModelProfile]:
    return [
        linear(f"m{index}", ROW_NS, BASE_NS, BATCH_MAX, weights_bytes=16 << 20, load_ns=5 * MS,
               input_bytes=1000, output_bytes=4)
        for index in range(MODELS)
    ]  # fmt: skip


def arrivals(length_ns: int, bursts: Sequence[tuple[int, int]], rate: float) -> Arrivals:
    """Arrivals for random models, evenly at the rate, and also at BURST times the capacity during bursts."""
    gap_ns = round(SECOND / rate)
    parts: list[npt.NDArray[np.int64]] = [np.arange(0, length_ns, gap_ns, np.int64)]
    for begin_ns, end_ns in bursts:
        parts.append(np.arange(begin_ns, end_ns, round(SECOND / (BURST * CAPACITY)), np.int64))
    times = np.sort(np.concatenate(parts))
    models = np.random.default_rng(SEED).integers(0, MODELS, len(times))
    return Arrivals.of(times, models, slo_ns=SLO_NS)


def offer(endpoint: str, begin_ns: int, workload: Arrivals) -> npt.NDArray[np.int64]:
    """Send a workload from begin_ns on; returns the due times of the requests answered in time.

    Runs in a process of its own.
    """
    with Client(endpoint, timeout=30.0, name="recovery") as client:
        wait_until(begin_ns)
        begun_ns = now_ns()
        found = load_generator.run_live(client, workload, [profile.name for profile in profiles()], seed=SEED)
    good: npt.NDArray[np.int64] = begun_ns + found.arrivals.t_ns[found.outcome == load_generator.Outcome.GOOD]
    return good


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@contextlib.contextmanager
def slowed(link: Link, factor: float) -> Iterator[None]:
    longer = (LINK_MS[0] * factor, LINK_MS[1] * factor)
    link.delay(longer, longer)
    try:
        yield
    finally:
        link.delay(LINK_MS, LINK_MS)


def open_loop(kind: str, policy: str, rounds: int, times: Times) -> list[Round]:
    """Rounds with emulated devices and an open loop of requests."""
    name, _, factor = kind.partition("-")
    worker = ["--device", "emulated", "--devices", str(DEVICES), "--page-size", "16MiB"]
    if name == "slow":
        slow = {"factor": float(factor), "ns": times.disturbed, "every_ns": times.round}
        worker += [
            word for setting, value in slow.items() for word in ("--emulate", f"slow_{setting}={value}")
        ]
    links: list[Link] = []

    def through(endpoint: str) -> str:
        links.append(Link(endpoint, LINK_MS, LINK_MS, SEED))
        return links[0].endpoint

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [link.close() for link in links])
        cluster = stack.enter_context(
            Cluster(
                1,
                worker,
                controller_arguments=("--policy", policy),
                through=through if name == "link" else None,
            )
        )
        with cluster.client() as client:
            register_profiles(client, profiles())
        sender = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        sender.submit(now_ns).result()  # returns once the process has started
        begin_ns = now_ns() + SECOND // 4
        first_ns = begin_ns + times.warm_up + times.quiet
        if name == "slow":  # times at which the worker is slow
            first_ns = -(-first_ns // times.round) * times.round
        planned = [first_ns + index * times.round for index in range(rounds)]
        bursts = [
            (at_ns - begin_ns, at_ns - begin_ns + times.disturbed) for at_ns in planned if name == "burst"
        ]
        workload = arrivals(planned[-1] + times.round - times.quiet - begin_ns, bursts, LOAD * CAPACITY)
        good: Future[npt.NDArray[np.int64]] = sender.submit(offer, cluster.endpoint, begin_ns, workload)
        disturbances = []
        for at_ns in planned:
            disturbance = {
                "link": lambda: slowed(links[0], float(factor)),
                "stop": lambda: stopped(cluster.workers[0]),
                "controller": lambda: stopped(cluster.controller),
            }.get(name, contextlib.nullcontext)
            wait_until(at_ns)
            with disturbance():
                wait_until(at_ns + times.disturbed)
            disturbances.append((at_ns, now_ns()))
        due_ns = good.result()

    def count(from_ns: int, until_ns: int) -> float:
        return float(np.searchsorted(due_ns, until_ns) - np.searchsorted(due_ns, from_ns))

    return rounds_of(count, disturbances, times)


# ----- closed loops, native ends -----------------------------------------------------------------


class Loop:
    """A closed loop on a thread, from its beginning until it leaves, with its answers over time."""

    def __init__(self, endpoint: str, names: Sequence[str], in_flight: int) -> None:
        self.samples: list[tuple[int, int]] = []  # (time, answers since the sample before)
        self._client = pump.PumpClient(endpoint, names, 0, in_flight)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def leave(self) -> list[tuple[int, int]]:
        self._ends.set()
        self._thread.join()
        self._client.close()
        return self.samples

    def _run(self) -> None:
        while not self._ends.is_set():
            answered = self._client.run(SAMPLE_S, LOOP_SLO_NS)
            self.samples.append((now_ns(), answered))


def closed_loop(kind: str, policy: str, rounds: int, times: Times) -> list[Round]:
    """Rounds of a closed loop that leaves and comes back, or that stays while a flood comes and goes."""
    name, _, depth = kind.partition("-")
    models = [
        linear(f"m{index}", LOOP_ROW_NS, LOOP_BASE_NS, LOOP_BATCH_MAX, weights_bytes=16 << 20, load_ns=2 * MS,
               output_bytes=4, program="p")
        for index in range(LOOP_MODELS)
    ]  # fmt: skip
    names = [model.name for model in models]
    pump.library()
    samples: list[tuple[int, int]] = []
    disturbances = []
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(0, controller_arguments=("--policy", policy)))
        worker = pump.PumpWorker(cluster.worker_endpoint, LOOP_DEVICES, models, LOOP_BASE_NS, LOOP_ROW_NS)
        stack.callback(worker.close)
        ends = threading.Event()
        thread = threading.Thread(target=worker.run, args=(ends,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(ends.set)
        with cluster.client() as client:
            register_profiles(client, models)
        loop = Loop(cluster.endpoint, names, int(depth))
        try:
            at_ns = now_ns() + times.warm_up + times.quiet
            for _ in range(rounds):
                wait_until(at_ns)
                if name == "flood":
                    flood = Loop(cluster.endpoint, names, FLOOD)
                    wait_until(at_ns + times.disturbed)
                    flood.leave()
                else:
                    samples += loop.leave()
                    wait_until(at_ns + times.disturbed)
                    loop = Loop(cluster.endpoint, names, int(depth))
                disturbances.append((at_ns, now_ns()))
                at_ns += times.round
            wait_until(at_ns - times.quiet)
        finally:
            samples += loop.leave()
            threading.Event().wait(2 * pump.SLICE_NS / SECOND)  # the worker answers its remaining requests
    until_ns = np.array([at for at, _ in samples])
    answered = np.concatenate([[0], np.cumsum([count for _, count in samples])])

    def count(from_ns: int, end_ns: int) -> float:
        by = np.interp([from_ns, end_ns], np.concatenate([[until_ns[0] - SECOND], until_ns]), answered)
        return float(by[1] - by[0])

    return rounds_of(count, disturbances, times)


# ----- the table ---------------------------------------------------------------------------------


def measure(kind: str, policy: str, rounds: int = 3, times: Times = Times()) -> list[Round]:
    return (closed_loop if kind.startswith(("loop", "flood")) else open_loop)(kind, policy, rounds, times)


def row(kind: str, policy: str, found: Sequence[Round]) -> dict[str, Any]:
    def median(of: Callable[[Round], float]) -> float:
        return round(statistics.median(of(outcome) for outcome in found), 3)

    return {
        "kind": kind,
        "policy": policy,
        "steady/s": round(found[0].steady, 1),
        "quiet": median(lambda outcome: outcome.quiet),
        "kept in 2 s": median(lambda outcome: outcome.first),
        "in the 2 s after": median(lambda outcome: outcome.second),
        "worst": round(min(outcome.second for outcome in found), 3),
        "recovered": f"{sum(outcome.second >= GOODPUT_KEPT for outcome in found)} of {len(found)}",
    }


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds of each kind and policy (default 3; 1 with --quick)"
    )
    options = parser.parse_args()
    times, rounds = (QUICK, options.rounds or 1) if options.quick else (Times(), options.rounds or 3)
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no kinds {sorted(unknown)}; there are {', '.join(KINDS)}")
    rows = [
        row(kind, policy, measure(kind, policy, rounds, times))
        for kind in kinds
        for policy in options.policies.split(",")
    ]
    facts = {
        "rounds": rounds,
        "offered, of capacity": f"{LOAD * CAPACITY:.0f}, {CAPACITY:.0f} requests/s",
        "goal": f"{GOODPUT_KEPT} in the 2 s after",
    }
    if options.publish:
        published.save("recovery", {"rows": rows, "facts": facts}, SEED)
    report.show("goodput kept after a disturbance of a second", SEED, rows, facts, options.json)


if __name__ == "__main__":
    main()
