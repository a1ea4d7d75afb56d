"""Clockwork: a serving system for deep-learning models whose every action is planned.

from clockwork import Client

with Client() as client:
    y = client.infer("digits", x)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clockwork.config import VERSION as __version__

_HOME = {
    "AsyncClient": "clockwork.client.aio",
    "Client": "clockwork.client.blocking",
    "ModelInfo": "clockwork.wire.description",
    "RouteInfo": "clockwork.wire.description",
    "Cancelled": "clockwork.errors",
    "ClockworkError": "clockwork.errors",
    "ConfigError": "clockwork.errors",
    "ConnectionLost": "clockwork.errors",
    "DeadlineMissed": "clockwork.errors",
    "ExecutionFailed": "clockwork.errors",
    "Forbidden": "clockwork.errors",
    "InvalidInput": "clockwork.errors",
    "InvalidModel": "clockwork.errors",
    "ModelNotFound": "clockwork.errors",
    "ProtocolMismatch": "clockwork.errors",
    "Refused": "clockwork.errors",
    "RequestTimeout": "clockwork.errors",
    "SloWarning": "clockwork.errors",
    "Unavailable": "clockwork.errors",
}
"""Imported on first use, so that a process pays only for what it needs."""

if TYPE_CHECKING:
    from clockwork.client.aio import AsyncClient
    from clockwork.client.blocking import Client
    from clockwork.errors import (
        Cancelled,
        ClockworkError,
        ConfigError,
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
        SloWarning,
        Unavailable,
    )
    from clockwork.wire.description import ModelInfo, RouteInfo

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClockworkError",
    "ConfigError",
    "ConnectionLost",
    "DeadlineMissed",
    "ExecutionFailed",
    "Forbidden",
    "InvalidInput",
    "InvalidModel",
    "ModelInfo",
    "ModelNotFound",
    "ProtocolMismatch",
    "Refused",
    "RequestTimeout",
    "RouteInfo",
    "SloWarning",
    "Unavailable",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
