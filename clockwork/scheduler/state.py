"""The records that a scheduler keeps: requests on their way, batches, residencies, devices, models.

They hold state and the arithmetic of a device's timeline; what to do with it is the policy's.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque

from clockwork.messages import NEVER_NS
from clockwork.scheduler.estimates import Curve, Estimates, LoadEstimates, ProgramEstimates, with_margin
from clockwork.scheduler.pages import PageAllocator
from clockwork.scheduler.types import ModelSpec, Request, ShapeKey

LINK_DEFAULT_NS = 200_000
"""The delay each way that is assumed of a link until it has been measured."""


class Pending:
    """A request that has been admitted and not been answered."""

    __slots__ = (
        "alone", "answered", "attempts", "batch", "deadline_ns", "flight", "load_ns", "model", "part",
        "request", "size", "text",
    )  # fmt: skip

    def __init__(self, request: Request, model: Model) -> None:
        self.request = request
        self.model = model
        self.deadline_ns = request.deadline_ns
        self.size = request.rows if model.batches else 1  # what it adds to a batch
        self.batch: Batch | None = None  # where it is planned
        self.flight: Flight | None = None  # in what it was sent
        self.part = 0  # its place in the flight
        self.answered = False
        self.attempts = 0
        self.alone = False  # a batch that it was in failed: it shares no other
        self.load_ns = 0  # the load that it waited for
        self.text = ""  # what went wrong with the last attempt


class Batch:
    """Requests of one model and shape that are planned to run together on one device."""

    __slots__ = ("curve", "duration_ns", "key_ns", "limit_ns", "pendings", "residency", "shape", "size")

    def __init__(self, residency: Residency, shape: ShapeKey, curve: Curve | None, key_ns: int) -> None:
        self.residency = residency
        self.shape = shape
        self.curve = curve  # None: the shape was never measured, duration_ns is a bound
        self.key_ns = key_ns  # its place in the plan
        self.limit_ns = NEVER_NS  # by when it must have finished on the device
        self.duration_ns = 0  # with margin
        self.size = 0  # rows
        self.pendings: list[Pending] = []


class ResidencyState(enum.IntEnum):
    PENDING = 0  # decided, not sent: the lane is full, or pages have to become free
    LOADING = 1
    RESIDENT = 2


class Residency:
    """One model on one device, from the decision to load it until its UNLOAD is sent."""

    __slots__ = (
        "action_id", "attempts", "batches", "clear_ns", "device", "doomed", "flying", "key_ns", "load_id", "model",
        "ready_ns", "spec", "starts", "state", "used_ns", "victims",
    )  # fmt: skip

    def __init__(self, model: Model, device: Device, spec: KindSpec, key_ns: int) -> None:
        self.model = model
        self.device = device
        self.spec = spec
        self.state = ResidencyState.PENDING
        self.key_ns = key_ns  # pending loads start in this order
        self.ready_ns = 0  # predicted: an INFER may start from then on; 0 once it is resident
        self.load_id = 0
        self.action_id = 0  # of the LOAD under way
        self.attempts = 0
        self.starts: tuple[int, ...] = ()
        self.batches: list[Batch] = []  # planned here, in the order of planning
        self.flying = 0  # actions of the execute lane that use it
        self.doomed = False  # a pending load waits for its pages: nothing new is planned on it
        self.victims: list[Residency] = []  # doomed for this one
        self.used_ns = 0  # when it was last sent work, or became resident
        self.clear_ns = 0  # predicted: they are idle from then on


class Flight:
    """An action that was sent and has not been answered."""

    __slots__ = (
        "action_id",
        "batch",
        "device",
        "duration_ns",
        "expected_ns",
        "kind",
        "residency",
        "revoked",
        "sent_ns",
    )

    def __init__(
        self, action_id: int, kind: str, device: Device, residency: Residency, batch: Batch | None,
        expected_ns: int, duration_ns: int, sent_ns: int,
    ) -> None:  # fmt: skip
        self.action_id = action_id
        self.kind = kind  # "load", "unload", "infer" or "profile"
        self.device = device
        self.residency = residency
        self.batch = batch
        self.expected_ns = expected_ns
        self.duration_ns = duration_ns  # with margin
        self.sent_ns = sent_ns
        self.revoked = False


class KindSpec:
    """A model on one kind of device."""

    __slots__ = ("batch_max", "load_ns", "loads", "page_count", "program", "program_name", "runs")

    def __init__(self, spec: ModelSpec, kind: str, estimates: Estimates) -> None:
        self.program_name = spec.program
        self.program: ProgramEstimates = estimates.program(spec.program, kind)
        self.loads: LoadEstimates = estimates.loads(kind)
        self.batch_max = spec.batch_max if spec.batches else 1
        self.runs = spec.runs
        self.page_count = sum(spec.runs)
        self.load_ns = spec.load_ns

    def load_planned_ns(self, model_id: int) -> int:
        return with_margin(self.loads.load_ns(model_id, self.load_ns, self.page_count))

    def alone_ns(self, shape: ShapeKey, size: int) -> int:
        """A batch of this size with margin, or the bound for a shape never seen; 0 if there is none."""
        curve = self.program.curves.get(shape)
        if curve is not None:
            return curve.planned_ns(size)
        return self.program.bound_ns(shape, size)


class Model:
    __slots__ = (
        "background", "batches", "draining", "live", "model_id", "name", "residencies", "served", "specs", "unloads",
        "workers",
    )  # fmt: skip

    def __init__(self, spec: ModelSpec) -> None:
        self.model_id = spec.model_id
        self.name = spec.name if spec.version <= 1 else f"{spec.name}@{spec.version}"
        self.batches = spec.batches
        self.specs: dict[str, KindSpec] = {}  # by device kind
        self.workers: dict[int, None] = {}  # that have prepared it
        self.residencies: list[Residency] = []
        self.background: deque[Pending] = deque()  # requests without a deadline, not planned yet
        self.live = 0  # requests not answered
        self.served = 0
        self.draining = False
        self.unloads = 0  # UNLOADs under way


class Device:
    """One device: what is on it, what was sent to it, what is planned on it."""

    __slots__ = (
        "aged_ns", "head_end_ns", "idle_since_ns", "index", "keys", "kind", "lane", "lane_end_ns", "loading", "number",
        "page_bytes", "pages", "pending", "plan", "planned_ns", "resident", "run_ahead", "served", "timer_ns", "unready",
        "wake_ns", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, index: int, number: int, kind: str, page_bytes: int, page_count: int, run_ahead: int) -> None:  # fmt: skip
        self.worker = worker
        self.index = index
        self.number = number  # order of joining, breaks ties
        self.kind = f"{kind}/{page_bytes}"  # layouts, and so loads, differ with the page
        self.page_bytes = page_bytes
        self.pages = PageAllocator(page_count)
        self.run_ahead = max(run_ahead, 1)
        self.resident: OrderedDict[int, Residency] = OrderedDict()  # by model, least recently used first
        self.pending: list[Residency] = []  # loads not sent, by key
        self.loading = 0  # LOADs under way
        self.lane: OrderedDict[int, Flight] = OrderedDict()  # the execute lane, oldest first
        self.lane_end_ns = 0  # when the last of it is thought to end
        self.head_end_ns = 0  # when the oldest is
        self.plan: list[Batch] = []
        self.keys: list[int] = []  # of the plan's batches, ascending
        self.planned_ns = 0  # durations of the whole plan
        self.unready = 0  # batches of the plan whose model is not resident yet
        self.wake_ns = NEVER_NS  # when it wants to be looked at again
        self.timer_ns = NEVER_NS  # the timer that is set for that
        self.aged_ns = 0  # a waiting background batch is not promoted before this
        self.idle_since_ns = 0
        self.served = 0

    @property
    def usable(self) -> bool:
        return not self.worker.draining

    def has_room(self, spec: KindSpec) -> bool:
        """Whether its free pages, less what waits to be loaded, are as many as the model takes."""
        waiting = sum(one.spec.page_count for one in self.pending)
        return self.pages.free_count - waiting >= spec.page_count

    def free_ns(self, now: int) -> int:
        """When a newly sent action would start, by what is thought of those before it."""
        worker = self.worker
        soonest = now + worker.there_ns
        if not self.lane:
            return soonest
        end = self.lane_end_ns
        overdue = (
            now - worker.back_ns - self.head_end_ns
        )  # had the head ended before, its result would be here
        if overdue > 0:
            end += overdue
        return end if end > soonest else soonest

    def retime_lane(self, time: int) -> None:
        """Predict the lane anew: its oldest action begins at ``time``, or when it has arrived."""
        there = self.worker.there_ns
        self.head_end_ns = 0
        for flight in self.lane.values():
            arrived = flight.sent_ns + there
            time = (time if time > arrived else arrived) + flight.duration_ns
            if not self.head_end_ns:
                self.head_end_ns = time
        self.lane_end_ns = time

    def finish_ns(self, free: int, count: int) -> int:
        """When the first ``count`` batches of the plan are done, if the device is free from ``free`` on."""
        if count == len(self.plan) and not self.unready:
            return free + self.planned_ns
        time = free
        for batch in self.plan[:count]:
            ready = batch.residency.ready_ns
            time = (time if time > ready else ready) + batch.duration_ns
        return time

    def holds(self, time: int, start: int) -> bool:
        """Whether the plan's batches from ``start`` on keep their limits if the first of them may start at ``time``."""
        plan = self.plan
        for index in range(start, len(plan)):
            batch = plan[index]
            ready = batch.residency.ready_ns
            time = (time if time > ready else ready) + batch.duration_ns
            if time > batch.limit_ns:
                return False
        return True

    def insert(self, index: int, batch: Batch) -> None:
        self.plan.insert(index, batch)
        self.keys.insert(index, batch.key_ns)
        self.planned_ns += batch.duration_ns
        batch.residency.batches.append(batch)
        if batch.residency.state is not ResidencyState.RESIDENT:
            self.unready += 1

    def remove(self, batch: Batch, index: int = -1) -> None:
        if index < 0:
            index = self.plan.index(batch)
        del self.plan[index], self.keys[index]
        self.planned_ns -= batch.duration_ns
        batch.residency.batches.remove(batch)
        if batch.residency.state is not ResidencyState.RESIDENT:
            self.unready -= 1

    def resize(self, batch: Batch, size: int) -> None:
        """Set a planned batch's size, and its duration with it."""
        batch.size = size
        duration = (
            batch.residency.spec.alone_ns(batch.shape, size)
            if batch.curve is None
            else batch.curve.planned_ns(size)
        )
        self.planned_ns += duration - batch.duration_ns
        batch.duration_ns = duration


class Worker:
    __slots__ = ("back_ns", "devices", "draining", "link_free_ns", "there_ns", "worker_id")

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.devices: list[Device] = []
        self.there_ns = LINK_DEFAULT_NS
        self.back_ns = LINK_DEFAULT_NS
        self.link_free_ns = 0  # when the loads that were sent are thought to be done; devices share the link
        self.draining = False


Slot = tuple[int, int, Batch | None]
"""Where a request could go: predicted finish, index in the plan, the batch to join (None: a new one)."""
