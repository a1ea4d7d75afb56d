"""Measure models with several numbers of threads for an execution, as workers with so many --threads do."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clockwork.config import PAGE_BYTES, silence_onnxruntime
from clockwork.device.cpu import fingerprint
from clockwork.device.machine import ArenaPlace, this_machine
from clockwork.device.neighbours import measure_slowdown
from clockwork.errors import InvalidModel
from clockwork.formats.prepared import PreparedModel, prepared_directory
from clockwork.formats.profiles import ModelProfile
from clockwork.models.inputs import first_that_runs
from clockwork.models.measure import program_path
from clockwork.models.packaging import package_of
from clockwork.models.prepare import prepare
from clockwork.models.threads import benches_by_threads, speedups_in_turn
from clockwork.wire.tensors import tensor_bytes


def measure_by_threads(
    models: Sequence[Path], counts: Sequence[int], cores: int, tell: Callable[[str], None]
) -> dict[int, list[ModelProfile]]:
    """Prepare ONNX files and return their profiles for each number of threads, named as the files.

    cores: on which executions run at the same time. They slow each other beyond the slowdown that each has
    from its own threads, by as much as work of a known size does on this machine (device/neighbours.py).
    tell: called with a line for each measurement. Raises InvalidModel and OSError.
    """
    silence_onnxruntime()
    slowdown = _slowdowns(counts, cores)
    found: dict[int, list[ModelProfile]] = {count: [] for count in counts}
    for path in models:
        with tempfile.TemporaryDirectory(prefix="clockwork-threads-") as folder:
            try:
                profile, speedups = _measure(path, Path(folder), counts)
            except InvalidModel as error:
                raise InvalidModel(f"{path}: {error}") from None
        for count in counts:
            own = slowed(profile, {batch: 1 / speedup for batch, speedup in speedups[count].items()})
            tell(f"{path.stem}, threads {count}: {_times(own)}")
            found[count].append(slowed(own, dict.fromkeys(own.exec_ns, slowdown[count])))
    return found


def _measure(
    model: Path, folder: Path, counts: Sequence[int]
) -> tuple[ModelProfile, dict[int, dict[int, float]]]:
    """Return a model's profile with one thread, and its speedups by number of threads and batch size."""
    package, store = folder / "package", folder / "store"
    for name, source in package_of(model, None):
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.copyfile(source, target)
    prepared = prepare(package, store, fingerprint(1), PAGE_BYTES, {})
    place = prepared_directory(store, prepared.digest, fingerprint(1), {})
    program = program_path(place, prepared.program).read_bytes()
    profile = profile_of(prepared, model.stem)
    with benches_by_threads(place, program, counts, PAGE_BYTES, folder / "threads") as benches:
        inputs, _, error = first_that_runs(prepared.inputs, lambda tried: benches[1].run(0, tried)[0])
        if inputs is None:
            raise InvalidModel(f"no made-up input could be run: {error}")
        return profile, speedups_in_turn(benches, inputs, sorted(profile.exec_ns))


def profile_of(prepared: PreparedModel, name: str) -> ModelProfile:
    """Return the profile of a prepared model, with inputs shaped as those with which it was measured."""
    shape = prepared.profile[0].shape
    return ModelProfile(
        name=name,
        exec_ns={point.batch: point.exec_ns for point in prepared.profile if point.shape == shape},
        weights_bytes=prepared.weights_bytes,
        load_ns=prepared.load_ns,
        input_bytes=sum(
            tensor_bytes(spec.dtype, dims) for spec, dims in zip(prepared.inputs, prepared.example)
        ),
        program=prepared.program,
        batch_max=prepared.batch_max if prepared.batches else 1,
        page_bytes=prepared.page_bytes,
        page_count=sum(prepared.runs),
        runs=tuple(prepared.runs),
    )


def slowed(profile: ModelProfile, factors: Mapping[int, float]) -> ModelProfile:
    """Return a profile whose executions take so many times as long, by batch size."""
    times = {batch: max(1, round(factors[batch] * ns)) for batch, ns in profile.exec_ns.items()}
    return dataclasses.replace(profile, exec_ns=times)


def _slowdowns(counts: Sequence[int], cores: int) -> dict[int, float]:
    """Return by how much an execution of so many threads is slowed where all cores execute."""
    most = min(cores, this_machine().core_count)
    of_all = measure_slowdown(ArenaPlace(most))
    return {count: max(1.0, of_all / measure_slowdown(ArenaPlace(count))) for count in counts}


def _times(profile: ModelProfile) -> str:
    """Return the times of the least and of the largest batch, for people."""
    sizes = sorted({1, max(profile.exec_ns)})
    return ", ".join(f"{profile.exec_ns[size] / 1e6:.4g} ms for {size}" for size in sizes)
