"""Explanations of requests, read from a recording in one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from bench.paper.common import SECOND
from clockwork.observe.explain import explain
from clockwork.observe.history import History
from clockwork.observe.recorded import opened
from clockwork.scheduler.types import NEVER_NS, Arrived

AFTERWARDS_NS = SECOND // 10
"""Time after a request's deadline at which it is explained, for what devices did until then."""
KEPT_NS = SECOND
"""Time that the history goes back."""
HISTORY_MAX = 50_000


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """The explanation of a request by a recording."""

    outcome: str
    sentences: Sequence[str]
    devices: Sequence[str]
    result_ns: int  # time from the end of its last execution until the controller had the result; 0: none


def explained(path: Path, wanted: Collection[int], key_of: Callable[[int], int]) -> dict[int, Told]:
    """Return the explanations of `clockwork explain` for these requests, by their key.

    key_of: the key of a request's id in the recording. Requests that the recording lacks are left out.
    """
    left = set(wanted)
    due: list[tuple[int, int]] = []
    said: dict[int, Told] = {}
    if not left:
        return {}
    with opened(path) as (header, steps):
        history = History(KEPT_NS, HISTORY_MAX, HISTORY_MAX)

        def tell(until_ns: int) -> None:
            while due and due[0][0] <= until_ns:
                request_id = due.pop(0)[1]
                found = explain(history, request_id)
                action = history.requests[request_id].action
                result_ns = (
                    action.done_ns - action.end_ns if action and action.end_ns and action.done_ns else 0
                )
                said[key_of(request_id)] = Told(found.outcome, found.sentences, found.devices, result_ns)
                left.discard(key_of(request_id))

        for number, step in enumerate(steps):
            if number == header.cluster_steps:
                for held in header.held:
                    history.hold(*held)
            history.apply(step)
            for event in step.events:
                if isinstance(event, Arrived) and key_of(event.request.id) in left:
                    due.append((event.request.deadline_ns + AFTERWARDS_NS, event.request.id))
            tell(history.now_ns)
            if not left:
                return said
        tell(NEVER_NS)
    return said
