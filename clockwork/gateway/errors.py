"""The HTTP and gRPC statuses of errors, in one table."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from clockwork.config import ERROR_CHARS_MAX
from clockwork.config.gateway import RETRY_AFTER_S
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
    """The path is there, the method is not."""

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed


class TooSlow(ClockworkError):
    """The client took too long to send its request."""


class Told(NamedTuple):
    """An error as a client receives it. ``grpc`` is the name of a grpc.StatusCode."""

    status: int
    grpc: str
    body: dict[str, Any]  # of HTTP; its facts but for "error" travel as gRPC's trailing metadata
    headers: dict[str, str]


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
"""Error, HTTP status, gRPC status, and the word that programs read; the first kind that fits counts."""

REQUEST = "X-Clockwork-Request"
"""The header with the number by which the controller knows a request, for `clockwork explain`."""

_INFEASIBLE = (422, "FAILED_PRECONDITION")
"""Of a refusal whose deadline is below what the execution alone takes: no proxy and no client tries such a request again."""


def tell(error: ClockworkError) -> Told:
    """An error's statuses, body and headers, for a client."""
    status, grpc, reason = next(row[1:] for row in _TABLE if isinstance(error, row[0]))
    body: dict[str, Any] = {"error": _cut(str(error)) or type(error).__name__, "reason": reason}
    headers: dict[str, str] = {}
    retry_s = 0.0
    if isinstance(error, Refused):
        body["reason"] = error.reason or reason
        if error.reason == Reason.INFEASIBLE:
            status, grpc = _INFEASIBLE
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
    elif isinstance(error, WrongMethod):
        headers["Allow"] = error.allowed
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="clockwork"'
    if error.request is not None:
        body["request"] = error.request
        headers[REQUEST] = str(error.request)
    if status == 503:
        headers["Retry-After"] = str(max(RETRY_AFTER_S, math.ceil(retry_s)))
    return Told(status, grpc, body, headers)


def _cut(text: str) -> str:
    """The text, cut to ERROR_CHARS_MAX: it may quote a request of megabytes."""
    return text if len(text) <= ERROR_CHARS_MAX else text[:ERROR_CHARS_MAX] + "..."
