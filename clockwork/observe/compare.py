"""Compares two histories: the first decision that differs, and the results of each run.

Requests are matched by the order of their arrival, models by their labels, and devices by worker and index.
So two runs of one workload can be compared: under two policies, in two versions, or simulated and live.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clockwork.observe.history import History, SeenAction, SeenRequest
from clockwork.observe.lanes import (
    executing_spans,
    idle_with_work_spans,
    intersection,
    total_ns,
    waiting_spans,
)
from clockwork.scheduler.types import Status


class Asked(NamedTuple):
    """A request as its client made it."""

    model: str
    rows: int
    priority: int
    slo_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """A decision of a scheduler: an order to a device, or an answer without outputs."""

    at_ns: int  # time since the first arrival
    what: str  # load, unload, infer, profile, fetch or drop; or refused, missed, cancelled or failed
    model: str
    device: str  # name of the device; empty for an answer
    requests: tuple[int, ...]  # numbers of the requests, from 1 on in the order of their arrival
    reason: str  # reason of a refusal

    def is_same(self, other: Decision) -> bool:
        """Return whether both decisions are the same, apart from their times."""
        return (self.what, self.model, self.device, self.requests, self.reason) == (
            other.what, other.model, other.device, other.requests, other.reason,
        )  # fmt: skip

    def __str__(self) -> str:
        at = f"{self.at_ns / 1e9:.6f} s: "
        if self.device:
            batch = f" of {_requests(self.requests)}" if self.requests else ""
            return f"{at}{self.what} {self.model}{batch} on {self.device}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"{at}{_requests(self.requests)} of {self.model} {self.what}{reason}"


@dataclasses.dataclass(frozen=True, slots=True)
class Divergence:
    """The first decision in which two runs differ. None: that run had no further decision."""

    number: int  # number of equal decisions before the first that differs
    first: Decision | None
    second: Decision | None
    late_ns: int  # largest difference between the times of equal decisions


@dataclasses.dataclass(slots=True)
class ResultSummary:
    """Results of a model's requests, of a device's orders, or of the whole run. Latencies are those of
    answered requests."""

    arrived: int = 0
    answered: int = 0
    refused: int = 0
    missed: int = 0
    failed: int = 0
    cancelled: int = 0
    executions: int = 0  # number of executions that ended well
    executed: int = 0  # number of requests in those executions
    loads: int = 0
    p50_ns: int = 0
    p99_ns: int = 0
    # part of the time in which a device executed; for the whole run, the mean of its devices
    executing: float = 0.0
    idle_with_work: float = 0.0
    refusals: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def batch(self) -> float:
        """Return the mean number of requests in an execution."""
        return self.executed / self.executions if self.executions else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side. The first of each pair belongs to the first run."""

    span_ns: tuple[int, int]
    workload_parts_at: int  # number, from 1 on, of the first request that differs between the runs; 0: none
    part: Divergence | None  # the first difference; None: all decisions are the same
    total: tuple[ResultSummary, ResultSummary]
    models: dict[str, tuple[ResultSummary, ResultSummary]]
    devices: dict[str, tuple[ResultSummary, ResultSummary]]
    only_first: int  # number of requests that only the first run answered
    only_second: int


def compare(first: History, second: History) -> Comparison:
    """Compare two whole histories, each from its first arrival on."""
    runs = _Run(first), _Run(second)
    models = sorted({*runs[0].models, *runs[1].models})
    devices = sorted({*runs[0].devices, *runs[1].devices})
    answered = [run.answered for run in runs]
    return Comparison(
        (runs[0].span_ns, runs[1].span_ns),
        _workload_part(runs[0].workload(), runs[1].workload()),
        _part(runs[0].decisions(), runs[1].decisions()),
        (runs[0].total, runs[1].total),
        {
            name: (runs[0].models.get(name, ResultSummary()), runs[1].models.get(name, ResultSummary()))
            for name in models
        },
        {
            name: (runs[0].devices.get(name, ResultSummary()), runs[1].devices.get(name, ResultSummary()))
            for name in devices
        },
        len(answered[0] - answered[1]),
        len(answered[1] - answered[0]),
    )


class _Run:
    """The sums of a run."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.requests = [request for request in history.requests.values() if request.arrived_ns]
        self._from_ns = self.requests[0].arrived_ns if self.requests else history.begun_ns
        self.span_ns = history.now_ns - self._from_ns
        self._number = {request.id: number for number, request in enumerate(self.requests, 1)}
        self.answered = {
            self._number[request.id] for request in self.requests if request.outcome == "answered"
        }
        self.total = ResultSummary()
        self.models: dict[str, ResultSummary] = {}
        self.devices: dict[str, ResultSummary] = {}
        self._sum_requests()
        self._sum_actions()

    def _sum_requests(self) -> None:
        latencies: dict[str, list[int]] = {}
        for request in self.requests:
            label = self._history.label(request.model_id)
            for summary in (self.total, self.models.setdefault(label, ResultSummary())):
                summary.arrived += 1
                if request.outcome:
                    setattr(summary, request.outcome, getattr(summary, request.outcome) + 1)
                if request.outcome == "refused":
                    reason = str(request.reason)
                    summary.refusals[reason] = summary.refusals.get(reason, 0) + 1
            if request.outcome == "answered":
                latencies.setdefault(label, []).append(request.latency_ns)
        for label, some in latencies.items():
            self.models[label].p50_ns, self.models[label].p99_ns = _percentiles(some)
        self.total.p50_ns, self.total.p99_ns = _percentiles(
            [latency for some in latencies.values() for latency in some]
        )

    def _sum_actions(self) -> None:
        history = self._history
        waiting = waiting_spans(history)
        all_of_it = [(self._from_ns, history.now_ns)]
        span_ns = max(self.span_ns, 1)
        for device in history.lanes():
            summary = self.devices.setdefault(
                history.device_label(device.worker, device.index), ResultSummary()
            )
            summary.executing = total_ns(intersection(executing_spans(device), all_of_it)) / span_ns
            idle = idle_with_work_spans(history, device, waiting)
            summary.idle_with_work = total_ns(intersection(idle, all_of_it)) / span_ns
            for action in [*device.executions, *device.loads]:
                if action.status is not Status.OK or action.ordered_ns < self._from_ns:
                    continue
                model = self.models.setdefault(history.label(action.model_id), ResultSummary())
                for sums in (summary, model, self.total):
                    sums.executions += action.kind == "infer"
                    sums.executed += len(action.requests)
                    sums.loads += action.kind == "load"
        count = max(len(self.devices), 1)
        self.total.executing = sum(summary.executing for summary in self.devices.values()) / count
        self.total.idle_with_work = sum(summary.idle_with_work for summary in self.devices.values()) / count

    def workload(self) -> list[Asked]:
        return [
            Asked(self._history.label(request.model_id), request.rows, request.priority, request.slo_ns)
            for request in self.requests
        ]

    def decisions(self) -> list[Decision]:
        """Return all decisions in the order of time. Within a step, orders come before answers."""
        found = [
            (action.ordered_ns, 0, action.id, self._order(action))
            for action in self._history.actions.values()
            if action.ordered_ns >= self._from_ns
        ]
        found += [
            (request.answered_ns, 1, request.id, self._answer(request))
            for request in self.requests
            if request.outcome and request.outcome != "answered"
        ]
        found.sort(key=lambda entry: entry[:3])
        return [entry[3] for entry in found]

    def _order(self, action: SeenAction) -> Decision:
        return Decision(
            action.ordered_ns - self._from_ns, action.kind, self._history.label(action.model_id),
            f"{action.worker}/{action.device}", tuple(self._number.get(request_id, 0) for request_id in action.requests), "",
        )  # fmt: skip

    def _answer(self, request: SeenRequest) -> Decision:
        return Decision(
            request.answered_ns - self._from_ns, request.outcome, self._history.label(request.model_id), "",
            (self._number[request.id],), str(request.reason),
        )  # fmt: skip


def _part(first: Sequence[Decision], second: Sequence[Decision]) -> Divergence | None:
    late_ns = 0
    for number, (mine, other) in enumerate(zip(first, second, strict=False)):
        if not mine.is_same(other):
            return Divergence(number, mine, other, late_ns)
        late_ns = max(late_ns, abs(mine.at_ns - other.at_ns))
    number = min(len(first), len(second))
    if len(first) == len(second):
        return None
    return Divergence(
        number, first[number] if number < len(first) else None, second[number] if number < len(second) else None, late_ns
    )  # fmt: skip


def _workload_part(first: Sequence[Asked], second: Sequence[Asked]) -> int:
    for number, (mine, other) in enumerate(zip(first, second, strict=False), 1):
        if mine != other:
            return number
    return 0 if len(first) == len(second) else min(len(first), len(second)) + 1


def _percentiles(latencies: Iterable[int]) -> tuple[int, int]:
    """Return the 50th and the 99th percentile, or zeros if there are no latencies."""
    ordered = sorted(latencies)
    if not ordered:
        return 0, 0
    return ordered[(len(ordered) - 1) // 2], ordered[(len(ordered) - 1) * 99 // 100]


def _requests(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    return f"request{'' if len(numbers) == 1 else 's'} {shown}"
