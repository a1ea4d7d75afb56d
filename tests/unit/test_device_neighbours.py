"""How much the executors of an arena slow each other: a measurement within bounds, on any machine."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from clockwork import config
from clockwork.config import device as bounds
from clockwork.device import neighbours
from clockwork.device.machine import ArenaPlace
from clockwork.device.neighbours import measure_slowdown


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SLOWDOWN_SPAN_NS", 1_000_000)
    monkeypatch.setattr(bounds, "SLOWDOWN_BYTES", 1 << 20)


def test_an_executor_alone_is_not_slowed_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_times", None)
    assert measure_slowdown(ArenaPlace(1)) == 1


@pytest.mark.parametrize("executors", [2, 5])
def test_executors_are_at_most_as_slow_as_if_they_took_turns(executors: int) -> None:
    assert 1 <= measure_slowdown(ArenaPlace(executors)) <= executors


def test_the_threads_of_the_measurement_run_where_the_executors_will(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = os.sched_getaffinity(0)
    found: list[set[int]] = []
    negative = np.negative

    def work(given: Any, out: Any) -> Any:
        found.append(os.sched_getaffinity(0))
        return negative(given, out=out)

    monkeypatch.setattr(np, "negative", work)
    measure_slowdown(ArenaPlace(2, pins=(min(usable), max(usable))))
    assert {frozenset(place) for place in found} == {frozenset({min(usable)}), frozenset({max(usable)})}
    assert os.sched_getaffinity(0) == usable


@pytest.mark.parametrize(
    ("alone", "beside", "executors", "most"),
    [(100.0, 150.0, 2, 1.5), (100.0, 50.0, 2, 1.0), (100.0, 900.0, 2, 2.0), (1.0, 1e9, 256, 64.0)],
)
def test_the_ratio_is_kept_within_its_bounds(
    monkeypatch: pytest.MonkeyPatch, alone: float, beside: float, executors: int, most: float
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(executors)))
    monkeypatch.setattr(
        neighbours,
        "_times",
        lambda works, _: [alone if len(works) == 1 else beside] * len(works),
    )
    assert measure_slowdown(ArenaPlace(executors)) == most
    assert most <= config.SLOWDOWN_THOUSANDTHS_MAX / 1000


def test_executors_without_a_processor_each_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_times", lambda works, _: [100.0] * len(works))
    assert measure_slowdown(ArenaPlace(6, processors=frozenset({0, 1}))) == 3
