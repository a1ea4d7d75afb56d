"""Runs the simulated shards in processes, saves each as soon as it is done, and sums them up."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench import published, report
from bench.million import cases, counting, shards
from bench.million.shards import Shard
from bench.paper.common import MS
from clockwork.errors import ConfigError

POLICIES = ("adaptive", "edf")
LISTED_MAX, EXPLAINED_MAX = 200, 20
"""Requests of a row that a published file has; the files of the shards have all."""

MARKS = (50.0, 99.0, 99.99, 99.9999)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a simulated run; a directory belongs to a single plan."""

    requests: int = 100_000_000
    shard: int = 1_000_000
    load: float = 0.5
    seed: int = 1
    explained: int = 5  # requests of each shard
    capacity_requests: int = cases.CAPACITY_REQUESTS
    places: int = cases.CAPACITY_PLACES


QUICK = Plan(4_000, 2_000, capacity_requests=1_500, places=1)
QUICK_WORKLOADS = {"trace": 0, "poisson": 0, "bursty": 2_000}


@dataclasses.dataclass(frozen=True)
class CapacityTask:
    workload: str
    policy: str
    minute: int
    seed: int
    requests: int

    @property
    def name(self) -> str:
        return f"capacity-{self.workload}-{self.policy}-{self.minute:04d}"


def perform(task: CapacityTask | Shard) -> dict[str, Any]:
    """Run a task in this process."""
    if isinstance(task, Shard):
        return shards.perform(task)
    rate = cases.capacity(task.workload, task.policy, task.seed, task.minute, task.requests)
    return {**dataclasses.asdict(task), "rate": rate}


def saved(out: Path, name: str) -> dict[str, Any] | None:
    """The result of a task that has one."""
    path = out / f"{name}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def save(out: Path, name: str, body: dict[str, Any]) -> None:
    """Write a result atomically."""
    temporary = out / f"{name}.new"
    temporary.write_text(json.dumps(body, default=published.plain) + "\n", encoding="utf-8")
    os.replace(temporary, out / f"{name}.json")


def opened(out: Path, plan: Plan) -> None:
    """Create the directory, or check that its results are of this plan and commit. Raises ConfigError.

    A run of more requests goes on where a shorter one ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = {**dataclasses.asdict(plan), "requests": 0, "commit": report.commit()}
    known = saved(out, "plan")
    if known is None:
        save(out, "plan", wanted)
    elif known != wanted:
        raise ConfigError(f"{out} has results of {known}, not of {wanted}: give another --out")


def done(
    tasks: Sequence[CapacityTask | Shard], out: Path, processes: int, tell: Callable[[int], None]
) -> list[dict[str, Any]]:
    """The results of tasks in their order; those without one are run, in processes, and saved."""
    missing = [task for task in tasks if not (out / f"{task.name}.json").exists()]
    conditions = {"commit": report.commit(), "machine": report.machine()}

    def enter(task: CapacityTask | Shard, found: dict[str, Any]) -> None:
        load = {"load_average": round(os.getloadavg()[0], 2)}
        save(out, task.name, {**conditions, **load, **found})
        tell(1)

    tell(len(tasks) - len(missing))
    if processes <= 1 or len(missing) <= 1:
        for task in missing:
            enter(task, perform(task))
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
            futures = {pool.submit(perform, task): task for task in missing}
            try:
                for future in concurrent.futures.as_completed(futures):
                    enter(futures[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [found for task in tasks if (found := saved(out, task.name)) is not None]


def capacities(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By workload: the mean over places of the better policy's capacity."""
    best: dict[str, dict[int, float]] = {}
    for task in found:
        places = best.setdefault(task["workload"], {})
        places[task["minute"]] = max(places.get(task["minute"], 0.0), task["rate"])
    return {workload: sum(places.values()) / len(places) for workload, places in best.items()}


def measure(
    plan: Plan,
    workloads: Mapping[str, int],
    policies: Sequence[str],
    out: Path,
    processes: int,
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows by workload and policy, and facts of the run. workloads: the requests of each; 0: the plan's."""
    opened(out, plan)
    begun_s = time.monotonic()
    wanted = [
        CapacityTask(workload, policy, minute, plan.seed, plan.capacity_requests)
        for workload in workloads
        for policy in POLICIES
        for minute in cases.places(workload, plan.places)
    ]
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console,
    ) as progress:  # fmt: skip
        row = progress.add_task("capacity", total=len(wanted))
        carried = capacities(done(wanted, out, processes, lambda count: progress.advance(row, count)))
        rows = []
        for workload, policy in itertools.product(workloads, policies):
            rate = plan.load * carried[workload]
            size = dataclasses.replace(plan, requests=workloads[workload] or plan.requests)
            found = whole(size, workload, policy, rate, out, processes, progress)
            rows.append(summary(workload, policy, carried[workload], rate, found))
    facts = {
        "load": plan.load,
        "devices, models": f"{cases.DEVICES}, {len(cases.models())}",
        "workloads": {name: cases.WORKLOADS[name] for name in workloads},
        "noise of executions, loads, outliers": [cases.EXEC_NOISE, cases.cluster().load_noise, cases.OUTLIER],
        "seconds of this call": round(time.monotonic() - begun_s),
    }
    return rows, facts


def whole(
    plan: Plan, workload: str, policy: str, rate: float, out: Path, processes: int, progress: Progress
) -> list[dict[str, Any]]:
    """The shards of a workload under a policy, until they hold as many requests as the plan says."""
    count = -(-plan.requests // plan.shard)
    row = progress.add_task(f"{workload}, {policy}", total=count)
    while True:
        tasks = [
            Shard(workload, policy, number, rate, plan.shard, plan.seed, plan.explained)
            for number in range(count)
        ]
        before = progress.tasks[row].completed
        found = done(
            tasks, out, processes,
            lambda ended, before=before: progress.advance(row, ended),  # type: ignore[misc]
        )  # fmt: skip
        if sum(shard["counts"]["offered"] for shard in found) >= plan.requests:
            progress.update(row, total=count, completed=count)
            return found
        count += 1
        progress.update(row, total=count, completed=0)


def summary(
    workload: str, policy: str, carried: float, rate: float, found: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A row: counts, the rate of requests outside of their SLO with its bound, latencies, mispredictions."""
    counts = counting.summed([shard["counts"] for shard in found], found[0]["counts"])
    rows = [{"shard": shard["number"], **row} for shard in found for row in shard["outside"]]
    latency = counting.merged(shard["latency"] for shard in found)
    offered = max(1, counts["offered"])
    errors = {
        f"{side}_p99_us": round(
            (counting.percentile(counting.merged(shard[side] for shard in found), 99) or 0) / 1e3, 1
        )
        for side in ("over", "under")
    }
    return {
        "workload": workload,
        "policy": policy,
        "capacity/s": round(carried, 1),
        "rate/s": round(rate, 1),
        "requests": counts["offered"],
        "outside": len(rows),
        "in a million": round(1e6 * len(rows) / offered, 4),
        "at most, 95 %": round(1e6 * counting.upper(len(rows)) / offered, 4),
        **{name: counts[name] for name in ("refused", "missed", "late", "failed", "unanswered")},
        **{f"p{mark:g}_ms": _ms(counting.percentile(latency, mark)) for mark in MARKS},
        "max_ms": _ms(max(shard["largest_ns"] for shard in found)),
        "cold_%": round(100 * counts["cold"] / offered, 3),
        "executing_%": round(100 * sum(shard["executing"] for shard in found) / len(found), 1),
        "loading_%": round(100 * sum(shard["loading"] for shard in found) / len(found), 1),
        **errors,
        "too_late": sum(shard["too_late"] for shard in found),
        "us/request": round(1e6 * sum(shard["cpu_s"] for shard in found) / offered, 2),
        "fates": dict(Counter(f"{row['outcome']} {row['reason']}".strip() for row in rows)),
        "listed": rows,
    }


def brief(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first LISTED_MAX requests, the first EXPLAINED_MAX of them with their explanations."""
    kept = [dict(row) for row in rows[:LISTED_MAX]]
    for row in kept[EXPLAINED_MAX:]:
        row.pop("said", None)
    return kept


def _ms(ns: float | None) -> float | None:
    return None if ns is None else round(ns / MS, 2)
