"""A load generator: open loop at a rate, or closed loop at a concurrency, on one client.

Open loop, arrivals come when they are due whatever the cluster does, and latency counts from then: a
generator that waits for a slow server would otherwise leave out the very requests that suffered
(coordinated omission). Closed loop, each of n callers sends its next request when the last was
answered, and latency counts from the sending.
"""

from __future__ import annotations

import array
import collections
import concurrent.futures
import dataclasses
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from clockwork.client import Client
from clockwork.clock import SECOND, now_ns, to_ns
from clockwork.description import ModelInfo, TensorInfo
from clockwork.errors import ClockworkError, ConfigError, DeadlineMissed, Refused, RequestTimeout
from clockwork.tensors import STRING, Array, code_of, numpy_dtype

INPUTS_PER_MODEL = 4
"""Different inputs made for each model; requests take them in turn."""

SWITCH_INTERVAL_S = 0.0002
"""How long the sending thread may keep the I/O thread from the interpreter (Python's own: 5 ms)."""

RATE_MAX = 1_000_000
CONCURRENCY_MAX = 16_000
DURATION_MAX_S = 86_400

Arrivals = Literal["poisson", "constant"]


@dataclasses.dataclass(frozen=True, slots=True)
class LoadSettings:
    """One run. Exactly one of rate (open loop) and concurrency (closed loop) is above 0."""

    models: tuple[str, ...]
    rate: float = 0.0  # requests per second, of all models together
    concurrency: int = 0
    duration_s: float = 10.0
    arrivals: Arrivals = "poisson"
    slo_s: float | None = None  # None: each model's own
    priority: int = 0
    rows: int = 1  # of each request, where the model's first dimension is open
    zipf: float = 0.0  # popularity of the models in their order, 1 / rank ** zipf; 0: all alike
    seed: int = 0
    timeout_s: float = 30.0

    def check(self) -> None:
        """Raises ConfigError, naming the value and its bound."""
        if not self.models:
            raise ConfigError("load needs at least one model")
        for name, value, bound in (
            ("rate", self.rate, RATE_MAX),
            ("concurrency", self.concurrency, CONCURRENCY_MAX),
            ("duration", self.duration_s, DURATION_MAX_S),
        ):
            if not 0 <= value <= bound:
                raise ConfigError(f"{name} {value:g} is not between 0 and {bound}")
        if (self.rate > 0) == (self.concurrency > 0):
            raise ConfigError("load is open loop (a rate) or closed loop (a concurrency): give one of them")


@dataclasses.dataclass(slots=True)
class Report:
    """What became of a run. Latencies are milliseconds."""

    settings: dict[str, Any]
    seconds: float  # from the first arrival to the last
    offered: int
    offered_rate: float
    answered: int
    within_slo: int  # as the client saw it, from the scheduled arrival; all of them if there is no SLO
    goodput: float  # within_slo per second
    refused: int
    refusals: dict[str, int]  # by reason
    missed: int
    timeouts: int
    errors: dict[str, int]  # everything else, by kind
    latency_ms: dict[str, float]  # of what was answered: mean, p50, p99, p99.9, max
    refusal_ms: dict[str, float]  # how soon a refusal came
    lag_ms: dict[str, float]  # how late the generator itself was: the limit of what it can measure
    input_bytes: int  # of all requests

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def arrival_times(kind: Arrivals, rate: float, duration_ns: int, rng: random.Random) -> Iterator[int]:
    """Nanoseconds from the start of every arrival within the duration."""
    interval_ns = SECOND / rate
    at = 0.0
    while True:
        at += rng.expovariate(1.0) * interval_ns if kind == "poisson" else interval_ns
        if at > duration_ns:
            return
        yield round(at)


def make_input(spec: TensorInfo, example: Sequence[int] | None, rows: int, rng: np.random.Generator) -> Array:
    """A plausible value of one input: normal floats, ids of 0 and 1, short strings.

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
        return np.full(shape, "clockwork", dtype=object)
    dtype = numpy_dtype(code)
    if np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.bool_):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def make_inputs(info: ModelInfo, rows: int, seed: int) -> list[dict[str, Array]]:
    """Several different inputs of a model, the same for the same seed."""
    rng = np.random.default_rng(seed)
    examples = info.raw.get("example") or []
    return [
        {
            spec.name: make_input(spec, examples[index] if index < len(examples) else None, rows, rng)
            for index, spec in enumerate(info.inputs)
        }
        for _ in range(INPUTS_PER_MODEL)
    ]


class _Target:
    """One model and the inputs that it gets."""

    def __init__(self, client: Client, name: str, settings: LoadSettings, seed: int) -> None:
        info = client.model(name)
        if not info.inputs:
            raise ConfigError(f"model {name!r} is {info.state} and takes no load yet {info.text}".rstrip())
        self.name = name
        self.inputs = make_inputs(info, settings.rows, seed)
        slo = settings.slo_s if settings.slo_s is not None else info.slo
        self.slo_ns = to_ns(slo) if slo is not None else 0
        self.bytes = sum(one.nbytes for one in self.inputs[0].values())


class Tally:
    """Counts as they come."""

    def __init__(self) -> None:
        self._ended = threading.Condition()
        self.sent = self.done = self.within_slo = self.missed = self.timeouts = self.input_bytes = 0
        self.refusals: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.latencies = array.array("q")
        self.refusal_latencies = array.array("q")
        self.lags = array.array("q")

    def record(self, latency_ns: int, slo_ns: int, error: BaseException | None) -> None:
        with self._ended:
            self.done += 1
            if error is None:
                self.latencies.append(latency_ns)
                self.within_slo += not slo_ns or latency_ns <= slo_ns
            elif isinstance(error, Refused):
                self.refusals[error.reason or "unknown"] += 1
                self.refusal_latencies.append(latency_ns)
            elif isinstance(error, DeadlineMissed):
                self.missed += 1
            elif isinstance(error, RequestTimeout):
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
        """One line for a person who watches."""
        refused = sum(self.refusals.values())
        failed = self.missed + self.timeouts + sum(self.errors.values())
        recent = self.latencies[-1000:]
        p50, p99 = (np.percentile(recent, (50, 99)) / 1e6) if recent else (0.0, 0.0)
        return (
            f"sent {self.sent}  answered {len(self.latencies)}  refused {refused}  failed {failed}  "
            f"p50 {p50:.2f} ms  p99 {p99:.2f} ms"
        )


Watch = Callable[[float, Tally], None]
"""Called about ten times a second with the part of the run that is over, 0 to 1."""


def run(client: Client, settings: LoadSettings, watch: Watch | None = None) -> Report:
    """Generate the load and say what became of it. Raises ConfigError, ModelNotFound, ConnectionLost."""
    settings.check()
    targets = [
        _Target(client, name, settings, settings.seed + index) for index, name in enumerate(settings.models)
    ]
    generator = _Generator(client, settings, targets, watch or (lambda part, tally: None))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        seconds = generator.open_loop() if settings.rate > 0 else generator.closed_loop()
    finally:
        sys.setswitchinterval(interval)
    return _report(settings, generator.tally, seconds)


class _Generator:
    def __init__(
        self, client: Client, settings: LoadSettings, targets: Sequence[_Target], watch: Watch
    ) -> None:
        self.tally = Tally()
        self._client = client
        self._settings = settings
        self._targets = targets
        self._watch = watch
        self._rng = random.Random(settings.seed)
        weights = [1 / (rank + 1) ** settings.zipf for rank in range(len(targets))]
        total = sum(weights)
        self._cumulative = [sum(weights[: index + 1]) / total for index in range(len(weights))]
        self._duration_ns = to_ns(settings.duration_s)
        self._next_watch_ns = 0

    def open_loop(self) -> float:
        """Send everything when it is due; seconds from start to the last arrival."""
        settings, tally = self._settings, self.tally
        started_ns = now_ns()
        for at_ns in arrival_times(settings.arrivals, settings.rate, self._duration_ns, self._rng):
            due_ns = started_ns + at_ns
            while (wait_ns := due_ns - now_ns()) > 0:
                self._look(started_ns)
                time.sleep(min(wait_ns, SECOND // 10) / SECOND)
            tally.lags.append(now_ns() - due_ns)
            self._send(self._choose(), due_ns, None)
            self._look(started_ns)
        seconds = max(self._duration_ns, now_ns() - started_ns) / SECOND
        tally.wait()
        return seconds

    def closed_loop(self) -> float:
        """Keep ``concurrency`` requests under way; seconds until the last was answered."""
        if self._settings.concurrency == 1:
            return self._one_by_one()
        completed: queue.SimpleQueue[None] = queue.SimpleQueue()
        started_ns = now_ns()
        end_ns = started_ns + self._duration_ns
        under_way = 0
        while under_way < self._settings.concurrency:
            under_way += 1
            self._send(self._choose(), 0, completed)
        while under_way:
            completed.get()
            under_way -= 1
            self._look(started_ns)
            if now_ns() < end_ns:
                under_way += 1
                self._send(self._choose(), 0, completed)
        return (now_ns() - started_ns) / SECOND

    def _one_by_one(self) -> float:
        """The closed loop of one caller, as such a caller would write it: no other thread is involved."""
        settings, tally = self._settings, self.tally
        started_ns = now = now_ns()
        while now < started_ns + self._duration_ns:
            target = self._choose()
            inputs = target.inputs[tally.sent % len(target.inputs)]
            tally.sent += 1
            tally.input_bytes += target.bytes
            error: ClockworkError | None = None
            begin_ns = now_ns()
            try:
                self._client.infer(
                    target.name,
                    inputs,
                    slo=settings.slo_s,
                    priority=settings.priority,
                    timeout=settings.timeout_s,
                )
            except ClockworkError as failure:
                error = failure
            now = now_ns()
            tally.record(now - begin_ns, target.slo_ns, error)
            self._look(started_ns)
        return (now - started_ns) / SECOND

    def _send(self, target: _Target, due_ns: int, completed: queue.SimpleQueue[None] | None) -> None:
        """Send one request; latency counts from due_ns, or (0) from now."""
        settings, tally = self._settings, self.tally
        begin_ns = due_ns or now_ns()

        def done(future: concurrent.futures.Future[Any]) -> None:
            tally.record(now_ns() - begin_ns, target.slo_ns, future.exception())
            if completed is not None:
                completed.put(None)

        inputs = target.inputs[tally.sent % len(target.inputs)]
        tally.sent += 1
        tally.input_bytes += target.bytes
        try:
            future = self._client.submit(
                target.name,
                inputs,
                slo=settings.slo_s,
                priority=settings.priority,
                timeout=settings.timeout_s,
            )
        except Refused as error:  # the client's own bound
            tally.record(now_ns() - begin_ns, target.slo_ns, error)
            if completed is not None:
                completed.put(None)
            return
        future.add_done_callback(done)

    def _choose(self) -> _Target:
        if len(self._targets) == 1:
            return self._targets[0]
        point = self._rng.random()
        low, high = 0, len(self._cumulative) - 1
        while low < high:
            middle = (low + high) // 2
            if self._cumulative[middle] < point:
                low = middle + 1
            else:
                high = middle
        return self._targets[low]

    def _look(self, started_ns: int) -> None:
        now = now_ns()
        if now >= self._next_watch_ns:
            self._next_watch_ns = now + SECOND // 10
            self._watch(min(1.0, (now - started_ns) / max(1, self._duration_ns)), self.tally)


def _report(settings: LoadSettings, tally: Tally, seconds: float) -> Report:
    if tally.done != tally.sent:
        raise ClockworkError(f"{tally.sent - tally.done} requests had no outcome")
    return Report(
        settings=dataclasses.asdict(settings),
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


def describe(report: Report) -> str:
    """The report for people."""

    def times(title: str, summary: dict[str, float]) -> list[str]:
        if not summary:
            return []
        return [
            f"  {title:<22}" + "  ".join(f"{name} {value:.2f}" for name, value in summary.items()) + "  ms"
        ]

    def share(count: int) -> str:
        return f"{count} ({100 * count / max(1, report.offered):.2f} %)"

    def listed(title: str, counts: dict[str, int]) -> list[str]:
        inside = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        return [f"  {title:<22}{share(sum(counts.values()))}" + (f": {inside}" if inside else "")]

    lines = [
        f"  {'offered':<22}{report.offered} in {report.seconds:.2f} s = {report.offered_rate:.1f}/s",
        f"  {'goodput within SLO':<22}{report.goodput:.1f}/s, {share(report.within_slo)}",
        f"  {'answered':<22}{share(report.answered)}",
        *listed("refused", report.refusals),
        f"  {'missed':<22}{share(report.missed)}",
        *(listed("errors", report.errors) if report.errors else []),
        *([f"  {'timed out':<22}{share(report.timeouts)}"] if report.timeouts else []),
        *times("latency", report.latency_ms),
        *times("refused after", report.refusal_ms),
        *times("generator's own lag", report.lag_ms),
        f"  {'input':<22}{report.input_bytes / max(1, report.offered):.0f} bytes a request",
    ]
    return "\n".join(lines)
