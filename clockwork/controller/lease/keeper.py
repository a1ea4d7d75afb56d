"""The thread that contends for the lease and keeps it: clockwork.takeover.contender, driven by real events.

Four threads serve it, so that nothing waits for the database that must not: the keeper's steps the contender,
and one carries out the transactions on the lease. While this controller is a standby, one follows the
catalogue, and one waits for the lock of the active. The controller's loop learns of the lease through a
descriptor.

Controllers have no connections to each other: each reads in the database whatever the others would tell it.
An active hears of a higher epoch from workers as well, whose greetings name the epoch that they obey.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from clockwork.config.controller import HOLDER_HUNG_NS, LEASE_CLOSE_S
from clockwork.config.takeover import LOOK_NS
from clockwork.controller.catalog.database import Rows
from clockwork.controller.catalog.postgres import shown
from clockwork.controller.lease.copy import CatalogCopy
from clockwork.controller.lease.table import CatalogStand, LeaseAnswer, LockSign, LockWaiter, PostgresLease
from clockwork.controller.standing import NO_TAKEOVERS, Standby, Takeover, Why, changes_behind, takeovers_of
from clockwork.system.clock import SECOND, now_ns
from clockwork.takeover.contender import (
    Activate,
    AwaitLock,
    Contender,
    ContenderCommand,
    ContenderEvent,
    DatabaseLost,
    DatabaseReplied,
    EndConnection,
    LeaseRole,
    LockFreed,
    QueryLease,
    StepDown,
)
from clockwork.takeover.lease import LeaseOperation
from clockwork.takeover.messages import ActiveIs, Heard, TimeCame
from clockwork.takeover.obedience import Leader

log = logging.getLogger("clockwork.controller")

LOOK_S = LOOK_NS / SECOND


class LeaseWon(NamedTuple):
    """This controller is active. workers: the names of those that the last one had."""

    leader: Leader
    rows: Rows
    workers: Sequence[str]


class LeaseLost(NamedTuple):
    """Another controller is active, and this one must end."""

    leader: Leader


LeaseNews: TypeAlias = LeaseWon | LeaseLost


class _Reply(NamedTuple):
    """A database's answer, or its error, to a query of a connection that may have been given up since."""

    generation: int
    serial: int
    answer: LeaseAnswer | OSError


class _Freed(NamedTuple):
    """A lock is free that was awaited. number: of the wait, which may have been given up since."""

    number: int
    lock: int


class _Beaten(NamedTuple):
    """The controller's loop goes on."""


_Item: TypeAlias = ContenderEvent | _Reply | _Freed | _Beaten | None
"""An item of the inbox of the keeper's thread. None: the thread is to end."""


def holder_name() -> str:
    """A name that no other start of any controller has."""
    machine = "".join(letter for letter in socket.gethostname() if letter.isalnum() or letter in "-._")
    return f"{machine[:64]}/{os.getpid()}/{secrets.token_hex(4)}"


class LeaseKeeper:
    """Contends for the lease from start() to close(). Apart from these, any thread may call everything."""

    def __init__(self, url: str, addresses: tuple[str, ...], takeover: Takeover | None = None) -> None:
        """Read the catalogue. addresses: of this controller, that for clients first. takeover: of its data
        directory, see PostgresLease. Raises OSError, ConfigError."""
        self._url = url
        self._copy = CatalogCopy(url)
        self._copy.open()
        self._contender = Contender(holder_name(), addresses, now_ns())
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._news: deque[LeaseNews] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lease = _LeaseThread(url, self._inbox, takeover)
        self._stop_following = threading.Event()
        waiter = LockWaiter(url, next(iter(addresses), ""), lambda: self._copy.stand.number)
        self._locks = _LockThread(waiter, self._inbox)
        self._stand = CatalogStand(-1, "")  # of the database's last answer
        self._workers: Sequence[str] = ()  # those of the last answer
        self._standbys: Sequence[LockSign] = ()  # those of the last renewal
        self._takeovers = ""  # as they were read last
        # Those of the cluster, as this controller knows them while it is active
        self.takeovers = NO_TAKEOVERS
        self._is_closed = False
        self._beat_ns = 0  # the last beat of the controller's loop; 0: it has not begun
        self._why_away = ""  # why the database does not answer; "": it does
        self.leader = self._contender.leader  # the active as this controller knows it
        self._thread = threading.Thread(target=self._run, name="lease keeper", daemon=True)
        self._following = threading.Thread(target=self._follow, name="catalogue copy", daemon=True)

    @property
    def holder(self) -> str:
        """The name of this controller."""
        return self._contender.holder

    @property
    def why_away(self) -> str:
        """Why the database does not answer; "": it does."""
        return self._why_away

    @property
    def standbys(self) -> int:
        """The number of standbys that would take over at once, as of the last renewal."""
        return 0 if self._why_away else len(self._standbys)

    def standing_by(self, newest: int) -> list[Standby]:
        """The standbys on other machines at the last renewal. newest: the number of the newest change."""
        return [
            Standby(sign.address, sign.machine, changes_behind(sign.read, newest), sign.heard_ns)
            for sign in self._standbys
        ]

    def start(self) -> None:
        self._lease.start()
        self._locks.start()
        self._following.start()
        self._thread.start()

    def fileno(self) -> int:
        """Readable while news() has some."""
        return self._event

    def news(self) -> list[LeaseNews]:
        """The news since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        found = []
        while self._news:
            found.append(self._news.popleft())
        return found

    def hear(self, leader: Leader) -> None:
        """Take note of a leader whom a worker has named. It counts where the database cannot be asked."""
        self._inbox.put(Heard("peer", ActiveIs(leader)))

    def beat(self) -> None:
        """Note that the controller's loop goes on: the lease of one that stands still is not renewed."""
        self._beat_ns = now_ns()
        self._inbox.put(_Beaten())

    def name_workers(self, names: Sequence[str]) -> None:
        """Keep the names of the workers for the controller that follows, as soon as the database can."""
        self._lease.name_workers(names)

    def close(self, why: Why = Why.ENDED) -> None:
        """Let another controller become active at once, and end the threads. why: told to it. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stop_following.set()
        self._inbox.put(None)
        self._thread.join()
        self._locks.close()
        self._lease.close(self._contender.own if self._contender.role is LeaseRole.ACTIVE else None, why)
        self._following.join(LEASE_CLOSE_S)
        os.close(self._event)

    # ----- the keeper's thread -----------------------------------------------------------------

    def _run(self) -> None:
        contender = self._contender
        while True:
            wait_s = max(0.0, (contender.due_ns() - now_ns()) / SECOND)
            event: _Item
            try:
                event = self._inbox.get(timeout=wait_s)
            except queue.Empty:
                event = TimeCame()
            if event is None:
                return
            if self._beat_ns and now_ns() - self._beat_ns >= HOLDER_HUNG_NS:
                log.error("the controller's loop stands still: its lease is not renewed")
                while not isinstance(event, _Beaten | None):  # by then another may be active
                    event = self._inbox.get()
                if event is None:
                    return
            for step in self._events(event):
                for command in contender.step(step, now_ns()):
                    self._carry_out(command)
            self.leader = contender.leader

    def _events(self, event: ContenderEvent | _Reply | _Freed | _Beaten) -> list[ContenderEvent]:
        """The contender's events that follow from an event."""
        if isinstance(event, _Beaten):
            return [TimeCame()]
        if isinstance(event, Heard) and self._contender.is_connected:
            return [TimeCame()]  # the next renewal tells
        if isinstance(event, _Freed):
            return [LockFreed(event.lock) if event.number == self._locks.number else TimeCame()]
        if not isinstance(event, _Reply):
            return [event]
        if event.generation != self._lease.generation:
            return [TimeCame()]  # of a connection that was given up
        if isinstance(event.answer, OSError):
            self._locks.give_up()  # every lock is free once a database has been started again
            self._note_away(str(event.answer.strerror or event.answer))
            return [DatabaseLost()]
        if self._why_away:
            log.info("the database of the catalogue answers again")
            self._why_away = ""
        reply, self._stand, self._workers, self._standbys, takeovers = event.answer
        if takeovers is not None and takeovers != self._takeovers:
            self._takeovers, self.takeovers = takeovers, takeovers_of(takeovers)
        if self._contender.role is LeaseRole.STANDBY:
            reply = reply._replace(changes=())  # the catalogue is followed beside the lease
        return [DatabaseReplied(event.serial, reply)]

    def _note_away(self, why: str) -> None:
        if not self._why_away:
            log.warning("the database of the catalogue does not answer: %s", why)
        self._why_away = why

    def _carry_out(self, command: ContenderCommand) -> None:
        if isinstance(command, QueryLease):
            self._lease.query(command.serial, command.operation)
        elif isinstance(command, EndConnection):
            self._locks.give_up()
            self._note_away("it takes too long")
            self._lease.abandon()
        elif isinstance(command, AwaitLock):
            self._locks.wait(command.lock)
        elif isinstance(command, Activate):
            self._activate(command.leader)
        elif isinstance(command, StepDown):
            self._tell(LeaseLost(command.leader))
        # Messages for other controllers and announcements are not sent: controllers read the lease, and peers
        # are told in their welcome. Nobody asks the contender for changes: each compares the epoch itself.

    def _activate(self, leader: Leader) -> None:
        self._stop_following.set()
        self._locks.close()
        self._lease.lead(leader)
        self._following.join()
        while self._copy.stand != self._stand:
            try:
                self._copy.follow()
                break
            except OSError as error:
                # Nobody else can be active before the database is back.
                log.warning("the newest changes cannot be read: %s", error.strerror)
                if self._inbox_has_end():
                    return
        self._copy.close()
        self._tell(LeaseWon(leader, self._copy.rows(), self._workers))

    def _inbox_has_end(self) -> bool:
        """Wait a moment. Returns whether the keeper is to end."""
        with contextlib.suppress(queue.Empty):
            while True:
                if self._inbox.get(timeout=LOOK_S) is None:
                    self._inbox.put(None)
                    return True
        return False

    def _tell(self, news: LeaseNews) -> None:
        self._news.append(news)
        os.eventfd_write(self._event, 1)

    # ----- the copy's thread ------------------------------------------------------------------

    def _follow(self) -> None:
        is_away = False
        while not self._stop_following.wait(LOOK_S):
            try:
                self._copy.follow()
                is_away = False
            except OSError as error:
                if not is_away:
                    log.warning("%s cannot be followed: %s", shown(self._url), error.strerror)
                is_away = True


class _LockThread:
    """Waits for one lock at a time, until another is to be waited for."""

    def __init__(self, waiter: LockWaiter, inbox: queue.SimpleQueue[_Item]) -> None:
        self._waiter = waiter
        self._inbox = inbox
        self._changed = threading.Condition()
        self.number = 0  # of the newest wait; the keeper's thread alone raises it
        # Fields that the condition guards:
        self._lock = 0  # 0: none is awaited
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="lease lock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, lock: int) -> None:
        """Have the keeper told once this lock is free; 0: it waits for none."""
        with self._changed:
            self.number += 1
            self._lock = lock
            self._changed.notify()
        self._waiter.abandon()

    def give_up(self) -> None:
        """Wait for none."""
        self.wait(0)

    def close(self) -> None:
        """End the thread. Idempotent."""
        with self._changed:
            self._lock, self._is_closed = 0, True
            self._changed.notify()
        self._waiter.abandon()
        self._thread.join(LEASE_CLOSE_S)  # it may be making a connection

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lock or self._is_closed)
                if self._is_closed:
                    break
                number, lock = self.number, self._lock
            try:
                self._waiter.wait(lock)
            except OSError as error:
                log.debug("the wait for the lock of the active has ended: %s", error.strerror)
                with self._changed:  # a lost connection: the lease's is lost as well, or the lease tells
                    self._changed.wait_for(lambda: self.number != number or self._is_closed, LOOK_S)  # noqa: B023
                continue
            self._inbox.put(_Freed(number, lock))
            with self._changed:
                if self.number == number:
                    self._lock = 0
        self._waiter.close()


class _LeaseThread:
    """Carries out one query at a time. A query that comes takes the place of one that has not begun."""

    def __init__(self, url: str, inbox: queue.SimpleQueue[_Item], takeover: Takeover | None) -> None:
        self._table = PostgresLease(url, takeover)
        self._inbox = inbox
        self._changed = threading.Condition()
        self.generation = 1  # of the connection, as the keeper counts; the keeper's thread alone raises it
        # Fields that the condition guards:
        self._next: tuple[int, int, LeaseOperation] | None = None
        self._names: Sequence[str] | None = None  # of workers, to be written
        self._leader: Leader | None = None
        self._is_closed = False
        self._why = Why.ENDED  # why it is closed
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def query(self, serial: int, operation: LeaseOperation) -> None:
        """Have an operation carried out. Its reply goes to the keeper."""
        with self._changed:
            self._next = (self.generation, serial, operation)
            self._changed.notify()

    def lead(self, leader: Leader) -> None:
        """Write names of workers from now on, as this leader."""
        with self._changed:
            self._leader = leader

    def name_workers(self, names: Sequence[str]) -> None:
        """Have names written before the next query. Any thread."""
        with self._changed:
            self._names = names

    def abandon(self) -> None:
        """Give the connection up, and the query under way."""
        self.generation += 1
        with self._changed:
            self._next = None
        self._table.abandon()

    def close(self, leader: Leader | None, why: Why) -> None:
        """Give the lease of a leader up, where the database can be reached, and end the connection."""
        with self._changed:
            self._next, self._leader, self._is_closed, self._why = None, leader, True, why
            self._changed.notify()
        self._thread.join(LEASE_CLOSE_S)
        if self._thread.is_alive():  # the database does not answer
            self._table.abandon()
            self._thread.join(LEASE_CLOSE_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_closed)
                query, self._next = self._next, None
                names, self._names = self._names, None
                leader, is_closed = self._leader, self._is_closed
            if is_closed:
                self._end(leader)
                return
            assert query is not None
            generation, serial, operation = query
            answer: LeaseAnswer | OSError
            try:
                if names is not None and leader is not None:
                    self._table.name_workers(leader, names)
                answer = self._table.execute(operation)
            except OSError as error:
                answer = error
                with self._changed:
                    self._names = self._names or names
            self._inbox.put(_Reply(generation, serial, answer))

    def _end(self, leader: Leader | None) -> None:
        if leader is not None:
            try:
                self._table.release(leader, self._why)
            except OSError as error:
                log.warning("the lease is not given up, and expires: %s", error.strerror)
        self._table.close()
