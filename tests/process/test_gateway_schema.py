"""Random requests made from the OpenAPI document by schemathesis: none is answered 500, or with an
undocumented status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.gateway import openapi
from clockwork.gateway.settings import StatusCodes
from clockwork.models import zoo
from tests.process.cluster import running_cluster
from tests.process.gateways import Http, running_gateway

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")

EXAMPLES = 12


def document() -> dict[str, Any]:
    """The gateway's document, with existing names among those that are tried."""
    body = openapi.document(False, StatusCodes.MESH)
    for path, operations in body["paths"].items():
        for parameter in operations.get("parameters", ()):
            # A model that is unloaded would make every later request a 404.
            models = ["digits", "nope"] if "repository" not in path else ["nope", "ä/b"]
            names = {"model": models, "version": ["1", "x"], "region": ["r", "ä/b"]}
            parameter["schema"] = {"enum": names[parameter["name"]]}
        # its binary form is tested elsewhere: here, nearly nothing would be valid
        if path.endswith("/infer"):
            del operations["post"]["requestBody"]["content"]["application/octet-stream"]
            operations["post"]["parameters"][0]["schema"] = {"enum": [0, 1, 60_000_000]}
            del operations["post"]["parameters"][1]
    schema = body["components"]["schemas"]["InferRequest"]
    schema["additionalProperties"] = False
    good = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
    wrong: list[dict[str, Any]] = [
        good | {"datatype": "INT64"}, good | {"shape": [1, 64]}, good | {"shape": [1 << 40] * 4}, good | {"name": "x"}
    ]  # fmt: skip
    inputs = schema["properties"]["inputs"]
    schema["properties"]["inputs"] = {
        "anyOf": [{"enum": [[good], [good, good], *([one] for one in wrong)]}, inputs]
    }
    raw = {"name": "scores", "parameters": {"binary_data": True}}
    schema["properties"]["outputs"] = {"enum": [[], [{"name": "scores"}], [raw], [{"name": "x"}]]}
    return body


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as cluster:
        with cluster.client() as client:
            client.register("digits", zoo.digits())
        with running_gateway(cluster.endpoint, grpc_port=-1) as gateway:
            http = Http(gateway.ports["http"])
            yield http
            http.close()


@pytest.fixture(scope="module")
def api(http: Http) -> Any:
    assert http.ask("GET", "/openapi.json").json == openapi.document(False, StatusCodes.MESH)
    schema = schemathesis.openapi.from_dict(document())
    schema.config.update(base_url=f"http://127.0.0.1:{http.connection.port}")
    return schema


@pytest.mark.slow
def test_every_operation_answers_as_documented(api: Any) -> None:
    """Not by schemathesis' plugin, which knows only older releases of pytest."""
    from schemathesis.specs.openapi import checks

    conform = [
        checks.response_schema_conformance, checks.content_type_conformance, checks.response_headers_conformance,
        checks.status_code_conformance, checks.allow_header_conformance,
    ]  # fmt: skip
    settings = hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    statuses: dict[str, set[int]] = {}
    for found in api.get_all_operations():
        operation = found.ok()
        statuses[operation.label] = set()

        def check(case: Any) -> None:
            response = case.call()
            statuses[case.operation.label].add(response.status_code)
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=conform)

        for mode in schemathesis.GenerationMode:
            case = operation.as_strategy(generation_mode=mode)
            # An operation without parameters has no wrong requests.
            unsatisfiable = (
                [hypothesis.errors.Unsatisfiable] if mode is not schemathesis.GenerationMode.POSITIVE else []
            )
            with contextlib.suppress(*unsatisfiable):
                settings(hypothesis.given(case=case)(check))()
    assert len(statuses) == sum(len({"get", "post"} & set(one)) for one in document()["paths"].values())
    assert {200, 400} <= statuses["POST /v2/models/{model}/infer"]
    unknown = ("repository/models", "{region}")  # these names do not exist
    assert all(200 in seen for label, seen in statuses.items() if not any(map(label.count, unknown))), (
        statuses
    )


def test_the_cluster_is_none_the_worse(http: Http) -> None:
    body = (Path(__file__).resolve().parents[2] / "examples" / "digits" / "7.json").read_bytes()
    assert http.ask("POST", "/v2/models/digits/infer", body).status == 200
