"""Shared parts of the experiments: sizes of a run, parallel jobs, the paper's devices, results on disk."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench import report
from clockwork.cli.common import policy_numbers
from clockwork.errors import ConfigError
from clockwork.formats.profiles import PAPER_PAGE_BYTES, ModelProfile, copies, paper_model
from clockwork.scheduler import POLICIES
from clockwork.sim import Cluster, Report, Tally

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MS = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
NO_SLO_NS = 24 * 3600 * SECOND
"""SLO of the paper's batch clients: a day."""

Form = Literal["tiny", "quick", "full"]
"""Sizes of a run. tiny: for tests; quick: minutes for all figures; full: the paper's sizes."""

WANTED = ("paper", "fifo", "adaptive")
"""Policies that the figures compare, if they exist."""

COLOURS = {"paper": "tab:red", "fifo": "tab:orange", "edf": "tab:purple", "deferred": "tab:green"}
"""Colours of the policies in every figure; `adaptive` and others are blue."""

RESNET = "resnet50_v2"
"""The model of the experiments with one architecture: 2.73 ms for one request, 925/s in batches of 16."""

V100_PAGES = 1376
EXEC_NOISE = 0.0003
"""Sigma of an execution: the paper's ResNet50 has its p99.99 within 0.03 % of the median (Fig. 2)."""
LOAD_NOISE = 0.01
LINK_NS = 50_000
LINK_JITTER_NS = 10_000
LINK_BYTES_S = 1_250_000_000
"""Bandwidth of a worker's 10 GbE, bytes/s."""
COPY_BYTES_S = 12_300_000_000
"""Bandwidth from host to device, bytes/s: that of every transfer in the paper's Table 1."""

PAPER = "Gujarati et al., OSDI 2020"
ARTIFACT = "the paper's public results repository"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of a run of an experiment."""

    form: Form = "quick"
    policies: tuple[str, ...] = ()  # policies in the form of named(); (): the policies of WANTED that exist
    seed: int = 0
    jobs: int = 1  # number of processes
    live: bool = True  # whether the parts that run on a CPU worker are included
    trace: Path | None = None  # a CSV file in the Azure Functions format; None: a synthetic trace
    mapping: str = ""  # fig9: original or shuffled; "": both
    # fig9: number of devices; 0: the paper's in original order, the fewest by a search when shuffled
    devices: int = 0

    def chosen(self) -> tuple[str, ...]:
        """The policies to run; edf where none of the wanted policies exists."""
        return self.policies or tuple(policy for policy in WANTED if policy in POLICIES) or ("edf",)


def named(policy: str) -> dict[str, Any]:
    """Arguments of simulate() for a policy written as name or name:option=number:option=number.

    Raises ConfigError for an unknown name, or an option that is no number.
    """
    name, *pairs = policy.split(":")
    if name not in POLICIES:
        raise ConfigError(f"no scheduling policy {name!r} (there is {', '.join(POLICIES)})")
    return {"policy": name, "options": policy_numbers(pairs)}


@dataclasses.dataclass
class Result:
    """The outcome of an experiment."""

    name: str
    title: str
    setting: Setting
    paper: dict[str, Any]  # the paper's numbers, each with its source
    rows: list[dict[str, Any]]  # a row for each case
    # facts about the whole run, bounds included
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    live: list[dict[str, Any]] = dataclasses.field(
        default_factory=list
    )  # keys with rows of a real cluster on this machine
    series: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # keys with drawn data that is too long for a table

    def to_json(self) -> dict[str, Any]:
        return {
            "figure": self.name,
            "title": self.title,
            "form": self.setting.form,
            "policies": list(self.setting.chosen()),
            "conditions": report.conditions(self.setting.seed),
            "paper": self.paper,
            "facts": self.facts,
            "rows": self.rows,
            "live": self.live,
            "series": self.series,
        }


def save(result: Result, drawing: Figure | None, out: Path) -> list[Path]:
    """Write NAME.json and, if there is a drawing, NAME.png. Returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / f"{result.name}.json"]
    written[0].write_text(
        json.dumps(result.to_json(), indent=1, default=plain, allow_nan=False) + "\n", encoding="utf-8"
    )
    if drawing is not None:
        written.append(out / f"{result.name}.png")
        drawing.savefig(written[1], dpi=110)
    return written


def plain(value: Any) -> Any:
    """Numpy's numbers and arrays as Python objects."""
    return value.tolist()


# ----- jobs in parallel ----------------------------------------------------------------------


Tick = Callable[[float], None]
"""Called with the finished part of a job, 0 to 1."""

Watch = Callable[[float], None]
"""Called with the finished part of all jobs, 0 to 1."""

POLL_S = 0.2

_parts: Sequence[Synchronized[float]] = ()


def _begin(parts: Sequence[Synchronized[float]]) -> None:
    global _parts
    _parts = parts


def _one(function: Callable[[Any, Tick], Any], job: Any, index: int) -> Any:
    def tick(part: float) -> None:
        _parts[index].value = part

    return function(job, tick)


def run_jobs(
    setting: Setting, function: Callable[[Any, Tick], Any], jobs: Sequence[Any], watch: Watch | None = None
) -> list[Any]:
    """The results of function(job, tick) for the jobs, in their order; in several processes if the setting
    says so.

    The function must be a module's, and jobs and results must be picklable.
    """
    tell = watch or (lambda part: None)
    if setting.jobs <= 1 or len(jobs) <= 1:
        found = []
        for index, job in enumerate(jobs):

            def tell_part(part: float, index: int = index) -> None:
                tell((index + part) / len(jobs))

            found.append(function(job, tell_part))
            tell((index + 1) / len(jobs))
        return found
    context = multiprocessing.get_context("spawn")
    parts = [context.Value("d", 0.0) for _ in jobs]
    with concurrent.futures.ProcessPoolExecutor(
        min(setting.jobs, len(jobs)), mp_context=context, initializer=_begin, initargs=(parts,)
    ) as pool:
        futures = [pool.submit(_one, function, job, index) for index, job in enumerate(jobs)]
        pending = set(futures)
        while pending:
            done, pending = concurrent.futures.wait(
                pending, timeout=POLL_S, return_when=concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                if future.exception() is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    future.result()
            tell(
                sum(1.0 if future.done() else min(part.value, 1.0) for future, part in zip(futures, parts))
                / len(jobs)
            )
        return [future.result() for future in futures]


def progress(tick: Tick, total_ns: int) -> Callable[[int, int], None]:
    """The on_progress argument of simulate() for a tick."""
    return lambda now_ns, requests: tick(min(1.0, now_ns / total_ns))


# ----- the paper's machines and models -------------------------------------------------------


def v100s(devices: int, **other: Any) -> Cluster:
    """Workers with one V100 each, according to the paper's tables and text."""
    given: dict[str, Any] = {
        "devices": devices,
        "page_bytes": PAPER_PAGE_BYTES,
        "page_count": V100_PAGES,
        "exec_noise": EXEC_NOISE,
        "load_noise": LOAD_NOISE,
        "link_there_ns": LINK_NS,
        "link_back_ns": LINK_NS,
        "link_jitter_ns": LINK_JITTER_NS,
        "input_bandwidth": LINK_BYTES_S,
        "copy_bandwidth": COPY_BYTES_S,
    }
    return Cluster(**(given | other))


def resnets(count: int, slo_ns: int = 0) -> list[ModelProfile]:
    """Copies of the paper's ResNet50."""
    return copies([dataclasses.replace(paper_model(RESNET), slo_ns=slo_ns)], count)


def input_ns(profile: ModelProfile, rows: int = 1) -> int:
    """The least time of a request's inputs to a device: over the worker's link, then the copy."""
    size = profile.input_bytes * rows
    return size * SECOND // LINK_BYTES_S + size * SECOND // COPY_BYTES_S


def rate_limit(profile: ModelProfile, slo_ns: int, batch_max: int = 0) -> float:
    """Requests/s that a device cannot exceed if each is to be answered within the SLO: the fluid bound.

    batch_max: the largest number of requests that can come together; 0: any number.
    """
    fixed_ns = 2 * LINK_NS + input_ns(profile)
    return max(
        (
            batch * SECOND / profile.execution_ns(batch)
            for batch in range(1, min(batch_max or profile.largest_batch(), profile.largest_batch()) + 1)
            if profile.execution_ns(batch) + fixed_ns <= slo_ns
        ),
        default=0.0,
    )


# ----- evaluation of a report ----------------------------------------------------------------


def summary(found: Report) -> dict[str, Any]:
    """A report as a row of numbers."""
    offered = int(found.models.offered.sum())
    sums = {
        name: int(getattr(found.models, name).sum())
        for name in ("good", "late", "refused", "missed", "failed", "unanswered", "cold")
    }
    return {
        "offered": offered,
        **sums,
        "goodput/s": round(found.goodput_rate, 2),
        "bad_%": round(100 * found.bad_fraction, 6),
        **{f"p{mark:g}_ms": milliseconds(found.percentile(mark)) for mark in (50, 99, 99.99)},
        "max_ms": milliseconds(found.latency.largest_ns),
        "device_busy_%": round(100 * float(found.device_busy.mean()), 2),
        "link_busy_%": round(100 * float(found.link_busy.mean()), 2),
        "loads": found.loads,
        "mean_batch": mean_batch(found),
        "cpu_s": round(found.cpu_s, 3),
        "digest": found.digest,
    }


def mean_batch(found: Report) -> float:
    """The mean number of requests in an execution."""
    executions = int(found.batches.sum())
    return (
        round(float((found.batches * range(len(found.batches))).sum()) / executions, 2) if executions else 0.0
    )


def milliseconds(ns: float) -> float | None:
    """Nanoseconds as rounded milliseconds; None for NaN."""
    return round(ns / MS, 3) if ns == ns else None


def share(good: Any, offered: Any) -> list[float | None]:
    """The good part of each element; None where nothing was offered."""
    return [float(served) / float(all_) if all_ else None for served, all_ in zip(good, offered)]


TAIL = (0, 50, 90, 99, 99.9, 99.99, 99.999, 99.9999)


def tail(found: Report) -> list[list[float]]:
    """[percent, ms] points of the latency's CDF, with its tail stretched as in the paper's plots."""
    marks = sorted({*TAIL, *(100 - 10 ** (-place / 8) for place in range(-16, 49))})
    return [[mark, found.percentile(mark) / MS] for mark in marks if found.latency.total * (100 - mark) >= 50]


def class_rows(tally: Tally, count: int) -> dict[str, list[int]]:
    """The counts offered, good and cold of the first ``count`` classes; 0 for classes without requests."""
    return {
        name: [int(values[at]) if at < len(values) else 0 for at in range(count)]
        for name, values in (("offered", tally.offered), ("good", tally.good), ("cold", tally.cold))
    }


def ladder(first_ns: int, factor: float, until_ns: int) -> list[int]:
    """SLOs from first_ns on, each ``factor`` times the last, up to the first that is at least until_ns."""
    found = [first_ns]
    while found[-1] < until_ns:
        found.append(round(first_ns * factor ** len(found)))
    return found
