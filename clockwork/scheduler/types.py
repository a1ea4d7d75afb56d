"""The scheduler's interface: events in, commands out, all fixed typed records.

Times are of the controller's clock, in integer nanoseconds. A scheduler never reads a clock, opens a socket or
sees a tensor's bytes: it knows a request by its row count, its shape key and its deadline.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from clockwork.wire.messages import NEVER_NS, Reason, Status

__all__ = ["NEVER_NS", "Reason", "Status"]

ShapeKey: TypeAlias = tuple[tuple[int, ...], ...]
"""The shapes of a request's inputs; for a model that batches, without axis 0."""


@dataclasses.dataclass(slots=True)
class ProfilePoint:
    """A measured execution time."""

    shape: ShapeKey
    batch: int
    exec_ns: int


@dataclasses.dataclass(slots=True)
class ModelSpec:
    """A model as a worker has prepared it. Workers of the same device kind share estimates; ``batch_max``, ``runs`` and
    ``load_ns`` are each worker's own. ``batches``: whether requests have rows, the same on all workers."""

    model_id: int
    name: str
    version: int
    program: str  # models of the same program share estimates
    batches: bool
    batch_max: int
    slo_ns: int  # 0: none
    runs: tuple[int, ...]  # page counts of the layout's runs
    load_ns: int  # measured at preparation
    profile: list[ProfilePoint]


@dataclasses.dataclass(slots=True)
class Request:
    """A request, from arrival to its answer. id is unique for the controller's life."""

    id: int
    model_id: int
    rows: int
    shape: ShapeKey
    bytes: int  # of all its inputs, for the bound on queued bytes
    arrived_ns: int
    deadline_ns: int  # NEVER_NS: none
    priority: int  # 1 is the highest; the default level has been filled in
    copied_bytes: int = 0  # of inputs in the client's memory, which its worker copies from there


# ----- events --------------------------------------------------------------------------------


class Arrived(NamedTuple):
    now_ns: int
    request: Request


class RequestCancelled(NamedTuple):
    """The client cancelled the request, or is gone. Answered CANCELLED if it has not been answered."""

    now_ns: int
    request_id: int


class ActionDone(NamedTuple):
    """The result of an action, with times converted to the controller's clock.

    ``duration_ns``: measured. ``ready_ns``: when the order and its inputs had reached the worker, 0 if unknown; a
    simulated worker adds the time of their copy to the device.
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
    """A worker has joined. ``devices``: (kind, page_bytes, page_count, run_ahead) of each. Nothing is resident on them.

    ``host_bytes``: the budget of the host store that they load from, empty now; 0: there is none.
    """

    now_ns: int
    worker: int
    devices: tuple[tuple[str, int, int, int], ...]
    host_bytes: int = 0


class WorkerLeft(NamedTuple):
    """A worker is gone, and its actions are lost: their requests are planned again, or answered."""

    now_ns: int
    worker: int


class WorkerDraining(NamedTuple):
    """A worker wishes to leave: it is sent no new actions, and its actions under way end."""

    now_ns: int
    worker: int


class DeviceLost(NamedTuple):
    """A device of a worker is gone, and its actions with it; the worker and its other devices go on."""

    now_ns: int
    worker: int
    device: int


class DeviceClock(NamedTuple):
    """A device executes at this clock rate from now on; execution times are inversely proportional to it."""

    now_ns: int
    worker: int
    device: int
    mhz: int


class TimeWanted(NamedTuple):
    """A worker wants a device's time for itself, with pages of these runs, for a model that it prepares. ``expected_ns``:
    0, it wants none any more."""

    now_ns: int
    worker: int
    device: int
    model_id: int
    expected_ns: int
    runs: tuple[int, ...]


class LinkMeasured(NamedTuple):
    """The link to a worker was measured. ``there_ns``/``back_ns``: high percentiles of the delay each way, with jitter."""

    now_ns: int
    worker: int
    there_ns: int
    back_ns: int


class ModelReady(NamedTuple):
    """A worker has prepared a model, which may be loaded there from now on."""

    now_ns: int
    worker: int
    spec: ModelSpec


class ModelRemoved(NamedTuple):
    """A model drains: its queued requests finish, new ones are refused; then ModelGone is commanded."""

    now_ns: int
    model_id: int


class Tick(NamedTuple):
    """The time of a Wake has come (or any other time: a tick is always harmless)."""

    now_ns: int


Event: TypeAlias = (
    Arrived | RequestCancelled | ActionDone | WorkerJoined | WorkerLeft | WorkerDraining | LinkMeasured
    | ModelReady | ModelRemoved | Tick | DeviceLost | DeviceClock | TimeWanted
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
    """Read a model from disk into the worker's host store. ``device`` is the store's first, ``load_id`` the order's."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendDrop(NamedTuple):
    """Drop a model from the worker's host store."""

    worker: int
    device: int
    action_id: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class SendReserve(NamedTuple):
    """Give a device's time to its worker, and pages with it: the first of each run. ``load_id`` is 0."""

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
    """Answer a request without outputs. ``feasible_slo_ns``, ``retry_after_ns``: for REFUSED, 0 if unknown."""

    request_id: int
    status: Status
    reason: str
    text: str
    feasible_slo_ns: int
    retry_after_ns: int


class ModelGone(NamedTuple):
    """Forget a removed model everywhere: it holds no page and no request any more."""

    model_id: int


class Fault(enum.IntEnum):
    """Faults of a model's execution or load."""

    WORKER_LOST = 0  # its worker ended, or its device broke, for an unknown reason
    CRASHED = 1  # it crashed its worker, which reported that
    OVERRUN = 2  # it took longer than its limit
    STUCK = 3  # its load or fetch did not end, and its worker began anew
    TRIAL_STUCK = 4  # a RESERVE in which it was made ready did not end, and its worker began anew


class ModelFault(NamedTuple):
    """A model's execution or load was at fault. ``set_aside``: it takes no more requests; ModelGone is commanded when it
    holds nothing any more."""

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


class Scheduler(Protocol):
    """A scheduler with any policy. Deterministic: the same events give the same commands."""

    def step(self, event: Event) -> list[Command]: ...

    def step_many(self, events: Iterable[Event]) -> list[Command]:
        """Like a step() for each event, but plans only once, at the end."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """The whole state as plain data: devices() with their residencies, and every model. For tests and dumps."""
        ...

    def devices(self) -> list[dict[str, Any]]:
        """For each device its queue, free pages and residencies, as plain data for status."""
        ...

    def whereabouts(self, model_id: int) -> list[tuple[int, int, str]]:
        """(worker, device, state) of each device that holds a model, or is about to."""
        ...

    def policy_status(self, now_ns: int) -> dict[str, float]:
        """The policy's estimates of executions and arrivals as a whole: pace, need, hold, share (csrc/scheduler/adaptive.h).
        Empty for a policy without such estimates."""
        ...

    def devices_wanted(self, now_ns: int) -> float:
        """The number of devices that the current load needs; see csrc/scheduler/demand.h."""
        ...

    def expected_ns(self, model_id: int, profile: Sequence[ProfilePoint]) -> list[int]:
        """The current estimates of the execution times of a profile's points."""
        ...

    def noise(self) -> dict[str, float]:
        """How executions differ from their estimates: their number (executions), the median ratio (pace), sigma of a lognormal
        factor, the part that took more than 1.5 times the median (outliers), and by which factor (outlier_factor)."""
        ...

    def prediction_errors(self, bounds_ns: Iterable[int]) -> dict[str, dict[str, dict[str, Any]]]:
        """predictions() as histograms with these bounds of their buckets."""
        ...

    def held(self) -> bytes:
        """Worker, device, model and load id of each model that is resident on a device, as numbers of eight bytes."""
        ...

    def hosts(self, model_id: int) -> list[int]:
        """Workers that hold a model in a host store with a budget."""
        ...

    def predictions(self) -> dict[str, Any]:
        """Errors of predictions as plain data: how much longer (over) or shorter (under) actions were predicted than they took,
        and how much later or earlier their ends: infer_duration, infer_completion, load_duration, load_completion."""
        ...

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant is broken. For tests; may be slow."""
        ...
