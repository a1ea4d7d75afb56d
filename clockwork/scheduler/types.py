"""The scheduler's world: events in, commands out, all fixed typed records.

Times are controller time in integer nanoseconds. A scheduler never reads a clock, opens a socket or
sees a tensor's bytes: a request is its row count, its shape key and its deadline.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from clockwork.wire.messages import NEVER_NS, Reason, Status

__all__ = ["NEVER_NS", "Reason", "Status"]

ShapeKey: TypeAlias = tuple[tuple[int, ...], ...]
"""The shapes of a request's inputs. For a model that batches: without axis 0."""


@dataclasses.dataclass(slots=True)
class ProfilePoint:
    """One measured execution time."""

    shape: ShapeKey
    batch: int
    exec_ns: int


@dataclasses.dataclass(slots=True)
class ModelSpec:
    """What the scheduler knows of a model on one worker. Workers of one device kind share estimates; ``batch_max``, ``runs``
    and ``load_ns`` are each worker's own. ``batches``: how requests count rows, the same on all workers."""

    model_id: int
    name: str
    version: int
    program: str  # models of one program share estimates
    batches: bool
    batch_max: int
    slo_ns: int  # 0: none
    runs: tuple[int, ...]  # page counts of the layout's runs
    load_ns: int  # measured at preparation
    profile: list[ProfilePoint]


@dataclasses.dataclass(slots=True)
class Request:
    """One request, from arrival to its one answer. id is unique for the controller's life."""

    id: int
    model_id: int
    rows: int
    shape: ShapeKey
    bytes: int  # of all its inputs, for the bound on what is queued
    arrived_ns: int
    deadline_ns: int  # NEVER_NS: none
    priority: int  # 1 is the highest; the default level has been filled in


# ----- events --------------------------------------------------------------------------------


class Arrived(NamedTuple):
    now_ns: int
    request: Request


class RequestCancelled(NamedTuple):
    """The client cancelled, or is gone. Answered CANCELLED if it had not been answered."""

    now_ns: int
    request_id: int


class ActionDone(NamedTuple):
    """A result, its times converted to controller time.

    ``duration_ns``: measured. ``ready_ns``: when the order and its inputs had reached the worker, 0 if unknown; a
    simulated worker adds what their copy to the device takes.
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


class WorkerJoined(NamedTuple):
    """``devices``: (kind, page_bytes, page_count, run_ahead) of each. Nothing is resident on them.

    ``host_bytes``: the budget of the host store that they load from, empty now; 0: it has none.
    """

    now_ns: int
    worker: int
    devices: tuple[tuple[str, int, int, int], ...]
    host_bytes: int = 0


class WorkerLeft(NamedTuple):
    """Its actions are lost: what they carried is planned again, or answered."""

    now_ns: int
    worker: int


class WorkerDraining(NamedTuple):
    """It wishes to leave: no new actions; what runs ends."""

    now_ns: int
    worker: int


class DeviceLost(NamedTuple):
    """One device of a worker is gone, and its actions with it; the worker and its other devices go on."""

    now_ns: int
    worker: int
    device: int


class DeviceClock(NamedTuple):
    """A device executes at this clock from now on, and takes the longer for everything the lower it is."""

    now_ns: int
    worker: int
    device: int
    mhz: int


class LinkMeasured(NamedTuple):
    """``there_ns``/``back_ns``: high percentiles of the delay each way, jitter included."""

    now_ns: int
    worker: int
    there_ns: int
    back_ns: int


class ModelReady(NamedTuple):
    """The worker has prepared the model: it may be loaded there from now on."""

    now_ns: int
    worker: int
    spec: ModelSpec


class ModelRemoved(NamedTuple):
    """Drain: requests that are queued finish, new ones are refused; then ModelGone is commanded."""

    now_ns: int
    model_id: int


class Tick(NamedTuple):
    """The time of a Wake has come (or any other time: a tick is always harmless)."""

    now_ns: int


Event: TypeAlias = (
    Arrived | RequestCancelled | ActionDone | WorkerJoined | WorkerLeft | WorkerDraining | LinkMeasured
    | ModelReady | ModelRemoved | Tick | DeviceLost | DeviceClock
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
    """``requests``: ids in the order of the batch's parts."""

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
    """Disk to the worker's host store. ``device`` is its first, ``load_id`` the order's."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendDrop(NamedTuple):
    """Out of the worker's host store."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendRevoke(NamedTuple):
    worker: int
    action_id: int


class AnswerOk(NamedTuple):
    """The request's outputs are part ``part`` of the result of ``action_id``."""

    request_id: int
    action_id: int
    part: int
    queue_ns: int
    load_ns: int
    exec_ns: int


class AnswerFailed(NamedTuple):
    """``feasible_slo_ns``, ``retry_after_ns``: for REFUSED, 0 if unknown."""

    request_id: int
    status: Status
    reason: str
    text: str
    feasible_slo_ns: int
    retry_after_ns: int


class ModelGone(NamedTuple):
    """A removed model holds no page and no request any more: forget it everywhere."""

    model_id: int


class Fault(enum.IntEnum):
    """What a model's execution or load did."""

    WORKER_LOST = 0  # its worker ended, or its device broke, and nobody said why
    CRASHED = 1  # it ended its worker, which said so
    OVERRUN = 2  # it took longer than it may
    STUCK = 3  # its load, or its fetch, did not end, and its worker began anew


class ModelFault(NamedTuple):
    """A model is noted for what it did. ``set_aside``: it takes no more requests; ModelGone is commanded when nothing
    of it is left."""

    model_id: int
    worker: int
    fault: Fault
    set_aside: bool


class Wake(NamedTuple):
    """Send a Tick at this time at the latest. Only the newest Wake counts."""

    at_ns: int


Command: TypeAlias = (
    SendLoad | SendUnload | SendInfer | SendProfile | SendRevoke | AnswerOk | AnswerFailed | ModelGone | Wake
    | SendFetch | SendDrop | ModelFault
)  # fmt: skip


class Scheduler(Protocol):
    """One policy. Deterministic: the same events give the same commands."""

    def step(self, event: Event) -> list[Command]: ...

    def step_many(self, events: Iterable[Event]) -> list[Command]:
        """The same as one step after another, but the planning at the end is done once."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Plain data about everything: devices() with what each holds, and every model. For tests and dumps."""
        ...

    def devices(self) -> list[dict[str, Any]]:
        """Plain data for status: per device its queue, its free pages and how much is resident."""
        ...

    def whereabouts(self, model_id: int) -> list[tuple[int, int, str]]:
        """(worker, device, state) of each device that holds a model, or is about to."""
        ...

    def policy_status(self, now_ns: int) -> dict[str, float]:
        """What the policy has learnt of executions and arrivals as a whole: pace, need, hold, share (csrc/scheduler/adaptive.h).
        Empty for a policy that learns nothing of the kind."""
        ...

    def devices_wanted(self, now_ns: int) -> float:
        """How many devices today's load needs; see csrc/scheduler/demand.h."""
        ...

    def expected_ns(self, model_id: int, profile: Sequence[ProfilePoint]) -> list[int]:
        """What batches of a model, as its profile has them, are expected to take by now."""
        ...

    def noise(self) -> dict[str, float]:
        """How executions differ from what was expected of them: their number (executions), the median as a multiple
        of that (pace), sigma of a lognormal factor, the part that took more than 1.5 times the median (outliers), and
        by which factor (outlier_factor)."""
        ...

    def prediction_errors(self, bounds_ns: Iterable[int]) -> dict[str, dict[str, dict[str, Any]]]:
        """predictions() as histograms of these bounds."""
        ...

    def hosts(self, model_id: int) -> list[int]:
        """Workers whose host store, which has a budget, holds a model."""
        ...

    def predictions(self) -> dict[str, Any]:
        """Plain data: how much longer (over) or shorter (under) actions were predicted than they were, and how
        much later or earlier their ends: infer_duration, infer_completion, load_duration, load_completion."""
        ...

    def check_invariants(self) -> None:
        """Raise AssertionError where the books do not balance. For tests; may be slow."""
        ...
