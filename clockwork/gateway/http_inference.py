"""Encodes inferences for HTTP: JSON, whose tensors are lists in the JSON or binary data after it.

The module does no I/O: it makes an Inference from a request's bytes, and a response's bytes from an Answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from clockwork.client.calls import request_of
from clockwork.config import TENSORS_MAX
from clockwork.config.gateway import JSON_ANSWER_BYTES_MAX, JSON_BYTES_MAX, LISTED_AT_ONCE_BYTES
from clockwork.errors import InvalidInput
from clockwork.gateway.classification import class_count
from clockwork.gateway.errors import REQUEST, TooLarge
from clockwork.gateway.regions import REGION, Shared
from clockwork.gateway.service import (
    Inference,
    least,
    priority_of,
    reference_of,
    refuse_sequences,
    timeout_of,
)
from clockwork.gateway.tensors import Listed, check_size, checked_shape, code_of, frame_of_json
from clockwork.protocol.datatypes import NAME_OF
from clockwork.wire import telling
from clockwork.wire.messages import Answer, NamedTensorRef
from clockwork.wire.references import name_of
from clockwork.wire.transport import Frame

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header with the length of the JSON in bytes, where binary data follows the JSON."""


class Wants:
    """The outputs that a client asked for, and their forms."""

    __slots__ = ("classes", "named", "otherwise")

    def __init__(self, named: dict[str, bool], otherwise: bool, classes: dict[str, int]) -> None:
        self.named = named  # for each named output, whether it is to be binary
        self.otherwise = otherwise  # whether outputs that are not named are to be binary
        self.classes = classes  # for each output, the number of classes that are wanted instead of values

    def binary(self, name: str) -> bool:
        return self.named.get(name, self.otherwise)


# ----- requests -------------------------------------------------------------------------------


def json_length(told: str | None, size: int) -> int:
    """Return the number of bytes of JSON at the beginning of a body of ``size`` bytes.

    told: the header HEADER_LENGTH; None: it is missing. Raises InvalidInput, TooLarge.
    """
    if not size:
        raise InvalidInput(
            "the request has no body; it is a JSON object with inputs",
            expected="a JSON object",
            got="0 bytes",
        )
    if told is None:
        length = size
    elif told.isascii() and told.isdigit() and len(told) < 12:
        length = int(told)
    else:
        length = -1
    if not 0 < length <= size:
        raise InvalidInput(
            f"{HEADER_LENGTH} {str(told)[:40]!r} for a body of {size} bytes: the bytes of JSON that it begins with",
            expected=f"1 to {size}", got=str(told)[:40],
        )  # fmt: skip
    if length > JSON_BYTES_MAX:
        raise TooLarge(f"JSON of {length} bytes, at most {JSON_BYTES_MAX} are taken; send binary data")
    return length


def inference_of(
    fields: dict[str, Any], rest: memoryview, shared: Shared, name: str, version: str, timeout_ns: int
) -> tuple[Inference, Wants]:
    """Return the inference that a request asks for, and the form of its outputs.

    rest: the binary data after the JSON. timeout_ns: the timeout in the request's headers; 0: none.
    Raises InvalidInput.
    """
    parameters = parameters_of(fields, "the request")
    refuse_sequences(parameters)
    timeout_ns = least(timeout_of(parameters.get("timeout", 0), "parameter timeout"), timeout_ns)
    request_id = fields.get("id", "")
    if type(request_id) is not str:
        raise InvalidInput(
            f"id must be a string, got {telling.tell(request_id)}", got=telling.tell(request_id)
        )
    references, frames = _inputs(fields, rest, shared)
    wants = _wants(fields, parameters, shared)
    inference = Inference(
        reference_of(name, version), request_id, references, frames, list(wants.named), timeout_ns,
        priority_of(parameters), wants.classes,
    )  # fmt: skip
    return inference, wants


def _inputs(
    fields: dict[str, Any], rest: memoryview, shared: Shared
) -> tuple[list[NamedTensorRef], list[Frame]]:
    """Return every input of a request. rest: the binary data after its JSON."""
    references: list[NamedTensorRef] = []
    frames: list[Frame] = []
    offset = 0
    for row in _listed(fields, "inputs"):
        name = row["name"]
        code = code_of(row.get("datatype"), name)
        shape = checked_shape(row.get("shape"), name)
        parameters = parameters_of(row, f"input {name!r}")
        size = parameters.get("binary_data_size")
        if REGION in parameters:
            if size is not None or "data" in row:
                raise InvalidInput(f"input {name!r} is in shared memory, and in the request as well", name)
            shared.input(parameters, code, shape, name, len(frames))
            frame: Frame = b""  # empty until Shared.read()
        elif size is None:
            frame = _frame(code, shape, row.get("data"), name)
        elif type(size) is not int or not 0 <= size <= len(rest) - offset:
            raise InvalidInput(
                f"input {name!r} has binary_data_size {repr(size)[:40]}, but {len(rest) - offset} bytes are left",
                name, f"at most {len(rest) - offset}", repr(size)[:40],
            )  # fmt: skip
        else:
            check_size(code, shape, size, name)
            frame = rest[offset : offset + size]
            offset += size
        references.append([name, code, shape, len(frames)])
        frames.append(frame)
    if offset != len(rest):
        raise InvalidInput(
            f"{len(rest) - offset} bytes follow the last input's",
            expected=f"{offset} bytes", got=f"{len(rest)} bytes",
        )  # fmt: skip
    return references, frames


def _frame(code: int, shape: list[int], data: Any, name: str) -> Frame:
    """Return the frame of an input's data, which read_inference() may have made already."""
    if isinstance(data, InvalidInput):
        raise data
    return data if isinstance(data, bytes | memoryview) else frame_of_json(code, shape, data, name)


def _wants(fields: dict[str, Any], parameters: dict[str, Any], shared: Shared) -> Wants:
    otherwise = _flag(parameters, "binary_data_output", "the request", False)
    named: dict[str, bool] = {}
    classes: dict[str, int] = {}
    if fields.get("outputs"):
        for row in _listed(fields, "outputs"):
            name = row["name"]
            its = parameters_of(row, f"output {name!r}")
            if count := class_count(its.get("classification", 0), name):
                classes[name] = count
                if REGION in its:
                    raise InvalidInput(f"output {name!r}: classes are not written to shared memory")
            if REGION in its:
                shared.output(its, name)
            named[name] = _flag(its, "binary_data", f"output {name!r}", otherwise)
    return Wants(named, otherwise, classes)


def parameters_of(fields: dict[str, Any], subject: str) -> dict[str, Any]:
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidInput(f"parameters of {subject} are a JSON object, got {telling.tell(parameters)}")
    return parameters


def _listed(fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = fields.get(key)
    if type(rows) is list and len(rows) > TENSORS_MAX:
        raise InvalidInput(
            f"{key} has {len(rows)} objects, at most {TENSORS_MAX} are taken",
            expected=f"at most {TENSORS_MAX} {key}", got=str(len(rows)),
        )  # fmt: skip
    if type(rows) is not list or not all(type(row) is dict and type(row.get("name")) is str for row in rows):
        raise InvalidInput(f"{key} must be a list of objects with a name, got {telling.tell(rows)}")
    for row in rows:
        if not row["name"].isascii():
            _check_text(row["name"], key)
    return rows


def _check_text(name: str, key: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # JSON can contain half of a surrogate pair
        raise InvalidInput(f"{key} has the name {ascii(name)[:80]}, which is no Unicode text") from None


def _flag(parameters: dict[str, Any], key: str, subject: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise InvalidInput(f"parameter {key} of {subject} must be true or false, got {telling.tell(value)}")
    return value


# ----- answers --------------------------------------------------------------------------------


def parts_of(
    inference: Inference,
    wants: Wants,
    answer: Answer,
    chosen: list[NamedTensorRef],
    frames: list[Frame],
    delivered: Collection[str],
) -> tuple[dict[str, str], list[bytes | Listed], list[Any]]:
    """Return a response: its headers, the parts of its JSON, and its binary data.

    delivered: the outputs that were written to shared memory. Raises TooLarge, and InvalidInput for an output
    that has no form in JSON.
    """
    rows: list[tuple[dict[str, Any], Listed | None]] = []
    binary: list[Any] = []
    listed_bytes = 0
    for name, code, shape, frame in chosen:
        row: dict[str, Any] = {"name": name, "datatype": NAME_OF[code], "shape": shape}
        listed: Listed | None = None
        if name in delivered:
            pass
        elif wants.binary(name):
            piece = memoryview(frames[frame])
            row["parameters"] = {"binary_data_size": piece.nbytes}
            binary.append(piece)
        else:
            listed = Listed(code, frames[frame], name)
            listed_bytes += listed.nbytes
        rows.append((row, listed))
    if listed_bytes > JSON_ANSWER_BYTES_MAX:
        raise TooLarge(
            f"the answer has {listed_bytes} bytes of tensors, at most {JSON_ANSWER_BYTES_MAX} are written as JSON; ask for "
            'binary data ("parameters": {"binary_data_output": true})'
        )
    body = {"model_name": name_of(inference.model), "model_version": str(answer.model_version)}
    request = request_of(answer)
    headers = {} if request is None else {REQUEST: str(request)}
    return (
        headers,
        _json_parts(body, rows, inference.request_id, listed_bytes <= LISTED_AT_ONCE_BYTES),
        binary,
    )


def _json_parts(
    body: dict[str, Any], rows: list[tuple[dict[str, Any], Listed | None]], request_id: str, at_once: bool
) -> list[bytes | Listed]:
    """Return an answer's JSON in parts: each list that is not written at once is a part."""
    parts: list[bytes | Listed] = []
    joined = [dumps(body)[:-1], b',"outputs":[']
    for index, (row, listed) in enumerate(rows):
        joined += [b"," if index else b"", dumps(row)[:-1]]
        if listed is not None:
            joined.append(b',"data":[')
            if at_once:
                joined.append(listed.piece(0)[0])
            else:
                parts += [b"".join(joined), listed]
                joined = []
            joined.append(b"]")
        joined.append(b"}")
    joined.append(b"]")
    if request_id:
        joined += [b',"id":', dumps(request_id)]
    joined.append(b"}")
    return [*parts, b"".join(joined)]


def dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
