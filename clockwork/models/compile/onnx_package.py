"""Compile a worker's ONNX package to a program package for its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clockwork.errors import InvalidModel
from clockwork.models.compile import nvrtc
from clockwork.models.compile.compiler import BATCHES, CompileOptions, compile_model, require
from clockwork.models.onnx_import import check_model, optional_inputs, read_examples, real_inputs
from clockwork.wire.packages import MODEL_FILE
from clockwork.wire.tensors import Array

EXAMPLES_COMPARED = 4  # Number of examples on which the program is compared with ONNX Runtime


def compile_package(
    package_dir: Path, directory: Path, target: str, options: Mapping[str, Any], cache: Path
) -> None:
    """Compile an ONNX package to a program package in ``directory`` for the architecture ``target``.

    options: as in messages.Prepare (``batching``, ``batch_max``, ``dtype``). The examples give the sizes of
    open dimensions. cache: directory of kernels, which later models of equal architecture reuse. Raises
    InvalidModel.
    """
    require()
    model_path = Path(package_dir) / MODEL_FILE
    model = check_model(model_path)
    if optional := optional_inputs(model):
        raise InvalidModel(
            f"optional inputs ({', '.join(optional)}) are served by CPU devices; registered with optional_inputs=[] "
            "(--optional-inputs ''), the model has their defaults as constants and can be compiled for GPUs"
        )
    examples = read_examples(Path(package_dir), model)
    shapes = _shapes([value.name for value in real_inputs(model)], examples)
    del model
    made = nvrtc.closest(target)
    most = int(options.get("batch_max", 0))
    batches = tuple(batch for batch in BATCHES if not most or batch <= most)
    compile_model(
        model_path,
        directory,
        CompileOptions(
            targets=(made.name,),
            ptx=made.is_ptx,
            batches=(*batches, most) if most and most not in batches else batches,
            shapes=shapes,
            batching=str(options.get("batching", "auto")),
            examples=examples[:EXAMPLES_COMPARED],
            dtype=str(options.get("dtype", "fp32")),
            cache=cache,
        ),
    )


def _shapes(names: Sequence[str], examples: Sequence[Sequence[Array]]) -> dict[str, list[list[int]]]:
    """Return the distinct sets of shapes of the examples, in order. Axis 0, the batch, is ignored."""
    distinct: dict[tuple[tuple[int, ...], ...], Sequence[Array]] = {}
    for row in examples:
        distinct.setdefault(tuple(array.shape[1:] for array in row), row)
    shapes: dict[str, list[list[int]]] = {}
    for row in distinct.values():
        for name, array in zip(names, row, strict=True):
            shapes.setdefault(name, []).append(list(array.shape))
    return shapes
