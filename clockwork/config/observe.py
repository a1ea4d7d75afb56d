"""Bounds of what is kept, written and shown of a cluster's history."""

from __future__ import annotations

# ----- observe/history.py ----------------------------------------------------------------------

HISTORY_NS = 60_000_000_000
"""How long a history keeps requests, actions and residencies that are over."""

HISTORY_REQUESTS_MAX = 200_000
"""Most requests of a history, some 600 bytes each; the oldest are forgotten first."""

HISTORY_ACTIONS_MAX = 200_000
"""Most actions of a history."""

HISTORY_MARK_NS = 100_000_000
"""How far apart the marks of a history's counts are at least."""

# ----- observe/reading.py, observe/top.py ------------------------------------------------------

TOP_INTERVAL_MIN_S = 0.2
TOP_INTERVAL_MAX_S = 3600.0

TOP_COST_PART = 0.01
"""Most of the controller's time that readings may take."""

TOP_PAGE_S = 0.001
"""What a page of METRICS_MODELS_PAGE models costs the controller, at most."""

TOP_ROWS_MAX = 500
"""Rows that a table on a terminal shows."""

# ----- observe/perfetto.py ---------------------------------------------------------------------

TRACE_REQUESTS_MAX = 500_000
"""Most requests of a history that is folded for a trace; of a longer one the newest are traced."""

TRACE_ROWS_MAX = 200
"""Most rows of a trace for requests that are there at once; a request that finds none free is not drawn, but counted."""

TRACE_IDS_MAX = 64
"""Most ids of a batch's requests that a trace tells."""

TRACE_RATE_NS = 100_000_000
"""Rates of a trace, such as goodput, are counted over this time."""

TRACE_COUNTER_NS = 1_000_000
"""Counters of a trace change at most this often; the last value within it is told."""

# ----- observe/telemetry.py --------------------------------------------------------------------

TELEMETRY_BYTES = 4 << 30
"""What telemetry files may take on disk unless told otherwise; the oldest go first."""

TELEMETRY_FILE_BYTES = 64 << 20
"""Size at which a file is ended and the next one begins."""

TELEMETRY_FILE_NS = 300_000_000_000
"""Age at which it is: what a crash of the writer may lose."""

TELEMETRY_ROWS = 20_000
"""Rows that are written together."""

TELEMETRY_KEEP_NS = 1_000_000_000
"""How long the writer remembers what is over."""

TELEMETRY_FOLLOW_S = 0.2
"""Time between two looks at a controller's ring."""

TELEMETRY_PIECE_BYTES_MAX = 1 << 20
"""Largest piece of the ring that a controller's process hands on, with what is said of it."""

TELEMETRY_NICE = 10
"""By how much the writer beside a controller stands behind it for the processor."""

# ----- observe/explain.py, observe/timeline.py -------------------------------------------------

EXPLAINED_DEVICES_MAX = 8
"""Devices of which an explanation tells what each was doing."""

EXPLAINED_MODELS_MAX = 6
"""Models that an explanation names of those that a device executed before."""

TIMELINE_WIDTH_MIN = 60
"""Columns of a terminal that a timeline takes at least."""

# ----- cli/trace.py ----------------------------------------------------------------------------

COMPARED_ROWS_MAX = 20
"""Models, and devices, that a comparison on a terminal shows; --json has all."""

# ----- observe/live.py -------------------------------------------------------------------------

LIVE_POLL_S = 0.05
"""Time between two looks at a flight recorder of which all has been read."""

LIVE_LATE_S = 1.0
"""How much longer than it was asked for a live trace takes at most, where nothing happens."""

EXPLAIN_SPANS_NS = (5_000_000_000, 60_000_000_000)
"""How far back a request is looked for, one after the other: a busy minute takes half a minute to read."""
