"""Workers that each store a part of the models, in networks of their own; see bench.stores.

A controller is in the hub of bench.networks, and each worker on a host of its own, behind a link of 100 MB/s,
with a directory of its own. The same requests a second come in every phase, Zipf 0.9 over all models, from a
process that compares every answer with that of ONNX Runtime:

    steady    nothing happens; the stores are filled with what is asked for
    cut       the link of a worker is down for some seconds
    kill      a worker is killed (SIGKILL), and its disk is lost
    join      another worker with an empty disk takes its place
    leave     a worker is stopped (SIGTERM), and models are asked for that only it has

The last phase needs models of which there is one copy (--copies 1), and has no other requests. After `kill`
three workers that should have two copies have no room for all of them, until another joins; four have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bench.cluster import Cluster
from bench.networks import Networks
from bench.reference import Plain
from bench.registration import PAGE_BYTES, write_models
from clockwork.client.blocking import Client
from clockwork.config.controller import planned_store_bytes
from clockwork.errors import ClockworkError
from clockwork.observe.history import History, SeenAction
from clockwork.observe.recorded import read_history
from clockwork.scheduler.types import Status
from clockwork.sim import recorded
from clockwork.sim.world import Open, simulate
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire.tensors import Array
from clockwork.workloads import Arrivals, poisson, zipf
from clockwork.workloads.load_generator import Outcome, make_inputs, outcome_of

LINK_BYTES_PER_S = 100_000_000
POLICY = "adaptive"
ZIPF = 0.9
FITS = 0.6
"""Part of the models for which all arenas together have memory."""

ROOM, PART_MAX = 0.05, 0.8
"""Room of each store beyond the copies that it needs, and the most that it may hold: parts of all models."""

SECONDS_LEAST = 1.5
"""Least length of a phase."""

LEAD_NS = SECOND // 2
"""Time from the first request of a phase until something happens."""

BOOT_NS = SECOND // 4
"""Time in which the sending process learns when to begin."""

PATIENCE_S = 30.0
ALONE_SLO_S = 9.0
ASKED_ALONE = 5
"""Models that are asked for in the phase `leave`."""

AWAITED_NS = 300 * SECOND
"""Time after which what is awaited counts as never happening, however busy the machine is."""
TOLERANCE = 1e-4
"""Largest difference of an answer from ONNX Runtime's, as a part of the largest value."""

REGISTERED_AT_ONCE = 8
POLL_S = 0.02
KEEPERS_POLL_S = 0.1
"""Pause between two looks at the workers of every model, which cost the controller some time."""

WORKERS_LEAST, WORKERS_MOST = 3, 8
HOST_A, HOST_B, HOST_C = range(WORKERS_LEAST)
"""The hosts of the worker that leaves, of that whose link is cut, and of that which is killed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a measurement."""

    workers: int = 3
    models: int = 48
    families: int = 8
    megabytes: float = 8.0  # mean size of a model
    rate: float = 60.0  # requests/s
    seconds: float = 12.0  # of requests in each phase
    cut_s: float = 3.0
    slo_s: float = 0.5
    copies: Sequence[int] = (2, 1)
    seed: int = 1

    def part(self, copies: int) -> float:
        """Return the part of all models that a store holds: as much as is needed without one of the workers,
        but never all."""
        return min(copies / (self.workers - 1) + ROOM, PART_MAX)


QUICK = Plan(models=6, families=1, megabytes=1.0, rate=20.0, seconds=1.5, cut_s=0.3, slo_s=1.0, copies=(1,))

Inputs = Mapping[str, Array]
Numbers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A request for a model, and its right answer."""

    model: str
    inputs: Inputs
    outputs: Mapping[str, Array]

    def is_right(self, answer: Mapping[str, Array]) -> bool:
        return answer.keys() == self.outputs.keys() and all(
            np.shape(answer[name]) == expected.shape
            and bool(
                np.all(np.abs(answer[name] - expected) <= TOLERANCE * np.abs(expected).max(initial=1e-30))
            )
            for name, expected in self.outputs.items()
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """The outcomes of a phase's requests; the arrays line up."""

    due_ns: Numbers
    model: npt.NDArray[np.int32]
    outcome: Numbers  # codes of Outcome
    latency_ns: Numbers  # from the due time
    is_wrong: npt.NDArray[np.bool_]
    ends: Numbers  # how many times each request ended


def offer(
    endpoint: str, begin_ns: int, arrivals: Arrivals, questions: Sequence[Question], slo_s: float
) -> Sent:
    """Send requests when they are due, and wait for all of them. Runs in a process of its own."""
    count = len(arrivals)
    sent = Sent(
        begin_ns + arrivals.t_ns, arrivals.model, np.zeros(count, np.int64), np.zeros(count, np.int64),
        np.zeros(count, np.bool_), np.zeros(count, np.int64),
    )  # fmt: skip
    left = threading.Semaphore(0)

    def ended(number: int, answer: Future[Any]) -> None:
        error = answer.exception()
        latency_ns = now_ns() - int(sent.due_ns[number])
        sent.latency_ns[number] = latency_ns
        sent.outcome[number] = outcome_of(latency_ns, round(slo_s * SECOND), error)
        if error is None:
            sent.is_wrong[number] = not questions[arrivals.model[number]].is_right(answer.result())
        sent.ends[number] += 1
        left.release()

    with Client(endpoint, timeout=PATIENCE_S, name="stores") as client:
        for number in range(count):
            wait_until(int(sent.due_ns[number]))
            question = questions[arrivals.model[number]]
            future = client.submit(question.model, question.inputs, slo=slo_s)
            future.add_done_callback(lambda answer, number=number: ended(number, answer))  # type: ignore[misc]
        for _ in range(count):
            left.acquire()
    return sent


class Sender:
    """A process that offers requests, one phase after the other; use as a context manager."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self._connection.recv()  # it has started

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def start(self, *arguments: Any) -> None:
        """Have it call offer()."""
        self._connection.send(arguments)

    def sent(self) -> Sent:
        """Wait for the end of what was started."""
        found: Sent = self._connection.recv()
        return found


def serve(connection: Connection) -> None:
    """Be the process of a Sender."""
    connection.send(None)
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        connection.send(offer(*arguments))


def wait_until(at_ns: int) -> None:
    if (left_ns := at_ns - now_ns()) > 0:
        threading.Event().wait(left_ns / SECOND)


class Hosts:
    """The networks of a cluster whose workers are called "NUMBER" or "NUMBER-again", by their host."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def endpoints(self, data: Path) -> tuple[str, str, str]:
        return f"ipc://{data}/clients", f"tcp://{self._networks.hub_address}:5556", f"ipc://{data}/events"

    def enter(self, name: str) -> Sequence[str]:
        if name == "controller":
            return self._networks.enter_hub()
        return self._networks.enter_host(int(name.partition("-")[0]))


@dataclasses.dataclass(slots=True)
class Phase:
    """A phase, with what its disturbance measured."""

    name: str
    sent: Sent
    begin_ns: int
    end_ns: int
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Bench:
    """A cluster with its models and its sending process; use as a context manager."""

    def __init__(self, plan: Plan, copies: int, folder: Path) -> None:
        self.plan = plan
        self.copies = copies
        files, mean_bytes = write_models(folder, plan.models, plan.families, plan.megabytes, plan.seed)
        self.files = {**files[0], **files[1]}
        self._first, self._others = files
        all_bytes = mean_bytes * plan.models
        largest = max(path.stat().st_size for path in self.files.values())
        # the controller plans with a part of a store (planned_store_bytes), and models take whole pages
        self.store_bytes = round(plan.part(copies) * all_bytes * 8 / 7) + largest
        self.arena_bytes = max(round(FITS * all_bytes / plan.workers), 4 * largest) >> 20 << 20
        self.recording = folder / "recording"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        try:
            return self._begin()
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _begin(self) -> Bench:
        stack, plan = self._stack, self.plan
        self.networks = stack.enter_context(Networks(plan.workers, LINK_BYTES_PER_S))
        flags = ("--insecure", "--stored-copies", str(self.copies), "--policy", POLICY)
        self.cluster = stack.enter_context(
            Cluster(
                0,
                controller_arguments=(*flags, "--record", str(self.recording)),
                site=Hosts(self.networks),
            )
        )
        self._sender = stack.enter_context(Sender())
        self.client = stack.enter_context(self.cluster.client())
        for host in range(plan.workers):
            self.add_worker(host, str(host))
        self.await_(lambda: len(self.workers()) == plan.workers, "the workers join")
        self._register()
        self.names = list(self.files)
        self.await_(self.is_settled, f"there are {self.copies} copies of each model", KEEPERS_POLL_S)
        self.registered_ns = now_ns()
        self.questions = [self.question(name) for name in self.names]
        return self

    def _register(self) -> None:
        """Register the models, those with new architectures one after the other."""
        for name, path in self._first.items():
            self.client.register(name, path)
        pool = ThreadPoolExecutor(REGISTERED_AT_ONCE)
        try:
            for _ in pool.map(self.client.register, self._others, self._others.values()):
                pass
        finally:  # after a signal nobody waits for them; they end with the client
            pool.shutdown(wait=False, cancel_futures=True)

    # ----- the cluster -------------------------------------------------------------------------

    def add_worker(self, host: int, name: str) -> None:
        """Start a worker with an empty disk on a host."""
        self.cluster.add_worker(
            name,
            ("--arena", str(self.arena_bytes), "--page-size", str(PAGE_BYTES), "--executors", "1",
             "--store-bytes", str(self.store_bytes), "--drain", f"{PATIENCE_S:g}"),
        )  # fmt: skip

    def workers(self) -> dict[str, dict[str, Any]]:
        """The workers in the status, by name."""
        return {worker["name"]: worker for worker in self.client.status()["workers"]}

    def keepers(self) -> dict[str, list[str]]:
        """The workers that have each model."""
        return {
            name: [
                worker for worker, state in self.client.model(name).raw["workers"].items() if state == "ready"
            ]
            for name in self.names
        }

    def is_settled(self) -> bool:
        return all(len(found) >= self.copies for found in self.keepers().values())

    def await_(self, is_so: Callable[[], bool], what: str, poll_s: float = POLL_S) -> int:
        """Wait until something is so. Returns the time. Raises TimeoutError."""
        end_ns = now_ns() + AWAITED_NS
        pause = threading.Event()
        while not is_so():
            if now_ns() > end_ns:
                raise TimeoutError(f"not within {AWAITED_NS / SECOND:g} s: {what}\n{self.cluster.log()}")
            pause.wait(poll_s)
        return now_ns()

    def question(self, name: str) -> Question:
        info = self.client.model(name)
        inputs = make_inputs(info, 1, self.plan.seed)[0]
        answers = Plain(onnx.load(self.files[name])).run(inputs)
        return Question(
            name, inputs, dict(zip([output.name for output in info.outputs], answers, strict=True))
        )

    # ----- phases ------------------------------------------------------------------------------

    def arrivals(self, number: int) -> Arrivals:
        rates = [self.plan.rate * share for share in zipf(len(self.names), ZIPF)]
        length_ns = round(self.plan.seconds * SECOND)
        return poisson(
            rates, length_ns, seed=self.plan.seed + number, slo_ns=round(self.plan.slo_s * SECOND)
        ).collect()

    def phase(self, name: str, number: int, disturb: Callable[[], dict[str, Any]] = dict) -> Phase:
        """Send a phase's requests, and disturb the cluster meanwhile."""
        begin_ns = now_ns() + BOOT_NS
        self._sender.start(
            self.cluster.endpoint, begin_ns, self.arrivals(number), self.questions, self.plan.slo_s
        )
        wait_until(begin_ns + LEAD_NS)
        facts = disturb()
        sent = self._sender.sent()
        wait_until(begin_ns + round(self.plan.seconds * SECOND))
        return Phase(name, sent, begin_ns, now_ns(), facts)

    def cut(self) -> dict[str, Any]:
        cut_ns = now_ns()
        self.networks.cut(HOST_B)
        wait_until(cut_ns + round(self.plan.cut_s * SECOND))
        self.networks.mend(HOST_B)
        mended_ns = now_ns()
        name = str(HOST_B)
        back_ns = self.await_(lambda: name in self.workers(), "the worker is back")
        return {"link down, s": (mended_ns - cut_ns) / SECOND, "worker back after, s": (back_ns - mended_ns) / SECOND,
                }  # fmt: skip

    def kill(self) -> dict[str, Any]:
        """Kill a worker, and follow the number of copies until the phase ends."""
        killed_ns = now_ns()
        self.cluster.workers[HOST_C].kill()
        self.cluster.workers.pop(HOST_C).wait()
        self.await_(lambda: str(HOST_C) not in self.workers(), "the worker is lost")
        # time, models without a copy, copies of all models up to the goal
        seen: list[tuple[int, int, int]] = []
        pause = threading.Event()
        while not seen or now_ns() < killed_ns + round(self.plan.seconds * SECOND) - LEAD_NS:
            counts = [len(found) for found in self.keepers().values()]
            seen.append((now_ns(), counts.count(0), sum(min(count, self.copies) for count in counts)))
            pause.wait(KEEPERS_POLL_S)
        least, most = seen[0][2], seen[-1][2]
        bare = [at_ns for at_ns, without, _ in seen if without]
        return {
            "copies left": least,
            "copies at the end": most,
            "copies there again after, s": (next(at for at, _, found in seen if found == most) - killed_ns)
            / SECOND,
            "models without a copy": max(without for _, without, _ in seen),
            "such models until, s": (bare[-1] - killed_ns) / SECOND if bare else None,
        }

    def join(self) -> dict[str, Any]:
        begin_ns, before = now_ns(), self.networks.received_bytes(HOST_C)
        name = f"{HOST_C}-again"
        self.add_worker(HOST_C, name)
        joined_ns = self.await_(lambda: name in self.workers(), "the new worker joins")
        settled_ns = self.await_(self.is_settled, "there are all copies", KEEPERS_POLL_S)
        received = self.networks.received_bytes(HOST_C) - before
        return {"joined after, s": (joined_ns - begin_ns) / SECOND, "copies after, s": (settled_ns - begin_ns) / SECOND,
                "received, MB": received / 1e6}  # fmt: skip

    def leave(self) -> dict[str, Any]:
        """Stop a worker, and ask for models that only it has."""
        name = str(HOST_A)
        alone = [model for model, found in self.keepers().items() if found == [name]]
        begin_ns = now_ns()
        worker = self.cluster.workers.pop(HOST_A)
        worker.send_signal(signal.SIGTERM)
        self.await_(lambda: self.workers()[name]["state"] == "draining", "the worker leaves")
        took_ms: list[int] = []
        failures: list[str] = []
        wrong = 0
        for question in self.questions:
            if question.model in alone[-ASKED_ALONE:]:
                asked_ns = now_ns()
                try:
                    answer = self.client.infer(question.model, question.inputs, slo=ALONE_SLO_S)
                except ClockworkError as error:
                    failures.append(str(error))
                    continue
                took_ms.append(round((now_ns() - asked_ns) / MS))
                wrong += not question.is_right(answer)
        worker.wait(AWAITED_NS / SECOND)
        return {"models that only it had": len(alone), "first answers, ms": took_ms,
                "not answered": failures, "wrong": wrong, "gone after, s": (now_ns() - begin_ns) / SECOND, "exit status": worker.returncode}  # fmt: skip


# ----- figures ----------------------------------------------------------------------------------


def percentile(values: npt.NDArray[Any] | Sequence[float], mark: float) -> float | None:
    return round(float(np.percentile(values, mark)), 3) if len(values) else None


def fetches_of(history: History, from_ns: int, until_ns: int) -> list[SeenAction]:
    """The FETCHes that were ordered within a time and went well, in the order of their orders."""
    return [
        action
        for action in history.actions.values()
        if action.kind == "fetch" and from_ns <= action.ordered_ns < until_ns and action.status is Status.OK
    ]


def row_of(phase: Phase, history: History) -> dict[str, Any]:
    """A row of figures about a phase's requests."""
    sent = phase.sent
    latency_ms = sent.latency_ns[sent.outcome == Outcome.GOOD] / MS
    count = Counter(Outcome(code).name.lower() for code in sent.outcome.tolist())
    during = fetches_of(history, phase.begin_ns, phase.end_ns)
    return {
        "phase": phase.name,
        "requests": len(sent.outcome),
        "in time": round(count["good"] / max(len(sent.outcome), 1), 4),
        **{name: count[name] for name in ("late", "refused", "missed", "timeout", "failed")},
        "wrong": int(sent.is_wrong.sum()),
        "not ended once": int((sent.ends != 1).sum()),
        "p50_ms": percentile(latency_ms, 50),
        "p99_ms": percentile(latency_ms, 99),
        "longest_ms": round(float(sent.latency_ns.max(initial=0)) / MS, 1),
        "fetches": len(during),
    }


def prediction(fetches: Sequence[SeenAction]) -> dict[str, Any]:
    """How long FETCHes took against what was expected."""
    ratios = [action.duration_ns / action.expected_ns for action in fetches if action.expected_ns]
    took = [action.duration_ns / MS for action in fetches]
    return {"fetches": len(fetches), "took/expected p50": percentile(ratios, 50), "p99": percentile(ratios, 99),
            "took, ms p50": percentile(took, 50), "p99, ms": percentile(took, 99)}  # fmt: skip


def beside_fetches(phases: Sequence[Phase], fetches: Sequence[SeenAction]) -> dict[str, Any]:
    """Latencies of requests that came while FETCHes of other models ran, and of those while none ran."""
    spans = [(action.ordered_ns, action.done_ns) for action in fetches]
    beside: list[npt.NDArray[Any]] = []
    without: list[npt.NDArray[Any]] = []
    for phase in phases:
        sent = phase.sent
        ran = np.zeros(len(sent.due_ns), np.bool_)
        for begin_ns, end_ns in spans:
            ran |= (sent.due_ns >= begin_ns) & (sent.due_ns < end_ns)
        good = sent.outcome == Outcome.GOOD
        beside.append(sent.latency_ns[good & ran] / MS)
        without.append(sent.latency_ns[good & ~ran] / MS)
    found = {}
    for name, parts in (("while fetches run", beside), ("while none run", without)):
        values = np.concatenate(parts) if parts else np.zeros(0)
        found[name] = {
            "requests": len(values),
            "p50_ms": percentile(values, 50),
            "p99_ms": percentile(values, 99),
        }
    return found


def link_of(phase: Phase, history: History) -> dict[str, Any]:
    """How fast the worker that joined was brought its models."""
    (worker,) = (
        worker for worker in history.workers.values() if phase.begin_ns < worker.joined_ns < phase.end_ns
    )
    found = [
        action for action in fetches_of(history, phase.begin_ns, phase.end_ns) if action.worker == worker.id
    ]
    if not found:
        return {"fetches": 0}
    span_s = (max(action.done_ns for action in found) - found[0].ordered_ns) / SECOND
    busy_s = sum(action.duration_ns for action in found) / SECOND
    return {"fetches": len(found), "first to last, s": round(span_s, 2), "in fetches, s": round(busy_s, 2),
            "MB/s of the link": round(phase.facts["received, MB"] / span_s, 1)}  # fmt: skip


def answers_of(history: History) -> dict[str, int]:
    """Requests that the recording has, and those that were never answered."""
    return {"requests": len(history.requests), "without an answer": len(history.live)}


def simulated(bench: Bench, phase: Phase, arrivals: Arrivals) -> dict[str, Any]:
    """The same requests in the simulator, with the measured times of executions, loads and FETCHes."""
    run = recorded.read_recorded(bench.recording)
    places = {profile.name.rpartition("@")[0]: place for place, profile in enumerate(run.models)}
    model = np.array([places[bench.names[index]] for index in arrivals.model], np.int32)
    cluster = dataclasses.replace(
        run.cluster, devices=bench.plan.workers, disturbances=(), stored_copies=bench.copies
    )
    report = simulate(
        run.models, cluster, [Open([dataclasses.replace(arrivals, model=model)])], POLICY, seed=bench.plan.seed,
        until_ns=round(bench.plan.seconds * SECOND), resident=False,
    )  # fmt: skip
    return {
        "in time": round(float(report.good.sum()) / max(int(report.offered.sum()), 1), 4),
        "fetches": report.fetches,
        "loads": report.loads,
        "p50_ms": round(report.percentile(50) / MS, 3),
        "p99_ms": round(report.percentile(99) / MS, 3),
    }


def measure(plan: Plan, copies: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the phases, and facts. Raises NoNetworks."""
    phases: list[Phase] = []
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as folder:
        with Bench(plan, copies, Path(folder)) as bench:
            disturbances: dict[str, Callable[[], dict[str, Any]]] = {
                "steady": dict, "cut": bench.cut, "kill": bench.kill, "join": bench.join
            }  # fmt: skip
            for number, (name, disturb) in enumerate(disturbances.items()):
                phases.append(bench.phase(name, number, disturb))
            if copies == 1:
                facts["leave"] = shown(bench.leave())
        _, history = read_history(bench.recording)
        by_name = {phase.name: phase for phase in phases}
        steady, kill, join = (by_name[name] for name in ("steady", "kill", "join"))
        facts |= {
            "copies": copies,
            "store, planned MB": round(planned_store_bytes(bench.store_bytes) / 1e6, 1),
            "arena, MB": round(bench.arena_bytes / 1e6, 1),
            "fetches at registration": prediction(fetches_of(history, 0, bench.registered_ns)),
            "fetches later": prediction(fetches_of(history, bench.registered_ns, history.now_ns)),
            "cut": shown(by_name["cut"].facts),
            "kill": shown(kill.facts),
            "join": {**shown(join.facts), **link_of(join, history)},
            "requests": beside_fetches([steady, join], fetches_of(history, steady.begin_ns, history.now_ns)),
            "answers": answers_of(history),
            "simulated steady": simulated(bench, steady, bench.arrivals(0)),
            "live steady": {
                "in time": row_of(steady, history)["in time"],
                "fetches": len(fetches_of(history, steady.begin_ns, steady.end_ns)),
                "loads": sum(action.kind == "load" and steady.begin_ns <= action.ordered_ns < steady.end_ns
                             for action in history.actions.values()),
            },
        }  # fmt: skip
        rows = [{"copies": copies, **row_of(phase, history)} for phase in phases]
    return rows, facts


def shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts, rounded."""
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in facts.items()}
