"""A server on a plain socket that sends without end for as long as its peer reads."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from bench import zmtp
from clockwork.wire import codec
from clockwork.wire.messages import PROTOCOL_VERSION, ClientWelcome
from tests.patience import PATIENCE_S

FRAME = zmtp.frame_head(1 << 20, zmtp.MORE) + bytes(1 << 20)


class Endless:
    """Accepts connections, one after the other, sends the given bytes, and then data repeatedly: by default,
    frames of a message without an end."""

    def __init__(self, first: Callable[[socket.socket], None], data: bytes = FRAME) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sent: list[int] = []  # bytes sent on each connection until it ended
        self._first = first
        self._data = data
        self._ended = threading.Condition()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                one, _ = self.listener.accept()
                sent = 0
                self._open[:] = [one]
                with one, contextlib.suppress(OSError, AssertionError):
                    zmtp.shake_hands(one)
                    self._first(one)
                    while True:
                        sent += one.send(self._data)
                with self._ended:
                    self.sent.append(sent)
                    self._ended.notify_all()

    def wait_for_end(self, count: int = 1) -> None:
        with self._ended:
            assert self._ended.wait_for(lambda: len(self.sent) >= count, PATIENCE_S), (
                "it takes without an end"
            )

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def welcome(one: socket.socket) -> None:
    zmtp.read_message(one)
    one.sendall(zmtp.message([codec.encode(ClientWelcome(PROTOCOL_VERSION, "endless", 1))]))


def after_a_request(one: socket.socket) -> None:
    welcome(one)
    zmtp.read_message(one)
    one.settimeout(None)
