"""Gives an ONNX model's inputs and outputs other shapes, by Reshape operators that become part of its graph.

Clients, descriptions and measurements then see one interface, wherever a request comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from clockwork.errors import InvalidModel
from clockwork.models.onnx_import import bodies_of, free_names

FIRST_OPSET = 5
"""From this operator set on, Reshape takes its shape as an input."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape:
    """One input or output that gets another shape. -1 in a shape: any size."""

    name: str
    is_input: bool
    outer: tuple[int, ...]  # as clients see it, without the batch where ``batched``
    inner: tuple[int, ...]  # as the model has it, without the batch as well
    batched: bool  # the first dimension of both is the batch


def reshape_interface(model: onnx.ModelProto, reshapes: Sequence[Reshape]) -> onnx.ModelProto:
    """A copy of a model whose inputs and outputs are reshaped. Raises InvalidModel where more than one open size changes
    its place, and for operator sets before FIRST_OPSET."""
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets.get("", opsets.get("ai.onnx", 0)) < FIRST_OPSET:
        raise InvalidModel(f"a reshape takes a model of operator set {FIRST_OPSET} or later")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    free = free_names(model, *(f"{one.name}/reshaped" for one in reshapes))
    inner_names = {one.name: free[f"{one.name}/reshaped"] for one in reshapes}
    # A Constant, because before version 4 of the format an initializer had to be an input as well.
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for one in reshapes:
        values = graph.input if one.is_input else graph.output
        value = next(value for value in values if value.name == one.name)
        source, target = one.outer, one.inner
        if not one.is_input:
            source, target = target, source
        inner = inner_names[one.name]
        shape = helper.make_tensor(
            "", TensorProto.INT64, [len(target) + one.batched], _target(one, source, target)
        )
        nodes = [
            helper.make_node("Constant", [], [f"{inner}/shape"], value=shape),
            helper.make_node(
                "Reshape",
                [one.name if one.is_input else inner, f"{inner}/shape"],
                [inner if one.is_input else one.name],
                name=inner,
            ),
        ]
        (before if one.is_input else after).extend(nodes)
        _set_outer(value, one)
    _rename(graph, inner_names)
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *old, *after])
    for value in list(graph.value_info):
        if value.name in inner_names:
            value.name = inner_names[value.name]
    return changed


def _target(one: Reshape, source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The shape for a Reshape operator, for which 0 is the source's size at that place, and one -1 what is left."""
    # The first open size of one is that of the other, and so on.
    open_sizes = zip(
        [index for index, size in enumerate(source) if size == -1],
        [index for index, size in enumerate(target) if size == -1],
    )
    sizes = list(target)
    for index, same in open_sizes:
        if index == same and sizes.count(-1) > 1:
            sizes[index] = 0
    if sizes.count(-1) > 1:
        raise InvalidModel(
            f"{one.name!r} cannot be reshaped from {list(source)} to {list(target)}: the place of more than one open size changes"
        )
    return [0, *sizes] if one.batched else sizes


def _set_outer(value: onnx.ValueInfoProto, one: Reshape) -> None:
    shape = value.type.tensor_type.shape
    batch = onnx.TensorShapeProto.Dimension(dim_param=f"{one.name}_batch")
    if shape.dim:
        batch.CopyFrom(shape.dim[0])
    del shape.dim[:]
    if one.batched:
        shape.dim.add().CopyFrom(batch)
    for index, size in enumerate(one.outer):
        if size == -1:
            shape.dim.add(dim_param=f"{one.name}_{index}")
        else:
            shape.dim.add(dim_value=size)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str], is_body: bool = False) -> None:
    """Have operators read and write other values; the graph's own inputs and outputs keep their names."""
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name in names:
                    values[index] = names[name]
        for attribute in node.attribute:
            for body in bodies_of(attribute):
                _rename(body, names, is_body=True)
    if is_body:
        for output in graph.output:
            output.name = names.get(output.name, output.name)
