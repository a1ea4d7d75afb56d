"""Memory that a client shares with workers on its machine, so that large tensors are written once and never
sent.

See clockwork/wire/shared.py for the layout. A request has a *loan* of memory until its answer has been read;
then the memory of its inputs is free for other requests.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from clockwork.config.client import (
    CLIENT_MEMORY_BYTES_MAX,
    CLIENT_MEMORY_PART_BYTES,
    CLIENT_MEMORY_PAUSE_MAX_NS,
    CLIENT_MEMORY_PAUSE_NS,
    CLIENT_ROOMS_MAX,
    CLIENT_SHARED_TENSOR_BYTES,
)
from clockwork.errors import ClockworkError, ConfigError, InvalidInput
from clockwork.system.clock import now_ns, to_seconds
from clockwork.wire.messages import NamedTensorRef
from clockwork.wire.shared import (
    FIRST_OFFSET,
    KEY_BYTES,
    MAGIC,
    PLACE,
    SHARED,
    Ranges,
    Reference,
    aligned,
    machine_id,
)
from clockwork.wire.tensors import STRING, Array
from clockwork.wire.transport import Frame

Outputs = TypeVar("Outputs")

log = logging.getLogger("clockwork.client")


def _create(size: int) -> tuple[int, bytes]:
    """Create memory of a fixed size that begins with a new key; return its descriptor and the key."""
    import fcntl  # imported here, because fcntl is missing on some clients' systems

    descriptor = -1
    try:
        descriptor = os.memfd_create("clockwork-client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        key = secrets.token_bytes(KEY_BYTES)
        os.pwrite(descriptor, MAGIC + key, 0)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise ClockworkError(f"no shared memory of {size} bytes: {error.strerror}") from None
    return descriptor, key


class _Part:
    """A piece of memory for inputs, and its free ranges."""

    def __init__(self, size: int) -> None:
        self.descriptor, self.key = _create(size)
        self.bytes: Array = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        self.size = size
        self.ranges = Ranges(FIRST_OFFSET, size)

    def close(self) -> None:
        """Unmap the memory. The system frees it when no process, worker or client, maps it any more."""
        os.close(self.descriptor)


class Loan:
    """The memory of a request: a range for its inputs, and a room for its outputs."""

    def __init__(self, memory: ClientMemory, room_bytes: int) -> None:
        self._memory = memory
        self._room_bytes = room_bytes
        self._room = -1
        self._part: _Part | None = None
        self._offset = self._size = 0

    @property
    def is_used(self) -> bool:
        """Whether the request refers to shared memory."""
        return self._part is not None

    def place(self, references: list[NamedTensorRef], frames: list[Frame]) -> None:
        """Write a request's large inputs to shared memory, and replace their frames by references.

        The request stays unchanged where it has no large input, or where no memory is left. A request that
        only has a room for outputs also needs a reference, which tells the place of the room; then its
        largest input is written.
        """
        sizes = [
            (reference, memoryview(frames[reference[3]]).nbytes)
            for reference in references
            if reference[1] != STRING
        ]
        large = [(reference, size) for reference, size in sizes if size >= CLIENT_SHARED_TENSOR_BYTES]
        if not large and self._room_bytes:
            # The largest input, because an optional input's value, which is small, cannot be in shared
            # memory.
            large = sorted((pair for pair in sizes if pair[1] > 0), key=lambda pair: -pair[1])[:1]
        whole = sum(aligned(size) for _, size in large)
        found = self._memory.take(whole) if large else None
        if found is None:
            return
        part, at = found
        self._part, self._offset, self._size = part, at, whole
        room_key = bytes(KEY_BYTES)
        if self._room_bytes:
            self._room, room_key = _create(FIRST_OFFSET + self._room_bytes)
        for reference, size in large:
            # np.copyto() instead of a slice assignment, because it lets other threads run.
            np.copyto(part.bytes[at : at + size], np.frombuffer(frames[reference[3]], np.uint8))
            where = Reference(
                self._memory.machine, os.getpid(), part.descriptor, part.key, at, self._room, room_key, self._room_bytes
            )  # fmt: skip
            frames[reference[3]] = where.pack()
            reference[1] |= SHARED
            at += aligned(size)

    def fetch(self, frame: Frame) -> Array:
        """Return the bytes of an output that the worker wrote.

        Raises InvalidInput for a place outside the room.
        """
        place = bytes(frame)
        at, size = PLACE.unpack(place) if len(place) == PLACE.size else (-1, 0)
        if self._room < 0 or not 0 <= size <= self._room_bytes - (at - FIRST_OFFSET) <= self._room_bytes:
            raise InvalidInput("an output is in memory that the request did not lend")
        found = np.empty(size, np.uint8)
        done = 0
        while done < size:
            read = os.preadv(self._room, [found[done:].data], at + done)
            assert read > 0, "the room is as large as it was made"
            done += read
        return found

    def release(self) -> None:
        """Release the memory. Idempotent."""
        if self._room >= 0:
            os.close(self._room)
            self._room = -1
        if self._part is not None:
            self._memory.give_back(self._part, self._offset, self._size)
            self._part = None


class AnsweredInvalidInput(InvalidInput):
    """An error in the answer of a request that was carried out, so that sending it again would not help."""


class _AskedTwice(Future[Any]):
    """The future of a request that is sent again where a worker cannot use its memory.

    cancel() cancels the attempt under way.
    """

    def __init__(self, asked: Future[Any]) -> None:
        super().__init__()
        self._asked = asked

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._asked.cancel()
        return cancelled

    def follow(self, asked: Future[Any]) -> None:
        """Follow the future of a second attempt."""
        self._asked = asked
        if self.cancelled():  # cancelled before the second attempt began
            asked.cancel()

    def end(self, asked: Future[Any]) -> None:
        """End with the outcome of the attempt ``asked``."""
        if asked.cancelled():
            super().cancel()
        if not self.set_running_or_notify_cancel():
            return
        error = asked.exception()
        if error is None:
            self.set_result(asked.result())
        else:
            self.set_exception(error)

    def fail(self, error: ClockworkError) -> None:
        if self.set_running_or_notify_cancel():
            self.set_exception(error)


class ClientMemory:
    """All memory that a client shares. Thread-safe.

    A worker that cannot use the memory fails the request, which is then sent again with its tensors. After
    that, sharing pauses (for CLIENT_MEMORY_PAUSE_NS, and longer each time in a row), and a warning is logged.
    """

    def __init__(self) -> None:
        """Raise ConfigError where the system has no such memory."""
        self.machine = machine_id() if hasattr(os, "memfd_create") else 0
        if self.machine == 0:
            raise ConfigError("shared_memory=True needs Linux, with /proc and memfd_create()")
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._parts: list[_Part] = []
        self._rooms: dict[str, int] = {}  # bytes of the largest outputs of each model so far
        self._paused_until_ns = 0
        self._pause_ns = CLIENT_MEMORY_PAUSE_NS
        self._is_closed = False

    @property
    def is_paused(self) -> bool:
        """Whether sharing pauses, because a worker could not use the memory."""
        return now_ns() < self._paused_until_ns

    def infer(self, ask: Callable[[Loan | None], Outputs], model: str) -> Outputs:
        """Return the outputs of a request.

        ask: carries the request out with a loan; None: tensors in the message.
        """
        loan = self._lend(model)
        if loan is None:
            return ask(None)
        try:
            outputs = ask(loan)
        except InvalidInput as error:
            if not loan.is_used or isinstance(error, AnsweredInvalidInput):
                raise
            refused = error
        else:
            self._note_answer(model, outputs, loan.is_used)
            return outputs
        finally:
            loan.release()
        outputs = ask(None)  # raises the error where the tensors themselves are wrong
        self._pause(refused)
        return outputs

    def submit(self, ask: Callable[[Loan | None], Future[Outputs]], model: str) -> Future[Outputs]:
        """Like infer(), for an ``ask`` that begins the request and returns its future."""
        loan = self._lend(model)
        if loan is None:
            return ask(None)
        try:
            asked = ask(loan)
        except BaseException:
            loan.release()
            raise
        is_used = loan.is_used
        future = _AskedTwice(asked)

        def answered(asked: Future[Outputs]) -> None:
            loan.release()
            refused = None if asked.cancelled() else asked.exception()
            if (
                not is_used
                or not isinstance(refused, InvalidInput)
                or isinstance(refused, AnsweredInvalidInput)
            ):
                future.end(asked)
                if refused is None and not asked.cancelled():
                    self._note_answer(model, asked.result(), is_used)
                return

            def answered_again(asked: Future[Outputs]) -> None:
                if not asked.cancelled() and asked.exception() is None:
                    self._pause(refused)
                future.end(asked)

            try:
                again = ask(None)
            except ClockworkError as error:
                future.fail(error)
                return
            future.follow(again)
            again.add_done_callback(answered_again)

        asked.add_done_callback(answered)
        return future

    def take(self, size: int) -> tuple[_Part, int] | None:
        """Reserve bytes, and return their part and offset in it; None past the bound."""
        with self._lock:
            if self._is_closed:
                return None
            for part in self._parts:
                if (offset := part.ranges.take(size)) is not None:
                    return part, offset
            part_bytes = max(CLIENT_MEMORY_PART_BYTES, FIRST_OFFSET + size)
            if sum(part.size for part in self._parts) + part_bytes > CLIENT_MEMORY_BYTES_MAX:
                return None
            part = _Part(part_bytes)
            self._parts.append(part)
            offset = part.ranges.take(size)
            assert offset is not None
            return part, offset

    def give_back(self, part: _Part, offset: int, size: int) -> None:
        with self._lock:
            part.ranges.give_back(offset, size)

    def close(self) -> None:
        """Make workers forget the memory. Idempotent."""
        with self._lock:
            self._is_closed = True
            for part in self._parts:
                part.close()
            self._parts.clear()

    def _lend(self, model: str) -> Loan | None:
        # After a fork, both processes would lend the same memory.
        if self.is_paused or os.getpid() != self._process:
            return None
        return Loan(self, self._rooms.get(model, 0))

    def _pause(self, refused: InvalidInput) -> None:
        pause_ns, self._pause_ns = self._pause_ns, min(2 * self._pause_ns, CLIENT_MEMORY_PAUSE_MAX_NS)
        self._paused_until_ns = now_ns() + pause_ns
        log.warning("tensors are sent, not shared, for %g s: %s", to_seconds(pause_ns), refused)

    def _note_answer(self, model: str, outputs: Any, is_by_reference: bool) -> None:
        """Note the size of outputs, so that the model's next request gets a room for them if any is large."""
        if is_by_reference:
            self._pause_ns = CLIENT_MEMORY_PAUSE_NS
        arrays = outputs.values() if isinstance(outputs, dict) else (outputs,)
        sizes = [array.nbytes for array in arrays if array.dtype != object]
        if max(sizes, default=0) < CLIENT_SHARED_TENSOR_BYTES:
            return
        room_bytes = sum(map(aligned, sizes))
        if room_bytes > self._rooms.get(model, 0):
            if len(self._rooms) >= CLIENT_ROOMS_MAX:
                self._rooms.clear()
            self._rooms[model] = room_bytes
