"""The CPU as devices: ONNX Runtime executes models in native lanes, with weights in a page arena.

A CpuArena has one or more executors, each a CpuDevice: a model is loaded once, and any of them executes it.

A *bound* model's program has its weights as inputs: LOAD copies them from the mapped, laid-out file
to pages and wraps tensors around them, and INFER hands those to the one session that all models of
that program share. A *packed* model (see the design) has a session of its own that LOAD opens; the
pages that it is charged for give up their memory meanwhile, so that the arena never exceeds its size.

The arena is address space at first. The thread that prepares a model and a thread of the device back its
pages with memory before a LOAD can need it (csrc/device/arena_memory.h).

LOAD and UNLOAD report their time as the ``execute`` phase.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import mmap
import platform
import threading
import weakref
from collections.abc import Collection
from pathlib import Path

from clockwork import config
from clockwork.config import device as bounds
from clockwork.device._cpu import CpuCore
from clockwork.device._ort import runtime
from clockwork.device._pages import PagedModel, SessionProgram
from clockwork.device.base import Kept, Reserve, Undisturbed
from clockwork.device.executors import check_executors
from clockwork.device.lacking import is_lack
from clockwork.device.machine import ArenaPlace
from clockwork.device.native import NativeDevice, run_on, start_lanes
from clockwork.device.numa import near
from clockwork.device.operators import libraries_for
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.prepared import (
    PACKED_DATA_FILE,
    PACKED_FILE,
    PROGRAM_FILE,
    WEIGHTS_FILE,
    PreparedModel,
    check_layout,
    program_damage,
)
from clockwork.wire.messages import DeviceInfo
from clockwork.wire.optional import is_value
from clockwork.wire.tensors import DTYPES, STRING

ONE_EXECUTOR = ArenaPlace(1)

_ALIGNMENT = 64  # The alignment of each input in a slot, in bytes


class CpuArena(Undisturbed):
    """CPU devices that execute from one arena, and their models. Implements device.base.DeviceGroup.

    Several may live in one process; they share ONNX Runtime's workspace. ``devices`` has a device for each
    executor; the first is the owner of the arena.

    arena_bytes is rounded down to whole pages. threads: number of threads of an execution. lock_store: keep
    the laid-out weights in this process's memory instead of leaving them to the OS's cache. cpu_time: report
    the thread's CPU time as the duration of ``execute``, for measuring on a busy machine; one thread only.
    place: the executors, the processors of their threads, and the node of the arena's memory. slowdown: what
    measure_slowdown() found, for the controller.

    Pages and slots get their memory from several threads: those that open models, the one beside the lanes
    and the lane of loads. All of them prefer the node, by a policy of memory or, where the kernel refuses
    policies to a process (as in many containers), by running on the node's processors meanwhile: the kernel
    takes the memory of the node where a page is first touched. A policy of the arena's addresses (mbind)
    would need no care of threads, but is refused in the same containers, and nothing would replace it there.
    """

    fault = ""

    def __init__(
        self,
        arena_bytes: int = config.ARENA_BYTES,
        page_bytes: int = config.PAGE_BYTES,
        threads: int = 1,
        run_ahead: int = config.RUN_AHEAD,
        lock_store: bool = False,
        cpu_time: bool = False,
        place: ArenaPlace = ONE_EXECUTOR,
        slowdown: float = 1.0,
    ) -> None:
        if page_bytes < mmap.PAGESIZE or page_bytes % mmap.PAGESIZE:
            raise ConfigError(f"page_bytes is {page_bytes}; it must be a multiple of {mmap.PAGESIZE}")
        if arena_bytes < page_bytes:
            raise ConfigError(f"an arena of {arena_bytes} bytes has no room for one page of {page_bytes}")
        if threads < 1 or run_ahead < 1:
            raise ConfigError(f"threads and run_ahead must be at least 1, got {threads} and {run_ahead}")
        if cpu_time and threads > 1:
            raise ConfigError(f"cpu_time counts one thread; threads is {threads}")
        executors = place.executors
        check_executors(executors, threads)
        if len(place.pins) not in (0, executors):
            raise ConfigError(f"{len(place.pins)} processors for {executors} executors")
        self._core = CpuCore(
            arena_bytes,
            page_bytes,
            threads,
            run_ahead,
            config.IO_SLOT_BYTES_MAX,
            bounds.LANE_SPIN_NS,
            bounds.SPARE_PAGES_NS,
            executors,
            cpu_time,
            config.MESSAGE_BYTES_MAX,
        )
        self.info = DeviceInfo(
            kind="cpu",
            name=_processor_name(),
            fingerprint=fingerprint(threads),
            page_bytes=page_bytes,
            page_count=self._core.page_count,
            run_ahead=run_ahead,
            slowdown_thousandths=round(1000 * slowdown),
            threads=threads,
        )
        self._node = place.node
        self._lock_store = lock_store
        self._locked_bytes = 0
        self._prepare_lock = threading.Lock()
        self._programs: weakref.WeakValueDictionary[str, SessionProgram] = weakref.WeakValueDictionary()
        keeper = threading.Thread(
            target=run_on, args=(place.processors, self._core.keep_memory), name="cw-memory", daemon=True
        )
        keeper.start()
        lanes = [self._core.execute_lane(number) for number in range(executors)]
        where: dict[str, Collection[int]] = dict.fromkeys(("cw-load", *lanes), place.processors)
        where |= {lane: {processor} for lane, processor in zip(lanes, place.pins)}
        running = [*start_lanes(self._core, where, where), keeper]
        self.close = weakref.finalize(self, _close, self._core, running)
        self.devices = [CpuDevice(self, self._core, number) for number in range(executors)]
        self._open = set(self.devices)

    # ----- models, from the preparation thread -------------------------------------------------

    def open(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        """Open a prepared model; see ModelHolder. Raises InvalidModel, ValueError if the id is taken."""
        place = Path(directory)
        prepared = PreparedModel.read_for(place, self.info.fingerprint, self.info.page_bytes)
        self._check(prepared, place)
        with self._prepare_lock:
            if self._core.has_model(model_id):
                raise ValueError(f"model {model_id} is prepared already")
            with near(self._node):
                model = self._make_model(model_id, prepared, place)
                self._core.grow_slots(slot_bytes(prepared))
                self._core.add_model(model)

    def _check(self, prepared: PreparedModel, place: Path) -> None:
        if prepared.holding not in ("bound", "packed", "none"):
            raise InvalidModel(f"{place} has the unknown holding {prepared.holding!r}")
        check_layout(prepared, place)

    def _make_model(self, model_id: int, prepared: PreparedModel, place: Path) -> PagedModel:
        dtypes = [spec.dtype for spec in prepared.inputs]
        lengths = _lengths_of(prepared)
        shapes = [
            spec.shape if rowless else None for spec, rowless in zip(prepared.inputs, prepared.rowless())
        ]
        rowless_shapes = shapes if any(shape is not None for shape in shapes) else None
        budget = bounds.execution_workspace_bytes(prepared.workspace_bytes)
        if prepared.holding == "packed":
            path = place / PACKED_FILE
            if not path.is_file():
                raise InvalidModel(f"{place} is packed and has no {PACKED_FILE}")
            model = PagedModel(
                model_id,
                None,
                dtypes,
                prepared.runs,
                [],
                str(path),
                prepared.resident_bytes,
                budget,
                len(prepared.outputs),
                lengths,
                rowless_shapes,
            )
            self._core.open_with(model, libraries_for(path))
            data = place / PACKED_DATA_FILE
            if self._lock_store and data.is_file():
                self._locked_bytes += model.lock_file(str(data), data.stat().st_size)
            return model
        program = self._program(prepared.program, place)
        expected = len(prepared.inputs) + len(prepared.lengths) + len(prepared.weights)
        if program.input_count != expected or program.output_count != len(prepared.outputs):
            raise InvalidModel(
                f"{place}: its program takes {program.input_count} inputs and gives {program.output_count} outputs, "
                f"expected {expected} and {len(prepared.outputs)}"
            )
        weights = [
            (weight.dtype, weight.shape, weight.run, weight.offset, weight.bytes)
            for weight in prepared.weights
        ]
        model = PagedModel(
            model_id,
            program,
            dtypes,
            prepared.runs,
            weights,
            None,
            0,
            budget,
            len(prepared.outputs),
            lengths,
            rowless_shapes,
        )
        size = sum(prepared.runs) * prepared.page_bytes
        if size:
            path = place / WEIGHTS_FILE
            try:
                found = path.stat().st_size
                if found != size:
                    raise InvalidModel(f"{path} has {found} bytes, its runs {size}")
                self._locked_bytes += model.map_weights(str(path), size, self._lock_store)
            except OSError as error:
                if is_lack(error):
                    raise
                raise InvalidModel(f"{path}: {error}") from None
        return model

    def _program(self, digest: str, place: Path) -> SessionProgram:
        program = self._programs.get(digest)
        if program is None:
            path = place.parent.parent / "programs" / digest / PROGRAM_FILE
            if damage := program_damage(path, self.info.fingerprint):
                raise InvalidModel(damage)
            program = self._programs[digest] = SessionProgram(self._core, str(path), libraries_for(path))
        return program

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known. Raises ValueError if it is resident or an action holds it."""
        self._core.remove_model(model_id)

    def rename(self, model_id: int, other: int) -> None:
        """See ModelHolder."""
        with self._prepare_lock:
            self._core.rename(model_id, other)

    def memory(self) -> dict[str, int]:
        """Return bytes by purpose. workspace_bytes: of the process; store_bytes: mapped weights, cached or
        not."""
        return {**self._core.memory(), "programs": len(self._programs), "locked_bytes": self._locked_bytes}

    # ----- devices -----------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._core.fileno()

    def ended(self) -> list[CpuDevice]:
        """See DeviceGroup."""
        return [self.devices[number] for number in self._core.ended()]

    def outlet(self) -> object:
        """See DeviceGroup."""
        return self._core.outlet()

    def stats(self) -> dict[str, int]:
        """See DeviceGroup. A CPU has no counts of precision."""
        return {}

    def release(self, device: CpuDevice) -> None:
        """Count a device as closed. The last one closes the arena."""
        self._open.discard(device)
        if not self._open:
            self.close()


class CpuDevice(NativeDevice[CpuCore]):
    """An executor of an arena. Implements device.base.Device."""

    fault = ""

    def __init__(self, arena: CpuArena, core: CpuCore, number: int) -> None:
        super().__init__(core, number)
        self._arena = arena
        self.group = arena
        self.info = dataclasses.replace(arena.info, slowdown_thousandths=1000) if number else arena.info

    @property
    def owner(self) -> CpuDevice | None:
        """See Device."""
        return self._arena.devices[0] if self._number else None

    def open(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        self._arena.open(model_id, directory)

    def forget(self, model_id: int) -> None:
        self._arena.forget(model_id)

    def rename(self, model_id: int, other: int) -> None:
        self._arena.rename(model_id, other)

    @property
    def workspace_peak_bytes(self) -> int:
        """The peak of the workspace's bytes that this executor's last execution used."""
        return self._core.workspace_peak_bytes(self._number)

    def memory(self) -> dict[str, int]:
        """See Device."""
        return {} if self._number else self._arena.memory()

    def reset(self) -> None:
        """See Device."""
        self._core.reset()
        self._drop_backlogs()

    def keep(self) -> list[Kept]:
        """See Device."""
        if self._number:
            return []
        found = [Kept(*resident) for resident in self._core.keep()]
        self._drop_backlogs()
        return found

    def _drop_backlogs(self) -> None:
        for device in self._arena.devices:
            device._backlog.clear()

    def close(self) -> None:
        self._arena.release(self)


def _close(core: CpuCore, lanes: list[threading.Thread]) -> None:
    core.stop()
    for lane in lanes:
        lane.join()
    core.release()


def _lengths_of(prepared: PreparedModel) -> tuple[int, list[list[int]], list[list[int]]] | None:
    """Return the symbols in which requests of a batch may differ: their number, and the symbol of each axis
    of inputs and of outputs (-1: none). None if there is no such symbol."""
    if not prepared.lengths:
        return None
    numbers = {symbol: number for number, symbol in enumerate(prepared.lengths)}
    inputs = [[numbers.get(str(dim), -1) for dim in spec.shape] for spec in prepared.inputs]
    outputs = [[numbers.get(dim, -1) for dim in dims] for dims in prepared.output_lengths]
    return len(numbers), inputs, outputs


def slot_bytes(prepared: PreparedModel) -> int:
    """Return the bytes that a slot needs for the largest profiled inputs, each aligned."""
    most = 0
    for shapes, rows in [*((point.shape, point.batch) for point in prepared.profile), (prepared.example, 0)]:
        total = 0
        for spec, shape in zip(prepared.inputs, shapes):
            if spec.dtype == STRING:
                continue  # the input is read in place
            if is_value(shape):
                total += -(-4 * (len(shape) - 1) // _ALIGNMENT) * _ALIGNMENT
                continue
            bits = DTYPES[spec.dtype].bits * math.prod(shape)
            # For a model that batches, a profile point's shape lacks the axis of rows; the example's has it.
            bits *= rows if rows and prepared.batches else 1
            total += -(-bits // (8 * _ALIGNMENT)) * _ALIGNMENT
        most = max(most, total)
    return min(most, config.IO_SLOT_BYTES_MAX)


@functools.cache
def _processor() -> dict[str, str]:
    """Return the fields of the first processor of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, colon, value = line.partition(":")
            if not colon and fields:
                break
            fields.setdefault(key.strip(), value.strip())
    return fields


def _processor_name() -> str:
    fields = _processor()
    return fields.get("model name") or f"{platform.machine()} {fields.get('CPU part', '')}".strip()


def fingerprint(threads: int) -> str:
    """Return twelve hex digits that identify instruction set, runtime version and number of threads."""
    fields = _processor()
    features = sorted((fields.get("flags") or fields.get("Features") or "").split())
    parts = (platform.machine(), _processor_name(), " ".join(features), runtime().version, str(threads))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
