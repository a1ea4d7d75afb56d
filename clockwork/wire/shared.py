"""Tensors in a client's memory, from and to which a worker on the same machine copies.

Where a tensor's dtype has SHARED added, its frame does not hold the tensor's bytes. An input's frame is a
Reference to them. An output's frame, a PLACE, locates them in the *room*: memory that a request may lend for
its outputs. Controller and sockets carry these few bytes alone.

All memory is anonymous (memfd_create(2)): no name is left when the client ends. A worker finds the memory by
the client's process and descriptor, which the kernel lets only the same user open, and accepts it only if it
begins with the key of the reference. The key is random: a sender that knows it has been able to read the
memory, and a reused descriptor is noticed. Nothing is computed in the memory, since its owner may write to it
at any time: a worker copies inputs from it.

A request may be executed although its client no longer waits: it was given up, or its worker was thought to
be lost. Such an execution may copy another request's inputs, and its result is dropped. A room therefore
belongs to a single request and is never used again, so that the execution cannot overwrite another request's
outputs.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

SHARED = 1 << 28  # The bit that is added to the code of a shared tensor's dtype

MACHINE = "machine"  # The key of a worker's machine_id() in its heartbeat

MAGIC = b"clockwork-memory"
KEY_BYTES = 16
FIRST_OFFSET = 64  # The first offset of tensors in the memory, behind MAGIC and the key

ALIGNMENT = 64  # The alignment of every tensor, also in a worker's copy, so that kernels can read it in place
SHARED_ALIGNMENT = ALIGNMENT

_REFERENCE = struct.Struct(f"<qqq{KEY_BYTES}sqq{KEY_BYTES}sq")
REFERENCE_BYTES = _REFERENCE.size
PLACE = struct.Struct("<qq")  # The offset and the bytes of an output
PLACE_BYTES = PLACE.size


class Reference(NamedTuple):
    """The location of an input, and the outputs' room. A request's first reference with a room counts."""

    machine: int  # machine_id() of the client
    process: int
    descriptor: int
    key: bytes
    offset: int
    room: int  # descriptor of the room's memory
    room_key: bytes
    room_bytes: int  # room for outputs, which begin at FIRST_OFFSET; 0: there is no room

    def pack(self) -> bytes:
        """The frame of the reference."""
        return _REFERENCE.pack(*self)


def unpack(frame: bytes) -> Reference:
    """Inverse of pack(). Raises ValueError for a frame of another size."""
    if len(frame) != REFERENCE_BYTES:
        raise ValueError(f"a reference to memory has {REFERENCE_BYTES} bytes, not {len(frame)}")
    return Reference(*_REFERENCE.unpack(frame))


def aligned(size: int) -> int:
    """The size, up to the next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Ranges:
    """The free ranges of a piece of memory, from ``begin`` to ``end``."""

    def __init__(self, begin: int, end: int) -> None:
        self._free = [(begin, end - begin)]  # (offset, size), ascending, never adjacent

    def take(self, size: int) -> int | None:
        """The offset of so many free bytes. The lowest is taken: used memory is in the processor's cache."""
        for place, (offset, free) in enumerate(self._free):
            if free >= size:
                if free == size:
                    del self._free[place]
                else:
                    self._free[place] = (offset + size, free - size)
                return offset
        return None

    def give_back(self, offset: int, size: int) -> None:
        free = self._free
        place = bisect.bisect(free, (offset,))
        free.insert(place, (offset, size))
        if place + 1 < len(free) and offset + size == free[place + 1][0]:
            free[place : place + 2] = [(offset, size + free[place + 1][1])]
        if place > 0 and sum(free[place - 1]) == offset:
            free[place - 1 : place + 1] = [(free[place - 1][0], free[place - 1][1] + free[place][1])]


def machine_id() -> int:
    """The number shared by processes that can open each other's memory: those of the same boot of a machine,
    the same namespace of processes and the same user. 0 where the system does not give it: then nothing is
    shared."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        processes = os.stat("/proc/self/ns/pid").st_ino
        user = os.geteuid()
    except (OSError, AttributeError):
        return 0
    digest = hashlib.sha256(b"%b %d %d" % (boot.strip(), processes, user)).digest()
    return int.from_bytes(digest[:8], "little") >> 2 or 1
