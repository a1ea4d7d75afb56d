"""Every bound, default and environment variable, in one place. Nothing else reads the environment.

What belongs to one room is in the file of its name here; whatever more than one room uses, and all that is read of
the environment, is in this one.

Bounds are constants. What a user may choose is a field of a settings class; a flag overrides an
environment variable, which overrides the default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from clockwork.errors import ConfigError

VERSION = "0.1.0"
"""The package's, which packaging reads here."""

# ----- endpoints -----------------------------------------------------------------------------

CLIENT_ENDPOINT = "tcp://127.0.0.1:5555"
WORKER_ENDPOINT = "tcp://127.0.0.1:5556"
EVENTS_ENDPOINT = "tcp://127.0.0.1:5557"

# ----- the wire ------------------------------------------------------------------------------

HEADER_BYTES_MAX = 32 << 10
"""Of the header of a message for which messages.HEADER_BYTES has no bound of its own."""

REQUEST_HEADER_BYTES_MAX = 128 << 10
"""Of a request: names and shapes of TENSORS_MAX inputs. Anybody may send one, and reading it in Python costs at most
half a millisecond."""

FILES_MAX = 4_096
PACKAGE_BYTES_MAX = 64 << 30
"""Of a package."""

TENSORS_MAX = 1_024
"""Inputs or outputs of a model."""

NAME_BYTES_MAX = 1_024
"""Of a tensor's name, and of a file's path within its package."""

SENTENCE_BYTES_MAX = 16 << 10
"""Of a sentence for people in a message; a longer one is cut where it is sent."""

REPLY_BYTES_MAX = 16 << 20
REPLY_VALUES_MAX = 1_000_000
"""Of the answer to a query, which lists some 25,000 models; a longer one is a failure."""

SUMMARY_BYTES_MAX = 2 << 20
"""Of what a worker tells of a model, its metadata included (the labels of 20,000 classes are half of that)."""

STATS_VALUES_MAX = 100_000
"""Values in a heartbeat: a worker of a thousand devices tells 30,000."""

MESSAGE_BYTES_MAX = 1 << 30
"""ZMQ_MAXMSGSIZE of every socket: the largest frame that is accepted."""

FRAMES_MAX = 65_536
"""The most frames of one message."""

FAILURE_CHARS_MAX = 10_000
"""Of a failure's sentence, and of each of its facts: they repeat what a request said, which may be megabytes."""

ERROR_CHARS_MAX = 1_000
"""Of an error's sentence, and of each of its facts, as clients of the gateway are told it: gRPC's peers take 8 KB of
metadata."""

TOLD_CHARS = 80
"""Of a stranger's value, how much a sentence about it repeats (clockwork.wire.telling)."""

COMPLAINT_LINES = 5
COMPLAINT_INTERVAL_NS = 1_000_000_000
"""Of one kind of complaint about peers, so many lines are logged at once, and one for each interval after that;
what is left out is counted."""

COMPLAINT_CHARS_MAX = 4_000
COMPLAINT_FRAMES = 12
"""Of one complaint, and of its traceback's calls, the innermost."""

RANK_MAX = 32
"""The most dimensions of a tensor."""

STRINGS_MAX = 1 << 16
"""The most elements of a tensor of strings: the controller looks at the length of each."""

SEND_QUEUE_MAX = 65_536
"""ZMQ_SNDHWM: messages that may wait for one peer; a peer that lets more pile up is given up."""

HELLO_BYTES_MAX = 1 << 20
"""Bytes that a connection without a hello may have sent and the controller not taken."""

HELLO_BYTES_ALL_MAX = 64 << 20
"""The same of all connections to one port without a hello together; the one with the most goes first."""

UNGREETED_MAX = 4_096
"""Connections to one port on which no peer is noted; one more ends the oldest."""

RECEIVED_BYTES_MAX = MESSAGE_BYTES_MAX + (256 << 20)
"""Bytes of one peer that have come and that the controller has not taken: a largest message and what follows it."""

RECEIVED_BYTES_ALL_MAX = 4 << 30
"""The same of all peers of one port together; the one with the most goes first."""

CLIENT_UNREAD_BYTES_MAX = 256 << 20
"""Bytes of answers that a client may leave unread; one more answer ends its connection."""

WORKER_UNREAD_BYTES_MAX = 1 << 30
"""The same of a worker, whose batches are larger."""

UNREAD_BYTES_ALL_MAX = 2 << 30
"""The same of all peers of one port together; the one with the most goes first."""

MEMORY_SHARE_MAX = 0.75
"""Of the memory that the controller may have. Beyond it, peers with the most received and not taken are ended: small
frames take 32 times as much memory as the bytes that are counted."""

INFLOW_LOOK_NS = 100_000_000
"""How often a client looks at what has come on its connection and was not taken (RECEIVED_BYTES_MAX); a worker does with
each heartbeat."""

INFLOW_SMALL_BYTES = 1 << 20
"""A connection on which no more has come than this is held to be read."""

EVENTS_QUEUE_MAX = 1_024
"""Events that may wait for one subscriber, of a few hundred bytes each; one that does not keep up loses the rest."""

EVENTS_TOPIC_BYTES_MAX = 1 << 10
EVENTS_RECEIVED_BYTES_MAX = 64 << 10
"""Of one subscription, and of all that a subscriber says; more ends its connection. A publisher keeps every subscription."""

SUBSCRIBERS_MAX = 1_024
"""Of a controller's events; the next connection is ended."""

CHUNK_BYTES = 1 << 20
"""The size of the pieces in which files travel, small so that no request waits behind a large one."""

CHUNK_WINDOW = 8
"""Chunks of one transfer that may be under way unacknowledged."""

FETCHES_MAX = 64
"""Chunks that a worker may have asked for and the controller not read yet: two windows for each of its transfers. One
that asks for more is let go."""

HANDSHAKES_BROKEN_MAX = 3
"""Handshakes that may break off in a row before the other side's key is held to be another one: one does
as well when the controller goes away in the middle of it."""

ALLOWED_BYTES_MAX = 4 << 20
"""The largest list of keys that a controller lets in: some 60,000 of them."""

# ----- the controller ------------------------------------------------------------------------

POLICY = "adaptive"
"""How a controller schedules unless told otherwise. `edf` promises at admission, so each of its refusals comes at arrival; of
the same requests `adaptive` answers as many in time where batches save little, and 1.5 to 10 times as many where they save
much (bench/grid), recovers from as many disturbances, and live has fewer answers late (docs/results)."""

QUEUED_REQUESTS_MAX = 65_536
"""Requests held by a controller; one more is refused as overloaded."""

QUEUED_BYTES_MAX = 4 << 30
"""Bytes of inputs held by a controller."""

CLIENTS_MAX = 16_384
WORKERS_MAX = 1_024
UPLOADS_MAX = 64
MODELS_MAX = 1_000_000
CHANGES_WAITING_MAX = 256
"""Orders that may wait until an earlier change of the same name is on disk."""

ERASE_RETRY_NS = 5_000_000_000
"""How long until a controller tries again to erase a version that it has refused and could not erase."""
VERSION_MAX = (1 << 31) - 1
"""The highest number of a version."""

VERSIONS_MAX = 16
"""Versions of one name that stay registered; the oldest goes when one more is ready."""

SHARE_WHOLE = 10_000
"""All of a name's traffic: shares of versions are counted in parts of it, so 1 is 0.01 %."""

ROUTES_KEPT = 8
"""Earlier routes of a name that can be gone back to, one after the other."""

SHADOW_TOLERANCE = 1e-3
"""Answers of a shadow that are further off than this, relatively, are counted, unless another bound is given."""

PRIORITY_DEFAULT = 4
"""What priority 0 means, in Triton's sense: 1 is the highest; larger is lower."""

PRIORITY_MAX = 255

REGISTER_BATCH_MAX = 4_096
"""The largest batch that a registration may ask for."""

DRAIN_BATCH_EVENTS = 256
"""Messages taken from a socket before the scheduler plans: one plan for many arrivals."""

TURN_HEADER_BYTES = 256 << 10
"""Of headers taken from a socket at once; 256 usual requests are 30,000. A message that needs Python counts for 4 KiB
more."""

TURN_PYTHON_NS = 5_000_000
"""Once Python has dealt with messages of clients, or of workers, for so long, the scheduler plans before the next."""

METRIC_BOUNDS_NS = tuple(
    round(base * 10**exponent)
    for exponent in range(4, 11)
    for base in (1, 2.5, 5)
    if 50_000 <= base * 10**exponent <= 10_000_000_000
)
"""Upper bounds of the histograms of durations that a controller keeps: from 50 us to 10 s."""

PREDICTION_BOUNDS_NS = tuple(round(base * 10**exponent) for exponent in range(4, 9) for base in (1, 2.5, 5))
"""The same of the errors of predictions, which are smaller: from 10 us to 500 ms."""

WORKER_FAULTS_MAX = 2
"""Answers of a worker that cannot be (of another size, type or shape than its model's, say) at which it is let go. Fewer
than the times that a request is tried, so that whatever such a worker gets is answered by another."""

PREPARE_AGAIN_NS = (10_000_000_000, 60_000_000_000, 600_000_000_000)
"""Pauses after which a worker that failed to prepare a model is asked again, one after the other; then no more."""

FAILURES_TOLD_MAX = 20
"""Models that a worker failed to prepare of which status says why."""

PROFILE_POINTS_MAX = 4_096
"""Measurements of one model that a worker may tell."""

RUN_PAGES_MAX = (1 << 31) - 1
"""Pages of one model, in all runs of its layout."""

SUMMARY_TEXT_CHARS_MAX = 4_096
"""Of any one text in what a worker tells of a model."""

METRICS_MODELS_PAGE = 64
"""Models that one answer to the query for metrics tells of: the controller serves nobody while it gathers them, which is
a millisecond for so many."""

TROUBLES_PER_KIND_MAX = 64
"""Things of one kind that status lists as wrong; of more there is only a count."""

TROUBLE_CHARS_MAX = 300
"""Of what is wrong, and of the sentence about it."""

TROUBLE_KEPT_NS = 86_400_000_000_000
"""An event that nothing mends is forgotten a day after it happened last."""

RECORD_BYTES_MAX = 1 << 30
"""A recording of a controller's events ends at this size: some 10 million requests."""

# ----- models that end workers, or do not end: csrc/scheduler/state.h has the same numbers -----

EVIDENCE_LOST = 1
EVIDENCE_CRASHED = 2
EVIDENCE_MAX = 3
"""What counts against a request that was executing when a worker ended: more if the worker said that it crashed, less if
it was lost without a word, which may have come from outside. At EVIDENCE_MAX the request is not tried again, and its
model is set aside."""

OVERRUNS_MAX = 5
"""A model with so many executions within FAULT_WINDOW_NS that took longer than they may is set aside as well."""

FAULT_WINDOW_NS = 600_000_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """What the connections of one of the controller's ports may have it hold."""

    ungreeted: int = UNGREETED_MAX
    hello_bytes: int = HELLO_BYTES_MAX
    hello_bytes_all: int = HELLO_BYTES_ALL_MAX
    received_bytes: int = RECEIVED_BYTES_MAX
    received_bytes_all: int = RECEIVED_BYTES_ALL_MAX
    unread_bytes: int = CLIENT_UNREAD_BYTES_MAX
    unread_bytes_all: int = UNREAD_BYTES_ALL_MAX
    memory_share: float = MEMORY_SHARE_MAX  # of limits.memory_bytes()


CLIENT_CONNECTIONS = ConnectionBounds()
WORKER_CONNECTIONS = ConnectionBounds(unread_bytes=WORKER_UNREAD_BYTES_MAX)


# ----- bytes on disk -------------------------------------------------------------------------

CHECK_PIECE_BYTES = 1 << 20
"""Read and hashed at once of a file that is checked: between two pieces others have their turn."""

CHECK_BUSY_SHARE = 0.25
"""Of one core, what checking stored bytes takes that nobody waits for."""

CHECK_JOB_MODELS = 16
"""Prepared models that the preparation process checks before it looks whether there is one to prepare."""

DAMAGED_KEPT_MAX = 4
"""Damaged files or directories that are kept in one folder to be looked at; older ones go."""

REFETCHES_MAX = 2
"""How often a worker fetches a package again that it found damaged, until it gives the model up."""

SEALED_BYTES_MAX = 64 << 20
"""Of a record, a route or the description of a prepared model, which has a row for each weight."""

MENDED_BYTES_MAX = 8192
"""Of a sealed file in which a flipped bit is looked for: trying each takes a quarter of a second for so many bytes."""

# ----- liveness ------------------------------------------------------------------------------

HEARTBEAT_NS = 250_000_000
"""Interval of a worker's heartbeats and of the controller's pings."""

WORKER_TIMEOUT_NS = 2_000_000_000
"""A worker unheard of for this long is given up, and its actions planned anew."""

HELLO_PAUSE_NS = 250_000_000
"""A worker that is let go soon after it was let in waits so long before it says hello again, twice as long the next
time, and so on: one that the controller cannot deal with would else join and leave hundreds of times a second."""

HELLO_PAUSE_MAX_NS = 8_000_000_000

HELLO_SETTLED_NS = 10_000_000_000
"""After so long with one controller, a worker that is let go says hello again at once."""

CLOCK_LIMIT_NS = 2_000_000_000
"""A worker whose clock is not known so long after it joined is named: it has answered no ping."""

JITTER_COUNTED_MAX_NS = 5_000_000
"""The most of a worker's wake-up jitter that plans allow for. On a machine that others keep busy it is tens of
milliseconds; allowing for all of it refuses every request whose SLO is near that, when most would be in time."""

CLOCK_WINDOW = 64
"""Pings over which a worker's clock offset is bounded; the drift within it is small."""

# ----- the worker ----------------------------------------------------------------------------

PAGE_BYTES_MAX = 1 << 28
PAGES_MAX = 1 << 24
"""Of a device's arena. Bytes of all pages of WORKER_DEVICES_MAX devices fit 62 bits."""

WORKER_DEVICES_MAX = 1_024
"""Of one worker; an emulated one may have hundreds."""

RUN_AHEAD_MAX = 256
"""Actions that a device may be sent ahead of what it does."""

HOST_BYTES_MAX = 1 << 50

CLOCK_MHZ_MAX = 1_000_000
"""More than any clock."""

PAGE_BYTES = 1 << 20
"""Page size of a CPU arena. A CUDA arena has 16 MiB pages, which is what its copies like best; a memcpy
has no such taste, and small pages waste little on small models."""

ARENA_BYTES = 1 << 30
"""The default. Every page of it is touched at start, which takes about a second for each GiB."""
RUN_AHEAD = 2
"""Actions a lane may hold: one that runs and one behind it, so that a device never waits for Python."""

ACTIONS_QUEUED_MAX = 4096
"""Actions that a worker holds for one device; one more is answered DEVICE_ERROR."""

WORKER_MESSAGES_PER_TURN = 64
"""Messages a worker takes from its socket before it looks at its devices again."""

JITTER_WINDOW = 256
"""Timed waits over which a worker measures how late it wakes; at four heartbeats a second, one minute."""

SWITCH_INTERVAL_NS = 50_000
"""How long a worker's helper threads may keep the interpreter once its loop wants it (Python's own: 5 ms)."""

COLLECT_INTERVAL_NS = 10_000_000_000
"""How often a worker looks for cyclic garbage, all at once and at a time of its own choosing."""

TRANSFERS_MAX = 4
"""Packages that a worker fetches at once; more wait for their turn."""

PREPARATION_LIMIT_NS = 900_000_000_000
"""One model's preparation, profiling included; what takes longer is killed. A large model is optimised for minutes."""

PREPARATION_RUN_NS = 60_000_000_000
"""One execution while a model is prepared, unless CLOCKWORK_PREPARATION_RUN says how many seconds. A model that takes
longer, at low priority, is unfit to be served."""

PREPARATION_SLOW_NS = 10_000_000_000
"""A preparation that has run for so long is passed by the next, which then runs beside it."""

PREPARATIONS_MAX = 3
"""Preparations of one worker, and of all workers that share a store, that run at once."""

PREPARATION_IDLE_NS = 60_000_000_000
"""The preparation process leaves after so long without work, and its memory with it."""

PREPARATION_RSS_MAX = 2 << 30
"""A preparation process that grew beyond this is replaced before the next model."""

EXECUTION_LIMIT_NS = 2_000_000_000
EXECUTION_LIMIT_FACTOR = 10
"""An execution may take so many times what was predicted of it, and at least so long: on a machine that others keep busy
it may be descheduled for a second. Then it is ended."""

EXECUTION_GRACE_NS = 2_000_000_000
"""How long after that it may go on (one node of a graph is not interrupted) before its worker begins anew."""

LOAD_LIMIT_NS = 30_000_000_000
LOAD_LIMIT_FACTOR = 10
"""A LOAD or FETCH may take so many times what was predicted of it, and at least so long, unless CLOCKWORK_LOAD_LIMIT says
how many seconds: 10 GB that have left the page cache come from a disk of 333 MB/s in that time. None can be
interrupted, so then its worker begins anew."""

CHECK_LIMIT_NS = 600_000_000_000
"""The same for a LOAD that waits until what it reads has been compared with its checksums: 60 GB at 100 MB/s."""

WATCH_INTERVAL_NS = 50_000_000
"""How often a worker looks at what its devices execute."""

WATCH_GAP_MAX_NS = 200_000_000
"""The most that counts between two such looks: for longer the worker itself did not run."""

OOM_SCORE = 300
"""What a worker and its preparations add to their badness: what a model takes beside its budget (strings are the
runtime's own) should have the kernel end a worker, and neither the controller nor a stranger."""

DRAIN_LIMIT_NS = 10_000_000_000
"""How long a worker that was told to stop goes on with actions that it has, unless told otherwise."""

DRAIN_SETTLE_NS = 1_000_000_000
"""How long it waits, idle, for the controller's word that no more actions are on their way."""

# ----- the client ----------------------------------------------------------------------------

CLIENT_TIMEOUT_NS = 30_000_000_000
"""How long a call waits for its answer where the caller does not say."""

CLIENT_CONNECT_NS = 5_000_000_000
"""How long a call waits for a connection: who forgot to start a cluster should hear of it soon."""

CLIENT_STALL_NS = 960_000_000_000
"""A registration without a limit of its own is given up after this long without any sign of progress."""

CLIENT_CALLS_MAX = 16_384
"""Calls of one client that may wait for their answers; one more is refused as overloaded."""

CLIENT_MESSAGES_PER_TURN = 1_024
"""Messages that a client takes in before it looks at the time, and at what it has been asked to do, again."""

CLIENT_INBOX_MAX = 4_096
"""Messages of an upload that its caller has not read yet (its callback for progress may be slow); one more ends it."""

UPLOAD_AHEAD_BYTES_MAX = 256 << 20
"""Bytes of a package that a client sends ahead of what was acknowledged, and of one piece, whatever it is asked for."""

CLIENT_THREAD_IDLE_NS = 5_000_000_000
"""A client's I/O thread ends after this long without work; a lone caller then does its own I/O again."""

CLIENT_LONE_CALLS = 32
"""It also ends after so many blocking calls in a row of which no two overlapped: one caller in a loop, who
would never leave it idle for long, and whom the way through another thread costs 100 us a call."""

SECONDS_MAX = 31_536_000
"""The longest SLO or timeout, in seconds: a year."""

MODEL_REFERENCE_MAX = 256
"""Characters of ``name`` or ``name@version`` in a request."""

LANE_SPIN_NS = 30_000
"""A lane sleeps until this long before an action's window opens and spins from there: about what a
wake-up costs, so that starting on time takes a core for no longer than that."""

IO_SLOT_BYTES_MAX = 1 << 30
"""The largest joined inputs of one action."""

EXECUTION_WORKSPACE_BYTES = 512 << 20
"""Memory that any execution on a CPU device may take, whatever its profile says: inputs of another shape than those
that were measured may need far more."""

EXECUTION_WORKSPACE_FACTOR = 16
"""What an execution may take is so many times the most that its profile took, or the above if that is more."""

WORKSPACE_SHARE = 2
"""All executions of a process together may take this part of the machine's memory (1 / WORKSPACE_SHARE), unless
CLOCKWORK_WORKSPACE_BYTES says how much."""

# ----- CUDA devices --------------------------------------------------------------------------

CUDA_PAGE_BYTES = 16 << 20
"""Pages of a CUDA arena: a copy of so much reaches the link's full rate."""

CUDA_DRIVER = "libcuda.so.1"
"""The driver's library, unless CLOCKWORK_CUDA_DRIVER names another, or its path."""

CUDA_DRIVER_OLDEST = 11040
"""CUDA 11.4: the first driver with every function that is called."""

CUDA_ARENA_SHARE = 0.85
"""Of the memory that is free when a device is made, what its arena takes unless told otherwise. The rest is for
workspace and slots, for the modules, and for the process that profiles models on the same card."""

CUDA_WORKSPACE_BYTES = 256 << 20
"""Allocated at start; a model that needs more has it grow when it is prepared."""

CUDA_IO_SLOT_BYTES = 16 << 20
"""Likewise, of each slot for inputs and outputs."""

CLOCK_SAMPLE_NS = 200_000_000
"""How often a worker asks NVML for the clocks of its GPUs, in a thread of its own."""

CLOCK_STEP_RATIO = 0.005
"""A change of a clock by less than this is not told: a GPU that boosts never stands still."""

# ----- clockwork up ---------------------------------------------------------------------------

RESTART_PAUSE_NS = 250_000_000
"""A process that ended is started again at once the first time; after this the second time in a row, and then after
twice as long each time."""

RESTART_PAUSE_MAX_NS = 16_000_000_000
"""The longest such pause."""

RESTART_SETTLED_NS = 60_000_000_000
"""What has served for so long before it ended begins anew with pauses and count."""

RESTARTS_MAX = 8
"""Restarts in a row, over half a minute of pauses, after which a process is given up."""

# ----- profiles ------------------------------------------------------------------------------

PROFILE_BYTES_MAX = 1 << 29
"""The largest profile file: a million models of five hundred bytes each."""

BATCH_SIZE_MAX = 65_536
"""The largest batch of a profile."""


# ----- emulated devices ----------------------------------------------------------------------

EMULATED_PAGE_BYTES = 16 << 20
"""Pages as the paper's workers have them."""

EMULATED_ARENA_BYTES = 1376 * EMULATED_PAGE_BYTES
"""Of one emulated device: the pages of a 32 GB V100, less what the paper's workers keep for themselves."""

EMULATED_DEVICES_MAX = WORKER_DEVICES_MAX
"""Of one worker, which is as many as one worker may announce."""

EMULATED_SPIN_NS = 60_000
"""How long before an end the process wakes to wait for it exactly, where it may spin."""

STALE_EVENTS_MAX = 1024
"""Entries of the heap that may be out of date beyond one for each lane, before it is built anew."""

ELEMENTS_MAX = 1 << 40
"""Of one input, as on other devices."""

NOISE_SIGMA_MAX = 2.0


def environment(name: str, default: str) -> str:
    """CLOCKWORK_<name>, or the default where it is unset or empty."""
    return os.environ.get(f"CLOCKWORK_{name}") or default


def bare_environment(**values: str) -> dict[str, str]:
    """For a child process whose result must not depend on this one's environment: what any program needs
    to run at all, and ``values``."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **values}


def client_endpoint() -> str:
    return environment("ENDPOINT", CLIENT_ENDPOINT)


def worker_endpoint() -> str:
    return environment("WORKER_ENDPOINT", WORKER_ENDPOINT)


def events_endpoint() -> str:
    return environment("EVENTS_ENDPOINT", EVENTS_ENDPOINT)


def data_directory() -> Path:
    """Where controller and workers keep models: CLOCKWORK_DATA, else below XDG_DATA_HOME."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(environment("DATA", f"{base}/clockwork")).expanduser()


def cuda_driver() -> str:
    return environment("CUDA_DRIVER", CUDA_DRIVER)


def fake_clocks() -> Path | None:
    """CLOCKWORK_FAKE_CLOCKS: the file in which a test writes the clocks of devices that are no GPUs."""
    name = environment("FAKE_CLOCKS", "")
    return Path(name) if name else None


def workspace_bytes_max() -> int:
    """The most that executions on the CPU devices of this process may take together. Raises ConfigError."""
    said = environment("WORKSPACE_BYTES", "")
    return parse_bytes(said) if said else machine_bytes() // WORKSPACE_SHARE


def preparation_run_ns() -> int:
    """How long one execution may take while a model is prepared. Raises ConfigError."""
    said = environment("PREPARATION_RUN", "")
    try:
        seconds = float(said) if said else PREPARATION_RUN_NS / 1e9
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= PREPARATION_LIMIT_NS / 1e9:
        limit_s = PREPARATION_LIMIT_NS / 1e9
        raise ConfigError(f"CLOCKWORK_PREPARATION_RUN is {said!r}: it is seconds, at most {limit_s:g}")
    return round(seconds * 1e9)


def load_limit_ns() -> int:
    """The least that a LOAD or FETCH may take before its worker begins anew. Raises ConfigError."""
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


def execution_workspace_bytes(measured: int) -> int:
    """The budget of one execution. measured: the most that the model's profile took; 0: that was not measured."""
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
    """Whether OpenTelemetry's own variables say where traces go, and do not switch it off."""
    return not disables_traces() and any(os.environ.get(name) for name in OTLP_ENDPOINTS)


def disables_traces() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def names_service() -> bool:
    """Whether the environment says how this process is called in traces."""
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in named


def operator_key_file() -> Path | None:
    """CLOCKWORK_OPERATOR_KEY: an operator's key, with which a gateway changes what is served."""
    name = environment("OPERATOR_KEY", "")
    return Path(name).expanduser() if name else None


def allowed_file() -> Path | None:
    """CLOCKWORK_ALLOWED: the list of the keys that a controller lets in."""
    name = environment("ALLOWED", "")
    return Path(name).expanduser() if name else None


def silence_onnxruntime() -> None:
    """Have ONNX Runtime, loaded after this, and that of child processes, report nothing to its makers.

    Its telemetry would send from a thread in the middle of an execution, and leaves a file in TMPDIR. Who
    wants it says so: ORT_DISABLE_TELEMETRY=0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load_kernels_eagerly() -> None:
    """Have CUDA load every kernel with its module, and not at its first launch, in the middle of an INFER.

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
"""Runs of a simulated world that failed, to find the least of it that still does; each takes milliseconds."""
