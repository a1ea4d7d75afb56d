"""Models from Prepare to Prepared: found in the cache, or fetched and prepared, then made known to the devices.

    Prepare -> opening thread: is it prepared already? --yes--> device.prepare -> Prepared
                    | no
                    v
               fetch the package (unless it is here) -> preparation process -> opening thread again

A package for emulated devices is only a profile: the opening thread prepares it itself. On a GPU, the opening thread has the
model checked and timed as well (models.trials), and asks for the device's time before it does what would stall it.

A model that is found prepared is compared with its checksums before its first load (worker.checks). Damaged files, in the
cache or in a package, are set aside, prepared or fetched again, and counted for the controller.

The loop only moves models between these steps; threads and processes read the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config import CHECK_JOB_MODELS, REFETCHES_MAX, RESERVE_NS_MAX, preparation_run_ns
from clockwork.device.base import DeviceBroken, ModelHolder
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import read_plain, set_aside, unseal
from clockwork.formats.fetching import PackageFetcher
from clockwork.formats.package import (
    PROFILE_FILE,
    DamagedPackage,
    PackageFile,
    PackageStore,
    digest_of,
    parse_files,
)
from clockwork.formats.prepared import FORMAT_VERSION, OF_THE_DEVICE, PREPARED_FILE, prepared_directory
from clockwork.formats.profiled import prepare_profile
from clockwork.models.trials import Interrupted, try_model
from clockwork.system.clock import SECOND
from clockwork.wire import codec
from clockwork.wire.messages import BATCHING, PRODUCT_DTYPES, Chunk, Fetch, Prepare, Prepared, Status
from clockwork.worker.checks import Checked, Checks
from clockwork.worker.given import Given
from clockwork.worker.preparation import JobDone, PreparationProcess, set_package_aside
from clockwork.worker.preparations import Preparations
from clockwork.worker.trial_notes import TrialNotes

log = logging.getLogger("clockwork.worker")


@dataclasses.dataclass(slots=True, eq=False)
class _Model:
    """A model being prepared, or ready. While the opening thread has it, the loop only sets ``cancelled``."""

    message: Prepare
    files: list[PackageFile] = dataclasses.field(default_factory=list)
    opened: list[ModelHolder] = dataclasses.field(default_factory=list)  # devices that know the model now
    was_prepared: bool = False  # by the preparation process, on behalf of this model
    job_id: int = 0  # while the preparation process works on it
    # Checksums of the model's files, by directory.
    checksums: dict[Path, dict[str, int]] = dataclasses.field(default_factory=dict)
    layout: tuple[Any, ...] = ()  # values of LAYOUT, with which the controller plans
    given: Given | None = None  # set when the model is ready
    refetches: int = 0
    aside: Path | None = None  # a damaged directory that the opening thread puts out of the way
    cancelled: bool = False

    @property
    def is_profile(self) -> bool:
        return bool(self.files) and self.files[0].path == PROFILE_FILE


LAYOUT = ("runs", "batches", "batch_max", "holding", "program")
"""Fields of a summary with which the controller plans."""


class _Opened(NamedTuple):
    """The opening thread's outcome for a model: it is ready (``reply`` OK), has to be prepared, or has failed."""

    model: _Model
    missing: bool  # neither ready nor failed: it has to be prepared
    has_package: bool
    reply: bytes  # the encoded Prepared
    damage: str = ""  # damage that was found on the way and will be replaced
    given: Given | None = None  # set when the model is ready


class WorkerModels:
    """The models of one worker. Every method belongs to the loop's thread.

    devices: the holders of models, one for each group of devices. send: sends an encoded message to the
    controller. wake: has the loop call poll() soon, from any thread.
    """

    def __init__(
        self,
        devices: Sequence[ModelHolder],
        store: PackageStore,
        send: Callable[..., object],
        wake: Callable[[], None],
        start_over: Callable[[], None] = lambda: None,
        need_time: Callable[[ModelHolder, int, int, list[int]], None] = lambda *_: None,
    ) -> None:
        """start_over: has the worker say hello anew, because its Prepared of a model no longer holds. need_time: tells the
        controller that a device is needed for a model, for how many ns and with pages in which runs."""
        self._devices = list(devices)
        self._store = store
        self._send = send
        self._start_over = start_over
        self._checks = Checks(wake)
        self._checking = 0  # the preparation process's job that checks ``_checked``; 0: none
        self._checked: list[Path] = []
        self._known: dict[int, _Model] = {}  # models that are ready
        self._repairing: dict[int, str] = {}  # models that were ready and are prepared again, and why
        self._damaged = self._repaired = 0
        self._damage = ""  # the last damage, as a sentence
        self.ready: dict[int, Given] = {}  # model ids that actions may name
        self._coming: dict[int, _Model] = {}
        self._fetching: dict[str, list[_Model]] = {}  # by digest
        self._to_prepare: deque[_Model] = deque()
        self._preparing: dict[int, _Model] = {}  # by job
        self._job_id = 0
        self._fetcher = PackageFetcher(store, self._send_fetch, wake)
        self._preparation = Preparations(lambda: PreparationProcess(wake))
        self._need_time = need_time
        self._asks: deque[tuple[ModelHolder, int, int, list[int]]] = deque()  # appended by the opening thread
        self._opener = _OpeningThread(devices, store, wake, self._asks)
        self._reader = _OpeningThread((), store, wake, self._asks)  # of pieces of packages, which do not wait

    def prepare(self, message: Prepare) -> None:
        """Begin to make a model ready; a Prepared is sent in the end, whatever happens."""
        model_id = message.model_id
        if model_id in self.ready or model_id in self._coming:
            text = f"model id {model_id} was announced twice"
            self._send(codec.encode(Prepared(model_id, Status.INTERNAL, text, {})))
            return
        model = self._coming[model_id] = _Model(message)
        self._opener.put(model)

    def forget(self, model_id: int) -> None:
        """Stop preparing the model, or drop it from the devices."""
        self._repairing.pop(model_id, None)
        if model_id in self.ready:
            self._leave(model_id)
            self._tidy()
            return
        model = self._coming.pop(model_id, None)
        if model is None:
            return
        model.cancelled = True
        self._opener.look_again()
        digest = model.message.digest
        if model in self._fetching.get(digest, ()):
            self._fetching[digest].remove(model)
            if not self._fetching[digest]:
                del self._fetching[digest]
                self._fetcher.cancel(digest)
        else:
            self._preparation.cancel(model.job_id)

    def _leave(self, model_id: int) -> bool:
        """Drop a model that is ready from the devices. Returns whether all of them dropped it."""
        del self.ready[model_id]
        model = self._known.pop(model_id)
        for directory in model.checksums:
            if all(directory not in other.checksums for other in self._known.values()):
                self._checks.drop(directory)
        left = True
        for device in self._devices:
            try:
                device.forget(model_id)
            except ValueError as error:  # still resident: the controller sent Forget too early
                log.error("model id %d stays on %s: %s", model_id, device.info.name, error)
                left = False
        return left

    def absence(self, model_id: int) -> str:
        """Why actions may not name a model, as a sentence."""
        if model_id in self._repairing:
            return f"the model is prepared again: {self._repairing[model_id]}"
        return f"model id {model_id} is not known to this worker"

    def demand_check(self, model_id: int) -> bool:
        """Have a model's stored bytes checked before all others, unless they are known to be whole: then True.

        wake() follows the check."""
        model = self._known.get(model_id)
        if model is None:
            return True  # the device refuses the action with a reason
        directories = [directory for directory in model.checksums if not self._checks.is_whole(directory)]
        for directory in directories:
            self._checks.hurry(directory)
        return not directories

    def lose(self, device: ModelHolder) -> None:
        """A device is broken: models are made known to the other devices alone."""
        if device in self._devices:
            self._devices.remove(device)
            self._opener.devices = tuple(self._devices)
            device.end_reserve()  # last: who looks from here on finds it gone

    def on_chunk(self, chunk: Chunk, frame: Any) -> None:
        """A piece of a package (frame: bytes-like or None)."""
        failed = self._fetcher.on_chunk(chunk, frame)
        if failed is not None:
            self._fetched(failed.digest, failed.status, failed.text)

    def read(self, fetch: Fetch) -> None:
        """Answer the controller's Fetch with a Chunk: a piece of a package, or a failure."""
        files = next(
            (model.files for model in self._known.values() if model.message.digest == fetch.digest), []
        )
        is_there = fetch.file < len(files)  # the message's form has the other bounds
        path = self._store.directory(fetch.digest) / files[fetch.file].path if is_there else None
        self._reader.read(_Read(fetch, path))

    def poll(self) -> None:
        """Move models on whose step in a thread or process has ended."""
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
        for done in self._preparation.poll():
            if done.job_id == self._checking:
                self._idly_checked(done)
                continue
            model = self._preparing.pop(done.job_id)
            if model.cancelled:
                pass
            elif done.status == Status.OK:
                model.was_prepared = True
                self._opener.put(model)
            elif done.refetch:
                self._note_damage(done.text)
                self._fetch(model, done.text)
            else:
                self._failed(model, done.status, done.text)
        for opened in self._opener.poll():
            self._opened(opened)
        self._prepare_next()
        self._tidy()

    def _tidy(self) -> None:
        """Have forgotten models give back what they had, unless the next model is about to."""
        if not self._coming:
            self._opener.tidy()

    def beat(self) -> None:
        """Called now and then: a model that waits behind a slow preparation may start beside it."""
        if self._to_prepare:
            self._prepare_next()

    def reset(self) -> None:
        """Forget every model: a new controller numbers them anew. Waits for the model being opened."""
        self._fetching.clear()
        self._fetcher.reset()
        self._to_prepare.clear()  # the job that runs goes on: its model will be announced again
        for model in self._coming.values():
            model.cancelled = True
        self._coming.clear()
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
            "preparing": len(self._preparing) + len(self._to_prepare),
            "models_unchecked": self._checks.count,
            "damaged": self._damaged,
            "repaired": self._repaired,
            "damage": self._damage,
        }

    def forgive_trial(self) -> None:
        """The worker ends, and the model that is being tried is not the reason."""
        self._opener.notes.close()

    def close(self) -> None:
        """Stop the threads and the process."""
        for model in self._coming.values():
            model.cancelled = True
        self._preparation.close()
        self._fetcher.close()
        self._opener.interrupt()
        self._opener.close()
        self._reader.close()
        self._checks.close()

    def _send_fetch(self, fetch: Fetch) -> None:
        self._send(codec.encode(fetch))

    def _opened(self, opened: _Opened) -> None:
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
        elif opened.has_package:
            self._to_prepare.append(model)
        else:
            self._fetch(model, opened.damage)

    def _enter(self, model: _Model) -> None:
        """A model is ready. Stored bytes that were not written just now have still to be checked."""
        model_id = model.message.model_id
        assert model.given is not None
        self.ready[model_id] = model.given
        self._known[model_id] = model
        for directory, checksums in model.checksums.items():
            if model.was_prepared:
                self._checks.made(directory)
            else:
                self._checks.add(directory, checksums)
        if model_id in self._repairing:
            del self._repairing[model_id]
            self._repaired += 1
            log.warning("%s@%d has been repaired", model.message.name, model.message.version)

    def _begin_anew(self, model_id: int, why: str) -> None:
        log.error("model id %d: %s; starting over", model_id, why)
        self._repairing.pop(model_id, None)
        self._start_over()

    def _fetch(self, model: _Model, damage: str) -> None:
        """Fetch a model's package. damage: of the package that was here; REFETCHES_MAX bounds these."""
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
        if self._checks.note(checked):
            return
        text = f"{checked.directory.name[:12]}: {checked.damage}"
        self._note_damage(text)
        aside: Path | None = checked.directory
        for model_id, before in list(self._known.items()):
            # It was not loaded since the start, so that nothing holds it on a device.
            if checked.directory in before.checksums and self._leave(model_id):
                self._repairing[model_id] = text
                model = _Model(before.message, before.files, layout=before.layout, aside=aside)
                self._coming[model_id] = model
                self._opener.put(model)
                aside = None  # once: before the next model it may have been replaced

    def _idly_checked(self, done: JobDone) -> None:
        self._checking = 0
        if done.status != Status.OK:
            log.error("stored models could not be checked in idle time: %s", done.text)
            for directory in self._checked:
                self._checks.hurry(directory)
            return
        for directory in self._checked:
            if self._checks.is_waiting(directory):  # else demand was faster
                self._note_checked(Checked(directory, str(done.damage.get(str(directory), ""))))

    def _check_some(self) -> None:
        """Check some directories in idle time: when nothing is fetched, prepared or opened."""
        if self._checking or self._preparing or self._coming:
            return
        some = self._checks.some(CHECK_JOB_MODELS)
        if some:
            self._job_id += 1
            self._checking, self._checked = self._job_id, list(some)
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
                self._to_prepare.append(model)
        self._prepare_next()

    def _prepare_next(self) -> None:
        while self._to_prepare and self._preparation.may_take():
            model = self._to_prepare.popleft()
            if model.cancelled:
                continue
            self._job_id += 1
            model.job_id = self._job_id
            self._preparing[model.job_id] = model
            job = {
                "package": str(self._store.directory(model.message.digest)),
                "store": str(self._store.root),
                "fingerprints": list(dict.fromkeys(device.info.fingerprint for device in self._devices)),
                "page_bytes": self._devices[0].info.page_bytes,
                "options": model.message.options | _as_before(model),
            }
            self._preparation.submit(self._job_id, job)
        self._check_some()

    def _failed(self, model: _Model, status: Status, text: str) -> None:
        model_id = model.message.model_id
        del self._coming[model_id]
        if model_id in self._repairing:
            self._begin_anew(model_id, text)
        self._send(codec.encode(Prepared(model_id, status, text, {})))


class _Read(NamedTuple):
    """A piece of a package that the controller wants; path: None if there is no such file."""

    fetch: Fetch
    path: Path | None


class _Tidy(NamedTuple):
    """What forgotten models had is to be given back."""


class _Reserve:
    """A device's time, for a model. Implements trials.Reserving. Raises Interrupted, or DeviceBroken."""

    def __init__(self, thread: _OpeningThread, device: ModelHolder, model: _Model | None) -> None:
        self._thread = thread
        self._device = device
        self._model = model
        self._model_id = model.message.model_id if model is not None else 0

    @contextlib.contextmanager
    def __call__(self, expected_ns: int, runs: Sequence[int]) -> Iterator[list[int]]:
        while not self._is_over():
            with self._device.reserved(self._model_id, lambda: self._ask(expected_ns, list(runs))) as starts:
                if starts is not None:
                    yield starts
                    return
        self._ask(0, [])
        if self._thread.has_lost(self._device):
            raise DeviceBroken(self._device.fault or "the device is offline")
        raise Interrupted("it was interrupted")

    def _is_over(self) -> bool:
        is_cancelled = self._model is not None and self._model.cancelled
        return self._thread.is_interrupted or is_cancelled or self._thread.has_lost(self._device)

    def _ask(self, expected_ns: int, runs: list[int]) -> None:
        self._thread.ask(self._device, self._model_id, min(expected_ns, RESERVE_NS_MAX), runs)
        if self._is_over():  # since it was looked at last
            self._device.end_reserve()

    def give_back(self) -> None:
        self._ask(0, [])


class _OpeningThread:
    """Reads prepared models, calls device.prepare() and tries them, in the order of the announcements."""

    def __init__(
        self,
        devices: Sequence[ModelHolder],
        store: PackageStore,
        wake: Callable[[], None],
        asks: deque[tuple[ModelHolder, int, int, list[int]]],
    ) -> None:
        """asks: what of the devices' time is needed is appended to it, and wake() follows."""
        self.devices = tuple(devices)  # the loop exchanges it for a shorter one
        self._asks = asks
        self._tidies = False  # a _Tidy is among the orders
        self.is_interrupted = False  # until it drains
        self.notes = TrialNotes(store.root)
        self._store = store
        self._wake = wake
        self._orders: queue.SimpleQueue[_Model | _Read | _Tidy | threading.Event | None] = queue.SimpleQueue()
        self._outcomes: deque[_Opened] = deque()
        self._pieces: deque[tuple[Fetch, bytes | None]] = deque()
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
        self._thread.start()

    def put(self, model: _Model) -> None:
        self._orders.put(model)

    def has_lost(self, device: ModelHolder) -> bool:
        """Whether a device is broken, or offline."""
        return bool(device.fault) or device not in self.devices

    def poll(self) -> list[_Opened]:
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def read(self, order: _Read) -> None:
        self._orders.put(order)

    def ask(self, device: ModelHolder, model_id: int, expected_ns: int, runs: list[int]) -> None:
        """Have the loop ask for a device's time. This thread's."""
        self._asks.append((device, model_id, expected_ns, runs))
        self._wake()

    def interrupt(self) -> None:
        """Have the thread wait for no device any more until drain(), or for good. The loop's."""
        self.is_interrupted = True
        self.look_again()

    def look_again(self) -> None:
        """Something has happened because of which the thread may wait for a device in vain. The loop's."""
        for device in self.devices:
            device.end_reserve()

    def tidy(self) -> None:
        """Have forgotten models give back what they had, when there is nothing else to do. The loop's."""
        if not self._tidies and any(device.is_untidy for device in self.devices):
            self._tidies = True
            self._orders.put(_Tidy())

    def poll_read(self) -> list[tuple[Fetch, bytes | None]]:
        """Pieces of packages that were read since the last call; None: could not be read."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def drain(self) -> None:
        """Wait until every model that was put has an outcome; cancelled ones take no time."""
        passed = threading.Event()
        self._orders.put(passed)
        passed.wait()

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            if isinstance(order, threading.Event):
                self.is_interrupted = False
                order.set()
                continue
            if isinstance(order, _Tidy):
                self._tidy()
                continue
            if isinstance(order, _Read):
                self._pieces.append((order.fetch, _read_piece(order)))
                self._wake()
                continue
            if order.cancelled:
                continue
            model_id = order.message.model_id
            try:
                outcome = self._open(order)
            except InvalidModel as error:
                outcome = _hopeless(order, Prepared(model_id, Status.INVALID_MODEL, str(error), {}))
            except (Interrupted, DeviceBroken) as error:
                outcome = _hopeless(order, Prepared(model_id, Status.INTERNAL, str(error), {}))
            except OSError as error:
                text = f"the prepared model cannot be read: {error}"
                outcome = _hopeless(order, Prepared(model_id, Status.INTERNAL, text, {}))
            except MemoryError:
                text = "there is not enough memory for the model"
                outcome = _hopeless(order, Prepared(model_id, Status.INTERNAL, text, {}))
            self._outcomes.append(outcome)
            self._wake()

    def _tidy(self) -> None:
        self._tidies = False
        for device in self.devices:
            # What is not given back now is so with the next model, or never is by a device that breaks.
            with contextlib.suppress(Interrupted, DeviceBroken):
                device.tidy(_Reserve(self, device, None) if device.reserves else None)

    def _open(self, model: _Model) -> _Opened:
        message, devices = model.message, self.devices
        if model.aside is not None:
            set_aside(model.aside)
            model.aside = None
        if not model.files:
            model.files = parse_files(message.files)
            if digest_of(model.files) != message.digest:
                raise InvalidModel(f"the files listed are not those of package {message.digest}")
            _check_options(message.options)
            _check_kind(model, devices)
        summary: dict[str, Any] | None = None
        damage, untried = "", False
        model.checksums.clear()
        for device in devices:
            directory = self._directory(message, device)
            info = device.info
            try:
                found = read_summary(directory, message.digest, info.fingerprint, info.page_bytes)
            except DamagedRecord as error:
                set_aside(directory)
                damage, found = str(error), None
            if found is None and model.is_profile and self._store.has(message.digest):
                package = self._store.directory(message.digest)
                try:
                    prepare_profile(
                        package, directory, message.digest, info.fingerprint, info.page_bytes, message.options
                    )
                except DamagedPackage as error:
                    set_package_aside(package, error)
                    return _Opened(model, True, False, b"", str(error))
                found = read_summary(directory, message.digest, info.fingerprint, info.page_bytes)
                model.was_prepared = True
            if found is None:
                if model.was_prepared:
                    raise InvalidModel(f"preparation left nothing usable in {directory}")
                return _Opened(model, True, self._store.has(message.digest), b"", damage)
            untried |= bool(found.pop("untried"))
            model.checksums[directory] = found.pop("checksums")
            page_count = sum(found["runs"])
            if page_count > info.page_count:
                raise InvalidModel(
                    f"the model takes {page_count} pages of {info.page_bytes} bytes, "
                    f"the arena of {info.name} has {info.page_count}"
                )
            summary = summary or found
        assert summary is not None
        if untried:
            summary = self._try(model, devices)
        told = _told(Prepared(message.model_id, Status.OK, "", summary))
        layout = tuple(summary.get(key) for key in LAYOUT)
        if model.layout not in ((), layout):
            reply = Prepared(message.model_id, Status.INTERNAL, "it was prepared differently before", {})
            return _Opened(model, False, True, codec.encode(reply), damage)
        model.layout = layout
        for device in devices:
            if device in model.opened:
                continue
            try:
                self._prepare(model, device)
            except DeviceBroken:
                continue  # the loop will find that out, too
            except InvalidModel as error:
                if model.was_prepared:
                    raise
                # Preparation checks the cache more closely, and replaces damaged files.
                return _Opened(model, True, self._store.has(message.digest), b"", str(error))
        return _Opened(model, False, True, told, damage, Given.of(summary))

    def _prepare(self, model: _Model, device: ModelHolder) -> _Reserve | None:
        reserve = _Reserve(self, device, model) if device.reserves else None
        device.prepare(model.message.model_id, str(self._directory(model.message, device)), reserve)
        model.opened.append(device)
        return reserve

    def _try(self, model: _Model, devices: Sequence[ModelHolder]) -> dict[str, Any]:
        """Have each directory that was not tried yet tried on the first of its devices that does not break; the summary of
        the first directory.

        The device knows the model from then on. Raises as trials.try_model(), and Interrupted if every device breaks."""
        summaries, why = [], ""
        for directory in list(model.checksums):
            for device in devices:
                if self._directory(model.message, device) != directory or self.has_lost(device):
                    continue
                try:
                    summaries.append(self._try_on(model, device, directory))
                except DeviceBroken as error:
                    why = str(error)
                    continue
                break
        if not summaries:
            raise Interrupted(f"no device is left to try it on: {why}")
        return summaries[0]

    def _try_on(self, model: _Model, device: ModelHolder, directory: Path) -> dict[str, Any]:
        """Have a directory tried on this device, unless it has been; its summary. Raises as _try(), and DeviceBroken."""
        message, info = model.message, device.info
        summary = read_summary(directory, message.digest, info.fingerprint, info.page_bytes)
        if summary is None or summary["untried"]:
            try:
                if not self.notes.begin(directory.name):
                    raise InvalidModel(
                        f"the worker ended while it tried the model on {info.name}, most likely because one execution "
                        f"takes longer than {preparation_run_ns() / SECOND:g} s; registered again, it is tried again"
                    )
                reserve = self._prepare(model, device)
                assert reserve is not None, "only a device that reserves is given models to try"
                try_model(device.trial(message.model_id), reserve, directory, message.options)
            finally:
                self.notes.end()
            summary = read_summary(directory, message.digest, info.fingerprint, info.page_bytes)
        if summary is None:
            raise Interrupted(f"{directory} is gone")
        model.checksums[directory] = summary.pop("checksums")
        del summary["untried"]
        return summary

    def _directory(self, message: Prepare, device: ModelHolder) -> Path:
        return prepared_directory(self._store.root, message.digest, device.info.fingerprint, message.options)


def _read_piece(order: _Read) -> bytes | None:
    if order.path is None:
        return None
    try:
        with open(order.path, "rb") as file:
            file.seek(order.fetch.offset)
            return file.read(order.fetch.length)
    except (OSError, ValueError, OverflowError):
        return None


def _as_before(model: _Model) -> dict[str, Any]:
    """Additional options of a repair: a packed model, whose size is measured, keeps at least the pages that the controller
    planned for."""
    known = dict(zip(LAYOUT, model.layout))
    return {"pages_min": sum(known["runs"])} if known.get("holding") == "packed" else {}


def _check_options(options: dict[str, Any]) -> None:
    """Raises InvalidModel unless the options that determine a directory's name are valid."""
    batching, batch_max = options.get("batching", "auto"), options.get("batch_max", 0)
    if batching not in BATCHING or type(batch_max) is not int or batch_max < 0:
        raise InvalidModel(f"batching {batching!r} with batch_max {batch_max!r} is no way to batch")
    if options.get("dtype", "fp32") not in PRODUCT_DTYPES:
        raise InvalidModel(f"dtype {options['dtype']!r} is none of {', '.join(PRODUCT_DTYPES)}")


def _check_kind(model: _Model, devices: Sequence[ModelHolder]) -> None:
    """Raises InvalidModel unless a profile is for emulated devices, or a model for other devices."""
    for device in devices:
        emulated = device.info.kind == "emulated"
        if model.is_profile and not emulated:
            raise InvalidModel(
                f"{model.message.name} is only a profile, which emulated devices serve; "
                f"a {device.info.kind} device needs the model itself"
            )
        if emulated and not model.is_profile:
            raise InvalidModel(
                f"{model.message.name} is a model to compute, and an emulated device serves profiles: export one "
                "where it runs (clockwork models show NAME --profile FILE) and add that (clockwork models add "
                "--profiles FILE)"
            )


def _told(prepared: Prepared) -> bytes:
    """The header of a Prepared, whose names and notes come from the model. Raises InvalidModel if it breaks a bound."""
    try:
        return codec.check(prepared)
    except codec.WireError as error:
        raise InvalidModel(f"the model is beyond what a controller can be told of one: {error}") from None


def _hopeless(model: _Model, reply: Prepared) -> _Opened:
    return _Opened(model, False, True, codec.encode(reply))


class DamagedRecord(ValueError):
    """The description of a prepared model was changed after it was written."""


def read_summary(directory: Path, digest: str, fingerprint: str, page_bytes: int) -> dict[str, Any] | None:
    """PreparedModel.summary() as it is on disk, ``checksums`` and ``untried``. Raises DamagedRecord.

    None if it is not there, was made for another device, or by a version that took no checksums.

    Read as plain JSON, without the objects: thousands of these are read when a worker starts.
    """
    path = directory / PREPARED_FILE
    try:
        body, is_sealed = unseal(read_plain(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else error
        raise DamagedRecord(f"{directory.name[:12]}: {PREPARED_FILE} is damaged: {text}") from None
    wanted = {
        "format_version": FORMAT_VERSION,
        "digest": digest,
        "fingerprint": fingerprint,
        "page_bytes": page_bytes,
    }
    if not is_sealed or any(body.get(key) != value for key, value in wanted.items()):
        return None
    checksums, untried = body.get("checksums"), bool(body.get("untried"))
    for name in OF_THE_DEVICE:
        body.pop(name, None)
    return body | {"checksums": checksums or {}, "untried": untried}
