"""The surroundings of a Registrar, in memory: storage, workers, scheduler and clients, which act when a test
lets them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from clockwork.config import PACKAGE_BYTES_MAX
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.catalog.routes import NameRoute
from clockwork.controller.effects import (
    AbortUpload,
    Blame,
    CommitUpload,
    Effect,
    Forward,
    Job,
    NoteTrouble,
    OpenUpload,
    Publish,
    ReadRecord,
    ReadUpload,
    Refuse,
    RemovePackage,
    ReplyModel,
    ReplyRoute,
    ScheduleReady,
    ScheduleRemoval,
    SendClient,
    SendWorker,
    WriteChange,
    WriteChunk,
)
from clockwork.controller.models.accounts import account
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.models.version import ModelVersion, Waiter
from clockwork.controller.registration.registrar import Registrar
from clockwork.controller.registration.table import ModelTable
from clockwork.errors import ClockworkError
from clockwork.formats.interface import Interface
from clockwork.formats.package import PackageFile, digest_of
from clockwork.formats.prepared import FORMAT_VERSION, PreparedModel, TensorSpec
from clockwork.scheduler.types import Fault, ProfilePoint
from clockwork.wire.messages import (
    Prepare,
    Prepared,
    Progress,
    Register,
    Reply,
    Status,
    UploadChunk,
    UploadNeed,
)

CLIENT = b"client"
CRASHES = account(Fault.CRASHED, "w1").reason
JOBS = (
    WriteChange, OpenUpload, WriteChunk, CommitUpload, AbortUpload, ReadUpload, ReadRecord, RemovePackage,
)  # fmt: skip


def summary(digest: str) -> dict[str, Any]:
    """Return a worker's summary of a small model with one input and one output."""
    spec = [TensorSpec("x", 1, ("N", 2))]
    profile = [ProfilePoint(((2,),), 1, 1_000_000)]
    return PreparedModel(
        FORMAT_VERSION, digest, "test", "program", "bound", spec, spec, True, "", 8, 4096, [1], [], 100, 4096, 100, profile,
        "", {}, [],
    ).summary()  # fmt: skip


def owner_of(client: bytes) -> int:
    """The number under which a client's prepared package waits for its turn."""
    return int.from_bytes(client)


class Registry:
    """``told``: the answers to clients, as (request id, outcome): "replied", a sentence, or the type of a
    message."""

    def __init__(self, threads_max: int = 0) -> None:
        """threads_max: as in CoreWaits."""
        self.effects: deque[Effect] = deque()
        self.table = ModelTable(self.effects)
        self.registrar = Registrar(
            self.effects, self.table, lambda digest: False, lambda worker: PACKAGE_BYTES_MAX, threads_max
        )
        self.stages: list[str] = []  # progress that clients were told
        self.jobs: deque[Job] = deque()  # jobs given to storage, in order
        self.asked: list[tuple[int, Prepare]] = []  # requests to workers without an answer
        self.known: set[int] = set()  # model ids that the scheduler knows
        self.leaving: list[int] = []  # model ids that the scheduler is to remove
        self.needs: dict[Waiter, list[int]] = {}  # uploads that wait for bytes, by file sizes
        self.orders: list[Waiter] = []  # every order of a client
        self.answers: Counter[Waiter] = Counter()
        self.told: list[tuple[int, str]] = []
        self.events: list[str] = []  # events that subscribers got
        self.traffic: dict[str, list[tuple[int, int]]] = {}  # name: [(model id, parts), ...]
        self.troubles: list[NoteTrouble] = []
        self.blamed: list[str] = []  # workers' impossible messages that were complained of
        self.records: dict[tuple[str, int], ModelRecord] = {}  # records on disk
        self.saved: set[tuple[str, int]] = set()  # records that ever were on disk
        self.routes: dict[str, NameRoute] = {}  # routes on disk
        self.packages: set[str] = set()
        # declared interfaces of readable packages, by digest
        self.interfaces: dict[str, Interface] = {}
        self.now_ns = 0
        self.changes = 0  # number of the newest change on disk
        self.has_backup = True  # whether the catalogue is backed up at once
        self._number = 0

    # ----- what happens ------------------------------------------------------------------------

    def order(self, message: Any, client: bytes = CLIENT) -> Waiter:
        """A client's order, which gets a number as its first field if that was 0."""
        if not message.request_id:
            self._number += 1
            message = message._replace(request_id=self._number)
        waiter = Waiter(client, message.request_id)
        self.orders.append(waiter)
        if isinstance(message, Register):
            self.needs[waiter] = [size for _, size, _ in message.files]
        try:
            self.registrar.request(client, message, owner_of(client))
        except ClockworkError as error:
            self._answer(waiter, str(error))
        self.carry_out()
        return waiter

    def register(self, name: str, content: bytes, client: bytes = CLIENT, **options: Any) -> Waiter:
        row = ["model.onnx", len(content), hashlib.sha256(content).hexdigest()]
        return self.order(Register(0, name, [row], options), client)

    @staticmethod
    def digest(content: bytes) -> str:
        """Return the digest of the package that register() makes of a model."""
        return digest_of([PackageFile("model.onnx", len(content), hashlib.sha256(content).hexdigest())])

    def send_chunk(self, waiter: Waiter) -> None:
        (size,) = self.needs.pop(waiter)
        self.registrar.chunk(waiter.client, UploadChunk(waiter.request_id, 0, 0), bytes(size))
        self.carry_out()

    def store(self, error: Exception | None = None) -> Job:
        """Have storage do its next job, or fail at it."""
        job = self.jobs.popleft()
        value = self._do(job) if error is None else None
        self.registrar.ended(job, value, error, self.now_ns)
        if self.has_backup and isinstance(job, WriteChange):
            self.registrar.backed_up(self.changes, "", "")
        self.carry_out()
        return job

    def prepare(self, status: Status = Status.OK, place: int = 0, text: str = "no memory") -> None:
        """Have a worker answer its request."""
        worker, message = self.asked.pop(place)
        fields = summary(message.digest) if status is Status.OK else {}
        answer = Prepared(message.model_id, status, "" if status is Status.OK else text, fields)
        self.registrar.prepared(worker, answer, self.now_ns)
        self.carry_out()

    def restart(self) -> Registry:
        """Start a controller on this disk, before any worker has joined."""
        again = Registry()
        again.packages, again.records, again.saved, again.routes = (
            self.packages,
            self.records,
            self.saved,
            self.routes,
        )
        records = [dataclasses.replace(record) for record in self.records.values()]
        again.registrar.restore(records, [], [*self.routes.values()], [])
        again.carry_out()
        return again

    def join(self, worker: int, requests: Mapping[int, int] = {}, threads: int = 1) -> None:
        """Have a worker join. requests: that each model has had, by its id. threads: of its executions."""
        self.registrar.worker_joined(
            worker, f"w{worker}", lambda model_id: requests.get(model_id, 0), threads=threads
        )
        self.carry_out()

    def leave(self, worker: int) -> None:
        self.registrar.worker_left(worker)
        self.asked = [one for one in self.asked if one[0] != worker]
        self.carry_out()

    def let_go(self, place: int = 0) -> None:
        """Have the scheduler say that the last request of a version has been answered."""
        self.registrar.drained(self.leaving.pop(place))
        self.carry_out()

    def set_aside(self, model_id: int) -> None:
        """Have the scheduler remove a version whose executions crashed workers, for the reason CRASHES."""
        was_leaving = self.table.by_id[model_id].state.is_leaving
        self.registrar.faulted(model_id, Fault.CRASHED, "w1", True)
        if not was_leaving:
            self.leaving.append(model_id)
        self.carry_out()

    def beat(self) -> None:
        self.registrar.beat(self.now_ns, 0)
        self.carry_out()

    def settle(self) -> None:
        """Have all parts do everything that they are asked to, workers with success."""
        while self.jobs or self.asked or self.leaving or self.ready_uploads():
            for waiter in self.ready_uploads():
                self.send_chunk(waiter)
            while self.jobs:
                self.store()
            while self.asked:
                self.prepare()
            while self.leaving:
                self.let_go()

    # ----- what comes of it --------------------------------------------------------------------

    def ready_uploads(self) -> list[Waiter]:
        """Return the uploads whose clients have been told to send."""
        return [waiter for waiter in self.needs if (waiter.request_id, "UploadNeed") in self.told]

    def states(self, name: str) -> dict[int, str]:
        return {number: str(model.state) for number, model in self.table.versions.get(name, {}).items()}

    def all_versions(self) -> list[ModelVersion]:
        return [model for versions in self.table.versions.values() for model in versions.values()]

    def check(self) -> None:
        """Check the invariants that hold at any time."""
        for model in self.all_versions():
            assert model.state in ModelState
            assert (self.table.by_id.get(model.model_id) is model) == model.state.is_live, model.label
            assert not model.waiters or model.state.is_live, (
                f"somebody waits for {model.label}, {model.state}"
            )
        assert len(self.table.by_id) == sum(model.state.is_live for model in self.all_versions())
        assert self.table.count == len(self.all_versions())
        for name, shares in self.traffic.items():
            for model_id, _ in shares:
                assert self.table.by_id[model_id].state in (ModelState.READY, ModelState.FAILED), name

    def answered(self, waiter: Waiter) -> list[str]:
        return [text for number, text in self.told if number == waiter.request_id and not text.isidentifier()]

    def carry_out(self) -> None:
        while self.effects:
            action = self.effects.popleft()
            match action:
                case SendClient(client, Reply() as reply):
                    self._answer(Waiter(client, reply.request_id), f"replied {reply.body}")
                case SendClient(_, message):
                    if isinstance(message, Progress):
                        self.stages.append(message.stage)
                    self.told.append((message[0], type(message).__name__))
                    assert isinstance(message, UploadNeed) or type(message).__name__ in (
                        "Progress",
                        "UploadAck",
                    )
                case Refuse(waiter, error):
                    self._answer(waiter, str(error))
                case ReplyModel(waiter, model):
                    self._answer(waiter, f"{model.label} is {model.state}")
                case ReplyRoute(waiter, name):
                    self._answer(waiter, f"the route of {name}")
                case SendWorker(worker, Prepare() as message):
                    self.asked.append((worker, message))
                case SendWorker(worker, message):  # only Forget remains
                    self.asked = [
                        (other, asked)
                        for other, asked in self.asked
                        if other != worker or asked.model_id != message[0]
                    ]
                case ScheduleReady(_, spec):
                    assert spec.model_id in self.table.by_id
                    self.known.add(spec.model_id)
                case ScheduleRemoval(model_id):
                    assert model_id in self.known
                    self.leaving.append(model_id)
                case Forward(name, shares, _):
                    for model_id, _ in shares:
                        record = self.table.by_id[model_id].record
                        assert (record.name, record.version) in self.saved, f"{record.label} was not saved"
                    self.traffic[name] = list(shares)
                case Publish(_, body):
                    self.events.append(f"{body['model']} {body['state']}")
                case Blame(_, why):
                    self.blamed.append(why)
                case NoteTrouble():
                    self.troubles.append(action)
                case _ if isinstance(action, JOBS):
                    self.jobs.append(action)

    def _answer(self, waiter: Waiter, text: str) -> None:
        self.answers[waiter] += 1
        assert self.answers[waiter] == 1, f"{waiter} was answered again: {text}"
        self.needs.pop(waiter, None)
        self.told.append((waiter.request_id, text))

    def _do(self, job: Job) -> Any:
        """Do the job on a disk that is a few dicts."""
        match job:
            case WriteChange(_, change):
                for record in change.save:
                    assert record.digest in self.packages, f"{record.label} has no package"
                    self.records[record.name, record.version] = dataclasses.replace(record)
                    self.saved.add((record.name, record.version))
                for record in change.remove:
                    del self.records[record.name, record.version]
                if change.route is not None:
                    self.routes[change.route.name] = change.route
                self.routes.pop(change.unroute, None)
                self.changes += 1
                return self.changes
            case OpenUpload():
                return job.digest not in self.packages
            case CommitUpload():
                upload = self.registrar._uploads.get(job.upload_id)
                self.packages.add(upload.registration.digest)
            case RemovePackage(digest):
                self._erase(digest)
            case ReadUpload():
                return self.interfaces.get(job.digest)
        return None

    def _erase(self, digest: str) -> None:
        users = [record.label for record in self.records.values() if record.digest == digest]
        assert not users, f"the package of {users} is erased"
        self.packages.discard(digest)
