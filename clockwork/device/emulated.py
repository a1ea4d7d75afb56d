"""Emulated devices, which compute nothing and take the profiled time: for experiments and tests on any
machine.

An EmulatedGroup holds all emulated devices of a process: a native fleet (csrc/device/fleet.h) of devices
without a clock (csrc/device/emulated.h), and a timer that wakes the process for the next event of any device.
Times are *emulated*: an action begins exactly when its lane, its window and, for a load, the link allow, and
ends exactly its duration later. The lateness of the process is measured, and does not change reported times.

Outputs are zeros of the declared shape, from a shared buffer; inputs are checked and dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clockwork import config
from clockwork.config import device as bounds
from clockwork.config.device import STALE_EVENTS_MAX
from clockwork.device._emulated import Fleet
from clockwork.device.base import Completion, Kept, Reserve, TensorView, Undisturbed
from clockwork.device.emulation import EmulatedSettings
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.prepared import PreparedModel
from clockwork.system.clock import Clock, now_ns
from clockwork.wire.messages import ActionMessage, DeviceInfo, Status
from clockwork.wire.tensors import DTYPES, STRING

KIND = "emulated"


class EmulatedGroup(Undisturbed):
    """All emulated devices of a process. Implements device.base.DeviceGroup.

    clock: for tests; the timer always follows the machine's. The loop's thread calls all methods except
    open(), which any thread may call.
    """

    fault = ""

    def __init__(
        self,
        count: int = 1,
        arena_bytes: int = config.EMULATED_ARENA_BYTES,
        page_bytes: int = config.EMULATED_PAGE_BYTES,
        run_ahead: int = config.RUN_AHEAD,
        settings: EmulatedSettings | None = None,
        clock: Clock = now_ns,
        host_bytes: int = 0,
    ) -> None:
        self.settings = settings or EmulatedSettings()
        self.settings.check()
        executors = self.settings.executors
        count *= executors
        if not 1 <= count <= config.EMULATED_DEVICES_MAX:
            raise ConfigError(f"one worker emulates 1 to {config.EMULATED_DEVICES_MAX} devices, not {count}")
        if page_bytes < 1 or arena_bytes < page_bytes:
            raise ConfigError(f"an arena of {arena_bytes} bytes has no room for one page of {page_bytes}")
        if run_ahead < 1:
            raise ConfigError(f"run_ahead must be at least 1, got {run_ahead}")
        if host_bytes < 0:
            raise ConfigError(f"a host store of {host_bytes} bytes")
        self.info = DeviceInfo(
            kind=KIND,
            name=f"profiled times, one of {count}" if count > 1 else "profiled times",
            fingerprint=fingerprint(page_bytes),
            page_bytes=page_bytes,
            page_count=arena_bytes // page_bytes,
            run_ahead=run_ahead,
            host_bytes=host_bytes,
            slowdown_thousandths=round(1000 * self.settings.slowdown) if executors > 1 else 1000,
        )
        emulation = self.settings
        self.clock = clock
        self.fleet = Fleet(
            self._now, count, executors=executors, page_count=self.info.page_count, run_ahead=run_ahead, stale_max=STALE_EVENTS_MAX,
            host_bytes=host_bytes, shares_link=emulation.shared_link, seed=emulation.seed, page_bytes=page_bytes,
            slot_bytes_max=config.IO_SLOT_BYTES_MAX, spin_ns=bounds.EMULATED_SPIN_NS if emulation.spin else 0,
            is_unending=emulation.unending, slowdown=emulation.slowdown, exec_noise=emulation.exec_noise, load_noise=emulation.load_noise,
            exec_outlier=emulation.outlier, outlier_factor=emulation.outlier_factor,
            load_failures=emulation.failures, exec_failures=emulation.failures,
            exec_failure=Status.EXECUTION_FAILED, copy_bandwidth=emulation.copy_bandwidth,
            disk_bandwidth=emulation.disk_bandwidth, slow_factor=emulation.slow_factor,
            slow_ns=emulation.slow_ns, slow_every_ns=emulation.slow_every_ns,
        )  # fmt: skip
        self.models: set[int] = set()
        self.devices = [EmulatedDevice(self, index, index - index % executors) for index in range(count)]
        self._open = count

    def _now(self) -> int:
        return self.clock()

    # ----- models ------------------------------------------------------------------------------

    def open(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        """See Device. Raises InvalidModel; ValueError if the id is taken."""
        prepared = PreparedModel.read_for(directory, self.info.fingerprint, self.info.page_bytes)
        if any(pages < 1 for pages in prepared.runs) or not prepared.profile or prepared.load_ns < 0:
            raise InvalidModel(f"{directory} has no execution time, or a run of no pages")
        if any(point.exec_ns < 1 or point.batch < 1 for point in prepared.profile):
            raise InvalidModel(f"{directory} has an execution that takes no time")
        if all(point.batch > 1 for point in prepared.profile):
            raise InvalidModel(f"{directory} has no execution time of batch 1")
        for spec in (*prepared.inputs, *prepared.outputs):
            if spec.dtype not in DTYPES:
                raise InvalidModel(f"{directory} has a tensor of the unknown type {spec.dtype}")
        if model_id in self.models:
            raise ValueError(f"model {model_id} is prepared already")
        times: dict[int, int] = {}  # the time of the slowest shape, by batch
        for point in prepared.profile:
            times[point.batch] = max(times.get(point.batch, 0), point.exec_ns)
        outputs = [
            (
                spec.dtype,
                32 if spec.dtype == STRING else DTYPES[spec.dtype].bits,
                [dimension if isinstance(dimension, int) else 1 for dimension in spec.shape],
            )
            for spec in prepared.outputs
        ]
        self.fleet.add_model(
            model_id, [spec.dtype for spec in prepared.inputs], prepared.batches, list(prepared.runs), sorted(times.items()),
            prepared.load_ns, outputs,
        )  # fmt: skip
        self.models.add(model_id)

    def forget(self, model_id: int) -> None:
        """Drop a model, if it is known. Raises ValueError if it is resident or an action holds it."""
        if model_id in self.models:
            self.fleet.forget(model_id)
            self.models.remove(model_id)

    def rename(self, model_id: int, other: int) -> None:
        """See ModelHolder."""
        if other in self.models:
            raise ValueError(f"model {other} is prepared already")
        self.models.remove(model_id)
        self.fleet.rename(model_id, other)
        self.models.add(other)

    # ----- time --------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self.fleet.fileno()

    def ended(self) -> list[EmulatedDevice]:
        """See DeviceGroup. With spin, the call waits for an end that is very near."""
        return [self.devices[index] for index in self.fleet.ended()]

    def outlet(self) -> object:
        """See DeviceGroup."""
        return self.fleet.outlet()

    def stats(self) -> dict[str, int]:
        """Return how late the last LATENESS_WINDOW completions were noticed, in ns."""
        late = sorted(self.fleet.lateness())
        if not late:
            return {}
        last = len(late) - 1
        return {
            "late_p50_ns": late[last // 2],
            "late_p99_ns": late[last * 99 // 100],
            "late_max_ns": late[last],
        }

    def release(self) -> None:
        """Count a closed device. The last one closes the timer."""
        self._open -= 1
        if self._open == 0:
            self.fleet.close_timer()


class EmulatedDevice(Undisturbed):
    """One device of a group. Implements device.base.Device."""

    fault = ""

    def __init__(self, group: EmulatedGroup, index: int, owner: int) -> None:
        self.group = group
        self._owner = owner
        self.info = (
            group.info
            if owner == index
            else dataclasses.replace(group.info, arena=owner, slowdown_thousandths=1000)
        )
        self.index = index
        self._closed = False

    @property
    def owner(self) -> EmulatedDevice | None:
        """See Device."""
        return self.group.devices[self._owner] if self._owner != self.index else None

    def port(self) -> object:
        """See Device."""
        return self.group.fleet.port(self.index)

    def outlet(self) -> object:
        """See Device."""
        return self.group.outlet()

    def open(self, model_id: int, directory: str, reserve: Reserve | None = None) -> None:
        self.group.open(model_id, directory)

    def forget(self, model_id: int) -> None:
        self.group.forget(model_id)

    def rename(self, model_id: int, other: int) -> None:
        self.group.rename(model_id, other)

    def fileno(self) -> int:
        return self.group.fileno()

    # ----- actions -----------------------------------------------------------------------------

    def start(self, action: ActionMessage, parts: Sequence[Sequence[TensorView]] = ()) -> None:
        self.group.fleet.start(self.index, action, parts)

    def revoke(self, action_id: int) -> None:
        self.group.fleet.revoke(self.index, action_id)

    def running(self) -> int:
        return self.group.fleet.look(self.index)[0]

    def moving(self) -> tuple[int, int]:
        return self.group.fleet.look(self.index)[1:]

    def end_run(self, action_id: int) -> None:
        self.group.fleet.end_run(self.index, action_id)

    def poll(self) -> list[Completion]:
        return self.group.fleet.poll(self.index)

    def reset(self) -> None:
        """See Device. Running actions need no wait."""
        self.group.fleet.reset(self.index)

    def keep(self) -> list[Kept]:
        """See Device. Running actions need no wait: a LOAD among them has not been."""
        return [Kept(*found) for found in self.group.fleet.keep(self.index)]

    def memory(self) -> dict[str, int]:
        """Return bytes by purpose, as a real device counts them. No memory is allocated."""
        page_bytes = self.info.page_bytes
        return {
            "arena_bytes": self.info.page_count * page_bytes,
            "resident_bytes": self.group.fleet.held_pages(self.index) * page_bytes,
            "input_bytes": self.group.fleet.input_bytes(self.index),
            "models": len(self.group.models),
            "host_bytes": self.group.fleet.host_bytes,
        }

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.group.release()


def fingerprint(page_bytes: int) -> str:
    """Return the fingerprint on which prepared profiles depend: the size of a page."""
    return f"{KIND}-{page_bytes}"
