"""The sockets of a controller, and the exchange between them."""

from __future__ import annotations

from collections.abc import Callable

from clockwork.config import FRAMES_MAX, PRIORITY_DEFAULT, QUEUED_REQUESTS_MAX
from clockwork.config.controller import DRAIN_BATCH_EVENTS, TURN_HEADER_BYTES, TURN_PYTHON_NS
from clockwork.controller._exchange import CLIENTS, WORKERS, Exchange, Ring
from clockwork.controller.peers.access import Access
from clockwork.controller.peers.seats import SeatCounts
from clockwork.controller.settings import ControllerSettings
from clockwork.errors import ConfigError
from clockwork.scheduler._core import TEXTS, Core
from clockwork.wire.messages import Reason
from clockwork.wire.roles import ControllerSocket
from clockwork.wire.transport import Transport, socket_functions


class Sockets:
    """The sockets for clients, for workers and for published events; owned until close()."""

    def __init__(self, settings: ControllerSettings, access: Access, seats: SeatCounts) -> None:
        """Bind the sockets. Raises ConfigError where a socket cannot be bound."""
        keys, gate = access.keys, access.admit
        endpoints = (settings.client_endpoint, settings.worker_endpoint, settings.events_endpoint)
        self._settings = settings
        self._seats = seats
        self._functions = socket_functions()
        self._transport = Transport()
        try:
            self.clients = self._transport.router(endpoints[0], keys, ControllerSocket.CLIENTS, gate)
            self.workers = self._transport.router(endpoints[1], keys, ControllerSocket.WORKERS, gate)
            self.publisher = self._transport.publisher(
                endpoints[2], keys, ControllerSocket.EVENTS, gate, seats.subscribers
            )
        except ConfigError:
            self._transport.close()
            raise

    def exchange(self, scheduler: Core, find: Callable[[str], int], ring: Ring) -> Exchange:
        """The exchange between the sockets and a scheduler. find: see Served; ring: what it records to."""
        bounds = {
            CLIENTS: self._settings.client_bounds.within(self._seats.clients, self._seats.clients_ungreeted),
            WORKERS: self._settings.worker_bounds.within(self._seats.workers, self._seats.workers_ungreeted),
        }
        return Exchange(
            scheduler, find, self._functions, self.workers.addresses(), self.clients.addresses(), TEXTS, ("", *Reason),
            drain_messages=DRAIN_BATCH_EVENTS, message_frames=FRAMES_MAX, turn_bytes=TURN_HEADER_BYTES,
            turn_python_ns=TURN_PYTHON_NS, priority_default=PRIORITY_DEFAULT, queued_requests=QUEUED_REQUESTS_MAX,
            connections=bounds, ring=ring,
        )  # fmt: skip

    @property
    def filenos(self) -> list[int]:
        """The descriptors of the sockets that the exchange receives from."""
        return [*self.workers.filenos, *self.clients.filenos]

    def close(self) -> None:
        self._transport.close()
