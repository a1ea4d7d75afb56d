"""Complaints about peers: each is counted, few are logged."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

from clockwork.config.wire import COMPLAINT_CHARS_MAX, COMPLAINT_INTERVAL_NS, COMPLAINT_LINES


@dataclasses.dataclass(slots=True)
class _Kind:
    count: int = 0
    lines: int = COMPLAINT_LINES  # log lines that may be written at once
    renewed_ns: int = 0  # when `lines` was last renewed
    left_out: int = 0  # complaints since the last line


class Complaints:
    """Counts complaints by kind and writes some of them to a log.

    A kind may log COMPLAINT_LINES lines at once and another line each COMPLAINT_INTERVAL_NS after that; the
    next line says how many complaints were left out meanwhile. The kinds are chosen by the caller, never by a
    peer.
    """

    def __init__(self, log: logging.Logger, kinds: Iterable[str]) -> None:
        self._log = log
        self._kinds = {kind: _Kind() for kind in kinds}

    def note(self, kind: str, now_ns: int, text: str, error: BaseException | None = None) -> None:
        """Count a complaint; log it, with ``error``'s traceback, unless too many of its kind were logged."""
        entry = self._kinds[kind]
        entry.count += 1
        renewed = (now_ns - entry.renewed_ns) // COMPLAINT_INTERVAL_NS
        if renewed > 0:
            entry.lines = min(entry.lines + renewed, COMPLAINT_LINES)
            entry.renewed_ns = now_ns
        if entry.lines <= 0:
            entry.left_out += 1
            return
        entry.lines -= 1
        text = text[:COMPLAINT_CHARS_MAX]
        if entry.left_out:
            text += f" ({entry.left_out} complaints of this kind were left out before)"
            entry.left_out = 0
        self._log.warning("%s", text, exc_info=error)

    def settle(self, now_ns: int) -> None:
        """Log the number of complaints left out, for kinds that are quiet since. Called now and then."""
        for kind, entry in self._kinds.items():
            if entry.left_out and now_ns - entry.renewed_ns >= COMPLAINT_INTERVAL_NS:
                entry.renewed_ns = now_ns
                self._log.warning("%d complaints were left out (%s)", entry.left_out, kind)
                entry.left_out = 0

    def counts(self) -> dict[str, int]:
        """The number of complaints of each kind."""
        return {kind: entry.count for kind, entry in self._kinds.items()}
