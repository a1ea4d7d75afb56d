"""How a serving device is asked for the time of an execution: until its clock has risen, and then as often as
needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clockwork.config import TRIAL_RESERVE_NS
from clockwork.config.models import TRIAL_LONG_RUNS, TRIAL_RUNS, TRIAL_WARM_RUNS
from clockwork.models.trials import _Bench

US = 1_000
MS = 1_000 * US
VARIANT: Any = SimpleNamespace(batch=1, shapes=((1, 4),))


class Card:
    """Executes a check in the first of these times, and is then timed in the others; the last goes on for
    ever."""

    def __init__(self, check_ns: int, *times_ns: int) -> None:
        self.check_ns, self.times_ns = check_ns, list(times_ns)
        self.count = 0

    def claim(self, run_starts: Sequence[int]) -> str:
        return ""

    def run(self, views: Any, expected_ns: int) -> Any:
        return SimpleNamespace(
            execute=(0, 0, self.check_ns), parts=[[SimpleNamespace(dtype=1, shape=(0,), data=b"")]]
        )

    def time(self, shapes: Any, expected_ns: int) -> int:
        self.count += 1
        return self.times_ns[min(self.count, len(self.times_ns)) - 1]


def timed(card: Card, is_checked: bool = True) -> int:
    @contextlib.contextmanager
    def reserve(expected_ns: int, runs: Sequence[int]) -> Iterator[list[int]]:
        yield [0]

    bench = _Bench(card, reserve, SimpleNamespace(runs=[1]), Path())  # type: ignore[arg-type]
    if is_checked:
        bench.run([np.zeros((1, 4), np.float32)])
    return bench.time(VARIANT)


def test_a_check_has_warmed_the_device_for_what_takes_as_long() -> None:
    card = Card(300 * US, 300 * US)
    assert timed(card) == 300 * US
    assert card.count == TRIAL_RUNS


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_device_that_raises_its_clock_is_timed_when_it_is_up(is_checked: bool) -> None:
    card = Card(900 * US, 600 * US, 500 * US, 400 * US, 300 * US)
    assert timed(card, is_checked) == 300 * US


def test_a_device_that_idled_since_its_check_is_warmed_again() -> None:
    """Otherwise the first executions, at a clock that had fallen, would count as warm, and with them those at
    which the clock rises."""
    card = Card(300 * US, *(us * US for us in range(700, 250, -50)))
    assert timed(card) == 300 * US


def test_a_device_whose_clock_never_settles_is_timed_all_the_same() -> None:
    card = Card(0, *(round(100 * MS * 0.9**turn) for turn in range(200)))
    assert timed(card, False) > 0
    assert card.count <= TRIAL_WARM_RUNS + TRIAL_RUNS


def test_long_executions_are_timed_by_few() -> None:
    card = Card(3 * TRIAL_RESERVE_NS, 3 * TRIAL_RESERVE_NS)
    assert timed(card) == 3 * TRIAL_RESERVE_NS
    assert card.count == TRIAL_LONG_RUNS
