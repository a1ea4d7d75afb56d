"""Loads the modules of a program on a CUDA device, and checks every kernel before its first launch.

The driver calls here stall a GPU that serves, or take long. They are made when a model is prepared, never in
an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from clockwork.device._cudriver import CudaError, CudaKernel, DriverTable
from clockwork.device.cuda_memory import CardInfo, DeviceMemory, target_of, version_text
from clockwork.errors import InvalidModel
from clockwork.formats.durable import write_durably
from clockwork.formats.program import POINTERS, Launch, Program
from clockwork.formats.targets import choose, describe_mismatch

UNASKED_SHARED_BYTES = 48 << 10
"""Bytes of shared memory, static and dynamic, that a block may use without opting in."""

Kernels: TypeAlias = dict[tuple[int, str], CudaKernel]  # Kernels by module and name

_ADDRESSES = (*POINTERS, "workspace", "table")
_ARGUMENT_BYTES = {**dict.fromkeys((*_ADDRESSES, "i64"), 8), "i32": 4, "f32": 4, "size": 4}


def find_modules(
    table: DriverTable, card: CardInfo, program: Program, directory: Path
) -> tuple[str, list[Path]]:
    """Return the target of a stored program that the device runs, and the files of its modules.

    The call stalls no execution, but compiling PTX takes seconds. Raises OSError; CudaError naming the
    module; InvalidModel if the device runs no target, or its driver is too old.
    """
    device = target_of(card)
    chosen = choose(program.targets, device)
    if chosen is None:
        raise InvalidModel(f"{directory}: {describe_mismatch(program.targets, device)}")
    target = program.targets[chosen.name]
    needed = target.ptx_driver if chosen.is_ptx else target.driver
    if needed > table.version:
        what = f"the PTX of {chosen.name}, which is all that runs on {device}," if chosen.is_ptx else "it"
        raise InvalidModel(
            f"{directory}: {what} needs a driver for CUDA {version_text(needed)}, this one is for "
            f"{version_text(table.version)}"
        )
    if not chosen.is_ptx:
        return chosen.name, [directory / path for path in target.modules]
    return chosen.name, [_linked(table, device, directory / path) for path in target.ptx]


def load_modules(memory: DeviceMemory, paths: Iterable[Path]) -> list[Any]:
    """Load modules. Raises OSError; CudaError naming the module."""
    modules: list[Any] = []
    for path in paths:
        try:
            modules.append(memory.load_module(path))
        except CudaError as error:
            for module in modules:
                memory.unload_module(module)
            raise CudaError(f"{path.name}: {error}", error.code) from None
    return modules


def _linked(table: DriverTable, device: str, ptx: Path) -> Path:
    """Return the cubin that the driver compiles from PTX, which takes seconds.

    The cubin is kept beside the PTX, with its checksum in its name, for later loads with the same driver. The
    driver's own cache may forget it."""
    stem = f"{ptx.name}-{device}-{table.version}-"
    for kept in _kept(ptx, stem):
        with suppress(OSError):
            if kept.name == _name_of(stem, kept.read_bytes()):
                return kept
    try:
        cubin = table.link(ptx.read_bytes())
    except CudaError as error:
        raise CudaError(f"{ptx.name}: {error}", error.code) from None
    made = ptx.with_name(_name_of(stem, cubin))
    write_durably(made, cubin)
    for kept in _kept(ptx, f"{ptx.name}-{device}-"):
        if kept != made:
            kept.unlink(missing_ok=True)  # the cubin is damaged, or from another driver
    return made


def _kept(ptx: Path, stem: str) -> Iterator[Path]:
    return (path for path in sorted(ptx.parent.iterdir()) if path.name.startswith(stem))


def _name_of(stem: str, cubin: bytes) -> str:
    return f"{stem}{hashlib.sha256(cubin).hexdigest()}.cubin"


def find_kernels(
    table: DriverTable,
    memory: DeviceMemory,
    card: CardInfo,
    modules: Sequence[Any],
    launches: Iterable[Launch],
) -> Kernels:
    """Return the kernels of these launches, set up so that not even a first launch stalls.

    Raises CudaError; InvalidModel for a launch that the device would refuse."""
    by_kernel: dict[tuple[int, str], list[Launch]] = {}
    for launch in launches:
        by_kernel.setdefault((launch.module, launch.kernel), []).append(launch)
    found: Kernels = {}
    for (module, name), launched in by_kernel.items():
        try:
            kernel = memory.function(modules[module], name)
            _check(table, card, kernel, launched)
        except CudaError as error:
            raise CudaError(f"kernel {name!r}: {error}", error.code) from None
        found[module, name] = kernel
    table.reserve_local(max((table.local_bytes(kernel) for kernel in found.values()), default=0))
    return found


def _check(table: DriverTable, card: CardInfo, kernel: CudaKernel, launches: Sequence[Launch]) -> None:
    """Check that the device can run every launch of a kernel. Raises InvalidModel."""
    name = launches[0].kernel
    most_threads, static, registers = table.needs(kernel)
    threads = max(launch.block[0] * launch.block[1] * launch.block[2] for launch in launches)
    if threads > most_threads:
        raise InvalidModel(
            f"kernel {name!r} is launched in blocks of {threads} threads; it takes {registers} registers a thread, and "
            f"runs in blocks of at most {most_threads} on this device ({card.name})"
        )
    dynamic = max(launch.shared for launch in launches)
    if static + dynamic > card.shared_bytes:
        raise InvalidModel(
            f"kernel {name!r} takes {static + dynamic} bytes of shared memory a block, {static} of its own and {dynamic} "
            f"by its launch; this device ({card.name}) has {card.shared_bytes}"
        )
    if (sizes := table.parameters(kernel)) is not None:
        for launch in launches:
            _check_parameters(launch, sizes)
    if dynamic and static + dynamic > UNASKED_SHARED_BYTES:
        table.allow_shared(kernel, dynamic)


def _check_parameters(launch: Launch, sizes: Sequence[int]) -> None:
    if len(launch.args) != len(sizes):
        raise InvalidModel(
            f"kernel {launch.kernel!r} has {len(sizes)} parameters, and is launched with {len(launch.args)} arguments"
        )
    for index, (argument, size) in enumerate(zip(launch.args, sizes, strict=True)):
        given = _ARGUMENT_BYTES[argument.kind]
        if size > given or (argument.kind in _ADDRESSES and size != given):
            raise InvalidModel(
                f"parameter {index} of kernel {launch.kernel!r} has {size} bytes, and its argument is "
                f"{argument.kind!r}, of {given}"
            )
