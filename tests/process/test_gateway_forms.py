"""Forms of HTTP that proxies and old clients send, and that a server must accept as well as the usual
ones."""

from __future__ import annotations

import contextlib
import gzip
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from clockwork.gateway.metrics_http import takes_gzip
from clockwork.gateway.process import Gateway
from clockwork.gateway.security import bearer
from clockwork.protocol import inference_pb2 as pb
from tests.patience import PATIENCE_S
from tests.process.fake_controller import FakeController
from tests.process.gateways import TOKEN, Http, method_of, running_gateway


@pytest.fixture(scope="module")
def gateway(controller: FakeController, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(TOKEN)
    with running_gateway(controller.endpoint, metrics_port=0, token_file=token_file) as gateway:
        yield gateway


def status_of(gateway: Gateway, target: str, *headers: str, port: str = "http") -> int:
    """Return the status of the answer to a GET whose lines are sent as they are."""
    lines = (f"GET {target} HTTP/1.1", *headers, "Connection: close", "", "")
    with socket.create_connection(("127.0.0.1", gateway.ports[port]), PATIENCE_S) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.makefile("rb").readline().split()[1])


BEARING = f"Authorization: Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/v2", 200),
        ("HTTP://127.0.0.1:8000/v2?x=http://elsewhere/", 200),
        ("https://localhost:443/v2/models/m", 200),
        ("http://localhost/v2/models/a%2Fb", 200),
        ("http://localhost", 404),
        ("http://localhost?/v2", 404),
        ("http://elsewhere/v2", 403),  # an absolute URL counts, whatever Host says
        ("http://localhost@elsewhere/v2", 403),
        ("ftp://localhost/v2", 404),
    ],
)
def test_the_absolute_form_is_taken_and_its_name_is_the_host(
    gateway: Gateway, target: str, status: int
) -> None:
    assert status_of(gateway, target, "Host: localhost", BEARING) == status


def test_a_page_of_another_site_is_none_the_less_one(gateway: Gateway) -> None:
    headers = ("Host: elsewhere", "Origin: http://elsewhere", BEARING)
    assert status_of(gateway, "http://localhost/v2", *headers) == 403
    assert status_of(gateway, "/v2", "Host: elsewhere", BEARING) == 403


def test_metrics_are_asked_for_in_the_absolute_form(gateway: Gateway) -> None:
    assert (
        status_of(gateway, "http://localhost/metrics?of=gateway", "Host: x", BEARING, port="metrics") == 200
    )


@pytest.mark.parametrize(
    "value", [f"Bearer   {TOKEN}", f"  bearer {TOKEN}  ", f"\tBEARER \t{TOKEN}\t", f"Bearer {TOKEN}"]
)
def test_spaces_around_a_token_mean_nothing(gateway: Gateway, value: str) -> None:
    assert bearer(value.encode()) == TOKEN.encode()
    assert status_of(gateway, "/v2", "Host: localhost", f"Authorization: {value}") == 200
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
        metadata = [("authorization", value.replace("\t", " "))]
        assert (
            method_of(channel, "ServerMetadata")(pb.ServerMetadataRequest(), metadata=metadata).name
            == "clockwork"
        )


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", f"Bearer{TOKEN}", f"Basic {TOKEN}", f"Bearer x {TOKEN}", TOKEN]
)
def test_what_bears_no_token_is_not_let_in(gateway: Gateway, value: str) -> None:
    assert bearer(value.encode()) != TOKEN.encode()
    assert status_of(gateway, "/v2", "Host: localhost", f"Authorization: {value}") == 401


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ("gzip", True), ("gzip;q=1.0,*;q=0.1", True), ("br, X-GZIP ; q=0.5", True), ("deflate, GZip", True),
        ("", False), ("identity", False), ("gzip;q=0", False), ("gzip; q=0.000, br", False), ("notgzip", False),
        ("*", False),
    ],
)  # fmt: skip
def test_gzip_is_for_those_who_name_it(accepted: str, takes: bool) -> None:
    assert takes_gzip(accepted) is takes


@pytest.mark.parametrize("part", ["", "?of=cluster", "?of=gateway"])
def test_metrics_are_compressed_for_those_who_take_it(gateway: Gateway, part: str) -> None:
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    with contextlib.closing(Http(gateway.ports["metrics"])) as http:
        http.ask("GET", "/metrics", None, bearing)  # later pages count requests for pages, too
        for _ in range(2):  # the second is answered from the cache
            packed = http.ask("GET", f"/metrics{part}", None, bearing | {"Accept-Encoding": "gzip"})
            assert (packed.status, packed.headers["content-encoding"]) == (200, "gzip")
            plain = http.ask("GET", f"/metrics{part}", None, bearing)
            assert "content-encoding" not in plain.headers
            assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
            assert packed.headers["content-type"] == plain.headers["content-type"]
            names = {line.split(b" ")[0] for line in gzip.decompress(packed.data).splitlines()}
            assert names == {line.split(b" ")[0] for line in plain.data.splitlines()}
            assert len(packed.data) < len(plain.data)


def test_a_long_page_is_whole(
    controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clockwork.gateway import metrics

    text = b"".join(b'clockwork_models{state="%d"} 1\n' % number for number in range(200_000))
    monkeypatch.setattr(metrics, "render", lambda body: text)
    with (
        running_gateway(controller.endpoint, http_port=-1, grpc_port=-1, metrics_port=0) as gateway,
        contextlib.closing(Http(gateway.ports["metrics"])) as http,
    ):
        packed = http.ask("GET", "/metrics?of=cluster", None, {"Accept-Encoding": "gzip"})
        assert gzip.decompress(packed.data) == text
