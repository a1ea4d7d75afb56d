"""An arena with several executors, against as many devices with an arena each, and against a single device.

    python -m bench.shared_arena [--quick] [--json] [--executors 2] [--models 30] [--seconds 10]
        [--loads 0.6,1.2] [--shares 1.2,0.4] [--kinds one,executors,devices,halves] [--rounds 1]
        [--capacity REQUESTS/S]

One worker serves fine-tunes of a mobilenet_v2 of 14 MB; popularity follows Zipf's law, arrivals are
Poisson's, the SLO is 100 ms. A share is the arena's size in multiples of all models' weights. Kinds of
workers, in turn for each share:

- *one*: a device with one executor;
- *executors*: a device whose arena has N executors;
- *devices*: N devices, each with an arena of that size, N times the memory;
- *halves*: N devices, whose arenas have that size together.

A load is relative to what N cores execute with plain ONNX Runtime on one thread each: the best of five blocks
at the beginning, or --capacity, so that every kind is offered the same, *one*, too. The generator and the
controller share the cores. Memory is the worker's proportional set size (PSS) and its anonymous part, after
the load. ``controller_us`` and ``beside_us`` are the processor time of a request in the controller, and in
the worker's threads beside its execute lanes: it has to be left to them.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.cluster import Cluster, cpu_s, loads_of, offer_zipf
from bench.reference import Plain, relative_error
from bench.registration import register_all
from clockwork.client.blocking import Client
from clockwork.models import zoo
from clockwork.system.clock import now_ns

SEED = 9
SLO_S = 0.1
ZIPF = 0.9
ARCHITECTURE = "mobilenet_v2"
IMAGE = 64
TOLERANCE = 1e-4
UPLOADS_AT_ONCE = 4
KINDS = ("one", "executors", "devices", "halves")


def flags_of(kind: str, executors: int, arena_bytes: int) -> tuple[str, ...]:
    """A worker's flags."""
    size = arena_bytes // executors if kind == "halves" else arena_bytes
    count = {"one": ("--executors", "1"), "executors": ("--executors", str(executors))}.get(
        kind, ("--devices", str(executors))
    )
    return ("--arena", str(size), *count)


def memory_of(pid: int) -> dict[str, float]:
    """Megabytes of a process: its proportional set size, and the anonymous part of it."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024 / 1e6
    return {"pss_MB": round(found["Pss"], 1), "anonymous_MB": round(found["Pss_Anon"], 1)}


def execute_s(pid: int) -> float:
    """Processor time of a worker's execute lanes so far."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
        if (task / "comm").read_text().startswith("cw-execute")
    )


def settled_loads_of(client: Client) -> int:
    """LOADs that have been ordered so far, once no action is under way."""
    pause = threading.Event()
    while client.status()["workers"][0]["actions"]:
        pause.wait(0.01)
    return loads_of(client)


def offer(cluster: Cluster, names: list[str], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    return offer_zipf(cluster, names, rate, seconds, seed, SLO_S, ZIPF)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a run; see the options."""

    executors: int = 2
    models: int = 30
    seconds: float = 10.0
    loads: tuple[float, ...] = (0.6, 1.2)
    shares: tuple[float, ...] = (1.2, 0.4)
    kinds: tuple[str, ...] = KINDS
    rounds: int = 1
    capacity: float = 0.0


def measure_kind(
    data: Path,
    kind: str,
    given: Plan,
    share: float,
    capacity: float,
    bodies: dict[str, Any],
    feeds: dict[str, Any],
) -> list[dict[str, Any]]:
    """The rows of a kind of worker, one for each load. Raises on a wrong answer."""
    names = list(bodies)
    arena_bytes = round(share * sum(zoo.weights_bytes(body) for body in bodies.values()))
    rows = []
    flags = flags_of(kind, given.executors, arena_bytes)
    with Cluster(worker_arguments=flags, data=data) as cluster, cluster.client() as client:
        missing = set(names) - {model.name for model in client.models()}
        register_all(
            client,
            {name: bodies[name].SerializeToString() for name in names if name in missing},
            UPLOADS_AT_ONCE,
        )
        offer(cluster, names, 0.3 * capacity, min(2.0, given.seconds), SEED)  # warm-up load
        for index, load in enumerate(given.loads):
            pid = cluster.workers[0].pid

            def times() -> list[float]:
                return [cpu_s(pid), execute_s(pid), cpu_s(cluster.controller.pid), now_ns() / 1e9]  # noqa: B023

            before, begun = settled_loads_of(client), times()
            found = offer(cluster, names, load * capacity, given.seconds, SEED + index)
            spent_s, executed_s, controller_s, took_s = (end - begin for begin, end in zip(begun, times()))
            offered = max(1, found["offered"])
            rows.append(
                {
                    "arena": share,
                    "kind": kind,
                    "load": load,
                    "offered/s": round(found["offered_rate"], 1),
                    "goodput/s": round(found["goodput"], 1),
                    "in_time_%": round(100 * found["within_slo"] / offered, 2),
                    "p50_ms": round(found["latency_ms"].get("p50", 0.0), 1),
                    "p99_ms": round(found["latency_ms"].get("p99", 0.0), 1),
                    "loads/request": round((settled_loads_of(client) - before) / offered, 4),
                    "worker_cores": round(spent_s / took_s, 2),
                    "controller_us": round(1e6 * controller_s / offered),
                    "beside_us": round(1e6 * (spent_s - executed_s) / offered),
                    **memory_of(pid),
                    "load_average": round(os.getloadavg()[0], 2),
                }
            )
        for name in names[:3]:
            error = relative_error(client.infer(name, *feeds.values()), Plain(bodies[name]).run(feeds)[0])
            if error > TOLERANCE:
                raise AssertionError(f"{name} is off by {error:.2e}")
    return rows


def measure(given: Plan) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of all kinds of workers, and facts of the whole run. Raises on a wrong answer."""
    base = zoo.build(ARCHITECTURE, seed=SEED, image=IMAGE)
    bodies = {
        f"{ARCHITECTURE}-{index}": zoo.fine_tune(base, seed=SEED + index) for index in range(given.models)
    }
    x = np.random.default_rng(SEED).standard_normal((1, 3, IMAGE, IMAGE)).astype(np.float32)
    rows = []
    plain = Plain(base)
    capacity = given.capacity or given.executors / min(plain.block({"image": x}, 50) for _ in range(5))
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as data:
        for _ in range(given.rounds):
            for share in given.shares:
                for kind in given.kinds:
                    rows += measure_kind(Path(data), kind, given, share, capacity, bodies, {"image": x})
    return rows, {
        "models": given.models,
        "weights of one, MB": round(zoo.weights_bytes(base) / 1e6, 1),
        "capacity, requests/s": round(capacity, 1),
    }


def main() -> None:
    def numbers(text: str) -> tuple[float, ...]:
        return tuple(float(number) for number in text.split(","))

    plan = Plan()
    parser = report.command_line(__doc__)
    parser.add_argument("--executors", type=int, default=plan.executors)
    parser.add_argument("--models", type=int, default=plan.models)
    parser.add_argument("--seconds", type=float, default=plan.seconds)
    parser.add_argument("--loads", type=numbers, default=plan.loads)
    parser.add_argument("--shares", type=numbers, default=plan.shares)
    parser.add_argument("--kinds", type=lambda text: tuple(text.split(",")), default=plan.kinds)
    parser.add_argument("--rounds", type=int, default=plan.rounds)
    parser.add_argument("--capacity", type=float, default=plan.capacity)
    asked = parser.parse_args()
    settings = {field.name: getattr(asked, field.name) for field in dataclasses.fields(Plan)}
    if asked.quick:
        settings |= {"models": 3, "seconds": 1.0, "loads": (0.5,), "shares": (1.2,)}
    given = Plan(**settings)
    rows, facts = measure(given)
    report.show(f"{given.executors} executors of one arena", SEED, rows, facts, asked.json)


if __name__ == "__main__":
    main()
