"""Explanations of requests, read from a recording in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from bench.paper.common import SECOND
from clockwork.observe.explain import Explanation, explain
from clockwork.observe.history import History
from clockwork.observe.recorded import opened
from clockwork.scheduler.types import NEVER_NS, Arrived

AFTERWARDS_NS = SECOND // 10
"""Time after a request's deadline at which it is explained, for what devices did until then."""
KEPT_NS = SECOND
"""Time that the history goes back."""
HISTORY_MAX = 50_000


def explained(path: Path, wanted: Collection[int], key_of: Callable[[int], int]) -> dict[int, Explanation]:
    """What `clockwork explain` says of these requests, by their key.

    key_of: the key of a request's id in the recording. Requests that the recording lacks are left out.
    """
    left = set(wanted)
    due: list[tuple[int, int]] = []
    said: dict[int, Explanation] = {}
    if not left:
        return {}
    with opened(path) as (header, steps):
        history = History(KEPT_NS, HISTORY_MAX, HISTORY_MAX)

        def tell(until_ns: int) -> None:
            while due and due[0][0] <= until_ns:
                request_id = due.pop(0)[1]
                said[key_of(request_id)] = explain(history, request_id)
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
