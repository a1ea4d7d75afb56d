"""Judges whether models can batch: by their graph, and by a run of three rows, as an older version did.

    python -m bench.batching [--json] [--changed] [FILE.onnx | FOLDER | ARCHIVE.zip ...]

For each model: whether three different rows have the same answers in one batch as alone, whether the graph
proves that rows are independent, and if not, where the graph mixes rows. Rows
are read from the file of the same name that ends in .npz, if there is one, and made up otherwise. Without
files: the zoo, and small models of many exporters, tests/data/exported.zip.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from bench import report
from clockwork.formats.prepared import TensorSpec
from clockwork.models import inputs as trial
from clockwork.models import zoo
from clockwork.models.answers import RELATIVE, difference
from clockwork.models.batching import TRIED_ROWS, declared_reason, why_rows_meet
from clockwork.models.runtime import ModelSession, RunError
from clockwork.wire.tensors import Array

EXPORTED = Path(__file__).parent.parent / "tests" / "data" / "exported.zip"

SEED = 1


class Judged(NamedTuple):
    name: str
    tried: str  # why three rows seem to depend on each other; "": they answer the same together and apart
    # where rows meet in the graph, or why the declared shapes allow no batch; "": rows are proven independent
    meet: str


def exported(archive: Path = EXPORTED) -> Iterator[tuple[str, onnx.ModelProto, list[Array]]]:
    """The models in an archive: name, model, and inputs of three rows."""
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if name.endswith(".onnx"):
                model = onnx.load_model_from_string(files.read(name))
                yield name[:-5], model, _rows(model, files.read(f"{name[:-5]}.npz"))


def _rows(model: onnx.ModelProto, data: bytes) -> list[Array]:
    arrays = np.load(io.BytesIO(data))
    held = {tensor.name for tensor in model.graph.initializer}
    return [arrays[value.name] for value in model.graph.input if value.name not in held]


def judge(name: str, model: onnx.ModelProto, rows: Sequence[Array] | None = None) -> Judged:
    """Judge a model. rows: inputs of three rows; made up if not given."""
    found = tried(model, rows)
    return Judged(name, found, why_rows_meet(model) or (found if "first dimension" in found else ""))


def tried(model: onnx.ModelProto, rows: Sequence[Array] | None) -> str:
    """The reason why three rows of a model seem to depend on each other; "" if they seem independent."""
    try:
        session = ModelSession(model.SerializeToString(), optimise=True)
        inputs = [TensorSpec(*described) for described in session.inputs]
        if why := declared_reason(inputs):
            return why
        if rows is None:
            guess, _, why = trial.first_that_runs(inputs, session.run)
            if guess is None:
                return why
            made = trial.different_rows([array[:1] for array in guess], TRIED_ROWS)
            rows = [np.concatenate(parts) for parts in zip(*made, strict=True)]
        together = session.run(rows)
        apart = [session.run([array[row : row + 1] for array in rows]) for row in range(len(rows[0]))]
    except RunError as error:
        return str(error)
    if any(output.ndim == 0 or len(output) != len(rows[0]) for output in together):
        return "an output does not have one row for each row of input"
    found = (
        difference([output[row : row + 1] for output in together], alone, 10 * RELATIVE)
        for row, alone in enumerate(apart)
    )
    return next(filter(None, found), "")


def measure(paths: Sequence[Path], quick: bool = False) -> list[Judged]:
    if not paths:
        return [
            *(judge(name, zoo.build(name)) for name in zoo.names()[: 3 if quick else None]),
            *(judge(*case) for case in itertools.islice(exported(), 20 if quick else None)),
        ]
    found: list[Judged] = []
    for path in paths:
        if path.suffix == ".zip":
            found += [judge(*case) for case in exported(path)]
            continue
        for file in sorted(path.rglob("*.onnx")) if path.is_dir() else [path]:
            model, beside = onnx.load(file), file.with_suffix(".npz")
            found.append(
                judge(file.stem, model, _rows(model, beside.read_bytes()) if beside.is_file() else None)
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--changed", action="store_true", help="only models whose verdict has changed")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    judged = measure(options.files, options.quick)
    rows: list[dict[str, Any]] = [
        {
            "model": verdict.name,
            "before": "batches" if not verdict.tried else "alone",
            "now": "proven" if not verdict.meet else "alone",
            "reason": verdict.meet or verdict.tried,
        }
        for verdict in judged
        if not options.changed or bool(verdict.tried) != bool(verdict.meet)
    ]
    counts = {
        f"{before}, {now}": sum((row["before"], row["now"]) == (before, now) for row in rows)
        for before in ("batches", "alone")
        for now in ("proven", "alone")
    }
    report.show("models that batch, before and now", SEED, rows, counts, options.json)


if __name__ == "__main__":
    main()
