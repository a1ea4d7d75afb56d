"""What the parts of a controller's process share: who is connected, what is wrong, and what time it is."""

from __future__ import annotations

from clockwork.controller._exchange import Exchange
from clockwork.controller.peers.links import Links
from clockwork.controller.recording.recorder import FlightRecorder
from clockwork.controller.troubles import Troubles
from clockwork.wire.complaints import Complaints

COMPLAINTS = ("client malformed", "client failed", "worker malformed", "worker failed", "worker fault",
              "storage failed", "key refused", "clients cut", "workers cut", "events cut")  # fmt: skip
"""From whom a message was, and whether it made no sense, met a defect of ours, or was an answer that cannot be; and
connections that were not let in, or were ended."""


class Context:
    """One of a controller, whose thread alone uses it. What is to be done goes by controller.effects.

    epoch: of this controller, by which its peers tell it from the one before. now_ns: of this turn of the loop.
    """

    def __init__(
        self,
        exchange: Exchange,
        links: Links,
        flight: FlightRecorder,
        troubles: Troubles,
        complaints: Complaints,
        epoch: int,
        now_ns: int,
    ) -> None:
        self.exchange = exchange
        self.links = links
        self.flight = flight
        self.troubles = troubles
        self.complaints = complaints
        self.epoch = epoch
        self.now_ns = now_ns
