"""OpenTelemetry spans of requests, from the gateway to the device.

The gateway makes a request's span, in the trace that its client names (W3C traceparent, in a header or in
gRPC metadata). The controller and the worker know nothing of traces, so the gateway makes the span's children
from the times in the answer. Their clocks differ from the gateway's, so the children are placed by the
gateway's timestamps: the controller's span is in the middle of the gateway's wait, as if both directions took
equally long. Within it come waiting for a load, the queue, and the device (copy in, execute, copy out),
although a request may have queued before it waited for its load.

Tracing is off unless start_tracing() is given an endpoint, or the environment names one
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT). The SDK reads the rest of OTEL_* itself:
service name, headers, sampler.

    tracing = start_tracing(endpoint)  # None: off
    answer, frames = await tracing.followed("http", headers, model, ask)
    tracing.close()                    # exports the remaining spans
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clockwork import config
from clockwork.client.calls import AnswerFrames
from clockwork.config import gateway as bounds
from clockwork.config.gateway import CLOSE_MS
from clockwork.errors import Cancelled, ClockworkError, ConfigError
from clockwork.gateway.errors import tell
from clockwork.gateway.settings import StatusCodes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "clockwork-gateway"  # The gateway's service name, unless OTEL_SERVICE_NAME is set

Carrier = Mapping[str, str] | Iterable[tuple[str, str | bytes]]  # HTTP headers or gRPC metadata

_ATTRIBUTES: Mapping[str, dict[str, str]] = {
    "http": {"http.request.method": "POST"},
    "grpc": {"rpc.system": "grpc", "rpc.service": "inference.GRPCInferenceService"},
}
"""By protocol: the attributes that OpenTelemetry's conventions require for an inference."""

_GRPC_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""gRPC's statuses, by number."""

TRACE_KEYS = ("traceparent", "tracestate", "baggage")


class RequestSpan:
    """The span of one request. For one thread."""

    __slots__ = ("_asked_ns", "_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Any) -> None:
        self._tracing = tracing
        self._span = span
        self._asked_ns = 0

    @property
    def is_recording(self) -> bool:
        """Whether the span was sampled; otherwise nothing is recorded."""
        return bool(self._span.is_recording())

    def asked(self) -> None:
        """Note the time at which the request leaves for the controller."""
        self._asked_ns = time.time_ns()

    def answered(self, times: Sequence[int], version: int) -> None:
        """Record a successful answer. times: the field of messages.Answer."""
        if not self.is_recording:
            return
        self._span.set_attribute("clockwork.model.version", str(version))
        if self._asked_ns and len(times) >= 6:
            self._tracing.add_phases(self._span, self._asked_ns, time.time_ns(), times)

    def end(self, code: int | str, error: BaseException | None = None) -> None:
        """End the span. code: the answer's HTTP status, or the name of its gRPC code."""
        from opentelemetry.trace import Status, StatusCode

        if self.is_recording:
            if isinstance(code, int):
                self._span.set_attribute("http.response.status_code", code)
            else:
                self._span.set_attribute("rpc.grpc.status_code", _GRPC_CODES.index(code))
            if error is not None:
                self._span.set_attribute("error.type", type(error).__name__)
                if reason := getattr(error, "reason", ""):
                    self._span.set_attribute("clockwork.refused.reason", str(reason))
                self._span.set_status(Status(StatusCode.ERROR, str(error)[:200]))
        self._span.end()


class Tracing:
    """Makes spans, which are exported in the background from a bounded queue; spans beyond the bound are
    dropped."""

    def __init__(self, provider: TracerProvider, codes: StatusCodes) -> None:
        from opentelemetry.propagate import get_global_textmap

        self._provider = provider
        self._codes = codes
        self._tracer = provider.get_tracer("clockwork.gateway", config.VERSION)
        self._propagator = get_global_textmap()  # set by OTEL_PROPAGATORS; W3C's by default

    def begin(self, protocol: str, method: str, carrier: Carrier, model: str = "") -> RequestSpan:
        """Begin the span of a request.

        protocol: http or grpc. carrier: the headers or the invocation metadata.
        """
        from opentelemetry.trace import SpanKind

        pairs = carrier.items() if isinstance(carrier, Mapping) else carrier
        found = {
            key.lower(): value
            for key, value in pairs
            if key.lower() in TRACE_KEYS and isinstance(value, str)
        }  # fmt: skip
        span = self._tracer.start_span(
            f"{method} {model}".strip(),
            self._propagator.extract(found) if found else None,
            SpanKind.SERVER,
            _ATTRIBUTES[protocol] | ({"clockwork.model": model} if model else {}),
        )
        return RequestSpan(self, span)

    async def followed(
        self, protocol: str, carrier: Carrier, model: str, ask: Callable[[], Awaitable[AnswerFrames]]
    ) -> AnswerFrames:
        """Await ask() within a span, and return its Answer and frames."""
        span = self.begin(protocol, "infer", carrier, model)
        code: int | str = 200 if protocol == "http" else "OK"
        failure: BaseException | None = None
        try:
            span.asked()
            received = await ask()
            span.answered(received[0].times, received[0].model_version)
        except BaseException as error:
            failure = error
            told = tell(
                error if isinstance(error, ClockworkError) else Cancelled("the client went away"), self._codes
            )
            code = told.status if protocol == "http" else told.grpc
            raise
        finally:
            span.end(code, failure)
        return received

    def add_phases(self, span: Any, asked_ns: int, answered_ns: int, times: Sequence[int]) -> None:
        """Add child spans for the phases of controller and device. times: the field of messages.Answer."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        queue, load, device, total, copy_in, copy_out = times[:6]
        total = min(total, answered_ns - asked_ns)
        begun = asked_ns + (answered_ns - asked_ns - total) // 2
        whole = self._tracer.start_span(
            "controller", set_span_in_context(span), SpanKind.CLIENT, start_time=begun
        )
        inside = set_span_in_context(whole)
        at, limit = begun, begun + total
        for name, took, shows in (
            ("load", load, load > 0),
            ("queue", queue, True),
            ("copy in", copy_in, copy_in > 0),
            ("execute", device - copy_in - copy_out, True),
            ("copy out", copy_out, copy_out > 0),
        ):
            if shows:
                part = self._tracer.start_span(name, inside, start_time=min(at, limit))
                at += max(took, 0)
                part.end(min(at, limit))
        whole.end(limit)

    def close(self) -> None:
        """Export the remaining spans, for a bounded time."""
        self._provider.force_flush(CLOSE_MS)
        self._provider.shutdown()


def start_tracing(
    endpoint: str | None = None, exporter: SpanExporter | None = None, codes: StatusCodes = StatusCodes.MESH
) -> Tracing | None:
    """Return tracing to an OTLP endpoint over HTTP; None if neither the caller nor the environment names one.

    endpoint: such as http://localhost:4318; /v1/traces is added to it. exporter: replaces OTLP's, for tests.
    codes: the choice of statuses for refusals. Raises ConfigError where the packages are missing.
    """
    if endpoint is None and exporter is None and not bounds.wants_traces():
        return None
    if bounds.disables_traces():
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        if exporter is not None:
            processor: Any = SimpleSpanProcessor(exporter)
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            address = (
                None if endpoint is None else endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
            )
            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=address))
    except ImportError as error:
        raise ConfigError(f"traces need pip install 'clockwork-serving[otel]': {error}") from None
    resource = Resource.create(
        {"service.version": config.VERSION} | ({} if bounds.names_service() else {"service.name": SERVICE})
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor)
    return Tracing(provider, codes)
