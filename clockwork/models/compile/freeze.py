"""Freeze a model: write an ONNX file with fixed shapes and folded constants, the input of lowering."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from clockwork.config.models import EXTERNAL_BYTES
from clockwork.errors import InvalidModel
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import TensorSpec
from clockwork.models.compile.following import Padding
from clockwork.models.compile.padding import make_padded
from clockwork.models.compile.variant import SIZE_PREFIX
from clockwork.models.onnx_import import external_files, real_inputs
from clockwork.models.runtime import ModelSession, RunError, explain


@dataclasses.dataclass(frozen=True, slots=True)
class Bucket:
    """A set of input shapes, without the batch: a size for every open dimension of the model."""

    # Shapes of the inputs; in a model that batches, at() replaces dimension 0 by the batch size.
    shapes: tuple[tuple[int, ...], ...]

    def at(self, batch: int, batches: bool) -> list[tuple[int, ...]]:
        return [(batch, *shape[1:]) if batches else shape for shape in self.shapes]


def buckets(
    inputs: Sequence[TensorSpec], given: Mapping[str, Sequence[Sequence[int]]], batches: bool
) -> list[Bucket]:
    """The sets of shapes to compile. Raises InvalidModel for a dimension without a size.

    given: for some inputs, a shape for each bucket. Dimensions of other inputs with the same symbol get the
    same size. An open first dimension without a size is 1.
    """
    names = {spec.name for spec in inputs}
    for name, shapes in given.items():
        if name not in names:
            raise InvalidModel(f"the model has no input {name!r}; it has {', '.join(names)}")
        if len(shapes) != max(map(len, given.values())):
            raise InvalidModel(
                f"input {name!r} has {len(shapes)} shapes, another {max(map(len, given.values()))}; "
                "each bucket takes one of each"
            )
    count = max(map(len, given.values()), default=1)
    return [_bucket(inputs, {name: shapes[index] for name, shapes in given.items()}, batches)
            for index in range(count)]  # fmt: skip


def _bucket(inputs: Sequence[TensorSpec], given: Mapping[str, Sequence[int]], batches: bool) -> Bucket:
    sizes: dict[str, int] = {}
    for spec in inputs:
        shape = given.get(spec.name)
        if shape is None:
            continue
        if len(shape) != len(spec.shape):
            raise InvalidModel(f"shape {list(shape)} of input {spec.name!r} is not of {list(spec.shape)}")
        for axis, (declared, size) in enumerate(zip(spec.shape, shape, strict=True)):
            if size < 1 or (isinstance(declared, int) and declared != size):
                raise InvalidModel(f"shape {list(shape)} of input {spec.name!r} is not of {list(spec.shape)}")
            if (
                is_named(declared)
                and sizes.setdefault(str(declared), size) != size
                and not (batches and not axis)
            ):
                raise InvalidModel(f"dimension {declared!r} is {sizes[str(declared)]} and {size}")
    shapes = []
    for spec in inputs:
        shape = given.get(spec.name)
        made = []
        for axis, declared in enumerate(spec.shape):
            if isinstance(declared, int):
                made.append(declared)
            elif shape is not None:
                made.append(shape[axis])
            elif is_named(declared) and declared in sizes:
                made.append(sizes[declared])
            elif axis == 0:
                made.append(1)
            else:
                raise InvalidModel(
                    f"dimension {axis} of input {spec.name!r} {list(spec.shape)} has no size: give its shape, "
                    f"--shape {spec.name}:{','.join(str(dim) if isinstance(dim, int) else '...' for dim in spec.shape)}"
                )
        shapes.append(tuple(made))
    return Bucket(tuple(shapes))


EXPANDED = ("Attention",)  # Operators that are replaced by their ONNX function bodies before compilation


def _expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every operator of EXPANDED replaced by its definition. Raises InvalidModel.

    onnx.inliner fails if an optional input is absent and a later input is present.
    """
    if not any(_is_expanded(node) for node in model.graph.node):
        return model
    versions = sorted({opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")})
    if len(versions) != 1:
        raise InvalidModel(
            f"the model imports versions {versions} of ONNX's operators, and has to import one"
        )
    (opset,) = versions
    types = _types(model)
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(model.graph.node):
        if _is_expanded(node):
            nodes += _definition(node, opset, types, f"clockwork.{node.op_type}.{number}.")
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _is_expanded(node: onnx.NodeProto) -> bool:
    return node.op_type in EXPANDED and node.domain in ("", "ai.onnx")


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The types of a graph's values, where they can be inferred."""
    bare = onnx.ModelProto()  # without weights: a message has at most 2 GiB
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    declared = {value.name for value in model.graph.input}
    bare.graph.input.extend(
        onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        for weight in model.graph.initializer
        if weight.name not in declared
    )
    graph = onnx.shape_inference.infer_shapes(bare).graph
    return {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}


def _definition(
    node: onnx.NodeProto, opset: int, types: Mapping[str, onnx.TypeProto], prefix: str
) -> list[onnx.NodeProto]:
    """Return a node's ONNX function body. prefix: of names of internal values. Raises InvalidModel."""
    # Any: the type stub lacks the method that is called
    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
    try:
        made = schema.get_context_dependent_function(node.SerializeToString(), given)
    except RuntimeError as error:  # the type of an input is not known
        raise InvalidModel(f"operator {node.op_type} cannot be compiled: {error}") from None
    body = onnx.FunctionProto.FromString(made)
    if not body.node:
        raise InvalidModel(f"operator {node.op_type} cannot be compiled: ONNX has no definition of it here")
    names = dict(zip(body.input, node.input)) | dict.fromkeys(body.input[len(node.input) :], "")
    names |= {formal: name for formal, name in zip(body.output, node.output) if name}
    for inner in body.node:
        inner.input[:] = [names.get(name, f"{prefix}{name}") if name else "" for name in inner.input]
        inner.output[:] = [names.get(name, f"{prefix}{name}") if name else "" for name in inner.output]
        inner.name = f"{prefix}{inner.name}" if inner.name else ""
        assert not any(attribute.ref_attr_name for attribute in inner.attribute), inner
    return list(body.node)


def freeze(
    model_path: Path, shapes: Sequence[Sequence[int]], target: Path, symbols: Sequence[str] = ()
) -> Padding | None:
    """Write the model with inputs of these shapes, optimised independently of this machine, to ``target``.

    With fixed shapes, ONNX Runtime folds the nodes that compute shapes, and those that depend on weights
    alone. symbols: dimensions in which inputs may be shorter; the model gets inputs for the true sizes (see
    padding). Raises InvalidModel, NotProven, OSError.
    """
    model = _expanded(onnx.load(str(model_path)))
    inputs = real_inputs(model)
    padding = make_padded(model, shapes, symbols) if symbols else None
    sizes = [value for value in model.graph.input if value.name.startswith(SIZE_PREFIX)]
    for value, shape in zip(inputs, shapes, strict=True):
        dims = value.type.tensor_type.shape
        del dims.dim[:]
        for size in shape:
            dims.dim.add(dim_value=size)
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in (*inputs, *sizes)]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)
    del model.graph.value_info[:]  # declared shapes are stale now
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    fixed = target.with_suffix(".fixed.onnx")
    large = size > EXTERNAL_BYTES or bool(external_files(model))
    if large:
        onnx.save(model, str(fixed), save_as_external_data=True, location=f"{fixed.name}.data")
    else:
        fixed.write_bytes(model.SerializeToString())
    del model
    try:
        ModelSession(
            fixed,
            optimise=True,
            portable=True,
            save_to=target,
            external_data=f"{target.name}.data" if large else "",
        )
    except RunError as error:
        raise InvalidModel(explain(str(error), model_path.name)) from None
    fixed.unlink()
    fixed.with_name(f"{fixed.name}.data").unlink(missing_ok=True)
    return padding
