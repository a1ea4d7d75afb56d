"""A version of a model, as the controller knows it while it runs."""

from __future__ import annotations

from typing import NamedTuple

from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.models.interfaces import as_counted
from clockwork.controller.models.lifecycle import ModelState, VersionEvent
from clockwork.formats.prepared import PreparedModel
from clockwork.scheduler.types import ModelSpec


class Waiter(NamedTuple):
    """A request of a client that is answered when what it asks for is complete."""

    client: bytes
    request_id: int


class ModelVersion:
    """One version of one model: its record, where it is in its life, and what workers have said of it."""

    __slots__ = (
        "batches", "faults", "input_index", "is_blamed", "lengths", "measured", "model_id", "owner", "prepared", "record",
        "slo_ns", "state", "text", "verified", "waiters", "was_ready", "workers",
    )  # fmt: skip

    def __init__(self, model_id: int, record: ModelRecord) -> None:
        self.record = record
        self.state = ModelState.NEW
        self.waiters: list[Waiter] = []
        self.owner = 0  # a number of whoever had it registered or loaded; 0: nobody since the start
        self.begin(model_id)

    def begin(self, model_id: int) -> None:
        """Forget what was found out under an earlier id. model_id: 0 of a version that no worker knows."""
        self.model_id = model_id
        self.slo_ns = int(self.record.options.get("slo_ns", 0))
        self.text = ""  # why it failed
        self.is_blamed = False  # a worker that could not prepare it found the model at fault, and not itself
        self.was_ready = False  # in this life of the controller or an earlier one
        # By one worker; what it takes and gives: as the package declares it.
        self.prepared: PreparedModel | None = None
        # Whether every worker has held what is fixed of its outputs against what it returned.
        self.verified = True
        self.batches = False  # whether its requests count rows, as the first worker found since the start
        self.lengths: dict[str, int] = {}  # in which symbols they may differ in a batch, on every worker
        self.measured: dict[int, PreparedModel] = {}  # by worker id: of those that differ from ``prepared``
        self.input_index: dict[str, int] = {}
        self.workers: dict[int, str] = {}  # worker id: preparing, ready, or what went wrong
        self.faults: dict[str, int] = {}  # what its executions did to workers, by what it was

    @property
    def label(self) -> str:
        return self.record.label

    def verdict(self) -> VersionEvent | None:
        """What the workers' answers so far come to; None: nothing yet."""
        states = self.workers.values()
        is_ready, is_open = "ready" in states, "preparing" in states
        if is_ready and not is_open:
            return VersionEvent.PREPARED
        # A version that takes traffic for the first time does so when it is ready everywhere; what did before (in an
        # earlier life of the controller, or before it was unloaded) is served as soon as one worker can.
        if is_ready:
            return VersionEvent.SERVABLE if self.was_ready else None
        if is_open or not states:
            return None
        return VersionEvent.LOST if self.was_ready else VersionEvent.REFUSED

    def spec(self, prepared: PreparedModel) -> ModelSpec:
        """What the scheduler is told of a worker that prepared it so."""
        is_alike = prepared.batches == self.batches
        return ModelSpec(
            model_id=self.model_id,
            name=self.record.name,
            version=self.record.version,
            program=prepared.program,
            batches=self.batches,
            batch_max=prepared.batch_max if is_alike else 1,
            slo_ns=self.slo_ns,
            runs=tuple(prepared.runs),
            load_ns=prepared.load_ns,
            profile=prepared.profile if is_alike else as_counted(prepared.profile, self.batches),
        )
