"""Runs an emulated package in a process of its own, under the sanitizers that its modules were built with."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clockwork.formats.program import read_program
from clockwork.wire.tensors import Array
from tests.emulation.run import read_arrays

RUN_S = 1500.0
"""Time limit for a network."""


class Finding(Exception):
    """An error of a sanitizer, of the emulation, or of the process's end."""


@functools.cache
def sanitizer() -> str:
    """Return the path of AddressSanitizer's library, or "" where g++ has none."""
    found = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if os.path.isabs(found) else ""


def environment(stacks: bool = True) -> dict[str, str]:
    """Return the environment of a process under the sanitizers. stacks: print the source lines of each
    finding's stack, which takes a second."""
    stdcpp = subprocess.run(
        ["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        **os.environ,
        "LD_PRELOAD": f"{sanitizer()} {stdcpp}",
        # Python and NumPy keep much until the end on purpose.
        "ASAN_OPTIONS": f"detect_leaks=0:exitcode=99:symbolize={int(stacks)}",
        "UBSAN_OPTIONS": f"print_stacktrace={int(stacks)}",
        "PYTHONMALLOC": "malloc",
    }


def run(package: Path, inputs: Sequence[Array], sanitised: bool = True) -> tuple[list[Array], float]:
    """Return the outputs, and the seconds that the launches took. Raises Finding."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "inputs.npz", Path(name) / "outputs.npz"
        np.savez(source, **{str(number): array for number, array in enumerate(inputs)})
        done = subprocess.run(
            [sys.executable, "-m", "tests.emulation.run", str(package), str(source), str(target)],
            capture_output=True, text=True, timeout=RUN_S,
            env=environment() if sanitised else None, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        if done.returncode:
            raise Finding(done.stderr[-6000:])
        outputs = read_program(package).outputs
        return read_arrays(target, outputs), float(done.stdout.split()[-1])
