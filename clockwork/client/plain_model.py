"""Changes an ONNX model's interface without the library onnx, in the way of clockwork.models.onnx_import.

Only changed fields are encoded again, in the order of serializers. The resulting bytes are therefore the same
as the library's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from clockwork.client.protobuf import DamagedMessage, Message, field, integers, number_of, text_of, texts
from clockwork.config.models import GRAPH_DEPTH_MAX, OPTIONAL_INPUTS_MAX
from clockwork.errors import InvalidModel
from clockwork.wire.optional import (
    OPTIONAL_KEY,
    Default,
    array_of,
    defaults_from,
    defaults_text,
    why_not_optional,
)
from clockwork.wire.packages import DeclaredInput
from clockwork.wire.tensors import BOOL, DTYPES, Array

# Field numbers of onnx.proto.
MODEL_IR_VERSION, MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA, MODEL_FUNCTION = 1, 7, 8, 14, 25
OPSET_DOMAIN, OPSET_VERSION = 1, 2
ENTRY_KEY, ENTRY_VALUE = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE = 1, 5, 11, 12, 15
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_GRAPH, ATTRIBUTE_INTS, ATTRIBUTE_STRINGS, ATTRIBUTE_GRAPHS = 1, 6, 8, 9, 11
TENSOR_DIMS, TENSOR_DTYPE, TENSOR_FLOATS, TENSOR_INT32S, TENSOR_INT64S, TENSOR_NAME = 1, 2, 4, 5, 7, 8
TENSOR_RAW, TENSOR_DOUBLES, TENSOR_UINT64S, TENSOR_LOCATION = 9, 10, 11, 14
SPARSE_VALUES = 1
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR = 1
TENSOR_TYPE_DTYPE, TENSOR_TYPE_SHAPE = 1, 2
SHAPE_DIMENSION = 1
DIMENSION_VALUE, DIMENSION_NAME = 1, 2

FLOAT = 1
ZIP_MAP, ML_DOMAIN = "ZipMap", "ai.onnx.ml"
STANDARD_OPSET = 13
"""Version of the standard operators for a model that uses none yet; the same as in clockwork.models.maps."""

LABELS_KEY = "clockwork.labels"  # Keys of a model's metadata; see clockwork.formats.interface


class _Node(NamedTuple):
    operator: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: list[memoryview]


def change_interface(
    content: memoryview, file_name: str, given: Collection[str], optional: Sequence[str] | None
) -> bytes | None:
    """Return the file with optional inputs and without lists of maps; None: the file needs no change.

    Raises InvalidModel, DamagedMessage.

    given, optional: see clockwork.models.onnx_import.import_model().
    """
    made = _make_optional(content, file_name, given, optional)
    without_maps = _make_tensors(content if made is None else memoryview(made))
    return made if without_maps is None else without_maps


# ----- optional inputs -----------------------------------------------------------------------------


def _make_optional(
    content: memoryview, file_name: str, given: Collection[str], optional: Sequence[str] | None
) -> bytes | None:
    model = Message(content)
    graph = model.last(MODEL_GRAPH)
    if graph is None:
        raise DamagedMessage
    parts = Message(graph)
    inputs = {text_of(value, VALUE_NAME): value for value in parts.all(GRAPH_INPUT)}
    held = {text_of(tensor, TENSOR_NAME): tensor for tensor in parts.all(GRAPH_INITIALIZER)}
    defaults = {name: tensor for name, tensor in held.items() if name in inputs}

    def why_not(name: str) -> str:
        return _why_not_optional(inputs[name], defaults[name])

    wanted = dict.fromkeys(optional or ())
    if optional is None and number_of(content, MODEL_IR_VERSION) >= 4:
        able = [name for name in inputs if name in held and not why_not(name)]
        if len(able) < len(defaults) or len(able) > OPTIONAL_INPUTS_MAX:
            able = [name for name in able if _steers(graph, name, held)][:OPTIONAL_INPUTS_MAX]
        wanted = dict.fromkeys(able)
    for name in wanted:
        if name not in defaults:
            known = ", ".join(map(repr, defaults)) or "none"
            raise InvalidModel(f"{file_name} has no input {name!r} with a default; those that have: {known}")
        if why := why_not(name):
            raise InvalidModel(f"{file_name}: input {name!r} cannot be optional: {why}")
    plain = {name for name in defaults if name in given and name not in wanted and why_not(name)}
    wanted |= dict.fromkeys(name for name in defaults if name in given and name not in plain)
    if not wanted and not plain:
        return None
    found = {name: default_of(defaults[name]) for name in wanted}

    def graph_field(number: int, value: memoryview) -> Iterable[bytes] | None:
        if number == GRAPH_INITIALIZER and text_of(value, TENSOR_NAME) in (found.keys() | plain):
            return ()
        if number == GRAPH_INPUT and (name := text_of(value, VALUE_NAME)) in found:
            return [field(number, _with_shape(value, found[name].shape))]
        return None

    changed = parts.changed(graph_field)
    body = model.changed(
        lambda number, value: [field(number, changed)] if number == MODEL_GRAPH and value is graph else None
    )
    if not found:
        return body
    others = [entry for entry in model.all(MODEL_METADATA) if text_of(entry, ENTRY_KEY) != OPTIONAL_KEY]
    entry = field(ENTRY_KEY, OPTIONAL_KEY.encode()) + field(ENTRY_VALUE, defaults_text(found).encode())
    return Message(memoryview(body)).with_all(MODEL_METADATA, [*map(bytes, others), entry])


def optional_defaults(content: memoryview, inputs: Sequence[DeclaredInput]) -> dict[str, Array]:
    """Return the defaults of a package's optional inputs. Raises DamagedMessage."""
    dtypes = {declared.name: declared.dtype for declared in inputs}
    found = {}
    for entry in Message(content).all(MODEL_METADATA):
        if text_of(entry, ENTRY_KEY) == OPTIONAL_KEY:
            try:
                found = defaults_from(text_of(entry, ENTRY_VALUE))
            except ValueError:
                raise DamagedMessage from None
    return {name: array_of(default, dtypes[name]) for name, default in found.items() if name in dtypes}


def _with_shape(value: memoryview, shape: Sequence[int]) -> bytes:
    dims = b"".join(field(SHAPE_DIMENSION, field(DIMENSION_VALUE, size)) for size in shape)

    def of_type(number: int, part: memoryview) -> Iterable[bytes] | None:
        if number != TYPE_TENSOR:
            return None
        return [field(number, Message(part).with_all(TENSOR_TYPE_SHAPE, [dims]))]

    return Message(value).changed(
        lambda number, part: [field(number, Message(part).changed(of_type))] if number == VALUE_TYPE else None
    )


def _why_not_optional(declared: memoryview, default: memoryview) -> str:
    if number_of(default, TENSOR_LOCATION) == 1:
        return "its default lies in another file"
    dims = integers(default, TENSOR_DIMS)
    shape: list[int | str] | None = None
    dtype = 0
    for kind in Message(declared).all(VALUE_TYPE):
        for tensor in Message(kind).all(TYPE_TENSOR):
            dtype = number_of(tensor, TENSOR_TYPE_DTYPE)
            for declared_shape in Message(tensor).all(TENSOR_TYPE_SHAPE):
                shape = [
                    values[-1] if (values := integers(dim, DIMENSION_VALUE)) else ""
                    for dim in Message(declared_shape).all(SHAPE_DIMENSION)
                ]
    if dtype != number_of(default, TENSOR_DTYPE):
        return "its default is of another type"
    if shape is None:
        shape = list(dims)
    return why_not_optional(number_of(default, TENSOR_DTYPE), shape) or (
        "" if shape == dims else f"its default is not of its shape {shape}"
    )


def default_of(tensor: memoryview) -> Default:
    """Return a small tensor that is stored in the file. Raises DamagedMessage."""
    dtype = number_of(tensor, TENSOR_DTYPE)
    shape = tuple(integers(tensor, TENSOR_DIMS))
    raw = Message(tensor).last(TENSOR_RAW)
    if raw is None:
        width = max(1, DTYPES[dtype].bits // 8)  # an int32 holds a byte of elements smaller than a byte
        raw = memoryview(
            b"".join(Message(tensor).all(TENSOR_FLOATS))
            or b"".join(Message(tensor).all(TENSOR_DOUBLES))
            or b"".join(
                (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
                for place in (TENSOR_INT32S, TENSOR_INT64S, TENSOR_UINT64S)
                for number in integers(tensor, place)
            )
        )
    data = bytes(raw)
    if dtype == BOOL:
        data = np.frombuffer(data, np.uint8).astype(bool).tobytes()
    if len(data) != (DTYPES[dtype].bits * int(np.prod(shape, dtype=np.int64)) + 7) // 8:
        raise DamagedMessage
    return Default(shape, data)


def _steers(graph: memoryview, name: str, held: Collection[str]) -> bool:
    """Whether an input decides which operators run; the same as in clockwork.models.onnx_import."""
    constants, made = set(held), {name}
    for node in _nodes(graph, 0):
        read = [value for value in node.inputs if value]
        steering = node.inputs[: {"If": 1, "Loop": 2}.get(node.operator, 0)]
        if any(value in made for value in steering if value):
            return True
        if any(True for attribute in node.attributes for _ in _bodies(attribute)):
            continue
        if any(value in made for value in read) and all(
            value in made or value in constants for value in read
        ):
            made.update(node.outputs)
        elif node.operator == "Constant" or (read and all(value in constants for value in read)):
            constants.update(node.outputs)
    return False


def _nodes(graph: memoryview, depth: int) -> Iterator[_Node]:
    """Yield the operators of a graph, each followed by the operators of its bodies."""
    if depth > GRAPH_DEPTH_MAX:
        raise InvalidModel(f"the model nests subgraphs deeper than {GRAPH_DEPTH_MAX}")
    for node in Message(graph).all(GRAPH_NODE):
        found = _node(node)
        yield found
        for attribute in found.attributes:
            for body in _bodies(attribute):
                yield from _nodes(body, depth + 1)


def _node(node: memoryview) -> _Node:
    return _Node(
        text_of(node, NODE_OPERATOR),
        text_of(node, NODE_DOMAIN),
        texts(node, NODE_INPUT),
        texts(node, NODE_OUTPUT),
        Message(node).all(NODE_ATTRIBUTE),
    )


def _bodies(attribute: memoryview) -> Iterator[memoryview]:
    parts = Message(attribute)
    yield from parts.all(ATTRIBUTE_GRAPH)
    yield from parts.all(ATTRIBUTE_GRAPHS)


# ----- lists of maps -------------------------------------------------------------------------------


def _make_tensors(content: memoryview) -> bytes | None:
    """Make the same changes as clockwork.models.maps.make_tensors()."""
    model = Message(content)
    graph = model.last(MODEL_GRAPH)
    if graph is None:
        raise DamagedMessage
    parts = Message(graph)
    nodes = [(node, _node(node)) for node in parts.all(GRAPH_NODE)]
    makers = {
        found.outputs[0]: (node, found)
        for node, found in nodes
        if found.operator == ZIP_MAP and found.domain == ML_DOMAIN and found.outputs
    }
    read = {name for _, found in nodes for name in found.inputs}
    cut = [
        name
        for value in parts.all(GRAPH_OUTPUT)
        if (name := text_of(value, VALUE_NAME)) in makers and name not in read
    ]
    if not cut:
        return None
    labels = {name: _classes(makers[name][1].attributes) for name in cut}
    replaced = {id(makers[name][0]): name for name in cut}

    def graph_field(number: int, value: memoryview) -> Iterable[bytes] | None:
        if number == GRAPH_NODE and id(value) in replaced:
            return [field(number, _identity(value, makers[replaced[id(value)]][1]))]
        if number == GRAPH_OUTPUT and (name := text_of(value, VALUE_NAME)) in labels:
            return [field(number, _scores(name, len(labels[name])))]
        return None

    changed = parts.changed(graph_field)
    body = model.changed(
        lambda number, value: [field(number, changed)] if number == MODEL_GRAPH and value is graph else None
    )
    opsets = model.all(MODEL_OPSET)
    if all(text_of(opset, OPSET_DOMAIN) not in ("", "ai.onnx") for opset in opsets):
        standard = field(OPSET_DOMAIN, b"") + field(OPSET_VERSION, STANDARD_OPSET)
        body = Message(memoryview(body)).with_all(MODEL_OPSET, [*map(bytes, opsets), standard])
    entries = model.all(MODEL_METADATA)
    if len(cut) == 1 and all(text_of(entry, ENTRY_KEY) != LABELS_KEY for entry in entries):
        text = json.dumps(labels[cut[0]]).encode()
        entry = field(ENTRY_KEY, LABELS_KEY.encode()) + field(ENTRY_VALUE, text)
        body = Message(memoryview(body)).with_all(MODEL_METADATA, [*map(bytes, entries), entry])
    return body


def _identity(node: memoryview, zip_map: _Node) -> bytes:
    name = text_of(node, NODE_NAME)
    return (
        field(NODE_INPUT, zip_map.inputs[0].encode())
        + field(NODE_OUTPUT, zip_map.outputs[0].encode())
        + (field(NODE_NAME, name.encode()) if name else b"")
        + field(NODE_OPERATOR, b"Identity")
    )


def _scores(name: str, classes: int) -> bytes:
    shape = field(SHAPE_DIMENSION, b"") + field(SHAPE_DIMENSION, field(DIMENSION_VALUE, classes))
    tensor = field(TENSOR_TYPE_DTYPE, FLOAT) + field(TENSOR_TYPE_SHAPE, shape)
    return field(VALUE_NAME, name.encode()) + field(VALUE_TYPE, field(TYPE_TENSOR, tensor))


def _classes(attributes: Sequence[memoryview]) -> list[str]:
    for attribute in attributes:
        name = text_of(attribute, ATTRIBUTE_NAME)
        if name == "classlabels_int64s" and (found := integers(attribute, ATTRIBUTE_INTS)):
            return [str(number) for number in found]
        if name == "classlabels_strings" and (strings := Message(attribute).all(ATTRIBUTE_STRINGS)):
            return [str(text, "utf-8", "replace") for text in strings]
    return []
