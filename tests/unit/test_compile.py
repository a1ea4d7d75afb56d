"""From ONNX to a program package: its answers, its content, and the models that are refused.

Kernels for the host are run here, launch by launch, in plain memory, as a device would run a program. Where
the extra [compile] is not installed, all of this skips.
"""

from __future__ import annotations

import dataclasses
import filecmp
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from clockwork.cli.root import cli
from clockwork.errors import InvalidModel
from clockwork.formats.program import (
    Launch,
    Program,
    Variant,
    check_files,
    package_files,
    program_hash,
    read_checks,
    read_program,
)
from clockwork.models import zoo
from clockwork.models.answers import difference
from clockwork.models.compile import compiler, nvrtc, report
from clockwork.models.compile.compiler import CompileOptions, compile_model
from clockwork.models.compile.freeze import freeze
from clockwork.models.compile.host import HostExecutor
from clockwork.models.compile.onnx_package import compile_package
from clockwork.models.compile.variant import Statistic
from clockwork.models.compile.widths import widths_of
from clockwork.models.runtime import ModelSession
from clockwork.wire.tensors import Array
from tests.unit.models_onnx import INT64, initializer, model_of, normal, save_package, value

needs_compiler = pytest.mark.skipif(
    not compiler.is_installed(), reason="tinygrad is not installed (the extra [compile])"
)
needs_nvrtc = pytest.mark.skipif(
    not (compiler.is_installed() and nvrtc.is_installed()),
    reason="NVRTC is not installed (the extra [compile])",
)


class Case:
    """A model, and the package made from it."""

    def __init__(self, model: onnx.ModelProto, folder: Path, **options: Any) -> None:
        self.path = folder / "model.onnx"
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, self.path)
        self.directory = folder / "package"
        self.summary = compile_model(
            self.path, self.directory, CompileOptions(**{"targets": ("host",), "batches": (1,), **options})
        )
        self.program = read_program(self.directory)
        check_files(self.program, self.directory)

    def check_answers(self, inputs: list[Array], relative: float = 1e-4) -> None:
        """Check that the launches answer as ONNX Runtime does."""
        expected = ModelSession(self.path, optimise=False).run(inputs)
        actual = HostExecutor(self.program, self.directory).run(inputs)
        assert difference(actual, expected, relative) == ""


def check_launches(program: Program) -> None:
    """Check that no launch reads only weights: its result would be the same at every inference.

    Reading the package has already refused launches that access an address misaligned for their kernel.
    """
    for variant in program.variants:
        for launch in variant.launches:
            assert len(launch.widths) == len(variant.pointers(launch)), "widths are told"
            written, *read = map(variant.resolved, launch.args)
            assert written.kind in ("output", "workspace")
            assert {one.kind for one in read} - {"weight"}, launch


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(zoo.build("digits"), tmp_path_factory.mktemp("digits"), batches=(4, 1))


# ----- answers ---------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_digits_answer_as_onnx_runtime_does(digits: Case, rows: int) -> None:
    assert [variant.batch for variant in digits.program.variants] == [1, 4]
    digits.check_answers([normal(rows, 1, 8, 8, seed=rows)])


@needs_compiler
@pytest.mark.slow
def test_a_network_of_residual_blocks_answers_as_onnx_runtime_does(tmp_path: Path) -> None:
    model = zoo.build("residual_cnn", image=16, widths=(8, 16), blocks=(1, 1), fold=False)
    case = Case(model, tmp_path, batches=(1, 4))
    check_launches(case.program)
    for rows in (1, 3):
        case.check_answers([normal(rows, 3, 16, 16, seed=rows)])


@needs_compiler
@pytest.mark.slow
def test_an_encoder_is_compiled_for_each_length_that_is_named(tmp_path: Path) -> None:
    model = zoo.build("transformer", layers=1, width=16, heads=2, sequence=None, vocabulary=50)
    case = Case(model, tmp_path, batches=(2,), shapes={"ids": [[1, 4], [1, 8]]})
    check_launches(case.program)
    assert [variant.shapes for variant in case.program.variants] == [((2, 4), (2, 4)), ((2, 8), (2, 8))]
    rng = np.random.default_rng(0)
    assert case.program.padded == ("S",)
    assert case.summary.padding_note == "padded in 'S': proven to be harmless, and tried"
    assert case.summary.verified.startswith("2 compared")  # the example and a shorter input were compared
    for rows, length in ((1, 4), (2, 8), (1, 1), (2, 3), (1, 6)):
        ids = rng.integers(0, 50, (rows, length))
        case.check_answers([ids, rng.integers(0, 2, ids.shape)])
    executor = HostExecutor(case.program, case.directory)
    for shapes in ([(1, 9), (1, 9)], [(1, 3), (1, 4)]):
        with pytest.raises(InvalidModel, match="no variant for inputs of"):
            executor.run([np.zeros(shape, np.int64) for shape in shapes])
    for wild in (50, 2**40, -(2**62)):  # ids beyond the table read nothing outside it
        (answer,) = executor.run([np.full((1, 4), wild), np.ones((1, 4), np.int64)])
        assert np.isfinite(answer).all()


def last_token() -> onnx.ModelProto:
    """Return the numbers of the last position, at any length."""
    nodes = [helper.make_node("Gather", ["x", "last"], ["y"], axis=1)]
    last = initializer("last", -1, np.int64)
    return model_of(nodes, [value("x", ["N", "S", 4])], [value("y", ["N", 4])], [last])


@needs_compiler
@pytest.mark.slow
def test_what_cannot_be_padded_runs_in_its_own_shapes_alone_and_it_is_said_why(tmp_path: Path) -> None:
    exact = {"batches": (1,), "shapes": {"x": [[1, 3, 4], [1, 6, 4]]}}
    case = Case(last_token(), tmp_path / "last", **exact)
    assert case.program.padded == ()
    assert case.summary.padding_note == (
        "exact shapes only in 'S': operator Gather picks positions of an open axis"
    )
    case.check_answers([normal(1, 6, 4)])
    with pytest.raises(InvalidModel, match=r"no variant for inputs of \[\[1, 5, 4\]\]"):
        HostExecutor(case.program, case.directory).run([normal(1, 5, 4)])
    model = zoo.build("transformer", layers=1, width=4, heads=2, sequence=None, embedded=True)
    off = Case(model, tmp_path / "off", batches=(1,), shapes={"embeddings": [[1, 3, 4]]}, pad=False)
    assert off.program.padded == ()
    assert off.summary.padding_note == "exact shapes only in 'S': padding is switched off"


@needs_compiler
@pytest.mark.slow
def test_dimensions_that_a_converter_left_without_a_name_need_not_be_equal(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", ["N", "?", "?"])], [value("y", ["N", "?", "?"])]
    )
    case = Case(model, tmp_path, batches=(2,), shapes={"x": [[1, 3, 5], [1, 4, 4]]})
    assert case.summary.padding_note == "exact shapes only: dimension 1 of input 'x' has no name"
    for shape in ((1, 3, 5), (2, 4, 4)):
        case.check_answers([normal(*shape)])


@needs_compiler
@pytest.mark.slow
def test_a_proof_that_trying_refutes_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a rule were wrong, values behind the end would show in the answers."""
    monkeypatch.setattr(
        "clockwork.models.compile.following.Following.mask", lambda self, at, axes, neutral: None
    )
    model = zoo.build("transformer", layers=1, width=4, heads=2, sequence=None, embedded=True)
    case = Case(model, tmp_path, batches=(1,), shapes={"embeddings": [[1, 6, 4]]})
    assert case.program.padded == ()
    assert "'S': the padded model answers differently: output 0 is apart" in case.summary.padding_note
    case.check_answers([normal(1, 6, 4)])


@needs_compiler
@pytest.mark.slow
def test_half_precision_halves_the_weights_and_says_what_it_cost(tmp_path: Path) -> None:
    model = zoo.build("mlp", width=32, depth=2)
    case = Case(model, tmp_path / "half", dtype="fp16")
    full = Case(model, tmp_path / "full")
    assert case.summary.folded >= 3  # the weights were cast when the package was made
    check_launches(case.program)
    halved = sum(weight.bytes for weight in case.program.weights if weight.dtype == TensorProto.FLOAT16)
    assert halved > 0.9 * case.program.weights_bytes  # the remaining weights are biases
    assert case.program.weights_bytes < 0.6 * full.program.weights_bytes
    case.check_answers([normal(1, 64)], relative=1e-2)
    assert re.fullmatch(
        r"1 compared, apart by \d\.\de-0[345] of the largest value at most", case.summary.verified
    )


@needs_compiler
@pytest.mark.slow
def test_what_a_model_gives_back_untouched_or_twice_is_copied(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["first"]),
        helper.make_node("Identity", ["first"], ["second"]),
        helper.make_node("ArgMax", ["x"], ["best"], axis=1),
    ]
    outputs = [value(name, ["N", 5]) for name in ("same", "first", "second")]
    model = model_of(nodes, [value("x", ["N", 5])], [*outputs, value("best", ["N", 1], INT64)])
    Case(model, tmp_path / "whole", batches=(3,)).check_answers([normal(2, 5)])
    parts = model_of(
        [helper.make_node("Split", ["x"], ["a", "b"], num_outputs=2, axis=0)],
        [value("x", [6])],
        [value("a", [3]), value("b", [3])],
        opset=18,
    )
    Case(parts, tmp_path / "parts").check_answers([normal(6)])


@needs_compiler
@pytest.mark.slow
def test_shapes_that_onnx_runtime_leaves_to_be_computed_are_computed_when_compiling(tmp_path: Path) -> None:
    """GroupNormalization reaches the compiler as its expansion: Shape, Concat, Reshape ..."""
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)
    weights = [initializer("scale", normal(4, seed=1)), initializer("bias", normal(4, seed=2))]
    model = model_of(
        [node], [value("x", ["N", 4, 3, 3])], [value("y", ["N", 4, 3, 3])], weights, opset=21, ir_version=10
    )
    Case(model, tmp_path, batches=(2,)).check_answers([normal(1, 4, 3, 3)])


ATTENTION = {
    "x": [1, 3, 16],
    "k": [1, 5, 8],
    "v": [1, 5, 8],
    "mask": [3, 5],
    "pk": [1, 2, 6, 4],
    "pv": [1, 2, 6, 4],
}


@pytest.mark.parametrize("names", [["k", "v", "mask"], ["k", "v", "", "pk", "pv"]])
def test_attention_is_compiled_as_the_operators_that_define_it(tmp_path: Path, names: list[str]) -> None:
    """Attention with four heads of queries and two of keys and values, behind a constant projection of the
    queries; with a mask, and with past keys and values and no mask."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("Attention", ["q", *names], ["y", "yk", "yv"], q_num_heads=4, kv_num_heads=2),
        helper.make_node("Neg", ["y"], ["z"]),
        helper.make_node("Attention", ["z", *names], ["twice", "tk", "tv"], q_num_heads=4, kv_num_heads=2),
    ]
    shapes = [ATTENTION[name] for name in ("x", *filter(None, names))]
    inputs = [value(name, ATTENTION[name]) for name in ("x", *filter(None, names))]
    outputs = [value("y", [1, 3, 16]), value("twice", [1, 3, 16]), value("yk", [1, 2, None, 4])]
    weights = [initializer("w", normal(16, 16))]
    onnx.save(model_of(nodes, inputs, outputs, weights, opset=23, ir_version=11), tmp_path / "model.onnx")
    given = [normal(*shape, seed=1) for shape in shapes]
    freeze(tmp_path / "model.onnx", shapes, tmp_path / "frozen.onnx")
    assert "Attention" not in [node.op_type for node in onnx.load(tmp_path / "frozen.onnx").graph.node]
    expected = ModelSession(tmp_path / "model.onnx", optimise=False).run(given)
    assert difference(ModelSession(tmp_path / "frozen.onnx", optimise=False).run(given), expected) == ""


def test_attention_of_a_model_with_two_versions_of_onnx_is_refused(tmp_path: Path) -> None:
    """Some exporters import ONNX's operators under both names, "" and "ai.onnx". This is accepted if both
    have the same version."""
    shapes = [ATTENTION[name] for name in ("x", "k", "v")]
    inputs = [value(name, ATTENTION[name]) for name in ("x", "k", "v")]
    node = helper.make_node("Attention", ["x", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=2)
    model = model_of([node], inputs, [value("y", [1, 3, 16])], [], opset=23, ir_version=11)
    model.opset_import.append(helper.make_opsetid("ai.onnx", 23))
    onnx.save(model, tmp_path / "model.onnx")
    freeze(tmp_path / "model.onnx", shapes, tmp_path / "frozen.onnx")
    model.opset_import[1].version = 24
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match=r"imports versions \[23, 24\] of ONNX's operators"):
        freeze(tmp_path / "model.onnx", shapes, tmp_path / "frozen.onnx")


@needs_compiler
@pytest.mark.slow
def test_a_constant_that_is_cast_before_it_is_read_is_known_when_compiled(tmp_path: Path) -> None:
    """The padding value is part of a kernel. ONNX Runtime folds no CastLike."""
    nodes = [
        helper.make_node("CastLike", ["number", "x"], ["least"]),
        helper.make_node("Pad", ["x", "pads", "least"], ["y"]),
    ]
    weights = [initializer("number", [-7.0]), initializer("pads", [0, 1, 0, 2], np.int64)]
    model = model_of(nodes, [value("x", [2, 3])], [value("y", [2, 6])], weights, opset=19)
    Case(model, tmp_path).check_answers([normal(2, 3)])


@needs_compiler
@pytest.mark.slow
def test_a_model_that_does_not_batch_is_compiled_as_it_is(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [2, 3])],
        [value("y", [2, 4])],
        [initializer("w", normal(3, 4))],
    )
    case = Case(model, tmp_path, batches=(1, 8))
    assert not case.program.batches
    assert [variant.batch for variant in case.program.variants] == [1]
    case.check_answers([normal(2, 3)])


# ----- the package -----------------------------------------------------------------------------


@pytest.mark.slow
@needs_compiler
def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    """Programs of an encoder with a mask, for the host and, where NVRTC is there, a GPU; in whatever order it
    is made."""
    model = zoo.build("transformer", layers=1, width=8, heads=2, sequence=None, vocabulary=20)
    targets = ("host", "sm_80") if nvrtc.is_installed() else ("host",)
    cases = [
        Case(model, tmp_path / str(jobs), targets=targets, shapes={"ids": [[1, 4]]}, jobs=jobs)
        for jobs in (1, 2)
    ]
    files = [path for path, _ in package_files(cases[0].directory)]
    assert filecmp.cmpfiles(cases[0].directory, cases[1].directory, files, shallow=False) == (files, [], [])


@needs_compiler
def test_fine_tunes_share_their_program(tmp_path: Path) -> None:
    model = zoo.build("mlp", width=16, depth=1)
    one = Case(model, tmp_path / "one")
    other = Case(zoo.fine_tune(model, 7), tmp_path / "other", name="tuned")
    wider = Case(zoo.build("mlp", width=20, depth=1), tmp_path / "wider")
    assert other.program.name == "tuned"
    assert one.program.files["weights.bin"] != other.program.files["weights.bin"]
    assert program_hash(one.program) == program_hash(other.program) != program_hash(wider.program)


@needs_compiler
def test_a_package_brings_answers_to_check_a_device_with(digits: Case) -> None:
    ((inputs, outputs),) = read_checks(digits.directory, digits.program)
    assert [array.shape for array in (*inputs, *outputs)] == [(1, 1, 8, 8), (1, 10)]
    assert difference(ModelSession(digits.path, optimise=False).run(inputs), outputs) == ""


@needs_compiler
def test_damaged_checks_are_refused(digits: Case, tmp_path: Path) -> None:
    shutil.copytree(digits.directory, tmp_path / "copy")
    (tmp_path / "copy" / "checks.npz").write_bytes(b"PK nothing")
    with pytest.raises(InvalidModel, match=r"checks.npz cannot be read"):
        read_checks(tmp_path / "copy", digits.program)
    with pytest.raises(InvalidModel, match=r"'checks.npz' is damaged"):
        package_files(tmp_path / "copy")


@needs_nvrtc
@pytest.mark.slow
def test_kernels_assemble_for_the_architectures_asked_for(tmp_path: Path) -> None:
    case = Case(zoo.build("mlp", width=16, depth=1), tmp_path, targets=("sm_90", "sm_80"), dtype="fp16")
    assert list(case.program.targets) == ["sm_80", "sm_90"]
    assert case.program.targets["sm_80"].ptx == ()
    newest = case.program.targets["sm_90"]
    assert newest.ptx_driver // 1000 * 1000 == newest.driver
    for path, module in zip(newest.ptx, newest.modules, strict=True):
        text = (case.directory / path).read_text()
        assert ".target sm_90\n" in text
        assert Path(path).stem == Path(module).stem
        kernels = {launch.kernel for one in case.program.of_target("sm_90") for launch in one.launches}
        assert {*re.findall(r"\.entry (\w+)\(", text)} <= kernels
    check_launches(case.program)
    major = nvrtc.library().version[0]
    for variant, log in zip(case.program.variants, case.summary.logs, strict=True):
        target = case.program.targets[variant.target]
        assert target.driver == 1000 * major
        code = (case.directory / target.modules[0]).read_bytes()
        assert code.startswith(b"\x7fELF")
        resources = report.parse_log(log)
        for launch in variant.launches:
            assert launch.kernel.encode() in code
            assert resources[launch.kernel].registers > 0
    # on the host, although the host is not among the targets
    assert case.summary.verified.startswith("1 compared")


def test_of_two_versions_of_nvrtc_the_headers_are_the_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer NVRTC is present, as brought by ONNX Runtime for GPUs."""
    folders = [tmp_path / name for name in ("cuda_nvrtc", "cuda_runtime", "cu13")]
    for path in (
        "cuda_nvrtc/lib/libnvrtc.so.12",
        "cuda_runtime/include/cuda_fp16.h",
        "cu13/lib/libnvrtc.so.13",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "cu13/include").mkdir()
    (tmp_path / "cu13/include/cuda_fp16.h").touch()
    monkeypatch.setattr(nvrtc, "_folders", lambda: folders)
    assert nvrtc.places() == {
        "NVRTC_PATH": str(tmp_path / "cuda_nvrtc/lib/libnvrtc.so.12"),
        "CUDA_PATH": str(tmp_path / "cuda_runtime"),
    }


@needs_nvrtc
@pytest.mark.parametrize("target", ["sm_70", "sm_75", "sm_90a", "sm_100f", "sm_120"])
@pytest.mark.slow
def test_kernels_assemble_for_architectures_with_features_of_their_own(target: str, tmp_path: Path) -> None:
    """Also for the oldest and newest architectures that NVRTC supports."""
    try:
        nvrtc.check_target(target)
    except InvalidModel as error:
        pytest.skip(str(error))
    model = zoo.build("mlp", width=16, depth=1, inputs=16, outputs=16)
    case = Case(model, tmp_path, targets=(target,), batches=(16,), dtype="fp16", verify=False)
    assert list(case.program.targets) == [target]
    (statistics,) = case.summary.statistics
    assert any(one.tensor_cores for one in statistics) == (target != "sm_70")


@needs_nvrtc
def test_ptx_can_be_left_out(tmp_path: Path) -> None:
    case = Case(zoo.build("null"), tmp_path, targets=("sm_80",), ptx=False, verify=False)
    assert case.program.targets["sm_80"].ptx == ()
    assert not list(case.directory.rglob("*.ptx"))
    assert "ptx" not in (case.directory / "program.json").read_text()


@needs_nvrtc
def test_a_worker_compiles_for_its_device_or_for_what_that_runs() -> None:
    assert nvrtc.closest("sm_86") == ("sm_86", False)
    assert nvrtc.closest("sm_88") == ("sm_86", False)
    newest = nvrtc.library().architectures()[-1]
    assert nvrtc.closest("sm_990") == (f"sm_{newest}", True)
    with pytest.raises(InvalidModel, match="sm_30 is not one that NVRTC"):
        nvrtc.closest("sm_30")
    assert nvrtc.closest("host") == ("host", False)


@needs_nvrtc
@pytest.mark.parametrize("dtype", ["fp32", "tf32", "fp16"])
@pytest.mark.slow
def test_products_use_tensor_cores_only_if_fewer_bits_are_asked_for(dtype: str, tmp_path: Path) -> None:
    """Tensor-core kernels for 32 bits cut their factors to 10 bits of mantissa, unlike the host's kernels."""
    model = zoo.build("mlp", width=16, depth=1, inputs=16, outputs=16)
    case = Case(model, tmp_path, targets=("sm_80",), batches=(16,), dtype=dtype, verify=False)
    (statistics,) = case.summary.statistics
    expected = {"fp32": [], "tf32": ["tf32"] * 2, "fp16": ["f16"] * 2}
    assert [one.tensor_cores for one in statistics if one.tensor_cores] == expected[dtype]
    assert case.program.tolerance == {"fp32": None, "tf32": 1e-2, "fp16": 5e-2}[dtype]


@pytest.mark.slow
@needs_nvrtc
def test_tuning_chooses_among_kernels_and_the_package_holds_the_one_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tinygrad's device that executes nothing: every kernel takes the same time, and the first one
    wins."""
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", ["N", 64])], [value("y", ["N", 64])]
    )
    monkeypatch.setattr(compiler, "TUNING_DEVICE", "NULL")
    monkeypatch.setattr(compiler, "local_architecture", lambda: "sm_80")
    plain = Case(model, tmp_path / "plain", targets=("sm_80",))
    monkeypatch.setitem(compiler.CHILD_ENVIRONMENT, "DEV", "NULL:CUDA:sm_80")
    tuned = Case(model, tmp_path / "tuned", targets=("sm_80",), tune=True, verify=False)
    kernels = [[launch.kernel for launch in case.program.variants[0].launches] for case in (plain, tuned)]
    assert len(kernels[1]) == 1
    assert kernels[0] != kernels[1]


@needs_nvrtc
def test_tuning_needs_a_gpu_of_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "local_architecture", lambda: "")
    with pytest.raises(InvalidModel, match="on a GPU of this machine: there is none, not sm_80"):
        Case(zoo.build("null"), tmp_path, targets=("sm_80",), tune=True)


# ----- refusals --------------------------------------------------------------------------------


def unary(op: str, domain: str = "", dtype: int = TensorProto.FLOAT, **attributes: Any) -> onnx.ModelProto:
    return model_of(
        [helper.make_node(op, ["x"], ["y"], domain=domain, **attributes)],
        [value("x", [4, 4], dtype)],
        [value("y", None, dtype)],
        domains=[(domain, 1)] if domain else [],
    )


def with_body() -> onnx.ModelProto:
    """y = x if x[0, 0] > 0 else -x."""

    def branch(name: str, op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, ["x"], [name])], name, [], [value(name, [1, 4])])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["c"], ["y"], then_branch=branch("a", "Identity"), else_branch=branch("b", "Neg")
        ),
    ]
    return model_of(nodes, [value("x", [1, 4])], [value("y", [1, 4])])


def nonzero() -> onnx.ModelProto:
    return model_of(
        [helper.make_node("NonZero", ["x"], ["y"])], [value("x", [4, 4])], [value("y", [2, "count"], INT64)]
    )


def strings() -> onnx.ModelProto:
    kind = TensorProto.STRING
    nodes = [helper.make_node("StringConcat", ["x", "x"], ["y"])]
    return model_of(nodes, [value("x", [2], kind)], [value("y", [2], kind)], opset=20)


def of_unknown_shape() -> onnx.ModelProto:
    """The sizes of y are values of x."""
    nodes = [helper.make_node("ConstantOfShape", ["x"], ["y"])]
    return model_of(nodes, [value("x", [2], INT64)], [value("y", None)])


@needs_compiler
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: unary("Det"), r"no kernels are known for Det$"),
        (lambda: unary("Inverse", "com.microsoft"), r"no kernels are known for com.microsoft.Inverse$"),
        (nonzero, r"operator NonZero cannot be compiled here: a value .* is only known when it runs"),
        (with_body, r"no kernels are known for If$"),
        (strings, r"input 'x' is strings, which no kernel reads: it runs on CPU devices$"),
        (of_unknown_shape, r"operator ConstantOfShape cannot be compiled here: a value .* is only known when"),
        (lambda: unary("Bernoulli", seed=1.0), r"no kernels are known for RandomUniformLike$"),
    ],
    ids=["Det", "Inverse", "NonZero", "If", "strings", "ConstantOfShape", "Bernoulli"],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_by_name(
    make: Callable[[], onnx.ModelProto], says: str | None, tmp_path: Path
) -> None:
    with pytest.raises(InvalidModel, match=says):
        Case(make(), tmp_path)
    assert not (tmp_path / "package").exists()
    assert list(tmp_path.glob(".compiling-*")) == []


@needs_compiler
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": ()}, "give an architecture"),
        ({"batches": (0,)}, r"batch sizes are 1 to 65536, not \[0\]"),
        ({"dtype": "int4"}, "dtype 'int4' is none of fp32, tf32, fp16"),
        ({"shapes": {"z": [[1]]}}, "no input 'z'; it has x"),
        ({"shapes": {"x": [[1, 3]]}}, r"shape \[1, 3\] of input 'x' is not of \['N', 64\]"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=says):
        Case(zoo.build("mlp", width=16, depth=1), tmp_path, **options)


@needs_nvrtc
@pytest.mark.parametrize("target", ["sm_11", "80", "sm_80fa"])
def test_an_architecture_that_nobody_makes_is_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=rf"architecture {target} is not one that NVRTC .* makes: .*sm_80"):
        Case(zoo.build("null"), tmp_path, targets=(target,))


@needs_compiler
def test_an_open_dimension_needs_a_size(tmp_path: Path) -> None:
    model = zoo.build("transformer", layers=1, width=16, heads=2, sequence=None, vocabulary=50)
    with pytest.raises(
        InvalidModel, match=r"dimension 1 of input 'ids' \['N', 'S'\] has no size: .*--shape ids:"
    ):
        Case(model, tmp_path)


def test_without_the_extra_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "is_installed", lambda: False)
    with pytest.raises(
        InvalidModel,
        match=r"needs tinygrad, which is not installed: pip install 'clockwork-serving\[compile\]'",
    ):
        Case(zoo.build("null"), tmp_path)


# ----- alignment -------------------------------------------------------------------------------


def slices(kind: int, cuts: list[int], computed: bool) -> onnx.ModelProto:
    """Outputs that are contiguous slices of the input, or of computed values, and results computed from
    them."""
    whole, names = sum(cuts), [f"part{number}" for number in range(len(cuts))]
    source, nodes = "x", []
    if computed:
        nodes.append(helper.make_node("Relu", ["x"], ["source"]))
        source = "source"
    nodes.append(helper.make_node("Split", [source, "cuts"], names, axis=1))
    nodes += [helper.make_node("Neg", [name], [f"neg_{name}"]) for name in names]
    outputs = [
        helper.make_tensor_value_info(prefix + name, kind, [1, cut, 13])
        for name, cut in zip(names, cuts)
        for prefix in ("", "neg_")
    ]
    graph = helper.make_graph(
        nodes, "slices", [helper.make_tensor_value_info("x", kind, [1, whole, 13])], outputs,
        [helper.make_tensor("cuts", TensorProto.INT64, [len(cuts)], cuts)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@needs_nvrtc
@pytest.mark.parametrize(
    ("kind", "cuts", "computed"),
    [
        (
            TensorProto.FLOAT,
            [5, 8, 8],
            False,
        ),  # the second begins at byte 260, where a read of four floats is misaligned
        pytest.param(TensorProto.FLOAT, [5, 8, 8], True, marks=pytest.mark.slow),
        pytest.param(TensorProto.FLOAT16, [1, 8, 3, 16], False, marks=pytest.mark.slow),
        pytest.param(TensorProto.INT32, [3, 4, 4, 4], True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_no_kernel_reads_a_vector_where_a_slice_begins_that_it_does_not_divide(
    kind: int, cuts: list[int], computed: bool, tmp_path: Path
) -> None:
    case = Case(slices(kind, cuts, computed), tmp_path, targets=("sm_90", "host"))
    check_launches(case.program)
    for variant in case.program.variants:
        for launch in variant.launches:
            for width, pointer in zip(launch.widths, variant.pointers(launch), strict=True):
                assert int(pointer.value) % width == 0, launch
    x = (
        np.random.default_rng(1)
        .integers(-50, 50, (1, sum(cuts), 13))
        .astype(helper.tensor_dtype_to_np_dtype(kind))
    )
    case.check_answers([x])


@needs_nvrtc
@pytest.mark.slow
def test_kernels_still_read_vectors_where_they_may(tmp_path: Path) -> None:
    case = Case(slices(TensorProto.FLOAT, [4, 8, 8], False), tmp_path, targets=("sm_90",))
    assert {16} & {
        width for variant in case.program.variants for one in variant.launches for width in one.widths
    }


@needs_compiler
@pytest.mark.parametrize(
    ("source", "widths"),
    [
        (
            "__global__ void k(float* data0_4, half* data1_8) {\n*((float4*)((data0_4+a))) = *(data1_8+a);\n}",
            (16, 2),
        ),
        ("__global__ void k(nv_bfloat16* data0_4) {\n*((nv_bfloat162*)((data0_4+a))) = b;\n}", (4,)),
        (
            "void k(unsigned char* restrict data0_4, long* restrict data1_1) {\n*(data0_4+a) = *(data1_1+0);\n}",
            (1, 8),
        ),
        ("__global__ void k(unsigned int* data0_4) {\n*((unsigned_int2*)(data0_4+(a<<1))) = b;\n}", (8,)),
        ("__global__ void k(uint* data0_4) {\n*((uint2*)(data0_4+(a<<1))) = b;\n}", (8,)),
        ("void k(_Bool* restrict data0_4, float* restrict data1_1) {\n*(data0_4+a) = b;\n}", (1, 4)),
        ("__global__ void k(float* data0_4) {\n*data0_4 = (*((float4*)((buf2+(a<<2))))).x;\n}", (4,)),
    ],
)
def test_the_widest_access_is_read_off_a_kernels_source(source: str, widths: tuple[int, ...]) -> None:
    assert widths_of(source) == widths


# ----- the command line ------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("fp32", "against ONNX Runtime: 1 compared, apart by "),
        (
            "fp16",
            "against ONNX Runtime in fp32 (the difference includes the loss by fp16): 1 compared, apart by ",
        ),
    ],
)
@pytest.mark.slow
def test_the_command_makes_a_package_and_reports_its_kernels(dtype: str, says: str, tmp_path: Path) -> None:
    model, target = tmp_path / "mlp.onnx", tmp_path / "out"
    onnx.save(zoo.build("mlp", width=16, depth=1), model)
    np.save(tmp_path / "x.npy", normal(2, 64))
    arguments = ["compile", str(model), "-o", str(target), "--arch", "host", "--batch", "1", "--report"]
    arguments += ["--examples", str(tmp_path / "x.npy"), "--dtype", dtype]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "1 variants for host, of at most 2 launches" in done.output
    # lines of progress, where there is no terminal
    assert "compile: read\ncompile: host batch 1\n" in done.output
    assert says in done.output
    assert "all 2" in done.output
    assert read_program(target).name == "mlp"
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 1
    assert again.output.strip().endswith("exists already")


@needs_nvrtc
@pytest.mark.slow
def test_the_compiler_leaves_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC looks for a driver and initialises it."""
    told = tmp_path / "told"
    source = f"""
        #include <stdio.h>
        #include <stdlib.h>
        int cuInit(unsigned flags) {{
            const char *shown = getenv("CUDA_VISIBLE_DEVICES");
            fprintf(fopen("{told}", "w"), "shown: %s", shown ? shown : "all");
            fflush(NULL);
            return 100; /* there is no device */
        }}
    """
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "libcuda.so.1")],
        input=source, text=True, check=True,
    )  # fmt: skip
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    path = tmp_path / "model.onnx"
    onnx.save(zoo.build("mlp", width=8, depth=1), path)
    compile_model(path, tmp_path / "package", CompileOptions(("sm_80",), (1,), verify=False))
    assert told.read_text() == "shown: "


@needs_nvrtc
@pytest.mark.slow
def test_the_command_keeps_the_cuda_c_of_each_cubin(tmp_path: Path) -> None:
    model, target, sources = tmp_path / "mlp.onnx", tmp_path / "out", tmp_path / "sources"
    onnx.save(zoo.build("mlp", width=16, depth=1), model)
    arguments = ["compile", str(model), "-o", str(target), "--arch", "sm_80", "--batch", "1", "--no-verify"]
    done = CliRunner().invoke(cli, [*arguments, "--sources", str(sources)])
    assert done.exit_code == 0, done.output
    program = read_program(target)
    kept = {path.stem: path.read_text() for path in sources.iterdir()}
    assert {*kept} == {Path(path).stem for path in program.targets["sm_80"].modules}
    for variant in program.variants:
        for launch in variant.launches:
            module = program.targets["sm_80"].modules[launch.module]
            assert f"{launch.kernel}(" in kept[Path(module).stem]


@pytest.mark.parametrize("text", ["ids", "ids:", ":1,2", "ids:1,x", "ids:0,4"])
def test_a_shape_that_cannot_be_read_is_refused(text: str) -> None:
    from clockwork.cli.compile import parse_shapes

    with pytest.raises(click.UsageError, match=re.escape(repr(text))):
        parse_shapes((text,))


@needs_compiler
def test_a_terminal_shows_a_bar_for_each_variant_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from clockwork.cli.compile import _progress

    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any output for a terminal
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with _progress() as tell:
        tell("host batch 1", 2, 9)
        tell("sm_90 batch 4", 1, 5)
        tell("host batch 1", 9, 9)
    text = written.getvalue()
    assert "host batch 1" in text
    assert "2/9" in text
    assert "1/5" in text


@needs_nvrtc
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "this machine has no GPU whose architecture could be taken: give --arch, as sm_80"),
        (
            ("--arch", "sm_80", "--tune"),
            1,
            "tuning times kernels on a GPU of this machine: there is none, not sm_80",
        ),
    ],
)
def test_without_a_gpu_the_command_says_what_it_needs_one_for(
    arguments: tuple[str, ...], status: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "local_architecture", lambda: "")
    onnx.save(zoo.build("null"), tmp_path / "null.onnx")
    done = CliRunner().invoke(
        cli, ["compile", str(tmp_path / "null.onnx"), "-o", str(tmp_path / "out"), *arguments]
    )
    assert done.exit_code == status
    assert says in done.output


def test_shapes_are_read_in_the_order_given() -> None:
    from clockwork.cli.compile import parse_shapes

    assert parse_shapes(("ids:1,128", "m:0:1,3", "ids:1,512")) == {
        "ids": [[1, 128], [1, 512]],
        "m:0": [[1, 3]],
    }


# ----- the report ------------------------------------------------------------------------------

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k1_r_2' for 'sm_80'
ptxas info    : Function properties for k1_r_2
    8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'k0_E' for 'sm_80'
ptxas info    : Function properties for k0_E
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 368 bytes cmem[0]
"""


def test_the_assembler_s_log_tells_registers_and_spills() -> None:
    assert report.parse_log(LOG) == {
        "k1_r_2": report.Resources(255, 64, 32),
        "k0_E": report.Resources(8, 0, 0),
    }


def test_a_launch_takes_at_least_what_memory_or_arithmetic_takes() -> None:
    card = report.Card("made up", memory=1e9, fp32=1e9, fp16=1e12, tf32=5e8)
    assert report.bound_ns(card, Statistic("k", 500, 2000, "")) == (2000.0, "memory")
    assert report.bound_ns(card, Statistic("k", 5000, 2000, "")) == (5000.0, "arithmetic")
    assert report.bound_ns(card, Statistic("k", 5000, 2000, "f16")) == (2000.0, "memory")
    assert report.bound_ns(card, Statistic("k", 5000, 2000, "tf32")) == (10_000.0, "arithmetic")


def test_a_report_has_registers_spills_and_the_least_time_beside_every_launch() -> None:
    def launch(kernel: str) -> Launch:
        return Launch(0, kernel, (7, 2, 1), (32, 4, 1), 0, ())

    variant = Variant("sm_80", 1, (), (), 0, (launch("k0_E"), launch("k1_r_2"), launch("k0_E")))
    statistics = [Statistic("k0_E", 10**6, 2_039_000, ""), Statistic("k1_r_2", 312 * 10**6, 2048, "f16")]
    titles, rows = report.rows_of(variant, [*statistics, statistics[0]], LOG)
    assert titles == [
        "kernel", "grid", "block", "registers", "spilled", "shared", "KiB", "MFLOP", "least, A100 80GB",
    ]  # fmt: skip
    assert rows[0] == ["k0_E", "7x2x1", "32x4x1", "8", "0", "0", "1991.2", "1.000", "1.00 us, memory"]
    assert rows[1] == [
        "k1_r_2 *", "7x2x1", "32x4x1", "255", "32", "64", "2.0", "312.000", "1.00 us, arithmetic",
    ]  # fmt: skip
    assert rows[3] == ["all 3", "", "", "", "32", "", "3984.4", "314.000", "3.00 us"]
    titles, rows = report.rows_of(
        dataclasses.replace(variant, target="host"), [*statistics, statistics[0]], ""
    )
    assert titles[-1] == "MFLOP"  # neither a card nor assembled code
    assert rows[0][3:6] == ["-", "-", "-"]


# ----- on a worker -----------------------------------------------------------------------------


@needs_compiler
@pytest.mark.slow
def test_fine_tunes_of_a_package_are_given_the_kernels_that_are_there(tmp_path: Path) -> None:
    model = zoo.build("mlp", width=16, depth=1)
    cache = tmp_path / "kernels"
    hashes = []
    for number, one in enumerate((model, zoo.fine_tune(model, 5))):
        package = save_package(one, tmp_path / f"package{number}", {"x": normal(2, 64)})
        made = tmp_path / f"program{number}"
        compile_package(package, made, "host", {"batch_max": 3}, cache)
        program = read_program(made)
        assert [variant.batch for variant in program.variants] == [1, 2, 3]
        x = normal(3, 64, seed=1)
        expected = ModelSession(package / "model.onnx", optimise=False).run([x])
        assert difference(HostExecutor(program, made).run([x]), expected) == ""
        hashes.append(program_hash(program))
        # the cache has a file for each variant, and none for the second model
        assert len(list(cache.iterdir())) == 3
    assert hashes[0] == hashes[1]


@needs_compiler
@pytest.mark.slow
def test_open_dimensions_of_a_package_are_those_of_its_examples(tmp_path: Path) -> None:
    model = zoo.build("transformer", layers=1, width=16, heads=2, sequence=None, vocabulary=50)
    examples = [
        {"ids": np.ones((rows, length), np.int64), "mask": np.ones((rows, length), np.int64)}
        for rows, length in ((2, 6), (1, 3), (1, 6))
    ]
    package = save_package(model, tmp_path / "package", examples)
    compile_package(
        package, tmp_path / "made", "host", {"batch_max": 1, "batching": "on"}, tmp_path / "kernels"
    )
    program = read_program(tmp_path / "made")
    assert [variant.shapes[0] for variant in program.variants] == [(1, 6), (1, 3)]
