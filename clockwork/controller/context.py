"""State that the parts of a controller's process share: the connected peers, the troubles and the time."""

from __future__ import annotations

import dataclasses

from clockwork.controller._exchange import Exchange
from clockwork.controller.lease.held import HeldLease
from clockwork.controller.peers.links import Links
from clockwork.controller.recording.recorder import FlightRecorder
from clockwork.controller.troubles import Troubles
from clockwork.wire.complaints import Complaints

COMPLAINTS = ("client malformed", "client failed", "worker malformed", "worker failed", "worker fault",
              "storage failed", "key refused", "clients cut", "workers cut", "events cut")  # fmt: skip
"""Kinds of complaints: by sender, a malformed message, a message at which a handler failed, and an impossible
answer; refused keys; connections that were ended."""


@dataclasses.dataclass(slots=True, eq=False)
class Context:
    """A controller's shared state, for its own thread alone. Decisions go by controller.effects."""

    exchange: Exchange
    links: Links
    flight: FlightRecorder
    troubles: Troubles
    complaints: Complaints
    epoch: int  # a number of this run of the controller, by which its peers tell it from an earlier run
    now_ns: int  # the time of this turn of the loop
    lease: HeldLease
