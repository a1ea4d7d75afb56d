"""Thousands of models on one CPU worker whose memory holds few of them, beside the best peers.

    python -m bench.many [--quick] [--setup-only] [--systems clockwork,triton-sessions] [--shares 0.05,0.2]
        [--patterns zipf,bursts] [--loads 0.3,0.6,0.9,1.2] [--rounds 3] [--seconds 10] [--json] [--publish]

Three thousand models, fine-tunes of 20 architectures (residual and plain convolutional networks, encoders,
perceptrons, ensembles of trees; a few of 100 MB), all asked for, popularity by Zipf's law; memory for 5 and
20 % of their bytes. "zipf" arrivals are Poisson; "bursts" have a coefficient of variation of 4 for each
model. Capacity is the rate at which a core executes this mix by plain ONNX Runtime with every model in
memory; loads come on top. Client, requests and times are the same for all servers: a native client over HTTP,
whose processor time is in the output. Servers take turns, in another order each round. Each is started for
each memory, answers a sample of all architectures right, and is warmed up; its models' files are in the OS's
cache. A request is cold where a cache with the least recently used policy and the same memory would not have
its model.

The peers: Triton with one model of its Python backend that holds as many ONNX sessions as fit; Triton in
explicit mode, with a loader in front of it that keeps to the same memory (its wheel has the Python backend
alone, which takes a process for each model, so that at most 96 are loaded at once); Ray Serve's model
multiplexing, which bounds the number of models. MLServer, LitServe and BentoML are not measured: they cannot
hold a part of their models.

Each cell is written as soon as it is measured; the same command goes on with those that are missing, and
--fresh begins anew. Models are made in build/many, 8 GB, beside the servers' own data, twice as much.
`--publish` writes docs/results/many.json and the tables of the documents.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bench import published, report
from bench.many import measure, models, show
from bench.many.measure import Key, Plan
from bench.many.systems import SYSTEMS
from bench.peers.__main__ import OPEN_FILES, end, set_up
from bench.peers.environments import CACHE

MODELS, LARGE = 3000, 12
QUICK_MODELS = 40
SHARES = "0.05,0.2"
LOADS = "0.3,0.6,0.9,1.2"
QUICK_SECONDS = 1.0


def plan_of(asked: Any) -> Plan:
    chosen = asked.systems.split(",")
    unknown = [name for name in chosen if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"there is no {', '.join(unknown)}: --systems takes {', '.join(SYSTEMS)}")
    patterns = asked.patterns.split(",")
    if not set(patterns) <= set(measure.PATTERNS):
        raise SystemExit(f"--patterns takes {', '.join(measure.PATTERNS)}, not {asked.patterns}")
    listed = models.listed(asked.models, 0 if asked.quick else LARGE)
    return Plan(
        [SYSTEMS[name] for name in chosen], listed, _numbers(asked.shares), patterns, _numbers(asked.loads),
        asked.seconds, asked.warm, asked.rounds, asked.checked,
    )  # fmt: skip


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def run(asked: Any, console: Console) -> dict[str, Any]:
    """All measurements that are missing, and the table of all."""

    def say(text: str) -> None:
        console.print(text.partition("\n")[0], highlight=False)

    plan = plan_of(asked)
    environments = set_up([system.environment for system in plan.systems], asked.cache, console)
    if asked.setup_only:
        measure.prepare(plan, asked.kept, say)
        return {}
    if asked.fresh:
        shutil.rmtree(asked.kept / f"cells-{plan.key()}", ignore_errors=True)
    total = plan.rounds * len(plan.systems) * len(plan.shares) * len(plan.patterns) * len(plan.loads)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
    # Drawn between cells only: a thread that draws would affect latencies.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)

        def done(key: Key) -> None:
            progress.advance(task)

        def tell(text: str) -> None:
            progress.update(task, description=text.partition("\n")[0], refresh=True)
            if not console.is_terminal:  # where the bar cannot be redrawn
                console.print(text, highlight=False)

        directory, failed = measure.measure(plan, environments, asked.kept, done, tell)
    sizes = [model.weights_bytes for model in plan.models]
    return {
        "rows": measure.rows(directory, plan),
        "models": len(plan.models),
        "architectures": len({model.architecture for model in plan.models}),
        "bytes": sum(sizes),
        "median_bytes": float(np.median(sizes)),
        "largest_bytes": max(sizes),
        "zipf": measure.ZIPF,
        "slo_ms": min(model.slo_ns for model in plan.models) / 1e6,
        "large_slo_ms": max(model.slo_ns for model in plan.models) / 1e6,
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "capacity/s": [json.loads(path.read_text()) for path in sorted(directory.glob("*-capacity.json"))],
        "failed": {SYSTEMS[name].title: why for name, why in failed.items()},
    }


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument(
        "--setup-only", action="store_true", help="install peers, prepare models, measure nothing"
    )
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="[%(default)s]")
    parser.add_argument("--models", type=int, default=0, help=f"number of models  [{MODELS}]")
    parser.add_argument("--shares", default=SHARES, help="memory, as parts of all bytes  [%(default)s]")
    parser.add_argument("--patterns", default=",".join(measure.PATTERNS), help="[%(default)s]")
    parser.add_argument("--loads", default=LOADS, help="loads as parts of capacity  [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each cell")
    parser.add_argument(
        "--warm", type=float, default=10.0, help="seconds of load that do not count, after a start"
    )
    parser.add_argument(
        "--checked", type=int, default=40, help="models whose answers are compared at each start"
    )
    parser.add_argument("--fresh", action="store_true", help="measure anew what was measured before")
    parser.add_argument(
        "--kept", type=Path, default=models.CACHE, help="directory of models and cells  [%(default)s]"
    )
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="directory of the peers' environments  [%(default)s]"
    )
    report.publishing(parser)
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.seconds, asked.warm, asked.checked = 1, QUICK_SECONDS, QUICK_SECONDS, 20
        asked.shares, asked.loads = "0.2", "0.3,0.6"
    asked.models = asked.models or (QUICK_MODELS if asked.quick else MODELS)
    signal.signal(signal.SIGTERM, end)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))
    found = run(asked, Console(stderr=True))
    if asked.setup_only:
        return
    if asked.publish:
        published.save("many", found, models.SEED)
    if asked.json:
        print(json.dumps(report.conditions(models.SEED) | found, indent=2))
        return
    columns = {
        "system": "server", "share": "memory", "pattern": "arrivals", "load": "load", "offered": "requests",
        "within_slo": "in time", "late": "late", "refused": "refused", "failed": "failed", "gave_up": "gave up",
        "of_offered": "of offered", "of_capacity": "of capacity", "p50_ms": "p50_ms", "p99_ms": "p99_ms",
        "cold_p99_ms": "cold p99_ms", "cold_beyond_p99_ms": "beyond load and execution p99_ms",
        "loads/request": "loads/request", "client_cores": "client cores", "other_cores": "other cores",
    }  # fmt: skip
    shown = [{text: row[name] for name, text in columns.items()} for row in found["rows"]]
    facts = {
        "capacity, requests/s": [round(rate, 1) for rate in found["capacity/s"]],
        "models, GB": f"{found['models']}, {found['bytes'] / 1e9:.2f}",
        **({"table": show.facts(found)} if found["rows"] else {}),
        **{f"failed: {name}": why for name, why in found["failed"].items()},
    }
    report.show("Thousands of models", models.SEED, shown, facts, False)


if __name__ == "__main__":
    main()
