"""Work for a device whose plan has none: another's, what has no deadline, and shapes to be measured."""

from __future__ import annotations

from bisect import bisect_right

from clockwork.messages import NEVER_NS
from clockwork.scheduler.admission import JOIN_GAIN, Admission
from clockwork.scheduler.estimates import Curve
from clockwork.scheduler.loads import RESIDENT
from clockwork.scheduler.state import Batch, Device, Model, Pending, Residency
from clockwork.scheduler.types import SendProfile, ShapeKey

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

PROFILE_ATTEMPTS_MAX = 3
PROFILE_NS_MAX = 1_000_000_000
"""A shape whose bound is above this is not measured: a device is not held for it."""


class Spare(Admission):
    """How idle time is used."""

    def __init__(self) -> None:
        super().__init__()
        self._round = 0  # where the next search for work to take over begins

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
        if not aged and any(
            (other.has_room(there), other.pages.free_count) > (device.has_room(spec), device.pages.free_count)
            for other, there in self._loadable(model)
            if not (other.lane or other.plan or other.pending or other.loading)
        ):
            return  # which will look at it, too
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
            device.aged_ns = max(device.aged_ns, now) + batch.duration_ns * BACKGROUND_SHARE
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
