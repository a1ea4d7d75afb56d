"""Connections that hold a gateway's seats and send nothing, and other clients' connections beside them."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bench import http2
from clockwork.config.gateway import DESCRIPTORS_MIN
from clockwork.errors import ConfigError
from clockwork.gateway import grpc as grpc_server
from clockwork.gateway import http as http_server
from clockwork.gateway import process
from clockwork.gateway.process import seats_of
from clockwork.gateway.settings import GatewaySettings
from tests.patience import PATIENCE_S, readable
from tests.process.cluster import Program, has_ipv6
from tests.process.fake_controller import FakeController
from tests.process.gateways import (
    BODY,
    TOKEN,
    Http,
    Https,
    infer_on,
    running_gateway,
)
from tests.process.test_seats import processor_s

BEARER = {"Authorization": f"Bearer {TOKEN}"}
SEATS = 8
ATTACKERS = 40
KERNEL_BYTES = 4_096
"""The kernel buffers that are requested for a connection in each direction; the kernel takes some times as
much."""
ANSWERS = 2
UNSENT = (
    "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    f"Authorization: Bearer {TOKEN}\r\n\r\n"
).encode()


def check_most_end(held: list[socket.socket], left: int) -> None:
    """Wait until the gateway has closed all but so many of these connections."""
    waiting = list(held)
    while len(waiting) > left:
        ready = readable(*waiting)
        assert ready, f"{len(waiting)} of {len(held)} connections are still held"
        for one in ready:
            with contextlib.suppress(ConnectionError):
                if one.recv(65536):
                    continue
            waiting.remove(one)


@contextlib.contextmanager
def dialled(port: int, sent: bytes = b"", count: int = ATTACKERS) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
            for _ in range(count)
        ]
        for one in held:
            with contextlib.suppress(ConnectionError):  # the seat was vacated already
                one.sendall(sent)
        yield held


@pytest.mark.parametrize("name", ["http", "metrics"])
@pytest.mark.parametrize(
    "sent", [b"", b"GET /v2/health/live HTTP/1.1\r\nX: "], ids=["silent", "half a header"]
)
def test_strangers_hold_a_bounded_number_of_connections(
    controller: FakeController, name: str, sent: bytes
) -> None:
    with running_gateway(controller.endpoint, grpc_port=-1, metrics_port=0, connections_max=SEATS) as gateway:
        known = Http(gateway.ports[name])
        path = {"http": "/v2", "metrics": "/metrics?of=gateway"}[name]
        assert known.ask("GET", path).status == 200
        with dialled(gateway.ports[name], sent) as held:
            check_most_end(held, SEATS - 1)
            assert known.ask("GET", path).status == 200, "on the same connection"
        known.close()


def test_handshakes_that_are_not_done_have_a_bound(
    controller: FakeController, pair: tuple[Path, Path]
) -> None:
    cert, key = pair
    with running_gateway(
        controller.endpoint, grpc_port=-1, tls_cert=cert, tls_key=key, connections_max=SEATS
    ) as gateway:
        known = Https(gateway.ports["http"], cert)
        assert known.infer(BODY).status == 200
        with dialled(gateway.ports["http"], b"\x16\x03\x01") as held:
            check_most_end(held, SEATS - 1)
            assert known.infer(BODY).status == 200, "on the same connection"
            newcomer = Https(gateway.ports["http"], cert)
            assert newcomer.infer(BODY).status == 200
            newcomer.close()
        known.close()


@pytest.mark.parametrize("headers", [{}, BEARER], ids=["open", "with tokens"])
def test_bodies_that_do_not_come_keep_nobody_out(
    controller: FakeController,
    token_file: Path,
    headers: dict[str, str],
) -> None:
    more = {"token_file": token_file} if headers else {}
    with (
        running_gateway(controller.endpoint, grpc_port=-1, connections_max=SEATS, **more) as gateway,
        dialled(gateway.ports["http"], UNSENT) as held,
    ):
        check_most_end(held, SEATS)
        for _ in range(3):
            newcomer = Http(gateway.ports["http"])
            assert newcomer.ask("POST", "/v2/models/m/infer", BODY, headers).status == 200
            newcomer.close()


def test_a_body_has_a_least_rate(controller: FakeController, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server.bounds, "BODY_GRACE_S", 0.2)
    body = json.dumps(BODY).encode()
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
    with running_gateway(controller.endpoint, grpc_port=-1) as gateway:
        with dialled(gateway.ports["http"], f"{head}{1 << 20}\r\n\r\n".encode() + bytes(20), 1) as [slow]:
            answer = b""
            while piece := slow.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"20 bytes of the request's body came within 0.201 s" in answer
        monkeypatch.setattr(http_server.bounds, "BODY_BYTES_PER_S_MIN", 1)
        with dialled(gateway.ports["http"], f"{head}{len(body)}\r\n\r\n".encode() + body[:60], 1) as [steady]:
            assert not readable(steady, within_s=1.0), "60 bytes are enough for a minute"
            steady.sendall(body[60:])
            assert steady.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_came_late_does_not_end_its_connection_later(controller: FakeController) -> None:
    body = json.dumps(BODY).encode()
    head = (
        f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with (
        running_gateway(controller.endpoint, grpc_port=-1, headers_s=1.0) as gateway,
        dialled(gateway.ports["http"], head + body, 1) as [late],
    ):
        assert late.recv(65536).startswith(b"HTTP/1.1 200")
        late.sendall(head)
        for piece in (body[:60], body[60:]):
            assert not readable(late, within_s=1.5), "as long as headers may take, and longer"
            late.sendall(piece)
        assert late.recv(65536).startswith(b"HTTP/1.1 200")
        assert not readable(late, within_s=3.0), "it is open, and waits for the next request"
        late.sendall(head + body)
        assert late.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("asked", [b"", b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_stranger_has_seconds_and_a_client_longer(
    controller: FakeController,
    token_file: Path,
    asked: bytes,
) -> None:
    with running_gateway(controller.endpoint, grpc_port=-1, token_file=token_file, headers_s=2.0) as gateway:
        known = Http(gateway.ports["http"])
        assert known.ask("POST", "/v2/models/m/infer", BODY, BEARER).status == 200
        with dialled(gateway.ports["http"], asked, 1) as held:
            check_most_end(held, 0)
        sock = known.connection.sock
        assert known.ask("POST", "/v2/models/m/infer", BODY, BEARER).status == 200
        assert known.connection.sock is sock, "which waited as long"
        known.close()


def test_a_client_that_reads_no_answers_and_then_sends_no_http_is_ended(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway need not wait until its answers are read; the refusal comes behind them and is not read
    either."""

    bind = process.listen

    def listen(host: str, port: int, flag: str) -> socket.socket:
        bound = bind(host, port, flag)
        # connections accepted from it inherit the option
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        return bound

    get = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    monkeypatch.setattr(process, "listen", listen)
    with running_gateway(controller.endpoint, grpc_port=-1, body_s=0.2) as gateway:
        port = gateway.ports["http"]
        with contextlib.closing(Http(port)) as other:
            answer = other.ask("GET", "/openapi.json").data
            assert 2 * KERNEL_BYTES < ANSWERS * len(answer) < 65_536, "above which aiohttp waits"
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
                client.connect(("127.0.0.1", port))
                client.sendall(ANSWERS * get)
                poll = select.poll()
                poll.register(client, select.POLLIN)
                assert poll.poll(PATIENCE_S * 1e3), "aiohttp drops requests that come together with no HTTP"
                client.sendall(b"no HTTP\r\n\r\n")
                poll.modify(client, select.POLLRDHUP)
                assert poll.poll(PATIENCE_S * 1e3), "it is held for as long as it likes"


# ----- gRPC ------------------------------------------------------------------------------------


def infer_grpc(port: int, token: str = "") -> str:
    """Return the status of an inference on a connection of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return infer_on(channel, token)


@pytest.mark.parametrize("sent", [b"", http2.hello()], ids=["silent", "greeting"])
@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "with tokens"])
def test_silent_connections_keep_nobody_from_grpc(
    controller: FakeController, token_file: Path, sent: bytes, token: str
) -> None:
    more = {"token_file": token_file} if token else {}
    with running_gateway(controller.endpoint, http_port=-1, connections_max=SEATS, **more) as gateway:
        port = gateway.ports["grpc"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as known:
            assert infer_on(known, token) == "OK"
            # the number of connections that gRPC itself takes
            with dialled(port, sent, 2 * SEATS - 1) as held:
                check_most_end(held, SEATS - 1)
                assert infer_grpc(port, token) == "OK", "a newcomer"
                assert infer_on(known, token) == "OK"


def test_a_connection_without_a_call_that_it_may_make_has_seconds(
    controller: FakeController, token_file: Path
) -> None:
    refused = http2.hello() + http2.frame(http2.HEADERS, 5, 1, http2.call("wrong"))
    with running_gateway(controller.endpoint, http_port=-1, token_file=token_file, headers_s=1.0) as gateway:
        port = gateway.ports["grpc"]
        with dialled(port, http2.hello(), 3) as silent, dialled(port, refused, 3) as wrong:
            check_most_end([*silent, *wrong], 0)


@pytest.mark.parametrize("host", ["::1", "::", "0.0.0.0"])
def test_a_client_keeps_its_connection_at_any_address(controller: FakeController, host: str) -> None:
    """gRPC's name of a peer must be the one under which its connection is found."""
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with running_gateway(
        controller.endpoint, http_port=-1, host=host, insecure=True, headers_s=0.3
    ) as gateway:
        asked = "127.0.0.1" if host == "0.0.0.0" else "[::1]"
        addresses = [f"{asked}:{gateway.ports['grpc']}"] + [f"127.0.0.1:{gateway.ports['grpc']}"] * (
            host == "::"
        )
        for address in addresses:
            with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                states: list[grpc.ChannelConnectivity] = []
                assert infer_on(channel) == "OK"
                channel.subscribe(states.append)
                threading.Event().wait(1.2)
                assert infer_on(channel) == "OK"
                assert set(states) == {grpc.ChannelConnectivity.READY}, "the connection has been the same"


def opened(port: int, token: str, calls: int) -> contextlib.AbstractContextManager[list[socket.socket]]:
    """A connection with calls whose messages do not come."""
    begun = [
        http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * n + 1, http2.call(token)) for n in range(calls)
    ]
    return dialled(port, http2.hello() + b"".join(begun), 1)


def streams_ended(connection: socket.socket, count: int) -> set[int]:
    """The first calls, so many of them, of a connection that the gateway ends."""
    ended: set[int] = set()
    for frame in http2.frames(connection):
        if (frame.kind == http2.HEADERS and frame.flags & http2.END_STREAM) or frame.kind == http2.RESET:
            ended.add(frame.stream)
        if len(ended) == count:
            break
    return ended


def test_a_message_that_does_not_come_ends_its_call(controller: FakeController) -> None:
    with (
        running_gateway(controller.endpoint, http_port=-1, body_s=0.5) as gateway,
        opened(gateway.ports["grpc"], "", 3) as [held],
    ):
        assert streams_ended(held, 3) == {1, 3, 5}
        assert infer_grpc(gateway.ports["grpc"]) == "OK"


def test_calls_without_messages_make_room_for_others(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server.bounds, "GRPC_WAITING_MAX", 3)
    with (
        running_gateway(controller.endpoint, http_port=-1, requests_max=1) as gateway,
        opened(gateway.ports["grpc"], "", 20) as [held],
    ):
        assert streams_ended(held, 16) == {2 * n + 1 for n in range(16)}, "the longest waiting"
        assert infer_grpc(gateway.ports["grpc"]) == "OK"


def test_hpack_has_no_table_and_settings_are_acknowledged(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server.bounds, "GRPC_SETTINGS_S", 1.0)
    with running_gateway(controller.endpoint, http_port=-1) as gateway:
        port = gateway.ports["grpc"]
        with dialled(port, http2.hello(), 1) as [polite]:
            settings = next(frame for frame in http2.frames(polite) if frame.kind == http2.SETTINGS)
            pairs = [settings.body[at : at + 6] for at in range(0, len(settings.body), 6)]
            assert http2.TABLE_SIZE.to_bytes(2) + bytes(4) in pairs
            begun = http2.call() + http2.field("x", "y", is_kept=True)
            polite.sendall(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, begun))
            check_most_end([polite], 0)
        with dialled(port, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b""), 1) as silent:
            check_most_end(silent, 0)
        assert infer_grpc(port) == "OK"


def test_hpack_has_a_table_for_proxies(controller: FakeController) -> None:
    """A proxy that keeps no table of its own sends no size of it, so that HTTP/2's own has to be allowed."""
    with (
        running_gateway(controller.endpoint, http_port=-1, behind_proxy=True) as gateway,
        dialled(gateway.ports["grpc"], http2.hello(), 1) as [proxy],
    ):
        settings = next(frame for frame in http2.frames(proxy) if frame.kind == http2.SETTINGS)
        pairs = [settings.body[at : at + 6] for at in range(0, len(settings.body), 6)]
        sizes = [int.from_bytes(pair[2:]) for pair in pairs if pair[:2] == http2.TABLE_SIZE.to_bytes(2)]
        assert sizes in ([], [4_096])
        assert infer_grpc(gateway.ports["grpc"]) == "OK"


def test_seats_fit_the_open_files_that_a_process_may_have() -> None:
    settings = GatewaySettings()
    whole = seats_of(settings, 1 << 20)
    assert whole == {"http": 1024, "grpc": 1024, "metrics": 64}
    few = seats_of(settings, 256)
    assert few["http"] + 2 * few["grpc"] + few["metrics"] <= 256 - 96
    assert few["http"] == few["grpc"] >= 48
    assert min(seats_of(settings, DESCRIPTORS_MIN).values()) >= 2
    with pytest.raises(ConfigError, match=f"{DESCRIPTORS_MIN - 1} open files are too few"):
        seats_of(settings, DESCRIPTORS_MIN - 1)


FEW = (
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0})); "
    "runpy.run_module('clockwork', run_name='__main__')"
)


def test_with_few_descriptors_a_gateway_says_so_serves_and_does_not_spin(controller: FakeController) -> None:
    gateway = Program(
        ["gateway", "--connect", controller.endpoint, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"],
        code=FEW.format(256),
    )  # fmt: skip
    try:
        assert gateway.wait_for(
            r"may open 256 files, so it takes (\d+) http, (\d+) grpc, (\d+) metrics connections"
        )
        where = gateway.wait_for(
            r"http on http://127.0.0.1:(\d+), grpc on 127.0.0.1:(\d+), metrics on http://127.0.0.1:(\d+)"
        )
        http, grpc_port, metrics = (int(port) for port in where.groups())
        with contextlib.ExitStack() as stack:
            held = [
                one
                for port, sent in ((http, b""), (grpc_port, http2.hello()), (metrics, b""))
                for one in stack.enter_context(dialled(port, sent, 250))
            ]
            for _ in range(3):
                for port, path in ((http, "/v2/health/live"), (metrics, "/metrics?of=gateway")):
                    newcomer = Http(port)
                    assert newcomer.ask("GET", path).status == 200
                    newcomer.close()
            check_most_end(held, 250)
            assert infer_grpc(grpc_port) == "OK"
            spent = processor_s(gateway.pid)
            threading.Event().wait(1.0)
            assert processor_s(gateway.pid) - spent < 0.7, "it spins"
        gateway.send(signal.SIGTERM)
        assert gateway.wait() == 0
        assert "Traceback" not in gateway.text, gateway.text
    finally:
        gateway.destroy()


def test_with_too_few_descriptors_no_gateway_starts(controller: FakeController) -> None:
    gateway = Program(["gateway", "--connect", controller.endpoint], code=FEW.format(100))
    try:
        assert gateway.wait() != 0
        assert f"100 open files are too few, it takes {DESCRIPTORS_MIN}: raise ulimit -n" in gateway.text
    finally:
        gateway.destroy()
