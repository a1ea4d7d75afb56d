"""Decisions of the controller's Python, as values.

The deciding part appends them to a queue, and controller.outlet alone carries them out, in that order. A job
that storage has ended comes back as an event, ``Registrar.ended(job, value, error)``. Seats of peers are no
effects: the answer to a hello depends on whether there is a seat, so ports ask the exchange for it at once.
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
    """Send a message to a worker, if it is still there. frames: bytes-like, unchanged until they are sent."""

    worker: int
    message: tuple[Any, ...]
    frames: Sequence[Any] = ()


class Post(NamedTuple):
    """Queue an encoded message for the peer at a descriptor, which need not be known to the exchange. A known
    peer that cannot be reached has left."""

    side: int  # CLIENTS or WORKERS of the exchange
    identity: bytes
    fd: int
    header: bytes
    rest: bytes = b""  # bytes of the header's frame that follow
    frames: Sequence[Any] = ()


class PingWorker(NamedTuple):
    """Ask a worker for its clock. The message holds the time of sending, so it is made when it is sent."""

    worker: int


class Publish(NamedTuple):
    """Tell subscribers of events."""

    topic: str
    body: dict[str, Any]


class NoteTrouble(NamedTuple):
    """Note a trouble; see Troubles.note()."""

    kind: TroubleKind
    subject: str
    text: str


class ClearTrouble(NamedTuple):
    """Clear a trouble that is mended."""

    kind: TroubleKind
    subject: str


class Complain(NamedTuple):
    """Count a message that should not have come, or a failure. kind: an element of context.COMPLAINTS."""

    kind: str
    text: str
    error: BaseException | None = None


class Alert(NamedTuple):
    """Have the flight recorder dump the events that led to this."""

    what: str


class Blame(NamedTuple):
    """Hold an impossible statement about a model against its worker."""

    worker: int
    why: str


class LetGo(NamedTuple):
    """Let go of a known worker, as if it had left."""

    worker: int
    why: str


# ----- scheduler and exchange ----------------------------------------------------------------------


class Tell(NamedTuple):
    """Tell the scheduler of an event: now, or once the current decision's orders are carried out."""

    event: Event


class ScheduleReady(NamedTuple):
    """The scheduler may use a model on a worker, which has it in its store, or could be brought it."""

    worker: int
    spec: ModelSpec
    is_stored: bool = True


class ScheduleLoss(NamedTuple):
    """A worker has lost a model from its store, without a DROP."""

    worker: int
    model_id: int


class ScheduleRoom(NamedTuple):
    """Tell the scheduler that a worker's store needs so many bytes in all for models that it prepares."""

    worker: int
    bytes: int


class ScheduleRemoval(NamedTuple):
    """The scheduler takes no more requests for a model, and says when the last has been answered."""

    model_id: int


class Serve(NamedTuple):
    """Have the exchange check requests against a model's current interface, and apply its default SLO."""

    model: ModelVersion


class Forward(NamedTuple):
    """Have the exchange route a name's traffic to these models, in parts of SHARE_WHOLE, or to none."""

    name: str
    shares: Sequence[tuple[int, int]]  # pairs of model id and parts
    shadow: tuple[int, Shadow] | None  # model id and settings of its shadow


class Withdraw(NamedTuple):
    """Have the exchange forget a model that no name's traffic goes to."""

    model_id: int


class ForgetReferences(NamedTuple):
    """Have the exchange drop its cache of the models that texts address."""


class CountDevices(NamedTuple):
    """Count the devices anew, which bound the copies for shadows that the scheduler has at once."""

    devices: int


class ShareMachine(NamedTuple):
    """Allow requests to refer to memory of this machine, on which all workers are; 0: no machine."""

    machine: int


class SetClock(NamedTuple):
    """Have times converted to a worker's clock by these bounds, which ClockSync.bounds() gave."""

    worker: int
    bounds: tuple[int, int, int, int]


class FailAction(NamedTuple):
    """End an action that a worker has under way, as a failure of the device."""

    worker: int
    action_id: int
    text: str


class FailActions(NamedTuple):
    """End all actions that a worker has under way, as failures of their devices."""

    worker: int
    text: str


class Disconnect(NamedTuple):
    """Shut down the connection with this descriptor. Its end is then reported as that of any connection."""

    side: int
    fd: int


# ----- packages; see controller.storage.repairs -------------------------------------------------------------


class Inspect(NamedTuple):
    """Compare a suspect package with its checksums."""

    digest: str


class PackageArrived(NamedTuple):
    """A whole package has been uploaded."""

    digest: str


class PackageMended(NamedTuple):
    """A package that was damaged or missing is whole again, for the workers that could not prepare it."""

    digest: str


class PackagePrepared(NamedTuple):
    """A worker has prepared a model of a package, so it may have the package."""

    worker: int
    digest: str


# ----- jobs of the storage thread; see controller.storage.thread -------------------------------------------


class WriteChange(NamedTuple):
    """Change the catalog durably. The result: the number of the change."""

    name: str  # name of the model
    change: Change


class OpenUpload(NamedTuple):
    """Begin an upload. The result: whether the package's bytes are needed."""

    upload_id: int
    digest: str
    files: list[PackageFile]


class WriteChunk(NamedTuple):
    upload_id: int
    file: int
    offset: int
    frame: Any


class CommitUpload(NamedTuple):
    """Check the whole uploaded package, and move it to its place."""

    upload_id: int


class AbortUpload(NamedTuple):
    """Remove the written chunks of an upload, if there are any."""

    upload_id: int


class ReadUpload(NamedTuple):
    """Read the Interface that an uploaded package declares. The result is None where it cannot be read."""

    upload_id: int
    digest: str
    files: list[PackageFile]
    options: dict[str, Any]


class ReadRecord(NamedTuple):
    """Read the Interface that a package declares whose record is of an earlier release.

    Where it differs from ``prepared``, the whole package is checked. The result is the Interface, or None.
    """

    model_id: int
    worker: int
    record: ModelRecord
    prepared: PreparedModel


class RemovePackage(NamedTuple):
    digest: str


class ListPackages(NamedTuple):
    """List the packages of a place in which crashes may have left some that nobody needs."""


class ReadChunk(NamedTuple):
    """Read bytes of a package for a worker that fetches it; the result is the bytes."""

    worker: int
    digest: str
    file_index: int
    file: PackageFile
    offset: int
    length: int


Job: TypeAlias = (
    WriteChange | OpenUpload | WriteChunk | CommitUpload | AbortUpload | ReadUpload | ReadRecord
    | RemovePackage | ListPackages | ReadChunk
)  # fmt: skip

Effect: TypeAlias = (
    SendClient | Refuse | ReplyModel | ReplyRoute | SendWorker | Publish | Post | PingWorker | NoteTrouble
    | ClearTrouble | Complain | Alert | Blame | LetGo | Tell | ScheduleReady | ScheduleLoss | ScheduleRoom | ScheduleRemoval | Serve | Forward
    | Withdraw | ForgetReferences | CountDevices | ShareMachine | SetClock | FailAction | FailActions
    | Disconnect | Inspect | PackageArrived | PackageMended | PackagePrepared | Job
)  # fmt: skip
