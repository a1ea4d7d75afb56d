"""Work beside the loop, on one thread: however many ask, the loop contends with one for the interpreter's lock."""

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
    """Does one thing after the other, the smallest first: behind what is largest, everybody would wait for seconds."""

    def __init__(self, name: str) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, name)
        self._busy = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # size, number and turn of what waits
        self._numbers = itertools.count()

    async def run(self, size: int, work: Callable[[*Arguments], Value], *arguments: *Arguments) -> Value:
        """The value of ``work``, of so many bytes or whatever its time follows."""
        loop = asyncio.get_running_loop()
        if self._busy:
            turn: asyncio.Future[None] = loop.create_future()
            heapq.heappush(self._waiting, (size, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the turn came together with the end
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
