"""Fetches a model from a URL, for `clockwork models add`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from clockwork.config import PACKAGE_BYTES_MAX
from clockwork.errors import InvalidModel
from clockwork.sources.location import Location, require_library
from clockwork.sources.reading import ReaderProcess, RemoteFile, fetch_all
from clockwork.wire.packages import MODEL_FILE, PROGRAM_JSON, external_path

SHOWN = 5  # Number of a folder's ONNX files that an error lists


def fetch_model(location: Location, folder: Path, tell: Callable[[str, int, int], None]) -> Path:
    """Fetch an ONNX file with its external data, or the files of a compiled program, into a folder.

    Returns the ONNX file, or the folder of the program. Raises ConfigError, SourceFailed and InvalidModel.
    """
    require_library(location)
    reader = ReaderProcess(location)
    try:
        found = reader.describe(location.url)
        return _fetch_onnx(reader, found, folder, tell) if found else _fetch_program(reader, folder, tell)
    finally:
        reader.stop()


def _fetch_onnx(
    reader: ReaderProcess, found: RemoteFile, folder: Path, tell: Callable[[str, int, int], None]
) -> Path:
    from clockwork.models import onnx_import  # imported here, because onnx takes half a second to import

    location = reader.location
    path = folder / MODEL_FILE
    done, total = 0, max(0, found.bytes)

    def told(come: int) -> None:
        tell("fetch", done + come, total)

    reader.fetch(location.url, found, path, PACKAGE_BYTES_MAX, told)
    done = path.stat().st_size
    names = onnx_import.external_files(onnx_import.read_model(path))
    for name in names:
        external_path(folder, name)  # raises if the path leads out of the folder
    urls = {name: location.beside(str(PurePosixPath(name))) for name in names}
    parts = {name: part for name in names if (part := reader.describe(urls[name])) is not None}
    total += sum(max(0, part.bytes) for part in parts.values())
    for name, part in parts.items():
        reader.fetch(urls[name], part, folder / name, PACKAGE_BYTES_MAX - done, told)
        done += (folder / name).stat().st_size
    return path


def _fetch_program(reader: ReaderProcess, folder: Path, tell: Callable[[str, int, int], None]) -> Path:
    location = reader.location
    files = reader.files()
    paths = [file.path for file in files]
    if PROGRAM_JSON not in paths:
        models = [path for path in paths if path.endswith(".onnx")]
        hint = f"it has {', '.join(models[:SHOWN])}" if models else "it has no .onnx file"
        raise InvalidModel(f"{location} is a folder without {PROGRAM_JSON}: name an ONNX file; {hint}")
    fetch_all(
        reader, location, files, folder, PACKAGE_BYTES_MAX, lambda done, total: tell("fetch", done, total)
    )
    return folder
