"""Fidelity of the simulator to a CPU worker: the same arrivals live and simulated, at several loads.

    python -m bench.fidelity [--quick] [--json] [--seconds 60] [--loads 0.5,0.9,1.2,1.5] [--policy NAME]
        [--over client|http] [--executors 1] [--plot fidelity.png]

A cluster serves digits, a ResNet-18, a residual network and an MLP on one CPU device with so many executors.
The load generator sends a workload, and the simulator gets the very same arrival arrays. A load of 1 is the
rate that the executors could execute without batches, by the exported profiles, if they did not slow each
other. How much they do is computed from the executions of all loads, and is part of all simulations. Three
simulations stand beside each live run:

- *profile*: the profiles that the cluster exports, the delays to and from the worker on the idle cluster, and
  the noise of the executions (sigma, outliers) as it was in the run itself.
- *measured*: the same, with every model's executions scaled by their times in this run over their profile,
  and
  with the worker's time between two executions. A difference between this simulation and the first is due to
  the machine, not to the simulator.
- *replayed*: the profiles, with the slowness of this run's executions at the time at which it occurred. An
  execution takes as many times its profile as those that began within the same 50 ms. Other work on the cores
  makes executions slow in spells, which independent noise cannot follow.

The time that clients and controller add to a request is measured on the idle cluster and added to every
simulated latency. A request is good if its client has the answer within the SLO. Goals: goodput within 3
points, p99 within 10 %.

On a machine that is not idle the first two differ from the live run: use a real-time class (`chrt -r 5 python
-m bench.fidelity`, as root), or compare with the third.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bench import published, report
from bench.cluster import Cluster as Processes
from bench.senders import Sent, sender
from clockwork.config import POLICY
from clockwork.formats import profiles
from clockwork.formats.profiles import ModelProfile
from clockwork.models import zoo
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.recording import decode
from clockwork.scheduler.types import ActionDone, Arrived, ModelReady, SendInfer
from clockwork.sim import Cluster, Histogram, Open, Report, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import Arrivals, poisson

SEED = 7
LOADS = (0.5, 0.9, 1.2, 1.5)
SLO_NS = 250 * MS
WARM_UP_NS = 3 * SECOND
"""Warm-up of each run: its arrivals are not counted, live or simulated."""

UNLOADED = 30
"""Requests of each model, one after another, that measure the time that clients and controller add."""

SEEDS = range(5)
"""Seeds of the simulated noise; the arrivals are the same."""

HOWS = ("profile", "measured", "replayed")

SPELL_NS = 50 * MS
"""Time of a live run over which the slowness of its executions is averaged, to be replayed."""

SLOWDOWN_MAX = 4.0
"""Bound on the time of an execution beside others, as a multiple of its time by itself."""

OUTLIER = 1.5
"""Factor over the median of its model from which an execution is an outlier."""

GOODPUT_POINTS = 3.0
P99_PERCENT = 10.0

SHARES = {"resnet18": 0.3, "residual": 0.4, "mlp": 0.2, "digits": 0.1}
"""Shares of the requests. The first two models take tens of milliseconds: Python's overhead is small."""

Floats = npt.NDArray[np.float64]


def models(quick: bool) -> dict[str, onnx.ModelProto]:
    if quick:
        return {
            "resnet18": zoo.build("resnet18", image=64),
            "residual": zoo.build("residual_cnn", image=64),
            "mlp": zoo.build("mlp", width=512),
            "digits": zoo.digits(),
        }
    return {
        "resnet18": zoo.build("resnet18", image=160),
        "residual": zoo.build("residual_cnn", image=128),
        "mlp": zoo.build("mlp", width=2048, depth=4),
        "digits": zoo.digits(),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """An execution of the recording."""

    model: str
    batch: int
    first: int  # number of the first arrival that it answers
    sent_ns: int
    begin_ns: int
    end_ns: int
    duration_ns: int
    done_ns: int  # time at which its result was there
    device: int = 0  # executor
    beside: float = 0.0  # share of its time in which the other executors executed, their mean


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """The execution times of a run, compared with the profiles."""

    ratio: dict[str, float]  # median ratio by model
    sigma: float  # standard deviation of the logarithm, about each model's median
    outliers: float  # outliers' share of all executions
    outlier_factor: float
    between_ns: (
        float  # from the end of an execution to the begin of the next one already sent: the worker's own time
    )


def actions_of(path: Path) -> tuple[list[Action], list[int]]:
    """The executions of a recording, in the order in which they were sent; and when each request arrived."""
    sent: dict[int, tuple[SendInfer, int, int]] = {}
    found: list[Action] = []
    arrivals: dict[int, int] = {}
    arrived_ns: list[int] = []
    names: dict[int, str] = {}
    with path.open("rb") as file:
        header, steps = decode(file)
        scheduler = make_scheduler(header.policy, header.memory, header.options)
        for step in steps:
            for event in step.events:
                if isinstance(event, Arrived):
                    arrivals[event.request.id] = len(arrivals)
                    arrived_ns.append(event.request.arrived_ns)
                elif isinstance(event, ModelReady):
                    names[event.spec.model_id] = event.spec.name
                elif isinstance(event, ActionDone) and event.action_id in sent and event.duration_ns:
                    order, at_ns, first = sent.pop(event.action_id)
                    found.append(
                        Action(names[order.model_id], len(order.requests), first, at_ns, event.begin_ns,
                               event.end_ns, event.duration_ns, event.now_ns, order.device)
                    )  # fmt: skip
            now = max((event.now_ns for event in step.events), default=0)
            for command in scheduler.step_many(step.events):
                if isinstance(command, SendInfer):
                    sent[command.action_id] = (command, now, arrivals[command.requests[0]])
    return sorted(with_neighbours(found), key=lambda action: action.sent_ns), arrived_ns


def with_neighbours(actions: Sequence[Action]) -> list[Action]:
    """The executions with what ran beside them on the other executors of their arena."""
    lanes: dict[int, list[Action]] = {}
    for action in sorted(actions, key=lambda action: action.begin_ns):
        lanes.setdefault(action.device, []).append(action)
    shares = {id(action): 0.0 for action in actions}
    for device, lane in lanes.items():
        begins = np.array([action.begin_ns for action in lane])
        ends = np.array([action.end_ns for action in lane])
        for action in actions:
            if action.device != device and action.end_ns > action.begin_ns:
                common = np.minimum(ends, action.end_ns) - np.maximum(begins, action.begin_ns)
                share = np.maximum(common, 0).sum() / (action.end_ns - action.begin_ns)
                shares[id(action)] += float(share) / (len(lanes) - 1)
    return [dataclasses.replace(action, beside=min(shares[id(action)], 1.0)) for action in actions]


def slowdown_of(actions: Sequence[Action], known: dict[str, ModelProfile]) -> float:
    """How many times as long an execution takes while all other executors execute: speeds, against the
    profiles, fall in a line with the neighbours. 1 where all executions had the same neighbours."""
    beside = np.array([action.beside for action in actions])
    if len(beside) < 2 or np.ptp(beside) < 0.5:
        return 1.0
    speeds = [known[action.model].execution_ns(action.batch) / action.duration_ns for action in actions]
    slope, alone = np.polyfit(beside, np.minimum(speeds, np.percentile(speeds, 99)), 1)
    return float(max(alone / max(alone + slope, alone / SLOWDOWN_MAX), 1.0))


def alone_ns(action: Action, slowdown: float) -> float:
    """The time of an execution without its neighbours."""
    return action.duration_ns * (1 - (1 - 1 / slowdown) * action.beside)


def spells_of(
    actions: Sequence[Action],
    known: dict[str, ModelProfile],
    between_ns: float,
    start_ns: int,
    slowdown: float = 1.0,
) -> list[tuple[int, float]]:
    """The ratio of execution times to their profiles, by beginning, for Cluster.spells.

    The ratio is averaged over SPELL_NS, because a delay that slows an execution of a tenth of a millisecond
    tenfold hardly slows an execution of ten milliseconds.
    """
    took: dict[int, float] = {}
    profiled: dict[int, float] = {}
    for action in actions:
        place = max(action.begin_ns - start_ns, 0) // SPELL_NS
        took[place] = took.get(place, 0.0) + alone_ns(action, slowdown) + between_ns
        profiled[place] = profiled.get(place, 0.0) + known[action.model].execution_ns(action.batch)
    return [(place * SPELL_NS, took[place] / profiled[place]) for place in sorted(took)]


def machine_of(actions: Sequence[Action], known: dict[str, ModelProfile], slowdown: float = 1.0) -> Machine:
    ratios: dict[str, list[float]] = {}
    for action in actions:
        ratios.setdefault(action.model, []).append(
            alone_ns(action, slowdown) / known[action.model].execution_ns(action.batch)
        )
    medians = {name: float(np.median(values)) for name, values in ratios.items()}
    off = np.concatenate([np.array(values) / medians[name] for name, values in ratios.items()])
    slow = off > OUTLIER
    low, high = np.percentile(np.log(off[~slow]), (16, 84))
    ordered = sorted(actions, key=lambda action: (action.device, action.begin_ns))
    between = [
        after.begin_ns - before.end_ns + (before.end_ns - before.begin_ns - before.duration_ns)
        for before, after in itertools.pairwise(ordered)
        if after.device == before.device and after.sent_ns < before.begin_ns
    ]
    return Machine(
        medians,
        float(high - low) / 2,
        float(slow.mean()),
        float(off[slow].mean()) if slow.any() else 2.0,
        float(max(0.0, np.median(between))) if between else 0.0,
    )


def delay_of(seen_ns: Sequence[int]) -> tuple[int, int]:
    """(least delay, width of a uniform jitter on top) with the observed median and spread."""
    low, median = np.percentile(seen_ns, (5, 50))
    return max(0, int(low)), max(0, int(2 * (median - low)))


def simulated(
    known: Sequence[ModelProfile], arrivals: Arrivals, cluster: Cluster, policy: str, until_ns: int
) -> list[Report]:
    return [
        simulate(
            known, cluster, [Open([arrivals])], policy, seed=seed, warmup_ns=WARM_UP_NS, until_ns=until_ns,
            resident=True,
        )
        for seed in SEEDS
    ]  # fmt: skip


def seen_by_clients(reports: Sequence[Report], added_ns: float) -> dict[str, Any]:
    """Good part and latencies, with the time that clients and controller add."""
    latency = Histogram(
        np.sum([report.latency.counts for report in reports], axis=0),
        max(report.latency.largest_ns for report in reports),
    )
    offered = sum(int(report.offered.sum()) for report in reports)
    within = latency.fraction_within(int(SLO_NS - added_ns)) if latency.total else 0.0
    marks = {mark: latency.percentile(mark) + added_ns for mark in (50, 99)}
    return {
        "good_%": 100 * within * latency.total / offered,
        "answered_%": 100 * latency.total / offered,
        "p50_ms": marks[50] / 1e6,
        "p99_ms": marks[99] / 1e6,
        "curve_ms": [(latency.percentile(mark) + added_ns) / 1e6 for mark in range(1, 100)],
        "predicted": {name: error.to_json() for name, error in reports[0].errors.items()},
    }


def seen_live(run: Sent) -> dict[str, Any]:
    counted = run.arrivals.t_ns >= WARM_UP_NS
    answered, latency = run.answered[counted], run.latency_ns[counted] / 1e6
    marks = np.percentile(latency[answered], range(1, 100)) if answered.any() else np.full(99, math.nan)
    return {
        "good_%": 100 * float(run.good[counted].mean()),
        "answered_%": 100 * float(answered.mean()),
        "p50_ms": float(marks[49]),
        "p99_ms": float(marks[98]),
        "curve_ms": marks.tolist(),
        "requests": int(counted.sum()),
        "lag_p99_ms": float(np.percentile(run.lag_ns[counted], 99)) / 1e6,
    }


def measure(
    loads: Sequence[float],
    seconds: float,
    quick: bool = False,
    policy: str = POLICY,
    over: str = "client",
    executors: int = 1,
) -> dict[str, Any]:
    """Facts, and for each load the live run and the simulations. over: "client" or "http"."""
    names = list(SHARES)
    until_ns = WARM_UP_NS + round(seconds * SECOND)
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as directory:
        recording = Path(directory) / "recording"
        with (
            Processes(
                worker_arguments=("--arena", "512M", "--executors", str(executors)),
                data=Path(directory),
                controller_arguments=("--policy", policy, "--record", str(recording)),
            ) as cluster,
            cluster.client() as client,
        ):
            for name, model in models(quick).items():
                client.register(name, model, slo=SLO_NS / SECOND)
            infos = [client.model(name) for name in names]
            exported = [profiles.from_info(info) for info in infos]
            status: dict[str, Any] = dict(client.status())
            cost_ns = sum(SHARES[profile.name] * profile.execution_ns(1) for profile in exported)
            runs = []
            with sender(over, client, cluster.endpoint, names) as clients:
                alone = {name: clients.alone(index, UNLOADED) for index, name in enumerate(names)}
                for part in loads:
                    rates = [executors * part * SECOND / cost_ns * share for share in SHARES.values()]
                    arrivals = poisson(rates, until_ns, seed=SEED, slo_ns=SLO_NS).collect()
                    runs.append(clients.send(arrivals, SLO_NS))
            after: dict[str, Any] = dict(client.status())
        actions, arrived_ns = actions_of(recording)
    return compare(exported, alone, status, runs, actions, arrived_ns, loads, until_ns) | {
        "over": over,
        "predictions": after["predictions"],
    }


def compare(
    exported: Sequence[ModelProfile],
    alone: dict[str, list[int]],
    status: dict[str, Any],
    runs: Sequence[Sent],
    actions: Sequence[Action],
    arrived_ns: Sequence[int],
    loads: Sequence[float],
    until_ns: int,
) -> dict[str, Any]:
    known = {profile.name: profile for profile in exported}
    worker = status["workers"][0]
    device = worker["devices"][0]
    first = len(alone) * UNLOADED
    idle = [action for action in actions if action.first < first]
    there_ns, there_jitter_ns = delay_of([action.begin_ns - action.sent_ns for action in idle])
    back_ns, back_jitter_ns = delay_of([action.done_ns - action.end_ns for action in idle])
    jitter_ns = (there_jitter_ns + back_jitter_ns) // 2
    by_model = {name: [action.duration_ns for action in idle if action.model == name] for name in alone}
    added_ns = float(
        np.median(np.concatenate([np.array(alone[name]) - np.array(by_model[name]) for name in alone]))
        - (there_ns + back_ns + jitter_ns)
    )
    executors = len(worker["devices"])
    slowdown = slowdown_of([action for action in actions if action.first >= first], known)
    rows = []
    for part, run in zip(loads, runs):
        mine = [action for action in actions if first <= action.first < first + len(run.arrivals)]
        # The time 0 of the arrivals: at least one of them was on time.
        start_ns = int(np.min(np.array(arrived_ns[first : first + len(run.arrivals)]) - run.arrivals.t_ns))
        first += len(run.arrivals)
        machine = machine_of(mine, known, slowdown)
        cluster = Cluster(
            devices=executors,
            devices_per_worker=executors,
            executors=executors,
            slowdown=slowdown,
            page_bytes=int(device["page_bytes"]),
            page_count=int(device["page_count"]),
            exec_noise=machine.sigma,
            outlier=machine.outliers,
            outlier_factor=machine.outlier_factor,
            link_there_ns=there_ns,
            link_back_ns=back_ns,
            link_jitter_ns=jitter_ns,
        )
        scaled = [
            dataclasses.replace(
                profile,
                exec_ns={
                    batch: round(ns * machine.ratio.get(profile.name, 1.0) + machine.between_ns)
                    for batch, ns in profile.exec_ns.items()
                },
            )
            for profile in exported
        ]
        policy = str(status["policy"])
        spells = spells_of(mine, known, machine.between_ns, start_ns, slowdown)
        spelled = dataclasses.replace(cluster, exec_noise=0.0, outlier=0.0, spells=spells)
        rows.append(
            {
                "load": part,
                "live": seen_live(run),
                "profile": seen_by_clients(
                    simulated(exported, run.arrivals, cluster, policy, until_ns), added_ns
                ),
                "measured": seen_by_clients(
                    simulated(scaled, run.arrivals, cluster, policy, until_ns), added_ns
                ),
                "replayed": seen_by_clients(
                    simulated(exported, run.arrivals, spelled, policy, until_ns), added_ns
                ),
                "machine": dataclasses.asdict(machine),
            }
        )
    return {
        "models_ms": {profile.name: profile.exec_ns[1] / 1e6 for profile in exported},
        "policy": status["policy"],
        "there_ms": there_ns / 1e6,
        "back_ms": back_ns / 1e6,
        "jitter_ms": jitter_ns / 1e6,
        "rtt_ms": int(worker["rtt_ns"]) / 1e6,
        "added_ms": added_ns / 1e6,
        "slo_ms": SLO_NS / 1e6,
        "executors": executors,
        "slowdown": slowdown,
        "rows": rows,
    }


def shown(found: dict[str, Any]) -> dict[str, Any]:
    """A measurement without the histograms of each simulation's predictions, which are most of its bytes."""
    rows = [dict(row) for row in found["rows"]]
    for row in rows:
        for how in HOWS:
            row[how] = {name: value for name, value in row[how].items() if name != "predicted"}
    return found | {"rows": rows}


def table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each load and simulation; differences are simulated less live."""
    lines = []
    for row in found["rows"]:
        live = row["live"]
        for how in HOWS:
            sim = row[how]
            points = sim["good_%"] - live["good_%"]
            percent = 100 * (sim["p99_ms"] / live["p99_ms"] - 1)
            lines.append(
                {
                    "load": row["load"],
                    "simulated with": how,
                    "requests": live["requests"],
                    "live good_%": round(live["good_%"], 2),
                    "sim good_%": round(sim["good_%"], 2),
                    "points": round(points, 2),
                    "live p50_ms": round(live["p50_ms"], 1),
                    "sim p50_ms": round(sim["p50_ms"], 1),
                    "live p99_ms": round(live["p99_ms"], 1),
                    "sim p99_ms": round(sim["p99_ms"], 1),
                    "p99_%": round(percent, 1),
                    "kept": "yes" if abs(points) <= GOODPUT_POINTS and abs(percent) <= P99_PERCENT else "no",
                }
            )
    return lines


def reasons(found: dict[str, Any]) -> dict[str, str]:
    """For each load, the machine's deviation from its profile, which the first simulation ignores."""
    said = {}
    for row in found["rows"]:
        machine = row["machine"]
        ratios = ", ".join(f"{name} {value:.2f}" for name, value in machine["ratio"].items())
        said[f"executions at load {row['load']:g}"] = (
            f"took, against their profiles, {ratios}; sigma {100 * machine['sigma']:.1f} %,"
            f" {100 * machine['outliers']:.2f} % outliers of {machine['outlier_factor']:.1f}x,"
            f" {machine['between_ns'] / 1e6:.2f} ms between two; generator's lag p99 {row['live']['lag_p99_ms']:.2f} ms"
        )
    return said


def draw(found: dict[str, Any], path: Path) -> None:
    """Latencies of answers, live and simulated, by load."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = found["rows"]
    figure = Figure(figsize=(4.5 * len(rows), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows):
        for how, style in zip(("live", *HOWS), ("-", ":", "--", "-.")):
            label = f"{how}: {row[how]['good_%']:.1f} % good"
            axes.plot(row[how]["curve_ms"], range(1, 100), style, label=label)
        axes.axvline(found["slo_ms"], color="grey", linewidth=0.8)
        axes.set_title(f"load {row['load']:g}")
        axes.set_xlabel("latency (ms)")
        axes.set_ylabel("percent of the answers")
        axes.set_xlim(left=0)
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--loads", default="")
    parser.add_argument("--policy", default=POLICY)
    parser.add_argument(
        "--over", choices=("client", "http"), default="client", help="what sends the requests"
    )
    parser.add_argument("--executors", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.publish and given.executors != 1:
        parser.error("the published figures are of one executor")
    loads = [float(load) for load in given.loads.split(",")] if given.loads else list(LOADS)
    found = measure(
        loads,
        given.seconds or (4.0 if given.quick else 60.0),
        given.quick,
        given.policy,
        given.over,
        given.executors,
    )
    if given.plot is not None:
        draw(found, given.plot)
    if given.publish:
        published.save("fidelity" if given.over == "client" else "fidelity-http", shown(found), SEED, draw)
    if given.json:
        print(json.dumps(report.conditions(SEED) | found, indent=2))
        return
    facts = {
        "policy": found["policy"],
        "over": found["over"],
        "one request, ms": {name: round(ms, 2) for name, ms in found["models_ms"].items()},
        "to the worker, back, and jitter, ms": [
            round(found[name], 3) for name in ("there_ms", "back_ms", "jitter_ms")
        ],
        "round trip that the controller plans with, ms": round(found["rtt_ms"], 3),
        "added by clients and controller, ms": round(found["added_ms"], 3),
        "executors, and the slowdown by all others": [found["executors"], round(found["slowdown"], 3)],
        **reasons(found),
    }
    report.show("Live and simulated", SEED, table(found), facts, False)


if __name__ == "__main__":
    main()
