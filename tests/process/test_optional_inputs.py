"""Optional inputs, given or left out, over every protocol: the answers are ONNX Runtime's."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from clockwork import Client
from clockwork.errors import InvalidInput, Refused
from clockwork.gateway.process import Gateway
from clockwork.observe.recorded import opened
from clockwork.protocol import inference_pb2 as pb
from clockwork.scheduler.types import ActionDone, SendProfile
from clockwork.wire.description import RouteInfo
from clockwork.wire.messages import Status
from clockwork.wire.optional import value_entry
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, running_cluster
from tests.process.gateways import Http, method_of, running_gateway
from tests.unit.models_onnx import initializer, model_of, negated_if_told, normal, value

DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(bool): "BOOL", np.dtype(np.int64): "INT64"}


def scaled() -> onnx.ModelProto:
    """x [N, 4] -> x w scale + shift; both have a default and come before x, and w is a weight."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["y"]),
    ]
    held = [
        initializer("w", normal(4, 4)),
        initializer("scale", np.float32(2)),
        initializer("shift", normal(1, 4)),
    ]
    inputs = [value("scale", []), value("shift", [1, 4]), value("x", ["N", 4])]
    return model_of(nodes, inputs, [value("y", ["N", 4])], held)


def repeated() -> onnx.ModelProto:
    """x [N, 4] -> x doubled ``turns`` times, by default three times."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes"]),
            helper.make_node("Add", ["state", "state"], ["doubled"]),
        ],
        "body",
        [value("turn", [], INT64), value("going", [], TensorProto.BOOL), value("state", ["N", 4])],
        [value("goes", [], TensorProto.BOOL), value("doubled", ["N", 4])],
    )
    node = helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)
    inputs = [value("x", ["N", 4]), value("turns", [], INT64)]
    return model_of([node], inputs, [value("y", ["N", 4])], [initializer("turns", 3, np.int64)])


def folded() -> onnx.ModelProto:
    """x [N, 4] -> x in the shape given by ``shape``, by default [-1, 2]: rows do not stay apart."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs = [value("x", ["N", 4]), value("shape", [2], INT64)]
    return model_of([node], inputs, [value("y", ["M", "K"])], [initializer("shape", [-1, 2], np.int64)])


INT64 = TensorProto.INT64

MODELS: dict[str, tuple[onnx.ModelProto, list[str] | None, dict[str, list[Any]]]] = {
    "if": (negated_if_told(), None, {"negate": [np.array([True]), np.array([False])]}),
    "loop": (repeated(), None, {"turns": [np.array(0), np.array(5)]}),
    "scaled": (
        scaled(),
        None,
        {"scale": [np.array(-1, np.float32), np.array(2, np.float32)], "shift": [normal(1, 4, seed=7)]},
    ),
    "folded": (folded(), None, {"shape": [np.array([1, -1]), np.array([-1, 4])]}),
}
"""By name: the model, the option, and values of its optional inputs."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as cluster:
        with cluster.client() as client:
            for name, (model, optional, _) in MODELS.items():
                client.register(name, model, optional_inputs=optional)
        yield cluster


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[Gateway]:
    with running_gateway(cluster.endpoint) as gateway:
        yield gateway


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.client() as client:
        yield client


def requests(name: str, rows: int = 2) -> list[dict[str, np.ndarray]]:
    """Requests for a model, with each choice of optional inputs and of their values."""
    values = MODELS[name][2]
    found = []
    for number, chosen in enumerate(itertools.product(*([None, *choices] for choices in values.values()))):
        given = {key: array for key, array in zip(values, chosen) if array is not None}
        found.append({"x": normal(rows, 4, seed=number), **given})
    return found


def expected(name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(MODELS[name][0].SerializeToString())
    return np.asarray(session.run(None, inputs)[0])


@pytest.mark.parametrize("name", MODELS)
def test_clients_are_answered_as_by_onnx_runtime(client: Client, name: str) -> None:
    for inputs in requests(name):
        np.testing.assert_allclose(client.infer(name, inputs)["y"], expected(name, inputs), rtol=1e-5)
    x = normal(1, 4)
    assert np.allclose(client.infer(name, x), expected(name, {"x": x})), "it is the only one that is required"


@pytest.mark.parametrize("name", MODELS)
def test_http_is_answered_as_by_onnx_runtime(gateway: Gateway, name: str) -> None:
    http = Http(gateway.ports["http"])
    for inputs in requests(name):
        rows = [
            {"name": key, "datatype": DATATYPES[array.dtype], "shape": list(array.shape), "data": array.ravel().tolist()}
            for key, array in inputs.items()
        ]  # fmt: skip
        reply = http.infer({"inputs": rows}, model=name)
        assert reply.status == 200, reply.data
        np.testing.assert_allclose(reply.outputs["y"], expected(name, inputs).ravel(), rtol=1e-5)
    http.close()


@pytest.mark.parametrize("name", MODELS)
def test_grpc_is_answered_as_by_onnx_runtime(gateway: Gateway, name: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        for inputs in requests(name):
            message = pb.ModelInferRequest(model_name=name)
            for key, array in inputs.items():
                message.inputs.add(name=key, datatype=DATATYPES[array.dtype], shape=array.shape)
                message.raw_input_contents.append(array.tobytes())
            answer = method_of(channel, "ModelInfer")(message, timeout=PATIENCE_S)
            found = np.frombuffer(answer.raw_output_contents[0], np.float32)
            np.testing.assert_allclose(found, expected(name, inputs).ravel(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "batches"), [("if", True), ("loop", True), ("scaled", True), ("folded", False)]
)
def test_requests_that_are_mixed_are_each_answered_by_their_own_values(
    client: Client, name: str, batches: bool
) -> None:
    info = client.model(name)
    assert info.batches is batches, info.batching_note
    asked = [inputs for rows in (1, 2, 3) for inputs in requests(name, rows)] * 8
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda inputs: client.infer(name, inputs)["y"], asked))
    for inputs, answer in zip(asked, answers):
        np.testing.assert_allclose(answer, expected(name, inputs), rtol=1e-5)


def test_a_value_that_was_never_measured_is_measured_when_the_device_is_idle(
    client: Client, cluster: Cluster, tmp_path: Path
) -> None:
    client.register("measured", scaled())
    value = value_entry(np.float32(7).tobytes())
    with pytest.raises(Refused, match="never measured"):
        client.infer("measured", {"x": normal(2, 4), "scale": np.array(7, np.float32)}, slo=1e-6)
    file = tmp_path / "steps.rec"

    def measured() -> list[Status]:
        """Return the outcomes of measurements with that value."""
        code, text = cluster.run("recorder", "dump", str(file))
        assert code == 0, text
        asked, found = set(), []
        with opened(file) as (_, steps):
            for step in steps:
                done = [event for event in step.events if isinstance(event, ActionDone)]
                found += [event.status for event in done if event.action_id in asked]
                asked |= {
                    command.action_id
                    for command in step.commands
                    if isinstance(command, SendProfile) and value in command.shape
                }
        return found

    assert {*eventually(measured, "the value is measured")} == {Status.OK}
    client.unregister("measured")


def test_who_describes_a_model_says_which_inputs_are_optional(
    client: Client, gateway: Gateway, cluster: Cluster
) -> None:
    assert [(spec.name, spec.optional) for spec in client.model("scaled").inputs] == [
        ("scale", True), ("shift", True), ("x", False),
    ]  # fmt: skip
    http = Http(gateway.ports["http"])
    described = http.ask("GET", "/v2/models/scaled").json["inputs"]
    assert [spec.get("optional", False) for spec in described] == [True, True, False]
    config = http.ask("GET", "/v2/models/scaled/config").json
    assert [(spec["dims"], spec.get("optional", False)) for spec in config["input"]] == [
        ([], True), ([1, 4], True), ([4], False),
    ]  # fmt: skip
    http.close()
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        metadata = method_of(channel, "ModelMetadata")(pb.ModelMetadataRequest(name="scaled"))
        assert [spec.name for spec in metadata.inputs] == ["scale", "shift", "x"]
        told = method_of(channel, "ModelConfig")(pb.ModelConfigRequest(name="scaled")).config
        assert [spec.optional for spec in told.input] == [True, True, False]
    code, text = cluster.run("models", "show", "scaled")
    assert code == 0
    assert "scale  float32 []  optional, by default 2.0" in text
    assert "scale=2.0" in text


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"negate": np.array([True])}, "x"),
        ({"x": normal(1, 4), "negate": np.array([1], np.int64)}, "negate.*bool"),
        ({"x": normal(1, 4), "negate": np.array([True, False])}, r"negate.*\[1\]"),
        ({"x": normal(1, 4), "nagate": np.array([True])}, "nagate"),
    ],
)
def test_what_does_not_fit_is_said(client: Client, inputs: dict[str, np.ndarray], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        client.infer("if", inputs)


def test_a_version_that_takes_the_place_has_its_own_default(client: Client) -> None:
    x = normal(2, 4)
    client.register("replaced", negated_if_told())
    assert np.array_equal(client.infer("replaced", x), x)
    negating = negated_if_told()
    negating.graph.initializer[0].CopyFrom(initializer("negate", [True], bool))
    client.register("replaced", negating)
    assert np.array_equal(client.infer("replaced", x), -x)
    with pytest.raises(InvalidInput, match="negate"):
        client.register("replaced", negating, optional_inputs=[])
    client.unregister("replaced")


def test_a_shadow_has_its_own_default_for_what_a_request_leaves_out(client: Client) -> None:
    x = normal(2, 4)
    client.register("shadowed", negated_if_told())
    negating = negated_if_told()
    negating.graph.initializer[0].CopyFrom(initializer("negate", [True], bool))
    client.register("shadowed", negating, share=0)
    client.route("shadowed", {1: 1.0}, shadow={2: 1.0})

    def copied(inputs: dict[str, np.ndarray], compared: int) -> int:
        """Return the pairs of answers that differ, after so many."""
        assert np.array_equal(client.infer("shadowed", inputs)["y"], -x if "negate" in inputs else x)

        def look() -> Any:
            found = RouteInfo.from_wire(client.model("shadowed").raw["route"]).shadow
            return found if found is not None and found.compared == compared else None

        return int(eventually(look, "the answers are compared").differing + look().beyond)

    assert copied({"x": x, "negate": np.array([True])}, 1) == 0
    assert copied({"x": x}, 2) > 0
    client.unregister("shadowed")


def test_a_lent_input_may_lie_beside_an_optional_one(cluster: Cluster) -> None:
    with cluster.client(shared_memory=True) as client:
        x = normal(20_000, 4)
        for flag, y in ((True, -x), (False, x)):
            assert np.array_equal(client.infer("if", {"x": x, "negate": np.array([flag])})["y"], y)
            assert np.array_equal(client.infer("if", {"x": x})["y"], x)
        assert client._memory is not None
        assert not client._memory.is_paused
