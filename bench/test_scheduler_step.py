"""Processor time of the scheduler for a request.

Measured is the time of step() per request in the steady state, from its arrival to its answer: arrival, send,
result, answer, and the timer ticks between. Warm-up: one round. Seed: 1. The checksum is the number of
requests answered. Devices are emulated here with exact durations, so that only the scheduler is timed, and
their little code. The time is CPU time, so that other processes do not count.
"""

from __future__ import annotations

import heapq
import random
import time
import tracemalloc
from typing import Any

import pytest

from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    LinkMeasured,
    ModelReady,
    ModelSpec,
    ProfilePoint,
    Request,
    SendInfer,
    SendLoad,
    Tick,
    Wake,
    WorkerJoined,
)
from clockwork.wire.messages import NEVER_NS, Status

MS, SECOND = 1_000_000, 1_000_000_000
SHAPE = ((3, 224, 224),)
REQUESTS = 5_000


def spec(model_id: int, exec_ns: int, batch_max: int = 1, row_ns: int = 0) -> ModelSpec:
    points = [ProfilePoint(SHAPE, b, exec_ns + row_ns * (b - 1)) for b in sorted({1, batch_max})]
    return ModelSpec(
        model_id, f"m{model_id}", 1, f"p{model_id % 20}", batch_max > 1, batch_max, 0, (2,), MS, points
    )


class Drive:
    """Precomputed Poisson arrivals over models, against devices that take exactly the expected time."""

    def __init__(
        self, specs: list[ModelSpec], devices: int, rate: float, slo_ns: int, pages: int = 4096
    ) -> None:
        self.scheduler = make_scheduler("edf")
        self.now, self.next_id, self.answered, self.admitted = 0, 0, 0, 0
        self.specs, self.rate, self.slo_ns = specs, rate, slo_ns
        self.random = random.Random(1)
        self.free: dict[tuple[int, int], int] = {}
        self.wake = NEVER_NS
        self.heap: list[tuple[int, int, Any]] = []
        self.sequence = 0
        for worker in range(devices):
            self.take(self.scheduler.step(WorkerJoined(0, worker, (("emulated", 1 << 20, pages, 2),))))
            self.take(self.scheduler.step(LinkMeasured(0, worker, 100_000, 100_000)))
            for model in specs:
                self.take(self.scheduler.step(ModelReady(0, worker, model)))

    def push(self, at: int, event: Any) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (at, self.sequence, event))

    def take(self, commands: list[Any]) -> None:
        for command in commands:
            kind = type(command)
            if kind is AnswerOk:
                self.answered += 1
            elif kind is AnswerFailed:
                pass
            elif kind is Wake:
                self.wake = command.at_ns
                self.push(command.at_ns, None)
            else:
                lane = (command.worker, 0 if kind is SendInfer else 1)
                begin = max(self.free.get(lane, 0), self.now + 100_000)
                end = self.free[lane] = begin + command.expected_ns
                done = ActionDone(
                    end + 100_000, command.worker, command.action_id, Status.OK, "", begin, end, end - begin
                )
                self.push(end + 100_000, done)
                if kind is SendLoad:
                    self.free[lane] = end

    def run(self, count: int) -> int:
        """Let ``count`` requests arrive; returns the number of answers in time meanwhile."""
        before = self.answered
        step, take, heap = self.scheduler.step, self.take, self.heap
        arrive = self.now
        for _ in range(count):
            arrive += int(self.random.expovariate(self.rate) * SECOND)
            while heap and heap[0][0] <= arrive:
                at, _, event = heapq.heappop(heap)
                self.now = max(self.now, at)
                if event is not None:
                    take(step(event))
                elif self.wake == at:
                    take(step(Tick(at)))
            self.now = arrive
            self.next_id += 1
            model = self.specs[self.next_id * 7919 % len(self.specs)].model_id
            request = Request(self.next_id, model, 1, SHAPE, 602_112, arrive, arrive + self.slo_ns, 4)
            take(step(Arrived(arrive, request)))
        return self.answered - before


CASES = {
    "one model, half load": lambda: Drive([spec(1, 5 * MS)], 1, 100, 100 * MS),
    "one model, 1.5 times its capacity": lambda: Drive([spec(1, 5 * MS)], 1, 300, 100 * MS),
    "batches up to 16 at capacity": lambda: Drive([spec(1, 2 * MS, 16, MS // 5)], 1, 3000, 50 * MS),
    "20 models on one device, 0.9": lambda: Drive([spec(m, MS) for m in range(20)], 1, 900, 100 * MS),
    "20 models on 8 devices, 0.9": lambda: Drive([spec(m, MS) for m in range(20)], 8, 7200, 100 * MS),
    "3000 models, a twentieth fits": lambda: Drive([spec(m, MS) for m in range(3000)], 1, 500, 100 * MS, 300),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.benchmark(group="scheduler step, per 5,000 requests", timer=time.process_time)
def test_step_per_request(case: str, benchmark: Any) -> None:
    drive = CASES[case]()
    drive.run(REQUESTS // 5)
    answered = benchmark.pedantic(drive.run, (REQUESTS,), rounds=5, warmup_rounds=1)
    benchmark.extra_info["us_per_request"] = round(benchmark.stats.stats.median / REQUESTS * 1e6, 2)
    benchmark.extra_info["answered"] = answered
    assert answered > 0


@pytest.mark.benchmark(group="scheduler step, empty")
def test_empty_step(benchmark: Any) -> None:
    scheduler = make_scheduler("edf")
    benchmark(scheduler.step, Tick(1))


def test_memory_per_model() -> None:
    """Bytes that the scheduler holds for each further registered model, without the ModelSpec itself."""
    scheduler = make_scheduler("edf")
    scheduler.step(WorkerJoined(0, 1, (("emulated", 1 << 20, 300, 2),)))
    specs = [spec(m, MS) for m in range(3000)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for model_spec in specs:
        scheduler.step(ModelReady(0, 1, model_spec))
    per_model = (tracemalloc.get_traced_memory()[0] - before) / len(specs)
    tracemalloc.stop()
    print(f"\nscheduler memory per model: {per_model:.0f} bytes")
    assert per_model < 2048
