"""The process's clock: monotonic integer nanoseconds, from the same source as in native code."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], int]

now_ns: Clock = time.monotonic_ns

MS = 1_000_000  # Nanoseconds in a millisecond

SECOND = 1_000_000_000  # Nanoseconds in a second


def to_ns(seconds: float) -> int:
    """Convert seconds to integer nanoseconds, rounded."""
    return round(seconds * SECOND)


def to_seconds(ns: int) -> float:
    """Convert nanoseconds to seconds."""
    return ns / SECOND


def duration(ns: int) -> str:
    """Return a duration for people, with about three digits in a fitting unit: 57 us, 8.61 ms or 2.00 s."""
    if ns < MS:
        return f"{ns / 1e3:.{1 if ns < 10_000 else 0}f} us"
    if ns < SECOND:
        return f"{ns / 1e6:.{2 if ns < 10 * MS else 1}f} ms"
    return f"{ns / 1e9:.2f} s"
