"""tests/native/host_kernels.h: threads of a block, barriers, tensor cores, and the errors of wrong
kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from clockwork.models.compile import host
from clockwork.wire.tensors import Array
from tests.emulation import modules, process
from tests.emulation.forked import FLOATS, last_words
from tests.patience import PATIENCE_S

KERNELS = Path(__file__).with_name("kernels.cu")


def made(text: str, target: Path, flags: tuple[str, ...] = modules.QUICK) -> Path:
    target.with_suffix(".cu").write_text(text)
    half = ["-mf16c"] if os.uname().machine == "x86_64" else []
    command = ["g++", *modules.CUDA_C, *half, *flags, "-shared", str(target.with_suffix(".cu"))]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> host.HostModule:
    path = made(KERNELS.read_text(), tmp_path_factory.mktemp("kernels") / "kernels.so")
    return host.HostModule(path.read_bytes())


def launch(
    code: host.HostModule,
    kernel: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    *arrays: Array,
) -> None:
    code.run(kernel, grid, block, [host.pointer(array.ctypes.data) for array in arrays])


# ----- threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [(48, 1, 1), (4, 3, 4), (1, 48, 1)])
def test_threads_wait_for_each_other_and_share_memory(
    kernels: host.HostModule, block: tuple[int, int, int]
) -> None:
    x, y = np.arange(96, dtype=np.float32), np.zeros(96, np.float32)
    launch(kernels, "turn", (2, 1, 1), block, y, x)
    assert np.array_equal(y, x.reshape(2, 48)[:, ::-1].reshape(-1) + 100)


@pytest.mark.parametrize(
    ("kernel", "threads", "says"),
    [
        ("some_wait", 64, r"kernel some_wait, block \(0, 0, 0\), thread \(5, 0, 0\): it ends while 5 threads .* \(line"),
        ("one_is_late", 64, r"thread \(6, 0, 0\): it waits at a barrier \(line \d+\) after 6 threads .* have ended"),
        ("two_barriers", 64, r"thread \(1, 0, 0\): it waits at a barrier \(line \d+\) while others .* another \(line"),
        ("too_many", 2000, r"blocks of 2000 threads; a card has 1 to 1024"),
    ],
)  # fmt: skip
def test_a_barrier_that_not_all_threads_reach_ends_the_process(
    kernels: host.HostModule, kernel: str, threads: int, says: str
) -> None:
    assert re.search(says, last_words(kernels, kernel, threads))


def test_a_thread_is_not_held_by_an_earlier_launch(kernels: host.HostModule) -> None:
    for _ in range(3):
        x, y = np.ones(96, np.float32), np.zeros(96, np.float32)
        launch(kernels, "turn", (2, 1, 1), (48, 1, 1), y, x)
        assert (y == 101).all()
        launch(kernels, "misaligned", (1, 1, 1), (1, 1, 1), y)


@pytest.mark.skipif(not process.sanitizer(), reason="g++ has no AddressSanitizer")
def test_sanitizers_find_what_a_kernel_reads_or_writes_where_it_must_not(tmp_path: Path) -> None:
    module = made(KERNELS.read_text(), tmp_path / "kernels.so", modules.SANITISED)
    expected = {
        "misaligned": "misaligned address",
        "misaligned_halves": "misaligned address",
        "beyond_its_buffer": "AddressSanitizer: (heap-buffer-overflow|use-after-poison)",
        "before_its_buffer": "AddressSanitizer: (heap-buffer-overflow|use-after-poison)",
        "beyond_shared_memory": "index 64 out of bounds|AddressSanitizer: global-buffer-overflow",
        "beyond_shared_memory_by_pointer": "AddressSanitizer: global-buffer-overflow",
        "beyond_a_local_array": "AddressSanitizer: stack-buffer-overflow",
        "some_wait": "kernel some_wait",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulation.forked", str(module), *expected],
        capture_output=True, text=True, timeout=PATIENCE_S, env=process.environment(stacks=False), cwd=modules.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for kernel, words in expected.items():
        assert re.search(words, said[kernel]), (kernel, said[kernel])


# ----- 16-bit numbers --------------------------------------------------------------------------


def test_16_bit_numbers_are_rounded_after_every_operation(kernels: host.HostModule) -> None:
    x = np.random.default_rng(3).normal(0, 4, FLOATS).astype(np.float32)
    y = np.zeros(FLOATS, np.float16)
    launch(kernels, "halves", (1, 1, 1), (FLOATS, 1, 1), y, x)
    with np.errstate(invalid="ignore"):
        h = x.astype(np.float16)
        square = h * h + np.float16(1)
        positive = (np.sqrt(h) + np.float16(1) / square) / square
        negative = np.exp2(h.astype(np.float32)).astype(np.float16)
    assert np.array_equal(y, np.where(h < 0, negative, positive))
    z = np.zeros(FLOATS, ml_dtypes.bfloat16)
    launch(kernels, "brain_floats", (1, 1, 1), (FLOATS, 1, 1), z, x)
    b = x.astype(ml_dtypes.bfloat16)
    assert np.array_equal(z, -b * b - ml_dtypes.bfloat16(3))


# ----- tensor cores ----------------------------------------------------------------------------

# The position of a lane's i-th element by NVIDIA's PTX ISA ("Matrix Fragments for mma"): (row, column), from
# the lane's group and its thread in the group.
Place = Callable[[int, int, int], tuple[int, int]]


def _a_16(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i in (0, 1, 4, 5) else g + 8), t * 2 + (i & 1) + (0 if i < 4 else 8)


def _b_16(g: int, t: int, i: int) -> tuple[int, int]:
    return t * 2 + (i & 1) + (0 if i < 2 else 8), g


def _a_8(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def _b_8(g: int, t: int, i: int) -> tuple[int, int]:
    return t * 2 + i, g


def _a_tf32(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i in (0, 2) else g + 8), (t if i < 2 else t + 4)


def _b_tf32(g: int, t: int, i: int) -> tuple[int, int]:
    return (t if i == 0 else t + 4), g


def _c(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


F16, BF16, F32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
PRODUCTS: dict[str, tuple[int, np.dtype, np.dtype, Place, Place]] = {
    "m16n8k16.row.col.f32.f16.f16.f32": (16, F16, F32, _a_16, _b_16),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, BF16, F32, _a_16, _b_16),
    "m16n8k16.row.col.f16.f16.f16.f16": (16, F16, F16, _a_16, _b_16),
    "m16n8k8.row.col.f32.f16.f16.f32": (8, F16, F32, _a_8, _b_8),
    "m16n8k8.row.col.f16.f16.f16.f16": (8, F16, F16, _a_8, _b_8),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, F32, F32, _a_tf32, _b_tf32),
}


def statement(name: str, a: int, b: int, c: int) -> str:
    """Return inline assembly as tinygrad writes it, for so many registers of each operand."""
    names = [f"%{number}" for number in range(a + b + c)]
    group = [", ".join(part) for part in (names[:c], names[c : c + a], names[c + a :])]
    return (
        f'asm("mma.sync.aligned.{name}"\n'
        f'      "{{{group[0]}}}, {{{group[1]}}},"\n'
        f'      "{{{group[2]}}}, {{{group[0]}}};"\n'
        f"    : " + ", ".join(f'"+r"(c_pk[{number}])' for number in range(c)) + "\n"
        "    : " + ", ".join([f'"r"(a_pk[{number}])' for number in range(a)]
                             + [f'"r"(b_pk[{number}])' for number in range(b)]) + ");"
    )  # fmt: skip


def product_kernel(number: int, name: str, wrong: str = "") -> str:
    depth, factors, sums, _, _ = PRODUCTS[name]
    a, b, c = 16 * depth * factors.itemsize // 128, 8 * depth * factors.itemsize // 128, sums.itemsize
    return f"""
extern "C" __global__ void product{number}(int* data0, int* data1, int* data2) {{
    int lane = threadIdx.x;
    int *a_pk = data1 + lane * {a}, *b_pk = data2 + lane * {b}, *c_pk = data0 + lane * {c};
    {wrong}
    {statement(name, a, b, c)}
}}
CW_HOST_KERNEL(product{number})
"""


NAME = "m16n8k16.row.col.f32.f16.f16.f32"
WRONG = {
    "half_a_warp": product_kernel(10, NAME, "if (lane < 16) return;"),
    "two_products": product_kernel(11, NAME, f"if (lane < 4) {{ {statement(NAME, 4, 2, 4)} }}"),
    "one_waits": product_kernel(12, NAME, "if (lane == 31) __syncthreads();"),
    "no_warp": product_kernel(13, NAME),
    "other_operands": product_kernel(14, NAME).replace('"r"(b_pk[0]), "r"(b_pk[1])', '"r"(b_pk[1]), "r"(b_pk[0])'),
}  # fmt: skip


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> host.HostModule:
    text = "".join(product_kernel(number, name) for number, name in enumerate(PRODUCTS)) + "".join(
        WRONG.values()
    )
    path = made(text, tmp_path_factory.mktemp("products") / "products.so")
    return host.HostModule(path.read_bytes())


@pytest.mark.parametrize("name", PRODUCTS)
def test_tensor_cores_multiply_what_lies_in_the_registers_of_a_warp(
    name: str, products: host.HostModule
) -> None:
    depth, factors, sums, place_a, place_b = PRODUCTS[name]
    # No two elements are equal, and all sums are exact.
    scale = 1 / 64 if sums == F16 else 1
    a = (np.arange(16 * depth).reshape(16, depth) * scale).astype(factors)
    b = ((np.arange(depth * 8)[::-1].reshape(depth, 8) - 50) * scale).astype(factors)
    c = (np.arange(16 * 8).reshape(16, 8) * 32 * scale).astype(sums)

    def registers(matrix: Array, place: Place) -> Array:
        count = matrix.size // 32
        lanes = [[matrix[place(lane // 4, lane % 4, i)] for i in range(count)] for lane in range(32)]
        return np.array(lanes, matrix.dtype)

    held = [registers(c, _c), registers(a, place_a), registers(b, place_b)]
    if factors == F32:  # the last 13 bits are ignored
        for array in held[1:]:
            array.view(np.uint32)[...] |= np.random.default_rng(1).integers(
                0, 1 << 13, array.shape, np.uint32
            )
    number = list(PRODUCTS).index(name)
    launch(products, f"product{number}", (1, 1, 1), (32, 1, 1), *held)
    expected = (a.astype(np.float64) @ b.astype(np.float64) + c.astype(np.float64)).astype(sums)
    assert np.array_equal(held[0], registers(expected, _c))


@pytest.mark.parametrize(
    ("kernel", "threads", "says"),
    [
        (10, 32, r"it reaches a product \(line \d+\) after 16 threads of its warp have ended"),
        (11, 32, r"it reaches a product \(line \d+\) while others of its warp wait for another"),
        (12, 32, r"31 of 32 threads of a warp wait for a product \(line \d+\) that the others do not reach"),
        (13, 48, r"its warp has 16 threads, and a product \(line \d+\) needs 32"),
        (14, 32, r'inline assembly that is not known: "mma.sync.*"r"\(b_pk\[1\]\), "r"\(b_pk\[0\]\)'),
    ],
)  # fmt: skip
def test_a_product_that_not_all_of_a_warp_make_ends_the_process(
    kernel: int, threads: int, says: str, products: host.HostModule
) -> None:
    arrays = [np.zeros(64 * 4, np.int32) for _ in range(3)]
    arguments = [host.pointer(array.ctypes.data) for array in arrays]
    assert re.search(says, last_words(products, f"product{kernel}", threads, arguments))
