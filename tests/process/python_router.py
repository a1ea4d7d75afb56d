"""A controller's socket that Python reads, for stand-ins of a controller in tests and benchmarks.

A controller reads its sockets in native code (csrc/controller/port.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from clockwork.wire.keys import ControllerKeys
from clockwork.wire.transport import Frame, Transport


class PythonRouter:
    """A bound socket with many peers, each named by an identity that libzmq assigned. Closed by transport."""

    def __init__(
        self, transport: Transport, endpoint: str = "tcp://127.0.0.1:0", keys: ControllerKeys | None = None
    ) -> None:
        router = transport.router(endpoint, keys)
        self.endpoint = router.endpoint
        self._socket: zmq.Socket[bytes] = router._socket
        self._socket.disable_monitor()  # nobody reads its events
        self.filenos = (int(self._socket.get(zmq.FD)),)

    def receive(self) -> tuple[bytes, int, list[Frame]] | None:
        """Return the next message as (identity, descriptor of its connection, header and frames), or None."""
        try:
            identity, header, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return identity.bytes, int(header.get(zmq.SRCFD)), [header.bytes, *frames]

    def send(self, identity: bytes, header: bytes, frames: Sequence[Any] = ()) -> bool:
        """Queue one message. False if the peer is gone, or its queue is full."""
        try:
            self._socket.send_multipart([identity, header, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def readable(self) -> bool:
        """Whether receive() has something. To be asked before a wait on filenos, which are edges."""
        return bool(self._socket.get(zmq.EVENTS) & zmq.POLLIN)
