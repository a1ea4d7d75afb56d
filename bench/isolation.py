"""Good answers of a model within its share of a device while another floods the device, beside having it
alone.

    python -m bench.isolation [--quick] [--json] [--simulated] [--policies edf,adaptive] [--rounds 3]
        [--seconds 10]

One emulated device takes 20 ms a request, so 50 requests/s. The quiet model gets 5 requests/s with an SLO of
100 ms, alone and then beside each flood of another model: by rate, by a looser and a tighter SLO, by
priority, by batches, by the size of its inputs. The floods of loads are eight models that do not all fit into
memory, each asked for at 50/s, which the device could serve; a load takes 16 ms. Beside them the
quiet model is asked for a tenth of the device, or *cold* for a tenth of the link, if it has to be loaded for
each request. In the floods of the wire the link for inputs carries 83 of them a second. A live row has a
controller and a worker of its own for each policy and flood, and `clockwork load` in processes of its own, in
rounds of alone and beside. A simulated run has 600 to 1,900 requests of the quiet model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from typing import Any

from bench import report
from bench.cluster import Cluster, finish_load, start_load
from bench.links import Link
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.launch.profiles import register_profiles
from clockwork.sim.world import Cluster as SimulatedCluster
from clockwork.sim.world import Open, Report, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads.generators import poisson

SEED = 11
EXEC_MS = 20
LOAD_MS = 16
QUIET_RATE = 5.0
QUIET_SLO_MS = 100
SIMULATED_S = 120
ARENA_BYTES = 16 << 20
INPUT_BYTES = 602_112
INPUT_BANDWIDTH = 1_000_000_000
JITTER_NS = 10_000
POLICIES = ("edf", "adaptive")
QUIET, FLOOD = 0, 1
"""Indices of the models (those behind FLOOD flood, too), and of the classes of their requests."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flood:
    """The load of the models that flood the device or its link, and the load of the quiet model."""

    rate: float = 550.0  # requests/s of all its models
    slo_ms: int = 100
    priority: int = 0  # priority of the flood; 0: the default
    gain: float = 0.0  # gain of batches: beta/alpha of exec(b) = alpha b + beta
    batch_max: int = 1
    input_bytes: int = 0
    exec_ms: int = EXEC_MS
    models: int = 1
    load_ms: int = 8
    pages: int = 0  # models for which the devices have memory, the quiet one included; 0: all
    devices: int = 1  # on one link
    wire: int = 0  # bytes/s of the link for inputs; 0: as fast as the machine is
    quiet_rate: float = QUIET_RATE
    quiet_exec_ms: int = EXEC_MS
    quiet_input_bytes: int = 0
    quiet_part: float = QUIET_RATE * EXEC_MS / 1000
    """Share of the flooded resource that the quiet model takes."""

    def rest(self, part: float) -> float:
        """Share of the flooded resource that is left, if this part of the quiet requests is served."""
        return 1 - self.quiet_part * part

    def without_room(self) -> Flood:
        """The flood without memory for the quiet model, where that is short."""
        return dataclasses.replace(self, pages=self.pages - 1) if self.pages > self.devices else self

    @property
    def longest_ms(self) -> float:
        """The longest execution that sharing permits: half of the quiet model's SLO, or a single request."""
        return max(float(EXEC_MS), QUIET_SLO_MS / 2 if self.batch_max > 1 else 0.0)


FLOODS = {
    "rate": Flood(),
    "looser SLO": Flood(slo_ms=1000),
    "tighter SLO": Flood(slo_ms=40),
    "priority": Flood(priority=1),
    "priority and SLO": Flood(priority=1, slo_ms=40),
    "batches": Flood(rate=2000.0, gain=20, batch_max=32),
    "inputs": Flood(input_bytes=INPUT_BYTES),
}

LOADS = Flood(rate=400.0, exec_ms=1, load_ms=LOAD_MS, models=8, pages=5, quiet_part=0)
COLD = dataclasses.replace(LOADS, quiet_rate=6.25, quiet_exec_ms=2, quiet_part=6.25 * LOAD_MS / 1000)
WIRE = Flood(rate=300.0, exec_ms=1, input_bytes=INPUT_BYTES, wire=50_000_000, quiet_part=0)
WIRE_TENTH = dataclasses.replace(
    WIRE, quiet_rate=8.0, quiet_exec_ms=2, quiet_input_bytes=INPUT_BYTES, quiet_part=8 * INPUT_BYTES / 5e7
)
FLOODS |= {
    f"{name}: SLO of {slo_ms} ms": dataclasses.replace(base, slo_ms=slo_ms, devices=devices)
    for name, base, devices in (
        ("loads", LOADS, 1),
        ("cold loads", COLD, 1),
        ("loads on 4 devices", dataclasses.replace(LOADS, pages=4), 4),
        ("cold loads on 4 devices", dataclasses.replace(COLD, pages=4), 4),
        ("wire", WIRE, 1),
        ("a tenth of the wire", WIRE_TENTH, 1),
        ("wire on 4 devices", WIRE, 4),
        ("a tenth of the wire on 4 devices", WIRE_TENTH, 4),
    )
    for slo_ms in (40, 100, 1000)
}


def profiles(flood: Flood) -> list[ModelProfile]:
    """The quiet model and the flooding ones."""

    def profile(name: str, exec_ms: int, gain: float, batch_max: int, input_bytes: int) -> ModelProfile:
        alpha_ns = round(exec_ms * MS / (1 + gain))
        return linear(name, alpha_ns, exec_ms * MS - alpha_ns, batch_max, weights_bytes=ARENA_BYTES,
                      load_ns=flood.load_ms * MS, input_bytes=input_bytes, output_bytes=4, program=name)  # fmt: skip

    return [
        profile("quiet", flood.quiet_exec_ms, 0, 1, flood.quiet_input_bytes),
        *(
            profile(name, flood.exec_ms, flood.gain, flood.batch_max, flood.input_bytes)
            for name in flood_names(flood)
        ),
    ]


def flood_names(flood: Flood) -> list[str]:
    return ["flood", *(f"flood{number}" for number in range(1, flood.models))]


def simulated(
    policy: str,
    flood: Flood | None,
    quiet_rate: float | None = None,
    seconds: int = SIMULATED_S,
    seed: int = SEED,
    kind: Flood | None = None,
    jitter_ns: int = JITTER_NS,
) -> Report:
    """A run of the quiet model (unless its rate is 0) and the flood (unless there is none).

    quiet_rate: None for the flood's. kind: the cluster and the models, where they are not the flood's.
    jitter_ns: by how much a message may be later than another, at most.
    """
    kind = kind or flood or Flood()
    quiet_rate = kind.quiet_rate if quiet_rate is None else quiet_rate
    workloads = []
    if quiet_rate:
        quiet = poisson([quiet_rate], seconds * SECOND, models=[QUIET], seed=seed, slo_ns=QUIET_SLO_MS * MS)
        workloads.append(Open(quiet))
    if flood is not None:
        each = [flood.rate / flood.models] * flood.models
        flooding = poisson(
            each, seconds * SECOND, models=range(FLOOD, FLOOD + flood.models), seed=seed, stream=1,
            slo_ns=flood.slo_ms * MS, priority=flood.priority, cls=FLOOD,
        )  # fmt: skip
        workloads.append(Open(flooding))
    cluster = SimulatedCluster(
        devices=kind.devices,
        devices_per_worker=kind.devices,
        page_count=kind.pages // kind.devices or SimulatedCluster().page_count,
        exec_noise=0.003,
        link_jitter_ns=jitter_ns,
        ping_ns=250 * MS if kind.wire else 0,
        input_bandwidth=kind.wire or (INPUT_BANDWIDTH if kind.input_bytes else 0),
    )
    return simulate(profiles(kind), cluster, workloads, policy=policy, resident=True, seed=seed)


def simulated_row(policy: str, name: str, seconds: int) -> dict[str, Any]:
    """A row: the quiet model alone and beside the flood, and the flood alone.

    The flood alone has no memory for the quiet model, where memory is short.
    """
    flood = FLOODS[name]
    alone = simulated(policy, None, seconds=seconds, kind=flood)
    beside = simulated(policy, flood, seconds=seconds)
    without = simulated(policy, flood, quiet_rate=0, seconds=seconds, kind=flood.without_room())
    good = [int(report.classes.good[QUIET]) for report in (alone, beside)]
    rest = flood.rest(good[1] / int(beside.classes.offered[QUIET]))
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


def live_row(policy: str, name: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Run rounds of the quiet model alone and beside the flood, on a controller and a worker of their own."""
    flood = FLOODS[name]
    runs: dict[str, list[dict[str, Any]]] = {"alone": [], "beside": [], "flood": []}
    arena = f"{flood.pages * ARENA_BYTES // flood.devices if flood.pages else 256 << 20}"
    emulated = ("--device", "emulated", "--devices", str(flood.devices), "--arena", arena, "--page-size", "16MiB",
                "--emulate", "shared_link=true")  # fmt: skip
    links: list[Link] = []

    def through(endpoint: str) -> str:
        links.append(Link(endpoint, bandwidth=flood.wire))
        return links[0].endpoint

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: links[0].close() if links else None)
        cluster = stack.enter_context(
            Cluster(
                worker_arguments=emulated,
                controller_arguments=("--policy", policy),
                through=through if flood.wire else None,
            )
        )
        with cluster.client() as client:
            register_profiles(client, profiles(flood))
        warm = [
            start_load(cluster, models, flood.quiet_rate, 1.0, SEED, 1.0)
            for models in (["quiet"], flood_names(flood))
        ]
        for child in warm:
            finish_load(cluster, child, 1.0)
        priority = ("--priority", str(flood.priority)) if flood.priority else ()
        for turn in range(rounds):
            seed, slo_s = SEED + turn, QUIET_SLO_MS / 1000
            quiet = start_load(cluster, ["quiet"], flood.quiet_rate, seconds, seed, slo_s)
            runs["alone"].append(finish_load(cluster, quiet, seconds))
            flooding = start_load(
                cluster, flood_names(flood), flood.rate, seconds, seed, flood.slo_ms / 1000, *priority
            )
            quiet = start_load(cluster, ["quiet"], flood.quiet_rate, seconds, seed, slo_s)
            runs["beside"].append(finish_load(cluster, quiet, seconds))
            runs["flood"].append(finish_load(cluster, flooding, seconds))

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
