"""Packages in an object store, with copies in a cache on the controller's disk.

    <URL>/packages/<digest>/model.onnx, ...   the files of a package
    <URL>/packages/<digest>/package.json      their list, which is written last, and makes the package count
    <URL>/owner-<id>                          says which controller's data directory writes below this URL, or
                                              which catalogue's controllers

A package is written from a checked copy in the cache, and each object compared with what the store has of it.
Bytes that are read are compared with the digest before they are used. A package that differs, or has no list,
counts as missing: its list is removed, and it comes back from the cache, from a worker, or by an upload.

Only the owner writes and removes, so that two controllers below one URL cannot remove each other's packages.
No store has a lock. So a controller writes its own mark, and then takes the URL only if it finds no other: of
two that do so at once, at least one finds the other's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clockwork.config.controller import INSPECTION_PAUSE_S, PACKAGE_LIST_BYTES_MAX, STORE_RETRY_S
from clockwork.controller.catalog.cache import PackageCache
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.checksums import AT_ONCE, Pace, Stopped, read_plain
from clockwork.formats.durable import Steps, write_durably
from clockwork.formats.package import (
    DamagedPackage,
    PackageFile,
    PackageWriter,
    check_package,
    digest_of,
    parse_files,
    put_in_place,
)
from clockwork.sources.location import Location
from clockwork.sources.objects import ObjectStore
from clockwork.sources.reading import SourceFailed, SourceMissing
from clockwork.wire.packages import LIST_FILE
from clockwork.wire.telling import printable

log = logging.getLogger("clockwork.controller")

DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
_OWNER = "owner-"
_PACKAGES = "packages"


class StoreFailed(OSError):
    """The object store could not be read or written. The text names the URL and the cause."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EIO, printable(text, 600))


class ObjectPackages:
    """Packages below a URL; see catalog.packages.Packages. Thread-safe.

    root: the controller's data directory, which has the cache and the owner's id. cluster: the identity of
    the catalogue whose lease the controller has, as which it owns the place; "": by the owner's id.
    """

    def __init__(self, location: Location, root: Path, cache_bytes: int, cluster: str = "") -> None:
        self.location = location
        self._root = root
        self._cache_bytes = cache_bytes
        self._cluster = cluster
        self._objects = ObjectStore(location)
        self._owning = threading.Lock()  # held while ownership is looked up
        self._owner = ""  # why another owns the place; "": nobody else was found
        self._is_owner = False
        self._lock = threading.Lock()  # guards the fields below
        self._fetching: dict[str, threading.Lock] = {}  # held while a package is fetched
        self._fetchers: Counter[str] = Counter()
        self._bad: set[str] = set()  # damaged packages whose list could not be removed
        self._failed: dict[str, tuple[float, StoreFailed]] = {}
        """Packages that could not be fetched, and when: pieces that wait for one package fail together."""

    # ----- Packages ----------------------------------------------------------------------------

    @property
    def place(self) -> str:
        return str(self.location)

    def open(self) -> None:
        """Open the cache. Raises OSError, and ConfigError for a damaged id."""
        self._cache = PackageCache(self._root / "cache", self._cache_bytes)
        path = self._root / "packages.id"
        if not path.exists():
            write_durably(path, secrets.token_hex(16).encode())
        own = read_plain(path, 32).decode("ascii", "replace")
        if not _ID.fullmatch(own):
            raise ConfigError(f"{path} is damaged: it has the id of the owner of {self.location}")
        self._id = self._cluster or own
        self._former = {f"{_OWNER}{own}"} - {f"{_OWNER}{self._id}"}

    def close(self) -> None:
        """End all calls."""
        self._objects.close()

    def writer(self, files: Sequence[PackageFile]) -> PackageWriter:
        return _ObjectWriter(self, self._cache, files)

    def is_whole(self, digest: str) -> bool:
        with self._cache.holding(digest), self._told():
            self._own()
            if digest in self._bad or self._differs(digest):
                return False
            try:
                self._fetch(digest)
            except DamagedPackage:
                return False
            return True

    def inspect(self, digest: str, pace: Pace = AT_ONCE) -> None:
        """Check the copy in the cache, and names and sizes of the objects.

        Where these are wrong, and the copy is not, the package is written again. The bytes of objects are
        checked when they are fetched. Raises DamagedPackage, StoreFailed, Stopped.
        """
        with self._cache.holding(digest) as copy, self._told():
            has_copy = self._cache.has(digest)
            if has_copy:
                try:
                    check_package(copy, pace)
                except DamagedPackage as error:
                    log.error("in the cache: %s", error)
                    self._cache.drop(digest)
                    has_copy = False
            why = "its bytes are not those that were written" if digest in self._bad else ""
            why = why or self._differs(digest)
            if why and has_copy:
                self.keep(digest)
                log.warning("package %s in %s was written again: %s", digest, self.location, why)
            elif why:
                raise DamagedPackage(f"package {digest} in {self.location} is damaged: {why}")
        if pace.stop is not None and pace.stop.wait(INSPECTION_PAUSE_S):
            raise Stopped

    @contextlib.contextmanager
    def held(self, digest: str) -> Iterator[Path]:
        with self._cache.holding(digest) as copy:
            if not self._cache.has(digest):
                with self._told():
                    self._fetch(digest)
            yield copy

    def remove(self, digest: str) -> None:
        if not DIGEST.fullmatch(digest):
            raise StoreFailed(f"{printable(digest, 80)} is no package")
        self._cache.drop(digest)
        with self._told():
            self._own()
            self._objects.remove(_path(digest), LIST_FILE)
        with self._lock:
            self._bad.discard(digest)

    def listed(self) -> Sequence[str]:
        with self._told():
            self._own()
            return [name for name in self._objects.names(_PACKAGES) if DIGEST.fullmatch(name)]

    # ----- in addition -------------------------------------------------------------------------

    @property
    def failure(self) -> str:
        """Why the store cannot be used: the latest call failed, or another owns it; "": it can."""
        return self._owner or self._objects.failure

    def try_again(self) -> None:
        """Read and write something small, after a failure. Raises StoreFailed."""
        with self._told(is_try=True):
            self._own(again=True)

    def keep(self, digest: str) -> None:
        """Write a package, of which the cache has a copy. Raises StoreFailed, OSError."""
        with self._cache.holding(digest) as copy, self._told(is_try=True):
            self._own()
            data = read_plain(copy / LIST_FILE)
            files = [(file.path, file.bytes, file.sha256) for file in parse_files(json.loads(data))]
            files.append((LIST_FILE, len(data), hashlib.sha256(data).hexdigest()))
            self._objects.keep(_path(digest), copy, files)
        with self._lock:
            self._bad.discard(digest)
            self._failed.pop(digest, None)

    # ----- inside ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _told(self, *, is_try: bool = False) -> Iterator[None]:
        """Turn a failure of the store into an OSError, as all of storage's failures are.

        Between a failure and the next successful try, calls fail at once: the libraries try for half a
        minute. is_try: the call is made all the same.
        """
        if self.failure and not is_try:
            raise StoreFailed(self.failure)
        try:
            yield
        except SourceFailed as error:
            raise StoreFailed(str(error)) from None

    def _own(self, *, again: bool = False) -> None:
        """Make sure that nobody else writes below this URL. again: although that is known.

        Raises StoreFailed, SourceFailed, OSError.
        """
        with self._owning:
            if self._is_owner and not again:
                return
            self._is_owner = False
            own = f"{_OWNER}{self._id}"
            marks = self._marks()
            is_new = own not in marks
            if marks <= {own} | self._former:
                with self._temporary() as folder:
                    data = str(self._root).encode()
                    (folder / own).write_bytes(data)
                    self._objects.keep("", folder, [(own, len(data), hashlib.sha256(data).hexdigest())])
                for mark in sorted(marks & self._former):  # this controller had no lease before
                    self._objects.remove(mark)
                marks = self._marks()
            others = sorted(marks - {own})
            if others:
                if is_new and own in marks:
                    self._objects.remove(own)
                self._owner = (
                    f"{self.location} belongs to another controller: {self._objects.url(others[0])} says so; "
                    "take another prefix, or remove that object once its controller has ended for good"
                )
                raise StoreFailed(self._owner)
            self._owner, self._is_owner = "", True

    def _marks(self) -> set[str]:
        return {name for name in self._objects.names("") if name.startswith(_OWNER)}

    def _list(self, digest: str) -> list[PackageFile]:
        """The files of a package by its list. Raises DamagedPackage, SourceFailed, OSError."""
        with self._temporary() as folder:
            to = folder / LIST_FILE
            try:
                self._objects.copy(f"{_path(digest)}/{LIST_FILE}", to, PACKAGE_LIST_BYTES_MAX)
                files = parse_files(json.loads(read_plain(to, PACKAGE_LIST_BYTES_MAX)))
            except SourceMissing:
                raise self._damage(digest, "it has no list, or is not there") from None
            except (ValueError, RecursionError, InvalidModel) as error:
                raise self._damage(digest, f"its list cannot be read: {error}"[:300]) from None
        if digest_of(files) != digest:
            raise self._damage(digest, f"its list belongs to package {digest_of(files)}")
        return files

    def _differs(self, digest: str) -> str:
        """Why the objects of a package are not those of its list, by names and sizes; "": they are."""
        sizes = self._objects.sizes(_path(digest))
        if LIST_FILE not in sizes:
            return "it has no list, or is not there"
        try:
            files = self._list(digest)
        except DamagedPackage as error:
            return str(error)
        for file in files:
            if sizes.get(file.path) != file.bytes:
                return f"{file.path!r} has {sizes.get(file.path, 0)} bytes, expected {file.bytes}"
        return ""

    def _fetch(self, digest: str) -> None:
        """Have a copy in the cache, where the caller holds it.

        Raises DamagedPackage, SourceFailed, OSError.
        """
        with self._in_turn(digest):
            if self._cache.has(digest):
                return
            with self._lock:
                at, failed = self._failed.get(digest, (0.0, None))
            if failed is not None and time.monotonic() - at < STORE_RETRY_S:
                raise StoreFailed(str(failed.strerror))
            try:
                self._fetch_now(digest)
            except SourceFailed as error:
                failed = StoreFailed(str(error))
                with self._lock:
                    now = time.monotonic()
                    self._failed = {
                        other: entry
                        for other, entry in self._failed.items()
                        if now - entry[0] < STORE_RETRY_S
                    } | {digest: (now, failed)}
                raise failed from None

    def _fetch_now(self, digest: str) -> None:
        files = self._list(digest)
        size = sum(file.bytes for file in files)

        def fill(folder: Path) -> None:
            for file in files:
                to = folder / file.path
                to.parent.mkdir(parents=True, exist_ok=True)
                try:
                    sha256 = self._objects.copy(f"{_path(digest)}/{file.path}", to, file.bytes)
                except SourceMissing:
                    raise self._damage(digest, f"{file.path!r} is missing") from None
                except InvalidModel as error:  # it is too large
                    raise self._damage(digest, str(error)) from None
                if sha256 != file.sha256:
                    raise self._damage(
                        digest,
                        f"{file.path!r} has sha256 {sha256[:12]}..., expected {file.sha256[:12]}...",
                    )
            rows = [[file.path, file.bytes, file.sha256] for file in files]
            (folder / LIST_FILE).write_text(json.dumps(rows), encoding="utf-8")

        self._cache.promise(size)
        try:
            put_in_place(self._cache.directory(digest), LIST_FILE, fill)
        except BaseException:
            self._cache.forgo(size)
            raise
        self._cache.add(digest, size)

    def _damage(self, digest: str, why: str) -> DamagedPackage:
        """The error of a damaged package, which counts as missing from now on."""
        with self._lock:
            self._bad.add(digest)
        try:
            self._own()
            self._objects.remove(f"{_path(digest)}/{LIST_FILE}")
        except (SourceFailed, OSError) as error:
            log.warning("the list of damaged package %s cannot be removed: %s", digest, error)
        return DamagedPackage(f"package {digest} in {self.location} is damaged: {why}")

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Yield a folder, which is removed when the context ends, or when the controller starts again."""
        with tempfile.TemporaryDirectory(
            prefix=".incoming-", dir=self._cache.store.root / "packages"
        ) as name:
            yield Path(name)

    @contextlib.contextmanager
    def _in_turn(self, digest: str) -> Iterator[None]:
        """Let one thread at a time fetch a package."""
        with self._lock:
            turn = self._fetching.setdefault(digest, threading.Lock())
            self._fetchers[digest] += 1
        try:
            with turn:
                yield
        finally:
            with self._lock:
                self._fetchers[digest] -= 1
                if not self._fetchers[digest]:
                    del self._fetchers[digest], self._fetching[digest]


class _ObjectWriter(PackageWriter):
    """Writes a package into the cache, and from there into the store."""

    def __init__(self, packages: ObjectPackages, cache: PackageCache, files: Sequence[PackageFile]) -> None:
        self._packages = packages
        self._cache = cache
        self._size = sum(file.bytes for file in files)
        cache.promise(self._size)
        self._is_promised = True
        try:
            super().__init__(cache.store, files)
        except BaseException:
            self._forgo()
            raise

    def commit_in_steps(self) -> Steps[None]:
        """Do the work of commit(). Raises InvalidModel, OSError; StoreFailed: the store has not taken it."""
        with self._cache.holding(self.digest):
            yield from super().commit_in_steps()
            if self._is_promised:
                self._is_promised = False
                self._cache.add(self.digest, self._size)
            self._packages.keep(self.digest)

    def abort(self) -> None:
        super().abort()
        self._forgo()

    def _forgo(self) -> None:
        if self._is_promised:
            self._is_promised = False
            self._cache.forgo(self._size)


def _path(digest: str) -> str:
    return f"{_PACKAGES}/{digest}"
