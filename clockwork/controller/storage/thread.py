"""File I/O on a thread of its own, so that no disk ever blocks the loop. The jobs of controller.effects are
carried out here.

Jobs begin in order. A job may be work in steps (formats.durable), which waits for syncs: meanwhile the next
jobs begin, and the files of all that wait are synced together. A sync of one file takes about as long as
syncs of ten at once, so that ten registrations at once take little longer than one. Changes of the catalogue
share a transaction in the same way (catalog.database.Commit), which is ended on this thread.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias, assert_never

from clockwork.config.controller import SYNCS_AT_ONCE
from clockwork.controller.catalog.store import Catalog
from clockwork.controller.effects import (
    AbortUpload,
    CommitUpload,
    Job,
    ListPackages,
    OpenUpload,
    ReadChunk,
    ReadRecord,
    ReadUpload,
    RemovePackage,
    WriteChange,
    WriteChunk,
)
from clockwork.formats.durable import ALONE, Steps, Syncable, sync
from clockwork.formats.interface import Interface, difference
from clockwork.formats.package import PackageWriter

Done: TypeAlias = Callable[[Any, BaseException | None], None]
"""Called on the loop's thread with the job's result, or with its exception."""


@dataclasses.dataclass(slots=True)
class _Work:
    """A job in steps that is under way."""

    done: Done
    steps: Steps[Any]
    unsynced: Sequence[int | Syncable]  # what is to be synced before its next step; ALONE
    error: OSError | None = None  # of syncing them


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
        """Queue a job. Its result is the value that it returns, or that the steps return that it returns."""
        self._jobs.put((job, done))

    def report(self, done: Done, value: Any, error: BaseException | None) -> None:
        """Have drain() call a callback, for a job that ended elsewhere. Any thread may call it, before
        close()."""
        self._done.append((done, value, error))
        os.eventfd_write(self._event, 1)

    def drain(self, failed: Callable[[Exception], None]) -> None:
        """Call the callbacks of ended jobs, in the order of their ends. failed: gets an exception of a
        callback."""
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
        waiting: list[_Work] = []
        is_open = True
        with concurrent.futures.ThreadPoolExecutor(SYNCS_AT_ONCE, "sync") as syncing:
            while is_open or waiting:
                # Jobs that come while these begin are left for the next turn: a stream of jobs without syncs
                # must not delay the syncs.
                for _ in range(self._jobs.qsize() if waiting else max(1, self._jobs.qsize())):
                    item = self._jobs.get()
                    if item is None:
                        is_open = False
                        break
                    work = self._begin(*item)
                    if work is not None and not work.unsynced:
                        while waiting:
                            waiting = self._step(waiting, syncing)
                        while work is not None:
                            work = next(iter(self._step([work], syncing)), None)
                    elif work is not None:
                        waiting.append(work)
                if waiting:
                    waiting = self._step(waiting, syncing)

    def _begin(self, job: Callable[[], Any], done: Done) -> _Work | None:
        """Do a job up to its first sync. Returns the work that is left."""
        try:
            value = job()
        except Exception as error:  # the loop handles every exception
            self.report(done, None, error)
            return None
        if not isinstance(value, Generator):
            self.report(done, value, None)
            return None
        return self._advance(_Work(done, value, ALONE))

    def _step(self, works: Sequence[_Work], syncing: concurrent.futures.Executor) -> list[_Work]:
        """Sync for these works, and do each up to its next sync. Returns the works that are left."""
        if len(works) == 1:
            works[0].error = _sync(*works[0].unsynced)
        else:
            _sync_together(works, syncing)
        return [left for work in works if (left := self._advance(work)) is not None]

    def _advance(self, work: _Work) -> _Work | None:
        """Do a work up to its next sync. Returns it unless it has ended."""
        try:
            if work.error is not None:
                error, work.error = work.error, None
                work.unsynced = work.steps.throw(error)
            else:
                work.unsynced = next(work.steps)
            return work
        except StopIteration as end:
            self.report(work.done, end.value, None)
        except Exception as error:  # the loop handles every exception
            self.report(work.done, None, error)
        return None


def _sync_together(works: Sequence[_Work], syncing: concurrent.futures.Executor) -> None:
    """Sync for several works, each file once: many of them have changed the same directories."""
    places: dict[tuple[int, int], int] = {}  # by device and inode: a descriptor
    users: list[tuple[_Work, tuple[int, int]]] = []
    shared: list[tuple[_Work, Syncable]] = []
    for work in works:
        try:
            for item in work.unsynced:
                if not isinstance(item, int):
                    shared.append((work, item))
                    continue
                status = os.fstat(item)
                place = (status.st_dev, status.st_ino)
                places.setdefault(place, item)
                users.append((work, place))
        except OSError as error:
            work.error = error
    syncs = syncing.map(_sync, places.values())  # they are under way from here on
    for work, item in shared:
        work.error = work.error or _sync(item)
    errors = dict(zip(places, syncs, strict=True))
    for work, place in users:
        work.error = work.error or errors[place]


def _sync(*unsynced: int | Syncable) -> OSError | None:
    """Sync one after another. Returns the first error."""
    try:
        for item in unsynced:
            sync(item)
    except OSError as error:
        return error
    return None


class CatalogJobs:
    """The jobs of a controller whose packages are in a directory, on the storage thread."""

    def __init__(self, catalog: Catalog, thread: StorageThread) -> None:
        self._catalog = catalog
        self._thread = thread
        self._writers: dict[int, PackageWriter] = {}  # writers of packages by upload id

    def submit(self, job: Job, done: Done) -> None:
        """Have a job done. Belongs to the loop's thread, on which ``done`` is called."""
        self._thread.submit(functools.partial(self.run, job), done)

    def beat(self, now_ns: int) -> str:
        """Called at each heartbeat. Returns why packages can be neither stored nor fetched; "": they can."""
        return ""

    def close(self) -> None:
        """Finish the submitted jobs, apart from those of the storage thread, which is closed next."""

    def run(self, job: Job) -> Any:
        """Run a job, and return its result, or the steps that lead to it. Raises OSError, InvalidModel,
        DamagedPackage."""
        match job:
            case WriteChange():
                return self._catalog.change(job.change)
            case OpenUpload():
                if self._catalog.store.is_whole(job.digest):
                    return False
                self._writers[job.upload_id] = self._catalog.store.writer(job.files)
                return True
            case WriteChunk():
                return self._writers[job.upload_id].write(job.file, job.offset, job.frame)
            case CommitUpload():
                # Commit() removes a package that it cannot keep
                return self._writers.pop(job.upload_id).commit_in_steps()
            case AbortUpload():
                writer = self._writers.pop(job.upload_id, None)
                return None if writer is None else writer.abort()
            case ReadUpload():
                return self._catalog.declared(job.digest, job.files, job.options)
            case ReadRecord():
                return self._read_record(job)
            case RemovePackage():
                return self._catalog.remove(job.digest)
            case ListPackages():
                return self._catalog.store.listed()
            case ReadChunk():
                return self._catalog.read_chunk(job.digest, job.file, job.offset, job.length)
        assert_never(job)

    def _read_record(self, job: ReadRecord) -> Interface | None:
        record = job.record
        interface = self._catalog.declared(record.digest, record.files, record.options)
        if interface is not None and difference(interface, job.prepared):
            # inspect() reads every byte; for thousands of packages that would delay a start.
            self._catalog.store.inspect(record.digest)
        return interface
