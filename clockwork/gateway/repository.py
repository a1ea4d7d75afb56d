"""Triton model repositories: folders of versions of models, registered with the cluster as they come and go.

    <repository>/<name>/[config.pbtxt]
                        <version>/model.onnx      (and its external data; or a compiled program's files)

This module decides, keeper.py acts: scan() reads a repository, plan() compares it with what was done about it. The
files are the truth: this process remembers only which of them it has registered, and the controller where they came
from. An error in one model's folder concerns no other model.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from clockwork.config import VERSION_MAX, VERSIONS_MAX
from clockwork.config.gateway import CONFIG_BYTES_MAX, FILES_MAX, FOLDERS_MAX
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.package import PROGRAM_JSON, check_name
from clockwork.gateway.triton_config import FolderConfig, read_config

CONFIG = "config.pbtxt"

Fingerprint: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""(path, bytes, time of the last change in ns, inode) of every file of a version, and of its configuration."""


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, as found in its files."""

    name: str
    version: int
    path: Path  # of the ONNX file, or the folder of a compiled program
    config: FolderConfig
    fingerprint: Fingerprint


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """The result of a scan: versions to serve, and errors in folders by the model's name."""

    versions: Mapping[tuple[str, int], Version]
    broken: Mapping[str, str]


def scan(root: Path) -> Contents:
    """Read a repository. Raises ConfigError where there is no such directory."""
    versions: dict[tuple[str, int], Version] = {}
    broken: dict[str, str] = {}
    try:
        with os.scandir(root) as entries:
            folders = sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "_"))
            )
    except OSError as error:
        raise ConfigError(f"model repository {root} cannot be read: {error.strerror}") from None
    if len(folders) > FOLDERS_MAX:
        raise ConfigError(
            f"model repository {root} has {len(folders)} models; at most {FOLDERS_MAX} are read"
        )
    for name in folders:
        try:
            for version in _scan_model(root / name, name):
                versions[name, version.version] = version
        except InvalidModel as error:
            broken[_text(name)] = _text(str(error))
        except OSError as error:
            broken[_text(name)] = _text(f"{error.filename or root / name}: {error.strerror}")
    return Contents(versions, broken)


def _text(name: str) -> str:
    """A file's name, or a sentence with one, as text that can be sent: the bytes of a name may be anything."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _scan_model(folder: Path, name: str) -> list[Version]:
    check_name(name)
    config_file = folder / CONFIG
    config = FolderConfig()
    config_row: Fingerprint = ()
    if config_file.is_file():
        if config_file.stat().st_size > CONFIG_BYTES_MAX:
            raise InvalidModel(f"{CONFIG} is larger than {CONFIG_BYTES_MAX} bytes")
        config_row = (_row(config_file, CONFIG),)
        try:
            config = read_config(config_file.read_text(encoding="utf-8"), name)
        except UnicodeDecodeError as error:
            raise InvalidModel(f"{CONFIG} is no UTF-8 text: {error}") from None
    numbers = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and entry.name.isascii() and entry.name.isdigit():
                if entry.name.startswith("0") or int(entry.name) > VERSION_MAX:
                    raise InvalidModel(
                        f"version {entry.name[:30]}: a number from 1 to {VERSION_MAX} without leading zeros"
                    )
                numbers[int(entry.name)] = Path(entry.path)
    chosen = config.chosen(list(numbers))
    if not chosen:
        wanted = f" of {list(config.versions)}" if config.versions else ""
        raise InvalidModel(f"{folder} has no version{wanted}: a folder whose name is a number")
    if len(chosen) > VERSIONS_MAX:
        note = f"a model has at most {VERSIONS_MAX} versions: those before {chosen[-VERSIONS_MAX]} are passed over"
        config = dataclasses.replace(config, notes=(*config.notes, note))
        chosen = chosen[-VERSIONS_MAX:]
    found = []
    for number in chosen:
        place = numbers[number]
        path = place if (place / PROGRAM_JSON).is_file() else place / config.filename
        if not path.exists():
            raise InvalidModel(f"version {number} has no file {config.filename}")
        found.append(Version(name, number, path, config, config_row + _rows(place)))
    return found


def _rows(folder: Path) -> Fingerprint:
    rows = []
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place, file)
            rows.append(_row(path, str(path.relative_to(folder))))
            if len(rows) > FILES_MAX:
                raise InvalidModel(f"{folder} has more than {FILES_MAX} files")
    return tuple(sorted(rows))


def _row(path: Path, name: str) -> tuple[str, int, int, int]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InvalidModel(f"{path} is no file")
    return name, found.st_size, found.st_mtime_ns, found.st_ino


# ----- what to do about it ---------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Done:
    """How this process has registered the files of one version."""

    fingerprint: Fingerprint
    error: str = ""  # why the files are not served; "": they are registered
    again: bool = False  # registering the same files may succeed later
    served: int = 0  # the version's number in the cluster; 0: it has none


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to do after a scan."""

    register: tuple[Version, ...]  # lower versions first
    unregister: tuple[tuple[str, int], ...]
    settling: (
        bool  # files have changed since the scan before; they are left alone until they no longer change
    )


def plan(done: Mapping[tuple[str, int], Done], found: Contents, before: Contents | None) -> Plan:
    """What to register and to unregister after a scan. ``before``: the scan before it, since which files must not have
    changed to be registered; None at start, when all are.

    A model whose folder is broken keeps its versions: a folder that is half copied does not ask to remove them.
    """
    register, settling = [], False
    for key, version in sorted(found.versions.items()):
        known = done.get(key)
        if known is not None and known.fingerprint == version.fingerprint and not known.again:
            continue
        earlier = None if before is None else before.versions.get(key)
        if before is None or (earlier is not None and earlier.fingerprint == version.fingerprint):
            register.append(version)
        else:
            settling = True
    unregister = tuple(
        key for key, one in done.items() if key not in found.versions and key[0] not in found.broken
    )
    return Plan(tuple(register), unregister, settling)
