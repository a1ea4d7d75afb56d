"""Locks between processes, and the wait for one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clockwork.system.locks import await_lock, lock_file
from tests.patience import PATIENCE_S

HOLDER = """
import sys
from pathlib import Path
from clockwork.system.locks import lock_file
lock_file(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_locked_file_is_refused_until_its_holder_closes_it(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        lock_file(tmp_path / "lock")
    os.close(held)
    os.close(lock_file(tmp_path / "lock"))


def test_a_lock_is_taken_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    reading, writing = os.pipe()
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        found: list[int] = []
        thread = threading.Thread(
            target=lambda: found.append(await_lock(path, lambda: False, reading, lambda: None, 60.0))
        )
        thread.start()
        assert thread.is_alive()
        holder.kill()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        with pytest.raises(BlockingIOError):
            lock_file(path)
        os.close(found[0])
    finally:
        holder.kill()
        holder.communicate()
        os.close(reading)
        os.close(writing)


def test_a_wait_ends_when_it_is_told_to(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock")
    reading, writing = os.pipe2(os.O_NONBLOCK)
    is_stopped, looked = threading.Event(), threading.Event()
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(
            await_lock(tmp_path / "lock", is_stopped.is_set, reading, looked.set, 0.01)
        )
    )
    thread.start()
    assert looked.wait(PATIENCE_S), "the holder is looked at"
    os.write(writing, b"x")  # a wake for another reason
    is_stopped.set()
    os.write(writing, b"x")
    thread.join(PATIENCE_S)
    assert found == [-1]
    for descriptor in (held, reading, writing):
        os.close(descriptor)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await_lock(tmp_path / "nowhere" / "lock", lambda: True, 0, lambda: None, 60.0)
