"""The life of a version, as one table: (state, event) -> (state, steps).

The states and events are explained here; ``controller.registration.versions`` takes the steps. ``python -m
clockwork.controller.models.lifecycle`` prints the table as a Mermaid diagram, which docs/life-cycle.md shows.
"""

from __future__ import annotations

import enum
from typing import TypeAlias


class ModelState(enum.StrEnum):
    """The state of a version. People are told ``shown``."""

    NEW = "new"  # the record is on disk, and no worker or client knows of the version yet
    PREPARING = "preparing"  # workers prepare the version
    READY = "ready"  # the version gets its part of its name's traffic
    FAILED = "failed"  # no worker could prepare the version
    UNLOADING = "unloading"  # the version takes no more requests, and has some under way
    UNLOADED = "unloaded"  # the version is registered, and no worker has it
    REMOVING = "removing"  # the version is erased on disk and has requests under way
    REMOVED = "removed"  # the version is gone

    @property
    def shown(self) -> str:
        return "draining" if self in (ModelState.UNLOADING, ModelState.REMOVING) else self.value

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no more requests, though some may be under way."""
        return self in (ModelState.UNLOADING, ModelState.REMOVING)

    @property
    def is_live(self) -> bool:
        """Whether workers and scheduler know of the version, or will soon be told of it."""
        return self not in (ModelState.NEW, ModelState.UNLOADED, ModelState.REMOVED)


class VersionEvent(enum.StrEnum):
    """Events of a version. An event that changes the disk comes after the write, except SET_ASIDE."""

    REGISTERED = "registered"
    FOUND = "found at start"
    FOUND_UNLOADED = "found unloaded at start"
    SERVABLE = "one worker has it"  # others prepare it still; only of a version that was ready before
    PREPARED = "all workers have answered"  # and at least one of them prepared the version
    REFUSED = "no worker can prepare it"  # for a version that was never ready
    LOST = "no worker can prepare it any more"
    GIVEN_UP = "erased, of no use"  # and no worker had prepared the version meanwhile
    LOAD = "load"
    UNLOAD = "unload"
    SET_ASIDE = "set aside"  # the scheduler drops the version; its record is written later
    ERASED = "erased"
    DRAINED = "last request answered"


class LifecycleStep(enum.StrEnum):
    """Steps of a version's transition to another state; several steps are taken in this order."""

    ENLIST = "enlist"  # the version gets a new id, by which workers and scheduler know it
    TRUST = "trust"  # the version was ready before: as soon as one worker has it, it is served again
    NOTE = "note why"  # status and the record say that the version is set aside
    PARDON = "pardon"  # the version is no longer set aside
    ASK = "ask workers"  # every worker prepares the version
    TURN_AWAY = "turn away"  # clients that wait for the version hear of its removal
    ROUTE = "route"  # the traffic of the version's name is routed anew
    RETIRE = "retire old"  # the oldest versions of the name are removed
    UNROUTE = "unroute"  # the traffic of the name goes to other versions
    FORGET = "forget"  # the workers forget the version
    KEEP = "keep"  # the version's record stays
    DROP = "drop"  # the version's record is erased
    ANNOUNCE = "announce"  # subscribers are told the new state
    ANSWER = "answer"  # clients that wait for the version get its description
    REFUSE = "refuse"  # clients that wait for the version hear that it cannot be served
    GIVE_UP = "give up"  # the record is erased, and then waiting clients hear why
    DRAIN = "drain"  # the scheduler takes no more requests for the version


Transition: TypeAlias = tuple[ModelState, tuple[LifecycleStep, ...]]

_BECOMES_READY = (LifecycleStep.ROUTE, LifecycleStep.RETIRE, LifecycleStep.ANNOUNCE)
_FAILS = (LifecycleStep.ROUTE, LifecycleStep.ANNOUNCE)
_LEAVES = (LifecycleStep.TURN_AWAY, LifecycleStep.UNROUTE, LifecycleStep.ANNOUNCE, LifecycleStep.DRAIN)
_IS_SET_ASIDE = (LifecycleStep.NOTE, LifecycleStep.TURN_AWAY, LifecycleStep.UNROUTE, LifecycleStep.ANNOUNCE)


def _registered(becomes_ready: tuple[LifecycleStep, ...]) -> dict[VersionEvent, Transition]:
    """Transitions of the states in which workers prepare a version. becomes_ready: the steps to READY."""
    return {
        VersionEvent.SERVABLE: (ModelState.READY, becomes_ready),
        VersionEvent.PREPARED: (ModelState.READY, (*becomes_ready, LifecycleStep.ANSWER)),
        VersionEvent.LOST: (ModelState.FAILED, (*_FAILS, LifecycleStep.REFUSE)),
        VersionEvent.UNLOAD: (ModelState.UNLOADING, _LEAVES),
        VersionEvent.SET_ASIDE: (ModelState.UNLOADING, _IS_SET_ASIDE),
        VersionEvent.ERASED: (ModelState.REMOVING, _LEAVES),
    }


_REFUSED = {VersionEvent.REFUSED: (ModelState.FAILED, (*_FAILS, LifecycleStep.GIVE_UP))}

TABLE: dict[ModelState, dict[VersionEvent, Transition]] = {
    ModelState.NEW: {
        VersionEvent.REGISTERED: (
            ModelState.PREPARING,
            (LifecycleStep.ENLIST, LifecycleStep.ASK, LifecycleStep.ANNOUNCE),
        ),
        VersionEvent.FOUND: (
            ModelState.PREPARING,
            (LifecycleStep.ENLIST, LifecycleStep.TRUST),
        ),  # workers are asked as they join
        VersionEvent.FOUND_UNLOADED: (ModelState.UNLOADED, ()),
    },
    ModelState.PREPARING: _registered(_BECOMES_READY) | _REFUSED,
    ModelState.READY: _registered(()),
    ModelState.FAILED: _registered(_BECOMES_READY)
    | _REFUSED
    | {VersionEvent.GIVEN_UP: (ModelState.REMOVED, (LifecycleStep.FORGET, LifecycleStep.DROP))},
    ModelState.UNLOADING: {
        VersionEvent.DRAINED: (
            ModelState.UNLOADED,
            (LifecycleStep.FORGET, LifecycleStep.KEEP, LifecycleStep.ANNOUNCE),
        ),
        VersionEvent.UNLOAD: (ModelState.UNLOADING, ()),
        VersionEvent.SET_ASIDE: (ModelState.UNLOADING, ()),
        VersionEvent.ERASED: (ModelState.REMOVING, (LifecycleStep.PARDON,)),
    },
    ModelState.UNLOADED: {
        VersionEvent.LOAD: (
            ModelState.PREPARING,
            (
                LifecycleStep.PARDON,
                LifecycleStep.ENLIST,
                LifecycleStep.TRUST,
                LifecycleStep.ASK,
                LifecycleStep.ANNOUNCE,
            ),
        ),
        VersionEvent.UNLOAD: (ModelState.UNLOADED, ()),
        VersionEvent.ERASED: (ModelState.REMOVED, (LifecycleStep.PARDON, LifecycleStep.DROP)),
    },
    ModelState.REMOVING: {
        VersionEvent.DRAINED: (
            ModelState.REMOVED,
            (LifecycleStep.FORGET, LifecycleStep.DROP, LifecycleStep.ANNOUNCE),
        ),
        VersionEvent.UNLOAD: (ModelState.REMOVING, ()),
        VersionEvent.SET_ASIDE: (ModelState.REMOVING, ()),
        VersionEvent.ERASED: (ModelState.REMOVING, ()),
    },
    ModelState.REMOVED: {},
}


def transition(state: ModelState, event: VersionEvent) -> Transition:
    """The next state, and the steps to take. An event that cannot come in this state is a defect."""
    found = TABLE[state].get(event)
    assert found is not None, f"{event!r} of a version that is {state}"
    return found


def diagram() -> str:
    """The table as a Mermaid state diagram, without events that change nothing."""
    lines = ["stateDiagram-v2", "    [*] --> new"]
    for state, changes in TABLE.items():
        for event, (target, steps) in changes.items():
            done = f" / {', '.join(steps)}" if steps else ""
            if target is not state or steps:
                lines.append(f"    {state} --> {target}: {event}{done}")
    return "\n".join([*lines, f"    {ModelState.REMOVED} --> [*]"])


if __name__ == "__main__":
    print(diagram())
