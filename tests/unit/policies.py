"""Policies in Python for tests, by name: tests.unit.policies:Name. Most fail in one way."""

from __future__ import annotations

from typing import Any

from clockwork.scheduler.policy import Batch, Device, Policy, Queue, Refusal, Request
from examples.fifo_policy import Fifo

HALF_DONE = Policy  # a name for Policy itself, which has no hooks


class Incomplete(Policy):
    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        return 0


class FailsInChoose(Fifo):
    def choose(self, now_ns: int, device: Device) -> Batch | None:
        if device.first_ready():
            raise LookupError("the blue one")
        return None


class FailsInRank(Fifo):
    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        return queue[len(queue)].arrived_ns


class FailsInReady(Fifo):
    def ready_ns(self, now_ns: int, queue: Queue) -> int:
        return 0.5  # type: ignore[return-value]


class FailsInHopeless(Fifo):
    def hopeless_ns(self, now_ns: int, queue: Queue, request: Request) -> int:
        return request.deadline_ns << 60


class FailsInAdmit(Fifo):
    def admit(self, now_ns: int, queue: Queue, request: Request) -> Refusal | None:
        return False  # type: ignore[return-value]


class Chooses(Fifo):
    """A list into which a test puts values."""

    chosen: Any = None

    def choose(self, now_ns: int, device: Device) -> Batch | None:
        found = device.first_ready()
        return None if found is None else type(self).chosen(device, found)


class Keeps(Fifo):
    """Keeps a queue for later."""

    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        self.kept = queue
        return 0

    def choose(self, now_ns: int, device: Device) -> Batch | None:
        return Batch(self.kept, 1) if device.first_ready() else None


class DropsTooEarly(Fifo):
    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        queue.drop(queue[0])
        return 0


class Swallows(Fifo):
    """A hook that fails within another hook, which ignores the failure."""

    def hopeless_ns(self, now_ns: int, queue: Queue, request: Request) -> int:
        if self.drops_now:
            raise LookupError("the red one")
        return request.deadline_ns

    drops_now = False

    def choose(self, now_ns: int, device: Device) -> Batch | None:
        if (queue := device.first_ready()) and len(queue) > 1:
            self.drops_now = True
            try:
                queue.drop(queue[0])
            except Exception:
                self.drops_now = False
        return super().choose(now_ns, device)


class Refuses(Fifo):
    OPTIONS = {**Fifo.OPTIONS, "feasible_ms": 0}  # noqa: RUF012

    def admit(self, now_ns: int, queue: Queue, request: Request) -> Refusal | None:
        if len(queue) < 2:
            return None
        return Refusal(round(self.options["feasible_ms"] * 1e6))


class Looks(Fifo):
    """Records its calls."""

    seen: dict[str, Any] = {}  # noqa: RUF012

    def choose(self, now_ns: int, device: Device) -> Batch | None:
        queues = device.ready()
        if len(queues) > 1:
            queue, first = queues[0], queues[0][0]
            type(self).seen = {
                "now_ns": now_ns,
                "device": (device.worker, device.index, device.in_flight, device.there_ns, device.back_ns),
                "free_ns": device.free_ns,
                "queues": [(one.model_id, len(one), one.rows, one.priority) for one in queues],
                "first": (first.id, first.arrived_ns, first.deadline_ns, first.rows, first.priority, first.alone),
                "ids": [one.id for one in queue],
                "last": queue[-1].id,
                "batch_max": (queue.batch_max, device.batch_max(queue)),
                "planned_ns": device.planned_ns(queue, 2),
                "least_ns": queue.least_ns(2),
                "last_start_ns": queue.last_start_ns(first),
                "fit": (queue.fit(2), queue.fit(100), queue.fit(100, 1)),
                "is_plain": queue.is_plain,
                "devices": [(one.worker, one.index) for one in queue.devices()],
                "shape": queue.shape,
            }  # fmt: skip
        return super().choose(now_ns, device)
