"""The scheduler's interface: events in, commands out, all fixed typed records.

Times are of the controller's clock, in integer nanoseconds. A scheduler never reads a clock, opens a socket
or sees a tensor's bytes: it knows a request by its row count, its shape key and its deadline.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from clockwork.wire.messages import NEVER_NS, ActionKind, Reason, Status

__all__ = ["NEVER_NS", "Reason", "Status"]

ShapeKey: TypeAlias = tuple[tuple[int, ...], ...]
"""The shapes of a request's inputs. For a model that batches they are without axis 0."""


@dataclasses.dataclass(slots=True)
class ProfilePoint:
    """A measured execution time."""

    shape: ShapeKey
    batch: int
    exec_ns: int


@dataclasses.dataclass(slots=True)
class ModelSpec:
    """A model as a worker has prepared it.

    Workers of the same device kind share estimates; ``batch_max``, ``runs`` and ``load_ns`` are each worker's
    own. ``batches``: whether requests have rows, which is the same on all workers.
    """

    model_id: int
    name: str
    version: int
    program: str  # models of the same program share estimates
    batches: bool
    batch_max: int
    slo_ns: int  # default SLO; 0: none
    runs: tuple[int, ...]  # page counts of the layout's runs
    load_ns: int  # duration of a load, measured at preparation
    profile: list[ProfilePoint]


@dataclasses.dataclass(slots=True)
class Request:
    """A request from arrival to answer. Its id is unique for the controller's life."""

    id: int
    model_id: int
    rows: int
    shape: ShapeKey
    bytes: int  # bytes of all inputs, for the bound on queued bytes
    arrived_ns: int
    deadline_ns: int  # absolute deadline; NEVER_NS: none
    priority: int  # 1 is the highest; the default has been filled in
    copied_bytes: int = 0  # bytes of inputs in the client's memory, from which the worker copies them


# ----- events --------------------------------------------------------------------------------


class Arrived(NamedTuple):
    now_ns: int
    request: Request


class RequestCancelled(NamedTuple):
    """The client cancelled the request, or has left. An unanswered request is answered with CANCELLED."""

    now_ns: int
    request_id: int


class ActionDone(NamedTuple):
    """The result of an action, with times converted to the controller's clock.

    ``duration_ns``: measured. ``ready_ns``: time at which the order and its inputs had reached the worker, 0
    if unknown; a simulated worker adds the time of their copy to the device.
    """

    now_ns: int
    worker: int
    action_id: int
    status: Status
    text: str
    begin_ns: int
    end_ns: int
    duration_ns: int
    ready_ns: int = 0


DeviceShape: TypeAlias = (
    tuple[str, int, int, int] | tuple[str, int, int, int, int] | tuple[str, int, int, int, int, int]
)
"""The values of DEVICE_SHAPE; the last two are left out if they say nothing."""


def device_shape(
    kind: str,
    page_bytes: int,
    page_count: int,
    run_ahead: int,
    arena: int = -1,
    slowdown_thousandths: int = 1000,
) -> DeviceShape:
    """A device of WorkerJoined. arena: -1, it has an arena of its own. slowdown_thousandths: of an arena's
    owner, the time of an execution beside executions on all other executors, in thousandths of its time by
    itself."""
    shape = kind, page_bytes, page_count, run_ahead
    if slowdown_thousandths != 1000:
        return *shape, arena, slowdown_thousandths
    return shape if arena < 0 else (*shape, arena)


def arena_of(shape: DeviceShape) -> int:
    """The place of the device whose arena a device of WorkerJoined executes from; -1: it has its own."""
    return shape[4] if len(shape) > 4 else -1


class WorkerJoined(NamedTuple):
    """A worker has joined. ``devices``: (kind, page_bytes, page_count, run_ahead) of each, and ``arena`` of
    those that execute from the arena of another: the place of that device, which comes before. The device of
    an arena with executors that slow each other has its slowdown behind that (device_shape()). No model is
    resident on them.

    ``host_bytes``: budget of the worker's host store, which is empty; 0: there is none.

    ``store_bytes``: budget of a store on the worker's disk, which holds some of the models that it can serve;
    0: its disk keeps every model that it has prepared. A worker has at most one of both: RuntimeError.
    """

    now_ns: int
    worker: int
    devices: tuple[DeviceShape, ...]
    host_bytes: int = 0
    store_bytes: int = 0


class WorkerLeft(NamedTuple):
    """A worker has left, and its actions are lost. Their requests are planned again, or answered."""

    now_ns: int
    worker: int


class WorkerDraining(NamedTuple):
    """A worker is leaving. It gets no new actions, and its pending actions end."""

    now_ns: int
    worker: int


class DeviceLost(NamedTuple):
    """A device of a worker is lost with its actions. The worker and its other devices continue."""

    now_ns: int
    worker: int
    device: int


class DeviceClock(NamedTuple):
    """The clock rate of a device has changed. Execution times are inversely proportional to it."""

    now_ns: int
    worker: int
    device: int
    mhz: int


class TimeWanted(NamedTuple):
    """A worker wants a device's time and pages of these runs, to prepare a model. ``expected_ns`` 0: it no
    longer does."""

    now_ns: int
    worker: int
    device: int
    model_id: int
    expected_ns: int
    runs: tuple[int, ...]


class LinkMeasured(NamedTuple):
    """The link to a worker was measured. ``there_ns``/``back_ns``: high percentiles of the delay in each
    direction, with jitter."""

    now_ns: int
    worker: int
    there_ns: int
    back_ns: int


class ModelReady(NamedTuple):
    """A worker has prepared a model, which may be loaded there from now on.

    ``is_stored`` False: the worker, which has a disk store, does not have the model, but could be brought it,
    since another worker of its kind (of devices, and size of pages) has prepared it. The event may come again
    with True, when the worker has the model though no SendFetch was given: it has prepared it. Its disk may
    then exceed the budget, and SendDrops follow.
    """

    now_ns: int
    worker: int
    spec: ModelSpec
    is_stored: bool = True


class ModelKept(NamedTuple):
    """A model is resident on a worker that has just joined, since an earlier controller loaded it there.

    ``run_starts``: the first page of each of its runs. Follows the model's ModelReady. Where its pages were
    given away since, or the model is being loaded there, it has no effect: the worker evicts the model for
    that LOAD. Load ids of the scheduler are above ``load_id`` from then on."""

    now_ns: int
    worker: int
    device: int
    model_id: int
    load_id: int
    run_starts: tuple[int, ...]


class CopyLost(NamedTuple):
    """A worker's disk store no longer has a model, though no SendDrop was given: a file was damaged. It may
    be brought the model again. Without effect on a worker that does not have the model."""

    now_ns: int
    worker: int
    model_id: int


class RoomWanted(NamedTuple):
    """A worker with a disk store prepares models that take so many bytes in all; 0: none any more.

    Until the next such event, copies are brought only into what is left. Where there is too little room,
    copies of others are dropped, if they suffice: also copies of models that then have fewer than they
    should have, but no last ones."""

    now_ns: int
    worker: int
    bytes: int


class ModelRemoved(NamedTuple):
    """A model drains: its queued requests finish, new requests are refused. Then ModelGone is commanded."""

    now_ns: int
    model_id: int


class Tick(NamedTuple):
    """The time of a Wake has come. A Tick at any other time is harmless."""

    now_ns: int


Event: TypeAlias = (
    Arrived | RequestCancelled | ActionDone | WorkerJoined | WorkerLeft | WorkerDraining | LinkMeasured
    | ModelReady | ModelRemoved | Tick | DeviceLost | DeviceClock | TimeWanted | CopyLost | RoomWanted
    | ModelKept
)  # fmt: skip


# ----- commands ------------------------------------------------------------------------------


class SendLoad(NamedTuple):
    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    run_starts: tuple[int, ...]
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendUnload(NamedTuple):
    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendInfer(NamedTuple):
    """Execute a batch. ``requests``: ids in the order of the batch's parts."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    requests: tuple[int, ...]
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendProfile(NamedTuple):
    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    rows: int
    shape: ShapeKey
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendFetch(NamedTuple):
    """Read a model from disk into the worker's host store, or bring it from another worker to its disk store.
    ``device`` is the store's first device, ``load_id`` belongs to the order."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendDrop(NamedTuple):
    """Drop a model from the worker's store. It may be resident on a device, where it stays."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendReserve(NamedTuple):
    """Give a device's time and pages to its worker. ``run_starts``: first page of each run.
    ``load_id`` is 0."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    run_starts: tuple[int, ...]
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendRevoke(NamedTuple):
    worker: int
    action_id: int


class AnswerOk(NamedTuple):
    """Answer a request with part ``part`` of the result of ``action_id``."""

    request_id: int
    action_id: int
    part: int
    queue_ns: int
    load_ns: int
    exec_ns: int


class AnswerFailed(NamedTuple):
    """Answer a request without outputs. ``feasible_slo_ns``, ``retry_after_ns``: for REFUSED; 0: unknown."""

    request_id: int
    status: Status
    reason: str
    text: str
    feasible_slo_ns: int
    retry_after_ns: int


class ModelGone(NamedTuple):
    """Forget a removed model everywhere. It holds no page and no request."""

    model_id: int


class Fault(enum.IntEnum):
    """Faults of a model's execution or load."""

    WORKER_LOST = 0  # the worker ended, or the device broke, for an unknown reason
    CRASHED = 1  # the model crashed its worker, which reported that
    OVERRUN = 2  # the execution exceeded its limit
    STUCK = 3  # a load or fetch did not end, and the worker restarted
    TRIAL_STUCK = 4  # a RESERVE for the preparation of the model did not end, and the worker restarted


SENTENCES: Mapping[str, str] = {
    "NONE": "",
    "NO_WORKER": "no worker that can serve the model is connected",
    "DRAINING": "{name} is being unregistered",
    "QUEUE_FULL": "{a} requests of {b} bytes are queued",
    "TOO_LARGE": "{name} is larger than any device's memory",
    "WORKERS_LEAVING": "every worker that has the model is leaving",
    "NEVER_MEASURED": (
        "{name} was never measured with inputs of this shape or size; it will be when a device is idle"
    ),
    "NO_PLACE": "{name} cannot be placed on any device now",
    "BOUND_ABOVE_SLO": (
        "{name} was never measured with inputs of this shape or size, and its bound of {a_time} is above "
        "the SLO"
    ),
    "SLO_BELOW_IDLE": (
        "{name} takes {a_time} on an idle device ({c_time} to execute, the rest on the way and in "
        "reserve), the SLO is {b_time}"
    ),
    "COULD_BE_ANSWERED": "{name} could be answered in {a_time}, the SLO is {b_time}",
    "TOOK_ITS_PLACE": "a request of higher priority took its place",
    "DEADLINE_PASSED": "the deadline passed",
    "CANNOT_BE_IN_TIME": "it could no longer be answered by its deadline",
    "RESULT_LATE": "the result came after the deadline",
    "WAS_CANCELLED": "the request was cancelled",
    "WORKER_LOST": "the worker was lost",
    "WORKER_LEAVES": "the worker is leaving",
    "DEVICE_LOST": "its device was lost",
    "NO_WORKER_LEFT": "no worker that can serve the model is left",
    "BATCH_FAILED": "the batch that it was in failed",
    "FAILED_ON_INPUT": "the model failed on this input",
    "SET_ASIDE": (
        "{name} is set aside: its executions ended workers, or took too long; clockwork status says what "
        "happened"
    ),
    "ENDED_WORKERS": "workers ended while they executed this request, so it is not tried again",
    "LOAD_FAILED": "{name} could not be loaded: {said}",
    "VERBATIM": "{said}",
    "NOT_MEASURABLE": (
        "{name} could not be executed with inputs of this shape or size when an idle device tried it, so "
        "how long that takes is not known; a request without an SLO has it tried again, and is told what "
        "is wrong"
    ),
    "NOT_STORED": "no worker has {name} any more; it has to be prepared again",
}
"""Sentences of answers, by the names that ``AnswerText`` has for them, in the order of their numbers.

``{name}`` is the model's; ``{a}``, ``{b}`` and ``{c}`` are numbers of the command, and ``{a_time}``,
``{b_time}`` and ``{c_time}`` the same as durations. ``{said}`` is the worker's message, or else the name of
status ``a``.
"""


class ModelFault(NamedTuple):
    """A fault of a model's execution or load. ``set_aside``: the model takes no more requests, and ModelGone
    is commanded when it holds nothing."""

    model_id: int
    worker: int
    fault: Fault
    set_aside: bool


class Wake(NamedTuple):
    """Send a Tick at this time at the latest. Only the newest Wake counts."""

    at_ns: int


Command: TypeAlias = (
    SendLoad | SendUnload | SendInfer | SendProfile | SendRevoke | AnswerOk | AnswerFailed | ModelGone | Wake
    | SendFetch | SendDrop | ModelFault | SendReserve
)  # fmt: skip


EVENTS: tuple[type[Any], ...] = (
    Arrived, RequestCancelled, ActionDone, WorkerJoined, WorkerLeft, WorkerDraining, LinkMeasured, ModelReady,
    ModelRemoved, Tick, DeviceLost, DeviceClock, TimeWanted, CopyLost, RoomWanted,
    ModelKept,
)  # fmt: skip
"""Events, by their numbers in recordings."""

COMMANDS: tuple[type[Any], ...] = (
    SendLoad, SendUnload, SendInfer, SendProfile, SendRevoke, AnswerOk, AnswerFailed, ModelGone, Wake,
    SendFetch, SendDrop, ModelFault, SendReserve,
)  # fmt: skip
"""Commands, by their numbers in recordings and in C++."""

ORDERS: dict[ActionKind, type[Any]] = {
    ActionKind.LOAD: SendLoad,
    ActionKind.UNLOAD: SendUnload,
    ActionKind.INFER: SendInfer,
    ActionKind.PROFILE: SendProfile,
    ActionKind.FETCH: SendFetch,
    ActionKind.DROP: SendDrop,
    ActionKind.RESERVE: SendReserve,
}
"""The command that orders each action."""

MOMENTS = (
    "now_ns",
    "begin_ns",
    "end_ns",
    "ready_ns",
    "arrived_ns",
    "deadline_ns",
    "earliest_ns",
    "latest_ns",
)
"""Fields of events, commands and requests that are times of the controller's clock."""

DEVICE_SHAPE = ("kind", "page_bytes", "page_count", "run_ahead", "arena", "slowdown_thousandths")
"""The values of each of WorkerJoined's devices; the last two may be left out, see device_shape()."""


class Scheduler(Protocol):
    """A scheduler with any policy. Deterministic: equal events give equal commands."""

    def step(self, event: Event) -> list[Command]: ...

    def step_many(self, events: Iterable[Event]) -> list[Command]:
        """Take events as step() does, but plan only once, at the end."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state as plain data: devices() with their residencies, and every model. For tests
        and dumps."""
        ...

    def devices(self) -> list[dict[str, Any]]:
        """Return each device's queue, free pages and residencies, as plain data for status."""
        ...

    def whereabouts(self, model_id: int) -> list[tuple[int, int, str]]:
        """Return (worker, device, state) of each device that holds a model, or is about to."""
        ...

    def link_status(self, now_ns: int) -> dict[str, Any]:
        """Return how the time of the links that load models is divided (csrc/scheduler/link_shares.h).

        contested_ns: for how much longer they may be. level, in links: models that ask for less get it; 0
        while the links are not divided, and then the rest is empty. beyond: number of models whose loads come
        behind those of the others. shares: those that ask for the most, each with its model, the link time
        that it asked for and had in the last two seconds, and its standing.
        """
        ...

    def policy_status(self, now_ns: int) -> dict[str, float]:
        """Return the policy's estimates of executions and arrivals as a whole: pace, need, hold, share
        (csrc/scheduler/adaptive.h).

        Empty for a policy without such estimates.
        """
        ...

    def devices_wanted(self, now_ns: int) -> float:
        """Return the number of devices that the current load needs; see csrc/scheduler/demand.h."""
        ...

    def expected_ns(self, model_id: int, profile: Sequence[ProfilePoint]) -> list[int]:
        """Return the current estimates of the execution times of a profile's points."""
        ...

    def noise(self) -> dict[str, float]:
        """Return the differences of executions from their estimates.

        executions: their number. pace: median ratio. sigma: of a lognormal factor. outliers: part that took
        more than 1.5 times the median. outlier_factor: factor of these.
        """
        ...

    def prediction_errors(self, bounds_ns: Iterable[int]) -> dict[str, dict[str, dict[str, Any]]]:
        """Return predictions() as histograms over buckets with these bounds."""
        ...

    def held(self) -> bytes:
        """Return worker, device, model and load id of each resident model, as numbers of eight bytes."""
        ...

    def hosts(self, model_id: int) -> list[int]:
        """Return the workers that hold a model in a host store with a budget."""
        ...

    def keepers(self, model_id: int) -> list[int]:
        """Return the workers whose disks have a model, workers that leave among them. A worker that could
        only be brought the model is none of them."""
        ...

    def sole_copies(self, worker: int) -> int:
        """Return the number of models that the disks of other workers could keep, and that only this worker's
        and those of others that leave do. 0 where no worker has a disk store. Looks at every model."""
        ...

    def store_room(self, worker: int) -> int:
        """Return the bytes that a worker's disk store has left for a new model, or would have after a
        RoomWanted. Looks at each of its models."""
        ...

    def store_status(self) -> dict[str, int]:
        """Return scarce: number of models with fewer copies on disks than they should have; awaited: of
        those of them of which a worker that has left may bring a copy back; lost: of models that no worker
        has any more; cramped: of scarce models for which no store has room (of the first 1000); copying: of
        SendFetches under way into disk stores. bytes, used: of all disk stores; room: bytes that the
        emptiest of them has left. Looks at every model."""
        ...

    def predictions(self) -> dict[str, Any]:
        """Return the errors of predictions as plain data.

        Durations of actions that were predicted too long (over) or too short (under), and ends that were
        predicted too late or too early: infer_duration, infer_completion, load_duration, load_completion.
        """
        ...

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant is broken. For tests; may be slow."""
        ...
