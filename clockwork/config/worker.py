"""Bounds of a worker's process and its preparations."""

from __future__ import annotations

import os
from collections.abc import Sequence

from clockwork.config import SECONDS_MAX, environment, parse_bytes, visible_devices
from clockwork.errors import ConfigError

# ----- worker/{road,session,devices}.py ------------------------------------------------------

END_PAUSE_S = 0.001  # Interval at which a worker checks whether ended executions have stopped

FAREWELL_LIMIT_NS = 1_000_000_000 // 2
"""Time for which a worker that ends because of an action waits until the controller has the reason: half the
time of a crashed lane (csrc/device/crash.h)."""

DEVICES_ALONE_MAX = 12  # Most devices with a descriptor of their own that a worker's loop waits on

NOTICE_BYTES_MAX = 8 << 20
"""Bytes of messages that the road has received and the loop has not taken: beyond these the road receives no
further message, and the bytes that wait are bounded as those of any connection."""

# ----- csrc/worker/{snapshots,lending}.h -----------------------------------------------------------

SNAPSHOT_BYTES_MAX = 1 << 30
OWNER_SNAPSHOT_BYTES_MAX = 512 << 20
"""Memory for copies of inputs, in all and for each process that lends memory: what goes beyond is refused,
and the client sends those tensors."""

SNAPSHOT_IDLE_NS = 10_000_000_000
"""Time without a copy after which the snapshots' pages are returned to the system."""

ROOM_WAIT_NS = 50_000_000
ROOM_WAIT_BYTE_NS = 10
"""Time for writing outputs to a client's memory, and what is added for each byte: after that they are sent,
so that no client's memory delays the answers of a batch for long."""

# ----- worker/preparation.py -------------------------------------------------------------------

MESSAGE_BYTES_MAX = 1 << 20  # Largest message between a worker and its preparation process
TURN_PAUSE_S = 0.05
RECEIVE_BYTES = 65_536

# ----- worker/{checks,models}.py ---------------------------------------------------------------

CHECK_JOB_MODELS = 16
"""Prepared models that the preparation process checks before it looks for a model to prepare."""

STORE_ROOM_WAIT_NS = 2_000_000_000
"""Time for which a model waits that is to be prepared in a store (--store-bytes) without room for it. The
controller's DROPs for it are on their way then."""

KEPT_NS = 60_000_000_000
"""Time for which a worker keeps the models of an earlier controller that the new one has not asked for."""

REFETCHES_MAX = 2  # Times that a worker fetches a damaged package again before it gives the model up

# ----- worker/bundles.py -----------------------------------------------------------------------

BUNDLES_AT_ONCE = 12
"""Prepared models that a worker takes from others at once: so many that some are tried while others come."""

BUNDLE_CHUNK_BYTES = 512 << 10
BUNDLE_WINDOW = 2
"""Bytes of a piece, and pieces of a prepared model that may be on their way: with TRANSFERS_MAX models 4 MiB,
behind which an input waits 34 ms on a link of 1 Gbit/s, and enough for 10 Gbit/s at a delay of 3 ms."""

BUNDLE_TRIAL_NS = 300_000_000_000
"""Limit of the trial of a prepared model that another worker made, of which the start of a process may take
a minute on a machine that is busy with requests."""

# ----- worker/session.py -----------------------------------------------------------------------

HELLO_PAUSE_NS = 250_000_000
"""Pause before the next hello of a worker that the controller let go soon after it had let it in; doubled
each time up to HELLO_PAUSE_MAX_NS. Without it, a worker that the controller cannot handle would join and
leave hundreds of times a second."""

HELLO_PAUSE_MAX_NS = 8_000_000_000

HELLO_SETTLED_NS = 10_000_000_000
"""Time with a controller after which a worker that is let go says hello again at once."""

# ----- worker/{process,preparation,road}.py ----------------------------------------------------

WORKER_MESSAGES_PER_TURN = 64
"""Messages that a worker takes from its socket before it polls its devices again."""

JITTER_WINDOW = 256
"""Timed waits over which a worker measures how late it wakes; at four heartbeats a second, one minute."""

SWITCH_INTERVAL_NS = 50_000
"""Switch interval of a worker's helper threads: the time for which they may keep the interpreter from the
loop (Python's default: 5 ms)."""

COLLECT_INTERVAL_NS = 10_000_000_000
"""Interval at which a worker collects cyclic garbage, in a heartbeat rather than in the middle of other work.
"""

PREPARATION_SLOW_NS = 10_000_000_000
"""Time after which a preparation is slow: the next one starts beside it, or instead of it."""

PREPARATIONS_MAX = 3  # Preparations that run at once, of a worker and of all workers that share a store

SYNCS_AT_ONCE = 4  # Prepared models whose files are synced at once

PREPARATION_IDLE_NS = 60_000_000_000
"""Idle time after which the preparation process ends, which frees its memory."""

PREPARATION_RSS_MAX = 2 << 30  # Memory beyond which a preparation process is replaced before the next model

PREPARATION_BYTES = 2 << 30
"""Memory that a preparation may take whatever its package's size, unless CLOCKWORK_PREPARATION_BYTES says
otherwise: at 16 rows, a network for images takes 0.7 GiB of it."""

PREPARATION_BYTES_FACTOR = 12
"""Memory beyond PREPARATION_BYTES that a preparation may take, as a multiple of its package's size. A model
of 244 MiB took
9.5 times its size, twice of it as arenas in which it was timed; smaller ones no more than 10 times."""

PREPARATION_BYTES_PER_CPU = 32 << 20
"""Additional memory of a preparation for each processor: the stacks of two sessions' threads, counted in
full."""

PREPARATION_FREE_SHARE = 0.75
"""Share of the machine's free memory that a preparation may take: beyond that, the machine has too little for
it."""

EXECUTION_LIMIT_NS = 2_000_000_000
EXECUTION_LIMIT_FACTOR = 10
"""An execution is ended after EXECUTION_LIMIT_FACTOR times its predicted time, but not before
EXECUTION_LIMIT_NS: on a busy machine it may be descheduled for a second."""

LOAD_LIMIT_NS = 30_000_000_000
LOAD_LIMIT_FACTOR = 10
"""A worker restarts when a LOAD or FETCH, which cannot be interrupted, takes more than LOAD_LIMIT_FACTOR
times its predicted time, but not before LOAD_LIMIT_NS (or CLOCKWORK_LOAD_LIMIT's seconds): a disk of 333 MB/s
reads 10 GB that have left the page cache in that time."""

CHECK_LIMIT_NS = 600_000_000_000
"""Limit of the check of stored bytes before a LOAD, after which the worker restarts: 60 GB at 100 MB/s."""

WATCH_INTERVAL_NS = 50_000_000  # Interval at which a worker checks running actions against their limits

WATCH_GAP_MAX_NS = 200_000_000
"""Most time between two of these checks that counts against an action: beyond it the worker itself did not
run."""

PREPARATION_OOM_SCORE = 1000
"""oom_score_adj of a preparation. The kernel ends it before its worker, because a preparation can be
repeated."""

DRAIN_SETTLE_NS = 1_000_000_000
"""Time for which an idle worker that stops waits for the controller's word that no more actions are on their
way."""


def show_mig_instances(uuids: Sequence[str]) -> None:
    """Make CUDA show these MIG instances (MIG-...) to this process, unless CUDA_VISIBLE_DEVICES hides them.

    To be called before the driver is initialised, which shows the first instance of the first card otherwise.
    """
    given = visible_devices()
    if given is None or set(uuids) <= set(given.split(",")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)


def preparation_bytes(package_bytes: int) -> int:
    """Return the memory that preparing a package may take. Raises ConfigError."""
    said = environment("PREPARATION_BYTES", "")
    base = parse_bytes(said) if said else PREPARATION_BYTES
    processors = (os.cpu_count() or 1) * PREPARATION_BYTES_PER_CPU
    return base + processors + PREPARATION_BYTES_FACTOR * package_bytes


def load_limit_ns() -> int:
    """Return the shortest time limit, in ns, of a LOAD or a FETCH. Raises ConfigError."""
    said = environment("LOAD_LIMIT", "")
    try:
        seconds = float(said) if said else LOAD_LIMIT_NS / 1e9
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= SECONDS_MAX:
        raise ConfigError(f"CLOCKWORK_LOAD_LIMIT is {said!r}: it is seconds, at most {SECONDS_MAX:g}")
    return round(seconds * 1e9)


# ----- worker/settings.py ----------------------------------------------------------------------

WIDE_CORES_LEAST = 4  # Cores of a machine from which `clockwork up` divides them as models need them
