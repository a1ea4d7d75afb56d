"""Bounds of a client: its calls, its thread and its shared memory."""

from __future__ import annotations

# ----- client/channel.py, calls.py, memory.py --------------------------------------------------

CLIENT_CONNECT_NS = 5_000_000_000
"""Time for which a call waits for a connection; short, so that a missing cluster is reported soon."""

CLIENT_REDIAL_NS = (
    50_000_000  # Pause before a controller that said goodbye is dialled anew for calls that wait
)

CLIENT_ASKS_AGAIN_MAX = 4
"""Times that a call is asked again: a request that ends every controller is to end that."""

CLIENT_STALL_NS = 960_000_000_000
"""Time without progress after which a registration without a timeout of its own is given up."""

CLIENT_CALLS_MAX = 16_384
"""Calls of a client that may wait for their answers; further calls are refused as overloaded."""

CLIENT_MESSAGES_PER_TURN = 1_024
"""Messages that a client takes in before it looks at timeouts and new calls again."""

CLIENT_INBOX_MAX = 4_096
"""Unread messages of an upload, whose progress callback may be slow; a further message ends the upload."""

CLIENT_THREAD_IDLE_NS = 5_000_000_000
"""Idle time after which a client's I/O thread ends; a single caller then does its own I/O again."""

CLIENT_SHARED_TENSOR_BYTES = 64 << 10
"""Size from which a tensor is put into shared memory; a message with smaller tensors is as fast."""

CLIENT_MEMORY_PART_BYTES = 64 << 20
"""Least size of a piece of a client's shared memory. Its pages are the system's until they are first written
to."""

CLIENT_MEMORY_BYTES_MAX = 1 << 30  # Shared memory of a client; tensors beyond it are sent
CLIENT_MEMORY_PAUSE_NS = 10_000_000_000
CLIENT_MEMORY_PAUSE_MAX_NS = 640_000_000_000
"""Time for which a client sends its tensors after a worker could not use its memory: twice as long each time
in a row, up to the second."""

CLIENT_ROOMS_MAX = 1_024  # Models whose output sizes a client remembers

CLIENT_LONE_CALLS = 32
"""Blocking calls in a row, none overlapping another, after which a client's I/O thread ends: a single caller
in a loop never leaves the thread idle, and the hop between threads costs it 100 us a call."""

SLO_DOUBTED_NS = 10_000_000_000  # An SLO from which on a client warns: it may have been meant in milliseconds

CLOSE_S = 5.0
"""Time for which close() waits for the thread that owns the socket; only a hanging callback takes so long."""

# ----- client/upload.py ------------------------------------------------------------------------

HELD_BYTES_MAX = 4 << 20  # Largest file of a package that is held in memory while it is uploaded
