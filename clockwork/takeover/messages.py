"""Messages of the takeover protocol, between controllers, workers and clients.

Every message of a controller names the leader as the sender knows it. In a connection's terms: the epoch is
that of the session.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias

from clockwork.takeover.obedience import Leader

RequestKey: TypeAlias = tuple[str, int]  # name of the client, and its number of the request


class Deed(enum.Enum):
    """The kinds of orders that matter to a takeover."""

    LOAD = "load"
    INFER = "infer"


class AskOutcome(enum.Enum):
    """The outcomes of a request, as the application gets them."""

    OK = "ok"
    MISSED = "missed"  # the deadline passed
    LOST = "lost"  # the active was lost, and the client does not ask again
    REFUSED = "refused"  # the client has too many requests without an answer


class Fate(enum.Enum):
    """The outcomes of a change of the catalogue."""

    DONE = "done"  # the change is in the catalogue
    NOT_DONE = "not done"  # another controller is active; the change is not in the catalogue
    NO_DATABASE = "no database"  # refused at once; the change is not in the catalogue
    TOO_MANY = "too many"  # refused at once; the change is not in the catalogue
    UNKNOWN = "unknown"  # the database did not answer; the change may be in the catalogue


# ----- from peers to controllers, and between controllers ----------------------------------------


class Beat(NamedTuple):
    """A sign of life, with the leader that the sender obeys."""

    leader: Leader


class ActiveIs(NamedTuple):
    """The leader as a controller knows it."""

    leader: Leader


class Superseded(NamedTuple):
    """Refuses an order or an answer: the leader has a higher epoch than the sender of the order."""

    leader: Leader


class HandOverOffer(NamedTuple):
    """The active offers the lease to a standby, which must have read the catalogue up to ``number``."""

    leader: Leader
    number: int


class HandOverReady(NamedTuple):
    """The standby has read the catalogue far enough; the lease is to name this holder."""

    epoch: int  # that of the offer
    holder: str
    addresses: tuple[str, ...]


class HandedOver(NamedTuple):
    """The lease names the receiver."""

    leader: Leader


# ----- worker and active -------------------------------------------------------------------------


class LedOrder(NamedTuple):
    """An order to a worker."""

    leader: Leader
    action: int  # number of the order within its epoch
    deed: Deed
    model: str
    version: int
    request: RequestKey | None  # for INFER


class LearntNotes(NamedTuple):
    """A copy of what an active has learnt of models and devices, which only controllers read."""

    epoch: int
    serial: int  # of the copies of an epoch; a later copy holds all that an earlier copy does
    content: bytes


NO_NOTES = LearntNotes(0, 0, b"")


class KeepNotes(NamedTuple):
    """Has a worker keep a copy of what the active has learnt, for the next active."""

    leader: Leader
    notes: LearntNotes


class Holdings(NamedTuple):
    """A worker's report to a new active: the models that it holds, its orders under way, and the newest notes
    that it was given."""

    leader: Leader  # the active to which the worker reports
    prepared: tuple[str, ...]
    resident: tuple[str, ...]
    under_way: tuple[LedOrder, ...]
    notes: LearntNotes = NO_NOTES


class Admitted(NamedTuple):
    """The active has the worker's report."""

    leader: Leader


class OrderEnded(NamedTuple):
    """The result of an order, for the active of now, which need not have given the order."""

    leader: Leader
    order: LedOrder
    value: int


# ----- client and active -------------------------------------------------------------------------


class AskedRequest(NamedTuple):
    """A request, asked for the first time or again. ``within_ns``: time that is left to its deadline."""

    leader: Leader
    number: int
    model: str
    within_ns: int


class ToldAnswer(NamedTuple):
    """A successful answer."""

    leader: Leader
    number: int
    version: int
    value: int


class NotActive(NamedTuple):
    """The receiver of a request is not, or no longer, the active."""

    leader: Leader
    number: int


Message: TypeAlias = (
    Beat
    | ActiveIs
    | Superseded
    | HandOverOffer
    | HandOverReady
    | HandedOver
    | LedOrder
    | KeepNotes
    | Holdings
    | Admitted
    | OrderEnded
    | AskedRequest
    | ToldAnswer
    | NotActive
)


# ----- events and commands of every pure part ----------------------------------------------------


class Heard(NamedTuple):
    """A message came."""

    source: str
    message: Message


class TimeCame(NamedTuple):
    """The time of due_ns() has come."""


class Linked(NamedTuple):
    """A connection to a controller is up."""

    address: str


class Unlinked(NamedTuple):
    """A connection to a controller is lost, with the messages on it."""

    address: str


class TellPeer(NamedTuple):
    """Send a message. It may be lost with its connection."""

    target: str
    message: Message
