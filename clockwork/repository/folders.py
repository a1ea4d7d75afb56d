"""Triton model repositories: folders of versions of models, registered with the cluster as they come and go.

    <repository>/<name>/[config.pbtxt]
                        <version>/model.onnx      (and its external data; or a compiled program's files)

This module decides, and keeper.py acts: scan() reads a repository, and plan() compares it with the
registrations made so far. The files are the only source of truth: this process remembers which files it has
registered, and the controller remembers their origin. An error in one model's folder affects no other model.

A repository is a folder of this machine (Folder, here) or of a source that is read over the network
(remote.py).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from clockwork.config import VERSION_DIGITS_MAX, VERSION_MAX, VERSIONS_MAX
from clockwork.config.repository import CONFIG_BYTES_MAX, FILES_MAX, FOLDERS_MAX, LABEL_CHARS_MAX
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.package import check_name
from clockwork.repository.triton_config import FolderConfig, TensorDemand, read_config
from clockwork.wire.packages import MODEL_FILE, PROGRAM_JSON

CONFIG = "config.pbtxt"

Row: TypeAlias = tuple[str, int, str]
"""(path, bytes, mark) of a file. The mark changes with the file; for local files it has time of change and
inode."""

Fingerprint: TypeAlias = tuple[Row, ...]  # The rows of all files of a version and of its configuration


class Repository(Protocol):
    """The interface by which a repository is scanned and its files are fetched.

    folder: the name of a model's folder.
    """

    is_settled: bool
    """Whether listed files are known to be complete, so that they can be registered after a single scan."""

    pool: concurrent.futures.Executor | None
    """The threads that fetch files; None where no file has to be fetched."""

    def folders(self) -> Sequence[str]:
        """Return the names of the models' folders. Raises ConfigError where they cannot be read."""
        ...

    def text(self, folder: str, name: str) -> tuple[Row, bytes] | None:
        """Return the content of a file with configuration or labels; None: there is no such file.

        Raises InvalidModel and OSError.
        """
        ...

    def versions(self, folder: str) -> Sequence[str]:
        """Return the names of the folders in a folder. Raises InvalidModel and OSError."""
        ...

    def rows(self, folder: str, version: str) -> Fingerprint:
        """Return rows of a version's files, with paths below its folder. Raises InvalidModel and OSError."""
        ...

    def copy(self, version: Version) -> contextlib.AbstractContextManager[Path]:
        """Return a context with a local folder of a version's files, which may be removed at the context's
        end."""
        ...


class VersionMaking(NamedTuple):
    """The inputs of a version's preparation. A change of them needs a new version in the cluster."""

    files: Fingerprint
    batch_max: int | None
    shapes: tuple[TensorDemand, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """A version of a model, as read from its files."""

    name: str
    version: int
    file: str  # the ONNX file's name; "": the version is a compiled program
    config: FolderConfig
    fingerprint: Fingerprint
    repository: Repository = dataclasses.field(repr=False, compare=False)
    # By output: the names of its classes.
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    configured: int = 0  # the number of the fingerprint's first rows, which are the configuration's

    @property
    def making(self) -> VersionMaking:
        """The inputs of the version's preparation: its files, and the configuration's batching and shapes."""
        shapes = tuple(
            demand for demand in (*self.config.inputs, *self.config.outputs) if demand.reshape is not None
        )
        return VersionMaking(self.fingerprint[self.configured :], self.config.batch_max, shapes)

    @contextlib.contextmanager
    def copy(self) -> Iterator[Path]:
        """Yield a local path of the version's ONNX file or program folder. Raises the errors of fetching."""
        with self.repository.copy(self) as folder:
            yield folder / self.file if self.file else folder


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """The result of a scan: versions to serve, and errors in folders by the model's name.

    numbers: by the model's name, the numbers of all its version folders, with those that its policy leaves
    out. Broken folders are missing.
    """

    versions: Mapping[tuple[str, int], Version]
    broken: Mapping[str, str]
    numbers: Mapping[str, frozenset[int]] = dataclasses.field(default_factory=dict)


def scan(repository: Repository) -> Contents:
    """Read a repository. Raises ConfigError where it cannot be read."""
    versions: dict[tuple[str, int], Version] = {}
    broken: dict[str, str] = {}
    numbers: dict[str, frozenset[int]] = {}
    for name in sorted(repository.folders()):
        try:
            chosen, found = _scan_model(repository, name)
            versions.update({(name, version.version): version for version in chosen})
            numbers[name] = found
        except InvalidModel as error:
            broken[_text(name)] = _text(str(error))
        except OSError as error:
            broken[_text(name)] = _text(f"{error.filename or name}: {error.strerror}")
    return Contents(versions, broken, numbers)


def _text(name: str) -> str:
    """Return a text with file names as valid UTF-8, because file names may have any bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _scan_model(repository: Repository, name: str) -> tuple[list[Version], frozenset[int]]:
    """Return the versions of a model to serve, and the numbers of all its versions."""
    check_name(name)
    config = FolderConfig()
    config_row: Fingerprint = ()
    labels: dict[str, tuple[str, ...]] = {}
    if (found := repository.text(name, CONFIG)) is not None:
        row, data = found
        config_row = (row,)
        config = read_config(_decoded(CONFIG, data), name)
        for output, file in config.labels:
            if (found := repository.text(name, file)) is None:
                raise InvalidModel(
                    f"{CONFIG}: output {output!r} has the label_filename {file!r}, which is not there"
                )
            row, data = found
            config_row += (row,)
            labels[output] = tuple(line.strip() for line in _decoded(file, data).splitlines())
            if max(map(len, labels[output]), default=0) > LABEL_CHARS_MAX:
                raise InvalidModel(f"{file} has a label of more than {LABEL_CHARS_MAX} characters")
    numbers = {}
    for text in sorted(repository.versions(name)):
        if text.isascii() and text.isdigit():
            if text.startswith("0") or int(text[: VERSION_DIGITS_MAX + 1]) > VERSION_MAX:
                note = f"folder {_text(text[:30])} is passed over: a version is a number from 1 to {VERSION_MAX} without leading zeros"
                config = dataclasses.replace(config, notes=(*config.notes, note))
            else:
                numbers[int(text)] = text
    chosen = config.chosen(list(numbers))
    if not chosen:
        wanted = f" of {list(config.versions)}" if config.versions else ""
        # The error includes notes on ignored folders, which may be its cause.
        notes = "".join(f"; {note}" for note in config.notes if note.startswith("folder "))
        raise InvalidModel(f"{name} has no version{wanted}: a folder whose name is a number{notes}")
    if len(chosen) > VERSIONS_MAX:
        note = f"a model has at most {VERSIONS_MAX} versions: those before {chosen[-VERSIONS_MAX]} are passed over"
        config = dataclasses.replace(config, notes=(*config.notes, note))
        chosen = chosen[-VERSIONS_MAX:]
    versions = []
    for number in chosen:
        rows = repository.rows(name, numbers[number])
        paths = {path for path, _, _ in rows}
        file = "" if PROGRAM_JSON in paths else config.filename
        if f"{file}/{MODEL_FILE}" in paths:  # the file is in a folder of its own, with its external data
            file = f"{file}/{MODEL_FILE}"
        if file and file not in paths:
            raise InvalidModel(f"version {number} has no file {config.filename}")
        versions.append(
            Version(name, number, file, config, config_row + rows, repository, labels, len(config_row))
        )
    return versions, frozenset(numbers)


def _decoded(file: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidModel(f"{file} is no UTF-8 text: {error}") from None


class Folder:
    """A repository in a folder of this machine."""

    is_settled = False
    pool: concurrent.futures.Executor | None = None

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def __str__(self) -> str:
        return str(self.root)

    def folders(self) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                found = [
                    entry.name
                    for entry in entries
                    if entry.is_dir() and not entry.name.startswith((".", "_"))
                ]
        except OSError as error:
            raise ConfigError(f"model repository {self} cannot be read: {error.strerror}") from None
        if len(found) > FOLDERS_MAX:
            raise ConfigError(
                f"model repository {self} has {len(found)} models; at most {FOLDERS_MAX} are read"
            )
        return found

    def text(self, folder: str, name: str) -> tuple[Row, bytes] | None:
        file = self.root / folder / name
        if not file.is_file():
            return None
        if file.stat().st_size > CONFIG_BYTES_MAX:
            raise InvalidModel(f"{name} is larger than {CONFIG_BYTES_MAX} bytes")
        return _row(file, name), file.read_bytes()

    def versions(self, folder: str) -> list[str]:
        with os.scandir(self.root / folder) as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def rows(self, folder: str, version: str) -> Fingerprint:
        root = self.root / folder / version
        rows = []
        for place, _, files in os.walk(root):
            for file in files:
                path = Path(place, file)
                rows.append(_row(path, str(path.relative_to(root))))
                if len(rows) > FILES_MAX:
                    raise InvalidModel(f"{root} has more than {FILES_MAX} files")
        return tuple(sorted(rows))

    @contextlib.contextmanager
    def copy(self, version: Version) -> Iterator[Path]:
        yield self.root / version.name / str(version.version)


def _row(path: Path, name: str) -> Row:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InvalidModel(f"{path} is no file")
    return name, found.st_size, f"{found.st_mtime_ns}-{found.st_ino}"


# ----- plans ---------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class RegistrationState:
    """The state of a version's registration by this process."""

    fingerprint: Fingerprint  # fingerprint of the registered files; empty: an earlier run registered them
    error: str = ""  # the reason why the files are not served; "": they are registered
    again: bool = False  # registering the same files may succeed later
    served: int = 0  # the version's number in the cluster; 0: none
    making: VersionMaking | None = None  # the making of the version ``served``; None: unknown
    digest: str = ""  # digest of the version's package; "": unknown
    is_ready: bool = True  # whether ``served`` was ready when it was registered or found
    failures: int = 0  # consecutive failures of the source
    refusals: int = 0  # consecutive refusals by the cluster
    again_ns: int = 0  # time of the next try, by the monotonic clock


@dataclasses.dataclass(frozen=True, slots=True)
class ScanPlan:
    """The actions after a scan."""

    register: tuple[Version, ...]  # versions to register, lower versions first
    unregister: tuple[tuple[str, int], ...]
    settling: bool  # files changed since the previous scan, and are registered when they no longer change
    # unwanted versions that serve in place of wanted versions that are not served
    held: tuple[tuple[str, int], ...] = ()


def plan(
    done: Mapping[tuple[str, int], RegistrationState],
    found: Contents,
    before: Contents | None,
    now_ns: int = 0,
    is_complete: bool = True,
) -> ScanPlan:
    """Return the registrations to make and to undo after a scan.

    before: the previous scan; None at start, when all files count as settled. Files that are not settled are
    registered only if they are unchanged since then. A model whose folder is gone is unregistered only if the
    folder was missing then, too. now_ns: by the monotonic clock. is_complete: whether all repositories have
    been listed; otherwise a missing folder may be in a repository that is not listed yet.

    A model with a folder stays served: see _leaving().
    """
    register, settling = [], False
    for key, version in sorted(found.versions.items()):
        known = done.get(key)
        is_known = known is not None and known.fingerprint == version.fingerprint
        if known is not None and is_known and (not known.again or now_ns < known.again_ns):
            continue
        earlier = None if before is None else before.versions.get(key)
        if (
            before is None
            or version.repository.is_settled
            or (earlier is not None and earlier.fingerprint == version.fingerprint)
        ):
            register.append(version)
        else:
            settling = True
    wanted: dict[str, list[int]] = {}
    for name, number in found.versions:
        wanted.setdefault(name, []).append(number)
    extra: dict[str, list[int]] = {}
    for name, number in sorted(done):
        if (name, number) not in found.versions and name not in found.broken:
            extra.setdefault(name, []).append(number)
    unregister: list[tuple[str, int]] = []
    held: list[tuple[str, int]] = []
    for name, numbers in extra.items():
        if name in wanted:
            leaving, held_here = _leaving(name, wanted[name], numbers, done, found, before)
            unregister += leaving
            held += held_here
        elif is_complete and (before is None or not _has_folder(before, name)):
            unregister += [(name, number) for number in numbers]
    return ScanPlan(tuple(register), tuple(unregister), settling, tuple(held))


def _has_folder(contents: Contents, name: str) -> bool:
    return name in contents.broken or any(name == known for known, _ in contents.versions)


def _leaving(
    name: str,
    wanted: Sequence[int],
    extra: Sequence[int],
    done: Mapping[tuple[str, int], RegistrationState],
    found: Contents,
    before: Contents | None,
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return the unwanted versions of a model to unregister, and those to hold.

    To unregister all unwanted versions at once would leave the model unserved while the wanted version is
    copied, uploaded or prepared, and for ever where its files are broken. Therefore each wanted version that
    is not served holds an unwanted version, the newest first, whose files exist. A version whose files were
    deleted is held only while no wanted version is served. extra: the unwanted versions, in ascending order.
    """
    here = found.numbers.get(name, frozenset())
    known = [done.get((name, number)) for number in wanted]
    lacking = sum(1 for version in known if version is None or not (version.served and version.is_ready))
    is_served = lacking < len(wanted)
    leaving: list[tuple[str, int]] = []
    held: list[tuple[str, int]] = []
    for number in sorted(extra, key=lambda number: (number in here, number), reverse=True):
        key = (name, number)
        if not done[key].served:
            leaving.append(key)
        elif before is not None and key in before.versions:
            is_served = True  # its files may be being replaced: the next scan may want the version again
        elif (number in here and lacking > len(held)) or not (is_served or held):
            held.append(key)
        else:
            leaving.append(key)
    return leaving, held
