"""Clockwork beside Triton and other servers: the same models, arrivals and deadlines, in turn, in one run.

    python -m bench.peers [--quick] [--setup-only] [--peers clockwork,triton-policy] [--models 1,30]
        [--transports http,grpc] [--loads 0.6,1.2] [--executors 1] [--rounds 2] [--seconds 4] [--json]
        [--plot FILE]

Measured are the part of the requests that each server answers within the SLO, below and beyond the rate that
its executors can serve, and the time for which it works for clients that have left. The model is a residual
network of about 5 ms, or fine-tunes of it, with popularity by Zipf's law and room for a third of them where
the server can limit its memory. ONNX Runtime has one thread in each server; arrivals are open-loop Poisson
with a seed; the SLO is 100 ms. Clients give up after 3 s, and all leave when the last SLO has passed. The
client is this process for all servers. Capacity is 1 / the mean time of plain ONNX Runtime in this process,
before each round. With `--executors 2` loads are parts of twice that, and Clockwork and Triton are measured,
with two executors and two instances of each model. The servers take turns, round by round. Each is started
for its turn, answers every model right and is warmed up first, and no process of it is left afterwards.

The first run installs the peers from pinned versions into environments of their own
(~/.cache/clockwork/peers; about 2 GB and some minutes). They need Python 3.11. `--publish` writes
docs/results/peers.json and its plot, and the tables in the documents.
"""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import published, report
from bench.peers import measure, show
from bench.peers.environments import CACHE, Environment
from bench.peers.measure import Cell, Plan
from bench.peers.systems import SYSTEMS, Transport
from clockwork.system.clock import SECOND

LOADS = (0.6, 0.75, 1.2, 1.5)
FEWER_LOADS = (0.6, 1.2)
"""Loads of servers that are measured in full only if they are named."""

IN_FULL = ("clockwork", "triton", "triton-policy")
MANY = 30
OF_MANY = ("clockwork", "triton-policy", "ray")
SLO_S = 0.1
GIVE_UP_S = 3.0
OPEN_FILES = 16384


def plans(asked: Any) -> list[Plan]:
    """A plan for each number of models."""
    chosen = asked.peers.split(",") if asked.peers else []
    unknown = [name for name in chosen if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"there is no {', '.join(unknown)}: --peers takes {', '.join(SYSTEMS)}")
    if asked.executors > 1 and (single := [name for name in chosen if not SYSTEMS[name].scales]):
        raise SystemExit(f"{', '.join(single)}: measured with one executor, not with {asked.executors}")
    found = []
    for models in (int(count) for count in asked.models.split(",")):
        names = chosen or [
            name
            for name, system in SYSTEMS.items()
            if (models == 1 or name in OF_MANY) and (asked.executors == 1 or system.scales)
        ]
        systems = [SYSTEMS[name] for name in names if models == 1 or SYSTEMS[name].many]
        in_full = [system.name for system in systems if models == 1 and (chosen or system.name in IN_FULL)]
        loads = tuple(float(load) for load in asked.loads.split(",")) if asked.loads else ()
        transports = _transports(asked.transports)
        found.append(
            Plan(
                systems,
                {system.name: loads or (LOADS if system.name in in_full else FEWER_LOADS) for system in systems},
                {
                    system.name: [
                        transport
                        for transport in (system.transports if system.name in in_full else system.transports[:1])
                        if transport in transports
                    ]
                    for system in systems
                },
                models, models // 3 if models > 1 else 0, asked.seconds, asked.rounds, round(SLO_S * SECOND), GIVE_UP_S,
                asked.executors,
            )
        )  # fmt: skip
    return found


def _transports(text: str) -> list[Transport]:
    known = get_args(Transport)
    asked = text.split(",")
    if not set(asked) <= set(known):
        raise SystemExit(f"--transports takes {', '.join(known)}, not {text}")
    return [name for name in known if name in asked]


def set_up(names: Sequence[str], cache: Path, console: Console) -> dict[str, Environment]:
    """The environments of these names ("": none is needed); missing ones are installed."""
    found = {name: Environment(name, cache) for name in dict.fromkeys(names) if name}
    missing = [system for system in found.values() if not system.is_ready]
    if missing:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(missing))
            for system in missing:
                progress.update(task, description=f"installing {system.name}")
                system.make()
                progress.advance(task)
            progress.update(task, description=f"installed {', '.join(system.name for system in missing)}")
    return found


def run(asked: Any, console: Console) -> dict[str, Any]:
    """All measurements."""
    todo = plans(asked)
    cells: list[Cell] = []
    failed: dict[str, str] = {}
    capacities: list[float] = []
    environments = set_up(
        [system.environment for plan in todo for system in plan.systems], asked.cache, console
    )
    total = sum(
        plan.rounds * len(plan.loads[system.name]) * len(plan.transports[system.name])
        for plan in todo
        for system in plan.systems
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
    # Drawn between cells only: a thread that draws would affect latencies.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)

        def say(text: str) -> None:
            progress.update(task, description=text.partition("\n")[0], refresh=True)
            if not console.is_terminal:  # where the bar cannot be redrawn
                console.print(text, highlight=False)

        def done(cell: Cell) -> None:
            cells.append(cell)
            progress.advance(task)

        for plan in todo:
            measured, broken = measure.measure(plan, environments, done, say)
            capacities += measured
            failed |= {f"{SYSTEMS[name].title}, {plan.models} models": why for name, why in broken.items()}
    rows = [{"title": _title(row), **row} for row in measure.rows(cells, round(SLO_S * SECOND))]
    return {
        "rows": rows,
        "slo_ms": SLO_S * 1000,
        "seconds": asked.seconds,
        "rounds": asked.rounds,
        "executors": asked.executors,
        "capacity/s": capacities,
        "failed": failed,
    }


def _title(row: dict[str, Any]) -> str:
    system = SYSTEMS[row["system"]]
    return system.title + (", all in memory" if row["models"] > 1 and not system.limits_memory else "")


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--setup-only", action="store_true", help="install the peers and measure nothing")
    parser.add_argument(
        "--peers", default="", help=f"some of {', '.join(SYSTEMS)}, which are then measured in full"
    )
    parser.add_argument("--models", default=f"1,{MANY}", help="numbers of models  [%(default)s]")
    parser.add_argument("--transports", default="http,grpc", help="[%(default)s]")
    parser.add_argument(
        "--loads", default="", help=f"loads as parts of capacity  [{','.join(map(str, LOADS))}]"
    )
    parser.add_argument("--executors", type=int, default=1, help="executions at once  [%(default)s]")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each cell")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="directory of the environments  [%(default)s]"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--publish", action="store_true", help="write docs/results/ and the tables of the documents"
    )
    asked = parser.parse_args()
    if asked.publish and asked.executors != 1:
        parser.error("the published figures are of one executor")
    if asked.quick:
        asked.rounds, asked.seconds, asked.loads = 1, 2.0, asked.loads or "0.6,1.5"
    signal.signal(signal.SIGTERM, end)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))
    console = Console(stderr=True)
    if asked.setup_only:
        set_up([system.environment for plan in plans(asked) for system in plan.systems], asked.cache, console)
        return
    found = run(asked, console)
    if asked.plot is not None:
        show.draw(found, asked.plot)
    if asked.publish:
        published.save("peers", found, measure.SEED, show.draw)
    if asked.json:
        print(json.dumps(report.conditions(measure.SEED) | found, indent=2))
        return
    columns = {
        "system": "server", "transport": "over", "models": "models", "load": "load", "offered": "requests",
        "within_slo": "in time", "late": "late", "refused": "refused", "failed": "failed", "gave_up": "gave up",
        "of_capacity": "of capacity", "p50_ms": "p50_ms", "p99_ms": "p99_ms", "refused_p99_ms": "refused p99_ms",
        "gone_busy_s": "busy after_s", "other_cores": "other cores",
    }  # fmt: skip
    shown = [{text: row[name] for name, text in columns.items()} for row in found["rows"]]
    facts = {
        "plain ONNX Runtime, requests/s": [round(rate, 1) for rate in found["capacity/s"]],
        **{f"failed: {name}": why for name, why in found["failed"].items()},
    }
    report.show("Clockwork and its peers", measure.SEED, shown, facts, False)


def end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
