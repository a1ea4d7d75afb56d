"""Bounds of what starts a cluster."""

from __future__ import annotations

# ----- launch/local.py -------------------------------------------------------------------------

DRAIN_NS = 1_000_000_000
"""How long workers finish what they have."""

STOP_WORKERS_NS = 1_150_000_000
"""How long they may take to end; then the controller is told to end in any case."""

STOP_NS = 1_500_000_000
"""How long all may take to end in order; what is left then is killed. Everything is over in two seconds."""

READY_NS = 120 * 1_000_000_000
"""How long the cluster may take to become ready."""

LAST_LINES = 20
"""Lines of a child's output that are shown when it dies."""

# ----- launch/profiles.py ----------------------------------------------------------------------

REGISTRATIONS_AT_ONCE = 16
"""Registrations under way: enough that their disk writes overlap, far below what a controller takes."""

COPIES_MAX = 100_000

# ----- launch/ray.py ---------------------------------------------------------------------------

POLL_NS = 300_000_000
"""How often each actor is asked how its child is."""

END_S = 2.0
"""How long an actor may take to clear up after its child has ended."""
