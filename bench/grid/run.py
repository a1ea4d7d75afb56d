"""Runs the grid: decides what to measure next, runs it in processes, and saves after every result.

A results file is a *book*: the time spent on it, and cells; a cell has its warm-up, the bounds by seed, and
the screened and measured results by setting. The next tasks follow from the book alone, so that an
interrupted run can continue, and two runs with the same seed write the same numbers in whatever order their
processes end.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.grid import bounds, measure, moments, policies, search, whole
from bench.grid.cells import Cell
from bench.grid.policies import Setting
from bench.report import conditions

SCREENED_WITHIN = 0.96
"""Part of the best screened goodput from which a setting of a policy is measured in full."""
SCREENED_MAX = 3
"""Most settings of a policy that are measured in full."""

SCREENING_SEED = 500_000
"""Offset of the screening seed: settings are not chosen on the seeds that are reported."""

OVERLOADS = (1.2, 1.5)
"""Multiples of the goodput at which overload is measured."""

ROUGH_REQUESTS = 4000
WARMUP_AT = 0.6
"""Part of a rough bound at which the warm-up is determined."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a run; a book belongs to a single plan."""

    requests: int = 100_000
    seeds: int = 10
    first_seed: int = 1
    tolerance: float = 1.005
    screen_requests: int = 30_000
    screen_tolerance: float = 1.03
    screened_max: int = SCREENED_MAX

    @property
    def reported(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def screening_seed(self) -> int:
        return self.first_seed + SCREENING_SEED


QUICK = Plan(
    requests=6000, seeds=2, tolerance=1.02, screen_requests=3000, screen_tolerance=1.08, screened_max=1
)


NO_SETTING = Setting("")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task for a process; key is the place of its result in the book."""

    kind: str  # prepare, bound, moments, screen, measure
    cell: Cell
    plan: Plan
    setting: Setting = NO_SETTING
    seed: int = 0
    warmup_s: float = 0.0
    bound: float = 0.0  # a rate near the highest possible
    guess: float = 0.0  # a rate near the goodput; 0: unknown
    chosen: tuple[str, ...] = policies.POLICIES  # policies of the command prepare, whose runs must be warm

    @property
    def key(self) -> tuple[str, str, str, int]:
        return (self.kind, self.cell.name, self.setting.key, self.seed)


def perform(task: Task) -> dict[str, Any]:
    """Run a task in this process."""
    kinds = {"prepare": prepare, "bound": bound, "moments": of_moments, "screen": screen, "measure": measured}
    return kinds[task.kind](task)


def prepare(task: Task) -> dict[str, Any]:
    """The cell's warm-up, and a rough bound from which the search begins."""
    cell, seed = task.cell, task.plan.screening_seed
    drawn = cell.draw(seed, bounds.needed_arrivals(cell, ROUGH_REQUESTS, 0.0))
    rough = bounds.rate_bound(cell, drawn, ROUGH_REQUESTS, 0.0, clairvoyant=True)
    rate = WARMUP_AT * rough
    firsts = [
        policies.settings(policy, memory, cell)[0]
        for policy in task.chosen
        for memory in policies.memories(policy, cell)
    ]
    count = measure.WARMUP_WINDOWS * max(
        measure.WARMUP_WINDOW_REQUESTS, int(rate * measure.WARMUP_WINDOW_SLOS * cell.slo_max_ns / 1e9)
    )
    longer = cell.draw(seed, int(1.2 * count) + 2000)
    return {
        "spec": cell.spec,
        "rough_bound": rough,
        "warmed_with": list(task.chosen),
        "warmup_s": measure.warmup_s(cell, firsts, longer, rate, seed),
    }


def bound(task: Task) -> dict[str, Any]:
    return whole.every_bound(task.cell, task.seed, task.plan.requests, task.warmup_s)


def of_moments(task: Task) -> dict[str, Any]:
    """The bound of moments alone."""
    cell, requests = task.cell, task.plan.requests
    drawn = cell.draw(task.seed, bounds.needed_arrivals(cell, requests, task.warmup_s))
    high = bounds.fluid_rate(cell)
    while (found := moments.rate_bound(cell, drawn, requests, task.warmup_s, high)) == high:
        high *= 1.1  # chance left room for the highest rate, so it bounds nothing
    return {"moments": found}


def screen(task: Task) -> dict[str, Any]:
    plan = task.plan
    coarse = dataclasses.replace(plan, requests=plan.screen_requests, tolerance=plan.screen_tolerance)
    return found_goodput(dataclasses.replace(task, plan=coarse), overloads=())


def measured(task: Task) -> dict[str, Any]:
    return found_goodput(task, overloads=OVERLOADS)


def found_goodput(task: Task, overloads: Sequence[float]) -> dict[str, Any]:
    """Search for the goodput, then measure overload; every point is kept."""
    cell, plan = task.cell, task.plan
    most = max(task.bound, bounds.fluid_rate(cell) if not task.bound else 0.0) * 2
    drawn = cell.draw(task.seed, arrivals_for(cell, plan.requests, task.warmup_s, most))
    points: list[measure.Point] = []

    def at(rate: float) -> measure.Point:
        return measure.point(
            cell,
            task.setting,
            drawn,
            rate,
            seed=task.seed,
            warmup_s=task.warmup_s,
            requests=plan.requests,
        )

    def passes(rate: float) -> bool:
        points.append(at(rate))
        return points[-1].passes

    goodput = search.goodput(passes, task.bound, task.guess, plan.tolerance)
    points.sort(key=lambda point: point.rate)
    return {
        "goodput": goodput,
        "points": [point.to_json() for point in points],
        "overload": {f"{times:g}": at(times * goodput).to_json() for times in overloads if goodput},
        "cpu_s": round(sum(point.cpu_s for point in points), 3),
    }


def arrivals_for(cell: Cell, requests: int, warmup_s: float, rate: float) -> int:
    """Arrivals to draw, so that every rate up to this one has its warm-up and window."""
    longest = max(rate * (warmup_s + cell.window_s(rate, requests)), rate * warmup_s + requests)
    return int(1.2 * longest) + 5000


# ----- the book -------------------------------------------------------------------------------


def empty(plan: Plan) -> dict[str, Any]:
    return {
        "plan": dataclasses.asdict(plan),
        "conditions": conditions(plan.first_seed),
        "took_s": 0.0,
        "cells": {},
    }


def load(path: Path, plan: Plan, any_commit: bool = False) -> dict[str, Any]:
    """The book in a file, or an empty book. Raises ValueError if its plan or its commit is another.

    any_commit: accept the book of another commit; each result has the commit that made it.
    """
    if not path.exists():
        return empty(plan)
    book: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if book["plan"] != dataclasses.asdict(plan):
        raise ValueError(f"{path} was made with {book['plan']}: give another --out, or the same options")
    commit = conditions(plan.first_seed)["commit"]
    if book["conditions"]["commit"] != commit:
        if not any_commit:
            raise ValueError(
                f"{path} was made by commit {book['conditions']['commit']}: give another --out or --any-commit"
            )
        book["conditions"] = conditions(plan.first_seed)
    return book


def forget(book: dict[str, Any], chosen: Sequence[str]) -> None:
    """Remove the results of policies that have changed from a book."""
    for found in book["cells"].values():
        found["settings"] = {
            key: entry for key, entry in found["settings"].items() if Setting.of_key(key).policy not in chosen
        }


def save(path: Path, book: dict[str, Any]) -> None:
    """Write the book atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(book, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def enter(book: dict[str, Any], task: Task, result: dict[str, Any]) -> None:
    cells = book["cells"]
    if task.kind == "prepare":
        cells[task.cell.name] = {**result, "bounds": {}, "settings": {}}
        return
    cell = cells[task.cell.name]
    if task.kind in ("bound", "moments"):
        cell["bounds"][str(task.seed)] = result
        return
    setting = cell["settings"].setdefault(task.setting.key, {"seeds": {}})
    if task.kind == "screen":
        setting["screened"] = result["goodput"]
    else:
        setting["seeds"][str(task.seed)] = {**result, "commit": book["conditions"]["commit"]}


def ready(
    book: dict[str, Any],
    plan: Plan,
    cells: Sequence[Cell],
    chosen: Sequence[str],
    *,
    with_bounds: bool,
    with_goodputs: bool,
    moments_only: bool,
) -> Iterator[Task]:
    """The tasks that can run now and have no result in the book; in an order that finishes cells."""
    for cell in cells:
        found = book["cells"].get(cell.name)
        if found is None:
            yield Task("prepare", cell, plan, chosen=tuple(chosen))
            continue
        if found["spec"] != cell.spec:
            raise ValueError(f"cell {cell.name} is {found['spec']} in the book, not {cell.spec}")
        base = Task("", cell, plan, warmup_s=found["warmup_s"], bound=found["rough_bound"])
        for policy in chosen if with_goodputs else ():
            for memory in policies.memories(policy, cell):
                yield from _of_policy(found, base, policies.settings(policy, memory, cell))
        if with_bounds:
            for seed in plan.reported:
                if str(seed) not in found["bounds"]:
                    kind = "moments" if moments_only else "bound"
                    yield dataclasses.replace(base, kind=kind, seed=seed)


def _of_policy(found: dict[str, Any], base: Task, settings: Sequence[Setting]) -> Iterator[Task]:
    book = found["settings"]
    plan = base.plan
    if len(settings) > 1:
        missing = [setting for setting in settings if "screened" not in book.get(setting.key, {})]
        for setting in missing:
            yield dataclasses.replace(base, kind="screen", setting=setting, seed=plan.screening_seed)
        if missing:
            return
    for setting in kept(book, settings, plan.screened_max):
        entry = book.get(setting.key, {"seeds": {}})
        first, *others = [str(seed) for seed in plan.reported]
        task = dataclasses.replace(base, kind="measure", setting=setting)
        if first not in entry["seeds"]:
            yield dataclasses.replace(task, seed=int(first), guess=0.0)
            continue
        guess = entry["seeds"][first]["goodput"]
        for seed in others:
            if seed not in entry["seeds"]:
                yield dataclasses.replace(task, seed=int(seed), guess=guess)


def kept(book: dict[str, Any], settings: Sequence[Setting], most: int) -> list[Setting]:
    """The settings to measure in full: those screened near the best, the best first."""
    if len(settings) == 1:
        return list(settings)
    ranked = sorted(settings, key=lambda setting: -book[setting.key]["screened"])
    best = book[ranked[0].key]["screened"]
    return [setting for setting in ranked if book[setting.key]["screened"] >= SCREENED_WITHIN * best][:most]


def run(
    plan: Plan,
    cells: Sequence[Cell],
    chosen: Sequence[str],
    path: Path,
    *,
    processes: int,
    with_bounds: bool = True,
    with_goodputs: bool = True,
    moments_only: bool = False,
    any_commit: bool = False,
    forgotten: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure missing results, save after each, and return the book.

    with_bounds, with_goodputs: parts to leave out. moments_only: of the bounds, compute this one.
    any_commit: continue a book of another commit. forgotten: policies that are measured anew.
    """
    book = load(path, plan, any_commit)
    forget(book, forgotten)
    before_s, begun_s = book.setdefault("took_s", 0.0), time.monotonic()

    def tasks() -> Iterator[Task]:
        return ready(
            book,
            plan,
            cells,
            chosen,
            with_bounds=with_bounds,
            with_goodputs=with_goodputs,
            moments_only=moments_only,
        )

    def keep() -> None:
        book["took_s"] = round(before_s + time.monotonic() - begun_s, 1)
        save(path, book)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=console is None) as progress:
        bar = progress.add_task("grid", total=None)
        if processes == 1:
            while task := next(tasks(), None):
                progress.update(bar, description=" ".join(str(part) for part in task.key))
                enter(book, task, perform(task))
                keep()
                progress.advance(bar)
            return book
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            flying: dict[Future[dict[str, Any]], Task] = {}
            while True:
                keys = {task.key for task in flying.values()}
                waiting = [task for task in tasks() if task.key not in keys]
                for task in waiting[: processes - len(flying)]:
                    flying[pool.submit(perform, task)] = task
                if not flying:
                    return book
                progress.update(bar, description=f"{len(flying)} running, {len(waiting)} known to wait")
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    enter(book, flying.pop(future), future.result())
                    progress.advance(bar)
                keep()


def best_setting(found: dict[str, Any], policy: str, memory: str) -> Setting | None:
    """The setting of a policy with the highest mean goodput; None if none was measured.

    A setting that uses the policy's own memory manager counts for every manager.
    """
    candidates = []
    for key, entry in found["settings"].items():
        setting = Setting.of_key(key)
        if entry["seeds"] and setting.policy == policy and setting.memory in ("", memory):
            candidates.append((statistics.fmean(seed["goodput"] for seed in entry["seeds"].values()), key))
    return Setting.of_key(max(candidates)[1]) if candidates else None
