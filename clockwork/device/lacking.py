"""Tells whether preparing or opening a model failed because memory or open files ran out.

Such a model is not at fault, and may be prepared at another time."""

from __future__ import annotations

import errno
import re

_ERRNOS = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE})

_NO_MEMORY = re.compile(r"bad_alloc|bad allocation|bfc_arena|Failed to allocate memory")
"""The texts in ONNX Runtime's messages about memory that the system refused."""

_REFUSED = re.compile(
    r"needs more memory than it may take: .* of at most (\d+)|bytes are asked for, .* at most (\d+) may be"
)
"""The texts in messages of a device (csrc/device/workspace.cpp, device/_cpu.pyx) that refused memory."""


def lacked_memory(text: str, limit_bytes: int = 0) -> bool:
    """Whether a message of ONNX Runtime or of a CPU device says that there was no memory.

    limit_bytes: the process's limit. A device's smaller limit for an execution is named in the message."""
    refused = _REFUSED.search(text)
    if refused is not None:
        return int(refused[1] or refused[2]) >= limit_bytes
    return _NO_MEMORY.search(text) is not None


def is_lack(error: OSError) -> bool:
    """Whether an error means that memory or open files ran out."""
    return error.errno in _ERRNOS
