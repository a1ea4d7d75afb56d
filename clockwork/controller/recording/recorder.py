"""The flight recorder's files, and the answers to queries about it. Native code writes the records into a
ring (csrc/recording/recorder.h).

A ring that has forgotten the controller's start cannot be replayed by itself. So now and then the scheduler's
whole state is kept beside it. A dump begins at the oldest kept state that the ring still reaches back to:
from there on every decision can be replayed.

A simulation of a recording needs no such state, but the cluster at the dump's beginning. So a Cluster folds
the events of workers and models, which only Python tells the scheduler, as they leave the ring. The models
that each device held at the beginning follow from those that it held when the dump was written and the loads
in between.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config import VERSION_DIGITS_MAX, VERSION_MAX
from clockwork.config.recorder import (
    ALERT_AFTER_NS,
    ALERT_INTERVAL_NS,
    BURST_CALM_NS,
    BURST_LEAST,
    BURST_PART,
    BURST_SPAN_NS,
    CLUSTER_EVENTS_AT_ONCE,
    DUMP_REST_S,
    DUMPS_MAX,
    READ_BYTES,
    READS_MAX,
    RECORDER_SPAN_NS,
    STATE_BYTES_MAX,
    STATE_PATIENCE_NS,
    STATE_REST,
    STATES_MAX,
)
from clockwork.controller._exchange import Ring
from clockwork.controller.recording.followers import RingFollower
from clockwork.controller.storage.thread import StorageThread
from clockwork.errors import ConfigError, InvalidInput, Unavailable
from clockwork.scheduler.policy import is_scripted
from clockwork.scheduler.recording import (
    Header,
    ResidentModel,
    encode_event,
    encode_header,
    encode_told,
    without_copy,
)
from clockwork.scheduler.types import (
    CopyLost,
    DeviceClock,
    DeviceLost,
    Event,
    LinkMeasured,
    ModelKept,
    ModelReady,
    ModelRemoved,
    RoomWanted,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.telling import tell

log = logging.getLogger("clockwork.controller")

DIRECTORY = "recordings"  # The folder of the dumps in the controller's data directory

SUFFIX = ".rec"
PARTIAL = ".part"  # The suffix of a dump that is being written


# ----- a file of everything ----------------------------------------------------------------------


class RecordingFile:
    """A file that a thread of its own writes from a ring's start on, until the file or the disk is full, or
    the ring has forgotten bytes before they were written."""

    def __init__(self, path: Path, header: Header, ring: Ring, bytes_max: int) -> None:
        """Raises ConfigError if the file cannot be written."""
        self._path = path
        self._left = bytes_max
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
        self._write(encode_header(header))
        self._follower = RingFollower("recording", ring, self._take)

    def close(self) -> None:
        """Write the ring's remaining bytes, and stop following it."""
        self._follower.close()
        if not self._file.closed:
            self._close()

    def _take(self, place: int, piece: bytes, lost: int) -> bool:
        if lost and not self._file.closed:
            log.error(
                "the recording %s ends here: the disk was too slow, and %d bytes are lost", self._path, lost
            )
            self._close()
        if piece and not self._file.closed:
            self._write(piece)
        return not self._file.closed

    def _write(self, body: bytes) -> None:
        is_full = len(body) > self._left
        rest = memoryview(body)[: self._left]  # readers leave out a step that is cut off
        self._left -= len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            log.error("the recording %s ends here: %s", self._path, error.strerror)
            is_full = False
            self._close()
        if is_full:
            log.warning("the recording %s is full and ends here", self._path)
            self._close()

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            log.error("the end of the recording %s is lost: %s", self._path, error.strerror)


# ----- what a scheduler knows of its cluster -----------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Worker:
    """The events of a connected worker: the newest of each kind, encoded."""

    joined: bytes
    draining: bytes = b""
    link: bytes = b""
    clocks: dict[int, bytes] = dataclasses.field(default_factory=dict)  # encoded clock by device
    lost: dict[int, bytes] = dataclasses.field(default_factory=dict)
    models: dict[int, bytes] = dataclasses.field(default_factory=dict)  # encoded models by id
    room: bytes = b""  # that it wants for models that it prepares

    def events(self) -> list[bytes]:
        more = [event for event in (self.link, self.draining, self.room) if event]
        return [self.joined, *self.clocks.values(), *self.models.values(), *self.lost.values(), *more]


class EncodedEvent(NamedTuple):
    """An event that is neither a request's nor an action's: its kind, its worker, and its bytes without a
    time, which is that of the step."""

    kind: type[Event]
    worker: int
    number: int  # number of the device or the model
    body: bytes

    @classmethod
    def of(cls, event: Event) -> EncodedEvent:
        """Encode an event that the scheduler is told."""
        number = 0
        match event:
            case DeviceClock() | DeviceLost():
                number = event.device
            case ModelReady():
                number = event.spec.model_id
            case ModelRemoved() | CopyLost():
                number = event.model_id
        return cls(type(event), getattr(event, "worker", 0), number, encode_event(event, event.now_ns))


class ClusterEvents:
    """Workers and the models that they have prepared, as events that make them known to a fresh scheduler."""

    def __init__(self) -> None:
        self._workers: dict[int, _Worker] = {}

    def told(self, event: EncodedEvent) -> None:
        """Take in an event that is neither a request's nor an action's."""
        kind, body = event.kind, event.body
        if kind is WorkerJoined:
            self._workers[event.worker] = _Worker(body)
            return
        if kind is ModelRemoved:
            for known in self._workers.values():
                known.models.pop(event.number, None)
            return
        worker = self._workers.get(event.worker)
        if worker is None:
            return
        if kind is WorkerLeft:
            del self._workers[event.worker]
        elif kind is WorkerDraining:
            worker.draining = body
        elif kind is LinkMeasured:
            worker.link = body
        elif kind is RoomWanted:
            worker.room = body
        elif kind is ModelKept:
            return  # where models are resident is no part of this
        elif kind is CopyLost:
            if ready := worker.models.get(event.number):
                worker.models[event.number] = without_copy(ready)
        else:
            by_number = (
                worker.clocks if kind is DeviceClock else worker.lost if kind is DeviceLost else worker.models
            )
            by_number[event.number] = body

    def copy(self) -> ClusterEvents:
        """An independent copy. Only the references of each worker's models are copied."""
        other = ClusterEvents()
        for number, worker in self._workers.items():
            clocks, lost, models = worker.clocks.copy(), worker.lost.copy(), worker.models.copy()
            other._workers[number] = dataclasses.replace(worker, clocks=clocks, lost=lost, models=models)
        return other

    def steps(self, now_ns: int) -> Iterable[bytes]:
        """The events as they would be told now, a step for each worker."""
        return (encode_told(now_ns, worker.events()) for worker in self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)


# ----- states of the scheduler ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class SchedulerState:
    """The scheduler's state at a place of the ring, between two steps."""

    place: int
    at_ns: int
    body: bytes


class States:
    """States of the scheduler that are kept with a ring, from each of which the ring can be replayed."""

    def __init__(
        self, ring: Ring, policy: str, save: Callable[[int], bytes | None], pause: Callable[[int], None]
    ) -> None:
        """save: returns the scheduler's state, of so many bytes at most. pause: has take() called between two
        decisions, when no message waits, or at the latest by a time."""
        self._ring = ring
        self._save = save
        self._pause = pause
        self._bytes_max = min(STATE_BYTES_MAX, ring.state()["bytes_max"])
        self._states: deque[SchedulerState] = deque()
        self._tried = (0, 0)  # place and time of the last attempt, or of the start
        self._next_ns = 0  # the earliest time of the next state
        self._is_paused = False
        self._spent_ns = 0  # processor time that the last state took
        self._has_states = ring.is_on and not is_scripted(policy)
        self.missing = (
            "" if self._has_states else "the policy is a class in Python, whose state only it knows"
        )
        """The reason why there is no state; "" if there is a state, or will be."""

    def look(self, now_ns: int) -> None:
        """Ask for a pause if a state is due. Called now and then."""
        if not self._has_states or self._is_paused or now_ns < self._next_ns:
            return
        ring = self._ring.state()
        place, at_ns = self._tried
        if not at_ns:
            self._tried = (place, now_ns)
        elif ring["end"] - place >= ring["bytes_max"] // STATES_MAX or (
            ring["end"] > place and now_ns - at_ns >= RECORDER_SPAN_NS // STATES_MAX
        ):
            self._is_paused = True
            self._pause(now_ns + STATE_PATIENCE_NS)

    def take(self, now_ns: int) -> None:
        """Keep the state that the scheduler has now, between two decisions."""
        self._is_paused = False
        began_ns = time.thread_time_ns()
        try:
            body = self._save(self._bytes_max)
        except ValueError as error:  # the scheduler's books are inconsistent; serving goes on without a state
            self._has_states, self.missing = False, f"the scheduler's state could not be written: {error}"
            log.error("no more states of the flight recorder: %s", self.missing)
            return
        self._spent_ns = time.thread_time_ns() - began_ns
        self._next_ns = now_ns + STATE_REST * self._spent_ns
        ring = self._ring.state()
        self._tried = (ring["end"], now_ns)
        if body is None:
            self.missing = f"the scheduler's state takes more than {self._bytes_max:,} bytes"
        else:
            self.missing = ""
            self._states.append(SchedulerState(ring["end"], now_ns, body))
        while self._states and (len(self._states) > STATES_MAX or self._states[0].place < ring["begin"]):
            self._states.popleft()

    def oldest(self, place: int) -> SchedulerState | None:
        """The first state that was taken at a place or behind it, and that steps follow."""
        end = self._ring.state()["end"]
        return next((state for state in self._states if place <= state.place < end), None)

    def describe(self) -> dict[str, Any]:
        """exact_ns: the time of the oldest step from which the ring can be replayed; 0: there is none."""
        ring = self._ring.state()
        oldest = self.oldest(ring["begin"])
        newest = self._states[-1] if self._states else None
        return {
            "exact_ns": ring["oldest_ns"] if ring["begin"] == 0 else oldest.at_ns if oldest else 0,
            "inexact": self.missing,
            "state_bytes": len(newest.body) if newest else 0,
            "state_spent_ns": self._spent_ns,
        }


# ----- dumps -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Dump:
    """A dump that was written."""

    name: str
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """The beginning of a dump, as the loop hands it to the thread that writes the dump."""

    header: Header  # header without the fields below
    tail: ClusterEvents  # the cluster where the ring began
    told: Sequence[EncodedEvent]  # events from there to the dump's beginning
    held: bytes  # residencies, see Core.held()

    def cluster(self) -> ClusterEvents:
        """The cluster where the dump begins. Consumes the tail."""
        for number, event in enumerate(self.told):
            if number % CLUSTER_EVENTS_AT_ONCE == 0:
                time.sleep(DUMP_REST_S)  # the loop needs the interpreter now and then
            self.tail.told(event)
        return self.tail

    def head(self, cluster: ClusterEvents) -> Header:
        """The header with the number of the cluster's steps and the devices' models."""
        return self.header._replace(cluster_steps=len(cluster), held=ResidentModel.of(self.held))


class Dumps:
    """The newest dumps in a directory. Only the thread that writes dumps uses it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, name: str, content: Content, ring: Ring, end: int) -> Dump:
        """Write the ring from the content's start until `end`, and drop the oldest dumps. Raises OSError."""
        cluster = content.cluster()
        header = content.head(cluster)
        self._directory.mkdir(exist_ok=True)
        for left in self._directory.glob(f"*{PARTIAL}"):
            left.unlink(missing_ok=True)  # a file left by a controller that was killed
        partial = self._directory / (name + PARTIAL)
        try:
            with partial.open("wb") as file:
                file.write(encode_header(header))
                for step in cluster.steps(ring.step_ns(header.start)):
                    file.write(step)
                    time.sleep(DUMP_REST_S)
                place = header.start
                while place < end:
                    found, chunk = ring.read(place, min(READ_BYTES, end - place))
                    if found != place:
                        raise OSError(
                            0, "the disk is too slow, and the recorder has forgotten the rest meanwhile"
                        )
                    file.write(chunk)
                    place += len(chunk)
                size = file.tell()
            partial.rename(self._directory / (name + SUFFIX))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        for old in self._files()[:-DUMPS_MAX]:
            old.unlink(missing_ok=True)
        return Dump(name + SUFFIX, size)

    def describe(self) -> list[dict[str, Any]]:
        """Name, size and age of each dump, oldest first."""
        found = [(path.name, path.stat()) for path in self._files()]
        return [{"name": name, "bytes": stat.st_size, "written_s": stat.st_mtime} for name, stat in found]

    def read(self, name: str, offset: int) -> bytes:
        """A piece of a dump. Raises FileNotFoundError, OSError."""
        with (self._directory / name).open("rb") as file:
            file.seek(offset)
            return file.read(READ_BYTES)

    def _files(self) -> list[Path]:
        try:
            found = [path for path in self._directory.iterdir() if path.suffix == SUFFIX]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


# ----- the recorder as the controller has it -------------------------------------------------------

Answered = Callable[[Any, Exception | None], None]  # Takes the answer to a query, or the error in place of it


class FlightRecorder:
    """Answers queries about the ring, and writes dumps, by itself at an alert.

    Used by the loop's thread; its files are read and written on a thread of their own.
    """

    def __init__(
        self,
        ring: Ring,
        header: Header,
        directory: Path,
        held: Callable[[], bytes],
        epoch: int,
        save: Callable[[int], bytes | None],
        pause: Callable[[int], None],
    ) -> None:
        """header: of the scheduler. directory, epoch: the controller's. held: returns the models on each
        device, as the scheduler knows them. save, pause: see States."""
        self._states = States(ring, header.policy, save, pause)
        self._epoch = epoch
        self._ring = ring
        self._header = header
        self._held = held
        self._dumps = Dumps(directory / DIRECTORY)
        self._thread = StorageThread("recorder")
        self._tail = ClusterEvents()  # the cluster where the ring begins
        self._noted: deque[tuple[int, EncodedEvent]] = (
            deque()
        )  # events in the ring, each with the place before it
        self._is_dumping = False
        self._reads = 0
        self._alert = ""
        self._alert_due_ns = 0
        self._alerted_ns = -ALERT_INTERVAL_NS
        self._burst_ns = -BURST_CALM_NS
        self._counted_ns = 0
        self._counted = (0, 0)

    def fileno(self) -> int:
        """Readable while drain() has something to do."""
        return self._thread.fileno()

    def drain(self, failed: Callable[[Exception], None]) -> None:
        self._thread.drain(failed)

    def close(self) -> None:
        self._thread.close()

    def told(self, event: Event) -> None:
        """Note an event, neither a request's nor an action's, that the scheduler is about to be told."""
        if self._ring.is_on:
            self._noted.append((self._ring.state()["end"], EncodedEvent.of(event)))
            self._advance()

    def _advance(self) -> None:
        """Fold the noted events that have left the ring into the tail."""
        begin = self._ring.state()["begin"]
        while self._noted and self._noted[0][0] < begin:
            self._tail.told(self._noted.popleft()[1])

    def paused(self, now_ns: int) -> None:
        """Keep the scheduler's state. Called in the pause between two decisions that States asked for."""
        self._states.take(now_ns)

    # ----- queries -----------------------------------------------------------------------------

    def ask(self, argument: str, now_ns: int, done: Answered) -> None:
        """Answer a query, at once or when a file has been read or written. Raises InvalidInput, Unavailable.

        argument: "" for the state of the ring; "#PLACE" for the bytes from a place on, "-NS" for those from
        the step of so many ns ago; "dump" to write a dump, "dumps" for a list, "NAME#OFFSET" for a piece of a
        dump.
        """
        name, mark, number = argument.rpartition("#")
        if argument == "":
            done(self._state(now_ns), None)
        elif argument.startswith("-") and _is_number(argument[1:]):
            self._need_ring()
            done(self._chunk(self._ring.seek(now_ns - int(argument[1:]))), None)
        elif mark and not name and _is_number(number):
            self._need_ring()
            done(self._chunk(int(number)), None)
        elif argument == "dump":
            self._dump("asked", now_ns, done)
        elif argument == "dumps":
            self._read(self._dumps.describe, done)
        elif mark and _is_number(number) and _is_name(name):
            self._read(functools.partial(self._dumps.read, name, int(number)), done)
        else:
            raise InvalidInput(f"{tell(argument)} asks nothing of the recorder: see docs/recorder.md")

    def _need_ring(self) -> None:
        if not self._ring.is_on:
            raise Unavailable("the flight recorder is off: the controller runs with --recorder-bytes 0")

    def _state(self, now_ns: int) -> dict[str, Any]:
        header = self._header._asdict() | {"options": dict(self._header.options)}
        return {
            **self._ring.state(),
            "span_ns": RECORDER_SPAN_NS,
            "now_ns": now_ns,
            "epoch": self._epoch,
            "chunk_bytes": READ_BYTES,
            **self._states.describe(),
            **{name: header[name] for name in ("policy", "memory", "options", "version")},
        }

    def _chunk(self, since: int) -> dict[str, Any]:
        place, found = self._ring.read(since, READ_BYTES)
        return {
            "place": place,
            "next": place + len(found),
            "lost": max(0, place - since),
            "end": self._ring.state()["end"],
            "epoch": self._epoch,  # places count within an epoch
            "bytes": found,  # the last key, so that codec.encode_reply() need not copy the value
        }

    def _read(self, job: Callable[[], Any], done: Answered) -> None:
        if self._reads >= READS_MAX:
            raise Unavailable(f"{READS_MAX} pieces of dumps are being read, which is the most")
        self._reads += 1

        def answered(found: Any, error: BaseException | None) -> None:
            self._reads -= 1
            if isinstance(error, OSError):
                done(None, Unavailable(f"the dump cannot be read: {error.strerror}"))
            else:
                done(found, error)  # type: ignore[arg-type]

        self._thread.submit(job, answered)

    # ----- dumps -------------------------------------------------------------------------------

    def _dump(self, why: str, now_ns: int, done: Answered) -> None:
        self._need_ring()
        if self._is_dumping:
            raise Unavailable("a dump is being written: ask again when it is")
        self._is_dumping = True
        content = self._content(*self._start(now_ns))
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{why}"
        end = self._ring.state()["end"]

        def written(dump: Dump | None, error: BaseException | None) -> None:
            self._is_dumping = False
            if isinstance(error, OSError):
                done(None, Unavailable(f"the dump cannot be written: {error.strerror}"))
            else:
                done(None if dump is None else dataclasses.asdict(dump), error)  # type: ignore[arg-type]

        self._thread.submit(functools.partial(self._dumps.write, name, content, self._ring, end), written)

    def _start(self, now_ns: int) -> tuple[int, SchedulerState | None]:
        """The place where a dump begins, and the scheduler's state there.

        The ring goes on forgetting while the dump is written, so a dump begins a little behind the ring's
        begin, unless the ring has room for the steps that come meanwhile.
        """
        self._advance()
        ring = self._ring.state()
        begin, end = ring["begin"], ring["end"]
        has_room = end - begin <= ring["bytes_max"] * 3 // 4
        is_young = now_ns - ring["oldest_ns"] <= RECORDER_SPAN_NS * 3 // 4
        if begin == 0 and has_room and is_young:
            return 0, None
        start = begin if has_room and is_young else self._ring.step_from(begin + (end - begin) // 64)
        state = self._states.oldest(start)
        return state.place if state is not None else start, state

    def _content(self, start: int, state: SchedulerState | None) -> Content:
        """The content of a dump that begins at a place of the ring."""
        header = self._header._replace(start=start)
        if state is not None:
            header = header._replace(state=state.body)
        elif start:
            header = header._replace(
                inexact=self._states.missing or "no state of the scheduler was kept in time"
            )
        told = [event for _, event in itertools.takewhile(lambda noted: noted[0] < start, self._noted)]
        return Content(header, self._tail.copy(), told, self._held())

    # ----- alerts ------------------------------------------------------------------------------

    def alert(self, why: str, now_ns: int) -> None:
        """Have a dump written soon, once the ring has the steps after the cause; at most one a minute."""
        if self._ring.is_on and not self._alert and now_ns - self._alerted_ns >= ALERT_INTERVAL_NS:
            self._alert, self._alert_due_ns, self._alerted_ns = why, now_ns + ALERT_AFTER_NS, now_ns

    def beat(self, answered: int, bad: int, now_ns: int) -> None:
        """Keep a state and write a dump if they are due; raise an alert where too many requests fail.

        answered, bad: requests since the start; refused, missed and failed requests are bad.
        """
        self._states.look(now_ns)
        if now_ns - self._counted_ns >= BURST_SPAN_NS:
            good_now, bad_now = answered - self._counted[0], bad - self._counted[1]
            self._counted, self._counted_ns = (answered, bad), now_ns
            if bad_now >= BURST_LEAST and bad_now >= BURST_PART * (good_now + bad_now):
                if now_ns - self._burst_ns >= BURST_CALM_NS:
                    self.alert("burst", now_ns)
                self._burst_ns = now_ns
        if self._alert and now_ns >= self._alert_due_ns and not self._is_dumping:
            why, self._alert = self._alert, ""
            self._dump(why, now_ns, functools.partial(self._alert_written, why))

    def _alert_written(self, why: str, body: Mapping[str, Any] | None, error: Exception | None) -> None:
        if body is None:
            log.error("no dump of the flight recorder (%s): %s", why, error)
        else:
            log.warning("the flight recorder was dumped (%s): %s, %d bytes", why, body["name"], body["bytes"])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= VERSION_DIGITS_MAX and int(text) <= VERSION_MAX


def _is_name(text: str) -> bool:
    """Whether a text can be a dump's name, and is no path to another folder."""
    return (
        text.endswith(SUFFIX)
        and text.replace("-", "").replace(".", "").replace("_", "").isalnum()
        and text[0] != "."
    )
