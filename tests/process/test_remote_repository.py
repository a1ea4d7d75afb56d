"""Model repositories in an S3 store and on an HTTP server of this machine, before a whole cluster; with
faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("fsspec", reason="fsspec is not installed ([http])")

from clockwork.cli.root import cli
from clockwork.errors import InvalidModel
from clockwork.sources.location import Location, location_of
from tests.patience import eventually
from tests.process.cluster import Cluster, running_cluster
from tests.process.file_server import FileServer, running_file_server
from tests.process.gateways import Http, running_gateway
from tests.process.s3_front import running_s3
from tests.process.test_model_repository import factor, index, put, scaled

pytestmark = pytest.mark.slow  # `make test` runs without the libraries that they need

POLL_S = 0.1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as one:
        yield one


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running_file_server() as one:
        yield one


def at(url: str) -> Location:
    location = location_of(url)
    assert location is not None
    return location


def following(cluster: Cluster, cache: Path, *roots: Path | Location, **more: Any) -> Any:
    settings = {"control_mode": "poll", "poll_s": POLL_S, "cache": cache} | more
    return running_gateway(cluster.endpoint, repositories=roots, **settings)


def failing_sources(cluster: Cluster) -> dict[str, str]:
    """Return the sources of models that the controller reports as unreadable, and why."""
    with cluster.client() as client:
        troubles = client.status()["troubles"]["open"]
    return {one["subject"]: one["text"] for one in troubles if one["kind"] == "model_source_failed"}


def test_models_in_s3_come_change_and_go_as_their_objects_do(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed ([s3])")
    with running_s3() as s3:
        s3.create_bucket(Bucket="bucket")

        def upload(key: str, data: bytes) -> None:
            s3.put_object(Bucket="bucket", Key=f"models/{key}", Body=data)

        upload("single/1/model.onnx", scaled(2))
        upload("several/config.pbtxt", b"version_policy { all { } }")
        upload("several/1/model.onnx", scaled(10))
        upload("several/3/model.onnx", scaled(30))
        upload("broken/1/model.onnx", b"this is no model")
        root = at("s3://bucket/models")
        with following(cluster, tmp_path, root) as gateway:
            http = Http(gateway.ports["http"])
            eventually(lambda: factor(http, "single") == 2, "single is served")
            eventually(
                lambda: [factor(http, "several", version) for version in ("", "1", "3")] == [30, 10, 30],
                "several versions are served",
            )
            eventually(lambda: "model.onnx" in index(http)["broken", "1"]["reason"], "what is wrong is said")
            upload("single/1/model.onnx", scaled(4))
            answers = set()

            def changed() -> bool:
                answers.add(factor(http, "single"))
                return 4.0 in answers

            eventually(changed, "what changed is served")
            assert answers <= {2.0, 4.0}, "there was no time at which neither was"
            s3.delete_object(Bucket="bucket", Key="models/several/3/model.onnx")
            eventually(lambda: factor(http, "several") == 10, "what is gone is gone")
            for key in (
                "single/1/model.onnx",
                "several/1/model.onnx",
                "broken/1/model.onnx",
                "several/config.pbtxt",
            ):
                s3.delete_object(Bucket="bucket", Key=f"models/{key}")
            eventually(lambda: (str(root), "") in index(http), "a prefix without objects is said")
            assert "has no files" in index(http)[str(root), ""]["reason"]
            assert (factor(http, "single"), factor(http, "several")) == (4, 10), "and takes nothing away"
        with cluster.client() as client:
            client.unregister("single")
            client.unregister("several")


def test_a_source_that_is_away_disturbs_nothing_that_serves(
    cluster: Cluster, server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clockwork.gateway")
    server.files["/m/kept/1/model.onnx"] = scaled(2)
    server.files["/m/gone/1/model.onnx"] = scaled(3)
    root = at(f"{server.url}/m")
    with following(cluster, tmp_path / "cache", root) as gateway:
        http = Http(gateway.ports["http"])
        eventually(lambda: http.ask("GET", "/v2/health/ready").status == 200, "it is ready")
        assert (factor(http, "kept"), factor(http, "gone")) == (2, 3), "both are served then"
        server.away = True
        eventually(lambda: (str(root), "") in index(http), "the failure is in the index")
        assert "503" in index(http)[str(root), ""]["reason"]
        eventually(lambda: [str(root)] == list(failing_sources(cluster)), "the controller is told")
        assert "503" in failing_sources(cluster)[str(root)]
        asked = len(server.asked)
        eventually(lambda: len(server.asked) > asked + 2, "it is asked again")
        assert (factor(http, "kept"), factor(http, "gone")) == (2, 3)
    eventually(lambda: not failing_sources(cluster), "the gateway that said so is gone")
    folder = tmp_path / "folder"
    put(folder, "local", 1, scaled(5))
    with following(
        cluster, tmp_path / "cache", root, folder
    ) as gateway:  # the gateway starts while the source is away
        http = Http(gateway.ports["http"])
        eventually(lambda: (str(root), "") in index(http), "the failure is in the index")
        eventually(lambda: [str(root)] == list(failing_sources(cluster)), "the controller is told")
        eventually(lambda: factor(http, "local") == 5, "another repository is served meanwhile")
        assert (factor(http, "kept"), factor(http, "gone")) == (2, 3), (
            "what an earlier run registered is served"
        )
        assert http.ask("GET", "/v2/health/ready").status == 200
        del server.files["/m/gone/1/model.onnx"]
        server.files["/m/late/1/model.onnx"] = scaled(7)
        server.away = False
        eventually(lambda: factor(http, "late") == 7, "it is back")
        eventually(lambda: (str(root), "") not in index(http), "nothing is said any more")
        eventually(lambda: not failing_sources(cluster), "the controller is told that it is well")
        assert factor(http, "kept") == 2
    lines = [record.getMessage() for record in caplog.records]
    assert sum("503" in line for line in lines) == 2, "said once for each run"
    assert sum("is listed again" in line for line in lines) == 1
    # Not the methods that it was told to use: where HEAD fails, as while the source is away, the library
    # tries GET.
    assert server.sent.count("/m/kept/1/model.onnx") == 1, "the second run had it in its cache"
    with cluster.client() as client:
        for name in {info.name for info in client.models()}:
            client.unregister(name)


def test_a_slow_source_holds_up_neither_other_repositories_nor_answers(
    cluster: Cluster, server: FileServer, tmp_path: Path
) -> None:
    server.files["/m/slow/1/model.onnx"] = scaled(2)
    server.stalled.add("/m/slow/1/model.onnx")
    folder = tmp_path / "folder"
    put(folder, "first", 1, scaled(3))
    with following(cluster, tmp_path / "cache", at(f"{server.url}/m"), folder) as gateway:
        http = Http(gateway.ports["http"])
        eventually(server.sending.is_set, "half of it has come")
        row = index(http)["slow", "1"]
        assert row["state"] == "LOADING"
        assert row["reason"].startswith("fetching: ")
        put(folder, "second", 1, scaled(4))
        eventually(lambda: (factor(http, "first"), factor(http, "second")) == (3, 4), "folders are followed")
        assert factor(http, "slow") is None
        server.go_on.set()
        eventually(lambda: factor(http, "slow") == 2, "it came in the end")
    with cluster.client() as client:
        for name in ("first", "second", "slow"):
            client.unregister(name)


def test_a_file_that_is_half_written_is_not_served(
    cluster: Cluster, server: FileServer, tmp_path: Path
) -> None:
    path = "/m/grows/1/model.onnx"
    whole = scaled(6)
    server.files[path] = whole[: len(whole) // 2]
    server.changing[path] = whole  # the file changes while it is fetched
    with following(cluster, tmp_path, at(f"{server.url}/m")) as gateway:
        http = Http(gateway.ports["http"])
        eventually(lambda: factor(http, "grows") == 6, "the whole file is served")
        server.changing[path] = scaled(8)
        server.files[path] = whole[:-10]
        answers = set()

        def changed() -> bool:
            answers.add(factor(http, "grows"))
            return 8.0 in answers

        eventually(changed, "the next one is served")
        assert answers <= {6.0, 8.0}
    with cluster.client() as client:
        assert [info.version for info in client.models() if info.name == "grows"] == [2]
        client.unregister("grows")


def test_in_explicit_mode_a_load_asks_the_source(
    cluster: Cluster, server: FileServer, tmp_path: Path
) -> None:
    server.away = True
    server.files["/m/first/1/model.onnx"] = scaled(2)
    root = at(f"{server.url}/m")
    settings = {"control_mode": "explicit", "load_models": ("first",)}
    with following(cluster, tmp_path, root, **settings) as gateway, cluster.client() as client:
        http = Http(gateway.ports["http"])
        reply = http.ask("POST", "/v2/repository/models/second/load", {})
        assert reply.status == 503, reply.data
        assert "503" in reply.json["error"]
        server.away = False
        eventually(
            lambda: factor(http, "first") == 2, "what --load-model names comes when its source is back"
        )
        server.files["/m/second/1/model.onnx"] = scaled(3)
        assert http.ask("POST", "/v2/repository/models/second/load", {}).status == 200
        assert factor(http, "second") == 3
        assert http.ask("POST", "/v2/repository/models/third/load", {}).status == 404
        for name in ("first", "second"):
            client.unregister(name)


def test_models_add_takes_a_url(cluster: Cluster, server: FileServer, tmp_path: Path) -> None:
    model = onnx.load_from_string(scaled(9))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full(4, 9, np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    server.files["/m/m.onnx"] = (tmp_path / "m.onnx").read_bytes()
    server.files["/m/m.data"] = (tmp_path / "m.data").read_bytes()

    def add(url: str) -> Result:
        arguments = ["models", "add", "fetched", url, "--endpoint", cluster.endpoint]
        return CliRunner().invoke(cli, arguments)

    done = add(f"{server.url}/m/m.onnx")
    assert done.exit_code == 0, done.output
    assert "fetched@1 is ready" in done.stdout
    assert "Registering fetched: fetch ..." in done.stderr
    assert "name an ONNX file; it has m.onnx" in add(f"{server.url}/m/").stderr
    del server.files["/m/m.data"]
    done = add(f"{server.url}/m/m.onnx")
    assert done.exit_code == 1
    assert "m.data is not there" in done.stderr
    with cluster.client() as client:
        client.unregister("fetched")
        with pytest.raises(InvalidModel, match="is a URL: `clockwork models add` takes it"):
            client.register("fetched", f"{server.url}/m/m.onnx")
