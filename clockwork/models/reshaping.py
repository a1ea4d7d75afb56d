"""Change the shapes of an ONNX model's inputs and outputs by Reshape operators in its graph.

Clients, descriptions and measurements then see the same interface wherever a request comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from clockwork.errors import InvalidModel
from clockwork.models.onnx_import import bodies_of, free_names

FIRST_OPSET = 5  # From this operator set on, Reshape takes its shape as an input


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape:
    """The shapes of a reshaped input or output, outside and inside the model. -1: any size."""

    name: str
    is_input: bool
    outer: tuple[int, ...]  # shape as clients see it, without the batch where ``batched``
    inner: tuple[int, ...]  # shape as the model has it, without the batch as well
    batched: bool  # the first dimension of both is the batch


def reshape_interface(model: onnx.ModelProto, reshapes: Sequence[Reshape]) -> onnx.ModelProto:
    """Return a copy of a model with reshaped inputs and outputs.

    Raises InvalidModel if more than one open size changes its position, and for operator sets before
    FIRST_OPSET.
    """
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets.get("", opsets.get("ai.onnx", 0)) < FIRST_OPSET:
        raise InvalidModel(f"a reshape takes a model of operator set {FIRST_OPSET} or later")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    free = free_names(model, *(f"{reshape.name}/reshaped" for reshape in reshapes))
    inner_names = {reshape.name: free[f"{reshape.name}/reshaped"] for reshape in reshapes}
    # A Constant node, because before IR version 4 an initializer had to be an input as well.
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for reshape in reshapes:
        values = graph.input if reshape.is_input else graph.output
        value = next(value for value in values if value.name == reshape.name)
        source, target = reshape.outer, reshape.inner
        if not reshape.is_input:
            source, target = target, source
        inner = inner_names[reshape.name]
        shape = helper.make_tensor(
            "", TensorProto.INT64, [len(target) + reshape.batched], _target(reshape, source, target)
        )
        nodes = [
            helper.make_node("Constant", [], [f"{inner}/shape"], value=shape),
            helper.make_node(
                "Reshape",
                [reshape.name if reshape.is_input else inner, f"{inner}/shape"],
                [inner if reshape.is_input else reshape.name],
                name=inner,
            ),
        ]
        (before if reshape.is_input else after).extend(nodes)
        _set_outer(value, reshape)
    _rename(graph, inner_names)
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *old, *after])
    for value in list(graph.value_info):
        if value.name in inner_names:
            value.name = inner_names[value.name]
    return changed


def _target(reshape: Reshape, source: Sequence[int], target: Sequence[int]) -> list[int]:
    """Return the shape operand of a Reshape: 0 copies the source's size, a single -1 takes the rest."""
    # Open sizes of source and target correspond to each other in order.
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
            f"{reshape.name!r} cannot be reshaped from {list(source)} to {list(target)}: the place of more than one open size changes"
        )
    return [0, *sizes] if reshape.batched else sizes


def _set_outer(value: onnx.ValueInfoProto, reshape: Reshape) -> None:
    shape = value.type.tensor_type.shape
    batch = onnx.TensorShapeProto.Dimension(dim_param=f"{reshape.name}_batch")
    if shape.dim:
        batch.CopyFrom(shape.dim[0])
    del shape.dim[:]
    if reshape.batched:
        shape.dim.add().CopyFrom(batch)
    for index, size in enumerate(reshape.outer):
        if size == -1:
            shape.dim.add(dim_param=f"{reshape.name}_{index}")
        else:
            shape.dim.add(dim_value=size)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str], is_body: bool = False) -> None:
    """Rename the values that operators read and write. The graph's inputs and outputs keep their names."""
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
