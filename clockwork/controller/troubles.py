"""Troubles and their ages, for status and metrics: a failure of the system shows there without a request.

Pure bookkeeping: no sockets, no clocks. The part that finds a trouble notes it under a kind and a subject;
the part that sees it mended clears it. An event that nothing mends (PASSING) is forgotten a day after it
happened last.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from clockwork.config import TROUBLE_CHARS_MAX
from clockwork.config.controller import TROUBLE_KEPT_NS, TROUBLES_PER_KIND_MAX


class TroubleKind(enum.StrEnum):
    """Kinds of troubles. A kind is a label of metrics, so there are few; the subject is the affected part."""

    # The model's executions ended workers or overran; subject: name@version.
    MODEL_SET_ASIDE = "model_set_aside"
    MODEL_OVERRUN = "model_overrun"  # An execution was ended because it took too long; subject: name@version.
    WORKER_KILLED = "worker_killed"  # A worker died with an execution under way; subject: name@version.
    # A load, or a trial, did not end, and its worker began anew; subject: the worker's name.
    WORKER_STUCK = "worker_stuck"
    WORKER_LET_GO = "worker_let_go"  # A worker's answers were wrong too often; subject: the worker's name.
    WORKER_CLOCK = "worker_clock"  # A worker's clock cannot be followed; subject: the worker's name.
    DEVICE_LOST = "device_lost"  # A device of a worker is broken for good; subject: worker/device.
    # A worker cannot prepare a model that was ready; subject: name@version on the worker's name.
    PREPARATION_FAILED = "preparation_failed"
    FILE_REPAIRED = "file_repaired"  # A stored file was damaged and has been replaced; subject: its content.
    FILE_DAMAGED = (
        "file_damaged"  # A stored file is damaged and there is no other copy; subject: its content.
    )
    MODEL_SOURCE_FAILED = (
        "model_source_failed"  # A gateway cannot read a model repository; subject: its folder or URL.
    )
    STORAGE_FAILED = "storage_failed"  # A file could not be written or erased; subject: its content.
    # An object store takes and gives no packages; subject: its URL.
    PACKAGES_UNREACHABLE = "packages_unreachable"
    MODELS_LOST = "models_lost"  # No worker has a copy of some models any more; subject: stores.
    STORES_FULL = "stores_full"  # No store has room for copies that there should be; subject: stores.
    KEYS_UNREADABLE = (
        "keys_unreadable"  # The list of keys is broken, and the one before holds; subject: keys.
    )
    TELEMETRY_FAILED = "telemetry_failed"  # Rows of requests and actions are missing; subject: the folder.
    NO_STANDBY = "no_standby"  # There are to be standbys, and there is none; subject: controllers.
    # The active changed several times within minutes, and nobody wanted it; subject: controllers.
    TAKEOVERS_OFTEN = "takeovers_often"
    MESSAGE_REJECTED = "message_rejected"  # A peer's messages raised or were malformed; subject: which side.


PASSING = frozenset({
    TroubleKind.MODEL_OVERRUN, TroubleKind.WORKER_KILLED, TroubleKind.WORKER_STUCK, TroubleKind.WORKER_LET_GO,
    TroubleKind.FILE_REPAIRED, TroubleKind.MESSAGE_REJECTED,
})  # fmt: skip
"""Events, which nothing mends. The other kinds are states and stay until they are cleared."""


ALERTING = frozenset({
    TroubleKind.MODEL_SET_ASIDE, TroubleKind.MODEL_OVERRUN, TroubleKind.WORKER_KILLED, TroubleKind.WORKER_STUCK,
    TroubleKind.WORKER_LET_GO, TroubleKind.WORKER_CLOCK, TroubleKind.DEVICE_LOST,
})  # fmt: skip
"""Kinds whose cause may lie in the minute before: the flight recorder is dumped when one is noted."""


@dataclasses.dataclass(slots=True)
class Trouble:
    """A trouble. text: the sentence of the last note."""

    kind: TroubleKind
    subject: str
    text: str
    since_ns: int
    last_ns: int
    count: int


class Troubles:
    """The open troubles, bounded for each kind, so that no kind hides the others."""

    def __init__(self) -> None:
        self._open: dict[TroubleKind, dict[str, Trouble]] = {kind: {} for kind in TroubleKind}
        self._noted: dict[TroubleKind, int] = dict.fromkeys(TroubleKind, 0)
        self._left_out: dict[TroubleKind, int] = dict.fromkeys(TroubleKind, 0)

    def note(self, kind: TroubleKind, subject: str, text: str, now_ns: int) -> None:
        """Note a trouble. A trouble that is already open keeps its beginning and takes the newer text."""
        self._noted[kind] += 1
        subject, text = subject[:TROUBLE_CHARS_MAX], text[:TROUBLE_CHARS_MAX]
        of_kind = self._open[kind]
        found = of_kind.get(subject)
        if found is not None and not _is_over(found, now_ns):
            found.text, found.last_ns = text, now_ns
            found.count += 1
            return
        if found is not None or len(of_kind) >= TROUBLES_PER_KIND_MAX:
            for old in [trouble.subject for trouble in of_kind.values() if _is_over(trouble, now_ns)]:
                del of_kind[old]
        if len(of_kind) >= TROUBLES_PER_KIND_MAX:
            self._left_out[kind] += 1
            return
        of_kind[subject] = Trouble(kind, subject, text, now_ns, now_ns, 1)

    def clear(self, kind: TroubleKind, subject: str) -> bool:
        """Clear a trouble that is mended. False: it was not noted, or left out."""
        return self._open[kind].pop(subject[:TROUBLE_CHARS_MAX], None) is not None

    def describe(self, now_ns: int) -> dict[str, Any]:
        """The troubles for status.

        ``open``: oldest first, with ages, since times hold on this machine alone. ``left_out``: notes of
        subjects that had no room, by kind. ``noted``: all notes since the start, by kind.
        """
        current = (trouble for kind in self._open for trouble in self._current(kind, now_ns))
        found = sorted(current, key=lambda trouble: trouble.since_ns)
        return {
            "open": [
                {
                    "kind": trouble.kind.value,
                    "subject": trouble.subject,
                    "text": trouble.text,
                    "count": trouble.count,
                    "since_ns": now_ns - trouble.since_ns,
                    "last_ns": now_ns - trouble.last_ns,
                }
                for trouble in found
            ],
            "left_out": {kind.value: count for kind, count in self._left_out.items() if count},
            "noted": {kind.value: count for kind, count in self._noted.items()},
        }

    def summary(self, now_ns: int) -> dict[str, dict[str, int]]:
        """Metrics by kind: the open troubles, the age of the oldest in ns, and all notes since the start."""
        body = {}
        for kind, noted in self._noted.items():
            ages = [now_ns - trouble.since_ns for trouble in self._current(kind, now_ns)]
            body[kind.value] = {"open": len(ages), "since_ns": max(ages, default=0), "noted": noted}
        return body

    def _current(self, kind: TroubleKind, now_ns: int) -> list[Trouble]:
        return [trouble for trouble in self._open[kind].values() if not _is_over(trouble, now_ns)]


def _is_over(trouble: Trouble, now_ns: int) -> bool:
    """Whether a passing event happened too long ago to be shown."""
    return trouble.kind in PASSING and now_ns - trouble.last_ns >= TROUBLE_KEPT_NS
