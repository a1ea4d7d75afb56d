"""The thread that opens prepared models: it reads them from the cache and makes them known to the devices.

On a GPU, the thread also has each model checked and timed (models.trials), and reserves the device's time for
that.

The thread owns a model from put() to poll(). Its waits for a device end when the loop announces that the
device may never become free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config import RESERVE_NS_MAX, RESERVE_RUNS_MAX, preparation_run_ns
from clockwork.device.base import DeviceBroken, ModelHolder
from clockwork.device.lacking import lacked_memory
from clockwork.errors import InvalidModel
from clockwork.formats.bundles import bundle_in
from clockwork.formats.checksums import set_aside
from clockwork.formats.package import (
    DamagedPackage,
    PackageFile,
    PackageStore,
    digest_of,
    parse_files,
    rows_of,
)
from clockwork.formats.prepared import (
    FORMAT_VERSION,
    JUDGED,
    OF_THE_DEVICE,
    PREPARED_FILE,
    prepared_directory,
    read_body,
)
from clockwork.formats.profile_package import prepare_profile
from clockwork.models.trials import Interrupted, try_model
from clockwork.system.clock import SECOND
from clockwork.wire import codec
from clockwork.wire.messages import BATCHING, PRODUCT_DTYPES, Fetch, Prepare, Prepared, Status
from clockwork.wire.packages import PROFILE_FILE
from clockwork.worker.given import Given
from clockwork.worker.preparation import set_package_aside
from clockwork.worker.trial_notes import TrialNotes


class StoreOrder(NamedTuple):
    """A FETCH that is carried out. by_ns: the time by which it is to have ended."""

    action_id: int
    by_ns: int


@dataclasses.dataclass(slots=True, eq=False)
class WorkerModel:
    """A model being prepared, or ready. While the opening thread has it, the loop only sets ``cancelled``."""

    message: Prepare
    files: list[PackageFile] = dataclasses.field(default_factory=list)
    opened: list[ModelHolder] = dataclasses.field(default_factory=list)  # devices that know the model now
    was_prepared: bool = False  # whether the preparation process has run for this model
    job_id: int = 0  # job of the preparation process for it; 0: none
    # Checksums of the model's files, by directory.
    checksums: dict[Path, dict[str, int]] = dataclasses.field(default_factory=dict)
    layout: tuple[Any, ...] = ()  # values of LAYOUT, with which the controller plans
    given: Given | None = None  # set when the model is ready
    reply: bytes = b""  # the encoded Prepared of a ready model, for the next session
    refetches: int = 0
    was_wanted: bool = False  # whether other workers were asked for it
    was_taken: bool = False  # whether it lies here as another worker has prepared it
    bundle: tuple[str, tuple[str, ...]] = ("", ())  # its bundle's digest, "" none, and the names of its files
    aside: Path | None = None  # a damaged directory that the opening thread puts out of the way
    cancelled: bool = False
    is_sought: bool = False  # it is only looked for in a store with a bound
    is_fetched: bool = False  # it is taken from another worker by order, and not made here
    orders: list[StoreOrder] = dataclasses.field(default_factory=list)  # FETCHes that end with it

    @property
    def is_profile(self) -> bool:
        return bool(self.files) and self.files[0].path == PROFILE_FILE


LAYOUT = ("runs", "batches", "batch_max", "holding", "program")
"""Fields of PreparedModel.summary() with which the controller plans."""


class Opened(NamedTuple):
    """The outcome of opening a model: ready (``reply`` OK), failed, or still to be prepared (``missing``)."""

    model: WorkerModel
    missing: bool  # neither ready nor failed: it has to be prepared
    has_package: bool
    reply: bytes  # the encoded Prepared
    damage: str = ""  # damage that was found on the way and will be replaced
    given: Given | None = None  # set when the model is ready


class ReadPiece(NamedTuple):
    """A piece of a package that the controller wants; path: None if there is no such file."""

    fetch: Fetch
    path: Path | None


class _Tidy(NamedTuple):
    """An order to release the resources of forgotten models."""


class ModelReserve:
    """Reserves a device's time for a model: trials.Reserving. Raises Interrupted, DeviceBroken or
    InvalidModel."""

    def __init__(self, thread: OpeningThread, device: ModelHolder, model: WorkerModel | None) -> None:
        self._thread = thread
        self._device = device
        self._model = model
        self._model_id = model.message.model_id if model is not None else 0

    @contextlib.contextmanager
    def __call__(self, expected_ns: int, runs: Sequence[int]) -> Iterator[list[int]]:
        if len(runs) > RESERVE_RUNS_MAX:
            raise InvalidModel(
                f"it has {len(runs)} runs of pages, and a device is asked for at most {RESERVE_RUNS_MAX}: larger pages help"
            )
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
        if self._is_over():  # the job has ended since the last look
            self._device.end_reserve()

    def give_back(self) -> None:
        self._ask(0, [])


class OpeningThread:
    """Reads prepared models, calls device.open() and tries them, in the order of the announcements."""

    def __init__(
        self,
        devices: Sequence[ModelHolder],
        store: PackageStore,
        wake: Callable[[], None],
        asks: deque[tuple[ModelHolder, int, int, list[int]]],
    ) -> None:
        """asks: receives each request for a device's time; wake() is called afterwards."""
        self.devices = tuple(devices)  # the loop replaces it when a device is lost
        self._asks = asks
        self._tidies = False  # a _Tidy is among the orders
        self.is_interrupted = False  # whether waiting jobs are interrupted, until the worker drains
        self.notes = TrialNotes(store.root)
        self._store = store
        self._wake = wake
        self._orders: queue.SimpleQueue[WorkerModel | ReadPiece | _Tidy | threading.Event | None] = (
            queue.SimpleQueue()
        )
        self._outcomes: deque[Opened] = deque()
        self._pieces: deque[tuple[Fetch, bytes | None]] = deque()
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
        self._thread.start()

    def put(self, model: WorkerModel) -> None:
        self._orders.put(model)

    def directories(self, model: WorkerModel) -> list[Path]:
        """The directories of a model's preparations for the devices."""
        found = (self._directory(model.message, device) for device in self.devices)
        return list(dict.fromkeys(found))

    def has_lost(self, device: ModelHolder) -> bool:
        """Whether a device is broken, or offline."""
        return bool(device.fault) or device not in self.devices

    def poll(self) -> list[Opened]:
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def read(self, order: ReadPiece) -> None:
        self._orders.put(order)

    def ask(self, device: ModelHolder, model_id: int, expected_ns: int, runs: list[int]) -> None:
        """Have the loop ask for a device's time. Called by the opening thread."""
        self._asks.append((device, model_id, expected_ns, runs))
        self._wake()

    def interrupt(self) -> None:
        """End the thread's waits for devices until drain(), or for good. Called by the loop."""
        self.is_interrupted = True
        self.look_again()

    def look_again(self) -> None:
        """Have the thread check whether the device that it waits for can still become free. Called by the
        loop."""
        for device in self.devices:
            device.end_reserve()

    def tidy(self) -> None:
        """Have resources of forgotten models released once no other order waits. Called by the loop."""
        if not self._tidies and any(device.is_untidy for device in self.devices):
            self._tidies = True
            self._orders.put(_Tidy())

    def poll_read(self) -> list[tuple[Fetch, bytes | None]]:
        """Return the pieces of packages read since the last call; None for a piece that could not be read."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def drain(self) -> None:
        """Wait until every model that was put has an outcome. Cancelled models are skipped."""
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
            if isinstance(order, ReadPiece):
                self._pieces.append((order.fetch, _read_piece(order)))
                self._wake()
                continue
            if order.cancelled:
                continue
            model_id = order.message.model_id
            try:
                outcome = self._open(order)
            except InvalidModel as error:
                status = Status.INTERNAL if lacked_memory(str(error)) else Status.INVALID_MODEL
                outcome = _hopeless(order, Prepared(model_id, status, str(error), {}))
            except (Interrupted, DeviceBroken) as error:
                outcome = _hopeless(order, Prepared(model_id, Status.INTERNAL, str(error), {}))
            except OSError as error:
                text = f"the prepared model cannot be read: {error}"
                outcome = _hopeless(order, Prepared(model_id, Status.INTERNAL, text, {}))
            except MemoryError as error:
                text = str(error) or "there is not enough memory for the model"
                outcome = _hopeless(order, Prepared(model_id, Status.INTERNAL, text, {}))
            self._outcomes.append(outcome)
            self._wake()

    def _tidy(self) -> None:
        self._tidies = False
        for device in self.devices:
            # A failure here is not final: what was not released is released when the next model is opened,
            # unless the device is broken.
            with contextlib.suppress(Interrupted, DeviceBroken):
                device.tidy(ModelReserve(self, device, None) if device.reserves else None)

    def _open(self, model: WorkerModel) -> Opened:
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
                    return Opened(model, True, False, b"", str(error))
                found = read_summary(directory, message.digest, info.fingerprint, info.page_bytes)
                model.was_prepared = True
            if found is None:
                if model.was_prepared:
                    raise InvalidModel(f"preparation left nothing usable in {directory}")
                return Opened(model, True, self._store.has(message.digest), b"", damage)
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
        summary["bundle"] = _bundle(model, devices)
        told = _told(Prepared(message.model_id, Status.OK, "", summary))
        layout = tuple(summary.get(key) for key in LAYOUT)
        if model.layout not in ((), layout):
            reply = Prepared(message.model_id, Status.INTERNAL, "it was prepared differently before", {})
            return Opened(model, False, True, codec.encode(reply), damage)
        model.layout = layout
        for device in devices:
            if device in model.opened:
                continue
            try:
                self._open_on(model, device)
            except DeviceBroken:
                continue  # the loop sees the fault as well
            except InvalidModel as error:
                if model.was_prepared:
                    raise
                if model.was_taken:
                    set_aside(self._directory(message, device))
                # Preparation checks the cache more closely, and replaces damaged files.
                return Opened(model, True, self._store.has(message.digest), b"", str(error))
        return Opened(model, False, True, told, damage, Given.of(summary))

    def _open_on(self, model: WorkerModel, device: ModelHolder) -> ModelReserve | None:
        reserve = ModelReserve(self, device, model) if device.reserves else None
        device.open(model.message.model_id, str(self._directory(model.message, device)), reserve)
        model.opened.append(device)
        return reserve

    def _try(self, model: WorkerModel, devices: Sequence[ModelHolder]) -> dict[str, Any]:
        """Try each untried directory on the first of its devices that does not break.

        Returns the summary of the first directory. The device knows the model from then on. Raises the
        exceptions of trials.try_model(), and Interrupted if every device breaks."""
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

    def _try_on(self, model: WorkerModel, device: ModelHolder, directory: Path) -> dict[str, Any]:
        """Try a directory on a device unless it was tried; return its summary. Raises as _try(), and
        DeviceBroken."""
        message, info = model.message, device.info
        summary = read_summary(directory, message.digest, info.fingerprint, info.page_bytes)
        if summary is None or summary["untried"]:
            try:
                if not self.notes.begin(directory.name):
                    raise InvalidModel(
                        f"the worker ended while it tried the model on {info.name}, most likely because one execution "
                        f"takes longer than {preparation_run_ns() / SECOND:g} s; registered again, it is tried again"
                    )
                reserve = self._open_on(model, device)
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


def _bundle(model: WorkerModel, devices: Sequence[ModelHolder]) -> list[list[Any]]:
    """Return the rows of a model's bundle, and note it; none where devices differ or are no CPUs. Raises
    OSError, InvalidModel."""
    if len(model.checksums) != 1 or devices[0].info.kind != "cpu":
        return []
    (directory,) = model.checksums
    try:
        files = bundle_in(directory)
    except ValueError as error:
        raise InvalidModel(f"{directory / PREPARED_FILE} was changed while it was read: {error}") from None
    model.bundle = (digest_of(files), tuple(file.path for file in files)) if files else ("", ())
    return rows_of(files)


def _read_piece(order: ReadPiece) -> bytes | None:
    if order.path is None:
        return None
    try:
        with open(order.path, "rb") as file:
            file.seek(order.fetch.offset)
            return file.read(order.fetch.length)
    except (OSError, ValueError, OverflowError):
        return None


def _check_options(options: dict[str, Any]) -> None:
    """Check the options that determine a directory's name. Raises InvalidModel."""
    batching, batch_max = options.get("batching", "auto"), options.get("batch_max", 0)
    if batching not in BATCHING or type(batch_max) is not int or batch_max < 0:
        raise InvalidModel(f"batching {batching!r} with batch_max {batch_max!r} is no way to batch")
    if options.get("dtype", "fp32") not in PRODUCT_DTYPES:
        raise InvalidModel(f"dtype {options['dtype']!r} is none of {', '.join(PRODUCT_DTYPES)}")


def _check_kind(model: WorkerModel, devices: Sequence[ModelHolder]) -> None:
    """Check that a profile is for emulated devices, and a model for other devices. Raises InvalidModel."""
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
    """Encode a Prepared, whose names and notes come from the model. Raises InvalidModel if it exceeds a
    bound."""
    try:
        return codec.check(prepared)
    except codec.WireError as error:
        raise InvalidModel(
            f"the model's description exceeds a bound of messages to the controller: {error}"
        ) from None


def _hopeless(model: WorkerModel, reply: Prepared) -> Opened:
    return Opened(model, False, True, codec.encode(reply))


class DamagedRecord(ValueError):
    """The description of a prepared model was changed after it was written."""


def read_summary(directory: Path, digest: str, fingerprint: str, page_bytes: int) -> dict[str, Any] | None:
    """Read PreparedModel.summary() with ``checksums`` and ``untried`` from disk. Raises DamagedRecord.

    Returns None if there is no summary, or if it was made for another device or by a version of Clockwork
    that took no checksums or batched models that do not bear it. The summary is parsed as plain JSON:
    thousands are read when a worker starts.
    """
    try:
        body, is_sealed = read_body(directory)
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
    if body.get("batches") and body.get("judged", 1) != JUDGED:
        return None
    checksums, untried = body.get("checksums"), bool(body.get("untried"))
    for name in OF_THE_DEVICE:
        body.pop(name, None)
    return body | {"checksums": checksums or {}, "untried": untried}
