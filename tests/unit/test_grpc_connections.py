"""The connections of gRPC's port, found among this process's descriptors."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from clockwork.gateway.connections import Connections
from clockwork.system.clock import SECOND
from clockwork.system.limits import open_descriptors
from clockwork.web.seats import Seats


def test_a_number_that_became_a_files_is_let_be(tmp_path: Path) -> None:
    """gRPC's threads close a connection, and another thread opens a file, between a look and what follows from it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        found = Connections(server.getsockname()[1], Seats(4))
        found.sweep(60 * SECOND)
        peer = f"ipv4:127.0.0.1:{client.getsockname()[1]}"
        with found.receiving(peer), open(tmp_path / "file", "wb") as file:
            os.dup2(file.fileno(), accepted.fileno())
            before = open_descriptors()
            found.end(peer)
            found.sweep(60 * SECOND)
            assert open_descriptors() == before
        accepted.close()
