"""Measurements besides goodput: latency of an idle cluster, busy devices at low load, isolation,
ablations.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.grid import bounds, measure, policies, run
from bench.grid.arrivals import TimedArrivals
from bench.grid.cells import CELLS, Cell
from bench.grid.policies import OURS, Setting

IDLE_PART = 0.02
"""Load of a nearly idle cluster, as a part of the rough bound."""
LOW_PARTS = (0.1, 0.25)
"""Loads at which a policy may save devices, as parts of the rough bound."""
LIGHT_WARMUP_S = 2.0

HOT_PART = 1.5
"""Load of a hot model, as a multiple of the fluid bound: more than all devices can execute."""
ISOLATION_PART = 0.4
"""Initial load of all models together, as a part of the rough bound."""

SAVE_DEVICES = (("save_devices", 1.0),)
SWITCH = "off_"
"""Prefix of the options that switch a rule off."""


def rough_bound(cell: Cell, seed: int) -> float:
    """A rate near the highest possible goodput."""
    drawn = cell.draw(seed, bounds.needed_arrivals(cell, run.ROUGH_REQUESTS, 0.0))
    return bounds.rate_bound(cell, drawn, run.ROUGH_REQUESTS, 0.0, clairvoyant=True)


def first_settings(cell: Cell, chosen: Sequence[str]) -> list[Setting]:
    """Each policy's first setting (fifo's: no delay), with our memory manager."""
    found = []
    for policy in chosen:
        listed = policies.settings(policy, policies.memories(policy, cell)[-1], cell)
        # fifo may take its largest batch, because no batch waits without a delay.
        found.append(listed[len(policies.fifo_caps(cell)) - 1] if policy == "fifo" else listed[0])
    return found


def at_part(
    cell: Cell, settings: Sequence[Setting], part: float, requests: int, seed: int
) -> list[tuple[Setting, measure.Point]]:
    """A point for each setting, at a part of the rough bound."""
    rate = part * rough_bound(cell, seed)
    drawn = cell.draw(seed, run.arrivals_for(cell, requests, LIGHT_WARMUP_S, rate))
    return [
        (
            setting,
            measure.point(cell, setting, drawn, rate, seed=seed, warmup_s=LIGHT_WARMUP_S, requests=requests),
        )
        for setting in settings
    ]


def idle(cell: Cell, chosen: Sequence[str], requests: int, seed: int) -> list[dict[str, Any]]:
    """p50 and p99 of an idle cluster, by policy; our goal is fifo's, without delay, within 10 %."""
    found = at_part(cell, first_settings(cell, chosen), IDLE_PART, requests, seed)
    base = next((point.p50_ms for setting, point in found if setting.policy == "fifo"), 0.0)
    return [
        {
            "cell": cell.name,
            "policy": setting.policy,
            "p50_ms": point.p50_ms,
            "p99_ms": point.p99_ms,
            "p50 / fifo": point.p50_ms / base if base else 0.0,
            "bad_%": 100 * point.bad,
        }
        for setting, point in found
    ]


def saving(cell: Cell, chosen: Sequence[str], requests: int, seed: int) -> list[dict[str, Any]]:
    """Busy devices at low load: the mean number executing, and how many ever executed."""
    settings = first_settings(cell, chosen)
    settings += [
        dataclasses.replace(setting, options=(*setting.options, *SAVE_DEVICES))
        for setting in settings
        if setting.policy == OURS
    ]
    return [
        {
            "cell": cell.name,
            "load": part,
            "policy": setting.policy + (" saving" if setting.options[-1:] == SAVE_DEVICES else ""),
            "devices busy": point.busy * cell.devices,
            "devices used": point.devices_used,
            "batch": point.batch,
            "p50_ms": point.p50_ms,
            "bad_%": 100 * point.bad,
        }
        for part in LOW_PARTS
        for setting, point in at_part(cell, settings, part, requests, seed)
    ]


def with_hot_model(offered: TimedArrivals, hot: int, times: int) -> TimedArrivals:
    """The requests; those of a model are repeated ``times`` times."""
    repeats = np.where(offered.model == hot, times, 1)
    return TimedArrivals(
        np.repeat(offered.t_ns, repeats),
        np.repeat(offered.model, repeats),
        np.repeat(offered.group, repeats),
    )


def isolation(cell: Cell, chosen: Sequence[str], requests: int, seed: int) -> list[dict[str, Any]]:
    """The bad part of other models while the last model floods the cell, and without the flood."""
    if cell.models < 2:
        raise ValueError(f"{cell.name} has one model: whom should it disturb?")
    rate = ISOLATION_PART * rough_bound(cell, seed)
    until_s = LIGHT_WARMUP_S + cell.window_s(rate, requests)
    drawn = cell.draw(seed, run.arrivals_for(cell, requests, LIGHT_WARMUP_S, rate))
    offered = drawn.at(rate, until_s)
    hot = cell.models - 1
    times = math.ceil(HOT_PART * bounds.fluid_rate(cell) / (rate * cell.shares()[hot]))
    disturbed = with_hot_model(offered, hot, times)
    rows = []
    for setting in first_settings(cell, chosen):
        parts = []
        for requests_at in (offered, disturbed):
            report = measure.run(
                cell, setting, requests_at, seed=seed, warmup_s=LIGHT_WARMUP_S, until_s=until_s
            )
            others = np.arange(cell.models) != hot
            among, bad = report.models.offered[others].sum(), report.models.bad[others].sum()
            parts.append(100 * float(bad) / max(float(among), 1.0))
        rows.append(
            {
                "cell": cell.name,
                "policy": setting.policy,
                "others bad_%, quiet": parts[0],
                "others bad_%, hot model": parts[1],
            }
        )
    return rows


def switches(policy: str, memory: str) -> list[str]:
    """The options of a policy that each switch a rule off.

    The options are read from the policy's error on an unknown option, which names all options.
    """
    cell = CELLS["d1-m1-tight-low"]
    unknown = Setting(policy, (("?", 1.0),), memory)
    try:
        measure.run(cell, unknown, cell.draw(0, 2000).at(1000.0, 1.0), seed=0, warmup_s=0.0, until_s=1.0)
    except ValueError as error:
        return sorted(set(re.findall(rf"\b{SWITCH}\w+", str(error))))
    raise AssertionError(f"policy {policy} took an option that does not exist")


def ablation(cell: Cell, plan: run.Plan) -> list[dict[str, Any]]:
    """The goodput with each rule switched off, relative to that with all rules."""
    memory = policies.memories(OURS, cell)[-1]
    prepared = run.prepare(run.Task("prepare", cell, plan))
    rows: list[dict[str, Any]] = []
    for name in ("", *switches(OURS, memory)):
        setting = Setting(OURS, ((name, 1.0),) if name else (), memory)
        goodputs = [
            run.found_goodput(
                run.Task(
                    "measure",
                    cell,
                    plan,
                    setting,
                    seed,
                    prepared["warmup_s"],
                    prepared["rough_bound"],
                    rows[0]["goodput"] if rows else 0.0,
                ),
                overloads=(),
            )["goodput"]
            for seed in plan.reported
        ]
        mean = sum(goodputs) / len(goodputs)
        base = rows[0]["goodput"] if rows else mean
        rows.append(
            {
                "cell": cell.name,
                "switched off": name or "nothing",
                "goodput": mean,
                "to all rules": mean / base if base else 0.0,
            }
        )
    return rows
