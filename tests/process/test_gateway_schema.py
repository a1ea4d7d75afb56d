"""What the OpenAPI document offers, asked for at random by schemathesis: nothing answers 500, or what it does not say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import Http, running_gateway

from clockwork.gateway import openapi
from clockwork.gateway.tensors import STANDARD
from clockwork.models import zoo
from tests.process.cluster import running_cluster

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")

EXAMPLES = 25


def document() -> dict[str, Any]:
    """The gateway's, with names that mean something here among those that are tried."""
    body = openapi.document(with_token=False)
    for path, operations in body["paths"].items():
        for parameter in operations.get("parameters", ()):
            # A model that is unloaded would make all that comes after it a 404.
            names = ["digits", "nope", "digits@1", "ä/b"] if "repository" not in path else ["nope", "ä/b"]
            parameter["schema"] = {"enum": names if parameter["name"] == "model" else ["1", "2", "x"]}
    row = body["components"]["schemas"]["InferRequest"]["properties"]["inputs"]["items"]["properties"]
    row["name"] = {"enum": ["image", "", "x"]}
    row["datatype"] = {"enum": ["FP32", *STANDARD]}
    row["shape"] = {"enum": [[1, 1, 8, 8], [2, 1, 8, 8], [0, 1, 8, 8], [1], [], [1, 1 << 40]]}
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
    assert http.ask("GET", "/openapi.json").json == openapi.document(with_token=False)
    schema = schemathesis.openapi.from_dict(document())
    schema.config.update(base_url=f"http://127.0.0.1:{http.connection.port}")
    return schema


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
def test_every_operation_answers_as_documented(case: Any) -> None:
    response = case.call()
    assert response.status_code != 500, response.text
    declared = case.operation.definition.raw["responses"]
    assert str(response.status_code) in declared, (
        f"{case.method} {case.path}: {response.status_code} {response.text}"
    )
    case.validate_response(
        response, checks=[schemathesis.checks.CHECKS.get_one("response_schema_conformance")]
    )


def test_the_cluster_is_none_the_worse(http: Http) -> None:
    body = (Path(__file__).resolve().parents[2] / "examples" / "digits" / "7.json").read_bytes()
    assert http.ask("POST", "/v2/models/digits/infer", body).status == 200
