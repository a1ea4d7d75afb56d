"""How many devices can one controller drive? The trace on ever more emulated workers.

Here the scheduler alone, in the simulator: processor time of each request, and what rate one core could decide at
that price. With real sockets see `python -m bench.emulated`; live_points() takes its report.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.paper import drawing
from bench.paper.common import (
    ARTIFACT,
    MS,
    PAPER,
    SECOND,
    Form,
    Result,
    Setting,
    Tick,
    Watch,
    named,
    progress,
    run_jobs,
    summary,
    v100s,
)
from clockwork.profiles import paper_instances
from clockwork.sim import Open, simulate
from clockwork.sim.workloads import replay, synthetic_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Fig. 11: one controller and many emulated workers"
SHOWN = (
    "policy",
    "devices",
    "rate",
    "goodput/s",
    "bad_%",
    "mean_batch",
    "scheduler_us",
    "simulation_us",
    "one_core_decides/s",
)
"""Columns of the table; the JSON has more."""
SLO_NS = 100 * MS
DEVICE_RATE = 700.0
"""Requests/s of each device: most of what a V100 does with the hot functions on small models."""

WARMUP_NS = SECOND // 2
SHORTEST_NS = SECOND // 2
FUNCTIONS = 16_104
"""Of the made-up trace: four for each model."""

PAPER_PEAK = 103_387
PAPER_WORKERS = 110
PAPER_CORES = 18


@dataclasses.dataclass(frozen=True)
class Size:
    devices: tuple[int, ...]
    requests: int  # at each number of devices
    functions: int = FUNCTIONS
    models: int = 4026


SIZES = {
    "tiny": Size((4, 8), 2_000, 400, 100),
    "quick": Size((10, 50, 110, 150, 400, 1000), 100_000),
    "full": Size((10, 20, 30, 50, 70, 90, 110, 130, 150, 200, 300, 500, 700, 1000), 4_000_000),
}


@dataclasses.dataclass(frozen=True)
class Job:
    policy: str
    devices: int
    form: Form
    seed: int


def work(job: Job, tick: Tick) -> dict[str, Any]:
    """One policy on one number of devices."""
    size = SIZES[job.form]
    models = paper_instances()[: size.models]
    rate = DEVICE_RATE * job.devices
    total_ns = WARMUP_NS + max(SHORTEST_NS, int(size.requests / rate * SECOND))
    trace = synthetic_trace(size.functions, seed=job.seed)
    found = simulate(
        models,
        v100s(job.devices, input_bandwidth=0, copy_bandwidth=0),
        [Open(replay(trace, len(models), total_ns, rate=rate, seed=job.seed, slo_ns=SLO_NS))],
        **named(job.policy),
        seed=job.seed,
        warmup_ns=WARMUP_NS,
        resident=True,
        timed=True,
        on_progress=progress(tick, total_ns),
    )
    scheduler_us = 1e6 * found.scheduler_s / found.requests
    return {
        "policy": job.policy,
        "devices": job.devices,
        "rate": rate,
        **summary(found),
        "scheduler_us": round(scheduler_us, 3),
        "simulation_us": round(1e6 * found.cpu_s / found.requests, 3),
        "one_core_decides/s": round(1e6 / scheduler_us) if scheduler_us else None,
    }


def run(setting: Setting, watch: Watch | None = None) -> Result:
    size = SIZES[setting.form]
    jobs = [
        Job(policy, devices, setting.form, setting.seed)
        for policy, devices in itertools.product(setting.chosen(), size.devices)
    ]
    return Result(
        "fig11", TITLE, setting,
        {
            "peak, requests/s": PAPER_PEAK,
            "workers at the peak": PAPER_WORKERS,
            "cores of its controller": PAPER_CORES,
            "source": f"{PAPER}, section 6.6 (as reading notes give it); cores: the original's documentation in "
            f"{ARTIFACT}",
        },
        run_jobs(setting, work, jobs, watch),
        {
            "offered, requests/s of each device": DEVICE_RATE,
            "scheduler_us": "processor time inside the scheduler for each request, clocks of its timing included",
            "real sockets": "python -m bench.emulated --json",
        },
    )  # fmt: skip


def live_points(path: Path) -> list[tuple[str, float]]:
    """(input size, requests/s of one core of the controller) from a report of `python -m bench.emulated --json`."""
    rows = json.loads(path.read_text(encoding="utf-8")).get("rows", [])
    return [(f"{row['input_bytes']} bytes", float(row["requests/cpu-s"])) for row in rows]


def draw(result: Result) -> Figure:
    figure, axes = drawing.sheet(result, 1, 2, (11, 4))
    for policy in result.setting.chosen():
        own = [row for row in result.rows if row["policy"] == policy]
        devices = [row["devices"] for row in own]
        style: dict[str, Any] = {"color": drawing.colour(policy), "marker": "o", "markersize": 3}
        axes[0].plot(
            devices, [row["goodput/s"] for row in own], **style, label=f"{policy}, simulated devices"
        )
        axes[0].plot(
            devices, [row["one_core_decides/s"] for row in own],
            color=drawing.colour(policy), linewidth=0.8, linestyle="-.", label=f"{policy}, what one core decides",
        )  # fmt: skip
        axes[1].plot(devices, [row["scheduler_us"] for row in own], **style, label=policy)
    rates = {row["devices"]: row["rate"] for row in result.rows}
    axes[0].plot(list(rates), list(rates.values()), **drawing.BOUND, label="offered")
    axes[0].plot(
        [PAPER_WORKERS], [PAPER_PEAK],
        color="0.3", marker="*", linestyle="", label=f"paper's peak ({PAPER_CORES} cores)",
    )  # fmt: skip
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[1].set_xscale("log")
    axes[1].set_ylim(bottom=0)
    drawing.label(axes[0], "devices", "requests/s")
    drawing.label(axes[1], "devices", "processor time of the scheduler (µs/request)")
    drawing.legend(axes[0])
    drawing.legend(axes[1])
    return figure
