"""Whole networks through the compiler: slow, because each has dozens of kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clockwork.models import zoo
from clockwork.models.compile import nvrtc, report
from clockwork.models.compile.compiler import CompileOptions, compile_model
from tests.unit.models_onnx import normal
from tests.unit.test_compile import Case, check_launches, needs_compiler, needs_nvrtc

pytestmark = pytest.mark.slow


@needs_compiler
@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("resnet18", {"image": 32, "classes": 10}, (3, 32, 32)),
        ("mobilenet_v2", {"image": 64, "classes": 10}, (3, 64, 64)),
        ("mlp", {}, (64,)),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_networks_answer_as_onnx_runtime_does(
    name: str, options: dict[str, Any], shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    case = Case(zoo.build(name, **options), tmp_path, batches=(1, 8), dtype=dtype)
    check_launches(case.program)
    for rows in (1, 3, 8):
        case.check_answers([normal(rows, *shape, seed=rows)], relative=1e-4 if dtype == "fp32" else 2e-2)


@needs_compiler
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_encoder_answers_as_onnx_runtime_does(dtype: str, tmp_path: Path) -> None:
    """The length for which it was compiled, and shorter ones."""
    model = zoo.build("transformer", layers=2, width=64, heads=4, sequence=None, vocabulary=100)
    case = Case(model, tmp_path, batches=(1, 8), dtype=dtype, shapes={"ids": [[1, 16]]})
    check_launches(case.program)
    rng = np.random.default_rng(0)
    for rows, length in ((1, 16), (3, 16), (8, 16), (1, 1), (3, 11)):
        ids, mask = rng.integers(0, 100, (rows, length)), np.ones((rows, length), np.int64)
        mask[0, 9:] = 0
        case.check_answers([ids, mask], relative=1e-4 if dtype == "fp32" else 2e-2)


@needs_nvrtc
@pytest.mark.parametrize(
    ("name", "architectures"),
    [
        ("resnet18", ("sm_90",)),
        pytest.param("resnet50", ("sm_80", "sm_90"), marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_kernel_of_a_resnet_assembles_without_spills(
    name: str, architectures: tuple[str, ...], dtype: str, tmp_path: Path
) -> None:
    model = tmp_path / f"{name}.onnx"
    onnx.save(zoo.build(name), model)
    options = CompileOptions(architectures, (1,), dtype=dtype, verify=False)
    summary = compile_model(model, tmp_path / "package", options)
    assert nvrtc.is_installed()
    for variant, log in zip(summary.program.variants, summary.logs, strict=True):
        resources = report.parse_log(log)
        assert {launch.kernel for launch in variant.launches} == set(resources)
        assert len(variant.launches) < 60
        if dtype == "fp32":
            assert [name for name, one in resources.items() if one.spilled] == []
    if dtype == "fp32":
        assert not any(one.tensor_cores for variant in summary.statistics for one in variant)
    if dtype == "fp16":
        products = [one for variant in summary.statistics for one in variant if one.tensor_cores]
        least = {"resnet18": 15, "resnet50": 40}[name]  # number of weights that multiply, of 21 and 54 layers
        assert len(products) >= least * len(architectures)
