"""Models and the numbers of threads of their executions: the times that workers of one thread measured, and
the models that wait for a worker whose executions have more threads. Pure bookkeeping; effects are appended.

A launcher that starts workers of several threads when they are needed (`clockwork up --wide auto`) says so to
the controller (--threads-max), and asks for loads() every second. Without a launcher no model waits: a
registration whose SLO one thread cannot meet fails at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from clockwork.config.controller import (
    CORE_LOADS_MAX,
    CORE_TIMES_SHARED_MAX,
    THREADS_TOLD_NS,
    THREADS_WAIT_NS,
)
from clockwork.controller.effects import Effect, SendClient
from clockwork.controller.models.version import AWAY, ModelVersion
from clockwork.controller.registration.preparation_book import PREPARING, READY
from clockwork.formats.prepared import PreparedModel
from clockwork.scheduler.cores import can_meet
from clockwork.wire.messages import Progress

Times = Mapping[int, Mapping[int, int]]
"""Number of threads -> batch size -> ns of an execution."""


class _Wait(NamedTuple):
    threads: int
    until_ns: int


class CoreWaits:
    def __init__(self, effects: deque[Effect], threads_max: int = 0) -> None:
        """threads_max: the most threads of an execution for which a worker may still come; 0: none comes."""
        self._effects = effects
        self._threads_max = threads_max
        self._threads: dict[int, int] = {}  # of an execution, by worker
        self._waits: dict[ModelVersion, _Wait] = {}
        self._told_ns = 0  # when clients were told last what their models wait for
        # Models of one program share their times, by program and times.
        self._shared: dict[str, Times] = {}

    # ----- events ------------------------------------------------------------------------------

    def joined(self, worker: int, threads: int) -> None:
        self._threads[worker] = threads

    def left(self, worker: int) -> None:
        self._threads.pop(worker, None)

    def learn(self, model: ModelVersion, worker: int, prepared: PreparedModel) -> None:
        """Keep the times that a worker of one thread measured."""
        if self._threads.get(worker, 1) == 1 and (found := times_of(prepared)):
            shared = self._shared.get(prepared.program)
            model.times = shared if shared == found else found
            if len(self._shared) >= CORE_TIMES_SHARED_MAX:
                self._shared.clear()
            self._shared[prepared.program] = model.times

    def threads_to_wait_for(self, model: ModelVersion, prepared: PreparedModel) -> int:
        """Return the threads of the executions for which a model that a worker found too slow is to wait.

        0: it need not, because no worker of as many will come, or one finds it too slow as well.
        """
        needed = prepared.threads_for(model.slo_ns)
        if not 1 < needed <= self._threads_max:
            return 0
        refused = any(
            threads >= needed and model.workers.get(worker, PREPARING) not in (PREPARING, READY, *AWAY)
            for worker, threads in self._threads.items()
        )
        return 0 if refused else needed

    def wait(self, model: ModelVersion, threads: int, now_ns: int) -> None:
        """Have a model wait for a worker whose executions have so many threads."""
        self._waits.setdefault(model, _Wait(threads, now_ns + THREADS_WAIT_NS))
        model.awaits_threads = threads
        model.text = f"waits for a worker whose executions have {threads} threads"
        self._tell(model, threads)

    def end(self, model: ModelVersion) -> None:
        """Note that a model does not wait, or no longer."""
        if self._waits.pop(model, None) is not None:
            model.awaits_threads = 0
            model.text = ""

    def beat(self, now_ns: int) -> list[tuple[ModelVersion, str]]:
        """Tell clients what their models wait for, and return the models that have waited for too long.

        Each comes with the end of the sentence that says why it is not served. A model that a worker prepares
        has not waited for too long.
        """
        if now_ns >= self._told_ns + THREADS_TOLD_NS:
            self._told_ns = now_ns
            for model, wait in self._waits.items():
                self._tell(model, wait.threads)
        over = [
            model
            for model, wait in self._waits.items()
            if now_ns >= wait.until_ns and PREPARING not in model.workers.values()
        ]
        for model in over:
            self.end(model)
        return [(model, f"; none has joined within {THREADS_WAIT_NS / 1e9:g} s") for model in over]

    def _tell(self, model: ModelVersion, threads: int) -> None:
        for waiter in model.waiters:
            stage = f"waits for an execution of {threads} threads"
            self._effects.append(SendClient(waiter.client, Progress(waiter.request_id, stage, 0, 0)))

    # ----- views -------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[ModelVersion]:
        """The models that wait, in the order in which they began to."""
        return list(self._waits)

    def threads_wanted(self, models: Iterable[ModelVersion]) -> int:
        """Return the most threads that any of these models needs for its SLO; 1 if one does for all."""
        needs = {
            (id(model.times), model.slo_ns): model
            for model in models
            if model.times and not model.state.is_leaving
        }
        return max((threads_needed(model) for model in needs.values()), default=1)

    def loads(self, models: Iterable[ModelVersion], requests: Callable[[int], int]) -> list[dict[str, Any]]:
        """Return rows of the models' loads: times, SLO, and requests so far.

        Models with equal times and SLO share a row. Of more than CORE_LOADS_MAX rows, those that need several
        threads come first, then those that were asked for most. requests: of a model, by its id.
        """
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for model in models:
            if not model.times or model.state.is_leaving:
                continue
            row = rows.setdefault(
                (id(model.times), model.slo_ns),
                {
                    "name": model.label,
                    "slo_ns": model.slo_ns,
                    "requests": 0,
                    "threads_needed": threads_needed(model),
                    "exec_ns": [
                        [threads, batch, ns]
                        for threads, times in model.times.items()
                        for batch, ns in times.items()
                    ],
                },
            )
            row["requests"] += requests(model.model_id)
        found = sorted(rows.values(), key=lambda row: (-row["threads_needed"], -row["requests"]))
        return found[:CORE_LOADS_MAX]


def times_of(prepared: PreparedModel) -> Times:
    """Return a model's times by threads and batch size, from the measurements of a worker of one thread.

    Several threads were timed with a single row. Larger batches are taken to gain as much by them.
    """
    alone: dict[int, int] = {}
    for point in prepared.profile:
        alone.setdefault(point.batch, point.exec_ns)
    first = min(alone, default=0)
    if not first:
        return {}
    found = {1: alone}
    for threads, ns in sorted(map(tuple, prepared.by_threads)):
        found[threads] = {batch: max(1, time * ns // alone[first]) for batch, time in alone.items()}
    return found


def threads_needed(model: ModelVersion) -> int:
    """Return the fewest threads that meet a model's SLO; 1 if one does, or none that was tried."""
    able = (threads for threads, times in model.times.items() if can_meet(times, model.slo_ns))
    return min(able, default=1)
