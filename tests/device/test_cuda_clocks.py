"""How clocks of GPUs are observed: on a stand-in of the few names of NVML that are used, and by a watch with
a fake card."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from clockwork.device.cuda_clocks import ClockWatch, GpuState, NoClocks, Nvml, open_source
from clockwork.device.cuda_memory import CardInfo
from clockwork.system.clock import SECOND

CARD, PART, BUS = "0a-card", "0b-part", "0000:3b:00.0"
IDLE = 0x1


def card(uuid: str, bus: str = BUS) -> CardInfo:
    return CardInfo(0, "a card", uuid, bus, -1, 90, 0, 0)


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__({3: "Not Supported", 6: "Not Found", 15: "GPU is lost"}[value])
        self.value = value


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with one card, of which a MIG instance is part."""
    stub: Any = types.ModuleType("pynvml")
    stub.NVMLError = NVMLError
    stub.NVML_CLOCK_SM, stub.NVML_CLOCK_MEM, stub.NVML_TEMPERATURE_GPU = 1, 2, 0
    stub.NVML_ERROR_GPU_IS_LOST, stub.NVML_ERROR_RESET_REQUIRED = 15, 16
    stub.opened, stub.says = (
        0,
        {"clock": {1: 1980, 2: 2619}, "temperature": 61, "power": 401_900, "reasons": 0},
    )

    def init() -> None:
        stub.opened += 1

    def shutdown() -> None:
        stub.opened -= 1

    def by_uuid(name: str) -> str:
        if name not in (f"GPU-{CARD}", f"MIG-{PART}"):
            raise NVMLError(6)
        return name

    def said(what: str, handle: str) -> Any:
        assert handle == f"GPU-{CARD}", "a MIG instance has no clocks of its own"
        found = stub.says[what]
        if isinstance(found, NVMLError):
            raise found
        return found

    def by_bus(bus: str) -> str:
        if bus != BUS:
            raise NVMLError(6)
        return f"GPU-{CARD}"

    stub.nvmlDeviceGetHandleByPciBusId = by_bus
    stub.nvmlInit, stub.nvmlShutdown, stub.nvmlDeviceGetHandleByUUID = init, shutdown, by_uuid
    stub.nvmlDeviceGetDeviceHandleFromMigDeviceHandle = lambda handle: f"GPU-{CARD}"
    stub.nvmlDeviceGetClockInfo = lambda handle, kind: said("clock", handle)[kind]
    stub.nvmlDeviceGetTemperature = lambda handle, sensor: said("temperature", handle)
    stub.nvmlDeviceGetPowerUsage = lambda handle: said("power", handle)
    stub.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: said("reasons", handle)
    monkeypatch.setitem(sys.modules, "pynvml", stub)
    return stub


def test_a_card_says_its_clocks_and_a_part_of_it_the_same(nvml: Any) -> None:
    source = open_source([card(CARD), card(PART)])
    assert source is not None
    nvml.says["reasons"] = 0x4 | 0x20 | 0x2
    for place in (0, 1):
        state = source.read(place)
        assert state == GpuState(1980, 2619, 61, 401, 0x26)
        assert state.describe()["throttled"] == ["power cap", "thermal"]
    source.close()
    assert nvml.opened == 0


def test_the_card_of_an_instance_that_nvml_does_not_show_is_found_by_its_place(nvml: Any) -> None:
    assert Nvml([card("unseen")]).read(0).sm_mhz == 1980


def test_what_a_card_does_not_say_is_left_out_and_one_that_is_lost_is_told(nvml: Any) -> None:
    source = Nvml([card(CARD)])
    nvml.says["power"] = NVMLError(3)
    assert source.read(0) == GpuState(1980, 2619, 61, 0, 0)
    nvml.says["temperature"] = NVMLError(15)
    assert source.read(0).lost == "NVML: GPU is lost"


def test_where_nothing_can_be_observed_it_is_said_once(
    nvml: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoClocks, match="NVML: Not Found"):
        Nvml([card("another", "0000:99:00.0")])
    assert nvml.opened == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_source([card(CARD)]) is None
    (record,) = caplog.records
    assert (
        "not observed: nvidia-ml-py is not installed (install clockwork-serving[cuda12]"
        in record.getMessage()
    )


class Cards:
    """Two cards whose clocks a test sets."""

    def __init__(self) -> None:
        self.states = [GpuState(sm_mhz=1980), GpuState(sm_mhz=1980)]
        self.closed = False

    def read(self, card: int) -> GpuState:
        return self.states[card]

    def close(self) -> None:
        self.closed = True


def test_a_watch_wakes_for_what_changes_how_long_work_takes_and_for_nothing_else() -> None:
    cards, woken = Cards(), []
    watch = ClockWatch(cards, 2, lambda: woken.append(True), interval_ns=1000 * SECOND)
    watch.close()  # the thread has looked at most once; from here on the test itself looks
    assert cards.closed
    watch.look()
    woken.clear()

    def look(first: GpuState) -> int:
        cards.states[0] = first
        watch.look()
        count = len(woken)
        woken.clear()
        return count

    assert watch.clocks == [1980, 1980]
    assert look(GpuState(sm_mhz=1975)) == 0, "it is never still"
    assert look(GpuState(sm_mhz=210, reasons=IDLE)) == 0, "it idles"
    assert watch.states[0].sm_mhz == 210
    assert look(GpuState(sm_mhz=1386)) == 1
    assert look(GpuState(sm_mhz=0)) == 0, "it does not say"
    assert watch.clocks == [1386, 1980]
    assert look(GpuState(lost="GPU is lost")) == 1
    assert look(GpuState(lost="GPU is lost")) == 0, "that is known"
