"""The handle on the preparation process: however the process ends, every job ends."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from clockwork.system.limits import open_descriptors
from clockwork.wire.messages import Status
from clockwork.worker import preparation
from clockwork.worker.preparation import JobDone, PreparationProcess
from tests.patience import PATIENCE_S, eventually

# A stand-in that does as its jobs say; the real one is tried in tests/process.
CHILD = """
import msgpack, os, signal, socket, sys
def hang():
    while True:
        signal.pause()
connection = socket.socket(fileno=int(sys.argv[1]))
unpacker = msgpack.Unpacker()
while data := connection.recv(65536):
    unpacker.feed(data)
    for job in unpacker:
        if "never" in job or ("leave" in job and not os.path.exists(job["leave"])):
            open(job.get("leave", os.devnull), "w").close()
            os._exit(0)
        connection.sendall(msgpack.packb({"started": True}))
        if "signal" in job:
            os.kill(os.getpid(), job["signal"])
        if "exit" in job:
            os._exit(job["exit"])
        if "hang" in job:
            hang()
        leaving = "leaving" in job
        connection.sendall(msgpack.packb({"status": job["status"], "text": str(os.getpid()), "leaving": leaving}))
        if leaving:
            hang()
"""


class Side:
    def __init__(self, program: str = CHILD, **settings: int) -> None:
        self._woken = threading.Semaphore(0)
        self.process = PreparationProcess(self._woken.release, [sys.executable, "-c", program], **settings)

    def end_of(self, job_id: int) -> JobDone:
        assert self._woken.acquire(timeout=PATIENCE_S)
        (done,) = self.process.poll()
        assert done.job_id == job_id
        return done


def children() -> set[int]:
    """Descriptors of this process, zombies included.

    Libraries may have some of their own (multiprocessing's tracker).
    """
    return {
        int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()
    }


@pytest.fixture
def make() -> Iterator[Callable[..., Side]]:
    made: list[Side] = []
    before = children()

    def new(**settings: Any) -> Side:
        made.append(Side(**settings))
        return made[-1]

    yield new
    for side in made:
        side.process.close()
        assert side.process.pid == 0
    assert children() <= before, "a process was left behind"


def test_one_process_serves_one_job_after_another(make: Callable[..., Side]) -> None:
    side = make()
    assert side.process.pid == 0  # the process is not started before it is needed
    side.process.submit(1, {"status": Status.OK})
    first = side.end_of(1)
    side.process.submit(2, {"status": Status.INVALID_MODEL})
    second = side.end_of(2)
    assert (first.status, second.status) == (Status.OK, Status.INVALID_MODEL)
    assert first.text == second.text == str(side.process.pid)


@pytest.mark.parametrize(
    ("job", "how"),
    [
        ({"signal": 11}, "signal 11"),
        ({"exit": 3}, "exit status 3"),
        ({"exit": 0}, "exit status 0"),
    ],
)
def test_a_crash_is_the_models_fault_and_the_next_job_gets_a_new_process(
    make: Callable[..., Side], job: dict[str, int], how: str
) -> None:
    side = make()
    side.process.submit(1, job)
    assert side.end_of(1) == JobDone(1, Status.INVALID_MODEL, f"preparation crashed ({how})")
    side.process.submit(2, {"status": Status.OK})
    assert side.end_of(2).status == Status.OK


KILLED = "the preparation process was killed, most likely because this machine ran out of memory"


def test_a_kill_comes_from_outside_and_is_not_the_models_fault(make: Callable[..., Side]) -> None:
    side = make()
    side.process.submit(1, {"signal": 9})
    assert side.end_of(1) == JobDone(1, Status.INTERNAL, KILLED)
    side.process.submit(2, {"status": Status.OK})
    assert side.end_of(2).status == Status.OK


def test_a_process_that_says_it_leaves_gets_no_other_job(make: Callable[..., Side]) -> None:
    """However long the process takes to end, it is not waited for."""
    side = make()
    side.process.submit(1, {"status": Status.OK, "leaving": 0})
    first = side.end_of(1)
    side.process.submit(2, {"status": Status.OK})
    second = side.end_of(2)
    assert (first.status, second.status) == (Status.OK, Status.OK)
    assert first.text != second.text == str(side.process.pid)


@pytest.mark.parametrize("moment", ["before it began", "before it had read all"])
def test_the_real_process_says_nothing_of_a_worker_that_has_gone(moment: str) -> None:
    """The process is killed or closed at any moment: no exception may reach the caller."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(msgpack.packb({"check": {}}))
        if moment == "before it had read all":  # unread bytes make the end a reset
            theirs.sendall(b"unread")
        ours.close()
        command = [sys.executable, "-m", "clockwork.worker.preparation", str(theirs.fileno())]
        done = subprocess.run(
            command,
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("limit_bytes", "stays"), [(1 << 20, False), (400 << 20, True)])
@pytest.mark.slow
def test_the_real_process_leaves_when_it_has_grown(
    make: Callable[..., Side], tmp_path: Path, limit_bytes: int, stays: bool
) -> None:
    """The limit applies to the process's own memory, not to the worker's."""
    program = f"""
import sys
from clockwork.worker import preparation
preparation.PREPARATION_RSS_MAX = {limit_bytes}
raise SystemExit(preparation.main(sys.argv[1:]))
"""
    held = b"x" * (500 << 20)
    side = make(program=program)
    job = {"package": "", "store": str(tmp_path), "fingerprints": [], "page_bytes": 1, "options": {}}
    side.process.submit(1, job)
    assert side.end_of(1) == JobDone(1, Status.OK, "")
    assert bool(side.process.pid) == stays
    assert held


def test_a_job_that_met_a_process_on_its_way_out_is_tried_in_another(
    make: Callable[..., Side], tmp_path: Path
) -> None:
    side = make()
    side.process.submit(1, {"status": Status.OK, "leave": str(tmp_path / "left")})
    assert side.end_of(1) == JobDone(1, Status.OK, str(side.process.pid))
    assert (tmp_path / "left").exists()


def test_a_job_that_no_process_begins_is_not_the_models_fault(make: Callable[..., Side]) -> None:
    side = make()
    side.process.submit(1, {"never": 0})
    text = "the preparation process left before it began, twice"
    assert side.end_of(1) == JobDone(1, Status.INTERNAL, text)


def test_a_job_that_takes_too_long_is_stopped(make: Callable[..., Side]) -> None:
    side = make(limit_ns=50_000_000)
    side.process.submit(1, {"hang": 0})
    done = side.end_of(1)
    assert (done.status, done.text) == (
        Status.INVALID_MODEL,
        "preparation took longer than 0.05 s and was stopped",
    )
    assert side.process.pid == 0


def test_cancelling_kills_the_job_it_names_and_no_other(make: Callable[..., Side]) -> None:
    side = make()
    side.process.submit(1, {"status": Status.OK})
    pid = side.end_of(1).text
    side.process.cancel(1)  # the job has ended: cancel() kills nothing
    side.process.submit(2, {"status": Status.OK})
    assert side.end_of(2).text == pid
    side.process.submit(3, {"hang": 0})
    eventually(lambda: side.process._current == 3, "the third job begins")
    side.process.cancel(2)
    side.process.cancel(3)
    assert side.end_of(3).text == KILLED


def test_a_process_without_work_leaves(make: Callable[..., Side]) -> None:
    side = make(idle_ns=1_000_000)
    side.process.submit(1, {"status": Status.OK})
    pid = int(side.end_of(1).text)
    eventually(lambda: not side.process.pid, "the process is gone")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    side.process.submit(2, {"status": Status.OK})
    assert side.end_of(2).status == Status.OK


def test_a_process_that_stays_is_there_before_its_first_job_and_after_its_last(
    make: Callable[..., Side],
) -> None:
    side = make(idle_ns=1, stays=True)
    pid = str(eventually(lambda: side.process.pid, "the process has started"))
    for job_id in (1, 2):
        side.process.submit(job_id, {"status": Status.OK})
        assert side.end_of(job_id).text == pid
    side.process.submit(3, {"status": Status.OK, "leaving": True})
    assert side.end_of(3).text == pid
    eventually(lambda: side.process.pid not in (0, int(pid)), "another has started")


def test_a_command_that_does_not_exist_ends_the_job() -> None:
    woken = threading.Event()
    process = PreparationProcess(woken.set, ["/nonexistent/python"])
    process.submit(1, {})
    assert woken.wait(PATIENCE_S)
    (done,) = process.poll()
    assert done.status == Status.INTERNAL
    assert "cannot be started" in done.text
    process.close()


def test_closing_does_not_wait_for_a_job(make: Callable[..., Side]) -> None:
    side = make()
    side.process.submit(1, {"hang": 0})
    eventually(lambda: side.process._current == 1, "the job begins")
    side.process.close()
    assert side.process.pid == 0


def test_a_turn_ends_with_its_job_and_the_lock_files_stay_open(tmp_path: Path) -> None:
    job = {"store": str(tmp_path), "package": str(tmp_path / "packages" / "a")}
    other = {**job, "package": str(tmp_path / "packages" / "b")}
    with preparation._turn(job):
        opened = open_descriptors()
        with open(tmp_path / "prepared" / ".lock", "rb") as first, pytest.raises(BlockingIOError):
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "prepared" / ".lock", "rb") as first:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with preparation._turn(other):
        assert open_descriptors() == opened


def test_a_removed_lock_file_is_made_anew_for_the_next_turn(tmp_path: Path) -> None:
    """Another worker would make it, too: a lock on a file that nobody else can open excludes nobody."""
    job = {"store": str(tmp_path), "package": str(tmp_path / "packages" / "a")}
    with preparation._turn(job):
        opened = open_descriptors()
    (tmp_path / "prepared" / ".lock").unlink()
    with preparation._turn(job):
        assert open_descriptors() == opened
        with open(tmp_path / "prepared" / ".lock", "rb") as first, pytest.raises(BlockingIOError):
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
