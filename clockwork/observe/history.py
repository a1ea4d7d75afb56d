"""The history of a cluster, folded from the steps of its scheduler.

    history = History()
    for step in steps:  # of a recording, or of a live controller
        history.apply(step)

Its fields are plain data to read: ``devices``, ``models``, ``requests``, ``actions``, ``workers``, ``counts``
and ``marks``. A history reads no clock: its time is that of the newest event. Entries that ended more than
``keep_ns`` ago are forgotten at the next mark. Beyond ``requests_max`` or ``actions_max`` the oldest entries
are forgotten at once.

A history may begin in the middle, and steps may be left out (``skip()``). A request or action whose begin was
not seen is entered with its known fields. Times are nanoseconds of the controller's clock; 0 means unknown or
not yet.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from clockwork.config.observe import HISTORY_ACTIONS_MAX, HISTORY_MARK_NS, HISTORY_NS, HISTORY_REQUESTS_MAX
from clockwork.scheduler.recording import Step
from clockwork.scheduler.types import (
    NEVER_NS,
    ORDERS,
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    DeviceClock,
    DeviceLost,
    Fault,
    LinkMeasured,
    ModelFault,
    ModelGone,
    ModelKept,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    SendInfer,
    SendLoad,
    SendProfile,
    SendRevoke,
    SendUnload,
    ShapeKey,
    Status,
    TimeWanted,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    arena_of,
)
from clockwork.wire.messages import ACTIONS, LaneKind

OUTCOMES = ("answered", "refused", "missed", "cancelled", "failed")
"""Outcomes of a request. Answered means in time, which is goodput; a late answer is never a success."""

WAITING, SENT, ENDED, UNKNOWN = "waiting", "sent", "ended", "unknown"
"""States of a request: waiting in the controller, in a batch that was sent, or answered. Unknown: left-out
steps may have ended it."""

LOADING, RESIDENT, UNLOADING = "loading", "resident", "unloading"  # States of a residency

MODEL_NONE = 0  # The model id of a RESERVE, which concerns no model
MODEL_UNKNOWN = -1  # The model id of a request of which only the answer was seen

EXECUTIONS = tuple(kind.name.lower() for kind, action in ACTIONS.items() if action.lane is LaneKind.EXECUTE)
"""Kinds of actions on a device's execute lane. All others are on its load lane."""

_KIND_OF = {command: kind.name.lower() for kind, command in ORDERS.items()}
"""The kind of action that each command orders."""

_OUTCOME_OF = {
    Status.OK: "answered",
    Status.REFUSED: "refused",
    Status.DEADLINE_MISSED: "missed",
    Status.CANCELLED: "cancelled",
}


@dataclasses.dataclass(slots=True)
class HistoryCounts:
    """Counts since the begin of the history. Left-out steps are not counted."""

    arrived: int = 0
    answered: int = 0
    refused: int = 0
    missed: int = 0
    cancelled: int = 0
    failed: int = 0
    waiting: int = 0  # number of requests that wait in the controller now
    executions: int = 0  # number of INFERs that ended well
    executed: int = 0  # number of requests in those executions
    loads: int = 0  # number of LOADs that ended well
    refusals: dict[str, int] = dataclasses.field(default_factory=dict)  # numbers of refusals by reason

    @property
    def ended(self) -> int:
        return self.answered + self.refused + self.missed + self.cancelled + self.failed


@dataclasses.dataclass(slots=True, kw_only=True)
class CountSample(HistoryCounts):
    """The counts at a time. The difference of two samples is what happened between them."""

    at_ns: int


@dataclasses.dataclass(slots=True)
class SeenRequest:
    """A request from its arrival to its answer."""

    id: int
    model_id: int
    state: str  # WAITING, SENT, ENDED or UNKNOWN
    rows: int = 1
    shape: ShapeKey = ()
    priority: int = 0
    arrived_ns: int = 0  # 0: the request arrived before the history
    deadline_ns: int = NEVER_NS
    sent_ns: int = 0  # time at which the newest batch with this request was ordered
    sent_count: int = 0
    action: SeenAction | None = None  # the newest batch with this request
    part: int = 0  # index of the request's part in the batch's result
    answered_ns: int = 0
    status: Status | None = None  # status of the answer
    reason: str = ""  # reason of a refusal
    text: str = ""
    feasible_slo_ns: int = 0  # SLO that would have been feasible, if the request was refused; 0: unknown
    retry_after_ns: int = 0
    queue_ns: int = 0  # time in the queue, as the answer states it
    load_ns: int = 0
    exec_ns: int = 0

    @property
    def slo_ns(self) -> int:
        """Return the time from arrival to deadline. 0: there is no deadline, or the arrival was not seen."""
        return self.deadline_ns - self.arrived_ns if self.arrived_ns and self.deadline_ns < NEVER_NS else 0

    @property
    def latency_ns(self) -> int:
        """Return the time from arrival to answer. 0: arrival or answer was not seen."""
        return self.answered_ns - self.arrived_ns if self.answered_ns and self.arrived_ns else 0

    @property
    def outcome(self) -> str:
        """Return the outcome, which is in OUTCOMES, or "" before the answer."""
        return "" if self.status is None else _OUTCOME_OF.get(self.status, "failed")


@dataclasses.dataclass(slots=True)
class SeenAction:
    """An order to a device, with its result."""

    id: int
    kind: str  # load, unload, infer, profile, fetch or drop
    worker: int
    device: int
    model_id: int
    load_id: int = 0
    requests: tuple[int, ...] = ()  # requests of an INFER, in the order of its parts
    rows: int = 0  # rows of all requests; a request whose arrival was not seen counts as a row
    ordered_ns: int = 0
    earliest_ns: int = 0  # begin of the window in which the action may begin
    latest_ns: int = 0
    expected_ns: int = 0  # predicted duration of the action
    begin_ns: int = 0  # 0: the action did not begin, or has not ended
    end_ns: int = 0
    duration_ns: int = 0  # measured duration of the action
    ready_ns: int = 0  # time at which the order and its inputs had reached the worker
    done_ns: int = 0  # time at which the result was noticed, or the action was lost
    status: Status | None = None  # None: the action has not ended
    text: str = ""
    revoked_ns: int = 0  # time at which the action was revoked

    @property
    def is_execution(self) -> bool:
        return self.kind in EXECUTIONS

    @property
    def is_under_way(self) -> bool:
        return not self.done_ns


@dataclasses.dataclass(slots=True)
class ResidencySpan:
    """A model on a device, from the order to load it until its pages are free again."""

    model_id: int
    load_id: int  # id of the load; negative: unknown
    state: str  # LOADING, RESIDENT or UNLOADING
    run_starts: tuple[int, ...] = ()  # first page of each run; () if the load was not seen
    runs: tuple[int, ...] = ()  # pages of each run; () if the model was not seen
    since_ns: int = 0  # time at which the load was ordered; 0: before the history
    ready_ns: int = 0  # time at which the load ended
    until_ns: int = 0  # time at which the pages became free; 0: the model is there

    @property
    def pages(self) -> int:
        return sum(self.runs)


@dataclasses.dataclass(slots=True)
class SeenDevice:
    """A device. ``executions`` and ``loads`` are its lanes: actions in the order of their orders.

    A device that executes from the arena of another, its ``owner``, has no pages and residencies.
    """

    worker: int
    index: int  # index of the device within the worker
    kind: str = ""
    page_bytes: int = 0
    page_count: int = 0
    run_ahead: int = 1
    owner: SeenDevice | None = None  # the device whose arena it executes from; None: it has its own
    clock_mhz: int = 0  # clock of the device; 0: unknown
    lost_ns: int = 0  # time at which the device, or its worker, was lost
    # pages of loaded and loading models; an order to unload frees its pages for later orders
    pages_used: int = 0
    resident: dict[int, ResidencySpan] = dataclasses.field(default_factory=dict)  # residencies by load_id
    gone: deque[ResidencySpan] = dataclasses.field(default_factory=deque)  # former residencies
    executions: deque[SeenAction] = dataclasses.field(default_factory=deque)
    loads: deque[SeenAction] = dataclasses.field(default_factory=deque)
    executing_ns: int = 0  # sum of the durations of executions that ended
    executed: int = 0  # requests in executions that ended well
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # actions that ended well, by kind

    @property
    def label(self) -> str:
        return f"{self.worker}/{self.index}"

    @property
    def home(self) -> SeenDevice:
        """The device whose arena has the models that this device executes."""
        return self if self.owner is None else self.owner

    def residency_of(self, model_id: int, at_ns: int) -> ResidencySpan | None:
        """Return the residency of a model at a time, whether it was loaded by then or not. None: there was
        none."""
        for residency in [*self.home.resident.values(), *self.home.gone]:
            if (
                residency.model_id == model_id
                and residency.since_ns <= at_ns
                and not 0 < residency.until_ns <= at_ns
            ):
                return residency
        return None


@dataclasses.dataclass(slots=True)
class SeenWorker:
    """A worker and its link. Events do not carry its name: the reader of the history may fill it in."""

    id: int
    name: str = ""
    device_count: int = 0
    joined_ns: int = 0  # 0: the worker joined before the history
    left_ns: int = 0
    draining_ns: int = 0  # time since which the worker is leaving
    there_ns: int = 0  # high percentile of the delay of messages to the worker
    back_ns: int = 0
    host_bytes: int = 0
    # models in its host store, with the time of the fetch
    hosted: dict[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class SeenModel:
    """A model. ``specs`` has an entry for each worker that has prepared it, until a worker that left is
    forgotten."""

    id: int
    name: str = ""  # name@version; "": no worker was seen to have prepared it
    version: int = 0
    specs: dict[int, ModelSpec] = dataclasses.field(default_factory=dict)
    # time at which each worker had prepared the model, by worker
    ready_ns: dict[int, int] = dataclasses.field(default_factory=dict)
    removed_ns: int = 0  # time from which the model takes no more requests; 0: none
    gone_ns: int = 0
    # tuples (time, worker, fault)
    faults: list[tuple[int, int, Fault]] = dataclasses.field(default_factory=list)
    counts: HistoryCounts = dataclasses.field(default_factory=HistoryCounts)

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}" if self.name else f"model {self.id}"


class History:
    """The history of a cluster; see the module. All fields may be read. Only apply(), skip(), hold() and
    settle() change them."""

    def __init__(
        self,
        keep_ns: int = HISTORY_NS,
        requests_max: int = HISTORY_REQUESTS_MAX,
        actions_max: int = HISTORY_ACTIONS_MAX,
    ) -> None:
        self.keep_ns = keep_ns
        self.requests_max = requests_max
        self.actions_max = actions_max
        self.begun_ns = 0  # time of the first event
        self.now_ns = 0  # time of the newest event
        self.skipped_ns = 0  # time that skip() left out
        self.steps = 0
        self.events = 0
        self.workers: dict[int, SeenWorker] = {}
        self.devices: dict[tuple[int, int], SeenDevice] = {}  # devices by worker and index
        self.models: dict[int, SeenModel] = {}
        self.requests: dict[int, SeenRequest] = {}  # requests in the order of arrival
        self.live: dict[int, SeenRequest] = {}  # requests that wait or were sent
        self.actions: dict[int, SeenAction] = {}  # actions in the order of the orders
        self.under_way: dict[int, SeenAction] = {}  # actions that have not ended
        self.counts = HistoryCounts()
        self.marks: deque[CountSample] = deque()  # HISTORY_MARK_NS or more apart
        self.forgotten = 0  # number of requests that are no longer kept
        self._skipping = False
        self._mark_ns = 0  # time at which the next mark is due
        # by the time at which they ended, or were given up
        self._ended: deque[tuple[int, SeenRequest]] = deque()
        self._done: deque[SeenAction] = deque()
        self._gone_models: deque[SeenModel] = deque()
        self._gone_workers: deque[SeenWorker] = deque()
        self._handlers: dict[type, Callable[[Any], None]] = {
            Arrived: self._arrived,
            ActionDone: self._action_done,
            WorkerJoined: self._worker_joined,
            WorkerLeft: self._worker_left,
            WorkerDraining: self._worker_draining,
            DeviceLost: self._device_lost,
            DeviceClock: self._device_clock,
            LinkMeasured: self._link_measured,
            TimeWanted: lambda event: None,  # changes nothing in a history
            ModelReady: self._model_ready,
            ModelKept: lambda kept: self.hold(kept.worker, kept.device, kept.model_id, kept.load_id),
            ModelRemoved: self._model_removed,
            **dict.fromkeys(ORDERS.values(), self._send),
            SendInfer: self._send_infer,
            SendLoad: self._send_load,
            SendUnload: self._send_unload,
            SendProfile: self._send_profile,
            SendRevoke: self._send_revoke,
            AnswerOk: self._answer_ok,
            AnswerFailed: self._answer_failed,
            ModelGone: self._model_gone,
            ModelFault: self._model_fault,
        }

    def apply(self, step: Step) -> None:
        """Apply the next step."""
        handlers = self._handlers
        self.steps += 1
        for event in step.events:
            now = event[0]
            if now > self.now_ns:
                self._advance(now)
            handler = handlers.get(type(event))
            if handler is not None:
                handler(event)
        self.events += len(step.events)
        for command in step.commands:
            handler = handlers.get(type(command))
            if handler is not None:
                handler(command)
        is_due = self.now_ns >= self._mark_ns
        if is_due:
            self._mark()
        if is_due or len(self.requests) > self.requests_max or len(self.actions) > self.actions_max:
            self._forget()

    def skip(self) -> None:
        """Note that steps are left out here. Waiting requests and pending actions may end unseen, so they are
        no longer counted."""
        for request in self.live.values():
            request.state = UNKNOWN
            self._ended.append((self.now_ns, request))
        self.live.clear()
        for action in self.under_way.values():
            action.done_ns = self.now_ns
            self._done.append(action)
            if action.kind in ("load", "unload") and (action.worker, action.device) in self.devices:
                # Most loads end well. settle(), or another use of the pages, corrects the others.
                self._moved(self.devices[action.worker, action.device], action, is_ok=True)
        self.under_way.clear()
        self.counts.waiting = 0
        for model in self.models.values():
            model.counts.waiting = 0
        self._skipping = True

    def hold(self, worker: int, index: int, model_id: int, load_id: int = 0) -> None:
        """Note that a model was resident on a device before the history. load_id 0: the load is unknown.

        A model for which the known residencies leave no pages is ignored: it was loaded later, and that load
        will be seen.
        """
        device = self._device(worker, index)
        known = load_id or -1 - model_id
        if known in device.resident or any(
            residency.model_id == model_id for residency in device.resident.values()
        ):
            return
        residency = self._unseen(device, model_id, known)
        if not device.page_count or device.pages_used + residency.pages <= device.page_count:
            device.resident[known] = residency
            device.pages_used += residency.pages

    def settle(self, worker: int, index: int, models: Collection[int]) -> None:
        """Remove the resident models that are not in ``models``: their unloads were not seen.

        models: all models that are on the device, or are about to be.
        """
        device = self._device(worker, index)
        for residency in list(device.resident.values()):
            if residency.model_id not in models and residency.state == RESIDENT:
                self._free(device, residency, self.now_ns)

    def label(self, model_id: int) -> str:
        """Return ``name@version`` of a model, or ``model ID`` if its name is unknown."""
        model = self.models.get(model_id)
        return model.label if model is not None else f"model {model_id}"

    def device_label(self, worker: int, index: int) -> str:
        """Return ``worker/device``, with the worker's name where it is known."""
        found = self.workers.get(worker)
        return f"{found.name if found is not None and found.name else worker}/{index}"

    @property
    def covered_ns(self) -> int:
        """Return the time that ``counts`` cover."""
        return self.now_ns - self.begun_ns - self.skipped_ns

    def sample(self) -> CountSample:
        """Return a copy of ``counts`` with the time of the newest event."""
        return CountSample(**dataclasses.asdict(self.counts), at_ns=self.now_ns)

    def lanes(self) -> Iterator[SeenDevice]:
        """Yield every device in the order of workers and indices."""
        for key in sorted(self.devices):
            yield self.devices[key]

    # ----- events --------------------------------------------------------------------------------

    def _advance(self, now: int) -> None:
        if not self.begun_ns:
            self.begun_ns = now
        elif self._skipping:
            self.skipped_ns += now - self.now_ns
        self._skipping = False
        self.now_ns = now

    def _arrived(self, event: Arrived) -> None:
        told = event.request
        request = SeenRequest(
            told.id, told.model_id, WAITING, told.rows, told.shape, told.priority, told.arrived_ns, told.deadline_ns
        )  # fmt: skip
        self.requests[told.id] = self.live[told.id] = request
        for counts in (self.counts, self._model(told.model_id).counts):
            counts.arrived += 1
            counts.waiting += 1

    def _action_done(self, event: ActionDone) -> None:
        action = self.actions.get(event.action_id)
        if action is None or action.status is not None:
            return  # the action was ordered before the history, or was lost
        if not action.done_ns:
            del self.under_way[action.id]
            self._done.append(action)
        action.status = event.status
        action.text = event.text
        action.begin_ns, action.end_ns = event.begin_ns, event.end_ns
        action.duration_ns, action.ready_ns = event.duration_ns, event.ready_ns
        action.done_ns = event.now_ns
        device = self.devices.get((action.worker, action.device))
        is_ok = event.status is Status.OK
        if device is not None:
            if is_ok:
                device.counts[action.kind] = device.counts.get(action.kind, 0) + 1
            if action.is_execution:
                device.executing_ns += event.duration_ns
            elif action.kind in ("load", "unload"):
                self._moved(device, action, is_ok)
        if action.kind == "infer":
            if is_ok:
                for counts in (self.counts, self._model(action.model_id).counts):
                    counts.executions += 1
                    counts.executed += len(action.requests)
                if device is not None:
                    device.executed += len(action.requests)
            else:
                self._wait_again(action)
        elif action.kind == "load" and is_ok:
            self.counts.loads += 1
            self._model(action.model_id).counts.loads += 1
        elif action.kind == "fetch" and is_ok and action.worker in self.workers:
            self.workers[action.worker].hosted[action.model_id] = event.end_ns or event.now_ns
        elif action.kind == "drop" and is_ok and action.worker in self.workers:
            self.workers[action.worker].hosted.pop(action.model_id, None)

    def _moved(self, device: SeenDevice, action: SeenAction, is_ok: bool) -> None:
        """Apply the end of a LOAD or UNLOAD."""
        residency = device.resident.get(action.load_id)
        if residency is None:
            return
        at_ns = action.end_ns or action.done_ns
        if action.kind == "load" and is_ok:
            residency.state, residency.ready_ns = RESIDENT, at_ns
        elif action.kind == "load" or is_ok or action.status is Status.NOT_RESIDENT:
            self._free(device, residency, at_ns)
        else:
            residency.state = RESIDENT
            device.pages_used += residency.pages

    def _free(self, device: SeenDevice, residency: ResidencySpan, at_ns: int) -> None:
        del device.resident[residency.load_id]
        if residency.state != UNLOADING:
            device.pages_used -= residency.pages
        residency.until_ns = at_ns
        device.gone.append(residency)

    def _wait_again(self, action: SeenAction) -> None:
        """Return the requests of a failed batch to the waiting state: they are sent again, or answered."""
        for request_id in action.requests:
            request = self.requests.get(request_id)
            if request is not None and request.state == SENT and request.action is action:
                request.state = WAITING
                self.counts.waiting += 1
                self._model(request.model_id).counts.waiting += 1

    def _worker_joined(self, event: WorkerJoined) -> None:
        worker = self._worker(event.worker)
        worker.joined_ns, worker.host_bytes = event.now_ns, event.host_bytes
        for index, shape in enumerate(event.devices):
            device = self._device(event.worker, index)
            device.kind, device.page_bytes, device.page_count, device.run_ahead = shape[:4]
            device.owner = None
            if (place := arena_of(shape)) >= 0:
                device.owner, device.page_count = self._device(event.worker, place), 0
            # after a gap the worker tells its residencies again
            for residency in list(device.resident.values()):
                self._free(device, residency, event.now_ns)

    def _worker_left(self, event: WorkerLeft) -> None:
        worker = self._worker(event.worker)
        worker.left_ns = event.now_ns
        worker.hosted.clear()
        self._gone_workers.append(worker)
        for device in list(self.devices.values()):
            if device.worker == event.worker:
                self._lose(device, event.now_ns)

    def _worker_draining(self, event: WorkerDraining) -> None:
        self._worker(event.worker).draining_ns = event.now_ns

    def _device_lost(self, event: DeviceLost) -> None:
        home = self._device(event.worker, event.device).home
        for device in list(self.devices.values()):
            if device.home is home:
                self._lose(device, event.now_ns)

    def _lose(self, device: SeenDevice, now_ns: int) -> None:
        if device.lost_ns:
            return
        device.lost_ns = now_ns
        for action in [*device.executions, *device.loads]:
            if action.done_ns:
                continue
            action.done_ns, action.status = now_ns, Status.WORKER_LOST
            del self.under_way[action.id]
            self._done.append(action)
            self._wait_again(action)
        for residency in list(device.resident.values()):
            self._free(device, residency, now_ns)

    def _device_clock(self, event: DeviceClock) -> None:
        self._device(event.worker, event.device).clock_mhz = event.mhz

    def _link_measured(self, event: LinkMeasured) -> None:
        worker = self._worker(event.worker)
        worker.there_ns, worker.back_ns = event.there_ns, event.back_ns

    def _model_ready(self, event: ModelReady) -> None:
        model = self._model(event.spec.model_id)
        model.name, model.version = event.spec.name, event.spec.version
        model.specs[event.worker] = event.spec
        model.ready_ns.setdefault(event.worker, event.now_ns)

    def _model_removed(self, event: ModelRemoved) -> None:
        self._model(event.model_id).removed_ns = event.now_ns

    # ----- commands ------------------------------------------------------------------------------

    def _send_infer(self, command: SendInfer) -> None:
        now = self.now_ns
        action = SeenAction(
            command.action_id, "infer", command.worker, command.device, command.model_id, command.load_id,
            command.requests, 0, now, command.earliest_ns, command.latest_ns, command.expected_ns,
        )  # fmt: skip
        rows = waited = 0
        for request_id in command.requests:
            request = self.requests.get(request_id)
            if request is None:
                request = SeenRequest(request_id, command.model_id, UNKNOWN)
                self.requests[request_id] = request
            if request.state == WAITING:
                waited += 1
            elif request.state == UNKNOWN:
                self.live[request_id] = request
            request.state = SENT
            request.sent_ns = now
            request.sent_count += 1
            request.action = action
            rows += request.rows
        action.rows = rows
        if waited:
            self.counts.waiting -= waited
            self._model(command.model_id).counts.waiting -= waited
        self._ordered(action)

    def _send_profile(self, command: SendProfile) -> None:
        action = self._action(command)
        action.rows = command.rows
        self._ordered(action)

    def _send_load(self, command: SendLoad) -> None:
        self._ordered(self._action(command))
        device = self._device(command.worker, command.device)
        model = self._model(command.model_id)
        spec = model.specs.get(command.worker)
        for known in (command.load_id, -1 - command.model_id):  # hold() may have entered this load already
            early = device.resident.pop(known, None)
            if early is not None:
                device.pages_used -= early.pages
        residency = ResidencySpan(
            command.model_id, command.load_id, LOADING, command.run_starts, spec.runs if spec is not None else (),
            since_ns=self.now_ns,
        )  # fmt: skip
        self._put(device, residency)

    def _send_unload(self, command: SendUnload) -> None:
        self._ordered(self._action(command))
        device = self._device(command.worker, command.device)
        residency = device.resident[command.load_id]
        residency.state = UNLOADING
        device.pages_used -= residency.pages

    def _send(self, command: Any) -> None:
        self._ordered(self._action(command))

    def _action(self, command: Any) -> SeenAction:
        return SeenAction(
            command.action_id, _KIND_OF[type(command)], command.worker, command.device, command.model_id, command.load_id,
            ordered_ns=self.now_ns, earliest_ns=command.earliest_ns, latest_ns=command.latest_ns,
            expected_ns=command.expected_ns,
        )  # fmt: skip

    def _ordered(self, action: SeenAction) -> None:
        self.actions[action.id] = self.under_way[action.id] = action
        device = self._device(action.worker, action.device)
        if action.kind in EXECUTIONS:
            device.executions.append(action)
        else:
            device.loads.append(action)
        home = device.home
        if action.kind in ("infer", "profile", "unload") and action.load_id not in home.resident:
            # The model was loaded before the history.
            held = home.resident.pop(-1 - action.model_id, None)
            if held is None:
                self._put(home, self._unseen(home, action.model_id, action.load_id))
            else:
                held.load_id = action.load_id
                home.resident[action.load_id] = held

    def _unseen(self, device: SeenDevice, model_id: int, load_id: int) -> ResidencySpan:
        spec = self._model(model_id).specs.get(device.worker)
        return ResidencySpan(model_id, load_id, RESIDENT, runs=spec.runs if spec is not None else ())

    def _put(self, device: SeenDevice, residency: ResidencySpan) -> None:
        """Enter a certain residency, and free those that contradict it: their unloads were not seen.

        Other residencies of the same model are freed. While more pages seem used than the device has,
        residencies on the same pages are freed, then the oldest.
        """
        if self.skipped_ns or self._skipping:
            for other in [
                other for other in device.resident.values() if other.model_id == residency.model_id
            ]:
                if other.state != UNLOADING:
                    self._free(device, other, self.now_ns)
        device.resident[residency.load_id] = residency
        device.pages_used += residency.pages
        if not 0 < device.page_count < device.pages_used:
            return
        doubtful = [
            other for other in device.resident.values() if other is not residency and other.state == RESIDENT
        ]
        for other in sorted(doubtful, key=lambda other: (not _overlap(other, residency), other.since_ns)):
            if device.pages_used <= device.page_count:
                break
            self._free(device, other, self.now_ns)

    def _send_revoke(self, command: SendRevoke) -> None:
        action = self.actions.get(command.action_id)
        if action is not None:
            action.revoked_ns = self.now_ns

    def _answer_ok(self, command: AnswerOk) -> None:
        request = self._end(command.request_id, command.action_id, Status.OK)
        request.part = command.part
        request.queue_ns, request.load_ns, request.exec_ns = (
            command.queue_ns, command.load_ns, command.exec_ns,
        )  # fmt: skip
        for counts in self._counts(request.model_id):
            counts.answered += 1

    def _answer_failed(self, command: AnswerFailed) -> None:
        request = self._end(command.request_id, 0, command.status)
        request.reason, request.text = command.reason, command.text
        request.feasible_slo_ns, request.retry_after_ns = command.feasible_slo_ns, command.retry_after_ns
        outcome = request.outcome
        for counts in self._counts(request.model_id):
            setattr(counts, outcome, getattr(counts, outcome) + 1)
            if outcome == "refused":
                counts.refusals[command.reason] = counts.refusals.get(command.reason, 0) + 1

    def _end(self, request_id: int, action_id: int, status: Status) -> SeenRequest:
        request = self.requests.get(request_id)
        if request is None:
            action = self.actions.get(action_id)
            request = SeenRequest(
                request_id, action.model_id if action is not None else MODEL_UNKNOWN, UNKNOWN
            )
            self.requests[request_id] = request
        self.live.pop(request_id, None)
        if request.state == WAITING:
            self.counts.waiting -= 1
            self._model(request.model_id).counts.waiting -= 1
        request.state = ENDED
        request.status = status
        request.answered_ns = self.now_ns
        self._ended.append((self.now_ns, request))
        return request

    def _model_gone(self, command: ModelGone) -> None:
        model = self._model(command.model_id)
        model.gone_ns = self.now_ns
        self._gone_models.append(model)

    def _model_fault(self, command: ModelFault) -> None:
        if command.model_id == MODEL_NONE:
            return
        model = self._model(command.model_id)
        model.faults.append((self.now_ns, command.worker, command.fault))
        if command.set_aside:
            model.removed_ns = self.now_ns

    # ----- looked up -----------------------------------------------------------------------------

    def _counts(self, model_id: int) -> tuple[HistoryCounts, ...]:
        """Return the counts to which a request of a model is added."""
        return (self.counts,) if model_id == MODEL_UNKNOWN else (self.counts, self._model(model_id).counts)

    def _model(self, model_id: int) -> SeenModel:
        model = self.models.get(model_id)
        if model is None:
            model = self.models[model_id] = SeenModel(model_id)
        return model

    def _worker(self, worker: int) -> SeenWorker:
        found = self.workers.get(worker)
        if found is None:
            found = self.workers[worker] = SeenWorker(worker)
        return found

    def _device(self, worker: int, index: int) -> SeenDevice:
        device = self.devices.get((worker, index))
        if device is None:
            device = self.devices[worker, index] = SeenDevice(worker, index)
            found = self._worker(worker)
            found.device_count = max(found.device_count, index + 1)
        return device

    # ----- forgetting ----------------------------------------------------------------------------

    def _mark(self) -> None:
        self._mark_ns = self.now_ns + HISTORY_MARK_NS
        self.marks.append(self.sample())
        horizon = self.now_ns - self.keep_ns
        while self.marks[0].at_ns < horizon:
            self.marks.popleft()
        for device in self.devices.values():
            while device.gone and device.gone[0].until_ns < horizon:
                device.gone.popleft()
        while self._gone_models and self._gone_models[0].gone_ns < horizon:
            model = self._gone_models.popleft()
            if self.models.get(model.id) is model:
                del self.models[model.id]
        while self._gone_workers and self._gone_workers[0].left_ns < horizon:
            worker = self._gone_workers.popleft()
            if self.workers.get(worker.id) is worker:
                del self.workers[worker.id]
                for model in self.models.values():
                    model.specs.pop(worker.id, None)
                    model.ready_ns.pop(worker.id, None)
                for index in range(worker.device_count):
                    self.devices.pop((worker.id, index), None)

    def _forget(self) -> None:
        horizon = self.now_ns - self.keep_ns
        ended, done = self._ended, self._done
        while ended and (ended[0][0] < horizon or len(self.requests) > self.requests_max):
            at_ns, request = ended.popleft()
            # otherwise the request was seen again later
            if request.state == UNKNOWN or request.answered_ns == at_ns:
                self._forget_request(request)
        while len(self.requests) > self.requests_max:  # more requests are live than may be kept
            self._forget_request(next(iter(self.requests.values())))
        while done and (done[0].done_ns < horizon or len(self.actions) > self.actions_max):
            self._forget_action(done.popleft())
        while len(self.actions) > self.actions_max:
            self._forget_action(next(iter(self.actions.values())))

    def _forget_request(self, request: SeenRequest) -> None:
        if self.requests.get(request.id) is not request:
            return
        del self.requests[request.id]
        self.forgotten += 1
        if self.live.pop(request.id, None) is not None and request.state == WAITING:
            request.state = UNKNOWN
            for counts in self._counts(request.model_id):
                counts.waiting -= 1

    def _forget_action(self, action: SeenAction) -> None:
        self.actions.pop(action.id, None)
        self.under_way.pop(action.id, None)
        device = self.devices.get((action.worker, action.device))
        if device is not None:
            lane = device.executions if action.is_execution else device.loads
            while lane and lane[0].id not in self.actions:
                lane.popleft()


def _overlap(first_residency: ResidencySpan, second_residency: ResidencySpan) -> bool:
    """Return whether two residencies share a page, as far as their places are known."""
    return any(
        first < second + more and second < first + pages
        for first, pages in zip(first_residency.run_starts, first_residency.runs)
        for second, more in zip(second_residency.run_starts, second_residency.runs)
    )


def history_of(steps: Iterable[Step], **bounds: int) -> History:
    """Return the history of steps. bounds: keep_ns, requests_max and actions_max of History."""
    history = History(**bounds)
    for step in steps:
        history.apply(step)
    return history
