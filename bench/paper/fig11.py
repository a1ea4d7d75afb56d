"""Devices that one controller can drive: the trace on a rising number of emulated workers.

The simulator has the scheduler alone. Measured are the processor time of each request, the rate that one core
could decide at that price, and, as in the paper, a load that rises until less than nine tenths of it are
answered in time. The live form has emulated devices behind real sockets, as `python -m bench.emulated` has:
the number of requests under way rises until they are no longer in time or their rate no longer grows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

from bench import emulated
from bench.cluster import thread_cpu_s
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
from bench.pump import PumpClient, library
from clockwork.formats.profiles import paper_instances
from clockwork.launch.profiles import register_profiles
from clockwork.sim import Open, Report, simulate
from clockwork.system.clock import now_ns
from clockwork.workloads import Trace, replay, synthetic_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Fig. 11: one controller and many emulated workers"
SHOWN = (
    "policy",
    "devices",
    "rate",
    "goodput/s",
    "bad_%",
    "peak/s",
    "mean_batch",
    "scheduler_us",
    "simulation_us",
    "one_core_decides/s",
)
"""Columns of the table; the JSON has more."""
SLO_NS = 100 * MS
DEVICE_RATE = 700.0
"""Requests/s of each device: near the limit of a V100 with the hot functions on small models."""

STEP = 1.25
"""Factor by which the load rises from DEVICE_RATE, or falls if the first load is already too high."""
GOOD_MIN = 0.9
"""Good part of the requests below which a load counts as too high: the paper's."""
STEPS_MAX = 8

WARMUP_NS = SECOND // 2
SHORTEST_NS = SECOND // 2
FUNCTIONS = 16_104
"""Functions of the synthetic trace: four for each model."""

PAPER_PEAK = 103_387
PAPER_WORKERS = 110
PAPER_CORES = 18


@dataclasses.dataclass(frozen=True)
class Size:
    devices: tuple[int, ...]
    requests: int  # requests for each number of devices
    swept: int  # largest number of devices for which the load rises to its peak
    swept_requests: int  # requests for each load
    live: tuple[int, ...]  # numbers of emulated devices behind sockets
    live_s: float  # seconds of each measurement
    functions: int = FUNCTIONS
    models: int = 4026


SIZES = {
    "tiny": Size((4, 8), 2_000, 4, 1_000, (4,), 0.2, 400, 100),
    "quick": Size((10, 50, 110, 150, 400, 1000), 100_000, 150, 40_000, (10, 50, 110), 1.0),
    "full": Size(
        (10, 20, 30, 50, 70, 90, 110, 130, 150, 200, 300, 500, 700, 1000), 4_000_000, 1000, 1_000_000,
        (10, 20, 50, 110, 150, 300), 10.0,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    policy: str
    devices: int
    form: Form
    seed: int


@functools.lru_cache(maxsize=1)
def trace_of(functions: int, seed: int) -> Trace:
    return synthetic_trace(functions, seed=seed)


def simulated(job: Job, rate: float, requests: int, tick: Tick) -> Report:
    """``requests`` requests of the trace at a rate."""
    size = SIZES[job.form]
    # The models have no inputs: a controller may not hold those of a million requests per second.
    models = [dataclasses.replace(instance, input_bytes=0) for instance in paper_instances()[: size.models]]
    total_ns = WARMUP_NS + max(SHORTEST_NS, int(requests / rate * SECOND))
    trace = trace_of(size.functions, job.seed)
    return simulate(
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


def risen(job: Job, at_first: Report) -> list[dict[str, float]]:
    """Loads in steps from DEVICE_RATE: up to the first that is too high, or down to the first that is not."""
    rate = DEVICE_RATE * job.devices
    found = [step_of(rate, at_first)]
    factor = STEP if 1 - at_first.bad_fraction >= GOOD_MIN else 1 / STEP
    for _ in range(STEPS_MAX):
        rate *= factor
        found.append(step_of(rate, simulated(job, rate, SIZES[job.form].swept_requests, lambda part: None)))
        if (found[-1]["good"] >= GOOD_MIN) != (found[0]["good"] >= GOOD_MIN):
            break
    return sorted(found, key=lambda load: load["rate"])


def step_of(rate: float, found: Report) -> dict[str, float]:
    return {"rate": rate, "good": 1 - found.bad_fraction, "goodput/s": found.goodput_rate}


def work(job: Job, tick: Tick) -> dict[str, Any]:
    """A policy on a number of devices."""
    size = SIZES[job.form]
    rate = DEVICE_RATE * job.devices
    found = simulated(job, rate, size.requests, tick)
    scheduler_us = 1e6 * found.scheduler_s / found.requests
    row: dict[str, Any] = {
        "policy": job.policy,
        "devices": job.devices,
        "rate": rate,
        **summary(found),
        "scheduler_us": round(scheduler_us, 3),
        "simulation_us": round(1e6 * found.cpu_s / found.requests, 3),
        "one_core_decides/s": round(1e6 / scheduler_us) if scheduler_us else None,
    }
    if job.devices <= size.swept:
        row["loads"] = risen(job, found)
        row["peak/s"] = round(max(
            (load["goodput/s"] for load in row["loads"] if load["good"] >= GOOD_MIN), default=0.0
        ))  # fmt: skip
    return row


# ----- through sockets -----------------------------------------------------------------------

UNDER_WAY = (4, 8, 16, 32)
"""Requests under way for each device, raised until they are late or throughput no longer grows."""
UNDER_WAY_MAX = 4096
GAIN_MIN = 1.02


def live_rows(setting: Setting) -> list[dict[str, Any]]:
    """For each policy and number of emulated devices the highest rate of answers, and the rate for a core of
    the controller.

    A load client, the devices and the controller share this machine.
    """
    size = SIZES[setting.form]
    library()
    return [
        live_row(policy, devices, size.live_s)
        for policy, devices in itertools.product(live_policies(setting), size.live)
    ]


def live_policies(setting: Setting) -> list[str]:
    """The last chosen policy without options; by default our own."""
    return [policy for policy in setting.chosen() if ":" not in policy][-1:]


def live_row(policy: str, devices: int, seconds: float) -> dict[str, Any]:
    settings = emulated.Settings(devices=devices, policy=policy)
    profiles = emulated.profiles(settings.models, 0)
    best: dict[str, Any] = {}
    with emulated.cluster_of(settings) as cluster:
        with cluster.client() as client:
            register_profiles(client, profiles)
        for each in UNDER_WAY:
            depth = min(UNDER_WAY_MAX, each * devices)
            pump = PumpClient(cluster.endpoint, [profile.name for profile in profiles], 0, depth)
            try:
                pump.run(seconds / 4, SLO_NS)
                before, failed, begun_ns = thread_cpu_s(cluster.controller.pid), pump.counts.failed, now_ns()
                answered = pump.run(seconds, SLO_NS)
                after, wall_s = thread_cpu_s(cluster.controller.pid), (now_ns() - begun_ns) / SECOND
                failed = pump.counts.failed - failed
            finally:
                pump.close()
            spent = sum(after.values()) - sum(before.values())
            good = answered / max(1, answered + failed)
            row = {
                "policy": policy, "devices": devices, "in flight": depth, "requests/s": round(answered / wall_s),
                "good_%": round(100 * good, 3), "requests/cpu-s": round(answered / spent),
            }  # fmt: skip
            if best and (good < GOOD_MIN or row["requests/s"] < GAIN_MIN * best["requests/s"]):
                break
            best = row
    return best


def run(setting: Setting, watch: Watch | None = None) -> Result:
    size = SIZES[setting.form]
    jobs = [
        Job(policy, devices, setting.form, setting.seed)
        for policy, devices in itertools.product(setting.chosen(), size.devices)
    ]
    rows = run_jobs(setting, work, jobs, watch)
    return Result(
        "fig11", TITLE, setting,
        {
            "peak, requests/s": PAPER_PEAK,
            "workers at the peak": PAPER_WORKERS,
            "cores of its controller": PAPER_CORES,
            "source": f"{PAPER}, section 6.6 (as reading notes give it); cores: the original's documentation in "
            f"{ARTIFACT}",
        },
        rows,
        {
            "inputs": "none",
            "offered, requests/s of each device": DEVICE_RATE,
            "scheduler_us": "processor time inside the scheduler for each request, clocks of its timing included",
            "peak/s": f"goodput at the highest load of which {100 * GOOD_MIN:g} % are in time, in steps of {STEP}",
            "live, requests/s": "client, devices and controller on one machine",
            "live, requests/cpu-s": "for each second of processor time of the controller, all its threads",
        },
        live_rows(setting) if setting.live else [],
    )  # fmt: skip


def draw(result: Result) -> Figure:
    figure, axes = drawing.sheet(result, 1, 2, (11, 5))
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
        swept = [row for row in own if row.get("peak/s")]
        axes[0].plot(
            [row["devices"] for row in swept], [row["peak/s"] for row in swept], color=drawing.colour(policy),
            marker="^", markersize=5, linestyle="--", label=f"{policy}, its peak: {100 * GOOD_MIN:g} % in time",
        )  # fmt: skip
        axes[1].plot(devices, [row["scheduler_us"] for row in own], **style, label=policy)
    rates = {row["devices"]: row["rate"] for row in result.rows}
    axes[0].plot(list(rates), list(rates.values()), **drawing.BOUND, label="offered")
    axes[0].plot(
        [PAPER_WORKERS], [PAPER_PEAK],
        color="0.3", marker="*", linestyle="", label=f"paper's peak ({PAPER_CORES} cores)",
    )  # fmt: skip
    for name, marker, text in (
        ("requests/s", "s", "all of it on this machine"), ("requests/cpu-s", "D", "a core of the controller")
    ):  # fmt: skip
        for policy in dict.fromkeys(row["policy"] for row in result.live):
            own = [row for row in result.live if row["policy"] == policy]
            axes[0].plot(
                [row["devices"] for row in own], [row[name] for row in own], color=drawing.colour(policy),
                marker=marker, markersize=6, markerfacecolor="none", linestyle="",
                label=f"{policy}, sockets: {text}",
            )  # fmt: skip
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[1].set_xscale("log")
    axes[1].set_ylim(bottom=0)
    drawing.label(axes[0], "devices", "requests/s")
    drawing.label(axes[1], "devices", "processor time of the scheduler (µs/request)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    drawing.legend(axes[1])
    return figure
