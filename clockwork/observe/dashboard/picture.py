"""The data that the dashboard draws, computed from a history: columns of numbers, rows and sentences. Pure,
without Bokeh.

Times in columns are seconds before the newest event, so an unchanged picture need not be sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clockwork.config import dashboard as bounds
from clockwork.observe.history import (
    ENDED,
    LOADING,
    OUTCOMES,
    UNLOADING,
    History,
    ResidencySpan,
    SeenAction,
    SeenDevice,
)
from clockwork.observe.lanes import TimeSpan, idle_with_work_spans, span_of, union, waiting_spans, without
from clockwork.observe.palette import MODEL_COLORS, OTHER_MODELS
from clockwork.scheduler.types import Status

MS, SECOND = 1e6, 1e9

Columns = dict[str, Any]  # Lists or arrays of equal length, by name

BUSY_NS = 10_000_000_000  # Time over which the busiest models are found
BIN_NS = 1_000_000_000  # Time that a point of the series covers


class ModelColors:
    """Colours of the busiest models. A model keeps its colour as long as it has one.

    With k colours, a model keeps its colour until it is no longer among the 2k busiest, so that two models of
    about the same load do not alternate.
    """

    def __init__(self) -> None:
        self._holders: list[int | None] = [None] * len(MODEL_COLORS)

    def update(self, busy_ns: dict[int, int]) -> None:
        """Update the colours. busy_ns: recent time on devices, by model."""
        ranked = sorted((model for model in busy_ns if busy_ns[model] > 0), key=lambda m: (-busy_ns[m], m))
        near = ranked[: 2 * len(MODEL_COLORS)]
        self._holders = [model if model in near else None for model in self._holders]
        for model in ranked[: len(MODEL_COLORS)]:
            if model not in self._holders and None in self._holders:
                self._holders[self._holders.index(None)] = model

    def of(self, model_id: int) -> str:
        return (
            MODEL_COLORS[self._holders.index(model_id)] if model_id in self._holders else OTHER_MODELS.color
        )

    def holders(self) -> list[tuple[int, str]]:
        """Return (model, colour) for each colour that a model holds."""
        return [(model, color) for model, color in zip(self._holders, MODEL_COLORS) if model is not None]


def busy_times(history: History) -> dict[int, int]:
    """Return the recent execution time of each model."""
    found: dict[int, int] = {}
    since_ns = history.now_ns - BUSY_NS
    for device in history.devices.values():
        for action in device.executions:
            if action.duration_ns and action.end_ns > since_ns:
                found[action.model_id] = found.get(action.model_id, 0) + action.duration_ns
    return found


# ----- lanes -------------------------------------------------------------------------------------


class LanesPicture(NamedTuple):
    """The actions of devices over some time. Rows count from the top, with a row for each device; y grows
    downwards."""

    labels: list[str]
    executions: Columns
    loads: Columns
    idle: Columns  # times in which the device was idle with work waiting
    gaps: Columns  # times that are not shown: their steps are unknown, or hold too many actions to draw
    from_s: float  # begin of the picture, in seconds relative to its end


def lanes(
    history: History, colors: ModelColors, seconds: float, gaps: Iterable[TimeSpan], until_ns: int = 0,
    devices: Sequence[SeenDevice] = (),
) -> LanesPicture:  # fmt: skip
    """Return the columns of the lanes. until_ns: end of the picture, 0: now. devices: those to show, in this
    order; (): all."""
    now = until_ns or history.now_ns
    from_ns = asked_ns = now - round(seconds * SECOND)
    shown = list(devices) or _shown(history)
    executions: list[_Bar] = []
    loads: list[_Bar] = []
    for row, device in enumerate(shown):
        executions += _bars_of(row, device.executions, from_ns, now)
        loads += [bar for bar in _bars_of(row, device.loads, from_ns, now) if bar.action.kind == "load"]
    if len(executions) > bounds.DASHBOARD_BARS_MAX:
        executions.sort(key=lambda bar: bar.begin_ns)
        executions = executions[-bounds.DASHBOARD_BARS_MAX :]
        from_ns = max(from_ns, executions[0].begin_ns)
    loads = sorted(loads, key=lambda bar: bar.begin_ns)[-bounds.DASHBOARD_BARS_MAX :]
    waiting = waiting_spans(history)
    # The actions in a gap are unknown, so a gap does not count as idle.
    unknown = [span for span in gaps if span[1] > from_ns and span[0] < now]
    idle: list[tuple[int, TimeSpan]] = []
    for row, device in enumerate(shown):
        for begin, end in without(idle_with_work_spans(history, device, waiting), unknown):
            if end > from_ns and begin < now and end - begin > 50_000:
                idle.append((row, (max(begin, from_ns), min(end, now))))
    left_out = [(asked_ns, from_ns)] if from_ns > asked_ns else []
    left_out += [(max(begin, from_ns), min(end, now)) for begin, end in unknown]
    return LanesPicture(
        labels=[device_label(history, device) for device in shown],
        executions=_columns(history, colors, executions, now),
        loads=_columns(history, colors, loads, now),
        idle={
            "row": [row for row, _ in idle],
            "left": _seconds([span[0] for _, span in idle], now),
            "right": _seconds([span[1] for _, span in idle], now),
        },
        gaps={
            "left": _seconds([begin for begin, _ in left_out], now),
            "right": _seconds([end for _, end in left_out], now),
        },
        from_s=(from_ns - now) / SECOND,
    )


def device_label(history: History, device: SeenDevice) -> str:
    return history.device_label(device.worker, device.index) + (" (lost)" if device.lost_ns else "")


def bar_height(rows: int) -> float:
    """Return the height of a batch's bar as a part of its lane: 0.32 for a row, and 0.17 more for every
    doubling up to 16."""
    return min(1.0, 0.32 + 0.17 * float(np.log2(max(rows, 1))))


def _shown(history: History) -> list[SeenDevice]:
    return list(history.lanes())[: bounds.DASHBOARD_DEVICES_MAX]


class _Bar(NamedTuple):
    row: int
    begin_ns: int
    end_ns: int
    action: SeenAction


def _bars_of(row: int, lane: Iterable[SeenAction], from_ns: int, until_ns: int) -> Iterator[_Bar]:
    """Yield the bars of the actions of a lane that were executed, cut to the given time."""
    for action in lane:
        span = span_of(action)
        if span is not None and span[1] > from_ns and span[0] < until_ns:
            yield _Bar(row, max(span[0], from_ns), min(span[1], until_ns), action)


def _columns(history: History, colors: ModelColors, found: Sequence[_Bar], now: int) -> Columns:
    actions = [bar.action for bar in found]
    return {
        "row": [bar.row for bar in found],
        "left": _seconds([bar.begin_ns for bar in found], now),
        "right": _seconds([bar.end_ns for bar in found], now),
        "height": [bar_height(action.rows) for action in actions],
        "color": [colors.of(action.model_id) for action in actions],
        "model": [history.label(action.model_id) for action in actions],
        "batch": [action.rows for action in actions],
        "predicted": [action.expected_ns / MS for action in actions],
        "measured": [action.duration_ns / MS for action in actions],
        "began": [_began(action) for action in actions],
        "status": ["" if action.status is Status.OK else _said(action.status) for action in actions],
    }


def _began(action: SeenAction) -> str:
    """Describe the begin of an action relative to its window."""
    if not action.earliest_ns:
        return f"{(action.begin_ns - action.ordered_ns) / MS:.1f} ms after its order"
    early = (action.begin_ns - action.earliest_ns) / MS
    left = (action.latest_ns - action.begin_ns) / MS
    return f"{early:.1f} ms after its window opened, {left:.1f} ms before it closed"


def _said(status: Status | None) -> str:
    return "under way" if status is None else status.name.lower().replace("_", " ")


def _seconds(moments: Sequence[int], now: int) -> npt.NDArray[np.float64]:
    return (np.array(moments, dtype=np.int64) - now) / SECOND


# ----- series ------------------------------------------------------------------------------------


def series(history: History, gaps: Sequence[TimeSpan]) -> Columns:
    """Return answers per second by outcome, and waiting requests, for each second of the last minute.

    The rates of a second with left-out steps are computed over its known part.
    """
    marks = list(history.marks)
    if marks and history.now_ns > marks[-1].at_ns:
        marks.append(history.sample())
    at: list[float] = []
    rates: dict[str, list[float]] = {outcome: [] for outcome in OUTCOMES}
    arrived: list[float] = []
    waiting: list[int] = []
    begin = None
    for mark in marks:
        if begin is None:
            begin = mark
            continue
        if mark.at_ns - begin.at_ns < BIN_NS * 0.95 and mark is not marks[-1]:
            continue
        missing = sum(
            max(0, min(end, mark.at_ns) - max(start, begin.at_ns)) for start, end in gaps if end > begin.at_ns
        )
        known_s = (mark.at_ns - begin.at_ns - missing) / SECOND
        if known_s > 0.02:
            at.append((mark.at_ns - history.now_ns) / SECOND)
            for outcome in OUTCOMES:
                rates[outcome].append((getattr(mark, outcome) - getattr(begin, outcome)) / known_s)
            arrived.append((mark.arrived - begin.arrived) / known_s)
            waiting.append(mark.waiting)
        begin = mark
    return {"at": at, **rates, "arrived": arrived, "waiting": waiting}


def reasons(history: History, seconds: float = 10) -> list[tuple[str, int]]:
    """Return the reasons of recent refusals with their counts, the most frequent first."""
    marks = history.marks
    horizon = history.now_ns - round(seconds * SECOND)
    before = next((mark.refusals for mark in marks if mark.at_ns >= horizon), {})
    now = history.counts.refusals
    found = [(reason, count - before.get(reason, 0)) for reason, count in now.items()]
    return sorted(
        ((reason, count) for reason, count in found if count > 0), key=lambda entry: (-entry[1], entry[0])
    )


# ----- memory ------------------------------------------------------------------------------------


class MemoryPicture(NamedTuple):
    """The models in the devices' memory. Pages count from the left."""

    labels: list[str]
    pages: list[int]  # pages of each device; 0: unknown
    runs: Columns
    unplaced: int  # resident models whose pages are unknown, as they were loaded before the first step
    used: float  # used part of all pages


def memory(history: History, colors: ModelColors) -> MemoryPicture:
    shown = _shown(history)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("row", "left", "right", "color", "model", "state", "pages", "alpha")
    }
    unplaced = 0
    for row, device in enumerate(shown):
        end = device.page_count
        for residency in device.resident.values():
            if residency.run_starts and residency.runs:
                for left, right in union(
                    (start, start + pages) for start, pages in zip(residency.run_starts, residency.runs)
                ):
                    _add_run(rows, history, colors, row, residency, left, right)
            elif residency.runs:  # the residency's place is unknown: it is shown at the end
                unplaced += 1
                _add_run(rows, history, colors, row, residency, end - residency.pages, end)
                end -= residency.pages
            else:
                unplaced += 1
    known = [device for device in shown if device.page_count]
    total = sum(device.page_count for device in known)
    return MemoryPicture(
        [device_label(history, device) for device in shown], [device.page_count for device in shown], rows, unplaced,
        sum(device.pages_used for device in known) / total if total else 0.0,
    )  # fmt: skip


def _add_run(
    rows: dict[str, list[Any]], history: History, colors: ModelColors, row: int, residency: ResidencySpan, left: int, right: int
) -> None:  # fmt: skip
    rows["row"].append(row)
    rows["left"].append(left)
    rows["right"].append(right)
    rows["color"].append(colors.of(residency.model_id))
    rows["model"].append(history.label(residency.model_id))
    rows["state"].append(
        residency.state if residency.run_starts else f"{residency.state}; where it lies is not known"
    )
    rows["pages"].append(residency.pages)
    rows["alpha"].append(
        0.45 if residency.state in (LOADING, UNLOADING) or not residency.run_starts else 0.95
    )


# ----- predictions -------------------------------------------------------------------------------


class PredictionsPicture(NamedTuple):
    executions: Columns
    loads: Columns
    within: float  # part of the executions whose duration is within 10 % of the prediction
    worst: float  # 99th percentile of how much longer than predicted executions took: 0.1 is 10 %
    executed: int


def predictions(history: History, colors: ModelColors) -> PredictionsPicture:
    """Return predicted and measured durations of the newest actions that ended well."""
    found: dict[bool, list[SeenAction]] = {True: [], False: []}
    for action in reversed(history.actions.values()):
        if action.status is not Status.OK or not action.expected_ns or not action.duration_ns:
            continue
        if action.kind in ("infer", "load") and len(found[action.is_execution]) < bounds.DASHBOARD_POINTS_MAX:
            found[action.is_execution].append(action)
    columns = {
        kind: {
            "predicted": [action.expected_ns / MS for action in actions],
            "measured": [action.duration_ns / MS for action in actions],
            "color": [colors.of(action.model_id) for action in actions],
            "model": [history.label(action.model_id) for action in actions],
            "batch": [action.rows for action in actions],
        }
        for kind, actions in found.items()
    }
    longer = np.array([action.duration_ns / action.expected_ns - 1 for action in found[True]])
    return PredictionsPicture(
        columns[True],
        columns[False],
        float(np.mean(np.abs(longer) <= 0.1)) if len(longer) else 0.0,
        float(np.percentile(longer, 99)) if len(longer) else 0.0,
        len(longer),
    )


# ----- numbers and requests ----------------------------------------------------------------------


class Tiles(NamedTuple):
    """The figures at the top of the page, over the last seconds."""

    good: float  # good answers per second
    refused: float
    missed: float
    failed: float
    waiting: int
    p50_ms: float
    p99_ms: float
    batch: float
    executing: float  # part of the devices' time, from 0 to 1
    devices: int
    models: int


def tiles(history: History, gaps: Sequence[TimeSpan], seconds: float = 5) -> Tiles:
    now = history.now_ns
    from_ns = max(now - round(seconds * SECOND), history.begun_ns)
    known_ns = now - from_ns - sum(max(0, min(end, now) - max(begin, from_ns)) for begin, end in gaps)
    before = next((mark for mark in history.marks if mark.at_ns >= from_ns), None)
    counts = history.counts
    per_second = SECOND / known_ns if known_ns > 0 else 0.0

    def rate(name: str) -> float:
        return float(getattr(counts, name) - (getattr(before, name) if before else 0)) * per_second

    latencies = [
        request.latency_ns
        for request in history.requests.values()
        if request.state == ENDED
        and request.status is Status.OK
        and request.answered_ns >= from_ns
        and request.latency_ns
    ]
    there = [device for device in history.devices.values() if not device.lost_ns]
    busy = executed = batches = 0
    for device in there:
        for bar in _bars_of(0, device.executions, from_ns, now):
            busy += bar.end_ns - bar.begin_ns
            executed += bar.action.rows
            batches += 1
    return Tiles(
        rate("answered"), rate("refused"), rate("missed"), rate("failed") + rate("cancelled"), counts.waiting,
        float(np.percentile(latencies, 50)) / MS if latencies else 0.0,
        float(np.percentile(latencies, 99)) / MS if latencies else 0.0,
        executed / batches if batches else 0.0,
        min(1.0, busy / (known_ns * len(there))) if there and known_ns > 0 else 0.0,
        len(there),
        sum(1 for model in history.models.values() if not model.gone_ns),
    )  # fmt: skip


def recent_requests(history: History) -> list[list[Any]]:
    """Return the newest requests of each outcome: [id, model, outcome, reason, SLO in ms, latency in ms,
    seconds ago].

    An SLO or latency of -1 is unknown.
    """
    found: dict[str, list[list[Any]]] = {outcome: [] for outcome in OUTCOMES}
    wanted = len(OUTCOMES) * bounds.DASHBOARD_ROWS_MAX
    for request in reversed(history.requests.values()):
        rows = found.get(request.outcome)
        if rows is None or len(rows) >= bounds.DASHBOARD_ROWS_MAX:
            continue
        rows.append([
            request.id, history.label(request.model_id), request.outcome, str(request.reason),
            round(request.slo_ns / MS, 2) if request.slo_ns else -1,
            round(request.latency_ns / MS, 2) if request.arrived_ns else -1,
            round((history.now_ns - request.answered_ns) / SECOND, 1),
        ])  # fmt: skip
        wanted -= 1
        if not wanted:
            break
    return sorted((row for rows in found.values() for row in rows), key=lambda row: (row[6], -row[0]))
