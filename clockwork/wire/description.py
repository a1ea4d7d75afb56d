"""A controller's descriptions of itself and its models, as records for callers of the client.

Fields that a newer controller adds are kept in ``raw``; fields that an older controller leaves out have their
defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

from clockwork.config import SHARE_WHOLE
from clockwork.system.clock import to_seconds
from clockwork.wire.references import model_reference


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """A model's input or output. A dimension is an int, or a symbol's name ("" unnamed)."""

    name: str
    dtype: str  # numpy's name: "float32"; "string" for strings
    shape: tuple[int | str, ...]
    optional: bool = False  # an input that a request may leave out: then it has a default


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileInfo:
    """An execution time measured at registration."""

    # The shape of each input, without axis 0 where the model batches. An optional input has its value in
    # place of a shape, see wire.optional.value_entry().
    shape: tuple[tuple[int, ...], ...]
    batch: int
    exec_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """A version of a registered model. Client.models() leaves out profile, metadata, counts, digest and
    notes: see model()."""

    name: str
    version: int
    state: str  # preparing, ready, unserved (ready, but no worker has it), draining, unloaded or failed
    text: str  # reason of a failure
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    slo: float | None  # default SLO in seconds
    batches: bool
    batch_max: int
    batching_note: str  # reason why the model batches or does not
    lengths: tuple[str, ...]  # dimensions in which requests of different size share batches
    lengths_note: str  # why, or why not; "" where all requests have one shape, or none shares a batch
    holding: str  # holding of the weights on the device: bound, packed or none
    weights_bytes: int
    load_ns: int
    profile: tuple[ProfileInfo, ...]
    metadata: dict[str, str]  # metadata of the ONNX file
    devices: tuple[dict[str, Any], ...]  # copies on devices: worker, device, state
    counts: dict[str, int]
    digest: str  # digest of the package: equal content, equal digest
    share: float  # part of the requests to its name, from 0 to 1
    hosted: tuple[str, ...]  # workers that have it in a host store with a budget
    raw: dict[str, Any] = dataclasses.field(repr=False)

    @property
    def reference(self) -> str:
        """``name@version``, as the calls of Client take it."""
        return model_reference(self.name, self.version)

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
            lengths=tuple(map(str, body.get("lengths") or ())),
            lengths_note=str(body.get("lengths_note", "")),
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
            share=_int(body.get("share")) / SHARE_WHOLE,
            hosted=tuple(body.get("hosted") or ()),
            raw=body,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ShadowInfo:
    """A version that gets copies of requests, with counts since it began or since the controller started.

    copied: requests that were copied. unanswered: copies for which the version had no idle time before their
    SLO (at most 0.9 s), or failed. moot: copies of requests that were not answered themselves. dropped:
    requests not copied, or answers not compared, because too many waited. compared: pairs of answers.
    differing: pairs that differ in names, dtypes or shapes. beyond: pairs that differ so, or by more than the
    tolerance. absolute_max, relative_max: the largest difference of two elements; relative to the largest
    magnitude in the tensor of the version that serves.
    """

    version: int
    share: float  # part of the requests to other versions that is copied, from 0 to 1
    tolerance: float
    copied: int
    dropped: int
    unanswered: int
    moot: int
    compared: int
    differing: int
    beyond: int
    absolute_max: float
    relative_max: float


@dataclasses.dataclass(frozen=True, slots=True)
class RouteInfo:
    """How a name's traffic is split. Shares are by version, from 0 to 1."""

    name: str
    automatic: bool  # without a split: the newest version that is ready has all the traffic
    shares: dict[int, float]
    serving: dict[int, float]  # shares at this moment, of the versions that are ready
    shadow: ShadowInfo | None
    earlier: tuple[dict[int, float], ...]  # shares that a rollback can restore; the last comes first
    raw: dict[str, Any] = dataclasses.field(repr=False)

    @staticmethod
    def from_wire(body: Any) -> RouteInfo:
        body = dict(body) if isinstance(body, Mapping) else {}
        shadow = body.get("shadow")
        return RouteInfo(
            name=str(body.get("name", "")),
            automatic=bool(body.get("automatic", True)),
            shares=_shares(body.get("shares")),
            serving=_shares(body.get("serving")),
            shadow=_shadow(shadow) if isinstance(shadow, Mapping) else None,
            earlier=tuple(_shares(entry.get("shares")) for entry in reversed(body.get("earlier") or ())),
            raw=body,
        )


STORE_STATES = ("scarce", "awaited", "cramped", "lost", "copying")
"""States of models in workers' stores with a bound, as `stores` of a cluster's status counts them."""


class ClusterStatus(TypedDict, total=False):
    """Returned by Client.status(): a plain dict with these keys, and perhaps more."""

    version: str
    epoch: int
    uptime_ns: int
    policy: str
    models: Any
    clients: Any
    # workers' stores with a bound: STORE_STATES (models); bytes, used, room
    stores: dict[str, int]
    workers: list[dict[str, Any]]  # id, name, state, rtt_ns, jitter_ns, devices, memory, ...
    counts: dict[str, int]
    requests_held: int  # requests without an answer, waiting or on a device; at most requests_held_max
    requests_held_max: int
    noise: dict[str, float]  # noise of execution times: executions, pace, sigma, outliers, outlier_factor
    complaints: dict[str, int]  # malformed messages, and messages at which the controller failed, by sender
    # controllers: role, active (address), since_ns, standbys (address, process, behind, silent_ns), takeovers
    # (counts by reason), last (ago_ns, why, before, after)
    standing: dict[str, Any]
    troubles: dict[str, Any]  # open: (kind, subject, text, count, since_ns, last_ns) each; left_out, noted


def describe_standing(body: Any) -> str:
    """A sentence about the controllers, of ``standing`` in a cluster's status; "": there is one alone."""
    body = body if isinstance(body, Mapping) else {}
    standbys, last = body.get("standbys") or (), body.get("last")
    if not standbys and not last and not body.get("expects_standbys"):
        return ""
    parts = [f"active at {body.get('active')} for {to_seconds(_int(body.get('since_ns'))):.0f} s"]
    for standby in standbys:
        behind = _int(standby.get("behind"))
        read = (
            f"{behind} changes behind" if behind > 0 else "up to date" if not behind else "reads when needed"
        )
        silent = to_seconds(_int(standby.get("silent_ns")))
        parts.append(
            f"standby at {standby.get('address') or 'an unknown address'} ({read}, heard {silent:.1f} s ago)"
        )
    if not standbys:
        parts.append("no standby")
    if last:
        ago, why = to_seconds(_int(last.get("ago_ns"))), str(last.get("why", "")).replace("_", " ")
        parts.append(f"took over {ago:.0f} s ago from {last.get('before') or 'another'}, which was {why}")
    return "; ".join(parts)


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _shares(body: Any) -> dict[int, float]:
    return {_int(version): _int(parts) / SHARE_WHOLE for version, parts in body or ()}


def _shadow(body: Mapping[str, Any]) -> ShadowInfo:
    return ShadowInfo(
        version=_int(body.get("version")),
        share=_int(body.get("parts")) / SHARE_WHOLE,
        tolerance=_float(body.get("tolerance")),
        copied=_int(body.get("copied")),
        dropped=_int(body.get("dropped")),
        unanswered=_int(body.get("unanswered")),
        moot=_int(body.get("moot")),
        compared=_int(body.get("compared")),
        differing=_int(body.get("differing")),
        beyond=_int(body.get("beyond")),
        absolute_max=_float(body.get("absolute_max")),
        relative_max=_float(body.get("relative_max")),
    )


def _tensors(body: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            str(entry.get("name", "")),
            str(entry.get("dtype", "")),
            tuple(entry.get("shape", ())),
            entry.get("optional") is True,
        )
        for entry in body or ()
    )
