"""Which pages of a device's arena are free. The controller decides it, so that a load it orders always fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class PageAllocator:
    """Free pages as sorted intervals; the same calls always give the same pages.

    A model's weights are several runs of pages; each run is contiguous, the runs lie anywhere.
    """

    __slots__ = ("_sizes", "_starts", "free_count", "page_count")

    def __init__(self, page_count: int) -> None:
        if page_count < 0:
            raise ValueError(f"an arena of {page_count} pages")
        self.page_count = page_count
        self.free_count = page_count
        self._starts: list[int] = [0] if page_count else []
        self._sizes: list[int] = [page_count] if page_count else []

    def copy(self) -> PageAllocator:
        """Another arena in the same state, to try things on."""
        other = PageAllocator(0)
        other.page_count, other.free_count = self.page_count, self.free_count
        other._starts, other._sizes = self._starts.copy(), self._sizes.copy()
        return other

    def fits(self, runs: Sequence[int]) -> bool:
        """Whether these runs would fit if nothing else were there."""
        return sum(runs) <= self.page_count

    def allocate(self, runs: Sequence[int]) -> tuple[int, ...] | None:
        """The first page of each run, in the order of ``runs``; None, and nothing taken, if they do not fit now.

        First fit at the lowest page, longest runs first: they are the ones that fragmentation shuts out.
        """
        total = sum(runs)
        if total > self.free_count:
            return None
        starts, sizes = self._starts.copy(), self._sizes.copy()
        result = [0] * len(runs)
        place, last = 0, 0
        for index in sorted(range(len(runs)), key=lambda one: -runs[one]):
            size = runs[index]
            if size <= 0:
                raise ValueError(f"a run of {size} pages")
            if size != last:  # intervals too short for one run are too short for the next of its length
                place, last = 0, size
            while place < len(starts) and sizes[place] < size:
                place += 1
            if place == len(starts):
                return None
            result[index] = starts[place]
            if sizes[place] == size:
                del starts[place], sizes[place]
            else:
                starts[place] += size
                sizes[place] -= size
        self._starts, self._sizes = starts, sizes
        self.free_count -= total
        return tuple(result)

    def free(self, starts: Sequence[int], runs: Sequence[int]) -> None:
        """Give back what allocate() gave. Raises ValueError for pages that are free already or do not exist."""
        for start, size in zip(starts, runs, strict=True):
            self._free_run(start, size)

    def take(self, starts: Sequence[int], runs: Sequence[int]) -> None:
        """Take exactly these free pages again: the inverse of free()."""
        for start, size in zip(starts, runs, strict=True):
            place = bisect_left(self._starts, start + 1) - 1
            if place < 0 or start + size > self._starts[place] + self._sizes[place]:
                raise ValueError(f"pages [{start}, {start + size}) are not free")
            first, end = self._starts[place], self._starts[place] + self._sizes[place]
            pieces = [(a, b - a) for a, b in ((first, start), (start + size, end)) if b > a]
            self._starts[place : place + 1] = [a for a, _ in pieces]
            self._sizes[place : place + 1] = [n for _, n in pieces]
            self.free_count -= size

    def _free_run(self, start: int, size: int) -> None:
        starts, sizes = self._starts, self._sizes
        place = bisect_left(starts, start)
        if (
            start < 0
            or size <= 0
            or start + size > self.page_count
            or (place < len(starts) and start + size > starts[place])
            or (place > 0 and starts[place - 1] + sizes[place - 1] > start)
        ):
            raise ValueError(f"pages [{start}, {start + size}) of {self.page_count} are not all in use")
        joins_next = place < len(starts) and start + size == starts[place]
        joins_last = place > 0 and starts[place - 1] + sizes[place - 1] == start
        if joins_last and joins_next:
            sizes[place - 1] += size + sizes[place]
            del starts[place], sizes[place]
        elif joins_last:
            sizes[place - 1] += size
        elif joins_next:
            starts[place] = start
            sizes[place] += size
        else:
            starts.insert(place, start)
            sizes.insert(place, size)
        self.free_count += size

    def intervals(self) -> list[tuple[int, int]]:
        """Free intervals as (first page, page count), lowest first."""
        return list(zip(self._starts, self._sizes))

    def check_invariants(self) -> None:
        assert sum(self._sizes) == self.free_count
        end = -1
        for start, size in zip(self._starts, self._sizes):
            assert size > 0, "an empty interval"
            assert start > end, "intervals overlap or were not joined"
            end = start + size
        assert end <= self.page_count
