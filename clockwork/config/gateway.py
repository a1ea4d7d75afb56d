"""Bounds of a gateway."""

from __future__ import annotations

import os

# ----- gateway/settings.py ---------------------------------------------------------------------

REQUEST_BYTES_MAX = 64 << 20  # The largest request, unless told otherwise

JSON_BYTES_MAX = 8 << 20
"""Largest JSON, including the header of a binary request. Larger inputs travel as binary data."""

JSON_AT_ONCE_BYTES = 64 << 10
"""JSON that is read at once, in up to 8 ms; longer JSON is read in pieces beside the loop. Also the largest
JSON of requests other than inferences."""

JSON_CONTAINERS_MAX = 1 << 19
"""Lists and objects in longer JSON; the garbage collector visits each of them. An image of 512 by 512 pixels,
each a list, has half as many."""

INFLATE_RATIO_MAX = 256
"""Largest ratio of a request's inflated size to its compressed size. zlib's own bound is 1,032."""

INFLATED_BYTES_FREE = 1 << 20  # Inflated size that is allowed whatever the ratio

REQUESTS_MAX = 4_096
"""Requests under way in a gateway; further requests are refused as overloaded. The gateway has no queue: all
of these requests are at the controller, or on their way."""

REQUESTS_BYTES_MAX = 1 << 30  # Bytes of requests under way; further requests are refused as overloaded

CONNECTIONS_MAX = 1_024
"""Seats of HTTP's port, and of gRPC's. For a further connection, web/seats.py chooses which is ended."""

METRICS_CONNECTIONS_MAX = 64  # Seats of the port for metrics

DESCRIPTORS_KEPT = 96
"""Open files reserved for other uses than clients' connections: the controller, repositories, libraries."""

DESCRIPTORS_MIN = DESCRIPTORS_KEPT + 32  # Fewest open files with which a gateway starts
IDLE_S = 75.0  # Time without a request after which an HTTP connection is closed

HEADERS_S = 10.0
"""Time limit for the headers of a request, from their first byte on; also the time within which a new peer
must make a permitted request."""

BODY_S = 30.0  # Time that a client may take for the body of a request
BODY_GRACE_S = 5.0
BODY_BYTES_PER_S_MIN = 16 << 10  # Least mean rate of a body, once BODY_GRACE_S have passed
HEADER_BYTES_MAX = 16 << 10  # Longest HTTP header, and longest request line
STREAMS_MAX = 1_024  # Calls under way on a gRPC connection
STREAM_WINDOW = 64  # Requests under way on a stream; the next is read when the oldest has been answered

GRPC_METADATA_BYTES_MAX = 8 << 10
"""Metadata of a call, as HTTP/2 counts it: names and values, and 32 bytes for each. In memory it is six times
as much."""

PROXY_TABLE_BYTES = 4_096
"""HPACK's table of a connection from a proxy: HTTP/2's own size, which nginx and HAProxy take for granted."""

GRPC_WAITING_MAX = 1_024
"""Calls that may wait for their client's message, beside the REQUESTS_MAX that are worked on."""

GRPC_SETTINGS_S = 10.0  # Time within which a gRPC client must acknowledge the server's HTTP/2 settings
GRPC_IDLE_S = 600.0  # Time without a call after which a gRPC connection is closed

ANSWER_LIMIT_NS = 300_000_000_000
"""Time for which the gateway waits for an answer to a request without a deadline."""

GRACE_NS = 2_000_000_000
"""Time for which the gateway waits beyond a request's deadline, because the controller's answer has the
reason."""

QUERY_LIMIT_S = 10.0  # Time for which the gateway waits for the controller's answer to a query
READY_LIMIT_S = 1.0  # Time limit for the query whether the cluster is ready; probes repeat it soon
LOAD_LIMIT_S = 600.0  # Time that the repository's calls to load or unload a model may take
DRAIN_S = 10.0  # Time limit for draining requests under way when the gateway stops
NOTICE_S = 0.0
"""Time for which a gateway that is told to stop goes on serving, while it says that it is not ready."""

NOTICE_S_MAX = 600.0
TOKEN_BYTES_MAX = 4_096
POLL_S = 5.0  # Default interval at which a model repository is polled

GARBAGE = (700, 10, 1_000)
"""Thresholds of Python's collector of cycles. A full collection visits every object: 70 for each gRPC call
that waits. With Python's own thresholds, a full collection came with each growth by a quarter, and blocked
the loop for up to 0.4 s."""

GARBAGE_DUE = 10
"""Collections of younger objects after which a full one is due. Requests leave no cycles of their own."""

GARBAGE_CALM_CALLS = 256
"""Requests and gRPC calls up to which a due full collection is made; it then takes some milliseconds."""

# ----- gateway/answers.py ----------------------------------------------------------------------

ANSWERS_BYTES_MAX = 1 << 30
"""Bytes of large answers that are requested or wait to be read. A requested answer counts with the size of
the smaller of the model's last two answers. Further answers are refused as overloaded, and the connection
whose answer has made no progress for longest is ended."""

SMALL_ANSWERS_BYTES_MAX = 256 << 20
"""Additional bytes for answers of at most JOINED_BYTES_MAX, so that large answers cannot shut small answers
out."""

CALLER_ANSWERS_BYTES_MAX = 512 << 20  # Bytes of answers of one connection, unless a single answer is larger

ANSWER_BYTES_PER_S = 4 << 20
"""Least rate at which an answer must be read, beside the time BODY_S that every answer has."""

ANSWER_STALL_NS = 1_000_000_000
"""Time without progress after which an answer's connection may be ended for the sake of others."""

ANSWER_MODELS_MAX = 1_024  # Models of which the sizes of the last two answers are kept, if either was large

# ----- gateway/http.py, gateway/http_inference.py ------------------------------------------------

JOINED_BYTES_MAX = 256 << 10
"""Size up to which an answer's parts are joined, which costs less than several writes; larger ones are not
copied."""

ANSWER_PIECE_BYTES = 1 << 20
"""Bytes of a large answer that are handed to a connection at once; the next follow when it has taken them."""

JSON_ANSWER_BYTES_MAX = 8 << 20
"""Bytes of tensors in an answer as JSON: a float takes several times its bytes as text, and most of a
microsecond. More travel as binary data."""

LISTED_AT_ONCE_BYTES = 16 << 10
"""Bytes of tensors that become JSON at once, in some milliseconds: a whole number of elements of every
datatype. Of more, each piece is written before the next is made."""

SWEEP_S = 1.0  # Interval at which connections are checked for being idle or slow for too long

LINGER_S = 1.0
"""Time for which the rest of a refused request is still read, so that its client sees the answer."""

# ----- gateway/listener.py ---------------------------------------------------------------------

HANDSHAKE_S = 10.0
BACKLOG = 1_024
ACCEPT_PAUSE_S = 0.1
"""Time until accept() is tried again where the process has no descriptor left and no connection could make
room."""


# ----- gateway/grpc.py -------------------------------------------------------------------------

DETAILS_MAX = 2_000  # Longest sentence of a gRPC error, in characters: it travels in a header

GRPC_RECEIVING_BYTES_MAX = 512 << 20
"""Bytes of incomplete gRPC messages. Beyond them connections end, those with the largest sum of bytes over
time first."""

GRPC_SWEEP_S = 0.1
"""Interval of sweeps for gRPC's connections; a sweep takes 1 ms for a thousand. Between sweeps, gRPC accepts
up to twice as many connections as there are seats."""

THOROUGH_LOOKS = 10
"""Sweeps per thorough sweep, which takes 4 ms for a thousand connections. While more than half of the seats
are taken, every sweep is thorough."""

KEEPALIVE_S = 60  # Silence after which a client is sent a keepalive ping

GRPC_FIELDS_MAX = 16_384
"""Fields of a message, nested fields included: 16 for each of TENSORS_MAX inputs. Counting so many takes some
milliseconds."""

GRPC_PARSED_BYTES_MAX = 4 << 20
"""Bytes of a message besides raw_input_contents, as much as gRPC's servers take by default. protobuf parses
them at once, in up to 22 ms (booleans in contents)."""

REFLECTION_BYTES_MAX = 4 << 10  # Largest request of server reflection: names, which are sent back

GRPC_ANSWER_BYTES_MAX = 128 << 20
"""Bytes of an answer's tensors. gRPC takes a message as a whole, and its copy blocks the loop for up to 70
ms. Larger answers need HTTP."""

ELEMENTS_AT_ONCE = 1 << 16
"""Elements that are converted at once, in some milliseconds; more are converted in pieces beside the loop."""

# ----- gateway/health.py -----------------------------------------------------------------------

HEALTH_POLL_S = 1.0  # Interval at which the cluster's readiness is polled while there are watchers

# ----- gateway/metrics.py ----------------------------------------------------------------------

METRICS_MODELS_MAX = 1_000
"""Versions of models with histograms in a page of metrics, the oldest first; further versions have only
counters. So many take 13 MB and a tenth of a second."""

METRICS_CACHE_NS = 1_000_000_000
"""Time for which a page of metrics is served from the cache, so that many scrapes cost the controller one
query."""

METRICS_GZIP_LEVEL = 1
"""zlib's level for pages of metrics. For 200 KB, level 1 takes 0.6 ms and leaves an eighth, level 6 takes 1.7
ms and leaves a ninth, and level 9 takes 5.5 ms and leaves little less."""

METRICS_TIMEOUT_S = 3.0
"""Time for which a scrape waits for the controller, less than Prometheus waits for a scrape; then the page
says that the controller does not answer."""

# ----- gateway/inflate.py ----------------------------------------------------------------------

PIECE_BYTES = 1 << 20
"""Bytes that are inflated at once: some milliseconds of the helper thread, between which other requests have
their turn."""

# ----- gateway/classification.py ---------------------------------------------------------------

CLASSES_MAX = 100_000  # Most classes of an output in an answer, summed over all rows

# ----- gateway/regions.py ----------------------------------------------------------------------

REGIONS_MAX = 4_096  # Shared memory regions that are registered with a gateway; a further region is refused
OWNER_REGIONS_MAX = 1_024  # Shared memory regions of one user

REGION_BYTES_MAX = (1 << 62) - 1
"""Largest offset and size in shared memory, so that their sums fit into 63 bits; the file's size bounds both
further."""

REGION_NAME_CHARS_MAX = 256  # Longest name of a shared memory region, in characters
SHARED_MEMORY_KEY_BYTES_MAX = 255  # Longest name of a file in /dev/shm: the file system's own bound

REGION_COPY_S = 10.0
"""Time for the copies of a request's tensors from and to shared memory, of its inputs and of its outputs
each."""

REGIONS_SWEEP_S = 10.0  # Interval of sweeps for abandoned regions

REGION_UNHELD_SWEEPS = 2
"""Consecutive sweeps after which a region is removed whose file no process has open or mapped. A single sweep
may fall between a caller's close() and its next open()."""

# ----- gateway/errors.py -----------------------------------------------------------------------

RETRY_AFTER_S = 1
"""Retry-After, in seconds, where no estimate is known, and its least value: the header has whole seconds."""

# ----- gateway/tracing.py ----------------------------------------------------------------------

CLOSE_MS = 5_000  # Time that close() may take to send the remaining spans

# ----- gateway/errors.py -----------------------------------------------------------------------

ERROR_CHARS_MAX = 1_000
"""Longest sentence of an error of the gateway, and longest of its details: gRPC's peers take 8 KB of
metadata."""

# ----- gateway/tracing.py ----------------------------------------------------------------------

OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wants_traces() -> bool:
    """Whether OpenTelemetry's own variables name a target for traces, and do not disable traces."""
    return not disables_traces() and any(os.environ.get(name) for name in OTLP_ENDPOINTS)


def disables_traces() -> bool:
    """Whether OpenTelemetry's own variable disables traces."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def names_service() -> bool:
    """Whether the environment names this process for traces."""
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in named
