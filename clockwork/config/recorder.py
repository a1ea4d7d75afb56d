"""Bounds of the flight recorder: csrc/recording/recorder.h, controller/recording/recorder.py."""

from __future__ import annotations

RECORDER_BYTES = 64 << 20
"""Default size of the ring of steps: a minute at some 20,000 requests a second, in batches. Memory is taken
as it fills."""

RECORDER_BYTES_LEAST = 256 << 10  # Smallest ring, unless there is none
RECORDER_SPAN_NS = 60_000_000_000  # Age at which a step is removed from the ring, even if the ring has room
FOLLOW_S = 0.1  # Interval at which steps of the ring are written to a recording's file

READ_BYTES = 256 << 10
"""Largest part of the ring that is copied at once, which blocks the loop for some 30 us."""

READS_MAX = 16  # Pieces of dumps that are read for clients at once

DUMPS_MAX = 8
"""Dumps that are kept, the newest; each has at most the size of the ring and of the cluster's description."""

CLUSTER_EVENTS_AT_ONCE = 256
DUMP_REST_S = 0.0005
"""Pauses in which a dump's thread releases the interpreter, after so many events of workers and models and
after each worker."""

STATES_MAX = 8
"""States of the scheduler that are kept with the ring; a replay can begin at each of them. The distance of
two states, in bytes or in time, is 1 / STATES_MAX of the ring."""

STATE_BYTES_MAX = 2 << 20
"""Largest state of the scheduler that is kept. The loop writes the state between two decisions, in some 6 ms.
"""

STATE_PATIENCE_NS = 1_000_000_000
"""Longest time for which writing a state is deferred to a moment without waiting work."""

STATE_REST = 200
"""Least time between two states, as a multiple of the processor time that the last state took."""

ALERT_AFTER_NS = 3_000_000_000
"""Time from an alert to its dump, so that the dump has the steps after the alert."""

ALERT_INTERVAL_NS = 60_000_000_000  # Least time between two alerts that are dumped
BURST_SPAN_NS = 1_000_000_000
BURST_LEAST = 50
BURST_PART = 0.2
"""Conditions of an alert: in a span of this length, so many requests were refused, missed or failed, and at
least this share of the requests that ended."""

BURST_CALM_NS = 60_000_000_000
"""Time without these conditions before another alert, so that hours of overload are a single alert."""

TELEMETRY_READY_S = 30.0  # Time limit for telemetry's process to report that it can write

TELEMETRY_END_S = 1.0
"""Time limit for telemetry's process to write the rest and to end, when the controller ends."""
