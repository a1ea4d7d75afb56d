"""The bundle of a prepared model: its files as a package, which other workers of the same kind can take.

    prepared.json                the description
    weights.bin, program.onnx    of a model of holding "bound"; the program alone for "none"
    packed.data, packed.onnx     of a model of holding "packed"

A bundle is named as a package is, by its list of files with their SHA-256. The worker that has prepared the
model tells the controller that list, and a worker that takes the bundle compares every byte with it. The
files have these names and no others, so that nothing that arrives can leave its directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clockwork.config import PACKAGE_BYTES_MAX
from clockwork.config.formats import SEALED_BYTES_MAX
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import read_plain
from clockwork.formats.package import PackageFile
from clockwork.formats.prepared import (
    PACKED_DATA_FILE,
    PACKED_FILE,
    PREPARED_FILE,
    PROGRAM_FILE,
    WEIGHTS_FILE,
    read_body,
)
from clockwork.wire.telling import tell

NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "bound": ((WEIGHTS_FILE, PROGRAM_FILE),),
    "none": ((PROGRAM_FILE,),),
    "packed": ((PACKED_DATA_FILE, PACKED_FILE), (PACKED_FILE,)),
}
"""The files of a bundle behind prepared.json, by holding. A packed model may have no file of data."""

_LISTS = frozenset((PREPARED_FILE, *names) for lists in NAMES.values() for names in lists)


def bundle_in(directory: Path) -> list[PackageFile]:
    """Return the files of a prepared model's bundle; none if its holding has no bundles, or if it was
    prepared by a version that did not note its files. Raises OSError, ValueError."""
    body, is_sealed = read_body(directory)
    contents = body.get("contents") or {}
    lists = NAMES.get(str(body.get("holding")), ())
    names = next((names for names in lists if set(names) == set(contents)), None)
    if names is None or not is_sealed or body.get("untried"):
        return []
    sealed = read_plain(directory / PREPARED_FILE)
    own = PackageFile(PREPARED_FILE, len(sealed), hashlib.sha256(sealed).hexdigest())
    return [own, *(PackageFile(name, int(contents[name][0]), str(contents[name][1])) for name in names)]


def parse_bundle(rows: Sequence[Sequence[Any]]) -> list[PackageFile]:
    """Check and return a bundle's files, which came in a message. Raises InvalidModel."""
    files = [PackageFile(*row) for row in rows]
    names = tuple(file.path for file in files)
    if names not in _LISTS:
        raise InvalidModel(f"the files of a prepared model are not {tell(list(names))}")
    if files[0].bytes > SEALED_BYTES_MAX:
        raise InvalidModel(f"{PREPARED_FILE} of {files[0].bytes} bytes is larger than {SEALED_BYTES_MAX}")
    for file in files:
        if len(file.sha256) != 64:
            raise InvalidModel(f"a SHA-256 is 64 hex digits, not {tell(file.sha256)}")
    total = sum(file.bytes for file in files)
    if total > PACKAGE_BYTES_MAX:
        raise InvalidModel(f"a prepared model of {total} bytes is larger than {PACKAGE_BYTES_MAX}")
    return files
