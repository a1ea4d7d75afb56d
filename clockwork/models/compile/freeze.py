"""Freezes a model: an ONNX file with all shapes fixed and all constants folded, from which a variant is lowered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx.inliner

from clockwork.config.models import EXTERNAL_BYTES
from clockwork.errors import InvalidModel
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import TensorSpec
from clockwork.models.compile.padding import Padding, make_padded
from clockwork.models.compile.variant import SIZE_PREFIX
from clockwork.models.onnx_import import external_files, real_inputs
from clockwork.models.runtime import RunError, Session, explain


@dataclasses.dataclass(frozen=True, slots=True)
class Bucket:
    """A set of input shapes, without the batch: a size for every open dimension of the model."""

    shapes: tuple[tuple[int, ...], ...]  # per input; dimension 0 is replaced by the batch where there is one

    def at(self, batch: int, batches: bool) -> list[tuple[int, ...]]:
        return [(batch, *shape[1:]) if batches else shape for shape in self.shapes]


def buckets(
    inputs: Sequence[TensorSpec], given: Mapping[str, Sequence[Sequence[int]]], batches: bool
) -> list[Bucket]:
    """The sets of shapes to compile. Raises InvalidModel for a dimension without a size.

    given: the shapes of some inputs, one for each bucket. Other dimensions with their symbols get the same sizes; an
    open first dimension is 1.
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


EXPANDED = ("Attention",)
"""Operators that are compiled as the operators which ONNX defines them by."""


def _expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every operator of EXPANDED replaced by its definition. Raises InvalidModel."""
    found = [node for node in model.graph.node if node.op_type in EXPANDED and node.domain in ("", "ai.onnx")]
    if not found:
        return model
    for node in found:
        if "" in node.input:  # which onnx.inliner cannot do
            raise InvalidModel(
                f"operator {node.op_type} cannot be compiled where an optional input is left out before others"
            )
    weights = [
        *model.graph.initializer
    ]  # left out: the inliner copies the model as a message, of at most 2 GiB
    del model.graph.initializer[:]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims) for weight in weights
    )
    try:
        made = onnx.inliner.inline_selected_functions(
            model, [("", name) for name in EXPANDED], inline_schema_functions=True
        )
    except RuntimeError as error:
        raise InvalidModel(f"operator {found[0].op_type} cannot be compiled: {error}") from None
    del made.graph.input[len(made.graph.input) - len(weights) :]
    made.graph.initializer.extend(weights)
    return made


def freeze(
    model_path: Path, shapes: Sequence[Sequence[int]], target: Path, symbols: Sequence[str] = ()
) -> Padding | None:
    """Write the model with inputs of these shapes, optimised independently of this machine, to ``target``.

    With the shapes fixed, ONNX Runtime folds the nodes that compute shapes, and those that need only weights. symbols:
    dimensions in which inputs may end earlier; the model gets inputs for the true sizes (see padding). Raises
    InvalidModel, NotProven.
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
    del model.graph.value_info[:]  # has the previous shapes
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
        Session(
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
