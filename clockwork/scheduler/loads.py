"""Which models are on which device: loads on demand, eviction, unloading.

A load is decided with the first request that needs it. Idle models make room, least recently used
first; where they do not suffice, the busy ones whose planned work ends first are *doomed*: what was
promised on them is still done, nothing new is planned, and then their pages go. So a model with
continuous traffic cannot keep another out for ever, and a promise made on the new one is accounted
from the time at which its victims will be idle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from clockwork.messages import NEVER_NS, Status
from clockwork.scheduler.book import Book
from clockwork.scheduler.state import (
    Batch,
    Device,
    Flight,
    KindSpec,
    Model,
    Pending,
    Residency,
    ResidencyState,
)
from clockwork.scheduler.types import ActionDone, ModelGone, SendLoad, SendUnload

LOAD_ATTEMPTS_MAX = 3
"""Times that a LOAD is sent before the requests that wait for it are answered."""

UNLOAD_ATTEMPTS_MAX = 3

LOAD_WINDOW_NS = 1_000_000_000
"""A LOAD may start this much later than it was sent (or ten times its duration, if that is longer)."""

FEED_NS = 200_000
"""Beyond run_ahead actions, a lane is kept filled for one round trip and this, for short actions."""

OUTSTANDING_MAX = 64
"""Actions of one lane that may be under way, whatever the delay."""

UNLOAD_EXPECTED_NS = 100_000

WARM_IDLE_NS = 1_000_000_000
"""A refusal that a resident model would have avoided loads it, evicting only what idled this long."""

PENDING, LOADING, RESIDENT = ResidencyState.PENDING, ResidencyState.LOADING, ResidencyState.RESIDENT


def is_idle(residency: Residency) -> bool:
    """Nothing is planned on it, nothing of it in flight, and it is not just being loaded."""
    return not residency.batches and not residency.flying and residency.state is RESIDENT


class Loads(Book):
    """Residency, for any policy."""

    # ----- deciding ------------------------------------------------------------------------------

    def _propose_load(
        self, device: Device, model: Model, spec: KindSpec, key_ns: int, doom: bool
    ) -> Residency | None:
        """A pending load, entered in the device's queue with its predicted time. None if pages cannot come free.

        The caller either _accept_load()s it or _drop_load()s it, before anything else is decided.
        doom: busy models may have to make room, not only idle ones.
        """
        residency = Residency(model, device, spec, key_ns)
        if not self._find_victims(residency, doom):
            return None
        keys = [one.key_ns for one in device.pending]
        device.pending.insert(bisect_right(keys, key_ns), residency)
        model.residencies.append(residency)
        self._retime_loads(device)
        return residency

    def _find_victims(self, residency: Residency, doom: bool) -> bool:
        """Try out, on a copy of the arena, who has to go for this load. False if it cannot be."""
        device, runs = residency.device, residency.spec.runs
        trial = device.pages.copy()
        for other in device.pending:
            for victim in other.victims:
                if victim.starts and device.resident.get(victim.model.model_id) is victim:
                    trial.free(victim.starts, victim.spec.runs)
            residency.clear_ns = max(residency.clear_ns, other.clear_ns)
        for other in device.pending:
            if trial.allocate(other.spec.runs) is None:
                return False
        if trial.allocate(runs) is not None:
            return True
        for victim in device.resident.values():  # idle, least recently used first
            if not victim.doomed and is_idle(victim):
                residency.victims.append(victim)
                trial.free(victim.starts, victim.spec.runs)
                if trial.allocate(runs) is not None:
                    return True
        if doom:
            for finish, victim in self._busy(device):
                residency.victims.append(victim)
                residency.clear_ns = max(residency.clear_ns, finish)
                trial.free(victim.starts, victim.spec.runs)
                if trial.allocate(runs) is not None:
                    return True
        return False

    def _accept_load(self, residency: Residency) -> None:
        for victim in residency.victims:
            victim.doomed = True
        self._dirty[residency.device] = None

    def _drop_load(self, residency: Residency) -> None:
        """Forget a load that was not sent. Nothing may be planned on it."""
        residency.device.pending.remove(residency)
        residency.model.residencies.remove(residency)
        self._absolve(residency)
        self._retime_loads(residency.device)

    def _absolve(self, residency: Residency) -> None:
        """Its victims are doomed no more, unless another pending load counts on them."""
        for victim in residency.victims:
            victim.doomed = any(
                victim in other.victims for other in residency.device.pending if other is not residency
            )
        residency.victims = []

    def _busy(self, device: Device) -> list[tuple[int, Residency]]:
        """Models that could be doomed, with the time at which their planned work ends, earliest first."""
        time = device.free_ns(self._now)
        finish = dict.fromkeys(device.resident, time)
        for batch in device.plan:
            time = max(time, batch.residency.ready_ns) + batch.duration_ns
            if batch.residency.model.model_id in finish:
                finish[batch.residency.model.model_id] = time
        back = device.worker.back_ns
        found = [
            (max(finish[model_id], one.ready_ns) + back, one)
            for model_id, one in device.resident.items()
            if not one.doomed and not is_idle(one)
        ]
        found.sort(key=lambda pair: pair[0])
        return found

    def _retime_loads(self, device: Device) -> None:
        """Predict anew when each load that waits will be done."""
        if not device.pending:
            return
        worker = device.worker
        time = max(worker.link_free_ns, self._now + worker.there_ns)
        for residency in device.pending:
            start = max(time, residency.clear_ns + worker.there_ns)
            time = start + residency.spec.load_planned_ns(residency.model.model_id)
            residency.ready_ns = time + worker.back_ns + worker.there_ns

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

    # ----- acting --------------------------------------------------------------------------------

    def _start_loads(self, device: Device) -> None:
        worker, now = device.worker, self._now
        while device.pending:
            if device.loading >= device.run_ahead:
                due = worker.link_free_ns - worker.there_ns - worker.back_ns - FEED_NS
                if device.loading >= OUTSTANDING_MAX or due > now:
                    if device.loading < OUTSTANDING_MAX:
                        device.wake_ns = min(device.wake_ns, due)
                    return
            residency = device.pending[0]
            if not residency.batches and residency.model.model_id not in self._background:
                self._drop_load(residency)  # whoever wanted it has gone
                continue
            starts = self._make_room(device, residency.spec.runs, residency.victims)
            if starts is None:
                self._doom_more(device, residency)
                return
            self._send_load(residency, starts)

    def _send_load(self, residency: Residency, starts: tuple[int, ...]) -> None:
        device, now = residency.device, self._now
        worker = device.worker
        device.pending.remove(residency)
        self._absolve(residency)
        device.resident[residency.model.model_id] = residency
        device.loading += 1
        self._load_id += 1
        spec = residency.spec
        expected = spec.loads.load_ns(residency.model.model_id, spec.load_ns, spec.page_count)
        planned = spec.load_planned_ns(residency.model.model_id)
        worker.link_free_ns = max(worker.link_free_ns, now + worker.there_ns) + planned
        residency.starts = starts
        residency.state = LOADING
        residency.load_id = self._load_id
        residency.action_id = self._next_action()
        residency.ready_ns = worker.link_free_ns + worker.back_ns + worker.there_ns
        self._flights[residency.action_id] = Flight(
            residency.action_id, "load", device, residency, None, expected, planned, now
        )
        latest = now + max(LOAD_WINDOW_NS, 10 * planned)
        self._out.append(
            SendLoad(
                worker.worker_id, device.index, residency.action_id, residency.model.model_id, residency.load_id,
                starts, now, latest, expected,
            )
        )  # fmt: skip
        self._retime_loads(device)

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

    def _make_room(
        self, device: Device, runs: tuple[int, ...], chosen: Sequence[Residency], before_ns: int = NEVER_NS
    ) -> tuple[int, ...] | None:
        """Pages for these runs, unloading as few idle models as it takes; None, and nothing done, if those
        do not suffice. chosen: these go first; before_ns: of others, only those last used before then.
        """
        pages = device.pages
        starts = pages.allocate(runs)
        if starts is not None:
            return starts
        victims: list[Residency] = []
        for residency in self._evictable(device, chosen, before_ns):
            pages.free(residency.starts, residency.spec.runs)
            victims.append(residency)
            starts = pages.allocate(runs)
            if starts is not None:
                break
        if starts is None:
            for residency in victims:
                pages.take(residency.starts, residency.spec.runs)
            return None
        # Those that turned out not to be needed stay, the most recently used first.
        for residency in victims[-2::-1]:
            pages.free(starts, runs)
            pages.take(residency.starts, residency.spec.runs)
            again = pages.allocate(runs)
            if again is None:
                pages.free(residency.starts, residency.spec.runs)
                again = pages.allocate(runs)
                assert again is not None
            else:
                victims.remove(residency)
            starts = again
        for residency in victims:
            self._send_unload(residency)
        return starts

    @staticmethod
    def _evictable(device: Device, chosen: Sequence[Residency], before_ns: int) -> Iterator[Residency]:
        """Idle models in the order in which they go: the chosen, then the least recently used."""
        resident = device.resident
        for one in chosen:
            if is_idle(one) and resident.get(one.model.model_id) is one:
                yield one
        for one in resident.values():
            if one.used_ns < before_ns and not one.doomed and is_idle(one):
                yield one
        if before_ns >= NEVER_NS:  # the first load in line takes, in need, what a later one counted on
            for one in resident.values():
                if one.doomed and one not in chosen and is_idle(one):
                    yield one

    def _doom_more(self, device: Device, residency: Residency) -> None:
        """Its room is not there yet: see to it that somebody is on the way out."""
        if any(not is_idle(victim) for victim in residency.victims):
            return  # they will be idle in a while
        if not residency.batches and self._now < residency.key_ns:
            device.wake_ns = min(device.wake_ns, residency.key_ns)
            return  # a background load dooms nobody before it has waited
        # The pages fell otherwise than they were tried out.
        for finish, victim in self._busy(device):
            victim.doomed = True
            residency.victims.append(victim)
            residency.clear_ns = max(residency.clear_ns, finish)
            self._retime_loads(device)
            return

    def _send_unload(self, residency: Residency) -> None:
        """Order a model off its device. Its pages must have been given back to the allocator already."""
        device = residency.device
        assert not residency.batches, "unloading a model that work is planned on"
        assert not residency.flying, "unloading a model that is running"
        if device.resident.get(residency.model.model_id) is residency:
            del device.resident[residency.model.model_id]
            residency.model.residencies.remove(residency)
        residency.model.unloads += 1
        residency.attempts += 1
        action_id = self._next_action()
        self._flights[action_id] = Flight(
            action_id, "unload", device, residency, None, UNLOAD_EXPECTED_NS, UNLOAD_EXPECTED_NS, self._now
        )
        self._out.append(
            SendUnload(
                device.worker.worker_id, device.index, action_id, residency.model.model_id, residency.load_id,
                self._now, NEVER_NS, UNLOAD_EXPECTED_NS,
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

    # ----- results -------------------------------------------------------------------------------

    def _load_done(self, flight: Flight, event: ActionDone) -> None:
        residency, device = flight.residency, flight.device
        model, worker = residency.model, device.worker
        device.loading -= 1
        under_way = sum(
            one.duration_ns
            for one in self._flights.values()
            if one.kind == "load" and one.device.worker is worker
        )
        worker.link_free_ns = self._now - worker.back_ns + under_way
        if event.status is Status.OK:
            took = event.duration_ns or max(event.end_ns - event.begin_ns, 0)
            residency.spec.loads.measure(
                model.model_id, residency.spec.load_ns, residency.spec.page_count, took
            )
            residency.state = RESIDENT
            residency.ready_ns = 0
            residency.used_ns = self._now
            residency.attempts = 0
            device.unready -= len(residency.batches)
            for batch in residency.batches:
                for pending in batch.pendings:
                    pending.load_ns = took
        else:
            self._load_failed(residency, event)
        self._retime_loads(device)
        if model.draining:
            self._check_removed(model)

    def _load_failed(self, residency: Residency, event: ActionDone) -> None:
        device, model = residency.device, residency.model
        device.pages.free(residency.starts, residency.spec.runs)
        residency.starts = ()
        del device.resident[model.model_id]
        for other in device.pending:
            if residency in other.victims:
                other.victims.remove(residency)
        residency.attempts += 1
        if residency.attempts < LOAD_ATTEMPTS_MAX and not device.worker.draining and not model.draining:
            residency.state = PENDING
            residency.doomed = False
            keys = [one.key_ns for one in device.pending]
            device.pending.insert(bisect_right(keys, residency.key_ns), residency)
            return
        # The batches are still counted as unready; the residency leaves with the last of them.
        text = f"{model.name} could not be loaded: {event.text or event.status.name}"
        waiting = [pending for batch in residency.batches for pending in batch.pendings]
        residency.state = PENDING
        device.pending.append(residency)
        for pending in waiting:
            self._fail(pending, Status.UNAVAILABLE, text)
        if residency in device.pending:
            self._drop_load(residency)
        if model.background and not model.residencies:
            for pending in list(model.background):
                self._fail(pending, Status.UNAVAILABLE, text)

    def _unload_done(self, flight: Flight, event: ActionDone) -> None:
        residency = flight.residency
        residency.model.unloads -= 1
        refused = event.status in (
            Status.IN_USE,
            Status.DEVICE_ERROR,
            Status.ACTION_CANCELLED,
            Status.TOO_LATE,
        )
        if refused and residency.attempts < UNLOAD_ATTEMPTS_MAX and not flight.device.worker.draining:
            self._send_unload(residency)
        elif residency.model.draining:
            self._check_removed(residency.model)

    def _lose_residency(self, residency: Residency) -> list[Pending]:
        """The device says that the model is not there. Returns the requests that were planned on it.

        The UNLOAD makes sure that both sides agree about its pages; it does no harm.
        """
        device = residency.device
        waiting = [pending for batch in residency.batches for pending in batch.pendings]
        for batch in list(residency.batches):
            device.remove(batch)
        for pending in waiting:
            pending.batch = None
        residency.doomed = True
        if not residency.flying:
            device.pages.free(residency.starts, residency.spec.runs)
            self._send_unload(residency)
        return waiting

    # ----- removal -------------------------------------------------------------------------------

    def _check_removed(self, model: Model) -> None:
        """One step further in unloading a model that is being unregistered and has no request left."""
        if model.live or model.model_id not in self._models:
            return
        for residency in list(model.residencies):
            if residency.state is PENDING:
                self._drop_load(residency)
            elif is_idle(residency):
                residency.device.pages.free(residency.starts, residency.spec.runs)
                self._dirty[residency.device] = None
                self._send_unload(residency)
        if not model.residencies and not model.unloads:
            del self._models[model.model_id]
            for spec in model.specs.values():
                spec.loads.forget(model.model_id)
            self._out.append(ModelGone(model.model_id))
