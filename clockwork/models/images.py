"""Convert image files to a model's input, and scores to labels, according to the ONNX file's metadata.

    clockwork.input    JSON: {"layout": "NCHW", "height": 8, "width": 8, "channels": 1,
                              "scale": 0.0041, "mean": 0.0, "std": 1.0, "invert": false}
    clockwork.labels   JSON: ["0", "1", ...], one for each score

A pixel p (0 to 255; 255 - p where ``invert`` is true) becomes (p * scale - mean) / std. ``mean`` and ``std``
are numbers or lists with a number for each channel. Missing keys follow from the input's shape and type.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from PIL import Image, UnidentifiedImageError

from clockwork.config.models import SIDE_MAX
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.formats.interface import LABELS_KEY
from clockwork.formats.prepared import TensorSpec

INPUT_KEY = "clockwork.input"


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSpec:
    """The format of a model's image input. A height or width of 0 means the size of the image."""

    layout: str  # layout of the tensor, "NCHW" or "NHWC"
    height: int
    width: int
    channels: int  # 1 (grey), 3 (RGB) or 4 (RGBA)
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    invert: bool


def image_to_input(path: str | Path, metadata: Mapping[str, str], input_spec: TensorSpec) -> NDArray[Any]:
    """Return an image as a row of the model's input: (1, C, H, W) or (1, H, W, C), C-contiguous.

    Raises InvalidInput if the file is not an image or the input does not take images, InvalidModel for bad
    metadata.
    """
    spec = image_spec(metadata, input_spec)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[spec.channels]
    try:
        with Image.open(path) as opened:
            if max(opened.size) > SIDE_MAX:
                raise InvalidInput(f"{path}: an image of {opened.size} pixels; at most {SIDE_MAX} a side")
            picture = opened.convert(mode)
    except UnidentifiedImageError:
        raise InvalidInput(f"{path} is not an image that can be read") from None
    except Image.DecompressionBombError as error:
        raise InvalidInput(f"{path}: {error}") from None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from None
    size = (spec.width or picture.width, spec.height or picture.height)
    if size != picture.size:
        # A box filter is exact for integer factors: it recovers the original of an enlarged example.
        whole = picture.width % size[0] == 0 and picture.height % size[1] == 0
        picture = picture.resize(size, Image.Resampling.BOX if whole else Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.float64).reshape(size[1], size[0], spec.channels)
    if spec.invert:
        pixels = 255 - pixels
    values = (pixels * spec.scale - np.array(spec.mean)) / np.array(spec.std)
    dtype = helper.tensor_dtype_to_np_dtype(input_spec.dtype)
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        values = np.clip(np.rint(values), bounds.min, bounds.max)
    if spec.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values[None], dtype)


def guess(path: str | Path, metadata: Mapping[str, str], input_spec: TensorSpec) -> str:
    """Return a sentence about the image format that image_to_input() assumes; "" if the metadata gives the
    format.

    Raises the errors of image_to_input() for bad metadata and inputs. A file that is no image gives "".
    """
    if INPUT_KEY in metadata:
        return ""
    spec = image_spec(metadata, input_spec)
    try:
        with Image.open(path) as opened:
            size = opened.size
    except (OSError, Image.DecompressionBombError):
        return ""
    taken = (spec.width or size[0], spec.height or size[1])
    colours = {1: "grey", 3: "RGB", 4: "RGBA"}[spec.channels]
    stretched = "" if taken == size else f", stretched from {size[0]}x{size[1]}"
    values = "from 0 to 1" if spec.scale < 1 else "from 0 to 255"
    return (
        f"{path} is taken as {colours} of {taken[0]}x{taken[1]} pixels{stretched}, layout {spec.layout}, values {values} without "
        f"mean and deviation: a guess from the input's shape and type, as the model's metadata has no {INPUT_KEY}"
    )


def labelled(scores: NDArray[Any], metadata: Mapping[str, str]) -> list[tuple[str, float]]:
    """Return (label, score) pairs, highest score first; equal scores keep the model's order.

    scores: (n,) or (1, n). Without labels, or with a different number of them, the index is the label.
    Raises InvalidInput for scores of several rows, InvalidModel for bad metadata.
    """
    flat = np.asarray(scores)
    if flat.ndim > 1 and flat.size != flat.shape[-1]:
        raise InvalidInput(f"scores of shape {flat.shape} belong to more than one input")
    flat = flat.reshape(-1).astype(np.float64)
    labels = _labels(metadata)
    if len(labels) != len(flat):
        labels = [str(index) for index in range(len(flat))]
    return [(labels[index], float(flat[index])) for index in np.argsort(-flat, kind="stable")]


def has_labels(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata has labels for the scores."""
    return LABELS_KEY in metadata


def image_spec(metadata: Mapping[str, str], input_spec: TensorSpec) -> ImageSpec:
    """Read the image format from metadata and the input's shape. Raises InvalidInput, InvalidModel."""
    body = metadata_value(metadata, INPUT_KEY, dict)
    shape = input_spec.shape
    if len(shape) != 4:
        raise InvalidInput(
            f"input {input_spec.name!r} of shape {list(shape)} does not take an image",
            input_spec.name,
            "four dimensions",
            f"{len(shape)} dimensions",
        )
    layout = body.get("layout") or ("NHWC" if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else "NCHW")
    if layout not in ("NCHW", "NHWC"):
        raise InvalidModel(f"metadata {INPUT_KEY}: layout {layout!r} is neither NCHW nor NHWC")
    order = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
    known = [size if isinstance(size, int) and size > 0 else 0 for size in (shape[axis] for axis in order)]
    floating = np.issubdtype(helper.tensor_dtype_to_np_dtype(input_spec.dtype), np.floating)
    channels = _whole(body, "channels", known[0] or 3)
    if channels not in (1, 3, 4):
        raise InvalidInput(f"input {input_spec.name!r} has {channels} channels; an image has 1, 3 or 4")
    for axis, name in zip(order, ("channels", "height", "width")):
        said, has = body.get(name), shape[axis]
        if said and isinstance(has, int) and has > 0 and said != has:
            raise InvalidModel(
                f"metadata {INPUT_KEY}: {name} {said}, but input {input_spec.name!r} has {has}"
            )
    std = _numbers(body, "std", 1.0, channels)
    if 0.0 in std:
        raise InvalidModel(f"metadata {INPUT_KEY}: std must not be 0")
    return ImageSpec(
        layout=layout,
        height=_whole(body, "height", known[1]),
        width=_whole(body, "width", known[2]),
        channels=channels,
        scale=_numbers(body, "scale", 1 / 255 if floating else 1.0, 1)[0],
        mean=_numbers(body, "mean", 0.0, channels),
        std=std,
        invert=bool(body.get("invert", False)),
    )


def _labels(metadata: Mapping[str, str]) -> list[str]:
    return [str(label) for label in metadata_value(metadata, LABELS_KEY, list)]


def metadata_value(metadata: Mapping[str, str], key: str, kind: type[Any]) -> Any:
    """Parse a metadata key's JSON value; an empty ``kind`` if the key is missing. Raises InvalidModel."""
    try:
        body = json.loads(metadata[key]) if key in metadata else kind()
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"metadata {key} is not JSON: {error}") from None
    if not isinstance(body, kind):
        raise InvalidModel(f"metadata {key} is not a JSON {kind.__name__}")
    return body


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= SIDE_MAX:
        raise InvalidModel(
            f"metadata {INPUT_KEY}: {name} {value!r} is not an integer between 0 and {SIDE_MAX}"
        )
    return value


def _numbers(body: Mapping[str, Any], name: str, default: float, count: int) -> tuple[float, ...]:
    """Read ``count`` numbers: a list of numbers, or a number that is repeated."""
    value = body.get(name, default)
    values = value if isinstance(value, list) else [value]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numeric or len(values) not in (1, count) or not np.isfinite(values).all():
        raise InvalidModel(f"metadata {INPUT_KEY}: {name} {value!r} is not a number, nor {count} of them")
    return tuple(float(value) for value in values)
