"""The life cycle of versions: takes the steps (controller.models.lifecycle) that events of clients, workers
and the scheduler cause. Pure: effects outside are appended to ``effects``."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from clockwork.config import TROUBLE_CHARS_MAX, VERSIONS_MAX
from clockwork.config.controller import (
    RESTART_GRACE_NS,
    ROOM_RETRY_NS,
    STORES_COMPARED_MAX,
    STORES_SETTLE_NS,
    planned_store_bytes,
)
from clockwork.controller.catalog.options import preparation_options
from clockwork.controller.effects import (
    Blame,
    ClearTrouble,
    Effect,
    Inspect,
    NoteTrouble,
    PackagePrepared,
    Publish,
    ReadRecord,
    Refuse,
    ReplyModel,
    ScheduleLoss,
    ScheduleReady,
    ScheduleRemoval,
    ScheduleRoom,
    SendClient,
    SendWorker,
)
from clockwork.controller.models.accounts import account
from clockwork.controller.models.interfaces import read_bundle, read_summary
from clockwork.controller.models.lifecycle import LifecycleStep, ModelState, VersionEvent, transition
from clockwork.controller.models.version import ABSENT, AWAY, FETCHABLE, SOUGHT, ModelVersion, Waiter
from clockwork.controller.registration.bundles import BundleRelay
from clockwork.controller.registration.core_waits import CoreWaits
from clockwork.controller.registration.preparation_book import PREPARING, READY, PreparationBook
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.registration.tasks import GiveUp, KeepRecord, OwnTask, Retire
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import ClockworkError, InvalidModel, Unavailable
from clockwork.formats.interface import Interface, difference
from clockwork.formats.package import rows_of
from clockwork.formats.prepared import PreparedModel
from clockwork.scheduler.types import Fault
from clockwork.wire.messages import (
    Announce,
    BundleRefused,
    Forget,
    NotStored,
    Prepare,
    Prepared,
    Reply,
    Status,
)
from clockwork.wire.telling import printable, tell

log = logging.getLogger("clockwork.controller")


class Removal(NamedTuple):
    """A client that waits for every one of these versions to be gone, or to be unloaded."""

    waiter: Waiter
    body: dict[str, Any]  # body of the reply
    models: Sequence[ModelVersion]


class StoreBound(NamedTuple):
    """A worker's store with a bound. kind: as in BundleRelay.joined()."""

    kind: str
    bytes: int


def announcement(model: ModelVersion) -> Announce:
    """Return the description of a version by which workers find or prepare it."""
    record = model.record
    files, options = rows_of(record.files), preparation_options(record.options)
    return Announce(model.model_id, record.name, record.version, record.digest, files, options)


class Versions:
    """Every method is an event. ``tasks``: resulting changes of the catalog, which the registrar takes up.

    room: the scheduler's store_room(), by worker."""

    def __init__(
        self, effects: deque[Effect], table: ModelTable, room: Callable[[int], int], threads_max: int = 0
    ) -> None:
        self._effects = effects
        self._table = table
        self.preparations = PreparationBook()
        self.bundles = BundleRelay(effects, table)
        self.cores = CoreWaits(effects, threads_max)
        self.tasks: deque[OwnTask] = deque()
        self._awaited: dict[ModelVersion, None] = {}  # versions for which clients wait
        self._removals: list[Removal] = []
        # Versions for which a start still waits; see readiness().
        self._starting: dict[ModelVersion, None] = {}
        self._unregistered: dict[str, None] = {}  # names for which a start waits as well
        self._has_started = False
        self._stores: dict[int, StoreBound] = {}  # by worker, those that have a bound
        self._unplaced: dict[ModelVersion, None] = {}  # versions of which nobody may have a copy
        # Versions that nobody has, but perhaps a worker that has left, with the number of their requests then
        self._missed: dict[ModelVersion, int] = {}
        self._demand: Callable[[int], int] = lambda model_id: 0  # as in worker_joined()
        self._room = room
        # by worker with a bounded store: bytes of the models that it prepares, by their ids
        self._promised: dict[int, dict[int, int]] = {}
        self._roomless: dict[ModelVersion, str] = {}  # versions for which no store has room, and why
        self._room_retry_ns = 0
        self._has_left = False  # a worker has left since the last look
        self._grace_until_ns = 0  # until then a worker that has left may return with what it had
        self._has_joined = False  # a worker with such a store has joined since the last look
        self._settled_ns = 0  # until then the stores of workers that have just joined are looked up

    # ----- the start ---------------------------------------------------------------------------

    def await_names(self, names: Iterable[str]) -> None:
        """Have the start wait until models of these names are registered, and are served or have failed."""
        self._unregistered.update((name, None) for name in names if name not in self._table.versions)

    def await_start(self, model: ModelVersion) -> None:
        """Have a start that is not over yet wait for this version as well."""
        if not self._has_started:
            self._starting[model] = None
            self._unregistered.pop(model.record.name, None)

    def readiness(self) -> str:
        """The reason why the cluster is not ready, as a sentence; "" once it is.

        The start is over when every registered model is served by a worker, or has failed for a reason, and
        no awaited model is missing: a failure among hundreds of models delays no start, and a later
        registration makes no cluster unready. From then on the cluster is ready while there is a worker that
        does not leave; each model has a readiness of its own.
        """
        if not self.preparations.has_workers():
            return "no worker is connected"
        for model in self._starting:
            if len(self._starting) == 1:
                return f"{model.label} is not served yet"
            return f"{len(self._starting)} models are not served yet, among them {model.label}"
        for name in self._unregistered:
            if len(self._unregistered) == 1:
                return f"{name}, which is awaited, is not registered yet"
            return f"{len(self._unregistered)} awaited models are not registered yet, among them {name}"
        return ""

    def _note_start(self, model: ModelVersion) -> None:
        """See whether the start still waits for a version that has changed."""
        is_open = model.state in (ModelState.PREPARING, ModelState.READY)
        if self._has_started or (is_open and not self.preparations.is_served(model)):
            return
        self._starting.pop(model, None)
        if not self._starting and not self._unregistered:
            self._has_started = any(
                other.state in (ModelState.READY, ModelState.FAILED) for other in self._table.by_id.values()
            )

    # ----- the life cycle ----------------------------------------------------------------------

    def happen(self, model: ModelVersion, event: VersionEvent, why: str = "") -> None:
        """Take the transition of an event. why: the reason where the version is set aside."""
        model.state, steps = transition(model.state, event)
        if model.state is not ModelState.PREPARING:
            self.cores.end(model)
        if model.state is ModelState.READY:
            model.text, model.was_ready = "", True
        elif model.state is ModelState.FAILED:
            model.text = next(iter(model.workers.values()))
        if why and LifecycleStep.NOTE in steps:
            model.record.aside = why
        for step in steps:
            self._steps[step](self, model)
        self._note_start(model)

    def settle(self, model: ModelVersion) -> None:
        """Take the event of a version whose preparation has ended, in success or failure."""
        verdict = model.verdict()
        if verdict is not None and model.state in (ModelState.PREPARING, ModelState.READY, ModelState.FAILED):
            self.happen(model, verdict)

    def drained(self, model_id: int) -> None:
        """Finish a leaving version, of which the scheduler has let go."""
        self.happen(self._table.by_id[model_id], VersionEvent.DRAINED)

    def faulted(self, model_id: int, fault: Fault, worker: str, is_set_aside: bool) -> None:
        """Take a fault that executions or loads of a version caused on a worker.

        worker: its name; "" if it is gone. model_id: 0 without a model. is_set_aside: the scheduler takes no
        more requests for the version and lets go of it. The version is unloaded then, and keeps the reason
        after a restart; a failed write of the reason is a trouble of its own.
        """
        found = account(fault, worker, bool(model_id))
        model = self._table.by_id.get(model_id)
        if model is None:  # the model was forgotten meanwhile, or the fault has none
            if found.kind is not None and found.is_workers and worker:
                of_whom = "a model that is gone: " if model_id else ""
                self._effects.append(NoteTrouble(found.kind, worker, of_whom + found.text))
            return
        model.faults[found.name] = model.faults.get(found.name, 0) + 1
        log.error("%s: %s%s", model.label, found.text, "; it is set aside" if is_set_aside else "")
        if found.kind is not None and found.is_workers and worker:
            self._effects.append(NoteTrouble(found.kind, worker, f"{model.label}: {found.text}"))
        elif found.kind is not None:
            self._effects.append(NoteTrouble(found.kind, model.label, found.text))
        if is_set_aside:
            self.happen(model, VersionEvent.SET_ASIDE, found.reason)

    def _enlist(self, model: ModelVersion) -> None:
        self._table.enlist(model)

    def _trust(self, model: ModelVersion) -> None:
        model.was_ready = True

    def _note(self, model: ModelVersion) -> None:
        model.record.offered = False
        self._effects.append(NoteTrouble(TroubleKind.MODEL_SET_ASIDE, model.label, model.record.aside))
        self.tasks.append(KeepRecord(model.record.name, model, of_aside=True))

    def _pardon(self, model: ModelVersion) -> None:
        model.record.aside = ""
        self._effects.append(ClearTrouble(TroubleKind.MODEL_SET_ASIDE, model.label))

    def _ask_all(self, model: ModelVersion) -> None:
        workers = self.preparations.worker_ids()
        for worker in workers:
            self._ask_or_announce(model, worker)
        if not workers:
            log.info("%s waits for a worker to prepare it", model.label)

    def _turn_away(self, model: ModelVersion) -> None:
        self._refuse_all(model, gone_before_ready(model))

    def _route(self, model: ModelVersion) -> None:
        self._table.route(model)

    def _unroute(self, model: ModelVersion) -> None:
        self._table.unroute(model)

    def _retire_old(self, model: ModelVersion) -> None:
        name = model.record.name
        split = self._table.split_of(name)
        kept = split.versions() if split is not None else []
        versions = [
            other
            for other in self._table.versions[name].values()
            if other.state in (ModelState.READY, ModelState.FAILED)
        ]
        for old in versions[:-VERSIONS_MAX]:
            if old.record.version not in kept:
                waiters: list[Waiter] = []
                if old is model:  # a retry would be refused again
                    waiters, model.waiters = model.waiters, []
                    self._awaited.pop(model, None)
                self.tasks.append(Retire(name, old, waiters))

    def _forget(self, model: ModelVersion) -> None:
        for worker in list(model.workers):
            self._effects.append(SendWorker(worker, Forget(model.model_id)))
            self._forget_preparation(model, worker)
        self.preparations.forget_model(model)

    def _keep(self, model: ModelVersion) -> None:
        self._table.delist(model)
        log.info("unloaded %s", model.label)

    def _drop(self, model: ModelVersion) -> None:
        if model.model_id:
            self._table.delist(model)
        self._table.remove(model)
        log.info("removed %s", model.label)

    def _announce(self, model: ModelVersion) -> None:
        body = {"model": model.label, "state": model.state.shown}
        if model.state is ModelState.FAILED:
            body["text"] = model.text
        elif model.state is ModelState.READY:
            log.info("%s is ready", model.label)
        self._effects.append(Publish("model", body))

    def _refuse(self, model: ModelVersion) -> None:
        error: ClockworkError = InvalidModel(f"{model.label} cannot be served: {model.text}")
        if not model.is_blamed:
            error = Unavailable(f"no worker could prepare {model.label} now: {model.text}; try again")
        self._refuse_all(model, error)

    def _give_up(self, model: ModelVersion) -> None:
        self.tasks.append(GiveUp(model.record.name, model))

    def _drain(self, model: ModelVersion) -> None:
        if model.prepared is None:  # the scheduler never heard of the version
            self.happen(model, VersionEvent.DRAINED)
        else:
            self._effects.append(ScheduleRemoval(model.model_id))

    # ----- who waits ---------------------------------------------------------------------------

    def wait(self, model: ModelVersion, waiter: Waiter) -> None:
        """Have a client wait for a version that is being prepared or will be."""
        model.waiters.append(waiter)
        self._awaited[model] = None

    def answer(self, model: ModelVersion) -> None:
        """Answer all waiters of a version with its description."""
        self._effects.extend(ReplyModel(waiter, model) for waiter in model.waiters)
        model.waiters.clear()
        self._awaited.pop(model, None)

    def _refuse_all(self, model: ModelVersion, error: ClockworkError) -> None:
        self._effects.extend(Refuse(waiter, error) for waiter in model.waiters)
        model.waiters.clear()
        self._awaited.pop(model, None)

    def refuse(self, model: ModelVersion) -> None:
        """Refuse all waiters of a failed version with the reason."""
        self._refuse(model)

    def wait_gone(self, waiter: Waiter, body: dict[str, Any], models: Sequence[ModelVersion]) -> None:
        """Have a client get this reply when the last request of these versions has been answered."""
        self._removals.append(Removal(waiter, body, models))

    def answer_gone(self) -> None:
        """Answer the waiters for versions that are gone. The disk was changed before."""
        gone = [
            removal
            for removal in self._removals
            if not any(model.state.is_leaving for model in removal.models)
        ]
        for removal in gone:
            self._removals.remove(removal)
            reply = Reply(removal.waiter.request_id, removal.body)
            self._effects.append(SendClient(removal.waiter.client, reply))

    def client_gone(self, client: bytes) -> None:
        self._removals = [removal for removal in self._removals if removal.waiter.client != client]
        for model in list(self._awaited):
            model.waiters = [waiter for waiter in model.waiters if waiter.client != client]
            if not model.waiters:
                del self._awaited[model]

    # ----- workers -----------------------------------------------------------------------------

    def worker_joined(
        self,
        worker: int,
        name: str,
        demand: Callable[[int], int],
        store: StoreBound | None = None,
        threads: int = 1,
    ) -> None:
        """Have a new worker prepare every model: those that wait for its threads first, then those with the
        most requests.

        demand: the number of a model's requests, by its id. store: a worker's with a bound, which is asked
        first what lies there. threads: of its executions.
        """
        self.preparations.joined(worker, name)
        self.cores.joined(worker, threads)
        self._demand = demand
        if store is not None:
            self._stores[worker] = store
            self._has_joined = True
        models = [model for model in self._table.by_id.values() if not model.state.is_leaving]
        for model in sorted(models, key=lambda model: (not model.awaits_threads, -demand(model.model_id))):
            self._ask_or_announce(model, worker)

    def worker_left(self, worker: int) -> None:
        self._promised.pop(worker, None)
        for model in list(self._table.by_id.values()):
            # A ready version stays ready; its waiters no longer wait for this worker's answer.
            if self._forget_preparation(model, worker) and (
                model.state is ModelState.PREPARING or model.verdict() is VersionEvent.PREPARED
            ):
                self.settle(model)
            if self._stores:
                self._miss(model, self.bundles.kind_of(worker))
        self._has_left |= bool(self._stores)
        self.preparations.left(worker)
        self.cores.left(worker)
        self._stores.pop(worker, None)

    def prepare_again(self, now_ns: int) -> None:
        """Ask workers again to prepare a model that they could not, when their pauses are over."""
        for worker, model in self.preparations.due(now_ns):
            if worker in self.preparations.failed_on(model) and not model.state.is_leaving:
                self._ask_once_more(model, worker)
        for model, end in self.cores.beat(now_ns):
            model.is_blamed = True
            for worker in self.preparations.failed_on(model):
                self._note_state(model, worker, printable(model.workers[worker] + end, TROUBLE_CHARS_MAX))
            self.settle(model)
        self._look_for_room(now_ns)
        self._place_waiting(now_ns)

    # ----- stores with a bound -----------------------------------------------------------------

    def _ask_or_announce(self, model: ModelVersion, worker: int) -> None:
        if worker not in self._stores:
            self.ask(model, worker)
        else:
            self._tell(model, worker, SOUGHT, announcement(model))

    def not_stored(self, worker: int, message: NotStored) -> None:
        """Take a worker's word that a model does not lie in its store, or no longer."""
        model = self._table.by_id.get(message.model_id)
        state = model.workers.get(worker) if model is not None else None
        if model is None or state not in (SOUGHT, READY) or worker not in self._stores:
            return
        self._note_state(model, worker, ABSENT if state == SOUGHT else FETCHABLE)
        if state == READY and message.text:
            name, text = self.preparations.name(worker), printable(message.text, TROUBLE_CHARS_MAX)
            log.warning("worker %s has lost %s: %s", name, model.label, text)
            self._effects.append(ScheduleLoss(worker, model.model_id))
        self._offer(model, self._stores[worker].kind)
        self._place_soon(model)

    def bundle_refused(self, worker: int, message: BundleRefused) -> None:
        """Take a worker's word that a bundle could not be taken as it came."""
        self.bundles.refused(worker, message)
        model = self._table.by_id.get(message.model_id)
        if model is not None and self._stores:
            self._place_soon(model)

    def _offer(self, model: ModelVersion, kind: str, is_other: bool = False) -> None:
        """Tell the scheduler which workers could be brought a version: one of their kind has it.

        is_other: it was prepared again, and differently, so that it is told once more of those it knows."""
        bundle = model.bundles.get(kind)
        if bundle is None or not bundle.holders or model.prepared is None or model.state.is_leaving:
            return
        spec = model.spec(model.measured.get(bundle.holders[0], model.prepared))
        for worker, state in list(model.workers.items()):
            if (state == ABSENT or (is_other and state == FETCHABLE)) and self._stores[worker].kind == kind:
                self._note_state(model, worker, FETCHABLE)
                self._effects.append(ScheduleReady(worker, spec, is_stored=False))

    def _place_soon(self, model: ModelVersion) -> None:
        """Have a version prepared if no worker has it: now if it is new, else when the stores of workers that
        join together have been looked up."""
        if model.was_ready:
            self._unplaced[model] = None
        else:
            self._place(model)

    def _miss(self, model: ModelVersion, kind: str) -> None:
        """Have a version prepared, unless a worker of this kind has it or may soon have it again."""
        known = model.bundles.get(kind)
        if known is not None and known.holders:
            return
        if model.was_ready:
            self._missed.setdefault(model, self._demand(model.model_id))
        else:
            self._unplaced[model] = None

    def _end_missing(self, now_ns: int) -> None:
        """Have the versions prepared whose worker has not come back, or that were asked for meanwhile."""
        if self._has_left:
            self._has_left, self._grace_until_ns = False, now_ns + RESTART_GRACE_NS
        for model, requests in list(self._missed.items()):
            if now_ns >= self._grace_until_ns or self._demand(model.model_id) > requests:
                del self._missed[model]
                self._unplaced[model] = None

    def _place_waiting(self, now_ns: int) -> None:
        self._end_missing(now_ns)
        if self._has_joined:
            self._has_joined, self._settled_ns = False, now_ns + STORES_SETTLE_NS
        if now_ns < self._settled_ns:
            return
        unplaced, self._unplaced = self._unplaced, {}
        for model in unplaced:
            if model.model_id:
                self._place(model)

    def _place(self, model: ModelVersion) -> None:
        """Have a worker of each kind prepare a version of which none of that kind has a copy to give.

        As few as needed: further copies are fetched, as the scheduler decides."""
        if model.state.is_leaving or (model.is_blamed and not model.was_ready):
            return
        for kind in {store.kind: None for store in self._stores.values()}:
            known = model.bundles.get(kind)
            if known is not None and known.holders:
                continue
            of_kind = [worker for worker in model.workers if self.bundles.kind_of(worker) == kind]
            if any(model.workers[worker] in (PREPARING, SOUGHT) for worker in of_kind):
                continue
            free = [
                worker
                for worker in of_kind
                if model.workers[worker] in (ABSENT, FETCHABLE) and not self.preparations.is_draining(worker)
            ]
            if free:
                self._prepare_on_one(model, sorted(free, key=self._fullness))

    def _prepare_on_one(self, model: ModelVersion, workers: Sequence[int]) -> None:
        """Have one of these workers prepare a version: the first whose store has room, or can be given it
        by the drop of copies that others have as well."""
        size = _bytes_of(model)
        rooms = {worker: self._room(worker) for worker in workers[:STORES_COMPARED_MAX]}
        found = next((worker for worker, room in rooms.items() if room >= size), None)
        if found is None:  # the part that the scheduler does not plan with may do
            found = next(
                (worker for worker in rooms if rooms[worker] + self._unplanned(worker) >= size), None
            )
        if found is not None:
            self._roomless.pop(model, None)
            self.ask(model, found)
            return
        self._roomless[model] = (
            f"it takes {size} bytes, and no store (--store-bytes) has room for it: at most {max(rooms.values())} "
            f"bytes of one are free, or taken by copies that other workers have as well"
        )

    def _unplanned(self, worker: int) -> int:
        return self._stores[worker].bytes - planned_store_bytes(self._stores[worker].bytes)

    def _look_for_room(self, now_ns: int) -> None:
        """Refuse new versions for which there is no room, and try again with others now and then."""
        is_due = now_ns >= self._room_retry_ns
        for model, why in list(self._roomless.items()):
            if model.was_ready and not is_due:
                continue
            del self._roomless[model]
            if not model.model_id or model.state.is_leaving:
                continue
            if model.was_ready:
                self._place(model)
                self._room_retry_ns = now_ns + ROOM_RETRY_NS
                continue
            log.warning("%s is not prepared: %s", model.label, why)
            for worker, state in list(model.workers.items()):
                if state in (ABSENT, FETCHABLE):
                    self._note_state(model, worker, why)
            self.settle(model)

    def _fullness(self, worker: int) -> float:
        return self.preparations.load_of(worker) / self._stores[worker].bytes

    def has_elsewhere(self, worker: int) -> bool:
        """Whether the models of a worker could be fetched by another, which does not leave."""
        store = self._stores.get(worker)
        return store is not None and any(
            other != worker and others.kind == store.kind and not self.preparations.is_draining(other)
            for other, others in self._stores.items()
        )

    # ----- preparations ------------------------------------------------------------------------

    def ask(self, model: ModelVersion, worker: int) -> None:
        """Have a worker prepare a version."""
        self._tell(model, worker, PREPARING, Prepare(*announcement(model), model.owner))

    def _tell(self, model: ModelVersion, worker: int, state: str, message: Announce | Prepare) -> None:
        """Begin anew with a version on a worker: note this state, and send the message."""
        self._forget_preparation(model, worker)
        self._note_state(model, worker, state)
        self._effects.append(SendWorker(worker, message))

    def ask_again(self, model: ModelVersion) -> None:
        """Ask each worker that could not prepare a version once more, because a client wants it served."""
        for worker in self.preparations.failed_on(model):
            self._ask_once_more(model, worker)

    def _ask_once_more(self, model: ModelVersion, worker: int) -> None:
        if worker not in self._stores:
            self.ask(model, worker)
            return
        self._forget_preparation(model, worker)
        self._note_state(model, worker, ABSENT)
        self._offer(model, self._stores[worker].kind)
        self._place(model)

    def ask_all_again(self) -> None:
        """Ask each worker once more for everything that it could not prepare, because packages that could not
        be fetched can be."""
        for model in self._table.by_id.values():
            if not model.state.is_leaving:
                self.ask_again(model)

    def prepared(self, worker: int, message: Prepared, now_ns: int) -> None:
        """Take a worker's answer that it has prepared a model, or could not. Raises InvalidInput."""
        model = self._table.by_id.get(message.model_id)
        self.bundles.settled(worker, message.model_id)
        if model is None or model.workers.get(worker) not in (PREPARING, *AWAY):
            return
        if message.status != Status.OK and model.workers[worker] != PREPARING:
            return
        if message.status != Status.OK:
            # An invalid model is invalid on every worker: a retry may only help where others serve it.
            may_help = message.status != Status.INVALID_MODEL or model.was_ready
            if message.status == Status.INTERNAL:  # the worker's package may be damaged
                self._effects.append(Inspect(model.record.digest))
            model.is_blamed |= message.status == Status.INVALID_MODEL
            self._not_prepared(model, worker, message.text or "could not be prepared", may_help, now_ns)
        else:
            bundle = read_bundle(message.summary.pop("bundle", []))
            prepared = read_summary(message.summary)
            if not model.record.is_read:
                self._effects.append(ReadRecord(model.model_id, worker, model.record, prepared))
                return
            self._learn(model, worker, prepared, now_ns)
            if model.workers.get(worker) == READY:
                is_other = self.bundles.made(worker, model, bundle)
                self._offer(model, self.bundles.kind_of(worker), is_other)
        self.settle(model)

    def record_read(
        self, job: ReadRecord, interface: Interface | None, error: BaseException | None, now_ns: int
    ) -> None:
        """Take the interface that was read from the package of an earlier release's record, or the error."""
        record = job.record
        model = self._table.by_id.get(job.model_id)
        if error is not None:  # until the package is replaced, only its workers' statements are known
            self._effects.append(Inspect(record.digest))
        elif not record.is_read:
            record.is_read, record.interface = True, interface
            if model is not None:
                self.tasks.append(KeepRecord(record.name, model, of_aside=False))
        if model is not None and model.workers.get(job.worker) in (PREPARING, *AWAY):
            self._learn(model, job.worker, job.prepared, now_ns)
            self.settle(model)

    def _learn(self, model: ModelVersion, worker: int, prepared: PreparedModel, now_ns: int) -> None:
        """Check and keep a worker's statement that it has prepared a model."""
        lie = _contradiction(model, prepared)
        why = lie or _unsuitable(model, prepared)
        if not lie:
            self.cores.learn(model, worker, prepared)
        if why:
            self._effects.append(SendWorker(worker, Forget(model.model_id)))
            self._not_prepared(model, worker, why, False, now_ns)
            threads = 0 if lie else self.cores.threads_to_wait_for(model, prepared)
            if threads and model.state is ModelState.PREPARING:
                self.cores.wait(model, threads, now_ns)
            else:
                model.is_blamed = True
                self.cores.end(model)
        else:
            self.preparations.note(model, worker, READY)
            if worker not in self._stores:
                self._effects.append(PackagePrepared(worker, model.record.digest))
            self._table.learn(model, worker, prepared)
            self._effects.append(ScheduleReady(worker, model.spec(prepared)))
            self._end_promise(worker, model.model_id)  # last: it may take more than it was promised
        if lie:
            self._effects.append(Blame(worker, f"of {model.label}, {lie}"))

    def _not_prepared(self, model: ModelVersion, worker: int, why: str, may_help: bool, now_ns: int) -> None:
        why = printable(why, TROUBLE_CHARS_MAX)
        self._note_state(model, worker, why)
        again = may_help and self.preparations.try_again(model, worker, now_ns)
        name = self.preparations.name(worker)
        later = "; asked again later" if again else ""
        log.warning("worker %s cannot prepare %s: %s%s", name, model.label, why, later)
        if model.was_ready:  # no client waits that would hear of the failure
            subject = f"{model.label} on {name}"
            self._effects.append(NoteTrouble(TroubleKind.PREPARATION_FAILED, subject, why))
        if worker in self._stores:
            self._place(model)

    def _note_state(self, model: ModelVersion, worker: int, state: str) -> None:
        """Note the state of a version on a worker. The store of a worker that prepares it needs room."""
        self.preparations.note(model, worker, state)
        if state != PREPARING:
            self._end_promise(worker, model.model_id)
        elif worker in self._stores:
            promised = self._promised.setdefault(worker, {})
            promised[model.model_id] = _bytes_of(model)
            self._effects.append(ScheduleRoom(worker, sum(promised.values())))

    def _end_promise(self, worker: int, model_id: int) -> None:
        promised = self._promised.get(worker, {})
        if promised.pop(model_id, None) is not None:
            self._effects.append(ScheduleRoom(worker, sum(promised.values())))

    def _forget_preparation(self, model: ModelVersion, worker: int) -> bool:
        """Forget a worker's answer about a model; False if there was no answer."""
        self._end_promise(worker, model.model_id)
        self.bundles.settled(worker, model.model_id)
        state = self.preparations.forget(model, worker)
        if state is not None and state not in (PREPARING, READY):
            subject = f"{model.label} on {self.preparations.name(worker)}"
            self._effects.append(ClearTrouble(TroubleKind.PREPARATION_FAILED, subject))
        return state is not None

    _steps: ClassVar[dict[LifecycleStep, Callable[[Versions, ModelVersion], None]]] = {
        LifecycleStep.ENLIST: _enlist,
        LifecycleStep.TRUST: _trust,
        LifecycleStep.NOTE: _note,
        LifecycleStep.PARDON: _pardon,
        LifecycleStep.ASK: _ask_all,
        LifecycleStep.TURN_AWAY: _turn_away,
        LifecycleStep.ROUTE: _route,
        LifecycleStep.RETIRE: _retire_old,
        LifecycleStep.UNROUTE: _unroute,
        LifecycleStep.FORGET: _forget,
        LifecycleStep.KEEP: _keep,
        LifecycleStep.DROP: _drop,
        LifecycleStep.ANNOUNCE: _announce,
        LifecycleStep.ANSWER: answer,
        LifecycleStep.REFUSE: _refuse,
        LifecycleStep.GIVE_UP: _give_up,
        LifecycleStep.DRAIN: _drain,
    }


def _bytes_of(model: ModelVersion) -> int:
    """The bytes of a version's package, which it takes about as much of when it is prepared."""
    return sum(file.bytes for file in model.record.files)


def gone_before_ready(model: ModelVersion) -> Unavailable:
    """The error for waiters of a version that goes."""
    return Unavailable(f"{model.label} was unregistered before it was ready")


def _contradiction(model: ModelVersion, prepared: PreparedModel) -> str:
    """The contradiction between a worker's statement and a model's package; "" without any. Measurements may
    differ."""
    record = model.record
    if prepared.digest != record.digest:
        return f"it prepared another package: {tell(prepared.digest)}"
    why = difference(record.interface, prepared) if record.interface is not None else ""
    return f"it contradicts the package: {why}" if why else ""


def _unsuitable(model: ModelVersion, prepared: PreparedModel) -> str:
    """The reason why a worker that prepared a model so may not serve it; "" if it may."""
    why = prepared.slo_below_execution(model.slo_ns) if model.slo_ns > 0 and not model.was_ready else ""
    return f"its SLO of {model.slo_ns / 1e6:g} ms is {why}" if why else ""
