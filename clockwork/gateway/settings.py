"""A gateway's settings."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from clockwork import config
from clockwork.config.gateway import (
    BODY_S,
    CONNECTIONS_MAX,
    DRAIN_S,
    HEADERS_S,
    IDLE_S,
    POLL_S,
    REQUEST_BYTES_MAX,
    REQUESTS_BYTES_MAX,
    REQUESTS_MAX,
)
from clockwork.config.sources import CACHE_BYTES
from clockwork.sources.location import Location

HTTP_PORT = 8000
GRPC_PORT = 8001
METRICS_PORT = 8002
"""Triton's default ports, which its clients use."""

OFF = -1
"""The port of a server that is not to run."""


CONTROL_MODES = ("poll", "explicit", "none")
"""How a model repository is followed, as Triton's --model-control-mode."""


class StatusCodes(enum.StrEnum):
    """The statuses of refusals, over HTTP and gRPC."""

    MESH = "mesh"
    """As meshes, proxies and retry libraries read them: a request that is shed is 429 (RESOURCE_EXHAUSTED). 503 (UNAVAILABLE)
    means that nobody serves the model, and a mesh takes a server that answers it out of its pool."""

    TRITON = "triton"
    """As Triton has them: a request that is shed is 503 (UNAVAILABLE), too."""


@dataclasses.dataclass(slots=True)
class GatewaySettings:
    """How one gateway is started."""

    endpoint: str = config.CLIENT_ENDPOINT  # of the controller, for clients
    key: Path | None = None  # the file of this peer's CURVE keys
    host: str = "127.0.0.1"
    http_port: int = HTTP_PORT  # 0: any that is free; OFF: none
    grpc_port: int = GRPC_PORT
    metrics_port: int = METRICS_PORT
    tls_cert: Path | None = None
    tls_key: Path | None = None
    operator_key: Path | None = None  # for calls that change what is served; None: `key` is used
    token_file: Path | None = None  # for clients
    operator_token_file: Path | None = (
        None  # for calls that change what is served; None: `token_file` is enough
    )
    insecure: bool = False
    allowed_hosts: tuple[
        str, ...
    ] = ()  # HOST[:PORT] of names under which clients reach it, such as a proxy's
    shared_memory: bool | None = (
        None  # whether callers on this machine may use it; None: if `host` is loopback
    )
    status_codes: StatusCodes = StatusCodes.MESH
    otlp_endpoint: str = ""  # where spans of requests go; "": as OpenTelemetry's variables say, else nowhere
    repositories: tuple[Path | Location, ...] = ()  # Triton model repositories
    cache: Path | None = None  # where files of remote ones are kept; None: in the data directory
    cache_bytes: int = CACHE_BYTES
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
