"""A version of a model, as the controller knows it while it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.models.interfaces import as_counted
from clockwork.controller.models.lifecycle import ModelState, VersionEvent
from clockwork.formats.prepared import PreparedModel
from clockwork.scheduler.types import ModelSpec

SOUGHT = "sought"
ABSENT = "absent"
FETCHABLE = "fetchable"
AWAY = (SOUGHT, ABSENT, FETCHABLE)
"""States of a model on a worker whose store has a bound, and which has not prepared it: the worker looks for
it in its store; it is not there; it is not there, and another worker of the same kind has it."""


class Waiter(NamedTuple):
    """A request of a client that is answered when what it asks for is complete."""

    client: bytes
    request_id: int


@dataclasses.dataclass(slots=True)
class Bundle:
    """A model as a worker of some kind has prepared it; see controller.registration.bundles."""

    digest: str
    rows: bytes  # msgpack of the list of its files: most are never asked for
    holders: list[int]  # workers that have it


class ModelVersion:
    """A version of a model: its record, its state, and the workers' answers about it."""

    __slots__ = (
        "awaits_threads", "batches", "bundles", "faults", "input_index", "is_blamed", "lengths", "measured", "model_id", "owner", "prepared", "record",
        "slo_ns", "state", "text", "times", "verified", "waiters", "was_ready", "workers",
    )  # fmt: skip

    def __init__(self, model_id: int, record: ModelRecord) -> None:
        self.record = record
        self.state = ModelState.NEW
        self.waiters: list[Waiter] = []
        self.owner = 0  # the number of the client that registered or loaded it; 0: no client since the start
        self.begin(model_id)

    def begin(self, model_id: int) -> None:
        """Forget the workers' answers under an earlier id. model_id: 0 of a version that no worker knows."""
        self.model_id = model_id
        self.slo_ns = int(self.record.options.get("slo_ns", 0))
        self.text = ""  # reason of a failure
        self.is_blamed = False  # a worker that could not prepare it found the model at fault, and not itself
        # Threads of the executions of a worker for which it waits, as others are too slow for its SLO; 0: it
        # does not wait.
        self.awaits_threads = 0
        # Execution times by number of threads and batch size, as workers of one thread measured them
        self.times: Mapping[int, Mapping[int, int]] = {}
        self.was_ready = False  # whether it was ready in this life of the controller or an earlier one
        # A worker's measurements; inputs and outputs are as the package declares them.
        self.prepared: PreparedModel | None = None
        # Whether every worker has compared the fixed parts of the outputs' declarations with real outputs.
        self.verified = True
        self.batches = False  # whether its requests count rows, as the first worker found since the start
        self.lengths: dict[str, int] = {}  # symbols in which requests may differ in a batch, on every worker
        # by worker id, preparations that differ from ``prepared``
        self.measured: dict[int, PreparedModel] = {}
        self.input_index: dict[str, int] = {}
        self.bundles: dict[str, Bundle] = {}  # by kind of worker
        self.workers: dict[int, str] = {}  # worker id: preparing, ready, one of AWAY, or the error
        self.faults: dict[str, int] = {}  # faults that the version's executions caused on workers, by kind

    @property
    def label(self) -> str:
        return self.record.label

    def verdict(self) -> VersionEvent | None:
        """The event that follows from the workers' answers so far; None: no event yet."""
        states = self.workers.values()
        is_ready, is_open = "ready" in states, "preparing" in states
        if is_ready and not is_open:
            return VersionEvent.PREPARED
        # A new version takes traffic when it is ready everywhere. A version that took traffic before (in an
        # earlier run of the controller, or before it was unloaded) is served as soon as one worker can.
        if is_ready:
            return VersionEvent.SERVABLE if self.was_ready else None
        is_hopeless = self.is_blamed and not self.was_ready
        may_be_asked = any(state in AWAY for state in states) and not is_hopeless
        if is_open or may_be_asked or self.awaits_threads or not states:
            return None
        return VersionEvent.LOST if self.was_ready else VersionEvent.REFUSED

    def forget_holder(self, worker: int) -> None:
        """Note that a worker does not have the model any more."""
        for bundle in self.bundles.values():
            if worker in bundle.holders:
                bundle.holders.remove(worker)

    def spec(self, prepared: PreparedModel) -> ModelSpec:
        """The scheduler's description of this version on a worker that prepared it so."""
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
