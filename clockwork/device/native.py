"""The Python half of devices whose actions run in native lanes."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from clockwork.device._orders import DeviceCore
from clockwork.device.base import Completion, Device, DeviceGroup, TensorView, Undisturbed
from clockwork.system.clock import now_ns
from clockwork.wire.messages import ActionMessage

CoreT = TypeVar("CoreT", bound=DeviceCore)


def start_lanes(
    core: DeviceCore, names: Iterable[str], processors: Mapping[str, Collection[int]] | None = None
) -> list[threading.Thread]:
    """Start a thread for each lane. They are daemons, so that an exiting interpreter does not wait for a
    lane.

    processors: those on which a lane's thread runs; a lane without any runs on all of this process's."""
    lanes = [
        threading.Thread(
            target=run_on,
            args=((processors or {}).get(name, ()), core.run_lane, name),
            name=name,
            daemon=True,
        )
        for name in names
    ]
    for lane in lanes:
        lane.start()
    return lanes


def run_on(processors: Collection[int], target: Callable[..., None], *arguments: object) -> None:
    """Call a function on these processors alone, if there are any. For a thread of its own."""
    if processors:
        os.sched_setaffinity(0, processors)
    target(*arguments)


class NativeDevice(Undisturbed, Generic[CoreT]):
    """The part of device.base.Device that hands actions to an executor of a core and takes their
    completions. number: the executor's."""

    group: DeviceGroup | None = None

    def __init__(self, core: CoreT, number: int = 0) -> None:
        self._core = core
        self._number = number
        self._backlog: list[Completion] = []

    @property
    def owner(self) -> Device | None:
        """See Device."""
        return None

    def fileno(self) -> int:
        return self._core.fileno()

    def port(self) -> object:
        return self._core.port(self._number)

    def outlet(self) -> object:
        return self._core.outlet()

    def start(self, action: ActionMessage, parts: Sequence[Sequence[TensorView]] = ()) -> None:
        self._core.start(action, parts, self._number)

    def revoke(self, action_id: int) -> None:
        self._core.revoke(action_id, self._number)

    def running(self) -> int:
        return self._core.running(self._number)

    def moving(self) -> tuple[int, int]:
        return self._core.moving(self._number)

    def end_run(self, action_id: int) -> None:
        self._core.end_run(action_id, self._number)

    def poll(self) -> list[Completion]:
        ended = self._core.poll(self._number)
        if self._backlog:
            self._backlog, ended = [], self._backlog + ended
        return ended

    def wait(self, action_ids: Iterable[int], timeout_s: float) -> list[Completion]:
        """Wait for actions and return their completions in the given order; for callers without a loop.

        Completions of other actions, and of other executors, are kept for poll(). Raises TimeoutError.
        """
        order = list(action_ids)
        found: dict[int, Completion] = {}
        deadline_ns = now_ns() + round(timeout_s * 1e9)
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        ended = self.poll()
        while True:
            for completion in ended:
                if completion.action_id in order:
                    found[completion.action_id] = completion
                else:
                    self._backlog.append(completion)
            if len(found) == len(order):
                return [found[action_id] for action_id in order]
            left_s = (deadline_ns - now_ns()) / 1e9
            if left_s <= 0 or not poller.poll(left_s * 1e3):
                self._backlog.extend(found.values())
                missing = [action_id for action_id in order if action_id not in found]
                raise TimeoutError(f"actions {missing} did not end within {timeout_s} s")
            ended = self._core.poll(self._number)

    def reset(self) -> None:
        """See Device. Drops completions that were not polled, too."""
        self._core.reset()
        self._backlog.clear()
