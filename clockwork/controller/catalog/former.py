"""The catalogue of earlier releases: a small sealed file for each version and each route of a data directory.

    <data>/models/<name>@<version>.json
    <data>/routes/<name>.json
    <data>/undo    earlier files of a change of several of these that a crash cut short

It is read once, and not written to. A damaged file is named, and stays where it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from clockwork.controller.catalog.records import UNREADABLE, Complaint, ModelRecord
from clockwork.controller.catalog.routes import NameRoute
from clockwork.formats.checksums import read_plain, unseal
from clockwork.formats.durable import remove_tree
from clockwork.wire.telling import printable

_MODELS, _ROUTES, _UNDO, _DONE = "models", "routes", "undo", "done"

T = TypeVar("T")


class Former(NamedTuple):
    records: list[ModelRecord]
    routes: list[NameRoute]
    complaints: list[Complaint]


def is_former(root: Path) -> bool:
    """Whether a data directory has the catalogue of an earlier release."""
    return (root / _MODELS).is_dir()


def read_former(root: Path) -> Former:
    """Read the catalogue of an earlier release, without a change that was cut short. Raises OSError."""
    complaints: list[Complaint] = []
    records = _read_all(root, _MODELS, _record, complaints)
    return Former(records, _read_all(root, _ROUTES, _route, complaints), complaints)


def remove_former(root: Path) -> None:
    """Remove the catalogue of an earlier release. Raises OSError."""
    for folder in (_ROUTES, _UNDO, _DONE, _MODELS):
        remove_tree(root / folder)


def _record(body: dict[str, Any]) -> tuple[ModelRecord, str]:
    record = ModelRecord.from_body(body)
    return record, f"{record.label}.json"


def _route(body: dict[str, Any]) -> tuple[NameRoute, str]:
    route = NameRoute.from_body(body)
    return route, f"{route.name}.json"


def _read_all(
    root: Path, folder: str, parse: Callable[[dict[str, Any]], tuple[T, str]], complaints: list[Complaint]
) -> list[T]:
    found: list[T] = []
    for name, path in sorted(_files(root, folder).items()):
        try:
            entry, own_name = parse(unseal(read_plain(path))[0])
            if own_name != name:
                raise ValueError(f"it is the entry of {own_name}")
            found.append(entry)
        except UNREADABLE as error:
            why = error.strerror if isinstance(error, OSError) else printable(str(error), 200)
            model, _, version = name.removesuffix(".json").partition("@")
            number = int(version) if version.isascii() and version.isdigit() and len(version) < 12 else 0
            text = f"{folder}/{printable(name, 200)} of an earlier release is damaged ({why}) and is not used"
            complaints.append(Complaint(printable(model, 200), number, text, False))
    return found


def _files(root: Path, folder: str) -> dict[str, Path]:
    """The files of a folder by name, those that a change has replaced as they were before it."""
    if not (root / folder).is_dir():
        return {}
    found = {entry.name: Path(entry.path) for entry in os.scandir(root / folder)}
    for kept in (root / _UNDO).iterdir() if (root / _UNDO).is_dir() else ():
        age, of, name = [*kept.name.split("%", 2), "", ""][:3]
        if of == folder and age == "old":
            found[name] = kept
        elif of == folder and age == "new":
            found.pop(name, None)
    return {name: path for name, path in found.items() if not name.startswith(".")}
