from collections.abc import Callable, Sequence
from typing import Any

from clockwork.device.base import Completion, TensorView
from clockwork.wire.messages import HostDrop, HostFetch, Infer, Load, Profile, Status, Unload

KINDS: dict[type, int]
"""The kinds of actions as numbers of the native code."""

class Fleet:
    """The emulated devices of one process."""

    def __init__(
        self,
        clock: Callable[[], int],
        count: int,
        *,
        page_count: int,
        run_ahead: int,
        stale_max: int,
        host_bytes: int,
        shares_link: bool,
        seed: int,
        slot_bytes_max: int,
        page_bytes: int,
        spin_ns: int,
        is_unending: bool,
        exec_noise: float,
        load_noise: float,
        exec_outlier: float,
        outlier_factor: float,
        load_failures: float,
        exec_failures: float,
        exec_failure: Status,
        copy_bandwidth: int,
        disk_bandwidth: int,
        slow_factor: float,
        slow_ns: int,
        slow_every_ns: int,
    ) -> None:
        """clock: the time, for callers in Python; the timer follows the machine's. The other settings are those of
        csrc/device/fleet.h and csrc/device/emulated.h."""

    def port(self, device: int) -> object:
        """How a road drives this device: a capsule, good for as long as the fleet."""

    def outlet(self) -> object:
        """Where a road takes the ended orders of all devices from: likewise."""

    def fileno(self) -> int: ...
    def close_timer(self) -> None: ...
    def add_model(
        self,
        model_id: int,
        dtypes: Sequence[int],
        batches: bool,
        runs: Sequence[int],
        points: Sequence[tuple[int, int]],
        load_ns: int,
        outputs: Sequence[tuple[int, int, Sequence[int]]],
    ) -> None:
        """points: (rows, nanoseconds) each, ascending. outputs: (dtype, bits of an element, dimensions) each."""

    def forget(self, model_id: int) -> None:
        """Raises ValueError if the model is resident or in use."""

    def start(
        self,
        device: int,
        kind: int,
        action: Load | Unload | Infer | Profile | HostFetch | HostDrop,
        parts: Sequence[Sequence[TensorView]] = (),
    ) -> None:
        """Begin an action. parts: the inputs of an INFER."""

    def revoke(self, device: int, action_id: int) -> None: ...
    def end_run(self, device: int, action_id: int) -> None: ...
    def look(self, device: int) -> tuple[int, int, int]:
        """The ids of what is executed, loaded and fetched; 0: none."""

    def ended(self) -> list[int]:
        """The devices of which something has ended."""

    def poll(self, device: int) -> list[Completion]: ...
    def reset(self, device: int) -> None: ...
    def held_pages(self, device: int) -> int: ...
    def input_bytes(self, device: int) -> int: ...
    def is_resident(self, model_id: int) -> bool:
        """On any device."""

    def lateness(self) -> list[int]:
        """How late the last ends were noticed, in nanoseconds."""

    @property
    def host_bytes(self) -> int:
        """Bytes in the host store."""

    @property
    def event_count(self) -> int: ...

class Machine:
    """Devices that share a link, perhaps, and a host store. Every time is the caller's, and never goes back.

    The settings are those of csrc/device/emulated.h, stale_max that of csrc/device/emulated_machine.h. Whatever is called, what has ended by then is for take()."""

    def __init__(
        self,
        count: int,
        page_count: int,
        run_ahead: int,
        stale_max: int,
        *,
        host_bytes: int = 0,
        shares_link: bool = False,
        speed: float = 1.0,
        seed: int = 0,
        unload_ns: int = 0,
        exec_noise: float = 0.0,
        load_noise: float = 0.0,
        exec_outlier: float = 0.0,
        load_outlier: float = 0.0,
        outlier_factor: float = 2.0,
        load_refusals: float = 0.0,
        load_failures: float = 0.0,
        exec_failures: float = 0.0,
        exec_failure: Status = ...,
        copy_bandwidth: int = 0,
        disk_bandwidth: int = 0,
        slow_factor: float = 1.0,
        slow_ns: int = 0,
        slow_every_ns: int = 0,
    ) -> None: ...
    def start(
        self,
        device: int,
        now: int,
        action: Load | Unload | Infer | Profile | HostFetch | HostDrop,
        owner: Any,
        profiled_ns: int = 0,
        size: int = 0,
        runs: Sequence[int] = (),
    ) -> None:
        """Hand an action to its lane; owner comes back in take(). size: bytes of its inputs, or of what is fetched."""

    def revoke(self, device: int, now: int, action_id: int) -> None: ...
    def end_run(self, device: int, now: int, action_id: int) -> None: ...
    def advance(self, now: int) -> None: ...
    def reset(self, device: int, now: int) -> None:
        """Forget a device's actions and residencies. What ended before must have been taken."""

    def clear_store(self) -> None: ...
    def take(self) -> list[tuple[int, Any, Status, str, int, int, int]]:
        """What has ended since the last call, in order: (device, owner, status, text, begin, end, wait for inputs)."""

    @property
    def next_ns(self) -> int:
        """When advance() is wanted; NEVER_NS: not at all."""

    @property
    def event_count(self) -> int: ...
    @property
    def host_bytes(self) -> int:
        """Bytes in the host store."""

    def running(self, device: int) -> tuple[Any, Any, Any]:
        """The owners of what the lanes are at, or None: executes, loads, fetches."""

    def held_pages(self, device: int) -> int: ...
    def residency(self, device: int, model_id: int) -> tuple[int, tuple[int, ...]] | None:
        """(load id, first page of each run) of a model that is loading or loaded; None: it is neither."""

    def is_resident(self, model_id: int) -> bool:
        """On any device."""

    def is_used(self, model_id: int) -> bool:
        """Resident, in the host store, or in an action that has not ended."""
