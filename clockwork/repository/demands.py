"""Checks an ONNX model against the inputs and outputs that its folder's configuration declares.

Where the configuration declares another shape (``reshape``), the registered file is changed accordingly.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clockwork.errors import InvalidModel
from clockwork.formats.package import PackageFile, digest_of, hash_file
from clockwork.protocol.datatypes import NAME_OF
from clockwork.repository.folders import Version
from clockwork.repository.triton_config import TRITON_TYPES, TensorDemand
from clockwork.wire.packages import MODEL_FILE, external_path

SOURCE_KEY = "clockwork.source"
"""Metadata of a model with changed shapes: the digest of the package that its unchanged file would make."""


def package_digest(path: Path, optional: list[str] | None) -> str:
    """Return the digest of the package that a registration makes of a file or program folder.

    optional: its optional inputs, in the form of Client.register(). Raises InvalidModel and OSError.
    """
    from clockwork.models.packaging import package_of

    files = []
    for name, source in package_of(path, None, optional):
        if isinstance(source, bytes):
            files.append(PackageFile(name, len(source), hashlib.sha256(source).hexdigest()))
        else:
            files.append(PackageFile(name, *hash_file(source)))
    return digest_of(files)


@contextlib.contextmanager
def adapted(version: Version, path: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """Yield the file to register for a version, and its optional inputs in the form of Client.register().

    path: the version's ONNX file, or its program's folder. The yielded file is removed when the context ends.
    An input with a default is optional where the configuration lists it. Raises InvalidModel where the model
    lacks an input or output that its configuration declares.
    """
    config = version.config
    demands = {"input": config.inputs, "output": config.outputs}
    if path.is_dir() or not any(demands.values()):
        yield path, None
        return
    # Imported here, because importing onnx takes half a second.
    from clockwork.models import onnx_import
    from clockwork.models.reshaping import Reshape, reshape_interface

    model, batched = onnx_import.read_model(path), bool(config.batch_max)
    required = onnx_import.real_inputs(model)
    needed = {value.name for value in required}
    listed = {demand.name for demand in config.inputs} - needed
    told = [value for value in model.graph.input if value.name in listed]
    optional = None
    if told:
        optional = list(
            dict.fromkeys([*onnx_import.optional_by_default(model), *(value.name for value in told)])
        )
    values = {"input": [*required, *told], "output": list(model.graph.output)}
    reshapes = []
    for side, wanted in demands.items():
        there = {value.name: value.type.tensor_type for value in values[side]}
        for demand in wanted:
            if demand.name not in there:
                raise InvalidModel(
                    f"config.pbtxt: the model has no {side} {demand.name!r}; it has {', '.join(there)}"
                )
            _check(side, demand, there[demand.name], batched and (side == "output" or demand.name in needed))
            if demand.reshape is not None and demand.reshape != demand.dims:
                reshapes.append(Reshape(demand.name, side == "input", demand.dims, demand.reshape, batched))
    if not reshapes:
        yield path, optional
        return
    changed = reshape_interface(model, reshapes)
    changed.metadata_props.add(key=SOURCE_KEY, value=package_digest(path, optional))
    data = changed.SerializeToString(deterministic=True)
    with tempfile.TemporaryDirectory(prefix="clockwork-reshaped-") as folder:
        for location in onnx_import.external_files(model):
            source, target = external_path(path.parent, location), Path(folder, location)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source.resolve(), target)
            except FileNotFoundError:
                break  # registering the model raises an error with the missing file's name
            except OSError:  # another file system, or a file system without links
                shutil.copyfile(source, target)
        file = Path(folder, MODEL_FILE)
        file.write_bytes(data)
        yield file, optional


def _check(side: str, demand: TensorDemand, kind: Any, batched: bool) -> None:
    datatype = NAME_OF[kind.elem_type]
    if demand.dtype and TRITON_TYPES.get(demand.dtype) != datatype:
        wanted = TRITON_TYPES.get(demand.dtype, str(demand.dtype))
        raise InvalidModel(f"config.pbtxt: {side} {demand.name!r} is {datatype}, not {wanted}")
    dims = demand.dims if demand.reshape is None else demand.reshape
    if not kind.HasField("shape") or not demand.dims:
        return
    shape = [dim.dim_value or -1 for dim in kind.shape.dim]
    declared = [-1, *dims] if batched else list(dims)
    fits = len(declared) == len(shape) and all(
        size == other or -1 in (size, other) for size, other in zip(declared, shape, strict=True)
    )
    if not fits:
        raise InvalidModel(
            f"config.pbtxt: {side} {demand.name!r} has the shape {shape}, not {declared}"
            + (" (the first is the batch)" if batched else "")
        )
