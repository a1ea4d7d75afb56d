"""python -m bench.executors: one arena with N executors against N devices with an arena each, simulated.

Each line is a cluster of one worker: `arena` is one arena of M pages with N executors, `split` is N devices
that share these M pages out, `each` is N devices of M pages each. The same requests go to all of them, seed
by seed, each seed to the three in turn. Printed are the means over the seeds of the good answers per second,
of the loads per request and of the p99 of the latency; the scheduler's processor time for a request, which is
a real time of this machine; and how many times as long the arena's scheduler took for a request as this one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator

import click

from bench.grid import cells
from clockwork.sim.world import Cluster, Open, Report, simulate

MEMORY = {"fits": 1.0, "pressed": 0.4}
"""The part of all models' pages that the arena holds."""
SHAPES = ("arena", "split", "each")
LINK_NS = 50_000


def cell_of(devices: int, models: int) -> cells.Cell:
    return cells.specified(
        "executors", f"devices={devices},models={models},slo=50ms,gain=2,exec=4ms,zipf=0.9,fits=0.4"
    )


def cluster_of(cell: cells.Cell, shape: str, part: float) -> Cluster:
    pages = [profile.pages(cells.PAGE_BYTES) for profile in cells.profiles(cell)]
    arena = max(math.ceil(part * sum(pages)), 4 * max(pages))
    count = cell.devices
    split = max(math.ceil(arena / count), 2 * max(pages))
    return Cluster(
        devices=count, devices_per_worker=count, executors=count if shape == "arena" else 1,
        page_bytes=cells.PAGE_BYTES, page_count=split if shape == "split" else arena,
        exec_noise=cells.EXEC_NOISE, load_noise=cells.LOAD_NOISE, link_there_ns=LINK_NS, link_back_ns=LINK_NS,
    )  # fmt: skip


def measure(
    cell: cells.Cell, cluster: Cluster, policy: str, load: float, seconds: float, seed: int
) -> Report:
    """Simulate the cell at a part of its capacity: of all devices with batches of eight."""
    curve = cells.profiles(cell)[0].exec_ns
    rate = load * cell.devices * 8 / curve[8] * 1e9
    count = int(rate * seconds * 1.05) + 100
    offered = cell.draw(seed, count).at(rate, seconds)
    return simulate(
        cells.profiles(cell), cluster, [Open(cell.requests(offered).chunks())], policy=policy, seed=seed,
        warmup_ns=round(0.3 * seconds * 1e9), until_ns=round(seconds * 1e9), resident=True, timed=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Line:
    executors: int
    memory: str
    policy: str
    load: float
    shape: str
    goodput: float
    good: float
    loads: float
    p99_ms: float
    us: float
    ratio: float  # the arena's time for a request by this one's


def lines(
    counts: list[int],
    policies: list[str],
    loads: list[float],
    memories: list[str],
    seconds: float,
    models: int,
    seeds: list[int],
) -> Iterator[Line]:
    for count, memory, policy, load in itertools.product(counts, memories, policies, loads):
        cell = cell_of(count, models)
        clusters = {shape: cluster_of(cell, shape, MEMORY[memory]) for shape in SHAPES}
        reports: dict[str, list[Report]] = {shape: [] for shape in SHAPES}
        for seed, shape in itertools.product(seeds, SHAPES):
            reports[shape].append(measure(cell, clusters[shape], policy, load, seconds, seed))
        us = {
            shape: sum(report.scheduler_s for report in found)
            * 1e6
            / sum(report.requests for report in found)
            for shape, found in reports.items()
        }
        for shape, found in reports.items():
            offered = max(sum(int(report.offered.sum()) for report in found), 1)
            yield Line(
                count, memory, policy, load, shape,
                statistics.fmean(report.goodput_rate for report in found),
                sum(int(report.good.sum()) for report in found) / offered,
                sum(report.loads for report in found) / offered,
                statistics.fmean(report.percentile(99) for report in found) / 1e6,
                us[shape], us["arena"] / us[shape],
            )  # fmt: skip


@click.command()
@click.option("--executors", "counts", multiple=True, type=int, default=(4, 16, 64), show_default=True)
@click.option("--policy", "policies", multiple=True, default=("adaptive", "edf"), show_default=True)
@click.option("--load", "loads", multiple=True, type=float, default=(0.6, 0.9, 1.2, 1.5), show_default=True)
@click.option(
    "--memory",
    "memories",
    multiple=True,
    type=click.Choice(list(MEMORY)),
    default=tuple(MEMORY),
    show_default=True,
)
@click.option("--seconds", default=3.0, show_default=True)
@click.option("--models", default=100, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(1,), show_default=True)
def main(
    counts: tuple[int, ...],
    policies: tuple[str, ...],
    loads: tuple[float, ...],
    memories: tuple[str, ...],
    seconds: float,
    models: int,
    seeds: tuple[int, ...],
) -> None:
    print(
        "executors memory   policy    load shape  goodput/s   good  loads/req   p99 ms  scheduler us/req  arena/this"
    )
    for line in lines([*counts], [*policies], [*loads], [*memories], seconds, models, [*seeds]):
        print(
            f"{line.executors:9} {line.memory:8} {line.policy:9} {line.load:4} {line.shape:6} {line.goodput:9.0f} "
            f"{line.good:6.3f} {line.loads:10.4f} {line.p99_ms:8.2f} {line.us:8.2f} {line.ratio:19.2f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
