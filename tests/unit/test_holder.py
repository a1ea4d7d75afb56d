"""The holder of a data directory, as a standby sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clockwork.config.controller import HOLDER_HUNG_NS, HOLDER_STOPPED_NS
from clockwork.system.holder import HolderProcess, HolderWatch, Seen, end, look, sign
from tests.patience import PATIENCE_S, eventually

PROCESS = HolderProcess(99, 5, "pid:[1]")

SIGNS = """
import os, sys
from clockwork.system.holder import sign
sign(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT))
print("signed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("state", "limit_ns"), [("T", HOLDER_STOPPED_NS), ("t", HOLDER_STOPPED_NS), ("S", HOLDER_HUNG_NS), ("R", HOLDER_HUNG_NS), ("D", HOLDER_HUNG_NS)])  # fmt: skip
def test_a_holder_that_does_nothing_is_ended(state: str, limit_ns: int) -> None:
    watch = HolderWatch()
    assert not watch.must_end(Seen(7, PROCESS, state), 1_000)
    assert not watch.must_end(Seen(7, PROCESS, state), 1_000 + limit_ns - 1)
    assert watch.must_end(Seen(7, PROCESS, state), 1_000 + limit_ns)
    assert not watch.must_end(Seen(6, PROCESS, state), 1_000 + limit_ns), "it was touched, by whichever clock"


def test_a_holder_that_nobody_can_tell_is_left_alone() -> None:
    watch = HolderWatch()
    for now_ns in (0, 10 * HOLDER_HUNG_NS):
        assert not watch.must_end(Seen(7, None, ""), now_ns)
        assert not watch.must_end(Seen(7, PROCESS, ""), now_ns), "it is gone, or in another container"


def test_a_process_that_has_signed_is_seen_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", SIGNS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"signed\n"
        seen = look(path)
        assert seen.process is not None
        assert seen.process.pid == holder.pid
        holder.send_signal(signal.SIGSTOP)
        eventually(lambda: look(path).state == "T", "it is stopped")
        end(seen.process._replace(begun=seen.process.begun + 1))
        assert holder.poll() is None, "another process of the same number is spared"
        end(seen.process)
        assert holder.wait(PATIENCE_S) == -signal.SIGKILL
        assert look(path).state == ""
        end(seen.process)  # it has gone
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"4711", b'{"pid": 4711}', b"[" * 1000, json.dumps({"pid": 1, "begun": 5, "space": "x"}).encode(), b"\xff",
     json.dumps({"pid": "2", "begun": 5, "space": "x"}).encode(), json.dumps({"pid": 2, "begun": 5, "space": "pid:[1]"}).encode()],
)  # fmt: skip
def test_a_file_that_says_nothing_sound_names_nobody(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "lock").write_bytes(body)
    assert look(tmp_path / "lock")[1:] == (None, "")


def test_signing_replaces_what_was_written(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 900)
    sign(descriptor)
    os.close(descriptor)
    process = look(tmp_path / "lock").process
    assert process is not None
    assert process.pid == os.getpid()
