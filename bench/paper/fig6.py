"""Thousands of models on one GPU: the first resource that limits, and the clients that suffer.

Major clients send 1,000 requests/s, spread over a growing number of models: one at first, and one more every
second until there are 3,600. Minor clients send 200 requests/s for one further model. The SLO is 100 ms.

At first the GPU cannot execute that many requests; then the memory is full, and the PCIe link limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.paper import drawing
from bench.paper.common import (
    ARTIFACT,
    MINUTE,
    MS,
    PAPER,
    SECOND,
    V100_PAGES,
    Result,
    Setting,
    Tick,
    Watch,
    class_rows,
    named,
    progress,
    rate_limit,
    resnets,
    run_jobs,
    summary,
    v100s,
)
from clockwork.formats.profiles import PAPER_PAGE_BYTES
from clockwork.sim import Open, simulate
from clockwork.workloads import Arrivals, Workload, merge, poisson
from clockwork.workloads.arrivals import uniform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Fig. 6: thousands of models on one GPU"
SHOWN = (
    "policy",
    "goodput/s",
    "bad_%",
    "late",
    "missed",
    "max_ms",
    "loads",
    "memory_full_models",
    "link_full_min",
    "minor_at_end/s",
    "major_at_end/s",
)
"""Columns of the table; the JSON has more."""
MAJOR_RATE = 1000.0
MINOR_RATE = 200.0
SLO_NS = 100 * MS
FINE = 10
"""Slices of time in each point of the series, in which loads are counted."""

BUCKETS = 90
"""Points of the series: two classes each, major and minor."""

PAPER_FULL_AT = 201
PAPER_SHIFT_MIN = 20.0


@dataclasses.dataclass(frozen=True)
class Size:
    lead_ns: int  # duration with one major model
    models: int  # number of major models at the end
    every_ns: int  # time from a further major model to the next

    @property
    def total_ns(self) -> int:
        return self.lead_ns + self.models * self.every_ns


SIZES = {
    "tiny": Size(SECOND, 400, SECOND // 100),
    "quick": Size(MINUTE, 3600, SECOND // 10),
    "full": Size(15 * MINUTE, 3600, SECOND),
}


class growing(Workload):
    """Requests of a workload, spread evenly over the models active at their time: 1 and later."""

    def __init__(self, workload: Workload, size: Size, seed: int) -> None:
        self.duration_ns = workload.duration_ns
        self._workload, self._size, self._seed = workload, size, seed

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            count = active(chunk.t_ns, self._size)
            model = 1 + (uniform(self._seed, chunk.t_ns, chunk.model) * count).astype(np.int32)
            yield dataclasses.replace(chunk, model=model)


def active(t_ns: Any, size: Size) -> Any:
    """The number of major models at these times."""
    return np.clip(1 + (t_ns - size.lead_ns) // size.every_ns, 1, size.models)


class bucketed(Workload):
    """A workload whose classes are buckets of time: the k-th bucket has class 2 k + which."""

    def __init__(self, workload: Workload, bucket_ns: int, which: int) -> None:
        self.duration_ns = workload.duration_ns
        self._workload, self._bucket_ns, self._which = workload, bucket_ns, which

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            place = 2 * (chunk.t_ns // self._bucket_ns) + self._which
            yield dataclasses.replace(chunk, cls=place.astype(np.uint8))


@dataclasses.dataclass(frozen=True)
class Job:
    policy: str
    size: Size
    seed: int


def work(job: Job, tick: Tick) -> dict[str, Any]:
    """A policy's run of the whole experiment."""
    size = job.size
    fine_ns = -(-size.total_ns // (BUCKETS * FINE))
    bucket_ns = FINE * fine_ns
    minor = poisson([MINOR_RATE], size.total_ns, seed=job.seed, stream=0)
    major = growing(poisson([MAJOR_RATE], size.total_ns, seed=job.seed, stream=1), size, job.seed)
    found = simulate(
        resnets(1 + size.models, SLO_NS),
        v100s(1),
        [Open(merge(bucketed(minor, bucket_ns, 1), bucketed(major, bucket_ns, 0)))],
        **named(job.policy),
        seed=job.seed,
        series_ns=fine_ns,
        on_progress=progress(tick, size.total_ns),
    )
    tally = class_rows(found.classes, 2 * BUCKETS)
    seconds = bucket_ns / SECOND
    names = ("major", "minor")
    good, offered, cold = (np.array(tally[name]).reshape(-1, 2) for name in ("good", "offered", "cold"))
    answered = np.maximum(good.sum(axis=1), 1)
    minute = (np.arange(BUCKETS) + 0.5) * bucket_ns / MINUTE
    series = {
        "minute": minute.tolist(),
        "models": active(((np.arange(BUCKETS) + 0.5) * bucket_ns).astype(np.int64), size).tolist(),
        **{f"{name} good/s": (good[:, at] / seconds).tolist() for at, name in enumerate(names)},
        **{f"{name} offered/s": (offered[:, at] / seconds).tolist() for at, name in enumerate(names)},
        "cold": (cold.sum(axis=1) / answered).tolist(),
        "GPU": (buckets(found.series["busy_ns"]).sum(axis=1) / bucket_ns).tolist(),
        "PCIe": (buckets(found.series["link_busy_ns"]).sum(axis=1) / bucket_ns).tolist(),
        "worst_p99_ms": (buckets(found.series["p99_ns"]).max(axis=1) / MS).tolist(),
        "max_ms": (buckets(found.series["max_ns"]).max(axis=1) / MS).tolist(),
    }
    pages = resnets(1)[0].pages(PAPER_PAGE_BYTES)
    return {
        "policy": job.policy,
        **summary(found),
        "most_resident": V100_PAGES // pages,
        "loads": found.loads,
        "unloads": found.unloads,
        "memory_full_models": memory_full(size, found.series["loads"], fine_ns, V100_PAGES // pages),
        "link_full_min": shift(series),
        "minor_at_end/s": round(float(np.mean(series["minor good/s"][-BUCKETS // 10 :])), 1),
        "major_at_end/s": round(float(np.mean(series["major good/s"][-BUCKETS // 10 :])), 1),
        "series": series,
    }


def buckets(slices: Any) -> Any:
    """A series' slices, with those of each bucket in a row of their own."""
    filled = np.zeros(BUCKETS * FINE, slices.dtype)
    filled[: len(slices)] = slices[: len(filled)]
    return filled.reshape(BUCKETS, FINE)


def memory_full(size: Size, loads: Any, slice_ns: int, room: int) -> int | None:
    """The number of major models at the slice in which as many models had been loaded as fit into memory."""
    done = np.cumsum(loads)
    if not len(done) or done[-1] < room:
        return None
    end_ns = (int((done >= room).argmax()) + 1) * slice_ns
    return int(active(np.int64(end_ns), size))


LINK_FULL = 0.98


def shift(series: dict[str, Any]) -> float | None:
    """The minute from which the link is always busy; None if it never is."""
    free = np.array(series["PCIe"]) < LINK_FULL
    at = int(np.flatnonzero(free)[-1]) + 1 if free.any() else 0
    return round(series["minute"][at], 1) if at < len(free) else None


def bound(size: Size, series: dict[str, Any]) -> list[float]:
    """Requests/s that no policy without foresight exceeds, at each point of the series.

    The M resident models of n equally popular models are served as fast as the GPU can. Any other model needs
    a load, which also serves the requests that come for this model within the SLO.
    """
    profile = resnets(1)[0]
    room = V100_PAGES // profile.pages(PAPER_PAGE_BYTES) - 1  # room for the minor model is set aside
    loads = SECOND / profile.load_ns
    most = rate_limit(profile, SLO_NS)
    found = []
    for count, major, minor in zip(series["models"], series["major offered/s"], series["minor offered/s"]):
        if count <= room:
            found.append(min(most, major + minor))
            continue
        together = 1 + major / count * SLO_NS / SECOND
        cold = min(major * (1 - room / count), loads * together)
        found.append(min(most, major * room / count + cold + minor))
    return found


def run(setting: Setting, watch: Watch | None = None) -> Result:
    size = SIZES[setting.form]
    rows = run_jobs(setting, work, [Job(policy, size, setting.seed) for policy in setting.chosen()], watch)
    series = {row["policy"]: row.pop("series") for row in rows}
    series["bound"] = {
        "minute": series[rows[0]["policy"]]["minute"],
        "good/s": bound(size, series[rows[0]["policy"]]),
    }
    return Result(
        "fig6", TITLE, setting,
        {
            "memory full at models": PAPER_FULL_AT,
            "bottleneck moves to PCIe at minute": PAPER_SHIFT_MIN,
            "minor clients then": "recover to 200 requests/s",
            "source": f"{PAPER}, section 6.2 (as reading notes give it); models at which memory is full: {ARTIFACT}",
        },
        rows, {"minutes": size.total_ns / MINUTE, "first model added at minute": size.lead_ns / MINUTE},
        series=series,
    )  # fmt: skip


def draw(result: Result) -> Figure:
    size = SIZES[result.setting.form]
    policies = result.setting.chosen()
    figure, axes = drawing.sheet(result, 3, len(policies), (4.6 * len(policies), 8))
    full_min = (size.lead_ns + PAPER_FULL_AT * size.every_ns) / MINUTE
    for at, policy in enumerate(policies):
        own = result.series[policy]
        above, middle, below = axes[at], axes[at + len(policies)], axes[at + 2 * len(policies)]
        for name, shade in (("major", "C0"), ("minor", "C1")):
            above.plot(own["minute"], own[f"{name} good/s"], color=shade, label=name)
            above.plot(own["minute"], own[f"{name} offered/s"], color=shade, linestyle=":", linewidth=0.8)
        above.plot(own["minute"], result.series["bound"]["good/s"], **drawing.BOUND, label="bound of both")
        middle.plot(own["minute"], own["GPU"], color="C2", label="GPU")
        middle.plot(own["minute"], own["PCIe"], color="C3", label="PCIe")
        below.plot(own["minute"], own["cold"], color="C4", label="cold, of good answers")
        for axis in (above, middle, below):
            axis.axvline(full_min, **drawing.PAPER, label=f"paper: memory full ({PAPER_FULL_AT} models)")
            axis.set_ylim(bottom=0)
        drawing.label(above, "minute", "goodput (requests/s)", policy)
        drawing.label(middle, "minute", "busy")
        drawing.label(below, "minute", "share")
        for axis in (above, middle, below):
            drawing.legend(axis)
    return figure
