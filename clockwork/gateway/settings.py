"""A gateway's settings."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from clockwork import config
from clockwork.config import gateway as bounds
from clockwork.config.sources import CACHE_BYTES
from clockwork.sources.location import Location

HTTP_PORT = 8000
GRPC_PORT = 8001
METRICS_PORT = 8002  # Triton's default ports, which its clients use
OFF = -1  # In place of a port: the server does not run


CONTROL_MODES = ("poll", "explicit", "none")
"""Modes of following a model repository, as in Triton's --model-control-mode."""


class StatusCodes(enum.StrEnum):
    """Choices of statuses for refusals, over HTTP and gRPC."""

    MESH = "mesh"
    """For meshes, proxies and retry libraries: a request that is shed gets 429 (RESOURCE_EXHAUSTED). 503
    (UNAVAILABLE) means that no worker serves the model; a mesh takes a server that sends 503 out of its pool.
    """

    TRITON = "triton"
    """As in Triton: a request that is shed also gets 503 (UNAVAILABLE)."""


@dataclasses.dataclass(slots=True)
class GatewaySettings:
    """The settings with which a gateway starts."""

    endpoint: str = config.CLIENT_ENDPOINT  # the controller's endpoint for clients
    key: Path | None = None  # file of the gateway's CURVE keys
    host: str = "127.0.0.1"
    http_port: int = HTTP_PORT  # port; 0: any free port; OFF: no server
    grpc_port: int = GRPC_PORT
    metrics_port: int = METRICS_PORT
    tls_cert: Path | None = None
    tls_key: Path | None = None
    operator_key: Path | None = None  # key file for changes of the served models; None: `key` is used
    token_file: Path | None = None  # file of the clients' token
    # token file for changes of the served models; None: `token_file` is enough
    operator_token_file: Path | None = None
    insecure: bool = False
    # HOST[:PORT] under which clients reach the gateway, such as a proxy's
    allowed_hosts: tuple[str, ...] = ()
    behind_proxy: bool = False  # whether only proxies connect, so that gRPC may keep a table for each
    # whether local callers may use shared memory; None: if `host` is loopback
    shared_memory: bool | None = None
    status_codes: StatusCodes = StatusCodes.MESH
    otlp_endpoint: str = ""  # OTLP endpoint for spans; "": from OpenTelemetry's variables, if they are set
    repositories: tuple[Path | Location, ...] = ()  # Triton model repositories
    cache: Path | None = None  # folder for files of remote repositories; None: in the data directory
    cache_bytes: int = CACHE_BYTES
    control_mode: str = CONTROL_MODES[0]
    poll_s: float = bounds.POLL_S
    load_models: tuple[str, ...] = ()  # models to load at start, in explicit mode; "*": all
    request_bytes_max: int = bounds.REQUEST_BYTES_MAX
    requests_max: int = bounds.REQUESTS_MAX
    requests_bytes_max: int = bounds.REQUESTS_BYTES_MAX
    connections_max: int = bounds.CONNECTIONS_MAX
    headers_s: float = bounds.HEADERS_S
    body_s: float = bounds.BODY_S
    idle_s: float = bounds.IDLE_S
    drain_s: float = bounds.DRAIN_S
    notice_s: float = bounds.NOTICE_S
