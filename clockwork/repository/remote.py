"""Model repositories that are read over the network, on threads of their own.

A Remote has a thread that lists its source at an interval. A change takes effect when two listings in a row
agree, so that an incomplete upload is not taken for a model. While the source is unreachable, the last
listing stays in effect, and the source is asked again after growing pauses.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clockwork.config import repository as bounds
from clockwork.errors import ClockworkError, ConfigError, InvalidModel
from clockwork.repository.folders import CONFIG, Contents, Fingerprint, Row, Version, scan
from clockwork.sources.cache import Cache
from clockwork.sources.location import Location
from clockwork.sources.reading import ReaderProcess, RemoteFile, SourceFailed
from clockwork.system.clock import now_ns, to_seconds

log = logging.getLogger("clockwork.gateway")

_LABELS = re.compile(rb"""label_filename\s*:\s*["']([^"'\n]+)["']""")
"""Matches the names of files with labels in a configuration."""


class Listing:
    """A single listing of a source's files as a repository of models; see folders.Repository."""

    is_settled = True  # always settled, because Remote compares two listings

    def __init__(self, remote: Remote, files: Sequence[RemoteFile]) -> None:
        self._remote = remote
        self.pool: concurrent.futures.Executor | None = remote.pool
        self.texts: Mapping[RemoteFile, bytes | None] = {}
        """Contents of configurations and of files with labels; None: the file is too large."""

        # files beside the version folders, by model folder and name
        self._beside: dict[tuple[str, str], RemoteFile] = {}
        # Files of versions, by model folder and version folder
        self.files: dict[str, dict[str, list[RemoteFile]]] = {}
        for file in files:
            name, _, rest = file.path.partition("/")
            if not rest or name.startswith((".", "_")):
                continue
            versions = self.files.setdefault(name, {})
            version, _, path = rest.partition("/")
            if path:
                versions.setdefault(version, []).append(file)
            else:
                self._beside[name, version] = file

    def folders(self) -> Sequence[str]:
        if len(self.files) > bounds.FOLDERS_MAX:
            raise ConfigError(
                f"{self._remote} has {len(self.files)} models; at most {bounds.FOLDERS_MAX} are read"
            )
        return list(self.files)

    def configs(self) -> list[RemoteFile]:
        return [file for (_, name), file in self._beside.items() if name == CONFIG]

    def labels(self) -> list[RemoteFile]:
        """Return the files with labels that the configurations read so far name."""
        found: dict[RemoteFile, None] = {}
        for folder, name in list(self._beside):
            if name == CONFIG and (text := self.texts.get(self._beside[folder, name])):
                for label in _LABELS.findall(text):
                    file = self._beside.get((folder, label.decode("utf-8", "replace")))
                    if file is not None:
                        found[file] = None
        return list(found)

    def text(self, folder: str, name: str) -> tuple[Row, bytes] | None:
        file = self._beside.get((folder, name))
        if file is None or file not in self.texts:
            return None
        data = self.texts[file]
        if data is None:
            raise InvalidModel(f"{name} is larger than {bounds.CONFIG_BYTES_MAX} bytes")
        return (name, file.bytes, file.mark), data

    def versions(self, folder: str) -> Sequence[str]:
        return list(self.files[folder])

    def rows(self, folder: str, version: str) -> Fingerprint:
        files = self.files[folder][version]
        if len(files) > bounds.FILES_MAX:
            raise InvalidModel(f"{folder}/{version} has more than {bounds.FILES_MAX} files")
        skip = len(f"{folder}/{version}/")
        return tuple(sorted((file.path[skip:], file.bytes, file.mark) for file in files))

    @contextlib.contextmanager
    def copy(self, version: Version) -> Iterator[Path]:
        with self._remote.fetched(version, self.files[version.name][str(version.version)]) as folder:
            yield folder


class Remote:
    """Follows the repository at a location.

    follow: list the source periodically; otherwise only until it was listed twice. close() ends all calls.
    """

    def __init__(self, location: Location, poll_s: float, follow: bool, cache: Cache) -> None:
        self.location = location
        self.pool = concurrent.futures.ThreadPoolExecutor(bounds.FETCHES_AT_ONCE, "fetch")
        self._poll_s = poll_s
        self._follow = follow
        self._cache = cache
        self._lister = ReaderProcess(location)
        self._listing = threading.Lock()  # held while the source is listed; guards the next three fields
        self._texts: dict[RemoteFile, bytes | None] = {}
        self._before: Contents | None = None  # contents of the previous listing
        self._failures = 0  # number of consecutive failures
        self._lock = threading.Lock()  # guards the fields below
        self._contents = Contents({}, {})  # contents that are in effect
        self._is_known = False  # the source was listed twice since the start
        # The reason why listing fails, and the time since which it fails
        self._failing: tuple[str, int] | None = None
        # Versions being fetched: bytes received, and all bytes
        self._coming: dict[tuple[str, int], tuple[int, int]] = {}
        self._readers: list[ReaderProcess] = []
        self._idle: list[ReaderProcess] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listing", daemon=True)

    def __str__(self) -> str:
        return str(self.location)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self._lister.close()
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            reader.close()
        self.pool.shutdown()
        if self._thread.ident is not None:
            self._thread.join()
        self._lister.stop()
        for reader in readers:
            reader.stop()

    # ----- any thread -------------------------------------------------------------------------

    def look(self) -> Contents:
        """Return the contents in effect, without waiting for the source."""
        with self._lock:
            return self._contents

    def look_now(self) -> Contents:
        """List the source; its contents take effect at once.

        Raises SourceFailed and other errors of the source.
        """
        with self._listing:
            found = self._list()
            self._before = found
            with self._lock:
                self._contents = found
            return found

    @property
    def is_known(self) -> bool:
        """Whether the source was listed twice, so that a file's absence is certain."""
        with self._lock:
            return self._is_known

    @property
    def failure(self) -> str:
        """The reason why the source cannot be listed; "": it can."""
        with self._lock:
            return "" if self._failing is None else self._failing[0]

    @property
    def trouble(self) -> str:
        """The failure, and the seconds for which it has lasted; "": there is none."""
        with self._lock:
            failing = self._failing
        if failing is None:
            return ""
        why, since_ns = failing
        return (
            f"{why} (for {to_seconds(now_ns() - since_ns):.0f} s; models registered from it are still served)"
        )

    def progress(self, name: str, version: int) -> str:
        """Return the progress of fetching a version; "": it is not being fetched."""
        with self._lock:
            done, total = self._coming.get((name, version), (0, 0))
        return f"fetching: {done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else ""

    @contextlib.contextmanager
    def fetched(self, version: Version, files: Sequence[RemoteFile]) -> Iterator[Path]:
        """Yield the folder of a version's files, fetched by Cache.copy()."""
        key = (version.name, version.version)
        began_ns, total = now_ns(), sum(max(0, file.bytes) for file in files)

        def tell(done: int, total: int) -> None:
            with self._lock:
                is_first = key not in self._coming
                self._coming[key] = (done, total)
            if is_first:
                log.info("model repository: fetching %s version %d of %s: %.1f MB", *key, self, total / 1e6)

        try:
            with self._cache.copy(self.location, files, self._lend, tell) as folder:
                with self._lock:
                    came = self._coming.pop(key, None) is not None
                if came:
                    seconds = to_seconds(now_ns() - began_ns)
                    log.info(
                        "model repository: fetched %s version %d: %.1f MB in %.1f s",
                        *key,
                        total / 1e6,
                        seconds,
                    )
                yield folder / version.name / str(version.version)
        finally:
            with self._lock:
                self._coming.pop(key, None)

    @contextlib.contextmanager
    def _lend(self) -> Iterator[ReaderProcess]:
        with self._lock:
            if self._idle:
                reader = self._idle.pop()
            else:
                reader = ReaderProcess(self.location)
                self._readers.append(reader)
            if self._stop.is_set():
                reader.close()
        try:
            yield reader
        finally:
            with self._lock:
                self._idle.append(reader)

    # ----- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            pause_s = self._look_again()
            if self.is_known and not self._follow:
                self._lister.stop()
                return
            with self._lock:
                idle = [self._idle.pop() for _ in range(len(self._idle))]
                self._readers = [reader for reader in self._readers if reader not in idle]
            for reader in idle:
                reader.stop()
            if pause_s > bounds.READER_IDLE_S:
                self._lister.stop()
            self._stop.wait(pause_s)

    def _look_again(self) -> float:
        """List the source, put changes on which two listings agree into effect, and return the pause in
        seconds."""
        with self._listing:
            before = self._before
            try:
                found = self._list()
            except Exception as error:  # neither an error of the source nor a defect may end the thread
                self._fail(error)
                return float(min(bounds.RETRY_MAX_S, self._poll_s * 2 ** min(self._failures, 20)))
            self._before = found
            self._failures = 0
            with self._lock:
                failing, self._failing = self._failing, None
                if before is not None:
                    self._contents = agreed(self._contents, before, found)
                    self._is_known = True
        if failing is not None:
            log.info(
                "model repository %s: it is listed again, after %.0f s",
                self,
                to_seconds(now_ns() - failing[1]),
            )
        return self._poll_s if before is not None else min(self._poll_s, bounds.FIRST_PAUSE_S)

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        if self._stop.is_set():
            return
        why = str(error) if isinstance(error, ClockworkError) else f"{self}: {type(error).__name__}: {error}"
        with self._lock:
            is_new = self._failing is None
            self._failing = (why, now_ns() if self._failing is None else self._failing[1])
        if is_new:
            log.warning("model repository: %s; models registered from it are still served", why)

    def _list(self) -> Contents:
        """Return the source's present contents. Raises SourceFailed and other errors of the source."""
        files = self._lister.files()
        if not files:
            # An empty source may be a mistyped prefix, or a prefix that has lost its objects.
            raise SourceFailed(f"{self} has no files")
        listing = Listing(self, files)
        configs = listing.configs()
        listing.texts = self._read(configs)
        listing.texts = self._texts = self._read([*configs, *listing.labels()])
        return scan(listing)

    def _read(self, files: Sequence[RemoteFile]) -> dict[RemoteFile, bytes | None]:
        """Return the contents of small files; files that were read before are not read again."""
        fresh = [file for file in files if file not in self._texts]
        texts = self._lister.read(fresh, bounds.CONFIG_BYTES_MAX) if fresh else {}
        self._texts |= {file: texts[file.path] for file in fresh}
        return {file: self._texts[file] for file in files}


def agreed(holds: Contents, before: Contents, found: Contents) -> Contents:
    """Return the contents in effect after a listing.

    A version on which both listings agree takes effect; otherwise the version of ``holds`` stays.
    """
    versions = {}
    for key in sorted({*holds.versions, *before.versions, *found.versions}):
        earlier, now = before.versions.get(key), found.versions.get(key)
        is_same = (earlier and earlier.fingerprint) == (now and now.fingerprint)
        if (version := now if is_same else holds.versions.get(key)) is not None:
            versions[key] = version
    return Contents(versions, found.broken, found.numbers)
