"""Runs kernels that end their process, each in a child process, and collects their messages.

    python -m tests.emulation.forked MODULE KERNEL...

A program of its own, because of the sanitizers: it runs each kernel on 64 floats, and prints a JSON object
with the text that each wrote to stderr.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clockwork.models.compile.host import HostModule
from tests.emulation.run import Buffer

FLOATS = 64


def last_words(code: HostModule, kernel: str, threads: int, arguments: Sequence[Any] = ()) -> str:
    """Return the text that a launch writes to stderr before the process ends; "" if the launch returns.

    Without arguments: on 64 floats.
    """
    with tempfile.TemporaryFile() as written:
        child = os.fork()
        if not child:
            faulthandler.disable()  # faulthandler would write to another file
            os.dup2(written.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            buffer = Buffer(4 * FLOATS)
            buffer.write(bytes(4 * FLOATS))
            buffer.open(0, buffer.size)
            given = arguments or [ctypes.c_void_p(buffer.address)]
            code.run(kernel, (1, 1, 1), (threads, 1, 1), given)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        written.seek(0)
        said = written.read().decode(errors="replace")
        assert bool(status) == bool(said), (kernel, status, said)
        return said


if __name__ == "__main__":
    loaded = HostModule(Path(sys.argv[1]).read_bytes())
    print(json.dumps({kernel: last_words(loaded, kernel, FLOATS) for kernel in sys.argv[2:]}))
