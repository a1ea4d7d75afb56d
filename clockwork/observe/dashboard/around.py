"""One request, explained, with what the devices did meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from clockwork.config.dashboard import DASHBOARD_ROUND_MAX
from clockwork.observe.dashboard.picture import SECOND, Lanes, ModelColors, lanes
from clockwork.observe.explain import Timeline, explain
from clockwork.observe.history import History, SeenDevice, SeenRequest
from clockwork.observe.lanes import Span

NEAR = 0.06
"""Moments that are nearer than this part of what is shown are written as one."""


class Around(NamedTuple):
    title: str
    sentences: Sequence[str]
    devices: Sequence[str]  # a sentence for each that could have served it
    lanes: Lanes
    from_s: float  # what is shown: seconds from the arrival
    until_s: float
    marks: list[tuple[float, str]]  # moments of the request


def around(history: History, colors: ModelColors, request_id: int, gaps: Sequence[Span]) -> Around:
    """What is known of a request now. Raises InvalidInput where it is not kept, or its arrival was not seen."""
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
    """Moments that would be written over each other, as one."""
    least = (shown.until_ns - shown.from_ns) / SECOND * NEAR
    found: list[tuple[float, str]] = []
    for at, word in sorted(moments):
        if found and at - found[-1][0] < least:
            found[-1] = (found[-1][0], f"{found[-1][1]}, {word}")
        else:
            found.append((at, word))
    return found


def _moved(found: Lanes, by_s: float) -> Lanes:
    """The same, with times so much later."""

    def moved(columns: dict[str, Any]) -> dict[str, Any]:
        return {**columns, "left": columns["left"] + by_s, "right": columns["right"] + by_s}

    return found._replace(
        executions=moved(found.executions), loads=moved(found.loads), idle=moved(found.idle), gaps=moved(found.gaps),
        from_s=found.from_s + by_s,
    )  # fmt: skip


def _nearest_first(history: History, request: SeenRequest) -> list[SeenDevice]:
    """The device that served it, then those that held its model, then the others."""
    served = request.action
    ranked = []
    for place, device in enumerate(history.lanes()):
        is_its = served is not None and (served.worker, served.device) == (device.worker, device.index)
        held = device.holds(request.model_id, request.arrived_ns) is not None
        ranked.append((not is_its, not held, place, device))
    return [device for *_, device in sorted(ranked, key=lambda one: one[:3])][:DASHBOARD_ROUND_MAX]
