"""The controllers of one data directory, as they tell each other by notes, and the takeovers among them.

    <data>/controllers/    a note of each controller that lives (system.notes): its role, what it has read
    <data>/takeovers       how often the active changed, why, and the last times

The lock of the directory decides alone who is active. The notes are for people, and a takeover goes well
without them: a note that cannot be written is told once, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config.controller import NOTES_PAUSE_S, STANDBY_HEARD_NS, TAKEOVERS_BYTES_MAX
from clockwork.controller.standing import (
    NO_TAKEOVERS,
    ControllerRole,
    Standby,
    Takeover,
    Takeovers,
    Why,
    changes_behind,
    parse_takeovers,
    text_of,
)
from clockwork.system.clock import SECOND, now_ns
from clockwork.system.notes import Found, Note, read_notes

log = logging.getLogger("clockwork.controller")

NOTES_FOLDER = "controllers"
TAKEOVERS_FILE = "takeovers"


class Presence:
    """This controller's note in its data directory."""

    def __init__(self, data: Path, address: str, role: ControllerRole) -> None:
        """address: at which it listens for clients, or will."""
        self._body: dict[str, Any] = {
            "role": role.value, "address": address, "process": f"process {os.getpid()}", "since_ns": time.time_ns(),
            "read": -1, "heard_ns": time.time_ns(), "ended_ns": 0, "opened_ns": 0, "word": "", "follows": "",
        }  # fmt: skip
        self._note: Note | None = None
        try:
            self._note = Note(data / NOTES_FOLDER, self._body)
        except OSError as error:
            log.warning("this controller is not seen by others of %s: %s", data, error.strerror)

    @property
    def since_ns(self) -> int:
        """Unix time since when it has its role."""
        return int(self._body["since_ns"])

    def heard(self, read: int = -1) -> None:
        """Give a sign. read: number of the newest change of the catalogue that it has read; -1: none."""
        self._write(read=read, heard_ns=time.time_ns())

    def follow(self, active: str) -> None:
        """Tell which controller of another directory is active. active: a name for people; "": not known."""
        if active != self._body["follows"]:
            self._write(follows=active)

    def has_ended(self) -> None:
        """Tell that it has ended the active, which stood still."""
        self._write(ended_ns=time.time_ns())

    def serve(self, address: str) -> None:
        """Become the active."""
        if self._body["role"] != ControllerRole.ACTIVE:
            self._body |= {"role": ControllerRole.ACTIVE.value, "since_ns": time.time_ns()}
        self._write(address=address, follows="")

    def opens(self) -> None:
        """Tell that clients are let in."""
        self._write(opened_ns=time.time_ns())

    def close(self, word: Why | None = None) -> None:
        """End in order. word: why, for the standby that takes over; None: nobody does. Idempotent."""
        if word is not None:
            self._write(word=word.value)
        if self._note is not None:
            self._note.close(is_kept=word is not None)

    def _write(self, **fields: Any) -> None:
        self._body |= fields
        if self._note is not None:
            with contextlib.suppress(OSError):  # a full disk; the next sign is written again
                self._note.write(self._body)


class Fellow(NamedTuple):
    """The note of a controller of the directory."""

    path: Path
    is_alive: bool
    role: ControllerRole
    address: str
    process: str
    since_ns: int
    read: int
    heard_ns: int
    ended_ns: int  # when it ended an active that stood still; 0: never
    opened_ns: int  # when the active let clients in; 0: not yet
    word: str  # its last word as the active, a Why; "": none
    follows: str  # the active of another directory that a standby waits for; "": none

    def stands_by(self, number: int) -> Standby:
        """The description of a standby. number: of the catalogue's newest change; -1: not known."""
        return Standby(self.address, self.process, changes_behind(self.read, number), self.heard_ns)


def fellows_in(data: Path) -> list[Fellow]:
    """The controllers of a data directory, those that have left a note and died as well. Raises OSError."""
    return [fellow for found in read_notes(data / NOTES_FOLDER) if (fellow := _fellow(found)) is not None]


def standbys_of(fellows: Sequence[Fellow], now_ns: int) -> list[Fellow]:
    """The standbys that would take over at once: they live, and have given a sign. now_ns: Unix time."""
    return [
        fellow
        for fellow in fellows
        if fellow.is_alive
        and fellow.role is ControllerRole.STANDBY
        and now_ns - fellow.heard_ns < STANDBY_HEARD_NS
    ]


def await_successor(data: Path, limit_s: float) -> bool:
    """Wait until another controller of the directory lets clients in. False: none does in time."""
    limit_ns = now_ns() + round(limit_s * SECOND)
    while now_ns() < limit_ns:
        with contextlib.suppress(OSError):
            if any(fellow.is_alive and fellow.opened_ns for fellow in fellows_in(data)):
                return True
        time.sleep(NOTES_PAUSE_S)
    return False


def forget_dead(fellows: Sequence[Fellow]) -> None:
    """Remove the notes of controllers that are gone. For the active alone. Raises OSError."""
    for fellow in fellows:
        if not fellow.is_alive:
            fellow.path.unlink(missing_ok=True)


def takeover_from(fellows: Sequence[Fellow], now_ns: int, after: str) -> Takeover:
    """The takeover by which the caller became active, as the notes tell it. after: its address."""
    gone = [fellow for fellow in fellows if fellow.role is ControllerRole.ACTIVE and not fellow.is_alive]
    if not gone:  # it was an earlier release, or its note could not be written
        return Takeover(now_ns, Why.KILLED, "", after)
    last = max(gone, key=lambda fellow: fellow.since_ns)
    if last.word in list(Why):
        why = Why(last.word)
    else:
        was_ended = any(fellow.ended_ns > last.since_ns for fellow in fellows)
        why = Why.STOPPED if was_ended else Why.KILLED
    return Takeover(now_ns, why, last.address, after)


def read_takeovers(data: Path) -> Takeovers:
    """The takeovers of a data directory; none where the file is not there, or damaged."""
    path = data / TAKEOVERS_FILE
    try:
        with open(path, encoding="utf-8") as file:
            return parse_takeovers(file.read(TAKEOVERS_BYTES_MAX))
    except FileNotFoundError:
        return NO_TAKEOVERS
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, and earlier takeovers are not told: %s", path, error)
        return NO_TAKEOVERS


def write_takeovers(data: Path, takeovers: Takeovers) -> None:
    """Replace the takeovers. They need not survive the machine's end. Raises OSError."""
    new = data / f"{TAKEOVERS_FILE}.new"
    with open(new, "w", encoding="utf-8") as file:
        file.write(text_of(takeovers))
    os.replace(new, data / TAKEOVERS_FILE)


_TEXTS = ("role", "address", "process", "word", "follows")
_NUMBERS = ("since_ns", "read", "heard_ns", "ended_ns", "opened_ns")
_LATER = {"follows": ""}
"""Fields that a controller of an earlier release does not write."""


def _fellow(found: Found) -> Fellow | None:
    body = _LATER | found.body
    if not all(isinstance(body.get(name), str) for name in _TEXTS):
        return None
    if not all(type(body.get(name)) is int for name in _NUMBERS) or body["role"] not in list(ControllerRole):
        return None
    fields = {name: body[name] for name in (*_TEXTS, *_NUMBERS)}
    return Fellow(found.path, found.is_alive, **fields | {"role": ControllerRole(body["role"])})
