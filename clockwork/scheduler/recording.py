"""Recordings: a scheduler's events, step by step, with a digest of its orders.

A recording is a sequence of msgpack objects: a header, then an array for each call of step_many(): the events,
each [number of its type, fields...], and the digest of the orders. Since schedulers are deterministic, that is
enough to repeat every decision.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from clockwork.wire.messages import Status

FORMAT = 1
"""Version of the format of recordings. Every change of the events' fields needs a new one."""

DIGEST_BYTES = 8


EVENTS: tuple[type[Any], ...] = (
    Arrived, RequestCancelled, ActionDone, WorkerJoined, WorkerLeft, WorkerDraining, LinkMeasured, ModelReady,
    ModelRemoved, Tick, DeviceLost, DeviceClock,
)  # fmt: skip
COMMANDS: tuple[type[Any], ...] = (
    SendLoad, SendUnload, SendInfer, SendProfile, SendRevoke, AnswerOk, AnswerFailed, ModelGone, Wake,
    SendFetch, SendDrop, ModelFault,
)  # fmt: skip
_EVENT_NUMBERS = {kind: number for number, kind in enumerate(EVENTS)}
_COMMAND_NUMBERS = {kind: number for number, kind in enumerate(COMMANDS)}


class Header(NamedTuple):
    """The scheduler and the program that a recording is of."""

    policy: str
    memory: str
    options: Mapping[str, float]
    version: str  # of the program that wrote it


class Step(NamedTuple):
    """A call of step_many()."""

    events: Sequence[Event]
    digest: bytes  # of its orders


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def encode_header(header: Header) -> bytes:
    return bytes(msgpack.packb([FORMAT, *header]))


def encode_step(events: Iterable[Event], commands: Iterable[Command]) -> bytes:
    """The bytes of a step."""
    return bytes(msgpack.packb([[_plain(event) for event in events], digest_of(commands)]))


def digest_of(commands: Iterable[Command]) -> bytes:
    """A hash of every field of the orders."""
    plain = [[_COMMAND_NUMBERS[type(command)], *command] for command in commands]
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
    if not isinstance(head, tuple) or len(head) != 5 or not isinstance(head[2], str):
        raise ConfigError("this is no recording of a controller")
    if head[0] != FORMAT:
        raise ConfigError(f"a recording of format {head[0]}; this program reads format {FORMAT}")
    return Header(*head[1:]), _steps(unpacker)


def _steps(unpacker: Iterable[Any]) -> Iterator[Step]:
    try:
        for number, body in enumerate(unpacker):
            try:
                events, digest = body
                step = Step([_event(event) for event in events], digest)
            except (TypeError, ValueError, IndexError, KeyError):
                raise ConfigError(f"step {number} of the recording is damaged") from None
            yield step
    except (msgpack.UnpackException, msgpack.BufferFull, ValueError) as error:
        raise ConfigError(f"the recording is damaged: {error}") from None


def _plain(event: Event) -> list[Any]:
    kind = type(event)
    if kind is Arrived:
        return [0, event.now_ns, *_fields(event.request)]  # type: ignore[union-attr]
    if kind is ModelReady:
        spec: ModelSpec = event.spec  # type: ignore[union-attr]
        fields = _fields(spec)
        fields[-1] = [_fields(point) for point in spec.profile]
        return [_EVENT_NUMBERS[kind], event.now_ns, event.worker, *fields]  # type: ignore[union-attr]
    return [_EVENT_NUMBERS[kind], *event]


def _event(body: tuple[Any, ...]) -> Event:
    kind = EVENTS[body[0]]
    if kind is Arrived:
        return Arrived(body[1], Request(*body[2:]))
    if kind is ModelReady:
        fields = [*body[3:-1], [ProfilePoint(*point) for point in body[-1]]]
        return ModelReady(body[1], body[2], ModelSpec(*fields))
    event: Event = kind(*body[1:])
    return event._replace(status=Status(event.status)) if isinstance(event, ActionDone) else event


def _fields(record: Any) -> list[Any]:
    return [getattr(record, field.name) for field in dataclasses.fields(record)]
