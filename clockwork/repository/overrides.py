"""Configurations and files that a load of the repository API brings, in place of a repository's.

Overrides hold until the model is loaded without them, or until the gateway ends. Until then a temporary
folder keeps the files.
"""

from __future__ import annotations

import base64
import binascii
import concurrent.futures
import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from clockwork.config.repository import FILES_MAX, LOADED_PATH_CHARS_MAX
from clockwork.errors import InvalidInput
from clockwork.formats.package import check_name
from clockwork.repository.folders import CONFIG, Fingerprint, Folder, Repository, Row, Version
from clockwork.repository.triton_config import text_of_json

FILE = "file:"  # The prefix of a parameter with the content of a file; the path in the model's folder follows
_BASE64_PIECE = 1 << 18  # Characters that are decoded at once, while the interpreter's lock is held


class Override:
    """A model's folder with the configuration of a load, and files of the load or of a repository."""

    is_settled = True  # the files of a load are complete
    pool: concurrent.futures.Executor | None = None

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        """parameters: the load's parameters. Raises InvalidInput and InvalidModel."""
        check_name(name)
        self.name = name
        self._config = ""
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._base: Repository | None = None  # the repository with the model's files
        contents = {}
        for key, value in parameters.items():
            if key == "config":
                if type(value) is not str:
                    raise InvalidInput("parameter config of a load is a text, in JSON")
                self._config = text_of_json(value)
            elif key.startswith(FILE):
                contents[_checked(key.removeprefix(FILE))] = _bytes_of(key, value)
            else:
                raise InvalidInput(
                    f"load of {name!r} has the parameter {key[:80]!r}; there are config and {FILE}PATH",
                    expected=f"config, {FILE}PATH",
                )
        if "config" not in parameters:
            raise InvalidInput(f"load of {name!r} brings files, and no parameter config with them")
        if len(contents) > FILES_MAX:
            raise InvalidInput(
                f"load of {name!r} brings {len(contents)} files, at most {FILES_MAX} are taken"
            )
        if contents:
            self._files = tempfile.TemporaryDirectory(prefix="clockwork-loaded-")
            try:
                for path, data in contents.items():
                    file = Path(self._files.name, name, path)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
            except OSError as error:  # for example if a file and a folder have the same name
                self.close()
                raise InvalidInput(
                    f"load of {name!r}: the files cannot be written: {error.strerror}"
                ) from None
            self._base = Folder(Path(self._files.name))

    @property
    def brings_files(self) -> bool:
        return self._files is not None

    def close(self) -> None:
        """Remove the files of the load."""
        if self._files is not None:
            self._files.cleanup()

    def stand_on(self, base: Repository) -> None:
        """Use the model's files in a repository, because the load brought a configuration only."""
        self._base, self.is_settled, self.pool = base, base.is_settled, base.pool

    def __str__(self) -> str:
        return f"a load of {self.name}"

    def folders(self) -> Sequence[str]:
        return [self.name]

    def text(self, folder: str, name: str) -> tuple[Row, bytes] | None:
        if name != CONFIG:
            return self._found.text(folder, name)
        data = self._config.encode()
        return (CONFIG, len(data), hashlib.sha256(data).hexdigest()), data

    def versions(self, folder: str) -> Sequence[str]:
        return self._found.versions(folder)

    def rows(self, folder: str, version: str) -> Fingerprint:
        return self._found.rows(folder, version)

    @contextlib.contextmanager
    def copy(self, version: Version) -> Iterator[Path]:
        with self._found.copy(version) as folder:
            yield folder

    @property
    def _found(self) -> Repository:
        assert self._base is not None, "without files it stands on a repository"
        return self._base


def _checked(path: str) -> str:
    """Return a path within a model's folder, checked. Raises InvalidInput."""
    parts = PurePosixPath(path).parts
    wrong = not parts or ".." in parts or path.startswith("/") or "\0" in path or "\\" in path
    if wrong or len(path) > LOADED_PATH_CHARS_MAX or not path.isprintable():
        raise InvalidInput(f"{path[:200]!r} is no path in the folder of a model, as 1/model.onnx is")
    return str(PurePosixPath(path))


def _bytes_of(key: str, value: Any) -> bytes:
    """Return a file's content from a parameter: bytes over gRPC, base64 over HTTP. Raises InvalidInput."""
    if type(value) is bytes:
        return value
    if type(value) is not str:
        raise InvalidInput(f"parameter {key[:80]!r} of a load is a file's content, in base64")
    content = bytearray()
    try:
        for begin in range(0, len(value), _BASE64_PIECE):
            content += base64.b64decode(value[begin : begin + _BASE64_PIECE], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"parameter {key[:80]!r} of a load is not in base64: {error}") from None
    return bytes(content)
