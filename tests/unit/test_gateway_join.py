"""Joining the pieces of a message without the interpreter's lock."""

from __future__ import annotations

import numpy as np
import pytest
import zmq

from clockwork.gateway._join import join


def test_pieces_of_every_kind_become_one() -> None:
    frame = zmq.Frame(bytes(range(256)) * 4096)
    floats = memoryview(np.arange(1000, dtype=np.float32)).cast("B")
    pieces = [b"", b"head", bytearray(b"x"), frame, memoryview(b"abcdef")[1:3], floats, b""]
    assert join(pieces) == b"".join(map(bytes, pieces))
    assert join([]) == b""


def test_pieces_that_are_not_in_one_row_are_refused() -> None:
    with pytest.raises(BufferError):
        join([b"head", memoryview(b"abcdef")[::2]])
    with pytest.raises(TypeError):
        join(["text"])
