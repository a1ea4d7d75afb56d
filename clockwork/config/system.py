"""Bounds of processes and of their copies of clients' memory."""

from __future__ import annotations

# ----- system/limits.py ------------------------------------------------------------------------

OOM_SCORE = 300
"""oom_score_adj of a worker: when a model takes more than its budget (the runtime allocates strings itself),
the kernel should end a worker, and neither the controller nor an unrelated process."""

# ----- system/files.py -------------------------------------------------------------------------

ROOM_BYTES = 1 << 20
"""Bytes by which a file system shows that it can be written. File systems keep some that they give to no
file."""

# ----- system/copies.py ------------------------------------------------------------------------

COPY_THREADS = 4
"""Threads that copy from and to clients' memory, each for one owner at a time: so many owners have to make
copies stand still before others wait."""

COPIES_MAX = 4_096
OWNER_COPIES_MAX = 1_024
"""Copies that may wait, in all and for each owner. A copy moves a request's inputs or outputs."""

COPIES_CLOSE_S = 1.0  # Time for which an ending process waits for each thread of copies
