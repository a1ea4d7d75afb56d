"""The rule for restarts of a cluster's processes. Pure: no processes, no clocks."""

from __future__ import annotations

import os

from clockwork.config.launch import RESTART_PAUSE_MAX_NS, RESTART_PAUSE_NS, RESTART_SETTLED_NS, RESTARTS_MAX

AGAIN_STATUS = os.EX_TEMPFAIL  # The exit status of a process that ends in order to be restarted


class Restarts:
    """Decides on restarts of a process, by the number of its recent ends."""

    def __init__(self) -> None:
        self._has_served = False  # whether it has served at any time since the first start
        self._ends = 0  # number of ends in a row, each soon after its start

    def served(self) -> None:
        """Note that the process has served, as others know: its own report may come later than its end."""
        self._has_served = True

    def next_ns(self, now_ns: int, begun_ns: int, has_served: bool, status: int) -> int | None:
        """Return the time at which to restart a process that ended now. None: it is given up.

        has_served: whether it has begun to serve since its start at begun_ns. A process that has never served
        would fail in the same way again: its flags are wrong, or its port is in use.
        """
        self._has_served = self._has_served or has_served
        if not self._has_served:
            return None
        if has_served and now_ns - begun_ns >= RESTART_SETTLED_NS:
            self._ends = 0
        if status == AGAIN_STATUS and has_served:
            return now_ns + RESTART_PAUSE_NS
        self._ends += 1
        if self._ends > RESTARTS_MAX:
            return None
        if self._ends == 1:
            return now_ns
        return now_ns + min(RESTART_PAUSE_NS << (self._ends - 2), RESTART_PAUSE_MAX_NS)
