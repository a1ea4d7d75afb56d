"""The client of all servers: open-loop arrivals, each request with a timeout, none left at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import uvloop

from bench.peers.roads import Reply, Road, Verdict
from clockwork.system.clock import SECOND, now_ns

T = TypeVar("T")
SAMPLES = 5
"""Different texts of failures and refusals that are kept; texts that differ in numbers are equal."""

NUMBER = re.compile(r"\d[\d.]*")

BEYOND_NS = 10_000_000
"""Time for which clients stay after the last SLO, to distinguish late answers from missing ones."""


@dataclasses.dataclass(slots=True)
class Offered:
    """The outcomes of a cell's requests. Times count from the scheduled arrival."""

    verdicts: np.ndarray
    elapsed_ns: np.ndarray
    lag_ns: np.ndarray  # delay by which the client sent each request late
    said: Counter[str]


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run() on uvloop, with the garbage collector off, which would affect latencies."""
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    finally:
        gc.enable()


async def ask(road: Road, model_index: int, timeout_s: float) -> Reply:
    """Send a single request."""
    try:
        async with asyncio.timeout(timeout_s):
            return await road.call(model_index)
    except TimeoutError:
        return Reply(Verdict.GONE, said=f"no answer within {timeout_s:g} s")


async def offer(
    open_road: Callable[[], Road],
    due_ns: Sequence[int],
    models: Sequence[int],
    slo_ns: int,
    give_up_s: float,
) -> Offered:
    """Send each request when it is due, regardless of the outcomes of earlier requests.

    A client gives up give_up_s after it has sent its request. When the last request's SLO has passed, all
    clients that still wait disconnect at once.
    """
    count = len(due_ns)
    found = Offered(
        np.full(count, int(Verdict.GONE)), np.zeros(count, np.int64), np.zeros(count, np.int64), Counter()
    )
    road = open_road()
    begin_ns = now_ns()

    async def send(index: int, at_ns: int) -> None:
        reply = await ask(road, models[index], give_up_s)
        found.verdicts[index] = int(reply.verdict)
        found.elapsed_ns[index] = now_ns() - at_ns
        said = NUMBER.sub("#", reply.said)
        if said and (said in found.said or len(found.said) < SAMPLES):
            found.said[said] += 1

    waiting: set[asyncio.Task[None]] = set()
    try:
        for index in range(count):
            at_ns = begin_ns + int(due_ns[index])
            if (left_ns := at_ns - now_ns()) > 0:
                await asyncio.sleep(left_ns / SECOND)
            found.lag_ns[index] = max(0, now_ns() - at_ns)
            task = asyncio.create_task(send(index, at_ns))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.sleep((slo_ns + BEYOND_NS) / SECOND)
    finally:
        left = list(waiting)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await road.close()
    return found
