"""Which peers may stay connected to a controller, and which are closed when there is no room for all."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from bench import zmtp
from clockwork import Client
from clockwork.client.loop import LoopClient
from clockwork.config.controller import UPLOADS_MAX, ConnectionBounds
from clockwork.controller._exchange import CLIENTS, WORKERS
from clockwork.launch.local import held_ports
from clockwork.system.clock import SECOND
from clockwork.system.limits import raise_descriptor_limit
from clockwork.wire import codec, keys, messages, transport
from tests.patience import eventually
from tests.process.cluster import Program
from tests.process.peers import FakeWorker, RawClient, on_loop, prepared_model, running_controller
from tests.process.test_controller_connections import running

AT_ONCE = ConnectionBounds(greeted=4, idle_ns=0)
NEVER = ConnectionBounds(greeted=4, idle_ns=3_600 * SECOND)


def greeted(stack: contextlib.ExitStack, endpoint: str) -> socket.socket:
    """A connection that has sent hello, and been welcomed."""
    one = stack.enter_context(zmtp.open_connection(endpoint))
    one.sendall(zmtp.client_hello())
    zmtp.read_message(one)
    return one


@pytest.mark.parametrize("side", [CLIENTS, WORKERS])
def test_a_connection_without_a_hello_has_seconds(tmp_path: Path, side: int) -> None:
    bounds = ConnectionBounds(hello_ns=SECOND // 5)
    with (
        running(tmp_path, client_bounds=bounds, worker_bounds=bounds) as place,
        contextlib.ExitStack() as stack,
    ):
        client = stack.enter_context(RawClient(place.controller))
        worker = stack.enter_context(FakeWorker(place.controller))
        endpoint = place.controller.client_endpoint if side == CLIENTS else place.controller.worker_endpoint
        dialled = stack.enter_context(zmtp.dial(endpoint))
        silent = stack.enter_context(zmtp.open_connection(endpoint))
        eventually(lambda: zmtp.is_shut(dialled) and zmtp.is_shut(silent), "both are ended")
        assert place.connections(side)["cut"] == {"silent": 2}
        client.send(messages.Query(1, "status", ""))
        client.receive(messages.Reply)
        worker.receive(messages.Ping)


def test_the_idlest_client_gives_way_to_a_newcomer(tmp_path: Path) -> None:
    with running(tmp_path, client_bounds=AT_ONCE) as place, contextlib.ExitStack() as stack:
        first, second = (greeted(stack, place.controller.client_endpoint) for _ in range(2))
        others = [stack.enter_context(RawClient(place.controller)) for _ in range(2)]
        first.sendall(zmtp.message([codec.encode(messages.Query(1, "status", ""))]))
        zmtp.read_message(first)
        stack.enter_context(RawClient(place.controller))
        assert codec.decode(zmtp.read_message(second)[0], messages.TO_CLIENT) == messages.Goodbye()
        assert place.noted() == (4, 0)
        for one in others:
            one.send(messages.Query(2, "status", ""))
            one.receive(messages.Reply)


def test_a_client_that_waits_for_a_registration_keeps_its_seat(tmp_path: Path) -> None:
    bounds = ConnectionBounds(greeted=2, idle_ns=0)
    with running(tmp_path, client_bounds=bounds) as place, contextlib.ExitStack() as stack:
        worker = stack.enter_context(FakeWorker(place.controller))
        waiting = stack.enter_context(RawClient(place.controller))
        file = ["model.onnx", 5, hashlib.sha256(b"model").hexdigest()]
        waiting.send(messages.Register(1, "m", [file], {}))
        waiting.receive(messages.UploadNeed)
        waiting.send(messages.UploadChunk(1, 0, 0), b"model")
        prepare, _ = worker.receive(messages.Prepare)
        idle = greeted(stack, place.controller.client_endpoint)
        stack.enter_context(RawClient(place.controller))
        assert codec.decode(zmtp.read_message(idle)[0], messages.TO_CLIENT) == messages.Goodbye()
        summary = prepared_model(digest=prepare.digest).summary()
        worker.send(messages.Prepared(prepare.model_id, messages.Status.OK, "", summary))
        assert waiting.receive(messages.Reply)[0].request_id == 1
        # From now on it waits for nothing, and is silent.
        stack.enter_context(RawClient(place.controller))
        stack.enter_context(RawClient(place.controller))
        waiting.receive(messages.Goodbye)


def test_a_client_that_gave_way_is_served_again_when_it_is_used(tmp_path: Path) -> None:
    with running(tmp_path, client_bounds=AT_ONCE) as place, contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(place.controller.client_endpoint))
        assert client.status()["clients"] == 1
        for _ in range(4):
            greeted(stack, place.controller.client_endpoint)
        eventually(lambda: place.connections(CLIENTS)["open"] == 4, "the client hung up, and stays away")
        assert client.status()["clients"] == 4


def test_a_gateways_client_that_gave_way_is_served_again_when_it_is_used(tmp_path: Path) -> None:
    with running(tmp_path, client_bounds=AT_ONCE) as place, contextlib.ExitStack() as stack:

        def fill() -> None:
            for _ in range(4):
                greeted(stack, place.controller.client_endpoint)
            eventually(lambda: place.connections(CLIENTS)["open"] == 4, "the client hung up, and stays away")

        async def use() -> None:
            async with LoopClient(place.controller.client_endpoint) as client:
                client.start()
                assert await client.why_not_ready() == "no worker is connected"
                await asyncio.to_thread(fill)
                assert await client.why_not_ready() == "no worker is connected"

        asyncio.run(use())


def test_where_no_client_is_idle_a_newcomer_is_told_so(tmp_path: Path) -> None:
    with running(tmp_path, client_bounds=NEVER) as place, contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(RawClient(place.controller))
        late = stack.enter_context(RawClient(place.controller, hello=False))
        late.send(messages.ClientHello(messages.PROTOCOL_VERSION, "test", "late"))
        assert "4 clients are connected" in late.receive(messages.Mismatch)[0].text


def test_a_key_with_many_seats_gives_way_to_another_key(tmp_path: Path) -> None:
    pairs = {role: transport.new_key_pair() for role in (keys.Role.OPERATOR, keys.Role.CLIENT)}
    ours = transport.new_key_pair()
    keys.write_keys(tmp_path / "keys", ours, pairs)
    many, few = (keys.PeerKeys(*pair, ours[0]) for pair in pairs.values())
    key = tmp_path / "keys" / keys.CONTROLLER_KEY_FILE
    with (
        running_controller(tmp_path / "data", key=key, client_bounds=NEVER) as controller,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(4):
            stack.enter_context(RawClient(controller, keys=many))
        for _ in range(2):
            stack.enter_context(RawClient(controller, keys=few))
        late = stack.enter_context(RawClient(controller, hello=False, keys=few))
        late.send(messages.ClientHello(messages.PROTOCOL_VERSION, "test", "late"))
        late.receive(messages.Mismatch)
        names = [link.key for link in on_loop(controller, lambda: [*controller._links.clients.values()])]
        assert [names.count(one.public) for one in (many, few)] == [2, 2]


@pytest.mark.parametrize("connections", [1, UPLOADS_MAX])
def test_uploads_that_send_nothing_give_way_to_one_that_does(tmp_path: Path, connections: int) -> None:
    with running(tmp_path) as place, contextlib.ExitStack() as stack:
        worker = stack.enter_context(FakeWorker(place.controller))
        honest = stack.enter_context(RawClient(place.controller))
        raw = [greeted(stack, place.controller.client_endpoint) for _ in range(connections)]
        row = ["model.onnx", 1_000, "0" * 64]
        for number in range(UPLOADS_MAX):
            one = messages.Register(number, f"m{number}", [row], {})
            raw[number % connections].sendall(zmtp.message([codec.encode(one)]))
        for number in range(UPLOADS_MAX):
            found = codec.decode(zmtp.read_message(raw[number % connections])[0], messages.TO_CLIENT)
            assert type(found) is messages.UploadNeed
        with worker.preparing():
            answer = honest.register("m", b"model")
            while type(answer) is messages.Failure:
                assert "try again later" in answer.text
                answer = honest.register("m", b"model")
        assert type(answer) is messages.Reply


FEW = "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); \
runpy.run_module('clockwork', run_name='__main__', alter_sys=True)"


def processor_s(pid: int) -> float:
    """Return the processor time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_with_256_descriptors_silent_connections_keep_nobody_out(tmp_path: Path) -> None:
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(held_ports(3))
        clients, workers, events = (f"tcp://127.0.0.1:{port}" for port in ports)
        arguments = ["--listen", clients, "--worker-listen", workers, "--events", events]
        controller = Program(["controller", *arguments, "--data", str(tmp_path)], code=FEW)
        stack.callback(controller.destroy)
        room = controller.wait_for(r"room for (\d+) clients, (\d+) workers and (\d+) subscribers")
        assert 100 < sum(map(int, room.groups())) < 192
        for endpoint in (clients, events, workers):
            for _ in range(400):
                stack.enter_context(zmtp.dial(endpoint))
        client = stack.enter_context(Client(clients))
        assert client.status()["seats"]["clients"] == int(room[1])
        worker = stack.enter_context(zmtp.open_connection(workers))
        worker.sendall(zmtp.worker_hello(1))
        assert type(codec.decode(zmtp.read_message(worker)[0], messages.TO_WORKER)) is messages.WorkerWelcome
        listener = stack.enter_context(zmtp.shake_hands(zmtp.dial(events), kind=b"SUB"))
        listener.sendall(zmtp.message([b"\x01counts"]))
        assert zmtp.read_message(listener)[0] == b"counts"
        before = processor_s(controller.pid)
        threading.Event().wait(1)  # measures with the silent connections there
        assert processor_s(controller.pid) - before < 0.5, "it does not try again and again to accept"
        assert len(os.listdir(f"/proc/{controller.pid}/fd")) < 256 - 16
        assert controller.stop() == 0
        assert "Too many open files" not in controller.text
