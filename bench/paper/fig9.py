"""The Azure trace of a day on 4,026 models, a mean of 9,638 requests/s, an SLO of 100 ms. Figs. 9 and 10.

The experiment has two mappings. *Original order*, as published: the hottest functions go to the
alphabetically first models, which are small, on 12 V100s. *Shuffled*: functions go to models at random, on
the fewest V100s at which all but one request in a million are in time. The search, that of `clockwork plan`,
uses the busiest part of the trace, and its result is tested on the whole trace.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.paper import drawing
from bench.paper.common import (
    ARTIFACT,
    LINK_NS,
    MS,
    PAPER,
    SECOND,
    Result,
    Setting,
    Tick,
    Watch,
    input_ns,
    milliseconds,
    named,
    progress,
    run_jobs,
    summary,
    tail,
    v100s,
)
from clockwork.formats.profiles import ModelProfile, paper_instances
from clockwork.sim import Open, Report, fluid, simulate
from clockwork.sim.planning import Planner, Scenario
from clockwork.workloads import Trace, load_trace, rehearsed, replay, synthetic_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figs. 9 and 10: the Azure trace, 4,026 models, 9,638 requests/s"
SHOWN = (
    "mapping",
    "policy",
    "devices",
    "goodput_%",
    "bound_%",
    "late",
    "missed",
    "p50_ms",
    "p99_ms",
    "p99.9999_ms",
    "max_ms",
    "cold_%",
    "mean_batch",
    "device_busy_%",
    "cpu_s",
)
"""Columns of the table; the JSON has more."""
RATE = 9638.0
SLO_NS = 100 * MS
DEVICES = 12
GOAL = 1e-6
"""Largest bad part of all requests."""

FUNCTIONS = 16_104
"""Functions of the synthetic trace: four for each model, as in the original's runs."""

POINTS = 60
"""Least number of points of the series, where one a minute would be fewer."""

DEVICES_MAX = 400
"""Number of devices at which the search for the fewest gives up."""

MARKS = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999)

PAPER_SAYS: dict[str, Any] = {
    "goodput": "99.9999 % of 208 M requests within 100 ms, none later than 100 ms; 58 failed by a misprediction",
    "devices": 12,
    "mean rate, requests/s": RATE,
    "hours": 6,
    "p99 of INFER predictions, us over / under": [144, 55],
    "source": f"{PAPER}, section 6.5 (as reading notes give it); {ARTIFACT} has 6 workers and 8 hours",
}


@dataclasses.dataclass(frozen=True)
class Size:
    whole_ns: int  # replayed time of the trace, at real speed
    begin_minute: int
    search_ns: int  # length of the part that the search uses
    warmup_ns: int  # before the whole, and before the part
    functions: int
    rate: float
    models: int  # number of instances, the first of the paper's


MINUTE = 60 * SECOND
SIZES = {
    "tiny": Size(SECOND, 600, SECOND, SECOND, 400, 400.0, 200),
    "quick": Size(MINUTE, 600, 10 * SECOND, 5 * SECOND, FUNCTIONS, RATE, 4026),
    "full": Size(360 * MINUTE, 600, 5 * MINUTE, 2 * MINUTE, FUNCTIONS, RATE, 4026),
}


@dataclasses.dataclass(frozen=True)
class Job:
    policy: str
    mapping: str
    setting: Setting


@functools.lru_cache(maxsize=1)
def instances(size: Size) -> list[ModelProfile]:
    """The models, an even choice of the paper's 4,026 if fewer are wanted."""
    every = paper_instances()
    return [
        dataclasses.replace(every[index * len(every) // size.models], slo_ns=SLO_NS)
        for index in range(size.models)
    ]


@functools.lru_cache(maxsize=1)
def trace_of(setting: Setting, size: Size) -> Trace:
    if setting.trace is not None:
        return load_trace(setting.trace)
    return synthetic_trace(size.functions, seed=setting.seed)


def series_ns(measured_ns: int) -> int:
    """The width of the series' buckets."""
    return max(SECOND, min(MINUTE, measured_ns // POINTS))


def minutes_of(size: Size) -> int:
    return max(1, size.whole_ns // MINUTE)


def scale_of(trace: Trace, size: Size) -> float:
    """The requests for each call of a function that give the whole trace the wanted rate."""
    return trace.scale(size.rate, size.begin_minute, minutes_of(size))


def part_of(
    trace: Trace, size: Size, job: Job, begin_minute: int, duration_ns: int, factor: float = 1.0
) -> replay:
    """A part of the trace as a workload. factor: its rate as a multiple of the size's rate."""
    return replay(
        trace, size.models, duration_ns,
        mapping="original" if job.mapping == "original" else "shuffled", scale=scale_of(trace, size) * factor,
        begin_minute=begin_minute, seed=job.setting.seed,
    )  # fmt: skip


def whole(job: Job, size: Size, trace: Trace, devices: int, tick: Tick) -> Report:
    """The whole workload, after a warm-up that repeats its beginning."""
    total_ns = size.warmup_ns + size.whole_ns
    workload = rehearsed(
        lambda ns: part_of(trace, size, job, size.begin_minute, ns), size.warmup_ns, size.whole_ns
    )
    return simulate(
        instances(size),
        v100s(devices),
        [Open(workload)],
        **named(job.policy),
        seed=job.setting.seed,
        warmup_ns=size.warmup_ns,
        until_ns=total_ns,
        resident=True,
        series_ns=series_ns(size.whole_ns),
        on_progress=progress(tick, total_ns),
    )


def planner(job: Job, size: Size, trace: Trace, tell: Callable[[str], None] | None = None) -> Planner:
    """The planner, as in `clockwork plan`, for the fewest devices that meet the goal in the busiest part."""
    begin = trace.busiest(size.search_ns / MINUTE, size.begin_minute, minutes_of(size))
    scenario = Scenario(
        instances(size),
        lambda rate, duration_ns, seed: part_of(trace, size, job, begin, duration_ns, rate / size.rate),
        v100s(1),
        rate=size.rate,
        crowding=float(part_of(trace, size, job, begin, size.search_ns).nominal().sum()) / size.rate,
        bad_max=GOAL,
        group_bad_max=1.0,  # the goal is about all requests together
        **(named(job.policy) if job.policy else {}),
        seeds=(job.setting.seed,),
        duration_ns=size.search_ns,
        warmup_ns=size.warmup_ns,
        rehearsed=True,
    )
    return Planner(scenario, tell, threads=1, limits=False)


def fewest(job: Job, size: Size, trace: Trace, tick: Tick) -> tuple[int | None, list[dict[str, Any]]]:
    """The fewest devices at which the goal holds in the busiest part; and the trials of the search."""
    told = itertools.count(1)
    found = planner(job, size, trace, lambda line: tick(min(0.95, next(told) / 12))).devices(DEVICES_MAX)
    tried = [
        {"devices": trial.devices, "bad_%": 100 * trial.bad_fraction, "requests": trial.offered}
        for trial in found.trials
    ]
    return (None if found.answer is None else int(found.answer)), tried


def needs(trace: Trace, size: Size, minute: int, job: Job) -> tuple[list[float], list[float]]:
    """(requests/s, devices) of each model in a minute if every batch had the best size that fits the SLO."""
    models = instances(size)
    workload = part_of(trace, size, job, minute % trace.counts.shape[1], MINUTE)
    rates = np.bincount(
        np.arange(len(trace.counts)) * len(models) // len(trace.counts),
        weights=workload.nominal(), minlength=len(models),
    )  # fmt: skip
    return rates.tolist(), [float(rate) * cost / SECOND for rate, cost in zip(rates, cheapest(size))]


@functools.lru_cache(maxsize=1)
def cheapest(size: Size) -> list[float]:
    """The least device time of a request of each model, ns."""
    return [
        fluid.cheapest(fluid.curve(instance), SLO_NS - 2 * LINK_NS - input_ns(instance))
        for instance in instances(size)
    ]


def bound(trace: Trace, size: Size, job: Job, devices: int) -> list[float]:
    """The most requests/s that the devices could execute in each minute: the cheapest requests first."""
    found = []
    for at in range(minutes_of(size)):
        rates, costs = needs(trace, size, size.begin_minute + at, job)
        left, served = float(devices), 0.0
        for cost, rate in sorted((cost / rate, rate) for cost, rate in zip(costs, rates) if rate > 0):
            part = min(rate, left / cost)
            served += part
            left -= part * cost
            if left <= 0:
                break
        found.append(served)
    return found


def work(job: Job, tick: Tick) -> dict[str, Any]:
    """A row for a policy with a mapping: the search, if there is one, and the run of the whole trace."""
    size = SIZES[job.setting.form]
    trace = trace_of(job.setting, size)
    row: dict[str, Any] = {"policy": job.policy, "mapping": job.mapping}
    devices = job.setting.devices or DEVICES
    share_of_search = 0.0
    is_searched = job.mapping == "shuffled" and not job.setting.devices
    if is_searched:
        share_of_search = 0.6
        enough, tried = fewest(job, size, trace, lambda part: tick(part * share_of_search))
        row |= {"tried": tried}
        if enough is None:
            return row | {"devices": None, "closest": min(tried, key=lambda row: float(row["bad_%"]))}
        devices = enough
    while True:
        found = whole(
            job, size, trace, devices, lambda part: tick(share_of_search + part * (1 - share_of_search))
        )
        if not is_searched or found.bad_fraction <= GOAL or devices >= DEVICES_MAX:
            break
        devices += 1  # the busiest part was not the hardest
    predicted = {
        f"{name}, {side}": {
            f"p{mark:g}_us": round(getattr(errors, side).percentile(mark) / 1e3, 1)
            for mark in (50, 99, 99.99)
        }
        for name, errors in found.errors.items()
        for side in ("over", "under")
        if getattr(errors, side).total
    }
    skipped = size.warmup_ns // found.series_ns
    count = min(len(found.series["offered"]) - skipped, size.whole_ns // found.series_ns)
    measured = slice(skipped, skipped + count)
    seconds = found.series_ns / SECOND
    return {
        **row,
        "devices": devices,
        **summary(found),
        "goodput_%": round(100 * (1 - found.bad_fraction), 6),
        **{f"p{mark:g}_ms": milliseconds(found.percentile(mark)) for mark in MARKS},
        "cold_%": round(100 * int(found.models.cold.sum()) / max(1, int(found.models.good.sum())), 4),
        "batches": {str(size): int(n) for size, n in enumerate(found.batches) if n},
        "prediction errors": predicted,
        "series": {
            "minute": [(at + 0.5) * found.series_ns / MINUTE for at in range(count)],
            **{
                name: (found.series[name][measured] / seconds).tolist()
                for name in ("offered", "good", "bad", "loads", "infers")
            },
            "busy": (found.series["busy_ns"][measured] / found.series_ns / devices).tolist(),
            "link": (found.series["link_busy_ns"][measured] / found.series_ns / devices).tolist(),
            **{f"{name[:-3]}_ms": (found.series[name][measured] / MS).tolist() for name in SERIES_MARKS},
        },
        "tail": tail(found),
        "error_tail": {
            side: tail_of(getattr(found.errors["infer_duration"], side)) for side in ("over", "under")
        },
    }


SERIES_MARKS = ("p50_ns", "p99_ns", "p999_ns", "max_ns")


def tail_of(histogram: Any) -> list[list[float]]:
    """[percent, us] points of a histogram."""
    marks = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 99.9999]
    return [[mark, histogram.percentile(mark) / 1e3] for mark in marks if histogram.total]


def run(setting: Setting, watch: Watch | None = None) -> Result:
    size = SIZES[setting.form]
    mappings = [mapping for mapping in ("shuffled", "original") if setting.mapping in ("", mapping)]
    jobs = [Job(policy, mapping, setting) for mapping in mappings for policy in setting.chosen()]
    rows = run_jobs(setting, work, jobs, watch)
    series = {
        f"{row['policy']}, {row['mapping']}": {
            name: row.pop(name) for name in ("series", "tail", "error_tail")
        }
        for row in rows
        if "series" in row
    }
    trace = trace_of(setting, size)
    least = {
        mapping: planner(Job("", mapping, setting), size, trace).fluid_devices()
        for mapping in ("original", "shuffled")
    }
    for row in rows:
        if row.get("devices"):
            row["bound_%"] = round(
                100 * min(1.0, sum(bound(trace, size, Job("", row["mapping"], setting), row["devices"]))
                / sum(sum(needs(trace, size, size.begin_minute + at, Job("", row["mapping"], setting))[0])
                      for at in range(minutes_of(size)))), 4,
            )  # fmt: skip
    facts = {
        "trace": str(setting.trace) if setting.trace is not None else f"made up, {size.functions} functions",
        "minutes measured": size.whole_ns / MINUTE,
        "models": size.models,
        "no fewer devices could execute the busiest part": least,
    }
    if searched := {row["policy"]: row["devices"] for row in rows if "tried" in row}:
        facts["fewest devices found, shuffled"] = searched
    return Result("fig9", TITLE, setting, dict(PAPER_SAYS), rows, facts, series=series)


def draw(result: Result) -> Figure:
    cases = list(result.series)
    figure, axes = drawing.sheet(result, 4, max(1, len(cases)), (4.4 * max(1, len(cases)), 11))
    rows = {f"{row['policy']}, {row['mapping']}": row for row in result.rows}
    for at, case in enumerate(cases):
        body, row = result.series[case], rows[case]
        over_time, latency, distribution, errors = (axes[at + line * len(cases)] for line in range(4))
        series = body["series"]
        over_time.plot(series["minute"], series["offered"], color="0.6", linewidth=0.8, label="offered")
        over_time.plot(series["minute"], series["good"], color="C0", linewidth=1, label="good")
        over_time.plot(series["minute"], series["bad"], color="C3", linewidth=1, label="bad")
        over_time.plot(series["minute"], series["loads"], color="C4", linewidth=0.8, label="loads")
        over_time.set_ylim(bottom=0)
        for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms"):
            latency.plot(series["minute"], series[name], linewidth=0.9, label=name[:-3])
        latency.set_ylim(0, 1.15 * SLO_NS / MS)
        latency.axhline(SLO_NS / MS, **drawing.PAPER, label="SLO; the paper's latest")
        drawing.draw_tail(distribution, body["tail"], color="C0", label=case)
        distribution.axvline(SLO_NS / MS, **drawing.PAPER, label="SLO; the paper's latest")
        drawing.tail_axis(distribution)
        for side, style in (("over", "C1"), ("under", "C2")):
            drawing.draw_tail(errors, body["error_tail"][side], color=style, label=f"{side}-predicted")
        drawing.tail_axis(errors)
        for place, style in zip(PAPER_SAYS["p99 of INFER predictions, us over / under"], ("C1", "C2")):
            errors.plot([place], [drawing.tail_point(99)], marker="*", color=style, linestyle="")
        errors.set_xscale("symlog", linthresh=1)
        drawing.label(
            over_time, "minute", "requests/s", f"{case}: {row['devices']} devices, {row['goodput_%']} % good"
        )
        drawing.label(latency, "minute", "latency (ms)")
        drawing.label(distribution, "latency (ms)", "percentile")
        drawing.label(errors, "INFER mispredicted by (us); stars: paper's p99", "percentile")
        for axis in (over_time, latency, distribution, errors):
            drawing.legend(axis)
    return figure
