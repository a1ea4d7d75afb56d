"""The books of a scheduler: who waits for an answer, what was sent, who is there, when to wake.

Whatever a policy decides, these rules hold: each request gets exactly one answer, at the latest at
its deadline; nothing late is a success; a result of an action that is not in the books is ignored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Any

from clockwork.messages import NEVER_NS, Reason, Status
from clockwork.scheduler.estimates import Estimates
from clockwork.scheduler.state import Batch, Device, Flight, Model, Pending, Residency, ResidencyState, Worker
from clockwork.scheduler.types import AnswerFailed, Command, Event, Request, SendRevoke, Wake

TIMERS_SLACK = 1024
"""Timers of answered requests that may lie in the heap beyond the live ones before it is rebuilt."""


class Book(ABC):
    """State shared by every policy, and the answers."""

    def __init__(self) -> None:
        self._now = 0
        self._out: list[Command] = []
        self._models: dict[int, Model] = {}
        self._workers: dict[int, Worker] = {}
        self._devices: list[Device] = []
        self._flights: dict[int, Flight] = {}
        self._pendings: dict[int, Pending] = {}
        self._levels: dict[int, int] = {}  # unanswered requests by priority
        self._background: OrderedDict[int, Model] = OrderedDict()  # models with requests without a deadline
        self._queued_bytes = 0
        self._estimates = Estimates()
        self._timers: list[tuple[int, int, Pending | Device]] = []
        self._sequence = 0
        self._action_id = 0
        self._load_id = 0
        self._device_count = 0
        self._wake_ns = NEVER_NS
        self._dirty: dict[Device, None] = {}
        self._counts = {"admitted": 0, "answered": 0, "refused": 0, "missed": 0, "failed": 0, "displaced": 0}

    # ----- the interface -------------------------------------------------------------------------

    def step(self, event: Event) -> list[Command]:
        return self.step_many((event,))

    def step_many(self, events: Iterable[Event]) -> list[Command]:
        self._out = []
        for event in events:
            if event.now_ns > self._now:
                self._now = event.now_ns
            self._handle(event)
        self._settle()
        return self._out

    @abstractmethod
    def _handle(self, event: Event) -> None:
        """One event changes the books."""

    @abstractmethod
    def _expire(self, pending: Pending) -> None:
        """A request reached the time at which something must be done about it."""

    @abstractmethod
    def _dispatch(self, device: Device) -> None:
        """Send a device what it should have now."""

    @abstractmethod
    def _unplan(self, pending: Pending) -> None:
        """Take a request out of the plan it is in."""

    @abstractmethod
    def _check_removed(self, model: Model) -> None:
        """Let go of a draining model once nothing of it is left."""

    def _settle(self) -> None:
        """Timers that are due, then every device that something happened to, then the next wake."""
        now, timers = self._now, self._timers
        while True:
            while timers and timers[0][0] <= now:
                at_ns, _, owner = heappop(timers)
                if type(owner) is Device:
                    if owner.timer_ns == at_ns:
                        owner.timer_ns = NEVER_NS
                        self._dirty[owner] = None
                elif not owner.answered:  # type: ignore[union-attr]
                    self._expire(owner)  # type: ignore[arg-type]
            if not self._dirty:
                break
            dirty, self._dirty = self._dirty, {}
            for device in dirty:
                self._dispatch(device)
                if device.wake_ns != device.timer_ns:
                    device.timer_ns = device.wake_ns
                    if device.wake_ns < NEVER_NS:
                        self._timer(device.wake_ns, device)
        while timers and self._is_stale(timers[0]):
            heappop(timers)
        if len(timers) > 4 * (len(self._pendings) + len(self._devices)) + TIMERS_SLACK:
            self._timers = [one for one in timers if not self._is_stale(one)]
            heapify(self._timers)
        wake = self._timers[0][0] if self._timers else NEVER_NS
        if wake != self._wake_ns:
            self._wake_ns = wake
            if wake < NEVER_NS:
                self._out.append(Wake(wake))

    def _timer(self, at_ns: int, owner: Pending | Device) -> None:
        self._sequence += 1
        heappush(self._timers, (at_ns, self._sequence, owner))

    @staticmethod
    def _is_stale(timer: tuple[int, int, Pending | Device]) -> bool:
        owner = timer[2]
        if isinstance(owner, Device):
            return owner.timer_ns != timer[0]
        return owner.answered

    # ----- requests ------------------------------------------------------------------------------

    def _open(self, pending: Pending) -> None:
        """From now on this request has to be answered."""
        request = pending.request
        self._pendings[request.id] = pending
        self._queued_bytes += request.bytes
        self._levels[request.priority] = self._levels.get(request.priority, 0) + 1
        pending.model.live += 1
        self._counts["admitted"] += 1

    def _close(self, pending: Pending) -> None:
        """It has been answered."""
        request = pending.request
        pending.answered = True
        del self._pendings[request.id]
        self._queued_bytes -= request.bytes
        level = self._levels[request.priority] - 1
        if level:
            self._levels[request.priority] = level
        else:
            del self._levels[request.priority]
        pending.model.live -= 1
        if pending.model.draining and not pending.model.live:
            self._check_removed(pending.model)

    def _refuse(self, request: Request, reason: Reason, text: str, feasible_slo_ns: int = 0, retry_after_ns: int = 0) -> None:  # fmt: skip
        self._counts["refused"] += 1
        self._out.append(
            AnswerFailed(
                request.id, Status.REFUSED, reason, text, max(feasible_slo_ns, 0), max(retry_after_ns, 0)
            )
        )

    def _fail(self, pending: Pending, status: Status, text: str, reason: str = "") -> None:
        """Answer an admitted request that did not succeed, and take it out of wherever it is."""
        if status is Status.DEADLINE_MISSED:
            self._counts["missed"] += 1
        elif status is Status.REFUSED:
            self._counts["displaced"] += 1
        else:
            self._counts["failed"] += 1
        self._out.append(AnswerFailed(pending.request.id, status, reason, text, 0, 0))
        flight = pending.flight
        if flight is None:
            self._unplan(pending)
        self._close(pending)
        if flight is not None and not flight.revoked and flight.batch is not None:
            for mate in flight.batch.pendings:
                if not mate.answered:
                    return
            flight.revoked = True
            self._out.append(SendRevoke(flight.device.worker.worker_id, flight.action_id))

    # ----- what status shows, and what must hold -------------------------------------------------

    def devices(self) -> list[dict[str, Any]]:
        return [
            {
                "worker": device.worker.worker_id,
                "device": device.index,
                "kind": device.kind.partition("/")[0],
                "planned_requests": sum(len(batch.pendings) for batch in device.plan),
                "planned_batches": len(device.plan),
                "planned_ns": device.planned_ns,
                "in_flight": len(device.lane),
                "loading": device.loading,
                "loads_waiting": len(device.pending),
                "pages": device.pages.page_count,
                "pages_free": device.pages.free_count,
                "draining": device.worker.draining,
                "resident": len(device.resident),
                "served": device.served,
            }
            for device in self._devices
        ]

    def whereabouts(self, model_id: int) -> list[tuple[int, int, str]]:
        model = self._models.get(model_id)
        return [
            (one.device.worker.worker_id, one.device.index, one.state.name.lower())
            for one in (model.residencies if model is not None else ())
        ]

    def snapshot(self) -> dict[str, Any]:
        devices = [
            description
            | {
                "resident": {
                    model_id: {
                        "name": one.model.name, "load_id": one.load_id, "state": one.state.name.lower(),
                        "run_starts": list(one.starts), "pages": one.spec.page_count,
                    }
                    for model_id, one in device.resident.items()
                }
            }
            for device, description in zip(self._devices, self.devices())
        ]  # fmt: skip
        models = {
            model.model_id: {
                "name": model.name, "queued": model.live, "served": model.served, "draining": model.draining,
                "workers": list(model.workers),
                "resident": [
                    [one.device.worker.worker_id, one.device.index]
                    for one in model.residencies
                    if one.state is ResidencyState.RESIDENT
                ],
            }
            for model in self._models.values()
        }  # fmt: skip
        return {
            "now_ns": self._now,
            "queued_requests": len(self._pendings),
            "queued_bytes": self._queued_bytes,
            "counts": dict(self._counts),
            "devices": devices,
            "models": models,
        }

    def check_invariants(self) -> None:
        placed: dict[Pending, str] = {}

        def place(pending: Pending, where: str) -> None:
            assert pending not in placed, (
                f"request {pending.request.id} is both {placed[pending]} and {where}"
            )
            placed[pending] = where

        for device in self._devices:
            self._check_device(device)
            for batch in device.plan:
                for pending in batch.pendings:
                    assert pending.batch is batch, "a planned request that names another batch"
                    assert pending.flight is None, "a planned request that is in flight"
                    assert not pending.answered, "an answered request is planned"
                    place(pending, "planned")
        for model in self._models.values():
            for pending in model.background:
                assert pending.deadline_ns >= NEVER_NS, "a request with a deadline waits in the background"
                place(pending, "background")
            assert bool(model.background) == (model.model_id in self._background), "background index is wrong"
            for residency in model.residencies:
                assert residency.device in self._devices, "a residency on a device that left"
        for flight in self._flights.values():
            if flight.batch is not None:
                for pending in flight.batch.pendings:
                    if not pending.answered:
                        assert pending.flight is flight, "a request in a flight that it does not name"
                        place(pending, "in flight")
        assert placed.keys() == set(self._pendings.values()), "a request is nowhere"
        assert self._queued_bytes == sum(pending.request.bytes for pending in placed)
        live: dict[int, int] = {}
        levels: dict[int, int] = {}
        for pending in placed:
            live[pending.model.model_id] = live.get(pending.model.model_id, 0) + 1
            levels[pending.request.priority] = levels.get(pending.request.priority, 0) + 1
        for model in self._models.values():
            assert model.live == live.get(model.model_id, 0), "a model's count of live requests is wrong"
        assert levels == self._levels

    def _check_device(self, device: Device) -> None:
        device.pages.check_invariants()
        used: dict[int, int] = {}
        for model_id, residency in device.resident.items():
            assert residency.state is not ResidencyState.PENDING
            assert residency.model.model_id == model_id
            for start, size in zip(residency.starts, residency.spec.runs, strict=True):
                for page in range(start, start + size):
                    assert page not in used, f"page {page} belongs to models {used[page]} and {model_id}"
                    used[page] = model_id
        assert len(used) + device.pages.free_count == device.pages.page_count, "pages were lost"
        assert device.keys == [batch.key_ns for batch in device.plan]
        assert device.keys == sorted(device.keys), "the plan is out of order"
        assert device.planned_ns == sum(batch.duration_ns for batch in device.plan)
        unready = 0
        for batch in device.plan:
            assert batch.pendings, "an empty batch is planned"
            assert batch.size == sum(pending.size for pending in batch.pendings)
            residency = batch.residency
            assert residency.device is device
            assert residency in residency.model.residencies, "a batch without its model"
            assert batch in residency.batches
            unready += residency.state is not ResidencyState.RESIDENT
        assert unready == device.unready
        for residency in device.pending:
            assert residency.state is ResidencyState.PENDING
        for residency in [*device.resident.values(), *device.pending]:
            assert residency in residency.model.residencies
            assert len(residency.batches) == sum(batch.residency is residency for batch in device.plan)
            flying = sum(flight.residency is residency for flight in device.lane.values())
            assert residency.flying == flying, "a residency's count of flights is wrong"
            assert (residency.ready_ns == 0) == (residency.state is ResidencyState.RESIDENT)

    def _next_action(self) -> int:
        self._action_id += 1
        return self._action_id


__all__ = ["Batch", "Book", "Residency"]
