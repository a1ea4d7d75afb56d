"""Whole networks by the kernels that a card would run, compared with ONNX Runtime.

A network is compiled for sm_80 into a package. Each module's CUDA C, the text that NVRTC compiled, is
compiled again for this machine, where threads, barriers, shared memory and tensor cores are emulated.
Launches can access their own arguments only, under AddressSanitizer and checks of alignment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from clockwork.models import zoo
from clockwork.models.answers import difference
from clockwork.models.compile import compiler, nvrtc
from clockwork.models.compile.compiler import CompileOptions, compile_model
from clockwork.models.runtime import ModelSession
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
    row: tuple[int, ...]  # shape of a row; an encoder's row holds ids
    products: int  # number of launches on tensor cores, unless compiled in fp32
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
"""Networks of realistic size, except for the encoder's vocabulary, most of which no test would read."""


def check(network: Network, dtype: str, work: Path, jobs: int, architecture: str = "sm_80") -> None:
    path = work / "model.onnx"
    onnx.save(zoo.build(network.architecture, **network.options), path)
    options = CompileOptions(
        (architecture,), (network.batch,), network.shapes, dtype=dtype, verify=False, sources=work / "sources"
    )
    summary = compile_model(path, work / "package", options)
    on_tensor_cores = sum(bool(one.tensor_cores) for one in summary.statistics[0])
    has_none = dtype == "fp32" or architecture == "sm_70"
    assert on_tensor_cores == 0 if has_none else on_tensor_cores >= network.products
    sanitised = bool(process.sanitizer())
    program = modules.emulated(
        work / "package", work / "sources", architecture, work / "emulated",
        modules.SANITISED if sanitised else modules.QUICK, jobs,
    )  # fmt: skip
    session = ModelSession(path, optimise=False)
    tried = [network.inputs(network.batch)]
    if program.padded:  # shorter inputs, whose length is passed to the kernels
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
@pytest.mark.slow
def test_small_networks_answer_by_the_kernels_of_a_card_as_onnx_runtime_does(
    name: str, dtype: str, tmp_path: Path
) -> None:
    check(SMALL[name], dtype, tmp_path, jobs=1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_70", "sm_75"])
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_small_networks_answer_by_the_kernels_of_older_cards(
    name: str, architecture: str, tmp_path: Path
) -> None:
    """The architecture before tensor cores, and the first whose tensor cores these kernels use."""
    check(SMALL[name], "fp16", tmp_path, jobs=1, architecture=architecture)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "tf32"])
def test_newer_cards_run_the_kernels_that_are_emulated(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(zoo.build("mlp", **SMALL["mlp"].options), path)
    known = [
        target for target in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")
        if int(target[3:].rstrip("a")) in nvrtc.library().architectures()
    ]  # fmt: skip
    texts = set()
    for target in known:
        kept = tmp_path / target
        compile_model(
            path,
            tmp_path / f"{target}-package",
            CompileOptions((target,), (16,), dtype=dtype, verify=False, sources=kept),
        )
        (source,) = kept.iterdir()
        texts.add(source.read_text())
    assert len(texts) == 1


@pytest.mark.slow
def test_products_of_16_bits_are_added_up_in_32_where_no_tensor_core_makes_them(tmp_path: Path) -> None:
    """A product may exceed the range of 16 bits, or fall below it."""
    weights = numpy_helper.from_array(np.full((3, 5), 300, np.float32), "w")
    values = [helper.make_tensor_value_info(*one) for one in (("x", 1, ["n", 3]), ("y", 1, ["n", 5]))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", values[:1], values[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    options = CompileOptions(("sm_80",), (2,), dtype="fp16", verify=False, sources=tmp_path / "sources")
    compile_model(tmp_path / "model.onnx", tmp_path / "package", options)
    modules.emulated(tmp_path / "package", tmp_path / "sources", "sm_80", tmp_path / "emulated", jobs=1)
    x = np.float32([[300] * 3, [np.float16(1e-4)] * 3])
    (y,), _ = process.run(tmp_path / "emulated", [x], False)
    np.testing.assert_allclose(y, x @ np.full((3, 5), 300, np.float32), rtol=1e-6)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", FULL)
def test_networks_answer_by_the_kernels_of_a_card_as_onnx_runtime_does(
    name: str, dtype: str, tmp_path: Path
) -> None:
    check(FULL[name], dtype, tmp_path, jobs=0)
