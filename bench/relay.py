"""A bare relay of three processes, the lower bound of any round trip through a controller and a worker:

    caller --DEALER/ROUTER--> relay <--ROUTER/DEALER-- echo

Run as a program it is the relay, the echo, or a stamp: an echo that answers with the time that a message took
to it, computed from the last frame, the time at which the message left. Relay starts two of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import zmq

from clockwork.launch.local import die_with, held_ports
from clockwork.system.clock import now_ns


class Relay:
    """The two other processes and the caller's socket; use as a context manager. end: echo or stamp."""

    def __init__(self, end: str = "echo") -> None:
        self._held = contextlib.ExitStack()
        front, back = (f"tcp://127.0.0.1:{port}" for port in self._held.enter_context(held_ports(2)))
        self.endpoint = front
        root = Path(__file__).parent.parent
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.relay", role, front, back, str(os.getpid())], cwd=root
            )
            for role in ("relay", end)
        ]
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self._socket.connect(front)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        self._socket.close(0)
        self._context.term()
        self._held.close()

    def call(self, frames: list[bytes]) -> list[bytes]:
        """Send frames and wait until they are back."""
        self._socket.send_multipart(frames)
        return self._socket.recv_multipart()


def relay(front: str, back: str) -> None:
    """Pass messages between two ROUTER sockets; the echo introduces itself with an empty message."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    clients.bind(front)
    workers.bind(back)
    worker = workers.recv_multipart()[0]
    poller = zmq.Poller()
    poller.register(clients, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            identity, *frames = socket.recv_multipart()
            if socket is clients:
                workers.send_multipart([worker, identity, *frames])
            else:
                clients.send_multipart(frames)


def echo(back: str, stamped: bool = False) -> None:
    """Send every message back; if stamped, with the time since the time that its last frame holds."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(back)
    socket.send(b"")
    while True:
        frames = socket.recv_multipart()
        if stamped:
            sent_ns = int.from_bytes(frames[-1], "little")
            frames[-1] = (now_ns() - sent_ns).to_bytes(8, "little")
        socket.send_multipart(frames)


if __name__ == "__main__":
    die_with(int(sys.argv[4]))
    if sys.argv[1] == "relay":
        relay(sys.argv[2], sys.argv[3])
    else:
        echo(sys.argv[3], stamped=sys.argv[1] == "stamp")
