"""Bounds of files on disk."""

from __future__ import annotations

# ----- formats/interface.py --------------------------------------------------------------------

FIELDS_MAX = 1 << 17
"""Fields of an ONNX file that are read or skipped: nodes, weights, strings of a weight. They take half a
second at most."""

READ_WHOLE_BYTES_MAX = 16 << 20  # Largest ONNX file that is held in memory while its interface is read

PROGRAM_HEAD_BYTES = 1 << 20
"""Bytes at the beginning of a program.json that hold its inputs and outputs; the weights and launches behind
them may be 64 times as much."""

# ----- formats/package.py ----------------------------------------------------------------------

PACKAGE_FRESH_NS = 30_000_000_000
"""Time after a package was stored in which its preparation does not hash it again: many times as long as a
model waits in a run of registrations."""

# ----- formats/profile_package.py ---------------------------------------------------------------------

PROFILED_FILE_BYTES_MAX = 1 << 20
PROFILED_WEIGHTS_BYTES_MAX = 1 << 44

# ----- formats/profiles.py ---------------------------------------------------------------------

TIME_MAX_NS = 3_600_000_000_000  # Longest execution or load that a profile may hold: an hour
SIZE_MAX = 1 << 50  # Most bytes of weights, inputs or outputs

# ----- formats/program.py ----------------------------------------------------------------------

CHECKS_MAX = 64
CHECKS_BYTES_MAX = 1 << 30  # Most bytes of all arrays of the checks, unpacked
JSON_BYTES_MAX = 64 << 20
PADDED_MAX = 16  # Most symbols that are padded
WEIGHTS_MAX = 65_536
WEIGHTS_BYTES_MAX = 1 << 40
TARGETS_MAX = 64
VARIANTS_MAX = 4096
LAUNCHES_MAX = 65_536  # Most launches of a variant
ARGUMENTS_MAX = 512  # Most arguments of a launch: as many pointers as the 4 KiB of kernel parameters hold
TABLE_MAX = 131_072  # Most entries of a variant's table, of 8 bytes each
WORKSPACE_BYTES_MAX = 1 << 40
GRID_MAX = (2**31 - 1, 65_535, 65_535)
BLOCK_MAX = (1024, 1024, 64)
BLOCK_THREADS_MAX = 1024
SHARED_BYTES_MAX = 232_448  # Most dynamic shared memory of a block: 227 KiB on the largest GPUs
TOLERANCE_MAX = 0.25  # Tolerance of a program's answers in its checks, relative to the largest magnitude

# ----- controller/catalog/store.py -------------------------------------------------------------------

FORMAT_BYTES_MAX = 20

# ----- controller/catalog/options.py -------------------------------------------------------------------

ORIGIN_MAX = 4096  # longest origin, in characters

# ----- scheduler/recording.py ------------------------------------------------------------------

STEP_BYTES_MAX = 1 << 28  # Largest object of a recording that is read

# ----- formats/{checksums,durable}.py ----------------------------------------------------------

CHECK_PIECE_BYTES = 1 << 20
"""Bytes of a stored file that are read and hashed at once; other work may run between two pieces."""

DAMAGED_KEPT_MAX = 4
"""Damaged files or directories that a folder keeps for inspection; older ones are removed."""

PLAIN_PIECE_BYTES = 1 << 16  # Bytes that are read at once of a small file beyond its size

SEALED_BYTES_MAX = 64 << 20
"""Largest sealed file: a record, a route, or the description of a prepared model, which has a row for each
weight."""

# ----- formats/fetching.py ---------------------------------------------------------------------

TRANSFERS_MAX = 4  # Packages that a worker fetches at once; further packages wait

# ----- formats/profiles.py ---------------------------------------------------------------------

PROFILE_BYTES_MAX = 1 << 29  # The largest profile file: a million models of five hundred bytes each
