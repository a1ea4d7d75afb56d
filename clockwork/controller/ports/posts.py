"""Messages to peers, encoded where they are decided: a message that cannot be encoded fails its handler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clockwork.controller._exchange import CLIENTS, WORKERS
from clockwork.controller.effects import Post
from clockwork.wire import codec
from clockwork.wire.messages import Reply


def to_client(identity: bytes, fd: int, message: tuple[Any, ...]) -> Post:
    """A message for the client at a descriptor."""
    if type(message) is Reply:
        header, rest = codec.encode_reply(message)
        return Post(CLIENTS, identity, fd, header, rest)
    return Post(CLIENTS, identity, fd, codec.encode(message))


def to_worker(identity: bytes, fd: int, message: tuple[Any, ...], frames: Sequence[Any] = ()) -> Post:
    """A message for the worker at a descriptor. frames: bytes-like, unchanged until they are sent."""
    return Post(WORKERS, identity, fd, codec.encode(message), b"", frames)
