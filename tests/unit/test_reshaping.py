"""Inputs and outputs of ONNX models that get other shapes by operators in their graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from clockwork.errors import InvalidModel
from clockwork.models.onnx_import import parse_model
from clockwork.models.reshaping import Reshape, reshape_interface


def model_of(nodes: list[Any], x: list[Any], y: list[Any], ir: int = 8, opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


DOUBLE = helper.make_node("Add", ["x", "x"], ["y"])


@pytest.mark.parametrize("ir", [3, 8])
def test_a_classifier_of_one_image_takes_it_without_its_batch(ir: int) -> None:
    """As the models of Triton's own quickstart are configured, which are of the third format."""
    model = model_of([DOUBLE], [1, 3, 2, 2], [1, 3, 2, 2], ir, 9)
    reshapes = [
        Reshape("x", True, (3, 2, 2), (1, 3, 2, 2), False),
        Reshape("y", False, (12,), (1, 3, 2, 2), False),
    ]
    changed = reshape_interface(model, reshapes)
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    assert np.array_equal(run(changed, x), 2 * x.ravel())
    assert model == model_of([DOUBLE], [1, 3, 2, 2], [1, 3, 2, 2], ir, 9), "the given one stays"
    checked = parse_model(changed.SerializeToString(), "changed")
    assert [size.dim_value for size in checked.graph.input[0].type.tensor_type.shape.dim] == [3, 2, 2]


def test_a_batch_stays_the_first_dimension() -> None:
    model = model_of([DOUBLE], ["n"], ["n"])
    reshapes = [Reshape("x", True, (1,), (), True), Reshape("y", False, (1, 1), (), True)]
    changed = reshape_interface(model, reshapes)
    x = np.arange(3, dtype=np.float32).reshape(3, 1)
    assert np.array_equal(run(changed, x), 2 * x.reshape(3, 1, 1))
    (value,) = changed.graph.input
    assert [(one.dim_param, one.dim_value) for one in value.type.tensor_type.shape.dim] == [("n", 0), ("", 1)]


def test_sizes_that_are_not_known_pass_through() -> None:
    model = model_of([DOUBLE], ["n", "a", "b", 1], ["n", "a", "b", 1])
    changed = reshape_interface(model, [Reshape("x", True, (-1, -1), (-1, -1, 1), True)])
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    assert np.array_equal(run(changed, x), 2 * x[..., None])
    model = model_of([DOUBLE], ["n", "a", 1, "b"], ["n", "a", 1, "b"])
    changed = reshape_interface(model, [Reshape("x", True, (-1, -1), (-1, 1, -1), True)])
    assert np.array_equal(run(changed, x), 2 * x[:, :, None])
    model = model_of([DOUBLE], [1, "a", "b"], [1, "a", "b"])
    with pytest.raises(InvalidModel, match="the place of more than one open size changes"):
        reshape_interface(model, [Reshape("x", True, (-1, -1), (1, -1, -1), False)])


def test_a_value_that_is_read_inside_a_branch_and_by_others_is_the_reshaped_one() -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["x", "x"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, operator in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], **branches),
    ]
    model = model_of(nodes, [1, 4], [1, 4])
    changed = reshape_interface(
        model, [Reshape("x", True, (4,), (1, 4), False), Reshape("y", False, (2, 2), (1, 4), False)]
    )
    x = np.arange(1, 5, dtype=np.float32)
    assert np.array_equal(run(changed, x), (2 * x).reshape(2, 2))
    assert np.array_equal(run(changed, -x), (x * x).reshape(2, 2))


def test_an_old_operator_set_is_refused_in_words() -> None:
    with pytest.raises(InvalidModel, match="operator set 5"):
        reshape_interface(model_of([DOUBLE], [1, 2], [1, 2], 3, 4), [Reshape("x", True, (2,), (1, 2), False)])
