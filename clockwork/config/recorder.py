"""Bounds of the flight recorder: csrc/recording/recorder.h, controller/recording/recorder.py."""

from __future__ import annotations

RECORDER_BYTES = 64 << 20
"""Default size of the ring of steps: a minute at some 20,000 requests a second, in batches. Memory is taken as it fills."""

RECORDER_BYTES_LEAST = 256 << 10
"""Smallest ring, other than none."""

RECORDER_SPAN_NS = 60_000_000_000
"""Time after which a step is forgotten, however much room there is."""

FOLLOW_S = 0.1
"""Time between two looks of a recording's file at the ring."""

READ_BYTES = 256 << 10
"""Largest part of the ring that is copied at once: the loop waits for it, some 30 us."""

READS_MAX = 16
"""Pieces of dumps that are read for clients at once."""

DUMPS_MAX = 8
"""Dumps that are kept, the newest; each is as large as the ring at most, and what is told of the cluster."""

CLUSTER_EVENTS_AT_ONCE = 256
DUMP_REST_S = 0.0005
"""A dump's thread lets go of the interpreter for so long after so many events of workers and models, and after each worker."""

STATES_MAX = 8
"""States of the scheduler that are kept with the ring, from each of which on it can be replayed. The ring is so many times as
long as what lies between two of them, in bytes or in time."""

STATE_BYTES_MAX = 2 << 20
"""Largest state of the scheduler that is kept. The loop writes it down between two decisions, in some 6 ms."""

STATE_PATIENCE_NS = 1_000_000_000
"""Time for which it is put off until a moment in which nothing waits."""

STATE_REST = 200
"""The next one is written no sooner than so many times the processor time that the last one took."""

ALERT_AFTER_NS = 3_000_000_000
"""Time from an alert to its dump, which so has what followed."""

ALERT_INTERVAL_NS = 60_000_000_000
"""Least time between two alerts that are dumped."""

BURST_SPAN_NS = 1_000_000_000
BURST_LEAST = 50
BURST_PART = 0.2
"""An alert: in a span, so many requests were refused, missed or failed, and they are at least such a part of those that ended;"""

BURST_CALM_NS = 60_000_000_000
"""and it was not so for that long: a load that is too high for hours is one alert."""

TELEMETRY_READY_S = 30.0
"""Time that telemetry's process may take to say that it can write."""

TELEMETRY_END_S = 1.0
"""Time that it may take to write what is left and to end, when the controller does."""
