"""A model's interface: the inputs and outputs that its package declares, whichever worker prepares it.

The controller reads it when a package has arrived, and keeps it in the model's record. A worker reads it by
the same function, and refuses to prepare a model whose interface differs. So a worker whose summary
contradicts the package is at fault, whichever worker came first.

A package is untrusted. Of an ONNX file only the inputs, outputs and metadata are read, and of a program only
its head, within bounds of time and memory. An encoding that no serializer writes (a singular field twice,
another wire type) is refused, so that every reader finds the same interface in the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from clockwork.config import NAME_BYTES_MAX, SUMMARY_BYTES_MAX
from clockwork.config.formats import FIELDS_MAX, PROGRAM_HEAD_BYTES, READ_WHOLE_BYTES_MAX
from clockwork.errors import InvalidModel
from clockwork.formats.package import PackageFile
from clockwork.formats.prepared import UNKNOWN_RANK, PreparedModel, TensorSpec
from clockwork.formats.profile_package import read_profile, tensors_of
from clockwork.wire import codec
from clockwork.wire.messages import Prepared, Status
from clockwork.wire.optional import OPTIONAL_KEY, Default, read_defaults
from clockwork.wire.packages import MODEL_FILE, PROFILE_FILE, PROGRAM_JSON
from clockwork.wire.telling import tell
from clockwork.wire.tensors import dtype_name

LABELS_KEY = "clockwork.labels"  # Metadata of a model: a JSON list of names for its scores

_NUMBERED = re.compile(r"\??|unk__\d+|(\w+\.)?DynamicDimension\.\d+|\w+_dynamic_axes_\d+")
"""Names that tf2onnx, paddle2onnx and torch give to unnamed dimensions."""


def is_named(dim: int | str) -> bool:
    """Return whether a person named a symbolic dimension; converters number the others."""
    return isinstance(dim, str) and not _NUMBERED.fullmatch(dim)


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    """A package's declared interface. Models of the same program share the objects in its fields."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    metadata: dict[str, str]  # metadata of the ONNX file

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "inputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.inputs],
            "outputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.outputs],
            "metadata": dict(self.metadata),
        }

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Interface:
        """Inverse of to_dict(). Raises ValueError, TypeError, KeyError or InvalidModel."""
        inputs, outputs = (
            [TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in body[side]]
            for side in ("inputs", "outputs")
        )
        return _checked(inputs, outputs, dict(body["metadata"]))


def _checked(inputs: list[TensorSpec], outputs: list[TensorSpec], metadata: dict[str, str]) -> Interface:
    """Return the interface if a worker's summary can hold it. Raises InvalidModel."""
    sides = {
        side: [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]
        for side, specs in (("inputs", inputs), ("outputs", outputs))
    }
    try:
        codec.check(Prepared(0, Status.OK, "", sides | {"metadata": metadata}))
    except (codec.WireError, ValueError, TypeError, OverflowError) as error:
        raise InvalidModel(
            f"it declares an interface that cannot be served: {tell(str(error), 300)}"
        ) from None
    if any(type(text) is not str for pair in metadata.items() for text in pair):
        raise InvalidModel("its metadata are texts by name")
    defaults_of(inputs, metadata)
    return Interface(inputs, outputs, metadata)


def defaults_of(inputs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> dict[str, Default]:
    """The defaults of a model's optional inputs, by name. Raises InvalidModel."""
    return read_defaults(metadata, [(spec.name, spec.dtype, spec.shape) for spec in inputs])


# ----- comparison with a worker's summary ----------------------------------------------------------


def difference(declared: Interface, said: PreparedModel) -> str:
    """Return how a worker's summary contradicts the package, as a sentence; "" if it does not.

    Inputs must be the same, except for the names of their open dimensions. A worker may know more of an
    output's shape (from the model's outputs) or less. Dimensions that both fix must be equal.
    """
    for side, ours, theirs in (
        ("input", declared.inputs, said.inputs),
        ("output", declared.outputs, said.outputs),
    ):
        names, said_names = [spec.name for spec in ours], [spec.name for spec in theirs]
        if names != said_names:
            return f"it has the {side}s {tell(said_names, 200)}, not {tell(names, 200)}"
        for spec, other in zip(ours, theirs):
            if spec.dtype != other.dtype:
                return f"{side} {tell(spec.name)} is {dtype_name(other.dtype)}, not {dtype_name(spec.dtype)}"
            is_input = side == "input"
            if (is_input or said.outputs_verified) and not _agree(spec, other, is_input):
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


def misfit(served: Interface, new: Interface) -> str:
    """Return why a new version cannot replace the served interface for its clients, as a sentence; "" if it
    can.

    The new interface must accept every request that the served one accepts. Its answer must hold all outputs
    of the served one, with the same dtype. Shapes of outputs may differ.
    """
    theirs = {spec.name: spec for spec in new.inputs}
    before, after = (defaults_of(version.inputs, version.metadata) for version in (served, new))
    ours = {spec.name for spec in served.inputs}
    if not ours <= theirs.keys() or theirs.keys() - ours - after.keys():
        return f"it takes the inputs {tell(list(theirs), 200)}, not {tell([spec.name for spec in served.inputs], 200)}"
    for name in before:
        if name not in after:
            return f"its input {tell(name)} is not optional"
    for spec in served.inputs:
        other = theirs[spec.name]
        if spec.dtype != other.dtype:
            return f"its input {tell(spec.name)} is {dtype_name(other.dtype)}, not {dtype_name(spec.dtype)}"
        if not _covers(other.shape, spec.shape):
            return f"its input {tell(spec.name)} is {tell(list(other.shape))}, not {tell(list(spec.shape))}"
    given = {spec.name: spec.dtype for spec in new.outputs}
    for spec in served.outputs:
        if spec.name not in given:
            return f"it has no output {tell(spec.name)}, but {tell(list(given), 200)}"
        if spec.dtype != given[spec.name]:
            return f"its output {tell(spec.name)} is {dtype_name(given[spec.name])}, not {dtype_name(spec.dtype)}"
    if len(served.outputs) == 1 < len(given):  # a client that sends one array would get a dict
        return f"it has the outputs {tell(list(given), 200)}, not {tell([spec.name for spec in served.outputs], 200)}"
    return ""


def with_labels_of(served: Interface, new: Interface) -> Interface:
    """Return the new interface with the labels of the served interface.

    Nothing changes if the new interface has labels itself, or another number of scores.
    """
    labels = served.metadata.get(LABELS_KEY)
    if labels is None or LABELS_KEY in new.metadata:
        return new
    if [spec.shape[-1:] for spec in served.outputs] != [spec.shape[-1:] for spec in new.outputs]:
        return new
    return dataclasses.replace(new, metadata={**new.metadata, LABELS_KEY: labels})


def _covers(shape: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    """Return whether ``shape`` accepts every array that ``other`` accepts."""
    if shape == UNKNOWN_RANK or other == UNKNOWN_RANK:
        return shape == UNKNOWN_RANK
    return len(shape) == len(other) and all(
        type(our) is str or our == their for our, their in zip(shape, other)
    )


def loosened(outputs: list[TensorSpec], said: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the outputs with open dimensions wherever another worker's summary differs. Returns the list
    itself if nothing changes.

    said: outputs of a summary that does not contradict the package.
    """
    found = [dataclasses.replace(spec, shape=_common(spec, other)) for spec, other in zip(outputs, said)]
    return outputs if found == outputs else found


def undisputed(outputs: list[TensorSpec], declared: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the outputs as a model returned them, with open dimensions or rank wherever its package declares
    another size or rank.

    The outputs of an ONNX file are the exporter's claim: ONNX Runtime corrects a wrong shape by itself, and
    serves the model. If the claim and the model differ, neither shape is certain, so answers are not checked
    against either.
    """
    if [spec.name for spec in outputs] != [spec.name for spec in declared]:
        return outputs
    return [
        dataclasses.replace(spec, shape=_without(spec.shape, other.shape))
        for spec, other in zip(outputs, declared)
    ]


def _without(shape: tuple[int | str, ...], other: tuple[int | str, ...]) -> tuple[int | str, ...]:
    if UNKNOWN_RANK in (shape, other):
        return shape
    if len(shape) != len(other):
        return UNKNOWN_RANK
    return tuple(
        "" if type(our) is type(their) is int and our != their else our for our, their in zip(shape, other)
    )


def _common(spec: TensorSpec, other: TensorSpec) -> tuple[int | str, ...]:
    if UNKNOWN_RANK in (spec.shape, other.shape) or len(spec.shape) != len(other.shape):
        return UNKNOWN_RANK
    return tuple(
        our if type(our) is str or our == their else "" for our, their in zip(spec.shape, other.shape)
    )


# ----- reading a package ---------------------------------------------------------------------------


def read_interface(package: Path, files: Sequence[PackageFile], options: Mapping[str, Any]) -> Interface:
    """Return the interface that a package declares. Raises InvalidModel, OSError.

    files: the package's files, of which the first gives its kind. options: as in messages.Prepare.
    """
    kind = files[0].path
    if kind == PROFILE_FILE:
        _, inputs, outputs = tensors_of(read_profile(package), options)
        return _checked(inputs, outputs, {})
    declared = Interface([], [], {})
    # a program may have a model file beside it for its metadata
    if any(file.path == MODEL_FILE for file in files):
        with open(package / MODEL_FILE, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # A small file is read once; the reader seeks in it hundreds of times.
            declared = read_onnx(io.BytesIO(file.read()) if size <= READ_WHOLE_BYTES_MAX else file)
    if kind == PROGRAM_JSON:
        with open(package / PROGRAM_JSON, "rb") as file:
            metadata = without_defaults(declared.metadata)
            declared = dataclasses.replace(read_program(file), metadata=metadata)
    return declared


def without_defaults(metadata: Mapping[str, str]) -> dict[str, str]:
    """An ONNX file's metadata for a program that was compiled of it: a program requires all its inputs."""
    return {key: text for key, text in metadata.items() if key != OPTIONAL_KEY}


def read_program(file: BinaryIO) -> Interface:
    """Return the interface that a program.json declares. Raises InvalidModel, OSError.

    Keys are read in order until inputs and outputs are known. They are written before all large values.
    """
    text = file.read(PROGRAM_HEAD_BYTES).decode(errors="replace")
    decode = json.JSONDecoder().raw_decode
    found: dict[str, Any] = {}
    try:
        at = _skip(text, 0, "{")
        while not found.keys() >= {"inputs", "outputs"}:
            key, at = decode(text, _skip(text, at, ""))
            found[key], at = decode(text, _skip(text, _skip(text, at, ":"), ""))
            at = _skip(text, at, ",")
        inputs, outputs = (
            [TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in found[side]]
            for side in ("inputs", "outputs")
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"{type(error).__name__}: {tell(str(error))}"
        raise InvalidModel(f"no inputs and outputs are at the beginning of {PROGRAM_JSON} ({why})") from None
    return _checked(inputs, outputs, {})


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, at: int, mark: str) -> int:
    """Return the position after white space and a mark. Raises ValueError."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty text, too
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark!r} at {at}")
    return at + len(mark)


# ----- an ONNX file --------------------------------------------------------------------------------

_DAMAGED = "an ONNX model that is truncated or damaged"

Value: TypeAlias = int | range
"""The value of a protobuf field: a varint, or the place of its length-delimited bytes in the file."""

_GRAPH, _METADATA = 7, 14  # field numbers of ModelProto
_INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 5, 11, 12, 15  # field numbers of GraphProto
_VALUES = 1  # field of SparseTensorProto
_TENSOR_NAME, _RAW_DATA = 8, 9  # field numbers of TensorProto
_NAME, _TYPE = 1, 2  # fields of ValueInfoProto
_TENSOR_TYPE, _OTHER_TYPES = 1, (4, 5, 7, 8, 9)  # field numbers of TypeProto
_ELEMENT, _SHAPE = 1, 2  # fields of TypeProto.Tensor
_DIM = 1  # field of TensorShapeProto
_DIM_VALUE, _DIM_PARAM = 1, 2  # fields of TensorShapeProto.Dimension
_KEY, _VALUE = 1, 2  # fields of StringStringEntryProto


def read_onnx(file: BinaryIO) -> Interface:
    """The interface that an ONNX file declares. Raises InvalidModel, OSError."""
    file.seek(0, 2)
    reader = _Reader(file)
    model = reader.read(range(file.tell()), {_GRAPH: range, _METADATA: range})
    graph = reader.read(
        _single(model[_GRAPH], "graph"), {_INITIALIZER: range, _SPARSE: range, _INPUT: range, _OUTPUT: range}
    )
    weights = graph[_INITIALIZER]
    for sparse in graph[_SPARSE]:
        weights.append(_single(reader.read(sparse, {_VALUES: range})[_VALUES], "weight"))
    names = [reader.read(weight, {_TENSOR_NAME: range})[_TENSOR_NAME] for weight in weights]
    held = {reader.text(_single(name, "a weight's name")) for name in names if name}
    inputs = [spec for spec in map(reader.spec, graph[_INPUT]) if spec.name not in held]
    outputs = [reader.spec(value) for value in graph[_OUTPUT]]
    metadata = {}
    for entry in model[_METADATA]:
        pair = reader.read(entry, {_KEY: range, _VALUE: range})
        texts = [
            reader.text(_single(values, "metadata"), SUMMARY_BYTES_MAX) if values else ""
            for values in pair.values()
        ]
        metadata[texts[0]] = texts[1]
    return _checked(inputs, outputs, metadata)


def places_of_weights(file: BinaryIO) -> dict[str, range]:
    """The place in an ONNX file of the bytes of each of its graph's weights that has them as raw data, by
    name. Raises InvalidModel, OSError."""
    file.seek(0, 2)
    reader = _Reader(file)
    graph = _single(reader.read(range(file.tell()), {_GRAPH: range})[_GRAPH], "graph")
    found = {}
    for weight in reader.read(graph, {_INITIALIZER: range})[_INITIALIZER]:
        fields = reader.read(weight, {_TENSOR_NAME: range, _RAW_DATA: range})
        if len(fields[_RAW_DATA]) == 1:
            found[reader.text(_single(fields[_TENSOR_NAME], "a weight's name"))] = fields[_RAW_DATA][0]
    return found


def _single(values: list[Any], what: str) -> Any:
    if len(values) != 1:
        raise InvalidModel(f"an ONNX model that declares {what} {len(values)} times instead of once")
    return values[0]


class _Reader:
    """A reader of protobuf messages in a file that skips all unwanted fields."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = FIELDS_MAX

    def read(self, where: range, wanted: Mapping[int, type]) -> dict[int, list[Any]]:
        """Return the values of the wanted fields (number: int or range) of a message, in order. Raises
        InvalidModel."""
        found: dict[int, list[Any]] = {number: [] for number in wanted}
        for number, value in self._fields(where):
            kind = wanted.get(number)
            if kind is not None:
                if type(value) is not kind:
                    raise InvalidModel(f"an ONNX model with a field {number} of another type")
                found[number].append(value)
        return found

    def _fields(self, where: range) -> Iterator[tuple[int, Value | None]]:
        file, end = self._file, where.stop
        file.seek(where.start)
        while (at := file.tell()) < end:
            self._left -= 1
            if self._left < 0:
                raise InvalidModel(f"an ONNX model of more than {FIELDS_MAX} nodes and weights")
            key = self._varint()
            if key & 7 == 2:
                size = self._varint()
                at = file.tell()
                if size > end - at:
                    raise InvalidModel(_DAMAGED)
                yield key >> 3, range(at, at + size)
                file.seek(at + size)
            elif key & 7 == 0:
                yield key >> 3, self._varint()
            elif key & 7 in (1, 5):
                yield key >> 3, None
                file.seek(8 if key & 7 == 1 else 4, 1)
            else:
                raise InvalidModel(f"an ONNX model with a field of wire type {key & 7}")
        if at != end:
            raise InvalidModel(_DAMAGED)

    def _varint(self) -> int:
        value = shift = 0
        while byte := self._file.read(1):
            value |= (byte[0] & 127) << shift
            shift += 7
            if value >> 64:
                break
            if byte[0] < 128:
                return value
        raise InvalidModel(_DAMAGED)

    def text(self, where: range, bytes_max: int = NAME_BYTES_MAX) -> str:
        if len(where) > bytes_max:
            raise InvalidModel(
                f"an ONNX model with a name of {len(where)} bytes, of which {bytes_max} are read"
            )
        self._file.seek(where.start)
        try:
            return self._file.read(len(where)).decode()
        except UnicodeDecodeError:
            raise InvalidModel("an ONNX model with a name that is not UTF-8") from None

    def spec(self, where: range) -> TensorSpec:
        """Return the tensor that a ValueInfoProto declares. A missing shape becomes UNKNOWN_RANK."""
        body = self.read(where, {_NAME: range, _TYPE: range})
        name = self.text(_single(body[_NAME], "a tensor's name"))
        kinds = self.read(
            _single(body[_TYPE], f"type of {tell(name)}"), dict.fromkeys((_TENSOR_TYPE, *_OTHER_TYPES), range)
        )
        if any(kinds[number] for number in _OTHER_TYPES):
            raise InvalidModel(f"{tell(name)} is no tensor")
        kind = self.read(
            _single(kinds[_TENSOR_TYPE], f"type of {tell(name)}"), {_ELEMENT: int, _SHAPE: range}
        )
        shape: tuple[int | str, ...] = UNKNOWN_RANK
        if kind[_SHAPE]:
            dims = self.read(_single(kind[_SHAPE], f"shape of {tell(name)}"), {_DIM: range})[_DIM]
            shape = tuple(map(self._dim, dims))
        return TensorSpec(name, _single(kind[_ELEMENT], f"element type of {tell(name)}"), shape)

    def _dim(self, where: range) -> int | str:
        body = self.read(where, {_DIM_VALUE: int, _DIM_PARAM: range})
        values, names = body[_DIM_VALUE], body[_DIM_PARAM]
        if not values and not names:
            return ""
        if values:
            value: int = _single(values + names, "a dimension")
            # negative values are open dimensions, as for ONNX Runtime
            return value if value < 1 << 63 else ""
        name = self.text(_single(names, "a dimension"))
        return name if is_named(name) else ""
