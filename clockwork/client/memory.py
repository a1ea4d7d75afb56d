"""Memory that a client shares with workers on its machine, so that large tensors are written once and never sent.

See clockwork/wire/shared.py for the form. A request has a *loan* of it, until its answer has been read: then the memory of
its inputs is another's.
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
    """Anonymous memory of that size for good, which begins with a new key: its descriptor and the key."""
    import fcntl  # here, because the client runs where there is none

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
    """A piece of memory for inputs, and what of it is free."""

    def __init__(self, size: int) -> None:
        self.descriptor, self.key = _create(size)
        self.bytes: Array = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        self.size = size
        self.ranges = Ranges(FIRST_OFFSET, size)

    def close(self) -> None:
        """The memory itself goes when nobody maps it any more, workers included."""
        os.close(self.descriptor)


class Loan:
    """The memory of one request: for its inputs, and a room for its outputs."""

    def __init__(self, memory: ClientMemory, room_bytes: int) -> None:
        self._memory = memory
        self._room_bytes = room_bytes
        self._room = -1
        self._part: _Part | None = None
        self._offset = self._size = 0

    @property
    def is_used(self) -> bool:
        """Whether the request refers to memory."""
        return self._part is not None

    def place(self, references: list[NamedTensorRef], frames: list[Frame]) -> None:
        """Write a request's large inputs to memory, and put references in the place of their frames. The request stays as
        it is where there are none, or no memory is left. For a room alone, any input has to do, since its reference says
        where the room is."""
        sizes = [(one, memoryview(frames[one[3]]).nbytes) for one in references if one[1] != STRING]
        large = [(one, size) for one, size in sizes if size >= CLIENT_SHARED_TENSOR_BYTES]
        if not large and self._room_bytes:
            # The largest, because the value of an optional input cannot be lent, and is small.
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
            # Not by a slice of the mapping: this copy lets other threads run.
            np.copyto(part.bytes[at : at + size], np.frombuffer(frames[reference[3]], np.uint8))
            where = Reference(
                self._memory.machine, os.getpid(), part.descriptor, part.key, at, self._room, room_key, self._room_bytes
            )  # fmt: skip
            frames[reference[3]] = where.pack()
            reference[1] |= SHARED
            at += aligned(size)

    def fetch(self, frame: Frame) -> Array:
        """The bytes of an output that the worker wrote. Raises InvalidInput for a place that is not in the room."""
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
        """Give the memory back. Idempotent."""
        if self._room >= 0:
            os.close(self._room)
            self._room = -1
        if self._part is not None:
            self._memory.give_back(self._part, self._offset, self._size)
            self._part = None


class AnsweredInvalidInput(InvalidInput):
    """An error that is found in the answer of a request that was carried out: sending it again would change nothing."""


class _AskedTwice(Future[Any]):
    """The future of a request that is sent again where its memory cannot be used. cancel() cancels the attempt under way."""

    def __init__(self, asked: Future[Any]) -> None:
        super().__init__()
        self._asked = asked

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._asked.cancel()
        return cancelled

    def follow(self, asked: Future[Any]) -> None:
        """It is asked again."""
        self._asked = asked
        if self.cancelled():  # meanwhile
            asked.cancel()

    def end(self, asked: Future[Any]) -> None:
        """As that one has ended."""
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
    """All memory that one client shares. Thread-safe.

    A worker that cannot use it fails the request, which is then sent again with its tensors in it; after that, nothing is
    shared for a while (CLIENT_MEMORY_PAUSE_NS, and longer each time in a row), and a warning is logged.
    """

    def __init__(self) -> None:
        """Raises ConfigError where the system has no such memory."""
        self.machine = machine_id() if hasattr(os, "memfd_create") else 0
        if self.machine == 0:
            raise ConfigError("shared_memory=True needs Linux, with /proc and memfd_create()")
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._parts: list[_Part] = []
        self._rooms: dict[str, int] = {}  # by model: the bytes of the largest outputs that it gave
        self._paused_until_ns = 0
        self._pause_ns = CLIENT_MEMORY_PAUSE_NS
        self._is_closed = False

    @property
    def is_paused(self) -> bool:
        """Whether nothing is shared now, because a worker could not use it."""
        return now_ns() < self._paused_until_ns

    def infer(self, ask: Callable[[Loan | None], Outputs], model: str) -> Outputs:
        """The outputs of a request. ask: carries it out; its argument is where its tensors may lie, None: with it."""
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
        outputs = ask(None)  # where the tensors themselves are wrong, this says so
        self._pause(refused)
        return outputs

    def submit(self, ask: Callable[[Loan | None], Future[Outputs]], model: str) -> Future[Outputs]:
        """Like infer(), of a request that ask() begins and whose future it returns."""
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
        """So many bytes, in which part and where; None where the bound is reached."""
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
        """Have workers forget the memory. Idempotent."""
        with self._lock:
            self._is_closed = True
            for part in self._parts:
                part.close()
            self._parts.clear()

    def _lend(self, model: str) -> Loan | None:
        # After a fork, two processes would each think that the memory is theirs to lend.
        if self.is_paused or os.getpid() != self._process:
            return None
        return Loan(self, self._rooms.get(model, 0))

    def _pause(self, refused: InvalidInput) -> None:
        pause_ns, self._pause_ns = self._pause_ns, min(2 * self._pause_ns, CLIENT_MEMORY_PAUSE_MAX_NS)
        self._paused_until_ns = now_ns() + pause_ns
        log.warning("tensors are sent, not shared, for %g s: %s", to_seconds(pause_ns), refused)

    def _note_answer(self, model: str, outputs: Any, is_by_reference: bool) -> None:
        """Lend the next request of the model room for outputs like these, if any of them is large."""
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
