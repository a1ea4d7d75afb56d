"""Compressed bodies, within bounds."""

from __future__ import annotations

import asyncio
import gzip
import os
import time
import zlib
from collections.abc import Callable

import pytest

from clockwork.config.gateway import PIECE_BYTES
from clockwork.errors import InvalidInput
from clockwork.gateway.errors import TooLarge, Unsupported
from clockwork.gateway.inflate import Inflater

MIB = 1 << 20


def raw(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-15)


class Held:
    """Return the bytes that are held, and the peak."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __call__(self, count: int) -> None:
        self.now += count
        self.most = max(self.most, self.now)


def inflate(body: bytes, encoding: str, limit: int, held: Held) -> bytes:
    inflater = Inflater()
    try:
        return asyncio.run(inflater.inflate(body, encoding, limit, held))
    finally:
        inflater.close()


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw)]
)
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 7])
def test_what_was_compressed_comes_back(encoding: str, pack: Callable[[bytes], bytes], size: int) -> None:
    body, held = os.urandom(size), Held()
    assert inflate(pack(body), encoding, 4 * PIECE_BYTES, held) == body
    assert held.now == size


def test_more_than_the_limit_is_never_in_memory() -> None:
    held = Held()
    with pytest.raises(TooLarge, match="more than 2097152 bytes"):
        inflate(gzip.compress(bytes(64 * MIB)), "gzip", 2 * MIB, held)
    assert held.now == 0
    assert held.most <= 2 * MIB + PIECE_BYTES


def test_a_ratio_beyond_the_bound_is_refused_below_the_limit() -> None:
    held = Held()
    packed = gzip.compress(bytes(60 * MIB))
    assert len(packed) < 62_000
    with pytest.raises(TooLarge):
        inflate(packed, "gzip", 64 * MIB, held)
    assert held.most < 17 * MIB


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_broken_is_refused_and_nothing_is_held(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    whole = pack(os.urandom(2 * MIB))
    for body in (b"garbage" * 10, b"", whole[:-9], whole + b"more"):
        held = Held()
        with pytest.raises(InvalidInput, match="broken"):
            inflate(body, encoding, 64 * MIB, held)
        assert held.now == 0


def test_an_encoding_that_is_not_known_is_refused() -> None:
    with pytest.raises(Unsupported, match="'br'"):
        inflate(b"x", "br", MIB, Held())


@pytest.mark.slow
def test_the_loop_has_its_turn_while_bodies_are_inflated() -> None:
    packed = gzip.compress(bytes(12 * MIB) + os.urandom(60_000))

    async def longest_pause_s() -> float:
        """Measured by the loop's own processor time, which other processes do not lengthen."""
        inflater, pauses, last = Inflater(), [0.0], time.thread_time()
        held = Held()
        work = asyncio.gather(*(inflater.inflate(packed, "gzip", 64 * MIB, held) for _ in range(40)))
        while not work.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            pauses.append(now - last)
            last = now
        await work
        inflater.close()
        return max(pauses)

    begun = time.process_time()
    pause = asyncio.run(longest_pause_s())
    assert pause < (time.process_time() - begun) / 4, "they were inflated on the loop"
