"""Packages an ONNX model without the library onnx, for clockwork-client without clockwork-serving.

Only the file's references to other files are read, and its inputs and outputs where they are changed or where
examples are given. The worker that prepares the model finds out whether it can be served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clockwork.client.plain_model import change_interface, optional_defaults
from clockwork.client.protobuf import DamagedMessage, Message, number_of, text_of
from clockwork.config.client import HELD_BYTES_MAX
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


def package_of(model: Any, examples: Any, optional: Sequence[str] | None = None) -> PackageFiles:
    """Return the package's files for Client.register()'s model and examples. Raises InvalidModel."""
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
    # A small file is sent as it was checked, and is not read again for its hash and its upload.
    is_held = data is not None or len(content) <= HELD_BYTES_MAX
    files: PackageFiles = [(MODEL_FILE, content if is_held else path)]
    given = _names_of(examples)
    try:
        changed = change_interface(memoryview(content), path.name, given, optional)
        if changed is not None:
            files, content = [(MODEL_FILE, changed)], changed
        locations, inputs = _read(memoryview(content))
        defaults = optional_defaults(memoryview(content), inputs)
    except DamagedMessage:
        raise InvalidModel(f"{path.name} is not an ONNX model, or damaged ({len(content)} bytes)") from None
    for location in locations:
        check_external_name(location)
        file = external_path(path.parent, location)
        if data is not None or not file.is_file():
            raise InvalidModel(f"{path.name} refers to external data {location!r}, which is not beside it")
        files.append((location, file))
    required = [declared.name for declared in inputs if declared.name not in defaults]
    if packed := pack_examples(inputs, name_examples(examples, required), defaults):
        files.append((EXAMPLES_FILE, packed))
    return files


def _names_of(examples: Any) -> set[str]:
    rows = [examples] if isinstance(examples, Mapping) else examples if isinstance(examples, Sequence) else []
    return {str(name) for row in rows if isinstance(row, Mapping) for name in row}


def _read(model: memoryview) -> tuple[list[str], list[DeclaredInput]]:
    """Return a ModelProto's external files, in the order of first use, and its required inputs."""
    graphs = Message(model).all(MODEL_GRAPH)
    if not graphs:
        raise DamagedMessage
    locations: dict[str, None] = {}
    for graph in graphs:
        locations |= dict.fromkeys(_of_graph(graph, 0))
    for function in Message(model).all(MODEL_FUNCTION):
        for node in Message(function).all(FUNCTION_NODE):
            locations |= dict.fromkeys(_of_node(node, 0))
    graph = graphs[-1]
    held = {text_of(tensor, TENSOR_NAME) for tensor in Message(graph).all(GRAPH_INITIALIZER)}
    for sparse in Message(graph).all(GRAPH_SPARSE):
        held |= {text_of(tensor, TENSOR_NAME) for tensor in Message(sparse).all(SPARSE_VALUES)}
    declared = map(_declared, Message(graph).all(GRAPH_INPUT))
    return list(locations), [value for value in declared if value.name not in held]


def _of_graph(graph: memoryview, depth: int) -> Iterator[str]:
    """Yield the locations of the external tensors of a GraphProto."""
    if depth > GRAPH_DEPTH_MAX:
        raise InvalidModel(f"the model nests subgraphs deeper than {GRAPH_DEPTH_MAX}")
    for tensor in Message(graph).all(GRAPH_INITIALIZER):
        yield from _of_tensor(tensor)
    for node in Message(graph).all(GRAPH_NODE):
        yield from _of_node(node, depth)


def _of_node(node: memoryview, depth: int) -> Iterator[str]:
    for attribute in Message(node).all(NODE_ATTRIBUTE):
        for number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            for tensor in Message(attribute).all(number):
                yield from _of_tensor(tensor)
        for number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            for graph in Message(attribute).all(number):
                yield from _of_graph(graph, depth + 1)


def _of_tensor(tensor: memoryview) -> Iterator[str]:
    if number_of(tensor, TENSOR_LOCATION) == 1:
        entries = {text_of(entry, 1): text_of(entry, 2) for entry in Message(tensor).all(TENSOR_EXTERNAL)}
        if "location" not in entries:
            name = text_of(tensor, TENSOR_NAME)
            raise InvalidModel(f"tensor {name!r} has no readable place of its external data")
        yield entries["location"]


def _declared(value: memoryview) -> DeclaredInput:
    """Return the input of a ValueInfoProto; an input that is no tensor has dtype 0."""
    dtype, rank = 0, None
    for kind in Message(value).all(VALUE_TYPE):
        for tensor in Message(kind).all(TYPE_TENSOR):
            dtype = number_of(tensor, TENSOR_TYPE_DTYPE)
            for shape in Message(tensor).all(TENSOR_TYPE_SHAPE):
                rank = len(Message(shape).all(SHAPE_DIMENSION))
    return DeclaredInput(text_of(value, VALUE_NAME), dtype, rank)
