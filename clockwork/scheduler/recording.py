"""Recordings: what a scheduler was told, step by step, and what it decided.

A recording is a sequence of msgpack objects: a header, then for each call of step_many() a byte string, so that a
reader can pass over it, of another msgpack object: [time, settled, events, commands]. Time is the first event's; all
other moments are told as the difference to it, which makes most of them short; ``settled`` is when the step decided.
Events and commands are [number of the type, fields...]. A Wake is left out: it only says when the next Tick comes, and
a Tick is a step without events. Since schedulers are deterministic, the events are enough to repeat every decision.

csrc/controller/recorder.cpp writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack

from clockwork.config.formats import STEP_BYTES_MAX
from clockwork.errors import ConfigError
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    Command,
    DeviceClock,
    DeviceLost,
    Event,
    Fault,
    LinkMeasured,
    ModelFault,
    ModelGone,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    ProfilePoint,
    Request,
    RequestCancelled,
    SendDrop,
    SendFetch,
    SendInfer,
    SendLoad,
    SendProfile,
    SendRevoke,
    SendUnload,
    Tick,
    Wake,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.messages import Reason, Status

FORMAT = 2
"""Version of the format of recordings. Every change of the events' and commands' fields needs a new one."""

DIGEST_BYTES = 8


EVENTS: tuple[type[Any], ...] = (
    Arrived, RequestCancelled, ActionDone, WorkerJoined, WorkerLeft, WorkerDraining, LinkMeasured, ModelReady,
    ModelRemoved, Tick, DeviceLost, DeviceClock,
)  # fmt: skip
COMMANDS: tuple[type[Any], ...] = (
    SendLoad, SendUnload, SendInfer, SendProfile, SendRevoke, AnswerOk, AnswerFailed, ModelGone, Wake,
    SendFetch, SendDrop, ModelFault,
)  # fmt: skip
REASONS = ("", *Reason)
_EVENT_NUMBERS = {kind: number for number, kind in enumerate(EVENTS)}
_COMMAND_NUMBERS = {kind: number for number, kind in enumerate(COMMANDS)}
_REASON_NUMBERS = {reason: number for number, reason in enumerate(REASONS)}

_MOMENTS = (
    "now_ns",
    "begin_ns",
    "end_ns",
    "ready_ns",
    "arrived_ns",
    "deadline_ns",
    "earliest_ns",
    "latest_ns",
)
_REQUEST_MOMENTS = tuple(
    place for place, field in enumerate(dataclasses.fields(Request)) if field.name in _MOMENTS
)


Body = tuple[Any, ...]
"""An event or a command as it is written: its number, and its fields."""


def _moments(kind: type[Any]) -> tuple[int, ...]:
    """Places of the fields that are moments of the controller's clock."""
    return tuple(place for place, name in enumerate(kind._fields) if name in _MOMENTS)


_EVENT_MOMENTS = {kind: _moments(kind) for kind in EVENTS}
_COMMAND_MOMENTS = {kind: _moments(kind) for kind in COMMANDS}


class Held(NamedTuple):
    """A model that is resident on a device."""

    worker: int
    device: int
    model_id: int
    load_id: int


class Header(NamedTuple):
    """The scheduler and the program that a recording is of."""

    policy: str
    memory: str
    options: Mapping[str, float]
    version: str  # of the program that wrote it
    # Of a dump that does not begin at the controller's start (start > 0): the first so many steps tell of the cluster as it
    # was at `start`, a place of the recorder's stream; and `held` is what devices held when the dump was written.
    start: int = 0
    cluster_steps: int = 0
    held: Sequence[Held] = ()


class Step(NamedTuple):
    """A call of step_many()."""

    events: Sequence[Event]  # a Tick where it was only time
    commands: Sequence[Command]  # without any Wake


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def encode_header(header: Header) -> bytes:
    return bytes(msgpack.packb([FORMAT, *header]))


def encode_event(event: Event, time_ns: int) -> bytes:
    """The bytes of one event, within a step of that time."""
    return bytes(msgpack.packb(_plain_event(event, time_ns)))


def encode_step(events: Sequence[Event], commands: Iterable[Command]) -> bytes:
    """The bytes of a step of at least one event, none but the last of them a Tick."""
    time_ns, settled_ns = events[0].now_ns, max(event.now_ns for event in events)
    told = [_plain_event(event, time_ns) for event in events if type(event) is not Tick]
    ordered = [_plain_command(command, time_ns) for command in commands if type(command) is not Wake]
    return bytes(msgpack.packb(msgpack.packb([time_ns, settled_ns - time_ns, told, ordered])))


def digest_of(commands: Iterable[Command]) -> bytes:
    """A hash of every field of the commands, but for Wakes."""
    plain = [_plain_command(command, 0) for command in commands if type(command) is not Wake]
    return hashlib.blake2b(msgpack.packb(plain), digest_size=DIGEST_BYTES).digest()


def decode(file: Readable) -> tuple[Header, Iterator[Step]]:
    """A recording's header, and its steps as they are read. An incomplete step at the end is left out.

    Raises ConfigError unless the file is a recording.
    """
    unpacker = msgpack.Unpacker(file, use_list=False, max_buffer_size=STEP_BYTES_MAX)
    try:
        head = next(unpacker)
    except (StopIteration, ValueError):
        raise ConfigError("this is no recording of a controller") from None
    if not isinstance(head, tuple) or len(head) < 5 or not all(type(text) is str for text in head[1:3]):
        raise ConfigError("this is no recording of a controller")
    if head[0] != FORMAT:
        raise ConfigError(f"a recording of format {head[0]}; this program reads format {FORMAT}")
    try:
        header = Header(*head[1:])
        header = header._replace(options=dict(header.options), held=tuple(Held(*one) for one in header.held))
    except (TypeError, ValueError):
        raise ConfigError("the head of the recording is damaged") from None
    numbers = [header.start, header.cluster_steps, *itertools.chain.from_iterable(header.held)]
    if any(type(number) is not int for number in numbers):
        raise ConfigError("the head of the recording is damaged")
    return header, _steps(unpacker)


def _steps(unpacker: Iterable[Any]) -> Iterator[Step]:
    try:
        for number, body in enumerate(unpacker):
            try:
                step = decode_step(body)
            except (TypeError, ValueError, IndexError, KeyError):
                raise ConfigError(f"step {number} of the recording is damaged") from None
            yield step
    except ConfigError:
        raise
    except (msgpack.UnpackException, msgpack.BufferFull, ValueError) as error:
        raise ConfigError(f"the recording is damaged: {error}") from None


class Stream:
    """Steps from a controller's flight recorder, piece by piece: give take() what Client.recorder(stream.argument) answers."""

    def __init__(self, since: str = "#0") -> None:
        """since: "#PLACE", or "-NS" for so many nanoseconds before now; "#0" begins with the oldest that is kept."""
        self.argument = since
        self.place = 0  # where the next piece begins
        self.lost = 0  # bytes that the recorder forgot before they were read, but for the first piece
        self.is_at_end = False  # the last piece was the newest
        self.epoch = 0  # of the controller
        self._unpacker = self._fresh()
        self._has_begun = False

    def take(self, answer: Mapping[str, Any]) -> list[Step]:
        """The steps that are complete with this piece; where the controller is another one by now, none, and the next piece
        is the first that it has. Raises ConfigError where this is no piece of a recorder's."""
        try:
            if self._has_begun and answer["epoch"] != self.epoch:
                self.argument, self._has_begun, self.is_at_end = "#0", False, False
                self._unpacker = self._fresh()
                return []
            self.epoch = answer["epoch"]
            place, piece, following = answer["place"], answer["bytes"], answer["next"]
            if self._has_begun and place != self.place:  # a piece begins with a step where something was lost
                self.lost += place - self.place
                self._unpacker = self._fresh()
            self._has_begun = True
            self.place, self.argument = following, f"#{following}"
            self.is_at_end = following >= answer["end"]
            self._unpacker.feed(piece)
            return [decode_step(body) for body in self._unpacker]
        except (
            TypeError,
            ValueError,
            IndexError,
            KeyError,
            msgpack.UnpackException,
            msgpack.BufferFull,
        ) as error:
            raise ConfigError(f"the recorder's answer is damaged: {error}") from None

    @staticmethod
    def _fresh() -> Any:
        return msgpack.Unpacker(use_list=False, max_buffer_size=STEP_BYTES_MAX)


def decode_step(body: bytes) -> Step:
    """The step that one byte string of a recording is. Raises TypeError, ValueError, IndexError or KeyError if it is none."""
    time_ns, settled, told, ordered = msgpack.unpackb(body, use_list=False)
    events = [_EVENT_READERS[one[0]](one, time_ns) for one in told]
    if not events or (settled and max(event[0] for event in events) < time_ns + settled):
        events.append(Tick(time_ns + settled))
    return Step(events, [_COMMAND_READERS[one[0]](one, time_ns) for one in ordered])


def _plain_event(event: Event, time_ns: int) -> list[Any]:
    kind = type(event)
    if kind is Arrived:
        fields = _shifted(_fields(event.request), _REQUEST_MOMENTS, -time_ns)  # type: ignore[union-attr]
        return [0, event.now_ns - time_ns, *fields]
    if kind is ModelReady:
        spec: ModelSpec = event.spec  # type: ignore[union-attr]
        fields = _fields(spec)
        fields[-1] = [_fields(point) for point in spec.profile]
        return [_EVENT_NUMBERS[kind], event.now_ns - time_ns, event.worker, *fields]  # type: ignore[union-attr]
    return [_EVENT_NUMBERS[kind], *_shifted([*event], _EVENT_MOMENTS[kind], -time_ns)]


def _plain_command(command: Command, time_ns: int) -> list[Any]:
    kind = type(command)
    fields = _shifted([*command], _COMMAND_MOMENTS[kind], -time_ns)
    if kind is AnswerFailed:
        fields[2] = _REASON_NUMBERS[fields[2]]
    return [_COMMAND_NUMBERS[kind], *fields]


def _reader(kind: type[Any], moments: tuple[int, ...]) -> Callable[[Body, int], Any]:
    def read(body: Body, time_ns: int) -> Any:
        return kind(*_shifted([*body[1:]], moments, time_ns))

    return read


# What comes with every request is read field by field, in half the time.


def _arrived(body: Body, time_ns: int) -> Arrived:
    at_ns, number, model, rows, shape, size, arrived_ns, deadline_ns, priority = body[1:]
    request = Request(number, model, rows, shape, size, arrived_ns + time_ns, deadline_ns + time_ns, priority)
    return Arrived(at_ns + time_ns, request)


def _action_done(body: Body, time_ns: int) -> ActionDone:
    at_ns, worker, action, status, text, begin_ns, end_ns, duration_ns, ready_ns = body[1:]
    return ActionDone(
        at_ns + time_ns, worker, action, _STATUSES[status], text, begin_ns + time_ns, end_ns + time_ns, duration_ns,
        ready_ns + time_ns,
    )  # fmt: skip


def _model_ready(body: Body, time_ns: int) -> ModelReady:
    fields = [*body[3:-1], [ProfilePoint(*point) for point in body[-1]]]
    return ModelReady(body[1] + time_ns, body[2], ModelSpec(*fields))


def _send_infer(body: Body, time_ns: int) -> SendInfer:
    worker, device, action, model, load, requests, earliest_ns, latest_ns, expected_ns = body[1:]
    return SendInfer(
        worker, device, action, model, load, requests, earliest_ns + time_ns, latest_ns + time_ns, expected_ns
    )


def _answer_ok(body: Body, time_ns: int) -> AnswerOk:
    return AnswerOk._make(body[1:])


def _answer_failed(body: Body, time_ns: int) -> AnswerFailed:
    request, status, reason, *rest = body[1:]
    return AnswerFailed(request, _STATUSES[status], REASONS[reason], *rest)


def _model_fault(body: Body, time_ns: int) -> ModelFault:
    model, worker, fault, set_aside = body[1:]
    return ModelFault(model, worker, Fault(fault), set_aside)


_READERS: dict[type[Any], Callable[[Body, int], Any]] = {
    Arrived: _arrived,
    ActionDone: _action_done,
    ModelReady: _model_ready,
    SendInfer: _send_infer,
    AnswerOk: _answer_ok,
    AnswerFailed: _answer_failed,
    ModelFault: _model_fault,
}
_STATUSES = {status.value: status for status in Status}
_EVENT_READERS = tuple(_READERS.get(kind) or _reader(kind, _EVENT_MOMENTS[kind]) for kind in EVENTS)
_COMMAND_READERS = tuple(_READERS.get(kind) or _reader(kind, _COMMAND_MOMENTS[kind]) for kind in COMMANDS)


def _shifted(fields: list[Any], places: Iterable[int], by_ns: int) -> list[Any]:
    for place in places:
        fields[place] += by_ns
    return fields


def _fields(record: Any) -> list[Any]:
    return [getattr(record, field.name) for field in dataclasses.fields(record)]
