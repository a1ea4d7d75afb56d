"""Compile kernels in C for this machine's processor, and run a program's launches without a device.

Each kernel is exported as ``void NAME(void **args, const unsigned grid[3], const unsigned block[3])`` where
args[i] points at the value of argument i, as for cuLaunchKernel. The function runs all blocks of the launch.
For kernels in CUDA C, tests/native/host_kernels.h makes such functions with the name cw_host_NAME.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.errors import InvalidModel
from clockwork.formats.prepared import WEIGHTS_FILE
from clockwork.formats.program import HOST, Argument, Program, Variant
from clockwork.models.compile.variant import KernelSource
from clockwork.system.files import check_room
from clockwork.wire.tensors import Array, numpy_dtype

COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    "-x", "c", "-std=gnu17", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno",
    "-fno-strict-aliasing", "-fvisibility=hidden", "-w", "-Wl,--build-id=none",
)  # fmt: skip
"""Compiler flags that give equal results on every machine: baseline instruction set, no fused multiply-add.
"""


def compiler() -> str:
    """The path of a C compiler. Raises InvalidModel."""
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise InvalidModel(
        f"no C compiler ({', '.join(COMPILERS)}) is on the PATH; kernels for the host need one"
    )


def build(sources: Sequence[str], kernels: Sequence[KernelSource]) -> bytes:
    """Return a shared object of these kernels. Each source defines ``void NAME(T *, ...)``. Raises
    InvalidModel, OSError."""
    pieces = ['#define INFINITY __builtin_inff()\n#define NAN __builtin_nanf("")\n']
    for source, kernel in zip(sources, kernels, strict=True):
        pieces.append(source.replace(f"void {kernel.name}(", f"static void body_{kernel.name}("))
        kinds = ["void *"] * kernel.arguments + ["int"] * kernel.sizes
        arguments = ", ".join(f"*({kind} *)args[{index}]" for index, kind in enumerate(kinds))
        pieces.append(
            f'__attribute__((visibility("default"))) void {kernel.name}'
            "(void **args, const unsigned *grid, const unsigned *block)\n"
            f"{{ (void)grid; (void)block; body_{kernel.name}({arguments}); }}\n"
        )
    text = "\n".join(pieces)
    with tempfile.TemporaryDirectory() as directory:
        target = os.path.join(directory, "module.so")
        done = subprocess.run(
            [compiler(), *FLAGS, *_half_flags(text), "-", "-o", target, "-lm"],
            input=text,
            cwd=directory,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            check_room(Path(directory))
            raise InvalidModel(f"the C compiler rejects a kernel: {done.stderr.strip()[:1000]}")
        return Path(target).read_bytes()


def _half_flags(text: str) -> list[str]:
    """Flags for conversion of 16-bit numbers by instructions, on x86-64 since 2013, not by calls."""
    return ["-mf16c"] if "_Float16" in text and platform.machine() == "x86_64" else []


def pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)


class HostModule:
    """A module of host kernels, loaded into this process and never unloaded."""

    def __init__(self, module: bytes) -> None:
        # The file stays open: dlopen() identifies modules by their path, which the next module must not
        # reuse.
        self._descriptor = os.memfd_create("kernels")
        with open(self._descriptor, "wb", closefd=False) as file:
            file.write(module)
        self._library = ctypes.CDLL(f"/proc/self/fd/{self._descriptor}")

    def run(self, kernel: str, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> None:
        """Run a launch to its end. arguments: ctypes values; the caller owns the memory behind pointers."""
        places = (ctypes.c_void_p * max(1, len(arguments)))(
            *(ctypes.addressof(argument) for argument in arguments)
        )
        sizes = [(ctypes.c_uint * 3)(*sides) for sides in (grid, block)]
        try:
            entry = self._library[f"cw_host_{kernel}"]
        except AttributeError:
            entry = self._library[kernel]
        entry(places, *sizes)


_SCALARS: Mapping[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "f32": ctypes.c_float}


class HostExecutor:
    """Runs a package's host variants in this process, launch by launch like a device."""

    def __init__(self, program: Program, directory: Path) -> None:
        self._program = program
        self._codes = [HostModule((directory / path).read_bytes()) for path in program.targets[HOST].modules]
        self._weights = np.fromfile(directory / WEIGHTS_FILE, np.uint8) if program.weights else None

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the outputs. inputs: in the program's order, not padded. Raises InvalidModel."""
        shapes = [array.shape for array in inputs]
        variant = self._program.variant(HOST, shapes)
        if variant is None:
            raise InvalidModel(
                f"the program has no variant for inputs of {[list(shape) for shape in shapes]}"
            )
        sizes = self._program.sizes(shapes)
        assert sizes is not None, "a variant runs these shapes"
        slots = []
        for array, shape in zip(inputs, variant.shapes, strict=True):
            slot = np.zeros(shape, array.dtype)
            slot[tuple(slice(size) for size in array.shape)] = array
            slots.append(slot)
        outputs = [
            np.zeros(shape, numpy_dtype(spec.dtype))
            for spec, shape in zip(self._program.outputs, variant.output_shapes, strict=True)
        ]
        self._launch(variant, slots, outputs, sizes)
        rows = shapes[0][0] if self._program.batches else None
        cut = []
        for spec, output in zip(self._program.outputs, outputs, strict=True):
            kept = [sizes[self._program.padded.index(dim)] if dim in self._program.padded else None
                    for dim in spec.shape]  # fmt: skip
            if rows is not None:
                kept[0] = rows
            cut.append(output[tuple(slice(size) for size in kept)].copy())
        return cut

    def _launch(
        self, variant: Variant, inputs: Sequence[Array], outputs: Sequence[Array], sizes: Sequence[int]
    ) -> None:
        # NaN: a read of memory that no kernel wrote shows in the outputs
        workspace = np.full(max(1, variant.workspace), 0xFF, np.uint8)

        table = (ctypes.c_uint64 * len(variant.table))()

        def value(argument: Argument) -> Any:
            match argument.kind:
                case "weight":
                    assert self._weights is not None
                    offset = self._program.weights[argument.index].offset
                    base = self._weights.ctypes.data + offset
                case "input":
                    base = inputs[argument.index].ctypes.data
                case "output":
                    base = outputs[argument.index].ctypes.data
                case "workspace":
                    base = workspace.ctypes.data
                case "size":
                    return ctypes.c_int32(sizes[int(argument.value)])
                case "table":
                    return ctypes.c_void_p(
                        ctypes.addressof(table) + int(argument.value) * ctypes.sizeof(ctypes.c_uint64)
                    )
                case scalar:
                    return _SCALARS[scalar](argument.value)
            return ctypes.c_void_p(base + int(argument.value))

        for index, entry in enumerate(variant.table):
            table[index] = value(entry).value or 0
        for launch in variant.launches:
            arguments = [value(argument) for argument in launch.args]
            self._codes[launch.module].run(launch.kernel, launch.grid, launch.block, arguments)
