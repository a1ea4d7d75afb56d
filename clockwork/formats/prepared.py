"""Prepared models: their files on disk, and the summary that the controller gets.

    <store>/prepared/<digest>-<fingerprint>/    (see prepared_directory())
        prepared.json    a PreparedModel with the checksums of the other files; sealed, see formats.checksums
        weights.bin      bound: the laid-out weights, run after run, each run a whole number of pages
        packed.onnx      packed: the optimised model ...
        packed.data      ... and its prepacked weights, mapped when it is loaded

    <store>/programs/<program>/   (named by a hash of its content, see program_damage())
        program.onnx     the computation without weights, shared by every model of equal architecture
        program.json     on a CUDA device instead: the launch lists (formats.program), and modules/ beside it

A directory is written under a temporary name and renamed when complete, so that an incomplete one is
never seen, and several workers may share a store.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clockwork.config import RANK_MAX, STRINGS_MAX
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import (
    FileSums,
    read_plain,
    seal,
    seal_texts,
    sums_of,
    sums_of_bytes,
    text_of,
    unseal,
)
from clockwork.formats.durable import write_durably
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.records import fields_of
from clockwork.wire.optional import Default, read_defaults
from clockwork.wire.tensors import DTYPES, STRING, dtype_name

FORMAT_VERSION = 1
"""Version of the format of prepared.json. Models prepared in an older format are prepared again."""

JUDGED = 3
"""The current rule that decides whether a model batches. 1: rows were run together and apart; 2: by the graph
and by the declared shapes of inputs and outputs; 3: as in clockwork.models.batching.

A model that batches by an older rule is judged again.
"""

UNKNOWN_RANK = ("...",)  # The shape of an input whose rank the model does not declare
PREPARED_FILE = "prepared.json"
WEIGHTS_FILE = "weights.bin"
PACKED_FILE = "packed.onnx"
PACKED_DATA_FILE = "packed.data"
PROGRAM_FILE = "program.onnx"


def prepared_directory(store: Path, digest: str, fingerprint: str, options: Mapping[str, Any]) -> Path:
    """Return the directory of a package that is prepared for devices with this fingerprint.

    options: as in messages.Prepare.
    Other options make another preparation, whose directory lies beside the default directory.
    """
    name = f"{digest}-{fingerprint}"
    for key in ("batching", "holding"):
        if options.get(key, "auto") != "auto":
            name += f"-{options[key]}"
    if options.get("dtype", "fp32") != "fp32":
        name += f"-{options['dtype']}"
    if options.get("batch_max", 0):
        name += f"-max{options['batch_max']}"
    return store / "prepared" / name


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as the model declares it. A dimension is an int, or a symbol's name ("" unnamed)."""

    name: str
    dtype: int
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class WeightSpec:
    """The place of a weight: ``offset`` bytes into run number ``run``. Ordered as the program's inputs."""

    dtype: int
    shape: tuple[int, ...]
    run: int
    offset: int
    bytes: int


OF_THE_DEVICE = (
    "weights", "workspace_bytes", "checksums", "contents", "output_lengths", "untried", "check_relative", "judged",
)  # fmt: skip
"""Fields of a PreparedModel that only the device needs. The summary leaves them out."""


@dataclasses.dataclass(slots=True)
class PreparedModel:
    """A model as prepared for devices with a fingerprint."""

    format_version: int
    digest: str
    fingerprint: str
    program: str  # content hash of the program; models of equal architecture share it
    # "bound" or "packed" (see the CPU device), "none" without weights; "program" on a CUDA device
    holding: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batches: bool
    batching_note: str  # reason why it batches or does not, for people
    batch_max: int  # largest batch that was measured to pay
    page_bytes: int
    runs: list[int]  # page counts of its runs; their sum is the model's share of the arena
    # Holding `bound`: inputs of the program after the model's own. Holding `program`: in the program's order.
    weights: list[WeightSpec]
    weights_bytes: int
    resident_bytes: int  # memory of the loaded model; never more than the pages of its runs
    load_ns: int
    profile: list[ProfilePoint]
    constants_note: str  # weights that stay inside the program, and the reason ("" none)
    metadata: dict[str, str]  # metadata of the ONNX file: image layout, labels, ...
    example: list[list[int]]  # shapes of the inputs with which it was profiled
    # what the model returned has the shapes of ``outputs``, as far as they are fixed
    outputs_verified: bool = False
    # the most that an execution took of the workspace when profiled; 0: not measured
    workspace_bytes: int = 0
    # checksums of the other files in its directory, by name
    checksums: dict[str, int] = dataclasses.field(default_factory=dict)
    # Symbols of inputs in which requests of a batch may differ in size, with the largest size that the model
    # has tables for (0: unknown). The program takes the rows' sizes, in this order, after the model's inputs.
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    lengths_note: str = ""  # reason for `lengths`, for people; "" if no input has such a symbol
    # of each output, the symbol of each axis ("" none), along which it is cut back
    output_lengths: list[list[str]] = dataclasses.field(default_factory=list)

    untried: bool = False  # whether the device has still to check and time it; there is no profile yet
    # allowed difference of its answers from those of the checks, relative to an output's largest value
    check_relative: float = 0.0
    judged: int = 1  # rule that decided whether it batches: see JUDGED
    # [threads, ns] of an execution as the profile's first with more threads than its devices have; []: it was
    # not timed, because it is fast or the machine has one core
    by_threads: list[list[int]] = dataclasses.field(default_factory=list)
    # [bytes, SHA-256] of the files of its bundle but prepared.json, by name: see formats.bundles
    contents: dict[str, list[int | str]] = dataclasses.field(default_factory=dict)

    def defaults(self) -> dict[str, Default]:
        """The defaults of its optional inputs, by name. Raises InvalidModel."""
        return read_defaults(self.metadata, [(spec.name, spec.dtype, spec.shape) for spec in self.inputs])

    def rowless(self) -> tuple[bool, ...]:
        """A flag for each input: whether it is optional, so that it never has an axis of rows."""
        defaults = self.defaults()
        return tuple(spec.name in defaults for spec in self.inputs)

    def summary(self) -> dict[str, Any]:
        """The fields for the controller: all but those that only the device needs."""
        body = dataclasses.asdict(self)
        for name in OF_THE_DEVICE:
            del body[name]
        return body

    def threads_for(self, slo_ns: int) -> int:
        """The fewest threads, more than its devices have, whose timed execution meets an SLO; 0: none."""
        return min((threads for threads, ns in self.by_threads if ns <= slo_ns), default=0)

    def slo_below_execution(self, slo_ns: int) -> str:
        """The reason why no request can meet an SLO, and what more threads would do; "" if it can be met."""
        fastest = min((point.exec_ns for point in self.profile), default=0)
        if slo_ns >= fastest:
            return ""
        said = f"below its execution time of {fastest / 1e6:.3g} ms"
        timed = sorted(map(tuple, self.by_threads))
        if not timed:
            return said
        enough = next((row for row in timed if row[1] <= slo_ns), None)
        threads, ns = enough or min(timed, key=lambda row: row[1])
        end = (
            f"serve it by workers with --threads {threads}" if enough else "no number that was tried meets it"
        )
        return f"{said}; with {threads} threads it takes {ns / 1e6:.3g} ms: {end}"

    def write(self, directory: Path) -> None:
        """Write prepared.json into a directory whose other files are complete."""
        self.note_files(sums_of(directory, but=[PREPARED_FILE]))
        (directory / PREPARED_FILE).write_bytes(seal(fields_of(self)))

    def note_files(self, sums: Mapping[str, FileSums]) -> None:
        """Note the files in its directory, all but prepared.json. The note of its program stays."""
        self.checksums = {name: found.crc32 for name, found in sums.items()}
        program = self.contents.get(PROGRAM_FILE)
        self.contents = {name: [found.bytes, found.sha256] for name, found in sums.items()}
        if program is not None:
            self.contents[PROGRAM_FILE] = program

    def note_program(self, program: bytes) -> None:
        """Note the program that the device takes beside its directory."""
        found = sums_of_bytes(program)
        self.contents[PROGRAM_FILE] = [found.bytes, found.sha256]

    def write_like(self, directory: Path, known: KnownTexts) -> None:
        """Write prepared.json as write() does, with the present checksums and texts of a similar model."""
        (directory / PREPARED_FILE).write_bytes(known.sealed(self))

    def rewrite(self, directory: Path) -> None:
        """Replace prepared.json, durably, beside the same files."""
        write_durably(directory / PREPARED_FILE, seal(fields_of(self)))

    @staticmethod
    def read(directory: Path | str) -> PreparedModel:
        """Read the description in a directory.

        Raises OSError, or ValueError if it is damaged, of another format, or without checksums.
        """
        body, is_sealed = read_body(directory)
        if not is_sealed:
            raise ValueError("it was prepared by a version that took no checksums")
        prepared = PreparedModel.from_dict(body)
        if any(
            spec.dtype == STRING and len(dims) != len(shape) - prepared.batches + 1
            for point in prepared.profile
            for spec, dims, shape in zip(prepared.inputs, point.shape, prepared.example)
        ):
            raise ValueError("it was prepared by a version that timed strings without their size")
        return prepared

    @staticmethod
    def read_for(directory: Path | str, fingerprint: str, page_bytes: int) -> PreparedModel:
        """Read the description in a directory for a device of this fingerprint and page size. Raises
        InvalidModel."""
        try:
            prepared = PreparedModel.read(directory)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidModel(f"{directory} holds no prepared model: {error}") from None
        if prepared.fingerprint != fingerprint:
            raise InvalidModel(
                f"{directory} was prepared for {prepared.fingerprint}, this device is {fingerprint}"
            )
        if prepared.page_bytes != page_bytes:
            raise InvalidModel(
                f"{directory} has pages of {prepared.page_bytes} bytes, this device {page_bytes}"
            )
        return prepared

    @staticmethod
    def from_dict(body: dict[str, Any]) -> PreparedModel:
        """Inverse of asdict() and of summary() (then ``weights`` is empty)."""
        if body.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"prepared model of format {body.get('format_version')}, this is {FORMAT_VERSION}"
            )
        body = dict(body)
        body["inputs"] = [_tensor_spec(entry) for entry in body["inputs"]]
        body["outputs"] = [_tensor_spec(entry) for entry in body["outputs"]]
        body["weights"] = [
            WeightSpec(entry["dtype"], tuple(entry["shape"]), entry["run"], entry["offset"], entry["bytes"])
            for entry in body.get("weights", ())
        ]
        body["profile"] = [
            ProfilePoint(tuple(tuple(dims) for dims in entry["shape"]), entry["batch"], entry["exec_ns"])
            for entry in body["profile"]
        ]
        return PreparedModel(**body)


class KnownTexts:
    """The JSON of each field of a model, for models that share most of its values, as fine-tunes do."""

    def __init__(self, prepared: PreparedModel) -> None:
        self._known = {name: (value, text_of(value)) for name, value in fields_of(prepared).items()}

    def sealed(self, prepared: PreparedModel) -> bytes:
        """Return the content of prepared.json. Values that are the known model's very objects are not written
        anew."""
        texts = {}
        for name, value in fields_of(prepared).items():
            known, text = self._known[name]
            texts[name] = text if value is known else text_of(value)
        return seal_texts(texts)


def read_body(directory: Path | str) -> tuple[dict[str, Any], bool]:
    """Return the content of prepared.json as plain data, and whether it is sealed; see unseal().

    Its values may be another caller's, too, and are not to be changed.

    Raises OSError, ValueError.
    """
    body, is_sealed = _parse(read_plain(os.path.join(directory, PREPARED_FILE)))
    return dict(body), is_sealed


@functools.lru_cache(maxsize=1)
def _parse(data: bytes) -> tuple[dict[str, Any], bool]:
    """unseal() of prepared.json, which a worker reads for the model's summary, and its device reads again."""
    return unseal(data)


def program_damage(path: Path, fingerprint: str) -> str:
    """Return the damage of a stored program.onnx, as a sentence; "" if its content matches its directory's
    name."""
    try:
        found = program_name(path.read_bytes(), fingerprint)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return "" if found == path.parent.name else f"{path} is damaged: it is program {found[:12]}"


def program_name(model: bytes, fingerprint: str) -> str:
    """Return the name under which a program without weights is stored. Models of equal architecture
    share it."""
    return hashlib.sha256(model + fingerprint.encode()).hexdigest()


# ----- differences of an output from its model's spec, as ends of sentences -----------------------


def other_dtype(dtype: int, declared: int) -> str:
    return f"is {dtype_name(dtype)}, not {dtype_name(declared)}"


def too_many_strings(count: int) -> str:
    return f"has {count} strings, at most {STRINGS_MAX} are served"


def other_rows(shape: Sequence[int], rows: int) -> str:
    return f"is {list(shape)} for {rows} rows"


def other_shape(shape: Sequence[int], declared: str) -> str:
    return f"is {list(shape)}, not {declared}"


def contradiction(spec: TensorSpec, verified: bool, rows: int, dtype: int, shape: Sequence[int]) -> str:
    """Return how an output contradicts its model's spec, as the end of a sentence; "" if it does not.

    verified: the fixed dimensions of the spec were seen at registration; otherwise only the dtype is
    compared. rows: rows of the request, 0 if the model does not batch.
    """
    if dtype != spec.dtype:
        return other_dtype(dtype, spec.dtype)
    if len(shape) > RANK_MAX:
        return f"has rank {len(shape)}, at most {RANK_MAX} is served"
    if dtype == STRING and (count := math.prod(shape)) > STRINGS_MAX:
        return too_many_strings(count)
    if rows and (not shape or shape[0] != rows):
        return other_rows(shape, rows)
    if verified and spec.shape != UNKNOWN_RANK:
        fits = len(shape) == len(spec.shape) and all(
            type(declared) is str or dimension == declared for dimension, declared in zip(shape, spec.shape)
        )
        if not fits:
            return other_shape(shape, str(list(spec.shape)))
    return ""


def check_layout(prepared: PreparedModel, place: Path) -> None:
    """Raise InvalidModel unless every weight lies within its run."""
    if any(pages < 1 for pages in prepared.runs):
        raise InvalidModel(f"{place} has a run of no pages: {prepared.runs}")
    for weight in prepared.weights:
        kind = DTYPES.get(weight.dtype)
        if kind is None or weight.dtype == STRING or any(extent < 0 for extent in weight.shape):
            raise InvalidModel(f"{place} has a weight of type {weight.dtype} and shape {list(weight.shape)}")
        size = (math.prod(weight.shape) * kind.bits + 7) // 8
        room = prepared.runs[weight.run] * prepared.page_bytes if 0 <= weight.run < len(prepared.runs) else 0
        if weight.bytes != size or not 0 <= weight.offset <= room - size:
            raise InvalidModel(
                f"{place} has a weight of {size} bytes, written as {weight.bytes} at {weight.offset}, in a run of {room}"
            )


def _tensor_spec(body: dict[str, Any]) -> TensorSpec:
    return TensorSpec(body["name"], body["dtype"], tuple(body["shape"]))
