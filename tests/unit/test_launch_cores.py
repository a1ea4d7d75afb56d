"""When `clockwork up` divides the cores anew: at once for a model that waits, after a while for a gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clockwork.config.launch import (
    DIVISION_JUDGED_NS,
    DIVISION_REFUSED_NS,
    DIVISION_SETTLED_NS,
    RATE_LEAST_NS,
)
from clockwork.launch.cores import CoreDivider
from clockwork.scheduler.cores import CoreLoad, Division, choose

MS, SECOND = 1_000_000, 1_000_000_000
TIGHT = {1: 40, 2: 24, 4: 12}
NEARLY = {1: 28.0, 2: 14.5}


def row(name: str, ms: dict[int, float], slo_ms: int, requests: int = 0) -> dict[str, Any]:
    """A row of the controller's answer."""
    times = [[threads, 1, round(one * MS)] for threads, one in ms.items()]
    return {"name": name, "slo_ns": slo_ms * MS, "requests": requests, "exec_ns": times}


class Machine:
    """A divider of sixteen cores, and the time."""

    def __init__(self) -> None:
        self.plans = 0
        self.divider = CoreDivider(16, 1, self.plan)
        self.now_ns = 5 * SECOND
        self.requests = 0

    def plan(self, loads: Sequence[CoreLoad], cores: int, most_wide: int) -> Division:
        """Choose by expectation, and count how often: in earnest that takes a simulation."""
        self.plans += 1
        return choose(loads, cores, most_wide)

    def read(self, *rows: dict[str, Any], after_ns: int = SECOND) -> Division:
        self.now_ns += after_ns
        return self.divider.read({"loads": rows}, self.now_ns)

    def ask(self, rate: int, seconds: int) -> list[int]:
        """Ask a model that nearly misses its SLO so often a second. Return the seconds at which another
        division than the present one was wanted."""
        wanted = []
        for second in range(seconds):
            self.requests += rate
            if self.read(row("nearly", NEARLY, 30, self.requests)) != self.divider.present:
                wanted.append(second)
        return wanted


def test_a_model_that_no_executor_serves_changes_the_division_at_once() -> None:
    machine = Machine()
    assert machine.read(row("loose", {1: 40}, 500)) == Division(16)
    assert machine.read(row("loose", {1: 40}, 500), row("tight", TIGHT, 15)) == Division(12, 1, 4)
    machine.divider.became(Division(12, 1, 4))
    assert machine.read(row("loose", {1: 40}, 500), row("tight", TIGHT, 15)) == Division(12, 1, 4)
    # Another needs more threads: executors of eight serve both.
    more = row("tighter", {1: 90, 4: 30, 8: 14}, 15)
    assert machine.read(row("tight", TIGHT | {8: 7}, 15), more) == Division(8, 1, 8)


def test_a_model_that_no_number_of_threads_serves_changes_nothing() -> None:
    machine = Machine()
    for _ in range(100):
        assert machine.read(row("hopeless", TIGHT, 5)) == Division(16)
    assert machine.read(row("wide", {1: 90, 16: 12}, 15)) == Division(16), "one core is left to the others"


def test_a_gain_changes_the_division_once_it_has_lasted() -> None:
    machine = Machine()
    wanted = machine.ask(500, 200)
    assert wanted, "two threads would answer more"
    least_s = (RATE_LEAST_NS + DIVISION_SETTLED_NS) // SECOND
    assert least_s <= wanted[0] <= least_s + 2 * DIVISION_JUDGED_NS // SECOND
    machine = Machine()
    assert not machine.ask(500, DIVISION_SETTLED_NS // SECOND - 10)
    assert not machine.ask(1, 300), "the load has gone before the gain was taken for lasting"


def test_a_division_does_not_flap() -> None:
    machine = Machine()
    changes = []
    for second in range(40 * 60):  # the load rises and falls by a tenth every minute
        machine.requests += 500 + (50 if second // 60 % 2 else 0)
        wanted = machine.read(row("nearly", NEARLY, 30, machine.requests))
        if wanted != machine.divider.present:
            changes.append(wanted)
            machine.divider.became(wanted)
    assert len(changes) == machine.plans == 1


def test_a_division_whose_workers_did_not_start_is_not_tried_again_for_some_time() -> None:
    machine = Machine()
    tight = row("tight", TIGHT, 15)
    assert machine.read(tight) == Division(12, 1, 4)
    machine.divider.refuse(Division(12, 1, 4), machine.now_ns)
    assert machine.read(tight) == Division(16)
    assert machine.read(tight, after_ns=DIVISION_REFUSED_NS - 2 * SECOND) == Division(16)
    assert machine.read(tight, after_ns=2 * SECOND) == Division(12, 1, 4)


def test_counts_that_fall_are_no_rates_below_zero() -> None:
    machine = Machine()
    machine.requests = 1_000_000
    machine.ask(500, 30)
    machine.requests = 0  # most models of the load were removed
    assert machine.ask(0, 30) == []
