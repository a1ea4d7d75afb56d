"""Decisions of the controller's Python, as values. Whoever decides appends them to one queue, and controller.outlet alone
carries them out, in this order. A job that storage has ended comes back as an event, ``Registrar.ended(job, value, error)``.

Beside that, peers' seats are the exchange's: a hello is answered by whether there is one, so that ports ask for it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from clockwork.controller.catalog.records import Change, ModelRecord
from clockwork.controller.catalog.routes import Shadow
from clockwork.controller.models.version import ModelVersion, Waiter
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import ClockworkError
from clockwork.formats.package import PackageFile
from clockwork.formats.prepared import PreparedModel
from clockwork.scheduler.types import Event, ModelSpec

# ----- messages ------------------------------------------------------------------------------------


class SendClient(NamedTuple):
    """Send a message to a client, if it is still there."""

    client: bytes
    message: tuple[Any, ...]


class Refuse(NamedTuple):
    """Answer a client's request with a failure."""

    waiter: Waiter
    error: ClockworkError


class ReplyModel(NamedTuple):
    """Answer a client's request with the description of a version."""

    waiter: Waiter
    model: ModelVersion


class ReplyRoute(NamedTuple):
    """Answer a client's request with the route of a name, of which subscribers are told as well."""

    waiter: Waiter
    name: str


class SendWorker(NamedTuple):
    """Send a message to a worker, if it is still there."""

    worker: int
    message: tuple[Any, ...]


class Post(NamedTuple):
    """Queue an encoded message for the peer at a descriptor, whom the exchange need not know. A peer that it knows and
    cannot reach has left."""

    side: int  # CLIENTS or WORKERS of the exchange
    identity: bytes
    fd: int
    header: bytes
    rest: bytes = b""  # more of the header's frame
    frames: Sequence[Any] = ()


class PingWorker(NamedTuple):
    """Ask a worker for its clock: the message says when it was sent, and so is made then."""

    worker: int


class Publish(NamedTuple):
    """Tell subscribers of events."""

    topic: str
    body: dict[str, Any]


class NoteTrouble(NamedTuple):
    """Something is wrong; see Troubles.note()."""

    kind: TroubleKind
    subject: str
    text: str


class ClearTrouble(NamedTuple):
    """Something that was wrong is mended."""

    kind: TroubleKind
    subject: str


class Complain(NamedTuple):
    """Count something that should not have come, or that went wrong. kind: of context.COMPLAINTS."""

    kind: str
    text: str
    error: BaseException | None = None


class Alert(NamedTuple):
    """Have the flight recorder keep what led to this."""

    what: str


class Blame(NamedTuple):
    """A worker said of a model what cannot be."""

    worker: int
    why: str


class LetGo(NamedTuple):
    """A worker that is known has left."""

    worker: int
    why: str


# ----- scheduler and exchange ----------------------------------------------------------------------


class Tell(NamedTuple):
    """The scheduler hears of an event: now, or when the orders of the decision under way have been carried out."""

    event: Event


class ScheduleReady(NamedTuple):
    """The scheduler may use a model on a worker."""

    worker: int
    spec: ModelSpec


class ScheduleRemoval(NamedTuple):
    """The scheduler takes no more requests for a model, and says when the last has been answered."""

    model_id: int


class Serve(NamedTuple):
    """The exchange checks requests against what a model takes by now, and counts from its default SLO."""

    model: ModelVersion


class Forward(NamedTuple):
    """The exchange has a name's traffic go to these models, by parts of SHARE_WHOLE, or to none."""

    name: str
    shares: Sequence[tuple[int, int]]  # (model id, parts)
    shadow: tuple[int, Shadow] | None  # (model id, what is asked of it)


class Withdraw(NamedTuple):
    """The exchange forgets a model, to which no name's traffic goes."""

    model_id: int


class ForgetReferences(NamedTuple):
    """The exchange asks anew which model a text addresses."""


class CountDevices(NamedTuple):
    """The scheduler has as many copies for shadows at once."""

    devices: int


class ShareMachine(NamedTuple):
    """Requests may refer to memory of this machine, which all workers see; 0: of none."""

    machine: int


class SetClock(NamedTuple):
    """Times are converted to a worker's clock by these bounds, of ClockSync.bounds()."""

    worker: int
    bounds: tuple[int, int, int, int]


class FailAction(NamedTuple):
    """An action that a worker has under way ends as a failure of the device."""

    worker: int
    action_id: int
    text: str


class FailActions(NamedTuple):
    """All of a worker's do."""

    worker: int
    text: str


class Disconnect(NamedTuple):
    """Shut the connection with this descriptor down; its end comes as any other."""

    side: int
    fd: int


# ----- packages; see controller.storage.repairs -------------------------------------------------------------


class Inspect(NamedTuple):
    """Compare a package with its checksums: something is odd about it."""

    digest: str


class PackageArrived(NamedTuple):
    """Somebody has uploaded a package whole."""

    digest: str


class PackagePrepared(NamedTuple):
    """A worker has prepared a model of a package, so it may have the package."""

    worker: int
    digest: str


# ----- jobs of the storage thread; see controller.storage.thread -------------------------------------------


class WriteChange(NamedTuple):
    """Have the catalog changed durably. Ends with what is wrong all the same, as a sentence."""

    name: str  # the model's
    change: Change


class OpenUpload(NamedTuple):
    """Ends with whether the package's bytes are needed: False where the store has all of them."""

    upload_id: int
    digest: str
    files: list[PackageFile]


class WriteChunk(NamedTuple):
    upload_id: int
    file: int
    offset: int
    frame: Any


class CommitUpload(NamedTuple):
    """Check all that was written and put it in its place."""

    upload_id: int


class AbortUpload(NamedTuple):
    """Remove what was written, if anything."""

    upload_id: int


class ReadUpload(NamedTuple):
    """Ends with the Interface that an uploaded package declares, or None."""

    upload_id: int
    digest: str
    files: list[PackageFile]
    options: dict[str, Any]


class ReadRecord(NamedTuple):
    """Read what the package of a record of an earlier version declares, and check all of it where ``prepared`` differs.

    Ends with the Interface, or None.
    """

    model_id: int
    worker: int
    record: ModelRecord
    prepared: PreparedModel


class RemovePackage(NamedTuple):
    digest: str


class ReadChunk(NamedTuple):
    """Ends with bytes of a package, for a worker that fetches it."""

    worker: int
    digest: str
    file_index: int
    file: PackageFile
    offset: int
    length: int


Job: TypeAlias = (
    WriteChange
    | OpenUpload
    | WriteChunk
    | CommitUpload
    | AbortUpload
    | ReadUpload
    | ReadRecord
    | RemovePackage
    | ReadChunk
)

Effect: TypeAlias = (
    SendClient
    | Refuse
    | ReplyModel
    | ReplyRoute
    | SendWorker
    | Publish
    | Post
    | PingWorker
    | NoteTrouble
    | ClearTrouble
    | Complain
    | Alert
    | Blame
    | LetGo
    | Tell
    | ScheduleReady
    | ScheduleRemoval
    | Serve
    | Forward
    | Withdraw
    | ForgetReferences
    | CountDevices
    | ShareMachine
    | SetClock
    | FailAction
    | FailActions
    | Disconnect
    | Inspect
    | PackageArrived
    | PackagePrepared
    | Job
)
