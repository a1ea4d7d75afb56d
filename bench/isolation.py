"""Good answers of a model within its share of a device while another floods the device, beside having it
alone.

    python -m bench.isolation [--quick] [--json] [--simulated] [--policies edf,adaptive] [--rounds 3]
        [--seconds 10]

One emulated device takes 20 ms a request, so 50 requests/s. The quiet model gets 5 requests/s with an SLO of
100 ms, alone and then beside each flood of another model: by rate, by a looser and a tighter SLO, by
priority, by batches, by the size of its inputs. A live row has a controller and a worker of its own for each
policy and flood, and `clockwork load` in processes of its own, in rounds of alone and beside. A simulated run
has 600 requests of the quiet model.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from typing import Any

from bench import report
from bench.cluster import Cluster
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.launch.profiles import register_profiles
from clockwork.sim.world import Cluster as SimulatedCluster
from clockwork.sim.world import Open, Report, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads.generators import poisson

SEED = 11
EXEC_MS = 20
QUIET_RATE = 5.0
QUIET_SLO_MS = 100
SIMULATED_S = 120
ARENA_BYTES = 16 << 20
INPUT_BYTES = 602_112
INPUT_BANDWIDTH = 1_000_000_000
POLICIES = ("edf", "adaptive")
QUIET, FLOOD = 0, 1
"""Indices of the models, and of the classes of their requests."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flood:
    """The load of the model that floods the device."""

    rate: float = 550.0
    slo_ms: int = 100
    priority: int = 0  # priority of the flood; 0: the default
    gain: float = 0.0  # gain of batches: beta/alpha of exec(b) = alpha b + beta
    batch_max: int = 1
    input_bytes: int = 0

    @property
    def longest_ms(self) -> float:
        """The longest execution that sharing permits: half of the quiet model's SLO, or a single request."""
        return max(EXEC_MS, QUIET_SLO_MS / 2 if self.batch_max > 1 else 0)


FLOODS = {
    "rate": Flood(),
    "looser SLO": Flood(slo_ms=1000),
    "tighter SLO": Flood(slo_ms=40),
    "priority": Flood(priority=1),
    "priority and SLO": Flood(priority=1, slo_ms=40),
    "batches": Flood(rate=2000.0, gain=20, batch_max=32),
    "inputs": Flood(input_bytes=INPUT_BYTES),
}


def profiles(flood: Flood) -> list[ModelProfile]:
    """The quiet model and the flooded one."""

    def profile(name: str, gain: float, batch_max: int, input_bytes: int) -> ModelProfile:
        alpha_ns = round(EXEC_MS * MS / (1 + gain))
        return linear(name, alpha_ns, EXEC_MS * MS - alpha_ns, batch_max, weights_bytes=ARENA_BYTES, load_ns=8 * MS,
                      input_bytes=input_bytes, output_bytes=4, program=name)  # fmt: skip

    return [
        profile("quiet", 0, 1, 0),
        profile("flood", flood.gain, flood.batch_max, flood.input_bytes),
    ]


def simulated(
    policy: str,
    flood: Flood | None,
    quiet_rate: float = QUIET_RATE,
    seconds: int = SIMULATED_S,
    seed: int = SEED,
) -> Report:
    """A run of the quiet model (unless its rate is 0) and the flood (unless there is none)."""
    kind = flood or Flood()
    workloads = []
    if quiet_rate:
        quiet = poisson([quiet_rate], seconds * SECOND, models=[QUIET], seed=seed, slo_ns=QUIET_SLO_MS * MS)
        workloads.append(Open(quiet))
    if flood is not None:
        flooding = poisson(
            [flood.rate], seconds * SECOND, models=[FLOOD], seed=seed, stream=1, slo_ns=flood.slo_ms * MS,
            priority=flood.priority, cls=FLOOD,
        )  # fmt: skip
        workloads.append(Open(flooding))
    cluster = SimulatedCluster(
        exec_noise=0.003, link_jitter_ns=10_000, input_bandwidth=INPUT_BANDWIDTH if kind.input_bytes else 0
    )
    return simulate(profiles(kind), cluster, workloads, policy=policy, resident=True, seed=seed)


def simulated_row(policy: str, name: str, seconds: int) -> dict[str, Any]:
    """A row: the quiet model alone and beside the flood, and the flood alone."""
    flood = FLOODS[name]
    alone = simulated(policy, None, seconds=seconds)
    beside = simulated(policy, flood, seconds=seconds)
    without = simulated(policy, flood, quiet_rate=0, seconds=seconds)
    good = [int(report.classes.good[QUIET]) for report in (alone, beside)]
    rest = 1 - good[1] * EXEC_MS / 1000 / seconds
    return {
        "policy": policy,
        "flood": name,
        "offered": int(beside.classes.offered[QUIET]),
        "in time alone": good[0],
        "beside": good[1],
        "p99 alone, ms": round(alone.class_latency[QUIET].percentile(99) / MS, 1),
        "p99 beside": round(beside.class_latency[QUIET].percentile(99) / MS, 1),
        "longest permitted": flood.longest_ms,
        "flood/s": round(int(beside.classes.good[FLOOD]) / seconds, 1),
        "of the rest": round(
            float(beside.classes.good[FLOOD]) / (float(without.classes.good[FLOOD]) * rest), 3
        ),
    }


def start_load(
    cluster: Cluster, model: str, rate: float, slo_ms: int, priority: int, seconds: float, seed: int
) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "clockwork", "load", "--endpoint", cluster.endpoint, model),
        *("--rate", f"{rate:g}", "--duration", f"{seconds:g}", "--slo", f"{slo_ms / 1000:g}"),
        *("--seed", str(seed), "--json", *(("--priority", str(priority)) if priority else ())),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_load(child: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    out, errors = child.communicate(timeout=seconds + 60)
    if child.returncode:
        raise RuntimeError(f"the load generator failed: {errors}")
    found: dict[str, Any] = json.loads(out)
    return found


def live_row(policy: str, name: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Run rounds of the quiet model alone and beside the flood, on a controller and a worker of their own."""
    flood = FLOODS[name]
    runs: dict[str, list[dict[str, Any]]] = {"alone": [], "beside": [], "flood": []}
    emulated = ("--device", "emulated", "--devices", "1", "--arena", "256M")
    with Cluster(worker_arguments=emulated, controller_arguments=("--policy", policy)) as cluster:
        with cluster.client() as client:
            register_profiles(client, profiles(flood))
        warm = [
            start_load(cluster, model, QUIET_RATE, QUIET_SLO_MS, 0, 1.0, SEED) for model in ("quiet", "flood")
        ]
        for child in warm:
            finish_load(child, 1.0)
        for turn in range(rounds):
            quiet = start_load(cluster, "quiet", QUIET_RATE, QUIET_SLO_MS, 0, seconds, SEED + turn)
            runs["alone"].append(finish_load(quiet, seconds))
            flooding = start_load(
                cluster, "flood", flood.rate, flood.slo_ms, flood.priority, seconds, SEED + turn
            )
            quiet = start_load(cluster, "quiet", QUIET_RATE, QUIET_SLO_MS, 0, seconds, SEED + turn)
            runs["beside"].append(finish_load(quiet, seconds))
            runs["flood"].append(finish_load(flooding, seconds))

    def total(which: str, field: str) -> int:
        return sum(int(run[field]) for run in runs[which])

    def middle(which: str, field: str, mark: str) -> float:
        return round(statistics.median(run[field].get(mark, 0.0) for run in runs[which]), 1)

    return {
        "policy": policy,
        "flood": name,
        "offered": total("beside", "offered"),
        "in time alone": total("alone", "within_slo"),
        "beside": total("beside", "within_slo"),
        "p99 alone, ms": middle("alone", "latency_ms", "p99"),
        "p99 beside": middle("beside", "latency_ms", "p99"),
        "longest permitted": flood.longest_ms,
        "flood/s": round(statistics.median(run["goodput"] for run in runs["flood"]), 1),
        "refused p50, ms": middle("flood", "refusal_ms", "p50"),
        "refused p99, ms": middle("flood", "refusal_ms", "p99"),
    }


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--simulated", action="store_true", help="run in the simulator, not live")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--floods", default=",".join(FLOODS), help="some of " + ", ".join(FLOODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of a live run")
    arguments = parser.parse_args()
    floods = ["rate"] if arguments.quick else arguments.floods.split(",")
    seconds, rounds = (3.0, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    rows = []
    for policy in arguments.policies.split(","):
        for name in floods:
            if arguments.simulated:
                rows.append(simulated_row(policy, name, 10 if arguments.quick else SIMULATED_S))
            else:
                rows.append(live_row(policy, name, seconds, rounds))
    report.show("a model within its share beside a flood", SEED, rows, {}, arguments.json)


if __name__ == "__main__":
    main()
