from collections.abc import Callable, Sequence
from typing import Any

from clockwork.device.base import Completion, TensorView
from clockwork.wire.messages import ActionMessage, Status

class Fleet:
    """The emulated devices of one process."""

    def __init__(
        self,
        clock: Callable[[], int],
        count: int,
        *,
        executors: int,
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
        slowdown: float,
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
        """clock: returns the time, for callers in Python; the timer follows the machine's clock.

        The other settings are those of csrc/device/fleet.h and csrc/device/emulated.h."""

    def port(self, device: int) -> object:
        """Return the capsule by which a road drives this device. It is valid as long as the fleet."""

    def outlet(self) -> object:
        """Return the capsule by which a road takes all devices' ended orders. It is valid as long as the
        fleet."""

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
        """Add a model. points: (rows, ns), ascending. outputs: (dtype, bits of an element, dimensions)."""

    def forget(self, model_id: int) -> None:
        """Drop a model. Raises ValueError if the model is resident or in use."""

    def start(
        self,
        device: int,
        action: ActionMessage,
        parts: Sequence[Sequence[TensorView]] = (),
    ) -> None:
        """Begin an action. parts: the inputs of each part of an INFER."""

    def revoke(self, device: int, action_id: int) -> None: ...
    def end_run(self, device: int, action_id: int) -> None: ...
    def look(self, device: int) -> tuple[int, int, int]:
        """Return the ids of the actions that the execute, load and fetch lanes run; 0 for none."""

    def ended(self) -> list[int]:
        """Return the devices of which an action has ended."""

    def poll(self, device: int) -> list[Completion]: ...
    def reset(self, device: int) -> None: ...
    def keep(self, device: int) -> list[tuple[int, int, list[int]]]: ...
    def rename(self, model_id: int, other: int) -> None: ...
    def held_pages(self, device: int) -> int: ...
    def input_bytes(self, device: int) -> int: ...
    def is_resident(self, model_id: int) -> bool:
        """Whether the model is resident on any device."""

    def lateness(self) -> list[int]:
        """Return how late the last completions were noticed, in ns."""

    @property
    def host_bytes(self) -> int:
        """Return the bytes of models in the host store."""

    @property
    def event_count(self) -> int: ...

class Machine:
    """Devices that share a host store and, if so configured, a link. The caller gives all times, which never
    decrease.

    The settings are those of csrc/device/emulated.h; stale_max is that of csrc/device/emulated_machine.h.
    Every call first moves the actions that have ended by its time to take()."""

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
        action: ActionMessage,
        owner: Any,
        profiled_ns: int = 0,
        size: int = 0,
        runs: Sequence[int] = (),
    ) -> None:
        """Queue an action on its lane; take() returns `owner`. size: bytes of its inputs, or of the fetched
        model."""

    def revoke(self, device: int, now: int, action_id: int) -> None: ...
    def end_run(self, device: int, now: int, action_id: int) -> None: ...
    def advance(self, now: int) -> None: ...
    def reset(self, device: int, now: int) -> None:
        """Forget a device's actions and residencies. Call take() before."""

    def clear_store(self) -> None: ...
    def take(self) -> list[tuple[int, Any, Status, str, int, int, int]]:
        """Return ended actions in order: (device, owner, status, text, begin, end, wait for inputs), times in
        ns."""

    @property
    def next_ns(self) -> int:
        """Return the time of the next advance(); NEVER_NS if nothing is to happen."""

    @property
    def event_count(self) -> int: ...
    @property
    def host_bytes(self) -> int:
        """Return the bytes of models in the host store."""

    def running(self, device: int) -> tuple[Any, Any, Any]:
        """Return the owners of the actions that the execute, load and fetch lanes run, or None."""

    def held_pages(self, device: int) -> int: ...
    def residency(self, device: int, model_id: int) -> tuple[int, tuple[int, ...]] | None:
        """Return (load id, first page of each run) of a loading or loaded model; None for any other."""

    def is_resident(self, model_id: int) -> bool:
        """Whether the model is resident on any device."""

    def is_used(self, model_id: int) -> bool:
        """Whether a model is resident, in the host store, or in an action that has not ended."""
