"""How a controller divides its descriptors."""

from __future__ import annotations

import pytest

from clockwork.config import CLIENTS_MAX, SUBSCRIBERS_MAX, WORKERS_MAX
from clockwork.config.controller import DESCRIPTORS_KEPT
from clockwork.controller.peers.seats import SeatCounts, divide
from clockwork.errors import ConfigError


def test_with_many_descriptors_the_bounds_are_the_usual_ones() -> None:
    assert divide(1 << 20, 40) == SeatCounts(CLIENTS_MAX, 4_096, WORKERS_MAX, 4_096, SUBSCRIBERS_MAX)


@pytest.mark.parametrize("limit", [190, 256, 1_024, 20_000])
def test_all_seats_together_leave_descriptors_for_files(limit: int) -> None:
    seats = divide(limit, 40)
    assert sum(seats) <= limit - 40 - DESCRIPTORS_KEPT
    assert min(seats) >= 4


def test_too_few_descriptors_are_an_error_at_the_start() -> None:
    with pytest.raises(
        ConfigError, match=r"may open 128 files and sockets, of which 40 are in use.*ulimit -n"
    ):
        divide(128, 40)
