"""A package: the files of a registered model, named by their content.

    <store>/packages/<digest>/
        package.json     the file list
        model.onnx, ...  the files themselves; external data beside the model, examples.npz
        profile.json     in their place: a model for emulated devices, see formats.profile_package
        program.json     or compiled kernels and weights, see formats.program

The digest is over the list of (path, bytes, sha256), so equal content is the same package, from any sender.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from clockwork.config import FILES_MAX, PACKAGE_BYTES_MAX
from clockwork.config.formats import PACKAGE_FRESH_NS
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import AT_ONCE, Pace, pieces_of, read_plain
from clockwork.formats.durable import Steps, remove_tree, run_alone, sync_directory
from clockwork.system.files import fsync_directory
from clockwork.wire.packages import FIRST_FILES, LIST_FILE
from clockwork.wire.telling import tell

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""Valid names of models. They are also file names, hence without slashes and shorter than a file name may be.
"""


def check_name(name: str) -> None:
    """Raise InvalidModel unless a model may have this name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidModel(
            f"model name {tell(name)} is not 1 to 200 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PackageFile:
    path: str  # relative, forward slashes
    bytes: int
    sha256: str


def parse_files(rows: Any) -> list[PackageFile]:
    """Check and return the file list of a Register or Prepare message. Raises InvalidModel."""
    if not isinstance(rows, list) or not 1 <= len(rows) <= FILES_MAX:
        raise InvalidModel(f"a package lists between 1 and {FILES_MAX} files")
    files = []
    for row in rows:
        match row:
            case [str(path), int(size), str(sha256)] if size >= 0 and len(sha256) == 64:
                pure = PurePosixPath(path)
                if (
                    pure.is_absolute()
                    or ".." in pure.parts
                    or not pure.parts
                    or "\0" in path
                    or path == LIST_FILE
                ):
                    raise InvalidModel(f"file path {tell(path)} leaves the package")
                files.append(PackageFile(path, size, sha256.lower()))
            case _:
                raise InvalidModel("a package's file is [path, bytes, sha256]")
    if len({file.path for file in files}) != len(files):
        raise InvalidModel("a package names one file twice")
    if files[0].path not in FIRST_FILES:
        raise InvalidModel(
            f"the first file of a package is {', '.join(FIRST_FILES[:-1])} or {FIRST_FILES[-1]}, "
            f"not {tell(files[0].path)}"
        )
    total = sum(file.bytes for file in files)
    if total > PACKAGE_BYTES_MAX:
        raise InvalidModel(f"a package of {total} bytes is larger than {PACKAGE_BYTES_MAX}")
    return files


def rows_of(files: Sequence[PackageFile]) -> list[list[Any]]:
    return [[file.path, file.bytes, file.sha256] for file in files]


def digest_of(files: Sequence[PackageFile]) -> str:
    """The digest that names a package: sha256 over its sorted file list."""
    text = "".join(f"{f.path}\0{f.bytes}\0{f.sha256}\n" for f in sorted(files, key=lambda f: f.path))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path, pace: Pace = AT_ONCE) -> tuple[int, str]:
    """Return the size in bytes and the sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces_of(path, pace):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


class PackageStore:
    """The packages below a directory. Processes may share the directory, as a package arrives by a rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "packages").mkdir(parents=True, exist_ok=True)

    def directory(self, digest: str) -> Path:
        return self.root / "packages" / digest

    def has(self, digest: str) -> bool:
        return (self.directory(digest) / LIST_FILE).is_file()

    def sweep(self) -> None:
        """Remove packages that a crash left half written. Only for the sole owner of the directory."""
        for pattern in (".incoming-*", ".dropped-*"):
            for entry in (self.root / "packages").glob(pattern):
                shutil.rmtree(entry, ignore_errors=True)

    def writer(self, files: Sequence[PackageFile]) -> PackageWriter:
        return PackageWriter(self, files)

    def remove(self, digest: str) -> None:
        """Remove a package. Raises OSError; the next sweep() then removes the remains."""
        remove_tree(self.directory(digest))

    def settle(self, digest: str) -> bool:
        """Make a package durable, as its writer may have died before it was synced. False: there is no such
        package."""
        if not self.has(digest):
            return False
        fsync_directory(self.root / "packages")
        return True


class PackageWriter:
    """Writes a package chunk by chunk, checks it, and renames it into place.

    A file that arrives in order is hashed on the way; any other is read again at the end. Only the file
    written last is kept open: a package may have more files than a process may have descriptors. Not
    thread-safe; all methods do file I/O and must not run on the event loop.
    """

    def __init__(self, store: PackageStore, files: Sequence[PackageFile]) -> None:
        self.files = list(files)
        self.digest = digest_of(files)
        self._store = store
        self._temporary = Path(tempfile.mkdtemp(prefix=".incoming-", dir=store.root / "packages"))
        self._open: int | None = None  # index of the file to which _descriptor belongs
        self._descriptor = -1
        self._begun: set[int] = set()  # files of which the first bytes have come
        self._hash = hashlib.sha256()
        self._hashed = (-1, 0)  # file that _hash follows, and its bytes so far
        self._sums: dict[int, str] = {}  # by file: sha256 of its content, where all of it came in order

    def write(self, file: int, offset: int, data: Any) -> None:
        """Write a chunk. Raises InvalidModel if it lies outside its file."""
        if not 0 <= file < len(self.files):
            raise InvalidModel(f"chunk of file {file} of a package of {len(self.files)} files")
        size = memoryview(data).nbytes
        if offset < 0 or offset + size > self.files[file].bytes:
            raise InvalidModel(f"chunk [{offset}, {offset + size}) outside {self.files[file].path!r}")
        self._follow(file, offset, data, size)
        descriptor = self._descriptor_of(file)
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _follow(self, file: int, offset: int, data: Any, size: int) -> None:
        """Hash a chunk, if all that is before it in its file was hashed."""
        if offset == 0 and file not in self._begun:
            self._begun.add(file)
            self._hash, self._hashed = hashlib.sha256(), (file, 0)
        if self._hashed != (file, offset):
            self._hashed = (-1, 0)
            self._sums.pop(file, None)
            self._begun.add(file)
            return
        self._hash.update(data)
        self._hashed = (file, offset + size)
        if offset + size == self.files[file].bytes:
            self._sums[file] = self._hash.hexdigest()

    def commit(self) -> None:
        """Verify every checksum, sync the files, and put the package in place. Raises InvalidModel."""
        run_alone(self.commit_in_steps())

    def commit_in_steps(self) -> Steps[None]:
        """Do the work of commit()."""
        try:
            for index, file in enumerate(self.files):
                sha256 = self._sums.get(index)
                size = file.bytes
                if sha256 is None:
                    self._descriptor_of(index)  # makes a file that is empty
                    size, sha256 = hash_file(self._temporary / file.path)
                if size != file.bytes or sha256 != file.sha256:
                    raise InvalidModel(
                        f"{file.path!r} arrived damaged: {size} bytes, sha256 {sha256[:12]}..., "
                        f"expected {file.bytes} bytes, {file.sha256[:12]}..."
                    )
            for index in range(len(self.files) - 1):
                # the sync covers writes through earlier descriptors of the file
                yield (self._descriptor_of(index),)
            for folder in dict.fromkeys(PurePosixPath(file.path).parent for file in self.files):
                # The last parent is the package itself, which is synced with its list.
                for inner in (folder, *folder.parents)[:-1]:
                    yield from sync_directory(self._temporary / inner)
            yield from self._list(self._descriptor_of(len(self.files) - 1))
            self._close()
            target = self._store.directory(self.digest)
            try:
                os.rename(self._temporary, target)
            except OSError:
                if not self._store.has(self.digest):  # otherwise another process has stored the same content
                    raise
                self.abort()
            yield from sync_directory(target.parent)
        except BaseException:
            self.abort()
            raise

    def _list(self, last: int) -> Steps[None]:
        """Write the package's list of files, and sync list, directory and the last file, of this
        descriptor."""
        data = json.dumps(rows_of(self.files)).encode()
        path = self._temporary / LIST_FILE
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            folder = os.open(self._temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield (last, descriptor, folder)
            finally:
                os.close(folder)
        finally:
            os.close(descriptor)

    def abort(self) -> None:
        """Remove the files written. Idempotent."""
        self._close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _descriptor_of(self, file: int) -> int:
        """Return the descriptor of a file, which is created if needed. The previous file's descriptor is
        closed."""
        if self._open != file:
            self._close()
            path = self._temporary / self.files[file].path
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            self._open = file
        return self._descriptor

    def _close(self) -> None:
        if self._open is not None:
            self._open = None
            os.close(self._descriptor)


class DamagedPackage(InvalidModel):
    """A stored package differs from its digest: the store is at fault, not the model."""


def listed_files(directory: Path) -> list[PackageFile]:
    """Return the files of a stored package by its list. Raises DamagedPackage, OSError."""
    try:
        if directory.is_symlink():
            raise DamagedPackage(f"package {directory.name} is damaged: it is a link")
        files = parse_files(json.loads(read_plain(directory / LIST_FILE)))
    except DamagedPackage:
        raise
    except (ValueError, RecursionError, InvalidModel) as error:
        raise DamagedPackage(
            f"package {directory.name} is damaged: its list cannot be read: {error}"[:300]
        ) from None
    if digest_of(files) != directory.name:
        raise DamagedPackage(
            f"package {directory.name} is damaged: its list belongs to package {digest_of(files)}"
        )
    return files


def is_fresh(directory: Path, file: str) -> bool:
    """Whether a file of a package is still as its writer has hashed it. Raises OSError.

    The writer makes the list last, so that a file changed later has a later time of change. Up to
    PACKAGE_FRESH_NS after that, the bytes are read from the page cache, where a hash would show no damage of
    the disk.
    """
    listed = os.stat(directory / LIST_FILE).st_ctime_ns
    return os.stat(directory / file).st_ctime_ns <= listed <= time.time_ns() < listed + PACKAGE_FRESH_NS


def check_package(directory: Path, pace: Pace = AT_ONCE) -> list[PackageFile]:
    """Check every byte of a stored package and return its files. Raises DamagedPackage."""
    try:
        files = listed_files(directory)
        for file in files:
            size, sha256 = hash_file(directory / file.path, pace)
            if (size, sha256) != (file.bytes, file.sha256):
                raise DamagedPackage(
                    f"package {directory.name} is damaged: {file.path!r} has {size} bytes with sha256 {sha256[:12]}..., "
                    f"expected {file.bytes} with {file.sha256[:12]}..."
                )
    except OSError as error:
        what = Path(error.filename).name if error.filename else "a file of it"
        raise DamagedPackage(
            f"package {directory.name} is damaged: {what} cannot be read: {error.strerror}"
        ) from None
    return files


def put_in_place(target: Path, marker: str, fill: Callable[[Path], None]) -> None:
    """Create a directory in one step, unless it exists. Several processes may do so at once.

    fill: writes the files into a given directory, ``marker`` last, so that the marker implies all files.
    """
    if (target / marker).is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
    try:
        fill(temporary)
        os.chmod(temporary, 0o755)
        try:
            os.rename(temporary, target)
        except OSError:
            if not (target / marker).is_file():  # otherwise another process has created it
                raise
        fsync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
