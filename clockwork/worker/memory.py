"""The memory of clients on this machine, in which their tensors lie; see wire/shared.py.

Nothing here trusts its owner, who may write to it, lock it or make it shorter at any time. So it is never mapped, and no
tensor is computed on, or even checked, in it: inputs are read into memory of the worker's own, and outputs written, by
threads that may wait (system/copies.py). What is opened is known to be such memory before it is opened, since to open another
file may wait, or do something: a FIFO, a device, a file of a remote or a user's file system, a file with a lease.
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


class Room(NamedTuple):
    """Where a request's outputs may be written."""

    process: int
    descriptor: int
    key: bytes
    size: int

    def places(self, outputs: Sequence[TensorView]) -> list[int]:
        """The offset of each output in the room; 0 for an output that does not fit, or may not lie there."""
        found = []
        at = FIRST_OFFSET
        for dtype, _, data in outputs:
            size = memoryview(data).nbytes
            fits = dtype != STRING and at + size <= FIRST_OFFSET + self.size
            found.append(at if fits else 0)
            at += aligned(size) if fits else 0
        return found

    def write(self, outputs: Sequence[TensorView], places: Sequence[int]) -> Work:
        """Write the outputs that have places, piece by piece. Raises InvalidInput where the room is gone, as it is with
        its client, or cannot be written to."""
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

    place: int  # among the inputs of its request
    dtype: int
    shape: tuple[int, ...]
    size: int
    reference: Reference


class SharedInputs:
    """The inputs of one request that lie in its client's memory."""

    def __init__(self, row: list[TensorView]) -> None:
        """row: the request's inputs; it gets those of add() as they are read."""
        self._row = row
        self._wanted: list[Wanted] = []
        self.room: Room | None = None

    @property
    def process(self) -> int:
        """The client's."""
        return self._wanted[0].reference.process

    def add(self, dtype: int, shape: Sequence[int], frame: Frame) -> None:
        """Want the next input of the row. Raises InvalidInput for a frame that is no reference to one."""
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
            self.room = Room(reference.process, reference.room, reference.room_key, reference.room_bytes)

    def read(self, snapshots: Snapshots) -> Work:
        """Copy the inputs, piece by piece. Raises InvalidInput where their memory is not what the references say."""
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
    """A client's memory, open while it is read or written. Raises InvalidInput unless it has the key of the request."""

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
        except OSError as error:  # its pages cannot be read from swap, say
            why = str(error)
        os.close(self._descriptor)
        raise _unusable(process, descriptor, why)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)


def _open_memory(path: str, mode: int) -> int:
    """A descriptor of the anonymous memory at a path below /proc. Raises OSError, also for everything else: that is not
    opened, and nothing that looks at it here asks its file system."""
    if not os.readlink(path).startswith("/memfd:"):
        raise OSError("it is no memory")
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if (
            mount_of(seen) != _mount_of_memory()
        ):  # that of huge pages has another: there may be none left to read
            raise OSError("it is no memory of ordinary pages")
        # NONBLOCK: of memory with a lease it is refused at once.
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
    """The inputs of each part, in place, and what of them is still to be read. Raises InvalidInput for a reference that
    leads nowhere.

    frames: of the whole message, its header first. Whether a frame holds what its reference declares is for the device
    to check: it knows the model.
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
