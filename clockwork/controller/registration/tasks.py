"""Values: tasks that change the registered models, and the consequences of each change once it is on disk;
see controller.registration.turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.models.lifecycle import VersionEvent
from clockwork.controller.models.version import ModelVersion, Waiter
from clockwork.controller.registration.releases import Release
from clockwork.controller.registration.uploads import Registration, Upload
from clockwork.formats.interface import Interface
from clockwork.wire.messages import Offer, Unregister


@dataclasses.dataclass(slots=True)
class ClientTask:
    """A change that a client asks for, and waits for. owner: the client's number, as in messages.Prepare.
    by: who it is, as the catalogue keeps it."""

    name: str
    waiter: Waiter
    wanted: Registration | Unregister | Offer | Release
    owner: int
    by: str


@dataclasses.dataclass(slots=True)
class Become:
    """An uploaded package becomes a version, unless a twin was faster."""

    name: str
    upload_id: int
    interface: Interface | None


@dataclasses.dataclass(slots=True)
class GiveUp:
    """Erase a version that no worker could prepare, and refuse it to the clients that registered it."""

    name: str
    model: ModelVersion


@dataclasses.dataclass(slots=True)
class Retire:
    """Erase a version that VERSIONS_MAX newer versions have followed. waiters: clients that registered it."""

    name: str
    model: ModelVersion
    waiters: Sequence[Waiter]


@dataclasses.dataclass(slots=True)
class KeepRecord:
    """Write a version's record anew: why it is set aside, or the interface of its package."""

    name: str
    model: ModelVersion
    of_aside: bool


OwnTask: TypeAlias = Become | GiveUp | Retire | KeepRecord
Task: TypeAlias = ClientTask | OwnTask


# ----- what follows a change once it is written ---------------------------------------------------


@dataclasses.dataclass(slots=True)
class Leave:
    """Versions go: they are removed, or unloaded."""

    waiter: Waiter
    text: str  # the client's text for the versions
    models: Sequence[ModelVersion]
    event: VersionEvent  # either ERASED or UNLOAD


@dataclasses.dataclass(slots=True)
class Reload:
    """Unloaded versions are prepared again. owner: the client's number."""

    waiter: Waiter
    models: Sequence[ModelVersion]
    owner: int


@dataclasses.dataclass(slots=True)
class Adopt:
    """A registration refers to an existing version, and has it serve, or changes its default SLO."""

    waiters: Sequence[Waiter]
    model: ModelVersion
    options: dict[str, Any]
    owner: int  # number of the client


@dataclasses.dataclass(slots=True)
class Add:
    """An upload becomes a version."""

    upload: Upload
    record: ModelRecord


@dataclasses.dataclass(slots=True)
class Reroute:
    """A name's traffic is routed anew."""

    waiter: Waiter


Following: TypeAlias = Leave | Reload | Adopt | Add | Reroute | GiveUp | Retire | KeepRecord
