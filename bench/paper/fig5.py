"""One GPU, 15 copies of ResNet50 with 16 closed-loop clients each, at SLOs from 10 to 500 ms."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from bench.paper import drawing, live
from bench.paper.common import (
    ARTIFACT,
    MS,
    PAPER,
    SECOND,
    Result,
    Setting,
    Tick,
    Watch,
    input_ns,
    named,
    progress,
    rate_limit,
    resnets,
    run_jobs,
    summary,
    tail,
    v100s,
)
from clockwork.sim import Closed, simulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Fig. 5: an SLO sweep on one GPU, 15 copies of ResNet50, 240 closed-loop clients"
SHOWN = (
    "policy",
    "slo_ms",
    "goodput/s",
    "bad_%",
    "late",
    "missed",
    "p50_ms",
    "p99_ms",
    "p99.99_ms",
    "max_ms",
    "mean_batch",
    "device_busy_%",
)
"""Columns of the table; the JSON has more."""
MODELS = 15
CLIENTS = 16
SLOS_MS = (10, 25, 50, 100, 250, 500)

OTHERS_GOODPUT = {10: 400, 25: 500, 50: 575, 100: 675, 250: 725, 500: 800}
"""Requests/s at each SLO in ms that a third party's simulator assumes for the original's goodput."""

WARMUP_NS = 2 * SECOND
SECONDS = {"tiny": 0.3, "quick": 5.0, "full": 60.0}


@dataclasses.dataclass(frozen=True)
class Job:
    policy: str
    slo_ms: int
    measured_ns: int
    seed: int


def work(job: Job, tick: Tick) -> dict[str, Any]:
    """A policy at an SLO."""
    models = resnets(MODELS, job.slo_ms * MS)
    # A refusal comes at once, and the next request follows it, but not sooner than its input can be sent.
    clients = [Closed(model, CLIENTS, round_trip_ns=2 * input_ns(models[0])) for model in range(MODELS)]
    until_ns = min(WARMUP_NS, job.measured_ns) + job.measured_ns
    found = simulate(
        models,
        v100s(1),
        clients,
        **named(job.policy),
        seed=job.seed,
        warmup_ns=until_ns - job.measured_ns,
        until_ns=until_ns,
        resident=True,
        on_progress=progress(tick, until_ns),
    )
    answered = int(found.models.good.sum() + found.models.late.sum())
    return {
        "policy": job.policy,
        "slo_ms": job.slo_ms,
        **summary(found),
        "late_of_answered_%": round(100 * int(found.models.late.sum()) / answered, 4) if answered else 0.0,
        "tail": tail(found),
    }


def run(setting: Setting, watch: Watch | None = None) -> Result:
    measured_ns = round(SECONDS[setting.form] * SECOND)
    jobs = [
        Job(policy, slo_ms, measured_ns, setting.seed)
        for policy, slo_ms in itertools.product(setting.chosen(), SLOS_MS)
    ]
    rows = run_jobs(setting, work, jobs, watch)
    series = {f"{row['policy']}, {row['slo_ms']} ms": row.pop("tail") for row in rows}
    facts: dict[str, Any] = {
        "bound, requests/s by SLO in ms": {
            slo_ms: round(rate_limit(resnets(1)[0], slo_ms * MS), 1) for slo_ms in SLOS_MS
        },
        "goodput rises with the SLO": {
            policy: all(
                left["goodput/s"] <= 1.02 * right["goodput/s"]
                for left, right in itertools.pairwise(row for row in rows if row["policy"] == policy)
            )
            for policy in setting.chosen()
        },
    }
    return Result(
        "fig5", TITLE, setting,
        {
            "order": "goodput rises with the SLO; Clockwork's tail ends at the SLO, Clipper's and INFaaS's do not "
            "and their goodput collapses below 100 ms",
            "source": f"{PAPER}, section 6.1 (as reading notes give it); clients and SLOs: {ARTIFACT}",
            "goodput/s by SLO in ms, a third party's simulator, not the paper": OTHERS_GOODPUT,
        },
        rows, facts, live.slo_sweep(setting) if setting.live else [], series,
    )  # fmt: skip


def draw(result: Result) -> Figure:
    policies = result.setting.chosen()
    columns = 1 + len(policies) + bool(result.live)
    figure, axes = drawing.sheet(result, 1, columns, (4.4 * columns, 3.8))
    for policy in policies:
        own = [row for row in result.rows if row["policy"] == policy]
        axes[0].plot(
            [row["slo_ms"] for row in own], [row["goodput/s"] for row in own],
            color=drawing.colour(policy), marker="o", markersize=3, label=policy,
        )  # fmt: skip
    bound = result.facts["bound, requests/s by SLO in ms"]
    axes[0].plot(list(bound), list(bound.values()), **drawing.BOUND, label="bound")
    axes[0].plot(
        list(OTHERS_GOODPUT),
        list(OTHERS_GOODPUT.values()),
        **drawing.PAPER,
        label="a third party's simulator",
    )
    axes[0].set_xscale("log")
    axes[0].set_ylim(bottom=0)
    drawing.label(axes[0], "SLO (ms)", "goodput (requests/s)")
    drawing.legend(axes[0])
    for axis, policy in zip(axes[1:], policies):
        for index, slo_ms in enumerate(SLOS_MS):
            shade = f"C{index}"
            drawing.draw_tail(
                axis, result.series[f"{policy}, {slo_ms} ms"], color=shade, label=f"{slo_ms} ms"
            )
            axis.axvline(slo_ms, color=shade, linestyle=":", linewidth=0.8)
        axis.set_xscale("log")
        drawing.tail_axis(axis)
        drawing.label(axis, "latency (ms)", "percentile", policy)
        drawing.legend(axis)
    for policy in dict.fromkeys(row["policy"] for row in result.live):
        own = [row for row in result.live if row["policy"] == policy]
        axes[-1].plot(
            [row["slo_ms"] for row in own], [row["goodput/s"] for row in own],
            color=drawing.colour(policy), marker="o", markersize=3, label=policy,
        )  # fmt: skip
    if result.live:
        axes[-1].set_xscale("log")
        axes[-1].set_ylim(bottom=0)
        drawing.label(axes[-1], "SLO (ms)", "goodput (requests/s)", "live: MLPs on a CPU worker")
        drawing.legend(axes[-1])
    return figure
