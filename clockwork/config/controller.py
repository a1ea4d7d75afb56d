"""Bounds of the controller: its connections, uploads, changes and evidence."""

from __future__ import annotations

import dataclasses

from clockwork.config import CLIENTS_MAX, HELLO_NS, RECEIVED_BYTES_MAX, WORKERS_MAX

# ----- connections and heartbeats --------------------------------------------------------------

STATS_BYTES_WORKER, STATS_BYTES_DEVICE = 4 << 10, 2 << 10
STATS_VALUES_WORKER, STATS_VALUES_DEVICE = 128, 96
"""Most bytes and values of statistics in a heartbeat, for the worker and for each device: about three times
the usual."""

STATUS_ROWS_MAX = 2_048
"""Devices and failed preparations that status describes, those of the workers with the fewest first, so that
any number of workers fits REPLY_BYTES_MAX and REPLY_VALUES_MAX."""

HELLO_BYTES_MAX = 1 << 20  # Bytes that may wait to be received on a connection without a hello

HELLO_BYTES_ALL_MAX = 64 << 20
"""Bytes that may wait to be received on all connections of a port without a hello; the largest is ended
first."""

UNGREETED_MAX = 4_096
"""Connections of a port without a hello; a further connection ends the oldest of the address with the most of
them."""

SEAT_IDLE_NS = 5_000_000_000
"""Silence after which a peer without requests under way gives way, where all seats are taken, to another one
with the same key or address. A holder of more seats than another's gives way at once."""

RECEIVED_BYTES_ALL_MAX = 4 << 30
"""Bytes of all peers of a port that may wait to be received; the peer with the most is disconnected first."""

CLIENT_UNREAD_BYTES_MAX = 256 << 20
"""Bytes of answers that a client may leave unread, beyond as many as it has read: half of
UNREAD_BYTES_ALL_MAX at most. A further answer of more than 64 KiB is replaced by a refusal; a quarter more,
and the connection is ended."""

UNREAD_NS = 10_000_000_000
"""Time for which a peer with more than a MiB unread may read less than 256 KiB a second, until its connection
is ended."""

WORKER_UNREAD_BYTES_MAX = 1 << 30
"""Bytes of orders that a worker may leave unread: more than a client's, because batches are larger."""

UNREAD_BYTES_ALL_MAX = 2 << 30
"""Bytes that all peers of a port may leave unread; a further answer is replaced by a refusal, peers that
stand still are disconnected, and beyond a quarter more the peer with the most."""

MEMORY_SHARE_MAX = 0.75
"""Part of the memory that the controller may have. Beyond it, peers with the most bytes waiting to be
received are disconnected: small frames take 32 times as much memory as the bytes that are counted."""

DESCRIPTORS_KEPT = 64
DESCRIPTORS_LEAST = 64
"""Descriptors that a controller keeps for files, and those that it needs for connections."""

FETCHES_MAX = 64
"""Chunks that a worker may have asked for and the controller not read yet: two windows for each of its
transfers. A worker that asks for more is disconnected."""

BUNDLES_OFFERED_MAX = 64  # Prepared models that a worker may be taking from other workers at once
BUNDLES_BESIDE_REQUESTS = 1
"""Prepared models that a worker is offered at a time while requests come, if others are on its machine: one
costs them some 30 ms of processor time together."""

BUNDLES_CALM_NS = 2_000_000_000  # Time without a request after which it is offered all that it wants
BUNDLE_PIECES_MAX = 64  # Pieces of these that it may wait for. A worker that asks for more is disconnected
BUNDLE_PIECES_HELD_MAX = 8
"""Pieces that a worker is asked to read of its prepared models at once, so that results behind them wait for
a few MiB at most."""

BUNDLE_WAIT_NS = 10_000_000_000
"""Time that a worker may take for a piece. After that, the workers that wait prepare the model themselves."""

# ----- requests, uploads and changes -----------------------------------------------------------

SEATS_ASKED_MAX = 64
"""Clients that are skipped in a search for a seat because they wait for an answer; bounded so that a hello is
cheap."""

UPLOADS_MAX = 64
"""Uploads at a time. A further upload ends an upload of the client or key with the most of them, or a stalled
upload."""

SYNCS_AT_ONCE = 8  # Threads that sync files, where several changes wait for syncs

UPLOAD_STALL_NS = 2_000_000_000
UPLOAD_IDLE_NS = 60_000_000_000
UPLOAD_BYTES_LEAST = 256 << 10
"""An upload is stalled if it has not sent so many bytes, or its rest, for UPLOAD_STALL_NS; it ends after
UPLOAD_IDLE_NS."""

CHANGES_WAITING_MAX = 256  # Changes of a name that may wait until an earlier change of it is on disk

ERASE_RETRY_NS = 5_000_000_000
"""Pause after which a controller tries again to erase a version that it has refused and could not erase."""

ROUTES_KEPT = 8  # Earlier routes of a name that rollbacks can restore, one after the other

DRAIN_BATCH_EVENTS = 256
"""Messages taken from a socket before the scheduler plans: one plan for many arrivals."""

TURN_HEADER_BYTES = 256 << 10
"""Bytes of headers taken from a socket before the scheduler plans; 256 usual requests have 30,000. A message
that needs Python counts for 4 KiB more."""

TURN_PYTHON_NS = 5_000_000
"""Time for which Python handles messages of clients, or of workers, before the scheduler plans."""

PREDICTION_BOUNDS_NS = tuple(round(base * 10**exponent) for exponent in range(4, 9) for base in (1, 2.5, 5))
"""Upper bounds of the buckets of a controller's histograms of prediction errors: from 10 us to 500 ms."""

WORKER_FAULTS_MAX = 2
"""Impossible results (of another size, type or shape than the model's, say) after which a worker is
disconnected. Fewer than the tries of a request, so that another worker answers whatever this one was sent."""

PREPARE_AGAIN_NS = (10_000_000_000, 60_000_000_000, 600_000_000_000)
"""Pauses before the retries after a worker failed to prepare a model; after the last, there is no retry."""

THREADS_WAIT_NS = 60_000_000_000
"""Time for which a model waits for a worker whose executions have enough threads, where a launcher starts
such workers; the time for which such a worker prepares the model is not counted."""

THREADS_TOLD_NS = 5_000_000_000  # Interval at which clients are told that their model waits for it
CORE_LOADS_MAX = 32  # Rows of models' loads that a launcher is told: each of many models of equal times
CORE_TIMES_SHARED_MAX = 4_096  # Programs whose execution times by threads are kept once for all models

FAILURES_TOLD_MAX = 20  # Failed preparations of a worker whose reasons status lists
RUN_PAGES_MAX = (1 << 31) - 1  # Most pages of a model, in all runs of its layout
TROUBLES_PER_KIND_MAX = 64  # Troubles of a kind that status lists; further troubles are only counted
REPORTED_SOURCES_MAX = 64  # Model sources that gateways report as failing at one time

TROUBLE_KEPT_NS = 86_400_000_000_000
"""Time after its last event at which an unresolved trouble is forgotten: a day."""

RECORD_BYTES_MAX = 1 << 30
"""Size at which a recording of a controller's events ends: some 10 million requests."""

# ----- models that end workers, or do not end -----------------------------------------------

EVIDENCE_LOST = 1
EVIDENCE_CRASHED = 2
EVIDENCE_MAX = 3
"""Evidence against a request that was executing when its worker ended: EVIDENCE_CRASHED if the worker
reported a crash, EVIDENCE_LOST if it vanished, which may have another cause. At EVIDENCE_MAX the request is
not tried again, and its model is set aside."""

OVERRUNS_MAX = 5
"""Executions of a model beyond their limit, within FAULT_WINDOW_NS, at which the model is set aside."""

FAULT_WINDOW_NS = 600_000_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Bounds of the connections of a port of the controller."""

    ungreeted: int = UNGREETED_MAX
    greeted: int = CLIENTS_MAX
    hello_ns: int = HELLO_NS
    idle_ns: int = SEAT_IDLE_NS
    hello_bytes: int = HELLO_BYTES_MAX
    hello_bytes_all: int = HELLO_BYTES_ALL_MAX
    received_bytes: int = RECEIVED_BYTES_MAX
    received_bytes_all: int = RECEIVED_BYTES_ALL_MAX
    unread_bytes: int = CLIENT_UNREAD_BYTES_MAX
    unread_bytes_all: int = UNREAD_BYTES_ALL_MAX
    unread_ns: int = UNREAD_NS
    memory_share: float = MEMORY_SHARE_MAX  # share of limits.memory_bytes()

    def within(self, greeted: int, ungreeted: int) -> ConnectionBounds:
        """Return these bounds, with the numbers of connections lowered to ``greeted`` and ``ungreeted``."""
        return dataclasses.replace(
            self, greeted=min(self.greeted, greeted), ungreeted=min(self.ungreeted, ungreeted)
        )


CLIENT_CONNECTIONS = ConnectionBounds()
WORKER_CONNECTIONS = ConnectionBounds(greeted=WORKERS_MAX, unread_bytes=WORKER_UNREAD_BYTES_MAX)

# ----- workers ---------------------------------------------------------------------------------

WORKER_TIMEOUT_NS = 2_000_000_000
"""Silence after which a worker counts as lost, and its actions are planned again."""

CLOCK_LIMIT_NS = 2_000_000_000
"""Time after a worker's hello at which an unknown clock is a trouble: the worker has answered no ping."""

JITTER_COUNTED_MAX_NS = 5_000_000
"""Most wake-up jitter of a worker that plans allow for. On a busy machine the jitter is tens of milliseconds;
allowing for all of it would refuse every request with such an SLO, when most would be in time."""

CLOCK_WINDOW = 64  # Pings over which a worker's clock offset is bounded; the drift within it is small

STORE_PLANNED_PARTS, STORE_PLANNED_WHOLE = 7, 8
"""Part of a worker's --store-bytes that the scheduler plans with, in pages of models. The rest is for what it
does not count: descriptions, programs, and a new model that a worker prepares before copies of others are
dropped."""

STORES_SETTLE_NS = 2_000_000_000
"""Time after a worker with a bounded store has joined in which no other worker prepares a model that was
served before: the store of the next worker to join may have it."""

RESTART_GRACE_NS = 10_000_000_000
"""Time after a worker has left in which no other worker prepares a model that only it had, unless a request
asks for the model: the worker may be restarted, and still have it. The scheduler waits as long with further
copies (csrc/scheduler/keepers.h)."""

HOLDER_STOPPED_NS = 1_000_000_000
"""Time without a beat after which a standby ends the holder of the data directory's lock, if its process is
stopped."""

HOLDER_HUNG_NS = 10_000_000_000
"""The same for a process that is not stopped: a machine with other work may delay a beat by seconds."""

HOLDER_BYTES_MAX = 1_024  # of the file of the lock
HOLDER_LOOK_S = 0.2  # Interval at which a standby looks at the holder

NOTE_BYTES_MAX = 4_096  # of the note of a controller that shares a data directory
NOTES_MAX = 64  # Controllers of a data directory, and standbys of a lease, that are seen
STANDBY_SIGN_BYTES_MAX = 63  # of the name by which PostgreSQL knows the connection of a standby
NOTES_LOOK_NS = 500_000_000  # Interval at which the active looks for standbys
NOTES_PAUSE_S = 0.01  # Interval of looks at the notes while a controller waits for its successor
LEAVE_S = 0.5
"""Time for which a controller that has left its directory and peers to a standby does nothing, until that
lets clients in. Its end, and its restart by a supervisor, take processor time that its successor needs."""
TAKEOVERS_BYTES_MAX = 1 << 16  # of the file of the last takeovers
TAKEOVERS_KEPT = 32  # Takeovers that are kept, the newest; of all, there are counts

STANDBY_MISSED_NS = 10_000_000_000
"""Time without a standby after which that is a trouble, where there are to be several controllers: one that
is started again imports for a while."""

STANDBY_HEARD_NS = 2_000_000_000
"""Silence of a standby after which nothing is handed over to it. It gives a sign every HOLDER_LOOK_S in a
data directory, and every LEASE_LOCK_TIMEOUT in PostgreSQL, where it is not seen after that."""

TAKEOVERS_OFTEN = 3
TAKEOVERS_OFTEN_NS = 600_000_000_000
"""Takeovers that nobody wanted within this time, from which on they are a trouble: whatever ends the active
is likely to end the next one."""

RETURN_NS = 1_000_000_000
"""Time for which a controller that is started in the place of another awaits that one's workers, before it
lets clients in."""

RETURN_NAMES_BYTES_MAX = 8 << 20  # of the file with the names of the workers
RETURN_SETTLE_NS = 3_000_000  # Time for the last words of the last worker that is back

STORES_TROUBLE_NS = RESTART_GRACE_NS
"""Time for which models have no copy, or copies no room, before that is a trouble: preparing and copying
take time."""

STORES_COMPARED_MAX = 16
"""Workers with bounded stores of which the one with room for a new model is found, the emptiest first."""

ROOM_RETRY_NS = 10_000_000_000
"""Pause after which a model that was served before, of which no worker has a copy and for which no store
has room, is tried again."""

COPIES_DRAIN_NS = 60_000_000_000
"""Time for which a worker that leaves is kept until others have fetched the models that only its store has.
The worker itself waits for its --drain, 10 s by default."""

# ----- clocks ----------------------------------------------------------------------------------

DRIFT_PPM = 200  # Bound of the drift between two clocks: twice that of the worst crystals

LOST_NS = 500_000_000
"""Uncertainty of a clock's offset at which windows are meaningless, and the worker's clock counts as lost."""

RESET_TOLD_NS = 10_000_000_000  # Time for which a jump of a clock is reported

# ----- the catalogue ---------------------------------------------------------------------------

CATALOG_CHANGES_KEPT = 10_000  # Changes of which the catalogue says who made them, the newest

CHANGED_BY_MAX = 200  # Characters by which the catalogue tells who made a change

CATALOG_LOG_BYTES = 2 << 20
"""Length of SQLite's log at which it is written back into the database: some hundred changes, which the next
start reads."""

CATALOG_RESERVE_BYTES = 128 << 10
"""Room on the disk that is held free for removals while the disk is full: a removal writes some 24 KiB, and
SQLite's opening 40 KiB."""

CATALOG_BUSY_S = 1.0  # Time for which SQLite waits for another process that reads the catalogue

SNAPSHOT_TRIES = 5
"""Times that a snapshot is begun again because a package was removed while it was written."""

SNAPSHOT_PIECE_BYTES = 1 << 20  # Bytes of a snapshot that are read at a time
SNAPSHOT_HEAD_BYTES_MAX = 1 << 16  # Largest description at the beginning of a snapshot

POSTGRES_LOCK_S = 3  # Time for which a controller waits for the lock of one that has just ended

POSTGRES_TIMEOUT_S = 5  # Time for PostgreSQL to take a connection, and to end a statement

EXIT_TAKEN_OVER = 75  # Exit status of a controller that another has taken over from; sysexits' EX_TEMPFAIL

LEASE_LOCK_TIMEOUT = "1s"
"""Time after which a standby's wait for the lock of the active is begun again: for so long a wait may outlive
its standby in PostgreSQL."""

LEASE_CLOSE_S = 1.0  # Time for which a controller that ends waits for PostgreSQL to give the lease up

BACKUP_PAUSE_S = 0.5
"""Least pause between two backups of the catalogue, so that a backup is at most a second behind."""

BACKUP_RETRY_S = 2.0  # Pause after which a backup that failed is tried again

BACKUP_BUSY_SHARE = 0.05
"""Largest share of a core that backups of a catalogue with many models take, at the cost of longer pauses."""

BACKUP_ROWS_AT_ONCE = 64  # Rows of a backup that are compared with their checksums between two pauses

# ----- stored packages -------------------------------------------------------------------------

PACKAGE_CACHE_BYTES = 64 << 30
"""Default bound of the copies on a controller's disk of packages that it keeps in an object store. A larger
package is refused."""
PACKAGE_CACHE_BYTES_LEAST = 1 << 20  # Smallest such bound

PACKAGE_LIST_BYTES_MAX = 16 << 20  # Largest list of a package's files in an object store

PACKAGE_CHANGES_AT_ONCE = UPLOADS_MAX
"""Threads for packages that come to an object store and go: an upload is not to wait for others."""

PACKAGE_READS_AT_ONCE = 4  # Packages of which pieces are read for workers at a time

INSPECTION_PAUSE_S = 0.2
"""Pause between the checks of two packages of an object store, which take other processes' time."""

STORE_RETRY_S = 10.0
"""Time for which a package that could not be fetched from an object store is not asked for again, and after
which a store that failed is asked again."""

REPAIR_RETRY_NS = 60_000_000_000
"""Pause after which a damaged package is fetched again that came and could not be stored."""

INSPECTION_BUSY_SHARE = 0.05
"""Share of a core that the check of stored packages takes after a start. It runs beside requests, at the
priority of the loop, and nothing waits for it."""


def planned_store_bytes(store_bytes: int) -> int:
    """Return the part of a worker's store that the scheduler plans with."""
    return store_bytes * STORE_PLANNED_PARTS // STORE_PLANNED_WHOLE
