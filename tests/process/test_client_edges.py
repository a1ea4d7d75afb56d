"""A controller that lies to its clients: edge cases of every field of its messages, floods, and messages that
would fill memory.

In every case a call ends with an answer or an error of Clockwork's within its time, and the same client's
next call is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench import zmtp
from clockwork import AsyncClient, Client, ClockworkError, ProtocolMismatch, RequestTimeout, config
from clockwork.client.loop import LoopClient
from clockwork.config.wire import SENTENCE_BYTES_MAX
from clockwork.models import zoo
from clockwork.wire import codec
from clockwork.wire.messages import (
    TO_CLIENT,
    InferRequest,
    Progress,
    Query,
    Register,
    Reply,
    UploadAck,
    UploadChunk,
    UploadNeed,
)
from tests.edges import Edge, edges
from tests.fuzz import mutate
from tests.patience import PATIENCE_S
from tests.process.endless import Endless, after_a_request
from tests.process.fake_controller import FakeController, echo

X = np.array([[1.5, -2.0]], np.float32)
SENTENCE_MAX = 4 * SENTENCE_BYTES_MAX + 1_000
"""Bound on the characters of an error: a failure's own text, and some of Clockwork's."""


class Liar:
    """Sends a given header at the first call, then the right answer; from then on it is honest."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.is_told = False

    def __call__(self, controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if not self.is_told:
            self.is_told = True
            controller.router.send(identity, self.edge.header, [bytes(8)])
        if type(message) is Query:
            controller.send(identity, Reply(message.request_id, honest_body(message.what)))
        else:
            echo(controller, identity, message, frames)


def honest_body(what: str) -> Any:
    return {"models": [], "next": ""} if what == "models" else {"name": "m"}


ASKED: dict[str, Callable[[Client], Any]] = {
    "infer": lambda client: client.infer("m", X),
    "models": lambda client: client.models(),
    "model": lambda client: client.model("m"),
    "status": lambda client: client.status(),
    "metrics": lambda client: client.metrics(),
    "route": lambda client: client.promote("m", 1),
}
"""The calls of a client, each of which reads an answer in its own way."""


def check_sentence(error: ClockworkError) -> None:
    assert 0 < len(str(error)) <= SENTENCE_MAX


def ask_async(endpoint: str, call: str) -> None:
    async def main() -> None:
        async with AsyncClient(endpoint, timeout=PATIENCE_S) as client:
            try:
                if call == "infer":
                    await client.infer("m", X)
                else:
                    await getattr(client, call)(*(["m"] if call == "model" else []))
            except ClockworkError as error:
                check_sentence(error)
            assert np.array_equal(await client.infer("m", X), X)

    asyncio.run(main())


def ask(endpoint: str, call: str) -> None:
    with Client(endpoint, timeout=PATIENCE_S) as client:
        try:
            ASKED[call](client)
        except ClockworkError as error:
            check_sentence(error)
        assert np.array_equal(client.infer("m", X), X)


CASES = [
    (call, kind)
    for call in ("infer", "models", "model", "status", "metrics")
    for kind in TO_CLIENT.values()
    if call == "infer" or kind is Reply
]


@pytest.mark.slow
@pytest.mark.parametrize("how", [ask, ask_async])
@pytest.mark.parametrize(("call", "kind"), CASES, ids=[f"{call}-{kind.__name__}" for call, kind in CASES])
def test_a_controllers_edges_end_no_client(how: Callable[[str, str], None], call: str, kind: type) -> None:
    for edge in edges(kind):
        with FakeController(handle=Liar(edge)) as controller:
            begun = time.monotonic()
            try:
                how(controller.endpoint, call)
            except BaseException as error:
                raise AssertionError(f"{call}: {kind.__name__}{edge.label}") from error
            assert time.monotonic() - begun < PATIENCE_S, edge.label


DESCRIPTION: dict[str, Any] = {
    "name": "m", "version": 3, "state": "ready", "text": "", "slo_ns": 10**8, "batches": True, "batch_max": 8,
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3]}], "holding": "bound", "weights_bytes": 12,
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["N"]}], "load_ns": 1000, "share": 10_000,
    "profile": [{"shape": [[3]], "batch": 4, "exec_ns": 2000}], "metadata": {"labels": "[]"},
    "devices": [{"worker": "w", "device": 0, "state": "resident"}], "counts": {"ok": 1}, "hosted": ["w"],
}  # fmt: skip
ROUTE: dict[str, Any] = {
    "name": "m", "automatic": False, "shares": [[1, 7000], [2, 3000]], "serving": [[1, 10_000]],
    "shadow": {"version": 3, "parts": 500, "tolerance": 1e-6, "copied": 4}, "earlier": [{"shares": [[1, 10_000]]}],
}  # fmt: skip
METRICS: dict[str, Any] = {"models": [{"name": "m"}], "workers": [], "next": ""}
LISTED: dict[str, Any] = {"models": [DESCRIPTION], "next": ""}
BODIES = {
    "models": LISTED,
    "model": DESCRIPTION,
    "status": {"workers": []},
    "metrics": METRICS,
    "route": ROUTE,
}
SEED = 20201104


@pytest.mark.parametrize("count", [60, pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("call", BODIES)
def test_any_reply_is_taken_or_called_damaged(call: str, count: int) -> None:
    rng = random.Random(f"{SEED} {call}")
    good = BODIES[call]
    bodies = [good, *(mutate.odd_within(good, rng) for _ in range(count))]
    told: list[tuple[str, Any]] = []

    def reply(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        follows = type(message) is Query and message.what in ("models", "metrics") and message.argument
        page = LISTED if follows and message.what == "models" else METRICS
        controller.send(identity, Reply(message.request_id, page if follows else bodies[-1]))

    with (
        FakeController(handle=reply) as controller,
        Client(controller.endpoint, timeout=PATIENCE_S) as client,
    ):
        while bodies:
            try:
                ASKED[call](client)
            except ProtocolMismatch:
                pass  # the value is too deep for any form
            except ClockworkError as error:
                told.append((str(error), bodies[-1]))
            except BaseException as error:
                raise AssertionError(f"seed {SEED}, {bodies[-1]!r}") from error
            bodies.pop()
    assert all("damaged" in text and body is not good for text, body in told), told
    assert call == "status" or 0 < len(told) < count


@pytest.mark.parametrize("call", ["models", "metrics"])
def test_a_further_page_that_could_not_be_asked_for_is_called_damaged(call: str) -> None:
    """Otherwise the client's query is a malformed message, for which a controller may end the connection."""
    page = BODIES[call] | {"next": "é" * (config.MODEL_REFERENCE_BYTES_MAX // 2 + 1)}

    def reply(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        controller.send(identity, Reply(message.request_id, page))

    with FakeController(handle=reply) as controller, Client(controller.endpoint) as client:
        with pytest.raises(ClockworkError, match="damaged"):
            ASKED[call](client)
        page["next"] = ""
        ASKED[call](client)


def test_metrics_without_an_end_end() -> None:
    """Pages without a model are called damaged; pages with a model count until the call's own limit."""

    def endless(models: list[Any]) -> Any:
        def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
            controller.send(identity, Reply(message.request_id, {"models": models, "next": "m"}))

        return handle

    with FakeController(handle=endless([])) as controller, Client(controller.endpoint) as client:
        with pytest.raises(ClockworkError, match="damaged"):
            client.metrics()
        controller.handle = endless([{"name": "m"}])
        with pytest.raises(RequestTimeout):
            client.metrics(timeout=0.5)


def test_a_package_is_sent_once_and_not_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller may ask for any window, and may ask again."""
    monkeypatch.setattr(config, "UPLOAD_AHEAD_BYTES_MAX", 4_000)
    chunks: list[UploadChunk] = []

    def greedy(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is Register:
            controller.send(identity, UploadNeed(message.request_id, 1 << 16, 1_000))
        elif type(message) is UploadChunk:
            chunks.append(message)
            if len(chunks) == 4:
                controller.send(identity, UploadAck(message.request_id, 1 << 16))
            elif len(chunks) == 8:
                controller.send(identity, UploadNeed(message.request_id, 1, 1_000))

    with FakeController(handle=greedy) as controller, Client(controller.endpoint) as client:
        with pytest.raises(ClockworkError, match="a second time"):
            client.register("m", zoo.digits())
        controller.handle = echo
        assert np.array_equal(client.infer("m", X), X)
    assert len(chunks) == 8, "four were acknowledged, and four more are as much as may be under way"


def test_signs_of_progress_that_nobody_reads_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clockwork.config.client.CLIENT_INBOX_MAX", 50)
    flooded = threading.Event()

    def flood(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is Register:
            for done in range(200):
                controller.send(identity, Progress(message.request_id, "store", done, 0), [bytes(10)])
        elif type(message) is InferRequest:
            echo(controller, identity, message, frames)
            flooded.set()

    with FakeController(handle=flood) as controller, Client(controller.endpoint) as client:

        def slow(stage: str, done: int, total: int) -> None:
            if stage == "store" and not flooded.is_set():
                assert np.array_equal(client.infer("m", X), X), "it comes behind the flood"

        with pytest.raises(ClockworkError, match="wait for this call to read them"):
            client.register("m", zoo.digits(), progress=slow)


FOREIGN = zmtp.message([codec.encode(Progress(10**9, "x", 1, 1))]) * 20_000


def test_a_flood_of_messages_holds_no_call_beyond_its_time() -> None:
    with contextlib.closing(Endless(after_a_request, FOREIGN)) as flood, Client(flood.endpoint) as client:
        for ask_once in (client.infer, lambda *more, **how: client.submit(*more, **how).result()):
            begun = time.monotonic()
            with pytest.raises(RequestTimeout):
                ask_once("m", X, timeout=0.5)
            assert time.monotonic() - begun < PATIENCE_S


def test_a_flood_of_messages_leaves_the_event_loop_its_turn() -> None:
    async def main() -> None:
        client = LoopClient(flood.endpoint)
        client.start()
        call = asyncio.ensure_future(client.infer("m", X, timeout=1.0))
        turns = 0
        begun = time.monotonic()
        while not call.done() and time.monotonic() - begun < PATIENCE_S:
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(RequestTimeout):
            await call
        assert turns > 10
        await client.close()

    with contextlib.closing(Endless(after_a_request, FOREIGN)) as flood:
        asyncio.run(main())
