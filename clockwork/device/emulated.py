"""Devices that take the profiled time and do nothing else: for experiments and tests on any machine.

An EmulatedGroup is all emulated devices of one process. Each device keeps the promises of a real one (two
first-in first-out lanes, windows, pages, residencies, bounded slots, statuses), in *emulated time*: an action
begins exactly when its lane, its window and, for a load, the link allow, and ends exactly its duration later.
One heap holds what happens next on any device, and one timer wakes the process for it; how late the process
was is measured, and changes nothing of the times that are reported.

Outputs are zeros of the declared shape, out of one buffer; inputs are checked and dropped.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from clockwork import config
from clockwork.config import ELEMENTS_MAX, STALE_EVENTS_MAX
from clockwork.device.base import Completion, TensorView
from clockwork.device.emulation import EmulatedSettings
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.prepared import PreparedModel
from clockwork.system._wait import Timer
from clockwork.system.clock import SECOND, Clock, now_ns
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

    __slots__ = (
        "batches", "dtypes", "exec_ns", "load_ns", "outputs", "points", "ranks", "runs", "users",
    )  # fmt: skip

    def __init__(self, prepared: PreparedModel) -> None:
        self.dtypes = [spec.dtype for spec in prepared.inputs]
        self.batches = prepared.batches
        self.load_ns = prepared.load_ns
        self.runs = list(prepared.runs)
        times: dict[int, int] = {}
        for point in prepared.profile:
            times[point.batch] = max(times.get(point.batch, 0), point.exec_ns)
        self.points = sorted(times.items())  # (batch, nanoseconds) of its slowest shape
        self.exec_ns: dict[int, int] = dict(self.points)
        self.outputs = [
            (
                spec.dtype,
                tuple(one if isinstance(one, int) else 1 for one in spec.shape),
                DTYPES[spec.dtype].bits,
            )
            for spec in prepared.outputs
        ]
        self.users = 0  # residencies, loads and executions under way, on all devices

    def duration_ns(self, batch: int) -> int:
        """As profiled; between two points on the line through them, as profiles.ModelProfile has it."""
        known = self.exec_ns.get(batch)
        if known is None:
            points = self.points
            if len(points) == 1:
                size, time_ns = points[0]
                return max(1, time_ns * batch // size)
            high = min(max(bisect_left(points, (batch, 0)), 1), len(points) - 1)
            (left, left_ns), (right, right_ns) = points[high - 1], points[high]
            known = max(1, left_ns + (right_ns - left_ns) * (batch - left) // (right - left))
        return known


class _Action:
    """One order and what has become of it."""

    __slots__ = ("begin_ns", "copy_ns", "end_ns", "model", "order", "ready_ns", "rows", "status", "text")

    def __init__(self, order: Order, model: _Model) -> None:
        self.order = order
        self.model = model
        self.rows: list[int] = []  # of each part
        self.ready_ns = 0  # its inputs are on the device
        self.copy_ns = 0  # how long their copy takes; from begin_ns on: for how long the lane waited for it
        self.begin_ns = self.end_ns = 0
        self.status = Status.OK
        self.text = ""


class _Residency:
    """A model in the pages of one device."""

    __slots__ = ("load_id", "ready", "starts")

    def __init__(self, load_id: int, starts: list[int]) -> None:
        self.load_id = load_id
        self.starts = starts  # of each run
        self.ready = False  # False: its load is under way


class _Lane:
    """First in, first out. ``event`` names the one entry of the group's heap that still counts for it."""

    __slots__ = ("device", "event", "event_ns", "free_ns", "loads", "queue", "running")

    def __init__(self, device: EmulatedDevice, loads: bool) -> None:
        self.device = device
        self.loads = loads
        self.queue: deque[_Action] = deque()
        self.running: _Action | None = None
        self.event = self.event_ns = 0
        self.free_ns = 0  # when what ran last had ended


class EmulatedGroup:
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
        self.hosted: dict[int, bool] = {}  # by model id: whether its FETCH has ended
        self.host_used = 0  # bytes of all of these
        self.clock = clock
        self.models: dict[int, _Model] = {}
        self._timer = Timer()
        self._armed_ns = NEVER_NS
        self._spin_ns = config.EMULATED_SPIN_NS if self.settings.spin else 0
        self._heap: list[tuple[int, int, _Lane]] = []
        self._sequence = 0
        self.link_free_ns = 0  # when the link's last load ends
        self._ended: dict[EmulatedDevice, None] = {}
        self._zeros = memoryview(b"")
        self._lateness: deque[int] = deque(maxlen=LATENESS_WINDOW)
        self.devices = [EmulatedDevice(self, index) for index in range(count)]
        self._open = count

    # ----- models ------------------------------------------------------------------------------

    def prepare(self, model_id: int, directory: str) -> None:
        """See Device. Raises InvalidModel; ValueError if the id is taken."""
        prepared = PreparedModel.read_for(directory, self.info.fingerprint, self.info.page_bytes)
        if any(pages < 1 for pages in prepared.runs) or not prepared.profile or prepared.load_ns < 0:
            raise InvalidModel(f"{directory} has no execution time, or a run of no pages")
        if any(point.exec_ns < 1 or point.batch < 1 for point in prepared.profile):
            raise InvalidModel(f"{directory} has an execution that takes no time")
        for spec in (*prepared.inputs, *prepared.outputs):
            if spec.dtype not in DTYPES:
                raise InvalidModel(f"{directory} has a tensor of the unknown type {spec.dtype}")
        if model_id in self.models:
            raise ValueError(f"model {model_id} is prepared already")
        self.models[model_id] = _Model(prepared)

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known. Raises ValueError if it is resident or an action holds it."""
        model = self.models.get(model_id)
        if model is None:
            return
        self.advance(self.clock())
        if model.users:
            resident = any(model_id in device.resident for device in self.devices)
            raise ValueError(f"model {model_id} is {'resident' if resident else 'in use'}")
        del self.models[model_id]

    # ----- the host store ------------------------------------------------------------------------

    def claim_host(self, order: HostFetch, model: _Model) -> tuple[Status, str]:
        """Make room a model's that is being fetched from now on."""
        if order.model_id in self.hosted:
            return Status.DEVICE_ERROR, "the model is in the host store already"
        needed, free = self._host_bytes(model), self.info.host_bytes - self.host_used
        if needed > free:
            return Status.BAD_PAGES, f"{needed} bytes for a host store with {free} bytes left"
        self.hosted[order.model_id] = False
        self.host_used += needed
        model.users += 1
        return Status.OK, ""

    def fetch_ns(self, model: _Model) -> int:
        bandwidth = self.settings.disk_bandwidth
        return max(1, self._host_bytes(model) * SECOND // bandwidth) if bandwidth else 1

    def end_fetch(self, model_id: int, failed: bool) -> None:
        if failed:
            self._let_go_of(model_id)
        else:
            self.hosted[model_id] = True

    def drop_host(self, order: HostDrop) -> Status:
        if not self.hosted.get(order.model_id):
            return Status.NOT_RESIDENT
        if any(device.loads(order.model_id) for device in self.devices):
            return Status.IN_USE
        self._let_go_of(order.model_id)
        return Status.OK

    def clear_host(self) -> None:
        for model_id in list(self.hosted):
            self._let_go_of(model_id)

    def _let_go_of(self, model_id: int) -> None:
        model = self.models[model_id]
        del self.hosted[model_id]
        self.host_used -= self._host_bytes(model)
        model.users -= 1

    def _host_bytes(self, model: _Model) -> int:
        return sum(model.runs) * self.info.page_bytes

    # ----- time --------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._timer.fileno()

    def ended(self) -> list[EmulatedDevice]:
        """See DeviceGroup. With spin, an end that is very near is waited for."""
        now = self.clock()
        if self._spin_ns and not self._ended and self._heap:
            due_ns = self._heap[0][0]
            while now < due_ns <= now + self._spin_ns:
                now = self.clock()
        self.advance(now)
        self.arm()
        return list(self._ended)

    def advance(self, now: int) -> None:
        """Have everything happen that is due by now, in the order of its time."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            at_ns, event, lane = heappop(heap)
            if lane.event == event:
                lane.event = 0
                action = lane.running
                if action is not None:
                    lane.running = None
                    lane.free_ns = at_ns
                    self._lateness.append(now - at_ns)
                    lane.device.finish(action, lane)
                self.next(lane, at_ns)

    def next(self, lane: _Lane, now: int) -> None:
        """Start what an idle lane has to do at this time, or have it looked at again when it can start."""
        queue = lane.queue
        while queue and lane.running is None:
            action = queue[0]
            order = action.order
            start_ns = max(now, order.earliest_ns, action.ready_ns)
            on_link = lane.loads and self.settings.shared_link and type(order) is Load
            if on_link:
                start_ns = max(start_ns, self.link_free_ns)
            # One that must wait beyond its window is found to be late just after that.
            look_ns = min(start_ns, max(order.latest_ns + 1, now))
            if look_ns > now:
                if lane.event == 0 or lane.event_ns != look_ns:
                    self._schedule(lane, look_ns)
                return
            del queue[0]
            lane.event = 0
            if start_ns > order.latest_ns:
                late = (start_ns - order.latest_ns) / 1e6
                lane.device.end(
                    action, Status.TOO_LATE, f"its window closed {late:.3f} ms before it could start"
                )
                continue
            lane.device.begin(action, lane, now)
            if lane.running is not None:
                if on_link:
                    self.link_free_ns = action.end_ns
                self._schedule(lane, action.end_ns)

    def _schedule(self, lane: _Lane, at_ns: int) -> None:
        self._sequence += 1
        lane.event, lane.event_ns = self._sequence, at_ns
        heap = self._heap
        heappush(heap, (at_ns, self._sequence, lane))
        if len(heap) > 3 * len(self.devices) + STALE_EVENTS_MAX:
            heap[:] = [entry for entry in heap if entry[2].event == entry[1]]
            heapify(heap)

    def advance_end(self, lane: _Lane, now: int) -> None:
        """Have what a lane runs end now, whenever it was to."""
        self._schedule(lane, now)
        self.advance(now)

    def arm(self) -> None:
        """Set the timer to what happens next; at once, while completions wait to be polled."""
        heap = self._heap
        while heap and heap[0][2].event != heap[0][1]:
            heappop(heap)
        at_ns = 1 if self._ended else heap[0][0] - self._spin_ns if heap else NEVER_NS
        if at_ns != self._armed_ns:
            self._armed_ns = at_ns
            self._timer.set(0 if at_ns == NEVER_NS else max(at_ns, 1))

    def let_go_of_link(self, end_ns: int) -> None:
        """The load that would have ended then is given up."""
        if self.link_free_ns == end_ns:
            self.link_free_ns = self.clock()

    def is_due(self, device: EmulatedDevice, due: bool) -> None:
        """A device has got completions to give, or has none any more."""
        if due:
            self._ended[device] = None
        else:
            self._ended.pop(device, None)

    def zeros(self, size: int) -> memoryview:
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
            self._heap.clear()
            self._timer.close()


class EmulatedDevice:
    """One device of a group. Implements device.base.Device."""

    fault = ""

    def __init__(self, group: EmulatedGroup, index: int) -> None:
        self.group = group
        self.info = group.info
        self.resident: dict[int, _Residency] = {}  # by model id
        self._random = random.Random(f"{group.settings.seed}/{index}")
        self._owners: list[int] = []  # of each page, a model id; -1: nobody. Made when first needed
        self._held_pages = 0
        self._load, self._execute, self._fetch = _Lane(self, True), _Lane(self, False), _Lane(self, False)
        self._done: list[Completion] = []
        self._copied_ns = 0  # when the inputs that it was handed are all there
        self._closed = False
        self.input_bytes = 0  # received so far

    def prepare(self, model_id: int, directory: str) -> None:
        self.group.prepare(model_id, directory)

    def forget(self, model_id: int) -> None:
        self.group.forget(model_id)

    def fileno(self) -> int:
        return self.group.fileno()

    # ----- actions -----------------------------------------------------------------------------

    def start_load(self, action: Load) -> None:
        model = self._model_of(action)
        if model is not None:
            if len(action.run_starts) != len(model.runs):
                text = f"{len(action.run_starts)} runs of pages for {len(model.runs)}"
                self._refuse(action, Status.BAD_PAGES, text)
            else:
                self._queue(_Action(action, model), self._load)

    def start_unload(self, action: Unload) -> None:
        model = self._model_of(action)
        if model is not None:
            self._queue(_Action(action, model), self._load)

    def start_infer(self, action: Infer, parts: Parts) -> None:
        model = self._model_of(action)
        if model is not None:
            self._queue_batch(action, model, parts, True)

    def start_profile(self, action: Profile) -> None:
        model = self._model_of(action)
        if model is not None:
            parts = [[TensorView(d, tuple(shape), b"") for d, shape in zip(model.dtypes, action.shapes)]]
            self._queue_batch(action, model, parts, False)

    def start_fetch(self, action: HostFetch) -> None:
        self._start_host(action)

    def start_drop(self, action: HostDrop) -> None:
        self._start_host(action)

    def _start_host(self, action: HostFetch | HostDrop) -> None:
        if not self.info.host_bytes:
            raise ValueError("these devices have no host tier")
        model = self._model_of(action)
        if model is not None:
            self._queue(_Action(action, model), self._fetch)

    def revoke(self, action_id: int) -> None:
        group = self.group
        now = group.clock()
        group.advance(now)
        for lane in (self._load, self._execute, self._fetch):
            for action in lane.queue:
                if action.order.action_id == action_id:
                    lane.queue.remove(action)
                    self.end(action, Status.ACTION_CANCELLED, "the action was revoked")
                    if lane.running is None:
                        lane.event = 0
                        group.next(lane, now)
                    break
        group.arm()

    def running(self) -> int:
        self.group.advance(self.group.clock())
        running = self._execute.running
        return running.order.action_id if running is not None else 0

    def moving(self) -> tuple[int, int]:
        self.group.advance(self.group.clock())
        load, fetch = self._load.running, self._fetch.running
        return load.order.action_id if load else 0, fetch.order.action_id if fetch else 0

    def end_run(self, action_id: int) -> None:
        group, lane = self.group, self._execute
        now = group.clock()
        group.advance(now)
        running = lane.running
        if running is None or running.order.action_id != action_id or group.settings.unending:
            return
        running.status, running.text = Status.OVERRUN, "the execution took longer than it may and was ended"
        running.end_ns = now
        group.advance_end(lane, now)
        group.arm()

    def poll(self) -> list[Completion]:
        group = self.group
        group.advance(group.clock())
        ended, self._done = self._done, []
        if ended:
            group.is_due(self, False)
        group.arm()
        return ended

    def reset(self) -> None:
        """See Device. What runs is nothing that has to be waited for."""
        for lane in (self._load, self._execute, self._fetch):
            for action in lane.queue:
                action.model.users -= 1
            if lane.running is not None:
                lane.running.model.users -= 1
                if lane.loads:
                    self.group.let_go_of_link(lane.running.end_ns)
            lane.queue.clear()
            lane.running = None
            lane.event = 0
        for model_id in list(self.resident):
            self._evict(model_id)
        if self is self.group.devices[0]:
            self.group.clear_host()
        self._owners.clear()
        self._held_pages = 0
        self._copied_ns = 0
        self._done.clear()
        self.group.is_due(self, False)
        self.group.arm()

    def memory(self) -> dict[str, int]:
        """Bytes by purpose, as a real device would count them; nothing of it is taken."""
        page_bytes = self.info.page_bytes
        return {
            "arena_bytes": self.info.page_count * page_bytes,
            "resident_bytes": self._held_pages * page_bytes,
            "input_bytes": self.input_bytes,
            "models": len(self.group.models),
            "host_bytes": self.group.host_used,
        }

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.group.release()

    # ----- inside: queueing --------------------------------------------------------------------

    def _model_of(self, order: Order) -> _Model | None:
        model = self.group.models.get(order.model_id)
        if model is None:
            self._refuse(order, Status.UNKNOWN_MODEL, f"model {order.model_id} is not prepared here")
        return model

    def _queue_batch(self, order: Infer | Profile, model: _Model, parts: Parts, with_data: bool) -> None:
        size, rows, problem = _describe(model, parts, with_data)
        if problem:
            self._refuse(order, Status.INVALID_INPUT, problem)
            return
        action = _Action(order, model)
        action.rows = rows
        if with_data:
            self.input_bytes += size
            bandwidth = self.group.settings.copy_bandwidth
            action.copy_ns = size * SECOND // bandwidth if bandwidth else 0
        self._queue(action, self._execute)

    def _queue(self, action: _Action, lane: _Lane) -> None:
        group = self.group
        now = group.clock()
        group.advance(now)
        if len(lane.queue) + (lane.running is not None) >= self.info.run_ahead:
            text = f"the lane holds {self.info.run_ahead} actions, which is its bound"
            self._refuse(action.order, Status.DEVICE_ERROR, text)
            return
        action.model.users += 1
        if action.copy_ns:
            action.ready_ns = self._copied_ns = max(self._copied_ns, now) + action.copy_ns
        lane.queue.append(action)
        if lane.running is None:
            group.next(lane, now)
        group.arm()

    def _refuse(self, order: Order, status: Status, text: str) -> None:
        """End an action that was never queued."""
        self._complete(Completion(order.action_id, status, text, _NO_PHASE, _NO_PHASE, _NO_PHASE, []))
        self.group.arm()

    def _complete(self, completion: Completion) -> None:
        self._done.append(completion)
        self.group.is_due(self, True)

    # ----- inside: beginnings and ends ------------------------------------------------------------

    def begin(self, action: _Action, lane: _Lane, now: int) -> None:
        """Start an action that is in time: it runs then, or has ended already."""
        order = action.order
        action.begin_ns = now
        if type(order) is HostFetch:
            status, text = self.group.claim_host(order, action.model)
            if status is Status.OK:
                action.end_ns = now + self._vary(
                    self.group.fetch_ns(action.model), self.group.settings.load_noise
                )
                self._judge(action, Status.DEVICE_ERROR)
                lane.running = action
            else:
                self.end(action, status, text, execute=[now, now, 0])
        elif type(order) is HostDrop:
            status = self.group.drop_host(order)
            self.end(action, status, "", execute=[now, now, 0])
        elif type(order) is Load:
            status, text = self._claim(order, action.model)
            if status is Status.OK:
                action.end_ns = now + self._vary(action.model.load_ns, self.group.settings.load_noise)
                self._judge(action, Status.DEVICE_ERROR)
                lane.running = action
            else:
                self.end(action, status, text, execute=[now, now, 0])
        elif type(order) is Unload:
            status = self._unload(order)
            self.end(action, status, "", execute=[now, now, 0])
        else:
            self._begin_batch(action, order, lane, now)

    def _begin_batch(self, action: _Action, order: Order, lane: _Lane, now: int) -> None:
        settings, model = self.group.settings, action.model
        held = self.resident.get(order.model_id)
        if held is None or not held.ready or held.load_id != order.load_id:
            self.end(action, Status.NOT_RESIDENT, f"load {order.load_id} is not here")
            return
        batch = sum(action.rows) if model.batches else 1
        exec_ns = self._vary(model.duration_ns(max(1, batch)), settings.exec_noise)
        if settings.outlier and self._random.random() < settings.outlier:
            exec_ns = round(exec_ns * settings.outlier_factor)
        if settings.slow_ns and now % settings.slow_every_ns < settings.slow_ns:
            exec_ns = round(exec_ns * settings.slow_factor)
        self._judge(action, Status.EXECUTION_FAILED)
        copied_since_ns = max(lane.free_ns, order.earliest_ns, action.ready_ns - action.copy_ns)
        action.copy_ns = max(0, now - copied_since_ns) if action.ready_ns == now else 0
        action.end_ns = now + exec_ns
        lane.running = action

    def finish(self, action: _Action, lane: _Lane) -> None:
        """The time of what ran is over."""
        order, end_ns, failed = action.order, action.end_ns, action.status is not Status.OK
        if type(order) is Load or type(order) is HostFetch:
            if type(order) is HostFetch:
                self.group.end_fetch(order.model_id, failed)
            elif failed:
                self._evict(order.model_id)
            else:
                self.resident[order.model_id].ready = True
            self.end(
                action,
                action.status,
                action.text,
                execute=[action.begin_ns, end_ns, end_ns - action.begin_ns],
            )
            return
        begin_ns, copy_ns = action.begin_ns, action.copy_ns
        parts: list[list[TensorView]] = []
        if type(order) is Infer and not failed:
            parts = [self._outputs(action.model, rows) for rows in action.rows]
        action.model.users -= 1
        self._complete(
            Completion(
                order.action_id,
                action.status,
                action.text,
                [begin_ns - copy_ns, begin_ns, copy_ns],
                [begin_ns, end_ns, end_ns - begin_ns],
                _NO_PHASE if failed else [end_ns, end_ns, 0],
                parts,
            )
        )

    def end(self, action: _Action, status: Status, text: str, execute: Phase = _NO_PHASE) -> None:
        """Report an action that returns nothing."""
        action.model.users -= 1
        self._complete(Completion(action.order.action_id, status, text, _NO_PHASE, execute, _NO_PHASE, []))

    def _vary(self, duration_ns: int, sigma: float) -> int:
        if not sigma:
            return duration_ns
        return max(1, round(duration_ns * math.exp(self._random.gauss(0.0, sigma))))

    def _judge(self, action: _Action, status: Status) -> None:
        """Decide whether it will fail."""
        failures = self.group.settings.failures
        if failures and self._random.random() < failures:
            action.status, action.text = status, "a failure, as the emulated device's settings ask for"

    def _outputs(self, model: _Model, rows: int) -> list[TensorView]:
        views = []
        for dtype, shape, bits in model.outputs:
            if model.batches and shape:
                shape = (rows, *shape[1:])
            size = 4 * math.prod(shape) if dtype == STRING else (math.prod(shape) * bits + 7) // 8
            views.append(TensorView(dtype, shape, self.group.zeros(size)))
        return views

    # ----- inside: pages -----------------------------------------------------------------------

    def _claim(self, order: Load, model: _Model) -> tuple[Status, str]:
        """Check the pages of a LOAD and make them the model's, which is loading from now on."""
        if self.info.host_bytes and not self.group.hosted.get(order.model_id):
            return Status.NOT_RESIDENT, "the model is not in the host store"
        held = self.resident.get(order.model_id)
        if held is not None:
            return Status.DEVICE_ERROR, f"the model is resident already, as load {held.load_id}"
        if not self._owners:
            self._owners = [-1] * self.info.page_count
        owners = self._owners
        wanted: dict[int, None] = {}
        for run, (start, pages) in enumerate(zip(order.run_starts, model.runs)):
            if start < 0 or start > self.info.page_count - pages:
                text = f"run {run} at page {start} of {pages} pages does not lie in an arena of {self.info.page_count}"
                return Status.BAD_PAGES, text
            for page in range(start, start + pages):
                if owners[page] >= 0 or page in wanted:
                    return Status.BAD_PAGES, f"page {page} is held by another model or run"
                wanted[page] = None
        for page in wanted:
            owners[page] = order.model_id
        self._held_pages += len(wanted)
        model.users += 1
        self.resident[order.model_id] = _Residency(order.load_id, list(order.run_starts))
        return Status.OK, ""

    def loads(self, model_id: int) -> bool:
        """Whether a LOAD of the model is queued or under way."""
        running = self._load.running
        return any(
            type(action.order) is Load and action.order.model_id == model_id
            for action in (*self._load.queue, *([running] if running is not None else []))
        )

    def _unload(self, order: Unload) -> Status:
        held = self.resident.get(order.model_id)
        if held is None or held.load_id != order.load_id:
            return Status.NOT_RESIDENT
        running = self._execute.running
        for action in [*self._execute.queue, *([running] if running is not None else [])]:
            if action.order.model_id == order.model_id and action.order.load_id == order.load_id:
                return Status.IN_USE
        self._evict(order.model_id)
        return Status.OK

    def _evict(self, model_id: int) -> None:
        """Give a model's pages back."""
        model = self.group.models[model_id]
        for start, pages in zip(self.resident.pop(model_id).starts, model.runs):
            for page in range(start, start + pages):
                self._owners[page] = -1
            self._held_pages -= pages
        model.users -= 1


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
