"""Truth of the rate that `clockwork plan` promises for a running cluster.

    python -m bench.promise [--quick] [--json] [--seconds 20] [--rounds 2] [--policy NAME]

One worker, a residual network of about 5 ms, an SLO of 100 ms, open-loop Poisson arrivals from a process of
their own. In each round the cluster first serves for a while, so that it knows its times and their noise.
Then `clockwork plan rate` computes the rate at which the device has 1 % bad requests, and parts of that rate
are offered. The plan and the load are seconds apart: on a machine with other work they differ as far as that
work changes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np

from bench import report
from bench.cluster import Cluster
from bench.overload import MODEL, SEED, SLO_S, offer
from bench.reference import Plain
from clockwork.config import POLICY
from clockwork.models import zoo

PARTS = (0.8, 0.9, 1.0, 1.1, 1.2)
"""Loads as parts of the promised rate."""

WARM_UP_LOAD = 0.8
"""Load that the cluster serves before each plan, as a part of plain ONNX Runtime's rate."""

BAD_PERCENT = 1.0


def planned(cluster: Cluster, policy: str) -> dict[str, Any]:
    command = [
        *(
            sys.executable,
            "-m",
            "clockwork",
            "plan",
            "rate",
            "--endpoint",
            cluster.endpoint,
            "--model",
            MODEL,
        ),
        *("--slo", f"{SLO_S:g}", "--policy", policy, "--bad", f"{BAD_PERCENT:g}", "--json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"there is no plan: {done.stderr}\n{cluster.log()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(
    seconds: float, rounds: int, policy: str, parts: tuple[float, ...] = PARTS
) -> list[dict[str, Any]]:
    """A row for each round and part."""
    model = zoo.build(MODEL, seed=SEED)
    plain = Plain(model)
    feeds = {"image": np.random.default_rng(SEED).standard_normal((1, 3, 64, 64)).astype(np.float32)}
    rows = []
    with Cluster(controller_arguments=("--policy", policy)) as cluster, cluster.client() as client:
        client.register(MODEL, model)
        for number in range(rounds):
            capacity = 1 / plain.block(feeds, 100)
            offer(cluster, WARM_UP_LOAD * capacity, seconds, SEED + number)
            promised = planned(cluster, policy)["answer"] or 0.0
            noise = client.status()["noise"]
            for part in parts:
                found = offer(cluster, max(part * promised, 1.0), seconds, SEED + number)
                bad = found["offered"] - found["within_slo"]
                rows.append(
                    {
                        "round": number + 1,
                        "capacity/s": round(capacity, 1),
                        "promised/s": round(promised, 1),
                        "sigma_%": round(100 * noise["sigma"], 1),
                        "outliers_%": round(100 * noise["outliers"], 1),
                        "of them": round(noise["outlier_factor"], 1),
                        "offered of it": part,
                        "offered/s": round(found["offered_rate"], 1),
                        "bad_%": round(100 * bad / max(1, found["offered"]), 2),
                        "p99_ms": round(found["latency_ms"].get("p99", 0.0), 1),
                    }
                )
    return rows


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--policy", default=POLICY)
    given = parser.parse_args()
    seconds, rounds = (2.0, 1) if given.quick else (given.seconds, given.rounds)
    rows = measure(seconds, rounds, given.policy)
    report.show(
        f"what was planned with {BAD_PERCENT:g} % bad, live", SEED, rows, {"policy": given.policy}, given.json
    )


if __name__ == "__main__":
    main()
