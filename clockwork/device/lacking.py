"""Whether a model could not be prepared or opened for want of something that the process did not get: memory, or files.

Then the model is not at fault, and may be made ready at another time."""

from __future__ import annotations

import errno
import re

_ERRNOS = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE})

_NO_MEMORY = re.compile(r"bad_alloc|bad allocation|bfc_arena|Failed to allocate memory")
"""In the messages of ONNX Runtime about memory that the system did not give it."""

_REFUSED = re.compile(
    r"needs more memory than it may take: .* of at most (\d+)|bytes are asked for, .* at most (\d+) may be"
)
"""In those of a device (csrc/device/workspace.cpp, device/_cpu.pyx) about memory that it did not give."""


def lacked_memory(text: str, limit_bytes: int = 0) -> bool:
    """Whether a message of ONNX Runtime or of a CPU device says that there was no memory.

    limit_bytes: of the process. A device that gives an execution less has a limit of its own, which the message names."""
    refused = _REFUSED.search(text)
    if refused is not None:
        return int(refused[1] or refused[2]) >= limit_bytes
    return _NO_MEMORY.search(text) is not None


def is_lack(error: OSError) -> bool:
    """Whether the system had no memory, or no more open files."""
    return error.errno in _ERRNOS
