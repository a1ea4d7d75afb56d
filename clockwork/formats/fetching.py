"""Fetches packages through the controller into the local store, chunk by chunk.

The worker's loop requests chunks and receives them; a thread writes, hashes and syncs. A chunk counts as
pending until it has been written. So socket and memory together never hold more than a window of chunks of a
package.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from clockwork.config import CHUNK_BYTES, CHUNK_WINDOW
from clockwork.config.formats import TRANSFERS_MAX
from clockwork.errors import InvalidModel
from clockwork.formats.package import PackageFile, PackageWriter
from clockwork.wire.messages import Chunk, Fetch, Status


class Fetched(NamedTuple):
    """The end of a transfer: the package has arrived (OK), or has failed."""

    digest: str
    status: Status
    text: str
    is_local: bool = False  # whether it failed because it could not be written here


class Pieces(NamedTuple):
    """How packages are fetched."""

    chunk_bytes: int = CHUNK_BYTES
    window: int = CHUNK_WINDOW  # chunks of a package that are pending at a time
    transfers: int = TRANSFERS_MAX  # packages at a time
    syncs: bool = True  # False: the caller syncs the files


PACKAGE_PIECES = Pieces()


class Landing(Protocol):
    """The store in which packages arrive."""

    def writer(self, files: Sequence[PackageFile]) -> PackageWriter:
        """Begin a package. Raises OSError."""
        ...


class _Transfer:
    """A pending package, as the loop sees it."""

    __slots__ = ("asked", "digest", "file", "files", "offset", "under_way")

    def __init__(self, digest: str, files: list[PackageFile]) -> None:
        self.digest = digest
        self.files = files
        # (file, offset) -> length of chunks that were requested and have not arrived
        self.asked: dict[tuple[int, int], int] = {}
        self.under_way = 0  # chunks that were requested and are not written yet
        self.file, self.offset = 0, 0  # place of the next chunk to request

    def next_chunk(self, chunk_bytes: int) -> tuple[int, int, int] | None:
        """Advance to the next chunk. Returns its (file, offset, length), or None when all were requested."""
        while self.file < len(self.files):
            size = self.files[self.file].bytes
            if self.offset < size:
                length = min(chunk_bytes, size - self.offset)
                chunk = (self.file, self.offset, length)
                self.offset += length
                return chunk
            self.file, self.offset = self.file + 1, 0
        return None


class PackageFetcher:
    """Fetches packages, several at a time. Every method must be called by the loop's thread.

    send: hands a Fetch to the controller. wake: makes the loop call poll() soon; any thread may call it.
    """

    def __init__(
        self,
        store: Landing,
        send: Callable[[Fetch], object],
        wake: Callable[[], None],
        pieces: Pieces = PACKAGE_PIECES,
    ) -> None:
        self._send = send
        self._pieces = pieces
        self._transfers: dict[str, _Transfer] = {}
        self._waiting: dict[str, list[PackageFile]] = {}
        self._writer = _WriterThread(store, wake, pieces.syncs)

    def start(self, digest: str, files: list[PackageFile]) -> None:
        """Fetch a package into the store; poll() returns its end. Does nothing if the package is being
        fetched."""
        if digest in self._transfers or digest in self._waiting:
            return
        self._waiting[digest] = files
        self._start_waiting()

    def cancel(self, digest: str) -> None:
        """Stop fetching a package; poll() will not return it."""
        self._waiting.pop(digest, None)
        transfer = self._transfers.pop(digest, None)
        if transfer is not None:
            self._writer.abort(transfer)
            self._start_waiting()

    def reset(self) -> None:
        """Stop all transfers, which were from another controller."""
        self._waiting.clear()
        for digest in list(self._transfers):
            self.cancel(digest)

    def on_chunk(self, chunk: Chunk, frame: Any) -> Fetched | None:
        """Receive a chunk. frame: bytes-like, None if the message had none.

        Returns the end of the transfer if this chunk made it fail. A chunk of a cancelled transfer is
        dropped.
        """
        transfer = self._transfers.get(chunk.digest)
        length = transfer.asked.pop((chunk.file, chunk.offset), None) if transfer is not None else None
        if transfer is None or length is None:
            return None
        name = transfer.files[chunk.file].path
        if chunk.status != Status.OK:
            return self._fail(transfer, f"{name!r} of package {chunk.digest} could not be read there")
        size = memoryview(frame).nbytes if frame is not None else 0
        if size != length:
            return self._fail(transfer, f"a chunk of {name!r} has {size} bytes, {length} were asked for")
        self._writer.write(transfer, chunk.file, chunk.offset, frame)
        return None

    def poll(self) -> list[Fetched]:
        """Return the packages that arrived or failed since the last call, and request further chunks."""
        ended = []
        for outcome in self._writer.poll():
            transfer = outcome.transfer
            if self._transfers.get(transfer.digest) is not transfer:
                continue
            if outcome.failure:
                ended.append(self._fail(transfer, outcome.failure, outcome.is_local))
            elif outcome.committed:
                del self._transfers[transfer.digest]
                ended.append(Fetched(transfer.digest, Status.OK, ""))
            else:
                transfer.under_way -= 1
                self._ask(transfer)
        self._start_waiting()
        return ended

    @property
    def count(self) -> int:
        """Packages that are being fetched or wait."""
        return len(self._transfers) + len(self._waiting)

    def close(self) -> None:
        """Abort all transfers and stop the thread."""
        self.reset()
        self._writer.close()

    def _start_waiting(self) -> None:
        while self._waiting and len(self._transfers) < self._pieces.transfers:
            digest = next(iter(self._waiting))
            transfer = _Transfer(digest, self._waiting.pop(digest))
            self._transfers[digest] = transfer
            self._ask(transfer)

    def _ask(self, transfer: _Transfer) -> None:
        while transfer.under_way < self._pieces.window:
            chunk = transfer.next_chunk(self._pieces.chunk_bytes)
            if chunk is None:
                break
            file, offset, length = chunk
            transfer.asked[file, offset] = length
            transfer.under_way += 1
            self._send(Fetch(transfer.digest, file, offset, length))
        if transfer.under_way == 0:
            self._writer.commit(transfer)

    def _fail(self, transfer: _Transfer, text: str, is_local: bool = False) -> Fetched:
        del self._transfers[transfer.digest]
        self._writer.abort(transfer)
        return Fetched(transfer.digest, Status.INTERNAL, text, is_local)


class _Outcome(NamedTuple):
    """A result of the writer thread: a chunk was written, a package committed, or either failed."""

    transfer: _Transfer
    committed: bool
    failure: str
    is_local: bool = False  # see Fetched


class _WriterThread:
    """The thread that does all file I/O of a PackageFetcher: it writes, checks and commits packages."""

    def __init__(self, store: Landing, wake: Callable[[], None], syncs: bool) -> None:
        self._store = store
        self._wake = wake
        self._syncs = syncs
        self._orders: queue.SimpleQueue[Callable[[], _Outcome | None] | None] = queue.SimpleQueue()
        self._outcomes: deque[_Outcome] = deque()
        self._writers: dict[_Transfer, PackageWriter] = {}  # used by the thread alone
        self._thread = threading.Thread(target=self._run, name="packages", daemon=True)
        self._thread.start()

    def write(self, transfer: _Transfer, file: int, offset: int, frame: Any) -> None:
        self._orders.put(lambda: self._write(transfer, file, offset, frame))

    def commit(self, transfer: _Transfer) -> None:
        self._orders.put(lambda: self._commit(transfer))

    def abort(self, transfer: _Transfer) -> None:
        self._orders.put(lambda: self._abort(transfer))

    def poll(self) -> list[_Outcome]:
        outcomes = self._outcomes
        return [outcomes.popleft() for _ in range(len(outcomes))]

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            outcome = order()
            if outcome is not None:
                self._outcomes.append(outcome)
                self._wake()
        for writer in self._writers.values():
            writer.abort()

    def _writer_of(self, transfer: _Transfer) -> PackageWriter:
        writer = self._writers.get(transfer)
        if writer is None:
            writer = self._writers[transfer] = self._store.writer(transfer.files)
        return writer

    def _write(self, transfer: _Transfer, file: int, offset: int, frame: Any) -> _Outcome:
        try:
            self._writer_of(transfer).write(file, offset, frame)
        except (OSError, InvalidModel) as error:
            return _failed(transfer, error)
        return _Outcome(transfer, False, "")

    def _commit(self, transfer: _Transfer) -> _Outcome:
        try:
            writer = self._writer_of(transfer)
            del self._writers[transfer]
            if self._syncs:
                writer.commit()
            else:
                for _ in writer.commit_in_steps():
                    pass
        except (OSError, InvalidModel) as error:
            return _failed(transfer, error)
        return _Outcome(transfer, True, "")

    def _abort(self, transfer: _Transfer) -> None:
        writer = self._writers.pop(transfer, None)
        if writer is not None:
            writer.abort()


def _failed(transfer: _Transfer, error: OSError | InvalidModel) -> _Outcome:
    text = f"package {transfer.digest} cannot be stored: {error}"
    return _Outcome(transfer, False, text, isinstance(error, OSError))
