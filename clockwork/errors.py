"""The errors that callers may get. All derive from ClockworkError."""

from __future__ import annotations


class ClockworkError(Exception):
    """Base of every error that Clockwork raises on purpose.

    request: the controller's number of the failed request, for `clockwork explain` (None: no request failed,
    or the controller did not take it).
    """

    request: int | None = None


class ModelNotFound(ClockworkError):
    """No model of that name (or that version of it) is registered."""


class InvalidInput(ClockworkError, ValueError):
    """The model cannot take the request. The error names the tensor, the expected and the received value."""

    def __init__(self, text: str, tensor: str = "", expected: str = "", got: str = "") -> None:
        super().__init__(text)
        self.tensor = tensor
        self.expected = expected
        self.got = got


class InvalidModel(ClockworkError, ValueError):
    """The file is no ONNX model, is damaged, or holds something that cannot be served."""


class SloWarning(UserWarning):
    """An SLO is so long that it was probably not meant in seconds. It is used unchanged."""


class Refused(ClockworkError):
    """The request was turned away, at arrival or while it waited, because it could not have been answered in
    time.

    reason: a word from messages.Reason. feasible_slo: the least SLO, in seconds, that would have been enough
    at the time of the refusal (None if unknown). retry_after: seconds after which the same request is likely
    to be answered (None if unknown, or if waiting would not help: the SLO is below the time of an idle
    device, or too short to measure a new input shape). Both are estimates. For a request that had waited,
    they count its model's queue and the actions sent to its devices, but not other models that wait for these
    devices.
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
    """The request was admitted, but could not be answered by its deadline."""


class RequestTimeout(ClockworkError, TimeoutError):
    """The client's own timeout passed before any answer came."""


class Cancelled(ClockworkError):
    """The request was cancelled."""


class ExecutionFailed(ClockworkError):
    """The model itself failed on this input, for example an index out of range in a Gather."""


class Forbidden(ClockworkError):
    """The key (or the gateway's token) lacks the right to the call. The error names the role that has it."""


class Unavailable(ClockworkError):
    """The cluster cannot serve the call now: it has no worker, or is shutting down."""


class ConnectionLost(ClockworkError, ConnectionError):
    """The connection was lost, or not established. Calls in flight may or may not have been carried out."""


class ProtocolMismatch(ClockworkError):
    """Client and controller speak different protocol versions."""


class ConfigError(ClockworkError, ValueError):
    """A flag, an environment variable or a settings file is wrong. The error names it and its bound."""


class PolicyFailed(RuntimeError):
    """A hook of a scheduling policy in Python failed (see __cause__); the scheduler cannot continue."""
