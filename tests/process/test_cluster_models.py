"""Models over a whole cluster: registered, asked, replaced, removed, and bad models refused."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clockwork import AsyncClient, Client
from clockwork.errors import ClockworkError, InvalidInput, InvalidModel, ModelNotFound, Refused
from clockwork.models import zoo
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, Reference, running_cluster, same
from tests.unit.models_onnx import classifier, declaring, negated_if_told

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.client() as client:
        yield client


def rows(count: int, width: int = 64) -> np.ndarray:
    return RNG.standard_normal((count, width)).astype(np.float32)


def two_inputs() -> onnx.ModelProto:
    """`ids` int64 (N, 4) and `mask` float32 (N, 4) to `sum` (N, 4) and `count` (N)."""
    table = numpy_helper.from_array(RNG.standard_normal((10, 1)).astype(np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["looked"]),
        helper.make_node("Squeeze", ["looked", "last"], ["flat"]),
        helper.make_node("Mul", ["flat", "mask"], ["sum"]),
        helper.make_node("ReduceSum", ["mask", "last1"], ["count"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 4]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 4]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, ["N"]),
        ],
        [
            table,
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "last1"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_is_registered_asked_and_removed(client: Client) -> None:
    model = zoo.build("mlp", seed=1)
    reference = Reference(model)
    info = client.register("story", model, slo=5.0)
    assert (info.name, info.version, info.state) == ("story", 1, "ready")
    assert info.slo == 5.0
    assert info.profile
    for count in (1, 3, 8):
        x = rows(count)
        y = client.infer("story", x)
        assert isinstance(y, np.ndarray)
        assert same(y, reference(x))
    named = client.infer("story", {"x": rows(2)})
    assert isinstance(named, dict)
    assert list(named) == ["y"]
    assert "story" in {one.name for one in client.models()}
    client.unregister("story")
    with pytest.raises(ModelNotFound):
        client.infer("story", rows(1))
    with pytest.raises(ModelNotFound):
        client.unregister("story")
    assert "story" not in {one.name for one in client.models()}


def test_the_same_from_asyncio(cluster: Cluster) -> None:
    model = zoo.build("mlp", seed=2)
    reference = Reference(model)

    async def story() -> None:
        async with AsyncClient(cluster.endpoint, timeout=PATIENCE_S) as client:
            await client.register("awaited", model)
            inputs = [rows(1) for _ in range(20)]
            answers = await asyncio.gather(*(client.infer("awaited", x) for x in inputs))
            assert all(same(y, reference(x)) for x, y in zip(inputs, answers))
            assert (await client.model("awaited")).state == "ready"
            assert (await client.status())["counts"]
            await client.unregister("awaited")
            with pytest.raises(ModelNotFound):
                await client.model("awaited")

    asyncio.run(story())


def test_several_inputs_and_outputs_travel_by_name(client: Client) -> None:
    model = two_inputs()
    reference = Reference(model)
    examples = {"ids": RNG.integers(0, 10, (2, 4)), "mask": np.ones((2, 4), np.float32)}
    client.register("two", model, examples=examples)
    inputs = {"ids": RNG.integers(0, 10, (3, 4)), "mask": RNG.random((3, 4), np.float32)}
    outputs = client.infer("two", inputs)
    assert isinstance(outputs, dict)
    assert same(outputs["sum"], reference(inputs))
    np.testing.assert_allclose(outputs["count"], inputs["mask"].sum(1), rtol=1e-5)
    with pytest.raises(InvalidInput, match="mask"):
        client.infer("two", {"ids": inputs["ids"]})
    with pytest.raises(InvalidInput, match=r"has 2 inputs, 'ids', 'mask': a request names each of them"):
        client.infer("two", inputs["ids"])
    with pytest.raises(ModelNotFound, match=r"^two has no version '9'; it has 1$"):
        client.infer("two@9", inputs)
    with pytest.raises(ModelNotFound, match=r"^two has no version '9'; it has 1$"):
        client.unregister("two@9")
    with pytest.raises(InvalidInput) as caught:
        client.infer("two", {"ids": inputs["ids"], "mask": inputs["mask"][:, :3]})
    assert caught.value.tensor == "mask"
    with pytest.raises(InvalidInput):
        client.infer("two", inputs["ids"])
    # An id beyond the table is the model's own failure, and the device's next run is sound.
    with pytest.raises(ClockworkError):
        client.infer("two", {"ids": np.full((1, 4), 99), "mask": np.ones((1, 4), np.float32)})
    outputs = client.infer("two", inputs)
    assert isinstance(outputs, dict)
    assert same(outputs["sum"], reference(inputs))


def test_external_data_is_followed_within_the_folder_of_its_model(client: Client, tmp_path: Path) -> None:
    model = zoo.build("mlp", seed=3)
    reference = Reference(model)
    inside = tmp_path / "inside"
    inside.mkdir()
    onnx.save_model(
        model, inside / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    assert (inside / "net.data").stat().st_size > 1 << 19
    client.register("external", inside / "net.onnx")
    x = rows(2)
    assert same(client.infer("external", x), reference(x))

    stray = onnx.load(inside / "net.onnx", load_external_data=False)
    (inside / "net.data").rename(tmp_path / "net.data")
    for tensor in stray.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../net.data"
    (inside / "stray.onnx").write_bytes(stray.SerializeToString())
    with pytest.raises(InvalidModel, match=r"net\.data"):
        client.register("stray", inside / "stray.onnx")
    with pytest.raises(InvalidModel, match=r"net\.data"):  # the external data file is no longer there
        client.register("lost", inside / "net.onnx")


def test_a_new_version_takes_over_under_load_without_one_failed_request(
    cluster: Cluster, client: Client
) -> None:
    models = [zoo.fine_tune(zoo.build("mlp", seed=4), seed) for seed in range(3)]
    x = rows(1)
    expected = [Reference(model)(x) for model in models]
    client.register("versioned", models[0])
    stop = threading.Event()

    def ask() -> list[int]:
        seen = []
        with cluster.client() as own:
            while not stop.is_set():
                answer = own.infer("versioned", x)
                seen.append(next(index for index, one in enumerate(expected) if same(answer, one)))
        return seen

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(ask) for _ in range(3)]
        try:
            infos = [client.register("versioned", model) for model in models[1:]]
            # The next request of each asker goes to the newest version.
            assert same(client.infer("versioned", x), expected[2])
        finally:
            stop.set()
        seen = [task.result() for task in tasks]
    assert [info.version for info in infos] == [2, 3]
    for one in seen:
        assert one == sorted(one)  # versions never go back to an older one
        assert one[0] == 0
    for version in (1, 2, 3):
        assert same(client.infer(f"versioned@{version}", x), expected[version - 1])
    with pytest.raises(ModelNotFound):
        client.infer("versioned@4", x)
    client.unregister("versioned@3")
    assert same(client.infer("versioned", x), expected[1])
    client.unregister("versioned")


def test_equal_content_is_not_a_new_version(client: Client) -> None:
    model = zoo.build("mlp", seed=5)
    assert client.register("again", model).version == 1
    assert client.register("again", model, slo=9.0).version == 1
    assert client.model("again").slo == 9.0


def test_unregistering_drains_what_was_admitted(client: Client) -> None:
    model = zoo.build("residual_cnn", seed=6)
    reference = Reference(model)
    client.register("drained", model)
    images = [RNG.standard_normal((1, 3, 64, 64)).astype(np.float32) for _ in range(20)]
    futures = [client.submit("drained", image) for image in images]
    client.unregister("drained")
    assert all(future.done() for future in futures)
    assert all(same(future.result(), reference(image)) for future, image in zip(futures, images))
    with pytest.raises(ModelNotFound):
        client.infer("drained", images[0])


def test_odd_but_sound_inputs(client: Client) -> None:
    model = zoo.build("mlp", seed=7)
    reference = Reference(model)
    info = client.register("odd", model)
    x = rows(1)
    x[0, 5] = np.nan
    answer = client.infer("odd", x)
    np.testing.assert_array_equal(np.isnan(answer), np.isnan(reference(x)))
    many = rows(info.batch_max + 37)  # more rows than any batch has
    assert same(client.infer("odd", many), reference(many))
    strided = np.asfortranarray(rows(4))
    assert same(client.infer("odd", strided), reference(strided))


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (np.zeros((0, 64), np.float32), "row"),
        (np.zeros((1, 63), np.float32), "63"),
        (np.zeros(64, np.float32), "64"),
        (np.zeros((1, 64), np.float64), "float64"),
        ({"z": np.zeros((1, 64), np.float32)}, "'z'"),
        ({}, "x"),
    ],
)
def test_unsound_inputs_are_named(client: Client, inputs: object, match: str) -> None:
    client.register("strict", zoo.build("mlp", seed=7))
    with pytest.raises(InvalidInput, match=match):
        client.infer("strict", inputs)


def test_an_slo_below_the_execution_time(client: Client) -> None:
    model = zoo.build("residual_cnn", seed=8)
    with pytest.raises(ClockworkError, match="execution time"):
        client.register("hasty", model, slo=1e-5)
    assert "hasty" not in {one.name for one in client.models()}
    client.register("hasty", model, slo=60.0)
    image = np.zeros((1, 3, 64, 64), np.float32)
    with pytest.raises(Refused) as caught:
        client.infer("hasty", image, slo=1e-5)
    assert caught.value.reason == "infeasible"
    assert caught.value.feasible_slo is not None
    assert caught.value.feasible_slo > 1e-4
    for slo in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="slo"):
            client.infer("hasty", image, slo=slo)
    client.unregister("hasty")


def unsupported() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def sequence_output() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def test_bad_model_files_get_clear_errors_and_harm_nothing(client: Client, tmp_path: Path) -> None:
    good = zoo.build("mlp", seed=9)
    client.register("good", good)
    data = good.SerializeToString()
    bad = {
        "empty": (b"", "ONNX"),
        "text": (b"this is no model at all\n" * 100, "ONNX"),
        "truncated": (data[: len(data) // 2], "truncated"),
        "operator": (unsupported(), "NoSuchOperator"),
        "sequence": (sequence_output(), "'y'"),
        "large": (zoo.build("mlp", seed=9, width=2100, depth=2).SerializeToString(), "arena"),
    }
    for name, (content, match) in bad.items():
        with pytest.raises(InvalidModel, match=match) as caught:
            client.register(name, content)
        assert "Traceback" not in str(caught.value)
        assert len(str(caught.value)) < 1000
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InvalidModel, match=r"text\.onnx"):
        client.register("file", tmp_path / "text.onnx")
    with pytest.raises(InvalidModel, match=r"absent\.onnx"):
        client.register("file", tmp_path / "absent.onnx")
    for name in ("", "a@b", "a/b", "x" * 300):
        with pytest.raises(ClockworkError):
            client.register(name, good)
    known = {one.name for one in client.models()}
    assert not known & {*bad, "file"}
    x = rows(2)
    assert same(client.infer("good", x), Reference(good)(x))


def test_a_registration_that_is_given_up_leaves_no_upload(cluster: Cluster, client: Client) -> None:
    class GivenUp(Exception):
        pass

    def give_up(stage: str, done: int, total: int) -> None:
        if stage == "upload":
            raise GivenUp

    packages = cluster.data / "controller" / "packages"
    before = set(packages.iterdir())  # some of them go soon, after the backup of the catalogue
    model = zoo.build("mlp", seed=10, width=1024)
    with pytest.raises(GivenUp):
        client.register("unfinished", model, progress=give_up)
    eventually(lambda: set(packages.iterdir()) <= before, "what was uploaded is removed")
    assert "unfinished" not in {one.name for one in client.models()}


def test_options_of_one_model_are_not_another_s(client: Client) -> None:
    base = zoo.build("mlp", seed=11, width=96)
    alone = client.register("alone", base, batching="off")
    together = client.register("together", zoo.fine_tune(base, 1), batch_max=5)
    assert (alone.batches, alone.batch_max) == (False, 1)
    assert together.batches
    assert 1 <= together.batch_max <= 5  # the number of rows that pay, by measurement
    assert together.batching_note != alone.batching_note
    assert together.raw["program"] == alone.raw["program"]
    x = rows(3)
    assert same(client.infer("alone", x), Reference(base)(x))
    assert same(client.infer("together", x), Reference(zoo.fine_tune(base, 1))(x))


def test_scores_that_a_file_gives_as_maps_come_as_a_tensor(client: Client) -> None:
    info = client.register("classes", classifier(classlabels_strings=["cat", "dog", "eel"]))
    assert [(spec.name, spec.dtype) for spec in info.outputs] == [
        ("label", "string"),
        ("probabilities", "float32"),
    ]
    answer = client.infer("classes", {"x": rows(5, 4)})
    assert answer["probabilities"].shape == (5, 3)
    best = [["cat", "dog", "eel"][index] for index in answer["probabilities"].argmax(1)]
    assert answer["label"].tolist() == best
    assert json.loads(info.metadata["clockwork.labels"]) == ["cat", "dog", "eel"]


@pytest.mark.parametrize("declared", [[], ["N", 4, 1], ["N", 5]])
def test_a_file_may_be_wrong_about_its_outputs(client: Client, declared: list[int | str]) -> None:
    model = declaring(declared)
    client.register("wrong", model)
    try:
        x = rows(3, 8)
        assert same(client.infer("wrong", x), Reference(model)(x))
    finally:
        client.unregister("wrong")


@pytest.mark.parametrize("examples", [None, {"negate": np.array([True])}])
def test_an_input_with_a_default_is_given_or_left_out(
    client: Client, examples: dict[str, np.ndarray] | None
) -> None:
    x = rows(2, 4)
    info = client.register("told", negated_if_told(), examples=examples and {"x": x, **examples})
    try:
        assert [(spec.name, spec.optional) for spec in info.inputs] == [("x", False), ("negate", True)]
        assert info.batches, info.batching_note
        assert same(client.infer("told", x), x)
        assert same(client.infer("told", {"x": x})["y"], x)
        for flag, y in ((True, -x), (False, x)):
            assert same(client.infer("told", {"x": x, "negate": np.array([flag])})["y"], y)
    finally:
        client.unregister("told")


def test_what_a_failed_execution_says_names_no_place_in_onnx_runtimes_source(client: Client) -> None:
    names = [("x", ["N", "K"]), ("z", ["N", "M"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L"])
    graph = helper.make_graph([helper.make_node("Add", ["x", "z"], ["y"])], "sum", inputs, [output])
    opsets = [helper.make_opsetid("", 17)]
    client.register("sum", helper.make_model(graph, opset_imports=opsets, ir_version=8), batching="off")
    with pytest.raises(ClockworkError) as caught:
        client.infer("sum", {"x": rows(1, 2), "z": rows(1, 3)})
    client.unregister("sum")
    assert "Attempting to broadcast an axis by a dimension other than 1. 2 by 3" in str(caught.value)
    assert not re.search(r"\.(h|cc):\d|::|/onnxruntime", str(caught.value)), str(caught.value)


def test_a_batch_that_the_model_fixes(client: Client) -> None:
    model = zoo.build("mlp", seed=12)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    info = client.register("pairs", model)
    assert not info.batches
    assert "fixed" in info.batching_note
    x = rows(2)
    assert same(client.infer("pairs", x), Reference(model)(x))
    with pytest.raises(InvalidInput, match=r"\[1, 64\]"):
        client.infer("pairs", rows(1))
    with pytest.raises(InvalidModel, match="batching"):
        client.register("forced", model, batching="on")


def test_examples_that_do_not_fit_are_named(client: Client) -> None:
    model = zoo.build("mlp", seed=13)
    for examples, match in (
        ({"y": rows(1)}, "'x'"),
        ({"x": rows(1).astype(np.float64)}, "float64"),
        ({"x": rows(1, 63)}, "63"),
    ):
        with pytest.raises(InvalidModel, match=match):
            client.register("examples", model, examples=examples)
    assert client.register("examples", model, examples=[{"x": rows(1)}, {"x": rows(1)}]).batches


def test_what_is_unloaded_serves_nobody_until_it_is_loaded(client: Client) -> None:
    x = rows(2)
    first, second = zoo.build("mlp", seed=41, width=64, depth=2), zoo.build("mlp", seed=42, width=64, depth=2)
    client.register("away", first)
    client.register("away", second)
    client.unload("away")
    for name in ("away", "away@1", "away@2"):
        with pytest.raises(ModelNotFound, match="unloaded"):
            client.infer(name, x)
    assert {(one.name, one.version, one.state) for one in client.models() if one.name == "away"} == {
        ("away", 1, "unloaded"), ("away", 2, "unloaded"),
    }  # fmt: skip
    assert (client.model("away").version, client.model("away@1").state) == (2, "unloaded")
    assert not any("away" in str(one) for one in client.model("away").devices)
    client.unload("away")  # unloading an unloaded model succeeds

    client.load("away@1")
    assert same(client.infer("away", x), Reference(first)(x))
    with pytest.raises(ModelNotFound, match="unloaded"):
        client.infer("away@2", x)
    client.load("away")
    assert same(client.infer("away", x), Reference(second)(x))
    assert same(client.infer("away@1", x), Reference(first)(x))
    client.load("away")

    client.unload("away@2")  # the traffic of version 2 falls to the other version
    assert same(client.infer("away", x), Reference(first)(x))
    # registering the same content brings the version back
    assert client.register("away", second).version == 2
    assert same(client.infer("away", x), Reference(second)(x))

    client.unload("away@1")
    client.unregister("away@1")
    with pytest.raises(ModelNotFound, match="no version"):
        client.load("away@1")
    client.unload("away")
    assert client.register("away", first).version == 3  # a version number is never reused
    client.unregister("away")
    with pytest.raises(ModelNotFound, match="registered"):
        client.infer("away", x)
    for call in (client.load, client.unload):
        with pytest.raises(ModelNotFound, match="registered"):
            call("away")


def test_unloading_answers_what_was_admitted_and_gives_the_memory_back(
    client: Client, cluster: Cluster
) -> None:
    model = zoo.build("mlp", seed=43, width=64, depth=2)
    client.register("emptied", model)
    x = rows(1)
    waiting = [client.submit("emptied", x) for _ in range(50)]
    client.unload("emptied")
    outcomes = [one.exception() for one in waiting]
    assert all(one is None or isinstance(one, (ModelNotFound, Refused)) for one in outcomes)
    assert outcomes[0] is None

    def free() -> bool:
        return client.model("emptied").state == "unloaded"

    eventually(free, "it is unloaded")
    client.unregister("emptied")
