"""Work beside the event loop, on a single thread.

With one thread, the loop contends with no more than one other thread for the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import itertools
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

Value = TypeVar("Value")
Arguments = TypeVarTuple("Arguments")


class Aside:
    """Runs pieces of work one after the other, the smallest first.

    In order of arrival, small work would wait for seconds behind large work (head-of-line blocking).
    """

    def __init__(self, name: str) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, name)
        self._busy = False
        # Waiting work: its size, its sequence number, and the future of its turn
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def run(self, size: int, work: Callable[[*Arguments], Value], *arguments: *Arguments) -> Value:
        """Return the value of ``work``. size: bytes, or another measure to which its time is proportional."""
        loop = asyncio.get_running_loop()
        if self._busy:
            turn: asyncio.Future[None] = loop.create_future()
            heapq.heappush(self._waiting, (size, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the turn came together with the cancellation
                    self._pass_on()
                raise
        self._busy = True
        try:
            return await loop.run_in_executor(self._pool, work, *arguments)
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
