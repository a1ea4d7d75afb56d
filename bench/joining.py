"""How long a worker with an empty disk takes to join a cluster of many models, and what others notice of it.

    python -m bench.joining [--quick] [--json] [--models 300] [--architectures 20] [--megabytes 1.5]
        [--rate 40] [--seconds 20]

A controller and a CPU worker have fine-tunes of a few architectures registered. A second worker with a store
of its own then joins while requests come at a steady rate, for popular models most of the time. It joins
twice, each time with an empty disk: as a worker of the first one's kind, which takes the prepared models from
it, and with pages of another size, so that it prepares all of them itself. Measured are the time from its
start until its first answer, and until it has all models; the models that it gets ready in a second; the
processor time for a model, by process; and the latency of requests beside it and without it.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench import report
from bench.cluster import Cluster, cpu_s, exact_cpu_s, finish_load, start_load
from bench.registration import PAGE_BYTES, children_of, ended_children_s, register_all, write_models
from clockwork.client.blocking import Client
from clockwork.system.clock import SECOND, now_ns

SEED = 12
ARENA = "256M"
SLO_S = 1.0
POLL_S = 0.05
JOIN_S_MAX = 1800.0
WAYS = {"taken from the first worker": PAGE_BYTES, "prepared again": 2 * PAGE_BYTES}
"""The page size of the worker that joins; only workers of equal page size can take each other's models."""


def spent_s(cluster: Cluster, joining: subprocess.Popen[bytes]) -> dict[str, float]:
    """Processor time so far, by process. The first worker prepares nothing meanwhile."""
    first = cluster.workers[0]
    children = sum(map(cpu_s, children_of(joining.pid))) + ended_children_s(joining.pid)
    return {
        "controller": exact_cpu_s(cluster.controller.pid),
        "first worker": exact_cpu_s(first.pid),
        "joining worker": exact_cpu_s(joining.pid),
        "its preparation and trials": children,
    }


def row_of(client: Client, name: str) -> dict[str, Any]:
    """The worker of this name in the status; {} if it has not joined."""
    return next((worker for worker in client.status()["workers"] if worker["name"] == name), {})


def answered(row: dict[str, Any]) -> int:
    return sum(device["plan"].get("served", 0) for device in row.get("devices", ()))


def join(
    cluster: Cluster, client: Client, name: str, way: str, models: int, rate: float, seconds: float
) -> dict[str, Any]:
    """Have a worker join beside requests. Returns a row of facts."""
    names = [f"model-{index}" for index in range(models)]
    load = start_load(cluster, names, rate, seconds, SEED, SLO_S, "--zipf", "1")
    begin_ns = now_ns()
    joining = cluster.add_worker(name, ("--page-size", str(WAYS[way]), "--arena", ARENA))
    first_ns = ready_ns = 0
    before: dict[str, float] = {}
    pause = threading.Event()
    while not ready_ns:
        row, now = row_of(client, name), now_ns()
        before = before or (spent_s(cluster, joining) if row else {})
        if not first_ns and answered(row):
            first_ns = now
        if row and row["models"]["ready"] + row["models"]["failed"] == models:
            ready_ns = now
        if now - begin_ns > JOIN_S_MAX * SECOND:
            raise TimeoutError(f"the worker is not ready:\n{cluster.log()}")
        pause.wait(POLL_S)
    after = spent_s(cluster, joining)
    beside = finish_load(cluster, load, seconds)
    while (row := row_of(client, name))["stats"].get("models") != row["models"]["ready"]:
        pause.wait(POLL_S)  # until a heartbeat that was sent since then
    taken_s = (ready_ns - begin_ns) / SECOND
    facts = {
        "models are": way,
        "first answer, s": round((first_ns - begin_ns) / SECOND, 2) if first_ns else None,
        "all models ready, s": round(taken_s, 2),
        "models/s": round(models / taken_s, 1),
        "taken": row["stats"]["models_taken"],
        "failed": row["models"]["failed"],
        "p99 of requests meanwhile, ms": round(beside["latency_ms"]["p99"], 2),
        "processor time of a model, ms": {
            part: round(1e3 * (after[part] - before[part]) / models, 2) for part in after
        },
    }
    cluster.remove_worker(joining)
    return facts


def measure(
    models: int, families: int, megabytes: float, rate: float, seconds: float, seed: int = SEED
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each way of joining, and facts about the cluster."""
    arguments = ("--page-size", str(PAGE_BYTES), "--arena", ARENA)
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as folder:
        (first, others), mean_bytes = write_models(Path(folder), models, families, megabytes, seed)
        cluster = Cluster(worker_arguments=arguments)
        with contextlib.closing(cluster):
            cluster.start()
            with cluster.client() as client:
                register_all(client, first, 1)
                register_all(client, others, 8)
                names = [f"model-{index}" for index in range(models)]
                alone = finish_load(
                    cluster,
                    start_load(cluster, names, rate, seconds, SEED, SLO_S, "--zipf", "1"),
                    seconds,
                )
                rows = [
                    join(cluster, client, f"joining-{place}", way, models, rate, seconds)
                    for place, way in enumerate(WAYS)
                ]
    facts = {
        "models": models,
        "architectures": families,
        "mean size, MB": round(mean_bytes / 1e6, 2),
        "requests/s": rate,
        "p99 of requests before, ms": round(alone["latency_ms"]["p99"], 2),
    }
    return rows, facts


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--architectures", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=1.5, help="mean size of a model")
    parser.add_argument("--rate", type=float, default=40.0, help="requests/s")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of requests, before and beside each join"
    )
    arguments = parser.parse_args()
    rows, facts = (
        measure(4, 1, 0.1, 20.0, 3.0)
        if arguments.quick
        else measure(
            arguments.models,
            arguments.architectures,
            arguments.megabytes,
            arguments.rate,
            arguments.seconds,
        )
    )
    report.show("a worker joins", SEED, rows, facts, arguments.json)


if __name__ == "__main__":
    main()
