"""A worker's clock, as the controller knows it: bounds that always hold, instead of an estimate.

A message from the controller arrives after it was sent: the worker's stamp minus the controller's is
at least the offset. A message back gives the other bound. The least and the greatest over a sliding
window bound the offset, each sample ageing by the drift that clocks may have. How an asymmetric
delay splits between the two ways can never be known from stamps. The exchange converts times by these
bounds (csrc/controller/clock.h): a window's end with the upper one, so that an action is never too late
because of the clock, its beginning with the lower one, and what the worker reports with the middle, never
later than now.
"""

from __future__ import annotations

from collections import deque

from clockwork.config.controller import CLOCK_LIMIT_NS, CLOCK_WINDOW, DRIFT_PPM, LOST_NS, RESET_TOLD_NS
from clockwork.wire.messages import NEVER_NS


def _drift_ns(age_ns: int) -> int:
    return abs(age_ns) * DRIFT_PPM // 1_000_000 + 1


class ClockSync:
    """The offset of one worker's clock (worker minus controller), and the delay of its link.

    Until the first sample both clocks are taken to be equal; known says whether there was a sample.
    """

    __slots__ = (
        "_back", "_lower", "_lower_at", "_reset_at", "_returns", "_sends", "_there", "_upper", "_upper_at", "resets",
    )  # fmt: skip

    def __init__(self) -> None:
        # (controller time, bound) of each sample.
        self._sends: deque[tuple[int, int]] = deque(maxlen=CLOCK_WINDOW)
        self._returns: deque[tuple[int, int]] = deque(maxlen=CLOCK_WINDOW)
        self._upper, self._upper_at = 0, 0
        self._lower, self._lower_at = 0, 0
        self._there = 0
        self._back = 0
        self._reset_at = 0  # controller time of the last reset
        self.resets = 0  # times that the samples contradicted each other: a clock was set or stood still

    @property
    def known(self) -> bool:
        return bool(self._sends) and bool(self._returns)

    def pong(self, sent_ns: int, received_ns: int, returned_ns: int, now_ns: int) -> None:
        """A round trip: sent and ended at controller times, received and returned at worker times."""
        self._sends.append((sent_ns, received_ns - sent_ns))
        self._returns.append((now_ns, returned_ns - now_ns))
        self._refresh(now_ns)

    def bounds(self) -> tuple[int, int, int, int]:
        """The upper bound and its time, the lower bound and its time, by which times are converted."""
        return self._upper, self._upper_at, self._lower, self._lower_at

    def upper_ns(self, at_ns: int) -> int:
        """The upper bound of the offset at a controller time."""
        return self._upper + _drift_ns(at_ns - self._upper_at) if self._sends else 0

    def lower_ns(self, at_ns: int) -> int:
        """The lower bound of the offset at a controller time."""
        return self._lower - _drift_ns(at_ns - self._lower_at) if self._returns else 0

    def offset_ns(self, at_ns: int) -> int:
        """The middle of the offset's bounds at a controller time."""
        return (self.upper_ns(at_ns) + self.lower_ns(at_ns)) // 2

    def uncertainty_ns(self, at_ns: int) -> int:
        """Half the distance of the offset's bounds; NEVER_NS before the first sample."""
        return (self.upper_ns(at_ns) - self.lower_ns(at_ns) + 1) // 2 if self.known else NEVER_NS

    def complaint(self, joined_ns: int, now_ns: int) -> str:
        """Why the clock cannot be followed, as a sentence; "" where it can. joined_ns: when pings began."""
        if not self.known:
            waited_ns = now_ns - joined_ns
            return (
                f"it has answered no ping for {waited_ns / 1e9:.1f} s" if waited_ns > CLOCK_LIMIT_NS else ""
            )
        if self._reset_at != 0 and now_ns - self._reset_at < RESET_TOLD_NS:
            return f"it jumped {(now_ns - self._reset_at) / 1e9:.1f} s ago, {self.resets} times in all"
        if self.uncertainty_ns(now_ns) > LOST_NS:
            return f"it is known no better than to {self.uncertainty_ns(now_ns) / 1e6:.0f} ms"
        return ""

    def there_ns(self) -> int:
        """The last round trip's delay to the worker, by the middle of the offset's bounds."""
        return self._there

    def back_ns(self) -> int:
        """The last round trip's delay from the worker, by the middle of the offset's bounds."""
        return self._back

    def _refresh(self, now_ns: int) -> None:
        self._upper_at, self._upper = min(self._sends, key=lambda send: send[1] + _drift_ns(now_ns - send[0]))
        self._lower_at, self._lower = max(
            self._returns, key=lambda answer: answer[1] - _drift_ns(now_ns - answer[0])
        )
        self._reconcile(now_ns)
        middle = self.offset_ns(now_ns)
        self._there = max(self._sends[-1][1] - middle, 0)
        self._back = max(middle - self._returns[-1][1], 0)

    def _reconcile(self, now_ns: int) -> None:
        """Keep only the newest samples where the bounds exclude each other, since a clock has jumped."""
        if self.upper_ns(now_ns) >= self.lower_ns(now_ns):
            return
        self.resets += 1
        self._reset_at = now_ns
        sends, returns = self._sends[-1], self._returns[-1]
        self._sends.clear()
        self._returns.clear()
        self._sends.append(sends)
        self._returns.append(returns)
        self._upper_at, self._upper = sends
        self._lower_at, self._lower = returns
        if self._upper < self._lower:  # one of the newest is from before the jump: the later sample holds
            if self._upper_at > self._lower_at:
                self._lower, self._lower_at = self._upper, self._upper_at
                self._returns[-1] = (self._lower_at, self._lower)
            else:
                self._upper, self._upper_at = self._lower, self._lower_at
                self._sends[-1] = (self._upper_at, self._upper)
