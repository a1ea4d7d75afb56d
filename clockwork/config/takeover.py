"""Times and bounds of the takeover protocol: one active controller, and standbys."""

from __future__ import annotations

# ----- takeover/lease.py -----------------------------------------------------------------------

LEASE_NS = 1_000_000_000
"""Time for which a lease holds after a renewal, by the database's clock. A controller that stands still is
taken over 0.7 to 1 s later. Two renewals in a row may fail without a takeover."""

# ----- takeover/contender.py -------------------------------------------------------------------

RENEW_NS = 300_000_000  # Interval at which the active renews its lease
LOOK_NS = 100_000_000  # Interval at which a standby reads the lease and the changes of the catalogue
DATABASE_LIMIT_NS = 250_000_000  # Time after which a query about the lease counts as lost
DATABASE_RETRY_NS = 100_000_000  # Pause before the next query once a query was lost

RETURN_GRACE_NS = LEASE_NS
"""Time for which a standby that reaches the database again leaves the lease to its holder. The holder's lease
has expired as well while the database was away, and its lock has gone; it renews within this time."""

CHANGE_LIMIT_NS = 1_000_000_000  # Time after which the outcome of a change counts as unknown
CHANGES_AT_ONCE_MAX = 256  # Changes whose transactions are under way; a further change is refused
HAND_OVER_LIMIT_NS = 1_000_000_000  # Time after which a hand-over that its target does not follow is given up
BEAT_NS = 300_000_000  # Interval at which workers, clients and standbys tell controllers the epoch they know

# ----- takeover/inheritance.py -----------------------------------------------------------------

SETTLE_NS = 1_000_000_000
"""Time for which a new active waits for the reports of its predecessor's workers before it has a model loaded
that no reported worker holds."""

RECONNECT_NS = 100_000_000
"""Time for which an active waits for the report of a worker whose connection broke, before it has models of
that worker loaded elsewhere."""

WORKER_SEEN_NS = 3 * BEAT_NS  # Silence after which a standby no longer expects a worker's report
RESULTS_KEPT_MAX = 4_096  # Results of requests that nobody has asked again yet
RESULTS_KEPT_NS = 2_000_000_000  # Time for which such a result is kept

NOTES_NS = 1_000_000_000  # Interval at which an active gives its workers a copy of what it has learnt

# ----- takeover/follower.py --------------------------------------------------------------------

ORDERS_REMEMBERED_MAX = 1_024  # Orders that a worker knows again if they come twice
RESULTS_UNSENT_MAX = 4_096  # Results that wait for a connection to the active; then the oldest goes

# ----- sim/takeover/desk.py ---------------------------------------------------------------------

DESK_ORDER_LIMIT_NS = 400_000_000
"""Time after which a simulated active orders a request again that has no result."""

# ----- takeover/asker.py -----------------------------------------------------------------------

ASKED_MAX = 65_536  # Requests of a client that have no answer yet
