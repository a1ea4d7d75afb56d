"""The client over real sockets, against a controller that does whatever a test needs."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from clockwork import (
    Client,
    ClockworkError,
    ConfigError,
    ConnectionLost,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    ProtocolMismatch,
    Refused,
    RequestTimeout,
    Unavailable,
)
from clockwork.client.channel import Channel, Owner
from clockwork.config.client import CLIENT_ASKS_AGAIN_MAX, CLIENT_LONE_CALLS
from clockwork.wire import transport
from clockwork.wire.keys import (
    ControllerKeys,
    PeerKeys,
    Role,
    read_controller_keys,
    read_peer_keys,
    write_keys,
)
from clockwork.wire.messages import (
    PROTOCOL_VERSION,
    Answer,
    Bye,
    Cancel,
    ClientHello,
    ClientWelcome,
    Goodbye,
    HelloNeeded,
    InferRequest,
    Mismatch,
    Progress,
    Query,
    Register,
    Reply,
    Status,
    Unregister,
    UploadAck,
    UploadChunk,
    UploadNeed,
)
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually
from tests.process.fake_controller import FakeController, echo, failing, silent

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def controller() -> Iterator[FakeController]:
    with FakeController() as controller:
        yield controller


@pytest.fixture
def client(controller: FakeController) -> Iterator[Client]:
    with Client(controller.endpoint, name="test") as client:
        yield client


def owner(client: Client) -> Owner:
    return client._channel._owner


# ----- infer ---------------------------------------------------------------------------------


def test_array_in_array_out(client: Client, controller: FakeController) -> None:
    y = client.infer("m", X, slo=0.05, priority=1)
    assert isinstance(y, np.ndarray)
    assert np.array_equal(y, X)
    assert controller.received[0] == ClientHello(PROTOCOL_VERSION, controller.received[0].version, "test")
    request = controller.of(InferRequest)[0]
    assert (request.model, request.slo_ns, request.priority) == ("m", 50_000_000, 1)


def test_dict_in_dict_out(client: Client) -> None:
    out = client.infer("m", {"a": X, "b": np.array(["x", "yz"])})
    assert isinstance(out, dict)
    assert np.array_equal(out["y"], X)
    assert out["y1"].tolist() == ["x", "yz"]


def test_large_arrays_and_odd_layouts_arrive_whole(client: Client) -> None:
    big = np.random.default_rng(1).standard_normal((8, 3, 224, 224), np.float32)
    assert np.array_equal(client.infer("m", big), big)
    assert np.array_equal(client.infer("m", big[::2, :, ::3].T), big[::2, :, ::3].T)


def test_a_lone_caller_does_its_own_io(client: Client) -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        client.infer("m", X)
        assert owner(client) is Owner.NOBODY
    assert set(threading.enumerate()) <= before


def test_nothing_is_sent_that_is_known_to_be_wrong(client: Client, controller: FakeController) -> None:
    for arguments in ({"slo": 0}, {"slo": float("nan")}, {"timeout": -1}, {"timeout": 0}, {"priority": -1}):
        with pytest.raises(InvalidInput):
            client.infer("m", X, **arguments)
        with pytest.raises(InvalidInput):
            client.submit("m", X, **arguments)
    client.infer("m", X)
    assert len(controller.of(InferRequest)) == 1


def test_failures_arrive_as_exceptions_by_both_ways(client: Client, controller: FakeController) -> None:
    controller.handle = failing(Status.REFUSED, "too late", {"reason": "deadline", "feasible_slo_ns": 10**9})
    with pytest.raises(Refused, match="too late") as caught:
        client.infer("m", X)
    assert (caught.value.reason, caught.value.feasible_slo, caught.value.retry_after) == (
        "deadline",
        1.0,
        None,
    )
    with pytest.raises(Refused, match="too late"):
        client.submit("m", X).result(PATIENCE_S)
    controller.handle = failing(Status.MODEL_NOT_FOUND, "no model 'm'")
    with pytest.raises(ModelNotFound):
        client.infer("m", X)


def test_a_damaged_answer_is_an_error_by_both_ways(client: Client, controller: FakeController) -> None:
    def lie(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        controller.send(identity, Answer(message.request_id, 1, [["y", 1, [99], 0]], [0] * 4), [b"1234"])

    controller.handle = lie
    with pytest.raises(ClockworkError, match="damaged"):
        client.infer("m", X)
    with pytest.raises(ClockworkError, match="damaged"):
        client.submit("m", X).result(PATIENCE_S)


# ----- many threads --------------------------------------------------------------------------


def test_many_threads_share_one_client_and_each_gets_its_own_answer(client: Client) -> None:
    def work(thread: int) -> int:
        rng = np.random.default_rng(thread)
        for index in range(40):
            x = np.full(int(rng.integers(1, 4000)), 1000 * thread + index, np.float32)
            y = client.submit("m", x).result(PATIENCE_S) if index % 3 == 0 else client.infer("m", x)
            assert isinstance(y, np.ndarray)
            assert y.shape == x.shape
            assert (y == x).all()
        return thread

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert list(pool.map(work, range(24))) == list(range(24))


def test_a_caller_hands_its_call_over_when_another_thread_comes(
    client: Client, controller: FakeController
) -> None:
    controller.handle = silent
    first = concurrent.futures.ThreadPoolExecutor(1)
    slow = first.submit(client.infer, "slow", X)
    request = controller.wait_for(InferRequest)[0]
    assert owner(client) is Owner.CALLER
    controller.handle = echo
    # the quick model's answer is not held up by the slow one
    assert np.array_equal(client.infer("quick", X), X)
    assert owner(client) is Owner.THREAD
    assert not slow.done()
    answer = Answer(request.request_id, 1, [["y", 1, [1], 0]], [0] * 4)
    controller.do(lambda: controller.send(controller.peers[0], answer, [bytes(4)]))
    assert slow.result(PATIENCE_S).tolist() == [0]
    first.shutdown()


def test_where_there_is_no_thread_to_be_had_every_call_ends_and_the_next_is_answered(
    client: Client, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        if thread.name == "clockwork-client":
            raise RuntimeError("can't start new thread")
        begin(thread)

    begin = threading.Thread.start
    controller.handle = silent
    with concurrent.futures.ThreadPoolExecutor(1) as first:
        slow = first.submit(client.infer, "slow", X)
        controller.wait_for(InferRequest)
        monkeypatch.setattr(threading.Thread, "start", start)
        for call in (lambda: client.infer("quick", X), lambda: slow.result(PATIENCE_S)):
            with pytest.raises(Unavailable, match="needs a thread for this: can't start new thread"):
                call()
    assert len(controller.wait_for(Cancel, 2)) == 2
    assert owner(client) is Owner.NOBODY
    controller.handle = echo
    assert np.array_equal(client.infer("m", X), X)


def test_the_thread_retires_and_callers_do_their_own_io_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submit("m", X).result(PATIENCE_S)
    thread = client._channel._thread
    assert thread is not None
    monkeypatch.setattr("clockwork.config.client.CLIENT_THREAD_IDLE_NS", 20_000_000)
    client.submit("m", X).result(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert owner(client) is Owner.NOBODY
    monkeypatch.undo()
    client.infer("m", X)
    assert owner(client) is Owner.NOBODY
    client.submit("m", X).result(PATIENCE_S)
    assert owner(client) is Owner.THREAD


def test_the_thread_leaves_a_lone_caller_in_a_loop_to_itself(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clockwork.config.client.CLIENT_THREAD_IDLE_NS", 2 * PATIENCE_NS)
    client.submit("m", X).result(PATIENCE_S)
    thread = client._channel._thread
    assert thread is not None
    for _ in range(CLIENT_LONE_CALLS - 1):
        client.infer("m", X)
    assert owner(client) is Owner.THREAD
    client.infer("m", X)
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it waits until it has been idle for long"
    client.infer("m", X)
    assert owner(client) is Owner.NOBODY


def test_a_callback_may_submit_but_not_wait(client: Client) -> None:
    def callback(_: Any) -> None:
        try:
            outcome.set_result((None, client.infer("m", X)))
        except ClockworkError as error:
            outcome.set_result((error, client.submit("m", X + 1)))

    for _ in range(100):
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
        client.submit("m", X).add_done_callback(callback)
        error, inner = outcome.result(PATIENCE_S)
        if error is not None:
            break
        # The answer came before add_done_callback(), which then calls on this thread: it may wait.
    assert "callback" in str(error)
    assert np.array_equal(inner.result(PATIENCE_S), X + 1)


def test_calls_are_bounded(
    client: Client, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.handle = silent
    monkeypatch.setattr("clockwork.config.client.CLIENT_CALLS_MAX", 8)
    futures = [client.submit("m", X) for _ in range(8)]
    with pytest.raises(Refused) as caught:
        client.submit("m", X)
    assert caught.value.reason == "overloaded"
    controller.wait_for(InferRequest, 8)
    for future in futures:
        future.cancel()
    controller.wait_for(Cancel, 8)


# ----- time and cancelling -------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [False, True])
def test_a_timeout_ends_the_call_and_cancels_the_request(
    client: Client, controller: FakeController, threaded: bool
) -> None:
    client.infer("m", X)
    if threaded:
        client.submit("m", X).result(PATIENCE_S)
    controller.handle = silent
    with pytest.raises(RequestTimeout, match=r"0\.05 s"):
        client.infer("m", X, timeout=0.05)
    assert controller.wait_for(Cancel)[0].request_id == controller.of(InferRequest)[-1].request_id


def test_a_timeout_of_a_future(client: Client, controller: FakeController) -> None:
    client.infer("m", X)
    controller.handle = silent
    with pytest.raises(RequestTimeout):
        client.submit("m", X, timeout=0.05).result(PATIENCE_S)
    controller.wait_for(Cancel)


def test_a_late_answer_is_dropped_and_harms_nothing(client: Client, controller: FakeController) -> None:
    client.infer("m", X)
    controller.handle = silent
    with pytest.raises(RequestTimeout):
        client.infer("m", X, timeout=0.02)
    late = Answer(controller.wait_for(InferRequest, 2)[1].request_id, 1, [["y", 1, [1], 0]], [0] * 4)
    controller.do(lambda: controller.send(controller.peers[0], late, [bytes(4)]))
    controller.handle = echo
    assert np.array_equal(client.infer("m", X), X)


def test_cancelling_a_future_cancels_the_request(client: Client, controller: FakeController) -> None:
    controller.handle = silent
    future = client.submit("m", X)
    request = controller.wait_for(InferRequest)[0]
    assert future.cancel()
    assert controller.wait_for(Cancel)[0].request_id == request.request_id
    assert future.cancelled()
    done, _ = concurrent.futures.wait([future], timeout=PATIENCE_S)
    assert done
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_a_future_that_is_done_cannot_be_cancelled(client: Client, controller: FakeController) -> None:
    future = client.submit("m", X)
    future.result(PATIENCE_S)
    assert not future.cancel()
    client.infer("m", X)
    assert not controller.of(Cancel)


@pytest.mark.parametrize("threaded", [False, True])
def test_ctrl_c_during_a_call_cancels_the_request(
    client: Client, controller: FakeController, threaded: bool
) -> None:
    client.infer("m", X)
    if threaded:
        client.submit("m", X).result(PATIENCE_S)

    def interrupt(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is InferRequest:
            os.kill(os.getpid(), signal.SIGINT)

    controller.handle = interrupt
    with pytest.raises(KeyboardInterrupt):
        client.infer("m", X)
    controller.wait_for(Cancel)
    controller.handle = echo
    assert np.array_equal(client.infer("m", X), X)


# ----- connections ---------------------------------------------------------------------------


def free_endpoint() -> str:
    with FakeController() as controller:
        return controller.endpoint


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clockwork.config.client.CLIENT_CONNECT_NS", 50_000_000)
    endpoint = free_endpoint()
    with Client(endpoint) as client:
        with pytest.raises(ConnectionLost, match=endpoint):
            client.infer("m", X)
        with pytest.raises(ConnectionLost, match=endpoint):
            client.submit("m", X).result(PATIENCE_S)
        assert not client._channel._waiting
        assert not client._channel._calls


def test_a_call_waits_for_a_controller_that_comes_up() -> None:
    endpoint = free_endpoint()
    with Client(endpoint) as client:
        direct = concurrent.futures.ThreadPoolExecutor(1).submit(client.infer, "m", X)
        future = client.submit("m", X)
        with FakeController(endpoint):
            assert np.array_equal(direct.result(PATIENCE_S), X)
            assert np.array_equal(future.result(PATIENCE_S), X)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_lost_connection_fails_what_was_sent_and_comes_back(threaded: bool) -> None:
    first = FakeController(handle=silent)
    with Client(first.endpoint, ask_again=False) as client:
        pool = concurrent.futures.ThreadPoolExecutor(4)
        calls = [pool.submit(client.infer, "m", X) for _ in range(4 if threaded else 1)]
        first.wait_for(InferRequest, len(calls))
        first.close()
        for call in calls:
            with pytest.raises(ConnectionLost, match="lost"):
                call.result(PATIENCE_S)
        with FakeController(first.endpoint) as second:
            assert np.array_equal(client.infer("m", X), X)
            assert type(second.received[0]) is ClientHello  # greeted before anything else was sent
        pool.shutdown()


def test_a_controller_that_forgot_the_client_is_greeted_again(controller: FakeController) -> None:
    with Client(controller.endpoint, ask_again=False) as client:
        client.infer("m", X)
        controller.handle = lambda c, identity, message, frames: c.send(identity, HelloNeeded(2))
        with pytest.raises(ConnectionLost, match="restarted"):
            client.infer("m", X)
        controller.handle = echo
        assert np.array_equal(client.infer("m", X), X)
        assert len(controller.of(ClientHello)) == 2


@pytest.mark.parametrize("farewell", [HelloNeeded(2), Goodbye()])
def test_a_controller_that_always_loses_the_client_is_asked_a_few_times(
    client: Client, controller: FakeController, farewell: Any
) -> None:
    client.infer("m", X)
    controller.handle = lambda c, identity, message, frames: c.send(identity, farewell)
    with pytest.raises(ConnectionLost, match=r"restarted|shut down"):
        client.infer("m", X)
    hellos = 1 + CLIENT_ASKS_AGAIN_MAX + (type(farewell) is HelloNeeded)
    assert len(controller.wait_for(ClientHello, hellos)) == hellos
    assert len(controller.of(InferRequest)) == 2 + CLIENT_ASKS_AGAIN_MAX


def test_goodbye_ends_what_was_sent(controller: FakeController) -> None:
    with Client(controller.endpoint, ask_again=False) as client:
        client.infer("m", X)
        controller.handle = lambda c, identity, message, frames: c.send(identity, Goodbye())
        with pytest.raises(ConnectionLost, match="shut down"):
            client.infer("m", X)


@pytest.mark.parametrize("threaded", [False, True])
def test_another_protocol(threaded: bool) -> None:
    with FakeController(greet=False) as controller, Client(controller.endpoint) as client:
        call = client.submit("m", X) if threaded else concurrent.futures.ThreadPoolExecutor(1).submit(
            client.infer, "m", X
        )  # fmt: skip
        controller.wait_for(ClientHello)
        controller.do(lambda: controller.send(controller.peers[0], Mismatch(9, "this controller speaks 9")))
        with pytest.raises(ProtocolMismatch, match="speaks 9"):
            call.result(PATIENCE_S)
        controller.greet = True  # the controller is upgraded meanwhile
        assert np.array_equal(client.infer("m", X), X)


def test_a_message_of_a_later_release_is_ignored() -> None:
    """A message of an unknown kind, once the client is let in; beside it, calls are answered as ever."""

    def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        controller.router.send(identity, msgpack.packb([63, 1, "news"]), ())
        echo(controller, identity, message, frames)

    x = np.arange(4, dtype=np.float32)
    with (
        FakeController(handle=handle) as controller,
        Client(controller.endpoint, timeout=PATIENCE_S) as client,
    ):
        for _ in range(2):
            np.testing.assert_array_equal(client.infer("m", x), x)


def test_a_welcome_in_another_protocol() -> None:
    with FakeController(greet=False) as controller, Client(controller.endpoint) as client:
        future = client.submit("m", X)
        controller.wait_for(ClientHello)
        welcome = ClientWelcome(PROTOCOL_VERSION + 1, "9.9", 1)
        controller.do(lambda: controller.send(controller.peers[0], welcome))
        with pytest.raises(ProtocolMismatch, match=f"protocol {PROTOCOL_VERSION + 1}"):
            future.result(PATIENCE_S)


def test_a_server_that_speaks_something_else(client: Client, controller: FakeController) -> None:
    client.infer("m", X)
    controller.handle = lambda c, identity, message, frames: c.router.send(identity, b"HTTP/1.1 200 OK")
    with pytest.raises(ProtocolMismatch, match="protocol"):
        client.infer("m", X)


def test_an_endpoint_that_is_none() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        Client("nonsense")


def test_the_environment_names_the_endpoint(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOCKWORK_ENDPOINT", controller.endpoint)
    with Client() as client:
        assert client.endpoint == controller.endpoint
        assert np.array_equal(client.infer("m", X), X)


def test_every_call_ends_whatever_happens_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads call, submit, cancel and time out while controllers come and go."""
    monkeypatch.setattr("clockwork.config.client.CLIENT_CONNECT_NS", 1_000_000_000)
    endpoint = free_endpoint()
    over = threading.Event()
    outcomes: collections.Counter[str] = collections.Counter()

    def work(client: Client, seed: int) -> None:
        rng = random.Random(seed)
        while not over.is_set():
            x = np.full(rng.choice((1, 100, 20_000)), seed, np.float32)
            try:
                match rng.randrange(4):
                    case 0:
                        future = client.submit("m", x)
                        future.cancel()
                        concurrent.futures.wait([future], PATIENCE_S)
                        assert future.done()
                    case 1:
                        assert (client.infer("m", x, timeout=0.002) == x).all()
                    case 2:
                        assert (client.submit("m", x).result(PATIENCE_S) == x).all()
                    case _:
                        assert (client.infer("m", x) == x).all()
                outcomes["answered"] += 1
            except (ConnectionLost, RequestTimeout) as error:
                outcomes[type(error).__name__] += 1

    with Client(endpoint) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, client, seed) for seed in range(8)]
        try:
            for _ in range(4):
                with FakeController(endpoint) as controller:
                    controller.wait_for(InferRequest, 100)
        finally:
            over.set()
        for worker in workers:
            worker.result(PATIENCE_S)
        monkeypatch.undo()
        with FakeController(endpoint):
            assert np.array_equal(client.infer("m", X), X)
    assert outcomes["answered"] > 100
    assert outcomes["ConnectionLost"] > 0


# ----- keys ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("keys")
    controller, client, _ = write_keys(
        directory, transport.new_key_pair(), {Role.CLIENT: transport.new_key_pair()}
    )
    return controller, client


@pytest.fixture
def locked(key_files: tuple[Path, Path]) -> Iterator[FakeController]:
    theirs = read_peer_keys(key_files[1]).public
    keys = dataclasses.replace(read_controller_keys(key_files[0]), allowed=(theirs,))
    with FakeController(keys=keys) as controller:
        yield controller


def test_keys_from_a_file(
    locked: FakeController, key_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(locked.endpoint, keys=key_files[1]) as client:
        assert np.array_equal(client.infer("m", X), X)
    monkeypatch.setenv("CLOCKWORK_KEY", str(key_files[1]))
    with Client(locked.endpoint) as client:
        assert np.array_equal(client.infer("m", X), X)


def test_keys_that_are_not_accepted(locked: FakeController, key_files: tuple[Path, Path]) -> None:
    controller_public = read_controller_keys(key_files[0]).public
    strangers = PeerKeys(*transport.new_key_pair(), controller_public)
    wrong_controller = PeerKeys(*transport.new_key_pair(), transport.new_key_pair()[0])
    for keys in (strangers, wrong_controller):
        with Client(locked.endpoint, keys=keys) as client:
            for _ in range(2):
                with pytest.raises(ConnectionLost, match="keys"):
                    client.infer("m", X)
            with pytest.raises(ConnectionLost, match="keys"):
                client.submit("m", X).result(PATIENCE_S)
    assert not locked.received


def test_no_keys_where_some_are_needed(locked: FakeController) -> None:
    with Client(locked.endpoint) as client, pytest.raises(ConnectionLost, match="--key"):
        client.infer("m", X)


def test_keys_that_the_controller_has_no_use_for(
    controller: FakeController, key_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clockwork.config.client.CLIENT_CONNECT_NS", 500_000_000)
    with Client(controller.endpoint, keys=key_files[1]) as client, pytest.raises(ConnectionLost):
        client.infer("m", X)


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        Client("tcp://127.0.0.1:1", keys=tmp_path / "absent.key")
    assert ControllerKeys is not PeerKeys


# ----- closing -------------------------------------------------------------------------------


def test_close_ends_every_call_and_says_goodbye(controller: FakeController) -> None:
    controller.handle = silent
    client = Client(controller.endpoint)
    pool = concurrent.futures.ThreadPoolExecutor(3)
    calls = [pool.submit(client.infer, "m", X) for _ in range(3)] + [client.submit("m", X)]
    controller.wait_for(InferRequest, 4)
    client.close()
    client.close()
    for call in calls:
        with pytest.raises(ConnectionLost, match="closed"):
            call.result(PATIENCE_S)
    controller.wait_for(Bye)
    with pytest.raises(ConnectionLost, match="closed"):
        client.infer("m", X)
    pool.shutdown()


def test_close_from_another_thread_ends_a_direct_call(controller: FakeController) -> None:
    controller.handle = silent
    client = Client(controller.endpoint)
    pool = concurrent.futures.ThreadPoolExecutor(1)
    call = pool.submit(client.infer, "m", X)
    controller.wait_for(InferRequest)
    client.close()
    with pytest.raises(ConnectionLost, match="closed"):
        call.result(PATIENCE_S)
    pool.shutdown()


def test_close_from_a_callback(controller: FakeController) -> None:
    client = Client(controller.endpoint)
    closed = threading.Event()

    def close(_: Any) -> None:
        client.close()
        closed.set()

    client.submit("m", X).add_done_callback(close)
    assert closed.wait(PATIENCE_S)
    controller.wait_for(Bye)


def test_a_client_that_is_dropped_leaves_nothing_open(controller: FakeController) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    for threaded in (False, True):
        client = Client(controller.endpoint)
        if threaded:
            client.submit("m", X).result(PATIENCE_S)
        else:
            client.infer("m", X)
        del client
    controller.wait_for(Bye, 2)
    controller.do(lambda: None)
    assert len(os.listdir("/proc/self/fd")) <= open_before + 2  # the controller's own descriptors may linger


def test_a_fork_is_told_so(client: Client) -> None:
    client.infer("m", X)
    pid = os.fork()
    if pid == 0:
        try:
            client.infer("m", X)
        except ClockworkError as error:
            client.close()
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert np.array_equal(client.infer("m", X), X)


# ----- models --------------------------------------------------------------------------------


def test_queries(client: Client, controller: FakeController) -> None:
    bodies = {
        "models": {"models": [{"name": "a", "version": 1}], "next": ""},
        "model": {"name": "a", "version": 2},
        "status": {"epoch": 5},
    }

    def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        body = bodies[message.what] if type(message) is Query else None
        controller.send(identity, Reply(message.request_id, body))

    controller.handle = handle
    assert [info.name for info in client.models()] == ["a"]
    assert client.model("a@2").version == 2
    assert client.status()["epoch"] == 5
    client.unregister("a")
    assert controller.of(Query)[1].argument == "a@2"
    assert controller.of(Unregister)[0].model == "a"


class Uploads:
    """A handler that accepts a package as a controller does, and checks that the window is respected."""

    def __init__(self, known: bool = False, window: int = 3, chunk_bytes: int = 100) -> None:
        self.known, self.window, self.chunk_bytes = known, window, chunk_bytes
        self.files: list[bytearray] = []
        self.unacknowledged = self.most = 0
        self.held: list[tuple[bytes, int]] = []
        self.register: Register | None = None

    def __call__(self, controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is Register:
            self.register = message
            self.files = [bytearray(row[1]) for row in message.files]
            if self.known:
                self.finish(controller, identity)
            else:
                controller.send(identity, UploadNeed(message.request_id, self.window, self.chunk_bytes))
        elif type(message) is UploadChunk:
            assert self.register is not None
            data = bytes(frames[0])
            assert 0 < len(data) <= self.chunk_bytes
            self.files[message.file][message.offset : message.offset + len(data)] = data
            self.unacknowledged += 1
            self.most = max(self.most, self.unacknowledged)
            total = sum(-(-row[1] // self.chunk_bytes) for row in self.register.files)
            if self.unacknowledged == self.window or len(controller.of(UploadChunk)) == total:
                count, self.unacknowledged = self.unacknowledged, 0
                controller.send(identity, UploadAck(message.request_id, count))
            if len(controller.of(UploadChunk)) == total:
                self.finish(controller, identity)

    def finish(self, controller: FakeController, identity: bytes) -> None:
        assert self.register is not None
        controller.send(identity, Progress(self.register.request_id, "prepare", 1, 2))
        controller.send(identity, Reply(self.register.request_id, {"name": self.register.name, "version": 1}))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(600, dtype=np.float32).reshape(3, 200), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 200])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(model, path)
    return path


def test_an_upload_keeps_its_window_and_arrives_whole(
    client: Client, controller: FakeController, model_file: Path
) -> None:
    controller.handle = uploads = Uploads()
    stages: list[tuple[str, int, int]] = []
    info = client.register(
        "small", model_file, slo=0.1, examples=np.zeros((2, 3), np.float32), batching="off", batch_max=4,
        progress=lambda *step: stages.append(step),
    )  # fmt: skip
    assert (info.name, info.version) == ("small", 1)
    assert bytes(uploads.files[0]) == model_file.read_bytes()
    assert uploads.register is not None
    assert [row[0] for row in uploads.register.files] == ["model.onnx", "examples.npz"]
    assert uploads.register.options == {"slo_ns": 100_000_000, "batching": "off", "batch_max": 4}
    assert uploads.most == uploads.window
    total = sum(row[1] for row in uploads.register.files)
    assert ("upload", total, total) in stages
    assert stages[-1] == ("prepare", 1, 2)


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ("ex.npz", "examples are arrays, not the path 'ex.npz': read the file first, as with dict(numpy.load('ex.npz'))"),
        (Path("ex.npz"), "not the path 'ex.npz'"),
        ([], "examples is empty"),
        ((), "examples is empty"),
    ],
)  # fmt: skip
def test_examples_that_are_none(client: Client, model_file: Path, examples: Any, says: str) -> None:
    with pytest.raises(InvalidModel, match=re.escape(says)):
        client.register("small", model_file, examples=examples)


def test_known_content_is_not_sent_again(
    client: Client, controller: FakeController, model_file: Path
) -> None:
    controller.handle = Uploads(known=True)
    assert client.register("small", model_file.read_bytes()).name == "small"
    assert not controller.of(UploadChunk)


def test_a_registration_that_fails(client: Client, controller: FakeController, model_file: Path) -> None:
    controller.handle = failing(Status.INVALID_MODEL, "no kernel for Foo")
    with pytest.raises(ClockworkError, match="no kernel"):
        client.register("small", model_file)
    controller.handle = silent
    with pytest.raises(RequestTimeout):
        client.register("small", model_file, timeout=0.05)
    controller.wait_for(Cancel)
    with pytest.raises(ClockworkError, match="ModelProto"):
        client.register("small", 3)


def test_a_registration_when_the_connection_is_lost(model_file: Path) -> None:
    controller = FakeController(handle=silent)
    with Client(controller.endpoint) as client:
        call = concurrent.futures.ThreadPoolExecutor(1).submit(client.register, "small", model_file)
        controller.wait_for(Register)
        controller.close()
        with pytest.raises(ConnectionLost):
            call.result(PATIENCE_S)


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="a pair of sockets has no number that is given away")
def test_a_wake_up_after_the_end_writes_into_nobodys_descriptor() -> None:
    """Another thread may be about to wake the owner when the client is closed and its descriptor's number
    reused."""
    channel = Channel("tcp://127.0.0.1:9", None, "test")
    number = channel._wakeup.fileno()
    channel.close()
    taken = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)]
    try:
        while taken[-1] != number:
            assert taken[-1] < number, "the number was not given away"
            taken.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        channel._wake(force=True)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(number)
    finally:
        for descriptor in taken:
            os.close(descriptor)


def test_the_owner_waits_for_a_thread_that_has_not_noted_its_wake_up_yet(
    client: Client, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is readable meanwhile: the owner would turn at full speed, against that thread."""
    channel = client._channel
    controller.handle = silent
    held = client.submit("m", X)  # from now on an I/O thread owns the socket
    eventually(lambda: channel._sleeping, "the owner sleeps")
    turns, pump = 0, channel._pump
    write = channel._wakeup.set

    def count(*arguments: Any) -> None:
        nonlocal turns
        turns += 1
        pump(*arguments)

    def write_and_linger() -> None:
        write()
        for _ in range(1_000):
            time.sleep(0)  # other threads get the interpreter

    monkeypatch.setattr(channel, "_pump", count)
    monkeypatch.setattr(channel._wakeup, "set", write_and_linger)
    other = client.submit("m", X)
    assert turns < 100
    for future in (held, other):
        future.cancel()
