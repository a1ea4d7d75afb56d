"""Recordings of a scheduler: its events, step by step, and its commands.

A recording is a sequence of msgpack objects: a header, then a byte string for each call of step_many(). The
byte string, which a reader can skip, holds another msgpack object: [time, settled, events, commands]. Time is
that of the first event. All other times are differences to it, which makes most of them short; ``settled`` is
the time of the decisions. Events and commands are [number of the type, fields...]. A Wake is left out, as it
only tells when the next Tick comes; a Tick is a step without events. Schedulers are deterministic, so the
events are enough to repeat every decision.

csrc/recording/records.h, which is generated, writes the same bytes.

A recording is untrusted: the types and ranges of all fields are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack

from clockwork.config.formats import STEP_BYTES_MAX
from clockwork.errors import ConfigError
from clockwork.scheduler.types import (
    COMMANDS,
    DEVICE_SHAPE,
    EVENTS,
    MOMENTS,
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    Command,
    DeviceShape,
    Event,
    Fault,
    ModelFault,
    ModelReady,
    ModelSpec,
    ProfilePoint,
    Request,
    SendInfer,
    Tick,
    Wake,
    arena_of,
)
from clockwork.wire.messages import NEVER_NS, Reason, Status

FORMAT = 4
"""Version of the format of recordings. Every change of the fields of events or commands needs a new
version."""

FORMAT_LEAST = 2
"""The oldest version that is read. Until 3, events lack their last fields, which have defaults; the header of
2 has no ``state`` and ``inexact``."""

DIGEST_BYTES = 8
STATE_DIGEST_BYTES = 16


REASONS = ("", *Reason)
_EVENT_NUMBERS = {kind: number for number, kind in enumerate(EVENTS)}
_COMMAND_NUMBERS = {kind: number for number, kind in enumerate(COMMANDS)}
_REASON_NUMBERS = {reason: number for number, reason in enumerate(REASONS)}

_REQUEST_MOMENTS = tuple(
    place for place, field in enumerate(dataclasses.fields(Request)) if field.name in MOMENTS
)


Body = tuple[Any, ...]  # An event or a command as it is written: its number, and its fields


def _moments(kind: type[Any]) -> tuple[int, ...]:
    """Return the indices of the fields that are times of the controller's clock."""
    return tuple(place for place, name in enumerate(kind._fields) if name in MOMENTS)


_EVENT_MOMENTS = {kind: _moments(kind) for kind in EVENTS}
_COMMAND_MOMENTS = {kind: _moments(kind) for kind in COMMANDS}


class ResidentModel(NamedTuple):
    """A model that is resident on a device."""

    worker: int
    device: int
    model_id: int
    load_id: int

    @classmethod
    def of(cls, numbers: bytes) -> tuple[ResidentModel, ...]:
        """Parse the result of Core.held()."""
        return tuple(map(cls._make, struct.iter_unpack("=qqqq", numbers)))


class Header(NamedTuple):
    """The scheduler and the program that wrote a recording."""

    policy: str
    memory: str
    options: Mapping[str, float]
    version: str  # version of the program that wrote the recording
    # For a dump that does not begin at the controller's start (start > 0): the first `cluster_steps` steps
    # describe the cluster at `start`, an offset of the recorder's stream. `held` has the models on devices
    # when the dump was written.
    start: int = 0
    cluster_steps: int = 0
    held: Sequence[ResidentModel] = ()
    # The scheduler's state, for Core.restore(). It includes the first `cluster_steps` steps, so a replay
    # continues with the step after them. b"": there is no state, and `inexact` gives the reason.
    state: bytes = b""
    inexact: str = ""


class Step(NamedTuple):
    """A call of step_many()."""

    events: Sequence[Event]  # a Tick if only time has passed
    commands: Sequence[Command]  # commands of the decision, without Wakes


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def encode_header(header: Header) -> bytes:
    return bytes(msgpack.packb([FORMAT, *header._replace(state=_sealed(header.state))]))


def _sealed(state: bytes) -> bytes:
    return hashlib.blake2b(state, digest_size=STATE_DIGEST_BYTES).digest() + state if state else b""


def encode_event(event: Event, time_ns: int) -> bytes:
    """Return the bytes of an event within a step whose time is time_ns."""
    return bytes(msgpack.packb(_plain_event(event, time_ns)))


def without_copy(ready: bytes) -> bytes:
    """Return the bytes of an encoded ModelReady with ``is_stored`` False, which is its last field."""
    return bytes(ready[:-1] + _PACKER.pack(False))


def encode_step(events: Sequence[Event], commands: Iterable[Command]) -> bytes:
    """Return the bytes of a step with at least one event, of which only the last may be a Tick."""
    time_ns, settled_ns = events[0].now_ns, max(event.now_ns for event in events)
    told = [_plain_event(event, time_ns) for event in events if type(event) is not Tick]
    ordered = [_plain_command(command, time_ns) for command in commands if type(command) is not Wake]
    return bytes(msgpack.packb(msgpack.packb([time_ns, settled_ns - time_ns, told, ordered])))


def encode_told(time_ns: int, events: Sequence[bytes]) -> bytes:
    """Return the bytes of a step without commands, with events that encode_event() has encoded."""
    head = (
        _PACKER.pack_array_header(4)
        + _PACKER.pack(time_ns)
        + _PACKER.pack(0)
        + _PACKER.pack_array_header(len(events))
    )
    return bytes(msgpack.packb(b"".join([head, *events, _PACKER.pack_array_header(0)])))


_PACKER = msgpack.Packer()


def digest_of(commands: Iterable[Command]) -> bytes:
    """Return a hash of every field of the commands, except Wakes."""
    plain = [_plain_command(command, 0) for command in commands if type(command) is not Wake]
    return hashlib.blake2b(msgpack.packb(plain), digest_size=DIGEST_BYTES).digest()


def decode(file: Readable) -> tuple[Header, Iterator[Step]]:
    """Return a recording's header, and an iterator of its steps. An incomplete step at the end is left out.

    Raises ConfigError unless the file is a recording.
    """
    unpacker = msgpack.Unpacker(file, use_list=False, max_buffer_size=STEP_BYTES_MAX)
    try:
        head = next(unpacker)
    except (StopIteration, ValueError):
        raise ConfigError("this is no recording of a controller") from None
    if not isinstance(head, tuple) or len(head) < 5 or not all(type(text) is str for text in head[1:3]):
        raise ConfigError("this is no recording of a controller")
    if head[0] not in range(FORMAT_LEAST, FORMAT + 1):
        raise ConfigError(
            f"a recording of format {head[0]!r:.40}; this program reads formats {FORMAT_LEAST} to {FORMAT}"
        )
    return _header(head), _steps(unpacker)


def _header(head: Sequence[Any]) -> Header:
    try:
        header = Header(*head[1:])
        header = header._replace(
            options=dict(header.options), held=tuple(ResidentModel(*entry) for entry in header.held)
        )
    except (TypeError, ValueError):
        raise ConfigError("the head of the recording is damaged") from None
    numbers = [header.start, header.cluster_steps, *itertools.chain.from_iterable(header.held)]
    is_typed = (
        all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        and all(type(name) is str and type(value) in (int, float) for name, value in header.options.items())
        and (type(header.version), type(header.state), type(header.inexact)) == (str, bytes, str)
    )
    if not is_typed:
        raise ConfigError("the head of the recording is damaged")
    state = header.state[STATE_DIGEST_BYTES:]
    if _sealed(state) != header.state:
        raise ConfigError("the state of the scheduler in the recording is damaged")
    return header._replace(state=state)


def _steps(unpacker: Iterable[Any]) -> Iterator[Step]:
    try:
        for number, body in enumerate(unpacker):
            try:
                step = decode_step(body)
            except ValueError as error:
                raise ConfigError(f"step {number} of the recording is damaged: {error}") from None
            yield step
    except ConfigError:
        raise
    except (msgpack.UnpackException, msgpack.BufferFull, ValueError) as error:
        raise ConfigError(f"the recording is damaged: {error}") from None


class Stream:
    """Steps from a controller's flight recorder: take() gets each answer to
    Client.recorder(stream.argument)."""

    def __init__(self, since: str = "#0") -> None:
        """since: "#OFFSET", or "-NS" for nanoseconds before now; "#0" begins with the oldest step."""
        self.argument = since
        self.place = 0  # offset of the next piece
        self.lost = 0  # bytes that the recorder dropped before they were read, except before the first piece
        self.is_at_end = False  # whether the last piece was the newest
        self.epoch = 0  # epoch of the controller
        self._unpacker = self._fresh()
        self._has_begun = False

    def take(self, answer: Mapping[str, Any]) -> list[Step]:
        """Return the steps that are complete with this piece. None are returned after a restart of the
        controller; the next piece is then its oldest. Raises ConfigError for a malformed piece."""
        try:
            if self._has_begun and answer["epoch"] != self.epoch:
                self.argument, self._has_begun, self.is_at_end = "#0", False, False
                self._unpacker = self._fresh()
                return []
            self.epoch = answer["epoch"]
            place, piece, following = answer["place"], answer["bytes"], answer["next"]
            if self._has_begun and place != self.place:  # after a loss, a piece begins with a step
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
    """Decode a step from a byte string of a recording. Raises ValueError with the fault for any other
    bytes."""
    try:
        time_ns, settled, told, ordered = msgpack.unpackb(body, use_list=False)
        _TIMES.pack(time_ns, settled, time_ns + settled)
        if type(told) is not tuple or type(ordered) is not tuple:
            raise ValueError("it has no events or no commands")
    except (TypeError, ValueError, struct.error, msgpack.UnpackException) as error:
        raise ValueError(f"it is no step ({error})") from None
    events = _records(told, _EVENT_READERS, EVENTS, time_ns)
    latest_ns = max((event[0] for event in events), default=time_ns)
    if not events or (settled and latest_ns < time_ns + settled):
        events.append(Tick(time_ns + settled))
    if max(latest_ns, time_ns + settled) >= NEVER_NS:
        raise ValueError(f"its time is {max(latest_ns, time_ns + settled)} ns, not below {NEVER_NS}")
    return Step(events, _records(ordered, _COMMAND_READERS, COMMANDS, time_ns))


_TIMES = struct.Struct("<qqq")


def _records(
    bodies: Sequence[Body],
    readers: Sequence[Callable[[Body, int], Any]],
    kinds: Sequence[type[Any]],
    time_ns: int,
) -> list[Any]:
    """Return the events or commands of a step. Raises ValueError if a record differs from its declaration."""
    found = []
    for number, body in enumerate(bodies):
        try:
            found.append(readers[body[0]](body, time_ns))
        except (TypeError, ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
            is_known = type(body) is tuple and body and type(body[0]) is int and 0 <= body[0] < len(kinds)
            name = kinds[body[0]].__name__ if is_known else "nothing that is known"
            raise ValueError(f"record {number} is {name}: {error}") from None
    return found


def _plain_event(event: Event, time_ns: int) -> list[Any]:
    kind = type(event)
    if kind is Arrived:
        fields = _shifted(_fields(event.request), _REQUEST_MOMENTS, -time_ns)  # type: ignore[union-attr]
        return [0, event.now_ns - time_ns, *fields]
    if kind is ModelReady:
        spec: ModelSpec = event.spec  # type: ignore[union-attr]
        fields = _fields(spec)
        fields[-1] = [_fields(point) for point in spec.profile]
        worker = event.worker  # type: ignore[union-attr]
        is_stored = event.is_stored  # type: ignore[union-attr]
        return [_EVENT_NUMBERS[kind], event.now_ns - time_ns, worker, *fields, is_stored]
    return [_EVENT_NUMBERS[kind], *_shifted([*event], _EVENT_MOMENTS[kind], -time_ns)]


def _plain_command(command: Command, time_ns: int) -> list[Any]:
    kind = type(command)
    fields = _shifted([*command], _COMMAND_MOMENTS[kind], -time_ns)
    if kind is AnswerFailed:
        fields[2] = _REASON_NUMBERS[fields[2]]
    return [_COMMAND_NUMBERS[kind], *fields]


# ----- records as they are read --------------------------------------------------------------------

# Formats of numbers, as in the scheduler. struct packs all numbers of a record in a call, which fails if a
# value is no number or too large.
_FORMS = {
    "worker": "i", "device": "i", "model_id": "q", "action_id": "Q", "load_id": "Q", "request_id": "Q", "id": "Q", "rows": "Q",
    "bytes": "Q", "copied_bytes": "Q", "host_bytes": "Q", "store_bytes": "Q", "priority": "B", "part": "I", "mhz": "I", "batch": "I", "batch_max": "I", "version": "q",
    "page_bytes": "Q", "page_count": "I", "run_ahead": "I", "arena": "i", "slowdown_thousandths": "I",
}  # fmt: skip


def _form_of(name: str) -> str:
    return "q" if name.endswith("_ns") else _FORMS[name]


class _Numbers:
    """A check of fields of a record that are all numbers."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._form = struct.Struct("<" + "".join(_form_of(name) for name in names))

    def check(self, *values: Any) -> None:
        """Raise ValueError with the first wrong field and its value."""
        try:
            self._form.pack(*values)
        except struct.error:
            for name, value in zip(self._names, values, strict=True):
                bits = 8 * struct.calcsize("<" + _form_of(name))
                least = -(1 << bits - 1) if _form_of(name).islower() else 0
                if not isinstance(value, int) or not least <= value < least + (1 << bits):
                    raise ValueError(
                        f"{name} is {value!r:.40}, not a number from {least} to {least + (1 << bits) - 1}"
                    ) from None
            raise


def _check_type(name: str, value: Any, wanted: type) -> None:
    if type(value) is not wanted:
        raise ValueError(f"{name} is {value!r:.40}, not {_TYPE_NAMES[wanted]}")


_TYPE_NAMES = {str: "a text", bool: "true or false", tuple: "a list"}


def _check_list(name: str, value: Any, form: str) -> None:
    """Raise ValueError unless a value is a list of numbers that fit an array of this format."""
    _check_type(name, value, tuple)
    try:
        array(form, value)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} is {value!r:.40}: {error}") from None


@functools.lru_cache(maxsize=4096)
def _check_shape(shape: Any) -> None:
    """Check the dimensions of each input. The cache is effective, as few shapes are frequent."""
    _check_type("shape", shape, tuple)
    for dims in shape:
        _check_list("shape", dims, "q")
        if any(dim < 0 for dim in dims):
            raise ValueError(f"shape is {shape!r:.40}, with a dimension below 0")


_WORKERS_DEVICE = _Numbers(*DEVICE_SHAPE[1:])
_LEFT_OUT = (-1, 1000)  # the values of a device's last numbers where they are left out
_PROFILE_POINT = _Numbers("batch", "exec_ns")


def _check_devices(devices: Any) -> None:
    _check_type("devices", devices, tuple)
    for index, (kind, *numbers) in enumerate(devices):
        _check_type("kind", kind, str)
        left_out = len(DEVICE_SHAPE) - 1 - len(numbers)
        _WORKERS_DEVICE.check(*numbers, *_LEFT_OUT[len(_LEFT_OUT) - left_out :])
        if left_out == 1:
            _check_arena(devices, index)
        elif left_out == 0 and numbers[3] != -1:
            raise ValueError(
                f"device {index} executes from the arena of {numbers[3]}, and tells its slowdown"
            )


def _check_arena(devices: Sequence[DeviceShape], index: int) -> None:
    """Raise ValueError unless a device names one before it that has an arena like its own."""
    place = arena_of(devices[index])
    if not 0 <= place < index or arena_of(devices[place]) >= 0 or devices[place][:4] != devices[index][:4]:
        raise ValueError(f"device {index} executes from the arena of {place}, which has none like its own")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "devices": _check_devices,
    "run_starts": functools.partial(_check_list, "run_starts", form="I"),
    "runs": functools.partial(_check_list, "runs", form="I"),
    "requests": functools.partial(_check_list, "requests", form="Q"),
    "shape": _check_shape,
    **{name: functools.partial(_check_type, name, wanted=str) for name in ("text", "name", "program")},
    **{
        name: functools.partial(_check_type, name, wanted=bool)
        for name in ("batches", "set_aside", "is_stored")
    },
}


def _checker(names: Sequence[str]) -> Callable[[Sequence[Any]], None]:
    """Return a function that checks the fields of a record, given in this order."""
    numbers = [place for place, name in enumerate(names) if name.endswith("_ns") or name in _FORMS]
    others = [(place, _CHECKS[name]) for place, name in enumerate(names) if name in _CHECKS]
    form = _Numbers(*(names[place] for place in numbers))

    def check(fields: Sequence[Any]) -> None:
        if len(fields) != len(names):
            raise ValueError(f"it has {len(fields)} fields, not {len(names)}")
        form.check(*[fields[place] for place in numbers])
        for place, check_field in others:
            check_field(fields[place])

    return check


def _reader(kind: type[Any], moments: tuple[int, ...]) -> Callable[[Body, int], Any]:
    check = _checker(kind._fields)
    names, defaults = kind._fields, kind._field_defaults

    def read(body: Body, time_ns: int) -> Any:
        fields = _shifted([*body[1:]], moments, time_ns)
        while len(fields) < len(names) and names[len(fields)] in defaults:
            fields.append(defaults[names[len(fields)]])  # older recordings have no such field
        check(fields)
        return kind(*fields)

    return read


# Records of every request have readers of their own, which take half the time.

_ARRIVED = _Numbers(
    "now_ns", "id", "model_id", "rows", "bytes", "arrived_ns", "deadline_ns", "priority", "copied_bytes"
)  # fmt: skip
_ACTION_DONE = _Numbers("now_ns", "worker", "action_id", "begin_ns", "end_ns", "duration_ns", "ready_ns")
_SEND_INFER = _Numbers(
    "worker", "device", "action_id", "model_id", "load_id", "earliest_ns", "latest_ns", "expected_ns"
)
_ANSWER_OK = _Numbers(*AnswerOk._fields)
_ANSWER_FAILED = _Numbers("request_id", "feasible_slo_ns", "retry_after_ns")
_MODEL_READY = _checker(["now_ns", "worker", *(field.name for field in dataclasses.fields(ModelSpec))][:-1])
_MODEL_READY_LEAST = 3 + len(dataclasses.fields(ModelSpec))  # elements without is_stored
_MODEL_FAULT = _checker(["model_id", "worker"])


def _arrived(body: Body, time_ns: int) -> Arrived:
    at_ns, number, model, rows, shape, size, arrived_ns, deadline_ns, priority, *more = body[1:]
    [copied] = more or [0]  # older recordings have no such field
    at_ns, arrived_ns, deadline_ns = at_ns + time_ns, arrived_ns + time_ns, deadline_ns + time_ns
    _ARRIVED.check(at_ns, number, model, rows, size, arrived_ns, deadline_ns, priority, copied)
    _check_shape(shape)
    return Arrived(
        at_ns, Request(number, model, rows, shape, size, arrived_ns, deadline_ns, priority, copied)
    )


def _action_done(body: Body, time_ns: int) -> ActionDone:
    at_ns, worker, action, status, text, begin_ns, end_ns, duration_ns, ready_ns = body[1:]
    at_ns, begin_ns, end_ns, ready_ns = (
        at_ns + time_ns,
        begin_ns + time_ns,
        end_ns + time_ns,
        ready_ns + time_ns,
    )
    _ACTION_DONE.check(at_ns, worker, action, begin_ns, end_ns, duration_ns, ready_ns)
    _check_type("text", text, str)
    return ActionDone(at_ns, worker, action, _status(status), text, begin_ns, end_ns, duration_ns, ready_ns)


def _model_ready(body: Body, time_ns: int) -> ModelReady:
    *told, is_stored = (
        body if len(body) > _MODEL_READY_LEAST else (*body, True)
    )  # older recordings have no such field
    _MODEL_READY([told[1] + time_ns, *told[2:-1]])
    _check_type("is_stored", is_stored, bool)
    points = [ProfilePoint(*point) for point in told[-1]]
    for point in points:
        _check_shape(point.shape)
        _PROFILE_POINT.check(point.batch, point.exec_ns)
    fields = [*told[3:-1], points]
    return ModelReady(told[1] + time_ns, told[2], ModelSpec(*fields), is_stored)


def _send_infer(body: Body, time_ns: int) -> SendInfer:
    worker, device, action, model, load, requests, earliest_ns, latest_ns, expected_ns = body[1:]
    earliest_ns, latest_ns = earliest_ns + time_ns, latest_ns + time_ns
    _SEND_INFER.check(worker, device, action, model, load, earliest_ns, latest_ns, expected_ns)
    _check_list("requests", requests, "Q")
    return SendInfer(worker, device, action, model, load, requests, earliest_ns, latest_ns, expected_ns)


def _answer_ok(body: Body, time_ns: int) -> AnswerOk:
    _ANSWER_OK.check(*body[1:])
    return AnswerOk._make(body[1:])


def _answer_failed(body: Body, time_ns: int) -> AnswerFailed:
    request, status, reason, text, feasible_slo_ns, retry_after_ns = body[1:]
    _ANSWER_FAILED.check(request, feasible_slo_ns, retry_after_ns)
    _check_type("text", text, str)
    if type(reason) is not int or not 0 <= reason < len(REASONS):
        raise ValueError(f"reason is {reason!r:.40}, not a number from 0 to {len(REASONS) - 1}")
    return AnswerFailed(request, _status(status), REASONS[reason], text, feasible_slo_ns, retry_after_ns)


def _model_fault(body: Body, time_ns: int) -> ModelFault:
    model, worker, fault, set_aside = body[1:]
    _MODEL_FAULT((model, worker))
    _check_type("set_aside", set_aside, bool)
    return ModelFault(model, worker, Fault(fault), set_aside)


def _status(number: Any) -> Status:
    status = _STATUSES.get(number)
    if status is None:
        raise ValueError(f"status is {number!r:.40}, which is none")
    return status


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
    kind = type(record)
    names = _NAMES.get(kind)
    if names is None:
        names = _NAMES[kind] = tuple(field.name for field in dataclasses.fields(record))
    return [getattr(record, name) for name in names]


_NAMES: dict[type, tuple[str, ...]] = {}  # the fields of each record: dataclasses.fields() takes longer
