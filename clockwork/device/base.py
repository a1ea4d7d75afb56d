"""What a device is to a worker: it does what it is told, in the window it was told, and says when.

A device owns a page arena, its input/output slots and its workspace, all allocated when it is made.
It has lanes, each strictly first in, first out: *load* (LOAD, UNLOAD), *execute* (INFER, PROFILE) and,
where the machine has a host store with a budget, *fetch* (FETCH, DROP). It never evicts, reorders or
retries. What one device may differ in, another must be able to differ in without any change outside its
own module.

Threads: every method is called from the worker's one loop thread, except prepare(), release_program()
which are called from the worker's preparation thread. The lanes themselves run natively.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from clockwork.wire.messages import (
    DeviceInfo,
    HostDrop,
    HostFetch,
    Infer,
    Load,
    Phase,
    Profile,
    Status,
    Unload,
)


class TensorView(NamedTuple):
    """One tensor: ONNX dtype code, shape, and its bytes (C order; strings: 4-byte length + bytes each)."""

    dtype: int
    shape: tuple[int, ...]
    data: Any  # bytes-like; the device keeps it alive until the action has completed


class Completion(NamedTuple):
    """The end of one action. Times are of this machine's monotonic clock.

    LOAD and UNLOAD report their time as ``execute``. An action that a device cannot take (inputs that
    are not the model's, pages that are not free, a lane that is full) completes with a status and a
    sentence; nothing but a caller's bug raises.
    """

    action_id: int
    status: Status
    text: str
    copy_in: Phase
    execute: Phase
    copy_out: Phase
    parts: list[list[TensorView]]  # INFER: the outputs of each part, in the model's output order


class DeviceBroken(Exception):
    """It is no model's fault: the device is broken for good. The text is its ``fault``."""


class ModelHolder(Protocol):
    """Whom models are made known to: a device, or the group that it belongs to."""

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def fault(self) -> str:
        """What broke it for good, in a sentence: until its process begins anew, every action is a DEVICE_ERROR.

        "" while it is whole."""
        ...

    def prepare(self, model_id: int, directory: str) -> None:
        """Make a prepared model loadable: create (or share) its program, map its weights. May take long.

        directory: a directory made by models.prepare for this device's fingerprint. Raises
        InvalidModel, or DeviceBroken (see ``fault``). After it returns, start_load() of this model
        opens, allocates and compiles nothing (but see the packed holding of the CPU device).
        """
        ...

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known; its program goes with the last model that uses it. Raises
        ValueError while it is resident or has actions under way."""
        ...


class DeviceGroup(ModelHolder, Protocol):
    """Alike devices of one process that share their models and one descriptor.

    What a worker does for each of its devices in each turn of its loop, it does once for a group: a
    thousand emulated devices then cost what those of them cost that have something to say."""

    def fileno(self) -> int:
        """Readable while ended() has devices to give."""
        ...

    def ended(self) -> Sequence[Device]:
        """The devices whose poll() has something to give, each once."""
        ...

    def stats(self) -> dict[str, int]:
        """For ``clockwork status``: how exactly it does what it does."""
        ...


class Device(ModelHolder, Protocol):
    @property
    def group(self) -> DeviceGroup | None:
        """The group that it belongs to; models are then made known to the group alone."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable while poll() has completions to give."""
        ...

    def start_load(self, action: Load) -> None: ...

    def start_unload(self, action: Unload) -> None: ...

    def start_infer(self, action: Infer, parts: Sequence[Sequence[TensorView]]) -> None:
        """Queue a batch. parts: per request, its inputs in the model's order. The device keeps a
        reference to the buffers until the completion has been polled; nobody may write to them."""
        ...

    def start_profile(self, action: Profile) -> None: ...

    def start_fetch(self, action: HostFetch) -> None:
        """Bring a model into the host store of the machine, within its budget: a LOAD needs it there.

        Raises ValueError where there is no host tier (DeviceInfo.host_bytes 0)."""
        ...

    def start_drop(self, action: HostDrop) -> None:
        """Give its bytes there back. IN_USE while a LOAD from it is queued or under way. Raises as start_fetch()."""
        ...

    def revoke(self, action_id: int) -> None:
        """Have an action that has not started complete as ACTION_CANCELLED; otherwise do nothing."""
        ...

    def running(self) -> int:
        """The id of the action that the execute lane is at; 0: none."""
        ...

    def moving(self) -> tuple[int, int]:
        """The ids of the actions that the load lane and the fetch lane are at; 0: none. What only waits until another
        device has loaded is not at it."""
        ...

    def end_run(self, action_id: int) -> None:
        """Have that action end as OVERRUN as soon as may be, if the execute lane is at it. To be said again while it is:
        it may not have begun. A device that cannot do that does nothing."""
        ...

    def poll(self) -> list[Completion]:
        """Every action that ended since the last call, in the order in which they ended."""
        ...

    def reset(self) -> None:
        """Wait for what runs; drop what is queued, what has not been polled, and every residency.

        A new controller epoch begins. Models stay prepared until they are forgotten."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes by purpose: arena_bytes, resident_bytes, workspace_bytes, packed_bytes, ..."""
        ...

    def close(self) -> None:
        """Stop the lanes and release everything. Idempotent."""
        ...
