"""Requests and results that are wrong, each in its own way, and right ones beside them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from clockwork.formats.prepared import UNKNOWN_RANK, TensorSpec
from clockwork.wire import codec
from clockwork.wire.messages import NEVER_NS
from clockwork.wire.tensors import BOOL, FLOAT, INT4, INT64, STRING, UINT8

SEED = 31
MUTATIONS = 300
NO_DTYPE = 99

ROW = struct.pack("<2f", 1.5, -2.5)
WORD = (2).to_bytes(4, "little") + b"ab"
PLAIN = ["x", FLOAT, [1, 2], 0]
HUGE = 1 << 40

MODELS: dict[str, dict[str, Any]] = {
    "m": {},
    "words": {"inputs": [TensorSpec("w", STRING, ("N",))], "batches": False},
    "grid": {"inputs": [TensorSpec("w", STRING, ("N", "", 2))]},
    "pair": {"inputs": [TensorSpec("ids", INT64, ("N", "T")), TensorSpec("mask", BOOL, ("N", "T"))]},
    "fixed": {"inputs": [TensorSpec("x", UINT8, (4, 2)), TensorSpec("scale", FLOAT, ())], "batches": False},
    "any": {"inputs": [TensorSpec("x", INT4, UNKNOWN_RANK)], "batches": False},
    "rows": {"inputs": [TensorSpec("x", INT4, UNKNOWN_RANK), TensorSpec("y", UINT8, ("", 3))]},
    "many": {"inputs": [TensorSpec(f"x{place}", UINT8, ("N", 1)) for place in range(20)]},
    "untyped": {"inputs": [TensorSpec("x", NO_DTYPE, ("N",))]},
    "none": {"inputs": [TensorSpec("x", FLOAT, ("N", 1 << 62))]},
}
"""For each model its worker's summary, if it is not peers.prepared_model()."""

MANY = [[f"x{place}", UINT8, [2, 1], place] for place in range(20)]
Case = tuple[list[Any], list[bytes]]
REQUESTS: dict[str, Case] = {
    "a good one": ([11, "m", 0, 0, [PLAIN]], [ROW]),
    "of two rows": ([12, "m", 0, 1, [["x", FLOAT, [2, 2], 0]]], [ROW + ROW]),
    "another dimension": ([13, "m", 0, 1, [["x", FLOAT, [1, 3], 0]]], [bytes(12)]),
    "by version": ([14, "m@1", 0, 0, [PLAIN]], [ROW]),
    "by version, and wrong": ([15, "m@1", 0, 0, [["x", FLOAT, [1, 3], 0]]], [ROW]),
    "without the input's name": ([16, "m", 0, 0, [["", FLOAT, [1, 2], 0]]], [ROW]),
    "the longest SLO": ([17, "m", NEVER_NS - 1, 255, [PLAIN]], [ROW]),
    "an SLO that cannot be": ([18, "m", 500, 0, [PLAIN]], [ROW]),
    "an SLO out of range": ([19, "m", NEVER_NS, 0, [PLAIN]], [ROW]),
    "a negative SLO": ([20, "m", -1, 0, [PLAIN]], [ROW]),
    "a priority out of range": ([21, "m", 0, 256, [PLAIN]], [ROW]),
    "a number above all": ([1 << 63, "m", 0, 0, [PLAIN]], [ROW]),
    "the highest number": ([(1 << 63) - 1, "m", 0, 0, [PLAIN]], [ROW]),
    "a negative number": ([-1, "m", 0, 0, [PLAIN]], [ROW]),
    "a number that is none": ([3.5, "m", 0, 0, [PLAIN]], [ROW]),
    "a number that is true": ([True, "m", 0, 0, [PLAIN]], [ROW]),
    "no such model": ([22, "n", 0, 0, [PLAIN]], [ROW]),
    "no such version": ([23, "m@2", 0, 0, [PLAIN]], [ROW]),
    "a version that is none": ([24, "m@one", 0, 0, [PLAIN]], [ROW]),
    "no model at all": ([25, "", 0, 0, [PLAIN]], [ROW]),
    "no such model, and wrong": ([26, "n", 0, 0, []], [ROW]),
    "a long name": ([27, "n" * 1024, 0, 0, [PLAIN]], [ROW]),
    "a name too long": ([28, "n" * 1025, 0, 0, [PLAIN]], [ROW]),
    "no input": ([29, "m", 0, 0, []], []),
    "an input twice": ([30, "m", 0, 0, [PLAIN, ["x", FLOAT, [1, 2], 1]]], [ROW, ROW]),
    "a frame too many": ([31, "m", 0, 0, [PLAIN]], [ROW, ROW]),
    "no frame": ([32, "m", 0, 0, [PLAIN]], []),
    "a frame too short": ([33, "m", 0, 0, [PLAIN]], [ROW[:7]]),
    "a frame too long": ([34, "m", 0, 0, [PLAIN]], [ROW + b"x"]),
    "an empty frame": ([35, "m", 0, 0, [PLAIN]], [b""]),
    "a frame that did not come": ([36, "m", 0, 0, [["x", FLOAT, [1, 2], 1]]], [ROW]),
    "a frame that cannot be": ([37, "m", 0, 0, [["x", FLOAT, [1, 2], 65_536]]], [ROW]),
    "a frame below 0": ([38, "m", 0, 0, [["x", FLOAT, [1, 2], -1]]], [ROW]),
    "a wrong dtype": ([39, "m", 0, 0, [["x", 11, [1, 2], 0]]], [ROW + ROW]),
    "a dtype that is none": ([40, "m", 0, 0, [["x", NO_DTYPE, [1, 2], 0]]], [ROW]),
    "a dtype out of range": ([41, "m", 0, 0, [["x", 1 << 31, [1, 2], 0]]], [ROW]),
    "a wrong rank": ([42, "m", 0, 0, [["x", FLOAT, [2], 0]]], [ROW]),
    "no rows": ([43, "m", 0, 0, [["x", FLOAT, [0, 2], 0]]], [b""]),
    "a negative dimension": ([44, "m", 0, 0, [["x", FLOAT, [1, -2], 0]]], [ROW]),
    "negative rows": ([45, "m", 0, 0, [["x", FLOAT, [-1, 2], 0]]], [ROW]),
    "the most dimensions": ([46, "m", 0, 0, [["x", FLOAT, [1] * 32, 0]]], [ROW]),
    "too many dimensions": ([47, "m", 0, 0, [["x", FLOAT, [1] * 33, 0]]], [ROW]),
    "a dimension that is true": ([48, "m", 0, 0, [["x", FLOAT, [True, 2], 0]]], [ROW]),
    "a dimension that is nothing": ([49, "m", 0, 0, [["x", FLOAT, [None, 2], 0]]], [ROW]),
    "a dimension above all": ([50, "m", 0, 0, [["x", FLOAT, [1 << 63, 2], 0]]], [ROW]),
    "a shape that is a text": ([51, "m", 0, 0, [["x", FLOAT, "12", 0]]], [ROW]),
    "a field too many": ([52, "m", 0, 0, [PLAIN], 0], [ROW]),
    "a field too few": ([53, "m", 0, 0], [ROW]),
    "a number alone": ([54], [ROW]),
    "nothing": ([], [ROW]),
    "a model that is bytes": ([55, b"m", 0, 0, [PLAIN]], [ROW]),
    "a tensor that is a map": ([56, "m", 0, 0, [{"name": "x"}]], [ROW]),
    "a tensor of five": ([57, "m", 0, 0, [[*PLAIN, 0]]], [ROW]),
    "a tensor's name that is bytes": ([58, "m", 0, 0, [[b"x", FLOAT, [1, 2], 0]]], [ROW]),
    "a tensor's name too long": ([59, "m", 0, 0, [["x" * 1025, FLOAT, [1, 2], 0]]], [ROW]),
    "no such input": ([60, "m", 0, 0, [["y", FLOAT, [1, 2], 0]]], [ROW]),
    "no such input, at length": ([61, "m", 0, 0, [["\N{SNOWMAN}\n" * 200, FLOAT, [1, 2], 0]]], [ROW]),
    "too many tensors": ([62, "m", 0, 0, [PLAIN] * 1025], [ROW]),
    "bytes beyond all bounds": ([63, "m", 0, 0, [["x", FLOAT, [1 << 30, 2], 0]]], [ROW]),
    "dimensions beyond all bounds": ([64, "m", 0, 0, [["x", FLOAT, [1 << 62, 2], 0]]], [ROW]),
    "a header too large": ([65, "m", 0, 0, [["x" * 1000, FLOAT, [1, 2], 0]] * 200], [ROW]),
    "strings": ([100, "words", 0, 0, [["w", STRING, [1], 0]]], [WORD]),
    "three strings": ([101, "words", 0, 0, [["w", STRING, [3], 0]]], [WORD + bytes(4) + WORD]),
    "no strings": ([102, "words", 0, 0, [["w", STRING, [0], 0]]], [b""]),
    "strings that are not UTF-8": ([103, "words", 0, 0, [["w", STRING, [1], 0]]], [b"\2\0\0\0\xff\xfe"]),
    "a string out of its frame": ([104, "words", 0, 0, [["w", STRING, [2], 0]]], [WORD + WORD[:5]]),
    "a length out of its frame": ([105, "words", 0, 0, [["w", STRING, [2], 0]]], [bytes(3) + b"\2ab"]),
    "a string before the last out of its frame": (
        [106, "words", 0, 0, [["w", STRING, [3], 0]]],
        [WORD + b"\xff\0\0\0" + WORD],
    ),
    "too few bytes for strings": ([107, "words", 0, 0, [["w", STRING, [3], 0]]], [WORD]),
    "more bytes than strings": ([108, "words", 0, 0, [["w", STRING, [1], 0]]], [WORD + b"x"]),
    "bytes of no strings": ([109, "words", 0, 0, [["w", STRING, [0], 0]]], [b"x"]),
    "the most strings": ([110, "words", 0, 0, [["w", STRING, [1 << 16], 0]]], [bytes(1 << 18)]),
    "too many strings": ([111, "words", 0, 0, [["w", STRING, [(1 << 16) + 1], 0]]], [bytes((1 << 18) + 4)]),
    "strings beyond all bounds": ([112, "words", 0, 0, [["w", STRING, [1 << 29], 0]]], [WORD]),
    "a grid of strings": ([113, "grid", 0, 0, [["w", STRING, [1, 2, 2], 0]]], [WORD * 4]),
    "a grid of strings of no rows": ([114, "grid", 0, 0, [["w", STRING, [0, 2, 2], 0]]], [b""]),
    "a grid of strings, one of them too many": (
        [115, "grid", 0, 0, [["w", STRING, [1, 2, 2], 0]]],
        [WORD * 5],
    ),
    "two inputs": (
        [120, "pair", 0, 0, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [2, 5], 1]]],
        [bytes(80), bytes(10)],
    ),
    "two inputs the other way round": (
        [121, "pair", 0, 0, [["mask", BOOL, [2, 5], 0], ["ids", INT64, [2, 5], 1]]],
        [bytes(10), bytes(80)],
    ),
    "a symbol of two sizes": (
        [122, "pair", 0, 0, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [2, 4], 1]]],
        [bytes(80), bytes(8)],
    ),
    "rows of two sizes": (
        [123, "pair", 0, 0, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [1, 5], 1]]],
        [bytes(80), bytes(5)],
    ),
    "an input twice of two": (
        [124, "pair", 0, 0, [["ids", INT64, [2, 5], 0], ["ids", INT64, [2, 5], 1]]],
        [bytes(80), bytes(80)],
    ),
    "one frame for two": (
        [125, "pair", 0, 0, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [2, 5], 0]]],
        [bytes(80), bytes(10)],
    ),
    "an input without its name of two": (
        [126, "pair", 0, 0, [["ids", INT64, [2, 5], 0], ["", BOOL, [2, 5], 1]]],
        [bytes(80), bytes(10)],
    ),
    "the first is missing": ([127, "pair", 0, 0, [["mask", BOOL, [2, 5], 0]]], [bytes(10)]),
    "the second is missing": ([128, "pair", 0, 0, [["ids", INT64, [2, 5], 0]]], [bytes(80)]),
    "both are missing": ([129, "pair", 0, 0, []], []),
    "no rows of two": (
        [130, "pair", 0, 0, [["ids", INT64, [0, 5], 0], ["mask", BOOL, [0, 5], 1]]],
        [b"", b""],
    ),
    "fixed sizes": (
        [140, "fixed", 0, 0, [["x", UINT8, [4, 2], 0], ["scale", FLOAT, [], 1]]],
        [bytes(8), bytes(4)],
    ),
    "another size where it is fixed": (
        [141, "fixed", 0, 0, [["x", UINT8, [4, 3], 0], ["scale", FLOAT, [], 1]]],
        [bytes(12), bytes(4)],
    ),
    "a list where a scalar is due": (
        [142, "fixed", 0, 0, [["x", UINT8, [4, 2], 0], ["scale", FLOAT, [1], 1]]],
        [bytes(8), bytes(4)],
    ),
    "a frame too short for a scalar": (
        [143, "fixed", 0, 0, [["x", UINT8, [4, 2], 0], ["scale", FLOAT, [], 1]]],
        [bytes(8), bytes(3)],
    ),
    "any rank": ([150, "any", 0, 0, [["x", INT4, [3], 0]]], [bytes(2)]),
    "any rank: a scalar": ([151, "any", 0, 0, [["x", INT4, [], 0]]], [bytes(1)]),
    "any rank: half a byte too much": ([152, "any", 0, 0, [["x", INT4, [3], 0]]], [bytes(1)]),
    "any rank: the first dimension is negative": ([153, "any", 0, 0, [["x", INT4, [-3, 2], 0]]], [bytes(2)]),
    "any rank: the last dimension is negative": ([154, "any", 0, 0, [["x", INT4, [3, -2], 0]]], [bytes(2)]),
    "any rank: dimensions beyond all bounds": (
        [155, "any", 0, 0, [["x", INT4, [HUGE, 0, HUGE], 0]]],
        [b""],
    ),
    "any rank: dimensions beyond all bounds, and one that is negative": (
        [156, "any", 0, 0, [["x", INT4, [HUGE, HUGE, -1], 0]]],
        [b""],
    ),
    "any rank: bytes beyond all bounds": ([157, "any", 0, 0, [["x", INT4, [1 << 62], 0]]], [bytes(1)]),
    "rows of any rank": (
        [160, "rows", 0, 0, [["x", INT4, [2], 0], ["y", UINT8, [2, 3], 1]]],
        [bytes(1), bytes(6)],
    ),
    "rows of a scalar": (
        [161, "rows", 0, 0, [["x", INT4, [], 0], ["y", UINT8, [2, 3], 1]]],
        [bytes(1), bytes(6)],
    ),
    "rows that differ": (
        [162, "rows", 0, 0, [["x", INT4, [4], 0], ["y", UINT8, [2, 3], 1]]],
        [bytes(2), bytes(6)],
    ),
    "no rows, then some": (
        [163, "rows", 0, 0, [["x", INT4, [0], 0], ["y", UINT8, [2, 3], 1]]],
        [b"", bytes(6)],
    ),
    "twenty inputs": ([170, "many", 0, 0, MANY], [b"ab"] * 20),
    "twenty inputs, backwards": ([171, "many", 0, 0, MANY[::-1]], [b"ab"] * 20),
    "one of twenty is missing": ([172, "many", 0, 0, MANY[:19]], [b"ab"] * 19),
    "one of twenty is another": ([173, "many", 0, 0, [*MANY[:19], ["y", UINT8, [2, 1], 19]]], [b"ab"] * 20),
    "one of twenty came twice": ([174, "many", 0, 0, [*MANY[:19], ["x3", UINT8, [2, 1], 19]]], [b"ab"] * 20),
    "one of twenty has another's frame": (
        [175, "many", 0, 0, [*MANY[:19], ["x19", UINT8, [2, 1], 4]]],
        [b"ab"] * 20,
    ),
    "one of twenty has other rows": (
        [176, "many", 0, 0, [*MANY[:19], ["x19", UINT8, [3, 1], 19]]],
        [*[b"ab"] * 19, b"abc"],
    ),
    "a dtype that ONNX does not have": ([180, "untyped", 0, 0, [["x", NO_DTYPE, [1], 0]]], [b"a"]),
    "a declaration that nothing fits": ([181, "none", 0, 0, [["x", FLOAT, [1, 1], 0]]], [bytes(4)]),
    "a declaration that only zero rows could fit": (
        [182, "none", 0, 0, [["x", FLOAT, [0, 1 << 62], 0]]],
        [b""],
    ),
}

# ----- results -------------------------------------------------------------------------------

OUTPUTS = [
    TensorSpec("y", FLOAT, ("N", 2)),
    TensorSpec("words", STRING, ("N",)),
    TensorSpec("n", INT4, UNKNOWN_RANK),
]
RESULT_MODELS: dict[str, dict[str, Any]] = {
    "m": {"outputs": OUTPUTS, "outputs_verified": True},
    "loose": {"outputs": OUTPUTS, "outputs_verified": False, "program": "loose"},
    "single": {
        "outputs": [TensorSpec("z", FLOAT, (2, "K")), TensorSpec("odd", NO_DTYPE, ("",))],
        "outputs_verified": True,
        "batches": False,
        "program": "single",
        "inputs": [TensorSpec("x", FLOAT, (1, 2))],
        "profile": [],
        "batch_max": 1,
    },
}
RIGHT: dict[str, tuple[list[Any], list[bytes]]] = {
    "m": ([[FLOAT, [1, 2], 0], [STRING, [1], 1], [INT4, [1, 3], 2]], [ROW, WORD, bytes(2)]),
    "loose": ([[FLOAT, [1, 7], 0], [STRING, [1], 1], [INT4, [1, 3], 2]], [bytes(28), WORD, bytes(2)]),
    "single": ([[FLOAT, [2, 3], 0], [NO_DTYPE, [5], 1]], [bytes(24), b"whatever"]),
}
Change = Callable[[list[Any], list[Any], list[bytes]], Any]


def put(place: int, field: int, value: Any) -> Change:
    """Change a field of an output: 0 its dtype, 1 its shape, 2 its frame."""
    return lambda fields, part, frames: part[place].__setitem__(field, value)


def field(place: int, value: Any) -> Change:
    """Change a field of the result, as in messages.Result."""
    return lambda fields, part, frames: fields.__setitem__(place, value)


def frame(place: int, data: bytes) -> Change:
    return lambda fields, part, frames: frames.__setitem__(place, data)


def several(*changes: Change) -> Change:
    return lambda fields, part, frames: [change(fields, part, frames) for change in changes]


RESULTS: dict[str, tuple[str, Change]] = {
    "a good one": ("m", several()),
    "another dimension of a loose one": ("loose", several()),
    "a good one that does not batch": ("single", several()),
    "no status": ("m", field(1, 15)),
    "no status, of a failure": (
        "m",
        several(field(1, 19), field(7, []), lambda f, p, frames: frames.clear()),
    ),
    "a status out of range": ("m", field(1, 32)),
    "a text that is not UTF-8": ("m", field(2, b"\xff")),
    "a text too long": ("m", field(2, "x" * ((16 << 10) + 1))),
    "a stamp out of range": ("m", field(3, NEVER_NS)),
    "a phase of two": ("m", field(5, [1, 2])),
    "a phase that took less than nothing": ("m", field(5, [5, 6, -1])),
    "phases that take for ever": (
        "m",
        several(field(4, [1, 2, NEVER_NS - 1]), field(5, [1, 2, 1]), field(6, [0, 0, NEVER_NS - 1])),
    ),
    "a field too many": ("m", lambda fields, part, frames: fields.append(0)),
    "no parts": ("m", field(7, [])),
    "no parts and no frames": ("m", several(field(7, []), lambda f, p, frames: frames.clear())),
    "a part too many": ("m", lambda fields, part, frames: fields.__setitem__(7, [part, part])),
    "parts that are a text": ("m", field(7, "parts")),
    "an output too few": (
        "m",
        several(lambda f, part, frames: part.pop(), lambda f, p, frames: frames.pop()),
    ),
    "an output too many": ("m", lambda fields, part, frames: part.append(part[0])),
    "no frames": ("m", lambda fields, part, frames: frames.clear()),
    "a frame too many": ("m", lambda fields, part, frames: frames.append(b"more")),
    "a frame that did not come": ("m", put(2, 2, 3)),
    "a frame that cannot be": ("m", put(2, 2, 65_536)),
    "frames with a failure": ("m", several(field(1, 25), field(7, []))),
    "an output that is none": ("m", lambda fields, part, frames: part[0].pop()),
    "another dtype": ("m", put(0, 0, INT64)),
    "a dtype that is none": ("m", put(0, 0, NO_DTYPE)),
    "another dtype of a loose one": ("loose", put(0, 0, INT64)),
    "another dimension": ("m", several(put(0, 1, [1, 3]), frame(0, bytes(12)))),
    "another rank": ("m", several(put(0, 1, [1, 2, 1]))),
    "another row": ("m", several(put(0, 1, [2, 2]), frame(0, ROW + ROW))),
    "another row of a loose one": ("loose", several(put(0, 1, [2, 2]), frame(0, ROW + ROW))),
    "no rank": ("m", put(0, 1, [])),
    "no rank where any is right": ("m", put(2, 1, [])),
    "too few bytes": ("m", frame(0, ROW[:-1])),
    "too many bytes": ("m", frame(2, bytes(3))),
    "dimensions beyond all bounds": ("m", put(2, 1, [1, HUGE, HUGE])),
    "bytes beyond all bounds": ("m", put(2, 1, [1, 1 << 33])),
    "a dimension below 0": ("m", put(2, 1, [1, -1])),
    "a string out of its frame": ("m", frame(1, WORD[:5])),
    "a length out of its frame": ("m", frame(1, WORD[:3])),
    "bytes behind the strings": ("m", frame(1, WORD + b"x")),
    "too many strings": ("loose", several(put(1, 1, [1, 1 << 17]), frame(1, bytes(4 << 17)))),
    "strings beyond all bounds": ("loose", put(1, 1, [1, 1 << 61, 1 << 61])),
    "another dimension of one that does not batch": ("single", put(0, 1, [3, 3])),
    "another rank of one that does not batch": ("single", put(0, 1, [2])),
    "a rank too many where the dtype is none": ("single", put(1, 1, [1, 1])),
}


def requests() -> dict[str, tuple[bytes, list[bytes]]]:
    """Every request by its name: those of REQUESTS and, for some of them, variants with a changed byte in the
    header."""
    found = {name: (codec._pack([2, *fields]), frames) for name, (fields, frames) in REQUESTS.items()}
    rng = random.Random(SEED)
    short = [name for name, (header, _) in found.items() if len(header) < 200]
    for number in range(MUTATIONS):
        name = rng.choice(short)
        header = bytearray(codec._pack([2, 70, *REQUESTS[name][0][1:]]))
        if len(header) < 5:
            continue
        header[rng.randrange(3, len(header))] = rng.randrange(256)
        found[f"mutation {number}, of {name}"] = (bytes(header), REQUESTS[name][1])
    return found
