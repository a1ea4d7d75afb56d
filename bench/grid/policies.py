"""The policies that the grid compares, and their settings. In each cell the best setting of a policy counts.

Details that published policies leave open are set in their favour, cell by cell. Our policy and edf have one
setting for all cells.
"""

from __future__ import annotations

import dataclasses

from bench.grid.bounds import batch_limit, curve
from bench.grid.cells import Cell, profiles

POLICIES = ("paper", "fifo", "edf", "deferred", "adaptive")
"""The native policies. A policy in Python, MODULE:CLASS, is measured with its default options."""
OURS = "adaptive"
OTHERS = tuple(policy for policy in POLICIES if policy != OURS)

MEMORIES = ("paper", "adaptive")
"""Memory managers: every policy runs with each, so that dispatch and loading are judged separately."""

OWN_MEMORY = ("edf",)
"""Policies that only work with their own memory manager; they are compared with both."""

PAPER_AHEAD_MS = (5.0, 10.0)
"""Delays to try, in ms: the code's default is 10, the paper's experiments had 5."""
PAPER_BATCH_CAP = 16.0

FIFO_DELAYS = (0.0, 0.1, 0.25)
"""Queue delays, as parts of the tightest SLO."""
FIFO_BATCHES = (0.33, 0.5, 0.8)
"""Execution times of the largest batch, as parts of the tightest SLO."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A policy with its options, and the memory manager ("": its own, or none where nothing is loaded)."""

    policy: str
    options: tuple[tuple[str, float], ...] = ()
    memory: str = ""

    @property
    def key(self) -> str:
        """A unique name of the setting."""
        options = ",".join(f"{name}={value:g}" for name, value in self.options)
        return "|".join((self.policy, self.memory, options))

    @staticmethod
    def of_key(key: str) -> Setting:
        policy, memory, options = key.split("|")
        pairs = [pair.split("=") for pair in options.split(",") if pair]
        return Setting(policy, tuple((name, float(value)) for name, value in pairs), memory)


def settings(policy: str, memory: str, cell: Cell) -> list[Setting]:
    if policy == "paper":
        options = [
            (("schedule_ahead_ms", ahead), ("batch_cap", PAPER_BATCH_CAP), ("early_cancel", early))
            for ahead in PAPER_AHEAD_MS
            for early in (0.0, 1.0)
        ]
        return [Setting(policy, option, memory) for option in options]
    if policy == "fifo":
        return [
            Setting(policy, (("queue_delay_ms", delay), ("batch_cap", float(cap))), memory)
            for delay in fifo_delays_ms(cell)
            for cap in fifo_caps(cell)
        ]
    return [Setting(policy, (), memory)]


def fifo_delays_ms(cell: Cell) -> list[float]:
    tightest = min(min(row) for row in cell.slos_ns())
    return [round(part * tightest / 1e6, 2) for part in FIFO_DELAYS]


def fifo_caps(cell: Cell) -> list[int]:
    """Largest batches to try, for the cell's model with the median time for a single request."""
    by_time = sorted(zip(profiles(cell), cell.slos_ns()), key=lambda pair: pair[0].exec_ns[1])
    profile, slos = by_time[len(by_time) // 2]
    times = curve(profile)
    found = {max(1, batch_limit(times, round(part * min(slos)))) for part in FIFO_BATCHES}
    return sorted(found)


def memories(policy: str, cell: Cell) -> tuple[str, ...]:
    """The memory managers that a policy is measured with in a cell."""
    return ("",) if cell.resident or policy in OWN_MEMORY else MEMORIES
