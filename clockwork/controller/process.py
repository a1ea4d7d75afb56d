"""The controller's process: sockets, timers and books. Scheduling decisions are the scheduler's.

A single thread drains the sockets, lets the scheduler decide once for all messages that came together, and
carries its orders out. The exchange (``_exchange``) handles requests, results, and the orders and answers
that follow from them; it calls Python only to look names up and to word errors. Every rarer message stops the
exchange, and this module hands it on to ``clients`` or ``workers``. Disk work happens on the storage thread,
preparation on the workers.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from clockwork.config import HEARTBEAT_NS, VERSION
from clockwork.config.controller import EXIT_TAKEN_OVER, HOLDER_LOOK_S, LEAVE_S
from clockwork.controller._exchange import (
    CLIENT_MESSAGE,
    CLIENTS_LEFT,
    ORDER,
    ORDERS_DONE,
    OTHER,
    PAUSED,
    WORKER_MESSAGE,
    WORKERS_LEFT,
    WRONG_REQUEST,
    WRONG_RESULT,
)
from clockwork.controller.catalog.follow import CatalogFollower
from clockwork.controller.catalog.objects import ObjectPackages
from clockwork.controller.catalog.postgres import Fence, shown
from clockwork.controller.catalog.snapshots import packages_at
from clockwork.controller.catalog.store import LOCK_FILE, Catalog
from clockwork.controller.context import COMPLAINTS, Context
from clockwork.controller.effects import (
    ClearTrouble,
    Complain,
    Effect,
    ListPackages,
    NoteTrouble,
    Publish,
)
from clockwork.controller.fellows import Fellows
from clockwork.controller.lease.held import HeldLease
from clockwork.controller.lease.keeper import LeaseKeeper, LeaseLost, LeaseWon
from clockwork.controller.lease.turn import await_lease, begin_keeper, named_leader
from clockwork.controller.outlet import Outlet
from clockwork.controller.peers.access import Access
from clockwork.controller.peers.directory import Presence, await_successor, fellows_in, takeover_from
from clockwork.controller.peers.links import Links
from clockwork.controller.peers.returning import Returning, read_names, write_names
from clockwork.controller.peers.seats import divide
from clockwork.controller.ports.clients import ClientPort, Served
from clockwork.controller.ports.cuts import Cuts
from clockwork.controller.ports.sockets import Sockets
from clockwork.controller.ports.workers import WorkerPort
from clockwork.controller.recording.recorder import FlightRecorder
from clockwork.controller.recording.recordings import Recordings
from clockwork.controller.registration.registrar import Registrar
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.settings import ControllerSettings
from clockwork.controller.standing import ControllerRole, Takeover, Why
from clockwork.controller.storage.lanes import ObjectJobs
from clockwork.controller.storage.repairs import Repairs
from clockwork.controller.storage.thread import CatalogJobs, StorageThread
from clockwork.controller.troubles import TroubleKind, Troubles
from clockwork.controller.views.queries import OUTCOMES
from clockwork.controller.views.store_reports import StoreReports
from clockwork.controller.views.views import Views
from clockwork.errors import ConfigError
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import ModelFault, ModelGone
from clockwork.system.clock import now_ns
from clockwork.system.holder import HolderWatch, end, look
from clockwork.system.limits import descriptor_limit, open_descriptors, raise_descriptor_limit
from clockwork.system.locks import await_lock, lock_file
from clockwork.system.words import say_count
from clockwork.wire.complaints import Complaints
from clockwork.wire.logs import start_log
from clockwork.wire.messages import Status
from clockwork.wire.transport import require_keys_beyond_loopback

log = logging.getLogger("clockwork.controller")


class Controller:
    """A controller with all its parts. run() returns when stop() was called, a signal came, or another
    controller has become active (is_taken_over)."""

    def __init__(
        self,
        settings: ControllerSettings,
        succession: Succession | None = None,
        keeper: LeaseKeeper | None = None,
        won: LeaseWon | None = None,
    ) -> None:
        """succession: of a standby whose turn has come. keeper, won: of the lease, where the catalogue is in
        PostgreSQL; the keeper stays the caller's."""
        self._keeper = keeper
        self._lease = HeldLease() if won is None or keeper is None else HeldLease(won.leader, keeper.hear)
        self.is_taken_over = False
        access = self._access = Access(settings.key, settings.allowed)
        endpoints = (settings.client_endpoint, settings.worker_endpoint, settings.events_endpoint)
        require_keys_beyond_loopback(endpoints, access.keys, settings.insecure)
        self._scheduler = make_scheduler(settings.policy, settings.memory, settings.options)
        self._recordings = Recordings(settings)
        self.seats = divide(descriptor_limit(), open_descriptors())
        fence = None if won is None else Fence(won.leader.epoch, won.leader.holder)
        cluster = "" if won is None else won.leader.cluster
        packages = packages_at(settings.data, settings.packages, settings.package_cache, cluster)
        self._data = settings.data
        rows = None if won is None else won.rows
        self._catalog = Catalog(settings.data, packages, settings.catalog, fence, rows)
        if succession is None:
            self._catalog.open()
            self._sockets = self._open(settings)
        else:  # peers dial already, and are connected while the catalogue is read
            self._sockets = self._open(settings)
            self._catalog.open(succession.lock)
        self.client_endpoint = self._sockets.clients.endpoint
        self.worker_endpoint = self._sockets.workers.endpoint
        self.events_endpoint = self._sockets.publisher.endpoint
        self._has_waited = settings.standby
        self._stopping = False
        self._word = Why.ENDED  # the reason of the end, for a standby

        self._effects: deque[Effect] = deque()  # the decisions of the parts below
        self._table = ModelTable(self._effects)
        self._links = Links()
        served = Served(self._table, self._links)
        self._exchange = self._sockets.exchange(self._scheduler, served.find, self._recordings.ring)
        self._context = self._begin(settings)
        self.troubles, self._complaints = self._context.troubles, self._context.complaints
        self._heartbeat_ns = self._context.now_ns
        self._storage = StorageThread()
        self._jobs = (
            ObjectJobs(self._catalog, self._storage, packages)
            if isinstance(packages, ObjectPackages)
            else CatalogJobs(self._catalog, self._storage)
        )
        self._store_failure = ""  # as of the last beat
        self._catalog_url, self._is_database_away = settings.catalog, False  # the same
        self._repairs = Repairs(self._effects, self._catalog, self._table)
        self._registrar = Registrar(
            self._effects, self._table, self._repairs.lacks, self._scheduler.store_room, settings.threads_max
        )
        versions = self._registrar.versions
        self._presence = (
            succession.presence
            if succession is not None
            else Presence(settings.data, self.client_endpoint, ControllerRole.ACTIVE)
        )
        takeover = succession.takeover if succession is not None else None
        self._fellows = Fellows(
            self._effects, self._storage, settings.data, self._presence, lambda: self._catalog.number,
            self.client_endpoint, takeover, settings.standby, keeper,
        )  # fmt: skip
        views = Views(
            self._context, self._effects, self._scheduler, self._table, versions, self._repairs, settings.policy,
            self.seats, lambda: self._fellows.standing,
        )  # fmt: skip
        self.queries = views.queries
        self._returning = Returning(
            read_names(settings.data) if won is None else won.workers,
            lambda worker: versions.preparations.count(worker)["preparing"],
            self._context.now_ns,
        )
        self._names: list[str] | None = None  # of the workers, as written last
        self._is_nameless = False  # whether they could not be written
        self._clients = ClientPort(
            self._context, self._effects, access, served, self._table, self._registrar, views, self._returning,
            self._give_way,
        )  # fmt: skip
        self._workers = WorkerPort(
            self._context, access, self._effects, self._table, self._registrar, self._repairs, settings.policy,
            self._scheduler.plans_fetches, self._scheduler.sole_copies, self._returning.joined,
        )  # fmt: skip
        self._cuts = Cuts(self._exchange, self._effects)
        self._stores = StoreReports(self._effects)
        self._outlet = Outlet(
            self._effects, self._context, self._sockets.publisher, self._clients, self._workers, self._registrar,
            self._repairs, self.queries, self._jobs,
        )  # fmt: skip
        self._restore(settings)

    def _open(self, settings: ControllerSettings) -> Sockets:
        """Open the sockets, then the recorded files: a failed start must not damage another's files."""
        sockets: Sockets | None = None
        try:
            sockets = Sockets(settings, self._access, self.seats)
            self._recordings.open()
        except ConfigError:
            if sockets is not None:
                sockets.close()
            self._catalog.close()
            raise
        return sockets

    def _begin(self, settings: ControllerSettings) -> Context:
        epoch = int.from_bytes(os.urandom(7), "big")
        ring, header = self._recordings.ring, self._recordings.header
        flight = FlightRecorder(
            ring, header, settings.data, self._scheduler.held, epoch, self._scheduler.save, self._exchange.pause
        )  # fmt: skip
        complaints = Complaints(log, COMPLAINTS)
        return Context(
            self._exchange, self._links, flight, Troubles(), complaints, epoch, now_ns(), self._lease
        )

    def _restore(self, settings: ControllerSettings) -> None:
        """Restore the registered models and routes from the catalog."""
        records, complaints = self._catalog.records()
        self._registrar.restore(records, complaints, *self._catalog.routes(), self._catalog.unused())
        self._registrar.versions.await_names(settings.await_models)
        self._effects.append(ListPackages())
        self._outlet.carry_out()
        if self._returning.is_over:
            self._start_care()
        log.info(
            "controller %s listens for clients on %s and for workers on %s; %s in %s; room for %d clients, %d workers and "
            "%d subscribers",
            VERSION, self.client_endpoint, self.worker_endpoint, say_count(len(records), "model"), settings.data,
            self.seats.clients, self.seats.workers, self.seats.subscribers,
        )  # fmt: skip

    def _start_care(self) -> None:
        """Begin to look after the stored files. That takes the interpreter's time, so that a controller which
        follows another has let clients in before."""
        self._presence.opens()
        self._catalog.keep_backup(self._report_backup)
        self._repairs.start()

    def stop(self) -> None:
        """Have run() return after this turn of its loop."""
        self._stopping = True

    def _give_way(self, answered: Callable[[list[str], BaseException | None], bool]) -> None:
        """See GiveWay. The catalogue's log is written back before the end, beside requests."""

        def prepare() -> list[str]:
            self._catalog.write_back()
            elsewhere = self._keeper.standbys if self._keeper is not None else 0
            found = [f"{say_count(elsewhere, 'controller')} of this catalogue"] if elsewhere else []
            return [*self._fellows.standing_by(), *found]

        def prepared(standbys: list[str] | None, error: BaseException | None) -> None:
            if answered(standbys or [], error):
                self._word = Why.HANDED_OVER
                self.stop()

        self._storage.submit(prepare, prepared)

    def run(self, wake_fd: int = -1) -> None:
        """Serve until stop(). wake_fd: a descriptor that becomes readable when a signal has come."""
        flight, publisher = self._context.flight, self._sockets.publisher
        others = [self._storage.fileno(), self._repairs.fileno(), flight.fileno(), publisher.fileno]
        others += [wake_fd] if wake_fd >= 0 else []
        others += [self._keeper.fileno()] if self._keeper is not None else []
        exchange, context, outlet, needs = self._exchange, self._context, self._outlet, self._need_handlers()
        exchange.wait_on(self._sockets.filenos, others)
        if not self._has_waited:
            gc.collect()
        gc.freeze()
        while not self._stopping:
            need = exchange.run(min(self._heartbeat_ns, self._returning.due_ns))
            context.now_ns = exchange.now_ns
            needs[need]()
            outlet.carry_out(is_deciding=need == ORDER)
            if need != ORDER and self._returning.look(context.now_ns):
                self._clients.let_in()
                outlet.carry_out()
                self._start_care()

    def _need_handlers(self) -> dict[int, Callable[[], None]]:
        """The handler of each reason for which the exchange returns to Python."""
        return {
            OTHER: self._other,
            WORKERS_LEFT: self._workers.ended,
            CLIENTS_LEFT: self._clients.ended,
            WORKER_MESSAGE: self._workers.message,
            CLIENT_MESSAGE: self._clients.message,
            WRONG_RESULT: self._workers.wrong_result,
            WRONG_REQUEST: self._clients.wrong_request,
            ORDER: self._order,
            ORDERS_DONE: self._orders_done,
            PAUSED: self._paused,
        }

    def time_stages(self) -> None:
        """Count this thread's processor time by stage of the loop."""
        self._exchange.is_timed = True

    def stages_ns(self) -> dict[str, int]:
        """Processor time in ns by stage of the loop since time_stages(), without libzmq's own thread."""
        return self._exchange.spent_ns()

    def close(self) -> None:
        """End in order: leave the open requests to a standby here, or answer them, and release all resources.

        Another that has taken over answers the requests: clients ask it by themselves."""
        if not self.is_taken_over and (self._has_heir() or self._has_heir_elsewhere()):
            self._leave()
            return
        if not self.is_taken_over:
            self._exchange.fail_all(Status.UNAVAILABLE, "the controller is shutting down")
        self._effects.clear()  # effects left over from a controller that failed
        self._clients.dismiss()
        self._workers.dismiss()
        self._outlet.carry_out(is_deciding=True)  # the scheduler is told nothing more
        self._recordings.close()
        self._jobs.close()
        self._catalog.stop_backup()
        self._storage.close()
        self._repairs.close()
        self._context.flight.close()
        self._sockets.close()
        self._presence.close()
        self._catalog.close()

    def _has_heir(self) -> bool:
        """Whether a standby takes over at once when this controller ends."""
        try:
            return bool(self._fellows.standing_by())
        except OSError as error:
            log.warning("standbys of %s are not seen: %s", self._data, error)
            return False

    def _has_heir_elsewhere(self) -> bool:
        """Whether a standby on another machine takes over at once when this controller ends."""
        return self._keeper is not None and self._keeper.standbys > 0

    def _leave(self) -> None:
        """Leave the directory, the lease and the peers to a standby, in this order and at once.

        Nobody is answered: clients ask inference again of the standby, and workers report there."""
        self._jobs.close()
        self._storage.close()
        self._repairs.close()
        self._presence.close(self._word)
        is_here = self._has_heir()
        self._catalog.release()
        if self._keeper is not None:
            self._keeper.close(self._word)
        self._sockets.close()
        if is_here and not await_successor(self._data, LEAVE_S):
            log.warning("the standby of %s lets no client in yet", self._data)
        self._recordings.close()
        self._context.flight.close()

    # ----- what the exchange stops for ---------------------------------------------------------------

    def _other(self) -> None:
        """Serve the timers and descriptors, which are neither a message nor an order."""
        self._storage.drain(self._after_job_failed)
        self._repairs.drain(self._after_job_failed)
        self._context.flight.drain(self._after_job_failed)
        self._sockets.publisher.follow()
        self._follow_lease()
        if self._context.now_ns >= self._heartbeat_ns:
            self._beat()

    def _follow_lease(self) -> None:
        """Stop where another controller has become active."""
        for news in self._keeper.news() if self._keeper is not None else ():
            if isinstance(news, LeaseLost):
                log.error(
                    "another controller, %s, is active: this one serves no more", named_leader(news.leader)
                )
                self.is_taken_over = True
                self.stop()

    def _after_job_failed(self, error: Exception) -> None:
        """Complain of an exception raised while a storage job's result was taken in."""
        text = "failed to take in the result of a job of the storage thread"
        self._effects.append(Complain("storage failed", text, error))

    def _order(self) -> None:
        order = self._exchange.order()
        if type(order) is ModelFault:
            self._registrar.faulted(
                order.model_id, order.fault, self._workers.name(order.worker), order.set_aside
            )
        else:
            assert type(order) is ModelGone, order
            self._registrar.drained(order.model_id)

    def _paused(self) -> None:
        self._context.flight.paused(self._context.now_ns)

    def _orders_done(self) -> None:
        """The orders of one decision have been carried out, as far as they could."""
        self._exchange.end_orders()
        clients, workers = self._exchange.lost()
        self._clients.lost(clients)
        self._workers.lost(workers)

    # ----- timers --------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._heartbeat_ns = self._context.now_ns + HEARTBEAT_NS
        self._workers.beat()
        counts = dict(zip(OUTCOMES, self._exchange.outcomes(), strict=True))
        self._registrar.beat(self._context.now_ns, sum(counts.values()))
        self._repairs.beat(self._context.now_ns)
        self._follow_store(self._jobs.beat(self._context.now_ns))
        self._write_names()
        self._fellows.beat(self._context.now_ns)
        self._catalog.touch()
        if self._keeper is not None:
            self._keeper.beat()
            self._follow_database(self._keeper.why_away)
        self._complaints.settle(self._context.now_ns)
        self._cuts.note()
        self._stores.look(self._scheduler.store_status(), self._context.now_ns)
        bad = counts["refused"] + counts["missed"] + counts["failed"]
        self._context.flight.beat(counts["answered"], bad, self._context.now_ns)
        folder, failure = self._recordings.failure()
        if failure:
            self._effects.append(NoteTrouble(TroubleKind.TELEMETRY_FAILED, folder, failure))
        if self._access.has_changed():
            self._read_keys()
        for text in self._access.refusals():
            self._complaints.note("key refused", self._context.now_ns, text)
        if count := self._sockets.publisher.look():
            text = f"{count} connections for events were ended: they said more than a subscriber has to, or nothing in time"
            self._effects.append(Complain("events cut", text))
        counted = {"held": self._exchange.held_count, **self.queries.count_all()}
        self._effects.append(Publish("counts", counted))

    def _report_backup(self, number: int, why: str, flaw: str) -> None:
        """Have the loop learn of a backup of the catalogue. Called on the backups' thread."""
        self._storage.report(self._backed_up, (number, why, flaw), None)

    def _backed_up(self, found: tuple[int, str, str], _: BaseException | None) -> None:
        self._registrar.backed_up(*found)

    def _write_names(self) -> None:
        """Have the names of the workers written where they have changed, for the controller that follows."""
        names = self._workers.names()
        if not self._returning.is_over or names == self._names:
            return
        self._names = names
        if self._keeper is not None:
            self._keeper.name_workers(names)
            return
        self._storage.submit(lambda: write_names(self._data, names), self._after_names)

    def _after_names(self, _: object, error: BaseException | None) -> None:
        if error is not None:
            self._names = None  # they are written at the next beat
            if not self._is_nameless:
                log.warning("a controller that follows will not await the workers: %s", error)
        self._is_nameless = error is not None

    def _follow_store(self, failure: str) -> None:
        """Tell of an object store that has failed, and take up what waited for it once it is back."""
        before, self._store_failure = self._store_failure, failure
        if failure == before:
            return
        url = self._catalog.store.place
        if failure:
            if not before:
                log.error("packages can be neither stored nor fetched: %s", failure)
            self._effects.append(NoteTrouble(TroubleKind.PACKAGES_UNREACHABLE, url, failure))
            return
        log.info("packages in %s can be stored and fetched again", url)
        self._effects.append(ClearTrouble(TroubleKind.PACKAGES_UNREACHABLE, url))
        self._effects.append(ListPackages())
        self._repairs.retry()
        self._registrar.versions.ask_all_again()

    def _follow_database(self, why: str) -> None:
        """Tell that the database of the catalogue is away, and so that changes are refused."""
        if bool(why) == self._is_database_away:
            return
        self._is_database_away = bool(why)
        place = shown(self._catalog_url)
        if why:
            text = f"the database does not answer ({why}): inference goes on, and changes are refused"
            self._effects.append(NoteTrouble(TroubleKind.STORAGE_FAILED, place, text))
        else:
            self._effects.append(ClearTrouble(TroubleKind.STORAGE_FAILED, place))

    def _read_keys(self) -> None:
        """Read the list of keys again, and end the connections of keys whose rights were lost."""
        try:
            revoked = self._access.read_again()
        except ConfigError as error:
            log.error("%s; the keys that were let in before still are", error)
            self._effects.append(NoteTrouble(TroubleKind.KEYS_UNREADABLE, "keys", str(error)))
            return
        self._effects.append(ClearTrouble(TroubleKind.KEYS_UNREADABLE, "keys"))
        log.info("the list of keys was read again: %d are no longer let in as before", len(revoked))
        if not revoked:
            return
        why = "its key was revoked"
        self._workers.revoke(revoked, why)
        self._clients.revoke(revoked, why)
        self._sockets.publisher.disconnect_all()


class Succession(NamedTuple):
    """The means of a standby whose turn has come. lock: the descriptor of the data directory's lock.
    takeover: None where no controller used the directory before."""

    lock: int
    presence: Presence
    takeover: Takeover | None


def _await_turn(
    settings: ControllerSettings, is_stopped: Callable[[], bool], wake_fd: int
) -> Succession | None:
    """Wait until no other controller uses the data directory. None: this one is to stop.

    Raises ConfigError."""
    log.info("standby: serves once no other controller uses %s", settings.data)
    begun_ns = now_ns()
    gc.collect()  # ahead of run(), which does not after a wait: it takes 20 to 90 ms
    gc.freeze()
    path, watch = settings.data / LOCK_FILE, HolderWatch()
    follower = None if settings.catalog else CatalogFollower(settings.data)
    has_waited = False

    def watch_holder() -> None:
        nonlocal has_waited
        has_waited = True
        presence.heard(follower.look() if follower is not None else -1)
        seen = look(path)
        if watch.must_end(seen, now_ns()) and seen.process is not None:
            log.warning(
                "process %d, which uses %s, does nothing (state %s): it is ended",
                seen.process.pid,
                path.parent,
                seen.state,
            )
            presence.has_ended()
            end(seen.process)

    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        presence = Presence(settings.data, settings.client_endpoint, ControllerRole.STANDBY)
        lock = await_lock(path, is_stopped, wake_fd, watch_holder, HOLDER_LOOK_S)
        if lock < 0:
            presence.close()
            return None
        fellows = fellows_in(settings.data)
    except OSError as error:
        raise ConfigError(f"data directory {settings.data} cannot be used: {error.strerror}") from None
    if not settings.catalog:
        log.info(
            "no other controller uses %s after %.1f s: active", settings.data, (now_ns() - begun_ns) / 1e9
        )
    takeover = takeover_from(fellows, time.time_ns(), settings.client_endpoint) if has_waited else None
    return Succession(lock, presence, takeover)


def _lock_data(settings: ControllerSettings) -> Succession:
    """The means of a controller that does not wait for others on its machine. Raises ConfigError."""
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        lock = lock_file(settings.data / LOCK_FILE)
    except BlockingIOError:
        raise ConfigError(f"data directory {settings.data} is in use by another controller") from None
    except OSError as error:
        raise ConfigError(f"data directory {settings.data} cannot be used: {error.strerror}") from None
    return Succession(lock, Presence(settings.data, settings.client_endpoint, ControllerRole.STANDBY), None)


def main(settings: ControllerSettings) -> int:
    """Run a controller until SIGINT or SIGTERM; returns the exit status. Raises ConfigError."""
    start_log("controller")
    # A signal may come during the start, too: the controller then ends in order before it serves.
    stopped = False
    controller: Controller | None = None

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        if controller is not None:
            controller.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    raise_descriptor_limit()
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    succession: Succession | None = None
    if settings.standby:
        succession = _await_turn(settings, lambda: stopped, read_end)
        if succession is None:
            log.info("shutting down")
            return 0
    keeper: LeaseKeeper | None = None
    won: LeaseWon | None = None
    try:
        if settings.catalog:
            succession = succession or _lock_data(settings)
            keeper = begin_keeper(settings, succession.takeover)
            won = await_lease(settings, keeper, succession.presence.follow, lambda: stopped, read_end)
            if won is None:
                log.info("shutting down")
                return 0
        controller = Controller(settings, succession, keeper, won)
        if stopped:
            controller.stop()
        try:
            controller.run(read_end)
            log.info("shutting down")
        finally:
            controller.close()
    finally:
        if keeper is not None:
            keeper.close()
        if controller is None and succession is not None:
            succession.presence.close()
        signal.set_wakeup_fd(-1)
        os.close(read_end)
        os.close(write_end)
    return EXIT_TAKEN_OVER if controller.is_taken_over else 0
