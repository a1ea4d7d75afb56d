"""Requests outside of their SLO on the paper's cluster at half of its capacity, and the cause of each.

    python -m bench.million [--requests 1e8] [--policies adaptive,edf] [--workloads trace,poisson,bursty:1e7]
        [--load 0.5] [--processes 2] [--seed 1] [--shard 1e6] [--out DIR] [--json] [--publish] [--quick]
    python -m bench.million --live [--requests 1e6] [--policies adaptive] [--rate N] [--out DIR] ...

Simulated: 12 V100s with the paper's 4,026 models, memory and links, an SLO of 100 ms, and the published noise
(bench/million/cases.py). Capacity is the highest rate at which 99 % of the requests are in time under the
better of the two policies; `--load` is a part of it. The run consists of shards with seeds of their own; each
is written to its file in DIR as soon as it is done, so a run that was stopped goes on where it was. Every
request outside of its SLO is listed with its fate, and explained from a recording of the same shard.

Live (--live): the same devices and models, emulated by one worker behind real sockets, without inputs; see
bench/million/live.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import published, report
from bench.million import cases, live
from bench.million.run import POLICIES, QUICK, QUICK_WORKLOADS, Plan, brief, measure
from clockwork.errors import ConfigError

DEFAULT_WORKLOADS = "trace,poisson,bursty:1e7"
OUT = Path("bench/results/million")
LISTED_MAX = 20
"""Requests of a row that the terminal shows; the files have all."""


def told(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each request outside of its SLO, the first of each row."""
    for row in rows:
        for request in row["listed"][:LISTED_MAX]:
            yield (
                f"{row['workload']}, {row['policy']}, shard {request['shard']}, request {request['request']} at {request['at_s']:.3f} s"
                f" for {request['model']}: {request['outcome']} {request['reason']} after {request['after_ms']:g} ms"
            )
            yield from (f"    {sentence}" for sentence in request.get("said", ()))
        if len(row["listed"]) > LISTED_MAX:
            yield f"{row['workload']}, {row['policy']}: {len(row['listed']) - LISTED_MAX} more, see the files"


def workloads_of(text: str) -> dict[str, int]:
    """The requests of each workload; 0 where the text says nothing. Raises ConfigError."""
    found = {}
    for part in text.split(","):
        name, _, count = part.partition(":")
        if name not in cases.WORKLOADS:
            raise ConfigError(f"no workload {name!r} (there is {', '.join(cases.WORKLOADS)})")
        found[name] = int(float(count)) if count else 0
    return found


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    parser.add_argument("--live", action="store_true", help="on emulated devices behind real sockets")
    parser.add_argument("--requests", type=lambda text: int(float(text)), default=0)
    parser.add_argument("--shard", type=lambda text: int(float(text)), default=Plan.shard)
    parser.add_argument("--policies", default="")
    parser.add_argument(
        "--workloads",
        default=DEFAULT_WORKLOADS,
        help=f"of {', '.join(cases.WORKLOADS)}, each perhaps with its requests (default: %(default)s)",
    )
    parser.add_argument("--load", type=float, default=Plan.load, help="part of the capacity")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="live: requests/s (default: --load of capacity)"
    )
    parser.add_argument(
        "--explain", type=int, default=Plan.explained, help="requests of each shard to explain"
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--out", type=Path, default=None, help=f"default: {OUT}, {OUT}-live or {OUT}-quick")
    given = parser.parse_args()
    console = Console(stderr=True)
    with report.in_a_sentence():
        if given.live:
            live.main(given, console)
            return
        if given.quick:
            plan, workloads = QUICK, QUICK_WORKLOADS
        else:
            workloads = workloads_of(given.workloads)
            plan = Plan(given.requests or Plan.requests, given.shard, given.load, given.seed, given.explain)
        out = given.out or (OUT.with_name(f"{OUT.name}-quick") if given.quick else OUT)
        policies = tuple(given.policies.split(",")) if given.policies else POLICIES
        rows, facts = measure(plan, workloads, policies, out, given.processes, console)
    if given.publish:
        kept = [{**row, "listed": brief(row["listed"])} for row in rows]
        published.save("million", {"rows": kept, "facts": facts}, plan.seed)
    if given.json:
        report.show("outside of the SLO at half of capacity", plan.seed, rows, facts, True)
        return
    hidden = ("listed",)
    shown = [{name: value for name, value in row.items() if name not in hidden} for row in rows]
    report.show("outside of the SLO at half of capacity", plan.seed, shown, facts, False)
    for line in told(rows):
        print(line)


if __name__ == "__main__":
    main()
