"""The operators that read strings: JPEG images become exactly the pixels that Pillow makes of them."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL
import pytest
from onnx import TensorProto, helper
from PIL import Image

from bench.attacks import operators as attacks
from clockwork.config.models import JPEG_PIXELS_MAX, SIDE_MAX
from clockwork.device import operators
from clockwork.device.cpu import fingerprint
from clockwork.errors import InvalidModel
from clockwork.formats.prepared import prepared_directory
from clockwork.models.measure import Bench
from clockwork.models.onnx_import import check_model
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession, RunError
from tests.patience import PATIENCE_S

UINT8, STRING = TensorProto.UINT8, TensorProto.STRING


def decoder(**attributes: int) -> ModelSession:
    """`x` strings (N) to `y` uint8 (N, height, width, channels)."""
    form = {
        "width": 32,
        "height": 24,
        "shortest": 0,
        "channels": 3,
        "bicubic": 0,
        "pixels_max": 1 << 20,
        **attributes,
    }
    graph = helper.make_graph(
        [helper.make_node("DecodeJpeg", ["x"], ["y"], domain="clockwork", **form)],
        "decoder",
        [helper.make_tensor_value_info("x", STRING, ["N"])],
        [helper.make_tensor_value_info("y", UINT8, ["N", form["height"], form["width"], form["channels"]])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("clockwork", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return ModelSession(model.SerializeToString(), optimise=True)


def photograph(width: int, height: int, **options: Any) -> bytes:
    """A JPEG image with coarse and fine forms."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC).convert(options.pop("mode", "RGB"))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def strings(*images: bytes) -> np.ndarray:
    array = np.empty(len(images), object)
    array[:] = images
    return array


ENCODINGS: list[dict[str, Any]] = [
    {"quality": 90},
    {"quality": 75, "progressive": True},
    {"quality": 95, "subsampling": 0},
    {"quality": 60, "subsampling": 1, "optimize": True},
    {"quality": 80, "mode": "L"},
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize(
    "size", [(320, 240), (50, 37), (1, 1), (32, 24), (500, 100), (33, 700), (200, 430)], ids=str
)
def test_pixels_are_those_of_pillow_bit_for_bit(size: tuple[int, int], encoding: dict[str, Any]) -> None:
    if int(PIL.__version__.split(".")[0]) < 13 and size[1] - 24 > 2 * (size[0] - 32):
        pytest.skip("Pillow before 13 resizes such images in another order")
    data = photograph(*size, **encoding)
    for channels, mode in ((3, "RGB"), (1, "L")):
        for bicubic, resampling in enumerate((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)):
            (found,) = decoder(channels=channels, bicubic=bicubic).run([strings(data, data)])
            with Image.open(io.BytesIO(data)) as opened:
                picture = opened.convert(mode).resize((32, 24), resampling)
            np.testing.assert_array_equal(found[1], np.asarray(picture).reshape(24, 32, channels))


@pytest.mark.parametrize("size", [(320, 240), (50, 37), (37, 50), (41, 41)], ids=str)
def test_the_middle_is_cut_out_of_an_image_whose_shorter_side_was_resized(size: tuple[int, int]) -> None:
    data = photograph(*size)
    (found,) = decoder(shortest=35).run([strings(data)])
    width, height = (35 * side // min(size) for side in size)
    left, top = round((width - 32) / 2), round((height - 24) / 2)  # rounded as in torchvision's CenterCrop
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[0], np.asarray(picture.crop((left, top, left + 32, top + 24))))


GOOD = photograph(64, 48)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"hello, world", "image 0 is not a JPEG image: it begins with 68 65 6c 6c 6f 2c 20 77"),
        (GOOD[:300], "image 0 is damaged: it ends too early"),
        (GOOD[:-200], "image 0 is damaged: it ends too early"),
        (GOOD[:4] + b"\xff\xff" + GOOD[6:], "image 0 is damaged"),
        (photograph(64, 48, mode="CMYK"), "image 0 is a CMYK image; RGB and grey ones are taken"),
        (photograph(1100, 1000), "image 0 has 1100 x 1000 pixels; at most 1048576 are taken"),
    ],
    ids=["text", "header only", "truncated", "marker", "cmyk", "large"],
)
def test_what_is_no_image_is_named(data: bytes, said: str) -> None:
    with pytest.raises(RunError, match=r"\[input\] " + said.replace("(", r"\(")):
        decoder().run([strings(data)])


def test_of_several_images_the_one_that_is_none_is_named() -> None:
    with pytest.raises(RunError, match=r"\[input\] image 1 is not a JPEG image: it begins with 47 49 46 38"):
        decoder().run([strings(GOOD, b"GIF8" + GOOD)])


def test_a_long_and_thin_image_is_not_blown_up() -> None:
    with pytest.raises(RunError, match="one side is more than 64 times the other"):
        decoder(shortest=35).run([strings(photograph(1, 70))])


def test_damaged_images_cost_an_error_and_nothing_else() -> None:
    session, rng = decoder(), random.Random(7)
    decoded, refused = 0, []
    for encoding in ENCODINGS[:2]:
        whole = photograph(60, 44, **encoding)
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            try:
                session.run([strings(bytes(data[: rng.randint(len(data) // 2, 2 * len(data))]))])
                decoded += 1
            except RunError as error:
                refused.append(str(error))
    assert min(decoded, len(refused)) > 100  # damaged values show in the picture alone, as with Pillow
    assert all("[input] image 0" in text for text in refused)
    np.testing.assert_array_equal(*session.run([strings(GOOD, GOOD)])[0])


@pytest.mark.parametrize(
    ("operator", "attributes", "named"),
    [(operator, *one) for operator, some in attacks.REFUSED.items() for one in some],
    ids=lambda value: str(value)[:40],
)
def test_attributes_are_checked_before_a_model_runs(
    operator: str, attributes: dict[str, Any], named: str
) -> None:
    with pytest.raises(RunError, match=rf"attributes? {named}\b"):
        ModelSession(attacks.operator_model(operator, **attributes).SerializeToString(), optimise=False)


def test_bounds_are_those_that_models_are_joined_by() -> None:
    for attributes, bound in (
        ({"width": SIDE_MAX + 1}, SIDE_MAX),
        ({"pixels_max": JPEG_PIXELS_MAX + 1}, JPEG_PIXELS_MAX),
    ):
        with pytest.raises(RunError, match=rf" to {bound} are served"):
            decoder(**attributes)


def read(operator: str, data: str | bytes, **attributes: Any) -> Any:
    """Return an operator's result for a string, or a sentence."""
    model = attacks.operator_model(operator, **attributes).SerializeToString()
    try:
        return ModelSession(model, optimise=False).run([strings(data)])[0]
    except RunError as error:
        return str(error).partition("[input] ")[2]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (attacks.header_alone(5000, 5000), "is damaged: it has fewer bytes than its pixels need"),
        (attacks.padded(attacks.header_alone(400, 400), 1000), "is damaged: it ends too early"),
        (attacks.many_scans(5792, 5792, 64), "has more scans than a progressive JPEG image needs"),
        (attacks.many_scans(8, 8, 65), "has more scans than a progressive JPEG image needs"),
        (attacks.header_alone(64, 64, 0xC9), "is coded arithmetically; Huffman's code is taken"),
    ],
    ids=["no data", "data ends", "blocks", "scans", "arithmetic"],
)
def test_work_on_an_image_follows_from_its_bytes_and_the_pixels_that_are_taken(
    data: bytes, said: str
) -> None:
    assert read("DecodeJpeg", data) == f"image 0 {said}"


def test_progressive_images_of_ordinary_encoders_are_within_the_bound_of_scans() -> None:
    data = photograph(320, 240, quality=95, subsampling=0, progressive=True)
    assert read("DecodeJpeg", data, pixels_max=320 * 240).shape == (1, 24, 32, 3)
    assert read("DecodeJpeg", attacks.many_scans(8, 8, 64), pixels_max=64).shape == (1, 24, 32, 3)


def test_an_image_has_a_bound_of_pixels_while_it_is_resized() -> None:
    thin = photograph(1, 60)
    assert read("DecodeJpeg", thin, shortest=SIDE_MAX) == (
        f"image 0 has 1 x 60 pixels, and {60 * SIDE_MAX**2} once it is resized; at most {JPEG_PIXELS_MAX} are made"
    )


@pytest.mark.parametrize("operator", ["WordPiece", "BytePairs"])
def test_no_more_of_a_text_is_read_than_its_tokens_need(operator: str) -> None:
    most = 65_536 + 64 * 64
    for text in ("a" * (1 << 21), " " * (1 << 21), "\u4e00" * 100_000):
        size = len(text.encode())
        said = f"text 0 has {size} bytes; at most {most} are read for the 64 tokens that the model takes"
        assert read(operator, text) == said
        if text.isascii():  # a word without an end: the first bytes' tokens depend on the rest
            assert read(operator, text, truncates=1) == said
    # Text behind the tokens that a truncated text keeps is not read; neither is a character split by the cut.
    for padding in range(4):
        text = "hello world " * 40 + "x" * padding + "\u4e00 " * 100_000
        np.testing.assert_array_equal(
            read(operator, text, truncates=1), read(operator, text[:5000], truncates=1)
        )


def test_the_longest_of_many_special_tokens_is_found() -> None:
    specials = "\n".join(
        [f"{'<' * count}>\t{count}\t" for count in range(1, 200)] + ["<\t500\t", "<<\t501\t"]
    )
    ids = read("WordPiece", "<<<>a<< <", specials=specials)
    assert ids.tolist() == [[301, 3, 0, 501, 500, 302]]
    assert read("WordPiece", "<" * 30_000, specials=specials) == (
        "text 0 has more than the 64 tokens that the model takes"
    )


def test_a_word_is_looked_up_no_further_than_the_longest_token() -> None:
    """A word of the longest length that is looked up, with no token among its beginnings but the first
    character."""
    assert read("WordPiece", "a" * 1024, word_max=1024, tokens_max=2000).tolist() == [
        [301, 0, *[1] * 1023, 302]
    ]
    assert read("WordPiece", "a" * 1025, word_max=1024, tokens_max=2000).tolist() == [[301, 400, 302]]


def test_without_a_libjpeg_only_models_that_read_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, said in (
        (tmp_path / "libjpeg.so", "cannot load"),
        (Path(operators._operators.__file__), "is not libjpeg: it lacks a function"),
    ):
        # Run in a process of its own: a loaded library stays loaded.
        code = f"from clockwork.device import _operators; print(_operators.load_jpeg({str(path).encode()!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
        )
        assert said in done.stdout
    monkeypatch.setattr(operators, "_load_jpeg", lambda: "there is none")
    with pytest.raises(RunError, match="images cannot be decoded here: there is none"):
        decoder()
    node = helper.make_node("WordPiece", ["text"], ["ids"], domain="clockwork")
    model = helper.make_model(helper.make_graph([node], "texts", [], []))
    assert operators.libraries_for(model.SerializeToString()) == (operators._operators.__file__,)


# ----- onnxruntime-extensions ------------------------------------------------------------------------


def of_extensions(operator: str) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, STRING, ["N"]) for name in ("text", "answer")]
    node = helper.make_node(operator, ["text"], ["answer"], domain="ai.onnx.contrib")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    graph = helper.make_graph([node], "graph", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_operators_of_the_extensions_are_prepared_and_run_on_the_device(tmp_path: Path) -> None:
    if operators.extensions() is None:
        pytest.skip("onnxruntime-extensions is not installed ([text])")
    package, store = tmp_path / "package", tmp_path / "store"
    package.mkdir()
    store.mkdir()
    (package / "model.onnx").write_bytes(of_extensions("StringUpper").SerializeToString())
    prepared = prepare(package, store, fingerprint(1), 1 << 20, {})
    directory = prepared_directory(store, prepared.digest, fingerprint(1), {})
    bench = Bench(fingerprint(1), 1 << 20, [directory])
    try:
        bench.load(0)
        assert bench.run(0, [strings(b"one", b"two")])[0][0].tolist() == ["ONE", "TWO"]
    finally:
        bench.close()


@pytest.mark.parametrize("operator", ["ImageReader", "DecodeImage", "StringECMARegexReplace"])
def test_operators_of_the_extensions_that_are_not_safe_are_refused(tmp_path: Path, operator: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(of_extensions(operator).SerializeToString())
    with pytest.raises(
        InvalidModel, match=f"uses operator ai.onnx.contrib.{operator}: .*those for texts are served"
    ):
        check_model(path)


def test_without_the_extensions_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "extensions", lambda: None)
    with pytest.raises(RunError, match=r"pip install 'clockwork-serving\[text\]'"):
        ModelSession(of_extensions("StringUpper").SerializeToString(), optimise=True)
