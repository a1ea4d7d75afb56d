"""What the parts of a controller's process share: who is connected, how they are told, and what is said to everybody."""

from __future__ import annotations

from typing import Any

import msgpack

from clockwork.controller._exchange import CLIENTS, WORKERS, Exchange
from clockwork.controller.peers.links import Links
from clockwork.controller.recording.recorder import FlightRecorder
from clockwork.controller.troubles import ALERTING, TroubleKind, Troubles
from clockwork.scheduler.types import Event
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.messages import Reply
from clockwork.wire.transport import Publisher

COMPLAINTS = ("client malformed", "client failed", "worker malformed", "worker failed", "worker fault",
              "storage failed", "key refused", "clients cut", "workers cut", "events cut")  # fmt: skip
"""From whom a message was, and whether it made no sense, met a defect of ours, or was an answer that cannot be; and
connections that were not let in, or were ended."""


class Context:
    """One of a controller, whose thread alone uses it.

    epoch: of this controller, by which its peers tell it from the one before. now_ns: of this turn of the loop.
    """

    def __init__(
        self,
        exchange: Exchange,
        links: Links,
        flight: FlightRecorder,
        publisher: Publisher,
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
        self.events: list[Event] = []
        """What the scheduler is told before anything that happens later than this turn."""
        self._publisher = publisher

    def tell_client(self, identity: bytes, fd: int, message: tuple[Any, ...]) -> bool:
        """Queue a message for the client at a descriptor. False if it is gone or has left too much unread."""
        if type(message) is Reply:
            header, rest = codec.encode_reply(message)
        else:
            header, rest = codec.encode(message), b""
        return self.exchange.send(CLIENTS, identity, fd, header, (), rest)

    def tell_worker(self, identity: bytes, fd: int, message: tuple[Any, ...], frames: Any = ()) -> bool:
        """The same of a worker."""
        return self.exchange.send(WORKERS, identity, fd, codec.encode(message), frames)

    def tell_scheduler(self, event: Event) -> None:
        """At once, ahead of what ``events`` holds."""
        self.flight.told(event)
        self.exchange.note(event)

    def tell_events(self) -> None:
        for event in self.events:
            self.tell_scheduler(event)
        self.events.clear()

    def publish(self, topic: str, body: dict[str, Any]) -> None:
        self._publisher.send(topic.encode(), msgpack.packb(body))

    def note_trouble(self, kind: TroubleKind, subject: str, text: str) -> None:
        """Have status and metrics say so until it is cleared, or a day if nothing can mend it."""
        if kind in ALERTING:
            self.flight.alert(kind.value.replace("_", "-"), self.now_ns)
        self.troubles.note(kind, subject, text, self.now_ns)

    def clear_trouble(self, kind: TroubleKind, subject: str) -> None:
        self.troubles.clear(kind, subject)

    def complain(self, kind: str, text: str, error: BaseException | None = None) -> None:
        """Count what should not have come, or gone wrong. kind: of COMPLAINTS."""
        self.complaints.note(kind, self.now_ns, text, error)
        self.note_trouble(TroubleKind.MESSAGE_REJECTED, kind, text)
