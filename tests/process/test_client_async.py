"""The asyncio client, against the same fake controller."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import AsyncClient, ConnectionLost, InvalidInput, Refused, RequestTimeout
from clockwork.wire.messages import Bye, Cancel, InferRequest, Query, Register, Reply, Status, Unregister
from tests.process.fake_controller import FakeController, failing, silent

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def controller() -> Iterator[FakeController]:
    with FakeController() as controller:
        yield controller


def test_many_tasks_share_one_client(controller: FakeController) -> None:
    async def main() -> None:
        async with AsyncClient(controller.endpoint) as client:
            inputs = [np.full(index + 1, index, np.float32) for index in range(200)]
            outputs = await asyncio.gather(*(client.infer("m", x) for x in inputs))
            for x, y in zip(inputs, outputs):
                assert np.array_equal(x, y)
            assert np.array_equal(await client.submit("m", X), X)

    asyncio.run(main())
    controller.wait_for(Bye)


def test_errors(controller: FakeController) -> None:
    async def main() -> None:
        async with AsyncClient(controller.endpoint) as client:
            with pytest.raises(InvalidInput):
                await client.infer("m", X, slo=-1)
            controller.handle = failing(Status.REFUSED, "no", {"reason": "deadline"})
            with pytest.raises(Refused):
                await client.infer("m", X)
            controller.handle = silent
            with pytest.raises(RequestTimeout):
                await client.infer("m", X, timeout=0.05)
            waiting = asyncio.ensure_future(client.infer("m", X))
            await asyncio.to_thread(controller.wait_for, InferRequest, 3)
        with pytest.raises(ConnectionLost):
            await waiting

    asyncio.run(main())


def test_cancelling_a_task_cancels_its_request(controller: FakeController) -> None:
    controller.handle = silent

    async def main() -> None:
        async with AsyncClient(controller.endpoint) as client:
            task = asyncio.ensure_future(client.infer("m", X))
            requests = await asyncio.to_thread(controller.wait_for, InferRequest)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancels = await asyncio.to_thread(controller.wait_for, Cancel)
            assert cancels[0].request_id == requests[0].request_id

    asyncio.run(main())


def test_cancelling_a_registration_cancels_it(controller: FakeController, tmp_path: Path) -> None:
    from clockwork.models import zoo

    controller.handle = silent

    async def main() -> None:
        async with AsyncClient(controller.endpoint) as client:
            task = asyncio.ensure_future(client.register("null", zoo.build("null")))
            requests = await asyncio.to_thread(controller.wait_for, Register)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancels = await asyncio.to_thread(controller.wait_for, Cancel)
            assert cancels[0].request_id == requests[0].request_id

    asyncio.run(main())


def test_queries(controller: FakeController) -> None:
    def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        what = message.what if type(message) is Query else ""
        body = {
            "models": {"models": [{"name": "a"}], "next": ""},
            "model": {"name": "a"},
            "status": {"epoch": 5},
        }.get(what)
        controller.send(identity, Reply(message.request_id, body))

    controller.handle = handle

    async def main() -> None:
        async with AsyncClient(controller.endpoint) as client:
            assert [info.name for info in await client.models()] == ["a"]
            assert (await client.model("a")).name == "a"
            assert (await client.status())["epoch"] == 5
            await client.unregister("a")

    asyncio.run(main())
    assert controller.of(Unregister)[0].model == "a"
