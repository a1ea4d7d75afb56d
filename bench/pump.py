"""Load for a controller from ends that cost little: bench/pump.cpp, compiled when it is first used.

In Python a client and a worker of this rate cost more than the controller between them. Each end runs in a
process or thread of its own; the calls release the GIL.

    python -m bench.pump [--quick] [--sizes 0,48000,602112] [--in-flight 64,512,4096] [--repeat 10]
        [--policy NAME] [--recorder 0,64MiB,telemetry] [--perf] [--json]

The program measures the processor time of the controller's process, all its threads, for each request.
Wall-clock rates mean little where the ends share the controller's cores; processor time does not have this
problem. Each repetition has a controller of its own. Shown are the medians, and beside them the worst rate
and the worst share of good answers, because a scheduler can get stuck in some runs only. Each row is measured
with every size of the flight recorder that --recorder names, in turn: 0 is none; telemetry is the default
with requests and actions written to files. The other rows also show by how much more a request costs than
with the first size, as the median over pairs of runs. --perf samples the controller, and shows the share of
its processor time in the flight recorder's functions, which a busy machine disturbs less than a comparison of
two runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from bench.cluster import Cluster, thread_cpu_s
from bench.native import compiled
from bench.report import command_line, show
from clockwork import __version__
from clockwork.config import POLICY
from clockwork.device.emulated import fingerprint
from clockwork.formats.profile_package import prepared_from_profile
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.launch.profiles import register_profiles
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec
from clockwork.wire.messages import (
    PROTOCOL_VERSION,
    TO_CLIENT,
    TO_WORKER,
    ClientHello,
    ClientWelcome,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Status,
    WorkerHello,
)
from clockwork.wire.transport import socket_functions

HEADER_BYTES_MAX = 4 << 20  # bytes of messages to this worker
KEPT_BYTES_MAX = 1 << 20  # bytes of headers that a ScheduledClient keeps in one call
SLICE_NS = 100 * MS
"""Longest call of a worker, after which it checks whether it should end."""

Int64s = npt.NDArray[np.int64]


class Counts(ctypes.Structure):
    """The outcomes that a client saw."""

    _fields_ = [("sent", ctypes.c_uint64), ("answered", ctypes.c_uint64), ("failed", ctypes.c_uint64)]


@cache
def library() -> Any:
    """The compiled pump."""
    pump = compiled("bench/pump.cpp")
    pump.pump_functions(ctypes.c_void_p(socket_functions().address))
    pump.pump_worker.restype = ctypes.c_size_t
    pump.pump_lanes.restype = ctypes.c_void_p
    return pump


class Arrivals(ctypes.Structure):
    """Times at which requests are due; see PumpArrivals in bench/pump.cpp."""

    _fields_ = [("mean_ns", ctypes.c_int64), ("burst", ctypes.c_uint64), ("random", ctypes.c_uint64),
                ("next_ns", ctypes.c_int64), ("due", ctypes.c_uint64)]  # fmt: skip


class Schedule(ctypes.Structure):
    """Requests at given times, and how each ended; see PumpSchedule in bench/pump.cpp."""

    _fields_ = [("due_ns", ctypes.c_void_p), ("model", ctypes.c_void_p), ("sent_ns", ctypes.c_void_p),
                ("ended_ns", ctypes.c_void_p), ("count", ctypes.c_uint64), ("sent", ctypes.c_uint64),
                ("ended", ctypes.c_uint64), ("kept", ctypes.c_void_p), ("kept_bytes", ctypes.c_uint64),
                ("kept_max", ctypes.c_uint64)]  # fmt: skip


class End:
    """A DEALER socket of a client or a worker."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(endpoint)
        self.address = ctypes.c_void_p(int(self.socket.underlying))

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()


def _greet(socket: zmq.Socket[bytes], endpoint: str) -> None:
    socket.send(codec.encode(ClientHello(PROTOCOL_VERSION, __version__, "pump")))
    if type(codec.decode(socket.recv(), TO_CLIENT)) is not ClientWelcome:
        raise ConnectionError(f"{endpoint} does not greet back")


class PumpClient(End):
    """Sends requests for some models: at a rate, with at most in_flight under way, or else always
    in_flight.
    """

    def __init__(
        self, endpoint: str, names: Sequence[str], input_bytes: int, in_flight: int, rate: float = 0.0, burst: int = 1,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """burst: requests due at once; times between bursts are exponential, drawn with the seed."""
        super().__init__(endpoint)
        _greet(self.socket, endpoint)
        self._names = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
        self._input_bytes = input_bytes
        self.in_flight = in_flight
        self.counts = Counts()
        self.arrivals = Arrivals(round(burst * SECOND / rate) if rate else 0, burst, seed, 0, 0)

    def run(self, seconds: float, slo_ns: int = 2 * SECOND) -> int:
        """Run for a time. Returns the number of successful answers."""
        before = self.counts.answered
        library().pump_client(
            self.address, self._names, len(self._names), ctypes.c_size_t(self._input_bytes), self.in_flight,
            ctypes.c_int64(slo_ns), ctypes.c_int64(now_ns() + int(seconds * SECOND)), ctypes.byref(self.counts),
            ctypes.byref(self.arrivals),
        )  # fmt: skip
        return int(self.counts.answered) - int(before)


class ScheduledClient(End):
    """Sends requests at given times, whatever became of those before, and notes when each ended."""

    def __init__(
        self, endpoint: str, names: Sequence[str], due_ns: Int64s, model: npt.NDArray[np.int32], slo_ns: int
    ) -> None:
        """due_ns: ascending times on the monotonic clock. model: index of each request's name."""
        super().__init__(endpoint)
        _greet(self.socket, endpoint)
        self._names = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
        self._slo_ns = slo_ns
        self.due_ns = np.ascontiguousarray(due_ns, np.int64)
        self.model = np.ascontiguousarray(model, np.int32)
        self.sent_ns, self.ended_ns = np.zeros_like(self.due_ns), np.zeros_like(self.due_ns)
        self._kept = ctypes.create_string_buffer(KEPT_BYTES_MAX)
        self.schedule = Schedule(
            self.due_ns.ctypes.data, self.model.ctypes.data, self.sent_ns.ctypes.data, self.ended_ns.ctypes.data,
            len(self.due_ns), 0, 0, ctypes.addressof(self._kept), 0, KEPT_BYTES_MAX,
        )  # fmt: skip

    @property
    def is_over(self) -> bool:
        return int(self.schedule.ended) >= int(self.schedule.count)

    def run(self, until_ns: int) -> list[bytes]:
        """Run until a time, or until every request has ended. Returns the headers of failures and of answers
        that came later than the SLO."""
        found = []
        while not self.is_over and now_ns() < until_ns:
            library().pump_schedule(
                self.address, self._names, ctypes.c_int64(self._slo_ns), ctypes.c_int64(until_ns),
                ctypes.byref(self.schedule),
            )  # fmt: skip
            kept = self._kept.raw[: self.schedule.kept_bytes]
            place = 0
            while place < len(kept):
                size = int.from_bytes(kept[place : place + 4], sys.byteorder)
                found.append(kept[place + 4 : place + 4 + size])
                place += 4 + size
            self.schedule.kept_bytes = 0
        return found


class PumpWorker(End):
    """A worker of some devices, on each of which a batch of n rows takes base_ns + n * row_ns."""

    def __init__(
        self, endpoint: str, devices: int, profiles: Sequence[ModelProfile], base_ns: int, row_ns: int
    ) -> None:
        super().__init__(endpoint)
        self._base_ns, self._row_ns = base_ns, row_ns
        self._profiles = {profile.name: profile for profile in profiles}
        self._page_bytes = 16 << 20
        device = {"kind": "emulated", "name": "pump", "fingerprint": fingerprint(self._page_bytes),
                  "page_bytes": self._page_bytes, "page_count": 1024, "run_ahead": 2}  # fmt: skip
        hello = WorkerHello(PROTOCOL_VERSION, __version__, "pump", os.getpid(), [device] * devices)
        self.socket.send(codec.encode(hello))
        self._header = ctypes.create_string_buffer(HEADER_BYTES_MAX)
        self._lanes = ctypes.c_void_p(library().pump_lanes(devices))

    def close(self) -> None:
        """Free the lanes. Call it when run() has returned."""
        super().close()
        library().pump_end_lanes(self._lanes)

    def run(self, stop: threading.Event) -> None:
        """Answer everything until `stop` is set."""
        while not stop.is_set():
            until_ns = now_ns() + SLICE_NS
            size = library().pump_worker(
                self.address, self._lanes, ctypes.c_int64(self._base_ns), ctypes.c_int64(self._row_ns),
                ctypes.c_size_t(4), ctypes.c_int64(until_ns), self._header, ctypes.c_size_t(HEADER_BYTES_MAX),
            )  # fmt: skip
            if size:
                self._take(codec.decode(self._header.raw[:size], TO_WORKER))

    def _take(self, message: Any) -> None:
        if type(message) is Ping:
            now = now_ns()
            self.socket.send(codec.encode(Pong(message.sent_ns, now, now)))
        elif type(message) is Prepare:
            profile = self._profiles[message.name]
            print_ = fingerprint(self._page_bytes)
            prepared = prepared_from_profile(profile, message.digest, print_, self._page_bytes, {})
            self.socket.send(codec.encode(Prepared(message.model_id, Status.OK, "", prepared.summary())))


class Sampling:
    """Samples of a process by perf while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._symbols: list[tuple[float, str]] = []

    def __enter__(self) -> Sampling:
        self._file = tempfile.NamedTemporaryFile(suffix=".perf")
        command = [
            "perf",
            "record",
            "-q",
            "-e",
            "cpu-clock",
            "-F",
            "5000",
            "-o",
            self._file.name,
            "-p",
            str(self._pid),
        ]
        self._perf = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._perf.send_signal(signal.SIGINT)
        self._perf.wait()
        command = ["perf", "report", "-i", self._file.name, "--no-children", "--sort", "symbol"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = re.findall(r"^ *([0-9.]+)% +\[.\] (\S+)", found, re.MULTILINE)
        self._symbols = [(float(percent), symbol) for percent, symbol in rows]
        self._file.close()

    def percent(self, pattern: str) -> float:
        """The share of samples in functions whose names match, in per cent."""
        return sum(percent for percent, symbol in self._symbols if re.search(pattern, symbol))


RECORDER_SYMBOLS = r"Recorder::|Ring::|RecordedScheduler::record"

TELEMETRY = "telemetry"
"""Stands for a recorder of the default size, and every request and action written to files."""


@dataclasses.dataclass(slots=True)
class Settings:
    seconds: float = 5.0
    warm_up_s: float = 1.0
    sizes: tuple[int, ...] = (0, 48_000, 602_112)
    devices: int = 20
    models: int = 20
    in_flight: tuple[int, ...] = (64, 512, 4096)
    window_bytes: int = 256 << 20  # bytes of inputs that may be under way
    base_ns: int = 500_000  # execution time of a batch
    row_ns: int = 20_000  # execution time of each request of a batch
    repeat: int = 10  # number of controllers, one after the other; the rows take turns
    policy: str = ""
    perf: bool = False
    recorders: tuple[str, ...] = ("",)  # sizes of the flight recorder, or TELEMETRY; "": the default
    python: str = ""  # interpreter of a checkout whose controller is measured; "": this one


def cpu_of(pid: int) -> dict[str, float]:
    spent = thread_cpu_s(pid)
    io_s = sum(value for name, value in spent.items() if name.startswith("ZMQbg"))
    return {"all": sum(spent.values()), "io": io_s}


def measure(settings: Settings, size: int, in_flight: int, recorder: str = "") -> dict[str, Any]:
    """A row: a controller of its own, a client, and a worker of many devices."""
    profiles = [
        linear(f"m{index}", settings.row_ns, settings.base_ns, 32, weights_bytes=16 << 20, load_ns=2 * MS,
               input_bytes=size, output_bytes=4, program="p")
        for index in range(settings.models)
    ]  # fmt: skip
    library()
    more = ("--policy", settings.policy) if settings.policy else ()
    folder = tempfile.TemporaryDirectory()
    if recorder == TELEMETRY:
        more += ("--telemetry", folder.name)
    elif recorder:
        more += ("--recorder-bytes", recorder)
    cluster = Cluster(0, controller_arguments=more, directory=settings.python or None)
    with folder, cluster:
        worker = PumpWorker(
            cluster.worker_endpoint, settings.devices, profiles, settings.base_ns, settings.row_ns
        )
        depth = max(1, min(in_flight, settings.window_bytes // max(1, size)))
        pump = PumpClient(cluster.endpoint, [profile.name for profile in profiles], size, depth)
        stop = threading.Event()
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        try:
            with cluster.client() as client:
                register_profiles(client, profiles)
                pump.run(settings.warm_up_s)
                sent = client.status()["workers"][0]["sent"].get("infer", 0)
                before, begun_ns, failed = cpu_of(cluster.controller.pid), now_ns(), pump.counts.failed
                sampling = Sampling(cluster.controller.pid)
                with sampling if settings.perf else contextlib.nullcontext():
                    answered = pump.run(settings.seconds)
                after, wall_s = cpu_of(cluster.controller.pid), (now_ns() - begun_ns) / SECOND
                actions = client.status()["workers"][0]["sent"]["infer"] - sent
                failed = pump.counts.failed - failed
        finally:
            stop.set()
            thread.join()
            pump.close()
            worker.close()
    cpu_s = after["all"] - before["all"]
    ended = max(1, answered + failed)
    return {
        "input_bytes": size,
        "recorder": recorder or "default",
        "in flight": pump.in_flight,
        "requests/s": answered / wall_s,
        "requests/cpu-s": answered / cpu_s,
        "us/request": cpu_s / max(1, answered) * 1e6,
        **({"recorder_% (perf)": sampling.percent(RECORDER_SYMBOLS)} if settings.perf else {}),
        "I/O thread_%": 100 * (after["io"] - before["io"]) / cpu_s,
        "Mbyte/s": answered * size / wall_s / 1e6,
        "Mbyte/cpu-s": answered * size / cpu_s / 1e6,
        "mean batch": answered / max(1, actions),
        "good_%": 100 * answered / ended,
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row for several runs of a case: medians, and the worst."""
    row = {
        name: value if isinstance(value, str) else statistics.median(run[name] for run in runs)
        for name, value in runs[0].items()
    }
    row["worst requests/s"] = min(run["requests/s"] for run in runs)
    row["worst good_%"] = min(run["good_%"] for run in runs)
    return row


def main() -> None:
    """The program."""
    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--sizes", type=numbers, default=Settings().sizes)
    parser.add_argument("--in-flight", type=numbers, default=Settings().in_flight)
    parser.add_argument("--devices", type=int, default=Settings().devices)
    parser.add_argument(
        "--repeat",
        type=int,
        default=0,
        help=f"runs of each row (default {Settings().repeat}; 1 with --quick)",
    )
    parser.add_argument("--policy", default="")
    parser.add_argument("--perf", action="store_true", help="sample the controller with Linux's perf")
    parser.add_argument(
        "--recorder", default="", help="sizes of the flight recorder, such as 0,64MiB,telemetry"
    )
    parser.add_argument("--python", default="", help="another checkout, whose controller is measured instead")
    options = parser.parse_args()
    settings = Settings(
        seconds=options.seconds or (0.5 if options.quick else Settings().seconds),
        warm_up_s=0.2 if options.quick else Settings().warm_up_s,
        sizes=options.sizes, in_flight=options.in_flight[:1] if options.quick else options.in_flight, devices=options.devices,
        repeat=options.repeat or (1 if options.quick else Settings().repeat), policy=options.policy, python=options.python,
        perf=options.perf, recorders=tuple(options.recorder.split(",")),
    )  # fmt: skip
    cases = [
        (size, depth, recorder)
        for size in settings.sizes
        for depth in settings.in_flight
        for recorder in settings.recorders
    ]
    runs: list[list[dict[str, Any]]] = [[] for _ in cases]
    for _ in range(settings.repeat):
        for place, case in enumerate(cases):
            runs[place].append(measure(settings, *case))
    rows = [summary(run) for run in runs]
    for place in range(len(rows)):
        first = runs[place - place % len(settings.recorders)]
        ratios = [
            own["us/request"] / other["us/request"] for own, other in zip(runs[place], first, strict=True)
        ]
        rows[place]["recorder_%"] = 100 * (statistics.median(ratios) - 1)
    facts = {
        "devices, models": f"{settings.devices}, {settings.models}",
        "runs": settings.repeat,
        "policy": settings.policy or POLICY,
    }
    show("Requests through the controller, both ends native", 0, rows, facts, options.json)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
