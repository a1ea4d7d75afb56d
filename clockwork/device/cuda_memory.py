"""Owners of a CUDA device's resources: its context, device memory, pinned memory and modules.

With NVIDIA's driver CuPy owns them, and the hot path uses its handles. With any other driver, such as the
tests' (docs/gpu.md), the driver's table is called directly, because CuPy always opens NVIDIA's. No action
calls this module, but preparing a model beside running actions may allocate.

An object belongs to one device. A thread calls make_current() before the other methods.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from clockwork.config import device as bounds
from clockwork.device._cudriver import (
    OUT_OF_MEMORY,
    CudaContext,
    CudaError,
    CudaKernel,
    CudaModule,
    DeviceBytes,
    DriverTable,
    PinnedBytes,
)
from clockwork.device.cuda_advice import advice, visibility
from clockwork.device.numa import near, node_of
from clockwork.errors import ConfigError
from clockwork.formats.targets import FINGERPRINT_PREFIX

Memory = TypeVar("Memory")


class DeviceMemory(Protocol):
    """Allocates on a device. A failure is a CudaError, or a MemoryError if no memory is left."""

    context: CudaContext

    def make_current(self) -> None:
        """Make this device the target of this thread's calls, also of calls by the driver's table."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        ...

    def allocate(self, size: int) -> DeviceBytes: ...
    def release(self, memory: DeviceBytes) -> None: ...
    def allocate_host(self, size: int) -> PinnedBytes: ...
    def release_host(self, memory: PinnedBytes) -> None: ...
    def load_module(self, path: Path) -> Any:
        """Load a module: a cubin, or a shared object for a device that is no GPU. May raise OSError."""
        ...

    def function(self, module: Any, name: str) -> CudaKernel: ...

    def unload_module(self, module: Any) -> None: ...
    def close(self) -> None: ...


class TableMemory:
    """DeviceMemory by the driver's own functions."""

    def __init__(self, table: DriverTable, card: CardInfo) -> None:
        self._table = table
        self._card = card
        self.context = table.retain_context(card.ordinal)

    def make_current(self) -> None:
        self._table.make_current(self.context)

    def memory_info(self) -> tuple[int, int]:
        return self._table.memory_info()

    def allocate(self, size: int) -> DeviceBytes:
        return _or_memory_error(self._table.allocate, size)

    def release(self, memory: DeviceBytes) -> None:
        self._table.release(memory)

    def allocate_host(self, size: int) -> PinnedBytes:
        with near(self._card.numa_node):
            return _or_memory_error(self._table.allocate_host, size)

    def release_host(self, memory: PinnedBytes) -> None:
        self._table.release_host(memory)

    def load_module(self, path: Path) -> CudaModule:
        return self._table.load_module(path.read_bytes())

    def function(self, module: CudaModule, name: str) -> CudaKernel:
        return self._table.function(module, name)

    def unload_module(self, module: CudaModule) -> None:
        self._table.unload_module(module)

    def close(self) -> None:
        self._table.release_context(self._card.ordinal)


class CupyMemory:
    """DeviceMemory by CuPy's objects. Each object is kept as long as its handle is used."""

    def __init__(self, table: DriverTable, card: CardInfo) -> None:
        try:
            import cupy
        except ImportError as error:
            raise ConfigError(
                f"a CUDA device needs CuPy, which is not installed here ({error}): install {_extra(table)}"
            ) from None
        if problem := _mismatch(table):
            raise ConfigError(f"cannot use CUDA device {card.ordinal} ({card.name}): {problem}")
        self._table = table
        self._cupy = cupy
        self._node = card.numa_node
        self._device = cupy.cuda.Device(card.ordinal)
        self._held: dict[DeviceBytes | PinnedBytes, Any] = {}
        with self._translated("cudaSetDevice"):
            self._device.use()
            cupy.cuda.runtime.free(0)  # creates the primary context
            self.context = CudaContext(int(cupy.cuda.driver.ctxGetCurrent()))

    def _translated(self, call: str) -> _Translated:
        return _Translated(self._cupy, call)

    def make_current(self) -> None:
        with self._translated("cudaSetDevice"):
            self._device.use()
        self._table.make_current(self.context)

    def memory_info(self) -> tuple[int, int]:
        with self._translated("cudaMemGetInfo"):
            free, total = self._device.mem_info
            return int(free), int(total)

    def allocate(self, size: int) -> DeviceBytes:
        with self._translated(f"cudaMalloc of {size} bytes"):
            # Bypasses CuPy's pool, which rounds sizes and keeps freed memory
            memory = self._cupy.cuda.Memory(size)
        found = DeviceBytes(int(memory.ptr))
        self._held[found] = memory
        return found

    def release(self, memory: DeviceBytes) -> None:
        del self._held[memory]

    def allocate_host(self, size: int) -> PinnedBytes:
        with near(self._node), self._translated(f"cudaHostAlloc of {size} bytes"):
            memory = self._cupy.cuda.PinnedMemory(size, self._cupy.cuda.runtime.hostAllocPortable)
        found = PinnedBytes(int(memory.ptr), size)
        self._held[found] = memory
        return found

    def release_host(self, memory: PinnedBytes) -> None:
        del self._held[memory]

    def load_module(self, path: Path) -> Any:
        path.stat()  # a missing file: clearer than CuPy's error
        # Not RawModule: CuPy caches its modules by path until the process ends.
        module = self._cupy.cuda.function.Module()
        with self._translated("cuModuleLoad"):
            module.load_file(str(path))
        return module

    def function(self, module: Any, name: str) -> CudaKernel:
        with self._translated("cuModuleGetFunction"):
            return CudaKernel(int(module.get_function(name).ptr))

    def unload_module(self, module: Any) -> None:
        """Unload a module at once. CuPy would unload at the last reference, which a traceback may hold too
        long."""
        handle, module.ptr = module.ptr, 0
        with self._translated("cuModuleUnload"):
            self._cupy.cuda.driver.moduleUnload(handle)

    def close(self) -> None:
        self._held.clear()


class _Translated:
    """Converts CuPy's exceptions to CudaError and MemoryError."""

    def __init__(self, cupy: Any, call: str) -> None:
        self._cupy = cupy
        self._call = call

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        cuda = self._cupy.cuda
        if isinstance(error, (cuda.memory.OutOfMemoryError, MemoryError)):
            raise MemoryError(f"{self._call}: {error}") from None
        if isinstance(error, (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError)):
            if (
                error.status == OUT_OF_MEMORY
            ):  # the driver's and the runtime's number; CuPy raises MemoryError only in its pools
                raise MemoryError(f"{self._call}: {error}") from None
            raise CudaError(f"{self._call}: {error}", error.status) from None


def _or_memory_error(allocate: Callable[[int], Memory], size: int) -> Memory:
    try:
        return allocate(size)
    except CudaError as error:
        if error.code == OUT_OF_MEMORY:
            raise MemoryError(f"{error}, asked for {size} bytes") from None
        raise


# ----- which driver, and which of its devices -----------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class CardInfo:
    """The driver's description of a device."""

    ordinal: int
    name: str
    uuid: str  # UUID as nvidia-smi prints it, without "GPU-" or "MIG-"
    bus: str  # PCI bus id, "0000:3b:00.0"; a MIG instance has its card's
    numa_node: int  # NUMA node to which the card is attached; -1: not known
    capability: int  # 90 means sm_90; 0: no GPU
    memory_bytes: int
    shared_bytes: int  # the most shared memory of a block

    @property
    def full_uuid(self) -> str:
        """The UUID with its prefix, as nvidia-smi prints it."""
        return f"MIG-{self.uuid}" if " MIG " in self.name else f"GPU-{self.uuid}"

    @property
    def is_gpu(self) -> bool:
        """Whether the device runs GPU code rather than code of this machine's processor."""
        return self.capability > 0


def open_driver() -> DriverTable:
    """Open the driver that this process uses. Raises ConfigError, naming the library that was not found."""
    path = bounds.cuda_driver()
    bounds.load_kernels_eagerly()
    try:
        table = DriverTable(path)
    except CudaError as error:
        raise ConfigError(f"cannot use a CUDA device: {error}{advice(error.code)}") from None
    if table.version < bounds.CUDA_DRIVER_OLDEST:
        raise ConfigError(
            f"cannot use a CUDA device: the driver {path} is for CUDA {version_text(table.version)}, "
            f"at least {version_text(bounds.CUDA_DRIVER_OLDEST)} is needed"
        )
    return table


def cards(table: DriverTable) -> list[CardInfo]:
    """Return all devices that the driver shows to this process. Raises CudaError."""
    found = []
    for ordinal in range(table.device_count()):
        name, raw, bus, capability, size, shared = table.describe(ordinal)
        found.append(
            CardInfo(ordinal, name, str(uuid.UUID(bytes=raw)), bus, node_of(bus), capability, size, shared)
        )
    return found


def find_card(table: DriverTable, which: str) -> CardInfo:
    """Return the device of a name. Raises ConfigError.

    which: the device's number among those that this process sees, which is CuPy's number as well; or its UUID
    or the beginning of that (GPU-..., MIG-...; the prefix may be left out)."""
    try:
        found = cards(table)
    except CudaError as error:
        raise ConfigError(f"cannot use a CUDA device: {error}") from None
    if not found:
        raise ConfigError(f"there is no CUDA device {which!r}: the driver shows none{_hidden()}")
    if which.isdigit():
        if int(which) < len(found):
            return found[int(which)]
        raise ConfigError(
            f"there is no CUDA device {which}; the driver shows {len(found)}, from 0 on{_hidden()}"
        )
    wanted = which.lower().removeprefix("gpu-").removeprefix("mig-")
    matches = [card for card in found if wanted and card.uuid.startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    shown = ", ".join(card.full_uuid for card in found)
    if matches:
        raise ConfigError(f"CUDA device {which!r} may be any of {len(matches)}; the driver shows {shown}")
    alone = " (of MIG instances a process sees one alone)" if which.lower().startswith("mig-") else ""
    raise ConfigError(f"there is no CUDA device {which!r}; the driver shows {shown}{alone}{_hidden()}")


def _hidden() -> str:
    """Return the end of a sentence that names the setting that hides devices from this process."""
    return f"; {said}" if (said := visibility()) else ""


def open_memory(table: DriverTable, card: CardInfo) -> DeviceMemory:
    """Open the owner of a device's allocations. Raises ConfigError."""
    try:
        return CupyMemory(table, card) if bounds.is_nvidias(table.path) else TableMemory(table, card)
    except MemoryError as error:
        raise ConfigError(
            f"cannot use CUDA device {card.ordinal} ({card.name}): of its {card.memory_bytes} bytes there are too few for "
            f"a context: {error}; nvidia-smi shows who uses it"
        ) from None
    except CudaError as error:
        raise ConfigError(
            f"cannot use CUDA device {card.ordinal} ({card.name}): {error}{advice(error.code)}"
        ) from None


def why_unusable() -> str:
    """Return a sentence that says why no CUDA device can be used here; "" if a device can."""
    try:
        table = open_driver()
        if not cards(table):
            return f"the CUDA driver shows no device{_hidden()}"
    except (ConfigError, CudaError) as error:
        return str(error)
    if bounds.is_nvidias(table.path):
        if importlib.util.find_spec("cupy") is None:
            return f"CuPy is not installed: install {_extra(table)}"
        return _mismatch(table)
    return ""


CUPY_BUILDS = {"cupy-cuda11x": 11, "cupy-cuda12x": 12, "cupy-cuda13x": 13}
"""Packages that bring CuPy, and the major version of CUDA that each is for."""


def _extra(table: DriverTable) -> str:
    """Return the extra of Clockwork's package that installs CuPy for a driver."""
    return f"clockwork-serving[cuda{min(max(table.version // 1000, 12), 13)}]"


def _mismatch(table: DriverTable) -> str:
    """Return a sentence that says why the installed CuPy does not fit the driver; "" if it fits or is
    unknown."""
    found = [CUPY_BUILDS[name] for name in CUPY_BUILDS if is_installed(name)]
    if not found or min(found) <= table.version // 1000:
        return ""
    said = f"CuPy is for CUDA {min(found)}, and the driver for {version_text(table.version)}"
    if table.version < bounds.CUDA_EXTRAS_OLDEST:
        return f"{said}: a newer driver is needed, or CuPy for that one"
    return f"{said}: install {_extra(table)} in the place of the other"


def is_installed(package: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def target_of(card: CardInfo) -> str:
    """Return the target of programs for this device: "sm_90", or "host" for a device that is no GPU."""
    return f"sm_{card.capability}" if card.is_gpu else "host"


def fingerprint_of(table: DriverTable, card: CardInfo) -> str:
    """Return the fingerprint of a device and its driver, on which prepared programs depend."""
    fingerprint = FINGERPRINT_PREFIX + target_of(card)
    return f"{fingerprint}-{table.version // 1000}" if card.is_gpu else fingerprint


def version_text(number: int) -> str:
    """Return a version of CUDA as text: 12.4 for 12040."""
    return f"{number // 1000}.{number % 1000 // 10}"
