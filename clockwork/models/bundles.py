"""Tries a model that another worker of the same kind has prepared, and takes it over, in its own process.

The bytes are those that the controller has recorded. Here their meaning is checked: that they are a model of
this package for this kind of device, and that it loads, executes and answers as it declares.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clockwork.errors import InvalidModel
from clockwork.formats.bundles import NAMES
from clockwork.formats.prepared import (
    JUDGED,
    PREPARED_FILE,
    PROGRAM_FILE,
    WEIGHTS_FILE,
    PreparedModel,
    contradiction,
    prepared_directory,
    program_name,
)
from clockwork.models import inputs as trial
from clockwork.models import measure, samples
from clockwork.models.holdings import write_program
from clockwork.models.prepare import install, is_unasked
from clockwork.models.runtime import RunError
from clockwork.wire import codec
from clockwork.wire.messages import Prepared, Status
from clockwork.wire.optional import array_of
from clockwork.wire.packages import LIST_FILE
from clockwork.wire.tensors import Array, encode_array


def take_over(
    bundle: Path, store: Path, digest: str, fingerprint: str, page_bytes: int, options: Mapping[str, Any]
) -> None:
    """Move a bundle's files to where this worker's own preparation would have put them, once the model has
    been executed. The bundle's directory is gone afterwards. Raises InvalidModel, OSError.

    digest: of the model's package. options: as in messages.Prepare.
    """
    work = Path(tempfile.mkdtemp(prefix=".preparing-", dir=store / "prepared"))
    try:
        os.rename(bundle, work)  # beside the programs, as a device expects it
        os.unlink(work / LIST_FILE)
        prepared = PreparedModel.read_for(work, fingerprint, page_bytes)
        _check(prepared, work, digest)
        if prepared.holding != "packed":
            program = (work / PROGRAM_FILE).read_bytes()
            if program_name(program, fingerprint) != prepared.program:
                raise InvalidModel("its program is another than it names")
            write_program(store, prepared.program, program, fingerprint)
            os.unlink(work / PROGRAM_FILE)
        _try_once(prepared, work)
        install(work, prepared_directory(store, digest, fingerprint, options), page_bytes)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(bundle, ignore_errors=True)


def _check(prepared: PreparedModel, directory: Path, digest: str) -> None:
    """Raise InvalidModel unless a bundle holds a model of this package, judged by today's rules."""
    if prepared.digest != digest:
        raise InvalidModel(f"it is prepared from package {prepared.digest}, not {digest}")
    if prepared.untried or (prepared.batches and prepared.judged != JUDGED) or is_unasked(prepared):
        raise InvalidModel("it was prepared by another version's rules")
    here = {entry.name for entry in os.scandir(directory)} - {PREPARED_FILE}
    if not any(here == set(names) for names in NAMES.get(prepared.holding, ())):
        raise InvalidModel(f"a model of holding {prepared.holding!r} does not have the files {sorted(here)}")
    if set(prepared.checksums) != here - {PROGRAM_FILE}:
        raise InvalidModel("its files are not those of which it has checksums")
    weights = directory / WEIGHTS_FILE
    if weights.is_file() and weights.stat().st_size != sum(prepared.runs) * prepared.page_bytes:
        raise InvalidModel(f"{WEIGHTS_FILE} is not of the size of its pages")
    try:
        codec.check(Prepared(0, Status.OK, "", prepared.summary()))
    except codec.WireError as error:
        raise InvalidModel(f"its description exceeds a bound of messages: {error}") from None


def _try_once(prepared: PreparedModel, directory: Path) -> None:
    """Load and execute a model, and compare its outputs with its description. Raises InvalidModel."""
    failure = ""
    bench = measure.Bench(prepared.fingerprint, prepared.page_bytes, [directory])
    try:
        bench.load(0)
        for bound in trial.ID_BOUNDS:  # ids that are too large for a table's rows make an execution fail
            try:
                outputs, _ = bench.run(0, _inputs(prepared, bound))
                break
            except RunError as error:
                failure = str(error)
        else:
            raise InvalidModel(f"it fails when it is executed: {failure}")
    except RunError as error:
        raise InvalidModel(f"it cannot be loaded: {error}") from None
    finally:
        bench.close()
    if len(outputs) != len(prepared.outputs):
        raise InvalidModel(f"it has {len(outputs)} outputs, and declares {len(prepared.outputs)}")
    for spec, array in zip(prepared.outputs, outputs):
        dtype, shape, _ = encode_array(array)
        why = contradiction(spec, prepared.outputs_verified, int(prepared.batches), dtype, tuple(shape))
        if why:
            raise InvalidModel(f"its output {spec.name!r} {why}")


def _inputs(prepared: PreparedModel, bound: int) -> Sequence[Array]:
    """Inputs of the shapes with which the model was profiled. bound: upper bound of integers, exclusive."""
    defaults = prepared.defaults()
    drawn = trial.draw(prepared.inputs, prepared.example, bound, samples.contents_of(prepared.metadata))
    return [
        array_of(defaults[spec.name], spec.dtype) if spec.name in defaults else array
        for spec, array in zip(prepared.inputs, drawn)
    ]
