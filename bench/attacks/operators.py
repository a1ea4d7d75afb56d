"""Models, images and texts that cost operators more than their size, and answers that may hold foreign
memory.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.attacks.messages import listed
from bench.attacks.site import MIB, SAME_WIDTH, Attack, Site
from clockwork.device.operators import DOMAIN
from clockwork.errors import ClockworkError
from clockwork.models import samples

SECRET = b"a secret of another client's. "
TRIES = 8
"""Requests to a model that should have been refused: its answers may contain any memory of the process."""

ANSWER_S = 20.0

IMAGE = {"width": 32, "height": 24, "shortest": 0, "channels": 3, "bicubic": 0, "pixels_max": 1 << 25}
COMMON = {
    "specials": "[S]\t300\t", "before": "301", "after": "302", "tokens_max": 64, "truncates": 0, "padding": 0, "length": 0,
}  # fmt: skip
WORDS = {
    **COMMON, "vocabulary": "a\n##a\nhello\n##llo\nworld", "normalised": "41\ta\n42\tbb", "removed": "0-8", "spaces": "9-d,20-20",
    "alone": "21-2f,3a-40", "prefix": "##", "unknown": 400, "word_max": 100,
}  # fmt: skip
PAIRS = {
    **COMMON, "bytes": ",".join(map(str, range(256))),
    "merges": "\n".join(["97,97,256", *(f"{id},{id},{id + 1}" for id in range(256, 266)), "104,105,299"]),
    "letters": "41-5a,61-7a", "numbers": "30-39", "spaces": "9-d,20-20", "begins_with_space": 0,
}  # fmt: skip

REFUSED: dict[str, list[tuple[dict[str, int | str], str]]] = {
    "DecodeJpeg": [
        ({"shortest": 8, "height": 4096}, "shortest"), ({"width": 0}, "width"), ({"width": -1}, "width"),
        ({"height": 1 << 40}, "height"), ({"height": 1 << 62, "width": 4}, "height"), ({"channels": 2}, "channels"),
        ({"channels": -3}, "channels"), ({"channels": 1 << 60}, "channels"), ({"bicubic": 2}, "bicubic"),
        ({"pixels_max": 0}, "pixels_max"), ({"pixels_max": 1 << 62}, "pixels_max"), ({"shortest": -5}, "shortest"),
        ({"shortest": 1 << 33}, "shortest"), ({"height": 16384, "width": 16384}, "height and width"),
    ],
    "WordPiece": [
        ({"specials": "\t5\t"}, "specials"), ({"specials": "[X]"}, "specials"), ({"specials": "[X]\t-1\t"}, "specials"),
        ({"specials": "x" * 300 + "\t5\t"}, "specials"), ({"before": ",".join("1" * 65)}, "before and after"),
        ({"before": "1,x"}, "before"), ({"after": "1" * 40}, "after"), ({"tokens_max": -1}, "tokens_max"),
        ({"tokens_max": 1 << 62}, "tokens_max"), ({"truncates": 7}, "truncates"), ({"padding": -1}, "padding"),
        ({"length": 3}, "length"), ({"length": 1 << 62}, "length"), ({"unknown": -1}, "unknown"), ({"word_max": 0}, "word_max"),
        ({"word_max": 1 << 62}, "word_max"), ({"prefix": "#" * 300}, "prefix"), ({"normalised": "61"}, "normalised"),
        ({"normalised": "61\t" + "b" * 300}, "normalised"), ({"removed": "zz"}, "removed"), ({"spaces": "30-20"}, "spaces"),
        ({"alone": "20-2f,25-26"}, "alone"), ({"vocabulary": "a\na"}, "vocabulary"),
        ({"specials": "\n".join(f"[{number}]\t5\t" for number in range(5000))}, "specials"),
    ],
    "BytePairs": [
        ({"bytes": "1,2,3"}, "bytes"), ({"bytes": ",".join(["4294967295"] * 256)}, "bytes"), ({"merges": "1,2"}, "merges"),
        ({"merges": "1,2,3,4"}, "merges"), ({"merges": "1,2,-3"}, "merges"), ({"letters": "110000-110001"}, "letters"),
        ({"specials": "\t5\t"}, "specials"), ({"begins_with_space": 2}, "begins_with_space"), ({"tokens_max": 0}, "tokens_max"),
    ],
}  # fmt: skip
"""By operator: attributes that no model may have, and their name in the error text."""


def operator_model(operator: str, **attributes: Any) -> onnx.ModelProto:
    """A model of one operator of Clockwork's on `x`, strings (N), with these attributes beside the usual."""
    usual: dict[str, dict[str, Any]] = {"DecodeJpeg": IMAGE, "WordPiece": WORDS, "BytePairs": PAIRS}
    is_image = operator == "DecodeJpeg"
    names = ["y"] if is_image else ["ids", "mask", "types"]
    dims = ["N", None, None, None] if is_image else ["N", None]
    dtype = TensorProto.UINT8 if is_image else TensorProto.INT64
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], names, domain=DOMAIN, **{**usual[operator], **attributes})],
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info(name, dtype, dims) for name in names],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    kind = samples.JPEG if is_image else samples.TEXT
    helper.set_model_props(model, {samples.STRINGS_KEY: json.dumps({"x": kind})})
    return model


def heap_model(name: str) -> onnx.ModelProto:
    """A model of `n` that allocates memory outside tensors: positions of NonZero, or characters of
    strings.
    """
    count = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    inputs = (
        [count] if name == "places" else [helper.make_tensor_value_info("x", TensorProto.STRING, [1]), count]
    )
    true = helper.make_tensor("true", TensorProto.BOOL, [1], [True])
    nodes = {
        "places": [
            helper.make_node("ConstantOfShape", ["n"], ["all"], value=true),
            helper.make_node("NonZero", ["all"], ["found"]),
        ],
        "repeated": [helper.make_node("Tile", ["x", "n"], ["found"])],
    }[name]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Shape", ["found"], ["y"])], name, inputs,
        [helper.make_tensor_value_info("y", TensorProto.INT64, [None])],
    )  # fmt: skip
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return model


# ----- images of few bytes --------------------------------------------------------------------------------


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _table(kind: int, symbol: int) -> bytes:
    """A Huffman table with one symbol of one bit."""
    return _segment(0xC4, bytes([kind << 4, 1, *bytes(15), symbol]))


def _jpeg(width: int, height: int, frame: int, scans: list[bytes], tables: bytes) -> bytes:
    """A grey JPEG image. frame: the marker of its kind."""
    quantisation = _segment(0xDB, bytes([0, *[1] * 64]))
    head = _segment(frame, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    return b"\xff\xd8" + quantisation + head + tables + b"".join(scans) + b"\xff\xd9"


def header_alone(width: int, height: int, frame: int = 0xC0) -> bytes:
    """A baseline image whose data ends where it begins: some 150 bytes."""
    scan = _segment(0xDA, bytes([1, 1, 0, 0, 63, 0]))
    return _jpeg(width, height, frame, [scan], _table(0, 0) + _table(1, 0))


def many_scans(width: int, height: int, count: int) -> bytes:
    """A progressive image of zeros whose scans encode 32,767 blocks in a few bytes each."""
    blocks = -(-width // 8) * -(-height // 8)
    first = _segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(-(-blocks // 8))
    bits = ("0" + "1" * 14) * (blocks // 32767 + 1)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    again = _segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data
    return _jpeg(width, height, 0xC2, [first, *[again] * (count - 1)], _table(0, 0) + _table(1, 0xE0))


def padded(data: bytes, size: int) -> bytes:
    """An image that a comment enlarges to a size in bytes."""
    comment = _segment(0xFE, bytes(max(0, size - len(data) - 4)))
    return data[:2] + comment + data[2:]


# ----- the attacks ----------------------------------------------------------------------------------------


def hostile_attributes(site: Site, quick: bool) -> str:
    """Models whose attributes would make an operator read or write beyond its memory, and their answers."""
    became: Counter[str] = Counter()
    secret = np.frombuffer((SECRET * (4 * SAME_WIDTH // len(SECRET) + 1))[: 4 * SAME_WIDTH], np.float32)
    with site.client() as client:
        for operator, some in REFUSED.items():
            for number, (attributes, _) in enumerate(some[:2] if quick else some):
                name = f"{operator.lower()}-{number}"
                try:
                    client.register(name, operator_model(operator, **attributes))
                except ClockworkError:
                    became["refused"] += 1
                    continue
                became["registered"] += 1
                for _ in range(TRIES):
                    client.infer("same", secret.reshape(1, SAME_WIDTH), slo=ANSWER_S)
                    answer = client.infer(name, [samples.sample(samples.JPEG, [1])[0]], slo=ANSWER_S)
                    became["secrets"] += np.asarray(answer).tobytes().count(SECRET)
    return listed(became)


def small_images(site: Site, quick: bool) -> str:
    """Images of 140 bytes to 70 KB that declare 33 million pixels, or have many scans of them."""
    times = 4 if quick else 32
    images = [header_alone(5792, 5792)] * times
    images += [many_scans(5792, 5792, 64), many_scans(2600, 2600, 64)] * (times // 4)
    return _asked(site, "decoder", [[image] for image in images])


def endless_words(site: Site, quick: bool) -> str:
    """Texts of one word that grows."""
    words = [b"a" * (1 << power) for power in range(10, 21 if quick else 23)]
    return _asked(site, "pairs", [{"x": [word]} for word in words])


def heap(site: Site, quick: bool) -> str:
    """Small requests whose execution takes 1.5 GB in strings, and in positions of NonZero."""
    times = 1 if quick else 8
    strings = {"x": [b"x" * MIB], "n": np.array([1500])}
    places = {"n": np.array([100_000_000])}
    return f"strings: {_asked(site, 'repeated', [strings] * times)}; places: {_asked(site, 'places', [places] * times)}"


def _asked(site: Site, name: str, inputs: Sequence[Any]) -> str:
    """The outcomes of requests that are sent one after the other."""
    became: Counter[str] = Counter()
    with site.client() as client:
        for each in inputs:
            try:
                client.infer(name, each, slo=ANSWER_S)
                became["answered"] += 1
            except ClockworkError as error:
                became[type(error).__name__] += 1
    return listed(became)


ATTACKS = {
    "hostile attributes": Attack("worker", hostile_attributes),
    "small images": Attack("worker", small_images, lambda quick: {"decoder": operator_model("DecodeJpeg")}),
    "endless words": Attack("worker", endless_words, lambda quick: {"pairs": operator_model("BytePairs")}),
    "heap": Attack("worker", heap, lambda quick: {name: heap_model(name) for name in ("repeated", "places")}),
}
