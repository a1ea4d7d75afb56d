"""Writes every request and every action of a scheduler's steps as rows of Parquet files.

A folder has two kinds of files, ``requests-*.parquet`` and ``actions-*.parquet``. docs/telemetry.md describes
their columns, which include those of the original's logs. A file ends in ``.part`` until it is whole. A large
or old file is ended, and a new one begun. When the folder is full, the oldest files are removed.

Needs pyarrow (extra ``[telemetry]``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clockwork.config import observe as bounds
from clockwork.errors import ConfigError, Unavailable
from clockwork.observe.history import MODEL_UNKNOWN, History, SeenAction, SeenRequest
from clockwork.observe.live import ClusterDescription, introduce
from clockwork.observe.recorded import opened
from clockwork.scheduler.recording import Step, Stream
from clockwork.scheduler.types import (
    NEVER_NS,
    ActionDone,
    AnswerFailed,
    AnswerOk,
    DeviceLost,
    Status,
    WorkerLeft,
)
from clockwork.system.locks import lock_file

if TYPE_CHECKING:
    import pyarrow as pa

REQUESTS = {
    "t": "timestamp",
    "request_id": "int64",
    "outcome": "word",
    "status": "word",
    "reason": "word",
    "model": "word",
    "rows": "int32",
    "priority": "int16",
    "arrived_ns": "int64",
    "deadline_ns": "int64",
    "slo_ns": "int64",
    "latency_ns": "int64",
    "deadline_met": "bool",
    "is_coldstart": "bool",
    "queue_ns": "int64",
    "load_ns": "int64",
    "exec_ns": "int64",
    "action_id": "int64",
    "worker": "int32",
    "device": "int32",
    "batch_rows": "int32",
    "sent_count": "int32",
    "feasible_slo_ns": "int64",
    "retry_after_ns": "int64",
    "arrival_count": "int64",
    "departure_count": "int64",
}
"""Columns of requests. A request gets its row when it is answered."""

ACTIONS = {
    "t": "timestamp",
    "action_id": "int64",
    "action_type": "word",
    "status": "word",
    "worker": "int32",
    "device": "int32",
    "model": "word",
    "batch_size": "int32",
    "requests": "int32",
    "ordered_ns": "int64",
    "earliest_ns": "int64",
    "latest_ns": "int64",
    "expected_exec_ns": "int64",
    "exec_ns": "int64",
    "ready_ns": "int64",
    "begin_ns": "int64",
    "end_ns": "int64",
    "result_ns": "int64",
    "clock_mhz": "int32",
    "met": "int32",
    "goodput_ns": "int64",
    "requests_queued": "int32",
    "copies_loaded": "int32",
}
"""Columns of actions. An action gets its row when its result has come, or the action was lost."""


class Telemetry:
    """Writes the requests and actions of steps to a folder.

    wall_ns: offset from the controller's clock to the time of day; 0: unknown, and column ``t`` is the
    controller's clock. bytes_max: bound of all files of the folder together. note: metadata of every file.

    Raises ConfigError if the folder cannot be written to or another process writes there, Unavailable without
    pyarrow, and OSError if the disk fails.
    """

    def __init__(
        self, folder: Path, bytes_max: int, wall_ns: int = 0, note: Mapping[str, Any] | None = None
    ) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise Unavailable("telemetry needs pyarrow: pip install 'clockwork-serving[telemetry]'") from None
        if bytes_max < (least := 8 * bounds.TELEMETRY_FILE_BYTES):
            raise ConfigError(f"telemetry may take {bytes_max} bytes; it needs {least} at least, eight files")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_file(folder / ".lock", 0o600)
        except BlockingIOError:
            raise ConfigError(f"another process writes telemetry to {folder}") from None
        except OSError as error:
            raise ConfigError(f"telemetry cannot be written to {folder}: {error.strerror}") from None
        for left in folder.glob("*.parquet.part"):
            left.unlink()  # a killed process left this file, which has no footer and cannot be read
        self.folder = folder
        self.bytes_max = bytes_max
        self.lost_bytes = 0  # bytes of steps that the controller's ring had dropped before they were read
        self.removed = 0  # files removed because the folder was full
        self.requests = 0  # number of rows of requests so far
        self.actions = 0
        self._note = dict(note or {}) | {"wall_ns": wall_ns}
        self._wall_ns = wall_ns
        self.history = History(keep_ns=bounds.TELEMETRY_KEEP_NS)
        # number of devices that hold a model, cached until a load or unload of that model ends
        self._copies: dict[int, int] = {}
        self._tables = {
            "requests": _Table(self, "requests", REQUESTS),
            "actions": _Table(self, "actions", ACTIONS),
        }

    def apply(self, step: Step) -> None:
        """Write the rows of the next step."""
        history = self.history
        lost = {  # keyed by id, as a device and its worker may be lost in the same step
            action.id: action
            for event in step.events
            if isinstance(event, WorkerLeft | DeviceLost)
            for action in history.under_way.values()
            if action.worker == event.worker
            and (isinstance(event, WorkerLeft) or action.device == event.device)
        }
        history.apply(step)
        answered: dict[int, int] = {}  # requests answered in time, by action
        for command in step.commands:
            if isinstance(command, AnswerOk):
                answered[command.action_id] = answered.get(command.action_id, 0) + 1
                self._add_request(history.requests[command.request_id])
            elif isinstance(command, AnswerFailed):
                self._add_request(history.requests[command.request_id])
        for event in step.events:
            if isinstance(event, ActionDone):
                action = history.actions.get(event.action_id)
                # A late result of a lost action adds no row, because the action already has one.
                if action is not None and action.done_ns == event.now_ns:
                    if not action.is_execution:
                        self._copies.pop(action.model_id, None)
                    self._add_action(action, answered.get(action.id, 0))
        if lost:
            self._copies.clear()
            for action in lost.values():
                if action.status is Status.WORKER_LOST:  # otherwise its result had come before
                    self._add_action(action, 0)

    def skip(self, lost_bytes: int) -> None:
        """Note that steps of ``lost_bytes`` bytes were lost here."""
        self.lost_bytes += lost_bytes
        self.history.skip()

    def end_old(self) -> None:
        """End the files that are older than TELEMETRY_FILE_NS."""
        for table in self._tables.values():
            table.end_old(self.history.now_ns)

    def close(self) -> None:
        """End all files, and release the folder for other writers. Idempotent."""
        for table in self._tables.values():
            table.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def note(self) -> dict[str, Any]:
        """Return the metadata of a file that begins now."""
        return self._note | {"lost_bytes": self.lost_bytes}

    def make_room(self, coming: int) -> None:
        """Remove the oldest files until ``coming`` bytes fit."""
        files = sorted(self.folder.glob("*.parquet"), key=lambda path: path.name.partition("-")[2])
        sizes = {path: path.stat().st_size for path in files}
        total = sum(sizes.values()) + coming
        for path in files:
            if total <= self.bytes_max:
                return
            path.unlink()
            self.removed += 1
            total -= sizes[path]

    def _add_request(self, request: SeenRequest) -> None:
        action = request.action if request.outcome == "answered" else None
        counts = self.history.counts
        self.requests += 1
        self._tables["requests"].add((
            (request.answered_ns + self._wall_ns) // 1000,
            request.id,
            request.outcome,
            request.status.name if request.status is not None else "",
            request.reason,
            self.history.label(request.model_id) if request.model_id != MODEL_UNKNOWN else None,
            request.rows,
            request.priority,
            request.arrived_ns or None,
            request.deadline_ns if request.deadline_ns < NEVER_NS else None,
            request.slo_ns or None,
            request.latency_ns or None,
            request.outcome == "answered",
            request.load_ns > 0,
            request.queue_ns if action is not None else None,
            request.load_ns if action is not None else None,
            request.exec_ns if action is not None else None,
            action.id if action is not None else None,
            action.worker if action is not None else None,
            action.device if action is not None else None,
            action.rows if action is not None else None,
            request.sent_count,
            request.feasible_slo_ns or None,
            request.retry_after_ns or None,
            counts.arrived,
            counts.ended,
        ), request.answered_ns)  # fmt: skip

    def _add_action(self, action: SeenAction, met: int) -> None:
        history = self.history
        device = history.devices.get((action.worker, action.device))
        count = len(action.requests)
        self.actions += 1
        self._tables["actions"].add((
            (action.done_ns + self._wall_ns) // 1000,
            action.id,
            action.kind,
            action.status.name if action.status is not None else "",
            action.worker,
            action.device,
            history.label(action.model_id),
            action.rows or None,
            count,
            action.ordered_ns or None,
            action.earliest_ns,
            action.latest_ns if action.latest_ns < NEVER_NS else None,
            action.expected_ns,
            action.duration_ns or None,
            action.ready_ns or None,
            action.begin_ns or None,
            action.end_ns or None,
            action.done_ns,
            device.clock_mhz if device is not None and device.clock_mhz else None,
            met,
            action.duration_ns * met // count if count else 0,
            history.counts.waiting,
            self._copies_of(action.model_id),
        ), action.done_ns)  # fmt: skip

    def _copies_of(self, model_id: int) -> int:
        found = self._copies.get(model_id)
        if found is None:
            found = self._copies[model_id] = sum(
                any(residency.model_id == model_id for residency in device.resident.values())
                for device in self.history.devices.values()
            )
        return found


def write_recording(folder: Path, recording: Path, bytes_max: int) -> Telemetry:
    """Write a recording, or a dump of the flight recorder. Raises as Telemetry does, and ConfigError for any
    other file."""
    with opened(recording) as (header, steps):
        writer = Telemetry(folder, bytes_max, note={"policy": header.policy, "version": header.version})
        try:
            with writer:
                for step in steps:
                    writer.apply(step)
        except ConfigError as error:
            raise ConfigError(
                str(error) if str(recording) in str(error) else f"{recording}: {error}"
            ) from None
    return writer


def follow(
    writer: Telemetry,
    ask: Callable[[str], Mapping[str, Any] | None],
    at_end: Callable[[], None] = lambda: None,
    cluster: ClusterDescription | None = None,
) -> None:
    """Write a controller's flight recorder, piece by piece, from its oldest step on.

    ask: answers Stream.argument. Writing ends when it returns None, or when the controller was restarted.
    at_end: called when all steps so far are written. cluster: description of the cluster, whose joins the
    recorder may have dropped. Raises the errors of both functions, and ConfigError for a malformed answer.
    """
    stream = Stream()
    lost = 0
    while (answer := ask(stream.argument)) is not None:
        steps = stream.take(answer)
        if answer["epoch"] != stream.epoch:
            return
        if stream.lost > lost:
            writer.skip(stream.lost - lost)
            lost = stream.lost
        if steps and cluster is not None:
            introduce(writer.history, cluster, steps[0].events[0].now_ns)
            cluster = None
        for step in steps:
            writer.apply(step)
        if stream.is_at_end:
            writer.end_old()
            at_end()


class _Table:
    """The files of a kind, which are written in turn."""

    def __init__(self, owner: Telemetry, name: str, columns: Mapping[str, str]) -> None:
        self._owner = owner
        self._name = name
        self._columns = columns
        self._rows: list[tuple[Any, ...]] = []
        self._count = 0  # number of files that were begun
        self._begun_ns = 0  # time of the first row of the file
        self._path: Path | None = None  # path of the open file
        self._writer: Any = None
        self._sink: Any = None

    def add(self, row: tuple[Any, ...], now_ns: int) -> None:
        if not self._rows and self._path is None:
            self._begun_ns = now_ns
        self._rows.append(row)
        if len(self._rows) >= bounds.TELEMETRY_ROWS:
            self._write()
            if self._sink.tell() >= bounds.TELEMETRY_FILE_BYTES:
                self.close()

    def end_old(self, now_ns: int) -> None:
        if (self._rows or self._path is not None) and now_ns - self._begun_ns >= bounds.TELEMETRY_FILE_NS:
            self.close()

    def close(self) -> None:
        if self._rows:
            self._write()
        if self._path is None:
            return
        path, self._path = self._path, None
        self._writer.close()
        self._sink.close()
        os.replace(path, path.with_suffix(""))

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self._schema()
        if self._path is None:
            # Two files are open, and each may exceed its bound by a batch of rows.
            self._owner.make_room(3 * bounds.TELEMETRY_FILE_BYTES)
            # Names sort by time, and are unique across processes and files.
            name = f"{self._name}-{self._rows[0][0]:020d}-{os.getpid()}-{self._count}.parquet.part"
            self._path = self._owner.folder / name
            self._count += 1
            self._sink = pa.OSFile(str(self._path), "wb")
            self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd")
        rows, self._rows = self._rows, []
        try:
            columns = [pa.array(column, field.type) for column, field in zip(zip(*rows), schema)]
        except (OverflowError, pa.ArrowInvalid) as error:
            raise ConfigError(f"a number of {self._name} does not fit into its column: {error}") from None
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        word = pa.dictionary(pa.int32(), pa.string())
        kinds = {
            "timestamp": pa.timestamp("us", "UTC"), "word": word, "bool": pa.bool_(), "int64": pa.int64(),
            "int32": pa.int32(), "int16": pa.int16(),
        }  # fmt: skip
        note = {"clockwork": json.dumps(self._owner.note())}
        return pa.schema([pa.field(name, kinds[kind]) for name, kind in self._columns.items()], note)
