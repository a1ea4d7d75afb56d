"""Uploads of packages from clients, chunk by chunk, until the whole package is stored and read. Pure: jobs of
storage are appended to ``effects``, and their results come back by ended()."""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections import Counter, deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from clockwork.config import CHUNK_BYTES, CHUNK_WINDOW
from clockwork.config.controller import UPLOAD_BYTES_LEAST, UPLOAD_IDLE_NS, UPLOAD_STALL_NS, UPLOADS_MAX
from clockwork.controller.effects import (
    AbortUpload,
    CommitUpload,
    Effect,
    OpenUpload,
    PackageArrived,
    ReadUpload,
    Refuse,
    SendClient,
    WriteChunk,
)
from clockwork.controller.models.version import Waiter
from clockwork.errors import ClockworkError, InvalidInput, Unavailable
from clockwork.formats.package import PackageFile
from clockwork.wire.messages import Progress, UploadAck, UploadChunk, UploadNeed

log = logging.getLogger("clockwork.controller")


class Registration(NamedTuple):
    """A client's checked registration: a package under a name.

    options: see controller.catalog.options. owner: the client's number, as in messages.Prepare. by: who it
    is, as the catalogue keeps it. said: the options as they came. traffic, forced: see messages.Register.
    """

    name: str
    digest: str
    options: dict[str, Any]
    files: list[PackageFile]
    owner: int
    by: str = "a client"
    said: Mapping[str, Any] = MappingProxyType({})
    traffic: str = "all"
    forced: bool = False


class UploadPhase(enum.Enum):
    """Phases of an upload."""

    OPENING = enum.auto()  # storage looks up whether the package is stored already
    RECEIVING = enum.auto()
    STORED = enum.auto()  # the whole package has come: it becomes a version even if its client has gone


@dataclasses.dataclass(slots=True)
class Upload:
    """An upload of a package. Chunks are written in the order in which they come."""

    upload_id: int
    registration: Registration
    waiter: Waiter  # the client that uploads
    missing: int  # bytes still to come
    phase: UploadPhase = UploadPhase.OPENING
    outstanding: int = 0  # number of chunks given to storage
    is_awaited: bool = True
    moved_bytes: int = 0  # bytes received since the upload was last found to move
    since_ns: int = 0  # time when the upload was last found to move
    has_moved: bool = True  # whether the client has sent since the last beat

    @property
    def waiters(self) -> list[Waiter]:
        """The upload's client, unless the client has given up."""
        return [self.waiter] if self.is_awaited else []


class Uploads:
    """All uploads. Each is removed once: when its package has become a version, or is of no use."""

    def __init__(self, effects: deque[Effect]) -> None:
        self._effects = effects
        self._open: dict[int, Upload] = {}
        self._by_request: dict[Waiter, Upload] = {}
        self._next_id = 1
        self._now_ns = 0  # the time of the last beat
        self.dropped: deque[Registration] = deque()
        """Registrations of uploads that ended before their packages were stored, for the registrar: it may
        have erased versions of the same content and have left the packages to these uploads."""

    def begin(self, waiter: Waiter, registration: Registration) -> None:
        """Begin an upload; only a package that is not stored is sent. Raises InvalidInput, Unavailable."""
        if waiter in self._by_request:
            raise InvalidInput(f"request {waiter.request_id} is in use")
        if len(self._open) >= UPLOADS_MAX:
            self._make_room(registration.owner)
        missing = sum(file.bytes for file in registration.files)
        upload = Upload(self._next_id, registration, waiter, missing)
        self._next_id += 1
        self._open[upload.upload_id] = self._by_request[waiter] = upload
        self._effects.append(OpenUpload(upload.upload_id, registration.digest, registration.files))

    def chunk(self, client: bytes, message: UploadChunk, frame: Any) -> None:
        """Take a chunk of an upload; a chunk of a failed or unknown upload is dropped."""
        upload = self._by_request.get(Waiter(client, message.request_id))
        if upload is None or upload.phase is not UploadPhase.RECEIVING:
            return
        size = len(frame)
        upload.missing -= size
        if upload.outstanding == CHUNK_WINDOW or upload.missing < 0 or not 0 < size <= CHUNK_BYTES:
            name = upload.registration.name
            self._fail(upload, InvalidInput(f"upload of {name!r} breaks its window, sizes or chunk size"))
            return
        upload.outstanding += 1
        upload.moved_bytes += size
        if upload.moved_bytes >= UPLOAD_BYTES_LEAST or upload.missing == 0:
            upload.has_moved = True
        self._effects.append(WriteChunk(upload.upload_id, message.file, message.offset, frame))

    def ended(
        self, job: OpenUpload | WriteChunk | CommitUpload, value: Any, error: BaseException | None
    ) -> None:
        """Take the end of a storage job of an upload, with a value or an error."""
        upload = self._open.get(job.upload_id)
        if upload is None:
            return
        if error is not None:
            self._fail(upload, storage_error(error))
        elif isinstance(job, OpenUpload):
            self._opened(upload, is_needed=value)
        elif isinstance(job, WriteChunk):
            upload.outstanding -= 1
            if upload.missing:  # otherwise the client has no chunk left to send
                self._tell(upload, UploadAck(upload.waiter.request_id, 1))
            self._commit_if_whole(upload)
        else:
            self._arrived(upload)

    def cancel(self, waiter: Waiter) -> None:
        """End the upload of a client that has given up, unless the whole package has come."""
        upload = self._by_request.get(waiter)
        if upload is None:
            return
        upload.is_awaited = False
        if upload.phase is not UploadPhase.STORED:
            self._fail(upload, None)

    def client_gone(self, client: bytes) -> None:
        for waiter in [waiter for waiter in self._by_request if waiter.client == client]:
            self.cancel(waiter)

    def beat(self, now_ns: int) -> None:
        """End the uploads of which too little came for too long. Called at each heartbeat."""
        self._now_ns = now_ns
        for upload in list(self._open.values()):
            if upload.has_moved or upload.outstanding or upload.phase is not UploadPhase.RECEIVING:
                upload.since_ns = now_ns
                upload.moved_bytes = 0
                upload.has_moved = False
            elif now_ns - upload.since_ns >= UPLOAD_IDLE_NS:
                text = f"of {upload.registration.name!r} less than {UPLOAD_BYTES_LEAST >> 10} KiB came in {UPLOAD_IDLE_NS / 1e9:g} s"
                self._fail(upload, Unavailable(text))

    def get(self, upload_id: int) -> Upload:
        return self._open[upload_id]

    def remove(self, upload: Upload) -> None:
        """Remove an upload whose package has become a version, or is of no use."""
        del self._open[upload.upload_id], self._by_request[upload.waiter]

    def uses(self, digest: str) -> bool:
        """Whether a package is being uploaded."""
        return any(upload.registration.digest == digest for upload in self._open.values())

    # ----- inside ------------------------------------------------------------------------------

    def _make_room(self, owner: int) -> None:
        """Make room for this owner's upload by ending another. Raises Unavailable where none gives way."""
        most = f"{UPLOADS_MAX} uploads are under way, which is the most"
        counts = Counter(upload.registration.owner for upload in self._open.values())
        largest = max(counts.values())
        receiving = [
            upload
            for upload in self._open.values()
            if upload.phase is UploadPhase.RECEIVING
            and (
                counts[upload.registration.owner] == largest > counts[owner] + 1
                or (
                    not (upload.has_moved or upload.outstanding)
                    and self._now_ns - upload.since_ns >= UPLOAD_STALL_NS
                )
            )
        ]
        if not receiving:
            raise Unavailable(f"{most}; try again later")
        idlest = min(receiving, key=lambda upload: (upload.has_moved, upload.since_ns, upload.upload_id))
        self._fail(idlest, Unavailable(f"{most}, and this one gave way to another; try again later"))

    def _tell(self, upload: Upload, message: tuple[Any, ...]) -> None:
        self._effects.append(SendClient(upload.waiter.client, message))

    def _opened(self, upload: Upload, is_needed: bool) -> None:
        upload.phase = UploadPhase.RECEIVING
        if not is_needed:
            self._arrived(upload)
        elif upload.missing:
            self._tell(upload, UploadNeed(upload.waiter.request_id, CHUNK_WINDOW, CHUNK_BYTES))
        else:
            self._commit_if_whole(upload)

    def _commit_if_whole(self, upload: Upload) -> None:
        if upload.missing or upload.outstanding:
            return
        upload.phase = UploadPhase.STORED
        self._tell(upload, Progress(upload.waiter.request_id, "store", 0, 1))
        self._effects.append(CommitUpload(upload.upload_id))

    def _arrived(self, upload: Upload) -> None:
        """Have the interface of a stored package read."""
        upload.phase = UploadPhase.STORED
        _, digest, options, files, *_ = upload.registration
        self._effects.append(PackageArrived(digest))
        self._effects.append(ReadUpload(upload.upload_id, digest, files, options))

    def _fail(self, upload: Upload, error: ClockworkError | None) -> None:
        """End an upload before its package is stored."""
        if error is not None:
            self._effects.extend(Refuse(waiter, error) for waiter in upload.waiters)
        self.remove(upload)
        self._effects.append(AbortUpload(upload.upload_id))
        self.dropped.append(upload.registration)


def storage_error(error: BaseException) -> ClockworkError:
    """The error for a client whose upload could not be stored."""
    if isinstance(error, ClockworkError):
        return error
    if isinstance(error, OSError):
        return Unavailable(f"the controller cannot store the model: {error.strerror}")
    log.error("an upload could not be stored", exc_info=error)
    return Unavailable(f"the controller cannot store the model: {type(error).__name__}: {error}")
