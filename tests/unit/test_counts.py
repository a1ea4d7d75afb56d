"""Counters of the exchange: buckets of durations and batch sizes."""

from __future__ import annotations

import pytest

from clockwork import config
from tests.native._tested import batch_place


def test_bounds_are_those_that_readers_of_metrics_know() -> None:
    assert list(config.METRIC_BOUNDS_NS) == sorted(config.METRIC_BOUNDS_NS)
    assert (config.METRIC_BOUNDS_NS[0], config.METRIC_BOUNDS_NS[-1]) == (50_000, 10_000_000_000)


@pytest.mark.parametrize(
    ("rows", "counted_as"),
    [(1, 1), (2, 2), (63, 63), (64, 64), (65, 128), (128, 128), (129, 256), (1000, 1024), (1024, 1024), (1 << 30, 1024)],
)  # fmt: skip
def test_batches_are_counted_by_size_and_large_ones_by_the_next_power_of_two(
    rows: int, counted_as: int
) -> None:
    assert batch_place(rows)[1] == counted_as


def test_every_size_has_a_place_and_no_two_share_one_up_to_64() -> None:
    places = [batch_place(rows)[0] for rows in range(1, 1025)]
    assert places == sorted(places)
    assert len(set(places)) == 64 + 4
