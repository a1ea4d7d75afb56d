"""Bounds of sockets, connections and clocks between processes."""

from __future__ import annotations

# ----- wire/transport.py -----------------------------------------------------------------------

HEARTBEAT_MS = 500
"""ZMTP heartbeats, answered by the peer's I/O thread: they notice a dead host, not a stuck process."""

HEARTBEAT_TIMEOUT_MS = 3_000
KEEPALIVE_S = 1
KEEPALIVE_COUNT = 2
"""A bound socket's probes, and how many may stay unanswered: a dead host is noticed after 3 s, too."""

RECONNECT_MS = 50
RECONNECT_MAX_MS = 500
LINGER_MS = 250
"""How long a closing socket may still try to hand over what was sent."""

COPY_BYTES = 262_144
"""Below this a copy is cheaper than the bookkeeping of a zero-copy send, because pyzmq hears of each buffer that
is free again on a thread of its own, which wants the interpreter: sending and receiving 48 KB takes 42 us of processor
time instead of 59, 200 KB 69 instead of 91; of 600 KB both take the same."""

# ----- wire/inflow.py --------------------------------------------------------------------------

FRAME_EXTRA_BYTES = 64
"""Added for each frame taken: more than framing and encryption add on the wire."""

FRAME_MEMORY_RATIO = 64
"""The most that a byte on the wire takes in memory: messages of one byte, whose three are libzmq's 64 and an allocator's
rest."""

HEARTBEAT_BYTES_PER_S = 1 << 10
"""libzmq takes the other side's heartbeats itself."""

# ----- client/connection.py --------------------------------------------------------------------

CLOSE_S = 5.0
"""How long close() waits for the thread that owns the socket; only a callback that hangs takes so long."""

# ----- controller/clocksync.py -----------------------------------------------------------------

DRIFT_PPM = 200
"""Two clocks drift against each other by less than this: twice what the worst crystals do."""

LOST_NS = 500_000_000
"""With an offset known no better than this, windows mean nothing: the worker's clock counts as lost."""

RESET_TOLD_NS = 10_000_000_000
"""How long a jump of a clock is told."""

# ----- controller/record.py --------------------------------------------------------------------

BUFFER_BYTES = 1 << 20
"""Written at once: a busy controller writes some times a second, to the page cache."""
