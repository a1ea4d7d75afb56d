"""Complaints about what peers do: each is counted, few are logged."""

from __future__ import annotations

import dataclasses
import logging
import traceback
from collections.abc import Iterable

from clockwork.config import COMPLAINT_CHARS_MAX, COMPLAINT_FRAMES, COMPLAINT_INTERVAL_NS, COMPLAINT_LINES


@dataclasses.dataclass(slots=True)
class _Kind:
    count: int = 0
    lines: int = COMPLAINT_LINES  # that may be written at once
    renewed_ns: int = 0  # when `lines` was last looked at
    left_out: int = 0  # complaints since the last line


class Complaints:
    """Counts complaints by kind and writes some of them to a log.

    Of one kind at most COMPLAINT_LINES lines are written at once and one each COMPLAINT_INTERVAL_NS after that; the
    next line says how many were left out meanwhile. The kinds are the caller's, never a peer's.
    """

    def __init__(self, log: logging.Logger, kinds: Iterable[str]) -> None:
        self._log = log
        self._kinds = {kind: _Kind() for kind in kinds}

    def note(self, kind: str, now_ns: int, text: str, error: BaseException | None = None) -> None:
        """Count one; write it down with the traceback of ``error``, unless too many were written already."""
        one = self._kinds[kind]
        one.count += 1
        renewed = (now_ns - one.renewed_ns) // COMPLAINT_INTERVAL_NS
        if renewed > 0:
            one.lines = min(one.lines + renewed, COMPLAINT_LINES)
            one.renewed_ns = now_ns
        if one.lines <= 0:
            one.left_out += 1
            return
        one.lines -= 1
        text = text[:COMPLAINT_CHARS_MAX]
        if one.left_out:
            text += f" ({one.left_out} complaints of this kind were left out before)"
            one.left_out = 0
        if error is not None:
            lines = traceback.format_exception(error, limit=-COMPLAINT_FRAMES, chain=False)
            text += "\n" + "".join(lines)[-COMPLAINT_CHARS_MAX:].rstrip()
        self._log.warning("%s", text)

    def settle(self, now_ns: int) -> None:
        """Say what was left out where nothing followed that could have said so. To be called now and then."""
        for kind, one in self._kinds.items():
            if one.left_out and now_ns - one.renewed_ns >= COMPLAINT_INTERVAL_NS:
                one.renewed_ns = now_ns
                self._log.warning("%d complaints were left out (%s)", one.left_out, kind)
                one.left_out = 0

    def counts(self) -> dict[str, int]:
        """How many there were of each kind."""
        return {kind: one.count for kind, one in self._kinds.items()}
