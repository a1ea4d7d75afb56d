"""What a device is to a worker: it does what it is told, in the window it was told, and says when.

A device owns a page arena, its input/output slots and its workspace. Their memory is there before a LOAD or an execution needs
it. It has lanes, each strictly first in, first out: *load* (LOAD, UNLOAD), *execute* (INFER, PROFILE) and, where the machine has a host store with a budget, *fetch* (FETCH, DROP). It never evicts, reorders or
retries. What one device may differ in, another must be able to differ in without any change outside its
own module.

Threads: a worker's road drives a device natively, by its port() and outlet(), on a thread of its own; all else is called
from the worker's loop, except prepare(), tidy(), reserved() and what is done in it, which are called from the thread that
makes models ready. Other callers have one thread in the place of road and loop. The lanes themselves run natively.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

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
from clockwork.wire.messages import Reserve as Reservation


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


Reserve: TypeAlias = Callable[[int, Sequence[int]], AbstractContextManager[list[int]]]
"""Gives a device's time to who makes a model ready, for so many nanoseconds, with pages in these runs: the first of
each. It waits until the controller has ordered that; what it raises ends the preparation."""


class Trial(Protocol):
    """A prepared model that no action names yet, to be loaded, checked and timed on its device in reserved().

    Every method belongs to the thread that has the reservation, but stage() and close() need none."""

    @property
    def is_staged(self) -> bool:
        """Whether stage() is needed."""
        ...

    def stage(self, weights: Path, page: int, page_bytes: int) -> None:
        """Bring a page of the weights' file to where copy() takes it from. Raises OSError."""
        ...

    def claim(self, run_starts: list[int]) -> str:
        """Have these pages be the model's. A sentence if they are not free, "" otherwise."""
        ...

    def copy(self, page: int) -> int:
        """Load a page; the time in ns. Raises DeviceBroken, InvalidModel."""
        ...

    def settle(self) -> None:
        """All pages are loaded."""
        ...

    def run(self, inputs: Sequence[TensorView], expected_ns: int) -> Completion:
        """Execute it once. expected_ns: 0, nobody knows. Raises DeviceBroken, InvalidModel."""
        ...

    def time(self, shapes: Sequence[Sequence[int]], expected_ns: int) -> int:
        """Execute it once on seeded inputs; the time in ns. Raises as run()."""
        ...

    def close(self) -> None:
        """It has no pages any more."""
        ...


class ModelHolder(Protocol):
    """Whom models are made known to: a device, or the group that it belongs to."""

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def fault(self) -> str:
        """What broke it for good, in a sentence: until its process begins anew, every action is a DEVICE_ERROR.

        "" while it is whole."""
        ...

    @property
    def reserves(self) -> bool:
        """Whether making a model ready would stall what executes, so that it happens in RESERVEs."""
        ...

    def prepare(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        """Make a prepared model loadable: create (or share) its program, map its weights. May take long.

        directory: a directory made by models.prepare for this device's fingerprint. Raises
        InvalidModel, or DeviceBroken (see ``fault``). After it returns, start_load() of this model
        opens, allocates and compiles nothing (but see the packed holding of the CPU device). reserve: of a device that
        ``reserves``; None: nothing executes.
        """
        ...

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known; its program goes with the last model that uses it. Raises
        ValueError while it is resident or has actions under way."""
        ...

    def reserved(self, model_id: int, ask: Callable[[], None]) -> AbstractContextManager[list[int] | None]:
        """The device's time, from the next RESERVE for this model on, of the thread that makes models ready; the first page
        of each run that came with it. None: end_reserve(), or the device ends. ask: has the controller send one. model_id:
        0 for what is of no model."""
        ...

    def end_reserve(self) -> None:
        """Let who waits in reserved() wait no more."""
        ...

    def trial(self, model_id: int) -> Trial:
        """Of a model that prepare() has made known. Raises ValueError if the device does not ``reserve``."""
        ...

    @property
    def is_untidy(self) -> bool:
        """Whether tidy() has something to do."""
        ...

    def tidy(self, reserve: Reserve | None = None) -> None:
        """Give back what forgotten models and outgrown pools had, where that would stall what executes."""
        ...


class Undisturbed:
    """Of a device that makes models ready beside what it executes: it needs no RESERVE."""

    @property
    def reserves(self) -> bool:
        return False

    @property
    def is_untidy(self) -> bool:
        return False

    def tidy(self, reserve: Reserve | None = None) -> None:
        """There is nothing to give back."""

    def start_reserve(self, action: Reservation) -> None:
        raise ValueError("this device makes models ready beside what it executes")

    @contextmanager
    def reserved(self, model_id: int, ask: Callable[[], None]) -> Iterator[list[int] | None]:
        yield None

    def end_reserve(self) -> None:
        """Nobody waits."""

    def trial(self, model_id: int) -> Trial:
        raise ValueError("on this device models are tried before they are prepared")


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

    def outlet(self) -> object:
        """Where a road takes the ended orders of all devices from: a capsule with an Outlet of csrc/device/port.h."""
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

    def outlet(self) -> object:
        """Where a road takes its ended orders from, unless it belongs to a group; see DeviceGroup."""
        ...

    def port(self) -> object:
        """How a road drives it: a capsule with a Port of csrc/device/port.h, good until close(). What start_*(), revoke(),
        poll() and end_run() do for callers in Python, a worker does by this."""
        ...

    def start_load(self, action: Load) -> None: ...

    def start_unload(self, action: Unload) -> None: ...

    def start_infer(self, action: Infer, parts: Sequence[Sequence[TensorView]]) -> None:
        """Queue a batch. parts: per request, its inputs in the model's order. The device keeps a
        reference to the buffers until the completion has been polled; nobody may write to them."""
        ...

    def start_profile(self, action: Profile) -> None: ...

    def start_reserve(self, action: Reservation) -> None:
        """Execute nothing while the thread in reserved() has the device; complete as ACTION_CANCELLED if that wants it for
        another model. Raises ValueError if it does not ``reserve``."""
        ...

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
