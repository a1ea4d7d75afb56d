"""Disks and limits on which writing fails."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size_bytes: int) -> Iterator[Path]:
    """A new directory that is a file system of this size. Skips the test where none can be mounted."""
    place.mkdir()
    try:
        mount(place, f"size={size_bytes}")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        why = str(getattr(error, "stderr", "") or error).strip()
        pytest.skip(f"a file system of its own cannot be mounted here: {why}")
    try:
        yield place
    finally:
        # A session of ONNX Runtime whose end Python has not noticed yet still maps its file.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def mount(place: Path, options: str) -> None:
    """Mount a file system of memory, or change its options with "remount,...". Raises CalledProcessError."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    subprocess.run(command, capture_output=True, text=True, check=True)


@contextmanager
def small_files(size_bytes: int) -> Iterator[Callable[[], None]]:
    """Have the kernel refuse this process, and those that it starts, to make a file larger than this. Yields
    a function that ends it before the block does.

    Python would keep truncated files of the modules that it imports meanwhile.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = writes_none

    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield lift
    finally:
        lift()
