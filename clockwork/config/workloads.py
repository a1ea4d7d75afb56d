"""Bounds of workloads, simulated and live, and of plans."""

from __future__ import annotations

# ----- workloads/arrivals.py -------------------------------------------------------------------

CHUNK_ARRIVALS = 1 << 18
"""The most arrivals of one chunk: 22 bytes each, so 6 MB."""

CLASSES_MAX = 256
"""Classes of requests (SLO or priority groups) that are counted apart: what a byte can name."""

COLLECT_MAX = 1 << 26
"""The most arrivals that are put into one set of arrays, 1.5 GB; longer workloads stay streams."""

# ----- workloads/generators.py -----------------------------------------------------------------

WINDOW_ARRIVALS = 1 << 20
"""Arrivals that are made and sorted together: enough that what is done for each source weighs little."""

WINDOW_CELLS = 1 << 22
"""The most rates (sources times steps) of one window."""

SOURCES_MAX = 1 << 20
RATE_MAX = 1e9
DURATION_MAX_NS = 1 << 60

# ----- workloads/traces.py ---------------------------------------------------------------------

COUNT_MAX = (1 << 31) - 1
MINUTES_MAX = 60 * 1440
"""The longest trace: sixty days."""

# ----- sim/planning.py -------------------------------------------------------------------------

REQUESTS_MAX = 50_000_000
"""The most requests of a run whose every outcome is kept, and of a trial of a plan."""

BAD_MAX = 0.01
"""The part of the requests that may be refused, late, missed, failed or unanswered."""

WARM_UP_MIN_NS = 1_000_000_000

DEVICES_MAX = 4096
SLO_MAX_NS = 60 * 1_000_000_000
OVERLOADS_MAX = 100
"""How many times the load of the trial beside an answer that has no smaller one may grow."""

# ----- cli/load_generator.py -------------------------------------------------------------------

LIVE_RATE_MAX = 1_000_000
CONCURRENCY_MAX = 16_000
DURATION_MAX_S = 86_400

SYNTHETIC_FUNCTIONS_MIN = 1000
"""Functions of a made-up trace; one for each model where that is more."""

# ----- cli/plan.py -----------------------------------------------------------------------------

NOISE_EXECUTIONS_MIN = 500
"""What fewer executions of a cluster say of its noise is not believed."""

# ----- sim/check.py ----------------------------------------------------------------------------

SHRUNK_MAX = 3
"""Failures of one call that are shrunk: what else fails is most likely the same."""
