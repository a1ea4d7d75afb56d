"""A TCP proxy that can delay, slow, hold and cut its connections."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import struct
import threading
from collections.abc import Iterator

from clockwork.system.clock import now_ns

TIMEOUT_S = 10.0
RETRY_S = 0.02
PIECE_BYTES = 1 << 16
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST, as from a host that has forgotten the connection."""

Delays = tuple[float, float]
"""Bounds of the delay of a piece, in milliseconds."""


class Link:
    """Forwards TCP connections, each piece with a random delay, in order, each direction on its own.

    A held link is half open: both ends have a connection, and nothing arrives until the link is released.
    Data sent meanwhile arrives then, as if TCP retransmitted it. New connections are accepted, and held, too.

    bandwidth: bytes/s of each connection from the target, which feels the backpressure; 0: no bound.
    """

    def __init__(
        self,
        target: str,
        there_ms: Delays = (0, 0),
        back_ms: Delays = (0, 0),
        seed: int = 0,
        bandwidth: int = 0,
    ) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._delays = (there_ms, back_ms)
        self._seed = seed
        self._bandwidth = bandwidth
        self._listener = socket.create_server((host, 0))
        self.endpoint = f"tcp://{host}:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._closed = threading.Event()
        self._open = threading.Event()  # cleared while the link is held
        self._open.set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def delay(self, there_ms: Delays, back_ms: Delays) -> None:
        """Set the delays of everything read from now on."""
        self._delays = (there_ms, back_ms)

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Reset every connection; new ones are accepted at once."""
        with self._lock:
            cut, self._sockets = self._sockets, []
        for connection in cut:
            with contextlib.suppress(OSError):  # the socket's other end may have closed first
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                connection.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
            connection.close()

    def _start(self, function: object, *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # the socket was closed
                return
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets = [socket for socket in self._sockets if socket.fileno() >= 0] + [near]
            self._start(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        """Connect to the target, retrying while nothing listens there, because a link cannot refuse."""
        while True:
            try:
                far = socket.create_connection(self._target)
                break
            except ConnectionRefusedError:
                if self._closed.wait(RETRY_S) or near.fileno() < 0:
                    return
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets.append(far)
            if near.fileno() < 0 or self._closed.is_set():  # the link was cut meanwhile
                far.close()
                return
        for direction, (source, target) in enumerate(((near, far), (far, near))):
            pieces: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
            self._seed += 1
            self._start(self._read, source, pieces, direction, random.Random(self._seed))
            self._start(self._write, source, target, pieces)

    def _read(
        self,
        source: socket.socket,
        pieces: queue.SimpleQueue[tuple[int, bytes]],
        direction: int,
        rng: random.Random,
    ) -> None:
        data = b"-"
        free_ns = 0
        bandwidth = self._bandwidth if direction == 1 else 0
        while data:
            try:
                data = source.recv(PIECE_BYTES)
            except OSError:
                data = b""
            due_ns = now_ns() + int(rng.uniform(*self._delays[direction]) * 1e6)
            if bandwidth:
                due_ns = free_ns = max(due_ns, free_ns) + len(data) * 1_000_000_000 // bandwidth
            pieces.put((due_ns, data))
            if bandwidth and self._closed.wait(max(free_ns - now_ns(), 0) / 1e9):  # the piece is on its way
                return

    def _write(
        self, source: socket.socket, target: socket.socket, pieces: queue.SimpleQueue[tuple[int, bytes]]
    ) -> None:
        while True:
            due_ns, data = pieces.get()
            wait_ns = due_ns - now_ns()
            if wait_ns > 0 and self._closed.wait(wait_ns / 1e9):  # this wait is the delay itself
                return
            self._open.wait()
            if self._closed.is_set():
                return
            try:
                if not data:
                    target.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(data)
            except OSError:
                with contextlib.suppress(OSError):  # the other side may have ended at the same time
                    source.shutdown(socket.SHUT_RDWR)  # the end of one side ends the other, too
                return

    def close(self) -> None:
        """Idempotent."""
        if self._closed.is_set():
            return
        with self._lock:
            self._closed.set()
        self._open.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(TIMEOUT_S)
        with self._lock:
            ended, self._sockets = self._sockets, []
        for connection in ended:
            with contextlib.suppress(OSError):  # the socket's other end may have closed first
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


@contextlib.contextmanager
def link(target: str, there_ms: Delays = (0, 0), back_ms: Delays = (0, 0), seed: int = 0) -> Iterator[Link]:
    opened = Link(target, there_ms, back_ms, seed)
    try:
        yield opened
    finally:
        opened.close()
