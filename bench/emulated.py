"""Processor time that a request costs the controller, and the delay that the controller adds to it.

A real controller, emulated workers and a load client, through real sockets. Every number is of the
controller's process: the processor time of all its threads for each request, with inputs of several sizes;
that time by stage of its loop; and the delay of a request from the client through the controller to a worker,
beside a bare relay at the same rate.

    python -m bench.emulated [--quick] [--json]
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.cluster import Cluster, thread_cpu_s
from bench.relay import Relay
from bench.report import command_line, percentiles, show
from clockwork import __version__
from clockwork.device.base import TensorView
from clockwork.device.emulated import EmulatedGroup, fingerprint
from clockwork.device.emulation import EmulatedSettings
from clockwork.errors import Unavailable
from clockwork.formats.profile_package import prepared_from_profile
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.launch.local import die_with
from clockwork.launch.profiles import register_profiles
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec
from clockwork.wire.messages import (
    NEVER_NS,
    PROTOCOL_VERSION,
    TO_CLIENT,
    TO_WORKER,
    Answer,
    ClientHello,
    ClientWelcome,
    Failure,
    Infer,
    InferRequest,
    Load,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Result,
    Status,
    Unload,
    WorkerHello,
)
from clockwork.wire.transport import ConnectionEvent, Frame, Poller, Transport

UINT8 = 2
SIZES = (0, 48_000, 602_112)
"""Bytes of a request's input: none, and those of the paper's models (a small image, 224 x 224 floats)."""

WINDOW_BYTES = 64 << 20
"""Bytes of inputs that may be under way in the closed loop, which bounds the bytes in sockets."""

TURNS = 4
"""Rounds in which both paths of the delay are measured, one after the other."""

MARKS = (50.0, 99.0, 99.9)


@dataclasses.dataclass(slots=True)
class Settings:
    seconds: float = 8.0
    warm_up_s: float = 1.0
    sizes: tuple[int, ...] = SIZES
    workers: int = 1
    devices: int = 20  # devices of each worker
    models: int = 20
    in_flight: int = 512
    rate: float = 1000.0  # requests/s of the comparison with a relay
    policy: str = ""  # the controller's default
    seed: int = 1


def profiles(models: int, input_bytes: int) -> list[ModelProfile]:
    """Models that gain much from batches, so that the controller is the bottleneck and not the devices."""
    return [
        linear(f"m{index}-{input_bytes}", 20_000, 500_000, 32, weights_bytes=16 << 20, load_ns=2 * MS,
               input_bytes=input_bytes, output_bytes=4, program=f"p{input_bytes}")
        for index in range(models)
    ]  # fmt: skip


def stamped_profile() -> ModelProfile:
    """A model whose input is the time of a request's departure, and whose output its time to the device."""
    return ModelProfile("stamp", {1: 20_000, 32: 20_000}, 1 << 20, MS, input_bytes=8, output_bytes=8)


# ----- a client that costs little -------------------------------------------------------------


class Pipe:
    """A connection on which many messages are under way; single-threaded."""

    def __init__(self, endpoint: str) -> None:
        self._transport = Transport()
        self._dealer = self._transport.dealer(endpoint)
        self._poller = Poller([self._dealer])
        self.send = self._dealer.send
        self.receive = self._dealer.receive
        limit_ns = now_ns() + 10 * SECOND
        while ConnectionEvent.UP not in self._dealer.changes():
            if now_ns() > limit_ns:
                raise Unavailable(f"{endpoint} does not answer")
            self._poller.wait(SECOND // 10)

    def greet(self) -> None:
        """Send a hello to a controller, and wait for its answer."""
        self.send(codec.encode(ClientHello(PROTOCOL_VERSION, __version__, "bench")))
        limit_ns = now_ns() + 10 * SECOND
        while (frames := self.receive()) is None:
            if now_ns() > limit_ns:
                raise Unavailable("the controller does not greet back")
            self._poller.wait(SECOND // 10)
        if type(codec.decode(frames[0], TO_CLIENT)) is not ClientWelcome:
            raise Unavailable("the controller refused the connection")

    def wait(self, timeout_ns: int) -> None:
        self._poller.wait(max(0, timeout_ns))

    def close(self) -> None:
        self._transport.close()


@contextmanager
def pipe(endpoint: str, greets: bool) -> Iterator[Pipe]:
    connection = Pipe(endpoint)
    try:
        if greets:
            connection.greet()
        yield connection
    finally:
        connection.close()


class Requests:
    """A closed loop: a fixed number of requests under way, over all models in turn."""

    def __init__(self, connection: Pipe, names: Sequence[str], size: int, in_flight: int) -> None:
        self._pipe = connection
        self._names = names
        self._size = size
        self._input = bytes(size)
        self._in_flight = max(1, min(in_flight, WINDOW_BYTES // max(1, size)))
        self._sent = self._ended = 0
        self.outcomes: collections.Counter[str] = collections.Counter()

    def run(self, seconds: float) -> int:
        """Run for a time. Returns the number of successful answers; the requests under way stay under way."""
        before = self.outcomes["ok"]
        end_ns = now_ns() + int(seconds * SECOND)
        while (now := now_ns()) < end_ns:
            while self._sent - self._ended < self._in_flight:
                self._send()
            if not self._take():
                self._pipe.wait(min(end_ns - now, SECOND // 10))
        return self.outcomes["ok"] - before

    def finish(self) -> None:
        """Wait until every request has its answer."""
        limit_ns = now_ns() + 10 * SECOND
        while self._ended < self._sent:
            if now_ns() > limit_ns:
                raise TimeoutError(f"{self._sent - self._ended} requests were not answered")
            if not self._take():
                self._pipe.wait(SECOND // 10)

    def _send(self) -> None:
        self._sent += 1
        name = self._names[self._sent % len(self._names)]
        request = InferRequest(self._sent, name, 2 * SECOND, 0, [["input", UINT8, [1, self._size], 0]])
        if not self._pipe.send(codec.encode(request), [self._input]):
            raise Unavailable("the controller does not take the messages sent to it")

    def _take(self) -> bool:
        found = False
        while (frames := self._pipe.receive()) is not None:
            found = True
            self._ended += 1
            message = codec.decode(frames[0], TO_CLIENT)
            if type(message) is Answer:
                self.outcomes["ok"] += 1
            elif type(message) is Failure:
                self.outcomes[Status(message.status).name.lower()] += 1
        return found


# ----- throughput -----------------------------------------------------------------------------


@contextmanager
def cluster_of(settings: Settings, controller: Sequence[str] = ()) -> Iterator[Cluster]:
    worker = (
        "--device",
        "emulated",
        "--devices",
        str(settings.devices),
        "--arena",
        "4GiB",
        "--page-size",
        "16MiB",
    )
    more = ("--policy", settings.policy) if settings.policy else ()
    command = {"controller": controller} if controller else {}
    keywords: dict[str, Any] = {"controller_arguments": more, **command}
    with Cluster(settings.workers, worker, **keywords) as cluster:
        yield cluster


def throughput(cluster: Cluster, settings: Settings, size: int) -> dict[str, Any]:
    """A row: the controller's cost of requests with inputs of this size."""
    names = [profile.name for profile in profiles(settings.models, size)]
    with cluster.client() as client:
        register_profiles(client, profiles(settings.models, size))
        with pipe(cluster.endpoint, True) as connection:
            load = Requests(connection, names, size, settings.in_flight)
            load.run(settings.warm_up_s)
            sent = _sent(client.status())
            before, begun_ns = thread_cpu_s(cluster.controller.pid), now_ns()
            worked_s = sum(_all_cpu_s(worker.pid) for worker in cluster.workers)
            answered = load.run(settings.seconds)
            after, wall_s = thread_cpu_s(cluster.controller.pid), (now_ns() - begun_ns) / SECOND
            worked_s = sum(_all_cpu_s(worker.pid) for worker in cluster.workers) - worked_s
            actions = _sent(client.status()) - sent
            load.finish()
        outcomes = load.outcomes
        for name in names:
            client.unregister(name)
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    cpu_s = sum(spent.values())
    io_s = sum(value for name, value in spent.items() if name.startswith("ZMQbg"))
    return {
        "input_bytes": size,
        "requests": answered,
        "requests/s": answered / wall_s,
        "requests/cpu-s": answered / cpu_s,
        "us/request": cpu_s / max(1, answered) * 1e6,
        "I/O thread_%": 100 * io_s / cpu_s,
        "Mbyte/s": answered * size / wall_s / 1e6,
        "Mbyte/cpu-s": answered * size / cpu_s / 1e6,
        "mean batch": answered / max(1, actions),
        "worker us/action": worked_s / max(1, actions) * 1e6,
        "good_%": 100 * outcomes["ok"] / max(1, outcomes.total()),
    }


def _all_cpu_s(pid: int) -> float:
    return sum(thread_cpu_s(pid).values())


def _sent(status: Any) -> int:
    """INFER actions sent to workers so far."""
    return sum(worker["sent"].get("infer", 0) for worker in status["workers"])


# ----- where the time goes ----------------------------------------------------------------------

STAGES = "the loop's processor time by stage, %"


def timed_controller(arguments: Sequence[str]) -> None:
    """`clockwork controller` that writes the times of its loop's stages since SIGUSR1 to a file."""
    from clockwork.controller.process import Controller
    from clockwork.controller.settings import ControllerSettings

    parser = argparse.ArgumentParser()
    parser.add_argument("findings", type=Path)
    for name in ("listen", "worker-listen", "events", "data", "policy", "parent"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args(arguments)
    die_with(int(options.parent))
    settings = ControllerSettings(
        client_endpoint=options.listen, worker_endpoint=options.worker_listen, events_endpoint=options.events,
        data=Path(options.data),
    )  # fmt: skip
    if options.policy:
        settings.policy = options.policy
    controller = Controller(settings)
    signal.signal(signal.SIGUSR1, lambda *_: controller.time_stages())
    signal.signal(signal.SIGTERM, lambda *_: controller.stop())
    try:
        controller.run()
    finally:
        options.findings.write_text(json.dumps(controller.stages_ns()))
        controller.close()


def where_time_goes(settings: Settings, size: int) -> dict[str, float]:
    """Shares of the main thread's processor time by stage, in a run like those of throughput()."""
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as directory:
        findings = Path(directory) / "findings.json"
        command = ("-m", "bench.emulated", "controller", str(findings))
        with cluster_of(settings, command) as cluster:
            with cluster.client() as client:
                register_profiles(client, profiles(settings.models, size))
            with pipe(cluster.endpoint, True) as connection:
                load = Requests(
                    connection,
                    [profile.name for profile in profiles(settings.models, size)],
                    size,
                    settings.in_flight,
                )
                load.run(settings.warm_up_s)
                cluster.controller.send_signal(signal.SIGUSR1)
                load.run(settings.seconds)
                load.finish()
            cluster.controller.send_signal(signal.SIGTERM)
            cluster.controller.wait(10.0)
        found = json.loads(findings.read_text())
    total = max(1, sum(found.values()))
    return {name: round(100 * spent / total, 1) for name, spent in found.items()}


# ----- how exact the emulated devices are -----------------------------------------------------


def lateness(settings: Settings, spin: bool) -> dict[str, float]:
    """The lateness with which a process that does nothing else notices the ends of actions, in microseconds.

    Every device runs one action after another of 5 to 15 ms, for as many seconds as the settings say.
    """
    page_bytes = 1 << 20
    options = EmulatedSettings(seed=settings.seed, exec_noise=0.3, spin=spin)
    group = EmulatedGroup(settings.devices, page_bytes, page_bytes, settings=options)
    poller = Poller([], [group.fileno()])
    late: list[int] = []
    try:
        with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as directory:
            profile = ModelProfile("m", {1: 10 * MS}, 1, MS)
            prepared_from_profile(profile, "d", group.info.fingerprint, page_bytes, {}).write(Path(directory))
            group.open(1, directory)
        for device in group.devices:
            device.start(Load(0, 0, 1, 1, [0], 0, NEVER_NS, 0))
        end_ns = now_ns() + int(settings.seconds * SECOND)
        number = 0
        while (now := now_ns()) < end_ns:
            poller.wait(end_ns - now)
            for device in group.ended():
                for done in device.poll():
                    if done.action_id:
                        late.append(now_ns() - done.execute[1])
                    number += 1
                    order = Infer(number, 0, 1, 1, 0, NEVER_NS, 0, [])
                    device.start(order, [[TensorView(UINT8, (1, 0), b"")]])
    finally:
        for device in group.devices:
            device.close()
    return percentiles(late, (50.0, 99.0, 100.0))


# ----- the delay ------------------------------------------------------------------------------


def stamping_worker(endpoint: str) -> None:
    """A worker with a device that answers at once with the time that each request took to reach it."""
    page_bytes = 16 << 20
    connection = Pipe(endpoint)
    devices = [{"kind": "emulated", "name": "stamp", "fingerprint": fingerprint(page_bytes), "page_bytes": page_bytes,
                "page_count": 1, "run_ahead": 64}]  # fmt: skip
    connection.send(codec.encode(WorkerHello(PROTOCOL_VERSION, __version__, "stamp", os.getpid(), devices)))
    profile = stamped_profile()
    while True:
        frames = connection.receive()
        if frames is None:
            connection.wait(SECOND)
            continue
        now = now_ns()
        message = codec.decode(frames[0], TO_WORKER)
        if type(message) is Infer:
            _answer_stamped(connection, message, frames, now)
        elif type(message) is Ping:
            connection.send(codec.encode(Pong(message.sent_ns, now, now_ns())))
        elif type(message) is Prepare:
            prepared = prepared_from_profile(profile, message.digest, fingerprint(page_bytes), page_bytes, {})
            connection.send(codec.encode(Prepared(message.model_id, Status.OK, "", prepared.summary())))
        elif isinstance(message, Load | Unload):
            done = Result(message.action_id, Status.OK, "", now, [0] * 3, [now, now, 0], [0] * 3, [])
            connection.send(codec.encode(done))


def _answer_stamped(connection: Pipe, message: Infer, frames: Sequence[Frame], now: int) -> None:
    outputs = []
    for ((_, _, frame),) in message.parts:
        sent_ns = int.from_bytes(bytes(frames[frame + 1]), "little")
        outputs.append((now - sent_ns).to_bytes(8, "little"))
    parts = [[[UINT8, [1, 8], index]] for index in range(len(outputs))]
    end = now_ns()
    phases = ([now, now, 0], [now, end, end - now], [end, end, 0])
    connection.send(codec.encode(Result(message.action_id, Status.OK, "", now, *phases, parts)), outputs)


def one_way(
    connection: Pipe,
    rate: float,
    seconds: float,
    seed: int,
    send: Callable[[int, bytes], tuple[bytes, list[bytes]]],
) -> list[int]:
    """Nanoseconds that each message took, of an open loop of Poisson arrivals.

    send: the header and frames of a message, given its number and its stamp.
    """
    rng = random.Random(seed)
    found: list[int] = []
    begun_ns = now_ns()
    end_ns = begun_ns + int(seconds * SECOND)
    due_ns = begun_ns + int(rng.expovariate(rate) * SECOND)
    sent = ended = 0
    while sent > ended or due_ns < end_ns:
        now = now_ns()
        if due_ns <= now and due_ns < end_ns:
            sent += 1
            connection.send(*send(sent, now.to_bytes(8, "little")))
            due_ns += int(rng.expovariate(rate) * SECOND)
            continue
        frames = connection.receive()
        if frames is not None:
            ended += 1
            if len(frames) > 1:  # a refusal has no frame
                found.append(int.from_bytes(bytes(frames[-1]), "little"))
        elif now > end_ns + 10 * SECOND:
            raise TimeoutError(f"{sent - ended} of {sent} messages did not come back")
        else:
            connection.wait((due_ns if due_ns < end_ns else now + SECOND // 10) - now)
    return found


def delay(settings: Settings) -> dict[str, Any]:
    """The delay from client to worker through the controller, and through a bare relay at the same rate."""

    def request(number: int, stamp: bytes) -> tuple[bytes, list[bytes]]:
        tensors = [["input", UINT8, [1, 8], 0]]
        return codec.encode(InferRequest(number, "stamp", SECOND, 0, tensors)), [stamp]

    more = ("--policy", settings.policy) if settings.policy else ()
    with Cluster(0, controller_arguments=more) as cluster:
        child = subprocess.Popen(
            [sys.executable, "-m", "bench.emulated", "stamp", cluster.worker_endpoint, str(os.getpid())],
            cwd=Path(__file__).parent.parent,
        )
        try:
            with cluster.client() as client:
                client.register("stamp", stamped_profile())
            with (
                Relay("stamp") as relay,
                pipe(cluster.endpoint, True) as connection,
                pipe(relay.endpoint, False) as bare,
            ):
                one_way(bare, settings.rate, settings.warm_up_s, 0, request)
                one_way(connection, settings.rate, settings.warm_up_s, 0, request)
                ours: list[int] = []
                theirs: list[int] = []
                # both take turns, so that other work on the machine affects both alike
                for turn in range(TURNS):
                    seed, seconds = settings.seed + turn, settings.seconds / TURNS
                    # The relay gets the same messages, so that only the process in the middle differs.
                    theirs += one_way(bare, settings.rate, seconds, seed, request)
                    ours += one_way(connection, settings.rate, seconds, seed, request)
        finally:
            child.kill()
            child.wait()
    through, relayed = percentiles(ours, MARKS), percentiles(theirs, MARKS)
    return {
        "rate": settings.rate,
        "messages": [len(ours), len(theirs)],
        "through the controller": through,
        "through a bare relay": relayed,
        "ratio": {mark: round(through[mark] / relayed[mark], 2) for mark in through},
    }


# ----- the command ------------------------------------------------------------------------------


def measure(settings: Settings, profiled: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows by input size, and the facts."""
    with cluster_of(settings) as cluster:
        rows = [throughput(cluster, settings, size) for size in settings.sizes]
        with cluster.client() as client:
            stats = client.status()["workers"][0]["stats"]
            policy = client.status()["policy"]
    facts: dict[str, Any] = {
        "policy": policy,
        "workers, devices each, models": f"{settings.workers}, {settings.devices}, {settings.models}",
        "in the worker above, ends noticed late, us": {
            name: stats[f"late_{name}_ns"] / 1e3
            for name in ("p50", "p99", "max")
            if f"late_{name}_ns" in stats
        },
    }
    if profiled:
        facts[STAGES] = where_time_goes(settings, settings.sizes[0])
    for spin in (False, True):
        facts[f"an end is noticed late by, {'spinning' if spin else 'sleeping'}"] = lateness(settings, spin)
    facts["one way, client to worker"] = delay(settings)
    return rows, facts


def main() -> None:
    """The program."""
    if sys.argv[1:2] == ["controller"]:
        timed_controller(sys.argv[2:])
        return
    if sys.argv[1:2] == ["stamp"]:
        die_with(int(sys.argv[3]))
        stamping_worker(sys.argv[2])
        return
    parser = command_line(__doc__)
    defaults = Settings()
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument(
        "--sizes", type=lambda text: tuple(int(size) for size in text.split(",")), default=SIZES
    )
    for name in ("workers", "devices", "models", "in_flight", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--policy", default="")
    options = parser.parse_args()
    settings = Settings(
        seconds=options.seconds or (1.0 if options.quick else defaults.seconds),
        warm_up_s=0.3 if options.quick else defaults.warm_up_s,
        **{name: getattr(options, name) for name in
           ("sizes", "workers", "devices", "models", "in_flight", "rate", "policy", "seed")},
    )  # fmt: skip
    rows, facts = measure(settings)
    show("Requests through the controller, emulated devices", settings.seed, rows, facts, options.json)


if __name__ == "__main__":
    main()
