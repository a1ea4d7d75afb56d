"""Arrivals that are made in a second of processor time.

Measured are arrivals per second of CPU time, sorted and in chunks, of the kinds that experiments use.
Warm-up: one round. Seed: 1. The checksum is the sum of all times and models. A simulator that handles 500,000
requests per CPU-second should not be slowed by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from bench import report
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import Class as RequestClass
from clockwork.workloads import Workload, gamma, mixed, on_off, poisson, replay, synthetic_trace

SEED = 1
ROUNDS = 3
MODELS = 4026
RATE = 9638.0  # rate of the paper's trace experiment
DURATION_NS = 300 * SECOND

KINDS: dict[str, Callable[[], Workload]] = {
    "poisson": lambda: poisson([RATE / MODELS] * MODELS, DURATION_NS, seed=SEED),
    "gamma 4": lambda: gamma([RATE / MODELS] * MODELS, 4.0, DURATION_NS, seed=SEED),
    "bursts": lambda: on_off([RATE / MODELS] * MODELS, 100 * MS, 900 * MS, DURATION_NS, seed=SEED),
    "two classes": lambda: mixed(
        poisson([RATE / 20] * 20, DURATION_NS, seed=SEED),
        [RequestClass(1, 10 * MS), RequestClass(3, 100 * MS)],
    ),
    "trace": lambda: replay(synthetic_trace(17_000, seed=SEED), MODELS, DURATION_NS, rate=RATE, seed=SEED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrivals(benchmark: Any, kind: str) -> None:
    workload = KINDS[kind]()
    count = checksum = 0

    def make() -> None:
        nonlocal count, checksum
        count = checksum = 0
        for chunk in workload:
            count += len(chunk)
            checksum += int(chunk.t_ns.sum()) + int(chunk.model.sum())

    began = time.process_time()
    make()
    benchmark.group = "arrivals"
    benchmark.extra_info.update(report.conditions(SEED))
    benchmark.extra_info["arrivals"] = count
    benchmark.extra_info["arrivals_per_cpu_second"] = round(count / (time.process_time() - began))
    benchmark.pedantic(make, rounds=ROUNDS)
    benchmark.extra_info["checksum"] = checksum
