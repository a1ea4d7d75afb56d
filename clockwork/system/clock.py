"""The process's clock: monotonic integer nanoseconds, from the same source as in native code."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], int]

now_ns: Clock = time.monotonic_ns

MS = 1_000_000
"""Nanoseconds in a millisecond."""

SECOND = 1_000_000_000
"""Nanoseconds in a second."""


def to_ns(seconds: float) -> int:
    """Seconds as integer nanoseconds, rounded."""
    return round(seconds * SECOND)


def to_seconds(ns: int) -> float:
    """Nanoseconds as seconds."""
    return ns / SECOND
