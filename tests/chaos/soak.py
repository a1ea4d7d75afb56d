"""Hours of load, registrations and churn, and a check for resources that grow: ``python -m tests.chaos.soak
--hours 1``.

Question: does any resource of a cluster grow that should not? Samples of every process (resident memory,
descriptors, threads, sockets) and of the machine (shared memory, bytes of the data directories) go to a JSON
file and a plot. After a warm-up of a fifth of the time each series must be flat: its slope after Theil and
Sen, the median of the slopes between all pairs of samples, which is robust against outliers, must stay below
the bound of its kind per hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.progress

from clockwork.system.clock import SECOND, now_ns
from tests.chaos import template as templates
from tests.chaos.load import LoadSettings
from tests.chaos.processes import World, isolate, shared_memory, usage
from tests.chaos.records import Outcome, Request, read

WARM_UP_SHARE = 0.2
SAMPLES = 240
"""Number of samples of each series, however long the soak is."""

WORKER_LIVES = 12
"""Number of times that a worker is ended and started again during the soak: the last life of each must be
long enough to judge."""

CLIENT_LIFE_S = 20.0

FLAT = {
    "rss_mib": 8.0,  # fragmentation and a profile of a new shape may take this much in an hour
    "descriptors": 1.0,
    "threads": 1.0,
    "sockets": 1.0,
    "shared_memory": 1.0,
    "data_mib": 1.0,
}
"""Bound on the growth of a series in an hour, by its slope."""


@dataclasses.dataclass(slots=True)
class Series:
    """Samples of a quantity of a process; a process that was started again begins a new series."""

    name: str  # name of the process, and the number of its life
    kind: str  # a key of FLAT
    at_s: list[float] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope after Theil and Sen: the median over all pairs. 0 for fewer than two samples."""
    slopes = [
        (values[b] - values[a]) / (at[b] - at[a])
        for a, b in itertools.combinations(range(len(at)), 2)
        if at[b] > at[a]
    ]
    return statistics.median(slopes) if slopes else 0.0


@dataclasses.dataclass(slots=True)
class Verdict:
    name: str
    kind: str
    per_hour: float
    bound: float
    first: float
    last: float
    highest: float
    samples: int

    @property
    def flat(self) -> bool:
        return self.per_hour <= self.bound


def judge(series: Sequence[Series], duration_s: float) -> list[Verdict]:
    """Judge each series that covers at least half of the time after the warm-up: a shorter series says
    nothing about an hour."""
    verdicts = []
    for one in series:
        begin_s = max(WARM_UP_SHARE * duration_s, one.at_s[0] + WARM_UP_SHARE * duration_s / 4)
        pairs = [(at, value) for at, value in zip(one.at_s, one.values) if at >= begin_s]
        if not pairs or pairs[-1][0] - pairs[0][0] < 0.5 * (1 - WARM_UP_SHARE) * duration_s:
            continue
        at, values = zip(*pairs)
        verdicts.append(
            Verdict(
                one.name,
                one.kind,
                slope(at, values) * 3600,
                FLAT[one.kind],
                values[0],
                values[-1],
                max(values),
                len(at),
            )
        )
    return verdicts


class Sampler:
    def __init__(self, world: World, processes: dict[str, Any]) -> None:
        self._world = world
        self._processes = processes
        self._begin_ns = now_ns()
        self._memory_before = shared_memory()
        self._series: dict[tuple[str, str], Series] = {}

    @property
    def series(self) -> list[Series]:
        return list(self._series.values())

    def sample(self) -> None:
        at_s = (now_ns() - self._begin_ns) / SECOND
        for name, pid_of in self._processes.items():
            pid = pid_of()
            used = usage(pid)
            if used is not None:
                label = f"{name} {pid}"
                self._add(label, "rss_mib", at_s, used.rss_bytes / (1 << 20))
                self._add(label, "descriptors", at_s, used.descriptors)
                self._add(label, "threads", at_s, used.threads)
                self._add(label, "sockets", at_s, used.sockets)
        self._add("machine", "shared_memory", at_s, len(shared_memory() - self._memory_before))
        for name in ("controller", *(f"worker-{index}" for index in range(templates.WORKERS))):
            self._add(f"data of {name}", "data_mib", at_s, _tree_bytes(self._world.root / name) / (1 << 20))

    def _add(self, name: str, kind: str, at_s: float, value: float) -> None:
        series = self._series.setdefault((name, kind), Series(name, kind))
        series.at_s.append(at_s)
        series.values.append(value)


def _tree_bytes(root: Path) -> int:
    total = 0
    for folder, _, files in os.walk(root):
        for file in files:
            try:
                total += os.stat(os.path.join(folder, file)).st_blocks * 512
            except FileNotFoundError:  # the file was removed meanwhile
                continue
    return total


def plot(series: Sequence[Series], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(FLAT), 1, figsize=(9, 2.2 * len(FLAT)), sharex=True)
    for axis, kind in zip(axes, FLAT):
        for one in series:
            if one.kind == kind:
                axis.plot([at / 60 for at in one.at_s], one.values, label=one.name, linewidth=1)
        axis.set_ylabel(kind)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=6, ncol=3)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def soak(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Run the soak and return its report."""
    duration_s = arguments.hours * 3600
    template = templates.make(root / "template")
    world = World(root / "world", template)
    rng = random.Random(arguments.seed)
    memory_before = shared_memory()
    try:
        world.wait_until_whole()
        settings = LoadSettings(
            world.endpoint, world.client_link.endpoint, world.gateway_address, str(template.answers), template.models,
            template.churn, str(root / "records"), arguments.seed, arguments.rate, CLIENT_LIFE_S,
        )  # fmt: skip
        (root / "load.json").write_text(json.dumps(dataclasses.asdict(settings)))
        load = world.program([str(root / "load.json")], module="tests.chaos.load")
        load.wait_for("the load runs")
        sampler = Sampler(
            world,
            {one.name: lambda one=one: one.program.pid for one in world.supervised}
            | {"load": lambda: load.pid},
        )
        begin_ns, pause = now_ns(), threading.Event()
        # The workers' second lives begin early enough that their last lives cover most of the time.
        churn_s = [duration_s * 0.25 * (index + 1) / WORKER_LIVES for index in range(WORKER_LIVES)]
        with rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.TextColumn("{task.fields[note]}"),
            disable=not sys.stdout.isatty(),
        ) as progress:
            task = progress.add_task("soak", total=duration_s, note="")
            while (past_s := (now_ns() - begin_ns) / SECOND) < duration_s:
                assert load.process.poll() is None, load.text
                sampler.sample()
                while churn_s and churn_s[0] < past_s:
                    churn_s.pop(0)
                    rng.choice(world.workers).end(rng.choice([signal.SIGTERM, signal.SIGKILL]))
                progress.update(
                    task, completed=past_s, note=f"{sum(one.starts for one in world.supervised)} starts"
                )
                pause.wait(duration_s / SAMPLES)
        load.send(signal.SIGTERM)
        assert load.wait() == 0, load.text
        starts = {one.name: one.starts for one in world.supervised}
        troubles = world.stop()
    finally:
        world.destroy()
    troubles += [f"left in shared memory: {name}" for name in sorted(shared_memory() - memory_before)]
    outcomes: Counter[str] = Counter()
    for record in read(root / "records"):
        if isinstance(record, Request):
            outcomes[f"{'roomy' if record.roomy else 'tight'} {record.outcome}"] += 1
            if record.outcome in (Outcome.WRONG, Outcome.HUNG, Outcome.AGAIN):
                troubles.append(f"{record.outcome}: {record}")
        else:
            outcomes[f"{record.operation} {record.outcome}"] += 1
    verdicts = judge(sampler.series, duration_s)
    return {
        "hours": arguments.hours,
        "seed": arguments.seed,
        "rate": arguments.rate,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "starts": starts,
        "outcomes": dict(sorted(outcomes.items())),
        "troubles": troubles,
        "verdicts": [dataclasses.asdict(one) | {"flat": one.flat} for one in verdicts],
        "series": [dataclasses.asdict(one) for one in sampler.series],
    }


def main() -> int:
    """Run the command; return 1 if any series grew, or a request did not end as it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("soak"), help="NAME: NAME.json and NAME.png are written"
    )
    arguments = parser.parse_args()
    isolate()
    root = Path(tempfile.mkdtemp(prefix="clockwork-soak-"))
    try:
        report = soak(arguments, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    path = arguments.out.with_suffix(".json")
    path.write_text(json.dumps(report, indent=1))
    try:
        plot([Series(**one) for one in report["series"]], arguments.out.with_suffix(".png"))
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'clockwork-serving[plots]')")
    for one in report["verdicts"]:
        sign = "flat " if one["flat"] else "GROWS"
        print(f"{sign} {one['name']:24} {one['kind']:14} {one['per_hour']:+9.3f} an hour (bound {one['bound']:g}), "
              f"{one['first']:.1f} to {one['last']:.1f}, at most {one['highest']:.1f}")  # fmt: skip
    print(json.dumps(report["outcomes"]), json.dumps(report["starts"]))
    for trouble in report["troubles"]:
        print("WRONG", trouble)
    print(f"written: {path}")
    return 0 if not report["troubles"] and all(one["flat"] for one in report["verdicts"]) else 1


if __name__ == "__main__":
    sys.exit(main())
