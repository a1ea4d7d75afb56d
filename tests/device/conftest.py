"""A device of each kind, made fresh for each test, and checked to have released everything."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device.cuda_rig import CardRig, CudaRig, PlainCardRig, PlainCudaRig, why_no_card
from tests.device.fake import DRIVER, FakeDriver, environment
from tests.device.rig import CpuRig, Driver, EmulatedRig, SecondExecutorRig
from tests.patience import eventually

RIGS = [
    CpuRig,
    SecondExecutorRig,
    EmulatedRig,
    CudaRig,
    PlainCudaRig,
    *([] if why_no_card() else [CardRig, PlainCardRig]),
]


def open_files(within: str = "") -> list[str]:
    """Return what every descriptor of this process stands for. within: only files in this folder."""
    found = []
    for one in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this listing is closed already
            found.append(os.readlink(f"/proc/self/fd/{one}"))
    return [one for one in found if one.startswith(within)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on every kind of device, except where its module names some of them (RIGS)."""
    if "make" in metafunc.fixturenames:
        rigs = getattr(metafunc.module, "RIGS", RIGS)
        # A driver without functions for graphs is tested by make test-all only.
        found = [
            pytest.param(rig, id=rig.kind, marks=[pytest.mark.slow] if rig is PlainCudaRig else [])
            for rig in rigs
        ]
        metafunc.parametrize("make", found, indirect=True)


@pytest.fixture
def fake() -> Iterator[FakeDriver]:
    """The fake driver, for tests to control and query; every device made meanwhile is one of its."""
    one = FakeDriver()
    one.setup()
    with environment(**DRIVER):
        yield one
    one.restore()


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Make devices (options as for the rig's make()) with a Driver each; close them at the end."""
    made: list[Driver] = []

    def one(**options: Any) -> Driver:
        rig = request.param(tmp_path)
        made.append(Driver(rig.make(**options), rig))
        return made[-1]

    request.param(tmp_path).make().close()  # objects made once per process are no leak
    # NVIDIA's driver opens files when it needs them.
    within = str(tmp_path) if issubclass(request.param, CardRig) else ""
    threads, files = set(threading.enumerate()), Counter(open_files(within))
    yield one
    for driver in made:
        driver.device.close()
        driver.device.close()  # close() may be called twice
    for driver in made:
        driver.rig.check_released()
    assert set(threading.enumerate()) <= threads
    # The fake driver's threads end, and its last references are dropped, shortly after.

    def is_settled() -> bool:
        if not Counter(open_files(within)) - files:
            return True
        gc.collect()
        return False

    eventually(is_settled, "the files that devices opened are closed")


@pytest.fixture
def driver(make: Callable[..., Driver]) -> Driver:
    return make()
