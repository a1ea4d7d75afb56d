"""Reads gRPC messages within bounds on the parsed size; protobuf's reader has no bounds, and holds the
interpreter's lock.

A nested message of two bytes takes 130 bytes of memory, so a message of 60 MB could take gigabytes. Therefore
fields are counted before protobuf parses the message, by a walk over the wire format that follows known
messages and stops at the bound. The walk also takes out raw tensors, as views of the received bytes, so that
protobuf parses only a small rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from clockwork.config.gateway import GRPC_FIELDS_MAX, GRPC_PARSED_BYTES_MAX
from clockwork.errors import InvalidInput
from clockwork.gateway.errors import TooLarge
from clockwork.protocol import inference_pb2 as pb

NO_MESSAGE = "the message is not one of the method's type"

# wire types; no message of the service has groups (3 and 4)
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10

_RAW = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | _LENGTH
"""The tag of a raw tensor."""

_Schema: TypeAlias = dict[int, Any]  # By tag: the schema of the nested message


class SplitMessage(NamedTuple):
    """A message, and the raw tensors that were taken out of it, as views of the received bytes."""

    message: Any
    raw: list[memoryview]


class MessageReader:
    """Reads messages of one class."""

    def __init__(self, kind: Any) -> None:
        """kind: a class of inference_pb2."""
        self._kind = kind
        self._schema = _schema_of(kind.DESCRIPTOR)
        self._raw = _RAW if kind is pb.ModelInferRequest else None

    def read(self, data: bytes) -> SplitMessage:
        """Parse a message.

        Raises InvalidInput for bytes that are no such message, and TooLarge beyond the bounds.
        """
        raw: list[memoryview] = []
        pieces: list[memoryview] = []
        try:
            self._walk(data, raw, pieces)
        except IndexError:  # the bytes end within a field
            raise InvalidInput(NO_MESSAGE) from None
        parsed = data if not raw else b"".join(pieces)
        if len(parsed) > GRPC_PARSED_BYTES_MAX:
            raise TooLarge(
                f"the message has {len(parsed)} bytes besides raw_input_contents, at most {GRPC_PARSED_BYTES_MAX} are "
                "taken; send tensors as raw_input_contents"
            )
        try:
            return SplitMessage(self._kind.FromString(parsed), raw)
        except DecodeError:
            raise InvalidInput(NO_MESSAGE) from None

    def _walk(self, data: bytes, raw: list[memoryview], pieces: list[memoryview]) -> None:
        """Count the fields, and separate raw tensors from the pieces between them."""
        view = memoryview(data)
        at = begin = fields = 0
        end = len(data)
        while at < end:
            tag_at = at
            tag, first, at, fields = _field(data, at, end, self._schema, fields)
            if tag == self._raw:
                raw.append(view[first:at])
                pieces.append(view[begin:tag_at])
                begin = at
        pieces.append(view[begin:])


def _schema_of(descriptor: Any) -> _Schema:
    return {
        field.number << 3 | _LENGTH: _schema_of(field.message_type)
        for field in descriptor.fields
        if field.message_type is not None
    }


def _field(data: bytes, at: int, end: int, schema: _Schema, fields: int) -> tuple[int, int, int, int]:
    """Return the tag of the field at ``at``, begin and end of its content, and the new count of fields.

    fields: the count before; nested fields are added, too.
    """
    tag = data[at]
    at += 1
    if tag > 0x7F:
        tag, at = _varint(data, at - 1)
    fields += 1
    if fields > GRPC_FIELDS_MAX:
        raise TooLarge(
            f"the message has more than {GRPC_FIELDS_MAX} fields, which is the most; send tensors as raw_input_contents"
        )
    first = at
    kind = tag & 7
    if kind == _LENGTH:
        size = data[at]
        first = at + 1
        if size > 0x7F:
            size, first = _varint(data, at)
        at = first + size
        inner = schema.get(tag)
        if inner is not None and at <= end:
            place = first
            while place < at:
                _, _, place, fields = _field(data, place, at, inner, fields)
    elif kind == _VARINT:
        _, at = _varint(data, at)
    elif kind == _FIXED32:
        at += 4
    elif kind == _FIXED64:
        at += 8
    else:
        raise InvalidInput(NO_MESSAGE)
    if at > end:
        raise InvalidInput(NO_MESSAGE)
    return tag, first, at, fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at ``at``, and the index after it."""
    value = 0
    for place in range(_VARINT_BYTES):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise InvalidInput(NO_MESSAGE)
