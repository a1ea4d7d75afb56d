"""What can go wrong, as a caller sees it. Everything derives from ClockworkError."""

from __future__ import annotations


class ClockworkError(Exception):
    """Base of every error that Clockwork raises on purpose.

    request: the number by which the controller knows the request that failed (None: none did, or it was not taken).
    `clockwork explain` says from it what happened.
    """

    request: int | None = None


class ModelNotFound(ClockworkError):
    """No model of that name (or that version of it) is registered."""


class InvalidInput(ClockworkError, ValueError):
    """A request that the model cannot take. Names the tensor, what was expected, and what came."""

    def __init__(self, text: str, tensor: str = "", expected: str = "", got: str = "") -> None:
        super().__init__(text)
        self.tensor = tensor
        self.expected = expected
        self.got = got


class InvalidModel(ClockworkError, ValueError):
    """The file is no ONNX model, is damaged, or holds something that cannot be served."""


class SloWarning(UserWarning):
    """An SLO so long that it was probably not meant in seconds. It is taken as it is."""


class Refused(ClockworkError):
    """The request was turned away, at arrival or while it waited, because it could not have been answered in time.

    reason: a word from messages.Reason. feasible_slo: the least SLO, in seconds, that would have
    been enough, as seen when it was turned away (None if unknown). retry_after: seconds after which
    the same request is likely to be answered (None if unknown, or if waiting would not help: the SLO
    is below what an idle device takes, or too short to measure a new input shape). Both are estimates;
    of a request that had waited, they count its model's queue and what its devices were sent, not the
    other models that wait for them.
    """

    def __init__(
        self,
        text: str,
        reason: str = "",
        feasible_slo: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.feasible_slo = feasible_slo
        self.retry_after = retry_after


class DeadlineMissed(ClockworkError, TimeoutError):
    """The request was admitted, and could not be answered by its deadline."""


class RequestTimeout(ClockworkError, TimeoutError):
    """The client's own timeout passed before any answer came."""


class Cancelled(ClockworkError):
    """The request was cancelled."""


class ExecutionFailed(ClockworkError):
    """The model itself failed on this input, for example an index out of range in a Gather."""


class Forbidden(ClockworkError):
    """The key (or the gateway's token) has no right to this; names the role that has."""


class Unavailable(ClockworkError):
    """The cluster cannot serve this now: no worker, or it is shutting down."""


class ConnectionLost(ClockworkError, ConnectionError):
    """The controller went away, or could not be reached; what was in flight may or may not have run."""


class ProtocolMismatch(ClockworkError):
    """Client and controller speak different protocol versions."""


class ConfigError(ClockworkError, ValueError):
    """A flag, an environment variable or a file of settings is wrong; names it and its bound."""


class PolicyFailed(RuntimeError):
    """A hook of a scheduling policy in Python failed, as its cause says; the scheduler cannot go on after that."""
