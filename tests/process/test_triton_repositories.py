"""Repositories that were made for Triton, asked by NVIDIA's own client over both protocols."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, running_cluster
from tests.process.gateways import running_gateway

MISSING = "tritonclient is not installed (requirements-clients.lock)"
triton_http = pytest.importorskip("tritonclient.http", reason=MISSING)
triton_grpc = pytest.importorskip("tritonclient.grpc", reason=MISSING)

POLL = {"control_mode": "poll", "poll_s": 0.1}
SCORES = np.array([[3, 1, 4, 1.5], [9, 2, 6, 5]], np.float32)

CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 4 ] reshape { shape: [ 1, 4 ] } } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 1, 4 ] } label_filename: "labels.txt" } ]
"""


def same(batch: Any, factor: float = 1) -> bytes:
    """y = factor * x, of four values in a row."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in "xy")
    one = numpy_helper.from_array(np.full(4, factor, np.float32), "one")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "one"], ["y"])], "same", [x], [y], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as one:
        yield one


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of a gateway that follows a repository with three models."""
    root = tmp_path_factory.mktemp("repository")
    for name, batch, config in (
        ("single", 1, CONFIG),
        ("batched", "n", 'output [ { name: "y" label_filename: "labels.txt" } ]'),
        ("bare", "n", ""),
    ):
        folder = root / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(same(batch))
        if config:
            (root / name / "config.pbtxt").write_text(config)
            (root / name / "labels.txt").write_text("ant\nbee\ncat\n")
    with running_gateway(cluster.endpoint, repositories=(root,), **POLL) as gateway:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{gateway.ports['http']}")
        eventually(client.is_server_ready, "all that was found is served")
        client.close()
        yield gateway.ports


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, served: dict[str, int]) -> Iterator[tuple[Any, Any]]:
    """(module, client)"""
    module = {"http": triton_http, "grpc": triton_grpc}[request.param]
    client = module.InferenceServerClient(f"127.0.0.1:{served[request.param]}")
    yield module, client
    client.close()


def ask(triton: tuple[Any, Any], name: str, x: Any, classes: int = 0) -> Any:
    module, client = triton
    given = module.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    outputs = [module.InferRequestedOutput("y", class_count=classes)]
    return client.infer(name, [given], outputs=outputs).as_numpy("y")


def test_the_model_of_a_quickstart_takes_one_image_and_gives_its_classes(triton: tuple[Any, Any]) -> None:
    assert np.array_equal(ask(triton, "single", SCORES[0]), SCORES[0])
    assert ask(triton, "single", SCORES[0], 2).tolist() == [b"4.000000:2:cat", b"3.000000:0:ant"]


def test_a_batch_gets_the_classes_of_each_of_its_rows(triton: tuple[Any, Any]) -> None:
    found = ask(triton, "batched", SCORES, 2).tolist()
    assert found == [[b"4.000000:2:cat", b"3.000000:0:ant"], [b"9.000000:0:ant", b"6.000000:2:cat"]]
    assert ask(triton, "bare", SCORES, 1).tolist() == [[b"4.000000:2"], [b"9.000000:0"]]
    assert ask(triton, "batched", SCORES, 99).shape == (2, 4)


def test_a_model_that_is_not_there_is_not_ready(triton: tuple[Any, Any]) -> None:
    _, client = triton
    assert client.is_model_ready("single")
    assert not client.is_model_ready("nowhere")
    assert not client.is_model_ready("single", "7")


def test_a_model_is_unloaded_with_its_dependents_of_which_it_has_none(triton: tuple[Any, Any]) -> None:
    _, client = triton
    client.unload_model("bare", unload_dependents=True)
    assert not client.is_model_ready("bare")
    client.load_model("bare")
    assert client.is_model_ready("bare")


@pytest.mark.parametrize("asks", [False, True])
def test_an_answer_of_a_stream_says_that_it_is_the_last_where_that_is_asked_for(
    served: dict[str, int], asks: bool
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    x = triton_grpc.InferInput("x", [4], "FP32")
    x.set_data_from_numpy(SCORES[0])
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served['grpc']}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("single", [x], enable_empty_final_response=asks)
        result, error = answers.get(timeout=PATIENCE_S)
        client.stop_stream()
    assert error is None
    parameters = result.get_response().parameters
    assert np.array_equal(result.as_numpy("y"), SCORES[0])
    assert ("triton_final_response" in parameters) == asks
    assert not asks or parameters["triton_final_response"].bool_param


def test_a_queue_policy_of_a_folder_is_that_of_requests_without_their_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "queued" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(same("n"))
    (tmp_path / "queued" / "config.pbtxt").write_text(
        """
        dynamic_batching {
          priority_levels: 3 default_priority_level: 2
          default_queue_policy { default_timeout_microseconds: 60000000 }
          priority_queue_policy { key: 1 value { default_timeout_microseconds: 1 } }
        }
        """
    )
    with (
        running_gateway(cluster.endpoint, repositories=(tmp_path,), **POLL) as gateway,
        cluster.client() as ours,
        triton_http.InferenceServerClient(f"127.0.0.1:{gateway.ports['http']}") as client,
    ):
        eventually(lambda: client.is_model_ready("queued"), "it is served")
        assert ours.model("queued").slo == 60.0
        x = triton_http.InferInput("x", [2, 4], "FP32")
        x.set_data_from_numpy(SCORES)
        assert np.array_equal(client.infer("queued", [x]).as_numpy("y"), SCORES)
        with pytest.raises(triton_http.InferenceServerException, match="the SLO is 1"):
            client.infer("queued", [x], priority=1)
        assert client.infer("queued", [x], priority=1, timeout=60_000_000).as_numpy("y") is not None
        assert client.infer("queued", [x], priority=9).as_numpy("y") is not None, "as the default level"
        ours.unregister("queued")


def write(root: Path, name: str, factor: float, config: str = "") -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "incoming").write_bytes(same("n", factor))
    (folder / "incoming").rename(folder / "model.onnx")
    if config:
        (root / name / "config.pbtxt").write_text(config)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("mode", ["poll", "explicit"])
def test_a_load_may_bring_a_configuration_and_files(
    cluster: Cluster, tmp_path: Path, protocol: str, mode: str
) -> None:
    """As Model Analyzer tries configurations one after the other."""
    write(tmp_path, "m", 2)
    module = {"http": triton_http, "grpc": triton_grpc}[protocol]
    settings = {"control_mode": mode, "poll_s": 0.1, "load_models": ("m",) if mode == "explicit" else ()}
    with (
        running_gateway(cluster.endpoint, repositories=(tmp_path,), **settings) as gateway,
        cluster.client() as ours,
        module.InferenceServerClient(f"127.0.0.1:{gateway.ports[protocol]}") as client,
    ):
        triton = (module, client)
        eventually(lambda: client.is_model_ready("m"), "it is served")

        def bound() -> int:
            found = client.get_model_config("m")
            return int(found["max_batch_size"] if protocol == "http" else found.config.max_batch_size)

        before = bound()
        assert before > 3
        config = {"name": "m", "backend": "onnxruntime", "maxBatchSize": 3, "instance_group": [{"count": 2}]}
        client.load_model("m", config=json.dumps(config))
        assert bound() == 3
        if mode == "poll":  # the model stays so after further looks, which a new model shows
            write(tmp_path, "marker", 1)
            eventually(lambda: client.is_model_ready("marker"), "it has looked again")
            assert bound() == 3
            ours.unregister("marker")
        assert np.array_equal(ask(triton, "m", SCORES), 2 * SCORES)

        for wrong, said in (
            ("{", "no JSON"),
            (json.dumps({"dynamic_batchin": {}}), "did you mean dynamic_batching"),
            (json.dumps({"max_batch_size": "many"}), "max_batch_size"),
            (json.dumps({"backend": "python"}), "backend 'python'"),
            (json.dumps({"name": "other"}), "name 'other'"),
        ):
            with pytest.raises(module.InferenceServerException, match=said):
                client.load_model("m", config=wrong)
        with pytest.raises(module.InferenceServerException, match="is no path in the folder"):
            client.load_model("m", config="{}", files={"file:../1/model.onnx": b""})
        with pytest.raises(module.InferenceServerException, match="not an ONNX model"):
            client.load_model("m", config="{}", files={"file:1/model.onnx": b"no model"})
        assert np.array_equal(ask(triton, "m", SCORES), 2 * SCORES), "a load that fails changes nothing"
        assert bound() == 3
        with pytest.raises(module.InferenceServerException, match="no model repository has 'nowhere'"):
            client.load_model("nowhere", config="{}")

        client.load_model("m", config="{}", files={"file:1/model.onnx": same("n", 5)})
        assert np.array_equal(ask(triton, "m", SCORES), 5 * SCORES)
        client.load_model("new", config="{}", files={"file:1/model.onnx": same("n", 7)})
        assert np.array_equal(ask(triton, "new", SCORES), 7 * SCORES)
        client.load_model("m")
        assert np.array_equal(ask(triton, "m", SCORES), 2 * SCORES), "what the repository has"
        assert bound() == before
        for name in ("m", "new"):
            ours.unregister(name)
