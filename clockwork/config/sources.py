"""Bounds of sources: object stores, hubs and HTTP servers that models are fetched from."""

from __future__ import annotations

import ipaddress

from clockwork.config import environment
from clockwork.errors import ConfigError

# ----- sources/reader.py -----------------------------------------------------------------------

SOURCE_FILES_MAX = 200_000  # Most files of a listing; a longer listing is a failure
LINK_DEPTH_MAX = 8  # Deepest folder of an HTTP server's listing
LINK_FOLDERS_MAX = 20_000  # Most folders of an HTTP server's listing: each is a page
HTTP_REQUESTS_AT_ONCE = 16  # Requests to an HTTP server that are under way while it is listed
PIECE_BYTES = 4 << 20  # Bytes that are requested of a source at once

ROWS_PER_LINE = 500
"""Files in a line of the reader's answer: parsing one line blocks the other threads of the process that reads
it."""

PART_BYTES = 8 << 20
"""Largest object that is written at once, and part of a larger one: S3 takes 10,000 parts of 5 MiB or more,
so that the largest package fits."""

NAMES_MAX = 1_100_000  # Most names below a folder; a longer listing is a failure
READ_AT_ONCE = 16  # Small files that are read at once
TELL_S = 0.2  # Interval at which the reader reports its progress

READER_MEMORY_BYTES = 2 << 30
"""Memory of a reader's process: a source's answers have no bound in the libraries that read them."""

# ----- sources/reading.py ----------------------------------------------------------------------

LIST_LIMIT_S = 120.0  # Time limit of a listing
STALL_S = 60.0  # Time in which a source must start to answer, and must give each PIECE_BYTES (70 kB/s)
READ_FILES_MAX = 64  # Small files that one command reads
ANSWER_BYTES_MAX = 4 << 20  # Longest line of a reader's answer
REASON_CHARS_MAX = 400  # Longest sentence of a source's failure

# ----- sources/objects.py ----------------------------------------------------------------------

OBJECT_WRITES = 2
OBJECT_READS = 2
OBJECT_CALLS = 1
"""Packages that are written to a store at once, objects that are read, and calls that move little. Each takes
a process of about 100 MB, so that neither waits for the others."""

NAMES_LIMIT_S = 600.0  # Time limit of a listing of all packages

# ----- sources/cache.py ------------------------------------------------------------------------

CACHE_BYTES = 64 << 30  # Default size of the cache of a gateway's remote repositories

ABANDONED_S = 86_400.0
"""Age at which a half-fetched version of a process that ended is removed from the cache."""


def source_networks() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """CLOCKWORK_SOURCE_NETWORKS: networks, with commas between them, in which servers that models are fetched
    from may redirect to addresses that are not public. Raises ConfigError."""
    said = environment("SOURCE_NETWORKS", "")
    try:
        return [ipaddress.ip_network(word.strip()) for word in said.split(",") if word.strip()]
    except ValueError as error:
        raise ConfigError(f"CLOCKWORK_SOURCE_NETWORKS: {error}") from None
