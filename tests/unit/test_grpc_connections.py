"""The connections of gRPC's port, found among this process's descriptors."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="the gateway's libraries are not installed ([gateway])")

from clockwork.gateway import connections, grpc
from clockwork.gateway.connections import ServerConnections
from clockwork.system.clock import SECOND
from clockwork.system.limits import open_descriptors
from clockwork.web.seats import Seat, ServerSeats


def test_a_number_that_became_a_files_is_let_be(tmp_path: Path) -> None:
    """gRPC's threads close a connection, and another thread opens a file, between the look and its use."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        found = ServerConnections(server.getsockname()[1], ServerSeats(4))
        found.sweep(60 * SECOND)
        peer = f"ipv4:127.0.0.1:{client.getsockname()[1]}"
        with found.receiving(peer), open(tmp_path / "file", "wb") as file:
            os.dup2(file.fileno(), accepted.fileno())
            before = open_descriptors()
            found.end(peer)
            found.sweep(60 * SECOND)
            assert open_descriptors() == before
        accepted.close()


def test_bytes_of_calls_that_have_ended_do_not_count_for_later_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "GRPC_RECEIVING_BYTES_MAX", 256 << 10)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        found = ServerConnections(server.getsockname()[1], ServerSeats(4))
        peer = f"ipv4:127.0.0.1:{client.getsockname()[1]}"
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        with accepted:
            for _ in range(8):
                with found.receiving(peer):  # an incomplete message, of which gRPC keeps nothing
                    client.sendall(bytes(64 << 10))
                    assert len(accepted.recv(64 << 10, socket.MSG_WAITALL)) == 64 << 10
                    found.sweep(60 * SECOND)
                    assert not poll.poll(0)
                found.sweep(60 * SECOND)
            with found.receiving(peer):
                for _ in range(8):
                    client.sendall(bytes(64 << 10))
                    assert len(accepted.recv(64 << 10, socket.MSG_WAITALL)) == 64 << 10
                found.sweep(60 * SECOND)
                assert poll.poll(0)


def test_a_call_whose_time_is_up_may_be_told_to_make_room_before_it_has_ended() -> None:
    failures: list[str] = []

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(str(context["exception"])))
        call = grpc._Call("ipv4:127.0.0.1:1", Seat("ipv4:127.0.0.1", 0, lambda: None), 0)
        async with asyncio.timeout(0) as call.patience:
            loop.call_soon(call.close)  # in the same round as the timeout, and after it
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    assert not failures
