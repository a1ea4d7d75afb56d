"""A small discrete-event world around a scheduler: action queues, fake devices, links, virtual time.

The devices check what they are told as strictly as a real one would: pages, residency ids, windows.
Everything random comes from the seed, so that a seed is a trace.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from clockwork.actions import ActionQueue, Due, Ended, Received, Reject, Revoked, RevokeStarted, Start
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
    ProfilePoint,
    Request,
    RequestCancelled,
    SendInfer,
    SendLoad,
    SendProfile,
    SendRevoke,
    SendUnload,
    Tick,
    Wake,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.messages import NEVER_NS, Infer, Load, Profile, Status, Unload

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
PAGE_BYTES = 1 << 20
SHAPE = ((3, 8, 8),)


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
    """A model whose batch of b takes exec_ms + row_ms * (b - 1)."""
    step = exec_ms if row_ms is None else row_ms
    points = sorted({1, 2, batch_max} & set(range(1, batch_max + 1)))
    profile = [ProfilePoint(shape, b, round((exec_ms + step * (b - 1)) * MS)) for b in points]
    return ModelSpec(
        model_id, f"m{model_id}", 1, program or f"p{model_id}", batch_max > 1, batch_max, 0, runs, round(load_ms * MS), profile
    )  # fmt: skip


class FakeDevice:
    """Two FIFO lanes over a page table that believes nothing."""

    def __init__(
        self, world: World, worker: FakeWorker, index: int, pages: int, run_ahead: int, speed: float
    ) -> None:
        self.world, self.worker, self.index, self.speed = world, worker, index, speed
        self.pages = pages
        self.run_ahead = run_ahead
        self.queue = ActionQueue(run_ahead)
        self.owner: dict[int, tuple[int, int]] = {}  # page -> (model, load_id)
        self.resident: dict[int, tuple[int, tuple[int, ...]]] = {}  # model -> load_id, starts
        self.lanes: dict[str, list[Any]] = {"load": [], "execute": []}
        self.running: dict[str, Any] = {"load": None, "execute": None}
        self.busy_ns = 0
        self.batches: list[int] = []
        self.wake_at = NEVER_NS
        self.gone = False  # it answers whatever it is told with an error

    def feed(self, event: Any) -> None:
        if self.gone:
            if isinstance(event, Received):
                self.worker.result(event.action.action_id, Status.DEVICE_ERROR, "gone", 0, 0, 0)
            return
        for command in self.queue.step(event):
            if isinstance(command, Start):
                lane = "load" if isinstance(command.action, Load | Unload) else "execute"
                self.lanes[lane].append(command.action)
                assert len(self.lanes[lane]) + (self.running[lane] is not None) <= self.run_ahead
                self.advance(lane)
            elif isinstance(command, Reject):
                self.worker.result(command.action.action_id, command.status, command.text, 0, 0, 0)
            elif isinstance(command, RevokeStarted):
                for lane, actions in self.lanes.items():
                    for action in actions:
                        if action.action_id == command.action_id:
                            actions.remove(action)
                            self.finish(lane, action, Status.ACTION_CANCELLED, "revoked", 0, 0)
                            break
        self.queue.check_invariants()
        wake = self.queue.next_wake_ns
        if wake < NEVER_NS and wake != self.wake_at:
            self.wake_at = wake
            self.world.at(max(wake, self.world.now), self.due, wake)

    def due(self, wake: int) -> None:
        if self.wake_at == wake and not self.worker.dead and not self.gone:
            self.wake_at = NEVER_NS
            self.feed(Due(self.world.now))

    def advance(self, lane: str) -> None:
        now = self.world.now
        if self.running[lane] is not None or not self.lanes[lane] or self.worker.dead or self.gone:
            return
        action = self.lanes[lane][0]
        if action.earliest_ns > now:
            self.world.at(action.earliest_ns, self.advance, lane)
            return
        del self.lanes[lane][0]
        if action.latest_ns < now:
            self.finish(lane, action, Status.TOO_LATE, "", 0, 0)
            return
        status, text = self.check(action)
        if status is not Status.OK:
            self.finish(lane, action, status, text, now, now)
            return
        duration = self.world.duration_ns(self, action)
        self.running[lane] = action
        self.world.at(now + duration, self.end, lane, action, now)

    def check(self, action: Any) -> tuple[Status, str]:
        if isinstance(action, Load):
            runs = self.world.specs[action.model_id].runs
            wanted = [
                p
                for start, size in zip(action.run_starts, runs, strict=True)
                for p in range(start, start + size)
            ]
            assert len(set(wanted)) == len(wanted), "a LOAD names a page twice"
            for page in wanted:
                assert 0 <= page < self.pages, "a LOAD outside the arena"
                assert page not in self.owner, f"a LOAD onto page {page} of model {self.owner[page]}"
            assert action.model_id not in self.resident, "a second LOAD of a model"
            for page in wanted:
                self.owner[page] = (action.model_id, action.load_id)
            if self.world.fail_load(action):
                for page in wanted:
                    del self.owner[page]
                return Status.DEVICE_ERROR, "load failed"
            return Status.OK, ""
        held = self.resident.get(action.model_id)
        if held is None or held[0] != action.load_id:
            return Status.NOT_RESIDENT, "not resident"
        if isinstance(action, Unload):
            running = self.running["execute"]
            queued = [*self.lanes["execute"], *([running] if running else [])]
            assert all(one.model_id != action.model_id for one in queued), "an UNLOAD of a model in use"
        return Status.OK, ""

    def end(self, lane: str, action: Any, begin: int) -> None:
        if self.worker.dead or self.gone:
            return
        now = self.world.now
        self.running[lane] = None
        status, text = Status.OK, ""
        if isinstance(action, Load):
            self.resident[action.model_id] = (action.load_id, tuple(action.run_starts))
        elif isinstance(action, Unload):
            load_id, _ = self.resident.pop(action.model_id)
            self.owner = {page: who for page, who in self.owner.items() if who != (action.model_id, load_id)}
        else:
            self.busy_ns += now - begin
            status, text = self.world.outcome(self, action)
            if isinstance(action, Infer):
                self.batches.append(len(action.parts))
        self.finish(lane, action, status, text, begin, now)

    def finish(self, lane: str, action: Any, status: Status, text: str, begin: int, end: int) -> None:
        self.worker.result(action.action_id, status, text, begin, end, end - begin)
        self.feed(Ended(self.world.now, action.action_id))
        self.advance(lane)


class FakeWorker:
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
            FakeDevice(world, self, i, pages, 2, speed) for i, (_, pages, speed) in enumerate(devices)
        ]
        self.arrives = [0, 0]  # a link keeps order

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

    def result(self, action_id: int, status: Status, text: str, begin: int, end: int, duration: int) -> None:
        self.world.at(self.delay(1), self.report, action_id, status, text, begin, end, duration)

    def lose(self, index: int) -> None:
        """A device goes; the controller hears of it before anything else."""
        self.devices[index].gone = True
        self.world.at(self.delay(1), self.report_lost, index)

    def report_lost(self, index: int) -> None:
        if not self.dead:
            self.world.step(DeviceLost(self.world.now, self.worker_id, index))

    def report(self, action_id: int, status: Status, text: str, begin: int, end: int, duration: int) -> None:
        if not self.dead:
            self.world.step(
                ActionDone(self.world.now, self.worker_id, action_id, status, text, begin, end, duration)
            )

    def receive(self, device: int, action: Any) -> None:
        self.devices[device].feed(Received(self.world.now, action))

    def revoke(self, action_id: int) -> None:
        for device in self.devices:
            device.feed(Revoked(self.world.now, action_id))


class World:
    """Drives one scheduler. Statistics are kept per request."""

    def __init__(
        self, seed: int = 0, noise: float = 0.0, outlier: float = 0.0, check: bool = True, policy: str = "edf"
    ) -> None:
        self.random = random.Random(seed)
        self.noise, self.outlier, self.check_always = noise, outlier, check
        self.scheduler = make_scheduler(policy)
        self.now = 0
        self.queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.sequence = 0
        self.workers: dict[int, FakeWorker] = {}
        self.specs: dict[int, ModelSpec] = {}
        self.requests: dict[int, Request] = {}
        self.answers: dict[int, AnswerOk | AnswerFailed] = {}
        self.answered_at: dict[int, int] = {}
        self.sent: dict[int, int] = {}  # request -> times it was sent
        self.gone: list[int] = []
        self.faults: list[ModelFault] = []
        self.poison: dict[int, None] = {}
        self.load_failures = 0.0
        self.infer_failures = 0.0
        self.parts: dict[int, tuple[int, ...]] = {}  # action -> requests
        self.counts = {"load": 0, "unload": 0, "infer": 0, "profile": 0, "revoke": 0}
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

    def duration_ns(self, device: FakeDevice, action: Any) -> int:
        if isinstance(action, Unload):
            return 20 * US
        spec = self.specs[action.model_id]
        if isinstance(action, Load):
            exact = spec.load_ns
        elif isinstance(action, Profile):
            exact = self.true_ns(spec, 1, tuple(tuple(one[1:]) for one in action.shapes))
        else:
            rows = sum(self.requests[part[0][1][0]].rows for part in action.parts) if spec.batches else 1
            exact = self.true_ns(spec, rows, self.requests[action.parts[0][0][1][0]].shape)
        factor = device.speed * (1 + self.noise * self.random.uniform(-1, 1))
        if self.outlier and self.random.random() < self.outlier:
            factor *= 2
        return max(int(exact * factor), 1)

    def true_ns(self, spec: ModelSpec, batch: int, shape: Any) -> int:
        first = spec.profile[0].exec_ns
        last = spec.profile[-1]
        row = (last.exec_ns - first) // (last.batch - 1) if last.batch > 1 else first
        return (first + row * (batch - 1)) * max(shape[0][-1] // 8, 1) if shape else first

    def outcome(self, device: FakeDevice, action: Any) -> tuple[Status, str]:
        if isinstance(action, Infer):
            if any(part[0][1][0] in self.poison for part in action.parts):
                return Status.EXECUTION_FAILED, "poison"
            if self.infer_failures and self.random.random() < self.infer_failures:
                return Status.DEVICE_ERROR, "injected"
        return Status.OK, ""

    def fail_load(self, action: Load) -> bool:
        return bool(self.load_failures) and self.random.random() < self.load_failures

    # ----- what a test does ----------------------------------------------------------------------

    def join(
        self, worker_id: int = 1, devices: list[tuple[str, int, float]] | None = None,
        there: int = 100 * US, back: int = 100 * US, jitter: int = 0,
    ) -> FakeWorker:  # fmt: skip
        devices = devices or [("cpu", 8, 1.0)]
        worker = self.workers[worker_id] = FakeWorker(self, worker_id, devices, there, back, jitter)
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
        """Arrive now. slo_ms 0: no deadline. Returns the request's id."""
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
        """Requests by outcome: ok, refused, or the status's name."""
        result: dict[str, int] = {}
        for request_id in self.requests:
            name = self.status(request_id).name.lower() if request_id in self.answers else "unanswered"
            result[name] = result.get(name, 0) + 1
        return result

    def settle(self) -> None:
        """Run until nothing is left to happen, then compare both sides' pictures."""
        self.run()
        self.scheduler.check_invariants()
        unanswered = [one for one in self.requests if one not in self.answers]
        assert not unanswered, f"never answered: {unanswered[:10]}"
        for row in self.scheduler.snapshot()["devices"]:
            device = self.workers[row["worker"]].devices[row["device"]]
            ours = {m: (one["load_id"], tuple(one["run_starts"])) for m, one in row["resident"].items()}
            assert ours == device.resident, "the scheduler's picture of the device is wrong"
            assert row["in_flight"] == row["loading"] == row["planned_batches"] == 0
