"""The preparations of models by worker, with their failures: bookkeeping, without sockets, files or clocks.

A model's own record of its preparations is ModelVersion.workers; here they are counted by worker, and retries
are scheduled. A worker that failed is asked again after growing pauses, a bounded number of times, where that
may help; it is also asked whenever it joins anew, or a client loads or registers the model again.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from typing import Any

from clockwork.config import TROUBLE_CHARS_MAX
from clockwork.config.controller import FAILURES_TOLD_MAX, PREPARE_AGAIN_NS
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.models.version import AWAY, FETCHABLE, ModelVersion

PREPARING, READY = "preparing", "ready"


@dataclasses.dataclass(slots=True)
class _Worker:
    name: str = ""
    ready: int = 0
    preparing: int = 0
    is_draining: bool = False
    failed: dict[int, ModelVersion] = dataclasses.field(
        default_factory=dict
    )  # ids of models; the model has the reasons
    attempts: dict[int, int] = dataclasses.field(default_factory=dict)  # failed attempts, by model id


class PreparationBook:
    def __init__(self) -> None:
        self._workers: dict[int, _Worker] = {}
        self._again: list[tuple[int, int, int]] = []  # a heap of (due, worker, model id)

    def joined(self, worker: int, name: str) -> None:
        self._workers[worker] = _Worker(name)

    def name(self, worker: int) -> str:
        found = self._workers.get(worker)
        return found.name if found is not None else str(worker)

    def drains(self, worker: int) -> None:
        """Note that a worker takes no more orders: models that only it has prepared are unserved."""
        self._workers[worker].is_draining = True

    def left(self, worker: int) -> None:
        """Forget a worker. Its models are forgotten one by one, with forget()."""
        self._workers.pop(worker, None)

    def note(self, model: ModelVersion, worker: int, state: str) -> None:
        """Note a preparation's state: PREPARING, READY, one of AWAY, or the reason of its failure."""
        self.forget(model, worker)
        model.workers[worker] = state
        found = self._workers.get(worker)
        if found is None:
            return
        if state == PREPARING:
            found.preparing += 1
        elif state == READY:
            found.ready += 1
            found.attempts.pop(model.model_id, None)
        elif state not in AWAY:
            found.failed[model.model_id] = model
            found.attempts[model.model_id] = found.attempts.get(model.model_id, 0) + 1

    def forget(self, model: ModelVersion, worker: int) -> str | None:
        """Forget a preparation. Returns its state, if there was one."""
        state = model.workers.pop(worker, None)
        model.measured.pop(worker, None)
        model.forget_holder(worker)
        found = self._workers.get(worker)
        if found is None or state is None:
            return state
        if state == PREPARING:
            found.preparing -= 1
        elif state == READY:
            found.ready -= 1
        else:
            found.failed.pop(model.model_id, None)
        return state

    def forget_model(self, model: ModelVersion) -> None:
        """Forget all preparations and attempts of a model that is gone."""
        for worker in list(model.workers):
            self.forget(model, worker)
        for found in self._workers.values():
            found.attempts.pop(model.model_id, None)

    def try_again(self, model: ModelVersion, worker: int, now_ns: int) -> bool:
        """Have due() name a failed preparation again after a pause. False: its tries are used up."""
        found = self._workers.get(worker)
        attempts = found.attempts.get(model.model_id, 0) if found is not None else 0
        if not 0 < attempts <= len(PREPARE_AGAIN_NS):
            return False
        heapq.heappush(self._again, (now_ns + PREPARE_AGAIN_NS[attempts - 1], worker, model.model_id))
        return True

    def due(self, now_ns: int) -> list[tuple[int, ModelVersion]]:
        """(worker, model) of failed preparations whose pause is over, each once."""
        found = []
        while self._again and self._again[0][0] <= now_ns:
            _, worker, model_id = heapq.heappop(self._again)
            entry = self._workers.get(worker)
            if entry is not None and model_id in entry.failed and not entry.is_draining:
                found.append((worker, entry.failed[model_id]))
        return found

    def failed_on(self, model: ModelVersion) -> list[int]:
        """The workers that could not prepare a model."""
        return [worker for worker, state in model.workers.items() if state not in (PREPARING, READY, *AWAY)]

    def load_of(self, worker: int) -> int:
        """The number of models that a worker has or prepares."""
        found = self._workers.get(worker, _Worker())
        return found.ready + found.preparing

    def is_draining(self, worker: int) -> bool:
        """Whether a worker leaves, or has left."""
        found = self._workers.get(worker)
        return found is None or found.is_draining

    def is_served(self, model: ModelVersion) -> bool:
        """Whether the model's requests are taken and a worker that does not leave has prepared it, or can be
        brought it by a worker that has."""
        if model.state is not ModelState.READY:
            return False
        is_there = is_fetchable = False
        for worker, state in model.workers.items():
            stays = not self.is_draining(worker)
            if state == READY and stays:
                return True
            is_there |= state == READY
            is_fetchable |= state == FETCHABLE and stays
        return is_there and is_fetchable

    def worker_ids(self) -> list[int]:
        """The connected workers, in the order in which they joined."""
        return list(self._workers)

    def has_workers(self) -> bool:
        """Whether any connected worker is not draining."""
        return any(not worker.is_draining for worker in self._workers.values())

    def count(self, worker: int) -> dict[str, int]:
        """The number of a worker's models by the state of their preparation."""
        found = self._workers.get(worker, _Worker())
        return {"ready": found.ready, "preparing": found.preparing, "failed": len(found.failed)}

    def describe(self, worker: int) -> dict[str, Any]:
        """The counts of count(), with the reasons of the worker's first failures."""
        failed = self._workers[worker].failed.values() if worker in self._workers else ()
        failures = itertools.islice(failed, FAILURES_TOLD_MAX)
        return {
            **self.count(worker),
            "failures": [
                [model.label, model.workers.get(worker, "")[:TROUBLE_CHARS_MAX]] for model in failures
            ],
        }

    def failure_count(self, worker: int) -> int:
        """The number of failures that describe() lists."""
        found = self._workers.get(worker)
        return min(len(found.failed), FAILURES_TOLD_MAX) if found is not None else 0
