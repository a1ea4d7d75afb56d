"""Libraries of operators beside ONNX Runtime's own, for models that take strings and images.

Clockwork's operators are in csrc/device/operators.h. The package onnxruntime-extensions (extra ``text``) is
loaded only for models that use its operators. A session gets only the libraries that its model needs.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import mmap
import os
from pathlib import Path

from clockwork.config.device import SEARCHED_BYTES_MAX
from clockwork.device import _operators, _ort
from clockwork.errors import InvalidModel

DOMAIN = "clockwork"
EXTENSION_DOMAINS = ("ai.onnx.contrib", "com.microsoft.extensions")

_DECODER = "DecodeJpeg"
_OPERATOR, _DOMAIN_OF_NODE = 4, 7
"""Fields of ONNX's NodeProto."""

_SYSTEM_JPEG = "libjpeg.so.62"


def libraries_for(model: Path | bytes) -> tuple[str, ...]:
    """Return the libraries that sessions of an ONNX model need. Raises InvalidModel if one is missing."""
    found = []
    if _names(model, DOMAIN):
        if (problem := _load_jpeg()) and _names(model, _DECODER, _OPERATOR):
            raise InvalidModel(f"images cannot be decoded here: {problem}")
        found.append(_operators.__file__)
    if any(_names(model, domain) for domain in EXTENSION_DOMAINS):
        path = extensions()
        if path is None:
            raise InvalidModel(
                "it uses operators of onnxruntime-extensions, which is not installed: pip install 'clockwork-serving[text]'"
            )
        found.append(path)
    return tuple(found)


@functools.cache
def extensions() -> str | None:
    """Return the path of onnxruntime-extensions' library, without an import. None: not installed."""
    spec = importlib.util.find_spec("onnxruntime_extensions")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = [
        path
        for place in spec.submodule_search_locations
        for path in glob.glob(os.path.join(place, "_extensions_pydll*.so"))
    ]
    return found[0] if found else None


@functools.cache
def _load_jpeg() -> str:
    """Have the operators decode images by a libjpeg. Returns the reason of a failure, or ""."""
    path = _jpeg()
    problem = _operators.load_jpeg(os.fsencode(path))
    if not problem and not _ort.count_heap(os.fsencode(os.path.basename(path))):
        return f"the memory that {path} takes cannot be counted"
    return problem


def _jpeg() -> str:
    """Return the path of the libjpeg in Pillow's wheel, so that results equal Pillow's; else the system's."""
    spec = importlib.util.find_spec("PIL")
    for place in spec.submodule_search_locations or () if spec is not None else ():
        for path in sorted(glob.glob(os.path.join(place, os.pardir, "pillow.libs", "libjpeg-*.so*"))):
            return path
    return _SYSTEM_JPEG


def _names(model: Path | bytes, name: str, field: int = _DOMAIN_OF_NODE) -> bool:
    """Whether an ONNX file contains a name, preceded by its length, in this field of an operator."""
    needle = bytes([field << 3 | 2, len(name)]) + name.encode()
    if isinstance(model, bytes):
        return needle in model
    with open(model, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= SEARCHED_BYTES_MAX:  # faster than page faults
            return needle in file.read()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return mapped.find(needle) >= 0
