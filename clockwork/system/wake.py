"""Waking a thread that waits for descriptors."""

from __future__ import annotations

import os
import socket


class Wake:
    """A descriptor that is readable from set() until clear(). Any thread may set it.

    An eventfd where the system has that, else a pair of sockets, which Windows can wait for, too.
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
        """-1 once it is closed."""
        return self._fd

    def set(self) -> None:
        try:
            if self._sockets:
                self._sockets[1].send(b"\0")
            else:
                os.eventfd_write(self._fd, 1)
        except BlockingIOError:  # it is set already, many times
            return

    def clear(self) -> None:
        """Nothing happens where it is not set."""
        try:
            if self._sockets:
                while self._sockets[0].recv(4096):
                    pass
            else:
                os.eventfd_read(self._fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Idempotent."""
        if self._fd < 0:
            return
        if not self._sockets:
            os.close(self._fd)
        for end in self._sockets:
            end.close()
        self._fd = -1
