"""Packages in an object store: whole clusters beside an S3 that is slow, away, denies, is full, forgets or
lies."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.errors import Unavailable
from tests.patience import eventually
from tests.process.cluster import Cluster, running_cluster
from tests.process.peers import echo_model
from tests.process.s3_front import Front, running_front

# `make test` runs without the libraries that they need. Stories that wait for a library to give up are long:
# test_kept_packages.py has the same of a store in a folder.
pytestmark = pytest.mark.slow
if importlib.util.find_spec("s3fs") is None:
    pytest.skip("s3fs is not installed ([s3])", allow_module_level=True)

BUCKET = "models"
URL = f"s3://{BUCKET}/a"
ROW = np.array([[1.5, -2.5]], np.float32)
OTHER_KIND = ("--page-size", "512KiB")
"""Options of a worker that cannot take what the first has prepared, so that it needs the package."""


@pytest.fixture(scope="module")
def store() -> Iterator[Front]:
    with running_front() as front:
        yield front


@pytest.fixture
def front(store: Front) -> Iterator[Front]:
    store.s3.create_bucket(Bucket=BUCKET)
    store.go_on.clear()
    store.holding.clear()
    yield store
    store.go_on.set()
    store.fault = lambda method, path: ""
    for key in store.keys(BUCKET):
        store.s3.delete_object(Bucket=BUCKET, Key=key)


def options(url: str = URL, *more: str) -> tuple[str, ...]:
    return ("--packages", url, *more)


def register(client: Client, name: str, note: str = "") -> None:
    client.register(name, echo_model(note=note or name))


def packages(front: Front, prefix: str = "a/") -> dict[str, set[str]]:
    """The names of each package's objects."""
    found: dict[str, set[str]] = {}
    for key in front.keys(BUCKET, f"{prefix}packages/"):
        digest, _, name = key.partition("/")
        found.setdefault(digest, set()).add(name)
    return found


def echoes(client: Client, name: str = "m") -> bool:
    return bool(np.array_equal(client.infer(name, ROW), ROW))


def troubles(client: Client) -> set[str]:
    return {trouble["kind"] for trouble in client.status()["troubles"]["open"]}


def served(client: Client, name: str = "m", workers: int = 1) -> None:
    """Wait until so many workers have prepared the only model."""

    def is_served() -> bool:
        (model,) = client.models()
        ready = [worker["models"]["ready"] for worker in client.status()["workers"]]
        return model.name == name and model.state == "ready" and ready.count(1) == workers

    eventually(is_served, f"{name} is served by {workers}")


def restart(cluster: Cluster) -> None:
    """Start the controller on its records alone: the cache of packages is lost."""
    cluster.kill(cluster.controller)
    shutil.rmtree(cluster.data / "controller" / "cache")
    cluster.start_controller()


def test_models_are_stored_served_after_a_restart_without_any_copy_and_removed(
    front: Front, tmp_path: Path
) -> None:
    with running_cluster(tmp_path, controller_options=options()) as cluster:
        with cluster.client() as client:
            register(client, "m")
            assert echoes(client)
            ((digest, names),) = packages(front).items()
            assert names == {"model.onnx", "package.json"}
            assert not (tmp_path / "controller" / "packages").exists()
        restart(cluster)
        cluster.start_worker(*OTHER_KIND, store="other")
        with cluster.client() as client:
            served(client, workers=2)
            assert echoes(client)
            assert (tmp_path / "controller" / "cache" / "packages" / digest).is_dir()
            client.unregister("m")
            eventually(lambda: not packages(front), "the package is removed")
        arguments = Path(f"/proc/{cluster.controller.pid}/cmdline").read_bytes()
        assert b"test-secret" not in arguments
        assert "test-secret" not in cluster.controller.so_far


@pytest.mark.long
@pytest.mark.parametrize("comes_later", [True, False])
def test_a_controller_that_is_killed_amid_an_upload_leaves_nothing(
    front: Front, tmp_path: Path, comes_later: bool
) -> None:
    """comes_later: the store takes the last object after the controller's death."""
    cut = "" if comes_later else " cut"
    front.fault = lambda method, path: (
        f"hold{cut}" if method == "PUT" and path.endswith("package.json") else ""
    )
    with running_cluster(tmp_path, controller_options=options()) as cluster:
        with cluster.client() as client, ThreadPoolExecutor(1) as pool:
            registering = pool.submit(register, client, "m")
            eventually(front.holding.is_set, "the list is being written")
            ((_, names),) = packages(front).items()
            assert names == {"model.onnx"}
            cluster.kill(cluster.controller)
            front.go_on.set()
            error = registering.exception()
            assert error is not None, "a registration was answered that is not stored"
        front.fault = lambda method, path: ""
        cluster.start_controller()
        with cluster.client() as client:
            assert client.models() == []
            eventually(lambda: not packages(front), "what nobody needs is removed")
            register(client, "m")
            assert echoes(client)


FAULTS = {"cut": "", "deny": "Access ?Denied|Forbidden", "full": "no room|507|StorageFull|Insufficient"}


@pytest.mark.long
@pytest.mark.parametrize("kind", FAULTS)
def test_a_store_that_fails_fails_registrations_and_nothing_else(
    front: Front, tmp_path: Path, kind: str
) -> None:
    with running_cluster(tmp_path, controller_options=options()) as cluster, cluster.client() as client:
        register(client, "m")
        register(client, "gone")
        front.fault = lambda method, path: kind if method != "GET" or kind == "cut" else ""
        with pytest.raises(Unavailable, match=rf"cannot store the model: {URL}.*{FAULTS[kind]}") as raised:
            register(client, "new")
        assert "test-" not in str(raised.value)
        assert echoes(client)
        eventually(lambda: "packages_unreachable" in troubles(client), "the trouble is told")
        client.unregister("gone")
        assert [model.name for model in client.models()] == ["m"]
        front.fault = lambda method, path: ""
        eventually(lambda: "packages_unreachable" not in troubles(client), "the trouble is over")
        eventually(lambda: len(packages(front)) == 1, "the removed model's package goes")
        register(client, "new")
        assert echoes(client, "new")


@pytest.mark.long
def test_a_store_that_stands_still_holds_up_nobody_but_the_model_that_it_takes(
    front: Front, tmp_path: Path
) -> None:
    first: list[str] = []  # the object that is held

    def fault(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("model.onnx"):
            first.append(path)
            return "hold" if path == first[0] else ""
        return ""

    with running_cluster(tmp_path, controller_options=options()) as cluster, cluster.client() as client:
        register(client, "gone")
        front.fault = fault
        with ThreadPoolExecutor(1) as pool, cluster.client() as other:
            registering = pool.submit(register, other, "m")
            eventually(front.holding.is_set, "the first model is being written")
            register(client, "quick")
            assert echoes(client, "quick")
            client.unregister("gone")
            assert [model.name for model in client.models()] == ["quick"]
            assert not registering.done()
            front.go_on.set()
            registering.result()
        assert echoes(client)


@pytest.mark.long
def test_a_controller_that_starts_while_the_store_is_away_serves_what_workers_have(
    front: Front, tmp_path: Path
) -> None:
    with running_cluster(tmp_path, controller_options=options()) as cluster:
        with cluster.client() as client:
            register(client, "m")
        front.fault = lambda method, path: "cut"
        restart(cluster)
        cluster.start_worker(*OTHER_KIND, store="other")
        with cluster.client() as client:
            served(client)
            assert echoes(client)
            eventually(lambda: "packages_unreachable" in troubles(client), "the trouble is told")
            front.fault = lambda method, path: ""
            served(client, workers=2)
            eventually(lambda: not troubles(client) & {"packages_unreachable", "file_damaged"}, "it is over")


def test_a_store_that_lies_about_an_upload_fails_it(front: Front, tmp_path: Path) -> None:
    with running_cluster(tmp_path, controller_options=options()) as cluster, cluster.client() as client:
        register(client, "first")
        front.fault = lambda method, path: (
            "swallow" if method == "PUT" and path.endswith("model.onnx") else ""
        )
        with pytest.raises(Unavailable, match=rf"cannot store the model: {URL}"):
            register(client, "m")
        front.fault = lambda method, path: ""

        def is_stored() -> bool:
            try:
                register(client, "m")
            except Unavailable:  # the store is not asked again at once
                return False
            return True

        eventually(is_stored, "m is stored")
        assert echoes(client)


@pytest.mark.long
def test_bytes_that_rot_reach_no_worker_and_come_back_from_another(front: Front, tmp_path: Path) -> None:
    with running_cluster(tmp_path, controller_options=options()) as cluster:
        with cluster.client() as client:
            register(client, "m")
        (key,) = (key for key in front.keys(BUCKET) if key.endswith("model.onnx"))
        whole = front.content(BUCKET, key)
        front.s3.put_object(Bucket=BUCKET, Key=key, Body=whole[:-1] + bytes([whole[-1] ^ 1]))
        restart(cluster)
        cluster.start_worker(*OTHER_KIND, store="other")
        with cluster.client() as client:
            served(client, workers=2)
            assert echoes(client)
            eventually(lambda: front.content(BUCKET, key) == whole, "the package is stored again")
            eventually(lambda: "file_repaired" in troubles(client), "the repair is told")


def test_objects_that_are_missing_after_a_start_come_back_from_a_worker(front: Front, tmp_path: Path) -> None:
    with running_cluster(tmp_path, controller_options=options()) as cluster:
        with cluster.client() as client:
            register(client, "m")
        before = set(front.keys(BUCKET))
        for key in before:
            if "packages/" in key:
                front.s3.delete_object(Bucket=BUCKET, Key=key)
        restart(cluster)
        with cluster.client() as client:
            served(client)
            eventually(lambda: set(front.keys(BUCKET)) == before, "the package comes back")
            assert echoes(client)


def test_two_controllers_have_a_prefix_each_and_the_second_of_one_prefix_stores_nothing(
    front: Front, tmp_path: Path
) -> None:
    with (
        running_cluster(tmp_path / "a", controller_options=options()) as first,
        first.client() as client,
        running_cluster(tmp_path / "b", controller_options=options(f"s3://{BUCKET}/b")) as second,
        second.client() as other,
    ):
        register(client, "m")
        register(other, "m")
        assert packages(front) == packages(front, "b/")
        other.unregister("m")
        eventually(lambda: not packages(front, "b/"), "the other's package is removed")
        assert len(packages(front)) == 1
        with (
            running_cluster(tmp_path / "c", controller_options=options()) as third,
            third.client() as stranger,
        ):
            with pytest.raises(Unavailable, match=rf"{URL} belongs to another controller: {URL}/owner-"):
                register(stranger, "n")
            eventually(lambda: "packages_unreachable" in troubles(stranger), "the trouble is told")
        assert len(packages(front)) == 1
        register(client, "more")


@pytest.mark.long
def test_a_large_package_goes_in_parts_and_one_beyond_the_cache_is_refused(
    front: Front, tmp_path: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    weights = np.random.default_rng(1).standard_normal((2, 2_500_000)).astype(np.float32)
    model = echo_model()
    model.graph.node[0].CopyFrom(onnx.helper.make_node("MatMul", ["x", "w"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, ["N", weights.shape[1]]))
    with running_cluster(tmp_path, controller_options=options(URL, "--package-cache", "30MiB")) as cluster:
        with cluster.client() as client:
            client.register("large", model)
            assert np.allclose(client.infer("large", ROW), ROW @ weights, rtol=1e-3, atol=1e-3)
            bigger = numpy_helper.from_array(np.concatenate([weights, weights]), "w")
            model.graph.initializer[0].CopyFrom(bigger)
            with pytest.raises(Unavailable, match="larger than the 31457280 of --package-cache"):
                client.register("larger", model)
        posts = [path for method, path in front.asked if method == "POST"]
        assert posts, "it was not written in parts"
        restart(cluster)
        cluster.start_worker(*OTHER_KIND, store="other")
        with cluster.client() as client:
            served(client, "large", workers=2)
            (listed,) = (key for key in front.keys(BUCKET) if key.endswith("package.json"))
            assert json.loads(front.content(BUCKET, listed))[0][0] == "model.onnx"


def test_a_directory_elsewhere_has_the_packages(tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    with running_cluster(tmp_path / "data", controller_options=options(str(place))) as cluster:
        with cluster.client() as client:
            register(client, "m")
            (package,) = (place / "packages").iterdir()
            assert (package / "package.json").is_file()
            client.unregister("m")
            eventually(lambda: not list((place / "packages").iterdir()), "the package is removed")
        assert not (tmp_path / "data" / "controller" / "packages").exists()
