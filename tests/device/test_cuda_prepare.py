"""From a program package to a model that a CUDA device serves."""

from __future__ import annotations

import contextlib
import dataclasses
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from clockwork.errors import InvalidModel
from clockwork.formats.prepared import PreparedModel, TensorSpec, prepared_directory
from clockwork.formats.program import (
    Argument,
    Launch,
    Program,
    TargetModules,
    Variant,
    read_checks,
    read_program,
    write_checks,
    write_program,
)
from clockwork.models import zoo
from clockwork.models.compile import nvrtc
from clockwork.models.compile.compiler import CompileOptions, compile_model
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession
from clockwork.models.trials import try_model
from clockwork.wire.messages import Status
from clockwork.wire.tensors import Array
from tests.device.cuda_rig import PAGE_BYTES, CudaRig, compiled_kernels
from tests.device.fake import DRIVER, environment
from tests.device.rig import Case, Driver, affine, array_of, expected_affine
from tests.device.test_reservations import reserving

X = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
FINGERPRINT = "cuda-host"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "program" / "make.py"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CudaRig]:
    with environment(**DRIVER):
        one = CudaRig(tmp_path)
        yield one
        one.fake.card()


def package(rig: CudaRig, one: Case) -> Path:
    return rig.package(one, [([X], [expected_affine(one, X)])])


class Reserving:
    """Reservations of a device that does nothing else."""

    def __init__(self, driver: Driver, asked_ns: list[int]) -> None:
        self._reserve = reserving(driver)
        self._asked_ns = asked_ns

    def __call__(self, expected_ns: int, runs: Sequence[int]) -> contextlib.AbstractContextManager[list[int]]:
        self._asked_ns.append(expected_ns)
        return self._reserve(expected_ns, runs)

    def give_back(self) -> None:
        """Release nothing: no other model wants the pages."""


def run(
    rig: CudaRig,
    place: Path,
    fingerprint: str = FINGERPRINT,
    capability: int = 0,
    asked_ns: list[int] | None = None,
    **options: object,
) -> tuple[PreparedModel, Path]:
    """Prepare a package, and try it on a device, as a worker does. capability: as for CudaRig.make().
    asked_ns: receives the times that were asked for."""
    prepared = prepare(place, rig.store, fingerprint, PAGE_BYTES, options)
    directory = prepared_directory(rig.store, prepared.digest, fingerprint, options)
    if prepared.untried:
        driver = Driver(rig.make(capability=capability), rig)
        reserve = Reserving(driver, asked_ns if asked_ns is not None else [])
        try:
            driver.device.open(1, str(directory), reserve)
            try_model(driver.device.trial(1), reserve, directory, options)
        finally:
            driver.device.close()
    return PreparedModel.read(directory), directory


def test_a_package_by_hand_is_checked_profiled_and_served(rig: CudaRig) -> None:
    one = affine()
    # a batch costs as much as its kernels, so batching pays even on a busy machine
    rig.fake.speed(kernel_ns=300_000)
    prepared, directory = run(rig, package(rig, one))
    rig.fake.speed()
    assert prepared.holding == "program"
    assert prepared.batches
    assert prepared.runs == [1]
    sizes = [point.batch for point in prepared.profile]
    assert sizes[:3] == [1, 2, 3]  # three rows run on the variant of four
    assert all(point.exec_ns > 0 and point.shape == ((4,),) for point in prepared.profile)
    assert prepared.load_ns > 0
    driver = Driver(rig.make(), rig)
    try:
        driver.device.open(1, str(directory))
        driver.end(driver.load(1, 1, [3]))
        done = driver.end(driver.infer(1, 1, [X]))
        assert done.status == Status.OK
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-5, atol=1e-5)
    finally:
        driver.device.close()
    assert set(rig.fake.live().values()) == {0}


def test_a_model_of_long_executions_is_tried_with_few(rig: CudaRig) -> None:
    rig.fake.speed(kernel_ns=3_000_000)
    asked_ns: list[int] = []
    prepared, _ = run(rig, package(rig, affine()), asked_ns=asked_ns)
    rig.fake.speed()
    sizes = len({point.exec_ns for point in prepared.profile})
    assert sizes == 4
    # Reservations are asked for the model's modules, graphs and weights, and for four executions of each
    # size, or more where the machine is slow.
    assert len(asked_ns) <= 4 + 6.5 * sizes, asked_ns


def test_the_example_by_hand_is_launched_as_a_graph(rig: CudaRig, tmp_path: Path) -> None:
    make = runpy.run_path(str(EXAMPLE))["make"]
    make(tmp_path / "relu", ["host"])
    _, directory = run(rig, tmp_path / "relu")
    (((x,), (expected,)),) = read_checks(tmp_path / "relu", read_program(tmp_path / "relu"))
    driver = Driver(rig.make(), rig)
    try:
        driver.device.open(1, str(directory))
        driver.end(driver.load(1, 1, [3]))
        before = {name: rig.fake.calls(name) for name in ("cuGraphLaunch", "cuLaunchKernel", "kernel")}
        done = driver.end(driver.infer(1, 1, [x]))
        took = {name: rig.fake.calls(name) - calls for name, calls in before.items()}
    finally:
        driver.device.close()
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected, rtol=1e-5, atol=1e-5)
    assert took == {"cuGraphLaunch": 1, "cuLaunchKernel": 0, "kernel": 2}


def test_what_is_prepared_is_found_again(rig: CudaRig) -> None:
    place = package(rig, affine())
    first, _ = run(rig, place)
    launches = rig.fake.calls("kernel")
    again, _ = run(rig, place)
    assert again == first
    assert rig.fake.calls("kernel") == launches


def test_models_of_equal_architecture_share_program_and_profile(rig: CudaRig) -> None:
    first, _ = run(rig, package(rig, affine(0)))
    launches = rig.fake.calls("kernel")
    second, _ = run(rig, package(rig, affine(1)))
    assert (second.program, second.profile) == (first.program, first.profile)
    assert second.digest != first.digest
    assert rig.fake.calls("kernel") - launches < 20  # the answers of the model are checked all the same


def test_a_program_that_answers_wrongly_is_refused(rig: CudaRig) -> None:
    place = rig.package(affine(), [([X], [expected_affine(affine(), X) + 1])])
    with pytest.raises(InvalidModel, match="answers wrongly in a batch of 1"):
        run(rig, place)
    (left,) = (rig.store / "prepared").glob("*cuda*")
    assert PreparedModel.read(left).untried, "it is not taken for one that was checked"


def test_a_program_for_another_architecture_is_refused(rig: CudaRig) -> None:
    place = package(rig, affine())
    with pytest.raises(
        InvalidModel, match="compiled for host; this device is sm_90, which can run none of these"
    ):
        prepare(place, rig.store, "cuda-sm_90-12", PAGE_BYTES, {})
    with pytest.raises(InvalidModel, match="a compiled program runs on CUDA devices"):
        prepare(place, rig.store, "0123456789ab", PAGE_BYTES, {})


@pytest.mark.parametrize("capability", [86, 120])
def test_a_package_for_an_older_card_is_prepared_and_served_on_this_one(
    rig: CudaRig, capability: int
) -> None:
    """Load by the cubin, or by the PTX, which is compiled once for preparation and device."""
    rig.target, rig.ptx = "sm_80", compiled_kernels(target="compute_80")
    rig.module = compiled_kernels(target="sm_80")
    one = affine()
    place = package(rig, one)
    rig.fake.card(capability)
    compiled = rig.fake.calls("jit")
    prepared = prepare(place, rig.store, f"cuda-sm_{capability}-12", PAGE_BYTES, {})
    directory = prepared_directory(rig.store, prepared.digest, f"cuda-sm_{capability}-12", {})
    driver = Driver(rig.make(capability=capability), rig)
    try:
        driver.device.open(1, str(directory))
        driver.end(driver.load(1, 1, [3]))
        done = driver.end(driver.infer(1, 1, [X]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-5, atol=1e-5)
    finally:
        driver.device.close()
    assert rig.fake.calls("jit") - compiled == (capability == 120)


def test_cubins_and_ptx_that_nvrtc_made_pass_what_a_card_checks(rig: CudaRig, tmp_path: Path) -> None:
    """Read bounds, parameters and architectures from cubins. These cubins compute nothing on this machine."""
    if not nvrtc.is_installed():
        pytest.skip("NVRTC is not installed (clockwork-serving[compile])")
    onnx.save(zoo.build("mlp", width=16, depth=1), tmp_path / "mlp.onnx")
    options = CompileOptions(("sm_80",), batches=(1,), verify=False)
    compile_model(tmp_path / "mlp.onnx", tmp_path / "package", options)
    for capability, version, compiled in ((86, 12040, 0), (120, nvrtc.ptx_driver(), 1)):
        rig.fake.setup(device_bytes=1 << 30, version=version)
        rig.fake.card(capability)
        before = rig.fake.calls("jit")
        fingerprint = f"cuda-sm_{capability}-{version // 1000}"
        prepared, _ = run(rig, tmp_path / "package", fingerprint, capability)
        assert prepared.profile
        assert rig.fake.calls("jit") - before == compiled


def test_batching_is_as_compiled_unless_switched_off(rig: CudaRig) -> None:
    place = package(rig, affine())
    prepared, _ = run(rig, place, batching="off")
    assert (prepared.batches, prepared.batch_max) == (False, 1)
    assert [(point.shape, point.batch) for point in prepared.profile] == [(((1, 4),), 1)]
    few, _ = run(rig, place, batch_max=2)
    assert few.batch_max <= 2
    assert max(point.batch for point in few.profile) == 2


def test_a_damaged_package_is_refused(rig: CudaRig) -> None:
    place = package(rig, affine())
    with open(place / "weights.bin", "r+b") as file:
        file.write(b"damage")
    with pytest.raises(InvalidModel, match=r"weights\.bin"):
        run(rig, place)


def test_a_program_says_how_exact_its_answers_are(rig: CudaRig) -> None:
    """Without a declared type, the types of the weights decide."""
    place = rig.package(affine(), [([X], [expected_affine(affine(), X) * np.float32(1.005)])])
    with pytest.raises(InvalidModel, match="the program answers wrongly"):
        run(rig, place)
    write_program(place, dataclasses.replace(read_program(place), tolerance=1e-2))
    assert read_program(place).tolerance == 1e-2
    run(rig, place)


@pytest.mark.slow
def test_an_onnx_model_is_compiled_for_the_device_first(rig: CudaRig, tmp_path: Path) -> None:
    pytest.importorskip("tinygrad", reason="compiling needs the extra [compile]")
    one = affine(width=16)
    (tmp_path / "onnx").mkdir()
    onnx.helper.set_model_props(one.model, {"labels": '["no", "yes"]'})
    (tmp_path / "onnx" / "model.onnx").write_bytes(one.model.SerializeToString())
    prepared, directory = run(rig, tmp_path / "onnx", batch_max=2)
    assert prepared.metadata == {"labels": '["no", "yes"]'}
    assert (prepared.holding, prepared.batches) == ("program", True)
    driver = Driver(rig.make(), rig)
    try:
        driver.device.open(1, str(directory))
        driver.end(driver.load(1, 1, list(range(len(prepared.runs)))))
        x = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
        done = driver.end(driver.infer(1, 1, [x[:1]], [x[1:]]))
        assert done.status == Status.OK, done.text
        for part, given in zip(done.parts, (x[:1], x[1:]), strict=True):
            np.testing.assert_allclose(array_of(part[0]), expected_affine(one, given), rtol=1e-4, atol=1e-4)
    finally:
        driver.device.close()


# ----- shorter inputs ------------------------------------------------------------------------------


def padded_package(rig: CudaRig, table: bool = False) -> Path:
    """A kernel on x (N, 2, S, 2): twice x, and the sum of each row; for 4 and 9 positions, and 1 and 4 rows.
    table: where the kernel finds S."""

    def variant(batch: int, length: int) -> Variant:
        args = [Argument("input", 0, 0), Argument("output", 0, 0), Argument("output", 1, 0)]
        args += [Argument("i32", 0, length), Argument("table" if table else "size", 0, 0)]
        kernel = "within_table_4" if table else "within"
        launch = Launch(0, kernel, (batch, 1, 1), (1, 1, 1), 0, tuple(args))
        shape = (batch, 2, length, 2)
        entries = (Argument("size", 0, 0),) if table else ()
        return Variant("host", batch, (shape,), (shape, (batch,)), 0, (launch,), entries)

    place = rig.store / "padded"
    (place / "modules").mkdir(parents=True)
    (place / "modules" / "kernels.so").write_bytes(rig.module)
    program = Program(
        name="padded",
        inputs=(TensorSpec("x", 1, ("N", 2, "S", 2)),),
        outputs=(TensorSpec("twice", 1, ("N", 2, "S", 2)), TensorSpec("sum", 1, ("N",))),
        batches=True,
        weights=(),
        targets={"host": TargetModules(0, ("modules/kernels.so",))},
        variants=tuple(variant(batch, length) for batch in (1, 4) for length in (9, 4)),
        files={"checks.npz": ""},
        padded=("S",),
    )
    x = np.random.default_rng(1).standard_normal((1, 2, 3, 2)).astype(np.float32)
    write_checks(place, program, [([x], [2 * x, x.sum((1, 2, 3))])])
    write_program(place, program)
    return place


@pytest.mark.parametrize("table", [False, True])
def test_shorter_inputs_are_padded_and_their_answers_cut_back(rig: CudaRig, table: bool) -> None:
    prepared, directory = run(rig, padded_package(rig, table))
    assert {point.shape for point in prepared.profile} == {((2, 4, 2),), ((2, 9, 2),)}
    driver = Driver(rig.make(), rig)
    rng = np.random.default_rng(0)
    try:
        driver.device.open(1, str(directory))
        driver.end(driver.load(1, 1, []))
        for length in range(1, 10):
            for rows in ((1,), (3,), (1, 2)):
                parts = [rng.standard_normal((one, 2, length, 2)).astype(np.float32) for one in rows]
                done = driver.end(driver.infer(1, 1, *[[one] for one in parts]))
                assert done.status == Status.OK, done.text
                for x, (twice, total) in zip(parts, done.parts, strict=True):
                    assert array_of(twice).shape == x.shape
                    np.testing.assert_array_equal(array_of(twice), 2 * x)
                    np.testing.assert_allclose(array_of(total), x.sum((1, 2, 3)), rtol=1e-5, atol=1e-5)
        for length in (0, 10):
            done = driver.end(driver.infer(1, 1, [np.zeros((1, 2, length, 2), np.float32)]))
            assert done.status == Status.INVALID_INPUT
            assert "was not compiled for inputs of the shapes" in done.text
    finally:
        driver.device.close()


@pytest.mark.slow
def test_an_encoder_serves_lengths_that_it_was_not_compiled_for(rig: CudaRig, tmp_path: Path) -> None:
    pytest.importorskip("tinygrad", reason="compiling needs the extra [compile]")
    model = zoo.build("transformer", layers=1, width=16, heads=2, sequence=None, vocabulary=50)
    rng = np.random.default_rng(0)

    def inputs(rows: int, length: int) -> list[Array]:
        ids = rng.integers(0, 50, (rows, length))
        return [ids, (ids % 4 > 0).astype(np.int64)]

    onnx.save(model, tmp_path / "model.onnx")
    compile_model(
        tmp_path / "model.onnx",
        tmp_path / "package",
        CompileOptions(("host",), batches=(2,), shapes={"ids": [[1, 4], [1, 8]]}),
    )
    session = ModelSession(tmp_path / "model.onnx", optimise=False)
    _, directory = run(rig, tmp_path / "package")
    driver = Driver(rig.make(), rig)
    try:
        driver.device.open(1, str(directory))
        driver.end(driver.load(1, 1, [0]))
        for rows, length in ((1, 3), (2, 4), (1, 5), (2, 7), (1, 8)):
            given = inputs(rows, length)
            done = driver.end(
                driver.infer(1, 1, *[[one[row : row + 1] for one in given] for row in range(rows)])
            )
            assert done.status == Status.OK, done.text
            (expected,) = session.run(given)
            actual = np.concatenate([array_of(part[0]) for part in done.parts])
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    finally:
        driver.device.close()
