"""A small discrete-event world around a scheduler: action queues, emulated devices, links, virtual time.

The devices are those of an emulated worker, and check their orders: pages, residency ids, windows. All
randomness comes from the seed, so that a seed determines the trace.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Callable, Sequence
from typing import Any

from clockwork.config.device import STALE_EVENTS_MAX
from clockwork.device._emulated import Machine
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    DeviceLost,
    LinkMeasured,
    ModelFault,
    ModelGone,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    Request,
    RequestCancelled,
    SendInfer,
    SendLoad,
    SendProfile,
    SendReserve,
    SendRevoke,
    SendUnload,
    Tick,
    TimeWanted,
    Wake,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.messages import NEVER_NS, Infer, Load, Profile, Reserve, Status, Unload
from tests.native._tested import ActionQueue
from tests.native.queue_events import Due, Ended, Received, Reject, Revoked, RevokeStarted, Start
from tests.unit import stories
from tests.unit.stories import MS, SHAPE

US, SECOND = 1_000, 1_000_000_000
PAGE_BYTES = 1 << 20


def spec(
    model_id: int,
    exec_ms: float = 5.0,
    batch_max: int = 1,
    row_ms: float | None = None,
    runs: tuple[int, ...] = (1,),
    load_ms: float = 5.0,
    program: str = "",
    shape: Any = SHAPE,
) -> ModelSpec:
    """A model for a world: a batch of 2 is measured as well, and each row takes exec_ms unless row_ms says
    otherwise."""
    step = exec_ms if row_ms is None else row_ms
    return stories.spec(model_id, exec_ms, batch_max, step, runs, load_ms, program, shape, batches=(2,))


class SimulatedDevice:
    """An action queue and the native emulated device behind it, which checks every order."""

    def __init__(
        self, world: World, worker: SimulatedWorker, index: int, pages: int, run_ahead: int, speed: float
    ) -> None:
        self.world, self.worker, self.index = world, worker, index
        self.pages, self.run_ahead, self.speed = pages, run_ahead, speed
        self.queue = ActionQueue(run_ahead)
        self.runs: Any = None  # the action that the execute lane runs
        self.busy_ns = 0
        self.batches: list[int] = []
        self.wake_at = self.machine_wake_at = NEVER_NS
        self.gone = False  # the device is lost: it answers every order with an error
        self.wanted: tuple[int, int, tuple[int, ...]] | None = (
            None  # the worker's need of the device: model, ns, runs
        )
        self.lent: set[int] = set()  # pages that came with the last RESERVE

    @functools.cached_property
    def machine(self) -> Machine:
        """The native device, made with its first order: until then a test may set how the world's devices
        fail."""
        world = self.world
        return Machine(
            1, self.pages, self.run_ahead, STALE_EVENTS_MAX, unload_ns=20 * US, speed=1 / self.speed,
            exec_noise=world.noise, load_noise=world.noise, exec_outlier=world.outlier, load_outlier=world.outlier,
            load_refusals=world.load_failures, exec_failures=world.infer_failures, seed=world.random.getrandbits(63),
        )  # fmt: skip

    @property
    def resident(self) -> dict[int, tuple[int, tuple[int, ...]]]:
        """The resident models: the load and the first page of each run."""
        found = ((model_id, self.machine.residency(0, model_id)) for model_id in self.world.specs)
        return {model_id: one for model_id, one in found if one is not None}

    def feed(self, event: Any) -> None:
        if self.gone:
            if isinstance(event, Received):
                self.worker.result(event.action.action_id, Status.DEVICE_ERROR, "gone", 0, 0)
            return
        for command in self.queue.step(event):
            if isinstance(command, Start):
                self.start(command.action)
            elif isinstance(command, Reject):
                self.worker.result(command.action.action_id, command.status, command.text, 0, 0)
            elif isinstance(command, RevokeStarted):
                self.machine.revoke(0, self.world.now, command.action_id)
                self.collect()
        self.queue.check_invariants()
        wake = self.queue.next_wake_ns
        if wake < NEVER_NS and wake != self.wake_at:
            self.wake_at = wake
            self.world.at(max(wake, self.world.now), self.due, wake)

    def due(self, wake: int) -> None:
        if self.wake_at == wake and not self.worker.dead and not self.gone:
            self.wake_at = NEVER_NS
            self.feed(Due(self.world.now))

    def want(self, model_id: int, expected_ns: int, runs: tuple[int, ...]) -> None:
        """The worker needs the device's time; 0 ns: no more time, and no pages."""
        if not self.worker.dead and not self.gone:
            self.wanted = (model_id, expected_ns, runs)
            if expected_ns == 0:
                self.lent = set()
            self.worker.tell(TimeWanted, self.worker.worker_id, self.index, model_id, expected_ns, runs)

    def reserve(self, action: Reserve) -> None:
        """The worker's use of the reserved device ends, earlier or later than announced, or the worker no
        longer wants it."""
        random, self.lent = self.world.random, set()
        is_wanted = self.wanted is not None and self.wanted[:2] == (action.model_id, action.expected_ns)
        takes_ns = (
            round(action.expected_ns * random.uniform(0.1, 3)) if is_wanted and action.expected_ns else 0
        )
        if is_wanted:
            assert self.wanted is not None
            self.lent = pages_of(self.wanted[2], action.run_starts)
            self.check_lent()
        status = random.choice([Status.OK] * 6 + [Status.OVERRUN]) if is_wanted else Status.ACTION_CANCELLED
        self.world.counts["reserve"] += 1
        self.world.at(self.world.now + takes_ns, self.end_reserve, action, self.world.now, status)

    def end_reserve(self, action: Reserve, began: int, status: Status) -> None:
        if self.worker.dead or self.gone:
            return
        self.check_lent()
        self.worker.result(action.action_id, status, "", began if status is Status.OK else 0, self.world.now)
        self.feed(Ended(self.world.now, action.action_id))

    def check_lent(self) -> None:
        """Check that the pages of a RESERVE belong to no model."""
        for model_id, (_, starts) in self.resident.items():
            taken = pages_of(self.world.specs[model_id].runs, starts)
            assert not taken & self.lent, f"pages {taken & self.lent} of model {model_id} are lent"

    def start(self, action: Any) -> None:
        if isinstance(action, Reserve):
            self.reserve(action)
            return
        runs = self.world.specs[action.model_id].runs if isinstance(action, Load) else ()
        self.machine.start(0, self.world.now, action, action, self.world.profiled_ns(action), 0, runs)
        self.collect()

    def advance(self) -> None:
        self.machine_wake_at = NEVER_NS
        if not self.worker.dead and not self.gone:
            self.machine.advance(self.world.now)
            self.collect()

    def collect(self) -> None:
        """Report the actions that have ended, and schedule the next call for the next end."""
        for _, action, status, text, begin, end, _ in self.machine.take():
            if end == 0:
                harmless = status in (Status.TOO_LATE, Status.ACTION_CANCELLED, Status.NOT_RESIDENT)
                assert harmless or text.startswith("a failure, as"), f"{action}: {text}"
            elif isinstance(action, Infer | Profile):
                self.busy_ns += end - begin
                if status is Status.OK:
                    status, text = self.world.outcome(self, action)
                if isinstance(action, Infer):
                    self.batches.append(len(action.parts))
            self.worker.result(action.action_id, status, text, begin, end)
            self.feed(Ended(self.world.now, action.action_id))
        runs, self.runs = self.runs, self.machine.running(0)[0]
        if self.runs is not None and self.runs is not runs:
            self.world.began(self, self.runs)
        next_ns = self.machine.next_ns
        if next_ns < self.machine_wake_at:
            self.machine_wake_at = next_ns
            self.world.at(next_ns, self.advance)


def pages_of(runs: Sequence[int], starts: Sequence[int]) -> set[int]:
    assert len(runs) == len(starts)
    return {start + page for length, start in zip(runs, starts) for page in range(length)}


class SimulatedWorker:
    def __init__(
        self,
        world: World,
        worker_id: int,
        devices: list[tuple[str, int, float]],
        there: int,
        back: int,
        jitter: int,
    ) -> None:
        self.world, self.worker_id = world, worker_id
        self.kinds = [kind for kind, _, _ in devices]
        self.there, self.back, self.jitter = there, back, jitter
        self.dead = False
        self.devices = [
            SimulatedDevice(world, self, i, pages, 2, speed) for i, (_, pages, speed) in enumerate(devices)
        ]
        self.arrives = [0, 0]  # a link delivers in order

    def delay(self, way: int) -> int:
        base = self.back if way else self.there
        at = self.world.now + base + self.world.random.randrange(self.jitter + 1)
        self.arrives[way] = max(at, self.arrives[way])
        return self.arrives[way]

    def send(self, function: Callable[..., None], *args: Any) -> None:
        self.world.at(self.delay(0), self.deliver, function, *args)

    def deliver(self, function: Callable[..., None], *args: Any) -> None:
        if not self.dead:
            function(*args)

    def result(self, action_id: int, status: Status, text: str, begin: int, end: int) -> None:
        self.world.at(self.delay(1), self.report, action_id, status, text, begin, end)

    def tell(self, kind: Callable[..., Any], *fields: Any) -> None:
        """An event for the scheduler, on its arrival."""
        self.world.at(self.delay(1), self.deliver, lambda: self.world.step(kind(self.world.now, *fields)))

    def lose(self, index: int) -> None:
        """A device is lost; the controller hears of it before anything else."""
        self.devices[index].gone = True
        self.world.at(self.delay(1), self.report_lost, index)

    def report_lost(self, index: int) -> None:
        if not self.dead:
            self.world.step(DeviceLost(self.world.now, self.worker_id, index))

    def report(self, action_id: int, status: Status, text: str, begin: int, end: int) -> None:
        if not self.dead:
            self.world.step(
                ActionDone(self.world.now, self.worker_id, action_id, status, text, begin, end, end - begin)
            )

    def receive(self, device: int, action: Any) -> None:
        self.devices[device].feed(Received(self.world.now, action))

    def revoke(self, action_id: int) -> None:
        for device in self.devices:
            device.feed(Revoked(self.world.now, action_id))


class World:
    """Drives a scheduler. Statistics are kept per request."""

    def __init__(
        self, seed: int = 0, noise: float = 0.0, outlier: float = 0.0, check: bool = True, policy: str = "edf"
    ) -> None:
        self.random = random.Random(seed)
        self.noise, self.outlier, self.check_always = noise, outlier, check
        self.scheduler = make_scheduler(policy)
        self.now = 0
        self.queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.sequence = 0
        self.workers: dict[int, SimulatedWorker] = {}
        self.specs: dict[int, ModelSpec] = {}
        self.requests: dict[int, Request] = {}
        self.answers: dict[int, AnswerOk | AnswerFailed] = {}
        self.answered_at: dict[int, int] = {}
        self.sent: dict[int, int] = {}  # number of times that each request was sent
        self.gone: list[int] = []
        self.faults: list[ModelFault] = []
        self.poison: dict[int, None] = {}
        self.load_failures = 0.0
        self.infer_failures = 0.0
        self.parts: dict[int, tuple[int, ...]] = {}  # requests of each action
        self.counts = {"load": 0, "unload": 0, "infer": 0, "profile": 0, "reserve": 0, "revoke": 0}
        self.on_answer: Callable[[int], None] | None = None
        self.wake_at = NEVER_NS
        self.next_request = 0
        self.trace: list[Any] = []

    # ----- time ----------------------------------------------------------------------------------

    def at(self, time: int, function: Callable[..., None], *args: Any) -> None:
        self.sequence += 1
        heapq.heappush(self.queue, (time, self.sequence, function, args))

    def run(self, until: int = NEVER_NS, events_max: int = 10_000_000) -> None:
        while self.queue and self.queue[0][0] <= until:
            time, _, function, args = heapq.heappop(self.queue)
            assert time >= self.now
            self.now = time
            function(*args)
            events_max -= 1
            assert events_max, "the world does not come to rest"
        if until < NEVER_NS:
            self.now = max(self.now, until)

    # ----- what the world does -------------------------------------------------------------------

    def step(self, event: Any) -> list[Any]:
        commands = self.scheduler.step(event)
        self.trace.append((event, tuple(commands)))
        for command in commands:
            if isinstance(command, AnswerFailed) and command.reason == "displaced":
                assert isinstance(event, Arrived), "displaced by nobody"
                assert self.requests[command.request_id].priority > event.request.priority, (
                    "displaced by an equal"
                )
            self.execute(command)
        if self.check_always:
            self.scheduler.check_invariants()
        return commands

    def execute(self, command: Any) -> None:
        if isinstance(command, Wake):
            self.wake_at = command.at_ns
            self.at(max(command.at_ns, self.now), self.tick, command.at_ns)
        elif isinstance(command, AnswerOk | AnswerFailed):
            self.answer(command)
        elif isinstance(command, ModelFault):
            self.faults.append(command)
        elif isinstance(command, ModelGone):
            self.gone.append(command.model_id)
            for worker in self.workers.values():
                for device in worker.devices:
                    is_gone = worker.dead or device.gone
                    assert is_gone or command.model_id not in device.resident, "gone, but still resident"
        elif isinstance(command, SendRevoke):
            self.counts["revoke"] += 1
            worker = self.workers[command.worker]
            worker.send(worker.revoke, command.action_id)
        else:
            self.send(command)

    def send(self, command: Any) -> None:
        worker = self.workers[command.worker]
        head = (command.action_id, command.device, command.model_id, command.load_id)
        window = (command.earliest_ns, command.latest_ns, command.expected_ns)
        assert command.earliest_ns >= self.now
        assert command.latest_ns >= command.earliest_ns
        action: Any
        if isinstance(command, SendLoad):
            self.counts["load"] += 1
            action = Load(*head, list(command.run_starts), *window)
        elif isinstance(command, SendUnload):
            self.counts["unload"] += 1
            action = Unload(*head, *window)
        elif isinstance(command, SendReserve):
            action = Reserve(*head, list(command.run_starts), *window)
        elif isinstance(command, SendInfer):
            self.counts["infer"] += 1
            assert command.requests
            for request_id in command.requests:
                assert request_id not in self.answers, "an answered request is sent"
                self.sent[request_id] = self.sent.get(request_id, 0) + 1
            self.parts[command.action_id] = command.requests
            action = Infer(*head, *window, [[[1, [request_id], 0]] for request_id in command.requests])
        else:
            assert isinstance(command, SendProfile)
            self.counts["profile"] += 1
            action = Profile(*head, *window, [[command.rows, *dims] for dims in command.shape])
        worker.send(worker.receive, command.device, action)

    def answer(self, answer: AnswerOk | AnswerFailed) -> None:
        assert answer.request_id not in self.answers, f"request {answer.request_id} is answered twice"
        request = self.requests[answer.request_id]
        self.answers[answer.request_id] = answer
        self.answered_at[answer.request_id] = self.now
        if isinstance(answer, AnswerOk):
            assert self.now <= request.deadline_ns, "a late success"
            assert self.parts[answer.action_id][answer.part] == answer.request_id, "another's output"
        else:
            assert self.now <= max(request.deadline_ns, request.arrived_ns), "answered after its deadline"
        if self.on_answer is not None:
            self.on_answer(answer.request_id)

    def tick(self, at: int) -> None:
        if self.wake_at == at:
            self.step(Tick(self.now))

    def profiled_ns(self, action: Any) -> int:
        """Return the duration of an action without noise."""
        if isinstance(action, Unload):
            return 0
        spec = self.specs[action.model_id]
        if isinstance(action, Load):
            return spec.load_ns
        if isinstance(action, Profile):
            return self.true_ns(spec, 1, tuple(tuple(one[1:]) for one in action.shapes))
        rows = sum(self.requests[part[0][1][0]].rows for part in action.parts) if spec.batches else 1
        return self.true_ns(spec, rows, self.requests[action.parts[0][0][1][0]].shape)

    def true_ns(self, spec: ModelSpec, batch: int, shape: Any) -> int:
        first = spec.profile[0].exec_ns
        last = spec.profile[-1]
        row = (last.exec_ns - first) // (last.batch - 1) if last.batch > 1 else first
        return (first + row * (batch - 1)) * max(shape[0][-1] // 8, 1) if shape else first

    def began(self, device: SimulatedDevice, action: Any) -> None:
        """An execution has begun; for worlds in which that has consequences."""

    def outcome(self, device: SimulatedDevice, action: Any) -> tuple[Status, str]:
        """Return the status of an execution that the device itself does not fail."""
        if isinstance(action, Infer) and any(part[0][1][0] in self.poison for part in action.parts):
            return Status.EXECUTION_FAILED, "poison"
        return Status.OK, ""

    # ----- what a test does ----------------------------------------------------------------------

    def join(
        self, worker_id: int = 1, devices: list[tuple[str, int, float]] | None = None,
        there: int = 100 * US, back: int = 100 * US, jitter: int = 0,
    ) -> SimulatedWorker:  # fmt: skip
        devices = devices or [("cpu", 8, 1.0)]
        worker = self.workers[worker_id] = SimulatedWorker(self, worker_id, devices, there, back, jitter)
        self.step(
            WorkerJoined(
                self.now, worker_id, tuple((kind, PAGE_BYTES, pages, 2) for kind, pages, _ in devices)
            )
        )
        self.step(LinkMeasured(self.now, worker_id, there + jitter, back + jitter))
        return worker

    def leave(self, worker_id: int) -> None:
        self.workers[worker_id].dead = True
        self.step(WorkerLeft(self.now, worker_id))

    def drain(self, worker_id: int) -> None:
        self.step(WorkerDraining(self.now, worker_id))

    def ready(self, *specs: ModelSpec, workers: list[int] | None = None) -> None:
        for one in specs:
            self.specs[one.model_id] = one
            for worker_id in workers or [w for w, worker in self.workers.items() if not worker.dead]:
                self.step(ModelReady(self.now, worker_id, one))

    def remove(self, model_id: int) -> None:
        self.step(ModelRemoved(self.now, model_id))

    def request(
        self, model_id: int, slo_ms: float = 100.0, priority: int = 4, rows: int = 1, shape: Any = SHAPE
    ) -> int:
        """A request arrives now. slo_ms 0: no deadline. Return its id."""
        self.next_request += 1
        deadline = self.now + round(slo_ms * MS) if slo_ms else NEVER_NS
        request = Request(self.next_request, model_id, rows, shape, 1000, self.now, deadline, priority)
        self.requests[request.id] = request
        self.step(Arrived(self.now, request))
        return request.id

    def cancel(self, request_id: int) -> None:
        self.step(RequestCancelled(self.now, request_id))

    def poisson(self, rate: float, until: int, make: Callable[[], None]) -> None:
        """Call make() at Poisson times, open loop."""
        time = self.now
        while True:
            time += int(self.random.expovariate(rate) * SECOND)
            if time >= until:
                return
            self.at(time, make)

    # ----- what a test looks at ------------------------------------------------------------------

    def ok(self, request_id: int) -> bool:
        return isinstance(self.answers.get(request_id), AnswerOk)

    def status(self, request_id: int) -> Status:
        answer = self.answers[request_id]
        return Status.OK if isinstance(answer, AnswerOk) else answer.status

    def latency_ns(self, request_id: int) -> int:
        return self.answered_at[request_id] - self.requests[request_id].arrived_ns

    def tally(self) -> dict[str, int]:
        """Return the number of requests by outcome: ok, refused, or the status's name."""
        result: dict[str, int] = {}
        for request_id in self.requests:
            name = self.status(request_id).name.lower() if request_id in self.answers else "unanswered"
            result[name] = result.get(name, 0) + 1
        return result

    def settle(self) -> None:
        """Run until no event is left, then compare the scheduler's records with the devices'."""
        self.run()
        self.scheduler.check_invariants()
        unanswered = [one for one in self.requests if one not in self.answers]
        assert not unanswered, f"never answered: {unanswered[:10]}"
        for row in self.scheduler.snapshot()["devices"]:
            device = self.workers[row["worker"]].devices[row["device"]]
            ours = {m: (one["load_id"], tuple(one["run_starts"])) for m, one in row["resident"].items()}
            assert ours == device.resident, "the scheduler's picture of the device is wrong"
            assert row["in_flight"] == row["loading"] == row["planned_batches"] == 0
            used = sum(sum(self.specs[model_id].runs) for model_id in device.resident)
            assert row["pages_free"] == device.pages - used - len(device.lent), "pages are lost"
