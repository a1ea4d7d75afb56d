"""Bounds of a worker's process and its preparations."""

from __future__ import annotations

# ----- worker/{runner,session,devices}.py ------------------------------------------------------

END_PAUSE_S = 0.001
"""Pause between two looks at whether ended executions have stopped."""

FAREWELL_LIMIT_NS = 1_000_000_000 // 2
"""Time for which a worker that gives up because of an action waits until the controller knows why. Half the time that a
crashed lane waits (csrc/device/crash.h)."""

DEVICES_ALONE_MAX = 12
"""Most devices with a descriptor of their own that a worker's loop waits on."""

STALE_WAKES_MAX = 1024
"""Stale entries that the heap of wake-ups may have beyond one for each device, before it is built anew."""

# ----- worker/{snapshots,runner}.py -------------------------------------------------------------

SNAPSHOT_BYTES_MAX = 1 << 30
OWNER_SNAPSHOT_BYTES_MAX = 512 << 20
"""Memory for copies of inputs, in all and for each process that lends memory: what goes beyond is refused, and the client
sends those tensors."""

SNAPSHOT_IDLE_NS = 10_000_000_000
"""Time without a copy after which that memory's pages are the system's again."""

ROOM_WAIT_NS = 50_000_000
ROOM_WAIT_BYTE_NS = 10
"""Time for writing outputs to a client's memory, and what is added for each byte: after that they are sent, so that no
client's memory delays the answers of a batch for long."""

# ----- worker/preparation.py -------------------------------------------------------------------

MESSAGE_BYTES_MAX = 1 << 20
"""Largest message between a worker and its preparation process."""

TURN_PAUSE_S = 0.05
RECEIVE_BYTES = 65_536
