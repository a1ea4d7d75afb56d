"""Takes models from Prepare to Prepared: found in the cache, or fetched and prepared, then opened on devices.

    Prepare -> opening thread: is it prepared already? --yes--> device.open -> Prepared
                    | no
                    v
               has another worker prepared it? --yes--> worker.bundles --+
                    | no, or it cannot be taken                          v
               fetch the package (unless it is here) -> preparation -> sync -> opening thread again

A package for emulated devices is only a profile: the opening thread (worker.opening) prepares it itself. On a
GPU, the opening thread also checks and times the model, and reserves the device's time before steps that
stall it.

A model that is found prepared is compared with its checksums before its first load (worker.checks). Damaged
files, in the cache or in a package, are set aside, prepared or fetched again, and counted for the controller.

A worker whose store has a bound (worker.stores) has a part of the models. The controller announces each
model, and has it fetched or dropped by orders:

    Announce -> opening thread: does it lie in the store? --yes--> device.open -> Prepared
                    | no
                    v
               NotStored
    FETCH -> worker.bundles -> sync -> opening thread -> Prepared, and the FETCH's result
    DROP  -> forgotten by the devices -> its files removed -> NotStored, and the DROP's result

The loop only moves models between these steps; threads and processes read the files.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from clockwork.config.worker import CHECK_JOB_MODELS, KEPT_NS, REFETCHES_MAX, STORE_ROOM_WAIT_NS
from clockwork.device.base import Kept, ModelHolder
from clockwork.formats.fetching import PackageFetcher
from clockwork.formats.package import PackageStore
from clockwork.formats.prepared import PROGRAM_FILE
from clockwork.system.clock import now_ns
from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_WORKER,
    Announce,
    BundleOffer,
    Chunk,
    Fetch,
    NotStored,
    Prepare,
    Prepared,
    Status,
    StillResident,
)
from clockwork.worker.bundles import BundleTaker, Taken
from clockwork.worker.checks import Checked, Checks
from clockwork.worker.given import Given
from clockwork.worker.opening import LAYOUT, Opened, OpeningThread, ReadPiece, StoreOrder, WorkerModel
from clockwork.worker.preparation import Job, JobDone, PreparationProcess
from clockwork.worker.preparation_pool import PreparationPool
from clockwork.worker.stores import BoundedStore
from clockwork.worker.syncing import SyncPool
from clockwork.worker.turns import JobQueue

log = logging.getLogger("clockwork.worker")

NOT_STORED_TEXT = "the model is not in this worker's store"
MADE_HERE_TEXT = "the model is being prepared here"


class _Roomless(NamedTuple):
    """A model that is to be made here, in a store without room for it. until_ns: the time until which it
    waits for DROPs."""

    model: WorkerModel
    damage: str
    has_package: bool
    until_ns: int


class _Kept(NamedTuple):
    """A model of the last session that no controller has asked for again. residents: the indices of devices
    that have it resident, and how."""

    model: WorkerModel
    is_whole: bool  # whether its files are known to be whole
    residents: Sequence[tuple[int, Kept]]


class ModelRoad(Protocol):
    """The methods of the native road that say which models actions may name; see worker/_road.pyi."""

    def model_ready(
        self,
        model_id: int,
        outputs: Sequence[tuple[int, list[int] | None]],
        verified: bool,
        batches: bool,
        strings_max: int,
        output_bytes_max: int,
    ) -> None: ...

    def model_gone(self, model_id: int, absence: str = "") -> None: ...

    def model_whole(self, model_id: int) -> None: ...

    def store_ended(self, action_id: int, status: int, text: str = "") -> None: ...


class WorkerModels:
    """The models of one worker. Every method belongs to the loop's thread.

    devices: the holders of models, one for each group of devices. send: sends an encoded message to the
    controller. wake: has the loop call poll() soon, from any thread.
    """

    def __init__(
        self,
        devices: Sequence[ModelHolder],
        store: PackageStore,
        road: ModelRoad,
        send: Callable[..., object],
        wake: Callable[[], None],
        start_over: Callable[[], None],
        need_time: Callable[[ModelHolder, int, int, list[int]], None],
        bounded: BoundedStore | None = None,
    ) -> None:
        """start_over: has the worker say hello again, because its Prepared of a model no longer holds.

        need_time: asks the controller for a device's time: for which model, how many ns, and pages in which
        runs. bounded: the store, where it has a bound."""
        self._bounded = bounded
        self._absent: dict[int, Prepare] = {}  # models that may be fetched
        self._lingering: dict[int, WorkerModel] = {}  # models that were dropped, and are still resident
        self._drops: dict[Path, list[tuple[int, int]]] = {}  # (action id, model id) by what is being removed
        self._held: deque[tuple[int, int, int]] = deque()  # FETCHes that wait until nothing is removed
        self._seeks = 0  # announced models that are being looked up
        self._roomless: deque[_Roomless] = deque()  # models that wait for room in the store, the oldest first
        self._has_strays = False  # files may lie in the store that belong to no model
        self._devices = list(devices)
        self._store = store
        self._road = road
        self._send = send
        self._start_over = start_over
        self._checks = Checks(wake)
        self._checking = 0  # the preparation process's job that checks ``_checked``; 0: none
        self._checked: list[Path] = []
        self._known: dict[int, WorkerModel] = {}  # models that are ready
        # ids of these models, by each of their directories, in order
        self._of_directory: dict[Path, dict[int, None]] = {}
        self._repairing: dict[int, str] = {}  # reason why each model that was ready is prepared again
        self._kept: dict[bytes, _Kept] = {}  # by _identity()
        self._kept_until_ns = 0
        self._last_kept = 0  # the last id, below zero, by which devices know a kept model
        self._damaged = self._repaired = 0
        self._taken = 0  # models that other workers had prepared
        self._damage = ""  # the last damage, as a sentence
        self.ready: dict[int, Given] = {}  # model ids that actions may name
        self._coming: dict[int, WorkerModel] = {}
        self._fetching: dict[str, list[WorkerModel]] = {}  # models that wait for a package, by digest
        self._turns = JobQueue()
        self._to_prepare: dict[int, WorkerModel] = {}  # models by job; each waits for its turn
        self._preparing: dict[int, WorkerModel] = {}  # models by job that are being prepared
        self._job_id = 0
        self._fetcher = PackageFetcher(store, self._send_fetch, wake)
        self._preparation = PreparationPool(lambda: PreparationProcess(wake))
        self._bundles = BundleTaker(
            store.root / "prepared",
            send,
            wake,
            self._bundle_job,
            self._why_not_taken,
            stays=bounded is not None,
        )
        self._of_bundle: dict[str, int] = {}  # by digest of a bundle: a ready model that has it
        self._syncing: SyncPool[WorkerModel] = SyncPool(wake)
        self._need_time = need_time
        self._asks: deque[tuple[ModelHolder, int, int, list[int]]] = deque()  # appended by the opening thread
        self._opener = OpeningThread(devices, store, wake, self._asks)
        # reader of pieces of packages, which do not wait
        self._reader = OpeningThread((), store, wake, self._asks)

    def announce(self, message: Announce) -> None:
        """Look for a model in a store with a bound. In the end a Prepared is sent, or a NotStored."""
        model_id = message.model_id
        if model_id in self.ready or model_id in self._coming or model_id in self._absent:
            self._complain_twice(model_id)
            return
        if self._bounded is None:  # cannot be: only a worker that told a bound is sent it
            self._send(codec.encode(NotStored(model_id, "this worker's store has no bound")))
            return
        self._seeks += 1
        model = self._coming[model_id] = WorkerModel(Prepare(*message, owner=0), is_sought=True)
        self._opener.put(model)

    def prepare(self, message: Prepare) -> None:
        """Begin to make a model ready. In the end one Prepared is sent, which tells of success or failure."""
        model_id = message.model_id
        self._absent.pop(model_id, None)
        coming = self._coming.get(model_id)
        if coming is not None and coming.is_fetched:
            coming.message, coming.is_fetched = message, False  # if it cannot be taken, it is made here
            self._end_orders(coming, Status.DEVICE_ERROR, MADE_HERE_TEXT)
            return
        if self._bring_back(model_id, []):
            return
        if model_id in self.ready or model_id in self._coming:
            self._complain_twice(model_id)
            return
        kept = self._kept.pop(_identity(message), None) if self._kept else None
        if kept is not None:
            self._resume(kept, message)
            return
        model = self._coming[model_id] = WorkerModel(message)
        self._opener.put(model)

    def _complain_twice(self, model_id: int) -> None:
        text = f"model id {model_id} was announced twice"
        self._send(codec.encode(Prepared(model_id, Status.INTERNAL, text, {})))

    def forget(self, model_id: int) -> None:
        """Stop preparing the model, or drop it from the devices, and from a store with a bound."""
        self._absent.pop(model_id, None)
        self._lingering.pop(model_id, None)
        if self._repairing.pop(model_id, None) is not None:
            self._road.model_gone(model_id)
        if model_id in self.ready:
            known = self._known[model_id]
            self._leave(model_id)
            self._remove_unshared(known)
            self._tidy()
            return
        model = self._coming.pop(model_id, None)
        if model is None:
            return
        self._end_orders(model, Status.UNKNOWN_MODEL, "the model is gone")
        self._cancel(model)

    def _cancel(self, model: WorkerModel) -> None:
        """Stop making or taking a model, which is none of those that come any more."""
        model.cancelled = True
        if model.is_sought:
            self._found_sought()
        if self._bounded is not None:
            self._has_strays = True
            self._bounded.release(model.message.model_id)
        self._opener.look_again()
        if self._bundles.drop(model):
            return
        digest = model.message.digest
        if model in self._fetching.get(digest, ()):
            self._fetching[digest].remove(model)
            if not self._fetching[digest]:
                del self._fetching[digest]
                self._fetcher.cancel(digest)
        elif self._to_prepare.pop(model.job_id, None) is not None:
            self._turns.drop(model.job_id, model.message.owner)
        else:
            self._preparation.cancel(model.job_id)

    # ----- a store with a bound ----------------------------------------------------------------

    def fetch(self, action_id: int, model_id: int, by_ns: int) -> None:
        """Carry out a FETCH: take a model from another worker into the store. The road gets its result.

        by_ns: the time by which it is to have ended."""
        assert self._bounded is not None, "the road was told that there is a store with a bound"
        if self._bounded.is_removing or self._seeks:  # room is known when these have ended
            self._held.append((action_id, model_id, by_ns))
            return
        order = StoreOrder(action_id, by_ns)
        if model_id in self._coming and self._coming[model_id].is_fetched:
            self._coming[model_id].orders.append(order)
        elif model_id in self._coming:
            self._road.store_ended(action_id, Status.DEVICE_ERROR, MADE_HERE_TEXT)
        elif self._bring_back(model_id, [order]):
            pass
        elif model_id in self.ready:
            self._road.store_ended(action_id, Status.OK)
        elif model_id in self._absent:
            model = WorkerModel(self._absent.pop(model_id), is_fetched=True, orders=[order])
            self._coming[model_id] = model
            self._opener.put(model)
        else:
            text = f"model id {model_id} was not announced to this worker"
            self._road.store_ended(action_id, Status.UNKNOWN_MODEL, text)

    def drop(self, action_id: int, model_id: int) -> None:
        """Carry out a DROP: forget a model, and remove it from the store. The road gets its result."""
        assert self._bounded is not None, "the road was told that there is a store with a bound"
        if model_id in self._coming:
            self._road.store_ended(action_id, Status.IN_USE, "the model is being made ready")
            return
        if model_id not in self.ready or model_id in self._lingering:
            is_known = model_id in self._absent or model_id in self._lingering
            text = "the model is not in the store" if is_known else f"model id {model_id} is not known"
            self._road.store_ended(action_id, Status.OK if is_known else Status.UNKNOWN_MODEL, text)
            return
        model = self._known[model_id]
        if not self._forget_on_devices(model):
            self._lingering[model_id] = model
            self._send(codec.encode(NotStored(model_id, "")))
            self._road.store_ended(action_id, Status.OK)
            return
        removed = self._give_up(model)
        for path in removed:
            self._drops.setdefault(path, []).append((action_id, model_id))
        if not removed:
            self._dropped(action_id, model_id, "")

    def _forget_on_devices(self, model: WorkerModel) -> bool:
        """Have each device forget a model on which it is not resident. Returns whether all have."""
        for device in list(model.opened):
            with contextlib.suppress(ValueError):  # resident, or an action needs it
                device.forget(model.message.model_id)
                model.opened.remove(device)
        return not model.opened

    def _give_up(self, model: WorkerModel) -> list[Path]:
        """Remove a dropped model, which no device has. Returns what is being removed."""
        model_id = model.message.model_id
        self._leave(model_id, NOT_STORED_TEXT)
        self._absent[model_id] = model.message
        self._tidy()
        return self._remove_unshared(model)

    def _end_lingering(self) -> None:
        """Remove models that were dropped while they were resident, and are not any more. Until then their
        files, which devices have mapped, take their room."""
        for model_id, model in list(self._lingering.items()):
            if self._forget_on_devices(model):
                del self._lingering[model_id]
                self._give_up(model)

    def _bring_back(self, model_id: int, orders: list[StoreOrder]) -> bool:
        """Keep a model that was dropped and is still resident. False: there is no such model."""
        if model_id not in self._lingering:
            return False
        model = self._lingering.pop(model_id)
        model.is_fetched, model.orders = bool(orders), orders
        self._coming[model_id] = model
        self._opener.put(model)
        return True

    def _remove_unshared(self, model: WorkerModel) -> list[Path]:
        """Remove a model that was forgotten from a store with a bound, unless others are of the same files.
        Returns what is being removed."""
        if self._bounded is None:
            return []
        paths = [path for path in model.checksums if path not in self._of_directory]
        for path in paths:
            self._bounded.remove(path)
        return paths

    def _dropped(self, action_id: int, model_id: int, failure: str) -> None:
        """Answer a DROP. failure: why files are left."""
        if model_id in self._absent:
            self._send(codec.encode(NotStored(model_id, "")))
        self._road.store_ended(action_id, Status.DEVICE_ERROR if failure else Status.OK, failure)

    def _not_stored(self, model: WorkerModel, text: str) -> None:
        """Tell that a model does not lie in the store, or no longer. text: why it is lost; "": it is not."""
        model_id = model.message.model_id
        self._absent[model_id] = model.message
        self._send(codec.encode(NotStored(model_id, text)))

    def _found_sought(self) -> None:
        """Note that an announced model was looked up. Behind the last, what nobody has named is removed."""
        assert self._bounded is not None
        self._seeks -= 1
        if not self._seeks:
            for path in self._bounded.unclaimed():
                if path not in self._of_directory:
                    self._bounded.remove(path)

    def _why_not_taken(self, model: WorkerModel, size: int) -> str:
        """The reason why the store has no room for a bundle of so many bytes; "": it has."""
        if self._bounded is None:
            return ""
        self._bounded.release(model.message.model_id)
        return self._bounded.reserve(model.message.model_id, size)

    def _discard_package(self, model: WorkerModel) -> None:
        """Remove a package from a store with a bound, where it is only for preparations."""
        digest = model.message.digest
        others = (other for other in self._coming.values() if other is not model)
        if self._bounded is not None and all(other.message.digest != digest for other in others):
            self._bounded.discard(self._store.directory(digest))

    def _end_orders(self, model: WorkerModel, status: Status, text: str) -> None:
        for order in model.orders:
            self._road.store_ended(order.action_id, status, text)
        model.orders.clear()

    def _fetch_failed(self, model: WorkerModel, text: str) -> None:
        """End the FETCHes of a model that could not be taken."""
        model_id = model.message.model_id
        del self._coming[model_id]
        self._absent[model_id] = model.message
        assert self._bounded is not None
        self._bounded.release(model_id)
        self._has_strays = True
        message = model.message
        log.error("%s@%d is not fetched: %s", message.name, message.version, text)
        self._end_orders(model, Status.DEVICE_ERROR, text)

    def _end_late_fetches(self) -> None:
        """End FETCHes that take too long. A model that is already being opened is taken all the same."""
        now = now_ns()
        for model in list(self._coming.values()):
            late = [order for order in model.orders if now > order.by_ns]
            if late and model.is_fetched and self._bundles.drop(model):
                model.cancelled = True
                self._fetch_failed(model, "it took longer than it may")

    def _poll_store(self) -> None:
        """Answer the DROPs whose files are gone, and begin the FETCHes that have waited for that."""
        if self._bounded is None:
            return
        removals = self._bounded.poll()
        for removed in removals:
            for action_id, model_id in self._drops.pop(removed.path, ()):
                self._dropped(action_id, model_id, removed.failure)
        if removals:
            self._look_for_room()
        if not (self._coming or self._preparing) and self._bundles.is_idle:
            self._bounded.sweep()
            if self._has_strays:
                self._has_strays = False
                self._bounded.remove_strays()
        while self._held and not (self._bounded.is_removing or self._seeks):
            self.fetch(*self._held.popleft())

    def _leave(self, model_id: int, absence: str = "") -> bool:
        """Drop a ready model from the devices. Returns whether all devices dropped it.

        absence: a sentence that says why actions may not name the model."""
        self._withdraw(model_id, absence)
        left = True
        for device in self._devices:
            try:
                device.forget(model_id)
            except ValueError as error:  # still resident: the controller sent Forget too early
                log.error("model id %d stays on %s: %s", model_id, device.info.name, error)
                left = False
        return left

    def _withdraw(self, model_id: int, absence: str = "") -> WorkerModel:
        """Make a ready model one that actions may not name. Devices still know it."""
        del self.ready[model_id]
        self._road.model_gone(model_id, absence)
        model = self._known.pop(model_id)
        for directory in model.checksums:
            sharing = self._of_directory[directory]
            del sharing[model_id]
            if not sharing:
                del self._of_directory[directory]
                self._checks.drop(directory)
            if self._of_bundle.get(model.bundle[0]) == model_id:
                if sharing:  # these models have the same bundle
                    self._of_bundle[model.bundle[0]] = next(iter(sharing))
                else:
                    del self._of_bundle[model.bundle[0]]
        return model

    # ----- from one session to the next ----------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """Whether models that are ready, and residencies, stay for the next session."""
        return self._bounded is None and all(device.keeps for device in self._devices)

    def _keep(self, model_id: int, residents: Sequence[tuple[int, Kept]]) -> None:
        """Put a ready model aside: the new controller may ask for it, by an id of its own."""
        is_whole = all(self._checks.is_whole(directory) for directory in self._known[model_id].checksums)
        model = self._withdraw(model_id)
        identity = _identity(model.message)
        self._drop_kept(identity)
        self._last_kept -= 1
        self._rename(model, self._last_kept)
        self._kept[identity] = _Kept(model, is_whole, residents)

    def _resume(self, kept: _Kept, message: Prepare) -> None:
        """Have a model that was kept ready again, without a look at its files."""
        model = kept.model
        self._rename(model, message.model_id)
        model.message = message
        if kept.is_whole:
            for directory in model.checksums:
                self._checks.made(directory)
        self._enter(model)
        reply = codec.decode(model.reply, FROM_WORKER)
        assert isinstance(reply, Prepared)
        self._send(codec.encode(reply._replace(model_id=message.model_id)))
        for index, (_, load_id, starts) in kept.residents:
            self._send(codec.encode(StillResident(message.model_id, index, load_id, starts)))

    def _rename(self, model: WorkerModel, model_id: int) -> None:
        for device in self._devices:
            if device in model.opened:
                device.rename(model.message.model_id, model_id)
        model.message = model.message._replace(model_id=model_id)

    def _drop_kept(self, identity: bytes) -> None:
        """Forget a model that was kept, with its residencies."""
        kept = self._kept.pop(identity, None)
        if kept is not None:
            for device in self._devices:
                device.forget(kept.model.message.model_id)

    def _end_keeping(self) -> None:
        """Forget the models that no controller has asked for in time."""
        if self._kept and now_ns() >= self._kept_until_ns:
            log.info("%d models of an earlier controller are forgotten", len(self._kept))
            for identity in list(self._kept):
                self._drop_kept(identity)
            self._tidy()

    def demand_check(self, model_id: int) -> None:
        """Have a model's files checked before all others, because a LOAD waits. wake() is called after the
        check."""
        model = self._known.get(model_id)
        if model is not None and not self._tell_whole(model_id):
            for directory in model.checksums:
                self._checks.hurry(directory)

    def _tell_whole(self, model_id: int) -> bool:
        """Tell the road that a model's files are whole, if they are known to be. Returns whether they are."""
        whole = all(self._checks.is_whole(directory) for directory in self._known[model_id].checksums)
        if whole:
            self._road.model_whole(model_id)
        return whole

    def lose(self, device: ModelHolder) -> None:
        """Remove a broken device: models are opened on the other devices alone."""
        if device in self._devices:
            self._devices.remove(device)
            self._opener.devices = tuple(self._devices)
            device.end_reserve()  # last: any thread that looks afterwards finds the device gone

    def on_chunk(self, chunk: Chunk, frame: Any) -> None:
        """Take a piece of a package or bundle that is being fetched. frame: bytes-like, or None."""
        self._bundles.on_chunk(chunk, frame)
        failed = self._fetcher.on_chunk(chunk, frame)
        if failed is not None:
            self._fetched(failed.digest, failed.status, failed.text)

    def on_offer(self, offer: BundleOffer) -> None:
        """Take the controller's answer whether another worker has a model."""
        self._bundles.on_offer(offer)

    def read(self, fetch: Fetch) -> None:
        """Answer the controller's Fetch with a Chunk, which holds a piece of a package or bundle, or a
        failure."""
        paths = self._paths(fetch.digest)
        is_there = fetch.file < len(paths)  # decoding has checked all other bounds
        self._reader.read(ReadPiece(fetch, paths[fetch.file] if is_there else None))

    def _paths(self, digest: str) -> list[Path]:
        """The files of a ready model's package or bundle; none of a digest that is unknown."""
        if digest in self._of_bundle:
            model = self._known[self._of_bundle[digest]]
            (directory,) = model.checksums
            program = self._store.root / "programs" / dict(zip(LAYOUT, model.layout))["program"]
            _, names = model.bundle
            return [(program if name == PROGRAM_FILE else directory) / name for name in names]
        package = self._store.directory(digest)
        files = next((model.files for model in self._known.values() if model.message.digest == digest), [])
        return [package / file.path for file in files]

    def poll(self) -> None:
        """Advance the models whose step in a thread or process has ended."""
        while self._asks:
            self._need_time(*self._asks.popleft())
        for fetch, data in self._reader.poll_read():
            status = Status.INTERNAL if data is None else Status.OK
            chunk = Chunk(fetch.digest, fetch.file, fetch.offset, status)
            self._send(codec.encode(chunk), [data or b""])
        for fetched in self._fetcher.poll():
            self._fetched(fetched.digest, fetched.status, fetched.text)
        for checked in self._checks.poll():
            self._note_checked(checked)
        for taken in self._bundles.poll():
            self._note_taken(taken)
        for job_id in self._preparation.poll_slow():
            self._turns.found_slow(job_id)
        for done in self._preparation.poll():
            was_stopped = self._turns.ended(done.job_id)
            if done.job_id == self._checking:
                self._idly_checked(done)
                continue
            model = self._preparing.pop(done.job_id)
            if model.cancelled:
                pass
            elif done.status == Status.OK:
                model.was_prepared = True
                self._syncing.put(model, self._opener.directories(model))
            elif done.refetch:
                self._note_damage(done.text)
                self._fetch(model, done.text)
            elif was_stopped and done.status == Status.INTERNAL:
                self._queue(model, is_anew=True)
            else:
                self._failed(model, done.status, done.text)
        for model, failure in self._syncing.poll():
            if model.cancelled:
                pass
            elif failure:
                self._failed(model, Status.INTERNAL, failure)
            else:
                self._opener.put(model)
        for opened in self._opener.poll():
            self._opened(opened)
        self._poll_store()
        self._prepare_next()
        self._tidy()

    def _tidy(self) -> None:
        """Have resources of forgotten models released, unless opening the next model is about to release
        them."""
        if not self._coming:
            self._opener.tidy()

    def beat(self) -> None:
        """Start a waiting model beside a slow preparation where its turn has come. Called periodically."""
        if self._to_prepare:
            self._prepare_next()
        self._end_keeping()
        self._end_late_fetches()
        self._end_lingering()
        self._look_for_room()

    def reset(self, residents: Mapping[int, Sequence[tuple[int, Kept]]]) -> None:
        """Forget every model, or put it aside if it is ready: a new controller numbers them anew. Waits for
        the model being opened.

        residents: what devices have kept, with their new indices, by model."""
        self._fetching.clear()
        self._fetcher.reset()
        self._bundles.reset()
        for job_id, model in self._to_prepare.items():
            self._turns.drop(job_id, model.message.owner)
        self._to_prepare.clear()  # the job that runs goes on: its model will be announced again
        for model in self._coming.values():
            model.cancelled = True
        self._coming.clear()
        self._absent.clear()
        self._lingering.clear()
        self._held.clear()
        self._roomless.clear()
        self._seeks = 0
        if self._bounded is not None:
            self._bounded.disclaim_all()
        for model_id in self._repairing:
            self._road.model_gone(model_id)
        self._repairing.clear()
        self._opener.interrupt()
        self._opener.drain()
        for identity, kept in self._kept.items():  # of a session before the last
            found = residents.get(kept.model.message.model_id, ())
            self._kept[identity] = kept._replace(residents=found)
        self._kept_until_ns = now_ns() + KEPT_NS
        for model_id in list(self.ready):
            if self.keeps:
                self._keep(model_id, residents.get(model_id, ()))
            else:
                self._leave(model_id)
        self.poll()  # drops the outcomes that were under way: their models are not known any more

    def stats(self) -> dict[str, Any]:
        """Counts of models by state, and of damage."""
        return {
            "models": len(self.ready),
            "models_coming": len(self._coming),
            "packages_fetching": self._fetcher.count,
            "models_taking": self._bundles.count,
            "models_taken": self._taken,
            "preparing": len(self._preparing) + len(self._to_prepare),
            "models_unchecked": self._checks.count,
            "damaged": self._damaged,
            "repaired": self._repaired,
            "damage": self._damage,
            **self._store_stats(),
        }

    def _store_stats(self) -> dict[str, int]:
        if self._bounded is None:
            return {}
        fetching = sum(len(model.orders) for model in self._coming.values()) + len(self._held)
        return {
            "store_bytes_max": self._bounded.bytes_max,
            "store_bytes_used": self._bounded.used,
            "store_models": self._bounded.count,
            "store_fetching": fetching,
        }

    def forgive_trial(self) -> None:
        """Remove the note of the model that is being tried: the worker ends for another reason."""
        self._opener.notes.close()

    def close(self) -> None:
        """Stop the threads and the preparation processes."""
        for model in self._coming.values():
            model.cancelled = True
        self._preparation.close()
        self._syncing.close()
        self._fetcher.close()
        self._bundles.close()
        self._opener.interrupt()
        self._opener.close()
        self._reader.close()
        self._checks.close()

    def _send_fetch(self, fetch: Fetch) -> None:
        self._send(codec.encode(fetch))

    def _opened(self, opened: Opened) -> None:
        model = opened.model
        model_id = model.message.model_id
        is_open = bool(model.opened) and all(
            device in model.opened for device in self._devices if not device.fault
        )
        ready = not opened.missing and is_open
        if model.cancelled or not ready:
            self._forget_on_devices(model)
        if opened.damage:
            self._note_damage(opened.damage)
        if model.cancelled:
            return
        was_sought = model.is_sought
        if model.was_prepared:
            self._discard_package(model)
        if self._bounded is not None and self._settled_in_store(model, opened, ready):
            pass
        elif not opened.missing:
            del self._coming[model_id]
            if ready:
                model.given, model.reply = opened.given, opened.reply
                self._enter(model)
            elif model_id in self._repairing:
                self._begin_anew(model_id, "it could not be prepared again")
            self._send(opened.reply)
            self._end_orders(model, Status.OK, "")
        elif self._may_take(model):
            model.was_wanted = True
            self._bundles.want(model)
        else:
            self._make(model, opened.damage, opened.has_package)
        if was_sought:
            self._found_sought()

    def _settled_in_store(self, model: WorkerModel, opened: Opened, ready: bool) -> bool:
        """Take what opening a model means for a store with a bound. Returns whether it is settled: the model
        does not lie there, or does not stay."""
        assert self._bounded is not None
        model_id = model.message.model_id
        if ready:
            return not self._claim(model)
        if model.is_sought:
            del self._coming[model_id]
            self._not_stored(model, "")
            return True
        if not model.is_fetched or (opened.missing and self._may_take(model)):
            return False
        why = opened.damage
        if not opened.missing:
            reply = codec.decode(opened.reply, FROM_WORKER)
            assert isinstance(reply, Prepared)
            why = reply.text
        self._fetch_failed(model, why or "what was taken cannot be opened")
        return True

    def _claim(self, model: WorkerModel) -> bool:
        """Count an open model as one that the store has. False: there is no room, and it is removed."""
        assert self._bounded is not None
        model_id = model.message.model_id
        claimed = [self._bounded.claim(directory) for directory in model.checksums]
        if all(claimed):
            self._bounded.release(model_id)
            return True
        self._forget_on_devices(model)
        text = f"the store of {self._bounded.bytes_max} bytes (--store-bytes) has no room left for it"
        for path in self._remove_unshared(model):
            log.warning("%s is removed: %s", path.name[:12], text)
        if model.is_sought:
            del self._coming[model_id]
            self._not_stored(model, "")
        elif model.is_fetched:
            self._fetch_failed(model, text)
        else:
            self._failed(model, Status.INTERNAL, text)
        return False

    def _may_take(self, model: WorkerModel) -> bool:
        """Whether to ask for the model as another worker has prepared it: once, and for CPUs of one kind. A
        repair keeps the layout that the controller knows."""
        kinds = {(device.info.kind, device.info.fingerprint) for device in self._devices}
        is_repaired = model.message.model_id in self._repairing
        return (
            not (model.was_wanted or is_repaired or len(kinds) != 1) and self._devices[0].info.kind == "cpu"
        )

    def _bundle_job(self, model: WorkerModel) -> Job:
        return {
            "store": str(self._store.root),
            "digest": model.message.digest,
            "fingerprint": self._devices[0].info.fingerprint,
            "page_bytes": self._devices[0].info.page_bytes,
            "options": model.message.options,
        }

    def _note_taken(self, taken: Taken) -> None:
        model = taken.model
        if taken.is_taken:
            model.was_taken = True
            self._taken += 1
            self._syncing.put(model, self._opener.directories(model))
            return
        if model.is_fetched:
            self._fetch_failed(model, taken.text or "no worker that is connected has it")
            return
        if taken.text:
            message = model.message
            log.error("%s@%d is prepared here: %s", message.name, message.version, taken.text)
        self._make(model, "", self._store.has(model.message.digest))

    def _make(self, model: WorkerModel, damage: str, has_package: bool) -> None:
        """Prepare a model here. damage: why the stored package is unusable."""
        if self._why_not_made(model):  # the controller may have ordered DROPs for it
            self._roomless.append(_Roomless(model, damage, has_package, now_ns() + STORE_ROOM_WAIT_NS))
        elif has_package:
            self._queue(model)
            self._prepare_next()
        else:
            self._fetch(model, damage)

    def _look_for_room(self) -> None:
        """Go on with the models for which there is room now, and end those that have waited for too long,
        unless something is still being removed."""
        now = now_ns()
        for _ in range(len(self._roomless)):
            waiting = self._roomless.popleft()
            if waiting.model.cancelled:
                continue
            assert self._bounded is not None
            why = self._why_not_made(waiting.model)
            if not why:
                self._make(waiting.model, waiting.damage, waiting.has_package)
            elif now >= waiting.until_ns and not self._bounded.is_removing:
                self._failed(waiting.model, Status.INTERNAL, why)
            else:
                self._roomless.append(waiting)

    def _why_not_made(self, model: WorkerModel) -> str:
        """The reason why a store with a bound has no room for a model that is made here, which takes about as
        much as its package; "": it has."""
        return self._why_not_taken(model, sum(file.bytes for file in model.files))

    def _enter(self, model: WorkerModel) -> None:
        """Enter a ready model. Files that were not written just now are still to be checked."""
        model_id = model.message.model_id
        assert model.given is not None
        self.ready[model_id] = model.given
        self._known[model_id] = model
        self._road.model_ready(model_id, *model.given.declared())
        if model.bundle[0]:
            self._of_bundle.setdefault(model.bundle[0], model_id)
        for directory, checksums in model.checksums.items():
            self._of_directory.setdefault(directory, {})[model_id] = None
            if model.was_prepared or model.was_taken:
                self._checks.made(directory)
            else:
                self._checks.add(directory, checksums)
        self._tell_whole(model_id)
        if model_id in self._repairing:
            del self._repairing[model_id]
            self._repaired += 1
            log.warning("%s@%d has been repaired", model.message.name, model.message.version)

    def _begin_anew(self, model_id: int, why: str) -> None:
        log.error("model id %d: %s; starting over", model_id, why)
        self._repairing.pop(model_id, None)
        self._road.model_gone(model_id)
        self._start_over()

    def _fetch(self, model: WorkerModel, damage: str) -> None:
        """Fetch a model's package. damage: why the stored package is unusable; REFETCHES_MAX bounds such
        fetches."""
        if damage:
            model.refetches += 1
        if model.refetches > REFETCHES_MAX:
            self._failed(model, Status.INTERNAL, damage)
            return
        self._fetching.setdefault(model.message.digest, []).append(model)
        self._fetcher.start(model.message.digest, model.files)

    # ----- damage ------------------------------------------------------------------------------

    def _note_damage(self, text: str) -> None:
        self._damaged += 1
        self._damage = text[:300]
        self._has_strays = True
        log.error("%s", text)

    def _note_checked(self, checked: Checked) -> None:
        sharing = list(self._of_directory.get(checked.directory, ()))
        if self._checks.note(checked):
            for model_id in sharing:
                self._tell_whole(model_id)
            return
        text = f"{checked.directory.name[:12]}: {checked.damage}"
        self._note_damage(text)
        aside: Path | None = checked.directory
        for model_id in sharing:
            before = self._known[model_id]
            # The model was not loaded since the start, so no device holds it.
            absence = f"the model is prepared again: {text}"
            if self._bounded is not None:
                if self._leave(model_id, NOT_STORED_TEXT):
                    self._remove_unshared(before)
                    self._not_stored(before, text)
                continue
            if self._leave(model_id, absence):
                self._repairing[model_id] = text
                model = WorkerModel(before.message, before.files, layout=before.layout, aside=aside)
                self._coming[model_id] = model
                self._opener.put(model)
                aside = None  # only once: the directory may have been replaced before the next model

    def _idly_checked(self, done: JobDone) -> None:
        self._checking = 0
        if done.status != Status.OK:
            log.error("stored models could not be checked in idle time: %s", done.text)
            for directory in self._checked:
                self._checks.hurry(directory)
            return
        for directory in self._checked:
            if self._checks.is_waiting(directory):  # otherwise the thread has checked it for a load
                self._note_checked(Checked(directory, str(done.damage.get(str(directory), ""))))

    def _check_some(self) -> None:
        """Check some directories if nothing is being fetched, prepared or opened."""
        if self._checking or self._preparing or self._coming:
            return
        some = self._checks.some(CHECK_JOB_MODELS)
        if some:
            self._job_id += 1
            self._checking, self._checked = self._job_id, list(some)
            self._turns.put(self._job_id, 0)
            turn = self._turns.take(now_ns())
            assert turn is not None, "nothing else is under way"
            job = {"check": {str(directory): checksums for directory, checksums in some.items()}}
            self._preparation.submit(self._job_id, job)

    # ----- inside ------------------------------------------------------------------------------

    def _fetched(self, digest: str, status: Status, text: str) -> None:
        for model in self._fetching.pop(digest, ()):
            if status != Status.OK:
                self._failed(model, status, text)
            elif model.is_profile:
                self._opener.put(model)
            else:
                self._queue(model)
        self._prepare_next()

    def _queue(self, model: WorkerModel, *, is_anew: bool = False) -> None:
        """Queue a model for preparation. is_anew: its preparation was stopped before."""
        self._job_id += 1
        model.job_id = self._job_id
        self._to_prepare[model.job_id] = model
        self._turns.put(model.job_id, model.message.owner, is_anew=is_anew)

    def _prepare_next(self) -> None:
        now = now_ns()
        while (turn := self._turns.take(now)) is not None:
            model = self._to_prepare.pop(turn.job_id)
            self._preparing[model.job_id] = model
            job = {
                "package": str(self._store.directory(model.message.digest)),
                "store": str(self._store.root),
                "fingerprints": list(dict.fromkeys(device.info.fingerprint for device in self._devices)),
                "page_bytes": self._devices[0].info.page_bytes,
                "options": model.message.options | _as_before(model),
                "beside": turn.beside,
                "is_anew": turn.is_anew,
            }
            self._preparation.submit(model.job_id, job)
        if stopped := self._turns.stop(now):
            if stopped != self._checking:
                message = self._preparing[stopped].message
                log.info("%s@%d takes long to prepare: it gives way to others", message.name, message.version)
            self._preparation.cancel(stopped)
        self._check_some()

    def _failed(self, model: WorkerModel, status: Status, text: str) -> None:
        model_id = model.message.model_id
        del self._coming[model_id]
        if model_id in self._repairing:
            self._begin_anew(model_id, text)
        if self._bounded is not None:
            self._bounded.release(model_id)
            self._absent[model_id] = model.message
            self._discard_package(model)
        self._send(codec.encode(Prepared(model_id, status, text, {})))


def _identity(message: Prepare) -> bytes:
    """Return the same bytes for messages of different controllers that ask for the same."""
    options = dict(sorted(message.options.items()))
    return codec.encode(message._replace(model_id=1, owner=0, options=options))


def _as_before(model: WorkerModel) -> dict[str, Any]:
    """Return additional options of a repair.

    The size of a packed model is measured: it keeps at least the pages that the controller planned for."""
    known = dict(zip(LAYOUT, model.layout))
    return {"pages_min": sum(known["runs"])} if known.get("holding") == "packed" else {}
