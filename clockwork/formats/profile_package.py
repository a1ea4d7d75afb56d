"""Models that consist of a profile only, for emulated devices.

The package holds a single file, profile.json: a profile file with a single profile. Preparation reads it and
writes, as for any other model, a description for the controller and the device. It takes almost no time, and
needs no ONNX. Models of the same profile share a package, whatever their names.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clockwork.config import IO_SLOT_BYTES_MAX
from clockwork.config.formats import PROFILED_FILE_BYTES_MAX, PROFILED_WEIGHTS_BYTES_MAX
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.package import check_package
from clockwork.formats.prepared import FORMAT_VERSION, JUDGED, PREPARED_FILE, PreparedModel, TensorSpec
from clockwork.formats.profiles import ModelProfile, dump_profiles, parse_profiles
from clockwork.scheduler.types import ProfilePoint
from clockwork.wire.packages import PROFILE_FILE

HOLDING = "emulated"  # The holding of a profile-only model: its pages are counted, and hold no data
UINT8 = 2  # ONNX's dtype code of the input and output of a profile-only model


def encode_profile(profile: ModelProfile) -> bytes:
    """A profile as a package's file, without its SLO, which is an option of registration.

    Raises InvalidModel for a profile that cannot be served.
    """
    try:
        return dump_profiles([dataclasses.replace(profile, slo_ns=0)]).encode()
    except ConfigError as error:
        raise InvalidModel(str(error)) from None


def decode_profile(data: bytes) -> ModelProfile:
    """Inverse of encode_profile(). Raises InvalidModel."""
    try:
        (profile,) = parse_profiles(json.loads(data))
    except (ValueError, RecursionError, ConfigError) as error:
        raise InvalidModel(f"{PROFILE_FILE} is not one profile: {error}"[:300]) from None
    if (
        profile.weights_bytes > PROFILED_WEIGHTS_BYTES_MAX
        or max(profile.input_bytes, profile.output_bytes) > IO_SLOT_BYTES_MAX
    ):
        raise InvalidModel(
            f"{profile.name}: at most {PROFILED_WEIGHTS_BYTES_MAX} bytes of weights and {IO_SLOT_BYTES_MAX} of inputs and "
            "outputs are served"
        )
    return profile


def read_profile(package: Path) -> ModelProfile:
    """The profile of a package. Raises InvalidModel, OSError."""
    with open(package / PROFILE_FILE, "rb") as file:
        data = file.read(PROFILED_FILE_BYTES_MAX + 1)
    if len(data) > PROFILED_FILE_BYTES_MAX:
        raise InvalidModel(f"a {PROFILE_FILE} of more than {PROFILED_FILE_BYTES_MAX} bytes is no profile")
    return decode_profile(data)


def tensors_of(
    profile: ModelProfile, options: Mapping[str, Any]
) -> tuple[int, list[TensorSpec], list[TensorSpec]]:
    """The largest batch, the inputs and the outputs of a model with this profile. options: as in
    messages.Prepare."""
    batch_max = profile.largest_batch()
    if options.get("batch_max", 0):
        batch_max = min(batch_max, options["batch_max"])
    if options.get("batching", "auto") == "off":
        batch_max = 1
    rows: int | str = "n" if batch_max > 1 else 1
    return (
        batch_max,
        [TensorSpec("input", UINT8, (rows, profile.input_bytes))],
        [TensorSpec("output", UINT8, (rows, profile.output_bytes))],
    )


def prepared_from_profile(
    profile: ModelProfile, digest: str, fingerprint: str, page_bytes: int, options: Mapping[str, Any]
) -> PreparedModel:
    """Return the description of a model with this profile. options: as in messages.Prepare.

    Input and output are bytes: a row of each for every row of a request.
    """
    batch_max, inputs, outputs = tensors_of(profile, options)
    batches = batch_max > 1
    shape = (profile.input_bytes,) if batches else (1, profile.input_bytes)
    sizes = {size for size in profile.exec_ns if size <= batch_max} | {batch_max}
    runs = profile.layout(page_bytes)
    return PreparedModel(
        format_version=FORMAT_VERSION,
        digest=digest,
        fingerprint=fingerprint,
        program=profile.program or profile.name,
        holding=HOLDING,
        inputs=inputs,
        outputs=outputs,
        batches=batches,
        batching_note="as its profile says",
        batch_max=batch_max,
        page_bytes=page_bytes,
        runs=runs,
        weights=[],
        weights_bytes=profile.weights_bytes,
        resident_bytes=sum(runs) * page_bytes,
        load_ns=profile.load_ns,
        profile=[ProfilePoint((shape,), size, profile.execution_ns(size)) for size in sorted(sizes)],
        constants_note="",
        metadata={},
        example=[[1, profile.input_bytes]],
        outputs_verified=True,
        judged=JUDGED,
    )


def prepare_profile(
    package: Path, target: Path, digest: str, fingerprint: str, page_bytes: int, options: Mapping[str, Any]
) -> None:
    """Prepare a package for emulated devices.

    Raises InvalidModel or DamagedPackage, and OSError if the files cannot be written. The files are not
    synced: after a crash that damages them, the model is prepared again.
    """
    if check_package(package)[0].path != PROFILE_FILE:
        raise InvalidModel(f"the package of a profile begins with {PROFILE_FILE}")
    prepared = prepared_from_profile(read_profile(package), digest, fingerprint, page_bytes, options)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=target.parent) as temporary:
        prepared.write(Path(temporary))
        os.replace(Path(temporary) / PREPARED_FILE, target / PREPARED_FILE)
