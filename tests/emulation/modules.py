"""Program packages whose kernels for a GPU run on this machine. The CUDA C that NVRTC compiled is compiled by
g++ with tests/native/host_kernels.h, and replaces the cubin. Launch lists, weights and offsets stay as they
are."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clockwork.formats.program import HOST, Program, TargetModules, read_program, write_program
from clockwork.models.compile.table import ENTRY_SUFFIX
from clockwork.models.compile.widths import ELEMENT_BYTES

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "tests" / "native" / "host_kernels.h"
COMPILE_S = 600.0
"""Time limit for a file, on a busy machine."""

CUDA_C = ["-std=c++20", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-x", "c++", "-include", str(HEADER),
          "-I", str(HEADER.with_suffix(""))]  # fmt: skip
QUICK = ("-O1",)
SANITISED = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all",
             "-fsanitize=address,alignment,bounds,shift,integer-divide-by-zero")  # fmt: skip

_NAMESPACE = re.compile(r"^(?=namespace n\d+ \{$)", re.MULTILINE)
_HEAD = re.compile(r"__global__ void __launch_bounds__\((\d+)\) (\w+)\(([^()]*)\) \{")
_POINTER = re.compile(r"(?:const )?(\w[\w ]*?)\* data\d+_(\d+)")
_FROM_TABLE = re.compile(rf"^  (\w[\w ]*?[ *]) ?(\w+) = \(.*\)\*\2{ENTRY_SUFFIX};$", re.MULTILINE)


class CannotBuild(Exception):
    """The compiler rejects a kernel."""


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """A kernel's declaration."""

    threads_max: int
    extents: tuple[
        int, ...
    ]  # for each parameter, the bytes behind the pointer that it is, or that it finds in the table; 0: a size


def heads_of(source: str) -> dict[str, Head]:
    """Return the kernels' declarations in CUDA C, as the compiler writes them."""
    found = {}
    for body in _NAMESPACE.split(source)[1:]:
        ((threads, name, parameters),) = _HEAD.findall(body)
        from_table = {variable: f"{kind}{variable}" for kind, variable in _FROM_TABLE.findall(body)}
        extents = []
        for parameter in parameters.split(", "):
            variable = parameter.rpartition("*")[2].strip().removesuffix(ENTRY_SUFFIX)
            pointer = _POINTER.fullmatch(
                from_table.get(variable, parameter).replace("*", "* ").replace("  ", " ")
            )
            is_size = pointer is None and variable in from_table
            assert pointer or is_size, parameter
            extents.append(int(pointer[2]) * ELEMENT_BYTES[pointer[1]] if pointer else 0)
        found[name] = Head(int(threads), tuple(extents))
    return found


def build(source: str, target: Path, flags: Sequence[str] = QUICK, jobs: int = 1) -> None:
    """Make a shared object of all kernels in a module's CUDA C. Raises CannotBuild.

    jobs: compilers at a time, among which the kernels are divided.
    """
    head, *bodies = _NAMESPACE.split(source)
    jobs = min(jobs, len(bodies))
    parts = [bodies[number::jobs] for number in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(
            lambda number: _compile(head, parts[number], target.with_suffix(f".{number}.o"), flags), range(jobs)
        ))  # fmt: skip
    _run(["g++", "-shared", *flags, *map(str, objects), "-o", str(target)])


def _compile(head: str, bodies: Sequence[str], target: Path, flags: Sequence[str]) -> Path:
    entries = []
    for body in bodies:
        ((threads, name, _),) = _HEAD.findall(body)
        namespace = body.split(maxsplit=2)[1]
        entries.append(f"namespace {namespace} {{ CW_HOST_KERNEL_WITH({name}, 32, 0, {threads}) }}\n")
    text = target.with_suffix(".cu")
    text.write_text("\n".join([head, *bodies, *entries]))
    half = ["-mf16c"] if platform.machine() == "x86_64" else []
    _run(["g++", *CUDA_C, *half, *flags, "-c", str(text), "-o", str(target)])
    return target


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
    if done.returncode:
        raise CannotBuild(done.stderr[:2000])


def emulated(
    package: Path, sources: Path, architecture: str, made: Path, flags: Sequence[str] = QUICK, jobs: int = 0
) -> Program:
    """Make a copy of a package, in the new directory ``made``, whose programs for the host are those for an
    architecture.

    sources: the CUDA C of the package's modules (Options.sources). It is put beside the modules of the copy.
    """
    program = read_program(package)
    (made / "modules").mkdir(parents=True)
    paths = []
    for path in program.targets[architecture].modules:
        kept = sources / Path(path).with_suffix(".cu").name
        source = kept.read_text()
        heads = heads_of(source)
        for variant in program.variants:
            for launch in variant.launches:
                if variant.target == architecture and launch.kernel in heads:
                    head = heads[launch.kernel]
                    x, y, z = launch.block
                    assert x * y * z <= head.threads_max, launch
                    assert len(head.extents) == len(launch.args), launch
        target = made / Path(path).with_suffix(".so")
        build(source, target, flags, jobs or len(os.sched_getaffinity(0)))
        shutil.copyfile(kept, target.with_suffix(".cu"))
        paths.append(str(target.relative_to(made)))
    for path in program.files:
        if not path.startswith("modules/"):
            shutil.copyfile(package / path, made / path)
    changed = dataclasses.replace(
        program,
        targets={HOST: TargetModules(0, tuple(paths))},
        variants=tuple(
            dataclasses.replace(variant, target=HOST)
            for variant in program.variants
            if variant.target == architecture
        ),
        files={path: "" for path in program.files if not path.startswith("modules/")},
    )
    return write_program(made, changed)
