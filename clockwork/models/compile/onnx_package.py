"""An ONNX package, as a worker has it, becomes a program package for its devices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clockwork.models.compile.compiler import BATCHES, Options, compile_model, require
from clockwork.models.onnx_import import check_model, read_examples
from clockwork.models.package import LIST_FILE, MODEL_FILE, digest_of, parse_files
from clockwork.models.program import PROGRAM_JSON

Progress = Callable[[str, int, int], None]

EXAMPLES_COMPARED = 4
"""Examples on which the program must answer as ONNX Runtime does."""


def compile_package(
    package_dir: Path,
    store: Path,
    target: str,
    options: Mapping[str, Any],
    progress: Progress | None = None,
) -> Path:
    """The directory of the program package for a target, made now or found made. Raises InvalidModel.

    package_dir: an ONNX package. options: as in messages.Prepare (``batching``, ``batch_max``). Shapes that
    the model leaves open are those of its examples. Kept below <store>/compiled; kernels that models of equal
    architecture share are kept there, too, so that the next of them is only given its weights.
    """
    package_dir, store = Path(package_dir), Path(store)
    require()
    files = parse_files(json.loads((package_dir / LIST_FILE).read_text()))
    batching, most = str(options.get("batching", "auto")), int(options.get("batch_max", 0))
    result = store / "compiled" / f"{digest_of(files)}-{target}-{batching}-{most}"
    if (result / PROGRAM_JSON).is_file():
        return result
    shutil.rmtree(result, ignore_errors=True)
    model_path = package_dir / MODEL_FILE
    model = check_model(model_path)
    examples = read_examples(package_dir, model)
    names = [spec.name for spec in model.graph.input if not _is_held(model, spec.name)]
    shapes: dict[str, list[list[int]]] = {}
    for one in {tuple(array.shape[1:] for array in row): row for row in reversed(examples)}.values():
        for name, array in zip(names, one, strict=True):
            shapes.setdefault(name, []).append(list(array.shape))
    batches = tuple(one for one in BATCHES if not most or one <= most)
    compile_model(
        model_path,
        result,
        Options(
            targets=(target,),
            batches=(*batches, most) if most and most not in batches else batches,
            shapes=shapes,
            batching=batching,
            examples=examples[:EXAMPLES_COMPARED],
            cache=store / "compiled" / "kernels",
        ),
        progress,
    )
    return result


def _is_held(model: Any, name: str) -> bool:
    return any(tensor.name == name for tensor in model.graph.initializer)
