"""The worker: one loop between the controller's socket and the devices.

It carries out each action inside its window, or answers that it could not. Slow work (files, preparation) happens in
other threads and processes: this loop is on the path of every request.

Times inside are of the machine's monotonic clock; WorkerClock converts those of messages.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from clockwork.actions import Action
from clockwork.config import HEARTBEAT_NS, TROUBLE_CHARS_MAX, silence_onnxruntime
from clockwork.config.worker import (
    COLLECT_INTERVAL_NS,
    JITTER_WINDOW,
    SWITCH_INTERVAL_NS,
    WORKER_MESSAGES_PER_TURN,
)
from clockwork.device import _crash
from clockwork.device.base import Device, DeviceGroup, ModelHolder
from clockwork.device.cuda_clocks import ClockSource, ClockWatch
from clockwork.errors import ClockworkError, ConfigError, InvalidInput
from clockwork.formats.package import PackageStore
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.system.copies import Copies
from clockwork.system.limits import go_first, raise_descriptor_limit
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.logs import start_log
from clockwork.wire.messages import (
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
    Ping,
    Pong,
    Prepare,
    Prepared,
    Profile,
    Reserve,
    Revoke,
    Status,
    TimeNeeded,
    Unload,
    WorkerWelcome,
)
from clockwork.wire.shared import MACHINE, machine_id
from clockwork.wire.transport import ConnectionEvent, Frame, Poller, Transport
from clockwork.worker.clock import Jitter, WorkerClock
from clockwork.worker.devices import open_clocks, open_devices
from clockwork.worker.models import WorkerModels
from clockwork.worker.runner import RESERVATION, ActionRunner, Answer, DeviceQueue, Outcome, refusal
from clockwork.worker.session import Departure, Session
from clockwork.worker.settings import WorkerSettings

log = logging.getLogger("clockwork.worker")

EXIT_STUCK = 75
"""The exit status of a worker with an execution or load that does not end, where its process does not restart itself."""

ACTIONS = (Infer, Load, Unload, Profile, HostFetch, HostDrop, Reserve)


class _Alone:
    """A device that belongs to no group, with the methods of a group that the loop needs."""

    def __init__(self, device: Device) -> None:
        self.devices = (device,)
        self.fileno = device.fileno

    def ended(self) -> Sequence[Device]:
        return self.devices


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
        self._jitter = Jitter(JITTER_WINDOW)
        self._devices_lost: list[str] = []  # sentences about the devices that are offline
        self._groups = list(dict.fromkeys(device.group for device in devices if device.group is not None))
        sources: list[_Alone | DeviceGroup] = [
            *self._groups,
            *(_Alone(device) for device in devices if device.group is None),
        ]
        self._ended = [source.ended for source in sources]
        self._session = Session(settings, transport)
        self._dealer = self._session.dealer
        self._departure = Departure(settings.drain_ns)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_asked = False
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        holders = list(dict.fromkeys(device.group or device for device in devices))
        self._models = WorkerModels(
            holders, store, self._send, self.wake, start_over=self._start_over, need_time=self._need_time
        )
        self._complaints = Complaints(log, ("malformed", "failed"))
        self._copies = Copies(self.wake, "process")
        self._machine = machine_id()
        self._runner = ActionRunner(devices, self._models, self._clock, self._complaints, self._copies)
        self._poller = Poller([self._dealer], [self._wake_read, *(source.fileno() for source in sources)])
        self._watch = ClockWatch(clocks, len(devices), self.wake) if clocks is not None else None
        self._stop_signals = 0
        self._exit: int | None = None
        self.crashed = False
        """Whether a lane has crashed, and the process is about to end."""
        self.starts_over = False
        """Whether the loop has ended because an action does not end: its process is to restart."""
        self._is_trial_stuck = False
        self._next_heartbeat_ns = now_ns() + HEARTBEAT_NS
        self._next_collect_ns = now_ns() + COLLECT_INTERVAL_NS
        self._handlers: dict[type, Callable[[Any, list[Frame], int], None]] = {
            Infer: self._on_infer,
            Load: self._on_action,
            Unload: self._on_action,
            Profile: self._on_action,
            Reserve: self._on_action,
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
        if not self._is_trial_stuck:
            self._models.forgive_trial()
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
        """Whether the worker has been told to leave."""
        return self._stop_signals > 0

    @property
    def is_hurried(self) -> bool:
        """Whether the worker has been told twice to leave, and so does it at once."""
        return self._stop_signals > 1

    @property
    def wake_fileno(self) -> int:
        """A descriptor that wakes the loop when a byte is written to it: for signal.set_wakeup_fd()."""
        return self._wake_write

    def end_runs(self) -> bool:
        """End whatever still executes, and wait for what loads. False: some of it does not come back."""
        return self._runner.end_runs()

    def close(self) -> None:
        """Stop every thread and process, and close `clocks`. Messages sent before still go out when the transport closes."""
        if self._watch is not None:
            self._watch.close()
        self._models.close()
        self._copies.close()
        self._dealer.close()
        for descriptor in (self._wake_read, self._wake_write, self._statm):
            os.close(descriptor)

    # ----- the loop ----------------------------------------------------------------------------

    def _turn(self) -> None:
        runner = self._runner
        due_ns = min(
            self._next_heartbeat_ns,
            runner.due_ns,
            self._departure.due_ns(runner.count),
        )
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
                    queue, now = runner.queue_of[device], now_ns()
                    for completion in completions:
                        if completion.status is Status.DEVICE_ERROR and not queue.offline and device.fault:
                            self._lose(queue, device.fault)
                        self._answer(runner.complete(queue, completion, now))
        now = now_ns()
        self._answer(runner.run_due(now))
        if idle:  # a lost connection brings no messages, so this turn comes soon; asking costs a while
            self._on_changes()
        if self._wake_asked:
            self._wake_asked = False  # before reading: what is asked for from here on turns the loop again
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            self._lose_broken()  # before what was made ready on the others is told
            self._models.poll()
            self._answer(runner.start_checked())
            self._answer(runner.take_copies(now_ns()))
            self._report_clocks()
        now = now_ns()
        if stuck := runner.find_stuck(now):
            self._give_up_stuck(stuck.operation, stuck.device, stuck.action_id)
        if not self.crashed and (crash := _crash.crashed()):
            self._say_last_words(*crash)
        if self._departure.has_given_up(now):
            self._exit = self._departure.exit_status
        if self._stop_signals:
            self._drain()
        if now_ns() >= self._next_heartbeat_ns:
            self._heartbeat()

    def _need_time(self, holder: ModelHolder, model_id: int, expected_ns: int, runs: list[int]) -> None:
        queue = next((one for one in self._runner.queues if one.device is holder and not one.offline), None)
        if queue is not None and self._session.welcomed:
            self._send(codec.encode(TimeNeeded(queue.index, model_id, expected_ns, runs)))

    def _on_changes(self) -> None:
        for change in self._session.changes():
            if change is ConnectionEvent.UP:
                self._hello()
            elif change is ConnectionEvent.DOWN:
                self._abandon()
            else:
                self._exit = 1

    def _send(self, header: bytes, frames: Sequence[Frame] = ()) -> bool:
        """False: the controller takes nothing any more, and the worker starts over."""
        if self._session.send(header, frames):
            return True
        self._start_over()
        return False

    def _answer(self, answers: Iterable[Answer]) -> None:
        for header, frames in answers:
            if not self._send(header, frames):
                break  # the others belong to the session that has just ended

    def _start_over(self) -> None:
        """Drop every action, and be a new worker to the controller: a hello is due."""
        self._runner.reset()
        self._session.end(hello_due_ns=now_ns())

    def _heartbeat(self) -> None:
        now = now_ns()
        self._next_heartbeat_ns = now + HEARTBEAT_NS
        self._lose_broken()
        self._complaints.settle(now)
        self._models.beat()
        self._runner.tidy(now)
        if self._dealer.look():
            log.error("the connection was ended: the controller sent more than this worker could take in")
        if self._session.is_hello_due(now):
            self._hello()
        if self._session.welcomed:
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
            MACHINE: self._machine,
            "copied_inputs_bytes": self._runner.copied_bytes,
            **self._complaints.counts(),
            "draining": bool(self._departure.began_ns),
            "devices_lost": self._devices_lost,
            "devices": [
                {
                    **queue.device.memory(),
                    **self._gpu_stats(queue),
                    "actions_queued": queue.queue.queued_count,
                    "actions_started": queue.queue.started_count,
                }
                for queue in self._runner.queues
            ],
            **self._models.stats(),
            **{name: value for group in self._groups for name, value in group.stats().items()},
        }

    def _gpu_stats(self, queue: DeviceQueue) -> dict[str, Any]:
        return {"gpu": self._watch.states[queue.card].describe()} if self._watch is not None else {}

    def _report_clocks(self) -> None:
        """Tell the controller of clocks that have changed."""
        if self._watch is None:
            return
        states, clocks = self._watch.states, self._watch.clocks
        for queue in self._runner.queues:
            if queue.offline:
                continue
            if states[queue.card].lost:
                self._lose(queue, states[queue.card].lost)
            elif self._session.welcomed and clocks[queue.card] != queue.clock_mhz:
                queue.clock_mhz = clocks[queue.card]
                self._send(codec.encode(ClockChanged(queue.index, queue.clock_mhz)))

    # ----- the session -------------------------------------------------------------------------

    def _hello(self) -> None:
        """Offer the devices that work. Nothing is under way on this connection, so their indices may change."""
        self._session.hello(self._runner.renumber())

    def _abandon(self) -> None:
        """Drop every action: the controller has given them up as well."""
        self._runner.reset()
        self._session.end()

    def _on_welcome(self, message: WorkerWelcome, frames: list[Frame], now: int) -> None:
        self._abandon()
        if not self._runner.end_runs():
            log.critical("what an earlier session ordered does not come back: the worker begins anew")
            self.starts_over = True
            self._exit = EXIT_STUCK
            return
        for device in self._runner.queue_of:  # broken devices, too: they release their memory
            device.reset()
            device.poll()
        self._models.reset()
        self._session.begin(now)
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
            return  # a hello is on its way: something sent before the last connection ended came first
        self._runner.reset()
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
            except (
                Exception
            ) as error:  # a defect of ours costs this message; the next may be another device's
                self._complaints.note("failed", now, f"failed at a {kind.__name__}", error)
                text = f"the worker failed at this {kind.__name__} ({type(error).__name__})"
                self._answer_failed(kind, message[0] if message else 0, Status.DEVICE_ERROR, text, now)

    def _answer_failed(self, kind: type | None, number: int, status: Status, text: str, now: int) -> None:
        """Have the controller hear that nothing comes of a message. number: of its action or model."""
        if kind is Prepare:
            self._send(codec.encode(Prepared(number, Status.INTERNAL, text, {})))
        elif kind in ACTIONS and not self._runner.holds(number):
            # An action that is held is answered at the end of its window or by its device.
            self._answer([refusal(number, status, text, self._clock.to_worker(now))])

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
            answers = self._runner.begin(message, frames, now)
        except InvalidInput as error:
            received_ns = self._clock.to_worker(now)
            answers = [refusal(message.action_id, Status.INVALID_INPUT, str(error), received_ns)]
        self._answer(answers)

    def _on_action(self, message: Action, frames: list[Frame], now: int) -> None:
        self._answer(self._runner.receive(message, [], now))

    def _on_revoke(self, message: Revoke, frames: list[Frame], now: int) -> None:
        self._answer(self._runner.revoke(message.action_id, now))

    # ----- leaving -----------------------------------------------------------------------------

    def _drain(self) -> None:
        """Leave once the actions have ended, or their time is up, or the second signal has come."""
        now, departure, count = now_ns(), self._departure, self._runner.count
        if not departure.began_ns:
            departure.began_ns = now
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
        self._give_up({action_id: (Status.OVERRUN, text)}, EXIT_STUCK)

    def _say_last_words(self, number: int, action_id: int) -> None:
        """A lane has crashed, and its thread waits for this before the process ends by its signal."""
        name = signal.Signals(number).name
        log.critical("action %d crashed: %s; the worker ends", action_id, name)
        self.crashed = True
        text = f"the worker crashed while it executed this ({name})"
        self._give_up({action_id: (Status.CRASHED, text)}, 128 + number)

    def _give_up(self, outcomes: Mapping[int, Outcome], status: int) -> None:
        """Leave as soon as the controller knows the outcome of every action, or soon if it does not answer.

        An action without an outcome ends as CANCELLED: for the controller it has not begun.
        """
        welcomed = self._session.welcomed
        self._departure.give_up(status, now_ns(), farewells=2 if welcomed else 0)
        answers = self._runner.cancel(outcomes)
        if welcomed:
            self._send(codec.encode(Goodbye()))
            self._answer(answers)
            self._send(codec.encode(Goodbye()))

    def _lose_broken(self) -> None:
        for queue in self._runner.queues:
            if not queue.offline and queue.device.fault:
                self._lose(queue, queue.device.fault)

    def _lose(self, queue: DeviceQueue, text: str) -> None:
        """Go on without a broken device, which only another process can use again.

        The controller hears of the fault first, and plans the device's work anew; each of its actions ends by itself, as
        an error. A worker without a device ends, and whatever watches over its process starts the next."""
        queue.offline = text
        name = queue.device.info.name
        self._devices_lost.append(f"{name}: {text}"[:TROUBLE_CHARS_MAX])
        log.critical("device %d (%s) is offline: %s", queue.index, name, text)
        if self._session.welcomed:
            self._send(codec.encode(DeviceFault(queue.index, text)))
        self._models.lose(queue.device)
        if all(other.offline for other in self._runner.queues):
            log.critical("no device is left: the worker ends")
            self._exit = 1


# ----- the process -----------------------------------------------------------------------------


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
    """End the process when a helper thread has failed: without the thread the worker would hang sooner or later."""
    name = arguments.thread.name if arguments.thread is not None else "?"
    log.critical("thread %s failed", name, exc_info=arguments.exc_value)
    os._exit(1)


def main(settings: WorkerSettings) -> int:
    """Run a worker until a signal ends it; the process's exit status."""
    start_log("worker")
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
            transport.close()  # sends the last answers
            if worker.starts_over:
                _start_over(worker)
            _crash.told()
            threading.Event().wait()  # for the signal
        if worker.is_hurried or not worker.end_runs():
            os._exit(status)  # closing a device would wait for its executions
        return status


def _start_over(worker: Worker) -> NoReturn:
    """Restart as a new process of the same command, which ends every thread. The process id stays, so that the supervisor
    of this process has nothing to do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if worker.is_stopping:  # a signal has come since, and a new process would not know of it
        os._exit(0)
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
