"""The OpenAPI document has every status that the gateway's operations answer, and every status in it is
answered."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from clockwork.gateway import openapi
from clockwork.gateway.process import Gateway
from clockwork.gateway.settings import StatusCodes
from clockwork.wire.messages import InferRequest, Offer, Query, Reason, Status
from clockwork.wire.roles import HTTP, Right
from tests.patience import PATIENCE_S
from tests.process.fake_controller import FakeController, failing
from tests.process.gateways import BODY, TOKEN, Http, Reply, running_gateway

BEARING = {"Authorization": f"Bearer {TOKEN}"}
NAMES = {"{model}": "m", "{version}": "1", "{region}": "r"}

FAILURES: list[tuple[Status, dict[str, Any]]] = [
    (Status.UNAVAILABLE, {}),
    (Status.INTERNAL, {}),
    (Status.DEADLINE_MISSED, {}),  # answered with the status of a controller that does not answer in time
]
"""The failure of any query to the controller."""

OF_A_NAME: list[tuple[Status, dict[str, Any]]] = [(Status.MODEL_NOT_FOUND, {})]

OF_AN_INFERENCE: list[tuple[Status, dict[str, Any]]] = [
    (Status.INVALID_INPUT, {}), (Status.EXECUTION_FAILED, {}), (Status.FORBIDDEN, {}),
    *((Status.REFUSED, {"reason": str(reason)}) for reason in Reason),
]  # fmt: skip


class Gateways:
    """Gateways before one controller, each for some of the provocations."""

    def __init__(
        self, stack: ExitStack, controller: FakeController, token_file: Path, codes: StatusCodes
    ) -> None:
        def started(**settings: Any) -> Gateway:
            return stack.enter_context(
                running_gateway(
                    controller.endpoint, grpc_port=-1, token_file=token_file, status_codes=codes, **settings
                )
            )

        self.codes = codes
        self.controller = controller
        self.usual = started()
        self.full = started(requests_max=0)
        self.hasty = started(body_s=0.01)
        self.apart = started(shared_memory=False)


@pytest.fixture(scope="module", params=list(StatusCodes))
def gateways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(TOKEN)
    with ExitStack() as stack:
        controller = stack.enter_context(FakeController())
        yield Gateways(stack, controller, token_file, request.param)


def asked(
    gateway: Gateway, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Reply:
    http = Http(gateway.ports["http"])
    try:
        return http.ask(method, path, body, headers)
    finally:
        http.close()


def said(gateway: Gateway, text: str) -> int:
    """Return the status of the answer to bytes that are sent as they are."""
    with socket.create_connection(("127.0.0.1", gateway.ports["http"]), PATIENCE_S) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        return int(connection.makefile("rb").readline().split()[1])


def answers(gateways: Gateways, template: str, method: str) -> Iterator[tuple[str, int]]:
    """The requests made, with the statuses of their answers."""
    path, controller = template, gateways.controller
    for word, name in NAMES.items():
        path = path.replace(word, name)
    body = BODY if template.endswith("/infer") else {} if method == "POST" else None

    def of(gateway: Gateway, headers: dict[str, str] | None = None) -> int:
        return asked(gateway, method, path, body, BEARING | (headers or {})).status

    def begun(host: str, *more: str) -> str:
        return "\n".join((f"{method} {path} HTTP/1.1", host, f"Authorization: Bearer {TOKEN}", *more, "", ""))

    yield "a header without a colon", said(gateways.usual, begun("Host: localhost", "nonsense"))
    yield "more requests than may be under way", of(gateways.full)
    if HTTP[template] is not Right.OPEN:
        yield "no token", asked(gateways.usual, method, path, body).status
        yield "a page of another site", of(gateways.usual, {"Origin": "http://elsewhere"})
    if method == "POST":
        yield "an encoding that is not taken", of(gateways.usual, {"Content-Encoding": "br"})
        yield (
            "a body of a terabyte",
            said(gateways.usual, begun("Host: localhost", "Content-Length: 1000000000000")),
        )
        yield "a body that does not come", said(gateways.hasty, begun("Host: localhost", "Content-Length: 9"))
    if "shared" in template:
        yield "shared memory that is off", of(gateways.apart)
        yield "a region that is not there", of(gateways.usual)
    failures = FAILURES + (OF_A_NAME if "{model}" in template else [])
    for status, details in failures + (OF_AN_INFERENCE if template.endswith("/infer") else []):
        before = len(controller.received)
        controller.handle = failing(status, "as the test says", details)
        found = of(gateways.usual)
        if any(type(message) in (InferRequest, Query, Offer) for message in controller.received[before:]):
            yield f"{status.name} {details}", found


def operations() -> list[tuple[str, str]]:
    paths = openapi.document(True, StatusCodes.MESH)["paths"]
    return [
        (path, method.upper()) for path, found in paths.items() for method in found if method != "parameters"
    ]


@pytest.mark.parametrize(("template", "method"), operations())
def test_what_is_answered_is_documented_and_what_is_documented_is_answered(
    gateways: Gateways, template: str, method: str
) -> None:
    document = openapi.document(True, gateways.codes)
    documented = {int(status) for status in document["paths"][template][method.lower()]["responses"]} - {200}
    found = dict(answers(gateways, template, method))
    wrong = {what: status for what, status in found.items() if status not in {*documented, 200}}
    assert wrong == {}
    assert documented - set(found.values()) == set()
    assert (429 in documented) == (gateways.codes is StatusCodes.MESH)


def test_a_gateway_without_tokens_documents_none() -> None:
    document = openapi.document(False, StatusCodes.MESH)
    assert "401" not in document["components"]["responses"]
    assert all("401" not in one["get"]["responses"] for one in document["paths"].values() if "get" in one)


def test_the_gateway_sends_the_document_of_its_own_statuses(gateways: Gateways) -> None:
    reply = asked(gateways.usual, "GET", "/openapi.json", None, BEARING)
    assert reply.json == openapi.document(True, gateways.codes)
