"""Admission: a request is promised its deadline, or refused at once.

It is admitted only if it fits into some device's plan, into a batch of its model or as a batch of
its own, so that it and everything promised before still finishes in time as predicted. A higher
priority may displace lower ones that were not sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

from clockwork.messages import NEVER_NS, Reason, Status
from clockwork.scheduler.loads import RESIDENT, Loads
from clockwork.scheduler.state import Batch, Device, Flight, KindSpec, Model, Pending, Residency, Slot
from clockwork.scheduler.types import Request, ShapeKey

ATTEMPTS_MAX = 3
"""Times that a request is sent, before a failure that is not its own is answered."""

JOIN_GAIN = 50
"""Joining a batch must cost at least 1/50 less than running alone."""

JOIN_SCAN_MAX = 4
"""Batches of its model that an arriving request tries to join."""

DISPLACE_MAX = 64
"""Requests of lower priority that one arrival may displace."""

LOAD_SCAN_MAX = 4
"""Devices for which a load is planned through, best first."""

LOAD_ALIKE_NS = 1_000_000
"""Devices on which a load would be done about as soon are alike: the one with more free pages gets it."""

PROFILE_TABLE_MAX = 256
"""Shapes that wait to be measured; the oldest is forgotten first."""


RESERVE_SHARE = 50
RESERVE_NS = 2_000_000
"""A promise keeps this share of the time left (at most RESERVE_NS) back for what no estimate foresees: a device or a
link that falters. Without it a queue filled to the last microsecond breaks several promises at one falter: at 1.5
times capacity on two cores, 0.8 % of what was admitted missed; the goodput is the same."""


class Admission(Loads):
    """What may enter a plan, and what leaves it unsent."""

    def __init__(self) -> None:
        super().__init__()
        # Shapes that wait to be measured, by program, kind and shape: model, rows, times tried.
        self._unmeasured: OrderedDict[tuple[str, str, ShapeKey], tuple[int, int, int]] = OrderedDict()

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
        limit = deadline - device.worker.back_ns - min((deadline - self._now) // RESERVE_SHARE, RESERVE_NS)
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
        found: list[tuple[int, int, int, Device, KindSpec]] = []
        for device, spec in self._loadable(model):
            load, alone = spec.load_planned_ns(model.model_id), spec.alone_ns(shape, pending.size)
            worker = device.worker
            start = max(worker.link_free_ns, self._now + worker.there_ns)
            if alone and start + load + alone + worker.back_ns <= deadline:
                waiting = sum(one.spec.load_planned_ns(one.model.model_id) for one in device.pending)
                # What is evicted has to be loaded again one day: that counts as a load more.
                again = 0 if device.has_room(spec) else load
                time = (start + waiting + load + again + device.planned_ns) // LOAD_ALIKE_NS
                found.append((time, -device.pages.free_count, device.number, device, spec))
        found.sort(key=lambda one: one[:3])
        for _, _, _, device, spec in found[:LOAD_SCAN_MAX]:
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
        least = now + _with_reserve(least - now)
        alone_least = _with_reserve(alone_least)
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

    def _expected_ns(self, batch: Batch, size: int) -> int:
        if batch.curve is not None:
            return batch.curve.exec_ns(size)
        return batch.duration_ns


def _with_reserve(ns: int) -> int:
    """The time to a deadline that admits what takes so long: the inverse of what _slot() holds back."""
    return min(ns * RESERVE_SHARE // (RESERVE_SHARE - 1) + 1, ns + RESERVE_NS)
