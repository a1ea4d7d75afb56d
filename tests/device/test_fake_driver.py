"""The fake driver is as strict as a card's driver: a call that a card would refuse or delay fails a test
here."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.device._cudriver import CudaError, CudaKernel, DriverTable
from clockwork.device.cuda_memory import TableMemory, find_card, open_driver
from clockwork.formats.program import TargetModules
from clockwork.formats.targets import choose
from clockwork.models.compile import nvrtc
from clockwork.system.clock import MS, now_ns
from clockwork.wire.messages import Status
from tests.device.cuda_rig import KERNELS, CudaRig, compiled_kernels
from tests.device.fake import DRIVER, LIBRARY, MISALIGNED_ADDRESS, FakeDriver, environment
from tests.device.rig import Driver, affine
from tests.patience import eventually, windows_ns

RIGS = [CudaRig]

X = np.ones((3, 4), np.float32)
KERNEL_NS = 20 * MS
STALL_NS = 60 * MS


@pytest.fixture
def memory(fake: FakeDriver) -> Iterator[TableMemory]:
    """The memory of device 0, current in this thread."""
    one = TableMemory(table := open_driver(), find_card(table, "0"))
    one.make_current()
    yield one
    fake.stall()
    one.make_current()
    one.close()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "kernels.so").write_bytes(compiled_kernels())
    return tmp_path / "kernels.so"


# ----- calls that stall -------------------------------------------------------------------------


PAIRS: dict[str, Callable[[TableMemory, Path], tuple[Callable[[], Any], Callable[[Any], None]]]] = {
    "device memory": lambda memory, module: (lambda: memory.allocate(512), memory.release),
    "pinned memory": lambda memory, module: (lambda: memory.allocate_host(4096), memory.release_host),
    "modules": lambda memory, module: (lambda: memory.load_module(module), memory.unload_module),
}
"""Pairs of functions that take a resource and release it."""

CALLS = {
    "device memory": ("cuMemAlloc_v2", "cuMemFree_v2"),
    "pinned memory": ("cuMemHostAlloc", "cuMemFreeHost"),
    "modules": ("cuModuleLoadData", "cuModuleUnload"),
}
"""The driver's functions that take each resource and release it."""


@pytest.mark.parametrize("back", [False, True], ids=["take", "give back"])
@pytest.mark.parametrize("what", PAIRS)
def test_a_call_that_stalls_ends_after_what_is_queued_and_keeps_every_other_call_waiting(
    driver: Driver, fake: FakeDriver, memory: TableMemory, module: Path, what: str, back: bool
) -> None:
    model = driver.prepare(affine())
    assert driver.end(driver.load(model, 1, [0])).status == Status.OK
    take, give_back = PAIRS[what](memory, module)
    taken = take() if back else None
    copies = fake.calls("cuMemcpyDtoHAsync_v2")
    fake.speed(kernel_ns=KERNEL_NS)
    fake.keep_kernels()
    fake.stall(STALL_NS)
    begin_ns = now_ns()
    action = driver.infer(model, 1, [X])  # an execution of two kernels
    eventually(
        lambda: fake.calls("cuMemcpyDtoHAsync_v2") > copies, "both are launched, and their end recorded"
    )
    function = CALLS[what][back]
    begun = fake.calls(function)

    def let_go_when_it_stalls() -> None:
        eventually(lambda: fake.calls(function) > begun, "it stalls")
        fake.keep_kernels(False)

    letting_go = threading.Thread(target=let_go_when_it_stalls)
    letting_go.start()
    if back:
        give_back(taken)
    else:
        taken = take()
    stalled_ns = now_ns() - begin_ns
    letting_go.join()
    fake.stall()
    if not back:
        give_back(taken)
    done = driver.end(action)
    assert stalled_ns >= 2 * KERNEL_NS + STALL_NS
    # The device was done long before the host could notice.
    assert done.execute[2] <= stalled_ns - STALL_NS
    assert done.execute[1] - done.execute[0] >= 2 * KERNEL_NS + STALL_NS
    fake.speed()


@pytest.mark.parametrize("what", ["device memory", "pinned memory"])
def test_only_pinned_memory_stalls_the_other_devices(
    fake: FakeDriver, memory: TableMemory, module: Path, what: str
) -> None:
    other = TableMemory(table := open_driver(), find_card(table, "1"))
    other.make_current()
    take, _ = PAIRS[what](memory, module)

    def stalling() -> None:
        memory.make_current()
        take()

    for stall_ns in windows_ns(250 * MS):
        begun = fake.calls(CALLS[what][0])
        fake.stall(stall_ns)
        begin_ns = now_ns()
        thread = threading.Thread(target=stalling)
        thread.start()
        eventually(lambda: fake.calls(CALLS[what][0]) > begun, "it stalls")  # noqa: B023
        other.memory_info()
        took_ns = now_ns() - begin_ns
        thread.join()
        fake.stall()
        if what == "pinned memory":
            assert took_ns >= stall_ns
            break
        if took_ns < stall_ns:
            break
    other.close()


@pytest.mark.parametrize("loading", ["LAZY", "EAGER"])
def test_the_first_launch_of_a_kernel_that_is_loaded_lazily_stalls(
    make: Callable[..., Driver], fake: FakeDriver, loading: str, tmp_path: Path
) -> None:
    """Only the first launch of a lazily loaded kernel stalls: not its second launch, nor a kernel that is
    loaded with its module."""
    driver = make(graphs=False)
    with environment(CUDA_MODULE_LOADING=loading):
        DriverTable(DRIVER["CLOCKWORK_CUDA_DRIVER"])  # the driver reads the setting when it is initialised
    model = driver.prepare(affine())
    assert driver.end(driver.load(model, 1, [0])).status == Status.OK
    fake.stall(STALL_NS)
    took_ns: list[int] = []
    noted = [
        stalls(tmp_path, lambda: took_ns.append(driver.end(driver.infer(model, 1, [X])).execute[2]))
        for _ in range(2)
    ]
    if loading == "LAZY":
        assert noted == [["first", "first"], []]
        assert took_ns[0] >= 2 * STALL_NS
    else:
        assert noted == [[], []]
    fake.stall()
    open_driver()


def stalls(place: Path, call: Callable[[], Any]) -> list[str]:
    """The calls that stall a card, as the fake driver counts them."""
    noted = place / "stalls"
    noted.write_text("")
    with environment(CLOCKWORK_FAKE_STALLS=str(noted)):
        call()
    return [line.split()[0] for line in noted.read_text().splitlines()]


@pytest.mark.parametrize("graphs", [False, True])
def test_no_launch_stalls_for_the_memory_that_its_threads_have_to_themselves(
    make: Callable[..., Driver], graphs: bool, tmp_path: Path
) -> None:
    """The kernel's memory is taken when the model is prepared."""
    driver = make(graphs=graphs)
    deep = KERNELS.read_text().replace("KERNEL(add_table_1)", "KERNEL_WITH(add_table_1, 32, 0, 1024, 4096)")
    driver.rig.module = compiled_kernels(deep)
    assert "cuCtxSetLimit" in stalls(tmp_path, lambda: driver.prepare(affine()))
    assert driver.end(driver.load(driver.models, 1, [0])).status == Status.OK
    assert not stalls(tmp_path, lambda: driver.end(driver.infer(driver.models, 1, [X])))
    assert "cuCtxSetLimit" not in stalls(tmp_path, lambda: driver.prepare(affine(1))), (
        "there is as much already"
    )


# ----- what a card has ----------------------------------------------------------------------------

NEEDY = """
struct alignas(16) four { float x, y, z, w; };
extern "C" __global__ void plain(float* y, int n) { y[0] = n; }
extern "C" __global__ void many(float* y, int n) { y[0] = n; }
extern "C" __global__ void sharing(float* y, int n) { y[0] = n; }
extern "C" __global__ void bounded(float* y, int n) { y[0] = n; }
extern "C" __global__ void deep(float* y, int n) { y[0] = n; }
extern "C" __global__ void wide(const four* x, float* y) { y[0] = x[0].w; }
CW_HOST_KERNEL(plain)
CW_HOST_KERNEL_WITH(many, 72, 0, 1024)
CW_HOST_KERNEL_WITH(sharing, 32, 16384, 1024)
CW_HOST_KERNEL_WITH(bounded, 16, 0, 128)
CW_HOST_KERNEL_WITH(deep, 16, 0, 1024, 2048)
CW_HOST_KERNEL(wide)
"""
INVALID_VALUE, INVALID_IMAGE, NO_BINARY, INVALID_PTX, INVALID_HANDLE = 1, 200, 209, 218, 400
OUT_OF_RESOURCES = 701


@pytest.fixture
def needy(memory: TableMemory, tmp_path: Path) -> Iterator[Callable[[str], CudaKernel]]:
    """The kernels of NEEDY, by name."""
    path = tmp_path / "needy.so"
    path.write_bytes(compiled_kernels(NEEDY))
    module = memory.load_module(path)
    yield lambda name: memory.function(module, name)
    memory.make_current()
    memory.unload_module(module)


def launch(
    kernel: CudaKernel,
    *values: int,
    grid: tuple[int, ...] = (1, 1, 1),
    block: tuple[int, ...] = (1, 1, 1),
    shared: int = 0,
) -> int:
    """Launch on a stream of its own, and wait for its end; return the first error."""
    library = ctypes.CDLL(str(LIBRARY))
    stream = ctypes.c_void_p()
    assert library.cuStreamCreate(ctypes.byref(stream), 1) == 0
    try:
        held = [ctypes.c_uint64(value) for value in values]
        arguments = (ctypes.c_void_p * (len(held) + 1))(*(ctypes.addressof(one) for one in held), None)
        function = ctypes.c_void_p(kernel.address)
        error = library.cuLaunchKernel(function, *grid, *block, shared, stream, arguments, None)
        return int(error or library.cuStreamSynchronize(stream))
    finally:
        library.cuStreamDestroy_v2(stream)


def test_a_launch_whose_threads_take_more_memory_than_any_before_stalls(
    memory: TableMemory, needy: Callable[[str], CudaKernel], tmp_path: Path
) -> None:
    """Every thread has 1 KiB at first. Memory once taken for more stays."""
    kernel, target = needy("deep"), memory.allocate(64)
    assert open_driver().local_bytes(kernel) == 2048
    for expected in (["launch"], []):
        assert stalls(tmp_path, lambda: launch(kernel, target.address, 1)) == expected
    memory.release(target)


def test_a_launch_is_refused_where_a_card_would_refuse_it(
    memory: TableMemory, needy: Callable[[str], CudaKernel]
) -> None:
    y = memory.allocate(512)
    plain = needy("plain")
    assert launch(plain, y.address, 1) == 0
    for wrong in (
        {"grid": (0, 1, 1)}, {"grid": (1, 65_536, 1)}, {"grid": (1, 1, 65_536)}, {"block": (1, 1, 65)},
        {"block": (2048, 1, 1)}, {"block": (1024, 2, 1)}, {"shared": 49_153},
    ):  # fmt: skip
        assert launch(plain, y.address, 1, **wrong) == INVALID_VALUE, wrong  # type: ignore[arg-type]
    assert launch(plain, y.address) == INVALID_VALUE  # the kernel's second argument is missing
    # 72 registers a thread: 28 warps, of 2,304 registers each.
    assert launch(needy("many"), y.address, 1, block=(896, 1, 1)) == 0
    assert launch(needy("many"), y.address, 1, block=(897, 1, 1)) == OUT_OF_RESOURCES
    assert launch(needy("bounded"), y.address, 1, block=(129, 1, 1)) == OUT_OF_RESOURCES
    assert launch(CudaKernel(y.address), y.address, 1) == INVALID_HANDLE
    memory.release(y)


def test_dynamic_shared_memory_beyond_48_kib_has_to_be_asked_for_with_the_static_counted(
    fake: FakeDriver, memory: TableMemory, needy: Callable[[str], CudaKernel]
) -> None:
    fake.card(86)
    table, sharing, y = open_driver(), needy("sharing"), memory.allocate(512)
    assert table.needs(sharing) == (1024, 16_384, 32)
    assert launch(sharing, y.address, 1, shared=32_768) == 0
    assert launch(sharing, y.address, 1, shared=32_769) == INVALID_VALUE
    with pytest.raises(CudaError, match="cuFuncSetAttribute: CUDA_ERROR_INVALID_VALUE"):
        table.allow_shared(sharing, 101_376 - 16_384 + 1)
    table.allow_shared(sharing, 101_376 - 16_384)
    assert launch(sharing, y.address, 1, shared=101_376 - 16_384) == 0
    memory.release(y)


def test_a_vector_read_at_an_address_that_is_not_a_multiple_of_it_breaks_the_context(
    fake: FakeDriver, memory: TableMemory, needy: Callable[[str], CudaKernel]
) -> None:
    x, y = memory.allocate(512), memory.allocate(512)
    assert launch(needy("wide"), x.address + 16, y.address) == 0
    assert launch(needy("wide"), x.address + 8, y.address) == MISALIGNED_ADDRESS
    with pytest.raises(CudaError, match="CUDA_ERROR_MISALIGNED_ADDRESS"):
        memory.allocate(512)
    fake.mend()
    for one in (x, y):
        memory.release(one)


PTX = """.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 k_param_0, .param .u32 k_param_1)
{ ret; }"""
RUNS = {
    "sm_80": (80, 86, 89), "sm_86": (86, 89), "sm_89": (89,), "sm_90": (90,), "sm_90a": (90,),
    "sm_100": (100, 103), "sm_100a": (100,), "sm_120": (120, 121), "compute_80": (80, 86, 87, 89, 90, 100, 103, 120, 121),
    "compute_90a": (90,),
}  # fmt: skip
CAPABILITIES = (75, 80, 86, 87, 89, 90, 100, 103, 120, 121)


@pytest.mark.parametrize("target", RUNS)
def test_a_module_runs_on_the_cards_on_which_nvidias_driver_runs_it(
    fake: FakeDriver, memory: TableMemory, target: str
) -> None:
    """The driver follows NVIDIA's compatibility rules; this was never run on a card."""
    images = [compiled_kernels(NEEDY, target)]
    if nvrtc.is_installed():
        source = 'extern "C" __global__ void plain(float* y, int n) { y[0] = n; }'
        images.append(nvrtc.library().compile(source, [f"--gpu-architecture={target}"])[0])
    for image in images if target.startswith("sm_") else images[:1]:
        ran, refused = [], set()
        for capability in CAPABILITIES:
            fake.card(capability)
            try:
                memory._table.unload_module(memory._table.load_module(image))
                ran.append(capability)
            except CudaError as error:
                refused.add(error.code)
        assert (set(ran), refused) == (set(RUNS[target]), {NO_BINARY})
        # A device takes from a package the code that its driver runs.
        package = {
            target.replace("compute", "sm"): TargetModules(
                0, ("m",), ("m",) if target.startswith("compute") else ()
            )
        }
        assert {one for one in CAPABILITIES if choose(package, f"sm_{one}")} == set(ran)


def test_a_cubin_says_what_its_kernels_need(fake: FakeDriver, memory: TableMemory) -> None:
    if not nvrtc.is_installed():
        pytest.skip("NVRTC is not installed (clockwork-serving[compile])")
    source = """
    extern "C" __global__ void sums(const float* x, float* y, int n, long long at) {
        __shared__ float sums[100];
        sums[threadIdx.x] = x[at]; __syncthreads(); y[threadIdx.x] = sums[99 - threadIdx.x] + n;
    }
    extern "C" __global__ void __launch_bounds__(96) bounded(float* y) { y[0] = 1; }"""
    table = memory._table
    for target in ("sm_80", "sm_90", "sm_100"):
        fake.card(int(target[3:]))
        module = table.load_module(nvrtc.library().compile(source, [f"--gpu-architecture={target}"])[0])
        sums, bounded = (table.function(module, name) for name in ("sums", "bounded"))
        threads, shared, registers = table.needs(sums)
        assert (threads, shared) == (1024, 400)
        assert 8 <= registers <= 32
        assert table.needs(bounded)[0] == 96
        assert table.parameters(sums) == [8, 8, 4, 8]
        with pytest.raises(CudaError, match="CUDA_ERROR_NOT_FOUND"):
            table.function(module, "gone")
        table.unload_module(module)


def test_ptx_is_compiled_for_the_card_and_for_no_older_one(fake: FakeDriver, memory: TableMemory) -> None:
    table = memory._table
    for ptx in (PTX.encode(), compiled_kernels(NEEDY, "compute_80")):
        fake.card(90)
        compiled = fake.calls("jit")
        cubin = table.link(ptx)
        assert fake.calls("jit") == compiled + 1
        table.unload_module(table.load_module(cubin))
        assert fake.calls("jit") == compiled + 1  # the compiled PTX is a cubin now
        table.unload_module(table.load_module(ptx + b"\0"))
        assert fake.calls("jit") == compiled + 2
        fake.card(80)
        with pytest.raises(CudaError, match="NO_BINARY_FOR_GPU"):
            table.load_module(cubin)
        fake.card(75)
        with pytest.raises(CudaError, match="cuLinkAddData: CUDA_ERROR_INVALID_PTX"):
            table.link(ptx)
    with pytest.raises(
        CudaError, match=r"cuLinkAddData: CUDA_ERROR_INVALID_PTX: ptxas fatal: no \.target in line 1"
    ):
        table.link(b"nothing")


def test_ptx_is_read_by_cards_that_are_as_new(fake: FakeDriver, memory: TableMemory) -> None:
    text = PTX.replace("sm_80", "sm_90")
    table = memory._table
    fake.card(103)
    module = table.load_module(text.encode() + b"\0")
    assert table.parameters(table.function(module, "k")) == [8, 4]
    table.unload_module(module)
    for capability, image, error in (
        (89, text, NO_BINARY),
        (90, text.replace(".target", "target"), INVALID_PTX),
        (90, "no module", INVALID_IMAGE),
    ):
        fake.card(capability)
        with pytest.raises(CudaError) as told:
            table.load_module(image.encode() + bytes(64))
        assert told.value.code == error
