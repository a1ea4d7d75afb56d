"""Bounds of a worker's process and its preparations."""

from __future__ import annotations

# ----- worker/process.py -----------------------------------------------------------------------

END_PAUSE_S = 0.001
FAREWELL_LIMIT_NS = 1_000_000_000 // 2
"""How long a worker that leaves because of what it executes waits for the controller to have heard why. Half of what a
lane that has crashed waits (csrc/device/crash.h)."""

DEVICES_ALONE_MAX = 12
"""Devices with a descriptor of their own that one loop waits on."""

STALE_WAKES_MAX = 1024
"""Entries of the heap of wake-ups that may be out of date beyond one for each device, before it is built anew."""

# ----- worker/preparation.py -------------------------------------------------------------------

MESSAGE_BYTES_MAX = 1 << 20
"""Of what the two sides say to each other."""

TURN_PAUSE_S = 0.05
RECEIVE_BYTES = 65_536
