"""What a controller knows of each peer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from clockwork.controller.clocksync import ClockSync
from clockwork.controller.models import ServedModel
from clockwork.errors import InvalidInput
from clockwork.formats.prepared import TensorSpec, contradiction
from clockwork.wire.messages import NEVER_NS, DeviceInfo, Result, Status
from clockwork.wire.telling import tell
from clockwork.wire.tensors import DTYPES, STRING, check_strings, check_tensor

_STATUSES = frozenset(int(status) for status in Status)


class ClientLink:
    """A connected client. What it waits for is the exchange's, which knows it by its slot."""

    __slots__ = ("fd", "identity", "key", "name", "slot")

    def __init__(self, identity: bytes, fd: int, name: str, slot: int, key: str = "") -> None:
        self.identity = identity
        self.fd = fd
        self.name = name
        self.slot = slot
        self.key = key  # the public key of its connection; "": none


class WorkerLink:
    """A connected worker: its clock and its devices. Its actions are the exchange's, which knows it by its slot."""

    __slots__ = (
        "clock", "clock_is_lost", "devices", "faults", "fd", "fetches", "identity", "is_draining", "jitter_ns", "joined_ns", "key", "name",
        "offline", "slot", "stats", "worker_epoch", "worker_id",
    )  # fmt: skip

    def __init__(
        self,
        identity: bytes,
        fd: int,
        slot: int,
        worker_id: int,
        name: str,
        worker_epoch: int,
        devices: list[WorkerDevice],
        joined_ns: int,
        key: str = "",
    ) -> None:
        self.identity = identity
        self.fd = fd
        self.slot = slot
        self.worker_id = worker_id
        self.name = name
        self.worker_epoch = worker_epoch
        self.devices = devices
        self.joined_ns = joined_ns
        self.key = key  # the public key of its connection; "": none
        self.clock = ClockSync()
        self.clock_is_lost = False  # it cannot be followed, which has been told
        self.jitter_ns = 0
        self.offline: dict[int, str] = {}  # devices that are lost, and why
        self.is_draining = False  # it has said Goodbye
        self.faults = 0  # answers of it that cannot be
        self.fetches = 0  # chunks that are being read for it
        self.stats: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerDevice(DeviceInfo):
    """A DeviceInfo that has come over the wire."""

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def parse_devices(rows: list[dict[str, Any]]) -> list[WorkerDevice]:
    """The devices of a WorkerHello. Raises InvalidInput."""
    if not rows:
        raise InvalidInput("a worker has at least one device")
    devices = [WorkerDevice(**({"host_bytes": 0} | row)) for row in rows]
    if any(one.host_bytes != devices[0].host_bytes for one in devices):
        raise InvalidInput("the devices of a worker share one host store")
    return devices


def check_result(
    message: Result,
    frames: Sequence[Any],
    part_rows: Sequence[int],
    tensor_count: int,
    model: ServedModel | None,
) -> None:
    """Raises InvalidInput for a result that makes no sense, or is none of the model's, saying why: the longer form of
    ResultHeader::read() and Exchange::is_expected().

    part_rows, tensor_count: of an INFER's result that is OK, by parts of the batch. model: None where it is gone.
    """
    if message.status not in _STATUSES:
        raise InvalidInput(f"{message.status} is no status")
    phases = (message.copy_in, message.execute, message.copy_out)
    if sum(phase[2] for phase in phases if phase[1]) >= NEVER_NS:
        raise InvalidInput(f"a result of phases that take {NEVER_NS} ns or more together")
    count = sum(map(len, message.parts))
    if len(frames) > count:
        raise InvalidInput(f"{len(frames)} frames came with a result that names {count}")
    if message.status != Status.OK:
        return
    if len(message.parts) != len(part_rows):
        raise InvalidInput(f"a result of {len(message.parts)} parts for a batch of {len(part_rows)}")
    for part in message.parts:
        if len(part) != tensor_count:
            raise InvalidInput(f"a part of {len(part)} tensors of a model with {tensor_count} outputs")
        for _, _, frame in part:
            if frame >= len(frames):
                raise InvalidInput(f"an output in frame {frame} of a message with {len(frames)}")
    if model is None or model.prepared is None:
        return
    for part, rows in zip(message.parts, part_rows):
        for spec, (dtype, shape, frame) in zip(model.prepared.outputs, part):
            why = contradiction(spec, model.verified, rows if model.batches else 0, dtype, shape)
            if why:
                raise InvalidInput(f"output {tell(spec.name)} {why}")
            check_bytes(spec, shape, frames[frame])


def check_bytes(spec: TensorSpec, shape: list[int], data: Any) -> None:
    """Raises InvalidInput where an output's frame is not what its shape takes."""
    try:
        if spec.dtype in DTYPES:
            check_tensor(spec.dtype, shape, len(data))
        if spec.dtype == STRING:
            check_strings(math.prod(shape), data)
    except InvalidInput as error:
        raise InvalidInput(f"output {tell(spec.name)}: {error}") from None


def new_damage(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What a worker has found to be damaged in its store since its last heartbeat, as a sentence; "" nothing."""
    counts = [stats.get("damaged", 0) for stats in (before, now)]
    if not all(type(count) is int for count in counts) or counts[1] <= counts[0]:
        return ""
    return f"{tell(now.get('damage'), 300)}; it is set aside and made, or fetched, anew"
