"""The standing of the active and its standbys, kept up to date from the notes in the data directory, and from
the lease where there are controllers on other machines."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from clockwork.config.controller import NOTES_LOOK_NS
from clockwork.controller.effects import ClearTrouble, Effect, NoteTrouble, Publish
from clockwork.controller.peers.directory import (
    Fellow,
    Presence,
    fellows_in,
    forget_dead,
    read_takeovers,
    standbys_of,
    write_takeovers,
)
from clockwork.controller.standing import (
    ControllerRole,
    ControllerStanding,
    Standby,
    StandbyWatch,
    Takeover,
    Takeovers,
)
from clockwork.controller.storage.thread import StorageThread
from clockwork.controller.troubles import TroubleKind
from clockwork.system.words import say_count

log = logging.getLogger("clockwork.controller")

SUBJECT = "controllers"


class Elsewhere(Protocol):
    """The part of a lease that tells of controllers on other machines."""

    @property
    def takeovers(self) -> Takeovers:
        """Those of the cluster, also that by which this controller became active."""
        ...

    def standing_by(self, newest: int) -> list[Standby]:
        """The standbys, as they were seen last. newest: the number of the newest change."""
        ...


class Fellows:
    """The standing of an active controller. newest: the number of the newest change of the catalogue.
    takeover: by which it became active; None: no other was. elsewhere: of a lease, which then tells the
    takeovers; None: all controllers are in this data directory."""

    def __init__(
        self,
        effects: deque[Effect],
        storage: StorageThread,
        data: Path,
        presence: Presence,
        newest: Callable[[], int],
        address: str,
        takeover: Takeover | None,
        expects_standbys: bool,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._effects = effects
        self._storage = storage
        self._data = data
        self._newest = newest
        self._elsewhere = elsewhere
        self._watch = StandbyWatch()
        self._told: dict[TroubleKind, None] = {}
        self._due_ns = 0
        self._is_looking = False
        self._is_told = False  # whether subscribers were told since the start
        self._is_blind = False  # whether the last look failed
        presence.serve(address)
        takeovers = read_takeovers(data) if elsewhere is None else elsewhere.takeovers
        if takeover is not None and elsewhere is None:
            takeovers = takeovers.after(takeover._replace(after=address))
            storage.submit(lambda: write_takeovers(data, takeovers), self._written)
        self.standing = ControllerStanding(
            ControllerRole.ACTIVE, address, presence.since_ns, expects_standbys, takeovers=takeovers
        )

    def standing_by(self) -> list[str]:
        """The addresses of the standbys that would take over at once. Reads files: for the storage thread, or
        an end. Raises OSError."""
        return [fellow.address for fellow in standbys_of(fellows_in(self._data), time.time_ns())]

    def beat(self, now_ns: int) -> None:
        """Look for standbys, unless that was done a moment ago."""
        if self._is_looking or now_ns < self._due_ns:
            return
        self._is_looking, self._due_ns = True, now_ns + NOTES_LOOK_NS

        def look() -> list[Fellow]:
            fellows = fellows_in(self._data)
            forget_dead(fellows)
            return fellows

        self._storage.submit(look, lambda found, error: self._seen(found, error, now_ns))

    def _seen(self, found: list[Fellow] | None, error: BaseException | None, now_ns: int) -> None:
        self._is_looking = False
        if error is not None:
            if not self._is_blind:
                log.warning("standbys of %s are not seen: %s", self._data, error)
            self._is_blind = True
            return
        self._is_blind = False
        assert found is not None
        number = self._newest()
        standbys = [
            fellow.stands_by(number)
            for fellow in found
            if fellow.is_alive and fellow.role is ControllerRole.STANDBY
        ]
        takeovers = self.standing.takeovers
        if self._elsewhere is not None:
            standbys += self._elsewhere.standing_by(number)
            takeovers = self._elsewhere.takeovers
        before, self.standing = (
            self.standing,
            self.standing._replace(standbys=tuple(standbys), takeovers=takeovers),
        )
        is_new = _addresses(before) != _addresses(self.standing) or before.takeovers != takeovers
        if is_new or not self._is_told:
            self._is_told = True
            self._effects.append(Publish("controllers", self.standing.describe(time.time_ns())))
        self._note_troubles(now_ns)

    def _note_troubles(self, now_ns: int) -> None:
        standing = self.standing
        text = "no standby is there: start one, or the cluster stands still when this controller ends"
        self._follow(TroubleKind.NO_STANDBY, self._watch.lacks(standing, now_ns), text)
        recent = standing.takeovers.recent
        text = (
            f"the active controller changed again and again: {say_count(len(recent), 'takeover')} are kept, the last "
            f"because it was {recent[-1].why.value}; its log and its machine's say what ends it"
            if recent
            else ""
        )
        self._follow(TroubleKind.TAKEOVERS_OFTEN, standing.takeovers.are_often(time.time_ns()), text)

    def _follow(self, kind: TroubleKind, is_there: bool, text: str) -> None:
        if is_there and kind not in self._told:
            self._told[kind] = None
            self._effects.append(NoteTrouble(kind, SUBJECT, text))
        elif not is_there and kind in self._told:
            del self._told[kind]
            self._effects.append(ClearTrouble(kind, SUBJECT))

    def _written(self, _: object, error: BaseException | None) -> None:
        if error is not None:
            log.warning("this takeover will not be told after the next one: %s", error)


def _addresses(standing: ControllerStanding) -> list[str]:
    return sorted(standby.address for standby in standing.standbys)
