"""The Python half of devices whose actions run in native lanes."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from clockwork.device._orders import DeviceCore
from clockwork.device.base import Completion, TensorView, Undisturbed
from clockwork.system.clock import now_ns
from clockwork.wire.messages import ActionMessage

CoreT = TypeVar("CoreT", bound=DeviceCore)


def start_lanes(core: DeviceCore, names: Iterable[str]) -> list[threading.Thread]:
    """Start a thread for each lane. They are daemons, so that an exiting interpreter does not wait for a
    lane."""
    lanes = [threading.Thread(target=core.run_lane, args=(name,), name=name, daemon=True) for name in names]
    for lane in lanes:
        lane.start()
    return lanes


class NativeDevice(Undisturbed, Generic[CoreT]):
    """The part of device.base.Device that hands actions to a core and takes their completions."""

    group = None

    def __init__(self, core: CoreT) -> None:
        self._core = core
        self._backlog: list[Completion] = []

    def fileno(self) -> int:
        return self._core.fileno()

    def port(self) -> object:
        return self._core.port()

    def outlet(self) -> object:
        return self._core.outlet()

    def start(self, action: ActionMessage, parts: Sequence[Sequence[TensorView]] = ()) -> None:
        self._core.start(action, parts)

    def revoke(self, action_id: int) -> None:
        self._core.revoke(action_id)

    def running(self) -> int:
        return self._core.running()

    def moving(self) -> tuple[int, int]:
        return self._core.moving()

    def end_run(self, action_id: int) -> None:
        self._core.end_run(action_id)

    def poll(self) -> list[Completion]:
        ended = self._core.poll()
        if self._backlog:
            self._backlog, ended = [], self._backlog + ended
        return ended

    def wait(self, action_ids: Iterable[int], timeout_s: float) -> list[Completion]:
        """Wait for actions and return their completions in the given order; for callers without a loop.

        Completions of other actions are kept for poll(). Raises TimeoutError.
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
            ended = self._core.poll()

    def reset(self) -> None:
        """See Device. Drops completions that were not polled, too."""
        self._core.reset()
        self._backlog.clear()
