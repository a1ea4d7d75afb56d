"""Latency on a GPU that serves while models are registered: requests alone, while models are registered
elsewhere on the machine (in a cluster of its own, with a GPU of its own), and while models are registered on
the GPU that serves.

    python -m bench.gpu_registration [--quick] [--json] [--models 40] [--rate 100] [--seconds 30]
        [--arrivals poisson] [--shared]

Registrations elsewhere slow requests because the machine's cores are busy; any further delay comes from the
GPU. On a real card there is no such control, because the other cluster would share the card.

Each model is a program of its own, written by hand, of a few launches, so that each has modules to be loaded,
answers to be checked and batch sizes to be timed (--shared: all are fine-tunes of one model). Times are the
controller's: from the arrival of a request until its execution had ended, and the execution by the GPU's
events.

The benchmark runs on the driver that CLOCKWORK_CUDA_DRIVER names. On the fake one a kernel takes 0.2 ms, and
calls that stall a card stall it for 2 ms, unless CLOCKWORK_FAKE_SPEED and CLOCKWORK_FAKE_STALL say otherwise.
The fake driver shows which calls stall executions, not how long.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.cluster import Cluster
from bench.gpu import WIDTH, compile_kernel
from bench.gpu_serving import write_package
from clockwork import Client
from clockwork.device.cuda_memory import cards, open_driver, target_of
from clockwork.errors import ClockworkError
from clockwork.formats.program import CHECKS_FILE, read_program, write_checks, write_program
from clockwork.scheduler.recording import Step, decode
from clockwork.scheduler.types import ActionDone, Arrived, SendInfer
from clockwork.system.clock import SECOND
from clockwork.wire.messages import Status

SEED = 0
SLO_S = 1.0
LAUNCHES = 2
"""Launches of the model that serves; each further model has one launch more than the model before."""

PAGE_BYTES = 1 << 18
FAKE_SPEED = "0:0:200000:0"
FAKE_STALL_NS = 2_000_000
CLOCKS_NS = 2_000_000
"""Largest error of the controller's estimate of the worker's clock."""

REGISTER_S = 600.0
MARKS = (50, 99, 99.9, 100)


def package(place: Path, module: bytes, target: str, launches: int, value: float) -> Path:
    """Write a package with a check: y = x + launches * value."""
    write_package(place, module, target, 1, PAGE_BYTES, value, launches)
    x = np.arange(WIDTH, dtype=np.float32)[None]
    program = read_program(place)
    write_checks(place, program, [([x], [x + np.float32(launches * value)])])
    program.files[CHECKS_FILE] = ""
    write_program(place, program)
    return place


def send(client: Client, gaps_s: Iterator[float], is_over: Callable[[], bool]) -> int:
    """Send requests with these times between them, regardless of their outcomes; returns how many failed."""
    x = np.arange(WIDTH, dtype=np.float32)[None]
    asked, due = [], time.monotonic()
    while not is_over():
        due += next(gaps_s)
        time.sleep(max(due - time.monotonic(), 0))
        asked.append(client.submit("serving", x, slo=SLO_S))
    return sum(future.exception() is not None for future in asked)


class Registering(threading.Thread):
    """Registers packages, one after the other."""

    def __init__(self, cluster: Cluster, packages: Sequence[Path]) -> None:
        super().__init__()
        self.took_s: list[float] = []
        self.failed: list[ClockworkError] = []
        self._cluster = cluster
        self._packages = packages
        self.start()

    def run(self) -> None:
        with self._cluster.client(timeout=REGISTER_S) as client:
            for number, package in enumerate(self._packages):
                begun = time.monotonic()
                try:
                    client.register(f"model-{number}", package)
                except ClockworkError as error:
                    self.failed.append(error)
                self.took_s.append(time.monotonic() - begun)


def times_of(steps: Sequence[Step]) -> list[tuple[int, int, int]]:
    """(arrival, ns until its execution had ended, ns of the execution) of every request that was served."""
    arrived: dict[int, int] = {}
    batches: dict[int, tuple[int, ...]] = {}
    found: list[tuple[int, int, int]] = []
    for step in steps:
        for event in step.events:
            if type(event) is Arrived:
                arrived[event.request.id] = event.request.arrived_ns
            elif type(event) is ActionDone and event.status is Status.OK:
                for request in batches.pop(event.action_id, ()):
                    if request in arrived:
                        began = arrived.pop(request)
                        found.append((began, event.end_ns - began, event.duration_ns))
        for command in step.commands:
            if type(command) is SendInfer:
                batches[command.action_id] = command.requests
    return found


def outside(steps: Sequence[Step], noted: Path) -> str:
    """The number of calls that stall a card outside of RESERVEs, of all, as the fake driver noted them."""
    given: set[int] = set()
    spans: list[tuple[int, int]] = []
    for step in steps:
        spans += [
            (event.begin_ns - CLOCKS_NS, event.end_ns + CLOCKS_NS)
            for event in step.events
            if type(event) is ActionDone and event.action_id in given
        ]
        given |= {command.action_id for command in step.commands if type(command).__name__ == "SendReserve"}
    calls = [tuple(map(int, line.split()[2:])) for line in noted.read_text().splitlines()]
    free = sum(not any(b <= begin and end <= e for b, e in spans) for begin, end in calls)
    return f"{free} of {len(calls)}"


def ratio(compared: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {"requests": f"{compared['requests']} / {base['requests']}", "served": ""} | {
        name: round(compared[name] / base[name], 2) for name in base if name.endswith("_us")
    }


def row(phase: str, found: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    answered, executed = ([times[place] for times in found] for place in (1, 2))
    return {
        "requests": phase,
        "served": len(found),
        **{f"answered {name}": value for name, value in report.percentiles(answered, MARKS).items()},
        **{f"executed {name}": value for name, value in report.percentiles(executed, MARKS).items()},
    }


def measure(
    models: int, rate: float, seconds: float, arrivals: str = "even", is_shared: bool = False
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows: the times of requests in each phase, and their ratios between phases. Facts: everything else."""
    table = open_driver()
    card = cards(table)[0]
    if not card.is_gpu:
        os.environ.setdefault("CLOCKWORK_FAKE_SPEED", FAKE_SPEED)
        os.environ.setdefault("CLOCKWORK_FAKE_STALL", str(FAKE_STALL_NS))
    target = target_of(card)
    module = compile_kernel(target)
    rng = np.random.default_rng(SEED)
    gaps_s = iter(lambda: float(rng.exponential(1 / rate)) if arrivals == "poisson" else 1 / rate, None)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as clusters:
        place = Path(scratch)
        recording, noted = place / "recording", place / "stalls"
        worker = (
            "--device", "cuda", "--arena", str((models + 1) * PAGE_BYTES), "--page-size", str(PAGE_BYTES),
        )  # fmt: skip
        packages = [
            package(
                place / str(number), module, target, LAUNCHES + (0 if is_shared else number), 1 + number / 64
            )
            for number in range(models + 1)
        ]
        elsewhere = clusters.enter_context(Cluster(worker_arguments=worker)) if not card.is_gpu else None
        os.environ["CLOCKWORK_FAKE_STALLS"] = str(noted)
        cluster = clusters.enter_context(
            Cluster(worker_arguments=worker, controller_arguments=("--record", str(recording)))
        )
        client = clusters.enter_context(cluster.client(timeout=REGISTER_S))
        noted.write_text("")  # drops what was noted at start
        client.register("serving", packages[0])
        ends = time.monotonic() + seconds
        unserved = send(client, gaps_s, lambda: time.monotonic() >= ends)
        phases = {"alone": time.monotonic_ns()}  # time at which each phase ended
        for phase, registering in (("registering elsewhere", elsewhere), ("registering here", cluster)):
            if registering is not None:
                ours = Registering(registering, packages[1:])
                unserved += send(client, gaps_s, lambda: not ours.is_alive())  # noqa: B023
                phases[phase] = time.monotonic_ns()
        sent = client.status()["workers"][0]["sent"]
        noted = noted.rename(place / "noted")  # before the end of the cluster frees everything
        clusters.close()
        with open(recording, "rb") as file:
            steps = list(decode(file)[1])
        told = "unknown: the card's" if card.is_gpu else outside(steps, noted)
    found = times_of(steps)
    rows = [
        row(phase, [times for times in found if begin <= times[0] < end])
        for (phase, end), begin in zip(phases.items(), [0, *phases.values()])
    ]
    rows += [ratio(later, earlier) for earlier, later in itertools.combinations(rows, 2)]
    return rows, {
        "card": f"{card.name}, driver {table.version}",
        "a call that stalls, ms": "the card's"
        if card.is_gpu
        else int(os.environ["CLOCKWORK_FAKE_STALL"]) / 1e6,
        "rate, requests/s": rate,
        "arrivals": arrivals,
        "models registered": models - len(ours.failed),
        "why not": str(ours.failed[0]) if ours.failed else "",
        "registering one, s": {
            f"p{mark}": round(float(np.percentile(ours.took_s, mark)), 3) for mark in (50, 99, 100)
        },
        "requests that were not served": unserved,
        "RESERVEs": sent.get("reserve", 0),
        "calls that stall, outside of RESERVEs": told,
        "SLO, ms": SLO_S * SECOND / 1e6,
    }


@report.in_a_sentence()
def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="seconds of requests without registrations"
    )
    parser.add_argument(
        "--arrivals", choices=("even", "poisson"), default="even", help="times between requests"
    )
    parser.add_argument("--shared", action="store_true", help="all models are fine-tunes of one model")
    asked = parser.parse_args()
    if asked.quick:
        rows, facts = measure(4, 50.0, 2.0, asked.arrivals, asked.shared)
    else:
        rows, facts = measure(asked.models, asked.rate, asked.seconds, asked.arrivals, asked.shared)
    report.show("requests beside registrations", SEED, rows, facts, asked.json)


if __name__ == "__main__":
    main()
