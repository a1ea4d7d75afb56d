"""A thread that hands on the flight recorder's stream as it is written."""

from __future__ import annotations

import threading
from collections.abc import Callable

from clockwork.config.recorder import FOLLOW_S, READ_BYTES
from clockwork.controller._exchange import Ring

Take = Callable[[int, bytes, int], bool]
"""take(place, piece, lost): a piece that begins at a place of the stream; b"": there is nothing more for now.

lost: bytes before the piece that the ring had forgotten. Returns False to end the follower. Called in the
follower's thread."""


class RingFollower:
    """Follows a ring from its start until it is closed, or ``take`` wants no more."""

    def __init__(self, name: str, ring: Ring, take: Take) -> None:
        self._ring = ring
        self._take = take
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self, within_s: float | None = None) -> bool:
        """Hand on the rest, and stop, waiting at most ``within_s`` seconds.

        False: ``take`` still has a piece, and the resources that it uses have to stay open.
        """
        self._stop.set()
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        following = 0
        is_last = False
        while not is_last:
            is_last = self._stop.wait(FOLLOW_S)
            is_at_end = False
            while not is_at_end:
                place, piece = self._ring.read(following, READ_BYTES)
                if not self._take(place, piece, place - following):
                    return
                following = place + len(piece)
                is_at_end = not piece
