"""The work by which strings are timed: the bytes of texts, and the decoding work of JPEG images
(csrc/jpeg.h)."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clockwork.device._operators import strings_work
from clockwork.models import samples
from clockwork.wire.tensors import join_strings, string_size

SEED = 20201104
PIXEL, BLOCK, SMOOTH, TOUCH, REFINE, CODED, UNIT = 4, 16, 120, 4, 32, 10, 40
SCANS_MAX, SEARCHED_MAX, UNKNOWN = 64, 4 << 20, 1 << 40
"""Constants of csrc/jpeg.h."""


def work(*texts: bytes) -> int:
    return strings_work(len(texts), join_strings(list(texts)))


def picture(side: int, mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(side)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((side, side)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """Return marker, place and end of each segment of a sound image; for a scan, the end of its header."""
    found, at = [], 2
    while True:
        at = data.index(b"\xff", at)
        if data[at + 1] == 0 or data[at + 1] == 0xFF or 0xD0 <= data[at + 1] <= 0xD7:
            at += 1
            continue
        if data[at + 1] == 0xD9:
            return [*found, (0xD9, at, at + 2)]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], at, end))
        at = end


def header(width: int, height: int, progressive: bool = False, components: int = 3) -> bytes:
    """A JPEG image up to its first scan, with nothing but its size and components."""
    parts = b"".join(bytes([1 + one, 0x11, 0]) for one in range(components))
    body = struct.pack(">BHHB", 8, height, width, components) + parts
    return b"\xff\xd8\xff" + bytes([0xC2 if progressive else 0xC0]) + struct.pack(">H", 2 + len(body)) + body


def scan(components: int, first: int = 0, last: int = 63, bits: int = 0) -> bytes:
    parts = b"".join(bytes([1 + one, 0]) for one in range(components))
    body = bytes([components]) + parts + bytes([first, last, bits])
    return b"\xff\xda" + struct.pack(">H", 2 + len(body)) + body


END = b"\xff\xd9"


def test_texts_count_their_bytes() -> None:
    assert work() == 0
    assert work(b"") == 0
    assert work(b"abc", b"", "ä".encode()) == 5
    assert work(b"\xff\xd8", b"\xff\xd8\xff") == 5, "which is no image"
    assert string_size(3, 200) == 128


def test_an_image_of_one_scan_counts_its_pixels_blocks_and_bytes() -> None:
    for mode, sampling, components in (("RGB", 0, 3), ("L", -1, 1)):
        data = picture(64, mode, quality=90, subsampling=sampling)
        [(_, _, begin)] = [one for one in segments(data) if one[0] == 0xDA]
        coded = segments(data)[-1][1] - begin
        blocks = 64 * components
        assert work(data) == (64 * 64 * PIXEL + blocks * (BLOCK + TOUCH) + coded * CODED) // UNIT + 1


def test_photographs_count_about_their_bytes() -> None:
    for size in (16 << 10, 64 << 10, 256 << 10):
        data = samples.jpeg(size, 1)
        assert 0.8 * size < work(data) <= size
        assert 0.5 < len(data) / work(data) < 2


def test_what_a_decoder_passes_over_counts_nothing() -> None:
    for progressive in (False, True):
        data = picture(96, progressive=progressive)
        plain = work(data)
        filled = b"\xff\xff" + data[2:4].replace(b"\xff", b"")  # 0xff before a marker is filling
        comment = b"\xff\xfe\xff\xff" + bytes(65_533)
        application = b"\xff\xe1\x00\x10" + b"\xff\xda\x00\x08\x01\x01\x00" + bytes(7)
        assert work(data + bytes(1_000_000)) == plain, "behind the end"
        assert work(data + data) == plain
        assert work(data[:2] + comment * 20 + data[2:]) == plain
        assert work(data[:2] + application + data[2:]) == plain, (
            "what looks like a scan lies within a segment"
        )
        assert work(data[:2] + filled + data[4:]) == plain


def test_a_small_file_counts_what_it_declares() -> None:
    """A file of 154 bytes may hold a device as long as a photograph of megabytes."""
    small = header(5_000, 5_000) + scan(3) + END
    assert len(small) < 60
    blocks = 3 * 625 * 625
    assert work(small) == (25_000_000 * PIXEL + blocks * (BLOCK + TOUCH)) // UNIT + 1
    assert work(small) > 2_000_000
    assert string_size(32, work(*[small] * 32)) == 4 << 20


def test_each_scan_counts() -> None:
    blocks = 3 * 128 * 128
    whole = scan(1, 1, 63, 0x10)
    once = work(header(1024, 1024, progressive=True) + scan(3, 0, 0) + whole + END)
    more = work(header(1024, 1024, progressive=True) + scan(3, 0, 0) + whole * 40 + END)
    assert more - once == pytest.approx(39 * blocks // 3 * (TOUCH + REFINE * 63 // 64) / UNIT, abs=1)
    most = work(header(1024, 1024, progressive=True) + scan(3, 0, 0) + whole * 63 + END)
    assert work(header(1024, 1024, progressive=True) + scan(3, 0, 0) + whole * 5_000 + END) == most, (
        "no decoder goes on"
    )
    lacking = work(header(1024, 1024, progressive=True) + scan(3, 0, 0) + END)
    assert lacking == (1024 * 1024 * PIXEL + blocks * (BLOCK + SMOOTH + TOUCH)) // UNIT + 1
    apart = work(header(64, 64) + scan(1) + END)
    assert apart < work(header(64, 64) + scan(1) * 9 + END), (
        "an image without progression may have many scans, too"
    )
    together = work(header(64, 64) + scan(3) + END)
    assert work(header(64, 64) + scan(3) * 9 + END) == together, "but none behind one of all components"


def test_every_coding_counts() -> None:
    """Arithmetic and lossless coding take longer by far than Huffman's, whatever their bytes."""
    plain = header(512, 512) + scan(3) + END
    for frame in (0xC3, 0xC9, 0xCA, 0xCB):
        data = plain.replace(b"\xff\xc0", bytes([0xFF, frame]))
        assert work(data) > 5 * work(plain)


def test_headers_longer_than_what_is_searched_count_as_the_most() -> None:
    data = header(64, 64) + scan(3) + END
    garbage = b"\xff" + bytes(SEARCHED_MAX + 4_000)
    assert work(data[:2] + garbage + data[2:]) == UNKNOWN
    many = b"\xff\xfe\x00\x02" * (SEARCHED_MAX // 64 + 64)
    assert work(data[:2] + many + data[2:]) == UNKNOWN
    # The budget that one image takes leaves the next images their own.
    assert work(data[:2] + garbage + data[2:], data) == UNKNOWN + work(data)
    assert work(*[data] * 1000) == 1000 * work(data)


def test_scans_that_are_not_searched_count_as_the_most() -> None:
    coded = bytes(SEARCHED_MAX + 4_000)
    one = header(512, 512, progressive=True) + scan(3, 0, 0) + coded + END
    blocks = 3 * 64 * 64
    assert work(one) > (SCANS_MAX - 1) * blocks * (TOUCH + REFINE) // UNIT
    several = work(header(512, 512) + scan(3) + coded + END)
    assert several < 2 * blocks * 216 * CODED // UNIT, "an image of one scan has no more"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_image_counts_as_something(progressive: bool) -> None:
    """Cut off anywhere, or changed: the work is within bounds, and never less than its bytes if it has no
    scan."""
    data = picture(40, progressive=progressive, quality=60)
    [first, *_] = [begin for marker, begin, _ in segments(data) if marker == 0xDA]
    for end in range(len(data)):
        counted = work(data[:end])
        assert counted == end if end < first else 0 < counted <= work(data) + 40 * 40 * SMOOTH
    rng = random.Random(SEED)
    for _ in range(3_000):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(2, len(changed))] = rng.randrange(256)
        assert 0 <= work(bytes(changed)) <= UNKNOWN
