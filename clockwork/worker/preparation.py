"""The preparation process: splits, optimises and profiles models away from the worker's loop.

``python -m clockwork.worker.preparation FD`` is the process; it serves jobs that arrive on a socket,
one at a time and at low priority, and imports onnx and onnxruntime so that the worker need not. A model
that crashes the process harms no other. PreparationProcess is the worker's handle on it.

A job and its answers are msgpack maps: {package, store, fingerprints, page_bytes, options}, or {bundle:
directory of what another worker has prepared, store, digest, fingerprint, page_bytes, options}, or {check:
directories and their checksums}, then {started: true}, {slow: true} where an execution takes long, then
{status, text, leaving, ...}. A process that is leaving takes no further job. A package is prepared, and a
bundle tried, within a budget of memory, which the kernel enforces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgpack

from clockwork.config import CHECK_BUSY_SHARE, PREPARATION_LIMIT_NS, preparation_run_ns
from clockwork.config.worker import (
    MESSAGE_BYTES_MAX,
    PREPARATION_FREE_SHARE,
    PREPARATION_IDLE_NS,
    PREPARATION_OOM_SCORE,
    PREPARATION_RSS_MAX,
    PREPARATION_SLOW_NS,
    PREPARATIONS_MAX,
    RECEIVE_BYTES,
    TURN_PAUSE_S,
    preparation_bytes,
)
from clockwork.device.lacking import lacked_memory
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import Pace, find_damage, set_aside
from clockwork.formats.package import DamagedPackage
from clockwork.system.clock import SECOND, now_ns
from clockwork.system.limits import bounded_memory, free_bytes, go_first
from clockwork.wire.logs import guard_stderr
from clockwork.wire.messages import Status

NICE = 10

EXIT_ENDLESS = 76
"""The exit status of a preparation in which an execution does not end, not even when it is told to."""

COMMAND = (sys.executable, "-m", "clockwork.worker.preparation")
EARLY = "early"  # The argument of a process that imports what bundles need before its first job

Job = dict[str, Any]


class JobDone(NamedTuple):
    """The end of a job: OK, INVALID_MODEL (the model is at fault), or INTERNAL (this machine is at fault)."""

    job_id: int
    status: Status
    text: str
    refetch: bool = False  # the stored package was damaged, and has been set aside
    # Found by a check: a sentence for each damaged directory
    damage: Mapping[str, str] = MappingProxyType({})


class PreparationProcess:
    """Runs jobs one after another in a process that is started when first needed and replaced when it dies.

    wake: has the loop call poll() soon; called from this object's thread. stays: the process is started at
    once, imports what bundles need, and does not end for lack of jobs: a start takes half a second of
    processor time, and a job a few milliseconds.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        command: Sequence[str] = COMMAND,
        limit_ns: int = PREPARATION_LIMIT_NS,
        idle_ns: int = PREPARATION_IDLE_NS,
        stays: bool = False,
    ) -> None:
        self._wake = wake
        self._command = tuple(command)
        self._limit_ns = limit_ns
        self._idle_ns = idle_ns
        self._stays = stays
        self._jobs: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._done: deque[JobDone] = deque()
        self._slow: deque[int] = deque()
        self._lock = threading.Lock()  # guards the next three, which close() and cancel() use
        self._current = 0
        self._closing = False
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._started = False  # the process has begun with the current job
        # The child dies with the thread that started it (PR_SET_PDEATHSIG): it lives as long as this object.
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)
        self._thread.start()

    def submit(self, job_id: int, job: Job) -> None:
        """Queue a job; poll() returns its end. job_id: positive, unique."""
        self._jobs.put((job_id, job))

    def poll(self) -> list[JobDone]:
        """Return the jobs that ended since the last call."""
        return [self._done.popleft() for _ in range(len(self._done))]

    def poll_slow(self) -> list[int]:
        """Return the jobs of which an execution was found slow since the last call. A job may have ended."""
        return [self._slow.popleft() for _ in range(len(self._slow))]

    def cancel(self, job_id: int) -> None:
        """Kill the process if it is running this job; the job then ends as INTERNAL."""
        with self._lock:
            if self._current == job_id and self._child is not None:
                self._child.kill()

    @property
    def pid(self) -> int:
        """The id of the process; 0 while there is none."""
        with self._lock:
            return self._child.pid if self._child is not None else 0

    def close(self) -> None:
        """Kill the process and wait for it. Idempotent."""
        with self._lock:
            self._closing = True
            if self._child is not None:
                self._child.kill()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            if self._stays:
                with contextlib.suppress(OSError):  # the next job tries again, and tells
                    self._start_child(0)
            try:
                order = self._jobs.get(timeout=None if self._stays else self._idle_ns / SECOND)
            except queue.Empty:
                self._stop_child()
                continue
            if order is None or self._closing:
                break
            job_id, job = order
            ended = self._work(job_id, job) or self._work(job_id, job)
            text = "the preparation process left before it began, twice"
            answer = ended or {"status": Status.INTERNAL, "text": text}
            status, said = Status(int(answer["status"])), str(answer["text"])
            damage = dict(answer.get("damage") or {})
            self._done.append(JobDone(job_id, status, said, bool(answer.get("refetch")), damage))
            self._wake()
        self._stop_child()

    def _work(self, job_id: int, job: Job) -> dict[str, Any] | None:
        """Return the process's answer to a job; None if the process exited with status 0 before it began the
        job."""
        self._started = False
        try:
            connection = self._start_child(job_id)
        except OSError as error:
            return {"status": Status.INTERNAL, "text": f"the preparation process cannot be started: {error}"}
        try:
            connection.settimeout(self._limit_ns / SECOND)
            connection.sendall(msgpack.packb(job))
            answer = self._answer(connection, job_id)
        except TimeoutError:
            self._end_job()
            self._stop_child()
            limit_s = self._limit_ns / SECOND
            text = f"preparation took longer than {limit_s:g} s and was stopped"
            return {"status": Status.INVALID_MODEL, "text": text}
        except OSError:
            answer = None  # the process died before it had read the job
        self._end_job()
        if answer is None:
            return self._explain_death()
        if answer.get("leaving"):
            self._stop_child()
        return answer

    def _answer(self, connection: socket.socket, job_id: int) -> dict[str, Any] | None:
        """Return the answer to the job; None if the process died. Raises TimeoutError, counted from
        {started}."""
        unpacker = msgpack.Unpacker(max_buffer_size=MESSAGE_BYTES_MAX)
        # the process may wait for another worker's preparation, which has its own limit
        connection.settimeout(None)
        deadline_ns = 0
        while True:
            if deadline_ns:
                connection.settimeout(max(deadline_ns - now_ns(), 1) / SECOND)
            data = connection.recv(RECEIVE_BYTES)
            if not data:
                return None
            unpacker.feed(data)
            for message in unpacker:
                if "status" in message:
                    return dict(message)
                if "slow" in message:
                    self._slow.append(job_id)
                    self._wake()
                    continue
                self._started = True
                deadline_ns = now_ns() + self._limit_ns

    def _end_job(self) -> None:
        with self._lock:
            self._current = 0  # from here on cancel() has no effect, and cannot end a later job

    def _start_child(self, job_id: int) -> socket.socket:
        """Return the connection to the process, started if need be. From then on cancel(job_id) has an
        effect."""
        with self._lock:
            alive = self._child is not None and self._child.poll() is None
        if not alive or self._connection is None:
            self._stop_child()
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    child = subprocess.Popen(
                        [*self._command, str(theirs.fileno()), *([EARLY] if self._stays else [])],
                        stdin=subprocess.DEVNULL,
                        stdout=2,  # so that the process's output does not mix with the worker's
                        pass_fds=(theirs.fileno(),),
                    )
                except OSError:
                    ours.close()
                    raise
            self._connection = ours
            with self._lock:
                self._child = child
                if self._closing:
                    child.kill()
        with self._lock:
            self._current = job_id
        return self._connection

    def _stop_child(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        child = self._child  # only this thread assigns it
        if child is not None:
            child.kill()
            child.wait()
            with self._lock:
                self._child = None

    def _explain_death(self) -> dict[str, Any] | None:
        with self._lock:
            child = self._child
        assert child is not None
        code = child.wait()  # the process has closed its end of the socket, so it is about to exit
        self._stop_child()
        if code == 0 and not self._started:
            return None
        if code == EXIT_ENDLESS:
            text = f"one execution of the model takes longer than {preparation_run_ns() / SECOND:g} s"
            return {"status": Status.INVALID_MODEL, "text": text}
        if code == -signal.SIGKILL:  # the signal comes from outside: no computation of a model sends it
            text = "the preparation process was killed, most likely because this machine ran out of memory"
            return {"status": Status.INTERNAL, "text": text}
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return {"status": Status.INVALID_MODEL, "text": f"preparation crashed ({how})"}


# ----- the process itself --------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Serve jobs on the inherited socket until it is closed. If that happens during a job, the job is
    abandoned."""
    guard_stderr("preparation")
    _yield_to_everybody()
    if EARLY in arguments:
        from clockwork.models import bundles  # noqa: F401  # imported before the first job, not in it
    with socket.socket(fileno=int(arguments[0])) as connection:
        for job in _jobs(connection):
            # only preparations measure, and so take turns
            with _turn(job) if "package" in job else contextlib.nullcontext():
                if not _say(connection, {"started": True}):
                    break
                if "check" in job:
                    answer = _check(job["check"])
                elif "bundle" in job:
                    answer = _take_over(job)
                else:
                    answer = _prepare(job, connection)
            # Exiting releases the memory of a large model; the next job starts another process.
            leaving = _rss_bytes() > PREPARATION_RSS_MAX
            if not _say(connection, answer | {"leaving": leaving}) or leaving:
                break
    return 0


def _jobs(connection: socket.socket) -> Iterator[Job]:
    unpacker = msgpack.Unpacker(max_buffer_size=MESSAGE_BYTES_MAX)
    while True:
        try:
            data = connection.recv(RECEIVE_BYTES)
        except ConnectionError:  # closed before the worker had read everything
            return
        if not data:
            return
        unpacker.feed(data)
        yield from unpacker


def _say(connection: socket.socket, message: dict[str, Any]) -> bool:
    """Send a message. False: the worker is gone, or has given up this process."""
    try:
        connection.sendall(msgpack.packb(message))
    except ConnectionError:
        return False
    return True


def _rss_bytes() -> int:
    """Return this process's resident bytes. ru_maxrss is no substitute: it starts at the parent's maximum."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _yield_to_everybody() -> None:
    """Set up the process: ends with the worker, ignores Ctrl-C, lowest priority, first victim of the OOM
    killer."""
    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)  # the worker died before the signal was set
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    go_first(PREPARATION_OOM_SCORE)
    os.nice(NICE)
    with contextlib.suppress(OSError):  # forbidden in some containers, where nice() has to do
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Locks:
    """The open lock files of preparations in a store. The process's end releases their locks."""

    def __init__(self, directory: Path) -> None:
        """Open the files, and make those that are missing. Raises OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        names = [".lock", *(f".lock-{number}" for number in range(2, PREPARATIONS_MAX + 1)), ".lock-packages"]
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        self._opened: list[int] = []
        try:
            for name in names:
                self._opened.append(os.open(directory / name, flags, 0o644))
        except OSError:
            self.close()
            raise
        *self.turns, self.packages = self._opened

    def are_in(self, directory: Path) -> bool:
        """Whether these are the files of this directory, from which none was removed."""
        return self.directory == directory and all(os.fstat(file).st_nlink for file in self._opened)

    def close(self) -> None:
        for file in self._opened:
            os.close(file)


_LOCKS: list[_Locks] = []  # those of the last job's store, or none


def _locks_in(directory: Path) -> _Locks:
    """Return the open lock files of a directory. Raises OSError."""
    if _LOCKS and _LOCKS[0].are_in(directory):
        return _LOCKS[0]
    while _LOCKS:
        _LOCKS.pop().close()
    _LOCKS.append(_Locks(directory))
    return _LOCKS[0]


@contextlib.contextmanager
def _turn(job: Job) -> Iterator[None]:
    """Hold the locks that a preparation needs among the workers that share a store.

    The package's lock keeps a model from being prepared twice. Beside it, a job holds one of PREPARATIONS_MAX
    turns. Only the first turn is taken at once, so that preparations do not disturb each other's
    measurements. Further turns are for preparations that have waited behind slow ones, here or before
    ("beside" is the number of those). A preparation that begins anew never takes the first turn, so that a
    turn is left whatever all workers do."""
    locks = _locks_in(Path(job["store"]) / "prepared")
    turns = locks.turns[1:] if job.get("is_anew") else locks.turns
    place = int.from_bytes(hashlib.sha256(Path(job["package"]).name.encode()).digest()[:7], "big")
    fcntl.lockf(
        locks.packages, fcntl.LOCK_EX, 1, place
    )  # a lock on one byte: all packages share one lock file
    held: int | None = None
    try:
        began_ns, first = now_ns(), 1 + int(job.get("beside", 0))
        while held is None:
            count = first + (now_ns() - began_ns) // PREPARATION_SLOW_NS
            held = next(filter(_try_lock, turns[:count]), None)
            if held is None:
                time.sleep(TURN_PAUSE_S)
        yield
    finally:
        if held is not None:
            fcntl.flock(held, fcntl.LOCK_UN)
        fcntl.lockf(locks.packages, fcntl.LOCK_UN, 1, place)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Budget:
    """The bytes that a preparation may take: by the package's size, at most what the machine has free."""

    def __init__(self, package: Path) -> None:
        paths = (os.path.join(folder, name) for folder, _, names in os.walk(package) for name in names)
        self._package_bytes = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
        self._wanted_bytes = preparation_bytes(self._package_bytes)
        self._free_bytes = int(free_bytes() * PREPARATION_FREE_SHARE)
        self.bytes = min(self._wanted_bytes, self._free_bytes)

    def exceeded(self) -> dict[str, Any]:
        """Return the answer to a job that asked for more memory than its budget."""
        if self.bytes < self._wanted_bytes:
            return {
                "status": int(Status.INTERNAL),
                "text": f"this machine has too little free memory to prepare the model: it takes more than "
                f"{self._free_bytes} bytes, and would be given up to {self._wanted_bytes}",
            }
        return {
            "status": int(Status.INVALID_MODEL),
            "text": f"preparing the model takes more than {self._wanted_bytes} bytes of memory, which is the most for a "
            f"package of {self._package_bytes} bytes (CLOCKWORK_PREPARATION_BYTES on the worker allows more)",
        }


def _prepare(job: Job, connection: socket.socket) -> dict[str, Any]:
    from clockwork.models import runtime
    from clockwork.models.prepare import prepare  # importing onnx and onnxruntime takes a second

    def on_long_run() -> None:  # called by another thread, which ends before this thread sends its answer
        _say(connection, {"slow": True})

    runtime.on_long_run = on_long_run
    runtime.on_endless_run = lambda: os._exit(EXIT_ENDLESS)  # only exiting ends such an execution

    package, store = Path(job["package"]), Path(job["store"])

    def work() -> None:
        for fingerprint in job["fingerprints"]:
            prepare(package, store, fingerprint, job["page_bytes"], job["options"])

    try:
        return _within(_Budget(package), work)
    except DamagedPackage as error:
        return set_package_aside(package, error)


def _take_over(job: Job) -> dict[str, Any]:
    from clockwork.models import runtime
    from clockwork.models.bundles import take_over

    runtime.on_endless_run = lambda: os._exit(EXIT_ENDLESS)
    bundle, store = Path(job["bundle"]), Path(job["store"])
    given = (job["digest"], job["fingerprint"], job["page_bytes"], job["options"])
    return _within(_Budget(bundle), lambda: take_over(bundle, store, *given))


def _within(budget: _Budget, work: Callable[[], None]) -> dict[str, Any]:
    """Do the work of a job within a budget of memory. Returns the answer. Raises DamagedPackage."""
    try:
        with bounded_memory(budget.bytes):
            work()
    except DamagedPackage:
        raise
    except InvalidModel as error:
        if lacked_memory(str(error), budget.bytes):
            return budget.exceeded()
        return {"status": int(Status.INVALID_MODEL), "text": str(error)}
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return budget.exceeded()
        return {"status": int(Status.INTERNAL), "text": f"the prepared model cannot be stored: {error}"}
    except MemoryError:
        return budget.exceeded()
    return {"status": int(Status.OK), "text": ""}


def set_package_aside(package: Path, error: DamagedPackage) -> dict[str, Any]:
    """Move a damaged package aside, so that it is fetched again. Returns the job's answer."""
    try:
        set_aside(package)
    except OSError as second:
        return {"status": int(Status.INTERNAL), "text": f"{error}, and it cannot be set aside: {second}"}
    return {"status": int(Status.INTERNAL), "text": str(error), "refetch": True}


def _check(directories: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Compare stored models with their checksums (see worker.checks). Returns the job's answer."""
    damage = {
        directory: found
        for directory, checksums in directories.items()
        if (found := find_damage(Path(directory), checksums, Pace(CHECK_BUSY_SHARE)))
    }
    return {"status": int(Status.OK), "text": "", "damage": damage}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
