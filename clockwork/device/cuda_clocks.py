"""What moves a GPU's timing, as it is observed: clocks, temperature, power, and what holds the clocks down.

On a card that is asked of NVML (nvidia-ml-py), which changes nothing here. Of a device that is no GPU it is read from a
file that a test writes. Everything is of whole cards: the clocks of a MIG instance are those of the card that it is part of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clockwork.config import device as bounds

if TYPE_CHECKING:
    from clockwork.device.cuda_memory import CardInfo

log = logging.getLogger("clockwork.worker")

THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
"""NVML's reasons for clocks below what was asked for, by bit. Left out are those that are nobody's trouble: that the GPU
is idle (GPU_IDLE), and that somebody has set the clocks (0x2, 0x100)."""

GPU_IDLE = 0x1
"""Nothing runs, and the clocks fall to what idling needs: they say nothing of how long work will take."""


@dataclasses.dataclass(frozen=True, slots=True)
class GpuState:
    """One look at a card. 0: it does not say."""

    sm_mhz: int = 0
    memory_mhz: int = 0
    temperature_c: int = 0
    power_w: int = 0
    reasons: int = 0  # NVML's bits
    lost: str = ""  # the card is not there any more: what the driver says

    @property
    def busy_mhz(self) -> int:
        """The clock that work runs at; 0 where this look does not tell."""
        return 0 if self.reasons & GPU_IDLE else self.sm_mhz

    def describe(self) -> dict[str, Any]:
        """For ``clockwork status``."""
        return {
            "sm_mhz": self.sm_mhz,
            "memory_mhz": self.memory_mhz,
            "temperature_c": self.temperature_c,
            "power_w": self.power_w,
            "idle": bool(self.reasons & GPU_IDLE),
            "throttled": [name for bit, name in THROTTLES.items() if self.reasons & bit],
        }


class ClockSource(Protocol):
    """Whom to ask. Called from one thread; may take milliseconds."""

    def read(self, card: int) -> GpuState:
        """Of one of the cards that it was made for, by place."""
        ...

    def close(self) -> None: ...


class Nvml:
    """The driver's own management library, by nvidia-ml-py. It knows every card of the machine, whatever
    CUDA_VISIBLE_DEVICES says. Raises NoClocks."""

    def __init__(self, cards: Sequence[CardInfo]) -> None:
        try:
            import pynvml
        except ImportError:
            raise NoClocks(
                "nvidia-ml-py is not installed (install clockwork-serving[cuda12] or [cuda13])"
            ) from None
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            try:
                self._handles = [self._find(card) for card in cards]
            except pynvml.NVMLError:
                pynvml.nvmlShutdown()
                raise
        except pynvml.NVMLError as error:
            raise NoClocks(f"NVML: {error}") from None

    def _find(self, card: CardInfo) -> Any:
        """Of a MIG instance its card; by the place on the bus where NVML does not let this process see the instance."""
        nvml = self._nvml
        with contextlib.suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{card.uuid}")
        with contextlib.suppress(nvml.NVMLError):
            part = nvml.nvmlDeviceGetHandleByUUID(f"MIG-{card.uuid}")
            return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)
        return nvml.nvmlDeviceGetHandleByPciBusId(card.bus)

    def read(self, card: int) -> GpuState:
        nvml, handle = self._nvml, self._handles[card]
        lost = ""

        def ask(call: Callable[..., int], *arguments: int) -> int:
            nonlocal lost
            try:
                return int(call(handle, *arguments))
            except nvml.NVMLError as error:
                if getattr(error, "value", None) in (
                    nvml.NVML_ERROR_GPU_IS_LOST,
                    nvml.NVML_ERROR_RESET_REQUIRED,
                ):
                    lost = f"NVML: {error}"
                return 0  # not every card says everything

        return GpuState(
            sm_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            power_w=ask(nvml.nvmlDeviceGetPowerUsage) // 1000,
            reasons=ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
            lost=lost,
        )

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


class ClockFile:
    """For devices that are no GPUs: a JSON list of GpuState's fields for each device, in a file that is read at each look."""

    def __init__(self, path: Path, ordinals: Sequence[int]) -> None:
        self._path = path
        self._ordinals = ordinals

    def read(self, card: int) -> GpuState:
        try:
            return GpuState(**json.loads(self._path.read_bytes())[self._ordinals[card]])
        except (OSError, ValueError, IndexError):
            return GpuState()

    def close(self) -> None:
        """Nothing is held."""


class NoClocks(Exception):
    """The clocks cannot be observed here; the text says why."""


class ClockWatch:
    """A thread that looks at the cards now and then, and has what it saw.

    wake: called from the thread when a clock that work runs at has changed, or a card is lost.
    """

    def __init__(
        self,
        source: ClockSource,
        count: int,
        wake: Callable[[], None],
        interval_ns: int = bounds.CLOCK_SAMPLE_NS,
    ) -> None:
        self._source = source
        self._wake = wake
        self._interval_s = interval_ns / 1e9
        self._stopped = threading.Event()
        self.states = [GpuState()] * count  # exchanged whole, so that any thread may read it
        self.clocks = [0] * count  # that work runs at, as last seen; likewise. 0: not seen yet
        self._thread = threading.Thread(target=self._run, name="cw-clocks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._source.close()

    def _run(self) -> None:
        while True:
            self.look()
            if self._stopped.wait(self._interval_s):
                return

    def look(self) -> None:
        """Look at every card once."""
        states = [self._source.read(card) for card in range(len(self.states))]
        clocks = list(self.clocks)
        is_news = False
        for card, state in enumerate(states):
            is_news |= bool(state.lost) and not self.states[card].lost
            mhz = state.busy_mhz
            if mhz > 0 and abs(mhz - clocks[card]) > bounds.CLOCK_STEP_RATIO * clocks[card]:
                clocks[card] = mhz
                is_news = True
        self.states, self.clocks = states, clocks
        if is_news:
            self._wake()


def open_source(cards: Sequence[CardInfo]) -> ClockSource | None:
    """Whom to ask for the clocks of these devices; None, and it is said why, where there is nobody."""
    if not bounds.is_nvidias(bounds.cuda_driver()):
        path = bounds.fake_clocks()
        return ClockFile(path, [card.ordinal for card in cards]) if path is not None else None
    try:
        return Nvml(cards)
    except NoClocks as error:
        log.warning("clocks and throttling of GPUs are not observed: %s", error)
        return None
