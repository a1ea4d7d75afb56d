"""Bounds of the recorded, written and displayed history of a cluster."""

from __future__ import annotations

# ----- observe/history.py ----------------------------------------------------------------------

HISTORY_NS = 60_000_000_000
"""Time for which a history keeps requests, actions and residencies that have ended."""

HISTORY_REQUESTS_MAX = 200_000
"""Most requests of a history, some 600 bytes each; the oldest are forgotten first."""

HISTORY_ACTIONS_MAX = 200_000  # Most actions of a history
HISTORY_MARK_NS = 100_000_000  # Least time between two marks of a history's counts

# ----- observe/reading.py, observe/top.py ------------------------------------------------------

TOP_INTERVAL_MIN_S = 0.2
TOP_INTERVAL_MAX_S = 3600.0
TOP_COST_PART = 0.01  # Largest share of the controller's time that readings may take
TOP_PAGE_S = 0.001  # Upper bound of the controller's time for a page of METRICS_MODELS_PAGE models
TOP_ROWS_MAX = 500  # Rows that a table on a terminal shows

# ----- observe/perfetto.py ---------------------------------------------------------------------

TRACE_REQUESTS_MAX = 500_000
"""Most requests of a history that is folded for a trace; of a longer one the newest are traced."""

TRACE_ROWS_MAX = 200
"""Most rows of a trace for concurrent requests; a request without a free row is counted, but not drawn."""

TRACE_IDS_MAX = 64  # Most request ids of a batch in a trace
TRACE_RATE_NS = 100_000_000  # Time over which rates of a trace, such as goodput, are counted

TRACE_COUNTER_NS = 1_000_000
"""Least time between two changes of a trace's counter; the last value of the time is shown."""

# ----- observe/telemetry.py --------------------------------------------------------------------

TELEMETRY_BYTES = 4 << 30  # Default size of all telemetry files on disk; the oldest are removed first
TELEMETRY_FILE_BYTES = 64 << 20  # Size at which a telemetry file is closed and the next begins

TELEMETRY_FILE_NS = 300_000_000_000
"""Age at which a telemetry file is closed; a crash of the writer loses at most so much time."""

TELEMETRY_ROWS = 20_000  # Rows that are written together

TELEMETRY_KEEP_NS = 1_000_000_000
"""Time for which the telemetry writer remembers requests and actions that have ended."""

TELEMETRY_FOLLOW_S = 0.2  # Interval at which the telemetry writer reads a controller's ring

TELEMETRY_PIECE_BYTES_MAX = 1 << 20
"""Largest piece of the ring that a controller's process hands to the telemetry writer, with its description.
"""

TELEMETRY_NICE = 10  # Niceness of the telemetry writer beside a controller

# ----- observe/explain.py, observe/timeline.py -------------------------------------------------

EXPLAINED_DEVICES_MAX = 8  # Devices whose activity an explanation describes
EXPLAINED_MODELS_MAX = 6  # Models that an explanation names among those that a device executed before
TIMELINE_WIDTH_MIN = 60  # Columns of a terminal that a timeline takes at least

# ----- cli/trace.py ----------------------------------------------------------------------------

COMPARED_ROWS_MAX = 20  # Models, and devices, that a comparison on a terminal shows; --json has all

# ----- observe/live.py -------------------------------------------------------------------------

LIVE_POLL_S = 0.05  # Interval of reading a flight recorder after all of its steps were read
LIVE_LATE_S = 1.0  # Longest time by which a live trace of an idle cluster exceeds its requested duration

EXPLAIN_SPANS_NS = (5_000_000_000, 60_000_000_000)
"""Times before now from which on a request is searched for, one after the other; a busy minute takes half a
minute."""
