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

# ----- worker/memory.py ------------------------------------------------------------------------

CLIENT_MEMORIES_MAX = 256
"""Clients' memories that are mapped at once; beyond it, the least recently used mapping is dropped, and made anew when
needed."""

# ----- worker/preparation.py -------------------------------------------------------------------

MESSAGE_BYTES_MAX = 1 << 20
"""Largest message between a worker and its preparation process."""

TURN_PAUSE_S = 0.05
RECEIVE_BYTES = 65_536
