"""The controllers of a cluster: the active, the standbys, and the takeovers among them.

Pure values, for status, metrics and events, whichever way the active is decided: by the lock of a data
directory or by a lease. Times are Unix times in ns, since they outlive processes; what is told has ages.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clockwork.config.controller import STANDBY_MISSED_NS, TAKEOVERS_KEPT, TAKEOVERS_OFTEN, TAKEOVERS_OFTEN_NS


class ControllerRole(enum.StrEnum):
    """The task of a controller."""

    ACTIVE = "active"
    STANDBY = "standby"


class Why(enum.StrEnum):
    """Why a standby became active."""

    KILLED = "killed"  # the active's process ended without a word
    STOPPED = "stopped"  # the active stood still, and a standby ended its process, or its lease expired
    ENDED = "ended"  # the active ended in order
    HANDED_OVER = "handed_over"  # the active gave way, because an operator said so


ORDERLY = frozenset({Why.ENDED, Why.HANDED_OVER})
"""Takeovers that somebody wanted."""


class Standby(NamedTuple):
    """A standby. heard_ns: its last sign.

    address: at which it will listen for clients; "": not known. process: a name of its process, or the
    network address of its machine where that is another; "": not known. behind: changes of the catalogue that
    it has not read yet; -1: it reads the catalogue when it takes over.
    """

    address: str
    process: str
    behind: int
    heard_ns: int


def changes_behind(read: int, newest: int) -> int:
    """Changes that a standby has not read. read: number of the newest change that it has read. newest: of the
    newest there is. -1: not known."""
    return -1 if read < 0 or newest < 0 else max(0, newest - read)


class Takeover(NamedTuple):
    """A standby became active. before, after: the addresses for clients; "": not known."""

    at_ns: int
    why: Why
    before: str
    after: str


class Takeovers(NamedTuple):
    """The takeovers of a data directory, or of a cluster. counts: of all, by why. recent: the last ones,
    TAKEOVERS_KEPT at most, the newest last."""

    counts: Mapping[Why, int]
    recent: tuple[Takeover, ...]

    def after(self, takeover: Takeover) -> Takeovers:
        """These, and one more."""
        counts = {**self.counts, takeover.why: self.counts.get(takeover.why, 0) + 1}
        return Takeovers(counts, (*self.recent, takeover)[-TAKEOVERS_KEPT:])

    def are_often(self, now_ns: int) -> bool:
        """Whether the active changes so often that something must be wrong."""
        since_ns = now_ns - TAKEOVERS_OFTEN_NS
        unwanted = [found for found in self.recent if found.why not in ORDERLY and found.at_ns >= since_ns]
        return len(unwanted) >= TAKEOVERS_OFTEN


NO_TAKEOVERS = Takeovers({}, ())


def text_of(takeovers: Takeovers) -> str:
    """The takeovers as they are stored."""
    return json.dumps({"counts": takeovers.counts, "recent": takeovers.recent})


def takeovers_of(text: str) -> Takeovers:
    """The takeovers in a text that was stored; none where it is none, or damaged."""
    try:
        return parse_takeovers(text) if text else NO_TAKEOVERS
    except ValueError:
        return NO_TAKEOVERS


def parse_takeovers(text: str) -> Takeovers:
    """The takeovers in a text that was stored. Raises ValueError."""
    try:
        body = json.loads(text)
        counts = {why: int(body["counts"].get(why.value, 0)) for why in Why}
        recent = [
            Takeover(int(at), Why(why), str(before), str(after)) for at, why, before, after in body["recent"]
        ]
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return Takeovers(
        {why: count for why, count in counts.items() if count > 0}, tuple(recent[-TAKEOVERS_KEPT:])
    )


class ControllerStanding(NamedTuple):
    """The controllers of a cluster, as one of them knows them. since_ns: since when the active is it.
    expects_standbys: whether there are to be standbys."""

    role: ControllerRole
    active: str  # address for clients
    since_ns: int
    expects_standbys: bool
    standbys: Sequence[Standby] = ()
    takeovers: Takeovers = NO_TAKEOVERS

    def describe(self, now_ns: int) -> dict[str, Any]:
        """The body for status and metrics, with ages in place of times. now_ns: Unix time."""
        last = self.takeovers.recent[-1] if self.takeovers.recent else None
        return {
            "role": self.role.value,
            "active": self.active,
            "since_ns": max(0, now_ns - self.since_ns),
            "expects_standbys": self.expects_standbys,
            "standbys": [
                {
                    "address": standby.address,
                    "process": standby.process,
                    "behind": standby.behind,
                    "silent_ns": max(0, now_ns - standby.heard_ns),
                }
                for standby in self.standbys
            ],
            "takeovers": {why.value: self.takeovers.counts.get(why, 0) for why in Why},
            "last": None
            if last is None
            else {
                "ago_ns": max(0, now_ns - last.at_ns),
                "why": last.why.value,
                "before": last.before,
                "after": last.after,
            },
        }


class StandbyWatch:
    """Since when an active has no standby, to tell it as a trouble. Times are of any one clock."""

    def __init__(self) -> None:
        self._since_ns = -1

    def lacks(self, standing: ControllerStanding, now_ns: int) -> bool:
        """Whether the active should have a standby, and has had none for too long."""
        if standing.standbys or not standing.expects_standbys:
            self._since_ns = -1
            return False
        if self._since_ns < 0:
            self._since_ns = now_ns
        return now_ns - self._since_ns >= STANDBY_MISSED_NS
