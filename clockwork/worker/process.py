"""The worker: one loop between the controller's socket and the devices.

It does what it is told inside the window it was told, or says that it could not. Whatever takes long
(files, preparation) happens elsewhere: this loop is on the road of every request.

Inside, time is the machine's monotonic clock; WorkerClock converts what is sent and received.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from clockwork import config
from clockwork.actions import (
    Action,
    ActionQueue,
    Due,
    Ended,
    QueueCommand,
    Received,
    Reject,
    Revoked,
    RevokeStarted,
    Start,
)
from clockwork.config import (
    ARENA_BYTES,
    CHECK_LIMIT_NS,
    COLLECT_INTERVAL_NS,
    CUDA_PAGE_BYTES,
    DRAIN_SETTLE_NS,
    EMULATED_ARENA_BYTES,
    EMULATED_PAGE_BYTES,
    EXECUTION_GRACE_NS,
    HANDSHAKES_BROKEN_MAX,
    HEARTBEAT_NS,
    HELLO_PAUSE_MAX_NS,
    HELLO_PAUSE_NS,
    HELLO_SETTLED_NS,
    JITTER_WINDOW,
    PAGE_BYTES,
    SWITCH_INTERVAL_NS,
    WATCH_INTERVAL_NS,
    WORKER_MESSAGES_PER_TURN,
    silence_onnxruntime,
)
from clockwork.config.worker import DEVICES_ALONE_MAX, END_PAUSE_S, FAREWELL_LIMIT_NS, STALE_WAKES_MAX
from clockwork.device import _crash
from clockwork.device.base import Completion, Device, DeviceGroup, TensorView
from clockwork.device.cuda_clocks import ClockSource, ClockWatch
from clockwork.errors import ClockworkError, ConfigError, InvalidInput
from clockwork.formats.package import PackageStore
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.system.limits import go_first, raise_descriptor_limit
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.keys import read_peer_keys
from clockwork.wire.messages import (
    NEVER_NS,
    PROTOCOL_VERSION,
    TO_WORKER,
    Chunk,
    ClockChanged,
    DeviceFault,
    Fetch,
    Forget,
    Goodbye,
    Heartbeat,
    HelloNeeded,
    HostDrop,
    HostFetch,
    Infer,
    Load,
    Mismatch,
    Phase,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Profile,
    Result,
    Revoke,
    Status,
    TensorRef,
    Unload,
    WorkerHello,
    WorkerWelcome,
)
from clockwork.wire.roles import Role
from clockwork.wire.transport import ConnectionEvent, Frame, Poller, Transport
from clockwork.worker.clock import Jitter, WorkerClock
from clockwork.worker.models import WorkerModels
from clockwork.worker.overruns import RunWatch, Verdict, execution_limit_ns, load_limit_ns
from clockwork.worker.settings import KINDS, WorkerSettings, kind_of

log = logging.getLogger("clockwork.worker")

EXIT_STUCK = 75
"""The exit status of a worker with an execution or load that does not come back, where its process does not begin anew by
itself."""


CANCELLED = Status.ACTION_CANCELLED, "the worker ends because of another action"

NO_PHASE: Phase = [0, 0, 0]


ACTIONS = (Infer, Load, Unload, Profile, HostFetch, HostDrop)

Parts = list[list[TensorView]]

IN_ORDER_OF_LOADS = (Load, Unload, HostFetch, HostDrop)
"""Actions of which one on a model has to wait for those before it, where they wait for a check."""


class _Line:
    """One device and the queue of actions before it."""

    __slots__ = (
        "card", "clock_mhz", "device", "executes", "fetches", "index", "loads", "offline", "queue", "waits", "wake_ns",
    )  # fmt: skip

    def __init__(self, index: int, device: Device) -> None:
        self.index = index
        self.card = index  # its place for who observes it
        self.clock_mhz = 0  # that the controller knows
        self.device = device
        self.queue = ActionQueue(device.info.run_ahead)
        self.executes, self.loads, self.fetches = RunWatch(EXECUTION_GRACE_NS), RunWatch(), RunWatch()
        self.waits = RunWatch()  # of LOADs, for a check
        self.wake_ns = NEVER_NS  # for which the loop's heap has an entry
        self.offline = ""  # what broke it

    @property
    def is_watched(self) -> bool:
        """Whether something was under way when it was looked at last."""
        return self.executes.is_busy or self.loads.is_busy or self.fetches.is_busy or self.waits.is_busy


class _Alone:
    """A device that belongs to no group, as one."""

    def __init__(self, device: Device) -> None:
        self.devices = (device,)
        self.fileno = device.fileno

    def ended(self) -> Sequence[Device]:
        return self.devices


class _Held(NamedTuple):
    """An action that has not been answered."""

    line: _Line
    received_ns: int  # worker clock
    expected_ns: int
    parts: Parts  # INFER: its inputs
    model_id: int


class Worker:
    """A worker's state and its loop. devices and store are the caller's, who closes them afterwards."""

    def __init__(
        self,
        settings: WorkerSettings,
        devices: Sequence[Device],
        store: PackageStore,
        transport: Transport,
        clocks: ClockSource | None = None,
    ) -> None:
        self._settings = settings
        self._clock = WorkerClock(settings.clock_offset_ns, settings.clock_drift_ppm)
        self._jitter = Jitter(JITTER_WINDOW)
        self._epoch = random.SystemRandom().getrandbits(63)
        self._lines = [_Line(index, device) for index, device in enumerate(devices)]
        self._line_of = {line.device: line for line in self._lines}
        self._lost: list[str] = []  # what is said of devices that are offline
        # (when, index) of lines; an entry is stale where it is not the line's wake_ns.
        self._wakes: list[tuple[int, int]] = []
        self._groups = list(dict.fromkeys(one.group for one in devices if one.group is not None))
        sources: list[_Alone | DeviceGroup] = [
            *self._groups,
            *(_Alone(one) for one in devices if one.group is None),
        ]
        self._ended = [source.ended for source in sources]
        self._actions: dict[int, _Held] = {}
        keys = read_peer_keys(settings.key) if settings.key is not None else None
        self._key_role = keys.role if keys is not None else None  # what its key was made for
        self._dealer = transport.dealer(settings.endpoint, keys)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_asked = False
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        holders = list(dict.fromkeys(one.group or one for one in devices))
        self._models = WorkerModels(holders, store, self._send, self.wake, start_over=self._start_over)
        # LOADs and FETCHes of models that are being checked: the lane counts them as started, the device has not seen them.
        self._unchecked: dict[int, tuple[_Line, Action]] = {}
        self._poller = Poller([self._dealer], [self._wake_read, *(source.fileno() for source in sources)])
        self._watch = ClockWatch(clocks, len(devices), self.wake) if clocks is not None else None
        self._welcomed = False  # by the controller at the other end of this connection
        self._hello_due_ns = 0  # connected, and a hello is still to be sent, from then on; 0: it has been
        self._hello_pause_ns = 0  # before the next hello, if the controller lets go of this worker soon again
        self._welcomed_ns = 0
        self._was_up = False
        self._refusals = 0
        self._complaints = Complaints(log, ("malformed", "failed"))
        self._stop_signals = 0
        self._goodbye_ns = 0  # when draining began; 0: not
        self._released = False  # the controller knows, and sends nothing more
        self._exit: int | None = None
        self._watch_ns = NEVER_NS  # when what is under way is looked at next
        self._load_limit_ns = config.load_limit_ns()
        self._giving_up = (
            0  # the exit status of a worker that leaves because of what it executes; 0: it does not
        )
        self._farewells_due = 0
        self._leave_ns = NEVER_NS  # at the latest
        self.crashed = False  # a lane has, and the process is about to end
        self.starts_over = False
        """Whether it ended because something that it executes does not come back: its process is to begin anew."""
        self._next_heartbeat_ns = now_ns() + HEARTBEAT_NS
        self._next_collect_ns = now_ns() + COLLECT_INTERVAL_NS
        self._handlers: dict[type, Callable[[Any, list[Frame], int], None]] = {
            Infer: self._on_infer,
            Load: self._on_action,
            Unload: self._on_action,
            Profile: self._on_action,
            HostFetch: self._on_action,
            HostDrop: self._on_action,
            Revoke: self._on_revoke,
            Ping: self._on_ping,
            Prepare: self._on_prepare,
            Chunk: self._on_chunk,
            Fetch: self._on_fetch,
            Forget: self._on_forget,
            WorkerWelcome: self._on_welcome,
            HelloNeeded: self._on_hello_needed,
            Mismatch: self._on_mismatch,
            Goodbye: self._on_goodbye,
        }

    def run(self) -> int:
        """Serve until told to stop; the process's exit status."""
        log.info("%s waits for the controller at %s", self._settings.name, self._settings.endpoint)
        while self._exit is None:
            self._turn()
        return self._exit

    def stop(self, signal_number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Leave in order; called again, leave at once. A signal handler; any thread may call it."""
        self._stop_signals += 1
        self.wake()

    def wake(self) -> None:
        """Have the loop turn once. Any thread may call it."""
        self._wake_asked = True
        with contextlib.suppress(BlockingIOError):  # then it is full of wake-ups already
            os.write(self._wake_write, b"\0")

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to leave."""
        return self._stop_signals > 0

    @property
    def is_hurried(self) -> bool:
        """Whether it was told twice."""
        return self._stop_signals > 1

    @property
    def wake_fileno(self) -> int:
        """Where a byte wakes the loop: for signal.set_wakeup_fd()."""
        return self._wake_write

    def close(self) -> None:
        """Stop every thread and process, and let go of `clocks`. What was sent still goes out when the transport is closed."""
        if self._watch is not None:
            self._watch.close()
        self._models.close()
        self._dealer.close()
        for descriptor in (self._wake_read, self._wake_write, self._statm):
            os.close(descriptor)

    # ----- the loop ----------------------------------------------------------------------------

    def _turn(self) -> None:
        due_ns = self._next_heartbeat_ns
        due_ns = min(due_ns, self._watch_ns, self._leave_ns)
        if self._wakes:
            due_ns = min(due_ns, self._wakes[0][0])
        if self._goodbye_ns:
            due_ns = min(due_ns, self._drain_due_ns())
        timeout_ns = due_ns - now_ns()
        if timeout_ns > 0:
            self._poller.wait(timeout_ns)
            late_ns = now_ns() - due_ns
            if late_ns >= 0:
                self._jitter.add(late_ns)
        receive = self._dealer.receive
        idle = True
        for _ in range(WORKER_MESSAGES_PER_TURN):
            frames = receive()
            if frames is None:
                break
            idle = False
            self._on_message(frames, now_ns())
        for ended in self._ended:
            for device in ended():
                completions = device.poll()
                if completions:
                    idle = False
                    line, now = self._line_of[device], now_ns()
                    for completion in completions:
                        self._on_completion(line, completion, now)
        wakes, now = self._wakes, now_ns()
        while wakes and wakes[0][0] <= now:
            wake_ns, index = heappop(wakes)
            line = self._lines[index]
            if line.wake_ns == wake_ns:
                line.wake_ns = NEVER_NS
                if line.queue.next_wake_ns <= now:
                    self._obey(line, line.queue.step(Due(now)))
                else:
                    self._schedule(line)
        if idle:  # a lost connection brings no messages, so this turn comes soon; asking costs a while
            self._on_changes()
        if self._wake_asked:
            self._wake_asked = False  # before reading: what is asked for from here on turns the loop again
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            self._models.poll()
            self._start_checked()
            self._look_at_clocks()
        now = now_ns()
        if now >= self._watch_ns:
            self._look_at_runs(now)
        if not self.crashed and (crash := _crash.crashed()):
            self._say_last_words(*crash)
        if self._giving_up and (self._farewells_due <= 0 or now >= self._leave_ns):
            self._exit = self._giving_up
        if self._stop_signals:
            self._drain()
        if now_ns() >= self._next_heartbeat_ns:
            self._heartbeat()

    def _schedule(self, line: _Line) -> None:
        """Have a line's queue looked at when it asks for it, if that is sooner than was known."""
        wake_ns = line.queue.next_wake_ns
        if wake_ns < line.wake_ns:
            line.wake_ns = wake_ns
            heappush(self._wakes, (wake_ns, line.index))
            if len(self._wakes) > len(self._lines) + STALE_WAKES_MAX:
                self._wakes[:] = [
                    (wake, index) for wake, index in self._wakes if self._lines[index].wake_ns == wake
                ]
                heapify(self._wakes)

    def _on_changes(self) -> None:
        for change in self._dealer.changes():
            if change is ConnectionEvent.UP:
                log.info("connected to %s", self._settings.endpoint)
                self._was_up, self._refusals = True, 0
                self._hello()
            elif change is ConnectionEvent.DOWN:
                if self._was_up:
                    log.warning("connection to %s lost; trying again", self._settings.endpoint)
                self._abandon()
            else:
                self._refusals += 1
                if change is ConnectionEvent.REFUSED or (
                    self._refusals >= HANDSHAKES_BROKEN_MAX
                    and not self._was_up
                    and self._settings.key is not None
                ):
                    hint = "are the keys right (--key)?"
                    if self._key_role not in (None, Role.WORKER):
                        hint = f"its key has the role {self._key_role.value} and must have worker (--key)"
                    log.error("%s refused the connection: %s", self._settings.endpoint, hint)
                    self._exit = 1

    def _send(self, header: bytes, frames: Sequence[Frame] = ()) -> None:
        if not self._dealer.send(header, frames) and self._welcomed:
            # Either it is gone, or it takes nothing any more. A hello makes it begin anew either way.
            log.warning("%s does not take what is sent; starting over", self._settings.endpoint)
            self._start_over()

    def _start_over(self) -> None:
        """Drop all that is under way, and be a new worker to the controller."""
        self._abandon()
        self._hello_due_ns = now_ns()

    def _heartbeat(self) -> None:
        now = now_ns()
        self._next_heartbeat_ns = now + HEARTBEAT_NS
        for line in self._lines:
            if not line.offline and line.device.fault:
                self._lose(line, line.device.fault)
        self._complaints.settle(now)
        self._models.beat()
        if self._dealer.look():
            log.error("the connection was ended: the controller sent more than this worker could take in")
        if self._hello_due_ns and now >= self._hello_due_ns:
            self._hello()
        if self._welcomed:
            stamp_ns = self._clock.to_worker(now)
            self._send(codec.encode(Heartbeat(stamp_ns, self._jitter.p99_ns(), self._stats())))
        if now >= self._next_collect_ns:
            self._next_collect_ns = now + COLLECT_INTERVAL_NS
            gc.collect()
            gc.freeze()  # what lives now is not looked at again

    def _stats(self) -> dict[str, Any]:
        pages = int(os.pread(self._statm, 256, 0).split()[1])
        return {
            "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            **self._complaints.counts(),
            "draining": bool(self._goodbye_ns),
            "devices_lost": self._lost,
            "devices": [
                {
                    **line.device.memory(),
                    **self._gpu_stats(line),
                    "actions_queued": line.queue.queued_count,
                    "actions_started": line.queue.started_count,
                }
                for line in self._lines
            ],
            **self._models.stats(),
            **{name: value for group in self._groups for name, value in group.stats().items()},
        }

    def _gpu_stats(self, line: _Line) -> dict[str, Any]:
        return {"gpu": self._watch.states[line.card].describe()} if self._watch is not None else {}

    def _look_at_clocks(self) -> None:
        """Tell the controller of clocks that have changed."""
        if self._watch is None:
            return
        states, clocks = self._watch.states, self._watch.clocks
        for line in self._lines:
            if line.offline:
                continue
            if states[line.card].lost:
                self._lose(line, states[line.card].lost)
            elif self._welcomed and clocks[line.card] != line.clock_mhz:
                line.clock_mhz = clocks[line.card]
                self._send(codec.encode(ClockChanged(line.index, line.clock_mhz)))

    # ----- the session -------------------------------------------------------------------------

    def _hello(self) -> None:
        # Nothing is under way on this connection, so that numbers may change: what is offline is not offered.
        self._lines = [line for line in self._lines if not line.offline]
        for index, line in enumerate(self._lines):
            line.index, line.wake_ns, line.clock_mhz = index, NEVER_NS, 0
        self._wakes.clear()
        devices = [
            {
                "kind": info.kind,
                "name": info.name,
                "fingerprint": info.fingerprint,
                "page_bytes": info.page_bytes,
                "page_count": info.page_count,
                "run_ahead": info.run_ahead,
                "host_bytes": info.host_bytes,
            }
            for info in (line.device.info for line in self._lines)
        ]
        hello = WorkerHello(PROTOCOL_VERSION, config.VERSION, self._settings.name, self._epoch, devices)
        sent = self._dealer.send(codec.encode(hello))
        self._hello_due_ns = 0 if sent else now_ns()

    def _abandon(self) -> None:
        """Drop every action: whoever sent it has given it up as well."""
        self._welcomed = False
        self._hello_due_ns = 0
        self._actions.clear()
        self._unchecked.clear()
        for line in self._lines:
            line.queue.reset()

    def _on_welcome(self, message: WorkerWelcome, frames: list[Frame], now: int) -> None:
        self._abandon()
        if not self.end_runs():
            log.critical("what an earlier session ordered does not come back: the worker begins anew")
            self.starts_over = True
            self._exit = EXIT_STUCK
            return
        for device in self._line_of:  # those that are lost, too: they let go of what they hold
            device.reset()
            device.poll()
        self._models.reset()
        self._welcomed = True
        self._welcomed_ns = now
        self._released = False
        log.info(
            "%s serves controller %s as worker %d", self._settings.name, message.version, message.worker_id
        )
        self._heartbeat()
        self._look_at_clocks()
        if self._goodbye_ns:
            self._send(codec.encode(Goodbye()))

    def _on_hello_needed(self, message: HelloNeeded, frames: list[Frame], now: int) -> None:
        if not self._welcomed:
            return  # a hello is on its way: something sent before the last connection ended came first
        self._abandon()
        if now - self._welcomed_ns >= HELLO_SETTLED_NS:
            self._hello_pause_ns = 0
            self._hello()
            return
        self._hello_pause_ns = min(max(2 * self._hello_pause_ns, HELLO_PAUSE_NS), HELLO_PAUSE_MAX_NS)
        self._hello_due_ns = now + self._hello_pause_ns
        log.warning(
            "the controller let go of this worker %.1f s after it had let it in; hello again in %.2f s",
            (now - self._welcomed_ns) / 1e9, self._hello_pause_ns / 1e9,
        )  # fmt: skip

    def _on_mismatch(self, message: Mismatch, frames: list[Frame], now: int) -> None:
        log.error("the controller refused this worker: %s", message.text)
        self._exit = 1

    def _on_goodbye(self, message: Goodbye, frames: list[Frame], now: int) -> None:
        if self._giving_up:
            self._farewells_due -= 1
        elif self._goodbye_ns:
            self._released = True  # it came behind whatever was ordered before
        else:
            log.info("the controller is shutting down")

    def _on_ping(self, message: Ping, frames: list[Frame], now: int) -> None:
        to_worker = self._clock.to_worker
        self._send(codec.encode(Pong(message.sent_ns, to_worker(now), to_worker(now_ns()))))

    # ----- leaving -----------------------------------------------------------------------------

    def _drain(self) -> None:
        now = now_ns()
        if not self._goodbye_ns:
            self._goodbye_ns = now
            log.info("stopping: %d actions to finish", len(self._actions))
            if self._welcomed:
                self._send(codec.encode(Goodbye()))
        if self._stop_signals > 1 or not self._welcomed or now >= self._drain_due_ns():
            if self._actions:
                log.warning("leaves with %d actions unfinished", len(self._actions))
            self._exit = 0

    def _drain_due_ns(self) -> int:
        """When to leave if nothing else happens."""
        if self._actions:
            return self._goodbye_ns + self._settings.drain_ns
        return self._goodbye_ns + (0 if self._released else min(DRAIN_SETTLE_NS, self._settings.drain_ns))

    # ----- messages ----------------------------------------------------------------------------

    def _on_message(self, frames: list[Frame], now: int) -> None:
        try:
            message = codec.decode(frames[0], TO_WORKER)
        except codec.WireError as error:
            self._complaints.note("malformed", now, f"malformed message from the controller: {error}")
            if self._welcomed:
                self._answer_failed(
                    *codec.addressee(frames[0], TO_WORKER), Status.INVALID_INPUT, str(error), now
                )
            return
        kind = type(message)
        if self._welcomed or kind is WorkerWelcome or kind is HelloNeeded or kind is Mismatch:
            try:
                self._handlers[kind](message, frames, now)
            except (
                Exception
            ) as error:  # a defect of ours: it costs this message, and the next may be another device's
                self._complaints.note("failed", now, f"failed at a {kind.__name__}", error)
                text = f"the worker failed at this {kind.__name__} ({type(error).__name__})"
                self._answer_failed(kind, message[0] if message else 0, Status.DEVICE_ERROR, text, now)

    def _answer_failed(self, kind: type | None, number: int, status: Status, text: str, now: int) -> None:
        """Have the controller hear that nothing comes of a message. number: of its action or model."""
        if kind is Prepare:
            self._send(codec.encode(Prepared(number, Status.INTERNAL, text, {})))
        elif kind in ACTIONS and number not in self._actions:
            # Of one that is known, its window or the device is the end.
            self._answer(number, status, text, self._clock.to_worker(now))

    def _on_prepare(self, message: Prepare, frames: list[Frame], now: int) -> None:
        self._models.prepare(message)

    def _on_chunk(self, message: Chunk, frames: list[Frame], now: int) -> None:
        self._models.on_chunk(message, frames[1] if len(frames) > 1 else None)

    def _on_fetch(self, message: Fetch, frames: list[Frame], now: int) -> None:
        self._models.read(message)

    def _on_forget(self, message: Forget, frames: list[Frame], now: int) -> None:
        self._models.forget(message.model_id)

    def _on_infer(self, message: Infer, frames: list[Frame], now: int) -> None:
        try:
            parts = _views(message.parts, frames)
        except InvalidInput as error:
            self._answer(message.action_id, Status.INVALID_INPUT, str(error), self._clock.to_worker(now))
            return
        self._enqueue(message._replace(parts=[]), parts, now)

    def _on_action(self, message: Action, frames: list[Frame], now: int) -> None:
        self._enqueue(message, [], now)

    def _enqueue(self, action: Action, parts: Parts, now: int) -> None:
        received_ns = self._clock.to_worker(now)
        action_id = action.action_id
        if action.device >= len(self._lines):
            text = f"device {action.device} of {len(self._lines)}"
            self._answer(action_id, Status.DEVICE_ERROR, text, received_ns)
        elif action.model_id not in self._models.ready:
            text = self._models.absence(action.model_id)
            self._answer(action_id, Status.UNKNOWN_MODEL, text, received_ns)
        elif self._giving_up:
            self._answer(action_id, *CANCELLED, received_ns)
        elif action_id in self._actions:
            log.warning("action %d was sent twice; the second is dropped", action_id)
        else:
            line = self._lines[action.device]
            self._actions[action_id] = _Held(line, received_ns, action.expected_ns, parts, action.model_id)
            action = self._clock.window(action)
            self._obey(line, line.queue.step(Received(now, action)))

    def _on_revoke(self, message: Revoke, frames: list[Frame], now: int) -> None:
        held = self._actions.get(message.action_id)
        if held is not None:
            self._obey(held.line, held.line.queue.step(Revoked(now, message.action_id)))

    # ----- actions -----------------------------------------------------------------------------

    def _obey(self, line: _Line, commands: list[QueueCommand]) -> None:
        self._schedule(line)
        for command in commands:
            if type(command) is Start:
                self._start(line, command.action)
                if self._watch_ns == NEVER_NS:
                    self._watch_ns = now_ns() + WATCH_INTERVAL_NS
            elif type(command) is Reject:
                action_id = command.action.action_id
                held = self._actions.pop(action_id)
                self._answer(action_id, command.status, command.text, held.received_ns)
            elif type(command) is RevokeStarted:
                if command.action_id in self._unchecked:
                    del self._unchecked[command.action_id]
                    self._end(line, command.action_id, Status.ACTION_CANCELLED, "revoked")
                else:
                    line.device.revoke(command.action_id)

    def _start(self, line: _Line, action: Action) -> None:
        if type(action) in IN_ORDER_OF_LOADS and self._waits_for_check(line, action):
            self._unchecked[action.action_id] = (line, action)
        else:
            self._start_now(line, action)

    def _waits_for_check(self, line: _Line, action: Action) -> bool:
        """Whether an action would read stored bytes that nobody has checked since the start, or comes behind one."""
        if any(one.model_id == action.model_id and at is line for at, one in self._unchecked.values()):
            return True
        return type(action) in (Load, HostFetch) and not self._models.may_load(action.model_id)

    def _start_checked(self) -> None:
        """Start what has waited for a check, or end it if the model turned out to be damaged."""
        for action_id, (line, action) in list(self._unchecked.items()):
            if action.model_id not in self._models.ready:
                del self._unchecked[action_id]
                text = self._models.absence(action.model_id)
                self._end(line, action_id, Status.DEVICE_ERROR, text)
            elif self._models.may_load(action.model_id):
                del self._unchecked[action_id]
                self._start_now(line, action)

    def _end(self, line: _Line, action_id: int, status: Status, text: str) -> None:
        """End an action that its lane counts as started and the device does not know."""
        held = self._actions.pop(action_id)
        self._answer(action_id, status, text, held.received_ns)
        self._obey(line, line.queue.step(Ended(now_ns(), action_id)))

    def _start_now(self, line: _Line, action: Action) -> None:
        device = line.device
        try:
            if type(action) is Infer:
                device.start_infer(action, self._actions[action.action_id].parts)
            elif type(action) is Load:
                device.start_load(action)
            elif type(action) is Unload:
                device.start_unload(action)
            elif type(action) is Profile:
                device.start_profile(action)
            elif type(action) is HostFetch:
                device.start_fetch(action)
            elif type(action) is HostDrop:
                device.start_drop(action)
        except Exception as error:  # whatever it is, this action has ended, and the lane is free for the next
            if not isinstance(error, (ValueError, TypeError, OverflowError, MemoryError, ClockworkError)):
                self._complaints.note("failed", now_ns(), f"failed to start a {type(action).__name__}", error)
            status = Status.INVALID_INPUT if isinstance(error, InvalidInput) else Status.DEVICE_ERROR
            self._end(
                line, action.action_id, status, str(error) or "there is not enough memory for the action"
            )

    def _on_completion(self, line: _Line, completion: Completion, now: int) -> None:
        if completion.status is Status.DEVICE_ERROR and not line.offline and line.device.fault:
            self._lose(line, line.device.fault)
        held = self._actions.pop(completion.action_id, None)
        if held is None:
            return  # of an earlier epoch
        frames: list[Frame] = []
        parts: list[list[TensorRef]] = []
        given = self._models.ready.get(held.model_id)
        why = (
            given.contradicted_by(completion.parts, held.parts)
            if given is not None and completion.parts
            else ""
        )
        if why:
            completion = completion._replace(status=Status.EXECUTION_FAILED, text=why, parts=[])
        for part in completion.parts:
            refs: list[TensorRef] = []
            for dtype, shape, data in part:
                refs.append([dtype, shape, len(frames)])
                frames.append(data)
            parts.append(refs)
        phase = self._clock.phase
        result = Result(
            completion.action_id,
            completion.status,
            completion.text,
            held.received_ns,
            phase(completion.copy_in),
            phase(completion.execute),
            phase(completion.copy_out),
            parts,
        )
        self._send(codec.encode(result), frames)
        self._obey(line, line.queue.step(Ended(now, completion.action_id)))

    # ----- what runs too long, or crashes --------------------------------------------------------

    def _look_at_runs(self, now: int) -> None:
        """End executions that take longer than they may; begin anew where one, or a load, does not come back."""
        busy = False
        for line in self._lines:
            if not line.queue.started_count and not line.is_watched:
                continue
            busy = True
            running, (loading, fetching) = line.device.running(), line.device.moving()
            waiting = next((number for number, (at, _) in self._unchecked.items() if at is line), 0)
            expected_ns = {
                one: held.expected_ns
                for one in (running, loading, fetching)
                if (held := self._actions.get(one)) is not None
            }
            for what, watch, action_id, limit_ns in (
                ("execution", line.executes, running, execution_limit_ns(expected_ns.get(running, 0))),
                ("load", line.loads, loading, load_limit_ns(expected_ns.get(loading, 0), self._load_limit_ns)),
                ("fetch", line.fetches, fetching, load_limit_ns(expected_ns.get(fetching, 0), self._load_limit_ns)),
                ("check before a load", line.waits, waiting, CHECK_LIMIT_NS),
            ):  # fmt: skip
                verdict = watch.look(now, action_id, limit_ns)
                if verdict is Verdict.END:
                    line.device.end_run(action_id)
                elif verdict is Verdict.STUCK:
                    self._give_up_stuck(line, what, action_id)
                    return
        self._watch_ns = now + WATCH_INTERVAL_NS if busy else NEVER_NS

    def _give_up_stuck(self, line: _Line, what: str, action_id: int) -> None:
        name = line.device.info.name
        log.critical(
            "action %d, the %s on %s, does not come back: the worker begins anew", action_id, what, name
        )
        text = f"the {what} took longer than it may and could not be ended, so its worker begins anew"
        self.starts_over = True
        self._give_up({action_id: (Status.OVERRUN, text)}, EXIT_STUCK)

    def _give_up(self, outcomes: dict[int, tuple[Status, str]], status: int) -> None:
        """Leave as soon as the controller knows what became of every action, or in a moment if it does not answer.

        What has no outcome was not begun, as far as anybody will know. The controller says Goodbye to each Goodbye: to
        the first, which has nothing more be sent here, and to the one behind the outcomes, when it has read those. A
        connection that is closed earlier may be missed before its last messages are read.
        """
        self._giving_up = status
        self._watch_ns = NEVER_NS
        self._farewells_due = 2 if self._welcomed else 0
        self._leave_ns = now_ns() + FAREWELL_LIMIT_NS
        if not self._welcomed:
            return
        self._send(codec.encode(Goodbye()))
        for action_id, held in self._actions.items():
            self._answer(action_id, *outcomes.get(action_id, CANCELLED), held.received_ns)
        self._actions.clear()
        self._send(codec.encode(Goodbye()))

    def _say_last_words(self, number: int, action_id: int) -> None:
        """A lane has crashed, and its thread waits for this before the process ends by its signal."""
        name = signal.Signals(number).name
        log.critical("action %d crashed: %s; the worker ends", action_id, name)
        self.crashed = True
        text = f"the worker crashed while it executed this ({name})"
        self._give_up({action_id: (Status.CRASHED, text)}, 128 + number)

    def end_runs(self) -> bool:
        """End whatever still executes, and wait for what loads. False: some of it does not come back."""
        give_up_ns = now_ns() + EXECUTION_GRACE_NS
        while True:
            busy = False
            for line in self._line_of.values():
                action_id = line.device.running()
                if action_id:
                    line.device.end_run(action_id)
                busy |= action_id != 0 or any(line.device.moving())
            if not busy:
                return True
            if now_ns() >= give_up_ns:
                return False
            time.sleep(END_PAUSE_S)

    def _lose(self, line: _Line, text: str) -> None:
        """Go on without a device that is broken; only another process can use it again.

        The controller hears of that first, and plans anew what the device had; of which every action ends by itself,
        as an error. When the last is gone, so is this worker: what watches over this process starts the next."""
        line.offline = text
        self._lost.append(f"{line.device.info.name}: {text}")
        log.critical("device %d (%s) is offline: %s", line.index, line.device.info.name, text)
        if self._welcomed:
            self._send(codec.encode(DeviceFault(line.index, text)))
        self._models.lose(line.device)
        if all(one.offline for one in self._lines):
            log.critical("no device is left: the worker ends")
            self._exit = 1

    def _answer(self, action_id: int, status: Status, text: str, received_ns: int) -> None:
        """The result of an action that did not reach the device."""
        result = Result(action_id, status, text, received_ns, NO_PHASE, NO_PHASE, NO_PHASE, [])
        self._send(codec.encode(result))


def _views(parts: list[list[TensorRef]], frames: list[Frame]) -> Parts:
    """The inputs of each part, in place. Raises InvalidInput for a reference that leads nowhere.

    Whether a frame holds what its reference declares is for the device to check: it knows the model.
    """
    views = []
    for part in parts:
        row = []
        for dtype, shape, index in part:
            if index >= len(frames) - 1:
                raise InvalidInput(f"a tensor in frame {index} of a message with {len(frames) - 1}")
            row.append(TensorView(dtype, tuple(shape), frames[index + 1]))
        views.append(row)
    return views


# ----- the process -----------------------------------------------------------------------------


def open_devices(settings: WorkerSettings) -> list[Device]:
    """The devices that the settings ask for, all of one kind. Raises ConfigError for what cannot be had."""
    kinds = list(dict.fromkeys(kind_of(name) for name in settings.devices))
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise ConfigError(f"no worker can have the devices {list(settings.devices)}")
    count = len(settings.devices)
    if kinds == ["emulated"]:
        from clockwork.device.emulated import EmulatedGroup
        from clockwork.device.emulation import parse_settings

        group = EmulatedGroup(
            count,
            settings.arena_bytes or EMULATED_ARENA_BYTES,
            settings.page_bytes or EMULATED_PAGE_BYTES,
            settings.run_ahead,
            parse_settings(settings.emulate),
            host_bytes=settings.host_bytes,
        )
        return list(group.devices)
    if count > DEVICES_ALONE_MAX:
        raise ConfigError(f"a worker drives at most {DEVICES_ALONE_MAX} {kinds[0]} devices, not {count}")
    if settings.host_bytes and kinds != ["cuda"]:
        raise ConfigError(
            f"{kinds[0]} devices have no host store with a budget (--host-bytes): whatever is prepared can be loaded"
        )
    if settings.emulate:
        raise ConfigError(f"{settings.emulate[0]} is a setting of emulated devices")
    open_one = _cuda_opener(settings) if kinds == ["cuda"] else _cpu_opener(settings)
    devices: list[Device] = []
    try:
        for name in settings.devices:
            devices.append(open_one(name))
    except BaseException:
        for device in devices:
            device.close()
        raise
    return devices


def _cpu_opener(settings: WorkerSettings) -> Callable[[str], Device]:
    from clockwork.device.cpu import CpuDevice  # here, so that a worker loads only what it drives

    return lambda _: CpuDevice(
        arena_bytes=settings.arena_bytes or ARENA_BYTES,
        page_bytes=settings.page_bytes or PAGE_BYTES,
        threads=settings.threads,
        run_ahead=settings.run_ahead,
        lock_store=settings.lock_store,
    )


def _cuda_opener(settings: WorkerSettings) -> Callable[[str], Device]:
    """GPUs of one driver and one host store. Raises ConfigError, naming what was not found."""
    from clockwork.device.cuda import CudaDevice
    from clockwork.device.cuda_host import BudgetedHost, HostStore, PinnedFiles
    from clockwork.device.cuda_memory import find_card, open_driver, open_memory

    table = open_driver()
    whichs = [name.removeprefix("cuda:") for name in settings.devices]
    found = [find_card(table, which) for which in whichs]
    if len({card.ordinal for card in found}) < len(found):
        raise ConfigError(f"{', '.join(settings.devices)} names one GPU twice")
    page_bytes = settings.page_bytes or CUDA_PAGE_BYTES
    store: HostStore
    if settings.host_bytes:
        store = BudgetedHost([open_memory(table, found[0])], page_bytes, settings.host_bytes)
    else:
        store = PinnedFiles([open_memory(table, card) for card in found], page_bytes)
    return lambda name: CudaDevice(
        which=name.removeprefix("cuda:"),
        arena_bytes=settings.arena_bytes,
        page_bytes=page_bytes,
        run_ahead=settings.run_ahead,
        store=store,
        table=table,
    )


def _open_clocks(devices: Sequence[Device]) -> ClockSource | None:
    """Who observes the clocks of these devices: of GPUs, if there is anybody."""
    if devices[0].info.kind != "cuda":
        return None
    from clockwork.device.cuda import CudaDevice
    from clockwork.device.cuda_clocks import open_source

    gpus = [one for one in devices if isinstance(one, CudaDevice)]
    return open_source(
        [one.card.uuid for one in gpus], [one.card.ordinal for one in gpus], gpus[0].card.is_gpu
    )


def _open_store(root: Path) -> PackageStore:
    """The packages below a directory, which is made if need be. Raises ConfigError."""
    try:
        store = PackageStore(root)
    except OSError as error:
        raise ConfigError(f"the store {root} cannot be used: {error.strerror}") from None
    if not os.access(root / "packages", os.W_OK | os.X_OK):
        raise ConfigError(f"the store {root} cannot be written to")
    return store


@contextlib.contextmanager
def _signals(worker: Worker) -> Iterator[None]:
    """SIGINT and SIGTERM stop the worker while this lasts."""
    wake = signal.set_wakeup_fd(worker.wake_fileno, warn_on_full_buffer=False)
    handlers = [(number, signal.signal(number, worker.stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(wake)


def _stop_the_process(arguments: threading.ExceptHookArgs) -> None:
    """A helper thread broke an invariant: without it the worker would hang one day, so it ends now."""
    name = arguments.thread.name if arguments.thread is not None else "?"
    log.critical("thread %s failed", name, exc_info=arguments.exc_value)
    os._exit(1)


def main(settings: WorkerSettings) -> int:
    """Run a worker until a signal ends it; the process's exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s"
    )
    threading.excepthook = _stop_the_process
    silence_onnxruntime()
    raise_descriptor_limit()
    go_first()
    sys.setswitchinterval(SWITCH_INTERVAL_NS / SECOND)
    started_ns = now_ns()
    with contextlib.ExitStack() as stack:
        try:
            store = _open_store(settings.store)
            transport = Transport()
            stack.callback(transport.close)
            devices = open_devices(settings)
            for device in devices:
                stack.callback(device.close)
            worker = Worker(settings, devices, store, transport, _open_clocks(devices))
        except (ClockworkError, OSError, MemoryError) as error:
            log.error("the worker cannot start: %s", error or type(error).__name__)
            return 1
        stack.callback(worker.close)
        stack.enter_context(_signals(worker))
        gc.collect()
        gc.freeze()
        gc.disable()  # Worker._heartbeat collects
        log.info("%s is up after %d ms", settings.name, (now_ns() - started_ns) // MS)
        _crash.install(worker.wake_fileno)
        status = worker.run()
        log.info("%s ends", settings.name)
        if worker.crashed or worker.starts_over:
            transport.close()  # what was said goes out
            if worker.starts_over:
                _start_over(worker)
            _crash.told()
            threading.Event().wait()  # for the signal
        if worker.is_hurried or not worker.end_runs():
            os._exit(status)  # closing a device waits for what it executes
        return status


def _start_over(worker: Worker) -> NoReturn:
    """Become a fresh process of the same command: with it goes whatever does not end. Its identity stays, so that who
    watches over it has nothing to do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if worker.is_stopping:  # the signal came meanwhile, and a fresh process would not know of it
        os._exit(0)
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
