"""Whole networks by the kernels that a card would run, against ONNX Runtime.

A network is compiled for sm_80 into a package, and each module's CUDA C, the text that NVRTC compiled, is compiled again
for this machine, where threads, barriers, shared memory and tensor cores are emulated. Launches see their own
arguments alone, under AddressSanitizer and checks of alignment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clockwork.models import zoo
from clockwork.models.answers import difference
from clockwork.models.compile import compiler, nvrtc
from clockwork.models.compile.compiler import Options, compile_model
from clockwork.models.runtime import Session
from clockwork.wire.tensors import Array
from tests.emulation import modules, process

pytestmark = pytest.mark.skipif(
    not (compiler.is_installed() and nvrtc.is_installed()),
    reason="NVRTC is not installed (the extra [compile])",
)

TOLERANCES = {"fp32": 2e-5, "tf32": 1e-2, "fp16": 3e-3}
"""The largest difference from ONNX Runtime's answers in fp32, relative to the largest magnitude."""


@dataclasses.dataclass(frozen=True)
class Network:
    architecture: str
    options: Mapping[str, Any]
    row: tuple[int, ...]  # the shape of a row; of ids for an encoder
    products: int  # launches on tensor cores, where it is not compiled in fp32
    batch: int = 2
    shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def inputs(self, rows: int, length: int = 0) -> list[Array]:
        rng = np.random.default_rng(rows)
        if self.architecture != "transformer":
            return [rng.standard_normal((rows, *self.row)).astype(np.float32)]
        ids = rng.integers(0, self.options["vocabulary"], (rows, length or self.row[0]))
        mask = np.ones_like(ids)
        mask[-1, ids.shape[1] * 2 // 3 :] = 0
        return [ids, mask]


ENCODER = {"layers": 1, "width": 32, "heads": 2, "sequence": None, "vocabulary": 100}
SMALL = {
    "digits": Network("digits", {}, (1, 8, 8), 1),
    "mlp": Network("mlp", {"width": 64, "depth": 1}, (64,), 1, batch=16),
    "transformer": Network("transformer", ENCODER, (16,), 8, shapes={"ids": [[1, 16]]}),
}
QUICK = {("mlp", "fp16")}
FULL = {
    "resnet50": Network("resnet50", {}, (3, 224, 224), 47, batch=1),
    "mobilenet": Network("mobilenet_v2", {}, (3, 224, 224), 30, batch=1),
    "encoder": Network(
        "transformer", {"sequence": None, "vocabulary": 1000}, (64,), 48, 2, {"ids": [[1, 64]]}
    ),
    "mlp": Network("mlp", {}, (64,), 3, batch=16),
}
"""As large as people have them, but for the encoder's vocabulary, most of which no test would look at."""


def check(network: Network, dtype: str, work: Path, jobs: int) -> None:
    path = work / "model.onnx"
    onnx.save(zoo.build(network.architecture, **network.options), path)
    options = Options(
        ("sm_80",), (network.batch,), network.shapes, dtype=dtype, verify=False, sources=work / "sources"
    )
    summary = compile_model(path, work / "package", options)
    on_tensor_cores = sum(bool(one.tensor_cores) for one in summary.statistics[0])
    assert on_tensor_cores == 0 if dtype == "fp32" else on_tensor_cores >= network.products
    sanitised = bool(process.sanitizer())
    program = modules.emulated(
        work / "package", work / "sources", "sm_80", work / "emulated",
        modules.SANITISED if sanitised else modules.QUICK, jobs,
    )  # fmt: skip
    session = Session(path, optimise=False)
    tried = [network.inputs(network.batch)]
    if program.padded:  # shorter ones, which the kernels are told the length of
        tried.append(network.inputs(1, length=network.row[0] * 3 // 4))
    for inputs in tried:
        outputs, seconds = process.run(work / "emulated", inputs, sanitised)
        expected = session.run(inputs)
        print(
            f"{network.architecture} {dtype} {inputs[0].shape}: {seconds:.1f} s, {apart(outputs, expected):.1e}"
        )
        assert difference(outputs, expected, TOLERANCES[dtype]) == ""
        if dtype != "fp32":
            assert difference(outputs, expected, 1e-6), "products have been cut"


def apart(outputs: list[Array], expected: list[Array]) -> float:
    return max(
        float(np.abs(one - other).max() / np.abs(other).max()) for one, other in zip(outputs, expected)
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in QUICK else [pytest.mark.slow])
        for name in SMALL
        for dtype in TOLERANCES
    ],
)
def test_small_networks_answer_by_the_kernels_of_a_card_as_onnx_runtime_does(
    name: str, dtype: str, tmp_path: Path
) -> None:
    check(SMALL[name], dtype, tmp_path, jobs=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", FULL)
def test_networks_answer_by_the_kernels_of_a_card_as_onnx_runtime_does(
    name: str, dtype: str, tmp_path: Path
) -> None:
    check(FULL[name], dtype, tmp_path, jobs=0)
