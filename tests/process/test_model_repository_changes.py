"""After any change of a model repository, no request fails that need not, over HTTP and over gRPC."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from clockwork.errors import ModelNotFound
from clockwork.gateway.process import Gateway
from clockwork.protocol import inference_pb2 as pb
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, running_cluster
from tests.process.gateways import Http, method_of, running_gateway, tensor
from tests.process.test_model_repository import POLL, factor, index, put, scaled

X = np.arange(1, 5, dtype=np.float32).reshape(1, 4)

RESHAPED = "max_batch_size: 8 output {{ name: 'y' dims: [ {} ] reshape {{ shape: [ 4 ] }} }}"
"""A configuration that gives the output another shape."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as one:
        yield one


class Seen:
    """The outcomes of requests: the factor of a right answer; "not there"; or else an error's text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[float | str] = Counter()

    def note(self, outcome: float | str) -> None:
        with self._lock:
            self._counts[outcome] += 1

    def take(self) -> set[float | str]:
        """Return the distinct outcomes since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {*counts}

    def await_only(self, outcome: float, *, known: set[float | str]) -> None:
        """Return once only that outcome is seen; until then only ``known`` outcomes may occur besides."""

        def is_only() -> bool:
            seen = self.take()
            assert seen <= known | {outcome}, seen
            return seen == {outcome}

        eventually(is_only, f"only {outcome} is answered")


def outcome_of(values: object) -> float | str:
    found = np.asarray(values, np.float32).reshape(X.shape)
    return float(found[0, 0]) if np.array_equal(found, X * found[0, 0]) else f"a wrong answer: {found}"


def ask_http(port: int, name: str, version: str, seen: Seen, stop: threading.Event) -> None:
    http = Http(port)
    path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "") + "/infer"
    while not stop.is_set():
        reply = http.ask("POST", path, {"inputs": [tensor("FP32", X.shape, X.ravel().tolist())]})
        if reply.status == 200:
            seen.note(outcome_of(reply.json["outputs"][0]["data"]))
        else:
            seen.note("not there" if reply.status in (404, 503) else f"HTTP {reply.status}: {reply.data!r}")
    http.close()


def ask_grpc(port: int, name: str, version: str, seen: Seen, stop: threading.Event) -> None:
    message = pb.ModelInferRequest(model_name=name, model_version=version, raw_input_contents=[X.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=X.shape)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = method_of(channel, "ModelInfer")
        while not stop.is_set():
            try:
                reply = infer(message, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                is_away = error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)
                seen.note("not there" if is_away else f"gRPC {error.code()}: {error.details()}")
            else:
                seen.note(outcome_of(np.frombuffer(reply.raw_output_contents[0], np.float32)))


@contextlib.contextmanager
def asked(ports: dict[str, int], name: str, version: str = "") -> Iterator[Seen]:
    """Ask for inferences over both protocols, one after the other, all the while."""
    seen, stop = Seen(), threading.Event()
    threads = [
        threading.Thread(target=ask, args=(ports[protocol], name, version, seen, stop))
        for protocol, ask in (("http", ask_http), ("grpc", ask_grpc))
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def reason(http: Http, name: str, version: str) -> str:
    """Return the error of a version in the repository index."""
    return str(index(http).get((name, version), {}).get("reason", ""))


def take(root: Path, name: str, version: int) -> None:
    """Remove a version at once, as a careful user would."""
    away = root / name / f".{version}"
    (root / name / str(version)).rename(away)
    shutil.rmtree(away)


def test_no_change_of_a_folder_that_serves_fails_a_request(cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    put(root, "m", 1, scaled(1))
    with running_gateway(cluster.endpoint, repositories=(root,), **POLL) as gateway:
        http = Http(gateway.ports["http"])
        eventually(lambda: factor(http, "m") == 1, "it is served")
        with asked(gateway.ports, "m") as seen:
            seen.await_only(1, known=set())

            put(root, "m", 2, scaled(2))  # a version is added
            seen.await_only(2, known={1.0})
            eventually(lambda: factor(http, "m", "1") is None, "the one before goes")
            take(root, "m", 2)  # the version is removed
            seen.await_only(1, known={2.0})

            put(root, "m", 3, b"this is no model")  # a broken version is added
            eventually(lambda: "model.onnx" in reason(http, "m", "3"), "what is wrong is said")
            seen.await_only(1, known=set())
            put(root, "m", 3, scaled(3))  # the version is repaired
            seen.await_only(3, known={1.0})

            put(root, "m", 3, scaled(4))  # the version is changed in place
            seen.await_only(4, known={3.0})
            put(root, "m", 3, b"this is no model")  # changed in place, and broken
            eventually(lambda: "model.onnx" in reason(http, "m", "3"), "what is wrong is said")
            seen.await_only(4, known=set())
            put(root, "m", 3, scaled(5))
            seen.await_only(5, known={4.0})

            config = root / "m" / "config.pbtxt"
            for text in (
                "max_batch_size: 4",
                "max_batch_size: 0",
                "",
                "name: 'torn",
                "platform: 'tensorrt_plan'",
            ):
                config.write_text(text)
                if "'" in text:
                    eventually(lambda: ("m", "") in index(http), "what is wrong is said")
                else:
                    eventually(lambda: ("m", "") not in index(http), "nothing is wrong")
                seen.await_only(5, known=set())
            config.unlink()
            seen.await_only(5, known=set())

            # The whole folder is replaced at once, like a link that is set anew.
            other = tmp_path / "other"
            put(other, "m", 1, scaled(6))
            (root / "m").rename(tmp_path / "before")
            (root / "m").symlink_to(tmp_path / "before")
            seen.await_only(5, known={"not there"})  # two looks may have come between the two lines
            (root / ".m").symlink_to(other / "m")
            (root / ".m").replace(root / "m")
            seen.await_only(6, known={5.0})

            (root / "m").unlink()  # the folder is removed for good
            eventually(lambda: factor(http, "m") is None, "it goes")
            (root / "m").symlink_to(other / "m")  # the folder is restored
            eventually(lambda: factor(http, "m") == 6, "it comes back")
            assert seen.take() <= {6.0, "not there"}
            seen.await_only(6, known=set())
    with cluster.client() as client:
        client.unregister("m")


def test_a_policy_that_changes_fails_no_request_for_what_it_still_wants(
    cluster: Cluster, tmp_path: Path
) -> None:
    for version in (1, 2, 3):
        put(tmp_path, "p", version, scaled(version), "version_policy { all { } }")
    put(tmp_path, "p", 4, b"this is no model")
    config = tmp_path / "p" / "config.pbtxt"

    with running_gateway(cluster.endpoint, repositories=(tmp_path,), **POLL) as gateway:
        http = Http(gateway.ports["http"])

        def served() -> list[float | None]:
            return [factor(http, "p", version) for version in ("", "1", "2", "3")]

        eventually(lambda: served() == [3, 1, 2, 3], "all are served")
        with asked(gateway.ports, "p") as seen, asked(gateway.ports, "p", "2") as second:
            for policy, after in (
                ("latest { num_versions: 3 }", [3, 1, 2, 3]),  # there is no 4, and 1 takes its place
                ("specific { versions: [1, 2] }", [2, 1, 2, None]),
                ("specific { versions: [2, 4] }", [2, 1, 2, None]),
                ("all { }", [3, 1, 2, 3]),
                ("specific { versions: [2] }", [2, None, 2, None]),
                ("specific { versions: [4] }", [2, None, 2, None]),
                ("latest { num_versions: 1 }", [2, None, 2, None]),
            ):
                config.write_text(f"version_policy {{ {policy} }}")
                eventually(lambda: served() == after, f"{policy} is followed")  # noqa: B023
            assert seen.take() <= {2.0, 3.0}
            second.await_only(2, known=set())
            put(tmp_path, "p", 4, scaled(4))
            seen.await_only(4, known={2.0})
            assert second.take() <= {2.0, "not there"}
    with cluster.client() as client:
        client.unregister("p")


def test_a_configuration_that_changes_leaves_each_version_its_number_and_its_traffic(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The same weights with another bound on batches are another version of the cluster while both exist."""
    for version in (1, 2, 3):
        put(tmp_path, "c", version, scaled(version), "version_policy { all { } }")
    config = tmp_path / "c" / "config.pbtxt"
    with running_gateway(cluster.endpoint, repositories=(tmp_path,), **POLL) as gateway:
        http = Http(gateway.ports["http"])

        def is_settled(bound: int) -> bool:
            described = [http.ask("GET", f"/v2/models/c/versions/{number}/config") for number in (1, 2, 3)]
            return all(one.status == 200 and one.json["max_batch_size"] == bound for one in described) and [
                number for name, number in index(http) if name == "c"
            ] == ["1", "2", "3"]

        eventually(
            lambda: [factor(http, "c", v) for v in ("", "1", "2", "3")] == [3, 1, 2, 3], "all are served"
        )
        with asked(gateway.ports, "c") as seen, asked(gateway.ports, "c", "1") as first:
            seen.await_only(3, known=set())
            for bound in (4, 2, 0):
                config.write_text(f"version_policy {{ all {{ }} }} max_batch_size: {bound}")
                eventually(lambda: is_settled(bound), "all are served so")  # noqa: B023
            seen.await_only(3, known=set())
            first.await_only(1, known={"not there"})
            # A change that does not affect a version's preparation disturbs no request.
            config.write_text("version_policy { all { } } max_batch_size: 0 optimization { }")
            put(tmp_path, "marker", 1, scaled(1))
            eventually(lambda: factor(http, "marker") == 1, "it has looked again")
            first.await_only(1, known=set())
            seen.await_only(3, known=set())
        assert is_settled(0)
    with cluster.client() as client:
        client.unregister("c")
        client.unregister("marker")


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        ("", "max_batch_size: 4", False),
        ("max_batch_size: 4", "max_batch_size: 2", False),
        ("", RESHAPED.format("4, 1"), False),
        (RESHAPED.format("4, 1"), RESHAPED.format("2, 2"), False),
        (RESHAPED.format("4, 1"), RESHAPED.format("2, 2"), True),
        (RESHAPED.format("4, 1"), "", False),
    ],
)
def test_a_configuration_that_changes_while_no_gateway_runs_leaves_them_too(
    cluster: Cluster, tmp_path: Path, before: str, after: str, runs: bool
) -> None:
    """runs: the gateway that follows the repository runs meanwhile, and has served a reshaped model."""
    config = "version_policy {{ all {{ }} }} {}".format
    for version in (1, 2, 3):
        put(tmp_path, "c", version, scaled(version), config(before))

    def served(http: Http) -> list[float | None]:
        return [factor(http, "c", version) for version in ("", "1", "2", "3")]

    def is_settled(http: Http) -> bool:
        numbers = [number for name, number in index(http) if name == "c"]
        return served(http) == [3, 1, 2, 3] and numbers == ["1", "2", "3"]

    def description(version: int) -> tuple[Any, str]:
        with cluster.client() as client:
            info = client.model(f"c@{version}")
        return info.raw["options"], info.digest

    def are_new() -> bool:
        with cluster.client() as client:
            found = {info.version for info in client.models() if info.name == "c"}
        try:
            return found == {1, 2, 3} and all(description(version) != old[version] for version in found)
        except ModelNotFound:
            return False  # since the list was made, a version gave way to its successor

    def following() -> contextlib.AbstractContextManager[Gateway]:
        return running_gateway(cluster.endpoint, repositories=(tmp_path,), **POLL)

    with running_gateway(cluster.endpoint) as other, contextlib.ExitStack() as first:
        http = Http(other.ports["http"])  # of a gateway that follows no repository
        first.enter_context(following())
        eventually(lambda: is_settled(http), "all are served")
        if not runs:
            first.close()
        old = {version: description(version) for version in (1, 2, 3)}
        with asked(other.ports, "c") as seen:
            (tmp_path / "c" / "config.pbtxt").write_text(config(after))
            if not runs:
                first.enter_context(following())
            eventually(are_new, "all are prepared anew, under their own numbers")
            eventually(lambda: is_settled(http), "all are served so")
            seen.await_only(3, known=set())
        first.close()
        with following():  # nothing has changed
            put(tmp_path, "marker", 1, scaled(1))
            eventually(lambda: factor(http, "marker") == 1, "it has looked")
            assert is_settled(http)
    with cluster.client() as client:
        client.unregister("c")
        client.unregister("marker")


def test_a_model_that_is_renamed_answers_under_one_name_or_the_other(
    cluster: Cluster, tmp_path: Path
) -> None:
    put(tmp_path, "old", 1, scaled(1))
    put(tmp_path, "beside", 1, scaled(9))
    with running_gateway(cluster.endpoint, repositories=(tmp_path,), **POLL) as gateway:
        http = Http(gateway.ports["http"])
        eventually(lambda: (factor(http, "old"), factor(http, "beside")) == (1, 9), "both are served")
        with asked(gateway.ports, "beside") as beside, asked(gateway.ports, "new") as new:
            (tmp_path / "old").rename(tmp_path / "new")
            new.await_only(1, known={"not there"})
            eventually(lambda: factor(http, "old") is None, "the old name is gone")
            new.await_only(1, known=set())
            beside.await_only(9, known=set())
        assert (factor(http, "old"), factor(http, "new")) == (None, 1)
    with cluster.client() as client:
        for name in ("new", "beside"):
            client.unregister(name)
