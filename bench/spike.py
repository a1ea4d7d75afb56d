"""Goodput in windows of 50 ms, while requests come at ten times the usual rate for a second and after that.

    python -m bench.spike [--quick] [--json] [--policy adaptive,edf] [--shape many-mid-100] [--seeds 5]
    python -m bench.spike --live [--kinds emulated,cpu] [--rounds 5] [--out spike.jsonl] ...

Requests come at LOAD of capacity, for a second at FACTOR times that, then at LOAD of capacity again: Poisson
processes, open loop, every model resident on every device.

Capacity is a rate that a schedule attains in which the models take turns: with M models on D devices, a
request waits for max(M / D, 1) batches and then for its own, so a batch takes at most the SLO divided by
1 + max(M / D, 1) (the rule of Nexus, SOSP '19). Of these sizes the cheapest counts, with the device time of a
request in it. Capacity is no bound: a policy may attain more.

- spike: the device time, at capacity, of the good answers that were executed in a window, as a part of the
  window on all devices. An answer counts evenly over its execution, because batches are longer than windows.
  Requests that are refused during a spike are no loss: no policy could serve them all.
- after: the good part of the requests that arrive in a window after the spike.

The first window of each is a transition and does not count. The goals are SPIKE_KEPT and AFTER_KEPT in every
other window. "quiet" has the requests that are lost without a spike: simulated, in the same windows of the
same world; live, in the second before the spike. "sent late" are the requests that a live generator sent more
than SENT_LATE_NS after they were due, because the machine did other things.

Simulated, a shape is a cell of bench.grid (a name of SHAPES, or key=value,...). Live, a controller and a
worker are started for each round: "emulated" has two emulated devices and four models, "cpu" a real network
of about 5 ms, whose capacity is that of plain ONNX Runtime on one thread, measured before and after a round
and on a machine on which client, controller and worker share cores with it. With --out each round is written
when it ends, and the rounds that the file has already are not measured again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import published, report
from bench.cluster import Cluster
from bench.grid.cells import LINK_NS, Cell, profiles, specified
from bench.grid.measure import cluster
from bench.recovery import wait_until
from bench.reference import Plain
from clockwork.client.blocking import Client
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.launch.profiles import register_profiles
from clockwork.models import zoo
from clockwork.sim import Open, simulate
from clockwork.sim.fluid import batch_limit, curve
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.workloads import Arrivals, load_generator

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SEED = 27
POLICIES = ("adaptive", "edf")
WINDOW_NS = 50 * MS
LOAD, FACTOR = 0.5, 10.0
SPIKE_KEPT, AFTER_KEPT = 0.95, 0.999
FIRST = 1  # index of the first window that counts
SENT_LATE_NS = 10 * MS

SHAPES = {
    f"{name}-{slo_ms}": f"slo={slo_ms}ms,{spec}"
    for slo_ms in (25, 100, 250)
    for name, spec in {
        "one-none": "devices=1,models=1,gain=0,exec=4ms",
        "one-low": "devices=1,models=1,gain=1,exec=4ms",
        "one-high": "devices=1,models=1,gain=20,exec=4ms",
        "few-none": "devices=1,models=6,gain=0,exec=4ms",
        "few-high": "devices=1,models=6,gain=20,exec=4ms",
        "many-low": "devices=8,models=20,gain=1,exec=4ms",
        "many-mid": "devices=8,models=20,gain=4,exec=8ms",
        "many-zipf": "devices=8,models=20,gain=4,exec=8ms,zipf=0.9",
        "zoo": "devices=12,models=61,gain=zoo",
    }.items()
} | {"many-mixed": "devices=8,models=20,slo=25ms/100ms/250ms,gain=4,exec=8ms"}
QUICK_SHAPES = ("one-low-100", "many-zipf-100")

LIVE_DEVICES, LIVE_MODELS = 2, 4
LIVE_ROW_NS, LIVE_BASE_NS, LIVE_BATCH_MAX = 4 * MS, 4 * MS, 4
"""The largest batch is that of capacity, so that the answers of full batches count over their executions."""

LIVE_SLO_NS = 100 * MS
CPU_MODEL = "residual_cnn"
PLAIN_CALLS = 100  # calls of plain ONNX Runtime in each measurement of its speed
KINDS = ("emulated", "cpu")


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """Lengths of a run's parts, in nanoseconds."""

    before: int = 2 * SECOND
    spike: int = SECOND
    after: int = SECOND

    @property
    def spike_end(self) -> int:
        return self.before + self.spike

    @property
    def end(self) -> int:
        return self.spike_end + self.after


QUICK = Times(SECOND, SECOND // 2, SECOND // 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Windows:
    """A run by windows."""

    spike: Floats  # parts of capacity
    offered: Integers  # requests after the spike
    good: Integers
    quiet_offered: Integers  # requests without a spike
    quiet_good: Integers
    sent_late: int = 0  # requests

    def to_json(self) -> dict[str, Any]:
        return {
            field.name: value if field.name == "sent_late" else value.tolist()
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }

    @staticmethod
    def of_json(found: dict[str, Any]) -> Windows:
        return Windows(
            spike=np.array(found["spike"], np.float64),
            offered=np.array(found["offered"], np.int64),
            good=np.array(found["good"], np.int64),
            quiet_offered=np.array(found["quiet_offered"], np.int64),
            quiet_good=np.array(found["quiet_good"], np.int64),
            sent_late=found["sent_late"],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """Device time of a request and of its batch at capacity, in ns, by model."""

    row_ns: Floats
    batch_ns: Floats


def costs(models: Sequence[ModelProfile], slo_ns: int, devices: int) -> Costs:
    """The costs at capacity for requests of this SLO."""
    turns = max(len(models) / devices, 1.0)
    rows, batches = [], []
    for profile in models:
        times = curve(profile)
        largest = max(batch_limit(times, slo_ns / (1 + turns)), 1)
        each = times[1 : largest + 1] / np.arange(1, largest + 1)
        rows.append(each.min())
        batches.append(times[1 + int(each.argmin())])
    return Costs(np.array(rows), np.array(batches))


def arrivals(
    rate: float,
    shares: Sequence[float],
    slos_ns: Sequence[Sequence[int]],
    times: Times,
    seed: int,
    spike: bool,
) -> Arrivals:
    """Requests at a rate per second, with or without the further ones of a spike, which change no others.

    shares: part of each model. slos_ns: SLOs of each model, of which a request has any.
    """
    slos = np.asarray(slos_ns, np.int64)
    parts = []
    for stream, times_rate, begin_ns, end_ns in (
        (0, 1.0, 0, times.end),
        (1, FACTOR - 1, times.before, times.spike_end),
    )[: 2 if spike else 1]:
        rng = np.random.default_rng([seed, stream])
        count = int(rng.poisson(times_rate * rate * (end_ns - begin_ns) / SECOND))
        t_ns = rng.integers(begin_ns, end_ns, count)
        model = rng.choice(len(shares), count, p=shares)
        parts.append((t_ns, model, slos[model, rng.integers(0, slos.shape[1], count)]))
    t_ns, model, slo_ns = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(t_ns, kind="stable")
    return Arrivals.of(t_ns[order], model[order], slo_ns[order])


def used(
    cost_ns: Floats, begin_ns: Integers, end_ns: Integers, from_ns: int, until_ns: int, devices: int
) -> Floats:
    """By window, the parts of all devices that executions used: each counts cost_ns, evenly over its time."""
    edges = np.arange(from_ns, until_ns + 1, WINDOW_NS)
    length = np.maximum(end_ns - begin_ns, 1)
    done = [float(np.sum(cost_ns * np.clip((edge - begin_ns) / length, 0, 1))) for edge in edges]
    return np.diff(done) / (devices * WINDOW_NS)


def counts(t_ns: Integers, good: Flags, from_ns: int, until_ns: int) -> tuple[Integers, Integers]:
    """Requests that arrived, and those of them that were good, by window."""
    edges = np.arange(from_ns, until_ns + 1, WINDOW_NS)
    return np.histogram(t_ns, edges)[0], np.histogram(t_ns[good], edges)[0]


# ----- simulated ---------------------------------------------------------------------------------


def cell_of(shape: str) -> Cell:
    """The cell of a shape. Raises ValueError for an invalid specification."""
    return specified(shape, SHAPES.get(shape, shape))


def capacity(cell: Cell) -> tuple[float, Costs]:
    """Capacity in requests a second, and the costs of which it is made."""
    cost = costs(profiles(cell), min(min(row) for row in cell.slos_ns()), cell.devices)
    return cell.devices * SECOND / float(np.dot(cell.shares(), cost.row_ns)), cost


def simulated(cell: Cell, policy: str, seed: int, times: Times = Times()) -> Windows:
    """A world with a spike, and the same without."""
    rate, cost = capacity(cell)
    models = profiles(cell)

    def run(spike: bool) -> tuple[Arrivals, npt.NDArray[np.int64], Flags]:
        offered = arrivals(LOAD * rate, cell.shares(), cell.slos_ns(), times, seed, spike)
        found = simulate(
            models,
            cluster(cell),
            [Open(offered.chunks())],
            policy=policy,
            seed=seed,
            until_ns=times.end,
            resident=True,
            fates=True,
        ).fates
        return offered, found, found[:, 0] == 0

    offered, fates, good = run(spike=True)
    end_ns = offered.t_ns + fates[:, 3] - LINK_NS
    # Requests of a model that a device answered at the same time were a batch.
    keys = np.stack([fates[good, 2], end_ns[good], offered.model[good]])
    _, place, sizes = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    tables = [curve(profile) for profile in models]
    took = [
        tables[model][size] for model, size in zip(offered.model[good], sizes[place.ravel()], strict=True)
    ]
    spike = used(
        cost.row_ns[offered.model[good]],
        end_ns[good] - np.array(took, np.int64),
        end_ns[good],
        times.before,
        times.spike_end,
        cell.devices,
    )
    after = counts(offered.t_ns, good, times.spike_end, times.end)
    quiet, _, quiet_good = run(spike=False)
    return Windows(spike, *after, *counts(quiet.t_ns, quiet_good, times.spike_end, times.end))


# ----- live --------------------------------------------------------------------------------------


def emulated_profiles() -> list[ModelProfile]:
    return [
        linear(f"m{index}", LIVE_ROW_NS, LIVE_BASE_NS, LIVE_BATCH_MAX, weights_bytes=16 << 20, load_ns=5 * MS,
               input_bytes=1000, output_bytes=4)
        for index in range(LIVE_MODELS)
    ]  # fmt: skip


Sent = tuple[Integers, Flags, Integers, Integers]
"""Arrays by request: due time from the beginning, whether it was answered in time, and the times in ns from
when it was due until its outcome and until it was sent."""


def offer(endpoint: str, begin_ns: int, offered: Arrivals, names: Sequence[str]) -> Sent:
    """Send requests from begin_ns on, in a process of its own."""
    with Client(endpoint, timeout=30.0, name="spike") as client:
        wait_until(begin_ns)
        found = load_generator.run_live(client, offered, names, seed=SEED)
    good = np.asarray(found.outcome) == load_generator.Outcome.GOOD
    return found.arrivals.t_ns, good, np.asarray(found.latency_ns), np.array(found.lag_ns)


def live_windows(devices: int, cost: Costs, offered: Arrivals, found: Sent, times: Times) -> Windows:
    """The windows of a live run. The batches are not known: an answer counts over a batch of capacity."""
    t_ns, good, latency_ns, lag_ns = found
    end_ns, model = t_ns[good] + latency_ns[good], offered.model[good]
    begin_ns = end_ns - cost.batch_ns[model].astype(np.int64)
    return Windows(
        used(cost.row_ns[model], begin_ns, end_ns, times.before, times.spike_end, devices),
        *counts(t_ns, good, times.spike_end, times.end),
        *counts(t_ns, good, times.before - min(times.before, SECOND), times.before),
        sent_late=int((lag_ns > SENT_LATE_NS).sum()),
    )


@contextlib.contextmanager
def sender() -> Iterator[ProcessPoolExecutor]:
    """A process that sends requests, once it has started."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(now_ns).result()
        yield pool


def emulated(policy: str, seed: int, times: Times = Times()) -> Windows:
    """A live round with emulated devices."""
    models = emulated_profiles()
    cost = costs(models, LIVE_SLO_NS, LIVE_DEVICES)
    rate = LIVE_DEVICES * SECOND / float(cost.row_ns.mean())
    offered = arrivals(
        LOAD * rate, [1 / LIVE_MODELS] * LIVE_MODELS, [[LIVE_SLO_NS]] * LIVE_MODELS, times, seed, spike=True
    )
    worker = ["--device", "emulated", "--devices", str(LIVE_DEVICES), "--page-size", "16MiB"]
    with Cluster(1, worker, controller_arguments=("--policy", policy)) as served, sender() as pool:
        with served.client() as client:
            register_profiles(client, models)
        names = [profile.name for profile in models]
        found = pool.submit(offer, served.endpoint, now_ns() + SECOND // 4, offered, names).result()
    return live_windows(LIVE_DEVICES, cost, offered, found, times)


def cpu(policy: str, seed: int, times: Times = Times()) -> Windows:
    """A live round with a real network on a CPU."""
    model = zoo.build(CPU_MODEL, seed=SEED)
    plain = Plain(model)
    x = np.random.default_rng(SEED).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with Cluster(controller_arguments=("--policy", policy)) as served, sender() as pool:
        with served.client() as client:
            client.register(CPU_MODEL, model)
            client.infer(CPU_MODEL, x)
        before_s = plain.block({"image": x}, PLAIN_CALLS)
        offered = arrivals(LOAD / before_s, [1.0], [[LIVE_SLO_NS]], times, seed, spike=True)
        found = pool.submit(offer, served.endpoint, now_ns() + SECOND // 4, offered, [CPU_MODEL]).result()
        took_ns = np.array([(before_s + plain.block({"image": x}, PLAIN_CALLS)) / 2 * SECOND])
    return live_windows(1, Costs(took_ns, took_ns), offered, found, times)


LIVE: dict[str, Callable[[str, int, Times], Windows]] = {"emulated": emulated, "cpu": cpu}


def live_rounds(
    kinds: Sequence[str], policies: Sequence[str], rounds: int, times: Times, out: Path | None
) -> dict[tuple[str, str], list[Windows]]:
    """Rounds of each kind and policy in turn. out: a file of lines of JSON, which is gone on with."""
    known: dict[tuple[str, str, int], Windows] = {}
    if out is not None and out.exists():
        for line in out.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            known[entry["kind"], entry["policy"], entry["round"]] = Windows.of_json(entry["windows"])
    for number in range(rounds):
        for kind in kinds:
            for policy in policies:
                if (kind, policy, number) in known:
                    continue
                windows = LIVE[kind](policy, SEED + number, times)
                known[kind, policy, number] = windows
                if out is not None:
                    entry = {"kind": kind, "policy": policy, "round": number, "windows": windows.to_json()}
                    entry["conditions"] = report.conditions(SEED + number)
                    with out.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(entry) + "\n")
    return {
        (kind, policy): [known[kind, policy, number] for number in range(rounds)]
        for kind in kinds
        for policy in policies
    }


# ----- the table ---------------------------------------------------------------------------------


def row(name: str, policy: str, found: Sequence[Windows]) -> dict[str, Any]:
    """A row of the table: counts over all windows that count of all runs."""
    spike = np.array([windows.spike[FIRST:] for windows in found])
    offered, good, quiet_offered, quiet_good = (
        np.array([getattr(windows, name)[FIRST:] for windows in found])
        for name in ("offered", "good", "quiet_offered", "quiet_good")
    )
    below = good < AFTER_KEPT * offered
    return {
        "shape": name,
        "policy": policy,
        "spike least": round(float(spike.min()), 3),
        "mean": round(float(spike.mean()), 3),
        f"below {SPIKE_KEPT}": int((spike < SPIKE_KEPT).sum()),
        "of": spike.size,
        "after least": round(float((good / np.maximum(offered, 1) + (offered == 0)).min()), 3),
        "lost": int((offered - good).sum()),
        "offered": int(offered.sum()),
        f"below {AFTER_KEPT}": int(below.sum()),
        "of windows": below.size,
        "quiet lost": int((quiet_offered - quiet_good).sum()),
        "quiet below": int((quiet_good < AFTER_KEPT * quiet_offered).sum()),
        "sent late": sum(windows.sent_late for windows in found),
    }


def measure(
    shapes: Sequence[str], policies: Sequence[str], seeds: int, times: Times = Times()
) -> list[dict[str, Any]]:
    """Rows of simulated shapes, each over as many seeds."""
    return [
        row(
            shape,
            policy,
            [simulated(cell_of(shape), policy, SEED + number, times) for number in range(seeds)],
        )
        for shape in shapes
        for policy in policies
    ]


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    parser.add_argument("--live", action="store_true", help="a real controller and worker, not the simulator")
    parser.add_argument("--policy", default=",".join(POLICIES), help=f"default {','.join(POLICIES)}")
    parser.add_argument(
        "--shape", action="append", help="a name, or key=value,... (default: all; repeatable)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="simulated worlds of each shape (default 5)")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of --live (default {','.join(KINDS)})")
    parser.add_argument("--rounds", type=int, default=5, help="of --live (default 5)")
    parser.add_argument("--out", type=Path, help="of --live: a file for rounds as they end, gone on with")
    options = parser.parse_args()
    times = QUICK if options.quick else Times()
    policies = options.policy.split(",")
    facts: dict[str, Any] = {
        "goals": f"{SPIKE_KEPT} of capacity in the spike, {AFTER_KEPT} of the offered after"
    }
    if options.live:
        kinds = options.kinds.split(",")
        if unknown := set(kinds) - set(KINDS):
            parser.error(f"no kinds {sorted(unknown)}; there are {', '.join(KINDS)}")
        rounds = 1 if options.quick else options.rounds
        found = live_rounds(kinds, policies, rounds, times, options.out)
        rows = [row(kind, policy, windows) for (kind, policy), windows in found.items()]
        facts["rounds"] = rounds
    else:
        shapes = options.shape or (QUICK_SHAPES if options.quick else list(SHAPES))
        seeds = 1 if options.quick else options.seeds
        rows = measure(shapes, policies, seeds, times)
        facts["seeds"] = seeds
        facts["capacity, requests/s"] = {shape: round(capacity(cell_of(shape))[0], 1) for shape in shapes}
    if options.publish:
        published.save("spike-live" if options.live else "spike", {"rows": rows, "facts": facts}, SEED)
    report.show("goodput in windows of 50 ms in and after a spike", SEED, rows, facts, options.json)


if __name__ == "__main__":
    main()
