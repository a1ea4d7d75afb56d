"""The worker's loop: sessions, models, faults and other rare events.

The road (csrc/worker/road.h) is a native thread that owns the controller's socket. It carries out each action
inside its window, or answers that it could not. This loop handles the notices of the road. Slow work (files,
preparation) happens in other threads and processes.

Times are of the machine's monotonic clock; WorkerClock converts the times of messages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from clockwork.config import HEARTBEAT_NS, TROUBLE_CHARS_MAX, silence_onnxruntime
from clockwork.config.worker import COLLECT_INTERVAL_NS, SWITCH_INTERVAL_NS
from clockwork.device import _crash
from clockwork.device.base import Device, Kept, ModelHolder
from clockwork.device.cuda_clocks import ClockSource, ClockWatch
from clockwork.errors import ClockworkError, ConfigError
from clockwork.formats.package import PackageStore
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.system.limits import go_first, raise_descriptor_limit
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.logs import start_log
from clockwork.wire.messages import (
    KIND_OF,
    TO_WORKER,
    Announce,
    BundleOffer,
    Chunk,
    ClockChanged,
    DeviceFault,
    Fetch,
    Forget,
    Goodbye,
    Heartbeat,
    HelloNeeded,
    Message,
    Mismatch,
    NotStored,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Revoke,
    Status,
    TimeNeeded,
    WorkerWelcome,
)
from clockwork.wire.shared import MACHINE, machine_id
from clockwork.wire.transport import ConnectionEvent, Frame, Poller, Transport
from clockwork.worker import _road
from clockwork.worker.clock import WorkerClock
from clockwork.worker.devices import end_runs, open_clocks, open_devices, take_processors
from clockwork.worker.models import WorkerModels
from clockwork.worker.road import RESERVATION, FatalOutcome, open_road, refusal
from clockwork.worker.session import ControllerSession, Departure
from clockwork.worker.settings import WorkerSettings
from clockwork.worker.stores import BoundedStore

log = logging.getLogger("clockwork.worker")

EXIT_STUCK = 75
"""Exit status of a worker whose execution or load does not end and whose process does not restart itself."""


class WorkerDevice:
    """A device, with its numbers at the controller and the road."""

    __slots__ = ("clock_mhz", "device", "index", "offline", "place")

    def __init__(self, place: int, device: Device) -> None:
        self.index = place  # the number by which the controller knows the device
        self.place = place  # the number by which the road and the observer of clocks know it
        self.clock_mhz = 0  # clock as last reported to the controller
        self.device = device
        self.offline = ""  # the fault that broke the device, as a sentence; "" while it works


def _arena_of(device: Device) -> Device:
    """Return the device whose arena a device executes from."""
    return device.owner or device


class Worker:
    """A worker's state and its loop. The caller owns devices and store, and closes them afterwards."""

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
        self._devices_lost: list[str] = []  # sentences about the devices that are offline
        self._groups = list(dict.fromkeys(device.group for device in devices if device.group is not None))
        self._all_devices = [WorkerDevice(place, device) for place, device in enumerate(devices)]
        self._online = list(self._all_devices)  # the session's devices, by index
        self._session = ControllerSession(settings, transport)
        self._departure = Departure(settings.drain_ns, keeps_copies=bool(settings.store_bytes))
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_asked = False
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        holders = list(dict.fromkeys(device.group or device for device in devices))
        self._road = open_road(self._session.dealer, devices, self._clock.settings)
        self._session.send_by(self._road.send, self._road.adopt)
        self._bounded: BoundedStore | None = None
        if settings.store_bytes:
            self._bounded = BoundedStore(settings.store, settings.store_bytes, self.wake)
            self._road.keep_store()
        self._models = WorkerModels(
            holders,
            store,
            self._road,
            self._send,
            self.wake,
            self._start_over,
            self._need_time,
            self._bounded,
        )
        self._complaints = Complaints(log, ("malformed", "failed"))
        self._machine = machine_id()
        self._poller = Poller([], [self._wake_read, self._road.fileno()])
        self._watch = ClockWatch(clocks, len(devices), self.wake) if clocks is not None else None
        self._stop_signals = 0
        self._exit: int | None = None
        self.crashed = False
        """Whether a lane has crashed, so that the process is about to end."""
        self.starts_over = False
        """Whether the loop has ended because an action does not end: its process is to restart."""
        self._is_trial_stuck = False
        self._next_heartbeat_ns = now_ns() + HEARTBEAT_NS
        self._next_collect_ns = now_ns() + COLLECT_INTERVAL_NS
        self._handlers: dict[type, Callable[[Any, list[Frame], int], None]] = {
            **dict.fromkeys((*KIND_OF, Revoke), self._on_action),
            Ping: self._on_ping,
            Prepare: self._on_prepare,
            Announce: self._on_announce,
            BundleOffer: self._on_offer,
            Chunk: self._on_chunk,
            Fetch: self._on_fetch,
            Forget: self._on_forget,
            WorkerWelcome: self._on_welcome,
            HelloNeeded: self._on_hello_needed,
            Mismatch: self._on_mismatch,
            Goodbye: self._on_goodbye,
        }

    def run(self) -> int:
        """Serve until told to stop. Returns the process's exit status."""
        log.info("%s waits for the controller at %s", self._settings.name, self._settings.endpoint)
        self._session.dealer.is_lent = True
        self._road.start()
        while self._exit is None:
            self._turn()
        if not self._is_trial_stuck:
            self._models.forgive_trial()
        return self._exit

    def stop(self, signal_number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Drain and leave; on a second call leave at once. A signal handler; any thread may call it."""
        self._stop_signals += 1
        self.wake()

    def wake(self) -> None:
        """Wake the loop for a turn. Any thread may call it."""
        self._wake_asked = True
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes the loop as well
            os.write(self._wake_write, b"\0")

    @property
    def is_stopping(self) -> bool:
        """Whether the worker has been told to leave."""
        return self._stop_signals > 0

    @property
    def is_hurried(self) -> bool:
        """Whether the worker has been told twice to leave, so that it leaves at once."""
        return self._stop_signals > 1

    @property
    def wake_fileno(self) -> int:
        """A descriptor that wakes the loop when a byte is written to it: for signal.set_wakeup_fd()."""
        return self._wake_write

    def end_runs(self) -> bool:
        """End running executions and wait for loads. Returns False if some of them do not end."""
        return end_runs(worker_device.device for worker_device in self._all_devices)

    def stop_road(self) -> None:
        """Stop receiving and answering. The transport may be closed from then on, and still sends earlier
        messages."""
        self._road.stop()
        self._session.dealer.is_lent = False

    def close(self) -> None:
        """Stop all threads and processes and close `clocks`."""
        self.stop_road()
        if self._watch is not None:
            self._watch.close()
        self._models.close()
        if self._bounded is not None:
            self._bounded.close()
        self._session.dealer.close()
        for descriptor in (self._wake_read, self._wake_write, self._statm):
            os.close(descriptor)

    # ----- the loop ----------------------------------------------------------------------------

    def _turn(self) -> None:
        due_ns = min(
            self._next_heartbeat_ns, self._departure.due_ns(self._road.count), self._session.turns.due_ns
        )
        timeout_ns = due_ns - now_ns()
        is_ready = timeout_ns > 0 and self._poller.wait(timeout_ns)
        notices = self._road.take()
        for kind, number, value, came_ns, rest in notices:
            self._on_notice(kind, number, value, came_ns, rest)
        # wake() may write its byte after a turn that had seen the flag already has emptied the pipe.
        if self._wake_asked or (is_ready and not notices):
            self._wake_asked = False  # cleared before reading: a later wake() causes another turn
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            self._lose_broken()  # before Prepared is sent for models on the other devices
            self._models.poll()
            self._report_clocks()
        if not self.crashed and (crash := _crash.crashed()):
            self._say_last_words(*crash)
        if self._departure.has_given_up(now_ns()):
            self._exit = self._departure.exit_status
        if self._stop_signals:
            self._drain()
        self._session.turn(now_ns())
        if now_ns() >= self._next_heartbeat_ns:
            self._heartbeat()

    def _on_notice(self, kind: int, number: int, value: int, came_ns: int, rest: Any) -> None:
        """Handle a notice of the road; see Notice in csrc/worker/road.h."""
        match kind:
            case _road.MESSAGE:
                self._on_message(rest, came_ns)
            case _road.ENDED:
                given = self._models.ready.get(rest.model_id)
                rest.answer(given.contradicted_by(rest.outputs, rest.inputs) if given is not None else "")
            case _road.NEWS:
                self._on_news(number, value)
            case _road.CHECK:
                self._models.demand_check(number)
            case _road.STORE_FETCH:
                self._models.fetch(number, value, came_ns)
            case _road.STORE_DROP:
                self._models.drop(number, value)
            case _road.TWICE:
                log.warning("action %d was sent twice; the second is dropped", number)
            case _road.FAULT:
                broken = self._all_devices[number]
                self._lose(broken, broken.device.fault)
            case _road.STUCK:
                if not self._departure.exit_status:
                    self._give_up_stuck(rest, self._all_devices[value].device.info.name, number)
            case _road.UNSENT:
                if self._session.welcomed:
                    self._session.note_unsent()
                    self._start_over()
            case _road.FAILED:
                raise RuntimeError(f"the road has ended: {rest}")

    def _need_time(self, holder: ModelHolder, model_id: int, expected_ns: int, runs: list[int]) -> None:
        for found in self._online:
            if found.device is holder and not found.offline and self._session.welcomed:
                self._send(codec.encode(TimeNeeded(found.index, model_id, expected_ns, runs)))

    def _on_news(self, event: int, value: int) -> None:
        change = self._session.note(event, value)
        if change is ConnectionEvent.UP:
            self._hello()
        elif change is ConnectionEvent.DOWN:
            self._abandon()
        elif change is not None:
            self._exit = 1

    def _send(self, header: bytes, frames: Sequence[Frame] = ()) -> bool:
        """Send a message. False: the controller takes no more messages, and a new session starts."""
        if self._session.send(header, frames):
            return True
        self._start_over()
        return False

    def _start_over(self) -> None:
        """Drop every action and begin a new session: a hello is due."""
        self._forget_actions()
        self._session.end(hello_due_ns=now_ns())

    def _forget_actions(self) -> None:
        """Take no action, and drop every action: the controller has given them up as well."""
        self._road.serve(False)
        self._road.reset()

    def _heartbeat(self) -> None:
        now = now_ns()
        self._next_heartbeat_ns = now + HEARTBEAT_NS
        self._lose_broken()
        self._complaints.settle(now)
        self._models.beat()
        self._road.tidy(now)
        self._session.dealer.note_received(*self._road.take_received())
        if self._session.dealer.look():
            log.error("the connection was ended: the controller sent more than this worker could take in")
        if self._session.is_hello_due(now):
            self._hello()
        if self._session.welcomed:
            stamp_ns = self._clock.to_worker(now)
            self._send(codec.encode(Heartbeat(stamp_ns, self._road.jitter_p99_ns(), self._stats())))
        if now >= self._next_collect_ns:
            self._next_collect_ns = now + COLLECT_INTERVAL_NS
            gc.collect()
            gc.freeze()  # excludes the objects that exist now from collections

    def _stats(self) -> dict[str, Any]:
        pages = int(os.pread(self._statm, 256, 0).split()[1])
        return {
            "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            MACHINE: self._machine,
            "copied_inputs_bytes": self._road.copied_bytes(),
            **self._complaints.counts(),
            "draining": bool(self._departure.began_ns),
            "devices_lost": self._devices_lost,
            "devices": [
                {
                    **worker_device.device.memory(),
                    **self._gpu_stats(worker_device),
                    **dict(
                        zip(("actions_queued", "actions_started"), self._road.counts(worker_device.place))
                    ),
                }
                for worker_device in self._online
            ],
            **self._models.stats(),
            **{name: value for group in self._groups for name, value in group.stats().items()},
        }

    def _gpu_stats(self, worker_device: WorkerDevice) -> dict[str, Any]:
        return {"gpu": self._watch.states[worker_device.place].describe()} if self._watch is not None else {}

    def _report_clocks(self) -> None:
        """Tell the controller of clocks that have changed."""
        if self._watch is None:
            return
        states, clocks = self._watch.states, self._watch.clocks
        for worker_device in self._online:
            if worker_device.offline:
                continue
            if states[worker_device.place].lost:
                self._lose(worker_device, states[worker_device.place].lost)
            elif self._session.welcomed and clocks[worker_device.place] != worker_device.clock_mhz:
                worker_device.clock_mhz = clocks[worker_device.place]
                self._send(codec.encode(ClockChanged(worker_device.index, worker_device.clock_mhz)))

    # ----- the session -------------------------------------------------------------------------

    def _hello(self) -> None:
        """Offer the working devices to the controller. No action runs, so their indices may change."""
        self._online = [worker_device for worker_device in self._online if not worker_device.offline]
        for index, worker_device in enumerate(self._online):
            worker_device.index, worker_device.clock_mhz = index, 0
        self._road.renumber([worker_device.place for worker_device in self._online])
        numbers = {worker_device.device: worker_device.index for worker_device in self._online}
        infos = []
        for worker_device in self._online:
            owner = worker_device.device.owner
            arena = -1 if owner is None else numbers[owner]
            info, store_bytes = worker_device.device.info, self._settings.store_bytes
            infos.append(dataclasses.replace(info, arena=arena, store_bytes=store_bytes))
        self._session.hello(infos)

    def _abandon(self) -> None:
        """Drop every action: the controller has given them up as well."""
        self._forget_actions()
        self._session.end()

    def _on_welcome(self, message: WorkerWelcome, frames: list[Frame], now: int) -> None:
        self._abandon()
        if not self._session.obeys(*message.lease):
            self._session.refuse(now)
            return
        if not self.end_runs():
            log.critical("actions of an earlier session do not end: the worker begins anew")
            self.starts_over = True
            self._exit = EXIT_STUCK
            return
        residents: dict[int, list[tuple[int, Kept]]] = {}
        for worker_device in self._all_devices:  # broken devices, too: they release their memory
            device = worker_device.device
            if self._models.keeps and not worker_device.offline:
                for kept in device.keep():
                    residents.setdefault(kept.model_id, []).append((worker_device.index, kept))
            else:
                device.reset()
            device.poll()
        self._models.reset(residents)
        self._session.begin(now)
        self._road.serve(True)
        self._departure.released = False
        log.info(
            "%s serves controller %s as worker %d", self._settings.name, message.version, message.worker_id
        )
        self._heartbeat()
        self._report_clocks()
        if self._departure.began_ns:
            self._send(codec.encode(Goodbye()))

    def _on_hello_needed(self, message: HelloNeeded, frames: list[Frame], now: int) -> None:
        if not self._session.welcomed:
            return  # a hello is under way, and this message was sent before the last connection ended
        self._forget_actions()
        self._session.end_by_controller(now)
        if self._session.is_hello_due(now):
            self._hello()

    def _on_mismatch(self, message: Mismatch, frames: list[Frame], now: int) -> None:
        log.error("the controller refused this worker: %s", message.text)
        self._exit = 1

    def _on_goodbye(self, message: Goodbye, frames: list[Frame], now: int) -> None:
        self._departure.on_goodbye()

    def _on_ping(self, message: Ping, frames: list[Frame], now: int) -> None:
        to_worker = self._clock.to_worker
        self._send(codec.encode(Pong(message.sent_ns, to_worker(now), to_worker(now_ns()))))

    # ----- messages ----------------------------------------------------------------------------

    def _on_message(self, frames: list[Frame], now: int) -> None:
        try:
            message = codec.decode(frames[0], TO_WORKER)
        except codec.WireError as error:
            self._complaints.note("malformed", now, f"malformed message from the controller: {error}")
            if self._session.welcomed:
                kind, number = codec.addressee(frames[0], TO_WORKER)
                self._answer_failed(kind, number, Status.INVALID_INPUT, str(error), now)
            return
        kind = type(message)
        if self._session.welcomed or kind is WorkerWelcome or kind is HelloNeeded or kind is Mismatch:
            try:
                self._handlers[kind](message, frames, now)
            except Exception as error:  # a defect of ours costs this message alone
                self._complaints.note("failed", now, f"failed at a {kind.__name__}", error)
                text = f"the worker failed at this {kind.__name__} ({type(error).__name__})"
                self._answer_failed(kind, message[0] if message else 0, Status.DEVICE_ERROR, text, now)

    def _answer_failed(self, kind: type | None, number: int, status: Status, text: str, now: int) -> None:
        """Tell the controller that a message failed. number: the id of its action or model."""
        if kind is Prepare:
            self._send(codec.encode(Prepared(number, Status.INTERNAL, text, {})))
        elif kind is Announce:
            self._send(codec.encode(NotStored(number, "")))
        elif kind in KIND_OF and not self._road.holds(number):
            # A held action is answered at the end of its window or by its device.
            self._send(refusal(number, status, text, self._clock.to_worker(now)))

    def _on_prepare(self, message: Prepare, frames: list[Frame], now: int) -> None:
        self._models.prepare(message)

    def _on_announce(self, message: Announce, frames: list[Frame], now: int) -> None:
        self._models.announce(message)

    def _on_chunk(self, message: Chunk, frames: list[Frame], now: int) -> None:
        self._models.on_chunk(message, frames[1] if len(frames) > 1 else None)

    def _on_fetch(self, message: Fetch, frames: list[Frame], now: int) -> None:
        self._models.read(message)

    def _on_offer(self, message: BundleOffer, frames: list[Frame], now: int) -> None:
        self._models.on_offer(message)

    def _on_forget(self, message: Forget, frames: list[Frame], now: int) -> None:
        self._models.forget(message.model_id)

    def _on_action(self, message: Message, frames: list[Frame], now: int) -> None:
        """Take an action, or a Revoke, that came before the session began."""
        if not self._road.deliver(frames, now):
            raise AssertionError(f"the road takes no {type(message).__name__}")

    # ----- leaving -----------------------------------------------------------------------------

    def _drain(self) -> None:
        """Leave once all actions have ended, the drain limit has passed, or a second signal has come."""
        now, departure, count = now_ns(), self._departure, self._road.count
        if not departure.began_ns:
            departure.began_ns = now
            self._road.drain()
            log.info("stopping: %d actions to finish", count)
            if self._session.welcomed:
                self._send(codec.encode(Goodbye()))
        if self.is_hurried or not self._session.welcomed or now >= departure.drain_due_ns(count):
            if count:
                log.warning("leaves with %d actions unfinished", count)
            self._exit = 0

    def _give_up_stuck(self, operation: str, device: str, action_id: int) -> None:
        log.critical(
            "action %d, the %s on %s, does not come back: the worker begins anew",
            action_id, operation, device,
        )  # fmt: skip
        text = f"the {operation} took longer than it may and could not be ended, so its worker begins anew"
        self.starts_over = True
        self._is_trial_stuck = operation == RESERVATION
        self._give_up(FatalOutcome(action_id, Status.OVERRUN, text), EXIT_STUCK)

    def _say_last_words(self, number: int, action_id: int) -> None:
        """Answer the action of a crashed lane. The lane's thread then ends the process by its signal."""
        name = signal.Signals(number).name
        log.critical("action %d crashed: %s; the worker ends", action_id, name)
        self.crashed = True
        text = f"the worker crashed while it executed this ({name})"
        self._give_up(FatalOutcome(action_id, Status.CRASHED, text), 128 + number)

    def _give_up(self, outcome: FatalOutcome, status: int) -> None:
        """Leave once the controller has read the outcome of every action, or soon if it does not answer.

        One action ends with the given outcome. All others end as cancelled: the controller treats them as
        not begun.
        """
        welcomed = self._session.welcomed
        self._departure.give_up(status, now_ns(), farewells=2 if welcomed else 0)
        if welcomed:
            self._send(codec.encode(Goodbye()))
        self._road.cancel(*outcome)
        if welcomed:
            self._send(codec.encode(Goodbye()))

    def _lose_broken(self) -> None:
        for worker_device in self._online:
            if not worker_device.offline and worker_device.device.fault:
                self._lose(worker_device, worker_device.device.fault)

    def _lose(self, worker_device: WorkerDevice, text: str) -> None:
        """Continue without a broken device, which only another process can use again.

        The device is lost with all devices of its arena. The controller is told of the fault first, which it
        takes for all of them, and plans their work anew. Each of their actions ends as an error. A worker
        without a device exits, and its supervisor starts the next."""
        if worker_device.offline:
            return
        device = worker_device.device
        name = device.info.name
        lost = [other for other in self._online if _arena_of(other.device) is _arena_of(device)]
        for other in lost:
            other.offline = text
        self._devices_lost.append(f"{name}: {text}"[:TROUBLE_CHARS_MAX])
        log.critical("device %d (%s) is offline: %s", worker_device.index, name, text)
        if self._session.welcomed:
            self._send(codec.encode(DeviceFault(worker_device.index, text)))
        for other in lost:
            self._road.lost(other.place)
        holder = device.group or device
        if all(other.offline for other in self._online if (other.device.group or other.device) is holder):
            self._models.lose(holder)
        if all(other.offline for other in self._online):
            log.critical("no device is left: the worker ends")
            self._exit = 1


# ----- the process -----------------------------------------------------------------------------


def _open_store(root: Path) -> PackageStore:
    """Open the store of packages below a directory, which is made if need be. Raises ConfigError."""
    try:
        store = PackageStore(root)
    except OSError as error:
        raise ConfigError(f"the store {root} cannot be used: {error.strerror}") from None
    if not os.access(root / "packages", os.W_OK | os.X_OK):
        raise ConfigError(f"the store {root} cannot be written to")
    return store


@contextlib.contextmanager
def _signals(worker: Worker) -> Iterator[None]:
    """Have SIGINT and SIGTERM stop the worker inside this context."""
    wake = signal.set_wakeup_fd(worker.wake_fileno, warn_on_full_buffer=False)
    handlers = [(number, signal.signal(number, worker.stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(wake)


def _stop_the_process(arguments: threading.ExceptHookArgs) -> None:
    """End the process when a helper thread has failed: without the thread the worker would hang."""
    name = arguments.thread.name if arguments.thread is not None else "?"
    log.critical("thread %s failed", name, exc_info=arguments.exc_value)
    os._exit(1)


def main(settings: WorkerSettings) -> int:
    """Run a worker until a signal ends it. Returns the process's exit status."""
    start_log("worker")
    threading.excepthook = _stop_the_process
    silence_onnxruntime()
    raise_descriptor_limit()
    go_first()
    sys.setswitchinterval(SWITCH_INTERVAL_NS / SECOND)
    started_ns = now_ns()
    with contextlib.ExitStack() as stack:
        try:
            take_processors(settings.processors)
            store = _open_store(settings.store)
            transport = Transport()
            stack.callback(transport.close)
            devices = open_devices(settings)
            for device in devices:
                stack.callback(device.close)
            worker = Worker(settings, devices, store, transport, open_clocks(devices))
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
            worker.stop_road()
            transport.close()  # waits until the last answers are sent
            if worker.starts_over:
                _start_over(worker)
            _crash.told()
            threading.Event().wait()  # the signal ends the process
        if worker.is_hurried or not worker.end_runs():
            os._exit(status)  # closing a device would wait for its executions
        return status


def _start_over(worker: Worker) -> NoReturn:
    """Replace the process by a new run of the same command, which ends every thread.

    The process id stays the same, so the supervisor of this process need not act."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if worker.is_stopping:  # a new process would not know of a signal that has come meanwhile
        os._exit(0)
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
