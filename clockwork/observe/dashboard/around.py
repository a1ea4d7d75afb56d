"""The explanation of a request, with the devices' actions around its time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from clockwork.config.dashboard import DASHBOARD_ROUND_MAX
from clockwork.observe.dashboard.picture import SECOND, LanesPicture, ModelColors, lanes
from clockwork.observe.explain import Timeline, explain
from clockwork.observe.history import History, SeenDevice, SeenRequest
from clockwork.observe.lanes import TimeSpan

NEAR = 0.06  # Two moments share a label if their distance is less than this part of the time span shown


class Around(NamedTuple):
    title: str
    sentences: Sequence[str]
    devices: Sequence[str]  # a sentence for each device that could have served the request
    lanes: LanesPicture
    from_s: float  # begin of the time span shown, in seconds from the arrival
    until_s: float
    marks: list[tuple[float, str]]  # moments of the request: seconds from its arrival, and a word


def around(history: History, colors: ModelColors, request_id: int, gaps: Sequence[TimeSpan]) -> Around:
    """Return the view around a request as far as it is known now.

    Raises InvalidInput if the history does not keep the request, or has not seen its arrival.
    """
    found = explain(history, request_id)
    shown = found.timeline
    devices = _nearest_first(history, history.requests[request_id])
    drawn = lanes(history, colors, (shown.until_ns - shown.from_ns) / SECOND, gaps, shown.until_ns, devices)
    return Around(
        f"Request {request_id}, {found.model}: {found.outcome or 'not answered yet'}", found.sentences, found.devices,
        _moved(drawn, (shown.until_ns - shown.zero_ns) / SECOND), (shown.from_ns - shown.zero_ns) / SECOND,
        (shown.until_ns - shown.zero_ns) / SECOND,
        _joined([((moment.at_ns - shown.zero_ns) / SECOND, moment.word) for moment in shown.moments], shown),
    )  # fmt: skip


def _joined(moments: list[tuple[float, str]], shown: Timeline) -> list[tuple[float, str]]:
    """Join moments whose labels would overlap."""
    least = (shown.until_ns - shown.from_ns) / SECOND * NEAR
    found: list[tuple[float, str]] = []
    for at, word in sorted(moments):
        if found and at - found[-1][0] < least:
            found[-1] = (found[-1][0], f"{found[-1][1]}, {word}")
        else:
            found.append((at, word))
    return found


def _moved(found: LanesPicture, by_s: float) -> LanesPicture:
    """Return the same lanes, with all times later by `by_s` seconds."""

    def moved(columns: dict[str, Any]) -> dict[str, Any]:
        return {**columns, "left": columns["left"] + by_s, "right": columns["right"] + by_s}

    return found._replace(
        executions=moved(found.executions), loads=moved(found.loads), idle=moved(found.idle), gaps=moved(found.gaps),
        from_s=found.from_s + by_s,
    )  # fmt: skip


def _nearest_first(history: History, request: SeenRequest) -> list[SeenDevice]:
    """Return the device that served the request, then those that held its model, then the others."""
    served = request.action
    ranked = []
    for place, device in enumerate(history.lanes()):
        is_its = served is not None and (served.worker, served.device) == (device.worker, device.index)
        held = device.residency_of(request.model_id, request.arrived_ns) is not None
        ranked.append((not is_its, not held, place, device))
    return [device for *_, device in sorted(ranked, key=lambda entry: entry[:3])][:DASHBOARD_ROUND_MAX]
