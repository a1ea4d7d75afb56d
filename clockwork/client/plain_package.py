"""The package of an ONNX model without the library onnx: what clockwork-client alone registers.

Of the file is read only which other files it refers to, and, for examples, which inputs it takes. Whether it can be served
is left to the worker that prepares it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from clockwork.config.models import GRAPH_DEPTH_MAX
from clockwork.errors import InvalidModel
from clockwork.wire.packages import (
    EXAMPLES_FILE,
    LFS_POINTER,
    MODEL_FILE,
    DeclaredInput,
    PackageFiles,
    check_examples,
    check_external_name,
    external_path,
    name_examples,
    pack_examples,
    source_of,
)

Field: TypeAlias = tuple[int, Any]
"""Number and value of a protobuf field: an int, or a memoryview of a text or message."""

# Field numbers of onnx.proto.
MODEL_GRAPH, MODEL_FUNCTION = 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_SPARSE = 1, 5, 11, 15
FUNCTION_NODE = 7
NODE_ATTRIBUTE = 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 8, 13, 14
SPARSE_VALUES = 1
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR = 1
TENSOR_TYPE_DTYPE, TENSOR_TYPE_SHAPE = 1, 2
SHAPE_DIMENSION = 1


class _Damaged(ValueError):
    """These bytes are no protobuf message."""


def package_of(model: Any, examples: Any) -> PackageFiles:
    """The files of Client.register()'s model and examples. Raises InvalidModel."""
    check_examples(examples)
    path, data = source_of(model)
    if data is None:
        if path.is_dir():
            raise InvalidModel(
                f"{path} is a folder: compiled programs are registered with clockwork-serving, which reads them: "
                "pip install clockwork-serving"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidModel(
                f"{path} does not exist"
                if isinstance(error, FileNotFoundError)
                else f"{path} cannot be read: {error.strerror}"
            ) from None
    else:
        content = data
    if content.startswith(LFS_POINTER):
        raise InvalidModel(f"{path.name} is a pointer of Git LFS, not the model: `git lfs pull` brings it")
    files: PackageFiles = [(MODEL_FILE, path if data is None else data)]
    try:
        locations, inputs = _read(memoryview(content))
    except _Damaged:
        raise InvalidModel(f"{path.name} is not an ONNX model, or damaged ({len(content)} bytes)") from None
    for location in locations:
        check_external_name(location)
        file = external_path(path.parent, location)
        if data is not None or not file.is_file():
            raise InvalidModel(f"{path.name} refers to external data {location!r}, which is not beside it")
        files.append((location, file))
    if packed := pack_examples(inputs, name_examples(examples, [one.name for one in inputs])):
        files.append((EXAMPLES_FILE, packed))
    return files


def _read(model: memoryview) -> tuple[list[str], list[DeclaredInput]]:
    """The external files of a ModelProto, in the order of their first use, and the inputs that a request must bring."""
    graphs = _all(model, MODEL_GRAPH)
    if not graphs:
        raise _Damaged
    locations: dict[str, None] = {}
    for graph in graphs:
        locations |= dict.fromkeys(_of_graph(graph, 0))
    for function in _all(model, MODEL_FUNCTION):
        for node in _all(function, FUNCTION_NODE):
            locations |= dict.fromkeys(_of_node(node, 0))
    graph = graphs[-1]
    held = {_text(tensor, TENSOR_NAME) for tensor in _all(graph, GRAPH_INITIALIZER)}
    for sparse in _all(graph, GRAPH_SPARSE):
        held |= {_text(tensor, TENSOR_NAME) for tensor in _all(sparse, SPARSE_VALUES)}
    declared = map(_declared, _all(graph, GRAPH_INPUT))
    return list(locations), [one for one in declared if one.name not in held]


def _of_graph(graph: memoryview, depth: int) -> Iterator[str]:
    """Locations of the external tensors of a GraphProto."""
    if depth > GRAPH_DEPTH_MAX:
        raise InvalidModel(f"the model nests subgraphs deeper than {GRAPH_DEPTH_MAX}")
    for tensor in _all(graph, GRAPH_INITIALIZER):
        yield from _of_tensor(tensor)
    for node in _all(graph, GRAPH_NODE):
        yield from _of_node(node, depth)


def _of_node(node: memoryview, depth: int) -> Iterator[str]:
    for attribute in _all(node, NODE_ATTRIBUTE):
        for number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            for tensor in _all(attribute, number):
                yield from _of_tensor(tensor)
        for number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            for graph in _all(attribute, number):
                yield from _of_graph(graph, depth + 1)


def _of_tensor(tensor: memoryview) -> Iterator[str]:
    if 1 in _numbers(tensor, TENSOR_LOCATION):
        entries = {_text(entry, 1): _text(entry, 2) for entry in _all(tensor, TENSOR_EXTERNAL)}
        if "location" not in entries:
            name = _text(tensor, TENSOR_NAME)
            raise InvalidModel(f"tensor {name!r} has no readable place of its external data")
        yield entries["location"]


def _declared(value: memoryview) -> DeclaredInput:
    """An input, of a ValueInfoProto. One that is no tensor has dtype 0."""
    dtype, rank = 0, None
    for kind in _all(value, VALUE_TYPE):
        for tensor in _all(kind, TYPE_TENSOR):
            dtype = next(_numbers(tensor, TENSOR_TYPE_DTYPE), 0)
            for shape in _all(tensor, TENSOR_TYPE_SHAPE):
                rank = len(_all(shape, SHAPE_DIMENSION))
    return DeclaredInput(_text(value, VALUE_NAME), dtype, rank)


# ----- protobuf ------------------------------------------------------------------------------


def _all(message: memoryview, number: int) -> list[memoryview]:
    """The messages or texts of a field, in order. Raises _Damaged."""
    return [value for key, value in _fields(message) if key == number and isinstance(value, memoryview)]


def _numbers(message: memoryview, number: int) -> Iterator[int]:
    """The integers of a field, in order. Raises _Damaged."""
    return (value for key, value in _fields(message) if key == number and isinstance(value, int))


def _text(message: memoryview, number: int) -> str:
    """The last text of a field, "" without one. Raises _Damaged."""
    found = _all(message, number)
    try:
        return str(found[-1], "utf-8") if found else ""
    except UnicodeDecodeError:
        raise _Damaged from None


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message. What needs no copy gets none: tensors are skipped over. Raises _Damaged."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _Damaged
        if size > end - at:
            raise _Damaged
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer, and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Damaged
