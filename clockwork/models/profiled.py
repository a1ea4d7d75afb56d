"""A model that is nothing but its profile: what emulated devices serve.

Its package holds one file, profile.json: the fields of one ModelProfile. To prepare it is to read that and to write
down, as for any other model, what the controller and a device have to know of it. That takes no time, and nothing
here imports ONNX. Models of the same profile share a package, whatever they are called.
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
from clockwork.errors import InvalidModel
from clockwork.models.package import PROFILE_FILE
from clockwork.models.prepared import FORMAT_VERSION, PreparedModel, TensorSpec
from clockwork.profiles import ModelProfile
from clockwork.scheduler.types import ProfilePoint

HOLDING = "emulated"
"""How such a model is held: only its pages are counted."""

PROFILE_BYTES_MAX = 1 << 20
WEIGHTS_BYTES_MAX = 1 << 44
TIME_MAX_NS = 1 << 50
BATCH_MAX = 4096
UINT8 = 2
"""The type of its one input and one output, in ONNX's numbers."""


def encode_profile(profile: ModelProfile) -> bytes:
    """A profile as a package's file. Its SLO is an option of its registration, and is left out."""
    body = dataclasses.asdict(profile)
    body["exec_ns"] = {str(batch): profile.exec_ns[batch] for batch in sorted(profile.exec_ns)}
    del body["slo_ns"]
    return json.dumps(body, sort_keys=True).encode()


def decode_profile(data: bytes) -> ModelProfile:
    """Inverse of encode_profile(). Raises InvalidModel for what makes no sense."""
    try:
        body = json.loads(data)
        exec_ns = {int(batch): _natural(time, TIME_MAX_NS) for batch, time in body.pop("exec_ns").items()}
        profile = ModelProfile(exec_ns=dict(sorted(exec_ns.items())), **body)
        _natural(profile.weights_bytes, WEIGHTS_BYTES_MAX)
        _natural(profile.load_ns, TIME_MAX_NS)
        _natural(profile.input_bytes, IO_SLOT_BYTES_MAX)
        _natural(profile.output_bytes, IO_SLOT_BYTES_MAX)
        _natural(profile.batch_max, BATCH_MAX)
        if not isinstance(profile.name, str) or not isinstance(profile.program, str):
            raise ValueError("name and program are strings")
        if 1 not in exec_ns or min(exec_ns) < 1 or max(exec_ns) > BATCH_MAX or min(exec_ns.values()) < 1:
            raise ValueError("exec_ns has a time above 0 for batches of 1, and none for batches above 4096")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(f"{PROFILE_FILE} is no profile: {error}"[:300]) from None
    return profile


def _natural(value: Any, bound: int) -> int:
    if type(value) is not int or not 0 <= value <= bound:
        raise ValueError(f"{value!r} is not an integer between 0 and {bound}")
    return value


def prepared_profile(
    profile: ModelProfile, digest: str, fingerprint: str, page_bytes: int, options: Mapping[str, Any]
) -> PreparedModel:
    """What is known of a model with this profile. options: as in messages.Prepare.

    Its input and its output are bytes: one row of each for a request, or as many as the request has.
    """
    batch_max = min(profile.batch_max or max(profile.exec_ns), max(profile.exec_ns))
    if options.get("batch_max", 0):
        batch_max = min(batch_max, options["batch_max"])
    batches = batch_max > 1 and options.get("batching", "auto") != "off"
    rows: int | str = "n" if batches else 1
    shape = (profile.input_bytes,) if batches else (1, profile.input_bytes)
    pages = -(-profile.weights_bytes // page_bytes)
    return PreparedModel(
        format_version=FORMAT_VERSION,
        digest=digest,
        fingerprint=fingerprint,
        program=profile.program or profile.name,
        holding=HOLDING,
        inputs=[TensorSpec("input", UINT8, (rows, profile.input_bytes))],
        outputs=[TensorSpec("output", UINT8, (rows, profile.output_bytes))],
        batches=batches,
        batching_note="as its profile says",
        batch_max=batch_max if batches else 1,
        page_bytes=page_bytes,
        runs=[1] * pages,
        weights=[],
        weights_bytes=profile.weights_bytes,
        resident_bytes=pages * page_bytes,
        load_ns=profile.load_ns,
        profile=[
            ProfilePoint((shape,), batch, time)
            for batch, time in sorted(profile.exec_ns.items())
            if batch <= (batch_max if batches else 1)
        ],
        constants_note="",
        metadata={},
        example=[[1, profile.input_bytes]],
    )


def prepare_profile(
    package: Path, target: Path, digest: str, fingerprint: str, page_bytes: int, options: Mapping[str, Any]
) -> None:
    """Prepare a package for emulated devices. Raises InvalidModel; OSError where it cannot be written.

    It is not synced: what a crash leaves damaged is prepared again.
    """
    path = package / PROFILE_FILE
    if path.stat().st_size > PROFILE_BYTES_MAX:
        raise InvalidModel(f"a {PROFILE_FILE} of more than {PROFILE_BYTES_MAX} bytes is no profile")
    prepared = prepared_profile(decode_profile(path.read_bytes()), digest, fingerprint, page_bytes, options)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=target.parent) as temporary:
        prepared.write(Path(temporary))
        for entry in os.scandir(temporary):
            os.replace(entry.path, target / entry.name)
