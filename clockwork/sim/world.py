"""The simulator: the controller's scheduler and the workers' action queues on a virtual clock.

``simulate()`` builds a cluster of emulated devices, runs workloads against it and reports the outcome. The
same arguments give the same report, to the last bit of its digest, in any process on any machine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clockwork.config import (
    ACTIONS_QUEUED_MAX,
    POLICY,
    PRIORITY_DEFAULT,
    SLOWDOWN_THOUSANDTHS_MAX,
    VERSION,
)
from clockwork.config.workloads import SIMULATED_PIECE_BYTES, SIMULATED_RECORDING_BYTES
from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile
from clockwork.scheduler._core import TEXTS
from clockwork.scheduler.policy import make_script
from clockwork.scheduler.recording import Header, encode_header
from clockwork.sim._world import OUTCOME_NAMES, SLICE_NAMES, World, bucket_bounds
from clockwork.wire.messages import NEVER_NS, Reason, Status
from clockwork.workloads import Arrivals
from clockwork.workloads.arrivals import COLUMN_TYPES

SECOND = 1_000_000_000
SLOWDOWN_MAX = SLOWDOWN_THOUSANDTHS_MAX / 1000
EVENTS_A_TURN = 200_000  # Most events between two calls of on_progress

CountArray = npt.NDArray[np.int64]


DISTURBANCES = ("execution", "load", "inputs", "link", "stop", "controller", "clock", "restart")
"""Kinds of disturbances, in the order of csrc/sim/world.h, which describes them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Disturbance:
    """A temporary change of the cluster; times count from the beginning of the workloads."""

    what: str  # kind, an element of DISTURBANCES
    from_ns: int
    until_ns: int
    factor: float = 1.0  # slowdown; "clock": nanoseconds that it jumps ahead; "stop": unused
    worker: int = -1  # index of the worker; -1: all workers
    model: int = -1  # "execution": index of the model whose executions are slower; -1: all


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerShape:
    """A worker of a shape of its own."""

    devices: int = 1
    executors: int = 1  # devices that share an arena; the last arena may have fewer
    # Each model's profile on this worker, for its execution times; None: it does not serve the model.
    # (): those of the simulation. Workers with equal profiles are of one kind.
    profiles: Sequence[ModelProfile | None] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    """Emulated workers with their devices, links, clocks and failures. Workers differ only in speed and
    measurements.

    The devices of a worker load in turn over a shared link. Every worker is connected by a link of its own,
    which keeps messages in order. Devices that share an arena are its executors: a model that is loaded once
    is executed by all of them.
    """

    devices: int = 1
    devices_per_worker: int = 1
    executors: int = 1  # devices of a worker that share an arena; a worker's last arena may have fewer
    # Workers of shapes of their own, instead of `devices`, `devices_per_worker` and `executors`.
    # (): all are alike.
    workers: Sequence[WorkerShape] = ()
    # time of an execution while all other executors of its arena execute, as a multiple of its time by itself
    slowdown: float = 1.0
    slowdown_told: float = 1.0  # part of what it exceeds 1 by that workers tell the controller as measured
    page_bytes: int = 16 << 20
    page_count: int = 1376
    run_ahead: int = 2  # actions that a lane accepts before the first of them has completed
    # speed of worker i: entry i modulo the length; executions take 1/speed. (): all 1
    speeds: Sequence[float] = ()
    # Measurements of workers: worker i has entry i, and after each absence the next entry, modulo the
    # length. (): all 0.
    batch_maxes: Sequence[int] = ()  # largest batch of a model that the worker runs; 0: the model's
    extra_pages: Sequence[int] = ()  # pages that the worker's layouts take in addition, as a run
    # Slowdowns that affect all devices, such as other work on the workers' cores: (t_ns, factor) by time
    # since arrivals began. Executions that begin after t_ns take ``factor`` times as long. (): none.
    spells: Sequence[tuple[int, float]] = ()
    exec_noise: float = 0.0  # sigma of a lognormal factor (median 1) of executions
    load_noise: float = 0.0
    outlier: float = 0.0  # probability that an action takes outlier_factor times as long
    outlier_factor: float = 2.0
    link_there_ns: int = 50_000
    link_back_ns: int = 50_000
    link_jitter_ns: int = 0  # uniform, in addition, in each direction
    link_loss: float = 0.0  # probability that a message breaks the connection: the worker leaves and rejoins
    clock_offset_ns: int = 0  # largest offset of a worker's clock, in either direction
    clock_drift_ppm: float = 0.0  # largest drift of a worker's clock, in either direction
    # crashes of each worker; half are noticed at once, half only after timeout_ns of silence
    crashes_per_hour: float = 0.0
    # time from when the controller notices a crash until the worker is back, empty
    down_ns: int = 1_000_000_000
    timeout_ns: int = 2_000_000_000  # silence after which the controller considers a worker lost
    # bytes/s of the controller's I/O thread, for the inputs of all workers; 0: unlimited
    io_bandwidth: int = 0
    input_bandwidth: int = 0  # bytes/s of a worker's link for inputs; 0: unlimited
    copy_bandwidth: int = 0  # bytes/s from a worker's memory to a device, for inputs; 0: they take no time
    # size of each worker's host store, into which models are fetched before a LOAD; 0: none
    host_bytes: int = 0
    disk_bandwidth: int = 0  # bytes/s at which a worker fetches into its host store; 0: fetches take no time
    # Size of a store on each worker's disk, which holds some of the models, instead of a host store; 0: each
    # disk holds all. At the beginning the models are spread over the workers, in turn, with stored_copies of
    # each. Half of the workers that crash lose their disks.
    store_bytes: int = 0
    store_bandwidth: int = 0  # bytes/s at which a worker is brought a model by another; 0: that takes no time
    stored_copies: int = 2  # the scheduler's option of that name; one in ``options`` overrides it
    load_failures: float = 0.0  # probability that a LOAD fails
    infer_failures: float = 0.0
    cancels: float = 0.0  # probability that a client cancels its request before its deadline
    ping_ns: int = 0  # interval at which the controller measures each link; 0: only when a worker joins
    profiled: float = 1.0  # factor by which workers overstate the time of an execution
    load_profiled: float = 1.0  # factor by which workers overstate the time of a load
    disturbances: Sequence[Disturbance] = ()

    @property
    def arenas(self) -> int:
        """Number of arenas of all workers."""
        if self.workers:
            return sum(-(-worker.devices // worker.executors) for worker in self.workers)
        workers, rest = divmod(self.devices, self.devices_per_worker)
        each, of_rest = (-(-count // self.executors) for count in (self.devices_per_worker, rest))
        return workers * each + of_rest


@dataclasses.dataclass(frozen=True, slots=True)
class Open:
    """Open-loop arrivals, in chunks in order of time. t_ns counts from the beginning of the workload."""

    chunks: Iterable[Arrivals]


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """Clients of a model that each send a request, wait for its answer, and think before the next."""

    model: int  # index of the model
    concurrency: int = 1
    think_ns: int = 0
    slo_ns: int = 0  # SLO of the requests; 0: the model's
    priority: int = 0  # level of the requests; 0: the default
    cls: int = 0  # class in which they are counted
    round_trip_ns: int = 100_000  # time from an answer until the next request can arrive, without thinking
    start_ns: int = 0
    until_ns: int = NEVER_NS


SimulatedWorkload = Open | Closed


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of durations in buckets that are at most 1/128 wide."""

    counts: npt.NDArray[np.uint64]
    largest_ns: int

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def percentile(self, percent: float) -> float:
        """Return a percentile in ns, rounded up to its bucket's bound. NaN: nothing was counted."""
        sums = np.cumsum(self.counts)
        if not len(sums) or sums[-1] == 0:
            return float("nan")
        wanted = min(int(percent / 100 * int(sums[-1])), int(sums[-1]) - 1)
        place = int(np.searchsorted(sums, wanted, side="right"))
        return float(min(bucket_bounds_ns()[place], self.largest_ns))

    def fraction_within(self, ns: int) -> float:
        """Return the share of durations up to ``ns``, to a bucket's accuracy. NaN: nothing was counted."""
        total = self.total
        if total == 0:
            return float("nan")
        end = int(np.searchsorted(bucket_bounds_ns(), ns, side="right"))
        return float(self.counts[:end].sum()) / total

    def to_json(self) -> dict[str, Any]:
        """Return the non-empty buckets as [largest value in ns, count], and the usual percentiles."""
        filled = np.flatnonzero(self.counts)
        bounds = bucket_bounds_ns()
        return {
            "total": self.total,
            "max_ns": self.largest_ns,
            "percentiles_ns": {
                str(percent): self.percentile(percent)
                for percent in (50, 90, 99, 99.9, 99.99, 99.999, 99.9999)
            }
            if len(filled)
            else {},
            "buckets": [[int(bounds[place]), int(self.counts[place])] for place in filled],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Errors:
    """Errors of predictions. over: predicted minus actual, where positive; under: actual minus predicted,
    where positive."""

    over: Histogram
    under: Histogram

    def to_json(self) -> dict[str, Any]:
        return {"over": self.over.to_json(), "under": self.under.to_json()}


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """Requests by outcome, for each model or class."""

    offered: CountArray
    good: CountArray
    late: CountArray
    refused: CountArray
    missed: CountArray
    failed: CountArray
    cancelled: CountArray  # requests cancelled by their clients: neither good nor bad
    unanswered: CountArray
    cold: CountArray  # good or late requests that waited for a LOAD

    @property
    def bad(self) -> CountArray:
        """Requests that are bad for their clients: late, refused, missed, failed or unanswered."""
        return self.late + self.refused + self.missed + self.failed + self.unanswered

    def to_json(self) -> dict[str, list[int]]:
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @staticmethod
    def of(table: CountArray) -> Tally:
        columns = {name: table[:, 2 + place].copy() for place, name in enumerate(OUTCOME_NAMES)}
        return Tally(offered=table[:, 0].copy(), cold=table[:, 1].copy(), **columns)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a simulation, for the requests that arrived after the warm-up.

    The fields of ``models`` can be read directly: report.good[m].
    """

    models: Tally
    classes: Tally  # tallies by the arrivals' cls, up to the largest class used
    # Latencies are of good and late answers.
    span_ns: int  # length of the counted time
    latency: Histogram
    class_latency: Sequence[Histogram]  # histograms by class
    refusal: Histogram  # time from arrival to refusal
    batches: CountArray  # count of executions by batch size
    device_busy: npt.NDArray[np.float64]  # share of the time in which each device executed
    # By device that exists at the end: share of the time in which it was idle while the controller held a
    # request that it could have served (csrc/scheduler/machines.h: ExecutorTime).
    device_idle_with_work: npt.NDArray[np.float64]
    link_busy: npt.NDArray[np.float64]  # share of the time in which each worker loaded
    loads: int
    unloads: int
    fetches: int  # fetches into host stores
    drops: int  # drops from host stores
    infers: int
    revokes: int
    too_late: int  # actions that missed their windows, warm-up included
    failed_actions: int
    crashes: int
    errors: Mapping[str, Errors]  # infer_duration, infer_completion; likewise for load and fetch
    devices_wanted: float  # the scheduler's estimate at the last arrival; see csrc/scheduler/demand.h
    series: Mapping[str, CountArray]  # arrays by SLICE_NAMES; empty without series_ns
    series_ns: int
    digest: str  # digest of every event and order
    requests: int  # number of requests, warm-up included
    events: int
    cpu_s: float  # processor time of this process in the simulation
    scheduler_s: float  # part of cpu_s in the scheduler itself after set-up; 0 unless timed
    trace: Sequence[tuple[int, int, int, int, int, int]]  # rows of csrc/sim/world.h, up to trace_max
    # With `fates`, for each request in the order of arrival: outcome (index into OUTCOME_NAMES), reason of a
    # refusal (0: none; else of Reason, from 1), device (index; -1: none) and latency until its answer in ns.
    fates: CountArray

    def __getattr__(self, name: str) -> CountArray:
        if name in OUTCOME_NAMES or name in ("offered", "cold", "bad"):
            return getattr(self.models, name)  # type: ignore[no-any-return]
        raise AttributeError(name)

    @property
    def goodput_rate(self) -> float:
        """Good answers per second of the counted time."""
        return float(self.models.good.sum()) * SECOND / self.span_ns if self.span_ns > 0 else 0.0

    @property
    def bad_fraction(self) -> float:
        """The bad part of the requests that their clients did not cancel; 0 without requests."""
        counted = int(self.models.offered.sum() - self.models.cancelled.sum())
        return float(self.models.bad.sum()) / counted if counted else 0.0

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latency of good and late answers, in ns. NaN: there were none."""
        return self.latency.percentile(percent)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for json.dumps()."""
        left_out = ("class_latency", "trace", "fates")
        body = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        rates = {"goodput_rate": self.goodput_rate, "bad_fraction": self.bad_fraction}
        return {name: _plain(value) for name, value in (body | rates).items() if name not in left_out}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return value.to_json() if hasattr(value, "to_json") else value


_bounds: list[npt.NDArray[np.int64]] = []


def bucket_bounds_ns() -> npt.NDArray[np.int64]:
    """Return the largest value of each bucket of a Histogram."""
    if not _bounds:
        _bounds.append(bucket_bounds())
    return _bounds[0]


def simulate(
    models: Sequence[ModelProfile],
    cluster: Cluster,
    workloads: Sequence[SimulatedWorkload],
    policy: str = POLICY,
    memory: str = "",
    options: Mapping[str, float] | None = None,
    seed: int = 0,
    warmup_ns: int = 0,
    until_ns: int = 0,
    drain_ns: int = 10 * SECOND,
    resident: bool = False,
    placed: Sequence[tuple[int, int]] = (),
    series_ns: int = 0,
    check: bool = False,
    timed: bool = False,
    trace_max: int = 0,
    fates: bool = False,
    recording: Path | None = None,
    labels: Sequence[tuple[str, int]] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run the workloads against the cluster.

    policy, memory, options: of the scheduler; a policy in Python is ``module:Class``. warmup_ns: requests
    that arrive before this time are not counted. until_ns: end of the arrivals; 0: the end of the open
    workloads (closed workloads then need an until_ns of their own). drain_ns: time for which answers are
    awaited after until_ns. resident: begin with models on the devices: as many, in as many copies, as fit.
    placed: (device, model) by index, with which to begin instead. check: check all invariants after every
    step, and raise AssertionError. timed: measure the scheduler's own part of the processor time
    (Report.scheduler_s), at some cost. trace_max: rows of the trace to keep. fates: keep the fate of each
    request (Report.fates). recording: file for the scheduler's events and decisions, for `clockwork trace`
    and `clockwork explain`. labels: name and version of each model in the recording; by default its own name
    and 1. on_progress: called at times with (simulated ns, requests).

    Raises ValueError for inconsistent arguments, ConfigError if the recording cannot be written.
    """
    if not warmup_ns >= 0 or until_ns < 0 or series_ns < 0 or drain_ns < 0:
        raise ValueError("a time below 0")
    if until_ns and warmup_ns >= until_ns:
        raise ValueError(f"a warm-up of {warmup_ns} ns leaves nothing of {until_ns} ns")
    options = dict(options or {})
    if cluster.store_bytes:
        copies = options.setdefault("stored_copies", cluster.stored_copies)
        cluster = dataclasses.replace(cluster, stored_copies=int(copies))
    opens: list[Iterator[Arrivals]] = [
        iter(workload.chunks) for workload in workloads if isinstance(workload, Open)
    ]
    closed = [workload for workload in workloads if isinstance(workload, Closed)]
    run = {
        "seed": seed,
        "warmup_ns": warmup_ns,
        "until_ns": until_ns or NEVER_NS,
        "drain_ns": drain_ns,
        "slice_ns": series_ns,
        "resident": resident,
        "placed": list(placed),
        "fates": fates,
        "check": check,
        "timed": timed,
        "trace_max": trace_max,
        "priority_default": PRIORITY_DEFAULT,
    }
    world = World(
        policy,
        memory,
        options,
        _model_infos(models, cluster),
        _cluster_info(cluster, models),
        len(opens),
        [_closed_info(clients) for clients in closed],
        run,
        make_script(policy, options),
    )
    header = Header(policy, memory, options, VERSION)
    begun = time.process_time()
    with _Recording(world, header, models, labels, recording) as recorded:
        running_s, used_s = _run(world, opens, recorded, on_progress)
    # The scheduler's real time is scaled by the process's ratio of processor time to real time.
    scheduler_s = world.scheduler_ns / SECOND * used_s / running_s if running_s > 0 else 0.0
    report = _report(world, models, warmup_ns, until_ns, series_ns)
    return dataclasses.replace(report, cpu_s=time.process_time() - begun, scheduler_s=scheduler_s)


class _Recording:
    """The file for a world's steps, if any. It is written while the world runs."""

    def __init__(
        self,
        world: World,
        header: Header,
        models: Sequence[ModelProfile],
        labels: Sequence[tuple[str, int]],
        path: Path | None,
    ) -> None:
        self._world = world
        self._path = path
        if path is None:
            return
        by_number = {status.value: status.name for status in Status}
        world.record(
            SIMULATED_RECORDING_BYTES,
            [
                (*label, model.program or model.name)
                for label, model in zip(
                    labels or [(profile.name, 1) for profile in models], models, strict=True
                )
            ],
            TEXTS,
            [by_number.get(number, "") for number in range(max(by_number) + 1)],
            ["", *Reason],
        )
        try:
            self._file = path.open("wb")
            self._file.write(encode_header(header))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, *error: object) -> None:
        if self._path is not None:
            self._file.close()

    def follow(self) -> None:
        """Write the steps since the last call. Raises ConfigError."""
        if self._path is None:
            return
        try:
            while piece := self._world.recorded(SIMULATED_PIECE_BYTES):
                self._file.write(piece)
            self._file.flush()
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}") from None


def _run(
    world: World,
    opens: Sequence[Iterator[Arrivals]],
    recorded: _Recording,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[float, float]:
    """Run a world to its end. Returns the real and the processor time of the run, without set-up."""
    world.set_up()
    running, running_cpu = time.perf_counter(), time.process_time()
    while True:
        wanted = world.run(EVENTS_A_TURN)
        recorded.follow()
        if wanted < -1:
            return time.perf_counter() - running, time.process_time() - running_cpu
        if wanted >= 0:
            world.feed(wanted, _next_chunk(opens[wanted]))
        if on_progress is not None:
            on_progress(world.now_ns, world.requests)


def _next_chunk(chunks: Iterator[Arrivals]) -> tuple[npt.NDArray[Any], ...] | None:
    for chunk in chunks:
        if len(chunk):
            return tuple(map(np.ascontiguousarray, chunk.columns(), COLUMN_TYPES))
    return None


_Tables = dict[tuple[tuple[tuple[int, int], ...], int], list[int]]
"""Tables of execution times by points and largest batch: thousands of fine-tunes share one."""


def _points(model: ModelProfile, largest: int) -> list[tuple[int, int]]:
    """Return (batch size, ns) of batches up to the largest, ascending."""
    return [(batch, ns) for batch, ns in sorted(model.exec_ns.items()) if batch <= largest]


def _table(tables: _Tables, model: ModelProfile, largest: int) -> list[int]:
    """Return a model's execution times by batch size; entry 0 is unused."""
    key = tuple(sorted(model.exec_ns.items())), largest
    if key not in tables:
        tables[key] = [0, *(model.execution_ns(batch) for batch in range(1, largest + 1))]
    return tables[key]


def _model_infos(models: Sequence[ModelProfile], cluster: Cluster) -> list[dict[str, Any]]:
    programs: dict[str, int] = {}
    tables: _Tables = {}
    infos = []
    for model in models:
        largest = model.largest_batch()
        infos.append(
            {
                "exec_ns": _points(model, largest),
                "table": _table(tables, model, largest),
                "runs": model.layout(cluster.page_bytes),
                "load_ns": model.load_ns,
                "input_bytes": model.input_bytes,
                "program": programs.setdefault(model.program or model.name, len(programs)),
                "batch_max": largest,
                "slo_ns": model.slo_ns,
            }
        )
    return infos


def _worker_infos(workers: Sequence[WorkerShape], models: Sequence[ModelProfile]) -> list[dict[str, Any]]:
    """Describe workers of shapes of their own. Raises ValueError for one without a profile of each model."""
    tables: _Tables = {}
    kinds: list[Sequence[ModelProfile | None]] = []
    infos = []
    for worker in workers:
        if worker.profiles and len(worker.profiles) != len(models):
            raise ValueError(f"a worker with profiles of {len(worker.profiles)} models of {len(models)}")
        if worker.profiles not in kinds:
            kinds.append(worker.profiles)
        pairs = list(zip(worker.profiles, models))
        infos.append(
            {
                "devices": worker.devices,
                "executors": worker.executors,
                "kind": kinds.index(worker.profiles),
                "exec_ns": [
                    _points(own, model.largest_batch()) if own is not None else [] for own, model in pairs
                ],
                "tables": [
                    _table(tables, own, model.largest_batch()) if own is not None else []
                    for own, model in pairs
                ],
            }
        )
    return infos


def _cluster_info(cluster: Cluster, models: Sequence[ModelProfile]) -> dict[str, Any]:
    info = {field.name: getattr(cluster, field.name) for field in dataclasses.fields(cluster)}
    for name, value in info.items():
        if name == "workers":
            info[name] = _worker_infos(value, models)
        elif name == "speeds":
            info[name] = [float(speed) for speed in value]
        elif name == "spells":
            info[name] = [(int(at_ns), float(factor)) for at_ns, factor in value]
            if any(not factor > 0 for _, factor in value) or info[name] != sorted(info[name]):
                raise ValueError("spells must be in order of time, and their factors above 0")
        elif name in ("batch_maxes", "extra_pages"):
            info[name] = [int(count) for count in value]
        elif name == "disturbances":
            info[name] = [_disturbance_info(disturbance) for disturbance in value]
        elif not value >= 0 or (name in ("slowdown", "slowdown_told") and value > SLOWDOWN_MAX):
            raise ValueError(f"{name} of {value}")
    return info | {"actions_queued_max": ACTIONS_QUEUED_MAX}


def _disturbance_info(disturbance: Disturbance) -> dict[str, Any]:
    if not 0 <= disturbance.from_ns < disturbance.until_ns:
        raise ValueError(f"a disturbance from {disturbance.from_ns} ns until {disturbance.until_ns} ns")
    if not disturbance.factor > 0:
        raise ValueError(f"a disturbance by {disturbance.factor}")
    info = {field.name: getattr(disturbance, field.name) for field in dataclasses.fields(disturbance)}
    return {"kind": DISTURBANCES.index(info.pop("what")), **info}


def _closed_info(closed: Closed) -> dict[str, Any]:
    info = {field.name: getattr(closed, field.name) for field in dataclasses.fields(closed)}
    info["class_index"] = info.pop("cls")
    return info


_AS_COUNTED = (
    "batches", "loads", "unloads", "fetches", "drops", "infers", "revokes", "too_late", "failed_actions", "crashes",
    "devices_wanted", "digest", "requests", "events",
)  # fmt: skip
"""Fields of a report that are a world's results of the same name."""


def _report(
    world: World, models: Sequence[ModelProfile], warmup_ns: int, until_ns: int, series_ns: int
) -> Report:
    results = world.results()
    span_ns = max((until_ns or results["end_ns"]) - warmup_ns, 0)
    classes = results["classes"]
    used = np.flatnonzero(classes[:, 0])
    slices = results["slices"]
    return Report(
        models=Tally.of(results["models"]),
        classes=Tally.of(classes[: int(used[-1]) + 1 if len(used) else 0]),
        span_ns=span_ns,
        latency=Histogram(*results["latency"]),
        class_latency=[
            Histogram(*histogram)
            for histogram in results["class_latency"][: int(used[-1]) + 1 if len(used) else 0]
        ],
        refusal=Histogram(*results["refusal"]),
        device_busy=results["busy_ns"] / max(span_ns, 1),
        device_idle_with_work=results["idle_with_work_ns"] / max(span_ns, 1),
        link_busy=results["link_busy_ns"] / max(span_ns, 1),
        errors={
            name: Errors(Histogram(*over), Histogram(*under))
            for name, (over, under) in results["errors"].items()
        },
        series={name: slices[:, place].copy() for place, name in enumerate(SLICE_NAMES)} if series_ns else {},
        series_ns=series_ns,
        **{name: results[name] for name in _AS_COUNTED},
        cpu_s=0.0,
        scheduler_s=0.0,
        trace=world.trace(),
        fates=world.fates(),
    )
