"""Proves that the rows of a model are independent, so that requests may share an execution.

A symbolic first dimension is not enough: it may be time, or the model may scale over all rows. So different
rows are run together and apart; only equal answers prove that the model batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from clockwork.errors import InvalidModel
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import TensorSpec
from clockwork.models.answers import any_finite, difference
from clockwork.models.inputs import Run, different_rows
from clockwork.models.runtime import RunError
from clockwork.wire.tensors import Array

PROOF_ROWS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    batches: bool
    note: str  # why, for people


def declared_reason(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Why the declared shapes do not allow a batch, as a sentence; "" if they do."""
    symbols: dict[str, None] = {}
    if not inputs:
        return "it has no input"
    for role, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            # An output of unknown shape is declared as (): its returned shape decides then.
            if not spec.shape:
                if role == "input":
                    return f"input {spec.name!r} has no first dimension"
                continue
            first = spec.shape[0]
            if isinstance(first, int):
                return f"{role} {spec.name!r} has a fixed first dimension of {first}"
            if first == "...":
                return f"input {spec.name!r} has no declared shape"
            if is_named(first):
                symbols.setdefault(first)
    if len(symbols) > 1:
        return f"inputs and outputs do not share their first dimension ({', '.join(symbols)})"
    symbol = next(iter(symbols), "")
    for spec in (*inputs, *outputs):
        if symbol and symbol in spec.shape[1:]:
            return f"dimension {symbol!r} of {spec.name!r} is not only its first"
    return ""


def prove_by_rows(run: Run, examples: Sequence[Sequence[Array]], asked: bool) -> Proof:
    """prove() for examples of any number of rows, which are split into rows."""
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
        for row in range(min(PROOF_ROWS, len(example[0])))
    ]
    return prove(run, rows[0], rows[1:], asked)


def prove(run: Run, inputs: Sequence[Array], more: Sequence[Sequence[Array]], asked: bool) -> Proof:
    """Run different rows together and apart.

    run: the model. inputs: a single row. more: other examples; those of equal shape are used as rows, too.
    asked: the user asked for batches, so a difference in values is only noted, and a model that cannot
    run a batch at all is an error (InvalidModel).
    """
    rows = [list(inputs)]
    for example in more:
        if len(rows) < PROOF_ROWS - 1 and [a.shape for a in example] == [a.shape for a in inputs]:
            rows.append(list(example))
    rows.extend(different_rows(inputs, PROOF_ROWS)[1 : 1 + PROOF_ROWS - len(rows)])
    failure, apart, together = _structural(run, rows)
    if failure:
        if asked:
            raise InvalidModel(f"batching was asked for, but {failure}")
        return Proof(False, failure)
    same = all(np.array_equal(a, b) for row in rows[1:] for a, b in zip(row, rows[0]) if a.size)
    if same and not asked:
        return Proof(False, "could not be verified: no rows that differ are known; give examples")
    for index, alone in enumerate(apart):
        text = difference([output[index : index + 1] for output in together], alone)
        if text:
            what = f"rows answer differently together and apart: {text}"
            return Proof(True, f"asked for, although {what}") if asked else Proof(False, what)
    if not any_finite([output for alone in apart for output in alone]):
        note = "could not be verified: the answers hold no finite number; give examples"
        return Proof(asked, note)
    return Proof(True, f"proven: {len(rows)} different rows answer the same together and apart")


def _structural(run: Run, rows: Sequence[Sequence[Array]]) -> tuple[str, list[list[Array]], list[Array]]:
    """Why joined rows do not even give joined outputs ("" if they do), and the outputs apart and together."""
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
