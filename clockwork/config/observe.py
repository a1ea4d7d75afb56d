"""Bounds of what is kept and written of a cluster's history."""

from __future__ import annotations

# ----- observe/history.py ----------------------------------------------------------------------

HISTORY_NS = 60_000_000_000
"""How long a history keeps requests, actions and residencies that are over."""

HISTORY_REQUESTS_MAX = 200_000
"""Most requests of a history, some 600 bytes each; the oldest are forgotten first."""

HISTORY_ACTIONS_MAX = 200_000
"""Most actions of a history."""

HISTORY_MARK_NS = 100_000_000
"""How far apart the marks of a history's counts are at least."""
