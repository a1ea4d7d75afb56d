"""Whole networks, compiled for the host and served by the CUDA device on the fake driver: launch lists,
paging and arguments as on a card. Where the compiler is not installed, they skip."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clockwork.formats.prepared import prepared_directory
from clockwork.models import zoo
from clockwork.models.answers import RELATIVE, difference
from clockwork.models.compile import compiler, nvrtc
from clockwork.models.compile.compiler import CompileOptions, compile_model
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession
from clockwork.wire.messages import PRODUCT_DTYPES, Status
from clockwork.wire.tensors import Array
from tests.device.cuda_rig import PAGE_BYTES, CardRig, CudaRig, why_no_card
from tests.device.fake import DRIVER, environment
from tests.device.rig import Driver, array_of
from tests.emulation import modules
from tests.unit.test_compile import check_launches

pytestmark = pytest.mark.skipif(
    not compiler.is_installed(), reason="tinygrad is not installed (the extra [compile])"
)

PAGES = 1024

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "digits": ({}, (1, 8, 8)),
    "resnet18": ({"image": 32, "classes": 10}, (3, 32, 32)),
    "mobilenet_v2": ({"image": 32, "classes": 10}, (3, 32, 32)),
    "mlp": ({}, (64,)),
    "transformer": ({"layers": 2, "width": 64, "heads": 4, "sequence": 16, "vocabulary": 100}, (16,)),
}
"""Networks of full structure with small images, because a processor computes them number by number."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CudaRig]:
    with environment(**DRIVER):
        yield CudaRig(tmp_path / "store")


def inputs(name: str, rows: int) -> list[Array]:
    rng = np.random.default_rng(rows)
    shape = NETWORKS[name][1]
    if name != "transformer":
        return [rng.standard_normal((rows, *shape)).astype(np.float32)]
    mask = np.ones((rows, *shape), np.int64)
    mask[0, 9:] = 0
    return [rng.integers(0, 100, (rows, *shape)), mask]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("resnet18", "mobilenet_v2") else [])
        for name in NETWORKS
    ],
)
@pytest.mark.slow
def test_networks_on_the_device_answer_as_onnx_runtime_does(name: str, rig: CudaRig, tmp_path: Path) -> None:
    """A network compiled for 1 and 8 rows: three rows run on the variant of eight."""
    path = tmp_path / "model.onnx"
    onnx.save(zoo.build(name, **NETWORKS[name][0]), path)
    # The device is compared with ONNX Runtime below, as the package is while it is prepared.
    summary = compile_model(
        path, tmp_path / "package", CompileOptions(("host",), batches=(1, 8), verify=False)
    )
    check_launches(summary.program)
    assert [one.batch for one in summary.program.variants] == [1, 8]
    check_device(name, tmp_path / "package", path, rig)


@pytest.mark.slow
@pytest.mark.skipif(not nvrtc.is_installed(), reason="NVRTC is not installed (the extra [compile])")
@pytest.mark.parametrize(("name", "dtype"), [("transformer", "fp16"), ("digits", "tf32")])
def test_networks_on_the_device_answer_by_the_kernels_of_a_card(
    name: str, dtype: str, rig: CudaRig, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(zoo.build(name, **NETWORKS[name][0]), path)
    options = CompileOptions(("sm_80",), (1, 8), dtype=dtype, verify=False, sources=tmp_path / "sources")
    compile_model(path, tmp_path / "package", options)
    made = tmp_path / "emulated"
    modules.emulated(tmp_path / "package", tmp_path / "sources", "sm_80", made)
    check_device(name, made, path, rig, relative=3e-3)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_card()), reason=why_no_card())
@pytest.mark.parametrize("dtype", PRODUCT_DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_a_gpu_answer_as_onnx_runtime_does(name: str, dtype: str, tmp_path: Path) -> None:
    rig = CardRig(tmp_path / "store")
    path = tmp_path / "model.onnx"
    onnx.save(zoo.build(name, **NETWORKS[name][0]), path)
    compile_model(
        path, tmp_path / "package", CompileOptions((rig.target,), (1, 8), dtype=dtype, verify=False)
    )
    check_device(name, tmp_path / "package", path, rig, compiler.TOLERANCES[dtype] or RELATIVE)


def check_device(name: str, package: Path, model: Path, rig: CudaRig, relative: float = RELATIVE) -> None:
    """A package for up to 8 rows, served by a device, gives ONNX Runtime's answers."""
    session = ModelSession(model, optimise=False)
    driver = Driver(rig.make(pages=PAGES), rig)
    try:
        prepared = prepare(package, rig.store, rig.fingerprint, PAGE_BYTES, {})
        directory = prepared_directory(rig.store, prepared.digest, rig.fingerprint, {})
        driver.device.open(1, str(directory))
        # Pages are taken from the last one down, so that no run lies where it does in the file.
        driver.end(driver.load(1, 1, [PAGES - end for end in accumulate(prepared.runs)]))
        for parts in ((1,), (1, 2), (1, 1, 6)):
            given = inputs(name, sum(parts))
            ends = list(accumulate(parts))
            cut = [[one[end - rows : end] for one in given] for rows, end in zip(parts, ends, strict=True)]
            done = driver.end(driver.infer(1, 1, *cut))
            assert done.status == Status.OK, done.text
            actual = [np.concatenate(views) for views in zip(*(map(array_of, part) for part in done.parts))]
            assert difference(actual, session.run(given), relative) == "", parts
    finally:
        driver.device.close()
    rig.check_released()
