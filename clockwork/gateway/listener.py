"""Accepts TCP connections within the seats of a server, TLS handshakes included.

asyncio's server reports a connection only after its TLS handshake, so any number of connections could be open
before. Here a connection takes its seat when it is accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from clockwork.config.gateway import ACCEPT_PAUSE_S, BACKLOG, HANDSHAKE_S
from clockwork.system.clock import now_ns
from clockwork.web.seats import Seat, ServerSeats

log = logging.getLogger("clockwork.gateway")

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Error numbers of accept() that last until a descriptor is closed or memory is freed."""


class SocketListener:
    """Serves one bound socket on the running loop until close()."""

    def __init__(
        self,
        listening: socket.socket,
        tls: ssl.SSLContext | None,
        seats: ServerSeats,
        protocol_of: Callable[[Seat], asyncio.Protocol],
    ) -> None:
        """protocol_of: makes the protocol of a connection.

        The protocol sets the close() of its seat, and leaves the seat when the connection is lost.
        """
        self._listening = listening
        self._tls = tls
        self._seats = seats
        self._protocol_of = protocol_of
        self._opening: dict[asyncio.Task[None], None] = {}
        self._has_warned = False
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Accept no more connections, and end those whose handshake is incomplete."""
        self._accepting.cancel()
        self._listening.close()
        for task in self._opening:
            task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno in NO_ROOM:
                    await self._make_room(error)
                continue  # otherwise the peer disconnected before accept()
            seat = Seat(str(address[0]), now_ns(), lambda peer=connection: _end(peer))  # type: ignore[misc]
            vacated = self._seats.take(seat)
            if vacated is not None:
                vacated.close()
            if vacated is seat:
                connection.close()
                continue
            task = loop.create_task(self._open(connection, seat))
            self._opening[task] = None
            task.add_done_callback(self._opening.pop)

    async def _make_room(self, error: OSError) -> None:
        """End the connection of lowest rank, so that a descriptor is free for the next connection."""
        vacated = self._seats.vacate()
        if vacated is not None:
            vacated.close()
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "connections cannot be accepted: %s; the longest idle ones are closed", error.strerror
            )
        # The loop closes the connection in its next iteration. If none could be ended, a request has to end
        # first.
        await asyncio.sleep(0 if vacated is not None else ACCEPT_PAUSE_S)

    async def _open(self, connection: socket.socket, seat: Seat) -> None:
        """Hand a connection to its protocol after its handshake."""
        handshake_s = HANDSHAKE_S if self._tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._protocol_of(seat), connection, ssl=self._tls, ssl_handshake_timeout=handshake_s
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            self._seats.leave(seat)
            connection.close()
            if isinstance(error, asyncio.CancelledError):
                raise


def _end(connection: socket.socket) -> None:
    """Shut down a connection whose handshake is incomplete; its transport then finds it shut."""
    with contextlib.suppress(OSError):  # the peer has ended the connection
        connection.shutdown(socket.SHUT_RDWR)
