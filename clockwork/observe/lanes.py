"""Time spans of devices: executions, and idleness with work waiting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from clockwork.observe.history import History, SeenAction, SeenDevice

TimeSpan = tuple[int, int]  # [from, until) in nanoseconds of the controller's clock


def span_of(action: SeenAction) -> TimeSpan | None:
    """Return the span in which an action was executed. None: it was not, or has not ended.

    A worker's clock is known to some microseconds, at first to about a millisecond. A span that would begin
    before the action's order, or end after its result, is moved, and cut where it does not fit between the
    two.
    """
    if not action.begin_ns or not action.end_ns:
        return None
    begin_ns, end_ns = action.begin_ns, action.end_ns
    if begin_ns < action.ordered_ns:
        begin_ns, end_ns = action.ordered_ns, end_ns + action.ordered_ns - begin_ns
    if end_ns > action.done_ns:
        begin_ns, end_ns = max(begin_ns + action.done_ns - end_ns, action.ordered_ns), action.done_ns
    return begin_ns, end_ns


def waiting_spans(history: History) -> dict[int, list[TimeSpan]]:
    """Return, by model, the spans in which at least one of its requests waited in the controller."""
    found: dict[int, list[TimeSpan]] = {}
    for request in history.requests.values():
        if request.arrived_ns:
            until_ns = request.sent_ns or request.answered_ns or history.now_ns
            found.setdefault(request.model_id, []).append((request.arrived_ns, until_ns))
    return {model_id: union(spans) for model_id, spans in found.items()}


def executing_spans(device: SeenDevice) -> list[TimeSpan]:
    """Return the spans in which a device executed actions that have ended."""
    return union(span for action in device.executions if (span := span_of(action)) is not None)


def idle_with_work_spans(
    history: History, device: SeenDevice, waiting: Mapping[int, list[TimeSpan]]
) -> list[TimeSpan]:
    """Return the spans in which a device was idle while a request waited in the controller for a model
    resident there.

    waiting: from waiting_spans(). Time after the newest ended execution counts only if no execution is
    pending.
    """
    could: list[TimeSpan] = []
    for residency in [*device.home.gone, *device.home.resident.values()]:
        from_ns = residency.ready_ns or (history.begun_ns if not residency.since_ns else 0)
        if from_ns:
            there = [(from_ns, residency.until_ns or history.now_ns)]
            could += intersection(there, waiting.get(residency.model_id, []))
    busy = executing_spans(device)
    if any(action.is_under_way for action in device.executions):
        busy.append((busy[-1][1] if busy else history.begun_ns, history.now_ns))
    return without(union(could), busy)


def union(spans: Iterable[TimeSpan]) -> list[TimeSpan]:
    """Return the spans in order: overlapping and adjacent spans are joined, empty ones left out."""
    found: list[TimeSpan] = []
    for begin, end in sorted(spans):
        if begin >= end:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def intersection(some: list[TimeSpan], others: list[TimeSpan]) -> list[TimeSpan]:
    """Return the intersection of two lists of spans. Both must be in the form of union()."""
    found = []
    place = other = 0
    while place < len(some) and other < len(others):
        begin, end = max(some[place][0], others[other][0]), min(some[place][1], others[other][1])
        if begin < end:
            found.append((begin, end))
        if some[place][1] < others[other][1]:
            place += 1
        else:
            other += 1
    return found


def without(spans: list[TimeSpan], taken: list[TimeSpan]) -> list[TimeSpan]:
    """Return the parts of the spans outside of `taken`. Both must be in the form of union()."""
    found = []
    place = 0
    for begin, end in spans:
        while place < len(taken) and taken[place][1] <= begin:
            place += 1
        at = place
        while at < len(taken) and taken[at][0] < end:
            if begin < taken[at][0]:
                found.append((begin, taken[at][0]))
            begin = max(begin, taken[at][1])
            at += 1
        if begin < end:
            found.append((begin, end))
    return found


def total_ns(spans: Iterable[TimeSpan]) -> int:
    """Return the sum of the lengths."""
    return sum(end - begin for begin, end in spans)
