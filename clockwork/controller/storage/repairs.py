"""Repair of damaged or missing packages: found after a start, and fetched from a worker that has them.

Each package is compared with its checksums once after a start, at a bounded share of a core, and again when a
worker could not use the package that it was sent. A damaged package is set aside, and fetched from the
workers that have prepared the model, one after the other, or taken from the next upload of the same content.
Meanwhile the workers that have the model go on serving it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections import deque
from typing import Any

from clockwork.config.controller import INSPECTION_BUSY_SHARE, REPAIR_RETRY_NS
from clockwork.controller.catalog.objects import StoreFailed
from clockwork.controller.catalog.store import Catalog
from clockwork.controller.effects import ClearTrouble, Effect, NoteTrouble, PackageMended, SendWorker
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.storage.thread import StorageThread
from clockwork.controller.troubles import TroubleKind
from clockwork.formats.checksums import Pace, Stopped
from clockwork.formats.fetching import Fetched, PackageFetcher
from clockwork.formats.package import DamagedPackage, PackageFile
from clockwork.wire.messages import Chunk, Fetch, Status
from clockwork.wire.telling import printable

log = logging.getLogger("clockwork.controller")


@dataclasses.dataclass(slots=True)
class _Repair:
    """The repair of a damaged or missing package."""

    files: list[PackageFile]
    text: str
    worker: int = 0  # the worker from which the package is being fetched; 0: none
    tried: set[int] = dataclasses.field(default_factory=set)  # workers that do not have the whole package


class Repairs:
    """All repairs. Every method belongs to the loop's thread, and files are read and written on a thread of
    their own. Effects outside are appended to ``effects``."""

    def __init__(self, effects: deque[Effect], catalog: Catalog, table: ModelTable) -> None:
        self._effects = effects
        self._catalog = catalog
        self._table = table
        self._stop = threading.Event()
        # Nothing reads a package again unless a worker asks for it; what the workers read of their own copies
        # has more use in the OS's cache.
        self._pace = Pace(INSPECTION_BUSY_SHARE, self._stop, keeps_cached=False)
        self._thread = StorageThread("inspection")
        self._fetcher = PackageFetcher(catalog.store, self._send, self._thread.wake)
        self._queue: deque[str] = deque()  # digests of packages to inspect
        self._suspects: dict[str, None] = {}  # digests of packages to inspect before those, in order
        self._inspecting = ""
        self._is_away = False  # whether inspections wait for an object store that failed
        self._retried_ns = 0
        self._open: dict[str, _Repair] = {}

    def fileno(self) -> int:
        """Readable while poll() has something to do."""
        return self._thread.fileno()

    def start(self) -> None:
        """Queue every package that the table knows for a single inspection."""
        self._queue.extend(self._table.digests())
        self._inspect_next()

    def inspect(self, digest: str) -> None:
        """Inspect a suspect package next."""
        if digest not in self._open:  # an inspection under way may have passed by what is wrong
            self._suspects[digest] = None
            self._inspect_next()

    @property
    def left_count(self) -> int:
        """The number of packages that have not been inspected since the start."""
        return len(self._queue) + len(self._suspects) + bool(self._inspecting)

    def on_chunk(self, worker: int, chunk: Chunk, frame: Any) -> None:
        """Take a piece of a package from a worker; a piece that was not asked for is dropped."""
        repair = self._open.get(chunk.digest)
        if repair is not None and repair.worker == worker:
            failed = self._fetcher.on_chunk(chunk, frame)
            if failed is not None:
                self._fetched(failed)

    def worker_ready(self, worker: int, digest: str) -> None:
        """Note that a worker has prepared a model of this package, so it may have the package."""
        repair = self._open.get(digest)
        if repair is not None and not repair.worker:
            self._seek(digest)

    def worker_left(self, worker: int) -> None:
        for digest, repair in self._open.items():
            repair.tried.discard(worker)
            if repair.worker == worker:
                self._fetcher.cancel(digest)
                self._seek(digest)

    def lacks(self, digest: str) -> bool:
        """Whether a package was found damaged, and has not been replaced since."""
        return digest in self._open

    def arrived(self, digest: str) -> None:
        """End the repair of a package whose content a client has uploaded."""
        repair = self._open.get(digest)
        if repair is not None:
            if repair.worker:
                self._fetcher.cancel(digest)
            self._repaired(digest, "an upload of the same content")

    def poll(self) -> None:
        for fetched in self._fetcher.poll():
            self._fetched(fetched)
        for digest in [digest for digest in self._open if not self._table.uses(digest)]:
            self._fetcher.cancel(digest)
            self._effects.append(ClearTrouble(TroubleKind.FILE_DAMAGED, _subject(digest)))
            del self._open[digest]

    def beat(self, now_ns: int) -> None:
        """Called at each heartbeat."""
        if now_ns - self._retried_ns >= REPAIR_RETRY_NS:
            self._retried_ns = now_ns
            self.retry()

    def retry(self) -> None:
        """Take up what waits for a store that failed, or for room on its disk."""
        self._is_away = False
        self._inspect_next()
        for digest, repair in self._open.items():
            if not repair.worker:
                self._seek(digest)

    def drain(self, failed: Any) -> None:
        """See StorageThread.drain()."""
        self._thread.drain(failed)
        self.poll()

    def close(self) -> None:
        self._stop.set()
        self._fetcher.close()
        self._thread.close()

    # ----- inside ------------------------------------------------------------------------------

    def _inspect_next(self) -> None:
        while (self._suspects or self._queue) and not self._inspecting and not self._is_away:
            digest = next(iter(self._suspects), "") or self._queue.popleft()
            self._suspects.pop(digest, None)
            if digest not in self._open and self._table.uses(digest):
                self._inspecting = digest
                job = functools.partial(self._catalog.store.inspect, digest, self._pace)
                self._thread.submit(job, functools.partial(self._inspected, digest))

    def _inspected(self, digest: str, _: Any, error: BaseException | None) -> None:
        self._inspecting = ""
        if isinstance(error, Stopped):
            return
        if isinstance(error, StoreFailed):  # a trouble of its own
            self._suspects[digest] = None
            self._is_away = True
        elif isinstance(error, DamagedPackage):
            self._damaged(digest, printable(str(error), 300))
        elif error is not None:
            log.error("package %s cannot be inspected: %s", digest, error)
        self._inspect_next()

    def _damaged(self, digest: str, text: str) -> None:
        """Begin the repair of a damaged package, which has been set aside."""
        files = self._table.files_of(digest)
        if not files:
            return
        self._open[digest] = _Repair(files, text)
        log.error("%s", text)
        self._effects.append(NoteTrouble(TroubleKind.FILE_DAMAGED, _subject(digest), text))
        self._seek(digest)

    def _seek(self, digest: str) -> None:
        """Fetch a package from the next worker that may have it, or wait for such a worker."""
        repair = self._open[digest]
        workers = [worker for worker in self._table.workers_with(digest) if worker not in repair.tried]
        repair.worker = workers[0] if workers else 0
        if repair.worker:
            self._fetcher.start(digest, repair.files)

    def _send(self, fetch: Fetch) -> None:
        repair = self._open.get(fetch.digest)
        if repair is not None and repair.worker:
            self._effects.append(SendWorker(repair.worker, fetch))

    def _fetched(self, fetched: Fetched) -> None:
        repair = self._open.get(fetched.digest)
        if repair is None:
            return
        if fetched.status == Status.OK:
            self._repaired(fetched.digest, f"worker {repair.worker}")
            return
        log.warning(
            "package %s of worker %d: %s", fetched.digest, repair.worker, printable(fetched.text, 300)
        )
        if fetched.is_local:  # until retry(): the worker is not at fault
            repair.worker = 0
            return
        repair.tried.add(repair.worker)
        self._seek(fetched.digest)

    def _repaired(self, digest: str, by: str) -> None:
        repair = self._open.pop(digest)
        log.warning("package %s has been replaced by %s", digest, by)
        self._effects.append(ClearTrouble(TroubleKind.FILE_DAMAGED, _subject(digest)))
        self._effects.append(PackageMended(digest))
        text = f"{repair.text}; replaced by {by}"
        self._effects.append(NoteTrouble(TroubleKind.FILE_REPAIRED, _subject(digest), text))


def _subject(digest: str) -> str:
    return f"package {digest[:12]}"
