"""Reads and writes tensors in the memory of clients on this machine; see wire/shared.py.

The memory's owner is not trusted: a client may write to the memory, lock it or truncate it at any time.
Therefore it is never mapped, and no tensor is checked or computed on in place. Threads that may block
(system/copies.py) read inputs into the worker's own memory and write outputs.

A file is known to be anonymous memory before it is opened: opening a FIFO, a device, a file of a remote or
user file system or a file with a lease may block or have side effects.
"""

from __future__ import annotations

import functools
import hmac
import os
from collections.abc import Sequence
from typing import NamedTuple

from clockwork.config import COPY_PIECE_BYTES
from clockwork.device.base import TensorView
from clockwork.errors import InvalidInput
from clockwork.system.copies import Work
from clockwork.system.files import mount_of
from clockwork.wire.messages import TensorRef
from clockwork.wire.shared import FIRST_OFFSET, KEY_BYTES, MAGIC, SHARED, Reference, aligned, unpack
from clockwork.wire.tensors import STRING, tensor_bytes
from clockwork.wire.transport import Frame
from clockwork.worker.snapshots import Snapshots


class OutputRegion(NamedTuple):
    """The part of a client's memory in which a request's outputs may be written."""

    process: int
    descriptor: int
    key: bytes
    size: int

    def places(self, outputs: Sequence[TensorView]) -> list[int]:
        """Return the offset of each output; 0 for an output that does not fit or may not be written there."""
        found = []
        at = FIRST_OFFSET
        for dtype, _, data in outputs:
            size = memoryview(data).nbytes
            fits = dtype != STRING and at + size <= FIRST_OFFSET + self.size
            found.append(at if fits else 0)
            at += aligned(size) if fits else 0
        return found

    def write(self, outputs: Sequence[TensorView], places: Sequence[int]) -> Work:
        """Write the outputs whose offset in `places` is not 0, piece by piece.

        Raises InvalidInput where the memory cannot be written, for example because its client has ended."""
        with _Opened(self.process, self.descriptor, self.key, os.O_RDWR) as descriptor:
            for (_, _, data), at in zip(outputs, places):
                content = memoryview(data).cast("B")
                while at and content:
                    try:
                        written = os.pwrite(descriptor, content[:COPY_PIECE_BYTES], at)
                    except OSError as error:
                        raise _unusable(self.process, self.descriptor, str(error)) from None
                    content, at = content[written:], at + written
                    if content:
                        yield


class Wanted(NamedTuple):
    """An input that lies in its client's memory."""

    place: int  # index of the input in its request
    dtype: int
    shape: tuple[int, ...]
    size: int
    reference: Reference


class SharedInputs:
    """The inputs of one request that lie in its client's memory."""

    def __init__(self, row: list[TensorView]) -> None:
        """row: the inputs of the request; read() fills in those that add() entered."""
        self._row = row
        self._wanted: list[Wanted] = []
        self.room: OutputRegion | None = None

    @property
    def process(self) -> int:
        """The process id of the client."""
        return self._wanted[0].reference.process

    def add(self, dtype: int, shape: Sequence[int], frame: Frame) -> None:
        """Enter the next input of the row, to be read. Raises InvalidInput if its frame is no reference."""
        try:
            reference = unpack(bytes(frame))
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        dtype &= ~SHARED
        if dtype == STRING:
            raise InvalidInput(
                "strings in a client's memory: they are sent", expected="bytes", got="a reference"
            )
        if self._wanted and reference.process != self.process:
            raise InvalidInput(
                f"a request refers to memory of the processes {self.process} and {reference.process}",
                expected="memory of one process", got="of two",
            )  # fmt: skip
        self._wanted.append(
            Wanted(len(self._row), dtype, tuple(shape), tensor_bytes(dtype, shape), reference)
        )
        self._row.append(TensorView(dtype, tuple(shape), b""))
        if self.room is None and reference.room_bytes > 0:
            self.room = OutputRegion(
                reference.process, reference.room, reference.room_key, reference.room_bytes
            )

    def read(self, snapshots: Snapshots) -> Work:
        """Copy the inputs, piece by piece. Raises InvalidInput if a reference does not match the memory."""
        for place, dtype, shape, size, reference in self._wanted:
            with _Opened(reference.process, reference.descriptor, reference.key, os.O_RDONLY) as descriptor:
                whole = os.fstat(descriptor).st_size
                if not 0 <= reference.offset <= whole - size:
                    raise InvalidInput(
                        f"{size} bytes at {reference.offset} of a client's memory of {whole} bytes",
                        expected=f"at most {whole}", got=str(reference.offset + size),
                    )  # fmt: skip
                if size == 0:
                    continue
                target = snapshots.take(reference.process, size)
                done = 0
                while done < size:
                    piece = target[done : done + COPY_PIECE_BYTES].data
                    try:
                        read = os.preadv(descriptor, [piece], reference.offset + done)
                    except OSError as error:
                        raise _unusable(reference.process, reference.descriptor, str(error)) from None
                    if read == 0:
                        raise _unusable(reference.process, reference.descriptor, "it has become shorter")
                    done += read
                    if done < size:
                        yield
                self._row[place] = TensorView(dtype, shape, target.data)


class _Opened:
    """A client's memory while it is open. Raises InvalidInput unless it contains the request's key."""

    def __init__(self, process: int, descriptor: int, key: bytes, mode: int) -> None:
        self._process, self._number = process, descriptor
        try:
            self._descriptor = _open_memory(f"/proc/{process}/fd/{descriptor}", mode)
        except OSError as error:
            raise _unusable(process, descriptor, str(error)) from None
        why = "it has not the key of the request"
        try:
            if hmac.compare_digest(os.pread(self._descriptor, len(MAGIC) + KEY_BYTES, 0), MAGIC + key):
                return
        except OSError as error:  # for example, if its pages cannot be read from swap
            why = str(error)
        os.close(self._descriptor)
        raise _unusable(process, descriptor, why)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)


def _open_memory(path: str, mode: int) -> int:
    """Open the anonymous memory at a path below /proc and return its descriptor.

    Raises OSError, also for any other kind of file, which is neither opened nor asked of its file system."""
    if not os.readlink(path).startswith("/memfd:"):
        raise OSError("it is no memory")
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if (
            mount_of(seen) != _mount_of_memory()
        ):  # memory of huge pages has another type: no huge page may be left for a read
            raise OSError("it is no memory of ordinary pages")
        # NONBLOCK: opening memory with a lease fails at once instead of blocking.
        return os.open(f"/proc/self/fd/{seen}", mode | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(seen)


@functools.cache
def _mount_of_memory() -> int:
    descriptor = os.memfd_create("clockwork-worker", os.MFD_CLOEXEC)
    try:
        return mount_of(descriptor)
    finally:
        os.close(descriptor)


def views(
    parts: list[list[TensorRef]], frames: list[Frame]
) -> tuple[list[list[TensorView]], list[SharedInputs | None]]:
    """Return the inputs of each part, and the inputs that are still to be read from clients' memory.

    frames: all frames of the message, its header first. Raises InvalidInput for a reference to no frame. The
    device, which knows the model, checks whether a frame holds as many bytes as its tensor declares.
    """
    result = []
    shared: list[SharedInputs | None] = []
    for part in parts:
        row: list[TensorView] = []
        inputs: SharedInputs | None = None
        for dtype, shape, index in part:
            if index >= len(frames) - 1:
                raise InvalidInput(f"a tensor in frame {index} of a message with {len(frames) - 1}")
            if dtype & SHARED:
                inputs = inputs or SharedInputs(row)
                inputs.add(dtype, shape, frames[index + 1])
            else:
                row.append(TensorView(dtype, tuple(shape), frames[index + 1]))
        result.append(row)
        shared.append(inputs)
    return result, shared


def _unusable(process: int, descriptor: int, why: str) -> InvalidInput:
    return InvalidInput(
        f"this worker cannot use the memory of the client's process {process} (descriptor {descriptor}): {why}",
        expected="memory of a client on this machine", got=why,
    )  # fmt: skip
