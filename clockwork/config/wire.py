"""Bounds of messages, sockets and connections between processes."""

from __future__ import annotations

# ----- wire/transport.py -----------------------------------------------------------------------

HEARTBEAT_MS = 500
"""Interval of ZMTP heartbeats, which the peer's I/O thread answers: they notice a dead host, not a stuck
process."""

HEARTBEAT_TIMEOUT_MS = 3_000
HEARTBEAT_EAGER_MS = 250
HEARTBEAT_TIMEOUT_EAGER_MS = 1_000
"""The same where there are several endpoints: by then another controller has taken over from one that stands
still."""

KEEPALIVE_S = 1
KEEPALIVE_COUNT = 2
"""Interval of TCP keepalive probes of a bound socket, and how many may stay unanswered: a dead host is
noticed after 3 s."""

RECONNECT_MS = 50
RECONNECT_EAGER_MS = 10  # Where there are several endpoints: another controller may be about to listen
RECONNECT_MAX_MS = 500

UNKNOWN_FIELDS_MAX = (
    16  # Fields of a later release at the end of a message, and keys of a map, that are skipped
)
UNKNOWN_DEPTH_MAX = 16  # Levels of the value of such a field or key
UNKNOWN_VALUES_MAX = 4_096  # Values in it

ENDPOINTS_MAX = 16  # Endpoints of controllers that a client or a worker tries in turn
ENDPOINT_DIAL_NS = (
    50_000_000  # Time in which one of several endpoints takes a connection; then the next is dialled
)
ENDPOINT_ROUNDS_MAX = (
    3  # Rounds through all of several endpoints after which that time is not doubled any more
)
ENDPOINT_GREETING_NS = 150_000_000
"""Time in which one of several endpoints that took a connection completes its handshake: the system takes
connections for a process that is stopped, too. It is doubled in each round, as ENDPOINT_DIAL_NS is."""

ENDPOINT_WELCOME_NS = 1_500_000_000  # Time in which a controller that took one lets in who greets it
LINGER_MS = 250  # Time for which a closing socket still tries to send its queued messages

COPY_BYTES = 262_144
"""Size below which a copy is cheaper than a zero-copy send, because pyzmq learns of each freed buffer on a
thread that needs the interpreter's lock: sending and receiving 48 KB takes 42 us of processor time instead of
59, 200 KB 69 instead of 91; for 600 KB both take the same."""

# ----- wire/inflow.py --------------------------------------------------------------------------

FRAME_EXTRA_BYTES = 64  # Bytes added for each frame taken: more than framing and encryption add on the wire

FRAME_MEMORY_RATIO = 64
"""Most bytes of memory for a byte on the wire. The worst case is messages of a single byte: three bytes on
the wire become 64 bytes of libzmq's and the allocator's overhead."""

HEARTBEAT_BYTES_PER_S = 1 << 10  # Allowance for the peer's heartbeats, which libzmq takes itself

# ----- messages, texts and queues --------------------------------------------------------------

HEADER_BYTES_MAX = 32 << 10
"""Largest header of a message for which messages.HEADER_BYTES has no bound of its own."""

SENTENCE_BYTES_MAX = 16 << 10  # Longest sentence for people in a message; the sender cuts a longer one
REPLY_BYTES_MAX = 16 << 20
REPLY_VALUES_MAX = 1_000_000
"""Size and values of the answer to a query, enough for some 25,000 models; a longer answer is a failure."""

STATS_VALUES_MAX = 100_000  # Most values in a heartbeat: a worker of a thousand devices sends 30,000
TOLD_CHARS = 80  # Characters of an untrusted value that a sentence about it quotes (clockwork.wire.telling)
COMPLAINT_LINES = 5
COMPLAINT_INTERVAL_NS = 1_000_000_000
"""Complaints of a kind about peers: COMPLAINT_LINES lines are logged at once, and one for each interval after
that. Complaints that are left out are counted."""

COMPLAINT_CHARS_MAX = 4_000
COMPLAINT_FRAMES = 12  # Longest complaint in the log, and the number of innermost calls in a traceback there
LOG_CHARS_MAX = 16_000  # Longest line of a log

STRING_SIZE_MIN = 64
"""Bytes, or work of an image, up to which strings count as of one size where executions are timed; longer
ones count as of the next power of two."""

DIMENSIONS_MAX = 1 << 62
"""Largest product of a shape's dimensions, zeros left out, that numpy can express."""

LENGTH_CLASS_MIN = 4
"""Size up to which dimensions count as of one size in which requests of different length share batches;
larger ones as of the next power of two, or of the next that is one and a half."""

SEND_QUEUE_MAX = 65_536
"""ZMQ_SNDHWM: messages that may wait for a peer; a further message disconnects the peer."""

EVENTS_QUEUE_MAX = 1_024
"""Events of a few hundred bytes that may wait for a subscriber; a slow subscriber loses further events."""

EVENTS_TOPIC_BYTES_MAX = 1 << 10
EVENTS_RECEIVED_BYTES_MAX = 64 << 10
"""Largest subscription, and most bytes that a subscriber may send; more ends its connection. A publisher
keeps every subscription."""

SUBSCRIPTIONS_PER_LOOK = 256  # Subscriptions that a publisher takes in at once, in half a millisecond
ALLOWED_BYTES_MAX = 4 << 20  # Largest list of allowed keys: some 60,000 of them

# ----- a worker's reports ----------------------------------------------------------------------

PROFILE_POINTS_MAX = 4_096  # Most points of a model's profile that a worker may report
THREADS_REPORTED_MAX = 16  # Most numbers of threads of which it may report an execution's time, and
EXECUTION_THREADS_MAX = 1_024  # the most threads of one
RUNS_REPORTED_MAX = 1 << 17  # Most runs of pages of a model that a worker may report
SUMMARY_TEXT_CHARS_MAX = 4_096  # Longest text in a worker's summary of a model
BUNDLE_FILES_MAX = 3  # Most files of a prepared model's bundle

# ----- a worker's hello ------------------------------------------------------------------------

PAGE_BYTES_MAX = 1 << 28
PAGES_MAX = 1 << 24
"""Largest page, and most pages, of a device's arena. All pages of WORKER_DEVICES_MAX devices fit 62 bits of
bytes."""

RUN_AHEAD_MAX = 256  # Largest run_ahead that a device may announce
HOST_BYTES_MAX = 1 << 50
STORE_BYTES_LEAST, STORE_BYTES_MAX = 1 << 20, 1 << 50  # Bounds of a worker's --store-bytes
CLOCK_MHZ_MAX = 1_000_000  # A clock rate above any real one
