"""The proof that no row of a batch can reach another's answer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from onnx.backend.test.loader import load_model_tests

from bench.batching import exported, judge
from clockwork.models.answers import difference
from clockwork.models.batching import EXTREMES, why_rows_meet
from clockwork.models.compile import row_facts
from clockwork.models.compile.rows import RowRules
from clockwork.models.runtime import ModelSession, RunError
from clockwork.wire.tensors import Array

NOT_PROVEN = {
    # a body that would keep rows apart, run once for each row
    "hand-scan_batch_map": "goes through the rows",
    "hand-split_concat_seq": "not known to keep rows apart",  # a model with sequences
    "torch17-embbag": "counts the rows",
    "torch17-last_by_len": "depends on which row it is",  # a length of 0 picks from the row before
    "torchnew-last_by_len": "depends on which row it is",
    # decides over all rows between two equivalent computations
    "torchscript17-if_mask_all_harmless": "mixes rows",
}
"""Models of the archive whose rows are independent, as far as is known, and for which there is no proof."""


def meet(text: str, opset: int = 17) -> str:
    """Return where rows meet in a model in ONNX's text syntax, without its heading."""
    domains = f'"" : {opset}, "ai.onnx.ml" : 3, "com.microsoft" : 1'
    return why_rows_meet(parser.parse_model(f"<ir_version: 8, opset_import: [{domains}]> g {text}"))


# ----- models of other tools ----------------------------------------------------------------------------


@pytest.mark.slow
def test_models_of_many_exporters_are_judged_rightly() -> None:
    """No model is proven whose rows meet, and none is refused that is not listed."""
    wrong, refused, count = [], {}, 0
    for name, model, rows in exported():
        one = judge(name, model, rows)
        count += 1
        if not one.meet and (name.startswith("mixing-") or one.tried):
            wrong.append((name, one.tried))
        if one.meet and not name.startswith("mixing-") and not one.tried:
            refused[name] = one.meet
    assert count > 400
    assert wrong == []
    assert sorted(refused) == sorted(NOT_PROVEN)
    assert all(NOT_PROVEN[name] in why for name, why in refused.items())


@pytest.mark.slow
def test_proven_models_answer_alike_beside_extreme_rows() -> None:
    tried = 0
    for name, model, rows in exported():
        if name.startswith("mixing-") or why_rows_meet(model):
            continue
        session = ModelSession(model.SerializeToString(), optimise=True)
        alone = session.run([array[:1] for array in rows])
        for extreme in EXTREMES:
            other = [
                np.full_like(array[:1], extreme) if array.dtype.kind == "f" else array[1:2] for array in rows
            ]
            try:
                pair = [np.concatenate(parts) for parts in zip([a[:1] for a in rows], other, strict=True)]
                together = session.run(pair)
            except RunError:
                continue  # an operator that refuses such numbers
            assert not difference([output[:1] for output in together], alone, 1e-3), (name, extreme)
            tried += 1
    assert tried > 1_000


# ----- what was wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            (
                "(float[N, 4] x) => (int64[N] y) { q, s, z = DynamicQuantizeLinear (x) "
                "  d = DequantizeLinear (q, s, z) y = ArgMax <axis = 1, keepdims = 0> (d) }"
            ),
            "DynamicQuantizeLinear",
        ),
        (
            (
                "(float[N, 4] x) => (float[N, 4] y) { s = ReduceSum <keepdims = 0> (x) "
                "  zero = Constant <value_float = 0.0> () c = Greater (s, zero) "
                "  y = If (c) <then_branch = t () => (float[N, 4] a) { a = Neg (x) }, "
                "  else_branch = e () => (float[N, 4] b) { b = Identity (x) }> }"
            ),
            "ReduceSum",
        ),
        (
            (
                "(float[N, 4] x) => (float[N, 4] y) { m = ReduceMax <keepdims = 0> (x) "
                "  limit = Constant <value_float = 1.5> () c = Greater (m, limit) "
                "  wide = Constant <value_float = 255.0> () d = Div (x, wide) y = Where (c, d, x) }"
            ),
            "ReduceMax",
        ),
        (
            (
                "(float[N, 4] x, bool[N, 4] mask) => (float[N, 4] y) { i = Cast <to = 6> (mask) "
                "  all = ReduceMin <keepdims = 0> (i) c = Cast <to = 9> (all) "
                "  y = If (c) <then_branch = t () => (float[N, 4] a) { a = Identity (x) }, "
                "  else_branch = e () => (float[N, 4] b) { f = Cast <to = 1> (mask) b = Mul (x, f) }> }"
            ),
            "ReduceMin",
        ),
    ],
    ids=["dynamic quantisation", "if the sum is positive", "where the maximum is large", "if all are masked"],
)
def test_rows_that_meet_for_some_inputs_only(text: str, why: str) -> None:
    assert why in meet(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 0> (x) }", "mixes rows"),
        ("(float[N, 4] x) => (float[N, 4] y) { y = DoesWhatItLikes (x) }", "not known to keep rows apart"),
        ("(float[N, 4] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }", "mixes rows"),
        (
            ("(float[N, 4] x) => (float[N, 4] y) { s = Shape (x) zero = Constant <value_ints = [0]> () "
            "  n = Gather (s, zero) f = Cast <to = 1> (n) y = Div (x, f) }"),
            "number of rows",
        ),
        (
            ("(float[N, 4] x) => (float[N, 4] y) { s = Shape (x) zero = Constant <value_int = 0> () "
            "  one = Constant <value_int = 1> () n = Gather (s, zero) r = Range (zero, n, one) "
            "  f = Cast <to = 1> (r) last = Constant <value_ints = [1]> () u = Unsqueeze (f, last) y = Add (x, u) }"),
            "which row it is",
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { t = Transpose <perm = [1, 0]> (x) s = Shape (x) y = Reshape (t, s) }",
            "makes an axis",
        ),
        (
            "(float[N, 4] x) => (float[N, M] y) { t = Transpose <perm = [1, 0]> (x) y = MatMul (x, t) }",
            "joins rows",
        ),
        (
            ("(float[N, 4] x) => (float[N, 4] y) { s = Shape <end = 1> (x) one = Constant <value_ints = [1]> () "
            "  c = Equal (s, one) y = If (c) <then_branch = t () => (float[N, 4] a) { a = Neg (x) }, "
            "  else_branch = e () => (float[N, 4] b) { b = Identity (x) }> }"),
            "number of rows",
        ),
        (
            ("(float[N, T] x) => (float[N, T] y) { a = Constant <value_ints = [-5]> () axis = Constant <value_ints = [1]> () "
            "  b = Constant <value_ints = [9223372036854775807]> () s = Slice (x, a, b, axis) "
            "  d = Constant <value_ints = [-1, 5]> () r = Reshape (s, d) m = Softmax (r) h = Shape (s) y = Reshape (m, h) }"),
            "whose size is not known",
        ),
        (
            "(float[N, T, 2] x) => (float[N, T, 2] y) { y = DFT <axis = 0> (x) }",
            "mixes rows",
        ),
        (
            ("(float[N, 4] x) => (float[N, 4] y) { one = Constant <value_ints = [1]> () "
            "  s = Shape (x) h = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () e = Expand (h, s) "
            "  t = Transpose <perm = [1, 0]> (e) f = Reshape (t, s) y = Add (x, f) }"),
            "makes an axis",
        ),
    ],
    ids=[
        "softmax over rows", "unknown operator", "no rows left", "divides by their number", "adds their number",
        "transposes and reshapes", "gram matrix", "if there is one", "the last elements of an axis that may be shorter",
        "a transform over rows", "a constant spread over rows and reshaped",
    ],
)  # fmt: skip
def test_rows_that_meet(text: str, why: str) -> None:
    assert why in meet(text)


@pytest.mark.parametrize(
    "text",
    [
        "(float[N, 2, 6] x) => (float[N, 3, 4] y) { s = Constant <value_ints = [0, 3, -1]> () y = Reshape (x, s) }",
        (
            "(float[N, T, 6] x) => (float[M, 6] y) { s = Constant <value_ints = [-1, 6]> () f = Reshape (x, s) "
            "  e = Exp (f) shape = Shape (x) b = Reshape (e, shape) axis = Constant <value_ints = [1]> () "
            "  y = ReduceMax <axes = [1], keepdims = 0> (b) }"
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { c = Constant <value_ints = [1]> () s = Shape <start = 1> (x) "
            "  e = Equal (s, c) y = If (e) <then_branch = t () => (float[N, 4] a) { a = Neg (x) }, "
            "  else_branch = o () => (float[N, 4] b) { b = Identity (x) }> }"
        ),
        (
            "(float[N, 4] x) => (float[N, 2] y) { b = Constant <value_ints = [0, 0]> () "
            "  e = Constant <value_ints = [1000000000, 2]> () y = Slice (x, b, e) }"
        ),
        (
            "(float[N, 5] x) => (int64[N] label, float[N, 3] p) { label, p = ai.onnx.ml.LinearClassifier "
            '  <coefficients = [1.0, 2.0], classlabels_ints = [0, 1], post_transform = "NONE"> (x) }'
        ),
        (
            "(float[N, 5] x) => (int64[N] label, float[N, 3] y) { s = Constant <value_ints = [1, -1, 3]> () "
            "  label, p = ai.onnx.ml.LinearClassifier <coefficients = [1.0, 2.0, 3.0], intercepts = [1.0, 2.0, 3.0], "
            "  classlabels_ints = [0, 1, 2]> (x) r = Reshape (p, s) "
            "  c = Concat <axis = 0> (r, r) y = ReduceMean <axes = [0], keepdims = 0> (c) }"
        ),
        (
            "(float[N, 5] x) => (float[N, 2] y) { s = Constant <value_ints = [-1, 1]> () "
            "  a = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0, 4.0, 5.0], intercepts = [1.0]> (x) "
            "  r = Reshape (a, s) y = Concat <axis = 1> (r, r) }"
        ),
        (
            "(float[N, T] x) => (float[N, K, 9, 2] y) { a = Constant <value_ints = [7]> () axis = Constant <value_ints = [1]> () "
            "  b = Constant <value_ints = [-9223372036854775808]> () back = Constant <value_ints = [-1]> () "
            "  s = Slice (x, a, b, axis, back) c = Concat <axis = 1> (s, x) step = Constant <value_int = 4> () "
            "  w = Constant <value_floats = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]> () "
            "  y = STFT (c, step, w) }"
        ),
        ("(float[N, T, 1] x) => (float[N, T, 2] y) { d = DFT <axis = 1> (x) t = Identity (d) y = Neg (t) }"),
        (
            "(float[N, T, 4] x) => (float[N, 4] y) { n = Constant <value_int = 3> () c = Constant <value = bool {1}> () "
            "  zero = Constant <value_ints = [1]> () m = ReduceMax <axes = [1], keepdims = 0> (x) "
            "  y = Loop (n, c, m) <body = b (int64 i, bool k, float[N, 4] a) => (bool o, float[N, 4] s) "
            "  { o = Identity (k) s = Tanh (a) }> }"
        ),
    ],
    ids=[
        "reshape",
        "folds time into rows and back",
        "if on another axis",
        "slice to an end far away",
        "linear classifier",
        "mean of classifiers",
        "regressors side by side",
        "spectrogram of mirrored sound",
        "transform of each row",
        "loop",
    ],
)
def test_rows_that_are_independent(text: str) -> None:
    assert meet(text) == ""


MEET_IF = """ y = If (c) <then_branch = t () => (float[N, M] y0) { s0 = ReduceSum <keepdims = 1> (x) y0 = Sub (x, s0) },
  else_branch = e () => (float[N, M] y1) { y1 = Identity (x) }> """
NUMBERS = """ n = Shape <end = 1> (x) n0 = Squeeze (n) zero = Constant <value_int = 0> () one = Constant <value_int = 1> ()
  r = Range (zero, n0, one) flat = Constant <value_ints = [-1]> () f = Reshape (x, flat) column = Constant <value_ints = [-1, 1]> () """


@pytest.mark.parametrize(
    "text",
    [
        (
            "(float[N, 4] x) => (float[N, 4] y) { s = Shape <end = 1> (x) q = ReduceSumSquare (s) d = Sub (q, s) "
            "  f = Cast <to = 1> (d) y = Add (x, f) }"
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { s = ReduceSum <keepdims = 1, noop_with_empty_axes = 2> (x) y = Sub (x, s) }"
        ),
        (
            "(int64[N, 2] x) => (float[N, 2] y) { m = Constant <value_ints = [-1]> () f = Reshape (x, m) "
            "  c = ConstantOfShape <value = float[1] {1.0}> (f) s = ReduceSum <keepdims = 0> (c) "
            "  o = Constant <value_ints = [1]> () t = Reshape (s, o) xf = Cast <to = 1> (x) y = Mul (xf, t) }"
        ),
        (
            "(float[N, 2, 4] x) => (float[N, 4] y) { sh = Constant <value_ints = [-1, 4]> () f = Reshape (x, sh) "
            "  n = Shape <end = 1> (x) four = Constant <value_ints = [4]> () d = Concat <axis = 0> (n, four) "
            "  z = ConstantOfShape <value = int64[1] {0}> (d) g = GatherElements <axis = 1> (f, z) y = Reshape (g, d) }"
        ),
        (
            "(float[N, 2, 4] x) => (float[N, 8] y) { sh = Constant <value_ints = [-1, 4]> () f = Reshape (x, sh) "
            "  n = Shape <end = 1> (x) four = Constant <value_ints = [4]> () d = Concat <axis = 0> (n, four) "
            "  z = ConstantOfShape <value = int64[1] {0}> (d) u = ConstantOfShape <value = float[1] {7.0}> (d) "
            "  g = ScatterElements <axis = 1> (f, z, u) e = Constant <value_ints = [-1, 8]> () y = Reshape (g, e) }"
        ),
        (
            "(float[N, 200] x) => (float[N, 1] y) { " + NUMBERS + "  a = ArgMax <axis = 1, keepdims = 0> (x) "
            "  b = Cast <to = 3> (a) c = Cast <to = 7> (b) w = Constant <value_int = 200> () p = Mul (r, w) i = Add (p, c) "
            "  g = Gather (f, i) y = Reshape (g, column) }"
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { w = Constant <value = float[2] {1.0, 0.0}> () u = ArgMax <axis = 0> (w) "
            "  o = Constant <value_ints = [1]> () p = Concat <axis = 0> (u, o) z = Constant <value_ints = [0]> () "
            "  g = Gather (p, z) c = Equal (g, z)" + MEET_IF + "}"
        ),
        (
            "(float[N, T] x) => (float[N, T] y) { s = Constant <value_ints = [5]> () e = Constant <value_ints = [8]> () "
            "  a = Constant <value_ints = [1]> () p = Slice (x, s, e, a) h = Shape <start = 1> (p) "
            "  z = Constant <value_ints = [0]> () c = Equal (h, z)" + MEET_IF + "}"
        ),
        (
            "(float[N, T] u, float[N, 4] x) => (float[N, 4] y) { h = Shape <start = 1> (u) "
            "  z = Constant <value_ints = [0]> () c = Equal (h, z)" + MEET_IF + "}"
        ),
        (
            "(float[N, 4] x, float[N, 3] x3) => (float[N, 4] y) { a4 = Shape <start = 1> (x) a3 = Shape <start = 1> (x3) "
            "  f4 = Cast <to = 1> (a4) f3 = Cast <to = 1> (a3) d = Div (f4, f3) m = Mul (d, f3) i = Cast <to = 7> (m) "
            "  c = Equal (i, a4)" + MEET_IF + "}"
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { a = Constant <value_floats = [0.7]> () b = Constant <value_floats = [10.0]> () "
            "  m = Mul (a, b) i = Cast <to = 7> (m) seven = Constant <value_ints = [7]> () c = Equal (i, seven)" + MEET_IF + "}"
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { a = Constant <value_ints = [-7]> () b = Constant <value_ints = [3]> () "
            "  m = Mod <fmod = 1> (a, b) w = Constant <value_ints = [-1]> () c = Equal (m, w)" + MEET_IF + "}"
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { a = Constant <value = uint8[1] {200}> () o = Constant <value_ints = [1]> () "
            "  b = Expand (a, o) m = Add (b, b) w = Constant <value = uint8[1] {144}> () c = Equal (m, w)" + MEET_IF + "}"
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { a = Constant <value = int32[1] {2147483647}> () "
            "  o = Constant <value_ints = [1]> () b = Expand (a, o) m = Add (b, b) w = Constant <value = int32[1] {-2}> () "
            "  c = Equal (m, w)" + MEET_IF + "}"
        ),
        (
            "(float[N, 2] x) => (float[N, 1] y) { " + NUMBERS + " two = Constant <value_int = 2> () p0 = Mul (r, two) "
            "  c = Constant <value = bool {1}> () z0 = Gather (f, p0) i0 = Constant <value_ints = [0]> () "
            "  si, s = Loop (two, c, i0, z0) <body = b (int64 it, bool k, int64[1] i, float[N] acc) => "
            "  (bool ko, int64[1] i2, float[N] acc2) { ko = Identity (k) p = Add (p0, i) acc2 = Gather (f, p) "
            "  i2 = Sub (i, one) }> y = Reshape (s, column) }"
        ),
        (
            "(float[N, 2] x) => (float[N, 1] y) { " + NUMBERS + " two = Constant <value_int = 2> () "
            "  c = Constant <value = bool {1}> () a = Loop (one, c, x) <body = b1 (int64 it, bool k, float[N, 2] s) => "
            "  (bool ko, float[N, M] s2) { ko = Identity (k) s2 = Concat <axis = 1> (s, s) }> b = Exp (a) "
            "  bs = Shape <start = 1> (b) to = Concat <axis = 0> (flat, bs) q0 = ReduceMax <axes = [1], keepdims = 0> (x) "
            "  sx, q = Loop (two, c, a, q0) <body = b2 (int64 it2, bool k2, float[N, M] s3, float[N] q1) => "
            "  (bool ko2, float[N, L] s4, float[N] q2) { ko2 = Identity (k2) s4 = Concat <axis = 1> (s3, s3) "
            "  w = Reshape (s3, to) mx = ReduceMax <axes = [1], keepdims = 0> (w) q2 = Gather (mx, r) }> "
            "  y = Reshape (q, column) }"
        ),
    ],
    ids=[
        "square of the number", "a flag of 2", "size made of all rows", "gathers by a shorter index", "scatters a shorter update",
        "an index that wraps around", "a number that may be 0", "a slice that may be empty", "an input that may be empty", "division of floats",
        "product of 32 bits", "remainder with a sign", "bytes that wrap around", "integers that wrap around",
        "an index that grows in a loop", "a size that grows in a loop",
    ],
)  # fmt: skip
def test_models_that_were_proven_though_rows_met(text: str) -> None:
    assert meet(text) != ""


def test_names_that_mean_two_things() -> None:
    """Runtimes take the newest opset, a tensor of the body, and their own operator, not a function of its
    name."""
    transposed = "(float[N, 4] x) => (float[N, 4] y) { t = Transpose (x) s = Softmax <axis = 0> (t) y = Transpose (s) }"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> g {transposed}')
    assert why_rows_meet(model) == ""
    model.opset_import.append(helper.make_opsetid("ai.onnx", 11))
    assert "two opsets" in why_rows_meet(model)

    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 0> (x) }"""
    )
    body = [helper.make_node("Exp", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("", "Softmax", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    assert "name of a standard operator" in why_rows_meet(model)

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, M] x, bool[N] u) => (float[N, M] y) '
        "{ c = Constant <value = bool[1] {0}> ()" + MEET_IF + "}"
    )
    assert why_rows_meet(model) == ""
    (then, _) = (attribute.g for attribute in model.graph.node[-1].attribute)
    then.initializer.append(numpy_helper.from_array(np.array([True]), "c"))
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(
        helper.make_attribute("value", numpy_helper.from_array(np.array([True])))
    )
    assert "another tensor" in why_rows_meet(model)


def test_models_made_to_take_memory() -> None:
    """Lists and ranks that double, and functions that call each other twice, or themselves."""
    head = "(float[N, 4] x) => (float[N, 4] y) {"
    lists = "s0 = Shape (x) " + " ".join(f"s{k + 1} = Concat <axis = 0> (s{k}, s{k})" for k in range(40))
    assert "more than 256 sizes" in meet(f"{head} {lists} y = Reshape (x, s40) }}")
    ranks = "s0 = Constant <value = int64[1, 1] {0}> () "
    ranks += " ".join(f"s{k + 1} = Gather (s{k}, s{k})" for k in range(40))
    assert "more than 64 dimensions" in meet(f"{head} {ranks} y = Add (x, s40) }}")
    functions = '<domain: "own", opset_import: ["" : 17, "own" : 1]> f0 (a) => (b) { b = Exp (a) }\n'
    functions += "\n".join(
        f'<domain: "own", opset_import: ["" : 17, "own" : 1]> f{k + 1} (a) => (b) {{ c = own.f{k} (a) b = own.f{k} (c) }}'
        for k in range(40)
    )
    text = f'<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g {head} y = own.f40 (x) }}\n{functions}'
    assert "more than 100000 operators" in why_rows_meet(parser.parse_model(text))
    assert why_rows_meet(parser.parse_model(text.replace("own.f40 (x)", "own.f4 (x)"))) == ""
    looped = text.replace("b = Exp (a)", "b = own.f40 (a)")
    assert "more than 100000 operators" in why_rows_meet(parser.parse_model(looped))


def test_bodies_are_followed_without_a_copy_of_what_surrounds_them() -> None:
    """A graph of thousands of bodies and weights would take the product of both."""

    class Uncopied(dict[str, row_facts.Fact]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the facts are gone through")

        keys = values = items = __iter__  # type: ignore[assignment]

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, bool c) => (float[N, 4] y) {'
        "  n = Constant <value_int = 3> () t = Constant <value = bool {1}> () "
        "  a = If (c) <then_branch = h () => (float[N, 4] u) { u = Neg (x) }, "
        "  else_branch = o () => (float[N, 4] u) { u = Abs (x) }> "
        "  y = Loop (n, t, a) <body = b (int64 i, bool k, float[N, 4] x) => (bool o, float[N, 4] s) "
        "  { o = Identity (k) s = Tanh (x) }> }"  # x hides the input of that name
    )
    rows = row_facts.RowAxis(0)
    x = row_facts.Fact((rows.size, row_facts.Size(4)), rows)
    facts = Uncopied(x=x, c=row_facts.Fact(()))
    assert RowRules(17).follow(model.graph, facts) == [x]
    assert len(facts) == 2
    assert facts["x"] is x


def test_a_tensor_cast_like_rows_has_none() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { w = Constant <value = int64[4] {1, 2, 3, 4}> () c = CastLike (w, x)"
    assert meet(text + " y = Mul (x, c) }") == ""
    assert "no row for each row" in meet(text + " y = Identity (c) }")


def test_models_made_to_keep_the_proof_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops within loops whose state grows, and sizes that are squared again and again."""
    inner = "y = Concat <axis = 1> (x, x)"
    for depth in range(20):
        inner = (
            f"y = Loop (n, c, x) <body = b{depth} (int64 i{depth}, bool k{depth}, float[N, 4] x) => (bool k{depth}, float[N, 4] y) "
            f"{{ {inner} }}>"
        )
    head = "(float[N, 4] x) => (float[N, 4] y) { n = Constant <value_int = 3> () c = Constant <value = bool {1}> () "
    assert meet(f"{head} {inner} }}") == ""
    monkeypatch.setattr(row_facts, "FOLLOWED_MAX", 60)
    assert "more than 60 operators" in meet(f"{head} {inner} }}")
    monkeypatch.undo()
    squares = "s0 = Shape <end = 1> (x) " + " ".join(f"s{k + 1} = Mul (s{k}, s{k})" for k in range(80))
    assert "too large" in meet(f"(float[N, 4] x) => (float[N, 4] y) {{ {squares} y = Reshape (x, s80) }}")
    constants = "s0 = Constant <value_ints = [7]> () " + " ".join(
        f"s{k + 1} = Mul (s{k}, s{k})" for k in range(80)
    )
    assert meet(f"(float[N, 4] x) => (float[N, 4] y) {{ {constants} y = Reshape (x, s80) }}") != ""


def test_nodes_in_any_order() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { a = Exp (x) y = Neg (a) }'
    )
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert why_rows_meet(model) == ""


def test_functions_of_the_model_are_followed() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = own.f (x) }
        <domain: "own", opset_import: ["" : 17]> f (a) => (b) { s = ReduceSum <keepdims = 1> (a) b = Sub (a, s) }"""
    assert "ReduceSum" in why_rows_meet(parser.parse_model(text))
    assert why_rows_meet(parser.parse_model(text.replace("ReduceSum <keepdims = 1>", "Exp"))) == ""


# ----- ONNX's own tests of operators -------------------------------------------------------------------


def cases() -> Iterator[tuple[str, onnx.ModelProto, list[Array]]]:
    for case in load_model_tests(kind="node"):
        if case.model is None or not case.data_sets:
            continue
        inputs = list(case.data_sets[0][0])
        if len(inputs) == len(case.model.graph.input) and all(isinstance(one, np.ndarray) for one in inputs):
            yield case.name, case.model, inputs


def with_rows(model: onnx.ModelProto, inputs: Sequence[Array], chosen: Sequence[int]) -> onnx.ModelProto:
    """The model with these inputs' first axis as rows, and the others as constants."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.input[:]
    for at, value in enumerate(model.graph.input):
        if at in chosen:
            shape: list[Any] = ["N", *inputs[at].shape[1:]]
            made.graph.input.append(
                helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape)
            )
        else:
            made.graph.initializer.append(numpy_helper.from_array(inputs[at], value.name))
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    return made


@pytest.mark.conformance
def test_every_operator_that_is_said_to_keep_rows_apart_does() -> None:
    """ONNX's own tests, with any of their inputs as rows."""
    agreed, wrong = 0, []
    for name, model, inputs in cases():
        subsets = (
            chosen for count in range(1, min(len(inputs), 4) + 1)
            for chosen in itertools.combinations(range(len(inputs)), count)
        )  # fmt: skip
        for chosen in subsets:
            rows = {inputs[at].shape[0] if inputs[at].ndim else 0 for at in chosen}
            if len(rows) != 1 or max(rows) < 2:
                continue
            made = with_rows(model, inputs, chosen)
            if why_rows_meet(made):
                continue
            given = [inputs[at] for at in chosen]
            try:
                session = ModelSession(made.SerializeToString(), optimise=True)
                together = session.run(given)
            except RunError:
                continue  # ONNX Runtime lacks the operator, or not for these inputs
            try:
                apart = [session.run([array[row : row + 1] for array in given]) for row in range(max(rows))]
                for row, alone in enumerate(apart):
                    text = difference([output[row : row + 1] for output in together], alone)
                    if text:
                        wrong.append((name, chosen, text))
            except RunError as error:
                wrong.append((name, chosen, str(error)))
            agreed += 1
    assert wrong == []
    assert agreed > 500


# ----- drawn models ----------------------------------------------------------------------------------------

WIDTH, STEPS = 4, 3


@st.composite
def drawn(draw: st.DrawFn) -> onnx.ModelProto:
    """A chain of operators on [rows, 3, 4], some of which move rows or mix them."""
    nodes: list[onnx.NodeProto] = []
    weights = [
        numpy_helper.from_array(np.array([0, STEPS, WIDTH], np.int64), "shape"),
        numpy_helper.from_array(np.array([-1, WIDTH], np.int64), "folded"),
        numpy_helper.from_array(np.array([STEPS, -1, WIDTH], np.int64), "steps first"),
        numpy_helper.from_array(np.linspace(-1, 1, WIDTH * WIDTH, dtype=np.float32).reshape(WIDTH, WIDTH), "square"),
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.array([1], np.int64), "second"),
    ]  # fmt: skip
    name, rank, order = "x", 3, [0, 1, 2]

    def add(op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        made = [f"v{len(nodes)}.{at}" for at in range(outputs)]
        nodes.append(helper.make_node(op, list(inputs), made, **attributes))
        return made[0]

    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(
            ["each", "each", "softmax", "mean", "transpose", "fold", "cumsum", "square", "gram", "minus first", "sort",
             "back", "concat"]
        ))  # fmt: skip
        axis = draw(st.integers(0, rank - 1))
        match kind:
            case "each":
                name = add(draw(st.sampled_from(["Tanh", "Neg", "Sigmoid", "Abs"])), name)
            case "softmax":
                name = add("Softmax", name, axis=axis)
            case "mean":
                name = add("Sub", name, add("ReduceMean", name, axes=[axis], keepdims=1))
            case "transpose":
                order = list(draw(st.permutations(range(rank))))
                name = add("Transpose", name, perm=order)
            case "fold":
                name, rank = add("Reshape", name, "folded"), 2
            case "back":
                name, rank = add("Reshape", name, draw(st.sampled_from(["shape", "steps first"]))), 3
            case "cumsum":
                nodes.append(helper.make_node("Constant", [], [f"at{len(nodes)}"], value_int=axis))
                name = add("CumSum", name, nodes[-1].output[0])
            case "square":
                name = add("MatMul", name, "square")
            case "gram":
                swapped = add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])
                name = add("MatMul", add("Tanh", add("MatMul", name, swapped)), name)
            case "minus first":
                name = add("Sub", name, add("Slice", name, "first", "second", "first"))
            case "sort":
                count = add("Gather", add("Shape", name), "first") if axis == 0 else ""
                if not count:
                    nodes.append(helper.make_node("Constant", [], [f"k{len(nodes)}"], value_ints=[1]))
                    count = nodes[-1].output[0]
                if axis == 0:
                    name = add("TopK", name, count, outputs=2, axis=0)
            case "concat":
                half = add("Neg", name)
                name = add(
                    "Add",
                    name,
                    add("Slice", add("Concat", half, name, axis=axis), "first", "second", "first"),
                )
    rows = name if rank == 3 else add("Reshape", name, "shape")
    nodes.append(helper.make_node("Identity", [rows], ["y"]))
    graph = helper.make_graph(
        nodes, "drawn",
        [helper.make_tensor_value_info("x", 1, ["N", STEPS, WIDTH])], [helper.make_tensor_value_info("y", 1, None)], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check_drawn(model: onnx.ModelProto, seed: int) -> None:
    if why_rows_meet(model):
        return
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((STEPS, STEPS, WIDTH)).astype(np.float32) * 10.0 ** rng.integers(
        -2, 3, (STEPS, 1, 1)
    )
    x = x.astype(np.float32)
    try:
        session = ModelSession(model.SerializeToString(), optimise=True)
        alone = [session.run([x[row : row + 1]]) for row in range(len(x))]
        together = session.run([x])
    except RunError:
        return  # the drawn shapes do not fit
    for row, one in enumerate(alone):
        assert not difference([output[row : row + 1] for output in together], one, 1e-3), model


@given(drawn(), st.integers(0, 1 << 30))
@settings(max_examples=300, deadline=None, derandomize=True)
@pytest.mark.slow
def test_drawn_models_that_are_proven_have_independent_rows(model: onnx.ModelProto, seed: int) -> None:
    check_drawn(model, seed)


@pytest.mark.long
@pytest.mark.timeout(900)
@given(drawn(), st.integers(0, 1 << 30))
@settings(max_examples=10_000, deadline=None)
def test_many_drawn_models_that_are_proven_have_independent_rows(model: onnx.ModelProto, seed: int) -> None:
    check_drawn(model, seed)


# ----- altered models ------------------------------------------------------------------------------------


def altered(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """A copy with one to three changes: of an attribute, an input, an operator, a dimension or the opset."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes, names = made.graph.node, [name for node in made.graph.node for name in node.output]
    names += [tensor.name for tensor in made.graph.initializer] + [value.name for value in made.graph.input]
    for _ in range(rng.randint(1, 3) if nodes else 0):
        node = rng.choice(nodes)
        match rng.randrange(6):
            case 0 if node.attribute:
                attribute = rng.choice(node.attribute)
                if attribute.ints:
                    attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(
                        (-3, -1, 0, 1, 2, 1 << 40)
                    )
                elif rng.random() < 0.3:
                    node.attribute.remove(attribute)
                else:
                    attribute.i = rng.choice((-2, -1, 0, 1, 2, 7))
            case 1 if node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice((*names, ""))
            case 2:
                node.op_type = rng.choice(
                    sorted(name for domain, name in RowRules.rules if domain == node.domain) or ["Exp"]
                )
            case 3:
                dims = rng.choice(made.graph.input).type.tensor_type.shape.dim
                if dims:
                    rng.choice(dims).dim_value = rng.choice((0, 1, 2, 5))
            case 4:
                made.opset_import[0].version = rng.choice((1, 7, 9, 11, 13, 18, 21, 25))
            case _:
                node.input.append(rng.choice((*names, "")))
    return made


def check_altered(count: int, seed: int, runs: bool) -> int:
    """Return how many of ``count`` altered models are proven.

    Proven models answer alike together and apart, if they run. runs: try it; ONNX Runtime aborts on some such
    models.
    """
    rng, models, proven = random.Random(seed), list(exported()), 0
    for number in range(count):
        name, model, rows = rng.choice(models)
        made = altered(model, rng)
        if why_rows_meet(made):
            continue
        proven += 1
        if not runs:
            continue
        try:
            session = ModelSession(made.SerializeToString(), optimise=True)
            together = session.run(rows)
            alone = [session.run([array[row : row + 1] for array in rows]) for row in range(len(rows[0]))]
        except RunError:
            continue
        if any(len(output) != 1 for one in alone for output in one):
            continue  # the model is refused when it is tried
        for row, one in enumerate(alone):
            text = difference([output[row : row + 1] for output in together], one, 1e-3)
            assert not text, (seed, number, name, text)
    return proven


@pytest.mark.slow
def test_altered_models_are_judged_whatever_they_are() -> None:
    """Most are invalid: a proof is refused, and no other error is raised."""
    assert check_altered(400, 1, True) > 20


@pytest.mark.long
def test_many_altered_models_are_judged_whatever_they_are() -> None:
    assert check_altered(20_000, 2, False) > 1_000
