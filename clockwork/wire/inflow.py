"""Bounds the bytes that a connection has received and this process has not taken, by the kernel's count.

libzmq bounds frames in bytes and queues in messages, but neither the bytes of a queue nor a message of many
frames, which it receives whole before it hands anything on; and it does not report the bytes.
csrc/controller/connections.h does the same for the exchange's sockets; this module is for dialled sockets and
for the publisher's.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct
import sys
from contextlib import suppress

from clockwork.config import INFLOW_SMALL_BYTES
from clockwork.config.wire import FRAME_EXTRA_BYTES, FRAME_MEMORY_RATIO, HEARTBEAT_BYTES_PER_S
from clockwork.system.clock import SECOND
from clockwork.system.limits import resident_bytes

_BYTES_RECEIVED = struct.Struct("=Q")
_BYTES_RECEIVED_AT = 128  # offset in struct tcp_info of linux/tcp.h, since Linux 4.1
_INFO_BYTES = _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size


class Inflow:
    """Counts an open connection's bytes that this process has not taken; ends it where they are too many."""

    def __init__(self, fd: int, now: int) -> None:
        """fd: libzmq's own, which may be closed and reused at any time: always used through _duplicate()."""
        self._fd = fd
        self._inode = _inode_of(fd)
        self._taken = 0
        self._looked_ns = now
        self._has_taken = False  # whether a message was taken since the last drain()
        self._is_drained = False  # whether drain() was called since the last look()
        # This process's memory when no whole message was left to take (0: not known), and its kept part.
        self._resident = resident_bytes()
        self._kept = 0

    def take(self, count: int, frames: int) -> None:
        """Count a message of ``count`` bytes that was taken."""
        self._taken += count + FRAME_EXTRA_BYTES * frames
        self._has_taken = True

    def drain(self) -> None:
        """Note that no whole message is left to take: the waiting bytes begin the next message."""
        self._is_drained = self._is_drained or self._has_taken
        self._has_taken = False

    def look(self, now: int, bytes_max: int, kept_bytes: int = 0) -> bool:
        """End the connection if more than ``bytes_max`` bytes wait to be taken. Returns whether it ended the
        connection.

        The connection also ends where this process has grown by more than ``bytes_max`` since it had taken
        every whole message, and the waiting bytes may be the reason: three bytes on the wire may be a
        message, which takes 64 in memory. Growth of another cause is not counted: the waiting bytes
        themselves, messages that were taken and are kept, and ``kept_bytes``, which this process holds for
        its callers.
        """
        duplicate = self._duplicate()
        if duplicate is None:
            return False
        with socket.socket(fileno=duplicate) as connection:
            received = received_bytes(connection)
            self._taken += (now - self._looked_ns) * HEARTBEAT_BYTES_PER_S // SECOND
            self._looked_ns = now
            self._taken = min(self._taken, received)  # an overestimate must not count for later bytes
            behind = received - self._taken
            grown = self._grown_bytes(behind, kept_bytes)
            if behind <= bytes_max and not bytes_max < grown <= behind * FRAME_MEMORY_RATIO:
                return False
            end(connection)
            return True

    def _grown_bytes(self, behind: int, kept_bytes: int) -> int:
        """This process's growth in bytes since every whole message was taken, without known causes."""
        resident = resident_bytes()
        if not resident:
            return 0
        # A message without an end never resets the count, since no part of it is taken.
        if behind <= INFLOW_SMALL_BYTES or self._is_drained or not self._resident:
            self._resident, self._kept = resident, kept_bytes
        self._is_drained = False
        return resident - self._resident - behind - max(0, kept_bytes - self._kept)

    def end(self) -> None:
        """Shut the connection down; libzmq then notices the end."""
        duplicate = self._duplicate()
        if duplicate is not None:
            with socket.socket(fileno=duplicate) as connection:
                end(connection)

    def address(self) -> str:
        """The peer's address, of IPv6 its network (/64); "" of a unix socket, and of a connection that has
        ended."""
        duplicate = self._duplicate()
        if duplicate is None:
            return ""
        with socket.socket(fileno=duplicate) as connection, suppress(OSError, ValueError):
            host = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
            if host.version == 6 and host.ipv4_mapped is None:
                return host.packed[:8].hex()
            return str(host if host.version == 4 else host.ipv4_mapped)
        return ""

    def _duplicate(self) -> int | None:
        """A new descriptor of this connection, or None if the descriptor's number has been reused."""
        try:
            duplicate = os.dup(self._fd)
        except OSError:
            return None
        if self._inode and _inode_of(duplicate) == self._inode:
            return duplicate
        os.close(duplicate)
        return None


def received_bytes(connection: socket.socket) -> int:
    """The bytes that a TCP connection has received since it began; 0 for a unix socket, and on systems other
    than Linux, whose kernels have no such count."""
    if not sys.platform.startswith("linux"):
        return 0
    with suppress(OSError):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if len(info) == _INFO_BYTES:
            return int(_BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0])
    return 0


def end(connection: socket.socket) -> None:
    """Shut a connection down, and drop the bytes that the kernel holds for it."""
    drop_unsent(connection)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def drop_unsent(connection: socket.socket) -> None:
    """Have the kernel drop the bytes that it holds for a connection when it is closed."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _inode_of(fd: int) -> int:
    """The inode of a socket; 0 if the descriptor is not a socket."""
    with suppress(OSError):
        found = os.fstat(fd)
        return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0
    return 0
