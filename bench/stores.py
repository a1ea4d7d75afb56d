"""Workers whose disks hold a part of the models.

    python -m bench.stores [--workers 100] [--models 10000] [--part 1 --part 0.2] ...
    python -m bench.stores --live [--quick] [--json] [--models 48] [--seconds 12] [--copies 2 --copies 1] ...

Simulated: disks that hold a part of the models against disks that hold all. Each worker has one device. The
same requests go to both: Zipf 0.9 over all models, SLO 100 ms, 4 ms for one request, at a part of what the
devices can execute one by one. All devices together have memory for 0.6 of the models. Disks of the part
begin with two copies of each model in all, and are brought others over links of 100 MB/s.

Printed are, for windows one after the other from the start, the part of the requests that was in time; and
for the whole time the FETCHes a request, the LOADs a request, and the scheduler's processor time for a
request, which is a real time of this machine.

Live (--live): workers, each in a network namespace of its own behind a link of 100 MB/s;
bench.live_stores says what happens to them and what is measured. This takes root and iproute2, and is
skipped, with the reason, where the namespaces cannot be had. The first phase's requests are simulated, too.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

from bench import live_stores, report
from bench.grid import cells
from bench.grid.measure import cluster
from bench.networks import NoNetworks
from clockwork.sim.world import Open, Report, simulate

FITS = 0.6


def cell_of(workers: int, models: int, part: float) -> cells.Cell:
    spec = f"devices={workers},models={models},slo=100ms,gain=1,exec=4ms,zipf=0.9,fits={FITS},stored={part:g}"
    return cells.specified("stores", spec)


def measure(cell: cells.Cell, policy: str, load: float, seconds: float, window_s: float, seed: int) -> Report:
    """Simulate the cell at a part of what its devices execute one request after the other."""
    rate = load * cell.devices / cell.exec_ns * 1e9
    offered = cell.draw(seed, int(rate * seconds * 1.05) + 100).at(rate, seconds)
    return simulate(
        cells.profiles(cell), cluster(cell), [Open(cell.requests(offered).chunks())], policy=policy, seed=seed,
        until_ns=round(seconds * 1e9), resident=True, timed=True, series_ns=round(window_s * 1e9),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Line:
    policy: str
    load: float
    part: float
    good: Sequence[float]  # part of each window's requests
    fetches: float
    loads: float
    us: float


def lines(
    workers: int,
    models: int,
    parts: Sequence[float],
    policies: Sequence[str],
    loads: Sequence[float],
    seconds: float,
    window_s: float,
    seed: int,
) -> Iterator[Line]:
    for policy, load, part in itertools.product(policies, loads, parts):
        report = measure(cell_of(workers, models, part), policy, load, seconds, window_s, seed)
        windows = int(seconds / window_s)  # the answers behind the last arrival are left out
        good, bad = (report.series[name][:windows] for name in ("good", "bad"))
        offered = max(int(report.offered.sum()), 1)
        yield Line(
            policy, load, part, [float(part) for part in good / (good + bad)], report.fetches / offered,
            report.loads / offered, report.scheduler_s * 1e6 / report.requests,
        )  # fmt: skip


def live(plan: live_stores.Plan, as_json: bool) -> None:
    """Measure live workers, and print the result, or why there is none."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)  # through the blocks that end the processes

    signal.signal(signal.SIGTERM, end)
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for copies in plan.copies:
        try:
            found, more = live_stores.measure(plan, copies)
        except NoNetworks as why:
            print(f"skipped: no network namespaces with links here: {why}", file=sys.stderr)
            return
        rows += found
        facts |= {f"{name} ({copies} copies)": fact for name, fact in more.items()}
    facts |= {
        "workers": plan.workers,
        "requests/s": plan.rate,
        "SLO, s": plan.slo_s,
        "models": plan.models,
        "mean MB": plan.megabytes,
    }
    report.show("workers whose stores hold a part of the models", plan.seed, rows, facts, as_json)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option(
    "--workers",
    type=click.IntRange(1),
    help=f"[default: 100; live 3, of {live_stores.WORKERS_LEAST} to {live_stores.WORKERS_MOST}]",
)
@click.option("--models", type=click.IntRange(1), help="[default: 10000; live 48]")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=float,
    default=(1.0, 0.2),
    show_default=True,
    help="on each disk, simulated",
)
@click.option(
    "--policy", "policies", multiple=True, default=("adaptive", "edf"), show_default=True, help="simulated"
)
@click.option(
    "--load", "loads", multiple=True, type=float, default=(0.5, 0.9), show_default=True, help="simulated"
)
@click.option("--seconds", type=float, help="of requests; live in each phase [default: 30; live 12]")
@click.option(
    "--window", "window_s", default=5.0, show_default=True, help="seconds of each window, simulated"
)
@click.option("--seed", default=1, show_default=True)
@click.option("--live", "is_live", is_flag=True, help="Measure live workers instead.")
@click.option("--quick", is_flag=True, help="A small and short run, live.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, live.")
@click.option("--rate", type=click.FloatRange(1, 10_000), help="requests/s, live [default: 60]")
@click.option("--megabytes", type=click.FloatRange(0.1, 1000), help="mean size of a model, live [default: 8]")
@click.option(
    "--copies", type=click.Choice(["1", "2"]), multiple=True, help="of each model, live [default: 2, 1]"
)
def main(
    workers: int | None,
    models: int | None,
    parts: tuple[float, ...],
    policies: tuple[str, ...],
    loads: tuple[float, ...],
    seconds: float | None,
    window_s: float,
    seed: int,
    is_live: bool,
    quick: bool,
    as_json: bool,
    rate: float | None,
    megabytes: float | None,
    copies: tuple[str, ...],
) -> None:
    if is_live:
        given: dict[str, Any] = {
            "workers": workers,
            "models": models,
            "seconds": seconds,
            "rate": rate,
            "megabytes": megabytes,
            "seed": seed,
            "copies": tuple(map(int, copies)) or None,
        }
        plan = live_stores.QUICK if quick else live_stores.Plan()
        if seconds is not None and seconds < live_stores.SECONDS_LEAST:
            raise click.UsageError(
                f"--seconds {seconds:g}: a live phase takes {live_stores.SECONDS_LEAST:g} s or more"
            )
        least, most = live_stores.WORKERS_LEAST, live_stores.WORKERS_MOST
        if workers is not None and not least <= workers <= most:
            raise click.UsageError(f"--workers {workers}: live there are {least} to {most}")
        changed = {name: value for name, value in given.items() if value is not None}
        live(dataclasses.replace(plan, **changed), as_json)
        return
    print("policy   load  part  fetches/req  loads/req  scheduler us/req  in time, window by window")
    for line in lines(
        workers or 100, models or 10_000, parts, policies, loads, seconds or 30.0, window_s, seed
    ):
        good = " ".join(f"{part:.4f}" for part in line.good)
        print(
            f"{line.policy:8} {line.load:4} {line.part:5} {line.fetches:12.5f} {line.loads:10.4f} {line.us:17.2f}  {good}",
            flush=True,
        )


if __name__ == "__main__":
    main()
