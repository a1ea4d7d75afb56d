"""File I/O on a thread of its own, so that no disk ever blocks the loop: jobs run one after another, in
order. The jobs of controller.effects are carried out here."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, assert_never

from clockwork.controller.catalog.store import Catalog
from clockwork.controller.effects import (
    AbortUpload,
    CommitUpload,
    Job,
    OpenUpload,
    ReadChunk,
    ReadRecord,
    ReadUpload,
    RemovePackage,
    WriteChange,
    WriteChunk,
)
from clockwork.formats.interface import Interface, difference
from clockwork.formats.package import PackageWriter

Done: TypeAlias = Callable[[Any, BaseException | None], None]
"""Called on the loop's thread with the job's result, or with its exception."""


class StorageThread:
    """Jobs go in from the loop; their results come back to the loop through drain().

    The queue is bounded by its users: at most UPLOADS_MAX transfers with CHUNK_WINDOW chunks each, and
    one fetch window a worker.
    """

    def __init__(self, name: str = "storage") -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Done] | None] = queue.SimpleQueue()
        self._done: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable while drain() has something to do."""
        return self._event

    def wake(self) -> None:
        """Have drain() called soon. Any thread may call it, before close()."""
        os.eventfd_write(self._event, 1)

    def submit(self, job: Callable[[], Any], done: Done) -> None:
        self._jobs.put((job, done))

    def drain(self, failed: Callable[[Exception], None]) -> None:
        """Call the callbacks of ended jobs, in order. failed: gets an exception of a callback."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        while self._done:
            done, value, error = self._done.popleft()
            try:
                done(value, error)
            except Exception as defect:  # a defect of this callback must not affect other peers' callbacks
                failed(defect)

    def close(self) -> None:
        """Finish the submitted jobs, and stop."""
        self._jobs.put(None)
        self._thread.join()
        os.close(self._event)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                result: tuple[Done, Any, BaseException | None] = (done, job(), None)
            except Exception as error:  # the loop handles every exception
                result = (done, None, error)
            self._done.append(result)
            os.eventfd_write(self._event, 1)


class CatalogJobs:
    """Runs the jobs; run() belongs to the storage thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._writers: dict[int, PackageWriter] = {}  # writers of packages by upload id

    def run(self, job: Job) -> Any:
        """Run a job, and return its result. Raises OSError, InvalidModel, DamagedPackage."""
        match job:
            case WriteChange():
                return self._catalog.change(job.change)
            case OpenUpload():
                if self._catalog.is_whole(job.digest):
                    return False
                self._writers[job.upload_id] = self._catalog.store.writer(job.files)
                return True
            case WriteChunk():
                return self._writers[job.upload_id].write(job.file, job.offset, job.frame)
            case CommitUpload():
                # Commit() removes a package that it cannot keep
                return self._writers.pop(job.upload_id).commit()
            case AbortUpload():
                writer = self._writers.pop(job.upload_id, None)
                return None if writer is None else writer.abort()
            case ReadUpload():
                return self._catalog.declared(job.digest, job.files, job.options)
            case ReadRecord():
                return self._read_record(job)
            case RemovePackage():
                return self._catalog.store.remove(job.digest)
            case ReadChunk():
                return self._catalog.read_chunk(job.digest, job.file, job.offset, job.length)
        assert_never(job)

    def _read_record(self, job: ReadRecord) -> Interface | None:
        record = job.record
        interface = self._catalog.declared(record.digest, record.files, record.options)
        if interface is not None and difference(interface, job.prepared):
            # inspect() reads every byte; for thousands of packages that would delay a start.
            self._catalog.inspect(record.digest)
        return interface
