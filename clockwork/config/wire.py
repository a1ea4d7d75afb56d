"""Bounds of sockets, connections and clocks between processes."""

from __future__ import annotations

# ----- wire/transport.py -----------------------------------------------------------------------

HEARTBEAT_MS = 500
"""Interval of ZMTP heartbeats, which the peer's I/O thread answers: they notice a dead host, not a stuck process."""

HEARTBEAT_TIMEOUT_MS = 3_000
KEEPALIVE_S = 1
KEEPALIVE_COUNT = 2
"""Interval of TCP keepalive probes of a bound socket, and how many may stay unanswered: a dead host is noticed after 3 s."""

RECONNECT_MS = 50
RECONNECT_MAX_MS = 500
LINGER_MS = 250
"""Time for which a closing socket still tries to send its queued messages."""

COPY_BYTES = 262_144
"""Size below which a copy is cheaper than a zero-copy send, because pyzmq learns of each freed buffer on a thread that
needs the interpreter's lock: sending and receiving 48 KB takes 42 us of processor time instead of 59, 200 KB 69 instead
of 91; for 600 KB both take the same."""

# ----- wire/inflow.py --------------------------------------------------------------------------

FRAME_EXTRA_BYTES = 64
"""Bytes added for each frame taken: more than framing and encryption add on the wire."""

FRAME_MEMORY_RATIO = 64
"""Most bytes of memory for a byte on the wire. The worst case is messages of a single byte: three bytes on the wire become
64 bytes of libzmq's and the allocator's overhead."""

HEARTBEAT_BYTES_PER_S = 1 << 10
"""Allowance for the peer's heartbeats, which libzmq takes itself."""

# ----- client/connection.py --------------------------------------------------------------------

CLOSE_S = 5.0
"""Time for which close() waits for the thread that owns the socket; only a callback that hangs takes so long."""

# ----- controller/clocksync.py -----------------------------------------------------------------

DRIFT_PPM = 200
"""Bound of the drift between two clocks: twice that of the worst crystals."""

LOST_NS = 500_000_000
"""Uncertainty of a clock's offset at which windows mean nothing, and the worker's clock counts as lost."""

RESET_TOLD_NS = 10_000_000_000
"""Time for which a jump of a clock is reported."""
