"""A program package: kernels, the order in which to launch them, and the weights they read.

    program.json     this module's Program: docs/program-packages.md describes every field
    modules/...      for each target its cubins, and perhaps their PTX; or a shared object for the host
    weights.bin      all weights, each at a multiple of 64 bytes

The format is independent of the compiler: a package may also be written by hand. Its contents are untrusted
until check() has passed, and its files until check_files() has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, cast

import numpy as np

from clockwork.config import BATCH_SIZE_MAX, FILES_MAX, IO_SLOT_BYTES_MAX, RANK_MAX, TENSORS_MAX
from clockwork.config import formats as bounds
from clockwork.errors import InvalidModel
from clockwork.formats.archive import open_arrays
from clockwork.formats.durable import write_durably
from clockwork.formats.package import hash_file
from clockwork.formats.prepared import WEIGHTS_FILE, TensorSpec
from clockwork.wire.packages import LIST_FILE, PROGRAM_JSON
from clockwork.wire.tensors import DTYPES, STRING, Array, numpy_dtype

FORMAT = 3
"""Version of the format of program.json, raised by changes that older code cannot read. A program is written
with the oldest version that has all features it uses."""

FORMAT_PADDED = 2  # Version of a program with padding and without tables
FORMAT_PLAIN = 1  # Version of a program with neither padding nor tables

CHECKS_FILE = "checks.npz"
"""An optional file with inputs and their expected outputs, by which a device checks that it runs the program
correctly."""


WEIGHT_ALIGNMENT_BYTES = 64
"""Alignment of every weight in weights.bin, and the least alignment that kernels may assume."""

HOST = "host"
"""The target whose only module is a shared object for this machine's processor. All other targets are
sm_NN."""


POINTERS = ("weight", "input", "output")
"""Kinds of argument that are [kind, index, byte offset]; "workspace" is [kind, byte offset], "size" [kind,
index of the padded symbol], "table" [kind, index of an entry of the variant's table]."""
TABLED = ("weight", "size")
"""Kinds of argument that are entries of a table: values that differ between models or requests."""

SCALARS: Mapping[str, tuple[float, float]] = {
    "i32": (-(2**31), 2**31 - 1),
    "i64": (-(2**63), 2**63 - 1),
    "f32": (-3.4028234663852886e38, 3.4028234663852886e38),
}
"""Kinds of argument that are [kind, value], with the bounds of the value."""

_TARGET = re.compile(r"host|sm_[1-9][0-9]{1,2}[af]?")
_KERNEL = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.]{0,4095}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


# ----- values of the JSON ----------------------------------------------------------------------


class _Node:
    """A value of the JSON with its place, for errors."""

    __slots__ = ("place", "value")

    def __init__(self, value: Any, place: str) -> None:
        self.value = value
        self.place = place

    def _want(self, right: bool, what: str) -> None:
        if not right:
            raise InvalidModel(f"{self.place} is {what}, not {json.dumps(self.value)[:60]}")

    def get(self, key: str) -> _Node:
        self._want(isinstance(self.value, dict), "an object")
        if key not in self.value:
            raise InvalidModel(f"{self.place} has no {key!r}")
        return _Node(self.value[key], f"{self.place}: {key}")

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def without(self, key: str) -> _Node:
        """Return an object without a key, which need not be there."""
        if not self.has(key):
            return self
        return _Node({name: value for name, value in self.value.items() if name != key}, self.place)

    def entries(self, most: int) -> Iterator[tuple[str, _Node]]:
        self._want(isinstance(self.value, dict), "an object")
        self._bounded(most)
        for key, value in self.value.items():
            yield key, _Node(value, f"{self.place}[{key!r}]")

    def items(self, most: int) -> Iterator[_Node]:
        self._want(isinstance(self.value, list), "a list")
        self._bounded(most)
        for index, value in enumerate(self.value):
            yield _Node(value, f"{self.place}[{index}]")

    def _bounded(self, most: int) -> None:
        if len(self.value) > most:
            raise InvalidModel(f"{self.place} has {len(self.value)} entries; at most {most}")

    def integer(self, least: int, most: int) -> int:
        self._want(type(self.value) is int and least <= self.value <= most, f"an integer in {least}..{most}")
        return int(self.value)

    def positive(self, most: float) -> float:
        right = type(self.value) in (int, float) and 0 < self.value <= most
        self._want(right, f"a number above 0 and at most {most:g}")
        return float(self.value)

    def integers(self, most: int) -> tuple[int, ...]:
        return tuple(item.integer(0, 2**62) for item in self.items(most))

    def triple(self, most: Sequence[int]) -> tuple[int, int, int]:
        sides = list(self.items(3))
        self._want(len(sides) == 3, "a list of three integers")
        x, y, z = (side.integer(1, bound) for side, bound in zip(sides, most, strict=True))
        return x, y, z

    def text(self) -> str:
        self._want(isinstance(self.value, str), "a string")
        return str(self.value)

    def boolean(self) -> bool:
        self._want(isinstance(self.value, bool), "true or false")
        return bool(self.value)


def _spec(node: _Node) -> TensorSpec:
    dims: list[int | str] = []
    for dim in node.get("shape").items(RANK_MAX):
        dims.append(dim.value if isinstance(dim.value, str) else dim.integer(0, 2**62))
    return TensorSpec(node.get("name").text(), node.get("dtype").integer(1, max(DTYPES)), tuple(dims))


def _argument(node: _Node) -> Argument:
    match node.value:
        case [str(kind), int(index), int(value)] if kind in POINTERS and not _booleans(index, value):
            return Argument(kind, index, value)
        case ["workspace", int(value)] if not _booleans(value):
            return Argument("workspace", 0, value)
        case ["size" | "table" as kind, int(value)] if not _booleans(value):
            return Argument(kind, 0, value)
        case ["i32" | "i64" as kind, int(value)] if not _booleans(value):
            return Argument(kind, 0, value)
        case ["f32", int(value) | float(value)] if not _booleans(value):
            return Argument("f32", 0, float(value))
        case _:
            raise InvalidModel(
                f"{node.place} is [weight|input|output, index, offset], [workspace, offset], [size|table, index] "
                f"or [i32|i64|f32, value], not {json.dumps(node.value)[:60]}"
            )


def _booleans(*values: Any) -> bool:
    return any(isinstance(value, bool) for value in values)


Form: TypeAlias = Callable[[_Node], Any]  # Reads and checks a value of program.json. Raises InvalidModel.


def _field(form: Form, default: Any = dataclasses.MISSING) -> Any:
    """A field that is a key of program.json. The key is left out where the field has its default, if any."""
    return dataclasses.field(default=default, metadata={"form": form})


def _whole(least: int, most: int) -> Form:
    return lambda node: node.integer(least, most)


def _several(form: Form, most: int) -> Form:
    return lambda node: tuple(form(item) for item in node.items(most))


def _named(form: Form, most: int) -> Form:
    return lambda node: {name: form(entry) for name, entry in node.entries(most)}


def _integers(node: _Node) -> tuple[int, ...]:
    return node.integers(RANK_MAX)


def _record(kind: type) -> Form:
    """A dataclass whose fields are made by _field()."""
    fields = [(field.name, field.metadata["form"], field.default) for field in dataclasses.fields(kind)]

    def read(node: _Node) -> Any:
        return kind(**{
            name: form(node.get(name))
            for name, form, default in fields
            if default is dataclasses.MISSING or node.has(name)
        })  # fmt: skip

    return read


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, the inverse of its form."""
    if isinstance(value, Argument):
        return [value.kind, value.index, value.value] if value.kind in POINTERS else [value.kind, value.value]
    if dataclasses.is_dataclass(value):
        body = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        left_out = {field.name for field in dataclasses.fields(value) if body[field.name] == field.default}
        if isinstance(value, TargetModules) and value.ptx:
            left_out.discard("ptx_driver")
        return {name: _plain(found) for name, found in body.items() if name not in left_out}
    if isinstance(value, Mapping):
        return {name: _plain(value[name]) for name in sorted(value)}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


# ----- records of program.json -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class ProgramWeight:
    """A weight, with its place in weights.bin."""

    dtype: int = _field(_whole(0, max(DTYPES)))  # ONNX code of the data type
    shape: tuple[int, ...] = _field(_integers)
    offset: int = _field(_whole(0, bounds.WEIGHTS_BYTES_MAX))  # offset in bytes, a multiple of 64
    bytes: int = _field(_whole(0, bounds.WEIGHTS_BYTES_MAX))


@dataclasses.dataclass(frozen=True, slots=True)
class TargetModules:
    """The modules for an architecture. Its key is the architecture: "sm_80", "sm_90", ..., or "host"."""

    # oldest sufficient CUDA driver, as from cuDriverGetVersion; 0 for host
    driver: int = _field(_whole(0, 2**31 - 1))
    modules: tuple[str, ...] = _field(_several(_Node.text, FILES_MAX))  # paths of the modules in the package
    # of each module its PTX, which drivers compile for newer devices; (): there is none
    ptx: tuple[str, ...] = _field(_several(_Node.text, FILES_MAX), ())
    ptx_driver: int = _field(_whole(0, 2**31 - 1), 0)  # oldest CUDA driver that reads the PTX

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.modules, *self.ptx)


def _target(node: _Node) -> TargetModules:
    """Read a target, in which ptx and ptx_driver go together; alone, the latter means nothing."""
    if node.has("ptx"):
        node.get("ptx_driver")
    return cast(
        TargetModules, _record(TargetModules)(node if node.has("ptx") else node.without("ptx_driver"))
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """A kernel parameter. ``value``: byte offset of a pointer, value of a scalar, or index of a size or table
    entry."""

    kind: str  # an element of POINTERS or SCALARS, or "workspace", "size", "table"
    index: int  # index of the weight, input or output; else 0
    value: int | float


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """A kernel launch. Launches run in turn, each after the end of the previous launch."""

    module: int = _field(_whole(0, FILES_MAX))  # index into the target's modules
    kernel: str = _field(_Node.text)  # name of the kernel in the module
    grid: tuple[int, int, int] = _field(lambda node: node.triple(bounds.GRID_MAX))  # number of blocks
    # number of threads of a block
    block: tuple[int, int, int] = _field(lambda node: node.triple(bounds.BLOCK_MAX))
    shared: int = _field(_whole(0, bounds.SHARED_BYTES_MAX))  # bytes of dynamic shared memory
    args: tuple[Argument, ...] = _field(_several(_argument, bounds.ARGUMENTS_MAX))
    # bytes of the widest access through each pointer, in order; (): unknown
    widths: tuple[int, ...] = _field(lambda node: node.integers(bounds.ARGUMENTS_MAX), ())


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """The launches for one target, batch size and set of input shapes."""

    target: str = _field(_Node.text)
    batch: int = _field(_whole(1, BATCH_SIZE_MAX))  # rows; 1 where the program does not batch
    # shape of each input, with the batch
    shapes: tuple[tuple[int, ...], ...] = _field(_several(_integers, TENSORS_MAX))
    output_shapes: tuple[tuple[int, ...], ...] = _field(_several(_integers, TENSORS_MAX))
    # bytes; the content needs not be kept between executions
    workspace: int = _field(_whole(0, bounds.WORKSPACE_BYTES_MAX))
    launches: tuple[Launch, ...] = _field(_several(_record(Launch), bounds.LAUNCHES_MAX))
    # entries of 8 bytes, such as a weight's address or a size, that kernels read from device memory
    table: tuple[Argument, ...] = _field(_several(_argument, bounds.TABLE_MAX), ())

    def resolved(self, argument: Argument) -> Argument:
        """Return the entry of the table that an argument points to, or the argument itself."""
        return self.table[int(argument.value)] if argument.kind == "table" else argument

    def pointers(self, launch: Launch) -> list[Argument]:
        """Return the addresses that a launch's kernel gets, in its parameters or in the table."""
        resolved = [self.resolved(argument) for argument in launch.args]
        return [
            argument for argument in resolved if argument.kind in POINTERS or argument.kind == "workspace"
        ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A package without the bytes of its files."""

    name: str = _field(_Node.text)  # name for readers
    inputs: tuple[TensorSpec, ...] = _field(_several(_spec, TENSORS_MAX))  # a dimension is an int or a symbol
    outputs: tuple[TensorSpec, ...] = _field(_several(_spec, TENSORS_MAX))
    batches: bool = _field(_Node.boolean)  # dimension 0 of every input and output is the batch
    # symbols of dimensions in which inputs may be shorter than the variant
    padded: tuple[str, ...] = _field(_several(_Node.text, bounds.PADDED_MAX), ())
    # see config.formats.TOLERANCE_MAX; None: derived from the types of the weights
    tolerance: float | None = _field(lambda node: node.positive(bounds.TOLERANCE_MAX), None)
    weights: tuple[ProgramWeight, ...] = _field(_several(_record(ProgramWeight), bounds.WEIGHTS_MAX))
    targets: Mapping[str, TargetModules] = _field(_named(_target, bounds.TARGETS_MAX))
    variants: tuple[Variant, ...] = _field(_several(_record(Variant), bounds.VARIANTS_MAX))
    # sha256 of every file but program.json, by path
    files: Mapping[str, str] = _field(_named(_Node.text, FILES_MAX))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights, without the gaps between them."""
        return sum(weight.bytes for weight in self.weights)

    def of_target(self, target: str) -> list[Variant]:
        """Return the variants for a target in the order in which a device tries them: by elements of a row,
        then by batch."""

        def row_elements(variant: Variant) -> int:
            return sum(math.prod(shape[1:] if self.batches else shape) for shape in variant.shapes)

        found = [variant for variant in self.variants if variant.target == target]
        return sorted(found, key=lambda variant: (row_elements(variant), variant.batch))

    def variant(self, target: str, shapes: Sequence[Sequence[int]]) -> Variant | None:
        """Return the first variant of a target that runs inputs of these shapes, rows included. None: there
        is none.

        Rows may be fewer than the variant's (where the program batches). Padded dimensions may be smaller, at
        least 1, if all dimensions of a symbol are equal. All others must match.
        """
        if len(shapes) != len(self.inputs) or self.sizes(shapes) is None:
            return None
        for variant in self.of_target(target):
            fits = True
            for spec, limits, wanted in zip(self.inputs, variant.shapes, shapes, strict=True):
                fits = fits and len(limits) == len(wanted)
                for axis, (most, size) in enumerate(zip(limits, wanted)):
                    if self.batches and axis == 0:
                        fits = fits and 1 <= size == shapes[0][0] and size <= most
                    elif spec.shape[axis] in self.padded:
                        fits = fits and 1 <= size <= most
                    else:
                        fits = fits and size == most
            if fits:
                return variant
        return None

    def sizes(self, shapes: Sequence[Sequence[int]]) -> list[int] | None:
        """Return the size of each padded symbol in inputs of these shapes. None: a symbol has two sizes."""
        found: dict[str, int] = {}
        for spec, shape in zip(self.inputs, shapes, strict=True):
            for dim, size in zip(spec.shape, shape):
                if dim in self.padded and found.setdefault(str(dim), size) != size:
                    return None
        return [found.get(symbol, 0) for symbol in self.padded]

    def stripped(self) -> Program:
        """Return the part that models of equal architecture share: without names, and without places and
        checksum of the weights."""
        symbols: dict[str, str] = {}

        def anonymous(role: str, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(
                    f"{role}{index}",
                    spec.dtype,
                    tuple(
                        dim if isinstance(dim, int) else symbols.setdefault(dim, f"d{len(symbols)}")
                        for dim in spec.shape
                    ),
                )
                for index, spec in enumerate(specs)
            )

        places = iter(offsets_of([weight.bytes for weight in self.weights]))
        kept = {path for target in self.targets.values() for path in target.files}
        return dataclasses.replace(
            self,
            name="",
            inputs=anonymous("input", self.inputs),
            outputs=anonymous("output", self.outputs),
            weights=tuple(dataclasses.replace(weight, offset=next(places)) for weight in self.weights),
            files={path: self.files[path] for path in sorted(kept)},
            padded=tuple(symbols[symbol] for symbol in self.padded),
        )

    def _format(self) -> int:
        if any(variant.table for variant in self.variants):
            return FORMAT
        return FORMAT_PADDED if self.padded else FORMAT_PLAIN

    def to_json(self) -> str:
        """Return the text of program.json: a line for each weight, variant and launch, so that files can be
        compared."""
        body = {"format": self._format(), **_plain(self)}
        return "".join(_lines(body, 0)) + "\n"


def program_hash(program: Program) -> str:
    """Return the name under which a program is stored and shared: the sha256 of stripped()."""
    return hashlib.sha256(program.stripped().to_json().encode()).hexdigest()


def offsets_of(sizes: Sequence[int]) -> list[int]:
    """Return the offsets in weights.bin of weights of these sizes (bytes), each at the next aligned place."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // WEIGHT_ALIGNMENT_BYTES) * WEIGHT_ALIGNMENT_BYTES
    return offsets


# ----- files -----------------------------------------------------------------------------------


def read_program(directory: Path) -> Program:
    """Read and check the program of a package, except for its files' checksums. Raises InvalidModel."""
    path = Path(directory) / PROGRAM_JSON
    try:
        with open(path, "rb") as file:
            data = file.read(bounds.JSON_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > bounds.JSON_BYTES_MAX:
        raise InvalidModel(f"{PROGRAM_JSON} has more than {bounds.JSON_BYTES_MAX} bytes")
    return parse_program(data)


def write_program(directory: Path, program: Program) -> Program:
    """Write program.json beside its files. Returns the program with the files' current checksums.

    Raises InvalidModel if a file is missing, or if read_program() would refuse the program.
    """
    directory = Path(directory)
    paths = dict.fromkeys(path for target in program.targets.values() for path in target.files)
    if program.weights:
        paths[WEIGHTS_FILE] = None
    paths.update(dict.fromkeys(program.files))
    files = {}
    for path in paths:
        try:
            files[path] = hash_file(directory / path)[1]
        except OSError as error:
            raise InvalidModel(f"file {path!r} of the program cannot be read: {error.strerror}") from None
    program = dataclasses.replace(program, files=files)
    check(program)
    write_durably(directory / PROGRAM_JSON, program.to_json().encode())
    return program


def stored_damage(directory: Path) -> str:
    """Return the damage of a stored program or its modules, as a sentence; "" if their content matches their
    checksums."""
    path = Path(directory) / PROGRAM_JSON
    try:
        found = hash_file(path)[1]
        if found != path.parent.name:
            return f"{path} is damaged: it is program {found[:12]}"
        check_files(read_program(directory), directory)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except InvalidModel as error:
        return f"{path} is damaged: {error}"
    return ""


def check_files(program: Program, directory: Path) -> None:
    """Raise InvalidModel unless every file exists with the checksum that the program names."""
    for path, expected in program.files.items():
        try:
            size, sha256 = hash_file(Path(directory) / path)
        except OSError as error:
            raise InvalidModel(f"file {path!r} of the program cannot be read: {error.strerror}") from None
        if sha256 != expected:
            raise InvalidModel(
                f"file {path!r} is damaged: sha256 {sha256[:12]}..., {PROGRAM_JSON} says {expected[:12]}..."
            )
        if path == WEIGHTS_FILE:
            end = max((weight.offset + weight.bytes for weight in program.weights), default=0)
            if size < end:
                raise InvalidModel(f"{WEIGHTS_FILE} has {size} bytes, its weights end at {end}")


def package_files(directory: Path) -> list[tuple[str, Path | bytes]]:
    """Return the files of a package, program.json first: (path in the package, source file). Raises
    InvalidModel.

    The whole package is checked first.
    """
    directory = Path(directory)
    program = read_program(directory)
    check_files(program, directory)
    return [(path, directory / path) for path in (PROGRAM_JSON, *program.files)]


Check: TypeAlias = tuple[list[Array], list[Array]]
"""Inputs with their expected outputs, each in the program's order."""


def write_checks(directory: Path, program: Program, checks: Sequence[Check]) -> None:
    """Write checks.npz. write_program() then lists the file, if the program names it. Equal checks give equal
    bytes."""
    arrays: dict[str, Any] = {}
    for number, (inputs, outputs) in enumerate(checks[: bounds.CHECKS_MAX]):
        for role, specs, values in (("in", program.inputs, inputs), ("out", program.outputs, outputs)):
            for spec, value in zip(specs, values, strict=True):
                arrays[f"{number}/{role}/{spec.name}"] = value
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_durably(directory / CHECKS_FILE, buffer.getvalue())


def read_checks(directory: Path, program: Program) -> list[Check]:
    """Return the checks of a package, or []. Raises InvalidModel."""
    path = Path(directory) / CHECKS_FILE
    if not path.is_file():
        return []
    with open_arrays(path, bounds.CHECKS_BYTES_MAX) as arrays:
        numbers = sorted({int(key.split("/", 1)[0]) for key in arrays.files})[: bounds.CHECKS_MAX]

        def values(number: int, role: str, specs: Sequence[TensorSpec]) -> list[Array]:
            found = []
            for spec in specs:
                array, kind = arrays[f"{number}/{role}/{spec.name}"], numpy_dtype(spec.dtype)
                if array.dtype.kind == "V" and array.dtype.itemsize == kind.itemsize:
                    array = array.view(kind)  # np.load() drops the names of bfloat16 and similar dtypes
                if array.dtype != kind or array.ndim != len(spec.shape):
                    raise ValueError(f"{role} {spec.name!r} is {array.dtype} {list(array.shape)}")
                found.append(array)
            return found

        return [
            (values(number, "in", program.inputs), values(number, "out", program.outputs))
            for number in numbers
        ]


# ----- reading ---------------------------------------------------------------------------------


def parse_program(data: bytes | str) -> Program:
    """Parse and check a program.json. Raises InvalidModel with the place and the defect."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{PROGRAM_JSON} is not JSON: {error}"[:300]) from None
    top = _Node(body, PROGRAM_JSON)
    form = top.get("format").value
    if form not in (FORMAT_PLAIN, FORMAT_PADDED, FORMAT) or isinstance(form, bool):
        raise InvalidModel(f"{PROGRAM_JSON} has format {form!r:.40}, this reads {FORMAT_PLAIN} to {FORMAT}")
    if form == FORMAT_PADDED:
        top.get("padded")
    elif form == FORMAT_PLAIN:
        top = top.without("padded")
    if form != FORMAT and top.has("variants"):
        plain = [variant.without("table").value for variant in top.get("variants").items(bounds.VARIANTS_MAX)]
        top = _Node({**top.value, "variants": plain}, top.place)
    program = cast(Program, _record(Program)(top))
    check(program)
    return program


# ----- checking --------------------------------------------------------------------------------


def check(program: Program) -> None:
    """Check everything that can be checked without the files. Raises InvalidModel with the value and the
    bound."""
    _check_interface(program)
    _check_paths(program)
    end = 0
    for index, weight in sorted(enumerate(program.weights), key=lambda pair: pair[1].offset):
        what = f"weight {index}"
        size = _bytes_of(weight.dtype, weight.shape, what, bounds.WEIGHTS_BYTES_MAX)
        if weight.bytes != size:
            raise InvalidModel(f"{what} has {weight.bytes} bytes, its type and shape say {size}")
        if weight.offset % WEIGHT_ALIGNMENT_BYTES:
            raise InvalidModel(f"{what} is at {weight.offset}, no multiple of {WEIGHT_ALIGNMENT_BYTES}")
        if weight.offset < end:
            raise InvalidModel(f"{what} at {weight.offset} lies over another, which ends at {end}")
        end = weight.offset + weight.bytes
    seen: dict[Any, int] = {}
    for index, variant in enumerate(program.variants):
        place = f"variant {index}"
        _check_variant(program, variant, place)
        key = (variant.target, variant.batch, variant.shapes)
        if key in seen:
            raise InvalidModel(f"{place} is for the target, batch and shapes of variant {seen[key]}")
        seen[key] = index
    for name in program.targets:
        if not any(variant.target == name for variant in program.variants):
            raise InvalidModel(f"target {name!r} has no variant")


def _check_interface(program: Program) -> None:
    if not program.outputs:
        raise InvalidModel("a program has at least one output")
    for role, specs in (("input", program.inputs), ("output", program.outputs)):
        names = [spec.name for spec in specs]
        if "" in names or len(set(names)) != len(names):
            raise InvalidModel(f"the names of the {role}s are {names}; each has one of its own")
        for spec in specs:
            if spec.dtype not in DTYPES or spec.dtype == STRING:
                raise InvalidModel(f"{role} {spec.name!r} has type {spec.dtype}, which no kernel can take")
            if program.batches and (not spec.shape or isinstance(spec.shape[0], int)):
                raise InvalidModel(
                    f"the program batches, but dimension 0 of {role} {spec.name!r} {list(spec.shape)} "
                    "is not a symbol"
                )
    if program.batches and not program.inputs:
        raise InvalidModel("a program without inputs does not batch")
    _check_padded(program)


def _check_padded(program: Program) -> None:
    if len(set(program.padded)) != len(program.padded):
        raise InvalidModel(f"the padded symbols {list(program.padded)} are not all different")
    for symbol in program.padded:
        if not symbol or not any(symbol in spec.shape for spec in program.inputs):
            raise InvalidModel(f"padded symbol {symbol!r:.60} is of no input")
        for spec in (*program.inputs, *program.outputs):
            if symbol in spec.shape and DTYPES[spec.dtype].bits % 8:
                raise InvalidModel(f"{spec.name!r} of type {spec.dtype} cannot be padded")
            if program.batches and symbol in spec.shape[:1]:
                raise InvalidModel(f"padded symbol {symbol!r} of {spec.name!r} is its batch")


def _check_paths(program: Program) -> None:
    if not program.targets:
        raise InvalidModel("a program has at least one target")
    for path, sha256 in program.files.items():
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path or str(pure) != path:
            raise InvalidModel(f"file path {path!r} leaves the package")
        if path in (PROGRAM_JSON, LIST_FILE):
            raise InvalidModel(f"{path} is not listed among a program's files")
        if not _SHA256.fullmatch(sha256):
            raise InvalidModel(f"the checksum of {path!r} is no sha256: {sha256[:80]!r}")
    for name, target in program.targets.items():
        if not _TARGET.fullmatch(name):
            raise InvalidModel(f"target {name!r:.60} is neither sm_NN nor {HOST}")
        if not target.modules:
            raise InvalidModel(f"target {name!r} has no module")
        if target.ptx and name == HOST:
            raise InvalidModel(f"target {name!r} has PTX, which only GPUs run")
        if target.ptx and len(target.ptx) != len(target.modules):
            raise InvalidModel(
                f"target {name!r} has PTX of {len(target.ptx)} of its {len(target.modules)} modules"
            )
        for path in target.files:
            if path not in program.files:
                raise InvalidModel(f"module {path!r} of target {name!r} is not among the files")


def _check_variant(program: Program, variant: Variant, place: str) -> None:
    target = program.targets.get(variant.target)
    if target is None:
        raise InvalidModel(f"{place} is for target {variant.target!r:.60}, which the program does not have")
    if not program.batches and variant.batch != 1:
        raise InvalidModel(f"{place} has batch {variant.batch}; a program that does not batch has 1")
    symbols: dict[str, int] = {}
    inputs = _check_shapes(program, variant, place, "input", program.inputs, variant.shapes, symbols)
    outputs = _check_shapes(
        program, variant, place, "output", program.outputs, variant.output_shapes, symbols
    )
    sizes: dict[str, Sequence[int]] = {
        "weight": [weight.bytes for weight in program.weights],
        "input": inputs,
        "output": outputs,
    }
    for number, entry in enumerate(variant.table):
        what = f"{place}: entry {number} of the table"
        if entry.kind not in TABLED:
            raise InvalidModel(f"{what} is of kind {entry.kind!r}; the kinds there are {', '.join(TABLED)}")
        _check_argument(program, variant, entry, sizes, what)
    for number, launch in enumerate(variant.launches):
        where = f"{place}: launch {number}"
        if launch.module >= len(target.modules):
            raise InvalidModel(f"{where} is of module {launch.module} of {len(target.modules)}")
        if not _KERNEL.fullmatch(launch.kernel):
            raise InvalidModel(f"{where}: {launch.kernel[:60]!r} is no kernel's name")
        threads = math.prod(launch.block)
        if threads > bounds.BLOCK_THREADS_MAX:
            raise InvalidModel(f"{where}: a block of {threads} threads; at most {bounds.BLOCK_THREADS_MAX}")
        for index, argument in enumerate(launch.args):
            _check_argument(program, variant, argument, sizes, f"{where}: argument {index}")
        _check_widths(variant, launch, where)
    # A slot keeps the content of earlier requests: an output that no launch writes would leak it.
    written = {
        argument.index for launch in variant.launches for argument in launch.args if argument.kind == "output"
    }
    for index, size in enumerate(outputs):
        if size and index not in written:
            raise InvalidModel(
                f"{place}: no launch gets output {program.outputs[index].name!r} of {size} bytes"
            )


def _check_shapes(
    program: Program, variant: Variant, place: str, role: str, specs: Sequence[TensorSpec],
    shapes: Sequence[Sequence[int]], symbols: dict[str, int],
) -> list[int]:  # fmt: skip
    """Return the bytes of each tensor. Raises InvalidModel unless the shapes are as declared.

    symbols: sizes by symbol, to which new symbols are added.
    """
    if len(shapes) != len(specs):
        raise InvalidModel(f"{place} has shapes of {len(shapes)} {role}s; the program has {len(specs)}")
    sizes = []
    for spec, shape in zip(specs, shapes, strict=True):
        what = f"{place}: {role} {spec.name!r} {list(shape)}"
        right = len(shape) == len(spec.shape)
        for declared, dim in zip(spec.shape, shape):
            right = right and dim == (
                declared
                if isinstance(declared, int)
                else symbols.setdefault(declared, dim)
                if declared
                else dim
            )
        if not right:
            raise InvalidModel(f"{what} is not {list(spec.shape)} as declared")
        if program.batches and shape[0] != variant.batch:
            raise InvalidModel(f"{what} has {shape[0]} rows; the variant's batch is {variant.batch}")
        sizes.append(_bytes_of(spec.dtype, shape, what, IO_SLOT_BYTES_MAX))
    return sizes


def _check_argument(
    program: Program, variant: Variant, argument: Argument, sizes: Mapping[str, Sequence[int]], where: str
) -> None:
    kind, index, value = argument.kind, argument.index, argument.value
    if kind == "size":
        if not 0 <= value < len(program.padded):
            raise InvalidModel(f"{where} is size {value}; {len(program.padded)} are padded")
        return
    if kind == "table":
        if not 0 <= value < len(variant.table):
            raise InvalidModel(f"{where} is entry {value} of the table, which has {len(variant.table)}")
        return
    if kind in SCALARS:
        least, most = SCALARS[kind]
        if not least <= value <= most:
            raise InvalidModel(f"{where}: {kind} {value} is outside {least}..{most}")
        return
    if kind == "workspace":
        room = variant.workspace
    elif 0 <= index < len(sizes[kind]):
        room = sizes[kind][index]
    else:
        raise InvalidModel(f"{where} is {kind} {index}; there are {len(sizes[kind])}")
    if not 0 <= value < max(room, 1):
        raise InvalidModel(f"{where}: offset {value} into {room} bytes of {kind}")


def _check_widths(variant: Variant, launch: Launch, where: str) -> None:
    """Raise InvalidModel for a vector access at an unaligned address. On a GPU such an access is a fault that
    loses the context."""
    pointers = variant.pointers(launch)
    if launch.widths and len(launch.widths) != len(pointers):
        raise InvalidModel(
            f"{where} tells the widths of {len(launch.widths)} pointers and has {len(pointers)}"
        )
    for number, (width, pointer) in enumerate(zip(launch.widths, pointers)):
        if not 1 <= width <= WEIGHT_ALIGNMENT_BYTES or width & (width - 1):
            raise InvalidModel(
                f"{where}: width {width} of pointer {number} is no power of two up to {WEIGHT_ALIGNMENT_BYTES}"
            )
        if int(pointer.value) % width:
            raise InvalidModel(
                f"{where}: pointer {number} is at {pointer.value} of {pointer.kind} {pointer.index}, which its "
                f"kernel's widest access of {width} bytes does not divide"
            )


def _bytes_of(dtype: int, shape: Sequence[int], what: str, most: int) -> int:
    """Return the bytes of a tensor. Raises InvalidModel for a dtype that kernels cannot take, or for more
    than ``most`` bytes."""
    if dtype not in DTYPES or dtype == STRING:
        raise InvalidModel(f"{what} has type {dtype}, which no kernel can take")
    size = (math.prod(shape) * DTYPES[dtype].bits + 7) // 8
    if size > most:
        raise InvalidModel(f"{what} takes {size} bytes; at most {most}")
    return size


# ----- writing ---------------------------------------------------------------------------------


_OPENED = ("inputs", "outputs", "weights", "targets", "variants", "launches", "files")
"""Keys whose entries get a line each."""


def _lines(body: Mapping[str, Any], depth: int) -> Iterator[str]:
    indent = " " * depth
    yield "{\n"
    for number, (key, value) in enumerate(body.items()):
        yield f"{indent} {json.dumps(key)}: "
        if key in _OPENED and value:
            is_map = isinstance(value, dict)
            yield "{\n" if is_map else "[\n"
            entries = value.items() if is_map else ((None, entry) for entry in value)
            for index, (name, entry) in enumerate(entries):
                yield f"{indent}  " + (f"{json.dumps(name)}: " if is_map else "")
                yield "".join(_lines(entry, depth + 2)) if key == "variants" else json.dumps(entry)
                yield "\n" if index == len(value) - 1 else ",\n"
            yield f"{indent} " + ("}" if is_map else "]")
        else:
            yield json.dumps(value)
        yield "\n" if number == len(body) - 1 else ",\n"
    yield indent + "}"


__all__ = [
    "CHECKS_FILE", "HOST", "POINTERS", "PROGRAM_JSON", "SCALARS", "WEIGHTS_FILE", "WEIGHT_ALIGNMENT_BYTES",
    "Argument", "Check", "Launch", "Program", "ProgramWeight", "TargetModules", "Variant", "check", "check_files",
    "offsets_of", "package_files", "parse_program", "program_hash", "read_checks", "read_program", "stored_damage",
    "write_checks", "write_program",
]  # fmt: skip
