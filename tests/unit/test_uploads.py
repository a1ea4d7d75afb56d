"""Which upload gives way when there is no room for another, and which one ends by itself."""

from __future__ import annotations

from collections import deque

import pytest

from clockwork.config.controller import UPLOAD_BYTES_LEAST, UPLOAD_IDLE_NS, UPLOAD_STALL_NS, UPLOADS_MAX
from clockwork.controller.effects import Effect, OpenUpload, Refuse, WriteChunk
from clockwork.controller.models.version import Waiter
from clockwork.controller.registration.uploads import Registration, Uploads
from clockwork.errors import Unavailable
from clockwork.formats.package import PackageFile
from clockwork.system.clock import SECOND
from clockwork.wire.messages import UploadChunk

FILE = PackageFile("model.onnx", 4 * UPLOAD_BYTES_LEAST, "0" * 64)


class Played:
    """Uploads, whose storage does each job at once."""

    def __init__(self) -> None:
        self.effects: deque[Effect] = deque()
        self.uploads = Uploads(self.effects)
        self.refused: dict[bytes, str] = {}

    def begin(self, client: bytes, owner: int) -> None:
        self.uploads.begin(Waiter(client, 1), Registration("m", "digest", {}, [FILE], owner))
        self._work()

    def send(self, client: bytes, size: int) -> None:
        self.uploads.chunk(client, UploadChunk(1, 0, 0), bytes(size))
        self._work()

    def beat(self, now_ns: int) -> None:
        self.uploads.beat(now_ns)
        self._work()

    def fill(self, owner_of: int = 0) -> list[bytes]:
        """All the room there is: by one owner, or (0) by as many as there are uploads."""
        clients = [b"%d" % number for number in range(UPLOADS_MAX)]
        for number, client in enumerate(clients):
            self.begin(client, owner_of or 1_000 + number)
        return clients

    def _work(self) -> None:
        while self.effects:
            effect = self.effects.popleft()
            if isinstance(effect, OpenUpload | WriteChunk):
                self.uploads.ended(effect, True, None)
            elif isinstance(effect, Refuse):
                self.refused[effect.waiter.client] = str(effect.error)


def test_an_owner_of_many_uploads_gives_way_at_once() -> None:
    played = Played()
    first, second, *_ = played.fill(owner_of=1)
    played.beat(SECOND)
    played.send(first, UPLOAD_BYTES_LEAST)
    played.begin(b"honest", 2)
    assert list(played.refused) == [second], "the idlest"
    assert "gave way to another" in played.refused[second]


def test_an_upload_that_stands_still_gives_way_and_no_other() -> None:
    played = Played()
    first, second, *others = played.fill()
    played.beat(SECOND)
    with pytest.raises(Unavailable, match="64 uploads are under way"):
        played.begin(b"early", 2)
    for client in (first, *others):
        played.send(client, UPLOAD_BYTES_LEAST)
    played.send(second, 1)  # less than the required progress
    played.beat(SECOND + UPLOAD_STALL_NS)
    played.begin(b"honest", 2)
    assert list(played.refused) == [second]
    with pytest.raises(Unavailable):
        played.begin(b"late", 3)


def test_an_upload_of_which_nothing_comes_ends() -> None:
    played = Played()
    for client in (b"silent", b"trickling", b"steady"):
        played.begin(client, 1)
    played.beat(0)
    for turn in range(1, 4):
        played.send(b"trickling", 1_000)
        played.send(b"steady", UPLOAD_BYTES_LEAST)
        played.beat(turn * UPLOAD_IDLE_NS // 3)
    assert set(played.refused) == {b"silent", b"trickling"}
    assert "256 KiB came in 60 s" in played.refused[b"silent"]
