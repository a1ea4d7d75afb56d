"""What a model takes and gives, as its package has it: the same for everybody, once the first worker has said it.

A worker's word is all that the controller has: it runs no model itself. So the first is kept, on the disk too, and
nobody else's changes it: a worker that says otherwise does not serve that model. What a worker measured (layout,
times, the largest batch that helps) is its own, and is not compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clockwork.config import (
    BATCH_SIZE_MAX,
    PROFILE_POINTS_MAX,
    RANK_MAX,
    RUN_PAGES_MAX,
    SUMMARY_TEXT_CHARS_MAX,
    TENSORS_MAX,
)
from clockwork.errors import InvalidInput
from clockwork.messages import NEVER_NS
from clockwork.models.prepared import UNKNOWN_RANK, PreparedModel, TensorSpec
from clockwork.scheduler.types import ProfilePoint
from clockwork.telling import tell
from clockwork.tensors import dtype_name

_DIMENSION_MAX = (1 << 62) - 1
_BYTES_MAX = (1 << 62) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    """Of one package. Fields are shared between models of one program."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    verified: bool  # the outputs' shapes are what the model returned, not only what its file declares
    metadata: dict[str, str]  # the ONNX file's own

    @staticmethod
    def of(prepared: PreparedModel) -> Interface:
        return Interface(prepared.inputs, prepared.outputs, prepared.outputs_verified, prepared.metadata)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "inputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.inputs],
            "outputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.outputs],
            "verified": self.verified,
            "metadata": dict(self.metadata),
        }

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Interface:
        """Inverse of to_dict(). Raises ValueError, TypeError or KeyError."""
        inputs, outputs = (
            [TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in body[side]]
            for side in ("inputs", "outputs")
        )
        try:
            check_tensors(inputs, outputs)
        except InvalidInput as error:
            raise ValueError(str(error)) from None
        return Interface(inputs, outputs, bool(body["verified"]), dict(body["metadata"]))


def difference(held: Interface, said: Interface) -> str:
    """In what a worker's word contradicts what is held, as a sentence; "" if in nothing.

    Inputs must be the same, but for what their open dimensions are called. Of outputs one worker may know more than
    another: only what both fix must be equal.
    """
    for side, ours, theirs in (("input", held.inputs, said.inputs), ("output", held.outputs, said.outputs)):
        names, said_names = [one.name for one in ours], [one.name for one in theirs]
        if names != said_names:
            return f"it has the {side}s {tell(said_names, 200)}, not {tell(names, 200)}"
        for spec, other in zip(ours, theirs):
            if spec.dtype != other.dtype:
                return f"{side} {tell(spec.name)} is {dtype_name(other.dtype)}, not {dtype_name(spec.dtype)}"
            is_input = side == "input"
            if (is_input or (held.verified and said.verified)) and not _agree(spec, other, is_input):
                return f"{side} {tell(spec.name)} is {tell(list(other.shape))}, not {tell(list(spec.shape))}"
    return ""


def _agree(ours: TensorSpec, theirs: TensorSpec, exactly: bool) -> bool:
    if UNKNOWN_RANK in (ours.shape, theirs.shape):
        return not exactly or ours.shape == theirs.shape
    if len(ours.shape) != len(theirs.shape):
        return False
    for our, their in zip(ours.shape, theirs.shape):
        both, neither = type(our) is type(their) is int, type(our) is type(their) is str
        if (both and our != their) or (exactly and not both and not neither):
            return False
    return True


def as_counted(points: Iterable[ProfilePoint], batches: bool) -> list[ProfilePoint]:
    """Measurements of a worker that does not batch a model which others do (batches), or the other way round, with
    shape and batch as requests are counted."""
    found = []
    for point in points:
        if not batches:
            found.append(ProfilePoint(tuple((point.batch, *dims) for dims in point.shape), 1, point.exec_ns))
            continue
        rows = {dims[0] if dims else 0 for dims in point.shape}
        if len(rows) == 1 and 0 < (batch := rows.pop()) <= BATCH_SIZE_MAX:
            found.append(ProfilePoint(tuple(dims[1:] for dims in point.shape), batch, point.exec_ns))
    return found


# ----- a summary from the wire -----------------------------------------------------------------------


_NUMBERS = {
    "batch_max": (1, BATCH_SIZE_MAX),
    "page_bytes": (1, 1 << 40),
    "weights_bytes": (0, _BYTES_MAX),
    "resident_bytes": (0, _BYTES_MAX),
    "load_ns": (0, NEVER_NS - 1),
}
_TEXTS = ("digest", "fingerprint", "program", "holding", "batching_note", "constants_note")


def read_summary(summary: dict[str, Any]) -> PreparedModel:
    """What a worker says of a model that it has prepared. Raises InvalidInput where it makes no sense."""
    try:
        prepared = PreparedModel.from_dict(summary | {"weights": []})
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InvalidInput(
            f"a summary that cannot be read: {type(error).__name__}: {tell(str(error))}"
        ) from None
    for name, (least, most) in _NUMBERS.items():
        _check_number(f"a summary's {name}", getattr(prepared, name), least, most)
    for name in _TEXTS:
        _check_text(f"a summary's {name}", getattr(prepared, name))
    if type(prepared.batches) is not bool or type(prepared.outputs_verified) is not bool:
        raise InvalidInput("a summary's batches and outputs_verified are booleans")
    if type(prepared.runs) is not list or len(prepared.runs) > RUN_PAGES_MAX:
        raise InvalidInput(f"a summary's runs are a list of at most {RUN_PAGES_MAX} page counts")
    for run in prepared.runs:
        _check_number("a run's page count", run, 1, RUN_PAGES_MAX)
    _check_number("a summary's pages", sum(prepared.runs), 0, RUN_PAGES_MAX)
    if len(prepared.profile) > PROFILE_POINTS_MAX:
        raise InvalidInput(f"a summary has at most {PROFILE_POINTS_MAX} measurements")
    for point in prepared.profile:
        _check_number("a measurement's batch", point.batch, 1, BATCH_SIZE_MAX)
        _check_number("a measurement's time", point.exec_ns, 0, NEVER_NS - 1)
        _check_shapes("a measurement's shape", point.shape)
    _check_shapes("a summary's example", prepared.example)
    check_tensors(prepared.inputs, prepared.outputs)
    metadata = prepared.metadata
    if type(metadata) is not dict or not all(type(one) is str for row in metadata.items() for one in row):
        raise InvalidInput("a summary's metadata are texts by name")
    return prepared


def check_tensors(*sides: Sequence[TensorSpec]) -> None:
    """Raises InvalidInput unless these could be the inputs or outputs of a model."""
    for specs in sides:
        if len(specs) > TENSORS_MAX:
            raise InvalidInput(f"a model has at most {TENSORS_MAX} inputs or outputs")
        for spec in specs:
            _check_text("a tensor's name", spec.name)
            _check_number("a tensor's dtype", spec.dtype, 0, (1 << 31) - 1)
            if len(spec.shape) > RANK_MAX:
                raise InvalidInput(f"a tensor has at most {RANK_MAX} dimensions")
            for dimension in spec.shape:
                if type(dimension) is str:
                    _check_text("a dimension's name", dimension)
                else:
                    _check_number("a dimension", dimension, 0, _DIMENSION_MAX)


def _check_shapes(what: str, shapes: Any) -> None:
    if not isinstance(shapes, list | tuple) or len(shapes) > TENSORS_MAX:
        raise InvalidInput(f"{what} has dimensions for each of at most {TENSORS_MAX} inputs")
    for dims in shapes:
        if not isinstance(dims, list | tuple) or len(dims) > RANK_MAX:
            raise InvalidInput(f"{what} has at most {RANK_MAX} dimensions for each input, not {tell(dims)}")
        for dimension in dims:
            _check_number(f"a dimension of {what}", dimension, 0, _DIMENSION_MAX)


def _check_number(what: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidInput(f"{what} is between {least} and {most}, not {tell(value)}")


def _check_text(what: str, value: Any) -> None:
    if type(value) is not str or len(value) > SUMMARY_TEXT_CHARS_MAX:
        raise InvalidInput(
            f"{what} is a text of at most {SUMMARY_TEXT_CHARS_MAX} characters, not {tell(value)}"
        )
