"""Latency of a model while other models are loaded and unloaded, or registered.

    python -m bench.disturbance [--quick] [--json] [--rounds 8] [--seconds 6]

One worker serves a residual network of about 5 ms at half of the rate of plain ONNX Runtime on one thread,
open loop, Poisson. The parts of a round last some seconds each, and every round begins with another part. In
one part nothing else happens. In one, thirty other models, of which eight fit into memory beside the measured
one, are requested so often that about a dozen times a second one is evicted and another is loaded; they
execute in next to no time, so that loading is measured and not sharing of the device. In one, new
architectures are registered one after another: optimised, checked and measured. In one, another version of
the model is its shadow and gets a copy of each request. All parts belong to one run, so that other work on
the machine affects all alike. Latency is end to end, from the time at which a request was due.

Goals: p99 while others are loaded at most 1.2 times the undisturbed, while they are registered at most 1.5
times. A shadow delays a request by at most one execution, because a device cannot interrupt it. On two cores
the load generator and the process that registers share the cores with the worker. On a machine that is not
idle, run with a real-time class (`chrt -r 5 python -m bench.disturbance`, as root); preparation then still
takes the processor time that others leave.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench import published, report
from bench.cluster import Cluster, loads_of
from bench.reference import Plain
from clockwork.client.blocking import Client
from clockwork.models import zoo
from clockwork.system.clock import SECOND
from clockwork.workloads import load_generator, poisson

SEED = 17
MODEL = "residual_cnn"
SLO_S = 1.0  # long enough that nothing is refused, and lateness shows as latency
HALF = 0.5
OTHERS = 30
ROOM = 8  # room for so many other models, besides the measured one
ASKED_PER_S = 18.0
TABLE_ROWS = 32_768  # of 64 floats: 8 MiB for each of the other models
PAGE_BYTES = 1 << 20
WARM_UP_S = 0.3
"""Time at the beginning of each part that is not counted: requests of the previous part end in it."""

QUIET, LOADING, REGISTERING, SHADOWED = MODES = ("undisturbed", "loading", "registering", "shadowed")
GOALS = {LOADING: 1.2, REGISTERING: 1.5}

_DISTURBER = """
import random, sys, threading
from pathlib import Path
import numpy as np
from clockwork import Client, ClockworkError

endpoint, others, rate, directory = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
rng = random.Random(1)
stop = threading.Event()
new = iter(sorted(directory.glob("*.onnx")))
done = {"asked": 0, "not in time": 0, "registered": 0}

def ask(client):
    while not stop.wait(rng.expovariate(rate)):
        try:
            client.infer(f"other-{rng.randrange(others)}", np.arange(1), slo=5.0)
        except ClockworkError:
            done["not in time"] += 1
        done["asked"] += 1

def register(client):
    while not stop.is_set() and (path := next(new, None)):
        client.register(f"new-{done['registered']}", path)
        done["registered"] += 1

with Client(endpoint, timeout=120.0) as client:
    print("ready", flush=True)
    for line in sys.stdin:
        task = {"loading": ask, "registering": register}[line.strip()]
        stop.clear()
        thread = threading.Thread(target=task, args=(client,))
        thread.start()
        sys.stdin.readline()  # until the parent ends the part
        stop.set()
        thread.join()
        print(*done.values(), flush=True)
"""


class Disturber:
    """A disturbance of the cluster, from a process of its own, while a block runs."""

    def __init__(self, cluster: Cluster, client: Client, others: int, directory: Path) -> None:
        self._client = client
        self.asked = self.refused = self.registered = self.copied = self.compared = 0
        arguments = [cluster.endpoint, str(others), str(ASKED_PER_S), str(directory)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DISTURBER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear()

    def begin(self, mode: str) -> None:
        if mode == SHADOWED:
            self._client.route(MODEL, shadow={2: 1.0})
        elif mode != QUIET:
            self._say(mode)

    def end(self, mode: str) -> None:
        """End the disturbance, and return when its requests and registrations have ended."""
        if mode == SHADOWED:
            shadow = self._client.model(MODEL).raw["route"]["shadow"]
            self.copied += shadow["copied"]
            self.compared += shadow["compared"]
            self._client.route(MODEL, shadow={})
        elif mode != QUIET:
            self._say("")
            self.asked, self.refused, self.registered = (int(count) for count in self._hear().split())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that disturbs has ended")
        return line


def table(seed: int, rows: int) -> onnx.ModelProto:
    """A model that looks up a row: weights of any size, and almost no execution time."""
    weights = np.random.default_rng(seed).standard_normal((rows, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "row"], ["found"], axis=0)],
        "table",
        [helper.make_tensor_value_info("row", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weights, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_new(directory: Path, count: int) -> None:
    """Write networks of different widths: each is optimised, checked and measured anew."""
    for index in range(count):
        model = zoo.build("residual_cnn", seed=index, image=32, widths=(16, 32 + index, 64, 64))
        (directory / f"{index:03}.onnx").write_bytes(model.SerializeToString())


def measure(
    rounds: int, seconds: float, others: int, rows: int, new: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows by mode, and facts of the whole run."""
    model = zoo.build(MODEL, seed=SEED)
    plain = Plain(model)
    feeds = {"image": np.random.default_rng(SEED).standard_normal((1, 3, 64, 64)).astype(np.float32)}
    plain.block(feeds, 20)
    rate = HALF / plain.block(feeds, 50)
    room = min(ROOM, others - 1)
    arena = 2 * zoo.weights_bytes(model) + room * (rows * 256 + PAGE_BYTES) + 6 * PAGE_BYTES
    latencies: dict[str, list[npt.NDArray[np.int64]]] = {mode: [] for mode in MODES}
    unanswered = dict.fromkeys(MODES, 0)
    loaded = dict.fromkeys(MODES, 0)
    with (
        tempfile.TemporaryDirectory(prefix="clockwork-bench-") as scratch,
        Cluster(worker_arguments=("--arena", str(arena), "--page-size", str(PAGE_BYTES))) as cluster,
        cluster.client() as client,
    ):
        write_new(Path(scratch), new)
        client.register(MODEL, model, slo=SLO_S)
        client.promote(MODEL, 1)
        client.register(MODEL, zoo.fine_tune(model, SEED), slo=SLO_S)
        for index in range(others):
            client.register(
                f"other-{index}", table(index, rows).SerializeToString(), examples=np.arange(1), slo=5.0
            )
        disturber = Disturber(cluster, client, others, Path(scratch))
        try:
            for turn in range(rounds):
                for mode in MODES[turn % len(MODES) :] + MODES[: turn % len(MODES)]:
                    workload = poisson(
                        [rate], round((WARM_UP_S + seconds) * SECOND), seed=SEED + turn, slo_ns=SECOND
                    )
                    before = loads_of(client)
                    disturber.begin(mode)
                    found = load_generator.run_live(client, workload, [MODEL], seed=SEED)
                    disturber.end(mode)
                    counted = found.arrivals.t_ns >= WARM_UP_S * SECOND
                    good = counted & (found.outcome == load_generator.Outcome.GOOD)
                    latencies[mode].append(found.latency_ns[good])
                    unanswered[mode] += int(counted.sum() - good.sum())
                    loaded[mode] += loads_of(client) - before
        finally:
            disturber.close()
        facts = {
            "rate, a second": round(rate, 1),
            "rounds of seconds": f"{rounds} of {seconds:g}",
            "others, and how many fit": f"{others}, {room}",
            "asked of others": disturber.asked,
            "of these not in time": disturber.refused,
            "registered": disturber.registered,
            "copied to the shadow, and compared": f"{disturber.copied}, {disturber.compared}",
        }
    marks = {mode: np.percentile(np.concatenate(all_) / 1e6, (50, 99)) for mode, all_ in latencies.items()}
    table_rows = []
    for mode in MODES:
        ratios = [
            float(np.percentile(latency, 99) / np.percentile(quiet, 99))
            for latency, quiet in zip(latencies[mode], latencies[QUIET])
        ]
        table_rows.append(
            {
                "meanwhile": mode,
                "requests": sum(len(latency) for latency in latencies[mode]),
                "not answered": unanswered[mode],
                "LOADs": loaded[mode],
                "p50_ms": float(marks[mode][0]),
                "p99_ms": float(marks[mode][1]),
                "p99_ratio": float(marks[mode][1] / marks[QUIET][1]),
                "median of rounds": float(np.median(ratios)),
                "goal": GOALS.get(mode),
            }
        )
    return table_rows, facts


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    if arguments.quick:
        rows, facts = measure(1, 1.0, 4, 4096, 8)
    else:
        rows, facts = measure(arguments.rounds, arguments.seconds, OTHERS, TABLE_ROWS, 40 * arguments.rounds)
    if arguments.publish:
        published.save("disturbance", {"rows": rows, "facts": facts}, SEED)
    report.show("one model while others come and go", SEED, rows, facts, arguments.json)


if __name__ == "__main__":
    main()
