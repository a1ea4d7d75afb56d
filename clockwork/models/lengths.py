"""Decide whether requests of different lengths may share a batch on a CPU.

If padding is proven harmless for rows of different lengths (models.compile.padding), a model is prepared with
masks and with an input for the true size of each row. The result is also tested: rows of different lengths
are run in a batch, with several values of padding, and compared with the original model's answers for each
row alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clockwork.device.operators import DOMAIN
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import TensorSpec
from clockwork.models.answers import difference
from clockwork.models.compile.following import Padding
from clockwork.models.compile.padding import make_padded_by_row, open_symbols, padded_inputs
from clockwork.models.compile.sizes import NotProven
from clockwork.models.inputs import SEED, Run
from clockwork.models.runtime import ModelSession, RunError
from clockwork.wire.tensors import DTYPES, STRING, Array, length_class

TOKENIZERS = frozenset(("BytePairs", "WordPiece"))
"""Clockwork's tokenizers: operators that turn texts into ids, a mask and types, each [rows, tokens]."""

TOKENS = "clockwork.tokens"  # Symbol of the number of tokens of a batch's longest text
TOKENS_TRIED = 8  # Number of tokens in the inputs with which shapes are inferred


@dataclasses.dataclass(frozen=True, slots=True)
class Sharing:
    """The proof that requests with different sizes in some symbols may share a batch."""

    padding: Padding
    inputs: Sequence[TensorSpec]

    @property
    def lengths(self) -> dict[str, int]:
        """By symbol: the largest size that the model accepts; 0: no limit is known."""
        return {symbol: self.padding.limits.get(symbol, 0) for symbol in self.padding.symbols}

    @property
    def output_lengths(self) -> list[list[str]]:
        """For each output, the symbol of each axis; "" for an axis without a symbol."""
        symbols = self.padding.symbols
        return [[str(dim) if dim in symbols else "" for dim in dims] for dims in self.padding.output_dims]

    def sized(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the prepared model's inputs: the original inputs, and for each symbol the rows' sizes."""
        sizes = self.sizes(inputs)
        return [
            *inputs,
            *(np.full(len(inputs[0]), sizes[symbol], np.int64) for symbol in self.padding.symbols),
        ]

    def sizes(self, inputs: Sequence[Array]) -> dict[str, int]:
        """Return the size of the inputs in each symbol."""
        return {
            str(dim): size
            for spec, array in zip(self.inputs, inputs, strict=True)
            for dim, size in zip(spec.shape, array.shape, strict=True)
            if dim in self.padding.symbols
        }

    def resized(self, inputs: Sequence[Array], sizes: dict[str, int]) -> list[Array]:
        """Return the inputs, cut or repeated to these sizes."""
        found = []
        for spec, array in zip(self.inputs, inputs, strict=True):
            for axis, dim in enumerate(spec.shape):
                if axis and dim in sizes:
                    array = array.take(np.arange(sizes[str(dim)]) % array.shape[axis], axis)
            found.append(array)
        return found


def has_open_axis(inputs: Sequence[TensorSpec]) -> bool:
    """Whether an input has an open dimension besides the batch, so that requests may differ in shape."""
    return any(isinstance(dim, str) for spec in inputs for dim in spec.shape[1:])


def reason_against(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Return the reason in the declared shapes against batches of different lengths; "" if none."""
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            if axis and isinstance(dim, str) and not is_named(dim):
                return f"dimension {axis} of input {spec.name!r} has no name, so it is unknown which dimensions it has to equal"
    for role, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            kind = DTYPES.get(spec.dtype)
            if spec.dtype == STRING or kind is None or kind.bits % 8:
                return f"{role} {spec.name!r} is of a type whose tensors are not padded"
    return ""


def share(
    model: onnx.ModelProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    row: Sequence[Array],
    run: Run,
    relative: float,
    target: Path,
) -> tuple[Sharing | None, str]:
    """Write a model that accepts rows of different lengths to ``target``.

    Return the proof and its summary, or None and the reason why there is no proof. model: a model that
    batches, changed in place. row: inputs of a single row. run: executes the original model.
    """
    if why := reason_against(inputs, outputs):
        return None, f"one length in a batch: {why}"
    symbols = open_symbols(inputs, batches=True)
    try:
        padding = make_padded_by_row(model, [array.shape for array in row], symbols)
    except NotProven as error:
        return None, f"one length in a batch: {error}"
    sharing = Sharing(padding, inputs)
    target.write_bytes(model.SerializeToString())
    try:
        text = _try(sharing, ModelSession(target, optimise=True), row, run, relative)
    except RunError as error:
        text = f"could not be tried: {error}"
    if text:
        return None, f"one length in a batch: {text}"
    _find_limits(sharing, row, run)
    return sharing, f"lengths share a batch ({', '.join(symbols)}): proven to change nothing, and tried"


def _try(sharing: Sharing, session: ModelSession, row: Sequence[Array], run: Run, relative: float) -> str:
    """Test the padded model. Return a sentence about a wrong answer; "" if none. Raises RunError."""
    full = sharing.sizes(row)
    if max(full.values()) < 2:
        return "could not be tried: no input is longer than 1; give examples"
    rng = np.random.default_rng(SEED)
    wanted = [full, {symbol: max(1, size // 2) for symbol, size in full.items()}]
    wanted += [{symbol: int(rng.integers(1, size + 1)) for symbol, size in full.items()} for _ in range(2)]
    rows = [sharing.resized(row, sizes) for sizes in wanted]
    shapes = [array.shape for array in row]
    sizes = [np.array([size[symbol] for size in wanted], np.int64) for symbol in sharing.padding.symbols]
    answers = []
    for filling in _fillings(row):
        padded = [padded_inputs(alone, shapes, filling) for alone in rows]
        answers.append(session.run([*(np.concatenate(parts) for parts in zip(*padded)), *sizes]))
    for number, (alone, own) in enumerate(zip(rows, wanted, strict=True)):
        zeros, others = (
            [
                output[number : number + 1][tuple(slice(own.get(str(dim))) for dim in dims)]
                for output, dims in zip(answer, sharing.padding.output_dims, strict=True)
            ]
            for answer in answers
        )
        if text := difference(others, zeros, 0):
            return f"values behind the end of a row change its answer: {text}"
        if text := difference(zeros, run(alone), relative):
            return f"rows of different length answer differently together and alone: {text}"
    return ""


def _find_limits(sharing: Sharing, row: Sequence[Array], run: Run) -> None:
    """Find by bisection the largest size that the model accepts, for symbols whose limit the graph does not
    give.

    The search is skipped if the model accepts the largest size of the example's length class, at which it is
    timed.
    """
    limits = sharing.padding.limits
    for symbol, size in sharing.sizes(row).items():
        taken, refused = size, length_class(size)
        if symbol in limits or _takes(sharing, row, run, symbol, refused):
            continue
        while refused - taken > 1:
            middle = (taken + refused) // 2
            if _takes(sharing, row, run, symbol, middle):
                taken = middle
            else:
                refused = middle
        limits[symbol] = taken


def _takes(sharing: Sharing, row: Sequence[Array], run: Run, symbol: str, size: int) -> bool:
    try:
        run(sharing.resized(row, {symbol: size}))
    except RunError:
        return False
    return True


def _fillings(row: Sequence[Array]) -> list[list[Array]]:
    """Return values for padding, with which answers must be equal: zeros, and NaN or reversed integers."""
    zeros = [np.zeros_like(array) for array in row]
    other = [np.full_like(array, np.nan) if array.dtype.kind == "f" else array[:, ::-1] if array.ndim > 1 else array
             for array in row]  # fmt: skip
    return [zeros, other]


def mask_texts(model: onnx.ModelProto) -> str:
    """Insert masks of padding behind a model's tokenizer, if a proof permits it. Return "", or the reason
    against it.

    The tokenizer pads texts to the longest text of a batch, so that without masks a row's answer may depend
    on the length of another row. The model is changed in place. It begins with an operator of TOKENIZERS
    without a fixed length.
    """
    (tokenizer,) = (node for node in model.graph.node if is_padding_texts(node))
    behind = onnx.ModelProto()
    behind.CopyFrom(model)
    del behind.graph.node[:], behind.graph.input[:]
    behind.graph.node.extend(node for node in model.graph.node if node is not tokenizer)
    read = {name for node in behind.graph.node for name in node.input}
    texts = model.graph.input[0].type.tensor_type.shape.dim
    rows = texts[0].dim_param if texts else "N"
    behind.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, [rows or "N", TOKENS])
        for name in tokenizer.output
        if name in read
    )
    try:
        make_padded_by_row(behind, [(1, TOKENS_TRIED)] * len(behind.graph.input), (TOKENS,))
    except NotProven as error:
        return str(error)
    size = behind.graph.input[-1].name
    opset = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    axes = numpy_helper.from_array(np.array([1], np.int64), f"{size}.axes")
    if opset < 13:
        count = helper.make_node("ReduceSum", [tokenizer.output[1]], [size], axes=[1], keepdims=0)
    else:
        behind.graph.initializer.append(axes)
        count = helper.make_node("ReduceSum", [tokenizer.output[1], axes.name], [size], keepdims=0)
    nodes = [
        onnx.NodeProto.FromString(node.SerializeToString()) for node in (tokenizer, count, *behind.graph.node)
    ]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(behind.graph.initializer)
    return ""


def is_padding_texts(node: onnx.NodeProto) -> bool:
    """Whether a node is a tokenizer that pads to the longest text of a batch."""
    if node.domain != DOMAIN or node.op_type not in TOKENIZERS:
        return False
    length = next((attribute.i for attribute in node.attribute if attribute.name == "length"), 0)
    return not length
