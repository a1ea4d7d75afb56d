"""Archives of arrays (.npz) from other programs: examples, and a program's checks."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.errors import InvalidModel


@contextlib.contextmanager
def open_arrays(path: Path, bytes_max: int) -> Iterator[Any]:
    """Open an .npz file as np.load() does. Raises InvalidModel if its arrays have more than ``bytes_max``
    bytes.

    A KeyError or ValueError of the with-block becomes InvalidModel, too, because the file is at fault.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > bytes_max:
            raise ValueError(f"{size} bytes are more than {bytes_max}")
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidModel(f"{path.name} cannot be read: {error}") from None
