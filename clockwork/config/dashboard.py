"""Bounds of observe/dashboard: its reading, its history, its pages and their readers."""

from __future__ import annotations

DASHBOARD_PORT = 8787

DASHBOARD_LOOK_S = 0.5
"""Interval at which the dashboard reads the controller's steps, and at which a page is drawn."""

DASHBOARD_LOOK_BYTES = 512 << 10
"""Most bytes of steps that are read at a time: some 6,000 requests. Of a busier cluster only the newest are
read."""

DASHBOARD_STEPS_MAX = 10_000  # Most steps of a recording that are taken in before pages are served again
DASHBOARD_ANSWER_S = 5.0  # Time limit for the controller's answer

DASHBOARD_BACKLOG_BYTES = 2 << 20
"""Lag behind the newest step beyond which the dashboard skips the steps between."""

DASHBOARD_REST_S = 1.0
"""Time without an open page, after which steps written meanwhile are not reported as missing."""

DASHBOARD_BEGIN_NS = 10_000_000_000  # Age of the oldest step that the dashboard reads first
DASHBOARD_DESCRIBE_NS = 30_000_000_000  # Least time between two queries for the names of workers and models

DASHBOARD_DESCRIBE_PART = 0.001
"""Largest share of the controller's time that answers to these queries may take."""

DASHBOARD_REQUESTS_MAX = 20_000  # Most requests, and most actions, of the dashboard's history

DASHBOARD_GARBAGE = (100_000, 20, 100)
"""Thresholds of Python's collector of cycles, of which a history has none: with those it begins with, it
walks through all that is kept at every third look or so, in 120 ms; a look itself takes 200."""

DASHBOARD_BARS_MAX = 4_000  # Most executions, and most loads, that a page draws; the newest
DASHBOARD_POINTS_MAX = 1_000  # Most points of predicted against measured durations
DASHBOARD_ROWS_MAX = 40  # Requests of each outcome that a page lists
DASHBOARD_DEVICES_MAX = 128  # Devices that a page draws, the first by worker and index
DASHBOARD_ROUND_MAX = 16  # Devices that are drawn around one request
DASHBOARD_PAGES_MAX = 16  # Pages that may be open at once, unless told otherwise

DASHBOARD_UNUSED_S = 15.0
"""Time after which a page that was closed, or never opened its connection, is forgotten."""

DASHBOARD_END_S = 0.3
"""Time that sending to pages may take when it ends; connections that are still open then are cut."""

DASHBOARD_MESSAGE_BYTES = 64 << 10  # The largest message that a page may send

DASHBOARD_CONNECTIONS_MAX = 128
"""Connections of browsers; each page takes some. For a further connection, web/seats.py chooses which is
ended."""

DASHBOARD_DESCRIPTORS_KEPT = 64  # Open files that are reserved for other uses than browsers' connections
DASHBOARD_STRANGER_S = 10.0  # Time within which a new connection must make a permitted request

DASHBOARD_IDLE_S = 75.0
"""Time without a request after which a connection is closed, and within which a request's headers must come.
"""

DASHBOARD_SWEEP_S = 1.0
DASHBOARD_TOKEN_FORM_BYTES = 8 << 10  # The largest form with a token
DASHBOARD_LANES_PX = 384  # Height that the rows of devices share, as long as each has at least some pixels
DASHBOARD_WINDOWS_S = (0.5, 1, 2, 5, 10)  # Times that the lanes of a page can show
