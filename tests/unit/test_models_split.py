"""Splitting models: the weights that are taken out, the program that stays, and when two programs are
equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork.models.answers import difference
from clockwork.models.runtime import ModelSession, optimise
from clockwork.models.split import SplitModel, Splitter
from clockwork.wire.tensors import Array
from tests.unit.models_onnx import INT64, initializer, model_of, normal, small_net, value


def split(model: onnx.ModelProto, folder: Path) -> Splitter:
    onnx.save(model, folder / "model.onnx")
    optimise(folder / "model.onnx", folder / "optimised.onnx")
    return Splitter(folder / "optimised.onnx")


def split_as_it_is(model: onnx.ModelProto, folder: Path) -> Splitter:
    """Without ONNX Runtime's optimiser, which would fold away much of the code under test."""
    onnx.save(model, folder / "model.onnx")
    return Splitter(folder / "model.onnx")


def run(program: SplitModel, *inputs: Array) -> list[Array]:
    """Run a program with its weights bound by address."""
    held = [np.frombuffer(bytes(weight.data()), np.uint8) for weight in program.weights]
    weights = [(weight.tensor.data_type, weight.shape, data.ctypes.data)
               for weight, data in zip(program.weights, held)]  # fmt: skip
    return ModelSession(program.model, optimise=False).run(inputs, weights)


def check_answers(model: onnx.ModelProto, splitter: Splitter, *inputs: Array) -> SplitModel:
    program = splitter.program()
    expected = ModelSession(model.SerializeToString(), optimise=True).run(inputs)
    assert difference(run(program, *inputs), expected) == ""
    return program


def shapes(program: SplitModel) -> list[tuple[int, ...]]:
    return sorted(weight.shape for weight in program.weights)


def test_weights_leave_down_to_the_bias_of_one_element_and_shapes_stay(tmp_path: Path) -> None:
    model = small_net(3)
    program = check_answers(model, split(model, tmp_path), normal(5, 8))
    assert shapes(program) == [(1,), (8,), (8, 4), (8, 8)]
    inside = onnx.ModelProto.FromString(program.model).graph.initializer
    assert [list(one.dims) for one in inside] == [[3]]


def test_one_architecture_is_one_program_whatever_it_is_called(tmp_path: Path) -> None:
    programs = set()
    for seed in range(100):
        model = small_net(seed, prefix=f"net{seed}/")
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(model.graph.initializer))
        tensors = [model.graph.initializer[int(index)] for index in order]
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
        if seed % 3 == 0:  # equal small biases must not be merged into one
            for tensor in model.graph.initializer:
                if tensor.dims in ([1], [8]):
                    tensor.raw_data = bytes(len(tensor.raw_data))
        programs.add(split(model, tmp_path).program().model)
    assert len(programs) == 1


def test_another_architecture_is_another_program(tmp_path: Path) -> None:
    one = split(small_net(1), tmp_path).program().model
    assert split(small_net(1, width=9), tmp_path).program().model != one
    other = small_net(1)
    other.graph.initializer[4].raw_data = np.array([0, 4, 1], np.int64).tobytes()  # the shape of the Reshape
    assert split(other, tmp_path).program().model != one


def test_the_order_of_independent_nodes_in_the_file_does_not_matter(tmp_path: Path) -> None:
    def model(swap: bool) -> onnx.ModelProto:
        nodes = [helper.make_node("MatMul", ["x", "a"], ["p"]), helper.make_node("MatMul", ["x", "b"], ["q"])]
        if swap:
            nodes.reverse()
        nodes.append(helper.make_node("Sub", ["p", "q"], ["y"]))
        weights = [initializer("a", normal(4, 4)), initializer("b", normal(4, 4, seed=1))]
        return model_of(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)

    first = check_answers(model(False), split_as_it_is(model(False), tmp_path), normal(2, 4))
    second = check_answers(model(True), split_as_it_is(model(True), tmp_path), normal(2, 4))
    assert first.model == second.model
    assert [bytes(w.data()) for w in first.weights] == [bytes(w.data()) for w in second.weights]


def test_constant_nodes_are_weights_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=initializer("w", normal(4, 4))),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("Constant", [], ["s"], value_float=2.0),
        helper.make_node("Constant", [], ["shape"], value_ints=[-1]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Mul", ["a", "s"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    model = model_of(nodes, [value("x", [2, 4])], [value("y", [8])])
    program = check_answers(model, split_as_it_is(model, tmp_path), normal(2, 4))
    assert shapes(program) == [(4,), (4, 4)]


def test_initializers_declared_as_inputs_and_given_as_outputs(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", [3]), value("w", [3])],
        [value("y", [3]), value("w", [3]), value("x", [3])],
        [initializer("w", [1.0, 2.0, 3.0])],
        ir_version=3,
    )
    program = check_answers(model, split_as_it_is(model, tmp_path), normal(3))
    assert shapes(program) == [(3,)]
    assert len(onnx.ModelProto.FromString(program.model).graph.input) == 2


def body(name: str, nodes: Any, output: onnx.ValueInfoProto, weights: Any = (), inputs: Any = ()) -> Any:
    return helper.make_graph(nodes, name, list(inputs), [output], list(weights))


def test_branches_have_weights_of_their_own_and_read_outer_ones(tmp_path: Path) -> None:
    """Both branches call their own weight "w", which shadows nothing, and read "shared" by name."""
    then = body(
        "then",
        [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "shared"], ["o"])],
        value("o", None), [initializer("w", normal(4, 4))],
    )  # fmt: skip
    # This branch returns a constant, and an inner If reads from two scopes out.
    inner = body("inner", [helper.make_node("Add", ["shared", "x"], ["i"])], value("i", None))
    other = body("other", [helper.make_node("Identity", ["k"], ["j"])], value("j", None),
                 [initializer("k", normal(2, 4, seed=5))])  # fmt: skip
    otherwise = body("else", [helper.make_node("If", ["c"], ["e"], then_branch=inner, else_branch=other)],
                     value("e", None))  # fmt: skip
    nodes = [
        helper.make_node("Not", ["c"], ["d"]),
        helper.make_node("If", ["c"], ["p"], then_branch=then, else_branch=otherwise),
        helper.make_node("If", ["d"], ["q"], then_branch=then, else_branch=otherwise),
    ]
    model = model_of(
        nodes,
        [value("x", [2, 4]), value("c", [], TensorProto.BOOL)],
        [value("p", None), value("q", None)],
        [initializer("shared", normal(4, seed=3))],
    )
    for condition in (True, False):
        for splitter in (split_as_it_is(model, tmp_path), split(model, tmp_path)):
            program = check_answers(model, splitter, normal(2, 4), np.array(condition))
            assert not onnx.ModelProto.FromString(program.model).graph.initializer
    assert (4, 4) in shapes(program)


def test_a_branch_whose_answer_is_a_constant(tmp_path: Path) -> None:
    then = body("then", [], value("w", None), [initializer("w", normal(3))])
    otherwise = body("else", [helper.make_node("Neg", ["x"], ["n"])], value("n", None))
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)
    model = model_of([node], [value("c", [], TensorProto.BOOL), value("x", [3])], [value("y", None)])
    for condition in (True, False):
        program = check_answers(model, split_as_it_is(model, tmp_path), np.array(condition), normal(3))
        assert shapes(program) == [(3,)]


def test_a_loop_and_a_scan_read_weights(tmp_path: Path) -> None:
    loop_body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next_"]),
            helper.make_node("Add", ["next_", "own"], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "loop",
        [value("i", [], INT64), value("going", [], TensorProto.BOOL), value("state", [2, 4])],
        [value("still", [], TensorProto.BOOL), value("next", [2, 4])],
        [initializer("own", normal(4, seed=1))],
    )
    scan_body = helper.make_graph(
        [helper.make_node("Add", ["sum_in", "row"], ["s"]), helper.make_node("Mul", ["s", "b"], ["sum_out"]),
         helper.make_node("Identity", ["sum_out"], ["each"])],
        "scan", [value("sum_in", [4]), value("row", [4])], [value("sum_out", [4]), value("each", [4])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Loop", ["count", "yes", "x"], ["looped"], body=loop_body),
        helper.make_node("Scan", ["b", "looped"], ["total", "rows"], body=scan_body, num_scan_inputs=1),
    ]
    model = model_of(
        nodes,
        [value("x", [2, 4])],
        [value("total", [4]), value("rows", [2, 4])],
        [
            initializer("w", normal(4, 4)),
            initializer("b", normal(4, seed=2)),
            initializer("count", 3, np.int64),
            initializer("yes", True, np.bool_),
        ],
    )
    for splitter in (split_as_it_is(model, tmp_path), split(model, tmp_path)):
        program = check_answers(model, splitter, normal(2, 4))
        assert shapes(program) == [(4,), (4,), (4, 4)]


def test_quantised_weights_and_their_small_biases_leave(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"]),
    ]
    weights = [
        initializer("xs", 0.1), initializer("xz", 128, np.uint8), initializer("ws", 0.05),
        initializer("wz", 0, np.int8), initializer("ys", 0.2), initializer("yz", 128, np.uint8),
        initializer("w", np.random.default_rng(0).integers(-90, 90, (4, 3, 3, 3)), np.int8),
        initializer("b", [5, -9, 300, 7], np.int32),
    ]  # fmt: skip
    model = model_of(nodes, [value("x", ["N", 3, 8, 8], TensorProto.UINT8)],
                     [value("y", None, TensorProto.UINT8)], weights)  # fmt: skip
    x = np.random.default_rng(1).integers(0, 255, (2, 3, 8, 8)).astype(np.uint8)
    program = check_answers(model, split_as_it_is(model, tmp_path), x)
    assert shapes(program) == [(4,), (4, 3, 3, 3)]


def test_large_integer_tables_leave_and_small_integers_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["g"]),
        helper.make_node("Add", ["g", "small"], ["y"]),
    ]
    weights = [initializer("table", np.arange(1000), np.int64), initializer("small", [1, 2], np.int64)]
    model = model_of(nodes, [value("x", [2], INT64)], [value("y", [2], INT64)], weights)
    program = check_answers(model, split_as_it_is(model, tmp_path), np.array([7, 900]))
    assert shapes(program) == [(1000,)]


def test_float_tensors_that_an_operator_needs_constant_stay(tmp_path: Path) -> None:
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    weights = [initializer("scales", [1, 1, 2, 2])]
    model = model_of(nodes, [value("x", [1, 1, 2, 2])], [value("y", None)], weights)
    assert check_answers(model, split(model, tmp_path), normal(1, 1, 2, 2)).weights == []


def normalising(training: int) -> onnx.ModelProto:
    """x [N, 4, 2] by the statistics of the batch (training), or by those in the file."""
    names = ("scale", "bias", "mean", "variance")
    outputs = ["y", "new_mean", "new_variance"] if training else ["y"]
    node = helper.make_node("BatchNormalization", ["x", *names], outputs, training_mode=training)
    weights = [initializer(name, np.abs(normal(4, seed=index))) for index, name in enumerate(names)]
    return model_of([node], [value("x", ["N", 4, 2])], [value("y", ["N", 4, 2])], weights)


@pytest.mark.parametrize(("training", "leaving"), [(0, 4), (1, 2)])
def test_weights_that_an_execution_writes_to_stay(tmp_path: Path, training: int, leaving: int) -> None:
    """ONNX Runtime updates running statistics in place, wherever they lie: weights' memory is read-only."""
    model = normalising(training)
    program = check_answers(model, split_as_it_is(model, tmp_path), normal(5, 4, 2))
    assert shapes(program) == [(4,)] * leaving


def test_external_weights_and_half_precision(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", [2, 600], TensorProto.FLOAT16)],
        [value("y", [2, 600], TensorProto.FLOAT16)],
        [initializer("w", normal(600), np.float16)],
    )
    onnx.save(model, tmp_path / "m.onnx")
    optimise(tmp_path / "m.onnx", tmp_path / "optimised.onnx", "optimised.data")
    assert (tmp_path / "optimised.data").stat().st_size >= 1200
    check_answers(model, Splitter(tmp_path / "optimised.onnx"), normal(2, 600).astype(np.float16))


def test_deep_graphs_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(5000)]
    model = model_of(nodes, [value("v0", [2])], [value("v5000", [2])], [initializer("w", [1.0, -1.0])])
    check_answers(model, split_as_it_is(model, tmp_path), normal(2))


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_kept_is_part_of_the_program(tmp_path: Path, keep: bool) -> None:
    programs = [
        split(small_net(seed), tmp_path).program(lambda constant: keep and constant.shape == (8, 4))
        for seed in (1, 2)
    ]
    assert (programs[0].model != programs[1].model) == keep
    assert [one.kept_bytes for one in programs] == [128 * keep] * 2
