"""Reads JSON of megabytes within bounds, in pieces that hold the interpreter's lock for some milliseconds.

The json module's C reader lets no other thread run until it is done: eight megabytes block the event loop for
up to a second, whichever thread reads them. The module's Python reader lets others run, but takes about a
second for each megabyte of numbers. Here the Python reader handles lists and objects, and passes lists of
numbers to the C reader in pieces. Lists and objects are counted first, because the garbage collector visits
each of them.
"""

from __future__ import annotations

import json
import json.scanner
import re
from typing import Any

from clockwork.config import TENSORS_MAX
from clockwork.config.gateway import JSON_AT_ONCE_BYTES, JSON_CONTAINERS_MAX
from clockwork.errors import InvalidInput
from clockwork.gateway.errors import TooLarge
from clockwork.gateway.tensors import checked_shape, code_of, frame_of_json
from clockwork.wire import telling

_SCALARS = re.compile(r'[^\[\]{}"]*')  # Numbers and literals, and the characters between them

_decoder: Any = json.decoder
_scanner: Any = json.scanner


class _Decoder(json.JSONDecoder):
    """The json module's decoder in Python, with lists read in pieces."""

    def __init__(self, at_once: int) -> None:
        """at_once: characters that a piece has."""
        super().__init__()
        self._at_once = at_once
        self.parse_array = self._parse_array
        self.scan_once = _scanner.py_make_scanner(self)

    def _parse_array(self, text_and_begin: tuple[str, int], scan_once: Any) -> tuple[list[Any], int]:
        """Return the list whose first element is at ``begin``, and the index of its end."""
        text, at = text_and_begin
        match = _SCALARS.match(text, at)
        assert match is not None
        end = match.end()
        if text[end : end + 1] != "]":  # the list has lists, objects or strings, or does not end
            found: tuple[list[Any], int] = _decoder.JSONArray(text_and_begin, scan_once)
            return found
        elements: list[Any] = []
        while at <= end:
            cut = self._cut(text, at, end)
            try:
                piece = json.loads(f"[{text[at:cut]}]")
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, text, at + error.pos - 1) from None
            if not piece and (elements or cut < end):  # there is nothing between two commas
                raise json.JSONDecodeError("Expecting value", text, at)
            elements += piece
            at = cut + 1
        return elements, end + 1

    def _cut(self, text: str, begin: int, end: int) -> int:
        """Return the index of the comma that ends the piece of ``text`` from ``begin`` on, or ``end``."""
        if end - begin <= self._at_once:
            return end
        comma = text.rfind(",", begin, begin + self._at_once)
        if comma < 0:
            comma = text.find(",", begin + self._at_once, end)
        return comma if comma >= 0 else end


def read_object(body: bytes | bytearray, subject: str, at_once: int = JSON_AT_ONCE_BYTES) -> dict[str, Any]:
    """Return the object in JSON of any length, read in pieces of ``at_once`` bytes.

    Raises InvalidInput, TooLarge.
    """
    try:
        if len(body) <= at_once:
            value = json.loads(body)
        else:
            containers = body.count(b"[") + body.count(b"{")
            if containers > JSON_CONTAINERS_MAX:
                raise TooLarge(
                    f"{subject} has {containers} lists and objects, at most {JSON_CONTAINERS_MAX} are taken; send flat or "
                    "binary data"
                )
            value = _Decoder(at_once).decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{subject} is no JSON: {str(error)[:200]}") from None
    if type(value) is not dict:
        raise InvalidInput(f"{subject} is a JSON object, got {telling.tell(value)}")
    return value


def read_inference(body: bytes | bytearray, subject: str) -> dict[str, Any]:
    """Return the object in a request's JSON, as read_object(); inputs' data become frames or errors."""
    fields = read_object(body, subject)
    rows = fields.get("inputs")
    if type(rows) is list and len(rows) <= TENSORS_MAX:
        for row in rows:
            if type(row) is dict and type(row.get("data")) is list and type(name := row.get("name")) is str:
                try:
                    code, shape = code_of(row.get("datatype"), name), checked_shape(row.get("shape"), name)
                    row["data"] = frame_of_json(code, shape, row["data"], name)
                except InvalidInput as error:
                    row["data"] = error.with_traceback(None)  # the traceback would hold the elements
    return fields
