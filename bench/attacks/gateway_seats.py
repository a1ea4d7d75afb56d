"""Connections and calls that occupy a gateway's seats and memory and send little or nothing."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np

from bench import gateway, http2
from bench.attacks.site import ATTACK_S_MAX, MIB, Attack, Site
from bench.honest import over_grpc, over_http
from clockwork.config.gateway import CONNECTIONS_MAX, GRPC_SWEEP_S
from clockwork.system.limits import raise_descriptor_limit

NEWCOMERS = 5
"""Clients that connect for the first time while the attack goes on."""


class Size(NamedTuple):
    """Sizes of the attacks."""

    connections: int = 3 * CONNECTIONS_MAX
    table_connections: int = 2
    table_calls: int = 100  # number of calls of each kind
    filler_bytes: int = 64_000  # between two entries of the table
    calls: int = 1_024  # on each connection, none with a message
    call_connections: int = 6


QUICK, WHOLE = Size(CONNECTIONS_MAX + 200, 1, 5, 16_000, 300, 1), Size()
TABLE_ENTRIES = 60
"""Entries that fill HPACK's table: 4,096 bytes."""


def _size(quick: bool) -> Size:
    return QUICK if quick else WHOLE


@contextlib.contextmanager
def _dialled(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Connections that send these bytes and nothing more."""
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), ATTACK_S_MAX)
            held.append(stack.enter_context(connection))
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
        yield held


def _held(dialled: list[socket.socket], settle_s: float = 0.1) -> int:
    """The number of connections that are still open, once none has ended for settle_s."""
    poller, left = select.poll(), {connection.fileno(): connection for connection in dialled}
    for number in left:
        poller.register(number, select.POLLIN)
    while ready := poller.poll(settle_s * 1e3):
        for number, _ in ready:
            try:
                ended = not left[number].recv(65_536)
            except ConnectionError:
                ended = True
            if ended:
                poller.unregister(number)
                del left[number]
    return len(left)


def _newcomers(infer: Callable[[], object]) -> str:
    """The share of some new clients that is answered, as text."""
    answered, began = 0, time.monotonic()
    for _ in range(NEWCOMERS):
        with contextlib.suppress(OSError, grpc.RpcError):
            infer()
            answered += 1
    return f"{answered} of {NEWCOMERS} newcomers answered, {time.monotonic() - began:.2g} s"


def _by_http(site: Site) -> None:
    over_http(site.http_port, site.token)(np.zeros((1, 1, 8, 8), np.float32))


def _by_grpc(site: Site) -> None:
    with over_grpc(site.grpc_port, site.token) as infer:
        infer(np.zeros((1, 1, 8, 8), np.float32))


def silent_http(site: Site, quick: bool, sent: Callable[[Site], bytes]) -> str:
    """Connections to the HTTP port that send no request or an incomplete one."""
    with _dialled(site.http_port, _size(quick).connections, sent(site)) as held:
        newcomers = _newcomers(lambda: _by_http(site))
        return f"{_held(held)} of {len(held)} connections held; {newcomers}"


def unsent_body(site: Site) -> bytes:
    return (
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {site.token}\r\nContent-Length: 1000\r\n\r\n"
    ).encode()


def silent_grpc(site: Site, quick: bool) -> str:
    """Connections to the gRPC port that send the HTTP/2 greeting and nothing more."""
    with _dialled(site.grpc_port, _size(quick).connections, http2.hello()) as held:
        count = _held(held, 5 * GRPC_SWEEP_S)
        newcomers = _newcomers(lambda: _by_grpc(site))
        return f"{count} of {len(held)} connections held; {newcomers}"


def handshakes(site: Site, quick: bool) -> str:
    """Connections to a gateway with TLS, started for this attack, that never finish their handshakes."""
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
            check=True, capture_output=True,
        )  # fmt: skip
        process, port, _ = gateway.started(site.endpoint, "--tls-cert", str(cert), "--tls-key", str(key))
        try:
            before = _resident_bytes(process.pid)
            with _dialled(port, _size(quick).connections, b"\x16\x03\x01") as held:
                newcomers = _newcomers(lambda: _over_tls(port, cert))
                count = _held(held)
                grown = (_resident_bytes(process.pid) - before) / MIB
            return f"{count} of {len(held)} connections held, {grown:.0f} MiB; {newcomers}"
        finally:
            process.terminate()
            process.communicate()


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _over_tls(port: int, cert: Path) -> None:
    context = ssl.create_default_context(cafile=str(cert))
    with (
        socket.create_connection(("127.0.0.1", port), ATTACK_S_MAX) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if not connection.recv(65_536).startswith(b"HTTP/1.1 200"):
            raise ConnectionError("not answered")


def open_calls(site: Site, quick: bool) -> str:
    """Calls with as many headers as the gateway takes, whose messages never come."""
    size = _size(quick)
    more = b"".join(http2.field(f"a{number}", "") for number in range(100))
    begun = b"".join(
        http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * number + 1, http2.call(site.token) + more)
        for number in range(size.calls)
    )
    with contextlib.ExitStack() as stack:
        held: list[socket.socket] = []
        for _ in range(size.call_connections):
            held += stack.enter_context(_dialled(site.grpc_port, 1, http2.hello() + begun))
            _newcomers(
                lambda: _by_grpc(site)
            )  # the server refuses every client's calls while a thousand wait to be taken up
        newcomers = _newcomers(lambda: _by_grpc(site))
        return f"{_held(held)} of {len(held)} connections held; {newcomers}"


def header_tables(site: Site, quick: bool) -> str:
    """Entries that fill HPACK's table with a buffer each, and calls that name them before they are
    evicted.
    """
    size = _size(quick)
    filler = http2.frame(0xEE, 0, 0, bytes(16_000)) * (size.filler_bytes // 16_000)
    begin = http2.call(site.token)
    outcomes: list[str] = []

    def throw(connection: socket.socket) -> None:
        stream = 1
        for _ in range(size.table_calls):
            for number in range(TABLE_ENTRIES):
                entered = begin + http2.field("xa", f"{number:030}", is_kept=True)
                connection.sendall(
                    http2.frame(http2.HEADERS, http2.END_HEADERS, stream, entered)
                    + http2.frame(http2.RESET, 0, stream, (8).to_bytes(4)) + filler
                )  # fmt: skip
                stream += 2
            named = begin + b"".join(http2.kept(index) for index in range(TABLE_ENTRIES))
            connection.sendall(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, named))
            stream += 2

    def run(connection: socket.socket) -> None:
        try:
            throw(connection)
            outcomes.append("taken")
        except ConnectionError:
            outcomes.append("disconnected")

    with _dialled(site.grpc_port, size.table_connections, http2.hello()) as dialled:
        threads = [threading.Thread(target=run, args=(connection,)) for connection in dialled]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        newcomers = _newcomers(lambda: _by_grpc(site))
    return f"{', '.join(sorted(outcomes))}; {newcomers}"


ATTACKS = {
    "silent HTTP": Attack("gateway", lambda site, quick: silent_http(site, quick, lambda _: b"")),
    "unsent bodies": Attack("gateway", lambda site, quick: silent_http(site, quick, unsent_body)),
    "TLS handshakes": Attack("gateway", handshakes),
    "silent gRPC": Attack("gateway", silent_grpc),
    "gRPC calls without messages": Attack("gateway", open_calls),
    "HPACK tables": Attack("gateway", header_tables),
}
