"""Images become inputs exactly as a model's metadata says, and bad metadata is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from PIL import Image

from clockwork.errors import InvalidInput, InvalidModel
from clockwork.formats.prepared import TensorSpec
from clockwork.models import zoo
from clockwork.models.images import guess, image_to_input, labelled

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "digits"
DIGITS = TensorSpec("image", TensorProto.FLOAT, ("N", 1, 8, 8))
RGB = TensorSpec("image", TensorProto.FLOAT, ("N", 3, "H", "W"))


def described(**values: Any) -> dict[str, str]:
    return {"clockwork.input": json.dumps(values)}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Four pixels wide, two high: red, except one blue pixel at the top right."""
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[0, 3] = (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("digit", range(10))
def test_every_example_is_read_right_and_exactly(digit: int) -> None:
    model = zoo.digits()
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    x = image_to_input(EXAMPLES / f"{digit}.png", metadata, DIGITS)
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((1, 1, 8, 8), np.float32, True)
    np.testing.assert_array_equal(x * 16, np.rint(x * 16))  # exactly scikit-learn's own levels
    (scores,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": x})
    best, score = labelled(scores, metadata)[0]
    assert best == str(digit)
    assert score > 0.5


def test_without_metadata_the_shape_says_what_to_do(picture: Path) -> None:
    x = image_to_input(picture, {}, RGB)
    assert x.shape == (1, 3, 2, 4)
    assert x[0, :, 0, 3].tolist() == [0, 0, 1]
    assert x[0, :, 1, 0].tolist() == [1, 0, 0]
    last = image_to_input(picture, {}, TensorSpec("image", TensorProto.UINT8, (1, 2, 4, 3)))
    assert (last.shape, last.dtype) == ((1, 2, 4, 3), np.uint8)
    assert last[0, 0, 3].tolist() == [0, 0, 255]


def test_a_guess_is_told_and_what_the_metadata_say_is_none(picture: Path) -> None:
    wide = TensorSpec("x", 1, ("N", 224, 224, 3))
    said = guess(picture, {}, wide)
    assert "RGB of 224x224 pixels, stretched from 4x2, layout NHWC, values from 0 to 1 without mean" in said
    assert "clockwork.input" in said
    assert "RGB of 4x2 pixels, layout NCHW" in guess(picture, {}, RGB)
    assert "values from 0 to 255" in guess(picture, {}, TensorSpec("x", TensorProto.UINT8, (1, 2, 4, 3)))
    assert guess(picture, described(layout="NHWC"), wide) == ""
    assert guess(picture.with_name("missing.png"), {}, RGB) == ""


def test_mean_std_scale_and_inversion_are_applied_in_that_order(picture: Path) -> None:
    metadata = described(scale=1 / 255, mean=[0.5, 0.25, 0.0], std=[0.5, 0.25, 2.0], invert=True)
    x = image_to_input(picture, metadata, RGB)
    assert x[0, :, 0, 3].tolist() == [1.0, 3.0, 0.0]  # inverted blue is yellow


def test_other_sizes_are_resampled_to_what_the_model_takes(picture: Path) -> None:
    x = image_to_input(
        picture, described(layout="NHWC", height=3, width=5), TensorSpec("x", 1, ("N", 3, 5, 3))
    )
    assert x.shape == (1, 3, 5, 3)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"clockwork.input": "{"}, "not JSON"),
        ({"clockwork.input": "[]"}, "JSON dict"),
        ({"clockwork.input": "[" * 100_000}, "not JSON: maximum recursion depth"),
        (described(layout="NWHC"), "NWHC"),
        (described(height=-1), "height -1"),
        (described(height="8"), "height '8'"),
        (described(scale="x"), "scale 'x'"),
        (described(mean=[1, 2]), "mean"),
        (described(std=0), "std"),
        (described(scale=float("nan")), "scale"),
    ],
)
def test_bad_metadata_is_named(picture: Path, metadata: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidModel, match=named.replace("[", r"\[")):
        image_to_input(picture, metadata, RGB)


def test_metadata_that_contradicts_the_input_is_named(picture: Path) -> None:
    with pytest.raises(InvalidModel, match=r"height 9.*has 8"):
        image_to_input(picture, described(height=9), DIGITS)


def test_what_is_no_image_is_said_so(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"not an image")
    with pytest.raises(InvalidInput, match="not an image"):
        image_to_input(tmp_path / "no.png", {}, RGB)
    with pytest.raises(InvalidInput, match="No such file"):
        image_to_input(tmp_path / "missing.png", {}, RGB)
    with pytest.raises(InvalidInput, match="does not take an image"):
        image_to_input(picture, {}, TensorSpec("x", TensorProto.FLOAT, ("N", 10)))
    with pytest.raises(InvalidInput, match="7 channels"):
        image_to_input(picture, {}, TensorSpec("x", TensorProto.FLOAT, ("N", 7, 8, 8)))


def test_labels_come_best_first_and_indices_stand_in_for_them() -> None:
    labels = {"clockwork.labels": json.dumps(["cat", "dog", "owl"])}
    assert labelled(np.array([[0.1, 0.7, 0.2]]), labels) == [("dog", 0.7), ("owl", 0.2), ("cat", 0.1)]
    assert labelled(np.array([0.5, 0.5], np.float64), labels) == [("0", 0.5), ("1", 0.5)]
    with pytest.raises(InvalidInput, match="more than one"):
        labelled(np.zeros((2, 3)), labels)
    with pytest.raises(InvalidModel, match="JSON list"):
        labelled(np.zeros(3), {"clockwork.labels": "{}"})
