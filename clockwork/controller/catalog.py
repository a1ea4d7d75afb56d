"""The models a controller knows, on disk: packages by content, and one small record for each version.

    <data>/format           the format's version
    <data>/lock             held while a controller uses the directory
    <data>/packages/...     see models.package
    <data>/models/<name>@<version>.json
    <data>/routes/<name>.json   how the name's traffic is split, where somebody has said so
    <data>/undo, <data>/done    of changes of several of these at once, see models.durable

A record arrives by rename after its package is durable, so that what is listed can be served. Apart
from open(), records() and routes(), which run before the loop, everything here does file I/O and is
called on the controller's storage thread.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clockwork.controller.interfaces import Interface
from clockwork.controller.routes import NameRoute
from clockwork.errors import ConfigError
from clockwork.models.durable import Journal, write_durably
from clockwork.models.package import PackageFile, PackageStore, parse_files, rows_of

FORMAT = "1"


@dataclasses.dataclass(slots=True)
class ModelRecord:
    """One version of one model, as it was registered."""

    name: str
    version: int
    digest: str
    files: list[PackageFile]
    options: dict[str, Any]  # of its Register message
    offered: bool = True  # whether it serves; see messages.Offer
    aside: str = ""  # why it was set aside, and so is not offered; "": it was not
    interface: Interface | None = None  # as the first worker said; see controller.interfaces

    def to_json(self) -> bytes:
        body: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "files": rows_of(self.files),
            "options": self.options,
            "offered": self.offered,
            "aside": self.aside,
        }
        if self.interface is not None:
            body["interface"] = self.interface.to_dict()
        return json.dumps(body).encode()

    @staticmethod
    def from_json(text: bytes) -> ModelRecord:
        """Raises ValueError, KeyError or TypeError on a damaged record."""
        body = json.loads(text)
        interface = body.get("interface")
        return ModelRecord(
            str(body["name"]),
            int(body["version"]),
            str(body["digest"]),
            parse_files(body["files"]),
            dict(body["options"]),
            bool(body.get("offered", True)),
            str(body.get("aside", "")),
            Interface.from_dict(interface) if interface is not None else None,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What one order changes of what is registered: all of it, or nothing."""

    save: Sequence[ModelRecord] = ()
    remove: Sequence[ModelRecord] = ()
    route: NameRoute | None = None  # as it is to be
    unroute: str = ""  # the name whose route goes
    packages: Sequence[str] = ()  # digests that nothing uses any more, afterwards


class Catalog:
    """The data directory of one controller."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = -1
        self._journal = Journal(root, ("models", "routes"))

    def open(self) -> None:
        """Create or take over the directory. Raises ConfigError: not writable, other format, in use."""
        marker = self.root / "format"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = marker.read_text().strip() if marker.exists() else None
            if found is None:
                write_durably(marker, FORMAT.encode())
            elif found != FORMAT:
                raise ConfigError(
                    f"data directory {self.root} has format {found[:20]!r}, this version reads format {FORMAT}"
                )
            (self.root / "models").mkdir(exist_ok=True)
            (self.root / "routes").mkdir(exist_ok=True)
            self._journal.recover()
            self.store = PackageStore(self.root)
            self.store.sweep()
        except BlockingIOError:
            self.close()
            raise ConfigError(f"data directory {self.root} is in use by another controller") from None
        except OSError as error:
            self.close()
            raise ConfigError(
                f"data directory {self.root} cannot be used: {error.strerror}: {error.filename}"
            ) from None
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def records(self) -> tuple[list[ModelRecord], list[str]]:
        """Every usable record, oldest version first, and a sentence for each that is not usable."""
        records, complaints = [], []
        for entry in sorted(os.scandir(self.root / "models"), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            try:
                with open(entry.path, "rb") as file:
                    record = ModelRecord.from_json(file.read())
            except (OSError, ValueError, KeyError, TypeError) as error:
                complaints.append(f"record {entry.path} is damaged and was skipped: {error!r}")
                continue
            if self.store.has(record.digest):
                records.append(record)
            else:
                complaints.append(
                    f"package {record.digest[:12]} of {record.name}@{record.version} is missing"
                )
        records.sort(key=lambda record: (record.name, record.version))
        return records, complaints

    def routes(self) -> tuple[list[NameRoute], list[str]]:
        """Every usable route of a name, by name, and a sentence for each that is not usable."""
        routes, complaints = [], []
        for entry in sorted(os.scandir(self.root / "routes"), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            try:
                with open(entry.path, "rb") as file:
                    routes.append(NameRoute.from_json(file.read()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                complaints.append(f"route {entry.path} is damaged and was skipped: {error!r}")
        return routes, complaints

    def change(self, change: Change) -> str:
        """Make a change durably. Raises OSError: then nothing has changed (or, NotUndone, nobody knows).

        Returns what is wrong all the same, as a sentence: packages that could not be removed.
        """
        files: dict[Path, bytes | None] = {self._path(record): record.to_json() for record in change.save}
        files |= dict.fromkeys(map(self._path, change.remove))
        if change.route is not None:
            files[self._route_path(change.route.name)] = change.route.to_json()
        if change.unroute:
            files[self._route_path(change.unroute)] = None
        self._journal.change(files)
        left = []
        for digest in change.packages:
            try:
                self.store.remove(digest)
            except OSError as error:
                left.append(f"package {digest} cannot be removed: {error.strerror}")
        return "; ".join(left)

    def read_chunk(self, digest: str, file: PackageFile, offset: int, length: int) -> bytes:
        """Bytes of a stored file. Raises OSError."""
        with open(self.store.directory(digest) / file.path, "rb") as source:
            source.seek(offset)
            return source.read(length)

    def _route_path(self, name: str) -> Path:
        return self.root / "routes" / f"{name}.json"

    def _path(self, record: ModelRecord) -> Path:
        return self.root / "models" / f"{record.name}@{record.version}.json"
