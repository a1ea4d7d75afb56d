"""The client whose I/O the event loop does itself, against the same fake controller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import ClockworkError, ConnectionLost, Refused, RequestTimeout
from clockwork.client.loop import LoopClient
from clockwork.system.clock import MS, SECOND
from clockwork.wire.messages import Bye, Cancel, InferRequest, Offer, Query, Register, Reply, Status
from clockwork.wire.tensors import FLOAT
from tests.process.fake_controller import FakeController, failing, silent

RAW = bytes(range(8))
REFERENCE = ["x", FLOAT, [1, 2], 0]

Story = Callable[[LoopClient], Coroutine[Any, Any, None]]


@pytest.fixture
def controller() -> Iterator[FakeController]:
    with FakeController() as controller:
        yield controller


def told(endpoint: str, story: Story, loops: Any = asyncio.new_event_loop) -> None:
    """Run a story with a client that is closed at its end."""

    async def main() -> None:
        client = LoopClient(endpoint)
        client.start()
        try:
            await story(client)
        finally:
            await client.close()

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())


def ask(client: LoopClient, timeout_ns: int = 10 * SECOND, raw: bytes = RAW) -> asyncio.Future[Any]:
    return client.infer_frames("m", [REFERENCE], [raw], 0, 0, timeout_ns)


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_many_requests_at_once_and_no_thread(controller: FakeController, loops: str) -> None:
    factory = asyncio.new_event_loop if loops == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    async def story(client: LoopClient) -> None:
        for _ in range(3):
            raws = [bytes([index] * 8) for index in range(200)]
            found = await asyncio.gather(*(ask(client, raw=raw) for raw in raws))
            assert [bytes(frames[0]) for _, frames in found] == raws
        assert "clockwork-client" not in [thread.name for thread in threading.enumerate()]

    told(controller.endpoint, story, factory)
    controller.wait_for(Bye)


def test_what_awaits_a_request_cancels_it(controller: FakeController) -> None:
    controller.handle = silent

    async def story(client: LoopClient) -> None:
        async def waiting() -> None:
            await ask(client)

        task = asyncio.ensure_future(waiting())
        request = (await asyncio.to_thread(controller.wait_for, InferRequest))[0]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancel = (await asyncio.to_thread(controller.wait_for, Cancel))[0]
        assert cancel.request_id == request.request_id

    told(controller.endpoint, story)


def test_errors_and_timeouts_end_a_request(controller: FakeController) -> None:
    async def story(client: LoopClient) -> None:
        controller.handle = failing(Status.REFUSED, "no", {"reason": "deadline"})
        with pytest.raises(Refused):
            await ask(client)
        controller.handle = silent
        begun = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimeout):
            await ask(client, 100 * MS)
        assert 0.1 <= asyncio.get_running_loop().time() - begun < 2
        # A later call with an earlier deadline does not wait for an earlier call with a later one.
        late = ask(client, 60 * SECOND)
        with pytest.raises(RequestTimeout):
            await ask(client, 50 * MS)
        assert not late.done()
        late.cancel()

    told(controller.endpoint, story)


def test_a_lost_controller_ends_what_is_under_way_and_a_new_one_is_found() -> None:
    async def story(client: LoopClient) -> None:
        assert (await ask(client))[1]
        controller.handle = silent
        waiting = [ask(client) for _ in range(5)]
        await asyncio.to_thread(controller.wait_for, InferRequest, 6)
        await asyncio.to_thread(controller.close)
        for one in waiting:
            with pytest.raises(ConnectionLost):
                await one
        later = ask(client)  # waits for the connection to come back
        with FakeController(client.endpoint):
            assert bytes((await later)[1][0]) == RAW
            found = await asyncio.gather(*(ask(client) for _ in range(20)))
            assert len(found) == 20

    controller = FakeController()
    told(controller.endpoint, story)


def test_nobody_there_is_said_in_time() -> None:
    async def story(client: LoopClient) -> None:
        with pytest.raises(ConnectionLost, match="no controller answers"):
            await ask(client, 200 * MS)

    with FakeController() as controller:
        endpoint = controller.endpoint
    told(endpoint, story)


def test_the_number_of_requests_is_bounded(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clockwork.config.client.CLIENT_CALLS_MAX", 3)
    controller.handle = silent

    async def story(client: LoopClient) -> None:
        waiting = [ask(client) for _ in range(3)]
        with pytest.raises(Refused) as caught:
            ask(client)
        assert caught.value.reason == "overloaded"
        waiting.pop().cancel()
        waiting.append(ask(client))
        for one in waiting:
            one.cancel()

    told(controller.endpoint, story)


def test_close_ends_what_is_under_way(controller: FakeController) -> None:
    controller.handle = silent

    async def story(client: LoopClient) -> None:
        waiting = ask(client)
        await client.close()
        with pytest.raises(ConnectionLost):
            await waiting
        with pytest.raises(ConnectionLost):
            ask(client)

    told(controller.endpoint, story)


def test_it_does_all_that_any_asyncio_client_does(controller: FakeController, tmp_path: Path) -> None:
    """Queries, whole inferences, and registrations, whose upload runs on a thread."""
    from clockwork.models import zoo

    def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is InferRequest:
            default(controller, identity, message, frames)
        elif type(message) is Query:
            controller.send(identity, Reply(message.request_id, {"workers": [1]}))
        else:
            controller.send(identity, Reply(message.request_id, {"name": "m", "version": 1}))

    default, controller.handle = controller.handle, handle

    async def story(client: LoopClient) -> None:
        x = np.ones((1, 2), np.float32)
        assert np.array_equal(await client.infer("m", x), x)
        assert (await client.status())["workers"] == [1]
        assert (await client.model("m")).raw == {"workers": [1]}
        info, *_ = await asyncio.gather(
            client.register("m", zoo.build("null")), *(client.infer("m", x) for _ in range(20))
        )
        assert info.version == 1
        await client.unload("m")
        await client.load("m@1")
        with pytest.raises(ClockworkError, match="callback of a future"):
            client._client.infer("m", x)  # the call would wait for the thread on which it runs

    told(controller.endpoint, story)
    assert [(one.model, one.offered) for one in controller.of(Offer)] == [("m", False), ("m@1", True)]
    assert len(controller.of(Register)) == 1
