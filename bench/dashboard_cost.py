"""Processor time for each request that a dashboard costs the controller that it shows.

    python -m bench.dashboard_cost [--quick] [--rate 20000] [--devices 100] [--triples 40] [--seed 1]
        [--nice 0] [--no-pin] [--json] [--publish]

A controller serves emulated devices at a steady rate. bench/pump.cpp has the devices and the client,
which is an open loop (a Poisson process). `clockwork dashboard` follows the controller, for a page in a
headless Chromium where there is one. Time is cut into short segments in groups of three, in random order: in
one segment the page is visible; in the two others it is hidden, and the dashboard reads nothing. So every
comparison is of neighbouring segments of one controller. Compared is the processor time of all its threads
for each answered request (/proc/PID/task/*/schedstat) with the page against the mean of the two segments
without, and, as a control, of these two against each other. Shown are medians over all groups, and 95 %
intervals of the median by bootstrap.

That difference is about as large as the noise of a busy machine. So it is measured once more with --readers
concurrent readers that request as much as a dashboard requests at most, and decode nothing. The cost of a
dashboard is the difference divided by the number of times that its permitted bytes were read.

The controller has a core of its own, and everything else has the other cores (--no-pin: all cores for all).
The browser runs at the lowest priority. --nice is the niceness of the controller and of both ends; values
below 0 need root.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import published, report
from bench.cluster import Cluster, cpu_s, thread_cpu_s
from bench.pump import PumpClient, PumpWorker, library
from clockwork.cli.common import describe_cluster
from clockwork.client.blocking import Client
from clockwork.config.dashboard import DASHBOARD_DESCRIBE_NS, DASHBOARD_LOOK_BYTES, DASHBOARD_LOOK_S
from clockwork.config.recorder import READ_BYTES
from clockwork.formats.profiles import linear
from clockwork.launch.profiles import register_profiles
from clockwork.system.clock import MS

SHOWN, HIDDEN, HIDDEN_AGAIN = "shown", "hidden", "hidden again"
BOOTSTRAPS = 10_000
IN_FLIGHT_MAX = 8192
READY_S = 60.0


@dataclasses.dataclass(slots=True)
class Settings:
    """Settings of a run. seconds: the length of a segment, of which the first settle_s are not counted."""

    rate: float = 20_000.0
    devices: int = 100
    models: int = 200
    base_ns: int = 2 * MS  # time of a batch, about ResNet50's on a V100
    row_ns: int = MS // 2  # time of each request of a batch
    burst: int = 1
    seconds: float = 1.3
    settle_s: float = 0.3
    triples: int = 40
    readers: int = 16
    seed: int = 1
    nice: int = 0
    is_pinned: bool = True
    has_browser: bool = True


SINGLE, BATCHED = "one by one", "in batches"


def cases(settings: Settings) -> dict[str, Settings]:
    """The cases, by name: a dashboard's relative cost depends on the cost of a request.

    Devices serve requests as they come, one or two at a time, or slower devices get twenty at a time and form
    batches.
    """
    batched = dataclasses.replace(settings, base_ns=20 * MS, row_ns=MS, burst=20)
    return {SINGLE: settings, BATCHED: batched}


@dataclasses.dataclass(slots=True)
class Segment:
    """The requests and the controller's processor time of one segment."""

    requests: int
    seconds: float
    spent_s: float  # processor time of the controller

    @property
    def us(self) -> float:
        return self.spent_s / max(1, self.requests) * 1e6


# ----- the cluster -----------------------------------------------------------------------------


class Load:
    """A controller under a steady load. Use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self.cluster = Cluster(0)
        self.pid = 0

    def __enter__(self) -> Load:
        settings = self._settings
        profiles = [
            linear(f"m{index}", settings.row_ns, settings.base_ns, 32, weights_bytes=16 << 20, load_ns=2 * MS,
                   input_bytes=0, output_bytes=4, program="p")
            for index in range(settings.models)
        ]  # fmt: skip
        library()
        self._stack = contextlib.ExitStack()
        with _nice(settings.nice), contextlib.ExitStack() as stack:
            stack.enter_context(self.cluster)
            self.pid = self.cluster.controller.pid
            worker = PumpWorker(
                self.cluster.worker_endpoint, settings.devices, profiles, settings.base_ns, settings.row_ns
            )
            stack.callback(worker.close)
            self.pump = PumpClient(
                self.cluster.endpoint, [profile.name for profile in profiles], 0, IN_FLIGHT_MAX,
                settings.rate, settings.burst, settings.seed,
            )  # fmt: skip
            stack.callback(self.pump.close)
            self._run(stack, functools.partial(worker.run, self._stop))
            self.client = stack.enter_context(self.cluster.client())
            register_profiles(self.client, profiles)
            if settings.is_pinned:
                _give_first_core(self.pid)
            self._run(stack, self._send)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._stack.close()

    def measure(self, seconds: float) -> Segment:
        before, spent, began = self.pump.counts.answered, thread_cpu_s(self.pid), time.monotonic()
        self._stop.wait(seconds)
        after, now = thread_cpu_s(self.pid), time.monotonic()
        return Segment(
            int(self.pump.counts.answered) - int(before), now - began, sum(after.values()) - sum(spent.values())
        )  # fmt: skip

    def _send(self) -> None:
        while not self._stop.is_set():
            self.pump.run(0.1)

    def _run(self, stack: contextlib.ExitStack, work: Callable[[], None]) -> None:
        """Call a function in a thread until the end."""
        thread = threading.Thread(target=work)
        thread.start()
        stack.callback(thread.join)
        stack.callback(self._stop.set)


@contextmanager
def _nice(niceness: int) -> Iterator[None]:
    """Within the block, this thread and the threads and processes that it starts have that niceness."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


CORES = sorted(os.sched_getaffinity(0))


def _give_first_core(pid: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), CORES[:1])


@contextmanager
def _other_cores(is_pinned: bool) -> Iterator[None]:
    """Within the block, new threads and processes leave the first core free, if there are others."""
    if is_pinned:
        os.sched_setaffinity(0, CORES[1:] or CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


# ----- who looks -------------------------------------------------------------------------------


class Watched:
    """A real dashboard, and a page of it, visible or hidden, in a real browser. Use as a context manager."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._error: BaseException | None = None
        self.states: list[
            dict[str, Any]
        ] = []  # the page's state at the end of each segment in which it was visible
        self.spent_s = 0.0  # processor time of the dashboard's process, once it has ended

    def __enter__(self) -> Watched:
        self.dashboard = subprocess.Popen(
            [sys.executable, "-m", "clockwork", "dashboard", "--endpoint", self._endpoint, "--port", "0"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.dashboard.stdout is not None
        self._url = self.dashboard.stdout.readline().split()[4]
        self._thread = threading.Thread(target=self._browse)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self.__exit__()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.spent_s = cpu_s(self.dashboard.pid)
        if self._error is None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self.dashboard.terminate()
        self.dashboard.wait()

    def look(self, is_looking: bool) -> None:
        """Make the page visible or hidden."""
        asyncio.run_coroutine_threadsafe(self._look(is_looking), self._loop).result(READY_S)

    def _browse(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # inherited by the browser's processes
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._stay())

    async def _stay(self) -> None:
        # imported here, because it needs the packages of the dashboard, which may not be installed
        from tools.browser import browser

        self._ended = asyncio.Event()
        try:
            async with browser() as self.tab:
                await self.tab.open(self._url, 1280, 900)
                await self.tab.until(
                    "document.body?.dataset.ready && document.body.dataset.state === 'live'", READY_S
                )
                self._ready.set()
                await self._ended.wait()
        except BaseException as error:
            self._error = error
            self._ready.set()

    async def _look(self, is_looking: bool) -> None:
        if not is_looking:
            told = "Bokeh.documents[0].get_model_by_name('state').data.json[0]"
            self.states.append(json.loads(await self.tab.run(told)))
        await self.tab.run(
            f"Object.defineProperty(document, 'hidden', {{ value: {json.dumps(not is_looking)}, configurable: true }});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )


class Readers:
    """`count` readers that request from a controller what a dashboard requests, as often, in a thread.

    Use as a context manager.
    """

    def __init__(self, client: Client, count: int) -> None:
        self._client = client
        self._count = count
        self._looking, self._ended = threading.Event(), threading.Event()
        self.bytes, self.looked_s = 0, 0.0  # bytes read, and the seconds in which they were read
        self._since_s = 0.0

    def __enter__(self) -> Readers:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._looking.set()
        self._thread.join()

    def look(self, is_looking: bool) -> None:
        if self._looking.is_set():
            self.looked_s += time.monotonic() - self._since_s
        self._since_s = time.monotonic()
        (self._looking.set if is_looking else self._looking.clear)()

    def _run(self) -> None:
        end = described_s = due_s = 0.0
        while not self._ended.is_set():
            if not self._looking.is_set():
                self._looking.wait()
                due_s = time.monotonic()
                described_s = due_s + DASHBOARD_DESCRIBE_NS / 1e9 / self._count
            place, until = max(0, int(end) - DASHBOARD_LOOK_BYTES), int(end)
            while True:
                answer = self._client.recorder(f"#{place}")
                self.bytes += len(answer["bytes"])
                place, end = answer["next"], answer["end"]
                if place >= until or len(answer["bytes"]) < READ_BYTES:
                    break
            if time.monotonic() >= described_s:
                describe_cluster(self._client)
                described_s += DASHBOARD_DESCRIBE_NS / 1e9 / self._count
            due_s += DASHBOARD_LOOK_S / self._count
            self._ended.wait(max(0.0, due_s - time.monotonic()))


# ----- comparisons -----------------------------------------------------------------------------


def compare(load: Load, who: Watched | Readers, settings: Settings) -> list[dict[str, Segment]]:
    """Groups of three segments, by name."""
    found = []
    order = random.Random(settings.seed)
    for _ in range(settings.triples):
        names = [SHOWN, HIDDEN, HIDDEN_AGAIN]
        order.shuffle(names)
        triple = {}
        for name in names:
            who.look(name == SHOWN)
            load.measure(settings.settle_s)
            triple[name] = load.measure(settings.seconds - settings.settle_s)
        found.append(triple)
    who.look(False)
    return found


def interval(ratios: Sequence[float], seed: int) -> tuple[float, float, float]:
    """The median and the ends of its 95 % interval, in per cent above 1."""
    drawn = np.random.default_rng(seed).choice(np.array(ratios), (BOOTSTRAPS, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    found = (statistics.median(ratios), low, high)
    return tuple(100 * (float(value) - 1) for value in found)  # type: ignore[return-value]


def summary(name: str, triples: Sequence[dict[str, Segment]], count: float, seed: int) -> dict[str, Any]:
    """A row: the cost of one of `count` readers."""
    with_ = [triple[SHOWN].us * 2 / (triple[HIDDEN].us + triple[HIDDEN_AGAIN].us) for triple in triples]
    control = [triple[HIDDEN].us / triple[HIDDEN_AGAIN].us for triple in triples]
    cost, low, high = (value / count for value in interval(with_, seed))
    same, same_low, same_high = (value / count for value in interval(control, seed))
    segments = [segment for triple in triples for segment in triple.values()]
    return {
        "who": name,
        "requests/s": sum(segment.requests for segment in segments)
        / sum(segment.seconds for segment in segments),
        "us/request": statistics.median(triple[HIDDEN].us for triple in triples),
        "cost_%": cost,
        "from_%": low,
        "to_%": high,
        "control_%": same,
        "control from_%": same_low,
        "control to_%": same_high,
        "threes": len(triples),
    }


def measure(name: str, settings: Settings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of one case, with a controller of its own."""
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    with _other_cores(settings.is_pinned), Load(settings) as load:
        load.measure(4 * settings.settle_s)  # this load brings the models onto the devices
        if settings.has_browser:
            watched = Watched(load.cluster.endpoint)
            began_s = time.monotonic()
            with watched:
                triples = compare(load, watched, settings)
            rows.append(summary("a dashboard and a browser", triples, 1, settings.seed))
            facts |= {
                "of the time shown": statistics.median(state["share"] for state in watched.states),
                "behind, s, at most": max(state["behind"] for state in watched.states),
                "page's states": sorted({state["state"] for state in watched.states}),
                "dashboard's processor time, of a core": watched.spent_s / (time.monotonic() - began_s),
            }
        with load.cluster.client() as client, Readers(client, settings.readers) as readers:
            triples = compare(load, readers, settings)
        count = readers.bytes / readers.looked_s / (DASHBOARD_LOOK_BYTES / DASHBOARD_LOOK_S)
        rows.append(summary("a reader of as much", triples, count, settings.seed))
        facts["readers at once"] = count
        sent = load.client.status()["workers"][0]["sent"]["infer"]
        facts["mean batch"] = int(load.pump.counts.answered) / max(1, sent)
        facts["not answered in time"] = int(load.pump.counts.failed)
    return [{"case": name, **row} for row in rows], {
        f"{name}: {what}": value for what, value in facts.items()
    }


def main() -> None:
    from tools.browser import program

    parser = report.command_line(__doc__)
    report.publishing(parser)
    default = Settings()
    parser.add_argument("--rate", type=float, default=default.rate, help="requests a second")
    parser.add_argument("--devices", type=int, default=default.devices)
    parser.add_argument(
        "--triples",
        type=int,
        default=0,
        help=f"groups of three segments for each row (default {default.triples}; 1 with --quick)",
    )
    parser.add_argument("--readers", type=int, default=default.readers)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--nice", type=int, default=0, help="niceness of controller, devices and client; below 0 needs root"
    )
    parser.add_argument("--no-pin", action="store_true", help="every process may use every core")
    options = parser.parse_args()
    settings = dataclasses.replace(
        default, rate=options.rate, devices=options.devices, triples=options.triples or (1 if options.quick else default.triples),
        readers=options.readers, seed=options.seed, nice=options.nice, is_pinned=not options.no_pin,
        has_browser=program() is not None,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {
        "devices, models, requests/s asked for": f"{settings.devices}, {settings.models}, {settings.rate:g}",
        "segments, s": f"{settings.seconds - settings.settle_s:g}, after {settings.settle_s:g}",
        "controller": "on a core of its own" if settings.is_pinned and len(CORES) > 1 else "on any core",
        "niceness": settings.nice,
    }
    if not settings.has_browser:
        facts["browser"] = "none is on the path"
    for name, its_settings in cases(settings).items():
        its_rows, its_facts = measure(name, its_settings)
        rows += its_rows
        facts |= its_facts
    if options.publish:
        published.save("dashboard-cost", {"rows": rows, "facts": facts}, settings.seed)
    report.show("What a dashboard costs its controller", settings.seed, rows, facts, options.json)


if __name__ == "__main__":
    main()
