"""The HTTP and gRPC statuses of errors, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from clockwork.config.gateway import ERROR_CHARS_MAX, RETRY_AFTER_S
from clockwork.errors import (
    Cancelled,
    ClockworkError,
    ConnectionLost,
    DeadlineMissed,
    ExecutionFailed,
    Forbidden,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    ProtocolMismatch,
    Refused,
    RequestTimeout,
    Unavailable,
)
from clockwork.gateway.settings import StatusCodes
from clockwork.system.clock import to_ns
from clockwork.wire.messages import Reason


class Unsupported(ClockworkError):
    """A part of the protocol that this server does not have."""


class TooLarge(ClockworkError):
    """A request beyond what the gateway takes."""


class Unauthorized(ClockworkError):
    """The token is missing, or not the right one."""


class NotFound(ClockworkError):
    """No such path, or no such shared memory region."""


class WrongMethod(ClockworkError):
    """The path is known, but does not have this method."""

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed


class TooSlow(ClockworkError):
    """The client took too long to send its request."""


class ErrorAnswer(NamedTuple):
    """An error as a client receives it. ``grpc`` is the name of a grpc.StatusCode."""

    status: int
    grpc: str
    body: dict[str, Any]  # body for HTTP; its facts but for "error" travel as gRPC's trailing metadata
    headers: dict[str, str]  # headers for HTTP

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The facts of the error, as gRPC's trailing metadata."""
        found = [
            (f"clockwork-{key.replace('_', '-')}", str(self.body[key])) for key in _FACTS if key in self.body
        ]
        if RETRY_AFTER in self.headers:
            found.append((RETRY_AFTER.lower(), self.headers[RETRY_AFTER]))
        if "retry_after_us" in self.body:
            # gRPC's retries, where the client's service config enables them, wait for this time (gRFC A6).
            found.append(("grpc-retry-pushback-ms", str(math.ceil(self.body["retry_after_us"] / 1000))))
        return tuple(found)


_FACTS = ("reason", "retry_after_us", "feasible_timeout_us", "request")
"""The keys of an error's body that gRPC's metadata has, too."""

RETRY_AFTER = "Retry-After"
"""The header with the seconds after which a request that was shed or unavailable may be retried."""


_TABLE: list[tuple[type[ClockworkError], int, str, str]] = [
    (ModelNotFound, 404, "NOT_FOUND", "model_not_found"),
    (NotFound, 404, "NOT_FOUND", "not_found"),
    (InvalidInput, 400, "INVALID_ARGUMENT", "invalid_input"),
    (InvalidModel, 400, "INVALID_ARGUMENT", "invalid_model"),
    (Unauthorized, 401, "UNAUTHENTICATED", "unauthorized"),
    (Forbidden, 403, "PERMISSION_DENIED", "forbidden"),
    (WrongMethod, 405, "UNIMPLEMENTED", "wrong_method"),
    (TooSlow, 408, "DEADLINE_EXCEEDED", "too_slow"),
    (TooLarge, 413, "RESOURCE_EXHAUSTED", "too_large"),
    (Unsupported, 501, "UNIMPLEMENTED", "unsupported"),
    (Refused, 503, "UNAVAILABLE", "refused"),
    (Unavailable, 503, "UNAVAILABLE", "unavailable"),
    (ConnectionLost, 503, "UNAVAILABLE", "controller_unreachable"),
    (ProtocolMismatch, 503, "UNAVAILABLE", "protocol_mismatch"),
    (DeadlineMissed, 504, "DEADLINE_EXCEEDED", "deadline_missed"),
    (RequestTimeout, 504, "DEADLINE_EXCEEDED", "timeout"),
    (Cancelled, 499, "CANCELLED", "cancelled"),
    (ExecutionFailed, 500, "INTERNAL", "execution_failed"),
    (ClockworkError, 500, "INTERNAL", "internal"),
]
"""Error class, HTTP status, gRPC status, and the word for programs; the first class that fits counts."""

REQUEST = "X-Clockwork-Request"
"""The header with the number by which the controller knows a request, for `clockwork explain`."""

_SHED = (429, "RESOURCE_EXHAUSTED")
"""Statuses of requests that cannot be answered in time now, and may succeed later at this gateway."""

_UNSERVED = (503, "UNAVAILABLE")  # Statuses where no worker serves the model

_NEVER = (422, "FAILED_PRECONDITION")
"""Statuses of a request that even an idle device could not serve: proxies and clients do not retry them."""

_OUT_OF_RANGE = (413, "OUT_OF_RANGE")
"""Statuses of a request beyond a bound. Over gRPC it is not RESOURCE_EXHAUSTED, which clients retry."""

_REFUSALS: Mapping[StatusCodes, tuple[Mapping[str, tuple[int, str]], tuple[int, str]]] = {
    StatusCodes.MESH: (
        {Reason.INFEASIBLE: _NEVER, Reason.MEMORY: _NEVER, Reason.NO_WORKER: _UNSERVED, Reason.DRAINING: _UNSERVED},
        _SHED,
    ),
    StatusCodes.TRITON: ({Reason.INFEASIBLE: _NEVER}, _UNSERVED),
}  # fmt: skip
"""The statuses of refusals by reason; the last are for all other reasons."""


def tell(error: ClockworkError, codes: StatusCodes) -> ErrorAnswer:
    """An error's statuses, body and headers, for a client."""
    status, grpc, reason = next(row[1:] for row in _TABLE if isinstance(error, row[0]))
    body: dict[str, Any] = {"error": _cut(str(error)) or type(error).__name__, "reason": reason}
    headers: dict[str, str] = {}
    retry_s = 0.0
    if isinstance(error, Refused):
        body["reason"] = error.reason or reason
        by_reason, others = _REFUSALS[codes]
        status, grpc = by_reason.get(error.reason, others)
        if error.retry_after is not None:
            retry_s = error.retry_after
            body["retry_after_us"] = to_ns(retry_s) // 1000
        if error.feasible_slo is not None:
            body["feasible_timeout_us"] = math.ceil(to_ns(error.feasible_slo) / 1000)
    elif isinstance(error, InvalidInput):
        body |= {
            key: _cut(value)
            for key, value in (("tensor", error.tensor), ("expected", error.expected), ("got", error.got))
            if value
        }
    elif isinstance(error, TooLarge) and codes is StatusCodes.MESH:
        status, grpc = _OUT_OF_RANGE
    elif isinstance(error, WrongMethod):
        headers["Allow"] = error.allowed
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="clockwork"'
    if error.request is not None:
        body["request"] = error.request
        headers[REQUEST] = str(error.request)
    if status in (429, 503):
        headers[RETRY_AFTER] = str(max(RETRY_AFTER_S, math.ceil(retry_s)))
    return ErrorAnswer(status, grpc, body, headers)


def _cut(text: str) -> str:
    """The text, cut to ERROR_CHARS_MAX: it may quote a request of megabytes."""
    return text if len(text) <= ERROR_CHARS_MAX else text[:ERROR_CHARS_MAX] + "..."
