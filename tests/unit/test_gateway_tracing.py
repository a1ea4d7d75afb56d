"""Spans: they continue the client's trace, children lie inside their parents, and without an exporter none
are made."""

from __future__ import annotations

import http.server
import itertools
import threading
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from clockwork.config.gateway import OTLP_ENDPOINTS
from clockwork.errors import Refused
from clockwork.gateway.tracing import SERVICE, Tracing, start_tracing
from clockwork.wire.messages import Reason

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"

TIMES = [2_000_000, 5_000_000, 3_200_000, 10_300_000, 100_000, 50_000]
"""Durations as in messages.Answer: queue, load, device, total, copy in, copy out."""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OTLP_ENDPOINTS, "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


def traced() -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing = start_tracing(exporter=exporter)
    assert tracing is not None
    return tracing, exporter


def spans_of(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return {one.name: one for one in exporter.get_finished_spans()}


def test_a_request_is_followed_from_the_gateway_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1_000_000_000_000, 1_000)  # nanoseconds; each read advances the clock
    monkeypatch.setattr("clockwork.gateway.tracing.time", SimpleNamespace(time_ns=lambda: next(clock)))
    monkeypatch.setattr("opentelemetry.sdk.trace.time_ns", lambda: next(clock))
    tracing, exporter = traced()
    span = tracing.begin("http", "infer", {"Traceparent": TRACEPARENT, "Accept": "*/*"}, "resnet")
    span.asked()
    clock = itertools.count(next(clock) + 20_000_000, 1_000)  # time for the controller and the device
    span.answered(TIMES, 3)
    span.end(200)
    spans = spans_of(exporter)
    assert list(spans) == ["load", "queue", "copy in", "execute", "copy out", "controller", "infer resnet"]
    root, whole = spans["infer resnet"], spans["controller"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.kind is SpanKind.SERVER
    assert root.attributes["clockwork.model.version"] == "3"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["http.request.method"] == "POST"
    assert not any(name.startswith("rpc.") for name in root.attributes)
    assert root.resource.attributes["service.name"] == SERVICE
    assert whole.parent.span_id == root.context.span_id
    assert whole.end_time - whole.start_time == TIMES[3]
    assert root.start_time <= whole.start_time < whole.end_time <= root.end_time
    took = {}
    at = whole.start_time
    for name in ("load", "queue", "copy in", "execute", "copy out"):
        one = spans[name]
        assert one.parent.span_id == whole.context.span_id
        assert one.context.trace_id == root.context.trace_id
        assert one.start_time == at, "one follows the other"
        at = one.end_time
        took[name] = one.end_time - one.start_time
    assert at <= whole.end_time
    assert took == {
        "load": 5_000_000, "queue": 2_000_000, "copy in": 100_000, "execute": 3_050_000, "copy out": 50_000,
    }  # fmt: skip
    tracing.close()


def test_what_did_not_happen_has_no_span_and_none_lies_outside_its_parent() -> None:
    """A controller that reports a longer time than the gateway waited: its clock, or its durations, are
    wrong."""
    tracing, exporter = traced()
    span = tracing.begin("grpc", "ModelInfer", (("traceparent", TRACEPARENT), ("x-bin", b"\x00")), "m")
    span.asked()
    span.answered([10**9, 0, 10**9, 3 * 10**9, 0, 0], 1)
    span.end("OK")
    spans = spans_of(exporter)
    assert set(spans) == {"queue", "execute", "controller", "ModelInfer m"}
    root = spans["ModelInfer m"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.attributes["rpc.grpc.status_code"] == 0
    assert (root.attributes["rpc.system"], "http.request.method" in root.attributes) == ("grpc", False)
    for one in spans.values():
        assert root.start_time <= one.start_time <= one.end_time <= root.end_time
    tracing.close()


def test_a_refusal_says_why() -> None:
    tracing, exporter = traced()
    span = tracing.begin("http", "infer", {}, "m")
    span.asked()
    span.end(503, Refused("too late", str(Reason.DEADLINE)))
    (root,) = exporter.get_finished_spans()
    assert root.parent is None
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["clockwork.refused.reason"] == "deadline"
    assert root.attributes["error.type"] == "Refused"
    tracing.close()


def test_the_status_of_grpc_is_its_number() -> None:
    import grpc

    for code in grpc.StatusCode:
        tracing, exporter = traced()
        tracing.begin("grpc", "infer", {}).end(code.name)
        [root] = exporter.get_finished_spans()
        assert root.attributes["rpc.grpc.status_code"] == code.value[0]


def test_a_trace_that_its_client_does_not_record_is_not_recorded_here() -> None:
    tracing, exporter = traced()
    span = tracing.begin("http", "infer", {"traceparent": TRACEPARENT[:-1] + "0"}, "m")
    assert not span.is_recording
    span.asked()
    span.answered(TIMES, 1)
    span.end(200)
    assert not exporter.get_finished_spans()
    tracing.close()


@pytest.mark.parametrize("carrier", [{"traceparent": "nonsense"}, {"traceparent": ""}, {}, ()])
def test_a_trace_that_is_none_begins_a_new_one(carrier: Any) -> None:
    tracing, exporter = traced()
    tracing.begin("http", "infer", carrier).end(200)
    (root,) = exporter.get_finished_spans()
    assert root.parent is None
    assert root.name == "infer"
    tracing.close()


def test_spans_are_sent_over_otlp() -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Errors of the exporter are silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        tracing = start_tracing(f"http://127.0.0.1:{server.server_port}/")
        assert tracing is not None
        tracing.begin("http", "infer", {"traceparent": TRACEPARENT}, "m").end(200)
        tracing.close()  # sends the remaining spans
        server.shutdown()
        thread.join()
    ((path, data),) = received
    assert path == "/v1/traces"
    sent = ExportTraceServiceRequest.FromString(data).resource_spans[0].scope_spans[0].spans[0]
    assert (sent.name, sent.trace_id.hex(), sent.parent_span_id.hex()) == ("infer m", TRACE, PARENT)


def test_it_is_off_unless_somebody_says_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_tracing() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = start_tracing()
    assert tracing is not None
    tracing.close()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert start_tracing() is None
    assert start_tracing("http://127.0.0.1:9") is None
