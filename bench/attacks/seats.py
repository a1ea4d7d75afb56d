"""Connections that hold shared resources: seats, uploads, descriptors, and room in answers about the
cluster.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from bench import zmtp
from bench.attacks.messages import answering, listed, wide_requests
from bench.attacks.site import ATTACK_S_MAX, Attack, Site
from clockwork.config.controller import UPLOADS_MAX
from clockwork.errors import ClockworkError
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from clockwork.system.limits import raise_descriptor_limit
from clockwork.wire import codec, messages
from clockwork.wire.messages import TAG_OF


class Size(NamedTuple):
    """Sizes of the attacks."""

    silent: int = 5_000  # connections to each port
    idle: int = 13_000  # clients: more than 20,000 descriptors have seats for
    workers: int = 24
    headers: int = 20
    header_bytes: int = 7_900_000
    answers: int = 100


QUICK, WHOLE = Size(150, 150, 4, 3, 7_900_000, 300), Size()

LATE_S = 2.0
"""Time for which a late reader does not read, less than the 3 s after which the kernel cuts it off."""


def _size(quick: bool) -> Size:
    return QUICK if quick else WHOLE


@contextlib.contextmanager
def _dialled(endpoints: list[str], count: int) -> Iterator[list[socket.socket]]:
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(zmtp.dial(endpoint)) for _ in range(count) for endpoint in endpoints]


def _newcomer(site: Site) -> str:
    """The outcome of a new client's request."""
    begun = now_ns()
    with site.client(timeout=ATTACK_S_MAX) as client:
        try:
            client.status()
        except ClockworkError as error:
            return f"a newcomer got {type(error).__name__}"
    return f"a newcomer was answered after {(now_ns() - begun) / SECOND:.2g} s"


def silent_connections(site: Site, quick: bool) -> str:
    """Connections to every port of the controller that send nothing."""
    endpoints = [site.endpoint, site.worker_endpoint, site.events_endpoint]
    with _dialled(endpoints, _size(quick).silent) as dialled:
        found = _newcomer(site)
        with zmtp.shake_hands(zmtp.dial(site.events_endpoint), kind=b"SUB") as listener:
            listener.sendall(zmtp.message([b"\x01counts"]))
            try:
                heard = zmtp.read_message(listener)[0] == b"counts"
            except (AssertionError, OSError):
                heard = False
        ended = sum(map(zmtp.is_shut, dialled))
    return f"{found}, a listener {'heard' if heard else 'did not hear'}; {ended} of {len(dialled)} were ended"


def idle_clients(site: Site, quick: bool) -> str:
    """Clients that send a hello and nothing else."""
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        dialled = []
        for _ in range(_size(quick).idle):
            dialled.append(stack.enter_context(zmtp.open_connection(site.endpoint)))
            with contextlib.suppress(ConnectionError):
                dialled[-1].sendall(zmtp.client_hello())
        found = _newcomer(site)
        ended = sum(map(zmtp.is_shut, dialled))
    return f"{found}; {ended} of {len(dialled)} were ended"


def idle_uploads(site: Site, quick: bool) -> str:
    """As many uploads as the controller allows, none of which sends any data."""
    file = ["model.onnx", 1_000, "0" * 64]
    with zmtp.open_connection(site.endpoint) as connection, site.client() as client:
        connection.sendall(zmtp.client_hello())
        zmtp.read_message(connection)
        for number in range(UPLOADS_MAX):
            register = messages.Register(number, f"idle{number}", [file], {})
            connection.sendall(zmtp.message([codec.encode(register)]))
        for _ in range(UPLOADS_MAX):
            zmtp.read_message(connection)
        begun = now_ns()
        try:
            client.register("after", zoo.build("null"))
        except ClockworkError as error:
            return f"a registration got {type(error).__name__}"
        return f"a registration took {(now_ns() - begun) / SECOND:.2g} s"


def _worker(stack: contextlib.ExitStack, site: Site, epoch: int, devices: int = 1) -> socket.socket:
    connection = stack.enter_context(zmtp.open_connection(site.worker_endpoint))
    device = {
        "kind": "k" * 64, "name": "n" * 256, "fingerprint": "f" * 600, "page_bytes": 4096, "page_count": 4, "run_ahead": 2,
    }  # fmt: skip
    hello = messages.WorkerHello(
        messages.PROTOCOL_VERSION, "test", f"w{epoch}" * 30, epoch, [device] * devices
    )
    connection.sendall(zmtp.message([codec.encode(hello)]))
    zmtp.read_message(connection)
    return connection


def fat_stats(site: Site, quick: bool) -> str:
    """Workers whose heartbeats are as large as a message may be, half by devices, half by statistics."""
    with contextlib.ExitStack() as stack:
        for number in range(_size(quick).workers):
            devices = 1_000 if number % 2 else 1
            connection = _worker(stack, site, 1_000 + number, devices)
            stats: dict[str, Any] = {"fat": "x" * 900_000}
            connection.sendall(zmtp.message([codec.encode(messages.Heartbeat(1, 1, stats))]))
        asked = http.client.HTTPConnection("127.0.0.1", site.http_port, timeout=ATTACK_S_MAX)
        stack.callback(asked.close)
        asked.request("GET", "/v2/health/ready")
        ready = asked.getresponse().status
        with site.client() as client:
            try:
                client.status()
                told = "was answered"
            except ClockworkError as error:
                told = f"got {type(error).__name__}"
    return f"readiness {ready}, status {told}"


def large_headers(site: Site, quick: bool) -> str:
    """Workers that request a device's time for millions of runs of pages."""
    size = _size(quick)
    head = msgpack.packb([TAG_OF[messages.TimeNeeded], 0, 1, 1]).replace(b"\x94", b"\x95", 1)
    header = head + b"\xdd" + size.header_bytes.to_bytes(4) + b"\x01" * size.header_bytes
    fates: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for number in range(size.headers):
            connection = _worker(stack, site, 2_000 + number)
            connection.settimeout(ATTACK_S_MAX)
            connection.sendall(
                zmtp.message([header]) + zmtp.message([codec.encode(messages.Heartbeat(1, 1, {}))])
            )
            answer: Any = None
            while type(answer) not in (messages.HelloNeeded, messages.Reserve):
                answer = codec.decode(zmtp.read_message(connection)[0], messages.TO_WORKER)
            fates[type(answer).__name__] += 1
    return f"answered {listed(fates)}"


def late_reader(site: Site, quick: bool) -> str:
    """A client that requests many large answers at once, and begins to read them only LATE_S later."""
    count = _size(quick).answers
    fates: Counter[str] = Counter()
    with zmtp.deaf(site.endpoint) as connection:
        connection.sendall(zmtp.client_hello())
        zmtp.read_message(connection)
        for request in wide_requests(count):
            connection.sendall(request)
        threading.Event().wait(LATE_S)
        with contextlib.suppress(AssertionError, OSError):
            while sum(fates.values()) < count:
                answer = codec.decode(zmtp.read_message(connection)[0], messages.TO_CLIENT)
                fates[type(answer).__name__] += 1
    return f"{listed(fates)} of {count}"


ATTACKS = {
    "silent connections": Attack("controller", silent_connections),
    "idle clients": Attack("controller", idle_clients),
    "idle uploads": Attack("controller", idle_uploads),
    "fat stats": Attack("controller", fat_stats),
    "large headers": Attack("controller", large_headers),
    "late reader": Attack("controller", late_reader, answering),
}
