"""Every bound, default and environment variable, in one place. Nothing else reads the environment.

Constants of a single room are in the file of its name here. Constants that several rooms use, and everything read from
the environment, are in this file.

Bounds are constants. Settings that a user may choose are fields of a settings class; a flag overrides an
environment variable, which overrides the default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from clockwork.errors import ConfigError

VERSION = "0.1.0"
"""Version of the package; setup.py reads it here."""

# ----- endpoints -----------------------------------------------------------------------------

CLIENT_ENDPOINT = "tcp://127.0.0.1:5555"
WORKER_ENDPOINT = "tcp://127.0.0.1:5556"
EVENTS_ENDPOINT = "tcp://127.0.0.1:5557"

# ----- the wire ------------------------------------------------------------------------------

HEADER_BYTES_MAX = 32 << 10
"""Largest header of a message for which messages.HEADER_BYTES has no bound of its own."""

REQUEST_HEADER_BYTES_MAX = 128 << 10
"""Largest header of a request: names and shapes of TENSORS_MAX inputs. Every client may send it, and reading it in
Python costs at most half a millisecond."""

FILES_MAX = 4_096
PACKAGE_BYTES_MAX = 64 << 30
"""Largest package."""

TENSORS_MAX = 1_024
"""Most inputs, and most outputs, of a model."""

NAME_BYTES_MAX = 1_024
"""Longest name of a tensor, and longest path of a file within its package."""

SENTENCE_BYTES_MAX = 16 << 10
"""Longest sentence for people in a message; the sender cuts a longer one."""

REPLY_BYTES_MAX = 16 << 20
REPLY_VALUES_MAX = 1_000_000
"""Size and values of the answer to a query, enough for some 25,000 models; a longer answer is a failure."""

SUMMARY_BYTES_MAX = 2 << 20
"""Largest header of Prepared, with the model's metadata (the labels of 20,000 classes are half of that)."""

STATS_VALUES_MAX = 100_000
"""Most values in a heartbeat: a worker of a thousand devices sends 30,000."""

STATS_BYTES_WORKER, STATS_BYTES_DEVICE = 4 << 10, 2 << 10
STATS_VALUES_WORKER, STATS_VALUES_DEVICE = 128, 96
"""What a heartbeat may have of them, for the worker and for each of its devices: about three times what it has."""

STATUS_ROWS_MAX = 2_048
"""Devices and failed preparations that status describes, those of the workers with the fewest first, so that any number of
workers fits REPLY_BYTES_MAX and REPLY_VALUES_MAX."""

MESSAGE_BYTES_MAX = 1 << 30
"""ZMQ_MAXMSGSIZE of every socket: the largest frame that is accepted."""

FRAMES_MAX = 65_536
"""The most frames of one message."""

FAILURE_CHARS_MAX = 10_000
"""Longest sentence of a failure, and longest of its details: they quote the request, which may be megabytes."""

ERROR_CHARS_MAX = 1_000
"""Longest sentence of an error of the gateway, and longest of its details: gRPC's peers take 8 KB of metadata."""

TOLD_CHARS = 80
"""Characters of an untrusted value that a sentence about it quotes (clockwork.wire.telling)."""

COMPLAINT_LINES = 5
COMPLAINT_INTERVAL_NS = 1_000_000_000
"""Complaints of a kind about peers: COMPLAINT_LINES lines are logged at once, and one for each interval after that.
Complaints that are left out are counted."""

COMPLAINT_CHARS_MAX = 4_000
COMPLAINT_FRAMES = 12
"""Longest complaint in the log, and the number of innermost calls in a traceback there."""

LOG_CHARS_MAX = 16_000
"""Longest line of a log."""

LOG_FORMAT_VARIABLE = "CLOCKWORK_LOG_FORMAT"

LOG_FORMATS = ("text", "json")
"""Forms of the lines that processes log."""

RANK_MAX = 32
"""The most dimensions of a tensor."""

STRINGS_MAX = 1 << 16
"""The most elements of a tensor of strings: the controller looks at the length of each."""

STRING_SIZE_MIN = 64
"""Bytes, or work of an image, up to which strings count as of one size where executions are timed; longer ones count as of
the next power of two."""

LENGTH_CLASS_MIN = 4
"""Size up to which dimensions count as of one size in which requests of different length share batches; larger ones as of
the next power of two, or of the next that is one and a half."""

SEND_QUEUE_MAX = 65_536
"""ZMQ_SNDHWM: messages that may wait for a peer; a peer that lets more pile up is disconnected."""

HELLO_BYTES_MAX = 1 << 20
"""Bytes that may wait to be received on a connection without a hello."""

HELLO_BYTES_ALL_MAX = 64 << 20
"""Bytes that may wait to be received on all connections of a port without a hello; the largest is ended first."""

UNGREETED_MAX = 4_096
"""Connections of a port without a hello; the next one ends the oldest of the address with the most of them."""

HELLO_NS = 10_000_000_000
"""Time for which a connection may be open without a hello, or without a subscription where events are published."""

SEAT_IDLE_NS = 5_000_000_000
"""Silence after which a peer without requests under way gives way, where all seats are taken, to another one with the same
key or address. A holder of more seats than another's gives way at once."""

RECEIVED_BYTES_MAX = MESSAGE_BYTES_MAX + (256 << 20)
"""Bytes of a peer that may wait to be received: the largest message and some that follow it."""

RECEIVED_BYTES_ALL_MAX = 4 << 30
"""Bytes of all peers of a port that may wait to be received; the peer with the most is disconnected first."""

CLIENT_UNREAD_BYTES_MAX = 256 << 20
"""Bytes of answers that a client may leave unread, beyond as many as it has read: half of UNREAD_BYTES_ALL_MAX at most. A
further answer of more than 64 KiB is replaced by a refusal; a quarter more, and the connection is ended."""

UNREAD_NS = 10_000_000_000
"""Time for which a peer with more than a MiB unread may read less than 256 KiB a second, until its connection is ended."""

WORKER_UNREAD_BYTES_MAX = 1 << 30
"""Bytes of orders that a worker may leave unread: more than a client's, because batches are larger."""

UNREAD_BYTES_ALL_MAX = 2 << 30
"""Bytes that all peers of a port may leave unread; a further answer is replaced by a refusal, peers that stand still are
disconnected, and beyond a quarter more the peer with the most."""

MEMORY_SHARE_MAX = 0.75
"""Part of the memory that the controller may have. Beyond it, peers with the most bytes waiting to be received are
disconnected: small frames take 32 times as much memory as the bytes that are counted."""

INFLOW_LOOK_NS = 100_000_000
"""Interval at which a client checks the bytes that wait on its connection (RECEIVED_BYTES_MAX); a worker does so with
each heartbeat."""

INFLOW_SMALL_BYTES = 1 << 20
"""Bytes waiting on a connection up to which it counts as read."""

EVENTS_QUEUE_MAX = 1_024
"""Events of a few hundred bytes that may wait for a subscriber; a subscriber that does not keep up loses the rest."""

EVENTS_TOPIC_BYTES_MAX = 1 << 10
EVENTS_RECEIVED_BYTES_MAX = 64 << 10
"""Largest subscription, and most bytes that a subscriber may send; more ends its connection. A publisher keeps every
subscription."""

SUBSCRIBERS_MAX = 1_024
"""Connections to a controller's events: a quarter of them without a subscription yet, of which a further one ends the oldest
of the address with the most; the others with one, of which a further one ends the oldest of an address that has more."""

SUBSCRIPTIONS_PER_LOOK = 256
"""Subscriptions that a publisher takes in at once: half a millisecond."""

DESCRIPTORS_KEPT = 64
DESCRIPTORS_LEAST = 64
"""Descriptors that a controller keeps for files, and those that it needs for connections."""

CHUNK_BYTES = 1 << 20
"""Size of the chunks in which files travel, small so that no request waits long behind a chunk."""

CHUNK_WINDOW = 8
"""Chunks of a transfer that may be under way unacknowledged."""

FETCHES_MAX = 64
"""Chunks that a worker may have asked for and the controller not read yet: two windows for each of its transfers. A
worker that asks for more is disconnected."""

HANDSHAKES_BROKEN_MAX = 3
"""Handshakes that may break off in a row before the peer assumes wrong keys: a single one also breaks off when the
controller goes away in the middle of it."""

ALLOWED_BYTES_MAX = 4 << 20
"""Largest list of allowed keys: some 60,000 of them."""

# ----- the controller ------------------------------------------------------------------------

POLICY = "adaptive"
"""The default policy. `edf` promises at admission, so each of its refusals comes at arrival; `adaptive` answers as many of
the same requests in time where batches save little, and 1.5 to 10 times as many where they save much (bench/grid),
recovers from as many disturbances, and has fewer late answers in live runs (docs/results)."""

QUEUED_REQUESTS_MAX = 65_536
"""Requests held by a controller; further ones are refused as overloaded."""

QUEUED_BYTES_MAX = 4 << 30
"""Bytes of inputs held by a controller."""

CLIENTS_MAX = 16_384
WORKERS_MAX = 1_024
"""Peers of a port that have said hello. For a further one, the peer that was silent longest leaves, of the key or address
with the most of them."""

SEATS_ASKED_MAX = 64
"""Clients that are passed over for a newcomer's seat because they wait for an answer; no more, so that a hello costs little."""

UPLOADS_MAX = 64
"""Uploads at one time. For a further one an upload of the client or key with the most of them ends, or one that stands
still."""

UPLOAD_STALL_NS = 2_000_000_000
UPLOAD_IDLE_NS = 60_000_000_000
UPLOAD_BYTES_LEAST = 256 << 10
"""An upload stands still that has not sent so many bytes, or its rest, for UPLOAD_STALL_NS, and ends after UPLOAD_IDLE_NS."""

MODELS_MAX = 1_000_000
CHANGES_WAITING_MAX = 256
"""Changes of a name that may wait until an earlier change of it is on disk."""

ERASE_RETRY_NS = 5_000_000_000
"""Pause after which a controller tries again to erase a version that it has refused and could not erase."""

VERSION_MAX = (1 << 63) - 1
"""The highest version number: people number versions by the time, too."""

VERSION_DIGITS_MAX = len(str(VERSION_MAX))
"""Digits of the highest version number."""

VERSIONS_MAX = 16
"""Versions of a name that stay registered; the oldest is removed when a further one is ready."""

SHARE_WHOLE = 10_000
"""The parts that make up all of a name's traffic: a version's share of 1 is 0.01 %."""

ROUTES_KEPT = 8
"""Earlier routes of a name that rollbacks can restore, one after the other."""

SHADOW_TOLERANCE = 1e-3
"""Default tolerance of a shadow: answers with a larger relative difference are counted."""

PRIORITY_DEFAULT = 4
"""The priority that 0 stands for. As in Triton, 1 is the highest and larger numbers are lower."""

PRIORITY_MAX = 255

REGISTER_BATCH_MAX = 4_096
"""The largest batch that a registration may ask for."""

DRAIN_BATCH_EVENTS = 256
"""Messages taken from a socket before the scheduler plans: one plan for many arrivals."""

TURN_HEADER_BYTES = 256 << 10
"""Bytes of headers taken from a socket before the scheduler plans; 256 usual requests have 30,000. A message that needs
Python counts for 4 KiB more."""

TURN_PYTHON_NS = 5_000_000
"""Time for which Python handles messages of clients, or of workers, before the scheduler plans."""

METRIC_BOUNDS_NS = tuple(
    round(base * 10**exponent)
    for exponent in range(4, 11)
    for base in (1, 2.5, 5)
    if 50_000 <= base * 10**exponent <= 10_000_000_000
)
"""Upper bounds of the buckets of a controller's histograms of durations: from 50 us to 10 s."""

PREDICTION_BOUNDS_NS = tuple(round(base * 10**exponent) for exponent in range(4, 9) for base in (1, 2.5, 5))
"""Upper bounds of the buckets of a controller's histograms of prediction errors: from 10 us to 500 ms."""

WORKER_FAULTS_MAX = 2
"""Impossible results (of another size, type or shape than the model's, say) after which a worker is disconnected. Fewer
than the tries of a request, so that another worker answers whatever this one was sent."""

PREPARE_AGAIN_NS = (10_000_000_000, 60_000_000_000, 600_000_000_000)
"""Pauses after which a worker that failed to prepare a model is asked again, one after the other; then no more."""

FAILURES_TOLD_MAX = 20
"""Failed preparations of a worker whose reasons status lists."""

PROFILE_POINTS_MAX = 4_096
"""Most points of a model's profile that a worker may report."""

RUNS_REPORTED_MAX = 1 << 17
"""Most runs of pages of a model that a worker may report."""

RUN_PAGES_MAX = (1 << 31) - 1
"""Most pages of a model, in all runs of its layout."""

SUMMARY_TEXT_CHARS_MAX = 4_096
"""Longest text in a worker's summary of a model."""

METRICS_MODELS_PAGE = 64
LISTED_MODELS_PAGE = 32
"""Models in an answer to the queries for metrics and for models: gathering them blocks the controller, for so many for a
millisecond."""

TROUBLES_PER_KIND_MAX = 64
"""Troubles of a kind that status lists; further ones are only counted."""

REPORTED_SOURCES_MAX = 64
"""Model sources that gateways report as failing at one time."""

TROUBLE_CHARS_MAX = 300
"""Longest subject of a trouble, and longest sentence about it."""

TROUBLE_KEPT_NS = 86_400_000_000_000
"""Time after its last event at which a trouble that nothing mends is forgotten: a day."""

RECORD_BYTES_MAX = 1 << 30
"""Size at which a recording of a controller's events ends: some 10 million requests."""

# ----- models that end workers, or do not end: csrc/scheduler/records.h has the same numbers -----

EVIDENCE_LOST = 1
EVIDENCE_CRASHED = 2
EVIDENCE_MAX = 3
"""Evidence against a request that was executing when its worker ended: EVIDENCE_CRASHED if the worker reported a crash,
EVIDENCE_LOST if it vanished, which may have another cause. At EVIDENCE_MAX the request is not tried again, and its model
is set aside."""

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
    memory_share: float = MEMORY_SHARE_MAX  # of limits.memory_bytes()

    def within(self, greeted: int, ungreeted: int) -> ConnectionBounds:
        """These bounds, with at most so many connections."""
        return dataclasses.replace(
            self, greeted=min(self.greeted, greeted), ungreeted=min(self.ungreeted, ungreeted)
        )


CLIENT_CONNECTIONS = ConnectionBounds()
WORKER_CONNECTIONS = ConnectionBounds(greeted=WORKERS_MAX, unread_bytes=WORKER_UNREAD_BYTES_MAX)


# ----- stored bytes -------------------------------------------------------------------------

CHECK_PIECE_BYTES = 1 << 20
"""Bytes of a stored file that are read and hashed at once; other work may run between two pieces."""

CHECK_BUSY_SHARE = 0.25
"""Share of a core that checks of stored bytes take in idle time."""

CHECK_JOB_MODELS = 16
"""Prepared models that the preparation process checks before it looks for a model to prepare."""

DAMAGED_KEPT_MAX = 4
"""Damaged files or directories that a folder keeps for inspection; older ones are removed."""

REFETCHES_MAX = 2
"""Times that a worker fetches a damaged package again before it gives the model up."""

SEALED_BYTES_MAX = 64 << 20
"""Largest sealed file: a record, a route, or the description of a prepared model, which has a row for each weight."""

MENDED_BYTES_MAX = 8192
"""Largest sealed file in which a flipped bit is searched for: trying each bit takes a quarter of a second."""

# ----- liveness ------------------------------------------------------------------------------

HEARTBEAT_NS = 250_000_000
"""Interval of a worker's heartbeats and of the controller's pings."""

WORKER_TIMEOUT_NS = 2_000_000_000
"""Silence after which a worker counts as lost, and its actions are planned anew."""

HELLO_PAUSE_NS = 250_000_000
"""Pause before the next hello of a worker that the controller let go soon after it had let it in; doubled each time up to
HELLO_PAUSE_MAX_NS. Without it, a worker that the controller cannot handle would join and leave hundreds of times a
second."""

HELLO_PAUSE_MAX_NS = 8_000_000_000

HELLO_SETTLED_NS = 10_000_000_000
"""Time with a controller after which a worker that is let go says hello again at once."""

CLOCK_LIMIT_NS = 2_000_000_000
"""Time after a worker's hello at which an unknown clock is a trouble: the worker has answered no ping."""

JITTER_COUNTED_MAX_NS = 5_000_000
"""Most wake-up jitter of a worker that plans allow for. On a busy machine the jitter is tens of milliseconds; allowing
for all of it would refuse every request with such an SLO, when most would be in time."""

CLOCK_WINDOW = 64
"""Pings over which a worker's clock offset is bounded; the drift within it is small."""

# ----- the worker ----------------------------------------------------------------------------

PAGE_BYTES_MAX = 1 << 28
PAGES_MAX = 1 << 24
"""Largest page, and most pages, of a device's arena. All pages of WORKER_DEVICES_MAX devices fit 62 bits of bytes."""

WORKER_DEVICES_MAX = 1_024
"""Most devices of a worker; an emulated worker may have hundreds."""

RUN_AHEAD_MAX = 256
"""Largest run_ahead that a device may announce."""

HOST_BYTES_MAX = 1 << 50

CLOCK_MHZ_MAX = 1_000_000
"""A clock rate above any real one."""

PAGE_BYTES = 1 << 20
"""Page size of a CPU arena. CUDA copies are fastest with pages of 16 MiB; for memcpy the size does not matter, and small
pages waste little on small models."""

ARENA_BYTES = 1 << 30
"""Default size of a CPU arena. Every page is touched at start, which takes about a second for each GiB."""

RUN_AHEAD = 2
"""Actions that a lane may hold: the running one and the next, so that a device never waits for Python."""

ACTIONS_QUEUED_MAX = 4096
"""Actions that a worker holds for a device; further ones are answered DEVICE_ERROR."""

WORKER_MESSAGES_PER_TURN = 64
"""Messages that a worker takes from its socket before it polls its devices again."""

JITTER_WINDOW = 256
"""Timed waits over which a worker measures how late it wakes; at four heartbeats a second, one minute."""

SWITCH_INTERVAL_NS = 50_000
"""How long a worker's helper threads may keep the interpreter once its loop wants it (Python's own: 5 ms)."""

COLLECT_INTERVAL_NS = 10_000_000_000
"""Interval at which a worker collects cyclic garbage, in a heartbeat rather than in the middle of other work."""

TRANSFERS_MAX = 4
"""Packages that a worker fetches at once; more wait for their turn."""

PREPARATION_LIMIT_NS = 900_000_000_000
"""Limit of a model's preparation, profiling included, after which it is killed. Optimising a large model takes minutes."""

PREPARATION_RUN_NS = 60_000_000_000
"""Limit of an execution during preparation, unless CLOCKWORK_PREPARATION_RUN says how many seconds. A model that takes
longer, at low priority, is unfit to be served."""

PREPARATION_SLOW_NS = 10_000_000_000
"""Time after which a preparation is slow: the next one starts beside it, or instead of it."""

PREPARATION_LONG_RUN_NS = 2_000_000_000
"""Duration of an execution during preparation beyond which the preparation is slow at once."""

PREPARATIONS_MAX = 3
"""Preparations that run at once, of a worker and of all workers that share a store."""

PREPARATION_IDLE_NS = 60_000_000_000
"""Idle time after which the preparation process ends, which frees its memory."""

PREPARATION_RSS_MAX = 2 << 30
"""Memory beyond which a preparation process is replaced before the next model."""

PREPARATION_BYTES = 2 << 30
"""Memory that a preparation may take whatever its package's size, unless CLOCKWORK_PREPARATION_BYTES says otherwise: at 16
rows, a network for images takes 0.7 GiB of it."""

PREPARATION_BYTES_FACTOR = 12
"""Memory beyond PREPARATION_BYTES that a preparation may take, as a multiple of its package's size. A model of 244 MiB took
9.5 times its size, twice of it as arenas in which it was timed; smaller ones no more than 10 times."""

PREPARATION_BYTES_PER_CPU = 32 << 20
"""And for each processor: the stacks of two sessions' threads, which are counted whole."""

PREPARATION_FREE_SHARE = 0.75
"""Share of the machine's free memory that a preparation may take: beyond that, the machine has too little for it."""

EXECUTION_LIMIT_NS = 2_000_000_000
EXECUTION_LIMIT_FACTOR = 10
"""An execution is ended after EXECUTION_LIMIT_FACTOR times its predicted time, but not before EXECUTION_LIMIT_NS: on a
busy machine it may be descheduled for a second."""

EXECUTION_GRACE_NS = 2_000_000_000
"""Time that an execution may take to end once it is ended (a running node is not interrupted) before its worker begins
anew."""

LOAD_LIMIT_NS = 30_000_000_000
LOAD_LIMIT_FACTOR = 10
"""A worker begins anew when a LOAD or FETCH, which cannot be interrupted, takes more than LOAD_LIMIT_FACTOR times its
predicted time, but not before LOAD_LIMIT_NS (or CLOCKWORK_LOAD_LIMIT's seconds): a disk of 333 MB/s reads 10 GB that have
left the page cache in that time."""

CHECK_LIMIT_NS = 600_000_000_000
"""Limit of the check of stored bytes that a LOAD waits for, after which its worker begins anew: 60 GB at 100 MB/s."""

WATCH_INTERVAL_NS = 50_000_000
"""Interval at which a worker checks running actions against their limits."""

WATCH_GAP_MAX_NS = 200_000_000
"""Most time between two of these checks that counts against an action: beyond it the worker itself did not run."""

OOM_SCORE = 300
"""oom_score_adj of a worker: when a model takes more than its budget (the runtime allocates strings itself), the kernel
should end a worker, and neither the controller nor an unrelated process."""

PREPARATION_OOM_SCORE = 1000
"""oom_score_adj of a preparation, which goes before its worker whatever either of them has taken: it can be repeated."""

DRAIN_LIMIT_NS = 10_000_000_000
"""Default time for which a worker that was told to stop goes on with its actions."""

DRAIN_SETTLE_NS = 1_000_000_000
"""Time for which an idle worker that stops waits for the controller's word that no more actions are on their way."""

# ----- copies from and to clients' memory, in workers and gateways -----------------------------

COPY_THREADS = 4
"""Threads that copy from and to clients' memory, each for one owner at a time: so many owners have to make copies stand
still before others wait."""

COPY_PIECE_BYTES = 4 << 20
"""Bytes after which it is another owner's turn: a millisecond or two."""

COPIES_MAX = 4_096
OWNER_COPIES_MAX = 1_024
"""Copies that wait, in all and for each owner. A copy is of one request's inputs or outputs."""

COPIES_CLOSE_S = 1.0
"""Time for which a process that ends waits for each of these threads."""

# ----- the client ----------------------------------------------------------------------------

CLIENT_TIMEOUT_NS = 30_000_000_000
"""Default time for which a call waits for its answer."""

CLIENT_CONNECT_NS = 5_000_000_000
"""Time for which a call waits for a connection: short, so that a user who forgot to start a cluster hears of it soon."""

CLIENT_STALL_NS = 960_000_000_000
"""Time without progress after which a registration without a timeout of its own is given up."""

CLIENT_CALLS_MAX = 16_384
"""Calls of a client that may wait for their answers; further ones are refused as overloaded."""

CLIENT_MESSAGES_PER_TURN = 1_024
"""Messages that a client takes in before it looks at timeouts and new calls again."""

CLIENT_INBOX_MAX = 4_096
"""Unread messages of an upload (its callback for progress may be slow); a further one ends it."""

UPLOAD_AHEAD_BYTES_MAX = 256 << 20
"""Most bytes of a package that a client sends unacknowledged, and largest chunk, whatever the controller asks for."""

CLIENT_THREAD_IDLE_NS = 5_000_000_000
"""Idle time after which a client's I/O thread ends; a lone caller then does its own I/O again."""

CLIENT_SHARED_TENSOR_BYTES = 64 << 10
"""Size from which a tensor is put into shared memory, where a client has any: below it, a message is as quick."""

CLIENT_MEMORY_PART_BYTES = 64 << 20
"""Least size of a piece of a client's shared memory. Its pages are the system's until they are first written to."""

CLIENT_MEMORY_BYTES_MAX = 1 << 30
"""Shared memory of one client; tensors for which none is left are sent."""

CLIENT_MEMORY_PAUSE_NS = 10_000_000_000
CLIENT_MEMORY_PAUSE_MAX_NS = 640_000_000_000
"""Time for which a client sends its tensors after a worker could not use its memory: twice as long each time in a row, up to
the second."""

CLIENT_ROOMS_MAX = 1_024
"""Models of which a client keeps the size of their outputs."""

CLIENT_LONE_CALLS = 32
"""Blocking calls in a row, none overlapping another, after which a client's I/O thread ends: a single caller in a loop
never leaves the thread idle, and the hop between threads costs it 100 us a call."""

SECONDS_MAX = 31_536_000
"""The longest SLO or timeout, in seconds: a year."""

SLO_DOUBTED_NS = 10_000_000_000
"""An SLO from which on a client warns: it may have been meant in milliseconds."""

MODEL_REFERENCE_MAX = 256
"""Most characters of ``name`` or ``name@version`` in a request."""

MODEL_REFERENCE_BYTES_MAX = 4 * MODEL_REFERENCE_MAX
"""The same in UTF-8, and of what asks for a further page of models."""

LANE_SPIN_NS = 30_000
"""Time before an action's window opens, or before what a GPU does is predicted to end, at which a lane stops sleeping and
spins: about the cost of a wake-up, so that starting on time takes a core for no longer than that."""

IO_SLOT_BYTES_MAX = 1 << 30
"""Largest joined inputs of an action."""

EXECUTION_WORKSPACE_BYTES = 512 << 20
"""Memory that every execution on a CPU device may take, whatever its profile says: inputs of a shape that was not
measured may need far more."""

EXECUTION_WORKSPACE_FACTOR = 16
"""An execution may take this many times the memory of its profile, or EXECUTION_WORKSPACE_BYTES if that is more."""

WORKSPACE_SHARE = 2
"""All executions of a process may take 1 / WORKSPACE_SHARE of the machine's memory, unless CLOCKWORK_WORKSPACE_BYTES says
how much."""

# ----- CUDA devices --------------------------------------------------------------------------

CUDA_PAGE_BYTES = 16 << 20
"""Page size of a CUDA arena: a copy of so many bytes reaches the link's full rate."""

CUDA_LOAD_PIECE_BYTES = 4 << 20
"""Weights that a LOAD copies at a time. Three such pieces are on their way to the GPU, so that an input waits for 12 MiB at
most (0.5 ms at 25 GB/s), and the link is busy for two of them while the end of one is noticed."""

CUDA_DRIVER = "libcuda.so.1"
"""The driver's library, unless CLOCKWORK_CUDA_DRIVER names another, or its path."""

CUDA_DRIVER_OLDEST = 11040
"""CUDA 11.4: the first driver with every function that is called."""

CUDA_EXTRAS_OLDEST = 12000
"""CUDA 12.0: the first driver for which CuPy is among this package's extras."""

CUDA_ARENA_SHARE = 0.85
"""Default size of a CUDA arena, as a part of the memory that is free when the device is opened. The rest is for
workspace and slots, and for the modules."""

CUDA_PINNED_SHARE = 0.25
"""Default size of the pinned memory for weights of CUDA models, as a part of the machine's memory."""

CUDA_PINNED_BYTES_MAX = 16 << 30
"""It is at most that by default: pinning takes a quarter of a second for each GiB, at every start."""

CUDA_WORKSPACE_BYTES = 256 << 20
"""Workspace of a CUDA device at start; it grows when a model that needs more is prepared."""

CUDA_GRAPHS_MAX = 4096
"""Most CUDA graphs of a device: one for each variant of a program and slot. The driver takes memory of the device for
each, it does not say how much. What is beyond is launched kernel by kernel."""

CUDA_IO_SLOT_BYTES = 16 << 20
"""Size at start of each slot for inputs and outputs of a CUDA device; it grows likewise."""

RESERVE_STALL_NS = 10_000_000
"""Time of a device that a worker asks for to load a program's modules, until some have been loaded; then the time of those."""

RESERVE_NS_MAX = 60_000_000_000
"""A worker asks for no more of a device's time at once, and nobody expects it to take longer."""

RESERVE_RUNS_MAX = 16_384
"""Runs of pages that a worker asks for with it: 256 GiB in pages of CUDA_PAGE_BYTES."""

TRIAL_RESERVE_NS = 2_000_000
"""Time of a device that a worker asks for at once to try a model that is registered: one execution, or as many as are
thought to fit into it."""

TRIAL_FIRST_NS = 10_000_000
"""Time of a device that a worker asks for to execute a model, or load a page of it, for the first time."""

TRIAL_COPIES = 3
"""A model of fewer pages has each copied so often to time a LOAD of it; a larger one copies enough."""

TRIAL_CLAIMS_MAX = 20
"""Reservations in which the pages to try a model in may still be in use, before it is given up."""

TRIAL_RUNS = 5
"""Executions of each batch size by which a model on a GPU is timed; the last of those to warm up is the first of them."""

TRIAL_LONG_RUNS = 3
"""The same, of a size that takes longer than a RESERVE for several: others wait for each."""

TRIAL_WARM, TRIAL_WARM_RUNS = 0.97, 20
"""Executions before those: until one takes more than this part of the one before, and at most so many."""

CLOCK_SAMPLE_NS = 200_000_000
"""Interval at which a thread of a worker asks NVML for the clocks of its GPUs."""

CLOCK_STEP_RATIO = 0.005
"""Relative change of a clock below which it is not reported: the clock of a GPU that boosts always moves."""

# ----- clockwork up ---------------------------------------------------------------------------

RESTART_PAUSE_NS = 250_000_000
"""Pause before the second restart in a row of a process that ended, doubled each time; the first restart is immediate."""

RESTART_PAUSE_MAX_NS = 16_000_000_000
"""Longest pause before a restart."""

RESTART_SETTLED_NS = 60_000_000_000
"""Running time after which a process that ends counts as failing for the first time."""

RESTARTS_MAX = 8
"""Restarts in a row after which a process is given up: half a minute of pauses."""

# ----- profiles ------------------------------------------------------------------------------

PROFILE_BYTES_MAX = 1 << 29
"""The largest profile file: a million models of five hundred bytes each."""

BATCH_SIZE_MAX = 65_536
"""The largest batch of a profile."""


# ----- emulated devices ----------------------------------------------------------------------

EMULATED_PAGE_BYTES = 16 << 20
"""Page size of an emulated arena, as in the paper."""

EMULATED_ARENA_BYTES = 1376 * EMULATED_PAGE_BYTES
"""Arena of an emulated device: the pages of a 32 GB V100, less the memory that the paper's workers reserve."""

EMULATED_DEVICES_MAX = WORKER_DEVICES_MAX
"""Most emulated devices of a worker."""

EMULATED_SPIN_NS = 60_000
"""Time before the end of an emulated action at which the process wakes and spins, where it may."""

STALE_EVENTS_MAX = 1024
"""Stale entries that the heap of emulated lanes may have beyond one for each lane, before it is built anew."""

ELEMENTS_MAX = 1 << 40
"""Most elements of an input, as on other devices."""

NOISE_SIGMA_MAX = 2.0


def environment(name: str, default: str) -> str:
    """CLOCKWORK_<name>, or the default where it is unset or empty."""
    return os.environ.get(f"CLOCKWORK_{name}") or default


def bare_environment(**values: str) -> dict[str, str]:
    """The variables that every program needs to run, and ``values``: for a child process whose result must not depend on
    this process's environment."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **values}


def client_endpoint() -> str:
    return environment("ENDPOINT", CLIENT_ENDPOINT)


def worker_endpoint() -> str:
    return environment("WORKER_ENDPOINT", WORKER_ENDPOINT)


def events_endpoint() -> str:
    return environment("EVENTS_ENDPOINT", EVENTS_ENDPOINT)


def data_directory() -> Path:
    """The directory in which controller and workers keep models: CLOCKWORK_DATA, else below XDG_DATA_HOME."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(environment("DATA", f"{base}/clockwork")).expanduser()


def cuda_driver() -> str:
    return environment("CUDA_DRIVER", CUDA_DRIVER)


def cuda_graphs() -> bool:
    """CLOCKWORK_CUDA_GRAPHS: whether CUDA devices launch recorded graphs (1), or kernel by kernel (0). Raises
    ConfigError."""
    said = environment("CUDA_GRAPHS", "1")
    if said not in ("0", "1"):
        raise ConfigError(f"CLOCKWORK_CUDA_GRAPHS is {said!r}: it is 1 or 0")
    return said == "1"


def is_nvidias(driver: str) -> bool:
    """Whether a CUDA driver, by its name or path, is NVIDIA's own."""
    return Path(driver).name.startswith("libcuda.so")


def fake_clocks() -> Path | None:
    """CLOCKWORK_FAKE_CLOCKS: the file to which a test writes the clocks of devices that are not GPUs."""
    name = environment("FAKE_CLOCKS", "")
    return Path(name) if name else None


def sysfs() -> Path:
    """CLOCKWORK_SYSFS: where a test has the kernel's description of the machine."""
    return Path(environment("SYSFS", "/sys"))


def visible_devices() -> str | None:
    """CUDA_VISIBLE_DEVICES: which devices the driver shows to this process; None: all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def show_mig_instances(uuids: Sequence[str]) -> None:
    """Have CUDA show these MIG instances (MIG-...) to this process, unless CUDA_VISIBLE_DEVICES hides them.

    To be called before the driver is initialised, which shows the first instance of the first card otherwise.
    """
    given = visible_devices()
    if given is None or set(uuids) <= set(given.split(",")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)


def workspace_bytes_max() -> int:
    """The most that executions on the CPU devices of this process may take together. Raises ConfigError."""
    said = environment("WORKSPACE_BYTES", "")
    return parse_bytes(said) if said else machine_bytes() // WORKSPACE_SHARE


def preparation_run_ns() -> int:
    """Limit of an execution during preparation. Raises ConfigError."""
    said = environment("PREPARATION_RUN", "")
    try:
        seconds = float(said) if said else PREPARATION_RUN_NS / 1e9
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= PREPARATION_LIMIT_NS / 1e9:
        limit_s = PREPARATION_LIMIT_NS / 1e9
        raise ConfigError(f"CLOCKWORK_PREPARATION_RUN is {said!r}: it is seconds, at most {limit_s:g}")
    return round(seconds * 1e9)


def preparation_bytes(package_bytes: int) -> int:
    """Memory that preparing a package may take. Raises ConfigError."""
    said = environment("PREPARATION_BYTES", "")
    base = parse_bytes(said) if said else PREPARATION_BYTES
    processors = (os.cpu_count() or 1) * PREPARATION_BYTES_PER_CPU
    return base + processors + PREPARATION_BYTES_FACTOR * package_bytes


def source_networks() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """CLOCKWORK_SOURCE_NETWORKS: networks, with commas between them, in which servers that models are fetched from may
    redirect to addresses that are not public. Raises ConfigError."""
    said = environment("SOURCE_NETWORKS", "")
    try:
        return [ipaddress.ip_network(word.strip()) for word in said.split(",") if word.strip()]
    except ValueError as error:
        raise ConfigError(f"CLOCKWORK_SOURCE_NETWORKS: {error}") from None


def load_limit_ns() -> int:
    """Lower bound of the limits of LOADs and FETCHes. Raises ConfigError."""
    said = environment("LOAD_LIMIT", "")
    try:
        seconds = float(said) if said else LOAD_LIMIT_NS / 1e9
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= SECONDS_MAX:
        raise ConfigError(f"CLOCKWORK_LOAD_LIMIT is {said!r}: it is seconds, at most {SECONDS_MAX:g}")
    return round(seconds * 1e9)


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is in where that is less."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(Path(name).read_text(encoding="ascii")))
    return found


def cuda_pinned_bytes() -> int:
    """Pinned memory for weights of CUDA models, unless a worker is told how much."""
    return min(int(machine_bytes() * CUDA_PINNED_SHARE), CUDA_PINNED_BYTES_MAX)


def execution_workspace_bytes(measured: int) -> int:
    """Memory that an execution may take. measured: the most that the model's profile took; 0: not measured."""
    most = workspace_bytes_max()
    if measured == 0:
        return most
    return min(max(EXECUTION_WORKSPACE_BYTES, EXECUTION_WORKSPACE_FACTOR * measured), most)


def key_file() -> Path | None:
    """CLOCKWORK_KEY: the file that holds this peer's CURVE keys."""
    name = environment("KEY", "")
    return Path(name).expanduser() if name else None


OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wants_traces() -> bool:
    """Whether OpenTelemetry's own variables name a target for traces, and do not disable it."""
    return not disables_traces() and any(os.environ.get(name) for name in OTLP_ENDPOINTS)


def disables_traces() -> bool:
    """Whether OpenTelemetry's own variable disables traces."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def names_service() -> bool:
    """Whether the environment names this process for traces."""
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in named


def operator_key_file() -> Path | None:
    """CLOCKWORK_OPERATOR_KEY: the file of an operator's key, with which a gateway loads and unloads models."""
    name = environment("OPERATOR_KEY", "")
    return Path(name).expanduser() if name else None


def allowed_hosts() -> tuple[str, ...]:
    """CLOCKWORK_ALLOWED_HOST: names under which a gateway may be asked, with commas between them."""
    return tuple(name.strip() for name in environment("ALLOWED_HOST", "").split(",") if name.strip())


def logs_json() -> bool:
    """CLOCKWORK_LOG_FORMAT: whether processes log JSON. Raises ConfigError for a value that is none of LOG_FORMATS."""
    found = environment("LOG_FORMAT", LOG_FORMATS[0])
    if found not in LOG_FORMATS:
        raise ConfigError(
            f"{LOG_FORMAT_VARIABLE} is {found[:40]!r}, which is none of {', '.join(LOG_FORMATS)}"
        )
    return found == "json"


def set_log_format(value: str) -> None:
    """Have this process and those that it starts log in one of LOG_FORMATS."""
    os.environ[LOG_FORMAT_VARIABLE] = value


def status_codes() -> str:
    """CLOCKWORK_STATUS_CODES: which statuses a gateway answers refusals with; "" for its default."""
    return environment("STATUS_CODES", "")


def allowed_file() -> Path | None:
    """CLOCKWORK_ALLOWED: the file with the keys that may connect to a controller."""
    name = environment("ALLOWED", "")
    return Path(name).expanduser() if name else None


def silence_onnxruntime() -> None:
    """Switch off the telemetry of ONNX Runtime, here and in child processes. To be called before it is loaded.

    The telemetry would send from a thread in the middle of an execution, and leaves a file in TMPDIR.
    ORT_DISABLE_TELEMETRY=0 keeps it on.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load_kernels_eagerly() -> None:
    """Have CUDA load kernels with their module rather than at their first launch, in the middle of an INFER.

    To be called before the driver is initialised.
    """
    os.environ["CUDA_MODULE_LOADING"] = "EAGER"


def parse_bytes(text: str) -> int:
    """``"512M"``, ``"4GiB"``, ``"1048576"`` as a count of bytes. Raises ConfigError."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    body = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = body[-1:] if body[-1:] in "kmgt" else ""
    try:
        value = float(body.removesuffix(unit))
    except ValueError:
        raise ConfigError(f"{text!r} is not a size in bytes (try 512M or 4GiB)") from None
    if not 0 < value * units[unit] < 1 << 60:
        raise ConfigError(f"{text!r} is not a size between 1 byte and 1 EiB")
    return round(value * units[unit])


SHRINK_RUNS_MAX = 2_000
"""Runs of a failed simulated world to find the smallest one that still fails; each takes milliseconds."""
