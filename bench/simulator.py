"""Requests that the simulator handles in a second of processor time.

The whole simulator is timed, scheduler included, from the first arrival to the last answer. The set-up of the
cluster is timed separately, and arrivals are drawn beforehand. Warm-up: none, except the first page faults.
The checksum is the digest of every event and order, the same on every machine.

    python -m bench.simulator [--quick] [--json] [--policy NAME]
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import command_line, show
from clockwork.config import POLICY
from clockwork.formats.profiles import ModelProfile, linear, paper_instances
from clockwork.sim import Cluster, Open, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import poisson, zipf

SEED = 1
REQUESTS = 1_000_000
REQUESTS_QUICK = 20_000


@dataclasses.dataclass(frozen=True)
class Case:
    """A cluster, and a rate of requests that it can carry."""

    models: Sequence[ModelProfile]
    cluster: Cluster
    rate: float
    exponent: float = 0.0  # exponent of the models' popularity
    resident: bool = True


def cases() -> Mapping[str, Case]:
    cnn = [linear(f"cnn{i}", 5 * MS, 0, batch_max=1, slo_ns=100 * MS) for i in range(20)]
    mlp = [linear(f"mlp{i}", 2 * MS, 3 * MS, batch_max=16, slo_ns=100 * MS) for i in range(20)]
    noisy = Cluster(
        24, exec_noise=0.01, outlier=1e-4, link_jitter_ns=50_000, clock_offset_ns=SECOND, clock_drift_ppm=20
    )
    trace = [dataclasses.replace(instance, slo_ns=100 * MS) for instance in paper_instances()]
    return {
        "1 device, 1 model": Case(cnn[:1], Cluster(), 150),
        "24 devices, 20 models": Case(cnn, Cluster(24), 4000),
        "24 devices, 20 models, batches": Case(mlp, Cluster(24), 8000),
        "24 devices, 20 models, batches, noise": Case(mlp, noisy, 8000),
        "12 devices, 4,026 models by Zipf": Case(trace, Cluster(12, 2), 3600, 0.9, False),
        "100 devices, 4,026 models by Zipf": Case(trace, Cluster(100, 4), 30_000, 0.9, False),
    }


def measure(name: str, policy: str, quick: bool) -> dict[str, Any]:
    """Run a case: requests per second of processor time, and their outcomes."""
    case = cases()[name]
    count = REQUESTS_QUICK if quick else REQUESTS
    duration_ns = int(count / case.rate * SECOND)
    rates = [case.rate * share for share in zipf(len(case.models), case.exponent)]
    chunks = list(poisson(rates, duration_ns, seed=SEED))
    arguments: dict[str, Any] = {"policy": policy, "seed": SEED, "resident": case.resident}
    empty = simulate(case.models, case.cluster, [Open([])], **arguments)
    report = simulate(case.models, case.cluster, [Open(chunks)], **arguments)
    cpu_s = max(report.cpu_s - empty.cpu_s, 1e-9)
    return {
        "case": name,
        "policy": policy,
        "requests": report.requests,
        "requests_per_cpu_s": round(report.requests / cpu_s),
        "events_per_request": round(report.events / report.requests, 2),
        "set_up_s": round(empty.cpu_s, 3),
        "bad_%": round(100 * report.bad_fraction, 3),
        "busy_%": round(100 * float(report.device_busy.mean()), 1),
        "batch": round(float(report.good.sum()) / max(report.infers, 1), 2),
        "digest": report.digest[:8],
    }


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--policy", default=POLICY, help="the scheduler's policy (default: %(default)s)")
    arguments = parser.parse_args()
    rows = [measure(name, arguments.policy, arguments.quick) for name in cases()]
    show("Simulated requests per CPU-second", SEED, rows, {}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
