"""Which models batch: by a proof from the graph, or the owner's word; rows are run together and apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from clockwork.errors import InvalidModel
from clockwork.formats.prepared import TensorSpec
from clockwork.models import answers
from clockwork.models import inputs as trial
from clockwork.models.batching import PROVEN, Proof, declared_reason, prove_by_rows, why_rows_meet
from clockwork.models.runtime import ModelSession, RunError
from clockwork.wire.tensors import Array
from tests.unit.models_onnx import FLOAT, INT64, initializer, model_of, normal, small_net, value


def proof_of(model: onnx.ModelProto, *examples: Sequence[Array], asked: bool = False) -> Proof:
    session = ModelSession(model.SerializeToString(), optimise=True)
    inputs = [TensorSpec(*one) for one in session.inputs]
    reason = declared_reason(inputs)
    if reason and not asked:
        return Proof(False, reason)
    if not examples:
        guess, _, error = trial.first_that_runs(inputs, session.run)
        assert guess is not None, error
        examples = (guess,)
    return prove_by_rows(session.run, examples, asked, why_rows_meet(model))


def one_node(
    operator: str, names: Sequence[str], weights: Sequence[TensorProto] = (), **attributes: object
) -> onnx.ModelProto:
    """A model of one operator with input x [N, 4] and output y [N, 4]."""
    node = helper.make_node(operator, list(names), ["y"], **attributes)
    return model_of([node], [value("x", ["N", 4])], [value("y", ["N", 4])], weights)


def test_independent_rows_batch() -> None:
    assert proof_of(small_net(1)) == Proof(True, PROVEN)


def test_time_is_no_batch() -> None:
    """The first axis is symbolic, but each row depends on those before it."""
    proof = proof_of(one_node("CumSum", ["x", "axis"], [initializer("axis", 0, np.int64)]))
    assert proof == Proof(False, "not proven that rows are independent: operator CumSum mixes rows")


def test_dynamic_quantisation_scales_over_all_rows() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = model_of(nodes, [value("x", ["N", 64])], [value("y", ["N", 64])])
    assert not proof_of(model).batches
    # Equal examples do not hide the dependence.
    assert not proof_of(model, [normal(3, 64)]).batches


def test_a_mean_over_the_batch() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    proof = proof_of(model_of(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])]))
    assert not proof.batches


def test_declared_shapes_that_rule_it_out() -> None:
    for shapes, words in (
        ([["N", 4], [2, "N", 8]], "fixed first dimension of 2"),  # a model with a state whose batch is axis 1
        ([["N", 4], []], "no first dimension"),  # a model with a sampling rate
        ([[1, 4]], "fixed first dimension of 1"),
        ([["N", 4], ["M", 4]], "do not share"),
        ([["N", "N"]], "not only its first"),
        ([], "no input"),
    ):
        specs = [TensorSpec(f"i{k}", FLOAT, tuple(shape)) for k, shape in enumerate(shapes)]
        assert words in declared_reason(specs)


def test_names_that_a_converter_made_up_are_no_names() -> None:
    x = TensorSpec("x", FLOAT, ("unk__1", 4))
    z = TensorSpec("z", FLOAT, ("unk__2", 4))
    assert declared_reason([x, z]) == ""


@pytest.mark.parametrize("rows", [1, "Reluy_dim_0", None], ids=["one", "a name of its own", "no rank"])
def test_what_is_declared_of_an_output_does_not_decide(rows: int | str | None) -> None:
    """As LightGBM's converter declares a label, Keras's exporter the rows of outputs, and Paddle's any
    output."""
    y = value("y", [rows, 4]) if rows else value("y", None)
    proof = proof_of(model_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", ["N", 4])], [y]))
    assert proof.batches
    assert proof.note == PROVEN
    summed = helper.make_node("ReduceSum", ["x"], ["y"])
    assert not proof_of(model_of([summed], [value("x", ["N", 4])], [y])).batches


def test_declared_shapes_that_lie() -> None:
    """The model's behaviour with several rows decides, whatever it declares."""

    def summed(inputs: Sequence[Array]) -> list[Array]:
        return [inputs[0].sum(keepdims=True)]

    def fixed(inputs: Sequence[Array]) -> list[Array]:
        if len(inputs[0]) != 1:
            raise RunError("cannot reshape")
        return [inputs[0]]

    def found(inputs: Sequence[Array]) -> list[Array]:
        return [np.nonzero(inputs[0].reshape(-1) > 0)[0][None].repeat(len(inputs[0]), 0)]

    for run, words in (
        (summed, "does not have one row for each row"),
        (fixed, "does not run with 3 rows: cannot reshape"),
        (found, "depends on which rows share a batch"),
    ):
        proof = prove_by_rows(run, [[normal(1, 4)]], False, "")
        assert not proof.batches
        assert words in proof.note


def gather(rows: int) -> onnx.ModelProto:
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return model_of([node], [value("x", ["N", 3], INT64)], [value("y", ["N", 3, 4])],
                    [initializer("table", normal(rows, 4))])  # fmt: skip


def test_a_proof_needs_no_rows_that_differ() -> None:
    assert proof_of(gather(100)).batches
    assert proof_of(gather(1)).batches  # the only valid indices are zeros


def test_a_proof_needs_no_finite_answers() -> None:
    nodes = [helper.make_node("Sub", ["x", "x"], ["z"]), helper.make_node("Div", ["z", "z"], ["y"])]
    assert proof_of(model_of(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])])).batches


def test_rows_that_differ_although_they_cannot_meet() -> None:
    """As with a kernel that adds in another order, and loses more than rounding."""

    def run(inputs: Sequence[Array]) -> list[Array]:
        return [inputs[0] * np.float32(1 + 0.01 * (len(inputs[0]) > 1))]

    proof = prove_by_rows(run, [[normal(1, 4)]], False, "")
    assert not proof.batches
    assert "although no operator lets them meet" in proof.note
    assert prove_by_rows(run, [[normal(1, 4)]], True, "").batches


def test_asked_for() -> None:
    model = one_node("CumSum", ["x", "axis"], [initializer("axis", 0, np.int64)])
    proof = proof_of(model, asked=True)
    assert proof.batches
    assert proof.note.startswith("asked for, although rows answer differently")
    same = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { s = ReduceSum <keepdims = 0> (x)'
        "  c = Cast <to = 9> (s) y = If (c) <then_branch = t () => (float[N, 4] a) { a = Identity (x) }, "
        "  else_branch = e () => (float[N, 4] b) { b = Identity (x) }> }"
    )
    assert not proof_of(same).batches
    proof = proof_of(same, asked=True)
    assert proof.batches
    assert (
        proof.note == "asked for, and not refuted by 6 batches, but not proven: operator ReduceSum mixes rows"
    )
    with pytest.raises(InvalidModel, match="batching was asked for, but it does not run"):
        proof_of(one_node("Reshape", ["x", "shape"], [initializer("shape", [1, 4], np.int64)]), asked=True)
    with pytest.raises(InvalidModel, match="same number of rows"):
        prove_by_rows(lambda _: [], [[normal(1, 4), normal()]], True, "")
    assert not prove_by_rows(lambda _: [], [[normal(0, 4)]], False, "").batches


# ----- guessing and comparing ----------------------------------------------------------------


def test_open_dimensions_are_guessed_until_the_model_runs() -> None:
    """It runs only if the width is 80 and the state's batch is the input's."""
    nodes = [
        helper.make_node("Reshape", ["x", "eighty"], ["r"]),
        helper.make_node("Add", ["r", "state"], ["y"]),
    ]
    model = model_of(
        nodes, [value("x", ["a", "b"]), value("state", [2, "c", 80])], [value("y", None)],
        [initializer("eighty", [1, 80], np.int64)],
    )  # fmt: skip
    session = ModelSession(model.SerializeToString(), optimise=True)
    found, _, _ = trial.first_that_runs([TensorSpec(*one) for one in session.inputs], session.run)
    assert found is not None
    assert found[0].shape == (1, 80)


def test_a_guess_that_never_runs_says_why() -> None:
    def run(_: Sequence[Array]) -> list[Array]:
        raise RunError("no")

    assert trial.first_that_runs([TensorSpec("x", FLOAT, ("N",))], run) == (None, [], "no")


def test_difference_is_relative_and_nan_equals_nan() -> None:
    tiny = np.array([3e-9, -1e-9], np.float32)
    assert answers.difference([tiny], [tiny * np.float32(1.00001)]) == ""
    assert "apart" in answers.difference([tiny], [tiny * np.float32(1.01)])
    assert "apart" in answers.difference([tiny * 0], [tiny])
    assert answers.difference([np.array([np.nan, np.inf])], [np.array([np.nan, np.inf])]) == ""
    assert "finite" in answers.difference([np.array([np.nan])], [np.array([1.0])])
    assert "finite" in answers.difference([np.array([np.inf])], [np.array([-np.inf])])
    assert "shape" in answers.difference([np.zeros(3)], [np.zeros((3, 1))])
    assert "int64" in answers.difference([np.zeros(3, np.int64)], [np.zeros(3)])
    assert "apart by 1" in answers.difference([np.array([1])], [np.array([2])])
    assert answers.difference([np.array([1], np.uint8)], [np.array([2], np.uint8)], 2e-2) == ""
    assert answers.difference([np.array(["a"], object)], [np.array(["b"], object)]) != ""
    assert "2 outputs" in answers.difference([tiny, tiny], [tiny])
    half = np.array([1.0, 0.5], np.float16)
    assert answers.difference([half], [half * np.float16(1.003)]) == ""
