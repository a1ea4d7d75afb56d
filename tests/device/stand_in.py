"""A stand-in for CuPy: a module with the few names that are used, over the fake driver's table.

As a plugin of pytest (-p tests.device.stand_in, with CLOCKWORK_CUDA_DRIVER naming a copy of the fake driver
called libcuda.so.1) it makes the suite use the fake driver as if it were a GPU.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clockwork.config.device import cuda_driver, is_nvidias
from clockwork.device._cudriver import CudaContext, CudaError, DriverTable
from clockwork.device.cuda_memory import open_driver
from clockwork.formats.program import HOST
from clockwork.models.compile import nvrtc


class RuntimeFailure(RuntimeError):
    def __init__(self, error: CudaError) -> None:
        super().__init__(str(error).split(": ")[1].replace("CUDA_ERROR_", "cudaError"))
        self.status = error.code


def stub(table: DriverTable) -> types.ModuleType:
    """The module cupy, as CupyMemory uses it."""
    contexts: dict[int, CudaContext] = {}
    modules: dict[int, Any] = {}

    def translated(call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except CudaError as error:
            raise RuntimeFailure(error) from None

    class Device:
        def __init__(self, ordinal: int) -> None:
            self.id = ordinal

        def use(self) -> None:
            if self.id not in contexts:
                contexts[self.id] = translated(table.retain_context, self.id)
            translated(table.make_current, contexts[self.id])

        @property
        def mem_info(self) -> tuple[int, int]:
            return table.memory_info()

    class Memory:
        def __init__(self, size: int) -> None:
            memory = translated(table.allocate, size)
            self.ptr = memory.address
            weakref.finalize(self, table.release, memory)

    class PinnedMemory:
        def __init__(self, size: int, flags: int) -> None:
            assert flags == 1
            memory = translated(table.allocate_host, size)
            self.ptr = memory.address
            weakref.finalize(self, table.release_host, memory)

    class Module:
        ptr = 0

        def load_file(self, path: str) -> None:
            module = translated(table.load_module, Path(path).read_bytes())
            self.ptr = id(module)
            modules[self.ptr] = module

        def get_function(self, name: str) -> Any:
            return types.SimpleNamespace(ptr=translated(table.function, modules[self.ptr], name).address)

        def __del__(self) -> None:
            assert not self.ptr, "CuPy would unload it now, whatever executes"

    def unload(handle: int) -> None:
        translated(table.unload_module, modules.pop(handle))

    names = types.SimpleNamespace
    cupy: Any = types.ModuleType("cupy")
    cupy.contexts = contexts
    cupy.cuda = names(
        Device=Device,
        Memory=Memory,
        PinnedMemory=PinnedMemory,
        function=names(Module=Module),
        memory=names(OutOfMemoryError=MemoryError),
        runtime=names(free=lambda _: None, hostAllocPortable=1, CUDARuntimeError=RuntimeFailure),
        driver=names(
            ctxGetCurrent=lambda: list(contexts.values())[-1].address,
            moduleUnload=unload,
            CUDADriverError=RuntimeFailure,
        ),
    )
    return cupy


def install() -> None:
    """Have this process import the stand-in as CuPy, and NVRTC compile for the architecture that the fake
    driver computes."""
    cupy = stub(open_driver())
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    sys.modules["cupy"] = cupy
    compiled = nvrtc.build

    def build(sources: Sequence[str], target: str) -> nvrtc.CompiledModule:
        from tests.device.cuda_rig import compiled_kernels  # this import opens the driver

        if target != HOST:
            return compiled(sources, target)
        (source,) = sources
        return nvrtc.CompiledModule(compiled_kernels(source), b"", "")

    nvrtc.build = build


if is_nvidias(cuda_driver()) and Path(cuda_driver()).is_file():
    install()
