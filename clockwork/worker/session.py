"""A worker's side of its connection to the controller: hello, welcome, and leaving.

A session belongs to one connection at a time. It begins with a WorkerWelcome. It ends when the connection
does, when the controller lets go of the worker, or when the controller takes no more messages; then another
hello follows.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from clockwork import config
from clockwork.config import HANDSHAKES_BROKEN_MAX
from clockwork.config.worker import (
    DRAIN_SETTLE_NS,
    FAREWELL_LIMIT_NS,
    HELLO_PAUSE_MAX_NS,
    HELLO_PAUSE_NS,
    HELLO_SETTLED_NS,
)
from clockwork.system.clock import now_ns
from clockwork.takeover.obedience import Obedience
from clockwork.wire import codec
from clockwork.wire.keys import read_peer_keys
from clockwork.wire.messages import NEVER_NS, PROTOCOL_VERSION, DeviceInfo, WorkerHello
from clockwork.wire.roles import Role
from clockwork.wire.telling import printable
from clockwork.wire.transport import ConnectionEvent, EndpointTurns, Frame, Transport, split_endpoints
from clockwork.worker.settings import WorkerSettings

log = logging.getLogger("clockwork.worker")


class ControllerSession:
    """The connection, and whether the controller has let this worker in."""

    def __init__(self, settings: WorkerSettings, transport: Transport) -> None:
        endpoints = split_endpoints(settings.endpoint)
        self.turns = EndpointTurns(endpoints)
        self._name = settings.name
        self._epoch = random.SystemRandom().getrandbits(63)
        keys = read_peer_keys(settings.key) if settings.key is not None else None
        self._key_role = keys.role if keys is not None else None
        self._has_key = keys is not None
        self._transport, self._keys = transport, keys
        for other in endpoints[1:]:  # each is checked
            transport.hang_up(transport.dealer(other, keys))
        self.dealer = transport.dealer(endpoints[0], keys, self.turns.are_several)
        self.turns.dialled(now_ns())
        self._deliver: Callable[[bytes, Sequence[Frame]], bool] = self.dealer.send
        self._adopt: Callable[[int, int, Sequence[int]], None] = lambda *_: None
        self.welcomed = False
        self._welcomed_ns = 0
        self._hello_due_ns = 0  # the time from which a hello is due on this connection; 0: none is due
        self._hello_pause_ns = 0  # the pause before the next hello if the controller soon lets go again
        self._was_up = False
        self._refusals = 0
        self._obedience = Obedience()

    @property
    def _endpoint(self) -> str:
        return self.turns.current

    def send_by(
        self,
        deliver: Callable[[bytes, Sequence[Frame]], bool],
        adopt: Callable[[int, int, Sequence[int]], None],
    ) -> None:
        """Have native code own the socket: it sends by `deliver`, and takes another socket by `adopt`."""
        self._deliver, self._adopt = deliver, adopt

    def turn(self, now: int) -> None:
        """Dial the next controller where that is due."""
        if now < self.turns.due_ns:
            return
        if self.turns.advance(now, self.dealer.is_begun, self.dealer.is_up):
            # Not by zmq_disconnect(): libzmq may go on dialling the endpoint of a lost connection.
            before, self.dealer = self.dealer, self._transport.dealer(self.turns.current, self._keys, True)
            self._adopt(*self.dealer.addresses(), self.dealer.filenos)
            before.is_lent, self.dealer.is_lent = False, before.is_lent
            self._transport.hang_up(before)
            self.turns.dialled(now)
            self.end()

    def note(self, event: int, value: int) -> ConnectionEvent | None:
        """Process an event of the socket's monitor. Returns UP, DOWN or REFUSED (final); None: no change."""
        change = self.dealer.note(event, value)
        if change is ConnectionEvent.UP:
            log.info("connected to %s", self._endpoint)
            self._was_up, self._refusals = True, 0
        elif change is ConnectionEvent.DOWN:
            if self._was_up:
                log.warning("connection to %s lost; trying again", self._endpoint)
            self.turns.lost(now_ns())
        elif change is not None:
            self._refusals += 1
            is_broken_for_good = (
                self._refusals >= HANDSHAKES_BROKEN_MAX and not self._was_up and self._has_key
            )
            if change is not ConnectionEvent.REFUSED and not is_broken_for_good:
                return None
            hint = "are the keys right (--key)?"
            if self._key_role not in (None, Role.WORKER):
                hint = f"its key has the role {self._key_role.value} and must have worker (--key)"
            log.error("%s refused the connection: %s", self._endpoint, hint)
            return ConnectionEvent.REFUSED
        return change

    def send(self, header: bytes, frames: Sequence[Frame] = ()) -> bool:
        """Send a message. False: the welcomed worker's messages are no longer taken, so a hello is due."""
        if self._send(header, frames) or not self.welcomed:
            return True
        self.note_unsent()
        return False

    def note_unsent(self) -> None:
        """Record that the controller takes no more messages."""
        log.warning("%s does not take messages; starting over", self._endpoint)

    def _send(self, header: bytes, frames: Sequence[Frame] = ()) -> bool:
        return self.dealer.is_up and self._deliver(header, frames)

    def hello(self, devices: Iterable[DeviceInfo]) -> None:
        """Offer these devices to the controller; a device's index is its place in this order."""
        fields = [dataclasses.asdict(info) for info in devices]
        hello = WorkerHello(
            PROTOCOL_VERSION, config.VERSION, self._name, self._epoch, fields, self._obedience.lease
        )
        sent = self._send(codec.encode(hello))
        self._hello_due_ns = 0 if sent else now_ns()

    def is_hello_due(self, now: int) -> bool:
        """Whether hello() is to be called now."""
        return self._hello_due_ns != 0 and now >= self._hello_due_ns

    def end(self, hello_due_ns: int = 0) -> None:
        """End the session. hello_due_ns: the time of the next hello; 0: none on this connection."""
        self.welcomed = False
        self._hello_due_ns = hello_due_ns

    def end_by_controller(self, now: int) -> None:
        """End the session because the controller did: another hello is due, after a pause if this happens
        often."""
        settled = now - self._welcomed_ns >= HELLO_SETTLED_NS
        self._hello_pause_ns = (
            0 if settled else min(max(2 * self._hello_pause_ns, HELLO_PAUSE_NS), HELLO_PAUSE_MAX_NS)
        )
        self.end(now + self._hello_pause_ns)
        if not settled:
            log.warning(
                "the controller let go of this worker %.1f s after it had let it in; hello again in %.2f s",
                (now - self._welcomed_ns) / 1e9, self._hello_pause_ns / 1e9,
            )  # fmt: skip

    def obeys(self, epoch: int, holder: str, cluster: str) -> bool:
        """Whether to serve a controller with this lease; see Obedience.follow()."""
        if self._obedience.follow(epoch, holder, cluster):
            return True
        known = self._obedience.leader
        log.error(
            "refused the controller %s at %s: its epoch is %d, and %s has epoch %d",
            printable(holder), self._endpoint, epoch, printable(known.holder), known.epoch,
        )  # fmt: skip
        return False

    def refuse(self, now: int) -> None:
        """Serve nobody; another hello follows after the longest pause."""
        self.end(now + HELLO_PAUSE_MAX_NS)

    def begin(self, now: int) -> None:
        """Begin the session: the controller has sent a WorkerWelcome."""
        self.welcomed = True
        self._welcomed_ns = now
        self.turns.settle()


@dataclasses.dataclass(slots=True)
class Departure:
    """The departure of a worker: once its actions have ended (drain), or at once after a failure (give up).

    The controller answers each Goodbye with a Goodbye. To a draining worker the answer means that no action
    follows. A worker that gives up sends Goodbye twice, before and after its last answers: the second answer
    shows that the controller has read them. A connection that is closed earlier may be given up with its last
    messages unread.
    """

    drain_ns: int  # the limit of the time in which actions end
    # The controller may have models copied from here before it answers, for which the worker waits as long
    keeps_copies: bool = False
    began_ns: int = 0  # time at which draining began; 0: it has not begun
    released: bool = False  # the controller sends no more actions
    exit_status: int = 0  # the exit status of a worker that gives up; 0: it does not give up
    _farewells_due: int = 0
    _latest_ns: int = NEVER_NS

    def drain_due_ns(self, action_count: int) -> int:
        """Return the latest time at which a draining worker leaves; NEVER_NS if it is not draining."""
        if not self.began_ns:
            return NEVER_NS
        if action_count or (self.keeps_copies and not self.released):
            return self.began_ns + self.drain_ns
        return self.began_ns + (0 if self.released else min(DRAIN_SETTLE_NS, self.drain_ns))

    def due_ns(self, action_count: int) -> int:
        """Return the time at which the worker leaves if no event comes before."""
        return min(self.drain_due_ns(action_count), self._latest_ns)

    def give_up(self, exit_status: int, now: int, farewells: int) -> None:
        """Leave once the given number of Goodbyes has come, or soon if they do not come."""
        self.exit_status = exit_status
        self._farewells_due = farewells
        self._latest_ns = now + FAREWELL_LIMIT_NS

    def has_given_up(self, now: int) -> bool:
        """Whether a worker that gives up is to leave now."""
        return self.exit_status != 0 and (self._farewells_due <= 0 or now >= self._latest_ns)

    def on_goodbye(self) -> None:
        """Process a Goodbye of the controller."""
        if self.exit_status:
            self._farewells_due -= 1
        elif self.began_ns:
            self.released = True
        else:
            log.info("the controller is shutting down")
