"""A Triton model repository before a whole cluster: models come, change and go as their files do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from clockwork.cli.root import cli
from clockwork.config import VERSIONS_MAX
from clockwork.errors import ConfigError, InvalidModel
from tests.patience import eventually
from tests.process.cluster import Cluster, running_cluster
from tests.process.gateways import Http, running_gateway, tensor

X = np.arange(8, dtype=np.float32).reshape(2, 4)
POLL = {"control_mode": "poll", "poll_s": 0.1}


def scaled(factor: float, width: int = 4) -> bytes:
    """y = factor * x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [width], [factor] * width)
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "scaled", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def put(root: Path, name: str, version: int, content: bytes, config: str = "") -> None:
    """Write as a careful user would: the file gets its name when it is complete."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (root / name / "config.pbtxt").write_text(config)
    (folder / "incoming").write_bytes(content)
    (folder / "incoming").rename(folder / "model.onnx")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as one:
        yield one


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


def index(http: Http) -> dict[tuple[str, str], dict[str, Any]]:
    rows = http.ask("POST", "/v2/repository/index", {}).json
    return {(row["name"], row.get("version", "")): row for row in rows}


def factor(http: Http, name: str, version: str = "") -> float | None:
    """Return the factor of a model; None where it does not serve."""
    path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "") + "/infer"
    reply = http.ask("POST", path, {"inputs": [tensor("FP32", X.shape, X.ravel().tolist())]})
    if reply.status != 200:
        return None
    answer = np.reshape(reply.json["outputs"][0]["data"], X.shape)
    assert np.array_equal(answer, X * answer[0, 1])
    return float(answer[0, 1])


def test_models_come_change_and_go_as_their_files_do(cluster: Cluster, root: Path) -> None:
    put(root, "single", 1, scaled(2))
    put(root, "several", 1, scaled(10), "version_policy { all { } }")
    put(root, "several", 3, scaled(30))
    put(root, "broken", 1, b"this is no model")
    with running_gateway(cluster.endpoint, repositories=(root,), **POLL) as gateway:
        http = Http(gateway.ports["http"])
        ready = eventually(lambda: http.ask("GET", "/v2/health/ready").status == 200, "the gateway is ready")
        assert ready, "although one of its models is none"
        assert (factor(http, "single"), factor(http, "several")) == (2, 30), "at once"
        several = [30, 10, 30, None]
        eventually(
            lambda: (
                factor(http, "single") == 2
                and [factor(http, "several", version) for version in ("", "1", "3", "2")] == several
            ),
            "all are served",
        )
        rows = index(http)
        assert rows["several", "1"]["state"] == rows["single", "1"]["state"] == "READY"
        assert rows["broken", "1"]["state"] == "UNAVAILABLE"
        assert "model.onnx" in rows["broken", "1"]["reason"]

        put(root, "single", 1, scaled(4))  # other content under the same number
        put(root, "broken", 1, scaled(6))
        put(root, "late", 7, scaled(7))
        answers = set()

        def changed() -> bool:
            answers.add(factor(http, "single"))
            return answers >= {4.0} and factor(http, "late", "7") == 7 and factor(http, "broken") == 6

        eventually(changed, "what changed is served")
        assert answers <= {2.0, 4.0}, "there was no time at which neither was"

        shutil.rmtree(root / "single")
        shutil.rmtree(root / "several" / "3")
        eventually(
            lambda: factor(http, "single") is None and factor(http, "several") == 10, "what is gone is gone"
        )
        # broken: the version before serves on
        put(root, "late", 7, scaled(7), "max_batch_size: 0\nname: 'lake'")
        eventually(lambda: ("late", "") in index(http), "what is wrong is said")
        assert "name 'lake' in the folder 'late'" in index(http)["late", ""]["reason"]
        assert factor(http, "late") == 7

    shutil.rmtree(root / "broken")
    (root / "late" / "config.pbtxt").unlink()
    # another gateway is started later
    with running_gateway(cluster.endpoint, repositories=(root,), **POLL) as gateway:
        http = Http(gateway.ports["http"])
        eventually(lambda: factor(http, "broken") is None, "what went while nobody looked is unregistered")
        assert (factor(http, "late", "7"), factor(http, "several", "1")) == (7, 10)
    shutil.rmtree(root)
    root.mkdir()
    with running_gateway(cluster.endpoint, repositories=(root,), control_mode="none") as gateway:
        eventually(lambda: not index(Http(gateway.ports["http"])), "nothing is left of it")


def test_a_version_older_than_the_most_that_a_name_has_is_refused_for_good(
    cluster: Cluster, root: Path
) -> None:
    with cluster.client() as client:
        for version in range(2, VERSIONS_MAX + 2):
            client.register("many", scaled(version), version=version)
        with pytest.raises(InvalidModel, match="16 versions newer than many@1"):
            client.register("many", scaled(1), version=1)
        newer = list(range(2, VERSIONS_MAX + 2))
        eventually(
            lambda: [one.version for one in client.models() if one.name == "many"] == newer,
            "what was refused is gone",
        )
        client.unregister("many")


def test_a_version_that_is_routed_to_stays_until_the_route_changes(cluster: Cluster, root: Path) -> None:
    put(root, "routed", 1, scaled(2))
    with (
        running_gateway(cluster.endpoint, repositories=(root,), **POLL) as gateway,
        cluster.client() as client,
    ):
        http = Http(gateway.ports["http"])
        eventually(lambda: factor(http, "routed") == 2, "the first version serves")
        client.promote("routed", 1)
        put(root, "routed", 2, scaled(3))  # only the newest of a folder is served: the other must be removed
        eventually(lambda: factor(http, "routed", "2") == 3, "the second one is there")
        assert factor(http, "routed") == 2
        client.route("routed", {2: 0.5})
        assert sorted(factor(http, "routed") or 0 for _ in range(4)) == [2, 2, 3, 3]
        client.promote("routed", 2)
        eventually(lambda: factor(http, "routed", "1") is None, "the first one goes when nothing needs it")
        assert factor(http, "routed") == 3


def test_in_explicit_mode_the_repository_calls_say_what_is_served(cluster: Cluster, root: Path) -> None:
    put(root, "first", 1, scaled(2))
    put(root, "second", 1, scaled(3))
    put(root, "wrong", 1, scaled(5), 'input [ { name: "z" data_type: TYPE_FP32 dims: [ 4 ] } ]')
    settings = {"repositories": (root,), "control_mode": "explicit", "load_models": ("first",)}
    with running_gateway(cluster.endpoint, **settings) as gateway, cluster.client() as client:
        http = Http(gateway.ports["http"])
        eventually(lambda: factor(http, "first") == 2, "what --load-model names is served")
        assert factor(http, "second") is None
        assert "state" not in index(http)["second", ""] or not index(http)["second", ""]["state"]
        assert http.ask("POST", "/v2/repository/models/second/load", {}).status == 200
        assert factor(http, "second") == 3
        put(root, "second", 1, scaled(33))
        assert factor(http, "second") == 3, "files that change are not followed"
        assert http.ask("POST", "/v2/repository/models/second/load", {}).status == 200
        assert factor(http, "second") == 33
        assert http.ask("POST", "/v2/repository/models/second/unload", {}).status == 200
        assert factor(http, "second") is None
        assert http.ask("POST", "/v2/repository/models/second/load", {}).status == 200
        assert factor(http, "second") == 33
        reply = http.ask("POST", "/v2/repository/models/wrong/load", {})
        assert reply.status == 400, reply.data
        assert "no input 'z'" in reply.json["error"]
        assert http.ask("POST", "/v2/repository/models/nowhere/load", {}).status == 404
        for name in ("first", "second"):
            client.unregister(name)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('input [ { name: "x" data_type: TYPE_INT8 dims: [ 4 ] } ]', "input 'x' is FP32, not INT8"),
        ('max_batch_size: 4 input [ { name: "x" data_type: TYPE_FP32 dims: [ 5 ] } ]', "not [-1, 5]"),
        (
            'max_batch_size: 0 output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]',
            "output 'y' has the shape",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_its_model_is_refused(root: Path, config: str, said: str) -> None:
    from clockwork.errors import InvalidModel
    from clockwork.repository.demands import adapted
    from clockwork.repository.folders import Folder, scan

    def check() -> None:
        version = scan(Folder(root)).versions["m", 1]
        with version.copy() as path, adapted(version, path):
            pass

    put(root, "m", 1, scaled(1), config)
    with pytest.raises(InvalidModel) as caught:
        check()
    assert said in str(caught.value)
    put(root, "m", 1, scaled(1), 'max_batch_size: 4 input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]')
    check()


def test_a_reshape_is_part_of_the_model_that_is_served(cluster: Cluster, root: Path) -> None:
    """As in Triton's quickstart, whose ONNX file takes batches of one, with its data in files beside it."""
    y, x = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 2]) for name in "yx")
    weight = numpy_helper.from_array(np.arange(512, dtype=np.float32), "w")
    nodes = [
        helper.make_node("Slice", ["w", "zero", "four"], ["w4"]),
        helper.make_node("Reshape", ["w4", "shape"], ["square"]),
        helper.make_node("Mul", ["x", "square"], ["y"]),
    ]
    small = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in (("zero", [0]), ("four", [4]), ("shape", [1, 2, 2]))
    ]
    graph = helper.make_graph(nodes, "square", [x], [y], [weight, *small])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = root / "square" / "1" / "model.onnx"
    folder.mkdir(parents=True)
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=1024
    )
    assert (folder / "weights").is_file()
    (root / "square" / "01").mkdir()
    (root / "square" / "config.pbtxt").write_text(
        """
        platform: "onnxruntime_onnx"
        max_batch_size: 0
        input [ { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 2, 2 ] reshape { shape: [ 1, 2, 2 ] } } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 1, 2, 2 ] } } ]
        """
    )
    body = {"inputs": [tensor("FP32", (2, 2), [1.0, 2, 3, 4])]}
    with (
        running_gateway(cluster.endpoint, repositories=(root,), **POLL) as gateway,
        cluster.client() as client,
    ):
        http = Http(gateway.ports["http"])
        eventually(lambda: http.ask("GET", "/v2/models/square/ready").status == 200, "it is served")
        (answer,) = http.infer(body, model="square").json["outputs"]
        assert (answer["shape"], answer["data"]) == ([4], [0, 2, 6, 12])
        metadata = http.ask("GET", "/v2/models/square").json
        assert [metadata[side][0]["shape"] for side in ("inputs", "outputs")] == [[2, 2], [4]]
        assert http.infer({"inputs": [tensor("FP32", (1, 2, 2), [1.0] * 4)]}, model="square").status == 400
        client.unregister("square")


def test_a_model_that_is_removed_by_hand_comes_back_and_that_is_said(cluster: Cluster, root: Path) -> None:
    put(root, "back", 1, scaled(2))
    remove = ["models", "remove", "back", "--endpoint", cluster.endpoint]
    with running_gateway(cluster.endpoint, repositories=(root,), **POLL) as gateway:
        http = Http(gateway.ports["http"])
        eventually(lambda: factor(http, "back") == 2, "it is served")
        said = CliRunner().invoke(cli, remove).output
        assert f"It came from the model repository {root}" in said
        assert factor(http, "back") is None
        put(root, "back", 1, scaled(3))
        eventually(lambda: factor(http, "back") == 3, "it is back")
    with cluster.client() as client:
        client.unregister("back")
        client.register("own", scaled(1))
    assert CliRunner().invoke(cli, [*remove[:2], "own", *remove[3:]]).output == "removed own\n"


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for settings, said in (
        ({"repositories": (tmp_path / "nowhere",)}, "cannot be read"),
        ({"load_models": ("a",)}, "needs a --model-repository"),
        ({"load_models": ("a",), "repositories": (tmp_path,)}, "--model-control-mode explicit"),
    ):
        with pytest.raises(ConfigError, match=said), running_gateway("tcp://127.0.0.1:1", **settings):
            pass
