"""Every message of the protocol, typed, grouped by direction.

A message on the wire is ``[header][frame]*``. The header is one msgpack array
``[tag, field, field, ...]``; frames carry tensor bytes or file chunks and are never copied into
msgpack. Times are integer nanoseconds. A message *to* a worker carries times of that worker's
clock, a message *from* a worker likewise; the controller converts at its link to the worker, and
nowhere else.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple, TypeAlias

PROTOCOL_VERSION = 1

NEVER_NS = 2**62
"""A time after every other: the deadline of a request that has none, an open end of a window."""


class Status(enum.IntEnum):
    """The one list of outcomes, on the wire and inside."""

    OK = 0
    # Answers to clients.
    REFUSED = 1
    DEADLINE_MISSED = 2
    CANCELLED = 3
    MODEL_NOT_FOUND = 4
    INVALID_INPUT = 5
    EXECUTION_FAILED = 6
    UNAVAILABLE = 7
    PROTOCOL_MISMATCH = 8
    INVALID_MODEL = 9
    INTERNAL = 10
    FORBIDDEN = 11
    # Results of actions that did not do what they were sent for.
    TOO_LATE = 20
    NOT_RESIDENT = 21
    IN_USE = 22
    BAD_PAGES = 23
    UNKNOWN_MODEL = 24
    DEVICE_ERROR = 25
    ACTION_CANCELLED = 26
    WORKER_LOST = 27
    OVERRUN = 28  # it took longer than its bound, and was ended
    CRASHED = 29  # executing it ends the worker, which says so just before


class Reason(enum.StrEnum):
    """Why a request was refused."""

    DEADLINE = "deadline"  # It cannot be done in time given what was already promised.
    INFEASIBLE = "infeasible"  # Its SLO is below what the model takes on an idle device.
    OVERLOADED = "overloaded"  # A bound on queued requests or bytes was reached.
    MEMORY = "memory"  # The model does not fit any device's arena.
    DISPLACED = "displaced"  # A request of higher priority took its place.
    UNPROFILED = "unprofiled"  # This input shape was never measured and the bound is too high.
    NO_WORKER = "no_worker"  # No worker that can serve the model is connected.
    DRAINING = "draining"  # The model is being unregistered, or the controller is shutting down.


TensorRef: TypeAlias = list[Any]
"""``[dtype, shape, frame]``: ONNX's TensorProto.DataType code, list of dimensions, and the index of
the frame of this message (0 is the first after the header) that holds the bytes."""

NamedTensorRef: TypeAlias = list[Any]
"""``[name, dtype, shape, frame]``."""

Phase: TypeAlias = list[int]
"""``[begin_ns, end_ns, duration_ns]`` of one phase; zeros where the phase did not happen."""


# ----- client -> controller ------------------------------------------------------------------


class ClientHello(NamedTuple):
    protocol: int
    version: str
    name: str


class InferRequest(NamedTuple):
    """``slo_ns`` 0 means the model's default. ``priority``: 1 highest, 0 the default level.

    ``model`` is ``name`` or ``name@version``.
    """

    request_id: int
    model: str
    slo_ns: int
    priority: int
    tensors: list[NamedTensorRef]


class Cancel(NamedTuple):
    request_id: int


class Register(NamedTuple):
    """Open an upload. ``files``: ``[[relative path, bytes, sha256 hex], ...]``, the first is the model.

    ``options``: ``slo_ns`` (0 none), ``batching`` (auto, on or off), ``batch_max``, ``version`` (its number, if that is
    free; 0: the next), ``origin`` (whose it is).
    """

    request_id: int
    name: str
    files: list[list[Any]]
    options: dict[str, Any]


class UploadChunk(NamedTuple):
    """One frame: the bytes of file ``file`` from ``offset`` on. At most CHUNK_WINDOW unacknowledged."""

    request_id: int
    file: int
    offset: int


class Unregister(NamedTuple):
    request_id: int
    model: str


class Offer(NamedTuple):
    """Load (``offered``) or unload ``name``, or ``name@version``; answered by Reply when that is done.

    What is unloaded takes no requests and no memory, until it is loaded again; that outlasts a restart.
    """

    request_id: int
    model: str
    offered: bool


class Query(NamedTuple):
    """``what``: models, model (argument: its name), status, metrics (see controller/metrics.py)."""

    request_id: int
    what: str
    argument: str


class Route(NamedTuple):
    """Split a name's traffic. Answered by Reply with the route as it is then; see controller.routes.

    ``shares``: ``[[version, parts], ...]`` of SHARE_WHOLE; what is left goes to those that have the traffic
    now; none: as they are. ``shadow``: ``[version, parts, tolerance]``: so many of the requests that go to
    others are copied to it; ``[0, 0, 0.0]``: no longer; none: as it is.
    """

    request_id: int
    name: str
    shares: list[list[Any]]
    shadow: list[Any]


class Promote(NamedTuple):
    """All of a name's traffic to one version, and no shadow. Answered like Route.

    ``version`` 0: to the newest that is ready, and from now on to each newer one, as before there was a route.
    """

    request_id: int
    name: str
    version: int


class Rollback(NamedTuple):
    """Back to the route before the last change of it. Answered like Route."""

    request_id: int
    name: str


class Bye(NamedTuple):
    """The client leaves: everything it still waits for is cancelled."""


# ----- controller -> client ------------------------------------------------------------------


class ClientWelcome(NamedTuple):
    protocol: int
    version: str
    epoch: int


class Answer(NamedTuple):
    """A successful inference. ``times`` as the controller saw them, ns: waiting in a queue, waiting for a load, on the
    device, in all; then, of that on the device, copying inputs in and outputs out."""

    request_id: int
    model_version: int
    tensors: list[NamedTensorRef]
    times: list[int]


class Failure(NamedTuple):
    """Any request that did not succeed. ``details`` is keyed by status:

    REFUSED: reason, feasible_slo_ns (0 unknown), retry_after_ns (0 unknown).
    INVALID_INPUT: tensor, expected, got.
    """

    request_id: int
    status: int
    text: str
    details: dict[str, Any]


class UploadNeed(NamedTuple):
    """The package is not known here: send its chunks. Answers Register."""

    request_id: int
    window: int
    chunk_bytes: int


class UploadAck(NamedTuple):
    request_id: int
    chunks: int


class Progress(NamedTuple):
    """``done`` of ``total`` steps of ``stage`` (upload, store, prepare); total 0 is unknown."""

    request_id: int
    stage: str
    done: int
    total: int


class Reply(NamedTuple):
    """The answer to Register (the model's description), Unregister, Offer and Query."""

    request_id: int
    body: Any


class HelloNeeded(NamedTuple):
    """Sent to a peer whose first message was no hello: it spoke to an earlier controller."""

    epoch: int


class Mismatch(NamedTuple):
    """The handshake failed; the sentence says what each side speaks."""

    protocol: int
    text: str


# ----- worker -> controller ------------------------------------------------------------------


class WorkerHello(NamedTuple):
    """``devices``: one dict of DeviceInfo's fields each. ``worker_epoch``: random, new for each start."""

    protocol: int
    version: str
    name: str
    worker_epoch: int
    devices: list[dict[str, Any]]


class Heartbeat(NamedTuple):
    """``jitter_ns``: p99 of wake-up lateness. ``stats``: what ``clockwork status`` shows."""

    now_ns: int
    jitter_ns: int
    stats: dict[str, Any]


class Pong(NamedTuple):
    """Answers Ping: ``sent_ns`` as it came (controller clock), then two stamps of the worker's clock."""

    sent_ns: int
    received_ns: int
    returned_ns: int


class Result(NamedTuple):
    """The outcome of an action, whatever it was.

    ``parts``: for INFER, one list of TensorRef for each part of the batch, in order.
    """

    action_id: int
    status: int
    text: str
    received_ns: int
    copy_in: Phase
    execute: Phase
    copy_out: Phase
    parts: list[list[TensorRef]]


class Fetch(NamedTuple):
    """Ask for ``length`` bytes of file number ``file`` of a package."""

    digest: str
    file: int
    offset: int
    length: int


class Prepared(NamedTuple):
    """Answers Prepare. ``summary`` is PreparedModel.summary() when status is OK."""

    model_id: int
    status: int
    text: str
    summary: dict[str, Any]


class DeviceFault(NamedTuple):
    """A device is broken for good, and all that it held and did is lost. Sent before anything else about that."""

    device: int
    text: str


class ClockChanged(NamedTuple):
    """What a device executes at from now on."""

    device: int
    mhz: int


# ----- controller -> worker ------------------------------------------------------------------


class WorkerWelcome(NamedTuple):
    """A new epoch: the worker forgets residency and model ids of any earlier one."""

    protocol: int
    version: str
    epoch: int
    worker_id: int


class Ping(NamedTuple):
    sent_ns: int


class Prepare(NamedTuple):
    """Make the model ready to be loaded: fetch, split, optimise, profile; or find all that in the cache.

    ``files`` as in Register. Done away from the execution thread; answered by Prepared.
    """

    model_id: int
    name: str
    version: int
    digest: str
    files: list[list[Any]]
    options: dict[str, Any]


class Forget(NamedTuple):
    """The model is gone. Ordered after its UNLOADs have been answered."""

    model_id: int


class Chunk(NamedTuple):
    """Answers Fetch; one frame. ``status`` is OK or INTERNAL (then the frame is empty)."""

    digest: str
    file: int
    offset: int
    status: int


class Load(NamedTuple):
    """Copy a model's weights into pages. ``run_starts``: first page index of each run of its layout.

    ``load_id`` names this residency; INFER and UNLOAD repeat it, so that one sent before a later
    UNLOAD can never read the next model's weights.
    """

    action_id: int
    device: int
    model_id: int
    load_id: int
    run_starts: list[int]
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class Unload(NamedTuple):
    action_id: int
    device: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class Infer(NamedTuple):
    """Run one batch. ``parts``: for each request its inputs, TensorRef in the model's input order.

    More than one part only for models that batch: inputs are joined on axis 0, outputs split again.
    """

    action_id: int
    device: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int
    parts: list[list[TensorRef]]


class Profile(NamedTuple):
    """Run the model once on seeded inputs of these shapes (model's input order); no output returns."""

    action_id: int
    device: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int
    shapes: list[list[int]]


class HostFetch(NamedTuple):
    """FETCH: bring a prepared model's weights from disk into the worker's host store, which has a budget.

    The store is the machine's: ``device`` is 0, whatever devices load from it. ``load_id`` names the order.
    """

    action_id: int
    device: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class HostDrop(NamedTuple):
    """DROP: give a model's bytes in the host store back. Never sent while a LOAD of it is under way."""

    action_id: int
    device: int
    model_id: int
    load_id: int
    earliest_ns: int
    latest_ns: int
    expected_ns: int


class Revoke(NamedTuple):
    """Drop an action that has not started; it is answered ACTION_CANCELLED. One that runs goes on."""

    action_id: int


class Goodbye(NamedTuple):
    """The sender leaves in order: the controller shuts down, or a worker has drained."""


Message: TypeAlias = NamedTuple

FROM_CLIENT = {1: ClientHello, 2: InferRequest, 3: Cancel, 4: Register, 5: UploadChunk, 6: Unregister,
               7: Query, 8: Bye, 9: Route, 10: Promote, 11: Rollback, 12: Offer}  # fmt: skip
TO_CLIENT = {32: ClientWelcome, 33: Answer, 34: Failure, 35: UploadNeed, 36: UploadAck, 37: Progress,
             38: Reply, 39: HelloNeeded, 40: Mismatch, 41: Goodbye}  # fmt: skip
FROM_WORKER = {64: WorkerHello, 65: Heartbeat, 66: Pong, 67: Result, 68: Fetch, 69: Prepared,
               70: DeviceFault, 71: ClockChanged, 41: Goodbye}  # fmt: skip
TO_WORKER = {96: WorkerWelcome, 97: Ping, 98: Prepare, 99: Forget, 100: Chunk, 101: Load, 102: Unload,
             103: Infer, 104: Profile, 105: Revoke, 106: HostFetch, 107: HostDrop, 39: HelloNeeded,
             40: Mismatch, 41: Goodbye}  # fmt: skip

TAG_OF: dict[type, int] = {
    kind: tag for table in (FROM_CLIENT, TO_CLIENT, FROM_WORKER, TO_WORKER) for tag, kind in table.items()
}
