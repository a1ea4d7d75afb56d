"""Seals and checksums: sealed data is read back, and damaged data is never accepted."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from clockwork.config.formats import CHECK_PIECE_BYTES, DAMAGED_KEPT_MAX
from clockwork.formats.checksums import (
    ASIDE,
    Pace,
    find_damage,
    pieces_of,
    read_plain,
    seal,
    set_aside,
    sums_of,
    sums_of_bytes,
    unseal,
)

BODY = {"name": "m", "files": [["model.onnx", 704, "ab" * 32]], "nothing": None, "text": 'a "seal": "in it"}'}


def test_a_sealed_object_is_json_and_comes_back() -> None:
    data = seal(BODY)
    assert unseal(data) == (BODY, True)
    assert json.loads(data) | BODY == json.loads(data)  # a reader that ignores seals can read it, too
    assert unseal(json.dumps(BODY).encode()) == (BODY, False)


@pytest.mark.slow
def test_every_single_bit_is_found() -> None:
    data = seal(BODY)
    for bit in range(8 * len(data)):
        rotten = bytearray(data)
        rotten[bit // 8] ^= 1 << bit % 8
        try:
            body, is_sealed = unseal(bytes(rotten))
        except ValueError:
            pass
        else:  # the seal itself is damaged, and the sealed data is intact
            assert not is_sealed
            assert {key: value for key, value in body.items() if key in BODY} == BODY


@pytest.mark.parametrize("seed", range(30))
def test_more_than_one_bit_is_found(seed: int) -> None:
    rng = random.Random(seed)
    data = seal(BODY)
    rotten = bytearray(data)
    for bit in rng.sample(range(8 * (len(data) - 30)), rng.randrange(2, 9)):
        rotten[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="checksum"):
        unseal(bytes(rotten))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b"null", seal(BODY)[:-1], seal(BODY)[30:]]
)
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expect|decode|nested|checksum|Extra"):
        unseal(data)


def test_a_link_and_what_is_too_long_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert read_plain(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_plain(tmp_path / "file", 4)
    with pytest.raises(OSError, match="symbolic"):
        read_plain(tmp_path / "link")
    assert read_plain(tmp_path / "pipe") == b""  # the reader does not wait for a writer


def test_bytes_that_nobody_reads_soon_leave_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * CHECK_PIECE_BYTES + 5
    (tmp_path / "file").write_bytes(os.urandom(size))
    left: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *rest: left.append(rest))
    assert sum(len(piece) for piece in pieces_of(tmp_path / "file")) == size
    assert left == []
    assert sum(len(piece) for piece in pieces_of(tmp_path / "file", Pace(keeps_cached=False))) == size
    assert sum(length for _, length, _ in left) == size
    assert {advice for *_, advice in left} == {os.POSIX_FADV_DONTNEED}


def test_damage_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(os.urandom(3 << 20))
    (tmp_path / "left out").write_bytes(b"")
    found = sums_of(tmp_path, but=["left out"])
    assert found == {name: sums_of_bytes((tmp_path / name).read_bytes()) for name in ("a", "b")}
    sums = {name: sums.crc32 for name, sums in found.items()}
    assert find_damage(tmp_path, sums) == ""
    assert find_damage(tmp_path, sums, Pace(busy_share=0.5)) == ""
    data = bytearray((tmp_path / "b").read_bytes())
    data[-1] ^= 1
    (tmp_path / "b").write_bytes(data)
    assert find_damage(tmp_path, sums).startswith("b is damaged: its checksum is ")
    (tmp_path / "a").unlink()
    assert find_damage(tmp_path, sums) == "a cannot be read: No such file or directory"


def test_of_what_is_set_aside_the_newest_few_are_kept(tmp_path: Path) -> None:
    for number in range(DAMAGED_KEPT_MAX + 3):
        place = tmp_path / "place"
        if number % 2:
            place.write_text(str(number))
        else:
            place.mkdir()
            (place / "inner").write_text(str(number))
        aside = set_aside(place)
        assert aside is not None
        assert not place.exists()
    kept = sorted(path for path in tmp_path.iterdir() if path.name.startswith(ASIDE))
    assert len(kept) == len(list(tmp_path.iterdir())) == DAMAGED_KEPT_MAX
    numbers = [(path if path.is_file() else path / "inner").read_text() for path in kept]
    assert numbers == [str(number) for number in range(3, DAMAGED_KEPT_MAX + 3)]
    assert set_aside(tmp_path / "place") is None
