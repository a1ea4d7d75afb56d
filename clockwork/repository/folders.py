"""Triton model repositories: folders of versions of models, registered with the cluster as they come and go.

    <repository>/<name>/[config.pbtxt]
                        <version>/model.onnx      (and its external data; or a compiled program's files)

This module decides, keeper.py acts: scan() reads a repository, plan() compares it with what was done about it. The
files are the truth: this process remembers only which of them it has registered, and the controller where they came
from. An error in one model's folder concerns no other model.

A repository is a folder of this machine (Folder, here) or of a source that is read over the network (remote.py).
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
"""(path, bytes, mark) of a file. The mark changes when the file does: of a folder's, its time of change and inode."""

Fingerprint: TypeAlias = tuple[Row, ...]
"""The rows of every file of a version, and of its configuration."""


class Repository(Protocol):
    """A repository, as a scan reads it and as its files are brought here. ``folder`` is a model's."""

    is_settled: bool
    """Whether files that it names were the same a while ago: they need not be looked at again before they are taken."""

    pool: concurrent.futures.Executor | None
    """Whose threads fetch its files; None where nothing has to be fetched."""

    def folders(self) -> Sequence[str]:
        """The names of its folders. Raises ConfigError where they cannot be read."""
        ...

    def text(self, folder: str, name: str) -> tuple[Row, bytes] | None:
        """A file in a folder, of its configuration or of labels, unless there is none. Raises InvalidModel and OSError, as
        do the next two."""
        ...

    def versions(self, folder: str) -> Sequence[str]:
        """The names of the folders in a folder."""
        ...

    def rows(self, folder: str, version: str) -> Fingerprint:
        """All files of a version, by their paths below its folder."""
        ...

    def copy(self, version: Version) -> contextlib.AbstractContextManager[Path]:
        """The folder of a version's files on this machine, where they stay while the context does."""
        ...


class Making(NamedTuple):
    """What a version in the cluster is made of: a version of other makings is another one there."""

    files: Fingerprint
    batch_max: int | None
    shapes: tuple[TensorDemand, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, as found in its files."""

    name: str
    version: int
    file: str  # the ONNX file's name; "": the version is a compiled program, of several files
    config: FolderConfig
    fingerprint: Fingerprint
    repository: Repository = dataclasses.field(repr=False, compare=False)
    # By output: the names of its classes.
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    configured: int = 0  # rows of the fingerprint that are of the configuration; they come first

    @property
    def making(self) -> Making:
        """What decides how the cluster prepares it: its files, and of its configuration batching and shapes."""
        shapes = tuple(one for one in (*self.config.inputs, *self.config.outputs) if one.reshape is not None)
        return Making(self.fingerprint[self.configured :], self.config.batch_max, shapes)

    @contextlib.contextmanager
    def copy(self) -> Iterator[Path]:
        """Its ONNX file, or the folder of its program, on this machine. Raises what fetching it raises."""
        with self.repository.copy(self) as folder:
            yield folder / self.file if self.file else folder


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """The result of a scan: versions to serve, and errors in folders by the model's name.

    numbers: of all version folders by the model's name, those too that the model's policy leaves out; those of broken
    folders are missing.
    """

    versions: Mapping[tuple[str, int], Version]
    broken: Mapping[str, str]
    numbers: Mapping[str, frozenset[int]] = dataclasses.field(default_factory=dict)


def scan(repository: Repository) -> Contents:
    """Read a repository. Raises ConfigError where that is impossible."""
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
    """A file's name, or a sentence with one, as text that can be sent: the bytes of a name may be anything."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _scan_model(repository: Repository, name: str) -> tuple[list[Version], frozenset[int]]:
    """The versions to serve of a model, and the numbers of all that it has."""
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
        # Notes on folders that are passed over may be what is wrong.
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
        if f"{file}/{MODEL_FILE}" in paths:  # the file has a folder of its own, with its external data
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


# ----- what to do about it ---------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Done:
    """How this process has registered the files of one version."""

    fingerprint: Fingerprint  # empty: an earlier run has registered it
    error: str = ""  # why the files are not served; "": they are registered
    again: bool = False  # registering the same files may succeed later
    served: int = 0  # the version's number in the cluster; 0: it has none
    making: Making | None = None  # of that version; None: not known
    digest: str = ""  # of its package; "": not known
    is_ready: bool = True  # that number was ready when it was registered, or found; of no meaning without one
    failures: int = 0  # of its source, one after the other
    refusals: int = 0  # of the cluster, which could not take it then, one after the other
    again_ns: int = 0  # when it is to be tried again, by the monotonic clock


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to do after a scan."""

    register: tuple[Version, ...]  # lower versions first
    unregister: tuple[tuple[str, int], ...]
    settling: (
        bool  # files have changed since the scan before; they are left alone until they no longer change
    )
    held: tuple[
        tuple[str, int], ...
    ] = ()  # no longer wanted, and served in place of wanted ones that are not


def plan(
    done: Mapping[tuple[str, int], Done],
    found: Contents,
    before: Contents | None,
    now_ns: int = 0,
    is_complete: bool = True,
) -> Plan:
    """What to register and to unregister after a scan. ``before``: the scan before it, since which files must not have
    changed to be registered, unless they are settled, and which must not have wanted a version either that is unregistered;
    None at start, when all files are settled. ``now_ns``: by the monotonic clock. ``is_complete``: whether
    all repositories have been listed; without that no missing folder is known to be gone.

    No step takes a model down while its folder is there: see _leaving().
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
    return Plan(tuple(register), tuple(unregister), settling, tuple(held))


def _has_folder(contents: Contents, name: str) -> bool:
    return name in contents.broken or any(name == one for one, _ in contents.versions)


def _leaving(
    name: str,
    wanted: Sequence[int],
    extra: Sequence[int],
    done: Mapping[tuple[str, int], Done],
    found: Contents,
    before: Contents | None,
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Which versions of a model to unregister that are no longer wanted, and which of them to hold.

    To unregister all of them at once would take the model down whenever the wanted version is still being copied,
    uploaded or prepared, and for good where its files are broken. Therefore each wanted version that is not served keeps
    one in its place that the policy no longer chooses, the newest first. A version whose files were deleted stays only
    while none of the wanted ones is served. ``extra``: in ascending order.
    """
    here = found.numbers.get(name, frozenset())
    known = [done.get((name, number)) for number in wanted]
    lacking = sum(1 for one in known if one is None or not (one.served and one.is_ready))
    is_served = lacking < len(wanted)
    leaving: list[tuple[str, int]] = []
    held: list[tuple[str, int]] = []
    for number in sorted(extra, key=lambda number: (number in here, number), reverse=True):
        key = (name, number)
        if not done[key].served:
            leaving.append(key)
        elif before is not None and key in before.versions:
            is_served = True  # files may be on their way: at the next scan it may be wanted again
        elif (number in here and lacking > len(held)) or not (is_served or held):
            held.append(key)
        else:
            leaving.append(key)
    return leaving, held
