"""Extend models by preprocessing: it becomes part of the graph, whose input is then strings.

An extended model takes a string for each row: a JPEG image (with_images) or a text (tokenizers.with_texts).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from clockwork.config.models import EXTERNAL_BYTES, JPEG_PIXELS_MAX, SIDE_MAX
from clockwork.device.operators import DOMAIN
from clockwork.errors import InvalidModel
from clockwork.formats.interface import LABELS_KEY
from clockwork.formats.prepared import TensorSpec
from clockwork.models import images, samples
from clockwork.models.onnx_import import (
    external_files,
    free_names,
    import_model,
    metadata_of,
    nodes_within,
    real_inputs,
)
from clockwork.wire.packages import external_path
from clockwork.wire.tensors import dtype_name

FILTERS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFlags:
    """Flags about images, which complete the model's metadata (models.images). None or 0: not given."""

    shortest: int = 0  # length of the shorter side before the centre crop; 0: images are stretched
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    filter: str = FILTERS[0]
    pixels_max: int = JPEG_PIXELS_MAX


def read_whole(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, and load its external data. Raises InvalidModel."""
    model, _ = import_model(path)
    size = sum(external_path(path.parent, location).stat().st_size for location in external_files(model))
    if size > EXTERNAL_BYTES:
        raise InvalidModel(
            f"{path.name} has {size} bytes of external data; at most {EXTERNAL_BYTES} can be joined"
        )
    if size:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def with_images(model: onnx.ModelProto, flags: ImageFlags) -> onnx.ModelProto:
    """Return the model with JPEG images as input, preprocessed according to its metadata and the flags.

    Raises InvalidModel.
    """
    metadata = metadata_of(model)
    (value,) = _only_inputs(model, 1)
    spec = _spec_of(value)
    known = images.metadata_value(metadata, images.INPUT_KEY, dict)
    said = {key: given for key in ("mean", "std", "scale") if (given := getattr(flags, key)) is not None}
    body = {
        **known,
        **{key: list(given) if isinstance(given, tuple) else given for key, given in said.items()},
    }
    form = images.image_spec({**metadata, images.INPUT_KEY: json.dumps(body)}, spec)
    if form.channels not in (1, 3):
        raise InvalidModel(f"input {spec.name!r} has {form.channels} channels; a JPEG image has 1 or 3")
    if not form.height or not form.width:
        raise InvalidModel(
            f"input {spec.name!r} leaves height or width open: the metadata {images.INPUT_KEY} has to say them"
        )
    if flags.shortest and not max(form.height, form.width) <= flags.shortest <= SIDE_MAX:
        raise InvalidModel(
            f"the shorter side becomes {flags.shortest} pixels; the model takes {form.height} x {form.width}"
        )
    names = free_names(
        model, "pixels", "values", "scaled", "shifted", "ordered", "typed", "factor", "offset", "array"
    )
    nodes = [
        helper.make_node(
            "DecodeJpeg", [spec.name], [names["pixels"]], domain=DOMAIN, width=form.width, height=form.height,
            shortest=flags.shortest, channels=form.channels, bicubic=FILTERS.index(flags.filter),
            pixels_max=flags.pixels_max,
        )
    ]  # fmt: skip
    constants, last = [], names["pixels"]
    # Fuse (p * scale - mean) / std, with 255 - p for an inverted pixel p, into a multiplication and a
    # subtraction.
    factor = np.full(form.channels, form.scale) / np.array(form.std)
    offset = np.broadcast_to(np.array(form.mean) / np.array(form.std), factor.shape)
    if form.invert:
        offset, factor = offset - 255 * factor, -factor
    if spec.dtype in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        constants = [
            numpy_helper.from_array(factor.astype(np.float32), names["factor"]),
            numpy_helper.from_array(offset.astype(np.float32), names["offset"]),
        ]
        nodes += [
            helper.make_node("Cast", [last], [names["values"]], to=TensorProto.FLOAT),
            helper.make_node("Mul", [names["values"], names["factor"]], [names["scaled"]]),
            helper.make_node("Sub", [names["scaled"], names["offset"]], [names["shifted"]]),
        ]
        last = names["shifted"]
        if spec.dtype != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [last], [names["typed"]], to=spec.dtype))
            last = names["typed"]
    elif spec.dtype != TensorProto.UINT8 or factor.tolist() != [1.0] * form.channels or offset.any():
        raise InvalidModel(
            f"input {spec.name!r} is {dtype_name(spec.dtype)}: an image becomes floating-point numbers, or uint8 as it is"
        )
    rows = value.type.tensor_type.shape.dim[0].dim_param or "N"
    shape = [rows, form.height, form.width, form.channels]
    if form.layout == "NCHW":
        nodes.append(helper.make_node("Transpose", [last], [names["ordered"]], perm=[0, 3, 1, 2]))
        last = names["ordered"]
        shape = [rows, form.channels, form.height, form.width]
    _rename_input(model, spec.name, names["array"])
    before = helper.make_graph(
        nodes,
        "images",
        [helper.make_tensor_value_info(spec.name, TensorProto.STRING, [rows])],
        [helper.make_tensor_value_info(last, spec.dtype, shape)],
        initializer=constants,
    )
    return join(model, before, {last: names["array"]}, {spec.name: samples.JPEG}, drop=[images.INPUT_KEY])


def join(
    model: onnx.ModelProto,
    before: onnx.GraphProto,
    joined: Mapping[str, str],
    contents: Mapping[str, str],
    drop: Sequence[str] = (),
) -> onnx.ModelProto:
    """Put a graph of Clockwork's operators before a model.

    joined: pairs of an output of the graph and the model's input that it feeds. contents: kinds of strings in
    the graph's inputs, see models.samples. drop: metadata of the model that no longer applies.
    """
    opsets = [helper.make_opsetid(opset.domain, opset.version) for opset in model.opset_import]
    first = helper.make_model(before, opset_imports=[*opsets, helper.make_opsetid(DOMAIN, 1)])
    # From version 4 on, initializers need not be inputs
    first.ir_version = model.ir_version = max(model.ir_version, 4)
    metadata = {key: text for key, text in metadata_of(model).items() if key not in drop}
    metadata[samples.STRINGS_KEY] = json.dumps(dict(contents))
    del model.metadata_props[:]
    try:
        whole = compose.merge_models(first, model, io_map=list(joined.items()))
    except (ValueError, onnx.checker.ValidationError) as error:
        raise InvalidModel(f"the model cannot be joined with the operators before it: {error}") from None
    helper.set_model_props(whole, metadata)
    whole.producer_name = model.producer_name
    return whole


def with_labels(model: onnx.ModelProto, labels: Sequence[str]) -> onnx.ModelProto:
    """Add labels for a model's scores. Raises InvalidModel if their known number differs."""
    if len(model.graph.output) == 1:
        scores = _spec_of(model.graph.output[0])
        if scores.shape and type(scores.shape[-1]) is int and scores.shape[-1] != len(labels):
            raise InvalidModel(
                f"{len(labels)} labels for the {scores.shape[-1]} scores of output {scores.name!r}"
            )
    helper.set_model_props(model, {**metadata_of(model), LABELS_KEY: json.dumps(list(labels))})
    return model


def _only_inputs(model: onnx.ModelProto, count: int) -> list[onnx.ValueInfoProto]:
    found = real_inputs(model)
    if len(found) != count:
        names = ", ".join(repr(value.name) for value in found)
        raise InvalidModel(
            f"the model has the inputs {names}; the operators that read images produce {count}"
        )
    return found


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "") for dim in tensor.shape.dim]
    return TensorSpec(value.name, tensor.elem_type, tuple(dims))


def _rename_input(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename an input of the model, so that its name is free for the graph before the model."""
    for node in nodes_within(model.graph.node):
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
    for value in model.graph.input:
        if value.name == old:
            value.name = new
