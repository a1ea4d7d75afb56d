"""Spread of execution times of one model, with one request at a time.

On a V100 the paper measured next to no spread. The simulator draws execution times with a spread of
EXEC_NOISE. The live form runs a CPU worker on this machine, and measures the times of its executions on the
device and the latencies of a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.paper import drawing, live
from bench.paper.common import (
    EXEC_NOISE,
    NO_SLO_NS,
    PAPER,
    SECOND,
    Result,
    Setting,
    Tick,
    Watch,
    milliseconds,
    named,
    progress,
    resnets,
    run_jobs,
    tail,
    v100s,
)
from clockwork.sim import Closed, simulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Fig. 2: execution times of one model, one request at a time"
SHOWN = ("where", "count", "p50_ms", "p99_above_%", "p99.9_above_%", "p99.99_above_%", "max_ms")
"""Columns of the table; the JSON has more."""
ABOVE_MEDIAN_PERCENT = 0.03
"""Distance of the paper's 99.99th percentile above its median."""

SECONDS = {"tiny": 2, "quick": 60, "full": 3600}
MARKS = (99, 99.9, 99.99)


def work(job: Setting | str, tick: Tick) -> Any:
    """A policy's row in the simulator, given as POLICY:SECONDS:SEED; or the live measurement."""
    if isinstance(job, Setting):
        return live.execution_times(job, tick)
    policy, seconds, seed = job.rsplit(":", 2)
    until_ns = int(seconds) * SECOND
    found = simulate(
        resnets(1),
        v100s(1),
        [Closed(0, slo_ns=NO_SLO_NS)],
        **named(policy),
        seed=int(seed),
        until_ns=until_ns,
        resident=True,
        on_progress=progress(tick, until_ns),
    )
    median = found.percentile(50)
    points = [mark for mark in MARKS if found.latency.total * (100 - mark) >= 100]
    return {
        "where": f"simulated V100, {policy}",
        "count": found.latency.total,
        "p50_ms": milliseconds(median),
        **{f"p{mark:g}_above_%": round(100 * (found.percentile(mark) / median - 1), 3) for mark in points},
        "tail": tail(found),
    }


def run(setting: Setting, watch: Watch | None = None) -> Result:
    jobs: list[Setting | str] = [
        f"{policy}:{SECONDS[setting.form]}:{setting.seed}" for policy in setting.chosen()
    ]
    rows = run_jobs(setting, work, jobs, watch if not setting.live else None)
    series = {row["where"]: row.pop("tail") for row in rows}
    if setting.live:
        # The live part runs alone on the machine, because other jobs would distort the measurement.
        measured = live.execution_times(setting, watch or (lambda part: None))
        for name, body in measured.items():
            for what, where in (("executions", "device"), ("client", "client")):
                entry = body[what]
                series[f"{name}, {where}"] = entry["tail"]
                rows.append(
                    {
                        "where": f"CPU worker, {name}, {where}",
                        "count": entry["count"],
                        "p50_ms": entry["p50_ms"],
                        **{f"{mark}_above_%": value for mark, value in entry["above_median_%"].items()},
                        "max_ms": entry["max_ms"],
                    }
                )
    return Result(
        "fig2", TITLE, setting,
        {
            "p99.99 above the median, %": ABOVE_MEDIAN_PERCENT,
            "p50_ms, ResNet50 v1": 2.61,
            "source": f"{PAPER}, section 2 (as reading notes give it) and Table 1",
        },
        rows, {
            "noise given to the simulated executions, sigma in %": 100 * EXEC_NOISE,
            "simulated latencies are told apart to, %": round(100 / 128, 2),
        }, series=series,
    )  # fmt: skip


def draw(result: Result) -> Figure:
    figure, axes = drawing.sheet(result, 1, 2, (11, 4))
    for index, (name, points) in enumerate(result.series.items()):
        if not points:
            continue
        median = next(x for percent, x in points if percent >= 50)
        axis = axes[0] if name.endswith("client") or name.startswith("simulated") else axes[1]
        drawing.draw_tail(
            axis, [[percent, x / median] for percent, x in points], color=f"C{index}", label=name
        )
    for axis, title in zip(axes, ("whole requests", "executions alone, CPU worker")):
        drawing.tail_axis(axis)
        axis.axvline(
            1 + ABOVE_MEDIAN_PERCENT / 100, **drawing.PAPER, label="paper's p99.99 of executions on a V100"
        )
        axis.set_xscale("log")
        drawing.label(axis, "time / median", "percentile", title)
        drawing.legend(axis)
    return figure
