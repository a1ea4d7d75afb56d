"""Simulated requests per CPU-second; see bench.simulator."""

from __future__ import annotations

from typing import Any

import pytest

from bench import report, simulator
from clockwork.config import POLICY


@pytest.mark.parametrize("name", simulator.cases())
def test_simulator(benchmark: Any, name: str) -> None:
    """A round of the quick form, set-up included; extra_info has the rate without it."""
    benchmark.group = "simulator"
    benchmark.extra_info.update(report.conditions(simulator.SEED))
    row = benchmark.pedantic(simulator.measure, (name, POLICY, True), rounds=1)
    benchmark.extra_info.update(row)
    assert row["bad_%"] < 60, "a cold cluster refuses at first"
