"""Test models whose memory or time depends on a value in the request: each takes one int64 [1] named
``n``."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from tests.device.rig import Case, case

INT = TensorProto.INT64
FLOAT = TensorProto.FLOAT


def constant(
    name: str, dtype: int, values: Sequence[float], shape: Sequence[int] | None = None
) -> onnx.NodeProto:
    dims = [len(values)] if shape is None else list(shape)
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, dtype, dims, values))


def _one(nodes: Sequence[onnx.NodeProto], result: str = "big", dtype: int = FLOAT) -> Case:
    """A model that makes ``big`` of n and answers with its sum: a single number."""
    return case(
        [*nodes, helper.make_node("ReduceSum", [result], ["y"], keepdims=0)],
        {"n": (INT, [1])}, {"y": (dtype, [])}, batches=False,
    )  # fmt: skip


def constant_of_shape() -> Case:
    value = helper.make_tensor("one", FLOAT, [1], [1.0])
    return _one([helper.make_node("ConstantOfShape", ["n"], ["big"], value=value)])


def expand() -> Case:
    return _one([constant("one", FLOAT, [1.0]), helper.make_node("Expand", ["one", "n"], ["big"])])


def tile() -> Case:
    return _one([constant("one", FLOAT, [1.0]), helper.make_node("Tile", ["one", "n"], ["big"])])


def range_of() -> Case:
    return _one(
        [
            constant("zero", INT, [0], []),
            constant("step", INT, [1], []),
            helper.make_node("Squeeze", ["n"], ["stop"]),
            helper.make_node("Range", ["zero", "stop", "step"], ["big"]),
        ],
        dtype=INT,
    )


def resize() -> Case:
    return _one(
        [
            constant("image", FLOAT, [1.0], [1, 1, 1, 1]),
            constant("rest", INT, [1, 1, 1]),
            helper.make_node("Concat", ["rest", "n"], ["sizes"], axis=0),
            helper.make_node("Resize", ["image", "", "", "sizes"], ["big"], mode="nearest"),
        ]
    )


def pad() -> Case:
    return _one(
        [
            constant("one", FLOAT, [1.0]),
            constant("zero", INT, [0]),
            helper.make_node("Concat", ["zero", "n"], ["pads"], axis=0),
            helper.make_node("Pad", ["one", "pads"], ["big"]),
        ]
    )


def non_zero() -> Case:
    """Finds n places in a vector of its own before it makes a tensor of them."""
    true = helper.make_tensor("true", TensorProto.BOOL, [1], [True])
    return _one(
        [
            helper.make_node("ConstantOfShape", ["n"], ["all"], value=true),
            helper.make_node("NonZero", ["all"], ["big"]),
        ],
        dtype=INT,
    )


def repeated() -> Case:
    """Makes n copies of the string `x`: their characters are in no tensor's memory."""
    return case(
        [helper.make_node("Tile", ["x", "n"], ["big"]), helper.make_node("Shape", ["big"], ["y"])],
        {"x": (TensorProto.STRING, [1]), "n": (INT, [1])}, {"y": (INT, [1])}, batches=False,
    )  # fmt: skip


def loop(scanned: int) -> Case:
    """Loops n times, and keeps so many floats of each round."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            constant("size", INT, [scanned]),
            helper.make_node("ConstantOfShape", ["size"], ["row"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("row", FLOAT, [scanned]),
        ],
    )
    return _one(
        [
            constant("yes", TensorProto.BOOL, [True], []),
            helper.make_node("Squeeze", ["n"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "yes"], ["big"], body=body),
        ]
    )


def strings_of_rounds(each: int) -> Case:
    """Loops n times, and keeps so many strings of 100 characters of each round."""
    text = helper.make_tensor("text", TensorProto.STRING, [1], [b"x" * 100])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Constant", [], ["text"], value=text),
            constant("count", INT, [each]),
            helper.make_node("Tile", ["text", "count"], ["row"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("row", TensorProto.STRING, [each]),
        ],
    )
    nodes = [
        constant("yes", TensorProto.BOOL, [True], []),
        helper.make_node("Squeeze", ["n"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "yes"], ["big"], body=body),
        helper.make_node("Shape", ["big"], ["y"]),
    ]
    return case(nodes, {"n": (INT, [1])}, {"y": (INT, [2])}, batches=False)


def spin() -> Case:
    """Loops n times and keeps nothing but a count."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["sum", "one"], ["more"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", FLOAT, [1]),
        ],
    )
    return _one(
        [
            constant("yes", TensorProto.BOOL, [True], []),
            constant("one", FLOAT, [1.0]),
            constant("zero", FLOAT, [0.0]),
            helper.make_node("Squeeze", ["n"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "yes", "zero"], ["big"], body=body),
        ]
    )


def whole(count: int) -> Case:
    """Answers with n zeros of ``count`` bytes each."""
    return case(
        [
            constant("row", INT, [count]),
            helper.make_node("Concat", ["n", "row"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["shape"], ["y"], value=helper.make_tensor("z", TensorProto.UINT8, [1], [0])),
        ],
        {"n": (INT, [1])}, {"y": (TensorProto.UINT8, ["rows", count])}, batches=False,
    )  # fmt: skip


MEMORY = {
    "ConstantOfShape": constant_of_shape(),
    "Expand": expand(),
    "Tile": tile(),
    "Range": range_of(),
    "Resize": resize(),
    "Pad": pad(),
    "Loop": loop(1 << 20),
}
"""Models that take memory in proportion to n."""
