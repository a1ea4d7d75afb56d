"""Bounds of workloads, simulated and live, and of plans."""

from __future__ import annotations

# ----- workloads/arrivals.py -------------------------------------------------------------------

CHUNK_ARRIVALS = 1 << 18  # Most arrivals of a chunk: 22 bytes each, so 6 MB

CLASSES_MAX = 256
"""Classes of requests (SLO or priority groups) that are counted apart: as many as a byte can number."""

COLLECT_MAX = 1 << 26
"""Most arrivals that are put into a set of arrays, 1.5 GB; longer workloads stay streams."""

# ----- workloads/generators.py -----------------------------------------------------------------

WINDOW_ARRIVALS = 1 << 20
"""Arrivals that are generated and sorted together: enough that the cost per source matters little."""

WINDOW_CELLS = 1 << 22  # Most rates (sources times steps) of a window
SOURCES_MAX = 1 << 20
RATE_MAX = 1e9
DURATION_MAX_NS = 1 << 60

# ----- workloads/traces.py ---------------------------------------------------------------------

COUNT_MAX = (1 << 31) - 1
MINUTES_MAX = 60 * 1440  # The longest trace: sixty days

# ----- sim/world.py ----------------------------------------------------------------------------

SIMULATED_RECORDING_BYTES = 1 << 30
"""Memory between a simulated world and its recording; what is not needed is never touched. The events of a
turn take some tens of megabytes, and thousands of models on hundreds of workers some hundreds when they join.
"""

SIMULATED_PIECE_BYTES = 1 << 20  # Bytes that are written to a recording at once

# ----- sim/planning.py -------------------------------------------------------------------------

REQUESTS_MAX = 50_000_000  # Most requests of a run whose every outcome is kept, and of a trial of a plan
BAD_MAX = 0.01  # Default part of the requests that may be refused, late, missed, failed or unanswered
WARM_UP_MIN_NS = 1_000_000_000
DEVICES_MAX = 4096
SLO_MAX_NS = 60 * 1_000_000_000
OVERLOADS_MAX = 100
"""Largest factor by which the load is raised to find a failing trial beside an answer that has no smaller
one."""

# ----- workloads/load_generator.py -------------------------------------------------------------------

LIVE_RATE_MAX = 1_000_000
CONCURRENCY_MAX = 16_000
DURATION_MAX_S = 86_400
SYNTHETIC_FUNCTIONS_MIN = 1000  # Functions of a synthetic trace; one for each model where that is more

# ----- cli/plan.py -----------------------------------------------------------------------------

NOISE_EXECUTIONS_MIN = 500  # Executions below which a cluster's measured noise is not used

# ----- sim/division.py -------------------------------------------------------------------------

DIVISIONS_NEAR = 1.05
"""A division of cores is simulated if its expected goodput times this is at least that of the best."""

DIVISION_REQUESTS = 20_000
"""Requests of each simulation by which a launcher divides cores: all of them take a few seconds at most."""

DIVISION_COUNTED_NS = 60_000_000_000  # Longest simulated time of it, for rates that are low
DIVISION_WARM_UP_NS = 1_000_000_000  # Its uncounted time at the beginning
DIVISION_NOISE = 0.02  # Its relative sigma of execution times, as of a CPU
DIVISIONS_SIMULATED_MAX = 12  # Divisions of cores that are simulated for a plan, the best by expectation

# ----- sim/check.py ----------------------------------------------------------------------------

SHRUNK_MAX = 3  # Failures of a call that are shrunk: further ones are most likely the same

# ----- sim/shrink.py ---------------------------------------------------------------------------

SHRINK_RUNS_MAX = 2_000
"""Runs of a failed simulated world to find the smallest one that still fails; each takes milliseconds."""
