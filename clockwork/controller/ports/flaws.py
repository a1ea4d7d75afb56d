"""Sentences about wrong requests and results. The exchange finds the flaws, and decides the outcomes:
csrc/controller/checks.cpp and flaws.h."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from clockwork.errors import InvalidInput
from clockwork.formats import prepared
from clockwork.wire.codec import HeaderFlaw
from clockwork.wire.messages import NEVER_NS
from clockwork.wire.shared import SHARED
from clockwork.wire.telling import no_such_input, tell
from clockwork.wire.tensors import (
    DTYPES,
    bytes_behind_strings,
    dtype_name,
    other_bytes,
    overflowing_dimensions,
    string_outside,
    too_many_bytes,
    too_many_strings,
    unknown_dtype,
    unnatural_dimension,
)


class Flaw(NamedTuple):
    """A flaw of a message. The fields that count depend on ``code``; see csrc/controller/flaws.h."""

    code: str  # a word of FLAW_NAMES
    id: int  # id of the request or action; 0: it cannot be read
    model_id: int = 0
    header: HeaderFlaw | None = None  # the message is malformed, and the other fields do not count
    inputs: tuple[str, ...] = ()  # the names of the model's inputs
    tensor: str = ""  # the name of the input or output
    declared: str = ""  # shape of the tensor as readable text
    name: str = ""  # name of the received tensor
    dtype: int = 0
    shape: tuple[int, ...] = ()
    frame: int = 0
    symbol: str = ""
    other: str = ""  # the name of another input
    expected: int = 0
    got: int = 0
    bytes: int = 0  # size of the tensor's frame


# ----- tensors -------------------------------------------------------------------------------


def _bytes_of(flaw: Flaw) -> int:
    return (flaw.got * DTYPES[flaw.dtype & ~SHARED].bits + 7) >> 3


_TENSORS: Mapping[str, Callable[[Flaw], InvalidInput]] = {
    "no_dtype": lambda flaw: unknown_dtype(flaw.got),
    "negative": lambda flaw: unnatural_dimension(flaw.got),
    "overflow": lambda flaw: overflowing_dimensions(flaw.shape),
    "too_large": lambda flaw: too_many_bytes(_bytes_of(flaw)),
    "bytes": lambda flaw: other_bytes(flaw.dtype, flaw.shape, flaw.expected, flaw.got),
    "strings": lambda flaw: too_many_strings(flaw.got),
    "string_outside": lambda flaw: string_outside(flaw.got, flaw.expected, flaw.bytes),
    "strings_end": lambda flaw: bytes_behind_strings(flaw.got, flaw.expected),
}
"""Sentences about an input or an output, which follow its name and a colon."""

# ----- requests ------------------------------------------------------------------------------


def _frames(flaw: Flaw) -> InvalidInput:
    return InvalidInput(
        f"{flaw.expected} tensors are described, {flaw.got} frames came",
        expected=f"{flaw.expected} frames",
        got=str(flaw.got),
    )


def _reference(flaw: Flaw) -> InvalidInput:
    return InvalidInput(
        "a tensor is described by [name, dtype, shape, frame of this message]",
        got=tell([flaw.name, flaw.dtype, list(flaw.shape), flaw.frame], 200),
    )


def _input(flaw: Flaw, what: str, expected: str = "", got: str = "") -> InvalidInput:
    return InvalidInput(f"input {flaw.tensor!r} {what}", flaw.tensor, expected, got)


def _dtype(flaw: Flaw) -> InvalidInput:
    expected, got = dtype_name(flaw.expected), dtype_name(flaw.got)
    return _input(flaw, f"is {expected}, got {got}", expected, got)


def _shape(flaw: Flaw) -> InvalidInput:
    got = tell(list(flaw.shape), 200)
    return _input(flaw, f"has shape {flaw.declared}, got {got}", flaw.declared, got)


def _symbol(flaw: Flaw) -> InvalidInput:
    expected, got = f"{flaw.symbol} = {flaw.expected}", f"{flaw.symbol} = {flaw.got}"
    return _input(flaw, f"has {got}, but {flaw.other!r} has {expected}", expected, got)


def _rows(flaw: Flaw) -> InvalidInput:
    expected, got = f"{flaw.expected} rows" if flaw.expected else "at least 1 row", f"{flaw.got} rows"
    return _input(flaw, f"has {got}, expected {expected}", expected, got)


_REQUESTS: Mapping[str, Callable[[Flaw], InvalidInput]] = {
    "in_use": lambda flaw: InvalidInput(f"request {flaw.id} is in use"),
    "frames": _frames,
    "reference": _reference,
    "twice": lambda flaw: _input(flaw, "came twice", "once", "twice"),
    "frame_taken": lambda flaw: _input(flaw, "names a frame that another input has"),
    "missing": lambda flaw: _input(flaw, "is missing", flaw.declared, "nothing"),
    "symbol": _symbol,
    "no_rows_axis": lambda flaw: _input(flaw, "has no axis of rows", "at least 1 axis", "a scalar"),
    "rows": _rows,
    "unseen": lambda flaw: _input(
        flaw,
        "is in shared memory, and not every worker runs on this client's machine as the same user; send its bytes",
        "bytes",
        "a reference to memory",
    ),
    "no_memory": lambda flaw: _input(flaw, "has a reference to shared memory that cannot be one"),
    "dtype": _dtype,
    "shape": _shape,
}


def _no_input(flaw: Flaw, model: str) -> InvalidInput:
    if not flaw.name and len(flaw.inputs) > 1:
        names = ", ".join(map(repr, flaw.inputs))
        text = f"{model} has {len(flaw.inputs)} inputs, {names}: a request names each of them"
        return InvalidInput(text, "", names, "an array without a name")
    return no_such_input(model, flaw.name, flaw.inputs)


def request_error(flaw: Flaw, model: str) -> InvalidInput:
    """The error of a request for this model that is well formed, and wrong."""
    if flaw.code == "no_input":
        return _no_input(flaw, model)
    if (of_request := _REQUESTS.get(flaw.code)) is not None:
        return of_request(flaw)
    error = _TENSORS[flaw.code](flaw)
    return InvalidInput(f"input {flaw.tensor!r}: {error}", flaw.tensor, error.expected, error.got)


# ----- results -------------------------------------------------------------------------------

_RESULTS: Mapping[str, Callable[[Flaw], str]] = {
    "status": lambda flaw: f"{flaw.got} is no status",
    "phases": lambda flaw: f"a result of phases that take {NEVER_NS} ns or more together",
    "frames_more": lambda flaw: f"{flaw.got} frames came with a result that names {flaw.expected}",
    "parts": lambda flaw: f"a result of {flaw.got} parts for a batch of {flaw.expected}",
    "part_tensors": lambda flaw: f"a part of {flaw.got} tensors of a model with {flaw.expected} outputs",
    "output_frame": lambda flaw: f"an output in frame {flaw.got} of a message with {flaw.expected}",
}
_OUTPUTS: Mapping[str, Callable[[Flaw], str]] = {
    "dtype": lambda flaw: prepared.other_dtype(flaw.got, flaw.expected),
    "strings": lambda flaw: prepared.too_many_strings(math.prod(flaw.shape)),
    "no_place": lambda flaw: "is not in its client's memory where it says to be",
    "output_rows": lambda flaw: prepared.other_rows(flaw.shape, flaw.expected),
    "shape": lambda flaw: prepared.other_shape(flaw.shape, flaw.declared),
}
"""Sentences about an output, which follow its name."""


def result_text(flaw: Flaw) -> str:
    """A sentence about the flaw of a result that is well formed."""
    if (of_result := _RESULTS.get(flaw.code)) is not None:
        return of_result(flaw)
    if (of_output := _OUTPUTS.get(flaw.code)) is not None:
        return f"output {tell(flaw.tensor)} {of_output(flaw)}"
    return f"output {tell(flaw.tensor)}: {_TENSORS[flaw.code](flaw)}"


SAID = frozenset((*_TENSORS, *_REQUESTS, *_RESULTS, *_OUTPUTS, "no_input"))
"""Every code that has a sentence here. The sentence of ``unserved`` is that of the controller's look-up."""
