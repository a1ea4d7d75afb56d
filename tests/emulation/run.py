"""A program of its own: runs a package's programs for the host, emulated programs included, with guarded
memory.

    python -m tests.emulation.run PACKAGE INPUTS.npz OUTPUTS.npz

Under AddressSanitizer (LD_PRELOAD), a launch may access only the memory to which its arguments point, and of
that only the bytes that its kernel declares: not the rest of the workspace, nor other weights, nor memory
beside a buffer. The weights must be the same afterwards. Arrays are named by their numbers, in the program's
order. Prints the seconds that the launches took.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.formats.prepared import WEIGHTS_FILE, TensorSpec
from clockwork.formats.program import HOST, Argument, Program, Variant, read_program
from clockwork.models.compile.host import HostExecutor
from clockwork.wire.tensors import Array, numpy_dtype
from tests.emulation.modules import heads_of

ALIGNMENT = 256
"""Alignment of a buffer, in bytes: equals that of a card's allocations."""
UNWRITTEN = 0xFF
"""Fill byte of fresh memory: NaN in every type of floating-point numbers."""
ENTRY_BYTES = 8
"""Bytes of an entry of the table of addresses and sizes."""


class Buffer:
    """Memory of exactly so many bytes, all of which are inaccessible at first."""

    def __init__(self, size: int) -> None:
        self._libc = ctypes.CDLL(None)
        self.size = max(1, size)
        place = ctypes.c_void_p()
        assert self._libc.posix_memalign(ctypes.byref(place), ALIGNMENT, ctypes.c_size_t(self.size)) == 0
        assert place.value is not None
        self.address = place.value
        ctypes.memset(self.address, UNWRITTEN, self.size)
        self.guard(0, self.size)

    def open(self, offset: int, size: int) -> None:
        self._mark("__asan_unpoison_memory_region", offset, size)

    def guard(self, offset: int, size: int) -> None:
        self._mark("__asan_poison_memory_region", offset, size)

    def _mark(self, function: str, offset: int, size: int) -> None:
        assert 0 <= offset <= offset + size <= self.size, (offset, size, self.size)
        marking = getattr(self._libc, function, None)  # the function is missing without the sanitizer
        if marking is not None:
            marking(ctypes.c_void_p(self.address + offset), ctypes.c_size_t(size))

    def write(self, data: bytes) -> None:
        self.open(0, self.size)
        ctypes.memmove(self.address, data, len(data))
        self.guard(0, self.size)

    def read(self) -> bytes:
        self.open(0, self.size)
        data = ctypes.string_at(self.address, self.size)
        self.guard(0, self.size)
        return data


class Guarded(HostExecutor):
    """Runs launches like Executor, each with access to its own arguments alone."""

    def __init__(self, program: Program, directory: Path) -> None:
        super().__init__(program, directory)
        self._extents: dict[tuple[int, str], tuple[int, ...]] = {}
        for number, path in enumerate(program.targets[HOST].modules):
            for name, head in heads_of((directory / path).with_suffix(".cu").read_text()).items():
                self._extents[number, name] = head.extents
        content = (directory / WEIGHTS_FILE).read_bytes() if program.weights else b""
        self._held = Buffer(len(content))
        self._held.write(content)
        self._hash = hashlib.sha256(content).digest()

    def _launch(
        self, variant: Variant, inputs: Sequence[Array], outputs: Sequence[Array], sizes: Sequence[int]
    ) -> None:
        workspace = Buffer(variant.workspace)
        given = [Buffer(array.nbytes) for array in inputs]
        for buffer, array in zip(given, inputs, strict=True):
            buffer.write(array.tobytes())
        made = [Buffer(array.nbytes) for array in outputs]

        table = Buffer(ENTRY_BYTES * len(variant.table))

        def place(argument: Argument) -> tuple[Buffer, int]:
            offset = int(argument.value)
            match argument.kind:
                case "weight":
                    return self._held, self._program.weights[argument.index].offset + offset
                case "input":
                    return given[argument.index], offset
                case "output":
                    return made[argument.index], offset
                case "table":
                    return table, ENTRY_BYTES * offset
                case "workspace":
                    return workspace, offset
                case _:
                    raise AssertionError(argument)

        entries = np.zeros(len(variant.table), np.uint64)
        for number, entry in enumerate(variant.table):
            if entry.kind == "size":
                entries[number] = sizes[int(entry.value)]
            else:
                buffer, offset = place(entry)
                entries[number] = buffer.address + offset
        table.write(entries.tobytes())
        for launch in variant.launches:
            arguments: list[Any] = []
            touched: list[tuple[Buffer, int, int]] = []
            extents = self._extents[launch.module, launch.kernel]
            for argument, extent in zip(launch.args, extents, strict=True):
                buffer, offset = place(argument)
                arguments.append(ctypes.c_void_p(buffer.address + offset))
                touched.append((buffer, offset, ENTRY_BYTES if buffer is table else extent))
                resolved = variant.resolved(argument)
                if buffer is table and resolved.kind != "size":
                    touched.append((*place(resolved), extent))
            for buffer, offset, size in touched:
                buffer.open(offset, size)
            self._codes[launch.module].run(launch.kernel, launch.grid, launch.block, arguments)
            for buffer, offset, size in touched:
                buffer.guard(offset, size)
        for buffer, array in zip(made, outputs, strict=True):
            array[...] = np.frombuffer(buffer.read()[: array.nbytes], array.dtype).reshape(array.shape)
        for buffer, array in zip(given, inputs, strict=True):
            assert buffer.read()[: array.nbytes] == array.tobytes(), "a kernel has changed an input"
        if self._program.weights:
            assert hashlib.sha256(self._held.read()).digest() == self._hash, "a kernel has changed a weight"


def read_arrays(path: Path, specs: Sequence[TensorSpec]) -> list[Array]:
    """Read arrays by number. np.load() drops the names of bfloat16 and similar types."""
    with np.load(path) as file:
        found = [file[str(number)] for number in range(len(specs))]
    return [
        array.view(numpy_dtype(spec.dtype)) if array.dtype.kind == "V" else array
        for array, spec in zip(found, specs, strict=True)
    ]


def main(package: str, source: str, target: str) -> None:
    directory = Path(package)
    program = read_program(directory)
    executor = Guarded(program, directory)
    inputs = read_arrays(Path(source), program.inputs)
    begin = time.perf_counter()
    outputs = executor.run(inputs)
    print(f"{time.perf_counter() - begin:.1f}")
    np.savez(target, **{str(number): array for number, array in enumerate(outputs)})


if __name__ == "__main__":
    main(*sys.argv[1:4])
