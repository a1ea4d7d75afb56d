"""Whole models of Clockwork's operators, attributes and data drawn together: ``python -m tests.fuzz.operators
SEED COUNT``.

Prints how many models and how many strings were refused, how many were answered, and a digest of all answers.
The digest must be the same whatever fresh memory contains (MALLOC_PERTURB_): this shows that every byte of an
answer was written.
"""

from __future__ import annotations

import hashlib
import io
import random
import sys
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from bench.attacks import operators
from clockwork.models.runtime import ModelSession, RunError
from tests.fuzz.mutate import odd_bytes

NUMBERS = (-(1 << 63), -(1 << 31), -1, 0, 1, 2, 3, 7, 8, 63, 64, 65, 255, 4096, 16_384, 16_385, 1 << 20, (1 << 20) + 1, 1 << 25,
           (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 33, (1 << 61) + 1, 1 << 62, (1 << 63) - 1)  # fmt: skip
PIECES = (
    "hello",
    "world",
    "[S]",
    "a",
    "aaaaaaaa",
    " ",
    "\t",
    "\n",
    "A",
    "B",
    "!",
    "7",
    "'re",
    "\u00e9",
    "\u4e00",
    "\U0001f600",
    "\0",
    "hi",
)
USUAL: dict[str, dict[str, Any]] = {
    "DecodeJpeg": {**operators.IMAGE, "pixels_max": 1 << 16},
    "WordPiece": operators.WORDS,
    "BytePairs": operators.PAIRS,
}
OUTPUT_BYTES_MAX = 32 << 20
"""Bound on the bytes that a string may make an operator fill, so that many models run in sequence."""


def attributes(operator: str, rng: random.Random) -> dict[str, int | str]:
    """Draw a string, mostly a valid one."""
    found = dict(USUAL[operator])
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        name = rng.choice(sorted(found))
        value = found[name]
        if isinstance(value, str):
            found[name] = _text(value, rng)
        elif rng.random() < 0.5:
            found[name] = rng.choice(NUMBERS)
        else:
            found[name] = rng.randint(0, 70)
    if operator == "DecodeJpeg" and rng.random() < 0.3:
        found["shortest"] = max(int(found["width"]), int(found["height"])) + rng.randint(-2, 5)
    return {name: _int64(value) if isinstance(value, int) else value for name, value in found.items()}


def _int64(value: int) -> int:
    return max(-(1 << 63), min(value, (1 << 63) - 1))


def _text(value: str, rng: random.Random) -> str:
    match rng.randrange(5):
        case 0:
            return ""
        case 1:
            return value * rng.randint(2, 3)
        case 2:
            return "".join(rng.choice("0123456789,-\t\n abf[]l") for _ in range(rng.randint(1, 40)))
        case _:
            return odd_bytes(value.encode(), rng).decode(errors="ignore")


def image(rng: random.Random) -> bytes:
    width, height = rng.choice([1, 7, 8, 16, 33, 120]), rng.choice([1, 7, 8, 17, 90])
    match rng.randrange(8):
        case 0:
            return operators.header_alone(
                rng.choice([width, 5000, 65_500]), rng.choice([height, 6000, 65_500])
            )
        case 1:
            return operators.many_scans(width, height, rng.randint(1, 70))
    pixels = np.frombuffer(rng.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    buffer = io.BytesIO()
    form = rng.choice(["L", "RGB", "RGB", "CMYK"])
    Image.fromarray(pixels).convert(form).save(
        buffer,
        "JPEG",
        quality=rng.choice([20, 95]),
        progressive=rng.random() < 0.5,
        subsampling=rng.randrange(3),
    )
    data = buffer.getvalue()
    return odd_bytes(data, rng) if rng.random() < 0.5 else data


def text(rng: random.Random) -> str | bytes:
    """Return a str if possible: ONNX Runtime's binding cuts bytes at zeros."""
    data = "".join(rng.choice(PIECES) for _ in range(rng.choice([0, 1, 5, 30, 300]))).encode()
    if rng.random() < 0.02:
        data *= 300_000 // (len(data) + 1)
    return odd_bytes(data, rng) if rng.random() < 0.1 else data.decode()


def _expect(words: str, error: RunError) -> None:
    assert words in str(error), error


def run(seed: int, count: int) -> tuple[Counter[str], str]:
    """Return the outcomes of so many models, and the digest of their answers."""
    rng = random.Random(f"operators {seed}")
    became: Counter[str] = Counter()
    digest = hashlib.sha256()
    for _ in range(count):
        operator = rng.choice(sorted(USUAL))
        drawn = attributes(operator, rng)
        strings = np.empty(rng.choice([0, 1, 1, 2, 5]), object)
        strings[:] = [image(rng) if operator == "DecodeJpeg" else text(rng) for _ in strings]
        try:
            session = ModelSession(
                operators.operator_model(operator, **drawn).SerializeToString(), optimise=False
            )
        except RunError as error:
            _expect("attribute", error)
            became["refused"] += 1
            continue
        if int(drawn.get("width", 1)) * int(drawn.get("height", 1)) > OUTPUT_BYTES_MAX // 3:
            continue
        try:
            answers = session.run([strings])
        except RunError as error:
            _expect("[input] ", error)
            became["invalid"] += 1
            continue
        became["answered"] += 1
        for answer in answers:
            assert len(answer) == len(strings)
            digest.update(repr((answer.shape, answer.dtype)).encode() + answer.tobytes())
    return became, digest.hexdigest()


if __name__ == "__main__":
    counted, found = run(int(sys.argv[1]), int(sys.argv[2]))
    print(counted["refused"], counted["invalid"], counted["answered"], found)
