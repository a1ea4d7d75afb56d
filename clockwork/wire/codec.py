"""Encodes headers to bytes and decodes them. The frames behind a header are never touched here.

Decoding trusts nothing: the tag must belong to the direction, and every field must have the form that its
message declares for it (clockwork.wire.forms), before any value is built of it.
"""

from __future__ import annotations

import struct
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from clockwork.config.wire import UNKNOWN_FIELDS_MAX
from clockwork.errors import ClockworkError
from clockwork.wire.forms import INT64_MAX, Text, forms_of
from clockwork.wire.messages import (
    EXACT,
    FROM_CLIENT,
    FROM_WORKER,
    TAG_OF,
    TO_CLIENT,
    TO_WORKER,
    Reply,
    bytes_max_of,
)

try:
    import clockwork.wire._codec as reader
except ModuleNotFoundError:  # clockwork-client alone has no compiled part
    import clockwork.wire._plain_codec as reader  # type: ignore[no-redef]


LONG_BYTES = 16 << 10  # Bytes that are worth more than a copy of them: 0.5 us for each copy


class WireError(ClockworkError):
    """A header that is no valid message; the text says why."""


class UnknownKind(WireError):
    """A message of a kind that this release does not know in its direction, as a later one may send it."""


class HeaderFlaw(NamedTuple):
    """The first place at which a header differs from its message's declaration, found by a reader other than
    decode(): csrc/wire/messages.cpp reads the headers of messages that C++ receives."""

    tag: int  # tag of the message
    kind: str  # a word of HEADER_FLAW_NAMES in csrc/controller/flaws.h
    fields: int  # the number of fields that it has
    path: tuple[int, ...]  # the number of the field, of the element or field in it, and so on
    offset: int  # offset in the header of the value that differs from its declaration


class MessageTooLarge(ClockworkError):
    """A message that is too large for its receiver; the text gives its size and the bound."""


_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(message: tuple[Any, ...]) -> bytes:
    """The header frame of a message. Raises MessageTooLarge. Too long a sentence for people is cut."""
    kind = type(message)
    for place, bytes_max in _CUT.get(kind, ()):
        if len(message[place]) > bytes_max // 4:
            message = _with_cut(message, place, bytes_max)
    header = typing.cast(bytes, _pack((TAG_OF[kind], *message)))
    if len(header) > bytes_max_of(kind):
        raise MessageTooLarge(
            f"a {kind.__name__} of {len(header)} bytes, of which at most {bytes_max_of(kind)} are sent"
        )
    return header


def encode_reply(message: Reply) -> tuple[bytes, bytes]:
    """The header frame of a reply in two pieces.

    If the body is long bytes, or its last value is, these bytes are the second piece, without a copy; else
    the second piece is empty. Raises MessageTooLarge.
    """
    body = message.body
    last = (
        body if type(body) is bytes else next(reversed(body.values()), None) if type(body) is dict else None
    )
    if type(last) is not bytes or len(last) < LONG_BYTES:
        return encode(message), b""
    short = b"" if last is body else {**body, next(reversed(body)): b""}
    head = encode(message._replace(body=short)).removesuffix(_EMPTY) + _BIN32.pack(0xC6, len(last))
    if len(head) + len(last) > bytes_max_of(Reply):
        raise MessageTooLarge(
            f"a Reply of {len(head) + len(last)} bytes, of which at most {bytes_max_of(Reply)} are sent"
        )
    return head, last


_BIN32 = struct.Struct(">BI")  # msgpack's head of long bytes
_EMPTY = msgpack.packb(b"")


def decode(header: Any, table: Mapping[int, type]) -> Any:
    """The message in a header frame (bytes-like). table: its direction's kinds, by tag. Raises WireError."""
    try:
        return reader.read(header, _LAYOUTS[id(table)])
    except reader.OddKind as error:
        raise UnknownKind(str(error)) from None
    except reader.Odd as error:
        raise WireError(str(error)) from None


def complaint(header: Any, table: Mapping[int, type], flaw: HeaderFlaw) -> str:
    """The sentence of decode() about a header with this flaw."""
    return reader.complaint(header, _LAYOUTS[id(table)][flaw.tag], *flaw[1:])


def check(message: tuple[Any, ...]) -> bytes:
    """Encode a message made of untrusted data. Raises WireError if no receiver would decode it."""
    try:
        header = encode(message)
        reader.read(header, {TAG_OF[type(message)]: _ALL[type(message)]})
    except (reader.Odd, MessageTooLarge) as error:
        raise WireError(str(error)) from None
    return header


def addressee(header: Any, table: Mapping[int, type]) -> tuple[type | None, int]:
    """The kind of a message that decode() refuses, and the id of the request, action or model in its first
    field, so that its sender can be answered. (None, 0) where they cannot be read. Of a kind that is not
    known, the first field is taken for the id."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(bytes(memoryview(header)[:_BEGINNING_BYTES]))
    try:
        unpacker.read_array_header()
        tag, number = unpacker.unpack(), unpacker.unpack()
        kind = table.get(tag)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None, 0
    if kind is not None and typing.cast(Any, kind)._fields[:1] not in (
        ("request_id",),
        ("action_id",),
        ("model_id",),
    ):
        return None, 0
    return (
        (kind, number) if type(tag) is int and type(number) is int and 0 <= number <= INT64_MAX else (None, 0)
    )


_BEGINNING_BYTES = 32  # an array's head, a tag and a number take less


def _with_cut(message: tuple[Any, ...], place: int, bytes_max: int) -> tuple[Any, ...]:
    text = message[place].encode(errors="replace")[:bytes_max].decode(errors="ignore")
    return (  # type: ignore[no-any-return]
        type(message)._make((*message[:place], text, *message[place + 1 :]))  # type: ignore[attr-defined]
    )


_FORMS = {kind: forms_of(kind) for kind in TAG_OF}


def tolerance(kind: type) -> tuple[tuple[Any, ...], int]:
    """The defaults of a kind's last fields, which may be missing, and how many unknown ones may follow."""
    if kind in EXACT:
        return (), 0
    return tuple(typing.cast(Any, kind)._field_defaults.values()), UNKNOWN_FIELDS_MAX


_ALL = {
    kind: reader.Layout(kind, forms, bytes_max_of(kind), *tolerance(kind)) for kind, forms in _FORMS.items()
}
_LAYOUTS = {
    id(table): {tag: _ALL[kind] for tag, kind in table.items()}
    for table in (FROM_CLIENT, TO_CLIENT, FROM_WORKER, TO_WORKER)
}
_CUT = {
    kind: [
        (at, text.bytes_max) for at, text in enumerate(forms.values()) if type(text) is Text and text.is_cut
    ]
    for kind, forms in _FORMS.items()
}
