"""Answers in time of a worker that gets more requests than it can serve.

    python -m bench.overload [--quick] [--json] [--seconds 20] [--loads 0.3,0.6,0.9,1.2,1.5]
        [--policies edf,adaptive]

One worker for each policy, a residual network of about 5 ms, an SLO of 100 ms, open-loop Poisson arrivals
from a process of their own (`clockwork load`). Capacity is 1 / the mean time of plain ONNX Runtime on one
thread, measured in blocks before and after each load, so that a change of the machine's speed changes both.
After that: the time until the device is idle after a client with a long queue has left in order or been
killed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from bench import published, report
from bench.cluster import Cluster, cpu_s, finish_load, start_load
from bench.reference import Plain, relative_error
from clockwork.client.blocking import Client
from clockwork.config import POLICY
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns

SEED = 5
SLO_S = 0.1
LOADS = (0.3, 0.6, 0.9, 1.2, 1.5)
MODEL = "residual_cnn"
BLOCK_S = 1.0
BACKLOG = 400
IDLE_LIMIT_NS = 5 * SECOND

_LEAVER = """
import sys, numpy as np
from clockwork import Client
client = Client(sys.argv[1])
x = np.zeros((1, 3, 64, 64), np.float32)
futures = [client.submit(sys.argv[2], x, slo=30.0) for _ in range(int(sys.argv[3]))]
futures[0].result()
print("queued", flush=True)
sys.stdin.readline()
client.close()
print("closed", flush=True)
sys.stdin.readline()
"""


def offer(cluster: Cluster, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Run `clockwork load` in a process of its own. Returns its report."""
    return finish_load(cluster, start_load(cluster, [MODEL], rate, seconds, seed, SLO_S), seconds)


def row(
    load: float, capacity: float, found: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """A row of the table: the client's view, and some of the controller's counts."""

    def counted(name: str) -> int:
        return int(after[name]) - int(before[name])

    admitted = max(1, counted("answered") + counted("missed"))
    return {
        "load": load,
        "offered/s": round(found["offered_rate"], 1),
        "goodput/s": round(found["goodput"], 1),
        "of_capacity_%": round(100 * found["goodput"] / capacity, 1),
        "of_offered_%": round(100 * found["within_slo"] / max(1, found["offered"]), 2),
        "refused_%": round(100 * found["refused"] / max(1, found["offered"]), 2),
        "refused_p99_ms": round(found["refusal_ms"].get("p99", 0.0), 2),
        "missed_%": round(100 * counted("missed") / admitted, 3),
        # Measured from the scheduled arrival, as by the client: the generator's own lag is included.
        "late": found["answered"] - found["within_slo"],
        "p50_ms": round(found["latency_ms"].get("p50", 0.0), 1),
        "p99_ms": round(found["latency_ms"].get("p99", 0.0), 1),
        "max_ms": round(found["latency_ms"].get("max", 0.0), 1),
        "lag_p99_ms": round(found["lag_ms"].get("p99", 0.0), 2),
        "errors": sum(found["errors"].values()) + found["timeouts"],
    }


def idle_after(cluster: Cluster, client: Client, killed: bool) -> float:
    """Milliseconds from the end of a client with BACKLOG admitted requests until nothing is held or runs."""
    child = subprocess.Popen(
        [sys.executable, "-c", _LEAVER, cluster.endpoint, MODEL, str(BACKLOG)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdin, child.stdout:
        if child.stdout.readline() != "queued\n":
            raise RuntimeError("the client that is to leave could not queue its requests")
        begin_ns = now_ns()
        if killed:
            child.kill()
        else:
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
            begin_ns = now_ns()
        pause = threading.Event()
        while True:
            status: dict[str, Any] = dict(client.status())
            at_ns = now_ns()
            if not status["requests_held"] and not status["workers"][0]["actions"]:
                break
            if at_ns - begin_ns > IDLE_LIMIT_NS:
                raise TimeoutError(f"still busy: {status['requests_held']} requests are held")
            pause.wait(0.002)
        child.kill()
    return (at_ns - begin_ns) / 1e6


def idle_with_work_ns(client: Client) -> int:
    """Nanoseconds for which the only device was idle while a request waited that it could have served."""
    return int(client.status()["workers"][0]["devices"][0]["plan"]["idle_with_work_ns"])


def measure(
    loads: tuple[float, ...], seconds: float, policies: tuple[str, ...] = (POLICY,)
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, for each load and each policy in turn, and facts of the whole run."""
    model = zoo.build(MODEL, seed=SEED)
    plain = Plain(model)
    x = np.random.default_rng(SEED).standard_normal((1, 3, 64, 64)).astype(np.float32)
    feeds = {"image": x}
    block = max(10, int(min(BLOCK_S, seconds / 2) / plain.block(feeds, 10)))
    rows = []
    with contextlib.ExitStack() as stack:
        served: dict[str, tuple[Cluster, Client]] = {}
        for policy in policies:
            cluster = stack.enter_context(Cluster(controller_arguments=("--policy", policy)))
            client = stack.enter_context(cluster.client())
            client.register(MODEL, model)
            error = relative_error(client.infer(MODEL, x), plain.run(feeds)[0])
            offer(cluster, 0.5 / plain.block(feeds, block), min(seconds, 2.0), SEED)  # warm-up load
            served[policy] = cluster, client
        rss_before = {policy: cluster.rss_bytes() for policy, (cluster, _) in served.items()}
        mean_before = plain.block(feeds, block)
        for index, load in enumerate(loads):
            for policy, (cluster, client) in served.items():
                pids = (cluster.controller.pid, cluster.workers[0].pid)
                used = [cpu_s(pid) for pid in pids]
                before, idle_ns = client.status()["counts"], idle_with_work_ns(client)
                found = offer(cluster, load / mean_before, seconds, SEED + index)
                after, idle_ns = client.status()["counts"], idle_with_work_ns(client) - idle_ns
                used = [cpu_s(pid) - spent_s for pid, spent_s in zip(pids, used)]
                mean_after = plain.block(feeds, block)
                capacity = 2 / (mean_before + mean_after)
                rows.append(
                    {
                        "policy": policy,
                        **row(load, capacity, found, before, after),
                        "idle_with_work_%": round(100 * idle_ns / SECOND / found["seconds"], 2),
                        "capacity/s": round(capacity, 1),
                        "controller_cpu": round(used[0] / found["seconds"], 2),
                        "worker_cpu": round(used[1] / found["seconds"], 2),
                    }
                )
                mean_before = mean_after
        facts: dict[str, Any] = {
            "plain ONNX Runtime, mean ms": float(np.mean(plain.times_ns)) / 1e6,
            "plain ONNX Runtime, p99 ms": float(np.percentile(plain.times_ns, 99)) / 1e6,
            "largest relative error of the checked answer": error,
        }
        for policy, (cluster, client) in served.items():
            both = (rss_before[policy], cluster.rss_bytes())
            for number, name in enumerate(("controller", "worker")):
                grown = [round(sizes[number] / 2**20, 1) for sizes in both]
                facts[f"{policy}: {name} RSS before and after, MiB"] = grown
            facts |= {
                f"{policy}: idle after a client closed, ms": round(
                    idle_after(cluster, client, killed=False), 1
                ),
                f"{policy}: idle after a client was killed, ms": round(
                    idle_after(cluster, client, killed=True), 1
                ),
                f"{policy}: refusals by reason": client.status()["counts"]["refusals"],
            }
    return rows, facts


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--loads", default=",".join(str(load) for load in LOADS))
    parser.add_argument(
        "--policies",
        default=POLICY,
        help="policies that are measured in turn at each load, such as edf,adaptive",
    )
    arguments = parser.parse_args()
    loads = (0.5, 1.5) if arguments.quick else tuple(float(load) for load in arguments.loads.split(","))
    policies = tuple(arguments.policies.split(","))
    rows, facts = measure(loads, 2.0 if arguments.quick else arguments.seconds, policies)
    if arguments.publish:
        published.save("overload", {"rows": rows, "facts": facts}, SEED)
    report.show("overload of one worker", SEED, rows, facts, arguments.json)


if __name__ == "__main__":
    main()
