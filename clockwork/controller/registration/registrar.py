"""Registration, change and removal of models at clients' requests: the checks of each task, its change on
disk, and the steps once the change is written.

A reply to Register, Unregister, Offer, Route, Promote or Rollback holds after a crash, too, and a failure
means that nothing has changed; see controller.registration.turns. Pure: every method is an event, time comes
with it, and its effects are appended to ``effects``. Uploads, life cycles and releases are parts of their own
(controller.registration.uploads, .versions, .releases).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from clockwork.config import MODELS_MAX, VERSION_MAX, VERSIONS_MAX
from clockwork.config.controller import ERASE_RETRY_NS
from clockwork.controller.catalog.options import check_options, kept_options, orders_of, preparation_options
from clockwork.controller.catalog.records import Change, Complaint, ModelRecord
from clockwork.controller.catalog.routes import NameRoute
from clockwork.controller.effects import (  # fmt: skip
    ClearTrouble,
    CommitUpload,
    Effect,
    Job,
    ListPackages,
    NoteTrouble,
    OpenUpload,
    ReadRecord,
    ReadUpload,
    Refuse,
    RemovePackage,
    ReplyRoute,
    SendClient,
    WriteChange,
    WriteChunk,
)
from clockwork.controller.models.lifecycle import ModelState, VersionEvent
from clockwork.controller.models.version import ModelVersion, Waiter
from clockwork.controller.registration.releases import check_traffic, describe_split, next_route, upgrade
from clockwork.controller.registration.table import ModelTable, set_aside_text
from clockwork.controller.registration.tasks import (
    Add,
    Adopt,
    Become,
    ClientTask,
    Following,
    GiveUp,
    KeepRecord,
    Leave,
    Reload,
    Reroute,
    Retire,
    Task,
)  # fmt: skip
from clockwork.controller.registration.turns import TaskQueues
from clockwork.controller.registration.uploads import Registration, Upload, Uploads, storage_error
from clockwork.controller.registration.versions import StoreBound, Versions, gone_before_ready
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import (
    ClockworkError,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    PolicyFailed,
    Unavailable,
)  # fmt: skip
from clockwork.formats.interface import with_labels_of
from clockwork.formats.package import check_name, digest_of, parse_files
from clockwork.scheduler.types import Fault
from clockwork.wire.messages import (
    BundleRefused,
    NotStored,
    Offer,
    Prepared,
    Progress,
    Promote,
    Register,
    Rollback,
    Route,
    Unregister,
    UploadChunk,
)  # fmt: skip

log = logging.getLogger("clockwork.controller")

BACKUP, PACKAGES = "backup of the catalogue", "packages"
"""Subjects under which a failed backup, and packages that could not be removed, are noted."""


class Registrar:
    def __init__(
        self,
        effects: deque[Effect],
        table: ModelTable,
        lacks: Callable[[str], bool],
        room: Callable[[int], int],
        threads_max: int = 0,
    ) -> None:
        """lacks: whether a registered package, by its digest, is damaged and has not been repaired. room:
        as in Versions. threads_max: as in CoreWaits."""
        self._effects = effects
        self._table = table
        self._lacks = lacks
        self.versions = Versions(effects, table, room, threads_max)
        self._uploads = Uploads(effects)
        self._turns = TaskQueues(effects)
        self._refused: dict[ModelVersion, None] = {}  # refused versions to erase, after a failed attempt
        self._retry_ns = 0
        self._stuck_ns = 0  # time at which packages that could not be removed are tried again
        self._has_lost = False  # whether a record could not be read at the start
        self._by = ""  # who ordered the task that is being begun
        self._backed_up = 0  # number of the newest change that the catalogue's backup has
        self._backup_failure = ""  # why the last backup failed; "": it did not
        self._unneeded: deque[tuple[int, str, str]] = deque()
        """Numbers of changes, and names and digests of packages that may go once the backup has them."""
        self._stuck: dict[str, None] = {}  # digests of packages that could not be removed

    # ----- start -------------------------------------------------------------------------------

    def restore(
        self,
        records: Sequence[ModelRecord],
        complaints: Sequence[Complaint],
        routes: Sequence[NameRoute],
        route_complaints: Sequence[Complaint],
        unused: Sequence[str] = (),
    ) -> None:
        """Restore the catalog's models and routes; workers are asked as they join. unused: packages that were
        not needed any more when the controller ended."""
        self._unneeded.extend((0, "", digest) for digest in unused)
        lost = {complaint.name for complaint in complaints if not complaint.mended}
        self._has_lost = bool(lost)
        for complaint in complaints:
            self._complain(complaint)
            if complaint.version:
                self._table.reserve(complaint.name, complaint.version)
        for record in records:
            model = self._table.add(record)
            if record.offered:
                self.versions.await_start(model)
                self.versions.happen(model, VersionEvent.FOUND)
            else:
                self.versions.happen(model, VersionEvent.FOUND_UNLOADED)
            if record.aside:
                self._effects.append(NoteTrouble(TroubleKind.MODEL_SET_ASIDE, record.label, record.aside))
        for complaint in route_complaints:
            self._complain(complaint)
        for route in routes:
            if route.name in self._table.versions:
                self._table.restore_route(route)
            elif route.name not in lost and "" not in lost:  # a lost record may be repaired by hand
                self._turns.write(WriteChange(route.name, Change(unroute=route.name)), None)

    def _complain(self, complaint: Complaint) -> None:
        """Note a trouble of a damaged part of the catalog."""
        log.error("%s", complaint.text)
        kind = TroubleKind.FILE_REPAIRED if complaint.mended else TroubleKind.FILE_DAMAGED
        subject = f"route of {complaint.name}" if complaint.name else "catalogue"
        if complaint.version:
            subject = f"{complaint.name}@{complaint.version}"
        self._effects.append(NoteTrouble(kind, subject, complaint.text))

    # ----- clients -----------------------------------------------------------------------------

    def request(
        self,
        client: bytes,
        message: Register | Unregister | Offer | Route | Promote | Rollback,
        owner: int = 0,
        by: str = "a client",
    ) -> None:
        """Take a client's request for a change. Raises ClockworkError where it is refused at once; else it is
        answered.

        owner: the client's number, as in messages.Prepare. by: who it is, as the catalogue keeps it.
        """
        waiter = Waiter(client, message.request_id)
        if isinstance(message, Register):
            registration = self._check(message, owner, by)
            self._take(ClientTask(message.name, waiter, registration, owner, by))
        elif isinstance(message, Unregister | Offer):
            self._take(ClientTask(message.model.partition("@")[0], waiter, message, owner, by))
        else:
            self._take(ClientTask(message.name, waiter, message, owner, by))
        self._go_on()

    def _check(self, message: Register, owner: int, by: str) -> Registration:
        check_name(message.name)
        options = check_options(message.options)
        files = parse_files(message.files)
        if self._table.free_version(message.name, options["version"]) > VERSION_MAX:
            raise InvalidInput(
                f"{message.name} has a version {VERSION_MAX}, and there is no number after that"
            )
        said = dict(message.options)
        return Registration(message.name, digest_of(files), options, files, owner, by, said, *orders_of(said))

    def chunk(self, client: bytes, message: UploadChunk, frame: Any) -> None:
        self._uploads.chunk(client, message, frame)
        self._go_on()

    def cancel(self, client: bytes, request_id: int) -> None:
        """End the upload of a client that has given up. An uploaded model is prepared all the same."""
        self._turns.drop(client, request_id)
        self._uploads.cancel(Waiter(client, request_id))
        self._go_on()

    def client_gone(self, client: bytes) -> None:
        """Drop a client's uploads and waiting requests; models that are being prepared stay."""
        self._turns.drop(client)
        self._uploads.client_gone(client)
        self.versions.client_gone(client)
        self._go_on()

    # ----- workers, scheduler and time ---------------------------------------------------------

    def worker_joined(
        self,
        worker: int,
        name: str,
        demand: Callable[[int], int],
        store: StoreBound | None = None,
        threads: int = 1,
    ) -> None:
        """Take a new worker; see Versions.worker_joined()."""
        self.versions.worker_joined(worker, name, demand, store, threads)

    def worker_drains(self, worker: int) -> None:
        """Note that a worker takes no more orders; its preparations stay until it has left."""
        self.versions.preparations.drains(worker)

    def not_stored(self, worker: int, message: NotStored) -> None:
        """Take a worker's word that a model does not lie in its store."""
        self.versions.not_stored(worker, message)
        self._go_on()

    def worker_left(self, worker: int) -> None:
        self.versions.worker_left(worker)
        self.versions.bundles.left(worker)
        self._go_on()

    def bundle_refused(self, worker: int, message: BundleRefused) -> None:
        """Take a worker's word that a bundle could not be taken as it came."""
        self.versions.bundle_refused(worker, message)
        self._go_on()

    def prepared(self, worker: int, message: Prepared, now_ns: int) -> None:
        """Take a worker's answer that it has prepared a model, or could not. Raises InvalidInput."""
        self.versions.prepared(worker, message, now_ns)
        self._go_on()

    def package_mended(self, digest: str) -> None:
        """Have workers try again that could not prepare the models of a package that is whole again."""
        for model in self._table.models_of(digest):
            self.versions.ask_again(model)
        self._go_on()

    def drained(self, model_id: int) -> None:
        """Finish a leaving version, of which the scheduler has let go."""
        self.versions.drained(model_id)
        self._go_on()

    def faulted(self, model_id: int, fault: Fault, worker: str, is_set_aside: bool) -> None:
        """Take a fault of a version's executions that the scheduler saw; see Versions.faulted()."""
        self.versions.faulted(model_id, fault, worker, is_set_aside)
        self._go_on()

    def beat(self, now_ns: int, request_count: int) -> None:
        """Retry failed writes and failed preparations. request_count: of all requests that have ended so far.
        Called now and then."""
        self.versions.prepare_again(now_ns)
        self.versions.bundles.beat(now_ns, request_count)
        self._uploads.beat(now_ns)
        if self._refused and now_ns >= self._retry_ns:
            self._retry_ns = now_ns + ERASE_RETRY_NS
            for model in list(self._refused):
                self._take(GiveUp(model.record.name, model))
        if self._stuck and now_ns >= self._stuck_ns:
            stuck, self._stuck = self._stuck, {}
            for digest in stuck:
                self._remove_unused("", digest)
        self._go_on()

    # ----- storage -----------------------------------------------------------------------------

    def ended(self, job: Job, value: Any, error: BaseException | None, now_ns: int) -> None:
        """Take a job of the storage thread that has ended with a value, or has failed."""
        match job:
            case WriteChange():
                self._written(job, value, error, now_ns)
            case OpenUpload() | WriteChunk() | CommitUpload():
                self._uploads.ended(job, value, error)
            case ReadUpload():
                upload = self._uploads.get(job.upload_id)
                if error is not None:
                    self._discard(upload, storage_error(error))
                else:
                    self._take(Become(upload.registration.name, job.upload_id, value))
            case ReadRecord():
                self.versions.record_read(job, value, error, now_ns)
            case ListPackages():
                self._remove_strays(value or ())
            case RemovePackage():
                self._package_removed(job.digest, error, now_ns)
        self._go_on()

    def backed_up(self, number: int, why: str, flaw: str) -> None:
        """Take the number of the newest change that the catalogue's backup has: packages go that neither the
        catalogue nor its backup names. why: there is no new backup. flaw: of the backup at the start."""
        if flaw:
            text = f"the backup of the catalogue was damaged ({flaw}) and is written anew"
            log.error("%s", text)
            self._effects.append(NoteTrouble(TroubleKind.FILE_REPAIRED, BACKUP, text))
        if why:
            if why != self._backup_failure:
                log.error("the catalogue cannot be backed up: %s", why)
            self._effects.append(NoteTrouble(TroubleKind.STORAGE_FAILED, BACKUP, why))
        elif not flaw:
            self._effects.append(ClearTrouble(TroubleKind.STORAGE_FAILED, BACKUP))
        self._backed_up, self._backup_failure = number, why
        self._remove_unneeded()
        self._go_on()

    def _package_removed(self, digest: str, error: BaseException | None, now_ns: int) -> None:
        if error is not None:
            text = f"package {digest} cannot be removed: {getattr(error, 'strerror', None) or error}"
            log.error("%s; that is tried again", text)
            self._effects.append(NoteTrouble(TroubleKind.STORAGE_FAILED, PACKAGES, text))
            self._stuck[digest] = None
            self._stuck_ns = now_ns + ERASE_RETRY_NS
        elif not self._stuck:
            self._effects.append(ClearTrouble(TroubleKind.STORAGE_FAILED, PACKAGES))

    def _written(self, job: WriteChange, number: int, error: BaseException | None, now_ns: int) -> None:
        following, refusal = self._turns.written(job.name, error)
        try:
            if refusal is None:
                self._follow(following, job.change)
                for digest in dict.fromkeys(record.digest for record in job.change.remove):
                    self._unneeded.append((number, job.name, digest))
                self._remove_unneeded()
            else:
                self._refuse_change(following, refusal, now_ns)
            self._go_on()
        finally:  # the next task is another client's
            while (task := self._turns.next(job.name)) is not None:
                self._begin_or_refuse(task)

    # ----- turns -------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take up an event's consequences: tasks of our own, and answers to waiters for versions to go."""
        while self.versions.tasks:
            self._take(self.versions.tasks.popleft())
        while self._uploads.dropped:
            registration = self._uploads.dropped.popleft()
            self._remove_unused(registration.name, registration.digest)
        self.versions.answer_gone()

    def _take(self, task: Task) -> None:
        """Begin a task now, or once no change of its name is under way. Raises ClockworkError if now."""
        if self._turns.is_free(task.name):
            self._begin(task)
        else:
            self._turns.wait(task)

    def _begin_or_refuse(self, task: Task) -> None:
        try:
            self._begin(task)
        except PolicyFailed:
            raise  # the scheduler's state may be inconsistent
        except ClockworkError as refusal:
            self._refuse_task(task, refusal)
        except Exception as defect:  # a defect of the controller fails this task alone
            log.error("an order about %s failed", task.name, exc_info=defect)
            self._refuse_task(task, Unavailable(f"the controller failed at this ({type(defect).__name__})"))

    def _refuse_task(self, task: Task, refusal: ClockworkError) -> None:
        if isinstance(task, ClientTask):
            self._refuse([task.waiter], refusal)
        else:
            log.error("%s: %s", task.name, refusal)

    def _begin(self, task: Task) -> None:
        """Check a task against the present state, and have its change written. Raises ClockworkError."""
        self._by = task.by if isinstance(task, ClientTask) else ""
        if isinstance(task, Become):
            self._by = self._uploads.get(task.upload_id).registration.by
        match task:
            case ClientTask(waiter=waiter, wanted=Registration() as registration):
                self._register(waiter, registration)
            case ClientTask(waiter=waiter, wanted=Unregister() as wanted):
                self._unregister(waiter, wanted.model)
            case ClientTask(waiter=waiter, wanted=Offer(offered=True) as wanted, owner=owner):
                self._load_or_wait(waiter, wanted.model, owner)
            case ClientTask(waiter=waiter, wanted=Offer() as wanted):
                self._unload(waiter, wanted.model)
            case ClientTask(waiter=waiter, wanted=Route() | Promote() | Rollback() as wanted):
                route = next_route(self._table, wanted)
                self._write(wanted.name, Change(route=route), Reroute(waiter))
            case Become():
                self._become(task)
            case GiveUp():
                self._give_up(task)
            case Retire():
                self._retire(task)
            case KeepRecord():
                self._keep_record(task)

    def _write(self, name: str, change: Change, following: Following) -> None:
        change = dataclasses.replace(change, by=self._by or change.by)
        self._turns.write(WriteChange(name, change), following)

    def _follow(self, following: Following | None, change: Change) -> None:
        """Apply a change that is on disk."""
        match following:
            case Add():
                self._hold_route(change)
                self._add(following)
            case Adopt():
                self._adopted(following)
            case Reload():
                for model in following.models:
                    self._load(model, following.owner)
                # The last version takes the name's traffic
                self._await_load(following.models[-1], following.waiter)
            case Leave():
                self._hold_route(change)
                self._leave(following)
            case Retire(model=model):
                error = InvalidModel(
                    f"{model.record.name} has {VERSIONS_MAX} versions newer than {model.label}, which is the most"
                )
                self._refuse(following.waiters, error)
                self._hold_route(change)
                self.versions.happen(model, VersionEvent.ERASED)
            case GiveUp(model=model):
                self.versions.refuse(model)
                self._hold_route(change)
                # A worker that has joined meanwhile may have prepared it.
                is_unknown = model.state is ModelState.FAILED and model.prepared is None
                self.versions.happen(model, VersionEvent.GIVEN_UP if is_unknown else VersionEvent.ERASED)
            case Reroute():
                self._rerouted(following, change)

    def _refuse_change(self, following: Following | None, error: ClockworkError, now_ns: int) -> None:
        """Refuse a change that could not be written: nothing has changed."""
        match following:
            case Add():
                self._discard(following.upload, error)
            case Adopt() | Retire():  # a version that is not retired stays until the next version is ready
                self._refuse(following.waiters, error)
            case Reload() | Leave() | Reroute():
                self._refuse([following.waiter], error)
            case GiveUp():  # the version stays as failed, and a restart would have it prepared again
                self.versions.refuse(following.model)
                self._refused[following.model] = None
                self._retry_ns = now_ns + ERASE_RETRY_NS

    def _refuse(self, waiters: Sequence[Waiter], error: ClockworkError) -> None:
        self._effects.extend(Refuse(waiter, error) for waiter in waiters)

    def _hold_route(self, change: Change) -> None:
        """Apply a change's route of a name."""
        if change.unroute:
            del self._table.named[change.unroute]
            self._table.apply(change.unroute)
        elif change.route is not None:
            self._table.named[change.route.name] = change.route

    def _rerouted(self, following: Reroute, change: Change) -> None:
        route = change.route
        assert route is not None
        self._hold_route(change)
        self._table.apply(route.name)
        self._effects.append(ReplyRoute(following.waiter, route.name))
        log.info("route of %s: %s", route.name, describe_split(route.split))

    # ----- registering -------------------------------------------------------------------------

    def _register(self, waiter: Waiter, registration: Registration) -> None:
        model = self._before(registration)
        if model is not None:
            options = kept_options(registration.said, model.record.options)
            registration = registration._replace(options=options)
        # A damaged package is uploaded once more, and then is the existing version's: see _become().
        is_lacking = self._lacks(registration.digest)
        if not is_lacking and self._adopt([waiter], registration):
            return
        if not is_lacking and self._table.count >= MODELS_MAX:
            raise Unavailable(f"{MODELS_MAX} models are registered, which is the most")
        check_traffic(self._table, registration)
        self._uploads.begin(waiter, registration)

    def _become(self, task: Become) -> None:
        """Make an upload a version. Until then its package is kept, because the upload is listed."""
        upload = self._uploads.get(task.upload_id)
        try:
            if self._adopt(upload.waiters, upload.registration):
                self._uploads.remove(upload)
                return
            route = upgrade(self._table, upload.registration, task.interface)
        except ClockworkError as error:
            self._discard(upload, error)
            return
        name, digest, options, files, *_ = upload.registration
        version = self._table.free_version(name, options["version"])
        serving, interface = self._table.serving(name), task.interface
        if serving is not None and serving.record.interface is not None and interface is not None:
            interface = with_labels_of(serving.record.interface, interface)
        record = ModelRecord(
            name, version, digest, files, options | {"version": 0}, is_read=True, interface=interface
        )
        self._write(name, Change(save=[record], route=route), Add(upload, record))

    def _add(self, following: Add) -> None:
        self._uploads.remove(following.upload)
        model = self._table.add(following.record)
        model.owner = following.upload.registration.owner
        self.versions.await_start(model)
        count = len(self.versions.preparations.worker_ids())
        for waiter in following.upload.waiters:
            self.versions.wait(model, waiter)
            progress = Progress(waiter.request_id, "prepare", 0, count)
            self._effects.append(SendClient(waiter.client, progress))
        self.versions.happen(model, VersionEvent.REGISTERED)

    def _discard(self, upload: Upload, error: ClockworkError) -> None:
        """Refuse an upload whose package is stored, and remove the package if it is unused."""
        self._uploads.remove(upload)
        self._refuse(upload.waiters, error)
        self._remove_unused(upload.registration.name, upload.registration.digest)

    def _remove_unused(self, name: str, digest: str) -> None:
        """Remove a package that a name no longer needs, unless others use it or its record may be on disk."""
        if not self._turns.is_unsure(name) and not self._uses(digest):
            self._effects.append(RemovePackage(digest))

    def _remove_unneeded(self) -> None:
        """Remove the packages that neither the catalogue nor its backup names."""
        while self._unneeded and self._unneeded[0][0] <= self._backed_up:
            _, name, digest = self._unneeded.popleft()
            self._remove_unused(name, digest)

    def _remove_strays(self, digests: Sequence[str]) -> None:
        """Remove stored packages that no record has: their removal, or their registration, was cut short.

        None is removed where a record could not be read, or may be on disk unknown to us: it may come back.
        """
        if self._has_lost or self._turns.is_any_unsure:
            return
        strays = [digest for digest in digests if not self._uses(digest)]
        if strays:
            log.info("%d stored packages that no model has are removed", len(strays))
        self._effects.extend(RemovePackage(digest) for digest in strays)

    def _uses(self, digest: str, apart_from: Sequence[ModelRecord] = ()) -> bool:
        """Whether a version that stays, or an upload, uses a package."""
        return self._table.uses(digest, apart_from) or self._uploads.uses(digest)

    def _before(self, registration: Registration) -> ModelVersion | None:
        """The version that gives a registration its missing options: the newest, or the requested version, if
        its content is the same, else the version that serves."""
        name, wanted = registration.name, registration.options["version"]
        versions = self._table.versions.get(name, {})
        newest = versions.get(wanted) if wanted in versions else next(reversed(versions.values()), None)
        if newest is not None and newest.record.digest == registration.digest:
            return newest
        return self._table.serving(name)

    def _current(self, registration: Registration) -> ModelVersion | None:
        """The requested version, else the newest, if it already has the content that is being registered."""
        name, digest, options, *_ = registration
        wanted = options["version"]
        versions = [
            model for number, model in self._table.versions.get(name, {}).items() if wanted in (0, number)
        ]
        if not versions:
            return None
        record = versions[-1].record
        is_same = record.digest == digest and (
            preparation_options(record.options) == preparation_options(options)
        )
        can_serve = versions[-1].state in (ModelState.PREPARING, ModelState.READY, ModelState.UNLOADED)
        return versions[-1] if is_same and can_serve else None

    def _adopt(self, waiters: Sequence[Waiter], registration: Registration) -> bool:
        """Have a registration refer to an existing version with the same content. Raises InvalidInput.

        The registration may change its default SLO, and have it serve.
        """
        model = self._current(registration)
        if model is None:
            return False
        record = model.record
        if record.aside:
            raise Unavailable(set_aside_text(record))
        slo_ns = registration.options["slo_ns"]
        is_new = slo_ns not in (0, record.options.get("slo_ns", 0))
        if is_new and model.prepared is not None and (why := model.prepared.slo_below_execution(slo_ns)):
            raise InvalidInput(f"an SLO of {slo_ns / 1e6:g} ms for {model.label} is {why}")
        if record.offered and not is_new:
            self._join(model, waiters)
            return True
        options = registration.options if is_new else record.options
        saved = dataclasses.replace(record, offered=True, options=options)
        self._write(record.name, Change(save=[saved]), Adopt(waiters, model, options, registration.owner))
        return True

    def _adopted(self, following: Adopt) -> None:
        model, options = following.model, following.options
        is_new = options is not model.record.options
        model.record.options = options
        if model.record.aside:  # set aside since the change was begun; its record is written later
            self._refuse(following.waiters, Unavailable(set_aside_text(model.record)))
            return
        if model.state is ModelState.UNLOADED:
            self._load(model, following.owner)
        elif is_new:
            self._table.set_slo(model, options["slo_ns"])
        self._join(model, following.waiters)

    def _join(self, model: ModelVersion, waiters: Sequence[Waiter]) -> None:
        """Have clients wait for a version that is served, or will be."""
        for waiter in waiters:
            self.versions.wait(model, waiter)
        self.versions.ask_again(model)
        self.versions.settle(model)

    # ----- loading and unloading ---------------------------------------------------------------

    def _addressed(self, text: str) -> list[ModelVersion]:
        """The loaded version that ``name@version`` means, or all loaded versions of a name."""
        name, at, _ = text.partition("@")
        if not at:
            return list(self._table.live(name).values())
        found = self._table.find(text)
        return [found] if found else []

    def _standing(self, text: str) -> tuple[list[ModelVersion], list[ModelVersion]]:
        """The served and the unloaded versions. Raises ModelNotFound, or Unavailable during a removal."""
        models, away = self._addressed(text), self._table.find_unloaded(text)
        if not models and not away:
            raise ModelNotFound(self._table.absence(text))
        if any(model.state.is_leaving for model in models):
            raise Unavailable(f"{text} is being unloaded or removed; try again when that is done")
        return models, away

    def _load_or_wait(self, waiter: Waiter, text: str, owner: int) -> None:
        models, away = self._standing(text)
        for model in models:
            self.versions.ask_again(model)
        if not away:
            self._await_load(models[-1], waiter)
            return
        saved = [dataclasses.replace(model.record, offered=True, aside="") for model in away]
        self._write(away[0].record.name, Change(save=saved), Reload(waiter, away, owner))

    def _load(self, model: ModelVersion, owner: int) -> None:
        """Have an unloaded version prepared on every worker, as if it had just been registered."""
        model.record.offered = True
        model.owner = owner
        self.versions.happen(model, VersionEvent.LOAD)

    def _await_load(self, model: ModelVersion, waiter: Waiter) -> None:
        self.versions.wait(model, waiter)
        if model.state is ModelState.READY:
            self.versions.answer(model)
        else:
            self.versions.settle(model)

    def _unload(self, waiter: Waiter, text: str) -> None:
        models, _ = self._standing(text)
        self._check_free(text, "unloaded")
        leave = Leave(waiter, text, models, VersionEvent.UNLOAD)
        if not models:
            self._leave(leave)
            return
        saved = [dataclasses.replace(model.record, offered=False) for model in models]
        self._write(models[0].record.name, Change(save=saved), leave)

    def _leave(self, following: Leave) -> None:
        """Have versions go, and answer when they are gone: at once if there are no such versions."""
        is_removal = following.event is VersionEvent.ERASED
        for model in following.models:
            if not is_removal:
                model.record.offered = False
            self.versions.happen(model, following.event)
        body = {"removed" if is_removal else "unloaded": following.text}
        self.versions.wait_gone(following.waiter, body, following.models)

    # ----- removing ----------------------------------------------------------------------------

    def _unregister(self, waiter: Waiter, text: str) -> None:
        models = [model for model in self._addressed(text) if model.state is not ModelState.REMOVING]
        models += self._table.find_unloaded(text)
        if not models:
            raise ModelNotFound(self._table.absence(text))
        self._check_free(text, "removed")
        change = self._erasure(models, with_route="@" not in text)
        self._write(models[0].record.name, change, Leave(waiter, text, models, VersionEvent.ERASED))

    def _check_free(self, text: str, what: str) -> None:
        """Raises InvalidInput for a single version in its name's route, which has to be changed first."""
        name, at, version = text.partition("@")
        route = self._table.named.get(name)
        if at and route is not None and route.names(int(version)):
            raise InvalidInput(
                f"{text} has a part in the route of {name}: change that before it is {what}, or have {name} {what} "
                f"with all its versions"
            )

    def _erasure(self, models: Sequence[ModelVersion], with_route: bool) -> Change:
        """The change that erases these versions of one name."""
        records = [model.record for model in models]
        name = records[0].name
        digests = dict.fromkeys(record.digest for record in records)
        packages = [digest for digest in digests if not self._uses(digest, records)]
        route = self._table.named.get(name)
        is_last = all(model in models for model in self._table.versions[name].values())
        if route is not None and (with_route or (is_last and route.split is None)):
            return Change(remove=records, packages=packages, unroute=name)
        if route is not None:  # a rollback must not restore an erased version
            kept = dataclasses.replace(route)
            for record in records:
                kept.forget(record.version)
            if kept.split is None and not kept.earlier:
                return Change(remove=records, packages=packages, unroute=name)
            if kept != route:
                return Change(remove=records, packages=packages, route=kept)
        return Change(remove=records, packages=packages)

    def _give_up(self, task: GiveUp) -> None:
        model = task.model
        self._refused.pop(model, None)
        if model.state is ModelState.FAILED and not model.was_ready:
            self._write(task.name, self._erasure([model], with_route=False), task)

    def _retire(self, task: Retire) -> None:
        model = task.model
        split = self._table.split_of(task.name)
        if not model.state.is_live or model.state.is_leaving:
            self._refuse(task.waiters, gone_before_ready(model))
        elif split is not None and model.record.version in split.versions():
            for waiter in task.waiters:
                self.versions.wait(model, waiter)
            self.versions.settle(model)
        else:
            self._write(task.name, self._erasure([model], with_route=False), task)

    def _keep_record(self, task: KeepRecord) -> None:
        record, state = task.model.record, task.model.state
        # Another task may have been faster: the version serves again, or is erased.
        if bool(record.aside) if task.of_aside else state.is_live and not state.is_leaving:
            self._write(task.name, Change(save=[dataclasses.replace(record)]), task)
