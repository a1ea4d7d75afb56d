"""How a model comes, changes and goes: uploads, preparation on the workers, routing, removal.

Holds no socket: it says what to send through the small interface that the controller's loop gives
it. All file I/O goes through the storage thread, and what a client asks for holds, and is answered, once it
is on disk (see controller.turns): a reply to Register, Unregister, Offer, Route, Promote or Rollback is true
after a crash, too, and a failure means that nothing has changed.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from clockwork.config import (
    CHUNK_BYTES,
    CHUNK_WINDOW,
    ERASE_RETRY_NS,
    MODELS_MAX,
    TROUBLE_CHARS_MAX,
    UPLOADS_MAX,
    VERSION_MAX,
    VERSIONS_MAX,
)
from clockwork.controller.catalog import Catalog
from clockwork.controller.interfaces import read_summary
from clockwork.controller.models import (
    REMOVED,
    UNLOADED,
    ModelState,
    ModelTable,
    ServedModel,
    Waiter,
    set_aside_text,
)
from clockwork.controller.options import check_options
from clockwork.controller.preparations import PREPARING, READY, Preparations
from clockwork.controller.records import Change, Complaint, ModelRecord
from clockwork.controller.releases import Release, describe_split, next_route
from clockwork.controller.repairs import Repairs
from clockwork.controller.routes import NameRoute
from clockwork.controller.storage import StorageThread
from clockwork.controller.troubles import TroubleKind
from clockwork.controller.turns import Turns
from clockwork.errors import ClockworkError, InvalidInput, InvalidModel, ModelNotFound, Unavailable
from clockwork.formats.interface import Interface, difference
from clockwork.formats.package import PackageFile, PackageWriter, check_name, digest_of, parse_files, rows_of
from clockwork.formats.prepared import PreparedModel
from clockwork.scheduler.types import Event, ModelReady, ModelRemoved
from clockwork.wire.messages import (
    Forget,
    Prepare,
    Prepared,
    Progress,
    Register,
    Reply,
    Status,
    UploadAck,
    UploadChunk,
    UploadNeed,
)
from clockwork.wire.telling import printable, tell

log = logging.getLogger("clockwork.controller")


class Outside(Protocol):
    """What registration needs of the controller's loop."""

    def to_client(self, client: bytes, message: tuple[Any, ...]) -> None: ...

    def fail(self, client: bytes, request_id: int, error: ClockworkError) -> None: ...

    def to_worker(self, worker: int, message: tuple[Any, ...]) -> None: ...

    def schedule(self, event: Event) -> None: ...

    def now(self) -> int: ...

    def worker_ids(self) -> list[int]: ...

    def blame(self, worker: int, why: str) -> None: ...

    def note_trouble(self, kind: TroubleKind, subject: str, text: str) -> None: ...

    def clear_trouble(self, kind: TroubleKind, subject: str) -> None: ...

    def describe(self, model: ServedModel) -> dict[str, Any]: ...

    def describe_route(self, name: str) -> dict[str, Any]: ...

    def publish(self, topic: str, body: dict[str, Any]) -> None: ...


@dataclasses.dataclass(slots=True)
class Upload:
    """One package on its way in. Chunks are written in the order in which they come."""

    client: bytes
    request_id: int
    name: str
    options: dict[str, Any]
    files: list[PackageFile]
    writer: PackageWriter | None = None
    missing: int = 0  # bytes still to come
    outstanding: int = 0  # chunks given to the storage thread
    has_all: bool = False  # nothing more is needed of the client: it becomes a version whoever waits for that
    failed: bool = False

    @property
    def waiters(self) -> list[Waiter]:
        return [] if self.failed else [Waiter(self.client, self.request_id)]


@dataclasses.dataclass(slots=True)
class Removal:
    """A client that waits for every one of these versions to be gone, or to be unloaded."""

    waiter: Waiter
    body: dict[str, Any]  # of the reply
    model_ids: set[int]


class Registrar:
    def __init__(
        self, outside: Outside, catalog: Catalog, storage: StorageThread, table: ModelTable, repairs: Repairs
    ) -> None:
        self._outside = outside
        self._catalog = catalog
        self._storage = storage
        self._table = table
        self._uploads: dict[tuple[bytes, int], Upload] = {}
        self._repairs = repairs
        self._turns = Turns(outside, catalog, storage)
        self._awaited: dict[int, ServedModel] = {}  # models that have waiters
        self._removals: list[Removal] = []
        self._refused: dict[int, ServedModel] = {}  # to be erased, which has failed
        self._retry_ns = 0
        self.preparations = Preparations()
        self._starting: dict[int, ServedModel] = {}  # models of which a start still waits; see readiness()
        self._has_started = False

    # ----- start -------------------------------------------------------------------------------

    def restore(self) -> int:
        """Take up what the catalog holds; workers are asked when they join."""
        records, complaints = self._catalog.records()
        lost = {complaint.name for complaint in complaints if not complaint.mended}
        for complaint in complaints:
            self._complain(complaint)
            self._table.reserve(complaint.name, complaint.version)
        for record in records:
            if record.offered:
                model = self._table.add(record)
                model.was_ready = True
                self._starting[model.model_id] = model
            else:
                self._table.put_away(record)
            if record.aside:
                self._outside.note_trouble(TroubleKind.MODEL_SET_ASIDE, record.label, record.aside)
        routes, complaints = self._catalog.routes()
        for complaint in complaints:
            self._complain(complaint)
        for route in routes:
            if route.name in self._table.versions or route.name in self._table.unloaded:
                self._table.restore_route(route)
            elif route.name not in lost:  # whose record may be put right by hand
                self._turns.write(route.name, Change(unroute=route.name), lambda _: None)
        return len(records)

    def _complain(self, complaint: Complaint) -> None:
        """A file of the catalog was not as it should be."""
        log.error("%s", complaint.text)
        kind = TroubleKind.FILE_REPAIRED if complaint.mended else TroubleKind.FILE_DAMAGED
        what = f"{complaint.name}@{complaint.version}" if complaint.version else f"route of {complaint.name}"
        self._outside.note_trouble(kind, what, complaint.text)

    def readiness(self) -> str:
        """Why the cluster is not ready, as a sentence; "" once it is.

        It has started when every model is served by somebody, or has failed for a reason, that was registered before
        or has been since: with hundreds of models one that fails keeps nobody waiting, and one that is registered
        later makes nothing unready. From then on it is ready while there is a worker that does not leave; whether a
        model is, is the model's to say.
        """
        if not self.preparations.has_workers():
            return "no worker is connected"
        for model in self._starting.values():
            return f"{len(self._starting)} models are not served yet, among them {model.label}"
        return ""

    def _note_start(self, model: ServedModel) -> None:
        """See whether the start still waits for a model that has changed."""
        is_there = self._table.by_id.get(model.model_id) is model
        is_open = is_there and model.state in (ModelState.PREPARING, ModelState.READY)
        if is_open and not self.preparations.is_served(model):
            return
        self._starting.pop(model.model_id, None)
        if not self._starting and not self._has_started:
            self._has_started = any(
                other.state in (ModelState.READY, ModelState.FAILED) for other in self._table.by_id.values()
            )

    # ----- clients -----------------------------------------------------------------------------

    def register(self, client: bytes, message: Register) -> None:
        """Raises InvalidModel, InvalidInput or Unavailable; otherwise the request is answered later."""
        check_name(message.name)
        options = check_options(message.options)
        files = parse_files(message.files)
        digest = digest_of(files)
        if self._table.free_version(message.name, options["version"]) > VERSION_MAX:
            raise InvalidInput(
                f"{message.name} has a version {VERSION_MAX}, and there is no number after that"
            )
        waiter = Waiter(client, message.request_id)
        begin = functools.partial(self._register, waiter, message.name, digest, options, files)
        self._turns.take(message.name, begin, client, message.request_id)

    def _register(
        self, waiter: Waiter, name: str, digest: str, options: dict[str, Any], files: list[PackageFile]
    ) -> None:
        if self._adopt([waiter], name, digest, options):
            return
        if len(self._table.by_id) + self._table.unloaded_count >= MODELS_MAX:
            raise Unavailable(f"{MODELS_MAX} models are registered, which is the most")
        if (waiter.client, waiter.request_id) in self._uploads:
            raise InvalidInput(f"request {waiter.request_id} is in use")
        if len(self._uploads) >= UPLOADS_MAX:
            raise Unavailable(f"{UPLOADS_MAX} uploads are under way, which is the most; try again later")
        upload = Upload(waiter.client, waiter.request_id, name, options, files)
        upload.missing = sum(file.bytes for file in files)
        self._uploads[waiter.client, waiter.request_id] = upload
        catalog = self._catalog

        def begin() -> PackageWriter | None:
            return None if catalog.is_whole(digest) else catalog.store.writer(files)

        self._storage.submit(begin, functools.partial(self._begun, upload, digest))

    def chunk(self, client: bytes, message: UploadChunk, frame: Any) -> None:
        """One chunk of an upload; those of an upload that failed or is unknown are dropped."""
        upload = self._uploads.get((client, message.request_id))
        if upload is None or upload.writer is None or upload.failed:
            return
        size = len(frame)
        upload.missing -= size
        upload.outstanding += 1
        if upload.outstanding > CHUNK_WINDOW or upload.missing < 0 or not 0 < size <= CHUNK_BYTES:
            upload.outstanding -= 1
            self._abandon(
                upload, InvalidInput(f"upload of {upload.name!r} breaks its window, sizes or chunk size")
            )
            return
        job = functools.partial(upload.writer.write, message.file, message.offset, frame)
        self._storage.submit(job, functools.partial(self._written, upload))

    def unregister(self, client: bytes, request_id: int, text: str) -> None:
        """Remove ``name`` with all its versions, or ``name@version`` alone. Raises ModelNotFound."""
        begin = functools.partial(self._unregister, Waiter(client, request_id), text)
        self._turns.take(text.partition("@")[0], begin, client, request_id)

    def _unregister(self, waiter: Waiter, text: str) -> None:
        records = [model.record for model in self._addressed(text) if model.leaving != REMOVED]
        records += self._table.find_unloaded(text)
        if not records:
            raise ModelNotFound(f"no model {tell(text, 200)} is registered")
        self._check_free(text, "removed")
        change, forget = self._removal(records, with_route="@" not in text)

        def erased(error: ClockworkError | None) -> None:
            if error is not None:
                self._outside.fail(waiter.client, waiter.request_id, error)
                return
            forget()
            self._remove(records, Removal(waiter, {"removed": text}, set()))

        self._turns.write(records[0].name, change, erased)

    def _check_free(self, text: str, what: str) -> None:
        """Raises InvalidInput of a single version that is part of its name's route: that has to be changed first."""
        name, at, version = text.partition("@")
        route = self._table.named.get(name)
        if at and route is not None and route.names(int(version)):
            raise InvalidInput(
                f"{text} has a part in the route of {name}: change that before it is {what}, or have {name} {what} "
                f"with all its versions"
            )

    def _removal(self, records: Sequence[ModelRecord], with_route: bool) -> tuple[Change, Callable[[], None]]:
        """The change that erases these versions of one name, and what to do of its route when it has been made."""
        name = records[0].name
        digests = dict.fromkeys(record.digest for record in records)
        packages = [digest for digest in digests if not self._uses(digest, records)]
        route = self._table.named.get(name)
        if route is None:
            return Change(remove=records, packages=packages), lambda: None
        if with_route:

            def unroute() -> None:
                del self._table.named[name]
                self._table.apply(name)

            return Change(remove=records, packages=packages, unroute=name), unroute
        # Nobody goes back to a version that is no more.
        kept = dataclasses.replace(route)
        for record in records:
            kept.forget(record.version)
        if kept == route:
            return Change(remove=records, packages=packages), lambda: None
        return Change(remove=records, packages=packages, route=kept), functools.partial(
            self._keep_route, kept
        )

    def _keep_route(self, route: NameRoute) -> None:
        self._table.named[route.name] = route

    def _remove(self, records: Sequence[ModelRecord], removal: Removal) -> None:
        """Let go of versions that have been erased, and say so when the last one is gone."""
        models = []
        for record in records:
            model = self._table.versions.get(record.name, {}).get(record.version)
            if model is None:
                self._table.take_back(record)
                self._not_aside(record)
                log.info("removed %s@%d", record.name, record.version)
            else:
                models.append(model)
        self._begin(removal, models, REMOVED)

    def _begin(self, removal: Removal, models: Sequence[ServedModel], leaving: str) -> None:
        """Have versions go, and answer when they are gone: at once if there are none."""
        removal.model_ids.update(model.model_id for model in models)
        self._removals.append(removal)
        for model in models:
            if model.state is ModelState.DRAINING:  # it was being unloaded
                model.leaving = leaving
            else:
                self.drain(model, leaving)
        self._complete()

    def _addressed(self, text: str) -> list[ServedModel]:
        """The one version that ``name@version`` means, or all of a name."""
        name, at, _ = text.partition("@")
        found = self._table.find(text)
        if at:
            return [found] if found else []
        return list(self._table.versions.get(name, {}).values())

    def offer(self, client: bytes, request_id: int, text: str, offered: bool) -> None:
        """Load or unload a model. Raises ModelNotFound, or Unavailable of one that is just going."""
        act = self._offer if offered else self._unload
        begin = functools.partial(act, Waiter(client, request_id), text)
        self._turns.take(text.partition("@")[0], begin, client, request_id)

    def _standing(self, text: str) -> tuple[list[ServedModel], list[ModelRecord]]:
        """The versions that are served, and those that were put away; see offer() for what it raises."""
        models, away = self._addressed(text), self._table.find_unloaded(text)
        if not models and not away:
            raise ModelNotFound(f"no model {tell(text, 200)} is registered")
        if any(model.state is ModelState.DRAINING for model in models):
            raise Unavailable(f"{text} is being unloaded or removed; try again when that is done")
        return models, away

    def _offer(self, waiter: Waiter, text: str) -> None:
        models, away = self._standing(text)
        for model in models:
            self._ask_again(model)
        if not away:
            self._await_load(models[-1], waiter)
            return

        def saved(error: ClockworkError | None) -> None:
            if error is not None:
                self._outside.fail(waiter.client, waiter.request_id, error)
                return
            loaded = [self._load(record) for record in away]
            self._await_load(loaded[-1], waiter)  # the newest, which takes the name's traffic

        change = Change(save=[dataclasses.replace(record, offered=True, aside="") for record in away])
        self._turns.write(away[0].name, change, saved)

    def _await_load(self, model: ServedModel, waiter: Waiter) -> None:
        self._await(model, waiter)
        if model.state is ModelState.READY:
            body = self._outside.describe(model)
            self._answer(model, lambda waiter: Reply(waiter.request_id, body))
        else:
            self._settle(model)

    def _unload(self, waiter: Waiter, text: str) -> None:
        models, _ = self._standing(text)
        self._check_free(text, "unloaded")
        removal = Removal(waiter, {"unloaded": text}, set())
        if not models:
            self._begin(removal, [], UNLOADED)
            return

        def saved(error: ClockworkError | None) -> None:
            if error is not None:
                self._outside.fail(waiter.client, waiter.request_id, error)
                return
            for model in models:
                model.record.offered = False
            self._begin(removal, models, UNLOADED)

        change = Change(save=[dataclasses.replace(model.record, offered=False) for model in models])
        self._turns.write(models[0].record.name, change, saved)

    def _load(self, record: ModelRecord) -> ServedModel:
        """Have an unloaded version prepared on every worker, as if it had just been registered."""
        self._table.take_back(record)
        record.offered = True
        self._not_aside(record)
        model = self._table.add(record)
        model.was_ready = True
        for worker in self._outside.worker_ids():
            self._ask(model, worker)
        self._outside.publish("model", {"model": model.label, "state": model.state.value})
        return model

    def _not_aside(self, record: ModelRecord) -> None:
        """Somebody has said that it serves again, or it is gone."""
        record.aside = ""
        self._outside.clear_trouble(TroubleKind.MODEL_SET_ASIDE, record.label)

    def set_aside(self, model: ServedModel, why: str) -> None:
        """The scheduler takes no more requests for a version and lets go of it: it is unloaded, and says why. So it is
        after a restart; what cannot be written is a trouble of its own."""
        if model.state is ModelState.DRAINING:
            return  # somebody has it go anyway
        record = model.record
        record.offered, record.aside = False, why
        self._outside.note_trouble(TroubleKind.MODEL_SET_ASIDE, model.label, why)
        self._leave(model, UNLOADED)

        def keep() -> None:
            if record.aside:  # else somebody was faster
                self._turns.write(record.name, Change(save=[dataclasses.replace(record)]), lambda _: None)

        self._turns.take(record.name, keep)

    # ----- routes ------------------------------------------------------------------------------

    def release(self, client: bytes, message: Release) -> None:
        """Change where a name's traffic goes. Raises ModelNotFound, InvalidInput or Unavailable."""
        waiter = Waiter(client, message.request_id)

        def begin() -> None:
            self._change(waiter, next_route(self._table, message))

        self._turns.take(message.name, begin, client, message.request_id)

    def _change(self, waiter: Waiter, route: NameRoute) -> None:
        def saved(error: ClockworkError | None) -> None:
            if error is not None:
                self._outside.fail(waiter.client, waiter.request_id, error)
                return
            self._keep_route(route)
            self._table.apply(route.name)
            body = self._outside.describe_route(route.name)
            self._outside.to_client(waiter.client, Reply(waiter.request_id, body))
            log.info("route of %s: %s", route.name, describe_split(route.split))
            self._outside.publish("route", {"model": route.name, **body})

        self._turns.write(route.name, Change(route=route), saved)

    # ----- clients -----------------------------------------------------------------------------

    def cancel(self, client: bytes, request_id: int) -> None:
        """A client has given up: its upload ends. A model that is past that is prepared all the same."""
        self._turns.drop(client, request_id)
        upload = self._uploads.get((client, request_id))
        if upload is not None:
            self._abandon(upload, None)

    def client_gone(self, client: bytes) -> None:
        """Nobody waits for its uploads and registrations any more; models that are under way stay."""
        self._turns.drop(client)
        for key in [key for key in self._uploads if key[0] == client]:
            self._abandon(self._uploads[key], None)
        for model in list(self._awaited.values()):
            model.waiters = [waiter for waiter in model.waiters if waiter.client != client]
            if not model.waiters:
                del self._awaited[model.model_id]
        self._removals = [one for one in self._removals if one.waiter.client != client]

    # ----- workers -----------------------------------------------------------------------------

    def worker_joined(self, worker: int, name: str) -> None:
        self.preparations.joined(worker, name)
        for model in self._table.by_id.values():
            if model.state is not ModelState.DRAINING:
                self._ask(model, worker)

    def worker_drains(self, worker: int) -> None:
        """It takes no more orders; what it has said stays, until it has left."""
        self.preparations.drains(worker)

    def worker_left(self, worker: int) -> None:
        self._repairs.worker_left(worker)
        for model in list(self._table.by_id.values()):
            if self._forget_preparation(model, worker) and model.state is ModelState.PREPARING:
                self._settle(model)
        self.preparations.left(worker)

    def _prepare_again(self) -> None:
        """Ask workers again that could not prepare a model, when their pauses are over."""
        for worker, model in self.preparations.due(self._outside.now()):
            if worker in self.preparations.failed_on(model) and model.state is not ModelState.DRAINING:
                self._ask(model, worker)

    def prepared(self, worker: int, message: Prepared) -> None:
        """A worker has prepared a model, or could not. Raises InvalidInput."""
        model = self._table.by_id.get(message.model_id)
        if model is None or model.workers.get(worker) != PREPARING:
            return
        if message.status != Status.OK:
            # An invalid model is one for everybody: another try may only help where others serve it.
            may_help = message.status != Status.INVALID_MODEL or model.was_ready
            if message.status == Status.INTERNAL:  # perhaps what it was sent is not what was stored
                self._repairs.inspect(model.record.digest)
            self._not_prepared(model, worker, message.text or "could not be prepared", may_help)
        else:
            prepared = read_summary(message.summary)
            if not model.record.is_read:
                job = functools.partial(self._read_again, model.record, prepared)
                self._storage.submit(job, functools.partial(self._was_read, model, worker, prepared))
                return
            self._learn(model, worker, prepared)
        self._settle(model)

    def _read_again(self, record: ModelRecord, prepared: PreparedModel) -> Interface | None:
        """What the package of a record of an earlier version declares. Raises DamagedPackage, OSError."""
        interface = self._catalog.declared(record.digest, record.files, record.options)
        if interface is not None and difference(interface, prepared):
            self._catalog.inspect(
                record.digest
            )  # every byte, which would hold up a start with thousands of them
        return interface

    def _was_read(
        self,
        model: ServedModel,
        worker: int,
        prepared: PreparedModel,
        interface: Interface | None,
        error: BaseException | None,
    ) -> None:
        record = model.record
        if error is not None:  # until it has been replaced, its workers' word is all there is
            self._repairs.inspect(record.digest)
        elif not record.is_read:
            record.is_read, record.interface = True, interface
            self._turns.take(record.name, functools.partial(self._keep_interface, model))
        if self._table.by_id.get(model.model_id) is model and model.workers.get(worker) == PREPARING:
            self._learn(model, worker, prepared)
            self._settle(model)

    def _learn(self, model: ServedModel, worker: int, prepared: PreparedModel) -> None:
        """A worker has prepared a model, it says."""
        lie = self._contradiction(model, prepared)
        why = lie or self._unsuitable(model, prepared)
        if why:
            self._outside.to_worker(worker, Forget(model.model_id))
            self._not_prepared(model, worker, why, may_help=False)
        else:
            self.preparations.note(model, worker, READY)
            self._repairs.worker_ready(worker, model.record.digest)
            self._table.learn(model, worker, prepared)
            self._outside.schedule(ModelReady(self._outside.now(), worker, model.spec(prepared)))
        if lie:
            self._outside.blame(worker, f"of {model.label}, {lie}")

    def _contradiction(self, model: ServedModel, prepared: PreparedModel) -> str:
        """In what a worker's word cannot be of a model's package; "" if in nothing. What it measured is its own."""
        record = model.record
        if prepared.digest != record.digest:
            return f"it prepared another package: {tell(prepared.digest)}"
        why = difference(record.interface, prepared) if record.interface is not None else ""
        return f"it contradicts the package: {why}" if why else ""

    def _unsuitable(self, model: ServedModel, prepared: PreparedModel) -> str:
        """Why a worker that prepared it so may not serve a model; "" if it may."""
        fastest = min((point.exec_ns for point in prepared.profile), default=0)
        if 0 < model.slo_ns < fastest and not model.was_ready:
            return (
                f"its SLO of {model.slo_ns / 1e6:g} ms is below its execution time of {fastest / 1e6:.3g} ms"
            )
        return ""

    def _keep_interface(self, model: ServedModel) -> None:
        """So that its package need not be read again."""
        if self._table.by_id.get(model.model_id) is model and model.state is not ModelState.DRAINING:
            change = Change(save=[dataclasses.replace(model.record)])
            self._turns.write(model.record.name, change, lambda _: None)

    def _not_prepared(self, model: ServedModel, worker: int, why: str, may_help: bool) -> None:
        why = printable(why, TROUBLE_CHARS_MAX)
        self.preparations.note(model, worker, why)
        again = may_help and self.preparations.try_again(model, worker, self._outside.now())
        name = self.preparations.name(worker)
        log.warning(
            "worker %s cannot prepare %s: %s%s",
            name,
            model.label,
            why,
            "; asked again later" if again else "",
        )
        if model.was_ready:  # nobody waits for it, who would hear of it
            self._outside.note_trouble(TroubleKind.PREPARATION_FAILED, f"{model.label} on {name}", why)

    def _forget_preparation(self, model: ServedModel, worker: int) -> bool:
        """What a worker said of a model holds no more; False if it said nothing."""
        state = self.preparations.forget(model, worker)
        if state is not None and state not in (PREPARING, READY):
            self._outside.clear_trouble(
                TroubleKind.PREPARATION_FAILED, f"{model.label} on {self.preparations.name(worker)}"
            )
        return state is not None

    def gone(self, model_id: int) -> None:
        """The scheduler let go of a draining model: forget it everywhere, but for its record if it is unloaded."""
        model = self._table.by_id[model_id]
        for worker in model.workers:
            self._outside.to_worker(worker, Forget(model_id))
        self._take_out(model)
        if model.leaving == UNLOADED:
            self._table.put_away(model.record)
        log.info("%s %s", model.leaving, model.label)
        self._outside.publish("model", {"model": model.label, "state": model.leaving})
        for removal in self._removals:
            removal.model_ids.discard(model_id)
        self._complete()

    def _complete(self) -> None:
        """Answer whoever waits for versions to go, and they are gone. On disk they were first."""
        for removal in [one for one in self._removals if not one.model_ids]:
            self._removals.remove(removal)
            self._outside.to_client(removal.waiter.client, Reply(removal.waiter.request_id, removal.body))

    def beat(self) -> None:
        """Try again, now and then, what could not be written, and what could not be prepared."""
        self._prepare_again()
        if self._refused and self._outside.now() >= self._retry_ns:
            self._retry_ns = self._outside.now() + ERASE_RETRY_NS
            for model in list(self._refused.values()):
                self._turns.take(model.record.name, functools.partial(self._give_up, model))

    # ----- inside ------------------------------------------------------------------------------

    def _current(self, name: str, digest: str, options: dict[str, Any]) -> ServedModel | ModelRecord | None:
        """The version that was asked for, else the newest, where it already is what is being registered; the record
        of one that is unloaded."""
        wanted = options["version"]
        versions = {
            number: model
            for number, model in self._table.versions.get(name, {}).items()
            if wanted in (0, number)
        }
        away = [record for record in self._table.find_unloaded(name) if wanted in (0, record.version)]

        def same(record: ModelRecord) -> bool:
            return record.digest == digest and all(
                record.options.get(key) == options[key] for key in ("batching", "batch_max")
            )

        if away and (not versions or away[-1].version > next(reversed(versions))):
            return away[-1] if same(away[-1]) else None
        if not versions:
            return None
        newest = next(reversed(versions.values()))
        is_current = newest.state in (ModelState.PREPARING, ModelState.READY) and same(newest.record)
        return newest if is_current else None

    def _adopt(self, waiters: list[Waiter], name: str, digest: str, options: dict[str, Any]) -> bool:
        """Have a registration mean a version that is there, if it is of the same content. Raises InvalidInput.

        What may be new is its default SLO, and that it serves.
        """
        current = self._current(name, digest, options)
        if current is None:
            return False
        record = current.record if isinstance(current, ServedModel) else current
        if record.aside:
            raise Unavailable(set_aside_text(record))
        slo_ns = options["slo_ns"]
        is_new = slo_ns not in (0, record.options.get("slo_ns", 0))
        if is_new and isinstance(current, ServedModel) and current.prepared is not None:
            fastest = min((point.exec_ns for point in current.prepared.profile), default=0)
            if slo_ns < fastest:
                raise InvalidInput(
                    f"an SLO of {slo_ns / 1e6:g} ms is below {current.label}'s execution time "
                    f"of {fastest / 1e6:.3g} ms"
                )
        if record.offered and not is_new:
            assert isinstance(current, ServedModel)
            self._join(current, waiters)
            return True
        wanted = dataclasses.replace(record, offered=True, options=options if is_new else record.options)

        def saved(error: ClockworkError | None) -> None:
            if error is not None:
                for waiter in waiters:
                    self._outside.fail(waiter.client, waiter.request_id, error)
                return
            record.options = wanted.options
            model = current if isinstance(current, ServedModel) else self._load(record)
            if is_new:
                self._table.set_slo(model, slo_ns)
            self._join(model, waiters)

        self._turns.write(name, Change(save=[wanted]), saved)
        return True

    def _join(self, model: ServedModel, waiters: Sequence[Waiter]) -> None:
        for waiter in waiters:
            self._await(model, waiter)
        self._ask_again(model)
        self._settle(model)

    def _begun(
        self, upload: Upload, digest: str, writer: PackageWriter | None, error: BaseException | None
    ) -> None:
        upload.writer = writer
        if error is not None:
            self._abandon(upload, _storage_error(error))
        elif upload.failed:
            self._abandon(upload, None)
        elif writer is None:
            self._arrived(upload, digest)
        elif upload.missing == 0:
            self._finish(upload)
        else:
            need = UploadNeed(upload.request_id, CHUNK_WINDOW, CHUNK_BYTES)
            self._outside.to_client(upload.client, need)

    def _written(self, upload: Upload, _: Any, error: BaseException | None) -> None:
        upload.outstanding -= 1
        if upload.failed:
            return
        if error is not None:
            self._abandon(upload, _storage_error(error))
            return
        self._outside.to_client(upload.client, UploadAck(upload.request_id, 1))
        if upload.missing == 0 and upload.outstanding == 0:
            self._finish(upload)

    def _finish(self, upload: Upload) -> None:
        assert upload.writer is not None
        upload.has_all = True
        self._outside.to_client(upload.client, Progress(upload.request_id, "store", 0, 1))
        done = functools.partial(self._committed, upload, upload.writer.digest)
        self._storage.submit(upload.writer.commit, done)

    def _committed(self, upload: Upload, digest: str, _: Any, error: BaseException | None) -> None:
        upload.writer = None  # commit() removed what it could not keep
        if error is not None:
            upload.has_all = False
            self._abandon(upload, _storage_error(error))
        else:
            self._arrived(upload, digest)

    def _arrived(self, upload: Upload, digest: str) -> None:
        """The package is in the store: read what it declares."""
        upload.has_all = True
        self._repairs.arrived(digest)
        job = functools.partial(self._catalog.declared, digest, upload.files, upload.options)
        self._storage.submit(job, functools.partial(self._declared, upload, digest))

    def _declared(
        self, upload: Upload, digest: str, interface: Interface | None, error: BaseException | None
    ) -> None:
        if error is not None:
            self._abandon_arrived(upload, digest, _storage_error(error))
        else:
            self._turns.take(upload.name, functools.partial(self._become, upload, digest, interface))

    def _become(self, upload: Upload, digest: str, interface: Interface | None) -> None:
        """A version, unless a twin was faster. Until then nobody removes the package, for its upload is listed."""
        key = (upload.client, upload.request_id)
        try:
            if self._adopt(upload.waiters, upload.name, digest, upload.options):
                del self._uploads[key]
                return
        except ClockworkError as error:
            self._abandon_arrived(upload, digest, error)
            return
        version = self._table.free_version(upload.name, upload.options["version"])
        options = upload.options | {"version": 0}
        record = ModelRecord(
            upload.name, version, digest, upload.files, options, is_read=True, interface=interface
        )

        def saved(error: ClockworkError | None) -> None:
            if error is not None:
                self._abandon_arrived(upload, digest, error)
                return
            del self._uploads[key]
            self._become_version(upload, record)

        self._turns.write(upload.name, Change(save=[record]), saved)

    def _become_version(self, upload: Upload, record: ModelRecord) -> None:
        model = self._table.add(record)
        if not self._has_started:
            self._starting[model.model_id] = model
        workers = self._outside.worker_ids()
        for waiter in upload.waiters:
            self._await(model, waiter)
            self._outside.to_client(waiter.client, Progress(waiter.request_id, "prepare", 0, len(workers)))
        for worker in workers:
            self._ask(model, worker)
        if not workers:
            log.info("%s waits for a worker to prepare it", model.label)
        self._outside.publish("model", {"model": model.label, "state": model.state.value})

    def _abandon_arrived(self, upload: Upload, digest: str, error: ClockworkError) -> None:
        """Its package is of no use, unless others have it, or its record may be on disk."""
        del self._uploads[upload.client, upload.request_id]
        for waiter in upload.waiters:
            self._outside.fail(waiter.client, waiter.request_id, error)
        if not self._turns.is_unsure(upload.name) and not self._uses(digest):
            self._storage.submit(functools.partial(self._catalog.store.remove, digest), _ignore)

    def _uses(self, digest: str, apart_from: Sequence[ModelRecord] = ()) -> bool:
        """Whether a package is of a version that stays, or of an upload."""
        return self._table.uses(digest, apart_from) or any(
            digest_of(upload.files) == digest for upload in self._uploads.values()
        )

    def _await(self, model: ServedModel, waiter: Waiter) -> None:
        model.waiters.append(waiter)
        self._awaited[model.model_id] = model

    def _answer(self, model: ServedModel, outcome: Callable[[Waiter], Reply | ClockworkError]) -> None:
        """Tell everyone who waits for a model's registration."""
        for waiter in model.waiters:
            answer = outcome(waiter)
            if isinstance(answer, Reply):
                self._outside.to_client(waiter.client, answer)
            else:
                self._outside.fail(waiter.client, waiter.request_id, answer)
        model.waiters.clear()
        self._awaited.pop(model.model_id, None)

    def _abandon(self, upload: Upload, error: ClockworkError | None) -> None:
        """Nobody waits for an upload any more; it ends, unless all of it has come."""
        if not upload.failed and error is not None:
            self._outside.fail(upload.client, upload.request_id, error)
        upload.failed = True
        if upload.has_all:
            return
        self._uploads.pop((upload.client, upload.request_id), None)
        if upload.writer is not None:
            writer, upload.writer = upload.writer, None
            self._storage.submit(writer.abort, _ignore)

    def _ask(self, model: ServedModel, worker: int) -> None:
        record = model.record
        self._forget_preparation(model, worker)
        self.preparations.note(model, worker, PREPARING)
        options = {key: record.options[key] for key in ("batching", "batch_max")}
        self._outside.to_worker(
            worker,
            Prepare(
                model.model_id, record.name, record.version, record.digest, rows_of(record.files), options
            ),
        )

    def _ask_again(self, model: ServedModel) -> None:
        """Somebody wants it served: whoever could not prepare it is asked once more."""
        for worker in self.preparations.failed_on(model):
            self._ask(model, worker)

    def _settle(self, model: ServedModel) -> None:
        """See whether preparing has come to an end, one way or the other; tell whoever waits."""
        if model.state is ModelState.DRAINING:
            return
        is_settled = model.settled()
        # A version that takes traffic for the first time does so when it is ready everywhere; what did before (in an
        # earlier life of the controller, or before it was unloaded) is served as soon as one worker can.
        if is_settled or (model.was_ready and READY in model.workers.values()):
            if model.state is not ModelState.READY:
                model.state, model.text = ModelState.READY, ""
                model.was_ready = True
                self._route(model)
                log.info("%s is ready", model.label)
                self._outside.publish("model", {"model": model.label, "state": "ready"})
            if is_settled and model.waiters:
                body = self._outside.describe(model)
                self._answer(model, lambda waiter: Reply(waiter.request_id, body))
        elif model.failed_everywhere():
            model.state = ModelState.FAILED
            model.text = next(iter(model.workers.values()))
            self._table.route(model)
            self._outside.publish("model", {"model": model.label, "state": "failed", "text": model.text})
            if model.was_ready:
                error = InvalidModel(f"{model.label} cannot be served: {model.text}")
                self._answer(model, lambda _: error)
            else:
                self._turns.take(model.record.name, functools.partial(self._give_up, model))
        self._note_start(model)

    def _give_up(self, model: ServedModel) -> None:
        """Erase a version that no worker could prepare, and refuse it to whoever registered it."""
        self._refused.pop(model.model_id, None)
        if self._table.by_id.get(model.model_id) is not model or model.state is not ModelState.FAILED:
            return
        change, forget = self._removal([model.record], with_route=False)

        def erased(error: ClockworkError | None) -> None:
            refusal = InvalidModel(f"{model.label} cannot be served: {model.text}")
            self._answer(model, lambda _: refusal)
            if (
                error is not None
            ):  # it stays as a version that failed, and a restart would have it prepared again
                self._refused[model.model_id] = model
                self._retry_ns = self._outside.now() + ERASE_RETRY_NS
                return
            forget()
            if model.prepared is not None:  # on a worker that has come meanwhile
                self.drain(model, REMOVED)
                return
            for worker in model.workers:
                self._outside.to_worker(worker, Forget(model.model_id))
            self._take_out(model)

        self._turns.write(model.record.name, change, erased)

    def _route(self, model: ServedModel) -> None:
        """A version is ready everywhere: it takes its part of its name's traffic; too old ones go."""
        name = model.record.name
        self._table.route(model)
        split = self._table.split_of(name)
        kept = split.versions() if split is not None else []
        versions = [
            one
            for one in self._table.versions[name].values()
            if one.state in (ModelState.READY, ModelState.FAILED)
        ]
        for old in versions[:-VERSIONS_MAX]:
            if old.record.version not in kept:
                waiters: list[Waiter] = []
                if old is model:  # to try that again would come to the same
                    waiters, model.waiters = model.waiters, []
                    self._awaited.pop(model.model_id, None)
                self._turns.take(name, functools.partial(self._retire, old, waiters))

    def _retire(self, model: ServedModel, waiters: Sequence[Waiter]) -> None:
        """Erase a version that VERSIONS_MAX newer ones have followed; waiters registered just that."""
        split = self._table.split_of(model.record.name)
        is_there = self._table.by_id.get(model.model_id) is model and model.state is not ModelState.DRAINING
        if not is_there or (split is not None and model.record.version in split.versions()):
            for waiter in waiters:
                self._await(model, waiter)
            if is_there:
                self._settle(model)
            return
        change, forget = self._removal([model.record], with_route=False)

        def erased(error: ClockworkError | None) -> None:
            for waiter in waiters:
                refusal = error or _too_old(model.label, model.record.name)
                self._outside.fail(waiter.client, waiter.request_id, refusal)
            if error is None:  # else it stays until the next one is ready
                forget()
                self.drain(model, REMOVED)

        self._turns.write(model.record.name, change, erased)

    def _leave(self, model: ServedModel, leaving: str) -> None:
        model.state = ModelState.DRAINING
        model.leaving = leaving
        self._answer(model, lambda _: Unavailable(f"{model.label} was unregistered before it was ready"))
        self._table.unroute(model)
        self._note_start(model)
        self._outside.publish("model", {"model": model.label, "state": "draining"})

    def drain(self, model: ServedModel, leaving: str) -> None:
        """Take no more requests for a version; it goes when the last one has been answered. On disk that is so.

        leaving: UNLOADED or REMOVED.
        """
        self._leave(model, leaving)
        if model.prepared is None:  # the scheduler never heard of it
            self.gone(model.model_id)
        else:
            self._outside.schedule(ModelRemoved(self._outside.now(), model.model_id))

    def _take_out(self, model: ServedModel) -> None:
        """The model is gone, here and on the workers."""
        for worker in list(model.workers):
            self._forget_preparation(model, worker)
        self.preparations.forget_model(model)
        self._table.remove(model)
        self._note_start(model)


def _too_old(label: str, name: str) -> ClockworkError:
    return InvalidModel(f"{name} has {VERSIONS_MAX} versions newer than {label}, which is the most")


def _ignore(_: Any, error: BaseException | None) -> None:
    if error is not None:
        log.warning("an abandoned upload could not be removed: %s", error)


def _storage_error(error: BaseException) -> ClockworkError:
    """What is said of an upload that could not be written."""
    if isinstance(error, ClockworkError):
        return error
    if isinstance(error, OSError):
        return Unavailable(f"the controller cannot store the model: {error.strerror}")
    log.error("an upload could not be stored", exc_info=error)
    return Unavailable(f"the controller cannot store the model: {type(error).__name__}: {error}")
