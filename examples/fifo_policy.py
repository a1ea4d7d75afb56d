"""A complete scheduling policy in Python: `fifo`, with the same decisions as csrc/scheduler/fifo.cpp.

clockwork plan rate --profiles paper --slo 0.1 --requests 2000 --policy examples.fifo_policy:Fifo
"""

from __future__ import annotations

from collections.abc import Mapping

from clockwork.scheduler.policy import Batch, Device, Policy, Queue, Request


class Fifo(Policy):
    """A free device takes the queue with the oldest request, in a batch as large as allowed."""

    OPTIONS = {"batch_cap": 0, "queue_delay_ms": 0, "schedule_ahead_ms": 0.1, "drop": 1}  # noqa: RUF012

    def __init__(self, options: Mapping[str, float]) -> None:
        super().__init__(options)
        self.batch_cap = int(options["batch_cap"])  # largest batch; 0: the model's own
        self.delay_ns = int(options["queue_delay_ms"] * 1e6)
        self.drops = options["drop"] != 0
        self.ahead_ns = int(options["schedule_ahead_ms"] * 1e6)
        self.presses_late = self.delay_ns == 0

    def cap(self, batch_max: int) -> int:
        return min(self.batch_cap, batch_max) if self.batch_cap else batch_max

    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        return queue[0].arrived_ns

    def ready_ns(self, now_ns: int, queue: Queue) -> int:
        if self.delay_ns == 0 or queue.rows >= self.cap(queue.batch_max):
            return 0
        return queue[0].arrived_ns + self.delay_ns

    def hopeless_ns(self, now_ns: int, queue: Queue, request: Request) -> int:
        return queue.last_start_ns(request) if self.drops else request.deadline_ns

    def choose(self, now_ns: int, device: Device) -> Batch | None:
        while queue := device.first_ready():
            first = queue[0]
            left_ns = first.deadline_ns - device.free_ns - device.back_ns
            if self.drops and device.planned_ns(queue, first.rows) > left_ns:
                queue.drop(first)
                continue
            cap = self.cap(device.batch_max(queue))
            count = queue.fit(cap)
            rows = count if queue.is_plain else cap
            if self.drops and count > 1 and device.planned_ns(queue, rows) > left_ns:
                most, count, rows = count, 1, first.rows
                while count < most and device.planned_ns(queue, rows + queue[count].rows) <= left_ns:
                    rows += queue[count].rows
                    count += 1
            return Batch(queue, count)
        return None
