"""Bounds, defaults and environment variables that more than one room uses.

Bounds of a single room are in the file of its name in this package. Only this package reads the environment.

Bounds are constants. Settings that a user may choose are fields of a settings class; a flag overrides an
environment variable, which overrides the default.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from clockwork.errors import ConfigError

VERSION = "0.1.0"  # Version of the package; setup.py reads it here

# ----- endpoints -----------------------------------------------------------------------------

CLIENT_ENDPOINT = "tcp://127.0.0.1:5555"
WORKER_ENDPOINT = "tcp://127.0.0.1:5556"
EVENTS_ENDPOINT = "tcp://127.0.0.1:5557"

# ----- the wire ------------------------------------------------------------------------------

REQUEST_HEADER_BYTES_MAX = 128 << 10
"""Largest header of a request: names and shapes of TENSORS_MAX inputs. Reading such a header in Python costs
at most half a millisecond."""

FILES_MAX = 4_096
PACKAGE_BYTES_MAX = 64 << 30  # Largest package
TENSORS_MAX = 1_024  # Most inputs, and most outputs, of a model
NAME_BYTES_MAX = 1_024  # Longest name of a tensor, and longest path of a file within its package

SUMMARY_BYTES_MAX = 2 << 20
"""Largest header of Prepared, with the model's metadata (the labels of 20,000 classes are half of that)."""

MESSAGE_BYTES_MAX = 1 << 30  # ZMQ_MAXMSGSIZE of every socket: the largest frame that is accepted
FRAMES_MAX = 65_536  # The most frames of one message

FAILURE_CHARS_MAX = 10_000
"""Longest sentence and longest detail of a failure, which quote the request; a request may have megabytes."""

LOG_FORMAT_VARIABLE = "CLOCKWORK_LOG_FORMAT"
LOG_FORMATS = ("text", "json")  # Formats of log lines
RANK_MAX = 32  # The most dimensions of a tensor
STRINGS_MAX = 1 << 16  # The most elements of a tensor of strings; the controller reads the length of each

HELLO_NS = 10_000_000_000
"""Time for which a connection may be open without a hello, or without a subscription where events are
published."""

RECEIVED_BYTES_MAX = MESSAGE_BYTES_MAX + (256 << 20)
"""Bytes of a peer that may wait to be received: the largest message and some that follow it."""

INFLOW_LOOK_NS = 100_000_000
"""Interval at which a client checks the bytes that wait on its connection (RECEIVED_BYTES_MAX); a worker does
so with each heartbeat."""

INFLOW_SMALL_BYTES = 1 << 20  # Bytes waiting on a connection up to which it counts as read

SUBSCRIBERS_MAX = 1_024
"""Connections to a controller's events. A quarter of them may be without a subscription; a further connection
ends the oldest such connection of the address with the most. The others have a subscription; a further
connection ends the oldest of an address that has more than its own."""

CHUNK_BYTES = 1 << 20
"""Size of the chunks in which files travel, small so that no request waits long behind a chunk."""

CHUNK_WINDOW = 8  # Chunks of a transfer that may be unacknowledged at a time

HANDSHAKES_BROKEN_MAX = 3
"""Consecutive handshakes that may break off before the peer assumes wrong keys. A single handshake also
breaks off when the controller ends during it."""

# ----- the controller ------------------------------------------------------------------------

POLICY = "adaptive"
"""The default policy. `edf` promises at admission, so each of its refusals comes at arrival; `adaptive`
answers as many of the same requests in time where batches save little, and 1.5 to 10 times as many where they
save much (bench/grid), recovers from as many disturbances, and has fewer late answers in live runs
(docs/results)."""

QUEUED_REQUESTS_MAX = 65_536  # Requests held by a controller; further requests are refused as overloaded
QUEUED_BYTES_MAX = 4 << 30  # Bytes of inputs held by a controller
CLIENTS_MAX = 16_384
WORKERS_MAX = 1_024
"""Peers of a port that have said hello. A further peer evicts the peer that was silent longest, among those
of the key or address with the most peers."""

STORED_COPIES_MAX = 1_000  # Largest --stored-copies
MODELS_MAX = 1_000_000  # Most models of a controller
VERSION_MAX = (1 << 63) - 1  # The highest version number, which leaves room for timestamps as version numbers
VERSION_DIGITS_MAX = len(str(VERSION_MAX))  # Digits of the highest version number

VERSIONS_MAX = 16
"""Versions of a name that stay registered; the oldest is removed when a further version is ready."""

SHARE_WHOLE = 10_000  # Parts into which a name's traffic is divided: a version's share of 1 is 0.01 %

SHADOW_TOLERANCE = 1e-3
"""Default tolerance of a shadow: answers with a larger relative difference are counted."""

PRIORITY_DEFAULT = 4
"""The priority for which 0 stands. As in Triton, 1 is the highest and larger numbers are lower."""

PRIORITY_MAX = 255
REGISTER_BATCH_MAX = 4_096  # The largest batch that a registration may ask for

METRIC_BOUNDS_NS = tuple(
    round(base * 10**exponent)
    for exponent in range(4, 11)
    for base in (1, 2.5, 5)
    if 50_000 <= base * 10**exponent <= 10_000_000_000
)
"""Upper bounds of the buckets of a controller's histograms of durations: from 50 us to 10 s."""

METRICS_MODELS_PAGE = 64
LISTED_MODELS_PAGE = 32
"""Models in an answer to the queries for metrics and for models. Gathering so many blocks the controller for
a millisecond."""

TROUBLE_CHARS_MAX = 300  # Longest subject and longest sentence of a trouble

# ----- stored bytes -------------------------------------------------------------------------

CHECK_BUSY_SHARE = 0.25  # Share of a core that a worker's checks of stored bytes take in idle time

# ----- liveness ------------------------------------------------------------------------------

HEARTBEAT_NS = 250_000_000  # Interval of a worker's heartbeats and of the controller's pings

# ----- the worker ----------------------------------------------------------------------------

WORKER_DEVICES_MAX = 1_024  # Most devices of a worker; an emulated worker may have hundreds

EXECUTORS_MAX = 256  # Most executors of an arena; each is a device of its worker

SLOWDOWN_THOUSANDTHS_MAX = 64_000
"""Bound on the time of an execution beside executions on all other executors of its arena, in thousandths of
its time by itself."""

PAGE_BYTES = 1 << 20
"""Page size of a CPU arena. The speed of memcpy does not depend on it, and small pages waste little memory on
small models. CUDA copies, by contrast, are fastest with pages of 16 MiB."""

ARENA_BYTES = 1 << 30
"""Default size of a CPU arena. Pages are touched as they are taken."""

RUN_AHEAD = 2
"""Actions that a lane may hold: the running one and the next, so that a device never waits for Python."""

ACTIONS_QUEUED_MAX = 4096
"""Actions that a worker holds for a device; further actions are answered DEVICE_ERROR."""

PREPARATION_LIMIT_NS = 900_000_000_000
"""Limit of a model's preparation, profiling included, after which it is killed. Optimising a large model
takes minutes."""

PREPARATION_RUN_NS = 60_000_000_000
"""Limit of an execution during preparation, unless CLOCKWORK_PREPARATION_RUN says how many seconds. A model
that takes longer, at low priority, is unfit to be served."""

EXECUTION_GRACE_NS = 2_000_000_000
"""Time for an execution to stop after it is told to end, because a running node is not interrupted. After
that time its worker restarts."""

DRAIN_LIMIT_NS = 10_000_000_000  # Default time for which a stopping worker continues its actions

# ----- copies from and to clients' memory, in workers and gateways -----------------------------

COPY_PIECE_BYTES = 4 << 20  # Bytes of copies after which the next owner has its turn: a millisecond or two

# ----- the client ----------------------------------------------------------------------------

CLIENT_TIMEOUT_NS = 30_000_000_000  # Default time for which a call waits for its answer

UPLOAD_AHEAD_BYTES_MAX = 256 << 20
"""Most bytes of a package that a client sends unacknowledged, and largest chunk, whatever the controller asks
for."""

SECONDS_MAX = 31_536_000  # The longest SLO or timeout, in seconds: a year
MODEL_REFERENCE_MAX = 256  # Most characters of ``name`` or ``name@version`` in a request

MODEL_REFERENCE_BYTES_MAX = 4 * MODEL_REFERENCE_MAX
"""Most bytes of the same in UTF-8, and of the argument for a further page of models."""

IO_SLOT_BYTES_MAX = 1 << 30  # Largest joined inputs of an action

# ----- CUDA devices --------------------------------------------------------------------------

CUDA_PAGE_BYTES = 16 << 20  # Page size of a CUDA arena: a copy of so many bytes reaches the link's full rate

CUDA_PINNED_SHARE = 0.25
"""Default size of the pinned memory for weights of CUDA models, as a part of the machine's memory."""

CUDA_PINNED_BYTES_MAX = 16 << 30
"""Upper bound of that default, because pinning takes a quarter of a second for each GiB at every start."""

RESERVE_NS_MAX = 60_000_000_000
"""Longest time of a device that a worker reserves at once, and that the controller expects it to use."""

RESERVE_RUNS_MAX = 16_384
"""Runs of pages that a worker asks for in a reservation: 256 GiB in pages of CUDA_PAGE_BYTES."""

TRIAL_RESERVE_NS = 2_000_000
"""Time of a device that a worker reserves at once to try a model during registration: one execution, or as
many as are estimated to fit."""

# ----- profiles ------------------------------------------------------------------------------

BATCH_SIZE_MAX = 65_536  # The largest batch of a profile

# ----- emulated devices ----------------------------------------------------------------------

EMULATED_PAGE_BYTES = 16 << 20  # Page size of an emulated arena, as in the paper

EMULATED_ARENA_BYTES = 1376 * EMULATED_PAGE_BYTES
"""Arena of an emulated device: the pages of a 32 GB V100, less the memory that the paper's workers reserve.
"""

EMULATED_DEVICES_MAX = WORKER_DEVICES_MAX  # Most emulated devices of a worker


def environment(name: str, default: str) -> str:
    """Return CLOCKWORK_<name>, or the default where it is unset or empty."""
    return os.environ.get(f"CLOCKWORK_{name}") or default


def client_endpoint() -> str:
    return environment("ENDPOINT", CLIENT_ENDPOINT)


def data_directory() -> Path:
    """Return the directory of stored models: CLOCKWORK_DATA, else a directory in XDG_DATA_HOME."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(environment("DATA", f"{base}/clockwork")).expanduser()


def visible_devices() -> str | None:
    """Return CUDA_VISIBLE_DEVICES, the devices that the driver shows to this process; None: all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def preparation_run_ns() -> int:
    """Return the limit of an execution during preparation. Raises ConfigError."""
    said = environment("PREPARATION_RUN", "")
    try:
        seconds = float(said) if said else PREPARATION_RUN_NS / 1e9
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= PREPARATION_LIMIT_NS / 1e9:
        limit_s = PREPARATION_LIMIT_NS / 1e9
        raise ConfigError(f"CLOCKWORK_PREPARATION_RUN is {said!r}: it is seconds, at most {limit_s:g}")
    return round(seconds * 1e9)


@functools.cache
def machine_bytes() -> int:
    """Return the memory of this machine, or of this process's container where that is less."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(Path(name).read_text(encoding="ascii")))
    return found


def cuda_pinned_bytes() -> int:
    """Return the default size of pinned memory for weights of CUDA models."""
    return min(int(machine_bytes() * CUDA_PINNED_SHARE), CUDA_PINNED_BYTES_MAX)


def key_file() -> Path | None:
    """Return CLOCKWORK_KEY, the file with this peer's CURVE keys."""
    name = environment("KEY", "")
    return Path(name).expanduser() if name else None


def logs_json() -> bool:
    """Whether CLOCKWORK_LOG_FORMAT asks for JSON. Raises ConfigError for a value outside LOG_FORMATS."""
    found = environment("LOG_FORMAT", LOG_FORMATS[0])
    if found not in LOG_FORMATS:
        raise ConfigError(
            f"{LOG_FORMAT_VARIABLE} is {found[:40]!r}, which is none of {', '.join(LOG_FORMATS)}"
        )
    return found == "json"


def silence_onnxruntime() -> None:
    """Switch off the telemetry of ONNX Runtime, here and in child processes. To be called before it is
    loaded.

    The telemetry would send from a thread in the middle of an execution, and leaves a file in TMPDIR.
    ORT_DISABLE_TELEMETRY=0 keeps it on.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def parse_bytes(text: str) -> int:
    """Return the bytes that ``"512M"``, ``"4GiB"`` or ``"1048576"`` stand for. Raises ConfigError."""
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
