"""The jobs of a controller whose packages are in an object store, which may be slow, or away for minutes.

Changes of the catalog stay on the storage thread, and never wait for the store. Jobs about packages run on
threads of their own: those of one package in the order of the decisions, those of others at the same time.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clockwork.config.controller import PACKAGE_CHANGES_AT_ONCE, PACKAGE_READS_AT_ONCE, STORE_RETRY_S
from clockwork.controller.catalog.objects import ObjectPackages
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
from clockwork.controller.storage.thread import CatalogJobs, Done, StorageThread
from clockwork.formats.durable import run_alone
from clockwork.system.clock import SECOND


class JobLanes:
    """Threads for jobs that have keys: those of one key run in order. report: takes each job's end; any
    thread may call it."""

    def __init__(
        self, name: str, threads: int, report: Callable[[Done, Any, BaseException | None], None]
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._report = report
        self._lock = threading.Lock()  # guards the field below
        self._waiting: dict[str, deque[tuple[Callable[[], Any], Done]]] = {}  # by key; (): one is running

    def submit(self, key: str, job: Callable[[], Any], done: Done) -> None:
        """Queue a job. Its result is the value that it returns, or that the steps return that it returns."""
        with self._lock:
            is_running = key in self._waiting
            self._waiting.setdefault(key, deque()).append((job, done))
        if not is_running:
            self._pool.submit(self._run, key)

    def close(self) -> None:
        """Finish the submitted jobs, and stop."""
        self._pool.shutdown()

    def _run(self, key: str) -> None:
        """Run the jobs of a key. The threads are shared job by job, unless the pool is being closed."""
        while True:
            with self._lock:
                job, done = self._waiting[key][0]
            try:
                value = job()
                if isinstance(value, Generator):
                    value = run_alone(value)
            except Exception as error:  # the loop handles every exception
                self._report(done, None, error)
            else:
                self._report(done, value, None)
            with self._lock:
                self._waiting[key].popleft()
                if not self._waiting[key]:
                    del self._waiting[key]
                    return
            try:
                self._pool.submit(self._run, key)
            except RuntimeError:  # the pool takes nothing more
                continue
            return


class ObjectJobs(CatalogJobs):
    """See the module. Its interface is that of CatalogJobs."""

    def __init__(self, catalog: Catalog, thread: StorageThread, packages: ObjectPackages) -> None:
        super().__init__(catalog, thread)
        self._packages = packages
        self._changes = JobLanes("packages", PACKAGE_CHANGES_AT_ONCE, thread.report)
        self._reads = JobLanes("pieces", PACKAGE_READS_AT_ONCE, thread.report)
        self._digests: dict[int, str] = {}  # of open uploads
        self._is_trying = False
        self._tried_ns = 0  # time at which a store that failed was asked again

    def submit(self, job: Job, done: Done) -> None:
        match job:
            case WriteChange():
                self._thread.submit(functools.partial(self.run, job), done)
            case ReadChunk(digest=digest):
                self._reads.submit(digest, functools.partial(self.run, job), done)
            case OpenUpload(upload_id=upload_id, digest=digest):
                self._digests[upload_id] = digest
                self._change(digest, job, functools.partial(self._opened, upload_id, done))
            case WriteChunk(upload_id=upload_id):
                self._change(self._digests[upload_id], job, done)
            case CommitUpload(upload_id=upload_id) | AbortUpload(upload_id=upload_id):
                self._change(self._digests.pop(upload_id, ""), job, done)
            case ReadUpload(digest=digest) | RemovePackage(digest=digest):
                self._change(digest, job, done)
            case ReadRecord(record=record):
                self._change(record.digest, job, done)
            case ListPackages():
                self._change("", job, done)

    def beat(self, now_ns: int) -> str:
        failure = self._packages.failure
        if failure and not self._is_trying and now_ns - self._tried_ns >= STORE_RETRY_S * SECOND:
            self._is_trying, self._tried_ns = True, now_ns
            self._changes.submit("", self._packages.try_again, self._tried)
        return failure

    def close(self) -> None:
        self._packages.close()
        self._reads.close()
        self._changes.close()

    # ----- inside ------------------------------------------------------------------------------

    def _change(self, digest: str, job: Job, done: Done) -> None:
        self._changes.submit(digest, functools.partial(self.run, job), done)

    def _opened(
        self, upload_id: int, done: Done, is_needed: bool | None, error: BaseException | None
    ) -> None:
        if not is_needed:
            self._digests.pop(upload_id, None)
        done(is_needed, error)

    def _tried(self, value: Any, error: BaseException | None) -> None:
        self._is_trying = False
