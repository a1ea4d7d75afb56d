"""Generated strings with which a model is tested and timed if it has no examples.

    clockwork.strings    JSON, in an ONNX file's metadata: {"image": "jpeg"}, by the name of the input.

A string that the metadata does not name is a text.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from clockwork.config.models import JPEG_SIZES, TEXT_SIZES
from clockwork.device._operators import strings_work
from clockwork.errors import InvalidModel
from clockwork.models import images
from clockwork.wire.telling import tell
from clockwork.wire.tensors import Array, join_strings

STRINGS_KEY = "clockwork.strings"
JPEG, TEXT = "jpeg", "text"

_WORDS = (
    "the", "of", "a", "deadline", "is", "and", "requests", "in", "time", "model", "to", "answers", "it", "Clockwork",
    "plans", "ahead", "because", "every", "execution", "takes", "as", "long", "again", "so", "nothing", "waits",
)  # fmt: skip
_SAMPLE_SIZE = {JPEG: 16_000, TEXT: 10}


def contents_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the kind of strings of each input, by name. Raises InvalidModel."""
    found: dict[str, str] = images.metadata_value(metadata, STRINGS_KEY, dict)
    if not all(kind in (JPEG, TEXT) for kind in found.values()):
        raise InvalidModel(
            f"metadata {STRINGS_KEY} is not {JPEG!r} or {TEXT!r} by the name of an input: {tell(found)}"
        )
    return found


def sizes_of(content: str) -> Sequence[int]:
    """Return the sizes at which strings are timed. wire.tensors.string_size() keeps all of them distinct."""
    return JPEG_SIZES if content == JPEG else TEXT_SIZES


def sample(content: str, shape: Sequence[int], seed: int = 0, size: int = 0) -> Array:
    """Return different strings. size: largest work of each; 0: different sizes."""
    count = int(np.prod(shape))
    made: list[str | bytes] = []
    for index in range(count):
        number = seed + index
        if content == JPEG:
            made.append(jpeg(size or _SAMPLE_SIZE[JPEG] >> number % 3, number))
        else:
            made.append(text(size or _SAMPLE_SIZE[TEXT] << number % 3, number))
    array = np.empty(count, object)
    array[:] = made
    return array.reshape(shape)


def text(size: int, seed: int) -> str:
    """Return English words of at most ``size`` bytes, and nearly as many."""
    rng = np.random.default_rng(seed)
    words = " ".join(_WORDS[index] for index in rng.integers(0, len(_WORDS), size // 2 + 1))
    return words[:size].strip()


@functools.lru_cache(16)
def jpeg(size: int, seed: int) -> bytes:
    """Return a JPEG image of at most ``size`` units of work (csrc/jpeg.h), and nearly as many.

    The image has about ``size`` bytes and five times as many pixels, which is the detail of a photograph.
    """
    pixels = 5.0 * size
    for _ in range(5):
        data = _jpeg(max(8, int(pixels**0.5)), seed)
        work = strings_work(1, join_strings([data]))
        if 0.8 * size < work <= size or pixels < 64:
            break
        pixels *= 0.95 * size / work
    return data


def _jpeg(side: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (side, side))
    # Shapes of three sizes, from coarse to fine.
    for cell, weight in ((64, 1.0), (16, 0.35), (4, 0.15)):
        cells = side // cell + 1
        forms = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture = Image.blend(picture, forms.resize((side, side), Image.Resampling.BICUBIC), weight)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
