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

from clockwork.config import QUEUED_BYTES_MAX, QUEUED_REQUESTS_MAX
from clockwork.messages import NEVER_NS, Reason, Status
from clockwork.scheduler.admission import JOIN_GAIN
from clockwork.scheduler.loads import FEED_NS, OUTSTANDING_MAX, RESIDENT
from clockwork.scheduler.spare import Spare
from clockwork.scheduler.state import Batch, Device, Flight, KindSpec, Model, Pending, Worker
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
    ShapeKey,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)

SCHEDULE_AHEAD_NS = 5_000_000
"""A batch is sent when its device is predicted to be free within this (the paper's value)."""

SKIP_SCAN_MAX = 16
"""Batches looked at behind one whose model is still being loaded."""


class EdfScheduler(Spare):
    """See the module. Implements types.Scheduler."""

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
        elsewhere = {device.kind for other in model.workers for device in self._workers[other].devices}
        model.workers[worker.worker_id] = None
        for device in worker.devices:
            if device.kind not in elsewhere:  # what an earlier worker of the kind said went with it
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
