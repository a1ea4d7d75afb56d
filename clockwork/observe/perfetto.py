"""Writes a history as Chrome's Trace Event JSON, which ui.perfetto.dev opens.

Every worker is a process with three tracks for each device: executions, loads, and idle time with work
waiting. Requests are slices in a process of their own, coloured by outcome. An arrow leads from a request to
the batch that answered it, and on to the answer, which is the last part of the request's slice. Counters show
waiting requests, goodput, refusals by reason, and resident pages.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU describes the format.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

from clockwork.config.observe import TRACE_COUNTER_NS, TRACE_IDS_MAX, TRACE_RATE_NS, TRACE_ROWS_MAX
from clockwork.observe.history import History, SeenAction, SeenDevice, SeenRequest
from clockwork.observe.lanes import TimeSpan, idle_with_work_spans, span_of, waiting_spans
from clockwork.observe.palette import IDLE_WITH_WORK
from clockwork.scheduler.types import Status

TraceEvent = dict[str, Any]

CLUSTER, REQUESTS, WORKERS = 1, 2, 10
"""Process ids of a trace: the counters, the requests, and the base to which a worker's id is added."""

LAST = 1 << 30  # Sort index of the process that is shown last

EXECUTE, LOAD, IDLE = range(3)  # Tracks of a device, in the order shown

TRACKS = ("execute", "load", IDLE_WITH_WORK.word)
ROWS_OF_A_TRACK = 8
"""Rows of a device's track. Actions that overlap, as a FETCH and a LOAD do, need more than one row."""

COLOURS = {
    "answered": "good",
    "refused": "bad",
    "missed": "terrible",
    "failed": "terrible",
    "cancelled": "grey",
    "": "white",
}
"""Chrome's colour names of outcomes."""


class Drawn(NamedTuple):
    """The counts of a trace's contents."""

    requests: int
    left_out: int  # requests for which no row was free
    executions: int
    loads: int  # LOADs, UNLOADs and actions of host stores
    under_way: int  # number of actions that had not ended, which are not drawn
    span_ns: int


def write_trace(
    file: TextIO, history: History, about: Mapping[str, Any] | None = None, from_ns: int = 0
) -> Drawn:
    """Write a history as a trace. about: metadata for the file. from_ns: entries that ended before are left
    out."""
    trace = _Trace(history, max(from_ns, history.begun_ns))
    file.write('{"displayTimeUnit":"ms","otherData":')
    file.write(json.dumps({"begin_ns": trace.base_ns, **(about or {})}))
    file.write(',"traceEvents":[')
    comma = "\n"
    for event in trace.events():
        file.write(comma)
        file.write(json.dumps(event, separators=(",", ":")))
        comma = ",\n"
    file.write("\n]}\n")
    return trace.drawn()


class _Rows:
    """Assigns rows to slices so that slices do not overlap. Slices must come in the order of their begin."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))  # a heap: the lowest row first
        self._taken: list[tuple[int, int]] = []  # a heap of (until, row)
        self.used = 0

    def take(self, begin_ns: int, end_ns: int) -> int | None:
        """Return a row that is free from begin to end, or None."""
        while self._taken and self._taken[0][0] <= begin_ns:
            heapq.heappush(self._free, heapq.heappop(self._taken)[1])
        if not self._free:
            return None
        row = heapq.heappop(self._free)
        heapq.heappush(self._taken, (end_ns, row))
        self.used = max(self.used, row + 1)
        return row


class _Trace:
    """The events of a trace. The slices of each track are in the order of their begin."""

    def __init__(self, history: History, base_ns: int) -> None:
        self._history = history
        self.base_ns = base_ns
        self._requests = self._left_out = self._executions = self._loads = self._under_way = 0
        # process, track and span of each action's slice, by action id
        self._place: dict[int, tuple[int, int, TimeSpan]] = {}

    def drawn(self) -> Drawn:
        return Drawn(
            self._requests, self._left_out, self._executions, self._loads, self._under_way,
            self._history.now_ns - self.base_ns,
        )  # fmt: skip

    def events(self) -> Iterator[TraceEvent]:
        history = self._history
        yield from _process(CLUSTER, "cluster", 0)
        yield from self._workers()
        yield from self._request_slices()
        yield from self._counters()
        if history.skipped_ns:
            yield {
                "ph": "i", "s": "g", "name": f"{history.skipped_ns / 1e9:.3f} s were left out", "pid": CLUSTER, "tid": 0, "ts": 0,
            }  # fmt: skip

    def _us(self, at_ns: int) -> float:
        """Return a trace's time: microseconds since its begin."""
        return max(at_ns - self.base_ns, 0) / 1000

    def _slice(
        self, name: str, pid: int, tid: int, begin_ns: int, end_ns: int, args: TraceEvent, **more: Any
    ) -> TraceEvent:
        begin_ns = max(begin_ns, self.base_ns)
        return {
            "ph": "X", "name": name, "pid": pid, "tid": tid, "ts": self._us(begin_ns),
            "dur": (end_ns - begin_ns) / 1000, **more, "args": args,
        }  # fmt: skip

    # ----- devices -------------------------------------------------------------------------------

    def _workers(self) -> Iterator[TraceEvent]:
        history = self._history
        waiting = waiting_spans(history)
        for worker_id in sorted(history.workers):
            pid = WORKERS + worker_id
            yield from _process(pid, history.workers[worker_id].name or f"worker {worker_id}", pid)
        for device in history.lanes():
            pid = WORKERS + device.worker
            yield from self._lane(device, EXECUTE, device.executions)
            yield from self._lane(device, LOAD, device.loads)
            tid = _track(device.index, IDLE, 0)
            yield from _named(pid, tid, f"device {device.index} {TRACKS[IDLE]}")
            for begin_ns, end_ns in idle_with_work_spans(history, device, waiting):
                if end_ns > self.base_ns:
                    yield self._slice(TRACKS[IDLE], pid, tid, begin_ns, end_ns, {}, cname="bad")
            yield from self._pages(device)

    def _lane(self, device: SeenDevice, track: int, actions: Iterable[SeenAction]) -> Iterator[TraceEvent]:
        pid = WORKERS + device.worker
        rows = _Rows(ROWS_OF_A_TRACK)
        done: list[tuple[TimeSpan, SeenAction]] = []
        events: list[TraceEvent] = []
        for action in actions:
            span = span_of(action)
            if action.is_under_way:
                self._under_way += 1
            elif action.done_ns < self.base_ns:
                pass
            elif span is not None:
                done.append((span, action))
            else:
                why = action.status.name if action.status is not None else "unknown"
                events.append(
                    {
                        "ph": "i", "s": "t", "name": f"{action.kind} {self._history.label(action.model_id)}: {why}", "pid": pid,
                        "tid": _track(device.index, track, 0), "ts": self._us(action.done_ns),
                        "args": self._action_args(action),
                    }
                )  # fmt: skip
        done.sort(key=lambda entry: entry[0])
        for (begin_ns, end_ns), action in done:
            row = rows.take(begin_ns, end_ns)
            if row is None:
                continue
            tid = _track(device.index, track, row)
            self._place[action.id] = (pid, tid, (begin_ns, end_ns))
            label = self._history.label(action.model_id)
            name = label if action.kind in ("infer", "load") else f"{action.kind} {label}"
            events.append(
                self._slice(name, pid, tid, begin_ns, end_ns, self._action_args(action), cat=action.kind)
            )
            if track == EXECUTE:
                self._executions += 1
            else:
                self._loads += 1
        for row in range(max(rows.used, 1)):
            title = f"device {device.index} {TRACKS[track]}" + (f" ({row + 1})" if row else "")
            yield from _named(pid, _track(device.index, track, row), title)
        yield from events

    def _action_args(self, action: SeenAction) -> TraceEvent:
        args: TraceEvent = {"action": action.id, "model": self._history.label(action.model_id)}
        if action.kind == "infer":
            args |= {"requests": len(action.requests), "ids": list(action.requests[:TRACE_IDS_MAX])}
        if action.rows:
            args["rows"] = action.rows
        args |= {
            "predicted_ms": action.expected_ns / 1e6,
            "measured_ms": action.duration_ns / 1e6,
            "ordered_ms": _ms(action.ordered_ns - self.base_ns),
            "earliest_ms": _ms(action.earliest_ns - self.base_ns),
            "latest_ms": _ms(action.latest_ns - self.base_ns),
        }
        if action.duration_ns and action.expected_ns:
            args["longer_than_predicted_%"] = round(100 * (action.duration_ns / action.expected_ns - 1), 2)
        if action.ready_ns:
            args["ready_ms"] = _ms(action.ready_ns - self.base_ns)
        if action.status not in (None, Status.OK):
            args |= {"status": action.status.name, "text": action.text}
        return args

    def _pages(self, device: SeenDevice) -> Iterator[TraceEvent]:
        """Yield the resident pages: a model counts from the end of its load until its unload has ended."""
        changes: list[tuple[int, int]] = []
        for residency in [*device.gone, *device.resident.values()]:
            if residency.since_ns and not residency.ready_ns:
                continue  # the load is pending, or failed
            changes.append((max(residency.ready_ns, self.base_ns), residency.pages))
            if residency.until_ns:
                changes.append((max(residency.until_ns, self.base_ns), -residency.pages))
        yield from self._counter(f"device {device.index} resident", WORKERS + device.worker, "pages", changes)

    # ----- requests ------------------------------------------------------------------------------

    def _request_slices(self) -> Iterator[TraceEvent]:
        history = self._history
        rows = _Rows(TRACE_ROWS_MAX)
        events: list[TraceEvent] = []
        requests = [
            request
            for request in history.requests.values()
            if request.arrived_ns and not 0 < request.answered_ns < self.base_ns
        ]
        requests.sort(key=lambda request: request.arrived_ns)
        for request in requests:
            end_ns = request.answered_ns or history.now_ns
            row = rows.take(request.arrived_ns, end_ns + 1)
            if row is None:
                self._left_out += 1
                continue
            self._requests += 1
            outcome = request.outcome
            name = history.label(request.model_id)
            events.append(
                self._slice(
                    name if outcome == "answered" else f"{name} {outcome or 'open'}", REQUESTS, row + 1, request.arrived_ns,
                    end_ns, self._request_args(request), cat="request", cname=COLOURS[outcome],
                )
            )  # fmt: skip
            events += self._flow(request, row + 1, end_ns)
        yield from _process(REQUESTS, "requests", LAST)
        for row in range(rows.used):
            yield from _named(REQUESTS, row + 1, f"requests {row + 1}")
        yield from events

    def _flow(self, request: SeenRequest, tid: int, end_ns: int) -> list[TraceEvent]:
        """Return the flow of a request: arrows from the request to its batch and on to the answer, and a
        slice for the answer.

        An arrow cannot lead backwards in time: Perfetto would begin it at the earlier slice.
        """
        action = request.action
        if action is None or action.id not in self._place:
            return []
        pid, batch_tid, (begin_ns, done_ns) = self._place[action.id]
        common = {"cat": "request", "name": "request", "id": request.id}
        flow = [
            {"ph": "s", **common, "pid": REQUESTS, "tid": tid, "ts": self._us(request.arrived_ns)},
            {"ph": "t", **common, "pid": pid, "tid": batch_tid, "ts": self._us(begin_ns)},
        ]
        if request.answered_ns > done_ns > request.arrived_ns:
            flow += [
                self._slice("answer", REQUESTS, tid, done_ns, end_ns, {}, cat="answer"),
                {"ph": "f", "bp": "e", **common, "pid": REQUESTS, "tid": tid, "ts": self._us(done_ns)},
            ]
        return flow

    def _request_args(self, request: SeenRequest) -> TraceEvent:
        args: TraceEvent = {
            "request": request.id, "model": self._history.label(request.model_id), "rows": request.rows,
            "priority": request.priority, "outcome": request.outcome or "open",
        }  # fmt: skip
        if request.slo_ns:
            args["slo_ms"] = request.slo_ns / 1e6
        if request.latency_ns:
            args["latency_ms"] = request.latency_ns / 1e6
        if request.sent_ns:
            args |= {"sent_ms": _ms(request.sent_ns - self.base_ns), "sent_times": request.sent_count}
        if request.action is not None:
            args["batch"] = request.action.id
        if request.outcome == "answered":
            args |= {
                "queue_ms": request.queue_ns / 1e6, "load_ms": request.load_ns / 1e6, "exec_ms": request.exec_ns / 1e6,
            }  # fmt: skip
        elif request.status is not None:
            args |= {"reason": str(request.reason), "text": request.text}
            if request.feasible_slo_ns:
                args["feasible_slo_ms"] = request.feasible_slo_ns / 1e6
        return args

    # ----- counters ------------------------------------------------------------------------------

    def _counters(self) -> Iterator[TraceEvent]:
        """Yield the cluster's counters. Perfetto names a track by counter and value: "waiting requests",
        "goodput per second"."""
        waiting: list[tuple[int, int]] = []
        arrived: Counter[int] = Counter()
        answered: Counter[int] = Counter()
        refused: Counter[tuple[int, str]] = Counter()
        for request in self._history.requests.values():
            if request.arrived_ns:
                waiting.append((max(request.arrived_ns, self.base_ns), 1))
                left_ns = request.sent_ns or request.answered_ns
                if left_ns:
                    waiting.append((max(left_ns, self.base_ns), -1))
                arrived[self._time_slot(request.arrived_ns)] += 1
            if request.outcome == "answered":
                answered[self._time_slot(request.answered_ns)] += 1
            elif request.outcome == "refused":
                refused[self._time_slot(request.answered_ns), str(request.reason)] += 1
        yield from self._counter("waiting", CLUSTER, "requests", waiting)
        reasons = sorted({reason for slot, reason in refused if slot >= 0})
        per_s = 1e9 / TRACE_RATE_NS
        for slot in range(self._time_slot(self._history.now_ns) + 1):
            at = {"ph": "C", "pid": CLUSTER, "tid": 0, "ts": slot * TRACE_RATE_NS / 1000}
            yield {**at, "name": "arrivals", "args": {"per second": arrived[slot] * per_s}}
            yield {**at, "name": "goodput", "args": {"per second": answered[slot] * per_s}}
            if reasons:
                args = {reason: refused[slot, reason] * per_s for reason in reasons}
                yield {**at, "name": "refusals per second", "args": args}

    def _time_slot(self, at_ns: int) -> int:
        return (at_ns - self.base_ns) // TRACE_RATE_NS

    def _counter(
        self, name: str, pid: int, unit: str, changes: list[tuple[int, int]]
    ) -> Iterator[TraceEvent]:
        """Yield the sum of changes over time, at most once in TRACE_COUNTER_NS."""
        changes.sort(key=lambda change: change[0])
        value = 0
        for place, (at_ns, change) in enumerate(changes):
            value += change
            slot = (at_ns - self.base_ns) // TRACE_COUNTER_NS
            if (
                place + 1 == len(changes)
                or (changes[place + 1][0] - self.base_ns) // TRACE_COUNTER_NS != slot
            ):
                yield {
                    "ph": "C",
                    "name": name,
                    "pid": pid,
                    "tid": 0,
                    "ts": self._us(at_ns),
                    "args": {unit: value},
                }


def _track(device: int, track: int, row: int) -> int:
    return (device * len(TRACKS) + track) * ROWS_OF_A_TRACK + row + 1


def _name(what: str, pid: int, tid: int, name: str) -> TraceEvent:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _process(pid: int, name: str, place: int) -> Iterator[TraceEvent]:
    yield _name("process_name", pid, 0, name)
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": place}}


def _named(pid: int, tid: int, name: str) -> Iterator[TraceEvent]:
    yield _name("thread_name", pid, tid, name)
    yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _ms(ns: int) -> float:
    return ns / 1e6
