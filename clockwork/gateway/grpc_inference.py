"""Inferences over gRPC: from messages to requests, and from answers to the pieces of messages."""

from __future__ import annotations

import array
import math
from collections.abc import Collection
from typing import Any

from clockwork.config import SECONDS_MAX
from clockwork.config.gateway import ELEMENTS_AT_ONCE
from clockwork.errors import DeadlineMissed, InvalidInput
from clockwork.gateway.aside import Aside
from clockwork.gateway.classification import class_count
from clockwork.gateway.regions import REGION, Shared
from clockwork.gateway.service import (
    Inference,
    least,
    priority_of,
    reference_of,
    refuse_sequences,
    timeout_of,
)
from clockwork.gateway.split import SplitMessage
from clockwork.gateway.tensors import check_size, checked_shape, code_of
from clockwork.protocol import inference_pb2 as pb
from clockwork.protocol.datatypes import NAME_OF
from clockwork.system.clock import to_ns
from clockwork.wire import tensors
from clockwork.wire.messages import NamedTensorRef
from clockwork.wire.references import name_of
from clockwork.wire.transport import Frame

ROUNDED_UP = 0.99
"""Factor for a call's deadline. gRPC rounds the deadline up to three digits on the wire, and an answer after
the client's own deadline is useless."""

WANTS_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"
"""The parameters by which a request asks that its last answer be marked, and by which an answer is marked."""

_RAW_OUTPUT = b"\x32"  # The tag of ModelInferResponse.raw_output_contents

_CONTENTS: dict[int, tuple[str, str]] = {
    tensors.UINT8: ("uint_contents", "B"), tensors.UINT16: ("uint_contents", "H"),
    tensors.UINT32: ("uint_contents", "I"), tensors.UINT64: ("uint64_contents", "Q"),
    tensors.INT8: ("int_contents", "b"), tensors.INT16: ("int_contents", "h"),
    tensors.INT32: ("int_contents", "i"), tensors.INT64: ("int64_contents", "q"),
    tensors.FLOAT: ("fp32_contents", "f"), tensors.DOUBLE: ("fp64_contents", "d"),
    tensors.BOOL: ("bool_contents", "B"),
}  # fmt: skip
"""By datatype: the field of elements that are not sent raw, and their type code in Python's array."""


def parameters_of(message: Any) -> dict[str, Any]:
    """Return the parameters of a request or a tensor as values of JSON."""
    found = {}
    for key, value in message.parameters.items():
        choice = value.WhichOneof("parameter_choice")
        found[key] = getattr(value, choice) if choice is not None else None
    return found


def wants_final(request: Any) -> bool:
    """Whether a request asks that its last answer be marked; each answer is its request's last."""
    return WANTS_FINAL in request.parameters and request.parameters[WANTS_FINAL].bool_param


def converted_bytes(request: Any, frames: list[Frame]) -> int:
    """Return the bytes of the elements in a message: protobuf's copy and the frames made of it."""
    return 2 * sum(len(frame) for tensor, frame in zip(request.inputs, frames) if tensor.HasField("contents"))


async def inference_of(read: SplitMessage, left_s: float | None, shared: Shared, reading: Aside) -> Inference:
    """Return the inference that a message asks for.

    left_s: time until the call's deadline. Raises InvalidInput.
    """
    request, raw = read
    timeout_ns = priority = 0
    if request.parameters:
        parameters = parameters_of(request)
        refuse_sequences(parameters)
        timeout_ns = timeout_of(parameters.get("timeout", 0), "parameter timeout")
        priority = priority_of(parameters)
    if left_s is not None:
        if left_s <= 0:
            raise DeadlineMissed("the call's deadline passed before the request was read")
        if left_s < SECONDS_MAX:
            timeout_ns = least(timeout_ns, max(1, to_ns(left_s * ROUNDED_UP)))
    references: list[NamedTensorRef] = []
    frames: list[Frame] = []
    remote = [REGION in tensor.parameters for tensor in request.inputs]
    if raw and len(raw) != remote.count(False):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} tensors for {remote.count(False)} inputs",
            expected=str(remote.count(False)), got=str(len(raw)),
        )  # fmt: skip
    contents = iter(raw)
    for index, tensor in enumerate(request.inputs):
        name = tensor.name
        code = code_of(tensor.datatype, name)
        shape = checked_shape(list(tensor.shape), name)
        if remote[index]:
            if tensor.HasField("contents"):
                raise InvalidInput(f"input {name!r} is in shared memory, and in the request as well", name)
            shared.input(parameters_of(tensor), code, shape, name, index)
            frame: Frame = b""  # empty until Shared.read()
        elif raw:
            if tensor.HasField("contents"):
                raise InvalidInput(f"input {name!r} has contents, and raw_input_contents as well", name)
            frame = next(contents)
            check_size(code, shape, len(frame), name)
        else:
            elements = _elements_of_contents(code, shape, tensor.contents, name)
            if len(elements) <= ELEMENTS_AT_ONCE:
                frame = _frame_of(code, elements, name)
            else:
                frame = await reading.run(len(elements), _frame_of, code, elements, name)
        references.append([name, code, shape, index])
        frames.append(frame)
    classes: dict[str, int] = {}
    for output in request.outputs:
        if output.parameters:
            its = parameters_of(output)
            if count := class_count(its.get("classification", 0), output.name):
                classes[output.name] = count
                if REGION in its:
                    raise InvalidInput(f"output {output.name!r}: classes are not written to shared memory")
            if REGION in its:
                shared.output(its, output.name)
    return Inference(
        reference_of(request.model_name, request.model_version), request.id, references, frames,
        # Each name once: a name is cheaper than the output that it asks for
        list(dict.fromkeys(output.name for output in request.outputs)),
        timeout_ns, priority, classes,
    )  # fmt: skip


def _elements_of_contents(code: int, shape: list[int], contents: Any, name: str) -> Any:
    """Return the elements of an input that is not sent raw. Raises InvalidInput if their number is wrong."""
    count = math.prod(shape)
    if code == tensors.STRING:
        elements = contents.bytes_contents
    elif code in _CONTENTS:
        elements = getattr(contents, _CONTENTS[code][0])
    else:
        raise InvalidInput(
            f"input {name!r} of datatype {NAME_OF[code]} is sent as raw_input_contents",
            name,
            "raw_input_contents",
        )
    if len(elements) != count:
        raise InvalidInput(
            f"input {name!r} of shape {shape} has {count} elements, got {len(elements)}",
            name, f"{count} elements", f"{len(elements)} elements",
        )  # fmt: skip
    return elements


def _frame_of(code: int, elements: Any, name: str) -> Frame:
    """Return the raw bytes of elements, made in pieces so that none holds the interpreter's lock for long."""
    if code == tensors.STRING:
        return tensors.join_strings(list(elements))
    found = array.array(_CONTENTS[code][1])
    try:
        for begin in range(0, len(elements), ELEMENTS_AT_ONCE):
            found.extend(elements[begin : begin + ELEMENTS_AT_ONCE])
    except OverflowError as error:
        raise InvalidInput(
            f"input {name!r} of datatype {NAME_OF[code]} cannot hold its contents: {error}",
            name,
            NAME_OF[code],
        ) from None
    return memoryview(found).cast("B")


def response_of(
    inference: Inference,
    chosen: list[NamedTensorRef],
    version: int,
    frames: list[Frame],
    delivered: Collection[str],
    tells_final: bool,
) -> tuple[list[Any], int]:
    """Return the pieces of a ModelInferResponse, and the bytes of tensors in it.

    delivered: the outputs that were written to shared memory. tells_final: mark the answer as its request's
    last.

    protobuf would copy the tensors into its message and out of it again. Instead the tensors follow the
    message's bytes as encoded fields.
    """
    sent = 0
    response = pb.ModelInferResponse(
        model_name=name_of(inference.model), model_version=str(version), id=inference.request_id
    )
    if tells_final:
        response.parameters[FINAL].bool_param = True
    raw: list[Any] = []
    for name, code, shape, frame in chosen:
        response.outputs.add(name=name, datatype=NAME_OF[code], shape=shape)
        # An output in shared memory has an empty entry, because clients find an output's entry by its index.
        content = b"" if name in delivered else frames[frame]
        raw += [*begun(_RAW_OUTPUT, len(content)), content]
        sent += len(content)
    return [response.SerializeToString(), *raw], sent


def begun(tag: bytes, size: int) -> tuple[bytes, bytes]:
    """Return the beginning of a field of ``size`` bytes: its tag, and its length as a varint."""
    found = bytearray()
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return tag, bytes(found)
