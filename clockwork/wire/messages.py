"""Every message of the protocol, typed, grouped by direction.

A message on the wire is ``[header][frame]*``. The header is one msgpack array ``[tag, field, field, ...]``;
frames carry tensor bytes or file chunks and are never copied into msgpack. Each field is declared with a form
(clockwork.wire.forms), which bounds whatever it may hold: codec.decode() takes nothing else. Times are
integer nanoseconds. A message *to* a worker carries times of that worker's clock, a message *from* a worker
likewise; the controller converts at its link to the worker, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

from clockwork.config import (
    BATCH_SIZE_MAX,
    CHUNK_BYTES,
    FILES_MAX,
    FRAMES_MAX,
    MODEL_REFERENCE_BYTES_MAX,
    NAME_BYTES_MAX,
    PACKAGE_BYTES_MAX,
    PRIORITY_MAX,
    RANK_MAX,
    REGISTER_BATCH_MAX,
    REQUEST_HEADER_BYTES_MAX,
    RESERVE_NS_MAX,
    RESERVE_RUNS_MAX,
    SHARE_WHOLE,
    SLOWDOWN_THOUSANDTHS_MAX,
    SUMMARY_BYTES_MAX,
    TENSORS_MAX,
    UPLOAD_AHEAD_BYTES_MAX,
    VERSION_MAX,
    WORKER_DEVICES_MAX,
)
from clockwork.config.formats import TIME_MAX_NS
from clockwork.config.wire import (
    BUNDLE_FILES_MAX,
    CLOCK_MHZ_MAX,
    EXECUTION_THREADS_MAX,
    HEADER_BYTES_MAX,
    HOST_BYTES_MAX,
    PAGE_BYTES_MAX,
    PAGES_MAX,
    PROFILE_POINTS_MAX,
    REPLY_BYTES_MAX,
    REPLY_VALUES_MAX,
    RUN_AHEAD_MAX,
    RUNS_REPORTED_MAX,
    SENTENCE_BYTES_MAX,
    STATS_VALUES_MAX,
    STORE_BYTES_MAX,
    SUMMARY_TEXT_CHARS_MAX,
    THREADS_REPORTED_MAX,
)
from clockwork.wire.forms import (
    INT64_MAX,
    INT64_MIN,
    Anything,
    Either,
    Facts,
    Flag,
    Form,
    Integer,
    ListOf,
    Real,
    Record,
    Row,
    Text,
)

PROTOCOL_VERSION = 1
PROTOCOL_OLDEST = max(1, PROTOCOL_VERSION - 1)
"""Two peers speak the lower of their versions, and at least PROTOCOL_OLDEST. Within a version, releases
differ by additions alone: kinds of messages, fields with a default at the end of a message (but for those in
EXACT), and optional keys of open maps (forms.Record). A reader takes the default of a field that is missing,
and skips unknown ones; a receiver answers a request of an unknown kind, and ignores other messages.
Any other change raises PROTOCOL_VERSION, whose program still speaks the version before."""

NEVER_NS = 2**62  # A time after every other: the deadline of a request that has none, an open end of a window

VALUE_MARK = NEVER_NS - 1
"""First number of an entry of a shape that holds the value of an optional input: the value's bytes follow,
four to a number, little-endian. No tensor that has elements has a dimension of this size."""


class Status(enum.IntEnum):
    """The outcomes of requests and actions, on the wire and inside every process."""

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
    OVERRUN = 28  # The action exceeded its time limit, and was ended.
    CRASHED = 29  # The action crashed its worker, whose last message this is.


class Reason(enum.StrEnum):
    """Why a request was refused."""

    DEADLINE = "deadline"  # The request cannot be done in time given earlier promises and waiting requests.
    INFEASIBLE = "infeasible"  # The SLO is below the time of the execution alone.
    OVERLOADED = "overloaded"  # A bound on queued requests or bytes was reached.
    MEMORY = "memory"  # The model does not fit any device's arena.
    DISPLACED = "displaced"  # A request of higher priority took its place.
    UNPROFILED = "unprofiled"  # This input shape was never measured and the bound is too high.
    NO_WORKER = "no_worker"  # No worker that can serve the model is connected.
    DRAINING = "draining"  # The model is being unregistered, or the controller is shutting down.


class ActionKind(enum.IntEnum):
    """The actions that a worker can be ordered to do; ACTIONS has the message of each."""

    LOAD = 0
    UNLOAD = 1
    INFER = 2
    PROFILE = 3
    FETCH = 4
    DROP = 5
    RESERVE = 6


class LaneKind(enum.IntEnum):
    """The queues of a device, each in the order of windows; ACTIONS has the lane of each action."""

    LOAD = 0
    EXECUTE = 1
    FETCH = 2  # a fetch from disk into the machine's host store


# ----- fields --------------------------------------------------------------------------------

Id: TypeAlias = Annotated[int, Integer(0, INT64_MAX)]
Count: TypeAlias = Annotated[int, Integer(0, INT64_MAX)]
Stamp: TypeAlias = Annotated[int, Integer(0, NEVER_NS - 1)]  # A time of the controller's clock, or a duration

_WORKER_TIME = Integer(1 - NEVER_NS, NEVER_NS - 1)
WorkerTime: TypeAlias = Annotated[int, _WORKER_TIME]
"""A time of a worker's clock, whose origin is arbitrary: it may be negative."""

Bound: TypeAlias = Annotated[int, Integer(-NEVER_NS, NEVER_NS)]  # A bound of a window, in a worker's clock

Protocol: TypeAlias = Annotated[int, Integer(0, (1 << 31) - 1)]
StatusNumber: TypeAlias = Annotated[int, Integer(0, 31)]
DeviceIndex: TypeAlias = Annotated[int, Integer(0, WORKER_DEVICES_MAX - 1)]
WorkerId: TypeAlias = Annotated[int, Integer(0, (1 << 31) - 1)]
VersionNumber: TypeAlias = Annotated[int, Integer(0, VERSION_MAX)]
FileIndex: TypeAlias = Annotated[int, Integer(0, FILES_MAX - 1)]
FileOffset: TypeAlias = Annotated[int, Integer(0, PACKAGE_BYTES_MAX)]
Release: TypeAlias = Annotated[str, Text(64, is_cut=True)]  # The version of the program that a peer runs

PeerName: TypeAlias = Annotated[str, Text(256, is_cut=True)]
Sentence: TypeAlias = Annotated[str, Text(SENTENCE_BYTES_MAX, is_cut=True)]
ModelReference: TypeAlias = Annotated[str, Text(MODEL_REFERENCE_BYTES_MAX)]  # ``name`` or ``name@version``

_LEASE = Row({"epoch": Integer(0, INT64_MAX), "holder": Text(256), "cluster": Text(64)})
LeaseRow: TypeAlias = Annotated[Sequence[Any], _LEASE]
"""``[epoch, holder, cluster]`` of a controller's lease (clockwork.takeover). Peers serve no controller whose
epoch is below the highest that they have heard of. Epoch 0: the controller has no lease."""

NO_LEASE: Sequence[Any] = [0, "", ""]

Digest: TypeAlias = Annotated[str, Text(128)]
_FILES = ListOf(
    Row({"path": Text(NAME_BYTES_MAX), "bytes": Integer(0, PACKAGE_BYTES_MAX), "sha256": Text(128)}),
    FILES_MAX,
)
Files: TypeAlias = Annotated[list[list[Any]], _FILES]
"""``[[relative path, bytes, sha256 hex], ...]``, the first is the model."""

_DTYPE = Integer(0, (1 << 31) - 1)
_FRAME = Integer(0, FRAMES_MAX - 1)
_DIMENSIONS = ListOf(Integer(0, NEVER_NS - 1), RANK_MAX, pool="dims")
_ANY_DIMENSIONS = ListOf(Integer(INT64_MIN, INT64_MAX), RANK_MAX, pool="dims")
# A request's dimensions may be any int64: the check against its model gives the better error.
_INPUT = Row(
    {"name": Text(NAME_BYTES_MAX), "dtype": _DTYPE, "shape": _ANY_DIMENSIONS, "frame": _FRAME},
    struct="TensorRef",
)
_OUTPUT = Row(
    {"name": Text(NAME_BYTES_MAX), "dtype": _DTYPE, "shape": _DIMENSIONS, "frame": _FRAME}, struct="TensorRef"
)
_TENSOR = Row({"dtype": _DTYPE, "shape": _DIMENSIONS, "frame": _FRAME}, struct="TensorRef")

TensorRef: TypeAlias = list[Any]
"""``[dtype, shape, frame]``: ONNX's TensorProto.DataType code, list of dimensions, and the index of
the frame of this message (0 is the first after the header) that holds the bytes."""

NamedTensorRef: TypeAlias = list[Any]  # ``[name, dtype, shape, frame]``

Parts: TypeAlias = Annotated[
    list[list[TensorRef]], ListOf(ListOf(_TENSOR, TENSORS_MAX, pool="tensors"), FRAMES_MAX)
]
Phase: TypeAlias = Annotated[
    list[int],
    Row(
        {"begin_ns": _WORKER_TIME, "end_ns": _WORKER_TIME, "duration_ns": Integer(0, NEVER_NS - 1)},
        struct="Phase",
    ),
]
"""``[begin_ns, end_ns, duration_ns]`` of one phase; zeros where the phase did not happen."""


# ----- client -> controller ------------------------------------------------------------------


class ClientHello(NamedTuple):
    """A client's first message; answered by ClientWelcome or Mismatch."""

    protocol: Protocol
    version: Release
    name: PeerName
    lease: LeaseRow = NO_LEASE  # of the highest epoch that the client has heard of


class InferRequest(NamedTuple):
    """``slo_ns`` 0 means the model's default. ``priority``: 1 highest, 0 the default level.

    ``model`` is ``name`` or ``name@version``.
    """

    request_id: Id
    model: ModelReference
    slo_ns: Stamp
    priority: Annotated[int, Integer(0, PRIORITY_MAX)]
    tensors: Annotated[list[NamedTensorRef], ListOf(_INPUT, TENSORS_MAX)]


class Cancel(NamedTuple):
    """The client no longer waits for this request."""

    request_id: Id


BATCHING = ("auto", "on", "off", "same-shape")
"""When requests for a model share executions: as registration finds out, always, never, or at equal shape."""

PRODUCT_DTYPES = ("fp32", "tf32", "fp16")
"""Precisions in which compiled GPU kernels multiply in matrix products; all but fp32 use tensor cores, and
sums are fp32. CPU devices compute as the model declares."""

_REGISTER_OPTIONS = Record(
    {
        "slo_ns": Integer(0, (1 << 60) - 1),
        "batching": Text(NAME_BYTES_MAX),
        "batch_max": Integer(0, REGISTER_BATCH_MAX),
        "version": Integer(0, VERSION_MAX),
        "origin": Text(SENTENCE_BYTES_MAX),
        "dtype": Text(NAME_BYTES_MAX),
        "traffic": Text(NAME_BYTES_MAX),
        "forced": Flag(),
    },
    optional=("slo_ns", "batching", "batch_max", "version", "origin", "dtype", "traffic", "forced"),
)


TRAFFIC = ("all", "part", "none")  # The traffic of its name that a new version is to take


class Register(NamedTuple):
    """Open an upload. ``files``: ``[[relative path, bytes, sha256 hex], ...]``, the first is the model.

    ``options``: ``slo_ns`` (0 none), ``batching`` (auto, on, off or same-shape), ``batch_max``, ``version``
    (its number, if that is free; 0: the next), ``origin`` (the repository that it came from), ``dtype`` (one
    of PRODUCT_DTYPES). An absent SLO, batching or dtype is that of the version that serves the name.
    ``traffic``: the traffic of the name that the version takes once it is ready: all (the default), or none
    before a Route or Promote; with "part" such a Route follows, with "none" it need not. ``forced``: it may
    take all, even if requests for the name do not fit it.
    """

    request_id: Id
    name: Annotated[str, Text(NAME_BYTES_MAX)]
    files: Files
    options: Annotated[dict[str, Any], _REGISTER_OPTIONS]


class UploadChunk(NamedTuple):
    """One frame: the bytes of file ``file`` from ``offset`` on. At most CHUNK_WINDOW unacknowledged."""

    request_id: Id
    file: FileIndex
    offset: FileOffset


class Unregister(NamedTuple):
    """Remove ``name``, or ``name@version``, for good; answered by Reply when that is done."""

    request_id: Id
    model: ModelReference


class Offer(NamedTuple):
    """Load (``offered``) or unload ``name``, or ``name@version``; answered by Reply when that is done.

    An unloaded model takes no requests and no memory until it is loaded again, also after a restart.
    """

    request_id: Id
    model: ModelReference
    offered: Annotated[bool, Flag()]


class ReportSource(NamedTuple):
    """The sender cannot read a source of models, and ``text`` says why; "": it can again. Answered by Reply.

    The report holds until the sender withdraws it or leaves.
    """

    request_id: Id
    source: Sentence
    text: Sentence


class Query(NamedTuple):
    """Ask for a view.

    ``what``: models, model (argument: its name), status, readiness, cores (see CoreWaits.loads()),
    metrics (see controller/views/metrics.py) or recorder (see controller/recording/recorder.py).
    """

    request_id: Id
    what: Annotated[str, Text(NAME_BYTES_MAX)]
    argument: ModelReference


_SHARE = Row({"version": Integer(0, VERSION_MAX), "parts": Integer(0, SHARE_WHOLE)})


class Route(NamedTuple):
    """Split a name's traffic. Answered by Reply with the resulting route; see controller.catalog.routes.

    ``shares``: ``[[version, parts], ...]`` of SHARE_WHOLE; the rest goes to the versions that have the
    traffic now; empty: no change. ``shadow``: ``[version, parts, tolerance]``: the share of other versions'
    requests that is copied to this version; ``[0, 0, 0.0]``: no shadow; empty: no change.
    """

    request_id: Id
    name: ModelReference
    shares: Annotated[list[list[Any]], ListOf(_SHARE, TENSORS_MAX)]
    shadow: Annotated[list[Any], ListOf(Real(0, VERSION_MAX + 1), 3)]


class Promote(NamedTuple):
    """All of a name's traffic to one version, and no shadow. Answered like Route.

    ``version`` 0: to the newest version that is ready, now and later, as before there was a route.
    """

    request_id: Id
    name: ModelReference
    version: VersionNumber


class Rollback(NamedTuple):
    """Restore where a name's traffic went before it last changed. Answered like Route."""

    request_id: Id
    name: ModelReference


class HandOver(NamedTuple):
    """Have the controller give way to a standby: answered by Reply, and the connection ends, or Failure."""

    request_id: Id


class Bye(NamedTuple):
    """The client leaves: the requests that it still waits for are cancelled."""


# ----- controller -> client ------------------------------------------------------------------


class ClientWelcome(NamedTuple):
    """The client is let in. ``epoch``: random for each start of a controller."""

    protocol: Protocol
    version: Release
    epoch: Id
    lease: LeaseRow = NO_LEASE


ANSWER_TIMES = ("queue_ns", "load_ns", "exec_ns", "total_ns", "copy_in_ns", "copy_out_ns", "request")
"""The values of Answer.times, in order. An older controller sends fewer."""


class Answer(NamedTuple):
    """A successful inference. ``times`` as the controller saw them, ns: waiting in a queue, waiting for a
    load, on the device, in all; then the parts of the device's time that copied inputs in and outputs out.
    The last value is not a time: it is the controller's number of the request, for `clockwork explain`."""

    request_id: Id
    model_version: VersionNumber
    tensors: Annotated[list[NamedTensorRef], ListOf(_OUTPUT, TENSORS_MAX)]
    times: Annotated[list[int], ListOf(Integer(INT64_MIN, INT64_MAX), 16, names=ANSWER_TIMES)]


_FAILURE_DETAILS = Record(
    {
        "request": Integer(0, INT64_MAX),
        "reason": Text(NAME_BYTES_MAX),
        "feasible_slo_ns": Integer(INT64_MIN, INT64_MAX),
        "retry_after_ns": Integer(INT64_MIN, INT64_MAX),
        "tensor": Text(4 * SENTENCE_BYTES_MAX),
        "expected": Text(4 * SENTENCE_BYTES_MAX),
        "got": Text(4 * SENTENCE_BYTES_MAX),
    },
    optional=("request", "reason", "feasible_slo_ns", "retry_after_ns", "tensor", "expected", "got"),
    is_open=True,
)


class Failure(NamedTuple):
    """A request that did not succeed. ``details`` depends on status:

    REFUSED: reason, feasible_slo_ns (0 unknown), retry_after_ns (0 unknown).
    INVALID_INPUT: tensor, expected, got.
    Of a request that the scheduler took: request, the number by which the controller knows it.
    """

    request_id: Id
    status: StatusNumber
    text: Annotated[str, Text(4 * SENTENCE_BYTES_MAX, is_cut=True)]
    details: Annotated[dict[str, Any], _FAILURE_DETAILS]


class UploadNeed(NamedTuple):
    """Answers Register: the controller does not have the package, so send its chunks."""

    request_id: Id
    window: Annotated[int, Integer(1, 1 << 16)]
    chunk_bytes: Annotated[int, Integer(1, UPLOAD_AHEAD_BYTES_MAX)]


class UploadAck(NamedTuple):
    """This many more chunks of an upload have been taken."""

    request_id: Id
    chunks: Annotated[int, Integer(0, 1 << 16)]


class Progress(NamedTuple):
    """``done`` of ``total`` steps of ``stage`` (upload, store, prepare); total 0 is unknown."""

    request_id: Id
    stage: Annotated[str, Text(64)]
    done: Count
    total: Count


class Reply(NamedTuple):
    """The answer to Register (the model's description), Unregister, Offer, ReportSource and Query."""

    request_id: Id
    body: Annotated[Any, Anything(16, REPLY_VALUES_MAX)]


class HelloNeeded(NamedTuple):
    """Sent to a peer that is not (or no longer) known, for example after a restart of the controller."""

    epoch: Id


class Mismatch(NamedTuple):
    """The handshake failed; the sentence says what each side speaks."""

    protocol: Protocol
    text: Sentence


# ----- worker -> controller ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device's properties, by which the controller plans for it."""

    kind: str  # "cpu", "cuda" or "emulated"
    name: str  # readable name of the processor or card
    fingerprint: str  # programs prepared under another fingerprint must be prepared again
    page_bytes: int
    page_count: int
    run_ahead: int  # actions that a lane accepts before the first of them has completed
    host_bytes: int = 0  # budget of the host store that the worker's devices share; 0: no host tier
    store_bytes: int = 0  # bound of the worker's store of prepared models; 0: it has all models
    # The number of the device whose arena this device executes from; -1: it has an arena of its own. That
    # device has a smaller number, and equal pages, kind and run_ahead; loads are ordered for it alone.
    arena: int = -1
    # The time of an execution beside executions on all other devices of the arena, in thousandths of its time
    # by itself, as the worker measured it; only of a device that has the arena. 1000: not longer, or unknown.
    slowdown_thousandths: int = 1000
    threads: int = 1  # threads of an execution; the devices of a worker have equally many


_DEVICE = Record(
    {
        "kind": Text(64),
        "name": Text(256),
        "fingerprint": Text(NAME_BYTES_MAX),
        "page_bytes": Integer(1, PAGE_BYTES_MAX),
        "page_count": Integer(1, PAGES_MAX),
        "run_ahead": Integer(1, RUN_AHEAD_MAX),
        "host_bytes": Integer(0, HOST_BYTES_MAX),
        "store_bytes": Integer(0, STORE_BYTES_MAX),
        "arena": Integer(-1, WORKER_DEVICES_MAX - 1),
        "slowdown_thousandths": Integer(1000, SLOWDOWN_THOUSANDTHS_MAX),
        "threads": Integer(1, EXECUTION_THREADS_MAX),
    },
    optional=("host_bytes", "store_bytes", "arena", "slowdown_thousandths", "threads"),
    is_open=True,
)
"""The form of a DeviceInfo."""


class WorkerHello(NamedTuple):
    """A worker's first message. ``devices``: DeviceInfo's fields, a dict each. ``worker_epoch``: random for
    each start."""

    protocol: Protocol
    version: Release
    name: PeerName
    worker_epoch: Id
    devices: Annotated[list[dict[str, Any]], ListOf(_DEVICE, WORKER_DEVICES_MAX)]
    lease: LeaseRow = NO_LEASE  # of the highest epoch that the worker has heard of


class Heartbeat(NamedTuple):
    """A sign of life. ``jitter_ns``: p99 of wake-up lateness. ``stats``: shown by ``clockwork status``."""

    now_ns: WorkerTime
    jitter_ns: Stamp
    stats: Annotated[dict[str, Any], Facts(6, STATS_VALUES_MAX)]


class Pong(NamedTuple):
    """Answers Ping: ``sent_ns`` as it came (controller clock), then two stamps of the worker's clock."""

    sent_ns: Stamp
    received_ns: WorkerTime
    returned_ns: WorkerTime


class Result(NamedTuple):
    """The outcome of any action.

    ``parts``: for INFER, one list of TensorRef for each part of the batch, in order.
    """

    action_id: Id
    status: StatusNumber
    text: Sentence
    received_ns: WorkerTime
    copy_in: Phase
    execute: Phase
    copy_out: Phase
    parts: Parts


class Fetch(NamedTuple):
    """Ask for ``length`` bytes of file number ``file`` of a package, or of a bundle that was offered. Workers
    ask the controller. The controller asks a worker that has the package where its own copy is damaged, and
    a worker that has the bundle."""

    digest: Digest
    file: FileIndex
    offset: FileOffset
    length: Annotated[int, Integer(0, CHUNK_BYTES)]


_SPECS = ListOf(
    Record(
        {
            "name": Text(NAME_BYTES_MAX),
            "dtype": _DTYPE,
            "shape": ListOf(Either(Integer(0, INT64_MAX), Text(NAME_BYTES_MAX)), RANK_MAX),
        }
    ),
    TENSORS_MAX,
)
_POINT = Record(
    {
        "shape": ListOf(_DIMENSIONS, TENSORS_MAX),
        "batch": Integer(1, BATCH_SIZE_MAX),
        "exec_ns": Integer(0, TIME_MAX_NS),
    }
)
_BUNDLE = ListOf(
    Row({"path": Text(64), "bytes": Integer(0, PACKAGE_BYTES_MAX), "sha256": Text(64)}), BUNDLE_FILES_MAX
)
"""``[[name, bytes, sha256 hex], ...]`` of a bundle; see formats.bundles."""

_BY_THREADS = ListOf(
    Row({"threads": Integer(1, EXECUTION_THREADS_MAX), "exec_ns": Integer(0, TIME_MAX_NS)}),
    THREADS_REPORTED_MAX,
)
"""Times of an execution with more threads than the worker's devices have."""

_SUMMARY_FIELDS: dict[str, Form] = {
    "format_version": Integer(0, 1 << 30),
    "digest": Text(128),
    "fingerprint": Text(NAME_BYTES_MAX),
    "program": Text(128),
    "holding": Text(64),
    "inputs": _SPECS,
    "outputs": _SPECS,
    "outputs_verified": Flag(),
    "batches": Flag(),
    "batching_note": Text(4 * SUMMARY_TEXT_CHARS_MAX),
    "batch_max": Integer(1, BATCH_SIZE_MAX),
    "page_bytes": Integer(1, PAGE_BYTES_MAX),
    "runs": ListOf(Integer(1, PAGES_MAX), RUNS_REPORTED_MAX),
    "weights_bytes": Integer(0, HOST_BYTES_MAX),
    "resident_bytes": Integer(0, HOST_BYTES_MAX),
    "load_ns": Integer(0, TIME_MAX_NS),
    "profile": ListOf(_POINT, PROFILE_POINTS_MAX),
    "constants_note": Text(4 * SUMMARY_TEXT_CHARS_MAX),
    "metadata": Facts(1, TENSORS_MAX),
    "example": ListOf(_DIMENSIONS, TENSORS_MAX),
    "lengths": Facts(1, TENSORS_MAX),
    "lengths_note": Text(4 * SUMMARY_TEXT_CHARS_MAX),
    "by_threads": _BY_THREADS,
    "bundle": _BUNDLE,
}
_SUMMARY = Record(
    _SUMMARY_FIELDS, optional=tuple(_SUMMARY_FIELDS), is_open=True
)  # empty where preparing failed


class Prepared(NamedTuple):
    """Answers Prepare. ``summary`` is PreparedModel.summary() when status is OK.

    Its ``bundle`` lists the files of the prepared model, where other workers of the same kind can take them.
    """

    model_id: Id
    status: StatusNumber
    text: Sentence
    summary: Annotated[dict[str, Any], _SUMMARY]


class StillResident(NamedTuple):
    """A model is resident, since an earlier controller or session had it loaded. Follows its Prepared.

    ``run_starts``: the first page of each of its runs. A controller that does not count on it takes its
    pages, or loads the model again: the worker evicts it for that."""

    model_id: Id
    device: DeviceIndex
    load_id: Id
    run_starts: Annotated[list[int], ListOf(Integer(0, PAGES_MAX), RUNS_REPORTED_MAX)]


class BundleWanted(NamedTuple):
    """Ask for the bundle of a model that is to be prepared here; answered by BundleOffer."""

    model_id: Id


class BundleRefused(NamedTuple):
    """The bundle that was offered for a model could not be taken, and the worker prepares the model itself.

    ``text``: what is wrong with the bundle; "" if the worker could not take it for a reason of its own."""

    model_id: Id
    text: Sentence


class NotStored(NamedTuple):
    """A model does not lie in the worker's store, which has a bound: the answer to Announce, where it is not
    found, and sent before the result of its DROP. ``text``: why it is lost, although it lay there; "": it is
    not lost."""

    model_id: Id
    text: Sentence


class DeviceFault(NamedTuple):
    """A device is broken for good, and its residencies and actions are lost. Sent before their results."""

    device: DeviceIndex
    text: Sentence


class ClockChanged(NamedTuple):
    """The clock rate at which a device executes from now on."""

    device: DeviceIndex
    mhz: Annotated[int, Integer(1, CLOCK_MHZ_MAX)]


class TimeNeeded(NamedTuple):
    """The worker needs a device for itself for ``expected_ns``, to make a model ready.

    ``runs``: lengths of the runs of pages that it also needs. The controller sends a RESERVE when there is a
    gap in the work. A device has one such request at a time; ``expected_ns`` 0 takes the request back.
    """

    device: DeviceIndex
    model_id: Id
    expected_ns: Annotated[int, Integer(0, RESERVE_NS_MAX)]
    runs: Annotated[list[int], ListOf(Integer(1, PAGES_MAX), RESERVE_RUNS_MAX)]


# ----- controller -> worker ------------------------------------------------------------------


class WorkerWelcome(NamedTuple):
    """A new epoch: the worker forgets model ids of any earlier one. Residencies stay; see StillResident."""

    protocol: Protocol
    version: Release
    epoch: Id
    worker_id: WorkerId
    lease: LeaseRow = NO_LEASE


class Ping(NamedTuple):
    """Measures the offset of the worker's clock; answered by Pong at once."""

    sent_ns: Stamp


class Prepare(NamedTuple):
    """Make the model ready to be loaded: fetch, split, optimise, profile; or find the result in the cache.

    ``files`` as in Register. ``owner``: the number of the client that registered or loaded it, 0: none;
    owners take turns. Preparation runs beside the execution thread; answered by Prepared.
    """

    model_id: Id
    name: Annotated[str, Text(NAME_BYTES_MAX)]
    version: VersionNumber
    digest: Digest
    files: Files
    options: Annotated[dict[str, Any], Facts(1, 16)]
    owner: Id


class Announce(NamedTuple):
    """A model for a worker whose store has a bound. Where it lies there, it is made ready, as by Prepare, and
    answered by Prepared; otherwise by NotStored, and the model may be fetched. Fields as in Prepare."""

    model_id: Id
    name: Annotated[str, Text(NAME_BYTES_MAX)]
    version: VersionNumber
    digest: Digest
    files: Files
    options: Annotated[dict[str, Any], Facts(1, 16)]


class BundleOffer(NamedTuple):
    """Answers BundleWanted. ``files``: of the bundle, as the worker that prepared it told them; none
    where no worker of the same kind has the model. ``holder``: the name of the worker that will give it."""

    model_id: Id
    holder: PeerName
    files: Annotated[list[list[Any]], _BUNDLE]


class Forget(NamedTuple):
    """The model is gone. Ordered after its UNLOADs have been answered."""

    model_id: Id


class Chunk(NamedTuple):
    """Answers Fetch; one frame. ``status`` is OK or INTERNAL (then the frame is empty)."""

    digest: Digest
    file: FileIndex
    offset: FileOffset
    status: StatusNumber


class Load(NamedTuple):
    """Copy a model's weights into pages. ``run_starts``: first page index of each run of its layout.

    ``load_id`` names this residency; INFER and UNLOAD repeat it, so that an INFER sent before an
    UNLOAD can never read the next model's weights.
    """

    action_id: Id
    device: DeviceIndex
    model_id: Id
    load_id: Id
    run_starts: Annotated[list[int], ListOf(Integer(0, PAGES_MAX - 1), PAGES_MAX)]
    earliest_ns: Bound
    latest_ns: Bound
    expected_ns: Bound


class Unload(NamedTuple):
    """Give the pages of a residency back."""

    action_id: Id
    device: DeviceIndex
    model_id: Id
    load_id: Id
    earliest_ns: Bound
    latest_ns: Bound
    expected_ns: Bound


class Infer(NamedTuple):
    """Run one batch. ``parts``: for each request its inputs, TensorRef in the model's input order.

    More than one part only for models that batch: inputs are joined on axis 0, outputs split again.
    """

    action_id: Id
    device: DeviceIndex
    model_id: Id
    load_id: Id
    earliest_ns: Bound
    latest_ns: Bound
    expected_ns: Bound
    parts: Parts


class Profile(NamedTuple):
    """Run the model once on seeded inputs of these shapes (model's input order); no output returns."""

    action_id: Id
    device: DeviceIndex
    model_id: Id
    load_id: Id
    earliest_ns: Bound
    latest_ns: Bound
    expected_ns: Bound
    shapes: Annotated[list[list[int]], ListOf(_DIMENSIONS, TENSORS_MAX)]


class HostFetch(NamedTuple):
    """FETCH: bring a prepared model's weights from disk into the worker's host store, which has a budget.

    The store is the machine's: ``device`` is 0, whatever devices load from it. ``load_id`` names the order.
    """

    action_id: Id
    device: DeviceIndex
    model_id: Id
    load_id: Id
    earliest_ns: Bound
    latest_ns: Bound
    expected_ns: Bound


class HostDrop(NamedTuple):
    """DROP: give a model's bytes in the host store back. Never sent while a LOAD of it is under way."""

    action_id: Id
    device: DeviceIndex
    model_id: Id
    load_id: Id
    earliest_ns: Bound
    latest_ns: Bound
    expected_ns: Bound


class Reserve(NamedTuple):
    """RESERVE: for the worker's own work on a device, which executes nothing meanwhile; see TimeNeeded.

    ``run_starts``: the first page of each run that goes with it. These pages are the worker's until it needs
    others, or none. ``load_id`` is 0. It ends when the work has ended.
    """

    action_id: Id
    device: DeviceIndex
    model_id: Id
    load_id: Id
    run_starts: Annotated[list[int], ListOf(Integer(0, PAGES_MAX - 1), RESERVE_RUNS_MAX)]
    earliest_ns: Bound
    latest_ns: Bound
    expected_ns: Bound


class DeclaredAction(NamedTuple):
    """An action as it is declared. ``message``: its order. ``frees``: it gives memory back, so that in its
    lane nothing passes it, and it passes nothing."""

    message: type
    lane: LaneKind
    frees: bool = False


ACTIONS: dict[ActionKind, DeclaredAction] = {
    ActionKind.LOAD: DeclaredAction(Load, LaneKind.LOAD),
    ActionKind.UNLOAD: DeclaredAction(Unload, LaneKind.LOAD, frees=True),
    ActionKind.INFER: DeclaredAction(Infer, LaneKind.EXECUTE),
    ActionKind.PROFILE: DeclaredAction(Profile, LaneKind.EXECUTE),
    ActionKind.FETCH: DeclaredAction(HostFetch, LaneKind.FETCH),
    ActionKind.DROP: DeclaredAction(HostDrop, LaneKind.FETCH, frees=True),
    ActionKind.RESERVE: DeclaredAction(Reserve, LaneKind.EXECUTE),
}

KIND_OF: dict[type, ActionKind] = {action.message: kind for kind, action in ACTIONS.items()}
"""The kind of the action that each message orders."""

ActionMessage: TypeAlias = Load | Unload | Infer | Profile | HostFetch | HostDrop | Reserve
"""The message of any action."""


class Revoke(NamedTuple):
    """Drop an action that has not started; it is answered ACTION_CANCELLED. A running action goes on."""

    action_id: Id


class Goodbye(NamedTuple):
    """The sender leaves in order: the controller shuts down, or a worker has drained."""


Message: TypeAlias = NamedTuple

FROM_CLIENT = {1: ClientHello, 2: InferRequest, 3: Cancel, 4: Register, 5: UploadChunk, 6: Unregister,
               7: Query, 8: Bye, 9: Route, 10: Promote, 11: Rollback, 12: Offer,
               13: ReportSource, 14: HandOver}  # fmt: skip
TO_CLIENT = {32: ClientWelcome, 33: Answer, 34: Failure, 35: UploadNeed, 36: UploadAck, 37: Progress,
             38: Reply, 39: HelloNeeded, 40: Mismatch, 41: Goodbye}  # fmt: skip
FROM_WORKER = {64: WorkerHello, 65: Heartbeat, 66: Pong, 67: Result, 68: Fetch, 69: Prepared,
               70: DeviceFault, 71: ClockChanged, 72: TimeNeeded, 73: BundleWanted, 74: BundleRefused, 75: NotStored, 76: StillResident, 41: Goodbye,
               100: Chunk}  # fmt: skip
TO_WORKER = {96: WorkerWelcome, 97: Ping, 98: Prepare, 99: Forget, 100: Chunk, 101: Load, 102: Unload,
             103: Infer, 104: Profile, 105: Revoke, 106: HostFetch, 107: HostDrop, 108: Reserve, 109: BundleOffer,
             110: Announce,
             39: HelloNeeded, 40: Mismatch, 41: Goodbye, 68: Fetch}  # fmt: skip

TAG_OF: dict[type, int] = {
    kind: tag for table in (FROM_CLIENT, TO_CLIENT, FROM_WORKER, TO_WORKER) for tag, kind in table.items()
}

HEADER_BYTES: dict[type, int] = {
    InferRequest: REQUEST_HEADER_BYTES_MAX,
    Register: 1 << 20,
    Answer: 2 << 20,
    Failure: 512 << 10,
    Reply: REPLY_BYTES_MAX,
    WorkerHello: 1 << 20,
    Heartbeat: 1 << 20,
    Result: 2 << 20,
    Prepared: SUMMARY_BYTES_MAX,
    Prepare: 1 << 20,
    Announce: 1 << 20,
    Load: 8 << 20,
    Reserve: 96 << 10,
    TimeNeeded: 96 << 10,
    Infer: 32 << 20,
    Profile: 512 << 10,
}
"""The largest header of each kind of message; kinds that are not listed have HEADER_BYTES_MAX."""


def bytes_max_of(kind: type) -> int:
    """The largest header of a kind of message."""
    return HEADER_BYTES.get(kind, HEADER_BYTES_MAX)


NATIVE: tuple[type, ...] = (
    InferRequest, Cancel, Answer, Failure, *(action.message for action in ACTIONS.values()), Revoke, Result, Ping, Pong,
)  # fmt: skip
"""Messages that C++ handles. Messages to a controller or a worker have a reader in csrc/wire/messages.h, and
messages from them a writer."""

EXACT = frozenset(NATIVE) - {Answer, Failure}
"""Messages that C++ reads: they have exactly their fields, and a new field of theirs is a new protocol."""

PYTHON_ALONE: tuple[type, ...] = (
    HandOver,
    BundleWanted,
    BundleRefused,
    BundleOffer,
    Announce,
    NotStored,
    StillResident,
)
"""Messages that no C++ names: their tags are left out of csrc/wire/kinds.h, whose every change has most of
the C++ compiled anew."""
