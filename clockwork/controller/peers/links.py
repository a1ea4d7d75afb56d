"""Connected peers: the controller's records of clients and workers, and their identities."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from clockwork.config import VERSION
from clockwork.config.wire import STORE_BYTES_MAX
from clockwork.controller.peers.clocksync import ClockSync
from clockwork.errors import InvalidInput
from clockwork.wire import codec
from clockwork.wire.messages import PROTOCOL_VERSION, DeviceInfo, Mismatch
from clockwork.wire.telling import printable, tell

STORE_STATS = ("store_bytes_used", "store_models", "store_fetching")
"""Counts in the stats of a worker whose store has a bound: bytes of the prepared models that lie there, their
number, and FETCHes under way."""

OWN_NAME_TEXT = (
    "a peer must not name itself (ZMQ_ROUTING_ID): the controller tells peers apart by names of its own"
)

WORKER_AT_CLIENTS = Mismatch(
    PROTOCOL_VERSION,
    "this port is for clients; workers connect to another, 5556 unless the controller was told otherwise",
)
CLIENT_AT_WORKERS = Mismatch(
    PROTOCOL_VERSION,
    "this port is for workers; clients connect to another, 5555 unless the controller was told otherwise",
)
"""Answers to peers that dialled the wrong of two neighbouring ports."""


@dataclasses.dataclass(slots=True, eq=False)
class ClientLink:
    """A connected client. The exchange holds its requests, by its slot."""

    identity: bytes
    fd: int
    name: str
    slot: int
    key: str = ""  # public key of the connection; "": none
    waits: set[int] = dataclasses.field(default_factory=set)  # ids of unanswered requests, without inferences
    owner: int = dataclasses.field(init=False)  # number of the owner, as in messages.Prepare

    def __post_init__(self) -> None:
        # A positive number for the key, or for a connection without a key; a peer cannot choose another's
        self.owner = 1 + int.from_bytes(hashlib.sha256(self.key.encode() or self.identity).digest()[:6])


@dataclasses.dataclass(slots=True, eq=False)
class WorkerLink:
    """A connected worker: its clock and devices. The exchange holds its actions, by its slot."""

    identity: bytes
    fd: int
    slot: int
    worker_id: int
    name: str
    worker_epoch: int
    devices: list[DeviceInfo]
    joined_ns: int
    key: str = ""  # public key of the connection; "": none
    clock: ClockSync = dataclasses.field(default_factory=ClockSync)
    clock_is_lost: bool = False  # the clock cannot be followed, which has been noted
    jitter_ns: int = 0
    offline: dict[int, str] = dataclasses.field(default_factory=dict)  # lost devices, and the reason of each
    is_draining: bool = False  # the worker has said Goodbye
    copies_until_ns: int = 0  # its Goodbye is answered then at the latest: others fetch its models; 0: it was
    faults: int = 0  # number of the worker's impossible answers
    fetches: int = 0  # number of chunks that are being read for the worker
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)


class Links:
    """All connected peers: by libzmq's identity, by descriptor, and by number."""

    def __init__(self) -> None:
        self.clients: dict[bytes, ClientLink] = {}
        self.workers: dict[bytes, WorkerLink] = {}
        self.worker_by_id: dict[int, WorkerLink] = {}
        self.client_of_fd: dict[int, ClientLink] = {}
        self.worker_of_fd: dict[int, WorkerLink] = {}


def parse_devices(rows: list[dict[str, Any]]) -> list[DeviceInfo]:
    """The devices of a WorkerHello. Raises InvalidInput."""
    if not rows:
        raise InvalidInput("a worker has at least one device")
    devices = [DeviceInfo(**({"host_bytes": 0} | row)) for row in rows]
    if any(device.host_bytes != devices[0].host_bytes for device in devices):
        raise InvalidInput("the devices of a worker share one host store")
    if any(device.store_bytes != devices[0].store_bytes for device in devices):
        raise InvalidInput("the devices of a worker share one store")
    return devices


def bundle_kind(devices: Sequence[DeviceInfo], release: str) -> str:
    """A text that is equal for workers that can use models as the others have prepared them: the same
    release, processor features and versions of the runtime (both in the fingerprint), and page size. "": a
    worker that prepares for several kinds of devices, or for other devices than CPUs."""
    kinds = {(device.kind, device.fingerprint, device.page_bytes) for device in devices}
    (kind, fingerprint, page_bytes), *others = kinds
    return "" if others or kind != "cpu" else f"{fingerprint}/{page_bytes}/{release}"


def sharing(devices: Sequence[DeviceInfo], index: int) -> list[int]:
    """The numbers of the devices that execute from this device's arena, its own among them."""
    owners = [number if device.arena < 0 else device.arena for number, device in enumerate(devices)]
    return [number for number, owner in enumerate(owners) if owner == owners[index]]


def why_no_store(devices: Sequence[DeviceInfo], kind: str) -> str:
    """The reason why the store of a worker cannot have a bound; "": it can, or has none.

    kind: bundle_kind()."""
    if devices[0].store_bytes and (not kind or devices[0].host_bytes):
        return "a store with a bound (--store-bytes) is for workers whose devices are CPUs of one kind"
    return ""


def why_not_shared(devices: Sequence[DeviceInfo]) -> str:
    """The reason why devices cannot execute from the arenas that they name; "" if they can."""
    for index, device in enumerate(devices):
        if device.arena < 0:
            continue
        if device.slowdown_thousandths != 1000:
            return f"device {index} tells the slowdown of the arena of device {device.arena}, which is that device's to tell"
        if device.arena >= index:
            return f"device {index} executes from the arena of device {device.arena}, which does not come before it"
        owner = devices[device.arena]
        if owner.arena >= 0:
            return (
                f"device {index} executes from the arena of device {device.arena}, which has none of its own: "
                f"it executes from the arena of device {owner.arena}"
            )
        for name in ("kind", "page_bytes", "page_count", "run_ahead"):
            own, owners = getattr(device, name), getattr(owner, name)
            if own != owners:
                return (
                    f"device {index} executes from the arena of device {device.arena}, but its {name} is "
                    f"{tell(own)}, not {tell(owners)}"
                )
    return ""


def count_values(value: Any, most: int) -> int:
    """The number of values in a value, itself included; some number above ``most`` where there are more."""
    count, left = 0, [value]
    while left and count <= most:
        item = left.pop()
        count += 1
        if type(item) is dict:
            left += item.values()
        elif type(item) is list:
            left += item
    return count


def check_stats(stats: dict[str, Any], device_count: int) -> None:
    """Raises InvalidInput where a worker's stats that people are shown have another type than is shown."""
    rows = stats.get("devices", [])
    if type(rows) is not list or len(rows) not in (0, device_count):
        raise InvalidInput(f"stats of devices are a list of {device_count}, got {tell(rows)}")
    gpus = [row.get("gpu", {}) if type(row) is dict else row for row in rows]
    if not all(type(gpu) is dict and _are_texts(gpu.get("throttled", [])) for gpu in gpus):
        raise InvalidInput(f"stats of a device are a map, its gpu's, too; got {tell(rows)}")
    if not _are_texts(stats.get("devices_lost", [])) or type(stats.get("rss_bytes", 0)) is not int:
        raise InvalidInput(f"devices_lost are texts and rss_bytes is a number, got {tell(stats)}")
    for name in STORE_STATS:
        if type(count := stats.get(name, 0)) is not int or not 0 <= count <= STORE_BYTES_MAX:
            raise InvalidInput(f"{name} is 0 to {STORE_BYTES_MAX}, got {tell(count)}")


def _are_texts(value: Any) -> bool:
    return type(value) is list and all(type(text) is str for text in value)


def new_damage(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A sentence about damage that a worker found in its store since its last heartbeat, or ""."""
    counts = [stats.get("damaged", 0) for stats in (before, now)]
    if not all(type(count) is int for count in counts) or counts[1] <= counts[0]:
        return ""
    return f"{tell(now.get('damage'), 300)}; it is set aside and made, or fetched, anew"


def named(peer: ClientLink | WorkerLink | None) -> str:
    """A peer's name for a sentence; a client is named as it names itself."""
    return (
        "an unknown peer"
        if peer is None
        else f"{'worker' if isinstance(peer, WorkerLink) else 'client'} {peer.name}"
    )


def is_ours(identity: bytes) -> bool:
    """Whether libzmq numbered this peer, as it does unless the peer names itself."""
    return len(identity) == 5 and identity[0] == 0


def is_older(identity: bytes, other: bytes) -> bool:
    """Whether this peer connected before the other. libzmq counts peers in 32 bits, from any number on."""
    return (int.from_bytes(identity[1:]) - int.from_bytes(other[1:])) % (1 << 32) >= 1 << 31


def is_hello(frames: list[Any], table: dict[int, type], kind: type) -> bool:
    """Whether a message is the hello of another kind of peer, whose messages are in ``table``."""
    try:
        return bool(frames) and type(codec.decode(frames[0], table)) is kind
    except codec.WireError:
        return False


def mismatch(protocol: int, version: str) -> Mismatch:
    return Mismatch(
        PROTOCOL_VERSION,
        f"the controller ({VERSION}) speaks protocol {PROTOCOL_VERSION}, "
        f"the peer ({printable(version, 40)}) speaks {protocol}",
    )
