"""Read untrusted ONNX files, and check them before ONNX Runtime reads them.

No function here runs a model. Errors are InvalidModel and name the file's defect. Whether ONNX Runtime has a
kernel for every operator is not checked here (see models.runtime).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, defs, helper, numpy_helper

from clockwork.config.client import HELD_BYTES_MAX
from clockwork.config.models import EXAMPLES_BYTES_MAX, EXAMPLES_MAX, GRAPH_DEPTH_MAX, OPTIONAL_INPUTS_MAX
from clockwork.device.operators import EXTENSION_DOMAINS
from clockwork.errors import InvalidModel
from clockwork.formats.archive import open_arrays
from clockwork.models import maps
from clockwork.wire import packages
from clockwork.wire.optional import (
    OPTIONAL_KEY,
    array_of,
    default_of,
    defaults_text,
    read_defaults,
    why_not_optional,
)
from clockwork.wire.packages import (
    EXAMPLES_FILE,
    LFS_POINTER,
    MODEL_FILE,
    Examples,
    PackageFiles,
    check_external_name,
    external_path,
)
from clockwork.wire.tensors import DTYPES, Array

_STANDARD_DOMAINS = ("", "ai.onnx")

_EXTENSIONS_SERVED = frozenset(
    (
        "BertTokenizer", "BertTokenizerDecoder", "BlingFireSentenceBreaker", "BpeDecoder", "CLIPTokenizer", "GPT2Tokenizer",
        "HfBertTokenizer", "HfJsonTokenizer", "MaskedFill", "RaggedTensorToDense", "RaggedTensorToSparse",
        "RobertaTokenizer", "SegmentExtraction", "SegmentSum", "SentencepieceDecoder", "SentencepieceTokenizer",
        "SpmTokenizer", "StringConcat", "StringEqual", "StringHash", "StringHashFast", "StringJoin", "StringLength",
        "StringLower", "StringMapping", "StringRaggedTensorToDense", "StringRegexReplace", "StringRegexSplitWithOffsets",
        "StringSplit", "StringStrip", "StringToVector", "StringUpper", "TrieDetokenizer", "TrieTokenizer",
        "VectorToString", "WordpieceTokenizer",
    )
)  # fmt: skip
"""Operators of onnxruntime-extensions that are served: operators on texts. Among the others, ImageReader
reads files that a request names, and DecodeImage ends the process at a damaged image."""


# ----- the file ------------------------------------------------------------------------------


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file, without its external data. Raises InvalidModel."""
    return parse_model(_read(path), path.name)


def _read(path: Path) -> bytes:
    """Return the content of a file. Raises InvalidModel."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidModel(f"{path} does not exist") from None
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from None


def parse_model(data: bytes, name: str) -> onnx.ModelProto:
    """Parse the content of an ONNX file of this name. Raises InvalidModel."""
    if data.startswith(LFS_POINTER):
        raise InvalidModel(f"{name} is a pointer of Git LFS, not the model: `git lfs pull` brings it")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        # An ONNX file begins with field 1, ir_version, a small varint.
        begun = len(data) > 2 and data[0] == 0x08 and 1 <= data[1] < 0x40
        what = "is truncated or damaged" if begun else "is not an ONNX model"
        raise InvalidModel(f"{name} {what} ({len(data)} bytes)") from None
    if not model.ir_version or not model.HasField("graph"):
        raise InvalidModel(f"{name} is not an ONNX model ({len(data)} bytes hold no graph)")
    return model


def check_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file and check all that can be checked without running it. Raises InvalidModel."""
    path = Path(path)
    model = read_model(path)
    _check(model, path, in_memory=False)
    return model


def import_model(
    path: Path, data: bytes | None = None, given: Collection[str] = (), optional: Collection[str] | None = ()
) -> tuple[onnx.ModelProto, bytes | None]:
    """Check a model for a package. Return the model, and the content of the package's file; None: that of
    ``path``, which has more than HELD_BYTES_MAX bytes.

    given: names of inputs for which examples have values. optional: names of inputs with a default that a
    request may omit; None: those of optional_by_default(). Both become optional inputs (wire.optional);
    other defaults become constants. Raises InvalidModel, also if a name in ``optional`` is no input with a
    default, or cannot be optional.

    Lists of maps become tensors, and defaults are removed, at this point and not at preparation, so that the
    file in a package has the interface that is served. Equal files give equal bytes.
    """
    model, content, _ = _imported(Path(path), data, given, optional)
    return model, content


def _imported(
    path: Path, data: bytes | None, given: Collection[str], optional: Collection[str] | None
) -> tuple[onnx.ModelProto, bytes | None, list[str]]:
    """Return the results of import_model(), and external_files() of the model. Raises InvalidModel."""
    content = _read(path) if data is None else data
    model = parse_model(content, path.name)
    is_changed = _make_optional(model, path, given, optional)
    is_changed |= maps.make_tensors(model)
    locations = _check(model, path, data is not None)
    if is_changed:
        return model, model.SerializeToString(deterministic=True), locations
    # A small file is sent as it was checked, and is not read again for its hash and its upload.
    is_held = data is not None or len(content) <= HELD_BYTES_MAX
    return model, content if is_held else None, locations


def _make_optional(
    model: onnx.ModelProto, path: Path, given: Collection[str], optional: Collection[str] | None
) -> bool:
    """Remove defaults from inputs and record them in the metadata. Return whether there were any.

    An input with values in examples that cannot be optional becomes a plain input, which every request must
    give.
    """
    graph = model.graph
    declared = {value.name: value for value in graph.input}
    defaults = {tensor.name: tensor for tensor in graph.initializer if tensor.name in declared}
    wanted = dict.fromkeys(optional_by_default(model) if optional is None else optional)
    for name in wanted:
        if name not in defaults:
            known = ", ".join(map(repr, defaults)) or "none"
            raise InvalidModel(f"{path.name} has no input {name!r} with a default; those that have: {known}")
        if why := _why_not_optional(declared[name], defaults[name]):
            raise InvalidModel(f"{path.name}: input {name!r} cannot be optional: {why}")
    plain = set()
    for name in defaults:
        if name in given and name not in wanted:
            if _why_not_optional(declared[name], defaults[name]):
                plain.add(name)
            else:
                wanted[name] = None
    found = {name: default_of(numpy_helper.to_array(defaults[name])) for name in wanted}
    if not found and not plain:
        return False
    found |= {name: default_of(array) for name, array in optional_inputs(model).items()}
    held = graph.initializer
    kept = [
        TensorProto.FromString(tensor.SerializeToString())
        for tensor in held
        if tensor.name not in found and tensor.name not in plain
    ]
    del held[:]
    held.extend(kept)
    if found:
        for name, default in found.items():  # the file may declare no shape
            dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in default.shape]
            declared[name].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
        others = [entry for entry in model.metadata_props if entry.key != OPTIONAL_KEY]
        entry = onnx.StringStringEntryProto(key=OPTIONAL_KEY, value=defaults_text(found))
        model_entries = [
            onnx.StringStringEntryProto.FromString(other.SerializeToString()) for other in others
        ]
        del model.metadata_props[:]
        model.metadata_props.extend([*model_entries, entry])
    return True


def _why_not_optional(declared: onnx.ValueInfoProto, default: TensorProto) -> str:
    """Return the reason why an input with this default cannot be optional; "" if it can."""
    if is_external(default):
        return "its default lies in another file"
    if declared.type.tensor_type.elem_type != default.data_type:
        return "its default is of another type"
    shape = [
        dim.dim_value if dim.HasField("dim_value") else "" for dim in declared.type.tensor_type.shape.dim
    ]
    if not declared.type.tensor_type.HasField("shape"):
        shape = list(default.dims)
    return why_not_optional(default.data_type, shape) or (
        "" if shape == list(default.dims) else f"its default is not of its shape {shape}"
    )


def optional_by_default(model: onnx.ModelProto) -> list[str]:
    """Return the inputs with a default that a registration makes optional unless it names others.

    These are all inputs with a default. Some exporters list weights as inputs, too. An input whose default is
    too large for an optional input, or more inputs than a model may have, are evidence of weights. The result
    then has only inputs that decide which operators run: from such an input and constants alone, the graph
    computes the condition of an If, or the condition or iteration count of a Loop.

    The result is empty for IR versions before 4: every initializer had to be an input, and ONNX Runtime takes
    no other value for it.
    """
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    declared = [value for value in graph.input if value.name in held]
    if model.ir_version < 4:
        return []
    able = [value.name for value in declared if not _why_not_optional(value, held[value.name])]
    if len(able) < len(declared) or len(able) > OPTIONAL_INPUTS_MAX:
        return [name for name in able if _steers(graph, name, held)][:OPTIONAL_INPUTS_MAX]
    return able


def _steers(graph: onnx.GraphProto, name: str, held: Collection[str]) -> bool:
    constants = set(held)
    made = {name}  # values computed from the input and constants alone
    for node in nodes_within(graph.node):
        read = [value for value in node.input if value]
        if (node.op_type == "If" and read[:1] and read[0] in made) or (
            node.op_type == "Loop" and any(value in made for value in node.input[:2] if value)
        ):
            return True
        if any(body for attribute in node.attribute for body in bodies_of(attribute)):
            continue
        if any(value in made for value in read) and all(
            value in made or value in constants for value in read
        ):
            made.update(node.output)
        elif node.op_type == "Constant" or (read and all(value in constants for value in read)):
            constants.update(node.output)
    return False


def _check(model: onnx.ModelProto, path: Path, in_memory: bool) -> list[str]:
    """Check a model, and return its external_files(). Raises InvalidModel."""
    _check_versions(model, path.name)
    _check_graph(model, path.name)
    tensors = list(tensors_of(model))
    locations = _locations_of(tensors)
    for location in locations:
        file = external_path(path.parent, location)
        if in_memory or not file.is_file():
            raise InvalidModel(f"{path.name} refers to external data {location!r}, which is not beside it")
    for tensor in tensors:
        _check_tensor(tensor, path)
    check_interface(model, path.name)
    _check_operators(model, path.name)
    return locations


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    for node in nodes_of(model):
        if node.domain in EXTENSION_DOMAINS and node.op_type not in _EXTENSIONS_SERVED:
            hint = "; `clockwork models add --image` has images decoded" if "Image" in node.op_type else ""
            raise InvalidModel(
                f"{name} uses operator {node.domain}.{node.op_type}: of onnxruntime-extensions, those for texts are served{hint}"
            )


def _check_versions(model: onnx.ModelProto, name: str) -> None:
    if not model.opset_import:
        raise InvalidModel(f"{name} imports no operator set")
    newest = defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in _STANDARD_DOMAINS and not 1 <= opset.version <= newest:
            raise InvalidModel(f"{name} needs ONNX opset {opset.version}; 1 to {newest} are supported")


def _check_graph(model: onnx.ModelProto, name: str) -> None:
    """Raise InvalidModel unless every value that is read is defined.

    Operators are not checked, because ONNX Runtime has operators beyond the standard.
    """

    def walk(graph: onnx.GraphProto, outer: frozenset[str], depth: int) -> None:
        if depth > GRAPH_DEPTH_MAX:
            raise InvalidModel(f"{name} nests subgraphs deeper than {GRAPH_DEPTH_MAX}")
        known = {value.name for value in graph.input} | {t.name for t in graph.initializer}
        known |= {t.values.name for t in graph.sparse_initializer}
        for node in graph.node:
            known.update(node.output)
        scope = outer | known
        for node in graph.node:
            label = f"{node.op_type} ({node.name})" if node.name else node.op_type
            for value in node.input:
                if value and value not in scope:
                    raise InvalidModel(f"{name}: operator {label} reads {value!r}, which nothing defines")
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                    walk(body, scope, depth + 1)
        if depth == 0:
            if not graph.output:
                raise InvalidModel(f"{name} has no output")
            for output in graph.output:
                if output.name not in known:
                    raise InvalidModel(f"{name}: nothing computes its output {output.name!r}")

    walk(model.graph, frozenset(), 0)


def check_interface(model: onnx.ModelProto, name: str) -> None:
    """Raise InvalidModel unless all inputs and outputs are tensors."""
    held = {tensor.name for tensor in model.graph.initializer}
    for role, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.name in held:
                continue
            kind = value.type.WhichOneof("value")
            if kind not in (None, "tensor_type"):
                hint = ""
                if kind == "sequence_type" and value.type.sequence_type.elem_type.HasField("map_type"):
                    hint = "; registration with clockwork-serving makes tensors of ZipMap's outputs"
                elif kind == "sequence_type" and role == "output":
                    hint = "; a classifier of several targets gives one: export a model for each target"
                raise InvalidModel(
                    f"{name}: {role} {value.name!r} is a {str(kind).removesuffix('_type')}; "
                    f"only tensors can be served{hint}"
                )


# ----- tensors and external data -------------------------------------------------------------


def bodies_of(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in an operator's attribute."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def nodes_within(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the operators, each followed by the operators in its bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in bodies_of(attribute):
                yield from nodes_within(body.node)


def names_of(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of all values in a graph and in its bodies, with repetitions."""
    for values in (graph.input, graph.output, graph.initializer, graph.value_info):
        yield from (value.name for value in values)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            for body in bodies_of(attribute):
                yield from names_of(body)


def free_names(model: onnx.ModelProto, *wanted: str) -> dict[str, str]:
    """Return, for each wanted name, a similar name that no value of the model has."""
    taken = set(names_of(model.graph))
    found = {}
    for name in wanted:
        free = name
        while free in taken:
            free += "_"
        taken.add(free)
        found[name] = free
    return found


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every operator of a model, including subgraphs and functions."""

    yield from nodes_within(model.graph.node)
    for function in model.functions:
        yield from nodes_within(function.node)


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every constant of a model: initializers and attributes, including subgraphs and functions."""

    def of_nodes(nodes: Any) -> Iterator[TensorProto]:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for body in bodies_of(attribute):
                    yield from of_graph(body)

    def of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
        yield from graph.initializer
        yield from of_nodes(graph.node)

    yield from of_graph(model.graph)
    for function in model.functions:
        yield from of_nodes(function.node)


def is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def external_entry(tensor: TensorProto) -> tuple[str, int, int]:
    """Return an external tensor's location, offset and length (-1: to the end). Raises InvalidModel."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        return entries["location"], int(entries.get("offset", 0)), int(entries.get("length", -1))
    except (KeyError, ValueError):
        raise InvalidModel(f"tensor {tensor.name!r} has no readable place of its external data") from None


def external_files(model: onnx.ModelProto) -> list[str]:
    """Return the locations of all external data files, in order of first use."""
    return _locations_of(tensors_of(model))


def _locations_of(tensors: Iterable[TensorProto]) -> list[str]:
    found: dict[str, None] = {}
    for tensor in tensors:
        if is_external(tensor):
            found.setdefault(external_entry(tensor)[0])
    return list(found)


def tensor_bytes(dtype: int, shape: Sequence[int]) -> int:
    """Return a tensor's bytes in memory, where two 4-bit elements share a byte. Raises InvalidModel."""
    kind = DTYPES.get(dtype)
    if kind is None or dtype == TensorProto.STRING:
        raise InvalidModel(f"a tensor of type {dtype} has no size that is known")
    return (math.prod(shape) * kind.bits + 7) // 8


def _check_tensor(tensor: TensorProto, path: Path) -> None:
    """Raise InvalidModel unless a constant has as many bytes as its shape requires."""
    if any(size < 0 for size in tensor.dims):
        raise InvalidModel(f"{path.name}: tensor {tensor.name!r} has a negative dimension")
    if tensor.data_type == TensorProto.STRING:
        return
    size = tensor_bytes(tensor.data_type, tensor.dims)
    if is_external(tensor):
        location, offset, length = external_entry(tensor)
        file = external_path(path.parent, location)
        held = file.stat().st_size - offset
        if offset < 0 or held < size or length not in (-1, size):
            raise InvalidModel(
                f"{path.name}: tensor {tensor.name!r} needs {size} bytes of {location!r} from {offset}, "
                f"which has {max(held, 0)}"
            )
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise InvalidModel(
            f"{path.name}: tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes, its shape says {size}"
        )


# ----- packages ------------------------------------------------------------------------------


def package_files(
    model_path: Path,
    examples: Examples = None,
    data: bytes | None = None,
    optional: Collection[str] | None = None,
) -> PackageFiles:
    """Check a model, and return the files of its package, model first. Raises InvalidModel.

    examples: see Examples; keys are names of the model's inputs, of which inputs with a default may be
    omitted. optional: see import_model(). data: the file's content, where it is in memory and has no external
    data.
    """
    model_path = Path(model_path)
    model, content, locations = _imported(model_path, data, _names_of(examples), optional)
    files: PackageFiles = [(MODEL_FILE, model_path if content is None else content)]
    for location in locations:
        check_external_name(location)
        files.append((location, external_path(model_path.parent, location)))
    packed = pack_examples(model, examples)
    if packed:
        files.append((EXAMPLES_FILE, packed))
    return files


def _names_of(examples: Examples) -> set[str]:
    rows = [examples] if isinstance(examples, Mapping) else examples or []
    return {str(name) for row in rows if isinstance(row, Mapping) for name in row}


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs without an initializer."""
    held = {tensor.name for tensor in model.graph.initializer}
    held |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in held]


def pack_examples(model: onnx.ModelProto, examples: Examples) -> bytes:
    """Return the content of examples.npz (see wire.packages); b"" without examples. Raises InvalidModel."""
    declared = []
    for value in real_inputs(model):
        tensor = value.type.tensor_type
        rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
        declared.append(packages.DeclaredInput(value.name, tensor.elem_type, rank))
    return packages.pack_examples(declared, examples, optional_inputs(model))


def optional_inputs(model: onnx.ModelProto) -> dict[str, Array]:
    """Return the default of each optional input of a packaged model. Raises InvalidModel."""
    types = {value.name: value.type.tensor_type for value in model.graph.input}
    declared = [
        (name, kind.elem_type, [dim.dim_value if dim.HasField("dim_value") else "" for dim in kind.shape.dim])
        for name, kind in types.items()
    ]
    found = read_defaults(metadata_of(model), declared)
    return {name: array_of(default, types[name].elem_type) for name, default in found.items()}


def read_examples(directory: Path, model: onnx.ModelProto) -> list[list[Array]]:
    """Read the examples of a package, each a list in the order of the model's inputs. Raises InvalidModel."""
    path = directory / EXAMPLES_FILE
    if not path.is_file():
        return []
    inputs = real_inputs(model)
    with open_arrays(path, EXAMPLES_BYTES_MAX) as arrays:
        indices = sorted({int(key.split("/", 1)[0]) for key in arrays.files})
        return [
            [_as_declared(arrays[f"{index}/{value.name}"], value.type.tensor_type.elem_type)
             for value in inputs]
            for index in indices[:EXAMPLES_MAX]
        ]  # fmt: skip


def _as_declared(array: Array, dtype: int) -> Array:
    """Restore the declared dtype, because np.load() loses types that NumPy itself lacks, such as bfloat16."""
    if dtype == TensorProto.STRING:
        plain = array.astype(object)
        if array.dtype.kind == "V":
            plain.reshape(-1)[:] = [bytes(text) for text in array.reshape(-1)]
        return plain
    expected = helper.tensor_dtype_to_np_dtype(dtype)
    return array.view(expected) if array.dtype.kind == "V" else array


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
