"""Third-party clients and load tools, unchanged, against a whole cluster with its gateway."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork.models import zoo
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import ROOT, Cluster, running_cluster
from tests.process.gateways import Http, tensor

MISSING = "tritonclient is not installed (requirements-clients.lock)"
triton_http = pytest.importorskip("tritonclient.http", reason=MISSING)
triton_grpc = pytest.importorskip("tritonclient.grpc", reason=MISSING)
triton_http_aio = pytest.importorskip("tritonclient.http.aio", reason=MISSING)
triton_grpc_aio = pytest.importorskip("tritonclient.grpc.aio", reason=MISSING)
triton_utils = pytest.importorskip("tritonclient.utils", reason=MISSING)
triton_memory = pytest.importorskip("tritonclient.utils.shared_memory", reason=MISSING)
InferenceServerException = triton_utils.InferenceServerException

RNG = np.random.default_rng(5)
IMAGE = RNG.random((2, 1, 8, 8), dtype=np.float32)


class Served:
    """A cluster and a gateway before it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.gateway = cluster.program(
            ["gateway", "--connect", cluster.endpoint, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "off"]
        )  # fmt: skip
        where = self.gateway.wait_for(r"http on http://(127.0.0.1:\d+), grpc on (127.0.0.1:\d+)")
        self.http, self.grpc = where.groups()

    @property
    def http_port(self) -> int:
        return int(self.http.rpartition(":")[2])


def text_model() -> onnx.ModelProto:
    """A model from `text` BYTES (N, 2) to an equal `same`, for strings."""
    values = [helper.make_tensor_value_info(name, TensorProto.STRING, ["N", 2]) for name in ("text", "same")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["same"])], "text", values[:1], values[1:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as cluster:
        served = Served(cluster)
        with cluster.client() as client:
            client.register("digits", zoo.digits())
            client.register("text", text_model())
        yield served
        assert served.gateway.stop() == 0, served.gateway.text
        assert "Traceback" not in served.gateway.text


@pytest.fixture(scope="module")
def expected(served: Served) -> np.ndarray:
    with served.cluster.client() as client:
        scores = client.infer("digits", IMAGE)
    assert isinstance(scores, np.ndarray)
    return scores


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, served: Served) -> Iterator[tuple[Any, Any]]:
    """(module, client)"""
    module, url = {"http": (triton_http, served.http), "grpc": (triton_grpc, served.grpc)}[request.param]
    client = module.InferenceServerClient(url)
    yield module, client
    client.close()


def image_of(module: Any, array: np.ndarray = IMAGE, **more: Any) -> Any:
    one = module.InferInput("image", list(array.shape), "FP32")
    one.set_data_from_numpy(array, **more)
    return one


def plain(answer: Any) -> Any:
    """A message as a dict."""
    if isinstance(answer, (dict, list)):
        return answer
    from google.protobuf import json_format

    return json_format.MessageToDict(answer, preserving_proto_field_name=True)


def test_server_and_model_describe_themselves(triton: tuple[Any, Any]) -> None:
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    server = plain(client.get_server_metadata())
    assert server["name"] == "clockwork"
    assert "binary_tensor_data" in server["extensions"]
    model = plain(client.get_model_metadata("digits"))
    assert (model["name"], model["versions"]) == ("digits", ["1"])
    assert (model["inputs"][0]["name"], model["inputs"][0]["datatype"]) == ("image", "FP32")
    assert [int(dimension) for dimension in model["inputs"][0]["shape"]] == [-1, 1, 8, 8]
    assert [int(dimension) for dimension in model["outputs"][0]["shape"]] == [-1, 10]
    config = plain(client.get_model_config("digits"))
    config = config.get("config", config)
    assert config["max_batch_size"] > 1
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert [int(dimension) for dimension in config["input"][0]["dims"]] == [1, 8, 8]
    assert config["backend"] == "clockwork"


def test_inference_and_its_statistics(triton: tuple[Any, Any], expected: np.ndarray) -> None:
    module, client = triton

    def inferences() -> int:
        stats = plain(client.get_inference_statistics("digits"))["model_stats"][0]
        return int(stats["inference_stats"]["success"].get("count", 0))

    before = inferences()
    answer = client.infer(
        "digits", [image_of(module)], request_id="seven", outputs=[module.InferRequestedOutput("scores")],
        timeout=30_000_000, priority=2,
    )  # fmt: skip
    response = plain(answer.get_response())
    assert (response["id"], response["model_version"]) == ("seven", "1")
    assert np.allclose(answer.as_numpy("scores"), expected, atol=1e-5)
    assert inferences() == before + 1
    assert np.allclose(
        client.infer("digits", [image_of(module)], "1").as_numpy("scores"), expected, atol=1e-5
    )


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_http_takes_json_and_binary_in_any_mixture(
    served: Served, expected: np.ndarray, binary_in: bool, binary_out: bool
) -> None:
    with triton_http.InferenceServerClient(served.http) as client:
        image = image_of(triton_http, binary_data=binary_in)
        output = triton_http.InferRequestedOutput("scores", binary_data=binary_out)
        for more in (
            {},
            {"request_compression_algorithm": "gzip"},
            {"response_compression_algorithm": "gzip"},
        ):
            answer = client.infer("digits", [image], outputs=[output], **more)
            assert np.allclose(answer.as_numpy("scores"), expected, atol=1e-5)


def test_strings_go_there_and_back(triton: tuple[Any, Any]) -> None:
    module, client = triton
    words = np.array([["", "näher"], ["\0", "x" * 1000]], dtype=object)
    text = module.InferInput("text", [2, 2], "BYTES")
    text.set_data_from_numpy(words)
    answer = client.infer("text", [text]).as_numpy("same")
    assert [[word.decode() for word in row] for row in answer] == words.tolist()
    if module is triton_http:
        text.set_data_from_numpy(words, binary_data=False)
        output = module.InferRequestedOutput("same", binary_data=False)
        answer = client.infer("text", [text], outputs=[output]).as_numpy("same")
        assert [
            [word if isinstance(word, str) else word.decode() for word in row] for row in answer
        ] == words.tolist()


def test_errors_are_exceptions_with_a_status(triton: tuple[Any, Any]) -> None:
    module, client = triton
    http = module is triton_http

    def status_of(call: Callable[[], Any], words: str) -> str:
        with pytest.raises(InferenceServerException, match=words) as caught:
            call()
        return str(caught.value.status())

    image = image_of(module)
    unknown = "404" if http else "StatusCode.NOT_FOUND"
    wrong = "400" if http else "StatusCode.INVALID_ARGUMENT"
    refused = "422" if http else "StatusCode.FAILED_PRECONDITION"
    assert status_of(lambda: client.infer("nope", [image]), "'nope'") == unknown
    assert (
        status_of(lambda: client.infer("digits", [image], "7"), "digits has no version '7'; it has 1")
        == unknown
    )
    assert status_of(lambda: client.get_model_metadata("nope"), "'nope'") == unknown
    assert status_of(lambda: client.load_model("nope"), "'nope'") == unknown
    assert status_of(lambda: client.unload_model("nope"), "'nope'") == unknown
    shape = image_of(module, np.zeros((1, 1, 8, 9), np.float32))
    assert (
        status_of(
            lambda: client.infer("digits", [shape]), r"'image' has shape \[N, 1, 8, 8\], got \[1, 1, 8, 9\]"
        )
        == wrong
    )
    dtype = module.InferInput("image", [1, 1, 8, 8], "FP64")
    dtype.set_data_from_numpy(np.zeros((1, 1, 8, 8)))
    assert status_of(lambda: client.infer("digits", [dtype]), "'image' is float32, got float64") == wrong
    named = module.InferInput("picture", [2, 1, 8, 8], "FP32")
    named.set_data_from_numpy(IMAGE)
    assert status_of(lambda: client.infer("digits", [named]), "no input 'picture'") == wrong
    assert status_of(lambda: client.infer("digits", []), "'image' is missing|inputs") == wrong
    named._shape = [3, 1, 8, 8]  # a declared shape that differs from the data's
    assert (
        status_of(lambda: client.infer("digits", [named]), "has no input 'picture'; its inputs are 'image'")
        == wrong
    )
    assert status_of(lambda: client.infer("digits", [image], timeout=1), "idle device") == refused


def test_the_repository_unloads_and_loads(triton: tuple[Any, Any], expected: np.ndarray) -> None:
    module, client = triton

    def state() -> str:
        index = plain(client.get_model_repository_index())
        rows = index.get("models", []) if isinstance(index, dict) else index
        return {row["name"]: row["state"] for row in rows}["digits"]

    assert state() == "READY"
    client.unload_model("digits")
    assert state() == "UNAVAILABLE"
    assert not client.is_model_ready("digits") if module is triton_http else True
    with pytest.raises(InferenceServerException, match="unloaded"):
        client.infer("digits", [image_of(module)])
    client.unload_model("digits")  # unloading an unloaded model succeeds
    client.load_model("digits")
    assert state() == "READY"
    client.load_model("digits")
    assert np.allclose(client.infer("digits", [image_of(module)]).as_numpy("scores"), expected, atol=1e-5)
    with pytest.raises(InferenceServerException, match="'config'"):
        client.load_model("digits", config="{}")


def test_tensors_in_shared_memory(triton: tuple[Any, Any], expected: np.ndarray) -> None:
    module, client = triton
    name = f"clockwork-test-{secrets.token_hex(8)}"
    handle = triton_memory.create_shared_memory_region("images", f"/{name}", IMAGE.nbytes + expected.nbytes)
    try:
        triton_memory.set_shared_memory_region(handle, [IMAGE])
        assert "system_shared_memory" in plain(client.get_server_metadata())["extensions"]
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        client.register_system_shared_memory("images", f"/{name}", IMAGE.nbytes + expected.nbytes)
        status = client.get_system_shared_memory_status("images")
        rows = status if isinstance(status, list) else [plain(row) for row in status.regions.values()]
        assert [(row["name"], row["key"], int(row["byte_size"])) for row in rows] == [
            ("images", f"/{name}", IMAGE.nbytes + expected.nbytes)
        ]
        image = module.InferInput("image", list(IMAGE.shape), "FP32")
        image.set_shared_memory("images", IMAGE.nbytes)
        scores = module.InferRequestedOutput("scores")
        scores.set_shared_memory("images", expected.nbytes, offset=IMAGE.nbytes)
        answer = client.infer("digits", [image], outputs=[scores])
        described = plain(answer.get_output("scores"))
        assert [int(dimension) for dimension in described["shape"]] == list(expected.shape)
        found = triton_memory.get_contents_as_numpy(handle, np.float32, list(expected.shape), IMAGE.nbytes)
        assert np.allclose(found, expected, atol=1e-5)
        # Memory for the input alone, and for the output alone.
        answer = client.infer("digits", [image])
        assert np.allclose(answer.as_numpy("scores"), expected, atol=1e-5)
        found[:] = 0
        client.infer("digits", [image_of(module)], outputs=[scores])
        assert np.allclose(found, expected, atol=1e-5)
        del found
        wrong = "400" if module is triton_http else "StatusCode.INVALID_ARGUMENT"
        for words, call in (
            ("already in manager", lambda: client.register_system_shared_memory("images", f"/{name}", 1)),
            ("there is no", lambda: client.register_system_shared_memory("x", f"/{name}-x", 1)),
            ("does not fit", lambda: client.register_system_shared_memory("x", f"/{name}", 1 << 40)),
        ):
            with pytest.raises(InferenceServerException, match=words) as caught:
                call()
            assert str(caught.value.status()) == wrong
        client.unregister_system_shared_memory("images")
        with pytest.raises(InferenceServerException, match="Unable to find"):
            client.get_system_shared_memory_status("images")
    finally:
        client.unregister_system_shared_memory()
        triton_memory.destroy_shared_memory_region(handle)


def test_strings_in_shared_memory(triton: tuple[Any, Any]) -> None:
    module, client = triton
    words = np.array([["", "näher"], ["\0", "x" * 1000]], dtype=object)
    raw = triton_utils.serialize_byte_tensor(words)
    size = len(raw.item())
    key = f"clockwork-test-{secrets.token_hex(8)}"
    handle = triton_memory.create_shared_memory_region("words", key, 2 * size)
    try:
        triton_memory.set_shared_memory_region(handle, [raw])
        client.register_system_shared_memory("words", key, 2 * size)
        text = module.InferInput("text", [2, 2], "BYTES")
        text.set_shared_memory("words", size)
        same = module.InferRequestedOutput("same")
        same.set_shared_memory("words", size, offset=size)
        client.infer("text", [text], outputs=[same])
        found = triton_memory.get_contents_as_numpy(handle, np.object_, [2, 2], size)
        assert [[word.decode() for word in row] for row in found] == words.tolist()
    finally:
        client.unregister_system_shared_memory()
        triton_memory.destroy_shared_memory_region(handle)


def test_many_requests_under_way(served: Served, expected: np.ndarray) -> None:
    with triton_http.InferenceServerClient(served.http, concurrency=8) as client:
        waiting = [client.async_infer("digits", [image_of(triton_http)]) for _ in range(64)]
        assert all(np.allclose(one.get_result().as_numpy("scores"), expected, atol=1e-5) for one in waiting)


@pytest.mark.parametrize("module", [triton_http_aio, triton_grpc_aio], ids=["http", "grpc"])
def test_the_asyncio_clients(served: Served, expected: np.ndarray, module: Any) -> None:
    async def main() -> None:
        url = served.http if module is triton_http_aio else served.grpc
        async with module.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("digits")
            assert plain(await client.get_model_metadata("digits"))["name"] == "digits"
            answers = await asyncio.gather(*(client.infer("digits", [image_of(module)]) for _ in range(16)))
            assert all(np.allclose(one.as_numpy("scores"), expected, atol=1e-5) for one in answers)
            with pytest.raises(InferenceServerException, match="'nope'"):
                await client.infer("nope", [image_of(module)])
            assert plain(await client.get_inference_statistics("digits"))["model_stats"]

    asyncio.run(main())


def test_a_grpc_stream(served: Served, expected: np.ndarray) -> None:
    async def main() -> None:
        async def requests() -> Any:
            for number in range(4):
                name = "nope" if number == 2 else "digits"
                yield {"model_name": name, "inputs": [image_of(triton_grpc_aio)], "request_id": str(number)}

        async with triton_grpc_aio.InferenceServerClient(served.grpc) as client:
            found = [one async for one in client.stream_infer(requests())]
        assert [error is None for _, error in found] == [True, True, False, True]
        assert [answer.get_response().id for answer, error in found if error is None] == ["0", "1", "3"]
        assert np.allclose(found[0][0].as_numpy("scores"), expected, atol=1e-5)

    asyncio.run(main())


def test_a_grpc_stream_that_ends_with_its_first_error(served: Served) -> None:
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(
            lambda result, error: found.put(error or result), headers={"triton_grpc_error": "true"}
        )
        for name in ("digits", "nope"):
            client.async_stream_infer(name, [image_of(triton_grpc)])
        assert found.get(timeout=PATIENCE_S).as_numpy("scores") is not None
        assert found.get(timeout=PATIENCE_S).status() == "StatusCode.NOT_FOUND"


# ----- load tools --------------------------------------------------------------------------------


LOADS = {
    "closed loop": ["--concurrency-range", "2"],
    "open loop": ["--request-rate-range", "40", "--request-distribution", "poisson"],
    "shared memory": [
        "--shared-memory",
        "system",
        "--output-shared-memory-size",
        "1024",
        "--concurrency-range",
        "2",
    ],
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("load", LOADS)
def test_perf_analyzer_measures_to_a_clean_report(
    served: Served, tmp_path: Path, protocol: str, load: str
) -> None:
    # directory of the environment's programs, which need not be activated
    beside = str(Path(sys.executable).parent)
    program = shutil.which("perf_analyzer", path=beside + os.pathsep + os.environ.get("PATH", ""))
    if program is None:
        pytest.skip("perf_analyzer is not installed (requirements-clients.lock), or came without its program")
    report = tmp_path / "report.csv"
    url = served.http if protocol == "http" else served.grpc
    # Three consistent windows, out of many: the machine has other load as well.
    how = ["-p", "300", "-r", "30", "-s", "900"]
    arguments = ["-m", "digits", "-i", protocol, "-u", url, "-f", str(report), *how]
    done = subprocess.run(
        [program, *arguments, *LOADS[load]], capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert report.exists(), done.stdout
    with open(report, newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["Inferences/Second"]) > 5, rows


# ----- what the documents say ---------------------------------------------------------------------


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def as_documented(served: Served, tmp_path: Path) -> dict[str, str]:
    """An environment whose curl finds this gateway where the documents say that one is."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    shim = tmp_path / "curl"
    shim.write_text(f'#!/bin/sh\nexec {curl} --connect-to localhost:8000:{served.http} "$@"\n')
    shim.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize("document", ["docs/gateway.md", "README.md"])
def test_the_lines_of_the_documents_run_as_they_stand(as_documented: dict[str, str], document: str) -> None:
    found = [block for block in blocks(document, "sh") if "localhost:8000" in block]
    assert found, f"{document} has no lines to run"
    for block in found:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block], env=as_documented, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        if "infer" in block and 'Timeout-Us: 1"' not in block:
            assert "scores" in done.stdout, f"{block}\n{done.stdout}"


@pytest.mark.parametrize("language", ["python", "js"])
def test_the_programs_of_the_document_run(served: Served, language: str) -> None:
    program = {"python": [sys.executable, "-c"], "js": ["node", "--input-type=module", "-e"]}[language]
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed")
    found = [block for block in blocks("docs/gateway.md", language) if "localhost:8000" in block]
    assert found
    for block in found:
        done = subprocess.run(
            [*program, block.replace("localhost:8000", served.http)], capture_output=True, text=True, timeout=PATIENCE_S
        )  # fmt: skip
        assert "scores: " in done.stdout, f"{block}\n{done.stdout}\n{done.stderr}"


def test_a_refusal_looks_as_documented(served: Served) -> None:
    http = Http(served.http_port)
    body = json.loads((ROOT / "examples" / "digits" / "7.json").read_text())
    reply = http.infer(body, model="digits", X_Clockwork_Timeout_Us="1")
    assert (reply.status, reply.json["reason"], "retry-after" in reply.headers) == (422, "infeasible", False)
    assert reply.headers["x-clockwork-request"] == str(reply.json["request"])
    said = re.match(
        r"digits@1 takes ([0-9.]+) (us|ms) on an idle device \([0-9.]+ [mu]s to execute", reply.json["error"]
    )
    assert said, reply.json
    told_us = float(said[1]) * {"us": 1, "ms": 1000}[said[2]]
    assert told_us == pytest.approx(reply.json["feasible_timeout_us"], rel=0.02), "one figure, said twice"
    answer = http.infer(body, model="digits")
    best = max(enumerate(answer.json["outputs"][0]["data"]), key=lambda one: one[1])
    assert best[0] == 7
    assert int(answer.headers["x-clockwork-request"]) > reply.json["request"], "an answer has its number, too"
    http.close()


# ----- the whole road ------------------------------------------------------------------------------


def test_a_client_that_goes_frees_its_executor(served: Served) -> None:
    """A queued request is cancelled at the controller, whichever gateway carried it there."""
    with served.cluster.client() as client:
        before = client.model("digits").counts
        http = [Http(served.http_port) for _ in range(40)]
        body = json.dumps({"inputs": [tensor(shape=(16, 1, 8, 8), size=4096, name="image")]}).encode()
        for one in http:
            data = body + bytes(4096)
            one.connection.request(
                "POST", "/v2/models/digits/infer", data, {"Inference-Header-Content-Length": str(len(body))}
            )
        for one in http:
            one.close()

        def settled() -> bool:
            now = client.model("digits").counts
            return sum(now.values()) - sum(before.values()) == 40 and client.status()["requests_held"] == 0

        eventually(settled, "all requests end")
        assert client.model("digits").counts["cancelled"] >= before["cancelled"]


def test_any_number_of_gateways_stand_before_one_cluster(served: Served, expected: np.ndarray) -> None:
    """Gateways hold no state: changes through one are seen through the other at once."""
    other = Served(served.cluster)
    with (
        triton_http.InferenceServerClient(served.http) as one,
        triton_http.InferenceServerClient(other.http) as two,
    ):
        one.unload_model("digits")
        with pytest.raises(InferenceServerException, match="unloaded"):
            two.infer("digits", [image_of(triton_http)])
        two.load_model("digits")
        answer = one.infer("digits", [image_of(triton_http)])
        assert np.allclose(answer.as_numpy("scores"), expected, atol=1e-5)
    assert other.gateway.stop() == 0, other.gateway.text


def test_an_unloaded_model_stays_so_over_a_restart_of_the_controller(served: Served) -> None:
    cluster = served.cluster
    http = Http(served.http_port)
    assert http.ask("POST", "/v2/repository/models/text/unload").status == 200
    assert cluster.controller.stop() == 0
    cluster.start_controller()

    def index() -> dict[str, str]:
        reply = http.ask("POST", "/v2/repository/index")
        return {row["name"]: row["state"] for row in reply.json} if reply.status == 200 else {}

    eventually(lambda: index() == {"digits": "READY", "text": "UNAVAILABLE"}, "the models are there again")
    assert http.ask("GET", "/v2/models").json == {"models": ["digits"]}
    assert http.ask("POST", "/v2/repository/models/text/load").status == 200
    eventually(lambda: index() == {"digits": "READY", "text": "READY"}, "the model is loaded")
    http.close()
