"""Preparation as a whole: the files it leaves in the store, and its results for unusual models."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork.config.models import TEXT_SIZES
from clockwork.device._ort import without_source
from clockwork.device.cpu import fingerprint
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import seal, unseal
from clockwork.formats.interface import difference as interface_difference
from clockwork.formats.interface import read_interface
from clockwork.formats.package import DamagedPackage, PackageFile, PackageStore, check_package
from clockwork.formats.prepared import UNKNOWN_RANK, PreparedModel, prepared_directory
from clockwork.models import prepare as preparation
from clockwork.models import zoo
from clockwork.models.answers import difference
from clockwork.models.compile.following import Following
from clockwork.models.holdings import Bound, build_bound
from clockwork.models.measure import Bench, batch_sizes, threads_of
from clockwork.models.onnx_import import Examples
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession
from clockwork.models.split import SplitModel
from clockwork.wire.tensors import Array
from tests.unit.models_onnx import (
    INT64,
    declaring,
    initializer,
    model_of,
    normal,
    save_package,
    small_net,
    unpack,
    value,
)

PAGE_BYTES = 64 << 10
FINGERPRINT = fingerprint(1)


class Workshop:
    """A store and packages below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self._count = 0

    def package(self, model: onnx.ModelProto, examples: Examples = None) -> Path:
        self._count += 1
        return save_package(model, self.root / f"package{self._count}", examples)

    def prepare(
        self, model: onnx.ModelProto | Path, examples: Examples = None, **options: Any
    ) -> PreparedModel:
        package = model if isinstance(model, Path) else self.package(model, examples)
        return prepare(package, self.store, FINGERPRINT, PAGE_BYTES, options)

    def directory(self, prepared: PreparedModel, **options: Any) -> Path:
        return prepared_directory(self.store, prepared.digest, FINGERPRINT, options)

    def serve(self, prepared: PreparedModel, *inputs: Array, **options: Any) -> list[Array]:
        """Return the CPU device's answer."""
        bench = Bench(FINGERPRINT, PAGE_BYTES, [self.directory(prepared, **options)])
        try:
            bench.load(0)
            return bench.run(0, inputs)[0]
        finally:
            bench.close()

    def check(self, model: onnx.ModelProto, *inputs: Array, **options: Any) -> PreparedModel:
        """Prepare and serve a model, and check that its answers are those of plain ONNX Runtime."""
        prepared = self.prepare(model, **options)
        expected = ModelSession(model.SerializeToString(), optimise=True).run(inputs)
        assert difference(self.serve(prepared, *inputs, **options), expected) == ""
        return prepared


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def text_model() -> onnx.ModelProto:
    """`text` strings (N) to the same."""
    values = [value(name, ["N"], TensorProto.STRING) for name in ("text", "same")]
    return model_of([helper.make_node("Identity", ["text"], ["same"])], values[:1], values[1:])


@pytest.mark.slow
def test_strings_are_timed_by_their_size(workshop: Workshop) -> None:
    prepared = workshop.prepare(workshop.package(text_model()))
    assert prepared.batches, prepared.batching_note
    sizes = {point.shape for point in prepared.profile}
    assert {((size,),) for size in TEXT_SIZES} <= sizes
    # A model that batches, although no batch pays, has the same sizes.
    alone = workshop.prepare(workshop.package(text_model()), batch_max=1)
    assert alone.batches
    assert {point.shape for point in alone.profile} == sizes
    assert PreparedModel.read(workshop.directory(alone, batch_max=1)).profile == alone.profile
    # A model that was prepared when strings were timed without their size is prepared again.
    directory = workshop.directory(prepared)
    for point in prepared.profile:
        object.__setattr__(point, "shape", ((),))
    prepared.write(directory)
    with pytest.raises(ValueError, match="timed strings without their size"):
        PreparedModel.read(directory)
    again = workshop.prepare(workshop.package(text_model()))
    assert {point.shape for point in again.profile} == sizes


def test_what_preparation_leaves_behind(workshop: Workshop) -> None:
    package = workshop.package(small_net(1))
    prepared = prepare(package, workshop.store, FINGERPRINT, PAGE_BYTES, {"holding": "bound"})
    directory = workshop.directory(prepared, holding="bound")
    assert PreparedModel.read(directory) == prepared
    assert sorted(os.listdir(directory)) == ["prepared.json", "weights.bin"]
    assert os.listdir(workshop.store / "prepared") == [directory.name], "no temporary directory is left"
    program = (workshop.store / "programs" / prepared.program / "program.onnx").read_bytes()
    assert hashlib.sha256(program + FINGERPRINT.encode()).hexdigest() == prepared.program
    assert prepared.metadata == {"seed": "1"}
    assert [(one.name, one.shape) for one in prepared.inputs] == [("x", ("N", 8))]
    assert [(one.name, one.shape) for one in prepared.outputs] == [("y", ("N", 2, 2))]
    assert prepared.weights_bytes == 4 * (64 + 8 + 32 + 1)
    assert prepared.runs == [1]
    assert prepared.example == [[1, 8]]
    assert prepared.batches
    assert [point.batch for point in prepared.profile][:2] == [1, 2]
    assert {point.shape for point in prepared.profile} == {((8,),)}
    assert all(point.exec_ns > 0 for point in prepared.profile)
    assert prepared.load_ns > 0


@pytest.mark.parametrize("holding", ["bound", "packed"])
def test_both_holdings_answer_as_plain_onnx_runtime(workshop: Workshop, holding: str) -> None:
    model = zoo.build("mlp")
    prepared = workshop.check(model, normal(3, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value),
                              holding=holding)  # fmt: skip
    assert prepared.holding == holding
    assert prepared.resident_bytes <= sum(prepared.runs) * PAGE_BYTES
    if holding == "packed":
        assert prepared.weights == []
        data = workshop.directory(prepared, holding=holding) / "packed.data"
        assert prepared.resident_bytes >= data.stat().st_size > 0
        assert set(prepared.runs) == {1}


def test_it_is_found_the_second_time(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    package = workshop.package(small_net(1))
    first = workshop.prepare(package)
    monkeypatch.setattr(preparation, "optimise", lambda *_: pytest.fail("prepared again"))
    assert workshop.prepare(package) == first


@pytest.mark.parametrize(
    "damage",
    [
        "json",
        "a bit of json",
        "no seal",
        "weights",
        "a bit of weights",
        "program",
        "a bit of program",
        "page_bytes",
        "format",
    ],
)
def test_what_is_damaged_or_of_another_kind_is_prepared_again(workshop: Workshop, damage: str) -> None:
    package = workshop.package(small_net(1))
    first = workshop.prepare(package, holding="bound")
    directory = workshop.directory(first, holding="bound")
    body, is_sealed = unseal((directory / "prepared.json").read_bytes())
    assert is_sealed
    assert set(body["checksums"]) == {"weights.bin"}
    program = workshop.store / "programs" / first.program / "program.onnx"
    match damage:
        case "no seal":
            (directory / "prepared.json").write_text(json.dumps(body))
        case "a bit of json":
            flip(directory / "prepared.json")
        case "a bit of weights":
            flip(directory / "weights.bin")
        case "a bit of program":
            flip(program)
        case "json":
            (directory / "prepared.json").write_text("{")
        case "weights":
            (directory / "weights.bin").write_bytes(b"")
        case "program":
            program.unlink()
        case "page_bytes":
            (directory / "prepared.json").write_bytes(seal(body | {"page_bytes": 4096}))
        case "format":
            (directory / "prepared.json").write_bytes(seal(body | {"format_version": 0}))
    again = workshop.prepare(package, holding="bound")
    assert (again.program, again.page_bytes) == (first.program, PAGE_BYTES)
    expected = ModelSession(small_net(1).SerializeToString(), optimise=True).run([normal(1, 8)])
    assert difference(workshop.serve(again, normal(1, 8), holding="bound"), expected) == ""
    assert os.listdir(workshop.store / "prepared") == [directory.name]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["model.onnx", "package.json", "nothing of it"])
def test_a_damaged_package_is_not_prepared(workshop: Workshop, what: str, tmp_path: Path) -> None:
    package = stored(workshop.package(small_net(1)), tmp_path / "packages of")
    if what == "nothing of it":
        (package / "model.onnx").unlink()
    else:
        flip(package / what)
    with pytest.raises(DamagedPackage, match=f"package {package.name} is damaged"):
        workshop.prepare(package)


def test_a_fine_tune_costs_no_measurement(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = workshop.prepare(small_net(1))
    monkeypatch.setattr(preparation.measure, "Bench", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(preparation._Preparation, "_answers", lambda *_: pytest.fail("asked again"))
    second = workshop.prepare(small_net(2, prefix="other/"))
    monkeypatch.undo()
    assert second.program == first.program
    assert (second.holding, second.profile, second.batch_max) == (
        first.holding,
        first.profile,
        first.batch_max,
    )
    assert (second.batches, second.batching_note) == (first.batches, first.batching_note)
    assert [one.shape for one in second.outputs] == [("other/N", 2, 2)]
    assert len(os.listdir(workshop.store / "programs")) == 1
    x = normal(2, 8)
    for seed, prepared in ((1, first), (2, second)):
        expected = ModelSession(small_net(seed).SerializeToString(), optimise=True).run([x])
        assert difference(workshop.serve(prepared, x), expected) == ""


def test_of_a_packed_fine_tune_nothing_else_is_made(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation.measure, "overall", lambda _: 2.0)
    first = workshop.prepare(small_net(1))
    assert first.holding == "packed"
    monkeypatch.setattr(preparation, "build_bound", lambda *_, **__: pytest.fail("made for nothing"))
    second = workshop.check(small_net(2), normal(2, 8))
    assert (second.holding, second.program) == ("packed", first.program)


def test_registering_fine_tunes_is_fast(workshop: Workshop) -> None:
    """The time is well below the 50 ms that twenty registrations a second leave for each, even on a busy
    machine."""
    packages = [workshop.package(zoo.build("cnn", seed=seed)) for seed in range(11)]
    workshop.prepare(packages[0])
    begin = time.thread_time()
    programs = {workshop.prepare(package).program for package in packages[1:]}
    assert len(programs) == 1
    assert (time.thread_time() - begin) / 10 < 0.05


def test_a_model_without_weights(workshop: Workshop) -> None:
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], [value("x", ["N", 3])], [value("y", ["N", 3])])
    prepared = workshop.check(model, normal(2, 3))
    assert (prepared.holding, prepared.runs, prepared.weights_bytes) == ("none", [], 0)


def test_batching_options(workshop: Workshop) -> None:
    package = workshop.package(small_net(1))
    default = workshop.prepare(package)
    off = workshop.prepare(package, batching="off")
    capped = workshop.prepare(package, batch_max=3)
    assert default.batches
    assert (off.batches, off.batching_note, off.batch_max) == (False, "switched off", 1)
    assert [point.shape for point in off.profile] == [((1, 8),)]
    assert capped.batches
    assert capped.batch_max <= 3
    assert {point.batch for point in capped.profile} <= {1, 2, 3}
    # Both are kept: neither replaces the other.
    assert len(os.listdir(workshop.store / "prepared")) == 3
    assert workshop.prepare(package) == default
    fixed = model_of([helper.make_node("Neg", ["x"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])])
    with pytest.raises(InvalidModel, match="batching was asked for"):
        workshop.prepare(fixed, batching="on")
    assert batch_sizes(16) == [1, 2, 4, 8, 16]
    assert batch_sizes(6) == [1, 2, 4, 6]


def test_fixed_batch_state_and_scalars(workshop: Workshop) -> None:
    nodes = [
        helper.make_node("Cast", ["sr"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "state"], ["next"]),
        helper.make_node("Div", ["next", "f"], ["y"]),
    ]
    model = model_of(
        nodes,
        [value("x", ["N", 4]), value("state", [2, "N", 4]), value("sr", [], INT64)],
        [value("y", None), value("next", [2, "N", 4])],
        [initializer("w", normal(4, 4))],
    )
    prepared = workshop.check(model, normal(3, 4), normal(2, 3, 4), np.array(16000))
    assert not prepared.batches
    assert prepared.profile[0].shape[2] == ()


def test_examples_decide_what_is_profiled(workshop: Workshop) -> None:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", ["N", "T", 4])], [value("y", ["N", "T", 2])],
        [initializer("w", normal(4, 2))],
    )  # fmt: skip
    examples = [{"x": normal(2, 5, 4)}, {"x": normal(1, 9, 4)}, {"x": normal(1, 5, 4)}]
    prepared = workshop.prepare(model, examples, batching="same-shape")
    assert {point.shape for point in prepared.profile} == {((5, 4),), ((9, 4),)}
    assert prepared.example == [[1, 5, 4]]
    # Lengths that share batches are timed by their classes.
    prepared = workshop.prepare(model, examples)
    assert {point.shape for point in prepared.profile} == {((size, 4),) for size in (4, 6, 8, 12)}
    assert prepared.example == [[1, 5, 4]]


def test_an_example_that_the_model_cannot_take(workshop: Workshop) -> None:
    table = [initializer("t", normal(5, 2))]
    model = model_of(
        [helper.make_node("Gather", ["t", "x"], ["y"])], [value("x", ["N"], INT64)], [value("y", None)], table
    )
    with pytest.raises(InvalidModel, match="fails on its example"):
        workshop.prepare(model, {"x": np.array([77])})


def test_a_model_that_runs_on_nothing_that_can_be_guessed(workshop: Workshop) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = model_of(
        nodes, [value("x", ["A", "B"])], [value("y", None)], [initializer("shape", [12347], np.int64)]
    )
    with pytest.raises(InvalidModel, match="give examples"):
        workshop.prepare(model)
    assert workshop.prepare(model, {"x": normal(1, 12347)}).example == [[1, 12347]]


def test_answers_that_differ_each_time_are_noted_not_refused(workshop: Workshop) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["r", "w"], ["y"])]
    model = model_of(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], [initializer("w", normal(4))])
    prepared = workshop.prepare(model)
    assert "differently each time" in prepared.constants_note
    assert not prepared.batches
    assert workshop.serve(prepared, normal(1, 4))[0].shape == (1, 4)


def test_operators_that_onnx_runtime_does_not_have(workshop: Workshop) -> None:
    for domain, name in (("", "NoSuchThing"), ("com.example", "Frobnicate")):
        node = helper.make_node(name, ["x"], ["y"], domain=domain)
        model = model_of([node], [value("x", [1])], [value("y", [1])], domains=[("com.example", 1)])
        with pytest.raises(InvalidModel, match=f"uses operator .*{name}"):
            workshop.prepare(model)
    assert not os.listdir(workshop.store / "prepared")


def test_a_model_of_an_ir_version_to_come_is_told_which_one_is_the_last(workshop: Workshop) -> None:
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", [1])], [value("y", [1])], ir_version=99
    )
    with pytest.raises(InvalidModel, match=r"^model.onnx has IR version 99; ONNX Runtime takes up to \d+$"):
        workshop.prepare(model)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            (
                "/onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const "
                "std::function<bool(int)>&) Unsupported model (of a future)"
            ),
            "Unsupported model (of a future)",
        ),
        (
            (
                "Exception during initialization: /onnxruntime_src/core/framework/x.cc:12 virtual onnxruntime::common::Status "
                "onnxruntime::Op::Compute(onnxruntime::OpKernelContext*) const axis < rank was false"
            ),
            "Exception during initialization: axis < rank was false",
        ),
        ("/src/x.cc:7 onnxruntime::F()::<lambda(int)> [with T = float] a; /src/y.h:8 b", "a; b"),
        ("/src/x.cc:7 onnxruntime::F(int", "onnxruntime::F(int"),
        ("/src/x.cc:7 std::F(int)", "/src/x.cc:7 std::F(int)"),
        ("Load model from /models/m.onnx failed: a (b) c", "Load model from /models/m.onnx failed: a (b) c"),
        (
            "Status Message: matmul_helper.h:59 Compute MatMul dimension mismatch",
            "Status Message: MatMul dimension mismatch",
        ),
        ("element_wise_ops.cc:703 operator() Integer division by zero", "Integer division by zero"),
        ("x.cc:7 a::b(c) d; y.h:8 F", "x.cc:7 a::b(c) d; y.h:8 F"),
        ("model.cc:7 failed", "model.cc:7 failed"),
        ("Name:'my.h:3 x' a", "Name:'my.h:3 x' a"),
        ("axis == 1 was false. 3 by 5\n", "axis == 1 was false. 3 by 5"),
        ("/src/x.cc:7 std::F(int) a \n ", "a"),
    ],
)
def test_places_in_onnx_runtimes_source_are_left_out(told: str, said: str) -> None:
    assert without_source(told) == said


def test_sequences_inside_are_fine_and_outside_are_not(workshop: Workshop) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "two"], ["s"], axis=1),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=1),
    ]
    two = [initializer("two", 2, np.int64)]
    workshop.check(model_of(nodes, [value("x", [2, 4])], [value("y", [2, 4])], two), normal(2, 4))
    outside = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    with pytest.raises(InvalidModel, match="output 's' is a sequence"):
        workshop.prepare(model_of(nodes[:1], [value("x", [2, 4])], [outside], two))


def test_old_files_declare_initializers_as_inputs(workshop: Workshop) -> None:
    model = small_net(1)
    model.ir_version = 3
    model.graph.input.extend(value(t.name, t.dims, t.data_type) for t in model.graph.initializer)
    prepared = workshop.check(model, normal(2, 8))
    assert [one.name for one in prepared.inputs] == ["x"]
    assert prepared.weights_bytes == 420


def test_models_beyond_protobufs_limit_take_external_data(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from clockwork.models.onnx_import import package_files

    monkeypatch.setattr(preparation.bounds, "EXTERNAL_BYTES", 1000)
    model = zoo.build("mlp")
    onnx.save(
        model, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=64
    )
    package = unpack(package_files(tmp_path / "big.onnx"), tmp_path / "unpacked")
    x = normal(2, zoo.build("mlp").graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    expected = ModelSession(zoo.build("mlp").SerializeToString(), optimise=True).run([x])
    for holding in ("bound", "packed"):
        prepared = prepare(package, workshop.root / holding, FINGERPRINT, PAGE_BYTES, {"holding": holding})
        directory = prepared_directory(
            workshop.root / holding, prepared.digest, FINGERPRINT, {"holding": holding}
        )
        bench = Bench(FINGERPRINT, PAGE_BYTES, [directory])
        bench.load(0)
        assert difference(bench.run(0, [x])[0], expected) == ""
        bench.close()


def test_an_operator_that_needs_its_weights_keeps_them(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime rejects a MatMul without constant weights: the rejected operator is found only once."""
    builds: list[int] = []

    def build(program: SplitModel, *arguments: Any, **options: Any) -> Bound:
        builds.append(len(program.weights))
        bound = build_bound(program, *arguments, **options)
        if any(node.op_type == "MatMul" for weight in program.weights for node, _ in weight.uses):
            bound.error = "MatMul needs a constant"
        return bound

    monkeypatch.setattr(preparation, "build_bound", build)
    prepared = workshop.check(small_net(1), normal(3, 8), holding="bound")
    assert prepared.constants_note == (
        "1 weights (128 bytes) of MatMul stay inside the program: MatMul needs a constant"
    )
    assert sorted(weight.shape for weight in prepared.weights) == [(1,), (8,), (8, 8)]
    builds.clear()
    again = workshop.check(small_net(2), normal(3, 8), holding="bound")
    assert builds == [3], "the next model of this architecture knows it at once"
    assert again.program != prepared.program, "what stays inside is part of the program"


def test_a_split_that_never_answers_right(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: Any, **options: Any) -> Bound:
        bound = build_bound(*arguments, **options)
        bound.error = "wrong answer"
        return bound

    monkeypatch.setattr(preparation, "build_bound", build)
    assert workshop.check(small_net(1), normal(3, 8)).holding == "packed"
    with pytest.raises(InvalidModel, match="wrong answer"):
        workshop.prepare(small_net(1), holding="bound")
    left = [name for name in os.listdir(workshop.store / "prepared") if name.startswith(".")]
    assert not left, "no temporary directory is left"


def test_a_foreign_fingerprint_is_refused(workshop: Workshop) -> None:
    with pytest.raises(ValueError, match="no CPU device of this machine"):
        prepare(workshop.package(small_net(1)), workshop.store, "abc", PAGE_BYTES, {})
    assert threads_of(fingerprint(3)) == 3


@pytest.mark.slow
def test_nothing_stays_behind_in_the_process(workshop: Workshop) -> None:
    def state() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    workshop.prepare(small_net(0, width=7))
    before = state()
    for seed in range(5):
        workshop.prepare(small_net(seed, width=10 + seed))
    with pytest.raises(InvalidModel):
        workshop.prepare(
            model_of([helper.make_node("No", ["x"], ["y"])], [value("x", [1])], [value("y", [1])])
        )
    assert state() == before


@pytest.mark.parametrize(
    ("declared", "seen"),
    [
        ([1, 2], ("", 2)),  # a declaration by an exporter that saw one row
        (["N", 2], ("N", 2)),
        (["N", 5], ("N", "")),
        (["N"], UNKNOWN_RANK),
        (None, ("N", 2)),  # without a declaration, as inferred
    ],
)
def test_outputs_are_fixed_only_in_what_the_model_returns(
    workshop: Workshop, declared: list[int | str] | None, seen: tuple[int | str, ...]
) -> None:
    """Every answer is checked against the observed shape: a file's declaration may be wrong."""
    node = helper.make_node("Relu", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, declared)
    graph = helper.make_graph([node], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    prepared = workshop.prepare(model)
    assert [one.shape for one in prepared.outputs] == [seen]
    assert prepared.outputs_verified
    assert PreparedModel.read(workshop.directory(prepared)) == prepared


@pytest.mark.parametrize("declared", [[], ["N", 4, 1], ["N", 5], ["N", 4]])
def test_a_file_that_declares_another_output_than_it_has_is_served(
    workshop: Workshop, tmp_path: Path, declared: list[int | str]
) -> None:
    """As PaddlePaddle's converter writes it. ONNX Runtime finds the right shape once it has merged
    operators."""
    package = stored(workshop.package(declaring(declared)), tmp_path / "packages")
    prepared = workshop.prepare(package)
    assert prepared.batches
    held = read_interface(package, check_package(package), {})
    assert interface_difference(held, prepared) == "", "the controller would take the worker for a liar"
    assert PreparedModel.read(workshop.directory(prepared)) == prepared
    (answer,) = workshop.serve(prepared, normal(3, 8))
    assert answer.shape == (3, 4)


@pytest.mark.parametrize(
    ("locale", "command"),
    [
        ({"locale": "xx_YY"}, "`localedef -i xx_YY -f UTF-8 xx_YY`"),
        ({"locale": "xx_YY.ISO-8859-1"}, "`localedef -i xx_YY -f ISO-8859-1 xx_YY.ISO-8859-1`"),
    ],
)
def test_a_locale_that_the_system_lacks_is_named(
    workshop: Workshop, locale: dict[str, str], command: str
) -> None:
    node = helper.make_node(
        "StringNormalizer", ["text"], ["lower"], case_change_action="LOWER", is_case_sensitive=0, **locale
    )
    texts = [value(name, ["N"], TensorProto.STRING) for name in ("text", "lower")]
    with pytest.raises(InvalidModel) as caught:
        workshop.prepare(model_of([node], texts[:1], texts[1:]))
    assert f"the locale {locale['locale']} " in str(caught.value)
    assert command in str(caught.value)


def stored(folder: Path, root: Path) -> Path:
    """A folder's model as a package with a list of its files, as a controller stores it."""
    data = (folder / "model.onnx").read_bytes()
    store = PackageStore(root)
    writer = store.writer([PackageFile("model.onnx", len(data), hashlib.sha256(data).hexdigest())])
    writer.write(0, 0, data)
    writer.commit()
    return store.directory(writer.digest)


# ----- lengths -------------------------------------------------------------------------------


def sentences(seed: int = 0, sequence: int | None = None) -> onnx.ModelProto:
    return zoo.build("transformer", seed=seed, layers=1, width=16, heads=2, sequence=sequence, vocabulary=50)


@pytest.mark.slow
def test_lengths_that_share_batches_are_timed_by_their_class(workshop: Workshop) -> None:
    prepared = workshop.prepare(sentences(), batch_max=2)
    assert prepared.lengths == {"S": 512}
    assert prepared.lengths_note == "lengths share a batch (S): proven to change nothing, and tried"
    assert list(dict.fromkeys(point.shape for point in prepared.profile)) == [
        ((size,), (size,)) for size in (128, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    ]  # first the class of the example, or of the made-up input, as everywhere
    assert [spec.name for spec in prepared.inputs] == ["ids", "mask"]
    # Longer examples are timed as well, up to the model's largest.
    long = dict(zip(("ids", "mask"), tokens(500)))
    prepared = workshop.prepare(sentences(1), [long], batch_max=1)
    assert prepared.profile[0].shape == ((512,), (512,))


@pytest.mark.parametrize(
    ("options", "note"),
    [({"batching": "same-shape"}, "one length in a batch: as it was asked for"), ({"batching": "off"}, "")],
)
def test_lengths_share_no_batch_if_that_is_not_wanted(
    workshop: Workshop, options: dict[str, str], note: str
) -> None:
    prepared = workshop.prepare(sentences(), **options)
    assert (prepared.lengths, prepared.lengths_note) == ({}, note)
    assert prepared.batches == (options["batching"] == "same-shape")


def test_a_model_of_one_length_is_not_asked(workshop: Workshop) -> None:
    prepared = workshop.prepare(sentences(sequence=8))
    assert prepared.batches
    assert (prepared.lengths, prepared.lengths_note) == ({}, "")


@pytest.mark.parametrize("longest", [17, 18, 21])
def test_a_model_is_not_timed_beyond_what_it_takes(workshop: Workshop, longest: int) -> None:
    """Positions are counted, and looked up in a table of 21: the graph does not declare the limit."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=1, end=2),
        helper.make_node("Squeeze", ["size", "first"], ["end"]),
        helper.make_node("Range", ["zero", "end", "one"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("Add", ["x", "rows"], ["y"]),
    ]
    table = [initializer("table", normal(21, 4))]
    table += [
        initializer(name, np.array(number), np.int64)
        for name, number in (("zero", 0), ("one", 1), ("first", [0]))
    ]
    model = model_of(nodes, [value("x", ["N", "S", 4])], [value("y", ["N", "S", 4])], table, opset=18)
    prepared = workshop.prepare(model, [{"x": normal(1, 3, 4)}, {"x": normal(1, longest, 4)}])
    assert prepared.lengths == {"S": 21}, prepared.lengths_note or prepared.batching_note
    assert {point.shape for point in prepared.profile} == {((size, 4),) for size in (4, 6, 8, 12, 16, 21)}


def test_a_dimension_without_a_name_shares_no_batch(workshop: Workshop) -> None:
    model = sentences()
    for given in model.graph.input:
        given.type.tensor_type.shape.dim[1].dim_param = "unk__1"
    prepared = workshop.prepare(model)
    assert (prepared.lengths, prepared.lengths_note) == (
        {},
        "one length in a batch: dimension 1 of input 'ids' has no name, so it is unknown which dimensions it has to equal",
    )


def tokens(length: int) -> list[Array]:
    return [np.arange(length)[np.newaxis] % 50, np.ones((1, length), np.int64)]


def test_what_is_proven_wrongly_is_found_out(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Following, "mask", lambda *_: None)
    prepared = workshop.check(sentences(), *tokens(9))
    assert prepared.lengths == {}
    assert "different" in prepared.lengths_note or "behind the end" in prepared.lengths_note


@pytest.mark.slow
def test_a_fine_tune_shares_the_program_with_masks(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workshop.prepare(sentences())
    monkeypatch.setattr(preparation._Preparation, "_measure", None)
    second = workshop.check(sentences(1), *tokens(9))
    assert (second.program, second.lengths, second.profile) == (first.program, first.lengths, first.profile)


@pytest.mark.slow
def test_a_fine_tune_whose_known_rows_are_alike_batches_by_its_graph(workshop: Workshop) -> None:
    first = workshop.prepare(sentences(), batching="same-shape")
    assert first.batches
    same = {"ids": np.ones((1, 128), np.int64), "mask": np.ones((1, 128), np.int64)}
    package = workshop.package(sentences(2), [same])
    second = workshop.prepare(package, batching="same-shape")
    assert second.program == first.program
    assert second.batches
    path = workshop.directory(second, batching="same-shape") / "prepared.json"
    before = path.stat().st_ino
    workshop.prepare(package, batching="same-shape")
    assert path.stat().st_ino == before


@pytest.mark.slow
def test_what_was_prepared_before_lengths_were_asked_about_is_prepared_again(workshop: Workshop) -> None:
    package = workshop.package(sentences())
    prepared = workshop.prepare(package)
    path = workshop.directory(prepared) / "prepared.json"
    body, _ = unseal(path.read_bytes())
    for name in ("lengths", "lengths_note", "output_lengths"):
        del body[name]
    path.write_bytes(seal(body))
    assert PreparedModel.read(workshop.directory(prepared)).lengths == {}
    assert workshop.prepare(package).lengths == {"S": 512}
    # A model whose requests all have one shape stays as fast as before.
    package = workshop.package(sentences(sequence=8))
    prepared = workshop.prepare(package)
    path = workshop.directory(prepared) / "prepared.json"
    body, _ = unseal(path.read_bytes())
    for name in ("lengths", "lengths_note", "output_lengths"):
        del body[name]
    path.write_bytes(seal(body))
    kept = path.read_bytes()
    workshop.prepare(package)
    assert path.read_bytes() == kept
