"""Which worker has prepared which model, or why it could not: bookkeeping, without sockets, files or clocks.

A model's own record of that is ModelVersion.workers; here it is counted by worker, and what is to be tried again is
remembered. A worker that failed is asked again after pauses that grow, a bounded number of times, where that may
help; and whenever it joins anew, or somebody loads or registers the model again.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from typing import Any

from clockwork.config import TROUBLE_CHARS_MAX
from clockwork.config.controller import FAILURES_TOLD_MAX, PREPARE_AGAIN_NS
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.models.version import ModelVersion

PREPARING, READY = "preparing", "ready"


@dataclasses.dataclass(slots=True)
class _Worker:
    name: str = ""
    ready: int = 0
    preparing: int = 0
    is_draining: bool = False
    failed: dict[int, ModelVersion] = dataclasses.field(
        default_factory=dict
    )  # by id; why is the model's to say
    attempts: dict[int, int] = dataclasses.field(default_factory=dict)  # that failed, by model id


class Preparations:
    def __init__(self) -> None:
        self._workers: dict[int, _Worker] = {}
        self._again: list[tuple[int, int, int]] = []  # a heap of (due, worker, model id)

    def joined(self, worker: int, name: str) -> None:
        self._workers[worker] = _Worker(name)

    def name(self, worker: int) -> str:
        one = self._workers.get(worker)
        return one.name if one is not None else str(worker)

    def drains(self, worker: int) -> None:
        """It takes no more orders: what only it has prepared is served by nobody."""
        self._workers[worker].is_draining = True

    def left(self, worker: int) -> None:
        """Its models are forgotten one by one, with forget()."""
        self._workers.pop(worker, None)

    def note(self, model: ModelVersion, worker: int, state: str) -> None:
        """state: PREPARING, READY, or why it could not."""
        self.forget(model, worker)
        model.workers[worker] = state
        one = self._workers.get(worker)
        if one is None:
            return
        if state == PREPARING:
            one.preparing += 1
        elif state == READY:
            one.ready += 1
            one.attempts.pop(model.model_id, None)
        else:
            one.failed[model.model_id] = model
            one.attempts[model.model_id] = one.attempts.get(model.model_id, 0) + 1

    def forget(self, model: ModelVersion, worker: int) -> str | None:
        """What it was, if anything."""
        state = model.workers.pop(worker, None)
        model.measured.pop(worker, None)
        one = self._workers.get(worker)
        if one is None or state is None:
            return state
        if state == PREPARING:
            one.preparing -= 1
        elif state == READY:
            one.ready -= 1
        else:
            one.failed.pop(model.model_id, None)
        return state

    def forget_model(self, model: ModelVersion) -> None:
        """The model is gone."""
        for worker in list(model.workers):
            self.forget(model, worker)
        for one in self._workers.values():
            one.attempts.pop(model.model_id, None)

    def try_again(self, model: ModelVersion, worker: int, now_ns: int) -> bool:
        """Have due() name a failed preparation once more after a pause. False: it has been tried often enough."""
        one = self._workers.get(worker)
        attempts = one.attempts.get(model.model_id, 0) if one is not None else 0
        if not 0 < attempts <= len(PREPARE_AGAIN_NS):
            return False
        heapq.heappush(self._again, (now_ns + PREPARE_AGAIN_NS[attempts - 1], worker, model.model_id))
        return True

    def due(self, now_ns: int) -> list[tuple[int, ModelVersion]]:
        """(worker, model) of failed preparations whose pause is over, each once."""
        found = []
        while self._again and self._again[0][0] <= now_ns:
            _, worker, model_id = heapq.heappop(self._again)
            one = self._workers.get(worker)
            if one is not None and model_id in one.failed and not one.is_draining:
                found.append((worker, one.failed[model_id]))
        return found

    def failed_on(self, model: ModelVersion) -> list[int]:
        """The workers that could not prepare it."""
        return [worker for worker, state in model.workers.items() if state not in (PREPARING, READY)]

    def is_served(self, model: ModelVersion) -> bool:
        """Whether a worker that does not leave has prepared it, and its requests are taken."""
        if model.state is not ModelState.READY:
            return False
        for worker, state in model.workers.items():
            one = self._workers.get(worker)
            if state == READY and one is not None and not one.is_draining:
                return True
        return False

    def worker_ids(self) -> list[int]:
        """Those that are connected, in the order in which they joined."""
        return list(self._workers)

    def has_workers(self) -> bool:
        """Whether there is a worker that does not leave."""
        return any(not worker.is_draining for worker in self._workers.values())

    def count(self, worker: int) -> dict[str, int]:
        """A worker's models by what became of them there."""
        one = self._workers.get(worker, _Worker())
        return {"ready": one.ready, "preparing": one.preparing, "failed": len(one.failed)}

    def describe(self, worker: int) -> dict[str, Any]:
        """That, and why the first of those that it failed to prepare could not be."""
        failed = self._workers[worker].failed.values() if worker in self._workers else ()
        failures = itertools.islice(failed, FAILURES_TOLD_MAX)
        return {
            **self.count(worker),
            "failures": [
                [model.label, model.workers.get(worker, "")[:TROUBLE_CHARS_MAX]] for model in failures
            ],
        }

    def failure_count(self, worker: int) -> int:
        """Of how many failures describe() tells."""
        one = self._workers.get(worker)
        return min(len(one.failed), FAILURES_TOLD_MAX) if one is not None else 0
