"""Watches whether the cluster can serve; all watchers share one poll."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from clockwork.config.gateway import HEALTH_POLL_S


class Health:
    """The readiness of a cluster, polled while there are watchers. For one event loop."""

    def __init__(self, ask: Callable[[], Awaitable[bool]]) -> None:
        """ask: returns whether the cluster can serve now."""
        self._ask = ask
        self._watchers: dict[object, Callable[[], None]] = {}
        self._changed = asyncio.Condition()
        self._can_serve: bool | None = None  # None: unknown, because there is no watcher
        self._looking: asyncio.Task[None] | None = None
        self._is_closed = False

    async def watch(self, look: Callable[[], None]) -> AsyncGenerator[bool, None]:
        """Yield whether the cluster can serve: now, and after each change. close() ends the iteration, after
        False.

        look: called every HEALTH_POLL_S during the iteration.
        """
        watcher, told = object(), None
        self._watchers[watcher] = look
        if self._looking is None and not self._is_closed:
            self._looking = asyncio.create_task(self._look())
        try:
            while not self._is_closed:
                async with self._changed:
                    while self._can_serve in (None, told) and not self._is_closed:
                        await self._changed.wait()
                    told = self._can_serve
                if not self._is_closed:
                    yield bool(told)
            yield False
        finally:
            del self._watchers[watcher]

    async def close(self) -> None:
        """End all watches, because this server stops."""
        self._is_closed = True
        if self._looking is not None:
            self._looking.cancel()
        await self._notify()

    async def _look(self) -> None:
        while self._watchers:
            can_serve = await self._ask()
            if can_serve is not self._can_serve:
                self._can_serve = can_serve
                await self._notify()
            for look in list(self._watchers.values()):
                look()
            await asyncio.sleep(HEALTH_POLL_S)
        self._can_serve = self._looking = None

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
