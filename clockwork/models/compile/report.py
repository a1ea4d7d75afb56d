"""Estimate the cost of each launch of a variant without running the variant."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from clockwork.formats.program import Variant
from clockwork.models.compile.variant import Statistic


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """Data-sheet figures of a GPU."""

    name: str
    memory: float  # memory bandwidth, bytes a second
    fp32: float  # operations a second, without tensor cores
    fp16: float  # operations a second of dense matrix products on tensor cores
    tf32: float = 0.0  # tensor-core operations a second for TF32; 0 where the card has no such units


CARDS: Mapping[str, Card] = {
    "sm_70": Card("V100", 900e9, 15.7e12, 125e12),
    "sm_75": Card("T4", 320e9, 8.1e12, 65e12),
    "sm_80": Card("A100 80GB", 2039e9, 19.5e12, 312e12, 156e12),
    "sm_86": Card("A10", 600e9, 31.2e12, 125e12, 62.5e12),
    "sm_89": Card("L40S", 864e9, 91.6e12, 362e12, 183e12),
    "sm_90": Card("H100 SXM", 3350e9, 66.9e12, 989e12, 494e12),
    "sm_100": Card("B200", 8000e9, 75e12, 2250e12, 1100e12),
}
"""Data-sheet figures of a GPU of each architecture."""


@dataclasses.dataclass(frozen=True, slots=True)
class Resources:
    """The resources that the assembler allocated to a kernel."""

    registers: int  # registers of each thread
    shared: int  # bytes of static shared memory of a block
    spilled: int  # bytes stored and loaded for lack of registers


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_log(log: str) -> dict[str, Resources]:
    """The resources of each kernel, from the log of ``--ptxas-options=-v``."""
    found: dict[str, Resources] = {}
    name, spilled = "", 0
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, spilled = entry[1], 0
        elif spills := _SPILLS.search(line):
            spilled = int(spills[1]) + int(spills[2])
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            found[name] = Resources(int(used[1]), int(shared[1]) if shared else 0, spilled)
    return found


def bound_ns(card: Card, statistic: Statistic) -> tuple[float, str]:
    """A lower bound of a launch's time on a GPU, and its bottleneck."""
    memory = statistic.bytes / card.memory * 1e9
    rates = {"": card.fp32, "f16": card.fp16, "tf32": card.tf32}
    compute = statistic.operations / rates[statistic.tensor_cores] * 1e9
    return (memory, "memory") if memory >= compute else (compute, "arithmetic")


def rows_of(variant: Variant, statistics: Sequence[Statistic], log: str) -> tuple[list[str], list[list[str]]]:
    """Return a table as its titles, a row for each launch, and a row of sums."""
    card = CARDS.get(variant.target.rstrip("af"))
    resources = parse_log(log)
    titles = ["kernel", "grid", "block", "registers", "spilled", "shared", "KiB", "MFLOP"]
    if card is not None:
        titles.append(f"least, {card.name}")
    rows, total = [], 0.0
    for launch, statistic in zip(variant.launches, statistics, strict=True):
        has = resources.get(launch.kernel)
        row = [
            launch.kernel + (" *" if statistic.tensor_cores else ""),
            "x".join(map(str, launch.grid)),
            "x".join(map(str, launch.block)),
            *((str(has.registers), str(has.spilled), str(has.shared)) if has else ("-", "-", "-")),
            f"{statistic.bytes / 1024:.1f}",
            f"{statistic.operations / 1e6:.3f}",
        ]
        if card is not None:
            least, why = bound_ns(card, statistic)
            total += least
            row.append(f"{least / 1e3:.2f} us, {why}")
        rows.append(row)
    last = [
        f"all {len(rows)}", "", "", "", str(sum(resource.spilled for resource in resources.values())), "",
        f"{sum(statistic.bytes for statistic in statistics) / 1024:.1f}",
        f"{sum(statistic.operations for statistic in statistics) / 1e6:.3f}",
    ]  # fmt: skip
    rows.append([*last, f"{total / 1e3:.2f} us"] if card is not None else last)
    return titles, rows
