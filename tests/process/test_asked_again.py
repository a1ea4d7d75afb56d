"""A client whose controller is lost: calls that change nothing are asked again, of whichever controller
answers next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from clockwork import AsyncClient, Client
from clockwork.client.loop import LoopClient
from clockwork.config.wire import ENDPOINTS_MAX
from clockwork.errors import ConfigError, ConnectionLost, DeadlineMissed, RequestTimeout
from clockwork.launch.local import held_ports
from clockwork.wire import transport
from clockwork.wire.messages import NO_LEASE, ClientHello, InferRequest, Query, Unregister
from tests.patience import PATIENCE_S, eventually
from tests.process.fake_controller import FakeController

X = np.arange(4, dtype=np.float32)


def silence(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    """Answer nothing."""


@pytest.fixture
def endpoints() -> Iterator[list[str]]:
    with held_ports(2) as ports:
        yield [f"tcp://127.0.0.1:{port}" for port in ports]


class Asking:
    """A call on a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.value: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._call()
        except Exception as error:
            self.value = error

    def wait(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the call does not end"
        return self.value


def test_a_request_is_asked_again_of_a_controller_that_was_started_again(endpoints: list[str]) -> None:
    first = FakeController(endpoints[0], handle=silence)
    with Client(endpoints[0], timeout=PATIENCE_S) as client:
        alone = Asking(lambda: client.infer("m", X, slo=60.0))
        first.wait_for(InferRequest)
        beside = [client.submit("m", X + number) for number in range(3)]
        first.wait_for(InferRequest, 4)
        first.close()
        with FakeController(endpoints[0]) as second:
            np.testing.assert_array_equal(alone.wait(), X)
            for number, future in enumerate(beside):
                np.testing.assert_array_equal(future.result(PATIENCE_S), X + number)
            again = second.of(InferRequest)
    before = first.of(InferRequest)
    assert sorted(again, key=lambda one: one.request_id)[1:] == before[1:], (
        "the same numbers and the same content"
    )
    assert len(again) == 4
    (asked,) = (one for one in again if one.request_id == before[0].request_id)
    assert 0 < asked.slo_ns < before[0].slo_ns == 60_000_000_000, "less is left of its SLO"


def test_the_next_controller_is_asked_where_one_is_gone(endpoints: list[str]) -> None:
    first = FakeController(endpoints[0], handle=silence)
    with FakeController(endpoints[1]) as second, Client(",".join(endpoints), timeout=PATIENCE_S) as client:
        asking = Asking(lambda: client.infer("m", X))
        first.wait_for(InferRequest)
        assert client.endpoint == endpoints[0]
        first.close()
        np.testing.assert_array_equal(asking.wait(), X)
        assert client.endpoint == endpoints[1]
        assert len(second.of(InferRequest)) == 1
        np.testing.assert_array_equal(client.infer("m", X), X)
        with FakeController(endpoints[0]) as third:
            second.close()
            np.testing.assert_array_equal(client.infer("m", X), X)
            assert len(third.of(InferRequest)) == 1


def test_a_controller_that_lets_nobody_in_is_passed_over(endpoints: list[str]) -> None:
    """As one does that waits to become active: it listens, and answers no greeting."""
    with (
        FakeController(endpoints[0], greet=False),
        FakeController(endpoints[1]),
        Client(f"{endpoints[0]}, {endpoints[1]}", timeout=PATIENCE_S) as client,
    ):
        np.testing.assert_array_equal(client.infer("m", X), X)
        assert client.endpoint == endpoints[1]


def test_a_controller_that_was_taken_over_is_not_asked(endpoints: list[str]) -> None:
    """As one does not know that was stopped meanwhile: it lets clients in with the epoch that it had."""
    first = FakeController(endpoints[0], lease=(2, "first/1", "ours"))
    with (
        FakeController(endpoints[1], lease=(1, "stopped/1", "ours")) as stopped,
        Client(",".join(endpoints), timeout=PATIENCE_S) as client,
    ):
        np.testing.assert_array_equal(client.infer("m", X), X)
        first.close()
        asking = Asking(lambda: client.infer("m", X))
        stopped.wait_for(ClientHello)
        with FakeController(endpoints[0], lease=(3, "third/1", "ours")) as third:
            np.testing.assert_array_equal(asking.wait(), X)
            assert len(third.of(InferRequest)) == 1
        assert stopped.of(InferRequest) == []


def test_a_controller_of_another_cluster_and_one_without_a_lease_are_asked(endpoints: list[str]) -> None:
    first = FakeController(endpoints[0], lease=(2, "first/1", "ours"))
    with Client(endpoints[0], timeout=PATIENCE_S) as client:
        np.testing.assert_array_equal(client.infer("m", X), X)
        first.close()
        for lease in ((1, "first/1", "another"), NO_LEASE, (1, "first/1", "another")):
            with FakeController(endpoints[0], lease=lease) as other:
                np.testing.assert_array_equal(client.infer("m", X), X)
                assert other.of(InferRequest)


def test_calls_from_event_loops_are_asked_again(endpoints: list[str]) -> None:
    async def ask(kind: type[AsyncClient]) -> None:
        first = FakeController(endpoints[0], handle=silence)
        async with kind(",".join(endpoints), timeout=PATIENCE_S) as client:
            if isinstance(client, LoopClient):
                client.start()
            asking = asyncio.ensure_future(client.infer("m", X))
            await asyncio.to_thread(first.wait_for, InferRequest)
            await asyncio.to_thread(first.close)
            with FakeController(endpoints[1]):
                np.testing.assert_array_equal(await asking, X)

    for kind in (AsyncClient, LoopClient):
        asyncio.run(ask(kind))


def test_an_option_has_calls_fail(endpoints: list[str]) -> None:
    with (
        FakeController(endpoints[0], handle=silence) as first,
        Client(endpoints[0], timeout=PATIENCE_S, ask_again=False) as client,
    ):
        asking = Asking(lambda: client.infer("m", X))
        first.wait_for(InferRequest)
        first.close()
        assert isinstance(asking.wait(), ConnectionLost)


def test_a_change_is_not_asked_again_and_a_query_is(endpoints: list[str]) -> None:
    first = FakeController(endpoints[0], handle=silence)
    with Client(endpoints[0], timeout=PATIENCE_S) as client:
        removing = Asking(lambda: client.unregister("m"))
        looking = Asking(client.models)
        first.wait_for(Unregister)
        first.wait_for(Query)
        first.close()
        assert isinstance(removing.wait(), ConnectionLost)
        with FakeController(endpoints[0], handle=silence) as second:
            second.wait_for(Query)
            assert not second.of(Unregister)
            client.close()
            assert isinstance(looking.wait(), ConnectionLost)


def test_a_request_ends_when_its_time_is_over(endpoints: list[str]) -> None:
    with FakeController(endpoints[0], handle=silence) as first, Client(endpoints[0]) as client:
        in_time, timed = (
            Asking(lambda: client.infer("m", X, slo=0.001, timeout=PATIENCE_S)),
            Asking(lambda: client.infer("m", X, timeout=0.5)),
        )
        first.wait_for(InferRequest, 2)
        first.close()
        assert isinstance(in_time.wait(), DeadlineMissed)
        assert isinstance(timed.wait(), RequestTimeout | ConnectionLost)


def test_a_request_that_was_cancelled_is_not_asked_again(endpoints: list[str]) -> None:
    first = FakeController(endpoints[0], handle=silence)
    with Client(endpoints[0], timeout=PATIENCE_S) as client:
        cancelled, other = client.submit("m", X), client.submit("n", X)
        first.wait_for(InferRequest, 2)
        first.close()
        assert cancelled.cancel()
        with FakeController(endpoints[0]) as second:
            other.result(PATIENCE_S)
            eventually(lambda: second.of(InferRequest), "the other is asked again")
            assert [one.model for one in second.of(InferRequest)] == ["n"]


def test_wrong_lists_of_endpoints_are_refused_at_once(endpoints: list[str]) -> None:
    for wrong in (f"{endpoints[0]},", f"{endpoints[0]},nowhere", f"{endpoints[0]},tcp://"):
        with pytest.raises(ConfigError):
            Client(wrong)
    with pytest.raises(ConfigError, match="17 endpoints; at most 16"):
        Client(",".join(endpoints[:1] * (ENDPOINTS_MAX + 1)))


def test_a_connection_is_given_up_without_waiting_for_its_messages(
    monkeypatch: pytest.MonkeyPatch, endpoints: list[str]
) -> None:
    """Messages that wait for a lost controller would else delay the dialling of the next by LINGER_MS."""
    monkeypatch.setattr(transport, "LINGER_MS", round(10 * PATIENCE_S * 1000))
    first = FakeController(endpoints[0], handle=silence)
    with Client(",".join(endpoints), timeout=PATIENCE_S) as client:
        futures = [client.submit("m", np.zeros(1 << 20, np.float32)) for _ in range(16)]
        first.wait_for(InferRequest)
        first.close()  # most likely before it has read all of them
        with FakeController(endpoints[1]):
            for future in futures:
                assert future.result(PATIENCE_S).shape == (1 << 20,)
