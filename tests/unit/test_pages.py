"""The page allocator: lowest pages first, no page lost, no page given twice."""

from __future__ import annotations

import random

import pytest

from clockwork.scheduler._core import PageAllocator


def test_runs_lie_at_the_lowest_pages_the_longest_first() -> None:
    pages = PageAllocator(10)
    assert pages.allocate((1, 4, 2)) == (6, 0, 4)
    assert pages.free_count == 3
    assert pages.intervals() == [(7, 3)]


def test_what_does_not_fit_takes_nothing() -> None:
    pages = PageAllocator(6)
    first = pages.allocate((2,))
    second = pages.allocate((2,))
    assert first == (0,)
    assert second == (2,)
    pages.free(first, (2,))
    assert pages.free_count == 4
    assert pages.allocate((3,)) is None, "four pages are free, but never three in a row"
    assert pages.allocate((2, 2)) == (0, 4)
    assert pages.allocate((1,)) is None


def test_fits_is_about_the_empty_arena() -> None:
    pages = PageAllocator(4)
    pages.allocate((4,))
    assert pages.fits((3, 1))
    assert not pages.fits((3, 2))
    assert PageAllocator(0).fits(())
    assert PageAllocator(0).allocate(()) == ()


def test_neighbours_join_whatever_the_order_of_freeing() -> None:
    for order in ([0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 2]):
        pages = PageAllocator(6)
        runs = [pages.allocate((2,)) for _ in range(3)]
        for index in order:
            pages.free(runs[index] or (), (2,))
        assert pages.intervals() == [(0, 6)]


@pytest.mark.parametrize(("start", "size"), [(0, 1), (3, 2), (-1, 1), (9, 2), (4, 0)])
def test_freeing_what_is_free_or_does_not_exist_is_refused(start: int, size: int) -> None:
    pages = PageAllocator(10)
    pages.allocate((10,))
    pages.free((0, 2), (1, 3))
    with pytest.raises(ValueError, match="not all in use"):
        pages.free((start,), (size,))


def test_take_is_the_inverse_of_free() -> None:
    pages = PageAllocator(8)
    pages.take((2, 6), (3, 1))
    assert pages.intervals() == [(0, 2), (5, 1), (7, 1)]
    with pytest.raises(ValueError, match="not free"):
        pages.take((4,), (2,))
    pages.free((2, 6), (3, 1))
    assert pages.intervals() == [(0, 8)]


def test_a_copy_is_independent() -> None:
    pages = PageAllocator(4)
    other = pages.copy()
    other.allocate((4,))
    assert pages.free_count == 4
    assert pages.allocate((4,)) == (0,)


def first_fit(intervals: list[tuple[int, int]], runs: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the first page of each run: the longest run first, at the lowest page that fits."""
    free, starts = [[start, size] for start, size in intervals], [0] * len(runs)
    for index in sorted(range(len(runs)), key=lambda index: -runs[index]):
        found = next((interval for interval in free if interval[1] >= runs[index]), None)
        if found is None:
            return None
        starts[index] = found[0]
        found[0] += runs[index]
        found[1] -= runs[index]
    return tuple(starts)


@pytest.mark.parametrize("seed", range(50))
def test_random_use_keeps_every_page_once(seed: int) -> None:
    rng = random.Random(seed)
    pages = PageAllocator(rng.randint(1, 64))
    held: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for _ in range(200):
        if held and rng.random() < 0.45:
            pages.free(*held.pop(rng.randrange(len(held))))
        else:
            runs = tuple(rng.randint(1, 5) for _ in range(rng.randint(1, 4)))
            before = pages.intervals()
            starts = pages.allocate(runs)
            assert starts == first_fit(before, runs)
            if starts is None:
                assert pages.intervals() == before
            else:
                held.append((starts, runs))
        pages.check_invariants()
        used = [
            p for starts, runs in held for s, n in zip(starts, runs, strict=True) for p in range(s, s + n)
        ]
        assert len(used) == len(set(used)) == pages.page_count - pages.free_count
    for starts, runs in held:
        pages.free(starts, runs)
    assert pages.intervals() == [(0, pages.page_count)]
