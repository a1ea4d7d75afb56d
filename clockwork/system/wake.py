"""A descriptor that wakes a thread from its wait."""

from __future__ import annotations

import os
import socket


class WakeDescriptor:
    """A descriptor that is readable from set() until clear(). Any thread may call set().

    The descriptor is an eventfd, or else one of a pair of sockets, on which Windows can wait, too.
    """

    def __init__(self) -> None:
        self._sockets: tuple[socket.socket, ...] = ()
        if hasattr(os, "eventfd"):
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return
        self._sockets = socket.socketpair()
        for end in self._sockets:
            end.setblocking(False)
        self._fd = self._sockets[0].fileno()

    def fileno(self) -> int:
        """Return the descriptor, -1 once it is closed."""
        return self._fd

    def set(self) -> None:
        try:
            if self._sockets:
                self._sockets[1].send(b"\0")
            else:
                os.eventfd_write(self._fd, 1)
        except BlockingIOError:  # the descriptor is readable already
            return

    def clear(self) -> None:
        """Make the descriptor unreadable. Idempotent."""
        try:
            if self._sockets:
                while self._sockets[0].recv(4096):
                    pass
            else:
                os.eventfd_read(self._fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._fd < 0:
            return
        if not self._sockets:
            os.close(self._fd)
        for end in self._sockets:
            end.close()
        self._fd = -1
