"""A model's outputs are checked against those seen at registration, by the worker first: a difference is no
worker's fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork.errors import ExecutionFailed
from tests.process.cluster import running_cluster


def counts_zeros_away(declared: list[int | str]) -> onnx.ModelProto:
    """x [4] -> the places where it is not 0, whose number depends on the data, whatever is declared."""
    node = helper.make_node("NonZero", ["x"], ["places"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    places = helper.make_tensor_value_info("places", TensorProto.INT64, declared)
    graph = helper.make_graph([node], "g", [x], [places])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_shape_that_registration_did_not_see_fails_its_request_alone(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        client.register("lying", counts_zeros_away([1, 4]))
        client.register("honest", counts_zeros_away([1, "n"]))
        full, holed = np.ones(4, np.float32), np.array([0, 1, 1, 0], np.float32)
        for _ in range(4):
            assert client.infer("lying", full).tolist() == [[0, 1, 2, 3]]
            assert client.infer("honest", holed).tolist() == [[1, 2]]
            with pytest.raises(ExecutionFailed, match=r"output 'places' is \[1, 2\], not \[1, 4\]"):
                client.infer("lying", holed)
        status = client.status()
        assert status["complaints"].get("worker fault", 0) == 0
        assert len(status["workers"]) == 1
