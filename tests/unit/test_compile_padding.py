"""Padding that cannot reach the answers: the proof for a graph, and the answers of the padded graph.

Each graph is run as it is, on inputs of every length, and padded, with zeros, other numbers, or NaN behind
the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork.models import zoo
from clockwork.models.answers import difference
from clockwork.models.compile.following import Padding
from clockwork.models.compile.freeze import freeze
from clockwork.models.compile.padding import make_padded_by_row, padded_inputs
from clockwork.models.compile.sizes import NotProven
from clockwork.models.runtime import ModelSession, RunError
from clockwork.wire.tensors import Array
from tests.unit.models_onnx import INT64, initializer, model_of, normal, value

MOST = 7
ROWS = 2
WIDTH = 4


class Graph:
    """A model of x [N, S, 4], node by node."""

    def __init__(self, opset: int = 18) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.opset = opset

    def node(self, op: str, *inputs: str | Array, outputs: int = 1, **attributes: Any) -> str:
        names = []
        for one in inputs:
            if not isinstance(one, str):
                names.append(f"w{len(self.weights)}")
                self.weights.append(initializer(names[-1], one, one.dtype))
            else:
                names.append(one)
        made = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, **attributes))
        return made[0]

    def ints(self, *numbers: int) -> Array:
        return np.array(numbers, np.int64)

    def model(self, *outputs: str, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
        made = [value(name, None, dtype) for name in outputs]
        given = [value("x", ["N", "S", WIDTH])]
        return model_of(self.nodes, given, made, self.weights, opset=self.opset)


def check(model: onnx.ModelProto, folder: Path, make: Callable[[int, Any], Sequence[Array]]) -> Padding:
    """Check that the padded model answers as the model does. make: inputs of a length, by a generator."""
    path, frozen = folder / "model.onnx", folder / "frozen.onnx"
    onnx.save(model, path)
    rng = np.random.default_rng(0)
    shapes = [array.shape for array in make(MOST, rng)]
    padding = freeze(path, shapes, frozen, ["S"])
    assert padding is not None
    original, padded = ModelSession(path, optimise=False), ModelSession(frozen, optimise=False)
    for length in range(1, MOST + 1):
        inputs = list(make(length, rng))
        expected = original.run(inputs)
        answers = []
        zeros = [np.zeros_like(one) for one in make(MOST, rng)]
        nans = [np.full_like(one, np.nan) if one.dtype.kind == "f" else one for one in zeros]
        for filling in (zeros, make(MOST, rng), nans):
            found = padded.run([*padded_inputs(inputs, shapes, filling), np.array(length)])
            cut = [
                one[tuple(slice(length if dim == "S" else None) for dim in dims)]
                for one, dims in zip(found, padding.output_dims, strict=True)
            ]
            answers.append(cut)
        assert difference(answers[0], expected) == "", length
        for one, *others in zip(*answers, strict=True):
            for other in others:
                np.testing.assert_array_equal(one, other)
    return padding


def check_by_row(
    model: onnx.ModelProto, folder: Path, make: Callable[[int, Any], Sequence[Array]]
) -> Padding:
    """Check that rows of different length answer in one batch as each does alone. make: inputs of a length,
    by a generator."""
    path, by_row = folder / "model.onnx", folder / "by_row.onnx"
    onnx.save(model, path)
    rng = np.random.default_rng(1)
    changed = onnx.load(path)
    padding = make_padded_by_row(changed, [array.shape for array in make(MOST, rng)], ["S"])
    onnx.save(changed, by_row)
    original, padded = ModelSession(path, optimise=False), ModelSession(by_row, optimise=False)
    for lengths in ([MOST, 1, 3], [2, MOST - 2], [4], [1, 1], [5, 6, 6, 1]):
        rows = [[array[:1] for array in make(length, rng)] for length in lengths]
        shapes = [(1, max(lengths), *array.shape[2:]) for array in rows[0]]
        alone = [original.run(row) for row in rows]
        answers = []
        zeros = [np.zeros(shape, array.dtype) for array, shape in zip(rows[0], shapes, strict=True)]
        nans = [np.full_like(one, np.nan) if one.dtype.kind == "f" else one for one in zeros]
        other = [array[:1, : max(lengths)] for array in make(MOST, rng)]
        for filling in (zeros, other, nans):
            batch = [
                np.concatenate(parts) for parts in zip(*(padded_inputs(row, shapes, filling) for row in rows))
            ]
            answers.append(padded.run([*batch, np.array(lengths)]))
        for number, (length, expected) in enumerate(zip(lengths, alone, strict=True)):
            for answer in answers:
                cut = [
                    one[number : number + 1][tuple(slice(length if dim == "S" else None) for dim in dims)]
                    for one, dims in zip(answer, padding.output_dims, strict=True)
                ]
                assert difference(cut, expected) == "", (lengths, number)
    return padding


def floats(length: int, rng: Any) -> list[Array]:
    return [rng.standard_normal((ROWS, length, WIDTH)).astype(np.float32)]


def tokens(length: int, rng: Any) -> list[Array]:
    mask = rng.integers(0, 2, (ROWS, length))
    return [rng.integers(0, 50, (ROWS, length)), mask]


# ----- what is proven ------------------------------------------------------------------------------


def attention(g: Graph) -> str:
    scores = g.node("MatMul", "x", g.node("Transpose", "x", perm=[0, 2, 1]))
    return g.node("MatMul", g.node("Softmax", scores, axis=-1), "x")


def causal(g: Graph) -> str:
    """Scores of later positions are masked by a mask made from the input's own size."""
    scores = g.node("MatMul", "x", g.node("Transpose", "x", perm=[0, 2, 1]))
    size = g.node("Shape", "x", start=1, end=2)
    square = g.node("Concat", size, size, axis=0)
    ones = g.node("ConstantOfShape", square, value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1]))
    seen = g.node("Cast", g.node("Trilu", ones, upper=0), to=TensorProto.BOOL)
    masked = g.node("Where", seen, scores, np.array(-np.inf, np.float32))
    return g.node("MatMul", g.node("Softmax", masked, axis=-1), "x")


def heads(g: Graph) -> str:
    """Split into heads by shapes that are computed, as exporters write it."""
    shape = g.node("Shape", "x")
    rows, length = (g.node("Gather", shape, np.array(axis), axis=0) for axis in (0, 1))
    rows, length = (g.node("Unsqueeze", one, g.ints(0)) for one in (rows, length))
    apart = g.node("Concat", rows, length, g.ints(2), g.ints(2), axis=0)
    y = g.node("Transpose", g.node("Reshape", "x", apart), perm=[0, 2, 1, 3])
    y = g.node("MatMul", g.node("Softmax", g.node("MatMul", y, g.node("Transpose", y, perm=[0, 1, 3, 2]))), y)
    joined = g.node("Concat", rows, g.ints(-1), g.ints(4), axis=0)
    return g.node("Reshape", g.node("Transpose", y, perm=[0, 2, 1, 3]), joined)


def places(g: Graph) -> str:
    """Position embeddings: the beginning of a table, a row for each counted position, and a running sum."""
    size = g.node("Shape", "x", start=1, end=2)
    begin = g.node("Slice", normal(9, WIDTH), g.ints(0), size, g.ints(0), g.ints(1))
    later = g.node("Slice", normal(9, WIDTH), g.ints(2), g.node("Add", size, g.ints(2)), g.ints(0))
    count = g.node("Range", np.array(0), g.node("Squeeze", size, g.ints(0)), np.array(1))
    rows = g.node("Gather", normal(9, WIDTH), count, axis=0)
    sums = g.node("CumSum", "x", np.array(1))
    return g.node("Add", g.node("Add", g.node("Add", sums, begin), rows), later)


def expanded(g: Graph) -> str:
    """torch's expand(): where the wanted size is -1, the tensor's size is used."""
    size = g.node("Concat", g.ints(-1), g.node("Shape", "x", start=1, end=2), g.ints(-1), axis=0)
    kept = g.node(
        "Equal", size, g.node("Mul", g.node("ConstantOfShape", g.ints(3), value=one_int()), g.ints(-1))
    )
    shape = g.node("Where", kept, g.ints(1, 1, 1), size)
    return g.node("Mul", "x", g.node("Expand", normal(1, 1, WIDTH), shape))


def one_int() -> TensorProto:
    return helper.make_tensor("one", INT64, [1], [1])


PROVEN: dict[str, Callable[[Graph], str]] = {
    "positions alone": lambda g: g.node("Relu", g.node("MatMul", "x", normal(WIDTH, 3))),
    "layer norm": lambda g: g.node("LayerNormalization", "x", normal(WIDTH), axis=-1),
    "attention": attention,
    "causal attention": causal,
    "attention by heads": heads,
    "position embeddings": places,
    "expanded": expanded,
    "softmax": lambda g: g.node("Softmax", "x", axis=1),
    "log softmax": lambda g: g.node("LogSoftmax", "x", axis=1),
    "mean": lambda g: g.node("ReduceMean", "x", g.ints(1), keepdims=0),
    "mean of all": lambda g: g.node("ReduceMean", "x", keepdims=0),
    "sum": lambda g: g.node("ReduceSum", "x", g.ints(1)),
    "largest": lambda g: g.node("ReduceMax", "x", g.ints(1), keepdims=0),
    "least": lambda g: g.node("ReduceMin", "x", g.ints(1, 2), keepdims=0),
    "product": lambda g: g.node("ReduceProd", "x", g.ints(1)),
    "length": lambda g: g.node("ReduceL2", "x", g.ints(1)),
    "best": lambda g: g.node("Cast", g.node("ArgMax", "x", axis=1), to=1),
    "first token": lambda g: g.node("Gather", "x", np.array(0), axis=1),
    "first piece": lambda g: g.node("Slice", "x", g.ints(0), g.ints(1), g.ints(1)),
    "sums so far": lambda g: g.node("CumSum", "x", np.array(1), exclusive=1),
    "sums from the end": lambda g: g.node("CumSum", "x", np.array(1), reverse=1),
    "convolution": lambda g: g.node(
        "Conv", g.node("Transpose", "x", perm=[0, 2, 1]), normal(3, WIDTH, 3), normal(3), pads=[1, 1]
    ),
    "mean over time": lambda g: g.node("GlobalAveragePool", g.node("Transpose", "x", perm=[0, 2, 1])),
    "largest over time": lambda g: g.node("GlobalMaxPool", g.node("Transpose", "x", perm=[0, 2, 1])),
    "square of positions": lambda g: g.node("MatMul", "x", g.node("Transpose", "x", perm=[0, 2, 1])),
    "sum of an outer product": lambda g: g.node("MatMul", g.node("Transpose", "x", perm=[0, 2, 1]), "x"),
    "split": lambda g: g.node("Relu", g.node("Split", "x", outputs=2, axis=2, num_outputs=2)),
    "infinite behind": lambda g: g.node("ReduceSum", g.node("Softmax", g.node("Log", "x"), axis=1), g.ints(1)),
}  # fmt: skip


MIXES_ROWS = ("mean of all",)
"""Graphs that can be padded if all rows of a batch have one length, but not if lengths differ."""


@pytest.mark.parametrize("name", PROVEN)
def test_a_graph_that_is_proven_answers_as_if_nothing_were_behind_the_end(name: str, tmp_path: Path) -> None:
    g = Graph()
    model = g.model(PROVEN[name](g))
    check(model, tmp_path, floats)
    if name in MIXES_ROWS:
        with pytest.raises(NotProven, match="mixes rows"):
            check_by_row(model, tmp_path, floats)
    else:
        check_by_row(model, tmp_path, floats)


def test_an_encoder_is_padded_with_its_mask_and_without(tmp_path: Path) -> None:
    model = zoo.build("transformer", layers=2, width=16, heads=2, sequence=None, vocabulary=50)
    check(model, tmp_path, tokens)
    assert check_by_row(model, tmp_path, tokens).limits == {"S": 512}
    bare = zoo.build("transformer", layers=1, width=WIDTH, heads=2, sequence=None, embedded=True)
    check(bare, tmp_path, floats)
    assert check_by_row(bare, tmp_path, floats).limits == {}


def exported_bert(sdpa: bool) -> onnx.ModelProto:
    """An encoder as torch exports a transformers model: shapes are computed piece by piece, and normalisation
    is decomposed.

    sdpa: the mask is expanded for each position, as for torch's own attention."""
    g, heads, width = Graph(14), 2, 8
    minus_infinity = np.array(np.finfo(np.float32).min, np.float32)

    def size(of: str, axis: int) -> str:
        return g.node("Gather", g.node("Shape", of), np.array(axis), axis=0)

    def joined(*sizes: str | int) -> str:
        pieces = [
            g.ints(one) if isinstance(one, int) else g.node("Unsqueeze", one, g.ints(0)) for one in sizes
        ]
        return g.node("Concat", *pieces, axis=0)

    def normed(x: str) -> str:
        apart = g.node("Sub", x, g.node("ReduceMean", x, axes=[-1]))
        squares = g.node("ReduceMean", g.node("Pow", apart, np.array(2, np.float32)), axes=[-1])
        deviation = g.node("Sqrt", g.node("Add", squares, np.array(1e-12, np.float32)))
        return g.node("Add", g.node("Mul", g.node("Div", apart, deviation), normal(width)), normal(width))

    def linear(x: str, source: int = width, target: int = width) -> str:
        return g.node("Add", g.node("MatMul", x, normal(source, target)), normal(target))

    end = g.node("Unsqueeze", size("ids", 1), g.ints(0))
    places = g.node("Slice", np.arange(16)[np.newaxis], g.ints(0), end, g.ints(1), g.ints(1))
    x = g.node("Add", g.node("Gather", normal(50, width), "ids"), g.node("Gather", normal(2, width), "types"))
    x = normed(g.node("Add", x, g.node("Gather", normal(16, width), places)))
    mask = g.node("Unsqueeze", g.node("Unsqueeze", "mask", g.ints(1)), g.ints(2))
    if sdpa:
        wanted = joined(size("ids", 0), 1, size("ids", 1), size("ids", 1))
        ones = g.node("ConstantOfShape", g.ints(4), value=one_int())
        keeps = g.node("Equal", wanted, g.node("Mul", ones, g.ints(-1)))
        mask = g.node("Expand", mask, g.node("Where", keeps, ones, wanted))
    absent = g.node("Sub", np.array(1, np.float32), g.node("Cast", mask, to=TensorProto.FLOAT))
    if sdpa:
        bias = g.node("Where", g.node("Cast", absent, to=TensorProto.BOOL), minus_infinity, absent)
    else:
        bias = g.node("Mul", absent, minus_infinity)

    def head(y: str, order: list[int]) -> str:
        apart = joined(size(y, 0), size(y, 1), heads, width // heads)
        return g.node("Transpose", g.node("Reshape", y, apart), perm=order)

    query, key, value_ = (head(linear(x), order) for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = g.node("Add", g.node("Div", g.node("MatMul", query, key), np.array(2, np.float32)), bias)
    mixed = g.node(
        "Transpose", g.node("MatMul", g.node("Softmax", scores, axis=-1), value_), perm=[0, 2, 1, 3]
    )
    merged = g.node("Reshape", mixed, joined(size(mixed, 0), size(mixed, 1), width))
    hidden = normed(g.node("Add", linear(merged), x))
    first = g.node("Gather", hidden, np.array(0), axis=1)
    pooled = g.node("Tanh", g.node("Gemm", first, normal(width, width), normal(width)))
    inputs = [value(name, ["batch_size", "S"], INT64) for name in ("ids", "mask", "types")]
    outputs = [value(name, None) for name in (hidden, pooled)]
    return model_of(g.nodes, inputs, outputs, g.weights, opset=14)


def bert_inputs(length: int, rng: Any) -> list[Array]:
    mask = rng.integers(0, 2, (ROWS, length))
    mask[:, 0] = 1
    return [rng.integers(0, 50, (ROWS, length)), mask, rng.integers(0, 2, (ROWS, length))]


@pytest.mark.parametrize("sdpa", [False, True])
def test_an_encoder_of_transformers_is_padded(sdpa: bool, tmp_path: Path) -> None:
    model = exported_bert(sdpa)
    check(model, tmp_path, bert_inputs)
    padding = check_by_row(model, tmp_path, bert_inputs)
    assert padding.limits == {"S": 16}
    assert padding.output_dims == [("clockwork.rows", "S", 8), ("clockwork.rows", 8)]


def test_what_has_a_value_for_each_position_is_cut_back(tmp_path: Path) -> None:
    g = Graph()
    padding = check(g.model(attention(g), g.node("ReduceSum", "x", g.ints(1), keepdims=0)), tmp_path, floats)
    assert padding.output_dims == [(ROWS, "S", WIDTH), (ROWS, WIDTH)]
    g = Graph()
    model = g.model(attention(g), g.node("ReduceSum", "x", g.ints(1), keepdims=0))
    padding = check_by_row(model, tmp_path, floats)
    assert padding.output_dims == [("clockwork.rows", "S", WIDTH), ("clockwork.rows", WIDTH)]


# ----- what is not ---------------------------------------------------------------------------------


def divided(g: Graph) -> str:
    size = g.node("Cast", g.node("Shape", "x", start=1, end=2), to=TensorProto.FLOAT)
    return g.node("Div", "x", size)


REFUSED: dict[str, tuple[Callable[[Graph], str], str]] = {
    "last token": (lambda g: g.node("Gather", "x", np.array(-1), axis=1), "Gather picks positions"),
    "last piece": (
        lambda g: g.node("Slice", "x", g.ints(-1), g.ints(2**31), g.ints(1)), "Slice takes a piece out of an open axis"
    ),
    "backwards": (
        lambda g: g.node("Slice", "x", g.ints(-1), g.ints(-(2**31)), g.ints(1), g.ints(-1)), "Slice takes a piece"
    ),
    "flat": (lambda g: g.node("Flatten", "x"), "Flatten makes an axis of an open one and something else"),
    "merged": (lambda g: g.node("Reshape", "x", g.ints(-1, WIDTH)), "Reshape makes an axis of an open one"),
    "one more": (lambda g: g.node("Concat", normal(ROWS, 1, WIDTH), "x", axis=1), "Concat appends to an open axis"),
    "divided by the size": (divided, "Div computes with the size of the inputs"),
    "the size itself": (lambda g: g.node("Shape", "x", start=1), "is computed from the size of the inputs"),
    "strides": (
        lambda g: g.node("Conv", g.node("Transpose", "x", perm=[0, 2, 1]), normal(3, WIDTH, 3), pads=[1, 1], strides=[2]),
        "Conv makes another size of an open axis",
    ),
    "shrinking": (
        lambda g: g.node("Conv", g.node("Transpose", "x", perm=[0, 2, 1]), normal(3, WIDTH, 1), pads=[0, 1]),
        "Conv makes another size of an open axis",
    ),
    "pooled": (
        lambda g: g.node("MaxPool", g.node("Transpose", "x", perm=[0, 2, 1]), kernel_shape=[1]),
        "MaxPool is not known to keep positions apart",
    ),
    "sorted": (lambda g: g.node("TopK", "x", g.ints(1), axis=1, outputs=2), "TopK is not known to keep positions apart"),
    "normalised over positions": (
        lambda g: g.node("LayerNormalization", "x", normal(1, WIDTH), axis=1), "LayerNormalization mixes positions"
    ),
    "quantised by what is largest": (
        lambda g: g.node("DequantizeLinear", g.node("DynamicQuantizeLinear", "x", outputs=3), np.array(1, np.float32)),
        "DynamicQuantizeLinear is not known",
    ),
    "joined with a fixed size": (lambda g: g.node("Add", "x", normal(MOST, WIDTH)), "Add joins an axis of S with one of 7"),
    "last of equals": (
        lambda g: g.node("Cast", g.node("ArgMax", "x", axis=1, select_last_index=1), to=1), "ArgMax may choose the last"
    ),
    "old": (lambda g: setattr(g, "opset", 9) or g.node("Relu", "x"), "the model is of opset 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_is_not_proven_says_which_operator_it_is_not_proven_for(
    name: str, tmp_path: Path
) -> None:
    make, says = REFUSED[name]
    g = Graph()
    output = make(g)
    onnx.save(g.model(output, dtype=INT64 if name == "the size itself" else 1), tmp_path / "model.onnx")
    with pytest.raises(NotProven, match=says):
        freeze(tmp_path / "model.onnx", [(ROWS, MOST, WIDTH)], tmp_path / "frozen.onnx", ["S"])
    assert not (tmp_path / "frozen.onnx").exists()


# ----- whatever there is ------------------------------------------------------------------------------


def random_graph(rng: Any) -> Graph:
    """A few layers of operators that mix positions, that do not, and that move them."""
    g = Graph()
    at = "x"
    for _ in range(int(rng.integers(2, 7))):
        match int(rng.integers(11)):
            case 0:
                at = g.node("Softmax", at, axis=int(rng.integers(1, 3)))
            case 1:
                turned = g.node("Transpose", at, perm=[0, 2, 1])
                at = g.node("MatMul", g.node("MatMul", at, turned), at)
            case 2:
                at = g.node("Sub", at, g.node("ReduceMean", at, g.ints(int(rng.integers(1, 3)))))
            case 3:
                at = g.node("Mul", at, g.node("ReduceMax", at, g.ints(1)))
            case 4:
                at = g.node("CumSum", at, np.array(int(rng.integers(1, 3))), reverse=int(rng.integers(2)))
            case 5:
                turned = g.node("Transpose", at, perm=[0, 2, 1])
                turned = g.node("Conv", turned, normal(WIDTH, WIDTH, 3), pads=[2, 0])
                at = g.node("Transpose", turned, perm=[0, 2, 1])
            case 6:
                at = g.node("Reciprocal", at)  # the reciprocal of 0 is infinite in the padding
            case 7:
                at = g.node("LayerNormalization", at, normal(WIDTH), axis=-1)
            case 8:
                apart = g.node("Reshape", at, g.ints(0, 0, 2, 2))
                at = g.node("Reshape", g.node("Tanh", apart), g.ints(0, -1, WIDTH))
            case 9:
                at = g.node("Exp", g.node("Clip", at, np.array(-2, np.float32), np.array(2, np.float32)))
            case _:
                at = g.node(
                    "Add", g.node("MatMul", at, normal(WIDTH, WIDTH)), g.node("Gather", at, g.ints(0), axis=1)
                )
    g.nodes.append(helper.make_node("Tanh", [at], ["y"]))
    return g


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_answer_as_if_nothing_were_behind_the_end(seed: int, tmp_path: Path) -> None:
    g = random_graph(np.random.default_rng(seed))
    try:
        check(g.model("y"), tmp_path, floats)
        check_by_row(g.model("y"), tmp_path, floats)
    except RunError as error:
        pytest.fail(str(error))


OF_ROWS: dict[str, tuple[Callable[[Graph], str], str]] = {
    "first row": (lambda g: g.node("Gather", "x", np.array(0), axis=0), "Gather picks positions"),
    "slice of the first row": (lambda g: g.node("Slice", "x", g.ints(0), g.ints(1), g.ints(0)), "Slice takes a piece"),
    "sums over rows": (lambda g: g.node("CumSum", "x", np.array(0)), "CumSum mixes rows"),
    "softmax over rows": (lambda g: g.node("Softmax", "x", axis=0), "Softmax mixes rows"),
    "mean of rows": (lambda g: g.node("ReduceMean", "x", g.ints(0)), "ReduceMean mixes rows"),
    "largest of rows": (lambda g: g.node("ReduceMax", "x", g.ints(0)), "ReduceMax mixes rows"),
    "product of rows": (
        lambda g: g.node("MatMul", g.node("Transpose", "x", perm=[1, 2, 0]), g.node("Transpose", "x", perm=[1, 0, 2])),
        "MatMul mixes rows",
    ),
    "convolution over rows": (
        lambda g: g.node("Conv", g.node("Transpose", "x", perm=[1, 2, 0]), normal(3, WIDTH, 1)), "Conv mixes positions"
    ),
    "sum of a table": (
        lambda g: g.node("Add", "x", g.node(
            "ReduceSum", g.node("Slice", normal(9, WIDTH), g.ints(0), g.node("Shape", "x", start=1, end=2), g.ints(0)),
            g.ints(0))),
        "ReduceSum mixes positions of a tensor without rows",
    ),
    "pieces as long as the input": (
        lambda g: g.node(
            "Split", normal(MOST + 2, WIDTH),
            g.node("Concat", g.node("Shape", "x", start=1, end=2),
                   g.node("Sub", g.ints(MOST + 2), g.node("Shape", "x", start=1, end=2)), axis=0), outputs=2, axis=0),
        "Split computes with the size of the inputs",
    ),
    "no rows": (lambda g: g.node("Relu", normal(ROWS, WIDTH)), "has no row for each row"),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ROWS)
def test_what_mixes_rows_is_not_proven_for_rows_of_different_length(name: str) -> None:
    make, says = OF_ROWS[name]
    g = Graph()
    with pytest.raises(NotProven, match=says):
        make_padded_by_row(g.model(make(g)), [(ROWS, MOST, WIDTH)], ["S"])
