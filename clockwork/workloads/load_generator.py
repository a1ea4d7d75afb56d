"""A load generator: open loop, any workload that the simulator can run, or closed loop, on one client.

Open loop, arrivals come when they are due whatever the cluster does, and latency counts from then: a
generator that waits for a slow server would otherwise leave out the very requests that suffered
(coordinated omission). Closed loop, each of n callers sends its next request when the last was
answered, and latency counts from the sending.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import enum
import itertools
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clockwork import workloads
from clockwork.client.blocking import Client
from clockwork.config import SECONDS_MAX
from clockwork.config import workloads as bounds
from clockwork.errors import ClockworkError, ConfigError, DeadlineMissed, Refused, RequestTimeout
from clockwork.models import samples
from clockwork.system.clock import SECOND, now_ns, to_ns
from clockwork.wire.description import ModelInfo, TensorInfo
from clockwork.wire.tensors import STRING, Array, code_of, encode_array, numpy_dtype
from clockwork.workloads import Arrivals, Workload

INPUTS_PER_MODEL = 4  # How many different inputs are made for each model; requests take them in turn

SWITCH_INTERVAL_S = 0.0002
"""How long the sending thread may keep the I/O thread from the interpreter (Python's own: 5 ms)."""

SYNTHETIC = "synthetic"  # The name of a trace that is made up instead of read

ArrivalKind = Literal["poisson", "constant", "gamma"]


@dataclasses.dataclass(frozen=True, slots=True)
class LoadSettings:
    """One run. Exactly one of rate (open loop) and concurrency (closed loop) is above 0."""

    models: tuple[str, ...]
    rate: float = 0.0  # requests per second, of all models together
    concurrency: int = 0
    duration_s: float = 10.0
    arrivals: ArrivalKind = "poisson"
    cv: float = 4.0  # coefficient of variation of the gaps between a model's requests, with gamma arrivals
    bursts_s: tuple[float, float] | None = None  # mean time on and off of each model, with Poisson arrivals
    ramp: tuple[float, float] | None = None  # (factor, seconds): the rate is multiplied by it every so often
    trace: str = ""  # a CSV file of a trace that is replayed at the rate, or SYNTHETIC; "": none
    mapping: workloads.Mapping = "original"  # mapping of the trace's hot functions to models
    # begin where the trace is busiest for so long, at the rate of the whole trace; 0: do not
    busiest_s: float = 0.0
    slo_s: float | None = None  # SLO of the requests; None: each model's own
    priority: int = 0
    rows: int = 1  # rows of each request, where the model's first dimension is open
    zipf: float = 0.0  # popularity of the models in their order, 1 / rank ** zipf; 0: all alike
    seed: int = 0
    timeout_s: float = 30.0

    def check(self) -> None:
        """Raises ConfigError, naming the value and its bound."""
        if not self.models:
            raise ConfigError("load needs at least one model")
        for name, value, bound in (
            ("rate", self.rate, bounds.LIVE_RATE_MAX),
            ("concurrency", self.concurrency, bounds.CONCURRENCY_MAX),
            ("duration", self.duration_s, bounds.DURATION_MAX_S),
            ("busiest part", self.busiest_s, bounds.DURATION_MAX_S),
        ):
            if not 0 <= value <= bound:
                raise ConfigError(f"{name} {value:g} is not between 0 and {bound}")
        if not self.duration_s:
            raise ConfigError(f"duration 0: it must be above 0 s and at most {bounds.DURATION_MAX_S} s")
        if (self.rate > 0) == (self.concurrency > 0):
            raise ConfigError("load is open loop (a rate) or closed loop (a concurrency): give one of them")
        if self.slo_s is not None and not 0 < self.slo_s <= SECONDS_MAX:
            raise ConfigError(f"SLO {self.slo_s:g} s is not above 0 and at most {SECONDS_MAX} s")
        shapes = {
            "bursts": self.bursts_s is not None,
            "a ramp": self.ramp is not None,
            "a trace": bool(self.trace),
        }
        given = [name for name, there in shapes.items() if there]
        if given and self.concurrency:
            raise ConfigError(f"{given[0]} needs open loop: give a rate")
        if self.trace and (len(given) > 1 or self.zipf or self.arrivals != "poisson"):
            raise ConfigError(
                "a trace says itself when which model is asked: give a rate and nothing else with it"
            )
        if self.busiest_s and not self.trace:
            raise ConfigError("only a trace has a busiest part")
        if self.bursts_s is not None and self.arrivals != "poisson":
            raise ConfigError(f"bursts are of Poisson arrivals, not of {self.arrivals} ones")
        if self.bursts_s is not None and not all(
            0 < time_s <= bounds.DURATION_MAX_S for time_s in self.bursts_s
        ):
            raise ConfigError(
                f"bursts {self.bursts_s}: both times must be above 0 s, at most {bounds.DURATION_MAX_S} s"
            )
        if self.ramp is not None and not (
            0 < self.ramp[0] <= 1e6 and 1e-3 <= self.ramp[1] <= bounds.DURATION_MAX_S
        ):
            raise ConfigError(
                f"ramp {self.ramp}: a factor above 0, and from 0.001 s to {bounds.DURATION_MAX_S} s"
            )


def crowding_of(settings: LoadSettings) -> float:
    """How many times the settings' rate a run has on average: 1, unless it is the busiest part of a trace."""
    if not settings.busiest_s:
        return 1.0
    return float(_replayed(settings, {"seed": settings.seed}).nominal().sum()) / settings.rate


def _replayed(settings: LoadSettings, of_all: dict[str, Any]) -> workloads.replay:
    """The arrivals of a trace. of_all: keywords that every kind of arrivals takes."""
    count, duration_ns = len(settings.models), to_ns(settings.duration_s)
    if settings.trace == SYNTHETIC:
        trace = workloads.synthetic_trace(max(bounds.SYNTHETIC_FUNCTIONS_MIN, count), seed=settings.seed)
    else:
        trace = workloads.load_trace(Path(settings.trace))
    at: dict[str, Any]
    if settings.busiest_s:
        at = {"scale": trace.scale(settings.rate), "begin_minute": trace.busiest(settings.busiest_s / 60)}
    else:
        at = {"rate": settings.rate}
    return workloads.replay(trace, count, duration_ns, mapping=settings.mapping, **at, **of_all)


def workload_of(settings: LoadSettings) -> Workload:
    """The arrivals of an open loop. Raises ConfigError."""
    duration_ns, count, seed = to_ns(settings.duration_s), len(settings.models), settings.seed
    of_all: dict[str, Any] = {
        "seed": seed,
        "slo_ns": to_ns(settings.slo_s) if settings.slo_s is not None else 0,
        "priority": settings.priority,
    }
    if settings.trace:
        return _replayed(settings, of_all)
    if settings.ramp is not None:
        factor, every_s = settings.ramp
        of_all["steps"] = workloads.ramp(factor, to_ns(every_s), int(settings.duration_s / every_s) + 1)
    shares = workloads.zipf(count, settings.zipf)
    if (
        settings.arrivals == "constant"
    ):  # evenly spaced over all models, so that their periods do not interfere
        return workloads.chosen(workloads.constant([settings.rate], duration_ns, **of_all), shares, seed)
    rates = [settings.rate * share for share in shares]
    if settings.bursts_s is not None:
        on_s, off_s = settings.bursts_s
        return workloads.on_off(rates, to_ns(on_s), to_ns(off_s), duration_ns, **of_all)
    if settings.arrivals == "gamma":
        return workloads.gamma(rates, settings.cv, duration_ns, **of_all)
    return workloads.poisson(rates, duration_ns, **of_all)


@dataclasses.dataclass(slots=True)
class LoadReport:
    """The results of a run. Latencies are milliseconds."""

    settings: dict[str, Any]
    seconds: float  # duration from the first arrival to the last
    offered: int
    offered_rate: float
    answered: int
    # successes within the SLO as the client saw it, from the scheduled arrival; all successes if there is no
    # SLO
    within_slo: int
    goodput: float  # within_slo per second
    refused: int
    refusals: dict[str, int]  # refusals by reason
    missed: int
    timeouts: int
    errors: dict[str, int]  # everything else, by kind
    latency_ms: dict[str, float]  # latencies of answered requests: mean, p50, p99, p99.9, max
    refusal_ms: dict[str, float]  # times from a request to its refusal
    lag_ms: dict[str, float]  # how late the generator itself was: the limit of what it can measure
    input_bytes: int  # bytes of the inputs of all requests
    classes: list[dict[str, int]]  # class, offered and within_slo of each class of requests
    # for each model: its name, counts by outcome, and p50_ms and p99_ms of its answers
    models: list[dict[str, Any]]
    interrupted: bool = False  # ended by Ctrl-C: the requests sent by then are the offered ones

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def make_input(
    spec: TensorInfo,
    example: Sequence[int] | None,
    rows: int,
    rng: np.random.Generator,
    content: str = samples.TEXT,
) -> Array:
    """A plausible value of one input: normal floats, ids of 0 and 1, words or JPEG images.

    Open dimensions: the first is ``rows``, others are as in ``example`` (what the model was profiled
    with), or 1.
    """
    shape = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int) and size >= 0:
            shape.append(size)
        elif axis == 0:
            shape.append(rows)
        else:
            shape.append(example[axis] if example is not None and axis < len(example) else 1)
    code = code_of(spec.dtype)
    if code == STRING:
        return samples.sample(content, shape, int(rng.integers(1 << 16)))
    dtype = numpy_dtype(code)
    if np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.bool_):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def make_inputs(info: ModelInfo, rows: int, seed: int) -> list[dict[str, Array]]:
    """Several different inputs of a model, the same for the same seed."""
    rng = np.random.default_rng(seed)
    examples = info.raw.get("example") or []
    contents = samples.contents_of(info.metadata)
    return [
        {
            spec.name: make_input(
                spec,
                examples[index] if index < len(examples) else None,
                rows,
                rng,
                contents.get(spec.name, samples.TEXT),
            )
            for index, spec in enumerate(info.inputs)
            if not spec.optional
        }
        for _ in range(INPUTS_PER_MODEL)
    ]


class _Target:
    """A model and its inputs."""

    def __init__(self, info: ModelInfo, inputs: list[dict[str, Array]]) -> None:
        self.name = info.name
        self.inputs = inputs
        self.slo_ns = to_ns(info.slo) if info.slo is not None else 0  # SLO of the model
        self.bytes = sum(len(encode_array(value)[2]) for value in inputs[0].values())


def _targets(client: Client, names: Sequence[str], rows: int, seed: int) -> list[_Target]:
    """Return the targets of models by name. Models with equal inputs share the arrays, so that thousands of
    copies fit in memory."""
    made: dict[Hashable, list[dict[str, Array]]] = {}
    targets = []
    for index, name in enumerate(names):
        info = client.model(name)
        if not info.inputs:
            raise ConfigError(
                f"model {name!r} is {info.state} and takes no load yet: {info.text}".rstrip(": ")
            )
        key = (info.inputs, str(info.raw.get("example")), info.metadata.get(samples.STRINGS_KEY))
        if key not in made:
            made[key] = make_inputs(info, rows, seed + index)
        target = _Target(info, made[key])
        target.name = name  # the name as given, perhaps with a version
        targets.append(target)
    return targets


class Outcome(enum.IntEnum):
    """The outcome of a request, as the client saw it. Only GOOD is good."""

    GOOD = 0  # answered, and within the SLO if there is one
    LATE = 1
    REFUSED = 2
    MISSED = 3
    TIMEOUT = 4
    FAILED = 5


def outcome_of(latency_ns: int, slo_ns: int, error: BaseException | None) -> Outcome:
    """The outcome of a request that ended. slo_ns: 0 for none."""
    if error is None:
        return Outcome.GOOD if not slo_ns or latency_ns <= slo_ns else Outcome.LATE
    if isinstance(error, Refused):
        return Outcome.REFUSED
    if isinstance(error, DeadlineMissed):
        return Outcome.MISSED
    return Outcome.TIMEOUT if isinstance(error, RequestTimeout) else Outcome.FAILED


class _ModelTally:
    """Counts of one model's requests."""

    __slots__ = ("latencies", "outcomes")

    def __init__(self) -> None:
        self.outcomes = [0] * len(Outcome)
        self.latencies = array.array("q")

    def to_json(self, name: str) -> dict[str, Any]:
        p50, p99 = (np.percentile(self.latencies, (50, 99)) / 1e6) if self.latencies else (None, None)
        counts = {outcome.name.lower(): self.outcomes[outcome] for outcome in Outcome}
        return {"model": name, "offered": sum(self.outcomes), **counts, "p50_ms": p50, "p99_ms": p99}


class LoadTally:
    """Counts and latencies of requests, added as they end."""

    def __init__(self) -> None:
        self._ended = threading.Condition()
        self.sent = self.done = self.within_slo = self.missed = self.timeouts = self.input_bytes = 0
        self.refusals: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.latencies = array.array("q")
        self.refusal_latencies = array.array("q")
        self.lags = array.array("q")
        self.offered_by_class: collections.Counter[int] = collections.Counter()
        self.good_by_class: collections.Counter[int] = collections.Counter()
        self.models: dict[str, _ModelTally] = {}

    def record(
        self, model: str, latency_ns: int, slo_ns: int, error: BaseException | None, cls: int = 0
    ) -> None:
        outcome = outcome_of(latency_ns, slo_ns, error)
        with self._ended:
            self.done += 1
            self.offered_by_class[cls] += 1
            of_model = self.models.get(model) or self.models.setdefault(model, _ModelTally())
            of_model.outcomes[outcome] += 1
            if error is None:
                of_model.latencies.append(latency_ns)
                self.latencies.append(latency_ns)
                self.within_slo += outcome == Outcome.GOOD
                self.good_by_class[cls] += outcome == Outcome.GOOD
            elif isinstance(error, Refused):
                self.refusals[error.reason or "unknown"] += 1
                self.refusal_latencies.append(latency_ns)
            elif outcome == Outcome.MISSED:
                self.missed += 1
            elif outcome == Outcome.TIMEOUT:
                self.timeouts += 1
            else:
                self.errors[type(error).__name__] += 1
            if self.done == self.sent:
                self._ended.notify_all()

    def wait(self) -> None:
        """Return once everything that was sent has had its outcome; for the sending thread."""
        with self._ended:
            self._ended.wait_for(lambda: self.done == self.sent)

    def line(self) -> str:
        """The counts so far, in one line for people."""
        refused = sum(self.refusals.values())
        failed = self.timeouts + sum(self.errors.values())
        recent = self.latencies[-1000:]
        p50, p99 = (np.percentile(recent, (50, 99)) / 1e6) if recent else (0.0, 0.0)
        return (
            f"sent {self.sent}  answered {len(self.latencies)}  refused {refused}  missed {self.missed}  "
            f"failed {failed}  p50 {p50:.2f} ms  p99 {p99:.2f} ms"
        )


WatchTally = Callable[[float, LoadTally], None]
"""Called about ten times a second with the part of the run that is over, 0 to 1."""


def run(client: Client, settings: LoadSettings, watch: WatchTally | None = None) -> LoadReport:
    """Generate the load; its results. Raises ConfigError, ModelNotFound, ConnectionLost.

    SIGINT ends the sending, and requests under way are waited for; a second SIGINT raises KeyboardInterrupt.
    """
    settings.check()
    workload = workload_of(settings) if settings.rate > 0 else None
    targets = _targets(client, settings.models, settings.rows, settings.seed)
    generator = _Generator(client, targets, to_ns(settings.duration_s), settings.timeout_s, watch)
    with _quick_switches(), _ended_by_sigint(generator):
        if workload is not None:
            seconds = generator.open_loop(workload)
        else:
            seconds = generator.closed_loop(settings)
    return _report(dataclasses.asdict(settings), generator.tally, seconds, generator.interrupted)


@dataclasses.dataclass(frozen=True, slots=True)
class LiveRun:
    """A workload that was sent to a cluster, request by request; the arrays line up with the arrivals."""

    report: LoadReport
    arrivals: Arrivals
    outcome: npt.NDArray[np.uint8]  # codes of Outcome
    latency_ns: npt.NDArray[np.int64]  # time from the scheduled arrival until the outcome
    lag_ns: npt.NDArray[np.int64]  # time from the scheduled arrival until it was sent


def run_live(
    client: Client,
    workload: Workload | Arrivals,
    models: Sequence[str],
    *,
    rows: int = 1,
    seed: int = 0,
    timeout_s: float = 30.0,
    watch: WatchTally | None = None,
) -> LiveRun:
    """Send the arrivals of a simulation. ``models``: names, in the order of the arrivals' indices.

    A request's SLO is that of its arrival, else its model's own. seed: determines the values of the inputs.
    Raises ConfigError, ModelNotFound, ConnectionLost.
    """
    if isinstance(workload, Arrivals):
        workload = workloads.Recorded(workload)
    arrivals = workload.collect(bounds.REQUESTS_MAX)
    if len(arrivals) and int(arrivals.model.max()) >= len(models):
        raise ConfigError(f"the workload asks model {int(arrivals.model.max())} of {len(models)} models")
    targets = _targets(client, models, rows, seed)
    generator = _Generator(client, targets, workload.duration_ns, timeout_s, watch)
    generator.kept = _Kept(len(arrivals))
    with _quick_switches():
        seconds = generator.open_loop(workload)
    settings = {"models": list(models), "rows": rows, "seed": seed, "timeout_s": timeout_s}
    return LiveRun(
        _report(settings, generator.tally, seconds),
        arrivals,
        generator.kept.outcome,
        generator.kept.latency_ns,
        np.frombuffer(generator.tally.lags, np.int64) if len(arrivals) else np.zeros(0, np.int64),
    )


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """Within the block, the I/O thread gets the interpreter soon after it asks for it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def _ended_by_sigint(generator: _Generator) -> Iterator[None]:
    """Make SIGINT end the generator between two requests while the block runs."""

    def end(*_: object) -> None:
        if generator.interrupted:
            raise KeyboardInterrupt
        generator.interrupted = True

    before = (
        signal.signal(signal.SIGINT, end) if threading.current_thread() is threading.main_thread() else None
    )
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


class _Kept:
    """Outcome and latency of each request, by its number."""

    def __init__(self, count: int) -> None:
        self.outcome = np.zeros(count, np.uint8)
        self.latency_ns = np.zeros(count, np.int64)


class _Generator:
    def __init__(
        self,
        client: Client,
        targets: Sequence[_Target],
        duration_ns: int,
        timeout_s: float,
        watch: WatchTally | None,
    ) -> None:
        self.tally = LoadTally()
        self.kept: _Kept | None = None
        self._client = client
        self._targets = targets
        self._duration_ns = duration_ns
        self._timeout_s = timeout_s
        self._watch = watch
        self._next_watch_ns = 0
        self.interrupted = False

    def open_loop(self, workload: Workload) -> float:
        """Send each arrival when it is due. Return the seconds that this took, at least the run's duration
        unless it was interrupted."""
        tally = self.tally
        chunks = iter(workload)
        chunk = next(chunks, None)  # made before the clock runs
        started_ns = now_ns()
        self._send_all(chunks, chunk, started_ns)
        seconds = max(0 if self.interrupted else self._duration_ns, now_ns() - started_ns) / SECOND
        tally.wait()
        return seconds

    def _send_all(self, chunks: Iterator[Arrivals], chunk: Arrivals | None, started_ns: int) -> None:
        tally = self.tally
        while chunk is not None:
            for at_ns, model, slo_ns, priority, cls in zip(*(column.tolist() for column in chunk.columns())):
                due_ns = started_ns + at_ns
                while (wait_ns := due_ns - now_ns()) > 0 and not self.interrupted:
                    self._look(started_ns)
                    time.sleep(min(wait_ns, SECOND // 10) / SECOND)
                if self.interrupted:
                    return
                tally.lags.append(now_ns() - due_ns)
                self._send(self._targets[model], due_ns, slo_ns, priority, cls)
                self._look(started_ns)
            chunk = next(chunks, None)

    def closed_loop(self, settings: LoadSettings) -> float:
        """Keep ``concurrency`` requests under way; seconds until the last was answered."""
        shares = workloads.zipf(len(self._targets), settings.zipf)
        edges = list(itertools.accumulate(shares))
        rng = random.Random(settings.seed)
        slo_ns = to_ns(settings.slo_s) if settings.slo_s is not None else 0

        def choose() -> _Target:
            return rng.choices(self._targets, cum_weights=edges)[0]

        if settings.concurrency == 1:
            return self._one_by_one(choose, slo_ns, settings.priority)
        completed: queue.SimpleQueue[None] = queue.SimpleQueue()
        started_ns = now_ns()
        end_ns = started_ns + self._duration_ns
        under_way = 0
        while under_way < settings.concurrency and not self.interrupted:
            under_way += 1
            self._send(choose(), 0, slo_ns, settings.priority, 0, completed)
        while under_way:
            completed.get()
            under_way -= 1
            self._look(started_ns)
            if now_ns() < end_ns and not self.interrupted:
                under_way += 1
                self._send(choose(), 0, slo_ns, settings.priority, 0, completed)
        return (now_ns() - started_ns) / SECOND

    def _one_by_one(self, choose: Callable[[], _Target], slo_ns: int, priority: int) -> float:
        """The closed loop of a single caller, with blocking calls and without another thread."""
        tally = self.tally
        started_ns = now = now_ns()
        slo_s = slo_ns / SECOND if slo_ns else None
        while now < started_ns + self._duration_ns and not self.interrupted:
            target = choose()
            inputs = target.inputs[tally.sent % len(target.inputs)]
            tally.sent += 1
            tally.input_bytes += target.bytes
            error: ClockworkError | None = None
            begin_ns = now_ns()
            try:
                self._client.infer(target.name, inputs, slo=slo_s, priority=priority, timeout=self._timeout_s)
            except ClockworkError as failure:
                error = failure
            now = now_ns()
            tally.record(target.name, now - begin_ns, slo_ns or target.slo_ns, error)
            self._look(started_ns)
        return (now - started_ns) / SECOND

    def _send(
        self,
        target: _Target,
        due_ns: int,
        slo_ns: int,
        priority: int,
        cls: int,
        completed: queue.SimpleQueue[None] | None = None,
    ) -> None:
        """Send one request; latency counts from due_ns, or (0) from now. slo_ns 0: the model's own."""
        tally, kept = self.tally, self.kept
        begin_ns = due_ns or now_ns()
        limit_ns = slo_ns or target.slo_ns
        number = tally.sent

        def ended(error: BaseException | None) -> None:
            latency_ns = now_ns() - begin_ns
            if kept is not None:  # written before it is counted: once all are, the arrays are read
                kept.latency_ns[number] = latency_ns
                kept.outcome[number] = outcome_of(latency_ns, limit_ns, error)
            tally.record(target.name, latency_ns, limit_ns, error, cls)
            if completed is not None:
                completed.put(None)

        inputs = target.inputs[number % len(target.inputs)]
        tally.sent += 1
        tally.input_bytes += target.bytes
        try:
            future = self._client.submit(
                target.name,
                inputs,
                slo=slo_ns / SECOND if slo_ns else None,
                priority=priority,
                timeout=self._timeout_s,
            )
        except Refused as error:  # the client's own bound was reached
            ended(error)
            return
        future.add_done_callback(lambda done: ended(done.exception()))

    def _look(self, started_ns: int) -> None:
        now = now_ns()
        if self._watch is not None and now >= self._next_watch_ns:
            self._next_watch_ns = now + SECOND // 10
            self._watch(min(1.0, (now - started_ns) / max(1, self._duration_ns)), self.tally)


def _report(
    settings: dict[str, Any], tally: LoadTally, seconds: float, interrupted: bool = False
) -> LoadReport:
    if tally.done != tally.sent:
        raise ClockworkError(f"{tally.sent - tally.done} requests had no outcome")
    return LoadReport(
        settings=settings,
        seconds=seconds,
        offered=tally.sent,
        offered_rate=tally.sent / seconds,
        answered=len(tally.latencies),
        within_slo=tally.within_slo,
        goodput=tally.within_slo / seconds,
        refused=sum(tally.refusals.values()),
        refusals=dict(tally.refusals),
        missed=tally.missed,
        timeouts=tally.timeouts,
        errors=dict(tally.errors),
        latency_ms=_summary(tally.latencies),
        refusal_ms=_summary(tally.refusal_latencies),
        lag_ms=_summary(tally.lags),
        input_bytes=tally.input_bytes,
        classes=[
            {"class": cls, "offered": offered, "within_slo": tally.good_by_class[cls]}
            for cls, offered in sorted(tally.offered_by_class.items())
        ],
        models=[of_model.to_json(name) for name, of_model in tally.models.items()],
        interrupted=interrupted,
    )


def _summary(latencies: array.array[int]) -> dict[str, float]:
    if not latencies:
        return {}
    values = np.frombuffer(latencies, np.int64) / 1e6
    p50, p99, p999 = np.percentile(values, (50, 99, 99.9))
    return {
        "mean": float(values.mean()),
        "p50": float(p50),
        "p99": float(p99),
        "p99.9": float(p999),
        "max": float(values.max()),
    }
