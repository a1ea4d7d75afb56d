"""Placing weights in pages."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from clockwork.models.layout import ALIGNMENT_BYTES, lay_out, write_weights


def check(sizes: list[int], page_bytes: int) -> int:
    """Check every rule of a layout; return the pages it takes."""
    layout = lay_out(sizes, page_bytes)
    taken: dict[int, list[tuple[int, int]]] = {}
    for size, (run, offset) in zip(sizes, layout.places, strict=True):
        assert offset % ALIGNMENT_BYTES == 0
        assert offset + size <= layout.runs[run] * page_bytes
        if size <= page_bytes:
            assert offset // page_bytes == (offset + size - 1) // page_bytes, "straddles a page"
        else:
            assert offset == 0, "a large tensor begins a run"
        taken.setdefault(run, []).append((offset, offset + size))
    for spans in taken.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans)), "tensors overlap"
    assert sorted(taken) == list(range(len(layout.runs))), "an empty run"
    return sum(layout.runs)


def test_random_sizes_obey_every_rule() -> None:
    rng = random.Random(7)
    for _ in range(200):
        page_bytes = rng.choice([4096, 65536])
        sizes = [rng.choice([1, 4, 63, 64, 65, 256, 4096, 4097, 70_000, rng.randrange(1, 200_000)])
                 for _ in range(rng.randrange(1, 60))]  # fmt: skip
        check(sizes, page_bytes)


def test_small_tensors_are_packed_densely_and_fill_the_tails_of_large_ones() -> None:
    assert check([256] * 64, 16384) == 1
    # 2.5 pages, and the rest of the third page holds the small weights.
    assert check([16384 * 2 + 8192, *[256] * 32], 16384) == 3


def test_the_layout_depends_on_sizes_alone() -> None:
    sizes = [100, 5000, 100, 20_000, 64]
    assert lay_out(sizes, 4096) == lay_out(list(sizes), 4096)


@pytest.mark.slow
def test_many_tensors_take_no_quadratic_time() -> None:
    assert check([3000] * 20_000, 4096) == 20_000


def test_page_size_must_be_aligned() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        lay_out([1], 100)


def test_weights_file_holds_runs_one_after_another(tmp_path: Path) -> None:
    tensors = [bytes([index]) * size for index, size in enumerate([5000, 100, 4096, 300], start=1)]
    layout = lay_out([len(one) for one in tensors], 4096)
    write_weights(tmp_path / "weights.bin", layout, tensors, 4096)
    data = (tmp_path / "weights.bin").read_bytes()
    assert len(data) == sum(layout.runs) * 4096
    for tensor, (run, offset) in zip(tensors, layout.places, strict=True):
        start = sum(layout.runs[:run]) * 4096 + offset
        assert data[start : start + len(tensor)] == tensor
