"""What a controller says of itself and of its models, as records that a caller can read.

Fields that a newer controller adds are kept in ``raw``; what an older one leaves out has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

from clockwork.clock import to_seconds


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output. A dimension is an int, or a symbol's name ("" unnamed)."""

    name: str
    dtype: str  # numpy's name of it: "float32"; "string" for strings
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileInfo:
    """One execution time measured at registration."""

    shape: tuple[tuple[int, ...], ...]  # of each input; without axis 0 where the model batches
    batch: int
    exec_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of a registered model. Those of Client.models() lack what takes long to list: see model()."""

    name: str
    version: int
    state: str  # preparing, ready, draining or failed
    text: str  # why it failed
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    slo: float | None  # the default, in seconds
    batches: bool
    batch_max: int
    batching_note: str  # why it batches or does not
    holding: str  # how the device keeps its weights: bound, packed or none
    weights_bytes: int
    load_ns: int
    profile: tuple[ProfileInfo, ...]
    metadata: dict[str, str]  # the ONNX file's own
    devices: tuple[dict[str, Any], ...]  # where it is: worker, device, state
    counts: dict[str, int]
    digest: str  # of the package: equal content, equal digest
    raw: dict[str, Any] = dataclasses.field(repr=False)

    @staticmethod
    def from_wire(body: Any) -> ModelInfo:
        body = dict(body) if isinstance(body, Mapping) else {}
        slo_ns = _int(body.get("slo_ns"))
        return ModelInfo(
            name=str(body.get("name", "")),
            version=_int(body.get("version")),
            state=str(body.get("state", "")),
            text=str(body.get("text", "")),
            inputs=_tensors(body.get("inputs")),
            outputs=_tensors(body.get("outputs")),
            slo=to_seconds(slo_ns) if slo_ns > 0 else None,
            batches=bool(body.get("batches", False)),
            batch_max=_int(body.get("batch_max")),
            batching_note=str(body.get("batching_note", "")),
            holding=str(body.get("holding", "")),
            weights_bytes=_int(body.get("weights_bytes")),
            load_ns=_int(body.get("load_ns")),
            profile=tuple(
                ProfileInfo(
                    tuple(tuple(dimensions) for dimensions in point.get("shape", ())),
                    _int(point.get("batch")),
                    _int(point.get("exec_ns")),
                )
                for point in body.get("profile") or ()
            ),
            metadata=dict(body.get("metadata") or {}),
            devices=tuple(body.get("devices") or ()),
            counts=dict(body.get("counts") or {}),
            digest=str(body.get("digest", "")),
            raw=body,
        )


class Status(TypedDict, total=False):
    """What Client.status() returns: a plain dict with these keys, and perhaps more."""

    version: str
    epoch: int
    uptime_ns: int
    policy: str
    models: Any
    clients: Any
    workers: list[dict[str, Any]]  # id, name, state, rtt_ns, jitter_ns, devices, memory, ...
    counts: dict[str, int]


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _tensors(body: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            str(one.get("name", "")),
            str(one.get("dtype", "")),
            tuple(one.get("shape", ())),
        )
        for one in body or ()
    )
