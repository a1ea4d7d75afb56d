"""Failures that come from a lack of memory, and not from a model."""

from __future__ import annotations

import errno
import threading

import numpy as np
import pytest

from clockwork.device.lacking import is_lack, lacked_memory
from clockwork.models import runtime
from clockwork.models.runtime import ModelSession, RunError
from clockwork.system.limits import bounded_memory
from tests.device import wild

MIB = 1 << 20


def test_the_runtime_says_that_it_was_given_no_memory() -> None:
    session = ModelSession(wild.expand().model.SerializeToString(), optimise=False)
    with bounded_memory(50 * MIB), pytest.raises(RunError) as failure:
        session.run([np.array([100 * MIB], np.int64)])
    assert lacked_memory(str(failure.value))


def test_a_thread_for_which_there_is_no_memory_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's stack takes 2 MiB or more: waiting threads here reuse the stacks of threads that have
    ended."""
    monkeypatch.setattr(runtime, "_WATCH", runtime._Watch())  # its thread starts with its first execution
    session = ModelSession(wild.expand().model.SerializeToString(), optimise=False)
    is_over = threading.Event()
    waiting = [threading.Thread(target=is_over.wait, daemon=True) for _ in range(8)]
    for thread in waiting:
        thread.start()
    with bounded_memory(MIB), pytest.raises(MemoryError):
        session.run([np.array([1], np.int64)])
    is_over.set()
    for thread in waiting:
        thread.join()


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("std::bad_alloc", True),
        ("the execution needs more memory than it may take: 60 bytes beside 0 of at most 100", False),
        ("the execution needs more memory than it may take: 60 bytes beside 0 of at most 200", True),
        ("Exception: 60 bytes are asked for, 0 are taken, and at most 100 may be", False),
        ("Exception: 60 bytes are asked for, 0 are taken, and at most 200 may be", True),
        ("index out of range", False),
    ],
)
def test_a_device_that_gives_less_than_the_process_may_have_names_its_own_limit(
    text: str, lacks: bool
) -> None:
    assert lacked_memory(text, 200) == lacks


def test_want_of_memory_or_files_is_told_from_a_file_that_is_not_there() -> None:
    assert is_lack(OSError(errno.ENOMEM, "no memory"))
    assert is_lack(OSError(errno.EMFILE, "too many files"))
    assert not is_lack(FileNotFoundError(errno.ENOENT, "no file"))
