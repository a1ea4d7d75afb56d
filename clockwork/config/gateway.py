"""Bounds of a gateway."""

from __future__ import annotations

# ----- gateway/settings.py ---------------------------------------------------------------------

REQUEST_BYTES_MAX = 64 << 20
"""The largest request, unless told otherwise."""

JSON_BYTES_MAX = 8 << 20
"""The largest JSON, a binary request's header included: it is read on the loop, and all others wait meanwhile.
What is larger travels as binary data."""

INFLATE_RATIO_MAX = 256
"""A compressed request may become so many times as large. zlib's own bound is 1,032."""

INFLATED_BYTES_FREE = 1 << 20
"""Up to this much, whatever the ratio."""

REQUESTS_MAX = 4_096
"""Requests under way in one gateway; one more is refused as overloaded. A bound, not a queue: all of them are
at the controller, or on their way."""

REQUESTS_BYTES_MAX = 1 << 30
"""Bytes of requests under way; one more is refused as overloaded."""

CONNECTIONS_MAX = 1_024
"""HTTP connections; one more closes the one that has been idle longest, or itself if none is."""

IDLE_S = 75.0
"""An HTTP connection is closed after so long without a request."""

HEADERS_S = 10.0
"""How long a client may take for the headers of a request, from their first byte on."""

BODY_S = 30.0
"""And for its body."""

HEADER_BYTES_MAX = 16 << 10
"""Of one HTTP header, and of the request's line."""

STREAMS_MAX = 1_024
"""Calls under way on one gRPC connection."""

STREAM_WINDOW = 64
"""Requests under way on one stream; the next one is read when the oldest has been answered."""

GRPC_METADATA_BYTES_MAX = 16 << 10
GRPC_IDLE_S = 600.0
"""A gRPC connection is closed after so long without a call."""

ANSWER_LIMIT_NS = 300_000_000_000
"""How long the gateway waits for an answer to a request that has no deadline."""

GRACE_NS = 2_000_000_000
"""How long it waits beyond a request's deadline: the controller answers at the latest then, and knows why."""

QUERY_LIMIT_S = 10.0
"""How long it waits for what a query asks of the controller."""

READY_LIMIT_S = 1.0
"""And for whether the cluster is ready: who asks that, asks again soon."""

LOAD_LIMIT_S = 600.0
"""How long a model may take to be loaded or unloaded by the repository's calls."""

DRAIN_S = 10.0
"""How long requests under way may take when the gateway has been told to end."""

TOKEN_BYTES_MAX = 4_096
POLL_S = 5.0
"""Between two looks at a model repository, unless told otherwise."""

# ----- gateway/http.py -------------------------------------------------------------------------

JOINED_BYTES_MAX = 256 << 10
"""Answers up to this are joined to one piece, which costs less than several writes; larger ones are not copied."""

SWEEP_S = 1.0
"""How often connections are looked at that may have been idle or slow for too long."""

LINGER_S = 1.0
"""How long the rest of a request that was refused early is still read, so that its client sees the answer."""

HANDSHAKE_S = 10.0
BACKLOG = 1_024

# ----- gateway/grpc.py -------------------------------------------------------------------------

DETAILS_MAX = 2_000
"""Characters of an error's sentence: it travels in a header."""

KEEPALIVE_S = 60
"""A client that has been silent so long is asked whether it is there."""

# ----- gateway/metrics.py ----------------------------------------------------------------------

METRICS_MODELS_MAX = 1_000
"""Models (versions) with histograms in one text, those registered first; of others there are only counters. So many are
13 MB and a tenth of a second."""

METRICS_CACHE_NS = 1_000_000_000
"""A text is as good as new for this long: however many ask, the controller is asked once."""

METRICS_TIMEOUT_S = 3.0
"""How long a scrape waits for the controller, less than Prometheus waits for a scrape; then the text says that it does
not answer."""

# ----- gateway/inflate.py ----------------------------------------------------------------------

PIECE_BYTES = 1 << 20
"""Inflated at once: some milliseconds of the helper thread, between which other requests have their turn."""

# ----- gateway/repository.py -------------------------------------------------------------------

FOLDERS_MAX = 100_000
"""Models of one repository."""

FILES_MAX = 10_000
"""Files of one version."""

# ----- gateway/keeper.py -----------------------------------------------------------------------

REGISTERING_MAX = 4
"""Versions that are registered at the same time: workers prepare them one by one in any case."""

# ----- gateway/errors.py -----------------------------------------------------------------------

RETRY_AFTER_S = 1
"""What Retry-After says where nobody knows better; the header has whole seconds and none means never."""

# ----- gateway/tracing.py ----------------------------------------------------------------------

CLOSE_MS = 5_000
"""How long close() may take to send what is left."""

# ----- gateway/triton_config.py ----------------------------------------------------------------

CONFIG_BYTES_MAX = 1 << 20

NESTING_MAX = 64
"""Brackets within brackets: protobuf's reader takes the interpreter's stack for each."""
