"""Access control: the roles that may use each port, message and query, and the rights of gateway calls.

Between the processes of a cluster a role belongs to a key (``clockwork keys new``), and the controller looks
it up by the public key of a connection. Callers of a gateway have no keys: there a right belongs to a token.
Pure data: controller/peers/access.py and gateway/security.py enforce it, and a test tries every entry with
every role. Without keys, on loopback or with --insecure, there are no roles and everything is allowed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from clockwork.wire.messages import (
    BundleRefused,
    BundleWanted,
    Bye,
    Cancel,
    Chunk,
    ClientHello,
    ClockChanged,
    DeviceFault,
    Fetch,
    Goodbye,
    HandOver,
    Heartbeat,
    InferRequest,
    NotStored,
    Offer,
    Pong,
    Prepared,
    Promote,
    Query,
    Register,
    ReportSource,
    Result,
    Rollback,
    Route,
    StillResident,
    TimeNeeded,
    Unregister,
    UploadChunk,
    WorkerHello,
)


class Role(enum.StrEnum):
    """The role of a key. The controller's own key has none: all others verify it."""

    CLIENT = "client"  # sends requests and reads descriptions of models
    WORKER = "worker"  # executes; sees every model and every input
    OPERATOR = "operator"  # a client that also changes models and their routes
    GATEWAY = "gateway"  # a client for many others, which also gathers metrics


class ControllerSocket(enum.StrEnum):
    """The controller's sockets; the value is the ZAP domain of each."""

    CLIENTS = "clockwork.clients"
    WORKERS = "clockwork.workers"
    EVENTS = "clockwork.events"


ANY_ROLE = frozenset(Role)  # The roles of a key from before there were roles

_ASKS = frozenset({Role.CLIENT, Role.OPERATOR, Role.GATEWAY})
_OPERATES = frozenset({Role.OPERATOR})
_WORKS = frozenset({Role.WORKER})

PORTS: Mapping[ControllerSocket, frozenset[Role]] = {
    ControllerSocket.CLIENTS: _ASKS,
    ControllerSocket.WORKERS: _WORKS,
    ControllerSocket.EVENTS: _OPERATES,
}
"""The roles that may connect to each port."""

MESSAGES: Mapping[type, frozenset[Role]] = {
    ClientHello: _ASKS,
    InferRequest: _ASKS,
    Cancel: _ASKS,
    Query: _ASKS,  # QUERIES restricts it further
    Bye: _ASKS,
    Register: _OPERATES,
    UploadChunk: _OPERATES,
    Unregister: _OPERATES,
    Offer: _OPERATES,
    Route: _OPERATES,
    Promote: _OPERATES,
    Rollback: _OPERATES,
    ReportSource: _OPERATES,
    HandOver: _OPERATES,
    WorkerHello: _WORKS,
    Heartbeat: _WORKS,
    Pong: _WORKS,
    Result: _WORKS,
    Fetch: _WORKS,
    Chunk: _WORKS,
    Prepared: _WORKS,
    BundleWanted: _WORKS,
    BundleRefused: _WORKS,
    NotStored: _WORKS,
    StillResident: _WORKS,
    DeviceFault: _WORKS,
    ClockChanged: _WORKS,
    TimeNeeded: _WORKS,
    Goodbye: _WORKS,
}
"""The roles that may send each message that the controller takes. A message that changes what other clients
see is an operator's."""

QUERIES: Mapping[str, frozenset[Role]] = {
    "readiness": _ASKS,  # allowed for probes
    "status": _ASKS,  # allowed for probes and load tests
    "models": _ASKS,
    "model": _ASKS,
    "cores": _OPERATES,  # asked by a launcher
    # Gathering them blocks the loop, which not every client may cause.
    "metrics": frozenset({Role.OPERATOR, Role.GATEWAY}),
    "recorder": _OPERATES,  # reveals all requests, and writes a file to the controller's disk
}


DEEDS: Mapping[type | str, str] = {
    Register: "registering models",
    UploadChunk: "registering models",
    Unregister: "removing models",
    Offer: "loading and unloading models",
    Route: "dividing a model's traffic",
    Promote: "dividing a model's traffic",
    Rollback: "dividing a model's traffic",
    ReportSource: "reporting a source of models",
    HandOver: "handing over to a standby",
    "metrics": "reading metrics",
    "cores": "asking for the loads of cores",
    "recorder": "reading the flight recorder",
}
"""Names for people of the messages and queries that some roles at their port may not send."""


class Right(enum.StrEnum):
    """The right that a gateway's call needs of its caller's token."""

    OPEN = "open"  # needs no token: health checks of load balancers
    INFER = "infer"  # requests that change nothing
    OPERATE = "operate"  # requests that change the served models


HTTP: Mapping[str, Right] = {
    "/v2/health/live": Right.OPEN,
    "/v2/health/ready": Right.OPEN,
    "/v2": Right.INFER,
    "/v2/models": Right.INFER,
    "/v2/models/stats": Right.INFER,
    "/v2/models/{model}": Right.INFER,
    "/v2/models/{model}/ready": Right.INFER,
    "/v2/models/{model}/config": Right.INFER,
    "/v2/models/{model}/stats": Right.INFER,
    "/v2/models/{model}/infer": Right.INFER,
    "/v2/models/{model}/versions/{version}": Right.INFER,
    "/v2/models/{model}/versions/{version}/ready": Right.INFER,
    "/v2/models/{model}/versions/{version}/config": Right.INFER,
    "/v2/models/{model}/versions/{version}/stats": Right.INFER,
    "/v2/models/{model}/versions/{version}/infer": Right.INFER,
    "/v2/systemsharedmemory/status": Right.INFER,
    "/v2/systemsharedmemory/unregister": Right.INFER,
    "/v2/systemsharedmemory/region/{region}/status": Right.INFER,
    "/v2/systemsharedmemory/region/{region}/register": Right.INFER,
    "/v2/systemsharedmemory/region/{region}/unregister": Right.INFER,
    "/v2/cudasharedmemory/status": Right.INFER,
    "/v2/cudasharedmemory/unregister": Right.INFER,
    "/v2/cudasharedmemory/region/{region}/status": Right.INFER,
    "/v2/cudasharedmemory/region/{region}/register": Right.INFER,
    "/v2/cudasharedmemory/region/{region}/unregister": Right.INFER,
    "/v2/repository/index": Right.INFER,
    "/v2/repository/models/{model}/load": Right.OPERATE,
    "/v2/repository/models/{model}/unload": Right.OPERATE,
    "/openapi.json": Right.INFER,
    "/metrics": Right.INFER,  # on the port for metrics
}
"""The right that each path of a gateway needs."""

GRPC: Mapping[str, Right] = {
    "ServerLive": Right.OPEN,
    "ServerReady": Right.OPEN,
    "ModelReady": Right.INFER,
    "ServerMetadata": Right.INFER,
    "ModelMetadata": Right.INFER,
    "ModelInfer": Right.INFER,
    "ModelStreamInfer": Right.INFER,
    "ModelConfig": Right.INFER,
    "ModelStatistics": Right.INFER,
    "SystemSharedMemoryStatus": Right.INFER,
    "SystemSharedMemoryRegister": Right.INFER,
    "SystemSharedMemoryUnregister": Right.INFER,
    "CudaSharedMemoryStatus": Right.INFER,
    "CudaSharedMemoryRegister": Right.INFER,
    "CudaSharedMemoryUnregister": Right.INFER,
    "RepositoryIndex": Right.INFER,
    "RepositoryModelLoad": Right.OPERATE,
    "RepositoryModelUnload": Right.OPERATE,
}
"""The right that each method of a gateway's inference.GRPCInferenceService needs."""

GRPC_COMMON: Mapping[str, Right] = {
    "/grpc.health.v1.Health/Check": Right.OPEN,
    "/grpc.health.v1.Health/Watch": Right.OPEN,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Right.INFER,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Right.INFER,
}
"""The right that each method of a gateway's other gRPC services needs, by path."""
