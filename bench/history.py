"""Requests that a reader of recordings handles in a second of processor time.

Reading decodes a recording's bytes to typed steps; folding makes a history of them that keeps the last two
seconds. 100 devices are simulated at 20,000 requests a second, and one device at 500. In a simulated
recording each event is a step of its own; a busy controller records several events in a step, which costs
less. Warm-up: none. The checksum covers the answers.

    python -m bench.history [--quick] [--json]
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import command_line, show
from clockwork.formats.profiles import copies, linear
from clockwork.observe.explain import explain, find_slowest
from clockwork.observe.history import History
from clockwork.scheduler.recording import decode
from clockwork.sim import Cluster, Open, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import poisson

SEED = 1
REQUESTS = 200_000
REQUESTS_QUICK = 5_000
KEEP_NS = 2 * SECOND


def measure(devices: int, rate: float, quick: bool) -> dict[str, Any]:
    """Requests per second of processor time, by kind of processing."""
    count = REQUESTS_QUICK if quick else REQUESTS
    models = copies([linear("m", 2 * MS, MS, batch_max=16, slo_ns=60 * MS)], min(2 * devices, 200))
    load = Open(poisson([rate / len(models)] * len(models), int(count / rate * SECOND), seed=SEED))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.rec"
        cluster = Cluster(devices, 4, page_count=400, exec_noise=0.02)
        report = simulate(models, cluster, [load], seed=SEED, resident=True, recording=path)
        with path.open("rb") as file:
            begun = time.process_time()
            for _ in decode(file)[1]:
                pass
            read_s = time.process_time() - begun
            file.seek(0)
            steps = list(decode(file)[1])
    gc.collect()
    gc.freeze()
    history = History(KEEP_NS)
    begun = time.process_time()
    for step in steps:
        history.apply(step)
    fold_s = time.process_time() - begun
    gc.unfreeze()
    begun = time.process_time()
    explain(history, find_slowest(history))
    explain_s = time.process_time() - begun
    assert history.counts.answered == report.good.sum()
    return {
        "devices": devices,
        "requests": report.requests,
        "steps_per_request": round(len(steps) / report.requests, 2),
        "read_per_cpu_s": round(report.requests / read_s),
        "fold_per_cpu_s": round(report.requests / fold_s),
        "both_per_cpu_s": round(report.requests / (read_s + fold_s)),
        "explain_ms": round(explain_s * 1000, 1),
        "answered": history.counts.answered,
    }


def main() -> int:
    arguments = command_line(__doc__).parse_args()
    rows = [measure(devices, rate, arguments.quick) for devices, rate in ((1, 500.0), (100, 20_000.0))]
    show("Recorded requests per CPU-second", SEED, rows, {}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
