"""Observes the causes of changes in a GPU's timing: clocks, temperature, power, and reasons for lower clocks.

NVML (nvidia-ml-py) is read, and no setting is changed. For a device that is no GPU the values come from a
file that a test writes. All values are those of whole cards: a MIG instance has the clocks of its card.
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
"""NVML's reasons for clocks below the requested ones, by bit. Harmless reasons are left out: an idle GPU
(GPU_IDLE), and clocks that a user has set (0x2, 0x100)."""

GPU_IDLE = 0x1  # NVML's bit for an idle GPU, whose low clocks do not predict the duration of work


@dataclasses.dataclass(frozen=True, slots=True)
class GpuState:
    """A sample of a card's state. 0: the card does not report the value."""

    sm_mhz: int = 0
    memory_mhz: int = 0
    temperature_c: int = 0
    power_w: int = 0
    reasons: int = 0  # NVML's bits, see the constants above
    lost: str = ""  # the driver's message if the card is gone; "" otherwise

    @property
    def busy_mhz(self) -> int:
        """The clock in MHz at which work runs; 0 if the sample does not show it."""
        return 0 if self.reasons & GPU_IDLE else self.sm_mhz

    def describe(self) -> dict[str, Any]:
        """Return the values for ``clockwork status``."""
        return {
            "sm_mhz": self.sm_mhz,
            "memory_mhz": self.memory_mhz,
            "temperature_c": self.temperature_c,
            "power_w": self.power_w,
            "idle": bool(self.reasons & GPU_IDLE),
            "throttled": [name for bit, name in THROTTLES.items() if self.reasons & bit],
        }


class ClockSource(Protocol):
    """A source of samples. Called from a single thread; a call may take milliseconds."""

    def read(self, card: int) -> GpuState:
        """Sample a card, given by its index among the cards of the source."""
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
        """Find a card's handle: of a MIG instance's card, by bus address if NVML hides the instance."""
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
                return 0  # some cards do not report every value

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
    """A source for devices that are no GPUs: a file with a JSON list of GpuState's fields for each device."""

    def __init__(self, path: Path, ordinals: Sequence[int]) -> None:
        self._path = path
        self._ordinals = ordinals

    def read(self, card: int) -> GpuState:
        try:
            return GpuState(**json.loads(self._path.read_bytes())[self._ordinals[card]])
        except (OSError, ValueError, IndexError):
            return GpuState()

    def close(self) -> None:
        """Do nothing: no resource is held."""


class NoClocks(Exception):
    """Raised where clocks cannot be observed; the text says why."""


class ClockWatch:
    """A thread that samples the cards periodically and keeps the last samples.

    wake: called from the thread when the clock of a working card has changed, or a card is lost.
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
        self.states = [GpuState()] * count  # replaced as a whole, so that any thread may read it
        self.clocks = [0] * count  # the last busy_mhz; replaced as a whole. 0: not seen yet
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
        """Sample every card once."""
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
    """Open the source of clocks for these devices; None, with a log line, if there is no source."""
    if not bounds.is_nvidias(bounds.cuda_driver()):
        path = bounds.fake_clocks()
        return ClockFile(path, [card.ordinal for card in cards]) if path is not None else None
    try:
        return Nvml(cards)
    except NoClocks as error:
        log.warning("clocks and throttling of GPUs are not observed: %s", error)
        return None
