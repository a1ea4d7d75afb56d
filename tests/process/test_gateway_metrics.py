"""A gateway before a real controller: its metrics for Prometheus, and the spans of its requests."""

from __future__ import annotations

import contextlib
import http.server
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import parser

from clockwork.gateway.metrics import CONTENT_TYPE
from clockwork.protocol import inference_pb2 as pb
from clockwork.wire import messages
from tests.patience import PATIENCE_NS, PATIENCE_S
from tests.process.gateways import Http, running_gateway, tensor
from tests.process.peers import FakeWorker, RawClient, running_controller

ROW = struct.pack("<2f", 1.5, -2.5)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Cluster:
    """A controller, a worker that does its actions, a gateway."""

    def __init__(self, controller: Any, worker: FakeWorker, gateway: Any) -> None:
        self.controller = controller
        self.worker = worker
        self.gateway = gateway
        self.http = Http(gateway.ports["http"])
        self.metrics_http = Http(gateway.ports["metrics"])

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Have the worker answer one inference meanwhile."""
        thread = threading.Thread(target=self.worker.serve_one)
        thread.start()
        yield
        thread.join(PATIENCE_S)
        assert not thread.is_alive()

    def infer(self, **headers: str) -> Any:
        with self.serving():
            return self.http.infer({"inputs": [tensor(size=8)]}, ROW, **headers)

    def infer_grpc(self, *metadata: tuple[str, str]) -> Any:
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[ROW])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        with grpc.insecure_channel(f"127.0.0.1:{self.gateway.ports['grpc']}") as channel, self.serving():
            call = channel.unary_unary(
                INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
            )
            return call(request, timeout=PATIENCE_S, metadata=metadata)

    def samples(self, of: str = "") -> dict[tuple[str, ...], float]:
        """(name, label values in the order of their names) -> value."""
        reply = self.metrics_http.ask("GET", f"/metrics?of={of}" if of else "/metrics")
        assert reply.status == 200
        assert reply.headers["content-type"] == CONTENT_TYPE
        return {
            (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
            for family in parser.text_string_to_metric_families(reply.data.decode())
            for one in family.samples
        }


@contextlib.contextmanager
def cluster(data: Path, **settings: Any) -> Iterator[Cluster]:
    with (
        running_controller(data) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
        running_gateway(controller.client_endpoint, metrics_port=0, **settings) as gateway,
    ):
        with worker.preparing():
            assert type(client.register("m", b"model", request_id=1, slo_ns=PATIENCE_NS)) is messages.Reply
        one = Cluster(controller, worker, gateway)
        try:
            yield one
        finally:
            one.http.close()
            one.metrics_http.close()


def test_a_scrape_tells_of_the_cluster_and_of_the_gateway_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clockwork.gateway.metrics.METRICS_CACHE_NS", 0)
    with cluster(tmp_path) as one:
        assert one.infer().status == 200
        assert one.infer_grpc().model_version == "1"
        assert one.http.infer({"inputs": [tensor("INT8", size=2)]}, b"xx").status == 400
        assert one.http.ask("GET", "/nowhere").status == 404
        assert one.http.ask("GET", "/v2/models/m/stats").json["model_stats"][0]["inference_count"] == 2
        found = one.samples()
        assert found["clockwork_up",] == 1
        assert found["clockwork_requests_total", "m", "success", "1"] == 2
        assert found["clockwork_requests_total", "m", "invalid_input", "1"] == 1
        requests = "clockwork_gateway_requests_total"
        assert found[requests, "200", "infer", "http"] == 1
        assert found[requests, "400", "infer", "http"] == 1
        assert found[requests, "404", "other", "http"] == 1
        assert found[requests, "200", "statistics", "http"] == 1
        assert found[requests, "OK", "infer", "grpc"] == 1
        assert found["clockwork_gateway_request_duration_seconds_count", "infer", "http"] == 2
        assert found["clockwork_gateway_received_bytes_total", "http"] > 2 * len(ROW)
        assert found["clockwork_gateway_received_bytes_total", "grpc"] > len(ROW)
        assert found["clockwork_gateway_sent_bytes_total", "grpc"] == len(ROW)
        assert found["clockwork_gateway_requests_in_flight", "http"] == 0, "a scrape does not count itself"
        assert ("clockwork_up",) not in one.samples("gateway")
        assert not [key for key in one.samples("cluster") if key[0].startswith("clockwork_gateway")]


def test_a_client_that_goes_is_counted_as_gone(tmp_path: Path) -> None:
    with cluster(tmp_path) as one:
        body = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
        one.http.connection.request("POST", "/v2/models/m/infer", body)
        action, _ = one.worker.next_action()  # the action shows that the request has arrived
        assert one.samples("gateway")["clockwork_gateway_requests_in_flight", "http"] == 1, "and no scrape"
        one.http.close()
        deadline = time.monotonic() + PATIENCE_S
        while one.samples("gateway").get(("clockwork_gateway_abandoned_total", "http")) != 1:
            assert time.monotonic() < deadline
        assert type(action) is messages.Load


def test_the_port_for_metrics_serves_nothing_else(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    with cluster(tmp_path / "data", token_file=token) as one:
        ask = one.metrics_http.ask
        bearer = {"Authorization": "Bearer secret"}
        assert ask("GET", "/metrics").status == 401
        assert ask("GET", "/metrics", None, bearer).status == 200
        assert ask("GET", "/metrics?of=everything", None, bearer).status == 400
        assert ask("POST", "/metrics", b"", bearer).status == 405
        assert ask("GET", "/v2/models/m", None, bearer).status == 404
        assert ask("POST", "/v2/models/m/infer", b"{}", bearer).status == 404


def test_a_controller_that_is_gone_is_not_up_and_the_gateway_still_tells_of_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clockwork.gateway.process.bounds.METRICS_TIMEOUT_S", 0.2)
    with running_gateway("tcp://127.0.0.1:1", metrics_port=0) as gateway:
        http_ = Http(gateway.ports["metrics"])
        reply = http_.ask("GET", "/metrics")
        assert reply.status == 200
        assert b"\nclockwork_up 0\n" in reply.data
        assert b"clockwork_gateway_requests_in_flight" in reply.data
        http_.close()


class Collector(http.server.BaseHTTPRequestHandler):
    """Receives the spans of an OTLP exporter."""

    def do_POST(self) -> None:
        self.server.received.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_requests_leave_spans_from_the_gateway_to_the_device(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with cluster(tmp_path, otlp_endpoint=f"http://127.0.0.1:{server.server_port}") as one:
            assert one.infer(traceparent=TRACEPARENT).status == 200
            one.infer_grpc(("traceparent", TRACEPARENT))
            assert (
                one.http.infer({"inputs": [tensor("INT8", size=2)]}, b"xx", traceparent=TRACEPARENT).status
                == 400
            )
        server.shutdown()  # the gateway's end has sent the remaining spans
        thread.join()
        spans = [
            span
            for data in server.received  # type: ignore[attr-defined]
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    roots = [span for span in spans if span.parent_span_id.hex() == "00f067aa0ba902b7"]
    assert [span.name for span in roots] == ["infer m"] * 3
    names = sorted(span.name for span in spans if span not in roots)
    assert names == ["controller", "controller", "execute", "execute", "load", "queue", "queue"]
    codes = {
        value.value.string_value or value.value.int_value
        for span in roots
        for value in span.attributes
        if value.key in ("http.response.status_code", "rpc.grpc.status_code")
    }
    assert codes == {200, 400, 0}
    said = {value.key: value.value.string_value for span in roots for value in span.attributes}
    assert (said["http.request.method"], said["rpc.system"]) == ("POST", "grpc")
