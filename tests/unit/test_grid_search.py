"""How the grid finds a goodput and compares two, without a simulator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from bench.grid import search, statistics


def server(limit: float, fails_below: float = 0.0) -> tuple[Callable[[float], bool], list[float]]:
    asked: list[float] = []

    def passes(rate: float) -> bool:
        assert rate not in asked, "a rate was measured twice"
        asked.append(rate)
        return fails_below <= rate <= limit

    return passes, asked


@pytest.mark.parametrize("limit", [3.0, 150.0, 555.0, 999.0, 1500.0])
@pytest.mark.parametrize("guess", [0.0, 0.5, 0.99, 1.01, 3.0])
def test_the_search_ends_just_below_the_limit(limit: float, guess: float) -> None:
    passes, asked = server(limit)
    found = search.goodput(passes, 1000.0, guess * limit, 1.005)
    assert limit / 1.005 <= found <= limit
    assert found in asked
    assert not [rate for rate in asked if rate <= found and rate > limit]


def test_a_good_guess_saves_runs() -> None:
    unknown, known = server(800.0), server(800.0)
    search.goodput(unknown[0], 1000.0, 0.0, 1.005)
    search.goodput(known[0], 1000.0, 790.0, 1.005)
    assert len(known[1]) <= 6 < len(unknown[1])


def test_failing_at_a_low_rate_is_found_out_whatever_happens_above() -> None:
    """Good from 300 to 800, bad below: the goodput must hold at all lower rates tried, so there is none."""
    passes, _ = server(800.0, fails_below=300.0)
    assert search.goodput(passes, 1000.0, 0.0, 1.005) == 0.0


def test_who_serves_nothing_has_a_goodput_of_nothing() -> None:
    passes, asked = server(0.0)
    assert search.goodput(passes, 1000.0, 0.0, 1.005) == 0.0
    assert search.goodput(passes, 0.0, 0.0, 1.005) == 0.0
    assert len(asked) < 20


def test_a_paired_interval_sees_what_an_unpaired_one_would_not() -> None:
    """Seeds differ by half, the two policies by 5 %, on every seed."""
    theirs = [100.0, 150.0, 80.0, 120.0]
    mean, low, high = statistics.paired_ratio([1.05 * one for one in theirs], theirs)
    assert (mean, low, high) == pytest.approx((1.05, 1.05, 1.05))
    mean, low, high = statistics.paired_ratio([110.0, 90.0], [100.0, 100.0])
    assert low < 0.5
    assert high > 2.0
    assert statistics.paired_ratio([2.0], [1.0]) == (pytest.approx(2.0), 0.0, math.inf)


def test_the_interval_is_students() -> None:
    """Logarithms 0, 0.1, 0.2: mean 0.1, deviation 0.1, t(2) = 4.303."""
    ratios = [math.exp(one) for one in (0.0, 0.1, 0.2)]
    _, low, high = statistics.paired_ratio(ratios, [1.0, 1.0, 1.0])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert (low, high) == pytest.approx((math.exp(0.1 - half), math.exp(0.1 + half)))
