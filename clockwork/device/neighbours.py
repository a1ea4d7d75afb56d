"""How much the executors of a CPU's arena slow each other, measured when a worker starts."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from clockwork import config
from clockwork.config import device as bounds
from clockwork.device.machine import ArenaPlace

Work = Callable[[], object]
"""Work of a known size, without the interpreter's lock."""


def measure_slowdown(place: ArenaPlace) -> float:
    """Return how many times as long an execution takes beside executions on all other executors, at least 1.

    The mean of work in a core's cache and of work in memory, each on one thread and on as many as there are
    executors, in turn, for SLOWDOWN_ROUNDS times SLOWDOWN_SPAN_NS. The threads' CPU time counts, so that
    other processes do not; executors that have no processor each take turns in addition.
    """
    executors = place.executors
    if executors == 1:
        return 1.0
    size = min(bounds.SLOWDOWN_BYTES, bounds.SLOWDOWN_BYTES_ALL // executors) // 16
    in_cache = [_work(4096, np.tanh) for _ in range(executors)]
    in_memory = [_work(size, np.negative) for _ in range(executors)]
    ratios = []
    for works in (in_cache, in_memory):
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(bounds.SLOWDOWN_ROUNDS):
            alone += _times(works[:1], place)
            beside += _times(works, place)
        ratios.append(statistics.median(beside) / statistics.median(alone))
    turns = max(1.0, executors / len(place.processors or os.sched_getaffinity(0)))
    most = min(float(executors), config.SLOWDOWN_THOUSANDTHS_MAX / 1000)
    return min(max(turns * statistics.mean(ratios), 1.0), most)


def _work(count: int, function: Callable[..., object]) -> Work:
    given, taken = np.full(count, 0.5), np.empty(count)
    return lambda: function(given, out=taken)


def _times(works: Sequence[Work], place: ArenaPlace) -> list[float]:
    """Repeat each work on a thread of its own, all at the same time, for SLOWDOWN_SPAN_NS. Returns the CPU
    time of a repetition on each thread, in ns."""
    begin = threading.Barrier(len(works))
    found = [0.0] * len(works)

    def repeat(number: int) -> None:
        if where := {place.pins[number]} if place.pins else place.processors:
            os.sched_setaffinity(0, where)  # of this thread alone
        begin.wait()
        end_ns, began_ns, count = time.monotonic_ns() + bounds.SLOWDOWN_SPAN_NS, time.thread_time_ns(), 0
        while count == 0 or time.monotonic_ns() < end_ns:
            works[number]()
            count += 1
        found[number] = (time.thread_time_ns() - began_ns) / count

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
