"""Compile CUDA C to a cubin by NVRTC, NVIDIA's compiler library, which needs neither a GPU nor a toolkit."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.errors import InvalidModel
from clockwork.formats.program import HOST, TargetModules
from clockwork.formats.targets import CodeChoice, choose

MAJORS = (13, 12)  # Major versions of NVRTC that are searched for, preferred version first

PACKAGES = ("nvidia.cuda_nvrtc", "nvidia.cuda_runtime", "nvidia.cu13")
"""Folders of the Python packages with the library and the headers of 16-bit types. In CUDA 12 these are
nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12; from CUDA 13 on, both share a folder."""


class CompiledModule(NamedTuple):
    """The result of compiling a source."""

    cubin: bytes
    ptx: bytes  # the PTX from which the cubin was assembled
    log: str  # the assembler's messages


class _Library:
    """Bindings of NVRTC's functions."""

    def __init__(self) -> None:
        self._dll = ctypes.CDLL(str(_find()))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._dll.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def architectures(self) -> list[int]:
        count = ctypes.c_int()
        self.check(self._dll.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self.check(self._dll.nvrtcGetSupportedArchs(found))
        return list(found)

    def compile(self, source: str, options: Sequence[str]) -> CompiledModule:
        """Compile a source with these command-line options. Raises InvalidModel."""
        program = ctypes.c_void_p()
        self.check(
            self._dll.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"program.cu", 0, None, None)
        )
        try:
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._dll.nvrtcCompileProgram(program, len(options), given)
            log = self._bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if status:
                raise InvalidModel(f"NVRTC rejects a kernel: {log[:1000]}")
            return CompiledModule(
                self._bytes(program, "CUBIN"), self._bytes(program, "PTX").rstrip(b"\0"), log
            )
        finally:
            self._dll.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, part: str) -> bytes:
        size = ctypes.c_size_t()
        self.check(getattr(self._dll, f"nvrtcGet{part}Size")(program, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        self.check(getattr(self._dll, f"nvrtcGet{part}")(program, data))
        return data.raw

    def check(self, status: int) -> None:
        if status:
            self._dll.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise InvalidModel(f"NVRTC fails: {self._dll.nvrtcGetErrorString(status).decode()}")


def _folders() -> list[Path]:
    folders = []
    for name in PACKAGES:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        for place in (found.submodule_search_locations or ()) if found else ():
            folders.append(Path(place))
    return folders


def _find() -> Path:
    for folder in _folders():
        for major in MAJORS:
            path = folder / "lib" / f"libnvrtc.so.{major}"
            if path.is_file():
                return path
    raise InvalidModel(
        "compiling for CUDA needs NVRTC, which is not installed: pip install 'clockwork-serving[compile]'"
    )


@functools.cache
def library() -> Any:
    return _Library()


def is_installed() -> bool:
    try:
        _find()
    except InvalidModel:
        return False
    return True


def places() -> dict[str, str]:
    """Return tinygrad's environment variables for the paths of the library and its headers."""
    found = {"NVRTC_PATH": str(_find())}
    for folder in _folders():
        if (folder / "include" / "cuda_fp16.h").is_file():
            # The first folder belongs to the library; later folders may hold headers of another version.
            found.setdefault("CUDA_PATH", str(folder))
    return found


def check_target(target: str) -> None:
    """Raise InvalidModel for an architecture that this NVRTC does not know."""
    known = library().architectures()
    given = re.fullmatch(r"sm_([0-9]+)[af]?", target)
    if given is None or int(given[1]) not in known:
        raise InvalidModel(
            f"architecture {target} is not one that NVRTC {'.'.join(map(str, library().version))} makes: "
            f"{', '.join(f'sm_{number}' for number in known)}"
        )


def closest(device: str) -> CodeChoice:
    """Return the target to compile for, given a device's architecture.

    The target is the architecture itself if this NVRTC knows it, otherwise an older architecture whose cubin
    or PTX runs on the device. Raises InvalidModel.
    """
    if device == HOST:
        return CodeChoice(HOST, False)
    known = {f"sm_{number}": TargetModules(0, ("",), ("",)) for number in library().architectures()}
    if (found := choose(known, device)) is None:
        check_target(device)  # raises for an unknown target
    assert found is not None
    return found


def driver() -> int:
    """Return the oldest CUDA driver that runs NVRTC's cubins: the first of the same major version."""
    return int(library().version[0]) * 1000


def ptx_driver() -> int:
    """Return the oldest CUDA driver that reads NVRTC's PTX: the driver of NVRTC's own version."""
    major, minor = library().version
    return 1000 * int(major) + 10 * int(minor)


def joined(sources: Sequence[str]) -> str:
    """Join the sources of kernels. Each gets a namespace, because helper functions have equal names."""
    includes: dict[str, None] = {}
    bodies = []
    for number, source in enumerate(sources):
        lines = source.split("\n")
        includes.update(dict.fromkeys(line for line in lines if line.startswith("#include")))
        rest = "\n".join(line for line in lines if not line.startswith("#include"))
        bodies.append(f"namespace n{number} {{\n{rest}\n}}")
    return "\n".join([*includes, *bodies])


def build(sources: Sequence[str], target: str) -> CompiledModule:
    """Compile the sources of kernels to a module. Raises InvalidModel."""
    options = [f"--gpu-architecture={target}", "--ptxas-options=-v", "--std=c++17"]
    for folder in _folders():
        options.append(f"--include-path={folder / 'include'}")
    return library().compile(joined(sources), options)  # type: ignore[no-any-return]
