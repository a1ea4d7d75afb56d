"""Bounds, defaults and environment variables that more than one room uses.

Those of a single room are in the file of its name in this package. Nothing outside the package reads the environment.

Bounds are constants. Settings that a user may choose are fields of a settings class; a flag overrides an
environment variable, which overrides the default.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from clockwork.errors import ConfigError

VERSION = "0.1.0"
"""Version of the package; setup.py reads it here."""

# ----- endpoints -----------------------------------------------------------------------------

CLIENT_ENDPOINT = "tcp://127.0.0.1:5555"
WORKER_ENDPOINT = "tcp://127.0.0.1:5556"
EVENTS_ENDPOINT = "tcp://127.0.0.1:5557"

# ----- the wire ------------------------------------------------------------------------------

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

SUMMARY_BYTES_MAX = 2 << 20
"""Largest header of Prepared, with the model's metadata (the labels of 20,000 classes are half of that)."""

MESSAGE_BYTES_MAX = 1 << 30
"""ZMQ_MAXMSGSIZE of every socket: the largest frame that is accepted."""

FRAMES_MAX = 65_536
"""The most frames of one message."""

FAILURE_CHARS_MAX = 10_000
"""Longest sentence of a failure, and longest of its details: they quote the request, which may be megabytes."""

LOG_FORMAT_VARIABLE = "CLOCKWORK_LOG_FORMAT"

LOG_FORMATS = ("text", "json")
"""Forms of the lines that processes log."""

RANK_MAX = 32
"""The most dimensions of a tensor."""

STRINGS_MAX = 1 << 16
"""The most elements of a tensor of strings: the controller looks at the length of each."""

HELLO_NS = 10_000_000_000
"""Time for which a connection may be open without a hello, or without a subscription where events are published."""

RECEIVED_BYTES_MAX = MESSAGE_BYTES_MAX + (256 << 20)
"""Bytes of a peer that may wait to be received: the largest message and some that follow it."""

INFLOW_LOOK_NS = 100_000_000
"""Interval at which a client checks the bytes that wait on its connection (RECEIVED_BYTES_MAX); a worker does so with
each heartbeat."""

INFLOW_SMALL_BYTES = 1 << 20
"""Bytes waiting on a connection up to which it counts as read."""

SUBSCRIBERS_MAX = 1_024
"""Connections to a controller's events: a quarter of them without a subscription yet, of which a further one ends the oldest
of the address with the most; the others with one, of which a further one ends the oldest of an address that has more."""

CHUNK_BYTES = 1 << 20
"""Size of the chunks in which files travel, small so that no request waits long behind a chunk."""

CHUNK_WINDOW = 8
"""Chunks of a transfer that may be under way unacknowledged."""

HANDSHAKES_BROKEN_MAX = 3
"""Handshakes that may break off in a row before the peer assumes wrong keys: a single one also breaks off when the
controller goes away in the middle of it."""

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

MODELS_MAX = 1_000_000
"""Most models of a controller."""

VERSION_MAX = (1 << 63) - 1
"""The highest version number: people number versions by the time, too."""

VERSION_DIGITS_MAX = len(str(VERSION_MAX))
"""Digits of the highest version number."""

VERSIONS_MAX = 16
"""Versions of a name that stay registered; the oldest is removed when a further one is ready."""

SHARE_WHOLE = 10_000
"""The parts that make up all of a name's traffic: a version's share of 1 is 0.01 %."""

SHADOW_TOLERANCE = 1e-3
"""Default tolerance of a shadow: answers with a larger relative difference are counted."""

PRIORITY_DEFAULT = 4
"""The priority that 0 stands for. As in Triton, 1 is the highest and larger numbers are lower."""

PRIORITY_MAX = 255

REGISTER_BATCH_MAX = 4_096
"""The largest batch that a registration may ask for."""

METRIC_BOUNDS_NS = tuple(
    round(base * 10**exponent)
    for exponent in range(4, 11)
    for base in (1, 2.5, 5)
    if 50_000 <= base * 10**exponent <= 10_000_000_000
)
"""Upper bounds of the buckets of a controller's histograms of durations: from 50 us to 10 s."""

METRICS_MODELS_PAGE = 64
LISTED_MODELS_PAGE = 32
"""Models in an answer to the queries for metrics and for models: gathering them blocks the controller, for so many for a
millisecond."""

TROUBLE_CHARS_MAX = 300
"""Longest subject of a trouble, and longest sentence about it."""

# ----- stored bytes -------------------------------------------------------------------------

CHECK_BUSY_SHARE = 0.25
"""Share of a core that checks of stored bytes take in idle time."""

# ----- liveness ------------------------------------------------------------------------------

HEARTBEAT_NS = 250_000_000
"""Interval of a worker's heartbeats and of the controller's pings."""

# ----- the worker ----------------------------------------------------------------------------

WORKER_DEVICES_MAX = 1_024
"""Most devices of a worker; an emulated worker may have hundreds."""

PAGE_BYTES = 1 << 20
"""Page size of a CPU arena. CUDA copies are fastest with pages of 16 MiB; for memcpy the size does not matter, and small
pages waste little on small models."""

ARENA_BYTES = 1 << 30
"""Default size of a CPU arena. Every page is touched at start, which takes about a second for each GiB."""

RUN_AHEAD = 2
"""Actions that a lane may hold: the running one and the next, so that a device never waits for Python."""

ACTIONS_QUEUED_MAX = 4096
"""Actions that a worker holds for a device; further ones are answered DEVICE_ERROR."""

PREPARATION_LIMIT_NS = 900_000_000_000
"""Limit of a model's preparation, profiling included, after which it is killed. Optimising a large model takes minutes."""

PREPARATION_RUN_NS = 60_000_000_000
"""Limit of an execution during preparation, unless CLOCKWORK_PREPARATION_RUN says how many seconds. A model that takes
longer, at low priority, is unfit to be served."""

EXECUTION_GRACE_NS = 2_000_000_000
"""Time that an execution may take to end once it is ended (a running node is not interrupted) before its worker begins
anew."""

DRAIN_LIMIT_NS = 10_000_000_000
"""Default time for which a worker that was told to stop goes on with its actions."""

# ----- copies from and to clients' memory, in workers and gateways -----------------------------

COPY_PIECE_BYTES = 4 << 20
"""Bytes after which it is another owner's turn: a millisecond or two."""

# ----- the client ----------------------------------------------------------------------------

CLIENT_TIMEOUT_NS = 30_000_000_000
"""Default time for which a call waits for its answer."""

UPLOAD_AHEAD_BYTES_MAX = 256 << 20
"""Most bytes of a package that a client sends unacknowledged, and largest chunk, whatever the controller asks for."""

SECONDS_MAX = 31_536_000
"""The longest SLO or timeout, in seconds: a year."""

MODEL_REFERENCE_MAX = 256
"""Most characters of ``name`` or ``name@version`` in a request."""

MODEL_REFERENCE_BYTES_MAX = 4 * MODEL_REFERENCE_MAX
"""The same in UTF-8, and of what asks for a further page of models."""

IO_SLOT_BYTES_MAX = 1 << 30
"""Largest joined inputs of an action."""

# ----- CUDA devices --------------------------------------------------------------------------

CUDA_PAGE_BYTES = 16 << 20
"""Page size of a CUDA arena: a copy of so many bytes reaches the link's full rate."""

CUDA_PINNED_SHARE = 0.25
"""Default size of the pinned memory for weights of CUDA models, as a part of the machine's memory."""

CUDA_PINNED_BYTES_MAX = 16 << 30
"""It is at most that by default: pinning takes a quarter of a second for each GiB, at every start."""

RESERVE_NS_MAX = 60_000_000_000
"""A worker asks for no more of a device's time at once, and nobody expects it to take longer."""

RESERVE_RUNS_MAX = 16_384
"""Runs of pages that a worker asks for with it: 256 GiB in pages of CUDA_PAGE_BYTES."""

TRIAL_RESERVE_NS = 2_000_000
"""Time of a device that a worker asks for at once to try a model that is registered: one execution, or as many as are
thought to fit into it."""

# ----- profiles ------------------------------------------------------------------------------

BATCH_SIZE_MAX = 65_536
"""The largest batch of a profile."""

# ----- emulated devices ----------------------------------------------------------------------

EMULATED_PAGE_BYTES = 16 << 20
"""Page size of an emulated arena, as in the paper."""

EMULATED_ARENA_BYTES = 1376 * EMULATED_PAGE_BYTES
"""Arena of an emulated device: the pages of a 32 GB V100, less the memory that the paper's workers reserve."""

EMULATED_DEVICES_MAX = WORKER_DEVICES_MAX
"""Most emulated devices of a worker."""


def environment(name: str, default: str) -> str:
    """CLOCKWORK_<name>, or the default where it is unset or empty."""
    return os.environ.get(f"CLOCKWORK_{name}") or default


def client_endpoint() -> str:
    return environment("ENDPOINT", CLIENT_ENDPOINT)


def data_directory() -> Path:
    """The directory in which controller and workers keep models: CLOCKWORK_DATA, else below XDG_DATA_HOME."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(environment("DATA", f"{base}/clockwork")).expanduser()


def visible_devices() -> str | None:
    """CUDA_VISIBLE_DEVICES: which devices the driver shows to this process; None: all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


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


def key_file() -> Path | None:
    """CLOCKWORK_KEY: the file that holds this peer's CURVE keys."""
    name = environment("KEY", "")
    return Path(name).expanduser() if name else None


def logs_json() -> bool:
    """CLOCKWORK_LOG_FORMAT: whether processes log JSON. Raises ConfigError for a value that is none of LOG_FORMATS."""
    found = environment("LOG_FORMAT", LOG_FORMATS[0])
    if found not in LOG_FORMATS:
        raise ConfigError(
            f"{LOG_FORMAT_VARIABLE} is {found[:40]!r}, which is none of {', '.join(LOG_FORMATS)}"
        )
    return found == "json"


def silence_onnxruntime() -> None:
    """Switch off the telemetry of ONNX Runtime, here and in child processes. To be called before it is loaded.

    The telemetry would send from a thread in the middle of an execution, and leaves a file in TMPDIR.
    ORT_DISABLE_TELEMETRY=0 keeps it on.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


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
