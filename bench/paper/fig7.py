"""The tightest possible SLO: six GPUs, 12 or 48 copies of ResNet50, Poisson arrivals, an SLO that grows in
steps.

The paper's ladder of SLOs is used (2.9 ms times 1.5 every 30 s, up to 100 times), then a fine ladder to find
the floor: the tightest SLO such that this and every looser SLO satisfies the workload.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from bench.paper import drawing
from bench.paper.bounds import most_served
from bench.paper.common import (
    MS,
    PAPER,
    SECOND,
    Result,
    Setting,
    Tick,
    Watch,
    class_rows,
    ladder,
    milliseconds,
    named,
    progress,
    rate_limit,
    resnets,
    run_jobs,
    share,
    v100s,
)
from clockwork.sim import Open, simulate
from clockwork.workloads import poisson, slo_steps, window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Fig. 7: tight SLOs on six GPUs"
SHOWN = (
    "sweep",
    "policy",
    "models",
    "rate",
    "floor_ms",
    "floor_95%_ms",
    "floor_99.9%_ms",
    "late",
    "missed",
    "cpu_s",
)
"""Columns of the table; the JSON has more."""
DEVICES = 6
FIRST_NS = 2_900_000
LADDER = (1.5, 100)
FINE = (1.05, 50)
"""(factor of a step, last SLO as a multiple of the first)."""

SATISFIED = 0.99
"""Part of a workload that must be in time, at an SLO and at every looser one, to satisfy the workload."""

FLOORS_MS = {600: 10.0, 1200: 22.0, 2400: 74.0}
"""The paper's floors, by rate."""


@dataclasses.dataclass(frozen=True)
class Size:
    models: tuple[int, ...]
    rates: tuple[int, ...]
    step_ns: int  # duration of each step of the ladder
    fine_step_ns: int  # duration of each step of the fine ladder; 0: no fine ladder


SIZES = {
    "tiny": Size((12,), (1200,), SECOND // 2, 0),
    "quick": Size((12, 48), (600, 1200, 2400), 5 * SECOND, 2 * SECOND),
    "full": Size((12, 48), (600, 1200, 2400), 30 * SECOND, 30 * SECOND),
}


@dataclasses.dataclass(frozen=True)
class Job:
    policy: str  # name of the policy; "": the upper bound
    models: int
    rate: int
    factor: float
    until: float
    step_ns: int
    seed: int

    @property
    def slos_ns(self) -> list[int]:
        return ladder(FIRST_NS, self.factor, round(FIRST_NS * self.until))


def work(job: Job, tick: Tick) -> dict[str, Any]:
    """A ladder of SLOs for a policy, or for the bound."""
    slos_ns = job.slos_ns
    total_ns = job.step_ns * len(slos_ns)
    arrivals = poisson([job.rate / job.models] * job.models, total_ns, seed=job.seed)
    row: dict[str, Any] = {"policy": job.policy or "bound", "models": job.models, "rate": job.rate}
    slos_ms = [slo_ns / MS for slo_ns in slos_ns]
    models = resnets(job.models)
    if not job.policy:
        satisfied: list[float | None] = []
        for index, slo_ns in enumerate(slos_ns):
            part = window(arrivals, index * job.step_ns, (index + 1) * job.step_ns).collect()
            served = most_served(part, job.models, models[0], DEVICES, slo_ns)
            fluid = DEVICES * rate_limit(models[0], slo_ns) / job.rate
            satisfied.append(min(1.0, fluid, served / len(part)) if len(part) else None)
            tick((index + 1) / len(slos_ns))
        return row | {"slo_ms": slos_ms, "satisfied": satisfied} | floors(slos_ms, satisfied)
    steps = [(index * job.step_ns, slo_ns) for index, slo_ns in enumerate(slos_ns)]
    found = simulate(
        models,
        v100s(DEVICES),
        [Open(slo_steps(arrivals, steps))],
        **named(job.policy),
        seed=job.seed,
        resident=True,
        series_ns=job.step_ns,
        on_progress=progress(tick, total_ns),
    )
    satisfied = share(*(class_rows(found.classes, len(slos_ns))[name] for name in ("good", "offered")))
    return (
        row
        | {"slo_ms": slos_ms, "satisfied": satisfied}
        | floors(slos_ms, satisfied)
        | {
            "late": int(found.models.late.sum()),
            "missed": int(found.models.missed.sum()),
            "p99_ms": [milliseconds(float(ns)) for ns in found.series["p99_ns"][: len(slos_ns)]],
            "max_ms": [milliseconds(float(ns)) for ns in found.series["max_ns"][: len(slos_ns)]],
            "digest": found.digest,
            "cpu_s": round(found.cpu_s, 3),
        }
    )


def floors(slos_ms: list[float], satisfied: list[float | None]) -> dict[str, float | None]:
    """The floor for three values of the part that must be in time; None if there is none."""

    def floor(least: float) -> float | None:
        best = None
        for slo_ms, part in zip(reversed(slos_ms), reversed(satisfied)):
            if part is None or part < least:
                break
            best = round(slo_ms, 2)
        return best

    return {"floor_ms": floor(SATISFIED), "floor_95%_ms": floor(0.95), "floor_99.9%_ms": floor(0.999)}


def run(setting: Setting, watch: Watch | None = None) -> Result:
    size = SIZES[setting.form]
    policies = setting.chosen()
    sweeps = [(LADDER, size.step_ns)]
    if size.fine_step_ns:
        sweeps.append((FINE, size.fine_step_ns))
    jobs = [
        Job(policy, models, rate, *sweep, step_ns, setting.seed)
        for (sweep, step_ns), models, rate, policy in itertools.product(
            sweeps, size.models, size.rates, (*policies, "")
        )
    ]
    rows = [
        {"sweep": "ladder" if job.factor == LADDER[0] else "fine", **row}
        for job, row in zip(jobs, run_jobs(setting, work, jobs, watch))
    ]
    facts: dict[str, Any] = {}
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        for policy in (*policies, "bound"):
            facts[f"floor in ms, {sweep}, {policy}"] = {
                f"R={row['rate']} N={row['models']}": row["floor_ms"]
                for row in rows
                if (row["sweep"], row["policy"]) == (sweep, policy)
            }
    return Result(
        "fig7", TITLE, setting,
        {
            "floor_ms by rate": FLOORS_MS,
            "source": f"{PAPER}, section 6.3 (as reading notes give it); rungs of the ladder 9.8, 22.0, 74.3 ms",
        },
        rows, facts,
    )  # fmt: skip


def draw(result: Result) -> Figure:
    rates = sorted({row["rate"] for row in result.rows})
    models = sorted({row["models"] for row in result.rows})
    figure, axes = drawing.sheet(result, len(models), len(rates), (4.2 * len(rates), 3.4 * len(models)))
    for axis, (count, rate) in zip(axes, itertools.product(models, rates)):
        for row in result.rows:
            if (row["models"], row["rate"]) != (count, rate):
                continue
            fine = row["sweep"] == "fine"
            style: dict[str, Any] = {"color": drawing.colour(row["policy"])}
            if row["policy"] == "bound":
                style = dict(drawing.BOUND)
            if not fine:
                style["label"] = row["policy"]
            points = [(x, y) for x, y in zip(row["slo_ms"], row["satisfied"]) if y is not None]
            if fine:
                style |= {"linewidth": 0.8, "alpha": 0.7}
            elif row["policy"] != "bound":
                style |= {"marker": "o", "markersize": 3, "linewidth": 1.2}
            axis.plot(*zip(*points), **style)
        if rate in FLOORS_MS:
            axis.axvline(FLOORS_MS[rate], **drawing.PAPER, label=f"paper's floor, {FLOORS_MS[rate]:g} ms")
        axis.set_xscale("log")
        axis.set_ylim(0, 1.05)
        drawing.label(axis, "SLO (ms)", "satisfied", f"R = {rate}/s, N = {count}")
        drawing.legend(axis)
    return figure
