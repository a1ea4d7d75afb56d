"""Prepare program packages for CUDA devices: compile an ONNX model, and lay out the weights.

Compilation is for the architecture in the device's fingerprint, and needs the extra [compile]. No function
here opens a GPU. The worker checks answers and times executions on the device that will serve the model
(models/trials.py).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnx import TensorProto

from clockwork.errors import InvalidModel
from clockwork.formats.checksums import set_aside
from clockwork.formats.durable import write_durably
from clockwork.formats.interface import without_defaults
from clockwork.formats.package import put_in_place
from clockwork.formats.prepared import FORMAT_VERSION, JUDGED, WEIGHTS_FILE, PreparedModel, WeightSpec
from clockwork.formats.program import (
    CHECKS_FILE,
    Program,
    check_files,
    program_hash,
    read_checks,
    read_program,
    stored_damage,
)
from clockwork.formats.targets import FINGERPRINT_PREFIX, architecture_of, choose, describe_mismatch
from clockwork.models import onnx_import
from clockwork.models.answers import HALF_RELATIVE, QUANTISED_RELATIVE, RELATIVE
from clockwork.models.layout import WeightLayout, lay_out, write_weights
from clockwork.wire.packages import MODEL_FILE, PROGRAM_JSON

HOLDING = "program"

KERNELS_DIRECTORY = "kernels"
"""Directory of the store for compiled kernels, which later models of equal architecture reuse."""


def is_for(fingerprint: str) -> bool:
    """Whether devices of this fingerprint run compiled programs."""
    return fingerprint.startswith(FINGERPRINT_PREFIX)


def _metadata(package_dir: Path) -> dict[str, str]:
    """Return the metadata of a package's ONNX file (images, labels); empty for a program."""
    path = package_dir / MODEL_FILE
    return without_defaults(onnx_import.metadata_of(onnx_import.read_model(path))) if path.is_file() else {}


def prepare_program(
    package_dir: Path,
    store: Path,
    digest: str,
    fingerprint: str,
    page_bytes: int,
    options: Mapping[str, Any],
    directory: Path,
) -> PreparedModel:
    """Prepare a package in ``directory``, which lies beside prepared directories and is renamed by the
    caller.

    Raises InvalidModel, OSError. options: as in messages.Prepare.
    """

    target = architecture_of(fingerprint)
    batching = str(options.get("batching", "auto"))
    with _compiled(package_dir, store, directory.parent, target, options) as source:
        program = read_program(source)
        check_files(program, source)
        chosen = choose(program.targets, target)
        if chosen is None:
            raise InvalidModel(describe_mismatch(program.targets, target))
        variants = program.of_target(chosen.name)
        if batching == "on" and not program.batches:
            raise InvalidModel("the program does not batch; it has to be compiled so that it does")
        layout = lay_out([weight.bytes for weight in program.weights], page_bytes)
        _write_weights(program, source, layout, directory / WEIGHTS_FILE, page_bytes)
        name = program_hash(program)
        install(store, name, program, source)
        if read_checks(source, program):
            shutil.copyfile(source / CHECKS_FILE, directory / CHECKS_FILE)
    return PreparedModel(
        format_version=FORMAT_VERSION,
        digest=digest,
        fingerprint=fingerprint,
        program=name,
        holding=HOLDING,
        inputs=list(program.inputs),
        outputs=list(program.outputs),
        batches=program.batches and batching != "off",
        batching_note="switched off" if batching == "off" else "as it was compiled",
        batch_max=1,
        page_bytes=page_bytes,
        runs=layout.runs,
        weights=[
            WeightSpec(weight.dtype, weight.shape, run, offset, weight.bytes)
            for weight, (run, offset) in zip(program.weights, layout.places, strict=True)
        ],
        weights_bytes=program.weights_bytes,
        resident_bytes=sum(layout.runs) * page_bytes,
        load_ns=0,
        profile=[],
        constants_note="",
        metadata=_metadata(package_dir),
        example=[list(shape) for shape in variants[0].shapes],
        untried=True,
        check_relative=_relative(program),
        judged=JUDGED,
    )


@contextlib.contextmanager
def _compiled(
    package_dir: Path, store: Path, work: Path, target: str, options: Mapping[str, Any]
) -> Iterator[Path]:
    """Yield the program package's directory: the package itself, or a compiled package."""
    if (package_dir / PROGRAM_JSON).is_file():
        yield package_dir
        return
    if not (package_dir / MODEL_FILE).is_file():
        raise InvalidModel(f"a CUDA device takes packages with a {PROGRAM_JSON} or a {MODEL_FILE}")
    # A late import: only compilation needs it
    from clockwork.models.compile.onnx_package import compile_package

    made = Path(tempfile.mkdtemp(prefix=".preparing-", dir=work))
    try:
        compile_package(package_dir, made / "package", target, options, store / KERNELS_DIRECTORY)
        yield made / "package"
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_weights(program: Program, source: Path, layout: WeightLayout, path: Path, page_bytes: int) -> None:
    if not program.weights:
        return
    with open(source / WEIGHTS_FILE, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            tensors: list[Any] = [b"" for _ in program.weights]
            write_weights(path, layout, tensors, page_bytes)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as whole:
            tensors = [whole[weight.offset : weight.offset + weight.bytes] for weight in program.weights]
            write_weights(path, layout, tensors, page_bytes)
            for tensor in tensors:
                tensor.release()


def install(store: Path, name: str, program: Program, source: Path) -> None:
    """Write a program and its modules to the store, unless undamaged copies exist. source: the package."""
    place = store / "programs" / name
    if place.is_dir() and stored_damage(place):
        set_aside(place)

    def fill(made: Path) -> None:
        for path in sorted({path for target in program.targets.values() for path in target.files}):
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            write_durably(made / path, (source / path).read_bytes())
        write_durably(made / PROGRAM_JSON, program.stripped().to_json().encode())

    put_in_place(place, PROGRAM_JSON, fill)


def _relative(program: Program) -> float:
    if program.tolerance is not None:
        return program.tolerance
    dtypes = {weight.dtype for weight in program.weights}
    if dtypes & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return HALF_RELATIVE
    if dtypes & {TensorProto.INT8, TensorProto.UINT8}:
        return QUANTISED_RELATIVE
    return RELATIVE
