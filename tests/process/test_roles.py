"""The table of clockwork.wire.roles, tested live: every message with every role, every call of a gateway with
every token.

Also keys that are revoked, added, broken, or from before there were roles.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from clockwork import Client
from clockwork.controller.peers.access import Access
from clockwork.controller.process import Controller
from clockwork.errors import ClockworkError, ConfigError, ConnectionLost, Forbidden, ModelNotFound
from clockwork.system.clock import SECOND
from clockwork.wire import messages, roles
from clockwork.wire.inflow import Inflow
from clockwork.wire.keys import (
    ALLOWED_FILE,
    CONTROLLER_KEY_FILE,
    KEY_FILES,
    LEGACY_KEY_FILE,
    PeerKeys,
    add_key,
    read_allowed_keys,
    read_controller_keys,
    read_peer_keys,
    revoke_key,
    write_keys,
)
from clockwork.wire.messages import FROM_CLIENT, FROM_WORKER, PROTOCOL_VERSION, TO_CLIENT, TO_WORKER, Status
from clockwork.wire.roles import ANY_ROLE, DEEDS, MESSAGES, PORTS, QUERIES, ControllerSocket, Role
from clockwork.wire.transport import Poller, Transport, new_key_pair
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually
from tests.process.peers import FakeWorker, Peer, RawClient, running_controller
from tests.process.python_router import PythonRouter

LEGACY = "legacy"
"""In place of a role: the key that was made before there were roles."""

WHO = [*Role, LEGACY]
ROW = [1.5, -2.5]

DEVICE = {
    "kind": "cpu", "name": "fake", "fingerprint": "test", "page_bytes": 4096, "page_count": 4, "run_ahead": 2,
}  # fmt: skip
NOTHING = [0, 0, 0]

FROM_CLIENTS: dict[type, Any] = {
    messages.ClientHello: messages.ClientHello(PROTOCOL_VERSION, "test", "test"),
    messages.InferRequest: messages.InferRequest(1, "m", 0, 0, []),
    messages.Cancel: messages.Cancel(1),
    messages.Register: messages.Register(1, "m", [], {}),
    messages.UploadChunk: messages.UploadChunk(1, 0, 0),
    messages.Unregister: messages.Unregister(1, "m"),
    messages.Query: messages.Query(1, "models", ""),
    messages.Bye: messages.Bye(),
    messages.Route: messages.Route(1, "m", [], []),
    messages.Promote: messages.Promote(1, "m", 1),
    messages.Rollback: messages.Rollback(1, "m"),
    messages.Offer: messages.Offer(1, "m", True),
    messages.ReportSource: messages.ReportSource(1, "s3://bucket/models", "away"),
    messages.HandOver: messages.HandOver(1),
}
FROM_WORKERS: dict[type, Any] = {
    messages.WorkerHello: messages.WorkerHello(PROTOCOL_VERSION, "test", "fake", 1, [DEVICE]),
    messages.Heartbeat: messages.Heartbeat(1, 1, {}),
    messages.Pong: messages.Pong(1, 1, 1),
    messages.Result: messages.Result(7, Status.TOO_LATE, "", 1, NOTHING, NOTHING, NOTHING, []),
    messages.Fetch: messages.Fetch("0" * 64, 0, 0, 1),
    messages.Chunk: messages.Chunk("0" * 64, 0, 0, Status.INTERNAL),
    messages.Prepared: messages.Prepared(1, Status.INTERNAL, "no", {}),
    messages.BundleWanted: messages.BundleWanted(1),
    messages.BundleRefused: messages.BundleRefused(1, "no"),
    messages.NotStored: messages.NotStored(1, ""),
    messages.StillResident: messages.StillResident(1, 0, 1, [0]),
    messages.DeviceFault: messages.DeviceFault(0, "broken"),
    messages.ClockChanged: messages.ClockChanged(0, 1000),
    messages.TimeNeeded: messages.TimeNeeded(0, 1, 0, []),
    messages.Goodbye: messages.Goodbye(),
}
"""A message of each kind: whether the controller can do anything with it does not matter here."""


lists_of_words = st.lists(
    st.tuples(
        st.sampled_from([*map(str, Role), "king", "#"]), st.sampled_from(["k" * 40, "k" * 39, "q" * 40]),
        st.sampled_from(["a", "b", "a b", ""]),
    ).map(" ".join),
).map(lambda lines: "\n".join(lines).encode())  # fmt: skip
"""Lists of keys that are nearly right."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of keys of every role, and of a key from before there were roles."""
    directory = tmp_path_factory.mktemp("keys")
    return make_keys(directory)


def make_keys(directory: Path) -> Path:
    write_keys(directory, new_key_pair(), {role: new_key_pair() for role in Role})
    path, pair = directory / CONTROLLER_KEY_FILE, new_key_pair()
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"allowed": [pair[0]]}))
    peer = {"public": pair[0], "secret": pair[1], "controller": body["public"]}
    (directory / LEGACY_KEY_FILE).write_text(json.dumps(peer))
    return directory


def key_of(directory: Path, who: str) -> PeerKeys:
    return read_peer_keys(directory / (LEGACY_KEY_FILE if who == LEGACY else KEY_FILES[Role(who)]))


def roles_of(who: str) -> frozenset[Role]:
    return ANY_ROLE if who == LEGACY else frozenset({Role(who)})


@pytest.fixture(scope="module")
def controller(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    data = tmp_path_factory.mktemp("data")
    with running_controller(data, key=keys / CONTROLLER_KEY_FILE) as controller:
        yield controller


# ----- the table ---------------------------------------------------------------------------------


def test_the_table_has_every_message_and_every_query(controller: Controller, keys: Path) -> None:
    assert set(MESSAGES) == {*FROM_CLIENT.values(), *FROM_WORKER.values()}
    assert set(FROM_CLIENTS) == set(FROM_CLIENT.values())
    assert set(FROM_WORKERS) == set(FROM_WORKER.values())
    assert set(PORTS) == set(ControllerSocket)
    for kind, may in MESSAGES.items():
        port = ControllerSocket.CLIENTS if kind in FROM_CLIENTS else ControllerSocket.WORKERS
        assert may <= PORTS[port], f"{kind.__name__} is for a role that never reaches the port"
        assert may == PORTS[port] or kind in DEEDS, f"a refusal has no words for {kind.__name__}"
    for what, may in QUERIES.items():
        assert may == PORTS[ControllerSocket.CLIENTS] or what in DEEDS, f"a refusal has no words for {what}"
    with RawClient(controller, keys=key_of(keys, Role.CLIENT)) as client:
        client.send(messages.Query(1, "nonsense", ""))
        failure, _ = client.receive(messages.Failure)
        assert set(re.findall(r"\w+", failure.text.partition("not")[0])) - {
            "a",
            "query",
            "is",
            "for",
            "or",
        } == {*QUERIES}


@pytest.mark.parametrize("who", WHO)
def test_every_message_of_a_client_with_every_role(controller: Controller, keys: Path, who: str) -> None:
    with Peer(controller.client_endpoint, TO_CLIENT, key_of(keys, who)) as peer:
        assert peer.is_refused == PORTS[ControllerSocket.CLIENTS].isdisjoint(roles_of(who))
        if peer.is_refused:
            return
        peer.send(FROM_CLIENTS[messages.ClientHello])
        peer.receive(messages.ClientWelcome)
        asked = [(kind, message, MESSAGES[kind]) for kind, message in FROM_CLIENTS.items()]
        asked += [(messages.Query, messages.Query(1, what, ""), may) for what, may in QUERIES.items()]
        for kind, message, may in asked:
            frames = [b""] if kind is messages.UploadChunk else []
            peer.send(message, *frames)
            peer.send(messages.Query(99, "status", ""))  # behind any answer to the message
            answers = []
            while True:
                answer, _ = peer.receive()
                if type(answer) is messages.HelloNeeded or getattr(answer, "request_id", 0) == 99:
                    break
                answers.append(answer)
            if type(answer) is messages.HelloNeeded:
                assert kind is messages.Bye
                peer.send(FROM_CLIENTS[messages.ClientHello])
                peer.receive(messages.ClientWelcome)
            forbidden = [
                one for one in answers if type(one) is messages.Failure and one.status == Status.FORBIDDEN
            ]
            assert bool(forbidden) == may.isdisjoint(roles_of(who)), (message, answers)
            for one in forbidden:
                assert DEEDS[getattr(message, "what", kind)] in one.text
                assert f"({who})" in one.text


@pytest.mark.parametrize("who", WHO)
def test_every_message_of_a_worker_with_every_role(controller: Controller, keys: Path, who: str) -> None:
    with Peer(controller.worker_endpoint, TO_WORKER, key_of(keys, who)) as peer:
        assert peer.is_refused == PORTS[ControllerSocket.WORKERS].isdisjoint(roles_of(who))
        if peer.is_refused:
            return
        for kind, message in FROM_WORKERS.items():
            peer.send(message)
            if kind is messages.WorkerHello:
                peer.receive(messages.WorkerWelcome)
        peer.send(messages.Fetch("1" * 64, 0, 0, 1))  # the answer to this message comes behind all others
        while True:
            answer, _ = peer.receive()
            assert type(answer) is not messages.Mismatch, answer
            if type(answer) is messages.Chunk and answer.digest == "1" * 64:
                break


@pytest.mark.parametrize("who", WHO)
def test_events_with_every_role(controller: Controller, keys: Path, who: str) -> None:
    key = key_of(keys, who)
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        monitor = socket.get_monitor_socket()
        socket.set(zmq.LINGER, 0)
        socket.curve_publickey, socket.curve_secretkey = key.public.encode(), key.secret.encode()
        socket.curve_serverkey = key.controller.encode()
        socket.subscribe(b"")
        socket.connect(controller.events_endpoint)
        refused = PORTS[ControllerSocket.EVENTS].isdisjoint(roles_of(who))
        wanted = zmq.EVENT_HANDSHAKE_FAILED_AUTH if refused else zmq.EVENT_HANDSHAKE_SUCCEEDED
        seen = set()
        while wanted not in seen:
            assert monitor.poll(PATIENCE_NS // 1_000_000), seen
            seen.add(int.from_bytes(monitor.recv_multipart()[0][:2], "little"))
        assert (zmq.EVENT_HANDSHAKE_SUCCEEDED in seen) != refused
        assert refused or socket.poll(PATIENCE_NS // 1_000_000), "counts come four times a second"
        monitor.close(0)


def test_without_keys_everything_is_allowed(tmp_path: Path) -> None:
    with running_controller(tmp_path) as controller, RawClient(controller) as client:
        client.send(messages.Unregister(1, "m"))
        failure, _ = client.receive(messages.Failure)
        assert failure.status == Status.MODEL_NOT_FOUND


# ----- revoking ----------------------------------------------------------------------------------


@pytest.fixture
def own_keys(tmp_path: Path) -> Path:
    """Keys that a test may revoke; alice's is a second key of every role."""
    directory = make_keys(tmp_path / "keys")
    for role in Role:
        add_key(directory, role, f"alice-{role}", new_key_pair())
    return directory


@pytest.fixture
def own(own_keys: Path, tmp_path: Path) -> Iterator[Controller]:
    with running_controller(tmp_path / "data", key=own_keys / CONTROLLER_KEY_FILE) as controller:
        yield controller


def alice(directory: Path, role: Role) -> PeerKeys:
    return read_peer_keys(directory / f"alice-{role}.key")


@pytest.mark.parametrize("role", [Role.CLIENT, Role.OPERATOR, Role.GATEWAY])
def test_a_revoked_clients_connection_ends_and_the_others_go_on(
    own: Controller, own_keys: Path, role: Role
) -> None:
    with ExitStack() as stack:
        worker = stack.enter_context(FakeWorker(own, keys=key_of(own_keys, Role.WORKER)))
        operator = stack.enter_context(RawClient(own, keys=key_of(own_keys, Role.OPERATOR)))
        with worker.preparing():
            assert type(operator.register("m", b"m")) is messages.Reply
        leaving = stack.enter_context(RawClient(own, keys=alice(own_keys, role)))
        leaving.infer("m", 5, [1, 2], bytes(8))
        eventually(lambda: own._exchange.held_count == 1, "the request is held")
        revoke_key(own_keys, f"alice-{role}")
        leaving.wait_for_end()
        eventually(lambda: own._exchange.held_count == 0, "and cancelled with its connection")
        with Peer(own.client_endpoint, TO_CLIENT, alice(own_keys, role)) as again:
            assert again.is_refused
        with (
            Client(own.client_endpoint, keys=own_keys / f"alice-{role}.key", timeout=PATIENCE_S) as client,
            pytest.raises(ConnectionLost, match="key"),
        ):
            client.models()
        operator.infer("m", 6, [1, 2], bytes(8))
        thread = threading.Thread(target=worker.serve_one)
        thread.start()
        answer, _ = operator.receive(messages.Answer)
        assert answer.request_id == 6
        thread.join()
        assert len(own._links.clients) == 1


def test_a_revoked_workers_connection_ends_and_its_work_is_anothers(own: Controller, own_keys: Path) -> None:
    with ExitStack() as stack:
        leaving = stack.enter_context(FakeWorker(own, 1, keys=alice(own_keys, Role.WORKER)))
        staying = stack.enter_context(FakeWorker(own, 2, keys=key_of(own_keys, Role.WORKER)))
        eventually(lambda: len(own._links.workers) == 2, "both are there")
        revoke_key(own_keys, f"alice-{Role.WORKER}")
        leaving.wait_for_end()
        eventually(lambda: [one.name for one in own._links.workers.values()] == ["fake2"], "one is left")
        with Peer(own.worker_endpoint, TO_WORKER, alice(own_keys, Role.WORKER)) as again:
            assert again.is_refused
        staying.send(messages.Fetch("1" * 64, 0, 0, 1))
        staying.receive(messages.Chunk)


def test_a_connection_that_said_nothing_before_its_key_was_revoked_is_not_let_in_after(
    own: Controller, own_keys: Path
) -> None:
    with (
        Peer(own.client_endpoint, TO_CLIENT, alice(own_keys, Role.CLIENT)) as client,
        Peer(own.worker_endpoint, TO_WORKER, alice(own_keys, Role.WORKER)) as worker,
    ):
        revoke_key(own_keys, f"alice-{Role.CLIENT}")
        revoke_key(own_keys, f"alice-{Role.WORKER}")
        eventually(
            lambda: (
                not own._access.admit(ControllerSocket.CLIENTS, alice(own_keys, Role.CLIENT).public)
                and not own._access.admit(ControllerSocket.WORKERS, alice(own_keys, Role.WORKER).public)
            ),
            "the list is read again",
        )
        for peer, hello in (
            (client, FROM_CLIENTS[messages.ClientHello]),
            (worker, FROM_WORKERS[messages.WorkerHello]),
        ):
            peer.send(hello)
            answer, _ = peer.receive(messages.Mismatch)
            assert "revoked" in answer.text
        assert not own._links.clients
        assert not own._links.workers


def test_a_revoked_listener_hears_nothing_more_and_the_others_do(own: Controller, own_keys: Path) -> None:
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        sockets = []
        for key in (alice(own_keys, Role.OPERATOR), key_of(own_keys, Role.OPERATOR)):
            socket = stack.enter_context(context.socket(zmq.SUB))
            socket.set(zmq.LINGER, 0)
            socket.curve_publickey, socket.curve_secretkey = key.public.encode(), key.secret.encode()
            socket.curve_serverkey = key.controller.encode()
            socket.subscribe(b"")
            socket.connect(own.events_endpoint)
            sockets.append(socket)
        leaving, staying = sockets
        patience_ms = PATIENCE_NS // 1_000_000
        assert leaving.poll(patience_ms)
        assert staying.poll(patience_ms)
        revoke_key(own_keys, f"alice-{Role.OPERATOR}")
        eventually(
            lambda: not own._access.admit(ControllerSocket.EVENTS, alice(own_keys, Role.OPERATOR).public),
            "the list is read again",
        )
        while staying.poll(0):
            staying.recv_multipart()
        for _ in range(3):  # requests after the key has come back
            assert staying.poll(patience_ms)
            staying.recv_multipart()
        while leaving.poll(0):
            leaving.recv_multipart()
        for _ in range(3):
            assert staying.poll(patience_ms)
            staying.recv_multipart()
        assert not leaving.poll(0)


def test_a_key_that_is_added_is_let_in_and_one_whose_role_changes_has_the_new_one(
    own: Controller, own_keys: Path
) -> None:
    add_key(own_keys, Role.CLIENT, "bob", new_key_pair())
    bob = read_peer_keys(own_keys / "bob.key")
    eventually(lambda: own._access.admit(ControllerSocket.CLIENTS, bob.public), "the list is read again")
    with Client(own.client_endpoint, keys=bob, timeout=PATIENCE_S) as client:
        with pytest.raises(
            Forbidden, match=r"^removing models is for operators; .*\(bob\) is of the role client"
        ):
            client.unregister("m")
        path = own_keys / ALLOWED_FILE
        path.write_text(re.sub(r"client  ( \S+ bob)", r"operator\1", path.read_text()))
        eventually(
            lambda: own._access._roles[bob.public] == frozenset({Role.OPERATOR}), "the list is read again"
        )

        def asks() -> str:
            try:
                client.unregister("m")
            except ClockworkError as error:
                return type(error).__name__
            return ""

        eventually(lambda: asks() == ModelNotFound.__name__, "it may unregister after a new connection")


def test_a_list_that_is_broken_or_gone_changes_nothing_and_is_told(own: Controller, own_keys: Path) -> None:
    path = own_keys / ALLOWED_FILE
    good = path.read_text()
    with Client(own.client_endpoint, keys=own_keys / "alice-operator.key", timeout=PATIENCE_S) as client:

        def troubles() -> list[str]:
            return [one["text"] for one in client.status()["troubles"]["open"]]

        assert troubles() == []
        for broken, words in (
            ("operator x alice\n", "40 characters"),
            (good + "king " + "0" * 40 + " bob\n", "a role is"),
            (good + good.splitlines()[-1] + "\n", "is in line before already"),
            ("client\n", "got 1 words"),
            (None, "cannot be read"),
        ):
            if broken is None:
                path.unlink()
            else:
                path.write_text(broken)
            eventually(lambda: any(words in text for text in troubles()), words)  # noqa: B023
        path.write_text(good)
        eventually(lambda: troubles() == [], "it is mended")


# ----- from before there were roles ---------------------------------------------------------------


def test_keys_from_before_there_were_roles_do_everything_with_a_warning_until_they_are_revoked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = new_key_pair(), new_key_pair()
    controller_key, peer_key = tmp_path / CONTROLLER_KEY_FILE, tmp_path / LEGACY_KEY_FILE
    controller_key.write_text(json.dumps({"public": ours[0], "secret": ours[1], "allowed": [theirs[0]]}))
    peer_key.write_text(json.dumps({"public": theirs[0], "secret": theirs[1], "controller": ours[0]}))
    keys = read_peer_keys(peer_key)
    with (
        caplog.at_level(logging.WARNING, "clockwork.controller"),
        running_controller(tmp_path / "data", key=controller_key) as controller,
    ):
        assert "1 keys of" in caplog.text
        assert "may do everything" in caplog.text
        with FakeWorker(controller, keys=keys) as worker, RawClient(controller, keys=keys) as client:
            with worker.preparing():
                assert type(client.register("m", b"m")) is messages.Reply
            add_key(tmp_path, Role.OPERATOR, "alice", new_key_pair())  # a second key beside the old one
            eventually(
                lambda: controller._access.admit(
                    ControllerSocket.CLIENTS, read_peer_keys(tmp_path / "alice.key").public
                ),
                "the new key is let in",
            )
            client.send(messages.Query(1, "status", ""))
            client.receive(messages.Reply)
            assert revoke_key(tmp_path, str(peer_key)) == [f"{keys.public} (any role)"]
            client.wait_for_end()
            worker.wait_for_end()
        with Client(controller.client_endpoint, keys=tmp_path / "alice.key", timeout=PATIENCE_S) as new:
            assert [one.name for one in new.models()] == ["m"]


def test_a_controller_without_a_list_does_not_start(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    key = tmp_path / "keys" / CONTROLLER_KEY_FILE
    body = json.loads(key.read_text())
    key.write_text(json.dumps(body | {"allowed": []}))
    (tmp_path / "keys" / ALLOWED_FILE).unlink()
    with (
        pytest.raises(ConfigError, match=r"allowed\.keys cannot be read"),
        running_controller(tmp_path, key=key),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="--allowed"),
        running_controller(tmp_path, allowed=tmp_path / "x"),
    ):
        pass


# ----- the files ---------------------------------------------------------------------------------


def test_what_the_files_and_commands_refuse(tmp_path: Path) -> None:
    make_keys(tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        make_keys(tmp_path)
    with pytest.raises(ConfigError, match="of the name client already"):
        add_key(tmp_path, Role.WORKER, "client", new_key_pair())
    for name in ("", "two words", "../up", "x" * 65):
        with pytest.raises(ConfigError, match="a key's name"):
            add_key(tmp_path, Role.WORKER, name, new_key_pair())
    with pytest.raises(ConfigError, match="keys list"):
        revoke_key(tmp_path, "nobody")
    (tmp_path / "other.key").write_text("[")
    with pytest.raises(ConfigError, match=r"other\.key is not JSON"):
        revoke_key(tmp_path, "other.key")
    (tmp_path / "other.key").unlink()
    before = (tmp_path / ALLOWED_FILE).read_text()
    client = read_peer_keys(tmp_path / KEY_FILES[Role.CLIENT])
    assert revoke_key(tmp_path, KEY_FILES[Role.CLIENT]) == ["client (client)"]
    (tmp_path / ALLOWED_FILE).write_text(before)
    assert revoke_key(tmp_path, client.public) == ["client (client)"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    legacy = key_of(tmp_path, LEGACY).public
    assert revoke_key(tmp_path, LEGACY_KEY_FILE) == [f"{legacy} (any role)"]
    assert read_controller_keys(tmp_path / CONTROLLER_KEY_FILE).allowed == ()
    for path in tmp_path.iterdir():
        assert (path.stat().st_mode & 0o077 == 0) == (path.name not in (ALLOWED_FILE, LEGACY_KEY_FILE)), path


# ----- ending a connection -------------------------------------------------------------------------


@pytest.mark.parametrize("with_keys", [False, True], ids=["open", "curve"])
@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_one_connection_of_a_router_can_be_ended(tmp_path: Path, kind: str, with_keys: bool) -> None:
    directory = make_keys(tmp_path)
    ours = read_controller_keys(directory / CONTROLLER_KEY_FILE) if with_keys else None
    theirs = key_of(directory, LEGACY) if with_keys else None
    transport = Transport()
    try:
        endpoint = "tcp://127.0.0.1:0" if kind == "tcp" else f"ipc://{tmp_path}/s"
        router = PythonRouter(transport, endpoint, ours)
        poller = Poller([router])
        with Peer(router.endpoint, {}, theirs) as first, Peer(router.endpoint, {}, theirs) as other:
            descriptors = []
            for peer in (first, other):
                assert peer.dealer.send(b"hello")
                while (got := router.receive()) is None:
                    poller.wait(SECOND)
                descriptors.append(got[1])
            Inflow(descriptors[0], 0).end()
            first.wait_for_end()
            Inflow(1 << 20, 0).end()  # end() does nothing for a descriptor without a connection
            assert other.dealer.send(b"still here")
            while (got := router.receive()) is None or bytes(got[2][0]) != b"still here":
                poller.wait(SECOND)
            assert got[1] == descriptors[1]
    finally:
        transport.close()


def test_roles_are_named_in_one_place() -> None:
    """A right of HTTP and gRPC with another spelling would be no right."""
    assert {*roles.HTTP.values(), *roles.GRPC.values()} == set(roles.Right)


def test_a_list_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    """An editor may empty the file first: users not yet written would be cut off."""
    directory = make_keys(tmp_path)
    path = directory / ALLOWED_FILE
    good = path.read_text()
    writes = itertools.count(1)

    def write(text: str) -> None:
        path.write_text(text)
        at_ns = (
            next(writes) * SECOND
        )  # two writes within a tick of the file system's clock cannot be distinguished
        os.utime(path, ns=(at_ns, at_ns))

    write(good)
    access = Access(directory / CONTROLLER_KEY_FILE)
    assert not access.has_changed()
    write("")
    assert not access.has_changed()
    write(good)
    assert not access.has_changed()
    assert access.has_changed()
    assert access.read_again() == frozenset()
    assert not access.has_changed()
    write("")
    assert not access.has_changed()
    assert access.has_changed()
    assert len(access.read_again()) == len(Role)


def test_a_connection_that_is_refused_is_told_by_name_and_counted(
    own: Controller, own_keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "clockwork.controller"):
        for endpoint, who in (
            (own.client_endpoint, Role.WORKER), (own.worker_endpoint, Role.CLIENT),
        ):  # fmt: skip
            with Peer(endpoint, TO_CLIENT, alice(own_keys, who)) as peer:
                assert peer.is_refused
        pair = new_key_pair()
        stranger = PeerKeys(*pair, alice(own_keys, Role.CLIENT).controller)
        with Peer(own.client_endpoint, TO_CLIENT, stranger) as peer:
            assert peer.is_refused
        eventually(lambda: own._complaints.counts()["key refused"] == 3, "they are counted")
    for words in (
        "a connection to clockwork.clients was refused: the key alice-worker is of the role worker",
        "a connection to clockwork.workers was refused: the key alice-client is of the role client",
        "a connection to clockwork.clients was refused: its key is on no list",
    ):
        assert words in caplog.text
    assert pair[0] not in caplog.text


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode), lists_of_words))
def test_a_list_of_any_bytes_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.keys"
    path.write_bytes(data)
    found, said = {}, ""
    try:
        found = dict(read_allowed_keys(path))
    except ConfigError as error:
        said = str(error)
    assert not said or (str(path) in said and "line" in said)
    assert all(row.role in Role and len(public) == 40 for public, row in found.items())
