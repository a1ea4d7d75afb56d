"""The number of threads that `clockwork plan threads` takes, against the other, live on two cores.

    python -m bench.threads [--quick] [--json] [--rounds 10] [--seconds 10] [--slos 4,1.6,0.8]

A residual network of 15 MB, Poisson arrivals. An SLO is in multiples of the time of an execution on one core.
The model is measured as `plan threads --onnx` does. For each SLO the offered rate is 1.2 times the highest
that the plan holds with any number of threads, and `plan threads --rate` divides the cores for it, as
`clockwork up` does. Then each round offers the same requests to a worker of each number of threads, in an
order that alternates. With one thread the cores are executors of one arena, with two they are one device.
Larger machines have divisions with executors of both kinds: `python -m bench.cores` simulates those.

``chosen/this`` is the median over the rounds of the goodput with the chosen number by the goodput with this
one, so the choice is within 2 % of an exhaustive search where no row of an SLO has less than 0.98. The
generator and the controller share the cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench import report
from bench.cluster import Cluster, finish_load, start_load
from bench.reference import Plain
from clockwork.formats.profiles import save_profiles
from clockwork.models import zoo
from clockwork.models.by_threads import measure_by_threads
from clockwork.models.threads import thread_counts

SEED = 5
NAME = "residual_cnn"
NOISE = 0.02  # relative sigma of execution times on a CPU, for the plan
LOAD = 1.2  # the offered rate, as a part of the highest that the plan holds
PAGE_BYTES = "1MiB"


@dataclasses.dataclass(frozen=True)
class Plan:
    cores: int = min(2, len(os.sched_getaffinity(0)))
    slos: tuple[float, ...] = (4.0, 1.6, 0.8)  # in multiples of an execution's time on one core
    rounds: int = 10
    seconds: float = 10.0


def measured(model: Path, cores: int) -> list[str]:
    """Measure the model with each number of threads, as `plan threads --onnx` does; return its options."""
    words = []
    found = measure_by_threads(
        [model], thread_counts(cores), cores, lambda line: print(line, file=sys.stderr)
    )
    for threads, profiles in found.items():
        file = model.with_name(f"{threads}.json")
        save_profiles(file, profiles)
        words += ["--measured", f"{threads}={file}"]
    return words


def plan(cores: int, slo_s: float, *options: str) -> dict[str, Any]:
    """Return the answer of `plan threads`."""
    command = [
        *(sys.executable, "-m", "clockwork", "plan", "threads", "--cores", str(cores), *options),
        *("--slo", f"{slo_s:g}", "--noise", str(NOISE), "--page-size", PAGE_BYTES, "--json"),
    ]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return found


def choose(words: list[str], cores: int, slo_s: float, alone_s: float) -> tuple[int, float]:
    """Return the number of threads that the plan takes for a rate, and the rate.

    That is LOAD times the highest that it holds with any number; where it holds none, LOAD times that of one
    execution after the other.
    """
    plans = plan(cores, slo_s, *words)["plans"].values()
    rate = LOAD * (max(found["answer"] or 0.0 for found in plans) or 1 / alone_s)
    return plan(cores, slo_s, *words, "--rate", f"{rate:g}")["division"]["threads"] or 1, rate


def flags_of(threads: int, cores: int) -> tuple[str, ...]:
    """A worker's flags."""
    if threads == 1:
        return ("--executors", str(cores))
    return ("--threads", str(threads), "--devices", str(cores // threads))


def goodput(data: Path, body: bytes, flags: tuple[str, ...], rate: float, slo_s: float, given: Plan) -> float:
    """Return the good answers per second of a cluster with such a worker."""
    data.mkdir(exist_ok=True)
    with Cluster(worker_arguments=flags, data=data) as cluster, cluster.client() as client:
        if not client.models():
            client.register(NAME, body)
        for seconds in (min(2.0, given.seconds), given.seconds):  # the first is a warm-up
            child = start_load(cluster, [NAME], rate, seconds, SEED, slo_s)
            found = finish_load(cluster, child, seconds)
        return float(found["goodput"])


def measure(given: Plan) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of all SLOs and numbers of threads, and facts of the whole run."""
    model = zoo.build(NAME, seed=SEED)
    x = np.random.default_rng(SEED).standard_normal((1, 3, 64, 64)).astype(np.float32)
    plain = Plain(model)
    alone_s = min(plain.block({"image": x}, 50) for _ in range(5))
    counts = thread_counts(given.cores)
    rows = []
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as folder:
        path = Path(folder) / f"{NAME}.onnx"
        onnx.save(model, path)
        words = measured(path, given.cores)
        for multiple in given.slos:
            slo_s = multiple * alone_s
            chosen, rate = choose(words, given.cores, slo_s, alone_s)
            found: dict[int, list[float]] = {count: [] for count in counts}
            for index in range(given.rounds):
                for count in counts if index % 2 == 0 else reversed(counts):
                    flags, data = flags_of(count, given.cores), Path(folder) / f"data-{count}"
                    found[count].append(goodput(data, model.SerializeToString(), flags, rate, slo_s, given))
            for count in counts:
                row = {
                    "slo_ms": round(1e3 * slo_s, 2), "threads": count, "chosen": count == chosen,
                    "offered/s": round(rate, 1), "goodput/s": round(statistics.median(found[count]), 1),
                }  # fmt: skip
                ratios = [ours / max(1e-9, this) for ours, this in zip(found[chosen], found[count])]
                row["chosen/this"] = round(statistics.median(ratios), 4)
                rows.append(row)
    return rows, {"cores": given.cores, "alone, ms": round(1e3 * alone_s, 2), "rounds": given.rounds}


def main() -> None:
    defaults = Plan()
    parser = report.command_line(__doc__)
    parser.add_argument("--cores", type=int, choices=(1, 2), default=defaults.cores)
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--slos", type=lambda text: tuple(map(float, text.split(","))), default=defaults.slos)
    asked = parser.parse_args()
    settings = {field.name: getattr(asked, field.name) for field in dataclasses.fields(Plan)}
    if asked.quick:
        settings |= {"rounds": 1, "seconds": 1.0, "slos": (4.0,)}
    rows, facts = measure(Plan(**settings))
    report.show("threads of an execution", SEED, rows, facts, asked.json)


if __name__ == "__main__":
    main()
