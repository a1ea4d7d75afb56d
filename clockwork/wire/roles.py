"""Who may do what: the one table of roles, messages, ports and calls.

Between the processes of a cluster a role is a key's (``clockwork keys new``), and the controller looks it up by the
public key that a connection was made with. Before a gateway stand people and programs without keys: there a right is a
token's. Pure data: controller/access.py and gateway/security.py enforce it, and a test asks everything here with every
role. Without keys, on loopback or with --insecure, nobody has a role and everything is allowed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from clockwork.wire.messages import (
    Bye,
    Cancel,
    Chunk,
    ClientHello,
    ClockChanged,
    DeviceFault,
    Fetch,
    Goodbye,
    Heartbeat,
    InferRequest,
    Offer,
    Pong,
    Prepared,
    Promote,
    Query,
    Register,
    Result,
    Rollback,
    Route,
    Unregister,
    UploadChunk,
    WorkerHello,
)


class Role(enum.StrEnum):
    """What a key is for. The controller's own key has no role: it is what all others verify."""

    CLIENT = "client"  # asks models, and what they are
    WORKER = "worker"  # executes; sees every model and every input
    OPERATOR = "operator"  # changes models and their routes, and all that a client may
    GATEWAY = "gateway"  # a client for many others, which also gathers metrics


class Port(enum.StrEnum):
    """The controller's sockets; the value is the ZAP domain of each."""

    CLIENTS = "clockwork.clients"
    WORKERS = "clockwork.workers"
    EVENTS = "clockwork.events"


ANY_ROLE = frozenset(Role)
"""Of a key from before there were roles."""

_ASKS = frozenset({Role.CLIENT, Role.OPERATOR, Role.GATEWAY})
_OPERATES = frozenset({Role.OPERATOR})
_WORKS = frozenset({Role.WORKER})

PORTS: Mapping[Port, frozenset[Role]] = {
    Port.CLIENTS: _ASKS,
    Port.WORKERS: _WORKS,
    Port.EVENTS: _OPERATES,
}
"""Whose connection is let in at all."""

MESSAGES: Mapping[type, frozenset[Role]] = {
    ClientHello: _ASKS,
    InferRequest: _ASKS,
    Cancel: _ASKS,
    Query: _ASKS,  # and QUERIES by what it is for
    Bye: _ASKS,
    Register: _OPERATES,
    UploadChunk: _OPERATES,
    Unregister: _OPERATES,
    Offer: _OPERATES,
    Route: _OPERATES,
    Promote: _OPERATES,
    Rollback: _OPERATES,
    WorkerHello: _WORKS,
    Heartbeat: _WORKS,
    Pong: _WORKS,
    Result: _WORKS,
    Fetch: _WORKS,
    Chunk: _WORKS,
    Prepared: _WORKS,
    DeviceFault: _WORKS,
    ClockChanged: _WORKS,
    Goodbye: _WORKS,
}
"""Every message that the controller takes. An inference changes nothing that others see; whatever does is the
operator's."""

QUERIES: Mapping[str, frozenset[Role]] = {
    "status": _ASKS,  # probes and load tests ask it
    "models": _ASKS,
    "model": _ASKS,
    # The loop serves nobody while it gathers these, which is not for every client to cause.
    "metrics": frozenset({Role.OPERATOR, Role.GATEWAY}),
}


class Right(enum.StrEnum):
    """What a call of a gateway asks of its caller's token."""

    OPEN = "open"  # no token: health, which balancers ask
    INFER = "infer"  # changes nothing
    OPERATE = "operate"  # changes what is served


HTTP: Mapping[str, Right] = {
    "/v2/health/live": Right.OPEN,
    "/v2/health/ready": Right.OPEN,
    "/v2": Right.INFER,
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
    "/v2/repository/index": Right.INFER,
    "/v2/repository/models/{model}/load": Right.OPERATE,
    "/v2/repository/models/{model}/unload": Right.OPERATE,
    "/openapi.json": Right.INFER,
    "/metrics": Right.INFER,  # on the port for metrics
}
"""Every path of a gateway."""

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
    "RepositoryIndex": Right.INFER,
    "RepositoryModelLoad": Right.OPERATE,
    "RepositoryModelUnload": Right.OPERATE,
}
"""Every method of a gateway's service."""
