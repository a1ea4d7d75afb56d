"""Whether the cluster can serve, for any number of watchers at the price of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from clockwork.config.gateway import HEALTH_POLL_S


class Health:
    """For one event loop."""

    def __init__(self, ask: Callable[[], Awaitable[bool]]) -> None:
        """ask: whether the cluster can serve now."""
        self._ask = ask
        self._watchers: dict[object, Callable[[], None]] = {}
        self._changed = asyncio.Condition()
        self._can_serve: bool | None = None  # None: not known, because nobody watches
        self._looking: asyncio.Task[None] | None = None
        self._is_closed = False

    async def watch(self, look: Callable[[], None]) -> AsyncGenerator[bool, None]:
        """Whether the cluster can serve: now, and whenever that changes. Ends with close(), after False.

        look: called every HEALTH_POLL_S, while this is iterated over.
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
        """End all watches: this server serves nobody any more."""
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
