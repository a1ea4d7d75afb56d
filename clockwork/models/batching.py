"""Decide whether requests may share an execution: whether the rows of a model are independent.

A symbolic first dimension does not prove it: the dimension may be time, or the model may normalise over all
rows. Nor do equal answers of some rows in a batch and alone: rows may influence each other only for other
values, or behind an argmax. A model therefore batches if its graph proves independence (models.compile.rows),
or if its registration asks for batching. In both cases rows are also run in a batch and alone; without a
proof, with extreme values as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx

from clockwork.errors import InvalidModel
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import TensorSpec
from clockwork.models.answers import difference, is_integer_array
from clockwork.models.compile.rows import prove_rows
from clockwork.models.compile.sizes import NotProven
from clockwork.models.inputs import Run, different_rows
from clockwork.models.runtime import RunError
from clockwork.wire.tensors import Array

TRIED_ROWS = 3  # Number of rows that are run both as a batch and alone
PROVEN = "proven: no operator lets rows meet"

EXTREMES = (0.0, 1e4, -1e4, 1e-6, float("nan"))
"""Values of a row that is run beside another row, where rows are not proven to be independent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    batches: bool
    note: str  # the reason, as a sentence for the user


def why_rows_meet(model: onnx.ModelProto, masked: bool = False) -> str:
    """Return the reason why rows of a model may influence each other; "" if they are proven independent.

    masked: see prove_rows().
    """
    try:
        prove_rows(model, masked)
    except NotProven as error:
        return str(error)
    return ""


def declared_reason(inputs: Sequence[TensorSpec]) -> str:
    """Return the reason why the declared shapes of non-optional inputs rule out batches; "" if they permit
    them.

    Declared shapes of outputs are ignored, because converters declare a fixed size or another name for the
    rows of an output. The graph determines which outputs have rows.
    """
    symbols: dict[str, None] = {}
    if not inputs:
        return "it has no input"
    for spec in inputs:
        if not spec.shape:
            return f"input {spec.name!r} has no first dimension"
        first = spec.shape[0]
        if isinstance(first, int):
            return f"input {spec.name!r} has a fixed first dimension of {first}"
        if first == "...":
            return f"input {spec.name!r} has no declared shape"
        if is_named(first):
            symbols.setdefault(first)
    if len(symbols) > 1:
        return f"inputs do not share their first dimension ({', '.join(symbols)})"
    symbol = next(iter(symbols), "")
    for spec in inputs:
        if symbol and symbol in spec.shape[1:]:
            return f"dimension {symbol!r} of {spec.name!r} is not only its first"
    return ""


def prove_by_rows(run: Run, examples: Sequence[Sequence[Array]], asked: bool, meet: str) -> Proof:
    """Split examples of any number of rows into single rows, and judge batching with them as prove() does."""
    if any(
        array.ndim == 0 or array.shape[0] != len(example[0])
        for example in examples
        for array in example
        if example[0].ndim
    ):
        bad = "its inputs do not have the same number of rows"
    elif not examples[0] or examples[0][0].ndim == 0 or not len(examples[0][0]):
        bad = "its inputs have no rows"
    else:
        bad = ""
    if bad:
        if asked:
            raise InvalidModel(f"batching was asked for, but {bad}")
        return Proof(False, bad)
    rows = [
        [array[row : row + 1] for array in example]
        for example in examples
        for row in range(min(TRIED_ROWS, len(example[0])))
    ]
    return prove(run, rows[0], rows[1:], asked, meet)


def prove(
    run: Run, inputs: Sequence[Array], more: Sequence[Sequence[Array]], asked: bool, meet: str
) -> Proof:
    """Decide by the graph whether the model batches, and run different rows in a batch and alone.

    run: the model. inputs: a single row. more: other examples, of which those of equal shape are used as
    rows. asked: the registration asks for batches. A difference is then only noted, and a model that cannot
    run a batch raises InvalidModel. meet: why_rows_meet() of the model.
    """
    if meet and not asked:
        return Proof(False, f"not proven that rows are independent: {meet}")
    rows = [list(inputs)]
    for example in more:
        if len(rows) < TRIED_ROWS - 1 and [a.shape for a in example] == [a.shape for a in inputs]:
            rows.append(list(example))
    rows.extend(different_rows(inputs, TRIED_ROWS)[1 : 1 + TRIED_ROWS - len(rows)])
    failure, apart, together = _structural(run, rows)
    if failure:
        if asked:
            raise InvalidModel(f"batching was asked for, but {failure}")
        return Proof(False, failure)
    found = _difference(apart, together)
    if not meet:
        if not found:
            return Proof(True, PROVEN)
        what = f"rows answer differently together and apart, although no operator lets them meet: {found}"
        return Proof(True, f"asked for, although {what}") if asked else Proof(False, what)
    for extreme in EXTREMES:
        found = found or _beside(run, rows[0], apart[0], extreme)
    if found:
        return Proof(True, f"asked for, although rows answer differently together and apart: {found}")
    tried = 1 + len(EXTREMES)
    return Proof(True, f"asked for, and not refuted by {tried} batches, but not proven: {meet}")


def _difference(apart: Sequence[Sequence[Array]], together: Sequence[Array]) -> str:
    for index, alone in enumerate(apart):
        text = difference([output[index : index + 1] for output in together], alone)
        if text:
            return text
    return ""


def _beside(run: Run, row: Sequence[Array], alone: Sequence[Array], extreme: float) -> str:
    """Compare a row's answers alone and beside extreme values; "" if equal, or if these are refused."""
    other = [
        array if array.dtype == bool or array.dtype.kind in "OSU" or is_integer_array(array)
        else np.full(array.shape, extreme).astype(array.dtype)
        for array in row
    ]  # fmt: skip
    try:
        together = run([np.concatenate(pair, axis=0) for pair in zip(row, other, strict=True)])
    except RunError:
        return ""
    if any(output.ndim == 0 or len(output) != 2 for output in together):
        return "the shape of an output depends on which rows share a batch"
    return difference([output[:1] for output in together], alone)


def _structural(run: Run, rows: Sequence[Sequence[Array]]) -> tuple[str, list[list[Array]], list[Array]]:
    """Run rows alone and as a batch. Return the reason why shapes rule out batching, and the outputs."""
    try:
        apart = [run(row) for row in rows]
    except RunError as error:
        return f"could not be verified: {error}", [], []
    try:
        together = run([np.concatenate(parts, axis=0) for parts in zip(*rows)])
    except RunError as error:
        return f"it does not run with {len(rows)} rows: {error}", apart, []
    except ValueError as error:
        return f"its inputs cannot be joined on their first dimension: {error}", apart, []
    for index, output in enumerate(together):
        alone = apart[0][index]
        if output.ndim == 0 or alone.ndim == 0 or alone.shape[0] != 1 or output.shape[0] != len(rows):
            return f"output {index} does not have one row for each row of input", apart, together
        if any(outputs[index].shape[1:] != output.shape[1:] for outputs in apart):
            return f"the shape of output {index} depends on which rows share a batch", apart, together
    return "", apart, together
