"""The declarations of csrc/device/cuda_api.h agree with NVIDIA's own header where that is installed; and
kernels that only run on the fake driver here compile for a card."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from bench.gpu import KERNEL
from clockwork.device.cuda_advice import DriverError
from clockwork.models.compile import nvrtc
from tests.device.cuda_rig import KERNELS

API = Path(__file__).parents[2] / "csrc/device/cuda_api.h"
PACKAGES = ("nvidia.cuda_runtime", "nvidia.cu13")
"""Packages with cuda.h: nvidia-cuda-runtime-cu12 and nvidia-cuda-runtime."""

COMPARE = """
#define __CUDA_API_VERSION_INTERNAL  // declares every version of a function, by its symbol's name
#include "ours.h"
#include <cuda.h>

template <typename T> constexpr bool is_float = __is_same(T, float);
template <typename T> constexpr bool is_pointer = false;
template <typename T> constexpr bool is_pointer<T*> = true;
template <typename A, typename B>
constexpr bool is_alike = sizeof(A) == sizeof(B) && is_pointer<A> == is_pointer<B> && is_float<A> == is_float<B>;

template <typename A, typename B> constexpr bool are_alike = false;
template <typename R, typename... A, typename S, typename... B>
    requires(sizeof...(A) == sizeof...(B))
constexpr bool are_alike<R(A...), S(B...)> = is_alike<R, S> && (is_alike<A, B> && ...);

namespace ours {
#define COMPARE(member, symbol, parameters) \
    static_assert(are_alike<CUresult parameters, decltype(::symbol)>, #symbol);
CW_CUDA_FUNCTIONS(COMPARE)
CW_CUDA_OPTIONAL_FUNCTIONS(COMPARE)
}

#define FIELD(name) \
    static_assert(offsetof(ours::CUDA_KERNEL_NODE_PARAMS_v1, name) == offsetof(CUDA_KERNEL_NODE_PARAMS_v1, name)); \
    static_assert(is_alike<decltype(ours::CUDA_KERNEL_NODE_PARAMS_v1::name), decltype(CUDA_KERNEL_NODE_PARAMS_v1::name)>);
FIELD(func) FIELD(gridDimX) FIELD(gridDimY) FIELD(gridDimZ) FIELD(blockDimX) FIELD(blockDimY) FIELD(blockDimZ)
FIELD(sharedMemBytes) FIELD(kernelParams) FIELD(extra)
static_assert(sizeof(ours::CUDA_KERNEL_NODE_PARAMS_v1) == sizeof(CUDA_KERNEL_NODE_PARAMS_v1));
static_assert(sizeof(ours::CUuuid) == sizeof(CUuuid));

#define NUMBER(name, value) static_assert(int(name) == value);
"""


def vendors_header() -> Path | None:
    """Return the folder with NVIDIA's cuda.h."""
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for place in (found.submodule_search_locations or ()) if found else ():
            if (Path(place) / "include/cuda.h").is_file():
                return Path(place) / "include"
    return None


def numbers(text: str) -> list[tuple[str, str]]:
    """Return the names and values that the header's enums define."""
    return re.findall(r"^    (CU(?:DA)?_\w+) = (\d+),", text, re.MULTILINE)


def test_what_is_declared_of_the_driver_is_what_its_header_declares(tmp_path: Path) -> None:
    folder = vendors_header()
    if folder is None:
        pytest.skip("no cuda.h of NVIDIA's: pip install nvidia-cuda-runtime-cu12")
    text = API.read_text()
    body = [line for line in text.split("\n") if not line.startswith(("#include", "#pragma"))]
    includes = [f"#include <{name}>" for name in ("dlfcn.h", "cstddef", "cstdint", "cstdio")]
    (tmp_path / "ours.h").write_text("\n".join([*includes, "namespace ours {", *body, "}", ""]))
    source = tmp_path / "compare.cpp"
    told = [*numbers(text), *((one.name, one.value) for one in DriverError)]
    source.write_text(COMPARE + "".join(f"NUMBER({name}, {value})\n" for name, value in told))
    assert len(numbers(text)) > 20
    command = ["g++", "-std=c++20", "-fsyntax-only", "-I", str(folder), "-I", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not nvrtc.is_installed(), reason="NVRTC is not installed (the extra [compile])")
@pytest.mark.parametrize("source", [KERNELS.read_text(), KERNEL], ids=["the suite's", "the bench's"])
def test_kernels_by_hand_compile_for_a_card(source: str) -> None:
    cubin = nvrtc.build([source], "sm_80")[0]
    names = set(re.findall(r"CW_HOST_KERNEL\((\w+)\)", source))
    assert names
    assert all(name.encode() in cubin for name in names)
