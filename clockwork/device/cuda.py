"""An NVIDIA GPU as a device: native lanes launch kernels from lists, with weights in a page arena.

LOAD copies a model's laid-out weights from pinned memory to pages of the arena, in pieces, so that the inputs
of an INFER never wait for a whole model; INFER copies the inputs, launches the kernels of the smallest
variant that the batch fits, and copies the outputs, each on a stream of its own. The window of an INFER is
that of its execution: its inputs are copied as soon as the input lane is free. An execution is queued behind
the running one if its window is open and contains the predicted end of the running one. The duration of a
phase is measured by the device's events; its begin and end by this machine's clock.

Device memory, pinned memory, streams and events are allocated when the device is created. Preparing a model
may allocate more (larger slots or workspace), and loads modules; an action does neither. Both stall a GPU's
executions, and happen in RESERVEs, which the controller orders.

LOAD and UNLOAD report their time as the ``execute`` phase.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork import config
from clockwork.config import device as bounds
from clockwork.device._cuda_host import WeightsCopy
from clockwork.device._cuda_model import SOURCES, CompiledModel, CompiledProgram
from clockwork.device._cuda_reserve import ReservingCore
from clockwork.device._cudriver import CudaError, DeviceBytes, DriverTable, PinnedBytes
from clockwork.device.base import DeviceBroken, Kept, Reserve
from clockwork.device.cuda_host import HostStore, PinnedFiles
from clockwork.device.cuda_kernels import find_kernels, find_modules, load_modules
from clockwork.device.cuda_memory import (
    DeviceMemory,
    find_card,
    fingerprint_of,
    open_driver,
    open_memory,
)
from clockwork.device.cuda_trial import CudaTrial
from clockwork.device.lacking import is_lack
from clockwork.device.native import NativeDevice, start_lanes
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.prepared import WEIGHTS_FILE, PreparedModel, TensorSpec, check_layout
from clockwork.formats.program import Argument, Program, Variant, read_program, stored_damage
from clockwork.system.clock import now_ns
from clockwork.wire.messages import DeviceInfo

log = logging.getLogger("clockwork.worker")

HOLDING = "program"


class _Types(NamedTuple):
    """The types and sizes in which a model must match its program, because kernels rely on them."""

    inputs: list[int]
    outputs: list[int]
    weights_bytes: list[int]


@dataclasses.dataclass(slots=True)
class _Loaded:
    """A program on this device, and the number of its known models."""

    program: CompiledProgram
    modules: list[Any]
    types: _Types
    models: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """The resources of a model."""

    program: str
    weights: Path  # the file in the host store, or to be read into it
    host: WeightsCopy
    model: CompiledModel


class CudaDevice(NativeDevice[ReservingCore]):
    """Implements device.base.Device.

    which: a number, or a UUID as nvidia-smi prints it, also of a MIG instance. arena_bytes: rounded down to
    whole pages; 0: most of the free memory. store: the host store, shared by the devices of a process; None:
    a store of its own of pinned_bytes (0: the default of a worker). graphs: whether launches are recorded;
    None: as the environment says. load_piece_bytes: the size of the pieces in which a LOAD is copied. Raises
    ConfigError.
    """

    def __init__(
        self,
        which: str = "0",
        arena_bytes: int = 0,
        page_bytes: int = config.CUDA_PAGE_BYTES,
        run_ahead: int = config.RUN_AHEAD,
        workspace_bytes: int = bounds.CUDA_WORKSPACE_BYTES,
        io_slot_bytes: int = bounds.CUDA_IO_SLOT_BYTES,
        store: HostStore | None = None,
        table: DriverTable | None = None,
        pinned_bytes: int = 0,
        graphs: bool | None = None,
        load_piece_bytes: int = bounds.CUDA_LOAD_PIECE_BYTES,
    ) -> None:
        if page_bytes < 1 or page_bytes % 4096:
            raise ConfigError(f"page_bytes is {page_bytes}; it must be a multiple of 4096")
        if run_ahead < 1:
            raise ConfigError(f"run_ahead must be at least 1, got {run_ahead}")
        self._table = table or open_driver()
        card = find_card(self._table, which)
        self._records = bounds.cuda_graphs() if graphs is None else graphs
        if self._records and not self._table.has_graphs:
            log.warning("the CUDA driver %s has no graphs: kernels are launched one by one", self._table.path)
            self._records = False
        self._memory = open_memory(self._table, card)
        try:
            self._store = store or PinnedFiles(
                [open_memory(self._table, card)], page_bytes, pinned_bytes or config.cuda_pinned_bytes()
            )
            if self._store.page_bytes != page_bytes:
                raise ConfigError(
                    f"pages of {page_bytes} bytes, and of {self._store.page_bytes} in the host store"
                )
        except BaseException:
            self._memory.close()
            raise
        self._holds = _Holds(self._memory, self._store)
        # Guards programs: the opening thread adds to them, and the loop drops models
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, self._holds.release)
        self._store.join()
        said = "its memory is full"
        try:
            self._memory.make_current()
            pools = workspace_bytes + (run_ahead + 1) * io_slot_bytes
            free, total = self._memory.memory_info()
            if not arena_bytes:
                arena_bytes = max(int((free - pools) * bounds.CUDA_ARENA_SHARE), page_bytes)
            said = (
                f"of {total} bytes {free} are free, of which workspace, inputs and outputs take {pools} and the arena "
                f"{arena_bytes}"
            )
            page_count = arena_bytes // page_bytes
            if page_count < 1:
                raise ConfigError(f"an arena of {arena_bytes} bytes has no room for one page of {page_bytes}")
            arena = self._holds.device(page_count * page_bytes)
            super().__init__(
                ReservingCore(
                    self._table,
                    self._memory.context,
                    arena,
                    page_bytes,
                    page_count,
                    run_ahead,
                    bounds.LANE_SPIN_NS,
                    self._store.link,
                    self._holds.host(ReservingCore.words_bytes(run_ahead))
                    if self._table.writes_words
                    else None,
                    load_piece_bytes,
                )
            )
            self._holds.core = self._core
            if not self._store.budget_bytes:
                self._core.refuse_host_tier()
            if not self._core.writes_words:
                log.warning(
                    "CUDA device %s (%s) writes no words: lanes ask the driver about events", which, card.name
                )
            self._stall_ns = bounds.RESERVE_STALL_NS
            self._slot_bytes = self._workspace_bytes = self._graphs_missing = 0
            self._graphs_due = False
            self._grow(io_slot_bytes, workspace_bytes, None)
            self._holds.outgrown.clear()  # the pools were empty
            self._graphs_due = False
        except MemoryError as error:
            self.close()
            raise ConfigError(f"cannot use CUDA device {which} ({card.name}): {said}: {error}") from None
        except CudaError as error:
            self.close()
            raise ConfigError(f"cannot use CUDA device {which} ({card.name}): {error}") from None
        except BaseException:
            self.close()
            raise
        self.info = DeviceInfo(
            kind="cuda",
            name=card.name,
            fingerprint=fingerprint_of(self._table, card),
            page_bytes=page_bytes,
            page_count=page_count,
            run_ahead=run_ahead,
            host_bytes=self._store.budget_bytes,
        )
        self.card = card
        self._programs: dict[str, _Loaded] = {}
        self._models: dict[int, _Known] = {}
        self._holds.programs = self._programs
        self._holds.models = self._models
        fetches = ["cw-fetch"] if self._store.budget_bytes else []
        self._holds.lanes = start_lanes(
            self._core, ["cw-load", "cw-input", "cw-execute", "cw-output", *fetches]
        )

    # ----- models, from the preparation thread -------------------------------------------------

    def open(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        """Open a prepared model; see ModelHolder.

        Raises InvalidModel, MemoryError, OSError, and ValueError if the id is taken."""
        place = Path(directory)
        prepared = PreparedModel.read_for(place, self.info.fingerprint, self.info.page_bytes)
        self._check(prepared, place)
        if self._core.has_model(model_id):
            raise ValueError(f"model {model_id} is prepared already")
        if self.fault:
            raise DeviceBroken(self.fault)
        try:
            self._memory.make_current()
            self._open(model_id, prepared, place, reserve)
        except (CudaError, OSError) as error:
            if isinstance(error, CudaError) and self._core.look(str(error)):
                raise DeviceBroken(self.fault) from None
            if isinstance(error, OSError) and is_lack(error):
                raise
            raise InvalidModel(f"{place}: {error}") from None
        finally:
            if reserve is None:
                self.tidy()

    def _open(self, model_id: int, prepared: PreparedModel, place: Path, reserve: Reserve | None) -> None:
        weights, host, loaded = place / WEIGHTS_FILE, None, None
        try:
            size = sum(prepared.runs) * prepared.page_bytes
            if size and (found := weights.stat().st_size) != size:
                raise InvalidModel(f"{weights} has {found} bytes, its runs {size}")
            host = self._store.take(model_id, weights, _used_bytes(prepared))
            loaded = self._load_program(prepared, place, reserve)
            self._grow(loaded.program.slot_bytes, loaded.program.workspace_bytes, reserve)
            self._record_due_graphs(reserve)
            places = [(weight.run, weight.offset) for weight in prepared.weights]
            model = CompiledModel(model_id, loaded.program, host, list(prepared.runs), places)
            self._core.add_model(model)
        except BaseException:
            if host is not None:
                self._store.drop(model_id, weights)
            if loaded is not None:
                self._drop_program(prepared.program)
            raise
        self._models[model_id] = _Known(prepared.program, weights, host, model)

    @contextlib.contextmanager
    def _reserved(self, reserve: Reserve | None) -> Iterator[None]:
        """Hold a RESERVE for driver calls that stall executions. Replaced memory is released at its end."""
        if reserve is None:
            yield
            return
        with reserve(self._stall_ns, ()):
            begun_ns = now_ns()
            self._memory.make_current()
            yield
            self._release_outgrown()
            # The longest recent stall, which decays by an eighth each time.
            self._stall_ns = max(now_ns() - begun_ns, self._stall_ns - self._stall_ns // 8)

    def tidy(self, reserve: Reserve | None = None) -> None:
        """Release replaced memory, and modules of programs without models. Raises DeviceBroken."""
        if not self.is_untidy:
            return
        try:
            with self._reserved(reserve):
                self._memory.make_current()
                self._release_outgrown()
        except CudaError as error:
            if self._core.look(str(error)):
                raise DeviceBroken(self.fault) from None
            log.error("%s could not release memory: %s", self.info.name, error)

    @property
    def is_untidy(self) -> bool:
        """Whether tidy() has memory or modules to release."""
        return bool(self._holds.outgrown or self._holds.unused) and not self.fault

    def _release_outgrown(self) -> None:
        holds = self._holds
        while holds.outgrown:
            host, device = holds.outgrown.pop()
            holds.free_host(host)
            holds.free_device(device)
        with self._lock:  # held by the opening thread, which alone takes from them
            unused, holds.unused = holds.unused, {}
        for loaded in unused.values():
            self._core.drop_graphs(loaded.program)
            for module in loaded.modules:
                self._memory.unload_module(module)

    def _check(self, prepared: PreparedModel, place: Path) -> None:
        if prepared.holding != HOLDING:
            raise InvalidModel(
                f"{place} has the holding {prepared.holding!r}, a CUDA device takes {HOLDING!r}"
            )
        check_layout(prepared, place)

    def _load_program(self, prepared: PreparedModel, place: Path, reserve: Reserve | None) -> _Loaded:
        """Load the program of a model, or share a loaded one. Its count of models grows by one."""
        digest = prepared.program
        with self._lock:
            loaded = self._programs.get(digest) or self._holds.unused.pop(digest, None)
            if loaded is not None:
                self._programs[digest] = loaded
                loaded.models += 1
        if loaded is None:
            directory = place.parent.parent / "programs" / digest
            if damage := stored_damage(directory):
                raise InvalidModel(damage)
            lists = read_program(directory)
            target, paths = find_modules(self._table, self.card, lists, directory)
            with self._reserved(reserve):
                modules = load_modules(self._memory, paths)
                try:
                    loaded = _Loaded(self._link(lists, target, modules), modules, _types(lists), 1)
                except BaseException:
                    for module in modules:
                        self._memory.unload_module(module)
                    raise
            with self._lock:
                self._programs[digest] = loaded
            self._graphs_due = self._records
        if loaded.types != (given := _types(prepared)):
            self._drop_program(digest)
            raise InvalidModel(
                f"{place} has inputs {given.inputs}, outputs {given.outputs} and {len(given.weights_bytes)} weights of "
                f"{sum(given.weights_bytes)} bytes, which are not those of its program"
            )
        return loaded

    def _link(self, lists: Program, target: str, modules: Sequence[Any]) -> CompiledProgram:
        variants = lists.of_target(target)
        kernels = find_kernels(
            self._table,
            self._memory,
            self.card,
            modules,
            (launch for variant in variants for launch in variant.launches),
        )

        def launches(variant: Variant) -> list[Any]:
            return [
                (
                    kernels[launch.module, launch.kernel],
                    launch.grid,
                    launch.block,
                    launch.shared,
                    [_argument(argument) for argument in launch.args],
                )
                for launch in variant.launches
            ]

        try:
            return CompiledProgram(
                [_described(spec, lists) for spec in lists.inputs],
                [_described(spec, lists) for spec in lists.outputs],
                len(lists.weights),
                lists.batches,
                [
                    (
                        variant.batch,
                        variant.shapes,
                        variant.output_shapes,
                        variant.workspace,
                        launches(variant),
                        [_argument(entry) for entry in variant.table],
                    )
                    for variant in variants
                ],
            )
        except ValueError as error:
            raise InvalidModel(f"the program cannot be served: {error}") from None

    def _record_due_graphs(self, reserve: Reserve | None) -> None:
        """Record all programs' graphs for the current slots and workspace, a few per RESERVE. Raises
        CudaError."""
        while self._graphs_due:
            with self._reserved(reserve):
                self._release_outgrown()
                until_ns = now_ns() + config.TRIAL_RESERVE_NS
                while self._graphs_due and (reserve is None or now_ns() < until_ns):
                    self._graphs_due = self._record_graph()

    def _record_graph(self) -> bool:
        """Record a graph of the newest program that lacks one, or has one for memory that was replaced.

        Returns False if there is no such program, or no room for another graph."""
        with self._lock:
            programs = [loaded.program for loaded in self._programs.values()]
        missing, has_room = 0, self._core.graph_count < bounds.CUDA_GRAPHS_MAX
        for program in reversed(programs):
            is_recorded, lacking = self._core.record_graph(program, has_room)
            if is_recorded:
                return True
            missing += lacking
        self._graphs_missing = missing
        return False

    def _drop_program(self, digest: str) -> None:
        """Count one model less for a program. Modules without models stay until tidy()."""
        with self._lock:
            loaded = self._programs[digest]
            loaded.models -= 1
            if loaded.models == 0:
                self._holds.unused[digest] = self._programs.pop(digest)
                self._graphs_due |= self._graphs_missing > 0  # tidy() makes room for some

    def _grow(self, slot_bytes: int, workspace_bytes: int, reserve: Reserve | None) -> None:
        """Enlarge slots and workspace to these sizes. Raises MemoryError, CudaError, InvalidModel."""
        if slot_bytes > config.IO_SLOT_BYTES_MAX:
            raise InvalidModel(
                f"inputs and outputs of {slot_bytes} bytes; at most {config.IO_SLOT_BYTES_MAX} are served"
            )
        count = self._core.slot_count if slot_bytes > self._slot_bytes else 0
        workspace: DeviceBytes | None = None
        if not count and workspace_bytes <= self._workspace_bytes:
            return
        fresh: list[tuple[PinnedBytes, DeviceBytes]] = []
        outgrown = self._holds.outgrown
        with self._reserved(reserve):
            try:
                for _ in range(count):
                    host = self._holds.host(slot_bytes)
                    try:
                        fresh.append((host, self._holds.device(slot_bytes)))
                    except BaseException:
                        self._holds.free_host(host)
                        raise
                if workspace_bytes > self._workspace_bytes:
                    workspace = self._holds.device(workspace_bytes)
            except BaseException:
                for host, device in fresh:
                    self._holds.free_host(host)
                    self._holds.free_device(device)
                raise
        # Outside the RESERVE: a slot may belong to an action that waits for the RESERVE's end.
        self._graphs_due = self._records
        for host, device in fresh:
            outgrown.append(self._core.exchange_slot(slot_bytes, host, device) or (host, device))
            self._slot_bytes = slot_bytes
        if workspace is not None:
            outgrown.append((None, self._core.exchange_workspace(workspace)))
            self._workspace_bytes = workspace_bytes

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known.

        Raises ValueError if the model is resident, in a host store with a budget, or held by an action."""
        if not self.fault and model_id in self._models and self._models[model_id].host.is_fetched:
            raise ValueError(f"model {model_id} is in the host store")
        if self._core.remove_model(model_id) is None:
            return
        known = self._models.pop(model_id)
        self._store.drop(model_id, known.weights)
        self._drop_program(known.program)

    # ----- time of its own, from the thread that prepares ----------------------------------------

    @property
    def reserves(self) -> bool:
        return True

    @contextlib.contextmanager
    def reserved(self, model_id: int, ask: Callable[[], None]) -> Iterator[list[int] | None]:
        """See Device."""
        self._core.want_reserve(model_id)
        ask()
        starts = self._core.enter_reserve()
        try:
            yield starts
        finally:
            self._core.leave_reserve()

    def end_reserve(self) -> None:
        self._core.end_reserve()

    def trial(self, model_id: int) -> CudaTrial:
        """Begin a trial of a prepared model that no action names yet."""
        return CudaTrial(self._core, self._memory, self._models[model_id].model, self._store.staging)

    @property
    def keeps(self) -> bool:
        """No: what it has in memory is not numbered anew."""
        return False

    def rename(self, model_id: int, other: int) -> None:
        """See ModelHolder."""
        raise ValueError("a CUDA device does not keep models")

    def keep(self) -> list[Kept]:
        """See Device."""
        self.reset()
        return []

    def reset(self) -> None:
        """See Device. Empties the host store, too. A broken device also releases its models."""
        super().reset()
        self._store.clear()
        if self.fault:
            for model_id in list(self._models):
                self.forget(model_id)

    @property
    def fault(self) -> str:
        """See Device. The fault is an error that broke the device's context."""
        return self._core.fault_text

    @property
    def launch_ns(self) -> int:
        """Processor time in ns that launching executions has taken so far."""
        return self._core.launch_ns

    def memory(self) -> dict[str, int]:
        """Return bytes by purpose.

        pinned_bytes: pinned memory for weights, shared by all devices of the store. store_bytes: the part
        that models use. host_bytes: equal to store_bytes if the store has a budget, else 0. graphs_missing:
        the number of CUDA graphs beyond the limit, whose kernels are launched one by one."""
        return {
            **self._core.memory(),
            "workspace_bytes": self._workspace_bytes,
            "packed_bytes": 0,
            "pinned_bytes": self._store.pinned_bytes,
            "store_bytes": self._store.used_bytes,
            "host_bytes": self._store.used_bytes if self._store.budget_bytes else 0,
            "programs": len(self._programs),
            "graphs_missing": self._graphs_missing,
        }


class _Holds:
    """The driver's resources of a device, for its finalizer; it holds no reference to the device."""

    def __init__(self, memory: DeviceMemory, store: HostStore) -> None:
        self._memory = memory
        self._store = store
        self._device: set[DeviceBytes] = set()
        self._host: set[PinnedBytes] = set()
        self.core: ReservingCore | None = None
        self.lanes: list[threading.Thread] = []
        self.programs: dict[str, _Loaded] = {}
        self.unused: dict[str, _Loaded] = {}  # loaded programs without models
        self.outgrown: list[tuple[PinnedBytes | None, DeviceBytes | None]] = []
        self.models: dict[int, _Known] = {}

    def device(self, size: int) -> DeviceBytes:
        memory = self._memory.allocate(size)
        self._device.add(memory)
        return memory

    def host(self, size: int) -> PinnedBytes:
        memory = self._memory.allocate_host(size)
        self._host.add(memory)
        return memory

    def free_device(self, memory: DeviceBytes | None) -> None:
        if memory is not None:
            self._device.remove(memory)
            self._memory.release(memory)

    def free_host(self, memory: PinnedBytes | None) -> None:
        if memory is not None:
            self._host.remove(memory)
            self._memory.release_host(memory)

    def release(self) -> None:
        if self.core is not None:
            self.core.stop()
        for lane in self.lanes:
            lane.join()
        # A broken context refuses every call; its resources are freed with it.
        broken = contextlib.suppress(CudaError)
        with broken:
            self._memory.make_current()
        if self.core is not None:
            for loaded in (*self.programs.values(), *self.unused.values()):
                self.core.drop_graphs(loaded.program)
            self.core.release()
        for loaded in (*self.programs.values(), *self.unused.values()):
            for module in loaded.modules:
                with broken:
                    self._memory.unload_module(module)
        for model_id, known in self.models.items():
            with broken:
                self._store.drop(model_id, known.weights)
        with broken:
            self._memory.make_current()
        for memory in list(self._device):
            with broken:
                self.free_device(memory)
        for pinned in list(self._host):
            with broken:
                self.free_host(pinned)
        with broken:
            self._memory.close()
        with broken:
            self._store.leave()


def _types(source: PreparedModel | Program) -> _Types:
    return _Types(
        [spec.dtype for spec in source.inputs],
        [spec.dtype for spec in source.outputs],
        [weight.bytes for weight in source.weights],
    )


def _used_bytes(prepared: PreparedModel) -> list[int]:
    """Return the bytes of weights in each page, which are the bytes that a LOAD copies."""
    used = [0] * len(prepared.runs)
    for weight in prepared.weights:
        used[weight.run] = max(used[weight.run], weight.offset + weight.bytes)
    size = prepared.page_bytes
    return [
        min(max(used[run] - page * size, 0), size)
        for run, pages in enumerate(prepared.runs)
        for page in range(pages)
    ]


def _described(spec: TensorSpec, lists: Program) -> tuple[int, list[int]]:
    """Return the type of an input or output, and the padded symbol of each axis, -1 for none."""
    return spec.dtype, [
        lists.padded.index(dim) if isinstance(dim, str) and dim in lists.padded else -1 for dim in spec.shape
    ]


def _argument(argument: Argument) -> tuple[int, int, int]:
    """Return (source, index, value) for the native half. A value that is no offset is given by its bits."""
    kind, index, value = argument.kind, argument.index, argument.value
    match kind:
        case "i32":
            return -1, 0, int(value) & 0xFFFFFFFF
        case "i64":
            return -1, 0, int(value) & 0xFFFFFFFFFFFFFFFF
        case "f32":
            return -1, 0, int.from_bytes(struct.pack("<f", value), "little")
        case "size":
            return SOURCES[kind], int(value), 0
        case _:
            return SOURCES[kind], index, int(value)
