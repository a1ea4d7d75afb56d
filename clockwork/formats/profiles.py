"""Profiles: the costs of a model on a kind of device, as plain numbers for emulated devices, the simulator
and planning.

A profile file is JSON: {"profiles": [{...}, ...]}, an object for each model with the fields of ModelProfile;
the keys of exec_ns are batch sizes in decimal.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from clockwork.config import BATCH_SIZE_MAX, MODEL_REFERENCE_MAX, MODELS_MAX
from clockwork.config.formats import PROFILE_BYTES_MAX, SIZE_MAX, TIME_MAX_NS
from clockwork.errors import ConfigError
from clockwork.system.clock import MS
from clockwork.wire.description import ModelInfo
from clockwork.wire.optional import read_defaults
from clockwork.wire.tensors import code_of, tensor_bytes

PAPER_PAGE_BYTES = 16 << 20  # Page size of the paper's workers, and of every GPU arena here
PAPER_BATCHES = (1, 2, 4, 8, 16)  # Batch sizes in the paper's table

PAPER_LEFT_OUT = ("winograd_resnet152_v2", "winograd_resnet50_v2", "xception")
"""Rows of the 64 that the 61 varieties leave out. The paper does not say which three its runs left out.

winograd_resnet152_v2 lacks a point. The other two are last in the alphabet, where the trace's coldest
functions fall (hot functions come first), so they have the least weight.
"""

MISPRINTS = {("winograd_resnet152_v2", 16)}
"""(model, batch) of points that are left out. The table has 28.92 ms here, but 33.52 ms for the 101-layer
sibling and 24.42 ms for batch 8."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelProfile:
    """The costs of a model on a kind of device, without network and queues."""

    name: str
    exec_ns: Mapping[int, int]  # batch size -> execution time of the whole batch; at least {1: ...}
    weights_bytes: int
    load_ns: int  # time of a copy from host memory to the device
    input_bytes: int = 0  # bytes of a request's input
    output_bytes: int = 0
    program: str = ""  # models of the same program share estimates; "": the name
    batch_max: int = 0  # largest batch; 0: the largest of exec_ns
    slo_ns: int = 0  # default SLO; 0: none
    page_bytes: int = 0  # size of the pages that page_count counts; 0: unknown
    page_count: int = 0  # measured number of pages of the weights; 0: computed from weights_bytes
    runs: Sequence[int] = ()  # contiguous pages of each run; (): each page may lie anywhere

    def check(self) -> None:
        """Raise ConfigError for a value out of bounds, with the value and the bound."""

        def bounded(name: str, value: Any, low: int, high: int) -> None:
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(
                    f"profile {self.name!r}: {name} {value!r} is not an integer from {low} to {high}"
                )

        if not isinstance(self.name, str) or not 1 <= len(self.name) <= MODEL_REFERENCE_MAX:
            raise ConfigError(
                f"profile name {self.name!r} is not a text of 1 to {MODEL_REFERENCE_MAX} characters"
            )
        if not isinstance(self.program, str):
            raise ConfigError(f"profile {self.name!r}: program {self.program!r} is not a text")
        if not isinstance(self.exec_ns, Mapping) or 1 not in self.exec_ns:
            raise ConfigError(f"profile {self.name!r}: exec_ns holds no time for batch 1")
        for batch, time_ns in self.exec_ns.items():
            bounded("batch", batch, 1, BATCH_SIZE_MAX)
            bounded(f"execution time of batch {batch}", time_ns, 1, TIME_MAX_NS)
        bounded("load_ns", self.load_ns, 0, TIME_MAX_NS)
        bounded("slo_ns", self.slo_ns, 0, 1 << 62)
        bounded("batch_max", self.batch_max, 0, BATCH_SIZE_MAX)
        for name in ("weights_bytes", "input_bytes", "output_bytes", "page_bytes", "page_count"):
            bounded(name, getattr(self, name), 0, SIZE_MAX)
        for pages in self.runs:
            bounded("a run's pages", pages, 1, SIZE_MAX)
        if self.runs and sum(self.runs) != self.page_count:
            raise ConfigError(
                f"profile {self.name!r}: its runs have {sum(self.runs)} pages, page_count is {self.page_count}"
            )

    def largest_batch(self) -> int:
        """The largest batch that the model runs."""
        return self.batch_max or max(self.exec_ns)

    def execution_ns(self, batch: int) -> int:
        """Return the time of a batch of any size up to the largest: measured, or interpolated linearly.

        Beyond the largest point the line through the last two points is extended. With a single point, time
        is proportional to the batch.
        """
        if not 1 <= batch <= self.largest_batch():
            raise ConfigError(f"profile {self.name!r}: batch {batch} is not from 1 to {self.largest_batch()}")
        if batch in self.exec_ns:
            return self.exec_ns[batch]
        points = sorted(self.exec_ns)
        if len(points) == 1:
            return self.exec_ns[1] * batch
        high = next((index for index, size in enumerate(points) if size > batch), len(points) - 1)
        left, right = points[high - 1], points[high]
        rise = self.exec_ns[right] - self.exec_ns[left]
        return max(1, self.exec_ns[left] + rise * (batch - left) // (right - left))

    def pages(self, page_bytes: int) -> int:
        """Return the number of pages of this size that the weights take, at least 1."""
        if page_bytes <= 0:
            raise ConfigError(f"page_bytes {page_bytes} is not above 0")
        if self.page_count and self.page_bytes == page_bytes:
            return self.page_count
        return max(1, -(-self.weights_bytes // page_bytes))

    def layout(self, page_bytes: int) -> list[int]:
        """Page counts of the runs with pages of this size: measured, or runs of a single page."""
        if self.runs and self.page_bytes == page_bytes:
            return list(self.runs)
        return [1] * self.pages(page_bytes)


# ----- files ---------------------------------------------------------------------------------


def dump_profiles(profiles: Iterable[ModelProfile]) -> str:
    """The text of a profile file."""
    bodies = []
    for profile in profiles:
        profile.check()
        body = dataclasses.asdict(dataclasses.replace(profile, exec_ns={}))
        defaults = {field.name: field.default for field in dataclasses.fields(profile)}
        body = {name: value for name, value in body.items() if value != defaults[name]}
        body["exec_ns"] = {str(batch): profile.exec_ns[batch] for batch in sorted(profile.exec_ns)}
        bodies.append(body)
    return json.dumps({"profiles": bodies}, indent=2) + "\n"


def save_profiles(path: Path, profiles: Iterable[ModelProfile]) -> None:
    """Write a profile file. Raises ConfigError if a profile is wrong or the file cannot be written."""
    text = dump_profiles(profiles)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def load_profiles(path: Path) -> list[ModelProfile]:
    """Return the profiles of a file, in its order. Raises ConfigError with the file and the defect."""
    try:
        with open(path, "rb") as file:
            data = file.read(PROFILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > PROFILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {PROFILE_BYTES_MAX} bytes")
    try:
        return parse_profiles(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_profiles(body: Any) -> list[ModelProfile]:
    """Profiles from decoded JSON. Raises ConfigError."""
    bodies = body.get("profiles") if isinstance(body, dict) else None
    if not isinstance(bodies, list):
        raise ConfigError('it is not {"profiles": [...]}')
    if not 1 <= len(bodies) <= MODELS_MAX:
        raise ConfigError(f"it holds {len(bodies)} profiles: there must be 1 to {MODELS_MAX}")
    profiles = [_parse_profile(profile, index) for index, profile in enumerate(bodies)]
    seen: set[str] = set()
    for profile in profiles:
        if profile.name in seen:
            raise ConfigError(f"profile {profile.name!r} is there twice")
        seen.add(profile.name)
    return profiles


def _parse_profile(body: Any, index: int) -> ModelProfile:
    if not isinstance(body, dict):
        raise ConfigError(f"profile {index} is not an object")
    name = body.get("name", f"number {index}")
    fields = {field.name: field for field in dataclasses.fields(ModelProfile)}
    if unknown := sorted(set(body) - set(fields)):
        raise ConfigError(f"profile {name!r}: {unknown[0]!r} is not a field of a profile")
    needed = [key for key, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [key for key in needed if key not in body]:
        raise ConfigError(f"profile {name!r}: {missing[0]!r} is missing")
    points = body["exec_ns"]
    if not isinstance(points, dict):
        raise ConfigError(f"profile {name!r}: exec_ns is not an object from batch size to time")
    if wrong := [key for key in points if not (key.isascii() and key.isdigit())]:
        raise ConfigError(f"profile {name!r}: batch {wrong[0]!r} in exec_ns is not a whole number")
    runs = body.get("runs", [])
    if not isinstance(runs, list):
        raise ConfigError(f"profile {name!r}: runs is not a list of page counts")
    read = {"exec_ns": {int(key): value for key, value in points.items()}, "runs": tuple(runs)}
    profile = ModelProfile(**{**body, **read})
    profile.check()
    return profile


# ----- the paper's models --------------------------------------------------------------------


def paper_models() -> list[ModelProfile]:
    """The 64 models of the paper's Table 1 on a V100, in alphabetical order."""
    text = (resources.files("clockwork.formats") / "data" / "v100_models.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    profiles = []
    for row in rows:
        name = row["model"]
        profiles.append(
            ModelProfile(
                name=name,
                exec_ns={
                    batch: round(float(row[f"exec_b{batch}_ms"]) * MS)
                    for batch in PAPER_BATCHES
                    if (name, batch) not in MISPRINTS
                },
                weights_bytes=round(float(row["weights_mb"]) * 1e6),
                load_ns=round(float(row["transfer_ms"]) * MS),
                input_bytes=round(float(row["input_kb"]) * 1e3),
                output_bytes=round(float(row["output_kb"]) * 1e3),
            )
        )
    return sorted(profiles, key=lambda profile: profile.name)


def paper_model(name: str) -> ModelProfile:
    """A model of the paper's table. Raises ConfigError."""
    for profile in paper_models():
        if profile.name == name:
            return profile
    raise ConfigError(f"the paper's table has no model {name!r}")


def paper_varieties(count: int = 61) -> list[ModelProfile]:
    """Return ``count`` models of the paper's table in alphabetical order: 61 as in its trace experiment.

    Above 61, models of PAPER_LEFT_OUT are added. Below 61, models are taken at even distances.
    """
    models = paper_models()
    if not 1 <= count <= len(models):
        raise ConfigError(f"{count} varieties: the paper's table has 1 to {len(models)}")
    left_out = PAPER_LEFT_OUT[: len(models) - count]
    varieties = [model for model in models if model.name not in left_out]
    return [varieties[index * len(varieties) // count] for index in range(count)]


def copies(models: Sequence[ModelProfile], count: int) -> list[ModelProfile]:
    """Return ``count`` instances of every model, which share its program. Instances of a model are adjacent.

    Their names keep the alphabetical order: name-00, name-01, ...
    """
    if count < 1:
        raise ConfigError(f"{count} copies: there must be at least 1")
    digits = len(str(count - 1))
    return [
        dataclasses.replace(
            model, name=f"{model.name}-{index:0{digits}d}", program=model.program or model.name
        )
        for model in models
        for index in range(count)
    ]


def paper_instances() -> list[ModelProfile]:
    """The 4,026 models of the paper's trace experiment: 61 varieties, 66 copies each."""
    return copies(paper_varieties(61), 66)


def linear(
    name: str,
    alpha_ns: int,
    beta_ns: int,
    batch_max: int,
    *,
    weights_bytes: int = 0,
    load_ns: int = 0,
    input_bytes: int = 0,
    output_bytes: int = 0,
    slo_ns: int = 0,
    program: str = "",
) -> ModelProfile:
    """Return a synthetic model: a batch of b takes alpha * b + beta, with points at 1, 2, 4, ... and
    batch_max."""
    sizes = {1 << power for power in range(batch_max.bit_length())} | {batch_max}
    profile = ModelProfile(
        name=name,
        exec_ns={batch: alpha_ns * batch + beta_ns for batch in sorted(sizes) if batch <= batch_max},
        weights_bytes=weights_bytes,
        load_ns=load_ns,
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        program=program,
        batch_max=batch_max,
        slo_ns=slo_ns,
    )
    profile.check()
    return profile


# ----- from a live cluster -------------------------------------------------------------------


def from_info(info: ModelInfo, serving: bool = False) -> ModelProfile:
    """Return the profile that a cluster measured for a registered model, with inputs shaped as its
    registration example.

    serving: prefer the times of recent executions to those of registration.

    Raises ConfigError for a model that has not been profiled.
    """
    if not info.profile:
        raise ConfigError(f"model {info.name!r} is {info.state} and has no profile: {info.text}".rstrip(": "))
    shape = info.profile[0].shape
    times = [point.exec_ns for point in info.profile]
    expected = list(info.raw.get("expected_ns") or ())
    if serving and len(expected) == len(times):
        times = expected
    defaults = read_defaults(
        info.metadata, [(spec.name, code_of(spec.dtype), spec.shape) for spec in info.inputs]
    )
    rows = [
        defaults[spec.name].shape if spec.name in defaults else (1, *dims) if info.batches else dims
        for spec, dims in zip(info.inputs, shape)
    ]
    symbols: dict[str, int] = {}
    for spec, known in zip(info.inputs, rows):
        symbols |= {size: value for size, value in zip(spec.shape, known) if isinstance(size, str) and size}
    profile = ModelProfile(
        name=info.name,
        exec_ns={point.batch: ns for point, ns in zip(info.profile, times) if point.shape == shape},
        weights_bytes=info.weights_bytes,
        load_ns=info.load_ns,
        input_bytes=sum(tensor_bytes(code_of(spec.dtype), known) for spec, known in zip(info.inputs, rows)),
        output_bytes=sum(
            tensor_bytes(
                code_of(spec.dtype),
                [
                    size if isinstance(size, int) and size >= 0 else symbols.get(str(size), 1)
                    for size in spec.shape
                ],
            )
            for spec in info.outputs
        ),
        program=str(info.raw.get("program", "")),
        batch_max=info.batch_max if info.batches else 1,
        slo_ns=int(info.raw.get("slo_ns") or 0),
        page_bytes=int(info.raw.get("page_bytes") or 0),
        page_count=int(info.raw.get("pages") or 0),
        runs=tuple(info.raw.get("runs") or ()),
    )
    profile.check()
    return profile
