"""Policy ``edf``: earliest deadline first over explicit plans; admission is a promise.

Each device has a plan: the batches promised on it, in the order of their deadlines. A request is
admitted only if it fits into some device's plan (into a batch of its model, or as a batch of its
own) so that it and everything promised before still finishes in time as predicted; otherwise it is
refused at once. Batches are bound late: the next one is sent when the device is about to be free,
and until then requests may join it.

A request without a deadline is never refused for time and never delays a promise. It runs where a
device would be idle; one that has waited BACKGROUND_AGE_NS gets a share (BACKGROUND_SHARE) of a
device that is never idle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

from clockwork.config import QUEUED_BYTES_MAX, QUEUED_REQUESTS_MAX
from clockwork.messages import NEVER_NS, Reason, Status
from clockwork.scheduler.estimates import Curve
from clockwork.scheduler.loads import FEED_NS, OUTSTANDING_MAX, RESIDENT, Loads
from clockwork.scheduler.state import Batch, Device, Flight, KindSpec, Model, Pending, Residency, Slot, Worker
from clockwork.scheduler.types import (
    ActionDone,
    AnswerOk,
    Arrived,
    Event,
    LinkMeasured,
    ModelGone,
    ModelReady,
    ModelRemoved,
    Request,
    RequestCancelled,
    SendInfer,
    SendProfile,
    ShapeKey,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)

SCHEDULE_AHEAD_NS = 5_000_000
"""A batch is sent when its device is predicted to be free within this (the paper's value)."""

ATTEMPTS_MAX = 3
"""Times that a request is sent, before a failure that is not its own is answered."""

JOIN_GAIN = 50
"""Joining a batch must cost at least 1/50 less than running alone."""

JOIN_SCAN_MAX = 4
"""Batches of its model that an arriving request tries to join."""

SKIP_SCAN_MAX = 16
"""Batches looked at behind one whose model is still being loaded."""

DISPLACE_MAX = 64
"""Requests of lower priority that one arrival may displace."""

LOAD_SCAN_MAX = 4
"""Devices for which a load is planned through, best first."""

STEAL_SCAN_MAX = 16
"""Other devices, and batches of each, that an idle device looks at for work."""

BACKGROUND_SCAN_MAX = 64
"""Models with background requests that an idle device looks at."""

BACKGROUND_AGE_NS = 1_000_000_000
BACKGROUND_SHARE = 10
"""One part in so many of a busy device's time goes to background requests that waited BACKGROUND_AGE_NS."""

BACKGROUND_RETRY_NS = 100_000_000
"""An idle device that could do nothing for the background requests there are looks again after this."""

PROFILE_IDLE_NS = 20_000_000
"""A device that has been idle this long may measure a shape."""

PROFILE_TABLE_MAX = 256
"""Shapes that wait to be measured; the oldest is forgotten first."""

PROFILE_ATTEMPTS_MAX = 3
PROFILE_NS_MAX = 1_000_000_000
"""A shape whose bound is above this is not measured: a device is not held for it."""

WARM_IDLE_NS = 1_000_000_000
"""A refusal that a resident model would have avoided loads it, evicting only what idled this long."""


class EdfScheduler(Loads):
    """See the module. Implements types.Scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self._unmeasured: OrderedDict[tuple[str, str, ShapeKey], tuple[int, int, int]] = OrderedDict()
        self._warmed: dict[int, int] = {}
        self._round = 0

    # ----- events --------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        kind = type(event)
        if kind is Arrived:
            self._arrived(event.request)  # type: ignore[union-attr]
        elif kind is ActionDone:
            self._action_done(event)  # type: ignore[arg-type]
        elif kind is RequestCancelled:
            pending = self._pendings.get(event.request_id)  # type: ignore[union-attr]
            if pending is not None:
                self._fail(pending, Status.CANCELLED, "the request was cancelled")
        elif kind is LinkMeasured:
            worker = self._workers.get(event.worker)  # type: ignore[union-attr]
            if worker is not None:
                worker.there_ns = max(event.there_ns, 0)  # type: ignore[union-attr]
                worker.back_ns = max(event.back_ns, 0)  # type: ignore[union-attr]
        elif kind is ModelReady:
            self._model_ready(event)  # type: ignore[arg-type]
        elif kind is ModelRemoved:
            model = self._models.get(event.model_id)  # type: ignore[union-attr]
            if model is None:
                self._out.append(ModelGone(event.model_id))  # type: ignore[union-attr]
            elif not model.draining:
                model.draining = True
                self._check_removed(model)
        elif kind is WorkerJoined:
            self._worker_joined(event)  # type: ignore[arg-type]
        elif kind is WorkerLeft:
            self._worker_left(event.worker)  # type: ignore[union-attr]
        elif kind is WorkerDraining:
            self._worker_draining(event.worker)  # type: ignore[union-attr]
        else:
            assert kind is Tick, f"unknown event {event!r}"

    def _arrived(self, request: Request) -> None:
        model = self._models.get(request.model_id)
        if model is None or (not model.workers and not model.draining):
            self._refuse(request, Reason.NO_WORKER, "no worker that can serve the model is connected")
            return
        if model.draining:
            self._refuse(request, Reason.DRAINING, f"{model.name} is being unregistered")
            return
        if (
            len(self._pendings) >= QUEUED_REQUESTS_MAX
            or self._queued_bytes + request.bytes > QUEUED_BYTES_MAX
        ):
            text = f"{len(self._pendings)} requests of {self._queued_bytes} bytes are queued"
            self._refuse(request, Reason.OVERLOADED, text)
            return
        pending = Pending(request, model)
        if not model.residencies and not self._fits_somewhere(model):
            usable = any(not self._workers[worker].draining for worker in model.workers)
            if usable:
                self._refuse(request, Reason.MEMORY, f"{model.name} is larger than any device's memory")
            else:
                self._refuse(request, Reason.NO_WORKER, "every worker that has the model is leaving")
            return
        if request.deadline_ns >= NEVER_NS:
            self._open(pending)
            self._to_background(pending)
        elif self._place(pending) or self._displace(pending):
            self._open(pending)
        else:
            self._refuse_in_detail(pending)
            return
        if pending.request.shape and self._is_unseen(model, request.shape):
            self._remember_unseen(model, request)

    def _model_ready(self, event: ModelReady) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            return
        spec = event.spec
        model = self._models.get(spec.model_id)
        if model is None:
            model = self._models[spec.model_id] = Model(spec)
        elif model.draining:
            return
        model.workers[worker.worker_id] = None
        for device in worker.devices:
            if device.kind not in model.specs:
                model.specs[device.kind] = KindSpec(spec, device.kind, self._estimates)
                model.specs[device.kind].program.seed(spec.profile)
            self._dirty[device] = None

    # ----- workers -------------------------------------------------------------------------------

    def _worker_joined(self, event: WorkerJoined) -> None:
        if event.worker in self._workers:
            self._worker_left(event.worker)
        worker = self._workers[event.worker] = Worker(event.worker)
        for index, (kind, page_bytes, page_count, run_ahead) in enumerate(event.devices):
            device = Device(worker, index, self._device_count, kind, page_bytes, page_count, run_ahead)
            device.idle_since_ns = self._now
            self._device_count += 1
            worker.devices.append(device)
            self._devices.append(device)

    def _worker_left(self, worker_id: int) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        worker.draining = True  # nothing that is planned again may land here
        waiting = self._clear_plans(worker)
        for flight in [one for one in self._flights.values() if one.device.worker is worker]:
            del self._flights[flight.action_id]
            if flight.kind == "unload":
                flight.residency.model.unloads -= 1
            if flight.batch is not None:
                waiting += self._take_back(flight)
        touched: dict[int, Model] = {}
        for device in worker.devices:
            for residency in device.resident.values():
                residency.model.residencies.remove(residency)
                touched[residency.model.model_id] = residency.model
            device.wake_ns = NEVER_NS
            self._dirty.pop(device, None)
            self._devices.remove(device)
        for model in list(self._models.values()):
            if model.workers.pop(worker_id, 0) is None:
                touched[model.model_id] = model
        for pending in waiting:
            self._again(pending, Status.UNAVAILABLE, "the worker was lost")
        for model in touched.values():
            self._strand(model)
            if model.draining:
                self._check_removed(model)

    def _worker_draining(self, worker_id: int) -> None:
        worker = self._workers.get(worker_id)
        if worker is None or worker.draining:
            return
        worker.draining = True
        for pending in self._clear_plans(worker):
            self._again(pending, Status.UNAVAILABLE, "the worker is leaving", count=False)
        for model in list(self._models.values()):
            if worker_id in model.workers:
                self._strand(model)

    def _clear_plans(self, worker: Worker) -> list[Pending]:
        """Take everything that was not sent off a worker's devices; returns the requests, in order."""
        waiting: list[Pending] = []
        for device in worker.devices:
            for batch in list(device.plan):
                device.remove(batch, 0)
                for pending in batch.pendings:
                    pending.batch = None
                    waiting.append(pending)
            for residency in list(device.pending):
                self._drop_load(residency)
        return waiting

    def _strand(self, model: Model) -> None:
        """Answer the background requests of a model that nobody can serve any more; find others a device."""
        if not model.background:
            return
        if any(one.device.usable for one in model.residencies) or self._loadable(model):
            self._wake_devices(model)
            return
        for pending in list(model.background):
            self._fail(pending, Status.UNAVAILABLE, "no worker that can serve the model is left")

    # ----- admission -----------------------------------------------------------------------------

    def _place(self, pending: Pending) -> bool:
        """Promise a request its deadline on the device that finishes it first. False if none can."""
        best: Slot | None = None
        chosen: Residency | None = None
        for residency in pending.model.residencies:
            if residency.doomed or residency.device.worker.draining:
                continue
            slot = self._slot(residency, pending)
            if slot is not None and (best is None or slot[0] < best[0]):
                best, chosen = slot, residency
        if best is None or chosen is None:
            return self._place_cold(pending)
        self._commit(pending, chosen, best)
        return True

    def _slot(self, residency: Residency, pending: Pending) -> Slot | None:
        """Where in the plan of this residency's device the request can go, every promise kept."""
        device = residency.device
        shape, size, deadline = pending.request.shape, pending.size, pending.deadline_ns
        spec = residency.spec
        curve = spec.program.curves.get(shape)
        duration = curve.planned_ns(size) if curve is not None else spec.program.bound_ns(shape, size)
        if not duration:
            return None
        limit = deadline - device.worker.back_ns
        free = device.free_ns(self._now)
        if free + duration > limit:
            return None
        plan = device.plan
        if curve is not None and spec.batch_max > 1 and residency.batches and not pending.alone:
            for batch in residency.batches[: -JOIN_SCAN_MAX - 1 : -1]:
                total = batch.size + size
                if total > spec.batch_max or batch.shape != shape or batch.pendings[0].alone:
                    continue
                growth = curve.planned_ns(total) - batch.duration_ns
                if growth * JOIN_GAIN > duration * (JOIN_GAIN - 1):
                    continue
                index = len(plan) if plan[-1] is batch else plan.index(batch) + 1
                finish = device.finish_ns(free, index) + growth
                if finish <= limit and finish <= batch.limit_ns and device.holds(finish, index):
                    if device.pending and not self._keeps_loads(device, free, index, growth):
                        continue
                    return finish, index - 1, batch
        index = self._place_of(residency, deadline)
        start = device.finish_ns(free, index)
        ready = residency.ready_ns
        finish = (start if start > ready else ready) + duration
        if finish > limit or not device.holds(finish, index):
            return None
        if device.pending and not self._keeps_loads(device, free, index, duration):
            return None
        return finish, index, None

    @staticmethod
    def _place_of(residency: Residency, deadline: int) -> int:
        """The index in the plan for a new batch: by deadline, but behind the work that its load waits for."""
        device = residency.device
        index = bisect_right(device.keys, deadline)
        if residency.victims:
            for place in range(len(device.plan) - 1, index - 1, -1):
                if device.plan[place].residency in residency.victims:
                    return place + 1
        return index

    def _keeps_loads(self, device: Device, free: int, index: int, added: int) -> bool:
        """Whether loads that wait for victims still come in time if work is added before the plan's index.

        Work before the last batch of a doomed model delays all that waits for its pages.
        """
        if not self._delays_loads(device, index):
            return True
        for waiting in device.pending:
            if waiting.clear_ns:
                waiting.ready_ns += added
        holds = device.holds(free + added, 0)  # added in front of all: at least as hard as where it goes
        for waiting in device.pending:
            if waiting.clear_ns:
                waiting.ready_ns -= added
        return holds

    @staticmethod
    def _delays_loads(device: Device, index: int) -> bool:
        return any(batch.residency.doomed for batch in device.plan[index:])

    def _commit(self, pending: Pending, residency: Residency, slot: Slot) -> None:
        device = residency.device
        _, index, batch = slot
        shape = pending.request.shape
        limit = pending.deadline_ns - device.worker.back_ns
        planned = device.planned_ns
        if batch is None:
            curve = residency.spec.program.curves.get(shape)
            key = max(pending.deadline_ns, device.keys[index - 1]) if index else pending.deadline_ns
            batch = Batch(residency, shape, curve, key)
            batch.size = pending.size
            batch.duration_ns = curve.planned_ns(batch.size) if curve is not None else residency.spec.alone_ns(shape, batch.size)  # fmt: skip
            batch.limit_ns = limit
            device.insert(index, batch)
        else:
            device.resize(batch, batch.size + pending.size)
            if limit < batch.limit_ns:
                batch.limit_ns = limit
        batch.pendings.append(pending)
        pending.batch = batch
        if device.pending and self._delays_loads(device, index + 1):
            for waiting in device.pending:
                if waiting.clear_ns:
                    waiting.clear_ns += device.planned_ns - planned
            self._retime_loads(device)
        if residency.state is RESIDENT:
            device.resident.move_to_end(pending.model.model_id)
        self._dirty[device] = None
        self._timer(max(limit - batch.duration_ns, self._now + 1), pending)

    def _place_cold(self, pending: Pending) -> bool:
        """Promise it on a device onto which the model has to be loaded first."""
        model = pending.model
        shape, deadline = pending.request.shape, pending.deadline_ns
        found: list[tuple[int, int, Device, KindSpec]] = []
        for device, spec in self._loadable(model):
            load, alone = spec.load_planned_ns(model.model_id), spec.alone_ns(shape, pending.size)
            worker = device.worker
            start = max(worker.link_free_ns, self._now + worker.there_ns)
            if alone and start + load + alone + worker.back_ns <= deadline:
                waiting = sum(one.spec.load_planned_ns(one.model.model_id) for one in device.pending)
                found.append((start + waiting + load + device.planned_ns, device.number, device, spec))
        found.sort(key=lambda one: one[:2])
        for _, _, device, spec in found[:LOAD_SCAN_MAX]:
            residency = self._propose_load(device, model, spec, deadline, doom=True)
            if residency is None:
                continue
            slot = self._slot(residency, pending)
            if slot is not None and (len(device.pending) == 1 or device.holds(device.free_ns(self._now), 0)):
                self._accept_load(residency)
                self._commit(pending, residency, slot)
                return True
            self._drop_load(residency)
        return False

    def _loadable(self, model: Model) -> list[tuple[Device, KindSpec]]:
        """Devices that the model is not on, but could be."""
        taken = [residency.device for residency in model.residencies]
        found = []
        for worker_id in model.workers:
            worker = self._workers[worker_id]
            if worker.draining:
                continue
            for device in worker.devices:
                spec = model.specs.get(device.kind)
                if spec is not None and device not in taken and device.pages.fits(spec.runs):
                    found.append((device, spec))
        return found

    def _fits_somewhere(self, model: Model) -> bool:
        return bool(self._loadable(model))

    # ----- refusal -------------------------------------------------------------------------------

    def _refuse_in_detail(self, pending: Pending) -> None:
        """Say why, which SLO would have been admitted, and when this one might be."""
        request, model, now = pending.request, pending.model, self._now
        shape, size, deadline = request.shape, pending.size, pending.deadline_ns
        least = NEVER_NS
        alone_least = NEVER_NS  # on an idle device that holds the model
        for residency in model.residencies:
            duration = residency.spec.alone_ns(shape, size)
            worker = residency.device.worker
            if not duration or worker.draining:
                continue
            alone_least = min(alone_least, worker.there_ns + duration + worker.back_ns)
            at_ns = self._least_finish_ns(residency, duration)
            if residency.doomed:
                at_ns += residency.spec.load_planned_ns(model.model_id)
            least = min(least, at_ns)
        for device, spec in self._loadable(model):
            duration = spec.alone_ns(shape, size)
            if not duration:
                continue
            worker = device.worker
            alone_least = min(alone_least, worker.there_ns + duration + worker.back_ns)
            start = max(worker.link_free_ns, now + worker.there_ns)
            start += sum(one.spec.load_planned_ns(one.model.model_id) for one in device.pending)
            loaded = start + spec.load_planned_ns(model.model_id) + worker.back_ns + worker.there_ns
            tail = device.finish_ns(device.free_ns(now), len(device.plan))
            least = min(least, max(loaded, tail) + duration + worker.back_ns)
        unseen = self._is_unseen(model, shape)
        if unseen:
            self._remember_unseen(model, request)
        slo = deadline - request.arrived_ns
        if least >= NEVER_NS:
            if unseen:
                text = (
                    f"{model.name} was never measured with this input shape; it will be when a device is idle"
                )
                self._refuse(request, Reason.UNPROFILED, text)
            else:
                self._refuse(
                    request, Reason.DEADLINE, f"{model.name} cannot be placed on any device now", 0, 0
                )
            return
        feasible = max(least - request.arrived_ns, slo + 1)
        if unseen:
            text = f"{model.name} was never measured with this input shape, and its bound of {feasible / 1e6:.1f} ms is above the SLO"
            self._refuse(request, Reason.UNPROFILED, text, feasible)
        elif alone_least > slo:
            text = f"{model.name} takes {alone_least / 1e6:.1f} ms on an idle device, the SLO is {slo / 1e6:.1f} ms"
            self._refuse(request, Reason.INFEASIBLE, text, max(alone_least, slo + 1))
        else:
            text = f"{model.name} could be answered in {feasible / 1e6:.1f} ms, the SLO is {slo / 1e6:.1f} ms"
            self._refuse(request, Reason.DEADLINE, text, feasible, max(least - deadline, 1))
            if not model.residencies:
                self._warm(model)

    def _least_finish_ns(self, residency: Residency, duration: int) -> int:
        """The earliest deadline that would be admitted on this residency's device now."""
        device = residency.device
        plan, back = device.plan, device.worker.back_ns
        time = device.free_ns(self._now)
        ready = residency.ready_ns
        tail = device.finish_ns(time, len(plan))
        if not plan or plan[-1].limit_ns - tail < duration:
            return max(max(tail, ready) + duration + back, device.keys[-1] if plan else 0)
        finishes = [time]
        for batch in plan:
            one = batch.residency.ready_ns
            time = (time if time > one else one) + batch.duration_ns
            finishes.append(time)
        index = len(plan)
        while index > 0 and plan[index - 1].limit_ns - finishes[index] >= duration:
            index -= 1
        return max(max(finishes[index], ready) + duration + back, device.keys[index - 1] if index else 0)

    def _is_unseen(self, model: Model, shape: ShapeKey) -> bool:
        return not any(spec.program.is_profiled(shape) for spec in model.specs.values())

    def _remember_unseen(self, model: Model, request: Request) -> None:
        for kind, spec in model.specs.items():
            key = (spec.program_name, kind, request.shape)
            if key not in self._unmeasured:
                if len(self._unmeasured) >= PROFILE_TABLE_MAX:
                    self._unmeasured.popitem(last=False)
                self._unmeasured[key] = (model.model_id, request.rows if model.batches else 1, 0)
                for device in self._devices:
                    if device.kind == kind:
                        self._dirty[device] = None

    def _warm(self, model: Model) -> None:
        """Load a model that could not be promised because it is not resident; the next request may."""
        for device, spec in self._loadable(model):
            if not device.loading and not device.pending and self._load_idly(device, model, spec):
                return

    def _load_idly(self, device: Device, model: Model, spec: KindSpec) -> bool:
        """Load into free pages, or those of models that have idled long. False if there are none."""
        starts = self._make_room(device, spec.runs, (), self._now - WARM_IDLE_NS)
        if starts is None:
            return False
        residency = Residency(model, device, spec, NEVER_NS)
        model.residencies.append(residency)
        device.pending.append(residency)
        self._send_load(residency, starts)
        return True

    # ----- displacement --------------------------------------------------------------------------

    def _displace(self, pending: Pending) -> bool:
        """Make room by displacing requests of lower priority: the lowest first, then the latest deadline."""
        if max(self._levels, default=0) <= pending.request.priority:
            return False
        for residency in pending.model.residencies:
            if residency.doomed or residency.device.worker.draining:
                continue
            victims = self._victims(residency, pending)
            if not victims:
                continue
            self._answer_displaced(victims)
            slot = self._slot(residency, pending)
            if slot is not None:
                self._commit(pending, residency, slot)
                return True
        for device, spec in self._loadable(pending.model)[:LOAD_SCAN_MAX]:
            proposed = self._propose_load(device, pending.model, spec, pending.deadline_ns, doom=True)
            if proposed is None:
                continue
            victims = self._victims(proposed, pending)
            if victims:
                self._accept_load(proposed)
                self._answer_displaced(victims)
                slot = self._slot(proposed, pending)
                if slot is not None:
                    self._commit(pending, proposed, slot)
                    return True
            if proposed in device.pending:
                self._drop_load(proposed)
        return False

    def _answer_displaced(self, victims: list[Pending]) -> None:
        for victim in victims:
            text = "a request of higher priority took its place"
            self._fail(victim, Status.REFUSED, text, Reason.DISPLACED)

    def _victims(self, residency: Residency, pending: Pending) -> list[Pending]:
        """The requests whose displacement makes room for this one; empty if none do."""
        device, level = residency.device, pending.request.priority
        duration = residency.spec.alone_ns(pending.request.shape, pending.size)
        limit = pending.deadline_ns - device.worker.back_ns
        free = device.free_ns(self._now)
        if not duration or max(free, residency.ready_ns) + duration > limit:
            return []
        candidates = [
            (-one.request.priority, -one.deadline_ns, -order, one)
            for order, batch in enumerate(device.plan)
            for one in batch.pendings
            if one.request.priority > level
        ]
        candidates.sort(key=lambda one: one[:3])
        index = self._place_of(residency, pending.deadline_ns)
        gone: dict[Pending, None] = {}

        def fits() -> bool:
            time = free
            for place in range(len(device.plan) + 1):
                if place == index:
                    time = max(time, residency.ready_ns) + duration
                    if time > limit:
                        return False
                if place == len(device.plan):
                    return True
                batch = device.plan[place]
                size = batch.size
                for one in batch.pendings:
                    if one in gone:
                        size -= one.size
                if size:
                    length = (
                        batch.duration_ns
                        if size == batch.size
                        else batch.residency.spec.alone_ns(batch.shape, size)
                    )
                    time = max(time, batch.residency.ready_ns) + length
                    if time > batch.limit_ns and place >= index:
                        return False
            return True

        for _, _, _, victim in candidates[:DISPLACE_MAX]:
            gone[victim] = None
            if fits():
                break
        else:
            return []
        for victim in list(gone):  # whoever need not go stays, the highest of them last
            del gone[victim]
            if not fits():
                gone[victim] = None
        return list(gone)

    # ----- leaving the plan ----------------------------------------------------------------------

    def _unplan(self, pending: Pending) -> None:
        batch = pending.batch
        if batch is None:
            model = pending.model
            if pending in model.background:
                model.background.remove(pending)
                if not model.background:
                    del self._background[model.model_id]
            return
        pending.batch = None
        batch.pendings.remove(pending)
        residency = batch.residency
        device = residency.device
        self._dirty[device] = None
        if not batch.pendings:
            device.remove(batch)
        else:
            device.resize(batch, batch.size - pending.size)
            batch.limit_ns = min(one.deadline_ns for one in batch.pendings) - device.worker.back_ns

    def _expire(self, pending: Pending) -> None:
        now, deadline = self._now, pending.deadline_ns
        if now >= deadline:
            self._fail(pending, Status.DEADLINE_MISSED, "the deadline passed")
            return
        batch = pending.batch
        at_ns = deadline
        if batch is not None:
            worker = batch.residency.device.worker
            last = deadline - worker.there_ns - worker.back_ns - self._expected_ns(batch, pending.size)
            if now > last:
                self._fail(pending, Status.DEADLINE_MISSED, "it could no longer be answered by its deadline")
                return
            at_ns = last + 1
        self._timer(at_ns, pending)

    def _again(self, pending: Pending, status: Status, text: str, count: bool = True) -> None:
        """Plan a request once more whose action came to nothing, or answer it."""
        if pending.answered:
            return
        pending.text = text
        pending.attempts += count
        if pending.attempts < ATTEMPTS_MAX:
            if pending.deadline_ns >= NEVER_NS:
                if pending.model.workers:
                    self._to_background(pending, first=True)
                    return
            elif pending.model.workers and self._place(pending):
                return
        self._fail(pending, status, text)

    def _take_back(self, flight: Flight) -> list[Pending]:
        """The unanswered requests of a flight that ended, free to be planned again."""
        assert flight.batch is not None
        waiting = []
        for pending in flight.batch.pendings:
            if not pending.answered:
                pending.flight = None
                waiting.append(pending)
        return waiting

    def _to_background(self, pending: Pending, first: bool = False) -> None:
        model = pending.model
        if first:
            model.background.appendleft(pending)
        else:
            model.background.append(pending)
        self._background[model.model_id] = model
        self._wake_devices(model)

    def _wake_devices(self, model: Model) -> None:
        """Have every device that could serve the model's background requests look at them."""
        for residency in model.residencies:
            self._dirty[residency.device] = None
        if not model.residencies:
            for device, _ in self._loadable(model):
                self._dirty[device] = None

    # ----- dispatch ------------------------------------------------------------------------------

    def _dispatch(self, device: Device) -> None:
        """Send a device what it should do next, as far ahead as it needs."""
        now, worker = self._now, device.worker
        device.wake_ns = NEVER_NS
        if worker.draining:
            return
        if device.pending:
            self._start_loads(device)
        if self._background and device.plan:
            self._promote(device)
        while True:
            lane = len(device.lane)
            free = device.free_ns(now)
            if lane >= device.run_ahead:
                # One more must be under way before the results are back, or the device waits a round trip.
                due = free - worker.there_ns - worker.back_ns - FEED_NS
                if lane >= OUTSTANDING_MAX or due > now:
                    if lane < OUTSTANDING_MAX and (device.plan or self._background):
                        device.wake_ns = min(device.wake_ns, due)
                    return
            due = free - worker.there_ns - SCHEDULE_AHEAD_NS
            if due > now:
                if device.plan or self._background:
                    device.wake_ns = min(device.wake_ns, due)
                return
            batch = self._pick(device, free) if device.plan else None
            if batch is None:
                batch = self._fill(device, free)
                if batch is None:
                    return
            if self._trim(device, batch, free):
                self._top_up(device, batch, free)
                self._send_batch(device, batch)

    def _pick(self, device: Device, free: int) -> Batch | None:
        """The batch to send: the first, unless its model is still on its way and another can go before it."""
        plan = device.plan
        if not device.unready or plan[0].residency.state is RESIDENT:
            return plan[0]
        for place in range(1, min(len(plan), SKIP_SCAN_MAX)):
            batch = plan[place]
            if batch.residency.state is RESIDENT and self._may_skip(device, free, place):
                return batch
        if device.pending:
            for batch in plan:  # what the pages are waited for goes first, whatever it costs
                if batch.residency.doomed and batch.residency.state is RESIDENT:
                    return batch
        return None

    def _may_skip(self, device: Device, free: int, place: int) -> bool:
        """Whether what lies before this batch still makes its limits if this one goes first."""
        time = free + device.plan[place].duration_ns
        for batch in device.plan[:place]:
            ready = batch.residency.ready_ns
            time = (time if time > ready else ready) + batch.duration_ns
            if time > batch.limit_ns:
                return False
        return True

    def _expected_ns(self, batch: Batch, size: int) -> int:
        if batch.curve is not None:
            return batch.curve.exec_ns(size)
        return batch.duration_ns

    def _trim(self, device: Device, batch: Batch, free: int) -> bool:
        """Make a batch small enough for its tightest deadline. False if nothing of it is left to send."""
        now, worker = self._now, device.worker
        left: list[Pending] = []
        while batch.pendings:
            tightest = min(batch.pendings, key=lambda one: one.deadline_ns)
            slack = tightest.deadline_ns - worker.back_ns
            if free + self._expected_ns(batch, batch.size) <= slack:
                break
            alone = self._expected_ns(batch, tightest.size)
            if now + worker.there_ns + alone > slack:
                self._fail(tightest, Status.DEADLINE_MISSED, "it could no longer be answered by its deadline")
            elif len(batch.pendings) == 1:
                break
            elif free + alone > slack:  # hopeful at best: it must not take the others with it
                self._fail(tightest, Status.DEADLINE_MISSED, "it could no longer be answered by its deadline")
            else:
                latest = max(batch.pendings, key=lambda one: one.deadline_ns)
                self._unplan(latest)
                left.append(latest)
        for pending in left:
            self._again(
                pending, Status.DEADLINE_MISSED, "it could no longer be answered by its deadline", count=False
            )
        return bool(batch.pendings)

    def _top_up(self, device: Device, batch: Batch, free: int) -> None:
        """Fill a batch that is about to be sent with what waits for the same model and shape."""
        residency, curve, model = batch.residency, batch.curve, batch.residency.model
        batch_max = residency.spec.batch_max
        if curve is None or batch.size >= batch_max or batch.pendings[0].alone:
            return
        if len(residency.batches) > 1:
            for other in [one for one in residency.batches if one is not batch and one.shape == batch.shape]:
                for pending in list(other.pendings):
                    if batch.size >= batch_max:
                        return
                    if self._gains(device, batch, pending, free):
                        self._unplan(pending)
                        self._append(device, batch, pending)
        while model.background and batch.size < batch_max:
            pending = model.background[0]
            if (
                pending.request.shape != batch.shape
                or pending.alone
                or not self._gains(device, batch, pending, free)
            ):
                return
            self._unplan(pending)
            self._append(device, batch, pending)

    def _gains(self, device: Device, batch: Batch, pending: Pending, free: int) -> bool:
        """Whether taking this request along costs less than running it alone, and breaks no promise."""
        curve, total = batch.curve, batch.size + pending.size
        assert curve is not None
        if device.pending or pending.alone or total > batch.residency.spec.batch_max:
            return False
        duration = curve.planned_ns(total)
        if (duration - batch.duration_ns) * JOIN_GAIN > curve.planned_ns(pending.size) * (JOIN_GAIN - 1):
            return False
        finish = free + duration
        if finish > min(batch.limit_ns, pending.deadline_ns - device.worker.back_ns):
            return False
        time = finish
        for other in device.plan:
            if other is not batch:
                ready = other.residency.ready_ns
                time = (time if time > ready else ready) + other.duration_ns
                if time > other.limit_ns:
                    return False
        return True

    def _append(self, device: Device, batch: Batch, pending: Pending) -> None:
        device.resize(batch, batch.size + pending.size)
        batch.limit_ns = min(batch.limit_ns, pending.deadline_ns - device.worker.back_ns)
        batch.pendings.append(pending)
        pending.batch = batch

    def _send_batch(self, device: Device, batch: Batch) -> None:
        now, worker, residency = self._now, device.worker, batch.residency
        plan = device.plan
        device.remove(batch, 0 if plan[0] is batch else -1)
        expected = self._expected_ns(batch, batch.size)
        deadline = NEVER_NS
        requests = []
        for part, pending in enumerate(batch.pendings):
            if pending.deadline_ns < deadline:
                deadline = pending.deadline_ns
            pending.batch = None
            pending.part = part
            requests.append(pending.request.id)
        latest = deadline - expected - worker.back_ns if deadline < NEVER_NS else NEVER_NS
        flight = self._fly(device, "infer", residency, batch, expected, batch.duration_ns)
        for pending in batch.pendings:
            pending.flight = flight
        self._out.append(
            SendInfer(
                worker.worker_id, device.index, flight.action_id, residency.model.model_id, residency.load_id,
                tuple(requests), now, latest, expected,
            )
        )  # fmt: skip

    def _fly(
        self,
        device: Device,
        kind: str,
        residency: Residency,
        batch: Batch | None,
        expected: int,
        duration: int,
    ) -> Flight:
        """Enter an action of the execute lane in the books."""
        now = self._now
        flight = Flight(self._next_action(), kind, device, residency, batch, expected, duration, now)
        self._flights[flight.action_id] = flight
        device.lane_end_ns = device.free_ns(now) + duration
        if not device.lane:
            device.head_end_ns = device.lane_end_ns
        device.lane[flight.action_id] = flight
        residency.flying += 1
        residency.used_ns = now
        device.resident.move_to_end(residency.model.model_id)
        return flight

    # ----- work for a device whose plan has none ---------------------------------------------------

    def _fill(self, device: Device, free: int) -> Batch | None:
        """Something to do for a device that would be idle: another's work, then background, then measuring."""
        if len(self._devices) > 1 and not device.lane:
            batch = self._steal(device, free)
            if batch is not None:
                return batch
        if self._background:
            batch = self._from_background(device, free)
            if batch is not None:
                return batch
            if self._background:  # memory may be short, or another device have the model
                device.wake_ns = min(device.wake_ns, self._now + BACKGROUND_RETRY_NS)
        if self._unmeasured and not device.lane and not device.plan:
            self._measure(device)
        return None

    def _steal(self, device: Device, free: int) -> Batch | None:
        """Take over a batch that another device has planned and this one can run at once."""
        count = len(self._devices)
        self._round += 1
        for offset in range(min(count, STEAL_SCAN_MAX)):
            other = self._devices[(self._round + offset) % count]
            if other is device or not other.plan:
                continue
            if not other.lane and other.plan[0].residency.state is RESIDENT and len(other.plan) == 1:
                continue  # it is about to be sent
            for batch in other.plan[:STEAL_SCAN_MAX]:
                here = device.resident.get(batch.residency.model.model_id)
                if here is None or here.state is not RESIDENT or here.doomed:
                    continue
                curve = here.spec.program.curves.get(batch.shape)
                if curve is None or (batch.size > here.spec.batch_max and len(batch.pendings) > 1):
                    continue
                deadline = min(one.deadline_ns for one in batch.pendings)
                duration = curve.planned_ns(batch.size)
                limit = deadline - device.worker.back_ns if deadline < NEVER_NS else NEVER_NS
                if free + duration > limit or not device.holds(free + duration, 0):
                    continue
                other.remove(batch)
                self._dirty[other] = None
                return self._enter(device, here, batch.shape, curve, batch.pendings, duration, limit)
        return None

    def _enter(
        self, device: Device, residency: Residency, shape: ShapeKey, curve: Curve | None,
        pendings: list[Pending], duration: int, limit: int, index: int = -1,
    ) -> Batch:  # fmt: skip
        """Enter a batch in a device's plan, at the end if not told otherwise."""
        index = len(device.plan) if index < 0 else index
        key = device.keys[index - 1] if index else 0
        if limit < NEVER_NS:
            key = max(key, min(one.deadline_ns for one in pendings))
        batch = Batch(residency, shape, curve, key)
        batch.pendings = pendings
        batch.size = sum(one.size for one in pendings)
        batch.duration_ns = duration
        batch.limit_ns = limit
        for pending in pendings:
            pending.batch = batch
        device.insert(index, batch)
        return batch

    def _from_background(self, device: Device, free: int) -> Batch | None:
        """The oldest background requests whose model is here, as many as fit one batch."""
        for model in list(self._background.values())[:BACKGROUND_SCAN_MAX]:
            residency = device.resident.get(model.model_id)
            if residency is not None and residency.state is RESIDENT and not residency.doomed:
                batch = self._background_batch(device, residency, free)
                if batch is not None:
                    return batch
            elif residency is None and not device.pending and not device.loading:
                self._load_background(device, model)
        return None

    def _load_background(self, device: Device, model: Model) -> None:
        aged = self._now - model.background[0].request.arrived_ns > BACKGROUND_AGE_NS
        if model.residencies and not aged:
            return
        spec = model.specs.get(device.kind)
        if spec is None or device.worker.worker_id not in model.workers or not device.pages.fits(spec.runs):
            return
        if any(one.device is device for one in model.residencies):
            return
        residency = self._propose_load(device, model, spec, self._now + BACKGROUND_AGE_NS, doom=aged)
        if residency is not None:
            self._accept_load(residency)

    def _background_batch(
        self, device: Device, residency: Residency, free: int, index: int = -1
    ) -> Batch | None:
        """The model's oldest background requests as a batch in the plan; at ``index`` if that keeps what is
        behind, else at the end. None if the batch would delay what is planned: it is to run from ``free`` on.
        """
        model, spec = residency.model, residency.spec
        queue = model.background
        shape = queue[0].request.shape
        curve = spec.program.curves.get(shape)
        size = queue[0].size
        count = 1
        if curve is not None and not queue[0].alone:
            duration = curve.planned_ns(size)
            for pending in queue:
                if pending is queue[0]:
                    continue
                total = size + pending.size
                if total > spec.batch_max or pending.request.shape != shape or pending.alone:
                    break
                growth = curve.planned_ns(total) - duration
                if growth * JOIN_GAIN > curve.planned_ns(pending.size) * (JOIN_GAIN - 1):
                    break
                size, duration, count = total, duration + growth, count + 1
        # Without a profile or a bound the duration is anyone's guess; the request has time.
        duration = spec.alone_ns(shape, size) or PROFILE_NS_MAX
        if index >= 0:
            if not device.holds(device.finish_ns(free, index) + duration, index):
                index = -1
        elif device.plan and not device.holds(free + duration, 0):
            return None
        pendings = [queue.popleft() for _ in range(count)]
        if not queue:
            del self._background[model.model_id]
        else:
            self._background.move_to_end(model.model_id)
        return self._enter(device, residency, shape, curve, pendings, duration, NEVER_NS, index)

    def _promote(self, device: Device) -> None:
        """Give a background batch that waited long a place in a plan that never ends, where it breaks no promise."""
        now = self._now
        if now < device.aged_ns:
            return
        for model in list(self._background.values())[:BACKGROUND_SCAN_MAX]:
            if now - model.background[0].request.arrived_ns < BACKGROUND_AGE_NS:
                continue
            residency = device.resident.get(model.model_id)
            if residency is None:
                if not device.pending and not device.loading:
                    self._load_background(device, model)
                continue
            if residency.state is not RESIDENT or residency.doomed:
                continue
            place = bisect_right(device.keys, now + BACKGROUND_AGE_NS)
            batch = self._background_batch(device, residency, device.free_ns(now), place)
            assert batch is not None
            device.aged_ns = (
                max(device.aged_ns, now) + batch.duration_ns * BACKGROUND_SHARE
            )
            return

    def _measure(self, device: Device) -> None:
        """Measure a shape that requests have come with, if the device has been idle for a while."""
        due = device.idle_since_ns + PROFILE_IDLE_NS
        if due > self._now:
            device.wake_ns = min(device.wake_ns, due)
            return
        for key, (model_id, rows, attempts) in list(self._unmeasured.items()):
            _, kind, shape = key
            if kind != device.kind:
                continue
            model = self._models.get(model_id)
            spec = model.specs.get(kind) if model is not None else None
            if model is None or spec is None or model.draining or spec.program.is_profiled(shape):
                del self._unmeasured[key]
                continue
            bound = spec.program.bound_ns(shape, rows)
            if not bound or bound > PROFILE_NS_MAX or attempts >= PROFILE_ATTEMPTS_MAX:
                if attempts >= PROFILE_ATTEMPTS_MAX or bound:
                    del self._unmeasured[key]
                    continue
                bound = PROFILE_NS_MAX
            residency = device.resident.get(model_id)
            if residency is None:
                if device.worker.worker_id in model.workers and not model.residencies and not device.loading:
                    if device.pages.fits(spec.runs):
                        self._load_idly(device, model, spec)
                    return
                continue
            if residency.state is not RESIDENT or residency.doomed:
                continue
            self._unmeasured[key] = (model_id, rows, attempts + 1)
            batch = Batch(residency, shape, None, NEVER_NS)
            batch.size = rows
            flight = self._fly(device, "profile", residency, batch, bound, bound)
            self._out.append(
                SendProfile(
                    device.worker.worker_id, device.index, flight.action_id, model_id, residency.load_id, rows, shape,
                    self._now, NEVER_NS, bound,
                )
            )  # fmt: skip
            return

    # ----- results -------------------------------------------------------------------------------

    def _action_done(self, event: ActionDone) -> None:
        flight = self._flights.get(event.action_id)
        if flight is None or flight.device.worker.worker_id != event.worker:
            return  # an answer to an action that was given up
        del self._flights[event.action_id]
        device = flight.device
        self._dirty[device] = None
        if flight.kind == "load":
            self._load_done(flight, event)
            return
        if flight.kind == "unload":
            self._unload_done(flight, event)
            return
        flight.revoked = True  # it has ended
        self._leave_lane(flight, event)
        residency, batch = flight.residency, flight.batch
        assert batch is not None
        model = residency.model
        if event.status is Status.OK:
            took = event.duration_ns or event.end_ns - event.begin_ns
            if residency.spec.program.measure(batch.shape, batch.size, took):
                self._retime(device.kind, residency.spec, batch.shape)
            if flight.kind == "infer":
                self._answer(flight, event)
        elif flight.kind == "infer":
            self._infer_failed(flight, event)
        if model.draining:
            self._check_removed(model)

    def _leave_lane(self, flight: Flight, event: ActionDone) -> None:
        device, worker = flight.device, flight.device.worker
        first = next(iter(device.lane)) == flight.action_id
        del device.lane[flight.action_id]
        flight.residency.flying -= 1
        if not device.lane:
            device.idle_since_ns = self._now
        elif first:
            device.retime_lane(event.end_ns if 0 < event.end_ns <= self._now else self._now - worker.back_ns)
        else:
            device.lane_end_ns -= flight.duration_ns

    def _answer(self, flight: Flight, event: ActionDone) -> None:
        now = self._now
        assert flight.batch is not None
        for part, pending in enumerate(flight.batch.pendings):
            if pending.answered:
                continue
            if now > pending.deadline_ns:
                self._fail(pending, Status.DEADLINE_MISSED, "the result came after the deadline")
                continue
            request = pending.request
            waited = max(event.begin_ns - request.arrived_ns - pending.load_ns, 0)
            self._out.append(
                AnswerOk(request.id, event.action_id, part, waited, pending.load_ns, event.duration_ns)
            )
            pending.model.served += 1
            flight.device.served += 1
            self._counts["answered"] += 1
            self._close(pending)

    def _infer_failed(self, flight: Flight, event: ActionDone) -> None:
        status = event.status
        waiting = self._take_back(flight)
        if status is Status.EXECUTION_FAILED or status is Status.INVALID_INPUT:
            for pending in waiting:
                if len(flight.batch.pendings) == 1:  # type: ignore[union-attr]
                    self._fail(pending, status, event.text or "the model failed on this input")
                else:
                    pending.alone = True
                    self._again(
                        pending, Status.DEADLINE_MISSED, "the batch that it was in failed", count=False
                    )
            return
        text = event.text or status.name.lower().replace("_", " ")
        final = Status.UNAVAILABLE
        if status in (Status.TOO_LATE, Status.ACTION_CANCELLED):
            final, text = Status.DEADLINE_MISSED, "it could no longer be answered by its deadline"
        if status in (Status.NOT_RESIDENT, Status.UNKNOWN_MODEL):
            residency = flight.residency
            if flight.device.resident.get(residency.model.model_id) is residency:
                planned = self._lose_residency(residency)
                for pending in planned:
                    self._again(pending, final, text, count=False)
        for pending in waiting:
            self._again(pending, final, text)

    def _retime(self, kind: str, spec: KindSpec, shape: ShapeKey) -> None:
        """New estimates were published: time the plans that use them anew."""
        curve = spec.program.curves.get(shape)
        for device in self._devices:
            if device.kind != kind:
                continue
            for batch in device.plan:
                if batch.residency.spec.program is spec.program and batch.shape == shape:
                    batch.curve = curve
                    device.resize(batch, batch.size)
