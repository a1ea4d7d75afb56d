"""Compiles many models in little time: each process that needs the compiler is a fork of one that has
imported it.

A test starts a process with the compiler's environment, and asks it for the outcomes of many names.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

from clockwork.config.models import bare_environment
from clockwork.models.compile import compiler
from tests.emulation import modules


class Forked:
    """The part of subprocess.Popen that the compiler uses, for the process that lowers a variant."""

    def __init__(self, command: Sequence[str], *, stderr: IO[str], **_: Any) -> None:
        reading, writing = os.pipe()
        self._running = True
        self._child = os.fork()
        if not self._child:
            os.dup2(writing, 1)
            os.dup2(stderr.fileno(), 2)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            status = 1
            try:
                status = importlib.import_module("clockwork.models.compile.lower").main(command[-1])
                sys.stdout.flush()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            os._exit(status)
        os.close(writing)
        self.stdout = os.fdopen(reading)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()

    def wait(self) -> int:
        self._running = False
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])

    def kill(self) -> None:
        if self._running:
            os.kill(self._child, signal.SIGKILL)


def in_a_fork(function: Callable[[], Any], limit_s: int, failed: Callable[[str], Any]) -> Any:
    """Return a function's result, as JSON holds it, from a forked process; if the process fails, the result
    of ``failed`` for a sentence."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(limit_s)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            found = function()
        except BaseException as error:
            found = failed(f"{type(error).__name__}: {error}")
        with os.fdopen(writing, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(text) if text else failed(f"the process ended with {status}")


One = TypeVar("One")


def each(
    chosen: Sequence[One], function: Callable[[One], Any], limit_s: int, failed: Callable[[str], Any]
) -> Iterator[tuple[One, Any]]:
    """Call in_a_fork() for each, several at a time, in their order.

    From then on the compiler lowers in forks.
    """
    forking = types.SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    compiler.subprocess = forking  # type: ignore[attr-defined]
    importlib.import_module("clockwork.models.compile.lower")  # imported once, for all forks
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from zip(
            chosen, pool.map(lambda one: in_a_fork(lambda: function(one), limit_s, failed), chosen)
        )


def ask(module: str, arguments: Iterable[str]) -> Iterator[tuple[Any, Any]]:
    """Yield names and outcomes as they come from ``python -m module --run arguments``, which prints both as a
    line of JSON."""
    environment = bare_environment(
        PYTHONPATH=os.pathsep.join(filter(None, sys.path)), **compiler.CHILD_ENVIRONMENT
    )
    with subprocess.Popen(
        [sys.executable, "-m", module, "--run", *arguments],
        stdout=subprocess.PIPE, text=True, env=environment, cwd=modules.ROOT,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            name, result = json.loads(line)
            yield name, result
    assert child.returncode == 0, child.returncode
