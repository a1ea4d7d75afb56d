"""What a controller knows of each peer."""

from __future__ import annotations

import dataclasses
from typing import Any

from clockwork.controller.clocksync import ClockSync
from clockwork.device.base import DeviceInfo
from clockwork.errors import InvalidInput
from clockwork.messages import NEVER_NS, Result, Status
from clockwork.telling import tell

DEVICES_MAX = 1_024
"""Of one worker; an emulated one may have hundreds."""

_STATUSES = frozenset(int(status) for status in Status)

_DEVICE_TYPES = {
    "kind": str,
    "name": str,
    "fingerprint": str,
    "page_bytes": int,
    "page_count": int,
    "run_ahead": int,
    "host_bytes": int,
}


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
        "clock", "clock_is_lost", "devices", "fd", "identity", "is_draining", "jitter_ns", "joined_ns", "key", "name", "offline",
        "slot", "stats", "worker_epoch", "worker_id",
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
        self.stats: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerDevice(DeviceInfo):
    """A DeviceInfo that has come over the wire."""

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def parse_devices(rows: list[Any]) -> list[WorkerDevice]:
    """The devices of a WorkerHello. Raises InvalidInput."""
    if not 1 <= len(rows) <= DEVICES_MAX:
        raise InvalidInput(f"a worker has between 1 and {DEVICES_MAX} devices, not {len(rows)}")
    devices: list[WorkerDevice] = []
    for row in rows:
        if isinstance(row, dict):
            row = {"host_bytes": 0} | row
        if not isinstance(row, dict) or row.keys() != _DEVICE_TYPES.keys():
            raise InvalidInput(f"a device is described by {', '.join(_DEVICE_TYPES)}")
        for field, kind in _DEVICE_TYPES.items():
            if type(row[field]) is not kind:
                raise InvalidInput(f"a device's {field} is {kind.__name__}, not {type(row[field]).__name__}")
        if row["page_bytes"] < 1 or row["page_count"] < 1 or row["run_ahead"] < 1:
            raise InvalidInput(
                "a device has at least one page of at least one byte and runs at least one action"
            )
        if row["host_bytes"] < 0 or row["host_bytes"] != (devices or [WorkerDevice(**row)])[0].host_bytes:
            raise InvalidInput("the devices of a worker share one host store, of at least 0 bytes")
        devices.append(WorkerDevice(**row))
    return devices


def check_times(*times: int) -> None:
    """Raises InvalidInput for a time that no clock of a worker shows; it counts from wherever it likes, so one may be
    negative."""
    for time in times:
        if not -NEVER_NS < time < NEVER_NS:
            raise InvalidInput(f"a worker's time is between -{NEVER_NS} and {NEVER_NS} ns, not {time}")


def check_duration(duration_ns: int) -> None:
    """Raises InvalidInput for what no action can have taken."""
    if not 0 <= duration_ns < NEVER_NS:
        raise InvalidInput(f"a duration is between 0 and {NEVER_NS} ns, not {duration_ns}")


def check_result(message: Result, frame_count: int, part_count: int, tensor_count: int) -> None:
    """Raises InvalidInput for a result that makes no sense, saying why: the longer form of ResultHeader::read().

    part_count, tensor_count: of an INFER's result that is OK.
    """
    if message.status not in _STATUSES:
        raise InvalidInput(f"{message.status} is no status")
    check_times(message.received_ns)
    duration_ns = 0
    for phase in (message.copy_in, message.execute, message.copy_out):
        if len(phase) != 3 or not all(type(stamp) is int for stamp in phase):
            raise InvalidInput(f"a phase is [begin, end, duration], not {tell(phase)}")
        check_times(phase[0], phase[1])
        check_duration(phase[2])
        duration_ns += phase[2] if phase[1] else 0
    check_duration(duration_ns)
    is_ok = message.status == Status.OK
    if is_ok and len(message.parts) != part_count:
        raise InvalidInput(f"a result of {len(message.parts)} parts for a batch of {part_count}")
    for part in message.parts:
        if type(part) is not list or (is_ok and len(part) != tensor_count):
            raise InvalidInput(f"a part is a list of the model's {tensor_count} outputs, not {tell(part)}")
        for ref in part:
            if not _is_output(ref) or (is_ok and ref[2] >= frame_count):
                raise InvalidInput(f"an output is [dtype, shape, frame], not {tell(ref)}")


def _is_output(ref: Any) -> bool:
    match ref:
        case [dtype, list(shape), frame]:
            return (
                all(type(number) is int and number >= 0 for number in (dtype, frame, *shape))
                and dtype < 1 << 31
                and frame < 1 << 63
                and all(dimension < NEVER_NS for dimension in shape)
            )
    return False


def new_damage(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What a worker has found to be damaged in its store since its last heartbeat, as a sentence; "" nothing."""
    counts = [stats.get("damaged", 0) for stats in (before, now)]
    if not all(type(count) is int for count in counts) or counts[1] <= counts[0]:
        return ""
    return f"{tell(now.get('damage'), 300)}; it is set aside and made, or fetched, anew"
