"""The examples of docs/bring-your-model.md, each run as a program before a whole cluster."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from clockwork.errors import InvalidModel
from tests.process.cluster import Cluster, running_cluster

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "models"

LIBRARIES = {
    "from_pytorch.py": ("torch", "onnxscript"),
    "from_sklearn.py": ("sklearn", "skl2onnx"),
    "from_lightgbm.py": ("lightgbm", "sklearn", "onnxmltools"),
    "from_xgboost.py": ("xgboost", "sklearn", "onnxmltools"),
    "from_hugging_face.py": ("transformers", "torch", "onnxscript"),
    "from_keras.py": ("keras", "torch", "onnxscript"),
    "quantized.py": ("sklearn",),
}
"""The packages that each example imports."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="64MiB") as one:
        yield one


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_an_example_gets_the_answers_of_its_library(name: str, cluster: Cluster, tmp_path: Path) -> None:
    missing = [one for one in LIBRARIES[name] if importlib.util.find_spec(one) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    patient = tmp_path / name  # only its answers are checked, and this machine may be busy
    patient.write_text(re.sub(r"slo=0\.\d", "slo=30", text), encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), str(EXAMPLES)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(patient)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "CLOCKWORK_ENDPOINT": cluster.endpoint, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"@1: .* batches of up to 16$", done.stdout.strip()), done.stdout


def test_the_page_has_every_example() -> None:
    page = (ROOT / "docs" / "bring-your-model.md").read_text(encoding="utf-8")
    found = set(re.findall(r"\(\.\./examples/models/([\w.]+)\)", page))
    assert found == {path.name for path in EXAMPLES.glob("*.py")} == set(LIBRARIES)


def model_of(*nodes: Any, rows: Any = "n", opset: int = 17, inputs: Sequence[tuple[str, Any]] = ()) -> bytes:
    """A model of an input x and an output y, of these rows and four columns. inputs: further ones, and their
    rows."""
    *given, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, 4])
        for name, n in (("x", rows), *inputs, ("y", rows))
    )
    graph = helper.make_graph(nodes, "g", given, [y])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.me", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


RELU = helper.make_node("Relu", ["x"], ["y"])
ALL_ROWS = (
    helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
    helper.make_node("Div", ["x", "m"], ["y"]),
)
NOISE = (
    helper.make_node("RandomUniformLike", ["x"], ["r"]),
    helper.make_node("Add", ["x", "r"], ["y"]),
)

NOTES = {
    "proven: no operator lets rows meet": model_of(RELU),
    "has a fixed first dimension of 1": model_of(RELU, rows=1),
    "inputs do not share their first dimension (": model_of(
        helper.make_node("Add", ["x", "queries"], ["y"]), inputs=[("queries", "rows")]
    ),
    "not proven that rows are independent: operator ReduceMax mixes rows": model_of(*ALL_ROWS),
    "could not be verified: it answers differently each time": model_of(*NOISE),
}
"""Return the lines of `models show` about batching, as the page quotes them."""

REFUSALS = {
    "is a pointer of Git LFS, not the model": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "is truncated or damaged": model_of(RELU)[:60],
    "needs ONNX opset": model_of(RELU, opset=40),
    "which ONNX Runtime cannot execute here": model_of(
        helper.make_node("MyOp", ["x"], ["y"], domain="com.me")
    ),
    "Duplicate definition of name": model_of(RELU, helper.make_node("Abs", ["x"], ["y"])),
}


@pytest.mark.slow
def test_what_the_page_quotes_is_what_is_said(cluster: Cluster) -> None:
    page = (ROOT / "docs" / "bring-your-model.md").read_text(encoding="utf-8")
    with cluster.client() as client:
        for quoted, model in NOTES.items():
            client.register("quoted", model, force=True)
            assert quoted in client.model("quoted").batching_note
            assert quoted in page
        for quoted, model in REFUSALS.items():
            with pytest.raises(InvalidModel, match=re.escape(quoted)):
                client.register("quoted", model)
            assert quoted in page
