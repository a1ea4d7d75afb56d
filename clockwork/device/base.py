"""The interface of devices: a device carries out actions in their windows and reports their times.

A device owns a page arena, its input/output slots and its workspace. Their memory is allocated before a LOAD
or an execution needs it. A device has lanes, each strictly first in, first out: *load* (LOAD, UNLOAD),
*execute* (INFER, PROFILE) and, where the machine has a host store with a budget, *fetch* (FETCH, DROP). A
device may execute from the arena of another device, its owner; then *execute* is its only lane. A device
never evicts, reorders or retries. Differences between devices stay inside their modules.

Threads: a worker's road drives a device natively, by its port() and outlet(), on the road's thread. The
opening thread calls open(), tidy(), reserved() and the methods used inside it. The worker's loop calls all
other methods. Other callers use a single thread in the place of road and loop. The lanes run natively.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from clockwork.wire.messages import ActionMessage, DeviceInfo, Phase, Status


class TensorView(NamedTuple):
    """A tensor: ONNX dtype code, shape, and bytes (C order; strings: 4-byte length + bytes each)."""

    dtype: int
    shape: tuple[int, ...]
    data: Any  # bytes-like; the device keeps it alive until the action has completed


class Completion(NamedTuple):
    """The end of an action. Times are of this machine's monotonic clock.

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


class Kept(NamedTuple):
    """A model that is resident since an earlier session. run_starts: the first page of each run."""

    model_id: int
    load_id: int
    run_starts: list[int]


class DeviceBroken(Exception):
    """Raised when the device is broken for good, by no fault of a model. The text is its ``fault``."""


Reserve: TypeAlias = Callable[[int, Sequence[int]], AbstractContextManager[list[int]]]
"""Reserves a device for preparing a model: for how many ns, and with pages in which runs.

The context yields the first page of each run. Entering it waits for the controller's RESERVE. An exception
that it raises ends the preparation."""


class Trial(Protocol):
    """A prepared model that no action names yet, to be loaded, checked and timed on its device in reserved().

    The thread that holds the reservation calls the methods; stage() and close() need no reservation."""

    @property
    def is_staged(self) -> bool:
        """Whether stage() is needed."""
        ...

    def stage(self, weights: Path, page: int, page_bytes: int) -> None:
        """Read a page of the weights' file into the memory that copy() reads. Raises OSError."""
        ...

    def claim(self, run_starts: list[int]) -> str:
        """Claim pages for the model. Returns a sentence if they are not free, "" otherwise."""
        ...

    def copy(self, page: int) -> int:
        """Load a page. Returns the time in ns. Raises DeviceBroken, InvalidModel."""
        ...

    def settle(self) -> None:
        """Mark the model as loaded, after the last copy()."""
        ...

    def run(self, inputs: Sequence[TensorView], expected_ns: int) -> Completion:
        """Execute the model once. expected_ns: 0 if unknown. Raises DeviceBroken, InvalidModel."""
        ...

    def time(self, shapes: Sequence[Sequence[int]], expected_ns: int) -> int:
        """Execute the model once on seeded inputs. Returns the time in ns. Raises as run()."""
        ...

    def close(self) -> None:
        """Release the pages."""
        ...


class ModelHolder(Protocol):
    """A holder of prepared models: a device, or the group that the device belongs to."""

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def fault(self) -> str:
        """The fault that broke the device, as a sentence; "" while the device works.

        Every action of a broken device ends as a DEVICE_ERROR until its process restarts."""
        ...

    @property
    def reserves(self) -> bool:
        """Whether opening a model stalls executions, so that it needs a RESERVE."""
        ...

    def open(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        """Open a prepared model, so that it can be loaded: create (or share) its program, map its weights.
        May take long.

        directory: a directory made by models.prepare for this device's fingerprint. Raises InvalidModel, or
        DeviceBroken (see ``fault``). After it returns, a LOAD of this model opens, allocates and
        compiles nothing (except for the packed holding of the CPU device). reserve: for a device that
        ``reserves``; None: nothing executes.
        """
        ...

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known; its program goes with the last model that uses it. Raises
        ValueError while it is resident or has actions under way. A residency that keep() has left goes with
        it."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether keep() leaves what is resident, and rename() is there."""
        ...

    def rename(self, model_id: int, other: int) -> None:
        """Have a model that no action names be known by another id. Raises KeyError if it is not known,
        ValueError if another model has the id, or the device does not keep."""
        ...

    def reserved(self, model_id: int, ask: Callable[[], None]) -> AbstractContextManager[list[int] | None]:
        """Wait for the next RESERVE for this model, and hold the device in the calling thread.

        Yields the first page of each run of the RESERVE; None after end_reserve(), or if the device ends.
        ask: requests a RESERVE from the controller. model_id: 0 for work that belongs to no model."""
        ...

    def end_reserve(self) -> None:
        """End the wait of a thread in reserved()."""
        ...

    def trial(self, model_id: int) -> Trial:
        """Begin a trial of a model that open() has made known. Raises ValueError unless the device
        ``reserves``."""
        ...

    @property
    def is_untidy(self) -> bool:
        """Whether tidy() has memory or modules to release."""
        ...

    def tidy(self, reserve: Reserve | None = None) -> None:
        """Release resources of forgotten models and replaced pools whose release stalls executions."""
        ...


class Undisturbed:
    """The methods of a device that prepares models without stalling executions: it needs no RESERVE."""

    @property
    def reserves(self) -> bool:
        return False

    @property
    def keeps(self) -> bool:
        return True

    @property
    def is_untidy(self) -> bool:
        return False

    def tidy(self, reserve: Reserve | None = None) -> None:
        """Do nothing: forget() releases everything."""

    @contextmanager
    def reserved(self, model_id: int, ask: Callable[[], None]) -> Iterator[list[int] | None]:
        yield None

    def end_reserve(self) -> None:
        """Do nothing: no thread waits."""

    def trial(self, model_id: int) -> Trial:
        raise ValueError("on this device models are tried before they are prepared")


class DeviceGroup(ModelHolder, Protocol):
    """Alike devices of one process that share their models and one descriptor.

    A worker polls a group once in each turn of its loop, instead of each device. The cost of a turn then
    depends on the number of devices with completions, not on the number of devices."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while ended() has devices to return."""
        ...

    def ended(self) -> Sequence[Device]:
        """Return the devices whose poll() has completions, each once."""
        ...

    def outlet(self) -> object:
        """Return a capsule with the DeviceOutlet (csrc/device/port.h) by which a road takes the ended
        orders of all devices."""
        ...

    def stats(self) -> dict[str, int]:
        """Return counts of the group's precision, for ``clockwork status``."""
        ...


class Device(ModelHolder, Protocol):
    @property
    def group(self) -> DeviceGroup | None:
        """The device's group, or None. Models of a device with a group are made known to the group alone."""
        ...

    @property
    def owner(self) -> Device | None:
        """The device whose arena this device executes from; None: it has an arena of its own.

        Actions that transfer weights are the owner's. All devices of an arena are lost together."""
        ...

    def fileno(self) -> int:
        """Return a descriptor that is readable while poll() has completions.

        Devices of an arena share a descriptor: see DeviceGroup."""
        ...

    def outlet(self) -> object:
        """Return the capsule by which a road takes ended orders; unused for a device of a group."""
        ...

    def port(self) -> object:
        """Return a capsule with the DevicePort (csrc/device/port.h) by which a road drives the device;
        valid until close().

        A worker uses the port instead of start(), revoke(), poll() and end_run(), which are for callers in
        Python."""
        ...

    def start(self, action: ActionMessage, parts: Sequence[Sequence[TensorView]] = ()) -> None:
        """Queue an action on its lane. An action that the device cannot take completes as a DEVICE_ERROR.

        parts: for an INFER, the inputs of each request in the model's order. The device keeps a reference to
        the buffers until the completion has been polled; they must not be written meanwhile. A RESERVE
        completes as ACTION_CANCELLED if the thread in reserved() waits for another model, and a DROP as
        IN_USE while a LOAD needs the model's bytes."""
        ...

    def revoke(self, action_id: int) -> None:
        """Have an action that has not started complete as ACTION_CANCELLED; otherwise do nothing."""
        ...

    def running(self) -> int:
        """Return the id of the action that the execute lane runs; 0 for none."""
        ...

    def moving(self) -> tuple[int, int]:
        """Return the ids of the actions that the load lane and the fetch lane run; 0 for none.

        A LOAD that still waits for another device's LOAD is not counted."""
        ...

    def end_run(self, action_id: int) -> None:
        """End that action as OVERRUN as soon as possible, if the execute lane runs it.

        Call it again while the lane runs the action, which may not have begun at an earlier call. A device
        that cannot end executions does nothing."""
        ...

    def poll(self) -> list[Completion]:
        """Return the completions since the last call, in the order in which the actions ended."""
        ...

    def reset(self) -> None:
        """Wait for running actions; drop queued actions, completions that were not polled, and every
        residency.

        A new controller epoch begins. Models stay prepared until they are forgotten. All devices of an arena
        are reset together, by a call for any of them."""
        ...

    def keep(self) -> list[Kept]:
        """Do the same, but leave every residency, and return them: those of an arena to its owner. Empty for
        a device that does not keep, which is reset.

        Models keep their ids; see rename(). A LOAD of such a model, or to such a model's pages, evicts it:
        a controller that counts on the model orders none."""
        ...

    def memory(self) -> dict[str, int]:
        """Return bytes by purpose: arena_bytes, resident_bytes, workspace_bytes, packed_bytes, ...

        Empty for a device that executes from another's arena, whose owner counts all."""
        ...

    def close(self) -> None:
        """Stop the lanes and release all resources. Idempotent. Devices of an arena end with the last of
        them."""
        ...
