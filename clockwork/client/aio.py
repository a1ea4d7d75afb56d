"""The client for asyncio: the same calls as coroutines."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Concatenate, ParamSpec, cast, overload

from clockwork import config
from clockwork.client import calls, upload
from clockwork.client.blocking import Client, Keys
from clockwork.client.calls import (
    Arguments,
    Batching,
    Call,
    Input,
    Inputs,
    Outputs,
    PageCollector,
    ProductDtype,
    ProgressCallback,
    Value,
)
from clockwork.client.channel import CallStream
from clockwork.wire.description import ModelInfo
from clockwork.wire.tensors import Array

Parameters = ParamSpec("Parameters")


def _awaited(
    method: Callable[Concatenate[Client, Parameters], Value],
) -> Callable[Concatenate[AsyncClient, Parameters], Coroutine[Any, Any, Value]]:
    """Return as a coroutine a method of Client that does no more than return what _ask() does."""

    @functools.wraps(method)
    async def call(self: Any, /, *arguments: Parameters.args, **options: Parameters.kwargs) -> Value:
        return cast(Value, await cast(Any, method)(self, *arguments, **options))

    return call


class AsyncClient:
    """Like Client, for asyncio: every method of it that talks to the cluster is a coroutine here.

        async with AsyncClient() as client:
            y = await client.infer("digits", x)

    A task that is cancelled cancels its request. May be shared by tasks, and by event loops.
    """

    client_type: ClassVar[type[Client]] = Client

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: float = config.CLIENT_TIMEOUT_NS / 1e9,
        keys: Keys = None,
        name: str = "",
        shared_memory: bool = False,
        ask_again: bool = True,
    ) -> None:
        self._client = self.client_type(
            endpoint, timeout=timeout, keys=keys, name=name, shared_memory=shared_memory, ask_again=ask_again
        )
        self._channel = self._client._channel

    @property
    def endpoint(self) -> str:
        """The controller's endpoint."""
        return self._client.endpoint

    @overload
    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Input],
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> dict[str, Array]: ...

    @overload
    async def infer(
        self,
        model: str,
        inputs: Input,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Array: ...

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Outputs:
        """See Client.infer(). The arrays passed in must not be changed before it returns."""
        if self._client._memory is not None:
            return await self.submit(model, inputs, slo=slo, priority=priority, timeout=timeout)
        return await self._ask(calls.infer_call(inputs), timeout, model, inputs, slo, priority)

    @overload
    def submit(
        self,
        model: str,
        inputs: Mapping[str, Input],
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> asyncio.Future[dict[str, Array]]: ...

    @overload
    def submit(
        self,
        model: str,
        inputs: Input,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> asyncio.Future[Array]: ...

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> asyncio.Future[Any]:
        """Like infer(), sent at once; the future's cancel() cancels the request. Needs a running loop."""
        future = self._client.submit(model, inputs, slo=slo, priority=priority, timeout=timeout)
        return asyncio.wrap_future(future, loop=asyncio.get_running_loop())

    async def register(
        self,
        name: str,
        model: str | os.PathLike[str] | bytes | Any,
        *,
        slo: float | None = None,
        examples: Any = None,
        optional_inputs: Sequence[str] | None = None,
        batching: Batching | None = None,
        batch_max: int | None = None,
        version: int | None = None,
        origin: str = "",
        dtype: ProductDtype | None = None,
        share: float | None = None,
        force: bool = False,
        timeout: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> ModelInfo:
        """See Client.register(). Files are read on a thread; ``progress`` is called on the loop."""
        loop = asyncio.get_running_loop()
        options = calls.registration_options(slo, batching, batch_max, version, origin, dtype, share, force)
        limit_ns = None if timeout is None else self._client._limit_ns(timeout)
        streams: list[CallStream] = []
        cancelled = False

        def opened(stream: CallStream) -> None:
            streams.append(stream)
            if cancelled:
                stream.close()

        def tell(stage: str, done: int, total: int) -> None:
            if progress is not None:
                loop.call_soon_threadsafe(progress, stage, done, total)

        try:
            return await asyncio.to_thread(
                upload.register, self._channel, name, model, options, examples, limit_ns, tell, share, opened,
                optional_inputs,
            )  # fmt: skip
        except asyncio.CancelledError:
            cancelled = True
            for stream in streams:
                stream.close()
            raise

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """See Client.models()."""
        return (await self._pages(calls.MODELS, "", timeout)).models()

    model = _awaited(Client.model)
    unregister = _awaited(Client.unregister)
    load = _awaited(Client.load)
    unload = _awaited(Client.unload)
    report_source = _awaited(Client.report_source)
    hand_over = _awaited(Client.hand_over)
    route = _awaited(Client.route)
    promote = _awaited(Client.promote)
    rollback = _awaited(Client.rollback)
    status = _awaited(Client.status)
    why_not_ready = _awaited(Client.why_not_ready)
    core_loads = _awaited(Client.core_loads)
    recorder = _awaited(Client.recorder)

    async def metrics(self, model: str = "", *, timeout: float | None = None) -> dict[str, Any]:
        """See Client.metrics()."""
        return (await self._pages(calls.METRICS, model, timeout)).body

    async def close(self) -> None:
        """Disconnect. Calls under way end with ConnectionLost. Idempotent."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _pages(self, call: Call[Any, str], argument: str, timeout: float | None) -> PageCollector:
        """Return the answers to a query that is answered in pages."""
        pages = PageCollector(argument, self._client._limit_ns(timeout))
        while pages.add(await self._ask(call, pages.left_s(), pages.argument)):
            pass
        return pages

    async def _ask(
        self, call: Call[Value, *Arguments], timeout: float | None, *arguments: *Arguments
    ) -> Value:
        return await asyncio.wrap_future(
            self._channel.submit(call, self._client._limit_ns(timeout), *arguments)
        )
