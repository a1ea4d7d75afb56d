"""The memory of clients on this machine, in which their tensors lie; see wire/shared.py."""

from __future__ import annotations

import fcntl
import hmac
import mmap
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from clockwork.config.worker import CLIENT_MEMORIES_MAX
from clockwork.device.base import TensorView
from clockwork.errors import InvalidInput
from clockwork.wire.messages import TensorRef
from clockwork.wire.shared import FIRST_OFFSET, KEY_BYTES, MAGIC, PLACE, SHARED, Reference, aligned, unpack
from clockwork.wire.tensors import STRING, tensor_bytes
from clockwork.wire.transport import Frame


class Room(NamedTuple):
    """Where a request's outputs may be written."""

    process: int
    descriptor: int
    key: bytes
    size: int

    def write(self, outputs: Sequence[TensorView], refs: list[list[TensorRef]], frames: list[Frame]) -> None:
        """Add one request's outputs to a result: those that fit are written here, and the others go with the result, as
        all do where the room is gone because the client is."""
        row: list[TensorRef] = []
        descriptor = self._open()
        try:
            at = FIRST_OFFSET
            for dtype, shape, data in outputs:
                content = memoryview(data).cast("B")
                is_written = (
                    descriptor >= 0
                    and dtype != STRING
                    and at + content.nbytes <= FIRST_OFFSET + self.size
                    and _write(descriptor, content, at)
                )
                row.append([dtype | SHARED if is_written else dtype, shape, len(frames)])
                frames.append(PLACE.pack(at, content.nbytes) if is_written else data)
                if is_written:
                    at += aligned(content.nbytes)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        refs.append(row)

    def _open(self) -> int:
        """-1 where there is no such room any more."""
        try:
            descriptor = _open_memory(self.process, self.descriptor)
        except (OSError, ValueError):
            return -1
        head = os.pread(descriptor, len(MAGIC) + KEY_BYTES, 0)
        if not hmac.compare_digest(head, MAGIC + self.key):
            os.close(descriptor)
            return -1
        return descriptor


def _write(descriptor: int, content: memoryview, at: int) -> bool:
    """Whether all of it could be written."""
    try:
        while content:
            written = os.pwrite(descriptor, content, at)
            content, at = content[written:], at + written
    except OSError:
        return False
    return True


class _Found(NamedTuple):
    """A client's memory that is mapped. Views of it keep it mapped, also after it is forgotten here."""

    memory: mmap.mmap
    file: tuple[int, int]  # device and inode


class ClientMemories:
    """Memory of clients, mapped when a request first refers to it and forgotten when its client has ended."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, bytes], _Found] = {}  # in the order of use

    def __len__(self) -> int:
        return len(self._found)

    def input(self, dtype: int, shape: Sequence[int], frame: Frame) -> tuple[TensorView, Room | None]:
        """An input in its client's memory, and the room there for outputs. Raises InvalidInput."""
        try:
            reference = unpack(bytes(frame))
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        whole = memoryview(self._find(reference))
        dtype &= ~SHARED
        size = tensor_bytes(dtype, shape)
        _check_range(reference.offset, size, len(whole))
        view = TensorView(dtype, tuple(shape), whole[reference.offset : reference.offset + size])
        if reference.room_bytes <= 0:
            return view, None
        return view, Room(reference.process, reference.room, reference.room_key, reference.room_bytes)

    def sweep(self) -> None:
        """Forget the memory of clients that have ended, or have given it up."""
        for key, found in list(self._found.items()):
            try:
                state = os.stat(_path(key[0], key[1]))
            except OSError:
                state = None
            if state is None or (state.st_dev, state.st_ino) != found.file:
                del self._found[key]

    def _find(self, reference: Reference) -> mmap.mmap:
        key = (reference.process, reference.descriptor, reference.key)
        found = self._found.pop(key, None) or _open(reference)
        self._found[key] = found
        if len(self._found) > CLIENT_MEMORIES_MAX:
            del self._found[next(iter(self._found))]
        return found.memory


def _open(reference: Reference) -> _Found:
    """Raises InvalidInput unless it is a client's memory with the reference's key."""
    try:
        descriptor = _open_memory(reference.process, reference.descriptor)
        try:
            state = os.fstat(descriptor)
            # A huge page that cannot be had would end the process that touches it.
            if state.st_blksize > mmap.PAGESIZE:
                raise _unusable(reference, f"its pages have {state.st_blksize} bytes")
            memory = mmap.mmap(descriptor, state.st_size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise _unusable(reference, str(error)) from None
    head = memory[: len(MAGIC) + KEY_BYTES]
    if not hmac.compare_digest(head, MAGIC + reference.key):
        raise _unusable(reference, "it has not the key of the request")
    return _Found(memory, (state.st_dev, state.st_ino))


def _open_memory(process: int, descriptor: int) -> int:
    """A descriptor of a client's memory. Raises OSError, and ValueError for a file that is no such memory, or may become shorter."""
    path = _path(process, descriptor)
    # Looked at before it is opened: to open a device or a FIFO of another process may do something.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no memory")
    found = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        seals = fcntl.fcntl(found, fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_SHRINK:
            raise ValueError("it may become shorter")
    except BaseException:
        os.close(found)
        raise
    return found


def _path(process: int, descriptor: int) -> str:
    return f"/proc/{process}/fd/{descriptor}"


def _check_range(offset: int, size: int, whole: int) -> None:
    if not 0 <= offset <= whole - size:
        raise InvalidInput(
            f"{size} bytes at {offset} of a client's memory of {whole} bytes",
            expected=f"at most {whole}", got=str(offset + size),
        )  # fmt: skip


def _unusable(reference: Reference, why: str) -> InvalidInput:
    return InvalidInput(
        f"this worker cannot use the memory of the client's process {reference.process} (descriptor "
        f"{reference.descriptor}): {why}",
        expected="memory of a client on this machine", got=why,
    )  # fmt: skip
