"""What a gateway is told at start, and its bounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from clockwork import config

HTTP_PORT = 8000
GRPC_PORT = 8001
METRICS_PORT = 8002
"""Where clients of Triton look."""

OFF = -1
"""The port of a server that is not to run."""

REQUEST_BYTES_MAX = 64 << 20
"""The largest request, unless told otherwise."""

JSON_BYTES_MAX = 8 << 20
"""The largest JSON, a binary request's header included: it is read on the loop, and all others wait meanwhile.
What is larger travels as binary data."""

INFLATE_RATIO_MAX = 256
"""A compressed request may become so many times as large. zlib's own bound is 1,032."""

INFLATED_BYTES_FREE = 1 << 20
"""Up to this much, whatever the ratio."""

REQUESTS_MAX = 4_096
"""Requests under way in one gateway; one more is refused as overloaded. A bound, not a queue: all of them are
at the controller, or on their way."""

REQUESTS_BYTES_MAX = 1 << 30
"""Bytes of requests under way; one more is refused as overloaded."""

CONNECTIONS_MAX = 1_024
"""HTTP connections; one more closes the one that has been idle longest, or itself if none is."""

IDLE_S = 75.0
"""An HTTP connection is closed after so long without a request."""

HEADERS_S = 10.0
"""How long a client may take for the headers of a request, from their first byte on."""

BODY_S = 30.0
"""And for its body."""

HEADER_BYTES_MAX = 16 << 10
"""Of one HTTP header, and of the request's line."""

STREAMS_MAX = 1_024
"""Calls under way on one gRPC connection."""

STREAM_WINDOW = 64
"""Requests under way on one stream; the next one is read when the oldest has been answered."""

GRPC_METADATA_BYTES_MAX = 16 << 10

GRPC_IDLE_S = 600.0
"""A gRPC connection is closed after so long without a call."""

ANSWER_LIMIT_NS = 300_000_000_000
"""How long the gateway waits for an answer to a request that has no deadline."""

GRACE_NS = 2_000_000_000
"""How long it waits beyond a request's deadline: the controller answers at the latest then, and knows why."""

QUERY_LIMIT_S = 10.0
"""How long it waits for what a query asks of the controller."""

READY_LIMIT_S = 1.0
"""And for whether the cluster is ready: who asks that, asks again soon."""

LOAD_LIMIT_S = 600.0
"""How long a model may take to be loaded or unloaded by the repository's calls."""

DRAIN_S = 10.0
"""How long requests under way may take when the gateway has been told to end."""

TOKEN_BYTES_MAX = 4_096

CONTROL_MODES = ("poll", "explicit", "none")
"""How a model repository is followed, as Triton's --model-control-mode."""

POLL_S = 5.0
"""Between two looks at a model repository, unless told otherwise."""


@dataclasses.dataclass(slots=True)
class GatewaySettings:
    endpoint: str = config.CLIENT_ENDPOINT  # of the controller, for clients
    key: Path | None = None  # the file of this peer's CURVE keys
    host: str = "127.0.0.1"
    http_port: int = HTTP_PORT  # 0: any that is free; OFF: none
    grpc_port: int = GRPC_PORT
    metrics_port: int = METRICS_PORT
    tls_cert: Path | None = None
    tls_key: Path | None = None
    operator_key: Path | None = None  # for what changes what is served; none: `key` is used
    token_file: Path | None = None  # for clients
    operator_token_file: Path | None = (
        None  # for whoever may change what is served; none: `token_file` is enough
    )
    insecure: bool = False
    otlp_endpoint: str = ""  # where spans of requests go; "": as OpenTelemetry's variables say, else nowhere
    repositories: tuple[Path, ...] = ()  # Triton model repositories
    control_mode: str = CONTROL_MODES[0]
    poll_s: float = POLL_S
    load_models: tuple[str, ...] = ()  # at start, in explicit mode; "*": all
    request_bytes_max: int = REQUEST_BYTES_MAX
    requests_max: int = REQUESTS_MAX
    requests_bytes_max: int = REQUESTS_BYTES_MAX
    connections_max: int = CONNECTIONS_MAX
    headers_s: float = HEADERS_S
    body_s: float = BODY_S
    idle_s: float = IDLE_S
    drain_s: float = DRAIN_S
