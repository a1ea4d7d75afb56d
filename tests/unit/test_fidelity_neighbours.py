"""Executions beside each other, as bench.fidelity finds them in a recording."""

from __future__ import annotations

import pytest

from bench.fidelity import Action, machine_of, slowdown_of, with_neighbours
from clockwork.formats.profiles import ModelProfile

MS = 1_000_000
KNOWN = {"m": ModelProfile("m", {1: 10 * MS}, 0, MS)}


def execution(device: int, begin_ms: float, took_ms: float) -> Action:
    begin, took = round(begin_ms * MS), round(took_ms * MS)
    return Action("m", 1, 0, begin - MS, begin, begin + took, took, begin + took + MS, device)


def test_neighbours_and_their_slowdown_are_found() -> None:
    pairs = [execution(device, 100 * place, 14) for place in range(20) for device in (0, 1)]
    alone = [execution(place % 2, 2000 + 100 * place, 10) for place in range(20)]
    actions = with_neighbours(pairs + alone)
    assert [action.beside for action in actions] == [1.0] * 40 + [0.0] * 20
    assert slowdown_of(actions, KNOWN) == pytest.approx(1.4, rel=0.01)
    assert machine_of(actions, KNOWN, 1.4).ratio == {"m": pytest.approx(1.0)}


def test_a_part_of_an_execution_beside_another_counts_as_a_part() -> None:
    first, second = with_neighbours([execution(0, 0, 10), execution(1, 5, 20)])
    assert (first.beside, second.beside) == (0.5, 0.25)


def test_an_executor_alone_has_no_neighbours() -> None:
    actions = with_neighbours([execution(0, 20 * place, 14) for place in range(20)])
    assert {action.beside for action in actions} == {0.0}
    assert slowdown_of(actions, KNOWN) == 1.0
    assert machine_of(actions, KNOWN).ratio == {"m": pytest.approx(1.4)}
