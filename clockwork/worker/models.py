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

The loop only moves models between these steps; threads and processes read the files.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from clockwork.config.worker import CHECK_JOB_MODELS, REFETCHES_MAX
from clockwork.device.base import ModelHolder
from clockwork.formats.fetching import PackageFetcher
from clockwork.formats.package import PackageStore
from clockwork.formats.prepared import PROGRAM_FILE
from clockwork.system.clock import now_ns
from clockwork.wire import codec
from clockwork.wire.messages import BundleOffer, Chunk, Fetch, Prepare, Prepared, Status
from clockwork.worker.bundles import BundleTaker, Taken
from clockwork.worker.checks import Checked, Checks
from clockwork.worker.given import Given
from clockwork.worker.opening import LAYOUT, Opened, OpeningThread, ReadPiece, WorkerModel
from clockwork.worker.preparation import Job, JobDone, PreparationProcess
from clockwork.worker.preparation_pool import PreparationPool
from clockwork.worker.syncing import SyncPool
from clockwork.worker.turns import JobQueue

log = logging.getLogger("clockwork.worker")


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
    ) -> None:
        """start_over: has the worker say hello again, because its Prepared of a model no longer holds.

        need_time: asks the controller for a device's time: for which model, how many ns, and pages in which
        runs."""
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
        self._bundles = BundleTaker(store.root / "prepared", send, wake, self._bundle_job)
        self._of_bundle: dict[str, int] = {}  # by digest of a bundle: a ready model that has it
        self._syncing: SyncPool[WorkerModel] = SyncPool(wake)
        self._need_time = need_time
        self._asks: deque[tuple[ModelHolder, int, int, list[int]]] = deque()  # appended by the opening thread
        self._opener = OpeningThread(devices, store, wake, self._asks)
        # reader of pieces of packages, which do not wait
        self._reader = OpeningThread((), store, wake, self._asks)

    def prepare(self, message: Prepare) -> None:
        """Begin to make a model ready. In the end one Prepared is sent, which tells of success or failure."""
        model_id = message.model_id
        if model_id in self.ready or model_id in self._coming:
            text = f"model id {model_id} was announced twice"
            self._send(codec.encode(Prepared(model_id, Status.INTERNAL, text, {})))
            return
        model = self._coming[model_id] = WorkerModel(message)
        self._opener.put(model)

    def forget(self, model_id: int) -> None:
        """Stop preparing the model, or drop it from the devices."""
        if self._repairing.pop(model_id, None) is not None:
            self._road.model_gone(model_id)
        if model_id in self.ready:
            self._leave(model_id)
            self._tidy()
            return
        model = self._coming.pop(model_id, None)
        if model is None:
            return
        model.cancelled = True
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

    def _leave(self, model_id: int, absence: str = "") -> bool:
        """Drop a ready model from the devices. Returns whether all devices dropped it.

        absence: a sentence that says why actions may not name the model."""
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
        left = True
        for device in self._devices:
            try:
                device.forget(model_id)
            except ValueError as error:  # still resident: the controller sent Forget too early
                log.error("model id %d stays on %s: %s", model_id, device.info.name, error)
                left = False
        return left

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

    def reset(self) -> None:
        """Forget every model: a new controller numbers them anew. Waits for the model being opened."""
        self._fetching.clear()
        self._fetcher.reset()
        self._bundles.reset()
        for job_id, model in self._to_prepare.items():
            self._turns.drop(job_id, model.message.owner)
        self._to_prepare.clear()  # the job that runs goes on: its model will be announced again
        for model in self._coming.values():
            model.cancelled = True
        self._coming.clear()
        for model_id in self._repairing:
            self._road.model_gone(model_id)
        self._repairing.clear()
        self._opener.interrupt()
        self._opener.drain()
        for model_id in list(self.ready):
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
            for device in model.opened:
                device.forget(model_id)
            model.opened.clear()
        if opened.damage:
            self._note_damage(opened.damage)
        if model.cancelled:
            return
        if not opened.missing:
            del self._coming[model_id]
            if ready:
                model.given = opened.given
                self._enter(model)
            elif model_id in self._repairing:
                self._begin_anew(model_id, "it could not be prepared again")
            self._send(opened.reply)
        elif self._may_take(model):
            model.was_wanted = True
            self._bundles.want(model)
        else:
            self._make(model, opened.damage, opened.has_package)

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
        if taken.text:
            message = model.message
            log.error("%s@%d is prepared here: %s", message.name, message.version, taken.text)
        self._make(model, "", self._store.has(model.message.digest))

    def _make(self, model: WorkerModel, damage: str, has_package: bool) -> None:
        """Prepare a model here. damage: why the stored package is unusable."""
        if has_package:
            self._queue(model)
            self._prepare_next()
        else:
            self._fetch(model, damage)

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
        self._send(codec.encode(Prepared(model_id, status, text, {})))


def _as_before(model: WorkerModel) -> dict[str, Any]:
    """Return additional options of a repair.

    The size of a packed model is measured: it keeps at least the pages that the controller planned for."""
    known = dict(zip(LAYOUT, model.layout))
    return {"pages_min": sum(known["runs"])} if known.get("holding") == "packed" else {}
