"""Probe of a ZeroMQ socket for messages, through pyzmq: _zmq's counterpart where nothing is compiled."""

from __future__ import annotations

from typing import Any

import zmq

_READABLE = int(zmq.POLLIN)


class Probe:
    """A probe of a socket, for the thread that uses it. Call forget() before the socket is closed."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._socket: zmq.Socket[Any] | None = socket

    def _get(self, option: int) -> int:
        if self._socket is None:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        return int(self._socket.get(option))

    def readable(self) -> bool:
        """Whether a message can be received."""
        return bool(self._get(zmq.EVENTS) & _READABLE)

    def more(self) -> bool:
        """Whether the part just received was not its message's last."""
        return bool(self._get(zmq.RCVMORE))

    def forget(self) -> None:
        """Use the socket no more."""
        self._socket = None
