"""Small ONNX models for the tests of import, split and preparation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clockwork.models.onnx_import import Examples, package_files
from clockwork.wire.tensors import Array

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, shape: Sequence[int | str] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def initializer(name: str, array: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
    opset: int = 17,
    ir_version: int = 8,
    domains: Sequence[tuple[str, int]] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*one) for one in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def small_net(seed: int, *, prefix: str = "", width: int = 8) -> onnx.ModelProto:
    """x [N, 8] -> Gemm -> Relu -> MatMul -> Add (a bias of one element) -> Reshape; every weight from the
    seed."""
    rng = np.random.default_rng(seed)
    p = prefix
    weights = [
        initializer(f"{p}w1", rng.standard_normal((8, width))),
        initializer(f"{p}b1", rng.standard_normal(width)),
        initializer(f"{p}w2", rng.standard_normal((width, 4))),
        initializer(f"{p}b2", rng.standard_normal(1)),
        initializer(f"{p}shape", [0, 2, 2], np.int64),
    ]
    nodes = [
        helper.make_node("Gemm", [f"{p}x", f"{p}w1", f"{p}b1"], [f"{p}h"], name=f"{p}first"),
        helper.make_node("Tanh", [f"{p}h"], [f"{p}r"], doc_string=f"seed {seed}"),
        helper.make_node("MatMul", [f"{p}r", f"{p}w2"], [f"{p}m"]),
        helper.make_node("Add", [f"{p}m", f"{p}b2"], [f"{p}a"]),
        helper.make_node("Reshape", [f"{p}a", f"{p}shape"], [f"{p}y"]),
    ]
    model = model_of(nodes, [value(f"{p}x", [f"{p}N", 8])], [value(f"{p}y", [f"{p}N", 2, 2])], weights)
    helper.set_model_props(model, {"seed": str(seed)})
    return model


def classifier(**classes: list[int] | list[str]) -> onnx.ModelProto:
    """x [N, 4] -> labels, and a list of maps from class to score, as converters of scikit-learn and CatBoost
    write it."""
    names = next(iter(classes.values()))
    kinds = {"classlabels_int64s": INT64, "classlabels_strings": TensorProto.STRING}
    (kind,) = (kinds[key] for key in classes)
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", post_transform="SOFTMAX",
            coefficients=[float(index % 5) for index in range(4 * len(names))],
            intercepts=[0.0] * len(names),
            **{key.replace("_int64s", "_ints"): value for key, value in classes.items()},
        ),
        helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", **classes),
    ]  # fmt: skip
    scores = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(FLOAT, []))
    maps = helper.make_value_info("probabilities", helper.make_sequence_type_proto(scores))
    model = model_of(
        nodes, [value("x", ["N", 4])], [value("label", ["N"], kind), maps], domains=[("ai.onnx.ml", 3)]
    )
    del model.opset_import[0]  # as in a model that uses no standard operator
    return model


def negated_if_told() -> onnx.ModelProto:
    """x [N, 4] -> -x where the input ``negate`` is true; by its default it is false."""
    bodies = [
        helper.make_graph(
            [helper.make_node(operator, ["x"], [f"{operator}_y"])],
            operator,
            [],
            [value(f"{operator}_y", ["N", 4])],
        )
        for operator in ("Neg", "Identity")
    ]
    node = helper.make_node("If", ["negate"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    default = initializer("negate", [False], bool)
    inputs = [value("x", ["N", 4]), value("negate", [1], TensorProto.BOOL)]
    return model_of([node], inputs, [value("y", ["N", 4])], [default])


def declaring(shape: Sequence[int | str]) -> onnx.ModelProto:
    """x [N, 8] -> y [N, 4], for which the file declares this shape."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    weights = [initializer("w", normal(8, 4)), initializer("b", normal(4))]
    return model_of(nodes, [value("x", ["N", 8])], [value("y", shape)], weights)


def save_package(model: onnx.ModelProto, folder: Path, examples: Examples = None) -> Path:
    """Return the package of a model as a worker gets it."""
    folder.mkdir(parents=True)
    source = folder.parent / f"{folder.name}.onnx"
    onnx.save(model, source)
    return unpack(package_files(source, examples), folder)


def unpack(files: Sequence[tuple[str, Path | bytes]], folder: Path) -> Path:
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
