"""What a connection has brought, by the kernel's count: libzmq says nothing of what it has received and not handed on.

It bounds frames in bytes and queues in messages, but neither the bytes of a queue nor a message of many frames, which
it receives whole before anybody hears of it. Like csrc/controller/connections.h, for the sockets that are not the
exchange's: those that this process dialled, and its publisher's.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from contextlib import suppress

from clockwork.config import INFLOW_SMALL_BYTES
from clockwork.config.wire import FRAME_EXTRA_BYTES, FRAME_MEMORY_RATIO, HEARTBEAT_BYTES_PER_S
from clockwork.system.clock import SECOND
from clockwork.system.limits import resident_bytes

_BYTES_RECEIVED = struct.Struct("=Q")
_BYTES_RECEIVED_AT = 128  # in struct tcp_info of linux/tcp.h, since Linux 4.1
_INFO_BYTES = _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size


class Inflow:
    """Of one open connection: how much has come that this process has not taken, and its end where that is too much."""

    def __init__(self, fd: int, now: int) -> None:
        """fd: libzmq's own, which may be closed at any time; it is never used without a look at what it means now."""
        self._fd = fd
        self._inode = _inode_of(fd)
        self._taken = 0
        self._looked_ns = now
        self._resident = resident_bytes()  # of this process, when all that had come was taken

    def take(self, count: int, frames: int) -> None:
        """Count a message that was taken, of so many bytes and frames."""
        self._taken += count + FRAME_EXTRA_BYTES * frames

    def look(self, now: int, bytes_max: int) -> bool:
        """End the connection where more than so many bytes have come and were not taken; whether that was done.

        Also where this process has grown by as much since all had been taken, and what was not may be the reason: two
        bytes on the wire may be a frame, which takes 64.
        """
        duplicate = self._duplicate()
        if duplicate is None:
            return False
        with socket.socket(fileno=duplicate) as one:
            received = received_bytes(one)
            self._taken += (now - self._looked_ns) * HEARTBEAT_BYTES_PER_S // SECOND
            self._looked_ns = now
            self._taken = min(self._taken, received)  # nobody saves up what is counted too much
            behind = received - self._taken
            resident = resident_bytes()
            if behind <= INFLOW_SMALL_BYTES:
                self._resident = resident
            grown = resident - self._resident
            if behind <= bytes_max and not bytes_max < grown <= behind * FRAME_MEMORY_RATIO:
                return False
            end(one)
            return True

    def end(self) -> None:
        """Have libzmq find that the connection has ended."""
        duplicate = self._duplicate()
        if duplicate is not None:
            with socket.socket(fileno=duplicate) as one:
                end(one)

    def _duplicate(self) -> int | None:
        """A descriptor of this very connection, if it is still open: its number may mean another by now."""
        try:
            duplicate = os.dup(self._fd)
        except OSError:
            return None
        if self._inode and _inode_of(duplicate) == self._inode:
            return duplicate
        os.close(duplicate)
        return None


def received_bytes(one: socket.socket) -> int:
    """Bytes that a TCP connection has received since it began. 0 for any other: of unix sockets the kernel counts none."""
    with suppress(OSError):
        info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if len(info) == _INFO_BYTES:
            return int(_BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0])
    return 0


def end(one: socket.socket) -> None:
    with suppress(OSError):
        one.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # what the kernel holds goes, too
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _inode_of(fd: int) -> int:
    """0 of what is no socket."""
    with suppress(OSError):
        found = os.fstat(fd)
        return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0
    return 0
