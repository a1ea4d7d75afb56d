"""Prepares program packages for CUDA devices: lay out the weights, check the answers, profile.

A package with an ONNX model is first compiled for this machine's architecture, which needs the extra
[compile]. The measurement of a program is kept beside it, so that the next model of equal architecture is
only laid out and checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from clockwork.config.models import CHECKS_RUN_MAX
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import read_plain, seal, set_aside, unseal
from clockwork.formats.durable import write_durably
from clockwork.formats.package import MODEL_FILE, PROGRAM_JSON, put_in_place
from clockwork.formats.prepared import FORMAT_VERSION, WEIGHTS_FILE, PreparedModel, WeightSpec
from clockwork.formats.program import (
    Check,
    Program,
    Variant,
    check_files,
    program_hash,
    read_checks,
    read_program,
    stored_damage,
)
from clockwork.formats.targets import choose, describe_mismatch
from clockwork.models import inputs as trial
from clockwork.models import measure, onnx_import
from clockwork.models.layout import Layout, lay_out, write_weights
from clockwork.models.runtime import RunError
from clockwork.scheduler.types import ProfilePoint
from clockwork.wire.tensors import Array

HOLDING = "program"

FINGERPRINT_PREFIX = "cuda-"
"""Prefix of the fingerprints of CUDA devices; the target follows, up to the next "-"."""

KERNELS_DIRECTORY = "kernels"
"""Directory of the store for compiled kernels, which the next model of equal architecture uses."""


HALF_RELATIVE = 5e-2
"""Largest relative error of the answers of a program with 16-bit weights."""

Progress = Callable[[str, int, int], None]
STEPS = ("compile", "lay out", "verify", "measure", "write")


def is_for(fingerprint: str) -> bool:
    """Whether devices of this fingerprint take programs."""
    return fingerprint.startswith(FINGERPRINT_PREFIX)


def target_of(fingerprint: str) -> str:
    return fingerprint.removeprefix(FINGERPRINT_PREFIX).split("-")[0]


@dataclasses.dataclass(slots=True)
class ProgramMeasurement:
    """The measurement of a program, which holds for every model with that program."""

    batch_max: int
    load_ns: int
    profile: list[ProfilePoint]


def _metadata(package_dir: Path) -> dict[str, str]:
    """The metadata of an ONNX file (images, labels); a program has none."""
    path = package_dir / MODEL_FILE
    return onnx_import.metadata_of(onnx_import.read_model(path)) if path.is_file() else {}


def prepare_program(
    package_dir: Path,
    store: Path,
    digest: str,
    fingerprint: str,
    page_bytes: int,
    options: Mapping[str, Any],
    directory: Path,
    progress: Progress | None = None,
) -> PreparedModel:
    """Prepare a package in ``directory``, which lies beside prepared directories and is renamed by the caller.

    Raises InvalidModel. options: as in messages.Prepare.
    """

    def step(index: int) -> None:
        if progress is not None:
            progress(STEPS[index], index, len(STEPS))

    target = target_of(fingerprint)
    batching = str(options.get("batching", "auto"))
    step(0)
    with _compiled(package_dir, store, directory.parent, target, options) as source:
        program = read_program(source)
        check_files(program, source)
        chosen = choose(program.targets, target)
        if chosen is None:
            raise InvalidModel(describe_mismatch(program.targets, target))
        variants = program.of_target(chosen.name)
        if batching == "on" and not program.batches:
            raise InvalidModel("the program does not batch; it has to be compiled so that it does")
        step(1)
        layout = lay_out([weight.bytes for weight in program.weights], page_bytes)
        _write_weights(program, source, layout, directory / WEIGHTS_FILE, page_bytes)
        name = program_hash(program)
        install(store, name, program, source)
        checks = read_checks(source, program)
    prepared = PreparedModel(
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
    )
    prepared.write(directory)  # for the bench, which loads it like a device
    bench = measure.Bench(fingerprint, page_bytes, [directory])
    try:
        step(2)
        load_ns = measure.load_time(bench, 0)
        _verify(bench, program, variants, checks)
        step(3)
        finding = _recall(store, name, fingerprint, options)
        if finding is None:
            finding = _measure(bench, prepared.batches, variants, checks, int(options.get("batch_max", 0)))
            finding.load_ns = load_ns
            _remember(store, name, fingerprint, options, finding)
    except RunError as error:
        raise InvalidModel(f"the program fails on the device: {error}") from None
    finally:
        bench.close()
    step(4)
    prepared.batch_max = finding.batch_max
    prepared.load_ns = finding.load_ns
    prepared.profile = finding.profile
    return prepared


@contextlib.contextmanager
def _compiled(
    package_dir: Path, store: Path, work: Path, target: str, options: Mapping[str, Any]
) -> Iterator[Path]:
    """The directory of the program package: the package itself, or the result of compiling its ONNX model."""
    if (package_dir / PROGRAM_JSON).is_file():
        yield package_dir
        return
    if not (package_dir / MODEL_FILE).is_file():
        raise InvalidModel(f"a CUDA device takes packages with a {PROGRAM_JSON} or a {MODEL_FILE}")
    from clockwork.models.compile.onnx_package import compile_package  # only when it is needed

    made = Path(tempfile.mkdtemp(prefix=".preparing-", dir=work))
    try:
        compile_package(package_dir, made / "package", target, options, store / KERNELS_DIRECTORY)
        yield made / "package"
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_weights(program: Program, source: Path, layout: Layout, path: Path, page_bytes: int) -> None:
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
    """Put a program and its modules, which models of equal architecture share, into the store, unless they are there and
    undamaged. source: the package of the modules."""
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
        return trial.QUANTISED_RELATIVE
    return trial.RELATIVE


def _verify(
    bench: measure.Bench, program: Program, variants: Sequence[Variant], checks: Sequence[Check]
) -> None:
    """Raises InvalidModel unless the device reproduces the package's checks, alone and in every row of a batch.

    Raises RunError.
    """
    relative = _relative(program)
    for inputs, outputs in checks[:CHECKS_RUN_MAX]:
        sizes = {1}
        if program.batches:
            tails = [array.shape[1:] for array in inputs]
            target = variants[0].target
            sizes |= {
                variant.batch
                for variant in variants
                if program.variant(target, [(variant.batch, *tail) for tail in tails])
            }
        for size in sorted(sizes):
            actual, _ = bench.run(0, trial.tile(inputs, size))
            if text := trial.difference(actual, trial.tile(outputs, size), relative):
                raise InvalidModel(f"the program answers wrongly in a batch of {size}: {text}")


def _measure(
    bench: measure.Bench,
    batches: bool,
    variants: Sequence[Variant],
    checks: Sequence[Check],
    batch_max: int,
) -> ProgramMeasurement:
    """Execution times, for each set of shapes, of each compiled batch size while throughput grows."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[Variant]] = {}
    for variant in variants:
        if batches:
            by_shape.setdefault(tuple(shape[1:] for shape in variant.shapes), []).append(variant)
        elif variant.batch == 1:
            by_shape[variant.shapes] = [variant]
    points: list[ProfilePoint] = []
    helps_most = 1
    for shape, group in by_shape.items():
        best, before = 0.0, 0
        for variant in group:
            if batch_max and variant.batch > batch_max and before:
                break
            exec_ns = measure.execution_time(bench, 0, _inputs(bench, variant, checks))
            # Smaller batches, beyond those of the previous variant, run on this variant too.
            points += [ProfilePoint(shape, size, exec_ns) for size in sorted({before + 1, variant.batch})]
            throughput = variant.batch / exec_ns
            if before and throughput < best * measure.BATCH_GAIN:
                break
            best, before = throughput, variant.batch
        helps_most = max(helps_most, before)
    if batch_max:
        helps_most = min(helps_most, batch_max)
    return ProgramMeasurement(helps_most if batches else 1, 0, points)


def _inputs(bench: measure.Bench, variant: Variant, checks: Sequence[Check]) -> list[Array]:
    """Inputs of a variant's shapes: those of a check, or generated ones."""
    for inputs, _ in checks:
        if [array.shape for array in inputs] == list(variant.shapes):
            return list(inputs)
        if [array.shape for array in inputs] == [(1, *shape[1:]) for shape in variant.shapes]:
            return trial.tile(inputs, variant.batch)
    random = np.random.default_rng(0)
    dtypes = bench.input_dtypes(0)
    return [trial.seeded(dtype, shape, random) for dtype, shape in zip(dtypes, variant.shapes, strict=True)]


# ----- kept measurements -------------------------------------------------------------------------


def _finding_path(store: Path, name: str, fingerprint: str, options: Mapping[str, Any]) -> Path:
    about = [fingerprint, str(options.get("batching", "auto")), str(int(options.get("batch_max", 0)))]
    return store / "programs" / name / f"finding-{'-'.join(about)}-{FORMAT_VERSION}.json"


def _recall(
    store: Path, name: str, fingerprint: str, options: Mapping[str, Any]
) -> ProgramMeasurement | None:
    try:
        body, _ = unseal(read_plain(_finding_path(store, name, fingerprint, options)))
        points = [
            ProfilePoint(tuple(map(tuple, point["shape"])), point["batch"], point["exec_ns"])
            for point in body["profile"]
        ]
        return ProgramMeasurement(body["batch_max"], body["load_ns"], points)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(
    store: Path, name: str, fingerprint: str, options: Mapping[str, Any], finding: ProgramMeasurement
) -> None:
    path = _finding_path(store, name, fingerprint, options)
    write_durably(path, seal(dataclasses.asdict(finding)))
