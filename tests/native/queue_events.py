"""Events and commands of a worker's action queue (csrc/worker/queue.h) as typed records.

Times are of the worker's clock.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from clockwork.wire.messages import HostDrop, HostFetch, Infer, Load, Profile, Reserve, Status, Unload

Action: TypeAlias = Load | Unload | Infer | Profile | HostFetch | HostDrop | Reserve


class Received(NamedTuple):
    """The controller sent an action."""

    now_ns: int
    action: Action


class Ended(NamedTuple):
    """The device completed an action that it had been given."""

    now_ns: int
    action_id: int


class Revoked(NamedTuple):
    """The controller wants an action dropped if it has not started."""

    now_ns: int
    action_id: int


class Due(NamedTuple):
    """The time of next_wake_ns has come (or any other time)."""

    now_ns: int


class Start(NamedTuple):
    """Give this action to the device."""

    action: Action


class Reject(NamedTuple):
    """Answer this action; the device never saw it."""

    action: Action
    status: Status
    text: str


class RevokeStarted(NamedTuple):
    """The action is with the device: ask the device to drop it."""

    action_id: int


QueueEvent: TypeAlias = Received | Ended | Revoked | Due
QueueCommand: TypeAlias = Start | Reject | RevokeStarted
