"""Devices that take the profiled time and do nothing else: for experiments and tests on any machine.

An EmulatedGroup is all emulated devices of one process: the native ones of a machine (csrc/device/emulated.h), which
know no clock, and one timer that wakes the process for what happens next on any of them. Times are *emulated*: an
action begins exactly when its lane, its window and, for a load, the link allow, and ends exactly its duration later.
How late the process was is measured, and changes nothing of the times that are reported.

Outputs are zeros of the declared shape, out of one buffer; inputs are checked and dropped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from clockwork import config
from clockwork.config import device as bounds
from clockwork.config.device import ELEMENTS_MAX, STALE_EVENTS_MAX
from clockwork.device._emulated import Machine
from clockwork.device.base import Completion, Reserve, TensorView, Undisturbed
from clockwork.device.emulation import EmulatedSettings
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.prepared import PreparedModel
from clockwork.formats.profiles import ModelProfile
from clockwork.system._wait import Timer
from clockwork.system.clock import Clock, now_ns
from clockwork.wire.messages import (
    NEVER_NS,
    DeviceInfo,
    HostDrop,
    HostFetch,
    Infer,
    Load,
    Phase,
    Profile,
    Status,
    Unload,
)
from clockwork.wire.tensors import DTYPES, STRING

KIND = "emulated"

INPUT_ALIGNMENT = 64
"""Of each input's place in a slot, in bytes."""

LATENESS_WINDOW = 1024
"""Completions over which stats() says how late the process noticed them."""

Order: TypeAlias = Load | Unload | Infer | Profile | HostFetch | HostDrop
Parts: TypeAlias = Sequence[Sequence[TensorView]]
_NO_PHASE: Phase = [0, 0, 0]


class _Model:
    """A model as every device of the group knows it."""

    __slots__ = ("batches", "dtypes", "outputs", "profile", "runs")

    def __init__(self, prepared: PreparedModel) -> None:
        self.dtypes = [spec.dtype for spec in prepared.inputs]
        self.batches = prepared.batches
        self.runs = list(prepared.runs)
        times: dict[int, int] = {}  # by batch, of its slowest shape
        for point in prepared.profile:
            times[point.batch] = max(times.get(point.batch, 0), point.exec_ns)
        self.profile = ModelProfile(prepared.digest, times, 0, prepared.load_ns, batch_max=ELEMENTS_MAX)
        self.outputs = [
            (
                spec.dtype,
                tuple(dimension if isinstance(dimension, int) else 1 for dimension in spec.shape),
                DTYPES[spec.dtype].bits,
            )
            for spec in prepared.outputs
        ]

    def duration_ns(self, rows: Sequence[int]) -> int:
        return min(self.profile.execution_ns(max(1, sum(rows)) if self.batches else 1), NEVER_NS)


class _Action:
    """One order, and what its end needs."""

    __slots__ = ("model", "order", "rows")

    def __init__(self, order: Order, model: _Model | None, rows: Sequence[int] = ()) -> None:
        self.order = order
        self.model = model
        self.rows = rows  # of each part


class EmulatedGroup(Undisturbed):
    """Every emulated device of a process. Implements device.base.DeviceGroup.

    clock: for tests; the timer always follows the machine's. All methods belong to the loop's thread but
    prepare(), which may come from any.
    """

    fault = ""

    def __init__(
        self,
        count: int = 1,
        arena_bytes: int = config.EMULATED_ARENA_BYTES,
        page_bytes: int = config.EMULATED_PAGE_BYTES,
        run_ahead: int = config.RUN_AHEAD,
        settings: EmulatedSettings | None = None,
        clock: Clock = now_ns,
        host_bytes: int = 0,
    ) -> None:
        self.settings = settings or EmulatedSettings()
        self.settings.check()
        if not 1 <= count <= config.EMULATED_DEVICES_MAX:
            raise ConfigError(f"one worker emulates 1 to {config.EMULATED_DEVICES_MAX} devices, not {count}")
        if page_bytes < 1 or arena_bytes < page_bytes:
            raise ConfigError(f"an arena of {arena_bytes} bytes has no room for one page of {page_bytes}")
        if run_ahead < 1:
            raise ConfigError(f"run_ahead must be at least 1, got {run_ahead}")
        if host_bytes < 0:
            raise ConfigError(f"a host store of {host_bytes} bytes")
        self.info = DeviceInfo(
            kind=KIND,
            name=f"profiled times, one of {count}" if count > 1 else "profiled times",
            fingerprint=fingerprint(page_bytes),
            page_bytes=page_bytes,
            page_count=arena_bytes // page_bytes,
            run_ahead=run_ahead,
            host_bytes=host_bytes,
        )
        one = self.settings
        self.machine = Machine(
            count, self.info.page_count, run_ahead, STALE_EVENTS_MAX, host_bytes=host_bytes, shares_link=one.shared_link, seed=one.seed,
            exec_noise=one.exec_noise, load_noise=one.load_noise, exec_outlier=one.outlier,
            outlier_factor=one.outlier_factor, load_failures=one.failures, exec_failures=one.failures,
            exec_failure=Status.EXECUTION_FAILED, copy_bandwidth=one.copy_bandwidth,
            disk_bandwidth=one.disk_bandwidth, slow_factor=one.slow_factor, slow_ns=one.slow_ns,
            slow_every_ns=one.slow_every_ns,
        )  # fmt: skip
        self.clock = clock
        self.models: dict[int, _Model] = {}
        self._timer = Timer()
        self._armed_ns = NEVER_NS
        self._spin_ns = bounds.EMULATED_SPIN_NS if self.settings.spin else 0
        self._ended: dict[EmulatedDevice, None] = {}
        self._zeros = memoryview(b"")
        self._lateness: deque[int] = deque(maxlen=LATENESS_WINDOW)
        self.devices = [EmulatedDevice(self, index) for index in range(count)]
        self._open = count

    # ----- models ------------------------------------------------------------------------------

    def prepare(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        """See Device. Raises InvalidModel; ValueError if the id is taken."""
        prepared = PreparedModel.read_for(directory, self.info.fingerprint, self.info.page_bytes)
        if any(pages < 1 for pages in prepared.runs) or not prepared.profile or prepared.load_ns < 0:
            raise InvalidModel(f"{directory} has no execution time, or a run of no pages")
        if any(point.exec_ns < 1 or point.batch < 1 for point in prepared.profile):
            raise InvalidModel(f"{directory} has an execution that takes no time")
        if all(point.batch > 1 for point in prepared.profile):
            raise InvalidModel(f"{directory} has no execution time of batch 1")
        for spec in (*prepared.inputs, *prepared.outputs):
            if spec.dtype not in DTYPES:
                raise InvalidModel(f"{directory} has a tensor of the unknown type {spec.dtype}")
        if model_id in self.models:
            raise ValueError(f"model {model_id} is prepared already")
        self.models[model_id] = _Model(prepared)

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known. Raises ValueError if it is resident or an action holds it."""
        if model_id not in self.models:
            return
        self.advance(self.clock())
        if self.machine.is_used(model_id):
            is_resident = self.machine.is_resident(model_id)
            raise ValueError(f"model {model_id} is {'resident' if is_resident else 'in use'}")
        del self.models[model_id]

    # ----- time --------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._timer.fileno()

    def ended(self) -> list[EmulatedDevice]:
        """See DeviceGroup. With spin, an end that is very near is waited for."""
        now = self.clock()
        if self._spin_ns and not self._ended:
            due_ns = self.machine.next_ns
            while now < due_ns <= now + self._spin_ns:
                now = self.clock()
        self.advance(now)
        return list(self._ended)

    def advance(self, now: int) -> None:
        """Have everything happen that is due by now, hand its completions to their devices, and set the timer."""
        self.machine.advance(now)
        self.collect(now)

    def collect(self, now: int) -> None:
        """What ended on any device is for its poll() from now on."""
        for index, action, status, text, begin_ns, end_ns, waited_ns in self.machine.take():
            if end_ns > begin_ns:
                self._lateness.append(now - end_ns)
            device = self.devices[index]
            device.done.append(self._completion(action, status, text, begin_ns, end_ns, waited_ns))
            self._ended[device] = None
        self.arm()

    def _completion(
        self, action: _Action, status: Status, text: str, begin_ns: int, end_ns: int, waited_ns: int
    ) -> Completion:
        order, model = action.order, action.model
        copy_in = copy_out = _NO_PHASE
        parts: list[list[TensorView]] = []
        if end_ns and isinstance(order, Infer | Profile):
            copy_in = [begin_ns - waited_ns, begin_ns, waited_ns]
            if status is Status.OK:
                copy_out = [end_ns, end_ns, 0]
                if isinstance(order, Infer) and model is not None:
                    parts = [self._outputs(model, rows) for rows in action.rows]
        execute = [begin_ns, end_ns, end_ns - begin_ns]
        return Completion(order.action_id, status, text, copy_in, execute, copy_out, parts)

    def refuse(self, device: EmulatedDevice, order: Order, status: Status, text: str) -> None:
        """End an action that the machine has not been given."""
        device.done.append(self._completion(_Action(order, None), status, text, 0, 0, 0))
        self._ended[device] = None
        self.arm()

    def taken(self, device: EmulatedDevice) -> None:
        """A device has no completions to give any more."""
        self._ended.pop(device, None)
        self.arm()

    def arm(self) -> None:
        """Set the timer to what happens next; at once, while completions wait to be polled."""
        next_ns = self.machine.next_ns
        at_ns = 1 if self._ended else next_ns if next_ns == NEVER_NS else next_ns - self._spin_ns
        if at_ns != self._armed_ns:
            self._armed_ns = at_ns
            self._timer.set(0 if at_ns == NEVER_NS else max(at_ns, 1))

    def _outputs(self, model: _Model, rows: int) -> list[TensorView]:
        views = []
        for dtype, shape, bits in model.outputs:
            if model.batches and shape:
                shape = (rows, *shape[1:])
            size = 4 * math.prod(shape) if dtype == STRING else (math.prod(shape) * bits + 7) // 8
            views.append(TensorView(dtype, shape, self._zeros_of(size)))
        return views

    def _zeros_of(self, size: int) -> memoryview:
        """That many bytes of nothing, shared by all outputs."""
        if size > len(self._zeros):
            self._zeros = memoryview(bytes(size))
        return self._zeros[:size]

    def stats(self) -> dict[str, int]:
        """How late completions were noticed, over the last LATENESS_WINDOW of them, in nanoseconds."""
        late = sorted(self._lateness)
        if not late:
            return {}
        last = len(late) - 1
        return {
            "late_p50_ns": late[last // 2],
            "late_p99_ns": late[last * 99 // 100],
            "late_max_ns": late[last],
        }

    def release(self) -> None:
        """One device was closed; the last one takes the timer along."""
        self._open -= 1
        if self._open == 0:
            self._timer.close()


class EmulatedDevice(Undisturbed):
    """One device of a group. Implements device.base.Device."""

    fault = ""

    def __init__(self, group: EmulatedGroup, index: int) -> None:
        self.group = group
        self.info = group.info
        self.index = index
        self.done: list[Completion] = []  # and not polled
        self._closed = False
        self.input_bytes = 0  # received so far

    def prepare(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        self.group.prepare(model_id, directory)

    def forget(self, model_id: int) -> None:
        self.group.forget(model_id)

    def fileno(self) -> int:
        return self.group.fileno()

    # ----- actions -----------------------------------------------------------------------------

    def start_load(self, action: Load) -> None:
        model = self._model_of(action)
        if model is not None and len(action.run_starts) != len(model.runs):
            text = f"{len(action.run_starts)} runs of pages for {len(model.runs)}"
            self.group.refuse(self, action, Status.BAD_PAGES, text)
        elif model is not None:
            self._start(_Action(action, model), model.profile.load_ns, runs=model.runs)

    def start_unload(self, action: Unload) -> None:
        model = self._model_of(action)
        if model is not None:
            self._start(_Action(action, model))

    def start_infer(self, action: Infer, parts: Parts) -> None:
        model = self._model_of(action)
        if model is not None:
            self._start_batch(action, model, parts, True)

    def start_profile(self, action: Profile) -> None:
        model = self._model_of(action)
        if model is not None:
            parts = [[TensorView(d, tuple(shape), b"") for d, shape in zip(model.dtypes, action.shapes)]]
            self._start_batch(action, model, parts, False)

    def start_fetch(self, action: HostFetch) -> None:
        self._start_host(action)

    def start_drop(self, action: HostDrop) -> None:
        self._start_host(action)

    def _start_host(self, action: HostFetch | HostDrop) -> None:
        if not self.info.host_bytes:
            raise ValueError("these devices have no host tier")
        model = self._model_of(action)
        if model is not None:
            self._start(_Action(action, model), size=sum(model.runs) * self.info.page_bytes)

    def _model_of(self, order: Order) -> _Model | None:
        model = self.group.models.get(order.model_id)
        if model is None:
            text = f"model {order.model_id} is not prepared here"
            self.group.refuse(self, order, Status.UNKNOWN_MODEL, text)
        return model

    def _start_batch(self, order: Infer | Profile, model: _Model, parts: Parts, with_data: bool) -> None:
        size, rows, problem = _describe(model, parts, with_data)
        if problem:
            self.group.refuse(self, order, Status.INVALID_INPUT, problem)
            return
        if with_data:
            self.input_bytes += size
        self._start(_Action(order, model, rows), model.duration_ns(rows), size)

    def _start(self, action: _Action, profiled_ns: int = 0, size: int = 0, runs: Sequence[int] = ()) -> None:
        group = self.group
        now = group.clock()
        group.machine.start(self.index, now, action.order, action, profiled_ns, size, runs)
        group.collect(now)

    def revoke(self, action_id: int) -> None:
        now = self.group.clock()
        self.group.machine.revoke(self.index, now, action_id)
        self.group.collect(now)

    def running(self) -> int:
        return self._running()[0]

    def moving(self) -> tuple[int, int]:
        return self._running()[1:]

    def _running(self) -> tuple[int, int, int]:
        """The ids of what is executed, loaded and fetched; 0: none."""
        self.group.advance(self.group.clock())
        executes, loads, fetches = (
            0 if action is None else action.order.action_id
            for action in self.group.machine.running(self.index)
        )
        return executes, loads, fetches

    def end_run(self, action_id: int) -> None:
        if not self.group.settings.unending:
            now = self.group.clock()
            self.group.machine.end_run(self.index, now, action_id)
            self.group.collect(now)

    def poll(self) -> list[Completion]:
        self.group.advance(self.group.clock())
        ended, self.done = self.done, []
        if ended:
            self.group.taken(self)
        return ended

    def reset(self) -> None:
        """See Device. What runs is nothing that has to be waited for."""
        now = self.group.clock()
        self.group.advance(now)
        self.group.machine.reset(self.index, now)
        if self.index == 0:
            self.group.machine.clear_store()
        self.done.clear()
        self.group.taken(self)

    def memory(self) -> dict[str, int]:
        """Bytes by purpose, as a real device would count them; nothing of it is taken."""
        page_bytes = self.info.page_bytes
        return {
            "arena_bytes": self.info.page_count * page_bytes,
            "resident_bytes": self.group.machine.held_pages(self.index) * page_bytes,
            "input_bytes": self.input_bytes,
            "models": len(self.group.models),
            "host_bytes": self.group.machine.host_bytes,
        }

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.group.release()


def _describe(model: _Model, parts: Parts, with_data: bool) -> tuple[int, list[int], str]:
    """Bytes of the joined inputs, rows of each part, and what is wrong with them, if anything is."""
    dtypes = model.dtypes
    if not parts:
        return 0, [], "a batch of no parts"
    total = 0
    rows: list[int] = []
    joined = [0] * len(dtypes)
    first = parts[0]
    for part in parts:
        if len(part) != len(dtypes):
            return 0, [], f"{len(part)} inputs for a model of {len(dtypes)}"
        for index, (dtype, shape, data) in enumerate(part):
            if dtype != dtypes[index]:
                return 0, [], f"input {index} is of type {dtype}, the model takes {dtypes[index]}"
            if len(shape) > config.RANK_MAX:
                return (
                    0,
                    [],
                    f"input {index} has {len(shape)} dimensions, at most {config.RANK_MAX} are served",
                )
            if len(parts) > 1:
                if not shape:
                    return 0, [], f"input {index} is a scalar, which cannot be joined"
                if shape[1:] != first[index].shape[1:]:
                    return (
                        0,
                        [],
                        f"input {index} has the shape {list(shape)} in one part and another elsewhere",
                    )
                if shape[0] != part[0].shape[0]:
                    return 0, [], f"input {index} has {shape[0]} rows and input 0 has {part[0].shape[0]}"
            count = math.prod(shape)
            if count < 0 or count > ELEMENTS_MAX or (shape and min(shape) < 0):
                return 0, [], f"input {index} cannot have the shape {list(shape)}"
            size = (count * DTYPES[dtype].bits + 7) // 8
            if with_data:
                came = memoryview(data).nbytes
                if dtype == STRING:
                    size = came
                elif came != size:
                    return 0, [], f"input {index} of shape {list(shape)} takes {size} bytes, got {came}"
            joined[index] += size
            total += size
        rows.append(part[0].shape[0] if part and part[0].shape else 0)
    slot = sum(-(-size // INPUT_ALIGNMENT) * INPUT_ALIGNMENT for size in joined)
    if slot > config.IO_SLOT_BYTES_MAX:
        return 0, [], f"inputs of {slot} bytes; at most {config.IO_SLOT_BYTES_MAX} are joined"
    return total, rows, ""


def fingerprint(page_bytes: int) -> str:
    """What a prepared profile depends on: the size of a page."""
    return f"{KIND}-{page_bytes}"
