"""Models, orders and results that a new active takes over from its predecessor.

The devices hold what they held. A new active that loaded models by its own knowledge would load again what is
there, because it knows nothing of a worker before its report. So it waits for the reports of all workers
that were there shortly before, SETTLE_NS at most, before it has a model loaded that no reported worker holds.
Models that a reported worker holds are served at once.
"""

from __future__ import annotations

from clockwork.config.takeover import (
    RECONNECT_NS,
    RESULTS_KEPT_MAX,
    RESULTS_KEPT_NS,
    SETTLE_NS,
    WORKER_SEEN_NS,
)
from clockwork.takeover.messages import NO_NOTES, Deed, Holdings, OrderEnded, RequestKey


class Inheritance:
    """The workers of a cluster as a standby sees them, and their reports once it is active."""

    def __init__(self) -> None:
        self.notes = NO_NOTES  # the newest of all reports
        self._seen_ns: dict[str, int] = {}
        self._expected: dict[str, int] = {}  # workers whose reports are awaited, and until when
        self._running: dict[RequestKey, str] = {}  # requests under way, and their workers
        self._results: dict[RequestKey, tuple[int, OrderEnded]] = {}  # with the time at which each came

    def saw(self, worker: str, now_ns: int) -> None:
        """Take note of a sign of life of a worker."""
        self._seen_ns[worker] = now_ns

    def begin(self, now_ns: int) -> None:
        """Become active: expect the reports of all workers that were seen lately."""
        since_ns = now_ns - WORKER_SEEN_NS
        lately = [name for name, seen_ns in self._seen_ns.items() if seen_ns >= since_ns]
        self._expected = dict.fromkeys(lately, now_ns + SETTLE_NS)
        self._running.clear()
        self._results.clear()

    def report(self, worker: str, holdings: Holdings) -> None:
        """Take in a worker's report."""
        self._expected.pop(worker, None)
        self.notes = max(self.notes, holdings.notes)
        for order in holdings.under_way:
            if order.deed is Deed.INFER and order.request is not None:
                self._running[order.request] = worker

    def lose(self, worker: str, now_ns: int) -> None:
        """Take note that a worker's connection is lost. The worker may be back soon, with what it holds."""
        if self._seen_ns.pop(worker, None) is not None:
            self._expected[worker] = now_ns + RECONNECT_NS
        for request in [request for request, name in self._running.items() if name == worker]:
            del self._running[request]

    def may_load(self, now_ns: int) -> bool:
        """Whether a model that no reported worker holds is to be loaded."""
        return all(now_ns >= until_ns for until_ns in self._expected.values())

    def is_running(self, request: RequestKey) -> bool:
        """Whether a worker has this request under way by an order of an earlier active."""
        return request in self._running

    def keep(self, ended: OrderEnded, now_ns: int) -> None:
        """Keep the result of an earlier active's order, until its client asks again."""
        request = ended.order.request
        if request is None:
            return
        self._running.pop(request, None)
        self._results[request] = (now_ns, ended)
        while self._results:
            oldest = next(iter(self._results))
            is_stale = now_ns - self._results[oldest][0] > RESULTS_KEPT_NS
            if not is_stale and len(self._results) <= RESULTS_KEPT_MAX:
                break
            del self._results[oldest]

    def take(self, request: RequestKey) -> OrderEnded | None:
        """Return the kept result of a request, which is kept no longer."""
        found = self._results.pop(request, None)
        return found[1] if found is not None else None
