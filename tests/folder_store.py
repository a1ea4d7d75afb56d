"""A folder in the place of an object store, with every fault that a test sets."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from clockwork.errors import InvalidModel
from clockwork.sources.location import Location
from clockwork.sources.reading import SourceFailed, SourceMissing

URL = "s3://bucket/prefix"


class FolderStore:
    """Stands in for sources.objects.ObjectStore. fault: called with each call's name and path; raises."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = Location(URL, "s3")
        self.failure = ""
        self.calls: list[tuple[str, str]] = []
        self.kept: list[str] = []  # objects in the order in which they were written
        self.fault: Callable[[str, str], None] = lambda what, path: None

    def url(self, path: str) -> str:
        return f"{URL}/{path}"

    def names(self, path: str) -> list[str]:
        self._called("names", path)
        folder = self.root / path
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def sizes(self, path: str) -> dict[str, int]:
        self._called("sizes", path)
        folder = self.root / path
        found = [file for file in folder.rglob("*") if file.is_file()]
        return {str(file.relative_to(folder)): file.stat().st_size for file in found}

    def copy(self, path: str, to: Path, bytes_max: int) -> str:
        self._called("copy", path)
        if not (self.root / path).is_file():
            raise SourceMissing(f"{self.url(path)} is not there")
        data = (self.root / path).read_bytes()
        if len(data) > bytes_max:
            raise InvalidModel("it is too large")
        to.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def keep(self, path: str, folder: Path, files: Sequence[tuple[str, int, str]]) -> None:
        for name, _, sha256 in files:
            self._called("keep", f"{path}/{name}")
            to = self.root / path / name
            to.parent.mkdir(parents=True, exist_ok=True)
            data = (folder / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == sha256
            to.write_bytes(data)
            self.kept.append(name)

    def remove(self, path: str, first: str = "") -> None:
        self._called("remove", path)
        target = self.root / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def close(self) -> None:
        pass

    def _called(self, what: str, path: str) -> None:
        self.calls.append((what, path))
        try:
            self.fault(what, path)
        except SourceFailed as error:
            self.failure = str(error)
            raise
        self.failure = ""
