"""A model joined with a graph that reads images: the joined model answers as the two in sequence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from clockwork.errors import InvalidModel
from clockwork.formats.prepared import TensorSpec
from clockwork.models import compose, samples, zoo
from clockwork.models.compose import ImageFlags
from clockwork.models.images import image_to_input
from clockwork.models.onnx_import import check_model, metadata_of
from clockwork.models.runtime import ModelSession
from tests.unit.models_onnx import model_of, value

JPEG = samples.jpeg(6_000, 1)


def strings(*texts: bytes) -> np.ndarray:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def identity(shape: list[Any], dtype: int = TensorProto.FLOAT, **metadata: Any) -> onnx.ModelProto:
    """A graph that reads an image and returns its input."""
    node = helper.make_node("Identity", ["image"], ["same"])
    model = model_of([node], [value("image", shape, dtype)], [value("same", shape, dtype)])
    if metadata:
        helper.set_model_props(model, {"clockwork.input": json.dumps(metadata)})
    return model


@pytest.mark.parametrize(
    ("shape", "dtype", "metadata"),
    [
        (["N", 3, 16, 24], TensorProto.FLOAT, {}),
        (["N", 16, 24, 3], TensorProto.FLOAT, {"mean": [0.5, 0.25, 0.1], "std": [0.5, 2, 1]}),
        (["N", 1, 16, 24], TensorProto.DOUBLE, {"invert": True, "scale": 0.01, "mean": 1, "std": 2}),
        ([1, 3, 16, 24], TensorProto.FLOAT16, {"invert": True}),
        (["N", 16, 24, 3], TensorProto.UINT8, {}),
        (["N", 3, "H", "W"], TensorProto.FLOAT, {"height": 16, "width": 24}),
    ],
    ids=str,
)
def test_an_image_is_prepared_as_the_command_line_prepares_it(
    tmp_path: Path, shape: list[Any], dtype: int, metadata: dict[str, Any]
) -> None:
    model = identity(shape, dtype, **metadata)
    (tmp_path / "image.jpg").write_bytes(JPEG)
    by_hand = image_to_input(
        tmp_path / "image.jpg", metadata_of(model), TensorSpec("image", dtype, tuple(shape))
    )
    joined = compose.with_images(model, ImageFlags())
    (found,) = ModelSession(joined.SerializeToString(), optimise=True).run([strings(JPEG)])
    np.testing.assert_allclose(found, by_hand, rtol=1e-3 if dtype == TensorProto.FLOAT16 else 1e-5, atol=1e-6)
    assert found.dtype == by_hand.dtype


def test_flags_go_before_metadata_and_the_middle_is_cut_out() -> None:
    model = identity(["N", 3, 16, 24], mean=[9, 9, 9], scale=1)
    flags = ImageFlags(shortest=30, mean=(0.5,), std=(0.25,), scale=1 / 255, filter="bicubic")
    (found,) = ModelSession(compose.with_images(model, flags).SerializeToString(), optimise=True).run(
        [strings(JPEG)]
    )
    with Image.open(io.BytesIO(JPEG)) as opened:
        side = 30 * opened.width // opened.height
        pixels = np.asarray(
            opened.resize((side, 30), Image.Resampling.BICUBIC).crop((3, 7, 27, 23)), np.float64
        )
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), (pixels / 255 - 0.5) / 0.25, atol=1e-5)


def test_what_is_joined_is_a_model_like_any_other(tmp_path: Path) -> None:
    joined = compose.with_labels(compose.with_images(zoo.digits(), ImageFlags()), ["x"] * 10)
    (tmp_path / "model.onnx").write_bytes(joined.SerializeToString())
    model = check_model(tmp_path / "model.onnx")
    assert [(one.name, one.type.tensor_type.elem_type) for one in model.graph.input] == [
        ("image", TensorProto.STRING)
    ]
    metadata = metadata_of(model)
    assert json.loads(metadata["clockwork.labels"]) == ["x"] * 10
    with pytest.raises(InvalidModel, match="2 labels for the 10 scores of output 'scores'"):
        compose.with_labels(zoo.digits(), ["x"] * 2)
    assert samples.contents_of(metadata) == {"image": "jpeg"}
    for bad, said in (
        ("[" * 100_000, "not JSON: maximum recursion"),
        ('{"x": ["jpeg"]}', "is not 'jpeg' or 'text' by"),
    ):
        with pytest.raises(InvalidModel, match=said):
            samples.contents_of({samples.STRINGS_KEY: bad})
    assert "clockwork.input" not in metadata  # the command line sends the file, and not its pixels


def test_external_data_is_taken_along(tmp_path: Path) -> None:
    onnx.save_model(
        zoo.digits(), tmp_path / "model.onnx", save_as_external_data=True, location="data", size_threshold=0
    )
    joined = compose.with_images(compose.read_whole(tmp_path / "model.onnx"), ImageFlags())
    picture = Image.open(Path(__file__).parents[2] / "examples" / "digits" / "7.png").convert("L")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    (scores,) = ModelSession(joined.SerializeToString(), optimise=True).run([strings(buffer.getvalue())])
    assert scores.argmax() == 7


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        (
            identity(["N", 3, "H", "W"]),
            ImageFlags(),
            "leaves height or width open: the metadata clockwork.input has",
        ),
        (identity(["N", 4, 8, 8]), ImageFlags(), "has 4 channels; a JPEG image has 1 or 3"),
        (identity(["N", 3, 16, 24]), ImageFlags(shortest=20), "becomes 20 pixels; the model takes 16 x 24"),
        (
            identity(["N", 3, 8, 8], TensorProto.INT64),
            ImageFlags(),
            "'image' is int64: an image becomes floating",
        ),
        (identity(["N", 3, 8, 8]), ImageFlags(mean=(1.0, 2.0)), "mean .* is not a number, nor 3 of them"),
        (identity(["N", 3, 8, 8]), ImageFlags(std=(0.0,)), "std must not be 0"),
    ],
)
def test_what_cannot_be_joined_says_why(model: onnx.ModelProto, flags: ImageFlags, said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        compose.with_images(model, flags)
    assert type(caught.value).__name__ in ("InvalidModel", "InvalidInput")


def test_a_model_of_two_inputs_reads_no_images() -> None:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    shape = ["N", 3, 8, 8]
    model = model_of([node], [value("a", shape), value("b", shape)], [value("c", shape)])
    with pytest.raises(
        InvalidModel, match="the model has the inputs 'a', 'b'; the operators that read images produce 1"
    ):
        compose.with_images(model, ImageFlags())
